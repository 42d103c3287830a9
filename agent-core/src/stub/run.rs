//! The watch: one `poll` over signals, the agent's stderr and its channel, and the verdicts that follow.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proto::agent::{ChangeId, Step, StepEvent};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus};

use super::begin::{self, Begun};
use super::child::Running;
use super::evidence::{self, Tail};
use super::lock::{Lock, kill_group};
use super::verdict::{Cause, Verdict, judge};
use super::{Observer, StubError, io_error};
use crate::AgentPaths;
use crate::channel::{Received, StubMessage};
use crate::control::Client;
use crate::durable::Durability;
use crate::journal::{Entry, Journal, Phase};
use crate::records::{self, Verified};
use crate::report::{Reporter, unix_ms};
use crate::sys::signal::SignalFd;
use crate::{bad, sys};

/// How long the agent may take to end after SIGTERM before its process group is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// An agent that worked for so long has not failed in a row with those before it.
const WORKED: Duration = Duration::from_secs(60);
/// A first version that failed so often is looked for anew: the manager may have a better one by now.
const LOOK_ANEW: u32 = 3;

/// The stub at work.
pub(crate) struct Stub<'a> {
    pub(super) paths: AgentPaths,
    pub(super) observer: &'a mut dyn Observer,
    pub(super) signals: SignalFd,
    pub(super) lock: Lock,
    pub(super) listener: UnixListener,
    reporter: Reporter,
    pub(super) journal: Journal,
    pub(super) verified: Verified,
    pub(super) path: PathBuf,
    pub(super) hold: Option<Client>,
    first: Option<Verdict>,
    program: Program,
    /// Ends in a row of the current version.
    failures: u32,
    /// A return that has not proved itself yet.
    returning: Option<Returning>,
    said_ready: bool,
}

/// What is in the agent's place.
enum Program {
    Running(Running),
    /// Nothing; the next start is then.
    Waiting(Instant),
    /// The stub is to end.
    Over,
}

struct Returning {
    change: ChangeId,
    bad: Entry,
    reason: String,
    since: Instant,
}

impl<'a> Stub<'a> {
    pub(crate) fn new(
        paths: &AgentPaths,
        observer: &'a mut dyn Observer,
        signals: SignalFd,
        begun: Begun,
    ) -> Result<Self, StubError> {
        Ok(Self {
            paths: paths.clone(),
            observer,
            signals,
            lock: begun.lock,
            listener: begun.listener,
            // The second thread; everything that must be done with one is behind us.
            reporter: Reporter::start(paths)?,
            journal: begun.journal,
            verified: begun.verified,
            path: begun.path,
            hold: Some(begun.hold),
            first: begun.first,
            program: Program::Over,
            failures: 0,
            returning: None,
            said_ready: false,
        })
    }

    pub(crate) fn run(mut self) -> Result<(), StubError> {
        match self.first.take() {
            Some(verdict) => self.follow(verdict, None)?,
            None => self.start()?,
        }
        while !matches!(self.program, Program::Over) {
            self.wait()?;
            self.read_signals()?;
            self.read_channel();
            self.read_stderr();
            self.look_at_clock()?;
        }
        self.reporter.flush(Duration::from_millis(500));
        Ok(())
    }

    /// Starts the current version.
    fn start(&mut self) -> Result<(), StubError> {
        match self.spawn() {
            Ok(running) => {
                self.program = Program::Running(running);
                Ok(())
            }
            Err(Cause::Undecided) => {
                self.program = Program::Over;
                Ok(())
            }
            Err(cause) => self.failed(&cause, None),
        }
    }

    fn wait(&mut self) -> Result<(), StubError> {
        let until = match &self.program {
            Program::Waiting(until) => Some(*until),
            Program::Running(running) => {
                let probation = running.probation.map(|(until, _)| until);
                [probation, running.stopping].into_iter().flatten().min()
            }
            Program::Over => return Ok(()),
        };
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // Rounded up, or the last millisecond would be spent polling.
        let timeout = left.and_then(|left| Timespec::try_from(left + Duration::from_millis(1)).ok());
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if let Program::Running(running) = &self.program {
            fds.push(PollFd::from_borrowed_fd(running.channel.as_fd(), PollFlags::IN));
            if running.channel_is_over() {
                fds.pop();
            }
            fds.extend(running.stderr.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        }
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(io_error("poll")(e.into())),
        }
    }

    fn read_signals(&mut self) -> Result<(), StubError> {
        while let Ok(Some(signal)) = self.signals.read() {
            if signal == libc::SIGCHLD {
                self.reap()?;
            } else {
                self.stop();
            }
        }
        Ok(())
    }

    /// The end was asked for: the agent is told, and has its time.
    fn stop(&mut self) {
        match &mut self.program {
            Program::Running(running) => {
                running.stopping.get_or_insert_with(|| Instant::now() + STOP_PATIENCE);
                let _ = rustix::process::kill_process(running.pid, Signal::TERM);
            }
            Program::Waiting(_) | Program::Over => self.program = Program::Over,
        }
    }

