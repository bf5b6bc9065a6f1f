//! What every host needs whatever the policy opens, packets whose port or destination is rewritten on the way, and the
//! ways of denying.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use nix::errno::Errno;
use portward_integration_tests::lab::INTERFACE;
use portward_integration_tests::listen::{Responder, Seen};
use portward_integration_tests::nflog::Reader;
use portward_integration_tests::probe::{
    PATIENCE, QUIET, converse, exchange, next_number, one, one_denied, send_datagrams,
};
use portward_integration_tests::{Host, HostSpec, Kind, Lab, Outcome, Probe, counters, portward};
use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::Duration;

/// A console with its firewall, somebody who may reach its web page and send it syslog, and a stranger.
struct Scene {
    lab: Lab,
}

const HOST: [&str; 2] = ["10.0.0.10", "fd00::10"];
const FRIEND: [&str; 2] = ["192.0.2.10", "2001:db8::10"];
const STRANGER: [&str; 2] = ["203.0.113.9", "2001:db8:bad::9"];

impl Scene {
    fn new() -> Result<Self> {
        Self::with(&[])
    }

    fn with(more: &[HostSpec]) -> Result<Self> {
        let mut specs = vec![
            HostSpec::new("console", &HOST),
            HostSpec::new("friend", &FRIEND),
            HostSpec::new("stranger", &STRANGER),
        ];
        specs.extend_from_slice(more);
        Ok(Self { lab: Lab::new(&specs)? })
    }

    /// Applies a policy that begins with these keys.
    fn apply(&self, keys: &str) -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("policy.toml");
        let policy = format!(
            "format = 1\n{keys}\n
             [groups]\nadmin = {FRIEND:?}\nuser = {FRIEND:?}\nlog-source = {FRIEND:?}\n
             [[host]]\nname = \"console\"\naddresses = {HOST:?}\nroles = [\"console\"]\n"
        );
        fs::write(&path, policy)?;
        portward::apply(self.host(), &path, "console")
    }

    fn host(&self) -> &Host {
        self.lab.host("console")
    }

    fn friend(&self) -> &Host {
        self.lab.host("friend")
    }

    fn stranger(&self) -> &Host {
        self.lab.host("stranger")
    }
}

/// The addresses of two hosts by which they reach each other, for each family.
fn both_families(from: &Host, to: &Host) -> [(IpAddr, IpAddr); 2] {
    [(from.ipv4(), to.ipv4()), (from.ipv6(), to.ipv6())]
}

fn assert_reaches(from: &Host, to: &Host, kind: Kind, expected: bool) {
    for (source, target) in both_families(from, to) {
        let probe = Probe { from: source, to: target, kind };
        let outcome = if expected { one(from, probe) } else { one_denied(from, probe) };
        let wanted = if expected { Outcome::Passed } else { Outcome::Silent };
        assert_eq!(outcome, wanted, "{kind:?} from {} ({source}) to {target}", from.name());
    }
}

/// Whether datagrams from a host arrive at a responder on another one, over both families.
fn assert_datagrams(from: &Host, to: &Host, port: u16, responder: &Responder, expected: bool) {
    for (source, target) in both_families(from, to) {
        let number = send_datagrams(from, &[Probe { from: source, to: target, kind: Kind::Udp(port) }])[0];
        let patience = if expected { PATIENCE } else { QUIET };
        let arrived = responder.wait(patience, |seen| seen.numbers().contains(&number)).numbers().contains(&number);
        assert_eq!(arrived, expected, "datagram from {} ({source}) to {target}:{port}", from.name());
    }
}

const ENFORCE_BOTH: &str = "egress = \"enforce\"";

