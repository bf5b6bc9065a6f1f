//! What an observing policy has let pass and enforcement would deny, summed up, and what would admit it.

use super::{Direction, OpenPorts, Plan, Query, Verdict};
use crate::policy::Ports;
use crate::ruleset::{Hook, PortRange};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

/// More peers of one network than this are shown and proposed as the network.
const PEERS_NAMED: usize = 8;
/// The networks that peers are summed up by: /24 and /64.
const NETWORK_V4: u8 = 24;
const NETWORK_V6: u8 = 64;
/// A peer that tried more ports without any row than this is taken for a scanner: nothing is proposed for it.
const PORTS_OF_A_SCAN: usize = 32;

/// A packet, or many of them, that was let pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sighting {
    /// Where.
    pub hook: Hook,
    /// The address at the other end.
    pub peer: IpAddr,
    /// The port that its sender meant; `None`: a protocol without, such as ICMP.
    pub port: Option<Ports>,
}

/// What enforcement would deny of what was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Review {
    /// By direction and port, each with its peers.
    pub findings: Vec<Finding>,
    /// The addresses and networks that would have to join a group, by group.
    pub joins: BTreeMap<String, BTreeSet<IpNet>>,
    /// Rows of one's own for the rest.
    pub allows: Vec<ProposedAllow>,
    /// Peers that look like scanners.
    pub scanners: BTreeSet<IpAddr>,
}

/// What enforcement would deny on one port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Who opens the connection.
    pub direction: Direction,
    /// The port; `None`: protocols without.
    pub port: Option<Ports>,
    /// The other ends; networks where they are many.
    pub peers: BTreeSet<IpNet>,
    /// How many addresses these stand for.
    pub addresses: usize,
    /// The rows that have the port, but do not open it to these peers.
    pub rows: Vec<String>,
    /// The group of outsiders in which these peers would be admitted by one of the rows.
    pub group: Option<String>,
}

/// An `[[allow]]` that would admit what no row does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProposedAllow {
    /// A name that the policy does not have yet.
    pub name: String,
    /// What it opens.
    pub ports: Vec<Ports>,
    /// Who opens the connection.
    pub direction: Direction,
    /// The other ends.
    pub peers: BTreeSet<IpNet>,
    /// The host of the plan.
    pub host: String,
}

impl ProposedAllow {
    /// Text for the end of a policy file.
    pub fn to_toml(&self) -> String {
        let words = |words: &mut dyn Iterator<Item = String>| {
            words.map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
        };
        let peers = words(&mut self.peers.iter().copied().map(super::short_network));
        let host = format!("\"{}\"", self.host);
        let (from, to) = match self.direction {
            Direction::Ingress => (peers, host),
            Direction::Egress => (host, peers),
        };
        let ports = words(&mut in_ranges(&self.ports).iter().map(ToString::to_string));
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = write!(text, "[[allow]]\nname = \"{}\"\nports = [{ports}]\nfrom = [{from}]\nto = [{to}]\n", self.name);
        text
    }
}

/// What sightings with the same answer have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Answer {
    direction: Direction,
    port: Option<Ports>,
    rows: Vec<String>,
    group: Option<String>,
}

