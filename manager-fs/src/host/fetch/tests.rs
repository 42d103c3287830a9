//! The fetcher against an upstream in memory that counts, lies, stalls and fails.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use proto::manifest::{Entry, Node, NodeKind};
use proto::message::numbered;
use proto::width;
use proto::{ObjectId, TreePath};

use super::*;
use crate::host::cache::CacheOptions;

pub(super) const CHUNK: u32 = 4096;

struct Memory {
    manifest: Vec<u8>,
    tree: TreeId,
    contents: HashMap<ObjectId, Vec<u8>>,
    /// Every chunk that was asked for, by object and index.
    asked: Mutex<Vec<(ObjectId, u32)>>,
    requests: AtomicU32,
    lies: AtomicU32,
    offline: AtomicBool,
    /// Requests of this object wait until the barrier opens.
    stalled: Mutex<Option<(ObjectId, Arc<Barrier>)>>,
}

impl Memory {
    fn of(files: &[Vec<u8>]) -> Arc<Self> {
        let node = |mode, kind| Node { mode, uid: 0, gid: 0, mtime_s: 1, mtime_ns: 2, xattrs: vec![], kind };
        let mut nodes = vec![node(0o755, NodeKind::Directory)];
        let mut entries = vec![Entry { path: TreePath::root(), node: 0 }];
        for (n, file) in files.iter().enumerate() {
            nodes.push(node(0o644, NodeKind::File(ObjectId::of(file))));
            let path = TreePath::parse(format!("f{n:04}").as_bytes()).unwrap();
            entries.push(Entry { path, node: width::count(nodes.len()) - 1 });
        }
        let mut objects: Vec<Object> = files
            .iter()
            .map(|file| Object {
                id: ObjectId::of(file),
                bytes: file.len() as u64,
                chunks: file.chunks(CHUNK as usize).map(ChunkId::of).collect(),
            })
            .collect();
        objects.sort_by_key(|object| object.id);
        objects.dedup();
        let (manifest, tree) = Manifest { chunk_bytes: CHUNK, objects, nodes, entries }.encode().unwrap();
        Arc::new(Self {
            manifest,
            tree,
            contents: files.iter().map(|file| (ObjectId::of(file), file.clone())).collect(),
            asked: Mutex::default(),
            requests: AtomicU32::new(0),
            lies: AtomicU32::new(0),
            offline: AtomicBool::new(false),
            stalled: Mutex::default(),
        })
    }

    fn asked(&self) -> usize {
        lock(&self.asked).len()
    }
}

impl Upstream for Memory {
    fn manifest(&self, tree: &TreeId, _deadline: Instant) -> Result<Vec<u8>, UpstreamError> {
        if *tree == self.tree { Ok(self.manifest.clone()) } else { Err(UpstreamError::NotExported(tree.to_string())) }
    }

    fn chunks(
        &self,
        _tree: &TreeId,
        wants: &[ChunkRange],
        _urgency: Urgency,
        _deadline: Instant,
        sink: &mut dyn FnMut(ChunkHead, Vec<u8>),
    ) -> Result<(), UpstreamError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if self.offline.load(Ordering::Relaxed) {
            return Err(UpstreamError::Unavailable("offline".into()));
        }
        let stalled = lock(&self.stalled).clone();
        if let Some((object, barrier)) = stalled
            && wants.iter().any(|want| want.object == object)
        {
            barrier.wait();
        }
        for (sequence, object, index) in numbered(wants) {
            lock(&self.asked).push((object, index));
            let chunk = self.contents[&object].chunks(CHUNK as usize).nth(index as usize).unwrap();
            let mut plain = chunk.to_vec();
            if self.lies.load(Ordering::Relaxed) > 0 {
                self.lies.fetch_sub(1, Ordering::Relaxed);
                plain[0] ^= 1;
            }
            let plain_bytes = width::count(plain.len());
            let (encoding, stored) = match index % 2 {
                0 => (Encoding::Zstd, zstd::bulk::compress(&plain, 1).unwrap()),
                _ => (Encoding::Raw, plain),
            };
            sink(ChunkHead { sequence, encoding, plain_bytes }, stored);
        }
        Ok(())
    }
}

