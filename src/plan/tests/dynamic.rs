//! Services with dynamic ports: who may reach them, and what open ports make of a ruleset.

use super::*;
use crate::daemon::reconcile::Reconciler;
use crate::kernel::FakeKernel;
use crate::policy::{DynamicService, Exposure, OnClose, ProcessMatch, Tracker};
use crate::ruleset::{AddressSide, Family, Name, Ruleset};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn service(name: &str, exposure: Exposure, ports: &[&str]) -> DynamicService {
    DynamicService {
        name: name.to_owned(),
        enabled: true,
        tracker: Tracker::Process,
        anchor: Some(7676),
        programs: Vec::new(),
        process: ProcessMatch { user: Some("root".to_owned()), ..ProcessMatch::default() },
        ports: ports.iter().map(|ports| ports.parse().unwrap()).collect(),
        limit: 8,
        on_close: OnClose::Keep,
        exposure,
        when: Vec::new(),
        line: Some(99),
    }
}

fn of_row(name: &str, row: &str, ports: &[&str]) -> DynamicService {
    service(name, Exposure::Row(row.to_owned()), ports)
}

/// A service for the parties that an `[[allow]]` of the same words would name.
fn for_parties(name: &str, parties: &str, ports: &[&str]) -> DynamicService {
    let allow = format!("[[allow]]\nname = \"a\"\nports = [\"1/tcp\"]\nto = [\"appliance\"]\nfrom = {parties}\n");
    let loaded = Policy::parse(&format!("{DEPLOYMENT}{allow}"), "policy.toml", Catalogue::embedded()).unwrap();
    service(name, Exposure::From(loaded.policy.allows["a"].from.clone()), ports)
}

fn policy(more: &str, services: impl IntoIterator<Item = DynamicService>) -> Policy {
    let loaded = Policy::parse(&format!("{DEPLOYMENT}{more}"), "policy.toml", Catalogue::embedded()).unwrap();
    let dynamic = services.into_iter().map(|service| (service.name.clone(), service)).collect();
    Policy { dynamic, ..loaded.policy }
}

fn plan<'a>(policy: &'a Policy, host: &str) -> Plan<'a> {
    Plan::new(policy, Catalogue::embedded(), &policy.hosts[host])
}

/// The reason why a host opens nothing of the only service; `None`: it exposes it.
fn reason(more: &str, service: DynamicService, host: &str) -> Option<Reason> {
    let policy = policy(more, [service]);
    let plan = plan(&policy, host);
    assert_eq!(plan.dynamic.len() + plan.closed_dynamic.len(), 1);
    plan.closed_dynamic.first().map(|closed| closed.reason.clone())
}

fn tcp(port: u16, scope: LocalScope) -> OpenPort {
    OpenPort { protocol: Protocol::Tcp, port, scope }
}

fn ports<'p>(of: impl IntoIterator<Item = (&'p str, Vec<OpenPort>)>) -> OpenPorts {
    of.into_iter().map(|(service, ports)| (service.to_owned(), ports.into_iter().collect())).collect()
}

#[test]
fn a_service_is_exposed_to_the_ingress_peers_of_its_row() {
    let policy = policy("", [of_row("imq", "imq", &["32000-65535/tcp"])]);
    let plan = plan(&policy, "ep1");
    let permissions = &plan.dynamic[0].permissions;
    let of_row: Vec<_> = plan
        .allowances
        .iter()
        .filter(|allowance| allowance.row == RowRef::Catalogue("imq") && allowance.direction == Ingress)
        .map(|allowance| Permission { flow: allowance.flow.clone(), peers: allowance.peers.clone() })
        .collect();
    assert_eq!(*permissions, of_row);
    assert_eq!(permissions[0].flow, "console -> managed-host");
    assert!(permissions[0].peers.find("10.0.0.10".parse().unwrap()).is_some());
}

