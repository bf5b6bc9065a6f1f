use super::*;
use crate::plan::{Plan, find_host};
use crate::policy::{Mode, Policy};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use std::net::Ipv6Addr;

fn local(interface: &str, network: &str) -> LocalAddress {
    LocalAddress { interface: interface.to_owned(), network: network.parse().unwrap() }
}

fn address(word: &str) -> IpAddr {
    word.parse().unwrap()
}

fn tcp(ports: &[u16]) -> BTreeSet<(u16, Protocol)> {
    ports.iter().map(|port| (*port, Protocol::Tcp)).collect()
}

/// The policy that the text means. It loads without a warning.
#[track_caller]
fn load(text: &str) -> Policy {
    let loaded = Policy::parse(text, "first.toml", Catalogue::embedded());
    let loaded = loaded.unwrap_or_else(|wrong| panic!("{wrong}\n{text}"));
    assert_eq!(loaded.warnings.list, [], "{text}");
    loaded.policy
}

fn write(findings: &Findings) -> (String, Policy) {
    let text = first_policy(findings, Catalogue::embedded());
    let policy = load(&text);
    (text, policy)
}

/// The addresses and networks of a group, as text.
fn members(policy: &Policy, group: &str) -> Vec<String> {
    let Some(members) = policy.groups.get(group) else { return Vec::new() };
    let ipv4 = members.ipv4.iter().map(|member| member.network.to_string());
    ipv4.chain(members.ipv6.iter().map(|member| member.network.to_string())).collect()
}

fn console() -> Findings {
    Findings {
        hostname: "jsa.example.net".to_owned(),
        addresses: vec![
            local("lo", "127.0.0.1/8"),
            local("eth0", "203.0.113.10/24"),
            local("eth0", "fe80::1/64"),
            local("docker0", "172.17.0.1/16"),
        ],
        listeners: tcp(&[22, 443, 5432, 2049, 10_050]),
        ssh_peers: BTreeSet::from([address("198.51.100.7"), address("127.0.0.1"), address("203.0.113.10")]),
        ..Findings::default()
    }
}

#[test]
fn what_was_found_is_in_the_policy() {
    let (text, policy) = write(&console());
    assert_eq!(policy.mode, Mode::Observe);
    assert_eq!(members(&policy, "admin"), ["198.51.100.7/32"]);
    let host = &policy.hosts["jsa.example.net"];
    assert_eq!(host.addresses, [address("203.0.113.10")]);
    assert_eq!(host.roles, BTreeSet::from(["console".to_owned()]));
    assert_eq!(policy.hosts.len(), 1);
    for said in [
        "#   console: https 443/tcp, postgres 5432/tcp",
        "#   2049/tcp: row nfs, feature nfs",
        "not in it: 10050/tcp",
        "172.17.0.1 (docker0)",
        "# user = [] # for https (443/tcp)",
    ] {
        assert!(text.contains(said), "{said}:\n{text}");
    }
}

#[test]
fn nobody_connected_means_the_machine_s_networks_and_without_those_an_open_question() {
    let findings = Findings { ssh_peers: BTreeSet::new(), ..console() };
    let (_, policy) = write(&findings);
    assert_eq!(members(&policy, "admin"), ["203.0.113.0/24"]);
    assert!(!policy.allow_lockout);

    let (text, policy) = write(&Findings::default());
    assert!(policy.allow_lockout && text.contains("BEFORE you enforce"), "{text}");
    assert_eq!(policy.hosts[NO_NAME].addresses, [address("192.0.2.1")]);
}

#[test]
fn a_managed_host_gets_a_console_to_be_replaced() {
    let findings = Findings { hostname: "console".to_owned(), listeners: tcp(&[22, 514]), ..console() };
    let (text, policy) = write(&findings);
    let roles = BTreeSet::from(["event-collector".to_owned(), "event-processor".to_owned()]);
    assert_eq!(policy.hosts["console"].roles, roles);
    assert_eq!(policy.hosts["the-console"].addresses, [address("192.0.2.2")]);
    assert!(text.contains("could be of any of these roles"), "{text}");
}

#[test]
fn an_unknown_role_is_said_to_be_unknown() {
    let (text, policy) = write(&Findings { listeners: tcp(&[22]), ..console() });
    assert_eq!(policy.hosts["jsa.example.net"].roles, BTreeSet::from(["console".to_owned()]));
    assert!(text.contains("NOT KNOWN"), "{text}");
}

