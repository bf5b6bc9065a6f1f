//! Which flows would the plan let begin? The question of `explain`, for a hundred thousand flows at once.
//!
//! A flow that a policy allowed goes on under the next one, because its packets belong to a known connection. Here it is
//! judged as the ruleset would judge its first packet today.

use super::dynamic::{LocalScope, OpenPort, OpenPorts};
use super::ports::segments;
use super::{Direction, Exposed, Peers, Plan, RowRef};
use crate::policy::{EgressMode, Members, Mode, Ports};
use crate::ruleset::{PortRange, Protocol};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, Ipv4Addr};

/// A flow as the host sees it: the packet that began it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowStart {
    /// What it is made of.
    pub kind: FlowKind,
    /// Who began it.
    pub source: IpAddr,
    /// Where its packets go, after any rewriting on this host.
    pub destination: IpAddr,
    /// When the destination was rewritten on this host, the port that the sender wrote; 0 where there are no ports.
    pub rewritten_from: Option<u16>,
    /// Whether another flow announced it: the kernel calls its first packet related.
    pub expected: bool,
}

impl FlowStart {
    /// The same flow as if the other side had begun it. Connection tracking that sees a connection in its middle takes
    /// the sender of the first packet for the one that began it.
    pub fn reversed(self) -> Self {
        let kind = match self.kind {
            FlowKind::Ports(protocol, source, destination) => FlowKind::Ports(protocol, destination, source),
            kind => kind,
        };
        Self { kind, source: self.destination, destination: self.source, rewritten_from: None, ..self }
    }
}

/// The kind of packets that a flow is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowKind {
    /// TCP or UDP: the port of the sender, and that of the receiver after any rewriting.
    Ports(Protocol, u16, u16),
    /// Echo requests of ICMP or ICMPv6.
    Echo,
    /// Anything else, which no row can allow.
    Other,
}

/// Which way a flow began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// To this host.
    In,
    /// From this host.
    Out,
    /// From others to others, through this host.
    Through,
    /// From this host to itself.
    Loopback,
}

/// What the plan says of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement<'j> {
    /// Which way it began.
    pub way: Way,
    /// The address at the other end; of a flow through this host the one that began it.
    pub peer: IpAddr,
    /// The port that it goes to, as the plan sees it; `None` for protocols without.
    pub port: Option<Ports>,
    /// Why it may begin; `None`: it may not.
    pub pass: Option<Pass<'j>>,
    /// Whether what may not begin is refused; else the policy only observes.
    pub enforced: bool,
}

/// Why a flow may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pass<'j> {
    /// A row opens the port to the peer.
    Row(RowRef<'j>),
    /// A dynamic service of this name has the port open, and the peer may reach it.
    Dynamic(&'j str),
    /// Traffic of the host with itself.
    Loopback,
    /// Another flow announced it.
    Related,
    /// DHCP.
    Dhcp,
    /// The policy does not look at what leaves.
    EgressOff,
    /// The policy does not look at what the host forwards unless its destination was rewritten here.
    Forwarded,
}

impl Display for Pass<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Row(row) => write!(f, "row {row}"),
            Self::Dynamic(name) => write!(f, "dynamic {name}"),
            Self::Loopback => f.write_str("loopback"),
            Self::Related => f.write_str("related to another flow"),
            Self::Dhcp => f.write_str("dhcp"),
            Self::EgressOff => f.write_str("egress is off"),
            Self::Forwarded => f.write_str("forwarded"),
        }
    }
}

/// The dynamic ports that count as open.
#[derive(Debug, Clone, Copy)]
pub enum DynamicPorts<'a> {
    /// These.
    Open(&'a OpenPorts),
    /// All that may be opened, for whoever does not know which are.
    Possible,
}

/// A plan, indexed so that a flow is judged in less than a microsecond whatever the number of peers.
#[derive(Debug, Clone)]
pub struct FlowJudge<'j> {
    plan: &'j Plan<'j>,
    local: Vec<IpAddr>,
    /// Each set of peers once.
    peers: Vec<AddressIndex>,
    ingress: PortIndex<'j>,
    egress: PortIndex<'j>,
}

/// Who may use the ports of one direction.
#[derive(Debug, Clone, Default)]
struct PortIndex<'j> {
    grants: Vec<Grant<'j>>,
    tcp: Vec<(PortRange, Vec<usize>)>,
    udp: Vec<(PortRange, Vec<usize>)>,
    echo: Vec<usize>,
}

