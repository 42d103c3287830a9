//! Damage of every kind to a repository: what is intact comes back whole, what is not is named, nothing is silently
//! wrong.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::Ordering;

use super::*;
use crate::engine::Onto;
use crate::engine::format::files::Files;
use crate::engine::format::index::BlobKind;

/// What one file must be after a restore.
#[derive(Debug, PartialEq, Eq)]
struct Kept {
    bytes: Vec<u8>,
    mode: u32,
    mtime: (i64, i64),
}

fn kept(path: &Path) -> Option<Kept> {
    let metadata = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file)?;
    let mtime = (metadata.mtime(), metadata.mtime_nsec());
    Some(Kept { bytes: fs::read(path).unwrap(), mode: metadata.mode() & 0o7777, mtime })
}

/// A repository with one backup of sixty files, the model of what it holds, and what each file needs.
struct Damaged {
    bench: Bench,
    session: Session,
    model: BTreeMap<PathBuf, Kept>,
    /// Every blob that a file needs: its pieces, and the directories that lead to it.
    needs: HashMap<PathBuf, BTreeSet<(BlobKind, Id)>>,
    targets: usize,
}

impl Damaged {
    fn new() -> Self {
        let bench = Bench::new();
        let source = bench.path("source");
        let mut model = BTreeMap::new();
        for number in 0..60usize {
            let below = PathBuf::from(["", "a", "a/b", "c"][number % 4]).join(format!("file-{number}"));
            let path = source.join(&below);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let length = if number % 20 == 7 { 2_500_000 } else { 100 + number * 997 };
            fs::write(&path, noise(number as u64, length)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600 + proto::width::count(number % 64))).unwrap();
            let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000 + number as u64, 7);
            File::open(&path).unwrap().set_modified(then).unwrap();
            model.insert(below, kept(&path).unwrap());
        }
        bench.backup(&source);
        let meter = SharedMeter::default();
        let session =
            Session::open(&bench.path("state"), &bench.at(), Access::Shared, false, &mark(false), &meter).unwrap();
        let needs = needs(&session, &model);
        Self { bench, session, model, needs, targets: 0 }
    }

    /// Restores as the repository now is; returns what is not there.
    fn restore(&mut self) -> (Result<BTreeSet<PathBuf>, EngineError>, Vec<String>) {
        self.targets += 1;
        let target = self.bench.path(&format!("target-{}", self.targets));
        let meter = SharedMeter::default();
        let state = self.bench.path("state");
        let ended = self.session.restore(
            &state,
            &reference("latest"),
            &Onto { target: &target, options: &RestoreOptions::default(), over: None },
            &mark(false),
            &meter,
        );
        let problems = meter.take_problems();
        assert_eq!(problems.left_out, 0);
        let problems = problems.into_lines();
        let missing = ended.map(|_| {
            let mut missing = BTreeSet::new();
            for (path, model) in &self.model {
                match kept(&target.join(path)) {
                    Some(found) => assert_eq!(found, *model, "{} is wrong: {problems:#?}", path.display()),
                    None => {
                        let named = path.ancestors().filter(|above| !above.as_os_str().is_empty()).any(|above| {
                            let name = format!("not restored: {}: ", target.join(above).display());
                            problems.iter().any(|line| line.starts_with(&name))
                        });
                        let all = problems.iter().any(|line| line.contains(&format!("{}: all", target.display())));
                        assert!(named || all, "{} is missing and not named: {problems:#?}", path.display());
                        missing.insert(path.clone());
                    }
                }
            }
            missing
        });
        drop(fs::remove_dir_all(&target));
        (missing, problems)
    }

    /// Files that need a blob which lies, in the pack, where `hit` says.
    fn affected(&self, index: &Index, pack: &Id, hit: impl Fn(u64, u64) -> bool) -> BTreeSet<PathBuf> {
        let is_hit = |(kind, id): &(BlobKind, Id)| {
            index.find(*kind, id).any(|at| {
                let (from, to) = (u64::from(at.offset), u64::from(at.offset) + u64::from(at.length));
                at.pack == *pack && hit(from, to)
            })
        };
        self.needs.iter().filter(|(_, needs)| needs.iter().any(is_hit)).map(|(path, _)| path.clone()).collect()
    }
}

