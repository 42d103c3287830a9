//! What a backup or a restore is told beside what it is of: commands of the host's own, and how fast it may be.

use serde::{Deserialize, Serialize};

use crate::bounded::{Line, Lines, within};
use crate::limits::{OUTPUT_LINES_MAX, PROBLEM_BYTES_MAX, VERSION_BYTES_MAX};
use crate::name::CommandName;

/// Bytes a second, at most; none: as fast as it goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pace {
    /// Out of the sources.
    pub read: Option<u64>,
    /// Into the repository.
    pub upload: Option<u64>,
    /// Out of the repository.
    pub download: Option<u64>,
}

/// Commands that the agent's host has given these names, and whose program and arguments it alone knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Commands {
    /// What it prints is the snapshot's one file, under the path of the one source.
    pub output_of: Option<CommandName>,
    /// Before each snapshot; if it fails, none is made.
    pub before: Option<CommandName>,
    /// After each, however it ended.
    pub after: Option<CommandName>,
    /// How long each may take, seconds.
    pub seconds: u32,
}

impl Commands {
    /// Whether nothing is run.
    pub fn are_none(&self) -> bool {
        self.all().next().is_none()
    }

    /// All that are named.
    pub fn all(&self) -> impl Iterator<Item = &CommandName> {
        self.output_of.iter().chain(&self.before).chain(&self.after)
    }
}

/// A command that ran to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// Which.
    pub command: CommandName,
    /// When, for people: `before`, `after` or `output`.
    #[serde(deserialize_with = "within::<_, Line<VERSION_BYTES_MAX>>")]
    pub moment: String,
    /// How it ended, for people: `exit status: 0`.
    #[serde(deserialize_with = "within::<_, Line<VERSION_BYTES_MAX>>")]
    pub ended: String,
    /// The last lines that it printed, for people; of one whose output is stored those of its errors.
    #[serde(deserialize_with = "within::<_, Lines<PROBLEM_BYTES_MAX, OUTPUT_LINES_MAX>>")]
    pub output: Vec<String>,
    /// From its start to its end, milliseconds.
    pub duration_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_none_until_one_is_named() {
        let name = || Some("dump".parse().unwrap());
        assert!(Commands { seconds: 9, ..Commands::default() }.are_none());
        let all = Commands { output_of: name(), before: name(), after: name(), seconds: 0 };
        assert!(!all.are_none());
        assert_eq!(all.all().count(), 3);
        for one in [
            Commands { output_of: name(), ..Commands::default() },
            Commands { before: name(), ..Commands::default() },
            Commands { after: name(), ..Commands::default() },
        ] {
            assert!(!one.are_none() && one.all().count() == 1);
        }
    }
}