impl Plan<'_> {
    /// Sums up what was seen, as far as the plan would deny it while these dynamic ports are open.
    pub fn review(&self, seen: impl IntoIterator<Item = Sighting>, open: &OpenPorts) -> Review {
        let mut answers: BTreeMap<Answer, BTreeSet<IpAddr>> = BTreeMap::new();
        for sighting in seen {
            if let Some(answer) = self.answer(sighting, open) {
                answers.entry(answer).or_default().insert(sighting.peer);
            }
        }

        let mut review = Review::default();
        let mut without_row: BTreeMap<(Direction, IpAddr), Vec<Ports>> = BTreeMap::new();
        for (Answer { direction, port, rows, group }, peers) in answers {
            let networks = networks(&peers);
            match (&group, port) {
                (Some(group), _) => review.joins.entry(group.clone()).or_default().extend(&networks),
                (None, Some(port)) => {
                    for peer in &peers {
                        without_row.entry((direction, *peer)).or_default().push(port);
                    }
                }
                (None, None) => {}
            }
            review.findings.push(Finding { direction, port, addresses: peers.len(), peers: networks, rows, group });
        }

        let mut by_ports: BTreeMap<(Direction, Vec<Ports>), BTreeSet<IpAddr>> = BTreeMap::new();
        for ((direction, peer), mut ports) in without_row {
            ports.sort_unstable();
            ports.dedup();
            if ports.len() > PORTS_OF_A_SCAN {
                review.scanners.insert(peer);
            } else {
                by_ports.entry((direction, ports)).or_default().insert(peer);
            }
        }
        let mut names = (1..).map(|number| format!("observed-{number}"));
        for ((direction, ports), peers) in by_ports {
            let Some(name) = names.find(|name| !self.policy.allows.contains_key(name)) else { break };
            let (peers, host) = (networks(&peers), self.host.name.clone());
            review.allows.push(ProposedAllow { name, ports, direction, peers, host });
        }
        review
    }

    /// Why the sighting would be denied; `None`: it would not.
    fn answer(&self, Sighting { hook, peer, port }: Sighting, open: &OpenPorts) -> Option<Answer> {
        let direction = match hook {
            Hook::Input | Hook::Forward => Direction::Ingress,
            Hook::Output => Direction::Egress,
        };
        let Some(asked) = port else { return Some(Answer { direction, port, rows: Vec::new(), group: None }) };
        // What is forwarded goes to another process than the one that was verified.
        let none = OpenPorts::new();
        let open = if hook == Hook::Forward { &none } else { open };
        let explanation = self.explain(&Query { direction, peer, port: asked, local: None }, open);
        if explanation.verdict == Verdict::Allowed {
            return None;
        }
        let misses = explanation.near_misses;
        let group = misses.iter().find_map(|miss| miss.group.clone());
        let rows: BTreeSet<String> = misses
            .into_iter()
            // Where joining a group helps, only the rows that it would help with are of interest.
            .filter(|miss| group.is_none() || miss.group == group)
            .map(|miss| miss.row)
            .collect();
        Some(Answer { direction, port, rows: rows.into_iter().collect(), group })
    }
}

/// The addresses as networks of one address each, or as a /24 or /64 where very many are in that.
fn networks(addresses: &BTreeSet<IpAddr>) -> BTreeSet<IpNet> {
    let mut by_network: BTreeMap<IpNet, Vec<IpAddr>> = BTreeMap::new();
    for address in addresses {
        by_network.entry(network(*address)).or_default().push(*address);
    }
    let mut networks = BTreeSet::new();
    for (network, addresses) in by_network {
        if addresses.len() > PEERS_NAMED {
            networks.insert(network);
        } else {
            networks.extend(addresses.into_iter().map(IpNet::from));
        }
    }
    networks
}

fn network(address: IpAddr) -> IpNet {
    let network = match address {
        IpAddr::V4(address) => Ipv4Net::new(address, NETWORK_V4).map(IpNet::V4),
        IpAddr::V6(address) => Ipv6Net::new(address, NETWORK_V6).map(IpNet::V6),
    };
    network.map_or(IpNet::from(address), |network| network.trunc())
}

