//! Lists of parties: who may open a connection, and to whom.

use super::read::Hosts;
use super::{Members, Party, PartyKind};
use crate::policy::diagnostic::{Mistake, Report, listed, quoted};
use crate::policy::document::{Table, Text, report_twice};
use crate::policy::{Catalogue, Group, words};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// What parties can be named by.
pub(super) struct Vocabulary<'v> {
    pub(super) catalogue: &'v Catalogue,
    pub(super) hosts: &'v Hosts,
    pub(super) groups: &'v BTreeMap<String, Members>,
}

/// Reads a list of parties, which must be there.
pub(super) fn read(report: &mut Report<'_>, table: &Table<'_>, key: &str, vocabulary: &Vocabulary<'_>) -> Vec<Party> {
    table.require_entries(report, key, "[\"192.0.2.5\", \"admin\"]");
    let mut parties: BTreeMap<PartyKind, u32> = BTreeMap::new();
    for word in table.texts(report, key) {
        match party(&word, vocabulary) {
            Ok((kind, warning)) => {
                let line = report.line(word.span.start);
                if let Some(mistake) = warning {
                    report.warning(word.span.clone(), mistake);
                }
                match parties.entry(kind) {
                    Entry::Vacant(place) => {
                        place.insert(line);
                    }
                    Entry::Occupied(_) => report_twice(report, &word),
                }
            }
            Err(mistake) => report.error(word.span, mistake),
        }
    }
    parties.into_iter().map(|(kind, line)| Party { kind, line }).collect()
}

fn party(word: &Text<'_>, vocabulary: &Vocabulary<'_>) -> Result<(PartyKind, Option<Mistake>), Mistake> {
    let name = word.value;
    let group = vocabulary.catalogue.group(name);
    let host = vocabulary.hosts.names.get(name);
    match (group, host) {
        (Some(group), Some(host)) if !vocabulary.hosts.are_all_of(&group, host) => {
            let what = if matches!(group, Group::Role(_)) { "a role" } else { "a group" };
            Err(Mistake::new(format!("{} is both {what} and a host", quoted(name)))
                .expected("a name with one meaning")
                .help("give the host another name, or write its addresses here"))
        }
        (Some(group), _) => {
            let empty = matches!(&group, Group::External(_)) && !vocabulary.groups.contains_key(name);
            let warning = empty.then(|| {
                Mistake::new(format!("the group {} is empty, so this allows nothing", quoted(name)))
                    .help(format!("list its addresses in [groups]: `{name} = [...]`"))
            });
            Ok((PartyKind::Group(group), warning))
        }
        (None, Some(host)) => Ok((PartyKind::Host(host.clone()), None)),
        // What looks like an address is told what is wrong with it as such.
        (None, None) if name.contains([':', '/']) || name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') => {
            let read = words::network(name)?;
            let kind = match read.network {
                IpNet::V4(network) => PartyKind::Ipv4(network),
                IpNet::V6(network) => PartyKind::Ipv6(network),
            };
            Ok((kind, read.warning))
        }
        (None, None) => {
            let hosts = vocabulary.hosts.names.iter().map(String::as_str);
            Err(Mistake::new(format!("unknown role, group, host or address {}", quoted(name)))
                .expected(format!(
                    "an address, a network, a host, or one of: {}",
                    listed(vocabulary.catalogue.group_names())
                ))
                .suggest(name, vocabulary.catalogue.group_names().chain(hosts)))
        }
    }
}
