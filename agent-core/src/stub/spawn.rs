//! Starting a program.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::evidence::Tail;
use super::running::Running;
use super::verdict::Cause;
use super::wanted::{Stand, Wanted};
use super::watch::Stub;
use crate::adapter::Start;
use crate::channel::Channel;
use crate::durable::FileFault;
use crate::generation::Attachment;
use crate::handoff::{self, variable};
use crate::journal::Phase;
use crate::moments::{self, Moment};
use crate::records::{self, RecordError};
use crate::{exec, swap, sys};

/// How long a version that is not on probation may take to serve, at least.
const SERVING_PATIENCE_MS: u64 = 30_000;

/// By when something must have happened, and how long that is, milliseconds; `None`: nothing must.
type Deadline = Option<(Instant, u64)>;

impl Stub<'_> {
    /// Starts the current version's program.
    pub(super) fn spawn(&mut self) -> Result<Running, Cause> {
        let world = |fault: String| Cause::NotStarted { fault, of_the_version: false };
        self.follow_journal().map_err(|e| world(e.to_string()))?;
        let program = self.program()?;
        if let Err(e) = records::keep(&self.paths, &self.verified) {
            self.observer.say(&format!("the saved metadata has gone, and cannot be saved again: {e}"));
        }
        let tree = self.verified.record.tree;
        let link = self.paths.link();
        let linked = moments::reach(Moment::StubLink, &link).map_err(|e| FileFault::io(&link, e));
        if let Err(e) = linked.and_then(|()| swap::swap(&self.paths, &tree, &self.path)) {
            // Programs are started by the tree's own path; the link is for others, and the next start puts it right.
            self.observer.say(&format!("going on without the link: {e}"));
        }
        let io = |e: io::Error| world(e.to_string());
        let (ours, theirs) = Channel::pair().map_err(io)?;
        let stderr = self.stderr.1.try_clone().map_err(io)?;
        let decided = self.journal.to_bytes(&self.paths.journal()).map_err(|e| world(e.to_string()))?;
        let start = handoff::seal_in_memory("start", &decided).map_err(io)?;
        if matches!(self.journal.phase, Phase::Probation { .. }) {
            self.held.begin_trial();
        }
        let held = self.held.current();
        let list = held.to_memory().map_err(io)?;
        let fds = [
            (variable::START_FD, start.as_fd()),
            (variable::INHERITED_FD, list.as_fd()),
            (variable::OPERATIONS_FD, self.listener.as_fd()),
            (variable::STUB_FD, theirs.as_fd()),
            (variable::LOCK_FD, self.lock.as_fd()),
        ];
        let metadata = &self.verified.record.metadata;
        let is_adapted = metadata.adapter.is_some();
        let start = Start::of(program, &metadata.arguments);
        let start = start.by(self.adapter.as_deref(), is_adapted, &self.path).map_err(|e| world(e.to_string()))?;
        let Start { program, arguments } = start;
        let mut environment = exec::environment(&self.paths, &fds);
        environment.remove(OsStr::new(variable::ADAPTER));
        environment.extend(self.adapter.iter().map(|adapter| (variable::ADAPTER.into(), adapter.into())));
        let invocation = sys::exec::Invocation { arguments, environment };
        let inherited: Vec<_> = fds.iter().map(|(_, fd)| *fd).chain(held.descriptors()).collect();
        moments::reach(Moment::StubSpawn, &program).map_err(io)?;
        let child = sys::exec::spawn(&program, &invocation, stderr.into(), &inherited).map_err(|e| {
            // What cannot be executed of an adapter is this host's.
            let of_the_version = !is_adapted && exec::is_of_the_version(&e);
            Cause::NotStarted { of_the_version, fault: e.to_string() }
        })?;
        self.lock.note(Some(child.id()));
        let (probation, serving_by) = self.clocks();
        Ok(Running {
            pid: Pid::from_child(&child),
            channel: ours,
            tail: Tail::default(),
            since: Instant::now(),
            probation,
            // A version that the stub itself has changed over to has its steps from there.
            timeline: if probation.is_some() { self.carried.clone() } else { Vec::new() },
            confirmed: false,
            unwell: None,
            is_new: matches!(self.journal.phase, Phase::Probation { .. }),
            change: None,
            serving_by,
            mute_since: None,
            overdue: None,
            stopping: None,
        })
    }

    /// By when a version on probation must have confirmed, and by when another must serve; each with how long that is,
    /// milliseconds. A probation has its own clock, which is the shorter one.
    fn clocks(&self) -> (Deadline, Deadline) {
        let within = |ms: u64| Some((Instant::now() + Duration::from_millis(ms), ms));
        match self.journal.phase {
            Phase::Probation { probation_ms, .. } => (within(probation_ms), None),
            Phase::Launching | Phase::Confirmed => {
                let probation_ms = self.verified.record.metadata.health.probation_ms;
                (None, within(probation_ms.max(SERVING_PATIENCE_MS)))
            }
        }
    }

    /// An agent may have become another version, and have ended before it said so to anybody but its journal.
    fn follow_journal(&mut self) -> Result<(), RecordError> {
        if self.verified.entry() == self.journal.current {
            return Ok(());
        }
        let (verified, doubt) = records::load_vouched(&self.paths, &self.journal.current)?;
        doubt.iter().for_each(|said| self.observer.say(said));
        self.path = self.paths.generation(&verified.record.tree);
        self.verified = verified;
        self.hold = None;
        Ok(())
    }

    /// The program to start, attaching its tree anew if it is not there.
    fn program(&mut self) -> Result<PathBuf, Cause> {
        let (tree, entry) = (self.verified.record.tree, self.verified.entry_point.clone());
        let look = |path: &Path| Attachment::open(path).and_then(|t| t.program(&entry));
        let fault = match look(&self.path) {
            Ok(program) => return Ok(program),
            Err(fault) => fault,
        };
        let reason = |fault: String, of_the_version| Cause::NotStarted { fault, of_the_version };
        if fault.is_of_the_version() && self.hold.is_some() {
            return Err(reason(fault.to_string(), true));
        }
        // The daemon may have been away since: a mount point without its mount looks like a tree without its program.
        let mut wanted =
            self.wanted.take().filter(|wanted| wanted.tree() == tree).unwrap_or_else(|| Wanted::new(tree));
        match wanted.look(&self.paths) {
            Stand::Attached(held, client) => {
                self.path = PathBuf::from(held.path);
                self.hold = Some(client);
            }
            Stand::Asked => {
                self.wanted = Some(wanted);
                return Err(Cause::NoTree { why: None });
            }
            Stand::Without(why) => {
                self.wanted = Some(wanted);
                self.missing_since.get_or_insert_with(Instant::now);
                return Err(Cause::NoTree { why: Some(why) });
            }
            Stand::Away(e) => {
                self.missing_since = None;
                return Err(Cause::NoTree { why: Some(e.to_string()) });
            }
            Stand::No(error) => return Err(reason(error.to_string(), false)),
        }
        look(&self.path).map_err(|fault| reason(fault.to_string(), fault.is_of_the_version()))
    }
}
