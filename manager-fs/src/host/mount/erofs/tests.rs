//! Images as the kernel shows them, against the manifest and against a layer that was made file by file.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proto::manifest::{Entry, Manifest, Node, NodeKind, Object, Xattr};
use proto::width;
use proto::{ObjectId, TreePath};

use super::super::meta::{Flavour, build};
use super::super::overlay;
use super::*;

const ACL: &[u8] = &[
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 4,
    0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
];
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// What a path is to be.
#[derive(Debug, Clone)]
enum Item {
    Directory,
    Empty,
    File(u64),
    Symlink(Vec<u8>),
    /// Another name of an earlier node, counted from the newest.
    Link(usize),
}

#[derive(Debug, Clone)]
struct Attributes {
    mode: u32,
    owner: (u32, u32),
    time: (i64, u32),
    xattrs: Vec<Xattr>,
}

fn assemble(items: Vec<(Vec<Vec<u8>>, Item, Attributes)>) -> Manifest {
    let plain = Attributes { mode: 0o755, owner: (0, 0), time: (1, 2), xattrs: Vec::new() };
    let mut paths: BTreeMap<TreePath, (Item, Attributes)> = BTreeMap::new();
    paths.insert(TreePath::root(), (Item::Directory, plain.clone()));
    for (names, item, attributes) in items {
        let Ok(path) = TreePath::parse(&names.join(&b'/')) else { continue };
        let mut above = path.parent();
        while let Some(path) = above {
            let place = paths.entry(path.clone()).or_insert_with(|| (Item::Directory, plain.clone()));
            place.0 = Item::Directory;
            above = path.parent();
        }
        paths.entry(path).or_insert((item, attributes));
    }
    let mut manifest = Manifest { chunk_bytes: 4096, objects: vec![], nodes: vec![], entries: vec![] };
    let mut linkable: Vec<u32> = Vec::new();
    let mut objects = BTreeMap::new();
    for (path, (item, attributes)) in paths {
        let next = width::count(manifest.nodes.len());
        let mut xattrs = attributes.xattrs;
        let kind = match item {
            Item::Link(back) if !linkable.is_empty() => {
                let node = linkable[linkable.len() - 1 - back % linkable.len()];
                manifest.entries.push(Entry { path, node });
                continue;
            }
            Item::Directory => NodeKind::Directory,
            Item::Empty | Item::Link(_) => NodeKind::EmptyFile,
            Item::Symlink(target) => NodeKind::Symlink(target),
            Item::File(bytes) => {
                let id = ObjectId::of(&bytes.to_le_bytes());
                objects.insert(id, bytes);
                NodeKind::File(id)
            }
        };
        match kind {
            NodeKind::Directory => xattrs.retain(|xattr| xattr.name != b"security.capability"),
            NodeKind::Symlink(_) => xattrs.clear(),
            _ => xattrs.retain(|xattr| xattr.name != b"system.posix_acl_default"),
        }
        let acl = xattrs.iter().any(|xattr| xattr.name == b"system.posix_acl_access");
        // An ACL and the mode say the same.
        let mode = if acl { attributes.mode & 0o7000 | 0o640 } else { attributes.mode };
        if kind != NodeKind::Directory {
            linkable.push(next);
        }
        let ((uid, gid), (mtime_s, mtime_ns)) = (attributes.owner, attributes.time);
        manifest.nodes.push(Node { mode, uid, gid, mtime_s, mtime_ns, xattrs, kind });
        manifest.entries.push(Entry { path, node: next });
    }
    manifest.objects = objects.into_iter().map(|(id, bytes)| Object { id, bytes, chunks: vec![] }).collect();
    manifest
}

fn any_name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("no name has it", |byte| *byte != 0 && *byte != b'/');
    prop_oneof![
        4 => prop::collection::vec(byte.clone(), 1..6),
        4 => "[a-c!.~-]{1,3}".prop_map(String::into_bytes),
        1 => prop::collection::vec(byte, 200..256),
    ]
}

