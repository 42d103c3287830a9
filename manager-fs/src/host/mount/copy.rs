//! The last resort: a tree as a plain directory, where neither overlay nor FUSE is permitted.
//!
//! Reflinked where the file system can, else copied. Hard links to the cache would share modes and times between trees. Nothing
//! holds a directory still as a mount does, so a copy is compared with its manifest when it has been made, and again before
//! each use of one that looks different since. It is removed under another name: what has this tree's name is whole.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use proto::id::ChunkId;
use proto::manifest::{Manifest, Node, NodeKind};
use proto::{ObjectId, TreeId};

use super::meta::{self, remove_tree};
use crate::moments::{self, Moment};

const MAKING: &str = ".making-";
const GONE: &str = ".gone-";

/// Copies below one directory.
#[derive(Debug)]
pub(super) struct Copies {
    dir: PathBuf,
    /// The local objects.
    local: PathBuf,
    /// How each copy looked when it was last compared with its manifest.
    compared: HashMap<TreeId, blake3::Hash>,
}

impl Copies {
    pub(super) fn new(dir: PathBuf, local: PathBuf) -> Self {
        Self { dir, local, compared: HashMap::new() }
    }

    /// Makes `copies/<tree>` from the local objects, all of which must be there, or finds it made and right. Also returns
    /// whether it was found.
    ///
    /// # Errors
    /// An object is missing or wrong, or the file system cannot hold something, which is named; nothing half-made remains.
    pub(super) fn make(&mut self, tree: &TreeId, manifest: &Manifest) -> io::Result<(PathBuf, bool)> {
        let path = self.dir.join(tree.to_hex());
        if path.symlink_metadata().is_ok() {
            match self.compare(&path, tree, manifest) {
                Ok(()) => return Ok((path, true)),
                Err(error) => {
                    tracing::error!(%tree, %error, "the copy of this generation was changed; it is made anew");
                    self.remove(tree)?;
                }
            }
        }
        std::fs::create_dir_all(&self.dir)?;
        let making = self.dir.join(format!("{MAKING}{}", tree.to_hex()));
        remove_tree(&making)?;
        let made = self.build(&making, tree, manifest).and_then(|()| moments::reach(Moment::CopyPut, &path));
        let made = made.and_then(|()| std::fs::rename(&making, &path));
        if let Err(error) = made {
            self.compared.remove(tree);
            let _ = remove_tree(&making);
            return Err(error);
        }
        // Renaming changed how the root looks.
        self.compared.insert(*tree, looks(&path, manifest)?);
        Ok((path, false))
    }

    /// Removes a copy. Programs that run from it keep their open files.
    ///
    /// # Errors
    /// It could not be taken away from its name; what remains under another one goes with the next clearing.
    pub(super) fn remove(&mut self, tree: &TreeId) -> io::Result<()> {
        self.compared.remove(tree);
        let gone = (0..u32::MAX).map(|n| self.dir.join(format!("{GONE}{}.{n}", tree.to_hex())));
        let gone =
            gone.into_iter().find(|gone| gone.symlink_metadata().is_err()).ok_or(io::ErrorKind::AlreadyExists)?;
        moments::reach(Moment::CopyRemove, &gone)?;
        match std::fs::rename(self.dir.join(tree.to_hex()), &gone) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        if let Err(error) = remove_tree(&gone) {
            tracing::warn!(%error, path = %gone.display(), "a removed copy still takes room");
        }
        Ok(())
    }

    /// Removes what helpers that were killed have left.
    pub(super) fn clear(&self) {
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name.as_bytes().starts_with(GONE.as_bytes()) || name.as_bytes().starts_with(MAKING.as_bytes()) {
                // The next clearing tries again.
                let _ = remove_tree(&entry.path());
            }
        }
    }

    fn build(&self, making: &Path, tree: &TreeId, manifest: &Manifest) -> io::Result<()> {
        meta::build(making, manifest, None, &mut |file, id| {
            let (shard, rest) = id.to_shard();
            let mut object = File::open(self.local.join(shard).join(rest))?;
            match rustix::fs::ioctl_ficlone(file, &object) {
                Ok(()) => Ok(()),
                Err(_) => io::copy(&mut object, &mut File::from(file.try_clone()?)).map(|_| ()),
            }
        })?;
        rustix::fs::syncfs(File::open(making)?)?;
        compare_all(making, manifest)
            .map_err(|error| io::Error::new(error.kind(), format!("the copy of {tree} is not the tree: {error}")))
    }

    fn compare(&mut self, path: &Path, tree: &TreeId, manifest: &Manifest) -> io::Result<()> {
        let now = looks(path, manifest)?;
        if self.compared.get(tree) != Some(&now) {
            compare_all(path, manifest)?;
            self.compared.insert(*tree, now);
        }
        Ok(())
    }
}

