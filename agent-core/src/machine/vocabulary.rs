//! What goes into the machine and what comes out: facts, events, effects.

use std::ops::RangeInclusive;

use proto::agent::{ChangeId, Step};
use proto::message::Fault;
use proto::record::SchemaRange;
use proto::{TreeId, TreePath};

use crate::journal::Entry;

/// What does not change while this program runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The version that this program is.
    pub running: Entry,
    /// State schemas that the running program can write.
    pub writes: RangeInclusive<u32>,
    /// State schemas of which something is kept that an earlier version had saved, ascending.
    pub snapshots: Vec<u32>,
    /// The architecture of this machine, as `uname -m` says it.
    pub machine: String,
}

/// A version to change over to, as its verified record describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Its name and tree.
    pub entry: Entry,
    /// Path of the program in its tree.
    pub entry_point: TreePath,
    /// The program's arguments, after its own name.
    pub arguments: Vec<String>,
    /// Its program is unchanged, and run by an adapter.
    pub is_adapted: bool,
    /// State schemas that it reads.
    pub reads: SchemaRange,
    /// Machine of its entry point; `None` when it runs on any.
    pub architecture: Option<String>,
    /// From exec to confirmation, milliseconds.
    pub probation_ms: u64,
    /// Why this host remembers it as bad, if it does.
    pub bad: Option<String>,
}

/// What message A brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Saved {
    /// The change-over that message A was of.
    pub change: ChangeId,
    /// The version that its record describes.
    pub candidate: Candidate,
}

/// Something that happened. Durations are in microseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // The fields are what the line of their variant speaks of.
pub(crate) enum Event {
    /// Message A came.
    SaveAsked { change: ChangeId, record: Vec<u8> },
    /// [`Effect::SaveRecord`] is done: the record is on disk, or is refused.
    Saved { change: ChangeId, result: Result<Box<Candidate>, Reason>, took_us: u64 },
    /// Message B came.
    AttachAsked { change: ChangeId, release: Option<TreeId>, attach: TreeId, lazy: bool, retry_bad: bool },
    /// [`Effect::Stage`] is done.
    StageEnded { change: ChangeId, result: Result<StageDone, StageFault>, took_us: u64 },
    /// Message C came.
    FinishAsked { change: ChangeId, drain_deadline_ms: u64 },
    /// [`Effect::Drain`] is done.
    Drained { change: ChangeId, detail: String, took_us: u64 },
    /// [`Effect::Journal`] is done.
    Journaled { took_us: u64 },
    /// [`Effect::Swap`] is done.
    Swapped { took_us: u64 },
    /// An effect that must succeed failed.
    Failed { what: String },
    /// `execve` came back. `of_the_version`: another try would end in the same way.
    ExecReturned { fault: String, of_the_version: bool },
    /// [`Effect::CheckHealth`] is done.
    Health { result: Result<(), Reason> },
}

/// Why something failed, for people: what an effect's typed error becomes on its way into the machine, which passes it
/// on and never looks into it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Reason(String);

impl Reason {
    /// In words.
    pub(crate) fn new(words: String) -> Self {
        Self(words)
    }

    /// Of any error.
    pub(crate) fn of(error: &dyn std::error::Error) -> Self {
        Self(error.to_string())
    }
}

/// The change-over that brought a version, and what it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The manager's number of it.
    pub change: ChangeId,
    /// The tree that it left.
    pub from: Option<TreeId>,
}

/// A change-over that ended in this program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The manager's number of it.
    pub change: ChangeId,
    /// What a message of it that comes late is answered.
    pub reply: Result<(), Fault>,
}

impl Verdict {
    /// Nothing is left to do.
    pub(crate) fn done(change: ChangeId) -> Self {
        Self { change, reply: Ok(()) }
    }

    /// It was refused, or came to nothing.
    pub(crate) fn refused(change: ChangeId, reason: String) -> Self {
        Self { change, reply: Err(Fault::Refused(reason)) }
    }
}

impl Event {
    /// Whether it is one of the three messages, which must be answered.
    pub(crate) fn is_message(&self) -> bool {
        matches!(self, Event::SaveAsked { .. } | Event::AttachAsked { .. } | Event::FinishAsked { .. })
    }
}

/// A generation is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StageDone {
    /// How long warming took, microseconds.
    pub warm_us: u64,
    /// What was made ready, for people.
    pub detail: String,
}

/// A generation cannot be made ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StageFault {
    /// The tree has no program that can run: the version's own fault.
    OfTheVersion(String),
    /// It could not be fetched or mounted.
    OfTheWorld(String),
}

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // The fields are what the line of their variant speaks of.
pub(crate) enum Effect {
    /// Answer the message that is being handled.
    Answer(Result<(), Fault>),
    /// Verify and save, then [`Event::Saved`].
    SaveRecord { change: ChangeId, record: Vec<u8> },
    /// Write the journal, then [`Event::Journaled`] where the variant says so.
    Journal(JournalWrite),
    /// Make ready beside the running tree, in the background, then [`Event::StageEnded`].
    Stage { target: Box<Saved>, running: TreeId, lazy: bool },
    /// Nobody waits for it any more.
    CancelStage,
    /// Take no new operation, let ongoing ones finish, in the background, then [`Event::Drained`].
    Drain { change: ChangeId, deadline_ms: u64 },
    /// Take operations again, and run on those that stopped.
    Resume,
    /// Point `current` at this tree, then [`Event::Swapped`].
    Swap(TreeId),
    /// Point `current` back. A failure is a warning: the stub puts the link right at its next start.
    SwapBack(TreeId),
    /// Hand over and `execve`; only a failure comes back, as [`Event::ExecReturned`].
    Exec(Box<Saved>),
    /// Keep the evidence, so that the version is not tried again by itself.
    RememberBad { entry: Entry, evidence: String },
    /// Tell the manager, by way of the mount daemon.
    Report { change: ChangeId, from: Option<TreeId>, to: TreeId, step: Step, took_us: Took, detail: String },
    /// Ask the embedding program and our own socket, in the background, then [`Event::Health`].
    CheckHealth { after_ms: u64 },
    /// Tell the stub why this version has not proved itself yet.
    TellUnwell(Reason),
    /// Tell the stub that this version is believed.
    TellConfirmed,
    /// Tell the stub that `execve` came back.
    TellExecReturned,
}

/// How long after a failed health check the next one comes, milliseconds.
const HEALTH_AGAIN_MS: u64 = 200;

impl Effect {
    /// A version has not proved itself: the stub, which has the clock, is told why, and it is tried again.
    pub(crate) fn not_proved(why: Reason) -> Vec<Self> {
        vec![Self::TellUnwell(why), Self::CheckHealth { after_ms: HEALTH_AGAIN_MS }]
    }
}

/// How long a step took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Took {
    /// So many microseconds, which whoever took the step has measured.
    Us(u64),
    /// Since `execve`; the driver knows when that was.
    SinceExec,
}

/// What is written to the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JournalWrite {
    /// This generation is staged. No event.
    Staged(ChangeId, Entry),
    /// Nothing is staged. A failure is a warning. No event.
    NothingStaged,
    /// The intent to change over; the next start is of the new version. [`Event::Journaled`].
    Intent(Box<Saved>),
    /// The intent is taken back. A failure is a warning: two starts later the stub returns by itself. No event.
    Back,
    /// The running version is believed. [`Event::Journaled`].
    Confirmed,
}
