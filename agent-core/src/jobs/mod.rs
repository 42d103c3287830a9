//! The operations under way and the newest finished ones, each with a durable record, so that neither a change-over
//! nor a crash loses one, and nobody runs one twice.
//!
//! What is found on disk at a start is not believed by itself: STATE may be a copy of last month's, and the manager may
//! have ended long ago what goes by it. It goes on where somebody who lives vouches for it (the version before, which
//! handed it over, or a mark in RUN, which the stub sweeps at its own start); otherwise it waits for the manager to ask
//! for it again, as that does of every job that it holds to be open.
//!
//! `table.rs` decides (pure, one step at a time), `job.rs` is one job as its thread and its watchers see it,
//! `record.rs` is what is on disk; here are the threads. No lock that a status needs is held over a sync.

mod job;
mod marks;
mod record;
#[cfg(test)]
mod schedules;
mod table;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use proto::Version;
use proto::agent::{JobId, JobOrigin, Operation, Outcome, Summary};
use proto::message::Fault;
use proto::record::SchemaRange;

use crate::durable::{self, Durability};
use crate::kinds::Kinds;
use crate::moments::Moment;
use crate::operations::{Ended, OperationContext, Operations};
use crate::paths::AgentPaths;
use crate::permits::Permits;
pub(crate) use job::{Job, News};
pub(crate) use marks::sweep as sweep_marks;
pub(crate) use record::JobRecord;
use table::{Admitted, CameBack, Table};

/// Operations at once. Each has a thread; a manager that asks for more than this has lost count.
const RUNNING_MAX: usize = 64;
/// Finished jobs whose outcome is kept, so that a manager that was away gets it when it asks again.
const FINISHED_MAX: usize = 64;
/// Starts of one operation without a checkpoint between them. An operation that takes the agent down with it each time
/// must not do so for ever.
const STARTS_MAX: u32 = 5;

/// How long a job that was found on disk waits for the manager to ask for it: longer than a manager is away.
pub(crate) const UNASKED_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What the next program has to know of the jobs that it finds on disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vouched<'a> {
    /// Those that the version before has handed over.
    pub(crate) handed_over: &'a [JobId],
    /// How long others wait to be asked for.
    pub(crate) at_most: Duration,
}

/// All jobs of the agent.
pub(crate) struct Jobs {
    paths: AgentPaths,
    version: Version,
    schemas: SchemaRange,
    operations: Arc<dyn Operations>,
    kinds: Kinds,
    table: Mutex<Table>,
    idle: Condvar,
}

impl Jobs {
    /// Reads the saved jobs and runs on what was interrupted, if somebody vouches for it; the rest waits to be asked for.
    /// A single damaged record is passed over with a warning, and kept; so is a directory that cannot be made or listed,
    /// since an agent without its earlier jobs is better than none.
    pub(crate) fn open(
        paths: &AgentPaths,
        version: Version,
        schemas: SchemaRange,
        operations: Arc<dyn Operations>,
        kinds: Kinds,
        vouched: Vouched<'_>,
    ) -> Arc<Self> {
        if let Err(e) = durable::create_dir(&paths.jobs()) {
            tracing::warn!("no job can be kept: {e}");
        }
        let table = Mutex::new(Table::default());
        let jobs = Self { paths: paths.clone(), version, schemas, operations, kinds, table, idle: Condvar::new() };
        let jobs = Arc::new(jobs);
        let interrupted = {
            let mut table = jobs.lock();
            let saved = record::read_all(&paths.jobs()).unwrap_or_else(|e| {
                tracing::warn!("saved jobs cannot be read: {e}");
                Vec::new()
            });
            for record in saved {
                let goes_on = vouched.handed_over.contains(&record.id) || marks::has(paths, record.id);
                let job = jobs.job(record, table.drain());
                table.add_saved(Arc::new(job), goes_on);
            }
            table.take_stopped()
        };
        for job in interrupted {
            marks::set(paths, job.id());
            jobs.start(&job);
        }
        if jobs.lock().has_unasked() {
            jobs.give_up_in_the_end(vouched.at_most);
        }
        jobs
    }

