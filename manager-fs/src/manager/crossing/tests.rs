//! Files that cross a gap: whole, in part, for a side that has something, broken off, changed, and of somebody else.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ed25519_dalek::SigningKey;
use proto::bulk::Encoding;
use proto::manifest::{Entry, Node, NodeKind, Object};
use proto::{ChunkId, GenerationRecord, Manifest, ObjectId, PublisherKey, SignedRecord, TreePath};

use super::super::control::Revision;
use super::super::control::generations::Generation;
use super::super::monitor::{Monitor, Quiet, Task};
use super::super::publish::{PublishOptions, publish};
use super::super::store::{Store, StoredChunk};
use super::super::testing::{Item, Kind, Model};
use super::*;

/// A store, its publisher, and what it has published.
struct Side {
    dir: tempfile::TempDir,
    store: Store,
    key: SigningKey,
    generations: Vec<Arc<Generation>>,
}

/// Bytes that do not compress.
fn noise(seed: u8, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof().fill(&mut noise);
    noise
}

impl Side {
    fn new(key: u8) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { dir, store, key: SigningKey::from_bytes(&[key; 32]), generations: Vec::new() }
    }

    fn publish(&mut self, version: &str, files: &[(&'static str, Vec<u8>)]) -> Arc<Generation> {
        let source = self.path(&format!("source-{version}"));
        let run = [("bin", Item::new(Kind::Directory)), ("bin/run", Item::file("#!/bin/sh\n"))];
        Model::new(run.into_iter().chain(files.iter().map(|(name, bytes)| (*name, Item::file(bytes)))))
            .write(&source);
        let published =
            publish(&self.store, &source, &PublishOptions::default(), &Quiet, &AtomicBool::new(false)).unwrap();
        let record = GenerationRecord {
            product: "p".parse().unwrap(),
            version: version.parse().unwrap(),
            sequence: self.generations.len() as u64 + 1,
            tree: published.tree,
            manifest_bytes: published.manifest_bytes,
            published_unix_ms: 1,
            metadata: published.metadata.clone(),
        };
        let signed = SignedRecord::sign(&record, &self.key).unwrap().to_bytes().unwrap();
        let generation = Generation { signed, record, is_also: false, changed: Revision(1) };
        self.generations.push(Arc::new(generation));
        self.generations[self.generations.len() - 1].clone()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn trusts(&self) -> [PublisherKey; 1] {
        [PublisherKey::from(self.key.verifying_key())]
    }

    fn save(&self, generation: &Arc<Generation>, file: &Path, have: Option<&Path>) -> Result<Saved, CrossingError> {
        save(&self.store, std::slice::from_ref(generation), (file, have), &Quiet, &AtomicBool::new(false))
    }

    fn receive(&self, file: &Path, trusted: &[PublisherKey]) -> Result<Received, CrossingError> {
        receive(&self.store, file, trusted, &Quiet, &AtomicBool::new(false))
    }

    fn has(&self, generation: &Generation) -> bool {
        self.store.lost(&BTreeSet::from([generation.record.tree])).unwrap().is_empty()
    }
}

#[test]
fn what_crosses_is_what_was_published() {
    let (mut near, far) = (Side::new(1), Side::new(2));
    let one = near.publish("1", &[("data", noise(1, 900_000)), ("text", vec![b'x'; 600_000])]);
    let file = near.path("file");
    let saved = near.save(&one, &file, None).unwrap();
    assert_eq!((saved.bytes, saved.left_out), (fs::metadata(&file).unwrap().len(), 0));
    assert!(!near.path("file.part").exists());
    assert!(matches!(near.save(&one, &file, None), Err(CrossingError::Exists(_))));
    let received = far.receive(&file, &near.trusts()).unwrap();
    assert_eq!(received.records, std::slice::from_ref(&one.record));
    assert_eq!(received.new_chunks, saved.chunks);
    assert!(far.has(&one));
    let manifest = far.store.tree(&one.record.tree).unwrap();
    assert!(manifest.objects.iter().flat_map(|object| &object.chunks).all(|id| far.store.plain_chunk(id).is_ok()));
    // Once more, it brings nothing.
    assert_eq!(far.receive(&file, &near.trusts()).unwrap().new_chunks, 0);
}

#[test]
fn only_what_the_other_side_lacks_crosses_and_it_is_missed_where_that_was_not_so() {
    let (mut near, mut far) = (Side::new(1), Side::new(2));
    let (big, small) = (noise(1, 2_000_000), noise(2, 300_000));
    let one = near.publish("1", &[("big", big.clone())]);
    far.generations.push(one.clone());
    let first = near.path("first");
    near.save(&one, &first, None).unwrap();
    drop(far.receive(&first, &near.trusts()).unwrap());
    let have = list(&far.store, &far.generations).unwrap();
    assert_eq!(have.trees.len(), 1);
    let listed = near.path("have");
    fs::write(&listed, have.text()).unwrap();
    let two = near.publish("2", &[("big", big), ("small", small)]);
    let (file, whole) = (near.path("second"), near.path("whole"));
    let saved = near.save(&two, &file, Some(&listed)).unwrap();
    near.save(&two, &whole, None).unwrap();
    assert_eq!(saved.relies_on, ["p@1"]);
    assert!(saved.left_out >= 8 && saved.bytes * 4 < fs::metadata(&whole).unwrap().len(), "{saved:?}");
    far.receive(&file, &near.trusts()).unwrap();
    assert!(far.has(&two));
    let stranger = Side::new(3);
    let error = stranger.receive(&file, &near.trusts()).err().unwrap();
    assert!(matches!(error, CrossingError::ReliesOn { tree, .. } if tree == one.record.tree), "{error}");
    assert!(stranger.store.trees().unwrap().is_empty());
}

#[test]
fn what_somebody_else_signed_is_named_and_not_taken() {
    let (mut near, far) = (Side::new(1), Side::new(2));
    let one = near.publish("1", &[("data", noise(1, 10_000))]);
    let file = near.path("file");
    let saved = near.save(&one, &file, None).unwrap();
    let error = far.receive(&file, &far.trusts()).err().unwrap();
    let named = saved.publishers.first().unwrap();
    assert!(matches!(&error, CrossingError::Publisher { publisher, .. } if publisher == named), "{error}");
    assert!(!far.has(&one));
    // A record that was changed after it was signed.
    let mut forged = Generation::clone(&one);
    let last = forged.signed.len() - 1;
    forged.signed[last] ^= 1;
    let file = near.path("forged");
    near.save(&Arc::new(forged), &file, None).unwrap();
    let error = far.receive(&file, &near.trusts()).err().unwrap();
    assert!(matches!(&error, CrossingError::File { .. }), "{error}");
}

/// Gives up after so many chunks.
struct After<'a>(u64, &'a AtomicBool);

impl Monitor for After<'_> {
    fn progress(&self, task: Task, done: u64, _: u64) {
        let over = task == Task::Chunks && done + 1 >= self.0;
        self.1.fetch_or(over, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn a_saving_that_was_broken_off_goes_on_and_makes_the_same_file() {
    let mut near = Side::new(1);
    let one = near.publish("1", &[("data", noise(1, 3_000_000))]);
    let whole = near.path("whole");
    let saved = near.save(&one, &whole, None).unwrap();
    assert!(saved.chunks > 8 && saved.resumed_bytes == 0);
    let file = near.path("file");
    let cancelled = AtomicBool::new(false);
    let generations = std::slice::from_ref(&one);
    let error = save(&near.store, generations, (&file, None), &After(6, &cancelled), &cancelled).unwrap_err();
    assert!(matches!(error, CrossingError::Cancelled) && !file.exists());
    let part = near.path("file.part");
    let written = fs::metadata(&part).unwrap().len();
    let again = near.save(&one, &file, None).unwrap();
    assert_eq!(again.resumed_bytes, written);
    assert_eq!(fs::read(&file).unwrap(), fs::read(&whole).unwrap());
    // Whatever lies there: cut off anywhere, damaged, of something else, or whole.
    let good = fs::read(&whole).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    for left in
        [&good[..], &good[..good.len() - 3], &good[..30], &good[..7], &bad, b"something else, and longer", b""]
    {
        fs::remove_file(&file).unwrap();
        fs::write(&part, left).unwrap();
        near.save(&one, &file, None).unwrap();
        assert!(fs::read(&file).unwrap() == good, "{} bytes were there", left.len());
    }
}

#[test]
fn a_loading_that_was_broken_off_goes_on_and_nothing_is_visible_before() {
    let (mut near, far) = (Side::new(1), Side::new(2));
    let one = near.publish("1", &[("data", noise(1, 3_000_000))]);
    let file = near.path("file");
    let saved = near.save(&one, &file, None).unwrap();
    let good = fs::read(&file).unwrap();
    let cut = near.path("cut");
    for length in [18, 200, good.len() / 2, good.len() - 1] {
        fs::write(&cut, &good[..length]).unwrap();
        let error = far.receive(&cut, &near.trusts()).err().unwrap();
        assert!(matches!(&error, CrossingError::File { fault: ParcelFault::CutOff(_), .. }), "{length}: {error}");
        assert!(!far.has(&one) && far.store.trees().unwrap().is_empty());
    }
    let whole = far.receive(&file, &near.trusts()).unwrap();
    assert!(whole.new_chunks <= saved.chunks && far.has(&one));
}

/// A small file: one record, one manifest, one chunk.
fn small() -> (Vec<u8>, Manifest, PublisherKey) {
    let chunk = *b"hello, far side\n";
    let (object, id) = (ObjectId::of(&chunk), ChunkId::of(&chunk));
    let node = |kind| Node { mode: 0o755, uid: 0, gid: 0, mtime_s: 0, mtime_ns: 0, xattrs: vec![], kind };
    let manifest = Manifest {
        chunk_bytes: 4096,
        objects: vec![Object { id: object, bytes: 16, chunks: vec![id] }],
        nodes: vec![node(NodeKind::Directory), node(NodeKind::File(object))],
        entries: vec![
            Entry { path: TreePath::root(), node: 0 },
            Entry { path: TreePath::parse(b"hello").unwrap(), node: 1 },
        ],
    };
    let (bytes, tree) = manifest.encode().unwrap();
    let record = GenerationRecord {
        product: "p".parse().unwrap(),
        version: "1".parse().unwrap(),
        sequence: 3,
        tree,
        manifest_bytes: bytes.len() as u64,
        published_unix_ms: 1_790_000_000_000,
        metadata: proto::Metadata::default(),
    };
    let key = SigningKey::from_bytes(&[7; 32]);
    let signed = SignedRecord::sign(&record, &key).unwrap().to_bytes().unwrap();
    let stored = StoredChunk { encoding: Encoding::Raw, plain_bytes: 16, bytes: chunk.to_vec() };
    (sample(&signed, &bytes, (&id, &stored)), manifest, PublisherKey::from(key.verifying_key()))
}

/// `docs/parcel-format.md`, byte for byte.
#[test]
fn the_format_is_what_is_written_down() {
    let made: String = small().0.iter().map(|byte| format!("{byte:02x}")).collect();
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/parcel-format.md")).unwrap();
    let block = text.split("```hex saved").nth(1).unwrap_or_default().split("```").next().unwrap();
    let lines = block.lines().map(|line| line.split('#').next().unwrap());
    let written: String = lines.flat_map(str::chars).filter(char::is_ascii_hexdigit).collect();
    assert_eq!(made, written);
}

#[test]
fn any_flipped_bit_and_any_missing_end_is_refused() {
    let side = Side::new(1);
    let (good, _, key) = small();
    for length in 0..good.len() {
        assert!(!read_any(&good[..length], &side.store, &[key], false), "{length} bytes");
    }
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(!read_any(&bad, &side.store, &[key], false), "bit {bit}");
        // Somebody who makes the checks anew must still meet the signature and the hashes.
        assert!(!read_any(&bad, &side.store, &[], true), "bit {bit} without a publisher");
    }
    assert!(side.store.trees().unwrap().is_empty());
    assert!(read_any(&good, &side.store, &[key], false));
}

/// Well-formed frames that no saved file has.
#[test]
fn frames_in_a_wrong_place_and_chunks_that_nothing_needs_are_refused() {
    use super::super::parcel::{ParcelReader, ParcelWriter};
    let side = Side::new(1);
    let (good, _, key) = small();
    let mut frames = Vec::new();
    let mut reader = ParcelReader::begin(good.as_slice(), FORMAT, WHAT).unwrap();
    while let Some((kind, body)) = reader.next().unwrap() {
        frames.push((kind, body.to_vec()));
    }
    let [facts, record, signed, manifest, bytes, chunk] = <[(u8, Vec<u8>); 6]>::try_from(frames).unwrap();
    let made = |frames: &[&(u8, Vec<u8>)]| {
        let mut writer = ParcelWriter::begin(Vec::new(), FORMAT).unwrap();
        frames.iter().for_each(|(kind, body)| writer.frame(*kind, &[body]).unwrap());
        writer.end().unwrap().0
    };
    let other = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut body = chunk.1.clone();
        change(&mut body);
        (CHUNK, body)
    };
    let unneeded = other(&|body| body[..32].copy_from_slice(ChunkId::of(b"other").as_bytes()));
    let wrong = other(&|body| body[40] ^= 1);
    let bomb = other(&|body| body[32..36].copy_from_slice(&u32::MAX.to_le_bytes()));
    let strange = other(&|body| body[36] = 9);
    let headless = (CHUNK, vec![1; 5]);
    let endless = (RECORD, u64::MAX.to_le_bytes().to_vec());
    let empty = (RECORD, 0_u64.to_le_bytes().to_vec());
    type Case<'a> = (&'a str, Vec<&'a (u8, Vec<u8>)>);
    let cases: [Case<'_>; 14] = [
        ("nothing", vec![]),
        ("facts alone", vec![&facts]),
        ("no facts", vec![&record, &signed, &manifest, &bytes, &chunk]),
        ("facts twice", vec![&facts, &facts, &record, &signed, &manifest, &bytes, &chunk]),
        ("a record twice", vec![&facts, &record, &signed, &record, &signed, &manifest, &bytes, &chunk]),
        ("a manifest before its record", vec![&facts, &manifest, &bytes, &record, &signed, &chunk]),
        ("no manifest", vec![&facts, &record, &signed, &chunk]),
        ("no chunk", vec![&facts, &record, &signed, &manifest, &bytes]),
        ("a record without end", vec![&facts, &endless, &signed]),
        ("an empty record", vec![&facts, &empty, &signed]),
        ("a chunk that nothing needs", vec![&facts, &record, &signed, &manifest, &bytes, &unneeded, &chunk]),
        ("a chunk with another hash", vec![&facts, &record, &signed, &manifest, &bytes, &wrong]),
        ("a chunk that is too long", vec![&facts, &record, &signed, &manifest, &bytes, &bomb]),
        ("a chunk without a head", vec![&facts, &record, &signed, &manifest, &bytes, &headless, &strange]),
    ];
    for (what, frames) in cases {
        assert!(!read_any(&made(&frames), &side.store, &[key], false), "{what}");
        assert!(side.store.trees().unwrap().is_empty(), "{what}");
    }
    assert!(read_any(&made(&[&facts, &record, &signed, &manifest, &bytes, &chunk]), &side.store, &[key], false));
}
