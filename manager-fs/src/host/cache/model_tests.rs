//! The cache against a model: whatever is written, lost, damaged and asked for in whatever order, what it says that it
//! has are the object's bytes.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use proto::id::ChunkId;
use proto::manifest::Object;
use proto::proof::{PAGE_BYTES, PageSet};
use proto::{ObjectId, width};

use super::*;

const CHUNK: u32 = 64 << 10;
const PAGES: u32 = CHUNK / PAGE_BYTES;

/// Three chunks and a half, the third of zeros.
fn content() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..3 * CHUNK + CHUNK / 2 + 7).map(|at| (at / 3 % 251) as u8 + 1).collect();
    bytes[2 * CHUNK as usize..3 * CHUNK as usize].fill(0);
    bytes
}

fn object(content: &[u8]) -> Object {
    Object {
        id: ObjectId::of(content),
        bytes: content.len() as u64,
        chunks: content.chunks(CHUNK as usize).map(ChunkId::of).collect(),
    }
}

/// What can happen to an object that is being filled.
#[derive(Debug, Clone)]
enum Event {
    /// A verified chunk comes.
    Chunk(u32),
    /// Verified pages of a chunk come.
    Pages(u32, BTreeSet<u32>),
    /// The worker dies, and another one opens the cache.
    Restart,
    /// The worker dies, and meanwhile somebody or some disk changes a byte of the file.
    Damage(u64),
    /// The worker dies, and the file is shorter or longer than it was.
    Resize(u64),
    /// Whoever waits for it asks that it become whole.
    Finish,
    /// A read.
    Read(u64, usize),
}

fn event() -> impl Strategy<Value = Event> {
    let len = 3 * u64::from(CHUNK) + u64::from(CHUNK) / 2 + 7;
    prop_oneof![
        4 => (0_u32..4).prop_map(Event::Chunk),
        4 => (0_u32..4, prop::collection::btree_set(0..PAGES, 1..6)).prop_map(|(at, pages)| Event::Pages(at, pages)),
        1 => Just(Event::Restart),
        1 => (0..len).prop_map(Event::Damage),
        1 => (0..2 * len).prop_map(Event::Resize),
        2 => Just(Event::Finish),
        6 => (0..len, 1_usize..100_000).prop_map(|(at, bytes)| Event::Read(at, bytes)),
    ]
}

struct Bench {
    dir: tempfile::TempDir,
    content: Vec<u8>,
    object: Object,
    cache: Arc<Cache>,
    /// What this worker has written, by page of the object.
    written: BTreeSet<u32>,
}

impl Bench {
    fn new() -> Self {
        let (dir, content) = (tempfile::tempdir().unwrap(), content());
        let (object, cache) = (object(&content), Self::open(dir.path()));
        Self { dir, content, object, cache, written: BTreeSet::new() }
    }

    fn open(dir: &Path) -> Arc<Cache> {
        Cache::open(dir, CacheOptions { quota_bytes: None, epoch: "boot".to_owned() }).unwrap()
    }

    fn restart(&mut self, meanwhile: impl FnOnce(&Path)) {
        let path = partial::partial_path(&self.dir.path().join("partial"), &self.object.id, CHUNK);
        meanwhile(&path);
        self.cache = Self::open(self.dir.path());
        self.written.clear();
    }

    fn chunk(&self, index: u32) -> &[u8] {
        self.content.chunks(CHUNK as usize).nth(index as usize).unwrap()
    }

    fn step(&mut self, event: Event) {
        let place = self.cache.place(&self.object, CHUNK).unwrap();
        match (event, place) {
            (Event::Chunk(index), Place::Partial(partial)) => {
                assert!(self.cache.put_chunk(&partial, index, self.chunk(index)));
                let pages = width::count(self.chunk(index).len()).div_ceil(PAGE_BYTES);
                self.written.extend((0..pages).map(|page| index * PAGES + page));
            }
            (Event::Pages(index, pages), Place::Partial(partial)) => self.put_pages(&partial, index, &pages),
            (Event::Restart, _) => self.restart(|_| ()),
            (Event::Damage(at), _) => self.restart(|path| {
                let Ok(file) = File::options().read(true).write(true).open(path) else { return };
                let mut byte = [0];
                if file.read_exact_at(&mut byte, at).is_ok() {
                    file.write_all_at(&[byte[0] ^ 0x55], at).unwrap();
                }
            }),
            (Event::Resize(len), _) => self.restart(|path| {
                let Ok(file) = File::options().write(true).open(path) else { return };
                file.set_len(len).unwrap();
            }),
            (Event::Finish, Place::Partial(partial)) => self.finish(&partial),
            (Event::Read(at, bytes), place) => self.read(&place, at, bytes),
            (_, Place::Local(_)) => {}
        }
    }