/// What opens ports, and to whom.
#[derive(Debug, Clone, Copy)]
struct Grant<'j> {
    pass: Pass<'j>,
    /// Index into the sets of peers.
    peers: usize,
    /// For a dynamic port, to which of the host's addresses it is open.
    scope: Option<LocalScope>,
}

impl<'a> Plan<'a> {
    /// Prepares to judge flows on the host with these addresses (loopback need not be among them).
    pub fn flow_judge<'j>(&'j self, dynamic: DynamicPorts<'_>, local: &[IpAddr]) -> FlowJudge<'j>
    where
        'a: 'j,
    {
        let mut local = local.to_vec();
        local.sort_unstable();
        local.dedup();
        let mut builder = Builder::default();
        for allowance in &self.allowances {
            let peers = builder.peers(&allowance.peers);
            let grant = Grant { pass: Pass::Row(allowance.row), peers, scope: None };
            let side = match allowance.direction {
                Direction::Ingress => &mut builder.ingress,
                Direction::Egress => &mut builder.egress,
            };
            side.add(grant, &allowance.ports);
        }
        for Exposed { service, permissions } in &self.dynamic {
            let peers: Vec<usize> = permissions.iter().map(|permission| builder.peers(&permission.peers)).collect();
            let open: Vec<(Ports, LocalScope)> = match dynamic {
                DynamicPorts::Possible => service.ports.iter().map(|ports| (*ports, LocalScope::Any)).collect(),
                DynamicPorts::Open(open) => open
                    .get(&service.name)
                    .into_iter()
                    .flatten()
                    .map(|OpenPort { protocol, port, scope }| {
                        (Ports::Range(*protocol, PortRange::single(*port)), *scope)
                    })
                    .collect(),
            };
            for (ports, scope) in open {
                for &peers in &peers {
                    builder
                        .ingress
                        .add(Grant { pass: Pass::Dynamic(&service.name), peers, scope: Some(scope) }, &[ports]);
                }
            }
        }
        FlowJudge {
            plan: self,
            local,
            peers: builder.indexes,
            ingress: builder.ingress.finish(),
            egress: builder.egress.finish(),
        }
    }
}

#[derive(Default)]
struct Builder<'j> {
    by_label: BTreeMap<String, usize>,
    indexes: Vec<AddressIndex>,
    ingress: PortIndexBuilder<'j>,
    egress: PortIndexBuilder<'j>,
}

impl Builder<'_> {
    /// The number of the index of these peers. Peers of the same label are the same.
    fn peers(&mut self, peers: &Peers<'_>) -> usize {
        if let Some(index) = self.by_label.get(&peers.label) {
            return *index;
        }
        self.indexes.push(AddressIndex::new(&peers.members));
        self.by_label.insert(peers.label.clone(), self.indexes.len() - 1);
        self.indexes.len() - 1
    }
}

#[derive(Default)]
struct PortIndexBuilder<'j> {
    grants: Vec<Grant<'j>>,
    tcp: Vec<(PortRange, usize)>,
    udp: Vec<(PortRange, usize)>,
    echo: BTreeSet<usize>,
}

impl<'j> PortIndexBuilder<'j> {
    fn add(&mut self, grant: Grant<'j>, ports: &[Ports]) {
        let number = self.grants.len();
        self.grants.push(grant);
        for ports in ports {
            match *ports {
                Ports::Range(Protocol::Tcp, range) => self.tcp.push((range, number)),
                Ports::Range(Protocol::Udp, range) => self.udp.push((range, number)),
                Ports::Echo => drop(self.echo.insert(number)),
            }
        }
    }

    fn finish(self) -> PortIndex<'j> {
        let index = |ranges: &[_]| {
            segments(ranges).into_iter().map(|(range, owners)| (range, owners.into_iter().collect())).collect()
        };
        PortIndex {
            tcp: index(&self.tcp),
            udp: index(&self.udp),
            echo: self.echo.into_iter().collect(),
            grants: self.grants,
        }
    }
}

