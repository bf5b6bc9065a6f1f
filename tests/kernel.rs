//! The kernel module on the real kernel, in network namespaces of its own. Needs root, and `nft` of nftables.
#![allow(clippy::unwrap_used)] // The lint spares test functions only, not what they call.

#[path = "../src/kernel/testing.rs"]
#[allow(dead_code)] // These tests use whole rulesets only.
mod testing;

use nix::sched::{CloneFlags, unshare};
use portward::daemon::reconcile::Reconciler;
use portward::kernel::{Error, Kernel, Monitor, Netlink, Notification, Snapshot};
use portward::plan::{LocalScope, OpenPort, Part, Plan, open};
use portward::policy::{Catalogue, DynamicService, Exposure, OnClose, Policy, ProcessMatch, Tracker};
use portward::ruleset; // The generator finds it as `crate::ruleset`.
use portward::ruleset::diff::{Change, diff};
use portward::ruleset::{
    AddressRange, AddressSide, BaseChain, Chain, ChainPolicy, Family, Hook, IcmpKind, Log, LogTarget, PortKey,
    PortRange, Protocol, Rule, Ruleset, Set, Statement, Verdict, VerdictMap, ct_state, nft,
};
use proptest::prelude::*;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::process::{Command, Stdio};

/// Runs a test in a thread with a network namespace of its own. Processes that it starts are in it too.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("this test makes a network namespace, so it must be run as root");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `nft` with these arguments and returns what it writes.
fn nft(arguments: &[&str]) -> String {
    run("nft", arguments)
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn nft_script(script: &str) {
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft");
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "nft refused:\n{script}");
}

/// Commits what leads from the kernel's table to the desired one.
fn apply(kernel: &mut Netlink, desired: Option<&Ruleset>) -> u32 {
    let snapshot = kernel.dump().unwrap();
    let changes = diff(snapshot.table.as_ref(), desired);
    kernel.commit(&changes, snapshot.generation).unwrap_or_else(|error| panic!("{error}\n{changes:#?}"))
}

fn dumped(kernel: &mut Netlink) -> Ruleset {
    let Snapshot { table, foreign, .. } = kernel.dump().unwrap();
    assert_eq!(foreign, Vec::<String>::new());
    table.expect("a table")
}

fn base(hook: Hook, policy: ChainPolicy) -> Option<BaseChain> {
    Some(BaseChain { hook, priority: 0, policy })
}

fn range<A>(first: A, last: A) -> AddressRange<A> {
    AddressRange { first, last }
}