    /// What nobody has asked for by then is ended, with the reason. One sleep in all; nothing wakes before.
    fn give_up_in_the_end(self: &Arc<Self>, at_most: Duration) {
        let jobs = Arc::downgrade(self);
        let give_up = move || {
            std::thread::sleep(at_most);
            let Some(jobs) = jobs.upgrade() else { return };
            let unasked = jobs.lock().take_unasked(None);
            for job in unasked {
                let text = format!(
                    "the manager has not asked for it again within {} h of the agent's start: it ended there, or this \
                     host's STATE is an old copy",
                    at_most.as_secs() / 3600
                );
                tracing::warn!(job = job.id().0, "given up: {text}");
                jobs.ended(&job, Some(Outcome::Failed(format!("given up: {text}"))));
            }
        };
        if let Err(e) = std::thread::Builder::new().name("unasked jobs".to_owned()).spawn(give_up) {
            // They wait until the next start then, which does no harm.
            tracing::warn!("jobs that nobody asks for are not given up: {e}");
        }
    }

    /// Runs an operation, or joins the job if it is known.
    ///
    /// # Errors
    /// The agent drains, has too much to do, knows the number as another operation, or cannot write the job's record.
    pub(crate) fn run(
        self: &Arc<Self>,
        id: JobId,
        origin: JobOrigin,
        operation: Operation,
    ) -> Result<Arc<Job>, Fault> {
        let make = |drain| self.job(JobRecord::new(id, operation.clone()), drain).ordered_by(origin.clone());
        let admitted = self.lock().admit(id, &operation, make)?;
        let job = match admitted {
            Admitted::Joined(job) => return Ok(job),
            Admitted::Confirmed(job) => {
                marks::set(&self.paths, id);
                self.start(&job);
                return Ok(job);
            }
            Admitted::New(job) => job,
        };
        marks::set(&self.paths, id);
        // The table is free meanwhile, and the job is in it: whoever drains waits for it, and nobody else for the disk.
        let written = job.paper().write(Moment::JobStart);
        if let Err(e) = written {
            let why = format!("job {}: {e}", id.0);
            marks::drop(&self.paths, id);
            self.lock().withdraw(id, &why);
            self.idle.notify_all();
            return Err(Fault::Failed(why));
        }
        self.start(&job);
        Ok(job)
    }

    /// Asks a job to stop at its next unit boundary; one that has ended stays as it is.
    ///
    /// # Errors
    /// No such job, or its record cannot be written.
    pub(crate) fn cancel(self: &Arc<Self>, id: JobId) -> Result<(), Fault> {
        let job = self.lock().get(id);
        let job = job.ok_or_else(|| Fault::NotFound(format!("job {} is not known to this agent", id.0)))?;
        job.cancel().map_err(|e| Fault::Failed(format!("job {}: {e}", id.0)))?;
        // One that waits to be asked for has nothing to stop.
        let unasked = self.lock().take_unasked(Some(id));
        unasked.iter().for_each(|job| self.ended(job, Some(Outcome::Cancelled(Summary::default()))));
        Ok(())
    }

    /// Jobs without an outcome. Never waits for a disk.
    pub(crate) fn under_way(&self) -> Vec<JobId> {
        self.lock().under_way()
    }

    /// From now on no new operation is taken; those under way are asked to finish.
    pub(crate) fn begin_drain(&self) {
        self.lock().begin_drain();
    }

    /// Past the deadline: operations are to stop at their next unit boundary.
    pub(crate) fn demand_checkpoint(&self) {
        self.lock().demand_checkpoint();
    }

