//! Which ports of a service may be opened: the rules, without any input or output.
//!
//! A port opens only for a listener that exists, that the verified process holds, that others can reach at all, and that
//! lies within the service's range and limit; and only as long as no other process listens on the same port and address.

use super::Claim;
use super::sockets::{Holder, Identity, Socket, Sockets};
use super::state::{Opened, RefusedPort};
use crate::listeners::Listener;
use crate::plan::{LocalScope, OpenPort};
use crate::policy::{DynamicService, Ports, Tracker};
use crate::ruleset::Protocol;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What is refused is named up to so many times for each service; the rest would only fill the log.
const MOST_REFUSED: usize = 32;

/// Who owns the anchor of a service.
#[derive(Debug)]
pub(super) enum Anchor<P> {
    /// Nobody listens on it.
    Absent,
    /// Nobody who listens on it is the process that the policy names, and why.
    Unverified(String),
    /// These, and the listener by which they can be asked.
    Verified(Vec<Arc<P>>, Listener),
}

/// Which of a service's ports are meant.
#[derive(Debug, Clone, Copy)]
pub(super) enum Meant<'c> {
    /// The service has named these.
    Claims(&'c [Claim]),
    /// All listeners of the process but its anchor.
    Listeners,
}

/// What may be opened, and what not.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) open: BTreeMap<OpenPort, Opened>,
    pub(super) refused: Vec<RefusedPort>,
}

/// Looks who owns the anchor. `user` is the number of the user that the policy asks for: nobody looks for the process of
/// another user's socket.
pub(super) fn anchor<P: Holder>(service: &DynamicService, user: Option<u32>, sockets: &Sockets<P>) -> Anchor<P> {
    let Some(port) = service.anchor else { return Anchor::Absent };
    let mut why = None;
    let mut verified: Vec<Arc<P>> = Vec::new();
    let mut ask: Option<Listener> = None;
    for socket in sockets.on_port(Protocol::Tcp, port) {
        let Some(holders) = &socket.holders else {
            let uid = socket.listener.uid;
            why.get_or_insert_with(|| match (user, &service.process.user) {
                (Some(user), Some(name)) if user != uid => format!("its socket was made by user {uid}, not by {name}"),
                _ => "its process is not known yet".to_owned(),
            });
            continue;
        };
        if holders.is_empty() {
            why.get_or_insert_with(|| "no process that portward can see holds its socket".to_owned());
        }
        for holder in holders {
            match holder.check(&service.process) {
                Ok(()) => {
                    if !verified.iter().any(|known| known.identity() == holder.identity()) {
                        verified.push(holder.clone());
                    }
                    ask.get_or_insert(socket.listener);
                }
                Err(mismatch) => why = Some(format!("{} {mismatch}", holder.describe())),
            }
        }
    }
    match (ask, why) {
        (Some(listener), _) => Anchor::Verified(verified, listener),
        (None, Some(why)) => Anchor::Unverified(why),
        (None, None) => Anchor::Absent,
    }
}

/// Judges the listeners of a service. `verified` are the owners of its anchor; the tracker `rpc` has none, and each
/// listener's own process is checked. `own_ports` are open for the same peers by the row itself, so that nothing is said
/// about them. What is open `before` stays so, should there be more than the limit.
pub(super) fn judge<P: Holder>(
    service: &DynamicService,
    own_ports: &[Ports],
    sockets: &Sockets<P>,
    verified: &[Arc<P>],
    meant: Meant<'_>,
    before: &BTreeSet<OpenPort>,
) -> Verdict {
    let judge = Judge { service, sockets, verified };
    let mut verdict = Verdict::default();
    let mut candidates: BTreeMap<(Protocol, u16), (String, Vec<&Socket<P>>)> = BTreeMap::new();
    match meant {
        Meant::Claims(claims) => {
            for claim in claims {
                if is_own(own_ports, claim.protocol, claim.port) {
                    continue;
                }
                let entry = candidates
                    .entry((claim.protocol, claim.port))
                    .or_insert_with(|| (claim.what.clone(), sockets.on_port(claim.protocol, claim.port).collect()));
                if entry.0 != claim.what && entry.0.len() < 200 {
                    entry.0 = format!("{}, {}", entry.0, claim.what);
                }
            }
        }
        Meant::Listeners => {
            for socket in judge.listeners() {
                let Listener { protocol, port, .. } = socket.listener;
                if Some(port) == service.anchor && protocol == Protocol::Tcp || is_own(own_ports, protocol, port) {
                    continue;
                }
                let entry = candidates.entry((protocol, port)).or_insert_with(|| ("listener".to_owned(), Vec::new()));
                if !entry.1.iter().any(|known| known.listener.cookie == socket.listener.cookie) {
                    entry.1.push(socket);
                }
            }
        }
    }

    let mut allowed: Vec<((Protocol, u16), String, Vec<(LocalScope, String)>)> = Vec::new();
    for ((protocol, port), (what, listeners)) in candidates {
        match judge.port(protocol, port, &listeners) {
            Ok(scopes) => allowed.push(((protocol, port), what, scopes)),
            Err(why) => verdict.refuse(protocol, port, what, why),
        }
    }
    // What is open already comes first, then the lowest ports.
    let is_open =
        |(protocol, port): (Protocol, u16)| before.iter().any(|open| open.protocol == protocol && open.port == port);
    allowed.sort_by_key(|(key, ..)| (!is_open(*key), *key));
    for (index, ((protocol, port), what, scopes)) in allowed.into_iter().enumerate() {
        if index >= usize::from(service.limit) {
            verdict.refuse(protocol, port, what, format!("beyond the limit of {} ports", service.limit));
            continue;
        }
        for (scope, process) in scopes {
            let opened = Opened { port: name(protocol, port), scope: scope.to_string(), what: what.clone(), process };
            verdict.open.insert(OpenPort { protocol, port, scope }, opened);
        }
    }
    verdict
}

