//! Dynamic ports where users meet them: real processes listen, the real daemon verifies, real packets come from others.
//! Attacks are tests like the rest: none of them opens anything.

#![allow(clippy::unwrap_used)] // A test that cannot go on has failed.

#[path = "../../tests/program/mod.rs"]
mod program;

use nix::sys::signal::Signal;
use portward_integration_tests::portward::{Daemon, portward, text};
use portward_integration_tests::probe::QUIET;
use portward_integration_tests::service::{self, Service};
use portward_integration_tests::site::{self, PATIENCE, Site};
use portward_integration_tests::{HostSpec, Lab};
use serde_json::Value;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A user without any privilege: `nobody` of Debian and RHEL.
const NOBODY: u32 = 65534;

/// The policy, with this `[dynamic.app]`.
fn policy(app: &str) -> String {
    format!(
        "format = 1
[groups]
admin = [\"192.0.2.200\"]
{}[dynamic.app]
{app}
",
        site::hosts("\"event-processor\"")
    )
}

/// A service whose process is the stand-in, run by root.
fn app(more: &str) -> String {
    let program = service::path().unwrap();
    format!(
        "anchor = \"9000/tcp\"
process = {{ user = \"root\", exe = [\"{}\"] }}
ports = [\"30000-60999/tcp\", \"30000-60999/udp\"]
from = [\"console\"]
{more}
",
        program.canonicalize().unwrap().display()
    )
}

fn site(app: &str) -> Site {
    site_with(app, &[])
}

fn site_with(app: &str, options: &[&str]) -> Site {
    Site::start(&policy(app), "ep", "app", options).unwrap()
}

/// A process that has just been started, and listens on the anchor.
fn anchored(started: anyhow::Result<Service>) -> Service {
    let mut service = started.unwrap();
    service.listen("tcp [::]:9000").unwrap();
    service
}

/// The service, with one open port.
fn open_port(site: &Site, socket: &str) -> (Service, u16) {
    let mut service = anchored(Service::start(site.host()));
    let port = service.listen(socket).unwrap();
    site.wait_open(&[port]);
    (service, port)
}

/// A site whose service has two open ports.
fn two_open_ports() -> (Site, Service, [u16; 2]) {
    let site = site(&app(""));
    let mut service = anchored(Service::start(site.host()));
    let ports = ["tcp [::]:50001", "tcp [::]:50002"].map(|socket| service.listen(socket).unwrap());
    site.wait_open(&ports);
    (site, service, ports)
}

/// Whoever has the anchor is not the service, and nothing is open.
fn assert_nothing_opens(site: &Site) {
    site.wait_condition("unverified");
    assert!(site.open("tcp").is_empty());
}

/// Most tests run with the kernel's events and by polling alike.
fn both_ways(test: impl Fn(&[&str])) {
    test(&[]);
    test(&["--listener-events", "poll"]);
}

#[test]
fn a_port_opens_when_its_process_listens_and_closes_when_it_stops() {
    both_ways(|options| {
        let site = site_with(&app(""), options);
        let mut service = anchored(Service::start(site.host()));
        let port = service.listen("tcp [::]:0").unwrap();
        // As soon as listen() has returned, the first SYN or its first retransmission gets through.
        assert!(site.passes("console", "192.0.2.2", port), "{}", site.daemon.log());
        assert!(site.passes("console", "2001:db8::2", port));
        assert!(site.denied("stranger", "192.0.2.2", port));
        assert!(site.denied("stranger", "2001:db8::2", port));
        service.tell(&format!("close {port}")).unwrap();
        site.wait_open(&[]);
        let ports: Vec<u16> = (0..3).map(|_| service.listen("tcp [::]:0").unwrap()).collect();
        site.wait_open(&ports);
        service.kill().unwrap();
        site.wait_open(&[]);
        assert_eq!(site.wait_condition("absent")["open"], Value::Array(Vec::new()));
    });
}

#[test]
fn the_way_it_is_noticed_is_told() {
    let site = site(&app(""));
    site.wait_condition("absent");
    let text = site.daemon.control("status").unwrap().stdout;
    let expected = match cfg!(feature = "bpf") {
        true => "the kernel tells of new ones (BPF)",
        false => "looked at every 250 ms: this build of portward has no BPF programs (feature `bpf`)",
    };
    assert!(text.contains(expected), "{text}\n{}", site.daemon.log());
    let site = site_with(&app(""), &["--listener-events", "poll", "--listener-poll", "100"]);
    site.wait_condition("absent");
    let text = site.daemon.control("status").unwrap().stdout;
    assert!(text.contains("looked at every 100 ms: switched off by --listener-events poll"), "{text}");
}

#[test]
fn each_family_and_address_opens_for_itself() {
    both_ways(|options| {
        let site = site_with(&app("limit = 8"), options);
        let mut service = anchored(Service::start(site.host()));
        let only_ipv4 = service.listen("tcp 0.0.0.0:0").unwrap();
        let only_ipv6 = service.listen("tcp [::]:0 v6only").unwrap();
        let mapped = service.listen("tcp [::ffff:192.0.2.2]:0").unwrap();
        let one_address = service.listen("tcp 192.0.2.22:0").unwrap();
        let one_address_ipv6 = service.listen("tcp [2001:db8::2]:0").unwrap();
        let local = service.listen("tcp 127.0.0.1:0").unwrap();
        let local_ipv6 = service.listen("tcp [::1]:0").unwrap();
        let local_device = service.listen("tcp [::]:0 dev lo").unwrap();
        site.wait_open(&[only_ipv4, only_ipv6, mapped, one_address, one_address_ipv6]);
        assert!(site.passes("console", "192.0.2.2", only_ipv4) && site.passes("console", "192.0.2.22", only_ipv4));
        assert!(site.passes("console", "2001:db8::2", only_ipv6));
        assert!(site.passes("console", "192.0.2.2", mapped));
        assert!(site.passes("console", "192.0.2.22", one_address));
        assert!(site.passes("console", "2001:db8::2", one_address_ipv6));
        // Nobody listens there, and the firewall does not even let the question through.
        for (to, port) in [
            ("2001:db8::2", only_ipv4),
            ("192.0.2.2", only_ipv6),
            ("192.0.2.22", mapped),
            ("192.0.2.2", one_address),
            ("192.0.2.2", local),
            ("2001:db8::2", local_ipv6),
            ("192.0.2.2", local_device),
        ] {
            assert!(site.denied("console", to, port), "{to} {port}");
        }
        assert_eq!(site.wait_refused(local), "only the host itself can reach it");
    });
}

#[test]
fn udp_ports_are_followed_as_well() {
    both_ways(|options| {
        let site = site_with(&app(""), options);
        let mut service = anchored(Service::start(site.host()));
        let port = service.listen("udp [::]:0").unwrap();
        let is_open = || site.open("udp").contains(&port);
        let wait = |wanted: bool| {
            let deadline = Instant::now() + PATIENCE;
            while is_open() != wanted {
                assert!(Instant::now() < deadline, "{}", site.daemon.log());
                sleep(Duration::from_millis(5));
            }
        };
        wait(true);
        service.tell(&format!("close {port}")).unwrap();
        wait(false);
    });
}

#[test]
fn the_limit_and_the_range_bound_what_a_service_may_open() {
    let site = site(&app("limit = 2"));
    let mut service = anchored(Service::start(site.host()));
    let first = service.listen("tcp [::]:50001").unwrap();
    let second = service.listen("tcp [::]:50002").unwrap();
    site.wait_open(&[first, second]);
    let third = service.listen("tcp [::]:50000").unwrap();
    let outside = service.listen("tcp [::]:29999").unwrap();
    assert_eq!(site.wait_refused(third), "beyond the limit of 2 ports");
    site.wait_open(&[first, second]);
    assert!(site.denied("console", "192.0.2.2", outside));
    service.tell("close 50001").unwrap();
    site.wait_open(&[third, second]);
    // A policy that allows more opens more, and one that allows none closes all.
    fs::write(site.policy(), policy(&app("limit = 3"))).unwrap();
    site.daemon.reload().unwrap();
    service.listen("tcp [::]:50001").unwrap();
    site.wait_open(&[50000, 50001, 50002]);
    fs::write(site.policy(), policy(&app("enabled = false"))).unwrap();
    site.daemon.reload().unwrap();
    let table = portward_integration_tests::portward::table(site.host()).unwrap().unwrap();
    assert!(table.maps.get("dynamic_tcp").is_none_or(|map| map.elements.is_empty()));
}

#[test]
fn a_restarted_daemon_verifies_everything_anew_and_loses_no_port() {
    let (mut site, mut service, [stays, goes]) = two_open_ports();
    site.daemon.end(Signal::SIGKILL).unwrap();
    service.tell(&format!("close {goes}")).unwrap();
    // Somebody else takes the port that is still open in the kernel.
    let mut thief = Service::start_as(site.host(), NOBODY).unwrap();
    thief.listen(&format!("tcp [::]:{goes}")).unwrap();
    site.start_again().unwrap();
    // When the daemon says that it is ready, that is so already.
    assert_eq!(site.open("tcp"), [stays]);
    assert!(site.denied("console", "192.0.2.2", goes));
}

#[test]
fn a_restart_with_a_policy_that_does_not_load_loses_no_port() {
    let (mut site, mut service, [stays, goes]) = two_open_ports();
    fs::write(site.policy(), "an edit that went wrong").unwrap();
    site.daemon.end(Signal::SIGKILL).unwrap();
    service.tell(&format!("close {goes}")).unwrap();
    site.start_again().unwrap();
    // Ready means, here too, that what is open is verified.
    assert_eq!(site.status()["condition"], "keeping");
    assert_eq!(site.open("tcp"), [stays]);
    // They are followed as ever.
    let comes = service.listen("tcp [::]:50003").unwrap();
    site.wait_open(&[stays, comes]);
}

#[test]
fn a_service_that_restarts_all_the_time_does_not_flood_the_kernel() {
    let site = site(&app("limit = 1000"));
    let generation = || -> u64 { site.status()["generation"].as_u64().unwrap() };
    let mut service = anchored(Service::start(site.host()));
    site.wait_condition("tracked");
    let before = generation();
    service.tell("churn 2000 2").unwrap();
    site.wait_open(&[]);
    let transactions = generation() - before;
    // Two for each of 4,000 listeners would be 8,000; in steps of a millisecond there are two thousand.
    assert!(transactions < 4000, "{transactions}");
    // Polling does not even notice listeners that live so shortly.
    assert!(transactions > 0 || !cfg!(feature = "bpf"));
}

#[test]
fn connections_of_a_closed_port_go_on_or_are_cut() {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    for (more, survives) in [("", true), ("on-close = \"cut\"", false)] {
        let site = site(&app(more));
        let (mut service, port) = open_port(&site, "tcp [::]:0");
        let mut stream = site.lab().host("console").run(|| TcpStream::connect(("192.0.2.2", port))).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut echo = || -> std::io::Result<()> {
            stream.write_all(b"x")?;
            stream.read_exact(&mut [0])
        };
        echo().unwrap();
        service.tell(&format!("close {port}")).unwrap();
        site.wait_open(&[]);
        sleep(QUIET);
        assert_eq!(echo().is_ok(), survives, "{more}");
    }
}

// Attacks. None opens anything.

#[test]
fn an_unprivileged_user_takes_the_anchor_first() {
    both_ways(|options| {
        let site = site_with(&app(""), options);
        let mut thief = anchored(Service::start_as(site.host(), NOBODY));
        let port = thief.listen("tcp [::]:0").unwrap();
        let service = site.wait_condition("unverified");
        assert!(service["detail"].as_str().unwrap().contains("not by root"), "{service}");
        assert!(site.denied("console", "192.0.2.2", port));
        assert!(site.open("tcp").is_empty());
    });
}

#[test]
fn another_program_of_the_right_user_takes_the_anchor() {
    let site = site(&app(""));
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("stand-in");
    program::copy(service::path().unwrap(), &copy);
    let mut thief = anchored(Service::start_command(site.host(), &mut Command::new(&copy)));
    thief.listen("tcp [::]:0").unwrap();
    assert_nothing_opens(&site);
}

#[test]
fn names_and_arguments_are_faked() {
    let name = service::path().unwrap().canonicalize().unwrap();
    let site = site(&app("").replace("exe =", "args = [\"genuine\"], exe ="));
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("stand-in");
    program::copy(&name, &copy);
    let mut command = Command::new(&copy);
    command.arg0(&name).arg("genuine").uid(NOBODY).gid(NOBODY);
    let folder_mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    fs::set_permissions(folder.path(), folder_mode).unwrap();
    let mut thief = Service::start_command(site.host(), &mut command).unwrap();
    thief.tell("name stand-in").unwrap();
    thief.listen("tcp [::]:9000").unwrap();
    thief.listen("tcp [::]:0").unwrap();
    assert_nothing_opens(&site);
    thief.kill().unwrap();
    // The same words of the real process are heeded.
    let mut genuine = anchored(Service::start_command(site.host(), Command::new(&name).arg("genuine")));
    let port = genuine.listen("tcp [::]:0").unwrap();
    site.wait_open(&[port]);
}

#[test]
fn a_deleted_or_replaced_program_is_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().canonicalize().unwrap().join("service");
    program::copy(service::path().unwrap(), &copy);
    let description =
        app("").replace(service::path().unwrap().canonicalize().unwrap().to_str().unwrap(), copy.to_str().unwrap());
    let site = site(&description);
    let mut service = Service::start_command(site.host(), &mut Command::new(&copy)).unwrap();
    // A program of another name in its place, as an attacker would put it after deleting the genuine one.
    fs::remove_file(&copy).unwrap();
    service.listen("tcp [::]:9000").unwrap();
    service.listen("tcp [::]:0").unwrap();
    site.wait_condition("unverified");
    program::copy(service::path().unwrap(), &copy);
    sleep(QUIET);
    assert_eq!(site.service()["condition"], "unverified");
    assert!(site.open("tcp").is_empty());
    // A symbolic link at the expected place leads to another program, and the kernel names that one.
    service.kill().unwrap();
    fs::remove_file(&copy).unwrap();
    std::os::unix::fs::symlink(service::path().unwrap(), &copy).unwrap();
    let mut linked = anchored(Service::start_command(site.host(), &mut Command::new(&copy)));
    linked.listen("tcp [::]:0").unwrap();
    assert_nothing_opens(&site);
}

#[test]
fn a_port_that_the_service_has_just_left_is_taken_over() {
    both_ways(|options| {
        let site = site_with(&app(""), options);
        let (mut service, port) = open_port(&site, "tcp [::]:0");
        let mut thief = Service::start_as(site.host(), NOBODY).unwrap();
        service.tell(&format!("close {port}")).unwrap();
        thief.listen(&format!("tcp [::]:{port}")).unwrap();
        site.wait_open(&[]);
        assert!(site.denied("console", "192.0.2.2", port));
    });
}

#[test]
fn a_port_is_shared_with_a_stranger() {
    let site = site(&app(""));
    let (_service, port) = open_port(&site, "tcp [::]:0 reuse");
    // The kernel lets only the same user share a TCP port; a program of the same user is a stranger all the same.
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("stand-in");
    program::copy(service::path().unwrap(), &copy);
    let mut thief = Service::start_command(site.host(), &mut Command::new(&copy)).unwrap();
    thief.listen(&format!("tcp [::]:{port} reuse")).unwrap();
    site.wait_open(&[]);
    assert!(site.wait_refused(port).starts_with("shared with another process"));
    thief.kill().unwrap();
    site.wait_open(&[port]);
}

#[test]
fn a_process_in_another_namespace_listens_on_the_anchor() {
    both_ways(|options| {
        let site = site_with(&app(""), options);
        let mut elsewhere = anchored(Service::start(site.lab().host("stranger")));
        elsewhere.listen("tcp [::]:40001").unwrap();
        sleep(QUIET);
        assert_eq!(site.service()["condition"], "absent");
        assert!(site.open("tcp").is_empty());
    });
}

#[test]
fn ten_thousand_listeners_appear() {
    both_ways(|options| {
        let site = site_with(&app(""), options);
        let (mut service, _) = open_port(&site, "tcp [::]:30001");
        let mut crowd = Service::start_as(site.host(), NOBODY).unwrap();
        crowd.tell("many 10000").unwrap();
        // The service is followed as before.
        let another = service.listen("tcp [::]:30002").unwrap();
        assert!(site.passes("console", "192.0.2.2", another));
        service.tell("close 30001").unwrap();
        site.wait_open(&[another]);
        crowd.kill().unwrap();
        site.wait_open(&[another]);
    });
}

#[test]
fn a_hidden_proc_opens_nothing_and_says_so() {
    let site = site(&app(""));
    drop(site);
    let lab = Lab::new(&[HostSpec::new("ep", &["192.0.2.2", "2001:db8::2"])]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.toml");
    fs::write(&path, policy(&app(""))).unwrap();
    // A /proc of its own that shows nobody else's processes, and no capability to see through that.
    let daemon = Daemon::start_wrapped(
        lab.host("ep"),
        &path,
        "ep",
        folder.path(),
        &[
            "unshare",
            "--mount",
            "sh",
            "-c",
            "mount -t proc -o hidepid=2 proc /proc && exec setpriv --bounding-set -sys_ptrace,-dac_read_search,-dac_override --inh-caps -all \
             --no-new-privs \"$0\" \"$@\"",
        ],
    )
    .unwrap();
    let mut service = anchored(Service::start_as(lab.host("ep"), NOBODY));
    service.listen("tcp [::]:0").unwrap();
    sleep(QUIET * 2);
    let status = daemon.control("status").unwrap();
    assert!(status.stdout.contains("nothing open"), "{}\n{}", status.stdout, daemon.log());
    let table = portward_integration_tests::portward::table(lab.host("ep")).unwrap().unwrap();
    assert!(table.maps["dynamic_tcp"].elements.is_empty());
}

#[test]
fn listeners_tells_who_may_reach_what() {
    let site = site(&app(""));
    let mut service = anchored(Service::start(site.host()));
    let port = service.listen("tcp [::]:0").unwrap();
    let local = service.listen("tcp 127.0.0.1:0").unwrap();
    service.listen("tcp [::]:22").unwrap();
    site.wait_open(&[port]);
    let arguments = [
        "listeners",
        "--policy",
        text(&site.policy()).unwrap(),
        "--host",
        "ep",
        "--control-socket",
        text(&site.socket()).unwrap(),
    ]
    .map(str::to_owned);
    let run = |more: &[&str]| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        portward(site.host(), &arguments).unwrap()
    };
    let json: Value = serde_json::from_str(&run(&["--json"]).stdout).unwrap();
    let find = |port: u16| {
        let listeners = json["listeners"].as_array().unwrap();
        listeners.iter().find(|listener| listener["port"] == port).cloned().unwrap_or_else(|| panic!("{json:#}"))
    };
    assert_eq!(find(port)["exposure"], "open");
    assert_eq!(find(port)["open"][0]["groups"], serde_json::json!(["console"]));
    assert_eq!(find(port)["processes"][0]["pid"], service.pid());
    assert_eq!(find(local)["exposure"], "local");
    assert_eq!(find(22)["open"][0]["row"], "ssh");
    let table = run(&[]).stdout;
    assert!(table.starts_with("PORT"), "{table}");
    assert!(table.lines().any(|line| line.starts_with(&format!("{port}/tcp")) && line.contains("console")), "{table}");
}

#[test]
fn diff_and_apply_leave_alone_what_the_daemon_has_open() {
    let site = site(&app(""));
    let (_service, port) = open_port(&site, "tcp 0.0.0.0:0");
    let (policy, socket) = (site.policy(), site.socket());
    let run = |command, socket| {
        let arguments = [command, "--policy", text(&policy).unwrap(), "--host", "ep", "--control-socket", socket];
        portward(site.host(), &arguments).unwrap()
    };
    for command in ["diff", "apply"] {
        let answer = run(command, text(&socket).unwrap());
        assert_eq!(answer.code, 0, "{command}: {}{}", answer.stdout, answer.stderr);
        assert!(answer.stdout.contains("holds what the policy says"), "{command}: {}", answer.stdout);
    }
    assert_eq!(site.open("tcp"), [port]);
    // Without a daemon nobody vouches for the port.
    let answer = run("diff", "/nonexistent");
    assert!(answer.code == 1 && answer.stdout.contains(&format!("{port} : jump dyn_app.v4")), "{}", answer.stdout);
}
