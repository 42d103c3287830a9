//! The delta's fixed bytes, and what a reader of its index refuses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proto::codec::CodecError;
use proto::delta::{
    DeltaFault, Frame, HEADER_BYTES, Header, INDEX_BYTES_MAX, Part, Run, Stretch, decode_index, encode_index, trailer,
};
use proto::limits::MANIFEST_BYTES_MAX;
use proto::manifest::{Entry, Manifest, Node, NodeKind, Object};
use proto::{ChunkId, ObjectId, TreeId, TreePath, width};

fn header() -> Header {
    Header {
        from: TreeId::of(b"old"),
        to: TreeId::of(b"new"),
        manifest: Part { stored_bytes: 1, plain_bytes: 2 },
        index: Part { stored_bytes: 3, plain_bytes: 4 },
        frames_bytes: 30,
    }
}

/// A tree of one file of `bytes` bytes in chunks of 64 KiB; the ids do not matter here.
fn tree(bytes: u64) -> Manifest {
    let chunks = (0..bytes.div_ceil(65_536)).map(|at| ChunkId::of(&at.to_le_bytes())).collect();
    let object = Object { id: ObjectId::of(&bytes.to_le_bytes()), bytes, chunks };
    let node = |kind| Node { mode: 0o755, uid: 0, gid: 0, mtime_s: 0, mtime_ns: 0, xattrs: vec![], kind };
    Manifest {
        chunk_bytes: 65_536,
        nodes: vec![node(NodeKind::Directory), node(NodeKind::File(object.id))],
        entries: vec![
            Entry { path: TreePath::root(), node: 0 },
            Entry { path: TreePath::parse(b"file").unwrap(), node: 1 },
        ],
        objects: vec![object],
    }
}

fn frame() -> Frame {
    Frame {
        makes: vec![Run { object: 0, first: 1, count: 2 }],
        stretches: vec![Stretch { object: 0, offset: 100, bytes: 900 }],
        patch: Part { stored_bytes: 10, plain_bytes: 100 },
        literals: Part { stored_bytes: 20, plain_bytes: 200 },
    }
}

