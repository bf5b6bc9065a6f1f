//! The daemon as a service manager and its users meet it: the real binary, in network namespaces of its own, against
//! the real kernel. Needs root, iproute2, nftables and util-linux.

#![allow(clippy::unwrap_used)] // A test that cannot go on has failed.

mod place;
mod program;

use nix::sys::signal::Signal;
use place::{Daemon, PATIENCE, Place, policy};
use serde_json::Value;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::Command;
use std::time::Duration;

#[test]
fn follows_the_file_however_it_is_changed() {
    let place = Place::new();
    let file = place.path("policy.toml");
    fs::write(&file, policy("192.0.2.1")).unwrap();
    let daemon = place.start(&file);
    place.wait_for_admin(&daemon, "192.0.2.1");

    // Truncated and written, in two parts.
    let text = policy("192.0.2.2");
    let mut open = File::create(&file).unwrap();
    open.write_all(&text.as_bytes()[..20]).unwrap();
    open.sync_all().unwrap();
    open.write_all(&text.as_bytes()[20..]).unwrap();
    drop(open);
    place.wait_for_admin(&daemon, "192.0.2.2");
    assert!(!place.table_has("192.0.2.1,") && !place.table_has("192.0.2.1 "), "the old address is gone");

    // Renamed over.
    fs::write(place.path("policy.toml~"), policy("192.0.2.3")).unwrap();
    fs::rename(place.path("policy.toml~"), &file).unwrap();
    place.wait_for_admin(&daemon, "192.0.2.3");

    // Deleted, which keeps what runs, and written again.
    fs::remove_file(&file).unwrap();
    place.wait(&daemon, "the file is missed", || place.status()["condition"] == "keeping");
    assert!(place.table_has("192.0.2.3"));
    fs::write(&file, policy("192.0.2.4")).unwrap();
    place.wait_for_admin(&daemon, "192.0.2.4");
    place.wait(&daemon, "in step", || place.status()["condition"] == "in-step");
    daemon.stop();
}

#[test]
fn follows_switched_links() {
    let place = Place::new();
    for (version, admin) in [("v1", "192.0.2.1"), ("v2", "192.0.2.2"), ("v3", "192.0.2.3")] {
        fs::create_dir_all(place.path(version)).unwrap();
        fs::write(place.path(version).join("policy.toml"), policy(admin)).unwrap();
    }
    fs::create_dir(place.path("etc")).unwrap();
    symlink("../v1", place.path("etc/..data")).unwrap();
    symlink("..data/policy.toml", place.path("etc/policy.toml")).unwrap();
    symlink("etc", place.path("config")).unwrap();
    let daemon = place.start(&place.path("config/policy.toml"));
    place.wait_for_admin(&daemon, "192.0.2.1");

    symlink("../v2", place.path("etc/..new")).unwrap();
    fs::rename(place.path("etc/..new"), place.path("etc/..data")).unwrap();
    place.wait_for_admin(&daemon, "192.0.2.2");

    // The folder itself leads elsewhere.
    fs::remove_file(place.path("config")).unwrap();
    symlink("v3", place.path("config")).unwrap();
    place.wait_for_admin(&daemon, "192.0.2.3");
    daemon.stop();
}

#[test]
fn follows_a_folder_that_goes_and_returns() {
    let place = Place::new();
    let file = place.path("etc/portward/policy.toml");
    let write = |admin: &str| {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, policy(admin)).unwrap();
    };
    write("192.0.2.1");
    let daemon = place.start(&file);
    fs::remove_dir_all(place.path("etc")).unwrap();
    place.wait(&daemon, "the file is missed", || place.status()["condition"] == "keeping");
    assert!(place.table_has("192.0.2.1"));
    write("192.0.2.2");
    place.wait_for_admin(&daemon, "192.0.2.2");
    fs::write(&file, policy("192.0.2.3")).unwrap();
    place.wait_for_admin(&daemon, "192.0.2.3");
    daemon.stop();
}

