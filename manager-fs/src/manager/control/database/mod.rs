//! The control store of a manager on one machine: `redb`, one file, every commit synced.
//!
//! ```text
//! commit, grant, keep, end ──queue──> one writing thread ──one transaction, one sync──> answers to all of them
//! get, list, watch         ──queue──> reading threads
//! ```
//! A sync costs milliseconds, and a thousand hosts report at once: commits that arrive during a sync share the next
//! one, each with a revision of its own. An async thread meets a queue and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::contract::{
    Act, Change, ControlError, ControlStore, Cursor, Entry, Events, LeaseId, Listing, Pending, Revision, Watch,
    check_bounds,
};
use super::disk::{Changed, Disk, Opener, Readers, join, open_file};
use crate::moments::{self, Moment};

mod tables;
#[cfg(any(test, fuzzing))]
pub(super) use tables::read_any_commit;
#[cfg(test)]
mod bounds_tests;
#[cfg(test)]
mod tests;

/// Threads that read. Reads are short; a second one keeps a long listing from holding up the rest.
const READERS: usize = 2;
/// Changes that share one sync at most, so that nobody waits behind an endless one.
const BATCH_CHANGES_MAX: usize = 20_000;
/// How long the writing thread sleeps when it knows of no lease that could end.
const IDLE: Duration = Duration::from_secs(3600);

/// See the module. Dropping it waits for the commit under way.
pub struct LocalStore {
    disk: Arc<Disk>,
    readers: Arc<Readers>,
    orders: mpsc::Sender<Order>,
    revision: watch::Receiver<Revision>,
    writer: Option<JoinHandle<()>>,
}

/// What the writing thread is asked for.
enum Order {
    Commit(Waiting),
    Grant(Duration, oneshot::Sender<LeaseId>),
    Keep(LeaseId, oneshot::Sender<Result<(), ControlError>>),
    End(LeaseId, oneshot::Sender<Result<(), ControlError>>),
}

/// A commit that waits for its turn.
struct Waiting {
    changes: Vec<Change>,
    answer: oneshot::Sender<Result<Revision, ControlError>>,
}

impl LocalStore {
    /// Opens the database, or makes it. Leases do not outlive the process: their keys are deleted here. Waits for the
    /// disk.
    ///
    /// # Errors
    /// Another process has it open, it is damaged or of a later format, or the disk fails.
    pub fn open(path: &Path) -> Result<Self, ControlError> {
        let path = path.to_path_buf();
        Self::open_with(Box::new(move || open_file(&path)))
    }

    pub(super) fn open_with(opener: Opener) -> Result<Self, ControlError> {
        let disk = Arc::new(Disk::open(opener)?);
        let begun = tables::begin(&disk)?;
        let (revision, seen) = watch::channel(begun.revision);
        let mut writer = Writer {
            disk: Arc::clone(&disk),
            history_bytes: begun.history_bytes,
            revision,
            leases: BTreeMap::new(),
            next_lease: 1,
        };
        writer.delete(begun.stale)?;
        let (orders, received) = mpsc::channel();
        let thread = std::thread::Builder::new().name(String::from("control-write"));
        let thread = thread.spawn(move || writer.run(&received)).map_err(super::disk::storage)?;
        let readers = Arc::new(Readers::start(&disk, "control-read", READERS)?);
        Ok(Self { disk, readers, orders, revision: seen, writer: Some(thread) })
    }

    /// Writes a store with these entries, as its first revision, into a file that is not there yet. Waits for the disk.
    ///
    /// # Errors
    /// The disk fails.
    pub(in crate::manager) fn fill(path: &Path, entries: &[(String, Vec<u8>)]) -> Result<(), ControlError> {
        let path = path.to_path_buf();
        let disk = Disk::open(Box::new(move || open_file(&path)))?;
        tables::begin(&disk)?;
        disk.write(|transaction| tables::fill(transaction, entries))
    }

    /// Transactions that were synced since it was opened.
    pub fn synced(&self) -> u64 {
        self.disk.synced()
    }

    fn order<T: Send + 'static>(
        &self,
        order: impl FnOnce(oneshot::Sender<T>) -> Order,
    ) -> impl Future<Output = Result<T, ControlError>> + Send + 'static {
        let (answer, answered) = oneshot::channel();
        // A writer that is gone drops the answer, which says the same.
        let _ = self.orders.send(order(answer));
        async move { answered.await.map_err(|_| ControlError::Closed) }
    }
}

impl Drop for LocalStore {
    fn drop(&mut self) {
        // The writing thread ends when nobody can order anything any more.
        self.orders = mpsc::channel().0;
        join(self.writer.take().into_iter());
    }
}

