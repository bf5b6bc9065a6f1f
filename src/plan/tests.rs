//! The catalogue's semantics, held against the embedded catalogue.

mod dynamic;

use super::*;
use crate::ruleset::{Set, Statement, Verdict as RuleVerdict};
use std::net::{IpAddr, Ipv4Addr};

const DEPLOYMENT: &str = r#"
format = 1
egress = "enforce"
features = ["nfs"]
[groups]
admin = ["192.0.2.0/24"]
log-source = ["198.51.100.1", "198.51.100.2"]
dns-server = ["192.0.2.53"]
[[host]]
name = "main"
addresses = ["10.0.0.10", "fd00::10"]
roles = ["console"]
[[host]]
name = "ep1"
addresses = ["10.0.0.21"]
roles = ["event-processor", "event-collector"]
[[host]]
name = "ep2"
addresses = ["10.0.0.22"]
roles = ["event-processor"]
encrypted = true
ha-peer = "ep2b"
[[host]]
name = "ep2b"
addresses = ["10.0.0.23"]
roles = ["event-processor"]
"#;

/// Parses the deployment with `more` after it, and asks from the host whether the packet may pass.
fn verdict(more: &str, host: &str, direction: Direction, peer: &str, port: &str) -> Verdict {
    explained(more, host, direction, peer, port).verdict
}

fn query(direction: Direction, peer: &str, port: &str) -> Query {
    Query { direction, peer: peer.parse().unwrap(), port: port.parse().unwrap(), local: None }
}

fn explained(more: &str, host: &str, direction: Direction, peer: &str, port: &str) -> Explanation {
    let catalogue = Catalogue::embedded();
    let loaded = Policy::parse(&format!("{DEPLOYMENT}{more}"), "policy.toml", catalogue).unwrap();
    let plan = Plan::new(&loaded.policy, catalogue, &loaded.policy.hosts[host]);
    plan.explain(&query(direction, peer, port), &OpenPorts::new())
}

use Direction::{Egress, Ingress};
use Verdict::{Allowed, Denied};

#[test]
fn a_flow_opens_ingress_at_its_end_and_egress_at_its_beginning() {
    assert_eq!(verdict("", "ep1", Ingress, "198.51.100.1", "514/udp"), Allowed);
    assert_eq!(verdict("", "ep1", Ingress, "198.51.100.3", "514/udp"), Denied);
    assert_eq!(verdict("", "main", Ingress, "10.0.0.21", "5432/tcp"), Allowed);
    assert_eq!(verdict("", "ep1", Egress, "10.0.0.10", "5432/tcp"), Allowed);
    assert_eq!(verdict("", "ep1", Ingress, "10.0.0.10", "5432/tcp"), Denied);
    assert_eq!(verdict("", "main", Egress, "10.0.0.21", "5432/tcp"), Denied);
}

#[test]
fn both_families_of_a_host_are_peers() {
    assert_eq!(verdict("", "ep1", Ingress, "fd00::10", "22/tcp"), Allowed);
    assert_eq!(verdict("", "ep1", Ingress, "fd00::11", "22/tcp"), Denied);
}

#[test]
fn the_tunnel_closes_keeps_or_is_the_only_way() {
    // postgres is closed by default, ssh is kept, ssh-tunnels exist only between such pairs.
    for (host, peer) in [("main", "10.0.0.22"), ("ep2", "10.0.0.10")] {
        let direction = if host == "main" { Ingress } else { Egress };
        assert_eq!(verdict("", host, direction, peer, "5432/tcp"), Denied, "{host}");
        assert_eq!(verdict("", host, Ingress, peer, "22/tcp"), Allowed, "{host}");
        assert_eq!(verdict("", host, Ingress, peer, "20000/tcp"), Allowed, "{host}");
    }
    assert_eq!(verdict("", "main", Ingress, "10.0.0.21", "20000/tcp"), Denied);
    assert_eq!(verdict("", "ep1", Ingress, "10.0.0.10", "20000/tcp"), Denied);
    // Between two managed hosts there is no such link, whatever either of them has with the console.
    assert_eq!(verdict("", "ep1", Ingress, "10.0.0.22", "32006/tcp"), Allowed);
    assert_eq!(verdict("", "main", Ingress, "10.0.0.22", "32006/tcp"), Denied);
}

