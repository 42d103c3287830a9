//! The metadata layer of a generation: its manifest as a directory of a tmpfs.
//!
//! Directories and symlinks are as in the tree. A file is sparse with the right size, mode, owner and times, and two
//! overlay attributes: `metacopy` (its data are elsewhere) and `redirect` (at which path of the data layers). An empty
//! file is a plain empty file.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use proto::TreeId;
use proto::manifest::{Manifest, Node, NodeKind};
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown, ftruncate,
    futimens, linkat, mkdirat, openat, symlinkat, utimensat,
};

/// Where metadata layers are made: [`TmpfsMeta`] needs no privilege inside a user namespace, [`ImageMeta`] a tenth of the
/// time and of the kernel's memory.
///
/// [`ImageMeta`]: super::image::ImageMeta
pub(super) trait MetaStore {
    /// Makes the layer of a tree, or finds it made.
    ///
    /// # Errors
    /// What could not be made, with the path in the tree. A half-made layer is never found later.
    fn make(&self, tree: &TreeId, manifest: &Manifest) -> io::Result<Layer>;

    /// Removes a tree's layer; it is no error that there is none.
    fn remove(&self, tree: &TreeId) -> io::Result<()>;
}

/// A layer that an overlay can be mounted over.
pub(super) struct Layer {
    path: PathBuf,
    /// Undoes what only the mounting of the overlay needs.
    undo: Option<fn(&Path)>,
}

impl Layer {
    pub(super) fn new(path: PathBuf, undo: Option<fn(&Path)>) -> Self {
        Self { path, undo }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        if let Some(undo) = self.undo {
            undo(&self.path);
        }
    }
}

/// Layers as directories of one tmpfs.
#[derive(Debug)]
pub(super) struct TmpfsMeta {
    dir: PathBuf,
    flavour: Flavour,
}

/// Which attribute names the overlay reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flavour {
    /// `trusted.overlay.*`: needs the initial user namespace's root.
    Trusted,
    /// `user.overlay.*`, with the mount option `userxattr`.
    User,
}

impl Flavour {
    fn name(self, what: &str) -> String {
        match self {
            Flavour::Trusted => format!("trusted.overlay.{what}"),
            Flavour::User => format!("user.overlay.{what}"),
        }
    }
}

impl TmpfsMeta {
    pub(super) fn new(dir: PathBuf, flavour: Flavour) -> Self {
        // What a helper that was killed while it removed has left takes memory.
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_name().as_bytes().starts_with(GONE.as_bytes()) {
                let _ = remove_tree(&entry.path());
            }
        }
        Self { dir, flavour }
    }
}

/// A layer on its way out: what has a tree's own name is whole.
const GONE: &str = ".gone-";

impl MetaStore for TmpfsMeta {
    fn make(&self, tree: &TreeId, manifest: &Manifest) -> io::Result<Layer> {
        let path = self.dir.join(tree.to_hex());
        if path.exists() {
            return Ok(Layer::new(path, None));
        }
        let making = self.dir.join(format!(".making-{}", tree.to_hex()));
        remove_tree(&making)?;
        let made = build(&making, manifest, Some(self.flavour), &mut |_, _| Ok(())).and_then(|()| {
            // Complete only under its own name: a helper killed in the middle leaves nothing that looks like a layer.
            std::fs::rename(&making, &path)
        });
        if made.is_err() {
            let _ = remove_tree(&making);
        }
        made.map(|()| Layer::new(path, None))
    }

