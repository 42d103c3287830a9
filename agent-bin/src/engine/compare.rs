//! A snapshot's tree beside a directory of the host: what differs, entry by entry.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, FileType, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustic_core::jiff::Timestamp;
use rustic_core::repofile::{BlobType, Node, NodeType};
use rustic_core::{BlobId, IndexedFull, Repository, RusticResult};

use super::SharedMeter;

/// How much is compared.
#[derive(Debug, Clone, Copy)]
pub(super) struct Depth {
    /// Every byte: read back out of the repository and held against the live file. Otherwise sizes.
    pub(super) contents: bool,
    /// User and group.
    pub(super) ownership: bool,
}

/// How much was compared.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Compared {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

impl Compared {
    pub(super) fn add(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
    }
}

/// Compares a node of a snapshot with what lies at `live`. Differences become the meter's problems.
pub(super) fn compare<S: IndexedFull>(
    repository: &Repository<S>,
    node: &Node,
    live: &Path,
    depth: Depth,
    meter: &SharedMeter,
) -> RusticResult<Compared> {
    let mut comparison = Comparison { repository, depth, meter, sum: Compared::default() };
    comparison.entry(node, live)?;
    Ok(comparison.sum)
}

struct Comparison<'a, S> {
    repository: &'a Repository<S>,
    depth: Depth,
    meter: &'a SharedMeter,
    sum: Compared,
}

