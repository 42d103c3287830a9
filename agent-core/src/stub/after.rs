//! What follows an end: the journal, the verdict, the evidence, and what is started next.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use proto::agent::{ChangeId, Step};

use super::choose::{self, Choice, Ends};
use super::evidence::{self, Tail};
use super::running::Running;
use super::verdict::{Cause, History, Verdict, judge};
use super::watch::{Program, Returning, Stub, micros};
use super::{StubError, begin, wanted};
use crate::bad;
use crate::control::Client;
use crate::durable::{self, FileFault};
use crate::journal::{Entry, Journal, Phase, Staged};
use crate::moments::{self, Moment};
use crate::{permits, records};

/// A first version that failed so often is looked for anew: the manager may have a better one by now.
const LOOK_ANEW: u32 = 3;
/// Between two starts of a version that there is nothing to return from.
const RETURN_AGAIN: Duration = Duration::from_secs(2);

impl Stub<'_> {
    /// What is on disk, if it is newer than what is known: this stub may have decided what it could not write.
    pub(super) fn look_at_journal(&mut self) {
        match Journal::read(&self.paths.journal()) {
            Ok(Some(journal)) if journal.sequence > self.journal.sequence => self.journal = journal,
            Ok(_) => {}
            Err(e) => self.observer.say(&e.to_string()),
        }
    }

    /// A disk that does not take it is no reason to be without an agent: the program is told what it is, and writes it
    /// as soon as it can.
    pub(super) fn write_journal(&mut self, moment: Moment) {
        let path = self.paths.journal();
        let reached = moments::reach(moment, &path).map_err(|e| FileFault::io(&path, e));
        // Its directory may have gone since the start.
        let there = reached.and_then(|()| durable::create_dir(&self.paths.directory()));
        if let Err(e) = there.and_then(|()| self.journal.write(&path)) {
            // Newer than what is on disk in either case.
            self.journal.sequence += 1;
            self.observer.say(&format!("going on without writing: {e}"));
        }
    }

    /// The order to change over ends with the agent that had taken it.
    pub(super) fn refuse_staged(&mut self, staged: Staged) {
        let running = self.journal.current.clone();
        let detail = format!(
            "the agent ended before it changed over to {}; {} is started again; give the order again",
            staged.entry.version, running.version
        );
        self.observer.say(&detail);
        self.report(staged.change, Some(&running), &staged.entry, Step::Refused, 0, detail);
    }

    pub(super) fn failed(&mut self, cause: &Cause, program: Option<&Running>) -> Result<(), StubError> {
        if program.is_none() {
            self.history.cold += 1;
        }
        let verdict = judge(&self.journal, cause, self.history);
        self.history.failures += 1;
        let nothing = Tail::default();
        match verdict {
            Verdict::Again { after, reason } => {
                self.again(after, &reason, program.map_or(&nothing, |program| &program.tail));
                Ok(())
            }
            Verdict::Return { change, bad, reason, at_fault, .. } => {
                match choose::to_return(&self.paths, &self.journal, &reason, at_fault) {
                    Some(choice) => {
                        self.end_change(Ends { change, bad, reason, at_fault }, &choice.journal.current, program);
                        self.take(choice, None)
                    }
                    None => {
                        let reason = format!("{reason}, and there is nothing to return to");
                        if change != ChangeId(0) && self.told.replace(change) != Some(change) {
                            self.report(change, None, &bad, Step::Refused, 0, reason.clone());
                        }
                        self.again(RETURN_AGAIN, &reason, program.map_or(&nothing, |program| &program.tail));
                        Ok(())
                    }
                }
            }
        }
    }

    /// Keeps the evidence, tells the manager, and remembers what is to be told when the version before works.
    pub(super) fn end_change(&mut self, ends: Ends, to: &Entry, program: Option<&Running>) {
        let nothing = Tail::default();
        let (tail, timeline, ran_us) = match program {
            Some(program) => (&program.tail, program.timeline.as_slice(), micros(program.since)),
            None => (&nothing, [].as_slice(), 0),
        };
        let Ends { change, bad, reason, at_fault } = ends;
        let product = self.paths.product().clone();
        self.observer.say(&format!("{product}@{} failed: {reason}; returning to {}", bad.version, to.version));
        // The manager has had the steps one by one; on this disk they belong to the evidence.
        let report = evidence::text(&bad, &reason, tail, &[]);
        let kept = evidence::text(&bad, &reason, tail, timeline);
        let path = self.paths.bad();
        let reached = moments::reach(Moment::StubBad, &path).map_err(|e| FileFault::io(&path, e));
        if at_fault && let Err(e) = reached.and_then(|()| bad::remember(&self.paths, &bad.tree, &kept)) {
            self.observer.say(&e.to_string());
        }
        self.report(change, Some(to), &bad, Step::ProbationFailed, ran_us, report);
        self.returning = Some(Returning { change, bad, reason, since: Instant::now(), is_told: false });
    }

    /// Starts this instead of what ran; `held` is its tree, if it is attached already.
    pub(super) fn take(&mut self, choice: Choice, held: Option<(PathBuf, Client)>) -> Result<(), StubError> {
        self.observer.say(&format!("starting {}", choice.verified.record.name()));
        self.held.give_up();
        // An order that the stub has taken goes on: should it be killed, the next one has to know whom to refuse.
        let (sequence, staged) = (self.journal.sequence, self.journal.staged.take());
        self.journal = Journal { sequence, staged, ..choice.journal };
        self.write_journal(Moment::StubReturn);
        let (path, hold) = held.unzip();
        self.path = path.unwrap_or_else(|| self.paths.generation(&choice.verified.record.tree));
        self.verified = choice.verified;
        self.hold = hold;
        self.history = History::default();
        self.start()
    }

    pub(super) fn again(&mut self, after: Duration, reason: &str, tail: &Tail) {
        let name = self.verified.record.name();
        self.why = format!("{reason}; starting it again in {} ms", after.as_millis());
        self.observer.say(&format!("{name}: {}", self.why));
        self.end_returning(&format!("does not come up either: {reason}"));
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
        if self.journal.phase == Phase::Launching && self.history.failures == 1 {
            let entry = self.journal.current.clone();
            let detail = evidence::text(&entry, reason, tail, &[]);
            self.report(ChangeId(0), None, &entry, Step::ProbationFailed, 0, detail);
        }
        self.program = Program::Waiting(Instant::now() + after);
    }

    /// The tree of what is to be started cannot be had just now. It is looked for again in a moment, and meanwhile the
    /// stub does its other work. If that takes long, a version whose tree is here is started instead.
    pub(super) fn wait_for_tree(&mut self, why: Option<&str>) -> Result<(), StubError> {
        self.program = Program::Waiting(Instant::now() + begin::LOOK_EVERY);
        let Some(why) = why else { return Ok(()) };
        let line = format!("waiting for the mount daemon to give tree {}: {why}", self.verified.record.tree);
        if self.why != line {
            self.observer.say(&line);
            self.why = line;
        }
        self.end_returning(&format!("cannot be started just now: {why}"));
        if self.missing_since.is_none_or(|since| since.elapsed() < begin::FALL_BACK_AFTER) {
            return Ok(());
        }
        let others = choose::others(&self.paths, &self.journal, why).into_iter();
        let mut here = others.filter_map(|other| {
            let held = wanted::held_here(&self.paths, other.verified.record.tree)?;
            Some((other, held))
        });
        let Some((choice, (attached, hold))) = here.next() else { return Ok(()) };
        if let Some(ends) = choice.ends.clone() {
            self.end_change(ends, &choice.journal.current, None);
        }
        self.observer.say(&choice.journal.reason);
        self.missing_since = None;
        self.take(choice, Some((PathBuf::from(attached.path), hold)))
    }

    /// The version that was returned to does not work at once: whoever waits for the end of the change-over need not
    /// wait for that, too.
    fn end_returning(&mut self, what_else: &str) {
        let is_waited_for = |returning: &&mut Returning| returning.change != ChangeId(0) && !returning.is_told;
        let Some(returning) = self.returning.as_mut().filter(is_waited_for) else { return };
        returning.is_told = true;
        let change = returning.change;
        let (bad, to) = (returning.bad.clone(), self.journal.current.clone());
        let detail = format!(
            "{} failed: {}; {}, which was there before, {what_else}",
            bad.version, returning.reason, to.version
        );
        self.report(change, Some(&to), &bad, Step::Refused, 0, detail);
    }

    /// A first version that does not come up has nothing to return to; perhaps there is a newer one.
    pub(super) fn look_anew(&mut self) -> Result<(), StubError> {
        if self.journal.phase != Phase::Launching || self.history.failures < LOOK_ANEW {
            return Ok(());
        }
        if let Err(stays) = permits::may_change_over(&self.paths) {
            tracing::debug!("no newer version is looked for: {stays}");
            return Ok(());
        }
        let Some(verified) = begin::newest_now(&self.paths) else { return Ok(()) };
        if verified.entry() == self.journal.current {
            return Ok(());
        }
        self.observer.say(&format!("starting {}, which is newer", verified.record.name()));
        if let Err(e) = records::save(&self.paths, &verified) {
            self.observer.say(&format!("its metadata cannot be saved: {e}"));
            return Ok(());
        }
        self.journal.current = verified.entry();
        self.write_journal(Moment::StubJournal);
        self.path = self.paths.generation(&verified.record.tree);
        self.verified = verified;
        self.history = History::default();
        self.hold = None;
        Ok(())
    }
}
