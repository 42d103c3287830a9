use proptest::prelude::*;

use super::super::{Gather, parts};
use super::*;
use crate::manager::monitor::Quiet;
use crate::manager::publish::PublishOptions;
use crate::manager::testing::{Fixture, Item, Model};

const PAGE: usize = PAGE_BYTES as usize;

/// Two versions in one store.
struct Pair {
    fixture: Fixture,
    old: Manifest,
    new: Manifest,
}

fn noise(seed: u32, bytes: usize) -> Vec<u8> {
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut noise = vec![0; bytes];
    reader.fill(&mut noise);
    noise
}

/// Publishes a tree of these files.
fn published(fixture: &Fixture, name: &str, items: Vec<(&'static str, Item)>) -> TreeId {
    let source = fixture.dir.path().join(name);
    Model::new(items).write(&source);
    let options = PublishOptions { chunk_bytes: Some(64 << 10), ..PublishOptions::default() };
    fixture.publish_with(&source, &options, &Quiet).unwrap().tree
}

impl Pair {
    fn new(old: Vec<(&'static str, Item)>, new: Vec<(&'static str, Item)>) -> Self {
        let fixture = Fixture::new();
        let [old, new] = [("old", old), ("new", new)].map(|(name, items)| {
            let tree = published(&fixture, name, items);
            fixture.store.tree(&tree).unwrap()
        });
        Self { fixture, old, new }
    }

    fn carried(&self, recorded: &[Touch]) -> Vec<Touch> {
        touches(&self.fixture.store, &self.old, recorded, &self.new).unwrap()
    }
}

fn object(manifest: &Manifest, bytes: &[u8]) -> u32 {
    width::count(manifest.object_index(&proto::ObjectId::of(bytes)).unwrap())
}

fn touch(object: u32, first: u32, count: u32) -> Touch {
    Touch { object, first, count }
}

/// Whether the touched pages of a file have these bytes, one after the other.
fn have(touches: &[Touch], file: &[u8], wanted: &[u8]) -> bool {
    touches.iter().any(|touch| {
        let from = touch.first as usize * PAGE;
        let to = (from + touch.count as usize * PAGE).min(file.len());
        file[from..to].windows(wanted.len()).any(|window| window == wanted)
    })
}

#[test]
fn what_moved_within_a_file_is_found_where_it_is_now() {
    let old = noise(1, 2 << 20);
    let cut = 1 << 20;
    // Something is inserted in the middle, and something taken out before the end.
    let new = [&old[..cut], &noise(2, 10_000), &old[cut..cut + (600 << 10)], &old[cut + (610 << 10)..]].concat();
    let pair = Pair::new(vec![("program", Item::file(&old))], vec![("program", Item::file(&new))]);
    let from = object(&pair.old, &old);
    for page in [0, 1, 100, 254, 257, 300, 390, 412, 480, 511] {
        let carried = pair.carried(&[touch(from, page, 1)]);
        let at = page as usize * PAGE;
        assert!(have(&carried, &new, &old[at..at + PAGE]), "page {page}: {carried:?}");
        assert!(carried.iter().map(|touch| touch.count).sum::<u32>() <= 2, "page {page}: {carried:?}");
    }
}

#[test]
fn a_file_is_followed_under_its_name_or_by_what_it_is() {
    let (same, other) = (noise(1, 9 * PAGE), noise(2, 7 * PAGE));
    let pair = Pair::new(
        vec![
            ("a-gone", Item::file(noise(3, PAGE))),
            ("lib-1.2", Item::file(&other)),
            ("was-here", Item::file(&same)),
        ],
        vec![("is-there", Item::file(&same)), ("lib-1.3", Item::file([&other[..], b"more"].concat()))],
    );
    let gone = object(&pair.old, &noise(3, PAGE));
    let recorded = [touch(object(&pair.old, &same), 8, 1), touch(gone, 0, 1), touch(object(&pair.old, &other), 2, 2)];
    let (to_same, to_other) = (object(&pair.new, &same), object(&pair.new, &[&other[..], b"more"].concat()));
    assert_eq!(pair.carried(&recorded), [touch(to_same, 8, 1), touch(to_other, 2, 1), touch(to_other, 3, 1)]);
}

#[test]
fn a_file_of_which_nothing_is_left_keeps_its_places_as_far_as_it_goes() {
    let (old, new) = (noise(1, 20 * PAGE), noise(2, 10 * PAGE));
    let pair = Pair::new(vec![("program", Item::file(&old))], vec![("program", Item::file(&new))]);
    let from = object(&pair.old, &old);
    assert_eq!(pair.carried(&[touch(from, 3, 1), touch(from, 15, 1)]), [touch(object(&pair.new, &new), 3, 1)]);
}

#[test]
fn what_lies_between_two_touches_is_touched_too_where_it_is_little() {
    let old = noise(1, 64 * PAGE);
    let pair = Pair::new(vec![("program", Item::file(&old))], vec![("moved", Item::file(&old))]);
    let (from, to) = (object(&pair.old, &old), object(&pair.new, &old));
    let near = GAP_PAGES_MAX + 1;
    let recorded = [touch(from, 30, 2), touch(from, 4, 1), touch(from, 4 + near, 1), touch(from, 31 + near + 1, 1)];
    let between = touch(to, 5, GAP_PAGES_MAX);
    let carried = pair.carried(&recorded);
    let (first, rest) = carried.split_at(carried.len() - 1);
    assert_eq!(rest, [between], "{carried:?}");
    assert_eq!(first.iter().map(|touch| touch.first).collect::<Vec<_>>(), [30, 31, 4, 4 + near, 32 + near]);
}

fn record(product: &str, sequence: u64, tree: &TreeId) -> GenerationRecord {
    GenerationRecord {
        product: product.parse().unwrap(),
        version: sequence.to_string().parse().unwrap(),
        sequence,
        tree: *tree,
        manifest_bytes: 1,
        published_unix_ms: 0,
        metadata: proto::Metadata::default(),
    }
}

#[test]
fn the_version_before_tells_most_then_a_tree_with_the_same_files() {
    let (large, small) = (Item::file(noise(1, 9 * PAGE)), Item::file(noise(2, PAGE)));
    let fixture = Fixture::new();
    let old = published(&fixture, "old", vec![("large", large.clone())]);
    let new = published(&fixture, "new", vec![("large", large), ("small", small.clone())]);
    let little = published(&fixture, "little", vec![("small", small)]);
    let stranger = TreeId::of(b"stranger");
    let source_of = |recorded: &[TreeId], records: &[GenerationRecord]| {
        let records: Vec<&GenerationRecord> = records.iter().collect();
        source(&fixture.store, &new, &records, |tree| recorded.contains(tree))
    };
    let records = [record("p", 1, &stranger), record("q", 2, &old), record("p", 3, &new), record("p", 4, &old)];
    assert_eq!(source_of(&[], &records), None);
    assert_eq!(source_of(&[stranger, old], &records), Some(stranger), "the version before");
    assert_eq!(source_of(&[old], &records), Some(old), "the version after");
    assert_eq!(source_of(&[old], &records[..3]), Some(old), "nine tenths are the same");
    let records = [record("q", 1, &little), record("p", 2, &new)];
    assert_eq!(source_of(&[little], &records), None, "one tenth is the same");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever changed and whatever was touched: only pages that there are, and no more than two for each.
    #[test]
    fn touches_are_of_the_new_tree(
        edits in prop::collection::vec((0_usize..300_000, 0_usize..5000, 0_usize..20_000), 0..6),
        touched in prop::collection::vec((0_u32..74, 1_u32..20), 1..20),
    ) {
        let old = noise(7, 300_000);
        let mut new = old.clone();
        for (number, (at, removed, added)) in (0_u32..).zip(edits) {
            let at = at.min(new.len());
            let to = (at + removed).min(new.len());
            new.splice(at..to, noise(100 + number, added));
        }
        let pair = Pair::new(vec![("program", Item::file(&old))], vec![("program", Item::file(&new))]);
        let from = object(&pair.old, &old);
        let recorded: Vec<Touch> =
            touched.into_iter().map(|(first, count)| touch(from, first, count.min(74 - first))).collect();
        let carried = pair.carried(&recorded);
        let pages = |touches: &[Touch]| touches.iter().map(|touch| touch.count).sum::<u32>();
        prop_assert!(pages(&carried) <= (2 + GAP_PAGES_MAX) * pages(&recorded));
        prop_assert!(carried.is_empty() || parts(&carried, &pair.new, Gather::Whole).is_ok());
    }
}
