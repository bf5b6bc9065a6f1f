//! Statements as nf_tables expressions, and back.
//!
//! [`lower`] writes what nft itself writes for the statement's text, so that `nft list` shows portward's rules as if
//! nft had made them. [`lift`] is its inverse; what portward never writes becomes [`Statement::Unknown`].
#![forbid(unsafe_code)]

use crate::ruleset::{
    AddressSide, Family, IcmpKind, Log, LogTarget, Name, PortKey, Protocol, Record, Statement, Verdict, loopback,
};
use std::net::IpAddr;

/// The value of `meta nfproto` (linux/netfilter.h).
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
/// `IPS_DST_NAT`, linux/netfilter/nf_conntrack_common.h.
const CONNECTION_DESTINATION_REWRITTEN: u32 = 1 << 5;
/// Offsets in the headers of RFC 791, RFC 8200, RFC 9293 and RFC 768.
const IPV4_SOURCE: u32 = 12;
const IPV4_DESTINATION: u32 = 16;
const IPV6_SOURCE: u32 = 8;
const IPV6_DESTINATION: u32 = 24;
const SOURCE_PORT: u32 = 0;
const DESTINATION_PORT: u32 = 2;
/// fe80::/10 (RFC 4291, section 2.5.6).
const LINK_LOCAL_PREFIX: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const LINK_LOCAL_MASK: [u8; 16] = [0xff, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// One expression of nf_tables, as far as portward uses them. Values go through register 1, and keys of several parts
/// through what follows it; verdicts through register 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expression {
    /// Loads a property of the packet.
    Meta(MetaKey),
    /// Loads a property of the connection.
    Connection(ConnectionKey),
    /// Loads bytes of a header.
    Payload { base: PayloadBase, offset: u32, length: u32 },
    /// Loads a further part of a key, so many words of 32 bits after the beginning of register 1.
    Further(u32, FurtherKey),
    /// Keeps only the bits of a mask.
    Mask(Vec<u8>),
    /// Ends the rule unless the value equals this (or differs from it).
    Compare { equal: bool, value: Vec<u8> },
    /// Ends the rule unless the set has the value.
    Lookup(Name),
    /// Takes the verdict that the map has for the value; ends the rule when it has none.
    LookupVerdict(Name),
    /// Adds the value to a set; ends the rule when the set is full.
    Record(Name),
    /// Ends the rule when it would be passed more often than this, in packets a second.
    Limit { per_second: u64, burst: u32 },
    /// Counts.
    Counter,
    /// Logs.
    Log { prefix: Name, target: LogTarget },
    /// Gives a verdict.
    Verdict(Verdict),
    /// Refuses with a TCP reset.
    RejectTcpReset,
    /// Refuses with an ICMP error of either family; the code is one of `NFT_REJECT_ICMPX_*`.
    RejectIcmp(u8),
    /// Something else, in words.
    Unknown(String),
}

/// What [`Expression::Meta`] loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MetaKey {
    InputInterface,
    OutputInterface,
    Family,
    Protocol,
}

/// What [`Expression::Connection`] loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionKey {
    State,
    Status,
    OriginalDestinationPort,
}

/// What [`Expression::Further`] loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FurtherKey {
    Meta(MetaKey),
    Connection(ConnectionKey),
}

/// The header that [`Expression::Payload`] loads from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PayloadBase {
    Network,
    Transport,
}

/// `NFT_REJECT_ICMPX_ADMIN_PROHIBITED`, linux/netfilter/nf_tables.h.
const ICMPX_ADMIN_PROHIBITED: u8 = 3;

/// The expressions of a rule. [`Statement::Unknown`] has none: `Err` with its description.
pub(super) fn lower(statements: &[Statement]) -> Result<Vec<Expression>, Name> {
    let mut expressions = Vec::with_capacity(statements.len() * 3);
    let mut statements = statements.iter().peekable();
    while let Some(statement) = statements.next() {
        // nft loads neighbouring header fields at once.
        match (statement, statements.peek()) {
            (Statement::IcmpType(kind, number), Some(Statement::IcmpCode(same, code))) if kind == same => {
                lower_icmp(&mut expressions, *kind, vec![*number, *code]);
                statements.next();
            }
            (Statement::SourcePort(source), Some(Statement::DestinationPort(destination))) => {
                expressions.push(transport(SOURCE_PORT, 4));
                expressions.push(equals([source.to_be_bytes(), destination.to_be_bytes()].concat()));
                statements.next();
            }
            _ => lower_one(&mut expressions, statement)?,
        }
    }
    Ok(expressions)
}

