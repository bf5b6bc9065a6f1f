//! Reading a site's policy.

use super::parties::{self, Vocabulary};
use super::{
    Allow, Deny, EgressMode, Fail, Host, Loaded, Logging, Members, Mode, OnTighten, Policy, RowAdjustment, dynamic,
    members,
};
use crate::policy::catalogue::CONSOLE;
use crate::policy::diagnostic::{Mistake, Report, listed, quoted};
use crate::policy::document::{self, Table, Text, report_twice};
use crate::policy::load::{is_empty, without_mark};
use crate::policy::{Catalogue, Diagnostics, Group, Ports, Row, Version, words};
use crate::ruleset::LogTarget;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use toml::Spanned;
use toml::de::DeTable;

/// The one format of the file so far.
const FORMAT: u32 = 1;

pub(super) const DOCUMENT_KEYS: [&str; 15] = [
    "format",
    "mode",
    "egress",
    "deny",
    "on-tighten",
    "fail",
    "version",
    "features",
    "allow-lockout",
    "log",
    "groups",
    "host",
    "allow",
    "row",
    "dynamic",
];
pub(super) const LOG_KEYS: [&str; 4] = ["to", "group", "rate", "burst"];
pub(super) const HOST_KEYS: [&str; 5] = ["name", "addresses", "roles", "encrypted", "ha-peer"];
pub(super) const ALLOW_KEYS: [&str; 4] = ["name", "ports", "from", "to"];
pub(super) const ROW_KEYS: [&str; 2] = ["enabled", "only-from"];

/// The netlink group, the rate and the burst of the log when the file names none.
const DEFAULT_GROUP: u16 = 0;
const DEFAULT_RATE: u32 = 10;
const DEFAULT_BURST: u32 = 20;

/// The highest rate and burst of logged packets: more would be an attack on the log.
const MOST_LOGGED: u32 = 10_000;

pub(super) fn policy(text: &str, label: &str, catalogue: &Catalogue) -> Result<Loaded, Diagnostics> {
    let mut report = Report::new(without_mark(text), label);
    let policy = read_document(&mut report, catalogue);
    report.finish(policy).map(|(policy, warnings)| Loaded { policy, warnings })
}

fn read_document(report: &mut Report<'_>, catalogue: &Catalogue) -> Option<Policy> {
    if is_empty(report.text()) {
        let mistake = Mistake::new("the policy is empty").expected("at least `format = 1` and one [[host]]");
        report.error(0..0, mistake);
        return None;
    }
    let document: Spanned<DeTable<'_>> = document::parse(report)?;
    let root = Table::document(&document, report);
    // A file of another format would only yield errors that lead astray.
    read_format(report, &root)?;
    root.check_keys(report, "a policy", &DOCUMENT_KEYS);
    let hosts = Hosts::read(report, &root, catalogue);
    let groups = read_groups(report, &root, catalogue);
    let version = read_version(report, &root, catalogue);
    let features = read_features(report, &root, catalogue);
    let vocabulary = Vocabulary { catalogue, hosts: &hosts, groups: &groups };
    let allows = read_allows(report, &root, &vocabulary);
    let rows = read_rows(report, &root, catalogue);
    let dynamic = dynamic::read(report, &root, &vocabulary, &rows);
    Some(Policy {
        mode: root
            .choice(report, "mode", &[("enforce", Mode::Enforce), ("observe", Mode::Observe)])
            .unwrap_or(Mode::Enforce),
        egress: root
            .choice(
                report,
                "egress",
                &[("off", EgressMode::Off), ("observe", EgressMode::Observe), ("enforce", EgressMode::Enforce)],
            )
            .unwrap_or(EgressMode::Off),
        deny: root.choice(report, "deny", &[("drop", Deny::Drop), ("reject", Deny::Reject)]).unwrap_or(Deny::Drop),
        on_tighten: root
            .choice(report, "on-tighten", &[("keep", OnTighten::Keep), ("cut", OnTighten::Cut)])
            .unwrap_or_default(),
        fail: root.choice(report, "fail", &[("closed", Fail::Closed), ("open", Fail::Open)]).unwrap_or(Fail::Closed),
        logging: read_logging(report, &root),
        features,
        allow_lockout: root.boolean(report, "allow-lockout", false),
        allows,
        rows,
        dynamic,
        groups,
        hosts: hosts.by_name,
        version: version?,
    })
}

