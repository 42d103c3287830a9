//! Directories that are being backed up: each is stored by whichever thread finishes its last entry.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::format::id::Id;
use super::super::format::tree::{Node, Tree};

/// A directory of which not every entry is known yet.
pub(super) struct Folder {
    pub(super) path: PathBuf,
    /// Itself, for its place in the directory above; the root has none.
    own: Mutex<Option<Node>>,
    entries: Mutex<Vec<Option<Node>>>,
    /// Entries that are not done, and one for the walk while it is inside.
    open: AtomicUsize,
    above: Option<(Arc<Folder>, usize)>,
    /// Its tree in the parent snapshot.
    pub(super) before: Option<Id>,
}

/// A directory whose entries are all there.
pub(super) struct Complete {
    pub(super) folder: Arc<Folder>,
    pub(super) tree: Tree,
}

impl Folder {
    pub(super) fn root(before: Option<Id>) -> Arc<Self> {
        Self::make(PathBuf::from("/"), None, None, before)
    }

    pub(super) fn below(
        above: &Arc<Folder>,
        place: usize,
        path: PathBuf,
        own: Node,
        before: Option<Id>,
    ) -> Arc<Self> {
        Self::make(path, Some(own), Some((Arc::clone(above), place)), before)
    }

    fn make(path: PathBuf, own: Option<Node>, above: Option<(Arc<Folder>, usize)>, before: Option<Id>) -> Arc<Self> {
        let (own, entries, open) = (Mutex::new(own), Mutex::default(), AtomicUsize::new(1));
        Arc::new(Self { path, own, entries, open, above, before })
    }

    /// A place for an entry that will be settled later.
    pub(super) fn reserve(&self) -> usize {
        self.open.fetch_add(1, Ordering::Relaxed);
        let mut entries = lock(&self.entries);
        entries.push(None);
        entries.len() - 1
    }

    /// Fills a place; `None`: there is nothing to be stored of it. Whoever settles the last one gets the directory.
    pub(super) fn settle(self: &Arc<Self>, place: usize, node: Option<Node>) -> Option<Complete> {
        if let Some(slot) = lock(&self.entries).get_mut(place) {
            *slot = node;
        }
        self.leave()
    }

    /// The walk goes out of the directory.
    pub(super) fn leave(self: &Arc<Self>) -> Option<Complete> {
        if self.open.fetch_sub(1, Ordering::AcqRel) > 1 {
            return None;
        }
        let nodes = std::mem::take(&mut *lock(&self.entries)).into_iter().flatten().collect();
        Some(Complete { folder: Arc::clone(self), tree: Tree { nodes } })
    }

    /// Once its tree is stored: settles its place above, if it is not the root.
    pub(super) fn stored(&self, tree: Id) -> Option<Complete> {
        let (above, place) = self.above.as_ref()?;
        let mut own = lock(&self.own).take()?;
        own.subtree = Some(tree);
        above.settle(*place, Some(own))
    }

    pub(super) fn is_root(&self) -> bool {
        self.above.is_none()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::super::super::format::tree::NodeKind;
    use super::*;

    #[test]
    fn the_last_entry_brings_the_directory_in_the_order_of_its_places() {
        let node = |name: &str| Node::new(OsStr::new(name), NodeKind::File);
        let root = Folder::root(None);
        let place = root.reserve();
        let below = Folder::below(&root, place, "/d".into(), Node::new(OsStr::new("d"), NodeKind::Dir), None);
        assert!(root.leave().is_none());
        let places = [below.reserve(), below.reserve(), below.reserve()];
        assert!(below.settle(places[2], Some(node("c"))).is_none());
        assert!(below.leave().is_none());
        assert!(below.settle(places[1], None).is_none());
        let complete = below.settle(places[0], Some(node("a"))).unwrap();
        let names: Vec<_> = complete.tree.nodes.iter().map(Node::stored_name).collect();
        assert_eq!(names, ["a", "c"]);
        let root = complete.folder.stored(Id::of(b"tree")).unwrap();
        assert!(root.folder.is_root());
        assert_eq!(root.tree.nodes[0].subtree, Some(Id::of(b"tree")));
    }
}
