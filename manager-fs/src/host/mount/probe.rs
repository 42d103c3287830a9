//! What this host permits, found by trying: never by a version string.

use std::io;
use std::path::Path;

use proto::limits::CHUNK_BYTES;
use proto::manifest::{Entry, Manifest, Node, NodeKind, Object};
use proto::{ObjectId, TreeId, TreePath};
use rustix::fs::XattrFlags;
use serde::{Deserialize, Serialize};

use super::DataPath;
use super::image::ImageMeta;
use super::meta::{Flavour, MetaStore};
use super::overlay::{mount_overlay, unmount_unused};

const PROBE: &[u8] = b"probe";

/// What was tried, and how it went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// Attribute namespace in which overlay mounts over data layers work: `trusted`, `user` or none.
    pub overlay: Option<String>,
    /// Why they do not work.
    pub overlay_fault: Option<String>,
    /// Why metadata layers cannot be EROFS images; `None` where they can.
    pub images_fault: Option<String>,
}

impl ProbeReport {
    /// The best way that is open here.
    pub fn data_path(&self, fuse: bool) -> DataPath {
        match (self.overlay.is_some(), fuse) {
            (true, true) => DataPath::Overlay,
            (true, false) => DataPath::OverlayLocal,
            (false, true) => DataPath::View,
            (false, false) => DataPath::Copy,
        }
    }

    pub(super) fn flavour(&self) -> Option<Flavour> {
        match self.overlay.as_deref() {
            Some("trusted") => Some(Flavour::Trusted),
            Some("user") => Some(Flavour::User),
            _ => None,
        }
    }
}

/// Mounts a one-file overlay below `meta` and reads the file through it. `local` must be where the objects are: its file
/// system must do as a data layer. Then the same with an image.
pub(super) fn probe_overlay(meta: &Path, local: &Path) -> ProbeReport {
    let mut faults = Vec::new();
    for (flavour, name) in [(Flavour::Trusted, "trusted"), (Flavour::User, "user")] {
        match try_overlay(meta, local, flavour) {
            Ok(()) => {
                let images_fault = match flavour {
                    Flavour::Trusted => try_image(meta).err().map(|error| error.to_string()),
                    Flavour::User => Some("images need the host's root".into()),
                };
                return ProbeReport { overlay: Some(name.into()), overlay_fault: None, images_fault };
            }
            Err(error) => faults.push(format!("{name}: {error}")),
        }
    }
    let fault = faults.join("; ");
    ProbeReport { overlay: None, overlay_fault: Some(fault.clone()), images_fault: Some(fault) }
}

fn try_overlay(meta: &Path, local: &Path, flavour: Flavour) -> io::Result<()> {
    let scratch = meta.join(format!(".probe-{}", std::process::id()));
    let object = local.join(format!(".probe-{}", std::process::id()));
    // On a full or read-only disk the probe file stands beside the layer: that mounts are permitted shows all the same.
    let data = match std::fs::write(&object, PROBE) {
        Ok(()) => local.to_owned(),
        Err(_) => scratch.join("data"),
    };
    let tried = try_in(&scratch, &data, &data.join(object.file_name().unwrap_or_default()), flavour);
    let _ = std::fs::remove_dir_all(&scratch);
    let _ = std::fs::remove_file(&object);
    tried
}

fn try_in(scratch: &Path, data: &Path, object: &Path, flavour: Flavour) -> io::Result<()> {
    let (layer, target) = (scratch.join("layer"), scratch.join("target"));
    std::fs::create_dir_all(&layer)?;
    std::fs::create_dir(&target)?;
    if data.starts_with(scratch) {
        std::fs::create_dir(data)?;
        std::fs::write(object, PROBE)?;
    }
    let file = std::fs::File::create(layer.join("file"))?;
    file.set_len(5)?;
    let prefix = if flavour == Flavour::Trusted { "trusted" } else { "user" };
    let name = object.file_name().unwrap_or_default().to_string_lossy();
    rustix::fs::fsetxattr(&file, format!("{prefix}.overlay.metacopy"), b"", XattrFlags::empty())?;
    let redirect = format!("/{name}");
    rustix::fs::fsetxattr(&file, format!("{prefix}.overlay.redirect"), redirect.as_bytes(), XattrFlags::empty())?;
    drop(file);
    read_through(&layer, data, flavour, &target)
}

/// An image of a tree with one file. Whether the objects' file system does as a data layer is known by now.
fn try_image(meta: &Path) -> io::Result<()> {
    let scratch = meta.join(format!(".probe-{}", std::process::id()));
    let tried = try_image_in(&scratch);
    let _ = std::fs::remove_dir_all(&scratch);
    tried
}

fn try_image_in(scratch: &Path) -> io::Result<()> {
    let (data, target) = (scratch.join("data"), scratch.join("target"));
    let (id, tree) = (ObjectId::of(PROBE), TreeId::of(PROBE));
    let (shard, rest) = id.to_shard();
    std::fs::create_dir_all(data.join(&shard))?;
    std::fs::create_dir(&target)?;
    std::fs::write(data.join(shard).join(rest), PROBE)?;
    let node = |kind| Node { mode: 0o700, uid: 0, gid: 0, mtime_s: 0, mtime_ns: 0, xattrs: Vec::new(), kind };
    let manifest = Manifest {
        chunk_bytes: CHUNK_BYTES,
        objects: vec![Object { id, bytes: PROBE.len() as u64, chunks: Vec::new() }],
        nodes: vec![node(NodeKind::Directory), node(NodeKind::File(id))],
        entries: vec![
            Entry { path: TreePath::root(), node: 0 },
            Entry { path: TreePath::parse(b"file").map_err(io::Error::other)?, node: 1 },
        ],
    };
    let layer = ImageMeta::new(scratch.to_owned(), u64::MAX).make(&tree, &manifest)?;
    read_through(layer.path(), &data, Flavour::Trusted, &target)
}

fn read_through(layer: &Path, data: &Path, flavour: Flavour, target: &Path) -> io::Result<()> {
    mount_overlay(layer, &[data.to_owned()], flavour, target)?;
    let read = std::fs::read(target.join("file"));
    unmount_unused(target)?;
    match read?.as_slice() {
        PROBE => Ok(()),
        _ => Err(io::Error::other("the overlay does not show the data layer's bytes")),
    }
}