/// A ruleset with every kind of set and every statement.
fn everything() -> Ruleset {
    use Statement as S;
    let v4 = |text: &str| text.parse::<Ipv4Addr>().unwrap();
    let v6 = |text: &str| text.parse::<Ipv6Addr>().unwrap();
    let ports = |first, last| PortRange { first, last };
    let accept = || S::Verdict(Verdict::Accept);
    let rules = [
        vec![S::CtState(ct_state::ESTABLISHED | ct_state::RELATED), accept()],
        vec![S::CtState(ct_state::INVALID), S::Verdict(Verdict::Drop)],
        vec![S::CtStatusDnat, S::Verdict(Verdict::Goto("redirected".into()))],
        vec![S::InputLoopback, accept()],
        vec![S::OutputLoopback, S::Verdict(Verdict::Return)],
        vec![S::Family(Family::Ipv4), accept()],
        vec![S::Family(Family::Ipv6), accept()],
        vec![S::Protocol(Protocol::Udp), S::SourcePort(67), S::DestinationPort(68), accept()],
        vec![S::Protocol(Protocol::Tcp), S::DestinationPort(22), accept()],
        vec![S::IcmpType(IcmpKind::Icmp, 8), accept()],
        vec![S::IcmpType(IcmpKind::Icmpv6, 128), accept()],
        vec![S::IcmpType(IcmpKind::Icmp, 3), S::IcmpCode(IcmpKind::Icmp, 4), accept()],
        vec![S::IcmpType(IcmpKind::Icmpv6, 1), S::IcmpCode(IcmpKind::Icmpv6, 4), accept()],
        vec![S::LinkLocalSource, S::Protocol(Protocol::Udp), S::DestinationPort(546), accept()],
        vec![S::DestinationAddress(v4("192.0.2.1").into()), accept()],
        vec![S::DestinationAddress(v6("2001:db8::1").into()), S::Counter, S::Verdict(Verdict::Jump("row".into()))],
        vec![S::InSet(AddressSide::Source, Family::Ipv4, "peers_v4".into()), accept()],
        vec![S::InSet(AddressSide::Destination, Family::Ipv4, "nets_v4".into()), accept()],
        vec![S::InSet(AddressSide::Source, Family::Ipv6, "nets_v6".into()), S::Verdict(Verdict::Jump("row".into()))],
        vec![S::InSet(AddressSide::Destination, Family::Ipv6, "peers_v6".into()), accept()],
        vec![S::PortVerdict(Protocol::Tcp, PortKey::Destination, "services".into())],
        vec![S::PortVerdict(Protocol::Udp, PortKey::Destination, "spans".into())],
        vec![S::PortVerdict(Protocol::Udp, PortKey::OriginalDestination, "services".into())],
        vec![
            S::Limit { per_second: 10, burst: 20 },
            S::Counter,
            S::Log(Log { prefix: "portward denied: ".into(), target: LogTarget::Kernel }),
        ],
        vec![
            S::Limit { per_second: 3, burst: 5 },
            S::Log(Log { prefix: "portward ".into(), target: LogTarget::Group(7) }),
        ],
        vec![S::Counter],
        vec![S::Protocol(Protocol::Tcp), S::RejectTcpReset],
        vec![S::RejectAdminProhibited],
    ];
    let input = Chain {
        base: base(Hook::Input, ChainPolicy::Drop),
        rules: rules.into_iter().map(|statements| Rule { statements }).collect(),
    };
    Ruleset {
        sizes: [("peers_v6".into(), 65_536)].into(),
        sets: [
            ("peers_v4".into(), Set::ipv4_addresses(vec![v4("10.0.0.1"), v4("255.255.255.255"), v4("0.0.0.0")])),
            ("peers_v6".into(), Set::ipv6_addresses(vec![v6("fd00::1"), v6("::")])),
            (
                "nets_v4".into(),
                Set::ipv4_ranges(vec![
                    range(v4("10.0.0.0"), v4("10.255.255.255")),
                    range(v4("192.0.2.7"), v4("192.0.2.7")),
                    range(v4("192.0.2.9"), v4("192.0.2.13")),
                    range(v4("240.0.0.0"), v4("255.255.255.255")),
                ]),
            ),
            ("nets_v6".into(), Set::ipv6_ranges(vec![range(v6("::"), Ipv6Addr::from_bits(u128::MAX))])),
            ("empty".into(), Set::ipv4_ranges(vec![])),
        ]
        .into(),
        maps: [
            (
                "services".into(),
                VerdictMap {
                    interval: false,
                    elements: vec![
                        (PortRange::single(22), Verdict::Accept),
                        (PortRange::single(514), Verdict::Jump("row".into())),
                        (PortRange::single(65535), Verdict::Goto("row".into())),
                    ],
                },
            ),
            (
                "spans".into(),
                VerdictMap {
                    interval: true,
                    elements: vec![
                        (ports(0, 4), Verdict::Drop),
                        (ports(32000, 32005), Verdict::Jump("row".into())),
                        (ports(32006, 32006), Verdict::Jump("redirected".into())),
                        (ports(32007, 33999), Verdict::Jump("row".into())),
                        (ports(60000, 65535), Verdict::Return),
                    ],
                },
            ),
        ]
        .into(),
        chains: [
            ("input".into(), input),
            ("forward".into(), Chain { base: base(Hook::Forward, ChainPolicy::Accept), rules: vec![] }),
            ("output".into(), Chain { base: base(Hook::Output, ChainPolicy::Accept), rules: vec![] }),
            ("row".into(), Chain { base: None, rules: vec![Rule::new([Statement::Counter, accept()])] }),
            ("redirected".into(), Chain::default()),
        ]
        .into(),
    }
}

