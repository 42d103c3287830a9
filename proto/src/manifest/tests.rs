use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::id::TreeId;
use crate::limits::{
    ENTRIES_MAX, FILE_BYTES_MAX, MANIFEST_BYTES_MAX, PATH_BYTES_MAX, TREE_BYTES_MAX, XATTR_BYTES_MAX, XATTRS_MAX,
};

fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).unwrap()
}

fn node(kind: NodeKind) -> Node {
    Node { mode: 0o755, uid: 1000, gid: 100, mtime_s: -2, mtime_ns: 500_000_000, xattrs: Vec::new(), kind }
}

/// A tree with one of everything.
fn sample() -> Manifest {
    let content = b"#!/bin/sh\n";
    let id = ObjectId::of(content);
    let mut file = node(NodeKind::File(id));
    file.xattrs.push(Xattr { name: b"user.a".to_vec(), value: b"1".to_vec() });
    let object = Object { id, bytes: content.len() as u64, chunks: vec![ChunkId::of(content)] };
    let nodes = vec![
        node(NodeKind::Directory),
        node(NodeKind::Directory),
        file,
        node(NodeKind::Symlink(b"run".to_vec())),
        node(NodeKind::EmptyFile),
    ];
    let names = [("", 0), ("bin", 1), ("bin/run", 2), ("bin/sh", 3), ("empty", 4), ("same", 2)];
    let entries = names.into_iter().map(|(name, node)| Entry { path: path(name), node }).collect();
    Manifest { chunk_bytes: 4096, objects: vec![object], nodes, entries }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Format 1, byte for byte as `docs/tree-format.md` has it. It must never change: ids would.
#[test]
fn the_format_is_what_is_written_down() {
    let (bytes, id) = sample().encode().unwrap();
    let object = hex(ObjectId::of(b"#!/bin/sh\n").as_bytes());
    let attributes = "ed010000 e8030000 64000000 feffffffffffffff 0065cd1d";
    let text = [
        // header: magic, version, ignorable, refuse
        "4d46535452454500 0100 00000000 00000000",
        // chunk size; one object: id, bytes, one chunk (of a single chunk the id is the object's)
        "00100000 0100000000000000",
        &object,
        "0a00000000000000 0100000000000000",
        &object,
        // five nodes: attributes, xattrs, kind
        "0500000000000000",
        attributes,
        "0000000000000000 00000000",
        attributes,
        "0000000000000000 00000000",
        attributes,
        "0100000000000000 0600000000000000 757365722e61 0100000000000000 31 02000000",
        &object,
        attributes,
        "0000000000000000 03000000 0300000000000000 72756e",
        attributes,
        "0000000000000000 01000000",
        // six entries: path, node
        "0600000000000000",
        "0000000000000000 00000000",
        "0300000000000000 62696e 01000000",
        "0700000000000000 62696e2f72756e 02000000",
        "0600000000000000 62696e2f7368 03000000",
        "0500000000000000 656d707479 04000000",
        "0400000000000000 73616d65 02000000",
    ]
    .concat()
    .replace(' ', "");
    assert_eq!(hex(&bytes), text);
    assert_eq!(id.to_hex(), "15224225a81ffe328755ccaf227a49ea50807ab29c5903898ca93e57c3a07060");
    assert_eq!(Manifest::decode(&bytes, &id), Ok(sample()));
}

fn decoded(bytes: &[u8]) -> Result<Manifest, ManifestFault> {
    Manifest::decode(bytes, &TreeId::of(bytes))
}

#[test]
fn what_is_not_a_manifest_of_this_format_is_refused() {
    let (bytes, id) = sample().encode().unwrap();
    let other = TreeId::of(b"other");
    assert_eq!(Manifest::decode(&bytes, &other), Err(ManifestFault::WrongId { want: other, got: id }));
    assert_eq!(decoded(b"MFSTREE"), Err(ManifestFault::NotAManifest));
    let with = |at: usize, value: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = value;
        decoded(&bytes)
    };
    assert_eq!(with(0, b'X'), Err(ManifestFault::NotAManifest));
    assert_eq!(with(8, 2), Err(ManifestFault::Newer { version: 2, features: 0 }));
    assert_eq!(with(17, 0x80), Err(ManifestFault::Newer { version: 1, features: 0x8000_0000 }));
    assert_eq!(with(10, 1), Ok(sample()), "what may be ignored is ignored");
    assert!(matches!(decoded(&bytes[..bytes.len() - 1]), Err(ManifestFault::Body(_))));
    assert!(matches!(decoded(&[bytes.as_slice(), &[0]].concat()), Err(ManifestFault::Body(_))));
    // Nine hostile bytes that claim 2^40 objects.
    let hostile = [&bytes[..22], &(1_u64 << 40).to_le_bytes()].concat();
    assert!(matches!(decoded(&hostile), Err(ManifestFault::Body(_))));
}

