//! Which generations are mounted, by the mount table: nothing is touched.

use std::io;
use std::path::Path;

use proto::TreeId;

use super::message::MountedGeneration;
use super::overlay::{self, MountLine};
use super::{Layout, image};

/// Marks an overlay that has the FUSE layer: `with_fuse` of [`MountedGeneration`] is read from the mount's options.
const DATA_LAYER_OPTION: &str = "datadir+=";
/// Tells where the metadata layer was mounted when the overlay was.
const META_LAYER_OPTION: &str = "lowerdir+=";

/// Every overlay of a generation, in the order in which they were mounted.
pub(super) fn generations(layout: &Layout) -> io::Result<Vec<MountedGeneration>> {
    let fuse_layer = format!("{DATA_LAYER_OPTION}{}", layout.fuse_objects().display());
    Ok(overlay::mounts()?
        .into_iter()
        .filter_map(|line| {
            let tree = generation(layout, &line)?;
            let path = line.target.to_str()?.to_owned();
            Some(MountedGeneration { tree, path, with_fuse: line.options.contains(&fuse_layer) })
        })
        .collect())
}

/// The tree whose overlay this is, if it is one.
pub(super) fn generation(layout: &Layout, line: &MountLine) -> Option<TreeId> {
    let ours = line.kind == "overlay" && line.target.parent() == Some(&layout.generations());
    line.target.file_name().filter(|_| ours)?.to_str()?.parse().ok()
}

/// Whether the metadata layer of this overlay was mounted as an image below `meta`.
pub(super) fn has_image_layer(meta: &Path, tree: &TreeId, line: &MountLine) -> bool {
    line.options.contains(&format!("{META_LAYER_OPTION}{}", image::mount_point(meta, tree).display()))
}
