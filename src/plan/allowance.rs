//! What a host may exchange with whom: the catalogue's semantics, applied once.

use super::peers::{Peers, Tunnel, View, group_name, intersection, party_name};
use super::{Exposed, Permission, Plan};
use crate::policy::{
    Allow, Condition, DynamicService, Exposure, Flow, Group, Party, PartyKind, Policy, Ports, Row, Scope,
};
use std::borrow::Cow;
use std::fmt::{self, Display, Formatter};

/// Permission for the peers to open connections to these ports here, or for this host to open them there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowance<'a> {
    /// Where the permission comes from.
    pub row: RowRef<'a>,
    /// Who opens the connection.
    pub direction: Direction,
    /// What is open.
    pub ports: Vec<Ports>,
    /// The flow as people write it, such as `log-source -> event-processor`.
    pub flow: String,
    /// Who is at the other end.
    pub peers: Peers<'a>,
    /// Whether the ports stand for random ones of the far side (see
    /// [`Dynamic::egress`](crate::policy::Dynamic::egress)).
    pub dynamic: bool,
}

/// Who opens the connection, seen from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// The peer.
    Ingress,
    /// The host.
    Egress,
}

/// Where a permission comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowRef<'a> {
    /// A row of the catalogue, by its id.
    Catalogue(&'a str),
    /// An `[[allow]]` of the policy, by its name.
    Allow(&'a str),
}

impl Display for RowRef<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Catalogue(id) => f.write_str(id),
            Self::Allow(name) => write!(f, "allow {name}"),
        }
    }
}

/// A row that opens nothing on this host, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed<'a> {
    /// The row.
    pub row: RowRef<'a>,
    /// Its ports.
    pub ports: &'a [Ports],
    /// Why nothing is open. The first of the reasons, in the order of [`Reason`].
    pub reason: Reason,
}

/// Why a row opens nothing on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// `enabled = false` stands in the policy at this line.
    Disabled(u32),
    /// The port serves the host itself only.
    Internal,
    /// This condition does not hold, in the catalogue's words.
    Condition(String),
    /// No flow of the row begins or ends on this host.
    NotConcerned,
    /// The groups at the other end have no members: these.
    NoPeers(Vec<String>),
    /// All peers are reached through an encrypted link, in SSH.
    Tunnelled,
    /// The row exists only between a console and an encrypted managed host.
    OnlyTunnelled,
    /// `only-from` at this line leaves none of the peers.
    OnlyFrom(u32),
}

impl Display for Reason {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disabled(line) => write!(f, "disabled in line {line} of the policy"),
            Self::Internal => f.write_str("serves the host itself only"),
            Self::Condition(condition) => write!(f, "needs: {condition}"),
            Self::NotConcerned => f.write_str("no flow begins or ends on this host"),
            Self::NoPeers(groups) => write!(f, "nobody is in {}", groups.join(", ")),
            Self::Tunnelled => f.write_str("travels inside SSH"),
            Self::OnlyTunnelled => f.write_str("only between a console and an encrypted managed host"),
            Self::OnlyFrom(line) => write!(f, "only-from in line {line} of the policy leaves nobody"),
        }
    }
}

/// A service with dynamic ports that opens nothing on this host, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedDynamic<'a> {
    /// The service.
    pub service: &'a DynamicService,
    /// Why: that of its row, or its own.
    pub reason: Reason,
}

/// A flow in one direction, seen from the host: who is at the other end.
pub(super) struct Leg<'f> {
    pub(super) direction: Direction,
    pub(super) other: &'f Group,
    pub(super) flow: String,
}

/// The legs of the flows that begin or end on the host.
pub(super) fn legs<'f>(view: View<'_>, flows: &'f [Flow]) -> Vec<Leg<'f>> {
    let mut legs = Vec::new();
    let mut push = |from: &'f Group, to: &'f Group| {
        let flow = || format!("{} -> {}", group_name(from), group_name(to));
        if view.contains_self(to) {
            legs.push(Leg { direction: Direction::Ingress, other: from, flow: flow() });
        }
        if view.contains_self(from) {
            legs.push(Leg { direction: Direction::Egress, other: to, flow: flow() });
        }
    };
    for flow in flows {
        push(&flow.from, &flow.to);
        if flow.both {
            push(&flow.to, &flow.from);
        }
    }
    legs
}

