use super::job::DrainStage;
use super::record::{Paper, read};
use super::*;
use crate::kinds::Results;
use crate::moments::testing;
use crate::operations::Demand;
use proto::agent::{Repository, SnapshotRef, Summary};
use std::fs;
use std::sync::mpsc;
use std::time::Duration;

/// Runs whatever the test sends it, by the number of sources.
struct Scripted {
    begun: Mutex<mpsc::Sender<(JobId, Option<Vec<u8>>)>>,
}

impl Operations for Scripted {
    fn run(&self, operation: &Operation, context: &OperationContext) -> Ended {
        let resume = context.resume().map(<[u8]>::to_vec);
        self.begun.lock().unwrap().send((context.job(), resume)).unwrap();
        let Operation::Backup { sources, .. } = operation else { panic!("as told") };
        if sources.is_empty() {
            return Ended::Outcome(Outcome::Done(Summary::default()));
        }
        context.checkpoint(b"half").unwrap();
        while !context.should_stop() {
            std::thread::yield_now();
        }
        match context.demand() {
            Demand::Cancel => Ended::Outcome(Outcome::Cancelled(Summary::default())),
            Demand::None | Demand::Finish | Demand::Checkpoint => Ended::Checkpointed,
        }
    }
}

struct Fixture {
    _dir: tempfile::TempDir,
    paths: AgentPaths,
}

type Begun = mpsc::Receiver<(JobId, Option<Vec<u8>>)>;

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let paths = AgentPaths::new(dir.path(), dir.path(), "agent".parse().unwrap());
    Fixture { _dir: dir, paths }
}

impl Fixture {
    fn open(&self, version: &str, schemas: (u32, u32)) -> (Arc<Jobs>, Begun) {
        self.open_vouched(version, schemas, Vouched { handed_over: &[], at_most: UNASKED_MAX })
    }

    fn open_vouched(&self, version: &str, schemas: (u32, u32), vouched: Vouched<'_>) -> (Arc<Jobs>, Begun) {
        let (begun, receiver) = mpsc::channel();
        let operations = Arc::new(Scripted { begun: Mutex::new(begun) });
        let schemas = SchemaRange { min: schemas.0, max: schemas.1 };
        (Jobs::open(&self.paths, version.parse().unwrap(), schemas, operations, kinds(), vouched), receiver)
    }
}

/// `step` checkpoints once and then waits to be stopped; called again, it says from where it went on.
fn kinds() -> Kinds {
    Kinds::new().on("step", |(): (), context| {
        if let Some(from) = context.resume() {
            return Ok(Results::new().with("from", String::from_utf8_lossy(from)));
        }
        context.checkpoint(b"here")?;
        context.units(0, 1, "begun");
        loop {
            context.go_on()?;
            std::thread::yield_now();
        }
    })
}

fn own(kind: &str) -> Operation {
    Operation::Own { kind: kind.parse().unwrap(), arguments: Default::default() }
}

fn origin() -> JobOrigin {
    JobOrigin::new("host-1".parse().unwrap(), "data-agent".parse().unwrap())
}

fn repository() -> Repository {
    Repository { path: "/r".to_owned(), password_file: None }
}

/// Ends at once.
fn short() -> Operation {
    Operation::Backup { repository: repository(), sources: vec![] }
}

/// Runs until it is stopped.
fn long() -> Operation {
    Operation::Backup { repository: repository(), sources: vec!["/".to_owned()] }
}

