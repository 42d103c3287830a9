//! One operation from the manager's request to its outcome: split into units, watched, stopped at the right place, and
//! continued where an earlier version of this program left off.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent_core::{Demand, Ended, OperationContext};
use proto::agent::{Operation, Outcome, Progress, Summary};
use serde::{Deserialize, Serialize};

use crate::config::Role;
use crate::engine::{BackupEngine, EngineError, Mark, Meter, PROBLEMS_MAX, SharedMeter, Work};

/// How often a running operation reports and asks whether it shall go on. People read it; ten lines a second are not
/// more telling than four.
const BEAT: Duration = Duration::from_millis(250);

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
    /// Passes progress on.
    fn report(&self, progress: Progress);
    /// Asked at every beat and between units.
    fn wanted(&self) -> Wanted;
    /// What [`Host::save`] kept last, perhaps by an earlier version.
    fn saved(&self) -> Option<&[u8]>;
    /// Keeps the state durably.
    fn save(&self, state: &[u8]) -> Result<(), String>;
}

impl Host for OperationContext {
    fn job(&self) -> u64 {
        OperationContext::job(self).0
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

    fn save(&self, state: &[u8]) -> Result<(), String> {
        self.checkpoint(state).map_err(|fault| fault.to_string())
    }
}

/// Where an operation is; survives a change-over and a crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    schema: u32,
    began_unix_ms: u64,
    units_done: u32,
    summary: Sums,
}

/// [`Summary`] in a form that is ours to keep.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Sums {
    snapshots: Vec<String>,
    files: u64,
    bytes: u64,
    repository_bytes: u64,
    problems: Vec<String>,
}

impl Sums {
    fn add(&mut self, work: Work, problems: Vec<String>) {
        self.snapshots.extend(work.snapshots);
        self.files += work.files;
        self.bytes += work.bytes;
        self.repository_bytes += work.repository_bytes;
        self.problems.extend(problems);
        if self.problems.len() > PROBLEMS_MAX {
            self.problems.truncate(PROBLEMS_MAX);
            self.problems.push("and more problems like these".to_owned());
        }
    }
}

impl From<Sums> for Summary {
    fn from(sums: Sums) -> Self {
        let Sums { snapshots, files, bytes, repository_bytes, problems } = sums;
        // The versions are agent-core's to fill in.
        Self { snapshots, files, bytes, repository_bytes, problems, versions: Vec::new() }
    }
}

/// One step of an operation, after which it can be left and continued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit<'a> {
    Backup(&'a Path),
    Restore { snapshot: &'a str, target: &'a Path },
    Verify { snapshot: &'a str },
    Check { read_data: bool },
    Forget { keep_last: u32 },
    Reclaim,
}

/// Refuses what the role does not do; the exhaustive match makes a new operation someone's decision.
pub(crate) fn accept(role: Role, operation: &Operation) -> Result<(), String> {
    let does = match operation {
        Operation::Backup { .. } | Operation::Restore { .. } | Operation::Verify { .. } => Role::Data,
        Operation::Check { .. } | Operation::Prune { .. } => Role::Media,
    };
    if does == role {
        return Ok(());
    }
    Err(format!(
        "a {role} agent does {}; {} is done by a {does} agent",
        match role {
            Role::Data => "backup, restore and verify",
            Role::Media => "check and prune",
        },
        operation.kind(),
    ))
}

fn units(operation: &Operation) -> Result<Vec<Unit<'_>>, String> {
    let units: Vec<_> = match operation {
        Operation::Backup { sources, .. } => sources.iter().map(|source| Unit::Backup(Path::new(source))).collect(),
        Operation::Restore { snapshot, target, .. } => vec![Unit::Restore { snapshot, target: Path::new(target) }],
        Operation::Verify { snapshot, .. } => vec![Unit::Verify { snapshot }],
        Operation::Check { read_data, .. } => vec![Unit::Check { read_data: *read_data }],
        Operation::Prune { keep_last: 0, .. } => {
            return Err("prune keeps at least one snapshot of each source; keep_last is 0".to_owned());
        }
        Operation::Prune { keep_last, .. } => vec![Unit::Forget { keep_last: *keep_last }, Unit::Reclaim],
    };
    if units.is_empty() {
        return Err("a backup needs at least one source".to_owned());
    }
    Ok(units)
}

