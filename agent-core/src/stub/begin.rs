//! From nothing to something that can be started: lock, journal, record, attachment, namespaces, socket.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use proto::daemon::{Attached, DaemonReply, DaemonRequest};
use proto::message::Fault;
use proto::{GenerationRef, TreeId};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::lock::Lock;
use super::verdict::{Cause, Verdict, judge};
use super::{Observer, StubError, io_error};
use crate::AgentPaths;
use crate::control::Client;
use crate::durable;
use crate::journal::{Journal, Phase};
use crate::records::{self, Verified};
use crate::sys::signal::SignalFd;
use crate::sys::{namespace, socket};

/// How long the mount daemon may be silent: a first attach fetches the manifest.
const SILENCE: Duration = Duration::from_secs(60);
/// Between two looks for a daemon that is not there.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A probation that a stub finds undecided is started this often in all.
const ATTEMPTS_MAX: u32 = 2;

/// All that the first program needs.
pub(crate) struct Begun {
    pub(crate) lock: Lock,
    pub(crate) listener: UnixListener,
    pub(crate) journal: Journal,
    pub(crate) verified: Verified,
    /// The tree's root.
    pub(crate) path: PathBuf,
    /// The daemon keeps the tree attached while this connection is open; by then the journal does.
    pub(crate) hold: Client,
    /// A return that is decided before anything is started.
    pub(crate) first: Option<Verdict>,
}

/// `None`: told to end meanwhile.
pub(crate) fn begin(
    paths: &AgentPaths,
    signals: &mut SignalFd,
    observer: &mut dyn Observer,
) -> Result<Option<Begun>, StubError> {
    durable::create_dir(&paths.directory())?;
    if let Some(dir) = paths.link().parent() {
        durable::create_dir(dir)?;
    }
    let Some(lock) = Lock::take(paths, signals, observer)? else { return Ok(None) };
    let (mut journal, mut verified, first) = match Journal::read(&paths.journal())? {
        Some(journal) => known(paths, journal)?,
        None => match newest(paths, signals, observer)? {
            Some(verified) => (Journal::first(verified.entry()), verified, None),
            None => return Ok(None),
        },
    };
    if let Some(Verdict::Return { good, .. }) = &first {
        verified = records::load(paths, &good.version)?;
    }
    let Some((attached, hold)) = hold(paths, verified.record.tree, signals, observer)? else { return Ok(None) };
    if let Some(pid) = attached.namespace_pid {
        namespace::enter(pid).map_err(|source| StubError::Namespace { pid, source })?;
    }
    if first.is_none() {
        // Written before the start: from here on the journal keeps the tree, whatever becomes of this process.
        correct(&mut journal, &verified, observer);
        journal.write(&paths.journal())?;
    }
    let listener = socket::replace(&paths.socket()).map_err(io_error("the operations socket cannot be bound"))?;
    let path = PathBuf::from(attached.path);
    Ok(Some(Begun { lock, listener, journal, verified, path, hold, first }))
}

/// A later start: what the journal says.
fn known(paths: &AgentPaths, mut journal: Journal) -> Result<(Journal, Verified, Option<Verdict>), StubError> {
    // What was being staged is not known to anybody any more.
    journal.staged = None;
    let mut first = None;
    if let Phase::Probation { attempts, .. } = &mut journal.phase {
        *attempts += 1;
        if *attempts > ATTEMPTS_MAX {
            let verdict = judge(&journal, &Cause::Undecided, 0);
            first = matches!(verdict, Verdict::Return { .. }).then_some(verdict);
        }
    }
    let verified = records::load(paths, &journal.current.version)?;
    Ok((journal, verified, first))
}

/// The record is signed and the journal is not: where they differ the record is right.
fn correct(journal: &mut Journal, verified: &Verified, observer: &mut dyn Observer) {
    let (tree, name) = (verified.record.tree, verified.record.name());
    if journal.current.tree != tree {
        let file = &journal.current.version;
        observer.say(&format!("the saved metadata {file}.record is {name}: starting its tree {tree}"));
        journal.current.tree = tree;
    }
}

