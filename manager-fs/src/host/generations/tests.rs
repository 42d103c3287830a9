use std::path::Path;

use std::sync::MutexGuard;

use super::*;
use crate::clock::Clock;
use crate::clock::testing::Manual;
use crate::host::generations::records::tests::{key_of, signed};

/// Trees in memory: sizes, what is mounted, what is in use.
#[derive(Default)]
pub(super) struct Fake {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    local: BTreeMap<TreeId, (u64, u64)>,
    mounted: BTreeSet<TreeId>,
    busy: BTreeSet<TreeId>,
    damaged: BTreeSet<TreeId>,
    pinned: Vec<TreeId>,
    log: Vec<String>,
    begun: Vec<String>,
    /// Those with a manifest here.
    prepared: BTreeSet<TreeId>,
    remembered: Option<BTreeSet<TreeId>>,
    fail_mount: bool,
    /// How often a busy tree was to be unmounted.
    tried: usize,
    offline: bool,
}

impl Fake {
    fn with(trees: &[(TreeId, u64, u64)]) -> Arc<Self> {
        let fake = Self::default();
        fake.state.lock().unwrap().local.extend(trees.iter().map(|(tree, local, all)| (*tree, (*local, *all))));
        Arc::new(fake)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn is_mounted(&self, tree: &TreeId) -> bool {
        self.state().mounted.contains(tree)
    }

    pub(super) fn is_pinned(&self, tree: &TreeId) -> bool {
        self.state().pinned.contains(tree)
    }

    /// Whether what was noted of it has not been forgotten since.
    pub(super) fn is_known(&self, tree: &TreeId) -> bool {
        self.state().prepared.contains(tree)
    }
}

impl Trees for Fake {
    fn begin(&self, generation: &GenerationRef, tree: Option<&TreeId>, _program: Option<&str>) {
        let tree = tree.map_or_else(|| "unknown".to_owned(), |tree| tree.to_hex()[..4].to_owned());
        self.state().begun.push(format!("{generation} {tree}"));
    }

    fn prepare(&self, tree: &TreeId, _deadline: Instant) -> Result<(), Fault> {
        let mut state = self.state();
        let known = state.local.contains_key(tree);
        if known {
            state.prepared.insert(*tree);
        }
        if known { Ok(()) } else { Err(Fault::Unavailable("no manifest".to_owned())) }
    }

    fn verify(&self, tree: &TreeId) -> bool {
        let mut state = self.state();
        state.log.push(format!("verify {}", &tree.to_hex()[..4]));
        let damaged = state.damaged.remove(tree);
        if let (true, Some(size)) = (damaged, state.local.get_mut(tree)) {
            size.0 -= 1;
        }
        damaged
    }

    fn verify_files(&self, tree: &TreeId, files: &[TreePath], all: bool) -> bool {
        if !files.is_empty() {
            let files: Vec<_> = files.iter().map(ToString::to_string).collect();
            self.state().log.push(format!("hash {}{}", files.join(" "), if all { " however they look" } else { "" }));
        }
        let damaged = self.state().damaged.contains(tree);
        damaged && self.verify(tree)
    }

    fn mount(&self, tree: &TreeId) -> Result<(PathBuf, bool), Fault> {
        let mut state = self.state();
        if state.fail_mount {
            return Err(Fault::Failed("no mounts today".to_owned()));
        }
        assert!(state.mounted.insert(*tree), "mounted twice");
        state.log.push(format!("mount {}", &tree.to_hex()[..4]));
        let whole = state.local.get(tree).is_some_and(|(local, all)| local == all);
        Ok((Path::new("/gens").join(tree.to_hex()), whole))
    }

    fn unmount(&self, tree: &TreeId) -> Result<bool, Fault> {
        let mut state = self.state();
        if state.busy.contains(tree) {
            state.tried += 1;
            return Ok(false);
        }
        assert!(state.mounted.remove(tree), "unmounted twice");
        state.log.push(format!("unmount {}", &tree.to_hex()[..4]));
        Ok(true)
    }

    fn is_still_mounted(&self, path: &Path) -> bool {
        self.state().mounted.iter().any(|tree| path.ends_with(tree.to_hex()))
    }

    fn mounted(&self) -> Vec<(TreeId, bool)> {
        self.state().mounted.iter().map(|tree| (*tree, true)).collect()
    }

