//! Random rules and rulesets for property tests: valid ones, with every kind of statement and set.

use crate::ruleset::{
    AddressRange, AddressSide, BaseChain, Chain, ChainPolicy, Family, Hook, IcmpKind, Log, LogTarget, Name, PortKey,
    PortRange, Protocol, Rule, Ruleset, Set, Statement, Verdict, VerdictMap, ct_state,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Names that rules may refer to. Chains are in an order in which each may jump to later ones only.
const SETS: [(&str, usize); 4] = [("v4", 0), ("v6", 1), ("nets_v4", 2), ("nets_v6", 3)];
const MAPS: [(&str, bool); 2] = [("ports", false), ("ranges", true)];
const LEAVES: [&str; 3] = ["leaf_a", "leaf_b", "leaf_c"];

fn side() -> impl Strategy<Value = AddressSide> {
    prop_oneof![Just(AddressSide::Source), Just(AddressSide::Destination)]
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)]
}

/// Statements that match, in combinations that nft would write too.
fn matches() -> impl Strategy<Value = Vec<Statement>> {
    let kind = prop_oneof![Just(IcmpKind::Icmp), Just(IcmpKind::Icmpv6)];
    let state =
        prop_oneof![Just(ct_state::INVALID), Just(ct_state::ESTABLISHED | ct_state::RELATED), Just(ct_state::RELATED)];
    prop_oneof![
        Just(vec![]),
        state.prop_map(|bits| vec![Statement::CtState(bits)]),
        Just(vec![Statement::CtStatusDnat]),
        Just(vec![Statement::InputLoopback]),
        Just(vec![Statement::OutputLoopback]),
        prop_oneof![Just(Family::Ipv4), Just(Family::Ipv6)].prop_map(|family| vec![Statement::Family(family)]),
        (protocol(), any::<u16>())
            .prop_map(|(protocol, port)| vec![Statement::Protocol(protocol), Statement::SourcePort(port)]),
        (protocol(), any::<u16>())
            .prop_map(|(protocol, port)| vec![Statement::Protocol(protocol), Statement::DestinationPort(port)]),
        (kind.clone(), any::<u8>()).prop_map(|(kind, number)| vec![Statement::IcmpType(kind, number)]),
        (kind, any::<u8>(), any::<u8>()).prop_map(|(kind, number, code)| {
            vec![Statement::IcmpType(kind, number), Statement::IcmpCode(kind, code)]
        }),
        Just(vec![Statement::LinkLocalSource]),
        (side(), prop::sample::select(SETS.to_vec())).prop_map(|(side, (name, kind))| {
            let family = if kind % 2 == 0 { Family::Ipv4 } else { Family::Ipv6 };
            vec![Statement::InSet(side, family, name.into())]
        }),
        (1..10_000_u32, 1..100_u32).prop_map(|(per_second, burst)| vec![Statement::Limit { per_second, burst }]),
    ]
}

fn endings(targets: Vec<&'static str>) -> impl Strategy<Value = Vec<Statement>> {
    let verdict = |verdict| vec![Statement::Verdict(verdict)];
    let log = |target| vec![Statement::Log(Log { prefix: "portward denied: ".into(), target })];
    let mut endings: Vec<Vec<Statement>> = vec![
        vec![Statement::Counter],
        vec![Statement::Counter, Statement::Verdict(Verdict::Accept)],
        log(LogTarget::Kernel),
        log(LogTarget::Group(5)),
        verdict(Verdict::Accept),
        verdict(Verdict::Drop),
        verdict(Verdict::Return),
        vec![Statement::Protocol(Protocol::Tcp), Statement::RejectTcpReset],
        vec![Statement::RejectAdminProhibited],
    ];
    for target in &targets {
        endings.push(verdict(Verdict::Jump(Name::from(*target))));
        endings.push(verdict(Verdict::Goto(Name::from(*target))));
    }
    if !targets.is_empty() {
        for (map, _) in MAPS {
            for key in [PortKey::Destination, PortKey::OriginalDestination] {
                endings.push(vec![Statement::PortVerdict(Protocol::Udp, key, map.into())]);
            }
        }
    }
    prop::sample::select(endings)
}

fn rule(targets: Vec<&'static str>) -> impl Strategy<Value = Rule> {
    (matches(), endings(targets)).prop_map(|(mut statements, ending)| {
        // nft would refuse what contradicts itself; a protocol is named once.
        let names_protocol =
            |statement: &Statement| matches!(statement, Statement::Protocol(_) | Statement::IcmpType(..));
        if !(statements.iter().any(names_protocol)
            && ending.iter().any(|one| names_protocol(one) || matches!(one, Statement::PortVerdict(..))))
        {
            statements.extend(ending);
        } else {
            statements.push(Statement::Counter);
        }
        Rule { statements }
    })
}

/// Any rule that portward could write.
pub(crate) fn any_rule() -> impl Strategy<Value = Rule> {
    rule(LEAVES.to_vec())
}

fn ranges<T: Ord + Copy + std::fmt::Debug>(of: BTreeSet<T>) -> Vec<(T, T)> {
    let of: Vec<_> = of.into_iter().collect();
    of.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
}

