//! Bringing the kernel to a desired state and keeping it there. Knows no files, no time and no tokio.

use crate::kernel::{self, Kernel, Snapshot};
use crate::plan::Part;
use crate::ruleset::Ruleset;
use crate::ruleset::diff::{Change, diff, summary};
use std::collections::VecDeque;
use thiserror::Error;

/// How often one request begins anew when others keep changing the kernel's ruleset meanwhile; then the table is replaced.
const ATTEMPTS: usize = 8;
/// How often it is read for one attempt. The kernel's side has patience of its own.
const READS: usize = 2;
/// How many of its own generations it remembers. The kernel tells of each a moment later.
const REMEMBERED: usize = 256;

/// Holds what was last committed, so that a change costs what it changes and not what is there.
#[derive(Debug)]
pub struct Reconciler<K> {
    kernel: K,
    /// What our table holds, and the ruleset generation at which that was true; `None`: must be read first.
    committed: Option<Snapshot>,
    /// Whether `committed` is what was last asked for, so that a part of it can be changed without looking at the rest.
    in_step: bool,
    /// The generations that its own last commits have led to.
    own: VecDeque<u32>,
}

/// What a request has led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The changes in a few words; `nothing` when there were none.
    pub changes: String,
    /// How many changes there were.
    pub count: usize,
    /// Whether packets that passed before may be denied now.
    pub may_tighten: bool,
    /// The ruleset generation at which the kernel holds the desired state.
    pub generation: u32,
    /// What foreign hands had put into the table beyond what portward can express, in words; it is gone.
    pub foreign: Vec<String>,
}

impl Outcome {
    /// Nothing had to be changed.
    pub fn nothing(generation: u32) -> Self {
        Self { changes: summary(&[]), count: 0, may_tighten: false, generation, foreign: Vec::new() }
    }

    /// Whether the kernel already held the desired state.
    pub fn is_nothing(&self) -> bool {
        self.count == 0
    }
}

/// Why the kernel does not hold the desired state.
#[derive(Debug, Error)]
pub enum Error {
    /// The kernel's answer.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
}

impl<K: Kernel> Reconciler<K> {
    /// Nothing is read before it is needed.
    pub fn new(kernel: K) -> Self {
        Self { kernel, committed: None, in_step: false, own: VecDeque::new() }
    }

    /// What our table holds: as last committed, or read from the kernel.
    ///
    /// # Errors
    ///
    /// The table cannot be read.
    pub fn snapshot(&mut self) -> Result<&Snapshot, Error> {
        let snapshot = match self.committed.take() {
            Some(snapshot) => snapshot,
            None => self.read()?,
        };
        Ok(self.committed.insert(snapshot))
    }

    /// The changes that [`Reconciler::apply`] or, without a desired ruleset, [`Reconciler::remove`] would make.
    ///
    /// # Errors
    ///
    /// The table cannot be read.
    pub fn changes(&mut self, desired: Option<&Ruleset>) -> Result<Vec<Change>, Error> {
        Ok(changes(self.snapshot()?, desired))
    }

    /// Makes the kernel hold this ruleset, by the difference to what it holds.
    ///
    /// # Errors
    ///
    /// See [`enum@Error`]; the table is as it was before.
    pub fn apply(&mut self, desired: &Ruleset) -> Result<Outcome, Error> {
        self.set(Some(desired))
    }

    /// Makes the kernel hold this ruleset, which differs from the one that was last applied or verified at most in the ports
    /// that are open in it ([`crate::plan::open`]). Costs what is open, not what there is: neither of the two rulesets is
    /// read or copied beyond that part. Where this cannot be done, it is an [`Reconciler::apply`].
    ///
    /// # Errors
    ///
    /// See [`enum@Error`]; the table is as it was before.
    pub fn apply_part(&mut self, desired: &Ruleset) -> Result<Outcome, Error> {
        match self.try_part(desired) {
            Some(outcome) => Ok(outcome),
            None => self.apply(desired),
        }
    }

    /// Removes the table.
    ///
    /// # Errors
    ///
    /// See [`enum@Error`]; the table is as it was before.
    pub fn remove(&mut self) -> Result<Outcome, Error> {
        self.set(None)
    }

    /// Compares the table with what it should be, if the kernel's ruleset has changed since the last commit, and
    /// repairs it.
    ///
    /// # Errors
    ///
    /// See [`enum@Error`].
    pub fn verify(&mut self, desired: &Ruleset) -> Result<Outcome, Error> {
        if let Some(snapshot) = &self.committed
            && self.kernel.generation()? != snapshot.generation
        {
            self.committed = None;
        }
        self.apply(desired)
    }

