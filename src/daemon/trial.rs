//! A policy on trial: applied for the time being, and taken back by itself unless somebody confirms it.
//!
//! The policy file stays what the daemon follows. While a trial lasts, changes of the file wait, with one exception:
//! when the file holds the very text that is on trial, that is the confirmation. So whoever confirms writes the file
//! first, and nothing that happens in between leaves file and kernel apart for long. That a trial lasts is kept on disk:
//! the next start after a crash or a power cut knows that the table in the kernel is not to be trusted.

use super::asker::Asker;
use super::control::Order;
use super::load::{Sources, Texts};
use super::protocol::{Reply, Request, TRIAL_SECONDS};
use super::status::{self, LastTrial, Source, now};
use super::tighten::Counts;
use super::{Cause, Daemon, Desired, Reloaded, service};
use crate::describe;
use crate::kernel::Kernel;
use crate::ruleset::{Name, Ruleset, Set};
use crate::state::Pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{info, warn};

/// What is on trial, and what comes back after it.
pub(super) struct Trial {
    texts: Arc<Texts>,
    previous: Desired,
    end: Instant,
    told: status::Trial,
    /// Whether it may deny what was allowed before.
    may_tighten: bool,
    /// What an observing policy has noted, in sets that the tried one has no use for: they stay for the way back.
    carried: Vec<Name>,
}

/// Puts the sets of notes that only the one ruleset has into the other; says which.
fn carry_notes(from: &Ruleset, to: &mut Ruleset) -> Vec<Name> {
    let is_carried = |(name, set): &(&Name, &Set)| {
        set.record().is_some() && !to.sets.contains_key(*name) && !to.maps.contains_key(*name)
    };
    let carried: Vec<_> = from.sets.iter().filter(is_carried).map(|(name, set)| (name.clone(), set.clone())).collect();
    for (name, set) in &carried {
        to.sets.insert(name.clone(), set.clone());
        to.sizes.extend(from.sizes.get(name).map(|size| (name.clone(), *size)));
    }
    carried.into_iter().map(|(name, _)| name).collect()
}

/// An answer, and the counts that belong into it; an error has none.
fn with_counts(result: Result<(Reply, Option<Counts>), String>) -> (Reply, Option<Counts>) {
    result.unwrap_or_else(|message| (Reply::Error(message), None))
}

/// How a trial is called where its file has no name that could be shown.
const LONGEST_LABEL: usize = 1024;

impl<K: Kernel> Daemon<K> {
    /// Does what a client of the control socket asks for, and answers.
    pub(super) fn carry_out(&mut self, order: Order) {
        let (reply, counts) = match order.request {
            Request::Reload { cause, .. } => {
                let mut asker = Asker::client(&order.client);
                asker.cause = cause;
                with_counts(
                    self.reload(Cause::Request, &asker)
                        .map(|Reloaded { changes, counts }| (Reply::Reloaded { changes, flows: None }, counts)),
                )
            }
            Request::Try { timeout, label, .. } => with_counts(
                self.begin_trial(order.policy, label, timeout, &Asker::client(&order.client))
                    .map(|reply| (reply, None)),
            ),
            Request::Confirm => with_counts(
                self.confirm(&Asker::client(&order.client)).map(|counts| (Reply::Confirmed { flows: None }, counts)),
            ),
            Request::Revert => with_counts(
                self.end_trial("on request")
                    .map(|Reloaded { changes, counts }| (Reply::Reverted { changes, flows: None }, counts)),
            ),
            Request::Status => (Reply::Status(Box::new(self.status.borrow().clone())), None),
        };
        let answer = order.answer;
        match counts {
            // A client that has gone needs no answer.
            None => drop(answer.send(reply)),
            // The loop does not wait for them.
            Some(counts) => drop(tokio::spawn(async move { answer.send(reply.with_flows(counts.wait().await)) })),
        }
    }

