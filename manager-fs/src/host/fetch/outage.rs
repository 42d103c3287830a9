//! The deadline of a read holds for the program that reads, and not for each request that the kernel makes of it.
//!
//! The kernel asks for more than a program wants, and when that fails asks again for the page alone: each of these requests
//! would wait for its own deadline, two or three times what the operator has set.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use proto::ObjectId;

use crate::sync::lock;

/// The kernel repeats a request within moments; a program that tries again by itself later gets the whole deadline.
const REPEATED_WITHIN: Duration = Duration::from_secs(1);
/// What a repeated request may still wait: enough for a connection that came back in between.
const AGAIN: Duration = Duration::from_millis(100);
/// Failures that are remembered; each belongs to a thread that waited.
const FAILURES_MAX: usize = 256;

/// Reads that have failed for want of time.
#[derive(Debug, Default)]
pub(super) struct Outage {
    failures: Mutex<Vec<Failure>>,
}

#[derive(Debug)]
struct Failure {
    object: ObjectId,
    from: u64,
    past: u64,
    at: Instant,
}

impl Outage {
    /// By when a read that begins now must have succeeded.
    pub(super) fn deadline(&self, object: &ObjectId, offset: u64, now: Instant, deadline: Instant) -> Instant {
        let mut failures = lock(&self.failures);
        failures.retain(|failure| now.saturating_duration_since(failure.at) < REPEATED_WITHIN);
        let repeated =
            |failure: &Failure| failure.object == *object && (failure.from..failure.past).contains(&offset);
        if failures.iter().any(repeated) { deadline.min(now + AGAIN) } else { deadline }
    }

    /// A read of these bytes has used up its time.
    pub(super) fn note(&self, object: &ObjectId, offset: u64, len: u64, now: Instant) {
        let mut failures = lock(&self.failures);
        if failures.len() >= FAILURES_MAX {
            failures.remove(0);
        }
        failures.push(Failure { object: *object, from: offset, past: offset + len, at: now });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_repeats_does_not_wait_again() {
        let outage = Outage::default();
        let (object, other) = (ObjectId::of(b"1"), ObjectId::of(b"2"));
        let (begun, whole) = (Instant::now(), Duration::from_secs(6));
        let failed = begun + whole;
        outage.note(&object, 4_096, 8_192, failed);
        let left = |object: &ObjectId, offset, after: Duration| {
            let now = failed + after;
            outage.deadline(object, offset, now, now + whole) - now
        };
        assert_eq!(left(&object, 4_096, Duration::from_millis(1)), AGAIN);
        assert_eq!(left(&object, 12_287, Duration::from_millis(500)), AGAIN);
        assert_eq!(left(&object, 12_288, Duration::ZERO), whole, "these bytes have not failed");
        assert_eq!(left(&other, 4_096, Duration::ZERO), whole);
        assert_eq!(left(&object, 4_096, REPEATED_WITHIN), whole, "the program tries again by itself");
    }
}