struct Judge<'a, P> {
    service: &'a DynamicService,
    sockets: &'a Sockets<P>,
    verified: &'a [Arc<P>],
}

impl<'a, P: Holder> Judge<'a, P> {
    /// The listeners of the verified processes and of their units.
    fn listeners(&self) -> Vec<&'a Socket<P>> {
        let identities: BTreeSet<Identity> = self.verified.iter().map(|process| process.identity()).collect();
        let units: BTreeSet<&str> = self.verified.iter().filter_map(|process| process.unit()).collect();
        let mut listeners: BTreeMap<u64, &Socket<P>> = BTreeMap::new();
        let of_processes = identities.into_iter().flat_map(|identity| self.sockets.of_process(identity));
        let of_units = units.into_iter().flat_map(|unit| self.sockets.of_unit(unit));
        for socket in of_processes.chain(of_units) {
            if self.verified_holder(socket).is_ok() {
                listeners.insert(socket.listener.cookie, socket);
            }
        }
        listeners.into_values().collect()
    }

    /// The holder of a listener that is the verified process or belongs to its unit; else why there is none.
    fn verified_holder(&self, socket: &Socket<P>) -> Result<Arc<P>, String> {
        let Some(holders) = &socket.holders else { return Err("its process is not known yet".to_owned()) };
        let mut why = "no process that portward can see holds its socket".to_owned();
        for holder in holders {
            let checked = match self.service.tracker {
                Tracker::Rpc => holder.check(&self.service.process),
                Tracker::Imq | Tracker::Rmi | Tracker::Process => self.is_of_service(holder.as_ref()),
            };
            match checked {
                Ok(()) => return Ok(holder.clone()),
                Err(mismatch) => why = format!("{} {mismatch}", holder.describe()),
            }
        }
        Err(why)
    }

    fn is_of_service(&self, holder: &P) -> Result<(), String> {
        if self.verified.iter().any(|process| process.identity() == holder.identity()) {
            return Ok(());
        }
        let same_unit = |process: &Arc<P>| process.unit().is_some() && process.unit() == holder.unit();
        if self.verified.iter().any(same_unit) {
            return holder.check_user(&self.service.process);
        }
        Err("is not the verified process, nor of its unit".to_owned())
    }

    /// To which local addresses a port may be opened; else why not.
    fn port(
        &self,
        protocol: Protocol,
        port: u16,
        listeners: &[&Socket<P>],
    ) -> Result<Vec<(LocalScope, String)>, String> {
        let ranges = self.service.ports.iter();
        let mut of_protocol = ranges.filter_map(|ports| match ports {
            Ports::Range(of, range) if *of == protocol => Some(range),
            _ => None,
        });
        if !of_protocol.any(|range| range.contains(port)) {
            let ranges: Vec<_> = self.service.ports.iter().map(ToString::to_string).collect();
            return Err(format!("outside of {}", ranges.join(", ")));
        }
        if listeners.is_empty() {
            return Err("nobody listens on it".to_owned());
        }
        let mut scopes: Vec<(LocalScope, String)> = Vec::new();
        let mut why = "only the host itself can reach it".to_owned();
        for socket in listeners.iter().filter(|socket| !socket.listener.is_loopback()) {
            match self.verified_holder(socket) {
                Ok(holder) => {
                    if !scopes.iter().any(|(scope, _)| *scope == socket.listener.scope) {
                        scopes.push((socket.listener.scope, holder.describe()));
                    }
                }
                Err(reason) => why = reason,
            }
        }
        if scopes.is_empty() {
            return Err(why);
        }
        for other in self.sockets.on_port(protocol, port).filter(|other| !other.listener.is_loopback()) {
            let overlaps = scopes.iter().any(|(scope, _)| scope.overlaps(other.listener.scope));
            if overlaps && let Err(reason) = self.verified_holder(other) {
                return Err(format!("shared with another process: {reason}"));
            }
        }
        Ok(scopes)
    }
}

impl Verdict {
    fn refuse(&mut self, protocol: Protocol, port: u16, what: String, why: String) {
        if self.refused.len() < MOST_REFUSED {
            self.refused.push(RefusedPort { port: name(protocol, port), what, why });
        }
    }
}

fn is_own(own_ports: &[Ports], protocol: Protocol, port: u16) -> bool {
    own_ports.iter().any(|ports| matches!(ports, Ports::Range(of, range) if *of == protocol && range.contains(port)))
}

/// A port as people write it.
pub(super) fn name(protocol: Protocol, port: u16) -> String {
    format!("{port}/{}", protocol.name())
}

#[cfg(test)]
mod tests;