impl<'a> Plan<'a> {
    pub(super) fn add_row(&mut self, row: &'a Row) {
        let reference = RowRef::Catalogue(&row.id);
        let adjustment = self.policy.rows.get(&row.id);
        let closed = |reason| Closed { row: reference, ports: &row.ports, reason };
        if let Some(adjustment) = adjustment.filter(|adjustment| !adjustment.enabled) {
            return self.closed.push(closed(Reason::Disabled(adjustment.line)));
        }
        if row.scope == Scope::Internal {
            return self.closed.push(closed(Reason::Internal));
        }
        if let Some(condition) = row.when.iter().find(|condition| !holds(condition, self.policy)) {
            return self.closed.push(closed(Reason::Condition(condition.to_string())));
        }
        let view = self.view();
        let legs = legs(view, &row.flows);
        if legs.is_empty() {
            return self.closed.push(closed(Reason::NotConcerned));
        }

        let before = self.allowances.len();
        let switched_off = self.policy.dynamic.get(&row.id).is_some_and(|service| !service.enabled);
        let dynamic = row.dynamic.as_ref().filter(|_| !switched_off);
        let dynamic = dynamic.filter(|dynamic| dynamic.when.iter().all(|when| holds(when, self.policy)));
        let mut reason = None;
        for leg in legs {
            let mut peers = view.peers(leg.other, Tunnel::from(row.tunnelled), Some(row));
            if peers.is_empty() {
                reason.get_or_insert_with(|| self.reason_of_nobody(row, leg.other));
                continue;
            }
            if let (Direction::Ingress, Some(adjustment)) = (leg.direction, adjustment)
                && let Some(limits) = &adjustment.only_from
            {
                peers.members = Cow::Owned(intersection(&peers.members, limits));
                peers.label = format!("{}.{}", set_label(&row.id), peers.label);
                if peers.is_empty() {
                    reason.get_or_insert(Reason::OnlyFrom(adjustment.line));
                    continue;
                }
            }
            if let (Direction::Egress, Some(dynamic)) = (leg.direction, dynamic)
                && !dynamic.egress.is_empty()
            {
                self.push(Allowance {
                    row: reference,
                    direction: leg.direction,
                    ports: dynamic.egress.clone(),
                    flow: leg.flow.clone(),
                    peers: peers.clone(),
                    dynamic: true,
                });
            }
            self.push(Allowance {
                row: reference,
                direction: leg.direction,
                ports: row.ports.clone(),
                flow: leg.flow,
                peers,
                dynamic: false,
            });
        }
        if self.allowances.len() == before
            && let Some(reason) = reason
        {
            let reason = match reason {
                Reason::NoPeers(_) => Reason::NoPeers(empty_groups(view, row)),
                reason => reason,
            };
            self.closed.push(closed(reason));
        }
    }

    pub(super) fn add_allow(&mut self, allow: &'a Allow) {
        let view = self.view();
        let before = self.allowances.len();
        let names = |parties: &[Party]| parties.iter().map(party_name).collect::<Vec<_>>().join(", ");
        let flow = format!("{} -> {}", names(&allow.from), names(&allow.to));
        let mut concerned = false;
        for (direction, own, other, end) in
            [(Direction::Ingress, &allow.to, &allow.from, "from"), (Direction::Egress, &allow.from, &allow.to, "to")]
        {
            if !own.iter().any(|party| view.is_party(party)) {
                continue;
            }
            concerned = true;
            for peers in self.parties_as_peers(format!("allow.{}.{end}", set_label(&allow.name)), other) {
                self.push(Allowance {
                    row: RowRef::Allow(&allow.name),
                    direction,
                    ports: allow.ports.clone(),
                    flow: flow.clone(),
                    peers,
                    dynamic: false,
                });
            }
        }
        if self.allowances.len() == before {
            let reason = if concerned {
                Reason::NoPeers(allow.from.iter().chain(&allow.to).map(party_name).collect())
            } else {
                Reason::NotConcerned
            };
            self.closed.push(Closed { row: RowRef::Allow(&allow.name), ports: &allow.ports, reason });
        }
    }

