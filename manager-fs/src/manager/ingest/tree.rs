//! A tree under construction: entries in any order, checked as they come, parents made where they are missing.

use std::collections::BTreeMap;
use std::collections::HashMap;

use proto::limits::{ENTRIES_MAX, PATH_BYTES_MAX};
use proto::manifest::{Entry, Manifest, Node, NodeKind, Object, Xattr, xattr_fault};
use proto::{ObjectId, TreePath};

const TWICE: &str = "it is there twice; a tree has one entry a path";

/// What an inode has beside its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// The twelve permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970 and nanoseconds below 10^9.
    pub(crate) mtime: (i64, u32),
    /// In any order.
    pub(crate) xattrs: Vec<Xattr>,
}

impl Attributes {
    /// Of a directory that an archive does not mention, though it has something in it: the same on every machine.
    pub(crate) fn of_implied_directory() -> Self {
        Self { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), xattrs: Vec::new() }
    }
}

/// Keeps an extended attribute, drops it, or refuses the source.
///
/// # Errors
/// The attribute must not enter any tree; the text says why.
pub(crate) fn take_xattr(xattrs: &mut Vec<Xattr>, name: &[u8], value: Vec<u8>) -> Result<(), String> {
    // Other namespaces (labels of security modules, trusted.*) mean nothing on another machine.
    let mut parts = name.splitn(3, |byte| *byte == b'.');
    let overlay = parts.nth(1) == Some(b"overlay") && parts.next().is_some();
    match xattr_fault(name, value.len()) {
        Some(fault) if overlay || kept_namespace(name) => {
            Err(format!("extended attribute '{}': {fault}", proto::path::printable(name)))
        }
        Some(_) => Ok(()),
        None => {
            xattrs.push(Xattr { name: name.to_vec(), value });
            Ok(())
        }
    }
}

/// Whether an attribute of this name is kept, if nothing is wrong with it.
pub(crate) fn kept_namespace(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || matches!(name, b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default")
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
    pub(crate) fn new() -> Self {
        let root = node(NodeKind::Directory, Attributes::of_implied_directory());
        let entries = BTreeMap::from([(TreePath::root(), Slot { node: 0, implied: true })]);
        Self { entries, nodes: vec![root], same_as_base: HashMap::new() }
    }

    /// Adds a node under a path that is not taken. Returns its number, for [`TreeBuilder::link`].
    ///
    /// # Errors
    /// The text says what is wrong with the entry.
    pub(crate) fn add(&mut self, path: TreePath, kind: NodeKind, attributes: Attributes) -> Result<u32, String> {
        if let NodeKind::Symlink(target) = &kind
            && (target.is_empty() || target.len() > PATH_BYTES_MAX || target.contains(&0))
        {
            return Err("a symlink whose target is empty, longer than 4095 bytes, or has a NUL".into());
        }
        if let Some(slot) = self.entries.get_mut(&path) {
            if !slot.implied {
                return Err(TWICE.into());
            }
            if kind != NodeKind::Directory {
                return Err("other entries are below it, so it must be a directory".into());
            }
            slot.implied = false;
            let number = slot.node;
            self.nodes[number as usize] = node(kind, attributes);
            return Ok(number);
        }
        self.make_parents(&path)?;
        let number = self.nodes.len() as u32;
        self.insert(path, Slot { node: number, implied: false })?;
        self.nodes.push(node(kind, attributes));
        Ok(number)
    }

    /// Adds a further path of a node that is no directory.
    ///
    /// # Errors
    /// The text says what is wrong with the entry.
    pub(crate) fn link(&mut self, path: TreePath, node: u32) -> Result<(), String> {
        if self.nodes.get(node as usize).is_none_or(|node| node.kind == NodeKind::Directory) {
            return Err("a hard link to a directory".into());
        }
        if self.entries.contains_key(&path) {
            return Err(TWICE.into());
        }
        self.make_parents(&path)?;
        self.insert(path, Slot { node, implied: false })
    }

    /// Adds a further path of a node of the earlier tree over which this one will be laid.
    ///
    /// # Errors
    /// The text says what is wrong with the entry.
    pub(crate) fn link_base(&mut self, path: TreePath, base: &Manifest, number: u32) -> Result<(), String> {
        let node = base.nodes[number as usize].clone();
        if node.kind == NodeKind::Directory {
            return Err("a hard link to a directory".into());
        }
        let ours = self.put(&path, node, None)?;
        self.same_as_base.insert(ours, number);
        Ok(())
    }

    /// Enters a node: a directory in place of another one's attributes, a known node under a further path, or anew.
    ///
    /// # Errors
    /// The text says what is wrong with the entry.
    pub(super) fn put(&mut self, path: &TreePath, node: Node, known: Option<u32>) -> Result<u32, String> {
        if let Some(number) = known {
            return self.link(path.clone(), number).map(|()| number);
        }
        let directory = |number: u32| self.nodes[number as usize].kind == NodeKind::Directory;
        let number = match self.entries.get_mut(path) {
            Some(slot) if node.kind == NodeKind::Directory && directory(slot.node) => {
                slot.implied = false;
                slot.node
            }
            Some(_) => return Err(TWICE.into()),
            None => {
                self.make_parents(path)?;
                let number = self.nodes.len() as u32;
                self.insert(path.clone(), Slot { node: number, implied: false })?;
                self.nodes.push(node);
                return Ok(number);
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

    fn insert(&mut self, path: TreePath, slot: Slot) -> Result<(), String> {
        if self.entries.len() >= ENTRIES_MAX {
            return Err("the tree has more than a million entries".into());
        }
        self.entries.insert(path, slot);
        Ok(())
    }

    fn make_parents(&mut self, path: &TreePath) -> Result<(), String> {
        let mut missing = Vec::new();
        let mut at = path.parent();
        while let Some(parent) = at {
            match self.entries.get(&parent) {
                Some(slot) if self.nodes[slot.node as usize].kind == NodeKind::Directory => break,
                Some(_) => return Err(format!("its parent '{parent}' is not a directory")),
                None => {
                    at = parent.parent();
                    missing.push(parent);
                }
            }
        }
        for parent in missing.into_iter().rev() {
            let number = self.nodes.len() as u32;
            self.insert(parent, Slot { node: number, implied: true })?;
            self.nodes.push(node(NodeKind::Directory, Attributes::of_implied_directory()));
        }
        Ok(())
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
        let mut nodes: Vec<Option<Node>> = self.nodes.into_iter().map(Some).collect();
        let mut numbers: HashMap<u32, u32> = HashMap::with_capacity(nodes.len());
        let (mut ordered, mut objects) = (Vec::new(), BTreeMap::new());
        let mut entries = Vec::with_capacity(self.entries.len());
        for (path, slot) in self.entries {
            let number = *numbers.entry(slot.node).or_insert_with(|| {
                ordered.extend(nodes[slot.node as usize].take());
                ordered.len() as u32 - 1
            });
            entries.push(Entry { path, node: number });
        }
        for node in &ordered {
            if let NodeKind::File(id) = node.kind
                && !objects.contains_key(&id)
            {
                objects.insert(id, object(&id).ok_or(id)?);
            }
        }
        Ok(Manifest { chunk_bytes, objects: objects.into_values().collect(), nodes: ordered, entries })
    }
}

fn node(kind: NodeKind, attributes: Attributes) -> Node {
    let Attributes { mode, uid, gid, mtime, mut xattrs } = attributes;
    xattrs.sort();
    Node { mode, uid, gid, mtime_s: mtime.0, mtime_ns: mtime.1, xattrs, kind }
}
