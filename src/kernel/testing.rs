//! Random rulesets that the kernel takes, for property tests here and in `tests/kernel.rs`.
//!
//! Names come from small pools, so that two rulesets share objects and differ within them. Chains jump only onwards in
//! the order `input`, `forward`, `output`, `m0`..., `leaf0`..., so there are no circles, not even halfway from one
//! ruleset to another.

use crate::ruleset::{
    AddressRange, AddressSide, BaseChain, Chain, ChainPolicy, Family, Hook, IcmpKind, Log, LogTarget, Name, PortKey,
    PortRange, Protocol, Record, Rule, Ruleset, Set, Statement, Verdict, VerdictMap,
};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use proptest::sample::select;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const LEAVES: [&str; 3] = ["leaf0", "leaf1", "leaf2"];
const MIDDLE: [&str; 3] = ["m0", "m1", "m2"];
const BASES: [(&str, Hook); 3] = [("forward", Hook::Forward), ("input", Hook::Input), ("output", Hook::Output)];

/// Any rule that [`any_ruleset`] could hold, with names that need not exist.
pub(crate) fn any_rule() -> BoxedStrategy<Rule> {
    let targets = vec!["leaf0".into(), "m1".into()];
    let record = |family, with_port| Set::Record(Record { family, with_port });
    let sets = vec![
        ("addresses".into(), Set::Ipv4Addresses(Vec::new())),
        ("ranges".into(), Set::Ipv6Ranges(Vec::new())),
        ("flows".into(), record(Family::Ipv4, true)),
        ("more".into(), record(Family::Ipv6, true)),
        ("others".into(), record(Family::Ipv6, false)),
    ];
    rule(targets, sets, vec!["map".into()])
}

/// Any valid ruleset.
pub(crate) fn any_ruleset() -> BoxedStrategy<Ruleset> {
    (sets(), btree_set(select(&LEAVES), 0..=3), btree_set(select(&MIDDLE), 0..=3), btree_set(select(&BASES), 0..=3))
        .prop_flat_map(|(sets, leaves, middle, bases)| {
            let leaves: Vec<Name> = leaves.into_iter().map(Name::from).collect();
            (Just(sets), maps(&leaves), Just(leaves), Just(middle), Just(bases))
        })
        .prop_flat_map(|(sets, maps, leaves, middle, bases)| {
            let set_names: Vec<_> = sets.iter().map(|(name, set)| (name.clone(), set.empty_like())).collect();
            let map_names: Vec<Name> = maps.keys().cloned().collect();
            let mut chains: Vec<BoxedStrategy<(Name, Chain)>> = Vec::new();
            for leaf in &leaves {
                chains.push(chain(leaf.clone(), Just(None).boxed(), Vec::new(), &set_names, &[]));
            }
            let mut targets = leaves;
            for name in middle.into_iter().rev() {
                let name = Name::from(name);
                chains.push(chain(name.clone(), Just(None).boxed(), targets.clone(), &set_names, &map_names));
                targets.push(name);
            }
            for (name, hook) in bases {
                let base = base(hook).prop_map(Some).boxed();
                chains.push(chain(name.into(), base, targets.clone(), &set_names, &map_names));
            }
            chains.prop_map(move |chains| Ruleset {
                sets: sets.clone(),
                sizes: sizes(&sets),
                maps: maps.clone(),
                chains: chains.into_iter().collect(),
            })
        })
        .boxed()
}

fn base(hook: Hook) -> impl Strategy<Value = BaseChain> {
    // Another priority under the same name makes the difference rebuild the table: seldom.
    let priority = prop_oneof![9 => Just(0), 1 => Just(-10)];
    (priority, any::<bool>()).prop_map(move |(priority, drop)| BaseChain {
        hook,
        priority,
        policy: if drop { ChainPolicy::Drop } else { ChainPolicy::Accept },
    })
}

/// Hash sets with an even number of elements and those without any of portward's are made for a number of them, so that rulesets differ in it at times.
fn sizes(sets: &BTreeMap<Name, Set>) -> BTreeMap<Name, u32> {
    let sized = sets.iter().filter(|(_, set)| set.record().is_some() || !set.is_interval() && set.len() % 2 == 0);
    sized.map(|(name, _)| (name.clone(), 4096)).collect()
}

