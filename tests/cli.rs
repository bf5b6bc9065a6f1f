//! The command line as a user meets it: the real binary, its exit codes and its answers. Needs neither root nor a
//! kernel with nftables.

#![allow(clippy::unwrap_used)] // A test that cannot go on has failed.

use serde_json::Value;
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

const POLICY: &str = r#"
format = 1
version = "7.5.0-up7"

[groups]
admin = ["192.0.2.0/24"]
log-source = ["10.0.0.0/8"]

[[host]]
name = "console"
addresses = ["198.51.100.10"]
roles = ["console"]

[[host]]
name = "ep1"
addresses = ["198.51.100.21"]
roles = ["event-processor", "event-collector"]
"#;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

fn portward(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portward"));
    command.args(arguments).env_remove("NO_COLOR").env_remove("PORTWARD_LOG");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs the command on a policy and expects this exit code.
fn answer(policy: &str, arguments: &[&str], code: i32) -> (String, String) {
    let folder = Folder::new();
    let path = folder.write("policy.toml", policy);
    let output = portward(arguments).arg("--policy").arg(&path).output().unwrap();
    expect(&output, code)
}

fn expect(output: &Output, code: i32) -> (String, String) {
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "stdout:\n{stdout}\nstderr:\n{stderr}");
    assert!(!stdout.contains('\u{1b}') && !stderr.contains('\u{1b}'), "colours without a terminal:\n{stdout}{stderr}");
    (stdout, stderr)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}:\n{text}"))
}

#[test]
fn check_says_that_a_good_policy_is_fine() {
    let (stdout, stderr) = answer(POLICY, &["check", "--host", "ep1"], 0);
    assert!(
        stdout.ends_with("policy.toml: fine: 2 hosts, 2 groups, 0 rows of its own; host ep1 (by --host)\n"),
        "{stdout}"
    );
    assert_eq!(stderr, "");
}

#[test]
fn check_on_another_machine_checks_every_host() {
    let (stdout, _) = answer(POLICY, &["check"], 0);
    assert!(stdout.contains("this machine is none of its hosts, it was checked for each of them"), "{stdout}");

    // Only one of the two hosts locks the administrators out, and that is enough.
    let policy = POLICY.to_owned() + "[row.ssh]\nonly-from = [\"203.0.113.1\"]\n";
    let (_, stderr) = answer(&policy, &["check"], 2);
    assert!(stderr.contains("22/tcp") && stderr.contains("allow-lockout"), "{stderr}");
    answer(&policy.replace("format = 1", "format = 1\nallow-lockout = true"), &["check"], 0);
}

#[test]
fn check_points_at_what_is_wrong() {
    let (stdout, stderr) = answer(&POLICY.replace("log-source", "log-sauce"), &["check"], 2);
    assert_eq!(stdout, "");
    assert!(stderr.contains("policy.toml:7:1") && stderr.contains("log-source"), "{stderr}");

    let (stdout, _) = answer(&POLICY.replace("log-source", "log-sauce"), &["check", "--json"], 2);
    let value = json(&stdout);
    assert_eq!(value["fine"], false);
    assert_eq!(value["errors"][0]["line"], 7);
}

#[test]
fn check_shows_warnings_and_stays_fine() {
    let policy = POLICY.replace("10.0.0.0/8", "10.1.2.3/8");
    let (stdout, stderr) = answer(&policy, &["check"], 0);
    assert!(stdout.contains("fine"), "{stdout}");
    assert!(stderr.contains("warning") && stderr.contains("10.0.0.0/8"), "{stderr}");
    let (stdout, _) = answer(&policy, &["check", "--json"], 0);
    assert_eq!(json(&stdout)["warnings"][0]["severity"], "warning");
}

#[test]
fn errors_are_exit_code_2_and_on_standard_error() {
    for arguments in [
        &["check", "--policy", "/does/not/exist.toml"][..],
        &["show", "--policy", "/"],
        &["show", "--no-such-option"],
        &["explain", "--port", "514/udp"],
        &["explain", "--from", "192.0.2.1", "--to", "192.0.2.2", "--port", "514/udp"],
        &["explain", "--from", "192.0.2.1", "--port", "0/udp"],
        &["explain", "--from", "192.0.2.1", "--port", "1-2/udp"],
        &["status", "--control-socket", "/does/not/exist.sock"],
        &["reload", "--control-socket", "/does/not/exist.sock"],
        &["run", "--log-level", "portward=loud"],
        &["frobnicate"],
        &[],
    ] {
        let (stdout, stderr) = expect(&portward(arguments).output().unwrap(), 2);
        assert_eq!(stdout, "", "{arguments:?}");
        assert!(!stderr.is_empty(), "{arguments:?}");
    }
    let (_, stderr) = answer(POLICY, &["show", "--host", "nobody"], 2);
    assert!(stderr.contains("nobody") && stderr.contains("console") && stderr.contains("ep1"), "{stderr}");
    let (_, stderr) = answer(POLICY, &["show"], 2);
    assert!(stderr.contains("--host") && stderr.contains("198.51.100.21"), "{stderr}");
}

