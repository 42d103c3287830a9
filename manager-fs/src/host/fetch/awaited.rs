//! What a start awaits of its bundle as it comes in: the manifest, pages, and how soon.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use proto::ObjectId;
use proto::manifest::Manifest;
use proto::proof::PageSet;

/// A rate that was measured for less is none.
const LEAST: Duration = Duration::from_millis(1);

/// Pages that will come, by object and chunk: which, and after how many bytes.
pub(super) type Expected = HashMap<(ObjectId, u32), Vec<(PageSet, u64)>>;

/// How fast a bundle comes.
#[derive(Default)]
pub(super) struct Pace {
    /// When its first bytes came.
    pub(super) since: Option<Instant>,
    /// Bytes since.
    pub(super) bytes: u64,
    /// Bytes at which the frames begin.
    pub(super) front: u64,
    /// What nobody has recorded is long, and has what may never be wanted: of it only what is about to come is waited for.
    pub(super) is_guess: bool,
}

impl Pace {
    /// Whether what stands before byte `at` of the frames comes sooner than an answer that takes so long.
    pub(super) fn is_near(&self, at: u64, answer: Duration) -> bool {
        let Some(since) = self.since.filter(|_| self.is_guess) else { return true };
        let left = (self.front + at).saturating_sub(self.bytes);
        let took = since.elapsed().max(LEAST);
        took.mul_f64(left as f64 / self.bytes.max(1) as f64) <= answer
    }
}

pub(super) enum ManifestState {
    Awaited,
    /// Kept until someone takes it: the disk may not have it.
    Here(Box<Manifest>),
    /// Nobody has to wait for it.
    Elsewhere,
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: Duration = Duration::from_millis(50);

    /// A guess of which so many bytes have come in a second.
    fn pace(bytes: u64) -> Pace {
        let since = Instant::now().checked_sub(Duration::from_secs(1));
        Pace { since, bytes, front: 1000, is_guess: true }
    }

    #[test]
    fn of_a_guess_only_what_comes_sooner_than_an_answer_is_waited_for() {
        // A megabyte a second, in 50 ms some fifty thousand bytes.
        let pace = pace(1_000_000);
        assert!(pace.is_near(0, ANSWER), "it has come");
        assert!(pace.is_near(1_030_000, ANSWER));
        assert!(!pace.is_near(1_200_000, ANSWER));
        assert!(pace.is_near(1_200_000, Duration::from_secs(1)), "an answer takes longer here");
    }

    #[test]
    fn what_is_known_to_be_touched_is_waited_for_wherever_it_stands() {
        let recorded = Pace { is_guess: false, ..pace(1_000_000) };
        assert!(recorded.is_near(u64::from(u32::MAX), ANSWER));
        let nothing_yet = Pace { since: None, ..pace(0) };
        assert!(nothing_yet.is_near(u64::from(u32::MAX), ANSWER), "nobody knows how fast it comes");
    }

    #[test]
    fn a_guess_that_does_not_come_keeps_nobody() {
        assert!(!pace(0).is_near(1 << 20, ANSWER));
        assert!(!Pace::default().is_guess && Pace::default().is_near(0, ANSWER));
    }
}
