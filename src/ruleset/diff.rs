//! The difference of two rulesets, as changes in an order that the kernel takes within one transaction.
//!
//! What stays is not mentioned: its counters go on, and no packet ever misses it.

use super::{BaseChain, Chain, ChainPolicy, Name, PortRange, Rule, Ruleset, Set, Verdict, VerdictMap};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// One change of table `inet portward`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Make the table.
    AddTable,
    /// Delete the table with all it holds.
    DeleteTable,
    /// Make an empty set of the kind of this one (its elements are ignored: they are empty), for so many elements if a
    /// number is given.
    AddSet(Name, Set, Option<u32>),
    /// Make an empty verdict map; `true` for an interval map.
    AddMap(Name, bool),
    /// Make a chain without rules.
    AddChain(Name, Option<BaseChain>),
    /// Change the policy of a base chain; its other properties stay as given.
    SetChainPolicy(Name, BaseChain),
    /// Add these elements to a set, which holds none of them.
    AddElements(Name, Set),
    /// Delete these elements from a set, which holds all of them.
    DeleteElements(Name, Set),
    /// Add these elements to a verdict map (`true`: an interval map), which holds none of their ports.
    AddVerdicts(Name, VerdictMap),
    /// Delete these elements from a verdict map, which holds all of them.
    DeleteVerdicts(Name, VerdictMap),
    /// Insert a rule into a chain before the rule that had this index before the whole difference (one that stays),
    /// or append it at the end. Several insertions before the same rule keep their order.
    AddRule {
        /// The chain.
        chain: Name,
        /// The index, in the chain as it was before any change, of the rule that follows; `None`: at the end.
        before: Option<usize>,
        /// The rule.
        rule: Rule,
    },
    /// Delete the rule that had this index before the whole difference.
    DeleteRule {
        /// The chain.
        chain: Name,
        /// The index in the chain as it was before any change.
        index: usize,
    },
    /// Delete all rules of a chain that is going to be deleted.
    FlushChain(Name),
    /// Delete a chain that has no rules and that nothing refers to any more.
    DeleteChain(Name),
    /// Delete a set that no rule refers to any more.
    DeleteSet(Name, Set),
    /// Delete a verdict map that no rule refers to any more.
    DeleteMap(Name),
}

impl Change {
    /// Whether carrying out this change needs the kernel's handles of rules.
    pub fn needs_rule_handles(&self) -> bool {
        matches!(self, Self::AddRule { before: Some(_), .. } | Self::DeleteRule { .. })
    }

    /// Whether some packet may pass less far than before. What portward adds beside base chains only lets more pass; the
    /// rest may do either.
    pub fn may_tighten(&self) -> bool {
        match self {
            Self::AddTable | Self::AddSet(..) | Self::AddMap(..) | Self::AddChain(_, None) => false,
            Self::AddElements(..) | Self::AddVerdicts(..) | Self::AddRule { .. } => false,
            Self::AddChain(_, Some(_)) | Self::SetChainPolicy(..) => true,
            Self::DeleteTable | Self::DeleteSet(..) | Self::DeleteMap(..) | Self::DeleteChain(_) => true,
            Self::DeleteElements(..) | Self::DeleteVerdicts(..) => true,
            Self::DeleteRule { .. } | Self::FlushChain(_) => true,
        }
    }
}

/// The changes that lead from `current` (`None`: there is no table) to `desired` (`None`: there shall be none).
///
/// An object whose kind changed under the same name (a hash set that becomes an interval set, a chain that moves to
/// another hook) cannot be changed in place. portward's planner never asks for that; where a foreign hand made such an
/// object, the table is deleted and made anew in the same transaction.
pub fn diff(current: Option<&Ruleset>, desired: Option<&Ruleset>) -> Vec<Change> {
    match (current, desired) {
        (None, None) => Vec::new(),
        (Some(current), None) => {
            // Between two generations the kernel enters a chain that goes without its rules, and applies its policy.
            let opened = |base: BaseChain| BaseChain { policy: ChainPolicy::Accept, ..base };
            let base_chains = current.chains.iter().filter_map(|(name, chain)| Some((name, chain.base?)));
            base_chains
                .filter(|(_, base)| base.policy != ChainPolicy::Accept)
                .map(|(name, base)| Change::SetChainPolicy(name.clone(), opened(base)))
                .chain([Change::DeleteTable])
                .collect()
        }
        (None, Some(desired)) => {
            let mut changes = vec![Change::AddTable];
            changes.extend(changes_between(&Ruleset::default(), desired));
            changes
        }
        (Some(current), Some(desired)) if !can_change_in_place(current, desired) => {
            let mut changes = vec![Change::DeleteTable, Change::AddTable];
            changes.extend(changes_between(&Ruleset::default(), desired));
            changes
        }
        (Some(current), Some(desired)) => changes_between(current, desired),
    }
}

