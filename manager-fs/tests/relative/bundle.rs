//! A start-up bundle: made of touches, sent as one stream, and read before the rest of the tree is here.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use manager_fs::host::cache::{Cache, CacheOptions};
use manager_fs::host::fetch::{ArrivedRange, FetchOptions, Fetcher, HydrateOptions, Wanted};
use manager_fs::manager::bundle::{self, BundleError, BundleOrder};
use manager_fs::manager::monitor::Quiet;
use proptest::prelude::*;
use proto::bundle::Touch;
use proto::{TreeId, width};
use tests::noise;

use super::origin::{Origin, Pair, soon};

const PAGE: u64 = 4096;

/// Two versions of a program of a megabyte, with a library that stayed and one small file.
fn pair() -> Pair {
    let program = noise(1, 1_000_000);
    let mut next = [&program[400_000..], &noise(2, 3_001)[..], &program[..400_000]].concat();
    next.chunks_exact_mut(64).for_each(|line| line[9] = line[9].wrapping_add(16));
    let files = |name: &str, program| {
        [("bin/run", program), ("library", noise(3, 300_000)), ("small", format!("of {name}").into_bytes())]
    };
    Pair::of(&files("old", program), &files("new", next))
}

impl Pair {
    fn content(&self, path: &str) -> Vec<u8> {
        fs::read(self.dir.path().join("new").join(path)).unwrap()
    }

    fn object(&self, path: &str) -> u32 {
        let id = proto::ObjectId::of(&self.content(path));
        width::count(self.manifest().object_index(&id).unwrap())
    }

    /// The program here and there, the small file, a whole chunk.
    fn touches(&self) -> Vec<Touch> {
        let (program, small, library) = (self.object("bin/run"), self.object("small"), self.object("library"));
        let touch = |object, first, count| Touch { object, first, count };
        vec![
            touch(program, 0, 1),
            touch(program, 200, 3),
            touch(small, 0, 1),
            touch(program, 1, 1),
            touch(library, 16, 16),
            touch(program, 243, 1),
            touch(program, 201, 9),
        ]
    }

    fn make(&self, from: Option<&TreeId>, touches: &[Touch]) -> Result<Vec<u8>, BundleError> {
        self.make_as(proto::bundle::Origin::Recorded, from, touches)
    }

    fn make_as(
        &self,
        origin: proto::bundle::Origin,
        from: Option<&TreeId>,
        touches: &[Touch],
    ) -> Result<Vec<u8>, BundleError> {
        let order = BundleOrder { tree: &self.new.tree, from, touches, origin, level: 3 };
        bundle::make(&self.store, order, &AtomicBool::new(false)).map(|(bytes, _)| bytes)
    }
}

struct Host {
    upstream: Arc<Origin>,
    fetcher: Arc<Fetcher>,
    arrived: Arc<Mutex<Vec<ArrivedRange>>>,
    wrong: Arc<AtomicU64>,
    _dir: tempfile::TempDir,
}

fn host(pair: Pair, bundle: Vec<u8>) -> Host {
    let upstream = Origin::new(pair, bundle);
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), CacheOptions::default()).unwrap();
    let (arrived, wrong) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(0)));
    let (noted, counted) = (Arc::clone(&arrived), Arc::clone(&wrong));
    let options = FetchOptions {
        read_ahead_bytes_max: 0,
        on_wrong_hash: Arc::new(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
        }),
        on_arrived: Arc::new(move |_, ranges| noted.lock().unwrap().extend(ranges)),
        ..FetchOptions::default()
    };
    let fetcher = Fetcher::new(upstream.clone(), cache, options);
    Host { upstream, fetcher, arrived, wrong, _dir: dir }
}

impl Host {
    fn begin(&self, from: Option<TreeId>) {
        self.fetcher.begin(&"p@2".parse().unwrap(), None, from, None);
    }

    fn read(&self, path: &str, offset: u64, len: u32) -> Vec<u8> {
        let manifest = self.upstream.pair.manifest();
        let object = &manifest.objects[self.upstream.pair.object(path) as usize];
        self.fetcher.read(Wanted::of(&self.upstream.pair.new.tree, &manifest, object), offset, len, soon()).unwrap()
    }

