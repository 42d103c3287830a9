//! The data half as the rest of the worker sees it: cache, fetcher, object tree, mounts, in one place.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use proto::manifest::{Manifest, NodeKind, Object};
use proto::message::{Fault, HostReport};
use proto::{GenerationRef, Product, TreeId, TreePath, width};
use serde_json::{Value, json};

use crate::host::cache::{Cache, Look};
use crate::host::data::prefetch::Prefetch;
use crate::host::fetch::{Fetcher, FromOldOptions, HydrateOptions, HydrateProgress, TreeRef};
use crate::host::generations::Trees;
use crate::host::generations::records::{KnownRecord, Records};
use crate::host::mount::{DataPath, HelperError, Layout, Mounts, Server};
use crate::host::objects::{Objects, Tree, ViewEntry};
use crate::sync::lock;

/// At most so much is read by one warming: more than any start-up set that was measured, less than hurts the page cache.
const WARM_BYTES_MAX: u64 = 512 << 20;
const WARM_DEADLINE: Duration = Duration::from_secs(60);
/// How long one fetch in the background goes on trying before it is begun anew.
const PATIENCE: Duration = Duration::from_secs(20);

/// Nothing is fetched in the background before a start has been over for this long.
const QUIET: Duration = Duration::from_secs(1);

/// A start is over when nothing new has been touched for this long, or it has taken so long altogether.
const LEARN_IDLE: Duration = Duration::from_secs(2);
const LEARN_AT_MOST: Duration = Duration::from_secs(30);
const LEARN_LOOK: Duration = Duration::from_millis(100);

/// How long a delta may take, its making included; afterwards the tree is fetched as it is.
const DELTA_PATIENCE: Duration = Duration::from_secs(120);

/// What the operator chose.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DataOptions {
    /// Bytes a second of background fetches; `None` for as fast as it goes.
    pub(crate) hydrate_bytes_per_second: Option<u64>,
    /// How long one read may wait for the network.
    pub(crate) read_deadline: Duration,
}

/// See the module.
pub(crate) struct DataPlane {
    objects: Arc<Objects>,
    mounts: Mounts,
    server: Option<Server>,
    layout: Layout,
    options: DataOptions,
    namespace_pid: Option<u32>,
    /// One check of local objects at a time.
    verifying: Mutex<()>,
    data_path: OnceLock<String>,
    /// What is exported to this host: where deltas can start.
    records: Arc<Records>,
    prefetch: Arc<Prefetch>,
    report: Arc<ReportSink>,
    /// One start at a time is recorded.
    learning: Arc<AtomicBool>,
}

/// What [`DataPlane`] is put together from.
pub(crate) struct DataParts {
    pub(crate) objects: Arc<Objects>,
    pub(crate) mounts: Mounts,
    /// `None` without FUSE.
    pub(crate) server: Option<Server>,
    pub(crate) layout: Layout,
    pub(crate) options: DataOptions,
    /// The process whose namespaces hold the mounts, when they are not valid outside.
    pub(crate) namespace_pid: Option<u32>,
    /// What is exported to this host: where deltas can start.
    pub(crate) records: Arc<Records>,
    pub(crate) prefetch: Arc<Prefetch>,
    /// Takes what the manager shall be told.
    pub(crate) report: Box<ReportSink>,
}

/// Takes a report to the manager; may wait for the disk.
pub(crate) type ReportSink = dyn Fn(&HostReport) + Send + Sync;

/// What `status` shows of the data path.
#[derive(Debug, Default)]
pub(crate) struct DataFacts {
    /// Where the browsing view is mounted.
    pub(crate) mountpoint: PathBuf,
    /// Which of the data paths the probe chose, for people.
    pub(crate) data_path: String,
    /// FUSE requests by opcode.
    pub(crate) fuse_requests: BTreeMap<String, u64>,
    /// Counters of the fetcher.
    pub(crate) fetch: Value,
    /// What the cache holds.
    pub(crate) cache: Value,
}

impl DataPlane {
    /// Puts it together from what the worker has opened.
    pub(crate) fn new(parts: DataParts) -> Arc<Self> {
        let DataParts { objects, mounts, server, layout, options, namespace_pid, records, prefetch, report } = parts;
        Arc::new(Self {
            objects,
            mounts,
            server,
            layout,
            options,
            namespace_pid,
            verifying: Mutex::default(),
            data_path: OnceLock::new(),
            records,
            prefetch,
            report: report.into(),
            learning: Arc::default(),
        })
    }

    /// What this host has of trees.
    pub(crate) fn objects(&self) -> &Arc<Objects> {
        &self.objects
    }

