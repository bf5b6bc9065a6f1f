//! Flows that go on although the policy has become tighter: found, listed, and ended on the real kernel.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use nix::errno::Errno;
use portward::daemon::flows::{Cut, Cutter, FlowReader, cut_closed, cut_denied};
use portward::kernel::Conntrack;
use portward::kernel::conntrack::{Flow, FlowKey};
use portward::plan::{DynamicPorts, LocalScope, OpenPort, OpenPorts, Plan};
use portward::policy::{Catalogue, Policy};
use portward::ruleset::Protocol;
use portward_integration_tests::portward::{Answer, Daemon, apply, portward, text};
use portward_integration_tests::{Host, HostSpec, Lab};
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const CONSOLE: [&str; 2] = ["10.0.0.10", "fd00::10"];
const FRIEND: [&str; 2] = ["192.0.2.10", "2001:db8::10"];
const OTHER: [&str; 2] = ["192.0.2.11", "2001:db8::11"];

/// How long something may take to become true.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long nothing has to be heard until a connection counts as dead: TCP retransmits after 200 ms and 600 ms.
const QUIET: Duration = Duration::from_millis(1500);

/// A console and two who may use its web page, of whom one shall lose that right.
struct Scene {
    lab: Lab,
    folder: TempDir,
}

impl Scene {
    fn new() -> Result<Self> {
        let lab = Lab::new(&[
            HostSpec::new("console", &CONSOLE),
            HostSpec::new("friend", &FRIEND),
            HostSpec::new("other", &OTHER),
        ])?;
        Ok(Self { lab, folder: tempfile::tempdir()? })
    }

    fn console(&self) -> &Host {
        self.lab.host("console")
    }

    fn friend(&self) -> &Host {
        self.lab.host("friend")
    }

    /// A policy with these keys that lets these addresses use the web page and send syslog.
    fn policy(&self, keys: &str, users: &[&str]) -> Result<PathBuf> {
        let path = self.folder.path().join("policy.toml");
        fs::write(&path, policy_text(keys, users))?;
        Ok(path)
    }

    fn apply(&self, keys: &str, users: &[&str]) -> Result<PathBuf> {
        let path = self.policy(keys, users)?;
        apply(self.console(), &path, "console")?;
        Ok(path)
    }

    /// Asks the daemon whose folder is this scene's.
    fn ask(&self, arguments: &[&str]) -> Result<Answer> {
        let socket = self.folder.path().join("control.sock");
        portward(self.console(), &[arguments, &["--control-socket", text(&socket)?]].concat())
    }

    fn flows(&self, arguments: &[&str]) -> Result<Answer> {
        let path = self.folder.path().join("policy.toml");
        let mut all = vec!["flows", "--policy", text(&path)?];
        all.extend_from_slice(arguments);
        portward(self.console(), &all)
    }

    fn flows_json(&self, arguments: &[&str], code: i32) -> Result<Value> {
        let mut all = vec!["--json"];
        all.extend_from_slice(arguments);
        let answer = self.flows(&all)?;
        assert_eq!(answer.code, code, "{}{}", answer.stdout, answer.stderr);
        Ok(serde_json::from_str(&answer.stdout)?)
    }
}

fn policy_text(keys: &str, users: &[&str]) -> String {
    format!(
        "format = 1\n{keys}\n[groups]\nadmin = [\"198.51.100.1\"]\nuser = {users:?}\nlog-source = {users:?}\n\
         [[host]]\nname = \"console\"\naddresses = {CONSOLE:?}\nroles = [\"console\"]\n"
    )
}

fn everybody() -> Vec<&'static str> {
    FRIEND.into_iter().chain(OTHER).collect()
}

/// A connection from one host to another, both ends.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn open(client: &Host, server: &Host, to: IpAddr, port: u16) -> Result<Self> {
        let listener = server.run(|| TcpListener::bind(SocketAddr::new(to, port)))?;
        let stream = client.run(|| TcpStream::connect_timeout(&SocketAddr::new(to, port), PATIENCE))?;
        let (accepted, _) = listener.accept()?;
        for end in [&stream, &accepted] {
            end.set_nodelay(true)?;
        }
        let mut connection = Self { client: stream, server: accepted };
        assert!(connection.client_reaches()? && connection.server_reaches()?, "a fresh connection carries data");
        Ok(connection)
    }

    fn client_reaches(&mut self) -> Result<bool> {
        reaches(&mut self.client, &mut self.server)
    }

    fn server_reaches(&mut self) -> Result<bool> {
        reaches(&mut self.server, &mut self.client)
    }
}

