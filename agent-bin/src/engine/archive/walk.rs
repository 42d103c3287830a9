//! The walk: every entry's metadata, and whether it must be read.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustic_core::jiff::SignedDuration;

use super::super::format::id::Id;
use super::super::format::index::BlobKind;
use super::super::format::tree::{Node, NodeKind};
use super::super::live::node_of;
use super::folder::Folder;
use super::read::FileTask;
use super::sources::Branch;
use super::{Archive, ArchiveFault};

/// How coarse the clock may be that stamps files, with room for a server's clock that is a little ahead.
const TICK: SignedDuration = SignedDuration::from_secs(2);

/// A directory's entries in the parent snapshot, by their stored names.
type Before = HashMap<String, Node>;

impl Archive<'_> {
    pub(super) fn walk(&self, root: &Arc<Folder>, branch: &Branch) -> Result<(), ArchiveFault> {
        match branch {
            Branch::Source => self.directory(root),
            Branch::Above(entries) => self.above(root, entries),
        }
    }

    /// A directory above the sources: only what leads to them.
    fn above(&self, folder: &Arc<Folder>, entries: &BTreeMap<OsString, Branch>) -> Result<(), ArchiveFault> {
        let mut before = self.before(folder.before.as_ref());
        for (name, branch) in entries {
            let path = folder.path.join(name);
            match branch {
                Branch::Source => self.entry(folder, name, path, &mut before)?,
                Branch::Above(entries) => {
                    // Its metadata lets a restore make it again; that it cannot be read matters little.
                    let node = fs::symlink_metadata(&path)
                        .and_then(|metadata| node_of(&path, name, &metadata, &self.owners, |_| {}))
                        .ok()
                        .filter(|node| node.kind == NodeKind::Dir)
                        .unwrap_or_else(|| Node::new(name, NodeKind::Dir));
                    let was = before.remove(node.stored_name()).and_then(|node| node.subtree);
                    let place = folder.reserve();
                    self.above(&Folder::below(folder, place, path, node, was), entries)?;
                }
            }
        }
        self.complete(folder.leave())
    }

    fn directory(&self, folder: &Arc<Folder>) -> Result<(), ArchiveFault> {
        match names(&folder.path) {
            Ok(names) => {
                let mut before = self.before(folder.before.as_ref());
                for name in names {
                    self.entry(folder, &name, folder.path.join(&name), &mut before)?;
                }
            }
            Err(error) => {
                self.not_backed_up(&folder.path, &format!("what is in it cannot be listed: {error}"));
            }
        }
        self.complete(folder.leave())
    }

    fn entry(
        &self,
        folder: &Arc<Folder>,
        name: &OsStr,
        path: PathBuf,
        before: &mut Before,
    ) -> Result<(), ArchiveFault> {
        self.go_on()?;
        let found = fs::symlink_metadata(&path).and_then(|metadata| {
            let node = node_of(&path, name, &metadata, &self.owners, |problem| self.meter.problem(problem))?;
            Ok((node, metadata))
        });
        let (mut node, metadata) = match found {
            Ok(found) => found,
            Err(error) => {
                self.not_backed_up(&path, &error.to_string());
                return Ok(());
            }
        };
        let was = before.remove(node.stored_name());
        let place = folder.reserve();
        match node.kind {
            NodeKind::Dir => {
                let was = was.and_then(|node| node.subtree);
                self.directory(&Folder::below(folder, place, path, node, was))
            }
            NodeKind::File => {
                if let Some(content) = was.as_ref().and_then(|was| self.unchanged(&node, was)) {
                    self.counts.files_unmodified.fetch_add(1, Ordering::Relaxed);
                    self.counts.bytes.fetch_add(node.size, Ordering::Relaxed);
                    self.meter.advance(node.size);
                    node.content = Some(content);
                    return self.complete(folder.settle(place, Some(node)));
                }
                let folder = Arc::clone(folder);
                self.queue.put(FileTask { path, node, metadata, folder, place, is_new: was.is_none() });
                Ok(())
            }
            // A FIFO, a socket, a device: what it is, never what comes out of it.
            _ => {
                let same = |was: &Node| (was.kind, was.mtime, was.ctime) == (node.kind, node.mtime, node.ctime);
                let count = match &was {
                    None => &self.counts.files_new,
                    Some(was) if same(was) => &self.counts.files_unmodified,
                    Some(_) => &self.counts.files_changed,
                };
                count.fetch_add(1, Ordering::Relaxed);
                self.complete(folder.settle(place, Some(node)))
            }
        }
    }

    /// The content that a file had in the parent snapshot, if it has it still and the repository does too.
    fn unchanged(&self, node: &Node, was: &Node) -> Option<Vec<Id>> {
        let settled = node.ctime? < self.parent?.began.checked_sub(TICK).ok()?;
        let same = was.kind == NodeKind::File
            && (was.size, was.mtime, was.ctime) == (node.size, node.mtime, node.ctime)
            && (was.inode == node.inode || was.inode == 0);
        let content = was.content.as_ref().filter(|_| same && settled)?;
        content.iter().all(|piece| self.blobs.index().has(BlobKind::Data, piece)).then(|| content.clone())
    }

    /// Without the parent's directory everything in it is read; that costs time and nothing else.
    fn before(&self, tree: Option<&Id>) -> Before {
        let Some(tree) = tree else { return Before::new() };
        match self.blobs.tree(tree) {
            Ok(tree) => tree.nodes.into_iter().map(|node| (node.stored_name().to_owned(), node)).collect(),
            Err(fault) => {
                tracing::info!("the parent snapshot cannot be used here: {fault}");
                Before::new()
            }
        }
    }

    pub(super) fn not_backed_up(&self, path: &Path, why: &str) {
        self.meter.problem(format!("not backed up: {}: {why}", path.display()));
    }
}

/// In the order of their bytes, which is restic's.
fn names(directory: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        names.push(entry?.file_name());
    }
    names.sort_unstable();
    Ok(names)
}
