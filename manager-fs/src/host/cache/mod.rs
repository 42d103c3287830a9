//! Objects on the host's disk.
//!
//! ```text
//! CACHE/partial/<2 hex>/<rest>.<chunk bytes>   sparse, being filled; every chunk verified before it is written
//!       │ last chunk: hash the whole, fsync, 0444, rename
//!       v
//! CACHE/local/<2 hex>/<rest>                   whole, immutable: a data layer of the generations' overlays
//! CACHE/manifests/<2 hex>/<rest>               manifests, verified on every load; of mounted trees twice (`<rest>.2`)
//! CACHE/stamps                                 how each local object looked when it was hashed last
//! ```
//! `local` is a 0700 directory: the overlay opens objects with the mounter's credentials and checks the modes of the
//! *tree*; anyone else who could reach an object by its id could read a file that is 0600 in its tree.
//!
//! A put may fail without failing the read: over quota, or on a full or read-only disk, reads stream.

mod evict;
mod partial;
mod stamps;
mod verify;
mod whole;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use proto::manifest::{Manifest, Object};
use proto::proof::PageSet;
use proto::{ObjectId, TreeId};

pub use partial::Partial;
pub use verify::{Look, VerifyReport};

use crate::moments::{self, Moment};
use crate::sync::lock;
use stamps::Stamps;

/// The cache could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// A file system call failed.
    #[error("cache: {what}: {source}")]
    Io {
        /// What was tried, with the path.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A whole object's bytes are not the object.
    #[error("cache: object {0} has a wrong hash; it was removed and will be fetched again")]
    WrongHash(ObjectId),
    /// The quota is used up by objects that must stay.
    #[error("cache: quota of {quota_bytes} bytes is used up by attached generations: raise it or release one")]
    OverQuota {
        /// Bytes that the cache may have in all.
        quota_bytes: u64,
    },
}

impl CacheError {
    /// What a program is told whose read failed for this.
    pub fn errno(&self) -> i32 {
        match self {
            CacheError::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            CacheError::WrongHash(_) | CacheError::OverQuota { .. } => libc::EIO,
        }
    }

    fn io(what: &str, path: &Path, source: io::Error) -> Self {
        Self::Io { what: format!("{what} {}", path.display()), source }
    }
}

/// How a cache is kept.
#[derive(Debug, Clone, Default)]
pub struct CacheOptions {
    /// Largest size of `local` and `partial` together, bytes; `None` for no limit but the disk's.
    pub quota_bytes: Option<u64>,
    /// What an earlier process hashed is believed if it had the same epoch: a boot's id. Empty: nothing is.
    pub epoch: String,
}

/// What the cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct CacheUsage {
    /// Bytes of whole objects.
    pub local_bytes: u64,
    /// Bytes of verified chunks of objects that are not whole.
    pub partial_bytes: u64,
    /// Bytes that the cache may have in all; `None`: as many as the disk.
    pub quota_bytes: Option<u64>,
    /// Objects of which every byte is here.
    pub objects: u64,
    /// Objects evicted since start.
    pub evicted_objects: u64,
    /// Whether the last write failed, or did not fit, so that reads stream.
    pub streaming: bool,
    /// Whether new whole objects are protected by fs-verity.
    pub verity: bool,
}

/// Where an object's bytes are.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// All of it is here, verified, in this file.
    Local(Arc<File>),
    /// Some chunks may be missing.
    Partial(Arc<Partial>),
}

/// The objects on the host's disk, `CACHE/local`: whole ones, and those of which some chunks have come.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    options: CacheOptions,
    partials: Mutex<Partials>,
    open_locals: Mutex<lru::LruCache<ObjectId, Arc<File>>>,
    pins: Mutex<HashMap<TreeId, Pin>>,
    finishing: Mutex<()>,
    counts: Counts,
    verity: bool,
    stamps: Stamps,
}

