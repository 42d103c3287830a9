//! One operation from the manager's request to its outcome: split into units, watched, stopped at the right place, and
//! continued where an earlier version of this program left off.

mod fault;
mod unit;

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use agent_core::{Demand, Ended, FileFault, OperationContext, Permits, PermitsFault};
use proto::agent::{JobOrigin, Operation, Outcome, Progress, Repository, Summary};
use proto::backup::BackupCounts;
use proto::limits::{OWN_RESULTS_MAX, RAN_MAX};
use proto::look::Found;
use proto::means::{Pace, Ran};
use proto::own::{Finding, OwnSummary};
use serde::{Deserialize, Serialize};

use crate::config::Role;
use crate::engine::{self, BackupEngine, EngineError, Mark, Problems, SharedMeter, Work};
use fault::JobFault;
use unit::{Unit, accept, describe, one, permit, units};

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
    #[serde(default)]
    counts: BackupCounts,
    #[serde(default)]
    ran: Vec<Ran>,
    #[serde(default)]
    found: Vec<Found>,
    #[serde(default)]
    left_out: u64,
    #[serde(default)]
    certificate: Option<String>,
    /// Name and text.
    #[serde(default)]
    said: Vec<(String, String)>,
}

impl Sums {
    fn add(&mut self, work: Work, problems: Problems) {
        self.snapshots.extend(work.snapshots);
        self.files += work.files;
        self.bytes += work.bytes;
        self.repository_bytes += work.repository_bytes;
        self.counts.add(work.counts);
        let room = RAN_MAX.saturating_sub(self.ran.len());
        self.ran.extend(work.ran.into_iter().take(room));
        self.found.extend(work.found);
        self.left_out += work.left_out;
        self.certificate = work.certificate.or(self.certificate.take());
        self.said.extend(work.said);
        let mut sum = Problems { lines: std::mem::take(&mut self.problems), left_out: self.problems_left_out };
        sum.add(problems);
        (self.problems, self.problems_left_out) = (sum.lines, sum.left_out);
    }
}

impl From<Sums> for Summary {
    fn from(sums: Sums) -> Self {
        let Sums { snapshots, files, bytes, repository_bytes, problems, problems_left_out, .. } = sums;
        let problems = Problems { lines: problems, left_out: problems_left_out }.into_lines();
        // The versions are agent-core's to fill in.
        Self { snapshots, files, bytes, repository_bytes, problems, versions: Vec::new() }
    }
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
    permit(&permits, operation)?;
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
    let (permits, pace) = (Arc::new(permits), pace_of(operation));
    let mark = Mark { job: host.job(), origin, since_unix_ms: state.began_unix_ms, look, permits, pace };
    let total = u32::try_from(units.len()).unwrap_or(u32::MAX);
    for unit in units.into_iter().skip(usize::try_from(state.units_done).unwrap_or(usize::MAX)) {
        match host.wanted() {
            Wanted::GoOn => {}
            Wanted::Checkpoint => return Ok(Ended::Checkpointed),
            Wanted::Cancel => return Ok(Ended::Outcome(Outcome::Cancelled(state.summary.into()))),
        }
        let meter = SharedMeter::default();
        let place = Place { unit: &unit, units_done: state.units_done, units: total };
        let work = start(engine, &repository, &unit, &mark, &meter);
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
    Ok(Ended::Outcome(outcome(operation, state.summary)))
}

fn pace_of(operation: &Operation) -> Pace {
    match operation {
        Operation::BackupBy { pace, .. } | Operation::RestorePaced { pace, .. } => *pace,
        _ => Pace::default(),
    }
}

fn outcome(operation: &Operation, mut sums: Sums) -> Outcome {
    let (counts, found, left_out) = (sums.counts, std::mem::take(&mut sums.found), sums.left_out);
    let ran = std::mem::take(&mut sums.ran);
    match operation {
        Operation::RestorePaced { options, .. } if !options.dry_run => Outcome::Done(sums.into()),
        Operation::RestoreSome { options, .. } | Operation::RestoreOver { options, .. } if !options.dry_run => {
            Outcome::Done(sums.into())
        }
        Operation::Look { .. }
        | Operation::Forget { .. }
        | Operation::RestoreSome { .. }
        | Operation::RestoreOver { .. }
        | Operation::RestorePaced { .. } => Outcome::Found { summary: sums.into(), found, left_out },
        Operation::BackupBy { .. } => Outcome::BackedUpBy { summary: sums.into(), counts, ran },
        Operation::BackupWith { .. } => Outcome::BackedUp { summary: sums.into(), counts },
        Operation::Serve { .. } | Operation::Keeping { .. } => Outcome::OwnDone(said(sums)),
        _ => Outcome::Done(sums.into()),
    }
}

/// What came of serving a repository: its own id, and the certificate for programs that are no agents; and what was asked
/// beside its data.
fn said(mut sums: Sums) -> OwnSummary {
    let named = |name: &str, text: Option<String>| Some((name.to_owned(), text?));
    let id = named("repository", sums.snapshots.first().cloned());
    let certificate = named("certificate", sums.certificate.take());
    let all = id.into_iter().chain(certificate).chain(std::mem::take(&mut sums.said));
    let finding = |(name, text): (String, String)| Some(Finding { name: name.parse().ok()?, text });
    let results = all.filter_map(finding).take(OWN_RESULTS_MAX).collect();
    let Summary { problems, versions, .. } = sums.into();
    OwnSummary { results, problems, versions }
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
        return Err(JobFault::OtherSchema { job, found: schema, known: SCHEMA });
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
