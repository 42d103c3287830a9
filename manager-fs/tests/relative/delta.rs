//! A delta: made of two trees, and the new one's chunks out of it and of what a host has.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use manager_fs::host::cache::{Cache, CacheOptions};
use manager_fs::host::delta::{Arrived, DeltaError, Reader, make};
use manager_fs::host::fetch::{FetchOptions, Fetcher, FromOldOptions, HydrateOptions, TreeRef, Wanted};
use manager_fs::manager::delta::{self, DeltaOptions};
use manager_fs::manager::monitor::Quiet;
use manager_fs::manager::store::Store;
use proto::limits::CHUNK_BYTES;
use proto::manifest::Object;
use proto::{Manifest, ObjectId, TreeId, width};
use tests::noise;

use super::origin::{Origin, Pair, soon};

/// Two versions: a program whose functions moved and whose addresses changed, a library under a new name, a file that
/// stayed, a file that is really new, and many small files that differ in their heads.
fn pair() -> Pair {
    let program = noise(1, 900_000);
    let mut next = [&program[500_000..], &noise(2, 3_000)[..], &program[..500_000]].concat();
    next.chunks_exact_mut(64).for_each(|line| line[9] = line[9].wrapping_add(16));
    let library = noise(3, 150_000);
    let mut newer = library.clone();
    newer.splice(70_000..70_000, noise(4, 500));
    let names: Vec<String> = (0..40).map(|at| format!("small/{at}.bin")).collect();
    let small = |version: u8| {
        let content = move |at: u64| [vec![version; 8], noise(100 + at, 2_000)].concat();
        names.iter().zip(0..).map(move |(name, at)| (name.as_str(), content(at)))
    };
    let old = [("bin/run", program), ("lib/libx.so.1.2", library), ("same", noise(5, 200_000))];
    let new =
        [("bin/run", next), ("lib/libx.so.1.10", newer), ("same", noise(5, 200_000)), ("new", noise(6, 300_000))];
    let (old, new): (Vec<_>, Vec<_>) =
        (old.into_iter().chain(small(1)).collect(), new.into_iter().chain(small(2)).collect());
    Pair::of(&old, &new)
}

fn make_delta(pair: &Pair) -> delta::DeltaStats {
    let options = DeltaOptions { level: 3, threads: 2 };
    delta::make(&pair.store, &pair.old.tree, &pair.new.tree, options, &AtomicBool::new(false)).unwrap()
}

fn stream(pair: &Pair) -> Vec<u8> {
    let header = pair.store.delta(&pair.old.tree, &pair.new.tree).unwrap().expect("a delta");
    pair.store.delta_bytes(&pair.old.tree, &pair.new.tree, 0..header.front_bytes() + header.frames_bytes).unwrap()
}

fn contents(store: &Store, manifest: &Manifest) -> HashMap<ObjectId, Vec<u8>> {
    let content = |object: &Object| object.chunks.iter().flat_map(|id| store.plain_chunk(id).unwrap()).collect();
    manifest.objects.iter().map(|object| (object.id, content(object))).collect()
}

type Made = BTreeMap<(ObjectId, u32), Vec<u8>>;

/// What a host makes of a stream that comes in pieces of so many bytes.
fn apply(pair: &Pair, stream: &[u8], piece_bytes: usize) -> Result<Made, DeltaError> {
    let old_bytes = pair.store.manifest(&pair.old.tree).unwrap().unwrap();
    let old = contents(&pair.store, &pair.store.tree(&pair.old.tree).unwrap());
    let mut reader = Reader::new(pair.old.tree, pair.new.tree, old_bytes)?;
    let mut pieces = stream.chunks(piece_bytes);
    let mut made = Made::new();
    loop {
        match reader.arrived()? {
            None => match pieces.next() {
                Some(piece) => reader.push(piece),
                None => return Ok(made),
            },
            Some(Arrived::Manifest(bytes)) => {
                assert_eq!(bytes, pair.store.manifest(&pair.new.tree).unwrap().unwrap());
            }
            Some(Arrived::End) => return Ok(made),
            Some(Arrived::Frame(frame, stored)) => {
                let mut read_old = |object: &Object, offset: u64, into: &mut [u8]| {
                    into.copy_from_slice(&old[&object.id][width::index(offset)..width::index(offset) + into.len()]);
                    Ok(())
                };
                make(&frame, &stored, (reader.old(), reader.new_tree().unwrap()), &mut read_old, &mut |chunk| {
                    made.insert((chunk.object.id, chunk.index), chunk.plain.to_vec());
                })?;
            }
        }
    }
}