fn any_xattrs() -> impl Strategy<Value = Vec<Xattr>> {
    let user = (
        "user\\.[a-d]{1,3}",
        prop_oneof![
            3 => prop::collection::vec(0..3_u8, 0..3),
            2 => prop::collection::vec(any::<u8>(), 0..200),
            1 => prop::collection::vec(any::<u8>(), 900..9000),
        ],
    );
    let one = prop_oneof![
        6 => user,
        1 => Just(("security.capability".to_owned(), CAPABILITY.to_vec())),
        1 => Just(("system.posix_acl_access".to_owned(), ACL.to_vec())),
        1 => Just(("system.posix_acl_default".to_owned(), ACL.to_vec())),
    ];
    prop::collection::btree_map(one.clone().prop_map(|(name, _)| name), one.prop_map(|(_, value)| value), 0..5)
        .prop_map(|xattrs| {
            let right = |name: String, value: Vec<u8>| match name.as_str() {
                "security.capability" => (name, CAPABILITY.to_vec()),
                "system.posix_acl_access" | "system.posix_acl_default" => (name, ACL.to_vec()),
                _ => (name, value),
            };
            let named = xattrs.into_iter().map(|(name, value)| right(name, value));
            named.map(|(name, value)| Xattr { name: name.into_bytes(), value }).collect()
        })
}

fn any_tree() -> impl Strategy<Value = Manifest> {
    let kind = prop_oneof![
        2 => Just(Item::Directory),
        1 => Just(Item::Empty),
        3 => prop_oneof![1..10_000_u64, Just(4096), Just(64 << 30), 1..=64_u64 << 30].prop_map(Item::File),
        2 => prop_oneof![
            3 => prop::collection::vec(1..=255_u8, 1..60),
            1 => prop::collection::vec(1..=255_u8, 3900..4096),
        ].prop_map(Item::Symlink),
        2 => any::<usize>().prop_map(Item::Link),
    ];
    let time = (prop_oneof![any::<i64>(), -100..100_i64, Just(1_700_000_000)], 0..1_000_000_000_u32);
    let attributes = (0..0o10000_u32, (0..u32::MAX, 0..u32::MAX), time, any_xattrs());
    let attributes =
        attributes.prop_map(|(mode, owner, time, xattrs)| Attributes { mode, owner, time, xattrs }).boxed();
    let item = (prop::collection::vec(any_name(), 1..5), kind, attributes.clone());
    let crowd = prop_oneof![4 => Just(0), 1 => 300..4000_usize];
    let deep = prop_oneof![4 => Just(0), 1 => 1..120_usize];
    (prop::collection::vec(item, 0..60), crowd, deep, attributes).prop_map(|(mut items, crowd, deep, attributes)| {
        for n in 0..crowd {
            // Names of all lengths, in no order.
            let name = format!("{}{}", n * 7919 % 10_007, "x".repeat(n % 97)).into_bytes();
            items.push((vec![b"crowd".to_vec(), name], Item::File(n as u64 + 1), attributes.clone()));
        }
        if deep > 0 {
            items.push((vec![b"d".to_vec(); deep], Item::Empty, attributes));
        }
        assemble(items)
    })
}

/// One path as it is seen: kind, mode, owners, size, links, time, target, attributes, and the first path of the inode.
type Seen = (PathBuf, String, Vec<(String, Vec<u8>)>, PathBuf);

fn line(kind: &str, mode: u32, owner: (u32, u32), size: u64, links: u64, time: (i64, i64)) -> String {
    format!("{kind} {mode:o} {owner:?} size {size} links {links} {time:?}")
}

