//! When the daemon undoes what others do to its table: at once as a rule, and at a growing distance when somebody changes
//! it again and again, so that the two do not keep the machine busy. Knows neither kernel nor clock.

use super::status;
use std::fmt;
use std::time::{Duration, Instant};

/// So many repairs may follow each other at once;
const AT_ONCE: u32 = 20;
/// then one for each of these. Whoever is no faster is never made to wait.
const REGAINED_EVERY: Duration = Duration::from_secs(1);
/// The first distance between two repairs when these are used up. It doubles with every repair that had to wait,
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// up to this. The table is never wrong for longer than this and a repair take.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// After so long without any foreign change the dispute is over.
const CALM: Duration = Duration::from_secs(30);
/// When the next attempt is made after others were too fast for one.
const RETRY: Duration = Duration::from_secs(1);
/// So many meddlers are named; that there are more is only said.
const NAMED: usize = 3;

/// Who has changed the ruleset, as far as the kernel tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Author {
    /// The name of the process, of at most 15 bytes.
    pub(super) process: Option<String>,
    pub(super) pid: Option<u32>,
}

impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.process, self.pid) {
            (Some(process), Some(pid)) => write!(f, "{process} (process {pid})"),
            (Some(process), None) => f.write_str(process),
            (None, Some(pid)) => write!(f, "process {pid}"),
            (None, None) => f.write_str("somebody"),
        }
    }
}

/// What others have done of late, and when it is undone.
#[derive(Debug)]
pub(super) struct Meddling {
    /// Repairs that may be made at once.
    left: u32,
    left_since: Instant,
    /// The distance to keep from the last repair.
    pause: Duration,
    last_repair: Option<Instant>,
    last_change: Option<Instant>,
    /// What is not undone yet.
    open: Option<Open>,
    /// Since when changes have come faster than they are undone, and from whom.
    dispute: Option<status::Meddling>,
}

/// Foreign changes that stand in the kernel.
#[derive(Debug)]
struct Open {
    due: Instant,
    authors: Vec<Author>,
    more: bool,
    /// Whether the repair has to wait.
    waits: bool,
}

impl Meddling {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            left: AT_ONCE,
            left_since: now,
            pause: FIRST_PAUSE,
            last_repair: None,
            last_change: None,
            open: None,
            dispute: None,
        }
    }

    /// Others have changed the table.
    pub(super) fn changed(&mut self, author: Author, now: Instant, clock: u64) {
        self.end_if_calm(now);
        self.last_change = Some(now);
        if let Some(dispute) = &mut self.dispute {
            note(dispute, &author, clock);
        }
        let due = self.next(now);
        let open = self.open.get_or_insert_with(|| Open { due, authors: Vec::new(), more: false, waits: due > now });
        if open.authors.contains(&author) {
            return;
        }
        if open.authors.len() < NAMED {
            open.authors.push(author);
        } else {
            open.more = true;
        }
    }

    /// Whether the table is as others have left it.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// When the table is to be repaired; `None`: nobody has changed it.
    pub(super) fn due(&self) -> Option<Instant> {
        self.open.as_ref().map(|open| open.due)
    }

    /// Others were so fast that the repair failed.
    pub(super) fn try_again(&mut self, now: Instant) {
        let open =
            self.open.get_or_insert(Open { due: now, authors: vec![Author::default()], more: false, waits: true });
        open.due = now + RETRY;
    }

    /// The table is as it should be; returns whose changes were open.
    pub(super) fn settled(&mut self) -> Option<String> {
        let open = self.open.take()?;
        let names: Vec<_> = open.authors.iter().map(ToString::to_string).collect();
        Some(format!("{}{}", names.join(", "), if open.more { " and more" } else { "" }))
    }

    /// Changes of others were undone, and are settled by that; returns whose.
    pub(super) fn repaired(&mut self, now: Instant, clock: u64) -> Option<String> {
        let waited = self.open.as_ref()?.waits;
        self.regain(now);
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None if waited => self.pause = (self.pause * 2).min(LONGEST_PAUSE),
            None => self.pause = (self.pause / 2).max(FIRST_PAUSE),
        }
        if self.left == 0 && self.dispute.is_none() {
            let mut dispute = status::Meddling { since: clock, last: clock, by: Vec::new(), pause_ms: 0 };
            for author in self.open.iter().flat_map(|open| &open.authors) {
                note(&mut dispute, author, clock);
            }
            self.dispute = Some(dispute);
        }
        if let Some(dispute) = &mut self.dispute {
            dispute.pause_ms = u32::try_from(self.pause.as_millis()).unwrap_or(u32::MAX);
        }
        self.last_repair = Some(now);
        self.settled()
    }

    /// The dispute that goes on, if there is one.
    pub(super) fn dispute(&self) -> Option<&status::Meddling> {
        self.dispute.as_ref()
    }

    /// Ends the dispute when the table has been left alone for long enough; says whether it did.
    pub(super) fn end_if_calm(&mut self, now: Instant) -> bool {
        let calm = self.last_change.is_none_or(|last| now.saturating_duration_since(last) >= CALM);
        if !calm || self.open.is_some() {
            return false;
        }
        self.left = AT_ONCE;
        self.left_since = now;
        self.pause = FIRST_PAUSE;
        self.dispute.take().is_some()
    }

    /// When a change that comes now is undone.
    fn next(&mut self, now: Instant) -> Instant {
        self.regain(now);
        match self.last_repair {
            Some(last) if self.left == 0 => now.max(last + self.pause),
            _ => now,
        }
    }

    fn regain(&mut self, now: Instant) {
        let steps = now.saturating_duration_since(self.left_since).as_secs() / REGAINED_EVERY.as_secs();
        // Nothing is regained while repairs wait: they would come in bursts.
        let waits = self.pause > FIRST_PAUSE || self.open.as_ref().is_some_and(|open| open.waits);
        if steps > 0 {
            self.left_since = now;
            let regained = if waits { 0 } else { u32::try_from(steps).unwrap_or(u32::MAX) };
            self.left = self.left.saturating_add(regained).min(AT_ONCE);
        }
    }
}

