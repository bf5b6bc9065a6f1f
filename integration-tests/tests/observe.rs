//! From observing to enforcing: what is let pass is noted by the real kernel, reported, admitted, and enforced by a trial.
#![forbid(unsafe_code)]

use anyhow::Result;
use portward::kernel::{Kernel, Netlink};
use portward::plan::MOST_OBSERVED;
use portward::ruleset::{Family, Record};
use portward_integration_tests::portward::{Answer, Daemon, portward, table, text};
use portward_integration_tests::probe::{Kind, Outcome, Probe, one};
use portward_integration_tests::{Host, HostSpec, Lab};
use serde_json::{Value, json};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const CONSOLE: [&str; 2] = ["10.0.0.10", "fd00::10"];
const FRIEND: [&str; 2] = ["192.0.2.10", "2001:db8::10"];
/// How long something may take to become true.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long an answer that must not come is waited for.
const QUIET: Duration = Duration::from_millis(500);

/// A console that observes, and a stranger to its policy.
struct Scene {
    lab: Lab,
    folder: TempDir,
}

impl Scene {
    fn new() -> Result<Self> {
        let lab = Lab::new(&[HostSpec::new("console", &CONSOLE), HostSpec::new("friend", &FRIEND)])?;
        let scene = Self { lab, folder: tempfile::tempdir()? };
        fs::write(scene.policy(), observing())?;
        Ok(scene)
    }

    fn console(&self) -> &Host {
        self.lab.host("console")
    }

    fn friend(&self) -> &Host {
        self.lab.host("friend")
    }

    fn policy(&self) -> PathBuf {
        self.folder.path().join("policy.toml")
    }

    fn daemon(&self) -> Result<Daemon> {
        Daemon::start(self.console(), &self.policy(), "console", self.folder.path())
    }

    /// A command that talks to the daemon.
    fn ask(&self, arguments: &[&str]) -> Result<Answer> {
        let socket = self.folder.path().join("control.sock");
        portward(self.console(), &[arguments, &["--control-socket", text(&socket)?]].concat())
    }

    fn report(&self, arguments: &[&str]) -> Result<Answer> {
        let (policy, state) = (self.policy(), self.folder.path().join("state"));
        let files = ["--policy", text(&policy)?, "--host", "console", "--state-dir", text(&state)?];
        self.ask(&[&["observe-report"], arguments, &files].concat())
    }

    fn report_json(&self, code: i32) -> Result<Value> {
        let answer = self.report(&["--json"])?;
        assert_eq!(answer.code, code, "{}{}", answer.stdout, answer.stderr);
        Ok(serde_json::from_str(&answer.stdout)?)
    }

