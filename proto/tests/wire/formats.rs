//! Samples of what is not one message: frames, chunks, manifest, records, deltas, bundles.

use ed25519_dalek::SigningKey;
use proto::adapter::{Adapter, Drain, DrainSignal, Handover, Listen, ListenAddress, Variable};
use proto::bulk::{ChunkHead, Encoding};
use proto::delta::Run;
use proto::frame::{FrameHeader, FrameKind};
use proto::health::{HealthCheck, HealthProbe};
use proto::manifest::{Entry, Manifest, Node, NodeKind, Object, Xattr};
use proto::proof::PageRun;
use proto::record::{ElfFile, HealthContract, Metadata, SchemaRange, Script};
use proto::relative::{Part, Recipe, Stretch};
use proto::{ChunkId, GenerationRecord, ObjectId, SignedRecord, TreeId, TreePath, bundle, codec, delta};

use serde::{Deserialize, Serialize};

use crate::Case;
use crate::annotate::{self, Line};
use crate::samples;

pub(crate) fn cases() -> Vec<Case> {
    let case = |document, name: &str, bytes: &[u8], read: fn(&[u8]) -> Vec<Line>| Case {
        document,
        name: name.to_owned(),
        fresh: read(bytes),
        read,
    };
    let frame = FrameHeader { kind: FrameKind::Request, request: 7, length: 44 };
    let chunk = ChunkHead { sequence: 3, encoding: Encoding::Zstd, plain_bytes: 262_144 };
    let signed = SignedRecord::sign(&record(), &key()).unwrap();
    let adapted = SignedRecord::sign(&adapted_record(), &key()).unwrap();
    let (manifest, _) = manifest().encode().unwrap();
    vec![
        case("control-protocol.md", "frame", &frame.encode(), read_frame),
        case("control-protocol.md", "chunk", &[&chunk.encode()[..], b"..."].concat(), read_chunk),
        case("tree-format.md", "manifest", &manifest, read_manifest),
        case("tree-format.md", "generation record", &codec::encode(&record()).unwrap(), read_record),
        case("tree-format.md", "signed record", &signed.to_bytes().unwrap(), read_signed),
        case("tree-format.md", "adapter and health check", &codec::encode(&supplement()).unwrap(), read_supplement),
        case("tree-format.md", "signed record of format 2", &adapted.to_bytes().unwrap(), read_adapted),
        case("delta-format.md", "delta header", &delta_header().encode(), read_delta),
        case("delta-format.md", "delta index", &delta_index(), read_delta_index),
        case("bundle-format.md", "bundle header", &bundle_header().encode(), read_bundle),
        case("bundle-format.md", "bundle index", &bundle_index(), read_bundle_index),
    ]
}

/// Fixed fields, one after another.
fn fixed(bytes: &[u8], fields: &[(usize, &str)]) -> Vec<Line> {
    let mut rest = bytes;
    let lines = fields.iter().map(|(count, label)| {
        let (field, after) = rest.split_at(*count);
        rest = after;
        Line::new(field, label)
    });
    let lines: Vec<Line> = lines.collect();
    assert!(rest.is_empty(), "{} bytes are nobody's", rest.len());
    lines
}

fn read_frame(bytes: &[u8]) -> Vec<Line> {
    let header = FrameHeader::decode(bytes).unwrap().unwrap();
    fixed(
        &header.encode(),
        &[
            (3, "magic \"MFS\""),
            (1, "framing version u8"),
            (1, "kind u8: Request"),
            (1, "flags u8"),
            (2, "reserved u16"),
            (8, "request u64"),
            (4, "length of the body u32"),
        ],
    )
}

fn read_chunk(bytes: &[u8]) -> Vec<Line> {
    let (head, stored) = ChunkHead::split(bytes).unwrap();
    let fields = [(4, "sequence u32"), (1, "encoding u8: zstd"), (4, "plain length u32")];
    let mut lines = fixed(&head.encode(), &fields);
    lines.push(Line::new(stored, "stored bytes, to the end of the frame"));
    lines
}

fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).unwrap()
}