/// By object and chunk size.
type Partials = HashMap<(ObjectId, u32), Arc<Partial>>;

#[derive(Debug)]
struct Pin {
    count: usize,
    objects: Arc<[ObjectId]>,
}

#[derive(Debug, Default)]
struct Counts {
    local_bytes: AtomicU64,
    partial_bytes: AtomicU64,
    objects: AtomicU64,
    evicted_objects: AtomicU64,
    streaming: AtomicBool,
    /// Milliseconds since start of the last eviction that freed nothing; see `evict.rs`.
    fruitless_ms: AtomicU64,
}

const OPEN_LOCALS: usize = 64;
/// Objects being filled that are held open; idle ones above it are closed and verified again when next used, but for those
/// with pages that cannot be verified alone.
const OPEN_PARTIALS: usize = 128;

impl Cache {
    /// Opens or creates the cache below `dir`. What it holds is counted now (names and sizes only).
    ///
    /// # Errors
    /// A directory cannot be created or read.
    pub fn open(dir: &Path, options: CacheOptions) -> Result<Arc<Self>, CacheError> {
        for sub in ["local", "partial", "manifests", "records"] {
            make_private_dir(&dir.join(sub))?;
        }
        let cache = Self {
            dir: dir.to_owned(),
            stamps: Stamps::open(dir, &options.epoch),
            options,
            partials: Mutex::default(),
            open_locals: Mutex::new(lru::LruCache::new(
                std::num::NonZeroUsize::new(OPEN_LOCALS).unwrap_or(std::num::NonZeroUsize::MIN),
            )),
            pins: Mutex::default(),
            finishing: Mutex::default(),
            counts: Counts::default(),
            verity: whole::probe_verity(&dir.join("local")),
        };
        cache.count_contents()?;
        Ok(Arc::new(cache))
    }

    /// The directory that is the overlays' first data layer.
    pub fn local_dir(&self) -> PathBuf {
        self.dir.join("local")
    }

    /// Where this tree's manifest is kept.
    pub fn manifest_path(&self, tree: &TreeId) -> PathBuf {
        let (shard, rest) = tree.to_shard();
        self.dir.join("manifests").join(shard).join(rest)
    }

    /// The manifest of a tree, if its bytes are here and are the tree's. Damaged bytes are a miss and are removed. A tree that
    /// was mounted has a second copy of its manifest: without it nothing of the tree could be shown.
    pub fn manifest(&self, tree: &TreeId) -> Option<Manifest> {
        let path = self.manifest_path(tree);
        if let Some((manifest, _)) = read_manifest(&path, tree) {
            return Some(manifest);
        }
        let (manifest, bytes) = read_manifest(&second(&path), tree)?;
        tracing::warn!(%tree, "a cached manifest was lost or damaged; it is made again of its second copy");
        if let Err(error) = self.put_manifest(tree, &bytes) {
            tracing::warn!(%tree, %error, "the manifest's first copy cannot be written");
        }
        Some(manifest)
    }

    /// Keeps the manifest of a tree twice, some time later.
    fn keep_manifest_twice(&self, tree: &TreeId) {
        let path = self.manifest_path(tree);
        let copy = second(&path);
        if copy.exists() {
            return;
        }
        let tree = *tree;
        let keep = move || {
            let kept = std::fs::read(&path)
                .and_then(|bytes| crate::host::files::replace(Moment::ManifestKeep, &copy, &bytes));
            if let Err(error) = kept {
                tracing::debug!(%tree, %error, "there is no second copy of the manifest");
            }
        };
        // Without a thread there is no second copy, and the first one is there.
        drop(std::thread::Builder::new().name("copy".into()).stack_size(128 << 10).spawn(keep));
    }

    /// Keeps a manifest whose bytes were checked against `tree`, durably.
    ///
    /// # Errors
    /// The disk does not let us.
    pub fn put_manifest(&self, tree: &TreeId, bytes: &[u8]) -> Result<(), CacheError> {
        self.write_manifest(tree, bytes, true).map(drop)
    }