/// Everything that a change of a copy would change of its entries' status. Whatever is added changes its directory.
fn looks(root: &Path, manifest: &Manifest) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    for entry in &manifest.entries {
        let found = std::fs::symlink_metadata(root.join(entry.path.as_path()))?;
        let times = [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()];
        let numbers = [found.ino(), found.len(), found.mode().into(), found.nlink()];
        let times = times.into_iter().flat_map(i64::to_le_bytes);
        hasher.update(&times.chain(numbers.into_iter().flat_map(u64::to_le_bytes)).collect::<Vec<_>>());
    }
    Ok(hasher.finalize())
}

/// Compares kinds, modes, contents and names with the manifest; the error names the first entry that differs.
fn compare_all(root: &Path, manifest: &Manifest) -> io::Result<()> {
    let mut names = 0;
    for entry in &manifest.entries {
        let path = root.join(entry.path.as_path());
        let node = manifest.node(entry);
        let fault = match same(&path, node, manifest) {
            Ok(true) => None,
            Ok(false) => Some("has changed".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(fault) = fault {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("'{}': {fault}", entry.path)));
        }
        if node.kind == NodeKind::Directory {
            names += std::fs::read_dir(&path)?.count();
        }
    }
    if names + 1 == manifest.entries.len() {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "it has entries that the tree has not"))
    }
}

fn same(path: &Path, node: &Node, manifest: &Manifest) -> io::Result<bool> {
    let found = path.symlink_metadata()?;
    let mode = found.permissions().mode() & 0o7777;
    match &node.kind {
        NodeKind::Directory => Ok(found.is_dir() && mode == node.mode),
        NodeKind::Symlink(target) => {
            Ok(found.is_symlink() && std::fs::read_link(path)?.as_os_str().as_bytes() == target.as_slice())
        }
        NodeKind::EmptyFile => Ok(found.is_file() && found.len() == 0 && mode == node.mode),
        NodeKind::File(id) => Ok(found.is_file() && mode == node.mode && has_content(path, id, manifest)?),
    }
}

