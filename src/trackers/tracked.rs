//! One service and what is known of it: who its process is, what it has said, and what of that may be open.

use super::Claim;
use super::holder::wanted_user;
use super::observer::Watched;
use super::question::{Answer, Failure};
use super::schedule::Schedule;
use super::sockets::{Holder, Identity, Sockets};
use super::state::{Opened, ServiceCondition, ServiceReport};
use super::verify::{self, Anchor, Meant, Verdict};
use crate::listeners::Listener;
use crate::plan::OpenPort;
use crate::policy::{DynamicService, Tracker};
use crate::ruleset::Protocol;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;
use tracing::debug;

/// How often a registry may fail to answer before its process's listeners are taken in place of its answer.
const FAILURES_BEFORE_FALLBACK: u32 = 2;

/// One service and what is known of it.
pub(super) struct Tracked {
    pub(super) watched: Watched,
    /// The number of the user that the process must run as; `None`: any, or one that does not exist.
    pub(super) user: Option<u32>,
    /// The processes that were asked or looked at last.
    pub(super) owners: BTreeSet<Identity>,
    /// The listeners of these processes.
    pub(super) listening: BTreeSet<u64>,
    /// What the service has said.
    answer: Option<Answer>,
    /// What it had open before this daemon.
    adopted: Vec<Claim>,
    failure: Option<Failure>,
    failures: u32,
    pub(super) schedule: Schedule,
    pub(super) open: BTreeSet<OpenPort>,
}

pub(super) struct Reply {
    pub(super) service: String,
    pub(super) owners: BTreeSet<Identity>,
    pub(super) result: Result<Answer, Failure>,
}

impl Tracked {
    pub(super) fn new(watched: Watched) -> Self {
        let user = wanted_user(&watched.service.process);
        Self {
            watched,
            user,
            owners: BTreeSet::new(),
            listening: BTreeSet::new(),
            answer: None,
            adopted: Vec::new(),
            failure: None,
            failures: 0,
            schedule: Schedule::default(),
            open: BTreeSet::new(),
        }
    }

    /// Takes another description of the service. What the service has said stays true when only its limit or its line in
    /// the file changes.
    pub(super) fn watch(self, watched: Watched) -> Self {
        match same_process(&self.watched.service, &watched.service) {
            true => Self { watched, ..self },
            false => Self::new(watched),
        }
    }

    /// Takes ports that an earlier daemon has opened for claims, until the service itself answers.
    pub(super) fn adopt(&mut self, ports: &BTreeSet<(Protocol, u16)>) {
        let claim = |(protocol, port): &(Protocol, u16)| Claim {
            protocol: *protocol,
            port: *port,
            what: "open before the daemon started".to_owned(),
        };
        if self.answer.is_none() {
            self.adopted = ports.iter().map(claim).collect();
        }
    }

    fn forget(&mut self) {
        self.owners.clear();
        self.listening.clear();
        self.answer = None;
        self.failure = None;
        self.failures = 0;
        self.schedule.stop();
        self.open.clear();
    }

    /// Takes note of whom the ports belong to and what they listen on; both are reasons to ask (again).
    fn note<P: Holder>(&mut self, owners: &[Arc<P>], sockets: &Sockets<P>, now: Instant) {
        let identities: BTreeSet<Identity> = owners.iter().map(|owner| owner.identity()).collect();
        let units: BTreeSet<&str> = owners.iter().filter_map(|owner| owner.unit()).collect();
        let of_processes = identities.iter().flat_map(|identity| sockets.of_process(*identity));
        let of_units = units.iter().flat_map(|unit| sockets.of_unit(unit));
        let listening = of_processes.chain(of_units).map(|socket| socket.listener.cookie).collect();
        if identities != self.owners {
            if !self.owners.is_empty() {
                self.answer = None;
                self.adopted.clear();
            }
            (self.failure, self.failures) = (None, 0);
            self.owners = identities;
            self.schedule.trigger(now);
        }
        if listening != self.listening {
            self.listening = listening;
            self.schedule.trigger(now);
        }
    }

    pub(super) fn heard(&mut self, reply: Reply, now: Instant) {
        self.schedule.answered(now);
        if reply.owners != self.owners {
            return;
        }
        match reply.result {
            Ok(answer) => {
                self.answer = Some(answer);
                self.adopted.clear();
                (self.failure, self.failures) = (None, 0);
            }
            Err(failure) => {
                debug!(service = self.watched.service.name, "does not tell its ports: {}", failure.message);
                self.failures = self.failures.saturating_add(1);
                self.failure = Some(failure);
            }
        }
    }

