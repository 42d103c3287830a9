//! From nothing to something that can be started: lock, journal, record, attachment, namespaces, socket.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proto::daemon::{Attached, DaemonReply, DaemonRequest};
use proto::message::Fault;
use proto::{GenerationRef, TreeId};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::choose::{self, Choice, Ends};
use super::lock::Lock;
use super::{Observer, StubError, io_error};
use crate::AgentPaths;
use crate::control::{Client, ControlError};
use crate::durable;
use crate::journal::{Journal, Staged};
use crate::records::{self, Verified};
use crate::sys::signal::SignalFd;
use crate::sys::{namespace, socket};

/// How long the mount daemon may be silent: a first attach fetches the manifest.
const SILENCE: Duration = Duration::from_secs(60);
/// How long it may be silent when it is only asked what it has.
const QUICK_SILENCE: Duration = Duration::from_secs(2);
/// Between two looks for a daemon that is not there.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A daemon that is there has this long to give the tree that the journal names, before another one is started.
const FALL_BACK_AFTER: Duration = Duration::from_secs(2);

/// All that the first program needs.
pub(crate) struct Begun {
    pub(crate) lock: Lock,
    pub(crate) listener: UnixListener,
    /// As it is to be written.
    pub(crate) journal: Journal,
    pub(crate) verified: Verified,
    /// The tree's root.
    pub(crate) path: PathBuf,
    /// The daemon keeps the tree attached while this connection is open; by then the journal does.
    pub(crate) hold: Client,
    /// A change-over that is over before anything is started.
    pub(crate) ends: Option<Ends>,
    /// What the last agent was told to change over to, and had not begun to.
    pub(crate) staged: Option<Staged>,
}

/// What waiting is told to end by, and whom to tell.
pub(super) struct Waiting<'a> {
    pub(super) paths: &'a AgentPaths,
    pub(super) signals: &'a mut SignalFd,
    pub(super) observer: &'a mut dyn Observer,
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
    let mut waiting = Waiting { paths, signals, observer };
    let mut choices = choose::look(paths, waiting.observer);
    if let Some(fault) = &choices.fault {
        waiting.observer.say(&fault.to_string());
    }
    if choices.ways.is_empty() {
        match choices.fault {
            Some(fault) => return Err(fault.into()),
            None => match waiting.newest()? {
                Some(verified) => choices.ways.push(Choice::first(verified)),
                None => return Ok(None),
            },
        }
    }
    let Some((choice, attached, hold)) = waiting.hold_best(choices.ways)? else { return Ok(None) };
    if let Some(pid) = attached.namespace_pid {
        namespace::enter(pid).map_err(|source| StubError::Namespace { pid, source })?;
    }
    let listener = socket::replace(&paths.socket()).map_err(io_error("the operations socket cannot be bound"))?;
    let path = PathBuf::from(attached.path);
    let Choice { verified, journal, ends } = choice;
    Ok(Some(Begun { lock, listener, journal, verified, path, hold, ends, staged: choices.staged }))
}

/// The newest record if the daemon has it at once: for a first version that does not come up.
pub(crate) fn newest_now(paths: &AgentPaths) -> Option<Verified> {
    let request = DaemonRequest::Newest { product: paths.product().clone() };
    let reply = Client::ask(&paths.daemon_socket(), &request, QUICK_SILENCE).ok()?;
    match reply {
        DaemonReply::Record(bytes) => records::save(paths, &bytes, &[]).ok(),
        DaemonReply::Done
        | DaemonReply::Status(_)
        | DaemonReply::Attached(_)
        | DaemonReply::Bundle(_)
        | DaemonReply::Fault(_) => None,
    }
}

/// What the daemon made of a request.
enum Answer {
    Reply(DaemonReply, Client),
    /// It is there, and cannot just now.
    NotNow(String),
    /// It says no for good.
    No(StubError),
    /// It is not there, or does not speak.
    Away(ControlError),
}