fn seen(root: &Path) -> Vec<Seen> {
    fn walk(root: &Path, path: &Path, first: &mut BTreeMap<u64, PathBuf>, into: &mut Vec<Seen>) {
        let found = std::fs::symlink_metadata(path).unwrap();
        let relative = path.strip_prefix(root).unwrap().to_owned();
        let (kind, size) = match found.file_type() {
            kind if kind.is_dir() => ("directory".to_owned(), 0),
            kind if kind.is_symlink() => {
                (format!("link {:?}", std::fs::read_link(path).unwrap().as_os_str().as_bytes()), found.size())
            }
            _ => ("file".to_owned(), found.size()),
        };
        let (mode, owner) = (found.mode() & 0o7777, (found.uid(), found.gid()));
        let time = (found.mtime(), found.mtime_nsec());
        let first_path = first.entry(found.ino()).or_insert_with(|| relative.clone()).clone();
        into.push((relative, line(&kind, mode, owner, size, found.nlink(), time), xattrs(path), first_path));
        if found.is_dir() {
            let mut names: Vec<_> =
                std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            for name in &names {
                walk(root, &path.join(name), first, into);
                let absent = [name.as_bytes(), b"\x01"].concat();
                let absent = path.join(std::ffi::OsStr::from_bytes(&absent[..absent.len().min(255)]));
                assert!(absent.symlink_metadata().is_err() || names.iter().any(|name| absent.ends_with(name)));
            }
        }
    }
    let mut all = Vec::new();
    walk(root, root, &mut BTreeMap::new(), &mut all);
    all.sort();
    all
}

fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut all: Vec<_> = names
        .map(|name| {
            let mut value = vec![0; 65536];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (String::from_utf8_lossy(name).into_owned(), value[..len].to_vec())
        })
        .collect();
    all.sort();
    all
}

/// What is to be seen, by the manifest alone.
fn expected(manifest: &Manifest) -> Vec<Seen> {
    let mut links = manifest.link_counts().iter().map(|count| u64::from(*count)).collect::<Vec<_>>();
    let mut first: BTreeMap<u32, PathBuf> = BTreeMap::new();
    for entry in &manifest.entries {
        first.entry(entry.node).or_insert_with(|| entry.path.as_path().to_owned());
        if manifest.node(entry).kind == NodeKind::Directory {
            links[entry.node as usize] += 1;
            if let Some(parent) = entry.path.parent() {
                links[manifest.entry(&parent).unwrap().node as usize] += 1;
            }
        }
    }
    let mut all: Vec<_> = manifest
        .entries
        .iter()
        .map(|entry| {
            let node = manifest.node(entry);
            let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
            let mut xattrs: Vec<_> = node.xattrs.iter().map(|x| (text(&x.name), x.value.clone())).collect();
            let (kind, mode, size) = match &node.kind {
                NodeKind::Directory => ("directory".to_owned(), node.mode, 0),
                NodeKind::Symlink(target) => (format!("link {target:?}"), 0o777, target.len() as u64),
                NodeKind::EmptyFile => ("file".to_owned(), node.mode, 0),
                NodeKind::File(id) => {
                    let (shard, rest) = id.to_shard();
                    xattrs.push(("trusted.overlay.metacopy".into(), vec![]));
                    xattrs.push(("trusted.overlay.redirect".into(), format!("/{shard}/{rest}").into_bytes()));
                    ("file".to_owned(), node.mode, manifest.object(id).unwrap().bytes)
                }
            };
            xattrs.sort();
            let time = (node.mtime_s, i64::from(node.mtime_ns));
            let line = line(&kind, mode, (node.uid, node.gid), size, links[entry.node as usize], time);
            (entry.path.as_path().to_owned(), line, xattrs, first[&entry.node].clone())
        })
        .collect();
    all.sort();
    all
}

/// Directories at which something is mounted until the end.
struct Mounted(tempfile::TempDir);

impl Drop for Mounted {
    fn drop(&mut self) {
        assert!(overlay::unmount_unused(self.0.path()).unwrap() || std::thread::panicking());
    }
}

fn mount(manifest: &Manifest) -> Mounted {
    let plan = Plan::new(manifest).unwrap();
    let mut file = overlay::memory_file().unwrap();
    plan.write(std::io::BufWriter::new(&mut file)).unwrap();
    assert_eq!(file.metadata().unwrap().len(), plan.bytes());
    let dir = tempfile::tempdir().unwrap();
    overlay::mount_image(file.as_fd(), dir.path()).unwrap();
    Mounted(dir)
}

/// Images are mounted by root alone; without it what the kernel makes of them goes onto the list of what did not run.
fn may_mount() -> bool {
    ::tests::needs::root()
}

