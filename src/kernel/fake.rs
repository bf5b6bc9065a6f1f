//! A kernel in memory, under the real one's rules: transactions are all or nothing, and references are checked.
#![forbid(unsafe_code)]

use super::{Error, Kernel, Snapshot, next_generation};
use crate::ruleset::diff::Change;
use crate::ruleset::{Address, AddressRange, Chain, Name, Rule, Ruleset, Set, Statement, VerdictMap};
use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet};

/// Holds a table in memory. For tests: of the daemon's decisions, and of differences, without root.
#[derive(Debug, Clone)]
pub struct FakeKernel {
    /// What the kernel holds. Change it to play somebody else; then count [`Snapshot::generation`] up.
    pub snapshot: Snapshot,
    /// Errors for the next commits, first to last; nothing is applied then.
    pub failures: Vec<Error>,
    /// The number of commits that were applied.
    pub commits: usize,
}

impl FakeKernel {
    /// A kernel with this table, or without one.
    pub fn new(table: Option<Ruleset>) -> Self {
        let snapshot = Snapshot { generation: 1, table, foreign: Vec::new() };
        Self { snapshot, failures: Vec::new(), commits: 0 }
    }
}

impl Kernel for FakeKernel {
    fn dump(&mut self) -> Result<Snapshot, Error> {
        Ok(self.snapshot.clone())
    }

    fn commit(&mut self, changes: &[Change], generation: u32) -> Result<u32, Error> {
        if !self.failures.is_empty() {
            return Err(self.failures.remove(0));
        }
        if generation != self.snapshot.generation {
            return Err(Error::Changed);
        }
        if changes.is_empty() {
            return Ok(generation);
        }
        let mut transaction =
            Transaction { handles: handles(self.snapshot.table.as_ref()), table: self.snapshot.table.clone() };
        for change in changes {
            transaction
                .apply(change)
                .and_then(|()| transaction.check_references())
                .map_err(|source| Error::Refused { doing: format!("{change:?}"), source })?;
        }
        let rebuilt = changes.contains(&Change::DeleteTable);
        if rebuilt {
            self.snapshot.foreign.clear();
        }
        self.snapshot.table = transaction.table;
        self.snapshot.generation = next_generation(generation);
        self.commits += 1;
        Ok(self.snapshot.generation)
    }

    fn replace(&mut self, desired: Option<&Ruleset>) -> Result<(), Error> {
        if !self.failures.is_empty() {
            return Err(self.failures.remove(0));
        }
        let generation = next_generation(self.snapshot.generation);
        self.snapshot = Snapshot { generation, table: desired.cloned(), foreign: Vec::new() };
        self.commits += 1;
        Ok(())
    }

    fn generation(&mut self) -> Result<u32, Error> {
        Ok(self.snapshot.generation)
    }
}

/// Where each rule of a chain stood before the transaction; `None` for a rule that it added.
type Handles = BTreeMap<Name, Vec<Option<usize>>>;

fn handles(table: Option<&Ruleset>) -> Handles {
    let chains = table.into_iter().flat_map(|table| &table.chains);
    chains.map(|(name, chain)| (name.clone(), (0..chain.rules.len()).map(Some).collect())).collect()
}

struct Transaction {
    table: Option<Ruleset>,
    handles: Handles,
}