impl<'j> PortIndex<'j> {
    /// The grants for a port, in the order of the rows.
    fn grants(&self, port: Ports) -> impl Iterator<Item = &Grant<'j>> {
        let numbers: &[usize] = match port {
            Ports::Echo => &self.echo,
            Ports::Range(protocol, PortRange { first, .. }) => {
                let segments = match protocol {
                    Protocol::Tcp => &self.tcp,
                    Protocol::Udp => &self.udp,
                };
                let segment = segments.get(segments.partition_point(|(range, _)| range.last < first));
                segment.filter(|(range, _)| range.contains(first)).map_or(&[], |(_, numbers)| numbers)
            }
        };
        numbers.iter().filter_map(|number| self.grants.get(*number))
    }
}

impl<'j> FlowJudge<'j> {
    /// The plan that is judged by.
    pub fn plan(&self) -> &'j Plan<'j> {
        self.plan
    }

    /// Says whether the flow could begin today, and why.
    pub fn judge(&self, flow: &FlowStart) -> Judgement<'j> {
        let way = self.way(flow);
        let peer = if way == Way::Out { flow.destination } else { flow.source };
        let port = match flow.kind {
            FlowKind::Ports(protocol, _, port) => Some(Ports::Range(protocol, PortRange::single(port))),
            FlowKind::Echo => Some(Ports::Echo),
            FlowKind::Other => None,
        };
        let original_port = flow.rewritten_from.and_then(|original| match flow.kind {
            FlowKind::Ports(protocol, ..) => Some(Ports::Range(protocol, PortRange::single(original))),
            FlowKind::Echo | FlowKind::Other => None,
        });
        // A dynamic port was verified for the process that has it, and not for the one that a rewritten packet reaches.
        let by_port = |index| self.grant(index, port?, peer, Some(flow.destination));
        let by_original_port = || self.grant(&self.ingress, original_port?, peer, None);
        let policy = self.plan.policy;
        let pass = match way {
            Way::Loopback => Some(Pass::Loopback),
            Way::Out if policy.egress == EgressMode::Off => Some(Pass::EgressOff),
            Way::Through if flow.rewritten_from.is_none() => Some(Pass::Forwarded),
            _ if flow.expected => Some(Pass::Related),
            Way::In => by_port(&self.ingress)
                .or_else(by_original_port)
                .or_else(|| is_dhcp(flow, [(67, 68), (547, 546)]).then_some(Pass::Dhcp)),
            Way::Through => by_original_port(),
            Way::Out => by_port(&self.egress).or_else(|| is_dhcp(flow, [(68, 67), (546, 547)]).then_some(Pass::Dhcp)),
        };
        let enforced = match way {
            Way::Out => policy.egress == EgressMode::Enforce,
            Way::In | Way::Through | Way::Loopback => policy.mode == Mode::Enforce,
        };
        // Who publishes a container's port opens the port that others see.
        let port = if way == Way::Through { original_port.or(port) } else { port };
        Judgement { way, peer, port, pass, enforced }
    }

    /// What opens the port to the peer; dynamic services only for packets to this address of the host.
    fn grant(&self, index: &PortIndex<'j>, port: Ports, peer: IpAddr, dynamic_to: Option<IpAddr>) -> Option<Pass<'j>> {
        let is_open = |grant: &&Grant<'j>| match (grant.scope, dynamic_to) {
            (None, _) => true,
            (Some(scope), Some(address)) => scope.overlaps(LocalScope::Address(address)),
            (Some(_), None) => false,
        };
        index
            .grants(port)
            .filter(is_open)
            .find(|grant| self.peers.get(grant.peers).is_some_and(|peers| peers.contains(peer)))
            .map(|grant| grant.pass)
    }

    fn way(&self, flow: &FlowStart) -> Way {
        match (self.is_local(flow.source), self.is_local(flow.destination)) {
            (true, true) => Way::Loopback,
            (true, false) => Way::Out,
            (false, true) => Way::In,
            (false, false) if is_for_several(flow.destination) => Way::In,
            (false, false) => Way::Through,
        }
    }

    fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.local.binary_search(&address).is_ok()
    }
}