pub(super) struct Bench {
    _dir: tempfile::TempDir,
    upstream: Arc<Memory>,
    pub(super) fetcher: Arc<Fetcher>,
    manifest: Manifest,
    reported: Arc<Mutex<Vec<String>>>,
}

impl Bench {
    pub(super) fn new(files: &[Vec<u8>], quota_bytes: Option<u64>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let upstream = Memory::of(files);
        let cache = Cache::open(dir.path(), CacheOptions { quota_bytes, ..CacheOptions::default() }).unwrap();
        let reported: Arc<Mutex<Vec<String>>> = Arc::default();
        let told = reported.clone();
        let options = FetchOptions {
            read_ahead_bytes_max: 0,
            on_wrong_hash: Arc::new(move |what| lock(&told).push(what)),
            ..FetchOptions::default()
        };
        let fetcher = Fetcher::new(upstream.clone(), cache, options);
        let manifest = fetcher.manifest(&upstream.tree, soon(5_000)).unwrap();
        Self { _dir: dir, upstream, fetcher, manifest, reported }
    }

    fn read(&self, file: &[u8], offset: u64, len: u32) -> Result<Vec<u8>, FetchError> {
        self.fetcher.read(self.wanted(file), offset, len, soon(5_000))
    }

    fn verify(&self, look: Look) -> VerifyReport {
        let tree = TreeRef { id: &self.upstream.tree, manifest: &self.manifest };
        self.fetcher.verify_local(tree, &self.manifest.objects, look, &AtomicBool::new(false))
    }

    pub(super) fn wanted<'a>(&'a self, file: &[u8]) -> Wanted<'a> {
        let object = self.manifest.object(&ObjectId::of(file)).unwrap();
        Wanted::of(&self.upstream.tree, &self.manifest, object)
    }

    fn make_local(&self) -> Result<(), FetchError> {
        let options = HydrateOptions { patience: Duration::from_millis(300), ..HydrateOptions::default() };
        // Whoever waits for the last byte finds every object local.
        let whole = |now: HydrateProgress| now.local_bytes == now.object_bytes;
        let is_local = || self.manifest.objects.iter().all(|object| self.fetcher.cache().is_local(object));
        let mut told = |now| assert!(!whole(now) || is_local(), "{now:?} before it is true");
        self.fetcher.make_local(&self.upstream.tree, &self.manifest, options, &AtomicBool::new(false), &mut told)
    }
}

fn soon(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

pub(super) fn content(seed: u8, len: usize) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(len)
    .collect()
}

#[test]
fn many_readers_of_one_range_ask_for_each_chunk_once_and_in_one_request() {
    let file = content(1, 10 * CHUNK as usize + 100);
    let bench = Bench::new(std::slice::from_ref(&file), None);
    let start = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                start.wait();
                let bytes = bench.fetcher.read(bench.wanted(&file), 5_000, 20_000, soon(5_000)).unwrap();
                assert_eq!(bytes, file[5_000..25_000]);
            });
        }
    });
    let mut asked = lock(&bench.upstream.asked).clone();
    asked.sort_unstable();
    let indexes: Vec<u32> = asked.iter().map(|(_, index)| *index).collect();
    assert_eq!(indexes, [1, 2, 3, 4, 5, 6], "each chunk of the range once");
    assert_eq!(bench.upstream.requests.load(Ordering::Relaxed), 1);
}

#[test]
fn a_read_over_the_end_is_short_and_what_is_present_needs_no_request() {
    let file = content(2, 5_000);
    let bench = Bench::new(std::slice::from_ref(&file), None);
    assert!(bench.fetcher.read_present(bench.wanted(&file), 0, 10).is_none());
    assert_eq!(bench.fetcher.first_answer(), None);
    assert_eq!(bench.fetcher.read(bench.wanted(&file), 4_990, 1_000, soon(5_000)).unwrap(), file[4_990..]);
    assert_eq!(bench.fetcher.read(bench.wanted(&file), 9_000, 10, soon(5_000)).unwrap(), b"");
    assert!(bench.fetcher.first_answer().is_some(), "the answer was timed");
    let asked = bench.upstream.asked();
    assert_eq!(bench.fetcher.read_present(bench.wanted(&file), 4_096, 10).unwrap().unwrap(), file[4_096..4_106]);
    assert_eq!(bench.upstream.asked(), asked);
}

