//! What the daemon shows of itself. The reconcile loop publishes a new [`Status`] whenever something changed, and
//! whoever wants to know looks at the latest one; nobody ever waits for the loop.

use super::load::Site;
use crate::policy::Host;
use crate::ruleset::Ruleset;
use crate::trackers::Report;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// The daemon's condition. All times are seconds since the Unix epoch. The fields are documented in docs/json.md.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The version of portward that runs.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// When it started.
    pub started: u64,
    /// How things are, in one word.
    pub condition: Condition,
    /// The policy file.
    pub policy: PathBuf,
    /// Where the state is kept for the next boot.
    pub state_dir: PathBuf,
    /// What is enforced; `None` until a policy was loaded.
    pub enforced: Option<Enforced>,
    /// Where what is enforced comes from.
    pub source: Source,
    /// The policy that is on trial.
    pub trial: Option<Trial>,
    /// How the last trial ended.
    pub last_trial: Option<LastTrial>,
    /// What the kernel holds of portward's.
    pub table: Option<TableSize>,
    /// The ruleset generation of the kernel at which that was committed or last confirmed.
    pub generation: Option<u32>,
    /// The last change that the daemon made in the kernel.
    pub last_change: Option<LastChange>,
    /// Why the policy file is not what is enforced.
    pub policy_error: Option<Failure>,
    /// Why the kernel does not hold what it should.
    pub kernel_error: Option<Failure>,
    /// Why the state on disk is not what it should be: the next boot may not find the policy of now.
    pub state_error: Option<Failure>,
    /// How often the table was repaired after a foreign change.
    pub repairs: u64,
    /// The last time that it was.
    pub last_repair: Option<Repair>,
    /// Who changes the table again and again, as long as somebody does.
    pub meddling: Option<Meddling>,
    /// What the trackers of dynamic ports have found.
    pub dynamic: Report,
}

/// The daemon's condition in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// The kernel holds what the policy file says.
    InStep,
    /// The policy file does not load, or is refused; what was enforced before stays.
    Keeping,
    /// The kernel does not take what it should hold.
    Failing,
    /// Somebody keeps changing the table, so that the kernel does not hold what it should all the time.
    Disputed,
    /// The kernel holds a policy for the time being, until that is confirmed or taken back.
    Trying,
}

/// Where what is enforced comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The policy file.
    File,
    /// The policy on trial.
    Trial,
    /// The last good policy on disk, since the file was of no use at the start.
    LastGood,
    /// The fail-safe, since the last good policy was of no use either.
    FailSafe,
    /// The table that an earlier daemon left in the kernel.
    EarlierDaemon,
}

/// A policy on trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// What it is called: the file it came from.
    pub policy: String,
    /// Who wants to try it.
    pub user: String,
    /// When it was applied.
    pub since: u64,
    /// When it is taken back unless it is confirmed.
    pub until: u64,
    /// Whether the policy file was changed meanwhile, and waits for the end of the trial.
    pub file_waits: bool,
}

/// How a trial ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastTrial {
    /// What the policy was called.
    pub policy: String,
    /// When it was applied.
    pub since: u64,
    /// When it ended.
    pub at: u64,
    /// Whether the policy stayed.
    pub confirmed: bool,
    /// What ended it, such as `it was not confirmed in time`.
    pub reason: String,
}

/// The policy that is enforced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enforced {
    /// The host of the policy that this machine is.
    pub host: String,
    /// How that was found out, such as `by address 10.0.0.10`.
    pub found: String,
    /// The policy's mode: `enforce` or `observe`.
    pub mode: String,
    /// The policy's egress mode: `off`, `observe` or `enforce`.
    pub egress: String,
    /// When the policy was loaded.
    pub loaded: u64,
    /// Warnings about the policy.
    pub warnings: Vec<String>,
}

impl Enforced {
    /// What a site's policy means for a host, loaded now.
    pub(super) fn new(site: &Site, host: &Host, found: String, warnings: Vec<String>) -> Self {
        Self {
            host: host.name.clone(),
            found,
            mode: site.policy.mode.name().to_owned(),
            egress: site.policy.egress.name().to_owned(),
            loaded: now(),
            warnings,
        }
    }
}

/// How much the table holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSize {
    /// Sets and verdict maps.
    pub sets: usize,
    /// Addresses, networks and ports in them.
    pub elements: usize,
    /// Chains.
    pub chains: usize,
    /// Rules in them.
    pub rules: usize,
}

impl TableSize {
    /// The size of this table.
    pub fn of(ruleset: &Ruleset) -> Self {
        let in_sets: usize = ruleset.sets.values().map(|set| set.len()).sum();
        let in_maps: usize = ruleset.maps.values().map(|map| map.elements.len()).sum();
        Self {
            sets: ruleset.sets.len() + ruleset.maps.len(),
            elements: in_sets + in_maps,
            chains: ruleset.chains.len(),
            rules: ruleset.chains.values().map(|chain| chain.rules.len()).sum(),
        }
    }
}

/// A change in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastChange {
    /// When.
    pub at: u64,
    /// What led to it, such as `the policy changed`.
    pub cause: String,
    /// What it was, such as `3 elements added`.
    pub changes: String,
}

/// Something that failed, and still does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Since when.
    pub since: u64,
    /// Why: the message as `portward check` prints it.
    pub message: String,
}

/// A foreign change of the table that was undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repair {
    /// When.
    pub at: u64,
    /// Who changed the table, such as `nft (process 4711)`, as far as the kernel told.
    pub by: String,
    /// What was done, such as `12 objects added`.
    pub changes: String,
}

/// Others who change the table faster than one repair a second undoes it. Over when nobody has changed it for half a
/// minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meddling {
    /// Since when.
    pub since: u64,
    /// The last foreign change, as of the last repair.
    pub last: u64,
    /// Who they are: the first few.
    pub by: Vec<Meddler>,
    /// How long, in milliseconds, the daemon waits at present from one repair to the next; at most 4000.
    pub pause_ms: u32,
}

/// A process, or many of the same name, that changes the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meddler {
    /// Its name; `somebody` where the kernel did not tell.
    pub process: String,
    /// The last process id that did.
    pub pid: Option<u32>,
    /// How many changes of it were noticed.
    pub changes: u64,
}

/// The present, in seconds since the Unix epoch; 0 on a machine whose clock is set before it.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