    fn cache(&self) -> &Arc<Cache> {
        self.objects.fetcher().cache()
    }

    /// The newest other tree of the same product of which every object is local.
    fn base_of(&self, tree: &TreeId) -> Option<TreeId> {
        if self.sizes(tree).is_some_and(|(local, all)| local == all) {
            return None;
        }
        let known = self.records.all().into_iter().find(|known| known.record.tree == *tree)?;
        self.newest_whole(&known.record.product, Some(tree))
    }

    /// The newest tree of a product, other than this one, of which every object is local.
    fn newest_whole(&self, product: &Product, except: Option<&TreeId>) -> Option<TreeId> {
        let mut others = self.records.all();
        others.retain(|known| known.record.product == *product && Some(&known.record.tree) != except);
        others.sort_by_key(|known| std::cmp::Reverse(known.record.sequence));
        let mut trees = others.iter().map(|known| known.record.tree);
        trees.find(|tree| self.sizes(tree).is_some_and(|(local, all)| local == all))
    }

    /// Records what the start of a tree touches that nobody has recorded yet, and tells the manager: the hosts after this
    /// one start faster.
    fn learn(&self, tree: &TreeId) {
        let (Some(server), Some(manifest)) = (&self.server, self.cache().manifest(tree)) else { return };
        if !self.objects.fetcher().take_unrecorded(tree) || self.learning.swap(true, Ordering::AcqRel) {
            return;
        }
        let (recorder, report) = (Arc::clone(server.recorder()), Arc::clone(&self.report));
        let (learning, tree, fetcher) = (Arc::clone(&self.learning), *tree, Arc::clone(self.objects.fetcher()));
        recorder.begin();
        let work = move || {
            let until = Instant::now() + LEARN_AT_MOST;
            while Instant::now() < until && recorder.idle().is_none_or(|idle| idle < LEARN_IDLE) {
                std::thread::sleep(LEARN_LOOK);
            }
            let touches = recorder.end(&manifest);
            fetcher.learned();
            if !touches.is_empty() {
                tracing::info!(%tree, touches = touches.len(), "the manager is told what this start touched");
                report(&HostReport::Touched { tree, touches });
            }
            learning.store(false, Ordering::Release);
        };
        if let Err(error) = std::thread::Builder::new().name("learn".into()).stack_size(256 << 10).spawn(work) {
            tracing::warn!(%error, "no thread to learn from this start");
            self.learning.store(false, Ordering::Release);
        }
    }

    /// While something is started that is not local, a fault of the kernel brings in its own page and no other: whatever
    /// else it wanted would have to be fetched first.
    fn read_ahead(&self, allowed: bool) {
        if let Some(server) = &self.server {
            server.allow_read_ahead(allowed);
        }
    }

    /// Whether any of these local objects of a tree was wrong.
    fn verify_objects<'o>(&self, tree: &Tree, objects: impl Iterator<Item = &'o Object>, look: Look) -> bool {
        // Two that hash the same objects at once would only be slower.
        let _one_at_a_time = lock(&self.verifying);
        let begun = Instant::now();
        let of = TreeRef { id: tree.id(), manifest: tree.manifest() };
        let report = self.objects.fetcher().verify_local(of, objects, look, &AtomicBool::new(false));
        if report.checked > 0 {
            let (objects, bytes, ms) = (report.checked, report.checked_bytes, width::millis(begun.elapsed()));
            tracing::info!(tree = %tree.id(), objects, bytes, ms, wrong = report.wrong.len(), "local objects hashed again");
        }
        !report.wrong.is_empty()
    }

    /// Asks the helper what this host permits; the answer does not change while it runs.
    pub(crate) fn probe(&self) -> Result<(), Fault> {
        let (data_path, _) = self.mounts.probe()?;
        let _ = self.data_path.set(data_path.to_string());
        Ok(())
    }
}

impl Trees for DataPlane {
    fn begin(&self, generation: &GenerationRef, tree: Option<&TreeId>, program: Option<&str>) {
        if tree.is_some_and(|tree| self.sizes(tree).is_some_and(|(local, all)| local == all)) {
            return;
        }
        self.read_ahead(false);
        let from = match (tree, generation) {
            (Some(tree), _) => self.base_of(tree),
            (None, GenerationRef::Named(product, _)) => self.newest_whole(product, None),
            (None, GenerationRef::TreePrefix(_)) => None,
        };
        self.objects.fetcher().begin(generation, tree.copied(), from, program);
    }

    fn prepare(&self, tree: &TreeId, deadline: Instant) -> Result<(), Fault> {
        self.objects.register(tree, deadline)?;
        self.prefetch.readable(tree);
        Ok(())
    }

