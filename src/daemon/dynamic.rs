//! Dynamic ports in the daemon: what the observer finds out, and what of it is open.

use super::pace::Pace;
use crate::plan::{OpenPort, OpenPorts};
use crate::ruleset::Protocol;
use crate::trackers::{Observation, Observer, Options, Report, ServiceReport, Wanted, Watched};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::{info, warn};

/// How long the start waits for the ports that an earlier daemon has opened to be verified. Looking at all processes of a
/// busy host takes a third of a second.
const VERIFICATION: Duration = Duration::from_secs(2);

/// What the table of an earlier daemon has open, by service.
pub(super) type Adopted = BTreeMap<String, BTreeSet<(Protocol, u16)>>;

/// The observer, and the ports that are open because of it.
pub(super) struct Dynamic {
    observer: Observer,
    observations: watch::Receiver<Observation>,
    revision: u64,
    watched: Vec<Watched>,
    open: OpenPorts,
    pace: Pace,
    report: Report,
}

/// What the observer has found since the last time.
pub(super) struct News {
    pub(super) changes: Changes,
    /// What it had said before.
    before: Report,
}

/// How the open ports have changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Each with the name of its service.
    pub(super) opened: Vec<(String, OpenPort)>,
    /// Each with the name of its service.
    pub(super) closed: Vec<(String, OpenPort)>,
}

impl Dynamic {
    /// Starts the observer, which rests until [`Dynamic::watch`].
    pub(super) fn start(options: Options) -> io::Result<Self> {
        let observer = Observer::start(options)?;
        let observations = observer.observations();
        Ok(Self {
            observer,
            observations,
            revision: 0,
            watched: Vec::new(),
            open: OpenPorts::new(),
            pace: Pace::new(Instant::now()),
            report: Report::default(),
        })
    }

    /// Says which services this host exposes now. The ports of a service whose description has changed are closed until
    /// they are verified anew.
    pub(super) fn watch(&mut self, services: Vec<Watched>) {
        if services == self.watched {
            return;
        }
        let unchanged: BTreeSet<&str> = services
            .iter()
            .filter(|watched| self.watched.contains(watched))
            .map(|watched| watched.service.name.as_str())
            .collect();
        self.open.retain(|name, _| unchanged.contains(name.as_str()));
        self.watched = services;
        self.tell(Adopted::new());
    }

    /// Has the ports that an earlier daemon has opened verified, as if the services had named them.
    pub(super) fn verify_anew(&mut self, adopted: Adopted) {
        self.tell(adopted);
    }

    fn tell(&mut self, adopted: Adopted) {
        self.revision += 1;
        self.observer.watch(Wanted { revision: self.revision, services: self.watched.clone(), adopted });
    }

    /// Waits until the observer has looked at what it was told to watch last; not for ever.
    pub(super) async fn verified(&mut self) {
        let revision = self.revision;
        let looked = self.observations.wait_for(|observation| observation.revision == revision);
        if tokio::time::timeout(VERIFICATION, looked).await.is_err() {
            warn!(
                "the ports that an earlier daemon has opened could not be verified in {VERIFICATION:?}; they are closed"
            );
        }
        let news = self.take();
        self.log(&news);
    }

    /// The ports that are to be open.
    pub(super) fn open(&self) -> &OpenPorts {
        &self.open
    }

    /// What the observer has said last.
    pub(super) fn report(&self) -> &Report {
        &self.report
    }

    /// Waits until the observer has news and the kernel may be changed again.
    pub(super) async fn news(&mut self) {
        if self.observations.changed().await.is_err() {
            // The observer has ended, which only happens with the daemon.
            return std::future::pending().await;
        }
        // Whoever waits here may be interrupted, and then the news must not be lost.
        self.observations.mark_changed();
        tokio::time::sleep_until(self.pace.next().into()).await;
    }

    /// Takes the news over: from now on these ports are the ones that are to be open.
    pub(super) fn take(&mut self) -> News {
        let observation = self.observations.borrow_and_update().clone();
        if observation.revision != self.revision {
            // About what was watched before.
            return News { changes: Changes::default(), before: self.report.clone() };
        }
        let changes = changes(&self.open, &observation.open);
        if !changes.is_empty() {
            self.pace.spend(Instant::now());
        }
        self.open = observation.open;
        News { changes, before: std::mem::replace(&mut self.report, observation.report) }
    }

