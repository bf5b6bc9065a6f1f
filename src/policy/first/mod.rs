//! A first policy for a machine, made of what was found on it. Pure: the same findings give the same text.
//!
//! The text is meant to be read and corrected by a person: whatever had to be guessed says on what it rests. It always
//! loads, it only observes, and it never locks out whoever is connected by SSH.

mod ha;
mod roles;
#[cfg(test)]
mod tests;

pub use ha::{HA_CONF, HaError, HaPair};

use super::catalogue::CONSOLE;
use super::words::check_host_name;
use super::{Catalogue, Group, Ports};
use crate::ruleset::{PortRange, Protocol};
use ipnet::IpNet;
use roles::{Evidence, Seen};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

/// So many ports or addresses are named in a comment.
const NAMED: usize = 40;
/// So many connected peers become administrators. More are no people.
const MOST_PEERS: usize = 256;
/// The name of a host whose own name cannot stand in a policy.
const NO_NAME: &str = "this-host";
/// How the names of interfaces begin that containers and virtual machines are behind. Their addresses are often the same
/// on several hosts.
const INTERNAL_INTERFACES: [&str; 9] = ["docker", "br-", "veth", "virbr", "cni", "podman", "lxcbr", "flannel", "cali"];

/// What was found on a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// The host name, or the name that it shall have in the policy.
    pub hostname: String,
    /// The addresses of its interfaces.
    pub addresses: Vec<LocalAddress>,
    /// What listens here and can be reached from elsewhere.
    pub listeners: BTreeSet<(u16, Protocol)>,
    /// The far ends of the connections to 22/tcp.
    pub ssh_peers: BTreeSet<IpAddr>,
    /// The high-availability pair that it belongs to.
    pub pair: Option<HaPair>,
    /// What could not be looked at, and why, each in one line.
    pub unseen: Vec<String>,
}

/// An address of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalAddress {
    /// The interface that has it.
    pub interface: String,
    /// The address with the length of its network's prefix.
    pub network: IpNet,
}

/// The text of a policy that loads on the machine where this was found.
pub fn first_policy(findings: &Findings, catalogue: &Catalogue) -> String {
    let mut writer = Writer { text: String::new() };
    let draft = Draft::new(findings, catalogue);
    writer.introduction(findings);
    writer.settings(catalogue, &draft.evidence);
    writer.groups(&draft, catalogue);
    writer.this_host(&draft);
    writer.other_hosts(&draft);
    writer.rows(&draft.evidence);
    writer.text
}

