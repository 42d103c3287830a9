//! Two versions of a program in a store, and a manager without a network that gives them to a host.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use manager_fs::host::fetch::{StartWanted, Upstream, UpstreamError, Urgency};
use manager_fs::manager::monitor::Quiet;
use manager_fs::manager::publish::{PublishOptions, Published, publish};
use manager_fs::manager::store::Store;
use proto::bulk::ChunkHead;
use proto::message::{ChunkRange, numbered};
use proto::{Manifest, TreeId};

/// What a test of a moment may wait for.
pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// The files of one version, by path.
pub(crate) type Files<'a> = &'a [(&'a str, Vec<u8>)];

/// Two versions of a product, published.
pub(crate) struct Pair {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Store,
    pub(crate) old: Published,
    pub(crate) new: Published,
}

impl Pair {
    /// Of these files; where there is a `bin/run`, it is the entry point.
    pub(crate) fn of(old: Files<'_>, new: Files<'_>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let take_in = |name: &str, files: Files<'_>| {
            let root = dir.path().join(name);
            write(&root, files);
            let entry_point = root.join("bin/run").exists().then(|| "bin/run".into());
            let options = PublishOptions { entry_point, ..PublishOptions::default() };
            publish(&store, &root, &options, &Quiet, &AtomicBool::new(false)).unwrap()
        };
        let (old, new) = (take_in("old", old), take_in("new", new));
        Self { dir, store, old, new }
    }

    pub(crate) fn manifest(&self) -> Manifest {
        self.store.tree(&self.new.tree).unwrap()
    }
}

fn write(root: &Path, files: Files<'_>) {
    for (path, content) in files {
        let at = root.join(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(&at, content).unwrap();
        let mode = if *path == "bin/run" { 0o755 } else { 0o644 };
        fs::set_permissions(&at, fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// A manager without a network. It counts what is fetched as it is, and answers for a bundle or a delta with one stream,
/// as far as the test lets it.
pub(crate) struct Origin {
    pub(crate) pair: Pair,
    pub(crate) manifests: AtomicU64,
    pub(crate) chunks: AtomicU64,
    /// Plain bytes of these chunks.
    pub(crate) fetched_bytes: AtomicU64,
    stream: Vec<u8>,
    /// Bytes of the stream that may go.
    allowed: Mutex<usize>,
    more: Condvar,
}

impl Origin {
    pub(crate) fn new(pair: Pair, stream: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            pair,
            manifests: AtomicU64::new(0),
            chunks: AtomicU64::new(0),
            fetched_bytes: AtomicU64::new(0),
            stream,
            allowed: Mutex::new(usize::MAX),
            more: Condvar::new(),
        })
    }

    pub(crate) fn allow(&self, bytes: usize) {
        *self.allowed.lock().unwrap() = bytes;
        self.more.notify_all();
    }

    /// Counts anew.
    pub(crate) fn forget(&self) {
        for count in [&self.manifests, &self.chunks, &self.fetched_bytes] {
            count.store(0, Ordering::Relaxed);
        }
    }

    fn send(&self, deadline: Instant, sink: &mut dyn FnMut(&[u8])) {
        let mut sent = 0;
        while sent < self.stream.len() {
            let mut allowed = self.allowed.lock().unwrap();
            while *allowed <= sent {
                let left = deadline.checked_duration_since(Instant::now()).expect("the test allows more in time");
                allowed = self.more.wait_timeout(allowed, left).unwrap().0;
            }
            let end = (*allowed).min(self.stream.len()).min(sent + 1_000);
            drop(allowed);
            sink(&self.stream[sent..end]);
            sent = end;
        }
    }
}

impl Upstream for Origin {
    fn manifest(&self, tree: &TreeId, _deadline: Instant) -> Result<Vec<u8>, UpstreamError> {
        self.manifests.fetch_add(1, Ordering::Relaxed);
        Ok(self.pair.store.manifest(tree).unwrap().unwrap())
    }

    fn chunks(
        &self,
        tree: &TreeId,
        wants: &[ChunkRange],
        _urgency: Urgency,
        _deadline: Instant,
        sink: &mut dyn FnMut(ChunkHead, Vec<u8>),
    ) -> Result<(), UpstreamError> {
        let manifest = self.pair.store.tree(tree).unwrap();
        for (sequence, object, index) in numbered(wants) {
            let id = manifest.object(&object).unwrap().chunks[index as usize];
            let chunk = self.pair.store.chunk(&id).unwrap().unwrap();
            self.chunks.fetch_add(1, Ordering::Relaxed);
            self.fetched_bytes.fetch_add(u64::from(chunk.plain_bytes), Ordering::Relaxed);
            let head = ChunkHead { sequence, encoding: chunk.encoding, plain_bytes: chunk.plain_bytes };
            sink(head, chunk.bytes);
        }
        Ok(())
    }

    fn start(
        &self,
        _wanted: StartWanted<'_>,
        deadline: Instant,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), UpstreamError> {
        self.send(deadline, sink);
        Ok(())
    }

    fn delta(
        &self,
        _from: &TreeId,
        _to: &TreeId,
        deadline: Instant,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), UpstreamError> {
        self.send(deadline, sink);
        Ok(())
    }
}