/// Counts a change to its author. Many short-lived processes of one name, such as `nft`, are one author.
fn note(dispute: &mut status::Meddling, author: &Author, clock: u64) {
    dispute.last = clock;
    let process = author.process.clone().unwrap_or_else(|| "somebody".to_owned());
    if let Some(meddler) = dispute.by.iter_mut().find(|meddler| meddler.process == process) {
        meddler.pid = author.pid;
        meddler.changes += 1;
    } else if dispute.by.len() < NAMED {
        dispute.by.push(status::Meddler { process, pid: author.pid, changes: 1 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nft(pid: u32) -> Author {
        Author { process: Some("nft".to_owned()), pid: Some(pid) }
    }

    /// Somebody changes the table at this pace for so long; a repair takes no time. Returns how many there were, how long
    /// the table was wrong in all, and the longest stretch of that.
    fn play(meddling: &mut Meddling, start: Instant, every: Duration, how_long: Duration) -> (u32, Duration, Duration) {
        let (mut repairs, mut wrong, mut longest) = (0, Duration::ZERO, Duration::ZERO);
        let mut now = start;
        let mut wrong_since = None;
        let mut next_change = start;
        while now < start + how_long {
            if next_change <= now {
                meddling.changed(nft(repairs), now, 0);
                wrong_since.get_or_insert(now);
                next_change += every;
            }
            if meddling.due().is_some_and(|due| due <= now) {
                assert!(meddling.repaired(now, 0).is_some());
                repairs += 1;
                let stretch = now - wrong_since.take().unwrap();
                wrong += stretch;
                longest = longest.max(stretch);
            }
            now += Duration::from_millis(1);
        }
        (repairs, wrong, longest)
    }

    #[test]
    fn a_change_is_undone_at_once_and_its_author_named() {
        let now = Instant::now();
        let mut meddling = Meddling::new(now);
        assert_eq!(meddling.due(), None);
        meddling.changed(nft(7), now, 0);
        assert_eq!(meddling.due(), Some(now));
        assert_eq!(meddling.repaired(now, 0).unwrap(), "nft (process 7)");
        assert_eq!((meddling.due(), meddling.dispute()), (None, None));
        assert_eq!(meddling.repaired(now, 0), None, "nobody has changed anything");
    }

    #[test]
    fn whoever_is_slow_is_never_made_to_wait() {
        let start = Instant::now();
        let mut meddling = Meddling::new(start);
        for (every, seconds) in [(1000, 100), (300, 100)] {
            let start = start + Duration::from_secs(1000 - every);
            let every = Duration::from_millis(every);
            let (repairs, wrong, _) = play(&mut meddling, start, every, Duration::from_secs(seconds));
            assert!(repairs >= 100);
            assert_eq!(wrong, Duration::ZERO);
        }
    }

    #[test]
    fn whoever_never_rests_is_answered_less_and_less_but_always() {
        let start = Instant::now();
        let mut meddling = Meddling::new(start);
        let minute = Duration::from_secs(60);
        let (repairs, _, longest) = play(&mut meddling, start, Duration::from_millis(2), minute);
        assert!((30..=60).contains(&repairs), "{repairs}");
        assert!(longest <= LONGEST_PAUSE, "{longest:?}");
        let dispute = meddling.dispute().unwrap();
        assert_eq!((dispute.by.len(), dispute.by[0].process.as_str()), (1, "nft"), "{dispute:?}");
        assert!(dispute.by[0].changes > 20_000, "{dispute:?}");
        assert_eq!(dispute.pause_ms, 4000);

        // The next one too, while it goes on; and nothing is held against anybody afterwards.
        let (_, _, longest) = play(&mut meddling, start + minute, Duration::from_millis(2), minute);
        assert!(longest <= LONGEST_PAUSE, "{longest:?}");
        let end = start + 2 * minute;
        if let Some(due) = meddling.due() {
            meddling.repaired(due, 0);
        }
        assert!(!meddling.end_if_calm(end + CALM / 2));
        assert!(meddling.end_if_calm(end + CALM));
        assert_eq!(meddling.dispute(), None);
        meddling.changed(nft(1), end + CALM, 0);
        assert_eq!(meddling.due(), Some(end + CALM));
    }

    #[test]
    fn many_authors_are_many_in_few_words() {
        let now = Instant::now();
        let mut meddling = Meddling::new(now);
        for pid in 1..=1000 {
            meddling.changed(nft(pid), now, 0);
        }
        let by = meddling.repaired(now, 0).unwrap();
        assert_eq!(by, "nft (process 1), nft (process 2), nft (process 3) and more");
        for number in 0..1000 {
            let author = Author { process: Some(format!("p{number}")), pid: None };
            meddling.changed(author, now, 0);
            meddling.repaired(now, 0);
        }
        assert_eq!(meddling.dispute().unwrap().by.len(), NAMED);
    }

    #[test]
    fn a_repair_that_failed_is_tried_again() {
        let now = Instant::now();
        let mut meddling = Meddling::new(now);
        meddling.changed(nft(1), now, 0);
        meddling.try_again(now);
        assert_eq!(meddling.due(), Some(now + RETRY));
        assert_eq!(meddling.settled().unwrap(), "nft (process 1)", "it had ended by itself");
        meddling.try_again(now);
        assert_eq!(meddling.due(), Some(now + RETRY));
    }
}