/// Runs an operation to its end, or until `host` wants it to end.
pub(crate) fn run(engine: &dyn BackupEngine, role: Role, operation: &Operation, host: &dyn Host) -> Ended {
    let failed = |what: String| Ended::Outcome(Outcome::Failed(what));
    let units = match accept(role, operation).and_then(|()| units(operation)) {
        Ok(units) => units,
        Err(what) => return failed(what),
    };
    let resumed = host.saved();
    let continued = resumed.is_some();
    let mut state = match resumed.map(|bytes| read_state(bytes, host.job())).transpose() {
        Ok(state) => state.unwrap_or_else(new_state),
        Err(what) => return failed(what),
    };
    if let Err(what) = keep(&state, host) {
        return failed(what);
    }
    let mark = Mark { tag: format!("job-{}", host.job()), since_unix_ms: state.began_unix_ms, look: continued };
    let total = u32::try_from(units.len()).unwrap_or(u32::MAX);
    for unit in units.iter().skip(usize::try_from(state.units_done).unwrap_or(usize::MAX)) {
        match host.wanted() {
            Wanted::GoOn => {}
            Wanted::Checkpoint => return Ended::Checkpointed,
            Wanted::Cancel => return Ended::Outcome(Outcome::Cancelled(state.summary.into())),
        }
        let meter = SharedMeter::default();
        let place = Place { unit: *unit, units_done: state.units_done, units: total };
        let (work, asked) = watched(&meter, host, &place, || one(engine, operation, *unit, &mark, &meter));
        match work {
            Ok(work) => state.summary.add(work, meter.take_problems()),
            Err(EngineError::Stopped) if asked == Wanted::Checkpoint => return Ended::Checkpointed,
            Err(EngineError::Stopped) => return Ended::Outcome(Outcome::Cancelled(state.summary.into())),
            Err(error) => return failed(with_done(&error, &state.summary)),
        }
        state.units_done += 1;
        if let Err(what) = keep(&state, host) {
            return failed(what);
        }
    }
    Ended::Outcome(Outcome::Done(state.summary.into()))
}

fn one(
    engine: &dyn BackupEngine,
    operation: &Operation,
    unit: Unit<'_>,
    mark: &Mark,
    meter: &SharedMeter,
) -> Result<Work, EngineError> {
    let at = operation.repository();
    match unit {
        Unit::Backup(source) => engine.backup(at, source, mark, meter),
        Unit::Restore { snapshot, target } => engine.restore(at, snapshot, target, meter),
        Unit::Verify { snapshot } => engine.verify(at, snapshot, meter),
        Unit::Check { read_data } => engine.check(at, read_data, meter),
        Unit::Forget { keep_last } => engine.forget(at, keep_last, meter),
        Unit::Reclaim => engine.reclaim(at, meter),
    }
}

/// Which unit of how many is being done.
struct Place<'a> {
    unit: Unit<'a>,
    units_done: u32,
    units: u32,
}

/// Does one unit while a second thread reports its progress and carries the wish to end to the engine. Returns what
/// was wished.
fn watched(
    meter: &Arc<Meter>,
    host: &dyn Host,
    place: &Place<'_>,
    work: impl FnOnce() -> Result<Work, EngineError>,
) -> (Result<Work, EngineError>, Wanted) {
    let (ended, end) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let watcher = scope.spawn(move || {
            let mut asked = Wanted::GoOn;
            let mut last = None;
            loop {
                let (bytes_done, bytes, activity) = meter.read();
                let what = describe(place.unit, &activity);
                let progress = Progress {
                    units_done: place.units_done,
                    units: place.units,
                    bytes_done,
                    bytes,
                    activity: what,
                    version: String::new(),
                };
                if last.as_ref() != Some(&progress) {
                    host.report(progress.clone());
                    last = Some(progress);
                }
                if asked == Wanted::GoOn {
                    asked = host.wanted();
                    if asked != Wanted::GoOn {
                        meter.stop();
                    }
                }
                if end.recv_timeout(BEAT) != Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    return asked;
                }
            }
        });
        let result = work();
        drop(ended);
        let asked = watcher.join().unwrap_or(Wanted::Checkpoint);
        (result, asked)
    })
}

fn describe(unit: Unit<'_>, activity: &str) -> String {
    let what = match unit {
        Unit::Backup(source) => format!("backing up {}", source.display()),
        Unit::Restore { snapshot, target } => format!("restoring {snapshot} to {}", target.display()),
        Unit::Verify { snapshot } => format!("verifying {snapshot}"),
        Unit::Check { read_data: true } => "checking every byte".to_owned(),
        Unit::Check { read_data: false } => "checking".to_owned(),
        Unit::Forget { .. } => "forgetting old snapshots".to_owned(),
        Unit::Reclaim => "freeing unused space".to_owned(),
    };
    if activity.is_empty() { what } else { format!("{what} ({activity})") }
}

fn with_done(error: &EngineError, done: &Sums) -> String {
    match done.snapshots.as_slice() {
        [] => error.to_string(),
        snapshots => format!("{error} (done before: snapshot {})", snapshots.join(", ")),
    }
}

fn new_state() -> State {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let began_unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    State { schema: SCHEMA, began_unix_ms, units_done: 0, summary: Sums::default() }
}

fn read_state(bytes: &[u8], job: u64) -> Result<State, String> {
    #[derive(Deserialize)]
    struct Schema {
        schema: u32,
    }
    let damaged = |error: serde_json::Error| format!("the saved state of job {job} is damaged: {error}");
    let Schema { schema } = serde_json::from_slice(bytes).map_err(damaged)?;
    if schema != SCHEMA {
        return Err(format!(
            "the saved state of job {job} has form {schema}, this version reads form {SCHEMA}; run the job again"
        ));
    }
    serde_json::from_slice(bytes).map_err(damaged)
}

fn keep(state: &State, host: &dyn Host) -> Result<(), String> {
    let bytes = serde_json::to_vec(state).map_err(|error| format!("the state of job {}: {error}", host.job()))?;
    host.save(&bytes).map_err(|error| format!("the state of job {} cannot be saved: {error}", host.job()))
}

#[cfg(test)]
mod tests;
