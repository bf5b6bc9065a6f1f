//! From allowances to the ruleset: sets of peers, chains that test them, and maps from ports to chains.
//!
//! What a packet passes, from the likely to the rare, so that a datagram of one-way UDP, which never becomes
//! `established`, is decided after few look-ups: the state of its connection, the map of its destination port, the sets of
//! the peers that may use it. Since every rule but those of invalid and denied packets accepts, the order never
//! changes a verdict.

use super::allowance::{Direction, RowRef, set_label};
use super::open::{dynamic_map, service_chain};
use super::peers::Peers;
use super::ports::segments;
use super::{Allowance, Plan};
use crate::policy::{Deny, EgressMode, Member, Members, Mode, Ports};
use crate::ruleset::{
    AddressRange, AddressSide, BaseChain, Chain, ChainPolicy, Family, Hook, IcmpKind, Log, Name, PortKey, PortRange,
    Protocol, Record, Rule, Ruleset, Set, Statement, Verdict, VerdictMap, ct_state, reject_all,
};
use std::collections::{BTreeMap, BTreeSet};

/// Ranges of up to so many ports become single elements of a hash map, which costs a packet less than the interval tree;
/// larger ones go to the interval map, which is asked last. Thousands of elements would cost whoever opens a dynamic port:
/// the kernel looks at every verdict of the table when an element with a jump is added (10 times longer with 2,000).
const EXACT_RANGE_LIMIT: u32 = 256;

/// Sets of more addresses than this are made for a number of them, which makes them several times faster to fill: the
/// kernel's growing hash table falls behind a large transaction. The kernel refuses more elements than that number, so it
/// is twice to four times what there is, as a power of two, and stands in the set's name: a set that outgrows it, or
/// shrinks far below, is replaced by another one within the transaction. Smaller sets just grow.
const GROWING_SET_LIMIT: usize = 16_384;

/// So many pairs of peer and port are noted at a hook for each family while a policy only observes, and so many peers of
/// other protocols. An element takes the kernel about 100 bytes.
pub const MOST_OBSERVED: u32 = 65_535;

/// Names of the kernel may have 255 bytes; a chain for very many rows on one port is named by a part of them.
const CHAIN_NAME_LIMIT: usize = 200;

/// `NF_IP_PRI_FILTER`, linux/netfilter_ipv4.h.
pub(super) const FILTER_PRIORITY: i32 = 0;

/// Message types of ICMP (RFC 792) and ICMPv6 (RFC 4443, 4861, 2710, 3810) that portward names.
mod icmp {
    pub(super) const ECHO_REQUEST: u8 = 8;
    pub(super) const DESTINATION_UNREACHABLE: u8 = 3;
    pub(super) const FRAGMENTATION_NEEDED_CODE: u8 = 4;
    pub(super) const V6_PACKET_TOO_BIG: u8 = 2;
    pub(super) const V6_ECHO_REQUEST: u8 = 128;
    /// Router and neighbour solicitation and advertisement.
    pub(super) const V6_DISCOVERY: [u8; 4] = [133, 134, 135, 136];
    /// Multicast listener query, report, done and version 2 report: switches that snoop them decide by these whether
    /// neighbour solicitations reach this host.
    pub(super) const V6_MULTICAST_LISTENER: [u8; 4] = [130, 131, 132, 143];
}

/// Ports of DHCP (RFC 2131) and DHCPv6 (RFC 8415).
pub(super) mod dhcp {
    pub(in crate::plan) const SERVER: u16 = 67;
    pub(in crate::plan) const CLIENT: u16 = 68;
    pub(in crate::plan) const V6_CLIENT: u16 = 546;
    pub(in crate::plan) const V6_SERVER: u16 = 547;
}

impl Plan<'_> {
    /// The ruleset that enforces, or observes, this plan.
    pub fn ruleset(&self) -> Ruleset {
        let mut builder = Builder { plan: self, ruleset: Ruleset::default() };
        builder.ingress();
        if self.policy.egress != EgressMode::Off {
            builder.egress();
        }
        builder.ruleset
    }
}

struct Builder<'p, 'a> {
    plan: &'p Plan<'a>,
    ruleset: Ruleset,
}

/// The names and properties in which the two directions differ.
struct Side {
    direction: Direction,
    address: AddressSide,
    chain_prefix: &'static str,
    map_prefix: &'static str,
}