    /// As [`Cache::put_manifest`], but durable only some time later: a program waits for the manifest, and one that a
    /// power cut has damaged is noticed and fetched again.
    ///
    /// # Errors
    /// The disk does not let us.
    pub fn put_manifest_soon(&self, tree: &TreeId, bytes: &[u8]) -> Result<(), CacheError> {
        let file = self.write_manifest(tree, bytes, false)?;
        let synced =
            std::thread::Builder::new().name("sync".into()).stack_size(64 << 10).spawn(move || file.sync_all());
        synced.map(drop).map_err(|e| CacheError::io("sync manifest", &self.manifest_path(tree), e))
    }

    fn write_manifest(&self, tree: &TreeId, bytes: &[u8], sync: bool) -> Result<File, CacheError> {
        let path = self.manifest_path(tree);
        let fail = |e| CacheError::io("write manifest", &path, e);
        let parent = path.parent().unwrap_or(&self.dir);
        make_private_dir(parent)?;
        // Of this thread: another one may be at the same manifest.
        let thread = rustix::thread::gettid().as_raw_nonzero();
        let temporary = parent.join(format!(".{thread}.{}", &tree.to_hex()[2..]));
        let file = File::create(&temporary).map_err(fail)?;
        let written = file.write_all_at(bytes, 0).and_then(|()| if sync { file.sync_all() } else { Ok(()) });
        let reached = || moments::reach(Moment::ManifestKeep, &path);
        written.and_then(|()| reached()).and_then(|()| std::fs::rename(&temporary, &path)).map_err(|e| {
            let _ = std::fs::remove_file(&temporary);
            fail(e)
        })?;
        if sync {
            File::open(parent).and_then(|parent| parent.sync_all()).map_err(fail)?;
        }
        Ok(file)
    }

    /// Where to read the object, or to fill it; opens what an earlier process left of it.
    ///
    /// # Errors
    /// The disk does not let us; the caller streams.
    pub(crate) fn place(&self, object: &Object, chunk_bytes: u32) -> Result<Place, CacheError> {
        let key = (object.id, chunk_bytes);
        let known = |partials: &Partials| partials.get(&key).map(|partial| Place::Partial(Arc::clone(partial)));
        if let Some(place) = known(&lock(&self.partials)) {
            return Ok(place);
        }
        // It may have to be hashed, and nobody else waits for that.
        if let Some(file) = self.open_local(object, chunk_bytes) {
            return Ok(Place::Local(file));
        }
        let mut partials = lock(&self.partials);
        // Whole in between: it is in `local` before it leaves the table.
        if let Some(place) = known(&partials).or_else(|| self.open_stamped(object).map(Place::Local)) {
            return Ok(place);
        }
        if partials.len() >= OPEN_PARTIALS {
            partials.retain(|_, partial| Arc::strong_count(partial) > 1 || partial.has_lone_pages());
        }
        let partial = Arc::new(Partial::open(&self.dir.join("partial"), object, chunk_bytes)?);
        partials.insert(key, partial.clone());
        Ok(Place::Partial(partial))
    }

    /// As [`Cache::place`], but at once: `None` when the object would have to be opened or hashed first.
    pub(crate) fn place_at_once(&self, object: &Object, chunk_bytes: u32) -> Option<Place> {
        let partial = lock(&self.partials).get(&(object.id, chunk_bytes)).cloned();
        partial.map(Place::Partial).or_else(|| self.open_stamped(object).map(Place::Local))
    }

    /// Writes a verified chunk. `false`: it did not fit, the caller streams.
    pub(crate) fn put_chunk(&self, partial: &Partial, index: u32, bytes: &[u8]) -> bool {
        self.put(bytes.len(), || partial.write(index, bytes))
    }

