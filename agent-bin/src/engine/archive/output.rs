//! What a command prints, as a file.

use std::fs::File;
use std::path::{Component, Path};
use std::sync::Arc;

use rustic_core::jiff::Timestamp;

use super::super::format::tree::{Node, NodeKind};
use super::folder::Folder;
use super::read::{Bytes, Entry};
use super::{Archive, ArchiveFault};

impl Archive<'_> {
    /// Stores all that comes, at a path whose directories are made up.
    pub(super) fn output(&self, root: &Arc<Folder>, path: &Path, from: &File) -> Result<(), ArchiveFault> {
        let now = Timestamp::now();
        let node = |name, kind, mode| {
            let mut node = Node::new(name, kind);
            node.set_mode(mode);
            (node.mtime, node.atime, node.ctime) = (Some(now), Some(now), Some(now));
            node.uid = Some(rustix::process::geteuid().as_raw());
            node.gid = Some(rustix::process::getegid().as_raw());
            node
        };
        let mut folders = vec![Arc::clone(root)];
        let mut here = Arc::clone(root);
        for part in path.parent().into_iter().flat_map(Path::components) {
            let Component::Normal(name) = part else { continue };
            let (place, below) = (here.reserve(), here.path.join(name));
            here = Folder::below(&here, place, below, node(name, NodeKind::Dir, 0o755), None);
            folders.push(Arc::clone(&here));
        }
        self.meter.at(path);
        let file = from.try_clone().map_err(ArchiveFault::Output)?;
        // What a database says of itself is not for everybody.
        let node = node(path.file_name().unwrap_or_default(), NodeKind::File, 0o600);
        let entry = Entry { path: path.to_owned(), node, place: here.reserve(), folder: here, is_new: true };
        self.pieces(entry, Bytes::printed(file), None, &mut Vec::new())?;
        folders.iter().rev().try_for_each(|folder| self.complete(folder.leave()))
    }
}
