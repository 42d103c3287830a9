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
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proto::daemon::{Attached, StageProgress};
use proto::message::Fault;
use proto::start_up::start_up_files;
use proto::width;
use proto::{GenerationRef, TreeId, TreePath};

use crate::sync::lock;
use leases::{Kept, Leases};
use records::{Records, Resolved};
use wake::Wake;

mod background;
mod floors;
pub(in crate::host) mod leases;
pub(in crate::host) mod records;
mod users;
mod wake;

/// What the data path offers; a trait so that the rules here are tested without mounts.
pub(crate) trait Trees: Send + Sync + 'static {
    /// Asks for everything that a start of a generation needs, in the background, if its tree (when it is known) is not
    /// local; of this program, if one was typed. Comes before `prepare`, which finds the manifest in the answer.
    fn begin(&self, generation: &GenerationRef, tree: Option<&TreeId>, program: Option<&str>);
    /// Makes the objects of a tree readable: its manifest comes from the cache or the manager.
    fn prepare(&self, tree: &TreeId, deadline: Instant) -> Result<(), Fault>;
    /// Hashes those local objects of a tree again that do not look as they did when they were hashed last: after a boot all.
    /// Returns whether any was wrong; those are gone then, and will be fetched again.
    fn verify(&self, tree: &TreeId) -> bool;
    /// Whether a tree's manifest is on this host, whole.
    fn has_manifest(&self, tree: &TreeId) -> bool;
    /// The file that a path of a tree leads to, as far as that is known here.
    fn real(&self, tree: &TreeId, path: &TreePath) -> TreePath;
    /// As `verify`, of what these files of the tree consist of; with `all` also those that look as they did.
    fn verify_files(&self, tree: &TreeId, files: &[TreePath], all: bool) -> bool;
    /// Mounts a prepared tree; returns its path, and whether it can be read without this daemon from now on.
    fn mount(&self, tree: &TreeId) -> Result<(PathBuf, bool), Fault>;
    /// Unmounts it; `false` while it is in use.
    fn unmount(&self, tree: &TreeId) -> Result<bool, Fault>;
    /// Whether what was mounted at this path still is: somebody may have unmounted it.
    fn is_still_mounted(&self, path: &Path) -> bool;
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
    /// Forgets what is noted about all other trees (manifests, verifications); their objects stay while there is room.
    fn forget_all_but(&self, trees: &BTreeSet<TreeId>);
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
    records: Arc<Records>,
    pub(crate) leases: Leases,
    live: Mutex<BTreeMap<TreeId, Arc<Live>>>,
    /// One at a time for mounting and unmounting a tree. Whoever has a part in one has it in hand.
    turns: Mutex<HashMap<TreeId, Arc<Mutex<()>>>>,
    pinned: Mutex<BTreeSet<TreeId>>,
    wake: Wake,
    ended: AtomicBool,
    users: Mutex<BTreeMap<TreeId, BTreeSet<u32>>>,
    looking: AtomicBool,
    kept: Mutex<Kept>,
    /// The trees about which something may be noted on the disk, when that was last tidied.
    remembered: Mutex<BTreeSet<TreeId>>,
    /// Told every tree that has a reason to stay mounted, whenever that was looked at.
    tell: Box<dyn Fn(BTreeSet<TreeId>) + Send + Sync>,
}

/// A mounted tree.
#[derive(Debug)]
pub(crate) struct Live {
    /// Absolute path of the tree's root directory.
    pub(crate) path: PathBuf,
    /// Whether every object was local when it was mounted: then it does not depend on this daemon at all.
    pub(crate) whole_at_mount: bool,
    /// Bytes of its objects that are local, as last counted.
    pub(crate) local_bytes: AtomicU64,
    /// Bytes of all its objects.
    pub(crate) object_bytes: u64,
}

impl Generations {
    /// Takes over what an earlier worker left mounted.
    pub(crate) fn new(
        trees: Arc<dyn Trees>,
        records: Arc<Records>,
        leases: Leases,
        tell: Box<dyn Fn(BTreeSet<TreeId>) + Send + Sync>,
    ) -> Arc<Self> {
        let generations = Arc::new(Self {
            trees,
            records,
            live: Mutex::default(),
            turns: Mutex::default(),
            pinned: Mutex::default(),
            wake: Wake::new(leases.clock().clone()),
            leases,
            ended: AtomicBool::new(false),
            users: Mutex::default(),
            looking: AtomicBool::new(false),
            kept: Mutex::default(),
            remembered: Mutex::default(),
            tell,
        });
        for (tree, needs_daemon) in generations.trees.mounted() {
            generations.leases.inherit(tree);
            generations.take_over(tree, needs_daemon);
        }
        generations
    }

    /// By when a demand that begins now must be met.
    fn deadline(&self) -> Instant {
        self.leases.clock().now() + self.trees.deadline()
    }