#[test]
fn a_bad_file_changes_nothing_and_is_told_once() {
    let place = Place::new();
    let file = place.path("policy.toml");
    fs::write(&file, policy("192.0.2.1")).unwrap();
    let daemon = place.start(&file);
    let (generation, _) = place.compare(&file);

    let bad = policy("192.0.2.2").replace("roles", "rolls");
    fs::write(&file, &bad).unwrap();
    place.wait(&daemon, "the error is seen", || place.status()["condition"] == "keeping");
    let message = place.status()["policy_error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("rolls") && message.contains("policy.toml:7"), "{message}");
    let answer = place.portward(&["status", "--control-socket", place.socket().to_str().unwrap()]);
    assert_eq!(answer.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&answer.stdout).contains("rolls"));

    // The same content again, replaced and touched, is no news.
    for _ in 0..2 {
        fs::write(place.path("new"), &bad).unwrap();
        fs::rename(place.path("new"), &file).unwrap();
        std::thread::sleep(Duration::from_millis(400));
    }
    assert_eq!(daemon.log().matches("unknown key").count(), 1, "{}", daemon.log());

    // A reload that is asked for is answered with the error.
    let answer = place.portward(&["reload", "--control-socket", place.socket().to_str().unwrap()]);
    assert_eq!(answer.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&answer.stderr).contains("rolls"));

    // What locks the administrators out, or no longer has this host, does not load either.
    fs::write(&file, policy("192.0.2.2").replace("admin", "user")).unwrap();
    place.wait(&daemon, "the lockout is seen", || {
        place.status()["policy_error"]["message"].as_str().is_some_and(|message| message.contains("22/tcp"))
    });
    fs::write(&file, policy("192.0.2.2").replace("\"console\"\naddr", "\"main\"\naddr")).unwrap();
    place.wait(&daemon, "the missing host is seen", || {
        place.status()["policy_error"]["message"].as_str().is_some_and(|message| message.contains("main"))
    });

    fs::write(&file, policy("192.0.2.1")).unwrap();
    place.wait(&daemon, "in step", || place.status()["condition"] == "in-step");
    assert_eq!(place.compare(&file), (generation, true), "the kernel was never touched");
    daemon.stop();
}

#[test]
fn a_hangup_and_a_request_reload_at_once() {
    let place = Place::new();
    let file = place.path("policy.toml");
    fs::write(&file, policy("192.0.2.1")).unwrap();
    let daemon = place.start(&file);
    let socket = place.socket();

    fs::write(&file, policy("192.0.2.2")).unwrap();
    let answer = place.portward(&["reload", "--control-socket", socket.to_str().unwrap()]);
    assert_eq!(answer.status.code(), Some(0), "{}", String::from_utf8_lossy(&answer.stderr));
    assert!(place.table_has("192.0.2.2"), "a reload is done when it is answered");

    let loaded = daemon.log().matches("SIGHUP").count();
    daemon.signal(Signal::SIGHUP);
    place.wait(&daemon, "SIGHUP is heeded", || daemon.log().matches("SIGHUP").count() > loaded);
    daemon.stop();
}

#[test]
fn the_table_outlives_the_daemon_and_is_adopted() {
    let place = Place::new();
    let file = place.path("policy.toml");
    fs::write(&file, policy("192.0.2.1")).unwrap();
    place.start(&file).stop();
    let (generation, same) = place.compare(&file);
    assert!(same);

    // Killed in between: the socket file of a dead daemon is no obstacle.
    let mut daemon = place.start(&file);
    assert_eq!(place.compare(&file), (generation, true), "adopting changes nothing");
    daemon.signal(Signal::SIGKILL);
    daemon.end();
    assert!(place.socket().exists());

    let mut daemon = place.start(&file);
    assert_eq!(place.compare(&file), (generation, true));
    daemon.signal(Signal::SIGINT);
    assert!(daemon.end().success());
    assert!(!place.socket().exists());
    assert!(place.table_has("192.0.2.1"));

    // Edited while no daemon ran: only the difference is applied.
    fs::write(&file, policy("192.0.2.2")).unwrap();
    let daemon = place.start(&file);
    assert_eq!(place.compare(&file), (generation + 1, true));
    let down = place.portward(&["down", "--control-socket", place.socket().to_str().unwrap()]);
    assert_eq!(down.status.code(), Some(2), "{}", String::from_utf8_lossy(&down.stdout));
    assert!(String::from_utf8_lossy(&down.stderr).contains("stop it first"));
    assert_eq!(place.compare(&file), (generation + 1, true), "nothing was removed");
    daemon.stop();

    let down = place.portward(&["down"]);
    assert_eq!(down.status.code(), Some(0), "{}", String::from_utf8_lossy(&down.stderr));
    assert_eq!(String::from_utf8_lossy(&down.stdout), "the table is removed\n");
    assert_eq!(place.table(), None);
}

