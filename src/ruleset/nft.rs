//! A ruleset as the text of an nft script, for people to read and for `nft -c -f` to check.

use super::{
    AddressRange, AddressSide, Chain, ChainPolicy, Family, Hook, IcmpKind, LogTarget, PortKey, PortRange, Record, Rule,
    Ruleset, Set, Statement, TABLE, Verdict, VerdictMap,
};
use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;

/// Elements on one line of the text.
const ELEMENTS_PER_LINE: usize = 8;

/// The table as an nft script. It describes the table only; it deletes nothing that is there before.
pub fn render(ruleset: &Ruleset) -> String {
    Script(ruleset).to_string()
}

struct Script<'a>(&'a Ruleset);

impl Display for Script<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {TABLE} {{")?;
        for (name, set) in &self.0.sets {
            write_set(f, name, set, self.0.sizes.get(name).copied())?;
        }
        for (name, map) in &self.0.maps {
            write_map(f, name, map)?;
        }
        for (name, chain) in &self.0.chains {
            write_chain(f, name, chain)?;
        }
        writeln!(f, "}}")
    }
}

fn write_set(f: &mut Formatter<'_>, name: &str, set: &Set, size: Option<u32>) -> fmt::Result {
    writeln!(f, "\tset {name} {{")?;
    let address = match set.family() {
        Family::Ipv4 => "ipv4_addr",
        Family::Ipv6 => "ipv6_addr",
    };
    let rest = if set.record().is_some_and(|record| record.with_port) { " . inet_proto . inet_service" } else { "" };
    writeln!(f, "\t\ttype {address}{rest}")?;
    if let Some(size) = size {
        writeln!(f, "\t\tsize {size}")?;
    }
    if set.is_interval() {
        writeln!(f, "\t\tflags interval")?;
    }
    if set.record().is_some() {
        writeln!(f, "\t\tflags dynamic")?;
    }
    match set {
        Set::Ipv4Addresses(addresses) => write_elements(f, addresses)?,
        Set::Ipv6Addresses(addresses) => write_elements(f, addresses)?,
        Set::Ipv4Ranges(ranges) => write_elements(f, ranges)?,
        Set::Ipv6Ranges(ranges) => write_elements(f, ranges)?,
        Set::Record(_) => {}
    }
    writeln!(f, "\t}}\n")
}

fn write_map(f: &mut Formatter<'_>, name: &str, map: &VerdictMap) -> fmt::Result {
    writeln!(f, "\tmap {name} {{\n\t\ttype inet_service : verdict")?;
    if map.interval {
        writeln!(f, "\t\tflags interval")?;
    }
    let elements: Vec<_> = map.elements.iter().map(|(ports, verdict)| format!("{ports} : {verdict}")).collect();
    write_elements(f, &elements)?;
    writeln!(f, "\t}}\n")
}

fn write_elements<T: Display>(f: &mut Formatter<'_>, elements: &[T]) -> fmt::Result {
    if elements.is_empty() {
        return Ok(());
    }
    writeln!(f, "\t\telements = {{")?;
    for line in elements.chunks(ELEMENTS_PER_LINE) {
        write!(f, "\t\t\t")?;
        for element in line {
            write!(f, "{element}, ")?;
        }
        writeln!(f)?;
    }
    writeln!(f, "\t\t}}")
}

fn write_chain(f: &mut Formatter<'_>, name: &str, chain: &Chain) -> fmt::Result {
    writeln!(f, "\tchain {name} {{")?;
    if let Some(base) = chain.base {
        let policy = match base.policy {
            ChainPolicy::Accept => "accept",
            ChainPolicy::Drop => "drop",
        };
        writeln!(f, "\t\ttype filter hook {} priority {}; policy {policy};", base.hook, base.priority)?;
    }
    for rule in &chain.rules {
        writeln!(f, "\t\t{rule}")?;
    }
    writeln!(f, "\t}}\n")
}

impl<A: Display + PartialEq> Display for AddressRange<A> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl Display for PortRange {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl Display for Hook {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
        })
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Return => f.write_str("return"),
        }
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (index, statement) in self.statements.iter().enumerate() {
            if index > 0 {
                f.write_str(" ")?;
            }
            write!(f, "{statement}")?;
        }
        Ok(())
    }
}

impl Display for Statement {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::CtState(bits) => write!(f, "ct state {}", ct_states(*bits)),
            Self::CtStatusDnat => f.write_str("ct status dnat"),
            Self::InputLoopback => f.write_str("iif \"lo\""),
            Self::OutputLoopback => f.write_str("oif \"lo\""),
            Self::Family(Family::Ipv4) => f.write_str("meta nfproto ipv4"),
            Self::Family(Family::Ipv6) => f.write_str("meta nfproto ipv6"),
            Self::Protocol(protocol) => write!(f, "meta l4proto {}", protocol.name()),
            Self::SourcePort(port) => write!(f, "th sport {port}"),
            Self::DestinationPort(port) => write!(f, "th dport {port}"),
            Self::IcmpType(kind, number) => write!(f, "{kind} type {number}"),
            Self::IcmpCode(kind, number) => write!(f, "{kind} code {number}"),
            Self::LinkLocalSource => f.write_str("ip6 saddr fe80::/10"),
            Self::DestinationAddress(IpAddr::V4(address)) => write!(f, "ip daddr {address}"),
            Self::DestinationAddress(IpAddr::V6(address)) => write!(f, "ip6 daddr {address}"),
            Self::InSet(side, family, set) => write!(f, "{} @{set}", address(*side, *family)),
            Self::Record(side, Record { family, with_port }, set) => {
                let rest = if *with_port { " . meta l4proto . ct original proto-dst" } else { "" };
                write!(f, "add @{set} {{ {}{rest} }}", address(*side, *family))
            }
            Self::Limit { per_second, burst } => write!(f, "limit rate {per_second}/second burst {burst} packets"),
            Self::Counter => f.write_str("counter"),
            Self::Log(log) => {
                write!(f, "log prefix \"{}\"", log.prefix)?;
                if let LogTarget::Group(group) = log.target {
                    write!(f, " group {group}")?;
                }
                Ok(())
            }
            Self::Verdict(verdict) => write!(f, "{verdict}"),
            Self::RejectTcpReset => f.write_str("reject with tcp reset"),
            Self::RejectAdminProhibited => f.write_str("reject with icmpx admin-prohibited"),
            Self::PortVerdict(protocol, PortKey::Destination, map) => {
                write!(f, "meta l4proto {} th dport vmap @{map}", protocol.name())
            }
            Self::PortVerdict(protocol, PortKey::OriginalDestination, map) => {
                write!(f, "meta l4proto {} ct original proto-dst vmap @{map}", protocol.name())
            }
            Self::Unknown(description) => write!(f, "# unknown: {description}"),
        }
    }
}

impl Display for IcmpKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Icmp => "icmp",
            Self::Icmpv6 => "icmpv6",
        })
    }
}

fn address(side: AddressSide, family: Family) -> &'static str {
    match (family, side) {
        (Family::Ipv4, AddressSide::Source) => "ip saddr",
        (Family::Ipv4, AddressSide::Destination) => "ip daddr",
        (Family::Ipv6, AddressSide::Source) => "ip6 saddr",
        (Family::Ipv6, AddressSide::Destination) => "ip6 daddr",
    }
}

fn ct_states(bits: u32) -> String {
    use super::ct_state::{ESTABLISHED, INVALID, RELATED};
    [(INVALID, "invalid"), (ESTABLISHED, "established"), (RELATED, "related")]
        .into_iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, name)| name)
        .collect::<Vec<_>>()
        .join(",")
}
