//! When a service is asked for its ports: at once when something about its process changed, then again and again until it
//! had the time to finish what it began, and from then on now and then.

use std::time::{Duration, Instant};

/// How long after an answer the service is asked again, one after the other. A starting broker names its last port
/// 1.5 s after its first; a portmapper table is written after the listener is made.
const AGAIN: [Duration; 8] = [
    Duration::from_millis(10),
    Duration::from_millis(40),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];
/// How often it is asked when nothing happens.
const AT_REST: Duration = Duration::from_secs(30);

/// The plan for one service.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    due: Option<Instant>,
    step: usize,
    asking: bool,
    /// Something happened since the question was sent, so that its answer may already be old.
    happened: bool,
}

impl Schedule {
    /// Something about the process changed.
    pub(super) fn trigger(&mut self, now: Instant) {
        self.step = 0;
        if self.asking {
            self.happened = true;
        } else {
            self.due = Some(now);
        }
    }

    /// Nobody is there to be asked any more.
    pub(super) fn stop(&mut self) {
        self.due = None;
        self.happened = false;
    }

    /// When to ask; `None`: not, or not before the answer.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due.filter(|_| !self.asking)
    }

    /// The question was sent.
    pub(super) fn asked(&mut self) {
        self.asking = true;
        self.due = None;
    }

    /// It was answered, or failed.
    pub(super) fn answered(&mut self, now: Instant) {
        self.asking = false;
        if std::mem::take(&mut self.happened) {
            self.step = 0;
            self.due = Some(now);
        } else {
            self.due = Some(now + AGAIN.get(self.step).copied().unwrap_or(AT_REST));
            self.step += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_followed_for_seconds_and_then_now_and_then() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        assert_eq!(schedule.due(), None);
        schedule.trigger(start);
        let mut now = start;
        let mut asked = Vec::new();
        for _ in 0..10 {
            now = schedule.due().unwrap();
            schedule.asked();
            assert_eq!(schedule.due(), None, "one question at a time");
            schedule.answered(now);
            asked.push(now - start);
        }
        assert_eq!(asked.first(), Some(&Duration::ZERO));
        assert!(asked.iter().filter(|after| **after < Duration::from_secs(8)).count() >= 9, "{asked:?}");
        assert_eq!(schedule.due(), Some(now + AT_REST));
    }

    #[test]
    fn what_happens_during_a_question_is_asked_about_at_once() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.trigger(now);
        schedule.asked();
        schedule.trigger(now);
        schedule.answered(now);
        assert_eq!(schedule.due(), Some(now));
    }

    #[test]
    fn nobody_is_asked_who_is_gone() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.trigger(now);
        schedule.stop();
        assert_eq!(schedule.due(), None);
    }
}