#[test]
fn loopback_is_always_allowed() -> Result<()> {
    let scene = Scene::new()?;
    scene.apply(ENFORCE_BOTH)?;
    let host = scene.host();
    let responder = Responder::with_echo(host, [1514, 9000], [1514], true)?;
    let own = ["127.0.0.1", "::1"].into_iter().chain(HOST).map(|address| address.parse::<IpAddr>());
    for address in own.collect::<Result<Vec<_>, _>>()? {
        for kind in [Kind::Tcp(1514), Kind::Tcp(9000), Kind::Echo] {
            assert_eq!(one(host, Probe { from: address, to: address, kind }), Outcome::Passed, "{kind:?} {address}");
        }
        assert_eq!(converse(host, address, address, 1514, true), Outcome::Passed, "{address}");
    }
    let all_four = |seen: &Seen| seen.connections.get(&9000).is_some_and(|connections| connections.len() == 4);
    assert!(all_four(&responder.seen_when(all_four)));
    assert_eq!(counters::packets_of(host, "denied_input")?, 0);
    assert_eq!(counters::packets_of(host, "denied_output")?, 0);
    Ok(())
}

#[test]
fn answers_to_what_the_host_began_come_in() -> Result<()> {
    let scene = Scene::new()?;
    scene.apply("")?;
    let (host, stranger) = (scene.host(), scene.stranger());
    let _responder = Responder::with_echo(stranger, [8443], [9999], true)?;
    assert_reaches(host, stranger, Kind::Tcp(8443), true);
    assert_reaches(host, stranger, Kind::Echo, true);
    for (from, to) in both_families(host, stranger) {
        assert_eq!(converse(host, from, to, 9999, true), Outcome::Passed, "{from} to {to}");
        // Nobody listens there: the error message is related to the datagram and must come in.
        assert_eq!(converse(host, from, to, 9998, true), Outcome::Refused(Errno::ECONNREFUSED), "{from} to {to}");
    }
    // The same stranger cannot begin anything.
    assert_reaches(stranger, host, Kind::Tcp(443), false);
    assert_reaches(stranger, host, Kind::Echo, false);
    Ok(())
}

#[test]
fn neighbours_are_discovered_under_enforcement() -> Result<()> {
    let scene = Scene::new()?;
    let _responder = Responder::start(scene.host(), [443], [])?;
    scene.apply(ENFORCE_BOTH)?;
    let flush =
        || [scene.host(), scene.friend()].iter().try_for_each(|host| host.ip(&format!("neigh flush dev {INTERFACE}")));
    for _ in 0..3 {
        flush()?;
        assert_reaches(scene.friend(), scene.host(), Kind::Tcp(443), true);
    }
    // The host asks too, when it is the one that begins: log sources may be reached by ssh.
    let _ssh = Responder::start(scene.friend(), [22], [])?;
    for _ in 0..3 {
        flush()?;
        assert_reaches(scene.host(), scene.friend(), Kind::Tcp(22), true);
    }
    Ok(())
}

/// A network behind a router whose link takes smaller packets.
#[test]
fn path_mtu_errors_come_in() -> Result<()> {
    let scene = Scene::with(&[
        HostSpec::new("router", &["203.0.113.1", "2001:db8:bad::1"]),
        HostSpec::new("far", &["203.0.113.201", "2001:db8:bad::201"]),
    ])?;
    let (host, router, far) = (scene.host(), scene.lab.host("router"), scene.lab.host("far"));
    router.set_parameter("net/ipv4/ip_forward", "1")?;
    router.set_parameter("net/ipv6/conf/all/forwarding", "1")?;
    let far_namespace = far.namespace();
    router.ip(&format!(
        "link add narrow type veth peer name narrow netns {far_namespace}\nlink set narrow mtu 1300 up\n\
         addr add 198.18.0.1/30 dev narrow\naddr add fd18::1/64 dev narrow nodad"
    ))?;
    far.ip("link set narrow mtu 1300 up\naddr add 198.18.0.2/30 dev narrow\naddr add fd18::2/64 dev narrow nodad\n\
         route replace default via 198.18.0.1\nroute replace ::/0 via fd18::1")?;
    host.ip("route add 198.18.0.0/30 via 203.0.113.1 dev eth0 onlink\nroute add fd18::/64 via 2001:db8:bad::1")?;
    let responder = Responder::with_echo(far, [], [9999], true)?;
    scene.apply("")?;
    for (from, to) in [(host.ipv4(), "198.18.0.2"), (host.ipv6(), "fd18::2")] {
        let to: IpAddr = to.parse()?;
        assert_eq!(converse(host, from, to, 9999, true), Outcome::Passed, "{from} to {to}");
        let route = || -> Result<String> {
            let output = host.output(std::process::Command::new("ip").args(["route", "get", &to.to_string()]))?;
            Ok(String::from_utf8(output.stdout)?)
        };
        assert!(!route()?.contains("mtu 1300"), "the path is not known yet");
        let socket = host.run(|| UdpSocket::bind((from, 0)))?;
        let mut known = false;
        for _ in 0..50 {
            // After the router's error the kernel knows the path, and fragments.
            let _ = socket.send_to(&[0; 1400], (to, 9999));
            std::thread::sleep(Duration::from_millis(20));
            known = route()?.contains("mtu 1300");
            if known {
                break;
            }
        }
        assert!(known, "{to}: the router's error did not come in: {}", route()?);
    }
    drop(responder);
    Ok(())
}

