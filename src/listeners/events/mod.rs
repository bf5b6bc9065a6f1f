//! News of sockets that begin to listen, from BPF programs: the one way in which the kernel tells of them.
//!
//! The programs are attached to the root of cgroup2, so they see the sockets of all processes. They are part of builds
//! with the feature `bpf`; without it, [`Events::open`] says so.
#![forbid(unsafe_code)]

#[cfg(feature = "bpf")]
mod attached;
#[cfg(feature = "bpf")]
pub(super) mod cgroup;
#[cfg(feature = "bpf")]
pub(super) mod record;

#[cfg(not(feature = "bpf"))]
mod absent;
#[cfg(not(feature = "bpf"))]
pub use absent::Events;
#[cfg(feature = "bpf")]
pub use attached::Events;

use crate::plan::LocalScope;
use crate::ruleset::Protocol;

/// Something that happened to a socket on a port of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It listens (TCP), or it was bound (UDP).
    Opened(EventSocket),
    /// It was closed by its last holder. Only sockets of which [`Opened`](Self::Opened) told are told of.
    Closed(EventSocket),
    /// Events were lost, because there were more than the buffer holds: any listener may have come or gone.
    Lost {
        /// How many.
        count: u64,
    },
}

/// What an event tells of a socket. It is a hint: look the socket up by [`SockDiag::find`](super::SockDiag::find), and
/// compare the cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventSocket {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its port.
    pub port: u16,
    /// Packets to which addresses it takes; [`Any`](LocalScope::Any) for all of IPv6, since whether IPv4 is among them is
    /// not told. `None` when it is closed.
    pub scope: Option<LocalScope>,
    /// The kernel's number of the socket, see [`Listener`](super::Listener).
    pub cookie: u64,
    /// The process that did it, or bound the socket before; `None` when the kernel does not tell.
    pub pid: Option<u32>,
}

/// Why there are no events. Polling has to do.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// The feature `bpf` was not built in.
    #[error("this build of portward has no BPF programs (feature `bpf`)")]
    NotBuilt,
    /// The root of cgroup2 could not be opened.
    #[error("{doing}: {}", source.desc())]
    Cgroup {
        /// What was being done.
        doing: String,
        /// The system's answer.
        #[source]
        source: nix::errno::Errno,
    },
    /// The kernel does not load or attach a program or map.
    #[error("the kernel refuses {what}: {reason}")]
    Refused {
        /// The program or map.
        what: &'static str,
        /// Its answer, in words.
        reason: String,
    },
}
