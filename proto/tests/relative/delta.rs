//! What only a delta has: runs of chunks, between two trees.

use proto::delta::{
    DeltaFault, FRAME_BASE_BYTES_MAX, Frame, HEADER_BYTES, Header, INDEX_BYTES_MAX, Run, decode_index, encode_index,
    trailer,
};
use proto::limits::MANIFEST_BYTES_MAX;
use proto::manifest::Manifest;
use proto::relative::{Part, Recipe};
use proto::{TreeId, width};

use super::recipe;

const CHUNK_BYTES: u32 = 65_536;

fn header() -> Header {
    Header {
        from: TreeId::of(b"old"),
        to: TreeId::of(b"new"),
        manifest: Part { stored_bytes: 1, plain_bytes: 2 },
        index: Part { stored_bytes: 3, plain_bytes: 4 },
        frames_bytes: 30,
    }
}

fn tree(bytes: u64) -> Manifest {
    super::tree(bytes, CHUNK_BYTES)
}

fn frame() -> Frame {
    Frame { makes: vec![Run { object: 0, first: 1, count: 2 }], recipe: recipe() }
}

#[test]
fn the_bytes_of_a_header_are_pinned() {
    let bytes = header().encode();
    assert_eq!(bytes.len(), 106);
    assert_eq!(&bytes[..18], b"MFSDELT\0\x01\0\0\0\0\0\0\0\0\0");
    assert_eq!(&bytes[18..50], TreeId::of(b"old").as_bytes());
    assert_eq!(&bytes[50..82], TreeId::of(b"new").as_bytes());
    assert_eq!(&bytes[82..], [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 30, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(Header::decode(&bytes), Ok(header()));
    assert_eq!(header().delta_bytes(), Some(106 + 1 + 3 + 30 + 40));
    assert_eq!(trailer([7; 32]), *[[7; 32].as_slice(), b"MFSDLEND"].concat());
}

#[test]
fn other_bytes_and_later_versions_are_refused() {
    let changed = |at: usize, byte: u8| {
        let mut bytes: [u8; HEADER_BYTES] = header().encode();
        bytes[at] = byte;
        Header::decode(&bytes)
    };
    assert_eq!(changed(7, b'?'), Err(DeltaFault::NotADelta));
    assert_eq!(changed(8, 2), Err(DeltaFault::Newer { version: 2, features: 0 }));
    assert_eq!(changed(14, 1), Err(DeltaFault::Newer { version: 1, features: 1 }));
    assert_eq!(changed(10, 1), Ok(header()), "what may be ignored is ignored");
    assert!(matches!(changed(97, 0xff), Err(DeltaFault::Malformed(_))), "an index of 4 GiB");
    assert_eq!(changed(105, 1), Ok(Header { frames_bytes: 30 | 1 << 56, ..header() }), "all of its eight bytes");
}

/// Reads the index of these frames, under a header that fits them.
fn check(frames: &[Frame], old: &Manifest, new: &Manifest) -> Result<Vec<Frame>, DeltaFault> {
    let frames_bytes = frames.iter().map(|frame| frame.recipe.stored_bytes()).sum();
    decode_index(&encode_index(frames).unwrap(), &Header { frames_bytes, ..header() }, old, new)
}

fn fault(result: Result<Vec<Frame>, DeltaFault>) -> &'static str {
    match result {
        Ok(_) => "taken",
        Err(DeltaFault::Malformed(fault)) => fault,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn an_index_names_only_what_there_is() {
    let (old, new) = (tree(1_000), tree(150_000));
    assert_eq!(check(&[frame(), frame()], &old, &new), Ok(vec![frame(), frame()]));
    assert_eq!(frame().plain_bytes(&new), Some(150_000 - 65_536));
    super::check_recipes(150_000 - 65_536, FRAME_BASE_BYTES_MAX, &|recipe| {
        fault(check(&[Frame { recipe, ..frame() }], &old, &new))
    });
    let last = Run { object: 0, first: 2, count: 1 };
    let makes = |makes: Vec<Run>| fault(check(&[Frame { makes, recipe: Recipe::default() }], &old, &new));
    for taken in [vec![last], vec![frame().makes[0]; 12], vec![last; 55]] {
        assert_eq!(makes(taken), "taken");
    }
    const MAKES: &str = "a frame makes chunks that the tree does not have, or more than 1 MiB";
    let run = |object, first, count| vec![Run { object, first, count }];
    for wrong in [run(1, 1, 2), run(0, 1, 3), run(0, 1, 0), run(0, u32::MAX, 2), vec![frame().makes[0]; 13]] {
        assert_eq!(makes(wrong.clone()), MAKES, "{wrong:?}");
    }
    const PARTS: &str = "a frame makes nothing, or has more than 4096 runs or stretches";
    assert_eq!((makes(vec![]), makes(vec![last; 4097])), (PARTS, PARTS));
    // Chunks of one byte, so that there can be as many runs as a frame may have.
    let tiny = tree(65_537);
    let runs = |count| {
        fault(check(&[Frame { makes: vec![Run { object: 0, first: 1, count: 1 }; count], ..frame() }], &old, &tiny))
    };
    assert_eq!((runs(4096), runs(4097)), ("taken", PARTS));
    assert!(matches!(decode_index(&[1, 2, 3], &header(), &old, &new), Err(DeltaFault::Index(_))));
    for frames_bytes in [29, 31] {
        let header = Header { frames_bytes, ..header() };
        let sums = fault(decode_index(&encode_index(&[frame()]).unwrap(), &header, &old, &new));
        assert_eq!(sums, "its frames do not add up to what its header says");
    }
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
fn a_run_has_the_bytes_of_its_chunks() {
    let tree = tree(150_000);
    let bytes = |object, first, count| Run { object, first, count }.plain_bytes(&tree);
    assert_eq!([bytes(0, 0, 1), bytes(0, 1, 1), bytes(0, 2, 1)], [Some(65_536), Some(65_536), Some(18_928)]);
    assert_eq!((bytes(0, 0, 3), bytes(0, 0, 2)), (Some(150_000), Some(131_072)));
    for (object, first, count) in [(1, 0, 1), (0, 0, 0), (0, 3, 1), (0, 0, 4), (0, 1, u32::MAX), (0, u32::MAX, 1)] {
        assert_eq!(bytes(object, first, count), None, "{object} {first} {count}");
    }
}