fn any_set(kind: usize) -> BoxedStrategy<Set> {
    match kind {
        0 => prop::collection::vec(any::<u32>(), 0..20)
            .prop_map(|bits| Set::ipv4_addresses(bits.into_iter().map(Into::into).collect()))
            .boxed(),
        1 => prop::collection::vec(any::<u128>(), 0..20)
            .prop_map(|bits| Set::ipv6_addresses(bits.into_iter().map(Into::into).collect()))
            .boxed(),
        2 => prop::collection::btree_set(prop_oneof![any::<u32>(), Just(0), Just(u32::MAX)], 0..20)
            .prop_map(|bits| {
                let range = |(first, last): (u32, u32)| AddressRange { first: first.into(), last: last.into() };
                Set::ipv4_ranges(ranges(bits).into_iter().map(range).collect())
            })
            .boxed(),
        _ => prop::collection::btree_set(prop_oneof![any::<u128>(), Just(0), Just(u128::MAX)], 0..20)
            .prop_map(|bits| {
                let range = |(first, last): (u128, u128)| AddressRange { first: first.into(), last: last.into() };
                Set::ipv6_ranges(ranges(bits).into_iter().map(range).collect())
            })
            .boxed(),
    }
}

fn any_map(interval: bool) -> impl Strategy<Value = VerdictMap> {
    let verdict = prop::sample::select(LEAVES.to_vec()).prop_map(|leaf| Verdict::Jump(leaf.into()));
    let verdict = prop_oneof![verdict, Just(Verdict::Accept)];
    // Small numbers, so that ranges of the map often touch.
    let port = if interval { prop_oneof![0..60_u16, any::<u16>()].boxed() } else { any::<u16>().boxed() };
    prop::collection::btree_map(port, verdict, 0..30).prop_map(move |ports| {
        let ports: Vec<_> = ports.into_iter().collect();
        let elements = ports.iter().enumerate().map(|(index, (first, verdict))| {
            let next = ports.get(index + 1).map_or(u16::MAX, |(next, _)| next - 1);
            // Every other range reaches to the next one.
            let last = if interval && index % 2 == 0 { next } else { *first };
            (PortRange { first: *first, last }, verdict.clone())
        });
        VerdictMap { interval, elements: elements.collect() }
    })
}

/// A valid ruleset: every reference leads somewhere. Some objects are missing in some rulesets, so that differences add
/// and delete them.
pub(crate) fn any_ruleset() -> impl Strategy<Value = Ruleset> {
    let sets = (any_set(0), any_set(1), any_set(2), any_set(3));
    let maps = (any_map(false), any_map(true));
    let leaves = prop::collection::vec(prop::collection::vec(rule(vec![]), 0..5), LEAVES.len());
    let base = (
        prop_oneof![Just(ChainPolicy::Accept), Just(ChainPolicy::Drop)],
        prop::collection::vec(rule(LEAVES.to_vec()), 0..8),
        prop::option::of(prop::collection::vec(rule(LEAVES.to_vec()), 0..8)),
    );
    (sets, maps, leaves, base).prop_map(|((v4, v6, nets_v4, nets_v6), (ports, ranges), leaves, base)| {
        let (policy, input, output) = base;
        let base = |hook, policy, rules| Chain { base: Some(BaseChain { hook, priority: 0, policy }), rules };
        let mut chains: BTreeMap<Name, Chain> =
            LEAVES.iter().zip(leaves).map(|(name, rules)| (Name::from(*name), Chain { base: None, rules })).collect();
        chains.insert("input".into(), base(Hook::Input, policy, input));
        if let Some(rules) = output {
            chains.insert("output".into(), base(Hook::Output, ChainPolicy::Accept, rules));
        }
        let sets = [v4, v6, nets_v4, nets_v6];
        let mut ruleset = Ruleset {
            sets: SETS.iter().zip(sets).map(|((name, _), set)| (Name::from(*name), set)).collect(),
            maps: MAPS.iter().zip([ports, ranges]).map(|((name, _), map)| (Name::from(*name), map)).collect(),
            chains,
        };
        drop_unused(&mut ruleset);
        ruleset
    })
}

/// Leaves out the sets, maps and chains that nothing refers to.
fn drop_unused(ruleset: &mut Ruleset) {
    let statements = || ruleset.chains.values().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.statements);
    let mut used: BTreeSet<Name> = BTreeSet::new();
    for statement in statements() {
        match statement {
            Statement::InSet(_, _, name) | Statement::PortVerdict(_, _, name) => {
                used.insert(name.clone());
            }
            Statement::Verdict(verdict) => used.extend(verdict.target().cloned()),
            _ => {}
        }
    }
    ruleset.sets.retain(|name, _| used.contains(name));
    ruleset.maps.retain(|name, _| used.contains(name));
    for (_, verdict) in ruleset.maps.values().flat_map(|map| &map.elements) {
        used.extend(verdict.target().cloned());
    }
    ruleset.chains.retain(|name, chain| chain.base.is_some() || used.contains(name));
}
