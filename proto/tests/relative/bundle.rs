//! What only a bundle has: pages of chunks, with their proofs, in the order of a start.

use proto::bundle::{
    BundleFault, FRAME_BASE_BYTES_MAX, FRAME_PLAIN_BYTES_MAX, Frame, HEADER_BYTES, Header, INDEX_BYTES_MAX, Origin,
    PAGES_BYTES_MAX, Pages, TAIL_BYTES, TOUCHES_MAX, decode_index, encode_index, trailer,
};
use proto::limits::MANIFEST_BYTES_MAX;
use proto::manifest::Manifest;
use proto::proof::{CHAINING_BYTES, PageRun};
use proto::relative::{FRAME_PARTS_MAX, Part, Recipe};
use proto::{TreeId, width};

use super::recipe;

fn header() -> Header {
    Header {
        tree: TreeId::of(b"tree"),
        from: Some(TreeId::of(b"from")),
        origin: Origin::Guessed,
        fast: false,
        manifest: Part { stored_bytes: 1, plain_bytes: 2 },
        index: Part { stored_bytes: 3, plain_bytes: 4 },
        proofs_bytes: 64,
        frames_bytes: 30,
    }
}

fn tree(bytes: u64) -> Manifest {
    super::tree(bytes, 1 << 20)
}

/// The second chunk's pages 0, 1 and 4.
fn frame() -> Frame {
    let runs = vec![PageRun { first: 0, count: 2 }, PageRun { first: 4, count: 1 }];
    Frame { makes: vec![Pages { object: 0, chunk: 1, runs }], recipe: recipe() }
}

#[test]
fn the_bytes_of_a_header_are_pinned() {
    let bytes = header().encode();
    assert_eq!(bytes.len(), 110);
    assert_eq!(&bytes[..18], b"MFSBUND\0\x01\0\x01\0\0\0\0\0\0\0");
    assert_eq!(&bytes[18..50], TreeId::of(b"tree").as_bytes());
    assert_eq!(&bytes[50..82], TreeId::of(b"from").as_bytes());
    let sizes = [1_u32, 2, 3, 4, 64, 30, 0].map(u32::to_le_bytes).concat();
    assert_eq!(&bytes[82..], sizes);
    assert_eq!(Header::decode(&bytes), Ok(header()));
    assert_eq!(header().bundle_bytes(), 110 + 1 + 3 + 64 + 30 + 40);
    assert_eq!(trailer([7; 32]), *[[7; 32].as_slice(), b"MFSBUEND"].concat());

    let bare = Header { from: None, origin: Origin::Recorded, frames_bytes: 1 << 28, ..header() };
    let bytes = bare.encode();
    assert_eq!((&bytes[10..14], &bytes[50..82]), ([0; 4].as_slice(), [0; 32].as_slice()));
    assert_eq!(Header::decode(&bytes), Ok(bare));

    for (origin, fast, features) in
        [(Origin::Carried, false, 5), (Origin::Carried, true, 7), (Origin::Guessed, true, 3)]
    {
        let header = Header { origin, fast, ..header() };
        assert_eq!(header.encode()[10], features, "{header:?}");
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }
}

#[test]
fn the_bounds_are_those_of_the_document() {
    assert_eq!((FRAME_PLAIN_BYTES_MAX, FRAME_BASE_BYTES_MAX, TAIL_BYTES), (1_048_576, 1_048_576, 2_097_152));
    assert_eq!((INDEX_BYTES_MAX, PAGES_BYTES_MAX, TOUCHES_MAX), (16_777_216, 268_435_456, 65_536));
}

#[test]
fn other_bytes_and_later_versions_are_refused() {
    let changed = |at: usize, byte: u8| {
        let mut bytes: [u8; HEADER_BYTES] = header().encode();
        bytes[at] = byte;
        Header::decode(&bytes)
    };
    assert_eq!(changed(7, b'?'), Err(BundleFault::NotABundle));
    assert_eq!(changed(8, 2), Err(BundleFault::Newer { version: 2, features: 0 }));
    assert_eq!(changed(14, 1), Err(BundleFault::Newer { version: 1, features: 1 }));
    assert_eq!(changed(10, 9), Ok(header()), "what may be ignored is ignored");
    assert_eq!(changed(10, 5), Ok(Header { origin: Origin::Carried, ..header() }));
    assert_eq!(changed(10, 2), Ok(Header { origin: Origin::Recorded, fast: true, ..header() }));
    assert_eq!(changed(10, 4), Ok(Header { origin: Origin::Recorded, ..header() }));
}

#[test]
fn every_size_of_a_header_has_its_bound() {
    type Change = fn(&mut Header, u64);
    let sizes: [(&str, u64, u64, Change); 6] = [
        ("manifest, stored", MANIFEST_BYTES_MAX as u64, 1, |h, n| h.manifest.stored_bytes = width::count(n)),
        ("manifest, plain", MANIFEST_BYTES_MAX as u64, 1, |h, n| h.manifest.plain_bytes = width::count(n)),
        ("index, stored", INDEX_BYTES_MAX as u64, 1, |h, n| h.index.stored_bytes = width::count(n)),
        ("index, plain", INDEX_BYTES_MAX as u64, 1, |h, n| h.index.plain_bytes = width::count(n)),
        ("proofs", PAGES_BYTES_MAX / 32, 32, |h, n| h.proofs_bytes = width::count(n)),
        ("frames", 2 * PAGES_BYTES_MAX, 1, |h, n| h.frames_bytes = n),
    ];
    for (what, max, step, change) in sizes {
        let with = |bytes: u64| {
            let mut header = header();
            change(&mut header, bytes);
            (Header::decode(&header.encode()), header)
        };
        let (read, sent) = with(max);
        assert_eq!(read, Ok(sent), "{what} at its bound");
        assert!(matches!(with(max + step).0, Err(BundleFault::Malformed(_))), "{what} beyond it");
    }
    let odd = Header { proofs_bytes: 65, ..header() };
    assert!(matches!(Header::decode(&odd.encode()), Err(BundleFault::Malformed(_))), "half a chaining value");
}

