//! The generations on this host: attached, held and staged; hydrated in the background; collected when nothing needs
//! them.
//!
//! ```text
//! attach, hold, stage ──lease──> prepare (manifest) ──> verify (once a boot) ──> mount ──> path
//!                                        └──> hydrate in the background until every object is local
//! lease gone ──> collect: umount, again until it is not busy ──> objects may be evicted
//! ```
//! All calls block and are made from threads.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use proto::daemon::{Attached, StageProgress};
use proto::message::Fault;
use proto::{GenerationRef, Metadata, TreeId, TreePath};

use super::known::{Known, Resolved};
use super::leases::{Kept, Leases};
use super::users;
use super::warm;

/// A mount that is busy is tried again after this time, doubled each time, up to the longest.
const COLLECT_PAUSE_MIN: Duration = Duration::from_millis(250);
const COLLECT_PAUSE_MAX: Duration = Duration::from_secs(60);
/// A background fetch that failed is tried again after this time.
const HYDRATE_PAUSE: Duration = Duration::from_secs(5);

/// What the data path offers; a trait so that the rules here are tested without mounts.
pub(crate) trait Trees: Send + Sync + 'static {
    /// Makes the objects of a tree readable: its manifest comes from the cache or the manager.
    fn prepare(&self, tree: &TreeId, deadline: Instant) -> Result<(), Fault>;
    /// Hashes the tree's local objects again, once between a boot and the first use.
    fn verify(&self, tree: &TreeId) -> Result<(), Fault>;
    /// Mounts a prepared tree; returns its path, and whether it can be read without this daemon from now on.
    fn mount(&self, tree: &TreeId) -> Result<(PathBuf, bool), Fault>;
    /// Unmounts it; `false` while it is in use.
    fn unmount(&self, tree: &TreeId) -> Result<bool, Fault>;
    /// The trees that are mounted, by looking, each with whether it needs this daemon to be read.
    fn mounted(&self) -> Vec<(TreeId, bool)>;
    /// Reads these files into the page cache, through the mount.
    fn warm(&self, tree: &TreeId, files: &[TreePath]) -> Result<(), Fault>;
    /// Fetches everything that is not local. `progress` gets local bytes and all bytes.
    fn make_local(
        &self,
        tree: &TreeId,
        paced: bool,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Fault>;
    /// Local bytes and all bytes of a prepared tree.
    fn sizes(&self, tree: &TreeId) -> Option<(u64, u64)>;
    /// Keeps the objects of a tree from eviction, if its manifest is here.
    fn pin(&self, tree: &TreeId) -> bool;
    /// Ends `pin`.
    fn unpin(&self, tree: &TreeId);
    /// Where the trees are mounted.
    fn directory(&self) -> PathBuf;
    /// The process whose namespaces hold the mounts, when they are not valid outside.
    fn namespace_pid(&self) -> Option<u32>;
    /// How long one demand may take.
    fn deadline(&self) -> Duration;
}

/// The generations of one host.
pub(crate) struct Generations {
    trees: Arc<dyn Trees>,
    known: Arc<Known>,
    pub(crate) leases: Leases,
    live: Mutex<BTreeMap<TreeId, Arc<Live>>>,
    /// One at a time for mounting and unmounting a tree.
    turns: Mutex<HashMap<TreeId, Arc<Mutex<()>>>>,
    pinned: Mutex<BTreeSet<TreeId>>,
    wake: Wake,
    ended: AtomicBool,
    users: Mutex<BTreeMap<TreeId, BTreeSet<u32>>>,
    kept: Mutex<Kept>,
    /// Told every tree that has a reason to stay mounted, whenever that was looked at.
    tell: Box<dyn Fn(BTreeSet<TreeId>) + Send + Sync>,
}

/// A mounted tree.
#[derive(Debug)]
pub(crate) struct Live {
    /// Its root.
    pub(crate) path: PathBuf,
    /// Whether every object was local when it was mounted: then it does not depend on this daemon at all.
    pub(crate) whole_at_mount: bool,
    /// Bytes of its objects that are local, as last counted.
    pub(crate) local_bytes: AtomicU64,
    /// Bytes of all its objects.
    pub(crate) object_bytes: u64,
}

