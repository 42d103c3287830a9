//! Bundles for hosts: sent as they lie, made of what hosts have recorded.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use lru::LruCache;
use proto::bundle::{HEADER_BYTES, Header, Touch};
use proto::delta::Part;
use proto::message::{BundleFacts, ManagerReply};
use proto::proof::PAGE_BYTES;
use proto::width;
use proto::{GenerationRef, HostName, TreeId};

use super::agreement::{Told, cut};
use super::background::Background;
use super::{BundleError, BundleOrder, LEVEL, guess, make, touches_of};
use crate::manager::control::State;
use crate::manager::exports::{ExportError, Exports};
use crate::manager::store::{Store, StoreError};
use crate::manager::worker::{BrokenOff, blocking};
use crate::net::{Answer, NetError};
use crate::patch;
use crate::sync::lock;

/// Bundles kept in memory: what a rollout of a handful of products asks for at once, some megabytes each.
const BUNDLES_KEPT: NonZeroUsize = NonZeroUsize::new(8).unwrap();
/// zstd level of a guess: a host waits until it is made.
const LEVEL_GUESS: i32 = 3;
/// Bytes of one bulk frame of a bundle: a host uses nothing of a frame before its last byte has come.
const SEND_BYTES: usize = 64 << 10;

/// Plain bytes of what hosts have recorded of one tree, as a multiple of its guess: what a program reads beside its own code
/// is some times as much, and no host can make all others fetch the whole tree.
const TIMES_THE_GUESS: u64 = 16;
/// The same for trees of which little can be guessed, such as scripts.
const RECORDED_BYTES_MIN: u64 = 512 << 10;

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

/// A bundle that nobody waits for.
#[derive(Debug, PartialEq)]
enum Wish {
    /// For hosts that have the first tree.
    From(TreeId, TreeId),
    /// Out of what several hosts have touched.
    Learned(TreeId, Vec<Touch>),
}

