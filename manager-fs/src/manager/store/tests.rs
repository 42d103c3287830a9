use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use ::tests::noise;
use proto::TreeId;
use proto::width;

use super::*;
use crate::manager::monitor::Quiet;
use crate::manager::publish::{PublishError, PublishOptions, Published, publish};
use crate::manager::testing::{Fixture, Item, Kind, Model, list};

/// What happens at the chosen operation.
#[derive(Clone, Copy)]
pub(super) enum Fault {
    /// The process is gone, with all that it had not made durable.
    Abort,
    /// The disk is full, from now on.
    Full,
}

/// Blobs in a directory, with a fault at the nth operation; operations before and after a commit count too.
#[derive(Clone)]
struct Faulty<T: ?Sized> {
    plan: Arc<Plan>,
    inner: Box<T>,
}

struct Plan {
    fault: Fault,
    left: AtomicU64,
}

impl Plan {
    fn step(&self) -> io::Result<()> {
        let left = self.left.load(Ordering::SeqCst);
        self.left.store(left.saturating_sub(1), Ordering::SeqCst);
        match self.fault {
            Fault::Abort if left == 1 => std::process::abort(),
            Fault::Full if left <= 1 => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }
}

impl PackStore for Faulty<dyn PackStore> {
    fn create(&self) -> io::Result<Box<dyn Draft>> {
        self.plan.step()?;
        let inner = self.inner.create()?;
        Ok(Box::new(Faulty { plan: self.plan.clone(), inner }))
    }
    fn size(&self, name: &BlobName) -> io::Result<Option<u64>> {
        self.inner.size(name)
    }
    fn get(&self, name: &BlobName, range: Range<u64>) -> io::Result<Vec<u8>> {
        self.inner.get(name, range)
    }
    fn list(&self, kind: BlobKind) -> io::Result<Vec<BlobName>> {
        self.inner.list(kind)
    }
    fn delete(&self, name: &BlobName) -> io::Result<()> {
        self.plan.step()?;
        self.inner.delete(name)
    }
}

impl Draft for Faulty<dyn Draft> {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.plan.step()?;
        self.inner.append(bytes)
    }
    fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        self.inner.read(range)
    }
    fn commit(self: Box<Self>, name: &BlobName) -> io::Result<Put> {
        self.plan.step()?;
        let put = self.inner.commit(name)?;
        self.plan.step()?;
        Ok(put)
    }
    fn replace(self: Box<Self>, name: &BlobName) -> io::Result<()> {
        self.plan.step()?;
        self.inner.replace(name)?;
        self.plan.step()
    }
}

pub(super) fn open_faulty(root: &Path, fault: Fault, step: u64) -> Store {
    let plan = Arc::new(Plan { fault, left: AtomicU64::new(step) });
    opened(|| {
        let plan = Arc::clone(&plan);
        let packs = |root: &Path| -> io::Result<Box<dyn PackStore>> {
            Ok(Box::new(Faulty::<dyn PackStore> { plan, inner: Box::new(LocalPacks::open(root)?) }))
        };
        Store::open_with(root, packs)
    })
}

/// Opens a store that was just closed: a child of another test, between fork and exec, has every descriptor of this process,
/// locks included.
pub(super) fn opened(open: impl Fn() -> Result<Store, StoreError>) -> Store {
    for _ in 0..500 {
        match open() {
            Err(StoreError::InUse { .. }) => thread::sleep(std::time::Duration::from_millis(10)),
            opened => return opened.unwrap(),
        }
    }
    panic!("the store stays in use");
}

pub(super) fn publish_plain(store: &Store, source: &Path) -> Result<Published, PublishError> {
    publish(store, source, &PublishOptions::default(), &Quiet, &AtomicBool::new(false))
}

pub(super) fn source(dir: &Path, name: &str, seeds: &[u64]) -> PathBuf {
    let path = dir.join(name);
    let mut model = Model::new([]);
    for seed in seeds {
        model.0.insert(format!("file-{seed}"), Item::file(noise(*seed, 300_000)));
    }
    model.write(&path);
    path
}

pub(super) fn assert_sound(store: &Store) {
    let report = store.verify(&Quiet).unwrap();
    assert_eq!(report.problems, []);
}

const CHILD: &str = "MANAGER_FS_TEST_CRASH";