/// Whether a byte that one end sends arrives at the other.
fn reaches(from: &mut TcpStream, to: &mut TcpStream) -> Result<bool> {
    if from.write_all(b"x").is_err() {
        return Ok(false);
    }
    to.set_read_timeout(Some(QUIET))?;
    Ok(matches!(to.read(&mut [0; 1]), Ok(1)))
}

/// The flows of a host in its own connection tracking that are about this port.
fn tracked(host: &Host, port: u16) -> Result<Vec<Flow>> {
    host.run(|| {
        let mut found = Vec::new();
        Conntrack::open()?.flows(|flow| {
            if matches!(flow.original.key, FlowKey::Ports { destination, .. } if destination == port) {
                found.push(*flow);
            }
            Ok(())
        })?;
        Ok(found)
    })
}

const ONLY_KNOWN: &str = "table inet only_known {
    chain input { type filter hook input priority 0; policy drop; ct state established accept; meta l4proto icmpv6 accept; }
}";
const ALL: &str = "table inet only_known { chain input { tcp dport 8080 accept; }; }";

#[test]
fn packets_of_a_deleted_flow_are_judged_anew() -> Result<()> {
    let scene = Scene::new()?;
    let (console, friend) = (scene.console(), scene.friend());
    for to in [console.ipv4(), console.ipv6()] {
        console.nft(ONLY_KNOWN)?;
        console.nft(ALL)?;
        let mut connection = Connection::open(friend, console, to, 8080)?;
        console.nft("delete table inet only_known")?;
        console.nft(ONLY_KNOWN)?;
        assert!(connection.client_reaches()?, "an established flow goes on under the new rules");

        // An acknowledgement that is still to come would make the flow known again: see the next test.
        thread::sleep(QUIET);
        let [flow] = tracked(console, 8080)?[..] else { panic!("not one flow") };
        assert_eq!((flow.protocol, flow.original.destination), (6, to));
        assert_eq!(flow.state(), "established");
        assert!(flow.status.is_assured() && flow.status.has_seen_reply());
        let delete = |flow: &Flow| console.run(|| Conntrack::open()?.delete(flow));
        let newer = Flow { id: flow.id ^ 1, ..flow };
        assert_eq!(delete(&newer), Ok(false), "another flow of the same addresses is not hit");
        assert_eq!(tracked(console, 8080)?.len(), 1);
        assert_eq!(delete(&flow), Ok(true));
        assert_eq!(delete(&flow), Ok(false));
        assert_eq!(tracked(console, 8080)?, []);

        // The kernel picks connections up in their middle, so the packets are new ones to the rules, not invalid ones.
        assert!(!connection.client_reaches()?, "a packet of a deleted flow passed");
        assert_eq!(tracked(console, 8080)?, []);
        console.nft("delete table inet only_known")?;
    }
    Ok(())
}

/// What the cutter destroys sockets for: were it not so, to forget a flow would be enough.
#[test]
fn the_next_packet_of_this_host_makes_a_forgotten_connection_known_again() -> Result<()> {
    let scene = Scene::new()?;
    let (console, friend) = (scene.console(), scene.friend());
    scene.apply("", &everybody())?;
    let mut connection = Connection::open(friend, console, console.ipv4(), 443)?;
    scene.apply("", &OTHER)?;
    let [flow] = tracked(console, 443)?[..] else { panic!("no flow") };
    assert_eq!(console.run(|| Conntrack::open()?.delete(&flow)), Ok(true));
    assert!(connection.server_reaches()?, "what leaves is not looked at");
    assert!(connection.client_reaches()?, "the kernel takes the client's packets for replies");
    Ok(())
}

