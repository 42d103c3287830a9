//! Trying again, within a deadline.

use std::time::{Duration, Instant};

use super::{FetchError, UpstreamError};

const RETRY_PAUSE: Duration = Duration::from_millis(20);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Wrong answers to one read after which it fails: the manager lies, and time will not change that.
const WRONG_ANSWERS_MAX: u32 = 4;

/// Decides whether a failure is tried again, and when.
pub(super) struct Retry {
    deadline: Instant,
    begun: Instant,
    pause: Duration,
    wrong_answers: u32,
}

impl Retry {
    pub(super) fn new(deadline: Instant) -> Self {
        Self { deadline, begun: Instant::now(), pause: RETRY_PAUSE, wrong_answers: 0 }
    }

    /// Waits before the next attempt, or returns the error when there shall be none.
    pub(super) fn pause(&mut self, error: FetchError) -> Result<(), FetchError> {
        self.wrong_answers += u32::from(matches!(error, FetchError::WrongHash { .. }));
        let hopeless = matches!(error, FetchError::Upstream { source: UpstreamError::NotExported(_), .. });
        if hopeless || self.wrong_answers >= WRONG_ANSWERS_MAX || Instant::now() + self.pause >= self.deadline {
            return Err(error);
        }
        std::thread::sleep(self.pause);
        self.pause = (self.pause * 2).min(RETRY_PAUSE_MAX);
        Ok(())
    }

    /// Fails when time is up although nothing failed.
    pub(super) fn check(&self, what: impl Fn() -> String) -> Result<(), FetchError> {
        if Instant::now() < self.deadline {
            Ok(())
        } else {
            Err(FetchError::Deadline { what: what(), deadline: self.deadline - self.begun })
        }
    }
}