#[test]
fn without_a_good_policy_a_table_is_kept_and_no_table_is_an_error() {
    let place = Place::new();
    let file = place.path("policy.toml");
    fs::write(&file, "nonsense").unwrap();
    let mut daemon = place.spawn(&file);
    assert_eq!(daemon.end().code(), Some(2));
    assert!(daemon.log().contains("policy.toml:1"), "{}", daemon.log());
    assert_eq!(place.table(), None);

    let good = place.path("good.toml");
    for path in [&good, &file] {
        fs::write(path, policy("192.0.2.1")).unwrap();
    }
    place.start(&file).stop();
    let (generation, _) = place.compare(&good);

    fs::write(&file, "nonsense").unwrap();
    let daemon = place.start(&file);
    let status = place.status();
    assert_eq!((&status["condition"], &status["source"]), (&"keeping".into(), &"last-good".into()));
    assert_eq!(status["enforced"]["host"], "console");
    assert_eq!(place.compare(&good).0, generation, "it is the same table");
    daemon.stop();

    // A table that nobody knows the policy of is kept as well, and guarded.
    fs::remove_dir_all(place.state()).unwrap();
    let daemon = place.start(&file);
    let status = place.status();
    assert_eq!((&status["condition"], &status["source"]), (&"keeping".into(), &"earlier-daemon".into()));
    assert_eq!(status["enforced"], Value::Null);
    assert!(place.table_has("192.0.2.1"));
    assert!(place.nft(&["flush", "ruleset"]).status.success());
    place.wait_for_admin(&daemon, "192.0.2.1");

    fs::write(&file, policy("192.0.2.1")).unwrap();
    place.wait(&daemon, "in step", || place.status()["condition"] == "in-step");
    let (now, same) = place.compare(&file);
    assert!(same && now > generation);
    daemon.stop();
}

#[test]
fn foreign_changes_are_repaired_and_told() {
    let place = Place::new();
    let file = place.path("policy.toml");
    fs::write(&file, policy("192.0.2.1")).unwrap();
    let daemon = place.start(&file);
    for (number, change) in [
        &["flush", "ruleset"][..],
        &["delete", "table", "inet", "portward"],
        &["insert", "rule", "inet", "portward", "input", "accept"],
        &["flush", "chain", "inet", "portward", "input"],
        &["add", "chain", "inet", "portward", "stranger"],
        &["add", "counter", "inet", "portward", "stranger"],
        &["insert", "rule", "inet", "portward", "input", "meta", "mark", "7", "accept"],
    ]
    .into_iter()
    .enumerate()
    {
        let output = place.nft(change);
        assert!(output.status.success(), "{change:?}: {}", String::from_utf8_lossy(&output.stderr));
        place.wait(&daemon, &format!("{change:?} is repaired"), || {
            place.status()["repairs"].as_u64() == Some(number as u64 + 1) && place.compare(&file).1
        });
    }
    let by = place.status()["last_repair"]["by"].as_str().unwrap().to_owned();
    assert!(by.contains("nft"), "{by}");
    assert!(!place.table_has("stranger"));

    // What others do elsewhere is none of our business, and no obstacle.
    assert!(place.nft(&["add", "table", "ip", "theirs"]).status.success());
    fs::write(&file, policy("192.0.2.2")).unwrap();
    place.wait_for_admin(&daemon, "192.0.2.2");
    assert!(place.nft(&["list", "table", "ip", "theirs"]).status.success());
    assert_eq!(place.status()["repairs"], 7);
    daemon.stop();
}

