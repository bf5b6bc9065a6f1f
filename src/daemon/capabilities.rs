//! What the daemon may do as root: the capabilities(7) that it keeps. The unit gives it no others; one that was started
//! by hand has all of root's, and gives up what it has no use for before it hears from anybody.
//!
//! The kernel keeps capabilities by thread, and a new thread has those of the one that started it. So the order of the
//! calls here matters: first [`keep_needed`], then the observer's thread, then [`leave_to_observer`], then the others.

use crate::listeners::Events;
use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl::set_no_new_privs;
use std::io;
use thiserror::Error;

/// What the daemon needs for as long as it runs: the kernel's tables; whose a socket is; files of other users, such as
/// /proc/PID/fd and a policy that is not root's.
const NEEDED: [Capability; 3] =
    [Capability::CAP_NET_ADMIN, Capability::CAP_SYS_PTRACE, Capability::CAP_DAC_READ_SEARCH];

/// Why the daemon may do more than it needs.
#[derive(Debug, Error)]
pub(super) enum Error {
    /// It may still run programs that give it more.
    #[error("new privileges cannot be ruled out")]
    NewPrivileges(#[source] io::Error),
    /// A set is as it was.
    #[error("the {set:?} capabilities cannot be reduced")]
    Capabilities {
        /// Which of its sets.
        set: CapSet,
        /// The system's answer.
        #[source]
        source: CapsError,
    },
}

/// Gives up, for good and in this thread and those that it starts, what no thread of the daemon needs.
///
/// # Errors
/// When the system does not allow it: a filter of system calls that is stricter than the unit's.
pub(super) fn keep_needed(events: bool) -> Result<(), Error> {
    set_no_new_privs().map_err(|errno| Error::NewPrivileges(errno.into()))?;
    let mut needed = CapsHashSet::from(NEEDED);
    if events {
        needed.extend(Events::capabilities());
    }
    // For programs that are run, of which there are none. It may be changed by few, and the unit has done it already.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).unwrap_or(false) {
        clear(CapSet::Bounding)?;
    }
    clear(CapSet::Ambient)?;
    clear(CapSet::Inheritable)?;
    reduce_to(&needed)
}

/// Gives up what only the observer's thread needs, which has been started.
///
/// # Errors
/// As for [`keep_needed`].
pub(super) fn leave_to_observer() -> Result<(), Error> {
    reduce_to(&CapsHashSet::from(NEEDED))
}

/// What is effective must be permitted: it goes first.
fn reduce_to(needed: &CapsHashSet) -> Result<(), Error> {
    for set in [CapSet::Effective, CapSet::Permitted] {
        let failed = |source| Error::Capabilities { set, source };
        let kept = caps::read(None, set).map_err(failed)?.intersection(needed).copied().collect();
        caps::set(None, set, &kept).map_err(failed)?;
    }
    Ok(())
}

fn clear(set: CapSet) -> Result<(), Error> {
    caps::clear(None, set).map_err(|source| Error::Capabilities { set, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_thread_keeps_what_is_needed_and_starts_others_with_no_more() {
        let may = || -> Vec<CapsHashSet> {
            [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable, CapSet::Ambient]
                .map(|set| caps::read(None, set).unwrap())
                .into()
        };
        let had = may();
        let needed = CapsHashSet::from(NEEDED);
        let (of_this, of_its_child) = thread::spawn(move || {
            keep_needed(false).unwrap();
            (may(), thread::spawn(may).join().unwrap())
        })
        .join()
        .unwrap();
        let expected: Vec<CapsHashSet> = had[..2].iter().map(|set| set & &needed).collect();
        assert_eq!(of_this[..2], expected);
        assert!(of_this[2..].iter().all(CapsHashSet::is_empty), "{of_this:?}");
        assert_eq!(of_this, of_its_child);
        assert_eq!(had, may(), "other threads are not concerned");
    }
}