    /// Reaps the agent, and the orphans of agents, which fall to the stub.
    fn reap(&mut self) -> Result<(), StubError> {
        if let Program::Running(running) = &self.program {
            let pid = running.pid;
            let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            if let Ok(Some(_)) = rustix::process::waitid(WaitId::Pid(pid), peek) {
                // What it had started must not outlive it: it would work on without anybody knowing of it. Before it
                // is reaped, while its number cannot be another's.
                kill_group(pid.as_raw_nonzero().get().unsigned_abs());
                if let Ok(Some((_, status))) = rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
                    self.ended(status)?;
                }
            }
        }
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if matches!(&self.program, Program::Running(running) if running.pid == pid) {
                // It ended since the look above.
                self.ended(status)?;
            }
        }
        Ok(())
    }

    fn ended(&mut self, status: WaitStatus) -> Result<(), StubError> {
        self.read_channel();
        self.read_stderr();
        let Program::Running(running) = std::mem::replace(&mut self.program, Program::Over) else { return Ok(()) };
        drop(self.lock.note(None));
        if running.stopping.is_some() {
            return Ok(());
        }
        // The agent writes the journal while it runs; its word counts.
        if let Some(journal) = Journal::read(&self.paths.journal())? {
            self.journal = journal;
        }
        if running.confirmed && running.since.elapsed() > WORKED {
            self.failures = 0;
        }
        let how = describe(status);
        let cause = match running.overdue {
            Some(probation_ms) => Cause::Overdue { probation_ms },
            None if matches!(self.journal.phase, Phase::Probation { .. }) && !running.is_new => {
                Cause::EndedBefore { how }
            }
            None => Cause::Ended { how },
        };
        self.failed(&cause, Some(&running))
    }

    fn failed(&mut self, cause: &Cause, program: Option<&Running>) -> Result<(), StubError> {
        let verdict = judge(&self.journal, cause, self.failures);
        self.failures += 1;
        self.follow(verdict, program)
    }

    fn follow(&mut self, verdict: Verdict, program: Option<&Running>) -> Result<(), StubError> {
        let nothing = Tail::default();
        let (tail, timeline, ran_us) = match program {
            Some(program) => (&program.tail, program.timeline.as_slice(), micros(program.since)),
            None => (&nothing, [].as_slice(), 0),
        };
        match verdict {
            Verdict::Again { after, reason } => {
                self.again(after, &reason, tail);
                Ok(())
            }
            Verdict::Return { change, bad, good, reason, at_fault } => {
                // The manager has had the steps one by one; on this disk they belong to the evidence.
                let report = evidence::text(&bad, &reason, tail, &[]);
                let kept = evidence::text(&bad, &reason, tail, timeline);
                if at_fault && let Err(e) = bad::remember(&self.paths, &bad.tree, &kept) {
                    self.observer.say(&e.to_string());
                }
                self.report(change, Some(&good), &bad, Step::ProbationFailed, ran_us, report);
                self.return_to(change, bad, good, reason)
            }
        }
    }

    fn again(&mut self, after: Duration, reason: &str, tail: &Tail) {
        let name = self.verified.record.name();
        self.observer.say(&format!("{name}: {reason}; starting it again in {} ms", after.as_millis()));
        if let Some(returning) = self.returning.take() {
            // The version that had worked fails in the same way: the host is to blame, or at least not the other one.
            let why = format!("{name} failed right after the return as well: {reason}");
            match bad::withdraw(&self.paths, &returning.bad.tree, &why) {
                Ok(()) => {
                    self.observer.say(&format!("{why}; {} is no longer held to be bad", returning.bad.version));
                }
                Err(e) => self.observer.say(&e.to_string()),
            }
            self.returning = Some(returning);
        }
        if self.journal.phase == Phase::Launching && self.failures == 1 {
            let entry = self.journal.current.clone();
            let detail = evidence::text(&entry, reason, tail, &[]);
            self.report(ChangeId(0), None, &entry, Step::ProbationFailed, 0, detail);
        }
        self.program = Program::Waiting(Instant::now() + after);
    }

    fn return_to(&mut self, change: ChangeId, bad: Entry, good: Entry, reason: String) -> Result<(), StubError> {
        let product = self.paths.product().clone();
        self.observer.say(&format!("{product}@{} failed: {reason}; returning to {}", bad.version, good.version));
        let verified = records::load(&self.paths, &good.version)?;
        self.journal.current = Entry { version: good.version, tree: verified.record.tree };
        self.journal.last_good = None;
        self.journal.staged = None;
        self.journal.phase = Phase::Confirmed;
        self.journal.reason = format!("returned from {}: {reason}", bad.version);
        if let Err(e) = self.journal.write(&self.paths.journal()) {
            // On a full disk the return goes on all the same: a start after a power cut finds the probation undecided,
            // and returns again.
            self.observer.say(&e.to_string());
        }
        self.path = self.paths.generation(&verified.record.tree);
        self.verified = verified;
        self.hold = None;
        self.failures = 0;
        self.returning = Some(Returning { change, bad, reason, since: Instant::now() });
        self.start()
    }

    fn read_channel(&mut self) {
        while let Program::Running(running) = &mut self.program {
            match running.channel.receive() {
                Ok(Some(Received::Known(message))) => self.heard(message),
                Ok(Some(Received::Unknown)) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn heard(&mut self, message: StubMessage) {
        let Program::Running(running) = &mut self.program else { return };
        match message {
            StubMessage::Serving => self.serves(),
            StubMessage::Executing { from, to, probation_ms, timeline, change: _ } => {
                running.probation = Some((Instant::now() + Duration::from_millis(probation_ms), probation_ms));
                running.timeline = timeline;
                running.tail.clear();
                running.confirmed = false;
                running.is_new = true;
                running.since = Instant::now();
                self.failures = 0;
                self.returning = None;
                self.observer.say(&format!("changing over from {} to {}", from.version, to.version));
            }
            StubMessage::ExecReturned => {
                running.probation = None;
                running.confirmed = true;
                running.is_new = false;
                self.observer.say("the change-over did not come about; the version before goes on");
            }
            StubMessage::Confirmed => self.confirmed(),
        }
    }

    fn serves(&mut self) {
        // By now the journal keeps the tree.
        self.hold = None;
        if !std::mem::replace(&mut self.said_ready, true) {
            let name = self.verified.record.name();
            self.observer.ready(&format!("{name} serves {}", self.paths.socket().display()));
        }
    }

    fn confirmed(&mut self) {
        let Program::Running(running) = &mut self.program else { return };
        let changed = !running.timeline.is_empty();
        let took_us = micros(running.since);
        running.probation = None;
        running.confirmed = true;
        running.is_new = false;
        running.timeline.clear();
        if let Ok(Some(journal)) = Journal::read(&self.paths.journal()) {
            self.journal = journal;
        }
        // A version that proved itself is not bad, whatever an earlier try of it was.
        let entry = self.journal.current.clone();
        drop(bad::withdraw(&self.paths, &entry.tree, "it has confirmed since"));
        records::prune(&self.paths, &self.journal);
        if let Ok(verified) = records::load(&self.paths, &entry.version) {
            self.verified = verified;
            self.path = self.paths.generation(&entry.tree);
        }
        let name = self.verified.record.name();
        self.observer.say(&format!("{name} has confirmed"));
        if let Some(returning) = self.returning.take() {
            let took_us = micros(returning.since);
            self.report(returning.change, Some(&returning.bad), &entry, Step::Returned, took_us, returning.reason);
        } else if !changed {
            self.report(ChangeId(0), None, &entry, Step::Launched, took_us, self.journal.reason.clone());
        }
        self.reporter.changed();
    }

    fn read_stderr(&mut self) {
        let Program::Running(running) = &mut self.program else { return };
        let Some(pipe) = &mut running.stderr else { return };
        let mut bytes = [0; 16 << 10];
        // Bounded, so that a program that floods it does not keep the stub from its other work.
        for _ in 0..64 {
            match pipe.read(&mut bytes) {
                Ok(0) => {
                    running.stderr = None;
                    return;
                }
                Ok(n) => {
                    running.tail.push(&bytes[..n]);
                    // Nobody reads it perhaps; the agent's words are kept all the same.
                    drop(io::stderr().write_all(&bytes[..n]));
                }
                Err(_) => return,
            }
        }
    }

    fn look_at_clock(&mut self) -> Result<(), StubError> {
        let now = Instant::now();
        match &mut self.program {
            Program::Waiting(until) if *until <= now => {
                self.look_anew()?;
                self.start()
            }
            Program::Running(running) => {
                if running.stopping.is_some_and(|until| until <= now) {
                    self.observer.say("the agent has not ended in time; killing it");
                    kill_group(running.pid.as_raw_nonzero().get().unsigned_abs());
                    running.stopping = Some(now + STOP_PATIENCE);
                }
                if let Some((until, probation_ms)) = running.probation
                    && until <= now
                {
                    running.probation = None;
                    running.overdue = Some(probation_ms);
                    // Whether it confirmed at the last moment is for the journal to say, after its end.
                    kill_group(running.pid.as_raw_nonzero().get().unsigned_abs());
                }
                Ok(())
            }
            Program::Waiting(_) | Program::Over => Ok(()),
        }
    }

    /// A first version that does not come up has nothing to return to; perhaps there is a newer one.
    fn look_anew(&mut self) -> Result<(), StubError> {
        if self.journal.phase != Phase::Launching || self.failures < LOOK_ANEW {
            return Ok(());
        }
        let Some(verified) = begin::newest_now(&self.paths) else { return Ok(()) };
        if verified.entry() == self.journal.current {
            return Ok(());
        }
        self.observer.say(&format!("starting {}, which is newer", verified.record.name()));
        self.journal.current = verified.entry();
        self.journal.write(&self.paths.journal())?;
        self.path = self.paths.generation(&verified.record.tree);
        self.verified = verified;
        self.failures = 0;
        self.hold = None;
        Ok(())
    }

    fn report(
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

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("ended by {}", sys::signal::name(signal)),
        (None, None) => "ended".to_owned(),
    }
}