#[test]
fn a_wrong_hash_is_never_served_or_kept_and_is_reported_and_fetched_again() {
    let file = content(3, 3 * CHUNK as usize);
    let bench = Bench::new(std::slice::from_ref(&file), None);
    bench.upstream.lies.store(1, Ordering::Relaxed);
    assert_eq!(bench.fetcher.read(bench.wanted(&file), 0, 100, soon(5_000)).unwrap(), file[..100]);
    assert_eq!(lock(&bench.reported).len(), 1);
    bench.upstream.lies.store(u32::MAX, Ordering::Relaxed);
    let begun = Instant::now();
    let error = bench.fetcher.read(bench.wanted(&file), 5_000, 100, soon(30_000)).unwrap_err();
    assert!(matches!(error, FetchError::WrongHash { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10), "a liar is not asked until the deadline");
    assert!(bench.fetcher.read_present(bench.wanted(&file), 5_000, 100).is_none(), "nothing of it is in the cache");
}

#[test]
fn a_read_fails_within_its_deadline_and_works_again_when_the_manager_is_back() {
    let file = content(4, 10_000);
    let bench = Bench::new(std::slice::from_ref(&file), None);
    bench.upstream.offline.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    let error = bench.fetcher.read(bench.wanted(&file), 0, 10, soon(300)).unwrap_err();
    assert!(matches!(error, FetchError::Upstream { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_millis(1_000));
    let upstream = bench.upstream.clone();
    let back = std::thread::spawn(move || {
        while upstream.requests.load(Ordering::Relaxed) < 6 {
            std::thread::yield_now();
        }
        upstream.offline.store(false, Ordering::Relaxed);
    });
    assert_eq!(bench.fetcher.read(bench.wanted(&file), 0, 10, soon(20_000)).unwrap(), file[..10]);
    back.join().unwrap();
}

#[test]
fn a_demand_does_not_wait_for_a_background_request_that_stalls() {
    let file = content(5, 2 * CHUNK as usize);
    let bench = Bench::new(std::slice::from_ref(&file), None);
    let gate = Arc::new(Barrier::new(2));
    *lock(&bench.upstream.stalled) = Some((ObjectId::of(&file), gate.clone()));
    std::thread::scope(|scope| {
        let background = scope.spawn(|| bench.make_local());
        while bench.upstream.requests.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        *lock(&bench.upstream.stalled) = None;
        let bytes = bench.fetcher.read(bench.wanted(&file), 0, 100, soon(10_000)).unwrap();
        assert_eq!(bytes, file[..100]);
        gate.wait();
        background.join().unwrap().unwrap();
    });
    assert!(bench.fetcher.cache().is_local(bench.wanted(&file).object));
}

#[test]
fn what_a_reader_could_not_get_is_asked_for_by_others_while_it_waits_for_the_rest() {
    let file = content(9, 2 * CHUNK as usize);
    let bench = Bench::new(std::slice::from_ref(&file), None);
    let wanted = bench.wanted(&file);
    // Somebody else fetches chunk 1, and takes long.
    let (other, _) = bench.fetcher.depart(wanted, None, &[1], Urgency::Demand);
    bench.upstream.offline.store(true, Ordering::Relaxed);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| bench.read(&file, 0, 2 * CHUNK));
        while bench.fetcher.counts().joined == 0 {
            std::thread::yield_now();
        }
        // It has asked for chunk 0 in vain and waits for chunk 1.
        bench.upstream.offline.store(false, Ordering::Relaxed);
        let bytes = bench.fetcher.read(wanted, 0, CHUNK, soon(2_000));
        drop(other);
        assert_eq!(bytes.expect("chunk 0 can be had"), file[..CHUNK as usize]);
        assert_eq!(reader.join().unwrap().unwrap(), file);
    });
}

