//! What the host's one FUSE mount shows, in our own types and errors: behaviour without a mount.
//!
//! ```text
//! /.objects/<2 hex>/<rest>      every object of every registered tree: the last data layer of the overlays (0700)
//! /PRODUCT/VERSION/…            the browsing view: every generation exported to this host
//! ```
//! Node numbers are stable over restarts of the worker, because the kernel keeps using them: an object's is 63 bits of
//! its id, a view entry's is (number of the generation in [`numbers`], index of the manifest's node).

mod error;
pub mod numbers;
mod tree;
mod view;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Instant, SystemTime};

use proto::manifest::Manifest;
use proto::{ObjectId, Product, TreeId, Version};

use super::fetch::{FetchError, Fetcher, UpstreamError, Wanted};
use crate::sync;
pub use error::FsError;
use numbers::{Ino, Numbers};
pub use tree::Tree;

/// What `stat` shows of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// The entry's number, the same for as long as the kernel knows it.
    pub ino: Ino,
    /// Directory, file or symbolic link.
    pub kind: Kind,
    /// The twelve permission bits, without the file's type.
    pub mode: u32,
    /// Number of its owner: as in the tree, or 0 where the mount is in a user namespace.
    pub uid: u32,
    /// Number of its group, likewise.
    pub gid: u32,
    /// Bytes of a file's content or a link's target.
    pub size: u64,
    /// How many names it has in its tree.
    pub nlink: u32,
    /// Modification time, as the tree has it.
    pub mtime: SystemTime,
    /// Whether this entry can never change, so that the kernel may keep it for ever.
    pub immutable: bool,
}

/// Kind of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory, of a tree or of the view above the trees.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
}

/// One entry of a directory listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed<'a> {
    /// The number of what the entry leads to, as [`Attributes::ino`].
    pub ino: Ino,
    /// Directory, file or symbolic link.
    pub kind: Kind,
    /// One path component, without its directory.
    pub name: &'a [u8],
    /// Where the listing goes on after it: what [`Objects::list`] is called with next.
    pub next: u64,
}

/// A generation of the browsing view.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ViewEntry {
    /// The first component of its path below the mountpoint.
    pub product: Product,
    /// The second component.
    pub version: Version,
    /// The tree whose root that is.
    pub tree: TreeId,
}

/// How the object tree is served.
#[derive(Debug, Clone)]
pub struct ObjectsOptions {
    /// Where node numbers are kept over restarts of the worker (`RUN/numbers`): they matter as long as the mount lives.
    pub numbers_path: PathBuf,
    /// Show the owners of the tree; otherwise everything belongs to the daemon's user (a user namespace knows no other).
    pub keep_owners: bool,
}

/// The object tree and the browsing view.
pub struct Objects {
    fetcher: Arc<Fetcher>,
    options: ObjectsOptions,
    state: RwLock<State>,
    started: SystemTime,
}

struct State {
    numbers: Numbers,
    /// The view, by product and version.
    view: BTreeMap<Product, BTreeMap<Version, u32>>,
    view_changed: SystemTime,
    loaded: HashMap<TreeId, Arc<Tree>>,
}

/// Manifests of trees that are only looked at are dropped beyond this number.
const BROWSED_TREES_MAX: usize = 8;

impl Objects {
    /// Serves what `fetcher` can fetch. Node numbers, registered trees and the view of an earlier worker are taken over.
    pub fn open(fetcher: Arc<Fetcher>, options: ObjectsOptions) -> Arc<Self> {
        let numbers = Numbers::load(&options.numbers_path);
        let now = SystemTime::now();
        let mut view: BTreeMap<Product, BTreeMap<Version, u32>> = BTreeMap::new();
        for (number, entry) in numbers.visible() {
            view.entry(entry.product.clone()).or_default().insert(entry.version.clone(), number);
        }
        let state = State { numbers, view, view_changed: now, loaded: HashMap::new() };
        Arc::new(Self { fetcher, options, state: RwLock::new(state), started: now })
    }

    /// The fetcher behind it.
    pub fn fetcher(&self) -> &Arc<Fetcher> {
        &self.fetcher
    }

    /// Whether files belong to whom the tree says.
    pub(in crate::host) fn keeps_owners(&self) -> bool {
        self.options.keep_owners
    }

    /// Sets what the view shows: every generation that is exported to this host now. Returns whether it changed;
    /// the mount then makes the kernel look again at once (`invalidate_view`).
    ///
    /// # Errors
    /// The node numbers cannot be saved; without them a later worker could give one number to two files.
    pub fn set_view(&self, entries: &[ViewEntry]) -> std::io::Result<bool> {
        let mut state = self.write();
        let mut view: BTreeMap<Product, BTreeMap<Version, u32>> = BTreeMap::new();
        for entry in entries {
            let number = state.numbers.number(entry);
            view.entry(entry.product.clone()).or_default().insert(entry.version.clone(), number);
        }
        if view == state.view {
            return Ok(false);
        }
        let shown = view.values().flat_map(|versions| versions.values().copied()).collect();
        state.numbers.set_visible(shown);
        state.numbers.save(&self.options.numbers_path)?;
        state.view = view;
        state.view_changed = SystemTime::now();
        Ok(true)
    }

