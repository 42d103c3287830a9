//! Asks the embedding program to finish, with a deadline.
//!
//! Until the deadline operations may finish; past it they stop at their next unit boundary; what is not back a moment
//! later is abandoned, and runs again from its last checkpoint.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::jobs::Jobs;

/// How long past the deadline an operation may take to its next unit boundary, before it is abandoned.
const CHECKPOINT_GRACE: Duration = Duration::from_secs(2);

/// Proof that no operation is under way that anything still depends on: what the exec demands.
#[derive(Debug, Clone)]
pub(crate) struct Drained {
    /// For people.
    pub(crate) detail: String,
}

/// Takes no new operation from now on.
pub(crate) fn begin(jobs: &Jobs) {
    jobs.begin_drain();
}

/// Whether nothing is under way, without waiting.
pub(crate) fn is_idle(jobs: &Jobs) -> bool {
    jobs.wait_idle(Instant::now())
}

/// Waits for the operations under way, after [`begin`].
pub(crate) fn wait(jobs: &Arc<Jobs>, deadline: Duration) -> Drained {
    let in_time = jobs.wait_idle(Instant::now() + deadline);
    if !in_time {
        jobs.demand_checkpoint();
        jobs.wait_idle(Instant::now() + CHECKPOINT_GRACE);
    }
    let (unfinished, abandoned) = jobs.suspend();
    let detail = match (in_time, unfinished.len(), abandoned) {
        (_, 0, _) if in_time => "nothing is under way".to_owned(),
        (_, 0, _) => "past the deadline, all finished".to_owned(),
        (_, n, 0) => format!("past the deadline: {n} checkpointed, to be resumed"),
        (_, n, a) => format!("past the deadline: {} checkpointed and {a} abandoned at its last checkpoint", n - a),
    };
    Drained { detail }
}

/// The program is to end: operations stop at their next unit boundary, at once.
pub(crate) fn stop(jobs: &Jobs, at_most: Duration) {
    jobs.begin_drain();
    jobs.demand_checkpoint();
    jobs.wait_idle(Instant::now() + at_most);
    jobs.suspend();
}
