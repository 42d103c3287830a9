//! The tree's complete metadata, in one canonical byte string. Specified in `docs/tree-format.md`.
//!
//! ```text
//! manifest = preamble with magic "MFSTREE\0" | bincode(Manifest)
//! entries ──index──> nodes ──id──> objects ──> chunk ids
//! ```
//!
//! An *entry* is a path, a *node* is what it leads to (an inode); a hard link is a second entry with the same node.
//! [`Manifest::decode`] accepts only the canonical form, so equal trees have equal ids.

mod bytes;
mod resolve;
mod validate;

use serde::{Deserialize, Serialize};

pub use resolve::Unresolved;
pub use validate::{ManifestFault, xattr_fault};

use crate::id::{ChunkId, ObjectId};
use crate::path::TreePath;

/// A whole tree: every path and what it leads to, by id down to the chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Size of every chunk but the last of each object, bytes; a power of two.
    pub chunk_bytes: u32,
    /// Every distinct non-empty file content, ordered by id.
    pub objects: Vec<Object>,
    /// Inodes, in the order in which `entries` first refer to them.
    pub nodes: Vec<Node>,
    /// Every path, ordered; the first is the root directory (the empty path).
    pub entries: Vec<Entry>,
}

/// The content of one or more files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// BLAKE3 of the whole content.
    pub id: ObjectId,
    /// Length in bytes, at least 1.
    pub bytes: u64,
    /// Ids of its pieces, in order: `ceil(bytes / chunk_bytes)` of them.
    pub chunks: Vec<ChunkId>,
}

/// One inode: what `stat` shows of a path, and what is behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The twelve permission bits (`07777`).
    pub mode: u32,
    /// Number of its owner, as received; a mount in a user namespace shows 0 instead.
    pub uid: u32,
    /// Number of its group, as received.
    pub gid: u32,
    /// Modification time: seconds since 1970, may be negative.
    pub mtime_s: i64,
    /// Modification time: nanoseconds, below 10^9.
    pub mtime_ns: u32,
    /// Extended attributes, ordered by name. `*.overlay.*` is refused.
    pub xattrs: Vec<Xattr>,
    /// Its type, with what is behind it.
    pub kind: NodeKind,
}

/// One extended attribute of an inode; [`xattr_fault`] says which there may be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Xattr {
    /// Full name with its namespace, such as `security.capability`.
    pub name: Vec<u8>,
    /// The value's raw bytes, at most 64 KiB.
    pub value: Vec<u8>,
}

/// What an inode is. Devices, sockets and pipes do not belong into a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeKind {
    /// A directory; its contents are the entries below its path.
    Directory,
    /// A regular file of zero bytes.
    EmptyFile,
    /// A regular file with the content of this object.
    File(ObjectId),
    /// A symbolic link with this target, which is not resolved or checked.
    Symlink(Vec<u8>),
}

/// One name of an inode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its place, relative to the tree's root.
    pub path: TreePath,
    /// Index into [`Manifest::nodes`]; files of several names share theirs.
    pub node: u32,
}

impl Manifest {
    /// The object with this id.
    pub fn object(&self, id: &ObjectId) -> Option<&Object> {
        self.object_index(id).map(|at| &self.objects[at])
    }

    /// Where this object stands in [`Manifest::objects`].
    pub fn object_index(&self, id: &ObjectId) -> Option<usize> {
        self.objects.binary_search_by(|object| object.id.cmp(id)).ok()
    }

    /// The entry at this path.
    pub fn entry(&self, path: &TreePath) -> Option<&Entry> {
        self.entries.binary_search_by(|entry| entry.path.cmp(path)).ok().map(|at| &self.entries[at])
    }

    /// The node of this entry. [`Manifest::decode`] has checked the index.
    pub fn node(&self, entry: &Entry) -> &Node {
        &self.nodes[entry.node as usize]
    }

    /// Bytes of all distinct contents.
    pub fn object_bytes(&self) -> u64 {
        self.objects.iter().map(|object| object.bytes).sum()
    }

    /// How many entries lead to each node: `st_nlink` of files.
    pub fn link_counts(&self) -> Vec<u32> {
        let mut counts = vec![0; self.nodes.len()];
        for entry in &self.entries {
            counts[entry.node as usize] += 1;
        }
        counts
    }
}

impl Object {
    /// The plain length of chunk `index`, bytes; `None` past the end.
    pub fn chunk_len(&self, index: u32, chunk_bytes: u32) -> Option<u32> {
        let start = u64::from(index) * u64::from(chunk_bytes);
        let left = self.bytes.checked_sub(start).filter(|left| *left > 0)?;
        Some(u32::try_from(left).map_or(chunk_bytes, |left| left.min(chunk_bytes)))
    }
}

#[cfg(test)]
mod tests;
