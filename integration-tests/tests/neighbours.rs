//! Beside other firewalls: iptables of both kinds, firewalld, the rules of docker. Whatever portward does, theirs stay as
//! they are, and a packet must pass both. A kernel without `ip_tables` (CONFIG_IP_NF_IPTABLES) has no iptables-legacy, and
//! its test fails there with that command's words.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use portward_integration_tests::firewalld::Firewalld;
use portward_integration_tests::lab::INTERFACE;
use portward_integration_tests::listen::Responder;
use portward_integration_tests::portward::{Daemon, portward};
use portward_integration_tests::probe::{PATIENCE, QUIET, one, one_denied, send_datagrams};
use portward_integration_tests::{Host, HostSpec, Kind, Lab, Outcome, Probe, counters};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;
use tempfile::TempDir;

const HOST: [&str; 2] = ["10.0.0.10", "fd00::10"];
const FRIEND: [&str; 2] = ["192.0.2.10", "2001:db8::10"];
const STRANGER: [&str; 2] = ["203.0.113.9", "2001:db8:bad::9"];

/// A console, somebody who may reach its web page, its SSH and its syslog port, a stranger, and a container.
struct Scene {
    lab: Lab,
    folder: TempDir,
}

impl Scene {
    fn new() -> Result<Self> {
        let specs = [
            HostSpec::new("console", &HOST),
            HostSpec::new("friend", &FRIEND),
            HostSpec::new("stranger", &STRANGER),
            HostSpec::new("container", &[]),
        ];
        let scene = Self { lab: Lab::new(&specs)?, folder: tempfile::tempdir()? };
        scene.write_policy("")?;
        Ok(scene)
    }

    fn policy(&self) -> PathBuf {
        self.folder.path().join("policy.toml")
    }

    /// Writes a policy with these keys.
    fn write_policy(&self, keys: &str) -> Result<()> {
        let policy = format!(
            "format = 1\n{keys}\n
             [groups]\nadmin = {FRIEND:?}\nuser = {FRIEND:?}\nlog-source = {FRIEND:?}\n
             [[host]]\nname = \"console\"\naddresses = {HOST:?}\nroles = [\"console\"]\n"
        );
        Ok(fs::write(self.policy(), policy)?)
    }

