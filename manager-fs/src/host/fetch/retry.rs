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
