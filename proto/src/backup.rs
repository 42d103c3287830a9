//! What a backup is told beside its sources, and what it counts.

use serde::{Deserialize, Serialize};

use crate::bounded::{List, Paths, Word, within};
use crate::limits::{EXCLUDE_FILES_MAX, PATTERNS_BYTES_MAX, PATTERNS_MAX, TAG_BYTES_MAX, TAGS_MAX};

/// How a backup is done. The default is what a backup does that is told nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BackupOptions {
    /// What is left out: patterns as in a `.gitignore`, of which the last one that matches decides, and `!` takes back.
    /// One that begins with `/` is a path of the host; every other one matches at any depth.
    #[serde(deserialize_with = "within::<_, Paths<PATTERNS_MAX, PATTERNS_BYTES_MAX>>")]
    pub exclude: Vec<String>,
    /// Files on the host with such patterns, one a line; absolute paths.
    #[serde(deserialize_with = "within::<_, Paths<EXCLUDE_FILES_MAX, PATTERNS_BYTES_MAX>>")]
    pub exclude_files: Vec<String>,
    /// Of a directory in which a file of this name lies only that file is taken: `NAME`, or `NAME:TEXT` if the file must
    /// begin with the text.
    #[serde(deserialize_with = "within::<_, Paths<EXCLUDE_FILES_MAX, PATTERNS_BYTES_MAX>>")]
    pub exclude_if_present: Vec<String>,
    /// The same of directories with a `CACHEDIR.TAG`.
    pub exclude_caches: bool,
    /// Files of more bytes are left out.
    pub exclude_larger_than: Option<u64>,
    /// Other file systems below a source are not entered; the directories on which they are mounted are taken empty.
    pub one_file_system: bool,
    /// All sources are one unit and become one snapshot.
    pub together: bool,
    /// Further tags of the snapshots, without commas.
    #[serde(deserialize_with = "within::<_, List<Word<TAG_BYTES_MAX>, TAGS_MAX>>")]
    pub tags: Vec<String>,
    /// Everything is read and counted, nothing is stored.
    pub dry_run: bool,
    /// Every file is read, also those that seem to be what they were.
    pub force: bool,
    /// How many threads read and store; none: as many as the host has processors.
    pub readers: Option<u8>,
    /// Level of zstd, 1 to 22, or 0: nothing is compressed. None: as the repository says.
    pub compression: Option<u8>,
}

/// What a backup found and stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupCounts {
    /// Files that the snapshot before does not have.
    pub files_new: u64,
    /// Files that it has otherwise.
    pub files_changed: u64,
    /// Files that it has just so; they were not read.
    pub files_unmodified: u64,
    /// Directories that it does not have.
    pub dirs_new: u64,
    /// Directories that it has otherwise.
    pub dirs_changed: u64,
    /// Directories that it has just so.
    pub dirs_unmodified: u64,
    /// Bytes that the repository did not have, as they were read.
    pub added_bytes: u64,
    /// From the beginning to the snapshot, milliseconds.
    pub duration_ms: u64,
}

impl BackupCounts {
    /// Adds those of a further unit.
    pub fn add(&mut self, other: Self) {
        self.files_new += other.files_new;
        self.files_changed += other.files_changed;
        self.files_unmodified += other.files_unmodified;
        self.dirs_new += other.dirs_new;
        self.dirs_changed += other.dirs_changed;
        self.dirs_unmodified += other.dirs_unmodified;
        self.added_bytes += other.added_bytes;
        self.duration_ms += other.duration_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_units_add_up() {
        let one = BackupCounts {
            files_new: 1,
            files_changed: 2,
            files_unmodified: 3,
            dirs_new: 4,
            dirs_changed: 5,
            dirs_unmodified: 6,
            added_bytes: 7,
            duration_ms: 8,
        };
        let mut sum = one;
        sum.add(one);
        let twice = BackupCounts {
            files_new: 2,
            files_changed: 4,
            files_unmodified: 6,
            dirs_new: 8,
            dirs_changed: 10,
            dirs_unmodified: 12,
            added_bytes: 14,
            duration_ms: 16,
        };
        assert_eq!(sum, twice);
    }
}