fn sets() -> impl Strategy<Value = BTreeMap<Name, Set>> {
    let of_kind = |kind: usize| {
        prop_oneof![
            9 => (Just(kind), set(kind)),
            1 => (0..6_usize).prop_flat_map(|kind| (Just(kind), set(kind))),
        ]
    };
    vec(proptest::option::of((0..6_usize).prop_flat_map(of_kind)), 6).prop_map(|sets| {
        sets.into_iter().flatten().map(|(kind, set)| (["a4", "a6", "n4", "n6", "r4", "r6"][kind].into(), set)).collect()
    })
}

fn set(kind: usize) -> BoxedStrategy<Set> {
    let v4 = || prop_oneof![0..40_u32, (u32::MAX - 20)..=u32::MAX].prop_map(Ipv4Addr::from_bits);
    let v6 = || prop_oneof![0..40_u128, (u128::MAX - 20)..=u128::MAX].prop_map(Ipv6Addr::from_bits);
    match kind {
        0 => vec(v4(), 0..20).prop_map(Set::ipv4_addresses).boxed(),
        1 => vec(v6(), 0..20).prop_map(Set::ipv6_addresses).boxed(),
        2 => vec((v4(), v4()), 0..8).prop_map(|ends| Set::ipv4_ranges(ranges(ends))).boxed(),
        4 => any::<bool>().prop_map(|with_port| Set::Record(Record { family: Family::Ipv4, with_port })).boxed(),
        5 => any::<bool>().prop_map(|with_port| Set::Record(Record { family: Family::Ipv6, with_port })).boxed(),
        _ => vec((v6(), v6()), 0..8).prop_map(|ends| Set::ipv6_ranges(ranges(ends))).boxed(),
    }
}

fn ranges<A: Copy + Ord>(ends: Vec<(A, A)>) -> Vec<AddressRange<A>> {
    ends.into_iter().map(|(one, other)| AddressRange { first: one.min(other), last: one.max(other) }).collect()
}

fn maps(leaves: &[Name]) -> BoxedStrategy<BTreeMap<Name, VerdictMap>> {
    let map = |interval: bool| {
        let boundaries = btree_map(prop_oneof![0..30_u16, 65_520..=u16::MAX], verdict(leaves.to_vec()), 0..12);
        (boundaries, vec(any::<bool>(), 12)).prop_map(move |(boundaries, gaps)| VerdictMap {
            interval,
            elements: if interval { segments(&boundaries, &gaps) } else { singles(&boundaries) },
        })
    };
    let hash = proptest::option::of(map(false));
    // The same name with another kind: seldom.
    let other = proptest::option::of(prop_oneof![9 => map(true), 1 => map(false)]);
    (hash, other)
        .prop_map(|(hash, ranges)| {
            [("services", hash), ("spans", ranges)]
                .into_iter()
                .filter_map(|(name, map)| Some((name.into(), map?)))
                .collect()
        })
        .boxed()
}

fn singles(ports: &BTreeMap<u16, Verdict>) -> Vec<(PortRange, Verdict)> {
    ports.iter().map(|(&port, verdict)| (PortRange::single(port), verdict.clone())).collect()
}

/// Segments from each port up to the next one, some shortened to a single port: neighbours and gaps.
fn segments(ports: &BTreeMap<u16, Verdict>, gaps: &[bool]) -> Vec<(PortRange, Verdict)> {
    let next = ports.keys().skip(1).map(|next| next - 1).chain([u16::MAX]);
    ports
        .iter()
        .zip(next)
        .zip(gaps)
        .map(|(((&first, verdict), last), &gap)| {
            (PortRange { first, last: if gap { first } else { last } }, verdict.clone())
        })
        .collect()
}

fn verdict(targets: Vec<Name>) -> BoxedStrategy<Verdict> {
    let plain = select(vec![Verdict::Accept, Verdict::Drop, Verdict::Return]);
    if targets.is_empty() {
        return plain.boxed();
    }
    prop_oneof![
        plain,
        (select(targets), any::<bool>())
            .prop_map(|(chain, jump)| { if jump { Verdict::Jump(chain) } else { Verdict::Goto(chain) } }),
    ]
    .boxed()
}

fn chain(
    name: Name,
    base: BoxedStrategy<Option<BaseChain>>,
    targets: Vec<Name>,
    sets: &[(Name, Set)],
    maps: &[Name],
) -> BoxedStrategy<(Name, Chain)> {
    (base, vec(rule(targets, sets.to_vec(), maps.to_vec()), 0..6))
        .prop_map(move |(base, rules)| (name.clone(), Chain { base, rules }))
        .boxed()
}