#[test]
fn allowances_add_up() {
    // The encrypted managed host is also a log source by its address.
    let more = "[row.syslog]\nonly-from = [\"198.51.100.0/24\"]\n";
    assert_eq!(verdict("", "main", Ingress, "10.0.0.22", "514/tcp"), Denied);
    let with = DEPLOYMENT.replace("\"198.51.100.2\"", "\"10.0.0.22\"");
    let catalogue = Catalogue::embedded();
    let loaded = Policy::parse(&with, "policy.toml", catalogue).unwrap();
    let plan = Plan::new(&loaded.policy, catalogue, &loaded.policy.hosts["main"]);
    let query = query(Ingress, "10.0.0.22", "514/tcp");
    assert_eq!(plan.explain(&query, &OpenPorts::new()).verdict, Allowed);
    assert_eq!(verdict(more, "main", Ingress, "10.0.0.21", "514/tcp"), Denied);
    assert_eq!(verdict(more, "main", Ingress, "198.51.100.1", "514/tcp"), Allowed);
}

#[test]
fn a_pair_needs_to_be_named_on_one_side_only() {
    for (host, peer) in [("ep2", "10.0.0.23"), ("ep2b", "10.0.0.22")] {
        assert_eq!(verdict("", host, Ingress, peer, "7789/tcp"), Allowed);
        assert_eq!(verdict("", host, Ingress, peer, "echo/icmp"), Allowed);
        assert_eq!(verdict("", host, Ingress, "10.0.0.21", "7789/tcp"), Denied);
    }
}

#[test]
fn internal_rows_and_unmet_conditions_open_nothing() {
    assert_eq!(verdict("", "main", Ingress, "10.0.0.21", "8005/tcp"), Denied);
    assert_eq!(verdict("", "main", Ingress, "10.0.0.21", "162/udp"), Denied);
    assert_eq!(verdict("", "main", Ingress, "127.0.0.1", "8005/tcp"), Allowed);
}

#[test]
fn name_servers_are_open_to_queries_from_every_appliance() {
    for port in ["53/udp", "53/tcp"] {
        assert_eq!(verdict("", "ep1", Egress, "192.0.2.53", port), Allowed);
        assert_eq!(verdict("", "ep1", Ingress, "192.0.2.53", port), Denied);
    }
}

#[test]
fn the_sites_own_rows_name_roles_hosts_and_networks() {
    let more = r#"
[[allow]]
name = "backup"
ports = ["9102/tcp", "40000-50000/udp"]
from = ["ep1", "203.0.113.0/24"]
to = ["event-processor", "10.0.0.10"]
"#;
    assert_eq!(verdict(more, "ep2", Ingress, "10.0.0.21", "9102/tcp"), Allowed);
    assert_eq!(verdict(more, "ep2", Ingress, "203.0.113.9", "45000/udp"), Allowed);
    assert_eq!(verdict(more, "ep2", Ingress, "10.0.0.23", "9102/tcp"), Denied);
    assert_eq!(verdict(more, "main", Ingress, "10.0.0.21", "9102/tcp"), Allowed);
    assert_eq!(verdict(more, "ep1", Egress, "10.0.0.10", "9102/tcp"), Allowed);
    assert_eq!(verdict(more, "ep2", Egress, "10.0.0.10", "9102/tcp"), Denied);
}

#[test]
fn a_denial_says_what_would_have_to_change() {
    let explanation = explained("", "ep1", Ingress, "198.51.100.3", "514/udp");
    let misses: Vec<_> = explanation.near_misses.iter().filter_map(|miss| miss.remedy.as_deref()).collect();
    assert!(misses.contains(&"add \"198.51.100.3\" to log-source in [groups]"), "{misses:?}");
    let switched_off = explained("[row.syslog]\nenabled = false\n", "ep1", Ingress, "198.51.100.1", "514/udp");
    assert_eq!(switched_off.verdict, Denied);
    assert!(switched_off.near_misses.iter().any(|miss| miss.why.contains("switches the row off")));
    let granted = explained("", "ep1", Ingress, "198.51.100.1", "514/udp");
    let [Grant::Row { row, group, line, .. }] = granted.grants.as_slice() else { panic!("{granted:?}") };
    assert_eq!((row.as_str(), group.as_str(), *line), ("syslog", "log-source", Some(7)));
}

