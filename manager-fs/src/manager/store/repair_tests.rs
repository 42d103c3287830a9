use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use proptest::prelude::*;
use proto::{ChunkId, TreeId};

use super::super::tests::{Fault, assert_sound, copy, open_faulty, opened, publish_plain, read_all, source};
use super::*;
use crate::manager::monitor::Quiet;
use crate::manager::testing::list;

/// Two trees that share a file, in a store of two packs, and every byte of them elsewhere: as hosts have it.
struct Elsewhere {
    root: PathBuf,
    trees: BTreeSet<TreeId>,
    chunks: BTreeMap<ChunkId, Vec<u8>>,
    manifests: Vec<Vec<u8>>,
}

impl Elsewhere {
    fn new(dir: &Path) -> Self {
        let root = dir.join("store");
        let store = Store::open(&root).unwrap();
        let trees: BTreeSet<TreeId> = [("one", [1, 2]), ("two", [2, 3])]
            .map(|(name, seeds)| publish_plain(&store, &source(dir, name, &seeds)).unwrap().tree)
            .into();
        let manifests = trees.iter().map(|tree| store.manifest(tree).unwrap().unwrap()).collect();
        let of_tree = |tree| store.tree(tree).unwrap().objects.into_iter().flat_map(|object| object.chunks);
        let chunks = trees.iter().flat_map(of_tree).map(|id| (id, store.plain_chunk(&id).unwrap())).collect();
        Self { root, trees, chunks, manifests }
    }

    /// Repairs with those chunks that are still to be had; returns what is lost then.
    fn repair(&self, store: &Store, to_be_had: impl Fn(&ChunkId) -> bool) -> Result<Lost, StoreError> {
        store.verify(&Quiet)?;
        let mut mender = store.mender(&self.trees)?;
        for manifest in &self.manifests {
            mender.take_manifest(manifest)?;
        }
        // What nobody asked for is not taken.
        assert_eq!(mender.take(b"something else")?, None);
        for (id, plain) in self.chunks.iter().filter(|(id, _)| to_be_had(id)) {
            let wanted = mender.lost().chunks.contains_key(id);
            assert_eq!(mender.take(plain)?, wanted.then_some(*id));
        }
        let lost = mender.finish()?;
        store.begin_gc().drop_mended(&self.trees)?;
        Ok(lost)
    }

    fn readable(&self, store: &Store) -> BTreeSet<ChunkId> {
        self.chunks.keys().filter(|id| store.plain_chunk(id).is_ok()).copied().collect()
    }

    fn assert_whole(&self) {
        let store = opened(|| Store::open(&self.root));
        assert_sound(&store);
        self.trees.iter().for_each(|tree| read_all(&store, tree));
        assert_eq!(store.lost(&self.trees).unwrap(), Lost::default());
    }
}

/// Something that happens to a file.
#[derive(Debug, Clone)]
enum Damage {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Remove,
}

impl Damage {
    fn any() -> impl Strategy<Value = Self> {
        prop_oneof![
            4 => (any::<prop::sample::Index>(), 0..8_u8).prop_map(|(at, bit)| Self::Flip(at, bit)),
            1 => any::<prop::sample::Index>().prop_map(Self::Cut),
            1 => Just(Self::Remove),
        ]
    }

