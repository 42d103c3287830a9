//! Metadata layers as EROFS images in memory.
//!
//! An image is mounted where the overlay can be told of it, `RUN/meta/<tree>.image`, and unmounted there as soon as the
//! overlay is: that keeps the image, and when the overlay goes all goes, whoever unmounts it. So no state is kept here
//! and nothing can be left behind but that mount, by a helper that was killed in between.

use std::io::{self, BufWriter};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use proto::TreeId;
use proto::manifest::Manifest;

use super::erofs::{ImageError, Plan};
use super::meta::{Layer, MetaStore};
use super::overlay;

const WRITE_BYTES: usize = 256 << 10;
const SUFFIX: &str = "image";

/// See the module.
#[derive(Debug)]
pub(super) struct ImageMeta {
    dir: PathBuf,
    /// A larger image is refused.
    bytes_max: u64,
}

impl ImageMeta {
    pub(super) fn new(dir: PathBuf, bytes_max: u64) -> Self {
        Self { dir, bytes_max }
    }
}

impl MetaStore for ImageMeta {
    fn make(&self, tree: &TreeId, manifest: &Manifest) -> io::Result<Layer> {
        let plan = Plan::new(manifest)?;
        if plan.bytes() > self.bytes_max {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("its {} bytes are more than the {} that are left", plan.bytes(), self.bytes_max),
            ));
        }
        let mut image = BufWriter::with_capacity(WRITE_BYTES, overlay::memory_file()?);
        plan.write(&mut image)?;
        let image = image.into_inner().map_err(io::IntoInnerError::into_error)?;
        let path = mount_point(&self.dir, tree);
        clear(&path);
        std::fs::create_dir_all(&path)?;
        let layer = Layer::new(path, Some(clear));
        overlay::mount_image(image.as_fd(), layer.path())?;
        Ok(layer)
    }

    fn remove(&self, tree: &TreeId) -> io::Result<()> {
        clear(&mount_point(&self.dir, tree));
        Ok(())
    }
}

/// Where the overlay of this tree was told to look, if its layer is an image.
pub(super) fn mount_point(dir: &Path, tree: &TreeId) -> PathBuf {
    dir.join(tree.to_hex()).with_extension(SUFFIX)
}

/// Removes what killed helpers have left.
pub(super) fn clear_all(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|suffix| suffix == SUFFIX) {
            clear(&entry.path());
        }
    }
}

/// Whoever looks at the image itself can keep its mount a while; then the next one to come here removes it.
fn clear(path: &Path) {
    while overlay::unmount_unused(path).unwrap_or(false) {}
    let _ = std::fs::remove_dir(path);
}

impl From<ImageError> for io::Error {
    fn from(error: ImageError) -> Self {
        let kind = match &error {
            ImageError::DoesNotFit { .. } => io::ErrorKind::Unsupported,
            ImageError::Malformed { .. } => io::ErrorKind::InvalidData,
            ImageError::Write(source) => source.kind(),
        };
        io::Error::new(kind, error)
    }
}
