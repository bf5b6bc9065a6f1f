//! `portward doctor` as a user meets it: the real binary, in network namespaces of its own, against the real kernel.
//! Needs root, iproute2, nftables and util-linux.

#![allow(clippy::unwrap_used)] // A test that cannot go on has failed.

mod program;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Long enough for a loaded machine; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(30);
const PROGRAM: &str = env!("CARGO_BIN_EXE_portward");
const POLICY: &str = "format = 1\n[groups]\nadmin = [\"192.0.2.1\"]\n\
    [[host]]\nname = \"console\"\naddresses = [\"198.51.100.10\"]\nroles = [\"console\"]\n";

/// A network namespace, and a folder with a policy.
struct Place {
    namespace: String,
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("portward-doctor-{}-{number}", std::process::id());
        let added = Command::new("ip").args(["netns", "add", &namespace]).output().expect("iproute2 is installed");
        assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
        let place = Self { namespace, folder: tempfile::tempdir().unwrap() };
        fs::write(place.policy(), POLICY).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn policy(&self) -> PathBuf {
        self.path("policy.toml")
    }

    fn command(&self, program: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).args(program).env_remove("NOTIFY_SOCKET");
        command
    }

    fn nft(&self, script: &str) -> String {
        let output = self.command(&["nft", script]).output().expect("nftables is installed");
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn doctor_of(&self, program: &[&str]) -> Output {
        let mut command = self.command(program);
        command.args(["doctor", "--json", "--host", "console", "--policy"]).arg(self.policy());
        command.arg("--control-socket").arg(self.path("control.sock")).output().unwrap()
    }

    fn doctor(&self) -> Report {
        Report::of(&self.doctor_of(&[PROGRAM]))
    }

    /// A daemon that has applied the policy.
    fn start(&self, program: &Path) -> Daemon {
        let mut command = self.command(&[program.to_str().unwrap(), "run", "--host", "console", "--policy"]);
        command.arg(self.policy()).arg("--control-socket").arg(self.path("control.sock"));
        command.arg("--state-dir").arg(self.path("state"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let daemon = Daemon(child);
        wait("the daemon is in step", || self.doctor().severity("daemon") == "ok");
        daemon
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.namespace]).output();
    }
}

struct Daemon(Child);