/// The changes that lead from one part of a table to another, such as the same maps with other elements; `None` when
/// that takes making the table anew.
pub fn diff_of_part(current: &Ruleset, desired: &Ruleset) -> Option<Vec<Change>> {
    can_change_in_place(current, desired).then(|| changes_between(current, desired))
}

fn can_change_in_place(current: &Ruleset, desired: &Ruleset) -> bool {
    let attachment = |chain: &Chain| chain.base.map(|base| (base.hook, base.priority));
    common(&current.sets, &desired.sets)
        .all(|(name, old, new)| old.same_kind(new) && current.sizes.get(name) == desired.sizes.get(name))
        && common(&current.maps, &desired.maps).all(|(_, old, new)| old.interval == new.interval)
        && common(&current.chains, &desired.chains).all(|(_, old, new)| attachment(old) == attachment(new))
        // The kernel has one name space for sets and maps.
        && desired.sets.keys().all(|name| !current.maps.contains_key(name))
        && desired.maps.keys().all(|name| !current.sets.contains_key(name))
}

/// The order is what makes the transaction valid at each step: what is referred to is made before the reference and
/// deleted after it, and an element's old verdict goes before its new one comes.
fn changes_between(current: &Ruleset, desired: &Ruleset) -> Vec<Change> {
    let mut changes = Vec::new();
    for (name, set) in added(&current.sets, &desired.sets) {
        changes.push(Change::AddSet(name.clone(), set.empty_like(), desired.sizes.get(name).copied()));
    }
    for (name, map) in added(&current.maps, &desired.maps) {
        changes.push(Change::AddMap(name.clone(), map.interval));
    }
    for (name, chain) in added(&current.chains, &desired.chains) {
        changes.push(Change::AddChain(name.clone(), chain.base));
    }
    for (name, old, new) in common(&current.chains, &desired.chains) {
        if let (Some(old), Some(new)) = (old.base, new.base)
            && old.policy != new.policy
        {
            changes.push(Change::SetChainPolicy(name.clone(), new));
        }
    }

    let mut verdicts_to_add = Vec::new();
    for (name, map) in added(&current.maps, &desired.maps) {
        push_verdicts(&mut verdicts_to_add, Change::AddVerdicts, name, map.interval, map.elements.clone());
    }
    for (name, old, new) in common(&current.maps, &desired.maps) {
        let (deleted, added) = sorted_difference(&old.elements, &new.elements);
        push_verdicts(&mut changes, Change::DeleteVerdicts, name, old.interval, deleted);
        push_verdicts(&mut verdicts_to_add, Change::AddVerdicts, name, new.interval, added);
    }
    // A map that goes refers to chains until its elements are gone.
    for (name, map) in added(&desired.maps, &current.maps) {
        push_verdicts(&mut changes, Change::DeleteVerdicts, name, map.interval, map.elements.clone());
    }

    for (name, old, new) in common(&current.sets, &desired.sets) {
        let (deleted, added) = set_difference(old, new);
        push_elements(&mut changes, Change::DeleteElements, name, deleted);
        push_elements(&mut changes, Change::AddElements, name, added);
    }
    for (name, set) in added(&current.sets, &desired.sets) {
        push_elements(&mut changes, Change::AddElements, name, set.clone());
    }

    for (name, chain) in added(&current.chains, &desired.chains) {
        changes.extend(chain.rules.iter().map(|rule| Change::AddRule {
            chain: name.clone(),
            before: None,
            rule: rule.clone(),
        }));
    }
    for (name, old, new) in common(&current.chains, &desired.chains) {
        rule_changes(&mut changes, name, &old.rules, &new.rules);
    }
    let chains_that_go: Vec<_> = added(&desired.chains, &current.chains).collect();
    for (name, _) in chains_that_go.iter().filter(|(_, chain)| !chain.rules.is_empty()) {
        changes.push(Change::FlushChain((*name).clone()));
    }

    changes.append(&mut verdicts_to_add);

    for (name, _) in chains_that_go {
        changes.push(Change::DeleteChain(name.clone()));
    }
    for (name, set) in added(&desired.sets, &current.sets) {
        changes.push(Change::DeleteSet(name.clone(), set.empty_like()));
    }
    for (name, _) in added(&desired.maps, &current.maps) {
        changes.push(Change::DeleteMap(name.clone()));
    }
    changes
}