#[test]
fn every_rule_of_a_tree_is_checked() {
    type Break = fn(&mut Manifest);
    let breaks: [(&str, Break); 27] = [
        ("chunk size", |tree| tree.chunk_bytes = 5000),
        ("chunk size", |tree| tree.chunk_bytes = 2 << 20),
        ("no bytes", |tree| tree.objects[0].bytes = 0),
        ("number of chunks", |tree| tree.objects[0].bytes = 5000),
        ("number of chunks", |tree| tree.objects[0].chunks.clear()),
        ("more than 64 GiB", |tree| tree.objects[0].bytes = u64::MAX),
        ("ascending order of ids", |tree| tree.objects.push(tree.objects[0].clone())),
        ("no file has this object", |tree| {
            let id = ObjectId::from_bytes([0xff; 32]);
            tree.objects.push(Object { id, bytes: 1, chunks: vec![ChunkId::of(b"")] });
        }),
        ("not listed", |tree| tree.objects.clear()),
        ("not the root", |tree| tree.entries.clear()),
        ("not the root", |tree| drop(tree.entries.remove(0))),
        ("ascending order of paths", |tree| tree.entries.swap(2, 3)),
        ("ascending order of paths", |tree| tree.entries[5].path = path("empty")),
        ("node is missing", |tree| tree.entries[5].node = 9),
        ("first use", |tree| {
            tree.entries[1].node = 2;
            tree.entries[2].node = 1;
        }),
        ("no entry leads to", |tree| tree.nodes.push(node(NodeKind::EmptyFile))),
        ("two names", |tree| tree.entries[5].node = 1),
        ("parent is not a directory", |tree| tree.entries[5].path = path("same/way")),
        ("parent is not a directory", |tree| tree.nodes[1].kind = NodeKind::EmptyFile),
        ("root is not a directory", |tree| tree.nodes[0].kind = NodeKind::EmptyFile),
        ("mode", |tree| tree.nodes[0].mode = 0o100_644),
        ("nanoseconds", |tree| tree.nodes[0].mtime_ns = 1_000_000_000),
        ("target", |tree| tree.nodes[3].kind = NodeKind::Symlink(Vec::new())),
        ("target", |tree| tree.nodes[3].kind = NodeKind::Symlink(b"a\0b".to_vec())),
        ("one twice", |tree| {
            let again = tree.nodes[2].xattrs[0].clone();
            tree.nodes[2].xattrs.push(again);
        }),
        ("overlay", |tree| tree.nodes[2].xattrs[0].name = b"user.overlay.redirect".to_vec()),
        ("POSIX ACLs", |tree| tree.nodes[2].xattrs[0].name = b"security.selinux".to_vec()),
    ];
    assert!(sample().encode().is_ok());
    for (wanted, spoil) in breaks {
        let mut tree = sample();
        spoil(&mut tree);
        let error = tree.encode().expect_err(wanted).to_string();
        assert!(error.contains(wanted), "wanted '{wanted}', got: {error}");
        // A reader refuses it as well.
        let body = crate::codec::encode(&tree).unwrap();
        let (header, _) = sample().encode().map(|(bytes, _)| (bytes[..18].to_vec(), ())).unwrap();
        assert!(decoded(&[header, body].concat()).is_err(), "{wanted}");
    }
}