#[test]
fn what_is_committed_is_dumped() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        let before = kernel.dump().unwrap();
        assert_eq!(before.table, None);
        let generation = apply(&mut kernel, Some(&everything()));
        assert_eq!(generation, before.generation + 1);
        assert_eq!(kernel.generation(), Ok(generation));
        assert_eq!(dumped(&mut kernel), everything());
        assert_eq!(kernel.commit(&[], generation), Ok(generation));
        apply(&mut kernel, None);
        assert_eq!(kernel.dump().unwrap().table, None);
    });
}

#[test]
fn nft_lists_it_as_if_nft_had_made_it() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        apply(&mut kernel, Some(&everything()));
        let by_netlink = nft(&["list", "table", "inet", "portward"]);
        nft(&["flush", "ruleset"]);
        nft_script(&nft::render(&everything()));
        let by_nft = nft(&["list", "table", "inet", "portward"]);
        assert_eq!(by_netlink, by_nft);
        // And what nft made is read as the same ruleset, so that a daemon would change nothing.
        assert_eq!(dumped(&mut kernel), everything());
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_difference_leads_from_one_ruleset_to_the_other(
        rulesets in proptest::collection::vec(proptest::option::weighted(0.9, testing::any_ruleset()), 2..5),
    ) {
        in_namespace(move || {
            let mut kernel = Netlink::open().unwrap();
            for desired in &rulesets {
                let generation = apply(&mut kernel, desired.as_ref());
                let snapshot = kernel.dump().unwrap();
                assert_eq!(snapshot.generation, generation);
                assert_eq!(snapshot.table.as_ref(), desired.as_ref());
                assert_eq!(snapshot.foreign, Vec::<String>::new());
            }
        });
    }
}

#[test]
fn a_hundred_thousand_addresses_are_one_transaction() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        let addresses = (0..100_000).map(|number| Ipv4Addr::from_bits(0x0a00_0000 + number)).collect();
        // Every second address, so that no two ranges are adjacent.
        let networks = (0..50_000)
            .map(|number| Ipv6Addr::from_bits((0xfd00_u128 << 112) + 2 * number))
            .map(|address| range(address, address))
            .collect();
        let ruleset = Ruleset {
            sets: [
                ("addresses".into(), Set::ipv4_addresses(addresses)),
                ("networks".into(), Set::ipv6_ranges(networks)),
            ]
            .into(),
            ..Ruleset::default()
        };
        // Read at once, while the kernel's hash table still grows: such a dump leaves out what it gives twice.
        for _ in 0..3 {
            let before = kernel.generation().unwrap();
            assert_eq!(apply(&mut kernel, Some(&ruleset)), before + 1);
            assert!(dumped(&mut kernel) == ruleset, "another ruleset was read");
            apply(&mut kernel, None);
        }
    });
}

fn accepting_rules(count: u16) -> Vec<Rule> {
    (0..count)
        .map(|port| {
            Rule::new([
                Statement::Protocol(Protocol::Tcp),
                Statement::DestinationPort(port),
                Statement::Verdict(Verdict::Accept),
            ])
        })
        .collect()
}

#[test]
fn thousands_of_rules_are_one_transaction() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        let chain = Chain { base: base(Hook::Input, ChainPolicy::Accept), rules: accepting_rules(2_000) };
        let ruleset = Ruleset { chains: [("input".into(), chain)].into(), ..Ruleset::default() };
        let before = kernel.generation().unwrap();
        assert_eq!(apply(&mut kernel, Some(&ruleset)), before + 1);
        assert_eq!(dumped(&mut kernel), ruleset);
    });
}

