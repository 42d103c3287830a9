//! One manifest, indexed for looking up names and objects.

use std::sync::OnceLock;

use proto::TreeId;
use proto::manifest::{Entry, Manifest, Node, NodeKind};
use proto::path::TreePath;
use proto::width;

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
    /// The entries of all directories, one directory after another, each in the tree's order.
    children: Vec<u32>,
    /// Where those of each directory node stand in `children`.
    child_ranges: Vec<std::ops::Range<u32>>,
}

impl Tree {
    pub(super) fn new(id: TreeId, manifest: Manifest) -> Self {
        Self { id, manifest, view: OnceLock::new() }
    }

    /// The id that the manifest was checked against.
    pub fn id(&self) -> &TreeId {
        &self.id
    }

    /// Its manifest, whose hash is the tree's id.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The object whose id begins with these 63 bits. Objects are ordered by id, so by prefix too.
    pub(super) fn object_by_prefix(&self, prefix: u64) -> Option<usize> {
        let objects = &self.manifest.objects;
        let at = objects.partition_point(|object| object_prefix(&object.id) < prefix);
        (object_prefix(&objects.get(at)?.id) == prefix).then_some(at)
    }

    /// Paths of these objects, by [`object_prefix`], in ascending order.
    pub(super) fn paths_of(&self, objects: &[u64]) -> Vec<(u64, String)> {
        let path_of = |entry: &Entry| match &self.node(entry.node)?.kind {
            NodeKind::File(id) => {
                let prefix = object_prefix(id);
                objects.binary_search(&prefix).ok().map(|_| (prefix, entry.path.to_string()))
            }
            _ => None,
        };
        self.manifest.entries.iter().filter_map(path_of).collect()
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

    /// The entries right in the directory node `index`, in the tree's order, as indices of the manifest's entries.
    pub(super) fn children(&self, index: u32) -> &[u32] {
        let view = self.view();
        let range = view.child_ranges.get(index as usize).cloned().unwrap_or_default();
        view.children.get(range.start as usize..range.end as usize).unwrap_or_default()
    }

    /// Makes the index now, so that no later look waits for it.
    pub(super) fn index(&self) {
        self.view();
    }

    /// Whether the index is made.
    pub(super) fn is_indexed(&self) -> bool {
        self.view.get().is_some()
    }

    fn view(&self) -> &ViewIndex {
        self.view.get_or_init(|| ViewIndex::of(&self.manifest))
    }
}

impl ViewIndex {
    /// In the tree's order everything below a directory follows it without a gap, so one walk knows every entry's directory.
    fn of(manifest: &Manifest) -> Self {
        let nodes = manifest.nodes.len();
        let mut entry_of_node = vec![u32::MAX; nodes];
        let mut subdirectories = vec![0; nodes];
        let mut parents = vec![u32::MAX; manifest.entries.len()];
        let mut names = vec![0; nodes];
        // The directories above the entry that is looked at, from the root on.
        let mut above: Vec<u32> = Vec::new();
        for (at, entry) in manifest.entries.iter().enumerate() {
            let slot = &mut entry_of_node[entry.node as usize];
            *slot = (*slot).min(width::count(at));
            let is_directory = manifest.node(entry).kind == NodeKind::Directory;
            above.truncate(entry.path.components().count());
            if let Some(parent) = above.last() {
                parents[at] = *parent;
                names[*parent as usize] += 1;
                subdirectories[*parent as usize] += u32::from(is_directory);
            }
            if is_directory {
                above.push(entry.node);
            }
        }
        let mut child_ranges = Vec::with_capacity(nodes);
        let mut past = 0;
        for names in names {
            child_ranges.push(past..past);
            past += names;
        }
        let mut children = vec![0; past as usize];
        for (at, parent) in parents.into_iter().enumerate().filter(|(_, parent)| *parent != u32::MAX) {
            let range: &mut std::ops::Range<u32> = &mut child_ranges[parent as usize];
            children[range.end as usize] = width::count(at);
            range.end += 1;
        }
        Self { entry_of_node, links: manifest.link_counts(), subdirectories, children, child_ranges }
    }
}
