//! Which jobs there are, and which of them have a thread. No I/O, no clock, no thread: every method is one step that
//! [`super::Jobs`] takes under its lock, so a test can take the same steps in every order (`schedules.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::agent::{JobId, Operation};
use proto::message::Fault;

use super::job::{DrainStage, Job};
use super::{FINISHED_MAX, RUNNING_MAX};
use crate::operations::Demand;

/// All jobs of the agent.
#[derive(Default)]
pub(super) struct Table {
    places: BTreeMap<JobId, Place>,
    drain: DrainStage,
}

struct Place {
    job: Arc<Job>,
    at: At,
}

/// A job is counted by being here: there is no number beside the table that could differ from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// It has a thread, or is about to get one.
    Working,
    /// It waits for its next start.
    Stopped,
    /// It was found on disk, and waits for the manager to ask for it again.
    Unasked,
    /// It has its outcome.
    Ended,
}

/// What becomes of a request to run.
pub(super) enum Admitted {
    /// The job is new: its record is to be written, and then its thread started, or else [`Table::withdraw`].
    New(Arc<Job>),
    /// It is known.
    Joined(Arc<Job>),
    /// It was found on disk, and is open for the manager, too: its thread is to be started.
    Confirmed(Arc<Job>),
}

/// What [`Table::came_back`] makes of a thread's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CameBack {
    Done,
    /// It stopped, but nobody waits for that any more: it is to be started again, and is counted as working.
    Again,
}

impl Table {
    /// Handed to every job: what a drain asks of it.
    pub(super) fn drain(&self) -> DrainStage {
        self.drain.clone()
    }

    /// Adds a job that was saved, without a thread. `goes_on`: somebody who lives knows that it was under way; without
    /// that, the disk alone says so, and that may be an old copy of it.
    pub(super) fn add_saved(&mut self, job: Arc<Job>, goes_on: bool) {
        let at = match (job.has_outcome(), goes_on) {
            (true, _) => At::Ended,
            (false, true) => At::Stopped,
            (false, false) => At::Unasked,
        };
        self.places.insert(job.id(), Place { job, at });
    }

    pub(super) fn admit(
        &mut self,
        id: JobId,
        operation: &Operation,
        make: impl FnOnce(DrainStage) -> Job,
    ) -> Result<Admitted, Fault> {
        let (draining, full) = (self.is_draining(), self.working() >= RUNNING_MAX);
        let full =
            full.then(|| Fault::Unavailable(format!("{RUNNING_MAX} operations are under way; that is the most")));
        if let Some(Place { job, at }) = self.places.get_mut(&id) {
            if job.operation() != operation {
                let kind = job.operation().kind();
                return Err(Fault::BadRequest(format!("job {} is known here as another operation ({kind})", id.0)));
            }
            if *at == At::Unasked {
                return match full {
                    _ if draining => Err(Fault::Draining),
                    Some(fault) => Err(fault),
                    None => {
                        *at = At::Working;
                        Ok(Admitted::Confirmed(job.clone()))
                    }
                };
            }
            // One that waits for the exec is not joined: its answer could only be that it has been suspended.
            return if job.is_suspended() { Err(Fault::Draining) } else { Ok(Admitted::Joined(job.clone())) };
        }
        if draining {
            return Err(Fault::Draining);
        }
        full.map_or(Ok(()), Err)?;
        let job = Arc::new(make(self.drain()));
        self.places.insert(id, Place { job: job.clone(), at: At::Working });
        Ok(Admitted::New(job))
    }

    /// A new job whose record could not be written.
    pub(super) fn withdraw(&mut self, id: JobId, why: &str) {
        if let Some(place) = self.places.remove(&id) {
            place.job.withdraw(why.to_owned());
        }
    }

    pub(super) fn get(&self, id: JobId) -> Option<Arc<Job>> {
        self.places.get(&id).map(|place| place.job.clone())
    }

