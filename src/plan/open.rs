//! Open ports in a ruleset.
//!
//! A port that opens is one element more of a map: the ruleset of a plan has a chain for the peers of each service
//! already. Only a port that is open to one local address, or that several services have at once, gets a chain of its own.

use super::allowance::set_label;
use super::dynamic::{LocalScope, OpenPort, OpenPorts};
use super::lower::chain_name;
use crate::ruleset::diff::{Change, diff_of_part};
use crate::ruleset::{Chain, Family, Name, PortRange, Protocol, Rule, Ruleset, Statement, Verdict, VerdictMap};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;

/// Begins the names of the chains that accept the peers of one service.
const SERVICE_PREFIX: &str = "dyn_";

/// Begins the names of the chains that are made for open ports, and no other names.
const OPEN_PREFIX: &str = "open_";

/// The maps from open ports to chains, by protocol.
pub(super) fn dynamic_map(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "dynamic_tcp",
        Protocol::Udp => "dynamic_udp",
    }
}

/// The chain that accepts the peers of a service, of both families or of one.
pub(super) fn service_chain(service: &str, family: Option<Family>) -> String {
    let scope = match family {
        None => LocalScope::Any,
        Some(Family::Ipv4) => LocalScope::Ipv4,
        Some(Family::Ipv6) => LocalScope::Ipv6,
    };
    chain_name(SERVICE_PREFIX, std::iter::once(label(service, scope)))
}

/// The part of a chain's name that stands for a service and a scope: `imq`, `imq.v4`, `imq.192.0.2.1`, `imq.2001_db8__1`.
/// Names of services have no dot, and nft takes no colon in a name, so this is one to one.
fn label(service: &str, scope: LocalScope) -> String {
    let service = set_label(service);
    match scope {
        LocalScope::Any => service,
        LocalScope::Ipv4 => format!("{service}.v4"),
        LocalScope::Ipv6 => format!("{service}.v6"),
        LocalScope::Address(IpAddr::V4(address)) => format!("{service}.{address}"),
        LocalScope::Address(IpAddr::V6(address)) => format!("{service}.{}", address.to_string().replace(':', "_")),
    }
}

/// Opens these ports, and no others, in a ruleset of [`Plan::ruleset`](super::Plan::ruleset), whichever ports were open in
/// it before. Ports of a service that has no chain there, because this host does not expose it, are left out, and so are
/// those that only the host itself can reach. Costs what is open, not what the ruleset holds.
pub fn open(ruleset: &mut Ruleset, ports: &OpenPorts) {
    Part::new(ruleset, ports).put_into(ruleset);
}

/// The ports that are open in a ruleset, such as one that an earlier daemon has left in the kernel: the inverse of [`open`],
/// except that two listeners on one port, one for each family, are told as one for both.
pub fn opened(ruleset: &Ruleset) -> OpenPorts {
    let mut opened = OpenPorts::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for (range, verdict) in ruleset.maps.get(dynamic_map(protocol)).iter().flat_map(|map| &map.elements) {
            let Some(chain) = verdict.target() else { continue };
            let made = ruleset.chains.get(chain).filter(|_| chain.starts_with(OPEN_PREFIX));
            let rules =
                made.iter().flat_map(|chain| &chain.rules).filter_map(|rule| match rule.statements.as_slice() {
                    [Statement::Verdict(verdict)] => claim(verdict.target()?, None),
                    [Statement::DestinationAddress(address), Statement::Verdict(verdict)] => {
                        claim(verdict.target()?, Some(*address))
                    }
                    _ => None,
                });
            for (service, scope) in claim(chain, None).into_iter().chain(rules) {
                opened.entry(service).or_default().insert(OpenPort { protocol, port: range.first, scope });
            }
        }
    }
    opened
}

/// The service and the scope that a service's chain stands for, after a test for this destination or none.
fn claim(chain: &str, destination: Option<IpAddr>) -> Option<(String, LocalScope)> {
    let label = chain.strip_prefix(SERVICE_PREFIX)?;
    let (service, scope) = match (label.split_once('.'), destination) {
        (Some((service, _)), Some(address)) => (service, LocalScope::Address(address)),
        (Some((service, "v4")), None) => (service, LocalScope::Ipv4),
        (Some((service, "v6")), None) => (service, LocalScope::Ipv6),
        (None, None) => (label, LocalScope::Any),
        _ => return None,
    };
    Some((service.replace('_', "-"), scope))
}

/// The part of a ruleset that open ports decide: the dynamic maps with their elements, and the chains made for them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part(Ruleset);