    fn happen(&self, path: &Path) {
        let Ok(mut bytes) = fs::read(path) else { return };
        match self {
            Self::Remove => return fs::remove_file(path).unwrap(),
            Self::Cut(at) => bytes.truncate(at.index(bytes.len().max(1))),
            Self::Flip(..) if bytes.is_empty() => {}
            Self::Flip(at, bit) => {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
        }
        fs::write(path, bytes).unwrap();
    }
}

/// The files of packs and manifests, in order.
fn blobs(root: &Path) -> Vec<PathBuf> {
    let below = |kind: &str| {
        let dir = root.join(kind);
        let files = list(&dir).into_iter().map(move |path| dir.join(path));
        files.filter(|path| path.is_file()).collect::<Vec<_>>()
    };
    [below("packs"), below("manifests")].concat()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever happens to packs and manifests: with all bytes elsewhere the store is whole again, with some of them it has
    /// those and everything that it had, and what it says is lost is what is.
    #[test]
    fn whatever_is_damaged_comes_back_from_where_it_still_is(
        damages in prop::collection::vec((any::<prop::sample::Index>(), Damage::any()), 1..6),
        open in any::<bool>(),
        half in any::<u8>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let all = Elsewhere::new(dir.path());
        let early = open.then(|| opened(|| Store::open(&all.root)));
        let files = blobs(&all.root);
        damages.iter().for_each(|(at, damage)| damage.happen(&files[at.index(files.len())]));
        // A manager that runs while it happens, or one that is started then.
        let store = early.unwrap_or_else(|| opened(|| Store::open(&all.root)));
        store.verify(&Quiet).unwrap();
        let before = all.readable(&store);
        let to_be_had = |id: &ChunkId| id.as_bytes()[0] < half;
        let lost = all.repair(&store, to_be_had).unwrap();
        let after = all.readable(&store);
        prop_assert!(before.is_subset(&after));
        let nowhere = all.chunks.keys().filter(|id| !before.contains(id) && !to_be_had(id)).copied();
        prop_assert_eq!(lost.chunks.keys().copied().collect::<Vec<_>>(), nowhere.collect::<Vec<_>>());
        prop_assert_eq!(lost.manifests, BTreeSet::new());
        prop_assert_eq!(all.repair(&store, |_| true).unwrap(), Lost::default());
        drop(store);
        all.assert_whole();
    }
}

const CHILD: &str = "MANAGER_FS_TEST_REPAIR";

/// The process dies at every step of a repair: what could be read before can be read at the next start, and a repair ends
/// with all of it.
#[test]
fn a_crash_at_any_step_of_a_repair_loses_nothing() {
    let dir = std::env::var_os("MANAGER_FS_TEST_DIR").map(PathBuf::from);
    if let (Some(step), Some(dir)) = (std::env::var_os(CHILD), dir) {
        let all = Elsewhere::new(&dir.join("again"));
        let store = open_faulty(&dir.join("store"), Fault::Abort, step.to_str().unwrap().parse().unwrap());
        all.repair(&store, |_| true).unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut all = Elsewhere::new(dir.path());
    for path in blobs(&all.root) {
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let fresh = dir.path().join("fresh");
    fs::rename(&all.root, &fresh).unwrap();
    let store = Store::open(&fresh).unwrap();
    store.verify(&Quiet).unwrap();
    let readable = all.readable(&store);
    drop(store);
    let mut crashes = 0;
    for step in 1.. {
        let run = dir.path().join(format!("run-{step}"));
        fs::create_dir_all(run.join("again")).unwrap();
        copy(&fresh, &run.join("store"));
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "manager::store::repair::tests::a_crash_at_any_step_of_a_repair_loses_nothing"])
            .env(CHILD, step.to_string())
            .env("MANAGER_FS_TEST_DIR", &run)
            .output()
            .unwrap()
            .status;
        all.root = run.join("store");
        let store = opened(|| Store::open(&all.root));
        assert_eq!(list(&all.root.join("tmp")), [""; 0], "step {step}");
        store.verify(&Quiet).unwrap();
        assert!(readable.is_subset(&all.readable(&store)), "step {step}");
        assert_eq!(all.repair(&store, |_| true).unwrap(), Lost::default(), "step {step}");
        drop(store);
        all.assert_whole();
        if status.success() {
            break;
        }
        assert_eq!(status.signal(), Some(6), "the child must die at step {step} and of nothing else");
        crashes += 1;
    }
    assert!(crashes >= 8, "{crashes} steps are too few: the faults are not where the work is");
}

/// A full disk at any step is said, and the store is as it was.
#[test]
fn a_full_disk_in_a_repair_is_said_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let all = Elsewhere::new(dir.path());
    let pack = blobs(&all.root).into_iter().next().unwrap();
    fs::write(&pack, "cut").unwrap();
    let mut failures = 0;
    for step in 1.. {
        let store = open_faulty(&all.root, Fault::Full, step);
        store.verify(&Quiet).unwrap();
        let before = all.readable(&store);
        match all.repair(&store, |_| true) {
            Ok(lost) => {
                assert_eq!(lost, Lost::default());
                break;
            }
            Err(error) => assert!(error.to_string().contains("no space left"), "{error}"),
        }
        assert!(before.is_subset(&all.readable(&store)), "step {step}");
        failures += 1;
    }
    assert!(failures >= 3, "{failures}");
    all.assert_whole();
}

