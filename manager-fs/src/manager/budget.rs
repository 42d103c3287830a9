//! What one host may cost the manager: memory, turns and rates, over all of its connections.
//!
//! All of them together keep a host below 64 MiB (docs/control-protocol.md, Limits) and its work in line: whatever it
//! sends, it waits for itself, and nobody else does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::{HostName, width};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::sync::lock;

/// Connections of one host, those included that have not said `Hello` yet. A daemon has three, and each for a moment twice
/// when it is made anew.
const CONNECTIONS_MAX: usize = 12;
/// Bytes of a host's requests that are not answered yet. Real ones have some hundred bytes, reports up to one MiB.
const OPEN_BYTES_MAX: usize = 8 << 20;
/// Reports that a host may send at once, and a second in the long run. A change-over has a dozen; a host that was away for
/// a day brings a thousand.
const REPORTS: Rate = Rate { burst: 1024.0, a_second: 100.0 };
/// Certificates. A host renews its own after two thirds of its life.
const RENEWALS: Rate = Rate { burst: 4.0, a_second: 1.0 / 60.0 };
/// Recordings of a start: each may cost minutes of compression.
const PROFILES: Rate = Rate { burst: 8.0, a_second: 1.0 / 30.0 };
/// Greetings of connections that the manager records.
const GREETINGS: Rate = Rate { burst: 30.0, a_second: 2.0 };
/// Requests that cannot be read, or that go beyond what may be open. A newer daemon sends a handful; whoever sends more
/// gets no answers for it.
const MISTAKES: Rate = Rate { burst: 100.0, a_second: 5.0 };
/// Bytes of reports that cost as much as one report.
const REPORT_BYTES: usize = 1 << 10;

/// Why a host must wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BudgetError {
    /// It asks more than its share; nothing was done.
    #[error("too many {what} of this host: ask again in {} s", .wait.as_secs().max(1))]
    TooMany {
        /// What there is too much of, for people.
        what: &'static str,
        /// After how long one more is allowed.
        wait: Duration,
    },
    /// It has more under way than its share; nothing was done.
    #[error(
        "this host's requests that are not answered yet have more than {OPEN_BYTES_MAX} bytes: wait for answers first"
    )]
    TooManyBytes,
    /// The host no longer wants it.
    #[error("the request was cancelled by its sender")]
    Cancelled,
}

/// So many at once, and so many a second in the long run.
#[derive(Debug, Clone, Copy)]
struct Rate {
    burst: f64,
    a_second: f64,
}

/// What is left of a rate.
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    left: f64,
    at: Instant,
}

impl Bucket {
    fn new(rate: Rate) -> Self {
        Self { rate, left: rate.burst, at: Instant::now() }
    }

    fn refill(&mut self, now: Instant) {
        self.left = (self.left + (now - self.at).as_secs_f64() * self.rate.a_second).min(self.rate.burst);
        self.at = now;
    }

    /// Takes `cost`, at most a whole burst; otherwise how long until it is there.
    fn take(&mut self, cost: f64, now: Instant) -> Result<(), Duration> {
        self.refill(now);
        let cost = cost.min(self.rate.burst);
        if self.left >= cost {
            self.left -= cost;
            return Ok(());
        }
        Err(Duration::from_secs_f64((cost - self.left) / self.rate.a_second))
    }
}

/// What hosts have left of what they may cost.
#[derive(Default)]
pub(crate) struct Budgets {
    hosts: Mutex<HashMap<HostName, Arc<Budget>>>,
}

/// What one host has left.
pub(crate) struct Budget {
    connections: Arc<Semaphore>,
    open_bytes: Arc<Semaphore>,
    /// Requests whose answers are made in memory as a whole: one at a time.
    lists: Arc<Semaphore>,
    /// Requests that write into the control state: one at a time, so that others' come in between.
    writes: Arc<Semaphore>,
    reports: Mutex<Bucket>,
    renewals: Mutex<Bucket>,
    profiles: Mutex<Bucket>,
    greetings: Mutex<Bucket>,
    mistakes: Mutex<Bucket>,
}

/// Work of a host that counts by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// A new certificate.
    Renewal,
    /// A recording of a start.
    Profile,
    /// A connection that is recorded.
    Greeting,
    /// A request that could not be read, or went beyond what may be open.
    Mistake,
}

impl Budgets {
    /// That of one host; all of its connections share it. Hosts without a connection and without a debt are forgotten.
    pub(crate) fn of(&self, host: &HostName) -> Arc<Budget> {
        let mut hosts = lock(&self.hosts);
        if let Some(budget) = hosts.get(host) {
            return Arc::clone(budget);
        }
        hosts.retain(|_, budget| Arc::strong_count(budget) > 1 || !budget.is_whole());
        let budget = Arc::new(Budget::default());
        hosts.insert(host.clone(), Arc::clone(&budget));
        budget
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            open_bytes: Arc::new(Semaphore::new(OPEN_BYTES_MAX)),
            lists: Arc::new(Semaphore::new(1)),
            writes: Arc::new(Semaphore::new(1)),
            reports: Mutex::new(Bucket::new(REPORTS)),
            renewals: Mutex::new(Bucket::new(RENEWALS)),
            profiles: Mutex::new(Bucket::new(PROFILES)),
            greetings: Mutex::new(Bucket::new(GREETINGS)),
            mistakes: Mutex::new(Bucket::new(MISTAKES)),
        }
    }
}

