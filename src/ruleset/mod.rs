//! What the kernel should hold, as plain ordered data: one table with sets, verdict maps and chains.
//!
//! A [`Ruleset`] is the content of table `inet portward`. It knows nothing of policies, hosts or netlink: the planner
//! makes it, [`diff`] compares two of them, [`nft`] renders one as text, and [`crate::kernel`] carries the difference
//! to the kernel and reads the table back as a `Ruleset` again. Two rulesets are equal exactly when the kernel would
//! treat every packet alike and list the same objects; values of counters are no part of it, nor is what the kernel
//! itself has noted in a set.
//!
//! All collections are ordered, so that the same inputs give the same ruleset byte for byte.
#![forbid(unsafe_code)]

pub mod diff;
pub mod nft;
mod rule;
mod set;

pub use rule::{AddressSide, IcmpKind, Log, LogTarget, PortKey, Rule, Statement, ct_state, loopback, reject_all};
pub use set::{Address, AddressRange, PortRange, Record, Set, VerdictMap};

use std::collections::BTreeMap;
use std::sync::Arc;

/// The name of the one table that portward owns, in the `inet` family.
pub const TABLE: &str = "portward";

/// The name of a set, map or chain: at most 255 bytes of `[a-zA-Z0-9_./]` that begin with a letter, which is what both
/// the kernel (`NFT_NAME_MAXLEN`, linux/netfilter/nf_tables.h) and nft's grammar take.
pub type Name = Arc<str>;

/// The whole content of table `inet portward`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Sets of addresses or networks.
    pub sets: BTreeMap<Name, Set>,
    /// For how many elements a hash set is made. The kernel refuses more than that. A set that is not named
    /// here grows as needed, which makes filling it with very many elements slow.
    pub sizes: BTreeMap<Name, u32>,
    /// Maps from a port to a verdict.
    pub maps: BTreeMap<Name, VerdictMap>,
    /// Chains with their rules, base chains and others.
    pub chains: BTreeMap<Name, Chain>,
}

/// A chain: an ordered list of rules, entered from a hook (a base chain) or by a jump.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// Where the kernel enters the chain; `None` for a chain that only jumps reach.
    pub base: Option<BaseChain>,
    /// The rules in the order of evaluation.
    pub rules: Vec<Rule>,
}

/// The properties of a chain that is attached to a hook. Its type is always `filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseChain {
    /// The netfilter hook.
    pub hook: Hook,
    /// The priority at the hook; 0 is `filter` (`NF_IP_PRI_FILTER`, linux/netfilter_ipv4.h).
    pub priority: i32,
    /// What happens to a packet that reaches the end of the chain.
    pub policy: ChainPolicy,
}

/// A netfilter hook of the inet family that portward uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Packets to the host itself.
    Input,
    /// Packets that the host passes on, such as those to published container ports.
    Forward,
    /// Packets that the host sends.
    Output,
}

/// The policy of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainPolicy {
    /// The packet goes on.
    Accept,
    /// The packet is dropped.
    Drop,
}

/// The family of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, IP protocol 6.
    Tcp,
    /// UDP, IP protocol 17.
    Udp,
}

impl Protocol {
    /// The name as people and nft write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// The protocol number of the IP header (IANA protocol numbers).
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// The packet passes this table.
    Accept,
    /// The packet is dropped silently.
    Drop,
    /// Evaluation goes on in another chain and comes back after its end.
    Jump(Name),
    /// Evaluation goes on in another chain and does not come back.
    Goto(Name),
    /// Evaluation goes back to the calling chain.
    Return,
}

impl Verdict {
    /// The chain that the verdict leads to, if it leads to one.
    pub fn target(&self) -> Option<&Name> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            Self::Accept | Self::Drop | Self::Return => None,
        }
    }
}