fn needs(session: &Session, model: &BTreeMap<PathBuf, Kept>) -> HashMap<PathBuf, BTreeSet<(BlobKind, Id)>> {
    let index = session.index(&SharedMeter::default()).unwrap();
    let blobs = session.blobs(&index);
    let origin = mark(false).origin;
    let snapshots = session.snapshots(&origin, false, &SharedMeter::default()).unwrap();
    let snapshot = &snapshots.all()[0];
    let source = &snapshot.sources()[0];
    let mut needs = HashMap::new();
    for path in model.keys() {
        let whole = source.join(path);
        let mut node = root_of(snapshot).unwrap();
        let mut of_it = BTreeSet::new();
        for part in whole.components().skip(1) {
            let tree = node.subtree.unwrap();
            of_it.insert((BlobKind::Tree, tree));
            let tree = blobs.tree(&tree).unwrap();
            node = tree.nodes.into_iter().find(|node| node.file_name() == part.as_os_str()).unwrap();
        }
        of_it.extend(node.content.unwrap().into_iter().map(|piece| (BlobKind::Data, piece)));
        needs.insert(path.clone(), of_it);
    }
    needs
}

/// Changes a file of the repository for the time of one look.
fn with_changed<T>(path: &Path, change: impl FnOnce(&mut Vec<u8>), look: impl FnOnce() -> T) -> T {
    let sound = fs::read(path).unwrap();
    let mut bytes = sound.clone();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
    let seen = look();
    fs::write(path, sound).unwrap();
    seen
}

#[test]
fn two_hundred_flipped_bits_hit_only_what_they_hit() {
    let mut damaged = Damaged::new();
    let index = damaged.session.index(&SharedMeter::default()).unwrap();
    let mut random = noise(4711, 200 * 8).into_iter();
    let mut number = |below: u64| {
        let bytes: Vec<u8> = random.by_ref().take(8).collect();
        u64::from_le_bytes(bytes.try_into().unwrap()) % below
    };
    let (nothing, problems) = damaged.restore();
    assert_eq!((nothing.unwrap().len(), problems), (0, Vec::new()), "before any damage");
    let packs = damaged.session.files.list(FileKind::Pack).unwrap();
    let mut lost = 0;
    for _ in 0..190 {
        let at = number(packs.iter().map(|(_, bytes)| bytes).sum());
        let mut offset = at;
        let (pack, bytes) = *packs
            .iter()
            .find(|(_, bytes)| {
                let here = offset < *bytes;
                offset -= if here { 0 } else { *bytes };
                here
            })
            .unwrap();
        let path = damaged.session.files.path(FileKind::Pack, &pack);
        let affected = damaged.affected(&index, &pack, |from, to| (from..to).contains(&offset));
        let flip = |content: &mut Vec<u8>| content[proto::width::index(offset)] ^= 1 << (at % 8);
        let (missing, problems) = with_changed(&path, flip, || damaged.restore());
        let missing = match missing {
            Ok(missing) => missing,
            // The directory at the top: then nothing is restored, and the error says so.
            Err(error) => {
                assert!(matches!(error, EngineError::Damaged { .. }), "{error}");
                assert_eq!(affected.len(), 60);
                continue;
            }
        };
        assert_eq!(missing, affected, "byte {offset} of {bytes}: {problems:#?}");
        lost += missing.len();
    }
    assert!(lost > 50, "only {lost} files were hit: the flips do not reach the data");
    for _ in 0..10 {
        let (id, bytes) = damaged.session.files.list(FileKind::Index).unwrap()[0];
        let at = proto::width::index(number(bytes));
        let path = damaged.session.files.path(FileKind::Index, &id);
        let (missing, problems) = with_changed(&path, |content| content[at] ^= 4, || damaged.restore());
        assert_eq!(missing.unwrap().len(), 0, "the packs' own headers say what the index does not");
        assert!(problems.iter().any(|line| line.contains("index file")), "{problems:?}");
    }
}