fn read_format(report: &mut Report<'_>, root: &Table<'_>) -> Option<()> {
    let Some(value) = root.get("format") else {
        root.report_missing(report, "format", "1");
        return None;
    };
    let format = document::number(report, value, 0..=u32::MAX)?;
    if format != FORMAT {
        let mistake = Mistake::new(format!("the file is of format {format}, which this portward does not know"))
            .expected(format!("`format = {FORMAT}`"));
        report.error(value.span(), mistake);
        return None;
    }
    Some(())
}

fn read_version(report: &mut Report<'_>, root: &Table<'_>, catalogue: &Catalogue) -> Option<Version> {
    if root.get("version").is_none() {
        return catalogue.newest_version().cloned();
    }
    let word = root.text(report, "version")?;
    let known = || catalogue.versions.iter().map(Version::as_str);
    match word.value.parse::<Version>() {
        Ok(version) if catalogue.knows_version(&version) => Some(version),
        _ => {
            let mistake = Mistake::new(format!("unknown version {}", quoted(word.value)))
                .expected(format!("one of: {}, or another update pack of these", listed(known())))
                .suggest(word.value, known());
            report.error(word.span, mistake);
            None
        }
    }
}

fn read_features(report: &mut Report<'_>, root: &Table<'_>, catalogue: &Catalogue) -> BTreeSet<String> {
    let mut features = BTreeSet::new();
    for word in root.texts(report, "features") {
        let known = || catalogue.features.iter().map(String::as_str);
        if !known().any(|feature| feature == word.value) {
            let mistake = Mistake::new(format!("unknown feature {}", quoted(word.value)))
                .expected(format!("a feature: {}", listed(known())))
                .suggest(word.value, known());
            report.error(word.span, mistake);
        } else if !features.insert(word.value.to_owned()) {
            report_twice(report, &word);
        }
    }
    features
}

fn read_logging(report: &mut Report<'_>, root: &Table<'_>) -> Logging {
    let mut logging = Logging { target: Some(LogTarget::Kernel), per_second: DEFAULT_RATE, burst: DEFAULT_BURST };
    let Some(table) = root.table(report, "log") else { return logging };
    table.check_keys(report, "[log]", &LOG_KEYS);
    let group = table.number(report, "group", 0..=u32::from(u16::MAX)).and_then(|group| u16::try_from(group).ok());
    let targets = [
        ("kernel", Some(LogTarget::Kernel)),
        ("nflog", Some(LogTarget::Group(group.unwrap_or(DEFAULT_GROUP)))),
        ("off", None),
    ];
    let chosen = table.choice(report, "to", &targets);
    logging.target = chosen.unwrap_or(logging.target);
    if let Some(value) = table.get("group")
        && !matches!(logging.target, Some(LogTarget::Group(_)))
    {
        let mistake = Mistake::new("`group` is a netlink group, and the log does not go to one")
            .expected("it only beside `to = \"nflog\"`");
        report.error(value.span(), mistake);
    }
    logging.per_second = table.number(report, "rate", 1..=MOST_LOGGED).unwrap_or(logging.per_second);
    logging.burst = table.number(report, "burst", 1..=MOST_LOGGED).unwrap_or(logging.burst);
    logging
}

fn read_groups(report: &mut Report<'_>, root: &Table<'_>, catalogue: &Catalogue) -> BTreeMap<String, Members> {
    let mut groups = BTreeMap::new();
    let Some(table) = root.table(report, "groups") else { return groups };
    let known = || catalogue.external.iter().map(String::as_str);
    for key in table.keys() {
        if !known().any(|group| group == key.value) {
            let mistake = Mistake::new(format!("unknown group {}", quoted(key.value)))
                .expected(format!("a group of outsiders: {}", listed(known())));
            report.error(
                key.span,
                match catalogue.group(key.value) {
                    Some(_) => mistake.help("appliances are not listed here; each has a [[host]] with its roles"),
                    None => mistake.suggest(key.value, known()),
                },
            );
        } else if let Some(list) = table.list(report, key.value) {
            let members = members::read(report, &list);
            if !members.is_empty() {
                groups.insert(key.value.to_owned(), members);
            }
        }
    }
    groups
}