#[test]
fn answers_of_dhcp_servers_come_in() -> Result<()> {
    let scene = Scene::new()?;
    scene.apply("")?;
    let (host, stranger) = (scene.host(), scene.stranger());
    let responder = Responder::start(host, [], [68, 546])?;
    let arrives = |socket: UdpSocket, to: SocketAddr, expected: bool| -> Result<bool> {
        let number = next_number();
        socket.send_to(&number.to_be_bytes(), to)?;
        let patience = if expected { PATIENCE } else { QUIET };
        Ok(responder.wait(patience, |seen| seen.numbers().contains(&number)).numbers().contains(&number))
    };
    let bind = |address: SocketAddr| stranger.run(|| UdpSocket::bind(address)).context("a source port");

    let server = bind((stranger.ipv4(), 67).into())?;
    assert!(arrives(server, (host.ipv4(), 68).into(), true)?, "a DHCP server answers from port 67");
    let other = bind((stranger.ipv4(), 1067).into())?;
    assert!(!arrives(other, (host.ipv4(), 68).into(), false)?, "others do not");

    let (from, to) = (link_local(stranger)?, link_local(host)?);
    let scoped = |address, port| SocketAddr::from(SocketAddrV6::new(address, port, 0, from.1));
    let server = bind(scoped(from.0, 547))?;
    assert!(arrives(server, scoped(to.0, 546), true)?, "a DHCPv6 server answers from port 547");
    let other = bind(scoped(from.0, 1547))?;
    assert!(!arrives(other, scoped(to.0, 546), false)?, "others do not");
    let routed = bind((stranger.ipv6(), 547).into())?;
    assert!(!arrives(routed, (host.ipv6(), 546).into(), false)?, "only neighbours are DHCPv6 servers");
    Ok(())
}

/// The link-local address of a host's interface, and the interface's index.
fn link_local(host: &Host) -> Result<(Ipv6Addr, u32)> {
    let table = host.run(|| fs::read_to_string("/proc/thread-self/net/if_inet6"))?;
    for line in table.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [address, index, _, _, _, INTERFACE] = fields.as_slice() {
            let address = Ipv6Addr::from_bits(u128::from_str_radix(address, 16)?);
            if address.is_unicast_link_local() {
                return Ok((address, u32::from_str_radix(index, 16)?));
            }
        }
    }
    anyhow::bail!("{} has no link-local address:\n{table}", host.name())
}

/// The vendor documents a redirection of 514 to 517.
#[test]
fn a_redirected_port_follows_the_row_of_the_original_one() -> Result<()> {
    let scene = Scene::new()?;
    let (host, friend, stranger) = (scene.host(), scene.friend(), scene.stranger());
    host.nft(
        "table inet vendor { chain prerouting { type nat hook prerouting priority dstnat;
             meta l4proto { tcp, udp } th dport 514 redirect to :517; }; }",
    )?;
    let responder = Responder::start(host, [517], [517])?;
    scene.apply("")?;
    assert_reaches(friend, host, Kind::Tcp(514), true);
    assert_datagrams(friend, host, 514, &responder, true);
    assert_reaches(stranger, host, Kind::Tcp(514), false);
    assert_datagrams(stranger, host, 514, &responder, false);
    for from in [friend, stranger] {
        assert_reaches(from, host, Kind::Tcp(517), false);
        assert_datagrams(from, host, 517, &responder, false);
    }
    let seen = responder.seen();
    assert!(STRANGER.iter().all(|address| seen.connections_from(517, address.parse().expect("an address")) == 0));
    Ok(())
}

