//! May this address reach this port, by what, and if not, what would have to change?
//!
//! The answer is worked out from the allowances and the open ports, not from the ruleset, so that the two can be compared: tests send
//! real packets and expect the kernel to agree.

use super::allowance::{Leg, holds, legs};
use super::peers::{find, group_name, party_name, short_network};
use super::ports::contains;
use super::{Direction, LocalScope, OpenPorts, Permission, Plan, RowRef, Tunnel};
use crate::policy::{
    Allow, Condition, DynamicService, EgressMode, Exposure, Group, Host, Mode, PartyKind, Ports, Row, Scope,
};
use ipnet::IpNet;
use std::net::IpAddr;

/// One packet that begins a connection, or one echo request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query {
    /// Who opens the connection: [`Direction::Ingress`], the peer; [`Direction::Egress`], the host of the plan.
    pub direction: Direction,
    /// The address at the other end.
    pub peer: IpAddr,
    /// A single port, or echo.
    pub port: Ports,
    /// The host's own address that the packet goes to; `None`: whichever one lets it in. It matters only for dynamic
    /// ports whose process listens on one address or one family.
    pub local: Option<IpAddr>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// What the policy says.
    pub verdict: Verdict,
    /// Everything that allows it; empty exactly when it is denied.
    pub grants: Vec<Grant>,
    /// When it is denied: what comes near, and what would have to change.
    pub near_misses: Vec<NearMiss>,
    /// What else one should know, such as that the policy only observes.
    pub notes: Vec<String>,
}

/// What the policy says of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Allowed,
    /// It may not.
    Denied,
}

/// Something that allows a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    /// A row of the catalogue or of the policy.
    Row {
        /// Which, such as `syslog` or `allow monitoring`.
        row: String,
        /// By which flow, such as `log-source -> event-processor`.
        flow: String,
        /// As a member of which group.
        group: String,
        /// By which address or network.
        member: IpNet,
        /// The line of the policy on which the address stands; `None` when it stands in the catalogue.
        line: Option<u32>,
    },
    /// A dynamic port on which a verified process listens.
    Dynamic {
        /// The service, such as `imq`.
        service: String,
        /// By which flow, such as `console -> managed-host`.
        flow: String,
        /// As a member of which group.
        group: String,
        /// By which address or network.
        member: IpNet,
        /// The line of the policy on which the address stands; `None` when it stands in the catalogue.
        line: Option<u32>,
        /// Packets to which of the host's addresses are let in.
        scope: LocalScope,
    },
    /// The address is the host's own, and loopback traffic is always allowed.
    Loopback,
    /// Outgoing traffic is not looked at.
    EgressOff,
}

/// A row or dynamic service that has the port, but does not open it for this packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NearMiss {
    /// Which, such as `syslog`, `allow monitoring` or `dynamic imq`.
    pub row: String,
    /// What keeps it from allowing the packet.
    pub why: String,
    /// What would have to change; `None` when nothing in the policy would help.
    pub remedy: Option<Remedy>,
    /// The group of outsiders that the peer would have to join, where that is the remedy.
    pub group: Option<String>,
}

/// A change of the policy, as an instruction.
pub type Remedy = String;