    /// Every touched page is read and is right; returns how many chunks had to be fetched as they are.
    fn read_touched(&self) -> u64 {
        for path in ["bin/run", "small", "library"] {
            let (object, content) = (self.upstream.pair.object(path), self.upstream.pair.content(path));
            for touch in self.upstream.pair.touches().iter().filter(|touch| touch.object == object) {
                let start = width::index(u64::from(touch.first) * PAGE);
                let end = (start + touch.count as usize * width::index(PAGE)).min(content.len());
                assert_eq!(self.read(path, start as u64, touch.count * width::count(PAGE)), content[start..end]);
            }
        }
        self.upstream.chunks.load(Ordering::Relaxed)
    }

    fn wait_until_over(&self) {
        self.fetcher.wait_until_quiet(Duration::ZERO, &AtomicBool::new(false));
    }
}

#[test]
fn a_start_needs_one_request_for_manifest_and_pages() {
    let pair = pair();
    let bundle = pair.make(None, &pair.touches()).unwrap();
    let host = host(pair, bundle);
    host.begin(None);
    let manifest = host.fetcher.manifest(&host.upstream.pair.new.tree, soon()).unwrap();
    assert_eq!(manifest, host.upstream.pair.manifest());
    assert_eq!(host.read_touched(), 0, "nothing was fetched by chunks");
    assert_eq!(host.upstream.manifests.load(Ordering::Relaxed), 0);
    let counts = host.fetcher.counts();
    assert_eq!((counts.requests, counts.wrong_hashes), (1, 0), "{counts:?}");
    let arrived: u64 = host.arrived.lock().unwrap().iter().map(|range| range.bytes).sum();
    assert_eq!(arrived, counts.bundle_plain_bytes);
    // What nobody foresaw is fetched as it is, and right.
    assert_eq!(host.read("bin/run", 500_000, 100), host.upstream.pair.content("bin/run")[500_000..500_100]);
    assert_eq!(host.upstream.chunks.load(Ordering::Relaxed), 1);
}

#[test]
fn a_reader_waits_for_a_page_on_its_way_and_asks_itself_for_any_other() {
    let pair = pair();
    let bundle = pair.make(None, &pair.touches()).unwrap();
    let all = bundle.len();
    let host = host(pair, bundle);
    // The frames' last bytes do not come yet.
    host.upstream.allow(all - 1);
    host.begin(None);
    host.fetcher.manifest(&host.upstream.pair.new.tree, soon()).unwrap();
    assert_eq!(host.read("bin/run", 520_000, 10), host.upstream.pair.content("bin/run")[520_000..520_010]);
    assert_eq!(host.upstream.chunks.load(Ordering::Relaxed), 1, "a page outside of the bundle overtakes it");
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| host.read("library", 70_000, 10));
        host.upstream.allow(usize::MAX);
        assert_eq!(reading.join().unwrap(), host.upstream.pair.content("library")[70_000..70_010]);
    });
    assert_eq!(host.read_touched(), 1);
}

#[test]
fn a_guess_may_have_a_chunk_in_several_parts_and_stays_out_of_the_page_cache() {
    let pair = pair();
    let (program, library) = (pair.object("bin/run"), pair.object("library"));
    let touch = |object, first, count| Touch { object, first, count };
    let touches = [touch(library, 0, 1), touch(program, 0, 240), touch(library, 8, 30), touch(library, 1, 3)];
    let bundle = pair.make_as(proto::bundle::Origin::Guessed, None, &touches).unwrap();
    let host = host(pair, bundle);
    host.begin(None);
    host.fetcher.manifest(&host.upstream.pair.new.tree, soon()).unwrap();
    let content = host.upstream.pair.content("library");
    assert_eq!(host.read("library", 0, 16_384), content[..16_384]);
    assert_eq!(host.read("library", 8 * PAGE, 100), content[8 * 4096..][..100]);
    host.wait_until_over();
    assert_eq!(host.upstream.chunks.load(Ordering::Relaxed), 0);
    assert_eq!(host.wrong.load(Ordering::Relaxed), 0);
    assert!(host.arrived.lock().unwrap().is_empty());
}