#[test]
fn a_tighter_policy_lists_what_goes_on_and_cuts_it() -> Result<()> {
    let scene = Scene::new()?;
    let (console, friend, other) = (scene.console(), scene.friend(), scene.lab.host("other"));
    for (to, is_sending) in [(console.ipv4(), false), (console.ipv4(), true), (console.ipv6(), false)] {
        scene.apply("", &everybody())?;
        let mut denied = Connection::open(friend, console, to, 443)?;
        let mut allowed = Connection::open(other, console, to, 443)?;
        let before = scene.flows(&[])?;
        assert_eq!(before.code, 0, "{}", before.stdout);
        assert!(before.stdout.contains("none denied") && before.stdout.contains("row https"), "{}", before.stdout);

        scene.apply("", &OTHER)?;
        assert!(denied.client_reaches()?, "an established flow goes on under a tighter policy");
        let listed = scene.flows(&["--denied"])?;
        assert_eq!(listed.code, 1, "{}{}", listed.stdout, listed.stderr);
        let peer = denied.client.local_addr()?.to_string();
        assert!(listed.stdout.contains(", 1 denied\n") && listed.stdout.contains(&peer), "{}", listed.stdout);
        let why = format!("`portward explain --from {} --port 443/tcp`", denied.client.local_addr()?.ip());
        assert!(listed.stdout.contains(&why), "{}", listed.stdout);
        let answer = scene.flows_json(&["--denied"], 1)?;
        assert_eq!((&answer["denied"]["denied"], &answer["denied"]["cut"]), (&1.into(), &0.into()));
        assert_eq!(answer["denied"]["groups"][0]["port"], "443/tcp");
        assert_eq!(answer["listed"][0]["state"], "established");
        assert_eq!(answer["listed"][0]["allowed_by"], Value::Null);

        let cut = scene.flows(&["--cut"])?;
        assert_eq!((cut.code, cut.stderr.as_str()), (0, ""), "{}", cut.stdout);
        assert!(cut.stdout.contains("1 denied, 1 cut\n"), "{}", cut.stdout);
        if is_sending {
            assert!(!denied.server_reaches()?);
        }
        assert!(!denied.client_reaches()?);
        let error = denied.client.take_error()?.or_else(|| denied.client.write(b"x").err()).context("no error")?;
        assert!(
            error.raw_os_error() == Some(Errno::EPIPE as i32) || error.raw_os_error() == Some(Errno::ECONNRESET as i32),
            "{error}"
        );
        assert!(allowed.client_reaches()? && allowed.server_reaches()?, "what is allowed goes on");
        assert_eq!(scene.flows(&["--denied"])?.code, 0);
        assert_eq!(scene.flows(&["--cut"])?.code, 0);
    }
    Ok(())
}

#[test]
fn the_service_that_is_cut_off_from_one_goes_on_for_others() -> Result<()> {
    let scene = Scene::new()?;
    let (console, friend) = (scene.console(), scene.friend());
    scene.apply("", &everybody())?;
    let address = SocketAddr::new(console.ipv4(), 443);
    let listener = console.run(|| TcpListener::bind(address))?;
    let client = friend.run(|| TcpStream::connect_timeout(&address, PATIENCE))?;
    let (accepted, _) = listener.accept()?;
    // The server closes: a flow without a socket, for which the kernel would find the one that listens.
    drop(accepted);
    drop(client);
    scene.apply("", &OTHER)?;
    let loaded = Policy::parse(&policy_text("", &OTHER), "policy.toml", Catalogue::embedded())?;
    let plan = Plan::new(&loaded.policy, Catalogue::embedded(), &loaded.policy.hosts["console"]);
    console.run(|| -> Result<()> {
        let judge = plan.flow_judge(DynamicPorts::Possible, console.addresses());
        let (mut reader, mut cutter) = (FlowReader::open(&judge)?, Cutter::open()?);
        for flow in tracked(console, 443)? {
            let seen = reader.judge(&flow)?;
            assert_ne!(cutter.cut(&flow, &seen)?, Cut::Revivable);
            assert_eq!(cutter.cut(&flow, &seen)?, Cut::Gone);
        }
        Ok(())
    })?;
    let other = scene.lab.host("other");
    other.run(|| TcpStream::connect_timeout(&address, PATIENCE)).context("the listening socket is gone")?;
    listener.accept()?;
    Ok(())
}