/// Wakes the two background threads.
#[derive(Default)]
struct Wake {
    state: Mutex<(u64, u64)>,
    changed: Condvar,
}

impl Generations {
    /// Takes over what an earlier worker left mounted.
    pub(crate) fn new(
        trees: Arc<dyn Trees>,
        known: Arc<Known>,
        leases: Leases,
        tell: Box<dyn Fn(BTreeSet<TreeId>) + Send + Sync>,
    ) -> Arc<Self> {
        let generations = Arc::new(Self {
            trees,
            known,
            leases,
            live: Mutex::default(),
            turns: Mutex::default(),
            pinned: Mutex::default(),
            wake: Wake::default(),
            ended: AtomicBool::new(false),
            users: Mutex::default(),
            kept: Mutex::default(),
            tell,
        });
        for (tree, needs_daemon) in generations.trees.mounted() {
            generations.leases.inherit(tree);
            generations.take_over(tree, needs_daemon);
        }
        generations
    }

    /// Mounts what must be mounted (after a boot nothing is), then starts the background threads.
    pub(crate) fn start(self: &Arc<Self>) -> std::io::Result<()> {
        for (name, work) in [
            ("restore", Self::restore as fn(&Self)),
            ("collect", Self::collect_for_ever),
            ("hydrate", Self::hydrate_for_ever),
        ] {
            let generations = Arc::clone(self);
            std::thread::Builder::new()
                .name(name.to_owned())
                .stack_size(1 << 20)
                .spawn(move || work(&generations))?;
        }
        Ok(())
    }

