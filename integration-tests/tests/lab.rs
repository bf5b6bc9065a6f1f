//! The laboratory itself: what the other tests conclude from a probe holds.
#![forbid(unsafe_code)]

use anyhow::Result;
use nix::errno::Errno;
use portward_integration_tests::lab::INTERFACE;
use portward_integration_tests::listen::Responder;
use portward_integration_tests::nflog::Reader;
use portward_integration_tests::probe::{PATIENCE, exchange, one, one_denied, send_datagrams};
use portward_integration_tests::{Host, HostSpec, Kind, Lab, Outcome, Probe, counters};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

fn two_hosts() -> Result<Lab> {
    Lab::new(&[
        HostSpec::new("left", &["10.0.0.1", "fd00::1", "192.0.2.7", "2001:db8::7"]),
        HostSpec::new("right", &["10.0.0.2", "fd00::2"]),
    ])
}

fn pairs(left: &Host, right: &Host) -> Vec<(IpAddr, IpAddr)> {
    let pair = |&from: &IpAddr| (from, if from.is_ipv4() { right.ipv4() } else { right.ipv6() });
    left.addresses().iter().map(pair).collect()
}

#[test]
fn packets_of_all_kinds_arrive_from_every_address() -> Result<()> {
    let lab = two_hosts()?;
    let (left, right) = (lab.host("left"), lab.host("right"));
    let responder = Responder::start(right, [22, 443], [514])?;
    for (from, to) in pairs(left, right) {
        assert_eq!(one(left, Probe { from, to, kind: Kind::Tcp(22) }), Outcome::Passed, "{from} to {to}");
        assert_eq!(one(left, Probe { from, to, kind: Kind::Echo }), Outcome::Passed, "{from} to {to}");
        let closed = one(left, Probe { from, to, kind: Kind::Tcp(23) });
        assert_eq!(closed, Outcome::Refused(Errno::ECONNREFUSED), "{from} to {to}");
        let number = send_datagrams(left, &[Probe { from, to, kind: Kind::Udp(514) }])[0];
        let seen = responder.wait(PATIENCE, |seen| seen.numbers().contains(&number));
        assert!(seen.numbers().contains(&number), "{from} to {to}: the datagram is lost");
        assert_eq!(seen.connections_from(22, from), 1, "{from} to {to}");
    }
    Ok(())
}

#[test]
fn a_dropped_probe_is_silent_and_never_seen_by_the_listener() -> Result<()> {
    let lab = two_hosts()?;
    let (left, right) = (lab.host("left"), lab.host("right"));
    let responder = Responder::start(right, [22], [514])?;
    right.nft(
        "table inet portward { chain denied_input { counter drop; }
         chain input { type filter hook input priority 0; ct state established accept
             meta l4proto ipv6-icmp icmpv6 type != echo-request accept
             tcp dport 22 ip saddr 10.0.0.1 accept; jump denied_input; }; }",
    )?;
    let mut probes = Vec::new();
    let mut datagrams = Vec::new();
    for (from, to) in pairs(left, right) {
        probes.extend([Kind::Tcp(22), Kind::Tcp(23), Kind::Echo].map(|kind| Probe { from, to, kind }));
        datagrams.push(Probe { from, to, kind: Kind::Udp(514) });
    }
    let allowed = |probe: &Probe| probe.from == left.ipv4() && probe.kind == Kind::Tcp(22);
    let outcomes = exchange(left, &probes, allowed);
    send_datagrams(left, &datagrams);
    for (probe, outcome) in probes.iter().zip(outcomes) {
        assert_eq!(outcome, if allowed(probe) { Outcome::Passed } else { Outcome::Silent }, "{probe:?}");
    }
    let seen = responder.seen();
    assert_eq!(seen.connections.values().map(Vec::len).sum::<usize>(), 1);
    assert!(seen.datagrams.is_empty());
    assert!(counters::packets_of(right, "denied_input")? >= 11 + 4);
    Ok(())
}

#[test]
fn neighbours_are_found_again_after_their_cache_is_flushed() -> Result<()> {
    let lab = two_hosts()?;
    let (left, right) = (lab.host("left"), lab.host("right"));
    for (from, to) in pairs(left, right) {
        for host in [left, right] {
            host.ip(&format!("neigh flush dev {INTERFACE}"))?;
        }
        assert_eq!(one(left, Probe { from, to, kind: Kind::Echo }), Outcome::Passed, "{from} to {to}");
    }
    Ok(())
}

#[test]
fn logged_packets_are_read_from_their_group() -> Result<()> {
    let lab = two_hosts()?;
    let (left, right) = (lab.host("left"), lab.host("right"));
    right.nft(
        "table inet t { chain c { type filter hook input priority 0;
             tcp dport 22 log prefix \"found \" group 7 drop; }; }",
    )?;
    let reader = Reader::open(right, 7)?;
    one_denied(left, Probe { from: left.ipv4(), to: right.ipv4(), kind: Kind::Tcp(22) });
    let packets = reader.packets(1, PATIENCE)?;
    assert_eq!(packets[0].prefix, "found ");
    // An IPv4 header ends with source and destination.
    assert_eq!(packets[0].packet.get(12..20), Some(&[10, 0, 0, 1, 10, 0, 0, 2][..]));
    one_denied(left, Probe { from: left.ipv4(), to: right.ipv4(), kind: Kind::Tcp(23) });
    assert_eq!(reader.packets(1, Duration::from_millis(200))?, []);
    Ok(())
}

#[test]
fn namespaces_go_with_the_laboratory_even_when_a_test_panics() -> Result<()> {
    let lab = two_hosts()?;
    let names: Vec<_> = lab.hosts().iter().map(|host| Path::new("/run/netns").join(host.namespace())).collect();
    assert!(names.iter().all(|name| name.exists()));
    let result = catch_unwind(AssertUnwindSafe(move || {
        let _lab = lab;
        panic!("a test that fails");
    }));
    assert!(result.is_err());
    assert_eq!(names.len(), 2);
    assert!(names.iter().all(|name| !name.exists()));
    Ok(())
}