impl ControlStore for LocalStore {
    fn get<'a>(&'a self, key: &'a str) -> Pending<'a, Option<Entry>> {
        let key = key.to_owned();
        Box::pin(self.readers.run(move |disk| disk.read(|transaction| tables::get(transaction, &key))))
    }

    fn list<'a>(&'a self, prefix: &'a str, from: Option<Cursor>) -> Pending<'a, Listing> {
        let prefix = prefix.to_owned();
        Box::pin(self.readers.run(move |disk| match from {
            None => disk.read_and_keep(|transaction| {
                let page = tables::list(transaction, &prefix, None)?;
                let keep = page.next.as_ref().map(|next| next.revision);
                Ok((page, keep))
            }),
            Some(cursor) => {
                let read = |transaction: &_| tables::list(transaction, &prefix, Some(&cursor.after));
                let page = disk.read_kept(cursor.revision, read)?;
                page.ok_or(ControlError::Compacted { oldest: Revision(cursor.revision.0 + 1) })
            }
        }))
    }

    fn commit(&self, changes: Vec<Change>) -> Pending<'_, Revision> {
        if let Err(error) = check_bounds(&changes) {
            return Box::pin(std::future::ready(Err(error)));
        }
        let committed = self.order(|answer| Order::Commit(Waiting { changes, answer }));
        Box::pin(async move { committed.await? })
    }

    fn watch(&self, prefix: &str, after: Revision) -> Box<dyn Watch> {
        Box::new(LocalWatch {
            readers: Arc::clone(&self.readers),
            prefix: prefix.to_owned(),
            seen: after,
            revision: self.revision.clone(),
        })
    }

    fn grant(&self, ttl: Duration) -> Pending<'_, LeaseId> {
        Box::pin(self.order(|answer| Order::Grant(ttl, answer)))
    }

    fn keep(&self, lease: LeaseId) -> Pending<'_, ()> {
        let kept = self.order(|answer| Order::Keep(lease, answer));
        Box::pin(async move { kept.await? })
    }

    fn end(&self, lease: LeaseId) -> Pending<'_, ()> {
        let ended = self.order(|answer| Order::End(lease, answer));
        Box::pin(async move { ended.await? })
    }
}

struct LocalWatch {
    readers: Arc<Readers>,
    prefix: String,
    seen: Revision,
    revision: watch::Receiver<Revision>,
}

impl Watch for LocalWatch {
    fn next(&mut self) -> Pending<'_, Events> {
        Box::pin(async move {
            loop {
                let current = *self.revision.borrow_and_update();
                if current > self.seen {
                    let (prefix, after) = (self.prefix.clone(), self.seen);
                    let read = move |disk: &Disk| disk.read(|read| tables::history(read, &prefix, after));
                    let found = self.readers.run(read).await?;
                    self.seen = found.through.max(self.seen);
                    if !found.events.is_empty() {
                        return Ok(found);
                    }
                    // The history's pages are bounded: there may be more of it.
                    continue;
                }
                self.revision.changed().await.map_err(|_| ControlError::Closed)?;
            }
        })
    }
}

/// The one that changes anything.
struct Writer {
    disk: Arc<Disk>,
    history_bytes: usize,
    revision: watch::Sender<Revision>,
    leases: BTreeMap<LeaseId, Lease>,
    next_lease: u64,
}

struct Lease {
    ttl: Duration,
    end: Instant,
}

impl Writer {
    fn run(&mut self, orders: &mpsc::Receiver<Order>) {
        loop {
            let next = self.leases.values().map(|lease| lease.end).min();
            let patience = next.map_or(IDLE, |end| end.saturating_duration_since(Instant::now()));
            let first = match orders.recv_timeout(patience) {
                Ok(order) => Some(order),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            };
            self.end_what_is_over();
            if let Some(order) = first {
                self.serve(order, orders);
            }
        }
    }

    /// Serves one order, and with a commit all those that wait behind it.
    fn serve(&mut self, first: Order, orders: &mpsc::Receiver<Order>) {
        let (mut batch, mut changes) = (Vec::new(), 0);
        let mut next = Some(first);
        while let Some(order) = next {
            match order {
                Order::Commit(waiting) => {
                    changes += waiting.changes.len();
                    batch.push(waiting);
                }
                // Leases are in memory, but their ends are commits: in the order in which they were asked for.
                other => {
                    self.commit(std::mem::take(&mut batch));
                    self.serve_lease(other);
                }
            }
            next = if changes < BATCH_CHANGES_MAX { orders.try_recv().ok() } else { None };
        }
        self.commit(batch);
    }