fn outcome(job: &Job) -> Outcome {
    let mut known = 0;
    loop {
        match job.wait(known, Duration::from_secs(20)) {
            News::Ended(outcome) => return outcome,
            News::Progress(number, _) => known = number,
            other => panic!("{other:?}"),
        }
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[test]
fn a_known_job_is_joined_and_not_run_again() {
    let fixture = fixture();
    let (jobs, begun) = fixture.open("1.0", (1, 1));
    let job = jobs.run(JobId(1), origin(), short()).unwrap();
    let first = outcome(&job);
    assert_eq!(outcome(&jobs.run(JobId(1), origin(), short()).unwrap()), first);
    assert_eq!(begun.iter().take(1).count(), 1);
    assert!(begun.try_recv().is_err(), "it was run again");
    assert!(matches!(jobs.run(JobId(1), origin(), long()), Err(Fault::BadRequest(_))));
    assert!(jobs.wait_idle(soon()));
    // Also after a restart.
    let (jobs, begun) = fixture.open("2.0", (1, 1));
    assert_eq!(outcome(&jobs.run(JobId(1), origin(), short()).unwrap()), first);
    assert!(begun.try_recv().is_err());
}

#[test]
fn a_panic_is_the_operations_and_not_the_agents() {
    let fixture = fixture();
    let (jobs, _begun) = fixture.open("1.0", (1, 1));
    let job = jobs
        .run(JobId(1), origin(), Operation::Verify { repository: repository(), snapshot: SnapshotRef::latest() })
        .unwrap();
    assert_eq!(outcome(&job), Outcome::Failed("the operation panicked: as told".to_owned()));
}

#[test]
fn a_cancelled_job_stays_cancelled_over_a_restart() {
    let fixture = fixture();
    let (jobs, begun) = fixture.open("1.0", (1, 1));
    let job = jobs.run(JobId(1), origin(), long()).unwrap();
    begun.recv().unwrap();
    jobs.cancel(JobId(1)).unwrap();
    assert!(matches!(outcome(&job), Outcome::Cancelled(_)));
    assert!(matches!(jobs.cancel(JobId(2)), Err(Fault::NotFound(_))));
    // Cancelled, and the agent gone before the unit boundary.
    let mut record = read(&fixture.paths.job(JobId(1))).unwrap();
    record.outcome = None;
    Paper::new(fixture.paths.job(JobId(1)), record).write(Moment::JobStart).unwrap();
    let (jobs, _begun) = fixture.open("1.0", (1, 1));
    assert!(matches!(outcome(&jobs.run(JobId(1), origin(), long()).unwrap()), Outcome::Cancelled(_)));
}

#[test]
fn a_drain_stops_work_and_a_drain_that_came_to_nothing_runs_it_on() {
    let fixture = fixture();
    let (jobs, begun) = fixture.open("1.0", (1, 1));
    let job = jobs.run(JobId(1), origin(), long()).unwrap();
    assert_eq!(begun.recv().unwrap().1, None);
    jobs.begin_drain();
    assert!(matches!(jobs.run(JobId(2), origin(), short()), Err(Fault::Draining)));
    assert!(!jobs.wait_idle(Instant::now() + Duration::from_millis(20)), "finishing is asked, stopping is not");
    jobs.demand_checkpoint();
    assert!(jobs.wait_idle(soon()));
    assert_eq!(jobs.suspend(), (vec![JobId(1)], 0));
    assert_eq!(job.wait(u64::MAX, Duration::ZERO), News::Suspended);
    jobs.end_drain();
    assert_eq!(begun.recv().unwrap().1.as_deref(), Some(b"half".as_slice()), "from its checkpoint");
    assert_eq!(jobs.under_way(), [JobId(1)]);
    jobs.cancel(JobId(1)).unwrap();
    outcome(&job);
}

#[test]
fn the_next_version_goes_on_if_it_reads_the_state_and_begins_anew_if_not() {
    let fixture = fixture();
    let (jobs, begun) = fixture.open("1.0", (1, 2));
    jobs.run(JobId(1), origin(), long()).unwrap();
    begun.recv().unwrap();
    drain_off(&jobs);
    let (jobs, begun) = fixture.open("2.0", (2, 3));
    assert_eq!(begun.recv().unwrap().1.as_deref(), Some(b"half".as_slice()));
    drain_off(&jobs);
    // That checkpoint was written in schema 3.
    let (jobs, begun) = fixture.open("1.0", (1, 2));
    assert_eq!(begun.recv().unwrap().1, None);
    jobs.cancel(JobId(1)).unwrap();
    assert!(jobs.wait_idle(soon()));
    let Some(Outcome::Cancelled(summary)) = read(&fixture.paths.job(JobId(1))).unwrap().outcome else {
        panic!("not cancelled")
    };
    assert_eq!(summary.versions, ["1.0", "2.0", "1.0"]);
}

/// A host whose STATE is a copy of some weeks ago, with a job in the middle: RUN has nothing of it.
fn restored_from_a_copy() -> Fixture {
    let fixture = fixture();
    let (jobs, begun) = fixture.open("1.0", (1, 1));
    jobs.run(JobId(1), origin(), long()).unwrap();
    begun.recv().unwrap();
    drain_off(&jobs);
    marks::sweep(&fixture.paths).unwrap();
    fixture
}

#[test]
fn a_job_that_only_the_disk_knows_waits_until_the_manager_asks_for_it() {
    let fixture = restored_from_a_copy();
    let before = fs::read(fixture.paths.job(JobId(1))).unwrap();
    let (jobs, begun) = fixture.open("1.0", (1, 1));
    // Nothing is under way, to nobody: not for the status, not for a drain, not for the next version.
    assert!(jobs.under_way().is_empty() && jobs.wait_idle(Instant::now()));
    jobs.begin_drain();
    assert_eq!(jobs.suspend(), (vec![], 0));
    assert!(matches!(jobs.run(JobId(1), origin(), long()), Err(Fault::Draining)));
    jobs.end_drain();
    assert!(begun.try_recv().is_err() && fs::read(fixture.paths.job(JobId(1))).unwrap() == before, "it went on");
    // The next start says so again, although an agent ran here since.
    let (jobs, begun) = fixture.open("2.0", (1, 1));
    assert!(jobs.under_way().is_empty() && begun.try_recv().is_err());
    assert!(matches!(jobs.run(JobId(1), origin(), short()), Err(Fault::BadRequest(_))));
    let job = jobs.run(JobId(1), origin(), long()).unwrap();
    assert_eq!(begun.recv().unwrap().1.as_deref(), Some(b"half".as_slice()), "from its checkpoint");
    // From here on this is no copy any more.
    drain_off(&jobs);
    drop(job);
    let (jobs, begun) = fixture.open("2.0", (1, 1));
    assert_eq!(begun.recv().unwrap().0, JobId(1));
    jobs.cancel(JobId(1)).unwrap();
    assert!(jobs.wait_idle(soon()));
}

#[test]
fn what_the_version_before_has_handed_over_goes_on_unasked() {
    let fixture = restored_from_a_copy();
    let vouched = Vouched { handed_over: &[JobId(1)], at_most: UNASKED_MAX };
    let (jobs, begun) = fixture.open_vouched("2.0", (1, 1), vouched);
    assert_eq!(begun.recv().unwrap().1.as_deref(), Some(b"half".as_slice()));
    jobs.cancel(JobId(1)).unwrap();
    assert!(jobs.wait_idle(soon()));
}

#[test]
fn a_job_that_nobody_asks_for_ends_unbegun_by_a_cancel_and_in_the_end_by_itself() {
    let fixture = restored_from_a_copy();
    let (jobs, begun) = fixture.open("1.0", (1, 1));
    jobs.cancel(JobId(1)).unwrap();
    assert!(matches!(outcome(&jobs.run(JobId(1), origin(), long()).unwrap()), Outcome::Cancelled(_)));
    assert!(begun.try_recv().is_err(), "it was begun");

    let fixture = restored_from_a_copy();
    let vouched = Vouched { handed_over: &[], at_most: Duration::from_millis(1) };
    let (_jobs, begun) = fixture.open_vouched("1.0", (1, 1), vouched);
    let until = soon();
    let outcome = loop {
        if let Some(outcome) = read(&fixture.paths.job(JobId(1))).unwrap().outcome {
            break outcome;
        }
        assert!(Instant::now() < until, "it waits for ever");
        std::thread::yield_now();
    };
    let Outcome::Failed(why) = outcome else { panic!("{outcome:?}") };
    assert!(why.contains("has not asked for it again") && why.contains("an old copy"), "{why}");
    assert!(begun.try_recv().is_err(), "it was begun");
}

fn drain_off(jobs: &Arc<Jobs>) {
    // The checkpoint comes right after the start.
    while read(&jobs.paths.job(JobId(1))).unwrap().resume.is_none() {
        std::thread::yield_now();
    }
    jobs.begin_drain();
    jobs.demand_checkpoint();
    assert!(jobs.wait_idle(soon()));
}

#[test]
fn an_operation_that_takes_the_agent_down_each_time_is_given_up() {
    let fixture = fixture();
    durable::create_dir(&fixture.paths.jobs()).unwrap();
    let record = JobRecord { starts: STARTS_MAX, ..JobRecord::new(JobId(1), short()) };
    Paper::new(fixture.paths.job(JobId(1)), record).write(Moment::JobStart).unwrap();
    fs::write(fixture.paths.jobs().join("2"), b"not a job").unwrap();
    fs::write(fixture.paths.jobs().join(".3.77.tmp"), b"left over").unwrap();
    let (jobs, begun) = fixture.open("1.0", (1, 1));
    let Outcome::Failed(text) = outcome(&jobs.run(JobId(1), origin(), short()).unwrap()) else {
        panic!("not failed")
    };
    assert!(text.starts_with("given up"), "{text}");
    assert!(begun.try_recv().is_err());
    let mut left: Vec<_> =
        fs::read_dir(fixture.paths.jobs()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, ["1", "2"], "what cannot be read is kept for people, what was left over is not");
}

#[test]
fn outcomes_are_kept_for_a_while_and_not_for_ever() {
    let fixture = fixture();
    let (jobs, _begun) = fixture.open("1.0", (1, 1));
    let count = FINISHED_MAX as u64 + 5;
    for id in 1..=count {
        outcome(&jobs.run(JobId(id), origin(), short()).unwrap());
    }
    assert!(jobs.wait_idle(soon()));
    assert_eq!(fs::read_dir(fixture.paths.jobs()).unwrap().count(), FINISHED_MAX);
    assert!(fixture.paths.job(JobId(count)).exists() && !fixture.paths.job(JobId(1)).exists());
}

/// The disk stands still under every write of a job, and whoever asks how the agent is gets an answer all the same.
#[test]
fn a_disk_that_stands_still_holds_up_nobody_who_only_asks() {
    for moment in [Moment::JobStart, Moment::JobCheckpoint, Moment::JobCancel, Moment::JobEnd] {
        let fixture = fixture();
        let (jobs, _begun) = fixture.open("1.0", (1, 1));
        let (reached, stands) = mpsc::channel();
        let gate = Arc::new((Mutex::new(true), Condvar::new()));
        let held = gate.clone();
        testing::below(&fixture.paths.jobs(), move |now| {
            if now == moment {
                let _ = reached.send(());
                drop(held.1.wait_while(held.0.lock().unwrap(), |closed| *closed).unwrap());
            }
            Ok(())
        });
        let asking = jobs.clone();
        let asker = std::thread::spawn(move || {
            asking.run(JobId(1), origin(), long()).unwrap();
            if moment != Moment::JobCheckpoint {
                asking.cancel(JobId(1)).unwrap();
            }
        });
        stands.recv_timeout(Duration::from_secs(20)).unwrap();
        // From threads of their own, so that a lock that is held fails the test and does not hang it.
        let (answer, answers) = mpsc::channel();
        let looking = jobs.clone();
        std::thread::spawn(move || {
            answer.send(looking.under_way()).unwrap();
            looking.begin_drain();
            looking.demand_checkpoint();
            answer.send(looking.suspend().0).unwrap();
        });
        for _ in 0..2 {
            let under_way = answers.recv_timeout(Duration::from_secs(5));
            assert_eq!(under_way.unwrap_or_else(|_| panic!("waits for the disk at {moment:?}")), [JobId(1)]);
        }
        *gate.0.lock().unwrap() = false;
        gate.1.notify_all();
        asker.join().unwrap();
        assert!(jobs.wait_idle(soon()));
    }
}

#[test]
fn a_job_whose_record_cannot_be_written_is_not_begun_and_may_be_asked_for_again() {
    let fixture = fixture();
    let (jobs, begun) = fixture.open("1.0", (1, 1));
    let full = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let disk = full.clone();
    testing::below(&fixture.paths.jobs(), move |_| {
        if disk.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(std::io::Error::from_raw_os_error(libc::ENOSPC));
        }
        Ok(())
    });
    let refused = jobs.run(JobId(1), origin(), short());
    assert!(matches!(&refused, Err(Fault::Failed(text)) if text.contains("No space left")), "{refused:?}");
    assert!(jobs.under_way().is_empty() && begun.try_recv().is_err());
    full.store(false, std::sync::atomic::Ordering::Relaxed);
    outcome(&jobs.run(JobId(1), origin(), short()).unwrap());
}

#[test]
fn an_operation_of_its_own_goes_on_under_the_next_version_where_it_was() {
    let fixture = fixture();
    let (jobs, _begun) = fixture.open("1.0", (1, 1));
    jobs.run(JobId(1), origin(), own("step")).unwrap();
    jobs.begin_drain();
    jobs.demand_checkpoint();
    assert!(jobs.wait_idle(Instant::now() + Duration::from_secs(20)));
    assert_eq!(jobs.suspend().0, [JobId(1)]);
    let (jobs, _begun) = fixture.open("2.0", (1, 1));
    let Outcome::OwnDone(summary) = outcome(&jobs.run(JobId(1), origin(), own("step")).unwrap()) else { panic!() };
    assert_eq!((summary.results[0].text.as_str(), summary.versions), ("here", vec!["1.0".into(), "2.0".into()]));
    let Outcome::Failed(why) = outcome(&jobs.run(JobId(2), origin(), own("stpe")).unwrap()) else { panic!() };
    assert!(why.contains("did you mean step"), "{why}");
}

#[test]
fn a_kind_that_the_host_does_not_permit_is_not_begun_and_not_gone_on_with() {
    let fixture = fixture();
    let (jobs, _begun) = fixture.open("1.0", (1, 1));
    let job = jobs.run(JobId(1), origin(), own("step")).unwrap();
    assert!(matches!(job.wait(0, Duration::from_secs(20)), News::Progress(..)));
    fs::write(fixture.paths.state().join("permits.toml"), "[operations]\nkinds = [\"other\"]\n").unwrap();
    let Outcome::Failed(why) = outcome(&jobs.run(JobId(2), origin(), own("step")).unwrap()) else { panic!() };
    assert!(why.contains("line 2: operations.kinds"), "{why}");
    jobs.cancel(JobId(1)).unwrap();
    assert!(matches!(outcome(&job), Outcome::Cancelled(_)), "one that runs is stopped as any other");
}

const LONG: Duration = Duration::from_secs(1000);

fn saved(fixture: &Fixture, id: u64) -> Job {
    let record = JobRecord::new(JobId(id), short());
    Job::new(record, fixture.paths.job(JobId(id)), "1.0".parse().unwrap(), 1, DrainStage::default())
}

#[test]
fn a_watcher_is_told_every_end_at_once_and_progress_only_once() {
    let fixture = fixture();
    let job = Arc::new(saved(&fixture, 1).ordered_by(origin()));
    assert!(format!("{job:?}").starts_with("Job(1, "), "{job:?}");
    let context = OperationContext { job: job.clone(), resume: None };
    assert_eq!(context.origin(), Some(&origin()));
    context.units(1, 2, "half");
    assert!(matches!(job.wait(0, LONG), News::Progress(1, progress) if progress.activity == "half"));
    assert_eq!(job.wait(1, Duration::ZERO), News::Nothing);
    job.suspend(true);
    assert_eq!(job.wait(1, LONG), News::Suspended);
    job.suspend(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            job.tell_outcome(Outcome::Failed("no disk".to_owned()));
        });
        job.wait_end(LONG);
        assert!(job.has_outcome(), "it had not ended");
    });
    let other = saved(&fixture, 2);
    other.withdraw("no disk".to_owned());
    assert_eq!(other.wait(0, LONG), News::Withdrawn("no disk".to_owned()));
}

