//! What it takes to load a policy and to change it, beside the floor and `nft -f`.

use crate::deployment::{self, NEWCOMER, SET};
use crate::floor::Floor;
use crate::namespace::Namespace;
use crate::report::{Samples, milliseconds, print_table, ratio, target};
use anyhow::{Context, Result, ensure};
use portward::kernel::{Kernel, Netlink};
use portward::policy::Policy;
use portward::ruleset::diff::diff;
use portward::ruleset::{Ruleset, TABLE, nft};
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// The peers of a cold load, and how often it is measured.
const LOADS: [(u32, usize); 3] = [(1_000, 15), (10_000, 11), (100_000, 9)];

/// The peers of the deployment that changes, and how often each change is measured.
const PEERS: u32 = 100_000;
const CHANGE_ROUNDS: usize = 25;
const RELOAD_ROUNDS: usize = 9;

/// How often a change is carried out and back in a turn, of which the median counts.
const REPETITIONS: usize = 11;

/// Measures and prints cold loads.
pub(crate) fn measure_loads(folder: &Path) -> Result<()> {
    let mut rows = vec![heading()];
    for (count, rounds) in LOADS {
        let peers = deployment::peers(count);
        let policy = deployment::parse(&deployment::policy_text(&peers))?;
        let script = folder.join("load.nft");
        fs::write(&script, nft::render(&deployment::ruleset(&policy)?))?;
        let mut times: [Samples; 3] = Default::default();
        for _ in 0..rounds {
            let [portward, floor, nft] = &mut times;
            portward.push(in_fresh_namespace(count, || {
                let mut kernel = Netlink::open()?;
                let snapshot = kernel.dump()?;
                let start = Instant::now();
                let ruleset = deployment::ruleset(&policy)?;
                kernel.commit(&diff(snapshot.table.as_ref(), Some(&ruleset)), snapshot.generation)?;
                Ok(start.elapsed())
            })?);
            floor.push(in_fresh_namespace(count, || {
                let kernel = Floor::open(TABLE, SET)?;
                let start = Instant::now();
                kernel.load(&peers)?;
                Ok(start.elapsed())
            })?);
            nft.push(in_fresh_namespace(count, || run_nft(&script))?);
        }
        let goals = (count == PEERS).then_some((1.5, Some(3.0)));
        rows.push(row(&format!("cold load of {count} peers"), &times, goals));
    }
    print_table("Loading, in milliseconds: parsed policy to acknowledgement (plan, difference, commit)", &rows);
    Ok(())
}

/// Measures and prints changes of a deployment that is loaded.
pub(crate) fn measure_changes(folder: &Path) -> Result<()> {
    let peers = deployment::peers(PEERS);
    let policy = deployment::parse(&deployment::policy_text(&peers))?;
    let ruleset = deployment::ruleset(&policy)?;

    let mut contestants = Contestants::load(&ruleset, &peers, folder)?;
    let mut rows = vec![heading()];

    let one = Change::new(&peers, &[], &[NEWCOMER])?;
    let times = contestants.measure(&ruleset, &one, CHANGE_ROUNDS)?;
    let within = |samples: &Samples, limit: f64| samples.median() <= limit;
    let mut total = row("one peer added", &times.whole(), None);
    set_goal(&mut total, target("<= 1 ms", within(&times.total, 1.0)));
    rows.push(total);
    rows.push(row("  its netlink part", &times.netlink(), Some((2.0, None))));

    let (leaving, coming) = deployment::one_percent(&peers);
    let one_percent = Change::new(&peers, &leaving, &coming)?;
    let times = contestants.measure(&ruleset, &one_percent, CHANGE_ROUNDS)?;
    rows.push(row("1 % of the peers replaced", &times.whole(), None));
    rows.push(row("  its netlink part", &times.netlink(), None));

    let text = deployment::policy_text(&with(&peers, &[], &[NEWCOMER]));
    let times = contestants.measure_reloads(&ruleset, &text, folder)?;
    rows.push(row("whole reload, one peer added", &times, None));

    let title =
        format!("Changes at {PEERS} peers, in milliseconds: parsed policy to acknowledgement; reload: from the text");
    print_table(&title, &rows);
    Ok(())
}