    fn start(&self) -> Result<Daemon> {
        Daemon::start(self.host(), &self.policy(), "console", self.folder.path())
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

    /// Whether the table is what the policy says.
    fn is_in_step(&self) -> Result<bool> {
        let policy = self.policy();
        let arguments = ["diff", "--host", "console", "--policy", policy.to_str().expect("a UTF-8 path")];
        Ok(portward(self.host(), &arguments)?.code == 0)
    }

    /// Starts the daemon, has it do everything that it does to its table, and takes the table away; `check` is called
    /// after each step, with whether the table is there.
    fn go_through(&self, check: &dyn Fn(&str, bool) -> Result<()>) -> Result<()> {
        let mut daemon = self.start()?;
        check("the start", true)?;
        self.write_policy("deny = \"reject\"")?;
        daemon.reload()?;
        self.write_policy("")?;
        daemon.reload()?;
        check("reloads", true)?;
        for change in [&["delete", "table", "inet", "portward"][..], &["flush", "chain", "inet", "portward", "input"]] {
            self.host().nft_output(change)?;
            let deadline = Instant::now() + PATIENCE;
            while !self.is_in_step()? {
                ensure!(Instant::now() < deadline, "{change:?} was not repaired:\n{}", daemon.log());
            }
        }
        check("repairs", true)?;
        daemon.end(Signal::SIGTERM)?;
        ensure!(portward(self.host(), &["down"])?.code == 0);
        check("down", false)
    }
}

/// Runs a shell script inside a host; returns what it printed.
fn sh(host: &Host, script: &str) -> Result<String> {
    let output = host.output(Command::new("sh").args(["-euc", script]))?;
    ensure!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// All rules of others in nftables, with their handles, which change when a rule is made anew.
fn others(host: &Host) -> Result<String> {
    let mut rules = String::new();
    for table in host.nft_output(&["list", "tables"])?.lines().filter(|table| *table != "table inet portward") {
        let words: Vec<&str> = table.split_whitespace().collect();
        rules.push_str(&host.nft_output(&[&["--stateless", "--handle", "list"], words.as_slice()].concat())?);
    }
    Ok(rules)
}

/// The rules of iptables of one kind, without the comments that have the time in them, and without counters.
fn saved(host: &Host, kind: &str) -> Result<String> {
    let text = sh(host, &format!("iptables-{kind}-save; ip6tables-{kind}-save"))?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    // The counters of the chains' policies.
    Ok(lines.map(|line| line.split(" [").next().unwrap_or(line)).collect::<Vec<_>>().join("\n"))
}

/// Whether a connection is made, over each of these families.
#[track_caller]
fn assert_connects(from: &Host, to: &Host, port: u16, expected: bool) {
    for (source, target) in [(from.ipv4(), to.ipv4()), (from.ipv6(), to.ipv6())] {
        let probe = Probe { from: source, to: target, kind: Kind::Tcp(port) };
        let passed = if expected { one(from, probe) } else { one_denied(from, probe) } == Outcome::Passed;
        assert_eq!(passed, expected, "{port}/tcp from {} ({source})", from.name());
    }
}

/// Whether datagrams arrive, over each family.
#[track_caller]
fn assert_datagrams(from: &Host, to: &Host, port: u16, responder: &Responder, expected: bool) {
    for (source, target) in [(from.ipv4(), to.ipv4()), (from.ipv6(), to.ipv6())] {
        let number = send_datagrams(from, &[Probe { from: source, to: target, kind: Kind::Udp(port) }])[0];
        let patience = if expected { PATIENCE } else { QUIET };
        let seen = responder.wait(patience, |seen| seen.numbers().contains(&number));
        assert_eq!(seen.numbers().contains(&number), expected, "{port}/udp from {} ({source})", from.name());
    }
}

/// Filter rules, and the vendor's redirection of 514 to 517.
fn works_beside_iptables(kind: &str) -> Result<()> {
    let scene = Scene::new()?;
    let (host, friend, stranger) = (scene.host(), scene.friend(), scene.stranger());
    sh(
        host,
        &format!(
            "for iptables in iptables-{kind} ip6tables-{kind}; do
                 $iptables -A INPUT -p tcp --dport 22 -j DROP
                 $iptables -A INPUT -p tcp -m multiport --dports 443,9000 -j ACCEPT
                 $iptables -t nat -A PREROUTING -p tcp --dport 514 -j REDIRECT --to-ports 517
                 $iptables -t nat -A PREROUTING -p udp --dport 514 -j REDIRECT --to-ports 517
             done"
        ),
    )?;
    let before = (saved(host, kind)?, others(host)?);
    assert!(before.0.matches("REDIRECT").count() == 4, "{}", before.0);
    let responder = Responder::start(host, [22, 443, 517, 9000], [517])?;
    scene.go_through(&|step, enforced| {
        assert_eq!((saved(host, kind)?, others(host)?), before, "after {step}");
        assert_connects(friend, host, 443, true);
        // portward's row admits it, their rule does not; and the other way round.
        assert_connects(friend, host, 22, false);
        assert_connects(friend, host, 9000, !enforced);
        // Redirected packets follow the row of the original port.
        assert_connects(friend, host, 514, true);
        assert_datagrams(friend, host, 514, &responder, true);
        assert_connects(stranger, host, 514, !enforced);
        assert_datagrams(stranger, host, 514, &responder, !enforced);
        assert_connects(friend, host, 517, !enforced);
        assert_datagrams(friend, host, 517, &responder, !enforced);
        Ok(())
    })
}

#[test]
fn iptables_nft_stays_as_it_is_and_effective() -> Result<()> {
    works_beside_iptables("nft")
}

#[test]
fn iptables_legacy_stays_as_it_is_and_effective() -> Result<()> {
    works_beside_iptables("legacy")
}

/// Whether firewalld and portward both judge: 443 is open in both, 22 in portward only, 9000 in firewalld only.
fn assert_both_judge(scene: &Scene) {
    let (host, friend, stranger) = (scene.host(), scene.friend(), scene.stranger());
    assert_connects(friend, host, 443, true);
    assert_connects(stranger, host, 443, false);
    assert_connects(friend, host, 22, false);
    assert_connects(friend, host, 9000, false);
}

fn works_beside_firewalld(firewalld_first: bool) -> Result<()> {
    let scene = Scene::new()?;
    let host = scene.host();
    let _responder = Responder::start(host, [22, 443, 9000], [])?;
    let start = || Firewalld::start(host, scene.folder.path(), &[443, 9000]);
    let (mut firewalld, daemon) = if firewalld_first {
        let firewalld = start()?;
        let before = others(host)?;
        let daemon = scene.start()?;
        assert_eq!(others(host)?, before, "portward has touched firewalld's table");
        (firewalld, daemon)
    } else {
        let daemon = scene.start()?;
        (start()?, daemon)
    };
    assert_both_judge(&scene);
    firewalld.reload()?;
    assert!(scene.is_in_step()?, "firewalld's reload has touched portward's table");
    assert_both_judge(&scene);
    firewalld.restart()?;
    assert!(scene.is_in_step()?, "firewalld's restart has touched portward's table");
    assert_both_judge(&scene);
    assert!(!daemon.log().contains("is repaired"), "{}", daemon.log());
    drop(daemon);

    let before = others(host)?;
    assert!(before.contains("table inet firewalld"), "{before}");
    scene.go_through(&|step, enforced| {
        assert_eq!(others(host)?, before, "after {step}");
        if enforced {
            assert_both_judge(&scene);
        }
        Ok(())
    })
}

#[test]
fn firewalld_may_start_before_portward() -> Result<()> {
    works_beside_firewalld(true)
}

#[test]
fn firewalld_may_start_after_portward() -> Result<()> {
    works_beside_firewalld(false)
}

/// The rules that docker makes for a container with a published port, as `iptables-save` shows them on a host with one.
const DOCKER: &str = "
    iptables-nft -P FORWARD DROP
    iptables-nft -N DOCKER
    iptables-nft -N DOCKER-USER
    iptables-nft -A FORWARD -j DOCKER-USER
    iptables-nft -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    iptables-nft -A FORWARD -o docker0 -j DOCKER
    iptables-nft -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
    iptables-nft -A FORWARD -i docker0 -o docker0 -j ACCEPT
    iptables-nft -A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp --dport 8443 -j ACCEPT
    iptables-nft -t nat -N DOCKER
    iptables-nft -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
    iptables-nft -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
    iptables-nft -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
    iptables-nft -t nat -A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp --dport 8443 -j MASQUERADE
    iptables-nft -t nat -A DOCKER -i docker0 -j RETURN
    iptables-nft -t nat -A DOCKER ! -i docker0 -p tcp --dport 443 -j DNAT --to-destination 172.17.0.2:8443
    # Somebody lets everybody in to a port that is not published.
    iptables-nft -A DOCKER-USER -p tcp --dport 7000 -j ACCEPT";

#[test]
fn a_port_that_docker_publishes_is_open_to_the_peers_of_its_row_only() -> Result<()> {
    let scene = Scene::new()?;
    let (host, friend, stranger) = (scene.host(), scene.friend(), scene.stranger());
    let container = scene.lab.host("container");
    host.set_parameter("net/ipv4/ip_forward", "1")?;
    host.ip(&format!(
        "link add docker0 type bridge\nlink add veth0 type veth peer name veth0 netns {}\n\
         link set veth0 master docker0 up\nlink set docker0 up\naddr add 172.17.0.1/16 dev docker0",
        container.namespace()
    ))?;
    container.ip(&format!(
        "link set {INTERFACE} down\nlink set veth0 up\naddr add 172.17.0.2/16 dev veth0\n\
         route replace default via 172.17.0.1"
    ))?;
    stranger.ip("route add 172.17.0.0/16 via 10.0.0.10 dev eth0 onlink")?;
    sh(host, DOCKER)?;
    let before = (saved(host, "nft")?, others(host)?);
    let responder = Responder::start(container, [7000, 8443], [])?;
    let outside = Responder::start(stranger, [8080], [])?;
    let inside: IpAddr = "172.17.0.2".parse()?;
    let connects = |from: &Host, to: IpAddr, port: u16, expected: bool| {
        let source = from.addresses().first().copied().unwrap_or(inside);
        let probe = Probe { from: source, to, kind: Kind::Tcp(port) };
        let outcome = if expected { one(from, probe) } else { one_denied(from, probe) };
        assert_eq!(outcome == Outcome::Passed, expected, "{port}/tcp from {} to {to}: {outcome:?}", from.name());
    };
    scene.go_through(&|step, enforced| {
        assert_eq!((saved(host, "nft")?, others(host)?), before, "after {step}");
        connects(friend, host.ipv4(), 443, true);
        connects(stranger, host.ipv4(), 443, !enforced);
        if enforced {
            assert!(counters::packets_of(host, "denied_forward")? > 0, "it is portward that denies, after {step}");
        }
        // What is not published is between docker and its neighbours, and so is what containers send.
        connects(stranger, inside, 7000, true);
        connects(container, stranger.ipv4(), 8080, true);
        Ok(())
    })?;
    let from_host = |seen: &portward_integration_tests::listen::Seen| seen.connections_from(8080, host.ipv4()) == 4;
    assert!(from_host(&outside.seen_when(from_host)), "the container is masqueraded");
    drop(responder);
    Ok(())
}
