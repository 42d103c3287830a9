//! The operations under way and the newest finished ones, each with a durable record, so that neither a change-over
//! nor a crash loses one, and nobody runs one twice.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use proto::Version;
use proto::agent::{JobId, Operation, Outcome, Progress};
use proto::codec;
use proto::limits::MESSAGE_BYTES_MAX;
use proto::message::Fault;
use proto::record::SchemaRange;
use serde::{Deserialize, Serialize};

use crate::durable::{self, Durability, FileFault};
use crate::operations::{Demand, Ended, OperationContext, Operations};
use crate::paths::AgentPaths;

const MAGIC: &[u8; 8] = b"MFSJOB\0\x01";
/// Operations at once. Each has a thread; a manager that asks for more than this has lost count.
const RUNNING_MAX: usize = 64;
/// Finished jobs whose outcome is kept, so that a manager that was away gets it when it asks again.
const FINISHED_MAX: usize = 64;
/// Starts of one operation without a checkpoint between them. An operation that takes the agent down with it each time
/// must not do so for ever.
const STARTS_MAX: u32 = 5;

/// What is on disk of a job: `STATE/agents/<product>/jobs/<id>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct JobRecord {
    id: JobId,
    operation: Operation,
    /// From its last checkpoint: schema and bytes.
    resume: Option<(u32, Vec<u8>)>,
    /// Starts since the last checkpoint.
    starts: u32,
    cancelled: bool,
    versions: Vec<Version>,
    outcome: Option<Outcome>,
}

/// One job.
pub(crate) struct Job {
    id: JobId,
    operation: Operation,
    path: PathBuf,
    version: Version,
    schema: u32,
    demand: AtomicU8,
    state: Mutex<JobState>,
    changed: Condvar,
}

struct JobState {
    record: JobRecord,
    progress: Option<Progress>,
    /// Grows with every change that a watcher wants to know.
    news: u64,
    /// A thread is in [`Operations::run`].
    has_thread: bool,
    /// Left by a change-over that is about to exec; watchers are told to ask again afterwards.
    suspended: bool,
}

/// What a watcher of a job is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// How far it is; the number is for the next [`Job::wait`].
    Progress(u64, Progress),
    Ended(Outcome),
    /// It goes on after the change-over.
    Suspended,
    /// Nothing within the time.
    Nothing,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Job({}, {})", self.id.0, self.operation.kind())
    }
}

impl Job {
    pub(crate) fn id(&self) -> JobId {
        self.id
    }

    pub(crate) fn demand(&self) -> Demand {
        match self.demand.load(Ordering::Acquire) {
            0 => Demand::None,
            1 => Demand::Finish,
            2 => Demand::Checkpoint,
            _ => Demand::Cancel,
        }
    }

    /// A cancelled job stays cancelled, whatever a drain asks of it.
    fn set_demand(&self, demand: Demand) {
        let old = self.demand.load(Ordering::Acquire);
        if old != Demand::Cancel as u8 {
            self.demand.store(demand as u8, Ordering::Release);
        }
    }

    pub(crate) fn checkpoint(&self, resume: &[u8]) -> Result<(), FileFault> {
        let mut state = self.lock();
        state.record.resume = Some((self.schema, resume.to_vec()));
        state.record.starts = 0;
        write_record(&self.path, &state.record)
    }

    pub(crate) fn progress(&self, mut progress: Progress) {
        progress.version = self.version.to_string();
        let mut state = self.lock();
        state.progress = Some(progress);
        state.news += 1;
        self.changed.notify_all();
    }

    /// Waits for something that the watcher, who knows news up to `seen`, does not know yet.
    pub(crate) fn wait(&self, seen: u64, at_most: Duration) -> News {
        let state = self.lock();
        let quiet = |s: &mut JobState| s.news == seen && !s.suspended && s.record.outcome.is_none();
        let (state, _) =
            self.changed.wait_timeout_while(state, at_most, quiet).unwrap_or_else(PoisonError::into_inner);
        match (&state.record.outcome, &state.progress) {
            (Some(outcome), _) => News::Ended(outcome.clone()),
            (None, _) if state.suspended => News::Suspended,
            (None, Some(progress)) if state.news != seen => News::Progress(state.news, progress.clone()),
            (None, _) => News::Nothing,
        }
    }

