//! A delta from the store of a manager to the chunks of a host, through both halves' public faces.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use manager_fs::host::cache::{Cache, CacheOptions};
use manager_fs::host::delta::{Arrived, DeltaError, Reader, make};
use manager_fs::host::fetch::{
    FetchOptions, Fetcher, FromOldOptions, HydrateOptions, TreeRef, Upstream, UpstreamError, Urgency,
};
use manager_fs::manager::delta::{self, DeltaOptions};
use manager_fs::manager::monitor::Quiet;
use manager_fs::manager::publish::{PublishOptions, Published, publish};
use manager_fs::manager::store::Store;
use proto::bulk::ChunkHead;
use proto::limits::CHUNK_BYTES;
use proto::manifest::Object;
use proto::message::ChunkRange;
use proto::width;
use proto::{Manifest, ObjectId, TreeId};
use tests::noise;

fn write(root: &Path, files: &[(&str, Vec<u8>)]) {
    for (path, content) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

struct Pair {
    _dir: tempfile::TempDir,
    store: Store,
    old: Published,
    new: Published,
}

/// Two versions: a program whose functions moved and whose addresses changed, a library under a new name, a file that
/// stayed, a file that is really new, and many small files that differ in their heads.
fn pair() -> Pair {
    let dir = tempfile::tempdir().unwrap();
    let program = noise(1, 900_000);
    let mut next = [&program[500_000..], &noise(2, 3_000)[..], &program[..500_000]].concat();
    next.chunks_exact_mut(64).for_each(|line| line[9] = line[9].wrapping_add(16));
    let library = noise(3, 150_000);
    let mut newer = library.clone();
    newer.splice(70_000..70_000, noise(4, 500));
    let small = |version: u8| {
        let content = move |at: u64| [vec![version; 8], noise(100 + at, 2_000)].concat();
        (0..40).map(move |at| (format!("small/{at}.bin"), content(at)))
    };
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    write(&old, &[("bin/run", program), ("lib/libx.so.1.2", library), ("same", noise(5, 200_000))]);
    write(
        &new,
        &[("bin/run", next), ("lib/libx.so.1.10", newer), ("same", noise(5, 200_000)), ("new", noise(6, 300_000))],
    );
    for (root, version) in [(&old, 1), (&new, 2)] {
        for (path, content) in small(version) {
            write(root, &[(path.as_str(), content)]);
        }
    }
    let store = Store::open(&dir.path().join("store")).unwrap();
    let take_in = |source: &Path| {
        let options = PublishOptions { entry_point: Some("bin/run".into()), ..PublishOptions::default() };
        publish(&store, source, &options, &Quiet, &AtomicBool::new(false)).unwrap()
    };
    for root in [&old, &new] {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(root.join("bin/run"), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let (old, new) = (take_in(&old), take_in(&new));
    Pair { _dir: dir, store, old, new }
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
    let Pair { store, old, new, _dir } = pair;
    drop((old, new));
    assert_eq!(store.gc(&both, false, &Quiet).unwrap().deltas_removed, 0);
    let report = store.gc(&BTreeSet::from([to]), false, &Quiet).unwrap();
    assert_eq!((report.deltas_removed, report.manifests_removed), (1, 1));
    assert!(!path.exists());
    assert!(matches!(store.delta(&from, &to), Ok(None)));
}

/// A manager without a network, which counts what is fetched, and may damage its deltas.
struct InProcess {
    pair: Pair,
    /// Plain bytes of chunks that were fetched as they are.
    fetched_bytes: AtomicU64,
    damage_at: Mutex<Option<usize>>,
}

impl Upstream for InProcess {
    fn manifest(&self, tree: &TreeId, _deadline: Instant) -> Result<Vec<u8>, UpstreamError> {
        Ok(self.pair.store.manifest(tree).unwrap().unwrap())
    }

    fn chunks(
        &self,
        tree: &TreeId,
        wants: &[ChunkRange],
        _urgency: Urgency,
        _deadline: Instant,
        sink: &mut dyn FnMut(ChunkHead, Vec<u8>),
    ) -> Result<(), UpstreamError> {
        let manifest = self.pair.store.tree(tree).unwrap();
        let mut sequence = 0;
        for want in wants {
            for index in want.first..want.first + want.count {
                let id = manifest.object(&want.object).unwrap().chunks[index as usize];
                let chunk = self.pair.store.chunk(&id).unwrap().unwrap();
                self.fetched_bytes.fetch_add(u64::from(chunk.plain_bytes), Ordering::Relaxed);
                let head = ChunkHead { sequence, encoding: chunk.encoding, plain_bytes: chunk.plain_bytes };
                sink(head, chunk.bytes);
                sequence += 1;
            }
        }
        Ok(())
    }

    fn delta(
        &self,
        _from: &TreeId,
        _to: &TreeId,
        _deadline: Instant,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), UpstreamError> {
        let mut stream = stream(&self.pair);
        if let Some(at) = *self.damage_at.lock().unwrap() {
            stream[at] ^= 0xff;
        }
        stream.chunks(10_000).for_each(sink);
        Ok(())
    }
}

/// A host with the whole old tree, and its manager.
fn host() -> (tempfile::TempDir, Arc<InProcess>, Arc<Fetcher>) {
    let pair = pair();
    make_delta(&pair);
    let upstream = Arc::new(InProcess { pair, fetched_bytes: AtomicU64::new(0), damage_at: Mutex::default() });
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), CacheOptions::default()).unwrap();
    let options = FetchOptions { on_wrong_hash: Arc::new(|_| ()), ..FetchOptions::default() };
    let fetcher = Fetcher::new(upstream.clone(), cache, options);
    make_local(&fetcher, &upstream.pair.old.tree);
    upstream.fetched_bytes.store(0, Ordering::Relaxed);
    (dir, upstream, fetcher)
}

fn make_local(fetcher: &Arc<Fetcher>, tree: &TreeId) {
    let manifest = fetcher.manifest(tree, Instant::now() + Duration::from_secs(20)).unwrap();
    fetcher.make_local(tree, &manifest, HydrateOptions::default(), &AtomicBool::new(false), &mut |_| ()).unwrap();
}

fn upgrade(upstream: &InProcess, fetcher: &Arc<Fetcher>) {
    let (from, to) = (upstream.pair.old.tree, upstream.pair.new.tree);
    let deadline = Instant::now() + Duration::from_secs(20);
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
    let (_dir, upstream, fetcher) = host();
    upgrade(&upstream, &fetcher);
    let counts = fetcher.counts();
    assert_eq!(upstream.fetched_bytes.load(Ordering::Relaxed), 300_000, "the file that is really new: {counts:?}");
    assert!(counts.delta_bytes < 60_000 && counts.delta_plain_bytes > 1_000_000, "{counts:?}");
}

#[test]
fn a_wrong_delta_costs_bytes_and_nothing_else() {
    let (_dir, upstream, fetcher) = host();
    let header = upstream.pair.store.delta(&upstream.pair.old.tree, &upstream.pair.new.tree).unwrap().unwrap();
    *upstream.damage_at.lock().unwrap() = Some(width::index(header.front_bytes()) + 20);
    upgrade(&upstream, &fetcher);
    assert!(upstream.fetched_bytes.load(Ordering::Relaxed) > 300_000);
}

#[test]
fn equal_chunks_are_copied_and_no_delta_is_asked_for_a_little() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    let shared = 2 * u64::from(CHUNK_BYTES);
    let data = noise(1, width::index(shared) + 10_000);
    let longer = [&data[..], b"and one line more"].concat();
    write(&old, &[("data", data)]);
    write(&new, &[("data", longer)]);
    let store = Store::open(&dir.path().join("store")).unwrap();
    let take_in =
        |source: &Path| publish(&store, source, &PublishOptions::default(), &Quiet, &AtomicBool::new(false)).unwrap();
    let (old, new) = (take_in(&old), take_in(&new));
    let pair = Pair { _dir: dir, store, old, new };
    let upstream = Arc::new(InProcess { pair, fetched_bytes: AtomicU64::new(0), damage_at: Mutex::default() });
    let cache_dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(cache_dir.path(), CacheOptions::default()).unwrap();
    let fetcher = Fetcher::new(upstream.clone(), cache, FetchOptions::default());
    make_local(&fetcher, &upstream.pair.old.tree);
    upstream.fetched_bytes.store(0, Ordering::Relaxed);
    upgrade(&upstream, &fetcher);
    assert_eq!(fetcher.counts().copied_bytes, shared);
    assert_eq!(upstream.fetched_bytes.load(Ordering::Relaxed), 10_017, "the last chunk");
}
