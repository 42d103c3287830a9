//! A tree that the mount daemon is to attach. What this host has is attached at once; for anything else the daemon asks the
//! manager, which may take as long as a network takes, and the stub has other things to do meanwhile.

use std::time::{Duration, Instant};

use proto::daemon::{Attached, DaemonReply, DaemonRequest};
use proto::message::Fault;
use proto::{GenerationRef, TreeId};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::StubError;
use crate::AgentPaths;
use crate::control::{Client, ControlError};

/// How long the mount daemon may be silent: a first attach fetches the manifest, one after a boot verifies the objects.
const SILENCE: Duration = Duration::from_secs(60);
/// A daemon that has begun to answer, or to take a question, does not stop in the middle.
const REST: Duration = Duration::from_secs(2);

/// A question to the daemon for whose answer nobody waits.
#[derive(Debug)]
pub(super) struct Question {
    client: Client,
    since: Instant,
}

/// What became of it.
pub(super) enum Heard {
    /// There is no answer yet.
    Nothing(Question),
    /// What the answer says holds as long as the connection does.
    Reply(DaemonReply, Client),
    Away(ControlError),
}

impl Question {
    pub(super) fn ask(paths: &AgentPaths, request: &DaemonRequest) -> Result<Self, ControlError> {
        let mut client = Client::connect(&paths.daemon_socket())?;
        client.send(request, Some(REST))?;
        Ok(Self { client, since: Instant::now() })
    }

    /// Readable when there is an answer.
    pub(super) fn fd(&self) -> PollFd<'_> {
        PollFd::new(self.client.stream(), PollFlags::IN)
    }

    pub(super) fn hear(mut self) -> Heard {
        let is_answered = rustix::event::poll(&mut [self.fd()], Some(&Timespec::default())).is_ok_and(|n| n > 0);
        if is_answered {
            return match self.client.receive(Some(REST), &mut |_: ()| {}) {
                Ok(reply) => Heard::Reply(reply, self.client),
                Err(e) => Heard::Away(e),
            };
        }
        if self.since.elapsed() < SILENCE { Heard::Nothing(self) } else { Heard::Away(ControlError::Silent(SILENCE)) }
    }
}

/// A tree, and what the daemon has been asked of it.
#[derive(Debug)]
pub(super) struct Wanted {
    tree: TreeId,
    asked: Option<(Source, Question)>,
    /// Why the daemon did not have it when it was asked last, for people.
    why: Option<String>,
}

/// Where a tree may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// From this host.
    Here,
    /// From the manager: it is not on this host.
    Anywhere,
    /// A daemon of an earlier version does not tell the two apart.
    HereOrAnywhere,
}

/// Where the daemon stands with it.
pub(super) enum Stand {
    /// Attached, as long as the connection is open.
    Attached(Attached, Client),
    /// It is at it.
    Asked,
    /// It is there, and does not have it; it may be asking the manager.
    Without(String),
    /// It says no for good.
    No(StubError),
    /// It is not there, or does not speak.
    Away(ControlError),
}

impl Wanted {
    pub(super) fn new(tree: TreeId) -> Self {
        Self { tree, asked: None, why: None }
    }

    pub(super) fn tree(&self) -> TreeId {
        self.tree
    }

    /// Readable when there is something new.
    pub(super) fn fd(&self) -> Option<PollFd<'_>> {
        let (_, question) = self.asked.as_ref()?;
        Some(question.fd())
    }

    /// Asks, or hears what has been answered. Never waits.
    pub(super) fn look(&mut self, paths: &AgentPaths) -> Stand {
        let Some((from, question)) = self.asked.take() else { return self.ask(paths, Source::Here) };
        match question.hear() {
            Heard::Nothing(question) => {
                self.asked = Some((from, question));
                self.stand(from)
            }
            Heard::Reply(DaemonReply::Fault(Fault::BadRequest(_)), _) if from == Source::Here => {
                self.ask(paths, Source::HereOrAnywhere)
            }
            Heard::Reply(DaemonReply::Fault(fault), _) if from == Source::Here => {
                self.why.get_or_insert_with(|| fault.to_string());
                self.ask(paths, Source::Anywhere)
            }
            Heard::Reply(reply, client) => self.judge(reply, client),
            Heard::Away(e) => Stand::Away(e),
        }
    }

    fn ask(&mut self, paths: &AgentPaths, from: Source) -> Stand {
        let request = match from {
            Source::Here => DaemonRequest::HoldLocal { tree: self.tree },
            Source::Anywhere | Source::HereOrAnywhere => {
                DaemonRequest::Hold { generation: GenerationRef::TreePrefix(self.tree.to_hex()) }
            }
        };
        match Question::ask(paths, &request) {
            Ok(question) => {
                self.asked = Some((from, question));
                self.stand(from)
            }
            Err(e) => Stand::Away(e),
        }
    }

    fn stand(&self, from: Source) -> Stand {
        match from {
            Source::Here | Source::HereOrAnywhere => Stand::Asked,
            Source::Anywhere => Stand::Without(self.why.clone().unwrap_or_default()),
        }
    }

    fn judge(&mut self, reply: DaemonReply, client: Client) -> Stand {
        let what = format!("tree {}", self.tree);
        match reply {
            DaemonReply::Attached(attached) if attached.tree == self.tree => Stand::Attached(attached, client),
            DaemonReply::Fault(fault @ (Fault::Unavailable(_) | Fault::Failed(_))) => {
                Stand::Without(self.why.insert(fault.to_string()).clone())
            }
            DaemonReply::Fault(fault) => Stand::No(StubError::Daemon { what, fault: fault.to_string() }),
            other => Stand::No(unexpected(&what, &other)),
        }
    }
}

/// A tree that this host has, if the daemon attaches it in a moment.
pub(super) fn held_here(paths: &AgentPaths, tree: TreeId) -> Option<(Attached, Client)> {
    let mut client = Client::connect(&paths.daemon_socket()).ok()?;
    match client.request(&DaemonRequest::HoldLocal { tree }, Some(REST), |_: ()| {}).ok()? {
        DaemonReply::Attached(attached) if attached.tree == tree => Some((attached, client)),
        _ => None,
    }
}

/// The daemon answered with something that is no answer to this.
pub(super) fn unexpected(what: &str, reply: &DaemonReply) -> StubError {
    let kind = match reply {
        DaemonReply::Done => "Done",
        DaemonReply::Status(_) => "a status",
        DaemonReply::Record(_) => "a record",
        DaemonReply::Attached(_) => "another tree",
        DaemonReply::Bundle(_) => "a bundle",
        DaemonReply::Checked(_) => "a check",
        DaemonReply::Traced(_) => "a trace",
        DaemonReply::Fault(_) => "a fault",
    };
    StubError::Daemon { what: what.to_owned(), fault: format!("it answered with {kind}") }
}