/// The entries of `new` whose names `old` does not have.
fn added<'a, T>(old: &'a BTreeMap<Name, T>, new: &'a BTreeMap<Name, T>) -> impl Iterator<Item = (&'a Name, &'a T)> {
    new.iter().filter(|(name, _)| !old.contains_key(*name))
}

fn common<'a, T>(
    old: &'a BTreeMap<Name, T>,
    new: &'a BTreeMap<Name, T>,
) -> impl Iterator<Item = (&'a Name, &'a T, &'a T)> {
    old.iter().filter_map(|(name, before)| new.get(name).map(|after| (name, before, after)))
}

fn push_verdicts(
    changes: &mut Vec<Change>,
    change: fn(Name, VerdictMap) -> Change,
    name: &Name,
    interval: bool,
    elements: Vec<(PortRange, Verdict)>,
) {
    if !elements.is_empty() {
        changes.push(change(name.clone(), VerdictMap { interval, elements }));
    }
}

fn push_elements(changes: &mut Vec<Change>, change: fn(Name, Set) -> Change, name: &Name, elements: Set) {
    if !elements.is_empty() {
        changes.push(change(name.clone(), elements));
    }
}

/// What only `old` has, and what only `new` has. Both are of the same kind.
fn set_difference(old: &Set, new: &Set) -> (Set, Set) {
    match (old, new) {
        (Set::Ipv4Addresses(old), Set::Ipv4Addresses(new)) => {
            let (deleted, added) = sorted_difference(old, new);
            (Set::Ipv4Addresses(deleted), Set::Ipv4Addresses(added))
        }
        (Set::Ipv6Addresses(old), Set::Ipv6Addresses(new)) => {
            let (deleted, added) = sorted_difference(old, new);
            (Set::Ipv6Addresses(deleted), Set::Ipv6Addresses(added))
        }
        (Set::Ipv4Ranges(old), Set::Ipv4Ranges(new)) => {
            let (deleted, added) = sorted_difference(old, new);
            (Set::Ipv4Ranges(deleted), Set::Ipv4Ranges(added))
        }
        (Set::Ipv6Ranges(old), Set::Ipv6Ranges(new)) => {
            let (deleted, added) = sorted_difference(old, new);
            (Set::Ipv6Ranges(deleted), Set::Ipv6Ranges(added))
        }
        // Their elements are the kernel's.
        (Set::Record(_), Set::Record(_)) => (old.empty_like(), new.empty_like()),
        // Sets of different kinds are never compared: `can_change_in_place` has seen to that.
        (old, new) => (old.clone(), new.clone()),
    }
}

/// What only the first and what only the second of two sorted sequences has.
fn sorted_difference<T: Ord + Clone>(old: &[T], new: &[T]) -> (Vec<T>, Vec<T>) {
    let (mut deleted, mut added) = (Vec::new(), Vec::new());
    let (mut old, mut new) = (old, new);
    while let (Some(before), Some(after)) = (old.first(), new.first()) {
        match before.cmp(after) {
            Ordering::Equal => (old, new) = (&old[1..], &new[1..]),
            Ordering::Less => {
                deleted.push(before.clone());
                old = &old[1..];
            }
            Ordering::Greater => {
                added.push(after.clone());
                new = &new[1..];
            }
        }
    }
    deleted.extend_from_slice(old);
    added.extend_from_slice(new);
    (deleted, added)
}

/// So many pairs of rules of a chain are compared, which takes 4 MiB. Chains have some dozens of rules, unless a policy has a port
/// in thousands of its own rows.
const MOST_COMPARISONS: usize = 1 << 20;

/// Insertions and deletions that lead from one list of rules to the other: the fewest, unless what differs is very much.
fn rule_changes(changes: &mut Vec<Change>, chain: &Name, old: &[Rule], new: &[Rule]) {
    if old == new {
        return;
    }
    let kept = common_rules(old, new);
    let kept_old: BTreeSet<usize> = kept.iter().map(|&(index, _)| index).collect();
    for index in (0..old.len()).filter(|index| !kept_old.contains(index)) {
        changes.push(Change::DeleteRule { chain: chain.clone(), index });
    }
    let mut kept = kept.into_iter().peekable();
    for (index, rule) in new.iter().enumerate() {
        match kept.peek() {
            Some(&(_, next)) if next == index => {
                kept.next();
            }
            next => changes.push(Change::AddRule {
                chain: chain.clone(),
                before: next.map(|&(before, _)| before),
                rule: rule.clone(),
            }),
        }
    }
}

