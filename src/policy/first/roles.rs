//! Which roles the listeners of a host speak for.

use crate::policy::{Catalogue, Condition, Flow, Group, Ports, Row, RowKind, Scope, Tunnelled};
use crate::ruleset::Protocol;
use std::collections::{BTreeMap, BTreeSet};

/// A row of the catalogue, some of whose ports listen here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen<'c> {
    pub(super) row: &'c Row,
    /// Those that listen.
    pub(super) ports: Vec<(u16, Protocol)>,
    /// The roles that serve the row, in the order of names; none when it tells nothing about roles.
    pub(super) roles: BTreeSet<&'c str>,
    /// The features without which the row opens nothing.
    pub(super) features: Vec<&'c str>,
}

/// What the listeners say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Evidence<'c> {
    /// Rows with listeners, in the order of the catalogue.
    pub(super) seen: Vec<Seen<'c>>,
    /// The roles that are likely.
    pub(super) likely: BTreeSet<&'c str>,
    /// Roles of rows with listeners that none of the likely roles accounts for.
    pub(super) possible: BTreeSet<&'c str>,
    /// What listens and stands in no row.
    pub(super) unknown: Vec<(u16, Protocol)>,
}

impl<'c> Evidence<'c> {
    pub(super) fn weigh(catalogue: &'c Catalogue, listeners: &BTreeSet<(u16, Protocol)>) -> Self {
        let mut seen = Vec::new();
        let mut unknown: BTreeSet<_> = listeners.clone();
        // How many rows only this role serves, and how many of them have listeners.
        let mut telling: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for row in catalogue.rows.iter().filter(|row| row.kind == RowKind::Port) {
            let ports: Vec<_> = listeners.iter().copied().filter(|listener| is_in(row, *listener)).collect();
            unknown.retain(|listener| !ports.contains(listener));
            let roles = roles(row);
            if let (Some(role), 1) = (roles.first(), roles.len()) {
                let (all, listening) = telling.entry(role).or_default();
                *all += 1;
                *listening += usize::from(!ports.is_empty());
            }
            if !ports.is_empty() {
                seen.push(Seen { row, ports, roles, features: features(row) });
            }
        }
        // One row of many may be chance: rpcbind listens on most hosts.
        let is_likely = |(all, listening): &(usize, usize)| *listening >= 2 || *listening > 0 && listening * 2 >= *all;
        let likely: BTreeSet<_> =
            telling.iter().filter(|(_, counts)| is_likely(counts)).map(|(role, _)| *role).collect();
        let unaccounted = seen.iter().filter(|seen| seen.roles.is_disjoint(&likely));
        let possible = unaccounted.flat_map(|seen| &seen.roles).copied().collect();
        Self { seen, likely, possible, unknown: unknown.into_iter().collect() }
    }
}

fn is_in(row: &Row, (port, protocol): (u16, Protocol)) -> bool {
    row.ports.iter().any(|ports| {
        matches!(ports, Ports::Range(of, range) if *of == protocol && (range.first..=range.last).contains(&port))
    })
}

fn features(row: &Row) -> Vec<&str> {
    let mut features = Vec::new();
    for condition in &row.when {
        if let Condition::Feature(feature) = condition {
            features.push(feature.as_str());
        }
    }
    features
}

/// The roles by which a host listens to the row. None when every appliance may, or when it depends on what is not known
/// here: features, old versions, encrypted links.
fn roles(row: &Row) -> BTreeSet<&str> {
    let is_plain = row.when.iter().all(|condition| matches!(condition, Condition::NotFeature(_)));
    let for_all = |flow: &Flow| receivers(flow).any(|group| *group == Group::Appliance);
    if row.scope == Scope::Internal || row.tunnelled == Tunnelled::Only || !is_plain || row.flows.iter().any(for_all) {
        return BTreeSet::new();
    }
    // Of two sides that both may listen, a managed host may be anything.
    let is_open = |group: &Group| matches!(group, Group::ManagedHost | Group::HaPeer);
    let flows = row.flows.iter().filter(|flow| !receivers(flow).any(is_open));
    flows.flat_map(receivers).filter(|group| matches!(group, Group::Role(_))).map(Group::name).collect()
}

fn receivers(flow: &Flow) -> impl Iterator<Item = &Group> {
    [Some(&flow.to), flow.both.then_some(&flow.from)].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weigh(listeners: &[(u16, Protocol)]) -> Evidence<'static> {
        Evidence::weigh(Catalogue::embedded(), &listeners.iter().copied().collect())
    }

    fn tcp(ports: &[u16]) -> Vec<(u16, Protocol)> {
        ports.iter().map(|port| (*port, Protocol::Tcp)).collect()
    }

    #[test]
    fn rows_that_one_role_serves_tell_the_role() {
        let evidence = weigh(&tcp(&[22, 443, 514, 5432, 7803]));
        assert_eq!(evidence.likely, BTreeSet::from(["console"]));
        assert_eq!(evidence.possible, BTreeSet::new(), "a console takes syslog, too");
        assert_eq!(weigh(&[(2055, Protocol::Udp)]).likely, BTreeSet::from(["flow-processor"]));
        assert_eq!(weigh(&tcp(&[9000, 14433])).likely, BTreeSet::from(["app-host"]));
    }

    #[test]
    fn what_many_hosts_have_tells_little() {
        // SSH and RMI: every appliance; rpcbind: one of the console's many rows.
        let evidence = weigh(&tcp(&[22, 111, 9913, 32006]));
        assert_eq!(evidence.likely, BTreeSet::new());
        assert_eq!(evidence.possible, BTreeSet::from(["console"]));
        let collector = weigh(&tcp(&[514, 6514]));
        assert_eq!(collector.likely, BTreeSet::new());
        assert_eq!(collector.possible, BTreeSet::from(["console", "event-collector", "event-processor"]));
    }

    #[test]
    fn rows_behind_a_feature_name_it_and_tell_no_role() {
        let evidence = weigh(&tcp(&[2049]));
        assert_eq!(evidence.seen[0].features, ["nfs"]);
        assert_eq!((evidence.likely, evidence.possible), (BTreeSet::new(), BTreeSet::new()));
    }

    #[test]
    fn what_no_row_has_is_named() {
        assert_eq!(weigh(&tcp(&[22, 10_050])).unknown, tcp(&[10_050]));
        assert_eq!(weigh(&[(22, Protocol::Udp)]).unknown, [(22, Protocol::Udp)]);
    }
}