    fn has_manifest(&self, tree: &TreeId) -> bool {
        self.state().local.contains_key(tree)
    }

    fn real(&self, _tree: &TreeId, path: &TreePath) -> TreePath {
        let real = path.to_string().replace("link", "program");
        TreePath::parse(real.as_bytes()).unwrap()
    }

    fn warm(&self, _tree: &TreeId, files: &[TreePath]) -> Result<(), Fault> {
        self.state().log.push(format!("warm {}", files.len()));
        Ok(())
    }

    fn make_local(
        &self,
        tree: &TreeId,
        _paced: bool,
        _cancel: &AtomicBool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Fault> {
        let mut state = self.state();
        if state.offline {
            return Err(Fault::Unavailable("offline".to_owned()));
        }
        let size = state.local.get_mut(tree).unwrap();
        size.0 = size.1;
        let all = size.1;
        state.log.push(format!("fetch {}", &tree.to_hex()[..4]));
        drop(state);
        progress(all, all);
        Ok(())
    }

    fn sizes(&self, tree: &TreeId) -> Option<(u64, u64)> {
        self.state().local.get(tree).copied()
    }

    fn pin(&self, tree: &TreeId) -> bool {
        let mut state = self.state();
        let known = state.local.contains_key(tree);
        if known {
            state.pinned.push(*tree);
        }
        known
    }

    fn unpin(&self, tree: &TreeId) {
        self.state().pinned.retain(|pinned| pinned != tree);
    }

    fn forget_all_but(&self, trees: &BTreeSet<TreeId>) {
        let mut state = self.state();
        state.prepared.retain(|tree| trees.contains(tree));
        state.remembered = Some(trees.clone());
    }

    fn directory(&self) -> PathBuf {
        PathBuf::from("/gens")
    }

    fn namespace_pid(&self) -> Option<u32> {
        None
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(5)
    }
}

pub(super) fn tree(name: u8) -> TreeId {
    TreeId::of(&[name])
}

fn short(name: u8) -> String {
    tree(name).to_hex()[..4].to_owned()
}

pub(super) struct Fixture {
    pub(super) dir: tempfile::TempDir,
    pub(super) fake: Arc<Fake>,
    pub(super) generations: Arc<Generations>,
}

/// Trees 1 (nothing local) and 2 (all local), exported as p@1 and p@2.
pub(super) fn fixture() -> Fixture {
    let fake = Fake::with(&[(tree(1), 0, 100), (tree(2), 50, 50)]);
    let dir = tempfile::tempdir().unwrap();
    let generations = generations(dir.path(), &fake);
    Fixture { dir, fake, generations }
}

fn generations(dir: &Path, fake: &Arc<Fake>) -> Arc<Generations> {
    generations_by(dir, fake, Clock::system())
}

fn generations_by(dir: &Path, fake: &Arc<Fake>, clock: Clock) -> Arc<Generations> {
    let key = key_of(1);
    let known = Records::open(dir, dir, Ok(vec![key.verifying_key().into()]));
    known.set_exports(vec![signed("p", "1", tree(1), 1, &key), signed("p", "2", tree(2), 2, &key)]);
    let leases = Leases::open(dir, dir.join("agents"), clock);
    Generations::new(Arc::clone(fake) as Arc<dyn Trees>, Arc::new(known), leases, Box::new(|_| ()))
}

fn named(text: &str) -> GenerationRef {
    text.parse().unwrap()
}

#[test]
fn attached_until_released_and_collected_when_no_longer_busy() {
    let Fixture { dir: _dir, fake, generations } = fixture();
    let resolved = generations.resolve(&named("p@1")).unwrap();
    let attached = generations.attach(&resolved, &named("p@1")).unwrap();
    assert_eq!(attached.path, format!("/gens/{}", tree(1)));
    assert!(attached.record.is_some());
    assert!(!generations.collect(), "attached is not collected");
    assert!(fake.state().mounted.contains(&tree(1)) && fake.state().pinned == [tree(1)]);

    fake.state().busy.insert(tree(1));
    assert!(matches!(generations.release(&named("p@2")), Err(Fault::NotFound(_))));
    generations.release(&named("p@1")).unwrap();
    assert!(generations.collect(), "a program runs from it: tried again later");
    assert!(fake.state().mounted.contains(&tree(1)) && fake.state().pinned == [tree(1)]);
    fake.state().busy.clear();
    assert!(!generations.collect());
    assert!(fake.state().mounted.is_empty() && fake.state().pinned.is_empty() && generations.live().is_empty());
}

#[test]
fn a_start_is_asked_for_before_it_is_known_what_it_means_and_not_when_it_is_mounted() {
    let Fixture { dir: _dir, fake, generations } = fixture();
    generations.begin(&named("p@1"), None);
    generations.begin(&named("unheard@9"), None);
    let resolved = generations.resolve(&named("p@1")).unwrap();
    generations.attach(&resolved, &named("p@1")).unwrap();
    generations.begin(&named("p@1"), None);
    let first = tree(1).to_hex()[..4].to_owned();
    assert_eq!(fake.state().begun, [format!("p@1 {first}"), "unheard@9 unknown".to_owned()]);
}

#[test]
fn manifests_go_when_neither_an_export_nor_a_program_needs_them() {
    let Fixture { dir: _dir, fake, generations } = fixture();
    let resolved = generations.resolve(&named("p@1")).unwrap();
    generations.attach(&resolved, &named("p@1")).unwrap();
    generations.records.set_exports(vec![]);
    generations.collect();
    assert_eq!(fake.state().remembered, Some(BTreeSet::from([tree(1)])), "attached, though no longer exported");
    generations.release(&named("p@1")).unwrap();
    fake.state().busy.insert(tree(1));
    generations.collect();
    assert_eq!(fake.state().remembered, Some(BTreeSet::from([tree(1)])), "released, but a program runs from it");
    fake.state().busy.clear();
    generations.collect();
    assert_eq!(fake.state().remembered, Some(BTreeSet::new()));
}

#[test]
fn an_attach_that_fails_leaves_nothing_attached() {
    let Fixture { dir, fake, generations } = fixture();
    fake.state().fail_mount = true;
    let resolved = generations.resolve(&named("p@1")).unwrap();
    assert!(generations.attach(&resolved, &named("p@1")).is_err());
    assert!(Leases::open(dir.path(), dir.path().join("agents"), Clock::system()).attached().is_empty());
}

#[test]
fn a_hold_ends_with_its_connection() {
    let Fixture { dir: _dir, fake, generations } = fixture();
    let resolved = generations.resolve(&named("p@2")).unwrap();
    generations.hold(&resolved, 1, Some(1)).unwrap();
    generations.hold(&resolved, 2, Some(2)).unwrap();
    generations.leases.connection_ended(1);
    generations.collect();
    assert!(fake.state().mounted.contains(&tree(2)));
    generations.leases.connection_ended(2);
    generations.collect();
    assert!(fake.state().mounted.is_empty());
}

#[test]
fn staging_makes_both_trees_local_before_it_mounts_and_warms() {
    let Fixture { dir: _dir, fake, generations } = fixture();
    let mut seen = Vec::new();
    let cancel = AtomicBool::new(false);
    generations.stage(tree(2), Some(tree(1)), false, &cancel, &mut |progress| seen.push(progress)).unwrap();
    let (one, two) = (short(1), short(2));
    let log = fake.state().log.clone();
    assert_eq!(
        log,
        [
            format!("fetch {two}"),
            format!("fetch {one}"),
            format!("verify {two}"),
            format!("verify {two}"),
            format!("mount {two}"),
            "warm 0".to_owned()
        ]
    );
    assert_eq!(seen.last(), Some(&StageProgress { local_bytes: 150, object_bytes: 150 }));
    assert!(generations.live()[&tree(2)].whole_at_mount);
    generations.collect();
    assert!(fake.state().mounted.contains(&tree(2)), "staged stays");
    generations.leases.stage_over(&tree(2));
    generations.collect();
    assert!(fake.state().mounted.is_empty());
}

#[test]
fn what_is_hashed_before_an_exec_is_where_links_lead_and_of_every_name_of_the_tree() {
    let Fixture { dir: _dir, fake, generations } = fixture();
    let of = |version: &str, sequence, entry: &str| {
        let entry_point = Some(TreePath::parse(entry.as_bytes()).unwrap());
        let record = proto::GenerationRecord {
            product: "p".parse().unwrap(),
            version: version.parse().unwrap(),
            sequence,
            tree: tree(2),
            manifest_bytes: 1,
            published_unix_ms: 1,
            metadata: proto::Metadata { entry_point, ..proto::Metadata::default() },
        };
        proto::SignedRecord::sign(&record, &key_of(1)).unwrap().to_bytes().unwrap()
    };
    let records = vec![of("2", 3, "bin/link"), of("3", 4, "bin/other-link"), of("4", 5, "bin/program")];
    generations.records.set_exports(records);
    generations.stage(tree(2), None, true, &AtomicBool::new(false), &mut |_| ()).unwrap();
    let log = fake.state().log.clone();
    assert!(log.contains(&"hash bin/program bin/other-program however they look".to_owned()), "{log:?}");
    assert!(log.contains(&"warm 2".to_owned()), "{log:?}");
}

#[test]
fn what_is_held_without_the_manager_has_its_manifest_here() {
    let Fixture { dir: _dir, fake, generations } = fixture();
    let held = generations.hold_local(&tree(2), 1, None).unwrap();
    assert_eq!(held.tree, tree(2));
    fake.state().local.remove(&tree(1));
    let fault = generations.hold_local(&tree(1), 2, None).unwrap_err();
    assert!(matches!(&fault, Fault::Unavailable(why) if why.contains("is not on this host")), "{fault:?}");
    assert!(generations.hold_local(&tree(3), 3, None).is_err(), "what nobody exports or keeps");
    assert!(generations.leases.connection_ended(1) && !generations.leases.connection_ended(2));
}

#[test]
fn staging_while_the_manager_is_away_fails_and_mounts_nothing() {
    let Fixture { dir: _dir, fake, generations } = fixture();
    fake.state().offline = true;
    let cancel = AtomicBool::new(false);
    let staged = generations.stage(tree(1), None, false, &cancel, &mut |_| ());
    assert!(matches!(staged, Err(Fault::Unavailable(_))));
    assert!(fake.state().mounted.is_empty());
    generations.stage(tree(1), None, true, &cancel, &mut |_| ()).unwrap();
    assert!(!generations.live()[&tree(1)].whole_at_mount, "lazy");
}

#[test]
fn a_lazy_mount_that_nobody_uses_is_replaced_when_all_is_local() {
    let Fixture { dir: _dir, fake, generations } = fixture();
    let cancel = AtomicBool::new(false);
    generations.stage(tree(1), None, true, &cancel, &mut |_| ()).unwrap();
    fake.state().busy.insert(tree(1));
    generations.stage(tree(1), None, false, &cancel, &mut |_| ()).unwrap();
    assert!(!generations.live()[&tree(1)].whole_at_mount, "in use: it stays as it is");
    fake.state().busy.clear();
    generations.stage(tree(1), None, false, &cancel, &mut |_| ()).unwrap();
    assert!(generations.live()[&tree(1)].whole_at_mount);
}

#[test]
fn a_new_worker_takes_over_what_it_finds_mounted() {
    let Fixture { dir, fake, generations } = fixture();
    let resolved = generations.resolve(&named("p@1")).unwrap();
    generations.attach(&resolved, &named("p@1")).unwrap();
    let held = generations.resolve(&named("p@2")).unwrap();
    generations.hold(&held, 1, Some(1)).unwrap();
    drop(generations);

    let generations = self::generations(dir.path(), &fake);
    assert_eq!(generations.live().len(), 2);
    assert!(!generations.collect());
    assert_eq!(fake.state().mounted.len(), 2, "connections have time to come back");
    assert_eq!(generations.mount(&tree(1)).unwrap().path, Path::new("/gens").join(tree(1).to_hex()));
}

#[test]
fn the_background_makes_attached_trees_whole_and_mounts_them_after_a_boot() {
    let Fixture { dir, fake, generations } = fixture();
    generations.leases.attach(tree(1), "p@1").unwrap();
    drop(generations);
    let generations = self::generations(dir.path(), &fake);
    generations.start().unwrap();
    let begun = Instant::now();
    let whole = || {
        let live = generations.live();
        live.get(&tree(1)).is_some_and(|live| live.local_bytes.load(Ordering::Relaxed) == 100)
    };
    while !whole() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", fake.state().log);
        std::thread::yield_now();
    }
    assert!(fake.state().mounted.contains(&tree(1)));
    generations.end();
}

#[test]
fn what_was_changed_on_the_disk_is_mounted_afresh_or_refused() {
    let Fixture { dir: _dir, fake, generations } = fixture();
    let resolved = generations.resolve(&named("p@2")).unwrap();
    let attach = || generations.attach(&resolved, &named("p@2"));
    let log = || std::mem::take(&mut fake.state().log);
    let [verify, mount, unmount, fetch] =
        ["verify", "mount", "unmount", "fetch"].map(|what| format!("{what} {}", short(2)));
    attach().unwrap();
    assert_eq!(log(), [verify.clone(), mount.clone()]);
    attach().unwrap();
    assert_eq!(log(), std::slice::from_ref(&verify), "nothing has changed: the mount stays");
    fake.state().damaged.insert(tree(2));
    attach().unwrap();
    assert_eq!(log(), [verify.clone(), unmount, verify, mount]);

    fake.state().busy.insert(tree(2));
    fake.state().damaged.insert(tree(2));
    let Err(Fault::Failed(text)) = generations.hold(&resolved, 1, None) else { panic!("nothing may start from it") };
    assert!(text.contains("changed on this host's disk") && text.contains("fuser"), "{text}");

    fake.state().busy.clear();
    fake.state().damaged.insert(tree(2));
    log();
    generations.stage(tree(2), None, false, &AtomicBool::new(false), &mut |_| ()).unwrap();
    assert_eq!(log().iter().filter(|line| **line == fetch).count(), 2, "what was wrong is fetched before the exec");
}

#[test]
fn what_a_stranger_unmounted_is_mounted_again() {
    let Fixture { dir: _dir, fake, generations } = fixture();
    let resolved = generations.resolve(&named("p@2")).unwrap();
    generations.attach(&resolved, &named("p@2")).unwrap();
    assert!(fake.state().mounted.remove(&tree(2)));
    generations.attach(&resolved, &named("p@2")).unwrap();
    assert!(fake.state().mounted.remove(&tree(2)), "an empty directory is no generation");
    generations.hold(&resolved, 1, None).unwrap();
    assert!(fake.state().mounted.contains(&tree(2)));
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
}

#[test]
fn what_nobody_comes_back_for_is_unmounted_after_its_minute() {
    let Fixture { dir, fake, generations } = fixture();
    generations.leases.hold(7, tree(1), None);
    generations.mount(&tree(1)).unwrap();
    drop(generations);
    let (time, clock) = Manual::new();
    let generations = generations_by(dir.path(), &fake, clock);
    time.advance(Duration::from_secs(59));
    assert!(!generations.collect());
    assert!(fake.state().mounted.contains(&tree(1)), "its users have time to connect again");
    time.advance(Duration::from_secs(1));
    assert!(!generations.collect());
    assert!(fake.state().mounted.is_empty());
}

#[test]
fn a_mount_in_use_is_tried_again_ever_more_seldom_and_never_torn_away() {
    let Fixture { dir: _dir, fake, generations } = fixture();
    drop(generations);
    let (time, clock) = Manual::new();
    let generations = generations_by(_dir.path(), &fake, clock);
    generations.leases.hold(7, tree(2), None);
    generations.mount(&tree(2)).unwrap();
    fake.state().busy.insert(tree(2));
    assert!(generations.leases.connection_ended(7));
    let tries = |wanted: usize| {
        let begun = Instant::now();
        while fake.state().tried < wanted {
            assert!(begun.elapsed() < Duration::from_secs(10), "{} tries", fake.state().tried);
            std::thread::yield_now();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| generations.collect_for_ever());
        // 500 ms, 1 s, 2 s, ... 60 s after each other; a little before that nothing happens.
        for (tried, pause_ms) in (1..).zip([500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]) {
            tries(tried);
            let (pause, moment) = (Duration::from_millis(pause_ms), Duration::from_millis(1));
            block_on(time.waiting(|left| left == pause));
            time.advance(pause - moment);
            block_on(time.waiting(|left| left == moment));
            assert_eq!(fake.state().tried, tried, "after {pause_ms} ms");
            time.advance(moment);
        }
        tries(10);
        assert!(fake.state().mounted.contains(&tree(2)));
        fake.state().busy.clear();
        generations.changed();
        let begun = Instant::now();
        while !fake.state().mounted.is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(10));
            std::thread::yield_now();
        }
        generations.end();
    });
}
