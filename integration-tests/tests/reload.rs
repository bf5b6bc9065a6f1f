//! Changing the policy under traffic, killing the daemon while it does, and others who flush the ruleset.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use portward_integration_tests::listen::Responder;
use portward_integration_tests::portward::{self, Daemon, ruleset, table};
use portward_integration_tests::probe::{PATIENCE, next_number};
use portward_integration_tests::{Host, HostSpec, Lab, counters};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const HOST: [&str; 2] = ["10.0.0.10", "fd00::10"];
const FRIEND: [&str; 2] = ["192.0.2.10", "2001:db8::10"];
const STRANGER: [&str; 2] = ["203.0.113.9", "2001:db8:bad::9"];
const RELOADS: u32 = 200;

fn lab() -> Result<Lab> {
    Lab::new(&[HostSpec::new("console", &HOST), HostSpec::new("friend", &FRIEND), HostSpec::new("stranger", &STRANGER)])
}

/// A policy under which the friend may always reach 443 and 514, and the stranger nothing. Everything else changes with
/// the number: peers come and go by single ones and by the hundred, networks too, rows are switched off and narrowed,
/// features and egress change, managed hosts join, and the site's own rows open other ports and the friend's port 514
/// to others.
fn policy(number: u32) -> Result<String> {
    let on = |nth: u32| number % nth == 1;
    let mut text = "format = 1\nmode = \"enforce\"\n".to_owned();
    writeln!(text, "egress = \"{}\"", ["off", "observe", "enforce"][number as usize / 4 % 3])?;
    writeln!(text, "features = {}", if on(3) { "[\"nfs\", \"snmp-agent\"]" } else { "[]" })?;
    writeln!(text, "deny = \"{}\"", if on(11) { "reject" } else { "drop" })?;
    writeln!(text, "[log]\nto = \"{}\"", if on(7) { "nflog" } else { "off" })?;

    let mut others: Vec<String> = (0..number % 5).map(|n| format!("198.51.100.{}", number % 200 + n)).collect();
    if on(4) {
        others.extend((0..400).map(|n| format!("10.{}.{}.7", number % 250, n % 250)));
        others.sort();
        others.dedup();
    }
    if on(5) {
        others.extend([format!("172.16.{}.0/24", number % 256), format!("2001:db8:{number}::/48")]);
    }
    let members = |with: &[String]| {
        format!("{:?}", FRIEND.iter().copied().map(str::to_owned).chain(with.to_vec()).collect::<Vec<_>>())
    };
    writeln!(text, "[groups]\nadmin = {FRIEND:?}\nuser = {}\nlog-source = {}", members(&others), members(&others))?;
    if on(6) {
        writeln!(
            text,
            "ntp-server = [\"198.18.0.{}\"]\nwincollect-agent = [\"198.18.1.{}\"]",
            number % 250,
            number % 250
        )?;
    }
    writeln!(text, "[[host]]\nname = \"console\"\naddresses = {HOST:?}\nroles = [\"console\"]")?;
    for managed in 0..number % 4 {
        let encrypted = (number + managed).is_multiple_of(2);
        writeln!(
            text,
            "[[host]]\nname = \"ep{managed}\"\naddresses = [\"10.0.1.{}\"]\nroles = [\"event-processor\"]\nencrypted = {encrypted}",
            managed + 1
        )?;
    }
    if on(2) {
        writeln!(text, "[row.certificates]\nenabled = false\n[row.syslog-tls]\nonly-from = [\"198.51.100.0/24\"]")?;
    }
    if on(3) {
        writeln!(
            text,
            "[[allow]]\nname = \"monitoring\"\nports = [\"10050/tcp\", \"echo/icmp\"]\nfrom = [\"198.18.2.2\"]\nto = [\"appliance\"]"
        )?;
    }
    if on(5) {
        writeln!(
            text,
            "[[allow]]\nname = \"more-syslog\"\nports = [\"510-520/udp\"]\nfrom = [\"198.18.3.0/24\"]\nto = [\"console\"]"
        )?;
    }
    Ok(text)
}

/// Puts a file in place of another one at once, as careful editors do.
fn replace(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    Ok(fs::rename(&new, path)?)
}

fn targets() -> [IpAddr; 2] {
    HOST.map(|address| address.parse().expect("an address"))
}

fn unspecified(target: IpAddr) -> SocketAddr {
    SocketAddr::new(if target.is_ipv4() { [0; 4].into() } else { [0; 16].into() }, 0)
}

