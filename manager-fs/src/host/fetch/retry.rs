//! Trying again, within a deadline.

use std::time::{Duration, Instant};

use super::{FetchError, UpstreamError};
use crate::clock::Clock;

const RETRY_PAUSE: Duration = Duration::from_millis(20);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Wrong answers to one read after which it fails: the manager lies, and time will not change that.
const WRONG_ANSWERS_MAX: u32 = 4;

/// Decides whether a failure is tried again, and when.
pub(super) struct Retry<'c> {
    clock: &'c Clock,
    deadline: Instant,
    begun: Instant,
    pause: Duration,
    wrong_answers: u32,
}

impl<'c> Retry<'c> {
    pub(super) fn new(clock: &'c Clock, deadline: Instant) -> Self {
        Self { clock, deadline, begun: clock.now(), pause: RETRY_PAUSE, wrong_answers: 0 }
    }

    /// Waits before the next attempt, or returns the error when there shall be none.
    pub(super) fn pause(&mut self, error: FetchError) -> Result<(), FetchError> {
        self.wrong_answers += u32::from(matches!(error, FetchError::WrongHash { .. }));
        let hopeless = matches!(error, FetchError::Upstream { source: UpstreamError::NotExported(_), .. });
        if hopeless || self.wrong_answers >= WRONG_ANSWERS_MAX || self.clock.now() + self.pause >= self.deadline {
            return Err(error);
        }
        self.clock.rest(self.pause);
        self.pause = (self.pause * 2).min(RETRY_PAUSE_MAX);
        Ok(())
    }

    /// Fails when time is up although nothing failed.
    pub(super) fn check(&self, what: impl Fn() -> String) -> Result<(), FetchError> {
        if self.clock.now() < self.deadline {
            Ok(())
        } else {
            Err(FetchError::Deadline { what: what(), deadline: self.deadline - self.begun })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proto::ObjectId;

    use super::*;
    use crate::clock::testing::Manual;
    use crate::host::cache::CacheError;

    fn away() -> FetchError {
        FetchError::Upstream {
            what: "object 1".to_owned(),
            source: UpstreamError::Unavailable("no route".to_owned()),
        }
    }

    fn lie() -> FetchError {
        FetchError::WrongHash { what: "object 1".to_owned() }
    }

    /// Pauses once on a thread of its own; returns how long it was, or the error.
    fn pause(time: &Arc<Manual>, retry: &mut Retry<'_>, error: FetchError) -> Result<Duration, FetchError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        std::thread::scope(|scope| {
            let paused = scope.spawn(|| retry.pause(error));
            let mut slept = Duration::ZERO;
            while !paused.is_finished() {
                if !time.waits().is_empty() {
                    slept += runtime.block_on(time.pass(|_| true));
                }
                std::thread::yield_now();
            }
            paused.join().unwrap().map(|()| slept)
        })
    }

    #[test]
    fn pauses_double_up_to_a_second_and_end_before_the_deadline() {
        let (time, clock) = Manual::new();
        let deadline = clock.now() + Duration::from_secs(6);
        let mut retry = Retry::new(&clock, deadline);
        let mut pauses = Vec::new();
        let last = loop {
            match pause(&time, &mut retry, away()) {
                Ok(slept) => pauses.push(slept.as_millis()),
                Err(error) => break error,
            }
        };
        assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1000, 1000, 1000, 1000]);
        assert!(matches!(last, FetchError::Upstream { .. }), "the last failure is what is told: {last}");
        assert!(clock.now() < deadline, "nobody sleeps past it");
    }

    #[test]
    fn a_liar_is_asked_four_times_and_what_is_not_exported_once() {
        let (time, clock) = Manual::new();
        let mut retry = Retry::new(&clock, clock.now() + Duration::from_secs(3600));
        for _ in 1..WRONG_ANSWERS_MAX {
            pause(&time, &mut retry, lie()).unwrap();
            pause(&time, &mut retry, away()).unwrap();
        }
        assert!(matches!(pause(&time, &mut retry, lie()), Err(FetchError::WrongHash { .. })));
        let mut retry = Retry::new(&clock, clock.now() + Duration::from_secs(3600));
        let source = UpstreamError::NotExported("tree 1".to_owned());
        let refused = FetchError::Upstream { what: "tree 1".to_owned(), source };
        assert!(pause(&time, &mut retry, refused).is_err());
    }

    #[test]
    fn time_that_is_up_is_an_error_that_says_how_much_there_was() {
        let (time, clock) = Manual::new();
        let retry = Retry::new(&clock, clock.now() + Duration::from_secs(6));
        assert!(retry.check(|| "object 1".to_owned()).is_ok());
        time.advance(Duration::from_secs(6));
        let up = retry.check(|| format!("object {}", ObjectId::of(b"1"))).unwrap_err();
        assert!(up.is_for_want_of_time(), "{up}");
        assert!(up.to_string().contains('6') && up.to_string().contains(&ObjectId::of(b"1").to_string()), "{up}");
        assert!(!FetchError::from(CacheError::WrongHash(ObjectId::of(b"1"))).is_for_want_of_time());
    }
}
