//! Who is at the other end: a group of the catalogue or the policy, as the addresses it has seen from one host.

use super::allowance::set_label;
use crate::policy::{Group, Host, Member, Members, Party, PartyKind, Policy, Row, Server, Tunnelled};
use crate::ruleset::Family;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::borrow::Cow;
use std::net::IpAddr;

/// The peers of one allowance: a group, seen from one host, with that host itself left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peers<'a> {
    /// The part of a set's name that stands for these peers, such as `log_source` or `managed_host_clear`.
    pub label: String,
    /// The group as people write it, such as `log-source`.
    pub group: String,
    /// Which links to encrypted managed hosts the group was narrowed to.
    pub tunnel: Tunnel,
    /// The addresses and networks, each with its line in the policy.
    pub members: Cow<'a, Members>,
}

/// Which members of a group take part, by whether the pair with this host is a console and a managed host whose link is
/// encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tunnel {
    /// All of them.
    Any,
    /// Those without such a link.
    Clear,
    /// Only those with such a link.
    Encrypted,
}

impl From<Tunnelled> for Tunnel {
    fn from(tunnelled: Tunnelled) -> Self {
        match tunnelled {
            Tunnelled::Kept => Self::Any,
            Tunnelled::Closed => Self::Clear,
            Tunnelled::Only => Self::Encrypted,
        }
    }
}

impl Peers<'_> {
    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether every address of the family belongs.
    pub fn covers(&self, family: Family) -> bool {
        // Sorted by address and then by prefix length, so a network of everything stands first.
        match family {
            Family::Ipv4 => self.members.ipv4.first().is_some_and(|member| member.network.prefix_len() == 0),
            Family::Ipv6 => self.members.ipv6.first().is_some_and(|member| member.network.prefix_len() == 0),
        }
    }

    /// The most specific member that holds the address, with its line in the policy.
    pub fn find(&self, address: IpAddr) -> Option<(IpNet, u32)> {
        find(&self.members, address)
    }
}

/// The most specific member that holds the address, with its line in the policy.
pub(super) fn find(members: &Members, address: IpAddr) -> Option<(IpNet, u32)> {
    match address {
        IpAddr::V4(address) => members
            .ipv4
            .iter()
            .filter(|member| member.network.contains(&address))
            .max_by_key(|member| member.network.prefix_len())
            .map(|member| (IpNet::V4(member.network), member.line)),
        IpAddr::V6(address) => members
            .ipv6
            .iter()
            .filter(|member| member.network.contains(&address))
            .max_by_key(|member| member.network.prefix_len())
            .map(|member| (IpNet::V6(member.network), member.line)),
    }
}

/// One host's view of the groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct View<'a> {
    pub(super) policy: &'a Policy,
    pub(super) host: &'a Host,
}

impl<'a> View<'a> {
    /// Whether this host is a member of the group. Outsiders' groups never have appliances as members: an address of
    /// an appliance that also lies in one of their networks makes the appliance a peer by that address, never a host
    /// on which the group's flows begin.
    pub(super) fn contains_self(&self, group: &Group) -> bool {
        match group {
            Group::Role(role) => self.host.roles.contains(role),
            Group::Appliance => true,
            Group::ManagedHost => !self.host.is_console(),
            Group::HaPeer => self.host.ha_peer.is_some(),
            Group::External(_) | Group::PublicServer => false,
        }
    }

    /// Whether this host is one end of an allowance.
    pub(super) fn is_party(&self, party: &Party) -> bool {
        match &party.kind {
            PartyKind::Group(group) => self.contains_self(group),
            PartyKind::Host(name) => *name == self.host.name,
            PartyKind::Ipv4(network) => self.host.addresses.iter().any(|address| match address {
                IpAddr::V4(address) => network.contains(address),
                IpAddr::V6(_) => false,
            }),
            PartyKind::Ipv6(network) => self.host.addresses.iter().any(|address| match address {
                IpAddr::V4(_) => false,
                IpAddr::V6(address) => network.contains(address),
            }),
        }
    }