#[test]
fn cut_and_missing_files_hit_only_what_they_hit() {
    let mut damaged = Damaged::new();
    let index = damaged.session.index(&SharedMeter::default()).unwrap();
    for (pack, bytes) in damaged.session.files.list(FileKind::Pack).unwrap() {
        let path = damaged.session.files.path(FileKind::Pack, &pack);
        let cut = bytes / 2;
        let affected = damaged.affected(&index, &pack, |_, to| to > cut);
        let (missing, _) =
            with_changed(&path, |content| content.truncate(proto::width::index(cut)), || damaged.restore());
        match missing {
            Ok(missing) => assert_eq!(missing, affected),
            Err(error) => assert!(matches!(error, EngineError::Damaged { .. }), "{error}"),
        }
        let affected = damaged.affected(&index, &pack, |_, _| true);
        let away = damaged.bench.path("away");
        fs::rename(&path, &away).unwrap();
        match damaged.restore().0 {
            Ok(missing) => assert_eq!(missing, affected),
            Err(error) => assert!(matches!(error, EngineError::Damaged { .. }), "{error}"),
        }
        fs::rename(&away, &path).unwrap();
    }
    for kind in [FileKind::Index, FileKind::Snapshot] {
        let (id, _) = damaged.session.files.list(kind).unwrap()[0];
        let path = damaged.session.files.path(kind, &id);
        let cuts: [fn(&mut Vec<u8>); 3] =
            [|content| content.truncate(10), |content| content.truncate(40), |content| content[33] ^= 1];
        for cut in cuts {
            let (ended, problems) = with_changed(&path, cut, || damaged.restore());
            match (kind, ended) {
                (FileKind::Index, Ok(missing)) => assert!(missing.is_empty() && !problems.is_empty()),
                (_, Err(error)) => {
                    assert!(error.to_string().contains(&format!("{id:.8}")) || problems.len() == 1, "{error}");
                    assert!(problems.iter().all(|line| line.contains(&format!("snapshot {id:.8}"))), "{problems:?}");
                }
                (_, Ok(_)) => panic!("restored without a snapshot"),
            }
        }
    }
}

#[test]
fn of_a_large_file_the_readable_part_is_kept_under_another_name() {
    let bench = Bench::new();
    let source = bench.path("source");
    fs::create_dir(&source).unwrap();
    let content = noise(1, 12_000_000);
    fs::write(source.join("large"), &content).unwrap();
    fs::write(source.join("large.damaged"), "somebody else's").unwrap();
    bench.backup(&source);
    let meter = SharedMeter::default();
    let session =
        Session::open(&bench.path("state"), &bench.at(), Access::Shared, false, &mark(false), &meter).unwrap();
    let pack = session.files.list(FileKind::Pack).unwrap().into_iter().max_by_key(|(_, bytes)| *bytes).unwrap();
    let path = session.files.path(FileKind::Pack, &pack.0);
    let target = bench.path("target");
    with_changed(
        &path,
        |bytes| bytes[5_000_000] ^= 1,
        || {
            session
                .restore(
                    &bench.path("state"),
                    &reference("latest"),
                    &Onto { target: &target, options: &RestoreOptions::default(), over: None },
                    &mark(false),
                    &meter,
                )
                .unwrap();
        },
    );
    let problems = meter.take_problems().into_lines();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("large.damaged-2") && problems[0].contains("cannot be read"), "{problems:?}");
    assert!(!target.join("large").exists());
    assert_eq!(fs::read_to_string(target.join("large.damaged")).unwrap(), "somebody else's");
    let part = fs::read(target.join("large.damaged-2")).unwrap();
    assert_eq!(part.len(), content.len());
    let wrong = part.iter().zip(&content).filter(|(part, whole)| part != whole);
    assert!(wrong.clone().all(|(part, _)| *part == 0));
    assert!((1..9_000_000).contains(&wrong.count()));
}

#[test]
fn nothing_is_removed_from_a_repository_that_cannot_be_read_in_full() {
    let bench = Bench::new();
    let source = bench.source();
    bench.backup(&source);
    bench.backup(&source);
    let files = Files::new(&bench.path("repo"));
    let meter = SharedMeter::default();
    for kind in [FileKind::Snapshot, FileKind::Index] {
        let (id, _) = files.list(kind).unwrap()[0];
        with_changed(
            &files.path(kind, &id),
            |bytes| bytes[40] ^= 1,
            || {
                let before = files.list(FileKind::Snapshot).unwrap().len();
                for refused in [
                    bench.engine.forget(&bench.at(), 1, &mark(false), &meter),
                    bench.engine.reclaim(&bench.at(), &mark(false), &meter),
                ] {
                    let refused = refused.unwrap_err().to_string();
                    assert!(
                        refused.contains("nothing is removed") && refused.contains(&format!("{id:.8}")),
                        "{refused}"
                    );
                }
                assert_eq!(files.list(FileKind::Snapshot).unwrap().len(), before);
            },
        );
    }
}