    /// Ends the background threads.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.changed();
    }

    /// Leases, links or journals changed: look again what must stay.
    pub(crate) fn changed(&self) {
        self.wake.wake(|state| state.0 += 1);
    }

    /// Something can be fetched (the manager is back, a tree was mounted).
    pub(crate) fn fetchable(&self) {
        self.wake.wake(|state| state.1 += 1);
    }

    /// What a reference means among what is exported, attached and kept here.
    pub(crate) fn resolve(&self, reference: &GenerationRef) -> Result<Resolved, Fault> {
        self.known.resolve(reference, &self.leases.kept().all())
    }

    /// Attaches for the operator, until [`Generations::release`].
    pub(crate) fn attach(&self, resolved: &Resolved, typed: &GenerationRef) -> Result<Attached, Fault> {
        let before = self.leases.attached().contains_key(&resolved.tree);
        let name = resolved.record.as_ref().map_or_else(|| typed.to_string(), |known| known.record.name());
        self.leases
            .attach(resolved.tree, &name)
            .map_err(|error| Fault::Failed(format!("saving the attachment: {error}")))?;
        let mounted = self.mount(&resolved.tree);
        if mounted.is_err() && !before {
            // Nothing was attached, so nothing may stay.
            let _ = self.leases.release(&resolved.tree);
        }
        let live = mounted?;
        self.changed();
        Ok(self.answer(resolved, &live, Duration::ZERO))
    }

    /// Drops what `attach` keeps.
    pub(crate) fn release(&self, reference: &GenerationRef) -> Result<(), Fault> {
        let attached = self.leases.attached();
        let matching = |tree: &TreeId, name: &str| match reference {
            GenerationRef::Named(..) => {
                name == reference.to_string() || self.known.names(tree).contains(&reference.to_string())
            }
            GenerationRef::TreePrefix(prefix) => tree.to_hex().starts_with(prefix.as_str()),
        };
        let trees: Vec<_> =
            attached.iter().filter(|(tree, name)| matching(tree, name)).map(|(tree, _)| *tree).collect();
        let [tree] = trees.as_slice() else {
            return Err(match trees.len() {
                0 => Fault::NotFound(format!("{reference} is not attached here")),
                _ => Fault::BadRequest(format!("{reference} is the start of several attached trees")),
            });
        };
        self.leases.release(tree).map_err(|error| Fault::Failed(format!("saving the release: {error}")))?;
        self.changed();
        Ok(())
    }

    /// Attaches for as long as a connection is open.
    pub(crate) fn hold(&self, resolved: &Resolved, connection: u64, pid: Option<u32>) -> Result<Attached, Fault> {
        self.leases.hold(connection, resolved.tree, pid);
        let live = self.mount(&resolved.tree)?;
        self.changed();
        Ok(self.answer(resolved, &live, Duration::ZERO))
    }

    /// Makes a tree (and the running one) local, then mounts and warms it.
    pub(crate) fn stage(
        &self,
        tree: TreeId,
        running: Option<TreeId>,
        lazy: bool,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(StageProgress),
    ) -> Result<Attached, Fault> {
        let resolved = self.resolve(&GenerationRef::TreePrefix(tree.to_hex()))?;
        self.leases.stage(tree);
        let deadline = Instant::now() + self.trees.deadline();
        self.trees.prepare(&tree, deadline)?;
        if !lazy {
            self.make_local_both(tree, running, cancel, progress)?;
        }
        let live = self.mount_afresh(&tree)?;
        self.changed();
        let begun = Instant::now();
        let files = self.warm_list(&resolved);
        // A cold start is slow, not wrong.
        if let Err(fault) = self.trees.warm(&tree, &files) {
            tracing::warn!(%tree, %fault, "warming failed");
        }
        let took = if files.is_empty() { Duration::ZERO } else { begun.elapsed() };
        Ok(self.answer(&resolved, &live, took))
    }

    /// Why each tree stays, when last looked.
    pub(crate) fn kept(&self) -> Kept {
        lock(&self.kept).clone()
    }

    /// Every mounted tree.
    pub(crate) fn live(&self) -> BTreeMap<TreeId, Arc<Live>> {
        lock(&self.live).clone()
    }

    /// The processes that were seen to use each tree when last looked.
    pub(crate) fn users(&self) -> BTreeMap<TreeId, BTreeSet<u32>> {
        lock(&self.users).clone()
    }

    /// Looks which processes use which tree.
    pub(crate) fn look_for_users(&self) {
        let found = users::scan(&self.trees.directory());
        *lock(&self.users) = found;
    }

    fn answer(&self, resolved: &Resolved, live: &Live, warm: Duration) -> Attached {
        Attached {
            tree: resolved.tree,
            path: live.path.to_string_lossy().into_owned(),
            namespace_pid: self.trees.namespace_pid(),
            record: resolved.record.as_ref().map(|known| known.signed.clone()),
            warm_us: warm.as_micros() as u64,
        }
    }

    fn make_local_both(
        &self,
        tree: TreeId,
        running: Option<TreeId>,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(StageProgress),
    ) -> Result<(), Fault> {
        let deadline = Instant::now() + self.trees.deadline();
        let running = running.filter(|running| *running != tree);
        // A running tree whose manifest is gone cannot be made whole; that must not keep a host on it for ever.
        let running = running.filter(|running| {
            let prepared = self.trees.prepare(running, deadline);
            if let Err(fault) = &prepared {
                tracing::warn!(tree = %running, %fault, "the running generation cannot be made whole");
            }
            prepared.is_ok()
        });
        let both: Vec<_> = std::iter::once(tree).chain(running).collect();
        let mut sizes: Vec<_> = both.iter().map(|tree| self.trees.sizes(tree).unwrap_or((0, 0))).collect();
        for (i, tree) in both.iter().enumerate() {
            let made = self.trees.make_local(tree, false, cancel, &mut |local, all| {
                sizes[i] = (local, all);
                let local_bytes = sizes.iter().map(|size| size.0).sum();
                progress(StageProgress { local_bytes, object_bytes: sizes.iter().map(|size| size.1).sum() });
            });
            self.count(tree);
            made?;
        }
        Ok(())
    }

    /// The path of a tree, mounted if it is not yet. A lease must hold it already.
    fn mount(&self, tree: &TreeId) -> Result<Arc<Live>, Fault> {
        let turn = self.turn(tree);
        let _turn = lock(&turn);
        if let Some(live) = lock(&self.live).get(tree) {
            return Ok(Arc::clone(live));
        }
        self.mount_in_turn(tree)
    }

    fn mount_in_turn(&self, tree: &TreeId) -> Result<Arc<Live>, Fault> {
        self.trees.prepare(tree, Instant::now() + self.trees.deadline())?;
        self.trees.verify(tree)?;
        if lock(&self.pinned).insert(*tree) && !self.trees.pin(tree) {
            lock(&self.pinned).remove(tree);
        }
        let (path, whole_at_mount) = self.trees.mount(tree)?;
        let (local, all) = self.trees.sizes(tree).unwrap_or((0, 0));
        let live = Arc::new(Live { path, whole_at_mount, local_bytes: AtomicU64::new(local), object_bytes: all });
        lock(&self.live).insert(*tree, Arc::clone(&live));
        tracing::info!(%tree, path = %live.path.display(), local, all, "mounted");
        self.fetchable();
        Ok(live)
    }

    /// As `mount`; but a mount that was made before its objects were local is replaced when nobody uses it, so that the
    /// next program does not depend on this daemon.
    fn mount_afresh(&self, tree: &TreeId) -> Result<Arc<Live>, Fault> {
        let turn = self.turn(tree);
        let _turn = lock(&turn);
        let live = lock(&self.live).get(tree).cloned();
        let Some(live) = live else { return self.mount_in_turn(tree) };
        let whole = self.count(tree).is_some_and(|(local, all)| local == all);
        let promised = self.leases.attached().contains_key(tree);
        if live.whole_at_mount || !whole || promised || !self.trees.unmount(tree)? {
            return Ok(live);
        }
        lock(&self.live).remove(tree);
        self.mount_in_turn(tree)
    }

    fn take_over(&self, tree: TreeId, needs_daemon: bool) {
        if let Err(fault) = self.trees.prepare(&tree, Instant::now()) {
            tracing::warn!(%tree, %fault, "a mounted tree has no manifest here; what is not cached of it cannot be read yet");
        }
        let (local, all) = self.trees.sizes(&tree).unwrap_or((0, 0));
        let path = self.trees.directory().join(tree.to_hex());
        let live =
            Live { path, whole_at_mount: !needs_daemon, local_bytes: AtomicU64::new(local), object_bytes: all };
        lock(&self.live).insert(tree, Arc::new(live));
        if self.trees.pin(&tree) {
            lock(&self.pinned).insert(tree);
        }
    }

    fn count(&self, tree: &TreeId) -> Option<(u64, u64)> {
        let sizes = self.trees.sizes(tree);
        if let (Some((local, _)), Some(live)) = (sizes, lock(&self.live).get(tree)) {
            live.local_bytes.store(local, Ordering::Relaxed);
        }
        sizes
    }

    fn warm_list(&self, resolved: &Resolved) -> Vec<TreePath> {
        let records = self.known.records();
        let metadata: Option<&Metadata> = match &resolved.record {
            Some(known) => Some(&known.record.metadata),
            None => {
                records.iter().find(|known| known.record.tree == resolved.tree).map(|known| &known.record.metadata)
            }
        };
        metadata.map(warm::start_up_files).unwrap_or_default()
    }

    fn turn(&self, tree: &TreeId) -> Arc<Mutex<()>> {
        Arc::clone(lock(&self.turns).entry(*tree).or_default())
    }

    fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Mounts everything that has a reason to be mounted.
    fn restore(&self) {
        for tree in self.leases.kept().mounted.into_keys() {
            if self.is_ended() {
                return;
            }
            if let Err(fault) = self.mount(&tree) {
                tracing::warn!(%tree, %fault, "a generation that should be attached cannot be mounted yet");
            }
        }
    }

    fn collect_for_ever(&self) {
        let mut pause = COLLECT_PAUSE_MIN;
        loop {
            let seen = self.wake.seen().0;
            let busy = self.collect();
            pause = if busy { (pause * 2).min(COLLECT_PAUSE_MAX) } else { COLLECT_PAUSE_MAX };
            if self.wake.wait(pause, |state| state.0 != seen) {
                pause = COLLECT_PAUSE_MIN;
            }
            if self.is_ended() {
                return;
            }
        }
    }

    /// Unmounts what nothing needs, pins and unpins; `true` while something unneeded is still in use.
    pub(crate) fn collect(&self) -> bool {
        let kept = self.leases.kept();
        let mut busy = false;
        let live: Vec<TreeId> = lock(&self.live).keys().copied().collect();
        for tree in live.iter().filter(|tree| !kept.keeps(tree)) {
            match self.unmount(tree) {
                Ok(true) => {}
                Ok(false) => busy = true,
                Err(fault) => {
                    busy = true;
                    tracing::warn!(%tree, %fault, "a released generation cannot be unmounted yet");
                }
            }
        }
        self.follow_pins(&kept);
        (self.tell)(kept.mounted.keys().copied().collect());
        *lock(&self.kept) = kept;
        busy
    }

    fn unmount(&self, tree: &TreeId) -> Result<bool, Fault> {
        let turn = self.turn(tree);
        let _turn = lock(&turn);
        // Someone may have taken a lease while we waited for our turn.
        if self.leases.kept().keeps(tree) {
            return Ok(true);
        }
        if !self.trees.unmount(tree)? {
            return Ok(false);
        }
        lock(&self.live).remove(tree);
        tracing::info!(%tree, "released and unmounted");
        Ok(true)
    }

    fn follow_pins(&self, kept: &Kept) {
        if kept.uncertain.is_some() {
            return;
        }
        let mut wanted = kept.all();
        wanted.extend(lock(&self.live).keys());
        let mut pinned = lock(&self.pinned);
        let gone: Vec<_> = pinned.difference(&wanted).copied().collect();
        for tree in gone {
            self.trees.unpin(&tree);
            pinned.remove(&tree);
        }
        for tree in wanted {
            if !pinned.contains(&tree) && self.trees.pin(&tree) {
                pinned.insert(tree);
            }
        }
    }

    fn hydrate_for_ever(&self) {
        while !self.is_ended() {
            let seen = self.wake.seen().1;
            let mut failed = false;
            for tree in self.unfinished() {
                let made = self.trees.make_local(&tree, true, &self.ended, &mut |local, _| {
                    if let Some(live) = lock(&self.live).get(&tree) {
                        live.local_bytes.store(local, Ordering::Relaxed);
                    }
                });
                match made {
                    Ok(()) => tracing::info!(%tree, "every object is local"),
                    Err(fault) => {
                        failed = true;
                        tracing::debug!(%tree, %fault, "fetching in the background stopped");
                    }
                }
                self.count(&tree);
            }
            let pause = if failed { HYDRATE_PAUSE } else { COLLECT_PAUSE_MAX };
            self.wake.wait(pause, |state| state.1 != seen);
        }
    }

    /// Mounted trees that are not whole, and what an agent may return to.
    fn unfinished(&self) -> Vec<TreeId> {
        let mut trees: BTreeSet<_> = lock(&self.live).keys().copied().collect();
        trees.extend(self.leases.kept().cached);
        trees.retain(|tree| self.count(tree).is_some_and(|(local, all)| local < all));
        trees.into_iter().collect()
    }
}

impl Wake {
    fn wake(&self, change: impl FnOnce(&mut (u64, u64))) {
        change(&mut lock(&self.state));
        self.changed.notify_all();
    }

    fn seen(&self) -> (u64, u64) {
        *lock(&self.state)
    }

    /// Waits until `done`, at most for `pause`; `true` if it is.
    fn wait(&self, pause: Duration, done: impl Fn(&(u64, u64)) -> bool) -> bool {
        let state = lock(&self.state);
        let waited = self.changed.wait_timeout_while(state, pause, |state| !done(state));
        waited.is_ok_and(|(_, timeout)| !timeout.timed_out())
    }
}

/// No statement under these locks leaves a value half changed, so a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "generations_tests.rs"]
mod tests;
