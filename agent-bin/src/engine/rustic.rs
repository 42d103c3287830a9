//! Repositories of restic's format, by way of `rustic_core`.
//!
//! What its users should know: it writes repositories of version 2, which restic reads from 0.14 on; it takes none of
//! restic's locks. On one host this file's own lock keeps prune from running beside anything else, between hosts the
//! manager does. A snapshot holds one source under its absolute path, as restic writes it.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use proto::agent::Repository as Location;
use rustic_backend::LocalBackend;
use rustic_core::repofile::{Node, SnapshotFile};
use rustic_core::{
    BackupOptions, CheckOptions, ConfigOptions, Credentials, FileType, IndexedTree, KeyOptions, LimitOption,
    LocalDestination, LsOptions, OpenStatus, Progress, ProgressBars, ProgressType, PruneOptions, Repository,
    RepositoryBackends, RepositoryOptions, RestoreOptions, RusticProgress, RusticResult, SnapshotOptions,
    WriteBackend,
};

use super::compare::{Compared, Depth, compare};
use super::gate::Gate;
use super::source::WatchedSource;
use super::{BackupEngine, EngineError, Mark, SharedMeter, Work};

/// In a directory that is being restored into: which snapshot. A restore that was cut off goes on where it finds this
/// file; any other directory with something in it is refused.
const RESTORING: &str = ".manager-fs-restoring";

/// The engine.
#[derive(Debug)]
pub(crate) struct Rustic {
    /// The password of repositories for which no other password file is named; made at first use.
    own_password_file: PathBuf,
}

type Opened = Repository<OpenStatus>;

impl Rustic {
    pub(crate) fn new(own_password_file: PathBuf) -> Self {
        Self { own_password_file }
    }

    /// Opens a repository for an operation, with this host's lock on it.
    fn open(&self, at: &Location, meter: &SharedMeter, access: Access) -> Result<(Opened, File), EngineError> {
        let path = PathBuf::from(&at.path);
        if !path.is_absolute() {
            return Err(EngineError::Path { path, what: "a repository is named by its absolute path".to_owned() });
        }
        let new = !path.join("config").is_file();
        if new && access != Access::Write {
            return Err(EngineError::NoRepository { path });
        }
        if new {
            make(&path, &self.password(at, true)?)?;
        }
        let lock = lock(&path, access)?;
        let credentials = Credentials::Password(self.password(at, false)?);
        let repository = guarded(&path, meter, || connect(&path, meter, access == Access::Read)?.open(&credentials))?;
        Ok((repository, lock))
    }

    fn password(&self, at: &Location, make: bool) -> Result<String, EngineError> {
        let path = at.password_file.as_ref().map_or_else(|| self.own_password_file.clone(), PathBuf::from);
        let fault = |what: String| EngineError::Password { path: path.clone(), what };
        if make && at.password_file.is_none() && !path.exists() {
            make_password(&path).map_err(|error| fault(format!("cannot be made: {error}")))?;
        }
        let text = fs::read_to_string(&path).map_err(|error| fault(error.to_string()))?;
        let password = text.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(fault("is empty".to_owned()));
        }
        Ok(password.to_owned())
    }
}

/// What an operation does to a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Nothing.
    Read,
    /// Adds to it.
    Write,
    /// Removes from it, so that nobody else may be at work.
    Remove,
}

impl BackupEngine for Rustic {
    fn backup(&self, at: &Location, source: &Path, mark: &Mark, meter: &SharedMeter) -> Result<Work, EngineError> {
        let source = checked_source(source)?;
        let (repository, _lock) = self.open(at, meter, Access::Write)?;
        let path = PathBuf::from(&at.path);
        guarded(&path, meter, || {
            if mark.look
                && let Some(snapshot) = finished(&repository, &source, mark)?
            {
                return Ok(work_of(&snapshot));
            }
            let repository = repository.to_indexed_ids()?;
            let snapshot = SnapshotOptions::default().add_tags(&mark.tag)?.to_snapshot()?;
            let files = WatchedSource::new(&source, meter.clone())?;
            Ok(work_of(&repository.archive(&BackupOptions::default(), &files, snapshot, &[source])?))
        })
    }