#[test]
fn a_policy_that_observes_cuts_nothing() -> Result<()> {
    let scene = Scene::new()?;
    let (console, friend) = (scene.console(), scene.friend());
    scene.apply("", &everybody())?;
    let mut connection = Connection::open(friend, console, console.ipv4(), 443)?;
    scene.apply("mode = \"observe\"", &OTHER)?;
    let answer = scene.flows(&["--cut"])?;
    assert_eq!(answer.code, 1, "{}", answer.stdout);
    assert!(answer.stdout.contains("1 denied, 0 cut"), "{}", answer.stdout);
    assert!(answer.stderr.contains("1 flow not ended: the policy only observes"), "{}", answer.stderr);
    assert!(connection.client_reaches()? && connection.server_reaches()?);
    Ok(())
}

#[test]
fn datagrams_and_rewritten_connections_are_cut_too() -> Result<()> {
    let scene = Scene::new()?;
    let (console, friend) = (scene.console(), scene.friend());
    scene.apply("", &everybody())?;
    console.nft(
        "table ip rewritten {
            chain p { type nat hook prerouting priority -100; tcp dport 443 redirect to :8443; }
        }",
    )?;
    let to = console.ipv4();
    let listener = console.run(|| TcpListener::bind(SocketAddr::new(to, 8443)))?;
    let client = friend.run(|| TcpStream::connect_timeout(&SocketAddr::new(to, 443), PATIENCE))?;
    let mut connection = Connection { client, server: listener.accept()?.0 };
    let syslog = console.run(|| UdpSocket::bind(SocketAddr::new(to, 514)))?;
    let source = friend.run(|| UdpSocket::bind(SocketAddr::new(friend.ipv4(), 0)))?;
    source.send_to(b"x", SocketAddr::new(to, 514))?;
    let (_, peer) = syslog.recv_from(&mut [0; 1])?;
    // An answer makes the flow a known one, whose datagrams the rules do not ask about.
    syslog.send_to(b"y", peer)?;
    source.set_read_timeout(Some(PATIENCE))?;
    source.recv_from(&mut [0; 1])?;

    scene.apply("", &OTHER)?;
    let answer = scene.flows_json(&["--denied"], 1)?;
    assert_eq!(answer["denied"]["denied"], 2, "{answer:#}");
    let rewritten =
        answer["listed"].as_array().and_then(|lines| lines.iter().find(|line| line["rewritten_from"] == 443));
    assert_eq!(rewritten.context("no rewritten flow")?["port"], "8443/tcp");
    source.send_to(b"x", SocketAddr::new(to, 514))?;
    syslog.set_read_timeout(Some(PATIENCE))?;
    syslog.recv_from(&mut [0; 1]).context("a known flow goes on")?;

    let answer = scene.flows_json(&["--cut"], 0)?;
    assert_eq!((&answer["denied"]["cut"], &answer["denied"]["revivable"]), (&2.into(), &0.into()));
    assert!(!connection.server_reaches()? && !connection.client_reaches()?);
    source.send_to(b"x", SocketAddr::new(to, 514))?;
    syslog.set_read_timeout(Some(QUIET))?;
    assert!(syslog.recv_from(&mut [0; 1]).is_err(), "a datagram of a cut flow passed");
    Ok(())
}

#[test]
fn what_this_host_sends_is_cut_when_egress_is_enforced() -> Result<()> {
    let scene = Scene::new()?;
    let (console, friend) = (scene.console(), scene.friend());
    scene.apply("", &everybody())?;
    let mut connection = Connection::open(console, friend, friend.ipv4(), 8080)?;
    let answer = scene.flows_json(&[], 0)?;
    assert_eq!(answer["listed"][0]["allowed_by"], "egress is off");
    scene.apply("egress = \"enforce\"", &everybody())?;
    assert!(connection.client_reaches()?);
    let answer = scene.flows_json(&["--cut"], 0)?;
    assert_eq!((&answer["listed"][0]["direction"], &answer["denied"]["cut"]), (&"out".into(), &1.into()));
    assert!(!connection.client_reaches()? && !connection.server_reaches()?);
    Ok(())
}