impl Waiting<'_> {
    /// A first start: the newest record that the mount daemon knows. `None`: told to end meanwhile.
    fn newest(&mut self) -> Result<Option<Verified>, StubError> {
        let request = DaemonRequest::Newest { product: self.paths.product().clone() };
        let what = format!("the newest version of {}", self.paths.product());
        let Some((reply, _)) = self.ask(&request, &what)? else { return Ok(None) };
        match reply {
            DaemonReply::Record(bytes) => Ok(Some(records::save(self.paths, &bytes, &[])?)),
            other => Err(unexpected(&what, &other)),
        }
    }

    /// Has the daemon attach a tree for as long as the connection is open. `None`: told to end meanwhile.
    pub(super) fn hold(&mut self, tree: TreeId) -> Result<Option<(Attached, Client)>, StubError> {
        let what = format!("tree {tree}");
        let Some((reply, client)) = self.ask(&hold_of(tree), &what)? else { return Ok(None) };
        match reply {
            DaemonReply::Attached(attached) if attached.tree == tree => Ok(Some((attached, client))),
            other => Err(unexpected(&what, &other)),
        }
    }

    /// Has the daemon attach the first of these that it can. The first has some time for itself. `None`: told to end
    /// meanwhile.
    fn hold_best(&mut self, mut ways: Vec<Choice>) -> Result<Option<(Choice, Attached, Client)>, StubError> {
        let mut said = String::new();
        let mut there_since: Option<Instant> = None;
        let mut why_not_first: Option<String> = None;
        let first = ways.first().map(|way| way.verified.record.tree).unwrap_or(TreeId::of(&[]));
        loop {
            let patient = there_since.is_none_or(|since| since.elapsed() < FALL_BACK_AFTER);
            let mut at = 0;
            while at < if patient { 1 } else { ways.len() } {
                let tree = ways[at].verified.record.tree;
                let what = format!("tree {tree}");
                let why = match self.ask_once(&hold_of(tree), &what) {
                    Answer::Reply(DaemonReply::Attached(attached), hold) if attached.tree == tree => {
                        let mut choice = ways.swap_remove(at);
                        if let Some(why) = why_not_first.filter(|_| tree != first) {
                            choice.because(&why);
                            self.observer.say(&choice.journal.reason);
                        }
                        return Ok(Some((choice, attached, hold)));
                    }
                    Answer::Reply(other, _) => return Err(unexpected(&what, &other)),
                    Answer::No(error) if ways.len() == 1 => return Err(error),
                    Answer::No(error) => {
                        self.observer.say(&error.to_string());
                        ways.remove(at);
                        why_not_first.get_or_insert(error.to_string());
                        continue;
                    }
                    Answer::NotNow(why) => {
                        there_since.get_or_insert_with(Instant::now);
                        why
                    }
                    Answer::Away(e) => {
                        there_since = None;
                        e.to_string()
                    }
                };
                if at == 0 {
                    why_not_first = Some(why.clone());
                    if why != said {
                        self.observer.say(&format!("waiting for the mount daemon to give {what}: {why}"));
                        said = why;
                    }
                }
                at += 1;
            }
            if pause(self.signals, LOOK_EVERY) {
                return Ok(None);
            }
        }
    }

    /// Asks the daemon, waiting for it to be there and able. `None`: told to end meanwhile.
    fn ask(&mut self, request: &DaemonRequest, what: &str) -> Result<Option<(DaemonReply, Client)>, StubError> {
        let mut said = String::new();
        loop {
            let why = match self.ask_once(request, what) {
                Answer::Reply(reply, client) => return Ok(Some((reply, client))),
                Answer::No(error) => return Err(error),
                Answer::NotNow(why) => why,
                Answer::Away(e) => e.to_string(),
            };
            if why != said {
                self.observer.say(&format!("waiting for the mount daemon to give {what}: {why}"));
                said = why;
            }
            if pause(self.signals, LOOK_EVERY) {
                return Ok(None);
            }
        }
    }

    fn ask_once(&self, request: &DaemonRequest, what: &str) -> Answer {
        let reply = Client::connect(&self.paths.daemon_socket()).and_then(|mut client| {
            let reply: DaemonReply = client.request(request, Some(SILENCE), |_: ()| {})?;
            Ok((reply, client))
        });
        match reply {
            Ok((DaemonReply::Fault(fault @ (Fault::Unavailable(_) | Fault::Failed(_))), _)) => {
                Answer::NotNow(fault.to_string())
            }
            Ok((DaemonReply::Fault(fault), _)) => {
                Answer::No(StubError::Daemon { what: what.to_owned(), fault: fault.to_string() })
            }
            Ok((reply, client)) => Answer::Reply(reply, client),
            Err(e) => Answer::Away(e),
        }
    }
}

fn hold_of(tree: TreeId) -> DaemonRequest {
    DaemonRequest::Hold { generation: GenerationRef::TreePrefix(tree.to_hex()) }
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

fn unexpected(what: &str, reply: &DaemonReply) -> StubError {
    let kind = match reply {
        DaemonReply::Done => "Done",
        DaemonReply::Status(_) => "a status",
        DaemonReply::Record(_) => "a record",
        DaemonReply::Attached(_) => "another tree",
        DaemonReply::Bundle(_) => "a bundle",
        DaemonReply::Fault(_) => "a fault",
    };
    StubError::Daemon { what: what.to_owned(), fault: format!("it answered with {kind}") }
}