/// Root, an empty file, `run` of one chunk with an attribute, a second name for it, and a link.
fn manifest() -> Manifest {
    let content = b"#!/bin/sh\n";
    let object = Object { id: ObjectId::of(content), bytes: 10, chunks: vec![ChunkId::of(content)] };
    let node = |mode, kind| Node { mode, uid: 0, gid: 0, mtime_s: 1_700_000_000, mtime_ns: 5, xattrs: vec![], kind };
    let attribute = Xattr { name: b"user.a".to_vec(), value: b"1".to_vec() };
    Manifest {
        chunk_bytes: 65_536,
        nodes: vec![
            node(0o755, NodeKind::Directory),
            node(0o644, NodeKind::EmptyFile),
            node(0o777, NodeKind::Symlink(b"run".to_vec())),
            Node { xattrs: vec![attribute], ..node(0o755, NodeKind::File(object.id)) },
        ],
        entries: [("", 0), ("empty", 1), ("link", 2), ("run", 3), ("same", 3)]
            .map(|(text, node)| Entry { path: path(text), node })
            .to_vec(),
        objects: vec![object],
    }
}

fn read_manifest(bytes: &[u8]) -> Vec<Line> {
    let manifest = Manifest::decode(bytes, &TreeId::of(bytes)).unwrap();
    let header = &manifest.encode().unwrap().0[..18];
    let fields = [(8, "magic \"MFSTREE\\0\""), (2, "version u16"), (4, "ignorable u32"), (4, "refuse u32")];
    let mut lines = fixed(header, &fields);
    lines.extend(annotate::lines(&manifest));
    lines
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn record() -> GenerationRecord {
    GenerationRecord {
        product: samples::product(),
        version: samples::version(),
        sequence: 7,
        tree: samples::tree(),
        manifest_bytes: 400,
        published_unix_ms: 1_700_000_000_000,
        metadata: Metadata {
            entry_point: Some(path("bin/agent")),
            arguments: vec!["--role".into(), "data".into()],
            architecture: Some("x86_64".into()),
            elf_files: vec![ElfFile {
                path: path("bin/agent"),
                architecture: "x86_64".into(),
                kind: "executable".into(),
                interpreter: Some("/lib64/ld.so".into()),
                needed: vec!["libc.so.6".into()],
                soname: None,
                runpath: Some("$ORIGIN/../lib".into()),
                build_id: Some("ab12".into()),
                bytes: 4096,
            }],
            scripts: vec![Script { path: path("bin/tool"), interpreter: "/bin/sh".into() }],
            entry_count: 4,
            file_count: 2,
            content_bytes: 4106,
            object_bytes: 4106,
            state_schemas: SchemaRange { min: 1, max: 2 },
            drain_deadline_ms: 60_000,
            health: HealthContract { probation_ms: 10_000, check: None },
            adapter: None,
        },
    }
}

fn read_record(bytes: &[u8]) -> Vec<Line> {
    annotate::lines(&codec::decode::<GenerationRecord, { 8 << 20 }>(bytes).unwrap())
}

fn read_signed(bytes: &[u8]) -> Vec<Line> {
    let signed = SignedRecord::from_bytes(bytes).unwrap();
    assert_eq!(signed.verify(&[key().verifying_key().into()]).unwrap(), record(), "the sample's signature");
    let mut lines = vec![Line::new(&signed.to_bytes().unwrap()[..8], "magic \"MFSREC\\0\\x01\"")];
    lines.extend(annotate::lines(&signed));
    lines
}

/// What stands behind the record in format 2.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Supplement {
    adapter: Option<Adapter>,
    health_check: Option<HealthCheck>,
}

fn supplement() -> Supplement {
    let at = "0.0.0.0:80".parse().unwrap();
    Supplement {
        adapter: Some(Adapter {
            handover: Handover::Sockets,
            listen: vec![Listen { name: "http".into(), at: ListenAddress::Tcp(at) }],
            drain: Drain { signal: DrainSignal::Quit, deadline_ms: 30_000 },
            environment: vec![Variable { name: "NGINX".into(), value: "3;".into() }],
        }),
        health_check: Some(HealthCheck {
            probe: HealthProbe::Http { address: "127.0.0.1:8081".parse().unwrap(), path: "/".into() },
            interval_ms: 1000,
            timeout_ms: 2000,
        }),
    }
}