impl Transaction {
    fn apply(&mut self, change: &Change) -> Result<(), Errno> {
        if *change == Change::AddTable {
            return match self.table {
                Some(_) => Err(Errno::EEXIST),
                None => {
                    self.table = Some(Ruleset::default());
                    Ok(())
                }
            };
        }
        let table = self.table.as_mut().ok_or(Errno::ENOENT)?;
        match change {
            Change::AddTable => {}
            Change::DeleteTable => {
                self.table = None;
                self.handles.clear();
            }
            Change::AddSet(name, set, size) => {
                if table.maps.contains_key(name) || table.sets.contains_key(name) || !set.is_empty() {
                    return Err(Errno::EEXIST);
                }
                table.sets.insert(name.clone(), set.clone());
                table.sizes.extend(size.map(|size| (name.clone(), size)));
            }
            Change::AddMap(name, interval) => {
                if table.maps.contains_key(name) || table.sets.contains_key(name) {
                    return Err(Errno::EEXIST);
                }
                table.maps.insert(name.clone(), VerdictMap { interval: *interval, elements: Vec::new() });
            }
            Change::AddChain(name, base) => {
                if table.chains.contains_key(name) {
                    return Err(Errno::EEXIST);
                }
                table.chains.insert(name.clone(), Chain { base: *base, rules: Vec::new() });
                self.handles.insert(name.clone(), Vec::new());
            }
            Change::SetChainPolicy(name, base) => {
                let chain = table.chains.get_mut(name).ok_or(Errno::ENOENT)?;
                chain.base.as_mut().ok_or(Errno::EOPNOTSUPP)?.policy = base.policy;
            }
            Change::AddElements(name, set) => change_set(table, name, set, Insert)?,
            Change::DeleteElements(name, set) => change_set(table, name, set, Remove)?,
            Change::AddVerdicts(name, map) => {
                let of = table.maps.get_mut(name).filter(|of| of.interval == map.interval).ok_or(Errno::ENOENT)?;
                Insert.run(&mut of.elements, &map.elements)?;
                if !of.elements.windows(2).all(|pair| pair[0].0.last < pair[1].0.first) {
                    return Err(Errno::EEXIST);
                }
            }
            Change::DeleteVerdicts(name, map) => {
                Remove.run(&mut table.maps.get_mut(name).ok_or(Errno::ENOENT)?.elements, &map.elements)?;
            }
            Change::AddRule { rule, .. } if rule.statements.iter().any(|one| matches!(one, Statement::Unknown(_))) => {
                return Err(Errno::EINVAL);
            }
            Change::AddRule { chain, before, rule } => {
                let handles = self.handles.get_mut(chain).ok_or(Errno::ENOENT)?;
                let place = match before {
                    Some(before) => handles.iter().position(|handle| *handle == Some(*before)).ok_or(Errno::ENOENT)?,
                    None => handles.len(),
                };
                handles.insert(place, None);
                rules_of(table, chain)?.insert(place, rule.clone());
            }
            Change::DeleteRule { chain, index } => {
                let handles = self.handles.get_mut(chain).ok_or(Errno::ENOENT)?;
                let place = handles.iter().position(|handle| *handle == Some(*index)).ok_or(Errno::ENOENT)?;
                handles.remove(place);
                rules_of(table, chain)?.remove(place);
            }
            Change::FlushChain(name) => {
                rules_of(table, name)?.clear();
                self.handles.insert(name.clone(), Vec::new());
            }
            Change::DeleteChain(name) => {
                if !table.chains.get(name).ok_or(Errno::ENOENT)?.rules.is_empty() {
                    return Err(Errno::EBUSY);
                }
                table.chains.remove(name);
            }
            Change::DeleteSet(name, _) | Change::DeleteMap(name) if is_looked_up(table, name) => {
                return Err(Errno::EBUSY);
            }
            Change::DeleteSet(name, _) => {
                table.sets.remove(name).ok_or(Errno::ENOENT)?;
                table.sizes.remove(name);
            }
            Change::DeleteMap(name) => {
                table.maps.remove(name).ok_or(Errno::ENOENT)?;
            }
        }
        Ok(())
    }

