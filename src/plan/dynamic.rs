//! Ports that are open because a verified process listens on them right now: an input of the plan, found out by the
//! trackers.

use super::Peers;
use super::allowance::set_label;
use super::lower::{chain_name, jump};
use crate::policy::DynamicService;
use crate::ruleset::{Chain, Name, PortRange, Protocol, Rule, Ruleset, Statement, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{AddrParseError, IpAddr};
use std::str::FromStr;

/// The open ports of each dynamic service, by its name. A service without open ports may be missing.
pub type OpenPorts = BTreeMap<String, BTreeSet<OpenPort>>;

/// A port that a verified process listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpenPort {
    /// The protocol.
    pub protocol: Protocol,
    /// The port, 1 to 65,535.
    pub port: u16,
    /// Packets to which of the host's addresses reach the listener.
    pub scope: LocalScope,
}

/// Which of the host's own addresses a listener takes packets to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LocalScope {
    /// All of them: a dual-stack listener on `[::]`.
    Any,
    /// All IPv4 addresses: a listener on `0.0.0.0`, or on `[::ffff:0.0.0.0]`.
    Ipv4,
    /// All IPv6 addresses: a listener on `[::]` with `IPV6_V6ONLY`.
    Ipv6,
    /// One address; IPv4-mapped ones are given as IPv4.
    Address(IpAddr),
}

/// `any`, `ipv4`, `ipv6` or the address.
impl fmt::Display for LocalScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.pad("any"),
            Self::Ipv4 => f.pad("ipv4"),
            Self::Ipv6 => f.pad("ipv6"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

impl FromStr for LocalScope {
    type Err = AddrParseError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Ok(match word {
            "any" => Self::Any,
            "ipv4" => Self::Ipv4,
            "ipv6" => Self::Ipv6,
            address => Self::Address(address.parse()?),
        })
    }
}

/// A service with dynamic ports that somebody else may reach on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposed<'a> {
    /// The service.
    pub service: &'a DynamicService,
    /// Who may reach its ports; never empty.
    pub permissions: Vec<Permission<'a>>,
}

/// Who may reach the ports of a service, by one flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permission<'a> {
    /// The flow as people write it, such as `console -> managed-host`.
    pub flow: String,
    /// Who is at the other end.
    pub peers: Peers<'a>,
}

impl LocalScope {
    /// Whether there is an address that both take packets to.
    pub fn overlaps(self, other: Self) -> bool {
        match (self, other) {
            (Self::Any, _) | (_, Self::Any) => true,
            (Self::Address(one), Self::Address(two)) => one == two,
            (one, two) => one.is_ipv4() == two.is_ipv4(),
        }
    }

    /// Whether only the host itself can reach it.
    pub fn is_loopback(self) -> bool {
        matches!(self, Self::Address(address) if address.is_loopback())
    }

    fn is_ipv4(self) -> bool {
        match self {
            Self::Any | Self::Ipv6 => false,
            Self::Ipv4 => true,
            Self::Address(address) => address.is_ipv4(),
        }
    }
}

/// The part of a ruleset that open ports decide about: verdict maps and chains. The rest never changes with them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// The verdict maps.
    pub maps: BTreeSet<Name>,
    /// The chains that are there only as long as some port needs them, before or after.
    pub chains: BTreeSet<Name>,
}

impl Part {
    /// The part of this ruleset, as a ruleset of its own.
    pub fn of(&self, ruleset: &Ruleset) -> Ruleset {
        let mut part = Ruleset::default();
        for name in &self.maps {
            part.maps.extend(ruleset.maps.get(name).map(|map| (name.clone(), map.clone())));
        }
        for name in &self.chains {
            part.chains.extend(ruleset.chains.get(name).map(|chain| (name.clone(), chain.clone())));
        }
        part
    }

    /// Puts a part in the place of what a ruleset has of it.
    pub fn replace(&self, ruleset: &mut Ruleset, part: Ruleset) {
        for name in &self.maps {
            ruleset.maps.remove(name);
        }
        for name in &self.chains {
            ruleset.chains.remove(name);
        }
        ruleset.maps.extend(part.maps);
        ruleset.chains.extend(part.chains);
    }
}

/// The map of dynamic ports of a protocol.
pub(super) fn map_name(protocol: Protocol) -> Name {
    format!("dynamic_{}", protocol.name()).into()
}

/// The chain that accepts the peers of a service, of both families or of one.
pub(super) fn service_chain(service: &str, family: Option<&str>) -> String {
    match family {
        None => format!("{CHAIN_PREFIX}{}", set_label(service)),
        Some(family) => format!("{CHAIN_PREFIX}{}.{family}", set_label(service)),
    }
}

/// What the chains of dynamic ports begin with. A service's name has no `.` and no `/`: what follows a `.` is the narrower
/// scope, and `/` joins several on one port.
const CHAIN_PREFIX: &str = "dyn_";
/// The chains of one family are called so behind the service's name.
pub(super) const IPV4: &str = "v4";
/// The same for IPv6.
pub(super) const IPV6: &str = "v6";

