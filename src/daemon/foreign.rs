//! What others do to the table: how the daemon hears of it, notes who it was, and undoes it. When it is time for that, and
//! when it is a dispute, [`meddling`](super::meddling) decides.

use super::meddling::Author;
use super::reconcile::Outcome;
use super::status::{Repair, now};
use super::{Daemon, REPAIR, VERIFY_EVERY};
use crate::describe;
use crate::kernel::{Kernel, Monitor, Notification};
use crate::news;
use std::fmt;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

/// How many changes of a foreign transaction are named in the log.
const CHANGES_NAMED: usize = 3;

impl<K: Kernel> Daemon<K> {
    /// What others had changed is as it should be again, whatever led to that: a reload and a dynamic port repair, too.
    pub(super) fn settle(&mut self, outcome: &Outcome) {
        if outcome.is_nothing() {
            return;
        }
        let was_disputed = self.meddling.dispute().is_some();
        let at = now();
        let Some(by) = self.meddling.repaired(Instant::now().into(), at) else { return };
        for object in &outcome.foreign {
            warn!("was in the table and is gone: {object}");
        }
        warn!(generation = outcome.generation, "the table was changed by {by} and is repaired: {}", outcome.changes);
        let dispute = self.meddling.dispute();
        if dispute.is_some() && !was_disputed {
            error!(
                "{by} and others before keep changing the table: find out what does that, such as a second portward \
                 daemon; from now on repairs keep a distance, of a few seconds at most"
            );
        }
        self.status.send_modify(|status| {
            status.repairs += 1;
            status.last_repair = Some(Repair { at, by, changes: outcome.changes.clone() });
            status.meddling = dispute.cloned();
        });
    }

    /// Undoes what others have done to the table.
    pub(super) fn repair(&mut self) {
        // What came of it is in the log and in the status.
        let _ = self.bring_into_step(REPAIR);
    }

    /// The table is not what it was, and nobody has been heard of.
    pub(super) fn suspect(&mut self) {
        if !self.meddling.is_open() {
            self.meddling.changed(Author::default(), Instant::now().into(), now());
        }
    }

    pub(super) fn end_dispute_if_calm(&mut self) {
        if self.meddling.end_if_calm(Instant::now().into()) {
            info!("nobody changes the table any more");
            self.status.send_modify(|status| status.meddling = None);
            self.publish();
        }
    }

    /// Looks through what the kernel told, and repairs the table if others have touched it and it is time.
    pub(super) fn heed(&mut self, notifications: Result<Vec<Notification>, crate::kernel::Error>) {
        match notifications {
            Ok(notifications) => self.note(notifications),
            Err(error) => {
                warn!("notifications cannot be read, and are asked for anew: {}", describe(&error));
                self.monitor = None;
                self.reconciler.forget();
                return self.repair();
            }
        }
        if self.meddling.due().is_some_and(|due| due <= Instant::now().into()) {
            self.repair();
        }
    }

    /// Notes what the kernel has told so far, before the daemon's own change settles it.
    pub(super) fn hear(&mut self) {
        // A broken monitor is noticed, and replaced, when it is listened to next.
        let heard = self.monitor.as_mut().and_then(|monitor| monitor.get_mut().read().ok());
        self.note(heard.unwrap_or_default());
    }

    /// Notes who has changed the table.
    fn note(&mut self, notifications: Vec<Notification>) {
        for notification in notifications {
            match notification {
                Notification::Table { what } => self.touched.add(what),
                Notification::Generation { id, pid, process } => {
                    let touched = std::mem::take(&mut self.touched);
                    if self.reconciler.is_own(id) {
                        continue;
                    }
                    if touched.named.is_empty() {
                        self.reconciler.changed_elsewhere(id);
                        continue;
                    }
                    let author = Author { process, pid };
                    // A dispute would fill the log; its repairs name the authors.
                    match self.meddling.dispute() {
                        None => warn!(generation = id, "{author} changed the table: {touched}"),
                        Some(_) => debug!(generation = id, "{author} changed the table: {touched}"),
                    }
                    self.meddling.changed(author, Instant::now().into(), now());
                }
                Notification::Lost => {
                    self.touched = Touched::default();
                    self.reconciler.forget();
                    self.suspect();
                }
            }
        }
    }

    /// Hears of changes from now on.
    pub(super) fn listen(&mut self) {
        if self.monitor.as_ref().is_some_and(|monitor| monitor.get_ref().resume().is_ok()) {
            return;
        }
        let monitor = Monitor::open().map_err(|error| describe(&error));
        let monitor = monitor.and_then(|monitor| news::register(monitor).map_err(|error| error.to_string()));
        self.monitor =
            monitor.inspect_err(|error| warn!("no notifications, only a look every {VERIFY_EVERY:?}: {error}")).ok();
    }
}

/// What a foreign transaction has changed: the first few things, however many there are.
#[derive(Debug, Default)]
pub(super) struct Touched {
    named: Vec<String>,
    more: bool,
}

impl Touched {
    fn add(&mut self, what: String) {
        if self.named.contains(&what) {
            return;
        }
        if self.named.len() < CHANGES_NAMED {
            self.named.push(what);
        } else {
            self.more = true;
        }
    }
}

impl fmt::Display for Touched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.named.join(", "))?;
        f.write_str(if self.more { " and more" } else { "" })
    }
}
