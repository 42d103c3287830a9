//! `rustic_core`, which finds keys, makes, checks and prunes repositories: how it is called, and how it fails.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use proto::HostName;
use rustic_backend::LocalBackend;
use rustic_core::{
    CheckOptions, ConfigOptions, Credentials, KeyOptions, LimitOption, OpenStatus, Progress, ProgressBars,
    ProgressType, PruneOptions, Repository, RepositoryBackends, RepositoryOptions, RusticProgress, RusticResult,
    WriteBackend,
};

use super::elsewhere::Elsewhere;
use super::fault::{EngineError, Refusal, panic_text};
use super::format::files::{FileKind, Files, Store};
use super::format::id::Id;
use super::gate::{self, Gate};
use super::light_key;
use super::meter::{SharedMeter, one_line};

/// An open repository, as the library has it.
pub(super) type Opened = Repository<OpenStatus>;

/// Opens a repository in a directory by its password.
pub(super) fn open(path: &Path, password: String, meter: &SharedMeter) -> Result<Opened, EngineError> {
    guarded(path, meter, || connect(directory(path)?, meter)?.open(&Credentials::Password(password)))
}

/// The same of one that lies elsewhere, whose place is called `path`, and which this host looks after, or another one.
pub(super) fn open_store(
    path: &Path,
    store: Arc<dyn Store>,
    is_ours: bool,
    password: String,
    meter: &SharedMeter,
) -> Result<Opened, EngineError> {
    let files = Arc::new(Elsewhere { store, is_ours });
    guarded(path, meter, || connect(files, meter)?.open(&Credentials::Password(password)))
}

/// Makes a repository, unless another process was faster.
pub(super) fn make(path: &Path, password: &str, meter: &SharedMeter) -> Result<(), EngineError> {
    let fault = |error| EngineError::io(path, error);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fault)?;
    let lock = fs::File::open(path).map_err(fault)?;
    lock.lock().map_err(fault)?;
    if path.join("config").is_file() {
        return Ok(());
    }
    // What an interrupted initialisation leaves behind is fine; anything else is someone else's directory.
    for entry in fs::read_dir(path).map_err(fault)? {
        let name = entry.map_err(fault)?.file_name();
        if !["data", "index", "keys", "locks", "snapshots"].iter().any(|known| name == *known) {
            return Err(EngineError::refused(path, Refusal::NotARepository(name)));
        }
    }
    let credentials = Credentials::password(password);
    let made = guarded(path, meter, || {
        connect(directory(path)?, meter)?.init(&credentials, &KeyOptions::default(), &ConfigOptions::default())
    })?;
    // restic warns of every directory that is missing.
    for directory in ["data", "index", "keys", "locks", "snapshots"] {
        let directory = path.join(directory);
        fs::create_dir_all(&directory).map_err(|error| EngineError::io(&directory, error))?;
    }
    if light_key::is_drawn(password) {
        let put = light_key::put(&Files::new(path), &made.key(), password);
        put.map_err(|fault| EngineError::LightKey { path: path.to_owned(), fault })?;
    }
    Ok(())
}

/// Makes a repository elsewhere, unless there is one.
pub(super) fn make_store(
    path: &Path,
    store: &Arc<dyn Store>,
    password: &str,
    meter: &SharedMeter,
) -> Result<(), EngineError> {
    let config = Id::of(&[]);
    match store.read(FileKind::Config, &config) {
        Ok(_) => return Ok(()),
        Err(fault) if fault.source.kind() != io::ErrorKind::NotFound => return Err(fault.into()),
        Err(_) => {}
    }
    // One that has lost its config is somebody's, and another key beside its own would open nothing of it.
    for kind in [FileKind::Pack, FileKind::Snapshot] {
        if let Some((id, _)) = store.list(kind)?.first() {
            return Err(EngineError::refused(path, Refusal::NoConfig(store.path(kind, id))));
        }
    }
    let files = Arc::new(Elsewhere { store: store.clone(), is_ours: true });
    let credentials = Credentials::password(password);
    let made = guarded(path, meter, || {
        connect(files, meter)?.init(&credentials, &KeyOptions::default(), &ConfigOptions::default())
    });
    let made = match made {
        // Somebody else was faster; by which password is seen when it is opened.
        Err(_) if !meter.is_stopped() && store.read(FileKind::Config, &config).is_ok() => return Ok(()),
        made => made?,
    };
    if light_key::is_drawn(password) {
        let put = light_key::put(&Files::of(store.clone()), &made.key(), password);
        put.map_err(|fault| EngineError::LightKey { path: path.to_owned(), fault })?;
    }
    Ok(())
}