#[test]
fn a_tree_becomes_local_whole_read_only_and_without_partial_copies() {
    use std::os::unix::fs::PermissionsExt;
    let files: Vec<_> = (0..150).map(|n| content(n, 100 + usize::from(n) * 100)).collect();
    let bench = Bench::new(&files, None);
    bench.make_local().unwrap();
    let cache = bench.fetcher.cache();
    assert_eq!(cache.local_bytes(&bench.manifest), bench.manifest.object_bytes());
    for file in &files {
        let path = cache.local_path(&ObjectId::of(file));
        assert_eq!(std::fs::read(&path).unwrap(), *file);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o444);
    }
    let usage = cache.usage();
    assert_eq!((usage.partial_bytes, usage.objects), (0, 150));
    let left: Vec<_> = walk(&bench._dir.path().join("partial"));
    assert_eq!(left, Vec::<std::path::PathBuf>::new());
    assert!(bench.upstream.requests.load(Ordering::Relaxed) < 10, "many objects travel in one request");
    let asked = bench.upstream.asked();
    bench.make_local().unwrap();
    assert_eq!(bench.upstream.asked(), asked, "nothing is fetched twice");
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let shards = std::fs::read_dir(dir).unwrap().map(|shard| shard.unwrap().path());
    shards.flat_map(|shard| std::fs::read_dir(shard).unwrap().map(|file| file.unwrap().path())).collect()
}

#[test]
fn damage_in_the_cache_is_found_removed_reported_and_fetched_again() {
    let files = [content(1, 5_000), content(2, 6_000), content(3, 7_000)];
    let bench = Bench::new(&files, None);
    bench.make_local().unwrap();
    let cache = bench.fetcher.cache();
    let damaged = ObjectId::of(&files[1]);
    let path = cache.local_path(&damaged);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, content(9, 6_000)).unwrap();
    let report = bench.verify(Look::Changed);
    assert_eq!(
        (report.checked, report.wrong),
        (1, vec![damaged]),
        "the others look as they did when they were hashed"
    );
    assert!(lock(&bench.reported)[0].contains(&damaged.to_hex()));
    bench.make_local().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), files[1]);
    // Another length is noticed without hashing.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"short").unwrap();
    assert!(!cache.is_local(bench.wanted(&files[1]).object));
}

#[test]
fn bytes_that_changed_under_the_same_name_size_and_time_are_found() {
    let files = [content(1, 5_000), content(2, 6_000)];
    let bench = Bench::new(&files, None);
    bench.make_local().unwrap();
    let path = bench.fetcher.cache().local_path(&ObjectId::of(&files[0]));
    let before = std::fs::metadata(&path).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"evil", 100).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    file.set_times(std::fs::FileTimes::new().set_modified(before.modified().unwrap())).unwrap();
    let now = std::fs::metadata(&path).unwrap();
    assert_eq!((now.len(), now.modified().unwrap()), (before.len(), before.modified().unwrap()));
    // A reader gets the right bytes, whether or not anyone has looked before.
    assert_eq!(bench.read(&files[0], 90, 100).unwrap(), files[0][90..190]);
    assert!(lock(&bench.reported).is_empty() && bench.verify(Look::All).wrong.is_empty());
    bench.make_local().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), files[0]);
}

#[test]
fn what_no_stat_tells_is_found_by_hashing_all() {
    let files = [content(1, 300_000), content(2, 6_000)];
    let bench = Bench::new(&files, None);
    bench.make_local().unwrap();
    let cache = bench.fetcher.cache();
    let (damaged, path) = (ObjectId::of(&files[0]), cache.local_path(&ObjectId::of(&files[0])));
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"evil", 299_000).unwrap();
    // As a disk does that lies: the file looks as it did.
    cache.forge_stamp(&damaged);
    assert_eq!(bench.verify(Look::Changed), VerifyReport::default());
    assert_eq!(bench.verify(Look::All).wrong, [damaged]);
}