impl Budget {
    /// One connection more; `None` when the host has too many.
    pub(crate) fn connection(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.connections).try_acquire_owned().ok()
    }

    /// A request of so many bytes is open until the permit is dropped.
    ///
    /// # Errors
    /// [`BudgetError::TooManyBytes`].
    pub(crate) fn open(&self, bytes: usize) -> Result<OwnedSemaphorePermit, BudgetError> {
        let bytes = width::count(bytes.min(OPEN_BYTES_MAX));
        Arc::clone(&self.open_bytes).try_acquire_many_owned(bytes).map_err(|_| BudgetError::TooManyBytes)
    }

    /// Counts work by number.
    ///
    /// # Errors
    /// [`BudgetError::TooMany`].
    pub(crate) fn count(&self, work: Work) -> Result<(), BudgetError> {
        let (bucket, what) = match work {
            Work::Renewal => (&self.renewals, "renewals"),
            Work::Profile => (&self.profiles, "recordings of starts"),
            Work::Greeting => (&self.greetings, "connections"),
            Work::Mistake => (&self.mistakes, "requests that cannot be answered"),
        };
        let taken = lock(bucket).take(1.0, Instant::now());
        taken.map_err(|wait| BudgetError::TooMany { what, wait })
    }

    /// The turn of a request whose answer is made in memory as a whole, until the permit is dropped.
    pub(crate) async fn list(&self) -> Result<OwnedSemaphorePermit, BudgetError> {
        Arc::clone(&self.lists).acquire_owned().await.map_err(|_| BudgetError::Cancelled)
    }

    /// The turn of a request that writes, until the permit is dropped.
    pub(crate) async fn write(&self) -> Result<OwnedSemaphorePermit, BudgetError> {
        Arc::clone(&self.writes).acquire_owned().await.map_err(|_| BudgetError::Cancelled)
    }

    /// As [`Budget::write`], for reports: waits until the host has so many left.
    pub(crate) async fn report(&self, reports: usize, bytes: usize) -> Result<OwnedSemaphorePermit, BudgetError> {
        let turn = self.write().await?;
        let cost = f64::from(width::count(reports.max(bytes / REPORT_BYTES)));
        loop {
            let taken = lock(&self.reports).take(cost, Instant::now());
            match taken {
                Ok(()) => return Ok(turn),
                Err(wait) => tokio::time::sleep(wait).await,
            }
        }
    }

    /// Whether nothing is missing from any of its rates.
    fn is_whole(&self) -> bool {
        let now = Instant::now();
        [&self.reports, &self.renewals, &self.profiles, &self.greetings, &self.mistakes].into_iter().all(|bucket| {
            let mut bucket = lock(bucket);
            bucket.refill(now);
            bucket.left >= bucket.rate.burst
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_allows_a_burst_and_then_so_many_a_second() {
        let begun = Instant::now();
        let mut bucket = Bucket { rate: Rate { burst: 4.0, a_second: 2.0 }, left: 4.0, at: begun };
        (0..4).for_each(|_| bucket.take(1.0, begun).unwrap());
        assert_eq!(bucket.take(1.0, begun), Err(Duration::from_millis(500)));
        assert_eq!(bucket.take(1.0, begun + Duration::from_millis(500)), Ok(()));
        // More than a burst costs a burst: it is never refused for ever.
        assert!(bucket.take(1e9, begun + Duration::from_secs(3)).is_ok());
        assert!(bucket.take(1.0, begun + Duration::from_secs(3)).is_err());
    }

    #[test]
    fn all_connections_of_a_host_share_what_it_may_cost_and_whole_budgets_are_forgotten() {
        let budgets = Budgets::default();
        let (one, other): (HostName, HostName) = ("one".parse().unwrap(), "other".parse().unwrap());
        let held = budgets.of(&one).open(OPEN_BYTES_MAX - 10).unwrap();
        assert!(budgets.of(&one).open(11).is_err());
        assert!(budgets.of(&other).open(11).is_ok());
        drop(held);
        assert!(budgets.of(&one).open(11).is_ok());
        (0..4).for_each(|_| budgets.of(&one).count(Work::Renewal).unwrap());
        assert!(matches!(budgets.of(&one).count(Work::Renewal), Err(BudgetError::TooMany { .. })));
        budgets.of(&"third".parse().unwrap());
        let hosts = budgets.hosts.lock().unwrap();
        assert!(hosts.contains_key(&one) && !hosts.contains_key(&other), "a debt is remembered, nothing else");
    }
}