/// Whether hosts take packets to the address although it is nobody's. Broadcasts of a network are not known here.
fn is_for_several(destination: IpAddr) -> bool {
    destination.is_multicast() || destination == IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// Whether it is DHCP between these ports, for IPv4 and IPv6: see the rules of the ruleset.
fn is_dhcp(flow: &FlowStart, [ipv4, ipv6]: [(u16, u16); 2]) -> bool {
    let FlowKind::Ports(Protocol::Udp, source, destination) = flow.kind else { return false };
    match flow.source {
        IpAddr::V4(_) => (source, destination) == ipv4,
        IpAddr::V6(address) => address.is_unicast_link_local() && (source, destination) == ipv6,
    }
}

/// Addresses and networks as disjoint ranges in their order.
#[derive(Debug, Clone, Default)]
struct AddressIndex {
    ipv4: Vec<(u32, u32)>,
    ipv6: Vec<(u128, u128)>,
}

impl AddressIndex {
    fn new(members: &Members) -> Self {
        let ipv4 = members.ipv4.iter().map(|member| member.network);
        let ipv6 = members.ipv6.iter().map(|member| member.network);
        Self {
            ipv4: disjoint(ipv4.map(|network| (network.network().to_bits(), network.broadcast().to_bits()))),
            ipv6: disjoint(ipv6.map(|network| (network.network().to_bits(), network.broadcast().to_bits()))),
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => is_within(&self.ipv4, address.to_bits()),
            IpAddr::V6(address) => is_within(&self.ipv6, address.to_bits()),
        }
    }
}

/// Ranges in the order of [`Members`], without those that lie in the one before.
fn disjoint<A: Ord + Copy>(ranges: impl Iterator<Item = (A, A)>) -> Vec<(A, A)> {
    let mut result: Vec<(A, A)> = Vec::new();
    for range in ranges {
        if result.last().is_none_or(|last| last.1 < range.0) {
            result.push(range);
        }
    }
    result
}

fn is_within<A: Ord + Copy>(ranges: &[(A, A)], address: A) -> bool {
    let range = ranges.get(ranges.partition_point(|range| range.1 < address));
    range.is_some_and(|range| range.0 <= address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Query, Verdict};
    use crate::policy::{Catalogue, Loaded, Policy};
    use crate::policy::{DynamicService, Exposure, PartyKind};
    use crate::ruleset::Protocol::{Tcp, Udp};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::{select, subsequence};

    const OWN: [&str; 2] = ["10.0.0.10", "fd00::10"];

    /// Addresses and networks that lie in each other in many ways.
    const NETWORKS: [&str; 14] = [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.0.0/24",
        "10.1.0.7",
        "10.1.0.255",
        "10.1.1.0",
        "255.255.255.255",
        "::/0",
        "fd01::/32",
        "fd01::/64",
        "fd01::7",
        "fd01:0:0:1::",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe",
    ];

    const PEERS: [&str; 14] = [
        "10.1.0.6",
        "10.1.0.7",
        "10.1.0.255",
        "10.1.1.0",
        "10.2.0.0",
        "11.0.0.0",
        "0.0.0.0",
        "255.255.255.254",
        "10.0.0.21",
        "10.0.0.22",
        "fd01::7",
        "fd01::8",
        "fd01:0:0:1::",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe",
    ];

    const PORTS: [&str; 9] = [
        "22/tcp",
        "1-65535/tcp",
        "443/tcp",
        "500-520/udp",
        "514/udp",
        "65535/udp",
        "31990-32010/tcp",
        "7000-7100/tcp",
        "echo/icmp",
    ];

    fn some(words: &'static [&'static str], most: usize) -> impl Strategy<Value = String> {
        subsequence(words, 1..=most).prop_map(|words| format!("{words:?}"))
    }

    fn any_policy() -> impl Strategy<Value = String> {
        let groups =
            vec((select(&["admin", "user", "log-source", "flow-source", "snmp-manager"]), some(&NETWORKS, 4)), 0..5);
        let allows = vec((some(&PORTS, 3), some(&NETWORKS, 3), any::<bool>()), 0..6);
        let narrowed = vec((select(&["syslog", "ssh", "web-admin"]), some(&NETWORKS, 4)), 0..3);
        let egress = select(&["off", "observe", "enforce"]);
        (groups, allows, narrowed, egress, any::<bool>()).prop_map(|(groups, allows, narrowed, egress, encrypted)| {
            let mut text = format!("format = 1\negress = {egress:?}\nallow-lockout = true\n[groups]\n");
            for (group, members) in groups.into_iter().collect::<BTreeMap<_, _>>() {
                text.push_str(&format!("{group} = {members}\n"));
            }
            text.push_str(&format!(
                "[[host]]\nname = \"main\"\naddresses = {OWN:?}\nroles = [\"console\"]\n\
                 [[host]]\nname = \"ep1\"\naddresses = [\"10.0.0.21\"]\nroles = [\"event-processor\"]\nencrypted = {encrypted}\n\
                 [[host]]\nname = \"ep2\"\naddresses = [\"10.0.0.22\"]\nroles = [\"event-collector\"]\n"
            ));
            for (number, (ports, peers, is_ingress)) in allows.into_iter().enumerate() {
                let (own, other) = if is_ingress { ("to", "from") } else { ("from", "to") };
                text.push_str(&format!(
                    "[[allow]]\nname = \"own-{number}\"\nports = {ports}\n{other} = {peers}\n{own} = [\"main\"]\n"
                ));
            }
            for (row, limits) in narrowed.into_iter().collect::<BTreeMap<_, _>>() {
                text.push_str(&format!("[row.{row}]\nonly-from = {limits}\n"));
            }
            text
        })
    }

    fn any_port() -> impl Strategy<Value = Ports> {
        let common = select(&[1_u16, 21, 22, 443, 499, 500, 514, 520, 521, 7676, 32006, 32010, 65535]);
        let range = |port| PortRange::single(port);
        prop_oneof![
            4 => (common.clone(), select(&[Tcp, Udp])).prop_map(move |(port, protocol)| Ports::Range(protocol, range(port))),
            1 => (1..=u16::MAX, select(&[Tcp, Udp])).prop_map(move |(port, protocol)| Ports::Range(protocol, range(port))),
            1 => Just(Ports::Echo),
        ]
    }

    fn load(text: &str) -> Loaded {
        Policy::parse(text, "policy.toml", Catalogue::embedded()).unwrap_or_else(|wrong| panic!("{wrong}\n{text}"))
    }

    fn own_addresses() -> Vec<IpAddr> {
        OWN.iter().map(|address| address.parse().unwrap()).collect()
    }

    /// A flow between the address and this host, to this port.
    fn flow(direction: Direction, peer: IpAddr, port: Ports) -> FlowStart {
        let own = own_addresses().into_iter().find(|own| own.is_ipv4() == peer.is_ipv4()).unwrap();
        let (source, destination) = if direction == Direction::Ingress { (peer, own) } else { (own, peer) };
        let kind = match port {
            Ports::Range(protocol, range) => FlowKind::Ports(protocol, 40_000, range.first),
            Ports::Echo => FlowKind::Echo,
        };
        FlowStart { kind, source, destination, rewritten_from: None, expected: false }
    }

    proptest! {
        #[test]
        fn the_judge_agrees_with_explain(
            text in any_policy(),
            asked in vec((select(&[Direction::Ingress, Direction::Egress]), select(&PEERS), any_port()), 60),
        ) {
            let loaded = load(&text);
            let plan = Plan::new(&loaded.policy, Catalogue::embedded(), &loaded.policy.hosts["main"]);
            let judge = plan.flow_judge(DynamicPorts::Open(&OpenPorts::new()), &own_addresses());
            for (direction, peer, port) in asked {
                let peer: IpAddr = peer.parse().unwrap();
                let explained = plan.explain(&Query { direction, peer, port, local: None }, &OpenPorts::new());
                let judged = judge.judge(&flow(direction, peer, port));
                prop_assert_eq!(
                    judged.pass.is_some(), explained.verdict == Verdict::Allowed,
                    "{:?} {} {}: {:?}, {:?}\n{}", direction, peer, port, judged, explained, text
                );
                if let Some(Pass::Row(row)) = judged.pass {
                    let named = format!("Row {{ row: {:?}", row.to_string());
                    let grants = format!("{:?}", explained.grants);
                    prop_assert!(grants.contains(&named), "{} is not in {}", named, grants);
                }
            }
        }

        #[test]
        fn an_index_of_addresses_holds_what_its_networks_hold(
            members in subsequence(&NETWORKS, 0..=NETWORKS.len()),
            probes in vec(any::<[u8; 4]>(), 10),
        ) {
            let text = format!(
                "format = 1\n[groups]\nadmin = {members:?}\n\
                 [[host]]\nname = \"main\"\naddresses = {OWN:?}\nroles = [\"console\"]\n"
            );
            let loaded = load(&text);
            let admin = loaded.policy.groups.get("admin").cloned().unwrap_or_default();
            let index = AddressIndex::new(&admin);
            let probes = probes.into_iter().map(IpAddr::from);
            for address in PEERS.iter().map(|peer| peer.parse().unwrap()).chain(probes) {
                prop_assert_eq!(index.contains(address), crate::plan::peers::find(&admin, address).is_some(), "{}", address);
            }
        }
    }

    const DEPLOYMENT: &str = r#"
format = 1
egress = "enforce"
[groups]
admin = ["192.0.2.0/24"]
log-source = ["198.51.100.1"]
[[host]]
name = "main"
addresses = ["10.0.0.10", "fd00::10"]
roles = ["console"]
[[host]]
name = "ep1"
addresses = ["10.0.0.21"]
roles = ["event-processor"]
"#;

    fn judged(text: &str, open: &OpenPorts, flow: FlowStart) -> (Way, Option<String>, bool) {
        let loaded = load(text);
        let plan = Plan::new(&loaded.policy, Catalogue::embedded(), &loaded.policy.hosts["main"]);
        let judge = plan.flow_judge(DynamicPorts::Open(open), &own_addresses());
        let judgement = judge.judge(&flow);
        (judgement.way, judgement.pass.map(|pass| pass.to_string()), judgement.enforced)
    }

    fn start(kind: FlowKind, source: &str, destination: &str) -> FlowStart {
        FlowStart {
            kind,
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            rewritten_from: None,
            expected: false,
        }
    }

    #[track_caller]
    fn check(flow: FlowStart, way: Way, pass: Option<&str>) {
        let (actual_way, actual_pass, _) = judged(DEPLOYMENT, &OpenPorts::new(), flow);
        assert_eq!((actual_way, actual_pass.as_deref()), (way, pass));
    }

    #[test]
    fn a_flow_is_judged_by_the_way_it_began() {
        let ssh = FlowKind::Ports(Tcp, 40_000, 22);
        check(start(ssh, "192.0.2.7", "10.0.0.10"), Way::In, Some("row ssh"));
        check(start(ssh, "203.0.113.9", "10.0.0.10"), Way::In, None);
        check(start(ssh, "10.0.0.10", "203.0.113.9"), Way::Out, None);
        check(start(ssh, "10.0.0.10", "10.0.0.21"), Way::Out, Some("row ssh"));
        check(start(ssh, "10.0.0.10", "10.0.0.10"), Way::Loopback, Some("loopback"));
        check(start(ssh, "127.0.0.1", "127.0.0.2"), Way::Loopback, Some("loopback"));
        check(start(ssh, "203.0.113.9", "203.0.113.10"), Way::Through, Some("forwarded"));
        check(start(FlowKind::Other, "192.0.2.7", "10.0.0.10"), Way::In, None);
        check(start(FlowKind::Ports(Udp, 5353, 5353), "192.0.2.7", "224.0.0.251"), Way::In, None);
        check(start(FlowKind::Ports(Udp, 5353, 5353), "10.0.0.10", "224.0.0.251"), Way::Out, None);
    }

    #[test]
    fn a_rewritten_flow_is_judged_by_the_original_port_too() {
        let redirected = |source, destination, original, port| FlowStart {
            rewritten_from: Some(original),
            ..start(FlowKind::Ports(Tcp, 40_000, port), source, destination)
        };
        check(redirected("192.0.2.7", "10.0.0.10", 22, 4022), Way::In, Some("row ssh"));
        check(redirected("192.0.2.7", "10.0.0.10", 4022, 22), Way::In, Some("row ssh"));
        check(redirected("192.0.2.7", "10.0.0.10", 4022, 4023), Way::In, None);
        check(redirected("192.0.2.7", "172.17.0.2", 22, 4022), Way::Through, Some("row ssh"));
        check(redirected("192.0.2.7", "172.17.0.2", 4022, 22), Way::Through, None);
        check(redirected("203.0.113.9", "172.17.0.2", 22, 22), Way::Through, None);
    }

    #[test]
    fn what_belongs_to_another_flow_or_is_dhcp_passes() {
        let announced =
            FlowStart { expected: true, ..start(FlowKind::Ports(Tcp, 20, 45_000), "203.0.113.9", "10.0.0.10") };
        check(announced, Way::In, Some("related to another flow"));
        check(start(FlowKind::Ports(Udp, 67, 68), "203.0.113.9", "10.0.0.10"), Way::In, Some("dhcp"));
        check(start(FlowKind::Ports(Udp, 68, 67), "10.0.0.10", "203.0.113.9"), Way::Out, Some("dhcp"));
        check(start(FlowKind::Ports(Udp, 547, 546), "fe80::1", "fd00::10"), Way::In, Some("dhcp"));
        check(start(FlowKind::Ports(Udp, 547, 546), "fd00::1", "fd00::10"), Way::In, None);
        check(start(FlowKind::Ports(Tcp, 67, 68), "203.0.113.9", "10.0.0.10"), Way::In, None);
    }

    #[test]
    fn a_policy_that_only_observes_refuses_nothing() {
        let stranger = start(FlowKind::Ports(Tcp, 40_000, 22), "203.0.113.9", "10.0.0.10");
        assert_eq!(judged(DEPLOYMENT, &OpenPorts::new(), stranger), (Way::In, None, true));
        let observing = format!("mode = \"observe\"\n{DEPLOYMENT}");
        assert_eq!(judged(&observing, &OpenPorts::new(), stranger), (Way::In, None, false));
        let out = start(FlowKind::Ports(Tcp, 40_000, 22), "10.0.0.10", "203.0.113.9");
        assert_eq!(judged(&observing, &OpenPorts::new(), out), (Way::Out, None, true));
    }

    #[test]
    fn a_dynamic_port_is_open_while_it_is_and_to_whom_it_is() {
        use crate::policy::{OnClose, Party, ProcessMatch, Tracker};
        let mut loaded = load(DEPLOYMENT);
        let from = |network: &str| Party { kind: PartyKind::Ipv4(network.parse().unwrap()), line: 1 };
        let service = |name: &str, exposure| DynamicService {
            name: name.to_owned(),
            enabled: true,
            tracker: Tracker::Process,
            anchor: Some(7676),
            programs: Vec::new(),
            process: ProcessMatch::default(),
            ports: vec!["32768-65535/tcp".parse().unwrap()],
            limit: 8,
            on_close: OnClose::Keep,
            exposure,
            when: Vec::new(),
            line: None,
        };
        for service in [
            service("broker", Exposure::From(vec![from("203.0.113.0/24")])),
            service("shell", Exposure::Row("ssh".to_owned())),
        ] {
            loaded.policy.dynamic.insert(service.name.clone(), service);
        }
        let plan = Plan::new(&loaded.policy, Catalogue::embedded(), &loaded.policy.hosts["main"]);
        let port = |port, scope| OpenPort { protocol: Tcp, port, scope };
        let open = OpenPorts::from([
            ("broker".to_owned(), BTreeSet::from([port(40_001, LocalScope::Ipv4), port(40_002, LocalScope::Ipv6)])),
            ("shell".to_owned(), BTreeSet::from([port(40_001, LocalScope::Address(OWN[0].parse().unwrap()))])),
        ]);
        let pass = |dynamic, source, port| {
            let flow = start(FlowKind::Ports(Tcp, 1025, port), source, OWN[0]);
            plan.flow_judge(dynamic, &own_addresses()).judge(&flow).pass.map(|pass| pass.to_string())
        };
        let (open, possible) = (DynamicPorts::Open(&open), DynamicPorts::Possible);
        assert_eq!(pass(open, "203.0.113.9", 40_001).as_deref(), Some("dynamic broker"));
        assert_eq!(pass(open, "192.0.2.9", 40_001).as_deref(), Some("dynamic shell"));
        assert_eq!(pass(open, "203.0.114.9", 40_001), None);
        assert_eq!(pass(open, "203.0.113.9", 40_002), None);
        assert_eq!(pass(open, "203.0.113.9", 40_003), None);
        assert_eq!(pass(possible, "203.0.113.9", 40_003).as_deref(), Some("dynamic broker"));
        assert_eq!(pass(possible, "203.0.113.9", 32_767), None);
        let redirected =
            FlowStart { rewritten_from: Some(40_001), ..start(FlowKind::Ports(Tcp, 1025, 9), "203.0.113.9", OWN[0]) };
        assert_eq!(plan.flow_judge(open, &own_addresses()).judge(&redirected).pass, None, "another process has port 9");
    }
}