    /// Tells the log what was new.
    pub(super) fn log(&self, news: &News) {
        log_refusals(&news.before.services, &self.report.services);
        log_changes(&news.changes, &self.report.services, &news.before.services);
    }

    /// What happens to the connections of a service's port that closes.
    pub(super) fn cuts(&self, service: &str) -> bool {
        self.watched
            .iter()
            .any(|watched| watched.service.name == service && watched.service.on_close == crate::policy::OnClose::Cut)
    }
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.opened.is_empty() && self.closed.is_empty()
    }
}

fn changes(before: &OpenPorts, after: &OpenPorts) -> Changes {
    let only_in = |one: &OpenPorts, other: &OpenPorts| -> Vec<(String, OpenPort)> {
        one.iter()
            .flat_map(|(name, ports)| {
                let others = other.get(name);
                let new = ports.iter().filter(move |port| others.is_none_or(|others| !others.contains(port)));
                new.map(|port| (name.clone(), *port))
            })
            .collect()
    };
    Changes { opened: only_in(after, before), closed: only_in(before, after) }
}

/// Ports that are named in one line of the log; of more only the number is told.
const PORTS_NAMED: usize = 8;

fn log_changes(changes: &Changes, now: &[ServiceReport], before: &[ServiceReport]) {
    let words = |ports: &[(String, OpenPort)], reports: &[ServiceReport]| {
        let named = ports.iter().take(PORTS_NAMED).map(|(service, port)| {
            let name = format!("{}/{}", port.port, port.protocol.name());
            let of_service = reports.iter().find(|report| report.name == *service);
            let opened = of_service.and_then(|report| report.open.iter().find(|opened| opened.port == name));
            match opened {
                Some(opened) => format!("{service} {name} ({}, {})", opened.what, opened.process),
                None => format!("{service} {name}"),
            }
        });
        let mut text = named.collect::<Vec<_>>().join(", ");
        if ports.len() > PORTS_NAMED {
            text.push_str(&format!(" and {} more", ports.len() - PORTS_NAMED));
        }
        text
    };
    if !changes.opened.is_empty() {
        info!("opened: {}", words(&changes.opened, now));
    }
    if !changes.closed.is_empty() {
        info!("closed: {}", words(&changes.closed, before));
    }
}

/// Tells what stays closed, once for as long as it does.
fn log_refusals(before: &[ServiceReport], now: &[ServiceReport]) {
    for report in now {
        let known = before.iter().find(|known| known.name == report.name);
        if known.is_none_or(|known| (known.condition, &known.detail) != (report.condition, &report.detail)) {
            info!("{}: {}", report.name, report.detail);
        }
        let is_new =
            |refused: &&crate::trackers::RefusedPort| known.is_none_or(|known| !known.refused.contains(refused));
        // What has no port at present is no attempt at anything.
        for refused in report.refused.iter().filter(is_new).filter(|refused| refused.port != "-") {
            warn!("{}: {} ({}) stays closed: {}", report.name, refused.port, refused.what, refused.why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::LocalScope;

    #[test]
    fn changes_name_what_came_and_what_went() {
        let port = |port| OpenPort { protocol: Protocol::Tcp, port, scope: LocalScope::Any };
        let ports = |name: &str, list: &[u16]| (name.to_owned(), list.iter().map(|number| port(*number)).collect());
        let before: OpenPorts = [ports("imq", &[1, 2]), ports("rmi", &[3])].into();
        let after: OpenPorts = [ports("dcom", &[4]), ports("imq", &[2, 5])].into();
        let changes = changes(&before, &after);
        let opened: Vec<_> = changes.opened.iter().map(|(name, port)| (name.as_str(), port.port)).collect();
        let closed: Vec<_> = changes.closed.iter().map(|(name, port)| (name.as_str(), port.port)).collect();
        assert_eq!(opened, [("dcom", 4), ("imq", 5)]);
        assert_eq!(closed, [("imq", 1), ("rmi", 3)]);
    }
}