/// Makes a further key. It says of itself on which host and when it was made.
pub(super) fn add_key(
    path: &Path,
    repository: &Opened,
    password: &str,
    host: &HostName,
    meter: &SharedMeter,
) -> Result<Id, EngineError> {
    let options =
        KeyOptions::default().hostname(host.to_string()).username("manager-fs".to_owned()).with_created(true);
    let id = guarded(path, meter, || repository.add_key(password, &options))?;
    let strange = || EngineError::Library { path: path.to_owned(), what: "a key's id has another length".into() };
    Id::parse(&id.to_hex()).ok_or_else(strange)
}

/// Checks the structure, with `read_data` every byte. What it finds are problems of the meter's; so is a fault that ends
/// the check, for a damaged repository is what it looks for.
pub(super) fn check(
    path: &Path,
    repository: &Opened,
    read_data: bool,
    meter: &SharedMeter,
) -> Result<(), EngineError> {
    let checked = guarded(path, meter, || repository.check(CheckOptions::default().read_data(read_data)));
    let results = match checked {
        Ok(results) => results,
        Err(EngineError::Library { what, .. }) => {
            meter.problem(format!("the check ended early: {what}"));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    for (level, finding) in &results.0 {
        // The level's type cannot be named from outside of the library. Warnings are about what an interrupted backup
        // left behind: unreferenced, harmless, and freed by the next prune.
        match format!("{level:?}").as_str() {
            "Warn" => tracing::info!("{}: {finding}", path.display()),
            _ => meter.problem(finding.to_string()),
        }
    }
    Ok(())
}

/// Frees what no snapshot needs, at once: nobody else is at work.
pub(super) fn prune(path: &Path, repository: &Opened, meter: &SharedMeter) -> Result<(), EngineError> {
    guarded(path, meter, || {
        let options = PruneOptions::default().instant_delete(true).max_repack(LimitOption::Unlimited);
        let plan = repository.prune_plan(&options)?;
        repository.prune(&options, plan)
    })
}

fn directory(path: &Path) -> RusticResult<Arc<dyn WriteBackend>> {
    Ok(Arc::new(LocalBackend::new(path.to_string_lossy(), [])?))
}

fn connect(files: Arc<dyn WriteBackend>, meter: &SharedMeter) -> RusticResult<Repository<()>> {
    let gate = Gate::new(files, meter.clone());
    // A cache of a local repository would only be a second copy of its index.
    let options = RepositoryOptions::default().no_cache(true);
    let backends = RepositoryBackends::new(Arc::new(gate), None);
    Repository::new_with_progress(&options, &backends, Bars(meter.clone()))
}

/// Runs a call of the library, which fails in four ways: by an error, by a panic (it unwraps what a full disk or a
/// damaged pack returns), by taking what came before a panic in one of its threads for all, and in either way because
/// it was stopped.
fn guarded<T>(path: &Path, meter: &SharedMeter, call: impl FnOnce() -> RusticResult<T>) -> Result<T, EngineError> {
    super::ready();
    let ended = catch_unwind(AssertUnwindSafe(call));
    gate::left();
    if let Some(panic) = meter.broken().filter(|_| !meter.is_stopped()) {
        return Err(EngineError::Library { path: path.to_owned(), what: broken(&panic) });
    }
    let what = match ended {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => one_line(error.display_log().trim_start_matches("Error: ")),
        Err(panic) => broken(&panic_text(&*panic)),
    };
    if meter.is_stopped() {
        return Err(EngineError::Stopped);
    }
    Err(EngineError::Library { path: path.to_owned(), what })
}

/// How an operation ends in which a thread of the library's panicked.
pub(super) fn broken(panic: &str) -> String {
    format!("the engine's library failed: {panic}")
}

/// The library's progress, turned into a meter's counters.
#[derive(Debug)]
struct Bars(SharedMeter);

impl ProgressBars for Bars {
    fn progress(&self, kind: ProgressType, prefix: &str) -> Progress {
        if prefix.is_empty() {
            self.0.begin("working")
        } else {
            self.0.begin(prefix)
        }
        Progress::new(Bar { meter: self.0.clone(), bytes: matches!(kind, ProgressType::Bytes) })
    }
}

#[derive(Debug)]
struct Bar {
    meter: SharedMeter,
    bytes: bool,
}

impl RusticProgress for Bar {
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