fn lower_one(to: &mut Vec<Expression>, statement: &Statement) -> Result<(), Name> {
    match statement {
        Statement::CtState(bits) => {
            to.push(Expression::Connection(ConnectionKey::State));
            any_bit_of(to, *bits);
        }
        Statement::CtStatusDnat => {
            to.push(Expression::Connection(ConnectionKey::Status));
            any_bit_of(to, CONNECTION_DESTINATION_REWRITTEN);
        }
        Statement::InputLoopback => {
            to.push(Expression::Meta(MetaKey::InputInterface));
            to.push(equals(loopback::INTERFACE_INDEX.to_ne_bytes()));
        }
        Statement::OutputLoopback => {
            to.push(Expression::Meta(MetaKey::OutputInterface));
            to.push(equals(loopback::INTERFACE_INDEX.to_ne_bytes()));
        }
        Statement::Family(family) => lower_family(to, *family),
        Statement::Protocol(protocol) => lower_protocol(to, protocol.number()),
        Statement::SourcePort(port) => {
            to.push(transport(SOURCE_PORT, 2));
            to.push(equals(port.to_be_bytes()));
        }
        Statement::DestinationPort(port) => {
            to.push(transport(DESTINATION_PORT, 2));
            to.push(equals(port.to_be_bytes()));
        }
        Statement::IcmpType(kind, number) => lower_icmp(to, *kind, vec![*number]),
        Statement::IcmpCode(_, code) => {
            to.push(transport(1, 1));
            to.push(equals([*code]));
        }
        Statement::LinkLocalSource => {
            lower_family(to, Family::Ipv6);
            to.push(address(AddressSide::Source, Family::Ipv6));
            to.push(Expression::Mask(LINK_LOCAL_MASK.to_vec()));
            to.push(equals(LINK_LOCAL_PREFIX));
        }
        Statement::DestinationAddress(IpAddr::V4(destination)) => {
            lower_family(to, Family::Ipv4);
            to.push(address(AddressSide::Destination, Family::Ipv4));
            to.push(equals(destination.octets()));
        }
        Statement::DestinationAddress(IpAddr::V6(destination)) => {
            lower_family(to, Family::Ipv6);
            to.push(address(AddressSide::Destination, Family::Ipv6));
            to.push(equals(destination.octets()));
        }
        Statement::InSet(side, family, set) => {
            lower_family(to, *family);
            to.push(address(*side, *family));
            to.push(Expression::Lookup(set.clone()));
        }
        Statement::Record(side, record, set) => {
            lower_family(to, record.family);
            to.push(address(*side, record.family));
            if record.with_port {
                to.extend(protocol_and_port(record.family));
            }
            to.push(Expression::Record(set.clone()));
        }
        Statement::Limit { per_second, burst } => {
            to.push(Expression::Limit { per_second: u64::from(*per_second), burst: *burst });
        }
        Statement::Counter => to.push(Expression::Counter),
        Statement::Log(Log { prefix, target }) => {
            to.push(Expression::Log { prefix: prefix.clone(), target: *target });
        }
        Statement::Verdict(verdict) => to.push(Expression::Verdict(verdict.clone())),
        Statement::RejectTcpReset => to.push(Expression::RejectTcpReset),
        Statement::RejectAdminProhibited => to.push(Expression::RejectIcmp(ICMPX_ADMIN_PROHIBITED)),
        Statement::PortVerdict(protocol, key, map) => {
            lower_protocol(to, protocol.number());
            to.push(match key {
                PortKey::Destination => transport(DESTINATION_PORT, 2),
                PortKey::OriginalDestination => Expression::Connection(ConnectionKey::OriginalDestinationPort),
            });
            to.push(Expression::LookupVerdict(map.clone()));
        }
        Statement::Unknown(description) => return Err(description.clone()),
    }
    Ok(())
}

/// The parts of a key after an address.
fn protocol_and_port(family: Family) -> [Expression; 2] {
    let words = match family {
        Family::Ipv4 => 1,
        Family::Ipv6 => 4,
    };
    [
        Expression::Further(words, FurtherKey::Meta(MetaKey::Protocol)),
        Expression::Further(words + 1, FurtherKey::Connection(ConnectionKey::OriginalDestinationPort)),
    ]
}