#[test]
fn what_nobody_has_asked_for_is_taken_one_at_a_time_and_then_counts_as_working() {
    let fixture = fixture();
    let mut table = Table::default();
    for id in 1..=2 {
        table.add_saved(Arc::new(saved(&fixture, id)), false);
    }
    let ids = |jobs: Vec<Arc<Job>>| jobs.iter().map(|job| job.id()).collect::<Vec<_>>();
    assert_eq!(ids(table.take_unasked(Some(JobId(1)))), [JobId(1)]);
    assert!(table.has_unasked());
    assert_eq!(ids(table.take_unasked(None)), [JobId(2)]);
    assert!(!table.has_unasked());
    assert_eq!(table.suspend(), (vec![JobId(1), JobId(2)], 2));
    let joined = table.admit(JobId(1), &short(), |_| panic!("it is known"));
    assert!(matches!(joined, Err(Fault::Draining)), "one that waits for the exec is not joined");
    table.end_drain();
    table.forget(JobId(1));
    assert!(table.get(JobId(1)).is_none() && table.get(JobId(2)).is_some());
}

/// Stops without having been asked to, each time.
struct StopsUnasked;

impl Operations for StopsUnasked {
    fn run(&self, _operation: &Operation, _context: &OperationContext) -> Ended {
        Ended::Checkpointed
    }
}