    /// Waits up to `at_most` for the end of the job alone: what keeps the rate of progress bounded.
    pub(crate) fn wait_end(&self, at_most: Duration) {
        let over = |s: &mut JobState| !s.suspended && s.record.outcome.is_none();
        drop(self.changed.wait_timeout_while(self.lock(), at_most, over));
    }

    fn lock(&self) -> MutexGuard<'_, JobState> {
        // A panic of the embedder's code never happens under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All jobs of the agent.
pub(crate) struct Jobs {
    paths: AgentPaths,
    version: Version,
    schemas: SchemaRange,
    operations: Arc<dyn Operations>,
    table: Mutex<Table>,
    idle: Condvar,
}

#[derive(Default)]
struct Table {
    jobs: BTreeMap<JobId, Arc<Job>>,
    draining: bool,
    threads: usize,
}

impl Jobs {
    /// Reads the saved jobs and runs on what was interrupted.
    ///
    /// # Errors
    /// The directory cannot be made or listed. A single damaged record is passed over with a warning, and kept.
    pub(crate) fn open(
        paths: &AgentPaths,
        version: Version,
        schemas: SchemaRange,
        operations: Arc<dyn Operations>,
    ) -> Result<Arc<Self>, FileFault> {
        durable::create_dir(&paths.jobs())?;
        let table = Mutex::new(Table::default());
        let jobs = Self { paths: paths.clone(), version, schemas, operations, table, idle: Condvar::new() };
        let jobs = Arc::new(jobs);
        let mut interrupted = Vec::new();
        for record in read_records(&paths.jobs())? {
            let open = record.outcome.is_none();
            let job = jobs.job(record);
            jobs.lock().jobs.insert(job.id, job.clone());
            if open {
                interrupted.push(job);
            }
        }
        for job in interrupted {
            jobs.start(&job);
        }
        Ok(jobs)
    }

    /// Runs an operation, or joins the job if it is known.
    ///
    /// # Errors
    /// The agent drains, has too much to do, knows the number as another operation, or cannot write the job's record.
    pub(crate) fn run(self: &Arc<Self>, id: JobId, operation: Operation) -> Result<Arc<Job>, Fault> {
        let mut table = self.lock();
        if let Some(job) = table.jobs.get(&id) {
            if job.operation != operation {
                let kind = job.operation.kind();
                return Err(Fault::BadRequest(format!("job {} is known here as another operation ({kind})", id.0)));
            }
            // One that waits for the exec is not joined: its answer could only be that it has been suspended.
            return if job.lock().suspended { Err(Fault::Draining) } else { Ok(job.clone()) };
        }
        if table.draining {
            return Err(Fault::Draining);
        }
        if table.threads >= RUNNING_MAX {
            return Err(Fault::Unavailable(format!("{RUNNING_MAX} operations are under way; that is the most")));
        }
        let record = JobRecord {
            id,
            operation,
            resume: None,
            starts: 0,
            cancelled: false,
            versions: Vec::new(),
            outcome: None,
        };
        let job = self.job(record);
        write_record(&job.path, &job.lock().record).map_err(|e| Fault::Failed(format!("job {}: {e}", id.0)))?;
        table.jobs.insert(id, job.clone());
        drop(table);
        self.start(&job);
        Ok(job)
    }

    /// Asks a job to stop at its next unit boundary; one that has ended stays as it is.
    ///
    /// # Errors
    /// No such job, or its record cannot be written.
    pub(crate) fn cancel(&self, id: JobId) -> Result<(), Fault> {
        let job = self.lock().jobs.get(&id).cloned();
        let job = job.ok_or_else(|| Fault::NotFound(format!("job {} is not known to this agent", id.0)))?;
        let mut state = job.lock();
        if state.record.outcome.is_none() {
            state.record.cancelled = true;
            job.demand.store(Demand::Cancel as u8, Ordering::Release);
            write_record(&job.path, &state.record).map_err(|e| Fault::Failed(format!("job {}: {e}", id.0)))?;
        }
        Ok(())
    }

