//! Flows as the kernel's connection tracking knows them.
#![forbid(unsafe_code)]

use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;

/// One tracked flow: a TCP connection, or packets of another protocol that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// The protocol number of the IP header (IANA protocol numbers).
    pub protocol: u8,
    /// Packets of the side that began, as it sends them.
    pub original: Tuple,
    /// Packets of the other side, as it sends them: when an address was rewritten on this host, not the mirror of
    /// `original`.
    pub reply: Tuple,
    /// What happened to the flow so far.
    pub status: FlowStatus,
    /// Where a TCP connection stands; `None` for other protocols.
    pub tcp: Option<TcpState>,
    /// The kernel's number of the entry. Entries that exist at the same time have different ones.
    pub id: u32,
    /// So many seconds from now it is forgotten unless another packet comes; `None` when the kernel does not say.
    pub timeout: Option<u32>,
    /// The zone of the original direction; 0 unless the host divides its connection tracking.
    pub zone: u16,
}

/// The addresses of the packets of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    /// Who sends.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// What tells flows between the two apart.
    pub key: FlowKey,
}

/// What tells flows of one protocol between the same two addresses apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowKey {
    /// Ports: TCP, UDP, and other protocols that have them.
    Ports {
        /// Of the sender.
        source: u16,
        /// Of the receiver.
        destination: u16,
    },
    /// ICMP and ICMPv6.
    Icmp {
        /// The type of the message.
        kind: u8,
        /// Its code.
        code: u8,
        /// The identifier of an echo.
        id: u16,
    },
    /// Nothing.
    None,
}

/// What happened to a flow, as bits of `enum ip_conntrack_status`, linux/netfilter/nf_conntrack_common.h.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlowStatus(pub u32);

impl FlowStatus {
    /// Whether another flow announced it, as FTP does its data connections (`IPS_EXPECTED`).
    pub fn is_expected(self) -> bool {
        self.0 & 1 << 0 != 0
    }

    /// Whether there were packets both ways (`IPS_SEEN_REPLY`).
    pub fn has_seen_reply(self) -> bool {
        self.0 & 1 << 1 != 0
    }

    /// Whether it is kept even when the table is full (`IPS_ASSURED`).
    pub fn is_assured(self) -> bool {
        self.0 & 1 << 2 != 0
    }

    /// Whether the sender is rewritten on this host (`IPS_SRC_NAT`).
    pub fn is_source_rewritten(self) -> bool {
        self.0 & 1 << 4 != 0
    }

    /// Whether the destination is rewritten on this host (`IPS_DST_NAT`).
    pub fn is_destination_rewritten(self) -> bool {
        self.0 & 1 << 5 != 0
    }
}

/// Where a TCP connection stands: `enum tcp_conntrack`, linux/netfilter/nf_conntrack_tcp.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpState(pub u8);

impl Display for TcpState {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 10] = [
            "none",
            "syn-sent",
            "syn-received",
            "established",
            "fin-wait",
            "close-wait",
            "last-ack",
            "time-wait",
            "closed",
            "syn-sent",
        ];
        f.pad(NAMES.get(usize::from(self.0)).unwrap_or(&"unknown"))
    }
}

impl Flow {
    /// The state in a word: that of a TCP connection, `replied` or `unreplied` for other flows.
    pub fn state(&self) -> String {
        match self.tcp {
            Some(state) => state.to_string(),
            None if self.status.has_seen_reply() => "replied".to_owned(),
            None => "unreplied".to_owned(),
        }
    }
}
