//! The stub at work: what it has in its hands. What it does with that stands beside: `run.rs` is the loop, `spawn.rs`
//! starts a program, `after.rs` follows an end and `carry.rs` an order.

use std::io::{PipeReader, PipeWriter};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Instant;

use proto::agent::{ChangeId, Step, StepEvent};

use super::begin::Begun;
use super::choose::Ends;
use super::door::Door;
use super::held::Held;
use super::lock::Lock;
use super::order::{Desk, Ready};
use super::running::Running;
use super::staging::Staging;
use super::verdict::History;
use super::wanted::Wanted;
use super::{Observer, StubError, io_error};
use crate::AgentPaths;
use crate::control::Client;
use crate::durable::Durability;
use crate::journal::{Entry, Journal, Staged};
use crate::records::Verified;
use crate::report::{Reporter, unix_ms};
use crate::sys::signal::SignalFd;

/// The stub at work.
pub(super) struct Stub<'a> {
    pub(super) paths: AgentPaths,
    /// What runs programs that are no agents by themselves.
    pub(super) adapter: Option<PathBuf>,
    /// What programs write to their standard error: one pipe for all of them, since some outlive their agent.
    pub(super) stderr: (PipeReader, PipeWriter),
    pub(super) observer: &'a mut dyn Observer,
    pub(super) signals: SignalFd,
    pub(super) lock: Lock,
    pub(super) listener: UnixListener,
    pub(super) held: Held,
    pub(super) reporter: Reporter,
    pub(super) journal: Journal,
    pub(super) verified: Verified,
    pub(super) path: PathBuf,
    pub(super) hold: Option<Client>,
    /// The tree of what is to be started, while the daemon has to ask for it.
    pub(super) wanted: Option<Wanted>,
    /// Since when the daemon is there and does not have that tree.
    pub(super) missing_since: Option<Instant>,
    pub(super) ends: Option<Ends>,
    pub(super) staged: Option<Staged>,
    pub(super) program: Program,
    pub(super) history: History,
    /// Why no program runs, for people.
    pub(super) why: String,
    /// A return that has not proved itself yet.
    pub(super) returning: Option<Returning>,
    pub(super) said_ready: bool,
    /// `None` where it could not be made: then orders come to agents alone.
    pub(super) door: Option<Door>,
    pub(super) desk: Desk,
    /// The tree of the order that is here, while it is made ready, and once it is.
    pub(super) staging: Option<Staging>,
    pub(super) ready: Option<Ready>,
    /// The change-over whose end has been reported although it goes on.
    pub(super) told: Option<ChangeId>,
    /// The steps of the order that this stub has carried out, until its version has confirmed.
    pub(super) carried: Vec<StepEvent>,
}

/// What is in the agent's place.
pub(super) enum Program {
    Running(Running),
    /// Nothing; the next start is then.
    Waiting(Instant),
    /// The stub is to end.
    Over,
}

/// A return that has not proved itself yet.
pub(super) struct Returning {
    pub(super) change: ChangeId,
    pub(super) bad: Entry,
    pub(super) reason: String,
    pub(super) since: Instant,
    /// The end of its change-over has been reported: what was returned to did not work at once.
    pub(super) is_told: bool,
}

impl<'a> Stub<'a> {
    pub(super) fn new(
        paths: &AgentPaths,
        adapter: Option<&Path>,
        observer: &'a mut dyn Observer,
        signals: SignalFd,
        held: Held,
        begun: Begun,
    ) -> Result<Self, StubError> {
        // The second thread; everything that must be done with one is behind us.
        let reporter = Reporter::start(paths).map_err(io_error("no thread for reports can be started"))?;
        for event in begun.untold {
            reporter.report(&event, Durability::PowerCut);
        }
        let stderr = std::io::pipe().map_err(io_error("no pipe for what programs say"))?;
        rustix::io::ioctl_fionbio(&stderr.0, true).map_err(|e| io_error("a pipe")(e.into()))?;
        Ok(Self {
            paths: paths.clone(),
            adapter: adapter.map(Path::to_owned),
            stderr,
            observer,
            signals,
            lock: begun.lock,
            listener: begun.listener,
            held,
            reporter,
            journal: begun.journal,
            verified: begun.verified,
            path: begun.path,
            hold: Some(begun.hold),
            wanted: None,
            missing_since: None,
            ends: begun.ends,
            staged: begun.staged,
            program: Program::Over,
            history: History::default(),
            why: String::new(),
            returning: None,
            said_ready: false,
            door: begun.door,
            desk: begun.desk,
            staging: None,
            ready: None,
            told: None,
            carried: begun.carried,
        })
    }

    pub(super) fn report(
        &self,
        change: ChangeId,
        from: Option<&Entry>,
        to: &Entry,
        step: Step,
        duration_us: u64,
        detail: String,
    ) {
        let event = StepEvent {
            change,
            product: self.paths.product().clone(),
            from: from.map(|entry| entry.tree),
            to: to.tree,
            step,
            at_unix_ms: unix_ms(),
            duration_us,
            detail,
        };
        self.reporter.report(&event, Durability::PowerCut);
    }
}

pub(super) fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