    /// The table must be read before anything is said or done about it.
    pub fn forget(&mut self) {
        self.committed = None;
    }

    /// Others have changed the ruleset outside our table, and this was the only change since the last one known, so
    /// that what we know of our table stays true. Spares the next commit a dump.
    pub fn changed_elsewhere(&mut self, generation: u32) {
        if let Some(snapshot) = &mut self.committed
            // Generations wrap around, and the kernel skips 0.
            && generation == snapshot.generation.wrapping_add(1).max(1)
        {
            snapshot.generation = generation;
        }
    }

    /// The generation up to which our table is known; `None` when it must be read.
    pub fn generation(&self) -> Option<u32> {
        self.committed.as_ref().map(|snapshot| snapshot.generation)
    }

    /// Whether this generation is one that a commit of this reconciler has led to, of the last few.
    pub fn is_own(&self, generation: u32) -> bool {
        self.own.contains(&generation)
    }

    fn remember_own(&mut self, generation: u32) {
        if self.own.len() == REMEMBERED {
            self.own.pop_front();
        }
        self.own.push_back(generation);
    }

    /// `None`: nothing is applied, or nobody knows; what is known of the table is right in either case.
    fn try_part(&mut self, desired: &Ruleset) -> Option<Outcome> {
        if !self.in_step {
            return None;
        }
        let snapshot = self.committed.as_mut()?;
        let table = snapshot.table.as_mut()?;
        let part = Part::of(desired);
        let changes = Part::of(table).changes_to(&part)?;
        if !changes.is_empty() {
            match self.kernel.commit(&changes, snapshot.generation) {
                Ok(generation) => snapshot.generation = generation,
                Err(_) => {
                    self.committed = None;
                    return None;
                }
            }
            part.put_into(table);
        }
        let generation = snapshot.generation;
        if !changes.is_empty() {
            self.remember_own(generation);
        }
        let may_tighten = changes.iter().any(Change::may_tighten);
        Some(Outcome { changes: summary(&changes), count: changes.len(), may_tighten, generation, foreign: Vec::new() })
    }

    fn set(&mut self, desired: Option<&Ruleset>) -> Result<Outcome, Error> {
        match self.try_set(desired) {
            // Others change the ruleset, be it elsewhere, faster than the table can be read and compared.
            Err(Error::Kernel(kernel::Error::Changed | kernel::Error::Unclear { .. })) => {
                self.kernel.replace(desired)?;
                // What has happened since is not known, and looking would take as long again.
                let generation = self.kernel.generation()?;
                self.remember_own(generation);
                let changes = "the whole table, because others do not rest".to_owned();
                Ok(Outcome { changes, count: 1, may_tighten: true, generation, foreign: Vec::new() })
            }
            result => result,
        }
    }

    fn try_set(&mut self, desired: Option<&Ruleset>) -> Result<Outcome, Error> {
        let mut attempt = 1;
        loop {
            let (snapshot, fresh) = match self.committed.take() {
                Some(snapshot) => (snapshot, false),
                None => (self.read()?, true),
            };
            let changes = changes(&snapshot, desired);
            if changes.is_empty() {
                self.in_step = true;
                let generation = self.committed.insert(snapshot).generation;
                return Ok(Outcome::nothing(generation));
            }
            // From here to the kernel's word the committed state is unknown, and stays so if that word is an error.
            let error = match self.kernel.commit(&changes, snapshot.generation) {
                Ok(generation) => {
                    self.committed = Some(Snapshot { generation, table: desired.cloned(), foreign: Vec::new() });
                    self.in_step = true;
                    self.remember_own(generation);
                    return Ok(Outcome {
                        changes: summary(&changes),
                        count: changes.len(),
                        may_tighten: changes.iter().any(Change::may_tighten),
                        generation,
                        foreign: snapshot.foreign,
                    });
                }
                Err(error) => error,
            };
            let again = match &error {
                kernel::Error::Changed | kernel::Error::Unclear { .. } => true,
                // What was refused may have been computed from a state that is no longer true.
                kernel::Error::Refused { .. } => !fresh,
                _ => false,
            };
            match (again, attempt) {
                (false, _) | (true, ATTEMPTS) => return Err(Error::Kernel(error)),
                (true, _) => attempt += 1,
            }
        }
    }

    fn read(&mut self) -> Result<Snapshot, Error> {
        self.in_step = false;
        let mut attempt = 1;
        loop {
            match self.kernel.dump() {
                Err(kernel::Error::Changed | kernel::Error::Unclear { .. }) if attempt < READS => attempt += 1,
                result => return Ok(result?),
            }
        }
    }
}