fn read_supplement(bytes: &[u8]) -> Vec<Line> {
    let read: Supplement = codec::decode::<_, { 8 << 20 }>(bytes).unwrap();
    assert_eq!(read, supplement());
    annotate::lines(&read)
}

fn adapted_record() -> GenerationRecord {
    let (plain, more) = (record(), supplement());
    let health = HealthContract { check: more.health_check, ..plain.metadata.health.clone() };
    GenerationRecord { metadata: Metadata { adapter: more.adapter, health, ..plain.metadata }, ..plain }
}

fn read_adapted(bytes: &[u8]) -> Vec<Line> {
    let signed = SignedRecord::from_bytes(bytes).unwrap();
    assert_eq!(signed.verify(&[key().verifying_key().into()]).unwrap(), adapted_record(), "the sample's signature");
    let mut lines = vec![Line::new(&signed.to_bytes().unwrap()[..8], "magic \"MFSREC\\0\\x02\"")];
    lines.extend(annotate::lines(&signed));
    lines
}

fn part(at: u32) -> Part {
    Part { stored_bytes: at, plain_bytes: at + 1 }
}

fn recipe() -> Recipe {
    let stretches = vec![Stretch { object: 0, offset: 0, bytes: 10 }];
    Recipe { stretches, patch: part(12), literals: Part::default() }
}

fn delta_header() -> delta::Header {
    let (from, to) = (TreeId::from_bytes([1; 32]), samples::tree());
    delta::Header { from, to, manifest: part(10), index: part(20), frames_bytes: 12 }
}

fn read_delta(bytes: &[u8]) -> Vec<Line> {
    let header = delta::Header::decode(bytes.try_into().unwrap()).unwrap();
    fixed(
        &header.encode(),
        &[
            (8, "magic \"MFSDELT\\0\""),
            (2, "version u16"),
            (4, "ignorable u32"),
            (4, "refuse u32"),
            (32, "from 32 bytes"),
            (32, "to 32 bytes"),
            (4, "manifest: stored length u32"),
            (4, "manifest: plain length u32"),
            (4, "index: stored length u32"),
            (4, "index: plain length u32"),
            (8, "length of all frames u64"),
        ],
    )
}

/// One frame that makes the only chunk of `run` out of the same bytes of the same tree.
fn delta_index() -> Vec<u8> {
    let frame = delta::Frame { makes: vec![Run { object: 0, first: 0, count: 1 }], recipe: recipe() };
    delta::encode_index(&[frame]).unwrap()
}

fn read_delta_index(bytes: &[u8]) -> Vec<Line> {
    let tree = manifest();
    annotate::lines(&delta::decode_index(bytes, &delta_header(), &tree, &tree).unwrap())
}

fn bundle_header() -> bundle::Header {
    bundle::Header {
        tree: samples::tree(),
        from: Some(TreeId::from_bytes([1; 32])),
        origin: bundle::Origin::Guessed,
        fast: false,
        manifest: part(10),
        index: part(20),
        proofs_bytes: 0,
        frames_bytes: 12,
    }
}

fn read_bundle(bytes: &[u8]) -> Vec<Line> {
    let header = bundle::Header::decode(bytes.try_into().unwrap()).unwrap();
    fixed(
        &header.encode(),
        &[
            (8, "magic \"MFSBUND\\0\""),
            (2, "version u16"),
            (4, "ignorable u32: bit 0, guessed; bit 1, fast; bit 2, carried over"),
            (4, "refuse u32"),
            (32, "tree 32 bytes"),
            (32, "from 32 bytes; zeros: nothing"),
            (4, "manifest: stored length u32"),
            (4, "manifest: plain length u32"),
            (4, "index: stored length u32"),
            (4, "index: plain length u32"),
            (4, "length of the proofs u32"),
            (8, "length of all frames u64"),
        ],
    )
}

fn bundle_index() -> Vec<u8> {
    let pages = bundle::Pages { object: 0, chunk: 0, runs: vec![PageRun { first: 0, count: 1 }] };
    bundle::encode_index(&[bundle::Frame { makes: vec![pages], recipe: recipe() }]).unwrap()
}

fn read_bundle_index(bytes: &[u8]) -> Vec<Line> {
    let tree = manifest();
    annotate::lines(&bundle::decode_index(bytes, &bundle_header(), Some(&tree), &tree).unwrap())
}