fn heading() -> Vec<String> {
    ["", "portward", "netlink floor", "nft -f", "portward/floor", "nft/portward", "target"].map(str::to_owned).to_vec()
}

/// One row: medians of portward, the floor and nft, and ratios. `goals`: at most so many times the floor, at least so many
/// times faster than nft.
fn row(what: &str, [portward, floor, nft]: &[Samples; 3], goals: Option<(f64, Option<f64>)>) -> Vec<String> {
    let over_floor = portward.over(floor);
    let under_nft = nft.over(portward);
    let shown = |samples: &Samples| if samples.median().is_nan() { "-".to_owned() } else { ratio(samples, 2) };
    let goal = goals.map_or_else(String::new, |(most, least)| {
        let mut words = vec![target(&format!("<= {most} x floor"), over_floor.median() <= most)];
        words.extend(least.map(|least| target(&format!(">= {least} x faster than nft"), under_nft.median() >= least)));
        words.join("; ")
    });
    vec![
        what.to_owned(),
        milliseconds(portward.median()),
        milliseconds(floor.median()),
        milliseconds(nft.median()),
        shown(&over_floor),
        shown(&under_nft),
        goal,
    ]
}

fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn set_goal(row: &mut [String], goal: String) {
    if let Some(last) = row.last_mut() {
        *last = goal;
    }
}

/// Does some work in a namespace of its own, and gives the kernel time to take down what it made.
fn in_fresh_namespace<T: Send>(peers: u32, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let result = Namespace::new()?.run(work)?;
    thread::sleep(Duration::from_millis(30 + u64::from(peers / 500)));
    Ok(result)
}

fn run_nft(script: &Path) -> Result<Duration> {
    let start = Instant::now();
    let status = Command::new("nft").arg("-f").arg(script).status().context("cannot run nft")?;
    ensure!(status.success(), "nft does not take {}", script.display());
    Ok(start.elapsed())
}

/// A change of the peers.
struct Change {
    leaving: Vec<Ipv4Addr>,
    coming: Vec<Ipv4Addr>,
    policy: Policy,
}

impl Change {
    fn new(peers: &[Ipv4Addr], leaving: &[Ipv4Addr], coming: &[Ipv4Addr]) -> Result<Self> {
        let policy = deployment::parse(&deployment::policy_text(&with(peers, leaving, coming)))?;
        Ok(Self { leaving: leaving.to_vec(), coming: coming.to_vec(), policy })
    }

    fn script(&self, undo: bool) -> String {
        let (deleted, added) = if undo { (&self.coming, &self.leaving) } else { (&self.leaving, &self.coming) };
        let command = |verb, addresses: &[Ipv4Addr]| {
            let list: Vec<String> = addresses.iter().map(Ipv4Addr::to_string).collect();
            format!("{verb} element inet {TABLE} {SET} {{ {} }}\n", list.join(", "))
        };
        [("delete", deleted), ("add", added)]
            .into_iter()
            .filter(|(_, addresses)| !addresses.is_empty())
            .map(|(verb, addresses)| command(verb, addresses))
            .collect()
    }
}

fn with(peers: &[Ipv4Addr], leaving: &[Ipv4Addr], coming: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
    peers.iter().filter(|peer| !leaving.contains(peer)).chain(coming).copied().collect()
}

/// Three namespaces that hold the same peers.
struct Contestants {
    portward: Namespace,
    floor: Namespace,
    nft: Namespace,
    scripts: [std::path::PathBuf; 2],
}

/// What one change took.
#[derive(Default)]
struct Times {
    total: Samples,
    commit: Samples,
    floor: Samples,
    nft: Samples,
}

impl Times {
    fn whole(&self) -> [Samples; 3] {
        [self.total.clone(), self.floor.clone(), self.nft.clone()]
    }

    /// nft has no netlink part that could be told apart.
    fn netlink(&self) -> [Samples; 3] {
        [self.commit.clone(), self.floor.clone(), Samples::default()]
    }
}

