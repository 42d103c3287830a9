//! Frames, names, manifests, records, deltas and bundles: what comes over a network before anything of it is believed.

use std::fmt::Debug;

use manager_fs::host::{bundle as host_bundle, delta as host_delta};
use proto::bulk::ChunkHead;
use proto::delta::Part;
use proto::frame::FrameHeader;
use proto::manifest::{Entry, Manifest, Node, NodeKind, Object};
use proto::name::Target as NamedTarget;
use proto::record::Metadata;
use proto::{ChunkId, GenerationRef, ObjectId, SignedRecord, TreeId, TreePath, bundle, codec, delta, token};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Target;

pub const TARGETS: &[Target] = &[
    ("frame", frame),
    ("chunk", chunk),
    ("names", names),
    ("manifest", manifest),
    ("record", record),
    ("start_up", start_up),
    ("delta_index", delta_index),
    ("delta_stream", delta_stream),
    ("bundle_index", bundle_index),
    ("bundle_stream", bundle_stream),
    ("patch", patch),
];

/// What is accepted is within its bounds and stays what it is: written and read again it is the same.
pub fn stable<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    const MAX: usize = proto::limits::MESSAGE_BYTES_MAX;
    if let Ok(value) = codec::decode::<T, MAX>(bytes) {
        let written = codec::encode(&value).unwrap();
        assert_eq!(codec::decode::<T, MAX>(&written).as_ref(), Ok(&value));
    }
}

fn frame(bytes: &[u8]) {
    if let Ok(Some(header)) = FrameHeader::decode(bytes) {
        assert_eq!(header.encode(), bytes[..proto::frame::HEADER_BYTES]);
    }
}

fn chunk(bytes: &[u8]) {
    if let Some((head, stored)) = ChunkHead::split(bytes) {
        assert_eq!([head.encode().as_slice(), stored].concat(), bytes);
    }
}

fn names(bytes: &[u8]) {
    if let Ok(path) = TreePath::parse(bytes) {
        assert_eq!(path.as_bytes(), bytes);
        assert!(path.components().all(|name| name != b".." && !name.is_empty()));
    }
    let text = String::from_utf8_lossy(bytes);
    if let Ok(generation) = text.parse::<GenerationRef>() {
        assert_eq!(generation.to_string().parse(), Ok(generation));
    }
    if let Ok(target) = text.parse::<NamedTarget>() {
        assert_eq!(target.to_string().parse(), Ok(target));
    }
    if let Ok(token) = text.parse::<token::Token>() {
        assert_eq!(token.to_string().parse(), Ok(token));
    }
    drop(proto::Publishers::parse(&text));
    let clean = proto::text::lines(&text, 200);
    assert_eq!(proto::text::lines(&clean, 200), clean);
}

fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::decode(bytes, &TreeId::of(bytes)) {
        let (written, _) = manifest.encode().unwrap();
        // The ignorable features are not part of the tree.
        assert_eq!((&written[..10], &written[14..]), (&bytes[..10], &bytes[14..]));
        assert_eq!(manifest.link_counts().len(), manifest.nodes.len());
    }
}

fn record(bytes: &[u8]) {
    if let Ok(record) = SignedRecord::from_bytes(bytes) {
        assert!(record.verify(&[]).is_err(), "believed though nobody is trusted");
    }
    stable::<proto::GenerationRecord>(bytes);
}

fn start_up(bytes: &[u8]) {
    if let Ok(metadata) = codec::decode::<Metadata, { 1 << 20 }>(bytes) {
        let files = proto::start_up::start_up_files(&metadata, &|path| Some(path.clone()));
        assert!(files.len() <= metadata.elf_files.len() + 1);
    }
}