    /// Whether all that rules and elements name is there, and no chain leads back to itself.
    fn check_references(&self) -> Result<(), Errno> {
        let Some(table) = &self.table else { return Ok(()) };
        let mut jumps: BTreeMap<&Name, BTreeSet<&Name>> = BTreeMap::new();
        for (name, chain) in &table.chains {
            for statement in chain.rules.iter().flat_map(|rule| &rule.statements) {
                match statement {
                    Statement::InSet(_, family, set) => {
                        let set = table.sets.get(set).ok_or(Errno::ENOENT)?;
                        if set.family() != *family || set.record().is_some_and(|record| record.with_port) {
                            return Err(Errno::EINVAL);
                        }
                    }
                    Statement::Record(_, record, set) => {
                        let set = table.sets.get(set).ok_or(Errno::ENOENT)?;
                        if set.record() != Some(*record) {
                            return Err(Errno::EINVAL);
                        }
                    }
                    Statement::PortVerdict(_, _, map) => {
                        let map = table.maps.get(map).ok_or(Errno::ENOENT)?;
                        let targets = map.elements.iter().filter_map(|(_, verdict)| verdict.target());
                        jumps.entry(name).or_default().extend(targets);
                    }
                    Statement::Verdict(verdict) => jumps.entry(name).or_default().extend(verdict.target()),
                    _ => {}
                }
            }
        }
        let of_maps = table.maps.values().flat_map(|map| &map.elements).filter_map(|(_, verdict)| verdict.target());
        for target in jumps.values().flatten().copied().chain(of_maps) {
            let chain = table.chains.get(target).ok_or(Errno::EBUSY)?;
            if chain.base.is_some() {
                return Err(Errno::EOPNOTSUPP);
            }
        }
        if jumps.keys().any(|start| leads_to(&jumps, start, start, &mut BTreeSet::new())) {
            return Err(Errno::ELOOP);
        }
        Ok(())
    }
}

fn leads_to<'n>(
    jumps: &BTreeMap<&'n Name, BTreeSet<&'n Name>>,
    from: &'n Name,
    wanted: &'n Name,
    seen: &mut BTreeSet<&'n Name>,
) -> bool {
    jumps
        .get(from)
        .into_iter()
        .flatten()
        .any(|next| *next == wanted || (seen.insert(next) && leads_to(jumps, next, wanted, seen)))
}

/// Whether a rule asks this set or map.
fn is_looked_up(table: &Ruleset, name: &Name) -> bool {
    let mut statements = table.chains.values().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.statements);
    statements.any(|statement| {
        matches!(statement, Statement::InSet(_, _, asked) | Statement::PortVerdict(_, _, asked) | Statement::Record(_, _, asked) if asked == name)
    })
}

fn rules_of<'t>(table: &'t mut Ruleset, chain: &Name) -> Result<&'t mut Vec<Rule>, Errno> {
    table.chains.get_mut(chain).map(|chain| &mut chain.rules).ok_or(Errno::ENOENT)
}

/// A way to change sorted elements, for elements of every type.
trait Operation {
    fn run<T: Ord + Clone>(&self, elements: &mut Vec<T>, of: &[T]) -> Result<(), Errno>;
}

struct Insert;
struct Remove;

impl Operation for Insert {
    fn run<T: Ord + Clone>(&self, elements: &mut Vec<T>, of: &[T]) -> Result<(), Errno> {
        for element in of {
            match elements.binary_search(element) {
                Ok(_) => return Err(Errno::EEXIST),
                Err(place) => elements.insert(place, element.clone()),
            }
        }
        Ok(())
    }
}

impl Operation for Remove {
    fn run<T: Ord + Clone>(&self, elements: &mut Vec<T>, of: &[T]) -> Result<(), Errno> {
        for element in of {
            let place = elements.binary_search(element).map_err(|_| Errno::ENOENT)?;
            elements.remove(place);
        }
        Ok(())
    }
}