impl<S: IndexedFull> Comparison<'_, S> {
    fn entry(&mut self, node: &Node, live: &Path) -> RusticResult<()> {
        if self.meter.is_stopped() {
            return Err(super::gate::stopped());
        }
        let metadata = match fs::symlink_metadata(live) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.differs(live, "is in the snapshot and not in the directory");
                return Ok(());
            }
            Err(error) => {
                self.differs(live, &error.to_string());
                return Ok(());
            }
        };
        let (kept, found) = (kind_of_node(node), kind_of_file(metadata.file_type()));
        if kept != found {
            self.differs(live, &format!("is a {found}, in the snapshot a {kept}"));
            return Ok(());
        }
        self.metadata(node, live, &metadata);
        match &node.node_type {
            NodeType::Dir => self.directory(node, live),
            NodeType::File => {
                self.file(node, live, &metadata);
                Ok(())
            }
            NodeType::Symlink { .. } => {
                match fs::read_link(live) {
                    Ok(target) if target == node.node_type.to_link() => {}
                    Ok(target) => {
                        let kept = node.node_type.to_link().display();
                        self.differs(live, &format!("leads to {}, in the snapshot to {kept}", target.display()));
                    }
                    Err(error) => self.differs(live, &error.to_string()),
                }
                Ok(())
            }
            NodeType::Dev { device } | NodeType::Chardev { device } => {
                if metadata.rdev() != *device {
                    self.differs(live, &format!("is device {}, in the snapshot {device}", metadata.rdev()));
                }
                Ok(())
            }
            NodeType::Fifo | NodeType::Socket => Ok(()),
        }
    }

    fn metadata(&self, node: &Node, live: &Path, metadata: &Metadata) {
        let link = node.is_symlink();
        // A symbolic link has no mode of its own, and the directories above a source have only a name in a snapshot.
        if let Some(mode) = node.meta.mode.filter(|_| !link && node.meta.mtime.is_some()) {
            let (kept, found) = (mode_of_node(mode), metadata.mode() & 0o7777);
            if kept != found {
                self.differs(live, &format!("has mode {found:04o}, in the snapshot {kept:04o}"));
            }
        }
        if let Some(kept) = node.meta.mtime
            && metadata.modified().ok().and_then(|time| Timestamp::try_from(time).ok()) != Some(kept)
        {
            self.differs(live, &format!("was modified at another time than in the snapshot ({kept})"));
        }
        if self.depth.ownership
            && let (Some(user), Some(group)) = (node.meta.uid, node.meta.gid)
            && (user, group) != (metadata.uid(), metadata.gid())
        {
            let (uid, gid) = (metadata.uid(), metadata.gid());
            self.differs(live, &format!("belongs to {uid}:{gid}, in the snapshot to {user}:{group}"));
        }
        if node.meta.mtime.is_some() {
            self.attributes(node, live);
        }
    }

    fn attributes(&self, node: &Node, live: &Path) {
        let kept: BTreeSet<_> = node.meta.extended_attributes.iter().map(|xattr| xattr.name.clone()).collect();
        let found = match attribute_names(live) {
            Ok(names) => names,
            Err(error) => return self.differs(live, &format!("its extended attributes: {error}")),
        };
        for name in kept.symmetric_difference(&found) {
            let side = if kept.contains(name) { "only in the snapshot" } else { "only in the directory" };
            self.differs(live, &format!("has the extended attribute {name} {side}"));
        }
        for xattr in node.meta.extended_attributes.iter().filter(|xattr| found.contains(&xattr.name)) {
            match attribute(live, &xattr.name) {
                Ok(value) if Some(&value) == xattr.value.as_ref() || (value.is_empty() && xattr.value.is_none()) => {}
                Ok(_) => self.differs(live, &format!("has another value of the extended attribute {}", xattr.name)),
                Err(error) => self.differs(live, &format!("its extended attribute {}: {error}", xattr.name)),
            }
        }
    }

    fn directory(&mut self, node: &Node, live: &Path) -> RusticResult<()> {
        let Some(tree) = node.subtree else {
            self.differs(live, "has no tree in the snapshot");
            return Ok(());
        };
        let tree = self.repository.get_tree(&tree)?;
        let mut extra: BTreeSet<OsString> = BTreeSet::new();
        match fs::read_dir(live) {
            Ok(entries) => {
                for entry in entries {
                    match entry {
                        Ok(entry) => {
                            extra.insert(entry.file_name());
                        }
                        Err(error) => self.differs(live, &error.to_string()),
                    }
                }
            }
            Err(error) => self.differs(live, &error.to_string()),
        }
        for child in &tree.nodes {
            extra.remove(&*child.name());
            self.entry(child, &live.join(child.name()))?;
        }
        // The directories above a source hold much else; only those with saved metadata were backed up whole.
        if node.meta.mtime.is_some() {
            for name in extra {
                self.differs(&live.join(name), "is in the directory and not in the snapshot");
            }
        }
        Ok(())
    }

    fn file(&mut self, node: &Node, live: &Path, metadata: &Metadata) {
        self.sum.files += 1;
        self.sum.bytes += node.meta.size;
        if metadata.len() != node.meta.size {
            let (found, kept) = (metadata.len(), node.meta.size);
            return self.differs(live, &format!("has {found} bytes, in the snapshot {kept}"));
        }
        if self.depth.contents
            && let Err(what) = self.contents(node, live)
        {
            self.differs(live, &what);
        }
    }

    fn contents(&self, node: &Node, live: &Path) -> Result<(), String> {
        let mut file = File::open(live).map_err(|error| error.to_string())?;
        let mut found = Vec::new();
        let mut offset = 0u64;
        for piece in node.content.iter().flatten() {
            if self.meter.is_stopped() {
                return Ok(());
            }
            let kept = self
                .repository
                .get_blob_cached(&BlobId::from(*piece), BlobType::Data)
                .map_err(|error| format!("cannot be read from the repository: {}", error.display_log()))?;
            found.resize(kept.len(), 0);
            file.read_exact(&mut found).map_err(|error| format!("{error} at byte {offset}"))?;
            if found != *kept {
                let at = found.iter().zip(kept.iter()).take_while(|(a, b)| a == b).count() as u64;
                return Err(format!("differs from the snapshot from byte {} on", offset + at));
            }
            offset += kept.len() as u64;
            self.meter.advance(kept.len() as u64);
        }
        Ok(())
    }

    fn differs(&self, live: &Path, how: &str) {
        self.meter.problem(format!("{}: {how}", live.display()));
    }
}