    /// Waits until no operation has a thread; whether that came about in time.
    pub(crate) fn wait_idle(&self, until: Instant) -> bool {
        let mut table = self.lock();
        while !table.is_idle() {
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
        self.lock().suspend()
    }

    /// The change-over did not come about: operations are taken again, and those that stopped go on.
    pub(crate) fn end_drain(self: &Arc<Self>) {
        let stopped = self.lock().end_drain();
        for job in stopped {
            self.start(&job);
        }
    }

    fn job(&self, record: JobRecord, drain: job::DrainStage) -> Job {
        let path = self.paths.job(record.id);
        Job::new(record, path, self.version.clone(), self.schemas.max, drain)
    }

    /// Starts the thread of a job that the table counts as working.
    fn start(self: &Arc<Self>, job: &Arc<Job>) {
        let (jobs, job_of_thread) = (self.clone(), job.clone());
        let thread = std::thread::Builder::new().name(format!("job {}", job.id().0));
        if let Err(e) = thread.spawn(move || jobs.work(job_of_thread)) {
            self.ended(job, Some(Outcome::Failed(format!("cannot start a thread: {e}"))));
        }
    }

    fn work(self: &Arc<Self>, job: Arc<Job>) {
        let outcome = match self.admit(&job) {
            Err(refused) => Some(*refused),
            Ok(resume) => {
                let context = OperationContext { job: job.clone(), resume };
                let call = AssertUnwindSafe(|| self.perform(job.operation(), &context));
                match catch_unwind(call) {
                    Ok(Ended::Outcome(outcome)) => Some(outcome),
                    Ok(Ended::Checkpointed) => None,
                    Err(panic) => Some(Outcome::Failed(format!("the operation panicked: {}", panic_text(&*panic)))),
                }
            }
        };
        self.ended(&job, outcome);
    }

    fn perform(&self, operation: &Operation, context: &OperationContext) -> Ended {
        let Operation::Own { kind, arguments } = operation else { return self.operations.run(operation, context) };
        // Also one that goes on: what was forbidden meanwhile ends here.
        let permitted = Permits::read(self.paths.state(), self.paths.run()).map_err(|fault| fault.to_string());
        let permitted = permitted.and_then(|permits| permits.own(kind).map_err(|fault| fault.to_string()));
        match permitted {
            Ok(()) => self.kinds.run(kind, arguments, context),
            Err(why) => Ended::Outcome(Outcome::Failed(why)),
        }
    }

    /// Notes the start, and refuses one that came too often. Returns what it goes on from.
    fn admit(&self, job: &Job) -> Result<Option<Vec<u8>>, Box<Outcome>> {
        let mut paper = job.paper();
        if paper.record.starts >= STARTS_MAX {
            let text = format!(
                "given up: the agent ended {STARTS_MAX} times while this operation ran, without a checkpoint"
            );
            return Err(Box::new(Outcome::Failed(text)));
        }
        paper.record.starts += 1;
        if paper.record.versions.last() != Some(job.version()) {
            let version = job.version().clone();
            paper.record.versions.push(version);
        }
        paper.write(Moment::JobStart).map_err(|e| Box::new(Outcome::Failed(e.to_string())))?;
        let readable = |(schema, _): &(u32, Vec<u8>)| (self.schemas.min..=self.schemas.max).contains(schema);
        Ok(paper.record.resume.clone().filter(readable).map(|(_, bytes)| bytes))
    }

    /// A thread has come back; without an outcome the operation waits for its next start.
    fn ended(self: &Arc<Self>, job: &Arc<Job>, outcome: Option<Outcome>) {
        match outcome {
            Some(outcome) => self.keep_outcome(job, outcome),
            None if self.lock().is_draining() => {
                // Stopping in good order is no sign of an operation that takes the agent down.
                let mut paper = job.paper();
                paper.record.starts = 0;
                drop(paper.write(Moment::JobCheckpoint));
            }
            // It stopped unasked, which `starts` bounds.
            None => {}
        }
        // Before the job counts as over: whoever then asks for a forgotten one runs it anew, with a record of its own.
        let old = self.lock().too_old();
        for id in &old {
            drop(durable::remove(&self.paths.job(*id), Durability::ProcessDeath));
        }
        let again = {
            let mut table = self.lock();
            old.into_iter().for_each(|id| table.forget(id));
            table.came_back(job.id()) == CameBack::Again
        };
        if again {
            self.start(job);
        } else {
            self.idle.notify_all();
        }
    }

    fn keep_outcome(&self, job: &Job, mut outcome: Outcome) {
        {
            let mut paper = job.paper();
            outcome.set_versions(paper.record.versions.iter().map(Version::to_string).collect());
            paper.record.resume = None;
            // The cancel may still wait for this record.
            paper.record.cancelled |= job.is_cancelled();
            paper.record.outcome = Some(outcome.clone());
            if let Err(e) = paper.write(Moment::JobEnd) {
                // It would run again after a restart; better than an outcome that nobody gets.
                tracing::warn!(job = job.id().0, "the outcome cannot be saved: {e}");
            }
        }
        marks::drop(&self.paths, job.id());
        job.tell_outcome(outcome);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}