#[test]
fn the_service_manager_is_told() {
    let place = Place::new();
    let file = place.path("policy.toml");
    fs::write(&file, policy("192.0.2.1")).unwrap();
    let manager = UnixDatagram::bind(place.path("notify.sock")).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = || {
        let mut buffer = [0; 4096];
        let length = manager.recv(&mut buffer).expect("the service manager is told");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let mut command = place.command(env!("CARGO_BIN_EXE_portward"));
    command.args(["run", "--host", "console", "--policy"]).arg(&file).arg("--control-socket").arg(place.socket());
    command.arg("--state-dir").arg(place.state());
    command.env("NOTIFY_SOCKET", place.path("notify.sock"));
    let daemon = place.spawn_command(command);

    let ready = told();
    assert!(ready.contains("READY=1") && ready.contains("STATUS=host console, enforce"), "{ready}");
    assert!(place.table_has("192.0.2.1"), "ready means enforced");
    daemon.signal(Signal::SIGHUP);
    let reloading = told();
    assert!(reloading.contains("RELOADING=1") && reloading.contains("MONOTONIC_USEC="), "{reloading}");
    assert!(told().contains("READY=1"));
    fs::write(&file, "nonsense").unwrap();
    let status = told();
    assert!(status.contains("STATUS=") && status.contains("is not applied"), "{status}");
    daemon.signal(Signal::SIGTERM);
    let stopping = told();
    assert!(stopping.contains("STOPPING=1"), "{stopping}");
}

#[test]
fn the_watchdog_is_fed_by_the_loop_as_long_as_it_turns() {
    let place = Place::new();
    let path = place.path("policy.toml");
    fs::write(&path, policy("192.0.2.1")).unwrap();
    let manager = UnixDatagram::bind(place.path("notify.sock")).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let heard = || {
        let mut message = [0; 4096];
        let length = manager.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).trim_end().to_owned()
    };
    let mut command = place.command(env!("CARGO_BIN_EXE_portward"));
    command.args(["run", "--host", "console", "--policy"]).arg(&path).arg("--control-socket").arg(place.socket());
    command.arg("--state-dir").arg(place.state());
    command.env("NOTIFY_SOCKET", place.path("notify.sock")).env("WATCHDOG_USEC", "100000").env_remove("WATCHDOG_PID");
    let daemon = place.spawn_command(command);
    assert!(heard().contains("READY=1"));
    for _ in 0..5 {
        assert_eq!(heard(), "WATCHDOG=1");
    }
    // A daemon that hangs falls silent; what it had said before is read first.
    daemon.signal(Signal::SIGSTOP);
    manager.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    while manager.recv(&mut [0; 4096]).is_ok() {}
    daemon.signal(Signal::SIGCONT);
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(heard(), "WATCHDOG=1");
    daemon.stop();
}

#[test]
fn the_control_socket_answers_root_only_and_reads_little() {
    let place = Place::new();
    let file = place.path("policy.toml");
    fs::write(&file, policy("192.0.2.1")).unwrap();
    let daemon = place.start(&file);
    let socket = place.socket();
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);

    assert!(place.ask(b"{\"command\":\"status\"}")["status"].is_object());
    let error = |request: &[u8]| place.ask(request)["error"].as_str().unwrap().to_owned();
    assert!(error(b"{\"comm").contains("not understood"));
    assert!(error(b"\xff\x00\n").contains("not understood"));
    assert!(error(b"").contains("not understood"));
    assert!(error(&[b' '; 5000]).contains("longer than 4096 bytes"));

    // Even where the modes would let somebody in.
    fs::set_permissions(place.folder.path(), Permissions::from_mode(0o755)).unwrap();
    let binary = place.path("portward");
    program::copy(env!("CARGO_BIN_EXE_portward"), &binary);
    let as_nobody = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&binary);
        let output =
            command.args(["status", "--control-socket"]).arg(&socket).output().expect("util-linux is installed");
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let refused = as_nobody();
    assert!(refused.contains("only root may talk to the daemon"), "{refused}");
    fs::set_permissions(&socket, Permissions::from_mode(0o666)).unwrap();
    let refused = as_nobody();
    assert!(refused.contains("only root may ask"), "{refused}");

    // Clients that say nothing keep nobody else waiting for long.
    let silent: Vec<_> = (0..40).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    place.wait(&daemon, "the daemon answers beside silent clients", || place.status()["pid"] == daemon.child.id());
    drop(silent);

    let mut second = place.spawn(&file);
    assert_eq!(second.end().code(), Some(2));
    let log = second.log();
    assert!(log.contains("another portward daemon") && log.contains(&daemon.child.id().to_string()), "{log}");
    assert_eq!(place.status()["pid"], daemon.child.id(), "the first daemon keeps its socket");
    daemon.stop();
}