    /// Whether this host and the other are a console and a managed host whose link is encrypted.
    fn is_tunnelled_pair(&self, other: &Host) -> bool {
        let encrypted_end =
            |managed: &Host, console: &Host| console.is_console() && !managed.is_console() && managed.encrypted;
        encrypted_end(self.host, other) || encrypted_end(other, self.host)
    }

    /// The group's members other than this host, as far as the tunnel rule lets them take part. `row` is the row of the
    /// catalogue whose servers `public-server` stands for.
    pub(super) fn peers(&self, group: &Group, tunnel: Tunnel, row: Option<&Row>) -> Peers<'a> {
        let tunnel = match tunnel {
            Tunnel::Clear if !self.can_be_tunnelled(group) => Tunnel::Any,
            tunnel => tunnel,
        };
        let name = group_name(group);
        let mut label = match (group, row) {
            (Group::PublicServer, Some(row)) => format!("server.{}", set_label(&row.id)),
            _ => set_label(name),
        };
        match tunnel {
            Tunnel::Any => {}
            Tunnel::Clear => label.push_str("_clear"),
            Tunnel::Encrypted => label.push_str("_encrypted"),
        }
        let members = match group {
            Group::External(_) | Group::PublicServer | Group::HaPeer if tunnel == Tunnel::Encrypted => Cow::default(),
            Group::External(name) => self.policy.groups.get(name).map(Cow::Borrowed).unwrap_or_default(),
            Group::PublicServer => Cow::Owned(server_members(row.map_or(&[], |row| &row.servers))),
            Group::HaPeer => {
                let peer = self.host.ha_peer.as_ref().and_then(|name| self.policy.hosts.get(name));
                Cow::Owned(host_members(peer.into_iter()))
            }
            Group::Role(_) | Group::Appliance | Group::ManagedHost => {
                Cow::Owned(host_members(self.others(group).filter(|other| match tunnel {
                    Tunnel::Any => true,
                    Tunnel::Clear => !self.is_tunnelled_pair(other),
                    Tunnel::Encrypted => self.is_tunnelled_pair(other),
                })))
            }
        };
        Peers { label, group: name.to_owned(), tunnel, members }
    }

    /// Whether the group can hold the other end of an encrypted link of this host. It decides the name of the set, so
    /// it must not depend on what other hosts are at the moment: a host that becomes encrypted changes elements of
    /// the console's sets, not its rules.
    fn can_be_tunnelled(&self, group: &Group) -> bool {
        match group {
            Group::HaPeer | Group::External(_) | Group::PublicServer => false,
            Group::Role(role) if self.host.is_console() => role != "console",
            Group::ManagedHost => self.host.is_console(),
            Group::Role(_) | Group::Appliance => self.host.is_console() || self.host.encrypted,
        }
    }

    fn others(&self, group: &Group) -> impl Iterator<Item = &'a Host> {
        let of_group = move |host: &&Host| match group {
            Group::Role(role) => host.roles.contains(role),
            Group::Appliance => true,
            Group::ManagedHost => !host.is_console(),
            Group::HaPeer | Group::External(_) | Group::PublicServer => false,
        };
        let own = &self.host.name;
        self.policy.hosts.values().filter(move |host| host.name != *own).filter(of_group)
    }

    /// The hosts, addresses and networks among the parties of one end of an allowance, as one group of peers.
    pub(super) fn named_peers(&self, label: String, parties: &[Party]) -> Peers<'a> {
        let mut members = Members::default();
        let mut names = Vec::new();
        for party in parties {
            match &party.kind {
                PartyKind::Group(_) => continue,
                PartyKind::Host(name) => {
                    if *name != self.host.name
                        && let Some(host) = self.policy.hosts.get(name)
                    {
                        push_host(&mut members, host, party.line);
                    }
                }
                PartyKind::Ipv4(network) => members.ipv4.push(Member { network: *network, line: party.line }),
                PartyKind::Ipv6(network) => members.ipv6.push(Member { network: *network, line: party.line }),
            }
            names.push(party_name(party));
        }
        sort(&mut members);
        Peers { label, group: names.join(", "), tunnel: Tunnel::Any, members: Cow::Owned(members) }
    }
}

