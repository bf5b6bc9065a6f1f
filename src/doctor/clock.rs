//! The clock: logs, certificates and the history of policies rest on it.

use super::Finding;
use crate::kernel::clock_is_synchronized;
use nix::errno::Errno;
use std::time::{SystemTime, UNIX_EPOCH};

/// 2024-01-01 00:00 UTC, in seconds since the Unix epoch. Nothing that runs this program was made before.
const EARLIEST: u64 = 1_704_067_200;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Clock {
    /// Seconds since the Unix epoch.
    now: u64,
    is_synchronized: Result<bool, Errno>,
}

impl Clock {
    pub(super) fn look() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self { now, is_synchronized: clock_is_synchronized() }
    }

    pub(super) fn findings(&self) -> Vec<Finding> {
        const CHECK: &str = "clock";
        const REMEDY: &str = "let chrony keep it (`chronyc tracking`); `date` shows it";
        let finding = match self.is_synchronized {
            _ if self.now < EARLIEST => {
                Finding::problem(CHECK, "the clock is wrong: it shows a time before 2024", REMEDY)
            }
            Ok(true) => Finding::ok(CHECK, "synchronized"),
            Ok(false) => Finding::warning(CHECK, "the clock is not synchronized with any other", REMEDY),
            Err(errno) => Finding::unseen(CHECK, errno.desc()),
        };
        vec![finding]
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Severity, severities};
    use super::*;

    #[test]
    fn a_clock_is_right_when_it_follows_another() {
        let severity = |now, is_synchronized| severities(&Clock { now, is_synchronized }.findings());
        assert_eq!(severity(EARLIEST, Ok(true)), [Severity::Ok]);
        assert_eq!(severity(EARLIEST, Ok(false)), [Severity::Warning]);
        assert_eq!(severity(EARLIEST - 1, Ok(true)), [Severity::Problem]);
        assert_eq!(severity(EARLIEST, Err(Errno::EPERM)), [Severity::Note]);
    }

    #[test]
    fn the_kernel_says_whether_it_does() {
        assert!(Clock::look().is_synchronized.is_ok());
    }
}