/// What docker does for a published port: a rewritten destination, and the packet is forwarded.
#[test]
fn a_published_container_port_follows_the_policy() -> Result<()> {
    let scene = Scene::with(&[HostSpec::new("container", &[])])?;
    let (host, friend, stranger) = (scene.host(), scene.friend(), scene.stranger());
    let container = scene.lab.host("container");
    host.set_parameter("net/ipv4/ip_forward", "1")?;
    host.set_parameter("net/ipv6/conf/all/forwarding", "1")?;
    host.ip(&format!(
        "link add docker0 type veth peer name docker0 netns {}\nlink set docker0 up\n\
         addr add 172.17.0.1/16 dev docker0\naddr add fd17::1/64 dev docker0 nodad",
        container.namespace()
    ))?;
    container.ip(&format!(
        "link set {INTERFACE} down\nlink set docker0 up\naddr add 172.17.0.2/16 dev docker0\n\
         addr add fd17::2/64 dev docker0 nodad\nroute replace default via 172.17.0.1\nroute replace ::/0 via fd17::1"
    ))?;
    stranger.ip("route add 172.17.0.0/16 via 10.0.0.10 dev eth0 onlink\nroute add fd17::/64 via fd00::10")?;
    host.nft(
        "table ip docker { chain published { type nat hook prerouting priority dstnat;
             tcp dport { 443, 9000 } dnat to 172.17.0.2:8443; udp dport 514 dnat to 172.17.0.2:5514; }; }
         table ip6 docker { chain published { type nat hook prerouting priority dstnat;
             tcp dport { 443, 9000 } dnat to [fd17::2]:8443; udp dport 514 dnat to [fd17::2]:5514; }; }",
    )?;
    let responder = Responder::start(container, [8443], [5514])?;
    scene.apply("")?;

    assert_reaches(friend, host, Kind::Tcp(443), true);
    assert_datagrams(friend, host, 514, &responder, true);
    // 9000 is published too, and a row of app hosts; nothing opens it here.
    assert_reaches(friend, host, Kind::Tcp(9000), false);
    assert_reaches(stranger, host, Kind::Tcp(443), false);
    assert_datagrams(stranger, host, 514, &responder, false);
    assert!(counters::packets_of(host, "denied_forward")? >= 6);
    let seen = responder.seen();
    assert!(STRANGER.iter().all(|address| seen.connections_from(8443, address.parse().expect("an address")) == 0));

    // What containers send is not portward's business.
    let _outside = Responder::start(stranger, [8080], [])?;
    for (from, to) in [("172.17.0.2".parse()?, stranger.ipv4()), ("fd17::2".parse()?, stranger.ipv6())] {
        assert_eq!(one(container, Probe { from, to, kind: Kind::Tcp(8080) }), Outcome::Passed, "{from} to {to}");
    }
    Ok(())
}

