//! What this host permits, found by trying: never by a version string.

use std::io;
use std::path::Path;

use rustix::fs::XattrFlags;
use serde::{Deserialize, Serialize};

use super::DataPath;
use super::meta::Flavour;
use super::overlay::{mount_overlay, unmount_unused};

/// What was tried, and how it went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// Attribute namespace in which overlay mounts over data layers work: `trusted`, `user` or none.
    pub overlay: Option<String>,
    /// Why they do not work.
    pub overlay_fault: Option<String>,
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
/// system must do as a data layer.
pub(super) fn probe_overlay(meta: &Path, local: &Path) -> ProbeReport {
    let mut faults = Vec::new();
    for (flavour, name) in [(Flavour::Trusted, "trusted"), (Flavour::User, "user")] {
        match try_overlay(meta, local, flavour) {
            Ok(()) => return ProbeReport { overlay: Some(name.into()), overlay_fault: None },
            Err(error) => faults.push(format!("{name}: {error}")),
        }
    }
    ProbeReport { overlay: None, overlay_fault: Some(faults.join("; ")) }
}

fn try_overlay(meta: &Path, local: &Path, flavour: Flavour) -> io::Result<()> {
    let scratch = meta.join(format!(".probe-{}", std::process::id()));
    let object = local.join(format!(".probe-{}", std::process::id()));
    // On a full or read-only disk the probe file stands beside the layer: that mounts are permitted shows all the same.
    let data = match std::fs::write(&object, b"probe") {
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
        std::fs::write(object, b"probe")?;
    }
    let file = std::fs::File::create(layer.join("file"))?;
    file.set_len(5)?;
    let prefix = if flavour == Flavour::Trusted { "trusted" } else { "user" };
    let name = object.file_name().unwrap_or_default().to_string_lossy();
    rustix::fs::fsetxattr(&file, format!("{prefix}.overlay.metacopy"), b"", XattrFlags::empty())?;
    let redirect = format!("/{name}");
    rustix::fs::fsetxattr(&file, format!("{prefix}.overlay.redirect"), redirect.as_bytes(), XattrFlags::empty())?;
    drop(file);
    mount_overlay(&layer, &[data.to_owned()], flavour, &target)?;
    let read = std::fs::read(target.join("file"));
    unmount_unused(&target)?;
    match read?.as_slice() {
        b"probe" => Ok(()),
        _ => Err(io::Error::other("the overlay does not show the data layer's bytes")),
    }
}