    /// Writes verified pages of a chunk, as [`Cache::put_chunk`].
    pub(crate) fn put_pages(&self, partial: &Partial, index: u32, pages: &PageSet, plain: &[u8]) -> bool {
        self.put(plain.len(), || partial.write_pages(index, pages, plain))
    }

    fn put(&self, bytes: usize, write: impl FnOnce() -> io::Result<u64>) -> bool {
        let fits = self.make_room(bytes as u64);
        let written = match if fits { write() } else { Ok(0) } {
            _ if !fits => false,
            Ok(new_bytes) => {
                self.counts.partial_bytes.fetch_add(new_bytes, Ordering::Relaxed);
                true
            }
            Err(error) => {
                if !self.counts.streaming.load(Ordering::Relaxed) {
                    tracing::warn!(%error, "the cache cannot be written: reads stream until it can");
                }
                false
            }
        };
        self.counts.streaming.store(!written, Ordering::Relaxed);
        written
    }

    /// Bytes of the tree's objects that are whole and local. One `stat` an object.
    pub fn local_bytes(&self, manifest: &Manifest) -> u64 {
        manifest.objects.iter().filter(|object| self.is_local(object)).map(|object| object.bytes).sum()
    }

    /// Keeps the objects of a tree from eviction until [`Cache::unpin`]; calls nest.
    pub fn pin(&self, tree: TreeId, manifest: &Manifest) {
        self.keep_manifest_twice(&tree);
        let mut pins = lock(&self.pins);
        let pin = pins
            .entry(tree)
            .or_insert_with(|| Pin { count: 0, objects: manifest.objects.iter().map(|object| object.id).collect() });
        pin.count += 1;
    }

    /// Ends one [`Cache::pin`]. When it was the last, the objects count as just used.
    pub fn unpin(&self, tree: &TreeId) {
        let mut pins = lock(&self.pins);
        let Some(pin) = pins.get_mut(tree) else { return };
        pin.count -= 1;
        if pin.count == 0
            && let Some(pin) = pins.remove(tree)
        {
            drop(pins);
            self.touch(&pin.objects);
        }
    }

    /// What is held now. Never blocks on the disk.
    pub fn usage(&self) -> CacheUsage {
        CacheUsage {
            local_bytes: self.counts.local_bytes.load(Ordering::Relaxed),
            partial_bytes: self.counts.partial_bytes.load(Ordering::Relaxed),
            quota_bytes: self.options.quota_bytes,
            objects: self.counts.objects.load(Ordering::Relaxed),
            evicted_objects: self.counts.evicted_objects.load(Ordering::Relaxed),
            streaming: self.counts.streaming.load(Ordering::Relaxed),
            verity: self.verity,
        }
    }
}

/// Lowers a counter, which is an estimate after a restart, not below 0.
fn lower(counter: &AtomicU64, by: u64) {
    let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(n.saturating_sub(by)));
}

/// The manifest that lies at `path`, with its bytes. Damaged ones are removed.
fn read_manifest(path: &Path, tree: &TreeId) -> Option<(Manifest, Vec<u8>)> {
    let bytes = std::fs::read(path).ok()?;
    match Manifest::decode(&bytes, tree) {
        Ok(manifest) => Some((manifest, bytes)),
        Err(fault) => {
            tracing::warn!(%tree, %fault, path = %path.display(), "a cached manifest is damaged and is removed");
            let _ = std::fs::remove_file(path);
            None
        }
    }
}

/// Where the second copy of this file is.
fn second(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".2");
    PathBuf::from(name)
}

fn make_private_dir(dir: &Path) -> Result<(), CacheError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    let private = made.and_then(|()| {
        let mode = std::fs::metadata(dir)?.permissions().mode() & 0o7777;
        if mode == 0o700 { Ok(()) } else { std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)) }
    });
    private.map_err(|e| CacheError::io("create directory", dir, e))
}

#[cfg(test)]
mod model_tests;
