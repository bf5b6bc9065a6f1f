//! Bringing the kernel to a desired state and keeping it there. Knows no files, no time and no tokio.

use crate::kernel::{self, Kernel, Snapshot};
use crate::ruleset::Ruleset;
use crate::ruleset::diff::{Change, diff, summary};
use thiserror::Error;

/// How often one request begins anew when others keep changing the kernel's ruleset meanwhile.
const ATTEMPTS: usize = 8;

/// Holds what was last committed, so that a change costs what it changes and not what is there.
#[derive(Debug)]
pub struct Reconciler<K> {
    kernel: K,
    /// What our table holds, and the ruleset generation at which that was true; `None`: must be read first.
    committed: Option<Snapshot>,
}

/// What a request has led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The changes in a few words; `nothing` when there were none.
    pub changes: String,
    /// How many changes there were.
    pub count: usize,
    /// The ruleset generation at which the kernel holds the desired state.
    pub generation: u32,
    /// What foreign hands had put into the table beyond what portward can express, in words; it is gone.
    pub foreign: Vec<String>,
}

impl Outcome {
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
    /// Others change the ruleset faster than it can be read.
    #[error("the ruleset was changed by others {ATTEMPTS} times in a row while portward prepared its own change")]
    Restless(#[source] kernel::Error),
}

impl<K: Kernel> Reconciler<K> {
    /// Nothing is read before it is needed.
    pub fn new(kernel: K) -> Self {
        Self { kernel, committed: None }
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

    /// The changes that [`Reconciler::set`] would make.
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
    /// See [`Error`]; the table is as it was before.
    pub fn apply(&mut self, desired: &Ruleset) -> Result<Outcome, Error> {
        self.set(Some(desired))
    }

    /// Removes the table.
    ///
    /// # Errors
    ///
    /// See [`Error`]; the table is as it was before.
    pub fn remove(&mut self) -> Result<Outcome, Error> {
        self.set(None)
    }

    /// Compares the table with what it should be, if the kernel's ruleset has changed since the last commit, and
    /// repairs it.
    ///
    /// # Errors
    ///
    /// See [`Error`].
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
            && generation == snapshot.generation.wrapping_add(1)
        {
            snapshot.generation = generation;
        }
    }

    /// The generation up to which our table is known; `None` when it must be read.
    pub fn generation(&self) -> Option<u32> {
        self.committed.as_ref().map(|snapshot| snapshot.generation)
    }

    fn set(&mut self, desired: Option<&Ruleset>) -> Result<Outcome, Error> {
        let mut attempt = 1;
        loop {
            let (snapshot, fresh) = match self.committed.take() {
                Some(snapshot) => (snapshot, false),
                None => (self.read()?, true),
            };
            let changes = changes(&snapshot, desired);
            if changes.is_empty() {
                let generation = self.committed.insert(snapshot).generation;
                return Ok(Outcome { changes: summary(&changes), count: 0, generation, foreign: Vec::new() });
            }
            // From here to the kernel's word the committed state is unknown, and stays so if that word is an error.
            let error = match self.kernel.commit(&changes, snapshot.generation) {
                Ok(generation) => {
                    self.committed = Some(Snapshot { generation, table: desired.cloned(), foreign: Vec::new() });
                    return Ok(Outcome {
                        changes: summary(&changes),
                        count: changes.len(),
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
                (false, _) => return Err(Error::Kernel(error)),
                (true, ATTEMPTS) => return Err(Error::Restless(error)),
                (true, _) => attempt += 1,
            }
        }
    }

    fn read(&mut self) -> Result<Snapshot, Error> {
        let mut attempt = 1;
        loop {
            match self.kernel.dump() {
                Err(kernel::Error::Changed | kernel::Error::Unclear { .. }) if attempt < ATTEMPTS => attempt += 1,
                Err(error @ kernel::Error::Changed) => return Err(Error::Restless(error)),
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