fn any_bit_of(to: &mut Vec<Expression>, bits: u32) {
    to.push(Expression::Mask(bits.to_ne_bytes().to_vec()));
    to.push(Expression::Compare { equal: false, value: vec![0; 4] });
}

fn lower_family(to: &mut Vec<Expression>, family: Family) {
    to.push(Expression::Meta(MetaKey::Family));
    to.push(equals([match family {
        Family::Ipv4 => NFPROTO_IPV4,
        Family::Ipv6 => NFPROTO_IPV6,
    }]));
}

fn lower_protocol(to: &mut Vec<Expression>, number: u8) {
    to.push(Expression::Meta(MetaKey::Protocol));
    to.push(equals([number]));
}

fn lower_icmp(to: &mut Vec<Expression>, kind: IcmpKind, type_and_code: Vec<u8>) {
    let (family, protocol) = icmp_header(kind);
    lower_family(to, family);
    lower_protocol(to, protocol);
    to.push(transport(0, if type_and_code.len() == 1 { 1 } else { 2 }));
    to.push(Expression::Compare { equal: true, value: type_and_code });
}

fn icmp_header(kind: IcmpKind) -> (Family, u8) {
    match kind {
        IcmpKind::Icmp => (Family::Ipv4, 1),
        IcmpKind::Icmpv6 => (Family::Ipv6, 58),
    }
}

fn equals(value: impl Into<Vec<u8>>) -> Expression {
    Expression::Compare { equal: true, value: value.into() }
}

fn transport(offset: u32, length: u32) -> Expression {
    Expression::Payload { base: PayloadBase::Transport, offset, length }
}

fn address(side: AddressSide, family: Family) -> Expression {
    let (offset, length) = match (side, family) {
        (AddressSide::Source, Family::Ipv4) => (IPV4_SOURCE, 4),
        (AddressSide::Destination, Family::Ipv4) => (IPV4_DESTINATION, 4),
        (AddressSide::Source, Family::Ipv6) => (IPV6_SOURCE, 16),
        (AddressSide::Destination, Family::Ipv6) => (IPV6_DESTINATION, 16),
    };
    Expression::Payload { base: PayloadBase::Network, offset, length }
}

/// The statements that these expressions are the lowering of, the longest first at each place.
pub(super) fn lift(expressions: &[Expression]) -> Vec<Statement> {
    let mut statements = Vec::new();
    let mut icmp = None;
    let mut rest = expressions;
    while let Some(first) = rest.first() {
        let length = lift_icmp(&mut statements, &mut icmp, rest)
            .or_else(|| lift_both_ports(&mut statements, rest))
            .or_else(|| {
                let (statement, length) = lift_one(rest)?;
                statements.push(statement);
                Some(length)
            })
            .unwrap_or_else(|| {
                statements.push(Statement::Unknown(describe(first).into()));
                1
            });
        rest = &rest[length..];
    }
    statements
}

/// Reads an ICMP type, type and code, or code alone (whose kind the rule's last ICMP type gives) at the beginning.
fn lift_icmp(statements: &mut Vec<Statement>, last: &mut Option<IcmpKind>, from: &[Expression]) -> Option<usize> {
    if let [Expression::Payload { base: PayloadBase::Transport, offset: 1, length: 1 }, compare, ..] = from
        && let Some(&[code]) = equal_value(compare)
    {
        statements.push(Statement::IcmpCode((*last)?, code));
        return Some(2);
    }
    let [
        Expression::Meta(MetaKey::Family),
        family,
        Expression::Meta(MetaKey::Protocol),
        protocol,
        Expression::Payload { base: PayloadBase::Transport, offset: 0, length },
        compare,
        ..,
    ] = from
    else {
        return None;
    };
    let kind = match (lift_family(family)?, equal_value(protocol)?) {
        (Family::Ipv4, [1]) => IcmpKind::Icmp,
        (Family::Ipv6, [58]) => IcmpKind::Icmpv6,
        _ => return None,
    };
    match (length, equal_value(compare)?) {
        (1, &[number]) => statements.push(Statement::IcmpType(kind, number)),
        (2, &[number, code]) => {
            statements.extend([Statement::IcmpType(kind, number), Statement::IcmpCode(kind, code)]);
        }
        _ => return None,
    }
    *last = Some(kind);
    Some(6)
}