    /// Judges the service by what is known now.
    pub(super) fn judge<P: Holder>(&mut self, sockets: &Sockets<P>, now: Instant) -> ServiceReport {
        let service = &self.watched.service;
        let name = service.name.clone();
        let tracker = service.tracker;
        let (condition, detail, verdict) = match tracker {
            Tracker::Rpc => self.judge_rpc(sockets, now),
            Tracker::Imq | Tracker::Rmi | Tracker::Process => match verify::anchor(service, self.user, sockets) {
                Anchor::Absent => {
                    self.forget();
                    let anchor = self.anchor_name();
                    (ServiceCondition::Absent, format!("nobody listens on {anchor}"), Verdict::default())
                }
                Anchor::Unverified(why) => {
                    self.forget();
                    let detail = format!("{} is not the service's: {why}", self.anchor_name());
                    (ServiceCondition::Unverified, detail, Verdict::default())
                }
                Anchor::Verified(owners, _) => {
                    self.note(&owners, sockets, now);
                    self.judge_verified(&owners, sockets)
                }
            },
        };
        self.open = verdict.open.keys().copied().collect();
        let mut refused = verdict.refused;
        refused.extend(self.answer.iter().flat_map(|answer| answer.refused.iter().cloned()));
        refused.sort();
        ServiceReport {
            name,
            tracker: tracker.name().to_owned(),
            condition,
            detail,
            open: verdict.open.into_values().collect::<Vec<Opened>>(),
            refused,
        }
    }

    fn judge_verified<P: Holder>(
        &self,
        owners: &[Arc<P>],
        sockets: &Sockets<P>,
    ) -> (ServiceCondition, String, Verdict) {
        let owner = owners.first().map(|owner| owner.describe()).unwrap_or_default();
        let judge =
            |meant| verify::judge(&self.watched.service, &self.watched.own_ports, sockets, owners, meant, &self.open);
        let kept = self.answer.as_ref().map_or(&self.adopted, |answer| &answer.claims);
        match (&self.failure, &self.answer) {
            _ if self.watched.service.tracker == Tracker::Process => {
                (ServiceCondition::Tracked, owner, judge(Meant::Listeners))
            }
            (Some(failure), None) if failure.final_word && self.failures >= FAILURES_BEFORE_FALLBACK => {
                let detail = format!("{owner} does not name its ports ({}): all its listeners count", failure.message);
                (ServiceCondition::Fallback, detail, judge(Meant::Listeners))
            }
            (Some(failure), _) => {
                let detail = format!("{owner} does not tell its ports: {}", failure.message);
                (ServiceCondition::Silent, detail, judge(Meant::Claims(kept)))
            }
            (None, Some(answer)) => (ServiceCondition::Tracked, owner, judge(Meant::Claims(&answer.claims))),
            (None, None) => (ServiceCondition::Silent, format!("{owner} is being asked"), judge(Meant::Claims(kept))),
        }
    }

    /// rpcbind is asked as long as a process that may register runs at all; each listener's own process is checked.
    fn judge_rpc<P: Holder>(&mut self, sockets: &Sockets<P>, now: Instant) -> (ServiceCondition, String, Verdict) {
        let wanted = &self.watched.service.process;
        let owners: Vec<Arc<P>> =
            sockets.processes().filter(|process| process.check(wanted).is_ok()).cloned().collect();
        if owners.is_empty() {
            self.forget();
            return (ServiceCondition::Absent, "no such process listens".to_owned(), Verdict::default());
        }
        self.note(&owners, sockets, now);
        let claims = self.answer.as_ref().map_or(&self.adopted, |answer| &answer.claims);
        let verdict = verify::judge(
            &self.watched.service,
            &self.watched.own_ports,
            sockets,
            &[],
            Meant::Claims(claims),
            &self.open,
        );
        let names: BTreeSet<String> = owners.iter().map(|owner| owner.describe()).collect();
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        match (&self.failure, &self.answer) {
            (Some(failure), _) => {
                (ServiceCondition::Silent, format!("rpcbind does not tell the ports: {}", failure.message), verdict)
            }
            (None, Some(_)) => (ServiceCondition::Tracked, names, verdict),
            (None, None) => (ServiceCondition::Silent, format!("{names}: rpcbind is being asked"), verdict),
        }
    }

    fn anchor_name(&self) -> String {
        self.watched.service.anchor.map_or_else(String::new, |port| verify::name(Protocol::Tcp, port))
    }
}

/// Whether the process of a listener needs to be known: not when its user is none that any service has.
pub(super) fn may_matter(services: &[Tracked], listener: &Listener) -> bool {
    let of_user = |tracked: &Tracked| tracked.user.is_none_or(|user| user == listener.uid);
    listener.inode != 0 && services.iter().any(of_user)
}

/// Whether two versions of a service are about the same process, asked in the same way.
fn same_process(one: &DynamicService, two: &DynamicService) -> bool {
    (one.tracker, one.anchor, &one.programs, &one.process) == (two.tracker, two.anchor, &two.programs, &two.process)
}
