//! Trees for tests: one description, written as a directory, as a tar stream, and as the manifest that both must give.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use proto::manifest::{Entry, Manifest, Node, NodeKind, Object, Xattr};
use proto::width;
use proto::{ChunkId, ObjectId, TreePath};
use rustix::fs::{AtFlags, Timespec, Timestamps, XattrFlags};

use super::monitor::{Monitor, Quiet};
use super::publish::{PublishError, PublishOptions, Published, publish};
use super::store::Store;

/// What is at a path.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Directory,
    File(Vec<u8>),
    Symlink(String),
    /// A further name of the file at this path, which sorts before it.
    Link(String),
}

/// One path of a tree, with its attributes (of a link: those of its file).
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
}

/// A tree by path; the root is the empty path. Owned by whoever runs the test.
#[derive(Debug, Clone)]
pub(crate) struct Model(pub(crate) BTreeMap<String, Item>);

impl Item {
    pub(crate) fn new(kind: Kind) -> Self {
        let mode = if matches!(kind, Kind::Symlink(_)) { 0o777 } else { 0o755 };
        Self { kind, mode, mtime: (1_700_000_000, 123_456_789), xattrs: BTreeMap::new() }
    }

    pub(crate) fn file(bytes: impl AsRef<[u8]>) -> Self {
        Self::new(Kind::File(bytes.as_ref().to_vec()))
    }
}

impl Model {
    pub(crate) fn new(items: impl IntoIterator<Item = (&'static str, Item)>) -> Self {
        let root = [("", Item::new(Kind::Directory))];
        Self(root.into_iter().chain(items).map(|(path, item)| (path.to_owned(), item)).collect())
    }

    /// Writes the tree to a directory that is not there yet.
    pub(crate) fn write(&self, root: &Path) {
        for (path, item) in &self.0 {
            let at = root.join(path);
            match &item.kind {
                Kind::Directory => fs::create_dir(&at).unwrap(),
                Kind::File(bytes) => fs::write(&at, bytes).unwrap(),
                Kind::Symlink(target) => symlink(target, &at).unwrap(),
                Kind::Link(target) => fs::hard_link(root.join(target), &at).unwrap(),
            }
        }
        // Deepest first: entering something changes its directory's time.
        for (path, item) in self.0.iter().rev() {
            let at = root.join(path);
            if matches!(item.kind, Kind::Link(_)) {
                continue;
            }
            for (name, value) in &item.xattrs {
                rustix::fs::lsetxattr(&at, name.as_str(), value, XattrFlags::empty()).unwrap();
            }
            if !matches!(item.kind, Kind::Symlink(_)) {
                fs::set_permissions(&at, fs::Permissions::from_mode(item.mode)).unwrap();
            }
            set_mtime(&at, item.mtime);
        }
    }

    /// The tree as a pax archive, entries in the order of paths.
    pub(crate) fn to_tar(&self) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, item) in &self.0 {
            append(&mut builder, path, item);
        }
        builder.into_inner().unwrap()
    }

    /// The manifest, put together the simple way.
    pub(crate) fn manifest(&self, chunk_bytes: u32) -> Manifest {
        let (uid, gid) = owner();
        let mut sorted: Vec<(TreePath, &String, &Item)> =
            self.0.iter().map(|(path, item)| (tree_path(path), path, item)).collect();
        sorted.sort_by(|a, b| a.0.cmp(&b.0));
        let first_name = |path: &String| match &self.0[path].kind {
            Kind::Link(target) => target.clone(),
            _ => path.clone(),
        };
        let (mut objects, mut nodes, mut entries) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut numbers: BTreeMap<String, u32> = BTreeMap::new();
        for (tree_path, path, _) in sorted {
            let first = first_name(path);
            let item = &self.0[&first];
            let node = *numbers.entry(first).or_insert_with(|| {
                let kind = match &item.kind {
                    Kind::Directory => NodeKind::Directory,
                    Kind::Symlink(target) => NodeKind::Symlink(target.clone().into_bytes()),
                    Kind::File(bytes) if bytes.is_empty() => NodeKind::EmptyFile,
                    Kind::File(bytes) => {
                        let id = ObjectId::of(bytes);
                        let chunks = bytes.chunks(chunk_bytes as usize).map(ChunkId::of).collect();
                        objects.insert(id, Object { id, bytes: bytes.len() as u64, chunks });
                        NodeKind::File(id)
                    }
                    Kind::Link(_) => unreachable!("a link leads to a file"),
                };
                let xattrs = item.xattrs.iter();
                let xattrs =
                    xattrs.map(|(name, value)| Xattr { name: name.clone().into_bytes(), value: value.clone() });
                nodes.push(Node {
                    mode: item.mode,
                    uid,
                    gid,
                    mtime_s: item.mtime.0,
                    mtime_ns: item.mtime.1,
                    xattrs: xattrs.collect(),
                    kind,
                });
                width::count(nodes.len()) - 1
            });
            entries.push(Entry { path: tree_path, node });
        }
        Manifest { chunk_bytes, objects: objects.into_values().collect(), nodes, entries }
    }
}