/// Pairs of indices of the rules that stay. Of what is left between the rules that both lists begin and end with, none does
/// when comparing each with each would take too much: somebody else may have put any number of rules there.
fn common_rules(old: &[Rule], new: &[Rule]) -> Vec<(usize, usize)> {
    let equal = |(one, other): &(&Rule, &Rule)| one == other;
    let begin = old.iter().zip(new).take_while(equal).count();
    let (old_rest, new_rest) = (&old[begin..], &new[begin..]);
    let end = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(equal).count();
    let (old_middle, new_middle) = (&old_rest[..old_rest.len() - end], &new_rest[..new_rest.len() - end]);
    let mut kept: Vec<_> = (0..begin).map(|index| (index, index)).collect();
    if (old_middle.len() + 1).saturating_mul(new_middle.len() + 1) <= MOST_COMPARISONS {
        let middle = longest_common_subsequence(old_middle, new_middle);
        kept.extend(middle.into_iter().map(|(i, j)| (begin + i, begin + j)));
    }
    kept.extend((0..end).map(|index| (old.len() - end + index, new.len() - end + index)));
    kept
}

/// Pairs of indices of the rules that stay. The table of their numbers is at most [`MOST_COMPARISONS`] long.
fn longest_common_subsequence(old: &[Rule], new: &[Rule]) -> Vec<(usize, usize)> {
    let width = new.len() + 1;
    let mut length = vec![0_u32; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            length[i * width + j] = if old[i] == new[j] {
                length[(i + 1) * width + j + 1] + 1
            } else {
                length[(i + 1) * width + j].max(length[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j, mut kept) = (0, 0, Vec::new());
    while i < old.len() && j < new.len() {
        if old[i] == new[j] {
            kept.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if length[(i + 1) * width + j] >= length[i * width + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    kept
}

/// Says in a few words what the changes do, for logs: `3 elements added, 1 deleted, 2 rules added`.
pub fn summary(changes: &[Change]) -> String {
    let (mut elements, mut rules, mut objects) = ([0_usize; 2], [0_usize; 2], [0_usize; 2]);
    let mut policies = 0_usize;
    for change in changes {
        match change {
            Change::AddElements(_, set) => elements[0] += set.len(),
            Change::DeleteElements(_, set) => elements[1] += set.len(),
            Change::AddVerdicts(_, map) => elements[0] += map.elements.len(),
            Change::DeleteVerdicts(_, map) => elements[1] += map.elements.len(),
            Change::AddRule { .. } => rules[0] += 1,
            Change::DeleteRule { .. } => rules[1] += 1,
            Change::AddTable | Change::AddSet(..) | Change::AddMap(..) | Change::AddChain(..) => objects[0] += 1,
            Change::DeleteTable | Change::DeleteSet(..) | Change::DeleteMap(..) | Change::DeleteChain(..) => {
                objects[1] += 1;
            }
            Change::SetChainPolicy(..) => policies += 1,
            Change::FlushChain(_) => {}
        }
    }
    let some = |count: usize, what: &str| if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") };
    let mut parts = Vec::new();
    for (what, [added, deleted]) in [("element", elements), ("rule", rules), ("object", objects)] {
        match (added, deleted) {
            (0, 0) => {}
            (added, 0) => parts.push(format!("{} added", some(added, what))),
            (0, deleted) => parts.push(format!("{} deleted", some(deleted, what))),
            (added, deleted) => parts.push(format!("{} added and {deleted} deleted", some(added, what))),
        }
    }
    match policies {
        0 => {}
        1 => parts.push("1 chain policy changed".to_owned()),
        policies => parts.push(format!("{policies} chain policies changed")),
    }
    if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::super::{Protocol, Statement};
    use super::*;

    /// A rule that is like no rule of another port.
    fn rule(port: u16) -> Rule {
        Rule::new([Statement::Protocol(Protocol::Tcp), Statement::DestinationPort(port)])
    }

    fn chain(ports: &[u16]) -> Ruleset {
        let rules = ports.iter().map(|port| rule(*port)).collect();
        Ruleset { chains: BTreeMap::from([("c".into(), Chain { base: None, rules })]), ..Ruleset::default() }
    }

    #[test]
    fn equal_rulesets_have_no_difference() {
        assert_eq!(diff(Some(&chain(&[1, 2])), Some(&chain(&[1, 2]))), []);
        assert_eq!(diff(None, None), []);
    }

    #[test]
    fn only_what_lets_more_pass_cannot_tighten() {
        let addresses = |last: &[u8]| Set::ipv4_addresses(last.iter().map(|last| [10, 0, 0, *last].into()).collect());
        let ruleset = |last: &[u8], ports: &[u16]| Ruleset {
            sets: BTreeMap::from([("s".into(), addresses(last))]),
            ..chain(ports)
        };
        let may_tighten = |old: Option<&Ruleset>, new: &Ruleset| diff(old, Some(new)).iter().any(Change::may_tighten);
        let old = ruleset(&[1], &[1]);
        assert!(!may_tighten(Some(&old), &old));
        assert!(!may_tighten(Some(&old), &ruleset(&[1, 2], &[1, 2])));
        assert!(may_tighten(Some(&old), &ruleset(&[2], &[1])));
        assert!(may_tighten(Some(&old), &ruleset(&[1], &[2])));
        assert!(may_tighten(Some(&old), &Ruleset::default()));
        let mut hooked = chain(&[1]);
        let base = BaseChain { hook: super::super::Hook::Output, priority: 0, policy: ChainPolicy::Accept };
        hooked.chains.insert("output".into(), Chain { base: Some(base), rules: Vec::new() });
        assert!(may_tighten(Some(&chain(&[1])), &hooked), "what was not looked at is looked at");
    }

    #[test]
    fn rules_that_stay_are_not_mentioned() {
        let changes = diff(Some(&chain(&[1, 2, 3])), Some(&chain(&[1, 4, 5, 3, 6])));
        let add = |before, port| Change::AddRule { chain: "c".into(), before, rule: rule(port) };
        let expected =
            [Change::DeleteRule { chain: "c".into(), index: 1 }, add(Some(2), 4), add(Some(2), 5), add(None, 6)];
        assert_eq!(changes, expected);
    }

    #[test]
    fn chains_of_very_many_rules_are_compared_at_their_ends() {
        let with_ends = |middle: &[u16]| chain(&[&[1], middle, &[2]].concat());
        let old: Vec<u16> = (100..40_100).collect();
        let new: Vec<u16> = (20_000..60_000).rev().collect();
        // A table of all pairs would take gigabytes.
        let changes = diff(Some(&with_ends(&old)), Some(&with_ends(&new)));
        let (deleted, added) = changes.split_at(old.len());
        assert!((1..).zip(deleted).all(|(index, change)| *change == Change::DeleteRule { chain: "c".into(), index }));
        let add = |port| Change::AddRule { chain: "c".into(), before: Some(1 + old.len()), rule: rule(port) };
        assert!(added.iter().eq(&new.iter().copied().map(add).collect::<Vec<_>>()));
        assert_eq!(added.len(), new.len());
        // A rule more or less is still one change.
        let more: Vec<u16> = [&old[..30_000], &[99], &old[30_000..]].concat();
        assert_eq!(diff(Some(&with_ends(&old)), Some(&with_ends(&more))).len(), 1);
    }

    #[test]
    fn an_element_that_moves_to_a_new_chain_goes_and_comes_after_the_chain_is_made() {
        let map = |target: &str| {
            let elements = vec![(PortRange::single(443), Verdict::Jump(target.into()))];
            Ruleset {
                maps: BTreeMap::from([("m".into(), VerdictMap { interval: false, elements })]),
                chains: BTreeMap::from([(target.into(), Chain { base: None, rules: vec![rule(1)] })]),
                ..Ruleset::default()
            }
        };
        let changes = diff(Some(&map("old")), Some(&map("new")));
        let position = |wanted: fn(&Change) -> bool| changes.iter().position(wanted).unwrap();
        let made = position(|change| matches!(change, Change::AddChain(..)));
        let gone = position(|change| matches!(change, Change::DeleteVerdicts(..)));
        let come = position(|change| matches!(change, Change::AddVerdicts(..)));
        let deleted = position(|change| matches!(change, Change::DeleteChain(..)));
        assert!(made < gone && gone < come && come < deleted, "{changes:?}");
    }

    #[test]
    fn a_set_that_changes_its_kind_makes_the_table_anew() {
        let set = |set| Ruleset { sets: BTreeMap::from([("s".into(), set)]), ..Ruleset::default() };
        let (hash, interval) = (set(Set::Ipv4Addresses(vec![])), set(Set::Ipv4Ranges(vec![])));
        assert_eq!(diff(Some(&hash), Some(&interval))[..2], [Change::DeleteTable, Change::AddTable]);
    }
}
