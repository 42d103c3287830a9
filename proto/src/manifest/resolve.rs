//! Where a path of a tree leads, through the symlinks of the tree.

use super::{Manifest, NodeKind};
use crate::path::{TreePath, printable};

/// Symlinks on the way to a file: the kernel's own bound.
const SYMLINKS_MAX: usize = 40;

/// A path leads to no entry of its tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unresolved {
    /// There is nothing at the path itself.
    #[error("is not in the tree")]
    NotThere,
    /// A symlink leads to nothing.
    #[error("leads to '{0}', which is not in the tree")]
    LeadsNowhere(TreePath),
    /// An absolute symlink: it leads into whatever the tree is mounted in.
    #[error("leads out of the tree, to '{0}'")]
    LeadsElsewhere(String),
    /// Through `..`.
    #[error("leads out of the tree")]
    LeadsOut,
    /// More symlinks than the kernel follows.
    #[error("leads through more than 40 symlinks")]
    TooManyLinks,
    /// A symlink makes a path that no entry can have.
    #[error("{0}")]
    NoPath(&'static str),
}

impl Manifest {
    /// Follows symlinks inside the tree; returns the index of the entry.
    ///
    /// # Errors
    /// It leads to none.
    pub fn resolve(&self, path: &TreePath) -> Result<usize, Unresolved> {
        let mut left: Vec<Vec<u8>> = path.components().map(<[u8]>::to_vec).collect();
        left.reverse();
        let mut at = TreePath::root();
        let mut links = 0;
        let find = |at: &TreePath| self.entries.binary_search_by(|entry| entry.path.cmp(at));
        while let Some(name) = left.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    at = at.parent().ok_or(Unresolved::LeadsOut)?;
                    continue;
                }
                _ => {}
            }
            let next = at.join(&name).map_err(|error| Unresolved::NoPath(error.fault))?;
            let Ok(index) = find(&next) else {
                return Err(if next == *path { Unresolved::NotThere } else { Unresolved::LeadsNowhere(next) });
            };
            if let NodeKind::Symlink(target) = &self.node(&self.entries[index]).kind {
                links += 1;
                if target.starts_with(b"/") {
                    return Err(Unresolved::LeadsElsewhere(printable(target)));
                }
                if links > SYMLINKS_MAX {
                    return Err(Unresolved::TooManyLinks);
                }
                left.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
            } else {
                at = next;
            }
        }
        find(&at).map_err(|_| Unresolved::NotThere)
    }
}