/// Makes exactly these ports open in a ruleset of a plan, whatever was open before, and says which part of the ruleset
/// that concerns. Ports of services that the plan does not expose are left out. Costs what is open, not what there is.
pub fn open(ruleset: &mut Ruleset, open: &OpenPorts) -> Part {
    let mut part = Part::default();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let name = map_name(protocol);
        let Some(map) = ruleset.maps.get(&name) else { continue };
        let targets = map.elements.iter().filter_map(|(_, verdict)| target(verdict));
        part.chains.extend(targets.filter(|name| is_on_demand(name)).cloned());
        part.maps.insert(name);
    }
    for name in &part.chains {
        ruleset.chains.remove(name);
    }

    let mut listeners: BTreeMap<(Protocol, u16), BTreeSet<(&str, LocalScope)>> = BTreeMap::new();
    for (service, ports) in open {
        if ruleset.chains.contains_key(service_chain(service, None).as_str()) {
            for port in ports {
                listeners.entry((port.protocol, port.port)).or_default().insert((service, port.scope));
            }
        }
    }
    let mut elements: BTreeMap<Protocol, Vec<(PortRange, Verdict)>> = BTreeMap::new();
    for ((protocol, port), listeners) in listeners {
        let (name, rules) = chain(&listeners);
        let name = Name::from(name);
        if let Some(rules) = rules {
            part.chains.insert(name.clone());
            ruleset.chains.insert(name.clone(), Chain { base: None, rules });
        }
        elements.entry(protocol).or_default().push((PortRange::single(port), Verdict::Jump(name)));
    }
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        if let Some(map) = ruleset.maps.get_mut(&map_name(protocol)) {
            map.elements = elements.remove(&protocol).unwrap_or_default();
        }
    }
    part
}

/// The ports that a ruleset, such as one that was read from the kernel, has open, by service.
pub fn opened(ruleset: &Ruleset) -> BTreeMap<String, BTreeSet<(Protocol, u16)>> {
    let mut opened: BTreeMap<String, BTreeSet<(Protocol, u16)>> = BTreeMap::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for (range, verdict) in ruleset.maps.get(&map_name(protocol)).iter().flat_map(|map| &map.elements) {
            let labels = target(verdict).and_then(|name| name.strip_prefix(CHAIN_PREFIX));
            for label in labels.into_iter().flat_map(|labels| labels.split('/')) {
                let service = label.split('.').next().unwrap_or_default().replace('_', "-");
                opened.entry(service).or_default().insert((protocol, range.first));
            }
        }
    }
    opened
}

fn target(verdict: &Verdict) -> Option<&Name> {
    match verdict {
        Verdict::Jump(name) => Some(name),
        _ => None,
    }
}

/// Whether a chain exists for certain ports only; those of a whole service are there as long as the service is exposed.
fn is_on_demand(name: &str) -> bool {
    name.contains('/') || name.split_once('.').is_some_and(|(_, scope)| ![IPV4, IPV6].contains(&scope))
}

/// The chain for these listeners on one port, and its rules if it is there for them alone.
fn chain(listeners: &BTreeSet<(&str, LocalScope)>) -> (String, Option<Vec<Rule>>) {
    let mut widest: Vec<(&str, LocalScope)> = Vec::new();
    for &(service, scope) in listeners {
        let has = |scope| listeners.contains(&(service, scope));
        let scope = if has(LocalScope::Ipv4) && has(LocalScope::Ipv6) { LocalScope::Any } else { scope };
        let covered = has(LocalScope::Any) && scope != LocalScope::Any
            || matches!(scope, LocalScope::Address(IpAddr::V4(_))) && has(LocalScope::Ipv4)
            || matches!(scope, LocalScope::Address(IpAddr::V6(_))) && has(LocalScope::Ipv6);
        if !covered && !widest.contains(&(service, scope)) {
            widest.push((service, scope));
        }
    }
    match widest.as_slice() {
        [(service, LocalScope::Any)] => (service_chain(service, None), None),
        [(service, LocalScope::Ipv4)] => (service_chain(service, Some(IPV4)), None),
        [(service, LocalScope::Ipv6)] => (service_chain(service, Some(IPV6)), None),
        _ => {
            let labels = widest.iter().map(|(service, scope)| match scope {
                LocalScope::Any => set_label(service),
                LocalScope::Ipv4 => format!("{}.{IPV4}", set_label(service)),
                LocalScope::Ipv6 => format!("{}.{IPV6}", set_label(service)),
                // nft takes no colon in a name.
                LocalScope::Address(address) => {
                    format!("{}.{}", set_label(service), address.to_string().replace(':', "-"))
                }
            });
            let mut name = chain_name(CHAIN_PREFIX, labels);
            if !is_on_demand(&name) {
                name.push('/');
            }
            let rules = widest.iter().map(|(service, scope)| match scope {
                LocalScope::Any => jump([], &service_chain(service, None)),
                LocalScope::Ipv4 => jump([], &service_chain(service, Some(IPV4))),
                LocalScope::Ipv6 => jump([], &service_chain(service, Some(IPV6))),
                LocalScope::Address(address) => {
                    let family = if address.is_ipv4() { IPV4 } else { IPV6 };
                    jump([Statement::DestinationAddress(*address)], &service_chain(service, Some(family)))
                }
            });
            (name, Some(rules.collect()))
        }
    }
}