/// The hosts, and the names of those that were left out because something is wrong with them.
pub(super) struct Hosts {
    by_name: BTreeMap<String, Host>,
    pub(super) names: BTreeSet<String>,
}

impl Hosts {
    fn read(report: &mut Report<'_>, root: &Table<'_>, catalogue: &Catalogue) -> Self {
        let tables = root.tables(report, "host");
        let listed = root.get("host").is_some_and(|value| value.get_ref().as_array().is_none_or(|all| !all.is_empty()));
        if !listed {
            let mistake = Mistake::new("the policy has no hosts").expected("a [[host]] for every appliance");
            report.error(root.span.clone(), mistake);
        }
        let mut hosts = Self { by_name: BTreeMap::new(), names: BTreeSet::new() };
        let mut lines: BTreeMap<String, u32> = BTreeMap::new();
        let mut owners: BTreeMap<IpAddr, (String, u32)> = BTreeMap::new();
        let mut peers: Vec<(String, Text<'_>)> = Vec::new();
        // A host without a known role may be the console that would be missed.
        let mut console_possible = false;
        for table in &tables {
            table.check_keys(report, "a [[host]]", &HOST_KEYS);
            let line = report.line(table.span.start);
            let name = host_name(report, table, &mut lines, line);
            let shown = name.as_deref().unwrap_or("without a name");
            let addresses = host_addresses(report, table, shown, &mut owners);
            let roles = host_roles(report, table, catalogue);
            console_possible |= roles.as_ref().is_none_or(|roles| roles.contains(CONSOLE));
            let encrypted = table.boolean(report, "encrypted", false);
            if encrypted && roles.as_ref().is_some_and(|roles| roles.contains(CONSOLE)) {
                let span = table.get("encrypted").map_or(table.span.clone(), Spanned::span);
                let mistake = Mistake::new("`encrypted` has no effect on a console")
                    .help("it is about the link between the console and a managed host: set it there");
                report.warning(span, mistake);
            }
            let peer = table.text(report, "ha-peer");
            let Some(name) = name else { continue };
            hosts.names.insert(name.clone());
            if let Some(peer) = peer {
                peers.push((name.clone(), peer));
            }
            let roles = roles.unwrap_or_default();
            hosts.by_name.insert(name.clone(), Host { name, addresses, roles, encrypted, ha_peer: None, line });
        }
        if let Some(first) = tables.first()
            && !console_possible
        {
            let mistake = Mistake::new("no host is a console")
                .expected("one host with the role `console`")
                .help("give the console a [[host]] with `roles = [\"console\"]`");
            report.error(first.span.clone(), mistake);
        }
        hosts.pair(report, &peers);
        hosts
    }

    /// Makes pairs of what the hosts say of their peers; naming it on one of the two is enough.
    fn pair(&mut self, report: &mut Report<'_>, peers: &[(String, Text<'_>)]) {
        let said: BTreeMap<&str, (&str, u32)> =
            peers.iter().map(|(name, peer)| (name.as_str(), (peer.value, report.line(peer.span.start)))).collect();
        let mut named_by: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, peer) in peers {
            let names = || self.names.iter().map(String::as_str).filter(|known| known != name);
            let problem = if peer.value == name {
                Some(
                    Mistake::new(format!("the host {} cannot be its own peer", quoted(name)))
                        .expected("the name of another [[host]]"),
                )
            } else if !self.names.contains(peer.value) {
                Some(
                    Mistake::new(format!("unknown host {}", quoted(peer.value)))
                        .expected("the name of another [[host]]")
                        .suggest(peer.value, names()),
                )
            } else if let Some((other, line)) = said.get(peer.value).filter(|(other, _)| other != name) {
                Some(
                    Mistake::new(format!(
                        "{} says on line {line} that its peer is {}",
                        quoted(peer.value),
                        quoted(other)
                    ))
                    .expected("both hosts of a pair to name each other, or one of them to name none"),
                )
            } else {
                named_by.insert(peer.value, name).filter(|before| before != name).map(|before| {
                    let line = said.get(before).map_or(0, |(_, line)| *line);
                    Mistake::new(format!(
                        "{} is already the peer of {}, by line {line}",
                        quoted(peer.value),
                        quoted(before)
                    ))
                    .expected("pairs: a host has one peer")
                })
            };
            match problem {
                Some(mistake) => report.error(peer.span.clone(), mistake),
                None => {
                    for (one, other) in [(name.as_str(), peer.value), (peer.value, name.as_str())] {
                        if let Some(host) = self.by_name.get_mut(one) {
                            host.ha_peer = Some(other.to_owned());
                        }
                    }
                }
            }
        }
    }
}