/// Ports that follow each other as ranges.
fn in_ranges(ports: &[Ports]) -> Vec<Ports> {
    let mut ranges: Vec<Ports> = Vec::new();
    for port in ports {
        match (ranges.last_mut(), port) {
            (Some(Ports::Range(protocol, before)), Ports::Range(same, PortRange { first, last }))
                if protocol == same && before.last.checked_add(1) == Some(*first) =>
            {
                before.last = *last;
            }
            _ => ranges.push(*port),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Catalogue, Policy};
    use crate::ruleset::Protocol;
    use proptest::prelude::*;

    const POLICY: &str = "format = 1\nmode = \"observe\"\negress = \"observe\"\n[groups]\nadmin = [\"192.0.2.0/24\"]\n\
                          log-source = [\"198.51.100.1\", MORE_LOG_SOURCES]\n[[host]]\nname = \"console\"\n\
                          addresses = [\"10.0.0.10\"]\nroles = [\"console\"]\n\
                          [[allow]]\nname = \"observed-1\"\nports = [\"1/tcp\"]\nfrom = [\"10.9.9.9\"]\nto = [\"console\"]\n";

    fn parse(more_log_sources: &str, more: &str) -> Policy {
        let text = POLICY.replace("MORE_LOG_SOURCES", more_log_sources) + more;
        Policy::parse(&text, "policy.toml", Catalogue::embedded()).unwrap().policy
    }

    fn review(policy: &Policy, seen: &[Sighting]) -> Review {
        let plan = Plan::new(policy, Catalogue::embedded(), &policy.hosts["console"]);
        plan.review(seen.iter().copied(), &OpenPorts::new())
    }

    fn seen(hook: Hook, peer: &str, port: &str) -> Sighting {
        Sighting { hook, peer: peer.parse().unwrap(), port: Some(port.parse().unwrap()) }
    }

    #[test]
    fn a_row_that_has_the_port_is_joined_and_the_rest_is_allowed_by_name() {
        let policy = parse("", "");
        let sightings = [
            seen(Hook::Input, "203.0.113.5", "514/udp"),
            seen(Hook::Input, "198.51.100.1", "514/udp"),
            seen(Hook::Input, "203.0.113.6", "9999/tcp"),
            seen(Hook::Input, "203.0.113.6", "9998/tcp"),
            seen(Hook::Output, "203.0.113.7", "4444/tcp"),
            Sighting { hook: Hook::Input, peer: "203.0.113.8".parse().unwrap(), port: None },
        ];
        let review = review(&policy, &sightings);
        assert_eq!(review.joins.keys().collect::<Vec<_>>(), ["log-source"], "{review:?}");
        let texts: Vec<_> = review.allows.iter().map(ProposedAllow::to_toml).collect();
        assert_eq!(
            texts,
            [
                "[[allow]]\nname = \"observed-2\"\nports = [\"9998-9999/tcp\"]\nfrom = [\"203.0.113.6\"]\n\
                 to = [\"console\"]\n",
                "[[allow]]\nname = \"observed-3\"\nports = [\"4444/tcp\"]\nfrom = [\"console\"]\nto = [\"203.0.113.7\"]\n",
            ]
        );
        assert_eq!(review.findings.len(), 5, "what is allowed by now is not told: {review:?}");
        let syslog = review.findings.iter().find(|finding| finding.port == "514/udp".parse().ok()).unwrap();
        assert_eq!((syslog.rows.as_slice(), syslog.group.as_deref()), (&["syslog".to_owned()][..], Some("log-source")));
    }

    #[test]
    fn many_peers_are_their_network_and_a_scan_is_none_to_admit() {
        let policy = parse("", "");
        let peers = (1..=20).map(|last| seen(Hook::Input, &format!("203.0.113.{last}"), "9999/tcp"));
        let found = review(&policy, &peers.collect::<Vec<_>>());
        assert_eq!((found.findings[0].addresses, found.findings[0].peers.len()), (20, 1));
        assert_eq!(found.allows[0].peers, BTreeSet::from(["203.0.113.0/24".parse().unwrap()]));
        let ports = (20_000..20_100).map(|port| seen(Hook::Input, "203.0.113.1", &format!("{port}/tcp")));
        let found = review(&policy, &ports.collect::<Vec<_>>());
        assert_eq!((found.allows.len(), found.scanners.len(), found.findings.len()), (0, 1, 100));
    }

    #[test]
    fn neighbouring_ports_are_a_range() {
        let ports = ["1/tcp", "2/tcp", "4/tcp", "5/udp", "echo/icmp"].map(|port| port.parse().unwrap());
        let ranges: Vec<_> = in_ranges(&ports).iter().map(ToString::to_string).collect();
        assert_eq!(ranges, ["1-2/tcp", "4/tcp", "5/udp", "echo/icmp"]);
    }

    fn sightings() -> impl Strategy<Value = Vec<Sighting>> {
        let hook = prop_oneof![Just(Hook::Input), Just(Hook::Output), Just(Hook::Forward)];
        let peer = prop_oneof![
            (0..3_u8, 1..40_u8).prop_map(|(net, last)| IpAddr::from([203, 0, net, last])),
            (0..3_u16, 1..40_u16).prop_map(|(net, last)| IpAddr::from([0x2001, 0xdb8, 0, net, 0, 0, 0, last]))
        ];
        let port = (prop_oneof![Just(22), Just(443), Just(514), Just(2055), 30_000..30_004_u16], any::<bool>());
        let one = (hook, peer, port).prop_map(|(hook, peer, (port, tcp))| {
            let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
            Sighting { hook, peer, port: Some(Ports::Range(protocol, PortRange::single(port))) }
        });
        proptest::collection::vec(one, 0..60)
    }

    proptest! {
        #[test]
        fn with_what_is_proposed_nothing_would_be_denied(seen in sightings()) {
            let before = parse("", "");
            let found = review(&before, &seen);
            let mut text = POLICY.replace("MORE_LOG_SOURCES", "");
            for (group, members) in &found.joins {
                let members: Vec<_> = members.iter().map(|network| format!("\"{network}\"")).collect();
                let line = format!("\n{group} = [");
                if text.contains(&line) {
                    text = text.replace(&line, &format!("{line}{}, ", members.join(", ")));
                } else {
                    text = text.replace("[groups]", &format!("[groups]\n{group} = [{}]", members.join(", ")));
                }
            }
            text.extend(found.allows.iter().map(ProposedAllow::to_toml));
            let after = Policy::parse(&text, "policy.toml", Catalogue::embedded());
            let after = after.unwrap_or_else(|error| panic!("{error}\n{text}")).policy;
            prop_assert_eq!(review(&after, &seen).findings, vec![]);
        }
    }
}