    fn put_pages(&mut self, partial: &Partial, index: u32, pages: &BTreeSet<u32>) {
        let (mut set, mut plain) = (PageSet::default(), Vec::new());
        let chunk = self.chunk(index).to_vec();
        let there = width::count(chunk.len()).div_ceil(PAGE_BYTES);
        for page in pages.iter().filter(|page| **page < there) {
            set.insert(*page);
            let start = (*page * PAGE_BYTES) as usize;
            plain.extend_from_slice(&chunk[start..(start + PAGE_BYTES as usize).min(chunk.len())]);
            self.written.insert(index * PAGES + page);
        }
        if !plain.is_empty() {
            assert!(self.cache.put_pages(partial, index, &set, &plain));
        }
    }

    fn finish(&mut self, partial: &Arc<Partial>) {
        // As the fetcher does: what an earlier worker left is looked at first.
        let all = (0..).zip(&self.object.chunks).all(|(index, id)| partial.has(index, id));
        assert_eq!(partial.is_complete(), all);
        if all {
            self.cache.finish(std::slice::from_ref(partial)).unwrap();
            assert!(self.cache.is_local(&self.object), "whole, so it is local");
            assert_eq!(std::fs::read(self.cache.local_path(&self.object.id)).unwrap(), self.content);
        }
    }

    fn read(&self, place: &Place, at: u64, bytes: usize) {
        let bytes = bytes.min(self.content.len() - width::index(at));
        let expected = &self.content[width::index(at)..][..bytes];
        let mut got = vec![0; bytes];
        match place {
            Place::Local(file) => file.read_exact_at(&mut got, at).unwrap(),
            Place::Partial(partial) => {
                let end = at + bytes as u64;
                let mut pages =
                    width::count(at / u64::from(PAGE_BYTES))..width::count(end.div_ceil(u64::from(PAGE_BYTES)));
                let has = partial.has_range(&self.object, at, bytes);
                assert!(has || !pages.all(|page| self.written.contains(&page)), "what was written can be read");
                if !has {
                    return;
                }
                partial.read_at(&mut got, at).unwrap();
            }
        }
        assert!(got == expected, "wrong bytes of {at}..+{bytes}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn what_the_cache_says_it_has_are_the_objects_bytes(events in prop::collection::vec(event(), 1..40)) {
        let mut bench = Bench::new();
        for event in events {
            bench.step(event);
        }
    }

    /// However full it is, what is pinned stays, and what is counted is what lies on the disk.
    #[test]
    fn evictions_spare_what_is_pinned_and_keep_count(
        sizes in prop::collection::vec(1_u32..200_000, 1..12),
        pinned in 0_usize..12,
        quota in 100_000_u64..600_000,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), CacheOptions { quota_bytes: Some(quota), epoch: String::new() }).unwrap();
        let contents: Vec<Vec<u8>> = (0_u8..).zip(&sizes).map(|(n, size)| vec![n + 1; *size as usize]).collect();
        let (mut kept, mut refused) = (None, 0);
        for (number, content) in contents.iter().enumerate() {
            let object = object(content);
            let Place::Partial(partial) = cache.place(&object, CHUNK).unwrap() else { panic!("never seen") };
            let chunks = (0..).zip(content.chunks(CHUNK as usize));
            let fits = chunks.fold(true, |fits, (index, chunk)| fits & cache.put_chunk(&partial, index, chunk));
            refused += usize::from(!fits);
            if fits {
                cache.finish(&[partial]).unwrap();
                if number == pinned {
                    cache.pin(TreeId::of(b"pinned"), &manifest_of(&object));
                    kept = Some(object);
                }
            }
        }
        let usage = cache.usage();
        prop_assert!(usage.local_bytes <= quota, "{usage:?}");
        if let Some(kept) = &kept {
            prop_assert!(cache.is_local(kept), "a pinned object was evicted: {usage:?}");
        }
        let on_disk: u64 = contents.iter().map(|content| object(content)).filter(|object| cache.is_local(object)).map(|object| object.bytes).sum();
        prop_assert_eq!(usage.local_bytes, on_disk);
        prop_assert!(refused == 0 || contents.iter().map(Vec::len).max().unwrap() as u64 > quota / 4, "{refused} refused");
        drop(cache);
        // Another worker counts the same.
        let again = Cache::open(dir.path(), CacheOptions { quota_bytes: Some(quota), epoch: String::new() }).unwrap();
        prop_assert_eq!(again.usage().local_bytes, on_disk);
    }
}

fn manifest_of(object: &Object) -> Manifest {
    Manifest { chunk_bytes: CHUNK, objects: vec![object.clone()], nodes: vec![], entries: vec![] }
}