#[test]
fn only_who_stops_unasked_is_given_up_in_the_end() {
    let fixture = fixture();
    let schemas = SchemaRange { min: 1, max: 1 };
    let waits = Kinds::new().on("wait", |(): (), context| -> Result<Results, crate::kinds::Halt> {
        loop {
            context.go_on()?;
            std::thread::yield_now();
        }
    });
    let vouched = Vouched { handed_over: &[], at_most: UNASKED_MAX };
    let version = "1.0".parse().unwrap();
    let jobs = Jobs::open(&fixture.paths, version, schemas, Arc::new(StopsUnasked), waits, vouched);
    let Outcome::Failed(why) = outcome(&jobs.run(JobId(1), origin(), short()).unwrap()) else { panic!("not failed") };
    assert!(why.starts_with("given up"), "{why}");
    jobs.run(JobId(2), origin(), own("wait")).unwrap();
    let starts = || read(&fixture.paths.job(JobId(2))).unwrap().starts;
    while starts() == 0 {
        std::thread::yield_now();
    }
    jobs.begin_drain();
    jobs.demand_checkpoint();
    assert!(jobs.wait_idle(soon()));
    assert_eq!(starts(), 0, "stopping in good order is no sign of an operation that takes the agent down");
}

#[test]
fn each_stage_of_a_drain_is_what_was_set() {
    let drain = DrainStage::default();
    for demand in [Demand::Finish, Demand::Checkpoint, Demand::None] {
        drain.set(demand);
        assert_eq!(drain.get(), demand);
    }
    assert_eq!(UNASKED_MAX.as_secs(), 86_400, "a day");
}
