use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use proto::RepositoryName;
use proto::agent::HostScope;
use proto::agent::SnapshotRef;
use proto::backup::BackupOptions;
use proto::door::DoorKey;
use proto::keeping::Keeping;
use proto::look::{Forget, Keep, Query, SnapshotFilter};
use proto::means::{Commands, Pace};
use proto::restore::RestoreOptions;

use super::*;
use crate::engine::{Onto, SampleBounds};
use crate::kept::Kept;

/// Does nothing, and tells what it was asked to do.
#[derive(Default)]
struct FakeEngine {
    calls: Mutex<Vec<String>>,
    fails_at: Option<&'static str>,
    /// Waits in this unit until it is stopped.
    hangs_at: Option<&'static str>,
    /// Never comes back from this unit, whatever is asked.
    stuck_at: Option<&'static str>,
    panics_at: Option<&'static str>,
    /// One of its threads panics in this unit, which then waits for it for ever.
    breaks_at: Option<&'static str>,
}

impl FakeEngine {
    fn call(&self, what: String, meter: &SharedMeter) -> Result<Work, EngineError> {
        let failing = self.fails_at.is_some_and(|at| what.contains(at));
        let hanging = self.hangs_at.is_some_and(|at| what.contains(at));
        self.calls.lock().unwrap().push(what.clone());
        if failing {
            return Err(EngineError::Library { path: "/repo".into(), what: "is damaged".into() });
        }
        assert!(!self.panics_at.is_some_and(|at| what.contains(at)), "as told");
        if self.breaks_at.is_some_and(|at| what.contains(at)) {
            meter.break_off("index still in use");
            loop {
                std::thread::park();
            }
        }
        while self.stuck_at.is_some_and(|at| what.contains(at)) {
            std::thread::park();
        }
        if hanging {
            while !meter.is_stopped() {
                std::thread::yield_now();
            }
            return Err(EngineError::Stopped);
        }
        let counts = BackupCounts { files_new: 1, duration_ms: 3, ..BackupCounts::default() };
        Ok(Work { snapshots: vec![what], files: 1, bytes: 10, repository_bytes: 5, counts, ..Work::default() })
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

impl BackupEngine for FakeEngine {
    fn backup(
        &self,
        _: &Repository,
        sources: &[&Path],
        options: &BackupOptions,
        mark: &Mark,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError> {
        assert_eq!((mark.job, mark.origin.host.as_str()), (7, "host-1"));
        let sources: Vec<_> = sources.iter().map(|source| source.display().to_string()).collect();
        let dry = if options.dry_run { " dry" } else { "" };
        self.call(format!("backup {}{dry}", sources.join(" ")), meter)
    }
    fn backup_output(
        &self,
        _: &Repository,
        path: &Path,
        _: &BackupOptions,
        commands: &Commands,
        mark: &Mark,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError> {
        assert_eq!(mark.pace.upload, Some(5));
        self.call(format!("backup what {:?} prints as {}", commands.output_of, path.display()), meter)
    }
    fn restore(
        &self,
        _: &Repository,
        snapshot: &SnapshotRef,
        target: &Path,
        _: &RestoreOptions,
        _: &Mark,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError> {
        self.call(format!("restore {} {}", snapshot.snapshot, target.display()), meter)
    }
    fn restore_over(
        &self,
        _: &Repository,
        snapshot: &SnapshotRef,
        onto: &Onto<'_>,
        _: &Mark,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError> {
        self.call(format!("restore {} over {}: {:?}", snapshot.snapshot, onto.target.display(), onto.over), meter)
    }
    fn restore_test(
        &self,
        _: &Repository,
        snapshot: &SnapshotRef,
        bounds: SampleBounds,
        _: &Mark,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError> {
        self.call(format!("test {} by {} files of {} bytes", snapshot.snapshot, bounds.files, bounds.bytes), meter)
    }
    fn verify(&self, _: &Repository, of: &SnapshotRef, _: &Mark, meter: &SharedMeter) -> Result<Work, EngineError> {
        self.call(format!("verify {}", of.snapshot), meter)
    }
    fn check(&self, _: &Repository, read_data: bool, _: &Mark, meter: &SharedMeter) -> Result<Work, EngineError> {
        self.call(format!("check {read_data}"), meter)
    }
    fn forget(&self, _: &Repository, keep_last: u32, _: &Mark, meter: &SharedMeter) -> Result<Work, EngineError> {
        self.call(format!("forget {keep_last}"), meter)
    }
    fn forget_by_rules(
        &self,
        _: &Repository,
        order: &Forget,
        _: &Mark,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError> {
        let work = self.call(format!("forget by rules, daily {}", order.keep.daily), meter)?;
        Ok(Work { found: vec![Found::Content(b"fate".to_vec())], left_out: 2, ..work })
    }
    fn look(&self, _: &Repository, query: &Query, _: &Mark, meter: &SharedMeter) -> Result<Work, EngineError> {
        self.call(query.kind().to_owned(), meter)
    }
    fn reclaim(&self, _: &Repository, _: &Mark, meter: &SharedMeter) -> Result<Work, EngineError> {
        self.call("reclaim".into(), meter)
    }
    fn identify(&self, at: &Repository, meter: &SharedMeter) -> Result<Work, EngineError> {
        self.call(format!("identify {}", at.path), meter)
    }
    fn serve(&self, kept: &Kept, password: Option<&Path>, meter: &SharedMeter) -> Result<Work, EngineError> {
        assert_eq!((kept.host.as_str(), kept.key, password), ("host-1", DoorKey([7; 32]), None));
        self.call(format!("serve {} in {} at {}", kept.name, kept.path.display(), kept.address), meter)
    }
    fn unserve(&self, name: &RepositoryName) -> Result<Work, EngineError> {
        self.calls.lock().unwrap().push(format!("unserve {name}"));
        Ok(Work::default())
    }

    fn keeping(
        &self,
        name: &RepositoryName,
        order: &Keeping,
        _: &Mark,
        _: &SharedMeter,
    ) -> Result<Work, EngineError> {
        self.calls.lock().unwrap().push(format!("{} of {name}", order.kind()));
        Ok(Work { said: vec![("key".into(), "4e".into())], ..Work::default() })
    }
}

/// As [`super::run`], with an engine that can be asked afterwards.
fn run(engine: &Arc<FakeEngine>, role: Role, operation: &Operation, host: &dyn Host) -> Ended {
    let nowhere = Path::new("/nowhere");
    run_with(engine, role, Permits::read(nowhere, nowhere), operation, host)
}

fn run_with(
    engine: &Arc<FakeEngine>,
    role: Role,
    permits: Result<Permits, PermitsFault>,
    operation: &Operation,
    host: &dyn Host,
) -> Ended {
    let engine: Arc<dyn BackupEngine> = engine.clone();
    super::run(&engine, role, permits, operation, host)
}

struct FakeHost {
    origin: JobOrigin,
    wanted: Mutex<Vec<Wanted>>,
    before: Option<Vec<u8>>,
    state: Mutex<Option<Vec<u8>>>,
    reports: AtomicUsize,
}

impl FakeHost {
    /// Answers `wanted` one after the other, the last one for ever.
    fn new(wanted: &[Wanted], before: Option<Vec<u8>>) -> Self {
        let (wanted, state) = (Mutex::new(wanted.to_vec()), Mutex::new(before.clone()));
        let origin = JobOrigin::new("host-1".parse().unwrap(), "data-agent".parse().unwrap());
        Self { origin, wanted, before, state, reports: AtomicUsize::new(0) }
    }

    fn state(&self) -> Option<Vec<u8>> {
        self.state.lock().unwrap().clone()
    }
}

impl Host for FakeHost {
    fn job(&self) -> u64 {
        7
    }
    fn origin(&self) -> Option<&JobOrigin> {
        self.before.is_none().then_some(&self.origin)
    }
    fn report(&self, _: Progress) {
        self.reports.fetch_add(1, Ordering::Relaxed);
    }
    fn wanted(&self) -> Wanted {
        let mut wanted = self.wanted.lock().unwrap();
        if wanted.len() > 1 { wanted.remove(0) } else { wanted[0] }
    }
    fn saved(&self) -> Option<&[u8]> {
        self.before.as_deref()
    }
    fn save(&self, state: &[u8]) -> Result<(), FileFault> {
        *self.state.lock().unwrap() = Some(state.to_vec());
        Ok(())
    }
}

fn repository() -> Repository {
    Repository { path: "/repo".into(), password_file: None }
}

fn backup(sources: &[&str]) -> Operation {
    Operation::Backup { repository: repository(), sources: sources.iter().map(|s| (*s).to_owned()).collect() }
}

#[test]
fn each_role_refuses_the_others_operations_by_name() {
    let operations = [
        (backup(&["/a"]), Role::Data),
        (
            Operation::Restore { repository: repository(), snapshot: SnapshotRef::latest(), target: "/t".into() },
            Role::Data,
        ),
        (Operation::Verify { repository: repository(), snapshot: SnapshotRef::latest() }, Role::Data),
        (Operation::Check { repository: repository(), read_data: true }, Role::Media),
        (Operation::Prune { repository: repository(), keep_last: 1 }, Role::Media),
    ];
    for (operation, does) in operations {
        for role in [Role::Data, Role::Media] {
            let (engine, host) = (Arc::new(FakeEngine::default()), FakeHost::new(&[Wanted::GoOn], None));
            match run(&engine, role, &operation, &host) {
                Ended::Outcome(Outcome::Done(_)) => assert_eq!(role, does, "{operation:?}"),
                Ended::Outcome(Outcome::Failed(what)) => {
                    assert_ne!(role, does, "{what}");
                    assert!(what.contains(operation.kind()) && what.contains(&does.to_string()), "{what}");
                    assert!(engine.calls().is_empty());
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn each_source_is_a_unit_and_the_sums_add_up() {
    let (engine, host) = (Arc::new(FakeEngine::default()), FakeHost::new(&[Wanted::GoOn], None));
    let Ended::Outcome(Outcome::Done(done)) = run(&engine, Role::Data, &backup(&["/a", "/b"]), &host) else {
        panic!("not done")
    };
    assert_eq!(done.snapshots, ["backup /a", "backup /b"]);
    assert_eq!((done.files, done.bytes, done.repository_bytes), (2, 20, 10));
    assert!(host.reports.load(Ordering::Relaxed) >= 2);
}

#[test]
fn all_sources_are_one_unit_if_they_are_to_be_and_the_counts_add_up() {
    let order = |options: BackupOptions| {
        let (engine, host) = (Arc::new(FakeEngine::default()), FakeHost::new(&[Wanted::GoOn], None));
        let sources = vec!["/a".to_owned(), "/b".to_owned()];
        let operation = Operation::BackupWith { repository: repository(), sources, options };
        let Ended::Outcome(Outcome::BackedUp { summary, counts }) = run(&engine, Role::Data, &operation, &host)
        else {
            panic!("not done")
        };
        assert_eq!(summary.snapshots, engine.calls());
        (summary.snapshots, counts.files_new, counts.duration_ms)
    };
    let each = |calls: &[&str]| calls.iter().map(|call| (*call).to_owned()).collect::<Vec<_>>();
    let options = BackupOptions::default;
    assert_eq!(order(options()), (each(&["backup /a", "backup /b"]), 2, 6));
    let together = BackupOptions { together: true, dry_run: true, ..options() };
    assert_eq!(order(together), (each(&["backup /a /b dry"]), 1, 3));
}

#[test]
fn commands_run_only_where_the_host_names_them_and_an_output_is_one_file() {
    let name = || Some("dump".parse().unwrap());
    let order = |sources: &[&str], commands: Commands, permits: &str| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("permits.toml"), permits).unwrap();
        let permits = Permits::read(dir.path(), Path::new("/nowhere"));
        let (engine, host) = (Arc::new(FakeEngine::default()), FakeHost::new(&[Wanted::GoOn], None));
        let sources = sources.iter().map(|source| (*source).to_owned()).collect();
        let (options, pace) = (BackupOptions::default(), Pace { upload: Some(5), ..Pace::default() });
        let operation = Operation::BackupBy { repository: repository(), sources, options, commands, pace };
        let shared: Arc<dyn BackupEngine> = engine.clone();
        let ended = super::run(&shared, Role::Data, permits, &operation, &host);
        (ended, engine.calls())
    };
    let output = || Commands { output_of: name(), seconds: 60, ..Commands::default() };
    let (refused, calls) = order(&["/dump.sql"], output(), "");
    let Ended::Outcome(Outcome::Failed(why)) = refused else { panic!("{refused:?}") };
    assert!(why.contains("does not permit the command dump") && why.contains("(commands)"), "{why}");
    assert!(calls.is_empty());
    let named = "[backup]\nsources = [\"/srv\"]\n[commands]\ndump = [\"/bin/true\"]\n";
    let (ended, calls) = order(&["/dump.sql"], output(), named);
    assert!(matches!(ended, Ended::Outcome(Outcome::BackedUpBy { .. })), "{ended:?}");
    assert_eq!(calls, ["backup what Some(dump) prints as /dump.sql"]);
    let (ended, calls) = order(&["/a", "/b"], output(), named);
    assert!(matches!(ended, Ended::Outcome(Outcome::Failed(why)) if why.contains("one file")) && calls.is_empty());
    // What surrounds a backup lets nothing be read that may not be.
    let hooks = || Commands { before: name(), after: name(), seconds: 60, ..Commands::default() };
    let (ended, calls) = order(&["/etc"], hooks(), named);
    assert!(matches!(ended, Ended::Outcome(Outcome::Failed(_))) && calls.is_empty());
    let (ended, calls) = order(&["/srv/a", "/srv/b"], hooks(), named);
    assert_eq!(calls, ["backup /srv/a", "backup /srv/b"]);
    let Ended::Outcome(Outcome::BackedUpBy { ran, .. }) = ended else { panic!("{ended:?}") };
    let moments: Vec<_> = ran.iter().map(|ran| ran.moment.as_str()).collect();
    assert_eq!(moments, ["before", "after", "before", "after"]);
}

#[test]
fn what_is_forgotten_by_rules_is_found_and_space_is_freed_if_asked() {
    let order = |keep: Keep, dry_run, free| {
        let (engine, host) = (Arc::new(FakeEngine::default()), FakeHost::new(&[Wanted::GoOn], None));
        let snapshots = SnapshotFilter { of: HostScope::Any, source: None, tags: vec![] };
        let order = Forget { snapshots, keep, dry_run, free };
        let ended = run(&engine, Role::Media, &Operation::Forget { repository: repository(), order }, &host);
        (engine.calls(), ended)
    };
    let daily = || Keep { daily: 7, ..Keep::default() };
    let (calls, ended) = order(daily(), false, true);
    assert_eq!(calls, ["forget by rules, daily 7", "reclaim"]);
    let Ended::Outcome(Outcome::Found { found, left_out, .. }) = ended else { panic!("{ended:?}") };
    assert_eq!((found.len(), left_out), (1, 2));
    assert_eq!(order(daily(), true, true).0, ["forget by rules, daily 7"], "a dry run frees nothing");
    let (calls, ended) = order(Keep::default(), false, true);
    assert!(calls.is_empty() && matches!(ended, Ended::Outcome(Outcome::Failed(_))), "{ended:?}");
}

#[test]
fn the_next_version_continues_after_the_units_that_are_done() {
    let engine = Arc::new(FakeEngine { hangs_at: Some("/b"), ..FakeEngine::default() });
    let old = FakeHost::new(&[Wanted::GoOn, Wanted::GoOn, Wanted::GoOn, Wanted::Checkpoint], None);
    let operation = backup(&["/a", "/b", "/c"]);
    assert_eq!(run(&engine, Role::Data, &operation, &old), Ended::Checkpointed);
    assert_eq!(engine.calls(), ["backup /a", "backup /b"]);

    let engine = Arc::new(FakeEngine::default());
    let new = FakeHost::new(&[Wanted::GoOn], old.state());
    let Ended::Outcome(Outcome::Done(done)) = run(&engine, Role::Data, &operation, &new) else { panic!("not done") };
    assert_eq!(engine.calls(), ["backup /b", "backup /c"]);
    assert_eq!(done.snapshots, ["backup /a", "backup /b", "backup /c"]);
}

#[test]
fn a_cancelled_job_says_what_it_had_done() {
    let engine = Arc::new(FakeEngine { hangs_at: Some("/b"), ..FakeEngine::default() });
    let host = FakeHost::new(&[Wanted::GoOn, Wanted::GoOn, Wanted::GoOn, Wanted::Cancel], None);
    let Ended::Outcome(Outcome::Cancelled(done)) = run(&engine, Role::Data, &backup(&["/a", "/b"]), &host) else {
        panic!("not cancelled")
    };
    assert_eq!(done.snapshots, ["backup /a"]);
}

#[test]
fn a_failure_names_the_fault_and_what_was_done_before() {
    let engine = Arc::new(FakeEngine { fails_at: Some("/b"), ..FakeEngine::default() });
    let host = FakeHost::new(&[Wanted::GoOn], None);
    let Ended::Outcome(Outcome::Failed(what)) = run(&engine, Role::Data, &backup(&["/a", "/b"]), &host) else {
        panic!("not failed")
    };
    assert!(what.contains("/repo: is damaged") && what.contains("backup /a"), "{what}");
}

#[test]
fn a_state_of_a_later_form_is_refused_by_number() {
    let later = br#"{"schema":2,"units":"a new idea"}"#.to_vec();
    let (engine, host) = (Arc::new(FakeEngine::default()), FakeHost::new(&[Wanted::GoOn], Some(later.clone())));
    let Ended::Outcome(Outcome::Failed(what)) = run(&engine, Role::Data, &backup(&["/a"]), &host) else {
        panic!("not failed")
    };
    assert!(what.contains("form 2") && what.contains("form 1"), "{what}");
    assert_eq!(host.state(), Some(later), "a state that is not understood is not written over");
}

#[test]
fn a_repository_is_served_by_a_media_agent_that_was_told_its_key() {
    let name: RepositoryName = "main".parse().unwrap();
    let serve = |key| {
        let (name, address) = (name.clone(), "m:7421".to_owned());
        Operation::Serve { repository: repository(), name, address, key }
    };
    let (engine, host) = (Arc::new(FakeEngine::default()), FakeHost::new(&[Wanted::GoOn], None));
    let ended = run(&engine, Role::Media, &serve(Some(DoorKey([7; 32]))), &host);
    assert!(matches!(ended, Ended::Outcome(Outcome::OwnDone(_))), "{ended:?}");
    let unserve = Operation::Unserve { repository: repository(), name: name.clone() };
    assert!(matches!(run(&engine, Role::Media, &unserve, &host), Ended::Outcome(Outcome::Done(_))));
    let calls = [format!("serve main in {} at m:7421", repository().path), "unserve main".into()];
    assert_eq!(engine.calls(), calls);
    let keys = Operation::Keeping { name: name.clone(), order: Keeping::Keys };
    let Ended::Outcome(Outcome::OwnDone(said)) = run(&engine, Role::Media, &keys, &host) else { panic!("not done") };
    assert_eq!((said.results[0].name.as_str(), said.results[0].text.as_str()), ("key", "4e"));
    let calls = [&calls[..], &["keys of main".into()]].concat();
    assert_eq!(engine.calls(), calls);
    for (role, operation) in [(Role::Media, serve(None)), (Role::Data, unserve), (Role::Data, keys)] {
        assert!(matches!(run(&engine, role, &operation, &host), Ended::Outcome(Outcome::Failed(_))));
    }
    assert_eq!(engine.calls(), calls);
}

#[test]
fn prune_keeps_something_and_is_two_units() {
    let (engine, host) = (Arc::new(FakeEngine::default()), FakeHost::new(&[Wanted::GoOn], None));
    let prune = |keep_last| Operation::Prune { repository: repository(), keep_last };
    assert!(matches!(run(&engine, Role::Media, &prune(0), &host), Ended::Outcome(Outcome::Failed(_))));
    assert!(matches!(run(&engine, Role::Media, &prune(2), &host), Ended::Outcome(Outcome::Done(_))));
    assert_eq!(engine.calls(), ["forget 2", "reclaim"]);
}

/// Whatever unit a job is left in, and however often, it does every source once more at most and sums each once.
#[test]
fn a_job_that_is_left_in_any_unit_ends_with_the_sums_of_one_that_is_not() {
    let sources = ["/a", "/b", "/c", "/d"];
    let operation = backup(&sources);
    for left_in in 0..sources.len() {
        for again_in in left_in..sources.len() {
            let (mut state, mut calls) = (None, Vec::new());
            for hangs_at in [Some(sources[left_in]), Some(sources[again_in]), None] {
                let engine = Arc::new(FakeEngine { hangs_at, ..FakeEngine::default() });
                let host = StopsWhereItHangs(FakeHost::new(&[Wanted::GoOn], state.clone()), &engine);
                let ended = run(&engine, Role::Data, &operation, &host);
                calls.extend(engine.calls());
                state = host.0.state();
                match (hangs_at, ended) {
                    (Some(_), ended) => assert_eq!(ended, Ended::Checkpointed),
                    (None, Ended::Outcome(Outcome::Done(done))) => {
                        let expected: Vec<_> = sources.iter().map(|source| format!("backup {source}")).collect();
                        assert_eq!(done.snapshots, expected, "left in {left_in}, again in {again_in}");
                        assert_eq!((done.files, done.bytes, done.repository_bytes), (4, 40, 20));
                    }
                    (None, ended) => panic!("{ended:?}"),
                }
            }
            assert_eq!(
                calls.len(),
                sources.len() + 2,
                "one unit was begun again for each time it was left: {calls:?}"
            );
        }
    }
}

/// Wants a checkpoint as soon as its engine hangs.
struct StopsWhereItHangs<'a>(FakeHost, &'a FakeEngine);

impl Host for StopsWhereItHangs<'_> {
    fn job(&self) -> u64 {
        self.0.job()
    }
    fn origin(&self) -> Option<&JobOrigin> {
        self.0.origin()
    }
    fn report(&self, progress: Progress) {
        self.0.report(progress);
    }
    fn wanted(&self) -> Wanted {
        let hangs = |at: &str| self.1.calls.lock().unwrap().last().is_some_and(|call| call.contains(at));
        if self.1.hangs_at.is_some_and(hangs) { Wanted::Checkpoint } else { Wanted::GoOn }
    }
    fn saved(&self) -> Option<&[u8]> {
        self.0.saved()
    }
    fn save(&self, state: &[u8]) -> Result<(), FileFault> {
        self.0.save(state)
    }
}

/// A host whose disk is full keeps nothing.
struct Full(FakeHost);

impl Host for Full {
    fn job(&self) -> u64 {
        self.0.job()
    }
    fn origin(&self) -> Option<&JobOrigin> {
        self.0.origin()
    }
    fn report(&self, _: Progress) {}
    fn wanted(&self) -> Wanted {
        Wanted::GoOn
    }
    fn saved(&self) -> Option<&[u8]> {
        None
    }
    fn save(&self, _: &[u8]) -> Result<(), FileFault> {
        Err(FileFault::Io { path: "/full".into(), source: std::io::Error::other("no space left on device") })
    }
}

#[test]
fn a_job_that_could_not_be_continued_is_not_begun() {
    let engine = Arc::new(FakeEngine::default());
    let Ended::Outcome(Outcome::Failed(what)) =
        run(&engine, Role::Data, &backup(&["/a"]), &Full(FakeHost::new(&[Wanted::GoOn], None)))
    else {
        panic!("not failed")
    };
    assert!(what.contains("job 7") && what.contains("no space left"), "{what}");
    assert!(engine.calls().is_empty());
}

#[test]
fn a_damaged_state_is_named_and_nothing_is_done() {
    for damaged in [&b""[..], b"{", b"{\"schema\":1}", b"{\"schema\":1,\"units_done\":-1}", b"[]", b"\xff"] {
        let (engine, host) =
            (Arc::new(FakeEngine::default()), FakeHost::new(&[Wanted::GoOn], Some(damaged.to_vec())));
        let Ended::Outcome(Outcome::Failed(what)) = run(&engine, Role::Data, &backup(&["/a"]), &host) else {
            panic!("not failed: {damaged:?}")
        };
        assert!(what.contains("the saved state of job 7 is damaged"), "{what}");
        assert!(engine.calls().is_empty());
    }
}

#[test]
fn an_operation_that_does_not_stop_is_given_up_within_a_second() {
    let engine = Arc::new(FakeEngine { stuck_at: Some("/b"), ..FakeEngine::default() });
    let host = FakeHost::new(&[Wanted::GoOn, Wanted::GoOn, Wanted::GoOn, Wanted::Cancel], None);
    let begun = Instant::now();
    let ended = run(&engine, Role::Data, &backup(&["/a", "/b"]), &host);
    assert!(matches!(ended, Ended::Outcome(Outcome::Cancelled(_))), "{ended:?}");
    // The answer to a cancel is what a person waits for; a loaded machine may take a little longer.
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[test]
fn a_panic_of_the_engine_is_the_units_failure_and_is_named() {
    let engine = Arc::new(FakeEngine { panics_at: Some("/b"), ..FakeEngine::default() });
    let host = FakeHost::new(&[Wanted::GoOn], None);
    let Ended::Outcome(Outcome::Failed(what)) = run(&engine, Role::Data, &backup(&["/a", "/b"]), &host) else {
        panic!("not failed")
    };
    assert!(what.contains("as told") && what.contains("backup /a"), "{what}");
}

#[test]
fn what_the_host_does_not_permit_is_refused_by_its_line_before_anything_is_done() {
    let state = tempfile::tempdir().unwrap();
    let permits = || Permits::read(state.path(), &state.path().join("run"));
    let refusal = |role, operation: &Operation| {
        let engine = Arc::new(FakeEngine::default());
        let ended = run_with(&engine, role, permits(), operation, &FakeHost::new(&[Wanted::GoOn], None));
        let Ended::Outcome(Outcome::Failed(why)) = ended else { panic!("not refused: {operation:?}") };
        assert!(engine.calls().is_empty(), "{:?}", engine.calls());
        why
    };
    let at = |path: &str| Repository { path: path.into(), password_file: None };
    let restore = |target: &str| Operation::Restore {
        repository: at("/repo"),
        snapshot: SnapshotRef::latest(),
        target: target.into(),
    };
    let by_default = refusal(Role::Data, &restore("/etc/cron.d"));
    assert!(by_default.contains("place of the system") && by_default.contains("permits.toml"), "{by_default}");
    let backup_to = |path: &str| Operation::Backup { repository: at(path), sources: vec!["/srv".into()] };
    let new = refusal(Role::Data, &backup_to("/usr/lib/new"));
    assert!(new.contains("a repository in /usr/lib/new"), "{new}");

    let text = "[backup]\nsources = [\"/srv\"]\n[repository]\nprune = false\n";
    std::fs::write(state.path().join("permits.toml"), text).unwrap();
    let sources = refusal(Role::Data, &backup(&["/srv/a", "/etc"]));
    assert!(sources.contains("backing up /etc") && sources.contains("permits.toml, line 2"), "{sources}");
    let prune = refusal(Role::Media, &Operation::Prune { repository: at("/repo"), keep_last: 3 });
    assert!(prune.contains("permits.toml, line 4"), "{prune}");
    // What the administrator mends holds from the next order on; until then nothing is done.
    std::fs::write(state.path().join("permits.toml"), "[backup\n").unwrap();
    let unclear = refusal(Role::Data, &backup(&["/srv/a"]));
    assert!(unclear.contains("permits.toml, line 1"), "{unclear}");
}

#[test]
fn an_operation_that_waits_for_a_thread_that_panicked_is_given_up_with_its_words() {
    let engine = Arc::new(FakeEngine { breaks_at: Some("/b"), ..FakeEngine::default() });
    let host = FakeHost::new(&[Wanted::GoOn], None);
    let Ended::Outcome(Outcome::Failed(what)) = run(&engine, Role::Data, &backup(&["/a", "/b"]), &host) else {
        panic!("it did not fail");
    };
    assert!(what.contains("index still in use") && what.contains("done before: snapshot backup /a"), "{what}");
}