/// The process dies at every step of a publication onto a store that has a tree already: the next start finds that tree
/// whole, no draft, and publishes the new one.
#[test]
fn a_crash_at_any_step_leaves_the_store_sound() {
    if let Some(step) = std::env::var_os(CHILD) {
        let dir = PathBuf::from(std::env::var_os("MANAGER_FS_TEST_DIR").unwrap());
        let store = open_faulty(&dir.join("store"), Fault::Abort, step.to_str().unwrap().parse().unwrap());
        publish_plain(&store, &dir.join("new")).unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let old = source(dir.path(), "old", &[1, 2]);
    source(dir.path(), "new", &[2, 3, 4, 5, 6, 7, 8, 9]);
    let root = dir.path().join("store");
    let old = publish_plain(&Store::open(&root).unwrap(), &old).unwrap().tree;
    let fresh = dir.path().join("fresh");
    copy(&root, &fresh);
    let mut crashes = 0;
    for step in 1.. {
        let _ = fs::remove_dir_all(&root);
        copy(&fresh, &root);
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "manager::store::tests::a_crash_at_any_step_leaves_the_store_sound"])
            .env(CHILD, step.to_string())
            .env("MANAGER_FS_TEST_DIR", dir.path())
            .output()
            .unwrap()
            .status;
        let store = Store::open(&root).unwrap();
        assert_eq!(list(&root.join("tmp")), [""; 0], "step {step}");
        assert_sound(&store);
        let trees = store.trees().unwrap();
        assert!(trees.contains(&old), "step {step}");
        let again = publish_plain(&store, &dir.path().join("new")).unwrap();
        assert_sound(&store);
        if status.success() {
            assert!(trees.contains(&again.tree) && again.stats.new_chunks == 0, "step {step}");
            break;
        }
        assert_eq!(status.signal(), Some(6), "the child must die at step {step} and of nothing else");
        crashes += 1;
    }
    assert!(crashes >= 10, "{crashes} steps are too few: the faults are not where the work is");
}

pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for path in list(from) {
        let (from, to) = (from.join(&path), to.join(&path));
        if from.is_dir() { fs::create_dir(&to).unwrap() } else { fs::copy(&from, &to).map(|_| ()).unwrap() }
    }
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(dir.path(), "source", &[1, 2, 3, 4, 5]);
    let root = dir.path().join("store");
    let mut failures = 0;
    for step in 1.. {
        let _ = fs::remove_dir_all(&root);
        let store = open_faulty(&root, Fault::Full, step);
        match publish_plain(&store, &source) {
            Ok(_) => break,
            Err(error) => {
                assert!(error.to_string().contains("no space left"), "{error}");
                assert_eq!(list(&root.join("tmp")), [""; 0]);
                assert_sound(&store);
                failures += 1;
            }
        }
    }
    assert!(failures >= 8, "{failures}");
}

#[test]
fn what_is_no_store_of_ours_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = |root: &Path| Store::open(root).err().expect("refused").to_string();
    let root = dir.path().join("store");
    let store = Store::open(&root).unwrap();
    assert!(error(&root).contains("in use"));
    drop(store);

    fs::write(root.join("format"), "manager-fs store 3\n").unwrap();
    assert!(error(&root).contains("'manager-fs store 2'") && error(&root).contains("newer manager-fs"));
    fs::write(root.join("format"), "something else\n").unwrap();
    assert!(error(&root).contains("something else"));

    fs::remove_file(root.join("format")).unwrap();
    fs::create_dir(root.join("packs/aa")).unwrap();
    assert!(error(&root).contains("'format' is missing"));

    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("letters.txt"), "dear").unwrap();
    assert!(error(&other).contains("letters.txt"));
    assert_eq!(list(&other), ["letters.txt"], "nothing was made there");
}

#[test]
fn drafts_of_a_crash_are_removed_at_the_next_start() {
    let fixture = Fixture::new();
    let root = fixture.dir.path().join("store");
    drop(fixture.store);
    fs::write(root.join("tmp/left"), "over").unwrap();
    Store::open(&root).unwrap();
    assert_eq!(list(&root.join("tmp")), [""; 0]);
}

