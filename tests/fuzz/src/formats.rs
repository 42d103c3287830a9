//! Frames, names, manifests, records, deltas and bundles: what comes over a network before anything of it is believed.

use std::fmt::Display;
use std::str::FromStr;

use manager_fs::host::{bundle as host_bundle, delta as host_delta};
use proto::bulk::ChunkHead;
use proto::frame::FrameHeader;
use proto::local_greeting::Greeting;
use proto::manifest::{Entry, Manifest, Node, NodeKind, Object};
use proto::name::Target as NamedTarget;
use proto::proof::{PAGE_BYTES, PageRun, PageSet, proof_len, prove, verify};
use proto::record::Metadata;
use proto::relative::Part;
use proto::{ChunkId, GenerationRef, ObjectId, SignedRecord, TreeId, TreePath, bundle, codec, delta, token};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Target;

pub(super) const TARGETS: &[Target] = &[
    ("frame", frame),
    ("chunk", chunk),
    ("names", names),
    ("local_greeting", local_greeting),
    ("manifest", manifest),
    ("record", record),
    ("start_up", start_up),
    ("delta_index", delta_index),
    ("delta_stream", delta_stream),
    ("bundle_index", bundle_index),
    ("bundle_stream", bundle_stream),
    ("patch", patch),
    ("proof", proof),
    ("image", image),
];

/// What is accepted stays what it is: written and read again it is the same. Compared as bytes, since some numbers are not
/// equal to themselves.
pub(super) fn stable<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> bool {
    const MAX: usize = proto::limits::MESSAGE_BYTES_MAX;
    let Ok(value) = codec::decode::<T, MAX>(bytes) else { return false };
    let written = codec::encode(&value).unwrap();
    let again = codec::decode::<T, MAX>(&written).expect("what was written is read");
    assert_eq!(codec::encode(&again).unwrap(), written);
    true
}

fn frame(bytes: &[u8]) -> bool {
    let Ok(Some(header)) = FrameHeader::decode(bytes) else { return false };
    assert_eq!(header.encode(), bytes[..proto::frame::HEADER_BYTES]);
    true
}

fn chunk(bytes: &[u8]) -> bool {
    let Some((head, stored)) = ChunkHead::split(bytes) else { return false };
    assert_eq!([head.encode().as_slice(), stored].concat(), bytes);
    true
}

fn local_greeting(bytes: &[u8]) -> bool {
    let Some(greeting) = Greeting::read(bytes) else { return false };
    assert_eq!(codec::encode(&greeting).unwrap(), bytes);
    true
}

fn names(bytes: &[u8]) -> bool {
    let path = TreePath::parse(bytes);
    if let Ok(path) = &path {
        assert_eq!(path.as_bytes(), bytes);
        assert!(path.components().all(|name| name != b".." && !name.is_empty()));
    }
    let text = String::from_utf8_lossy(bytes);
    let clean = proto::text::lines(&text, 200);
    assert_eq!(proto::text::lines(&clean, 200), clean);
    path.is_ok()
        | read_as_written::<GenerationRef>(&text)
        | read_as_written::<NamedTarget>(&text)
        | read_as_written::<token::Token>(&text)
        | proto::Publishers::parse(&text).is_ok()
}

/// What people type is shown to them so that they can type it again.
fn read_as_written<T: FromStr + Display + PartialEq>(text: &str) -> bool {
    let Ok(value) = text.parse::<T>() else { return false };
    assert!(value.to_string().parse::<T>().is_ok_and(|again| again == value));
    true
}

fn manifest(bytes: &[u8]) -> bool {
    let Ok(manifest) = Manifest::decode(bytes, &TreeId::of(bytes)) else { return false };
    let (written, _) = manifest.encode().unwrap();
    // The ignorable features are not part of the tree.
    assert_eq!((&written[..10], &written[14..]), (&bytes[..10], &bytes[14..]));
    assert_eq!(manifest.link_counts().len(), manifest.nodes.len());
    true
}

fn record(bytes: &[u8]) -> bool {
    let signed = SignedRecord::from_bytes(bytes);
    if let Ok(record) = &signed {
        assert!(record.verify(&[]).is_err(), "believed though nobody is trusted");
    }
    signed.is_ok() | stable::<proto::GenerationRecord>(bytes)
}

