//! What the machine is told, and what it says.

use std::fmt;
use std::sync::Arc;

use proto::message::Unix;
use serde::{Deserialize, Serialize};

use super::super::schedule::{Schedule, Window};

/// A policy, by whoever drives the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyNo(pub u32);

/// A host, likewise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostNo(pub u32);

/// One task of one policy on one host, by the machine's own number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneNo(pub u32);

/// What a policy has done. In the order in which they come where several are due at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// The sources are backed up.
    Backup,
    /// Every byte of the newest snapshots is read and compared.
    Verify,
    /// The repository's structure is checked.
    Check,
    /// What the policy does not keep is forgotten, and its space freed.
    Prune,
    /// A sample of the newest snapshots is restored and compared.
    RestoreTest,
}

impl Task {
    /// All of them.
    pub const ALL: [Task; 5] = [Task::Backup, Task::Verify, Task::Check, Task::Prune, Task::RestoreTest];

    /// Whether it is the media agent's, on the hosts that look after the repository.
    pub fn is_of_media(self) -> bool {
        matches!(self, Task::Check | Task::Prune)
    }

    /// Whether there is nothing to do before the first backup.
    pub fn needs_backup(self) -> bool {
        self.is_proof()
    }

    /// Whether it shows that what was backed up can be had: what else has problems is still there.
    pub fn is_proof(self) -> bool {
        matches!(self, Task::Verify | Task::RestoreTest)
    }

    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Task::Backup => "backup",
            Task::Verify => "verify",
            Task::Check => "check",
            Task::Prune => "prune",
            Task::RestoreTest => "restore-test",
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A text is no [`Task`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no task of a policy: want one of {names}", text = .0, names = Task::ALL.map(Task::name).join(", "))]
pub struct NoTask(String);

impl std::str::FromStr for Task {
    type Err = NoTask;

    fn from_str(text: &str) -> Result<Self, NoTask> {
        let found = Task::ALL.into_iter().find(|task| task.name() == text);
        found.ok_or_else(|| NoTask(text.to_owned()))
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// What was wanted is there.
    Good,
    /// It was done, and proves nothing; or somebody stopped it. Doing it again would change nothing.
    Poor,
    /// It failed: it is tried again.
    Failed,
}

/// When a task is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Which.
    pub task: Task,
    /// When.
    pub schedule: Arc<Schedule>,
    /// Slots until then do not count: nobody had asked for them.
    pub since: Unix,
}

/// A policy, as far as it says when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Its tasks.
    pub rules: Vec<Rule>,
    /// Each host begins up to so much after a slot, milliseconds.
    pub jitter_ms: u64,
    /// When something may begin.
    pub window: Option<Window>,
    /// Nothing begins.
    pub paused: bool,
    /// Which repository, by whoever drives the machine: what is counted together.
    pub repository: u32,
    /// What may be under way at once.
    pub limits: Limits,
}

/// What may be under way at once, of all policies together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// At the repository.
    pub repository: u32,
    /// On a host.
    pub host: u32,
    /// At a site.
    pub site: u32,
}

/// What is known of a lane when it begins: out of the records of its jobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Past {
    /// The slot of the last run, or when it was begun by hand.
    pub last: Option<Unix>,
    /// It is under way.
    pub open: bool,
    /// One was good.
    pub good: bool,
    /// How many runs of the last slot have failed.
    pub failed: u32,
    /// When the last of them did.
    pub failed_at: Unix,
}

/// A run that begins now. It is durable before anything follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Of what.
    pub lane: LaneNo,
    /// The slot that it is for: no lane has two runs of one slot.
    pub due: Unix,
}

/// Why a lane has nothing under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Waits {
    /// It has.
    Running,
    /// Nothing is due before then; never again, if there is no such time.
    Until(Option<Unix>),
    /// Its policy is paused.
    Paused,
    /// Its host has no connection.
    Away,
    /// The window is closed until then.
    Window(Option<Unix>),
    /// There is no good backup yet.
    NoBackup,
    /// Another task of the policy is under way there.
    Behind(Task),
    /// So many are under way on the host.
    Host(u32),
    /// So many are under way at the repository.
    Repository(u32),
    /// So many are under way at the site.
    Site(u32),
}
