//! How fast dynamic ports may change the kernel: at once as a rule, and in steps when a service opens and closes ports
//! without end, so that many changes become one transaction.

use std::time::{Duration, Instant};

/// So many changes may follow each other at once;
const AT_ONCE: u32 = 64;
/// then one for each of these.
const STEP: Duration = Duration::from_millis(1);

/// Counts the transactions of the recent past.
#[derive(Debug)]
pub(super) struct Pace {
    left: u32,
    since: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: AT_ONCE, since: now }
    }

    /// When the next transaction may be made; a time that has passed: now.
    pub(super) fn next(&self) -> Instant {
        if self.left > 0 { self.since } else { self.since + STEP }
    }

    /// A transaction is made.
    pub(super) fn spend(&mut self, now: Instant) {
        let steps = now.saturating_duration_since(self.since).as_millis() / STEP.as_millis();
        let regained = u32::try_from(steps).unwrap_or(u32::MAX);
        if regained > 0 {
            self.left = self.left.saturating_add(regained).min(AT_ONCE);
            self.since = now;
        }
        self.left = self.left.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_changes_are_made_at_once_and_many_in_steps() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut made = 0;
        let mut now = start;
        // Somebody wants a change every 100 microseconds, for a second.
        while now < start + Duration::from_secs(1) {
            if pace.next() <= now {
                pace.spend(now);
                made += 1;
            }
            now += Duration::from_micros(100);
        }
        assert!((900..=1100).contains(&made), "{made}");
    }

    #[test]
    fn after_a_rest_changes_are_made_at_once_again() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for _ in 0..AT_ONCE {
            assert!(pace.next() <= start);
            pace.spend(start);
        }
        assert!(pace.next() > start);
        let later = start + Duration::from_secs(10);
        for _ in 0..AT_ONCE {
            assert!(pace.next() <= later);
            pace.spend(later);
        }
        assert!(pace.next() > later);
    }
}