impl Contestants {
    fn load(ruleset: &Ruleset, peers: &[Ipv4Addr], folder: &Path) -> Result<Self> {
        let contestants = Self {
            portward: Namespace::new()?,
            floor: Namespace::new()?,
            nft: Namespace::new()?,
            scripts: [folder.join("change.nft"), folder.join("undo.nft")],
        };
        contestants.portward.run(|| {
            let mut kernel = Netlink::open()?;
            let generation = kernel.generation()?;
            kernel.commit(&diff(None, Some(ruleset)), generation)?;
            Ok(())
        })?;
        contestants.floor.run(|| Floor::open(TABLE, SET)?.load(peers))?;
        contestants.nft.nft(&nft::render(ruleset))?;
        Ok(contestants)
    }

    /// Carries a change out and back, again and again. The way back is not measured.
    fn measure(&mut self, ruleset: &Ruleset, change: &Change, rounds: usize) -> Result<Times> {
        for (path, undo) in self.scripts.iter().zip([false, true]) {
            fs::write(path, change.script(undo))?;
        }
        let mut times = Times::default();
        for _ in 0..rounds {
            let (total, commit) = self.portward.run(|| {
                let mut kernel = Netlink::open()?;
                let mut generation = kernel.generation()?;
                let (mut totals, mut commits) = (Vec::new(), Vec::new());
                for _ in 0..REPETITIONS {
                    let start = Instant::now();
                    let desired = deployment::ruleset(&change.policy)?;
                    let changes = diff(Some(ruleset), Some(&desired));
                    let before_commit = Instant::now();
                    generation = kernel.commit(&changes, generation)?;
                    let end = Instant::now();
                    totals.push(end - start);
                    commits.push(end - before_commit);
                    generation = kernel.commit(&diff(Some(&desired), Some(ruleset)), generation)?;
                }
                Ok((middle(totals), middle(commits)))
            })?;
            times.total.push(total);
            times.commit.push(commit);
            times.floor.push(self.floor.run(|| {
                let kernel = Floor::open(TABLE, SET)?;
                let mut floors = Vec::new();
                for _ in 0..REPETITIONS {
                    // The processor's caches are as planning leaves them, which portward's commit finds, too.
                    let desired = deployment::ruleset(&change.policy)?;
                    let changes = diff(Some(ruleset), Some(&desired));
                    let start = Instant::now();
                    kernel.change(&change.leaving, &change.coming)?;
                    floors.push(start.elapsed());
                    drop((desired, changes));
                    kernel.change(&change.coming, &change.leaving)?;
                }
                Ok(middle(floors))
            })?);
            times.nft.push(self.nft.run(|| {
                let time = run_nft(&self.scripts[0])?;
                run_nft(&self.scripts[1])?;
                Ok(time)
            })?);
        }
        Ok(times)
    }

    /// From the text of a policy to the acknowledgement; for nft, its script that deletes the table and makes it anew.
    fn measure_reloads(&mut self, ruleset: &Ruleset, text: &str, folder: &Path) -> Result<[Samples; 3]> {
        let script = folder.join("reload.nft");
        let desired = deployment::ruleset(&deployment::parse(text)?)?;
        fs::write(&script, format!("table inet {TABLE}\ndelete table inet {TABLE}\n{}", nft::render(&desired)))?;
        let mut times: [Samples; 3] = Default::default();
        for _ in 0..RELOAD_ROUNDS {
            let [portward, _, nft] = &mut times;
            portward.push(self.portward.run(|| {
                let mut kernel = Netlink::open()?;
                let generation = kernel.generation()?;
                let start = Instant::now();
                let desired = deployment::ruleset(&deployment::parse(text)?)?;
                let generation = kernel.commit(&diff(Some(ruleset), Some(&desired)), generation)?;
                let time = start.elapsed();
                kernel.commit(&diff(Some(&desired), Some(ruleset)), generation)?;
                Ok(time)
            })?);
            nft.push(self.nft.run(|| run_nft(&script))?);
            // The kernel frees the table that nft deleted after the command has ended.
            thread::sleep(Duration::from_millis(200));
        }
        Ok(times)
    }
}