impl Part {
    /// What these ports make of that part of a ruleset.
    pub fn new(ruleset: &Ruleset, ports: &OpenPorts) -> Self {
        let mut claims: BTreeMap<(Protocol, u16), BTreeMap<&str, BTreeSet<LocalScope>>> = BTreeMap::new();
        for (service, ports) in ports {
            for port in ports.iter().filter(|port| !port.scope.is_loopback()) {
                let of_port = claims.entry((port.protocol, port.port)).or_default();
                of_port.entry(service).or_default().insert(port.scope);
            }
        }
        let mut part = Ruleset::default();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            if let Some((name, map)) = ruleset.maps.get_key_value(dynamic_map(protocol)) {
                let empty = VerdictMap { interval: map.interval, elements: Vec::new() };
                part.maps.insert(name.clone(), empty);
            }
        }
        for ((protocol, port), claims) in claims {
            if let Some(map) = part.maps.get_mut(dynamic_map(protocol))
                && let Some(chain) = chain_of(ruleset, &mut part.chains, &claims)
            {
                map.elements.push((PortRange::single(port), Verdict::Jump(chain)));
            }
        }
        Self(part)
    }

    /// That part of a ruleset as it is.
    pub fn of(ruleset: &Ruleset) -> Self {
        let maps = [Protocol::Tcp, Protocol::Udp]
            .into_iter()
            .filter_map(|protocol| ruleset.maps.get_key_value(dynamic_map(protocol)));
        Self(Ruleset {
            maps: maps.map(|(name, map)| (name.clone(), map.clone())).collect(),
            chains: made_chains(ruleset).map(|(name, chain)| (name.clone(), chain.clone())).collect(),
            ..Ruleset::default()
        })
    }

    /// Puts it in the place of that part of a ruleset.
    pub fn put_into(self, ruleset: &mut Ruleset) {
        let before: Vec<Name> = made_chains(ruleset).map(|(name, _)| name.clone()).collect();
        for name in before {
            ruleset.chains.remove(&name);
        }
        ruleset.chains.extend(self.0.chains);
        ruleset.maps.extend(self.0.maps);
    }

    /// The changes that lead from this part to another one of the same table; `None` when they are not enough, because
    /// somebody has made or deleted the maps themselves.
    pub fn changes_to(&self, desired: &Self) -> Option<Vec<Change>> {
        if !self.0.maps.keys().eq(desired.0.maps.keys()) {
            return None;
        }
        diff_of_part(&self.0, &desired.0)
    }
}

/// The chains that were made for open ports.
fn made_chains(ruleset: &Ruleset) -> impl Iterator<Item = (&Name, &Chain)> {
    let from_prefix = (Bound::Included(OPEN_PREFIX), Bound::Unbounded);
    ruleset.chains.range::<str, _>(from_prefix).take_while(|(name, _)| name.starts_with(OPEN_PREFIX))
}

/// The chain that a port leads to on which these services listen; `None` when none of them has peers there. One that is
/// not in the ruleset is added to `made`.
fn chain_of(
    ruleset: &Ruleset,
    made: &mut BTreeMap<Name, Chain>,
    claims: &BTreeMap<&str, BTreeSet<LocalScope>>,
) -> Option<Name> {
    let (mut labels, mut rules) = (Vec::new(), Vec::new());
    for (service, scopes) in claims {
        for scope in widest(scopes) {
            let family = match scope {
                LocalScope::Any => None,
                LocalScope::Ipv4 | LocalScope::Address(IpAddr::V4(_)) => Some(Family::Ipv4),
                LocalScope::Ipv6 | LocalScope::Address(IpAddr::V6(_)) => Some(Family::Ipv6),
            };
            let Some((peers, _)) = ruleset.chains.get_key_value(&*service_chain(service, family)) else { continue };
            let destination = match scope {
                LocalScope::Address(address) => Some(Statement::DestinationAddress(address)),
                LocalScope::Any | LocalScope::Ipv4 | LocalScope::Ipv6 => None,
            };
            labels.push(label(service, scope));
            rules.push((destination, peers.clone()));
        }
    }
    match rules.as_slice() {
        [] => return None,
        [(None, peers)] => return Some(peers.clone()),
        _ => {}
    }
    let name = Name::from(chain_name(OPEN_PREFIX, labels.into_iter()));
    made.entry(name.clone()).or_insert_with(|| Chain {
        base: None,
        rules: rules
            .into_iter()
            .map(|(destination, peers)| {
                Rule::new(destination.into_iter().chain([Statement::Verdict(Verdict::Jump(peers))]))
            })
            .collect(),
    });
    Some(name)
}

/// The scopes without those that another one holds. One listener for each family is as good as one for both.
fn widest(scopes: &BTreeSet<LocalScope>) -> Vec<LocalScope> {
    let has = |scope| scopes.contains(&scope);
    if has(LocalScope::Any) || (has(LocalScope::Ipv4) && has(LocalScope::Ipv6)) {
        return vec![LocalScope::Any];
    }
    let is_held = |scope: &LocalScope| match scope {
        LocalScope::Address(IpAddr::V4(_)) => has(LocalScope::Ipv4),
        LocalScope::Address(IpAddr::V6(_)) => has(LocalScope::Ipv6),
        LocalScope::Any | LocalScope::Ipv4 | LocalScope::Ipv6 => false,
    };
    scopes.iter().copied().filter(|scope| !is_held(scope)).collect()
}