#[test]
fn a_lock_out_is_noticed() {
    let catalogue = Catalogue::embedded();
    let locks_out = |text: &str| {
        let loaded = Policy::parse(text, "policy.toml", catalogue).unwrap();
        Plan::new(&loaded.policy, catalogue, &loaded.policy.hosts["ep1"]).locks_out_admin()
    };
    assert!(!locks_out(DEPLOYMENT));
    assert!(locks_out(&DEPLOYMENT.replace("admin = ", "user = ")));
    assert!(!locks_out(&format!("allow-lockout = true\n{}", DEPLOYMENT.replace("admin = ", "user = "))));
    assert!(locks_out(&format!("{DEPLOYMENT}[row.ssh]\nenabled = false\n")));
    assert!(locks_out(&format!("{DEPLOYMENT}[row.ssh]\nonly-from = [\"10.0.0.0/8\"]\n")));
    assert!(!locks_out(&format!(
        "{DEPLOYMENT}[row.ssh]\nenabled = false\n[[allow]]\nname = \"ssh\"\nports = [\"1-100/tcp\"]\n\
         from = [\"admin\"]\nto = [\"appliance\"]\n"
    )));
}

fn ruleset(text: &str, host: &str) -> crate::ruleset::Ruleset {
    let catalogue = Catalogue::embedded();
    let loaded = Policy::parse(text, "policy.toml", catalogue).unwrap();
    Plan::new(&loaded.policy, catalogue, &loaded.policy.hosts[host]).ruleset()
}

#[test]
fn a_peer_more_is_one_element_of_each_set_of_its_groups() {
    use crate::ruleset::diff::{Change, diff};
    let before = ruleset(DEPLOYMENT, "main");
    let after = ruleset(&DEPLOYMENT.replace("\"198.51.100.2\"", "\"198.51.100.2\", \"198.51.100.3\""), "main");
    let expected =
        Change::AddElements("peers_log_source_v4".into(), Set::Ipv4Addresses(vec![Ipv4Addr::new(198, 51, 100, 3)]));
    assert_eq!(diff(Some(&before), Some(&after)), [expected]);
}