#[test]
fn hundreds_of_refused_changes_are_told_by_the_first_and_apply_nothing() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        let generation = apply(&mut kernel, Some(&everything()));
        let mut changes = vec![Change::AddChain("new".into(), None)];
        changes.extend((0..1_000).map(|_| Change::AddRule {
            chain: "new".into(),
            before: None,
            rule: Rule::new([Statement::InSet(AddressSide::Source, Family::Ipv4, "missing".into())]),
        }));
        let refused = kernel.commit(&changes, generation).unwrap_err();
        assert!(matches!(refused, Error::Refused { .. }), "{refused:?}");
        assert!(refused.to_string().contains("adding to chain new the rule `ip saddr @missing`"), "{refused}");
        assert_eq!(kernel.generation(), Ok(generation));
        assert_eq!(dumped(&mut kernel), everything());
        // The same connection goes on working.
        apply(&mut kernel, None);
    });
}

#[test]
fn what_is_there_already_is_refused() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        let generation = apply(&mut kernel, Some(&everything()));
        let again = [
            Change::AddTable,
            Change::AddChain("row".into(), None),
            Change::AddSet("peers_v4".into(), Set::ipv4_addresses(vec![]), None),
            Change::AddMap("services".into(), false),
            Change::AddElements("peers_v4".into(), Set::ipv4_addresses(vec![Ipv4Addr::new(10, 0, 0, 1)])),
        ];
        for change in again {
            let refused = kernel.commit(std::slice::from_ref(&change), generation);
            let Err(Error::Refused { source, .. }) = refused else { panic!("{change:?}: {refused:?}") };
            assert_eq!(source, nix::errno::Errno::EEXIST, "{change:?}");
        }
        for change in [Change::DeleteChain("row".into()), Change::DeleteMap("services".into())] {
            let refused = kernel.commit(std::slice::from_ref(&change), generation);
            let Err(Error::Refused { source, .. }) = refused else { panic!("{change:?}: {refused:?}") };
            assert_eq!(source, nix::errno::Errno::EBUSY, "{change:?}");
        }
        assert_eq!(dumped(&mut kernel), everything());
    });
}

#[test]
fn a_commit_for_another_generation_changes_nothing() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        let generation = apply(&mut kernel, Some(&everything()));
        nft(&["add", "table", "inet", "somebody"]);
        assert_eq!(kernel.commit(&[Change::DeleteTable], generation), Err(Error::Changed));
        assert_eq!(kernel.commit(&[], generation), Err(Error::Changed));
        let rule = Change::DeleteRule { chain: "input".into(), index: 500 };
        assert_eq!(kernel.commit(&[rule], generation), Err(Error::Changed));
        assert_eq!(dumped(&mut kernel), everything());
        assert_eq!(kernel.commit(&[Change::DeleteTable], generation + 1), Ok(generation + 2));
        assert!(nft(&["list", "tables"]).contains("inet somebody"), "a foreign table was touched");
    });
}

/// Packets that each counter of a chain has counted, as nft lists them.
fn counted(chain: &str) -> Vec<u64> {
    let listing = nft(&["list", "chain", "inet", "portward", chain]);
    let words: Vec<_> = listing.split_whitespace().collect();
    words.windows(2).filter(|pair| pair[0] == "packets").map(|pair| pair[1].parse().unwrap()).collect()
}

#[test]
fn rules_that_stay_go_on_counting_and_order_is_kept() {
    in_namespace(|| {
        run("ip", &["link", "set", "lo", "up"]);
        let mut kernel = Netlink::open().unwrap();
        let counting = |port| {
            Rule::new([Statement::Protocol(Protocol::Udp), Statement::DestinationPort(port), Statement::Counter])
        };
        let with = |rules: Vec<Rule>| Ruleset {
            chains: [("input".into(), Chain { base: base(Hook::Input, ChainPolicy::Accept), rules })].into(),
            ..Ruleset::default()
        };
        apply(&mut kernel, Some(&with(vec![counting(1), counting(5000), counting(9)])));
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let _listener = UdpSocket::bind("127.0.0.1:5000").unwrap();
        for _ in 0..3 {
            socket.send_to(b"x", "127.0.0.1:5000").unwrap();
        }
        assert_eq!(counted("input"), [0, 3, 0]);
        let desired = with(vec![counting(2), counting(3), counting(5000), counting(4), counting(9), counting(7)]);
        apply(&mut kernel, Some(&desired));
        assert_eq!(dumped(&mut kernel), desired);
        assert_eq!(counted("input"), [0, 0, 3, 0, 0, 0]);
        let mut other_policy = desired;
        other_policy.chains.get_mut("input").unwrap().base = base(Hook::Input, ChainPolicy::Drop);
        apply(&mut kernel, Some(&other_policy));
        assert_eq!(dumped(&mut kernel), other_policy);
        assert_eq!(counted("input"), [0, 0, 3, 0, 0, 0]);
    });
}

