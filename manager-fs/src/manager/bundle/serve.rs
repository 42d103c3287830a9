//! Bundles for hosts: sent as they lie, made of what hosts have recorded.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use lru::LruCache;
use proto::bundle::{HEADER_BYTES, Header, Touch};
use proto::message::ManagerReply;
use proto::relative::Part;
use proto::{GenerationRef, HostName, TreeId};

use super::agreement::Told;
use super::background::{Background, Wish};
use super::guessed::Guessed;
use super::served::Served;
use super::{BundleError, guess};
use crate::manager::control::State;
use crate::manager::exports::{ExportError, Exports};
use crate::manager::store::{Store, StoreError};
use crate::manager::worker::{BrokenOff, blocking};
use crate::net::{Answer, NetError};
use crate::sync::lock;

/// Bundles kept in memory: what a rollout of a handful of products asks for at once, some megabytes each.
const BUNDLES_KEPT: NonZeroUsize = NonZeroUsize::new(8).unwrap();
/// zstd level of a guess: a host waits until it is made.
pub(super) const LEVEL_GUESS: i32 = 3;
/// Bytes of one bulk frame of a bundle: a host uses nothing of a frame before its last byte has come.
const SEND_BYTES: usize = 64 << 10;

/// From which tree, and which tree.
pub(super) type Key = (Option<TreeId>, TreeId);

/// What a host asks for when it starts a generation.
pub(crate) struct StartOrder {
    /// By any name.
    pub(crate) generation: GenerationRef,
    /// A tree that it has.
    pub(crate) from: Option<TreeId>,
    /// Whether the manifest is wanted too.
    pub(crate) manifest: bool,
    /// The program, as it was typed; otherwise the entry point.
    pub(crate) program: Option<String>,
}

/// Why a host did not get a bundle, or a profile was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendStartError {
    /// It may not have the tree.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// It cannot be made.
    #[error(transparent)]
    Make(#[from] BundleError),
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

/// Bundles at hand, and who makes one now.
pub(crate) struct Bundles {
    pub(super) store: Arc<Store>,
    pub(super) state: Arc<State>,
    exports: Arc<Exports>,
    served: Mutex<LruCache<Key, Option<Arc<Served>>>>,
    /// Who replaces one that is stored; held for moments, never while one is made well.
    pub(super) storing: Mutex<()>,
    /// What hosts have told of their starts.
    pub(super) told: Mutex<Told>,
    pub(super) background: Arc<Background<Wish>>,
    /// Guesses that are made well take seconds each: nothing that was recorded stands behind them.
    pub(super) guesses: Arc<Background<Wish>>,
    /// Trees to which nothing could be carried over, since the last recording.
    pub(super) sourceless: Mutex<HashSet<TreeId>>,
    /// Who guesses one: a host waits for it, so not behind those that are made well.
    pub(super) guessing: Mutex<()>,
    /// What was guessed, by tree and program.
    pub(super) guessed: Mutex<Guessed>,
}

impl Bundles {
    /// Over a store, as far as `exports` allows.
    pub(crate) fn new(store: Arc<Store>, state: Arc<State>, exports: Arc<Exports>) -> Self {
        Self {
            store,
            state,
            exports,
            served: Mutex::new(LruCache::new(BUNDLES_KEPT)),
            storing: Mutex::default(),
            told: Mutex::default(),
            background: Arc::default(),
            guesses: Arc::new(Background::at(19)),
            sourceless: Mutex::default(),
            guessing: Mutex::default(),
            guessed: Mutex::default(),
        }
    }

    pub(super) fn served(&self) -> std::sync::MutexGuard<'_, LruCache<Key, Option<Arc<Served>>>> {
        lock(&self.served)
    }

    /// Streams everything that a start of a generation needs. A tree without a recorded bundle has a guessed one.
    ///
    /// # Errors
    /// See [`SendStartError`].
    pub(crate) async fn send(
        self: &Arc<Self>,
        host: &HostName,
        order: StartOrder,
        answer: &Answer,
    ) -> Result<ManagerReply, SendStartError> {
        let (bundles, asker, with_manifest) = (Arc::clone(self), host.clone(), order.manifest);
        let served = blocking(move || bundles.for_start(&asker, &order)).await?;
        let header = Header {
            manifest: if with_manifest { served.header.manifest } else { Part::default() },
            ..served.header
        };
        let after_manifest = HEADER_BYTES + served.header.manifest.stored_bytes as usize;
        let rest = if with_manifest { &served.bytes[HEADER_BYTES..] } else { &served.bytes[after_manifest..] };
        let mut frames = 0;
        let (first, rest) = rest.split_at(rest.len().min(SEND_BYTES - HEADER_BYTES));
        answer.bulk(&header.encode(), first.to_vec()).await?;
        for part in rest.chunks(SEND_BYTES) {
            answer.bulk(&[], part.to_vec()).await?;
            frames += 1;
        }
        Ok(ManagerReply::Sent(frames + 1))
    }

    fn for_start(self: &Arc<Self>, host: &HostName, order: &StartOrder) -> Result<Arc<Served>, SendStartError> {
        let tree = self.exports.one_exported(host, &order.generation)?;
        // A tree that it may not see would tell what is in it.
        let from = match order.from {
            Some(from) if from != tree && self.exports.permits(host, &from) => Some(from),
            _ => None,
        };
        self.bundle_for(from, tree, order.program.as_deref())
    }

    /// The bundle that serves a host best: made for the tree that it has, else for any host, else a guess.
    fn bundle_for(
        self: &Arc<Self>,
        from: Option<TreeId>,
        tree: TreeId,
        program: Option<&str>,
    ) -> Result<Arc<Served>, SendStartError> {
        if let Some(from) = from {
            if let Some(served) = self.stored_bundle((Some(from), tree))? {
                return Ok(served);
            }
            if self.stored_bundle((None, tree))?.is_some() {
                self.wish(Wish::From(from, tree));
            }
        }
        if let Some(served) = self.stored_bundle((None, tree))? {
            return Ok(served);
        }
        // A wish of a publication may have been dropped, or the recording came later.
        if !lock(&self.sourceless).contains(&tree) {
            self.wish(Wish::Carried(tree));
        }
        self.guessed_bundle(tree, program)
    }

    /// What a start will touch as far as the tree says it.
    pub(super) fn guess(&self, tree: &TreeId) -> Result<Vec<Touch>, SendStartError> {
        let generations = self.state.generations();
        let records = generations.iter().map(|generation| &generation.record).filter(|record| record.tree == *tree);
        Ok(guess::touches(&self.store, &self.store.tree(tree)?, records.map(|record| &record.metadata)))
    }

    pub(super) fn stored_bundle(&self, key: Key) -> Result<Option<Arc<Served>>, SendStartError> {
        if let Some(known) = self.served().get(&key) {
            return Ok(known.clone());
        }
        let found = self.store.bundle(key.0.as_ref(), &key.1)?;
        let found = found.map(|(header, bytes)| Arc::new(Served { header, bytes }));
        self.served().put(key, found.clone());
        Ok(found)
    }
}
