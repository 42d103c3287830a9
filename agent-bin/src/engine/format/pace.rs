//! No more than so many bytes a second.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::super::SharedMeter;

/// How long is slept before it is looked whether the operation is to stop.
const SLEEP: Duration = Duration::from_millis(50);

/// How fast something may be. Shared by threads, which have it together.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Bytes a second; none: any.
    rate: Option<u64>,
    /// When all that was taken so far may have been moved.
    until: Mutex<Option<Instant>>,
    meter: SharedMeter,
}

impl Pace {
    pub(crate) fn new(rate: Option<u64>, meter: &SharedMeter) -> Self {
        Self { rate, until: Mutex::new(None), meter: meter.clone() }
    }

    /// Waits as long as these bytes take. Not if the operation is to stop: whoever asks looks for that himself.
    pub(crate) fn take(&self, bytes: usize) {
        let Some(rate) = self.rate else { return };
        let takes = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        let until = {
            let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
            // What was not used while nothing was moved is not made up for.
            let from = until.map_or_else(Instant::now, |until| until.max(Instant::now()));
            let to = from.checked_add(takes).unwrap_or(from);
            *until = Some(to);
            to
        };
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.meter.is_stopped() {
                return;
            }
            std::thread::sleep(left.min(SLEEP));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_a_pace_and_a_stop_ends_every_wait() {
        let meter = SharedMeter::default();
        let (began, any) = (Instant::now(), Pace::new(None, &meter));
        any.take(usize::MAX);
        let pace = Pace::new(Some(100_000), &meter);
        std::thread::scope(|scope| {
            (0..4).for_each(|_| drop(scope.spawn(|| (0..10).for_each(|_| pace.take(1000)))));
        });
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(390), "40,000 bytes of 100,000 a second took {took:?}");
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| pace.take(1 << 30));
            meter.stop();
            waits.join().unwrap();
        });
        assert!(began.elapsed() < Duration::from_secs(3000), "it would have been three hours");
    }
}
