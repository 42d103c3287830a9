//! What of a snapshot is restored, and what becomes of what is there already.

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

/// A restore over what is there: into a directory that may hold anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Over {
    /// What becomes of an entry that is there.
    pub policy: Overwrite,
    /// What lies in a restored directory and is not in the snapshot is removed.
    pub delete: bool,
}

/// When an entry that is there gives way to the snapshot's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Overwrite {
    /// Never: only what is missing is restored.
    Never,
    /// If the snapshot's was modified later.
    IfNewer,
    /// Unless kind, size and time of modification are the same.
    IfChanged,
    /// Always; one that has just this content is left as it is, but for its metadata.
    Always,
}

impl Overwrite {
    /// All of them.
    pub const ALL: [Overwrite; 4] = [Overwrite::Never, Overwrite::IfNewer, Overwrite::IfChanged, Overwrite::Always];

    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Overwrite::Never => "never",
            Overwrite::IfNewer => "if-newer",
            Overwrite::IfChanged => "if-changed",
            Overwrite::Always => "always",
        }
    }
}

/// A text is none of [`Overwrite::ALL`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of never, if-newer, if-changed, always")]
pub struct NotOverwrite(String);

impl std::str::FromStr for Overwrite {
    type Err = NotOverwrite;

    fn from_str(text: &str) -> Result<Self, NotOverwrite> {
        let found = Overwrite::ALL.into_iter().find(|overwrite| overwrite.name() == text);
        found.ok_or_else(|| NotOverwrite(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_as_it_is_written() {
        for overwrite in Overwrite::ALL {
            assert_eq!(overwrite.name().parse(), Ok(overwrite));
        }
        assert!("sometimes".parse::<Overwrite>().unwrap_err().to_string().contains("if-newer"));
    }
}
