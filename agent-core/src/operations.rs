//! What the program that embeds this library brings: its operations, its state, its health.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Instant;

use proto::agent::{JobId, JobOrigin, Operation, Outcome, Progress};
use proto::record::SchemaRange;

use crate::durable::FileFault;

/// The embedding program, as the library calls it. All calls come from the library's threads, several at a time.
pub trait Operations: Send + Sync + 'static {
    /// Performs one operation to its end, on a thread of its own.
    ///
    /// Look at [`OperationContext::demand`] at every unit boundary, and after every unit that need not be done again
    /// call [`OperationContext::checkpoint`]. An operation that was interrupted (change-over, crash, power cut) is
    /// called again under the same job with what it last gave there. A program that has only work of its own knows no
    /// operations, which is what this says unless it is written; those of its own kinds are [`crate::Kinds`].
    fn run(&self, operation: &Operation, _context: &OperationContext) -> Ended {
        Ended::Outcome(Outcome::Failed(format!("this agent performs no {}", operation.kind())))
    }

    /// A change-over is next, and no operation is running any more: begin nothing more of your own, finish what is
    /// under way, and come back. Called at every drain, whether there were operations or not, and before the program
    /// ends; what has a [`crate::Gate`] is closed by the library. Whoever is not back 2 s past the deadline is left
    /// behind, and what it had under way is cut by the `execve`.
    fn quiesce(&self, _until: Instant) {}

    /// The change-over did not come about: go on. Called after every [`Operations::quiesce`] that no `execve` followed.
    fn resume(&self) {}

    /// The schemas in which [`Operations::save_state`] can write; `own` is what the running version's record says.
    /// A version that reads none of them is refused before anything is drained. By default only the newest own one.
    fn writes_schemas(&self, own: SchemaRange) -> RangeInclusive<u32> {
        own.max..=own.max
    }

    /// State for the next version, in this schema. Called once, when no operation is running any more (or, past the
    /// deadline, beside those that are being abandoned). A call that is not back after 5 s ends the change-over, and
    /// this version goes on. What is large is better written by [`Operations::save_state_to`].
    fn save_state(&self, _schema: u32) -> Vec<u8> {
        Vec::new()
    }

    /// As [`Operations::save_state`], into a memory file, for a state of any size: it crosses `execve` where it lies.
    /// By default it is what `save_state` gives. The file is sealed afterwards, so nothing may have it mapped for
    /// writing when this returns.
    ///
    /// # Errors
    /// Whatever kept the state from being written; the change-over ends, and this version goes on.
    fn save_state_to(&self, schema: u32, file: &mut File) -> io::Result<()> {
        file.write_all(&self.save_state(schema))
    }

    /// Takes over what the previous version saved, before anything is served. A version that is back because the next
    /// one failed, or because somebody went back to it from one whose schemas it does not read, gets what it had saved
    /// itself when it left. After any other start without a change-over (a crash, a boot) there is nothing to take
    /// over, and this is not called.
    ///
    /// # Errors
    /// The state cannot be used. The version fails its probation then, and the previous one returns.
    fn restore_state(&self, _schema: u32, _state: &[u8]) -> Result<(), StateRefused> {
        Ok(())
    }

    /// As [`Operations::restore_state`], out of a sealed memory file of any size, which may be mapped; it stands at its
    /// beginning. By default it is read, and given to `restore_state`.
    ///
    /// # Errors
    /// As of `restore_state`.
    fn restore_state_from(&self, schema: u32, mut file: &File) -> Result<(), StateRefused> {
        let mut state = Vec::new();
        file.read_to_end(&mut state).map_err(|e| StateRefused(format!("the state cannot be read: {e}")))?;
        self.restore_state(schema, &state)
    }

    /// This version has proved itself and is believed; called once, after every start, on a thread of its own. What the
    /// version before would need to return may be let go from here on.
    fn confirmed(&self) {}

    /// Whether the program is fit to work: called while it serves, again and again during its probation until it
    /// says yes once. Check what operations need (a repository that answers, a configuration that parses).
    ///
    /// # Errors
    /// Why it is not, for people.
    fn healthy(&self) -> Result<(), NotHealthy> {
        Ok(())
    }
}

/// Why a program is not fit to work, as [`Operations::healthy`] says it; any text becomes one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotHealthy(pub String);

/// Why what the version before saved cannot be used, as [`Operations::restore_state`] says it; any text becomes one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StateRefused(pub String);

impl<T: Into<String>> From<T> for NotHealthy {
    fn from(why: T) -> Self {
        Self(why.into())
    }
}

impl<T: Into<String>> From<T> for StateRefused {
    fn from(why: T) -> Self {
        Self(why.into())
    }
}

