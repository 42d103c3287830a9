//! One operation from the manager's request to its outcome: split into units, watched, stopped at the right place, and
//! continued where an earlier version of this program left off.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use agent_core::FileFault;
use agent_core::{Demand, Ended, OperationContext};
use agent_core::{NotPermitted, Permits, PermitsFault};
use proto::OperationKind;
use proto::agent::{JobOrigin, Operation, Outcome, Progress, Repository, SnapshotRef, Summary};
use serde::{Deserialize, Serialize};

use crate::config::Role;
use crate::engine::{self, BackupEngine, EngineError, Mark, Problems, SharedMeter, Work};

/// How often a running operation reports and asks whether it shall go on. People read it; ten lines a second are not
/// more telling than four.
const BEAT: Duration = Duration::from_millis(250);

/// How long an operation that is to stop may take before nobody waits for it any more. A cancelled one loses nothing
/// that anybody wants; one that goes on in the next version has read data to store.
const CANCEL_PATIENCE: Duration = Duration::from_millis(600);
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(10);

/// How many beats an operation has to end by itself after one of its threads is gone.
const BROKEN_BEATS: u32 = 20;

/// A walk goes as deep as the directories do.
const STACK_BYTES: usize = 32 << 20;

/// The form of [`State`] that this program writes. It refuses a later one by number.
const SCHEMA: u32 = 1;

/// Whether an operation goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// It does.
    GoOn,
    /// It ends soon where it can be continued, because the program changes over.
    Checkpoint,
    /// It ends for good.
    Cancel,
}

/// What an operation needs from whoever runs it: a face of [`OperationContext`] that a test can put on.
pub(crate) trait Host: Sync {
    /// The manager's number of the job.
    fn job(&self) -> u64;
    /// On whose behalf; `None` where an operation goes on.
    fn origin(&self) -> Option<&JobOrigin>;
    /// Passes progress on.
    fn report(&self, progress: Progress);
    /// Asked at every beat and between units.
    fn wanted(&self) -> Wanted;
    /// What [`Host::save`] kept last, perhaps by an earlier version.
    fn saved(&self) -> Option<&[u8]>;
    /// Keeps the state durably.
    fn save(&self, state: &[u8]) -> Result<(), FileFault>;
}

impl Host for OperationContext {
    fn job(&self) -> u64 {
        OperationContext::job(self).0
    }

    fn origin(&self) -> Option<&JobOrigin> {
        OperationContext::origin(self)
    }

    fn report(&self, progress: Progress) {
        self.progress(progress);
    }

    fn wanted(&self) -> Wanted {
        match self.demand() {
            Demand::None | Demand::Finish => Wanted::GoOn,
            Demand::Checkpoint => Wanted::Checkpoint,
            Demand::Cancel => Wanted::Cancel,
        }
    }

    fn saved(&self) -> Option<&[u8]> {
        self.resume()
    }

    fn save(&self, state: &[u8]) -> Result<(), FileFault> {
        self.checkpoint(state)
    }
}