fn rule(targets: Vec<Name>, sets: Vec<(Name, Set)>, maps: Vec<Name>) -> BoxedStrategy<Rule> {
    let records: Vec<_> = sets.iter().filter_map(|(name, set)| Some((name.clone(), set.record()?))).collect();
    let asked = sets.iter().filter(|(_, set)| set.record().is_none());
    let asked = asked.map(|(name, set)| (name.clone(), set.family())).collect();
    let matches = vec(matching(asked), 0..3).prop_map(|matches| matches.concat());
    let extras = (
        proptest::option::of((1..1000_u32, 1..100_u32)),
        any::<bool>(),
        record(records),
        proptest::option::of(("[a-z][a-z :=]{0,20}", proptest::option::of(any::<u16>()))),
    );
    (matches, extras, end(targets, maps))
        .prop_map(|(mut statements, (limit, counter, record, log), end)| {
            statements.extend(limit.map(|(per_second, burst)| Statement::Limit { per_second, burst }));
            if counter {
                statements.push(Statement::Counter);
            }
            statements.extend(record);
            statements.extend(log.map(|(prefix, group)| {
                Statement::Log(Log { prefix: prefix.into(), target: group.map_or(LogTarget::Kernel, LogTarget::Group) })
            }));
            statements.extend(end);
            Rule { statements }
        })
        .boxed()
}

fn record(records: Vec<(Name, Record)>) -> BoxedStrategy<Vec<Statement>> {
    if records.is_empty() {
        return Just(Vec::new()).boxed();
    }
    let record = (select(records), any::<bool>()).prop_map(|((name, record), source)| {
        let side = if source { AddressSide::Source } else { AddressSide::Destination };
        let protocol = record.with_port.then_some(Statement::Protocol(Protocol::Udp));
        protocol.into_iter().chain([Statement::Record(side, record, name)]).collect()
    });
    prop_oneof![Just(Vec::new()), record].boxed()
}

fn protocol() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Udp])
}

fn matching(sets: Vec<(Name, Family)>) -> BoxedStrategy<Vec<Statement>> {
    let icmp = (any::<bool>(), any::<u8>(), proptest::option::of(any::<u8>())).prop_map(|(v4, number, code)| {
        let kind = if v4 { IcmpKind::Icmp } else { IcmpKind::Icmpv6 };
        let mut statements = vec![Statement::IcmpType(kind, number)];
        statements.extend(code.map(|code| Statement::IcmpCode(kind, code)));
        statements
    });
    let optional_port = || proptest::option::of(any::<u16>());
    let port = (protocol(), optional_port(), optional_port()).prop_map(|(protocol, source, destination)| {
        let mut statements = vec![Statement::Protocol(protocol)];
        statements.extend(source.map(Statement::SourcePort));
        statements.extend(destination.map(Statement::DestinationPort));
        statements
    });
    let plain = select(vec![
        Statement::CtStatusDnat,
        Statement::InputLoopback,
        Statement::OutputLoopback,
        Statement::Family(Family::Ipv4),
        Statement::Family(Family::Ipv6),
        Statement::LinkLocalSource,
        Statement::Protocol(Protocol::Tcp),
    ]);
    let state = (1..8_u32).prop_map(|bits| vec![Statement::CtState(bits)]);
    let destination = prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
        any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
    ]
    .prop_map(|address| vec![Statement::DestinationAddress(address)]);
    let simple = prop_oneof![icmp, port, plain.prop_map(|statement| vec![statement]), state, destination].boxed();
    if sets.is_empty() {
        return simple;
    }
    let member = (select(sets), any::<bool>()).prop_map(|((name, family), source)| {
        let side = if source { AddressSide::Source } else { AddressSide::Destination };
        vec![Statement::InSet(side, family, name)]
    });
    prop_oneof![simple, member].boxed()
}

fn end(targets: Vec<Name>, maps: Vec<Name>) -> BoxedStrategy<Vec<Statement>> {
    let verdict = verdict(targets).prop_map(|verdict| vec![Statement::Verdict(verdict)]);
    let fixed = select(vec![
        vec![Statement::Counter],
        vec![Statement::Protocol(Protocol::Tcp), Statement::RejectTcpReset],
        vec![Statement::RejectAdminProhibited],
    ]);
    let simple = prop_oneof![verdict, fixed].boxed();
    if maps.is_empty() {
        return simple;
    }
    let look_up = (protocol(), any::<bool>(), select(maps)).prop_map(|(protocol, original, map)| {
        let key = if original { PortKey::OriginalDestination } else { PortKey::Destination };
        vec![Statement::PortVerdict(protocol, key, map)]
    });
    prop_oneof![simple, look_up].boxed()
}