#[test]
fn an_object_that_was_only_used_is_not_hashed_again() {
    let files = [content(1, 5_000)];
    let bench = Bench::new(&files, None);
    bench.make_local().unwrap();
    let cache = bench.fetcher.cache();
    cache.pin(bench.upstream.tree, &bench.manifest);
    cache.unpin(&bench.upstream.tree);
    assert_eq!(bench.verify(Look::Changed).checked, 0, "unpinning sets the time of its last use");
}

#[test]
fn over_quota_reads_stream_and_pinned_objects_stay() {
    let files = [content(1, 40_000), content(2, 40_000), content(3, 40_000)];
    let bench = Bench::new(&files, Some(50_000));
    let error = bench.make_local().unwrap_err();
    assert!(error.to_string().contains("quota of 50000 bytes"), "{error}");
    let cache = bench.fetcher.cache();
    cache.pin(bench.upstream.tree, &bench.manifest);
    let evicted = cache.usage().evicted_objects;
    for file in &files {
        let bytes = bench.fetcher.read(bench.wanted(file), 0, 40_000, soon(5_000)).unwrap();
        assert_eq!(bytes, *file, "over quota every byte still comes, verified");
    }
    let usage = cache.usage();
    assert!(usage.local_bytes + usage.partial_bytes <= 50_000 && usage.streaming, "{usage:?}");
    assert_eq!(usage.evicted_objects, evicted, "pinned objects stay");
}

#[test]
fn the_longest_unused_objects_go_first() {
    let (old, used, new) = (content(1, 40_000), content(2, 40_000), content(3, 40_000));
    let bench = Bench::new(&[old.clone(), used.clone(), new.clone()], Some(100_000));
    let read_whole = |file: &[u8]| {
        bench.fetcher.read(bench.wanted(file), 0, 40_000, soon(5_000)).unwrap();
        while !bench.fetcher.cache().is_local(bench.wanted(file).object) {
            std::thread::yield_now();
        }
    };
    read_whole(&old);
    read_whole(&used);
    let cache = bench.fetcher.cache();
    let long_ago = std::fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
    std::fs::File::open(cache.local_path(&ObjectId::of(&old))).unwrap().set_times(long_ago).unwrap();
    read_whole(&new);
    assert!(!cache.is_local(bench.wanted(&old).object));
    assert!(cache.is_local(bench.wanted(&used).object) && cache.is_local(bench.wanted(&new).object));
    assert_eq!(cache.usage().evicted_objects, 1);
}

#[test]
fn a_sequential_reader_finds_its_bytes_fetched_ahead() {
    let file = content(7, 400 * CHUNK as usize);
    let dir = tempfile::tempdir().unwrap();
    let upstream = Memory::of(std::slice::from_ref(&file));
    let cache = Cache::open(dir.path(), CacheOptions::default()).unwrap();
    let fetcher = Fetcher::new(upstream.clone(), cache, FetchOptions::default());
    let manifest = fetcher.manifest(&upstream.tree, soon(5_000)).unwrap();
    let wanted = Wanted::of(&upstream.tree, &manifest, &manifest.objects[0]);
    for offset in [0, 16_384] {
        let bytes = fetcher.read(wanted, offset, 16_384, soon(5_000)).unwrap();
        assert_eq!(bytes, file[width::index(offset)..][..16_384]);
    }
    let until = soon(10_000);
    while fetcher.read_present(wanted, 32_768, 16_384).is_none() {
        assert!(Instant::now() < until, "the second sequential read starts reading ahead");
        std::thread::yield_now();
    }
    assert!(!fetcher.cache().is_local(wanted.object), "and not to the end of the file");
    for offset in (32_768..file.len() as u64).step_by(16_384) {
        fetcher.read(wanted, offset, 16_384, soon(5_000)).unwrap();
    }
    while !fetcher.cache().is_local(wanted.object) {
        assert!(Instant::now() < until, "what was read to the end becomes local");
        std::thread::yield_now();
    }
}