fn compare(manifest: &Manifest) {
    let image = mount(manifest);
    let want = expected(manifest);
    for (got, want) in seen(image.0.path()).iter().zip(&want) {
        assert_eq!(got, want);
    }
    assert_eq!(seen(image.0.path()).len(), want.len());
    let dir = tempfile::tempdir().unwrap();
    overlay::mount_meta(dir.path(), 1_000_000).unwrap();
    let tmpfs = Mounted(dir);
    let by_file = tmpfs.0.path().join("tree");
    build(&by_file, manifest, Some(Flavour::Trusted), &mut |_, _| Ok(())).unwrap();
    for (got, want) in seen(&by_file).iter().zip(&want) {
        assert_eq!(got, want, "made file by file");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_kernel_shows_exactly_the_manifest(manifest in any_tree()) {
        if may_mount() {
            compare(&manifest);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    /// No order of nodes and entries that validation would refuse makes the writer do worse than say so.
    #[test]
    fn a_manifest_that_was_not_validated_is_an_error_at_most(
        mut manifest in any_tree(),
        entry_swaps in prop::collection::vec(any::<(usize, usize)>(), 0..3),
        nodes in prop::collection::vec(any::<(usize, u32)>(), 0..3),
        drops in prop::collection::vec(any::<usize>(), 0..3),
    ) {
        let count = manifest.entries.len();
        for (a, b) in entry_swaps {
            manifest.entries.swap(a % count, b % count);
        }
        for (at, node) in nodes {
            manifest.entries[at % count].node = node % (width::count(manifest.nodes.len()) + 1);
        }
        for at in drops {
            let at = at % manifest.entries.len().max(1);
            if at < manifest.entries.len() { manifest.entries.remove(at); }
        }
        if let Ok(plan) = Plan::new(&manifest) {
            let mut bytes = Vec::new();
            let written = plan.write(&mut bytes);
            prop_assert!(written.is_err() || bytes.len() as u64 == plan.bytes());
        }
    }
}

fn plain(xattrs: Vec<Xattr>) -> Attributes {
    Attributes { mode: 0o644, owner: (1, 2), time: (-1, 999_999_999), xattrs }
}

#[test]
fn more_attributes_than_an_inode_can_share_are_shown() {
    let xattr =
        |n: usize, bytes| Xattr { name: format!("user.{n:03}").into_bytes(), value: vec![n.to_le_bytes()[0]; bytes] };
    let many: Vec<_> = (0..256).map(|n| xattr(n, 9)).collect();
    let long: Vec<_> = (0..5).map(|n| xattr(n, 65_000)).collect();
    let item = |name: &str, xattrs: &[Xattr]| (vec![name.as_bytes().to_vec()], Item::File(5), plain(xattrs.to_vec()));
    let manifest = assemble(vec![item("a", &many), item("b", &many), item("c", &long)]);
    if may_mount() {
        compare(&manifest);
    }
}

#[test]
fn what_the_format_cannot_hold_is_said() {
    let value = vec![0; 65_536];
    let xattr = Xattr { name: b"user.long".to_vec(), value };
    let manifest = assemble(vec![(vec![b"a".to_vec()], Item::Empty, plain(vec![xattr]))]);
    assert!(matches!(Plan::new(&manifest), Err(ImageError::DoesNotFit { .. })));
    let xattr = Xattr { name: b"user.overlay.redirect".to_vec(), value: b"/00/secret".to_vec() };
    let manifest = assemble(vec![(vec![b"a".to_vec()], Item::Empty, plain(vec![xattr]))]);
    assert!(matches!(Plan::new(&manifest), Err(ImageError::Malformed { .. })));
}

#[test]
fn a_large_tree_stays_small() {
    let file = |n: u64| {
        (vec![format!("{:02}", n % 50).into_bytes(), format!("{n}").into_bytes()], Item::File(n + 1), plain(vec![]))
    };
    let manifest = assemble((0..10_000).map(file).collect());
    let bytes = Plan::new(&manifest).unwrap().bytes() / 10_000;
    assert!(bytes < 220, "{bytes} bytes an entry");
}
