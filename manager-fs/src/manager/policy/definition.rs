//! What a policy promises, checked: which sources of which hosts are backed up where and when, what is kept, and how it
//! is proved. `docs/policies.md` has the words.

use std::fmt::{self, Write as _};

use proto::agent::{HostScope, Operation, Repository, SnapshotRef};
use proto::backup::BackupOptions;
use proto::look::{Forget, Keep, SnapshotFilter};
use proto::means::{Commands, Pace};
use proto::message::Unix;
use proto::name::{PolicyName, Target};
use proto::{GroupName, Product};
use serde::{Deserialize, Serialize};

use super::machine::vocabulary::{Limits, Task};
use super::schedule::{Schedule, Window};

/// A limit that nobody has set.
pub(super) const UNLIMITED: u32 = u32::MAX;
/// Files of each snapshot that a restore test takes at most.
pub const SAMPLE_FILES: u32 = 100;
/// And MiB of them.
pub const SAMPLE_MIB: u32 = 256;
/// What is under way at a repository at once, unless a policy says otherwise.
pub(super) const AT_REPOSITORY: u32 = 100;

/// A policy. Times are milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// For people, and in the tag `policy:NAME` of its snapshots.
    pub name: PolicyName,
    /// Whose sources: as many hosts as the groups have at each time.
    pub hosts: Vec<Target>,
    /// Absolute paths on each host.
    pub sources: Vec<String>,
    /// How they are backed up.
    pub options: BackupOptions,
    /// What each host runs before and after, by the names that it has given.
    pub commands: Commands,
    /// Where the snapshots go.
    pub place: Place,
    /// The agent that backs up.
    pub product: Product,
    /// When.
    pub schedule: Schedule,
    /// Each host begins up to so much later, always by the same time.
    pub jitter_ms: u64,
    /// When something may begin at all.
    pub window: Option<Window>,
    /// How old the newest good backup may be at most; none: one and a half times the longest time between two.
    pub rpo_ms: Option<u64>,
    /// When every byte of the newest snapshots is read and compared.
    pub verify: Option<Schedule>,
    /// When a sample of them is restored and compared.
    pub restore_test: Option<Schedule>,
    /// The hosts whose media agent looks after the repository.
    pub media: Vec<Target>,
    /// That agent.
    pub media_product: Product,
    /// What stays.
    pub keep: Keep,
    /// When the repository's structure is checked.
    pub check: Option<Schedule>,
    /// When what is not kept is forgotten.
    pub prune: Option<Schedule>,
    /// What may be under way at once.
    pub limits: Limits,
    /// Groups whose hosts are at one site.
    pub sites: Vec<GroupName>,
}

/// Where backups go.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Place {
    /// A directory, under the same path on each host; or one that is served, by its name.
    Directory(Repository),
}

/// That a job is a run of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRun {
    /// Of which.
    pub policy: PolicyName,
    /// What is done of it.
    pub task: Task,
    /// The slot that it is for; of one that was begun by hand when it was.
    pub due: Unix,
}

impl Place {
    /// As an agent is told it.
    pub fn repository(&self) -> Repository {
        match self {
            Place::Directory(repository) => repository.clone(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Directory(repository) => f.write_str(&repository.path),
        }
    }
}

impl Policy {
    /// When a task is due; none: it is not wanted.
    pub fn schedule_of(&self, task: Task) -> Option<&Schedule> {
        match task {
            Task::Backup => Some(&self.schedule),
            Task::Verify => self.verify.as_ref(),
            Task::Check => self.check.as_ref(),
            Task::Prune => self.prune.as_ref(),
            Task::RestoreTest => self.restore_test.as_ref(),
        }
    }

    /// What an agent is ordered.
    pub fn operation(&self, task: Task) -> (Product, Operation) {
        let repository = self.place.repository();
        let operation = match task {
            Task::Backup => {
                let (sources, options) = (self.sources.clone(), self.options.clone());
                // What earlier versions of agents know, wherever it says all.
                if self.commands.are_none() {
                    Operation::BackupWith { repository, sources, options }
                } else {
                    let commands = self.commands.clone();
                    Operation::BackupBy { repository, sources, options, commands, pace: Pace::default() }
                }
            }
            Task::Verify => Operation::Verify { repository, snapshot: SnapshotRef::latest() },
            Task::RestoreTest => {
                let (files, bytes) = (SAMPLE_FILES, u64::from(SAMPLE_MIB) << 20);
                Operation::RestoreTest { repository, snapshot: SnapshotRef::latest(), files, bytes }
            }
            Task::Check => Operation::Check { repository, read_data: false },
            Task::Prune => {
                let tags = vec![format!("policy:{}", self.name)];
                let snapshots = SnapshotFilter { of: HostScope::Any, source: None, tags };
                let order = Forget { snapshots, keep: self.keep.clone(), dry_run: false, free: true };
                Operation::Forget { repository, order }
            }
        };
        let product = if task.is_of_media() { &self.media_product } else { &self.product };
        (product.clone(), operation)
    }

    /// How old the newest good run of a task may be, milliseconds; none: it is not wanted.
    pub fn promised_ms(&self, task: Task) -> Option<u64> {
        let gap = self.schedule_of(task)?.gap_ms();
        let usual = (gap + gap / 2).saturating_add(self.jitter_ms);
        Some(if task == Task::Backup { self.rpo_ms.unwrap_or(usual) } else { usual })
    }