/// A tree of one file of 150,000 bytes in chunks of 64 KiB.
fn tree() -> Manifest {
    let content = vec![7_u8; 150_000];
    let chunks = content.chunks(65_536).map(ChunkId::of).collect();
    let object = Object { id: ObjectId::of(&content), bytes: 150_000, chunks };
    let node = |kind| Node { mode: 0o755, uid: 0, gid: 0, mtime_s: 0, mtime_ns: 0, xattrs: vec![], kind };
    Manifest {
        chunk_bytes: 65_536,
        nodes: vec![node(NodeKind::Directory), node(NodeKind::File(object.id))],
        entries: [("", 0), ("file", 1)]
            .map(|(path, node)| Entry { path: TreePath::parse(path.as_bytes()).unwrap(), node })
            .to_vec(),
        objects: vec![object],
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

fn delta_index(bytes: &[u8]) {
    let Some((length, index)) = bytes.split_first_chunk::<4>() else { return };
    let part = Part::default();
    let id = TreeId::of(b"");
    let header = delta::Header { from: id, to: id, manifest: part, index: part, frames_bytes: number(length) };
    let tree = tree();
    for frame in delta::decode_index(index, &header, &tree, &tree).unwrap_or_default() {
        let made = frame.plain_bytes(&tree).unwrap();
        assert!(made <= delta::FRAME_PLAIN_BYTES_MAX && frame.base_bytes() <= delta::FRAME_BASE_BYTES_MAX);
    }
}

fn bundle_index(bytes: &[u8]) {
    let Some(([proofs, length @ ..], index)) = bytes.split_first_chunk::<4>() else { return };
    let (tree, part) = (tree(), Part::default());
    let header = bundle::Header {
        tree: TreeId::of(b""),
        from: None,
        guessed: false,
        manifest: part,
        index: part,
        proofs_bytes: u32::from(*proofs) * 32,
        frames_bytes: number(length),
    };
    for frame in bundle::decode_index(index, &header, Some(&tree), &tree).unwrap_or_default() {
        let (made, _) = frame.sizes(&tree).unwrap();
        assert!(made <= bundle::FRAME_PLAIN_BYTES_MAX);
    }
}

/// The header is right, so that what lies behind it is reached; all else is hostile.
fn delta_stream(bytes: &[u8]) {
    let (old, id) = tree().encode().unwrap();
    let mut reader = host_delta::Reader::new(id, id, old).unwrap();
    let Some((sizes, rest)) = bytes.split_first_chunk::<6>() else { return };
    let part = |at: usize| Part { stored_bytes: u32::from(sizes[at]), plain_bytes: u32::from(sizes[at + 1]) };
    let frames_bytes = number(&sizes[4..]);
    reader.push(&delta::Header { from: id, to: id, manifest: part(0), index: part(2), frames_bytes }.encode());
    for piece in rest.chunks(97) {
        reader.push(piece);
        while matches!(reader.arrived(), Ok(Some(_))) {}
    }
}

fn bundle_stream(bytes: &[u8]) {
    let (old, id) = tree().encode().unwrap();
    let old = host_bundle::OldTree::new(id, old).unwrap();
    let mut reader = host_bundle::Reader::new(Some(old), Some(tree()));
    let Some((sizes, rest)) = bytes.split_first_chunk::<5>() else { return };
    let index = Part { stored_bytes: u32::from(sizes[0]), plain_bytes: u32::from(sizes[1]) };
    let header = bundle::Header {
        tree: id,
        from: Some(id),
        guessed: false,
        manifest: Part::default(),
        index,
        proofs_bytes: u32::from(sizes[2]) * 32,
        frames_bytes: number(&sizes[3..]),
    };
    reader.push(&header.encode());
    for piece in rest.chunks(97) {
        reader.push(piece);
        while matches!(reader.arrived(), Ok(Some(_))) {}
    }
}

fn patch(bytes: &[u8]) {
    let Some((sizes, stored)) = bytes.split_first_chunk::<6>() else { return };
    let base: Vec<u8> = (0..4096_u32).map(|n| (n * 31 >> 3) as u8).collect();
    let literals_bytes = usize::from(sizes[0]).min(stored.len());
    let part = |stored: usize, plain: &[u8]| Part { stored_bytes: stored as u32, plain_bytes: number(plain) as u32 };
    let patch = part(stored.len() - literals_bytes, &sizes[1..3]);
    let literals = part(literals_bytes, &sizes[3..5]);
    let wanted = usize::from(sizes[5]) * 16;
    if let Some(made) = manager_fs::manager::fuzzing::patch(&base, patch, literals, stored, wanted) {
        assert_eq!(made.len(), wanted);
    }
}