impl Daemon {
    fn stop(mut self) {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What the doctor said. The machine under the test has a clock and a service, too, so only what a test has made counts.
struct Report(Value);

impl Report {
    #[track_caller]
    fn of(output: &Output) -> Self {
        let value: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        let is_bad = matches!(value["worst"].as_str(), Some("warning" | "problem"));
        assert_eq!(output.status.code(), Some(i32::from(is_bad)), "{value:#}");
        Self(value)
    }

    fn all(&self, check: &str) -> Vec<&Value> {
        self.0["findings"].as_array().unwrap().iter().filter(|finding| finding["check"] == check).collect()
    }

    /// The worst severity of a check; empty when it is not among the findings.
    fn severity(&self, check: &str) -> &str {
        self.all(check).first().and_then(|finding| finding["severity"].as_str()).unwrap_or_default()
    }

    #[track_caller]
    fn expect(&self, check: &str, severity: &str, found: &str) {
        let finding = self.all(check).first().copied().cloned().unwrap_or_default();
        assert_eq!(finding["severity"], severity, "{check}: {:#}", self.0);
        assert!(finding["found"].as_str().unwrap().contains(found), "{check}: {:#}", self.0);
        let has_remedy = finding["remedy"].is_string();
        assert!(has_remedy || matches!(severity, "ok" | "note"), "{check} says what to do: {:#}", self.0);
    }
}

#[test]
fn a_machine_in_order_is_said_to_be() {
    let place = Place::new();
    // The two hosts open RMI to each other, whose ports are dynamic.
    let other = "[[host]]\nname = \"ep1\"\naddresses = [\"198.51.100.21\"]\nroles = [\"event-processor\"]\n";
    fs::write(place.policy(), POLICY.to_owned() + other).unwrap();
    let daemon = place.start(Path::new(PROGRAM));
    // By BPF or by polling, as the build has it.
    wait("the daemon says how it hears of listeners", || place.doctor().all("listener-events").len() == 1);
    let report = place.doctor();
    report.expect("kernel", "ok", "every expression");
    report.expect("capabilities", "ok", "");
    report.expect("policy", "ok", "for host console");
    report.expect("daemon", "ok", "in step");
    report.expect("table", "ok", "");
    report.expect("program", "ok", "the one on disk");
    report.expect("other-tables", "ok", "");
    for check in ["kernel-notifications", "policy-file", "mode", "repairs"] {
        assert_eq!(report.severity(check), "", "{:#}", report.0);
    }
    daemon.stop();
}

#[test]
fn looking_changes_nothing() {
    let place = Place::new();
    let listing = place.nft("list ruleset");
    let generation = || {
        let mut diff = place.command(&[PROGRAM, "diff", "--json", "--host", "console", "--policy"]);
        let output = diff.arg(place.policy()).output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["generation"].clone()
    };
    let before = generation();
    place.doctor();
    assert_eq!((place.nft("list ruleset"), generation()), (listing, before));
}

#[test]
fn a_daemon_that_has_stopped_leaves_what_is_enforced_and_is_missed() {
    let place = Place::new();
    place.doctor().expect("table", "problem", "nothing is enforced");
    place.start(Path::new(PROGRAM)).stop();
    let report = place.doctor();
    report.expect("daemon", "warning", "no daemon runs");
    report.expect("table", "ok", "holds what the policy says");

    place.nft("add element inet portward peers_admin_v4 { 203.0.113.66 }");
    place.doctor().expect("table", "warning", "something else");
    place.nft("delete table inet portward");
    place.doctor().expect("table", "problem", "nothing is enforced");
}

#[test]
fn a_policy_that_does_not_load_is_a_problem() {
    let place = Place::new();
    let daemon = place.start(Path::new(PROGRAM));
    fs::write(place.policy(), POLICY.replace("admin", "admon")).unwrap();
    fs::set_permissions(place.policy(), Permissions::from_mode(0o666)).unwrap();
    wait("the daemon has seen it", || place.doctor().severity("daemon") == "problem");
    let report = place.doctor();
    report.expect("policy", "problem", "does not load");
    report.expect("daemon", "problem", "an older policy stays in force");
    report.expect("policy-file", "warning", "mode 666");
    report.expect("table", "ok", "is there");

    fs::remove_file(place.policy()).unwrap();
    place.doctor().expect("policy", "problem", "not there any more");
    drop(daemon);
}

#[test]
fn tables_of_others_are_told_by_what_they_do_to_packets() {
    let place = Place::new();
    place.nft("add table ip quiet; add chain ip quiet c { type filter hook input priority 0; policy accept; }");
    place.nft("add table inet asleep { flags dormant; }; add chain inet asleep c { type filter hook input priority 0; policy drop; }");
    place.nft("add table bridge other; add chain bridge other c { type filter hook input priority 0; policy drop; }");
    place.doctor().expect("other-tables", "ok", "");

    place.nft("add rule ip quiet c tcp dport 80 drop");
    place.doctor().expect("other-tables", "note", "ip quiet c (input, 1 rule)");

    place.nft("add table ip6 strict; add chain ip6 strict INPUT { type filter hook input priority -5; policy drop; }");
    let report = place.doctor();
    report.expect("other-tables", "warning", "ip6 strict INPUT (input, 0 rules)");
    assert_eq!(report.all("other-tables").len(), 2, "{:#}", report.0);
}

#[test]
fn a_program_that_was_replaced_while_it_runs_is_told() {
    let place = Place::new();
    let program = place.path("portward");
    program::copy(PROGRAM, &program);
    let daemon = place.start(&program);
    fs::remove_file(&program).unwrap();
    place.doctor().expect("program", "warning", "replaced on disk");
    drop(daemon);
}

#[test]
fn a_daemon_without_its_rights_is_told() {
    let place = Place::new();
    let (written, program) = (place.path("confined.sh"), place.path("confined"));
    // Nobody but portward gets to run: the shell is replaced.
    let script = format!("#!/bin/sh\nexec setpriv --bounding-set=-all,+net_admin {PROGRAM} \"$@\"\n");
    fs::write(&written, script).unwrap();
    fs::set_permissions(&written, Permissions::from_mode(0o755)).unwrap();
    program::copy(&written, &program);
    let daemon = place.start(&program);
    place.doctor().expect("capabilities", "warning", "CAP_SYS_PTRACE");
    drop(daemon);
}

#[test]
fn hidden_processes_are_told() {
    let place = Place::new();
    let script = format!("mount -t proc -o hidepid=2 proc /proc && exec {PROGRAM} \"$@\"");
    let report = Report::of(&place.doctor_of(&["unshare", "--mount", "sh", "-c", &script, "sh"]));
    report.expect("proc", "ok", "hidepid=");
    let nobody = format!("mount -t proc -o hidepid=2 proc /proc && exec setpriv --bounding-set=-all {PROGRAM} \"$@\"");
    let report = Report::of(&place.doctor_of(&["unshare", "--mount", "sh", "-c", &nobody, "sh"]));
    report.expect("proc", "warning", "no dynamic port is opened");
}

#[test]
fn without_root_it_says_what_it_could_not_see() {
    let place = Place::new();
    let program = place.path("portward");
    program::copy(PROGRAM, &program);
    fs::set_permissions(place.folder.path(), Permissions::from_mode(0o755)).unwrap();
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", program.to_str().unwrap()];
    let report = Report::of(&place.doctor_of(&nobody));
    for check in ["kernel", "table", "other-tables", "listener-events"] {
        report.expect(check, "note", "could not be looked at");
    }
    report.expect("policy", "ok", "for host console");
}

#[test]
fn people_read_the_worst_first_and_what_to_do() {
    let place = Place::new();
    let mut command = place.command(&[PROGRAM, "doctor", "--host", "console", "--policy"]);
    command.arg(place.policy()).arg("--control-socket").arg(place.path("control.sock"));
    let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert!(!text.contains('\u{1b}'), "colours without a terminal:\n{text}");
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("problem  table "), "{text}");
    assert!(lines[1].trim_start().starts_with("-> systemctl start portward"), "{text}");
    let summary = lines.last().unwrap();
    assert!(summary.contains(" problem") && summary.contains(" warning"), "{text}");
}
