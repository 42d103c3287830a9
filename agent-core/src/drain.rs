//! Asks the embedding program to finish, with a deadline.
//!
//! Until the deadline operations may finish; past it they stop at their next unit boundary; what is not back a moment
//! later is abandoned, and runs again from its last checkpoint.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::agent::JobId;

use crate::jobs::Jobs;
use crate::program::Program;
use crate::sys;

/// How long past the deadline an operation may take to its next unit boundary, before it is abandoned.
const CHECKPOINT_GRACE: Duration = Duration::from_secs(2);

/// What the program has for itself when operations have used all of the deadline.
const QUIESCE_MIN: Duration = Duration::from_secs(1);

/// Proof that no operation is under way that anything still depends on. There is no other way to one than [`wait`], and
/// [`crate::exec::become_program`] takes it away: nothing is executed that was not drained.
#[derive(Debug)]
pub(crate) struct Drained {
    /// Jobs that go on under the next version.
    pub(crate) unfinished: Vec<JobId>,
    /// How it ended, for the step's report: how many ended, stopped or go on.
    pub(crate) detail: String,
    /// When it was over, microseconds of `CLOCK_MONOTONIC`.
    pub(crate) at_us: u64,
}

/// Takes no new operation from now on.
pub(crate) fn begin(jobs: &Jobs) {
    jobs.begin_drain();
}

/// Waits for the operations under way, after [`begin`], and then for what the program does of its own, which goes on
/// until then: nobody has to wait for the program while it waits for an operation.
pub(crate) fn wait(jobs: &Arc<Jobs>, program: &Program, deadline: Duration) -> Drained {
    let until = Instant::now() + deadline;
    let in_time = jobs.wait_idle(until);
    if !in_time {
        jobs.demand_checkpoint();
        jobs.wait_idle(Instant::now() + CHECKPOINT_GRACE);
    }
    let (unfinished, abandoned) = jobs.suspend();
    let mut detail = describe(in_time, unfinished.len() - abandoned, abandoned);
    let left = program.quiesce(until.saturating_duration_since(Instant::now()).max(QUIESCE_MIN));
    if !left.is_empty() {
        detail = format!("{detail}; {left}");
    }
    Drained { unfinished, detail, at_us: sys::monotonic_us() }
}

/// What came of the operations that were under way, for people.
fn describe(in_time: bool, checkpointed: usize, abandoned: usize) -> String {
    let outcome = match (checkpointed, abandoned) {
        (0, 0) if in_time => return "nothing is under way".to_owned(),
        (0, 0) => "all finished".to_owned(),
        (n, 0) => format!("{n} checkpointed, to be resumed"),
        (0, a) => format!("{a} abandoned, to be resumed from the last checkpoint"),
        (n, a) => format!("{n} checkpointed and {a} abandoned, to be resumed from the last checkpoint"),
    };
    if in_time { outcome } else { format!("past the deadline: {outcome}") }
}

/// The program is to end: operations stop at their next unit boundary, at once.
pub(crate) fn stop(jobs: &Jobs, program: &Program, at_most: Duration) {
    let until = Instant::now() + at_most;
    jobs.begin_drain();
    jobs.demand_checkpoint();
    jobs.wait_idle(until);
    jobs.suspend();
    let left = program.quiesce(until.saturating_duration_since(Instant::now()));
    if !left.is_empty() {
        tracing::warn!("ending all the same: {left}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn past_the_deadline_is_said_when_it_was_and_only_then() {
        assert_eq!(describe(true, 0, 0), "nothing is under way");
        // It stopped when it was asked to finish: before the deadline.
        assert_eq!(describe(true, 2, 0), "2 checkpointed, to be resumed");
        assert_eq!(describe(false, 0, 0), "past the deadline: all finished");
        assert!(describe(false, 1, 1).starts_with("past the deadline: 1 checkpointed and 1 abandoned"));
    }
}
