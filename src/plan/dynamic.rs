//! Ports that are open because a verified process listens on them right now: an input of the plan, found out by the
//! trackers.

use crate::ruleset::Protocol;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};
use std::net::{AddrParseError, IpAddr};
use std::str::FromStr;

/// The open ports of each dynamic service, by its name. A service without open ports may be missing.
pub type OpenPorts = BTreeMap<String, BTreeSet<OpenPort>>;

/// A port that a verified process listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpenPort {
    /// The protocol.
    pub protocol: Protocol,
    /// The port, 1 to 65,535.
    pub port: u16,
    /// Packets to which of the host's addresses reach the listener.
    pub scope: LocalScope,
}

/// Which of the host's own addresses a listener takes packets to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LocalScope {
    /// All of them: a dual-stack listener on `[::]`.
    Any,
    /// All IPv4 addresses: a listener on `0.0.0.0`, or on `[::ffff:0.0.0.0]`.
    Ipv4,
    /// All IPv6 addresses: a listener on `[::]` with `IPV6_V6ONLY`.
    Ipv6,
    /// One address; IPv4-mapped ones are given as IPv4.
    Address(IpAddr),
}

impl LocalScope {
    /// Whether there is an address that both take packets to.
    pub fn overlaps(self, other: Self) -> bool {
        match (self, other) {
            (Self::Any, _) | (_, Self::Any) => true,
            (Self::Address(one), Self::Address(two)) => one == two,
            (one, two) => one.is_ipv4() == two.is_ipv4(),
        }
    }

    /// Whether packets to this address of the host reach the listener.
    pub fn takes(self, address: IpAddr) -> bool {
        self.overlaps(Self::Address(address))
    }

    /// Whether only the host itself can reach it.
    pub fn is_loopback(self) -> bool {
        matches!(self, Self::Address(address) if address.is_loopback())
    }

    fn is_ipv4(self) -> bool {
        match self {
            Self::Any | Self::Ipv6 => false,
            Self::Ipv4 => true,
            Self::Address(address) => address.is_ipv4(),
        }
    }
}

/// `any`, `ipv4`, `ipv6` or the address.
impl Display for LocalScope {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.pad("any"),
            Self::Ipv4 => f.pad("ipv4"),
            Self::Ipv6 => f.pad("ipv6"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl FromStr for LocalScope {
    type Err = AddrParseError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Ok(match word {
            "any" => Self::Any,
            "ipv4" => Self::Ipv4,
            "ipv6" => Self::Ipv6,
            address => Self::Address(address.parse()?),
        })
    }
}