#[test]
fn publishers_at_the_same_time_all_succeed() {
    let fixture = Fixture::new();
    let dir = fixture.dir.path();
    let sources: Vec<PathBuf> =
        (0..4).map(|n| source(dir, &format!("source-{n}"), &[1, 2, 10 + n / 2, 20 + n])).collect();
    let start = Barrier::new(8);
    let trees: Vec<TreeId> = thread::scope(|scope| {
        let handles: Vec<_> = (0..8_usize)
            .map(|n| {
                let (store, source, start) = (&fixture.store, &sources[n / 2], &start);
                scope.spawn(move || {
                    start.wait();
                    publish_plain(store, source).unwrap().tree
                })
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    assert!(trees.chunks(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(fixture.store.trees().unwrap().len(), 4);
    assert_sound(&fixture.store);

    // Chunks that were written twice are found wherever they remain.
    let keep = BTreeSet::from([trees[7]]);
    fixture.store.gc(&keep, false, &Quiet).unwrap();
    assert_eq!(fixture.store.trees().unwrap(), [trees[7]]);
    assert_sound(&fixture.store);
    let root = fixture.dir.path().join("store");
    drop(fixture.store);
    assert_sound(&Store::open(&root).unwrap());
}

/// Publications and collections at the same time: what a guard holds, and what is kept, is always whole.
#[test]
fn collection_beside_publication_and_readers_takes_nothing_that_is_needed() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let kept = publish_plain(store, &source(fixture.dir.path(), "kept", &[1, 2, 3])).unwrap();
    let keep = BTreeSet::from([kept.tree]);
    drop(kept);
    // Shares chunks with what is kept, with one another, and with what was collected a moment ago.
    let sources: Vec<PathBuf> =
        (0..3).map(|n| source(fixture.dir.path(), &format!("s{n}"), &[3, 50, 60 + n, 70 + n])).collect();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let publishers: Vec<_> = sources
            .iter()
            .map(|source| {
                scope.spawn(|| {
                    for _ in 0..12 {
                        let published = publish_plain(store, source).unwrap();
                        read_all(store, &published.tree);
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                store.gc(&keep, false, &Quiet).unwrap();
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                keep.iter().for_each(|tree| read_all(store, tree));
            }
        });
        let results: Vec<_> = publishers.into_iter().map(|publisher| publisher.join()).collect();
        done.store(true, Ordering::SeqCst);
        results.into_iter().for_each(|result| result.unwrap());
    });
    assert_sound(store);
    store.gc(&keep, false, &Quiet).unwrap();
    assert_eq!(store.trees().unwrap(), keep.iter().copied().collect::<Vec<_>>());
    assert_eq!(store.usage().unwrap().plain_bytes, 900_000);
    store.gc(&BTreeSet::new(), false, &Quiet).unwrap();
    assert_eq!(store.usage().unwrap(), Usage::default());
}

pub(super) fn read_all(store: &Store, tree: &TreeId) {
    for object in store.tree(tree).unwrap().objects {
        for chunk in object.chunks {
            store.plain_chunk(&chunk).unwrap();
        }
    }
}

#[test]
fn a_publication_that_ends_during_a_collection_is_kept() {
    let fixture = Fixture::new();
    let published = publish_plain(&fixture.store, &source(fixture.dir.path(), "a", &[1])).unwrap();
    let tree = published.tree;
    let pass = fixture.store.begin_gc();
    let keep = BTreeSet::new();
    drop(published);
    assert_eq!(pass.run(&keep, false, &Quiet).unwrap().packs_removed, 0);
    read_all(&fixture.store, &tree);
    drop(pass);
    assert_eq!(fixture.store.gc(&keep, false, &Quiet).unwrap().packs_removed, 1);
}

#[test]
fn a_dry_run_tells_what_the_real_one_does() {
    let fixture = Fixture::new();
    let dir = fixture.dir.path();
    let keep = publish_plain(&fixture.store, &source(dir, "keep", &[1])).unwrap().tree;
    publish_plain(&fixture.store, &source(dir, "drop", &[2, 3])).unwrap();
    // Its pack has what `half` needs and much more that nothing needs.
    publish_plain(&fixture.store, &source(dir, "most", &[10, 11, 12, 13, 14])).unwrap();
    let half = publish_plain(&fixture.store, &source(dir, "half", &[10])).unwrap().tree;
    let keep = BTreeSet::from([keep, half]);
    let before = list(fixture.store.root());
    let dry = fixture.store.gc(&keep, true, &Quiet).unwrap();
    assert_eq!(list(fixture.store.root()), before);
    let real = fixture.store.gc(&keep, false, &Quiet).unwrap();
    assert_eq!((dry.manifests_removed, dry.packs_removed, dry.packs_rewritten), (2, 1, 1));
    assert_eq!((real.manifests_removed, real.packs_removed, real.packs_rewritten), (2, 1, 1));
    assert!(real.bytes_freed > 1_500_000 && dry.bytes_freed.abs_diff(real.bytes_freed) < 1000, "{dry:?} {real:?}");
    assert_eq!(fixture.store.usage().unwrap().pack_bytes, real.bytes_kept);
    assert_sound(&fixture.store);
    keep.iter().for_each(|tree| read_all(&fixture.store, tree));
    assert_eq!(fixture.store.gc(&keep, false, &Quiet).unwrap().bytes_freed, 0);
}

#[test]
fn a_pack_of_many_small_chunks_that_are_all_needed_stays() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join("small");
    let mut model = Model::new([]);
    model.0.extend((0..500).map(|n| (format!("{n}"), Item::file(n.to_string()))));
    model.write(&path);
    let keep = BTreeSet::from([publish_plain(&fixture.store, &path).unwrap().tree]);
    let report = fixture.store.gc(&keep, false, &Quiet).unwrap();
    let bytes = fixture.store.usage().unwrap().pack_bytes;
    assert_eq!(report, GcReport { bytes_kept: bytes, ..GcReport::default() });
}

#[test]
fn a_kept_tree_that_is_missing_stops_the_collection() {
    let fixture = Fixture::new();
    publish_plain(&fixture.store, &source(fixture.dir.path(), "a", &[1])).unwrap();
    let before = list(fixture.store.root());
    let error = fixture.store.gc(&BTreeSet::from([TreeId::of(b"?")]), false, &Quiet).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
    assert_eq!(list(fixture.store.root()), before);
}

/// Changes a file and returns what it was.
fn damage(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

fn blob(root: &Path, folder: &str) -> PathBuf {
    let folder = root.join(folder);
    let found: Vec<String> = list(&folder).into_iter().filter(|path| folder.join(path).is_file()).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    folder.join(&found[0])
}

/// Every kind of damage is found, blamed on the tree that it touches, never served, and mended by publishing again.
#[test]
fn damage_is_found_and_publishing_again_mends_it() {
    type Change = fn(&mut Vec<u8>);
    let in_pack: [(&str, Change); 9] = [
        ("magic", |bytes| bytes[0] ^= 1),
        ("version", |bytes| bytes[8] = 9),
        ("first frame", |bytes| bytes[18] ^= 0x80),
        ("a frame", |bytes| bytes[150_000] ^= 1),
        ("last of the frames", |bytes| {
            let index = bytes.len() - 52 - 10 * 49;
            bytes[index - 1] ^= 1;
        }),
        ("index", |bytes| {
            let at = bytes.len() - 52 - 20;
            bytes[at] ^= 1;
        }),
        ("trailer", |bytes| {
            let at = bytes.len() - 20;
            bytes[at] ^= 1;
        }),
        ("end", |bytes| bytes.truncate(bytes.len() - 1)),
        ("all but nothing", |bytes| bytes.truncate(5)),
    ];
    for reopen in [false, true] {
        for (name, change) in in_pack {
            let fixture = Fixture::new();
            let tree = source(fixture.dir.path(), "tree", &[1, 2]);
            let published = publish_plain(&fixture.store, &tree).unwrap().tree;
            let root = fixture.dir.path().join("store");
            let mut store = fixture.store;
            damage(&blob(&root, "packs"), change);
            if reopen {
                drop(store);
                store = Store::open(&root).unwrap();
            }
            let report = store.verify(&Quiet).unwrap();
            assert!(!report.problems.is_empty(), "{name} (reopen: {reopen}) was not found");
            let manifest = store.tree(&published).unwrap();
            let chunks = || manifest.objects.iter().flat_map(|object| &object.chunks);
            let readable = chunks().all(|chunk| store.plain_chunk(chunk).is_ok());
            if !readable {
                assert!(
                    report.problems.iter().any(|problem| problem.trees.contains(&published)),
                    "{name}: {report:?}"
                );
            }
            for chunk in chunks() {
                if let Ok(Some(stored)) = store.chunk(chunk) {
                    stored.plain(chunk).unwrap_or_else(|fault| panic!("{name}: served bad bytes: {fault}"));
                }
            }
            let again = publish_plain(&store, &tree).unwrap();
            assert_eq!(again.tree, published);
            read_all(&store, &published);
            drop(again);
            store.gc(&BTreeSet::from([published]), false, &Quiet).unwrap();
            assert_sound(&store);
            read_all(&store, &published);
            drop(store);
            let store = Store::open(&root).unwrap();
            assert_sound(&store);
            read_all(&store, &published);
        }
    }
}

#[test]
fn a_damaged_or_missing_manifest_is_found_and_mended() {
    let changes: [fn(&Path); 3] = [
        |path| damage(path, |bytes| bytes[40] ^= 1),
        |path| damage(path, |bytes| bytes.truncate(40)),
        |path| damage(path, Vec::clear),
    ];
    for change in changes {
        let fixture = Fixture::new();
        let source = source(fixture.dir.path(), "tree", &[1]);
        let tree = publish_plain(&fixture.store, &source).unwrap().tree;
        change(&blob(fixture.store.root(), "manifests"));
        let report = fixture.store.verify(&Quiet).unwrap();
        assert_eq!(report.problems.len(), 1);
        assert!(
            report.problems[0].trees.contains(&tree) && report.problems[0].thing.to_string().contains("manifest")
        );
        assert!(matches!(fixture.store.manifest(&tree), Err(StoreError::Damaged { .. })));
        publish_plain(&fixture.store, &source).unwrap();
        assert_sound(&fixture.store);
    }
    let fixture = Fixture::new();
    assert!(fixture.store.manifest(&TreeId::of(b"?")).unwrap().is_none());
}

#[test]
fn a_missing_pack_is_found() {
    let fixture = Fixture::new();
    let source = source(fixture.dir.path(), "tree", &[1]);
    let tree = publish_plain(&fixture.store, &source).unwrap().tree;
    let root = fixture.dir.path().join("store");
    drop(fixture.store);
    fs::remove_file(blob(&root, "packs")).unwrap();
    let store = Store::open(&root).unwrap();
    let report = store.verify(&Quiet).unwrap();
    assert!(report.problems.iter().all(|problem| problem.trees.contains(&tree)));
    assert!(report.problems[0].fault.contains("missing"), "{report:?}");
    publish_plain(&store, &source).unwrap();
    assert_sound(&store);
}

#[test]
fn equal_input_makes_equal_packs() {
    let packs = || {
        let fixture = Fixture::new();
        let mut model = Model::new([("empty", Item::file(""))]);
        for number in 0..40 {
            model
                .0
                .insert(format!("file-{number:02}"), Item::file(noise(number % 7, 1 + width::index(number) * 7919)));
            model
                .0
                .insert(format!("same-{number:02}"), Item::new(Kind::File(vec![number.to_le_bytes()[0]; 100_000])));
        }
        model.write(&fixture.dir.path().join("source"));
        publish_plain(&fixture.store, &fixture.dir.path().join("source")).unwrap();
        fs::read(blob(fixture.store.root(), "packs")).unwrap()
    };
    assert!(packs() == packs());
}

/// Every store that a released format has written is read as on its first day. The files are never edited; a new format
/// adds a directory and a line here.
#[test]
fn stores_of_every_format_stay_readable() {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data");
    let known = [("store-1", "9582746e8161ecd2bc8f76eacb4091af2929f36c8e0888df7451de986d16ca83")];
    let mut found: Vec<String> = fs::read_dir(&samples)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("store-"))
        .collect();
    found.sort();
    assert_eq!(found, known.map(|(name, _)| name));
    for (name, tree) in known {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        copy(&samples.join(name), &root);
        let source = dir.path().join("source.tar.gz");
        fs::rename(root.join("source.tar.gz"), &source).unwrap();
        let store = Store::open(&root).unwrap();
        assert_sound(&store);
        let tree: TreeId = tree.parse().unwrap();
        assert_eq!(store.trees().unwrap(), [tree]);
        let manifest = store.tree(&tree).unwrap();
        let paths: Vec<String> = manifest.entries.iter().map(|entry| entry.path.to_string()).collect();
        assert_eq!(paths, ["", "bin", "bin/again", "bin/alias", "bin/run", "empty", "noise", "numbers"]);
        read_all(&store, &tree);
        let options = PublishOptions { chunk_bytes: Some(manifest.chunk_bytes), ..PublishOptions::default() };
        let again = publish(&store, &source, &options, &Quiet, &AtomicBool::new(false)).unwrap();
        assert_eq!((again.tree, again.stats.new_chunks), (tree, 0), "the same input is the same tree for ever");
    }
}

fn bytes_of(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

#[test]
fn a_collection_tells_every_byte_that_it_frees_and_keeps() {
    let fixture = Fixture::new();
    let (store, root) = (&fixture.store, fixture.store.root());
    let published = publish_plain(store, &source(fixture.dir.path(), "a", &[1])).unwrap();
    let (pack, manifest) = (bytes_of(&blob(root, "packs")), bytes_of(&blob(root, "manifests")));
    let none = BTreeSet::new();
    let in_use = GcReport { packs_in_use: 1, bytes_kept: pack, ..GcReport::default() };
    assert_eq!(store.gc(&none, false, &Quiet).unwrap(), in_use);
    drop(published);
    let freed =
        GcReport { manifests_removed: 1, packs_removed: 1, bytes_freed: pack + manifest, ..GcReport::default() };
    for dry_run in [true, false] {
        assert_eq!(store.gc(&none, dry_run, &Quiet).unwrap(), freed);
    }
    assert_eq!(store.gc(&none, false, &Quiet).unwrap(), GcReport::default());
}

/// A pack whose own index cannot be read stays while something that is needed may lie in it alone.
#[test]
fn a_pack_that_cannot_be_read_goes_when_all_that_is_needed_lies_elsewhere() {
    let fixture = Fixture::new();
    let dir = fixture.dir.path();
    let tree = publish_plain(&fixture.store, &source(dir, "tree", &[1, 2])).unwrap().tree;
    let root = dir.join("store");
    drop(fixture.store);
    let pack = blob(&root, "packs");
    damage(&pack, |bytes| {
        let at = bytes.len() - 20;
        bytes[at] ^= 1;
    });
    let bytes = bytes_of(&pack);
    let store = opened(|| Store::open(&root));
    let keep = BTreeSet::from([tree]);
    for dry_run in [true, false] {
        let report = store.gc(&keep, dry_run, &Quiet).unwrap();
        assert_eq!(report, GcReport { packs_damaged: 1, bytes_kept: bytes, ..GcReport::default() });
        assert!(pack.exists());
    }
    // Two thirds of the new pack are needed, so that it stays as it is.
    let more = publish_plain(&store, &source(dir, "more", &[1, 2, 3])).unwrap().tree;
    let manifest = store.packs.size(&BlobName::Manifest(more)).unwrap().unwrap();
    let kept = store.usage().unwrap().pack_bytes;
    let kept = if kept > bytes * 2 { kept - bytes } else { kept };
    for dry_run in [true, false] {
        assert!(pack.exists());
        let report = store.gc(&keep, dry_run, &Quiet).unwrap();
        let gone = GcReport {
            manifests_removed: 1,
            packs_removed: 1,
            bytes_freed: bytes + manifest,
            bytes_kept: kept,
            ..GcReport::default()
        };
        assert_eq!(report, gone);
    }
    assert!(!pack.exists());
    read_all(&store, &tree);
    assert_sound(&store);
}

#[test]
fn a_pack_that_is_rewritten_in_vain_is_told_as_damaged_and_one_in_use_stays() {
    let fixture = Fixture::new();
    let (store, dir) = (&fixture.store, fixture.dir.path());
    let most = publish_plain(store, &source(dir, "most", &[10, 11, 12, 13, 14])).unwrap();
    let few = publish_plain(store, &source(dir, "few", &[10])).unwrap().tree;
    let keep = BTreeSet::from([few]);
    let pack = blob(store.root(), "packs");
    let (bytes, manifest) = (bytes_of(&pack), store.packs.size(&BlobName::Manifest(most.tree)).unwrap().unwrap());
    let in_use = GcReport { packs_in_use: 1, bytes_kept: bytes, ..GcReport::default() };
    assert_eq!(store.gc(&keep, false, &Quiet).unwrap(), in_use);
    drop(most);
    // Of the one file that is needed.
    damage(&pack, |bytes| bytes[18] ^= 0x80);
    let report = store.gc(&keep, false, &Quiet).unwrap();
    let damaged = GcReport {
        manifests_removed: 1,
        packs_damaged: 1,
        bytes_freed: manifest,
        bytes_kept: bytes,
        ..GcReport::default()
    };
    assert_eq!(report, damaged);
    assert!(pack.exists(), "what is still right in it may be saved");
}

#[test]
fn a_pack_of_which_half_is_needed_stays_and_one_of_which_less_is_needed_does_not() {
    let fixture = Fixture::new();
    let publish_noise = |name: &str, lengths: &[usize]| {
        let path = fixture.dir.path().join(name);
        let mut model = Model::new([]);
        let file = |length: &usize| (length.to_string(), Item::file(noise(*length as u64, *length)));
        model.0.extend(lengths.iter().map(file));
        model.write(&path);
        publish_plain(&fixture.store, &path).unwrap().tree
    };
    // What every pack has besides its frames counts as needed, so that the other frame is so much longer.
    let around = width::index(pack::pack_bytes(0, 0));
    let (needed, less) = (1000, 2000);
    publish_noise("even", &[needed, needed + around]);
    publish_noise("odd", &[less, less + around + 1]);
    let keep = [publish_noise("half", &[needed]), publish_noise("less", &[less])].into();
    let report = fixture.store.gc(&keep, false, &Quiet).unwrap();
    assert_eq!((report.packs_rewritten, fixture.store.usage().unwrap().packs), (1, 2));
    keep.iter().for_each(|tree| read_all(&fixture.store, tree));
}

/// Blobs whose lengths are told, and whose bytes cannot be had.
struct Unreadable {
    inner: Box<dyn PackStore>,
    kind: Fails,
}

/// How every attempt to read ends, as long as it is set.
pub(super) type Fails = Arc<Mutex<Option<io::ErrorKind>>>;

pub(super) fn open_unreadable(root: &Path) -> (Fails, Store) {
    let kind = Fails::default();
    let store = opened(|| {
        let kind = Arc::clone(&kind);
        let packs = |root: &Path| -> io::Result<Box<dyn PackStore>> {
            Ok(Box::new(Unreadable { inner: Box::new(LocalPacks::open(root)?), kind }))
        };
        Store::open_with(root, packs)
    });
    (kind, store)
}

/// What the directory has, in bytes of its files.
pub(super) fn stored_bytes(store: &Store) -> u64 {
    let usage = store.usage().unwrap();
    usage.pack_bytes + usage.manifest_bytes + usage.delta_bytes + usage.bundle_bytes
}

impl PackStore for Unreadable {
    fn create(&self) -> io::Result<Box<dyn Draft>> {
        self.inner.create()
    }
    fn size(&self, name: &BlobName) -> io::Result<Option<u64>> {
        self.inner.size(name)
    }
    fn get(&self, name: &BlobName, range: Range<u64>) -> io::Result<Vec<u8>> {
        (*lock(&self.kind)).map_or_else(|| self.inner.get(name, range), |kind| Err(kind.into()))
    }
    fn list(&self, kind: BlobKind) -> io::Result<Vec<BlobName>> {
        self.inner.list(kind)
    }
    fn delete(&self, name: &BlobName) -> io::Result<()> {
        self.inner.delete(name)
    }
}

#[test]
fn what_goes_while_it_is_read_is_missing_and_what_cannot_be_read_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (kind, store) = open_unreadable(&dir.path().join("store"));
    let tree = publish_plain(&store, &source(dir.path(), "a", &[1])).unwrap().tree;
    let chunk = store.tree(&tree).unwrap().objects[0].chunks[0];
    assert!(store.manifest(&tree).unwrap().is_some() && store.chunk(&chunk).unwrap().is_some());
    *lock(&kind) = Some(io::ErrorKind::NotFound);
    assert_eq!(store.manifest(&tree).unwrap(), None);
    assert!(matches!(store.chunk(&chunk), Err(StoreError::Missing { .. })), "it was moved, again and again");
    *lock(&kind) = Some(io::ErrorKind::PermissionDenied);
    assert!(matches!(store.manifest(&tree), Err(StoreError::Io { .. })));
    assert!(matches!(store.chunk(&chunk), Err(StoreError::Io { .. })));
}

#[test]
fn the_fuzzer_is_told_what_is_an_index_and_what_is_none() {
    assert!(read_pack_index(&[], 0) && !read_pack_index(&[0; 49], 1));
}

#[test]
fn a_manifest_that_is_too_long_is_refused_before_it_is_read() {
    let fixture = Fixture::new();
    let tree = publish_plain(&fixture.store, &source(fixture.dir.path(), "a", &[1])).unwrap().tree;
    let file = fs::File::options().write(true).open(blob(fixture.store.root(), "manifests")).unwrap();
    for (bytes, fault) in [(MANIFEST_BYTES_MAX, "its hash is"), (MANIFEST_BYTES_MAX + 1, "larger than a manifest")] {
        file.set_len(bytes as u64).unwrap();
        let error = fixture.store.manifest(&tree).unwrap_err().to_string();
        assert!(error.contains(fault), "{error}");
    }
}

#[test]
fn what_lies_in_a_sound_pack_is_not_written_again_because_another_is_damaged() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let [sound, bad] = ["sound", "bad"].map(|name| {
        let seed = name.len() as u64;
        let tree = publish_plain(store, &source(fixture.dir.path(), name, &[seed])).unwrap().tree;
        store.tree(&tree).unwrap().objects[0].chunks[0]
    });
    let of_bad = store.index().places(&bad)[0].0;
    store.mark_bad(&of_bad);
    let guard = store.guard();
    assert!(store.pin(&sound, &guard) && !store.pin(&bad, &guard));
    assert!(store.has_sound(&sound) && !store.has_sound(&bad));
}

#[test]
fn small_chunks_count_with_their_lines_of_the_index_and_no_more() {
    let fixture = Fixture::new();
    let publish_first = |count: u32| {
        let path = fixture.dir.path().join(format!("{count}"));
        let mut model = Model::new([]);
        model.0.extend((0..count).map(|n| (format!("{n}"), Item::file(n.to_string()))));
        model.write(&path);
        publish_plain(&fixture.store, &path).unwrap().tree
    };
    publish_first(500);
    let keep = BTreeSet::from([publish_first(100)]);
    assert_eq!(fixture.store.gc(&keep, false, &Quiet).unwrap().packs_rewritten, 1);
    keep.iter().for_each(|tree| read_all(&fixture.store, tree));
}

#[test]
fn a_copy_of_a_pack_that_a_publication_relies_on_goes_again() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let published = publish_plain(store, &source(fixture.dir.path(), "a", &[1, 2])).unwrap();
    let (old, slot, frame) = {
        let index = store.index();
        let old = index.packs().into_iter().next().unwrap();
        let slot = index.slot(&old).unwrap();
        (old, slot, index.frames_of(slot)[0])
    };
    let range = frame.offset..frame.offset + u64::from(frame.stored_bytes);
    let stored = store.packs.get(&BlobName::Pack(old), range).unwrap();
    let mut copy = pack::PackWriter::create(store.packs.as_ref(), store.index().effort(&old)).unwrap();
    copy.append_many([frame], &stored).unwrap();
    let (copy, index) = copy.seal().unwrap().commit().unwrap();
    let _alone = lock(&store.collecting);
    assert!(!store.replace((old, slot), copy, &index).unwrap());
    assert_eq!(store.packs.size(&BlobName::Pack(copy)).unwrap(), None);
    read_all(store, &published.tree);
}

#[test]
fn a_pack_that_is_removed_under_a_running_store_is_missed() {
    let fixture = Fixture::new();
    let tree = publish_plain(&fixture.store, &source(fixture.dir.path(), "tree", &[1])).unwrap().tree;
    fs::remove_file(blob(fixture.store.root(), "packs")).unwrap();
    let problems = fixture.store.verify(&Quiet).unwrap().problems;
    let missing = problems.iter().find(|problem| matches!(problem.thing, Thing::Pack(_))).unwrap();
    assert!(missing.fault.contains("missing") && missing.trees.contains(&tree), "{problems:?}");
}

#[test]
fn a_verification_tells_all_that_it_has_read() {
    let fixture = Fixture::new();
    let (store, dir) = (&fixture.store, fixture.dir.path());
    let trees = [("a", [1, 2]), ("b", [2, 3])].map(|(name, seeds)| {
        let tree = publish_plain(store, &source(dir, name, &seeds)).unwrap().tree;
        store.tree(&tree).unwrap()
    });
    let objects: BTreeSet<_> = trees.iter().flat_map(|tree| tree.objects.iter().map(|object| object.id)).collect();
    let chunks = store.index().iter().map(|(_, place)| u64::from(place.stored_bytes)).collect::<Vec<_>>();
    let report = store.verify(&Quiet).unwrap();
    assert_eq!((report.packs, report.manifests, report.objects), (2, 2, objects.len() as u64));
    assert_eq!((report.chunks, report.bytes), (chunks.len() as u64, chunks.iter().sum()));
    assert_eq!((objects.len(), report.problems.len()), (3, 0));
}

#[test]
fn damage_to_what_no_tree_needs_is_found_as_well() {
    let fixture = Fixture::new();
    publish_plain(&fixture.store, &source(fixture.dir.path(), "tree", &[1])).unwrap();
    fs::remove_file(blob(fixture.store.root(), "manifests")).unwrap();
    damage(&blob(fixture.store.root(), "packs"), |bytes| bytes[18] ^= 0x80);
    let problems = fixture.store.verify(&Quiet).unwrap().problems;
    assert!(matches!(problems[..], [Problem { thing: Thing::Chunk(..), .. }]), "{problems:?}");
    assert!(problems[0].fault.contains("not what was stored"), "{problems:?}");
}
