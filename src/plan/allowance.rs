//! What a host may exchange with whom: the catalogue's semantics, applied once.
//!
//! Rows and the site's own `[[allow]]`s become allowances, services with dynamic ports become permissions without ports:
//! which ports those are is known only while a process listens.

use super::Plan;
use super::peers::{Peers, Tunnel, View, group_name, intersection, party_name};
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
    /// Whether the ports stand for random ones of the far side (see [`Dynamic::egress`](crate::policy::Dynamic::egress)).
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
    /// `enabled = false` stands in the policy at this line, or in the catalogue (`None`).
    Disabled(Option<u32>),
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
            Self::Disabled(Some(line)) => write!(f, "disabled in line {line} of the policy"),
            Self::Disabled(None) => f.write_str("disabled in the catalogue"),
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

/// A service with dynamic ports that others may reach on this host, once a verified process listens on some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposed<'a> {
    /// The service.
    pub service: &'a DynamicService,
    /// Who may reach its ports; never empty, and nobody is named twice.
    pub permissions: Vec<Permission<'a>>,
}

/// Who may open connections, and by which flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permission<'a> {
    /// The flow as people write it, such as `console -> managed-host`.
    pub flow: String,
    /// Who is at the other end.
    pub peers: Peers<'a>,
}

/// A service with dynamic ports of which this host opens none, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedDynamic<'a> {
    /// The service.
    pub service: &'a DynamicService,
    /// Why nothing is opened.
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
        let permissions = match self.row_permissions(row, &[Direction::Ingress, Direction::Egress]) {
            Ok(permissions) => permissions,
            Err(reason) => return self.closed.push(Closed { row: reference, ports: &row.ports, reason }),
        };
        let is_enabled = self.policy.dynamic.get(&row.id).is_none_or(|service| service.enabled);
        let dynamic = row.dynamic.as_ref().filter(|dynamic| {
            is_enabled && !dynamic.egress.is_empty() && dynamic.when.iter().all(|when| holds(when, self.policy))
        });
        for (direction, Permission { flow, peers }) in permissions {
            if let (Direction::Egress, Some(dynamic)) = (direction, dynamic) {
                self.push(Allowance {
                    row: reference,
                    direction,
                    ports: dynamic.egress.clone(),
                    flow: flow.clone(),
                    peers: peers.clone(),
                    dynamic: true,
                });
            }
            self.push(Allowance { row: reference, direction, ports: row.ports.clone(), flow, peers, dynamic: false });
        }
    }

    /// What a row permits to whom on this host, whatever its ports are, in these directions.
    fn row_permissions(&self, row: &Row, directions: &[Direction]) -> Result<Vec<(Direction, Permission<'a>)>, Reason> {
        let adjustment = self.policy.rows.get(&row.id);
        if let Some(adjustment) = adjustment.filter(|adjustment| !adjustment.enabled) {
            return Err(Reason::Disabled(Some(adjustment.line)));
        }
        if row.scope == Scope::Internal {
            return Err(Reason::Internal);
        }
        if let Some(condition) = row.when.iter().find(|condition| !holds(condition, self.policy)) {
            return Err(Reason::Condition(condition.to_string()));
        }
        let view = self.view();
        let mut legs = legs(view, &row.flows);
        legs.retain(|leg| directions.contains(&leg.direction));
        if legs.is_empty() {
            return Err(Reason::NotConcerned);
        }
        let mut permissions = Vec::new();
        let mut reason = None;
        let mut groups: Vec<String> = Vec::new();
        for Leg { direction, other, flow } in legs {
            let name = group_name(other);
            if !groups.iter().any(|group| group == name) {
                groups.push(name.to_owned());
            }
            let mut peers = view.peers(other, Tunnel::from(row.tunnelled), Some(row));
            if peers.is_empty() {
                reason.get_or_insert_with(|| self.reason_of_nobody(row, other));
                continue;
            }
            if let (Direction::Ingress, Some(adjustment)) = (direction, adjustment)
                && let Some(limits) = &adjustment.only_from
            {
                peers.members = Cow::Owned(intersection(&peers.members, limits));
                peers.label = format!("{}.{}", set_label(&row.id), peers.label);
                if peers.is_empty() {
                    reason.get_or_insert(Reason::OnlyFrom(adjustment.line));
                    continue;
                }
            }
            permissions.push((direction, Permission { flow, peers }));
        }
        match reason {
            Some(reason) if permissions.is_empty() => Err(match reason {
                Reason::NoPeers(_) => Reason::NoPeers(groups),
                reason => reason,
            }),
            _ => Ok(permissions),
        }
    }

    pub(super) fn add_allow(&mut self, allow: &'a Allow) {
        let view = self.view();
        let before = self.allowances.len();
        let flow = format!("{} -> {}", party_names(&allow.from), party_names(&allow.to));
        let mut concerned = false;
        for (direction, own, other, end) in
            [(Direction::Ingress, &allow.to, &allow.from, "from"), (Direction::Egress, &allow.from, &allow.to, "to")]
        {
            if !own.iter().any(|party| view.is_party(party)) {
                continue;
            }
            concerned = true;
            for peers in party_peers(view, format!("allow.{}.{end}", set_label(&allow.name)), other) {
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

    pub(super) fn add_service(&mut self, service: &'a DynamicService) {
        let permissions = if !service.enabled {
            Err(Reason::Disabled(service.line))
        } else if let Some(condition) = service.when.iter().find(|condition| !holds(condition, self.policy)) {
            Err(Reason::Condition(condition.to_string()))
        } else {
            self.service_permissions(service)
        };
        match permissions {
            Ok(permissions) => self.dynamic.push(Exposed { service, permissions }),
            Err(reason) => self.closed_dynamic.push(ClosedDynamic { service, reason }),
        }
    }

    /// Who may reach the ports of a service on this host, were it enabled and its own conditions met.
    pub(super) fn service_permissions(&self, service: &DynamicService) -> Result<Vec<Permission<'a>>, Reason> {
        let mut permissions: Vec<Permission<'a>> = Vec::new();
        match &service.exposure {
            Exposure::Row(id) => {
                let row = self.catalogue.row(id).ok_or(Reason::NotConcerned)?;
                for (_, permission) in self.row_permissions(row, &[Direction::Ingress])? {
                    if !permissions.iter().any(|other| other.peers.label == permission.peers.label) {
                        permissions.push(permission);
                    }
                }
            }
            Exposure::From(parties) => {
                let flow = format!("{} -> {}", party_names(parties), self.host.name);
                let label = format!("dynamic.{}.from", set_label(&service.name));
                let peers = party_peers(self.view(), label, parties);
                permissions.extend(peers.map(|peers| Permission { flow: flow.clone(), peers }));
                if permissions.is_empty() {
                    return Err(Reason::NoPeers(parties.iter().map(party_name).collect()));
                }
            }
        }
        Ok(permissions)
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

/// The peers that parties stand for: hosts, addresses and networks together under this label, and each group.
fn party_peers<'a>(view: View<'a>, label: String, parties: &[Party]) -> impl Iterator<Item = Peers<'a>> {
    let named = view.named_peers(label, parties);
    let groups = parties.iter().filter_map(move |party| match &party.kind {
        PartyKind::Group(group) => Some(view.peers(group, Tunnel::Any, None)),
        _ => None,
    });
    std::iter::once(named).chain(groups).filter(|peers| !peers.is_empty())
}

fn party_names(parties: &[Party]) -> String {
    parties.iter().map(party_name).collect::<Vec<_>>().join(", ")
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