/// The same at the bounds, where the number that a rule has is the last that is taken.
#[test]
fn what_just_fits_is_a_tree() {
    type Fill = fn(&mut Manifest, usize);
    let bounds: [(&str, usize, Fill); 6] = [
        ("attributes", XATTRS_MAX, |tree, count| {
            let name = |n: usize| format!("user.{n:04}").into_bytes();
            tree.nodes[1].xattrs = (0..count).map(|n| Xattr { name: name(n), value: vec![] }).collect();
        }),
        ("bytes of an attribute", XATTR_BYTES_MAX, |tree, bytes| tree.nodes[2].xattrs[0].value = vec![7; bytes]),
        ("bytes of an attribute's name", 255, |tree, bytes| {
            tree.nodes[2].xattrs[0].name = format!("user.{}", "x".repeat(bytes - 5)).into_bytes();
        }),
        ("bytes of a target", PATH_BYTES_MAX, |tree, bytes| {
            tree.nodes[3].kind = NodeKind::Symlink(vec![b'/'; bytes]);
        }),
        ("permission bits", 0o7777, |tree, mode| tree.nodes[0].mode = crate::width::count(mode)),
        ("nanoseconds", 999_999_999, |tree, ns| tree.nodes[0].mtime_ns = crate::width::count(ns)),
    ];
    for (what, max, fill) in bounds {
        let with = |number: usize| {
            let mut tree = sample();
            fill(&mut tree, number);
            tree.encode().is_ok()
        };
        assert!(with(max), "{what}: {max}");
        assert!(!with(max + 1), "{what}: {}", max + 1);
    }
}

#[test]
fn a_chunk_size_is_a_power_of_two_between_its_bounds() {
    let fits = |bytes: u32| {
        let mut tree = sample();
        tree.chunk_bytes = bytes;
        tree.encode().is_ok()
    };
    for power in 0..32 {
        assert_eq!(fits(1 << power), (12..=20).contains(&power), "2^{power}");
        assert!(!fits((1 << power) + 1) || power == 0, "2^{power} + 1");
    }
    assert!(!fits(0) && !fits(6144));
}

/// Files of no real content: the ids do not matter for the sums.
fn of_sizes(sizes: &[u64]) -> Manifest {
    let chunk_bytes = 1 << 20;
    let object = |(n, bytes): (usize, &u64)| {
        let id = ObjectId::from_bytes([n.to_le_bytes()[0]; 32]);
        let count = usize::try_from(bytes.div_ceil(u64::from(chunk_bytes))).unwrap();
        Object { id, bytes: *bytes, chunks: vec![ChunkId::from_bytes([7; 32]); count] }
    };
    let objects: Vec<Object> = sizes.iter().enumerate().map(object).collect();
    let mut nodes = vec![node(NodeKind::Directory)];
    let mut entries = vec![Entry { path: TreePath::root(), node: 0 }];
    for (n, object) in objects.iter().enumerate() {
        nodes.push(node(NodeKind::File(object.id)));
        entries.push(Entry { path: path(&format!("{n:03}")), node: crate::width::count(n) + 1 });
    }
    Manifest { chunk_bytes, objects, nodes, entries }
}

#[test]
fn a_file_and_a_tree_have_a_largest_size() {
    let whole = TREE_BYTES_MAX / FILE_BYTES_MAX;
    let mut sizes = vec![FILE_BYTES_MAX; usize::try_from(whole).unwrap()];
    assert_eq!(of_sizes(&sizes).validate(), Ok(()));
    sizes.push(1);
    let fault = of_sizes(&sizes).validate().unwrap_err().to_string();
    assert!(fault.contains("more than 256 GiB in one tree"), "{fault}");
    let fault = of_sizes(&[FILE_BYTES_MAX + 1]).validate().unwrap_err().to_string();
    assert!(fault.contains("no bytes or more than 64 GiB"), "{fault}");
}

