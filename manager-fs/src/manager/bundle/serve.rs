//! Bundles for hosts: sent as they lie, made of what hosts have recorded.

use std::num::NonZeroUsize;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use lru::LruCache;
use proto::bundle::{HEADER_BYTES, Header, Touch};
use proto::delta::Part;
use proto::message::{BundleFacts, ManagerReply};
use proto::width;
use proto::{GenerationRef, HostName, TreeId};

use super::{BundleError, BundleOrder, LEVEL, guess, make, touches_of};
use crate::manager::control::State;
use crate::manager::exports::{ExportError, Exports};
use crate::manager::store::{Store, StoreError};
use crate::manager::worker::{BrokenOff, blocking};
use crate::net::{Answer, NetError};
use crate::patch;

/// Bundles kept in memory: what a rollout of a handful of products asks for at once, some megabytes each.
const BUNDLES_KEPT: NonZeroUsize = NonZeroUsize::new(8).unwrap();
/// zstd level of a guess: a host waits until it is made.
const LEVEL_GUESS: i32 = 3;
/// Bytes of one bulk frame of a bundle: a host uses nothing of a frame before its last byte has come.
const SEND_BYTES: usize = 64 << 10;

/// From which tree, and which tree.
type Key = (Option<TreeId>, TreeId);

/// A bundle as it is sent, without its trailer.
struct Served {
    header: Header,
    bytes: Vec<u8>,
}

/// What a host asks for when it starts a generation.
pub(crate) struct StartOrder {
    /// By any name.
    pub(crate) generation: GenerationRef,
    /// A tree that it has.
    pub(crate) from: Option<TreeId>,
    /// Whether the manifest is wanted too.
    pub(crate) manifest: bool,
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
    store: Arc<Store>,
    state: Arc<State>,
    exports: Arc<Exports>,
    served: Mutex<LruCache<Key, Option<Arc<Served>>>>,
    making: Mutex<()>,
    /// Who guesses one: a host waits for it, so not behind those that are made well.
    guessing: Mutex<()>,
}

impl Bundles {
    /// Over a store, as far as `exports` allows.
    pub(crate) fn new(store: Arc<Store>, state: Arc<State>, exports: Arc<Exports>) -> Self {
        Self {
            store,
            state,
            exports,
            served: Mutex::new(LruCache::new(BUNDLES_KEPT)),
            making: Mutex::default(),
            guessing: Mutex::default(),
        }
    }