#[test]
fn a_host_with_the_old_tree_needs_a_fraction() {
    let pair = pair();
    let (old, touches) = (pair.old.tree, pair.touches());
    let plain = pair.make(None, &touches).unwrap();
    let relative = pair.make(Some(&old), &touches).unwrap();
    assert!(relative.len() * 4 < plain.len(), "{} against {}", relative.len(), plain.len());
    let host = host(pair, relative);
    let manifest = host.fetcher.manifest(&old, soon()).unwrap();
    let quiet = AtomicBool::new(false);
    host.fetcher.make_local(&old, &manifest, HydrateOptions::default(), &quiet, &mut |_| ()).unwrap();
    host.upstream.forget();
    host.begin(Some(old));
    host.fetcher.manifest(&host.upstream.pair.new.tree, soon()).unwrap();
    assert_eq!(host.read_touched(), 0, "the library is here, the rest came");
    assert_eq!(host.wrong.load(Ordering::Relaxed), 0);
}

#[test]
fn a_bundle_can_be_extended_and_is_collected_with_its_tree() {
    let pair = pair();
    let bundle = pair.make(None, &pair.touches()).unwrap();
    pair.store.put_bundle(None, &pair.new.tree, &bundle).unwrap();
    let (header, stored) = pair.store.bundle(None, &pair.new.tree).unwrap().unwrap();
    assert_eq!((stored, header.origin), (bundle, proto::bundle::Origin::Recorded));
    pair.store.put_bundle(None, &pair.new.tree, &pair.make(None, &[]).unwrap()).unwrap();
    let (_, stored) = pair.store.bundle(None, &pair.new.tree).unwrap().unwrap();
    assert_eq!(stored, pair.make(None, &[]).unwrap(), "the new one is in the place of the old");
    assert_eq!(pair.store.verify(&Quiet).unwrap().problems.len(), 0);
    let path = pair.dir.path().join("store/bundles");
    let file = walk(&path);
    let mut damaged = fs::read(&file).unwrap();
    damaged[200] ^= 1;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&file, damaged).unwrap();
    assert_eq!(pair.store.verify(&Quiet).unwrap().problems.len(), 1);
    assert!(pair.store.bundle(None, &pair.new.tree).unwrap().is_none() && !file.exists());
    let from = pair.make(Some(&pair.old.tree), &pair.touches()).unwrap();
    pair.store.put_bundle(Some(&pair.old.tree), &pair.new.tree, &from).unwrap();
    assert_eq!(pair.store.bundle_bases(&pair.new.tree).unwrap(), [pair.old.tree]);
    let Pair { store, old, new, dir: _dir } = pair;
    let keep = BTreeSet::from([new.tree]);
    drop((old, new));
    assert_eq!(store.gc(&keep, false, &Quiet).unwrap().bundles_removed, 1, "its old tree went");
}

fn walk(dir: &Path) -> PathBuf {
    let shard = fs::read_dir(dir).unwrap().next().unwrap().unwrap().path();
    fs::read_dir(shard).unwrap().next().unwrap().unwrap().path()
}

#[test]
fn touches_that_are_not_of_the_tree_are_refused() {
    let pair = pair();
    for touch in [
        Touch { object: 99, first: 0, count: 1 },
        Touch { object: pair.object("small"), first: 0, count: 2 },
        Touch { object: pair.object("bin/run"), first: 0, count: 0 },
        Touch { object: pair.object("bin/run"), first: u32::MAX, count: 2 },
    ] {
        assert!(matches!(pair.make(None, &[touch]), Err(BundleError::Touches(_))), "{touch:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever is wrong with a bundle, no wrong byte is read; what is missing is fetched as it is.
    #[test]
    fn a_damaged_bundle_costs_time_and_nothing_else(at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<bool>()) {
        let pair = pair();
        let mut bundle = pair.make(None, &pair.touches()).unwrap();
        let at = at.index(bundle.len());
        if cut { bundle.truncate(at) } else { bundle[at] ^= 1 << bit }
        let host = host(pair, bundle);
        host.begin(None);
        let manifest = host.fetcher.manifest(&host.upstream.pair.new.tree, soon()).unwrap();
        prop_assert_eq!(manifest, host.upstream.pair.manifest());
        host.read_touched();
        host.wait_until_over();
    }
}