fn host_name(
    report: &mut Report<'_>,
    table: &Table<'_>,
    lines: &mut BTreeMap<String, u32>,
    line: u32,
) -> Option<String> {
    let Some(name) = table.text(report, "name") else {
        if table.get("name").is_none() {
            table.report_missing(report, "name", "\"ep1\"");
        }
        return None;
    };
    if let Err(mistake) = words::check_host_name(name.value) {
        report.error(name.span, mistake);
        return None;
    }
    if let Some(before) = lines.get(name.value) {
        let mistake = Mistake::new(format!("the host {} is already there, on line {before}", quoted(name.value)))
            .expected("another name: every host stands once in the file");
        report.error(name.span, mistake);
        return None;
    }
    lines.insert(name.value.to_owned(), line);
    Some(name.value.to_owned())
}

fn host_addresses(
    report: &mut Report<'_>,
    table: &Table<'_>,
    host: &str,
    owners: &mut BTreeMap<IpAddr, (String, u32)>,
) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    table.require_entries(report, "addresses", "[\"10.0.0.21\"]");
    for word in table.texts(report, "addresses") {
        let address = match host_address(word.value) {
            Ok(address) => address,
            Err(mistake) => {
                report.error(word.span, mistake);
                continue;
            }
        };
        let line = report.line(word.span.start);
        if let Some((owner, before)) = owners.get(&address) {
            let mistake = if owner == host {
                Mistake::new(format!("the address {address} is already there, on line {before}"))
                    .expected("every address of the host once")
            } else {
                Mistake::new(format!("the address {address} is that of host {} too, on line {before}", quoted(owner)))
                    .expected("an address that no other host has")
            };
            report.error(word.span, mistake);
            continue;
        }
        owners.insert(address, (host.to_owned(), line));
        addresses.push(address);
    }
    addresses.sort_unstable();
    addresses
}

/// An address by which other hosts can reach one host.
fn host_address(word: &str) -> Result<IpAddr, Mistake> {
    if let Some((address, _)) = word.split_once('/')
        && address.parse::<IpAddr>().is_ok()
    {
        return Err(Mistake::new(format!("{} is a network", quoted(word)))
            .expected("the host's own address")
            .help(format!("write `{address}`")));
    }
    let address = words::address(word)?;
    let kind = match address {
        _ if address.is_loopback() => "a loopback address, which every host has",
        _ if address.is_unspecified() => "no host's address",
        _ if address.is_multicast() => "a multicast address",
        IpAddr::V4(address) if address.is_broadcast() => "the broadcast address",
        _ => return Ok(address),
    };
    Err(Mistake::new(format!("{} is {kind}", quoted(word))).expected("an address by which other hosts reach this one"))
}

/// The roles of a host; `None` when one could not be read.
fn host_roles(report: &mut Report<'_>, table: &Table<'_>, catalogue: &Catalogue) -> Option<BTreeSet<String>> {
    let mut complete = table.require_entries(report, "roles", "[\"event-processor\"]");
    let mut roles = BTreeSet::new();
    let words = table.texts(report, "roles");
    complete &=
        table.get("roles").and_then(|value| value.get_ref().as_array()).is_some_and(|all| all.len() == words.len());
    for word in words {
        let known = || catalogue.roles.iter().map(String::as_str);
        if !known().any(|role| role == word.value) {
            let mistake = Mistake::new(format!("unknown role {}", quoted(word.value)))
                .expected(format!("a role: {}", listed(known())))
                .suggest(word.value, known());
            report.error(word.span, mistake);
            complete = false;
        } else if !roles.insert(word.value.to_owned()) {
            report_twice(report, &word);
        }
    }
    complete.then_some(roles)
}

