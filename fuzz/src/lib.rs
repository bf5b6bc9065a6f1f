//! What several fuzz targets compare with: the three views of a plan must give one answer.

use portward::plan::{
    Direction, DynamicPorts, FlowJudge, FlowKind, FlowStart, OpenPorts, Plan, Query, Verdict as Answer,
};
use portward::policy::{EgressMode, Mode, Ports};
use portward::ruleset::{AddressSide, ChainPolicy, Family, PortRange, Protocol, Ruleset, Set, Statement, Verdict};
use std::net::IpAddr;

/// A packet of TCP or UDP that begins a connection with a peer. Nothing on its way was rewritten.
#[derive(Debug, Clone, Copy)]
pub struct Packet {
    /// To this host, or from it.
    pub direction: Direction,
    /// The address at the other end.
    pub peer: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port.
    pub port: u16,
}

/// The port from which packets come here, one without any meaning.
const SOURCE_PORT: u16 = 50_000;

/// Asks the explanation, the judge of flows and the ruleset about packets. Dynamic ports are closed.
///
/// # Panics
/// When they do not agree.
pub fn compare(plan: &Plan<'_>, ruleset: &Ruleset, packets: &[Packet]) {
    let judge = plan.flow_judge(DynamicPorts::Open(&OpenPorts::new()), &plan.host.addresses);
    for packet in packets {
        compare_one(plan, ruleset, &judge, *packet);
    }
}

fn compare_one(plan: &Plan<'_>, ruleset: &Ruleset, judge: &FlowJudge<'_>, packet: Packet) {
    let Packet { direction, peer, protocol, port } = packet;
    // What comes from an address of the host itself is loopback traffic, by another interface than these packets have.
    if peer.is_loopback() || plan.host.addresses.contains(&peer) || peer.to_canonical() != peer {
        return;
    }
    let Some(own) = plan.host.addresses.iter().find(|own| own.is_ipv4() == peer.is_ipv4()).copied() else { return };

    let query = Query { direction, peer, port: Ports::Range(protocol, PortRange::single(port)), local: None };
    let explanation = plan.explain(&query, &OpenPorts::new());
    let is_allowed = explanation.verdict == Answer::Allowed;
    assert_eq!(is_allowed, !explanation.grants.is_empty());

    let (source, destination) = match direction {
        Direction::Ingress => (peer, own),
        Direction::Egress => (own, peer),
    };
    let kind = FlowKind::Ports(protocol, SOURCE_PORT, port);
    let flow = FlowStart { kind, source, destination, rewritten_from: None, expected: false };
    assert_eq!(judge.judge(&flow).pass.is_some(), is_allowed, "the judge of flows: {packet:?} {explanation:?}");

    let is_enforced = match direction {
        Direction::Ingress => plan.policy.mode == Mode::Enforce,
        Direction::Egress => plan.policy.egress == EgressMode::Enforce,
    };
    if is_enforced {
        assert_eq!(admits(ruleset, packet), is_allowed, "the ruleset: {packet:?} {explanation:?}");
    }
}

/// Whether the kernel would let the packet pass.
fn admits(ruleset: &Ruleset, packet: Packet) -> bool {
    let hook = match packet.direction {
        Direction::Ingress => "input",
        Direction::Egress => "output",
    };
    let policy = ruleset.chains[hook].base.map(|base| base.policy);
    match evaluate(ruleset, hook, packet) {
        Outcome::Accepted => true,
        Outcome::Refused => false,
        Outcome::Undecided => policy == Some(ChainPolicy::Accept),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Accepted,
    Refused,
    Undecided,
}

fn evaluate(ruleset: &Ruleset, chain: &str, packet: Packet) -> Outcome {
    'rules: for rule in &ruleset.chains[chain].rules {
        for statement in &rule.statements {
            let verdict = match statement {
                Statement::Verdict(verdict) => verdict,
                Statement::PortVerdict(protocol, _, map) if *protocol == packet.protocol => {
                    let mut elements = ruleset.maps[map].elements.iter();
                    match elements.find(|(range, _)| range.contains(packet.port)) {
                        Some((_, verdict)) => verdict,
                        None => continue 'rules,
                    }
                }
                Statement::RejectTcpReset | Statement::RejectAdminProhibited => return Outcome::Refused,
                statement if matches(ruleset, statement, packet) => continue,
                _ => continue 'rules,
            };
            match verdict {
                Verdict::Accept => return Outcome::Accepted,
                Verdict::Drop => return Outcome::Refused,
                Verdict::Return => return Outcome::Undecided,
                Verdict::Goto(chain) => return evaluate(ruleset, chain, packet),
                Verdict::Jump(chain) => match evaluate(ruleset, chain, packet) {
                    Outcome::Undecided => {}
                    outcome => return outcome,
                },
            }
        }
    }
    Outcome::Undecided
}