/// How a call of [`Operations::run`] came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The operation is over. The library adds the versions that took part to its summary.
    Outcome(Outcome),
    /// It stopped because of [`Demand::Checkpoint`], and goes on from its last [`OperationContext::checkpoint`].
    Checkpointed,
}

/// What is asked of a running operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Demand {
    /// Nothing: work.
    None,
    /// A change-over waits: finish soon if possible. Work may go on until the deadline.
    Finish,
    /// The deadline is past: stop at the next unit boundary with [`Ended::Checkpointed`]. What is not back shortly
    /// after is abandoned by the `execve` and runs again from its last checkpoint.
    Checkpoint,
    /// Nobody wants the operation any more: stop at the next unit boundary with [`Outcome::Cancelled`].
    Cancel,
}

/// The job of a running operation. The jobs know the operations, and are known here by this alone.
pub(crate) trait Underlying: std::fmt::Debug + Send + Sync {
    fn id(&self) -> JobId;
    fn origin(&self) -> Option<&JobOrigin>;
    fn demand(&self) -> Demand;
    fn checkpoint(&self, state: &[u8]) -> Result<(), FileFault>;
    fn progress(&self, progress: Progress);
}

/// What a running operation may use of the library.
#[derive(Debug, Clone)]
pub struct OperationContext {
    pub(crate) job: Arc<dyn Underlying>,
    pub(crate) resume: Option<Vec<u8>>,
}

impl OperationContext {
    /// The manager's number of the job.
    pub fn job(&self) -> JobId {
        self.job.id()
    }

    /// On whose behalf the job is done. `None` where it goes on after a change-over or a restart: keep what you need of
    /// it with [`OperationContext::checkpoint`].
    pub fn origin(&self) -> Option<&JobOrigin> {
        self.job.origin()
    }

    /// What an earlier call last gave to [`OperationContext::checkpoint`], perhaps under another version. `None` on
    /// the first call, and when this version does not read the schema that it was written in.
    pub fn resume(&self) -> Option<&[u8]> {
        self.resume.as_deref()
    }

    /// What is asked of the operation. Cheap; ask often.
    pub fn demand(&self) -> Demand {
        self.job.demand()
    }

    /// Whether the operation must stop at the next unit boundary.
    pub fn should_stop(&self) -> bool {
        self.demand() >= Demand::Checkpoint
    }

    /// Makes this state durable as the place from which the operation goes on. Costs a disk sync: once a unit.
    ///
    /// # Errors
    /// The disk's. The operation may go on; it would resume from an earlier checkpoint.
    pub fn checkpoint(&self, state: &[u8]) -> Result<(), FileFault> {
        self.job.checkpoint(state)
    }

    /// Tells whoever watches. `version` is filled in. Cheap; watchers get the newest, at a bounded rate.
    pub fn progress(&self, progress: Progress) {
        self.job.progress(progress);
    }

    /// As [`OperationContext::progress`], where nobody counts bytes: so many units of so many are done, and what is
    /// being done, for people.
    pub fn units(&self, units_done: u32, units: u32, activity: &str) {
        let (activity, version) = (activity.to_owned(), String::new());
        self.progress(Progress { units_done, units, bytes_done: 0, bytes: 0, activity, version });
    }
}

/// An operation of which something is asked, without a job.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    #[derive(Debug)]
    pub(crate) struct Asked(pub(crate) Demand);

    impl Underlying for Asked {
        fn id(&self) -> JobId {
            JobId(1)
        }

        fn origin(&self) -> Option<&JobOrigin> {
            None
        }

        fn demand(&self) -> Demand {
            self.0
        }

        fn checkpoint(&self, _state: &[u8]) -> Result<(), FileFault> {
            Ok(())
        }

        fn progress(&self, _progress: Progress) {}
    }

    pub(crate) fn context(asked: Asked) -> OperationContext {
        OperationContext { job: Arc::new(asked), resume: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_stops_for_a_checkpoint_or_a_cancel_and_not_for_a_drain_alone() {
        let demands = [Demand::None, Demand::Finish, Demand::Checkpoint, Demand::Cancel];
        let stops = demands.map(|demand| testing::context(testing::Asked(demand)).should_stop());
        assert_eq!(stops, [false, false, true, true]);
    }

    struct Bare;

    impl Operations for Bare {}

    struct Saves;

    impl Operations for Saves {
        fn save_state(&self, schema: u32) -> Vec<u8> {
            schema.to_le_bytes().to_vec()
        }
    }

    #[test]
    fn a_program_without_a_state_saves_none_and_one_with_a_small_one_need_not_write_a_file() {
        let saved = |operations: &dyn Operations| {
            let mut file = crate::state::memory().unwrap();
            operations.save_state_to(7, &mut file).unwrap();
            crate::state::bytes(&file).unwrap()
        };
        assert!(saved(&Bare).is_empty());
        assert_eq!(saved(&Saves), [7, 0, 0, 0]);
    }
}
