//! A tree under construction: entries in any order, checked as they come, parents made where they are missing.

use std::collections::BTreeMap;
use std::collections::HashMap;

use proto::limits::{ENTRIES_MAX, MANIFEST_BYTES_MAX, PATH_BYTES_MAX};
use proto::manifest::{Entry, Manifest, Node, NodeKind, Object};
use proto::width;
use proto::{ObjectId, TreePath};

use super::attributes::Attributes;
use super::xattr::{self, XattrFault};

/// Names of one file: `EXT4_LINK_MAX` (fs/ext4/ext4.h) is 65,000, and a host may have to keep a tree on ext4.
const LINKS_MAX: u32 = 65_000;

/// Why a tree has no place for an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeFault {
    /// Another entry has the path.
    #[error("it is there twice; a tree has one entry a path")]
    Twice,
    /// What is there has entries of its own.
    #[error("other entries are below it, so it must be a directory")]
    Occupied,
    /// A symlink that leads nowhere on any system.
    #[error("a symlink whose target is empty, longer than 4095 bytes, or has a NUL")]
    Symlink,
    /// A further name of a directory.
    #[error("a hard link to a directory")]
    DirectoryLink,
    /// A further name of what is not there.
    #[error("a hard link to '{0}', which the archive does not have before it")]
    NoTarget(TreePath),
    /// It lies below something that is no directory.
    #[error("its parent '{0}' is not a directory")]
    Parent(TreePath),
    /// More names than a file has anywhere.
    #[error("the file has more than {LINKS_MAX} names, which ext4 on a host could not hold")]
    Names,
    /// More than a manifest can say.
    #[error("paths, link targets and attributes of the tree have more than 256 MiB together")]
    Described,
    /// More than [`ENTRIES_MAX`].
    #[error("the tree has more than a million entries")]
    Entries,
    /// An extended attribute that does not go with the entry.
    #[error(transparent)]
    Xattr(#[from] XattrFault),
}

/// What becomes of an entry whose path another one has already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeated {
    /// The source is refused.
    Refused,
    /// The later one counts, as when a tar archive is unpacked.
    LaterWins,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    node: u32,
    /// Made because something is in it; the source may still describe it.
    implied: bool,
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct TreeBuilder {
    entries: BTreeMap<TreePath, Slot>,
    nodes: Vec<Node>,
    /// Nodes of a service pack that are further names of nodes of the earlier tree.
    same_as_base: HashMap<u32, u32>,
    /// How many further names the nodes have that have any.
    links: HashMap<u32, u32>,
    repeated: Repeated,
    /// Bytes of paths, targets and attributes: a manifest has bounds, and so has the memory that this takes.
    described_bytes: usize,
}

/// An entry of a tree under construction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Described<'a> {
    pub(crate) path: &'a TreePath,
    /// The node's number in this tree.
    pub(crate) number: u32,
    pub(crate) node: &'a Node,
    /// Nobody has described it; it was made because something is in it.
    pub(crate) implied: bool,
    /// The node of the earlier tree of which it is a further name.
    pub(crate) same_as_base: Option<u32>,
}

impl TreeBuilder {
    /// A tree with a root that nobody has described yet.
    pub(crate) fn new(repeated: Repeated) -> Self {
        let root = node(NodeKind::Directory, Attributes::of_implied_directory());
        let entries = BTreeMap::from([(TreePath::root(), Slot { node: 0, implied: true })]);
        let (same_as_base, links) = (HashMap::new(), HashMap::new());
        Self { entries, nodes: vec![root], same_as_base, links, repeated, described_bytes: 0 }
    }

    /// From here on, entries whose paths are taken are treated so.
    pub(crate) fn on_repeated(&mut self, repeated: Repeated) {
        self.repeated = repeated;
    }