    /// The policy as a file says it: what is read of it is the policy again.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: String| {
            let _ = writeln!(text, "{key} = {value}");
        };
        let words = |all: Vec<String>| format!("[{}]", all.iter().map(quoted).collect::<Vec<_>>().join(", "));
        let targets = |all: &[Target]| words(all.iter().map(Target::to_string).collect());
        line("name", quoted(&self.name));
        line("hosts", targets(&self.hosts));
        line("sources", words(self.sources.clone()));
        line("repository", quoted(&self.place));
        match &self.place {
            Place::Directory(Repository { password_file: Some(file), .. }) => line("password-file", quoted(file)),
            Place::Directory(_) => {}
        }
        line("product", quoted(&self.product));
        line("schedule", quoted(&self.schedule));
        line("jitter", duration(self.jitter_ms));
        let mut said = |key: &str, value: Option<String>| value.map_or((), |value| line(key, value));
        said("window", self.window.as_ref().map(quoted));
        said("rpo", self.rpo_ms.map(duration));
        said("verify", self.verify.as_ref().map(quoted));
        said("restore-test", self.restore_test.as_ref().map(quoted));
        said("media", (!self.media.is_empty()).then(|| targets(&self.media)));
        said("media-product", Some(quoted(&self.media_product)));
        said("check", self.check.as_ref().map(quoted));
        said("prune", self.prune.as_ref().map(quoted));
        text.push_str(&self.tables());
        text
    }

    fn tables(&self) -> String {
        let words = |all: &[String]| format!("[{}]", all.iter().map(quoted).collect::<Vec<_>>().join(", "));
        let count = |count: u32| (count > 0).then(|| count.to_string());
        let some = |all: &[String]| (!all.is_empty()).then(|| words(all));
        let yes = |yes: bool| yes.then(|| String::from("true"));
        let limit = |limit: u32| (limit != UNLIMITED).then(|| limit.to_string());
        let (keep, options) = (&self.keep, &self.options);
        let sites: Vec<String> = self.sites.iter().map(|site| format!("@{site}")).collect();
        let tables = [
            (
                "keep",
                vec![
                    ("last", count(keep.last)),
                    ("hourly", count(keep.hourly)),
                    ("daily", count(keep.daily)),
                    ("weekly", count(keep.weekly)),
                    ("monthly", count(keep.monthly)),
                    ("yearly", count(keep.yearly)),
                    ("within", keep.within_seconds.map(|seconds| duration(seconds.saturating_mul(1000)))),
                    ("tags", some(&keep.tags)),
                ],
            ),
            (
                "limits",
                vec![
                    ("repository", limit(self.limits.repository)),
                    ("host", limit(self.limits.host)),
                    ("site", limit(self.limits.site)),
                    ("sites", some(&sites)),
                ],
            ),
            (
                "backup",
                vec![
                    ("exclude", some(&options.exclude)),
                    ("exclude-files", some(&options.exclude_files)),
                    ("exclude-if-present", some(&options.exclude_if_present)),
                    ("exclude-caches", yes(options.exclude_caches)),
                    ("exclude-larger-than", options.exclude_larger_than.map(|bytes| bytes.to_string())),
                    ("one-file-system", yes(options.one_file_system)),
                    ("together", yes(options.together)),
                    ("tags", some(&options.tags)),
                    ("force", yes(options.force)),
                    ("readers", options.readers.map(|readers| readers.to_string())),
                    ("compression", options.compression.map(|level| level.to_string())),
                    ("before", self.commands.before.as_ref().map(quoted)),
                    ("after", self.commands.after.as_ref().map(quoted)),
                    ("command-deadline", (!self.commands.are_none()).then(|| deadline(&self.commands))),
                ],
            ),
        ];
        let mut text = String::new();
        for (table, lines) in tables {
            for (key, value) in lines.into_iter().filter_map(|(key, value)| Some((key, value?))) {
                let _ = writeln!(text, "{table}.{key} = {value}");
            }
        }
        text
    }
}

fn deadline(commands: &Commands) -> String {
    duration(u64::from(commands.seconds) * 1000)
}

/// As TOML and JSON write a text.
fn quoted(text: &impl ToString) -> String {
    // The one character that JSON lets stand and TOML does not.
    serde_json::Value::String(text.to_string()).to_string().replace('\u{7f}', "\\u007F")
}

fn duration(ms: u64) -> String {
    quoted(&humantime::format_duration(std::time::Duration::from_millis(ms)))
}

/// What becomes another by taking a policy in another's place: lines that go begin with `-`, lines that come with `+`.
pub(super) fn difference(old: Option<&Policy>, new: &Policy) -> Vec<String> {
    let (old, new) = (old.map(Policy::text).unwrap_or_default(), new.text());
    let key = |line: &str| line.split(" = ").next().unwrap_or_default().to_owned();
    let mut lines: Vec<String> = Vec::new();
    let gone = old.lines().filter(|line| !new.lines().any(|other| other == *line));
    let mut gone: Vec<&str> = gone.collect();
    for line in new.lines().filter(|line| !old.lines().any(|other| other == *line)) {
        if let Some(at) = gone.iter().position(|other| key(other) == key(line)) {
            lines.push(format!("- {}", gone.remove(at)));
        }
        lines.push(format!("+ {line}"));
    }
    lines.extend(gone.into_iter().map(|line| format!("- {line}")));
    lines
}
