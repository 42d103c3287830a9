//! What of a snapshot is restored.

use serde::{Deserialize, Serialize};

use crate::bounded::{Paths, within};
use crate::limits::{PATTERNS_BYTES_MAX, PATTERNS_MAX};

/// A part of a snapshot. The default is all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RestoreOptions {
    /// Only what matches one of these, and what leads to it; patterns as in
    /// [`crate::backup::BackupOptions::exclude`], of the paths that the snapshot has. None: everything.
    #[serde(deserialize_with = "within::<_, Paths<PATTERNS_MAX, PATTERNS_BYTES_MAX>>")]
    pub include: Vec<String>,
    /// Of that not what matches one of these.
    #[serde(deserialize_with = "within::<_, Paths<PATTERNS_MAX, PATTERNS_BYTES_MAX>>")]
    pub exclude: Vec<String>,
    /// Nothing is written; what would be is listed, see [`crate::outcome::Outcome::Found`].
    pub dry_run: bool,
}