/// A first start: the newest record that the mount daemon knows.
fn newest(
    paths: &AgentPaths,
    signals: &mut SignalFd,
    observer: &mut dyn Observer,
) -> Result<Option<Verified>, StubError> {
    let request = DaemonRequest::Newest { product: paths.product().clone() };
    let what = format!("the newest version of {}", paths.product());
    let Some((reply, _)) = ask(paths, &request, &what, signals, observer)? else { return Ok(None) };
    match reply {
        DaemonReply::Record(bytes) => Ok(Some(records::save(paths, &bytes, &[])?)),
        other => Err(unexpected(what, &other)),
    }
}

/// The newest record if the daemon has it at once: for a first version that does not come up.
pub(crate) fn newest_now(paths: &AgentPaths) -> Option<Verified> {
    let request = DaemonRequest::Newest { product: paths.product().clone() };
    let reply = Client::ask(&paths.daemon_socket(), &request, Duration::from_secs(2)).ok()?;
    match reply {
        DaemonReply::Record(bytes) => records::save(paths, &bytes, &[]).ok(),
        DaemonReply::Done
        | DaemonReply::Status(_)
        | DaemonReply::Attached(_)
        | DaemonReply::Bundle(_)
        | DaemonReply::Fault(_) => None,
    }
}

/// Has the daemon attach a tree for as long as the connection is open.
pub(crate) fn hold(
    paths: &AgentPaths,
    tree: TreeId,
    signals: &mut SignalFd,
    observer: &mut dyn Observer,
) -> Result<Option<(Attached, Client)>, StubError> {
    let request = DaemonRequest::Hold { generation: GenerationRef::TreePrefix(tree.to_hex()) };
    let what = format!("tree {tree}");
    let Some((reply, client)) = ask(paths, &request, &what, signals, observer)? else { return Ok(None) };
    match reply {
        DaemonReply::Attached(attached) if attached.tree == tree => Ok(Some((attached, client))),
        other => Err(unexpected(what, &other)),
    }
}

/// Asks the daemon, waiting for it to be there and able. `None`: told to end meanwhile.
fn ask(
    paths: &AgentPaths,
    request: &DaemonRequest,
    what: &str,
    signals: &mut SignalFd,
    observer: &mut dyn Observer,
) -> Result<Option<(DaemonReply, Client)>, StubError> {
    let mut said = String::new();
    loop {
        let reply = Client::connect(&paths.daemon_socket()).and_then(|mut client| {
            let reply: DaemonReply = client.request(request, Some(SILENCE), |_: ()| {})?;
            Ok((reply, client))
        });
        let why = match reply {
            Ok((DaemonReply::Fault(fault @ (Fault::Unavailable(_) | Fault::Failed(_))), _)) => fault.to_string(),
            Ok((DaemonReply::Fault(fault), _)) => {
                return Err(StubError::Daemon { what: what.to_owned(), fault: fault.to_string() });
            }
            Ok(answer) => return Ok(Some(answer)),
            Err(e) => e.to_string(),
        };
        if why != said {
            observer.say(&format!("waiting for the mount daemon to give {what}: {why}"));
            said = why;
        }
        if pause(signals, LOOK_EVERY) {
            return Ok(None);
        }
    }
}

/// Waits, and says whether the stub was told to end meanwhile.
pub(crate) fn pause(signals: &mut SignalFd, time: Duration) -> bool {
    let timeout = Timespec::try_from(time).ok();
    let mut fds = [PollFd::new(&*signals, PollFlags::IN)];
    let _ = rustix::event::poll(&mut fds, timeout.as_ref());
    while let Ok(Some(signal)) = signals.read() {
        if signal != libc::SIGCHLD {
            return true;
        }
    }
    false
}

fn unexpected(what: String, reply: &DaemonReply) -> StubError {
    let kind = match reply {
        DaemonReply::Done => "Done",
        DaemonReply::Status(_) => "a status",
        DaemonReply::Record(_) => "a record",
        DaemonReply::Attached(_) => "another tree",
        DaemonReply::Bundle(_) => "a bundle",
        DaemonReply::Fault(_) => "a fault",
    };
    StubError::Daemon { what, fault: format!("it answered with {kind}") }
}
