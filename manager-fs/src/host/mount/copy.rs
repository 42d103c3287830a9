//! The last resort: a tree as a plain directory, where neither overlay nor FUSE is permitted.
//!
//! Reflinked where the file system can, else copied. Hard links to the cache would share modes and times between trees.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use proto::TreeId;
use proto::manifest::Manifest;

use super::meta;

/// Makes `copies/<tree>` from the local objects, all of which must be there.
///
/// # Errors
/// An object is missing, or the disk is full; nothing half-made remains.
pub(super) fn make(copies: &Path, local: &Path, tree: &TreeId, manifest: &Manifest) -> io::Result<PathBuf> {
    let path = copies.join(tree.to_hex());
    if path.exists() {
        return Ok(path);
    }
    std::fs::create_dir_all(copies)?;
    let making = copies.join(format!(".making-{}", tree.to_hex()));
    if making.exists() {
        std::fs::remove_dir_all(&making)?;
    }
    let made = meta::build(&making, manifest, None, &mut |file, id| {
        let (shard, rest) = id.to_shard();
        let mut object = File::open(local.join(shard).join(rest))?;
        match rustix::fs::ioctl_ficlone(file, &object) {
            Ok(()) => Ok(()),
            Err(_) => io::copy(&mut object, &mut File::from(file.try_clone()?)).map(|_| ()),
        }
    });
    let made = made.and_then(|()| Ok(rustix::fs::syncfs(File::open(&making)?)?));
    match made.and_then(|()| std::fs::rename(&making, &path)) {
        Ok(()) => Ok(path),
        Err(error) => {
            let _ = std::fs::remove_dir_all(&making);
            Err(error)
        }
    }
}

/// Removes a copy. Programs that run from it keep their open files.
pub(super) fn remove(copies: &Path, tree: &TreeId) -> io::Result<()> {
    match std::fs::remove_dir_all(copies.join(tree.to_hex())) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