#[test]
fn a_cache_that_others_could_read_is_closed_when_it_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    drop(Bench::open(dir.path()));
    let local = dir.path().join("local");
    std::fs::set_permissions(&local, std::fs::Permissions::from_mode(0o755)).unwrap();
    drop(Bench::open(dir.path()));
    assert_eq!(local.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
}

#[test]
fn a_manifest_that_the_disk_damaged_is_a_miss_and_is_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Bench::open(dir.path());
    let root = proto::manifest::Node {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime_s: 0,
        mtime_ns: 0,
        xattrs: vec![],
        kind: proto::manifest::NodeKind::Directory,
    };
    let entries = vec![proto::manifest::Entry { path: proto::TreePath::root(), node: 0 }];
    let manifest = Manifest { chunk_bytes: CHUNK, objects: vec![], nodes: vec![root], entries };
    let (bytes, tree) = manifest.encode().unwrap();
    cache.put_manifest(&tree, &bytes).unwrap();
    assert_eq!(cache.manifest(&tree), Some(manifest));
    let path = cache.manifest_path(&tree);
    for at in [0, bytes.len() / 2, bytes.len() - 1] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        assert_eq!(cache.manifest(&tree), None, "byte {at}");
        assert!(!path.exists(), "what is wrong does not stay");
        cache.put_manifest_soon(&tree, &bytes).unwrap();
        assert!(cache.manifest(&tree).is_some());
    }
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(cache.manifest(&tree), None, "a torn one");
    assert_eq!(cache.manifest(&TreeId::of(b"another")), None);
}

/// A disk that takes nothing: where the directory should be is a file, as root too.
#[test]
fn a_disk_that_refuses_is_an_error_that_names_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Bench::open(dir.path());
    let object = object(&content());
    let (shard, _) = object.id.to_shard();
    std::fs::write(dir.path().join("partial").join(&shard), b"in the way").unwrap();
    let refused = cache.place(&object, CHUNK).unwrap_err();
    assert!(refused.to_string().contains(&format!("partial/{shard}")), "{refused}");
    assert_eq!(refused.errno(), libc::EEXIST, "the program hears what the disk said");
    std::fs::write(dir.path().join("not-a-directory"), b"").unwrap();
    let refused = Cache::open(&dir.path().join("not-a-directory"), CacheOptions::default()).unwrap_err();
    assert!(refused.to_string().contains("not-a-directory/local"), "{refused}");
}

#[test]
fn a_lying_manifest_is_found_out_before_the_object_is_local() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Bench::open(dir.path());
    let content = content();
    // Every chunk is what the manifest says, and the whole is not.
    let lie = Object { id: ObjectId::of(b"something else"), ..object(&content) };
    let Place::Partial(partial) = cache.place(&lie, CHUNK).unwrap() else { panic!("never seen") };
    for (index, chunk) in (0..).zip(content.chunks(CHUNK as usize)) {
        assert!(cache.put_chunk(&partial, index, chunk));
    }
    let refused = cache.finish(&[Arc::clone(&partial)]).unwrap_err();
    assert!(matches!(refused, CacheError::WrongHash(id) if id == lie.id));
    assert!(!cache.is_local(&lie) && !partial.is_complete(), "it is emptied");
    assert_eq!(cache.usage().local_bytes, 0);
}

#[test]
fn many_small_objects_become_local_together_and_one_liar_does_not_stop_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Bench::open(dir.path());
    let contents: Vec<Vec<u8>> = (0..40_u8).map(|n| vec![n + 1; 100 + usize::from(n)]).collect();
    let mut objects: Vec<Object> = contents.iter().map(|content| object(content)).collect();
    objects[17].id = ObjectId::of(b"a lie");
    let partials: Vec<Arc<Partial>> = objects
        .iter()
        .zip(&contents)
        .map(|(object, content)| {
            let Place::Partial(partial) = cache.place(object, CHUNK).unwrap() else { panic!("never seen") };
            assert!(cache.put_chunk(&partial, 0, content));
            partial
        })
        .collect();
    // Several threads saw the last chunk come, so some are named twice.
    let twice: Vec<_> = partials.iter().chain(&partials[..5]).cloned().collect();
    assert!(matches!(cache.finish(&twice), Err(CacheError::WrongHash(id)) if id == objects[17].id));
    for (at, object) in objects.iter().enumerate() {
        assert_eq!(cache.is_local(object), at != 17, "{at}");
    }
    assert_eq!(cache.usage().objects, 39);
    cache.finish(&twice[..3]).unwrap();
    assert_eq!(cache.usage().objects, 39, "what is local already is not counted again");
}
