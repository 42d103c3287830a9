//! Directories that are being restored: each gets its metadata from whoever is last in it.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::super::format::tree::Node;

pub(super) struct Folder {
    /// Below the target.
    pub(super) below: PathBuf,
    pub(super) node: Node,
    /// Device and number of the directory that was made: no other one gets its owner and mode.
    pub(super) identity: (u64, u64),
    /// What else is in it, for names that must not be taken.
    names: Mutex<Option<HashSet<OsString>>>,
    /// Entries that are not done, and one for whoever reads the directory.
    open: AtomicUsize,
    above: Option<Arc<Folder>>,
}

impl Folder {
    pub(super) fn root(node: Node, identity: (u64, u64)) -> Arc<Self> {
        Arc::new(Self::new(PathBuf::new(), node, identity, None))
    }

    pub(super) fn below(above: &Arc<Folder>, below: PathBuf, node: Node, identity: (u64, u64)) -> Arc<Self> {
        above.enter();
        Arc::new(Self::new(below, node, identity, Some(Arc::clone(above))))
    }

    fn new(below: PathBuf, node: Node, identity: (u64, u64), above: Option<Arc<Folder>>) -> Self {
        Self { below, node, identity, names: Mutex::default(), open: AtomicUsize::new(1), above }
    }

    /// Says what all is in it.
    pub(super) fn name(&self, names: impl Iterator<Item = OsString>) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().extend(names);
    }

    pub(super) fn has(&self, name: &OsStr) -> bool {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.as_ref().is_some_and(|names| names.contains(name))
    }

    /// Whether it is known what is in it.
    pub(super) fn is_read(&self) -> bool {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    pub(super) fn enter(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// The directory itself, for whoever is last.
    pub(super) fn leave(self: &Arc<Self>) -> Option<Arc<Self>> {
        (self.open.fetch_sub(1, Ordering::AcqRel) == 1).then(|| Arc::clone(self))
    }

    pub(super) fn above(&self) -> Option<&Arc<Folder>> {
        self.above.as_ref()
    }
}
