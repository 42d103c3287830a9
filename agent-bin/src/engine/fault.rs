//! Why the engine did not do what it was asked.

use std::any::Any;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use agent_core::NotPermitted;
use proto::recovery::SealFault;
use proto::{CommandName, RepositoryName};

use super::beneath::PathFault;
use super::format::blobs::BlobFault;
use super::format::chunker::ChunkerFault;
use super::format::files::FileFault;
use super::format::id::Id;
use super::format::locks::LockFault;
use super::format::packs::StoreFault;
use super::light_key::LightKeyFault;
use super::retention::RetentionFault;
use super::selection::SelectionFault;
use super::snapshots::ReferenceFault;
use crate::kept::KeptFault;
use crate::storage::StorageFault;
use crate::wire::web::WebFault;

/// An operation failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// [`super::meter::Meter::stop`] was called. Whatever was finished by then stays; nothing half-done is visible.
    #[error("stopped on request")]
    Stopped,
    /// The engine itself stopped, for the reason given.
    #[error("{0}")]
    GivenUp(String),
    /// No thread could be started.
    #[error("no thread can be started: {0}")]
    Thread(io::Error),
    /// The thread that did the work is gone.
    #[error("the operation ended without a result")]
    Silent,
    /// A file or directory of the host could not be used.
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    /// A path that was named in the order is none that the agent takes.
    #[error("{path}: {why}", path = path.display())]
    Refused { path: PathBuf, why: Refusal },
    /// What is to be left out, or taken, is not clear.
    #[error("{0}")]
    Selection(#[from] SelectionFault),
    /// It cannot be said what stays.
    #[error("what is to be kept cannot be decided: {0}")]
    Retention(#[from] RetentionFault),
    /// A tag that snapshots cannot have.
    #[error("tag {0:?}: {1}")]
    Tag(String, &'static str),
    /// The host's administrator does not allow it to be read.
    #[error(transparent)]
    NotPermitted(#[from] NotPermitted),
    /// The password file could not be read or made.
    #[error("password file {path}: {why}", path = path.display())]
    Password { path: PathBuf, why: PasswordFault },
    /// Somebody else works on the repository in a way that does not go together with this operation.
    #[error("repository {path}: {fault}", path = path.display())]
    Lock { path: PathBuf, fault: LockFault },
    /// There is no repository where one is needed.
    #[error("repository {path}: there is no repository here (a backup makes one)", path = .0.display())]
    NoRepository(PathBuf),
    /// A snapshot that was asked for is not there, or it is not clear which is meant.
    #[error("repository {path}: {fault}", path = path.display())]
    Reference { path: PathBuf, fault: ReferenceFault },
    /// What was asked for cannot be had of the repository.
    #[error("repository {path}: {what} cannot be read: {fault}", path = path.display())]
    Damaged { path: PathBuf, what: String, fault: Box<BlobFault> },
    /// The manager named a served repository in a way that this agent does not know.
    #[error("the way to the repository cannot be understood; upgrade this agent, or its manager")]
    Door,
    /// Only a media agent does.
    #[error("this agent serves no repositories")]
    NoDesk,
    /// Nothing of this name is.
    #[error("this host serves no repository {0}; order `repository create` again")]
    NotServed(RepositoryName),
    /// A key of a repository is not made, removed, or sealed.
    #[error("repository {path}: {fault}", path = path.display())]
    Key { path: PathBuf, fault: KeyFault },
    /// A repository that was made has no key but the library's.
    #[error("repository {path}: a key is not made: {fault}", path = path.display())]
    LightKey { path: PathBuf, fault: LightKeyFault },
    /// It does not come about that it is served, or no longer.
    #[error(transparent)]
    Desk(#[from] super::DeskFault),
    /// What this host serves cannot be read.
    #[error(transparent)]
    Kept(#[from] KeptFault),
    /// A command of the host's does not do what it is for.
    #[error("command {name} ({moment}): {fault}")]
    Command { name: CommandName, moment: &'static str, fault: Box<CommandFault> },
    /// What lets this host in to a storage is not to be had.
    #[error(transparent)]
    Storage(#[from] StorageFault),
    /// A server cannot be believed.
    #[error(transparent)]
    Web(#[from] WebFault),
    /// Nothing may be removed, because not everything can be read.
    #[error(
        "repository {path}: nothing is removed while a part of it cannot be read: {what}{more}; see `job check`",
        path = path.display(),
        more = if *more > 0 { format!(" (and {more} more)") } else { String::new() }
    )]
    NotSound { path: PathBuf, what: String, more: usize },
    /// The repository takes nothing.
    #[error("repository {path}: {fault}", path = path.display())]
    Store { path: PathBuf, fault: StoreFault },
    /// The repository says nothing usable of how files are cut.
    #[error("repository {path}: {fault}", path = path.display())]
    Chunker { path: PathBuf, fault: ChunkerFault },
    /// The engine's library failed; in its own words.
    #[error("repository {path}: {what}", path = path.display())]
    Library { path: PathBuf, what: String },
}

/// Why a path is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("a repository is named by its absolute path, or by the URL of a storage")]
    RepositoryNotAbsolute,
    #[error("only the media agent that serves it removes anything from it: order it of that host")]
    NotAlone,
    #[error("is not a repository, and not empty (there is {0:?}); name another directory")]
    NotARepository(std::ffi::OsString),
    #[error("has no config, and yet {file}: it was a repository once; name another place", file = .0.display())]
    NoConfig(PathBuf),
    #[error("a source is named by its absolute path, without `..`")]
    SourceNotAbsolute,
    #[error("is a symbolic link; name what it leads to: {to}", to = .0.display())]
    SourceIsLink(PathBuf),
    #[error("is a {0}, and only a file has a content to show")]
    NotAFile(&'static str),
    #[error("has {0} bytes; 512 KiB can be shown, a larger file can be restored")]
    TooLargeToDump(u64),
    #[error("a restore's target is named by its absolute path, without `..`")]
    TargetNotAbsolute,
    #[error("{link} is a symbolic link, and a restore follows none; name the directory itself", link = .0.display())]
    TargetBehindLink(PathBuf),
    #[error("is not empty; restore into a new or empty directory")]
    TargetNotEmpty,
    #[error("an unfinished restore of snapshot {0} is in it")]
    TargetUnfinished(String),
    #[error("a restore test of the same job is under way there")]
    TestUnderWay,
    #[error("a restore test of {bytes} bytes wants twice as many free, and there are {free}")]
    NoRoomForTest { bytes: u64, free: u64 },
}

/// Why a command did not do what it is for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandFault {
    #[error("{program} cannot be run: {error}", program = program.display())]
    NotRun { program: PathBuf, error: io::Error },
    #[error(
        "{program} is not run: others than root and the agent's user can write it (owner {owner}, mode {mode:04o})",
        program = program.display()
    )]
    NotTrusted { program: PathBuf, owner: u32, mode: u32 },
    #[error("it cannot be waited for: {0}")]
    Io(#[from] io::Error),
    #[error("it has not ended within {} s, and was killed{}", .after.as_secs(), said_so(.said))]
    Late { after: Duration, said: Vec<String> },
    #[error("it ended with {status}{}", said_so(.said))]
    Failed { status: ExitStatus, said: Vec<String> },
    #[error("what it prints cannot be read")]
    Unread,
}

fn said_so(lines: &[String]) -> String {
    if lines.is_empty() { String::new() } else { format!(": {}", lines.join(" / ")) }
}

/// Why a key is not made, removed or sealed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyFault {
    #[error("'{0}' is no id of a key: 64 hexadecimal digits, which `repository key list` shows")]
    NoId(String),
    #[error("there is no key {0}")]
    Unknown(Id),
    #[error("key {0} is the one that the agent itself opens the repository by")]
    Own(Id),
    #[error("no random bytes: {0}")]
    Random(io::Error),
    #[error("{0}")]
    Seal(#[from] SealFault),
    #[error("the library does not say by which key it is open")]
    NotSaid,
}

/// Why a password cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PasswordFault {
    #[error("cannot be made: {0}")]
    Make(io::Error),
    #[error("{0}")]
    Read(io::Error),
    #[error("is empty")]
    Empty,
    #[error("is no plain file of at most 64 KiB")]
    NoFile,
    #[error("can be written by others than root and the agent's user (owner {owner}, mode {mode:04o})")]
    NotTrusted { owner: u32, mode: u32 },
}

impl EngineError {
    /// A panic that no closer place caught.
    pub(crate) fn panicked(at: &proto::agent::Repository, panic: &(dyn Any + Send)) -> Self {
        EngineError::Library { path: PathBuf::from(&at.path), what: format!("failed: {}", panic_text(panic)) }
    }

    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        EngineError::Io { path: path.to_owned(), source }
    }

    pub(super) fn refused(path: &Path, why: Refusal) -> Self {
        EngineError::Refused { path: path.to_owned(), why }
    }
}

impl From<PathFault> for EngineError {
    fn from(fault: PathFault) -> Self {
        match fault {
            PathFault::Link(link) => EngineError::refused(&link.clone(), Refusal::TargetBehindLink(link)),
            PathFault::Io { path, source } => EngineError::Io { path, source },
        }
    }
}

impl From<FileFault> for EngineError {
    fn from(fault: FileFault) -> Self {
        EngineError::Io { path: fault.path, source: fault.source }
    }
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    super::meter::one_line(text.unwrap_or("it ended without saying why"))
}