/// Gives the root of a restore the metadata of the directory it was made of; the engine restores only what is below.
pub(super) fn set_metadata(target: &Path, root: &Node, meter: &SharedMeter) {
    let meta = &root.meta;
    let set = || -> io::Result<()> {
        if let (true, Some(uid), Some(gid)) = (rustix::process::geteuid().is_root(), meta.uid, meta.gid) {
            std::os::unix::fs::chown(target, Some(uid), Some(gid))?;
        }
        for xattr in &meta.extended_attributes {
            let value = xattr.value.as_deref().unwrap_or_default();
            rustix::fs::setxattr(target, xattr.name.as_str(), value, rustix::fs::XattrFlags::empty())?;
        }
        if let (Some(mode), Some(mtime)) = (meta.mode, meta.mtime) {
            fs::set_permissions(target, fs::Permissions::from_mode(mode_of_node(mode)))?;
            let times = fs::FileTimes::new().set_modified(mtime.into()).set_accessed(mtime.into());
            File::open(target)?.set_times(times)?;
        }
        Ok(())
    };
    if let Err(error) = set() {
        meter.problem(format!("{}: its own mode, owner and times: {error}", target.display()));
    }
}

/// Removes links and special files of an unfinished restore: the engine makes them anew, and stumbles over old ones.
pub(super) fn clear_links(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            clear_links(&entry.path())?;
        } else if !metadata.is_file() || metadata.nlink() > 1 {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A snapshot's mode (as Go's `os.FileMode` writes it) as the kernel's.
fn mode_of_node(mode: u32) -> u32 {
    let bit = |go: u32, kernel: u32| if mode & (1 << go) != 0 { kernel } else { 0 };
    (mode & 0o777) | bit(23, 0o4000) | bit(22, 0o2000) | bit(20, 0o1000)
}

/// The kernel's mode of a directory as a snapshot's.
pub(super) fn directory_mode_of_file(mode: u32) -> u32 {
    let bit = |kernel: u32, go: u32| if mode & kernel != 0 { 1 << go } else { 0 };
    (1 << 31) | (mode & 0o777) | bit(0o4000, 23) | bit(0o2000, 22) | bit(0o1000, 20)
}

fn kind_of_node(node: &Node) -> &'static str {
    match node.node_type {
        NodeType::File => "file",
        NodeType::Dir => "directory",
        NodeType::Symlink { .. } => "symbolic link",
        NodeType::Dev { .. } => "block device",
        NodeType::Chardev { .. } => "character device",
        NodeType::Fifo => "fifo",
        NodeType::Socket => "socket",
    }
}

fn kind_of_file(kind: FileType) -> &'static str {
    match () {
        () if kind.is_dir() => "directory",
        () if kind.is_symlink() => "symbolic link",
        () if kind.is_block_device() => "block device",
        () if kind.is_char_device() => "character device",
        () if kind.is_fifo() => "fifo",
        () if kind.is_socket() => "socket",
        () => "file",
    }
}

/// Names of a file's extended attributes; none where the file system has none.
pub(super) fn attribute_names(path: &Path) -> io::Result<BTreeSet<String>> {
    let mut list = vec![0u8; 65_536];
    match rustix::fs::llistxattr(path, list.as_mut_slice()) {
        Ok(bytes) => list.truncate(bytes),
        Err(rustix::io::Errno::NOTSUP) => return Ok(BTreeSet::new()),
        Err(error) => return Err(error.into()),
    }
    let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
}

/// The value of one extended attribute.
pub(super) fn attribute(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    let mut value = vec![0u8; 65_536];
    let bytes = rustix::fs::lgetxattr(path, name, value.as_mut_slice())?;
    value.truncate(bytes);
    Ok(value)
}