    /// Adds a node under a path that is not taken. Returns its number, for [`TreeBuilder::link`].
    ///
    /// # Errors
    /// See [`TreeFault`].
    pub(crate) fn add(&mut self, path: TreePath, kind: NodeKind, attributes: Attributes) -> Result<u32, TreeFault> {
        if let NodeKind::Symlink(target) = &kind
            && (target.is_empty() || target.len() > PATH_BYTES_MAX || target.contains(&0))
        {
            return Err(TreeFault::Symlink);
        }
        let attributes = xattr::fitted(&kind, attributes)?;
        self.describe(&path, &kind, &attributes)?;
        let new = node(kind, attributes);
        let Some(slot) = self.entries.get(&path).copied() else {
            self.make_parents(&path)?;
            return self.push(path, new);
        };
        let was_directory = self.nodes[slot.node as usize].kind == NodeKind::Directory;
        if !slot.implied && self.repeated == Repeated::Refused {
            return Err(TreeFault::Twice);
        }
        match (was_directory, new.kind == NodeKind::Directory) {
            // What is in it stays.
            (true, true) => {
                self.entries.insert(path, Slot { node: slot.node, implied: false });
                self.nodes[slot.node as usize] = new;
                Ok(slot.node)
            }
            (true, false) if path.is_root() || self.has_children(&path) => Err(TreeFault::Occupied),
            // Other names of what was there keep it.
            _ => self.push(path, new),
        }
    }

    /// Adds a further path of a node that is no directory.
    ///
    /// # Errors
    /// See [`TreeFault`].
    pub(crate) fn link(&mut self, path: TreePath, node: u32) -> Result<(), TreeFault> {
        if self.nodes.get(node as usize).is_none_or(|node| node.kind == NodeKind::Directory) {
            return Err(TreeFault::DirectoryLink);
        }
        match self.entries.get(&path).copied() {
            Some(slot) if slot.node == node && self.repeated == Repeated::LaterWins => return Ok(()),
            Some(slot) if slot.implied || self.repeated == Repeated::Refused => {
                return Err(if slot.implied { TreeFault::Occupied } else { TreeFault::Twice });
            }
            Some(slot) if self.nodes[slot.node as usize].kind == NodeKind::Directory && self.has_children(&path) => {
                return Err(TreeFault::Occupied);
            }
            Some(_) => {}
            None => self.make_parents(&path)?,
        }
        let names = self.links.entry(node).or_insert(1);
        *names += 1;
        if *names > LINKS_MAX {
            return Err(TreeFault::Names);
        }
        self.describe(&path, &NodeKind::EmptyFile, &Attributes::of_implied_directory())?;
        self.insert(path, Slot { node, implied: false })
    }

    /// Adds a further path of a node of the earlier tree over which this one will be laid.
    ///
    /// # Errors
    /// See [`TreeFault`].
    pub(crate) fn link_base(&mut self, path: TreePath, base: &Manifest, number: u32) -> Result<(), TreeFault> {
        let node = base.nodes[number as usize].clone();
        if node.kind == NodeKind::Directory {
            return Err(TreeFault::DirectoryLink);
        }
        let ours = self.put(&path, node, None)?;
        self.same_as_base.insert(ours, number);
        Ok(())
    }

    /// Enters a node: a directory in place of another one's attributes, a known node under a further path, or anew.
    ///
    /// # Errors
    /// See [`TreeFault`].
    pub(super) fn put(&mut self, path: &TreePath, node: Node, known: Option<u32>) -> Result<u32, TreeFault> {
        if let Some(number) = known {
            return self.link(path.clone(), number).map(|()| number);
        }
        let directory = |number: u32| self.nodes[number as usize].kind == NodeKind::Directory;
        let number = match self.entries.get_mut(path) {
            Some(slot) if node.kind == NodeKind::Directory && directory(slot.node) => {
                slot.implied = false;
                slot.node
            }
            Some(_) => return Err(TreeFault::Twice),
            None => {
                self.make_parents(path)?;
                return self.push(path.clone(), node);
            }
        };
        self.nodes[number as usize] = node;
        Ok(number)
    }