fn matches(ruleset: &Ruleset, statement: &Statement, packet: Packet) -> bool {
    let is_of = |family: Family| packet.peer.is_ipv4() == (family == Family::Ipv4);
    match statement {
        Statement::Family(family) => is_of(*family),
        Statement::Protocol(protocol) => *protocol == packet.protocol,
        Statement::SourcePort(port) => *port == SOURCE_PORT,
        Statement::DestinationPort(port) => *port == packet.port,
        Statement::InSet(side, family, set) => {
            let is_peer = (*side == AddressSide::Source) == (packet.direction == Direction::Ingress);
            assert!(is_peer, "portward looks up peers only");
            is_of(*family) && holds(&ruleset.sets[set], packet.peer)
        }
        Statement::Record(..) | Statement::Limit { .. } | Statement::Counter | Statement::Log(_) => true,
        _ => false,
    }
}

fn holds(set: &Set, address: IpAddr) -> bool {
    match (set, address) {
        (Set::Ipv4Addresses(addresses), IpAddr::V4(address)) => addresses.contains(&address),
        (Set::Ipv6Addresses(addresses), IpAddr::V6(address)) => addresses.contains(&address),
        (Set::Ipv4Ranges(ranges), IpAddr::V4(address)) => {
            ranges.iter().any(|range| range.first <= address && address <= range.last)
        }
        (Set::Ipv6Ranges(ranges), IpAddr::V6(address)) => {
            ranges.iter().any(|range| range.first <= address && address <= range.last)
        }
        _ => false,
    }
}

/// Packets that are worth asking about: from members of the policy and strangers, at both ends of what it opens.
pub fn packets(plan: &Plan<'_>) -> Vec<Packet> {
    const PEERS: usize = 6;
    const PORTS: usize = 8;
    let mut peers: Vec<IpAddr> =
        ["198.51.100.77", "2001:db8:77::1"].iter().filter_map(|word| word.parse().ok()).collect();
    let hosts = plan.policy.hosts.values().flat_map(|host| &host.addresses).copied();
    let groups = plan.policy.groups.values().flat_map(|members| {
        let ipv4 = members.ipv4.iter().map(|member| IpAddr::from(member.network.broadcast()));
        let ipv6 = members.ipv6.iter().map(|member| IpAddr::from(member.network.broadcast()));
        ipv4.chain(ipv6)
    });
    peers.extend(hosts.take(PEERS / 2));
    peers.extend(groups.take(PEERS / 2));
    let mut ports = vec![(Protocol::Tcp, 22), (Protocol::Udp, 514)];
    // The policy's own rows come last.
    for ports_of in plan.allowances.iter().rev().flat_map(|allowance| &allowance.ports).take(PORTS) {
        if let Ports::Range(protocol, range) = ports_of {
            ports.extend([range.first, range.last, range.last.saturating_add(1)].map(|port| (*protocol, port)));
        }
    }
    let pairs = peers.iter().flat_map(|peer| ports.iter().map(move |port| (*peer, *port)));
    pairs
        .flat_map(|(peer, (protocol, port))| {
            [Direction::Ingress, Direction::Egress].map(|direction| Packet { direction, peer, protocol, port })
        })
        .collect()
}