fn read_allows(report: &mut Report<'_>, root: &Table<'_>, vocabulary: &Vocabulary<'_>) -> BTreeMap<String, Allow> {
    let mut allows: BTreeMap<String, Allow> = BTreeMap::new();
    for table in root.tables(report, "allow") {
        table.check_keys(report, "an [[allow]]", &ALLOW_KEYS);
        let line = report.line(table.span.start);
        let name = allow_name(report, &table, &allows);
        let ports = allow_ports(report, &table);
        let from = parties::read(report, &table, "from", vocabulary);
        let to = parties::read(report, &table, "to", vocabulary);
        if let Some(name) = name {
            allows.insert(name.clone(), Allow { name, ports, from, to, line });
        }
    }
    allows
}

fn allow_name(report: &mut Report<'_>, table: &Table<'_>, allows: &BTreeMap<String, Allow>) -> Option<String> {
    let Some(name) = table.text(report, "name") else {
        if table.get("name").is_none() {
            table.report_missing(report, "name", "\"monitoring\"");
        }
        return None;
    };
    if let Err(mistake) = words::check_name(name.value) {
        report.error(name.span, mistake);
        return None;
    }
    if let Some(before) = allows.get(name.value) {
        let mistake =
            Mistake::new(format!("the allowance {} is already there, on line {}", quoted(name.value), before.line))
                .expected("another name");
        report.error(name.span, mistake);
        return None;
    }
    Some(name.value.to_owned())
}

fn allow_ports(report: &mut Report<'_>, table: &Table<'_>) -> Vec<Ports> {
    table.require_entries(report, "ports", "[\"10050/tcp\", \"echo/icmp\"]");
    let mut ports = BTreeSet::new();
    for word in table.texts(report, "ports") {
        match words::ports(word.value) {
            Ok(port) => {
                if !ports.insert(port) {
                    report_twice(report, &word);
                }
            }
            Err(mistake) => report.error(word.span, mistake),
        }
    }
    ports.into_iter().collect()
}

impl Hosts {
    /// Whether a group is this one host and nobody else, so that it does not matter which of the two a name means.
    pub(super) fn are_all_of(&self, group: &Group, host: &str) -> bool {
        let Group::Role(role) = group else { return false };
        let mut members = self.by_name.values().filter(|member| member.roles.contains(role));
        members.next().is_some_and(|only| only.name == host) && members.next().is_none()
    }
}

fn read_rows(report: &mut Report<'_>, root: &Table<'_>, catalogue: &Catalogue) -> BTreeMap<String, RowAdjustment> {
    let mut rows = BTreeMap::new();
    let Some(adjusted) = root.table(report, "row") else { return rows };
    for key in adjusted.keys() {
        if known_row(report, &key, catalogue).is_none() {
            continue;
        }
        let Some(value) = adjusted.get(key.value) else { continue };
        let header = format!("a table, `[row.{}]`", key.value);
        let Some(table) = document::table(report, value, &header) else { continue };
        table.check_keys(report, "a [row]", &ROW_KEYS);
        let enabled = table.boolean(report, "enabled", true);
        let only_from = read_only_from(report, &table);
        let line = report.line(key.span.start);
        rows.insert(key.value.to_owned(), RowAdjustment { enabled, only_from, line });
    }
    rows
}

/// The row with this id; an unknown one is reported.
pub(super) fn known_row<'c>(report: &mut Report<'_>, id: &Text<'_>, catalogue: &'c Catalogue) -> Option<&'c Row> {
    let row = catalogue.row(id.value);
    if row.is_none() {
        let mistake = Mistake::new(format!("unknown row {}", quoted(id.value)))
            .expected("the id of a row of the catalogue")
            .suggest(id.value, catalogue.rows.iter().map(|row| row.id.as_str()));
        report.error(id.span.clone(), mistake);
    }
    row
}

fn read_only_from(report: &mut Report<'_>, table: &Table<'_>) -> Option<Members> {
    let list = table.list(report, "only-from")?;
    if list.value.is_empty() {
        let mistake = Mistake::new("`only-from` is empty")
            .expected("at least one address or network")
            .help("to close the row, write `enabled = false`");
        report.error(list.span, mistake);
        return None;
    }
    Some(members::read(report, &list))
}