    fn begin_trial(&mut self, policy: String, label: String, timeout: u32, asker: &Asker) -> Result<Reply, String> {
        self.refuse_second_trial()?;
        if !TRIAL_SECONDS.contains(&timeout) {
            let (least, most) = (TRIAL_SECONDS.start(), TRIAL_SECONDS.end());
            return Err(format!("a policy is tried for {least} to {most} seconds, not for {timeout}"));
        }
        if self.desired.is_none() {
            return Err("what is in the kernel now could not be put back after a trial".to_owned());
        }
        let label: String = label.chars().filter(|symbol| !symbol.is_control()).take(LONGEST_LABEL).collect();
        let sources = Sources { policy: PathBuf::from(&label), catalogue: self.config.sources.catalogue.clone() };
        let texts = Texts::with_policy(policy, &sources).map_err(|error| describe(&error))?;
        let texts = Arc::new(texts);
        let desired = self.plan(texts.clone(), &sources, asker).map_err(|error| describe(&error))?;
        let warnings = desired.enforced.as_ref().map(|enforced| enforced.warnings.clone()).unwrap_or_default();
        let since = now();
        let pending =
            Pending { time: since, user: asker.user.clone(), label: label.clone(), policy: texts.policy.clone() };
        if let Err(error) = self.store.set_trial(&pending) {
            let message = self.note_state_error(&error);
            if !asker.force {
                return Err(format!("a trial must be known on disk, should the machine fail meanwhile: {message}"));
            }
        }

        let mut desired = Desired { source: Source::Trial, ..desired };
        let Some(previous) = self.desired.take() else { return Err("nothing to go back to".to_owned()) };
        let carried = carry_notes(&previous.ruleset, &mut desired.ruleset);
        let told = status::Trial {
            policy: label,
            user: asker.user.clone(),
            since,
            until: since.saturating_add(u64::from(timeout)),
            file_waits: false,
        };
        let end = Instant::now() + Duration::from_secs(u64::from(timeout));
        self.tightening.stop();
        self.trial = Some(Trial { texts, previous, end, told, may_tighten: false, carried });
        self.want(desired);
        service::reloading();
        let result = self.bring_into_step("a policy is tried");
        let reply = match result {
            Ok(outcome) => {
                let told = self.trial.as_mut().map(|trial| {
                    trial.may_tighten = outcome.may_tighten;
                    trial.told.clone()
                });
                self.status.send_modify(|status| status.trial = told);
                info!("on trial for {timeout} s, asked for by {}: {}", asker.user, outcome.changes);
                Ok(Reply::Trying { changes: outcome.changes, timeout, warnings })
            }
            Err(error) => {
                let message = describe(&error);
                let _ = self.end_trial("the kernel did not take it");
                Err(message)
            }
        };
        self.publish();
        service::ready(&self.summary());
        reply
    }

    fn refuse_second_trial(&self) -> Result<(), String> {
        let Some(trial) = &self.trial else { return Ok(()) };
        Err(format!(
            "{} is on trial, asked for by {}; `portward confirm` keeps it, `portward revert` takes it back",
            trial.told.policy, trial.told.user
        ))
    }

    /// Somebody says that the policy file holds now what is on trial.
    fn confirm(&mut self, asker: &Asker) -> Result<Option<Counts>, String> {
        let holds = |daemon: &Self, texts: &Texts| Texts::read(&daemon.config.sources).is_ok_and(|read| read == *texts);
        let Some(trial) = &self.trial else {
            // The change of the file was noticed before the client could say so.
            let confirmed = self.status.borrow().last_trial.as_ref().is_some_and(|last| last.confirmed);
            return match &self.seen {
                Some(seen) if confirmed && holds(self, seen) => Ok(None),
                _ => Err("nothing is on trial".to_owned()),
            };
        };
        if !holds(self, &trial.texts) {
            return Err(format!(
                "{} does not hold what is on trial; `portward confirm` writes it there first",
                self.config.sources.policy.display()
            ));
        }
        Ok(self.keep_trial(&asker.user, "it was confirmed"))
    }

