//! The file system operations: look up, stat, list, read.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use proto::manifest::{Node, NodeKind};
use proto::{ObjectId, Product};

use super::numbers::Ino;
use super::{Attributes, FsError, Kind, Listed, Objects, Tree, ViewEntry, object_prefix};
use crate::host::fetch::Wanted;

const OBJECTS_NAME: &[u8] = b".objects";

impl Objects {
    /// The entry `name` in directory `parent`.
    ///
    /// # Errors
    /// There is none, or the manifest that would tell cannot be had within the deadline.
    pub fn lookup(&self, parent: Ino, name: &[u8], deadline: Instant) -> Result<Attributes, FsError> {
        match parent {
            Ino::Root if name == OBJECTS_NAME => self.attributes(Ino::ObjectsDir, deadline),
            Ino::Root => {
                let state = self.read_state();
                let product = product_named(name).filter(|product| state.view.contains_key(product));
                let number = product.and_then(|product| state.numbers.product(&product)).ok_or(FsError::NotFound)?;
                Ok(self.changing(Ino::Product(number), 0o755, state.view_changed))
            }
            Ino::ObjectsDir => {
                let shard = std::str::from_utf8(name).ok().filter(|name| name.len() == 2);
                let shard = shard.and_then(|name| u8::from_str_radix(name, 16).ok()).ok_or(FsError::NotFound)?;
                Ok(self.fixed(Ino::Shard(shard), 0o700))
            }
            Ino::Shard(shard) => {
                let rest = std::str::from_utf8(name).map_err(|_| FsError::NotFound)?;
                let id: ObjectId = format!("{shard:02x}{rest}").parse().map_err(|_| FsError::NotFound)?;
                self.object_attributes(object_prefix(&id), Some(&id), deadline)
            }
            Ino::Product(product) => {
                let number = {
                    let state = self.read_state();
                    let versions = state.numbers.product_name(product).and_then(|name| state.view.get(name));
                    let version = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
                    versions.zip(version).and_then(|(versions, version)| versions.get(&version).copied())
                };
                let ino = Ino::Node { generation: number.ok_or(FsError::NotFound)?, node: 0 };
                self.attributes(ino, deadline)
            }
            Ino::Node { generation, node } => {
                let tree = self.generation_tree(generation, deadline)?;
                match tree.node(node).map(|node| &node.kind) {
                    Some(NodeKind::Directory) => {}
                    _ => return Err(FsError::NotADirectory),
                }
                let entry = tree.child(node, name).ok_or(FsError::NotFound)?;
                self.node_attributes(&tree, generation, entry.node)
            }
            Ino::Object(_) => Err(FsError::NotADirectory),
        }
    }

    /// What `stat` shows of a node.
    pub fn attributes(&self, ino: Ino, deadline: Instant) -> Result<Attributes, FsError> {
        match ino {
            Ino::Root => Ok(self.changing(Ino::Root, 0o755, self.read_state().view_changed)),
            Ino::ObjectsDir => Ok(self.fixed(Ino::ObjectsDir, 0o700)),
            Ino::Shard(shard) => Ok(self.fixed(Ino::Shard(shard), 0o700)),
            Ino::Product(product) => Ok(self.changing(Ino::Product(product), 0o755, self.read_state().view_changed)),
            Ino::Node { generation, node } => {
                let tree = self.generation_tree(generation, deadline)?;
                self.node_attributes(&tree, generation, node)
            }
            Ino::Object(prefix) => self.object_attributes(prefix, None, deadline),
        }
    }