#[test]
fn a_pair_is_two_hosts_of_which_none_is_an_administrator() {
    let pair = Some(HaPair { primary: address("203.0.113.9"), secondary: address("203.0.113.10") });
    let mut findings = Findings { pair, ..console() };
    findings.ssh_peers.insert(address("203.0.113.9"));
    let (_, policy) = write(&findings);
    assert_eq!(policy.hosts["jsa.example.net"].ha_peer.as_deref(), Some("jsa.example.net-primary"));
    assert_eq!(policy.hosts["jsa.example.net-primary"].addresses, [address("203.0.113.9")]);
    assert_eq!(members(&policy, "admin"), ["198.51.100.7/32"]);

    let elsewhere = Some(HaPair { primary: address("192.0.2.8"), secondary: address("192.0.2.9") });
    let (text, policy) = write(&Findings { pair: elsewhere, ..console() });
    assert_eq!(policy.hosts["jsa.example.net"].ha_peer, None);
    assert!(text.contains("not exactly one of them is this machine"), "{text}");
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<Ipv4Addr>().prop_map(IpAddr::V4),
        any::<Ipv6Addr>().prop_map(IpAddr::V6),
        // Few, so that they meet; and those that mean something.
        (0_u8..4, 1_u8..4).prop_map(|(net, host)| IpAddr::V4(Ipv4Addr::new(192, 0, net, host))),
        proptest::sample::select(vec![
            "0.0.0.0",
            "255.255.255.255",
            "127.0.0.1",
            "169.254.1.1",
            "224.0.0.1",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "::ffff:192.0.2.1",
            "::ffff:127.0.0.1",
            "2001:db8::1",
            "192.0.2.1",
            "192.0.2.2",
        ])
        .prop_map(address),
    ]
}

fn any_findings() -> impl Strategy<Value = Findings> {
    let local =
        ("[a-z]{0,4}|docker0|br-1|.{0,15}", any_address(), any::<u8>()).prop_map(|(interface, address, length)| {
            let longest = if address.is_ipv4() { 32 } else { 128 };
            LocalAddress { interface, network: IpNet::new(address, length % (longest + 1)).unwrap() }
        });
    let protocol = proptest::sample::select(vec![Protocol::Tcp, Protocol::Udp]);
    let known = vec![22_u16, 111, 123, 443, 514, 2049, 2055, 5432, 7789, 8082, 9000, 9995, 14433, 20_001, 32_000];
    let port = prop_oneof![proptest::sample::select(known), 1..=u16::MAX];
    let pair = (any_address(), any_address()).prop_map(|(primary, secondary)| HaPair { primary, secondary });
    (
        "[a-zA-Z0-9.-]{0,70}|console|192\\.0\\.2\\.1|.{0,20}",
        vec(local, 0..6),
        btree_set((port, protocol), 0..60),
        btree_set(any_address(), 0..6),
        proptest::option::of(pair),
        vec(".{0,40}", 0..3),
    )
        .prop_map(|(hostname, addresses, listeners, ssh_peers, pair, unseen)| {
            // Half of the pairs are of this machine.
            let pair = pair.map(|pair| match addresses.first() {
                Some(own) if pair.primary.is_ipv4() => HaPair { primary: own.network.addr(), ..pair },
                _ => pair,
            });
            Findings { hostname, addresses, listeners, ssh_peers, pair, unseen }
        })
}

proptest! {
    #[test]
    fn whatever_was_found_the_policy_loads_and_locks_nobody_out(findings in any_findings()) {
        let (text, policy) = write(&findings);
        prop_assert_eq!(policy.mode, Mode::Observe);
        for host in policy.hosts.values() {
            prop_assert!(!Plan::new(&policy, Catalogue::embedded(), host).locks_out_admin(), "{}", text);
        }
        // The machine finds itself, by address or by name.
        let own: Vec<IpAddr> = findings.addresses.iter().map(|local| local.network.addr().to_canonical()).collect();
        let name = name(&findings.hostname);
        let found = find_host(&policy, None, &own, &name).map(|host| host.name.clone());
        prop_assert_eq!(found, Ok(name));
        // Whoever is connected may go on.
        let admins = members(&policy, "admin");
        for peer in findings.ssh_peers.iter().map(IpAddr::to_canonical) {
            let known = policy.hosts.values().any(|host| host.addresses.contains(&peer));
            let word = IpNet::from(peer).to_string();
            prop_assert!(admins.contains(&word) || known || own.contains(&peer) || is_no_host(peer) || is_of_link(peer));
        }
    }
}