    fn served(&self) -> std::sync::MutexGuard<'_, LruCache<Key, Option<Arc<Served>>>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.bundle_for(from, tree)
    }

    /// The bundle that serves a host best: made for the tree that it has, else for any host, else a guess.
    fn bundle_for(self: &Arc<Self>, from: Option<TreeId>, tree: TreeId) -> Result<Arc<Served>, SendStartError> {
        if let Some(from) = from {
            if let Some(served) = self.stored_bundle((Some(from), tree))? {
                return Ok(served);
            }
            if self.stored_bundle((None, tree))?.is_some() {
                self.make_bundle_from_soon(from, tree);
            }
        }
        if let Some(served) = self.stored_bundle((None, tree))? {
            return Ok(served);
        }
        self.guessed_bundle(tree)
    }

    /// What a start will touch as far as the tree says it, made when the first host asks and kept in memory.
    fn guessed_bundle(&self, tree: TreeId) -> Result<Arc<Served>, SendStartError> {
        let _one_at_a_time = self.guessing.lock().unwrap_or_else(PoisonError::into_inner);
        // Someone else may have made it meanwhile, or better: recorded a start.
        if let Some(served) = self.stored_bundle((None, tree))? {
            return Ok(served);
        }
        let since = Instant::now();
        let generations = self.state.generations();
        let records = generations.iter().map(|generation| &generation.record).filter(|record| record.tree == tree);
        let touches = guess::touches(&self.store, &self.store.tree(&tree)?, records.map(|record| &record.metadata));
        let order = |touches| BundleOrder { tree: &tree, from: None, touches, guessed: true, level: LEVEL_GUESS };
        let never = AtomicBool::new(false);
        // The manifest is worth an answer of its own.
        let made = make(&self.store, order(&touches), &never).or_else(|error| {
            tracing::warn!(%tree, %error, "no guess of what a start touches");
            make(&self.store, order(&[]), &never)
        });
        let (bytes, facts) = made?;
        let (made_ms, bundle_bytes) = (width::millis(since.elapsed()), facts.bundle_bytes);
        tracing::info!(%tree, pages = facts.plain_bytes, bytes = bundle_bytes, made_ms, "start-up bundle guessed");
        let guessed = Arc::new(served(bytes)?);
        let mut bundles = self.served();
        if let Some(Some(recorded)) = bundles.get(&(None, tree)) {
            return Ok(Arc::clone(recorded));
        }
        bundles.put((None, tree), Some(Arc::clone(&guessed)));
        Ok(guessed)
    }

    fn stored_bundle(&self, key: Key) -> Result<Option<Arc<Served>>, SendStartError> {
        if let Some(known) = self.served().get(&key) {
            return Ok(known.clone());
        }
        let found = self.store.bundle(key.0.as_ref(), &key.1)?;
        let found = found.map(|(header, bytes)| Arc::new(Served { header, bytes }));
        self.served().put(key, found.clone());
        Ok(found)
    }

    /// Takes what was touched on a host into the bundle of a tree, which later hosts get.
    ///
    /// # Errors
    /// The touches are not of the tree, or the store failed.
    pub(crate) fn profile(self: &Arc<Self>, tree: &TreeId, touches: &[Touch]) -> Result<BundleFacts, SendStartError> {
        let _one_at_a_time = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = match self.store.bundle(None, tree)? {
            Some((header, bytes)) if !header.guessed => touches_of(&bytes, &header, &self.store)?,
            _ => Vec::new(),
        };
        all.extend_from_slice(touches);
        let facts = self.make_bundle(None, tree, &all, false)?;
        for from in self.bundle_bases(tree) {
            self.make_bundle_from(&from, tree);
        }
        Ok(facts)
    }

    /// What the first start of a generation touched that nobody had recorded: better than a guess.
    pub(crate) fn learn(self: &Arc<Self>, host: &HostName, tree: TreeId, touches: Vec<Touch>) {
        let known = self.store.bundle(None, &tree);
        if !matches!(known, Ok(None)) && !known.is_ok_and(|known| known.is_some_and(|(header, _)| header.guessed)) {
            return;
        }
        let (bundles, host) = (Arc::clone(self), host.clone());
        in_background("learn", move || match bundles.profile(&tree, &touches) {
            Ok(facts) => {
                tracing::info!(%host, %tree, pages = facts.plain_bytes, bytes = facts.bundle_bytes, "learned")
            }
            Err(error) => tracing::warn!(%host, %tree, %error, "nothing learned from a host's start"),
        });
    }

    fn make_bundle(
        &self,
        from: Option<&TreeId>,
        tree: &TreeId,
        touches: &[Touch],
        guessed: bool,
    ) -> Result<BundleFacts, BundleError> {
        let order = BundleOrder { tree, from, touches, guessed, level: LEVEL };
        let (bytes, facts) = make(&self.store, order, &AtomicBool::new(false))?;
        self.store.put_bundle(from, tree, &bytes)?;
        let served = Served { header: served_header(&bytes)?, bytes };
        self.served().put((from.copied(), *tree), Some(Arc::new(served)));
        tracing::info!(%tree, ?from, pages = facts.plain_bytes, bytes = facts.bundle_bytes, "start-up bundle made");
        Ok(facts)
    }

    /// The trees from which bundles follow a new profile: those that have one, and the generation published before.
    fn bundle_bases(&self, tree: &TreeId) -> Vec<TreeId> {
        let generations = self.state.generations();
        let records = || generations.iter().map(|generation| &generation.record);
        let earlier = records().find(|record| record.tree == *tree).and_then(|this| {
            let earlier = records().filter(|record| {
                record.product == this.product && record.sequence < this.sequence && record.tree != *tree
            });
            earlier.max_by_key(|record| record.sequence).map(|record| record.tree)
        });
        let mut bases = self.store.bundle_bases(tree).unwrap_or_default();
        bases.extend(earlier.filter(|from| !bases.contains(from)));
        bases
    }

    fn make_bundle_from_soon(self: &Arc<Self>, from: TreeId, tree: TreeId) {
        let bundles = Arc::clone(self);
        in_background("bundle", move || {
            let _one_at_a_time = bundles.making.lock().unwrap_or_else(PoisonError::into_inner);
            if matches!(bundles.store.bundle(Some(&from), &tree), Ok(None)) {
                bundles.make_bundle_from(&from, &tree);
            }
        });
    }

    /// Makes the bundle for hosts that have `from` out of the one for any host. The caller has the turn.
    fn make_bundle_from(&self, from: &TreeId, tree: &TreeId) {
        let made = || {
            let Some((header, bytes)) = self.store.bundle(None, tree)? else { return Ok(()) };
            let touches = touches_of(&bytes, &header, &self.store)?;
            self.make_bundle(Some(from), tree, &touches, header.guessed).map(drop)
        };
        if let Err(error) = made() {
            tracing::warn!(%from, %tree, %error, "no start-up bundle for hosts that have an earlier generation");
        }
    }
}

fn served(bytes: Vec<u8>) -> Result<Served, BundleError> {
    Ok(Served { header: served_header(&bytes)?, bytes })
}

fn served_header(bytes: &[u8]) -> Result<Header, BundleError> {
    let header = bytes.first_chunk().map(Header::decode);
    match header {
        Some(Ok(header)) => Ok(header),
        _ => Err(BundleError::Make(patch::PatchError::Malformed("a header of another format").into())),
    }
}

fn in_background(name: &str, work: impl FnOnce() + Send + 'static) {
    if let Err(error) = thread::Builder::new().name(name.to_owned()).spawn(work) {
        tracing::warn!(%error, "no thread to make a start-up bundle");
    }
}
