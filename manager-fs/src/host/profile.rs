//! A mount of its own on which a program runs once, so that every page that it touches shows: nothing of it is cached,
//! the kernel does not read ahead, and the bytes come from the objects that are local on this host.
//!
//! The same holder, worker and helper as the mount daemon's, in a directory that goes when it is over.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::bulk::{ChunkHead, Encoding};
use proto::message::{ChunkRange, numbered};
use proto::{Manifest, TreeId, codec};
use tokio::signal::unix::{SignalKind, signal};

use super::cache::{Cache, CacheError, CacheOptions};
use super::fetch::{FetchOptions, Fetcher, Upstream, UpstreamError, Urgency};
use super::files::{Doing, IoFault};
use super::fuse::ServeOptions;
use super::mount::{HelperError, Layout, MountError, Worker};
use super::objects::{FsError, Objects, ObjectsOptions};

/// A local object is there at once or not at all.
const DEADLINE: Duration = Duration::from_secs(30);

/// What the worker of such a mount is told.
#[derive(Debug, Clone)]
pub struct ProfileOptions {
    /// Where this mount keeps everything.
    pub layout: Layout,
    /// The cache of the mount daemon, in which every object of the tree is local.
    pub source: PathBuf,
    /// The tree that the program was run from.
    pub tree: TreeId,
    /// Where the touches are written at the end.
    pub touches: PathBuf,
}

/// A start could not be recorded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// What a program touches shows in FUSE requests and nowhere else.
    #[error("a profile needs FUSE, which this host does not have: {0}")]
    NoFuse(String),
    /// The mount cannot be taken over.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The tree cannot be mounted.
    #[error(transparent)]
    Helper(#[from] HelperError),
    /// The scratch cache cannot be opened.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The tree's manifest is not here.
    #[error(transparent)]
    Tree(#[from] FsError),
    /// The recording does not encode.
    #[error(transparent)]
    Codec(#[from] codec::CodecError),
    /// A file or a signal.
    #[error(transparent)]
    Io(#[from] IoFault),
}

/// The body of the hidden command `__profile-worker`: mounts the tree, says where, records until SIGTERM.
///
/// # Errors
/// It was not started by a holder, an object is not local, or something cannot be mounted or written.
pub fn run(options: &ProfileOptions) -> Result<(), ProfileError> {
    let worker = Worker::bootstrap(options.layout.clone())?;
    worker.end_with_holder()?;
    if let Err(fault) = worker.fuse() {
        return Err(ProfileError::NoFuse(fault.to_owned()));
    }
    let cache = Cache::open(&options.layout.cache, CacheOptions::default())?;
    let source = Arc::new(LocalObjects { dir: options.source.clone() });
    let fetch = FetchOptions { read_deadline: DEADLINE, read_ahead_bytes_max: 0, ..FetchOptions::default() };
    let fetcher = Fetcher::new(source, cache, fetch);
    let keep_owners = worker.namespace_pid().is_none();
    let objects = Objects::open(fetcher, ObjectsOptions { numbers_path: options.layout.numbers(), keep_owners });
    let server = worker.serve(Arc::clone(&objects), Arc::default(), ServeOptions { read_ahead_bytes: 0 })?;
    let server = server.ok_or_else(|| ProfileError::NoFuse("the holder has no FUSE descriptor".to_owned()))?;
    let tree = objects.register(&options.tree, Instant::now() + DEADLINE)?;
    let mounted = worker.mounts().mount_generation(&options.tree, &objects, false)?;
    server.recorder().begin();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.doing(|| "start the runtime".to_owned())?.block_on(async {
        let terminate = signal(SignalKind::terminate());
        let mut terminate = terminate.doing(|| "listen for SIGTERM".to_owned())?;
        let namespace = worker.namespace_pid().map(|pid| pid.to_string()).unwrap_or_default();
        worker.ready(&format!("{READY}{namespace} {}", mounted.path.display()))?;
        terminate.recv().await;
        Ok::<_, ProfileError>(())
    })?;
    let touches = codec::encode(&server.recorder().end(tree.manifest()))?;
    std::fs::write(&options.touches, touches).doing(|| format!("write {}", options.touches.display()))?;
    Ok(())
}

/// What the ready line begins with; the namespace's process and the path of the tree follow.
pub const READY: &str = "profile mount ready: ";

/// Objects on this host's disk in the place of the manager.
struct LocalObjects {
    dir: PathBuf,
}

impl LocalObjects {
    fn path(&self, folder: &str, (shard, rest): (String, String)) -> PathBuf {
        self.dir.join(folder).join(shard).join(rest)
    }
}

fn failed(what: &Path) -> impl FnOnce(std::io::Error) -> UpstreamError + '_ {
    move |error| UpstreamError::Failed(format!("{}: {error}", what.display()))
}

impl Upstream for LocalObjects {
    fn manifest(&self, tree: &TreeId, _deadline: Instant) -> Result<Vec<u8>, UpstreamError> {
        let path = self.path("manifests", tree.to_shard());
        std::fs::read(&path).map_err(failed(&path))
    }

    fn chunks(
        &self,
        tree: &TreeId,
        wants: &[ChunkRange],
        _urgency: Urgency,
        deadline: Instant,
        sink: &mut dyn FnMut(ChunkHead, Vec<u8>),
    ) -> Result<(), UpstreamError> {
        let manifest = self.manifest(tree, deadline)?;
        let manifest = Manifest::decode(&manifest, tree).map_err(|fault| UpstreamError::Failed(fault.to_string()))?;
        for (sequence, object, index) in numbered(wants) {
            let path = self.path("local", object.to_shard());
            let file = File::open(&path).map_err(failed(&path))?;
            let object = manifest.object(&object);
            let plain_bytes = object.and_then(|object| object.chunk_len(index, manifest.chunk_bytes));
            let plain_bytes = plain_bytes.ok_or_else(|| UpstreamError::Failed(format!("no chunk {index}")))?;
            let mut bytes = vec![0; plain_bytes as usize];
            let offset = u64::from(index) * u64::from(manifest.chunk_bytes);
            file.read_exact_at(&mut bytes, offset).map_err(failed(&path))?;
            sink(ChunkHead { sequence, encoding: Encoding::Raw, plain_bytes }, bytes);
        }
        Ok(())
    }
}