/// What the policy will say, worked out before it is written.
struct Draft<'a> {
    findings: &'a Findings,
    evidence: Evidence<'a>,
    name: String,
    own: Vec<(IpAddr, &'a str)>,
    /// Addresses that the host does not give to others: of containers, and those of the link.
    left_out: Vec<(IpAddr, &'a str)>,
    roles: BTreeSet<&'a str>,
    /// The other host of the pair, and whether it is the primary one.
    peer: Option<(IpAddr, bool)>,
    admins: Admins,
}

/// Who is in `admin`.
enum Admins {
    /// The peers that are connected; how many more there are.
    Connected(Vec<IpAddr>, usize),
    /// Nobody is connected: the networks that the machine is in.
    Networks(Vec<IpNet>),
    /// It is in no network either.
    Nobody,
}

impl<'a> Draft<'a> {
    fn new(findings: &'a Findings, catalogue: &'a Catalogue) -> Self {
        let evidence = Evidence::weigh(catalogue, &findings.listeners);
        let mut own: Vec<(IpAddr, &str)> = Vec::new();
        let mut left_out: Vec<(IpAddr, &str)> = Vec::new();
        for LocalAddress { interface, network } in &findings.addresses {
            let address = network.addr().to_canonical();
            if own.iter().chain(&left_out).any(|(known, _)| *known == address) || is_no_host(address) {
                continue;
            }
            let inner = INTERNAL_INTERFACES.iter().any(|prefix| interface.starts_with(prefix));
            if inner || is_of_link(address) { &mut left_out } else { &mut own }.push((address, interface));
        }
        own.sort_unstable();
        let is_own = |address: IpAddr| own.iter().any(|(own, _)| *own == address);
        let peer = findings.pair.and_then(|pair| {
            let (primary, secondary) = (pair.primary.to_canonical(), pair.secondary.to_canonical());
            match (is_own(primary), is_own(secondary)) {
                (true, false) => Some((secondary, false)),
                (false, true) => Some((primary, true)),
                _ => None,
            }
            .filter(|(address, _)| !is_no_host(*address) && !is_of_link(*address))
            .filter(|(address, _)| left_out.iter().all(|(known, _)| known != address))
        });
        let is_known = |address: IpAddr| is_own(address) || peer.is_some_and(|(peer, _)| peer == address);
        let admins = admins(findings, is_known);
        let roles = if !evidence.likely.is_empty() {
            evidence.likely.clone()
        } else {
            let possible: BTreeSet<_> = evidence.possible.iter().copied().filter(|role| *role != CONSOLE).collect();
            if possible.is_empty() { BTreeSet::from([CONSOLE]) } else { possible }
        };
        Self { findings, evidence, name: name(&findings.hostname), own, left_out, roles, peer, admins }
    }

    /// An address for documentation (RFC 5737) that nothing in the policy has.
    fn placeholder(&self, number: usize) -> Ipv4Addr {
        let taken = |address: &Ipv4Addr| {
            let address = IpAddr::V4(*address);
            self.own.iter().chain(&self.left_out).any(|(own, _)| *own == address)
                || self.peer.is_some_and(|(peer, _)| peer == address)
        };
        let blocks = [[192, 0, 2], [198, 51, 100], [203, 0, 113]];
        let addresses = blocks.iter().flat_map(|[a, b, c]| (1..=254).map(|d| Ipv4Addr::new(*a, *b, *c, d)));
        addresses.filter(|address| !taken(address)).nth(number).unwrap_or(Ipv4Addr::new(203, 0, 113, 254))
    }
}

fn admins(findings: &Findings, is_known: impl Fn(IpAddr) -> bool) -> Admins {
    let peers: BTreeSet<IpAddr> = findings.ssh_peers.iter().map(IpAddr::to_canonical).collect();
    let is_elsewhere = |address: &IpAddr| !is_no_host(*address) && !is_of_link(*address) && !is_known(*address);
    let peers: Vec<IpAddr> = peers.into_iter().filter(is_elsewhere).collect();
    if !peers.is_empty() {
        let more = peers.len().saturating_sub(MOST_PEERS);
        return Admins::Connected(peers.into_iter().take(MOST_PEERS).collect(), more);
    }
    let is_network = |network: &IpNet| {
        let address = network.addr();
        let inside = network.prefix_len() >= 8 && network.prefix_len() < network.max_prefix_len();
        inside && address.to_canonical() == address && !is_no_host(address) && !is_of_link(address)
    };
    let of_interface = findings.addresses.iter().filter(|local| {
        !INTERNAL_INTERFACES.iter().any(|prefix| local.interface.starts_with(prefix)) && is_network(&local.network)
    });
    let networks = IpNet::aggregate(&of_interface.map(|local| local.network.trunc()).collect());
    if networks.is_empty() { Admins::Nobody } else { Admins::Networks(networks) }
}

/// Whether no other host can reach a host by this address, or tell it by it.
fn is_no_host(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    address.is_loopback() || address.is_unspecified() || address.is_multicast() || is_broadcast
}

/// Whether the address means something on its link only (RFC 3927, RFC 4291).
fn is_of_link(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// The host name, as far as it can stand in a policy.
fn name(hostname: &str) -> String {
    let short = hostname.split('.').next().unwrap_or_default();
    [hostname, short].into_iter().find(|name| check_host_name(name).is_ok()).unwrap_or(NO_NAME).to_owned()
}

struct Writer {
    text: String,
}

impl Writer {
    fn line(&mut self, line: &str) {
        // What comes from the machine, such as the name of an interface, may hold anything; TOML takes no control
        // characters in a comment, and a break would end it.
        self.text.extend(line.trim_end().chars().map(|c| if c.is_control() { '?' } else { c }));
        self.text.push('\n');
    }

    fn lines(&mut self, lines: &str) {
        lines.lines().for_each(|line| self.line(line));
    }

    fn list(&mut self, key: &str, entries: impl Iterator<Item = (String, String)>) {
        self.line(&format!("{key} = ["));
        for (entry, comment) in entries {
            let comment = if comment.is_empty() { comment } else { format!(" # {comment}") };
            self.line(&format!("    \"{entry}\",{comment}"));
        }
        self.line("]");
    }

    fn introduction(&mut self, findings: &Findings) {
        self.lines(
            "# A first policy, written by `portward init` from what it found on this machine. It observes: what nothing\n\
             # allows is counted and logged, and passes. Nothing is denied before `mode` is \"enforce\".\n\
             #\n\
             # 1. Read it from top to bottom and correct it. What was guessed says on what it rests.\n\
             # 2. Add the other appliances of the deployment: the same file serves all of them.\n\
             # 3. `portward check` says whether it loads, `portward show` what it opens here.\n\
             # 4. `systemctl enable --now portward` begins to observe. After a day with backups and updates,\n\
             #    `portward observe-report` shows what the file does not know yet, and what would admit it.\n\
             # 5. `portward enforce` denies the rest, on trial: it goes back unless `portward confirm` follows.\n\
             #\n\
             # `man portward-policy` explains every key.",
        );
        if !findings.unseen.is_empty() {
            self.line("#");
            self.line("# What could not be seen, so that nothing below rests on it:");
            findings.unseen.iter().take(NAMED).for_each(|what| self.line(&format!("#   {what}")));
        }
    }

    fn settings(&mut self, catalogue: &Catalogue, evidence: &Evidence<'_>) {
        let newest = catalogue.newest_version().map_or("7.5.0", |version| version.as_str());
        self.lines(&format!(
            "\nformat = 1\n\n\
             # \"observe\": packets that nothing allows are counted, logged, and pass. \"enforce\": they are refused.\n\
             mode = \"observe\"\n\n\
             # The same for what the appliances send: \"off\", \"observe\" or \"enforce\".\n\
             egress = \"off\"\n\n\
             # The version of JSA; a few rows exist only before some version. Without it: {newest}.\n\
             # version = \"{newest}\"\n\n\
             # What the deployment uses: {}.",
            catalogue.features.join(", ")
        ));
        let behind: Vec<&Seen<'_>> = evidence.seen.iter().filter(|seen| !seen.features.is_empty()).collect();
        if !behind.is_empty() {
            self.line("# Listens here, and is only opened with a feature:");
        }
        for seen in behind {
            let (features, row) = (seen.features.join(" and "), &seen.row.id);
            self.line(&format!("#   {}: row {row}, feature {features}", ports(&seen.ports)));
        }
        self.line("features = []");
    }

    fn groups(&mut self, draft: &Draft<'_>, catalogue: &Catalogue) {
        self.line("");
        if let Admins::Nobody = draft.admins {
            self.lines(
                "# Nobody was connected by SSH, and this machine is in no network: nobody is known who administers it.\n\
                 # Name the administrators in `admin` below, and remove this line BEFORE you enforce: it allows a policy\n\
                 # that locks everybody out.\n\
                 allow-lockout = true\n",
            );
        }
        self.lines(
            "# Outsiders, by addresses and networks: whoever is no appliance. A group that is left out opens nothing.\n\
             [groups]",
        );
        match &draft.admins {
            Admins::Connected(peers, more) => {
                self.lines(
                    "# Who may log in by SSH. These were connected to 22/tcp as this was written. An appliance among them,\n\
                     # such as the console, belongs to the [[host]] entries instead; colleagues who were not connected are\n\
                     # missing.",
                );
                if *more > 0 {
                    self.line(&format!("# {more} more were connected and are left out."));
                }
                self.list("admin", peers.iter().map(|peer| (peer.to_string(), String::new())));
            }
            Admins::Networks(networks) => {
                self.lines(
                    "# Who may log in by SSH. Nobody was connected to 22/tcp from elsewhere as this was written, so these\n\
                     # are the networks that the machine is in: narrow them to the administrators.",
                );
                self.list("admin", networks.iter().map(|network| (network.to_string(), String::new())));
            }
            Admins::Nobody => self.line("# admin = [\"192.0.2.10\"]"),
        }
        self.line("# Fill in those that the deployment has, and remove the # in front.");
        for group in catalogue.external.iter().filter(|group| *group != "admin") {
            let opens: Vec<String> = draft
                .evidence
                .seen
                .iter()
                .filter(|seen| seen.row.flows.iter().any(|flow| flow.from == Group::External(group.clone())))
                .map(|seen| format!("{} ({})", seen.row.id, ports(&seen.ports)))
                .collect();
            let opens = if opens.is_empty() { String::new() } else { format!("# for {}", opens.join(", ")) };
            self.line(&format!("# {group} = [] {opens}"));
        }
    }

    fn this_host(&mut self, draft: &Draft<'_>) {
        self.line("\n");
        self.line("# This machine.");
        self.line("[[host]]");
        if draft.name != draft.findings.hostname {
            let hostname = &draft.findings.hostname;
            self.line(&format!("# The host name {hostname:?} cannot stand here as it is."));
        }
        self.line(&format!("name = \"{}\"", draft.name));
        if draft.own.is_empty() {
            self.line("# No address was found but those of loopback and the link. Replace this one, of an example.");
            self.list("addresses", [(draft.placeholder(0).to_string(), String::new())].into_iter());
        } else {
            let own = draft.own.iter().map(|(address, interface)| (address.to_string(), (*interface).to_owned()));
            self.list("addresses", own);
        }
        if !draft.left_out.is_empty() {
            let named = draft.left_out.iter().map(|(address, interface)| format!("{address} ({interface})"));
            self.line("# Left out, because they mean something else on other hosts:");
            self.line(&format!("#   {}", some_of(named)));
        }
        self.roles(draft);
        self.line(&format!("roles = [{}]", quoted(&draft.roles)));
        self.line("# The link to the console runs in SSH: `encrypted = true`. Only for managed hosts.");
        self.line("# encrypted = false");
        if let Some((_, is_primary)) = draft.peer {
            self.line(&format!("# From {HA_CONF}."));
            self.line(&format!("ha-peer = \"{}\"", peer_name(draft, is_primary)));
        } else if let Some(pair) = draft.findings.pair {
            let HaPair { primary, secondary } = pair;
            self.line(&format!(
                "# {HA_CONF} names {primary} and {secondary}; not exactly one of them is this machine."
            ));
        }
    }

    fn roles(&mut self, draft: &Draft<'_>) {
        let evidence = &draft.evidence;
        let rows_of = |role: &str| {
            let rows = evidence.seen.iter().filter(|seen| seen.roles.contains(role));
            some_of(rows.map(|seen| format!("{} {}", seen.row.id, ports(&seen.ports))))
        };
        if !evidence.likely.is_empty() {
            self.line("# A guess: the roles whose ports listen here.");
            evidence.likely.iter().for_each(|role| self.line(&format!("#   {role}: {}", rows_of(role))));
        } else if !draft.roles.is_disjoint(&evidence.possible) {
            self.line("# A guess: what listens here could be of any of these roles. Remove the wrong ones.");
            draft.roles.iter().for_each(|role| self.line(&format!("#   {role}: {}", rows_of(role))));
        } else {
            self.lines(
                "# NOT KNOWN: nothing that listens here tells the role. A policy needs one, so this says console. Correct\n\
                 # it: console, event-collector, event-processor, flow-processor, data-node, app-host and others.",
            );
        }
        let others: BTreeSet<&str> = evidence
            .seen
            .iter()
            .flat_map(|seen| &seen.roles)
            .copied()
            .filter(|role| !draft.roles.contains(role))
            .collect();
        if !others.is_empty() {
            self.line("# Less likely, by ports that other roles have as well:");
            others.iter().for_each(|role| self.line(&format!("#   {role}: {}", rows_of(role))));
        }
    }

    fn other_hosts(&mut self, draft: &Draft<'_>) {
        if let Some((address, is_primary)) = draft.peer {
            self.line("");
            let which = if is_primary { "primary" } else { "secondary" };
            self.line(&format!("# The {which} host of the pair, from {HA_CONF}. The roles are those of this host."));
            self.line("# Addresses that move between the two belong to the primary host alone.");
            self.line("[[host]]");
            self.line(&format!("name = \"{}\"", peer_name(draft, is_primary)));
            self.line(&format!("addresses = [\"{address}\"]"));
            self.line(&format!("roles = [{}]", quoted(&draft.roles)));
        }
        self.line("");
        if !draft.roles.contains(CONSOLE) {
            self.lines(
                "# NOT KNOWN: the console. A policy needs one; replace name and address, which are of an example.\n\
                 [[host]]",
            );
            let name = if draft.name == CONSOLE { "the-console" } else { CONSOLE };
            self.line(&format!("name = \"{name}\""));
            self.line(&format!("addresses = [\"{}\"]", draft.placeholder(1)));
            self.line(&format!("roles = [\"{CONSOLE}\"]"));
            self.line("");
        }
        self.lines(
            "# Every other appliance of the deployment, such as:\n\
             # [[host]]\n\
             # name = \"ep1\"\n\
             # addresses = [\"203.0.113.21\"]\n\
             # roles = [\"event-processor\", \"event-collector\"]",
        );
    }

    fn rows(&mut self, evidence: &Evidence<'_>) {
        self.line("");
        self.line("# Rows of the site's own: ports that the vendor's table does not have.");
        let example = match evidence.unknown.as_slice() {
            [] => "10050/tcp".to_owned(),
            [(port, protocol), ..] => {
                let named = evidence.unknown.iter().map(|listener| ports(&[*listener]));
                self.line(&format!("# Listens here and is not in it: {}.", some_of(named)));
                self.line("# What nobody needs from elsewhere stays closed once the policy enforces.");
                format!("{port}/{}", protocol.name())
            }
        };
        self.lines(&format!(
            "# [[allow]]\n\
             # name = \"monitoring\"\n\
             # ports = [\"{example}\"]\n\
             # from = [\"192.0.2.133\"]\n\
             # to = [\"appliance\"]"
        ));
    }
}

fn peer_name(draft: &Draft<'_>, is_primary: bool) -> String {
    /// Leaves room for the ending within what a host's name may have.
    const LONGEST: usize = 40;
    let name: String = draft.name.chars().take(LONGEST).collect();
    format!("{name}-{}", if is_primary { "primary" } else { "secondary" })
}

fn quoted(words: &BTreeSet<&str>) -> String {
    words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
}

fn ports(listeners: &[(u16, Protocol)]) -> String {
    let range = |(port, protocol): &(u16, Protocol)| {
        Ports::Range(*protocol, PortRange { first: *port, last: *port }).to_string()
    };
    some_of(listeners.iter().map(range)).replace(", ", " ")
}

fn some_of(words: impl Iterator<Item = String>) -> String {
    let mut words: Vec<String> = words.collect();
    let more = words.len().saturating_sub(NAMED);
    words.truncate(NAMED);
    let text = words.join(", ");
    if more == 0 { text } else { format!("{text} and {more} more") }
}
