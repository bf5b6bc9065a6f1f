//! Changes that can be taken back: trials, rollbacks, refusals, and starts without a policy. The real binary, in network
//! namespaces of its own, against the real kernel. Needs root, iproute2 and nftables.

#![allow(clippy::unwrap_used)] // A test that cannot go on has failed.

mod place;
mod program;

use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
use place::{Daemon, PATIENCE, Place, policy};
use serde_json::Value;
use std::fs::{self, Permissions};
use std::net::{SocketAddrV4, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

/// Two administrators: the one from before and the one of the new policy.
const OLD: &str = "192.0.2.1";
const NEW: &str = "192.0.2.2";

/// A place with a policy file, a new policy beside it, and a running daemon.
fn begin() -> (Place, PathBuf, Daemon) {
    let place = Place::new();
    let file = place.path("policy.toml");
    fs::write(&file, policy(OLD)).unwrap();
    fs::write(place.path("new.toml"), policy(NEW)).unwrap();
    let daemon = place.start(&file);
    (place, file, daemon)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A command that talks to the daemon.
fn control(place: &Place, arguments: &[&str]) -> Output {
    let socket = place.socket();
    place.portward(&[arguments, &["--control-socket", text(&socket)]].concat())
}

fn history(place: &Place) -> Vec<Value> {
    let state = place.state();
    let output = place.portward(&["history", "--json", "--state-dir", text(&state)]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    value["entries"].as_array().unwrap().clone()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Begins a trial of `new.toml`, and waits until the kernel has it.
fn try_new(place: &Place, daemon: &Daemon, seconds: &str) -> Daemon {
    let mut command = place.command(env!("CARGO_BIN_EXE_portward"));
    command.arg("try").arg(place.path("new.toml")).args(["--timeout", seconds, "--control-socket"]).arg(place.socket());
    let tried = place.spawn_command(command);
    place.wait(daemon, "the trial begins", || {
        place.status()["trial"]["policy"].is_string() || place.status()["last_trial"]["policy"].is_string()
    });
    tried
}

/// What a boot leaves of the kernel's ruleset.
fn forget_ruleset(place: &Place) {
    assert!(place.nft(&["flush", "ruleset"]).status.success());
}

/// A daemon that never had the time to do anything about its end.
fn end_at_once(mut daemon: Daemon) {
    daemon.signal(Signal::SIGKILL);
    daemon.end();
}

#[test]
fn a_confirmed_trial_becomes_the_policy() {
    let (place, file, daemon) = begin();
    fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
    let mut tried = try_new(&place, &daemon, "600");
    place.wait_for_admin(&daemon, NEW);
    let status = place.status();
    assert_eq!((status["condition"].as_str(), status["source"].as_str()), (Some("trying"), Some("trial")));
    assert_eq!(fs::read_to_string(&file).unwrap(), policy(OLD), "the file stays until the end");
    assert_eq!(history(&place).len(), 1, "what is on trial was not found good yet");
    let answer = control(&place, &["rollback", "0"]);
    assert!(stderr(&answer).contains("on trial"), "{}", stderr(&answer));
    let again = control(&place, &["try", text(&file)]);
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("is on trial, asked for by root"), "{}", stderr(&again));
    let shown = control(&place, &["status"]);
    assert_eq!(shown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&shown.stdout).contains("unless `portward confirm` comes"));

    succeeds(&control(&place, &["confirm"]));
    assert_eq!(tried.end().code(), Some(0), "{}", tried.log());
    assert_eq!(fs::read_to_string(&file).unwrap(), policy(NEW));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    let status = place.status();
    assert_eq!((status["condition"].as_str(), status["source"].as_str()), (Some("in-step"), Some("file")));
    let entries = history(&place);
    assert_eq!(entries.len(), 2);
    assert!(entries[0]["cause"].as_str().unwrap().contains("was confirmed"), "{}", entries[0]);
    assert!(entries[0]["user"].as_str().unwrap().starts_with("root"), "{}", entries[0]);

    let again = control(&place, &["confirm"]);
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("nothing is on trial"));
    // The next start knows of no trial.
    daemon.stop();
    let daemon = place.start(&file);
    assert!(place.table_has(NEW));
    assert_eq!(place.status()["last_trial"], Value::Null);
    daemon.stop();
}

#[test]
fn a_trial_that_nobody_confirms_is_taken_back() {
    let (place, file, daemon) = begin();
    let before = place.table().unwrap();
    let mut tried = try_new(&place, &daemon, "1");
    assert_eq!(tried.end().code(), Some(1), "{}", tried.log());
    assert_eq!(place.table().unwrap(), before);
    assert_eq!(place.status()["last_trial"]["reason"], "it was not confirmed in time");
    assert_eq!(place.status()["condition"], "in-step");
    assert_eq!(fs::read_to_string(&file).unwrap(), policy(OLD));
    assert_eq!(history(&place).len(), 1);
    assert!(!place.state().join("trial").exists());
    daemon.stop();
}

#[test]
fn ctrl_c_the_command_and_the_end_of_the_daemon_take_a_trial_back() {
    let (place, file, daemon) = begin();
    for signal in [Signal::SIGINT, Signal::SIGHUP] {
        let mut tried = try_new(&place, &daemon, "600");
        place.wait_for_admin(&daemon, NEW);
        place.wait(&daemon, "the command says what to do", || place.status()["trial"].is_object());
        // It catches signals before it asks the daemon.
        tried.signal(signal);
        assert_eq!(tried.end().code(), Some(1), "{}", tried.log());
        assert!(place.table_has(OLD) && !place.table_has(NEW));
    }
    let mut tried = try_new(&place, &daemon, "600");
    place.wait_for_admin(&daemon, NEW);
    succeeds(&control(&place, &["revert"]));
    assert!(place.table_has(OLD) && !place.table_has(NEW));
    assert_eq!(tried.end().code(), Some(1));

    let _tried = try_new(&place, &daemon, "600");
    place.wait_for_admin(&daemon, NEW);
    daemon.stop();
    assert!(place.table_has(OLD) && !place.table_has(NEW));
    assert_eq!(fs::read_to_string(&file).unwrap(), policy(OLD));
}

#[test]
fn a_killed_daemon_takes_a_trial_back_when_it_starts() {
    let (place, file, daemon) = begin();
    let _tried = try_new(&place, &daemon, "600");
    place.wait_for_admin(&daemon, NEW);
    end_at_once(daemon);
    assert!(place.table_has(NEW), "nobody is there to take it back yet");
    let daemon = place.start(&file);
    assert!(place.table_has(OLD) && !place.table_has(NEW));
    assert_eq!(place.status()["last_trial"]["confirmed"], false);
    assert!(daemon.log().contains("was on trial when the daemon ended, and is taken back"), "{}", daemon.log());

    // The same when the file is of no use meanwhile: then the table in the kernel is not to be trusted.
    let _tried = try_new(&place, &daemon, "600");
    place.wait_for_admin(&daemon, NEW);
    end_at_once(daemon);
    fs::write(&file, "nonsense").unwrap();
    let daemon = place.start(&file);
    assert!(place.table_has(OLD) && !place.table_has(NEW));
    assert_eq!((&place.status()["source"], &place.status()["condition"]), (&"last-good".into(), &"keeping".into()));

    // And after a boot.
    fs::write(&file, policy(OLD)).unwrap();
    place.wait(&daemon, "in step", || place.status()["condition"] == "in-step");
    let _tried = try_new(&place, &daemon, "600");
    place.wait_for_admin(&daemon, NEW);
    end_at_once(daemon);
    forget_ruleset(&place);
    let daemon = place.start(&file);
    assert!(place.table_has(OLD) && !place.table_has(NEW));
    daemon.stop();
}

#[test]
fn the_file_waits_for_the_end_of_a_trial() {
    let (place, file, daemon) = begin();
    let mut tried = try_new(&place, &daemon, "600");
    place.wait_for_admin(&daemon, NEW);
    fs::write(&file, policy("192.0.2.3")).unwrap();
    place.wait(&daemon, "the change is seen", || place.status()["trial"]["file_waits"] == true);
    assert!(place.table_has(NEW) && !place.table_has("192.0.2.3"));
    let answer = control(&place, &["reload"]);
    assert_eq!(answer.status.code(), Some(2));
    assert!(stderr(&answer).contains("is on trial"), "{}", stderr(&answer));
    succeeds(&control(&place, &["revert"]));
    assert_eq!(tried.end().code(), Some(1));
    place.wait_for_admin(&daemon, "192.0.2.3");
    assert!(!place.table_has(NEW));

    // A file that holds what is on trial confirms it, and what was in the file at a confirmation is kept.
    let mut tried = try_new(&place, &daemon, "600");
    place.wait_for_admin(&daemon, NEW);
    fs::copy(place.path("new.toml"), &file).unwrap();
    assert_eq!(tried.end().code(), Some(0), "{}", tried.log());
    fs::write(place.path("new.toml"), policy("192.0.2.4")).unwrap();
    let mut tried = try_new(&place, &daemon, "600");
    place.wait_for_admin(&daemon, "192.0.2.4");
    fs::write(&file, "an edit under way").unwrap();
    succeeds(&control(&place, &["confirm"]));
    assert_eq!(tried.end().code(), Some(0), "{}", tried.log());
    assert_eq!(fs::read_to_string(place.path("policy.toml.replaced")).unwrap(), "an edit under way");
    assert_eq!(fs::read_to_string(&file).unwrap(), policy("192.0.2.4"));
    daemon.stop();
}

#[test]
fn a_policy_that_does_not_load_is_not_tried() {
    let (place, _file, daemon) = begin();
    let new = place.path("new.toml");
    for (content, told) in [("nonsense", "new.toml:1"), (&policy(NEW).replace("admin", "user"), "22/tcp")] {
        fs::write(&new, content).unwrap();
        let answer = control(&place, &["try", text(&new)]);
        assert_eq!(answer.status.code(), Some(2));
        assert!(stderr(&answer).contains(told), "{}", stderr(&answer));
    }
    // What others say on the socket is looked at as well.
    let error = |request: &str| place.ask(request.as_bytes())["error"].as_str().unwrap().to_owned();
    let ask = |length: u64, timeout: u64, body: &str| {
        error(&format!("{{\"command\":\"try\",\"length\":{length},\"timeout\":{timeout},\"label\":\"x\"}}\n{body}"))
    };
    assert!(ask(100, 60, "format = 1").contains("100 bytes of policy were announced, and 10 came"));
    assert!(ask(1 << 40, 60, "").contains("at most"));
    assert!(ask(8, 60, "nonsense").contains("x:1"));
    assert!(ask(8, 0, "nonsense").contains("1 to 86400 seconds"));
    assert_eq!(place.status()["trial"], Value::Null);
    assert!(place.table_has(OLD));
    daemon.stop();
}

#[test]
fn rollback_restores_the_file() {
    let (place, file, daemon) = begin();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    chown(&file, Some(1234), Some(4321)).unwrap();
    fs::write(&file, policy(NEW)).unwrap();
    place.wait_for_admin(&daemon, NEW);
    place.wait(&daemon, "it is kept", || history(&place).len() == 2);

    let answer = succeeds(&control(&place, &["rollback"]));
    assert!(answer.contains("is back"), "{answer}");
    assert!(place.table_has(OLD) && !place.table_has(NEW), "a rollback is done when it is answered");
    assert_eq!(fs::read_to_string(&file).unwrap(), policy(OLD));
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!((metadata.mode() & 0o777, metadata.uid(), metadata.gid()), (0o600, 1234, 4321));
    assert!(!place.path("policy.toml.replaced").exists(), "what was replaced is in the history");
    let entries = history(&place);
    assert_eq!(entries.len(), 3);
    assert!(entries[0]["cause"].as_str().unwrap().starts_with("rollback to the policy of"), "{}", entries[0]);
    assert_eq!(entries[0]["sha256"], entries[2]["sha256"]);
    assert_eq!(entries[1]["user"], "file changed");

    // An edit that does not load is undone by the policy that was applied last.
    fs::write(&file, "an edit that went wrong").unwrap();
    place.wait(&daemon, "the error is seen", || place.status()["condition"] == "keeping");
    succeeds(&control(&place, &["rollback", "0"]));
    assert_eq!(place.status()["condition"], "in-step");
    assert_eq!(fs::read_to_string(place.path("policy.toml.replaced")).unwrap(), "an edit that went wrong");
    assert_eq!(history(&place).len(), 3);

    let answer = control(&place, &["rollback", "7"]);
    assert_eq!(answer.status.code(), Some(2));
    assert!(stderr(&answer).contains("has 0 to 2"), "{}", stderr(&answer));
    let state = place.state();
    assert_eq!(succeeds(&place.portward(&["history", "1", "--state-dir", text(&state)])), policy(NEW));

    // Without a daemon the file is what counts.
    daemon.stop();
    let rollback = ["rollback", "1", "--policy", text(&file), "--state-dir", text(&state)];
    let answer = succeeds(&control(&place, &rollback));
    assert!(answer.contains("no daemon is running"), "{answer}");
    assert_eq!(fs::read_to_string(&file).unwrap(), policy(NEW));
    place.start(&file).stop();
    assert!(place.table_has(NEW));
}

#[test]
fn history_holds_the_last_ten() {
    let (place, file, daemon) = begin();
    for number in 0..14 {
        fs::write(&file, policy(&format!("192.0.2.{}", 100 + number))).unwrap();
        succeeds(&control(&place, &["reload"]));
        succeeds(&control(&place, &["reload"]));
    }
    let entries = history(&place);
    assert_eq!(entries.len(), 10);
    let state = place.state();
    let newest = succeeds(&place.portward(&["history", "0", "--state-dir", text(&state)]));
    assert_eq!(newest, policy("192.0.2.113"));
    let oldest = succeeds(&place.portward(&["history", "9", "--state-dir", text(&state)]));
    assert_eq!(oldest, policy("192.0.2.104"));
    assert!(entries.iter().all(|entry| entry["host"] == "console"));
    daemon.stop();
}

#[test]
fn a_start_without_a_policy_finds_the_last_good_one() {
    let (place, file, daemon) = begin();
    let table = place.table().unwrap();
    daemon.stop();
    for content in [Some("nonsense"), Some(""), None] {
        forget_ruleset(&place);
        match content {
            Some(content) => fs::write(&file, content).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        let daemon = place.start(&file);
        assert_eq!(place.table().as_ref(), Some(&table));
        let status = place.status();
        assert_eq!((&status["condition"], &status["source"]), (&"keeping".into(), &"last-good".into()));
        assert!(status["policy_error"]["message"].is_string());
        assert_eq!(status["enforced"]["host"], "console");
        daemon.stop();
    }
    // A file that somebody else could have written is none of ours.
    forget_ruleset(&place);
    let last_good = place.state().join("last-good");
    chown(&last_good, Some(65_534), None).unwrap();
    let daemon = place.start(&file);
    assert_eq!(place.status()["source"], "fail-safe");
    assert!(daemon.log().contains("last-good: belongs to user 65534"), "{}", daemon.log());
    daemon.stop();
    chown(&last_good, Some(0), None).unwrap();

    // The file may come back at any time.
    forget_ruleset(&place);
    let daemon = place.start(&file);
    fs::write(&file, policy(NEW)).unwrap();
    place.wait_for_admin(&daemon, NEW);
    place.wait(&daemon, "in step", || place.status()["condition"] == "in-step" && place.status()["source"] == "file");
    daemon.stop();
}

#[test]
fn without_a_last_good_policy_the_fail_safe_serves() {
    for (fail, hook) in [("closed", "policy drop"), ("open", "policy accept")] {
        let place = Place::new();
        let file = place.path("policy.toml");
        fs::write(&file, format!("fail = \"{fail}\"\n{}", policy(OLD))).unwrap();
        place.start(&file).stop();
        forget_ruleset(&place);
        fs::write(&file, "nonsense").unwrap();
        let last_good = place.state().join("last-good");
        let bytes = fs::read(&last_good).unwrap();
        fs::write(&last_good, &bytes[..bytes.len() / 2]).unwrap();

        let daemon = place.start(&file);
        let status = place.status();
        assert_eq!((&status["condition"], &status["source"]), (&"keeping".into(), &"fail-safe".into()));
        assert!(status["state_error"]["message"].as_str().unwrap().contains("torn or tampered"), "{status:#}");
        assert!(daemon.log().contains("last-good: torn or tampered with"), "{}", daemon.log());
        let table = place.table().unwrap();
        assert!(table.contains(OLD) && table.contains(hook) && table.contains("22 : goto in_ssh"), "{table}");
        assert!(!table.contains("514"), "{table}");
        let kept = fs::read(&last_good).unwrap();
        assert_eq!(kept, &bytes[..bytes.len() / 2], "what is damaged is evidence until a policy is applied");

        // It is guarded like any table, and the policy replaces it.
        forget_ruleset(&place);
        place.wait_for_admin(&daemon, OLD);
        fs::write(&file, policy(NEW)).unwrap();
        place.wait(&daemon, "in step", || place.status()["condition"] == "in-step");
        assert_eq!(place.status()["state_error"], Value::Null);
        fs::write(&file, policy("192.0.2.3")).unwrap();
        place.wait(&daemon, "it is kept", || history(&place).len() == 3);
        daemon.stop();

        // The administrators are also known from the newest entry that is whole; last-good is the newest of all.
        forget_ruleset(&place);
        fs::write(&file, "nonsense").unwrap();
        for name in ["last-good", "fail-safe"] {
            fs::write(place.state().join(name), "nonsense").unwrap();
        }
        let daemon = place.start(&file);
        assert_eq!(place.status()["source"], "fail-safe");
        assert!(place.table_has(NEW) && !place.table_has("192.0.2.3"));
        daemon.stop();

        // When nothing is known, nothing is enforced.
        forget_ruleset(&place);
        fs::remove_dir_all(place.state()).unwrap();
        let mut daemon = place.spawn(&file);
        assert_eq!(daemon.end().code(), Some(2));
        assert_eq!(place.table(), None);
    }
}

#[test]
fn a_machine_without_addresses_is_the_host_that_it_was() {
    let place = Place::new();
    let file = place.path("policy.toml");
    fs::write(&file, policy(OLD)).unwrap();
    let ip = |arguments: &[&str]| assert!(place.command("ip").args(arguments).status().unwrap().success());
    let spawn = || {
        let mut command = place.command(env!("CARGO_BIN_EXE_portward"));
        command.args(["run", "--policy"]).arg(&file).arg("--control-socket").arg(place.socket());
        command.arg("--state-dir").arg(place.state());
        place.spawn_command(command)
    };
    let mut daemon = spawn();
    assert_eq!(daemon.end().code(), Some(2), "a machine that was never in the policy is nobody");

    ip(&["addr", "add", "198.51.100.10/32", "dev", "lo"]);
    let daemon = spawn();
    place.wait(&daemon, "in step", || place.status()["condition"] == "in-step");
    daemon.stop();
    ip(&["addr", "del", "198.51.100.10/32", "dev", "lo"]);
    forget_ruleset(&place);
    let daemon = spawn();
    place.wait(&daemon, "in step", || place.status()["condition"] == "in-step");
    let found = place.status()["enforced"]["found"].as_str().unwrap().to_owned();
    assert!(found.starts_with("as before"), "{found}");
    daemon.stop();

    // With another address it is somebody else.
    ip(&["addr", "add", "198.51.100.99/32", "dev", "lo"]);
    forget_ruleset(&place);
    let daemon = spawn();
    place.wait(&daemon, "the host is missed", || place.status()["condition"] == "keeping");
    daemon.stop();
}

#[test]
fn a_state_that_cannot_be_written_stops_nothing() {
    let place = Place::new();
    let file = place.path("policy.toml");
    fs::write(&file, policy(OLD)).unwrap();
    fs::write(place.path("new.toml"), policy(NEW)).unwrap();
    fs::write(place.state(), "in the way").unwrap();
    let daemon = place.start(&file);
    assert!(place.table_has(OLD));
    assert!(place.status()["state_error"]["message"].is_string());
    assert_eq!(place.status()["condition"], "in-step");
    let shown = control(&place, &["status"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("the state on disk"));
    let answer = control(&place, &["try", text(&place.path("new.toml"))]);
    assert_eq!(answer.status.code(), Some(2));
    assert!(stderr(&answer).contains("a trial must be known on disk"), "{}", stderr(&answer));
    assert!(!place.table_has(NEW));

    fs::remove_file(place.state()).unwrap();
    fs::write(&file, policy("192.0.2.3")).unwrap();
    place.wait(&daemon, "the state is written", || {
        place.table_has("192.0.2.3") && place.status()["state_error"] == Value::Null
    });
    assert_eq!(history(&place).len(), 1);
    daemon.stop();
}

#[test]
fn a_full_or_read_only_disk_stops_nothing() {
    let place = Place::new();
    let file = place.path("policy.toml");
    fs::write(&file, policy(OLD)).unwrap();
    fs::create_dir(place.state()).unwrap();
    let state = place.state();
    // In a mount namespace of its own, which goes with the daemon.
    let script =
        "mount -t tmpfs -o size=32k,mode=0700 none \"$1\" && head -c 32k /dev/zero > \"$1/filler\"; shift; exec \"$@\"";
    let mut command = place.command("unshare");
    command.args(["--mount", "sh", "-c", script, "sh", text(&state), env!("CARGO_BIN_EXE_portward")]);
    command.args(["run", "--host", "console", "--policy"]).arg(&file).arg("--control-socket").arg(place.socket());
    command.arg("--state-dir").arg(&state);
    let daemon = place.spawn_command(command);
    place.wait(&daemon, "in step", || place.status()["condition"] == "in-step");
    let state_error = || place.status()["state_error"]["message"].as_str().unwrap_or_default().to_owned();
    assert!(state_error().contains("No space left on device"), "{}", state_error());

    let inside = |script: &str| {
        let pid = daemon.child.id().to_string();
        let entered = ["--mount", "--target", &pid, "sh", "-c", script, "sh", text(&state)];
        let output = Command::new("nsenter").args(entered).output().expect("util-linux is installed");
        assert!(output.status.success(), "{script}: {}", stderr(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    fs::write(&file, policy(NEW)).unwrap();
    place.wait_for_admin(&daemon, NEW);
    assert_eq!(inside("ls -A \"$1\""), "filler\n", "nothing unfinished is left");
    inside("rm \"$1/filler\"");
    succeeds(&control(&place, &["reload"]));
    assert_eq!(place.status()["state_error"], Value::Null);
    assert!(inside("cat \"$1/last-good\"").contains(NEW));

    inside("mount -o remount,ro \"$1\"");
    fs::write(&file, policy("192.0.2.3")).unwrap();
    place.wait_for_admin(&daemon, "192.0.2.3");
    place.wait(&daemon, "it is told", || state_error().contains("Read-only file system"));
    assert_eq!(place.status()["condition"], "in-step");
    daemon.stop();
}

#[test]
fn a_kill_at_any_time_leaves_whole_files() {
    let place = Place::new();
    let file = place.path("policy.toml");
    fs::write(&file, policy(OLD)).unwrap();
    for round in 0..12_u64 {
        let daemon = place.start(&file);
        thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..8_u64 {
                    fs::write(&file, policy(&format!("192.0.2.{}", 10 + 8 * round + number))).unwrap();
                    // The daemon may be gone by now.
                    control(&place, &["reload"]);
                }
            });
            thread::sleep(Duration::from_millis(5 * round));
            daemon.signal(Signal::SIGKILL);
        });
        end_at_once(daemon);
        let entries = history(&place);
        assert!(entries.iter().all(|entry| entry["error"].is_null()), "{entries:#?}");
        assert!(!entries.is_empty() && entries.len() <= 11, "a kill may come before the oldest is removed");
    }
    let daemon = place.start(&file);
    assert!(!daemon.log().contains("the state on disk"), "{}", daemon.log());
    daemon.stop();
}

/// The part of sshd, when another test starts this program for it: accepts a connection on port 22 and, as long as that
/// is open, runs commands that are its children.
#[test]
fn plays_sshd() {
    let Some(folder) = std::env::var_os("PORTWARD_PLAYS_SSHD").map(PathBuf::from) else { return };
    let port = std::env::var("PORTWARD_PLAYS_PORT").unwrap().parse::<u16>().unwrap();
    let listener = TcpListener::bind(("198.51.100.10", port)).unwrap();
    fs::write(folder.join("listening"), "").unwrap();
    let (_session, _) = listener.accept().unwrap();
    let run = folder.join("run");
    let end = Instant::now() + PATIENCE * 4;
    while Instant::now() < end {
        if let Ok(script) = fs::read_to_string(&run) {
            fs::remove_file(&run).unwrap();
            // Behind a shell, as a user's commands are.
            let output = Command::new("sh").args(["-c", &format!("{script}; exit $?")]).output().unwrap();
            let answer = format!("{}\n{}", output.status.code().unwrap(), stderr(&output));
            fs::write(folder.join("answer.part"), answer).unwrap();
            fs::rename(folder.join("answer.part"), folder.join("answer")).unwrap();
        }
        if folder.join("end").exists() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("nobody ended the session");
}

/// Plays the client: connects from an administrator's address.
#[test]
fn plays_ssh() {
    let Some(folder) = std::env::var_os("PORTWARD_PLAYS_SSH").map(PathBuf::from) else { return };
    let port = std::env::var("PORTWARD_PLAYS_PORT").unwrap().parse::<u16>().unwrap();
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
    let address = |text: &str| SockaddrIn::from(text.parse::<SocketAddrV4>().unwrap());
    bind(socket.as_raw_fd(), &address(&format!("{OLD}:0"))).unwrap();
    connect(socket.as_raw_fd(), &address(&format!("198.51.100.10:{port}"))).unwrap();
    fs::write(folder.join("connected"), "").unwrap();
    let end = Instant::now() + PATIENCE * 4;
    while !folder.join("end").exists() {
        assert!(Instant::now() < end, "nobody ended the session");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Somebody who is logged in from the old administrator's address.
struct Login<'p> {
    place: &'p Place,
    folder: PathBuf,
    server: Daemon,
    client: Daemon,
}

impl<'p> Login<'p> {
    fn new(place: &'p Place, daemon: &Daemon, port: u16, name: &str) -> Self {
        let folder = place.path(&format!("login-{name}-{port}"));
        fs::create_dir(&folder).unwrap();
        // Processes are known by the names of their programs.
        let program = folder.join(name);
        program::copy(std::env::current_exe().unwrap(), &program);
        let play = |test: &str, variable: &str| {
            let mut command = place.command(text(&program));
            command.args(["--exact", test, "--nocapture"]).env(variable, &folder);
            command.env("PORTWARD_PLAYS_PORT", port.to_string()).env_remove("SSH_CONNECTION");
            place.spawn_command(command)
        };
        let server = play("plays_sshd", "PORTWARD_PLAYS_SSHD");
        place.wait(daemon, &format!("sshd listens: {}", server.log()), || folder.join("listening").exists());
        let client = play("plays_ssh", "PORTWARD_PLAYS_SSH");
        place.wait(daemon, "the client is connected", || folder.join("connected").exists());
        Self { place, folder, server, client }
    }

    fn begin(&self, arguments: &[&str]) {
        let program = [env!("CARGO_BIN_EXE_portward")];
        let script = program.iter().chain(arguments).map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
        fs::write(self.folder.join("script"), script).unwrap();
        fs::rename(self.folder.join("script"), self.folder.join("run")).unwrap();
    }

    fn answer(&self, daemon: &Daemon) -> (i32, String) {
        let path = self.folder.join("answer");
        self.place.wait(daemon, "the command ends", || path.exists());
        let text = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let (code, errors) = text.split_once('\n').unwrap();
        (code.parse().unwrap(), errors.to_owned())
    }

    fn run(&self, daemon: &Daemon, arguments: &[&str]) -> (i32, String) {
        self.begin(arguments);
        self.answer(daemon)
    }

    fn end(mut self) {
        fs::write(self.folder.join("end"), "").unwrap();
        assert!(self.server.end().success(), "{}", self.server.log());
        assert!(self.client.end().success(), "{}", self.client.log());
    }
}

/// A place that has the addresses of the host and of its administrators, on the loopback interface.
fn place_with_addresses() -> Place {
    let place = Place::new();
    for arguments in [
        &["link", "set", "lo", "up"][..],
        &["addr", "add", "198.51.100.10/32", "dev", "lo"],
        &["addr", "add", "192.0.2.1/32", "dev", "lo"],
        &["addr", "add", "192.0.2.2/32", "dev", "lo"],
    ] {
        assert!(place.command("ip").args(arguments).status().unwrap().success());
    }
    place
}

#[test]
fn what_would_cut_the_callers_own_session_is_refused() {
    let place = place_with_addresses();
    let (file, new) = (place.path("policy.toml"), place.path("new.toml"));
    fs::write(&file, policy(OLD)).unwrap();
    fs::write(&new, policy(NEW)).unwrap();
    let daemon = place.start(&file);
    let socket = place.socket();
    let socket = text(&socket);
    let login = Login::new(&place, &daemon, 22, "shell-server");

    let (code, told) = login.run(&daemon, &["try", text(&new), "--control-socket", socket]);
    assert_eq!(code, 2, "{told}");
    assert!(told.contains("your own SSH session (from 192.0.2.1 to 22/tcp)") && told.contains("--force"), "{told}");
    assert!(place.table_has(OLD) && !place.table_has(NEW));
    // Who sits elsewhere may.
    let mut tried = try_new(&place, &daemon, "1");
    assert_eq!(tried.end().code(), Some(1), "{}", tried.log());
    let (code, told) =
        login.run(&daemon, &["try", text(&new), "--force", "--timeout", "1", "--control-socket", socket]);
    assert_eq!(code, 1, "{told}");

    // Whoever has changed the file is not known, and may be the one who would be cut.
    fs::write(&file, policy(NEW)).unwrap();
    place.wait(&daemon, "the edit is held back", || place.status()["condition"] == "keeping");
    let why = place.status()["policy_error"]["message"].to_string();
    assert!(why.contains("the SSH session from 192.0.2.1 to 22/tcp could not be opened again"), "{why}");
    let (code, told) = login.run(&daemon, &["reload", "--control-socket", socket]);
    assert_eq!(code, 2, "{told}");
    assert!(told.contains("your own SSH session"), "{told}");
    assert!(place.table_has(OLD) && !place.table_has(NEW));
    let (code, told) = login.run(&daemon, &["reload", "--force", "--control-socket", socket]);
    assert_eq!(code, 0, "{told}");
    assert!(place.table_has(NEW) && !place.table_has(OLD));

    // A rollback is judged before the file is touched.
    fs::write(&file, policy(OLD)).unwrap();
    place.wait_for_admin(&daemon, OLD);
    place.wait(&daemon, "it is kept", || history(&place).len() == 3);
    let rollback = ["rollback", "--control-socket", socket];
    let (code, told) = login.run(&daemon, &rollback);
    assert_eq!(code, 2, "{told}");
    assert!(told.contains("your own SSH session"), "{told}");
    assert_eq!(fs::read_to_string(&file).unwrap(), policy(OLD));

    // Who sits elsewhere may, and is told whom that cuts.
    fs::write(&file, policy(NEW)).unwrap();
    succeeds(&control(&place, &["reload"]));
    assert!(place.table_has(NEW) && !place.table_has(OLD));
    let warnings = place.status()["enforced"]["warnings"].to_string();
    assert!(warnings.contains("an SSH session from 192.0.2.1 is open now"), "{warnings}");
    // When nobody could log in, the file is refused, too.
    fs::write(&file, policy(OLD).replace("admin", "user")).unwrap();
    place.wait(&daemon, "the lockout is seen", || place.status()["condition"] == "keeping");
    let (code, told) = login.run(&daemon, &["reload", "--force", "--control-socket", socket]);
    assert_eq!(code, 0, "{told}");
    login.end();
    daemon.stop();
}

#[test]
fn an_sshd_on_another_port_is_known_by_its_name_and_others_by_a_hint_that_the_kernel_confirms() {
    let place = place_with_addresses();
    let (file, new) = (place.path("policy.toml"), place.path("new.toml"));
    fs::write(&file, policy(OLD)).unwrap();
    fs::write(&new, policy(NEW)).unwrap();
    let daemon = place.start(&file);
    let socket = place.socket();
    let attempt = ["try", text(&new), "--timeout", "1", "--control-socket", text(&socket)];

    let login = Login::new(&place, &daemon, 2022, "sshd");
    let (code, told) = login.run(&daemon, &attempt);
    assert_eq!(code, 2, "{told}");
    assert!(told.contains("from 192.0.2.1 to 2022/tcp"), "{told}");
    // What runs outside of the session is no part of it, unless the hint is true.
    let hinted = |hint: &str| {
        let mut command = place.command(env!("CARGO_BIN_EXE_portward"));
        command.args(attempt).env("SSH_CONNECTION", hint).output().unwrap()
    };
    let connections = Command::new("ip")
        .args(["netns", "exec", &place.namespace, "cat", "/proc/net/tcp"])
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap();
    // In hexadecimal: local port 2022 is 07E6, the peer 192.0.2.1 is 010200C0 (proc_net_tcp).
    let line = connections.lines().find(|line| line.contains(":07E6 010200C0:")).expect("the connection is listed");
    let peer = line.split_whitespace().nth(2).unwrap().rsplit_once(':').unwrap().1;
    let peer_port = u16::from_str_radix(peer, 16).unwrap();
    let output = hinted(&format!("192.0.2.1 {peer_port} 198.51.100.10 2022"));
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("your own SSH session"), "{}", stderr(&output));
    let output = hinted(&format!("192.0.2.1 {} 198.51.100.10 2022", peer_port ^ 1));
    assert_eq!(output.status.code(), Some(1), "a hint that is not true counts for nothing: {}", stderr(&output));
    login.end();

    // A program of another name that serves another port is no login.
    let login = Login::new(&place, &daemon, 8022, "web-server");
    let (code, told) = login.run(&daemon, &attempt);
    assert_eq!(code, 1, "{told}");
    login.end();
    daemon.stop();
}
