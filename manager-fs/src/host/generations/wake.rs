//! Wakes the two background threads of the generations.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::clock::Clock;
use crate::sync::lock;

/// How often what each thread waits for has happened.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// Leases, links or journals changed: what must stay is to be looked at again.
    pub(super) changed: u64,
    /// Something can be fetched.
    pub(super) fetchable: u64,
}

/// See the module.
pub(super) struct Wake {
    clock: Clock,
    seen: Mutex<Seen>,
    noted: Condvar,
}

impl Wake {
    /// Nothing has happened yet.
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, seen: Mutex::default(), noted: Condvar::new() }
    }

    /// Something happened.
    pub(super) fn note(&self, happened: impl FnOnce(&mut Seen)) {
        happened(&mut lock(&self.seen));
        self.noted.notify_all();
    }

    /// What has happened so far; what comes later ends a [`Wake::wait`] that began with it.
    pub(super) fn seen(&self) -> Seen {
        *lock(&self.seen)
    }

    /// Waits until `done`, at most for `pause`; `true` if it is.
    pub(super) fn wait(&self, pause: Duration, done: impl Fn(&Seen) -> bool) -> bool {
        let until = self.clock.now() + pause;
        let mut seen = lock(&self.seen);
        while !done(&seen) {
            match self.clock.wait_until(&self.noted, seen, until) {
                Some(again) => seen = again,
                None => return false,
            }
        }
        true
    }
}