#[test]
fn a_tree_has_a_largest_number_of_entries() {
    let tree = |count: usize| {
        let mut tree = sample();
        let root = tree.entries[0].clone();
        tree.entries = vec![root; count];
        tree.validate().unwrap_err().to_string()
    };
    // The same entry again and again: the number is looked at before the order.
    assert!(tree(ENTRIES_MAX).contains("ascending order"), "{}", tree(ENTRIES_MAX));
    assert!(tree(ENTRIES_MAX + 1).contains("more than a million"), "{}", tree(ENTRIES_MAX + 1));
}

#[test]
fn a_manifest_has_a_largest_size_before_anything_is_read() {
    let id = TreeId::of(b"");
    let zeros = vec![0; MANIFEST_BYTES_MAX + 1];
    assert_eq!(Manifest::decode(&zeros, &id), Err(ManifestFault::TooLarge(MANIFEST_BYTES_MAX + 1)));
}

#[test]
fn attributes_of_other_namespaces_stay_out() {
    let fault = |name: &[u8], bytes: usize| xattr_fault(name, bytes).unwrap_or("kept");
    for name in [
        &b"user.a"[..],
        b"user.",
        b"user.overlay",
        b"user.overlayx",
        b"security.capability",
        b"system.posix_acl_access",
        b"system.posix_acl_default",
    ] {
        assert_eq!(fault(name, 0), "kept", "{}", name.escape_ascii());
    }
    const OVERLAY: &str = "overlay attributes are refused: they could name any object";
    const OTHER: &str = "only user.*, security.capability and POSIX ACLs are kept";
    const NAME: &str = "its name is longer than 255 bytes or has a NUL";
    for (name, wanted) in [
        (&b"user.overlay.redirect"[..], OVERLAY),
        (b"trusted.overlay.redirect", OVERLAY),
        (b"trusted.other", OTHER),
        (b"user", OTHER),
        (b"", OTHER),
        (b"security.capabilities", OTHER),
        (b"security.ima", OTHER),
        (b"system.posix_acl", OTHER),
        (b"user.a\0", NAME),
    ] {
        assert_eq!(fault(name, 0), wanted, "{}", name.escape_ascii());
    }
    assert_eq!(fault(b"user.a", XATTR_BYTES_MAX + 1), "its value is longer than 64 KiB");
}

#[test]
fn things_are_found_in_a_tree() {
    let tree = sample();
    let object = &tree.objects[0];
    assert_eq!((tree.object(&object.id), tree.object_index(&object.id)), (Some(object), Some(0)));
    assert_eq!((tree.object(&ObjectId::of(b"")), tree.object_index(&ObjectId::of(b""))), (None, None));
    for (at, entry) in tree.entries.iter().enumerate() {
        assert_eq!(tree.entry(&entry.path), Some(entry));
        assert_eq!(tree.node(entry), &tree.nodes[[0, 1, 2, 3, 4, 2][at]]);
    }
    assert_eq!(tree.entry(&path("bin/none")), None);
    assert_eq!(tree.link_counts(), [1, 1, 2, 1, 1]);
    assert_eq!(tree.object_bytes(), 10);
    assert_eq!(of_sizes(&[1, 2, 3 << 20]).object_bytes(), 3 + (3 << 20));
}

#[test]
fn the_last_chunk_is_what_is_left() {
    let object = |bytes| Object { id: ObjectId::of(b""), bytes, chunks: vec![] };
    let lengths = |bytes, size| [0, 1, 2, u32::MAX].map(|index| object(bytes).chunk_len(index, size));
    assert_eq!(lengths(1, 4096), [Some(1), None, None, None]);
    assert_eq!(lengths(4096, 4096), [Some(4096), None, None, None]);
    assert_eq!(lengths(4097, 4096), [Some(4096), Some(1), None, None]);
    assert_eq!(lengths(12_287, 4096), [Some(4096), Some(4096), Some(4095), None]);
    assert_eq!(lengths(1 << 62, 1 << 20), [Some(1 << 20); 4], "more than 2^32 are left");
}