    fn sends(&self, port: u16) -> Result<()> {
        for to in [self.console().ipv4(), self.console().ipv6()] {
            self.friend().run(|| -> Result<()> {
                let socket = UdpSocket::bind(SocketAddr::new(unspecified(to), 0))?;
                socket.send_to(b"x", SocketAddr::new(to, port))?;
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Whether the friend gets a connection, or at least a refusal, over IPv4.
    fn reaches(&self, port: u16) -> Result<bool> {
        let address = SocketAddr::new(self.console().ipv4(), port);
        let result = self.friend().run(|| TcpStream::connect_timeout(&address, QUIET));
        Ok(match result {
            Ok(_) => true,
            Err(error) => error.kind() == ErrorKind::ConnectionRefused,
        })
    }
}

fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => [0; 4].into(),
        IpAddr::V6(_) => [0; 16].into(),
    }
}

fn observing() -> String {
    format!(
        "# The first policy.\nformat = 1\nmode = \"observe\"   # for now\negress = \"observe\"\n[groups]\n\
         admin = [\"198.51.100.1\"]\nlog-source = [\"198.51.100.2\"]\n[[host]]\nname = \"console\"\n\
         addresses = {CONSOLE:?}\nroles = [\"console\"]\n"
    )
}

#[test]
fn what_was_let_pass_is_reported_admitted_and_enforced() -> Result<()> {
    let scene = Scene::new()?;
    let _daemon = scene.daemon()?;
    let nothing = scene.report(&[])?;
    assert_eq!(nothing.code, 0, "{}{}", nothing.stdout, nothing.stderr);
    assert!(nothing.stdout.contains("observed since 20") && nothing.stdout.contains("nothing would be denied"));

    let listener = scene.console().run(|| TcpListener::bind(SocketAddr::new(scene.console().ipv4(), 9999)))?;
    assert!(scene.reaches(9999)?, "an observing policy denies nothing");
    scene.sends(514)?;
    scene.sends(514)?;
    let echo = Probe { from: scene.friend().ipv4(), to: scene.console().ipv4(), kind: Kind::Echo };
    assert_eq!(one(scene.friend(), echo), Outcome::Passed);
    let there = SocketAddr::new(scene.friend().ipv4(), 4444);
    let sent = scene.console().run(|| TcpStream::connect_timeout(&there, PATIENCE));
    assert_eq!(sent.map_err(|error| error.kind()).err(), Some(ErrorKind::ConnectionRefused));

    let report = scene.report_json(1)?;
    let denied = report["denied"].as_array().cloned().unwrap_or_default();
    let of = |port: &str, direction: &str| {
        let is_it = |one: &&Value| one["port"] == *port && one["direction"] == *direction;
        let found: Vec<_> = denied.iter().filter(is_it).cloned().collect();
        assert_eq!(found.len(), 1, "{port} {direction}: {report}");
        found[0].clone()
    };
    let syslog = of("514/udp", "in");
    assert_eq!((&syslog["rows"], &syslog["group"]), (&json!(["syslog"]), &json!("log-source")), "{report}");
    assert_eq!(syslog["peers"], json!(FRIEND), "{report}");
    assert_eq!(of("9999/tcp", "in")["peers"], json!([FRIEND[0]]), "{report}");
    assert_eq!(of("4444/tcp", "out")["peers"], json!([FRIEND[0]]), "{report}");
    assert!(denied.iter().any(|one| one["port"].is_null()), "the echo request: {report}");
    assert_eq!(report["join"], json!({ "log-source": FRIEND }));
    assert_eq!(report["full"], json!([]));
    let text_report = scene.report(&[])?;
    assert!(text_report.stdout.contains("row syslog: not in log-source"), "{}", text_report.stdout);
    assert!(text_report.stdout.contains("  log-source: \"192.0.2.10\", \"2001:db8::10\"\n"), "{}", text_report.stdout);

    // The notes are the kernel's own: nothing would change, and nothing does at a reload.
    let policy = scene.policy();
    let diff = portward(scene.console(), &["diff", "--policy", text(&policy)?, "--host", "console"])?;
    assert_eq!(diff.code, 0, "{}", diff.stdout);
    let reload = scene.ask(&["reload"])?;
    assert!(reload.stdout.contains("changed in the kernel: nothing"), "{}", reload.stdout);

    // What is proposed loads, and leaves but the echo request.
    let admitted = observing().replace("\"198.51.100.2\"", &format!("\"{}\", \"{}\"", FRIEND[0], FRIEND[1]));
    fs::write(&policy, format!("{admitted}{}", report["allow"].as_str().unwrap_or_default()))?;
    assert_eq!(scene.ask(&["reload"])?.code, 0);
    let left = scene.report_json(1)?;
    let ports: Vec<_> = left["denied"].as_array().into_iter().flatten().map(|one| &one["port"]).collect();
    assert!(ports.iter().all(|port| port.is_null()) && !ports.is_empty(), "{left}");

    let before = scene.report_json(1)?["denied"].clone();
    let unconfirmed = scene.ask(&["enforce", "--timeout", "1"])?;
    assert_eq!(unconfirmed.code, 1, "{}{}", unconfirmed.stdout, unconfirmed.stderr);
    assert_eq!(scene.report_json(1)?["denied"], before, "a trial that is taken back loses no notes");

    thread::scope(|scope| -> Result<()> {
        let trial = scope.spawn(|| scene.ask(&["enforce", "--timeout", "600"]));
        let deadline = Instant::now() + PATIENCE;
        while !scene.ask(&["status", "--json"])?.stdout.contains("\"trying\"") {
            assert!(Instant::now() < deadline && !trial.is_finished(), "no trial");
        }
        assert!(scene.reaches(9999)?, "what was admitted");
        assert!(!scene.reaches(9998)?, "what was never seen");
        assert_eq!(scene.ask(&["confirm"])?.code, 0);
        let trial = trial.join().expect("the trial's thread")?;
        assert_eq!(trial.code, 0, "{}", trial.stderr);
        assert!(trial.stdout.starts_with("of what was observed: enforcement would deny 1 port"), "{}", trial.stdout);
        Ok(())
    })?;
    drop(listener);
    let kept = fs::read_to_string(&policy)?;
    assert!(kept.starts_with("# The first policy.\nformat = 1\nmode = \"enforce\"   # for now\n"), "{kept}");
    let again = scene.ask(&["enforce"])?;
    assert_eq!((again.code, again.stdout.contains("enforces already")), (0, true), "{}{}", again.stdout, again.stderr);
    let sets = table(scene.console())?.map(|table| table.sets).unwrap_or_default();
    assert!(!sets.keys().any(|name| name.starts_with("observed_input")), "{sets:?}");
    Ok(())
}

#[test]
fn packets_of_no_connection_are_not_noted() -> Result<()> {
    let scene = Scene::new()?;
    // Without a table nothing is tracked; with one, the kernel must not pick a connection up in its middle.
    let address = SocketAddr::new(scene.console().ipv4(), 9999);
    let listener = scene.console().run(|| TcpListener::bind(address))?;
    let mut client = scene.friend().run(|| TcpStream::connect_timeout(&address, PATIENCE))?;
    let (mut server, _) = listener.accept()?;
    let mut strict = Command::new("sysctl");
    strict.args(["-qw", "net.netfilter.nf_conntrack_tcp_loose=0"]);
    let strict = scene.console().output(&mut strict)?;
    assert!(strict.status.success(), "{}", String::from_utf8_lossy(&strict.stderr));
    let _daemon = scene.daemon()?;
    client.write_all(b"x")?;
    server.set_read_timeout(Some(PATIENCE))?;
    server.read_exact(&mut [0; 1])?;
    assert_eq!(scene.report_json(0)?["denied"], json!([]), "an invalid packet is no wish for a port");
    // A new connection is.
    assert!(scene.reaches(9999)?);
    assert_eq!(scene.report_json(1)?["denied"][0]["port"], "9999/tcp");
    Ok(())
}

#[test]
fn a_set_that_is_full_is_told_and_lets_packets_pass() -> Result<()> {
    let scene = Scene::new()?;
    let _daemon = scene.daemon()?;
    scene.friend().run(|| -> Result<()> {
        let socket = UdpSocket::bind(SocketAddr::new(unspecified(scene.friend().ipv4()), 0))?;
        for port in 1..=u16::MAX {
            // Refusals come back as errors of the next call.
            while socket.send_to(b"x", SocketAddr::new(scene.console().ipv4(), port)).is_err() {}
        }
        Ok(())
    })?;
    let record = Record { family: Family::Ipv4, with_port: true };
    let deadline = Instant::now() + PATIENCE;
    let notes = || {
        scene.console().run(|| -> Result<usize> {
            Ok(Netlink::open()?.notes("observed_input_v4", record)?.map_or(0, |notes| notes.len()))
        })
    };
    // Some ports are allowed to everybody or dropped on the way, so that another protocol has to fill the set.
    assert!(scene.reaches(50_000)?);
    for port in 1..2000 {
        scene.reaches(port)?;
    }
    while notes()? < MOST_OBSERVED as usize {
        assert!(Instant::now() < deadline, "only {} notes", notes()?);
    }
    assert!(scene.reaches(50_001)?, "a full set refuses no packet");
    let report = scene.report_json(1)?;
    assert_eq!(report["full"], json!(["observed_input_v4"]));
    assert_eq!(report["scanners"], json!([FRIEND[0]]));
    assert_eq!(report["allow"], "", "nothing is proposed for a scan");
    let snapshot = scene.console().run(|| Netlink::open()?.dump())?;
    assert_eq!(snapshot.foreign, Vec::<String>::new());
    Ok(())
}