const INGRESS: Side =
    Side { direction: Direction::Ingress, address: AddressSide::Source, chain_prefix: "in_", map_prefix: "" };
const EGRESS: Side = Side {
    direction: Direction::Egress,
    address: AddressSide::Destination,
    chain_prefix: "out_",
    map_prefix: "egress_",
};

/// What the look-ups of one direction need: which maps exist, and the chain for echo requests.
struct LookUps {
    ranges: Vec<(Protocol, Name)>,
    services: Vec<(Protocol, Name)>,
    echo: Option<Name>,
}

/// One-way traffic is UDP, so UDP is asked first.
const PROTOCOLS: [Protocol; 2] = [Protocol::Udp, Protocol::Tcp];

impl Builder<'_, '_> {
    fn ingress(&mut self) {
        let enforce = self.plan.policy.mode == Mode::Enforce;
        let denied = self.denied_chain(Hook::Input, enforce);
        let look_ups = self.look_ups(&INGRESS);
        let dynamic = self.dynamic();

        // An ICMP error about a connection that nobody knows is invalid, yet a host must not lose path-MTU errors.
        let mut invalid = path_mtu_rules();
        invalid.push(goto(&denied));
        let invalid = self.add_chain("invalid_input", None, invalid);

        // One-way UDP pays for every rule before its look-up, and a datagram is invalid to the kernel only when it is
        // damaged, so its look-up comes first.
        let of = |protocol| {
            let maps = look_ups.services.iter().chain(&dynamic).filter(move |(of, _)| *of == protocol);
            maps.map(|(protocol, map)| {
                Rule::new([Statement::PortVerdict(*protocol, PortKey::Destination, map.clone())])
            })
        };
        let mut rules = vec![accept([Statement::CtState(ct_state::ESTABLISHED | ct_state::RELATED)])];
        rules.extend(of(Protocol::Udp));
        rules.push(accept([Statement::InputLoopback]));
        rules.push(Rule::new([Statement::CtState(ct_state::INVALID), Statement::Verdict(Verdict::Goto(invalid))]));
        rules.extend(of(Protocol::Tcp));
        rules.extend(neighbour_rules());
        rules.extend(path_mtu_rules());
        rules.extend(dhcp_rules([(dhcp::SERVER, dhcp::CLIENT), (dhcp::V6_SERVER, dhcp::V6_CLIENT)]));
        rules.extend(echo_rules(look_ups.echo.as_ref()));
        rules.extend(port_rules(&look_ups.ranges, PortKey::Destination));

        // A redirected packet has another destination port than its sender gave it: the same questions, asked about
        // the original one. Not so dynamic ports: it is the process on the rewritten port that gets the packet, and not the
        // one that was verified on the original port.
        let mut redirected = port_rules(&look_ups.services, PortKey::OriginalDestination);
        redirected.extend(port_rules(&look_ups.ranges, PortKey::OriginalDestination));
        let redirected = self.add_chain("redirected", None, redirected);
        let redirect = Rule::new([Statement::CtStatusDnat, Statement::Verdict(Verdict::Jump(redirected))]);
        rules.push(redirect.clone());
        rules.push(goto(&denied));
        self.add_base_chain(Hook::Input, policy(enforce), rules);

        // Of what the host forwards only packets to published ports concern the policy: those whose destination was
        // rewritten here.
        let denied = self.denied_chain(Hook::Forward, enforce);
        let rules = vec![
            accept([Statement::CtState(ct_state::ESTABLISHED | ct_state::RELATED)]),
            redirect,
            Rule::new([Statement::CtStatusDnat, Statement::Verdict(Verdict::Goto(denied))]),
        ];
        self.add_base_chain(Hook::Forward, ChainPolicy::Accept, rules);
    }

    /// Makes what open ports are put into: the maps, which begin empty, and a chain for the peers of each service, so that
    /// a port that opens is one element more. Returns the maps that there are.
    fn dynamic(&mut self) -> Vec<(Protocol, Name)> {
        let plan = self.plan;
        for exposed in &plan.dynamic {
            let peers: Vec<_> = exposed.permissions.iter().map(|permission| &permission.peers).collect();
            let rules = self.peer_rules(AddressSide::Source, &peers);
            self.add_chain(&service_chain(&exposed.service.name, None), None, rules);
            // For listeners of one family only.
            for family in [Family::Ipv4, Family::Ipv6] {
                let rules = self.family_rules(AddressSide::Source, &peers, family);
                if !rules.is_empty() {
                    self.add_chain(&service_chain(&exposed.service.name, Some(family)), None, rules);
                }
            }
        }
        let ranges = || plan.dynamic.iter().flat_map(|exposed| &exposed.service.ports);
        let has_range = |of| ranges().any(|ports| matches!(ports, Ports::Range(protocol, _) if *protocol == of));
        let maps: Vec<_> = PROTOCOLS
            .into_iter()
            .filter(|protocol| has_range(*protocol))
            .map(|protocol| (protocol, Name::from(dynamic_map(protocol))))
            .collect();
        self.ruleset.maps.extend(maps.iter().map(|(_, map)| (map.clone(), VerdictMap::default())));
        maps
    }

