//! How long the manager's first answer to a request takes: what a miss costs beside its bytes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proto::width;

use super::Fetcher;

/// What one answer that came late raises it by at most, as a part of what it was.
const RISE: u64 = 8;

/// The least that was seen lately. A single late answer tells of a busy machine, many of a slow network.
#[derive(Default)]
pub(super) struct Latency {
    /// Microseconds; 0 before the first answer.
    us: AtomicU64,
}

impl Latency {
    /// A request was answered for the first time after so long.
    pub(super) fn note(&self, took: Duration) {
        let took = width::micros(took).max(1);
        let rise = |was: u64| if was == 0 { took } else { took.min(was + was / RISE + 1) };
        let _ = self.us.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |was| Some(rise(was)));
    }

    /// `None` before the first answer.
    pub(super) fn now(&self) -> Option<Duration> {
        let us = self.us.load(Ordering::Relaxed);
        (us > 0).then(|| Duration::from_micros(us))
    }
}

impl Fetcher {
    /// How long a request waits for the first of its answer, by the last ones; `None` before the first.
    pub fn first_answer(&self) -> Option<Duration> {
        self.latency.now()
    }

    /// Something of the answer to a request is here. `asked` is when it was made, until its first answer.
    pub(super) fn answered(&self, asked: &mut Option<Instant>) {
        if let Some(asked) = asked.take() {
            self.latency.note(self.clock().now() - asked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_late_answer_hardly_counts_and_many_do() {
        let latency = Latency::default();
        assert_eq!(latency.now(), None);
        let noted = |ms: u64| {
            latency.note(Duration::from_millis(ms));
            latency.now().unwrap()
        };
        assert_eq!(noted(80), Duration::from_millis(80));
        assert_eq!(noted(1), Duration::from_millis(1));
        assert!(noted(500) < Duration::from_millis(2));
        let later = (0..60).map(|_| noted(80)).max();
        assert_eq!(later, Some(Duration::from_millis(80)));
    }
}
