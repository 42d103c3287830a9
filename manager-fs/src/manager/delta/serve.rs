//! Deltas for hosts: made when they are first wanted, or ahead of that at a publication, and sent as they lie.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use proto::delta::Header;
use proto::limits::BULK_BYTES_MAX;
use proto::message::{Making, ManagerReply};
use proto::{GenerationRecord, HostName, TreeId, width};

use super::{DeltaError, DeltaOptions, LEVEL_BEST, LEVEL_FAST, make};
use crate::manager::control::State;
use crate::manager::exports::{ExportError, Exports};
use crate::manager::store::{Store, StoreError};
use crate::manager::worker::{BrokenOff, blocking};
use crate::net::{Answer, NetError};

/// A host that waits for a delta hears this often that it is being made.
const SIGN_OF_LIFE_EVERY: Duration = Duration::from_secs(5);

/// Why a host did not get a delta.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendDeltaError {
    /// It may not have one of the trees.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The two trees are one.
    #[error("a delta from tree {0} to itself")]
    SameTree(TreeId),
    /// It was made and is gone.
    #[error("the delta from {from} to {to} did not stay: ask again")]
    Gone {
        /// From which tree.
        from: TreeId,
        /// The tree that it makes.
        to: TreeId,
    },
    /// It cannot be made.
    #[error(transparent)]
    Make(#[from] DeltaError),
    /// It cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The connection ended, or the host no longer wants it.
    #[error(transparent)]
    Net(#[from] NetError),
    /// It was not made or read.
    #[error(transparent)]
    BrokenOff(#[from] BrokenOff),
}

/// Waits for a delta that is being made, and tells every now and then for how long it has been.
async fn with_signs_of_life<T, Telling: Future<Output = ()>>(
    made: impl Future<Output = T>,
    every: Duration,
    tell: impl Fn(Duration) -> Telling,
) -> T {
    let (begun, mut made) = (Instant::now(), std::pin::pin!(made));
    loop {
        match tokio::time::timeout(every, &mut made).await {
            Ok(made) => return made,
            Err(_) => tell(begun.elapsed()).await,
        }
    }
}

/// Makes and sends deltas.
pub(crate) struct Deltas {
    store: Arc<Store>,
    state: Arc<State>,
    exports: Arc<Exports>,
    /// One delta that hosts wait for is made at a time.
    making: tokio::sync::Mutex<()>,
}

impl Deltas {
    /// Over a store, as far as `exports` allows.
    pub(crate) fn new(store: Arc<Store>, state: Arc<State>, exports: Arc<Exports>) -> Self {
        Self { store, state, exports, making: tokio::sync::Mutex::default() }
    }

    /// Streams the delta between two trees that are both exported to the host, without its trailer. Makes it first if
    /// there is none; hosts that ask meanwhile wait for the same one.
    ///
    /// # Errors
    /// See [`SendDeltaError`].
    pub(crate) async fn send(
        self: &Arc<Self>,
        host: &HostName,
        from: TreeId,
        to: TreeId,
        answer: &Answer,
    ) -> Result<ManagerReply, SendDeltaError> {
        for tree in [&from, &to] {
            self.exports.check(host, tree)?;
        }
        if from == to {
            return Err(SendDeltaError::SameTree(to));
        }
        let header = match self.stored(from, to).await? {
            Some(header) => header,
            None => {
                // Whoever has gone away is no reason to stop: the next who asks finds it made.
                let tell = |elapsed| async move {
                    let _ = answer.event(&Making { elapsed_ms: width::millis(elapsed) }).await;
                };
                with_signs_of_life(self.made(from, to), SIGN_OF_LIFE_EVERY, tell).await?
            }
        };
        let end = header.front_bytes() + header.frames_bytes;
        let (mut at, mut frames) = (0, 0);
        while at < end {
            let range = at..(at + BULK_BYTES_MAX as u64).min(end);
            at = range.end;
            let deltas = Arc::clone(self);
            let read = move || deltas.store.delta_bytes(&from, &to, range).map_err(SendDeltaError::from);
            answer.bulk(&[], blocking(read).await?).await?;
            frames += 1;
        }
        Ok(ManagerReply::Sent(frames))
    }

    /// The deltas that are to be made ahead: from each generation to the one published after it, the newest first, so that
    /// the first host that upgrades need not wait.
    pub(crate) fn pending(&self) -> Vec<(TreeId, TreeId)> {
        let generations = self.state.generations();
        let mut records: Vec<_> = generations.iter().map(|generation| &generation.record).collect();
        records.sort_by_key(|record| std::cmp::Reverse(record.sequence));
        let earlier = |this: &GenerationRecord| {
            let mut older = records.iter().filter(|record| record.sequence < this.sequence);
            let may_come_from = |record: &&&GenerationRecord| {
                record.product == this.product && record.tree != this.tree && record.shares_architecture(this)
            };
            older.find(may_come_from).map(|record| record.tree)
        };
        let pairs = records.iter().filter_map(|record| Some((earlier(record)?, record.tree)));
        pairs.filter(|(from, to)| matches!(self.store.has_delta(from, to), Ok(false))).collect()
    }

    /// Makes a delta as well as it goes. A host that asks before it is done gets one made fast; the first to be done stays.
    pub(crate) fn make_ahead(&self, (from, to): (TreeId, TreeId), cancelled: &AtomicBool) {
        match self.make(&from, &to, LEVEL_BEST, cancelled) {
            Ok(()) | Err(DeltaError::Cancelled) => {}
            Err(error) => tracing::warn!(%from, %to, %error, "no delta was made ahead; it is made when a host asks"),
        }
    }

    async fn stored(self: &Arc<Self>, from: TreeId, to: TreeId) -> Result<Option<Header>, SendDeltaError> {
        let deltas = Arc::clone(self);
        blocking(move || deltas.store.delta(&from, &to).map_err(SendDeltaError::from)).await
    }

    /// Makes a delta that hosts wait for, unless one that asked before has had it made meanwhile.
    async fn made(self: &Arc<Self>, from: TreeId, to: TreeId) -> Result<Header, SendDeltaError> {
        let _one_at_a_time = self.making.lock().await;
        if let Some(header) = self.stored(from, to).await? {
            return Ok(header);
        }
        let deltas = Arc::clone(self);
        blocking(move || deltas.make(&from, &to, LEVEL_FAST, &AtomicBool::new(false)).map_err(SendDeltaError::from))
            .await?;
        self.stored(from, to).await?.ok_or(SendDeltaError::Gone { from, to })
    }

    fn make(&self, from: &TreeId, to: &TreeId, level: i32, cancelled: &AtomicBool) -> Result<(), DeltaError> {
        // Half of the cores: the manager serves hosts meanwhile.
        let threads = thread::available_parallelism().map_or(1, usize::from).div_ceil(2);
        let stats = make(&self.store, from, to, DeltaOptions { level, threads }, cancelled)?;
        tracing::info!(%from, %to, bytes = stats.delta_bytes, instead_of = stats.replaced_stored_bytes, "delta made");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[tokio::test]
    async fn whoever_waits_for_a_delta_hears_that_it_is_being_made() {
        let (told, (done, is_done)) = (Mutex::new(Vec::new()), tokio::sync::oneshot::channel());
        let done = Mutex::new(Some(done));
        let tell = |elapsed| {
            told.lock().unwrap().push(elapsed);
            if told.lock().unwrap().len() == 3 {
                done.lock().unwrap().take().unwrap().send("made").unwrap();
            }
            std::future::ready(())
        };
        let made = with_signs_of_life(is_done, Duration::from_millis(1), tell).await;
        assert_eq!(made, Ok("made"));
        assert!(told.into_inner().unwrap().is_sorted());
    }
}