    fn restore(
        &self,
        at: &Location,
        snapshot: &str,
        target: &Path,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError> {
        let (repository, _lock) = self.open(at, meter, Access::Read)?;
        let path = PathBuf::from(&at.path);
        let (repository, snapshot) = guarded(&path, meter, || {
            let snapshot = repository.get_snapshot_from_str(snapshot, |_| true)?;
            Ok((repository.to_indexed()?, snapshot))
        })?;
        let marker = begin_restore(target, snapshot.id.to_hex().as_str())?;
        let root = guarded(&path, meter, || content_of(&repository, &snapshot))?;
        guarded(&path, meter, || {
            // As root ownership is restored by number, as restic does: names may mean someone else on this host.
            let privileged = rustix::process::geteuid().is_root();
            let options =
                RestoreOptions::default().numeric_id(privileged).no_ownership(!privileged).verify_existing(true);
            let to = LocalDestination::new(&format!("{}/", target.display()), true, false)?;
            let everything = LsOptions::default();
            let plan = repository.prepare_restore(&options, repository.ls(&root, &everything)?, &to, false)?;
            repository.restore(plan, &options, repository.ls(&root, &everything)?, &to)
        })?;
        fs::remove_file(&marker).map_err(|error| at_path(&marker, &error))?;
        let compared = guarded(&path, meter, || {
            if root.is_dir() {
                super::compare::set_metadata(target, &root, meter);
            }
            let depth = Depth { contents: false, ownership: rustix::process::geteuid().is_root() };
            compare(&repository, &root, &live_path(target, &root), depth, meter)
        })?;
        Ok(work_of_comparison(&snapshot, compared))
    }

    fn verify(&self, at: &Location, snapshot: &str, meter: &SharedMeter) -> Result<Work, EngineError> {
        let (repository, _lock) = self.open(at, meter, Access::Read)?;
        guarded(Path::new(&at.path), meter, || {
            let snapshot = repository.get_snapshot_from_str(snapshot, |_| true)?;
            let repository = repository.to_indexed()?;
            meter.begin("comparing");
            meter.expect(snapshot.summary.as_ref().map_or(0, |summary| summary.total_bytes_processed));
            let mut sum = Compared::default();
            let depth = Depth { contents: true, ownership: true };
            for source in snapshot.paths.iter() {
                let node = node_at(&repository, &snapshot, Path::new(source))?;
                sum.add(compare(&repository, &node, Path::new(source), depth, meter)?);
            }
            Ok(work_of_comparison(&snapshot, sum))
        })
    }

    fn check(&self, at: &Location, read_data: bool, meter: &SharedMeter) -> Result<Work, EngineError> {
        let (repository, _lock) = self.open(at, meter, Access::Read)?;
        guarded(Path::new(&at.path), meter, || {
            let results = repository.check(CheckOptions::default().read_data(read_data))?;
            for (level, finding) in &results.0 {
                // The level's type cannot be named from outside of the library. Warnings are about what an interrupted
                // backup left behind: unreferenced, harmless, and freed by the next prune.
                match format!("{level:?}").as_str() {
                    "Warn" => tracing::info!("{}: {finding}", at.path),
                    _ => meter.problem(finding.to_string()),
                }
            }
            let packs = LocalBackend::new(&at.path, [])?.repository_packs()?;
            Ok(Work { files: packs.0, bytes: if read_data { packs.1 } else { 0 }, ..Work::default() })
        })
    }

    fn forget(&self, at: &Location, keep_last: u32, meter: &SharedMeter) -> Result<Work, EngineError> {
        let (repository, _lock) = self.open(at, meter, Access::Remove)?;
        guarded(Path::new(&at.path), meter, || {
            let now = rustic_core::jiff::Zoned::now();
            let mut of_source: BTreeMap<(String, String), Vec<SnapshotFile>> = BTreeMap::new();
            for snapshot in repository.get_all_snapshots()? {
                let source = (snapshot.hostname.clone(), snapshot.paths.to_string());
                of_source.entry(source).or_default().push(snapshot);
            }
            let mut forgotten = Vec::new();
            for mut snapshots in of_source.into_values() {
                snapshots.sort_by(|a, b| b.time.cmp(&a.time));
                let keep = usize::try_from(keep_last.max(1)).unwrap_or(usize::MAX);
                forgotten.extend(snapshots.into_iter().skip(keep).filter(|snapshot| !snapshot.must_keep(&now)));
            }
            let ids: Vec<_> = forgotten.iter().map(|snapshot| snapshot.id).collect();
            repository.delete_snapshots(&ids)?;
            Ok(Work { snapshots: ids.iter().map(|id| id.to_hex().to_string()).collect(), ..Work::default() })
        })
    }

    fn reclaim(&self, at: &Location, meter: &SharedMeter) -> Result<Work, EngineError> {
        let (repository, _lock) = self.open(at, meter, Access::Remove)?;
        guarded(Path::new(&at.path), meter, || {
            // Nobody else is at work, so what is unused can go at once instead of being marked for a day.
            let options = PruneOptions::default().instant_delete(true).max_repack(LimitOption::Unlimited);
            let files = LocalBackend::new(&at.path, [])?;
            let (_, before) = files.repository_packs()?;
            let plan = repository.prune_plan(&options)?;
            repository.prune(&options, plan)?;
            let (_, after) = files.repository_packs()?;
            Ok(Work { repository_bytes: before.saturating_sub(after), ..Work::default() })
        })
    }
}

/// Number and bytes of a repository's packs, as they lie on the disk.
trait Packs {
    fn repository_packs(&self) -> RusticResult<(u64, u64)>;
}

impl<B: WriteBackend> Packs for B {
    fn repository_packs(&self) -> RusticResult<(u64, u64)> {
        let packs = self.list_with_size(FileType::Pack)?;
        Ok((packs.len() as u64, packs.iter().map(|(_, bytes)| u64::from(*bytes)).sum()))
    }
}

/// Runs a call of the library, which fails in three ways: by an error, by a panic in one of its threads (it unwraps
/// what a full disk or a damaged pack returns), and in either way because it was stopped.
fn guarded<T>(path: &Path, meter: &SharedMeter, call: impl FnOnce() -> RusticResult<T>) -> Result<T, EngineError> {
    let what = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.display_log().trim_start_matches("Error: ").to_owned(),
        Err(panic) => match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
            (Some(text), _) => text.clone(),
            (None, Some(text)) => (*text).to_owned(),
            (None, None) => "the backup engine ended without saying why".to_owned(),
        },
    };
    if meter.is_stopped() {
        return Err(EngineError::Stopped);
    }
    Err(EngineError::Failed { path: path.to_owned(), what })
}

