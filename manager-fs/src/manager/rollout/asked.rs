//! What an operator asks of a rollout that is at work, and why that is declined.

use proto::HostName;
use tokio::sync::oneshot;

use super::machine::vocabulary::Wish;
use super::machine::{NotForced, NotNow};
use super::way_back::NoWayBack;

/// What an operator wants.
pub(super) enum Asked {
    /// Of the rollout.
    Wish(Wish),
    /// That a host is ordered out of its turn, and why.
    Force(HostName, String),
}

/// What somebody wants, and where the answer goes.
pub(super) type Ask = (Asked, oneshot::Sender<Result<(), Declined>>);

/// Why a wish is not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum Declined {
    /// It makes no sense now.
    #[error(transparent)]
    NotNow(#[from] NotNow),
    /// A host would be left behind.
    #[error(transparent)]
    NoWayBack(#[from] NoWayBack),
    /// A host is not ordered out of its turn.
    #[error(transparent)]
    NotForced(#[from] NotForced),
    /// The control state failed: whether it is recorded is seen when it answers again.
    #[error("the control state failed: {0}")]
    NotRecorded(String),
}