    fn verify(&self, tree: &TreeId) -> bool {
        let Some(loaded) = self.objects.load_kept(tree) else { return false };
        if self.layout.copy(tree).exists()
            && let Err(error) = self.mounts.compare_copy(tree)
        {
            tracing::error!(%tree, %error, "the plain copy of this generation cannot be used");
            return true;
        }
        self.verify_objects(&loaded, loaded.manifest().objects.iter(), Look::Changed)
    }

    fn has_manifest(&self, tree: &TreeId) -> bool {
        self.objects.load_kept(tree).is_some()
    }

    fn real(&self, tree: &TreeId, path: &TreePath) -> TreePath {
        let loaded = self.objects.load_kept(tree);
        let real = loaded.and_then(|loaded| {
            let at = loaded.manifest().resolve(path).ok()?;
            Some(loaded.manifest().entries[at].path.clone())
        });
        real.unwrap_or_else(|| path.clone())
    }

    fn verify_files(&self, tree: &TreeId, files: &[TreePath], all: bool) -> bool {
        if self.layout.copy(tree).exists() {
            return self.verify(tree);
        }
        let Some(loaded) = self.objects.load_kept(tree) else { return false };
        let look = if all { Look::All } else { Look::Changed };
        self.verify_objects(&loaded, objects_of(loaded.manifest(), files).into_iter(), look)
    }

    fn mount(&self, tree: &TreeId) -> Result<(PathBuf, bool), Fault> {
        // The first object that is not local ends the look.
        let whole = |plane: &Self| {
            let loaded = plane.objects.load_kept(tree);
            loaded.is_some_and(|loaded| loaded.manifest().objects.iter().all(|object| plane.cache().is_local(object)))
        };
        let (data_path, _) = self.mounts.probe()?;
        if data_path.needs_all_objects() && !whole(self) {
            self.make_local(tree, false, &AtomicBool::new(false), &mut |_, _| ())?;
        }
        let whole = whole(self);
        let mounted = self.mounts.mount_generation(tree, &self.objects, whole)?;
        if !whole {
            self.learn(tree);
        }
        tracing::debug!(%tree, meta_us = mounted.meta_us, mount_us = mounted.mount_us, path = %mounted.data_path, "mounted");
        // The view is always served from here, whatever is local.
        Ok((mounted.path, whole && mounted.data_path != DataPath::View))
    }

