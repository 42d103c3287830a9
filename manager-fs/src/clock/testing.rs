//! A clock that stands still until a test moves it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{Clock, Time};
use crate::net::BoxFuture;
use crate::sync::lock;

/// How long of the machine's time a test waits for something that must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Moved by [`Manual::advance`] alone.
pub(crate) struct Manual {
    state: Mutex<State>,
    /// Told of every movement, and of every wait that begins or ends.
    changed: watch::Sender<()>,
}

struct State {
    now: Instant,
    unix_ms: u64,
    waits: BTreeMap<u64, Instant>,
    next_wait: u64,
}

impl Manual {
    /// Milliseconds since 1970 at the start.
    pub(crate) const BEGINS_UNIX_MS: u64 = 1_700_000_000_000;

    pub(crate) fn new() -> (Arc<Self>, Clock) {
        let state =
            State { now: Instant::now(), unix_ms: Self::BEGINS_UNIX_MS, waits: BTreeMap::new(), next_wait: 0 };
        let manual = Arc::new(Self { state: Mutex::new(state), changed: watch::Sender::new(()) });
        let clock = Clock(Arc::new(Handle(Arc::clone(&manual))));
        (manual, clock)
    }

    pub(crate) fn advance(&self, time: Duration) {
        {
            let mut state = lock(&self.state);
            state.now += time;
            state.unix_ms += u64::try_from(time.as_millis()).unwrap();
        }
        self.changed.send_replace(());
    }

    /// Puts the date right, or wrong: what counts moments does not notice.
    pub(crate) fn set_date(&self, unix_ms: u64) {
        lock(&self.state).unix_ms = unix_ms;
    }

    /// What is left of each wait that is not over, the shortest first.
    pub(crate) fn waits(&self) -> Vec<Duration> {
        let state = lock(&self.state);
        let mut waits: Vec<_> =
            state.waits.values().filter_map(|until| until.checked_duration_since(state.now)).collect();
        waits.retain(|left| !left.is_zero());
        waits.sort();
        waits
    }

    /// Returns when something waits of which so much is left, with what is left of it.
    pub(crate) async fn waiting(&self, wanted: impl Fn(Duration) -> bool) -> Duration {
        let mut changed = self.changed.subscribe();
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                changed.borrow_and_update();
                if let Some(left) = self.waits().into_iter().find(|left| wanted(*left)) {
                    return left;
                }
                changed.changed().await.unwrap();
            }
        });
        found.await.unwrap_or_else(|_| panic!("nothing waits like that; what waits: {:?}", self.waits()))
    }

    /// Waits for such a wait, and lets just so much time pass that it ends.
    pub(crate) async fn pass(&self, wanted: impl Fn(Duration) -> bool) -> Duration {
        let left = self.waiting(wanted).await;
        self.advance(left);
        left
    }

    fn begin(self: &Arc<Self>, until: Instant) -> Wait {
        let id = {
            let mut state = lock(&self.state);
            state.next_wait += 1;
            let id = state.next_wait;
            state.waits.insert(id, until);
            id
        };
        self.changed.send_replace(());
        Wait { manual: Arc::clone(self), id }
    }

    fn now(&self) -> Instant {
        lock(&self.state).now
    }
}

struct Wait {
    manual: Arc<Manual>,
    id: u64,
}

impl Drop for Wait {
    fn drop(&mut self) {
        lock(&self.manual.state).waits.remove(&self.id);
        self.manual.changed.send_replace(());
    }
}

struct Handle(Arc<Manual>);

impl Time for Handle {
    fn now(&self) -> Instant {
        self.0.now()
    }

    fn unix_ms(&self) -> u64 {
        lock(&self.0.state).unix_ms
    }

    fn sleep_until(&self, moment: Instant) -> BoxFuture<()> {
        let manual = Arc::clone(&self.0);
        Box::pin(async move {
            let mut changed = manual.changed.subscribe();
            let _wait = manual.begin(moment);
            while manual.now() < moment {
                changed.changed().await.unwrap();
            }
        })
    }

    fn rest_until(&self, moment: Instant) {
        let _wait = self.0.begin(moment);
        let begun = Instant::now();
        while self.0.now() < moment {
            assert!(begun.elapsed() < PATIENCE, "nobody moves the clock on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn wait_until(&self, moment: Instant, wait: &mut dyn FnMut(Duration)) {
        let _wait = self.0.begin(moment);
        // Whoever waits looks again, also at this clock.
        wait(Duration::from_millis(1));
    }
}