/// Reads the index of these frames, under a header that fits them.
fn check(frames: &[Frame], old: Option<&Manifest>, new: &Manifest) -> Result<Vec<Frame>, BundleFault> {
    let frames_bytes = frames.iter().map(|frame| frame.recipe.stored_bytes()).sum();
    let proofs: usize = frames.iter().filter_map(|frame| Some(frame.sizes(new)?.1)).sum();
    let header = Header { frames_bytes, proofs_bytes: width::count(proofs * CHAINING_BYTES), ..header() };
    decode_index(&encode_index(frames).unwrap(), &header, old, new)
}

fn fault(result: Result<Vec<Frame>, BundleFault>) -> &'static str {
    match result {
        Ok(_) => "taken",
        Err(BundleFault::Malformed(fault)) => fault,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn an_index_names_only_what_there_is() {
    let (old, new) = (tree(1_000), tree(3_000_000));
    assert_eq!(check(&[frame(), frame()], Some(&old), &new), Ok(vec![frame(), frame()]));
    assert_eq!(frame().sizes(&new), Some((3 * 4096, 8)));
    super::check_recipes(3 * 4096, FRAME_BASE_BYTES_MAX, &|recipe| {
        fault(check(&[Frame { recipe, ..frame() }], Some(&old), &new))
    });
    const PAGES: &str = "a frame makes pages that the tree does not have";
    const STRETCH: &str = "a stretch is not of the old tree, or a frame's stretches are larger than 1 MiB";
    type Change = fn(&mut Pages);
    let wrong: [(&str, Change); 6] = [
        ("an object past the end", |pages| pages.object = 1),
        ("a chunk past the end", |pages| pages.chunk = 3),
        ("no pages", |pages| pages.runs.clear()),
        ("pages that touch", |pages| pages.runs[1].first = 2),
        ("pages past the end", |pages| pages.runs[1].first = 256),
        ("pages past the end of a short chunk", |pages| {
            pages.chunk = 2;
            pages.runs[1].first = 250;
        }),
    ];
    for (what, change) in wrong {
        let mut frame = frame();
        change(&mut frame.makes[0]);
        assert_eq!(fault(check(&[frame], Some(&old), &new)), PAGES, "{what}");
    }
    let nothing = Frame { makes: vec![], ..frame() };
    assert!(fault(check(&[nothing], Some(&old), &new)).starts_with("a frame makes nothing"));
    assert_eq!(fault(check(&[frame()], None, &new)), STRETCH, "nothing is there to take a stretch of");
    assert!(matches!(decode_index(&[1, 2, 3], &header(), None, &new), Err(BundleFault::Index(_))));
}

#[test]
fn what_just_fits_is_taken() {
    let new = tree(300 << 20);
    let alone = |makes| Frame { makes, recipe: Recipe::default() };
    let page = |first| Pages { object: 0, chunk: 0, runs: vec![PageRun { first, count: 1 }] };
    let whole = |chunk| Pages { object: 0, chunk, runs: vec![PageRun { first: 0, count: 256 }] };
    let fits = |makes| fault(check(&[alone(makes)], None, &new));
    assert_eq!(fits(vec![whole(0)]), "taken", "{FRAME_PLAIN_BYTES_MAX} bytes");
    assert_eq!(fits(vec![whole(0), page(0)]), "a frame makes more than 1 MiB");
    // A chunk of one byte makes one byte, so there can be as many parts as a frame may have.
    let short = tree((1 << 20) + 1);
    let bytes = |count| {
        let last = Pages { object: 0, chunk: 1, runs: vec![PageRun { first: 0, count: 1 }] };
        fault(check(&[alone(vec![last; count])], None, &short))
    };
    assert_eq!(bytes(FRAME_PARTS_MAX), "taken");
    assert!(bytes(FRAME_PARTS_MAX + 1).contains("more than 4096 parts"));
    // As many pages as a bundle may have, and one more.
    let all = |count: u32| {
        let frames: Vec<Frame> = (0..count).map(|chunk| alone(vec![whole(chunk)])).collect();
        fault(check(&frames, None, &new))
    };
    assert_eq!(all(256), "taken");
    assert_eq!(all(257), "it has more pages than a bundle may have");
}

#[test]
fn sums_must_be_those_of_the_header() {
    let new = tree(3_000_000);
    let frame = Frame { recipe: Recipe { stretches: vec![], ..recipe() }, ..frame() };
    let index = encode_index(std::slice::from_ref(&frame)).unwrap();
    let read = |frames_bytes, proofs_bytes| {
        let header = Header { frames_bytes, proofs_bytes, ..header() };
        decode_index(&index, &header, None, &new)
    };
    assert_eq!(read(30, 8 * 32), Ok(vec![frame]));
    const SUMS: &str = "its frames or proofs do not add up to what its header says";
    for (frames_bytes, proofs_bytes) in [(29, 256), (31, 256), (30, 224), (30, 288), (0, 0)] {
        assert_eq!(fault(read(frames_bytes, proofs_bytes)), SUMS, "{frames_bytes} {proofs_bytes}");
    }
}