    fn egress(&mut self) {
        let enforce = self.plan.policy.egress == EgressMode::Enforce;
        let denied = self.denied_chain(Hook::Output, enforce);
        let look_ups = self.look_ups(&EGRESS);
        let mut rules = vec![
            accept([Statement::CtState(ct_state::ESTABLISHED | ct_state::RELATED)]),
            accept([Statement::OutputLoopback]),
        ];
        rules.extend(port_rules(&look_ups.services, PortKey::Destination));
        rules.extend(neighbour_rules());
        rules.extend(path_mtu_rules());
        rules.extend(dhcp_rules([(dhcp::CLIENT, dhcp::SERVER), (dhcp::V6_CLIENT, dhcp::V6_SERVER)]));
        rules.extend(echo_rules(look_ups.echo.as_ref()));
        rules.extend(port_rules(&look_ups.ranges, PortKey::Destination));
        rules.push(goto(&denied));
        // The last rule refuses, not the policy: when egress is switched off, the kernel enters the chain without rules
        // for a moment before it takes it from the hook, and that must not cost a packet.
        self.add_base_chain(Hook::Output, ChainPolicy::Accept, rules);
    }

    /// The chain that counts and logs what nothing allows, and refuses it, or notes it and lets it pass.
    fn denied_chain(&mut self, hook: Hook, enforce: bool) -> Name {
        let mut rules = vec![Rule::new([Statement::Counter])];
        let logging = self.plan.policy.logging;
        if let Some(target) = logging.target {
            let what = if enforce { "denied" } else { "would deny" };
            rules.push(Rule::new([
                Statement::Limit { per_second: logging.per_second, burst: logging.burst },
                Statement::Log(Log { prefix: format!("portward {what} {hook}: ").into(), target }),
            ]));
        }
        match (enforce, self.plan.policy.deny) {
            (false, _) => rules.append(&mut self.observing_rules(hook)),
            (true, Deny::Drop) => rules.push(Rule::new([Statement::Verdict(Verdict::Drop)])),
            (true, Deny::Reject) => rules.extend(reject_all()),
        }
        self.add_chain(&format!("denied_{hook}"), None, rules)
    }

    /// Rules that note who would be denied what, and let it pass: TCP and UDP with the port that the sender meant, which the
    /// kernel knows of every packet but invalid ones; of other protocols the address.
    fn observing_rules(&mut self, hook: Hook) -> Vec<Rule> {
        let notes = |builder: &mut Self, with_port| {
            [Family::Ipv4, Family::Ipv6].map(|family| {
                let record = Record { family, with_port };
                let set = observed_set(hook, record);
                builder.ruleset.sets.insert(set.clone(), Set::Record(record));
                builder.ruleset.sizes.insert(set.clone(), MOST_OBSERVED);
                Statement::Record(peer_side(hook), record, set)
            })
        };
        let of_ports = notes(self, true);
        let mut with_port = Vec::new();
        for protocol in PROTOCOLS {
            with_port.extend(of_ports.clone().map(|note| Rule::new([Statement::Protocol(protocol), note])));
        }
        with_port.push(accept([]));
        let with_port = self.add_chain(&format!("observed_{hook}"), None, with_port);
        let to_ports = |protocol| {
            let verdict = Statement::Verdict(Verdict::Goto(with_port.clone()));
            Rule::new([Statement::Protocol(protocol), verdict])
        };
        let mut rules = PROTOCOLS.map(to_ports).to_vec();
        rules.extend(notes(self, false).map(|note| Rule::new([note])));
        rules.push(accept([]));
        rules
    }