    /// Makes every object of the tree readable below `.objects`, by way of its manifest, which is fetched if need be.
    /// Comes before its overlay is mounted, and is remembered for the next worker.
    ///
    /// # Errors
    /// The manifest cannot be had, or the registration cannot be saved.
    pub fn register(&self, tree: &TreeId, deadline: Instant) -> Result<Arc<Tree>, FsError> {
        let loaded = self.load(tree, deadline)?;
        let mut state = self.write();
        if state.numbers.register(tree) {
            state.numbers.save(&self.options.numbers_path)?;
        }
        Ok(loaded)
    }

    /// Ends [`Objects::register`]; the tree's overlay must be gone.
    pub fn unregister(&self, tree: &TreeId) {
        let mut state = self.write();
        if state.numbers.unregister(tree) {
            state.loaded.remove(tree);
            if let Err(error) = state.numbers.save(&self.options.numbers_path) {
                tracing::warn!(%error, "node numbers not saved");
            }
        }
    }

    /// The trees that are registered, also by an earlier worker.
    pub fn registered(&self) -> Vec<TreeId> {
        self.read_state().numbers.registered().to_vec()
    }

    /// The manifest of a tree, indexed; from memory, the cache or the manager.
    pub fn load(&self, tree: &TreeId, deadline: Instant) -> Result<Arc<Tree>, FsError> {
        if let Some(loaded) = self.read_state().loaded.get(tree) {
            return Ok(loaded.clone());
        }
        Ok(self.keep(tree, self.fetcher.manifest(tree, deadline)?))
    }

    /// As [`Objects::load`], without asking the manager.
    pub fn load_kept(&self, tree: &TreeId) -> Option<Arc<Tree>> {
        if let Some(loaded) = self.read_state().loaded.get(tree) {
            return Some(loaded.clone());
        }
        Some(self.keep(tree, self.fetcher.cache().manifest(tree)?))
    }

    fn keep(&self, tree: &TreeId, manifest: Manifest) -> Arc<Tree> {
        let loaded = Arc::new(Tree::new(*tree, manifest));
        let mut state = self.write();
        let browsed: Vec<TreeId> =
            state.loaded.keys().filter(|tree| !state.numbers.registered().contains(tree)).copied().collect();
        if browsed.len() >= BROWSED_TREES_MAX {
            for tree in browsed {
                state.loaded.remove(&tree);
            }
        }
        state.loaded.entry(*tree).or_insert(loaded).clone()
    }

    /// Where the view shows this tree, relative to the mount point: for hosts where no overlay is permitted.
    pub fn view_path(&self, tree: &TreeId) -> Option<PathBuf> {
        let state = self.read_state();
        let mut shown = state
            .view
            .iter()
            .flat_map(|(product, versions)| versions.iter().map(move |(version, number)| (product, version, number)));
        shown.find_map(|(product, version, number)| {
            let found = state.numbers.entry(*number).is_some_and(|entry| entry.tree == *tree);
            found.then(|| PathBuf::from(product.as_str()).join(version.as_str()))
        })
    }

    /// The root and the PRODUCT directories, whose listings change.
    pub(super) fn changing_directories(&self) -> Vec<Ino> {
        let state = self.read_state();
        let products = state.view.keys().filter_map(|product| state.numbers.product(product));
        std::iter::once(Ino::Root).chain(products.map(Ino::Product)).collect()
    }

    /// The object with these 63 bits in a registered tree, then in any tree that the view has shown.
    fn find_object(&self, prefix: u64, deadline: Instant) -> Result<Vec<(Arc<Tree>, usize)>, FsError> {
        let (registered, loaded) = {
            let state = self.read_state();
            (state.numbers.registered().to_vec(), state.loaded.values().cloned().collect::<Vec<_>>())
        };
        let mut found: Vec<(Arc<Tree>, usize)> =
            loaded.iter().filter_map(|tree| Some((tree.clone(), tree.object_by_prefix(prefix)?))).collect();
        if !found.is_empty() {
            return Ok(found);
        }
        for id in registered.iter().filter(|id| !loaded.iter().any(|tree| tree.id() == *id)) {
            let tree = self.load(id, deadline)?;
            if let Some(index) = tree.object_by_prefix(prefix) {
                found.push((tree, index));
                break;
            }
        }
        if found.is_empty() { Err(FsError::NotFound) } else { Ok(found) }
    }

    /// Reads an object through the first of the trees that this host may have.
    fn read_object(
        &self,
        found: &[(Arc<Tree>, usize)],
        offset: u64,
        len: u32,
        deadline: Instant,
    ) -> Result<Vec<u8>, FsError> {
        let mut refused = FsError::NotFound;
        for (tree, index) in found {
            let manifest: &Manifest = tree.manifest();
            let wanted = Wanted::of(tree.id(), manifest, &manifest.objects[*index]);
            match self.fetcher.read(wanted, offset, len, deadline) {
                Ok(bytes) => return Ok(bytes),
                Err(error @ FetchError::Upstream { source: UpstreamError::NotExported(_), .. }) => {
                    refused = error.into()
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(refused)
    }

    /// A path of each of these objects (by [`object_prefix`]) in a tree that is in memory, if there is one.
    pub(in crate::host) fn paths_of(&self, objects: &[u64]) -> HashMap<u64, String> {
        let loaded: Vec<Arc<Tree>> = self.read_state().loaded.values().cloned().collect();
        loaded.iter().flat_map(|tree| tree.paths_of(objects)).collect()
    }

    fn read_state(&self) -> RwLockReadGuard<'_, State> {
        sync::read(&self.state)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        sync::write(&self.state)
    }
}

/// The 63 bits of an object's id that are its node number.
pub(crate) fn object_prefix(id: &ObjectId) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *id.as_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1
}