pub(crate) fn owner() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

pub(crate) fn tree_path(path: &str) -> TreePath {
    TreePath::parse(path.as_bytes()).unwrap()
}

pub(crate) fn set_mtime(path: &Path, (tv_sec, tv_nsec): (i64, u32)) {
    let time = Timespec { tv_sec, tv_nsec: i64::from(tv_nsec) };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Appends one item as GNU tar and bsdtar do with `--format=pax --xattrs`.
pub(crate) fn append(builder: &mut tar::Builder<Vec<u8>>, path: &str, item: &Item) {
    let (seconds, nanoseconds) = item.mtime;
    let mtime = match (seconds, nanoseconds) {
        (0.., _) => format!("{seconds}.{nanoseconds:09}"),
        (_, 0) => format!("{seconds}.000000000"),
        _ => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
    };
    let mut records: Vec<(String, Vec<u8>)> = vec![("mtime".into(), mtime.into_bytes())];
    if !matches!(item.kind, Kind::Link(_)) {
        let xattrs = item.xattrs.iter();
        records.extend(xattrs.map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.clone())));
    }
    let name = format!("./{path}");
    records.push(("path".into(), name.clone().into_bytes()));
    let (kind, bytes, link): (_, &[u8], _) = match &item.kind {
        Kind::Directory => (tar::EntryType::Directory, &[], None),
        Kind::File(bytes) => (tar::EntryType::Regular, bytes, None),
        Kind::Symlink(target) => (tar::EntryType::Symlink, &[], Some(target.clone())),
        Kind::Link(target) => (tar::EntryType::Link, &[], Some(format!("./{target}"))),
    };
    if let Some(link) = link {
        records.push(("linkpath".into(), link.into_bytes()));
    }
    builder.append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), value.as_slice()))).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(item.mode);
    header.set_uid(owner().0.into());
    header.set_gid(owner().1.into());
    header.set_mtime(seconds.max(0).cast_unsigned());
    header.set_size(bytes.len() as u64);
    header.as_old_mut().name[..1].copy_from_slice(b"x");
    header.set_cksum();
    builder.append(&header, bytes).unwrap();
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A Debian package around the bytes of a `data.tar`.
pub(crate) fn deb(data_name: &str, data: &[u8]) -> Vec<u8> {
    let mut builder = ar::Builder::new(Vec::new());
    let members = [("debian-binary", b"2.0\n".as_slice()), ("control.tar.gz", b"odd"), (data_name, data)];
    for (name, bytes) in members {
        builder.append(&ar::Header::new(name.as_bytes().to_vec(), bytes.len() as u64), bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A store in a directory of its own, and a place for sources.
pub(crate) struct Fixture {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Store,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    /// Publishes an archive of these bytes.
    pub(crate) fn publish_bytes(&self, bytes: &[u8]) -> Result<Published, PublishError> {
        let path = self.dir.path().join("archive");
        fs::write(&path, bytes).unwrap();
        self.publish(&path)
    }

    pub(crate) fn publish(&self, source: &Path) -> Result<Published, PublishError> {
        self.publish_with(source, &PublishOptions::default(), &Quiet)
    }

    pub(crate) fn publish_with(
        &self,
        source: &Path,
        options: &PublishOptions,
        monitor: &dyn Monitor,
    ) -> Result<Published, PublishError> {
        publish(&self.store, source, options, monitor, &AtomicBool::new(false))
    }

    pub(crate) fn manifest(&self, published: &Published) -> Manifest {
        self.store.tree(&published.tree).unwrap()
    }
}

/// Every path below a directory.
pub(crate) fn list(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![root.to_path_buf()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            found.push(path.strip_prefix(root).unwrap().display().to_string());
            if path.is_dir() {
                left.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Random trees: names with odd bytes, nested directories, files around the chunk size, equal files, links.
pub(crate) fn any_model() -> impl Strategy<Value = Model> {
    let name =
        prop_oneof![4 => "[a-z.]{1,3}x", 1 => "[ -.0-~äß]{1,8}x", 1 => Just(format!("x{}", "long".repeat(40)))];
    let kind = prop_oneof![
        3 => Just(0_u8), // directory
        6 => Just(1),    // file
        1 => Just(2),    // symlink
        2 => Just(3),    // hard link
    ];
    let bytes = prop_oneof![
        1 => Just(0_usize),
        6 => 1..2000_usize,
        1 => Just(4096_usize),
        1 => Just(8192_usize),
        1 => 4000..20_000_usize,
    ];
    let xattrs = prop::collection::btree_map("user\\.[a-z]{1,6}", prop::collection::vec(any::<u8>(), 0..40), 0..3);
    let mtime = (-2_000_000_000_i64..8_000_000_000, prop_oneof![Just(0_u32), 0..1_000_000_000_u32]);
    let mode = prop_oneof![Just(0o644_u32), Just(0o755), Just(0o4755), Just(0o1777), 0o400..0o1000_u32];
    let item = (name, kind, bytes, any::<u8>(), any::<prop::sample::Index>(), xattrs, mtime, mode);
    prop::collection::vec(item, 0..40).prop_map(|items| {
        let mut model = Model::new([]);
        for (name, kind, bytes, fill, place, xattrs, mtime, mode) in items {
            let folders: Vec<String> = model
                .0
                .iter()
                .filter(|(_, item)| matches!(item.kind, Kind::Directory))
                .map(|(path, _)| path.clone())
                .collect();
            let files: Vec<String> = model
                .0
                .iter()
                .filter(|(_, item)| matches!(item.kind, Kind::File(_)))
                .map(|(path, _)| path.clone())
                .collect();
            let folder = place.get(&folders);
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            let content =
                || (0..bytes).map(|at| fill.wrapping_add((at / 1000).to_le_bytes()[0])).collect::<Vec<u8>>();
            let kind = match kind {
                0 => Kind::Directory,
                2 => Kind::Symlink(format!("../{fill}")),
                // A link must come after its file, in every order in which trees are written here.
                3 if files.iter().any(|file| *file < path) => {
                    Kind::Link(files.iter().find(|file| **file < path).cloned().unwrap_or_default())
                }
                _ => Kind::File(content()),
            };
            let plain = matches!(kind, Kind::Symlink(_));
            // A directory that its owner cannot enter could not be filled or read without root.
            let mode = if plain { 0o777 } else { mode | if matches!(kind, Kind::Directory) { 0o700 } else { 0o400 } };
            let item = Item { kind, mode, mtime, xattrs: if plain { BTreeMap::new() } else { xattrs } };
            model.0.entry(path).or_insert(item);
        }
        model
    })
}

/// A name with bytes that are no text.
pub(crate) fn odd_name() -> &'static OsStr {
    OsStr::from_bytes(b"odd\xff\x01name")
}
