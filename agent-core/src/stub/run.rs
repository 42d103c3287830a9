//! The watch: one `poll` over signals, the agent's stderr and its channel, and the verdicts that follow.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use proto::agent::{ChangeId, Step};
use proto::limits::REASON_BYTES_MAX;
use proto::text;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus};

use super::door::Door;
use super::lock::kill_group;
use super::running::{Overdue, Running};
use super::strays;
use super::verdict::{Cause, History};
use super::watch::{Program, Stub, micros};
use super::{StubError, io_error};
use crate::channel::{Received, StubMessage};
use crate::descriptor_name::DescriptorName;
use crate::journal::Phase;
use crate::moments::Moment;
use crate::records;
use crate::report::unix_ms;
use crate::{bad, sys};

/// How long the agent may take to end after SIGTERM before its process group is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// An agent that worked for so long has not failed in a row with those before it.
const WORKED: Duration = Duration::from_secs(60);

impl Stub<'_> {
    pub(super) fn run(mut self) -> Result<(), StubError> {
        if let Some(staged) = self.staged.take() {
            self.refuse_staged(staged);
        }
        if let Some(ends) = self.ends.take() {
            let to = self.journal.current.clone();
            self.end_change(ends, &to, None);
        }
        // Written before the start: from here on the journal keeps the tree, whatever becomes of this process.
        self.write_journal(Moment::StubJournal);
        self.start()?;
        // Of an order of which the stub has heard the beginning, while it waited for the first tree.
        self.begin_staging();
        while !matches!(self.program, Program::Over) {
            self.wait()?;
            self.read_signals()?;
            self.read_channel();
            self.read_stderr();
            self.look_at_clock()?;
            self.look_at_staging()?;
            self.hear_visitors()?;
        }
        self.end_order("the stub was told to end; give the order again");
        self.reporter.flush(Duration::from_millis(500));
        Ok(())
    }

    /// Starts the current version.
    pub(super) fn start(&mut self) -> Result<(), StubError> {
        match self.spawn() {
            Ok(running) => {
                self.missing_since = None;
                self.program = Program::Running(running);
                Ok(())
            }
            Err(Cause::NoTree { why }) => self.wait_for_tree(why.as_deref()),
            Err(cause) => self.failed(&cause, None),
        }
    }

    fn wait(&mut self) -> Result<(), StubError> {
        let until = match &self.program {
            Program::Waiting(until) => Some(*until),
            Program::Running(running) => {
                let probation = running.probation.map(|(until, _)| until);
                let serving = running.serving_by.map(|(until, _)| until);
                [probation, serving, running.mute_by(), running.stopping].into_iter().flatten().min()
            }
            Program::Over => return Ok(()),
        };
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // Rounded up, or the last millisecond would be spent polling.
        let timeout = left.and_then(|left| Timespec::try_from(left + Duration::from_millis(1)).ok());
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        fds.extend(self.door.iter().flat_map(Door::fds));
        fds.extend(self.staging.iter().map(|staging| PollFd::new(staging, PollFlags::IN)));
        if let Program::Running(running) = &self.program
            && running.mute_since.is_none()
        {
            fds.push(PollFd::from_borrowed_fd(running.channel.as_fd(), PollFlags::IN));
        }
        fds.push(PollFd::new(&self.stderr.0, PollFlags::IN));
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
        self.lock.note(None);
        self.reporter.changed();
        self.reporter.take_over();
        let kept = if running.stopping.is_some() { Vec::new() } else { self.held.processes() };
        for stray in strays::end_all(&kept) {
            self.observer.say(&format!("killed what {} left behind: {stray}", self.verified.record.name()));
        }
        // The agent writes the journal while it runs; its word counts.
        self.look_at_journal();
        let of_the_stub = self.desk.order.as_ref().map(|order| order.change);
        if let Some(staged) = self.journal.staged.take_if(|staged| Some(staged.change) != of_the_stub) {
            self.refuse_staged(staged);
            self.write_journal(Moment::StubJournal);
        }
        if running.stopping.is_some() {
            return Ok(());
        }
        if running.confirmed && running.since.elapsed() > WORKED {
            self.history = History::default();
        }
        if !running.confirmed {
            self.confirmed_at_its_end(&running);
        }
        let how = describe(status);
        let on_probation = matches!(self.journal.phase, Phase::Probation { .. });
        // What a version said before it was believed says nothing about its end.
        let unwell = running.unwell.clone().filter(|_| !running.confirmed);
        let cause = match running.overdue {
            Some(Overdue::Confirming(probation_ms)) => Cause::Overdue { probation_ms, unwell },
            Some(Overdue::Serving(serving_ms)) => Cause::Silent { serving_ms },
            Some(Overdue::Mute) => Cause::Mute,
            None if on_probation && !running.is_new => Cause::EndedBefore { how },
            None => Cause::Ended { how, unwell },
        };
        self.history.cold = if running.confirmed { 0 } else { self.history.cold + 1 };
        self.failed(&cause, Some(&running))?;
        // An order that was ready waited for this end.
        self.carry_out()
    }

    /// A version may have written down that it has confirmed, and have come to its end before it told anyone. It stays
    /// confirmed, and the next process of it knows of no change-over: whoever ordered that one would wait for ever.
    fn confirmed_at_its_end(&self, running: &Running) {
        let Some((change, from, to)) = running.change.as_deref() else { return };
        if self.journal.phase == Phase::Confirmed && self.journal.current == *to {
            let detail = String::from("its process ended right after it had confirmed, and is started again");
            self.report(*change, Some(from), to, Step::Confirmed, micros(running.since), detail);
        }
    }

    fn read_channel(&mut self) {
        while let Program::Running(running) = &mut self.program {
            match running.channel.receive_with() {
                Ok(Some((Received::Known(message), descriptor))) => self.heard(message, descriptor),
                Ok(Some((Received::Unknown, _))) => {}
                Ok(None) => return,
                Err(_) => {
                    // Polling it would spin.
                    running.mute_since.get_or_insert_with(Instant::now);
                    return;
                }
            }
        }
    }

    fn heard(&mut self, message: StubMessage, descriptor: Option<OwnedFd>) {
        let Program::Running(running) = &mut self.program else { return };
        match message {
            StubMessage::Serving => self.serves(),
            StubMessage::Executing { from, to, probation_ms, timeline, change } => {
                running.probation = Some((Instant::now() + Duration::from_millis(probation_ms), probation_ms));
                running.timeline = timeline;
                running.tail.clear();
                running.confirmed = false;
                running.unwell = None;
                running.is_new = true;
                running.since = Instant::now();
                self.history = History::default();
                self.returning = None;
                self.held.begin_trial();
                self.observer.say(&format!("changing over from {} to {}", from.version, to.version));
                running.change = Some(Box::new((change, from, to)));
            }
            StubMessage::ExecReturned => {
                running.probation = None;
                running.confirmed = true;
                running.is_new = false;
                self.held.give_up();
                running.change = None;
                self.observer.say("the change-over did not come about; the version before goes on");
            }
            StubMessage::Confirmed => self.confirmed(),
            StubMessage::Keep { name } => self.keep(name, descriptor),
            StubMessage::Forget { name } => self.held.forget(&name),
            // Cleaned by whoever receives it, too: it goes to a terminal.
            StubMessage::Unwell { why } => running.unwell = Some(text::line(&why, REASON_BYTES_MAX)),
        }
    }

    fn keep(&mut self, name: DescriptorName, descriptor: Option<OwnedFd>) {
        let Some(descriptor) = descriptor else {
            return self
                .observer
                .say(&format!("descriptor '{name}' did not arrive; a crash of the agent would lose it"));
        };
        if let Err(e) = self.held.keep(name, descriptor) {
            self.observer.say(&format!("{e}; a crash of the agent would lose it"));
        }
    }

    fn serves(&mut self) {
        // By now the journal keeps the tree.
        self.hold = None;
        let Program::Running(running) = &mut self.program else { return };
        running.serving_by = None;
        // Whoever lists agents sees this process from here on, and not once it is believed.
        self.reporter.changed();
        let took_us = micros(running.since);
        if let Some(last) = std::mem::take(&mut self.carried).last() {
            // From here on its end is the agent's to report, or the verdict's.
            let (from, to) = (self.journal.last_good.clone(), self.journal.current.clone());
            self.report(last.change, from.as_ref(), &to, Step::Started, took_us, String::new());
        }
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
        self.look_at_journal();
        if self.journal.phase == Phase::Launching {
            // It may be believed without being written down, when the disk takes nothing.
            self.journal.phase = Phase::Confirmed;
        }
        self.history.cold = 0;
        self.held.believe();
        // A version that proved itself is not bad, whatever an earlier try of it was.
        let entry = self.journal.current.clone();
        drop(bad::withdraw(&self.paths, &entry.tree, "it has confirmed since"));
        records::prune(&self.paths, &self.journal);
        if let Ok((verified, _)) = records::load_vouched(&self.paths, &entry) {
            // Of a version that an earlier program saved there is one copy.
            records::mend(&self.paths, &entry.version, unix_ms()).iter().for_each(|said| self.observer.say(said));
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
        self.hand_over();
    }

    fn read_stderr(&mut self) {
        let mut bytes = [0; 16 << 10];
        // Bounded, so that a program that floods it does not keep the stub from its other work.
        for _ in 0..64 {
            match self.stderr.0.read(&mut bytes) {
                // Never 0: the stub has its other end as well.
                Ok(n) => {
                    if let Program::Running(running) = &mut self.program {
                        running.tail.push(&bytes[..n]);
                    }
                    // Nobody reads it perhaps; the end of it is kept all the same.
                    self.observer.agent_wrote(&bytes[..n]);
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
                let probation = running.probation.take_if(|(until, _)| *until <= now);
                if running.mute_by().is_some_and(|until| until <= now) {
                    running.overdue = Some(Overdue::Mute);
                    kill_group(running.pid.as_raw_nonzero().get().unsigned_abs());
                }
                if let Some((until, serving_ms)) = running.serving_by
                    && until <= now
                {
                    running.serving_by = None;
                    running.overdue = Some(Overdue::Serving(serving_ms));
                    kill_group(running.pid.as_raw_nonzero().get().unsigned_abs());
                }
                if let Some((_, probation_ms)) = probation {
                    self.probation_is_over(probation_ms);
                }
                Ok(())
            }
            Program::Waiting(_) | Program::Over => Ok(()),
        }
    }

    /// Ends a version that has not confirmed. One whose confirmation is on disk, and that only has not come to say so (a
    /// busy disk holds up the report of it), is believed: to end it would cost its operations a start, for nothing.
    fn probation_is_over(&mut self, probation_ms: u64) {
        let before = self.journal.current.clone();
        self.look_at_journal();
        let Program::Running(running) = &mut self.program else { return };
        let came = running.change.as_deref().map_or(&before, |(_, _, to)| to);
        if self.journal.phase == Phase::Confirmed && self.journal.current == *came {
            return self.observer.say(&format!("{} has confirmed, and has not said so yet", came.version));
        }
        running.overdue = Some(Overdue::Confirming(probation_ms));
        // Whether it confirmed at the very last moment is for the journal to say, after its end.
        kill_group(running.pid.as_raw_nonzero().get().unsigned_abs());
    }
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("ended by {}", sys::signal::name(signal)),
        (None, None) => "ended".to_owned(),
    }
}
