//! Life of the mount: who holds it, who serves it, who touches it.
//!
//! ```text
//! manager-fs mount ─ holder ──┬── worker: FUSE server, cache, network, local socket; may die at any moment
//!   /dev/fuse, INIT and its   └── helper: mounts, stats, reads and unmounts generations; holds no FUSE descriptor
//!   reply, RUN/helper.sock
//! ```
//! The worker **never touches its own mount, nor anything stacked on it**: killed with such a request in flight it would
//! wait for itself in the kernel, its holder would never see it die, and every reader would hang. It asks the helper.
//!
//! How the pieces are started:
//! - The `mount` command calls [`hold`], which starts [`HoldOptions::program`] twice, with [`HoldOptions::worker_args`]
//!   and [`HoldOptions::helper_args`] (hidden commands `__worker` and `__helper`), and again whenever one dies.
//! - `__helper` calls [`serve_helper`] and nothing else.
//! - `__worker` calls [`Worker::bootstrap`] before anything that starts threads, opens its cache and [`Objects`], calls
//!   [`Worker::serve`] (from then on the kernel is answered), starts its sockets, and calls [`Worker::ready`]. Mounting
//!   goes through [`Worker::mounts`]. A worker that ends with exit code 0 ends the whole mount; any other end is a
//!   crash, and the next worker resumes on the same descriptor.
//!
//! [`Objects`]: super::objects::Objects

mod copy;
mod erofs;
mod error;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzzing;
mod heard;
mod helper;
mod holder;
mod image;
mod inherit;
mod life;
mod message;
mod meta;
mod mounted;
mod overlay;
mod prepare;
mod probe;
mod resume;
mod worker;

use std::path::PathBuf;

use proto::TreeId;
use serde::{Deserialize, Serialize};

pub use error::MountError;
pub use helper::{HelperOptions, serve_helper};
pub use holder::{HoldOptions, hold};
pub(super) use message::PageRange;
pub use message::{HelperClient, HelperError, MetaUsage, MountedGeneration};
pub use prepare::{NamespaceChoice, still_mounted};
pub use probe::ProbeReport;
pub use worker::{Mounted, Mounts, Server, Worker};

/// The directories of one mount daemon, all absolute, and what lies where in them.
#[derive(Debug, Clone)]
pub struct Layout {
    /// `RUN`: sockets and mounts.
    pub run: PathBuf,
    /// `CACHE`: the objects, and the signed records.
    pub cache: PathBuf,
    /// The browsing view, and `.objects`.
    pub mountpoint: PathBuf,
}

impl Layout {
    /// The tmpfs of the generations' metadata layers, and where their images are mounted for a moment.
    pub fn meta(&self) -> PathBuf {
        self.run.join("meta")
    }

    /// `RUN/gens`: where the overlays of attached generations are mounted.
    pub fn generations(&self) -> PathBuf {
        self.run.join("gens")
    }

    /// The root of one generation.
    pub fn generation(&self, tree: &TreeId) -> PathBuf {
        self.generations().join(tree.to_hex())
    }

    /// `RUN/helper.sock`: where the helper, which mounts, takes its requests.
    pub fn helper_socket(&self) -> PathBuf {
        self.run.join("helper.sock")
    }

    /// Where node numbers outlive a worker.
    pub fn numbers(&self) -> PathBuf {
        self.run.join("numbers")
    }

    /// Generations whose FUSE layer died with an earlier holder, one tree id a line.
    fn stale(&self) -> PathBuf {
        self.run.join("stale")
    }

    /// The first data layer.
    pub fn local_objects(&self) -> PathBuf {
        self.cache.join("local")
    }

    /// The last data layer.
    pub fn fuse_objects(&self) -> PathBuf {
        self.mountpoint.join(".objects")
    }

    /// Plain copies of trees, where neither overlay nor FUSE is permitted.
    pub fn copies(&self) -> PathBuf {
        self.cache.join("copies")
    }

    /// The plain copy of a tree.
    pub fn copy(&self, tree: &TreeId) -> PathBuf {
        self.copies().join(tree.to_hex())
    }

    /// Where a manifest is left for the helper when the cache cannot be written.
    fn spare_manifest(&self, tree: &TreeId) -> PathBuf {
        self.run.join("manifests").join(tree.to_hex())
    }

    fn manifest(&self, tree: &TreeId) -> PathBuf {
        let (shard, rest) = tree.to_shard();
        self.cache.join("manifests").join(shard).join(rest)
    }
}

/// How programs of a generation get their bytes; found out by trying.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataPath {
    /// Overlay over local objects over FUSE: lazily, at the file system's speed.
    Overlay,
    /// Overlay over local objects alone: there is no FUSE, so every object is fetched before the mount.
    OverlayLocal,
    /// The browsing view: there is FUSE, but overlay mounts are not permitted.
    View,
    /// A plain copy: neither is permitted.
    Copy,
}

impl DataPath {
    /// Whether every object must be local before the generation can be used.
    pub fn needs_all_objects(self) -> bool {
        matches!(self, DataPath::OverlayLocal | DataPath::Copy)
    }
}

impl std::fmt::Display for DataPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DataPath::Overlay => "overlay over local objects and FUSE",
            DataPath::OverlayLocal => "overlay over local objects (no FUSE here)",
            DataPath::View => "browsing view (no overlay permitted here)",
            DataPath::Copy => "plain copy (neither overlay nor FUSE permitted here)",
        })
    }
}
