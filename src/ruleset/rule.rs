//! Rules: a sequence of statements, each of which the kernel module lowers to a fixed sequence of expressions.

use super::{Family, Name, Protocol, Record, Verdict};
use std::net::IpAddr;

/// One rule: statements evaluated from first to last; a match that fails ends the rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The statements in order. The last is a verdict, a verdict map, a rejection, a counter or a log.
    pub statements: Vec<Statement>,
}

impl Rule {
    /// A rule of these statements.
    pub fn new(statements: impl IntoIterator<Item = Statement>) -> Self {
        Self { statements: statements.into_iter().collect() }
    }
}

/// One part of a rule. Each renders to one phrase of nft text (named in its comment) and lowers to one fixed sequence
/// of kernel expressions, so that a dump can be read back as the same statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// `ct state established,related`: the connection's state is among these bits, see [`ct_state`].
    CtState(u32),
    /// `ct status dnat`: the packet's destination was rewritten (`IPS_DST_NAT`).
    CtStatusDnat,
    /// `iif "lo"`: the packet came in by the loopback interface.
    InputLoopback,
    /// `oif "lo"`: the packet leaves by the loopback interface.
    OutputLoopback,
    /// `meta nfproto ipv4`.
    Family(Family),
    /// `meta l4proto tcp`.
    Protocol(Protocol),
    /// `th sport 67`: the source port; only after [`Statement::Protocol`].
    SourcePort(u16),
    /// `th dport 68`: the destination port; only after [`Statement::Protocol`].
    DestinationPort(u16),
    /// `icmp type echo-request` or `icmpv6 type ...`: family, protocol and message type, all three.
    IcmpType(IcmpKind, u8),
    /// `icmp code 4`: only after [`Statement::IcmpType`].
    IcmpCode(IcmpKind, u8),
    /// `ip6 saddr fe80::/10`: a link-local IPv6 source.
    LinkLocalSource,
    /// `ip daddr 192.0.2.1` or `ip6 daddr 2001:db8::1`: family and destination, both.
    DestinationAddress(IpAddr),
    /// `ip saddr @set` or `ip6 daddr @set`: family and membership.
    InSet(AddressSide, Family, Name),
    /// `add @set { ip saddr . meta l4proto . ct original proto-dst }`: family, and a note of the packet in a set. Without room in
    /// the set the rule ends. With a port only after [`Statement::Protocol`].
    Record(AddressSide, Record, Name),
    /// `limit rate 10/second burst 20 packets`: the rule goes on at most this often.
    Limit {
        /// Packets in a second.
        per_second: u32,
        /// Packets beyond the rate that may pass at once.
        burst: u32,
    },
    /// `counter`: counts packets and bytes; the values are no part of the ruleset.
    Counter,
    /// `log ...`.
    Log(Log),
    /// `accept`, `drop`, `jump chain`, `goto chain`, `return`.
    Verdict(Verdict),
    /// `reject with tcp reset`; only after [`Statement::Protocol`] with TCP.
    RejectTcpReset,
    /// `reject with icmpx admin-prohibited`.
    RejectAdminProhibited,
    /// `meta l4proto udp th dport vmap @map`: protocol, port and look-up, all three.
    PortVerdict(Protocol, PortKey, Name),
    /// Something that portward never writes, found in a dump and described in a few words. A rule that holds it equals
    /// no desired rule, so that the difference deletes it.
    Unknown(Name),
}

/// Which port of a packet a verdict map is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortKey {
    /// The destination port that the packet carries.
    Destination,
    /// The destination port before any rewriting: `ct original proto-dst`.
    OriginalDestination,
}

/// Which address of a packet is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressSide {
    /// The source, for packets that come in.
    Source,
    /// The destination, for packets that go out.
    Destination,
}

/// ICMP for IPv4 or for IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum IcmpKind {
    /// ICMP over IPv4, protocol 1 (RFC 792).
    Icmp,
    /// ICMPv6, protocol 58 (RFC 4443).
    Icmpv6,
}

/// A log statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The text before each message; at most 127 bytes (`NF_LOG_PREFIXLEN`, linux/netfilter/nf_log.h).
    pub prefix: Name,
    /// Where the message goes.
    pub target: LogTarget,
}

/// Where logged packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogTarget {
    /// The kernel log, level `warning` (nft's default).
    Kernel,
    /// A netlink group that a daemon such as ulogd reads.
    Group(u16),
}

/// Bits of a connection's state as nf_tables loads it (`NF_CT_STATE_BIT`, linux/netfilter/nf_conntrack_common.h).
pub mod ct_state {
    /// Belongs to no connection and cannot begin one.
    pub const INVALID: u32 = 1;
    /// Packets were seen in both directions.
    pub const ESTABLISHED: u32 = 2;
    /// Begins a connection that an existing one announced, or is an error message about one.
    pub const RELATED: u32 = 4;
}

/// The loopback interface.
pub mod loopback {
    /// Its index, the same in every network namespace (`LOOPBACK_IFINDEX`, include/net/flow.h).
    pub const INTERFACE_INDEX: u32 = 1;
}

/// The rules that refuse a packet with an answer: a reset for TCP, an ICMP error for the rest.
pub fn reject_all() -> [Rule; 2] {
    [
        Rule::new([Statement::Protocol(Protocol::Tcp), Statement::RejectTcpReset]),
        Rule::new([Statement::RejectAdminProhibited]),
    ]
}