#[test]
fn a_closed_dynamic_port_loses_its_connections_and_no_other_port() -> Result<()> {
    let scene = Scene::new()?;
    let (console, friend) = (scene.console(), scene.friend());
    let opened =
        "[[allow]]\nname = \"dynamic\"\nports = [\"40001-40002/tcp\"]\nfrom = [\"192.0.2.0/24\"]\nto = [\"console\"]\n";
    let path = scene.policy("", &[])?;
    fs::write(&path, policy_text("", &everybody()) + opened)?;
    apply(console, &path, "console")?;
    let mut closed = Connection::open(friend, console, console.ipv4(), 40_001)?;
    let mut open = Connection::open(friend, console, console.ipv4(), 40_002)?;

    let text = policy_text("", &everybody());
    let loaded = Policy::parse(&text, "policy.toml", Catalogue::embedded())?;
    let plan = Plan::new(&loaded.policy, Catalogue::embedded(), &loaded.policy.hosts["console"]);
    let judge = plan.flow_judge(DynamicPorts::Open(&OpenPorts::new()), console.addresses());
    let port = |port, scope| OpenPort { protocol: Protocol::Tcp, port, scope };
    let cut = |ports: &[OpenPort]| console.run(|| cut_closed(&judge, ports));
    assert_eq!(cut(&[])?.denied, 0);
    assert_eq!(cut(&[port(40_001, LocalScope::Ipv6), port(40_003, LocalScope::Any)])?.denied, 0);
    let counts = cut(&[port(40_001, LocalScope::Ipv4)])?;
    assert_eq!((counts.denied, counts.cut, counts.revivable), (1, 1, 0));
    assert_eq!(counts.to_string(), "1 established flow denied, 1 cut: 1 from 192.0.2.10 on 40001/tcp");
    assert!(!closed.client_reaches()? && !closed.server_reaches()?);
    assert!(open.client_reaches()? && open.server_reaches()?);
    Ok(())
}

#[test]
fn a_connection_that_is_older_than_the_tracking_counts_as_the_peers() -> Result<()> {
    let scene = Scene::new()?;
    let (console, friend) = (scene.console(), scene.friend());
    let address = SocketAddr::new(console.ipv4(), 443);
    // Without any table nothing is tracked.
    let listener = console.run(|| TcpListener::bind(address))?;
    let client = friend.run(|| TcpStream::connect_timeout(&address, PATIENCE))?;
    let mut connection = Connection { client, server: listener.accept()?.0 };
    assert!(connection.client_reaches()? && connection.server_reaches()?);
    assert_eq!(tracked(console, 443)?, []);

    scene.apply("", &OTHER)?;
    assert!(connection.server_reaches()? && connection.client_reaches()?, "the host made the connection known");
    let loaded = Policy::parse(&policy_text("", &OTHER), "policy.toml", Catalogue::embedded())?;
    let plan = Plan::new(&loaded.policy, Catalogue::embedded(), &loaded.policy.hosts["console"]);
    let open = OpenPorts::new();
    let judge = plan.flow_judge(DynamicPorts::Open(&open), console.addresses());
    let counts = console.run(|| cut_denied(&judge, || true))?;
    assert_eq!(counts.to_string(), "1 established flow denied, 1 cut: 1 from 192.0.2.10 on 443/tcp");
    assert!(!connection.server_reaches()? && !connection.client_reaches()?);
    Ok(())
}

#[test]
fn very_many_flows_are_listed_in_short() -> Result<()> {
    let scene = Scene::new()?;
    let (console, friend) = (scene.console(), scene.friend());
    scene.apply("mode = \"observe\"", &OTHER)?;
    friend.run(|| -> Result<()> {
        let socket = UdpSocket::bind(SocketAddr::new(friend.ipv4(), 0))?;
        for port in 10_000..10_200 {
            socket.send_to(b"x", SocketAddr::new(console.ipv4(), port))?;
        }
        Ok(())
    })?;
    let deadline = Instant::now() + PATIENCE;
    while scene.flows_json(&["--denied"], 1)?["denied"]["denied"] != 200 && Instant::now() < deadline {}
    let answer = scene.flows(&["--denied"])?;
    assert!(answer.stdout.contains("200 denied\n") && answer.stdout.contains("and 150 more"), "{}", answer.stdout);
    assert!(answer.stdout.lines().count() <= 54, "{}", answer.stdout);
    let answer = scene.flows(&["--denied", "--all"])?;
    assert!(answer.stdout.contains("10199/udp") && !answer.stdout.contains("more"), "{}", answer.stdout);
    Ok(())
}