/// An operation cannot be run.
#[derive(Debug, thiserror::Error)]
enum JobFault {
    #[error("a {role} agent does {does}; {kind} is done by a {other} agent")]
    OtherRole { role: Role, does: &'static str, kind: String, other: Role },
    #[error("the reference agent brings no operations of its own, and so no {0}")]
    NotOurs(OperationKind),
    #[error(transparent)]
    NotPermitted(#[from] NotPermitted),
    #[error(transparent)]
    Permits(#[from] PermitsFault),
    #[error("prune keeps at least one snapshot of each source; keep_last is 0")]
    KeepsNothing,
    #[error("a backup needs at least one source")]
    NoSource,
    #[error("job {job} was begun by a version that did not keep on whose behalf; run it again")]
    NoOrigin { job: u64 },
    #[error("the saved state of job {job} is damaged: {error}")]
    Damaged { job: u64, error: serde_json::Error },
    #[error("the saved state of job {job} has form {found}, this version reads form {SCHEMA}; run the job again")]
    OtherSchema { job: u64, found: u32 },
    #[error("the state of job {job} cannot be saved: {fault}")]
    Unsaved { job: u64, fault: FileFault },
    #[error("the state of job {job} cannot be written down: {error}")]
    Encode { job: u64, error: serde_json::Error },
    #[error("{error}{}", done_before(.done))]
    Engine { error: Box<EngineError>, done: Vec<String> },
}

fn done_before(snapshots: &[String]) -> String {
    if snapshots.is_empty() { String::new() } else { format!(" (done before: snapshot {})", snapshots.join(", ")) }
}

/// Where an operation is; survives a change-over and a crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    schema: u32,
    began_unix_ms: u64,
    units_done: u32,
    summary: Sums,
    #[serde(default)]
    origin: Option<JobOrigin>,
}

/// [`Summary`] in a form that is ours to keep.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Sums {
    snapshots: Vec<String>,
    files: u64,
    bytes: u64,
    repository_bytes: u64,
    problems: Vec<String>,
    #[serde(default)]
    problems_left_out: u64,
}

impl Sums {
    fn add(&mut self, work: Work, problems: Problems) {
        self.snapshots.extend(work.snapshots);
        self.files += work.files;
        self.bytes += work.bytes;
        self.repository_bytes += work.repository_bytes;
        let mut sum = Problems { lines: std::mem::take(&mut self.problems), left_out: self.problems_left_out };
        sum.add(problems);
        (self.problems, self.problems_left_out) = (sum.lines, sum.left_out);
    }
}

impl From<Sums> for Summary {
    fn from(sums: Sums) -> Self {
        let Sums { snapshots, files, bytes, repository_bytes, problems, problems_left_out } = sums;
        let problems = Problems { lines: problems, left_out: problems_left_out }.into_lines();
        // The versions are agent-core's to fill in.
        Self { snapshots, files, bytes, repository_bytes, problems, versions: Vec::new() }
    }
}

/// One step of an operation, after which it can be left and continued.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Unit {
    Backup(PathBuf),
    Restore { snapshot: SnapshotRef, target: PathBuf },
    Verify { snapshot: SnapshotRef },
    Check { read_data: bool },
    Forget { keep_last: u32 },
    Reclaim,
    Identify,
}

/// Refuses what the role does not do; the exhaustive match makes a new operation someone's decision. Returns what it
/// works on.
fn accept(role: Role, operation: &Operation) -> Result<&Repository, JobFault> {
    let other = match operation {
        Operation::Backup { .. } | Operation::Restore { .. } | Operation::Verify { .. } => Role::Data,
        Operation::Check { .. } | Operation::Prune { .. } => Role::Media,
        // Either may be at a repository that the other is at, too.
        Operation::Identify { repository } => return Ok(repository),
        // The library performs those itself, and this program brings none.
        Operation::Own { kind, .. } => return Err(JobFault::NotOurs(kind.clone())),
    };
    if let Some(repository) = operation.repository().filter(|_| other == role) {
        return Ok(repository);
    }
    let does = match role {
        Role::Data => "backup, restore and verify",
        Role::Media => "check and prune",
    };
    Err(JobFault::OtherRole { role, does, kind: operation.kind().to_owned(), other })
}

/// Refuses what the host's administrator does not allow.
fn permit(permits: &Permits, repository: &Repository, operation: &Operation) -> Result<(), NotPermitted> {
    let repository = Path::new(&repository.path);
    permits.repository(repository, repository.join("config").is_file())?;
    match operation {
        Operation::Backup { sources, .. } => sources.iter().try_for_each(|source| permits.backup(Path::new(source))),
        Operation::Restore { target, .. } => permits.restore(Path::new(target)),
        Operation::Prune { keep_last, .. } => permits.prune(*keep_last),
        Operation::Verify { .. } | Operation::Check { .. } | Operation::Identify { .. } | Operation::Own { .. } => {
            Ok(())
        }
    }
}

fn units(operation: &Operation) -> Result<Vec<Unit>, JobFault> {
    Ok(match operation {
        Operation::Backup { sources, .. } if sources.is_empty() => return Err(JobFault::NoSource),
        Operation::Backup { sources, .. } => sources.iter().map(|source| Unit::Backup(source.into())).collect(),
        Operation::Restore { snapshot, target, .. } => {
            vec![Unit::Restore { snapshot: snapshot.clone(), target: target.into() }]
        }
        Operation::Verify { snapshot, .. } => vec![Unit::Verify { snapshot: snapshot.clone() }],
        Operation::Check { read_data, .. } => vec![Unit::Check { read_data: *read_data }],
        Operation::Prune { keep_last: 0, .. } => return Err(JobFault::KeepsNothing),
        Operation::Prune { keep_last, .. } => vec![Unit::Forget { keep_last: *keep_last }, Unit::Reclaim],
        Operation::Identify { .. } => vec![Unit::Identify],
        Operation::Own { kind, .. } => return Err(JobFault::NotOurs(kind.clone())),
    })
}