fn connect(path: &Path, meter: &SharedMeter, stops_reads: bool) -> RusticResult<Repository<()>> {
    let files = Arc::new(LocalBackend::new(path.to_string_lossy(), [])?);
    let gate = Gate::new(files, meter.clone(), stops_reads);
    // A cache of a local repository would only be a second copy of its index.
    let options = RepositoryOptions::default().no_cache(true);
    let backends = RepositoryBackends::new(Arc::new(gate), None);
    Repository::new_with_progress(&options, &backends, Bars(meter.clone()))
}

/// Makes a repository, unless another process was faster.
fn make(path: &Path, password: &str) -> Result<(), EngineError> {
    let fault = |error: io::Error| at_path(path, &error);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fault)?;
    let lock = File::open(path).map_err(fault)?;
    lock.lock().map_err(fault)?;
    if path.join("config").is_file() {
        return Ok(());
    }
    // What an interrupted initialisation leaves behind is fine; anything else is someone else's directory.
    for entry in fs::read_dir(path).map_err(fault)? {
        let name = entry.map_err(fault)?.file_name();
        if !["data", "index", "keys", "locks", "snapshots"].iter().any(|known| name == *known) {
            let what = format!("is not a repository, and not empty (there is {name:?}); name another directory");
            return Err(EngineError::Path { path: path.to_owned(), what });
        }
    }
    let meter = SharedMeter::default();
    let credentials = Credentials::password(password);
    guarded(path, &meter, || {
        connect(path, &meter, false)?.init(&credentials, &KeyOptions::default(), &ConfigOptions::default())
    })?;
    Ok(())
}