    /// A job's thread is over. With an outcome it has been told to watchers by now.
    pub(super) fn came_back(&mut self, id: JobId) -> CameBack {
        let draining = self.is_draining();
        let Some(place) = self.places.get_mut(&id) else { return CameBack::Done };
        place.at = match (place.job.has_outcome(), draining) {
            (true, _) => At::Ended,
            (false, true) => At::Stopped,
            // The change-over that it stopped for did not come about; or it stopped unasked.
            (false, false) => return CameBack::Again,
        };
        CameBack::Done
    }

    /// Jobs without a thread and without an outcome; each is counted as working from here on.
    pub(super) fn take_stopped(&mut self) -> Vec<Arc<Job>> {
        let stopped = self.places.values_mut().filter(|place| place.at == At::Stopped);
        stopped
            .map(|place| {
                place.at = At::Working;
                place.job.clone()
            })
            .collect()
    }

    /// Jobs that nobody has asked for since they were found on disk; `only`: this one, if it is one of them. Each is
    /// counted as working from here on, and is to get an outcome.
    pub(super) fn take_unasked(&mut self, only: Option<JobId>) -> Vec<Arc<Job>> {
        let meant = |id: &JobId| only.is_none_or(|only| only == *id);
        let unasked = self.places.iter_mut().filter(|(id, place)| meant(id) && place.at == At::Unasked);
        unasked
            .map(|(_, place)| {
                place.at = At::Working;
                place.job.clone()
            })
            .collect()
    }

    /// Whether any job waits to be asked for.
    pub(super) fn has_unasked(&self) -> bool {
        self.places.values().any(|place| place.at == At::Unasked)
    }

    pub(super) fn begin_drain(&mut self) {
        self.drain.set(Demand::Finish);
    }

    pub(super) fn demand_checkpoint(&mut self) {
        self.drain.set(Demand::Checkpoint);
    }

    /// Operations are taken again. Returns those that are to be started.
    pub(super) fn end_drain(&mut self) -> Vec<Arc<Job>> {
        self.drain.set(Demand::None);
        for place in self.places.values() {
            place.job.suspend(false);
        }
        self.take_stopped()
    }

    /// Tells every watcher that its job goes on after the change-over. Returns jobs without an outcome, and how many
    /// of them still have a thread.
    pub(super) fn suspend(&mut self) -> (Vec<JobId>, usize) {
        let (mut unfinished, mut abandoned) = (Vec::new(), 0);
        for (id, place) in &self.places {
            // What nobody has asked for here is not handed over either: it waits on under the next version.
            if !place.job.has_outcome() && place.at != At::Unasked {
                place.job.suspend(true);
                abandoned += usize::from(place.at == At::Working);
                unfinished.push(*id);
            }
        }
        (unfinished, abandoned)
    }

    pub(super) fn is_draining(&self) -> bool {
        self.drain.get() != Demand::None
    }

    /// No job has a thread or is about to get one.
    pub(super) fn is_idle(&self) -> bool {
        self.working() == 0
    }

    pub(super) fn under_way(&self) -> Vec<JobId> {
        let under_way = |place: &Place| !place.job.has_outcome() && place.at != At::Unasked;
        self.places.iter().filter(|(_, place)| under_way(place)).map(|(id, _)| *id).collect()
    }

    /// The oldest finished jobs beyond [`FINISHED_MAX`]. Job numbers grow, so the oldest is the smallest.
    pub(super) fn too_old(&self) -> Vec<JobId> {
        let finished: Vec<_> = self.places.iter().filter(|(_, place)| place.job.has_outcome()).collect();
        let beyond = finished.len().saturating_sub(FINISHED_MAX);
        finished.into_iter().take(beyond).map(|(id, _)| *id).collect()
    }

    pub(super) fn forget(&mut self, id: JobId) {
        self.places.remove(&id);
    }

    fn working(&self) -> usize {
        self.places.values().filter(|place| place.at == At::Working).count()
    }
}
