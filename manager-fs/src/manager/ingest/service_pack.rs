//! A service pack: only what has changed, laid over an earlier tree. Deletions are OCI whiteouts: an empty file
//! `.wh.NAME` deletes NAME, and `.wh..wh..opq` everything that its directory had.

use std::collections::{HashMap, HashSet};

use proto::TreePath;
use proto::manifest::{Manifest, NodeKind};

use super::fault::EntryFault;
use super::tree::{Described, Repeated, TreeBuilder};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A service pack that does not fit the tree: where, and why.
pub(crate) type Misfit = (TreePath, EntryFault);

/// What a whiteout of something that is not there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absent {
    /// A sign that the pack is for another version.
    Refused,
    /// Nothing: layers of images have such (image-spec, layer.md).
    Ignored,
}

/// Lays `upper` over `base`.
///
/// # Errors
/// A whiteout deletes what is not there, or is no empty file; or the pack would put files below something that is no
/// directory.
pub(super) fn lay(base: &Manifest, upper: &TreeBuilder, absent: Absent) -> Result<TreeBuilder, Misfit> {
    let marks = Marks::read(base, upper, absent)?;
    let mut merged = TreeBuilder::new(Repeated::Refused);
    let mut base_nodes: HashMap<u32, u32> = HashMap::new();
    // Entries are in order, so what is below a removed directory follows it at once.
    let mut removed_below: Option<&TreePath> = None;
    for entry in &base.entries {
        if removed_below.is_some_and(|directory| is_below(&entry.path, directory)) {
            continue;
        }
        removed_below = None;
        if marks.removed.contains(&entry.path) || marks.replaced.contains(&entry.path) {
            removed_below = Some(&entry.path);
            continue;
        }
        if marks.opaque.contains(&entry.path) {
            removed_below = Some(&entry.path);
        }
        let node = merged.put(&entry.path, base.node(entry).clone(), base_nodes.get(&entry.node).copied());
        base_nodes.insert(entry.node, node.map_err(|fault| (entry.path.clone(), fault.into()))?);
    }
    let mut upper_nodes: HashMap<u32, u32> = HashMap::new();
    for Described { path, number, node, implied, same_as_base } in upper.described() {
        if marks.names.contains(path) || (implied && merged.find(path).is_some()) {
            continue;
        }
        let known = upper_nodes.get(&number).copied();
        let known = known.or_else(|| same_as_base.and_then(|node| base_nodes.get(&node).copied()));
        let put = merged.put(path, node.clone(), known).map_err(|fault| (path.clone(), fault.into()))?;
        upper_nodes.insert(number, put);
    }
    Ok(merged)
}

/// What a service pack takes away.
struct Marks {
    /// The whiteouts themselves: they do not enter the tree.
    names: HashSet<TreePath>,
    removed: HashSet<TreePath>,
    opaque: HashSet<TreePath>,
    /// Where something else comes in place of a file, or of a directory with all that is in it.
    replaced: HashSet<TreePath>,
}

impl Marks {
    fn read(base: &Manifest, upper: &TreeBuilder, absent: Absent) -> Result<Self, Misfit> {
        let mut marks =
            Self { names: HashSet::new(), removed: HashSet::new(), opaque: HashSet::new(), replaced: HashSet::new() };
        for Described { path, node, implied, .. } in upper.described() {
            let misfit = |fault: &'static str| Err((path.clone(), fault.into()));
            if let Some(name) = path.name().strip_prefix(WHITEOUT) {
                if node.kind != NodeKind::EmptyFile {
                    return misfit("a name that begins with '.wh.' deletes something, and must be an empty file");
                }
                let parent = path.parent().unwrap_or_default();
                if path.name() == OPAQUE {
                    marks.opaque.insert(parent);
                } else {
                    let target = parent.join(name).map_err(|error| (path.clone(), error.into()))?;
                    if absent == Absent::Refused && base.entry(&target).is_none() {
                        return misfit("there is nothing of this name to delete: is the pack for another version?");
                    }
                    marks.removed.insert(target);
                }
                marks.names.insert(path.clone());
            } else if let Some(old) = base.entry(path) {
                let (was, is) = (&base.node(old).kind, &node.kind);
                match (was == &NodeKind::Directory, is == &NodeKind::Directory) {
                    (true, true) => {}
                    (false, true) if implied && !deletes(upper, path) => {
                        return misfit("the pack has files below it, but in the earlier tree it is no directory");
                    }
                    _ => {
                        marks.replaced.insert(path.clone());
                    }
                }
            }
        }
        Ok(marks)
    }
}

/// Whether the pack has a whiteout for this path.
fn deletes(upper: &TreeBuilder, path: &TreePath) -> bool {
    let whiteout = path.parent().unwrap_or_default().join(&[WHITEOUT, path.name()].concat());
    whiteout.is_ok_and(|whiteout| upper.find(&whiteout).is_some())
}

fn is_below(path: &TreePath, directory: &TreePath) -> bool {
    let (path, directory) = (path.as_bytes(), directory.as_bytes());
    directory.is_empty() || (path.starts_with(directory) && path.get(directory.len()) == Some(&b'/'))
}