#[test]
fn observing_differs_from_enforcing_in_the_last_word_only() {
    use crate::ruleset::diff::{Change, diff};
    let enforced = ruleset(DEPLOYMENT, "main");
    let observed = ruleset(&format!("mode = \"observe\"\n{DEPLOYMENT}"), "main");
    for change in diff(Some(&enforced), Some(&observed)) {
        match change {
            Change::SetChainPolicy(name, _) => assert_eq!(&*name, "input"),
            Change::AddSet(name, set, _) => assert!(name.starts_with("observed_") && set.record().is_some()),
            Change::AddChain(name, None) => assert!(name.starts_with("observed_")),
            Change::AddRule { chain, rule, .. } => {
                assert!(chain.starts_with("denied_") || chain.starts_with("observed_"));
                assert_ne!(rule.statements, [Statement::Counter]);
            }
            Change::DeleteRule { chain, index } => {
                assert!(chain.starts_with("denied_"));
                assert_ne!(enforced.chains[&chain].rules[index].statements, [Statement::Counter]);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_jumps_or_looks_up_finds_what_it_names() {
    for text in [DEPLOYMENT.to_owned(), format!("deny = \"reject\"\n{DEPLOYMENT}")] {
        for host in ["main", "ep1", "ep2", "ep2b"] {
            let ruleset = ruleset(&text, host);
            let mut kernel = crate::kernel::FakeKernel::new(None);
            let changes = crate::ruleset::diff::diff(None, Some(&ruleset));
            crate::kernel::Kernel::commit(&mut kernel, &changes, 1).unwrap();
            for name in ruleset.sets.keys().chain(ruleset.chains.keys()).chain(ruleset.maps.keys()) {
                assert!(name.len() < 256 && name.starts_with(|first: char| first.is_ascii_lowercase()), "{name}");
            }
        }
    }
}

#[test]
fn a_very_large_set_is_made_for_twice_what_it_holds_and_is_replaced_when_it_outgrows_that() {
    use crate::ruleset::diff::{Change, diff};
    let with = |count: u32| {
        let addresses: Vec<_> =
            (0..count).map(|number| format!("\"{}\"", Ipv4Addr::from_bits(0x0b00_0000 + number))).collect();
        let text = DEPLOYMENT.replace("\"198.51.100.1\", \"198.51.100.2\"", &addresses.join(", "));
        ruleset(&text, "main")
    };
    let (small, large, larger) = (with(16_384), with(16_385), with(32_769));
    assert!(small.sizes.is_empty());
    assert_eq!(large.sizes.iter().collect::<Vec<_>>(), [(&"peers_log_source_v4.65536".into(), &65_536)]);
    assert_eq!(larger.sizes.iter().collect::<Vec<_>>(), [(&"peers_log_source_v4.131072".into(), &131_072)]);
    for (before, after) in [(&small, &large), (&large, &larger), (&larger, &small)] {
        let changes = diff(Some(before), Some(after));
        assert!(!changes.contains(&Change::DeleteTable));
        let mut kernel = crate::kernel::FakeKernel::new(Some(before.clone()));
        crate::kernel::Kernel::commit(&mut kernel, &changes, 1).unwrap();
        assert_eq!(kernel.snapshot.table.as_ref(), Some(after));
    }
}

#[test]
fn a_port_of_several_rows_has_one_chain_for_all_of_them() {
    let text = format!(
        "{DEPLOYMENT}\n[[allow]]\nname = \"jump\"\nports = [\"22/tcp\"]\nfrom = [\"10.9.0.1\"]\nto = [\"appliance\"]\n"
    );
    let ruleset = ruleset(&text, "main");
    let element = |map: &str, port| {
        let elements = &ruleset.maps[map].elements;
        elements.iter().find(|(ports, _)| ports.contains(port)).map(|(_, verdict)| verdict.clone())
    };
    assert_eq!(element("services_tcp", 22), Some(RuleVerdict::Jump("in_ssh/allow.jump".into())));
    // Large ranges are looked up after single ports, so that both count.
    assert_eq!(element("services_tcp", 32006), Some(RuleVerdict::Jump("in_ariel_query".into())));
    assert_eq!(element("ranges_tcp", 32006), Some(RuleVerdict::Jump("in_data_streams".into())));
    assert_eq!(element("services_tcp", 32100), None);
    assert_eq!(element("ranges_tcp", 34000), None);
}

#[test]
fn very_many_rows_on_a_port_still_have_a_name() {
    let mut text = DEPLOYMENT.to_owned();
    for number in 0..100 {
        text.push_str(&format!(
            "[[allow]]\nname = \"a-rather-long-name-{number}\"\nports = [\"4444/tcp\"]\nfrom = [\"10.9.0.{number}\"]\n\
             to = [\"appliance\"]\n"
        ));
    }
    let ruleset = ruleset(&text, "main");
    assert!(ruleset.chains.keys().all(|name| name.len() <= 255));
    let chain = ruleset.chains.iter().find(|(name, _)| name.starts_with("in_allow.a_rather_long_name_0/")).unwrap();
    assert_eq!(chain.1.rules.len(), 100);
}

#[test]
fn a_host_finds_itself_by_name_address_or_host_name() {
    let catalogue = Catalogue::embedded();
    let loaded = Policy::parse(DEPLOYMENT, "policy.toml", catalogue).unwrap();
    let find = |wanted, local: &[&str], hostname| {
        let local: Vec<IpAddr> = local.iter().map(|address| address.parse().unwrap()).collect();
        find_host(&loaded.policy, wanted, &local, hostname).map(|host| host.name.clone())
    };
    assert_eq!(find(Some("ep2"), &["10.0.0.21"], "ep1").unwrap(), "ep2");
    assert_eq!(find(None, &["127.0.0.1", "10.0.0.21"], "main").unwrap(), "ep1");
    assert_eq!(find(None, &["127.0.0.1"], "ep2.example.com").unwrap(), "ep2");
    assert!(matches!(find(None, &[], "stranger"), Err(HostError::None { candidates, .. }) if candidates.len() == 4));
    let several = find(None, &["10.0.0.21", "10.0.0.22"], "ep1");
    assert!(matches!(several, Err(HostError::Several { candidates }) if candidates.len() == 2));
    assert!(matches!(find(Some("ep9"), &[], ""), Err(HostError::Unknown { .. })));
}
