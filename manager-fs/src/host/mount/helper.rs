//! The process that touches the mounts. It holds no FUSE descriptor, so it may wait for the worker like any program.

use std::collections::BTreeMap;
use std::io;
use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use proto::manifest::Manifest;
use proto::width;
use proto::{ObjectId, TreeId, TreePath};

use super::copy::Copies;
use super::image::{self, ImageMeta};
use super::inherit::inherited;
use super::message::{HelperReply, HelperRequest, MetaUsage, MountedGeneration, PageRange, receive, send};
use super::meta::{Flavour, Layer, MetaStore, TmpfsMeta};
use super::mounted::{generation, generations, has_image_layer};
use super::probe::{ProbeReport, probe_overlay};
use super::{Layout, MountError, life, overlay};
use crate::host::files::{self, Doing};
use crate::host::panics;
use crate::moments::{self, Moment};
use crate::sync::lock;

/// Kernel memory of one entry of a metadata layer, bytes: inode, dentry, two attributes (measured over 100,000 entries).
const META_ENTRY_BYTES: u64 = 1_300;
/// How a helper works.
#[derive(Debug, Clone)]
pub struct HelperOptions {
    /// The directories of the daemon that it belongs to.
    pub layout: Layout,
    /// Caps the kernel memory of all metadata layers: images by their size, others by an estimate for their entries.
    pub meta_bytes_max: u64,
    /// Whether metadata layers are EROFS images where that is possible.
    pub images: bool,
}

/// Runs the helper until its holder ends. The body of the hidden command `__helper`.
///
/// # Errors
/// It was not started by a holder, or the metadata tmpfs cannot be mounted.
pub fn serve_helper(options: HelperOptions) -> Result<(), MountError> {
    panics::end_the_process();
    let [listener, control] = inherited()?;
    let listener = UnixListener::from(listener);
    let HelperOptions { layout, meta_bytes_max, images } = options;
    let _only_one = wait_for_turn(&layout)?;
    let copies = Mutex::new(Copies::new(layout.copies(), layout.local_objects()));
    let (mounting, probed) = (Mutex::default(), OnceLock::new());
    let helper = Arc::new(Helper { layout, meta_bytes_max, images, mounting, copies, probed });
    helper.prepare()?;
    let watch = move || {
        life::answer_until_end(&mut UnixStream::from(control), life::sign);
        std::process::exit(0);
    };
    let thread = |name: &str, stack_bytes| std::thread::Builder::new().name(name.into()).stack_size(stack_bytes);
    thread("holder-watch", 64 << 10).spawn(watch).doing(|| "start a thread".to_owned())?;
    loop {
        let (stream, _) = listener.accept().doing(|| "accept on the helper's socket".to_owned())?;
        let helper = helper.clone();
        let converse = move || helper.converse(stream);
        thread("helper", 256 << 10).spawn(converse).doing(|| "start a thread".to_owned())?;
    }
}