/// The name of a group as the catalogue and the policy write it.
pub(super) fn group_name(group: &Group) -> &str {
    match group {
        Group::Role(name) | Group::External(name) => name,
        Group::Appliance => "appliance",
        Group::ManagedHost => "managed-host",
        Group::HaPeer => "ha-peer",
        Group::PublicServer => "public-server",
    }
}

/// A party as the policy writes it.
pub(super) fn party_name(party: &Party) -> String {
    match &party.kind {
        PartyKind::Group(group) => group_name(group).to_owned(),
        PartyKind::Host(name) => name.clone(),
        PartyKind::Ipv4(network) => short_network(IpNet::V4(*network)),
        PartyKind::Ipv6(network) => short_network(IpNet::V6(*network)),
    }
}

/// A network as people write it: a single address without its prefix length.
pub fn short_network(network: IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() { network.addr().to_string() } else { network.to_string() }
}

fn host_members<'h>(hosts: impl Iterator<Item = &'h Host>) -> Members {
    let mut members = Members::default();
    for host in hosts {
        push_host(&mut members, host, host.line);
    }
    sort(&mut members);
    members
}

fn push_host(members: &mut Members, host: &Host, line: u32) {
    for address in &host.addresses {
        match address {
            IpAddr::V4(address) => members.ipv4.push(Member { network: Ipv4Net::from(*address), line }),
            IpAddr::V6(address) => members.ipv6.push(Member { network: Ipv6Net::from(*address), line }),
        }
    }
}

fn server_members(servers: &[Server]) -> Members {
    let mut members = Members::default();
    for server in servers {
        match server {
            // The address stands in the catalogue, not in the policy: there is no line to point at.
            Server::Address(IpNet::V4(network)) => members.ipv4.push(Member { network: *network, line: 0 }),
            Server::Address(IpNet::V6(network)) => members.ipv6.push(Member { network: *network, line: 0 }),
            Server::Name(_) => {}
        }
    }
    sort(&mut members);
    members
}

fn sort(members: &mut Members) {
    members.ipv4.sort_unstable();
    members.ipv4.dedup_by_key(|member| member.network);
    members.ipv6.sort_unstable();
    members.ipv6.dedup_by_key(|member| member.network);
}

/// What of the members lies within the limits: of two networks of which one holds the other, the smaller.
pub(super) fn intersection(members: &Members, limits: &Members) -> Members {
    let mut result = Members {
        ipv4: family_intersection(&members.ipv4, &limits.ipv4, |a, b| a.contains(b)),
        ipv6: family_intersection(&members.ipv6, &limits.ipv6, |a, b| a.contains(b)),
    };
    sort(&mut result);
    result
}

/// Both sequences are sorted by address and then by prefix length, as [`Members`] are, so the networks inside another
/// one follow it directly.
fn family_intersection<N: Copy + Ord>(
    members: &[Member<N>],
    limits: &[Member<N>],
    contains: fn(&N, &N) -> bool,
) -> Vec<Member<N>> {
    // Without those that lie in another one, the limits are disjoint: at most one of them holds a given network.
    let mut outermost: Vec<N> = Vec::new();
    for limit in limits {
        if !outermost.last().is_some_and(|last| contains(last, &limit.network)) {
            outermost.push(limit.network);
        }
    }
    let mut result = Vec::new();
    for member in members {
        let following = outermost.partition_point(|limit| *limit <= member.network);
        match following.checked_sub(1).and_then(|before| outermost.get(before)) {
            Some(limit) if contains(limit, &member.network) => result.push(*member),
            _ => result.extend(
                outermost[following..]
                    .iter()
                    .take_while(|limit| contains(&member.network, limit))
                    .map(|limit| Member { network: *limit, line: member.line }),
            ),
        }
    }
    result
}