#[test]
fn what_closes_a_row_closes_its_service_and_says_why() {
    let imq = || of_row("imq", "imq", &["32000-65535/tcp"]);
    assert_eq!(reason("", imq(), "ep1"), None);
    assert_eq!(reason("", imq(), "main"), Some(Reason::NotConcerned), "the console is at the other end");
    assert_eq!(reason("", imq(), "ep2"), Some(Reason::Tunnelled));
    let disabled = reason("[row.imq]\nenabled = false\n", imq(), "ep1");
    assert!(matches!(disabled, Some(Reason::Disabled(Some(line))) if line > 1 && line != 99));
    let narrowed = reason("[row.imq]\nonly-from = [\"192.0.2.0/24\"]\n", imq(), "ep1");
    assert!(matches!(narrowed, Some(Reason::OnlyFrom(_))));
    let off = DynamicService { enabled: false, ..imq() };
    assert_eq!(reason("", off, "ep1"), Some(Reason::Disabled(Some(99))));
    let conditional = DynamicService { when: vec![crate::policy::Condition::Feature("fips".to_owned())], ..imq() };
    assert_eq!(reason("", conditional, "ep1"), Some(Reason::Condition("fips".to_owned())));
    assert_eq!(reason("", of_row("x", "no-such-row", &["1/tcp"]), "ep1"), Some(Reason::NotConcerned));
}