    /// Starts the background threads; the first thing they do is to mount what must be mounted.
    pub(crate) fn start(self: &Arc<Self>) -> std::io::Result<()> {
        let threads = [("collect", Self::collect_for_ever as fn(&Self)), ("hydrate", Self::hydrate_for_ever)];
        for (name, work) in threads {
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
        self.wake.note(|seen| seen.changed += 1);
    }

    /// Something can be fetched (the manager is back, a tree was mounted).
    pub(crate) fn fetchable(&self) {
        self.wake.note(|seen| seen.fetchable += 1);
    }

    /// What a reference means among what is exported, attached and kept here.
    pub(crate) fn resolve(&self, reference: &GenerationRef) -> Result<Resolved, Fault> {
        self.records.resolve(reference, &self.leases.kept().all())
    }

    /// What a reference means is about to be looked up, and then used: unless it is mounted already, its start is asked for
    /// now, and not only when the look-up has come back from the manager.
    pub(crate) fn begin(&self, reference: &GenerationRef, program: Option<&str>) {
        match self.resolve(reference) {
            Ok(resolved) if lock(&self.live).contains_key(&resolved.tree) => {}
            Ok(resolved) => self.trees.begin(reference, Some(&resolved.tree), program),
            Err(Fault::NotFound(_)) => self.trees.begin(reference, None, program),
            Err(_) => {}
        }
    }

    /// Attaches for the operator, until [`Generations::release`].
    pub(crate) fn attach(&self, resolved: &Resolved, typed: &GenerationRef) -> Result<Attached, Fault> {
        let before = self.leases.attached().contains_key(&resolved.tree);
        let name = resolved.record.as_ref().map_or_else(|| typed.to_string(), |known| known.record.name());
        self.leases
            .attach(resolved.tree, &name)
            .map_err(|error| Fault::Failed(format!("saving the attachment: {error}")))?;
        let mounted = self.mount_checked(&resolved.tree, |trees| trees.verify(&resolved.tree));
        if mounted.is_err() && !before {
            // Nothing was attached, so nothing may stay.
            let _ = self.leases.release(&resolved.tree);
        }
        let live = mounted?;
        if let (Some(known), GenerationRef::Named(..)) = (&resolved.record, typed) {
            self.records.chosen(&known.record);
        }
        self.changed();
        Ok(self.answer(resolved, &live, Duration::ZERO))
    }

    /// Drops what `attach` keeps.
    pub(crate) fn release(&self, reference: &GenerationRef) -> Result<(), Fault> {
        let attached = self.leases.attached();
        let matching = |tree: &TreeId, name: &str| match reference {
            GenerationRef::Named(..) => {
                name == reference.to_string() || self.records.names(tree).contains(&reference.to_string())
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
        let files = self.warm_list(resolved);
        let live = self.mount_checked(&resolved.tree, |trees| trees.verify_files(&resolved.tree, &files, false))?;
        self.changed();
        Ok(self.answer(resolved, &live, Duration::ZERO))
    }

    /// As `hold`, if the tree can be mounted without the manager.
    pub(crate) fn hold_local(&self, tree: &TreeId, connection: u64, pid: Option<u32>) -> Result<Attached, Fault> {
        let reference = GenerationRef::TreePrefix(tree.to_hex());
        let resolved = self.resolve(&reference)?;
        if !self.trees.has_manifest(tree) {
            return Err(Fault::Unavailable(format!("the manifest of tree {tree} is not on this host")));
        }
        self.begin(&reference, None);
        self.hold(&resolved, connection, pid)
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
        let _in_hand = self.turn(&tree);
        let deadline = self.deadline();
        if lazy {
            self.begin(&GenerationRef::TreePrefix(tree.to_hex()), None);
        }
        self.trees.prepare(&tree, deadline)?;
        if !lazy {
            self.make_local_both(tree, running, cancel, progress)?;
        }
        let files = self.warm_list(&resolved);
        // The last look before the exec: what a start needs is hashed, however it looks.
        let damaged = self.trees.verify(&tree) | self.trees.verify_files(&tree, &files, true);
        if damaged && !lazy {
            self.make_local_both(tree, running, cancel, progress)?;
        }
        let live = self.mount_afresh(&tree, damaged)?;
        self.changed();
        let begun = Instant::now();
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

    /// Looks which processes use which tree. One look at a time: what the kernel says of a process that hangs can hang
    /// too, and must not take thread after thread with it.
    pub(crate) fn look_for_users(&self) {
        if self.looking.swap(true, Ordering::AcqRel) {
            return;
        }
        let found = users::scan(&self.trees.directory());
        *lock(&self.users) = found;
        self.looking.store(false, Ordering::Release);
    }

    fn answer(&self, resolved: &Resolved, live: &Live, warm: Duration) -> Attached {
        Attached {
            tree: resolved.tree,
            path: live.path.to_string_lossy().into_owned(),
            namespace_pid: self.trees.namespace_pid(),
            record: resolved.record.as_ref().map(|known| known.signed.clone()),
            warm_us: width::micros(warm),
        }
    }

    fn make_local_both(
        &self,
        tree: TreeId,
        running: Option<TreeId>,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(StageProgress),
    ) -> Result<(), Fault> {
        let deadline = self.deadline();
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

    /// As `mount`; of a tree that is mounted already `damaged` first looks whether something of it has changed on this host's
    /// disk. Then it is mounted afresh: a mount that has shown a file goes on showing it.
    fn mount_checked(&self, tree: &TreeId, damaged: impl FnOnce(&dyn Trees) -> bool) -> Result<Arc<Live>, Fault> {
        let turn = self.turn(tree);
        let _turn = lock(&turn);
        let live = lock(&self.live).get(tree).cloned().filter(|live| self.trees.is_still_mounted(&live.path));
        match live {
            None => self.mount_in_turn(tree),
            Some(_) if damaged(&*self.trees) => self.replace_in_turn(tree),
            Some(live) => Ok(live),
        }
    }

    fn replace_in_turn(&self, tree: &TreeId) -> Result<Arc<Live>, Fault> {
        if !self.trees.unmount(tree)? {
            return Err(Fault::Failed(format!(
                "files of tree {tree} were changed on this host's disk while programs run from it; what was changed is removed \
                 and will be fetched again, but nothing new starts from this mount: end those programs \
                 (fuser -vm {})",
                self.trees.directory().join(tree.to_hex()).display()
            )));
        }
        lock(&self.live).remove(tree);
        self.mount_in_turn(tree)
    }

    fn mount_in_turn(&self, tree: &TreeId) -> Result<Arc<Live>, Fault> {
        self.trees.prepare(tree, self.deadline())?;
        self.trees.verify(tree);
        self.pin(tree);
        self.mount_prepared(tree)
    }

    fn pin(&self, tree: &TreeId) {
        let mut pinned = lock(&self.pinned);
        if !pinned.contains(tree) && self.trees.pin(tree) {
            pinned.insert(*tree);
        }
    }

    fn mount_prepared(&self, tree: &TreeId) -> Result<Arc<Live>, Fault> {
        let (path, whole_at_mount) = self.trees.mount(tree)?;
        let (local, all) = self.trees.sizes(tree).unwrap_or((0, 0));
        let live = Arc::new(Live { path, whole_at_mount, local_bytes: AtomicU64::new(local), object_bytes: all });
        lock(&self.live).insert(*tree, Arc::clone(&live));
        tracing::info!(%tree, path = %live.path.display(), local, all, "mounted");
        self.fetchable();
        Ok(live)
    }

    /// As `mount`; but a mount that was made before its objects were local is replaced when nobody uses it, so that the
    /// next program does not depend on this daemon. `damaged`: something of it was wrong on the disk a moment ago.
    fn mount_afresh(&self, tree: &TreeId, damaged: bool) -> Result<Arc<Live>, Fault> {
        let turn = self.turn(tree);
        let _turn = lock(&turn);
        let live = lock(&self.live).get(tree).cloned().filter(|live| self.trees.is_still_mounted(&live.path));
        let Some(live) = live else { return self.mount_in_turn(tree) };
        if damaged {
            return self.replace_in_turn(tree);
        }
        let whole = self.count(tree).is_some_and(|(local, all)| local == all);
        let promised = self.leases.attached().contains_key(tree);
        if live.whole_at_mount || !whole || promised || !self.trees.unmount(tree)? {
            return Ok(live);
        }
        lock(&self.live).remove(tree);
        self.mount_in_turn(tree)
    }

    fn take_over(&self, tree: TreeId, needs_daemon: bool) {
        if let Err(fault) = self.trees.prepare(&tree, self.leases.clock().now()) {
            tracing::warn!(%tree, %fault, "a mounted tree has no manifest here; what is not cached of it cannot be read yet");
        }
        let (local, all) = self.trees.sizes(&tree).unwrap_or((0, 0));
        let path = self.trees.directory().join(tree.to_hex());
        let live =
            Live { path, whole_at_mount: !needs_daemon, local_bytes: AtomicU64::new(local), object_bytes: all };
        lock(&self.live).insert(tree, Arc::new(live));
        self.pin(&tree);
    }

    fn count(&self, tree: &TreeId) -> Option<(u64, u64)> {
        let sizes = self.trees.sizes(tree);
        if let (Some((local, _)), Some(live)) = (sizes, lock(&self.live).get(tree)) {
            live.local_bytes.store(local, Ordering::Relaxed);
        }
        sizes
    }

    fn warm_list(&self, resolved: &Resolved) -> Vec<TreePath> {
        let mut records = match &resolved.record {
            Some(known) => vec![Arc::clone(known)],
            None => self.records.all(),
        };
        // Under each of its names it may be started in another way.
        records.retain(|known| known.record.tree == resolved.tree);
        let real = |path: &TreePath| Some(self.trees.real(&resolved.tree, path));
        let files = records.iter().flat_map(|known| start_up_files(&known.record.metadata, &real));
        let mut seen = BTreeSet::new();
        files.filter(|path| seen.insert(path.clone())).collect()
    }

    fn turn(&self, tree: &TreeId) -> Arc<Mutex<()>> {
        Arc::clone(lock(&self.turns).entry(*tree).or_default())
    }

    fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod schedules;
#[cfg(test)]
mod tests;