fn lift_both_ports(statements: &mut Vec<Statement>, from: &[Expression]) -> Option<usize> {
    let [load, compare, ..] = from else { return None };
    let &[s0, s1, d0, d1] = equal_value(compare)? else { return None };
    (*load == transport(SOURCE_PORT, 4)).then(|| {
        statements.push(Statement::SourcePort(u16::from_be_bytes([s0, s1])));
        statements.push(Statement::DestinationPort(u16::from_be_bytes([d0, d1])));
        2
    })
}

/// The statement at the beginning, and the number of its expressions.
fn lift_one(from: &[Expression]) -> Option<(Statement, usize)> {
    lift_long(from).or_else(|| lift_pair(from)).or_else(|| lift_single(from.first()?).map(|statement| (statement, 1)))
}

fn lift_long(from: &[Expression]) -> Option<(Statement, usize)> {
    match from {
        [Expression::Connection(key), Expression::Mask(mask), Expression::Compare { equal: false, value }, ..]
            if value == &[0; 4] =>
        {
            let bits = u32::from_ne_bytes(mask.as_slice().try_into().ok()?);
            let statement = match key {
                ConnectionKey::State => Statement::CtState(bits),
                ConnectionKey::Status if bits == CONNECTION_DESTINATION_REWRITTEN => Statement::CtStatusDnat,
                _ => return None,
            };
            Some((statement, 3))
        }
        [Expression::Meta(MetaKey::Family), family, load, Expression::Lookup(set), ..] => {
            let family = lift_family(family)?;
            Some((Statement::InSet(lift_address(load, family)?, family, set.clone()), 4))
        }
        [Expression::Meta(MetaKey::Family), family, load, Expression::Record(set), ..] => {
            let record = Record { family: lift_family(family)?, with_port: false };
            Some((Statement::Record(lift_address(load, record.family)?, record, set.clone()), 4))
        }
        [Expression::Meta(MetaKey::Family), family, load, protocol, port, Expression::Record(set), ..] => {
            let record = Record { family: lift_family(family)?, with_port: true };
            let side = lift_address(load, record.family)?;
            let is_known = [protocol, port].into_iter().eq(&protocol_and_port(record.family));
            is_known.then(|| (Statement::Record(side, record, set.clone()), 6))
        }
        [Expression::Meta(MetaKey::Family), family, load, destination @ Expression::Compare { .. }, ..] => {
            let family = lift_family(family).filter(|family| *load == address(AddressSide::Destination, *family))?;
            let destination = equal_value(destination)?;
            let destination = match family {
                Family::Ipv4 => IpAddr::from(<[u8; 4]>::try_from(destination).ok()?),
                Family::Ipv6 => IpAddr::from(<[u8; 16]>::try_from(destination).ok()?),
            };
            Some((Statement::DestinationAddress(destination), 4))
        }
        [Expression::Meta(MetaKey::Family), family, load, Expression::Mask(mask), prefix, ..]
            if lift_family(family) == Some(Family::Ipv6)
                && *load == address(AddressSide::Source, Family::Ipv6)
                && mask == &LINK_LOCAL_MASK
                && equal_value(prefix) == Some(&LINK_LOCAL_PREFIX) =>
        {
            Some((Statement::LinkLocalSource, 5))
        }
        [Expression::Meta(MetaKey::Protocol), protocol, load, Expression::LookupVerdict(map), ..] => {
            let protocol = lift_protocol(protocol)?;
            let key = if *load == transport(DESTINATION_PORT, 2) {
                PortKey::Destination
            } else if *load == Expression::Connection(ConnectionKey::OriginalDestinationPort) {
                PortKey::OriginalDestination
            } else {
                return None;
            };
            Some((Statement::PortVerdict(protocol, key, map.clone()), 4))
        }
        _ => None,
    }
}

fn lift_address(load: &Expression, family: Family) -> Option<AddressSide> {
    [AddressSide::Source, AddressSide::Destination].into_iter().find(|side| *load == address(*side, family))
}

fn lift_pair(from: &[Expression]) -> Option<(Statement, usize)> {
    let [load, compare, ..] = from else { return None };
    let loopback = || equal_value(compare) == Some(&loopback::INTERFACE_INDEX.to_ne_bytes());
    let port = || Some(u16::from_be_bytes(equal_value(compare)?.try_into().ok()?));
    let statement = match load {
        Expression::Meta(MetaKey::InputInterface) if loopback() => Statement::InputLoopback,
        Expression::Meta(MetaKey::OutputInterface) if loopback() => Statement::OutputLoopback,
        Expression::Meta(MetaKey::Family) => Statement::Family(lift_family(compare)?),
        Expression::Meta(MetaKey::Protocol) => Statement::Protocol(lift_protocol(compare)?),
        load if *load == transport(SOURCE_PORT, 2) => Statement::SourcePort(port()?),
        load if *load == transport(DESTINATION_PORT, 2) => Statement::DestinationPort(port()?),
        _ => return None,
    };
    Some((statement, 2))
}

