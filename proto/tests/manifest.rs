//! The manifest through its public face: canonical bytes, and what a reader refuses.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;
use proto::manifest::{Entry, Manifest, ManifestFault, Node, NodeKind, Object, Xattr};
use proto::{ChunkId, ObjectId, TreeId, TreePath};

fn node(kind: NodeKind) -> Node {
    Node { mode: 0o644, uid: 0, gid: 0, mtime_s: 1_700_000_000, mtime_ns: 42, xattrs: vec![], kind }
}

fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).unwrap()
}

/// Root, `bin/`, `bin/agent` with one chunk, and `bin/link` to it.
fn sample() -> Manifest {
    let content = b"#!/bin/sh\n";
    let object = Object { id: ObjectId::of(content), bytes: 10, chunks: vec![ChunkId::of(content)] };
    Manifest {
        chunk_bytes: 65_536,
        nodes: vec![
            Node { mode: 0o755, ..node(NodeKind::Directory) },
            Node { mode: 0o755, ..node(NodeKind::Directory) },
            Node { mode: 0o755, ..node(NodeKind::File(object.id)) },
            node(NodeKind::Symlink(b"agent".to_vec())),
        ],
        entries: ["", "bin", "bin/agent", "bin/link"]
            .iter()
            .enumerate()
            .map(|(at, text)| Entry { path: path(text), node: proto::width::count(at) })
            .collect(),
        objects: vec![object],
    }
}

#[test]
fn the_bytes_of_a_known_tree_are_pinned() {
    let (bytes, id) = sample().encode().unwrap();
    assert_eq!(&bytes[..8], b"MFSTREE\0");
    assert_eq!(id.to_hex(), GOLDEN);
    assert_eq!(Manifest::decode(&bytes, &id).unwrap(), sample());
}

/// Changes only with the format's version: every stored tree has an id made this way.
const GOLDEN: &str = "4d24f06ece40f638b30dd219dc56a89a5af4b3a290279cdb9f4c36779464a7f7";

#[test]
fn other_bytes_than_those_of_the_id_are_refused() {
    let (mut bytes, id) = sample().encode().unwrap();
    bytes[40] ^= 1;
    assert!(matches!(Manifest::decode(&bytes, &id), Err(ManifestFault::WrongId { .. })));
}

#[test]
fn a_newer_format_is_named() {
    let (mut bytes, _) = sample().encode().unwrap();
    bytes[8] = 2;
    let id = TreeId::of(&bytes);
    let fault = Manifest::decode(&bytes, &id).unwrap_err();
    assert!(matches!(fault, ManifestFault::Newer { version: 2, .. }), "{fault}");
}

#[test]
fn malformed_trees_are_refused() {
    type Change = fn(&mut Manifest);
    let break_it: [(&str, Change); 14] = [
        ("no root", |m| drop(m.entries.remove(0))),
        ("path twice", |m| m.entries.push(m.entries[3].clone())),
        ("order", |m| m.entries.swap(2, 3)),
        ("parent missing", |m| m.entries[2].path = path("sbin/agent")),
        ("node missing", |m| m.entries[3].node = 9),
        ("node unused", |m| m.nodes.push(node(NodeKind::EmptyFile))),
        ("directory with two names", |m| m.entries.push(Entry { path: path("lib"), node: 1 })),
        ("file below a file", |m| m.entries[3].path = path("bin/agent/x")),
        ("object missing", |m| drop(m.objects.remove(0))),
        ("object unused", |m| m.nodes[2].kind = NodeKind::EmptyFile),
        ("chunk count", |m| m.objects[0].bytes = 65_537),
        ("chunk size", |m| m.chunk_bytes = 65_535),
        ("mode", |m| m.nodes[2].mode = 0o100_644),
        ("overlay xattr", |m| {
            m.nodes[2].xattrs = vec![Xattr { name: b"trusted.overlay.redirect".to_vec(), value: vec![] }];
        }),
    ];
    for (what, change) in break_it {
        let mut manifest = sample();
        change(&mut manifest);
        assert!(manifest.encode().is_err(), "{what}");
    }
}

proptest! {
    #[test]
    fn damaged_bytes_never_panic(at in 0usize..400, value in any::<u8>(), cut in 0usize..400) {
        let (mut bytes, _) = sample().encode().unwrap();
        let at = at % bytes.len();
        bytes[at] = value;
        bytes.truncate(bytes.len().max(cut) - cut.min(bytes.len()));
        let id = TreeId::of(&bytes);
        drop(Manifest::decode(&bytes, &id));
    }

    #[test]
    fn what_decodes_encodes_to_the_same_bytes(at in 18usize..400, value in any::<u8>()) {
        let (mut bytes, _) = sample().encode().unwrap();
        let at = at % bytes.len();
        bytes[at] = value;
        let id = TreeId::of(&bytes);
        if let Ok(manifest) = Manifest::decode(&bytes, &id)
            && at >= 18 {
            prop_assert_eq!(manifest.encode().unwrap(), (bytes, id));
        }
    }
}