impl Plan<'_> {
    /// Says whether the packet may pass while these dynamic ports are open, and why.
    pub fn explain(&self, query: &Query, open: &OpenPorts) -> Explanation {
        let mut notes = Vec::new();
        let is_own = query.peer.is_loopback() || self.host.addresses.contains(&query.peer);
        let grants = if is_own {
            vec![Grant::Loopback]
        } else if query.direction == Direction::Egress && self.policy.egress == EgressMode::Off {
            vec![Grant::EgressOff]
        } else {
            let mut grants = self.grants(query);
            grants.extend(self.dynamic_grants(query, open));
            grants
        };
        if !grants.is_empty() {
            return Explanation { verdict: Verdict::Allowed, grants, near_misses: Vec::new(), notes };
        }
        let observed = match query.direction {
            Direction::Ingress => self.policy.mode == Mode::Observe,
            Direction::Egress => self.policy.egress == EgressMode::Observe,
        };
        if observed {
            notes.push("the policy only observes: the packet passes, and is counted and logged".to_owned());
        }
        if let Some(note) = base_traffic_note(query) {
            notes.push(note.to_owned());
        }
        Explanation { verdict: Verdict::Denied, grants, near_misses: self.near_misses(query, open), notes }
    }

    fn grants(&self, query: &Query) -> Vec<Grant> {
        self.allowances
            .iter()
            .filter(|allowance| allowance.direction == query.direction)
            .filter(|allowance| allowance.ports.iter().any(|ports| contains(*ports, query.port)))
            .filter_map(|allowance| {
                let (member, line) = allowance.peers.find(query.peer)?;
                Some(Grant::Row {
                    row: allowance.row.to_string(),
                    flow: allowance.flow.clone(),
                    group: allowance.peers.group.clone(),
                    member,
                    line: (line > 0).then_some(line),
                })
            })
            .collect()
    }

    fn dynamic_grants(&self, query: &Query, open: &OpenPorts) -> Vec<Grant> {
        let mut grants = Vec::new();
        for exposed in &self.dynamic {
            for scope in open_scopes(query, open, &exposed.service.name).filter(|scope| lets_in(*scope, query)) {
                grants.extend(exposed.permissions.iter().filter_map(|permission| {
                    let (member, line) = permission.peers.find(query.peer)?;
                    Some(Grant::Dynamic {
                        service: exposed.service.name.clone(),
                        flow: permission.flow.clone(),
                        group: permission.peers.group.clone(),
                        member,
                        line: (line > 0).then_some(line),
                        scope,
                    })
                }));
            }
        }
        grants
    }

    fn near_misses(&self, query: &Query, open: &OpenPorts) -> Vec<NearMiss> {
        let mut misses = Vec::new();
        for row in &self.catalogue.rows {
            let dynamic = row.dynamic.iter().flat_map(|dynamic| &dynamic.egress);
            let ports = row.ports.iter().chain(dynamic.filter(|_| query.direction == Direction::Egress));
            if ports.into_iter().any(|ports| contains(*ports, query.port)) {
                self.row_misses(query, row, RowRef::Catalogue(&row.id).to_string(), &mut misses);
            }
        }
        for allow in self.policy.allows.values() {
            if allow.ports.iter().any(|ports| contains(*ports, query.port)) {
                misses.extend(self.allow_miss(query, allow));
            }
        }
        if query.direction == Direction::Ingress {
            for service in self.policy.dynamic.values() {
                self.service_misses(query, service, open, &mut misses);
            }
        }
        misses
    }

    /// Why a row of the catalogue that has the port does not open it for this packet. `name`: what the answer calls it.
    fn row_misses(&self, query: &Query, row: &Row, name: String, misses: &mut Vec<NearMiss>) {
        let mut miss = |why: String, remedy: Option<Remedy>, group: Option<String>| {
            let miss = NearMiss { row: name.clone(), why, remedy, group };
            if !misses.contains(&miss) {
                misses.push(miss);
            }
        };
        let adjustment = self.policy.rows.get(&row.id);
        if let Some(adjustment) = adjustment.filter(|adjustment| !adjustment.enabled) {
            let remedy = format!("remove `enabled = false` from [row.{}], line {}", row.id, adjustment.line);
            return miss("the policy switches the row off".to_owned(), Some(remedy), None);
        }
        if row.scope == Scope::Internal {
            let remedy = "write an [[allow]] if the site needs it all the same".to_owned();
            return miss("the port serves the host itself only".to_owned(), Some(remedy), None);
        }
        if let Some(condition) = row.when.iter().find(|condition| !holds(condition, self.policy)) {
            return miss(format!("the row needs: {condition}"), condition_remedy(condition), None);
        }
        let view = self.view();
        let legs: Vec<Leg<'_>> =
            legs(view, &row.flows).into_iter().filter(|leg| leg.direction == query.direction).collect();
        if legs.is_empty() {
            let flows: Vec<_> = row
                .flows
                .iter()
                .map(|flow| {
                    let arrow = if flow.both { "<->" } else { "->" };
                    format!("{} {arrow} {}", group_name(&flow.from), group_name(&flow.to))
                })
                .collect();
            let why =
                format!("its flows ({}) do not concern {}, whose roles are {}", flows.join(", "), self.host.name, {
                    self.host.roles.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
                });
            return miss(why, None, None);
        }
        for leg in legs {
            let everybody = view.peers(leg.other, Tunnel::Any, Some(row));
            let group = group_name(leg.other);
            if everybody.find(query.peer).is_none() {
                miss(
                    format!("{} is not in {group} ({})", query.peer, leg.flow),
                    self.join_remedy(query.peer, leg.other),
                    // An appliance never acts as one of a group of outsiders.
                    match leg.other {
                        Group::External(name) if self.host_of(query.peer).is_none() => Some(name.clone()),
                        _ => None,
                    },
                );
                continue;
            }
            let peers = view.peers(leg.other, Tunnel::from(row.tunnelled), Some(row));
            if peers.find(query.peer).is_none() {
                let other = self.host_of(query.peer);
                let name = other.map_or_else(|| query.peer.to_string(), |host| host.name.clone());
                match Tunnel::from(row.tunnelled) {
                    Tunnel::Encrypted => miss(
                        format!("it exists only between a console and a managed host with an encrypted link ({name})"),
                        Some("set `encrypted = true` for the managed host if its link to the console is".to_owned()),
                        None,
                    ),
                    Tunnel::Any | Tunnel::Clear => {
                        let managed = if self.host.is_console() { other } else { Some(self.host) };
                        miss(
                            format!("between {} and {name} it travels inside SSH", self.host.name),
                            managed.map(|host| {
                                format!("remove `encrypted = true` from host {}, line {}", host.name, host.line)
                            }),
                            None,
                        );
                    }
                }
                continue;
            }
            if let Some(adjustment) = adjustment
                && let Some(limits) = &adjustment.only_from
                && find(limits, query.peer).is_none()
            {
                miss(
                    format!("`only-from` leaves {} out", query.peer),
                    Some(format!("add {} to only-from of [row.{}], line {}", query.peer, row.id, adjustment.line)),
                    None,
                );
            }
        }
    }

    /// Why an `[[allow]]` that has the port does not open it for this packet.
    fn allow_miss(&self, query: &Query, allow: &Allow) -> Option<NearMiss> {
        let view = self.view();
        let (own, other, own_key, other_key) = match query.direction {
            Direction::Ingress => (&allow.to, &allow.from, "to", "from"),
            Direction::Egress => (&allow.from, &allow.to, "from", "to"),
        };
        let (missing, key) = if own.iter().any(|party| view.is_party(party)) {
            (query.peer.to_string(), other_key)
        } else if other.iter().any(|party| match &party.kind {
            PartyKind::Group(group) => view.peers(group, Tunnel::Any, None).find(query.peer).is_some(),
            _ => view.named_peers(String::new(), std::slice::from_ref(party)).find(query.peer).is_some(),
        }) {
            (self.host.name.clone(), own_key)
        } else {
            return None;
        };
        let parties: Vec<_> = if key == "from" { &allow.from } else { &allow.to }.iter().map(party_name).collect();
        Some(NearMiss {
            row: RowRef::Allow(&allow.name).to_string(),
            why: format!("{missing} is not in `{key}` ({})", parties.join(", ")),
            remedy: Some(format!("add \"{missing}\" to `{key}` of [[allow]] {}, line {}", allow.name, allow.line)),
            group: None,
        })
    }

    /// Why a service with dynamic ports that has the port open, or could have, does not open it for this packet. Ranges of
    /// such services are wide: one that has not opened the port is worth a word only to those who could use it.
    fn service_misses(&self, query: &Query, service: &DynamicService, open: &OpenPorts, misses: &mut Vec<NearMiss>) {
        let name = format!("dynamic {}", service.name);
        let scopes: Vec<LocalScope> = open_scopes(query, open, &service.name).collect();
        let is_peer = |permission: &Permission<'_>| permission.peers.find(query.peer).is_some();
        let is_peer = self.service_permissions(service).is_ok_and(|permissions| permissions.iter().any(is_peer));
        if !is_peer {
            match &service.exposure {
                _ if scopes.is_empty() => {}
                Exposure::Row(id) => {
                    if let Some(row) = self.catalogue.row(id) {
                        self.row_misses(query, row, name, misses);
                    }
                }
                Exposure::From(parties) => {
                    let parties: Vec<_> = parties.iter().map(party_name).collect();
                    let line = service.line.map(|line| format!(", line {line}")).unwrap_or_default();
                    misses.push(NearMiss {
                        row: name,
                        why: format!("{} is not in `from` ({})", query.peer, parties.join(", ")),
                        remedy: Some(format!("add \"{}\" to `from` of [dynamic.{}]{line}", query.peer, service.name)),
                        group: None,
                    });
                }
            }
            return;
        }
        let range = service.ports.iter().find(|ports| contains(**ports, query.port));
        if range.is_none() && scopes.is_empty() {
            return;
        }
        let (why, remedy) = if !service.enabled {
            let remedy = service
                .line
                .map(|line| format!("remove `enabled = false` from [dynamic.{}], line {line}", service.name));
            ("the policy switches the service off".to_owned(), remedy)
        } else if let Some(condition) = service.when.iter().find(|condition| !holds(condition, self.policy)) {
            (format!("the service needs: {condition}"), condition_remedy(condition))
        } else if scopes.is_empty() {
            let range = range.map(ToString::to_string).unwrap_or_default();
            let why = format!(
                "the port is in the range of dynamic service {} ({range}), but no verified listener is open on it",
                service.name
            );
            (why, None)
        } else {
            let scopes: Vec<_> = scopes
                .iter()
                .map(|scope| match scope {
                    LocalScope::Any => "all addresses".to_owned(),
                    LocalScope::Ipv4 => "IPv4 addresses".to_owned(),
                    LocalScope::Ipv6 => "IPv6 addresses".to_owned(),
                    LocalScope::Address(address) => address.to_string(),
                })
                .collect();
            (format!("its process listens on {} only", scopes.join(", ")), None)
        };
        misses.push(NearMiss { row: name, why, remedy, group: None });
    }

    /// What would make the address a member of the group.
    fn join_remedy(&self, address: IpAddr, group: &Group) -> Option<Remedy> {
        let host = self.host_of(address);
        match group {
            Group::External(name) => Some(format!("add \"{address}\" to {name} in [groups]")),
            Group::Role(role) => Some(match host {
                Some(host) => format!("give host {} (line {}) the role {role}", host.name, host.line),
                None => format!("add a [[host]] with this address and the role {role}"),
            }),
            Group::Appliance | Group::ManagedHost if host.is_none() => {
                Some("add a [[host]] with this address".to_owned())
            }
            Group::HaPeer => Some(match host {
                Some(host) => {
                    format!("set ha-peer = \"{}\" for host {}, line {}", host.name, self.host.name, self.host.line)
                }
                None => "add a [[host]] with this address and name it as ha-peer".to_owned(),
            }),
            Group::Appliance | Group::ManagedHost | Group::PublicServer => None,
        }
    }

    fn host_of(&self, address: IpAddr) -> Option<&Host> {
        self.policy.hosts.values().find(|host| host.addresses.contains(&address))
    }
}