#[test]
fn show_lists_rows_ports_and_peers() {
    let (stdout, _) = answer(POLICY, &["show", "--host", "ep1"], 0);
    let line = stdout.lines().find(|line| line.trim_start().starts_with("syslog ")).unwrap();
    assert!(line.contains("514/tcp 514/udp") && line.contains("log-source (10.0.0.0/8)"), "{line}");
    assert!(stdout.contains("needs: windows-collection"), "{stdout}");
    let internal = |stdout: &str| stdout.lines().filter(|line| line.ends_with("serves the host itself only")).count();
    assert_eq!(internal(&stdout), 0);
    let (all, _) = answer(POLICY, &["show", "--host", "ep1", "--all"], 0);
    assert!(internal(&all) > 0, "{all}");
}

#[test]
fn show_has_forms_for_programs() {
    let (stdout, _) = answer(POLICY, &["show", "--host", "ep1", "--format", "nft"], 0);
    assert!(stdout.starts_with("table inet portward {"), "{stdout}");

    let (stdout, _) = answer(POLICY, &["show", "--host", "ep1", "--format", "json"], 0);
    let value = json(&stdout);
    assert_eq!(value["host"], "ep1");
    let allowances = value["allowances"].as_array().unwrap();
    let syslog =
        allowances.iter().find(|allowance| allowance["row"] == "syslog" && allowance["group"] == "log-source").unwrap();
    assert_eq!(syslog["members"][0]["network"], "10.0.0.0/8");
    assert_eq!(syslog["members"][0]["line"], 7);
    assert_eq!(syslog["direction"], "in");
}

#[test]
fn the_order_of_the_file_does_not_matter() {
    let (head, hosts) = POLICY.split_once("[[host]]").unwrap();
    let (first, second) = hosts.split_once("[[host]]").unwrap();
    let swapped = format!("{head}[[host]]{second}[[host]]{first}");
    let nft = |policy: &str| answer(policy, &["show", "--host", "ep1", "--format", "nft"], 0).0;
    assert_eq!(nft(POLICY), nft(&swapped));
}

#[test]
fn explain_names_what_allows_a_packet() {
    let (stdout, _) = answer(POLICY, &["explain", "--host", "ep1", "--from", "10.1.2.3", "--port", "514/udp"], 0);
    assert!(stdout.starts_with("allowed"), "{stdout}");
    assert!(stdout.contains("row syslog") && stdout.contains("log-source -> event-"), "{stdout}");
    assert!(stdout.contains("10.0.0.0/8 at policy.toml:7"), "{stdout}");
    // As programs with dual-stack sockets log it.
    answer(POLICY, &["explain", "--host", "ep1", "--from", "::ffff:10.1.2.3", "--port", "514/udp"], 0);
}

#[test]
fn explain_says_what_would_have_to_change() {
    let arguments = ["explain", "--host", "ep1", "--from", "203.0.113.9", "--port", "514/udp"];
    let (stdout, _) = answer(POLICY, &arguments, 1);
    assert!(stdout.starts_with("denied"), "{stdout}");
    assert!(stdout.contains("row syslog") && stdout.contains("add \"203.0.113.9\" to log-source"), "{stdout}");

    let (stdout, _) = answer(POLICY, &[&arguments[..], &["--json"]].concat(), 1);
    let value = json(&stdout);
    assert_eq!((&value["allowed"], &value["direction"]), (&Value::Bool(false), &Value::from("in")));
    assert!(!value["near_misses"].as_array().unwrap().is_empty());
}

#[test]
fn explain_answers_for_what_leaves() {
    let arguments = ["explain", "--host", "ep1", "--to", "203.0.113.9", "--port", "25/tcp"];
    answer(POLICY, &arguments, 0);
    answer(&POLICY.replace("format = 1", "format = 1\negress = \"enforce\""), &arguments, 1);
}

#[test]
fn a_reader_who_leaves_is_no_error() {
    let folder = Folder::new();
    let hosts: String = (1..200)
        .map(|number| {
            format!("[[host]]\nname = \"dn{number}\"\naddresses = [\"10.0.0.{number}\"]\nroles = [\"data-node\"]\n")
        })
        .collect();
    let path = folder.write("policy.toml", &(POLICY.replace("10.0.0.0/8", "203.0.113.0/24") + &hosts));
    let mut child = portward(&["show", "--host", "console", "--format", "json", "--policy"])
        .arg(path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A pipe holds 64 KiB; the answer is longer.
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 16]).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

#[test]
fn completions_and_manual_come_from_the_definitions() {
    for shell in ["bash", "zsh", "fish"] {
        let (stdout, _) = expect(&portward(&["completions", shell]).output().unwrap(), 0);
        assert!(stdout.contains("explain"), "{shell}");
    }
    let (stdout, _) = expect(&portward(&["man"]).output().unwrap(), 0);
    assert!(stdout.contains(".TH portward 8"), "{stdout}");
    let folder = Folder::new();
    expect(&portward(&["man", "--folder"]).arg(folder.0.path()).output().unwrap(), 0);
    let page = fs::read_to_string(folder.0.path().join("portward-explain.8")).unwrap();
    assert!(page.contains("514/udp"), "{page}");
}

#[test]
fn help_is_an_answer() {
    for arguments in [&["--help"][..], &["--version"], &["run", "--help"], &["help", "explain"]] {
        let (stdout, stderr) = expect(&portward(arguments).output().unwrap(), 0);
        assert!(stdout.contains("portward"), "{arguments:?}");
        assert_eq!(stderr, "");
    }
}