fn start_up(bytes: &[u8]) -> bool {
    let Ok(metadata) = codec::decode::<Metadata, { 1 << 20 }>(bytes) else { return false };
    let files = proto::start_up::start_up_files(&metadata, &|path| Some(path.clone()));
    assert!(files.len() <= metadata.elf_files.len() + 1);
    true
}

const CHUNK: u32 = 65_536;

/// A tree of one file of 150,000 bytes in chunks of 64 KiB.
pub(super) fn tree() -> Manifest {
    let content = vec![7_u8; 150_000];
    let chunks = content.chunks(CHUNK as usize).map(ChunkId::of).collect();
    let object = Object { id: ObjectId::of(&content), bytes: 150_000, chunks };
    let node = |kind| Node { mode: 0o755, uid: 0, gid: 0, mtime_s: 0, mtime_ns: 0, xattrs: vec![], kind };
    Manifest {
        chunk_bytes: CHUNK,
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

fn delta_index(bytes: &[u8]) -> bool {
    let Some((length, index)) = bytes.split_first_chunk::<4>() else { return false };
    let part = Part::default();
    let id = TreeId::of(b"");
    let header = delta::Header { from: id, to: id, manifest: part, index: part, frames_bytes: number(length) };
    let tree = tree();
    let Ok(frames) = delta::decode_index(index, &header, &tree, &tree) else { return false };
    for frame in frames {
        let made = frame.plain_bytes(&tree).unwrap();
        assert!(made <= delta::FRAME_PLAIN_BYTES_MAX && frame.recipe.stretch_bytes() <= delta::FRAME_BASE_BYTES_MAX);
    }
    true
}

fn bundle_index(bytes: &[u8]) -> bool {
    let Some(([proofs, length @ ..], index)) = bytes.split_first_chunk::<4>() else { return false };
    let (tree, part) = (tree(), Part::default());
    let header = bundle::Header {
        tree: TreeId::of(b""),
        from: None,
        origin: bundle::Origin::Recorded,
        fast: false,
        manifest: part,
        index: part,
        proofs_bytes: u32::from(*proofs) * 32,
        frames_bytes: number(length),
    };
    let Ok(frames) = bundle::decode_index(index, &header, Some(&tree), &tree) else { return false };
    for frame in frames {
        let (made, _) = frame.sizes(&tree).unwrap();
        assert!(made <= bundle::FRAME_PLAIN_BYTES_MAX);
    }
    true
}

/// Stored and plain length, of 16 bits each.
fn part(sizes: &[u8], at: usize) -> Part {
    let size = |at: usize| u32::from(sizes[at]) << 8 | u32::from(sizes[at + 1]);
    Part { stored_bytes: size(at), plain_bytes: size(at + 2) }
}

/// Of [`tree`] everything is sevens.
fn read_old(_: &Object, _: u64, into: &mut [u8]) -> std::io::Result<()> {
    into.fill(7);
    Ok(())
}

/// The header is right, so that what lies behind it is reached; all else is hostile.
fn delta_stream(bytes: &[u8]) -> bool {
    let (old, id) = tree().encode().unwrap();
    let mut reader = host_delta::Reader::new(id, id, old).unwrap();
    let Some((sizes, rest)) = bytes.split_first_chunk::<10>() else { return false };
    let frames_bytes = number(&sizes[8..]);
    reader.push(
        &delta::Header { from: id, to: id, manifest: part(sizes, 0), index: part(sizes, 4), frames_bytes }.encode(),
    );
    let (tree, mut chunks) = (tree(), 0);
    for piece in rest.chunks(97) {
        reader.push(piece);
        while let Ok(Some(arrived)) = reader.arrived() {
            match arrived {
                host_delta::Arrived::Frame(frame, stored) => {
                    let made = host_delta::make(&frame, &stored, (&tree, &tree), &mut read_old, &mut |made| {
                        let bytes = made.object.chunk_len(made.index, CHUNK).unwrap();
                        assert_eq!(made.plain.len() as u64, u64::from(bytes));
                        chunks += 1;
                    });
                    drop(made);
                }
                host_delta::Arrived::End => return chunks > 0,
                host_delta::Arrived::Manifest(_) => {}
            }
        }
    }
    false
}

fn bundle_stream(bytes: &[u8]) -> bool {
    let (old, id) = tree().encode().unwrap();
    let old = host_bundle::OldTree::new(id, old).unwrap();
    let mut reader = host_bundle::Reader::new(Some(old), Some(tree()));
    let Some((sizes, rest)) = bytes.split_first_chunk::<7>() else { return false };
    let header = bundle::Header {
        tree: id,
        from: Some(id),
        origin: bundle::Origin::Recorded,
        fast: false,
        manifest: Part::default(),
        index: part(sizes, 0),
        proofs_bytes: u32::from(sizes[4]) * 32,
        frames_bytes: number(&sizes[5..]),
    };
    reader.push(&header.encode());
    let mut parts = 0;
    for piece in rest.chunks(97) {
        reader.push(piece);
        while let Ok(Some(arrived)) = reader.arrived() {
            match arrived {
                host_bundle::Arrived::Frame(frame, stored) => {
                    let made = reader.make(&frame, &stored, &mut read_old, &mut |object, chunk, pages, plain| {
                        let bytes = object.chunk_len(chunk, CHUNK).unwrap();
                        assert_eq!(plain.len() as u64, u64::from(pages.bytes(bytes)));
                        parts += 1;
                    });
                    drop(made);
                }
                host_bundle::Arrived::End => return parts > 0,
                _ => {}
            }
        }
    }
    false
}

/// What patches lie over.
pub(super) fn patch_base() -> Vec<u8> {
    (0..4096_u32).map(|n| ((n * 31) >> 3).to_le_bytes()[0]).collect()
}

fn patch(bytes: &[u8]) -> bool {
    let Some((sizes, stored)) = bytes.split_first_chunk::<6>() else { return false };
    let base = patch_base();
    let literals_bytes = usize::from(sizes[0]).min(stored.len());
    let part = |stored: usize, plain: &[u8]| Part {
        stored_bytes: proto::width::count(stored),
        plain_bytes: proto::width::count(number(plain)),
    };
    let patch = part(stored.len() - literals_bytes, &sizes[1..3]);
    let literals = part(literals_bytes, &sizes[3..5]);
    let wanted = usize::from(sizes[5]) * 16;
    let made = manager_fs::manager::fuzzing::patch(&base, patch, literals, stored, wanted);
    made.is_some_and(|made| {
        assert_eq!(made.len(), wanted);
        true
    })
}

/// Length of a chunk (16 bits), how many runs, the runs (16 bits each), and then hostile values and pages.
fn proof(bytes: &[u8]) -> bool {
    let Some(([high, low, count], rest)) = bytes.split_first_chunk::<3>() else { return false };
    let chunk_bytes = (u32::from(*high) << 8 | u32::from(*low)) * 16 + 1;
    let Some((runs, rest)) = rest.split_at_checked(usize::from(count % 8) * 2) else { return false };
    let run = |pair: &[u8; 2]| PageRun { first: u16::from(pair[0]), count: u16::from(pair[1]) };
    let runs: Vec<PageRun> = runs.as_chunks::<2>().0.iter().map(run).collect();
    let Some(pages) = PageSet::of_runs(&runs, chunk_bytes) else { return false };
    assert_eq!(pages.runs(), runs);
    let chunk: Vec<u8> = (0..chunk_bytes).map(|n| ((n * 31) >> 3).to_le_bytes()[0]).collect();
    let id = ChunkId::of(&chunk);
    let pieces = chunk.chunks(PAGE_BYTES as usize).enumerate();
    let plain: Vec<u8> = pieces
        .filter(|(at, _)| pages.contains(proto::width::count(*at)))
        .flat_map(|(_, bytes)| bytes.iter().copied())
        .collect();
    let proof = prove(&chunk, &pages);
    assert_eq!(proof.len(), proof_len(chunk_bytes, &pages));
    assert_eq!(verify(chunk_bytes, &pages, &plain, &proof), Some(id));
    // What is hostile proves the chunk only by being what it should.
    let (values, _) = rest.as_chunks::<32>();
    assert!(verify(chunk_bytes, &pages, &plain, values) != Some(id) || values == proof);
    assert!(verify(chunk_bytes, &pages, rest, &proof) != Some(id) || rest == plain);
    true
}

/// The image of the metadata of any tree that is well-formed.
fn image(bytes: &[u8]) -> bool {
    Manifest::decode(bytes, &TreeId::of(bytes)).is_ok_and(|manifest| manager_fs::host::fuzzing::image(&manifest))
}