    /// Builds the sets, chains and maps of one direction.
    fn look_ups(&mut self, side: &Side) -> LookUps {
        let plan = self.plan;
        let mut owners: Vec<Owner<'_, '_>> = Vec::new();
        for allowance in plan.allowances.iter().filter(|allowance| allowance.direction == side.direction) {
            match owners.iter_mut().rev().find(|owner| owner.row == allowance.row && owner.dynamic == allowance.dynamic)
            {
                Some(owner) => owner.allowances.push(allowance),
                None => {
                    owners.push(Owner { row: allowance.row, dynamic: allowance.dynamic, allowances: vec![allowance] })
                }
            }
        }

        let mut chains: BTreeMap<BTreeSet<usize>, Name> = BTreeMap::new();
        let mut look_ups = LookUps { ranges: Vec::new(), services: Vec::new(), echo: None };
        for protocol in PROTOCOLS {
            let (mut exact, mut large) = (Vec::new(), Vec::new());
            for (index, owner) in owners.iter().enumerate() {
                for ports in owner.ports() {
                    match *ports {
                        Ports::Range(of, range) if of == protocol && range.count() <= EXACT_RANGE_LIMIT => {
                            exact.push((range, index));
                        }
                        Ports::Range(of, range) if of == protocol => large.push((range, index)),
                        _ => {}
                    }
                }
            }

            let mut elements = Vec::new();
            for (range, of) in segments(&exact) {
                let verdict = Verdict::Jump(self.owners_chain(side, &owners, of, &mut chains));
                elements.extend((range.first..=range.last).map(|port| (PortRange::single(port), verdict.clone())));
            }
            let name: Name = format!("{}services_{}", side.map_prefix, protocol.name()).into();
            self.ruleset.maps.insert(name.clone(), VerdictMap { interval: false, elements });
            look_ups.services.push((protocol, name));

            if !large.is_empty() {
                let elements = segments(&large)
                    .into_iter()
                    .map(|(range, of)| (range, Verdict::Jump(self.owners_chain(side, &owners, of, &mut chains))))
                    .collect();
                let name: Name = format!("{}ranges_{}", side.map_prefix, protocol.name()).into();
                self.ruleset.maps.insert(name.clone(), VerdictMap { interval: true, elements });
                look_ups.ranges.push((protocol, name));
            }
        }

        let echo: BTreeSet<usize> = owners
            .iter()
            .enumerate()
            .filter(|(_, owner)| owner.ports().contains(&Ports::Echo))
            .map(|(index, _)| index)
            .collect();
        if !echo.is_empty() {
            look_ups.echo = Some(self.owners_chain(side, &owners, echo, &mut chains));
        }
        look_ups
    }

    /// The chain for what exactly these rows open: one rule for each set of peers that any of them admits.
    fn owners_chain(
        &mut self,
        side: &Side,
        owners: &[Owner<'_, '_>],
        of: BTreeSet<usize>,
        chains: &mut BTreeMap<BTreeSet<usize>, Name>,
    ) -> Name {
        if let Some(name) = chains.get(&of) {
            return name.clone();
        }
        let owners: Vec<_> = of.iter().filter_map(|index| owners.get(*index)).collect();
        let name = chain_name(side.chain_prefix, owners.iter().map(|owner| owner.label()));
        let mut peers: Vec<&Peers<'_>> = Vec::new();
        for allowance in owners.iter().flat_map(|owner| &owner.allowances) {
            if !peers.iter().any(|other| other.label == allowance.peers.label) {
                peers.push(&allowance.peers);
            }
        }
        let rules = self.peer_rules(side.address, &peers);
        let name = self.add_chain(&name, None, rules);
        chains.insert(of, name.clone());
        name
    }

