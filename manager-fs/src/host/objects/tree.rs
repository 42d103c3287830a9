//! One manifest, indexed for looking up names and objects.

use std::sync::OnceLock;

use proto::TreeId;
use proto::manifest::{Entry, Manifest, Node, NodeKind};
use proto::path::TreePath;

use super::object_prefix;

/// The manifest of a tree, with what the view needs to find things in it.
#[derive(Debug)]
pub struct Tree {
    id: TreeId,
    manifest: Manifest,
    view: OnceLock<ViewIndex>,
}

/// Made when the tree is first looked at through the view; an attached tree never needs it.
#[derive(Debug)]
struct ViewIndex {
    /// The first entry of every node.
    entry_of_node: Vec<u32>,
    links: Vec<u32>,
    subdirectories: Vec<u32>,
}

impl Tree {
    pub(super) fn new(id: TreeId, manifest: Manifest) -> Self {
        Self { id, manifest, view: OnceLock::new() }
    }

    /// Its id.
    pub fn id(&self) -> &TreeId {
        &self.id
    }

    /// Its verified manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The object whose id begins with these 63 bits. Objects are ordered by id, so by prefix too.
    pub(super) fn object_by_prefix(&self, prefix: u64) -> Option<usize> {
        let objects = &self.manifest.objects;
        let at = objects.partition_point(|object| object_prefix(&object.id) < prefix);
        (object_prefix(&objects.get(at)?.id) == prefix).then_some(at)
    }

    pub(super) fn node(&self, index: u32) -> Option<&Node> {
        self.manifest.nodes.get(index as usize)
    }

    /// `st_nlink`: names of a file, 2 + subdirectories of a directory.
    pub(super) fn link_count(&self, index: u32) -> u32 {
        let view = self.view();
        match self.node(index).map(|node| &node.kind) {
            Some(NodeKind::Directory) => 2 + view.subdirectories[index as usize],
            _ => view.links[index as usize],
        }
    }

    /// The path of a directory's only entry.
    fn directory_path(&self, index: u32) -> Option<&TreePath> {
        let entry = self.view().entry_of_node.get(index as usize)?;
        Some(&self.manifest.entries[*entry as usize].path)
    }

    /// The node of the directory above this one; a root is its own.
    pub(super) fn parent(&self, index: u32) -> u32 {
        let parent = self.directory_path(index).and_then(TreePath::parent);
        parent.and_then(|path| self.manifest.entry(&path)).map_or(0, |entry| entry.node)
    }

    /// The entry `name` of the directory node `index`.
    pub(super) fn child(&self, index: u32, name: &[u8]) -> Option<&Entry> {
        let path = self.directory_path(index)?.join(name).ok()?;
        self.manifest.entry(&path)
    }

    /// The entries right in the directory node `index`, in the tree's order.
    pub(super) fn children(&self, index: u32) -> impl Iterator<Item = &Entry> {
        let first = self.view().entry_of_node.get(index as usize).copied();
        let directory = self.directory_path(index);
        let depth = directory.map_or(0, |path| path.components().count());
        let after = first.map_or(self.manifest.entries.len(), |entry| entry as usize + 1);
        let entries = self.manifest.entries[after..].iter();
        // In the tree's order everything below a directory follows it without a gap.
        entries
            .take_while(move |entry| {
                directory.is_some_and(|dir| {
                    dir.is_root() || {
                        let (path, dir) = (entry.path.as_bytes(), dir.as_bytes());
                        path.len() > dir.len() && path.starts_with(dir) && path[dir.len()] == b'/'
                    }
                })
            })
            .filter(move |entry| entry.path.components().count() == depth + 1)
    }

    fn view(&self) -> &ViewIndex {
        self.view.get_or_init(|| {
            let manifest = &self.manifest;
            let mut entry_of_node = vec![u32::MAX; manifest.nodes.len()];
            let mut subdirectories = vec![0; manifest.nodes.len()];
            for (at, entry) in manifest.entries.iter().enumerate() {
                let slot = &mut entry_of_node[entry.node as usize];
                *slot = (*slot).min(at as u32);
                if manifest.node(entry).kind == NodeKind::Directory
                    && let Some(parent) = entry.path.parent()
                    && let Some(parent) = manifest.entry(&parent)
                {
                    subdirectories[parent.node as usize] += 1;
                }
            }
            ViewIndex { entry_of_node, links: manifest.link_counts(), subdirectories }
        })
    }
}