fn change_set(table: &mut Ruleset, name: &Name, elements: &Set, operation: impl Operation) -> Result<(), Errno> {
    let set = table.sets.get_mut(name).ok_or(Errno::ENOENT)?;
    match (&mut *set, elements) {
        (Set::Ipv4Addresses(of), Set::Ipv4Addresses(elements)) => operation.run(of, elements)?,
        (Set::Ipv6Addresses(of), Set::Ipv6Addresses(elements)) => operation.run(of, elements)?,
        (Set::Ipv4Ranges(of), Set::Ipv4Ranges(elements)) => operation.run(of, elements)?,
        (Set::Ipv6Ranges(of), Set::Ipv6Ranges(elements)) => operation.run(of, elements)?,
        (Set::Record(of), Set::Record(kind)) if of == kind => {}
        _ => return Err(Errno::EINVAL),
    }
    let disjoint = match set {
        Set::Ipv4Ranges(ranges) => are_disjoint(ranges),
        Set::Ipv6Ranges(ranges) => are_disjoint(ranges),
        Set::Ipv4Addresses(_) | Set::Ipv6Addresses(_) | Set::Record(_) => true,
    };
    if disjoint { Ok(()) } else { Err(Errno::EEXIST) }
}

fn are_disjoint<A: Address>(ranges: &[AddressRange<A>]) -> bool {
    ranges.windows(2).all(|pair| pair[0].last < pair[1].first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing;
    use crate::ruleset::diff::diff;
    use crate::ruleset::{AddressSide, BaseChain, ChainPolicy, Family, Hook, PortKey, PortRange, Protocol, Verdict};
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    proptest! {
        #[test]
        fn the_difference_applied_to_one_ruleset_gives_the_other(
            a in proptest::option::of(testing::any_ruleset()),
            b in proptest::option::of(testing::any_ruleset()),
        ) {
            let mut kernel = FakeKernel::new(a.clone());
            let changes = diff(a.as_ref(), b.as_ref());
            kernel.commit(&changes, 1).unwrap();
            prop_assert_eq!(&kernel.snapshot.table, &b);
            prop_assert_eq!(diff(kernel.snapshot.table.as_ref(), b.as_ref()), vec![]);
        }
    }

    #[test]
    fn a_transaction_is_all_or_nothing() {
        let mut kernel = FakeKernel::new(None);
        let changes = [Change::AddTable, Change::AddChain("a".into(), None), Change::DeleteChain("b".into())];
        assert!(matches!(kernel.commit(&changes, 1), Err(Error::Refused { source: Errno::ENOENT, .. })));
        assert_eq!(kernel.snapshot.table, None);
        assert_eq!(kernel.commits, 0);
    }

    #[test]
    fn references_must_lead_somewhere_and_never_in_a_circle() {
        let chain = |target: &str| Change::AddRule {
            chain: "a".into(),
            before: None,
            rule: Rule::new([Statement::Verdict(Verdict::Jump(target.into()))]),
        };
        for target in ["missing", "a"] {
            let changes = [Change::AddTable, Change::AddChain("a".into(), None), chain(target)];
            assert!(FakeKernel::new(None).commit(&changes, 1).is_err(), "{target}");
        }
        let element = VerdictMap { interval: false, elements: vec![(PortRange::single(1), Verdict::Jump("a".into()))] };
        let mut kernel = FakeKernel::new(None);
        let changes = [
            Change::AddTable,
            Change::AddMap("m".into(), false),
            Change::AddChain("a".into(), None),
            Change::AddVerdicts("m".into(), element),
        ];
        let generation = kernel.commit(&changes, 1).unwrap();
        let busy = kernel.commit(&[Change::DeleteChain("a".into())], generation);
        assert!(matches!(busy, Err(Error::Refused { source: Errno::EBUSY, .. })), "{busy:?}");
    }

    #[test]
    fn a_stale_generation_changes_nothing() {
        let mut kernel = FakeKernel::new(None);
        assert_eq!(kernel.commit(&[Change::AddTable], 7), Err(Error::Changed));
        assert_eq!(kernel.snapshot.table, None);
    }
    /// A table in which chain `input` uses all of the others.
    fn example() -> FakeKernel {
        let input = Chain {
            base: Some(BaseChain { hook: Hook::Input, priority: 0, policy: ChainPolicy::Drop }),
            rules: vec![
                Rule::new([Statement::InSet(AddressSide::Source, Family::Ipv4, "peers".into())]),
                Rule::new([Statement::PortVerdict(Protocol::Tcp, PortKey::Destination, "ports".into())]),
            ],
        };
        let elements = vec![(PortRange { first: 10, last: 20 }, Verdict::Jump("row".into()))];
        FakeKernel::new(Some(Ruleset {
            sets: [("peers".into(), Set::ipv4_addresses(vec![Ipv4Addr::LOCALHOST]))].into(),
            sizes: BTreeMap::new(),
            maps: [("ports".into(), VerdictMap { interval: true, elements })].into(),
            chains: [("input".into(), input), ("row".into(), Chain::default())].into(),
        }))
    }

    fn refusal(changes: &[Change]) -> Errno {
        let mut kernel = example();
        let Err(Error::Refused { source, .. }) = kernel.commit(changes, 1) else { panic!("not refused: {changes:?}") };
        assert_eq!(kernel.snapshot, example().snapshot, "a refused commit changed something");
        source
    }

    fn rule(statement: Statement) -> Change {
        Change::AddRule { chain: "row".into(), before: None, rule: Rule::new([statement]) }
    }

    fn verdicts(first: u16, last: u16, verdict: Verdict) -> Change {
        let elements = vec![(PortRange { first, last }, verdict)];
        Change::AddVerdicts("ports".into(), VerdictMap { interval: true, elements })
    }

    #[test]
    fn what_is_used_cannot_be_deleted() {
        for change in [
            Change::DeleteChain("row".into()),
            Change::DeleteChain("input".into()),
            Change::DeleteMap("ports".into()),
            Change::DeleteSet("peers".into(), Set::ipv4_addresses(vec![])),
        ] {
            assert_eq!(refusal(&[change]), Errno::EBUSY);
        }
    }

    #[test]
    fn nothing_is_made_or_deleted_twice() {
        let peers = |last| Set::ipv4_addresses(vec![Ipv4Addr::new(127, 0, 0, last)]);
        assert_eq!(refusal(&[Change::AddTable]), Errno::EEXIST);
        assert_eq!(refusal(&[Change::AddMap("peers".into(), false)]), Errno::EEXIST);
        assert_eq!(refusal(&[Change::AddChain("row".into(), None)]), Errno::EEXIST);
        assert_eq!(refusal(&[Change::AddElements("peers".into(), peers(1))]), Errno::EEXIST);
        assert_eq!(refusal(&[Change::DeleteElements("peers".into(), peers(2))]), Errno::ENOENT);
        let deletion = Change::DeleteRule { chain: "input".into(), index: 1 };
        assert_eq!(refusal(&[deletion.clone(), deletion]), Errno::ENOENT);
    }

    #[test]
    fn what_is_missing_overlaps_or_is_unknown_is_refused() {
        let in_set = |family, set: &str| rule(Statement::InSet(AddressSide::Source, family, set.into()));
        assert_eq!(refusal(&[in_set(Family::Ipv4, "missing")]), Errno::ENOENT);
        assert_eq!(refusal(&[in_set(Family::Ipv6, "peers")]), Errno::EINVAL);
        let in_map = |map: &str| rule(Statement::PortVerdict(Protocol::Tcp, PortKey::Destination, map.into()));
        assert_eq!(refusal(&[in_map("missing")]), Errno::ENOENT);
        assert_eq!(refusal(&[in_map("ports")]), Errno::ELOOP);
        assert_eq!(refusal(&[verdicts(1, 1, Verdict::Goto("input".into()))]), Errno::EOPNOTSUPP);
        assert_eq!(refusal(&[verdicts(20, 30, Verdict::Drop)]), Errno::EEXIST);
        assert_eq!(refusal(&[rule(Statement::Unknown("meta mark".into()))]), Errno::EINVAL);
    }
}