fn lift_single(expression: &Expression) -> Option<Statement> {
    Some(match expression {
        Expression::Limit { per_second, burst } => {
            Statement::Limit { per_second: u32::try_from(*per_second).ok()?, burst: *burst }
        }
        Expression::Counter => Statement::Counter,
        Expression::Log { prefix, target } => Statement::Log(Log { prefix: prefix.clone(), target: *target }),
        Expression::Verdict(verdict) => Statement::Verdict(verdict.clone()),
        Expression::RejectTcpReset => Statement::RejectTcpReset,
        Expression::RejectIcmp(ICMPX_ADMIN_PROHIBITED) => Statement::RejectAdminProhibited,
        _ => return None,
    })
}

fn equal_value(expression: &Expression) -> Option<&[u8]> {
    match expression {
        Expression::Compare { equal: true, value } => Some(value),
        _ => None,
    }
}

fn lift_family(compare: &Expression) -> Option<Family> {
    match equal_value(compare)? {
        [NFPROTO_IPV4] => Some(Family::Ipv4),
        [NFPROTO_IPV6] => Some(Family::Ipv6),
        _ => None,
    }
}

fn lift_protocol(compare: &Expression) -> Option<Protocol> {
    let number = equal_value(compare)?;
    [Protocol::Tcp, Protocol::Udp].into_iter().find(|protocol| number == [protocol.number()])
}

/// An expression that fits no statement, in words.
fn describe(expression: &Expression) -> String {
    let bytes = |value: &[u8]| value.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    match expression {
        Expression::Meta(key) => format!("load meta {key:?}"),
        Expression::Connection(key) => format!("load ct {key:?}"),
        Expression::Further(_, key) => format!("load {key:?}"),
        Expression::Record(set) => format!("addition to set {set}"),
        Expression::Payload { base, offset, length } => {
            format!("load {length} bytes of the {base:?} header at {offset}")
        }
        Expression::Mask(mask) => format!("mask {}", bytes(mask)),
        Expression::Compare { equal, value } => {
            format!("compare {} {}", if *equal { "==" } else { "!=" }, bytes(value))
        }
        Expression::Lookup(set) => format!("look-up in set {set}"),
        Expression::LookupVerdict(map) => format!("look-up in map {map}"),
        Expression::Limit { per_second, .. } => format!("limit {per_second}/second"),
        Expression::RejectIcmp(code) => format!("reject with icmpx code {code}"),
        Expression::Unknown(what) => what.clone(),
        Expression::Counter | Expression::Log { .. } | Expression::Verdict(_) | Expression::RejectTcpReset => {
            format!("{expression:?}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lifting_undoes_lowering(rule in testing::any_rule()) {
            let expressions = lower(&rule.statements).unwrap();
            prop_assert_eq!(lift(&expressions), rule.statements);
        }
    }

    #[test]
    fn a_type_and_code_are_one_load() {
        let statements = [Statement::IcmpType(IcmpKind::Icmp, 3), Statement::IcmpCode(IcmpKind::Icmp, 4)];
        let expressions = lower(&statements).unwrap();
        assert_eq!(expressions.len(), 6);
        assert_eq!(expressions[5], equals([3, 4]));
        assert_eq!(lift(&expressions), statements);
    }

    #[test]
    fn what_portward_never_writes_is_unknown() {
        let foreign = [Expression::Meta(MetaKey::Protocol), equals([47]), Expression::Verdict(Verdict::Accept)];
        let statements = lift(&foreign);
        assert!(matches!(statements[0], Statement::Unknown(_)), "{statements:?}");
        assert_eq!(statements.last(), Some(&Statement::Verdict(Verdict::Accept)));
        assert!(lower(&statements).is_err());
    }

    #[test]
    fn a_negated_family_is_unknown() {
        let foreign =
            [Expression::Meta(MetaKey::Family), Expression::Compare { equal: false, value: vec![NFPROTO_IPV4] }];
        assert!(lift(&foreign).iter().all(|statement| matches!(statement, Statement::Unknown(_))));
    }
}