#[test]
fn a_service_for_parties_is_like_an_allow_to_this_host() {
    let policy = policy("", [for_parties("backup", r#"["admin", "ep1", "203.0.113.0/24"]"#, &["40000-40010/tcp"])]);
    for host in ["main", "ep1", "ep2"] {
        let plan = plan(&policy, host);
        let groups: Vec<_> = plan.dynamic[0].permissions.iter().map(|one| one.peers.group.as_str()).collect();
        assert_eq!(groups, ["ep1, 203.0.113.0/24", "admin"]);
        let is_peer = |address: &str| {
            plan.dynamic[0].permissions.iter().any(|one| one.peers.find(address.parse().unwrap()).is_some())
        };
        assert!(is_peer("192.0.2.9") && is_peer("203.0.113.1") && !is_peer("198.51.100.1"));
        assert_eq!(is_peer("10.0.0.21"), host != "ep1", "a host is no peer of its own");
    }
    assert_eq!(
        reason("", for_parties("x", r#"["windows-host"]"#, &["1/tcp"]), "ep1"),
        Some(Reason::NoPeers(vec!["windows-host".to_owned()]))
    );
}

#[test]
fn a_service_that_is_switched_off_leaves_no_egress_range() {
    let enabled = policy("", [of_row("imq", "imq", &["32000-65535/tcp"])]);
    let off = DynamicService { enabled: false, ..of_row("imq", "imq", &["32000-65535/tcp"]) };
    let disabled = policy("", [off]);
    let ranges = |policy| plan(policy, "main").allowances.iter().filter(|one| one.dynamic).count();
    assert_eq!(ranges(&enabled), ranges(&disabled) + 1);
    let at = |policy, port| plan(policy, "main").explain(&query(Egress, "10.0.0.21", port), &OpenPorts::new()).verdict;
    assert_eq!((at(&enabled, "40000/tcp"), at(&enabled, "7676/tcp")), (Allowed, Allowed));
    assert_eq!(at(&disabled, "7676/tcp"), Allowed, "the row itself stays");
}

#[test]
fn maps_and_chains_are_there_exactly_when_something_is_exposed() {
    let names = |ruleset: &Ruleset| {
        let chains = ruleset.chains.keys().filter(|name| name.starts_with("dyn_"));
        let maps = ruleset.maps.keys().filter(|name| name.starts_with("dynamic"));
        chains.chain(maps).map(|name| name.to_string()).collect::<Vec<_>>()
    };
    let services = || [of_row("imq", "imq", &["32000-65535/tcp"]), of_row("rpc", "rpc-portmapper", &["512-65535/udp"])];
    let policy = policy("", services());
    // The console alone has an IPv6 address.
    assert_eq!(names(&plan(&policy, "ep1").ruleset()), ["dyn_imq", "dyn_imq.v4", "dyn_imq.v6", "dynamic_tcp"]);
    assert_eq!(names(&plan(&policy, "main").ruleset()), ["dyn_rpc", "dyn_rpc.v4", "dynamic_udp"]);
    assert_eq!(names(&plan(&policy, "ep2").ruleset()), Vec::<String>::new());
    let ruleset = plan(&policy, "main").ruleset();
    let place = |chain: &str, map: &str| {
        let asks = |statement: &Statement| matches!(statement, Statement::PortVerdict(_, _, asked) if &**asked == map);
        ruleset.chains[chain].rules.iter().position(|rule| rule.statements.iter().any(asks))
    };
    assert_eq!(place("input", "dynamic_udp"), place("input", "services_udp").map(|place| place + 1));
    assert_eq!(place("redirected", "dynamic_udp"), None);
    assert!(place("redirected", "services_udp").is_some());
}

/// The elements of `dynamic_tcp`, and the chains made for them with their rules, as nft text.
fn listed(ruleset: &Ruleset) -> (Vec<String>, Vec<String>) {
    let elements = ruleset.maps["dynamic_tcp"].elements.iter();
    let chains = ruleset.chains.iter().filter(|(name, _)| name.starts_with("open_"));
    (
        elements.map(|(port, verdict)| format!("{port} : {verdict}")).collect(),
        chains
            .map(|(name, chain)| {
                let rules: Vec<_> = chain.rules.iter().map(ToString::to_string).collect();
                format!("{name}: {}", rules.join("; "))
            })
            .collect(),
    )
}

#[test]
fn a_port_that_opens_is_one_element() {
    let policy = policy(
        "",
        [of_row("imq", "imq", &["32000-65535/tcp"]), for_parties("own", r#"["203.0.113.1"]"#, &["1-65535/tcp"])],
    );
    let mut ruleset = plan(&policy, "ep1").ruleset();
    let base = ruleset.clone();
    let v6 = "fd00::7".parse().unwrap();
    let open_now = ports([
        (
            "imq",
            vec![
                tcp(32001, LocalScope::Any),
                tcp(32002, LocalScope::Ipv4),
                tcp(32003, LocalScope::Ipv4),
                tcp(32003, LocalScope::Ipv6),
                tcp(32004, LocalScope::Address(v6)),
                tcp(32005, LocalScope::Address(Ipv4Addr::new(10, 9, 9, 1).into())),
                tcp(32005, LocalScope::Ipv4),
                tcp(32006, LocalScope::Address(Ipv4Addr::LOCALHOST.into())),
                tcp(32007, LocalScope::Any),
                OpenPort { protocol: Protocol::Udp, ..tcp(32008, LocalScope::Any) },
            ],
        ),
        ("own", vec![tcp(32007, LocalScope::Address(Ipv4Addr::new(10, 9, 9, 1).into())), tcp(1, LocalScope::Ipv6)]),
        ("unknown", vec![tcp(32010, LocalScope::Any)]),
    ]);
    open(&mut ruleset, &open_now);
    let (elements, chains) = listed(&ruleset);
    let expected = [
        "32001 : jump dyn_imq",
        "32002 : jump dyn_imq.v4",
        "32003 : jump dyn_imq",
        "32004 : jump open_imq.fd00__7",
        "32005 : jump dyn_imq.v4",
        "32007 : jump open_imq/own.10.9.9.1",
    ];
    assert_eq!(elements, expected);
    let expected = [
        "open_imq.fd00__7: ip6 daddr fd00::7 jump dyn_imq.v6",
        "open_imq/own.10.9.9.1: jump dyn_imq; ip daddr 10.9.9.1 jump dyn_own.v4",
    ];
    assert_eq!(chains, expected);
    open(&mut ruleset, &OpenPorts::new());
    assert_eq!(ruleset, base);
}

#[test]
fn an_open_port_is_granted_and_one_that_is_not_open_comes_near() {
    let policy = policy("", [of_row("imq", "imq", &["32000-65535/tcp"])]);
    let plan = plan(&policy, "ep1");
    let only = LocalScope::Address("10.0.0.21".parse().unwrap());
    let open = ports([("imq", vec![tcp(65000, LocalScope::Any), tcp(65001, only)])]);
    let console = query(Ingress, "10.0.0.10", "65000/tcp");

    let explanation = plan.explain(&console, &open);
    let [Grant::Dynamic { service, flow, group, line: Some(_), scope: LocalScope::Any, .. }] =
        explanation.grants.as_slice()
    else {
        panic!("{explanation:?}")
    };
    assert_eq!((service.as_str(), flow.as_str(), group.as_str()), ("imq", "console -> managed-host", "console"));
    assert_eq!(plan.explain(&query(Egress, "10.0.0.10", "65000/tcp"), &open).verdict, Denied);

    let closed = plan.explain(&console, &OpenPorts::new());
    assert_eq!(closed.verdict, Denied);
    let why =
        "the port is in the range of dynamic service imq (32000-65535/tcp), but no verified listener is open on it";
    assert!(closed.near_misses.iter().any(|miss| miss.row == "dynamic imq" && miss.why == why), "{closed:?}");

    let stranger = plan.explain(&query(Ingress, "10.0.0.22", "65000/tcp"), &open);
    assert_eq!(stranger.verdict, Denied);
    let miss = stranger.near_misses.iter().find(|miss| miss.row == "dynamic imq").unwrap();
    assert_eq!(miss.why, "10.0.0.22 is not in console (console -> managed-host)");
    let nothing = plan.explain(&query(Ingress, "10.0.0.22", "65000/tcp"), &OpenPorts::new());
    assert_eq!(nothing.near_misses, [], "a range is no news for those who could not use it");

    let at = |local: &str| {
        let local = Some(local.parse().unwrap());
        plan.explain(&Query { local, ..query(Ingress, "10.0.0.10", "65001/tcp") }, &open)
    };
    assert_eq!(at("10.0.0.21").verdict, Allowed);
    let elsewhere = at("10.0.0.99");
    assert_eq!(elsewhere.verdict, Denied);
    assert_eq!(elsewhere.near_misses[0].why, "its process listens on 10.0.0.21 only");
}

/// Whether a packet from the peer to the local address is accepted in this chain.
fn accepts(ruleset: &Ruleset, chain: &Name, peer: IpAddr, local: IpAddr) -> bool {
    ruleset.chains[chain].rules.iter().any(|rule| {
        rule.statements.iter().all(|statement| match statement {
            Statement::Family(family) => peer.is_ipv4() == (*family == Family::Ipv4),
            Statement::DestinationAddress(address) => local == *address,
            Statement::InSet(AddressSide::Source, _, set) => match (&ruleset.sets[set], peer) {
                (Set::Ipv4Addresses(of), IpAddr::V4(peer)) => of.contains(&peer),
                (Set::Ipv6Addresses(of), IpAddr::V6(peer)) => of.contains(&peer),
                (Set::Ipv4Ranges(of), IpAddr::V4(peer)) => of.iter().any(|of| of.first <= peer && peer <= of.last),
                (Set::Ipv6Ranges(of), IpAddr::V6(peer)) => of.iter().any(|of| of.first <= peer && peer <= of.last),
                _ => false,
            },
            Statement::Counter | Statement::Verdict(RuleVerdict::Accept) => true,
            Statement::Verdict(RuleVerdict::Jump(chain)) => accepts(ruleset, chain, peer, local),
            other => panic!("{other} in a chain of dynamic ports"),
        })
    })
}

const LOCAL: [&str; 4] = ["10.0.0.10", "10.9.9.1", "fd00::10", "fd00::9"];
const PEERS: [&str; 6] = ["192.0.2.1", "10.0.0.21", "203.0.113.7", "198.51.100.9", "fd00::77", "fd01::1"];

fn any_ports() -> impl Strategy<Value = OpenPorts> {
    let scope = prop_oneof![
        Just(LocalScope::Any),
        Just(LocalScope::Ipv4),
        Just(LocalScope::Ipv6),
        prop::sample::select(&LOCAL[..]).prop_map(|address| LocalScope::Address(address.parse().unwrap())),
        Just(LocalScope::Address(Ipv4Addr::LOCALHOST.into())),
    ];
    let port = (any::<bool>(), 600..606_u16, scope).prop_map(|(tcp, port, scope)| {
        let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
        OpenPort { protocol, port, scope }
    });
    let service = prop::sample::select(vec!["rpc", "own", "own6", "hidden"]).prop_map(str::to_owned);
    prop::collection::btree_map(service, prop::collection::btree_set(port, 0..8), 0..4)
}

/// The console, with services of a row, for parties of both families and for those of one, and one that is switched off.
fn services() -> Policy {
    let ports = ["512-65535/tcp", "512-65535/udp"];
    let all = [
        of_row("rpc", "rpc-portmapper", &ports),
        for_parties("own", r#"["ep1", "203.0.113.0/24", "fd00::/64"]"#, &ports),
        for_parties("own6", r#"["fd01::1"]"#, &ports),
        DynamicService { enabled: false, ..for_parties("hidden", r#"["0.0.0.0/0", "::/0"]"#, &ports) },
    ];
    policy("", all)
}

proptest! {
    // The fake kernel checks every reference after each change, and the console has thousands of ports.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_is_open_does_not_depend_on_what_was(history in prop::collection::vec(any_ports(), 0..4), now in any_ports()) {
        let policy = services();
        let base = plan(&policy, "main").ruleset();
        let mut expected = base.clone();
        open(&mut expected, &now);
        let mut reconciler = Reconciler::new(FakeKernel::new(Some(base.clone())));
        let mut ruleset = base.clone();
        reconciler.apply(&ruleset).unwrap();
        for ports in history.iter().chain([&now]) {
            open(&mut ruleset, ports);
            reconciler.apply_part(&ruleset).unwrap();
        }
        prop_assert_eq!(&ruleset, &expected);
        prop_assert_eq!(reconciler.snapshot().unwrap().table.as_ref(), Some(&expected));
        prop_assert!(reconciler.verify(&expected).unwrap().is_nothing());
        let mut again = base.clone();
        open(&mut again, &opened(&expected));
        prop_assert_eq!(&again, &expected, "what is read from a ruleset opens the same");
        open(&mut ruleset, &OpenPorts::new());
        prop_assert_eq!(ruleset, base);
    }
}

proptest! {
    #[test]
    fn the_chains_accept_whom_explain_lets_in(ports in any_ports()) {
        let policy = services();
        let plan = plan(&policy, "main");
        let mut ruleset = plan.ruleset();
        open(&mut ruleset, &ports);
        for (protocol, port) in [Protocol::Tcp, Protocol::Udp].into_iter().flat_map(|of| (600..606).map(move |port| (of, port))) {
            let map = &ruleset.maps[open::dynamic_map(protocol)];
            let element = map.elements.iter().find(|(ports, _)| ports.contains(port));
            let chain = element.and_then(|(_, verdict)| verdict.target());
            for (peer, local) in PEERS.iter().flat_map(|peer| LOCAL.iter().map(move |local| (peer, local))) {
                let (peer, local): (IpAddr, IpAddr) = (peer.parse().unwrap(), local.parse().unwrap());
                if peer.is_ipv4() != local.is_ipv4() {
                    continue;
                }
                let port = Ports::Range(protocol, PortRange::single(port));
                let query = Query { direction: Ingress, peer, port, local: Some(local) };
                let explanation = plan.explain(&query, &ports);
                let granted = explanation.grants.iter().any(|grant| matches!(grant, Grant::Dynamic { .. }));
                let accepted = chain.is_some_and(|chain| accepts(&ruleset, chain, peer, local));
                prop_assert_eq!(granted, accepted, "{:?}: {:?}", query, explanation);
            }
        }
    }
}

#[test]
fn a_port_of_very_many_addresses_still_has_a_name() {
    let policy = services();
    let mut ruleset = plan(&policy, "main").ruleset();
    let addresses = (0..200).map(|last| tcp(600, LocalScope::Address(Ipv4Addr::new(10, 9, 8, last).into())));
    let both: BTreeSet<_> = addresses.collect();
    open(&mut ruleset, &OpenPorts::from([("own".to_owned(), both)]));
    let (elements, chains) = listed(&ruleset);
    assert_eq!((elements.len(), chains.len()), (1, 1));
    let (name, rules) = chains[0].split_once(": ").unwrap();
    assert_eq!(rules.matches("ip daddr 10.9.8.").count(), 200);
    assert!(name.len() < 256);
}