    fn remove(&self, tree: &TreeId) -> io::Result<()> {
        let gone = self.dir.join(format!("{GONE}{}", tree.to_hex()));
        remove_tree(&gone)?;
        match std::fs::rename(self.dir.join(tree.to_hex()), &gone) {
            Ok(()) => remove_tree(&gone),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Fills an empty file with its object; see [`build`].
pub(super) type Fill<'f> = &'f mut dyn FnMut(&OwnedFd, &proto::ObjectId) -> io::Result<()>;

/// Makes the tree below `target`. With a flavour files are sparse and redirected, without one `fill` writes them.
pub(super) fn build(target: &Path, manifest: &Manifest, flavour: Option<Flavour>, fill: Fill<'_>) -> io::Result<()> {
    std::fs::create_dir(target)?;
    let root = openat(CWD, target, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut builder =
        Builder { root, manifest, flavour, keep_owners: is_initial_namespace(), first_name: HashMap::new() };
    for entry in &manifest.entries[1..] {
        builder.make(entry, fill).map_err(|e| at_path(&entry.path, e))?;
    }
    // Last and from the inside out: making an entry changes its directory's time, and a mode may forbid making it.
    for entry in manifest.entries.iter().rev() {
        let node = manifest.node(entry);
        if node.kind == NodeKind::Directory {
            builder.finish_directory(entry.path.as_path(), node).map_err(|e| at_path(&entry.path, e))?;
        }
    }
    Ok(())
}

fn at_path(path: &proto::TreePath, error: io::Error) -> io::Error {
    let kind = error.raw_os_error().map_or(error.kind(), |n| io::Error::from_raw_os_error(n).kind());
    io::Error::new(kind, format!("'{path}': {error}"))
}

struct Builder<'m> {
    root: OwnedFd,
    manifest: &'m Manifest,
    flavour: Option<Flavour>,
    keep_owners: bool,
    /// The first path of nodes with more names.
    first_name: HashMap<u32, &'m Path>,
}

impl<'m> Builder<'m> {
    fn make(&mut self, entry: &'m proto::manifest::Entry, fill: Fill<'_>) -> io::Result<()> {
        let (path, node) = (entry.path.as_path(), self.manifest.node(entry));
        match &node.kind {
            NodeKind::Directory => Ok(mkdirat(&self.root, path, Mode::RWXU)?),
            _ if self.first_name.contains_key(&entry.node) => {
                let first = self.first_name[&entry.node];
                linkat(&self.root, first, &self.root, path, AtFlags::empty()).map_err(|error| {
                    let error = io::Error::from(error);
                    io::Error::new(error.kind(), format!("one more name of '{}': {error}", first.display()))
                })
            }
            NodeKind::Symlink(target) => {
                self.first_name.insert(entry.node, path);
                symlinkat(target.as_slice(), &self.root, path)?;
                let (uid, gid) = self.owner(node);
                chownat(&self.root, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
                Ok(utimensat(&self.root, path, &times(node), AtFlags::SYMLINK_NOFOLLOW)?)
            }
            NodeKind::EmptyFile | NodeKind::File(_) => {
                self.first_name.insert(entry.node, path);
                self.make_file(path, node, fill)
            }
        }
    }

    fn make_file(&self, path: &Path, node: &Node, fill: Fill<'_>) -> io::Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = openat(&self.root, path, flags, Mode::RUSR | Mode::WUSR)?;
        if let NodeKind::File(id) = &node.kind {
            match self.flavour {
                Some(flavour) => {
                    let object = self.manifest.object(id).ok_or(io::ErrorKind::InvalidData)?;
                    ftruncate(&file, object.bytes)?;
                    let (shard, rest) = id.to_shard();
                    let redirect = format!("/{shard}/{rest}");
                    rustix::fs::fsetxattr(&file, flavour.name("metacopy"), b"", XattrFlags::empty())?;
                    rustix::fs::fsetxattr(&file, flavour.name("redirect"), redirect.as_bytes(), XattrFlags::empty())?;
                }
                None => fill(&file, id)?,
            }
        }
        self.finish(&file, node)
    }

    fn finish_directory(&self, path: &Path, node: &Node) -> io::Result<()> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let dir = openat(&self.root, path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        self.finish(&dir, node)
    }

    /// Owner before mode and capabilities (`chown` clears set-id bits and capabilities), times last.
    fn finish(&self, file: impl AsFd, node: &Node) -> io::Result<()> {
        let (uid, gid) = self.owner(node);
        fchown(&file, uid, gid)?;
        fchmod(&file, Mode::from_raw_mode(node.mode))?;
        for xattr in &node.xattrs {
            let set = rustix::fs::fsetxattr(&file, xattr.name.as_slice(), &xattr.value, XattrFlags::empty());
            match set {
                // A user namespace has no file capabilities of other namespaces, and nosuid takes their effect anyway.
                Err(rustix::io::Errno::PERM | rustix::io::Errno::INVAL) if !self.keep_owners => {}
                other => other.map_err(|error| {
                    let (name, bytes) = (String::from_utf8_lossy(&xattr.name), xattr.value.len());
                    let error = io::Error::from(error);
                    io::Error::new(error.kind(), format!("attribute {name} of {bytes} bytes: {error}"))
                })?,
            }
        }
        Ok(futimens(&file, &times(node))?)
    }

    /// In a user namespace only its own user exists, and owns everything.
    fn owner(&self, node: &Node) -> (Option<Uid>, Option<Gid>) {
        if self.keep_owners { (Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid))) } else { (None, None) }
    }
}

/// Whether every user id exists here.
pub(super) fn is_initial_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let whole = map.split_whitespace().collect::<Vec<_>>() == ["0", "0", "4294967295"];
    whole && rustix::process::geteuid().is_root()
}

fn times(node: &Node) -> Timestamps {
    let time = Timespec { tv_sec: node.mtime_s, tv_nsec: node.mtime_ns.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Removes a tree whose directories may be closed even to their owner.
pub(super) fn remove_tree(root: &Path) -> io::Result<()> {
    match root.symlink_metadata() {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return std::fs::remove_file(root),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o700))?;
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { remove_tree(&entry.path())? } else { std::fs::remove_file(entry.path())? }
    }
    std::fs::remove_dir(root)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::sync::atomic::{AtomicBool, Ordering};

    use proto::TreePath;
    use proto::manifest::Entry;

    use super::*;

    #[test]
    fn a_layer_is_whole_for_as_long_as_it_has_its_trees_name() {
        const FILES: u32 = 3_000;
        let dir = tempfile::tempdir().unwrap();
        let node = |kind, mode| Node { mode, uid: 0, gid: 0, mtime_s: 7, mtime_ns: 0, xattrs: vec![], kind };
        let file =
            |n: u32| Entry { path: TreePath::parse(format!("closed/{n:04}").as_bytes()).unwrap(), node: 2 + n };
        let closed = Entry { path: TreePath::parse(b"closed").unwrap(), node: 1 };
        let directories = [node(NodeKind::Directory, 0o755), node(NodeKind::Directory, 0o555)];
        let manifest = Manifest {
            chunk_bytes: 65_536,
            objects: vec![],
            nodes: directories.into_iter().chain((0..FILES).map(|_| node(NodeKind::EmptyFile, 0o444))).collect(),
            entries: [Entry { path: TreePath::root(), node: 0 }, closed]
                .into_iter()
                .chain((0..FILES).map(file))
                .collect(),
        };
        let (store, tree) = (TmpfsMeta::new(dir.path().to_owned(), Flavour::User), TreeId::of(b"t"));
        let layer = store.make(&tree, &manifest).unwrap().path().join("closed");
        let whole = std::fs::metadata(&layer).unwrap().mtime_nsec();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Whatever is removed from it changes its directory's time: a helper that is killed then leaves it so.
                while !over.load(Ordering::SeqCst) {
                    let half = std::fs::metadata(&layer).is_ok_and(|found| found.mtime_nsec() != whole);
                    assert!(!half, "a layer with less in it has the name of the whole one");
                }
            });
            store.remove(&tree).unwrap();
            over.store(true, Ordering::SeqCst);
        });
        // What is left by one that was killed then is no layer, and goes.
        let left = dir.path().join(format!("{GONE}{}", TreeId::of(b"other").to_hex()));
        std::fs::create_dir_all(left.join("closed")).unwrap();
        TmpfsMeta::new(dir.path().to_owned(), Flavour::User);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