    fn unmount(&self, tree: &TreeId) -> Result<bool, Fault> {
        match self.mounts.helper().unmount(tree) {
            Ok(()) => {
                self.objects.unregister(tree);
                self.prefetch.forget(tree);
                Ok(true)
            }
            Err(HelperError::Busy(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn is_still_mounted(&self, path: &Path) -> bool {
        self.mounts.is_still_mounted(path)
    }

    fn mounted(&self) -> Vec<(TreeId, bool)> {
        match self.mounts.helper().mounted() {
            Ok(mounted) => mounted.into_iter().map(|mounted| (mounted.tree, mounted.with_fuse)).collect(),
            Err(error) => {
                tracing::warn!(%error, "what is mounted cannot be told");
                Vec::new()
            }
        }
    }

    fn warm(&self, tree: &TreeId, files: &[TreePath]) -> Result<(), Fault> {
        if files.is_empty() {
            return Ok(());
        }
        let warmed = self.mounts.helper().warm(tree, files.to_vec(), WARM_BYTES_MAX, WARM_DEADLINE);
        let (bytes, took_us) = warmed?;
        tracing::debug!(%tree, bytes, took_us, files = files.len(), "warmed");
        Ok(())
    }

    fn make_local(
        &self,
        tree: &TreeId,
        paced: bool,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Fault> {
        let loaded = self.objects.load(tree, Instant::now() + self.options.read_deadline)?;
        let bytes_per_second_max = self.options.hydrate_bytes_per_second.filter(|_| paced);
        let quiet = paced.then_some(QUIET);
        let options = HydrateOptions { bytes_per_second_max, patience: PATIENCE, quiet };
        let base = self.base_of(tree);
        // A start that misses waits for what the delta brings: it is background work no longer.
        let is_wanted = match (quiet, base) {
            (Some(quiet), Some(_)) => self.objects.fetcher().wait_until_quiet_or_missed(tree, quiet, cancel),
            (Some(quiet), None) => {
                self.objects.fetcher().wait_until_quiet(quiet, cancel);
                false
            }
            (None, _) => true,
        };
        if let Some(from) = base {
            let bytes_per_second_max = bytes_per_second_max.filter(|_| !is_wanted);
            let options = FromOldOptions { deadline: Instant::now() + DELTA_PATIENCE, bytes_per_second_max };
            self.objects.fetcher().take_from_old(
                &from,
                TreeRef { id: tree, manifest: loaded.manifest() },
                options,
                cancel,
            );
        }
        let mut told = |now: HydrateProgress| progress(now.local_bytes, now.object_bytes);
        let made = self.objects.fetcher().make_local(tree, loaded.manifest(), options, cancel, &mut told);
        made?;
        self.read_ahead(true);
        Ok(())
    }

    fn sizes(&self, tree: &TreeId) -> Option<(u64, u64)> {
        let loaded = self.objects.load_kept(tree)?;
        Some((self.cache().local_bytes(loaded.manifest()), loaded.manifest().object_bytes()))
    }

    fn pin(&self, tree: &TreeId) -> bool {
        let loaded = self.objects.load_kept(tree);
        if let Some(loaded) = &loaded {
            self.cache().pin(*tree, loaded.manifest());
        }
        loaded.is_some()
    }

    fn unpin(&self, tree: &TreeId) {
        self.cache().unpin(tree);
    }

    fn forget_all_but(&self, trees: &BTreeSet<TreeId>) {
        let other = |hex: &str| hex.parse::<TreeId>().is_ok_and(|tree| !trees.contains(&tree));
        let list = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().collect::<Vec<_>>();
        for shard in list(&self.layout.cache.join("manifests")) {
            for entry in list(&shard.path()) {
                let hex =
                    [shard.file_name(), entry.file_name()].map(|name| name.to_string_lossy().into_owned()).concat();
                if other(&hex) {
                    // One that cannot be removed now is removed with the next change.
                    let _ = std::fs::remove_file(entry.path());
                }
            }
        }
    }

    fn directory(&self) -> PathBuf {
        self.layout.generations()
    }

    fn namespace_pid(&self) -> Option<u32> {
        self.namespace_pid
    }

    fn deadline(&self) -> Duration {
        self.options.read_deadline
    }
}

impl DataPlane {
    /// Shows these generations in the browsing view, and no others.
    pub(crate) fn set_view(&self, records: &[Arc<KnownRecord>]) {
        let entry = |known: &Arc<KnownRecord>| ViewEntry {
            product: known.record.product.clone(),
            version: known.record.version.clone(),
            tree: known.record.tree,
        };
        let entries: Vec<_> = records.iter().map(entry).collect();
        match (self.objects.set_view(&entries), &self.server) {
            (Ok(true), Some(server)) => server.invalidate_view(),
            (Ok(_), _) => {}
            (Err(error), _) => tracing::error!(%error, "the browsing view could not be changed"),
        }
    }

    /// What `status` shows. Never blocks.
    pub(crate) fn facts(&self) -> DataFacts {
        let requests = self.server.as_ref().map(|server| server.counts().snapshot()).unwrap_or_default();
        let usage = self.cache().usage();
        DataFacts {
            mountpoint: self.layout.mountpoint.clone(),
            data_path: self.data_path.get().cloned().unwrap_or_else(|| "not probed yet".to_owned()),
            fuse_requests: requests.into_iter().map(|(name, count)| (name.to_owned(), count)).collect(),
            fetch: fetched(self.objects.fetcher()),
            cache: json!({
                "dir": self.layout.cache.to_string_lossy(),
                "local_bytes": usage.local_bytes,
                "partial_bytes": usage.partial_bytes,
                "quota_bytes": usage.quota_bytes,
                "objects": usage.objects,
                "evicted_objects": usage.evicted_objects,
                "streaming": usage.streaming,
                "verity": usage.verity,
                "protection": if usage.verity { "fs-verity" } else { "stamps" },
            }),
        }
    }
}

/// What was fetched, and how long the manager's first answer to a request takes now.
fn fetched(fetcher: &Fetcher) -> Value {
    let mut fetched = json!(fetcher.counts());
    fetched["first_answer_us"] = json!(fetcher.first_answer().map(width::micros));
    fetched
}

/// The objects of these files, whichever of their links lead to them.
fn objects_of<'m>(manifest: &'m Manifest, files: &[TreePath]) -> Vec<&'m Object> {
    let mut found: Vec<&Object> = files
        .iter()
        .filter_map(|path| match &manifest.node(manifest.entry(path)?).kind {
            NodeKind::File(id) => manifest.object(id),
            _ => None,
        })
        .collect();
    found.sort_by_key(|object| object.id);
    found.dedup_by_key(|object| object.id);
    found
}