    /// Jobs without an outcome.
    pub(crate) fn under_way(&self) -> Vec<JobId> {
        let table = self.lock();
        table.jobs.values().filter(|job| job.lock().record.outcome.is_none()).map(|job| job.id).collect()
    }

    /// From now on no new operation is taken; those under way are asked to finish.
    pub(crate) fn begin_drain(&self) {
        let mut table = self.lock();
        table.draining = true;
        for job in table.jobs.values() {
            job.set_demand(Demand::Finish);
        }
    }

    /// Past the deadline: operations are to stop at their next unit boundary.
    pub(crate) fn demand_checkpoint(&self) {
        for job in self.lock().jobs.values() {
            job.set_demand(Demand::Checkpoint);
        }
    }

    /// Waits until no operation has a thread; whether that came about in time.
    pub(crate) fn wait_idle(&self, until: Instant) -> bool {
        let mut table = self.lock();
        while table.threads > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            table = self.idle.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Tells every watcher that its job goes on after the change-over. Returns jobs without an outcome, and how many
    /// of them still have a thread, which the exec abandons.
    pub(crate) fn suspend(&self) -> (Vec<JobId>, usize) {
        let table = self.lock();
        let (mut unfinished, mut abandoned) = (Vec::new(), 0);
        for job in table.jobs.values() {
            let mut state = job.lock();
            if state.record.outcome.is_none() {
                state.suspended = true;
                abandoned += usize::from(state.has_thread);
                unfinished.push(job.id);
                job.changed.notify_all();
            }
        }
        (unfinished, abandoned)
    }

    /// The change-over did not come about: operations are taken again, and those that stopped go on.
    pub(crate) fn end_drain(self: &Arc<Self>) {
        let mut stopped = Vec::new();
        {
            let mut table = self.lock();
            table.draining = false;
            for job in table.jobs.values() {
                job.set_demand(Demand::None);
                let mut state = job.lock();
                state.suspended = false;
                if state.record.outcome.is_none() && !state.has_thread {
                    stopped.push(job.clone());
                }
            }
        }
        for job in stopped {
            self.start(&job);
        }
    }

    fn job(&self, record: JobRecord) -> Arc<Job> {
        let demand = if record.cancelled { Demand::Cancel } else { Demand::None };
        let state = JobState { record, progress: None, news: 0, has_thread: false, suspended: false };
        Arc::new(Job {
            id: state.record.id,
            operation: state.record.operation.clone(),
            path: self.paths.job(state.record.id),
            version: self.version.clone(),
            schema: self.schemas.max,
            demand: AtomicU8::new(demand as u8),
            state: Mutex::new(state),
            changed: Condvar::new(),
        })
    }

    fn start(self: &Arc<Self>, job: &Arc<Job>) {
        let mut state = job.lock();
        if state.has_thread || state.record.outcome.is_some() {
            return;
        }
        state.has_thread = true;
        let resume = state.record.resume.clone();
        let readable = |(schema, _): &(u32, Vec<u8>)| (self.schemas.min..=self.schemas.max).contains(schema);
        let context = OperationContext { job: job.clone(), resume: resume.filter(readable).map(|(_, bytes)| bytes) };
        drop(state);
        self.lock().threads += 1;
        let (jobs, name) = (self.clone(), format!("job {}", job.id.0));
        let run = move || jobs.work(&context);
        if let Err(e) = std::thread::Builder::new().name(name).spawn(run) {
            self.ended(job, Some(Outcome::Failed(format!("cannot start a thread: {e}"))));
        }
    }

    fn work(self: &Arc<Self>, context: &OperationContext) {
        let job = &context.job;
        let outcome = match self.admit(job) {
            Err(refused) => Some(refused),
            Ok(()) => {
                let call = AssertUnwindSafe(|| self.operations.run(&job.operation, context));
                match catch_unwind(call) {
                    Ok(Ended::Outcome(outcome)) => Some(outcome),
                    Ok(Ended::Checkpointed) => None,
                    Err(panic) => Some(Outcome::Failed(format!("the operation panicked: {}", panic_text(&*panic)))),
                }
            }
        };
        self.ended(job, outcome);
    }

    /// Notes the start, and refuses one that came too often.
    fn admit(&self, job: &Job) -> Result<(), Outcome> {
        let mut state = job.lock();
        if state.record.starts >= STARTS_MAX {
            let text = format!(
                "given up: the agent ended {STARTS_MAX} times while this operation ran, without a checkpoint"
            );
            return Err(Outcome::Failed(text));
        }
        state.record.starts += 1;
        if state.record.versions.last() != Some(&self.version) {
            state.record.versions.push(self.version.clone());
        }
        write_record(&job.path, &state.record).map_err(|e| Outcome::Failed(e.to_string()))
    }

    /// A thread has come back; without an outcome the operation waits for its next start.
    fn ended(self: &Arc<Self>, job: &Arc<Job>, outcome: Option<Outcome>) {
        let stopped = outcome.is_none();
        let draining = self.lock().draining;
        let mut state = job.lock();
        state.has_thread = false;
        if let Some(mut outcome) = outcome {
            if let Outcome::Done(summary) | Outcome::Cancelled(summary) = &mut outcome {
                summary.versions = state.record.versions.iter().map(Version::to_string).collect();
            }
            state.record.resume = None;
            state.record.outcome = Some(outcome);
            if let Err(e) = write_record(&job.path, &state.record) {
                // It would run again after a restart; better than an outcome that nobody gets.
                tracing::warn!(job = job.id.0, "the outcome cannot be saved: {e}");
            }
        } else if draining {
            // Stopping in good order is no sign of an operation that takes the agent down.
            state.record.starts = 0;
            drop(write_record(&job.path, &state.record));
        }
        job.changed.notify_all();
        drop(state);
        let mut table = self.lock();
        table.threads -= 1;
        forget_old(&mut table);
        self.idle.notify_all();
        let again = stopped && !table.draining && !job.lock().has_thread;
        drop(table);
        if again {
            // The change-over that it stopped for did not come about; or it stopped unasked, which `starts` bounds.
            self.start(job);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops the oldest finished jobs beyond [`FINISHED_MAX`]. Job numbers grow, so the oldest is the smallest.
fn forget_old(table: &mut Table) {
    let finished: Vec<_> =
        table.jobs.values().filter(|job| job.lock().record.outcome.is_some()).map(|job| job.id).collect();
    for id in finished.iter().take(finished.len().saturating_sub(FINISHED_MAX)) {
        if let Some(job) = table.jobs.remove(id) {
            drop(durable::remove(&job.path, Durability::ProcessDeath));
        }
    }
}

fn write_record(path: &Path, record: &JobRecord) -> Result<(), FileFault> {
    let body = codec::encode(record).map_err(|e| FileFault::io(path, std::io::Error::other(e)))?;
    durable::write(path, &durable::seal(MAGIC, &body), Durability::PowerCut)
}

fn read_records(dir: &Path) -> Result<Vec<JobRecord>, FileFault> {
    let mut records = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| FileFault::io(dir, e))? {
        let path = entry.map_err(|e| FileFault::io(dir, e))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with('.') {
            // Left by a write that was interrupted.
            drop(fs::remove_file(&path));
            continue;
        }
        match read_record(&path) {
            Ok(record) => records.push(record),
            Err(e) => tracing::warn!("a saved job is passed over: {e}"),
        }
    }
    Ok(records)
}

fn read_record(path: &Path) -> Result<JobRecord, FileFault> {
    let bytes = fs::read(path).map_err(|e| FileFault::io(path, e))?;
    let body = durable::unseal(MAGIC, &bytes, path, "job record")?;
    codec::decode::<_, MESSAGE_BYTES_MAX>(body).map_err(|e| FileFault::Damaged {
        path: path.to_owned(),
        what: "job record",
        detail: e.to_string(),
    })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}