    /// Every entry, in order.
    pub(super) fn described(&self) -> impl Iterator<Item = Described<'_>> {
        self.entries.iter().map(|(path, slot)| Described {
            path,
            number: slot.node,
            node: &self.nodes[slot.node as usize],
            implied: slot.implied,
            same_as_base: self.same_as_base.get(&slot.node).copied(),
        })
    }

    /// The node at a path.
    pub(crate) fn find(&self, path: &TreePath) -> Option<u32> {
        self.entries.get(path).map(|slot| slot.node)
    }

    /// Counts what an entry has to say.
    fn describe(&mut self, path: &TreePath, kind: &NodeKind, attributes: &Attributes) -> Result<(), TreeFault> {
        let target = if let NodeKind::Symlink(target) = kind { target.len() } else { 0 };
        let xattrs: usize = attributes.xattrs.iter().map(|xattr| xattr.name.len() + xattr.value.len()).sum();
        self.described_bytes += path.as_bytes().len() + target + xattrs;
        if self.described_bytes > MANIFEST_BYTES_MAX { Err(TreeFault::Described) } else { Ok(()) }
    }

    fn has_children(&self, directory: &TreePath) -> bool {
        let below = (std::ops::Bound::Excluded(directory), std::ops::Bound::Unbounded);
        let mut after = self.entries.range::<TreePath, _>(below);
        // In the order of paths, what is in a directory comes right behind it.
        after.next().is_some_and(|(path, _)| directory.is_parent_of(path))
    }

    /// Puts a new node at a path.
    fn push(&mut self, path: TreePath, node: Node) -> Result<u32, TreeFault> {
        let number = u32::try_from(self.nodes.len()).map_err(|_| TreeFault::Entries)?;
        self.insert(path, Slot { node: number, implied: false })?;
        self.nodes.push(node);
        Ok(number)
    }

    fn insert(&mut self, path: TreePath, slot: Slot) -> Result<(), TreeFault> {
        // Nodes that a later entry took the place of count as well: they take memory.
        if self.entries.len() >= ENTRIES_MAX || self.nodes.len() >= 2 * ENTRIES_MAX {
            return Err(TreeFault::Entries);
        }
        self.entries.insert(path, slot);
        Ok(())
    }

    fn make_parents(&mut self, path: &TreePath) -> Result<(), TreeFault> {
        let mut missing = Vec::new();
        let mut at = path.parent();
        while let Some(parent) = at {
            match self.entries.get(&parent) {
                Some(slot) if self.nodes[slot.node as usize].kind == NodeKind::Directory => break,
                Some(_) => return Err(TreeFault::Parent(parent)),
                None => {
                    at = parent.parent();
                    missing.push(parent);
                }
            }
        }
        for parent in missing.into_iter().rev() {
            // One long path names two thousand of them, which nobody has described.
            self.describe(&parent, &NodeKind::Directory, &Attributes::of_implied_directory())?;
            let number = width::count(self.nodes.len());
            self.insert(parent, Slot { node: number, implied: true })?;
            self.nodes.push(node(NodeKind::Directory, Attributes::of_implied_directory()));
        }
        Ok(())
    }

    /// The tree without the objects of its files, for what is laid over it.
    pub(super) fn into_shape(self) -> Manifest {
        let mut nodes: Vec<Option<Node>> = self.nodes.into_iter().map(Some).collect();
        let mut numbers: HashMap<u32, u32> = HashMap::with_capacity(nodes.len());
        let mut ordered = Vec::new();
        let mut entries = Vec::with_capacity(self.entries.len());
        for (path, slot) in self.entries {
            let number = *numbers.entry(slot.node).or_insert_with(|| {
                ordered.extend(nodes[slot.node as usize].take());
                width::count(ordered.len()) - 1
            });
            entries.push(Entry { path, node: number });
        }
        Manifest { chunk_bytes: 0, objects: Vec::new(), nodes: ordered, entries }
    }

    /// The manifest: nodes in the order of first use, and of the objects those that files have.
    ///
    /// # Errors
    /// Names an object that is in none of the lists.
    pub(crate) fn into_manifest(
        self,
        chunk_bytes: u32,
        mut object: impl FnMut(&ObjectId) -> Option<Object>,
    ) -> Result<Manifest, ObjectId> {
        let mut manifest = self.into_shape();
        let mut objects = BTreeMap::new();
        for node in &manifest.nodes {
            if let NodeKind::File(id) = node.kind
                && !objects.contains_key(&id)
            {
                objects.insert(id, object(&id).ok_or(id)?);
            }
        }
        (manifest.chunk_bytes, manifest.objects) = (chunk_bytes, objects.into_values().collect());
        Ok(manifest)
    }
}

fn node(kind: NodeKind, attributes: Attributes) -> Node {
    let Attributes { mode, uid, gid, mtime, mut xattrs } = attributes;
    xattrs.sort();
    Node { mode, uid, gid, mtime_s: mtime.0, mtime_ns: mtime.1, xattrs, kind }
}