/// Set when whoever wanted the work no longer does.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Bundles at hand, and who makes one now.
pub(crate) struct Bundles {
    store: Arc<Store>,
    state: Arc<State>,
    exports: Arc<Exports>,
    served: Mutex<LruCache<Key, Option<Arc<Served>>>>,
    /// One that is made well at a time. Those who wait for it hold no thread.
    making: Arc<tokio::sync::Mutex<()>>,
    /// What hosts have told of their first starts.
    told: Mutex<Told>,
    background: Arc<Background<Wish>>,
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
            making: Arc::default(),
            told: Mutex::default(),
            background: Arc::default(),
            guessing: Mutex::default(),
        }
    }

    fn served(&self) -> std::sync::MutexGuard<'_, LruCache<Key, Option<Arc<Served>>>> {
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
        self.bundle_for(from, tree)
    }

    /// The bundle that serves a host best: made for the tree that it has, else for any host, else a guess.
    fn bundle_for(self: &Arc<Self>, from: Option<TreeId>, tree: TreeId) -> Result<Arc<Served>, SendStartError> {
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
        self.guessed_bundle(tree)
    }

    /// What a start will touch as far as the tree says it, made when the first host asks and kept in memory.
    fn guessed_bundle(&self, tree: TreeId) -> Result<Arc<Served>, SendStartError> {
        let _one_at_a_time = lock(&self.guessing);
        // Someone else may have made it meanwhile, or better: recorded a start.
        if let Some(served) = self.stored_bundle((None, tree))? {
            return Ok(served);
        }
        let since = Instant::now();
        let touches = self.guess(&tree)?;
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

    /// Takes what was recorded on a host into the bundle of a tree, which later hosts get, as far as it is not much more than
    /// the tree's start needs. Given up when nobody waits for it any more.
    ///
    /// # Errors
    /// The touches are not of the tree, or the store failed.
    pub(crate) async fn profile(
        self: &Arc<Self>,
        host: &HostName,
        tree: &TreeId,
        touches: Vec<Touch>,
    ) -> Result<BundleFacts, SendStartError> {
        let turn = Arc::clone(&self.making).lock_owned().await;
        let flag = Arc::new(AtomicBool::new(false));
        let _cancel = CancelOnDrop(Arc::clone(&flag));
        let (bundles, tree) = (Arc::clone(self), *tree);
        let facts = blocking(move || {
            let _turn = turn;
            bundles.record(&tree, &touches, &flag)
        });
        let facts = facts.await?;
        tracing::info!(%host, %tree, pages = facts.plain_bytes, bytes = facts.bundle_bytes, "start recorded");
        self.make_bundles_from_soon(tree);
        Ok(facts)
    }

    /// What the first start of a generation touched that nobody had recorded: better than a guess, when several hosts tell
    /// the same.
    pub(crate) fn learn(self: &Arc<Self>, host: &HostName, tree: TreeId, touches: Vec<Touch>) {
        if self.is_recorded(&tree) {
            return;
        }
        let agreed = lock(&self.told).take(host, tree, touches);
        match agreed {
            Some(agreed) => self.wish(Wish::Learned(tree, agreed)),
            None => {
                tracing::info!(%host, %tree, "a first start was told; it counts when another host tells the same")
            }
        }
    }

    /// Forgets what was recorded and learned of a tree's starts; the next one gets a guess again.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) fn reset(&self, tree: &TreeId) -> Result<u64, SendStartError> {
        let _one_at_a_time = self.making.blocking_lock();
        lock(&self.told).forget(tree);
        let removed = self.store.remove_bundles(tree)?;
        let mut served = self.served();
        let keys: Vec<Key> = served.iter().map(|(key, _)| *key).filter(|(_, to)| to == tree).collect();
        keys.iter().for_each(|key| drop(served.pop(key)));
        Ok(removed)
    }

    fn is_recorded(&self, tree: &TreeId) -> bool {
        let known = self.store.bundle(None, tree);
        known.is_ok_and(|known| known.is_some_and(|(header, _)| !header.guessed))
    }

    fn wish(self: &Arc<Self>, wish: Wish) {
        let bundles = Arc::clone(self);
        self.background.wish(wish, move |wish| {
            let _one_at_a_time = bundles.making.blocking_lock();
            match wish {
                Wish::From(from, tree) => {
                    if matches!(bundles.store.bundle(Some(&from), &tree), Ok(None)) {
                        bundles.make_bundle_from(&from, &tree);
                    }
                }
                Wish::Learned(tree, touches) => bundles.record_learned(&tree, &touches),
            }
        });
    }

    /// The caller has the turn.
    fn record_learned(self: &Arc<Self>, tree: &TreeId, touches: &[Touch]) {
        if self.is_recorded(tree) {
            return;
        }
        match self.record(tree, touches, &AtomicBool::new(false)) {
            Ok(facts) => {
                tracing::info!(%tree, pages = facts.plain_bytes, bytes = facts.bundle_bytes, "learned");
                self.make_bundles_from_soon(*tree);
            }
            Err(error) => tracing::warn!(%tree, %error, "nothing learned from hosts' starts"),
        }
    }

    /// Makes the bundle of what was recorded before and now. The caller has the turn.
    fn record(
        &self,
        tree: &TreeId,
        touches: &[Touch],
        cancelled: &AtomicBool,
    ) -> Result<BundleFacts, SendStartError> {
        let mut all = match self.store.bundle(None, tree)? {
            Some((header, bytes)) if !header.guessed => touches_of(&bytes, &header, &self.store)?,
            _ => Vec::new(),
        };
        all.extend_from_slice(touches);
        let all = cut(&all, self.recorded_pages_max(tree)?);
        Ok(self.make_bundle(None, tree, &all, cancelled)?)
    }

    /// How many pages may be recorded of a tree's start.
    fn recorded_pages_max(&self, tree: &TreeId) -> Result<usize, SendStartError> {
        let guessed: u64 = self.guess(tree)?.iter().map(|touch| u64::from(touch.count)).sum();
        let bytes = (guessed * u64::from(PAGE_BYTES) * TIMES_THE_GUESS).max(RECORDED_BYTES_MIN);
        Ok(width::index(bytes / u64::from(PAGE_BYTES)))
    }

    /// What a start will touch as far as the tree says it.
    fn guess(&self, tree: &TreeId) -> Result<Vec<Touch>, SendStartError> {
        let generations = self.state.generations();
        let records = generations.iter().map(|generation| &generation.record).filter(|record| record.tree == *tree);
        Ok(guess::touches(&self.store, &self.store.tree(tree)?, records.map(|record| &record.metadata)))
    }

    /// Makes and keeps a bundle of what was recorded.
    fn make_bundle(
        &self,
        from: Option<&TreeId>,
        tree: &TreeId,
        touches: &[Touch],
        cancelled: &AtomicBool,
    ) -> Result<BundleFacts, BundleError> {
        let order = BundleOrder { tree, from, touches, guessed: false, level: LEVEL };
        let (bytes, facts) = make(&self.store, order, cancelled)?;
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

    /// The bundles for hosts with earlier trees follow what was recorded, which is what is served until then.
    fn make_bundles_from_soon(self: &Arc<Self>, tree: TreeId) {
        for from in self.bundle_bases(&tree) {
            if let Err(error) = self.store.remove_bundle(&from, &tree) {
                tracing::warn!(%from, %tree, %error, "a start-up bundle that is out of date stays");
            }
            self.served().pop(&(Some(from), tree));
            self.wish(Wish::From(from, tree));
        }
    }

    /// Makes the bundle for hosts that have `from` out of the one for any host. The caller has the turn.
    fn make_bundle_from(&self, from: &TreeId, tree: &TreeId) {
        let made = || {
            let Some((header, bytes)) = self.store.bundle(None, tree)? else { return Ok(()) };
            let touches = touches_of(&bytes, &header, &self.store)?;
            self.make_bundle(Some(from), tree, &touches, &AtomicBool::new(false)).map(drop)
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