fn make_password(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    let mut random = [0u8; 32];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    // Whole or not at all: half a password file would lock the repository for ever. `hard_link` never replaces a file
    // that another agent of this host made meanwhile.
    let draft = path.with_extension(format!("draft-{}", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    let linked = fs::hard_link(&draft, path);
    fs::remove_file(&draft)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

fn lock(path: &Path, access: Access) -> Result<File, EngineError> {
    let directory = File::open(path).map_err(|error| at_path(path, &error))?;
    let locked = match access {
        Access::Read | Access::Write => directory.try_lock_shared(),
        Access::Remove => directory.try_lock(),
    };
    match locked {
        Ok(()) => Ok(directory),
        Err(TryLockError::WouldBlock) => Err(EngineError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(at_path(path, &error)),
    }
}

/// A source that can be backed up under the path that it was named by.
fn checked_source(source: &Path) -> Result<PathBuf, EngineError> {
    let fault = |what: &str| EngineError::Path { path: source.to_owned(), what: what.to_owned() };
    if !source.is_absolute() || source.components().any(|part| part == Component::ParentDir) {
        return Err(fault("a source is named by its absolute path, without `..`"));
    }
    let kind = fs::symlink_metadata(source).map_err(|error| at_path(source, &error))?.file_type();
    if kind.is_symlink() {
        let to = fs::canonicalize(source).map_err(|error| at_path(source, &error))?;
        return Err(fault(&format!("is a symbolic link; name what it leads to: {}", to.display())));
    }
    let readable = if kind.is_dir() { fs::read_dir(source).map(drop) } else { File::open(source).map(drop) };
    readable.map_err(|error| at_path(source, &error))?;
    Ok(source.components().collect())
}

/// Readies the target of a restore; returns the marker's path.
fn begin_restore(target: &Path, snapshot: &str) -> Result<PathBuf, EngineError> {
    let fault = |what: String| EngineError::Path { path: target.to_owned(), what };
    if !target.is_absolute() {
        return Err(fault("a restore's target is named by its absolute path".to_owned()));
    }
    fs::create_dir_all(target).map_err(|error| at_path(target, &error))?;
    let marker = target.join(RESTORING);
    match fs::read_to_string(&marker) {
        Ok(begun) if begun.trim_end() == snapshot => {
            super::compare::clear_links(target).map_err(|error| at_path(target, &error))?;
            return Ok(marker);
        }
        Ok(begun) => {
            let what = format!("an unfinished restore of snapshot {} is in it", begun.trim_end());
            return Err(fault(what));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(at_path(&marker, &error)),
    }
    if fs::read_dir(target).map_err(|error| at_path(target, &error))?.next().is_some() {
        return Err(fault("is not empty; restore into a new or empty directory".to_owned()));
    }
    fs::write(&marker, format!("{snapshot}\n")).map_err(|error| at_path(&marker, &error))?;
    Ok(marker)
}

/// What is restored: a snapshot's one source, or everything of a snapshot of several (which restic makes).
fn content_of<S: IndexedTree>(repository: &Repository<S>, snapshot: &SnapshotFile) -> RusticResult<Node> {
    let mut sources = snapshot.paths.iter();
    match (sources.next(), sources.next()) {
        (Some(source), None) => node_at(repository, snapshot, Path::new(source)),
        _ => node_at(repository, snapshot, Path::new("")),
    }
}

fn node_at<S: IndexedTree>(repository: &Repository<S>, snapshot: &SnapshotFile, path: &Path) -> RusticResult<Node> {
    repository.node_from_path(snapshot.tree, path)
}

/// Where a node lies below the directory that it was restored into.
fn live_path(target: &Path, root: &Node) -> PathBuf {
    if root.is_dir() { target.to_owned() } else { target.join(root.name()) }
}

/// The snapshot that an earlier run of the same job finished of this source.
fn finished(repository: &Opened, source: &Path, mark: &Mark) -> RusticResult<Option<SnapshotFile>> {
    let source = source.to_string_lossy();
    let since = i64::try_from(mark.since_unix_ms).unwrap_or(i64::MAX);
    let mut found = repository.get_matching_snapshots(|snapshot| {
        snapshot.tags.contains(&mark.tag)
            && snapshot.paths.iter().eq([source.as_ref()])
            && snapshot.time.timestamp().as_millisecond() >= since
    })?;
    Ok(found.pop())
}

fn work_of(snapshot: &SnapshotFile) -> Work {
    let summary = snapshot.summary.as_ref();
    Work {
        snapshots: vec![snapshot.id.to_hex().to_string()],
        files: summary.map_or(0, |summary| summary.total_files_processed),
        bytes: summary.map_or(0, |summary| summary.total_bytes_processed),
        repository_bytes: summary.map_or(0, |summary| summary.data_added_packed),
    }
}

fn work_of_comparison(snapshot: &SnapshotFile, compared: Compared) -> Work {
    let Compared { files, bytes } = compared;
    Work { snapshots: vec![snapshot.id.to_hex().to_string()], files, bytes, repository_bytes: 0 }
}

fn at_path(path: &Path, error: &io::Error) -> EngineError {
    EngineError::Path { path: path.to_owned(), what: error.to_string() }
}

/// The library's progress, turned into a meter's counters.
#[derive(Debug)]
struct Bars(SharedMeter);

impl ProgressBars for Bars {
    fn progress(&self, kind: ProgressType, prefix: &str) -> Progress {
        self.0.begin(prefix);
        Progress::new(Bar { meter: self.0.clone(), bytes: matches!(kind, ProgressType::Bytes) })
    }
}

#[derive(Debug)]
struct Bar {
    meter: SharedMeter,
    bytes: bool,
}

impl RusticProgress for Bar {
    /// A hidden bar keeps the library from measuring a source's size beforehand, which only bytes need.
    fn is_hidden(&self) -> bool {
        !self.bytes
    }

    fn set_length(&self, length: u64) {
        if self.bytes {
            self.meter.expect(length);
        }
    }

    fn set_title(&self, title: &str) {
        tracing::debug!("{title}");
    }

    fn inc(&self, by: u64) {
        if self.bytes {
            self.meter.advance(by);
        }
    }

    fn finish(&self) {}
}

#[cfg(test)]
mod tests;