#[test]
fn the_bytes_of_a_header_are_pinned() {
    let bytes = header().encode();
    assert_eq!(bytes.len(), 106);
    assert_eq!(&bytes[..18], b"MFSDELT\0\x01\0\0\0\0\0\0\0\0\0");
    assert_eq!(&bytes[18..50], TreeId::of(b"old").as_bytes());
    assert_eq!(&bytes[82..], [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 30, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(Header::decode(&bytes), Ok(header()));
    assert_eq!(header().delta_bytes(), Some(106 + 1 + 3 + 30 + 40));
    assert_eq!(&trailer([7; 32])[30..], b"\x07\x07MFSDLEND");
}

#[test]
fn other_bytes_and_later_versions_are_refused() {
    let changed = |at: usize, byte: u8| {
        let mut bytes: [u8; HEADER_BYTES] = header().encode();
        bytes[at] = byte;
        Header::decode(&bytes)
    };
    assert_eq!(changed(0, b'X'), Err(DeltaFault::NotADelta));
    assert_eq!(changed(8, 2), Err(DeltaFault::Newer { version: 2, features: 0 }));
    assert_eq!(changed(14, 1), Err(DeltaFault::Newer { version: 1, features: 1 }));
    assert_eq!(changed(10, 1), Ok(header()), "ignorable");
    assert!(matches!(changed(97, 0xff), Err(DeltaFault::Malformed(_))), "an index of 4 GiB");
    for at in 0..8 {
        assert_eq!(changed(at, b'?'), Err(DeltaFault::NotADelta));
    }
    assert_eq!(changed(9, 1), Err(DeltaFault::Newer { version: 257, features: 0 }));
    assert_eq!(changed(17, 0x80), Err(DeltaFault::Newer { version: 1, features: 0x8000_0000 }));
    assert_eq!(changed(105, 1), Ok(Header { frames_bytes: 30 | 1 << 56, ..header() }), "all of its eight bytes");
}

#[test]
fn an_index_names_only_what_there_is() {
    let (old, new) = (tree(1_000), tree(150_000));
    let check = |frames: &[Frame]| {
        let stored = frames.iter().map(Frame::stored_bytes).sum();
        let header = Header { frames_bytes: stored, ..header() };
        decode_index(&encode_index(frames).unwrap(), &header, &old, &new)
    };
    assert_eq!(check(&[frame(), frame()]).unwrap().len(), 2);
    assert_eq!(frame().plain_bytes(&new), Some(150_000 - 65_536));
    type Change = fn(&mut Frame);
    let wrong: [(&str, Change); 14] = [
        ("no run", |frame| frame.makes.clear()),
        ("an object past the end", |frame| frame.makes[0].object = 1),
        ("chunks past the end", |frame| frame.makes[0].count = 3),
        ("no chunks", |frame| frame.makes[0].count = 0),
        ("a sum that wraps", |frame| frame.makes[0].first = u32::MAX),
        ("more than a frame may make", |frame| frame.makes = vec![frame.makes[0]; 13]),
        ("a stretch past the end", |frame| frame.stretches[0].bytes = 901),
        ("a stretch that wraps", |frame| frame.stretches[0].offset = u64::MAX),
        ("too large a base", |frame| frame.stretches = vec![frame.stretches[0]; 2_400]),
        ("an old object past the end", |frame| frame.stretches[0].object = 1),
        ("an empty stretch", |frame| frame.stretches[0].bytes = 0),
        ("too many runs", |frame| frame.makes = vec![Run { object: 0, first: 2, count: 1 }; 4097]),
        ("too many stretches", |frame| frame.stretches = vec![Stretch { bytes: 1, ..frame.stretches[0] }; 4097]),
        ("a bomb", |frame| frame.literals.plain_bytes = 1 << 30),
    ];
    for (what, change) in wrong {
        let mut frame = frame();
        change(&mut frame);
        assert!(matches!(check(&[frame]), Err(DeltaFault::Malformed(_))), "{what}");
    }
    // The same at the bounds.
    let limit = 2 * (150_000 - 65_536) + 1024_u32;
    let right: [(&str, Change); 6] = [
        ("the last chunk alone", |frame| frame.makes = vec![Run { object: 0, first: 2, count: 1 }]),
        ("as many bytes as a frame may make", |frame| frame.makes = vec![frame.makes[0]; 12]),
        ("a stretch to the end", |frame| frame.stretches[0] = Stretch { object: 0, offset: 0, bytes: 1000 }),
        ("as large a base", |frame| {
            let all = Stretch { object: 0, offset: 0, bytes: 1000 };
            frame.stretches = vec![all; 2_097];
        }),
        ("no base", |frame| frame.stretches.clear()),
        ("as many stretches", |frame| frame.stretches = vec![Stretch { bytes: 1, ..frame.stretches[0] }; 4096]),
    ];
    for (what, change) in right {
        let mut frame = frame();
        change(&mut frame);
        assert_eq!(check(&[frame.clone()]), Ok(vec![frame]), "{what}");
    }
    let sizes: [fn(&mut Frame) -> &mut u32; 4] = [
        |frame| &mut frame.patch.plain_bytes,
        |frame| &mut frame.patch.stored_bytes,
        |frame| &mut frame.literals.plain_bytes,
        |frame| &mut frame.literals.stored_bytes,
    ];
    for size in sizes {
        let mut frame = frame();
        *size(&mut frame) = limit;
        assert!(check(&[frame.clone()]).is_ok());
        *size(&mut frame) += 1;
        assert!(matches!(check(&[frame]), Err(DeltaFault::Malformed("a frame's part is larger than what it makes"))));
    }
    let sums = decode_index(&encode_index(&[frame()]).unwrap(), &Header { frames_bytes: 31, ..header() }, &old, &new);
    assert!(matches!(sums, Err(DeltaFault::Malformed(_))));
    assert!(matches!(decode_index(&[1, 2, 3], &header(), &old, &new), Err(DeltaFault::Index(_))));
}

#[test]
fn every_size_of_a_header_has_its_bound() {
    type Size = fn(&mut Header) -> &mut u32;
    let sizes: [(usize, Size); 4] = [
        (MANIFEST_BYTES_MAX, |header| &mut header.manifest.stored_bytes),
        (MANIFEST_BYTES_MAX, |header| &mut header.manifest.plain_bytes),
        (INDEX_BYTES_MAX, |header| &mut header.index.stored_bytes),
        (INDEX_BYTES_MAX, |header| &mut header.index.plain_bytes),
    ];
    for (max, size) in sizes {
        let mut header = header();
        *size(&mut header) = width::count(max);
        assert_eq!(Header::decode(&header.encode()), Ok(header));
        *size(&mut header) += 1;
        assert!(matches!(Header::decode(&header.encode()), Err(DeltaFault::Malformed(_))));
    }
    let endless = Header { frames_bytes: u64::MAX, ..header() };
    assert_eq!(Header::decode(&endless.encode()).unwrap().delta_bytes(), None, "no file has that many");
    assert_eq!(endless.front_bytes(), 106 + 1 + 3);
}

#[test]
fn an_index_has_its_bound_when_it_is_written() {
    let part = Part::default();
    let frame = Frame { makes: vec![], stretches: vec![], patch: part, literals: part };
    // Eight bytes for the number of frames, 32 for each empty one.
    let most = (INDEX_BYTES_MAX - 8) / 32;
    assert_eq!(encode_index(&vec![frame.clone(); most]).map(|bytes| bytes.len()), Ok(8 + most * 32));
    let got = 8 + (most + 1) * 32;
    assert_eq!(encode_index(&vec![frame; most + 1]), Err(CodecError::TooLarge { got, max: INDEX_BYTES_MAX }));
}

#[test]
fn a_run_has_the_bytes_of_its_chunks() {
    let tree = tree(150_000);
    let bytes = |object, first, count| Run { object, first, count }.plain_bytes(&tree);
    assert_eq!([bytes(0, 0, 1), bytes(0, 1, 1), bytes(0, 2, 1)], [Some(65_536), Some(65_536), Some(18_928)]);
    assert_eq!((bytes(0, 0, 3), bytes(0, 0, 2)), (Some(150_000), Some(131_072)));
    for (object, first, count) in [(1, 0, 1), (0, 0, 0), (0, 3, 1), (0, 0, 4), (0, 1, u32::MAX), (0, u32::MAX, 1)] {
        assert_eq!(bytes(object, first, count), None, "{object} {first} {count}");
    }
    assert_eq!((frame().stored_bytes(), frame().base_bytes()), (30, 900));
}
