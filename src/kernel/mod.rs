//! The kernel's side: reading table `inet portward`, changing it in one transaction, and hearing of others' changes.
//!
//! [`Kernel`] is what the daemon and the command line use. [`Netlink`] is the real one, over libmnl and libnftnl;
//! [`FakeKernel`] keeps a table in memory under the same rules, for tests that need no root. [`Monitor`] tells of
//! changes that others make, [`Conntrack`] of the flows that pass; [`Sockets`] ends
//! TCP connections of this host. All `unsafe` code of the crate is in `netlink/native.rs`.

pub mod conntrack;
mod error;
mod expression;
mod fake;
mod netlink;
#[cfg(test)]
pub(crate) mod testing;

pub use error::Error;
pub use fake::FakeKernel;
pub(crate) use netlink::clock_is_synchronized;
#[cfg(feature = "fuzzing")]
pub(crate) use netlink::fuzzing;
#[cfg(feature = "bpf")]
pub(crate) use netlink::namespace_cookie;
pub use netlink::{Conntrack, Destroyed, ForeignChain, Monitor, Netlink, Note, Notification, Sockets};
pub(crate) use netlink::{uapi, wire};

use crate::ruleset::Ruleset;
use crate::ruleset::diff::Change;

/// What the kernel holds in table `inet portward`, and at which generation of the whole ruleset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The generation of the network namespace's ruleset: it grows by one with every transaction of anybody, from 1,
    /// and after 2^32 - 1 goes on with 1.
    pub generation: u32,
    /// The table; `None` when there is none.
    pub table: Option<Ruleset>,
    /// Objects in the table that a [`Ruleset`] cannot express, in words. When there are any, only deleting the table
    /// and making it anew brings it to a desired state.
    pub foreign: Vec<String>,
}

/// A kernel that holds table `inet portward`.
pub trait Kernel {
    /// Reads the table.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or when others change the ruleset so fast that no consistent view is had.
    fn dump(&mut self) -> Result<Snapshot, Error>;

    /// Applies all changes in one transaction, or none of them. `generation` is the one that the changes were worked
    /// out for. Returns the generation after this commit.
    ///
    /// # Errors
    /// [`Error::Changed`] when the ruleset is not at `generation` any more; [`Error::Refused`] when the kernel refuses
    /// a change; in both cases nothing was applied. After [`Error::Unclear`] the state must be dumped.
    fn commit(&mut self, changes: &[Change], generation: u32) -> Result<u32, Error>;

    /// Deletes the table, whatever is in it and at whatever generation, and makes it anew unless `desired` is `None`, in one
    /// transaction. For when others change the ruleset faster than it can be read; all counters are lost.
    ///
    /// # Errors
    /// As for [`Kernel::commit`], but for [`Error::Changed`].
    fn replace(&mut self, desired: Option<&Ruleset>) -> Result<(), Error>;

    /// The current generation of the ruleset.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn generation(&mut self) -> Result<u32, Error>;
}

/// The generation after this one. The kernel skips 0 (`nf_tables_commit`, net/netfilter/nf_tables_api.c).
fn next_generation(generation: u32) -> u32 {
    generation.wrapping_add(1).max(1)
}
