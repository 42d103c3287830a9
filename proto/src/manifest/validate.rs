//! The rules of a well-formed tree. They are checked before a manifest is written and after it is read.

use super::{Manifest, Node, NodeKind};
use crate::codec::CodecError;
use crate::id::TreeId;
use crate::limits::{
    CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, ENTRIES_MAX, FILE_BYTES_MAX, PATH_BYTES_MAX, TREE_BYTES_MAX, XATTR_BYTES_MAX,
    XATTRS_MAX,
};
use crate::path::{TreePath, printable};
use crate::preamble::PreambleFault;

/// Why bytes are not the manifest of a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestFault {
    /// The hash is not the one asked for.
    #[error("the manifest's hash is {got}, not {want}")]
    WrongId {
        /// The id asked for.
        want: TreeId,
        /// The hash of the bytes.
        got: TreeId,
    },
    /// The bytes begin with something else.
    #[error("these bytes are not a manifest")]
    NotAManifest,
    /// Written by a later version.
    #[error(
        "the manifest is of format {version} with features {features:#x}; this program reads format 1: upgrade it"
    )]
    Newer {
        /// The format version that its preamble says.
        version: u16,
        /// Features that a reader must know.
        features: u32,
    },
    /// More than a manifest may have.
    #[error("the manifest has {0} bytes; at most 256 MiB are allowed")]
    TooLarge(usize),
    /// The body does not decode.
    #[error("the manifest's body is damaged: {0}")]
    Body(#[from] CodecError),
    /// A rule of the tree is broken.
    #[error("malformed tree at '{place}': {fault}")]
    Malformed {
        /// The entry's path or the object's id; the list's name where the whole of it is wrong.
        place: String,
        /// The rule of `docs/tree-format.md` that it breaks.
        fault: &'static str,
    },
}

impl From<PreambleFault> for ManifestFault {
    fn from(fault: PreambleFault) -> Self {
        match fault {
            PreambleFault::Other => ManifestFault::NotAManifest,
            PreambleFault::Newer { version, features } => ManifestFault::Newer { version, features },
        }
    }
}

fn malformed(place: impl ToString, fault: &'static str) -> ManifestFault {
    ManifestFault::Malformed { place: place.to_string(), fault }
}

impl Manifest {
    /// Checks every rule; see `docs/tree-format.md`, "Well-formed trees".
    pub fn validate(&self) -> Result<(), ManifestFault> {
        self.validate_objects()?;
        self.validate_entries()?;
        let mut used = vec![false; self.objects.len()];
        for node in &self.nodes {
            validate_node(node)?;
            if let NodeKind::File(id) = node.kind {
                match self.object_index(&id) {
                    Some(at) => used[at] = true,
                    None => return Err(malformed(id, "a file's object is not listed")),
                }
            }
        }
        match self.objects.iter().zip(used).find(|(_, used)| !used) {
            Some((object, _)) => Err(malformed(object.id, "no file has this object")),
            None => Ok(()),
        }
    }

    fn validate_objects(&self) -> Result<(), ManifestFault> {
        let size = self.chunk_bytes;
        if !size.is_power_of_two() || !(CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&size) {
            return Err(malformed(size, "the chunk size is not a power of two from 4 KiB to 1 MiB"));
        }
        if !self.objects.is_sorted_by(|a, b| a.id < b.id) {
            return Err(malformed("objects", "not in ascending order of ids"));
        }
        let mut total: u64 = 0;
        for object in &self.objects {
            if object.bytes == 0 || object.bytes > FILE_BYTES_MAX {
                return Err(malformed(object.id, "an object has no bytes or more than 64 GiB"));
            }
            if object.chunks.len() as u64 != object.bytes.div_ceil(u64::from(size)) {
                return Err(malformed(object.id, "the number of chunks does not fit the size"));
            }
            total += object.bytes;
            if total > TREE_BYTES_MAX {
                return Err(malformed("objects", "more than 256 GiB in one tree"));
            }
        }
        Ok(())
    }

    fn validate_entries(&self) -> Result<(), ManifestFault> {
        let root = self.entries.first().filter(|entry| entry.path.is_root());
        if root.is_none() || self.entries.len() > ENTRIES_MAX {
            return Err(malformed("", "the first entry is not the root, or there are more than a million"));
        }
        if !self.entries.is_sorted_by(|a, b| a.path < b.path) {
            return Err(malformed("entries", "not in ascending order of paths, or a path twice"));
        }
        let mut next_node: u32 = 0;
        // A directory comes right before what is in it, so those on the way to an entry are the last that were seen.
        let mut way: Vec<&TreePath> = Vec::new();
        for entry in &self.entries {
            let Some(node) = self.nodes.get(entry.node as usize).filter(|_| entry.node <= next_node) else {
                return Err(malformed(&entry.path, "its node is missing, or nodes are not in order of first use"));
            };
            let first_use = entry.node == next_node;
            next_node += u32::from(first_use);
            if node.kind == NodeKind::Directory && !first_use {
                return Err(malformed(&entry.path, "a directory has two names"));
            }
            if entry.path.is_root() {
                if node.kind != NodeKind::Directory {
                    return Err(malformed("", "the root is not a directory"));
                }
            } else {
                while way.last().is_some_and(|above| !above.is_parent_of(&entry.path)) {
                    way.pop();
                }
                if way.is_empty() {
                    return Err(malformed(&entry.path, "its parent is not a directory"));
                }
            }
            if node.kind == NodeKind::Directory {
                way.push(&entry.path);
            }
        }
        if next_node as usize != self.nodes.len() {
            return Err(malformed("nodes", "a node that no entry leads to"));
        }
        Ok(())
    }
}

fn validate_node(node: &Node) -> Result<(), ManifestFault> {
    if node.mode & !0o7777 != 0 || node.mtime_ns >= 1_000_000_000 {
        return Err(malformed(format!("{:o}", node.mode), "mode or nanoseconds out of range"));
    }
    if let NodeKind::Symlink(target) = &node.kind
        && (target.is_empty() || target.len() > PATH_BYTES_MAX || target.contains(&0))
    {
        return Err(malformed(
            printable(target),
            "a symlink's target is empty, longer than 4095 bytes, or has a NUL",
        ));
    }
    if node.xattrs.len() > XATTRS_MAX || !node.xattrs.is_sorted_by(|a, b| a.name < b.name) {
        return Err(malformed("xattrs", "more than 256, not in order, or one twice"));
    }
    for xattr in &node.xattrs {
        if let Some(fault) = xattr_fault(&xattr.name, xattr.value.len()) {
            return Err(malformed(printable(&xattr.name), fault));
        }
    }
    Ok(())
}

/// Why an extended attribute must not enter a tree; `None` if it may.
///
/// `*.overlay.*` would let a tree name any object of the host; other namespaces have no meaning on another machine.
pub fn xattr_fault(name: &[u8], value_bytes: usize) -> Option<&'static str> {
    let overlay = name.starts_with(b"user.overlay.") || name.starts_with(b"trusted.overlay.");
    let kept = name.starts_with(b"user.")
        || matches!(name, b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default");
    match () {
        () if overlay => Some("overlay attributes are refused: they could name any object"),
        () if !kept => Some("only user.*, security.capability and POSIX ACLs are kept"),
        () if name.len() > 255 || name.contains(&0) => Some("its name is longer than 255 bytes or has a NUL"),
        () if value_bytes > XATTR_BYTES_MAX => Some("its value is longer than 64 KiB"),
        () => None,
    }
}