/// Sends datagrams to 514 at some thousands a second until told to stop; returns their numbers.
fn stream_of_datagrams(target: IpAddr, stop: &AtomicBool) -> BTreeSet<u64> {
    let socket = UdpSocket::bind(unspecified(target)).expect("a socket");
    let mut sent = BTreeSet::new();
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..5 {
            let number = next_number();
            // `deny = "reject"` makes a later call fail with the stranger's ICMP error; the datagram is then not sent.
            if socket.send_to(&number.to_be_bytes(), (target, 514)).is_ok() {
                sent.insert(number);
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
    sent
}

/// Opens connections to 443 one after the other until told to stop; returns how many were established.
fn stream_of_connections(targets: [IpAddr; 2], patience: Duration, stop: &AtomicBool) -> (usize, usize) {
    let (mut established, mut failed) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        for target in targets {
            match TcpStream::connect_timeout(&SocketAddr::new(target, 443), patience) {
                Ok(_) => established += 1,
                Err(_) => failed += 1,
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
    (established, failed)
}

/// One of the kernel's counters of a host, from /proc/net/netstat or /proc/net/snmp.
fn kernel_counter(host: &Host, file: &str, section: &str, name: &str) -> Result<u64> {
    let text = host.run(|| fs::read_to_string(Path::new("/proc/thread-self/net").join(file)))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(section)?.strip_prefix(':'));
    let (names, values) = (lines.next().context("names")?, lines.next().context("values")?);
    let value = names.split_whitespace().zip(values.split_whitespace()).find(|(found, _)| *found == name);
    Ok(value.with_context(|| format!("{file} has no {section} {name}"))?.1.parse()?)
}

#[test]
fn two_hundred_reloads_lose_nothing_and_let_nothing_pass() -> Result<()> {
    let lab = lab()?;
    let (host, friend, stranger) = (lab.host("console"), lab.host("friend"), lab.host("stranger"));
    let responder = Responder::start(host, [22, 443], [514])?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("policy.toml");
    replace(&path, &policy(0)?)?;
    let mut daemon = Daemon::start(host, &path, "console", folder.path())?;
    // What was open before the firewall came is not part of the comparison.
    let syn_retransmissions = || kernel_counter(friend, "netstat", "TcpExt", "TCPSynRetrans");
    assert_eq!(syn_retransmissions()?, 0);

    let stop = Arc::new(AtomicBool::new(false));
    let stop_of = || Arc::clone(&stop);
    let datagrams: Vec<_> = targets()
        .map(|target| {
            let (stop, other_stop) = (stop_of(), stop_of());
            (
                friend.spawn(move || stream_of_datagrams(target, &stop)),
                stranger.spawn(move || stream_of_datagrams(target, &other_stop)),
            )
        })
        .into();
    let stop_allowed = stop_of();
    let allowed = friend.spawn(move || stream_of_connections(targets(), PATIENCE, &stop_allowed));
    let stop_denied = stop_of();
    let denied = stranger.spawn(move || stream_of_connections(targets(), Duration::from_millis(3), &stop_denied));

    let mut unchanged = 0;
    let mut last_count = 0;
    for number in 1..=RELOADS {
        replace(&path, &policy(number)?)?;
        let answer = daemon.reload()?;
        // The daemon may have seen the file by itself before it was asked.
        unchanged += u32::from(answer.contains("nothing"));
        if number % 20 == 0 {
            let text = policy(number)?;
            assert_eq!(table(host)?, Some(ruleset(&text, "console")?), "after reload {number}");
            let count = counters::packets_of(host, "in_https")?;
            assert!(count >= last_count, "the counter of a row that stays fell from {last_count} to {count}");
            last_count = count;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let (established, failed) = allowed.join().expect("the allowed connections");
    let (wrong, refused) = denied.join().expect("the denied connections");
    println!("{established} connections allowed, {refused} denied, {unchanged} reloads found nothing to change");

    assert!(established > 500 && refused > 200, "{established} and {refused} connections are no stream");
    assert_eq!(failed, 0, "of {established} allowed connections");
    assert_eq!(syn_retransmissions()?, 0, "packets of allowed connections were lost, of {established} connections");
    assert_eq!(wrong, 0, "denied connections were established, of {refused}");
    let counted = counters::packets_of(host, "in_https")?;
    assert_eq!(counted, u64::try_from(established)?, "the counter of a row that stayed went on over all reloads");

    let mut allowed = BTreeSet::new();
    let mut forbidden = BTreeSet::new();
    for (friends, strangers) in datagrams {
        allowed.extend(friends.join().expect("the allowed datagrams"));
        forbidden.extend(strangers.join().expect("the denied datagrams"));
    }
    let seen = responder.wait(PATIENCE, |seen| seen.datagrams.len() >= allowed.len());
    let numbers = seen.numbers();
    let lost = allowed.difference(&numbers).count();
    assert_eq!(kernel_counter(host, "snmp", "Udp", "RcvbufErrors")?, 0, "the test itself was too slow to receive");
    println!("{} datagrams allowed, {} denied", allowed.len(), forbidden.len());
    assert!(allowed.len() > 2000 && forbidden.len() > 1000);
    assert_eq!(lost, 0, "allowed datagrams were lost, of {}", allowed.len());
    assert_eq!(forbidden.intersection(&numbers).count(), 0, "denied datagrams passed, of {}", forbidden.len());
    for stranger in STRANGER {
        assert_eq!(seen.connections_from(443, stranger.parse()?), 0);
    }

    // SIGTERM ends the daemon and leaves the table.
    assert!(daemon.end(Signal::SIGTERM)?.success());
    assert_eq!(table(host)?, Some(ruleset(&policy(RELOADS)?, "console")?));
    Ok(())
}

/// A policy of many addresses, so that a reload takes long enough to be killed at any moment of it.
fn large_policy(odd: bool) -> Result<String> {
    let mut text = policy(if odd { 15 } else { 44 })?;
    let marker = "log-source = [";
    let at = text.find(marker).context("the group")? + marker.len();
    let peers: String = (0..6000_u32)
        .map(|n| format!("\"100.{}.{}.{}\", ", 64 + n / 4096, n / 16 % 256, n % 16 * 2 + u32::from(odd)))
        .collect();
    text.insert_str(at, &peers);
    Ok(text)
}

#[test]
fn a_daemon_killed_during_a_reload_leaves_a_whole_table() -> Result<()> {
    let lab = lab()?;
    let (host, friend) = (lab.host("console"), lab.host("friend"));
    let _responder = Responder::start(host, [443], [])?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("policy.toml");
    let policies = [large_policy(false)?, large_policy(true)?];
    let rulesets = [ruleset(&policies[0], "console")?, ruleset(&policies[1], "console")?];
    assert_ne!(rulesets[0], rulesets[1]);

    replace(&path, &policies[0])?;
    let mut daemon = Daemon::start(host, &path, "console", folder.path())?;
    replace(&path, &policies[1])?;
    let begun = Instant::now();
    daemon.reload()?;
    let duration = begun.elapsed();
    friend.run(|| TcpStream::connect_timeout(&SocketAddr::new(host.ipv4(), 443), PATIENCE))?;

    let mut outcomes = [0; 2];
    for attempt in 0..24_u32 {
        let (old, new) = (usize::from(attempt % 2 == 0), usize::from(attempt % 2 != 0));
        assert_eq!(table(host)?.as_ref(), Some(&rulesets[old]), "attempt {attempt}: the daemon has adopted the table");
        replace(&path, &policies[new])?;
        daemon.signal(Signal::SIGHUP)?;
        // Moments spread over the whole reload and a little more, in an order without a pattern.
        thread::sleep(duration * (attempt * 7 % 24) / 18);
        daemon.end(Signal::SIGKILL)?;

        let found = table(host)?.context("the table is gone")?;
        let which = rulesets.iter().position(|ruleset| *ruleset == found);
        let which =
            which.with_context(|| format!("attempt {attempt}: the table is neither the old nor the new one"))?;
        outcomes[usize::from(which == new)] += 1;
        assert_eq!(counters::packets_of(host, "in_https")?, 1, "attempt {attempt}: the counter goes on");
        daemon = Daemon::start(host, &path, "console", folder.path())?;
    }
    println!("killed before the commit {} times, after it {} times ({duration:?} a reload)", outcomes[0], outcomes[1]);
    Ok(())
}

/// Waits until the kernel holds this ruleset.
fn wait_for_table(host: &Host, wanted: &BTreeMap<&str, String>, name: &str, log: impl Fn() -> String) -> Result<()> {
    let wanted = ruleset(&wanted[name], "console")?;
    let deadline = Instant::now() + PATIENCE;
    while table(host)?.as_ref() != Some(&wanted) {
        ensure!(Instant::now() < deadline, "the table is not that of policy {name}:\n{}", log());
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[test]
fn a_flushed_ruleset_is_restored() -> Result<()> {
    let lab = lab()?;
    let host = lab.host("console");
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("policy.toml");
    let text = policy(7)?;
    let wanted = BTreeMap::from([("seven", text.clone())]);
    replace(&path, &text)?;

    // By the next apply.
    portward::apply(host, &path, "console")?;
    wait_for_table(host, &wanted, "seven", String::new)?;
    host.nft("flush ruleset\ntable inet other { chain c { type filter hook input priority 0; }; }")?;
    assert_eq!(table(host)?, None);
    portward::apply(host, &path, "console")?;
    wait_for_table(host, &wanted, "seven", String::new)?;

    // By the daemon, which nobody asks. Tables of others are left alone.
    let daemon = Daemon::start(host, &path, "console", folder.path())?;
    for damage in [
        "flush ruleset",
        "delete table inet portward",
        "flush chain inet portward input",
        "add rule inet portward input accept",
        "insert rule inet portward input tcp dport 1-65535 accept",
        "add chain inet portward mine { type filter hook input priority -10; }",
        "add element inet portward peers_user_v4 { 203.0.113.9 }",
    ] {
        host.nft("table inet other { chain c { type filter hook input priority 0; }; }")?;
        host.nft(damage).with_context(|| damage.to_owned())?;
        let restored = || -> Result<bool> {
            let snapshot = host.run(|| -> Result<_> {
                Ok(::portward::kernel::Kernel::dump(&mut ::portward::kernel::Netlink::open()?)?)
            })?;
            Ok(snapshot.foreign.is_empty() && snapshot.table.as_ref() == Some(&ruleset(&text, "console")?))
        };
        let deadline = Instant::now() + PATIENCE;
        while !restored()? {
            ensure!(Instant::now() < deadline, "not restored after {damage:?}:\n{}", daemon.log());
            thread::sleep(Duration::from_millis(10));
        }
        if damage != "flush ruleset" {
            host.nft_output(&["list", "table", "inet", "other"]).context("another's table is gone")?;
        }
    }
    let status = daemon.control("status")?;
    assert_eq!(status.code, 0, "{}{}", status.stdout, status.stderr);

    // `down` removes the table and nothing else.
    drop(daemon);
    assert_eq!(portward::portward(host, &["down"])?.code, 0);
    assert_eq!(table(host)?, None);
    host.nft_output(&["list", "table", "inet", "other"])?;
    Ok(())
}

#[test]
fn the_daemon_follows_the_file_by_itself() -> Result<()> {
    let lab = lab()?;
    let host = lab.host("console");
    let folder = tempfile::tempdir()?;
    let settings = folder.path().join("settings");
    fs::create_dir(&settings)?;
    let path: PathBuf = settings.join("policy.toml");
    let mut wanted = BTreeMap::new();
    for (name, number) in [("one", 1), ("two", 2), ("three", 3), ("four", 4), ("five", 5), ("six", 6)] {
        wanted.insert(name, policy(number)?);
    }
    replace(&path, &wanted["one"])?;
    let daemon = Daemon::start(host, &path, "console", folder.path())?;
    let check = |name| wait_for_table(host, &wanted, name, || daemon.log());
    check("one")?;

    replace(&path, &wanted["two"])?;
    check("two")?;
    fs::write(&path, &wanted["three"])?;
    check("three")?;

    // A file that does not load changes nothing, and is seen.
    fs::write(&path, "format = 1\nmode = \"enforced\"\n")?;
    let deadline = Instant::now() + PATIENCE;
    while !daemon.control("status")?.stdout.contains("enforced") {
        ensure!(Instant::now() < deadline, "the status does not tell:\n{}", daemon.log());
        thread::sleep(Duration::from_millis(20));
    }
    check("three")?;

    // A link that is switched to another file.
    let elsewhere = folder.path().join("elsewhere.toml");
    fs::write(&elsewhere, &wanted["four"])?;
    fs::remove_file(&path)?;
    std::os::unix::fs::symlink(&elsewhere, &path)?;
    check("four")?;
    replace(&elsewhere, &wanted["five"])?;
    check("five")?;

    // A folder that disappears and returns.
    fs::remove_dir_all(&settings)?;
    thread::sleep(Duration::from_millis(300));
    check("five")?;
    fs::create_dir(&settings)
        .or_else(|error| if error.kind() == ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })?;
    replace(&path, &wanted["six"])?;
    check("six")
}