/// What foreign hands made of objects that portward cannot express, no difference can mend: then the table is made
/// anew, in the same transaction.
fn changes(snapshot: &Snapshot, desired: Option<&Ruleset>) -> Vec<Change> {
    match &snapshot.table {
        Some(_) if !snapshot.foreign.is_empty() && desired.is_some() => {
            let mut changes = diff(snapshot.table.as_ref(), None);
            changes.extend(diff(None, desired));
            changes
        }
        current => diff(current.as_ref(), desired),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::FakeKernel;
    use crate::plan::{LocalScope, OpenPort, open};
    use crate::ruleset::{Chain, PortKey, Protocol, Rule, Set, Statement, Verdict, VerdictMap};
    use std::net::Ipv4Addr;

    /// A kernel in whose way something may come.
    #[derive(Debug)]
    struct Crossed {
        kernel: FakeKernel,
        /// What happens before or after the next commits.
        events: VecDeque<Event>,
        dumps: usize,
        commits: usize,
        /// Reported by the next dumps, beside the table.
        foreign: Vec<String>,
    }

    #[derive(Debug, Clone)]
    enum Event {
        /// Somebody else makes the table this before the commit comes.
        Foreign(Option<Ruleset>),
        /// The commit is carried out, but the answer is lost.
        AnswerLost,
        /// The request is lost.
        RequestLost,
        /// The kernel refuses.
        Refused,
    }

    fn refused() -> kernel::Error {
        kernel::Error::Refused { doing: "a test".to_owned(), source: nix::errno::Errno::ENOENT }
    }

    fn unclear() -> kernel::Error {
        kernel::Error::Unclear { doing: "a test".to_owned(), reason: "a test".to_owned() }
    }

    impl Crossed {
        fn new() -> Self {
            let kernel = FakeKernel::new(None);
            Self { kernel, events: VecDeque::new(), dumps: 0, commits: 0, foreign: Vec::new() }
        }

        fn set(&mut self, table: Option<&Ruleset>) {
            let before = self.kernel.dump().unwrap();
            self.kernel.commit(&diff(before.table.as_ref(), table), before.generation).unwrap();
        }

        fn table(&mut self) -> Option<Ruleset> {
            self.kernel.dump().unwrap().table
        }
    }

    impl Kernel for Crossed {
        fn dump(&mut self) -> Result<Snapshot, kernel::Error> {
            self.dumps += 1;
            let foreign = self.foreign.clone();
            Ok(Snapshot { foreign, ..self.kernel.dump()? })
        }

        fn commit(&mut self, changes: &[Change], generation: u32) -> Result<u32, kernel::Error> {
            self.commits += 1;
            match self.events.pop_front() {
                Some(Event::Foreign(table)) => self.set(table.as_ref()),
                Some(Event::AnswerLost) => {
                    self.kernel.commit(changes, generation)?;
                    return Err(unclear());
                }
                Some(Event::RequestLost) => return Err(unclear()),
                Some(Event::Refused) => return Err(refused()),
                None => {}
            }
            let generation = self.kernel.commit(changes, generation)?;
            if matches!(changes.first(), Some(Change::DeleteTable)) {
                self.foreign.clear();
            }
            Ok(generation)
        }

        fn replace(&mut self, desired: Option<&Ruleset>) -> Result<(), kernel::Error> {
            self.kernel.replace(desired)
        }

        fn generation(&mut self) -> Result<u32, kernel::Error> {
            self.kernel.generation()
        }
    }

    fn ruleset(peers: &[u8]) -> Ruleset {
        let mut ruleset = Ruleset::default();
        let addresses = peers.iter().map(|last| Ipv4Addr::new(192, 0, 2, *last)).collect();
        ruleset.sets.insert("peers".into(), Set::ipv4_addresses(addresses));
        let rule = Rule::new([Statement::Counter, Statement::Verdict(Verdict::Accept)]);
        ruleset.chains.insert("row".into(), Chain { base: None, rules: vec![rule] });
        ruleset
    }

    #[test]
    fn only_the_difference_is_applied_and_the_table_is_read_once() {
        let mut reconciler = Reconciler::new(Crossed::new());
        let first = reconciler.apply(&ruleset(&[1])).unwrap();
        assert!(!first.is_nothing());
        let second = reconciler.apply(&ruleset(&[1, 2])).unwrap();
        assert_eq!((second.changes.as_str(), second.count), ("1 element added", 1));
        assert_eq!(second.generation, first.generation + 1);
        assert!(reconciler.is_own(second.generation) && !reconciler.is_own(second.generation + 1));
        assert_eq!(reconciler.kernel.dumps, 1);
        assert_eq!(reconciler.kernel.table(), Some(ruleset(&[1, 2])));
    }

    #[test]
    fn what_is_there_is_adopted_without_any_change() {
        let mut crossed = Crossed::new();
        crossed.set(Some(&ruleset(&[1])));
        let generation = crossed.generation().unwrap();
        let mut reconciler = Reconciler::new(crossed);
        let outcome = reconciler.apply(&ruleset(&[1])).unwrap();
        assert!(outcome.is_nothing());
        assert_eq!((outcome.generation, reconciler.kernel.commits), (generation, 0));
    }

    #[test]
    fn whatever_comes_in_between_the_result_is_the_same() {
        for event in [
            Event::Foreign(None),
            Event::Foreign(Some(ruleset(&[9]))),
            Event::Foreign(Some(Ruleset::default())),
            Event::AnswerLost,
            Event::RequestLost,
        ] {
            let mut reconciler = Reconciler::new(Crossed::new());
            reconciler.apply(&ruleset(&[1])).unwrap();
            reconciler.kernel.events.push_back(event.clone());
            reconciler.apply(&ruleset(&[1, 2])).unwrap_or_else(|error| panic!("{event:?}: {error}"));
            assert_eq!(reconciler.kernel.table(), Some(ruleset(&[1, 2])), "{event:?}");
            // The next change builds on the right state.
            reconciler.apply(&ruleset(&[3])).unwrap();
            assert_eq!(reconciler.kernel.table(), Some(ruleset(&[3])), "{event:?}");
        }
    }

    #[test]
    fn beside_others_who_never_rest_the_table_is_replaced() {
        let mut reconciler = Reconciler::new(Crossed::new());
        reconciler.kernel.events = (0..100).map(|number| Event::Foreign(Some(ruleset(&[number + 10])))).collect();
        let outcome = reconciler.apply(&ruleset(&[1])).unwrap();
        assert!(!outcome.is_nothing() && reconciler.is_own(outcome.generation));
        assert_eq!(reconciler.kernel.commits, ATTEMPTS);
        assert_eq!(reconciler.kernel.table(), Some(ruleset(&[1])));
        assert_eq!(reconciler.generation(), None, "what others have done since is not known");
        reconciler.remove().unwrap();
        assert_eq!(reconciler.kernel.table(), None);
    }

    #[test]
    fn a_refusal_is_tried_once_more_from_a_fresh_state() {
        let mut reconciler = Reconciler::new(Crossed::new());
        reconciler.apply(&ruleset(&[1])).unwrap();
        reconciler.kernel.events = [Event::Refused].into();
        reconciler.apply(&ruleset(&[2])).unwrap();

        reconciler.kernel.events = [Event::Refused, Event::Refused].into();
        let error = reconciler.apply(&ruleset(&[3])).unwrap_err();
        assert!(matches!(error, Error::Kernel(kernel::Error::Refused { .. })), "{error}");
        assert_eq!(reconciler.kernel.table(), Some(ruleset(&[2])), "what was there stays");
        reconciler.apply(&ruleset(&[3])).unwrap();
        assert_eq!(reconciler.kernel.table(), Some(ruleset(&[3])));
    }

    #[test]
    fn foreign_changes_are_found_and_repaired() {
        let mut reconciler = Reconciler::new(Crossed::new());
        let desired = ruleset(&[1]);
        reconciler.apply(&desired).unwrap();
        assert!(reconciler.verify(&desired).unwrap().is_nothing());
        assert_eq!(reconciler.kernel.dumps, 1, "an unchanged generation needs no dump");
        for foreign in [None, Some(ruleset(&[1, 7])), Some(Ruleset::default())] {
            reconciler.kernel.set(foreign.as_ref());
            assert!(!reconciler.verify(&desired).unwrap().is_nothing());
            assert_eq!(reconciler.kernel.table().as_ref(), Some(&desired));
        }
    }

    #[test]
    fn what_cannot_be_expressed_goes_with_the_table_in_one_transaction() {
        let mut reconciler = Reconciler::new(Crossed::new());
        let desired = ruleset(&[1]);
        reconciler.apply(&desired).unwrap();
        reconciler.kernel.foreign = vec!["counter stranger".to_owned()];
        reconciler.forget();
        let commits = reconciler.kernel.commits;
        let outcome = reconciler.apply(&desired).unwrap();
        assert_eq!(outcome.foreign, ["counter stranger"]);
        assert_eq!(reconciler.kernel.commits, commits + 1);
        assert_eq!(reconciler.kernel.table(), Some(desired.clone()));
        assert!(reconciler.apply(&desired).unwrap().is_nothing());
    }

    #[test]
    fn changes_elsewhere_spare_a_dump_only_when_they_follow_directly() {
        let mut reconciler = Reconciler::new(Crossed::new());
        let known = reconciler.apply(&ruleset(&[1])).unwrap().generation;
        reconciler.changed_elsewhere(known + 1);
        assert_eq!(reconciler.generation(), Some(known + 1));
        reconciler.changed_elsewhere(known + 3);
        assert_eq!(reconciler.generation(), Some(known + 1), "a transaction in between went unheard");
    }

    /// The ruleset with a map of dynamic ports and a service whose port 40000, or another one, is open.
    fn with_open(peers: &[u8], port: Option<u16>) -> Ruleset {
        let mut ruleset = ruleset(peers);
        ruleset.maps.insert("dynamic_tcp".into(), VerdictMap::default());
        let look_up = Statement::PortVerdict(Protocol::Tcp, PortKey::Destination, "dynamic_tcp".into());
        ruleset.chains.insert("input".into(), Chain { base: None, rules: vec![Rule::new([look_up])] });
        ruleset.chains.insert("dyn_broker.v4".into(), Chain::default());
        let scope = LocalScope::Address(Ipv4Addr::new(10, 9, 9, 1).into());
        let open_ports = port.map(|port| OpenPort { protocol: Protocol::Tcp, port, scope });
        open(&mut ruleset, &[("broker".to_owned(), open_ports.into_iter().collect())].into());
        ruleset
    }

    #[test]
    fn a_port_opens_and_closes_without_reading_anything() {
        let mut reconciler = Reconciler::new(Crossed::new());
        let mut generation = reconciler.apply(&with_open(&[1], None)).unwrap().generation;
        for port in [Some(40_000), Some(40_001), None] {
            let desired = with_open(&[1], port);
            let outcome = reconciler.apply_part(&desired).unwrap();
            generation += 1;
            assert_eq!(outcome.generation, generation);
            assert_eq!(reconciler.kernel.table().as_ref(), Some(&desired));
            assert!(reconciler.apply_part(&desired).unwrap().is_nothing());
            assert!(reconciler.verify(&desired).unwrap().is_nothing(), "what was committed is known");
        }
        assert_eq!((reconciler.kernel.dumps, reconciler.kernel.commits), (1, 4));
    }

    #[test]
    fn whatever_comes_in_between_the_ports_open() {
        let old = with_open(&[1], Some(40_000));
        let desired = with_open(&[1], Some(40_001));
        let mut without_map = with_open(&[1], None);
        without_map.maps.clear();
        without_map.chains.remove("input");
        for event in [
            Event::Foreign(None),
            Event::Foreign(Some(with_open(&[1, 9], None))),
            Event::Foreign(Some(without_map)),
            Event::AnswerLost,
            Event::RequestLost,
            Event::Refused,
        ] {
            let mut reconciler = Reconciler::new(Crossed::new());
            reconciler.apply(&old).unwrap();
            reconciler.kernel.events.push_back(event.clone());
            reconciler.apply_part(&desired).unwrap_or_else(|error| panic!("{event:?}: {error}"));
            assert_eq!(reconciler.kernel.table().as_ref(), Some(&desired), "{event:?}");
            reconciler.apply_part(&old).unwrap();
            assert_eq!(reconciler.kernel.table().as_ref(), Some(&old), "{event:?}");
        }
    }

    #[test]
    fn what_is_not_known_to_be_as_desired_is_compared_as_a_whole() {
        let desired = with_open(&[1], Some(40_000));
        let foreign = with_open(&[1, 9], None);
        let mut crossed = Crossed::new();
        crossed.set(Some(&foreign));
        let mut reconciler = Reconciler::new(crossed);
        reconciler.apply_part(&desired).unwrap();
        assert_eq!(reconciler.kernel.table().as_ref(), Some(&desired), "nothing was applied before");

        reconciler.kernel.set(Some(&foreign));
        reconciler.forget();
        reconciler.snapshot().unwrap();
        reconciler.apply_part(&desired).unwrap();
        assert_eq!(reconciler.kernel.table().as_ref(), Some(&desired), "the table was read and not compared");
    }

    #[test]
    fn removing_what_is_not_there_is_nothing() {
        let mut reconciler = Reconciler::new(Crossed::new());
        assert!(reconciler.remove().unwrap().is_nothing());
        reconciler.apply(&ruleset(&[1])).unwrap();
        assert!(!reconciler.remove().unwrap().is_nothing());
        assert_eq!(reconciler.kernel.table(), None);
    }
}