fn has_content(path: &Path, id: &ObjectId, manifest: &Manifest) -> io::Result<bool> {
    let object = manifest.object(id).ok_or(io::ErrorKind::InvalidData)?;
    let file = open_for_reading(path)?;
    if file.metadata()?.len() != object.bytes {
        return Ok(false);
    }
    let mut buffer = Vec::new();
    for (index, chunk) in (0..).zip(&object.chunks) {
        buffer.resize(object.chunk_len(index, manifest.chunk_bytes).unwrap_or(0) as usize, 0);
        file.read_exact_at(&mut buffer, u64::from(index) * u64::from(manifest.chunk_bytes))?;
        if ChunkId::of(&buffer) != *chunk {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A file that even its owner may not read is opened for a moment: that is seen in its times, and compared before them.
fn open_for_reading(path: &Path) -> io::Result<File> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let mode = path.symlink_metadata()?.permissions();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode.mode() | 0o400))?;
            let opened = File::open(path);
            std::fs::set_permissions(path, mode)?;
            opened
        }
        opened => opened,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::TreePath;
    use proto::manifest::{Entry, Object};

    fn sample(dir: &Path) -> (Copies, TreeId, Manifest) {
        let content = b"content of the file".to_vec();
        let id = ObjectId::of(&content);
        let (shard, rest) = id.to_shard();
        std::fs::create_dir_all(dir.join("local").join(&shard)).unwrap();
        std::fs::write(dir.join("local").join(shard).join(rest), &content).unwrap();
        let node = |kind, mode| Node { mode, uid: 0, gid: 0, mtime_s: 7, mtime_ns: 0, xattrs: vec![], kind };
        let entry = |path: &str, node| Entry { path: TreePath::parse(path.as_bytes()).unwrap(), node };
        let manifest = Manifest {
            chunk_bytes: 65_536,
            objects: vec![Object { id, bytes: content.len() as u64, chunks: vec![ChunkId::of(&content)] }],
            nodes: vec![
                node(NodeKind::Directory, 0o755),
                node(NodeKind::Directory, 0o555),
                node(NodeKind::File(id), 0o444),
                node(NodeKind::File(id), 0o111),
            ],
            entries: vec![
                Entry { path: TreePath::root(), node: 0 },
                entry("closed", 1),
                entry("closed/file", 2),
                entry("hidden", 3),
            ],
        };
        (Copies::new(dir.join("copies"), dir.join("local")), TreeId::of(b"t"), manifest)
    }

    #[test]
    fn a_changed_copy_is_made_anew_and_an_unchanged_one_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (mut copies, tree, manifest) = sample(dir.path());
        let (path, found) = copies.make(&tree, &manifest).unwrap();
        assert!(!found && copies.make(&tree, &manifest).unwrap().1);
        let open = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        let changes: [&dyn Fn(); 3] = [
            &|| {
                open(&path.join("closed"), 0o755);
                open(&path.join("closed/file"), 0o644);
                std::fs::write(path.join("closed/file"), b"other than the file").unwrap();
                open(&path.join("closed/file"), 0o444);
                open(&path.join("closed"), 0o555);
            },
            &|| std::fs::write(path.join("more"), b"").unwrap(),
            &|| std::fs::remove_file(path.join("hidden")).unwrap(),
        ];
        for (at, change) in changes.iter().enumerate() {
            change();
            assert!(!copies.make(&tree, &manifest).unwrap().1, "change {at}");
            assert_eq!(std::fs::read(path.join("closed/file")).unwrap(), b"content of the file");
            assert!(!path.join("more").exists() && path.join("hidden").exists());
        }
        // Another helper has compared nothing yet.
        let mut others = Copies::new(dir.path().join("copies"), dir.path().join("local"));
        assert!(others.make(&tree, &manifest).unwrap().1);
    }

    #[test]
    fn what_was_removed_half_is_not_found_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (mut copies, tree, manifest) = sample(dir.path());
        let (path, _) = copies.make(&tree, &manifest).unwrap();
        copies.remove(&tree).unwrap();
        assert!(!path.exists());
        copies.remove(&tree).unwrap();
        // A helper that is killed while it removes or makes leaves this.
        for name in [format!("{GONE}{}.0", tree.to_hex()), format!("{MAKING}{}", tree.to_hex())] {
            let left = dir.path().join("copies").join(name).join("closed");
            std::fs::create_dir_all(&left).unwrap();
            std::fs::write(left.join("file"), b"").unwrap();
            std::fs::set_permissions(&left, std::fs::Permissions::from_mode(0o555)).unwrap();
        }
        copies.make(&tree, &manifest).unwrap();
        copies.clear();
        let left = std::fs::read_dir(dir.path().join("copies")).unwrap().map(|entry| entry.unwrap().path());
        assert_eq!(left.collect::<Vec<_>>(), [path]);
    }

    /// A manifest that was published before there were bounds for every file system, or by somebody else.
    #[test]
    fn what_the_file_system_cannot_hold_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (mut copies, tree, mut manifest) = sample(dir.path());
        let good = manifest.clone();
        let large = proto::manifest::Xattr { name: b"user.large".to_vec(), value: vec![b'v'; 65_536] };
        manifest.nodes[2].xattrs.push(large);
        match copies.make(&tree, &manifest) {
            Ok((path, _)) => {
                let mut value = vec![0; 70_000];
                let bytes = rustix::fs::getxattr(path.join("closed/file"), "user.large", value.as_mut_slice());
                assert_eq!(bytes, Ok(65_536), "a file system that holds it");
            }
            Err(error) => {
                let said = error.to_string();
                assert!(said.contains("'closed/file'") && said.contains("user.large of 65536 bytes"), "{said}");
            }
        }
        let mut manifest = good;
        let hidden = manifest.entries.pop().unwrap();
        let names =
            (0..70_000).map(|n| Entry { path: TreePath::parse(format!("n{n:05}").as_bytes()).unwrap(), node: 3 });
        manifest.entries.extend(std::iter::once(hidden).chain(names));
        let other = TreeId::of(b"links");
        match copies.make(&other, &manifest) {
            Ok((path, _)) => assert_eq!(std::fs::metadata(path.join("n00007")).unwrap().nlink(), 70_001),
            Err(error) => assert!(error.to_string().contains("one more name of 'hidden'"), "{error}"),
        }
        let left = std::fs::read_dir(dir.path().join("copies")).unwrap().flatten();
        assert!(left.into_iter().all(|entry| !entry.file_name().as_bytes().starts_with(MAKING.as_bytes())));
    }

    #[test]
    fn an_object_with_other_bytes_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let (mut copies, tree, manifest) = sample(dir.path());
        let (shard, rest) = manifest.objects[0].id.to_shard();
        std::fs::write(dir.path().join("local").join(shard).join(rest), b"Content of the file").unwrap();
        let refused = copies.make(&tree, &manifest).unwrap_err().to_string();
        assert!(refused.contains("'closed/file': has changed"), "{refused}");
        assert_eq!(std::fs::read_dir(dir.path().join("copies")).unwrap().count(), 0);
    }
}
