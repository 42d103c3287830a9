//! The walk: every entry's metadata, and whether it must be read.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustic_core::jiff::SignedDuration;
use rustix::fs::OFlags;

use super::super::beneath::{Beneath, names_in};
use super::super::facts::Facts;
use super::super::format::id::Id;
use super::super::format::index::BlobKind;
use super::super::format::tree::{Node, NodeKind};
use super::super::live::{At, node_of};
use super::super::source::Source;
use super::folder::Folder;
use super::read::{Entry, FileTask};
use super::sources::Branch;
use super::{Archive, ArchiveFault};

/// How coarse the clock may be that stamps files, with room for a server's clock that is a little ahead.
const TICK: SignedDuration = SignedDuration::from_secs(2);

/// A directory's entries in the parent snapshot, by their stored names.
type Before = HashMap<String, Node>;

impl<'a> Archive<'a> {
    pub(super) fn walk(&self, root: &Arc<Folder>, branch: &Branch<&'a Source>) -> Result<(), ArchiveFault> {
        match branch {
            Branch::Source(source) => self.directory(source, root),
            Branch::Above(entries) => self.above(root, entries),
        }
    }

    /// A directory above the sources: only what leads to them.
    fn above(
        &self,
        folder: &Arc<Folder>,
        entries: &BTreeMap<OsString, Branch<&'a Source>>,
    ) -> Result<(), ArchiveFault> {
        let mut before = self.before(folder.before.as_ref());
        for (name, branch) in entries {
            let path = folder.path.join(name);
            match branch {
                Branch::Source(source) => {
                    let found = source
                        .look()
                        .and_then(|(file, facts)| Ok((self.node(At::Open(file.as_fd()), &path, &facts)?, facts)));
                    if let Some((below, _)) = self.entry(source, folder, path, found, &mut before)? {
                        self.directory(source, &below)?;
                    }
                }
                Branch::Above(entries) => {
                    // Its metadata lets a restore make it again; that it cannot be read, or is a link, matters little.
                    let node = Beneath::at(&path).and_then(|directory| {
                        let facts = Facts::of(&directory)?;
                        node_of(At::Open(directory.as_fd()), &path, &facts, &self.owners, |_| {})
                    });
                    let node = node.unwrap_or_else(|_| Node::new(name, NodeKind::Dir));
                    let was = before.remove(node.stored_name()).and_then(|node| node.subtree);
                    let place = folder.reserve();
                    self.above(&Folder::below(folder, place, path, node, was), entries)?;
                }
            }
        }
        self.complete(folder.leave())
    }

    /// All that is in a directory. It is open only until its own entries have been looked at: a tree may be deeper than
    /// a process may have descriptors.
    fn directory(&self, source: &'a Source, folder: &Arc<Folder>) -> Result<(), ArchiveFault> {
        for below in self.entries(source, folder)? {
            self.directory(source, &below)?;
        }
        self.complete(folder.leave())
    }

    /// Looks at each entry; returns the directories among them that are to be entered.
    fn entries(&self, source: &'a Source, folder: &Arc<Folder>) -> Result<Vec<Arc<Folder>>, ArchiveFault> {
        let mut directories = Vec::new();
        let listed = source.read(&folder.path, OFlags::DIRECTORY).and_then(|directory| {
            let mut names = names_in(&directory)?;
            // In the order of their bytes, which is restic's.
            names.sort_unstable();
            let names = self.selection.unmarked(&directory, names);
            Ok((directory, names))
        });
        let (directory, names) = match listed {
            Ok(listed) => listed,
            Err(error) => {
                self.not_backed_up(&folder.path, &format!("what is in it cannot be listed: {error}"));
                return Ok(directories);
            }
        };
        let mut before = self.before(folder.before.as_ref());
        for name in names {
            let path = folder.path.join(&name);
            let at = At::Entry(directory.as_fd(), &name);
            let facts = Facts::of_entry(&directory, &name);
            if facts.as_ref().is_ok_and(|facts| self.selection.leaves_out(&path, facts, source.device())) {
                continue;
            }
            let found = facts.and_then(|facts| Ok((self.node(at, &path, &facts)?, facts)));
            match self.entry(source, folder, path, found, &mut before)? {
                // Where another file system is mounted: the directory, and nothing of what is in it.
                Some((below, facts)) if self.selection.is_beyond(&facts, source.device()) => {
                    self.complete(below.leave())?;
                }
                Some((below, _)) => directories.push(below),
                None => {}
            }
        }
        Ok(directories)
    }

    fn node(&self, at: At<'_>, path: &Path, facts: &Facts) -> io::Result<Node> {
        node_of(at, path, facts, &self.owners, |problem| self.meter.problem(problem))
    }

    /// Takes note of one entry, which was `found` to be something; returns it if it is a directory.
    fn entry(
        &self,
        source: &'a Source,
        folder: &Arc<Folder>,
        path: PathBuf,
        found: io::Result<(Node, Facts)>,
        before: &mut Before,
    ) -> Result<Option<(Arc<Folder>, Facts)>, ArchiveFault> {
        self.go_on()?;
        let (mut node, facts) = match found {
            Ok(found) => found,
            Err(error) => {
                self.not_backed_up(&path, &error.to_string());
                return Ok(None);
            }
        };
        let was = before.remove(node.stored_name());
        let place = folder.reserve();
        match node.kind {
            NodeKind::Dir => {
                let was = was.and_then(|node| node.subtree);
                return Ok(Some((Folder::below(folder, place, path, node, was), facts)));
            }
            NodeKind::File => {
                if let Some(content) = was.as_ref().and_then(|was| self.unchanged(&node, was)) {
                    self.counts.files_unmodified.fetch_add(1, Ordering::Relaxed);
                    self.counts.bytes.fetch_add(node.size, Ordering::Relaxed);
                    self.meter.advance(node.size);
                    node.content = Some(content);
                    self.complete(folder.settle(place, Some(node)))?;
                } else {
                    let folder = Arc::clone(folder);
                    let entry = Entry { path, node, folder, place, is_new: was.is_none() };
                    self.queue.put(FileTask { source, facts, entry });
                }
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
                self.complete(folder.settle(place, Some(node)))?;
            }
        }
        Ok(None)
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