impl Grant {
    /// The address or network in short, for people.
    pub fn member(&self) -> Option<String> {
        match self {
            Self::Row { member, .. } | Self::Dynamic { member, .. } => Some(short_network(*member)),
            Self::Loopback | Self::EgressOff => None,
        }
    }
}

/// On which of the host's addresses a service has the port open.
fn open_scopes<'q>(query: &'q Query, open: &'q OpenPorts, service: &str) -> impl Iterator<Item = LocalScope> + 'q {
    let ports = match query.direction {
        Direction::Ingress => open.get(service),
        Direction::Egress => None,
    };
    let is_asked =
        |port: u16, of| matches!(query.port, Ports::Range(protocol, range) if protocol == of && range.contains(port));
    ports
        .into_iter()
        .flatten()
        .filter(move |open| is_asked(open.port, open.protocol) && !open.scope.is_loopback())
        .map(|open| open.scope)
}

/// Whether a listener with this scope can get the packet at all.
fn lets_in(scope: LocalScope, query: &Query) -> bool {
    match query.local {
        Some(local) => scope.takes(local),
        None if query.peer.is_ipv4() => scope.overlaps(LocalScope::Ipv4),
        None => scope.overlaps(LocalScope::Ipv6),
    }
}

fn condition_remedy(condition: &Condition) -> Option<Remedy> {
    match condition {
        Condition::Feature(feature) => Some(format!("add \"{feature}\" to features")),
        Condition::NotFeature(feature) => Some(format!("remove \"{feature}\" from features")),
        Condition::VersionBefore(_) => None,
        Condition::EncryptedAppHost => Some("set `encrypted = true` for the app host if its link is".to_owned()),
    }
}

/// Ports on which packets pass by other properties than their sender's address.
fn base_traffic_note(query: &Query) -> Option<&'static str> {
    use crate::ruleset::Protocol::Udp;
    let Ports::Range(Udp, range) = query.port else { return None };
    match (query.direction, range.first) {
        (Direction::Ingress, 68 | 546) => Some("replies of DHCP servers (from port 67 or 547) are always allowed"),
        (Direction::Egress, 67 | 547) => {
            Some("requests of the host's DHCP client (from port 68 or 546) are always allowed")
        }
        _ => None,
    }
}