#[test]
fn a_host_makes_what_changed_out_of_what_it_has() {
    let pair = pair();
    let stats = make_delta(&pair);
    assert!(stats.delta_bytes < 60_000, "moved, renamed and small files are found: {stats:?}");
    assert!(stats.left_out_bytes >= 196_608, "what is new is fetched as it is: {stats:?}");
    assert!(stats.delta_bytes < stats.replaced_stored_bytes);
    for piece_bytes in [1, 1000, 1 << 20] {
        let made = apply(&pair, &stream(&pair), piece_bytes).unwrap();
        assert_eq!(made.values().map(|plain| plain.len() as u64).sum::<u64>(), stats.made_bytes);
        let new = pair.store.tree(&pair.new.tree).unwrap();
        let right = contents(&pair.store, &new);
        for ((object, index), plain) in &made {
            let start = *index as usize * new.chunk_bytes as usize;
            assert_eq!(plain, &right[object][start..start + plain.len()]);
        }
    }
}

#[test]
fn the_same_trees_make_the_same_delta_and_the_first_one_stays() {
    let (one, other) = (pair(), pair());
    let stats = make_delta(&one);
    assert_eq!(make_delta(&one), stats);
    make_delta(&other);
    // Modification times differ between the two sources, so the manifests do; the frames are of equal contents.
    assert_eq!(stream(&one).len() as u64, stats.delta_bytes - 40);
    assert_eq!(make_delta(&other).made_bytes, stats.made_bytes);
}

#[test]
fn no_flipped_bit_makes_a_wrong_chunk() {
    let pair = pair();
    make_delta(&pair);
    let stream = stream(&pair);
    let right = apply(&pair, &stream, 1 << 20).unwrap();
    for at in (0..stream.len()).step_by(stream.len() / 150) {
        let mut damaged = stream.clone();
        damaged[at] ^= 0x10;
        // Zstd ignores some bits; what comes through must be right.
        if let Ok(made) = apply(&pair, &damaged, 1 << 20) {
            assert!(made.iter().all(|(place, plain)| right[place] == *plain), "byte {at}");
        }
    }
    for end in [0, 50, 105, 106, 2_000, stream.len() - 1] {
        let made = apply(&pair, &stream[..end], 1 << 20).unwrap();
        assert!(made.len() < right.len(), "cut at {end}");
        assert!(made.iter().all(|(place, plain)| right[place] == *plain));
    }
}

#[test]
fn a_damaged_delta_is_removed_and_a_useless_one_is_collected() {
    let pair = pair();
    make_delta(&pair);
    let (from, to) = (pair.old.tree, pair.new.tree);
    let (shard, rest) = from.to_shard();
    let path = pair.store.root().join("deltas").join(shard).join(format!("{rest}-{to}"));
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let problems = pair.store.verify(&Quiet).unwrap().problems;
    assert!(problems.len() == 1 && problems[0].thing.to_string().starts_with("delta "), "{problems:?}");
    assert_eq!(pair.store.delta(&from, &to).unwrap(), None);
    assert!(!path.exists());

    make_delta(&pair);
    let both = BTreeSet::from([from, to]);
    let Pair { store, old, new, dir: _dir } = pair;
    drop((old, new));
    assert_eq!(store.gc(&both, false, &Quiet).unwrap().deltas_removed, 0);
    let report = store.gc(&BTreeSet::from([to]), false, &Quiet).unwrap();
    assert_eq!((report.deltas_removed, report.manifests_removed), (1, 1));
    assert!(!path.exists());
    assert!(matches!(store.delta(&from, &to), Ok(None)));
}

/// A host with the whole old tree of a pair, and its manager, which sends this stream as the delta.
fn host(pair: Pair, stream: Vec<u8>) -> (tempfile::TempDir, Arc<Origin>, Arc<Fetcher>) {
    let upstream = Origin::new(pair, stream);
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), CacheOptions::default()).unwrap();
    let options = FetchOptions { on_wrong_hash: Arc::new(|_| ()), ..FetchOptions::default() };
    let fetcher = Fetcher::new(upstream.clone(), cache, options);
    make_local(&fetcher, &upstream.pair.old.tree);
    upstream.forget();
    (dir, upstream, fetcher)
}