#[test]
fn rejected_packets_are_answered_at_once() -> Result<()> {
    let scene = Scene::new()?;
    let (host, friend, stranger) = (scene.host(), scene.friend(), scene.stranger());
    let responder = Responder::start(host, [443, 9000], [514])?;
    scene.apply("deny = \"reject\"\negress = \"enforce\"")?;
    assert_reaches(friend, host, Kind::Tcp(443), true);
    for (from, to) in both_families(stranger, host) {
        let probe = |kind| Probe { from, to, kind };
        let reset = Outcome::Refused(Errno::ECONNREFUSED);
        assert_eq!(one(stranger, probe(Kind::Tcp(443))), reset, "{from} to {to}");
        assert_eq!(one(stranger, probe(Kind::Tcp(9000))), reset, "{from} to {to}");
        // `admin-prohibited` as the sender's kernel tells it: icmp_err_convert (net/ipv4/icmp.c) and
        // icmpv6_err_convert (net/ipv6/icmp.c).
        let prohibited = if from.is_ipv4() { Errno::EHOSTUNREACH } else { Errno::EACCES };
        assert_eq!(converse(stranger, from, to, 514, true), Outcome::Refused(prohibited), "{from} to {to}");
    }
    let seen = responder.seen_when(|seen| !seen.connections.is_empty());
    assert!(seen.datagrams.is_empty());
    assert_eq!(seen.connections.keys().collect::<Vec<_>>(), [&443]);

    // What the host itself may not send fails at once too.
    for (from, to) in both_families(host, stranger) {
        let outcome = one(host, Probe { from, to, kind: Kind::Tcp(9999) });
        assert!(matches!(outcome, Outcome::Refused(_)), "{from} to {to}: {outcome:?}");
    }
    Ok(())
}

#[test]
fn observing_passes_everything_and_counts_it() -> Result<()> {
    let scene = Scene::new()?;
    let (host, stranger) = (scene.host(), scene.stranger());
    let responder = Responder::start(host, [443, 9000], [514])?;
    let _outside = Responder::start(stranger, [8443], [])?;
    scene.apply("mode = \"observe\"\negress = \"observe\"")?;
    let denied = |chain| counters::packets_of(host, chain);
    assert_reaches(stranger, host, Kind::Tcp(443), true);
    assert_reaches(stranger, host, Kind::Tcp(9000), true);
    assert_reaches(stranger, host, Kind::Echo, true);
    assert_datagrams(stranger, host, 514, &responder, true);
    assert!(denied("denied_input")? >= 8, "{} packets counted", denied("denied_input")?);
    assert_reaches(host, stranger, Kind::Tcp(8443), true);
    assert!(denied("denied_output")? >= 2, "{} packets counted", denied("denied_output")?);

    // From observing to enforcing is a change in the living table: the counters go on.
    let before = denied("denied_input")?;
    scene.apply("mode = \"enforce\"\negress = \"observe\"")?;
    assert!(denied("denied_input")? >= before);
    assert_reaches(stranger, host, Kind::Tcp(443), false);
    assert_reaches(host, stranger, Kind::Tcp(8443), true);
    scene.apply("mode = \"observe\"\negress = \"observe\"")?;
    assert!(denied("denied_input")? > before);
    assert_reaches(stranger, host, Kind::Tcp(443), true);
    Ok(())
}

#[test]
fn denied_packets_are_logged_at_a_limited_rate_and_all_counted() -> Result<()> {
    const PACKETS: usize = 400;
    let scene = Scene::new()?;
    let (host, stranger) = (scene.host(), scene.stranger());
    scene.apply("[log]\nto = \"nflog\"\ngroup = 9\nrate = 1\nburst = 5")?;
    let reader = Reader::open(host, 9)?;
    let probes: Vec<Probe> = (0..PACKETS)
        .map(|index| {
            let (from, to) = both_families(stranger, host)[index % 2];
            Probe { from, to, kind: Kind::Echo }
        })
        .collect();
    let started = std::time::Instant::now();
    assert!(exchange(stranger, &probes, |_| false).iter().all(|outcome| *outcome == Outcome::Silent));
    // The kernel hands messages over in batches, after at most a second (NFULNL_TIMEOUT_DEFAULT).
    let packets = reader.packets(PACKETS, Duration::from_secs(3))?;
    let seconds = usize::try_from(started.elapsed().as_secs())? + 1;
    for packet in &packets {
        assert_eq!(packet.prefix, "portward denied input: ");
        // The packet itself is there too, so that a reader can tell who sent it.
        assert!(packet.packet.len() >= 28, "{} bytes of the packet", packet.packet.len());
    }
    assert!((1..=5 + seconds).contains(&packets.len()), "{} messages in {seconds} s", packets.len());
    assert!(counters::packets_of(host, "denied_input")? >= u64::try_from(PACKETS)?);
    Ok(())
}