#[test]
fn foreign_rules_and_chains_are_seen_and_repaired() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        apply(&mut kernel, Some(&everything()));
        let table = "inet portward";
        nft_script(&format!(
            "add rule {table} row meta mark 7 ip saddr {{ 1.2.3.4, 5.6.7.8 }} accept
             insert rule {table} input tcp dport 1-100 accept
             add rule {table} input ip saddr 10.0.0.0/8 jump {{ counter; drop; }}
             add chain {table} foreign
             add rule {table} foreign accept
             add element {table} peers_v4 {{ 9.9.9.9 }}
             delete element {table} nets_v4 {{ 10.0.0.0/8 }}"
        ));
        let seen = dumped(&mut kernel);
        assert_ne!(seen, everything());
        assert!(seen.chains.contains_key("foreign"));
        let unknown = |chain: &str| {
            let statements = seen.chains[chain].rules.iter().flat_map(|rule| &rule.statements);
            statements.filter(|statement| matches!(statement, Statement::Unknown(_))).count()
        };
        assert!(unknown("row") > 0);
        assert!(unknown("input") > 0);
        apply(&mut kernel, Some(&everything()));
        assert_eq!(dumped(&mut kernel), everything());
    });
}

#[test]
fn objects_that_a_ruleset_cannot_express_are_told() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        nft_script(
            "table inet portward {
                counter c { }
                set timed { type ipv4_addr; flags timeout; }
                set sized { type inet_service; size 10; }
                set concatenated { type ipv4_addr . inet_service; }
                set counted { type ipv4_addr; counter; elements = { 1.2.3.4 }; }
                map addresses { type ipv4_addr : ipv4_addr; }
                chain nat { type nat hook prerouting priority 0; }
                chain early { type filter hook prerouting priority 0; }
                set fine { type ipv4_addr; }
            }",
        );
        let Snapshot { table, foreign, generation } = kernel.dump().unwrap();
        for name in ["object c", "timed", "sized", "concatenated", "counted", "addresses", "nat", "early"] {
            assert!(foreign.iter().any(|what| what.contains(name)), "{name} is not among {foreign:#?}");
        }
        assert_eq!(foreign.len(), 8, "{foreign:#?}");
        let known = table.unwrap();
        assert_eq!(known.sets.keys().map(|name| &**name).collect::<Vec<_>>(), ["fine"]);
        assert!(known.chains.is_empty() && known.maps.is_empty());

        let mut changes = vec![Change::DeleteTable];
        changes.extend(diff(None, Some(&everything())));
        kernel.commit(&changes, generation).unwrap();
        assert_eq!(dumped(&mut kernel), everything());
    });
}

/// A host with the services `broker` and `other`, each for parties of both families.
fn with_dynamic_services() -> Policy {
    let text = r#"
format = 1
allow-lockout = true
[[host]]
name = "console"
addresses = ["10.0.0.10", "fd00::10"]
roles = ["console"]
[[allow]]
name = "some"
ports = ["1/tcp"]
from = ["192.0.2.0/24", "203.0.113.1", "2001:db8::/64", "2001:db8:1::1"]
to = ["console"]
"#;
    let mut policy = Policy::parse(text, "policy.toml", Catalogue::embedded()).unwrap().policy;
    let from = policy.allows["some"].from.clone();
    for name in ["broker", "other"] {
        let service = DynamicService {
            name: name.to_owned(),
            enabled: true,
            tracker: Tracker::Process,
            anchor: Some(7676),
            programs: Vec::new(),
            process: ProcessMatch { user: Some("root".to_owned()), ..ProcessMatch::default() },
            ports: ["1024-65535/tcp", "1024-65535/udp"].map(|ports| ports.parse().unwrap()).to_vec(),
            limit: 16,
            on_close: OnClose::Keep,
            exposure: Exposure::From(from.clone()),
            when: Vec::new(),
            line: None,
        };
        policy.dynamic.insert(name.to_owned(), service);
    }
    policy
}