/// Runs an operation to its end, or until `host` wants it to end.
pub(crate) fn run(
    engine: &Arc<dyn BackupEngine>,
    role: Role,
    permits: Result<Permits, PermitsFault>,
    operation: &Operation,
    host: &dyn Host,
) -> Ended {
    match try_run(engine, role, permits, operation, host) {
        Ok(ended) => ended,
        Err(fault) => Ended::Outcome(Outcome::Failed(fault.to_string())),
    }
}

fn try_run(
    engine: &Arc<dyn BackupEngine>,
    role: Role,
    permits: Result<Permits, PermitsFault>,
    operation: &Operation,
    host: &dyn Host,
) -> Result<Ended, JobFault> {
    let repository = accept(role, operation)?;
    let permits = permits?;
    permit(&permits, repository, operation)?;
    let units = units(operation)?;
    let resumed = host.saved();
    let look = resumed.is_some();
    let mut state = match resumed {
        Some(bytes) => read_state(bytes, host.job())?,
        None => new_state(),
    };
    state.origin = host.origin().cloned().or(state.origin.take());
    keep(&state, host)?;
    let origin = state.origin.clone().ok_or(JobFault::NoOrigin { job: host.job() })?;
    let mark = Mark { job: host.job(), origin, since_unix_ms: state.began_unix_ms, look, permits: Arc::new(permits) };
    let total = u32::try_from(units.len()).unwrap_or(u32::MAX);
    for unit in units.into_iter().skip(usize::try_from(state.units_done).unwrap_or(usize::MAX)) {
        match host.wanted() {
            Wanted::GoOn => {}
            Wanted::Checkpoint => return Ok(Ended::Checkpointed),
            Wanted::Cancel => return Ok(Ended::Outcome(Outcome::Cancelled(state.summary.into()))),
        }
        let meter = SharedMeter::default();
        let place = Place { unit: &unit, units_done: state.units_done, units: total };
        let work = start(engine, repository, &unit, &mark, &meter);
        let (work, asked) = watched(&work, &meter, host, &place);
        match work {
            Ok(work) => state.summary.add(work, meter.take_problems()),
            Err(EngineError::Stopped) if asked == Wanted::Checkpoint => return Ok(Ended::Checkpointed),
            Err(EngineError::Stopped) if asked == Wanted::Cancel => {
                return Ok(Ended::Outcome(Outcome::Cancelled(state.summary.into())));
            }
            Err(error) => {
                let why = meter.take_problems().into_lines();
                let error = if let (EngineError::Stopped, Some(why)) = (&error, why.last()) {
                    EngineError::GivenUp(why.clone())
                } else {
                    error
                };
                return Err(JobFault::Engine { error: Box::new(error), done: state.summary.snapshots });
            }
        }
        state.units_done += 1;
        keep(&state, host)?;
    }
    Ok(Ended::Outcome(Outcome::Done(state.summary.into())))
}

/// Begins a unit on a thread of its own, so that nobody need wait for one that is stuck, such as in a network file system
/// that does not answer.
fn start(
    engine: &Arc<dyn BackupEngine>,
    at: &Repository,
    unit: &Unit,
    mark: &Mark,
    meter: &SharedMeter,
) -> mpsc::Receiver<Result<Work, EngineError>> {
    let (end, ended) = mpsc::channel();
    let failed = end.clone();
    let (engine, at, unit, mark, meter) = (engine.clone(), at.clone(), unit.clone(), mark.clone(), meter.clone());
    let thread = std::thread::Builder::new().name(format!("work {}", mark.job)).stack_size(STACK_BYTES);
    let run = move || {
        let one = std::panic::AssertUnwindSafe(|| one(&*engine, &at, &unit, &mark, &meter));
        let result = std::panic::catch_unwind(one);
        // Nobody listens any more after the operation was given up.
        drop(end.send(result.unwrap_or_else(|panic| Err(EngineError::panicked(&at, &*panic)))));
    };
    if let Err(error) = thread.spawn(run) {
        drop(failed.send(Err(EngineError::Thread(error))));
    }
    ended
}

fn one(
    engine: &dyn BackupEngine,
    at: &Repository,
    unit: &Unit,
    mark: &Mark,
    meter: &SharedMeter,
) -> Result<Work, EngineError> {
    match unit {
        Unit::Backup(source) => engine.backup(at, &[source.as_path()], mark, meter),
        Unit::Restore { snapshot, target } => engine.restore(at, snapshot, target, mark, meter),
        Unit::Verify { snapshot } => engine.verify(at, snapshot, mark, meter),
        Unit::Check { read_data } => engine.check(at, *read_data, mark, meter),
        Unit::Forget { keep_last } => engine.forget(at, *keep_last, mark, meter),
        Unit::Reclaim => engine.reclaim(at, mark, meter),
        Unit::Identify => engine.identify(at, meter),
    }
}