/// Waits until no earlier helper is left. One whose holder has just ended may still be removing the metadata of a tree
/// that it has unmounted, while this one is asked to make it anew.
fn wait_for_turn(layout: &Layout) -> Result<std::fs::File, MountError> {
    let path = layout.run.join("helper.lock");
    let file = files::lock_file(&path).doing(|| format!("create {}", path.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
        .doing(|| format!("lock {}", path.display()))?;
    Ok(file)
}

struct Helper {
    layout: Layout,
    meta_bytes_max: u64,
    images: bool,
    /// Held while the set of mounts changes; never while a file is read.
    mounting: Mutex<()>,
    copies: Mutex<Copies>,
    probed: OnceLock<ProbeReport>,
}

impl Helper {
    fn prepare(&self) -> Result<(), MountError> {
        let meta = self.layout.meta();
        let mounts = overlay::mounts().doing(|| "read the mount table".to_owned())?;
        let mounted = mounts.iter().any(|line| line.target == meta && line.kind == "tmpfs");
        if !mounted && let Err(error) = overlay::mount_meta(&meta, self.inodes_max()) {
            // Without any right to mount the plain copy is what remains; the probe will say why.
            tracing::warn!(%error, "no tmpfs for metadata layers");
        }
        image::clear_all(&meta);
        lock(&self.copies).clear();
        Ok(())
    }

    fn inodes_max(&self) -> u64 {
        (self.meta_bytes_max / META_ENTRY_BYTES).max(1_000)
    }

    fn converse(&self, mut stream: UnixStream) {
        let own = rustix::process::geteuid();
        let peer = rustix::net::sockopt::socket_peercred(&stream);
        if peer.is_ok_and(|peer| peer.uid == own)
            && let Ok(request) = receive::<HelperRequest>(&mut stream)
        {
            let reply = self.answer(request).unwrap_or_else(|error| HelperReply::Failed {
                errno: error.raw_os_error().unwrap_or(libc::EIO),
                text: error.to_string(),
            });
            let _ = send(&mut stream, &reply);
        }
    }

    fn answer(&self, request: HelperRequest) -> io::Result<HelperReply> {
        match request {
            HelperRequest::Mount { tree, with_fuse } => self.mount(&tree, with_fuse),
            HelperRequest::Unmount { tree } => self.unmount(&tree),
            HelperRequest::UnmountAll => {
                for mounted in generations(&self.layout)? {
                    if let Err(error) = self.unmount(&mounted.tree) {
                        tracing::warn!(tree = %mounted.tree, %error, "not unmounted");
                    }
                }
                // A release that a worker asked for in its last moment may still be removing its metadata.
                let _one_at_a_time = lock(&self.mounting);
                let _ = overlay::unmount_unused(&self.layout.meta());
                Ok(HelperReply::Unmounted)
            }
            HelperRequest::Warm { tree, paths, bytes_max } => self.warm(&tree, &paths, bytes_max),
            HelperRequest::Prefetch { ranges } => {
                self.prefetch(&ranges);
                Ok(HelperReply::Prefetched)
            }
            HelperRequest::Copy { tree } => {
                let _one_at_a_time = lock(&self.mounting);
                let begun = Instant::now();
                let manifest = self.manifest(&tree)?;
                let (made, found) = lock(&self.copies).make(&tree, &manifest)?;
                Ok(mounted_reply(&made, found, &manifest, begun, begun))
            }
            HelperRequest::List => {
                let _one_at_a_time = lock(&self.mounting);
                self.list().map(HelperReply::List)
            }
            HelperRequest::Probe => Ok(HelperReply::Probe(self.probe().clone())),
            HelperRequest::MetaUsage => self.meta_usage().map(HelperReply::MetaUsage),
        }
    }

    fn mount(&self, tree: &TreeId, with_fuse: bool) -> io::Result<HelperReply> {
        let flavour = self.probe().flavour().ok_or(io::ErrorKind::Unsupported)?;
        let _one_at_a_time = lock(&self.mounting);
        let manifest = self.manifest(tree)?;
        let target = self.layout.generation(tree);
        let begun = Instant::now();
        if self.list()?.iter().any(|mounted| mounted.tree == *tree) {
            return Ok(mounted_reply(&target, true, &manifest, begun, begun));
        }
        let meta = self.make_layer(tree, &manifest, flavour).map_err(|error| {
            let full = error.kind() == io::ErrorKind::StorageFull;
            let hint =
                if full { "; the cap on metadata memory is reached: raise it or release a generation" } else { "" };
            io::Error::new(error.kind(), format!("metadata layer of {tree}: {error}{hint}"))
        })?;
        let meta_made = Instant::now();
        std::fs::create_dir_all(&target)?;
        let mut layers = vec![self.layout.local_objects()];
        if with_fuse {
            layers.push(self.layout.fuse_objects());
        }
        moments::reach(Moment::TreeMount, &target)?;
        overlay::mount_overlay(meta.path(), &layers, flavour, &target)?;
        Ok(mounted_reply(&target, false, &manifest, begun, meta_made))
    }

    /// An image where that is possible, else a directory of the tmpfs.
    fn make_layer(&self, tree: &TreeId, manifest: &Manifest, flavour: Flavour) -> io::Result<Layer> {
        let usage = self.meta_usage()?;
        let left = usage.bytes_max.saturating_sub(usage.bytes_estimate);
        if self.images && self.probe().images_fault.is_none() {
            match ImageMeta::new(self.layout.meta(), left).make(tree, manifest) {
                Err(error) if error.kind() != io::ErrorKind::StorageFull => {
                    tracing::warn!(%tree, %error, "no image of the metadata; it is made file by file");
                }
                made => return made,
            }
        }
        if manifest.nodes.len() as u64 * META_ENTRY_BYTES > left {
            return Err(io::Error::new(io::ErrorKind::StorageFull, format!("{} bytes are left", left)));
        }
        TmpfsMeta::new(self.layout.meta(), flavour).make(tree, manifest)
    }

    fn unmount(&self, tree: &TreeId) -> io::Result<HelperReply> {
        let _one_at_a_time = lock(&self.mounting);
        let target = self.layout.generation(tree);
        while self.list()?.iter().any(|mounted| mounted.tree == *tree) {
            moments::reach(Moment::TreeUnmount, &target)?;
            if !overlay::unmount_unused(&target)? {
                return Ok(HelperReply::Busy);
            }
        }
        if generations(&self.layout)?.iter().any(|layer| layer.tree == *tree) {
            // A dead one below is still in use, and needs the metadata.
            return Ok(HelperReply::Unmounted);
        }
        let _ = std::fs::remove_dir(&target);
        if let Some(flavour) = self.probe().flavour() {
            TmpfsMeta::new(self.layout.meta(), flavour).remove(tree)?;
            ImageMeta::new(self.layout.meta(), 0).remove(tree)?;
        }
        lock(&self.copies).remove(tree)?;
        let _ = std::fs::remove_file(self.layout.spare_manifest(tree));
        Ok(HelperReply::Unmounted)
    }

    /// Reading puts every page into the page cache; `readahead` and `fadvise` leave hundreds of reads to the start.
    fn warm(&self, tree: &TreeId, paths: &[TreePath], bytes_max: u64) -> io::Result<HelperReply> {
        let begun = Instant::now();
        let root = self.layout.generation(tree);
        let mut buffer = vec![0; 256 << 10];
        let mut bytes = 0;
        for path in paths {
            let Ok(mut file) = std::fs::File::open(root.join(path.as_path())) else { continue };
            while bytes < bytes_max {
                match file.read(&mut buffer)? {
                    0 => break,
                    len => bytes += len as u64,
                }
            }
        }
        Ok(HelperReply::Warmed { bytes, took_us: width::micros(begun.elapsed()) })
    }

    /// Makes the kernel ask for pages that the worker has, before a program does. Exactly these are asked for, whatever
    /// the mount's read-ahead is; none is waited for, and one that is on its way to a reader is left alone. To push them from
    /// the worker (FUSE_NOTIFY_STORE) would wait for the lock of such a page, and a worker killed meanwhile could never die.
    fn prefetch(&self, ranges: &[PageRange]) {
        let mut open: Option<(ObjectId, std::fs::File)> = None;
        for range in ranges {
            if open.as_ref().is_none_or(|(object, _)| *object != range.object) {
                let (shard, rest) = range.object.to_shard();
                let opened = std::fs::File::open(self.layout.fuse_objects().join(shard).join(rest));
                open = opened.ok().map(|file| (range.object, file));
            }
            let Some((_, file)) = &open else { continue };
            let wanted = std::num::NonZeroU64::new(range.bytes);
            // It only saves time.
            let _ = rustix::fs::fadvise(file, range.offset, wanted, rustix::fs::Advice::WillNeed);
        }
    }

    /// The generations that work, by the mount table: nothing is touched but what an earlier holder left dead, which goes
    /// when nobody uses it.
    fn list(&self) -> io::Result<Vec<MountedGeneration>> {
        let mut mounted = generations(&self.layout)?;
        let mut stale = self.stale();
        if stale.is_empty() {
            return Ok(mounted);
        }
        for tree in stale.clone() {
            let layers = |mounted: &[MountedGeneration]| mounted.iter().filter(|layer| layer.tree == tree).count();
            let dead = stale.iter().filter(|known| **known == tree).count();
            // A new mount lies over the dead ones: those below it cannot be reached.
            if layers(&mounted) <= dead && overlay::unmount_unused(&self.layout.generation(&tree)).unwrap_or(false) {
                mounted = generations(&self.layout)?;
            }
            if layers(&mounted) < dead
                && let Some(at) = stale.iter().position(|known| *known == tree)
            {
                stale.remove(at);
            }
        }
        let lines: String = stale.iter().map(|tree| format!("{tree}\n")).collect();
        std::fs::write(self.layout.stale(), lines)?;
        for tree in stale {
            if let Some(at) = mounted.iter().position(|layer| layer.tree == tree) {
                mounted.remove(at);
            }
        }
        Ok(mounted)
    }

    fn stale(&self) -> Vec<TreeId> {
        let text = std::fs::read_to_string(self.layout.stale()).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn probe(&self) -> &ProbeReport {
        self.probed.get_or_init(|| probe_overlay(&self.layout.meta(), &self.layout.local_objects()))
    }

    fn meta_usage(&self) -> io::Result<MetaUsage> {
        let found = rustix::fs::statvfs(self.layout.meta())?;
        let inodes = found.f_files.saturating_sub(found.f_ffree);
        let image_bytes = self.image_bytes()?;
        Ok(MetaUsage {
            inodes,
            inodes_max: found.f_files,
            image_bytes,
            bytes_estimate: inodes * META_ENTRY_BYTES + image_bytes,
            bytes_max: self.inodes_max() * META_ENTRY_BYTES,
        })
    }

    /// By the mount table: an overlay answers `statfs` with the size of its metadata layer, and nobody else is asked.
    fn image_bytes(&self) -> io::Result<u64> {
        let mut bytes: BTreeMap<PathBuf, u64> = BTreeMap::new();
        for line in overlay::mounts()? {
            let Some(tree) = generation(&self.layout, &line) else { continue };
            if has_image_layer(&self.layout.meta(), &tree, &line) {
                *bytes.entry(line.target).or_default() += 1;
            }
        }
        let sizes = bytes.into_iter().map(|(target, layers)| {
            let found = rustix::fs::statvfs(&target)?;
            // Several of one tree, one over the other, are of one size. Only an image has no end of inodes.
            let is_image = found.f_files == u64::MAX;
            Ok(if is_image { layers * found.f_blocks * found.f_frsize } else { 0 })
        });
        sizes.sum()
    }

    /// The worker has fetched and kept it; it is verified again, for it decides what a path means.
    fn manifest(&self, tree: &TreeId) -> io::Result<Manifest> {
        let path = self.layout.manifest(tree);
        let bytes = std::fs::read(&path)
            .or_else(|error| std::fs::read(self.layout.spare_manifest(tree)).map_err(|_| error))
            .map_err(|e| io::Error::new(e.kind(), format!("manifest {}: {e}", path.display())))?;
        Manifest::decode(&bytes, tree).map_err(io::Error::other)
    }
}

fn mounted_reply(path: &Path, already: bool, manifest: &Manifest, begun: Instant, meta_made: Instant) -> HelperReply {
    HelperReply::Mounted {
        path: path.display().to_string(),
        already,
        entries: manifest.entries.len() as u64,
        meta_us: width::micros(meta_made - begun),
        mount_us: width::micros(meta_made.elapsed()),
    }
}
