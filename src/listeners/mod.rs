//! Who listens here: the listening sockets of this network namespace, the processes that own them, and news of both.

mod closings;
mod error;
mod events;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod inet_diag;
mod owners;
mod process;
mod procfs;
mod sock_diag;
mod users;

pub use closings::{Closing, Closings};
pub use error::Error;
pub use events::{Event, EventSocket, Events, Unavailable};
pub use owners::{Holders, Owners, Scan, Visibility};
pub use process::{Identity, Mismatch, Process, ProcessError, Program};
pub use sock_diag::SockDiag;
pub use users::{user_id, user_name};

use crate::plan::LocalScope;
use crate::ruleset::Protocol;

/// A TCP socket that listens, or a UDP socket that is bound and not connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listener {
    /// The protocol.
    pub protocol: Protocol,
    /// The port, 1 to 65,535.
    pub port: u16,
    /// Packets to which of the host's addresses it takes.
    pub scope: LocalScope,
    /// The index of the interface that it is bound to (`SO_BINDTODEVICE`), if it is.
    pub interface: Option<u32>,
    /// The user that made the socket.
    pub uid: u32,
    /// The socket's inode, by which /proc/PID/fd names it; 0 for a socket of the kernel itself.
    pub inode: u32,
    /// The kernel's number of the socket, never used twice while the machine runs (`sk_cookie`).
    pub cookie: u64,
}

impl Listener {
    /// Whether only the host itself can reach it: bound to a loopback address or to the loopback interface.
    pub fn is_loopback(&self) -> bool {
        self.scope.is_loopback() || self.interface == Some(crate::ruleset::loopback::INTERFACE_INDEX)
    }
}
