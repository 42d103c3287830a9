//! What is ordered of a repository that a host serves, beside its data: its keys, and whom it lets in no longer.

use serde::{Deserialize, Serialize};

use crate::bounded::{Line, List, Own, Word, within};
use crate::limits::REFUSED_MAX;
use crate::name::HostName;
use crate::recovery::RecoveryKey;

/// An order to the agent that serves a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Keeping {
    /// Say which keys the repository has: findings `key-1`, `key-2`, …, and `more` if there are too many.
    Keys,
    /// Make a further key with a password that is drawn. The findings are `key`, its id, and `sealed`, the password.
    AddKey(RecoveryKey),
    /// Remove a key by its id, 64 hex digits; never the one that the agent itself uses.
    RemoveKey(#[serde(deserialize_with = "within::<_, Word<64>>")] String),
    /// Seal the password that the agent itself uses. The findings are as of [`Keeping::AddKey`].
    Escrow(RecoveryKey),
    /// Let in nobody by these grants, and by none that was refused before. Empty in the record of a job: all that are
    /// refused are told as the job is sent.
    Refuse(#[serde(deserialize_with = "within::<_, List<Own<Refused>, REFUSED_MAX>>")] Vec<Refused>),
}

impl Keeping {
    /// A word for it.
    pub fn kind(&self) -> &'static str {
        match self {
            Keeping::Keys => "keys",
            Keeping::AddKey(_) => "add-key",
            Keeping::RemoveKey(_) => "remove-key",
            Keeping::Escrow(_) => "escrow",
            Keeping::Refuse(_) => "refuse",
        }
    }
}

/// Grants that are refused before their time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Refused {
    /// The one that says this of itself.
    Grant {
        /// Its `what`.
        #[serde(deserialize_with = "within::<_, Line<64>>")]
        what: String,
        /// When it would have ended; milliseconds since 1970.
        until_unix_ms: u64,
    },
    /// Those of a host that end by then: later ones were given after it was let in again.
    Host {
        /// Whose.
        host: HostName,
        /// Milliseconds since 1970.
        until_unix_ms: u64,
    },
}

impl Refused {
    /// When nothing is left that it could refuse; milliseconds since 1970.
    pub fn until_unix_ms(&self) -> u64 {
        match self {
            Refused::Grant { until_unix_ms, .. } | Refused::Host { until_unix_ms, .. } => *until_unix_ms,
        }
    }
}