/// Readers get right bytes or an error, a publication beside it keeps all that it relies on, and so does a collection.
#[test]
fn readers_publications_and_collections_go_on_beside_a_repair() {
    let dir = tempfile::tempdir().unwrap();
    let all = Elsewhere::new(dir.path());
    let store = Store::open(&all.root).unwrap();
    let sources: Vec<_> = (0..6).map(|n| source(dir.path(), &format!("more-{n}"), &[2, 10 + n])).collect();
    let more: Vec<TreeId> = thread::scope(|scope| {
        let publishing =
            scope.spawn(|| sources.iter().map(|source| publish_plain(&store, source).unwrap()).collect::<Vec<_>>());
        let reading = scope.spawn(|| {
            for (id, plain) in (0..20).flat_map(|_| &all.chunks) {
                assert!(store.plain_chunk(id).map_or(true, |read| read == *plain));
            }
        });
        let collecting = scope.spawn(|| {
            // The manifest of a kept tree may just be damaged: then nothing is removed.
            (0..8).for_each(|_| drop(store.gc(&all.trees, false, &Quiet)));
        });
        let mut at = 0;
        while !(publishing.is_finished() && reading.is_finished() && collecting.is_finished()) {
            let files = blobs(&all.root);
            at += 1;
            if let Some(path) = files.get(at % files.len().max(1)).filter(|path| path.extension().is_some()) {
                flip_in_place(path);
            }
            all.repair(&store, |_| true).unwrap();
        }
        reading.join().unwrap();
        collecting.join().unwrap();
        publishing.join().unwrap().iter().map(|published| published.tree).collect()
    });
    assert_eq!(all.repair(&store, |_| true).unwrap(), Lost::default());
    for source in &sources {
        publish_plain(&store, source).unwrap();
    }
    assert_sound(&store);
    more.iter().chain(&all.trees).for_each(|tree| read_all(&store, tree));
}

/// Damages a pack that may go at any moment: a new file is never made in its place.
fn flip_in_place(path: &Path) {
    let Ok(file) = fs::File::options().read(true).write(true).open(path) else { return };
    let (mut byte, at) = ([0], 1000);
    if file.read_exact_at(&mut byte, at).is_ok() {
        byte[0] ^= 1;
        drop(file.write_all_at(&byte, at));
    }
}

#[test]
fn what_is_still_right_in_a_damaged_pack_is_saved_out_of_it_before_the_pack_goes() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = Elsewhere::new(dir.path());
    let store = opened(|| Store::open(&elsewhere.root));
    let pack = blobs(&elsewhere.root).into_iter().next().unwrap();
    let whole = fs::metadata(&pack).unwrap().len();
    let mut bytes = fs::read(&pack).unwrap();
    bytes[18] ^= 0x80;
    fs::write(&pack, bytes).unwrap();
    assert_eq!(store.verify(&Quiet).unwrap().problems.iter().filter(|p| !p.trees.is_empty()).count(), 2);
    let broken: Vec<_> = elsewhere.chunks.keys().filter(|id| store.plain_chunk(id).is_err()).copied().collect();
    let [broken] = broken[..] else { panic!("{broken:?}") };
    // The pack stays as long as something may still be saved out of it.
    assert!(!store.has_sound(&broken));
    assert_eq!(store.begin_gc().drop_mended(&elsewhere.trees).unwrap(), 0);
    assert_eq!(fs::metadata(&pack).unwrap().len(), whole);
    let mut mender = store.mender(&elsewhere.trees).unwrap();
    assert_eq!(mender.lost().chunks.keys().copied().collect::<Vec<_>>(), [broken]);
    assert!(!mender.lost().is_empty() && !mender.saved().is_empty());
    assert!(!mender.take_manifest(&elsewhere.manifests[0]).unwrap(), "it was not lost");
    assert_eq!(mender.take(&elsewhere.chunks[&broken]).unwrap(), Some(broken));
    assert!(mender.lost().is_empty());
    assert!(mender.finish().unwrap().is_empty());
    assert_eq!(store.begin_gc().drop_mended(&elsewhere.trees).unwrap(), 1);
    assert!(!pack.exists() && store.has_sound(&broken));
    assert_eq!(store.begin_gc().drop_mended(&elsewhere.trees).unwrap(), 0, "it is gone");
    drop(store);
    elsewhere.assert_whole();
}

#[test]
fn a_manifest_alone_that_is_lost_is_a_loss() {
    let lost = Lost { manifests: [TreeId::of(b"tree")].into(), ..Lost::default() };
    assert!(!lost.is_empty() && Lost::default().is_empty());
}