#[test]
fn ports_open_and_close_as_a_part_of_the_ruleset() {
    in_namespace(|| {
        let policy = with_dynamic_services();
        let base = Plan::new(&policy, Catalogue::embedded(), &policy.hosts["console"]).ruleset();
        let port = |protocol, port, scope| OpenPort { protocol, port, scope };
        let address = |text: &str| LocalScope::Address(text.parse().unwrap());
        let broker = vec![
            port(Protocol::Tcp, 40000, LocalScope::Any),
            port(Protocol::Tcp, 40001, LocalScope::Ipv4),
            port(Protocol::Tcp, 40002, LocalScope::Ipv6),
            port(Protocol::Tcp, 40003, address("10.0.0.10")),
            port(Protocol::Tcp, 40004, address("fd00::10")),
            port(Protocol::Udp, 40004, address("fd00::11")),
        ];
        let other = vec![
            port(Protocol::Tcp, 40000, LocalScope::Ipv6),
            port(Protocol::Tcp, 40003, address("10.0.0.10")),
            port(Protocol::Tcp, 40003, address("10.0.0.11")),
            port(Protocol::Udp, 40004, LocalScope::Any),
        ];
        let states: [[&[OpenPort]; 2]; 6] = [
            [&broker, &[]],
            [&broker, &other],
            [&broker[2..], &other[1..]],
            [&[], &other],
            [&other, &broker],
            [&[], &[]],
        ];

        let mut reconciler = Reconciler::new(Netlink::open().unwrap());
        let mut kernel = Netlink::open().unwrap();
        let mut generation = reconciler.apply(&base).unwrap().generation;
        let mut ruleset = base.clone();
        for (number, [broker, other]) in states.into_iter().enumerate() {
            let ports = |of: &[OpenPort]| of.iter().copied().collect();
            let ports = [("broker".to_owned(), ports(broker)), ("other".to_owned(), ports(other))].into();
            open(&mut ruleset, &ports);
            let outcome = reconciler.apply_part(&ruleset).unwrap();
            generation += 1;
            assert_eq!(outcome.generation, generation, "state {number} is one transaction");
            assert!(dumped(&mut kernel) == ruleset, "state {number}: the kernel holds something else");
            assert!(reconciler.verify(&ruleset).unwrap().is_nothing());
            // The names of the chains are such that nft takes and writes them.
            if number == 1 {
                let by_netlink = listed_by_name();
                nft(&["flush", "ruleset"]);
                nft_script(&nft::render(&ruleset));
                assert_eq!(listed_by_name(), by_netlink);
                assert_eq!(Part::of(&dumped(&mut kernel)), Part::of(&ruleset));
                // Of other rules nft makes its own, and the next verification portward's again.
                generation = reconciler.verify(&ruleset).unwrap().generation;
            }
        }
        assert_eq!(ruleset, base);

        // A foreign change is found by the transaction, and mended with the ports.
        nft(&["delete", "rule", "inet", "portward", "input", "handle", &handle_of("input", "@dynamic_tcp")]);
        let ports = [("broker".to_owned(), broker.iter().copied().collect())].into();
        open(&mut ruleset, &ports);
        reconciler.apply_part(&ruleset).unwrap();
        assert!(dumped(&mut kernel) == ruleset, "the foreign change is still there");
    });
}

/// The objects of the table as nft lists them, in an order that does not depend on which was made first.
fn listed_by_name() -> Vec<String> {
    let listing = nft(&["list", "table", "inet", "portward"]);
    let mut objects: Vec<_> = listing.split("\n\n").map(|object| object.trim_end_matches("\n}\n").to_owned()).collect();
    objects.sort();
    objects
}