    fn serve_lease(&mut self, order: Order) {
        match order {
            Order::Commit(waiting) => self.commit(vec![waiting]),
            Order::Grant(ttl, answer) => {
                let lease = LeaseId(self.next_lease);
                self.next_lease += 1;
                self.leases.insert(lease, Lease { ttl, end: Instant::now() + ttl });
                let _ = answer.send(lease);
            }
            Order::Keep(lease, answer) => {
                let now = Instant::now();
                let kept = self.leases.get_mut(&lease).filter(|lease| lease.end > now);
                let kept = kept.map(|lease| lease.end = now + lease.ttl).ok_or(ControlError::LeaseEnded);
                let _ = answer.send(kept);
            }
            Order::End(lease, answer) => {
                let _ = answer.send(self.end(lease));
            }
        }
    }

    fn end_what_is_over(&mut self) {
        let now = Instant::now();
        let over: Vec<LeaseId> =
            self.leases.iter().filter(|(_, lease)| lease.end <= now).map(|(lease, _)| *lease).collect();
        for lease in over {
            if let Err(error) = self.end(lease) {
                tracing::error!(%error, "the keys of a lease that has ended are still there");
            }
        }
    }

    fn end(&mut self, lease: LeaseId) -> Result<(), ControlError> {
        let keys = self.disk.read(|transaction| tables::leased(transaction, Some(lease)))?;
        self.delete(keys)?;
        self.leases.remove(&lease);
        Ok(())
    }

    fn delete(&mut self, keys: Vec<String>) -> Result<(), ControlError> {
        if keys.is_empty() {
            return Ok(());
        }
        let changes: Vec<Change> =
            keys.into_iter().map(|key| Change::delete(key, super::contract::Expect::Any)).collect();
        let outcomes = self.transact(&[changes.as_slice()])?;
        outcomes.into_iter().try_for_each(|outcome| outcome.map(drop))
    }

    fn commit(&mut self, batch: Vec<Waiting>) {
        let (batch, refused): (Vec<_>, Vec<_>) = batch.into_iter().partition(|waiting| self.leases_live(waiting));
        for waiting in refused {
            let _ = waiting.answer.send(Err(ControlError::LeaseEnded));
        }
        if batch.is_empty() {
            return;
        }
        let changes: Vec<&[Change]> = batch.iter().map(|waiting| waiting.changes.as_slice()).collect();
        let outcomes = self.transact(&changes);
        for (at, waiting) in batch.into_iter().enumerate() {
            let its = outcomes.as_ref().map_or_else(|error| Err(error.clone()), |outcomes| outcomes[at].clone());
            // Whoever asked may be gone; what was committed stays.
            let _ = waiting.answer.send(its);
        }
    }

    fn leases_live(&self, waiting: &Waiting) -> bool {
        let now = Instant::now();
        waiting.changes.iter().all(|change| match change.act {
            Act::Put { lease: Some(lease), .. } => self.leases.get(&lease).is_some_and(|lease| lease.end > now),
            Act::Put { lease: None, .. } | Act::Delete | Act::Check => true,
        })
    }

    /// One transaction for all; a commit whose conditions do not hold leaves the others alone.
    fn transact(&mut self, batch: &[&[Change]]) -> Result<Vec<Result<Revision, ControlError>>, ControlError> {
        let mut state = tables::Reached { revision: *self.revision.borrow(), history_bytes: self.history_bytes };
        let outcomes = self.disk.write(|transaction| {
            // One whose answer was an error may have happened all the same: its number is taken.
            state.revision = state.revision.max(tables::last(transaction)?);
            let outcomes = batch.iter().map(|changes| match tables::apply(transaction, changes, &mut state) {
                Ok(revision) => Ok(Ok(revision)),
                Err(conflict @ ControlError::Conflict { .. }) => Ok(Err(conflict)),
                Err(error) => Err(error),
            });
            let outcomes = outcomes.collect::<Result<Vec<_>, _>>()?;
            let changed = if outcomes.iter().any(Result::is_ok) { Changed::Something } else { Changed::Nothing };
            let keys = batch.iter().flat_map(|changes| changes.iter()).map(|change| change.key.as_str());
            keys.map(moment_of).collect::<BTreeSet<_>>().into_iter().try_for_each(reach)?;
            Ok((outcomes, changed))
        })?;
        self.history_bytes = state.history_bytes;
        self.revision.send_replace(state.revision);
        Ok(outcomes)
    }
}

/// What is committed with a key of this kind (`state/keys.rs` has them all).
fn moment_of(key: &str) -> Moment {
    match key.split('/').next() {
        Some("generation") => Moment::GenerationCommit,
        Some("export") => Moment::ExportCommit,
        Some("host") => Moment::HostCommit,
        Some("token") => Moment::TokenCommit,
        Some("group") => Moment::GroupCommit,
        Some("change") => Moment::ChangeCommit,
        Some("job") => Moment::JobCommit,
        _ => Moment::OtherCommit,
    }
}

fn reach(moment: Moment) -> Result<(), ControlError> {
    moments::reach(moment, Path::new("control.redb")).map_err(super::disk::storage)
}
