//! Whether the policy loads, and whether the kernel holds what it says.

use super::{Daemon, Finding, Place, count};
use crate::daemon::identity::Identity;
use crate::daemon::load::{self, HostChoice, Site};
use crate::daemon::reconcile::{self, Reconciler};
use crate::daemon::status::{Condition, Status};
use crate::describe;
use crate::kernel::Netlink;
use crate::policy::{LoadError, Mode};
use crate::ruleset::Ruleset;
use crate::ruleset::diff::summary;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// A policy that nobody has touched for so long, in seconds, is worth a look: a year.
const OLD: u64 = 365 * DAY;
/// Who still observes after so long, in seconds, may have forgotten it: 30 days.
const LONG_OBSERVED: u64 = 30 * DAY;
const DAY: u64 = 24 * 60 * 60;
/// Bits of a file's mode that let its group and others write (chmod(2)).
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The policy, the table, and the daemon between the two.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Enforcement {
    /// The policy file.
    path: PathBuf,
    /// Seconds since the Unix epoch.
    now: u64,
    policy: Policy,
    file: Option<PolicyFile>,
    table: Table,
    daemon: Follower,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Policy {
    Missing,
    /// It does not load, or not for this host.
    Broken(String),
    Unreadable(String),
    Loads {
        host: String,
        observes: bool,
        warnings: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PolicyFile {
    /// When it was changed, in seconds since the Unix epoch.
    changed: u64,
    uid: u32,
    mode: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Table {
    Unseen(String),
    None,
    /// It is there, and was not compared: the daemon does that, or there is nothing to compare with.
    Present,
    InStep,
    /// What an apply would change.
    Differs(String),
}

#[derive(Debug, Clone, PartialEq)]
enum Follower {
    Runs(Box<Status>),
    None,
    Unseen(String),
    Broken(String),
}

impl Enforcement {
    pub(super) fn look(place: &Place, daemon: &Daemon) -> Self {
        let status = daemon.status();
        let sources = place.sources(status);
        let choice = match (&place.host, status.and_then(|status| status.enforced.as_ref())) {
            // The daemon may have been told who it is.
            (HostChoice::Local, Some(enforced)) => HostChoice::Named(enforced.host.clone()),
            (choice, _) => choice.clone(),
        };
        let (policy, desired) = match Site::load(&sources).map_err(load::Error::from) {
            Ok(site) => loaded(&site, &choice).unwrap_or_else(|error| (Policy::Broken(first_line(&error)), None)),
            Err(load::Error::Load(LoadError::Missing { path, .. })) if path == sources.policy => {
                (Policy::Missing, None)
            }
            Err(error @ load::Error::Load(LoadError::Read { .. })) => (Policy::Unreadable(first_line(&error)), None),
            Err(error) => (Policy::Broken(first_line(&error)), None),
        };
        let file = fs::metadata(&sources.policy).ok().map(|metadata| PolicyFile {
            changed: u64::try_from(metadata.mtime()).unwrap_or_default(),
            uid: metadata.uid(),
            mode: metadata.mode(),
        });
        // What the daemon opens for dynamic ports is not in the file, so that its own comparison counts.
        let compared = desired.as_ref().filter(|_| matches!(daemon, Daemon::None));
        Self {
            path: sources.policy,
            now: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            policy,
            file,
            table: table(compared).unwrap_or_else(|error| Table::Unseen(describe(&error))),
            daemon: match daemon {
                Daemon::Runs(status) => Follower::Runs(status.clone()),
                Daemon::None => Follower::None,
                Daemon::Unseen(why) => Follower::Unseen(why.clone()),
                Daemon::Broken(why) => Follower::Broken(why.clone()),
            },
        }
    }

    pub(super) fn findings(&self) -> Vec<Finding> {
        let nothing_seen = matches!(self.table, Table::None | Table::Unseen(_));
        if self.policy == Policy::Missing && nothing_seen && self.daemon == Follower::None {
            let found = format!("there is no policy ({}), so nothing is enforced", self.path.display());
            return vec![Finding::note("policy", found, "`portward init` writes a first one, which only observes")];
        }
        let mut findings = self.policy();
        findings.extend(self.file());
        findings.push(self.follower());
        findings.extend(self.repairs());
        findings.push(self.table());
        findings
    }

    fn policy(&self) -> Vec<Finding> {
        const CHECK: &str = "policy";
        let path = self.path.display();
        let (host, observes, warnings) = match &self.policy {
            Policy::Missing => {
                let remedy = "put it back, or `portward down` to give up enforcement";
                return vec![Finding::problem(CHECK, format!("{path} is not there any more"), remedy)];
            }
            Policy::Broken(message) => {
                let remedy = "`portward check` says what is wrong";
                return vec![Finding::problem(CHECK, format!("it does not load: {message}"), remedy)];
            }
            Policy::Unreadable(message) => return vec![Finding::unseen(CHECK, message)],
            Policy::Loads { host, observes, warnings } => (host, *observes, *warnings),
        };
        let mut findings = vec![Finding::ok(CHECK, format!("{path} loads, for host {host}{}", self.age()))];
        if warnings > 0 {
            let found = count(u64::try_from(warnings).unwrap_or(u64::MAX), "warning");
            findings.push(Finding::note(CHECK, found, "`portward check` shows what may not be meant"));
        }
        let is_older = |seconds| self.changed_ago().is_some_and(|ago| ago > seconds);
        if observes {
            let since = if is_older(LONG_OBSERVED) { ", and has not been changed for a month" } else { "" };
            findings.push(Finding::note(
                "mode",
                format!("it only observes{since}: nothing is denied"),
                "look through `portward observe-report`, then `portward enforce`",
            ));
        }
        if is_older(OLD) {
            findings.push(Finding::note(
                "policy-age",
                format!("it was not changed for {}", count(self.changed_ago().unwrap_or_default() / DAY, "day")),
                "see whether hosts, administrators and the version of JSA in it are still right",
            ));
        }
        findings
    }

    fn file(&self) -> Option<Finding> {
        let file = self.file?;
        let others = file.mode & WRITABLE_BY_OTHERS != 0;
        (others || file.uid != 0).then(|| {
            Finding::warning(
                "policy-file",
                format!("others than root can change it (owner {}, mode {:o})", file.uid, file.mode & 0o7777),
                format!("chown root:root {0} && chmod 0644 {0}", self.path.display()),
            )
        })
    }

    fn follower(&self) -> Finding {
        const CHECK: &str = "daemon";
        match &self.daemon {
            Follower::Runs(status) => match (&status.condition, &status.kernel_error, &status.policy_error) {
                (Condition::Failing, Some(failure), _) => Finding::problem(
                    CHECK,
                    format!("the kernel does not hold what the policy says: {}", one_line(&failure.message)),
                    "`portward status` says more; the daemon keeps trying",
                ),
                (Condition::Keeping, _, Some(failure)) => Finding::problem(
                    CHECK,
                    format!("an older policy stays in force, the file is not applied: {}", one_line(&failure.message)),
                    "`portward check` says what is wrong",
                ),
                (Condition::Disputed, _, _) => Finding::problem(
                    CHECK,
                    "somebody keeps changing the table",
                    "`portward status` says who; stop that, or have it leave table inet portward alone",
                ),
                (Condition::Trying, _, _) => Finding::note(
                    CHECK,
                    "a policy is on trial".to_owned(),
                    "`portward confirm` keeps it, `portward revert` takes it back",
                ),
                (Condition::InStep, _, _) => Finding::ok(CHECK, format!("runs, process {}, in step", status.pid)),
                _ => Finding::problem(CHECK, "it is not in step with the policy", "`portward status` says more"),
            },
            Follower::None => Finding::warning(
                CHECK,
                "no daemon runs: changes of the file have no effect, and nobody repairs the table",
                "systemctl start portward",
            ),
            Follower::Unseen(why) => Finding::unseen(CHECK, why),
            Follower::Broken(why) => Finding::problem(CHECK, why.clone(), "systemctl restart portward"),
        }
    }

    fn repairs(&self) -> Option<Finding> {
        let Follower::Runs(status) = &self.daemon else { return None };
        let repair = status.last_repair.as_ref()?;
        Some(Finding::note(
            "repairs",
            format!("the table was repaired {}, last after {}", count(status.repairs, "time"), repair.by),
            "let that program load its own tables only",
        ))
    }

    fn table(&self) -> Finding {
        const CHECK: &str = "table";
        match (&self.table, &self.policy) {
            (Table::Unseen(why), _) => Finding::unseen(CHECK, why),
            (Table::None, _) => Finding::problem(
                CHECK,
                "there is no table inet portward: nothing is enforced",
                "systemctl start portward, or once `portward apply`",
            ),
            (Table::Present, _) => Finding::ok(CHECK, "table inet portward is there"),
            (Table::InStep, _) => Finding::ok(CHECK, "the kernel holds what the policy says"),
            (Table::Differs(changes), _) => Finding::warning(
                CHECK,
                format!("the kernel holds something else than the policy says; to change: {changes}"),
                "`portward diff` shows it, the daemon or `portward apply` mends it",
            ),
        }
    }

    fn changed_ago(&self) -> Option<u64> {
        self.file.map(|file| self.now.saturating_sub(file.changed))
    }

    fn age(&self) -> String {
        match self.changed_ago() {
            None => String::new(),
            Some(..DAY) => ", changed within a day".to_owned(),
            Some(ago) => format!(", changed {} ago", count(ago / DAY, "day")),
        }
    }
}

fn loaded(site: &Site, choice: &HostChoice) -> Result<(Policy, Option<Ruleset>), load::Error> {
    let identity = Identity::of_this_host().map_err(load::Error::Identity)?;
    let (host, _) = site.find(choice, &identity)?;
    let ruleset = site.ruleset(host)?;
    let policy = Policy::Loads {
        host: host.name.clone(),
        observes: site.policy.mode == Mode::Observe,
        warnings: site.warnings.iter().count(),
    };
    Ok((policy, Some(ruleset)))
}

fn table(desired: Option<&Ruleset>) -> Result<Table, reconcile::Error> {
    let mut reconciler = Reconciler::new(Netlink::open()?);
    if reconciler.snapshot()?.table.is_none() {
        return Ok(Table::None);
    }
    let Some(desired) = desired else { return Ok(Table::Present) };
    let changes = reconciler.changes(Some(desired))?;
    Ok(if changes.is_empty() { Table::InStep } else { Table::Differs(summary(&changes)) })
}

fn first_line(error: &load::Error) -> String {
    one_line(&describe(error))
}

fn one_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::{Severity, severities};
    use super::*;
    use crate::daemon::status::{Failure, Repair, Source};
    use crate::trackers::Report;

    fn status(condition: Condition) -> Box<Status> {
        let failure = |wanted| (condition == wanted).then(|| Failure { since: 1, message: "first\nsecond".to_owned() });
        Box::new(Status {
            version: String::new(),
            pid: 7,
            started: 1,
            condition,
            policy: PathBuf::new(),
            state_dir: PathBuf::new(),
            source: Source::File,
            trial: None,
            last_trial: None,
            state_error: None,
            enforced: None,
            table: None,
            generation: None,
            last_change: None,
            policy_error: failure(Condition::Keeping),
            kernel_error: failure(Condition::Failing),
            repairs: 0,
            last_repair: None,
            meddling: None,
            dynamic: Report::default(),
        })
    }

    /// All is well.
    fn fine() -> Enforcement {
        Enforcement {
            path: "/etc/portward/policy.toml".into(),
            now: 1000 * DAY,
            policy: Policy::Loads { host: "console".to_owned(), observes: false, warnings: 0 },
            file: Some(PolicyFile { changed: 990 * DAY, uid: 0, mode: 0o100_644 }),
            table: Table::Present,
            daemon: Follower::Runs(status(Condition::InStep)),
        }
    }

    /// The findings that are not as they should be.
    fn wrong(enforcement: &Enforcement) -> Vec<(&'static str, Severity)> {
        let findings = enforcement.findings().into_iter().filter(|finding| finding.severity != Severity::Ok);
        findings.map(|finding| (finding.check, finding.severity)).collect()
    }

    #[test]
    fn what_is_in_step_is_fine() {
        assert_eq!(severities(&fine().findings()), [Severity::Ok; 3]);
        assert!(fine().findings()[0].found.ends_with("for host console, changed 10 days ago"));
    }

    #[test]
    fn a_machine_without_a_policy_is_a_note_and_a_lost_policy_a_problem() {
        let none =
            Enforcement { policy: Policy::Missing, file: None, table: Table::None, daemon: Follower::None, ..fine() };
        assert_eq!(wrong(&none), [("policy", Severity::Note)]);
        let lost = Enforcement { policy: Policy::Missing, file: None, ..fine() };
        assert_eq!(wrong(&lost), [("policy", Severity::Problem)]);
        let broken = Enforcement { policy: Policy::Broken("why".to_owned()), ..fine() };
        assert_eq!(wrong(&broken), [("policy", Severity::Problem)]);
    }

    #[test]
    fn a_daemon_that_is_missing_or_out_of_step_is_told() {
        let daemon = |daemon| wrong(&Enforcement { daemon, ..fine() });
        assert_eq!(daemon(Follower::None), [("daemon", Severity::Warning)]);
        assert_eq!(daemon(Follower::Unseen("not root".to_owned())), [("daemon", Severity::Note)]);
        assert_eq!(daemon(Follower::Broken("hangs".to_owned())), [("daemon", Severity::Problem)]);
        for condition in [Condition::Keeping, Condition::Failing, Condition::Disputed] {
            assert_eq!(daemon(Follower::Runs(status(condition))), [("daemon", Severity::Problem)]);
        }
        let mut repaired = status(Condition::InStep);
        repaired.repairs = 2;
        repaired.last_repair = Some(Repair { at: 1, by: "nft (process 8)".to_owned(), changes: String::new() });
        assert_eq!(daemon(Follower::Runs(repaired)), [("repairs", Severity::Note)]);
    }

    #[test]
    fn a_table_that_is_missing_or_different_is_told() {
        let table = |table| wrong(&Enforcement { table, ..fine() });
        assert_eq!(table(Table::None), [("table", Severity::Problem)]);
        assert_eq!(table(Table::Differs("1 rule added".to_owned())), [("table", Severity::Warning)]);
        assert_eq!(table(Table::InStep), []);
        assert_eq!(table(Table::Unseen("why".to_owned())), [("table", Severity::Note)]);
    }

    #[test]
    fn age_mode_and_owner_of_the_policy_are_told() {
        let file = |changed, uid, mode| wrong(&Enforcement { file: Some(PolicyFile { changed, uid, mode }), ..fine() });
        assert_eq!(file(600 * DAY, 0, 0o644), [("policy-age", Severity::Note)]);
        assert_eq!(file(2000 * DAY, 0, 0o600), [], "a file from the future is no matter of its age");
        assert_eq!(file(990 * DAY, 0, 0o664), [("policy-file", Severity::Warning)]);
        assert_eq!(file(990 * DAY, 1000, 0o644), [("policy-file", Severity::Warning)]);
        let observes = Policy::Loads { host: "console".to_owned(), observes: true, warnings: 1 };
        let notes = [("policy", Severity::Note), ("mode", Severity::Note)];
        assert_eq!(wrong(&Enforcement { policy: observes, ..fine() }), notes);
    }
}