    /// The listing of a directory, with `.` and `..`, from entry number `from` on, until `take` returns `false`. A listing
    /// costs what is taken of it, however long it is. Objects are reached by id and never listed.
    ///
    /// # Errors
    /// It is no directory, or its manifest cannot be had within the deadline.
    pub fn list(
        &self,
        ino: Ino,
        from: u64,
        deadline: Instant,
        take: &mut dyn FnMut(Listed<'_>) -> bool,
    ) -> Result<(), FsError> {
        if let Ino::Node { generation, node } = ino {
            let tree = self.generation_tree(generation, deadline)?;
            return list_node(&tree, generation, node, from, take);
        }
        let listed = self.changing_listing(ino)?;
        for (at, (ino, name)) in (0_u64..).zip(&listed).skip(usize::try_from(from).unwrap_or(usize::MAX)) {
            if !take(Listed { ino: *ino, kind: Kind::Directory, name, next: at + 1 }) {
                break;
            }
        }
        Ok(())
    }

    /// A directory above the trees: a name an exported product or version, so it is short.
    fn changing_listing(&self, ino: Ino) -> Result<Vec<(Ino, Vec<u8>)>, FsError> {
        let mut listed = vec![(ino, b".".to_vec()), (Ino::Root, b"..".to_vec())];
        let state = self.read_state();
        match ino {
            Ino::Root => {
                for product in state.view.keys() {
                    if let Some(number) = state.numbers.product(product) {
                        listed.push((Ino::Product(number), product.as_str().as_bytes().to_vec()));
                    }
                }
            }
            Ino::Product(product) => {
                let name = state.numbers.product_name(product);
                for (version, generation) in name.and_then(|name| state.view.get(name)).into_iter().flatten() {
                    let root = Ino::Node { generation: *generation, node: 0 };
                    listed.push((root, version.as_str().as_bytes().to_vec()));
                }
            }
            Ino::ObjectsDir | Ino::Shard(_) => {}
            Ino::Object(_) | Ino::Node { .. } => return Err(FsError::NotADirectory),
        }
        Ok(listed)
    }

    /// Bytes of a file that need no fetch and no wait; `None` when only [`Objects::read`] can tell.
    pub fn read_present(&self, ino: Ino, offset: u64, len: u32) -> Option<Result<Vec<u8>, FsError>> {
        let (tree, index) = match ino {
            Ino::Object(prefix) => {
                let state = self.read_state();
                state.loaded.values().find_map(|tree| Some((tree.clone(), tree.object_by_prefix(prefix)?)))?
            }
            Ino::Node { generation, node } => {
                let state = self.read_state();
                let tree = state.loaded.get(&state.numbers.entry(generation)?.tree)?.clone();
                let NodeKind::File(id) = tree.node(node)?.kind else { return None };
                let index = tree.manifest().object_index(&id)?;
                (tree, index)
            }
            _ => return None,
        };
        let manifest = tree.manifest();
        let wanted = Wanted::of(tree.id(), manifest, &manifest.objects[index]);
        Some(self.fetcher.read_present(wanted, offset, len)?.map_err(FsError::from))
    }

    /// Bytes of a file, fetched if need be.
    ///
    /// # Errors
    /// No such file, or its bytes cannot be had within the deadline.
    pub fn read(&self, ino: Ino, offset: u64, len: u32, deadline: Instant) -> Result<Vec<u8>, FsError> {
        match ino {
            Ino::Object(prefix) => {
                let found = self.find_object(prefix, deadline)?;
                self.read_object(&found, offset, len, deadline)
            }
            Ino::Node { generation, node } => {
                let tree = self.generation_tree(generation, deadline)?;
                match tree.node(node).map(|node| &node.kind) {
                    Some(NodeKind::File(id)) => {
                        let index = tree.manifest().object_index(id).ok_or(FsError::NotFound)?;
                        self.read_object(&[(tree, index)], offset, len, deadline)
                    }
                    Some(NodeKind::EmptyFile) => Ok(Vec::new()),
                    Some(NodeKind::Directory) => Err(FsError::IsADirectory),
                    Some(NodeKind::Symlink(_)) => Err(FsError::Invalid),
                    None => Err(FsError::NotFound),
                }
            }
            _ => Err(FsError::IsADirectory),
        }
    }

    /// The target of a symlink.
    pub fn read_link(&self, ino: Ino, deadline: Instant) -> Result<Vec<u8>, FsError> {
        self.with_node(ino, deadline, |node| match &node.kind {
            NodeKind::Symlink(target) => Ok(target.clone()),
            _ => Err(FsError::Invalid),
        })
    }

    /// One extended attribute.
    pub fn xattr(&self, ino: Ino, name: &[u8], deadline: Instant) -> Result<Vec<u8>, FsError> {
        if !matches!(ino, Ino::Node { .. }) {
            return Err(FsError::NoAttribute);
        }
        self.with_node(ino, deadline, |node| {
            let found = node.xattrs.iter().find(|xattr| xattr.name == name);
            found.map(|xattr| xattr.value.clone()).ok_or(FsError::NoAttribute)
        })
    }

    /// The names of all extended attributes, each with a NUL after it.
    pub fn xattr_names(&self, ino: Ino, deadline: Instant) -> Result<Vec<u8>, FsError> {
        if !matches!(ino, Ino::Node { .. }) {
            return Ok(Vec::new());
        }
        self.with_node(ino, deadline, |node| {
            Ok(node.xattrs.iter().flat_map(|xattr| xattr.name.iter().copied().chain([0])).collect())
        })
    }

    /// Whether this is a directory whose entries may come and go.
    pub fn is_changing(&self, ino: Ino) -> bool {
        matches!(ino, Ino::Root | Ino::Product(_))
    }

    /// Whether an operation on this node can be answered from memory, so without waiting.
    pub fn is_instant(&self, ino: Ino) -> bool {
        let state = self.read_state();
        let indexed = |entry: ViewEntry| state.loaded.get(&entry.tree).is_some_and(|tree| tree.is_indexed());
        match ino {
            Ino::Node { generation, .. } => state.numbers.entry(generation).is_none_or(indexed),
            Ino::Product(_) => state.numbers.visible().all(|(_, entry)| indexed(entry)),
            Ino::Shard(_) | Ino::Object(_) => {
                state.numbers.registered().iter().all(|tree| state.loaded.contains_key(tree))
            }
            _ => true,
        }
    }

    fn with_node<T>(
        &self,
        ino: Ino,
        deadline: Instant,
        look: impl FnOnce(&Node) -> Result<T, FsError>,
    ) -> Result<T, FsError> {
        let Ino::Node { generation, node } = ino else { return Err(FsError::Invalid) };
        let tree = self.generation_tree(generation, deadline)?;
        look(tree.node(node).ok_or(FsError::NotFound)?)
    }

    fn generation_tree(&self, generation: u32, deadline: Instant) -> Result<Arc<Tree>, FsError> {
        let entry = self.read_state().numbers.entry(generation).ok_or(FsError::NotFound)?;
        let tree = self.load(&entry.tree, deadline)?;
        tree.index();
        Ok(tree)
    }

    fn node_attributes(&self, tree: &Tree, generation: u32, index: u32) -> Result<Attributes, FsError> {
        let node = tree.node(index).ok_or(FsError::NotFound)?;
        let size = match &node.kind {
            NodeKind::File(id) => tree.manifest().object(id).map_or(0, |object| object.bytes),
            NodeKind::Symlink(target) => target.len() as u64,
            NodeKind::Directory | NodeKind::EmptyFile => 0,
        };
        let (uid, gid) = if self.options.keep_owners { (node.uid, node.gid) } else { (0, 0) };
        Ok(Attributes {
            ino: Ino::Node { generation, node: index },
            kind: kind(node),
            mode: if kind(node) == Kind::Symlink { 0o777 } else { node.mode },
            uid,
            gid,
            size,
            nlink: tree.link_count(index),
            mtime: time(node.mtime_s, node.mtime_ns),
            immutable: true,
        })
    }

    fn object_attributes(
        &self,
        prefix: u64,
        whole: Option<&ObjectId>,
        deadline: Instant,
    ) -> Result<Attributes, FsError> {
        let found = self.find_object(prefix, deadline)?;
        let (tree, index) = found.first().ok_or(FsError::NotFound)?;
        let object = &tree.manifest().objects[*index];
        if whole.is_some_and(|id| *id != object.id) {
            return Err(FsError::NotFound);
        }
        Ok(Attributes {
            kind: Kind::File,
            mode: 0o400,
            size: object.bytes,
            nlink: 1,
            ..self.fixed(Ino::Object(prefix), 0o400)
        })
    }

    fn fixed(&self, ino: Ino, mode: u32) -> Attributes {
        let mtime = SystemTime::UNIX_EPOCH;
        Attributes { ino, kind: Kind::Directory, mode, uid: 0, gid: 0, size: 0, nlink: 2, mtime, immutable: true }
    }

    /// A directory whose listing changes: the kernel asks again within a second.
    fn changing(&self, ino: Ino, mode: u32, changed: SystemTime) -> Attributes {
        Attributes { immutable: false, mtime: changed.max(self.started), ..self.fixed(ino, mode) }
    }
}

fn list_node(
    tree: &Tree,
    generation: u32,
    node: u32,
    from: u64,
    take: &mut dyn FnMut(Listed<'_>) -> bool,
) -> Result<(), FsError> {
    if tree.node(node).is_none_or(|node| node.kind != NodeKind::Directory) {
        return Err(FsError::NotADirectory);
    }
    let of = |node| Ino::Node { generation, node };
    let dots = [(node, b".".as_slice()), (tree.parent(node), b"..".as_slice())];
    for (at, (node, name)) in (0_u64..).zip(dots).skip_while(|(at, _)| *at < from) {
        if !take(Listed { ino: of(node), kind: Kind::Directory, name, next: at + 1 }) {
            return Ok(());
        }
    }
    let first = usize::try_from(from.saturating_sub(2)).unwrap_or(usize::MAX);
    let children = tree.children(node).get(first..).unwrap_or_default();
    for (at, child) in (first as u64..).zip(children) {
        let entry = &tree.manifest().entries[*child as usize];
        let kind = kind(tree.manifest().node(entry));
        if !take(Listed { ino: of(entry.node), kind, name: entry.path.name(), next: at + 3 }) {
            break;
        }
    }
    Ok(())
}

fn product_named(name: &[u8]) -> Option<Product> {
    std::str::from_utf8(name).ok()?.parse().ok()
}

fn kind(node: &Node) -> Kind {
    match node.kind {
        NodeKind::Directory => Kind::Directory,
        NodeKind::EmptyFile | NodeKind::File(_) => Kind::File,
        NodeKind::Symlink(_) => Kind::Symlink,
    }
}

fn time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let whole = match u64::try_from(seconds) {
        Ok(after) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(after)),
        Err(_) => SystemTime::UNIX_EPOCH.checked_sub(Duration::from_secs(seconds.unsigned_abs())),
    };
    whole
        .and_then(|whole| whole.checked_add(Duration::from_nanos(nanoseconds.into())))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