#[test]
fn a_file_may_come_before_a_deeper_directory_and_names_may_begin_alike() {
    let directory = || node(NodeKind::Directory);
    let paths = ["", "a", "a/b", "a/b/c", "a/d", "a-b", "ab", "ab/c"];
    let mut tree = Manifest { chunk_bytes: 4096, objects: vec![], nodes: vec![], entries: vec![] };
    for (n, name) in paths.iter().enumerate() {
        tree.nodes.push(directory());
        tree.entries.push(Entry { path: path(name), node: crate::width::count(n) });
    }
    assert_eq!(tree.validate(), Ok(()));
    // Without a directory on the way, whichever it is, what is below it has no place.
    for (at, below) in [(1, "a/b"), (2, "a/b/c"), (6, "ab/c")] {
        let mut other = tree.clone();
        other.nodes[at].kind = NodeKind::EmptyFile;
        let fault = other.validate().unwrap_err().to_string();
        assert_eq!(fault, format!("malformed tree at '{below}': its parent is not a directory"));
    }
}

/// Random well-formed trees.
fn any_tree() -> impl Strategy<Value = Manifest> {
    let item = (
        "[a-c]{1,2}(/[a-c]{1,2}){0,3}",
        prop_oneof![Just(0_u8), Just(1), Just(2), Just(3)],
        0..20_000_u64,
        0..0o10000_u32,
        any::<(u32, u32, i64)>(),
        0..1_000_000_000_u32,
        prop::collection::btree_map("user\\.[a-z]{1,4}", prop::collection::vec(any::<u8>(), 0..9), 0..3),
    );
    prop::collection::vec(item, 0..25).prop_map(|items| {
        let mut kinds: BTreeMap<TreePath, Node> = BTreeMap::from([(TreePath::root(), node(NodeKind::Directory))]);
        let mut objects = BTreeMap::new();
        for (name, kind, bytes, mode, (uid, gid, mtime_s), mtime_ns, xattrs) in items {
            let path = path(&name);
            let kind = match kind {
                0 => NodeKind::Directory,
                1 => NodeKind::Symlink(name.clone().into_bytes()),
                _ if bytes == 0 => NodeKind::EmptyFile,
                _ => {
                    let id = ObjectId::of(&bytes.to_le_bytes());
                    let chunks = (0..bytes.div_ceil(4096)).map(|n| ChunkId::of(&n.to_le_bytes())).collect();
                    objects.insert(id, Object { id, bytes, chunks });
                    NodeKind::File(id)
                }
            };
            let parents: Vec<TreePath> = std::iter::successors(path.parent(), TreePath::parent).collect();
            let directory = |path| kinds.get(path).is_none_or(|node| node.kind == NodeKind::Directory);
            if !parents.iter().all(directory) {
                continue;
            }
            for parent in parents {
                kinds.entry(parent).or_insert_with(|| node(NodeKind::Directory));
            }
            let xattrs = xattrs.into_iter().map(|(name, value)| Xattr { name: name.into_bytes(), value }).collect();
            kinds.entry(path).or_insert(Node { mode, uid, gid, mtime_s, mtime_ns, xattrs, kind });
        }
        let used = |id: &ObjectId| kinds.values().any(|node| node.kind == NodeKind::File(*id));
        let objects = objects.into_values().filter(|object: &Object| used(&object.id)).collect();
        let entries = kinds
            .keys()
            .enumerate()
            .map(|(n, path)| Entry { path: path.clone(), node: crate::width::count(n) })
            .collect();
        Manifest { chunk_bytes: 4096, objects, nodes: kinds.into_values().collect(), entries }
    })
}

proptest! {
    #[test]
    fn trees_round_trip(tree in any_tree()) {
        let (bytes, id) = tree.encode().unwrap();
        prop_assert_eq!(Manifest::decode(&bytes, &id).unwrap(), tree);
    }

    /// Whatever is accepted is the one way to write that tree; nothing panics.
    #[test]
    fn damaged_bytes_are_refused_or_canonical(
        tree in any_tree(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let (mut bytes, _) = tree.encode().unwrap();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
        if let Ok(read) = decoded(&bytes) {
            let (again, _) = read.encode().unwrap();
            // The ignorable features are not part of the tree.
            prop_assert_eq!(&again[..10], &bytes[..10]);
            prop_assert_eq!(&again[14..], &bytes[14..]);
        }
    }
}
