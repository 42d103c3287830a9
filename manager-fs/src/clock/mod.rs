//! Time, of one kind for the whole library: a moment that only goes forward, and milliseconds since 1970 for people and
//! for other machines. Whatever waits is handed its clock, so that a test says how late it is instead of sleeping.

use std::fmt;
use std::sync::{Arc, Condvar, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use proto::width;

use crate::net::BoxFuture;
use crate::sync::wait_for;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

/// Where the time comes from.
#[derive(Clone)]
pub struct Clock(Arc<dyn Time>);

/// What a clock can do; the machine's is the only one outside of tests.
trait Time: Send + Sync {
    fn now(&self) -> Instant;
    fn unix_ms(&self) -> u64;
    /// Resolves at this moment.
    fn sleep_until(&self, moment: Instant) -> BoxFuture<()>;
    /// Keeps the calling thread until this moment.
    fn rest_until(&self, moment: Instant);
    /// A thread waits for something, at most until this moment; `wait` is told for how long of the machine's time.
    fn wait_until(&self, moment: Instant, wait: &mut dyn FnMut(Duration));
}

struct System;

impl Time for System {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn unix_ms(&self) -> u64 {
        unix_ms()
    }

    fn sleep_until(&self, moment: Instant) -> BoxFuture<()> {
        Box::pin(tokio::time::sleep_until(moment.into()))
    }

    fn rest_until(&self, moment: Instant) {
        std::thread::sleep(moment.saturating_duration_since(Instant::now()));
    }

    fn wait_until(&self, moment: Instant, wait: &mut dyn FnMut(Duration)) {
        wait(moment.saturating_duration_since(Instant::now()));
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

impl Clock {
    /// The machine's own.
    #[must_use]
    pub fn system() -> Self {
        Self(Arc::new(System))
    }

    /// A moment to count from.
    pub(crate) fn now(&self) -> Instant {
        self.0.now()
    }

    /// Milliseconds since 1970.
    pub(crate) fn unix_ms(&self) -> u64 {
        self.0.unix_ms()
    }

    /// What is left until a moment; zero when it has passed.
    pub(crate) fn left(&self, until: Instant) -> Duration {
        until.saturating_duration_since(self.now())
    }

    /// A task sleeps for so long.
    pub(crate) async fn sleep(&self, time: Duration) {
        self.0.sleep_until(self.now() + time).await;
    }

    /// What comes of some work, or `None` when it has not come by then.
    pub(crate) async fn within<T>(&self, deadline: Instant, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.0.sleep_until(deadline) => None,
        }
    }

    /// A thread sleeps for so long.
    pub(crate) fn rest(&self, time: Duration) {
        self.0.rest_until(self.now() + time);
    }

    /// A thread lets go of the lock until someone notifies, or until a moment; `None` when that has passed already. Like
    /// every wait for a condition it may end for no reason.
    pub(crate) fn wait_until<'m, T>(
        &self,
        changed: &Condvar,
        guard: MutexGuard<'m, T>,
        moment: Instant,
    ) -> Option<MutexGuard<'m, T>> {
        if self.now() >= moment {
            return None;
        }
        let mut guard = Some(guard);
        self.0.wait_until(moment, &mut |time| {
            guard = guard.take().map(|guard| wait_for(changed, guard, time));
        });
        guard
    }
}

/// The machine's clock, milliseconds since 1970. What only notes when something was takes this; what decides by the time
/// takes a [`Clock`].
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, width::millis)
}