    /// Adds a service with dynamic ports. The row that it is exposed by must have been added before.
    pub(super) fn add_dynamic(&mut self, service: &'a DynamicService) {
        let closed = |reason| ClosedDynamic { service, reason };
        if !service.enabled {
            return self.closed_dynamic.push(closed(Reason::Disabled(service.line.unwrap_or_default())));
        }
        if let Some(condition) = service.when.iter().find(|condition| !holds(condition, self.policy)) {
            return self.closed_dynamic.push(closed(Reason::Condition(condition.to_string())));
        }
        let permissions: Vec<Permission<'a>> = match &service.exposure {
            Exposure::Row(id) => {
                let of_row = |allowance: &&Allowance<'a>| {
                    allowance.row == RowRef::Catalogue(id) && allowance.direction == Direction::Ingress
                };
                self.allowances
                    .iter()
                    .filter(of_row)
                    .map(|allowance| Permission { flow: allowance.flow.clone(), peers: allowance.peers.clone() })
                    .collect()
            }
            Exposure::From(parties) => {
                let names = parties.iter().map(party_name).collect::<Vec<_>>().join(", ");
                let flow = format!("{names} -> {}", self.host.name);
                self.parties_as_peers(format!("dynamic.{}.from", set_label(&service.name)), parties)
                    .map(|peers| Permission { flow: flow.clone(), peers })
                    .collect()
            }
        };
        if permissions.is_empty() {
            let reason = match &service.exposure {
                Exposure::Row(id) => {
                    let row = self.closed.iter().find(|closed| closed.row == RowRef::Catalogue(id));
                    row.map_or(Reason::NotConcerned, |row| row.reason.clone())
                }
                Exposure::From(parties) => Reason::NoPeers(parties.iter().map(party_name).collect()),
            };
            return self.closed_dynamic.push(closed(reason));
        }
        self.dynamic.push(Exposed { service, permissions });
    }

    /// The parties at one end of an allowance, as groups of peers; empty ones are left out. `label` stands for those that
    /// are named one by one.
    fn parties_as_peers(&self, label: String, parties: &'a [Party]) -> impl Iterator<Item = Peers<'a>> + use<'a> {
        let view = self.view();
        let mut peers = vec![view.named_peers(label, parties)];
        peers.extend(parties.iter().filter_map(|party| match &party.kind {
            PartyKind::Group(group) => Some(view.peers(group, Tunnel::Any, None)),
            _ => None,
        }));
        peers.into_iter().filter(|peers| !peers.is_empty())
    }

    /// Adds the allowance unless the row already allows the same to the same peers by another flow.
    fn push(&mut self, allowance: Allowance<'a>) {
        let same = |other: &Allowance<'_>| {
            other.row == allowance.row
                && other.direction == allowance.direction
                && other.dynamic == allowance.dynamic
                && other.peers.label == allowance.peers.label
        };
        if !self.allowances.iter().rev().take_while(|other| other.row == allowance.row).any(same) {
            self.allowances.push(allowance);
        }
    }

    fn reason_of_nobody(&self, row: &Row, group: &Group) -> Reason {
        let everybody = self.view().peers(group, Tunnel::Any, Some(row));
        match Tunnel::from(row.tunnelled) {
            Tunnel::Encrypted => Reason::OnlyTunnelled,
            Tunnel::Clear if !everybody.is_empty() => Reason::Tunnelled,
            _ => Reason::NoPeers(Vec::new()),
        }
    }
}

fn empty_groups(view: View<'_>, row: &Row) -> Vec<String> {
    let mut groups: Vec<String> = Vec::new();
    for leg in legs(view, &row.flows) {
        let name = group_name(leg.other).to_owned();
        if !groups.contains(&name) {
            groups.push(name);
        }
    }
    groups
}

/// The part of a name of the kernel that stands for a row or allowance. Ids have no underscore, so this is one to one.
pub(super) fn set_label(id: &str) -> String {
    id.replace('-', "_")
}

/// Whether the condition holds in the deployment.
pub(super) fn holds(condition: &Condition, policy: &Policy) -> bool {
    match condition {
        Condition::Feature(feature) => policy.features.contains(feature),
        Condition::NotFeature(feature) => !policy.features.contains(feature),
        Condition::VersionBefore(version) => policy.version < *version,
        Condition::EncryptedAppHost => {
            policy.hosts.values().any(|host| host.encrypted && host.roles.contains("app-host"))
        }
    }
}