    /// What is on trial stays.
    fn keep_trial(&mut self, user: &str, reason: &str) -> Option<Counts> {
        let trial = self.trial.take()?;
        info!("{} was on trial and stays: {reason}", trial.told.policy);
        self.seen = Some(trial.texts);
        if let Some(desired) = &mut self.desired {
            desired.source = Source::File;
            for name in &trial.carried {
                desired.ruleset.sets.remove(name);
                desired.ruleset.sizes.remove(name);
            }
        }
        if !trial.carried.is_empty() {
            // An error is in the log and in the status.
            let _ = self.bring_into_step("a try was confirmed");
        }
        self.status.send_modify(|status| {
            status.policy_error = None;
            status.source = Source::File;
        });
        self.remember(&format!("a try of {} was confirmed", trial.told.policy), user);
        self.forget_trial(trial.told, true, reason);
        service::ready(&self.summary());
        self.look_at_flows(trial.may_tighten)
    }

    /// Takes back what is on trial, and says what changed in the kernel; unless the policy file holds it meanwhile.
    pub(super) fn end_trial(&mut self, reason: &str) -> Result<Reloaded, String> {
        let Some(trial) = self.trial.take() else { return Err("nothing is on trial".to_owned()) };
        if Texts::read(&self.config.sources).is_ok_and(|read| read == *trial.texts) {
            self.trial = Some(trial);
            let counts = self.keep_trial("file changed", "the policy file holds it");
            return Ok(Reloaded { changes: "nothing: the policy file holds what was on trial".to_owned(), counts });
        }
        warn!("{} was on trial and is taken back: {reason}", trial.told.policy);
        self.want(trial.previous);
        service::reloading();
        let result = self.bring_into_step(&format!("a try was taken back: {reason}"));
        self.forget_trial(trial.told, false, reason);
        service::ready(&self.summary());
        // What happened to the file during the trial counts now. The outcome is in the log.
        let counts = result.as_ref().ok().and_then(|outcome| self.look_at_flows(outcome.may_tighten));
        let _ = self.reload(Cause::FileChanged, &Asker::file());
        result.map(|outcome| Reloaded { changes: outcome.changes, counts }).map_err(|error| describe(&error))
    }

    fn forget_trial(&mut self, told: status::Trial, confirmed: bool, reason: &str) {
        if let Err(error) = self.store.clear_trial() {
            self.note_state_error(&error);
        }
        self.note_end_of_trial(told.policy, told.since, confirmed, reason);
    }

    /// Tells how a trial ended.
    pub(super) fn note_end_of_trial(&mut self, policy: String, since: u64, confirmed: bool, reason: &str) {
        let last = LastTrial { policy, since, at: now(), confirmed, reason: reason.to_owned() };
        self.status.send_modify(|status| {
            status.trial = None;
            status.last_trial = Some(last);
        });
        self.publish();
    }

    /// When the trial ends, if there is one.
    pub(super) fn trial_end(&self) -> Option<Instant> {
        self.trial.as_ref().map(|trial| trial.end)
    }

    /// While a policy is on trial, nothing else is loaded; says so, or keeps it when the file holds it.
    pub(super) fn wait_for_trial(&mut self, cause: Cause) -> Result<Reloaded, String> {
        let Some(trial) = &mut self.trial else { return Ok(Reloaded::nothing()) };
        let texts = Texts::read(&self.config.sources).ok();
        if texts.as_ref() == Some(&*trial.texts) {
            let counts = self.keep_trial("file changed", "the policy file holds it");
            return Ok(Reloaded { counts, ..Reloaded::nothing() });
        }
        if cause == Cause::FileChanged && texts.as_ref() != self.seen.as_deref() && !trial.told.file_waits {
            trial.told.file_waits = true;
            warn!("the policy file was changed, and waits until the policy on trial is confirmed or taken back");
            let told = Some(trial.told.clone());
            self.status.send_modify(|status| status.trial = told);
        }
        let refused = self.refuse_second_trial();
        if let (Err(message), true) = (&refused, cause == Cause::Hangup) {
            warn!("SIGHUP is not heeded: {message}");
        }
        refused.map(|()| Reloaded::nothing())
    }
}