/// A daemon whose answers are JSON.
struct Asked<'s> {
    scene: &'s Scene,
    daemon: Daemon,
}

impl<'s> Asked<'s> {
    fn start(scene: &'s Scene) -> Result<Self> {
        let path = scene.policy("", &everybody())?;
        Ok(Self { scene, daemon: Daemon::start(scene.console(), &path, "console", scene.folder.path())? })
    }

    /// What a reload of this policy tells of established flows.
    fn reload(&self, keys: &str, users: &[&str]) -> Result<Value> {
        self.scene.policy(keys, users)?;
        let answer = self.scene.ask(&["reload", "--json"])?;
        let value: Value = serde_json::from_str(&answer.stdout)?;
        assert_eq!(value["reloaded"], true, "{value}");
        Ok(value["flows"].clone())
    }
}

#[test]
fn a_reload_counts_what_it_denies_and_cuts_it_where_the_policy_says_so() -> Result<()> {
    let scene = Scene::new()?;
    let asked = Asked::start(&scene)?;
    let mut connection = Connection::open(scene.friend(), scene.console(), scene.console().ipv4(), 443)?;

    let more: Vec<_> = everybody().into_iter().chain(["192.0.2.99"]).collect();
    assert_eq!(asked.reload("", &more)?, Value::Null, "what only lets more pass is not worth a look");
    assert_eq!(asked.reload("mode = \"observe\"", &OTHER)?, Value::Null, "nothing is denied");
    assert_eq!(asked.reload("", &everybody())?["denied"], 0);

    let flows = asked.reload("", &OTHER)?;
    assert_eq!((&flows["denied"], &flows["cut"]), (&1.into(), &0.into()), "{flows}");
    assert_eq!(flows["groups"][0]["peer"], FRIEND[0]);
    let log = asked.daemon.log();
    let line = "under the new policy: 1 established flow denied: 1 from 192.0.2.10 on 443/tcp";
    assert!(log.contains(line), "{log}");
    assert!(connection.client_reaches()?, "it goes on");

    assert_eq!(asked.reload("", &everybody())?, Value::Null);
    scene.policy("on-tighten = \"cut\"", &OTHER)?;
    let answer = scene.ask(&["reload"])?;
    assert!(
        answer.stderr.contains("1 established flow denied, 1 cut: 1 from 192.0.2.10 on 443/tcp"),
        "{}",
        answer.stderr
    );
    assert!(!connection.client_reaches()?, "it was cut");
    Ok(())
}

#[test]
fn a_trial_cuts_nothing_before_it_is_confirmed() -> Result<()> {
    let scene = Scene::new()?;
    let _asked = Asked::start(&scene)?;
    let mut connection = Connection::open(scene.friend(), scene.console(), scene.console().ipv4(), 443)?;
    let new = scene.folder.path().join("new.toml");
    fs::write(&new, policy_text("on-tighten = \"cut\"", &OTHER))?;
    thread::scope(|scope| -> Result<()> {
        let trial = scope.spawn(|| scene.ask(&["try", text(&new)?]));
        let is_tried = || Ok::<_, anyhow::Error>(scene.ask(&["status", "--json"])?.stdout.contains("\"trying\""));
        let deadline = Instant::now() + PATIENCE;
        while !is_tried()? {
            assert!(Instant::now() < deadline && !trial.is_finished(), "no trial");
        }
        assert!(connection.client_reaches()?, "a trial cut something");
        let confirmed = scene.ask(&["confirm", "--json"])?;
        let value: Value = serde_json::from_str(&confirmed.stdout)?;
        assert_eq!((&value["confirmed"], &value["flows"]["cut"]), (&true.into(), &1.into()), "{value}");
        assert!(!connection.client_reaches()?, "it was not cut");
        assert_eq!(trial.join().expect("the trial's thread")?.code, 0);
        Ok(())
    })
}
