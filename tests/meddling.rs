//! Others who change portward's table: the real binary and nft, in network namespaces, against the real kernel. Needs
//! root, iproute2 and nftables.

#![allow(clippy::unwrap_used)] // A test that cannot go on has failed.

mod place;

use nix::sched::{CloneFlags, setns};
use place::{PATIENCE, Place, policy};
use portward::kernel::{Monitor, Notification};
use serde_json::Value;
use std::fs::{self, File};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// So long the table may be wrong: the promise of five seconds, and what a loaded machine needs to wake the daemon.
const LONGEST_WRONG: Duration = Duration::from_secs(8);

/// Hears who commits what to a place's ruleset, and when.
struct Witness {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Commit>>,
}

/// A transaction on portward's table.
#[derive(Debug, Clone)]
struct Commit {
    at: Instant,
    process: String,
}

impl Witness {
    fn new(place: &Place) -> Self {
        let namespace = File::open(format!("/run/netns/{}", place.namespace)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                watch(&mut Monitor::open().unwrap(), &stop)
            }
        });
        Self { stop, thread }
    }

    /// What was committed.
    fn end(self) -> Vec<Commit> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn watch(monitor: &mut Monitor, stop: &AtomicBool) -> Vec<Commit> {
    let mut commits = Vec::new();
    let mut touched = false;
    loop {
        let last = stop.load(Ordering::Relaxed);
        for notification in monitor.read().unwrap() {
            match notification {
                Notification::Table { .. } => touched = true,
                Notification::Generation { process, .. } => {
                    if std::mem::take(&mut touched) {
                        commits.push(Commit { at: Instant::now(), process: process.unwrap() });
                    }
                }
                Notification::Lost => panic!("the witness has missed something"),
            }
        }
        if last {
            return commits;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// The stretches of time in which the table was as somebody else had left it.
fn wrong_stretches(commits: &[Commit]) -> Vec<Duration> {
    let mut stretches = Vec::new();
    let mut wrong_since = None;
    for commit in commits {
        if commit.process != "portward" {
            wrong_since.get_or_insert(commit.at);
        } else if let Some(since) = wrong_since.take() {
            stretches.push(commit.at - since);
        }
    }
    stretches
}

fn started() -> (Place, std::path::PathBuf, place::Daemon) {
    let place = Place::new();
    let file = place.path("policy.toml");
    fs::write(&file, policy("192.0.2.1")).unwrap();
    let daemon = place.start(&file);
    (place, file, daemon)
}

fn status_text(place: &Place) -> String {
    let output = place.portward(&["status", "--control-socket", place.socket().to_str().unwrap()]);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn every_kind_of_change_is_undone_and_its_author_named() {
    let (place, file, daemon) = started();
    for (number, change) in [
        &["insert", "rule", "inet", "portward", "input", "accept"][..],
        &["flush", "chain", "inet", "portward", "input"],
        &["delete", "element", "inet", "portward", "peers_admin_v4", "{ 192.0.2.1 }"],
        &["add", "element", "inet", "portward", "peers_admin_v4", "{ 203.0.113.1 }"],
        &["add", "chain", "inet", "portward", "input", "{ policy accept; }"],
        &["delete", "table", "inet", "portward"],
        &["flush", "ruleset"],
    ]
    .into_iter()
    .enumerate()
    {
        // ip becomes nft, so the process is the same one.
        let mut nft = place.command("nft").args(change).spawn().expect("nftables is installed");
        let author = format!("nft (process {})", nft.id());
        assert!(nft.wait().unwrap().success(), "{change:?}");
        place.wait(&daemon, &format!("{change:?} is repaired"), || {
            place.status()["repairs"].as_u64() == Some(number as u64 + 1) && place.compare(&file).1
        });
        let status = place.status();
        assert_eq!(status["last_repair"]["by"], author, "{change:?}");
        assert_eq!(status["condition"], "in-step");
        let log = daemon.log();
        assert!(log.contains(&format!("{author} changed the table: ")), "{change:?}: {log}");
        assert!(log.contains(&format!("the table was changed by {author} and is repaired: ")), "{change:?}: {log}");
        let text = status_text(&place);
        assert!(text.contains(&author), "{text}");
    }
    daemon.stop();
}

#[test]
fn a_change_is_repaired_in_milliseconds() {
    const CHANGES: usize = 200;
    let (place, file, daemon) = started();
    let witness = Witness::new(&place);
    for _ in 0..CHANGES {
        assert!(place.nft(&["insert", "rule", "inet", "portward", "input", "accept"]).status.success());
        place.wait(&daemon, "the rule is gone", || {
            !place
                .nft(&["list", "chain", "inet", "portward", "input"])
                .stdout
                .windows(9)
                .any(|text| text == b"\t\taccept\n")
        });
        // Others who are no faster than this are never made to wait.
        std::thread::sleep(Duration::from_millis(150));
    }
    let mut times = wrong_stretches(&witness.end());
    times.sort_unstable();
    assert_eq!(times.len(), CHANGES);
    println!(
        "from the foreign commit to the repairing one, {CHANGES} times: p50 {:?}, p99 {:?}, longest {:?}",
        times[CHANGES / 2],
        times[CHANGES * 99 / 100],
        times[CHANGES - 1]
    );
    assert!(place.compare(&file).1);
    daemon.stop();
}

#[test]
fn whoever_never_rests_is_told_and_never_wins() {
    let (place, file, daemon) = started();
    let witness = Witness::new(&place);
    let begin = Instant::now();
    let mut meddler = place
        .command("sh")
        .args(["-c", "while :; do nft insert rule inet portward input accept; done"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();

    place.wait(&daemon, "the dispute shows", || place.status()["condition"] == "disputed");
    let status = place.status();
    assert_eq!(status["meddling"]["by"][0]["process"], "nft", "{status:#}");
    assert!(status["meddling"]["by"][0]["pid"].is_u64(), "{status:#}");
    let text = status_text(&place);
    assert!(text.contains("disputed: somebody keeps changing the table") && text.contains("nft ("), "{text}");

    // A reload is not made to wait, whatever else goes on.
    std::thread::sleep(Duration::from_secs(5));
    fs::write(&file, policy("192.0.2.2")).unwrap();
    let answer = place.portward(&["reload", "--control-socket", place.socket().to_str().unwrap()]);
    assert_eq!(answer.status.code(), Some(0), "{}", String::from_utf8_lossy(&answer.stderr));
    assert!(place.table_has("192.0.2.2"), "a reload is done when it is answered");

    std::thread::sleep(Duration::from_secs(15).saturating_sub(begin.elapsed()));
    meddler.kill().unwrap();
    meddler.wait().unwrap();
    place.wait(&daemon, "the table is right again", || place.compare(&file).1);
    let duration = begin.elapsed();
    let commits = witness.end();
    let stretches = wrong_stretches(&commits);
    let (longest, wrong) = (*stretches.iter().max().unwrap(), stretches.iter().sum::<Duration>());
    println!(
        "{} foreign commits and {} repairs in {duration:?}: wrong for {:.0} % of it, at most {longest:?} at a time",
        commits.iter().filter(|commit| commit.process != "portward").count(),
        stretches.len(),
        100.0 * wrong.as_secs_f64() / duration.as_secs_f64()
    );
    assert!(longest < LONGEST_WRONG, "{stretches:?}");
    assert!(daemon.log().lines().count() < 400, "a dispute does not fill the log");

    // It is over when the table has been left alone for a while.
    let end = Instant::now() + 3 * PATIENCE;
    while place.status()["condition"] != "in-step" {
        assert!(Instant::now() < end, "{:#}", place.status());
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(place.status()["meddling"], Value::Null);
    daemon.stop();
}