    /// Rules that accept packets of these peers: single addresses, which are hashed, before networks.
    fn peer_rules(&mut self, side: AddressSide, peers: &[&Peers<'_>]) -> Vec<Rule> {
        let covered = |family| peers.iter().any(|peers| peers.covers(family));
        if covered(Family::Ipv4) && covered(Family::Ipv6) {
            return vec![accept([Statement::Counter])];
        }
        let mut rules = self.family_rules(side, peers, Family::Ipv4);
        rules.append(&mut self.family_rules(side, peers, Family::Ipv6));
        rules
    }

    fn family_rules(&mut self, side: AddressSide, peers: &[&Peers<'_>], family: Family) -> Vec<Rule> {
        if peers.iter().any(|peers| peers.covers(family)) {
            return vec![accept([Statement::Family(family), Statement::Counter])];
        }
        let (mut rules, mut network_rules) = (Vec::new(), Vec::new());
        for peers in peers {
            let [addresses, networks] = self.add_sets(peers, family);
            let rule = |set| accept([Statement::InSet(side, family, set), Statement::Counter]);
            rules.extend(addresses.map(rule));
            network_rules.extend(networks.map(rule));
        }
        rules.append(&mut network_rules);
        rules
    }

    /// The sets of single addresses and of networks of these peers, each if there are any.
    fn add_sets(&mut self, peers: &Peers<'_>, family: Family) -> [Option<Name>; 2] {
        let suffix = if family == Family::Ipv4 { "v4" } else { "v6" };
        let set_name = |prefix: &str| Name::from(format!("{prefix}_{}_{suffix}", peers.label));
        let networks_name = set_name("nets");
        let size = size_of_set(match family {
            Family::Ipv4 => peers.members.ipv4.len(),
            Family::Ipv6 => peers.members.ipv6.len(),
        });
        let addresses_name = match size {
            Some(size) => format!("{}.{size}", set_name("peers")).into(),
            None => set_name("peers"),
        };
        let known = |name: &Name| self.ruleset.sets.contains_key(name).then(|| name.clone());
        let existing = [known(&addresses_name), known(&networks_name)];
        if existing.iter().any(Option::is_some) {
            return existing;
        }
        let (addresses, networks) = match family {
            Family::Ipv4 => ipv4_sets(&peers.members),
            Family::Ipv6 => ipv6_sets(&peers.members),
        };
        if let Some(size) = size.filter(|_| !addresses.is_empty()) {
            self.ruleset.sizes.insert(addresses_name.clone(), size);
        }
        [(addresses_name, addresses), (networks_name, networks)].map(|(name, set)| {
            (!set.is_empty()).then(|| {
                self.ruleset.sets.insert(name.clone(), set);
                name
            })
        })
    }

    fn add_chain(&mut self, name: &str, base: Option<BaseChain>, rules: Vec<Rule>) -> Name {
        let name = Name::from(name);
        self.ruleset.chains.insert(name.clone(), Chain { base, rules });
        name
    }

    fn add_base_chain(&mut self, hook: Hook, policy: ChainPolicy, rules: Vec<Rule>) {
        let base = BaseChain { hook, priority: FILTER_PRIORITY, policy };
        self.add_chain(&hook.to_string(), Some(base), rules);
    }
}

/// The allowances of one row in one direction. The random ports of the far side are an owner of their own.
struct Owner<'p, 'a> {
    row: RowRef<'a>,
    dynamic: bool,
    allowances: Vec<&'p Allowance<'a>>,
}

impl Owner<'_, '_> {
    fn ports(&self) -> &[Ports] {
        self.allowances.first().map_or(&[], |allowance| &allowance.ports)
    }

    fn label(&self) -> String {
        let suffix = if self.dynamic { ".dynamic" } else { "" };
        match self.row {
            RowRef::Catalogue(id) => format!("{}{suffix}", set_label(id)),
            RowRef::Allow(name) => format!("allow.{}{suffix}", set_label(name)),
        }
    }
}

/// The number of elements for which a set of so many addresses and networks is made; `None`: it grows.
fn size_of_set(members: usize) -> Option<u32> {
    if members <= GROWING_SET_LIMIT {
        return None;
    }
    u32::try_from(members).ok()?.checked_mul(2)?.checked_next_power_of_two()
}

/// The set in which an observing policy notes what it would deny at a hook.
pub fn observed_set(hook: Hook, Record { family, with_port }: Record) -> Name {
    let family = if family == Family::Ipv4 { "v4" } else { "v6" };
    format!("observed_{hook}{}_{family}", if with_port { "" } else { "_others" }).into()
}

/// Which address of a packet at a hook is the other end's.
fn peer_side(hook: Hook) -> AddressSide {
    match hook {
        Hook::Input | Hook::Forward => AddressSide::Source,
        Hook::Output => AddressSide::Destination,
    }
}

fn policy(enforce: bool) -> ChainPolicy {
    if enforce { ChainPolicy::Drop } else { ChainPolicy::Accept }
}

pub(super) fn accept(statements: impl IntoIterator<Item = Statement>) -> Rule {
    Rule::new(statements.into_iter().chain([Statement::Verdict(Verdict::Accept)]))
}

pub(super) fn goto(chain: &Name) -> Rule {
    Rule::new([Statement::Verdict(Verdict::Goto(chain.clone()))])
}

fn port_rules(maps: &[(Protocol, Name)], key: PortKey) -> Vec<Rule> {
    maps.iter().map(|(protocol, map)| Rule::new([Statement::PortVerdict(*protocol, key, map.clone())])).collect()
}

/// Neighbour and router discovery, without which IPv6 does not work at all.
pub(super) fn neighbour_rules() -> Vec<Rule> {
    let mut rules: Vec<_> =
        icmp::V6_DISCOVERY.into_iter().map(|kind| accept([Statement::IcmpType(IcmpKind::Icmpv6, kind)])).collect();
    rules.extend(
        icmp::V6_MULTICAST_LISTENER
            .into_iter()
            .map(|kind| accept([Statement::LinkLocalSource, Statement::IcmpType(IcmpKind::Icmpv6, kind)])),
    );
    rules
}

pub(super) fn path_mtu_rules() -> Vec<Rule> {
    vec![
        accept([
            Statement::IcmpType(IcmpKind::Icmp, icmp::DESTINATION_UNREACHABLE),
            Statement::IcmpCode(IcmpKind::Icmp, icmp::FRAGMENTATION_NEEDED_CODE),
        ]),
        accept([Statement::IcmpType(IcmpKind::Icmpv6, icmp::V6_PACKET_TOO_BIG)]),
    ]
}

/// A DHCP exchange is none that the kernel knows: requests and replies go to addresses that do not answer. Source and
/// destination ports, of IPv4 and of IPv6.
pub(super) fn dhcp_rules([ipv4, ipv6]: [(u16, u16); 2]) -> Vec<Rule> {
    let udp = |(source, destination)| {
        [Statement::Protocol(Protocol::Udp), Statement::SourcePort(source), Statement::DestinationPort(destination)]
    };
    vec![
        accept([Statement::Family(Family::Ipv4)].into_iter().chain(udp(ipv4))),
        accept([Statement::LinkLocalSource].into_iter().chain(udp(ipv6))),
    ]
}

fn echo_rules(chain: Option<&Name>) -> Vec<Rule> {
    let request = |kind, number, chain: &Name| {
        Rule::new([Statement::IcmpType(kind, number), Statement::Verdict(Verdict::Jump(chain.clone()))])
    };
    chain.map_or_else(Vec::new, |chain| {
        vec![
            request(IcmpKind::Icmp, icmp::ECHO_REQUEST, chain),
            request(IcmpKind::Icmpv6, icmp::V6_ECHO_REQUEST, chain),
        ]
    })
}

/// The prefix and the labels of rows or services, joined by `/`, which no label has. When there are too many, the first ones and a digest of
/// all, so that the same labels always have the same name.
pub(super) fn chain_name(prefix: &str, labels: impl Iterator<Item = String>) -> String {
    let labels: Vec<_> = labels.collect();
    let full = format!("{prefix}{}", labels.join("/"));
    if full.len() <= CHAIN_NAME_LIMIT {
        return full;
    }
    let mut name = prefix.to_owned();
    for label in labels.iter().take_while({
        let mut length = prefix.len();
        move |label| {
            length += label.len() + 1;
            length <= CHAIN_NAME_LIMIT / 2
        }
    }) {
        name.push_str(label);
        name.push('/');
    }
    format!("{name}{:016x}", fnv1a(full.as_bytes()))
}

/// The 64-bit FNV-1a hash (draft-eastlake-fnv): only to tell names apart, and the same on every machine and version.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn ipv4_sets(members: &Members) -> (Set, Set) {
    let (mut addresses, mut networks) = (Vec::with_capacity(members.ipv4.len()), Vec::new());
    for Member { network, .. } in &members.ipv4 {
        if network.prefix_len() == network.max_prefix_len() {
            addresses.push(network.addr());
        } else {
            networks.push(AddressRange { first: network.network(), last: network.broadcast() });
        }
    }
    (Set::ipv4_addresses(addresses), Set::ipv4_ranges(networks))
}

fn ipv6_sets(members: &Members) -> (Set, Set) {
    let (mut addresses, mut networks) = (Vec::new(), Vec::new());
    for Member { network, .. } in &members.ipv6 {
        if network.prefix_len() == network.max_prefix_len() {
            addresses.push(network.addr());
        } else {
            networks.push(AddressRange { first: network.network(), last: network.broadcast() });
        }
    }
    (Set::ipv6_addresses(addresses), Set::ipv6_ranges(networks))
}