/// A pair whose delta is made, with the delta's bytes.
fn with_delta() -> (Pair, Vec<u8>) {
    let pair = pair();
    make_delta(&pair);
    let stream = stream(&pair);
    (pair, stream)
}

fn make_local(fetcher: &Arc<Fetcher>, tree: &TreeId) {
    let manifest = fetcher.manifest(tree, soon()).unwrap();
    fetcher.make_local(tree, &manifest, HydrateOptions::default(), &AtomicBool::new(false), &mut |_| ()).unwrap();
}

fn upgrade(upstream: &Origin, fetcher: &Arc<Fetcher>) {
    let (from, to) = (upstream.pair.old.tree, upstream.pair.new.tree);
    let deadline = soon();
    let manifest = fetcher.manifest(&to, deadline).unwrap();
    let options = FromOldOptions { deadline, bytes_per_second_max: None };
    fetcher.take_from_old(&from, TreeRef { id: &to, manifest: &manifest }, options, &AtomicBool::new(false));
    make_local(fetcher, &to);
    let right = contents(&upstream.pair.store, &manifest);
    for object in &manifest.objects {
        assert_eq!(fs::read(fetcher.cache().local_path(&object.id)).unwrap(), right[&object.id]);
    }
}

#[test]
fn an_upgrade_fetches_only_what_is_new() {
    let (pair, stream) = with_delta();
    let (_dir, upstream, fetcher) = host(pair, stream);
    upgrade(&upstream, &fetcher);
    let counts = fetcher.counts();
    assert_eq!(upstream.fetched_bytes.load(Ordering::Relaxed), 300_000, "the file that is really new: {counts:?}");
    assert!(counts.delta_bytes < 60_000 && counts.delta_plain_bytes > 1_000_000, "{counts:?}");
}

#[test]
fn a_wrong_delta_costs_bytes_and_nothing_else() {
    let (pair, mut stream) = with_delta();
    let header = pair.store.delta(&pair.old.tree, &pair.new.tree).unwrap().unwrap();
    stream[width::index(header.front_bytes()) + 20] ^= 0xff;
    let (_dir, upstream, fetcher) = host(pair, stream);
    upgrade(&upstream, &fetcher);
    assert!(upstream.fetched_bytes.load(Ordering::Relaxed) > 300_000);
}

#[test]
fn equal_chunks_are_copied_and_no_delta_is_asked_for_a_little() {
    let shared = 2 * u64::from(CHUNK_BYTES);
    let data = noise(1, width::index(shared) + 10_000);
    let longer = [&data[..], b"and one line more"].concat();
    let (_dir, upstream, fetcher) = host(Pair::of(&[("data", data)], &[("data", longer)]), Vec::new());
    upgrade(&upstream, &fetcher);
    assert_eq!(fetcher.counts().copied_bytes, shared);
    assert_eq!(upstream.fetched_bytes.load(Ordering::Relaxed), 10_017, "the last chunk");
}

#[test]
fn a_start_that_misses_does_not_wait_for_quiet() {
    let (pair, stream) = with_delta();
    let (_dir, upstream, fetcher) = host(pair, stream);
    let (from, to) = (upstream.pair.old.tree, upstream.pair.new.tree);
    let manifest = fetcher.manifest(&to, soon()).unwrap();
    let old = fetcher.manifest(&from, soon()).unwrap();
    let is_new = |object: &&Object| old.object(&object.id).is_none();
    let mut missing = manifest.objects.iter().filter(is_new);
    let read = |object: &Object| fetcher.read(Wanted::of(&to, &manifest, object), 0, 10, soon()).unwrap();
    // So that it is not quiet when somebody begins to wait.
    read(missing.next().unwrap());
    let never = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| fetcher.wait_until_quiet_or_missed(&to, Duration::from_secs(60), &never));
        while !waiting.is_finished() {
            read(missing.next().expect("it ends before everything has been read"));
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(waiting.join().unwrap(), "it ends because of the misses");
    });
    upgrade(&upstream, &fetcher);
}