#[test]
fn the_log_has_a_form_for_programs() {
    let place = Place::new();
    let file = place.path("policy.toml");
    fs::write(&file, policy("192.0.2.1")).unwrap();
    let mut command = place.command(env!("CARGO_BIN_EXE_portward"));
    command.args(["run", "--log-format", "json", "--host", "console", "--policy"]).arg(&file);
    command.arg("--control-socket").arg(place.socket()).arg("--state-dir").arg(place.state());
    let daemon = place.spawn_command(command);
    place.wait(&daemon, "the daemon answers", || place.status()["pid"] == daemon.child.id());
    let log = daemon.log();
    assert!(!log.is_empty());
    for line in log.lines() {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(event["level"], "INFO", "{line}");
    }
    daemon.stop();
}

#[test]
fn the_sandbox_stands_apart_and_leaves_nothing() {
    let place = Place::new();
    let output = place.path("stdout");
    let mut child = Command::new(env!("CARGO_BIN_EXE_portward"))
        .args(["run", "--sandbox", "--control-socket"])
        .arg(place.socket())
        .env("TMPDIR", place.folder.path())
        .stdout(File::create(&output).unwrap())
        .stderr(File::create(place.path("log")).unwrap())
        .spawn()
        .map(|child| Daemon { child, log: place.path("log") })
        .unwrap();
    place.wait(&child, "the sandbox answers", || place.status()["condition"] == "in-step");
    let text = fs::read_to_string(&output).unwrap();
    assert!(text.contains("host console") && text.contains("edit this file"), "{text}");

    let scratch = fs::read_dir(place.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_string_lossy().contains("portward-sandbox"))
        .unwrap();
    let file = scratch.join("policy.toml");
    let edited = fs::read_to_string(&file).unwrap().replace("192.0.2.0/26", "203.0.113.128/25");
    fs::write(&file, edited).unwrap();
    let listed = |namespace: &[&str]| {
        let output = Command::new("nsenter").args(namespace).args(["nft", "list", "ruleset"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let pid = child.child.id().to_string();
    place.wait(&child, "the sandbox follows", || listed(&["--target", &pid, "--net"]).contains("203.0.113.128/25"));
    assert!(!listed(&["--target", "1", "--net"]).contains("203.0.113.128/25"), "the machine itself is untouched");

    child.signal(Signal::SIGINT);
    assert!(child.end().success(), "{}", child.log());
    assert!(!scratch.exists());
}

/// A daemon that was started by hand as root gives up what it does not need, in every thread, and so does whatever it
/// would start.
#[test]
fn a_daemon_keeps_the_capabilities_that_it_needs_and_no_others() {
    let place = Place::new();
    let file = place.path("policy.toml");
    fs::write(&file, policy("192.0.2.1")).unwrap();
    let daemon = place.start(&file);
    // Numbers of linux/capability.h: CAP_DAC_READ_SEARCH, CAP_NET_ADMIN, CAP_SYS_PTRACE; CAP_BPF.
    let (needed, bpf) = (1_u64 << 2 | 1 << 12 | 1 << 19, 1_u64 << 39);
    let mut observers = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", daemon.child.id())).unwrap() {
        // A thread may have ended meanwhile.
        let Ok(status) = fs::read_to_string(thread.unwrap().path().join("status")) else { continue };
        let field = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap().trim().to_owned()
        };
        let set = |name: &str| u64::from_str_radix(&field(name), 16).unwrap();
        let observes = field("Name") == "observer";
        observers += usize::from(observes);
        let expected = if observes && cfg!(feature = "bpf") { needed | bpf } else { needed };
        for name in ["CapEff", "CapPrm"] {
            assert_eq!(set(name), expected, "{name}: {status}");
        }
        for name in ["CapInh", "CapAmb", "CapBnd"] {
            assert_eq!(set(name), 0, "{name}: {status}");
        }
        assert_eq!(field("NoNewPrivs"), "1", "{status}");
    }
    assert_eq!(observers, 1);
}