#[test]
fn a_backup_stores_again_what_a_lost_pack_took_away() {
    let bench = Bench::new();
    let source = bench.source();
    bench.backup(&source);
    for directory in fs::read_dir(bench.path("repo/data")).unwrap() {
        for pack in fs::read_dir(directory.unwrap().path()).unwrap() {
            fs::remove_file(pack.unwrap().path()).unwrap();
        }
    }
    let (again, problems) = bench.backup(&source);
    assert_eq!(problems, Vec::<String>::new());
    assert!(again.repository_bytes > 3_000_000, "{again:?}");
    assert_eq!(bench.verify(&again.snapshots[0]), Vec::<String>::new());
}

type Operation = fn(&Restic, &Location, &SharedMeter) -> Result<Work, EngineError>;

/// How an operation ends in which the library panics when it asks for its n-th file; `None`: it asks for fewer. One that
/// waits for ever for the thread that is gone is given up, as `jobs` does.
fn ends_with_a_panic_at(bench: &Bench, n: u64, operation: Operation) -> Option<Result<Vec<String>, String>> {
    let (meter, at) = (SharedMeter::default(), bench.at());
    meter.panics_after.store(n, Ordering::Relaxed);
    let (end, ended) = std::sync::mpsc::channel();
    let (engine, shared) = (Restic::new(&bench.path("state")), meter.clone());
    std::thread::spawn(move || drop(end.send(operation(&engine, &at, &shared))));
    loop {
        let ended = ended.recv_timeout(Duration::from_secs(1));
        let told = meter.panics_after.load(Ordering::Relaxed) == 0;
        match ended {
            Ok(Ok(_)) if !told => return None,
            Ok(Ok(_)) => return Some(Ok(meter.take_problems().into_lines())),
            Ok(Err(error)) => return Some(Err(error.to_string())),
            Err(_) => {
                if let Some(panic) = meter.broken() {
                    meter.abandon();
                    return Some(Err(crate::engine::broken(&panic).to_string()));
                }
            }
        }
    }
}

/// A panic in any thread of the library, at every place where it asks for a file: the operation ends and says so.
#[test]
fn a_panic_of_the_library_ends_the_operation_with_a_name_wherever_it_comes() {
    crate::engine::tell_panics();
    let operations: [(&str, Operation); 3] = [
        ("identify", |engine, at, meter| engine.identify(at, meter)),
        ("check", |engine, at, meter| engine.check(at, true, &mark(false), meter)),
        ("reclaim", |engine, at, meter| engine.reclaim(at, &mark(false), meter)),
    ];
    let bench = Bench::new();
    let source = bench.path("source");
    fs::create_dir(&source).unwrap();
    for round in 0..2 {
        fs::write(source.join("file"), noise(round, 100_000)).unwrap();
        bench.backup(&source);
    }
    for (name, operation) in operations {
        let mut asked = 1;
        while let Some(ended) = ends_with_a_panic_at(&bench, asked, operation) {
            let said = match ended {
                // What a check finds out is what it is for.
                Ok(problems) => problems.concat(),
                Err(error) => error,
            };
            assert!(said.contains("library failed: as told"), "{name}, file {asked}: {said}");
            asked *= 2;
        }
        assert!(asked > 1, "{name} never asked for a file");
    }
    restic(&bench, &["check", "--read-data"]);
    assert_eq!(bench.verify("latest"), Vec::<String>::new());
}

#[test]
fn a_prune_ends_although_an_index_that_was_put_back_names_packs_that_are_gone() {
    let bench = Bench::new();
    let source = bench.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), noise(1, 100_000)).unwrap();
    bench.backup(&source);
    let index = fs::read_dir(bench.path("repo/index")).unwrap().next().unwrap().unwrap().path();
    let kept = fs::read(&index).unwrap();
    // Nothing names what is in these packs, and no snapshot needs it: the next prune removes them.
    fs::remove_file(&index).unwrap();
    for snapshot in fs::read_dir(bench.path("repo/snapshots")).unwrap() {
        fs::remove_file(snapshot.unwrap().path()).unwrap();
    }
    fs::write(source.join("file"), noise(2, 100_000)).unwrap();
    bench.backup(&source);
    let prune = || bench.engine.reclaim(&bench.at(), &mark(false), &SharedMeter::default());
    prune().unwrap();
    fs::write(&index, kept).unwrap();
    prune().unwrap();
    prune().unwrap();
    restic(&bench, &["check", "--read-data"]);
    assert_eq!(bench.verify("latest"), Vec::<String>::new());
}