/// Which unit of how many is being done.
struct Place<'a> {
    unit: &'a Unit,
    units_done: u32,
    units: u32,
}

impl Place<'_> {
    fn progress(&self, meter: &SharedMeter) -> Progress {
        let (bytes_done, bytes, activity) = meter.read();
        Progress {
            units_done: self.units_done,
            units: self.units,
            bytes_done,
            bytes,
            activity: describe(self.unit, &activity),
            version: String::new(),
        }
    }
}

/// Waits for a unit: reports its progress, and carries the wish to end to the engine. Returns what was wished. A unit that
/// does not end soon after it was asked to is given up; its threads end when they can, and write nothing more.
fn watched(
    work: &mpsc::Receiver<Result<Work, EngineError>>,
    meter: &SharedMeter,
    host: &dyn Host,
    place: &Place<'_>,
) -> (Result<Work, EngineError>, Wanted) {
    let mut last = None;
    let mut asked: Option<(Wanted, Instant)> = None;
    let mut broken = 0;
    loop {
        let progress = place.progress(meter);
        if last.as_ref() != Some(&progress) {
            host.report(progress.clone());
            last = Some(progress);
        }
        let wanted = host.wanted();
        if wanted != Wanted::GoOn && asked.is_none_or(|(before, _)| before != wanted) {
            meter.stop();
            asked = Some((wanted, Instant::now()));
        }
        let so_far = asked.map_or(Wanted::GoOn, |(wanted, _)| wanted);
        match work.recv_timeout(BEAT) {
            Ok(result) => return (result, so_far),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return (Err(EngineError::Silent), so_far),
        }
        if let Some(panic) = meter.broken() {
            // It ends with the panic, unless it waits for the very thread that is gone.
            broken += 1;
            if broken > BROKEN_BEATS {
                meter.abandon();
                return (Err(engine::broken(&panic)), so_far);
            }
        }
        let patience = match so_far {
            Wanted::GoOn => continue,
            Wanted::Checkpoint => CHECKPOINT_PATIENCE,
            Wanted::Cancel => CANCEL_PATIENCE,
        };
        if asked.is_some_and(|(_, at)| at.elapsed() >= patience) {
            tracing::warn!("{}: does not stop, and is given up", describe(place.unit, ""));
            meter.abandon();
            return (Err(EngineError::Stopped), so_far);
        }
    }
}

fn describe(unit: &Unit, activity: &str) -> String {
    let what = match unit {
        Unit::Backup(source) => format!("backing up {}", source.display()),
        Unit::Restore { snapshot, target } => format!("restoring {} to {}", snapshot.snapshot, target.display()),
        Unit::Verify { snapshot } => format!("verifying {}", snapshot.snapshot),
        Unit::Check { read_data: true } => "checking every byte".to_owned(),
        Unit::Check { read_data: false } => "checking".to_owned(),
        Unit::Forget { .. } => "forgetting old snapshots".to_owned(),
        Unit::Reclaim => "freeing unused space".to_owned(),
        Unit::Identify => "asking the repository for its id".to_owned(),
    };
    if activity.is_empty() { what } else { format!("{what} ({activity})") }
}

fn new_state() -> State {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let began_unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    State { schema: SCHEMA, began_unix_ms, units_done: 0, summary: Sums::default(), origin: None }
}

fn read_state(bytes: &[u8], job: u64) -> Result<State, JobFault> {
    #[derive(Deserialize)]
    struct Schema {
        schema: u32,
    }
    let damaged = |error| JobFault::Damaged { job, error };
    let Schema { schema } = serde_json::from_slice(bytes).map_err(damaged)?;
    if schema != SCHEMA {
        return Err(JobFault::OtherSchema { job, found: schema });
    }
    serde_json::from_slice(bytes).map_err(damaged)
}

fn keep(state: &State, host: &dyn Host) -> Result<(), JobFault> {
    let job = host.job();
    let bytes = serde_json::to_vec(state).map_err(|error| JobFault::Encode { job, error })?;
    host.save(&bytes).map_err(|fault| JobFault::Unsaved { job, fault })
}

#[cfg(test)]
mod tests;