/// The handle of the first rule of a chain whose text holds a word.
fn handle_of(chain: &str, word: &str) -> String {
    let listing = nft(&["-a", "list", "chain", "inet", "portward", chain]);
    let line = listing.lines().find(|line| line.contains(word)).expect(word);
    line.rsplit(' ').next().unwrap().to_owned()
}

#[test]
fn a_table_is_replaced_whatever_is_there() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        let desired = everything();
        kernel.replace(Some(&desired)).unwrap();
        assert_eq!(dumped(&mut kernel), desired, "nothing was there");
        nft(&["add", "counter", "inet", "portward", "stranger"]);
        nft(&["insert", "rule", "inet", "portward", "input", "accept"]);
        kernel.replace(Some(&desired)).unwrap();
        assert_eq!(dumped(&mut kernel), desired);
        for _ in 0..2 {
            kernel.replace(None).unwrap();
            assert_eq!(kernel.dump().unwrap().table, None);
        }
    });
}

#[test]
fn a_flushed_ruleset_leaves_no_table() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        let generation = apply(&mut kernel, Some(&everything()));
        nft(&["flush", "ruleset"]);
        let snapshot = kernel.dump().unwrap();
        assert_eq!((snapshot.table, snapshot.foreign), (None, vec![]));
        assert_ne!(snapshot.generation, generation);
    });
}

#[test]
fn the_monitor_tells_what_was_changed_and_by_whom() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        let mut monitor = Monitor::open().unwrap();
        assert_eq!(monitor.read(), Ok(vec![]));
        monitor.pause().unwrap();
        apply(&mut kernel, Some(&everything()));
        monitor.resume().unwrap();
        assert_eq!(monitor.read(), Ok(vec![]));

        nft(&["add", "table", "ip", "other"]);
        let heard = monitor.read().unwrap();
        assert!(matches!(heard.as_slice(), [Notification::Generation { .. }]), "{heard:?}");

        let mut child = Command::new("nft")
            .args(["add rule inet portward row counter drop; add element inet portward peers_v4 { 9.9.9.9 }"])
            .spawn()
            .unwrap();
        let pid = child.id();
        assert!(child.wait().unwrap().success());
        let heard = monitor.read().unwrap();
        let [Notification::Table { what: rule }, Notification::Table { what: element }, last] = heard.as_slice() else {
            panic!("{heard:?}")
        };
        assert_eq!((rule.as_str(), element.as_str()), ("rule in chain row added", "elements of set peers_v4 added"));
        let Notification::Generation { id, pid: of, process } = last else { panic!("{last:?}") };
        assert_eq!((*id, *of, process.as_deref()), (kernel.generation().unwrap(), Some(pid), Some("nft")));
    });
}

#[test]
fn a_monitor_that_is_not_read_tells_that_it_lost_something() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        let mut monitor = Monitor::open().unwrap();
        let addresses = (0..300_000).map(Ipv4Addr::from_bits).collect();
        let ruleset = Ruleset { sets: [("s".into(), Set::ipv4_addresses(addresses))].into(), ..Ruleset::default() };
        apply(&mut kernel, Some(&ruleset));
        let heard = monitor.read().unwrap();
        assert!(heard.contains(&Notification::Lost), "{} notifications, none of them lost", heard.len());
        nft(&["flush", "ruleset"]);
        assert!(!monitor.read().unwrap().is_empty());
    });
}

#[test]
fn without_the_privilege_the_error_says_what_is_needed() {
    const UNPRIVILEGED: &str = "PORTWARD_TEST_UNPRIVILEGED";
    if std::env::var_os(UNPRIVILEGED).is_none() {
        // Capabilities belong to threads and are gone for good, so this test runs itself once more without any.
        let output = Command::new("setpriv")
            .args(["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "without_the_privilege_the_error_says_what_is_needed"])
            .env(UNPRIVILEGED, "1")
            .output()
            .expect("setpriv of util-linux");
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && told.contains("1 passed"), "{told}");
        return;
    }
    let error = Netlink::open().and_then(|mut kernel| kernel.dump()).unwrap_err();
    assert!(matches!(error, Error::Permission { .. }), "{error:?}");
    assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    assert!(matches!(Monitor::open(), Err(Error::Permission { .. })));
}
