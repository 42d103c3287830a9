//! What the adapter at work is told, by whatever runs beside it.

use std::time::Duration;

use agent_core::NotHealthy;

/// What the watch is told.
#[derive(Debug)]
pub(super) enum Event {
    /// A keeper has ended.
    Ended { name: String, how: String },
    /// The program was asked for its health.
    Health(Result<(), NotHealthy>),
    /// This version is believed.
    Confirmed,
    /// The agent is to end; if nobody is there after it, what has not ended in time is killed.
    End { patience: Duration, is_last: bool },
}
