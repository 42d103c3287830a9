//! The swap machine: state and event in, state and effects out. No I/O, no clock, no task.
//!
//! ```text
//!             healthy            A, B                  ready; C            no operation
//!  Probation ─────────> Serving ───────> Staging ─ Staged ───────> Draining ────────────> Journaling
//!      ^                ^ ^   ^             │                                                 │ intent on disk
//!      │                │ │   └── refused ──┘                                                 v
//!      │                │ └────────────────── undone ─────────────────────────────────── Swapping
//!      │                └──────────────────── undone ──────────────── Executing <─────────────┘
//!      └──────────────── the new program, in the same process ────────────┘
//! ```
//!
//! The driver performs a transition's effects in order. A failing effect gives an event in which the failure is named,
//! and the rest of that transition's effects is dropped. Results of effects that take long carry the change-over that
//! they are of, so that one which came too late is told from one that is waited for.

mod judge;
mod vocabulary;

#[cfg(test)]
mod tests;

use proto::agent::{AgentState, ChangeId, Step};
use proto::message::Fault;

use judge::with_state;
pub(crate) use judge::{Asked, Handed, handed, judge};
pub(crate) use vocabulary::{
    Candidate, Effect, Event, Facts, JournalWrite, Origin, Reason, Saved, StageDone, StageFault, Took, Verdict,
};

/// Where a change-over stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// Started, and not yet believed.
    Probation(Probation),
    /// Believed and at work; no change-over is under way.
    Serving(Serving),
    /// At work; the new generation is being made ready.
    Staging(Staging),
    /// At work; the new generation is ready, message C has not come.
    Staged(Staged),
    /// No new operation; ongoing ones finish or stop.
    Draining(Leaving),
    /// The intent is being written.
    Journaling(Leaving),
    /// The link is being renamed.
    Swapping(Leaving),
    /// The link leads to the new tree; what is left is `execve`, or its return.
    Executing(Leaving),
}

/// Started, and not yet believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Probation {
    /// `None` for a start of a version that is believed.
    pub change: Option<Origin>,
    /// A record that came meanwhile.
    pub saved: Option<Saved>,
    /// It has been asked for its health, and was not well.
    pub is_sick: bool,
}

/// Believed and at work; what it remembers of messages that came before the next change-over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Serving {
    /// The newest record that message A brought.
    pub saved: Option<Saved>,
    /// The last change-over that ended here: a message C that is on its way is answered by it.
    pub ended: Option<Verdict>,
}

/// The new generation is being made ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Staging {
    /// The generation, as message A brought it.
    pub target: Saved,
    /// The drain deadline of message C, milliseconds, when it has come.
    pub finish: Option<u64>,
}

/// The new generation is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Staged {
    /// The generation, as message A brought it.
    pub target: Saved,
}

/// On the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leaving {
    /// The generation that is left for.
    pub target: Saved,
}

impl State {
    /// The state of a program that has just begun. `change`: see [`Probation::change`]; `probation_ms` is that of its
    /// record, of which `gone_ms` have gone: the stub's clock runs since the `execve`, and a start may take its time.
    pub(crate) fn begin(change: Option<Origin>, probation_ms: u64, gone_ms: u64) -> (Self, Vec<Effect>) {
        // A version that crashes after a while is as bad as one that does not come up: a new one works for the first
        // half of its probation before it may be believed, and has the second half to show its health.
        let after_ms = if change.is_some() { (probation_ms / 2).saturating_sub(gone_ms) } else { 0 };
        (State::Probation(Probation { change, saved: None, is_sick: false }), vec![Effect::CheckHealth { after_ms }])
    }

    /// As `status` shows it.
    pub(crate) fn shown(&self) -> AgentState {
        match self {
            State::Probation(_) => AgentState::Probation,
            State::Serving(_) => AgentState::Serving,
            State::Staging(_) | State::Staged(_) => AgentState::Staging,
            State::Draining(_) => AgentState::Draining,
            State::Journaling(_) | State::Swapping(_) | State::Executing(_) => AgentState::Swapping,
        }
    }

    /// The one function: what follows from an event.
    pub(crate) fn on(self, event: Event, facts: &Facts) -> (State, Vec<Effect>) {
        match self {
            State::Probation(state) => state.on(event, facts),
            State::Serving(state) => state.on(event, facts),
            State::Staging(state) => state.on(event, facts),
            State::Staged(state) => state.on(event, facts),
            State::Draining(state) => state.on_draining(event, facts),
            State::Journaling(state) => state.on_journaling(event, facts),
            State::Swapping(state) => state.on_swapping(event, facts),
            State::Executing(state) => state.on_executing(event, facts),
        }
    }
}

impl Probation {
    fn is_of(&self, change: ChangeId) -> bool {
        self.change.is_some_and(|origin| origin.change == change)
    }

    fn on(mut self, event: Event, facts: &Facts) -> (State, Vec<Effect>) {
        match event {
            // Asked again by somebody who did not hear the answer before the exec.
            Event::SaveAsked { change, .. } | Event::AttachAsked { change, .. } if self.is_of(change) => {
                (State::Probation(self), answer(Ok(())))
            }
            Event::SaveAsked { change, record } => (State::Probation(self), save(change, record)),
            Event::Saved { change, result, took_us } => {
                let effects = saved(&mut self.saved, change, result, took_us, facts);
                (State::Probation(self), effects)
            }
            Event::Health { result: Ok(()) } => {
                (State::Probation(self), vec![Effect::Journal(JournalWrite::Confirmed)])
            }
            // The stub has the clock: it ends a version whose time is up.
            Event::Health { result: Err(why) } => {
                self.is_sick = true;
                (State::Probation(self), Effect::not_proved(why))
            }
            Event::Journaled { .. } => {
                let mut effects = Vec::new();
                if let Some(Origin { change, from }) = self.change {
                    effects.push(Effect::Report {
                        change,
                        from,
                        to: facts.running.tree,
                        step: Step::Confirmed,
                        took_us: Took::SinceExec,
                        detail: String::new(),
                    });
                }
                // Last: until it hears this, the stub tells of the confirmation when this process comes to its end.
                effects.push(Effect::TellConfirmed);
                let ended = self.change.map(|origin| Verdict::done(origin.change));
                (State::Serving(Serving { saved: self.saved, ended }), effects)
            }
            // A full disk is no fault of the version, but an unwritten confirmation is none: try until the time is up.
            Event::Failed { what } => {
                let why = Reason::new(format!("the confirmation cannot be written: {what}"));
                (State::Probation(self), Effect::not_proved(why))
            }
            Event::FinishAsked { change, .. } if self.is_of(change) => (State::Probation(self), answer(Ok(()))),
            // A version that was believed when it was started, and does not get well, may be left: whoever orders that
            // knows better than its health.
            Event::AttachAsked { change, release, attach, lazy, retry_bad }
                if self.change.is_none() && self.is_sick =>
            {
                let serving = Serving { saved: self.saved, ended: None };
                match serving.attach(Asked { change, release, attach, lazy, retry_bad }, facts) {
                    // It was refused: the running version may still get well.
                    (State::Serving(Serving { saved, .. }), effects) => {
                        (State::Probation(Probation { change: None, saved, is_sick: true }), effects)
                    }
                    staging => staging,
                }
            }
            Event::AttachAsked { .. } | Event::FinishAsked { .. } => {
                let text = "the running version has not proved itself yet; ask again when it has".to_owned();
                (State::Probation(self), answer(Err(Fault::Unavailable(text))))
            }
            Event::StageEnded { .. } | Event::Drained { .. } | Event::Swapped { .. } | Event::ExecReturned { .. } => {
                (State::Probation(self), Vec::new())
            }
        }
    }
}

impl Serving {
    /// What is answered to messages of a change-over that is over: they may come late, or once more.
    fn has_ended(&self, change: ChangeId) -> Option<Result<(), Fault>> {
        self.ended.as_ref().filter(|ended| ended.change == change).map(|ended| ended.reply.clone())
    }

    fn on(mut self, event: Event, facts: &Facts) -> (State, Vec<Effect>) {
        match event {
            Event::SaveAsked { change, .. } if self.has_ended(change).is_some() => {
                let reply = self.has_ended(change).unwrap_or(Ok(()));
                (State::Serving(self), answer(reply))
            }
            Event::SaveAsked { change, record } => (State::Serving(self), save(change, record)),
            Event::Saved { change, result, took_us } => {
                let effects = saved(&mut self.saved, change, result, took_us, facts);
                (State::Serving(self), effects)
            }
            Event::AttachAsked { change, release, attach, lazy, retry_bad } => {
                self.attach(Asked { change, release, attach, lazy, retry_bad }, facts)
            }
            Event::FinishAsked { change, .. } => {
                let reply = self.has_ended(change).unwrap_or_else(|| Err(out_of_order(change, "B")));
                (State::Serving(self), answer(reply))
            }
            // Late results of a change-over that is over.
            Event::StageEnded { .. }
            | Event::Drained { .. }
            | Event::Journaled { .. }
            | Event::Swapped { .. }
            | Event::Failed { .. }
            | Event::ExecReturned { .. }
            | Event::Health { .. } => (State::Serving(self), Vec::new()),
        }
    }

    fn attach(mut self, asked: Asked, facts: &Facts) -> (State, Vec<Effect>) {
        let change = asked.change;
        if let Some(reply) = self.has_ended(change) {
            return (State::Serving(self), answer(reply));
        }
        let target = match &self.saved {
            Some(saved) if saved.change == change && saved.candidate.entry.tree == asked.attach => saved.clone(),
            Some(_) | None => return (State::Serving(self), answer(Err(out_of_order(change, "A")))),
        };
        if target.candidate.entry == facts.running {
            self.ended = Some(Verdict::done(change));
            let detail = "this version runs already; nothing was done".to_owned();
            let report = report(&target, facts, Step::Confirmed, 0, detail);
            return (State::Serving(self), vec![Effect::Answer(Ok(())), report]);
        }
        if let Err(refusal) = judge(&target.candidate, &asked, facts) {
            let mut effects = answer(Err(Fault::Refused(refusal.text.clone())));
            if refusal.remember {
                let (entry, evidence) = (target.candidate.entry.clone(), refusal.text.clone());
                effects.push(Effect::RememberBad { entry, evidence });
            }
            effects.push(report(&target, facts, Step::Refused, 0, refusal.text.clone()));
            self.ended = Some(Verdict::refused(change, refusal.text));
            return (State::Serving(self), effects);
        }
        let effects = vec![
            Effect::Journal(JournalWrite::Staged(change, target.candidate.entry.clone())),
            Effect::Stage { target: Box::new(target.clone()), running: facts.running.tree, lazy: asked.lazy },
            Effect::Answer(Ok(())),
        ];
        (State::Staging(Staging { target, finish: None }), effects)
    }
}

impl Staging {
    fn on(mut self, event: Event, facts: &Facts) -> (State, Vec<Effect>) {
        match event {
            Event::StageEnded { change, .. } if change != self.target.change => (State::Staging(self), Vec::new()),
            Event::StageEnded { result: Ok(done), took_us, .. } => {
                let staging_us = took_us.saturating_sub(done.warm_us);
                let mut effects = vec![
                    report(&self.target, facts, Step::Staged, staging_us, done.detail),
                    report(&self.target, facts, Step::Warmed, done.warm_us, String::new()),
                ];
                match self.finish {
                    None => (State::Staged(Staged { target: self.target }), effects),
                    Some(deadline_ms) => {
                        effects.push(Effect::Drain { change: self.target.change, deadline_ms });
                        (State::Draining(Leaving { target: self.target }), effects)
                    }
                }
            }
            Event::StageEnded { result: Err(StageFault::OfTheWorld(reason)), .. } => {
                refuse(self.target, facts, format!("staging failed: {reason}"), false)
            }
            Event::StageEnded { result: Err(StageFault::OfTheVersion(reason)), .. } => {
                refuse(self.target, facts, reason, true)
            }
            // The journal could not say what is staged, so the mount daemon would not keep it.
            Event::Failed { what } => {
                let reply = Effect::Answer(Err(Fault::Failed(what.clone())));
                let (state, mut effects) = refuse(self.target, facts, what, false);
                effects.insert(0, reply);
                (state, effects)
            }
            Event::FinishAsked { change, drain_deadline_ms } if change == self.target.change => {
                self.finish = Some(drain_deadline_ms);
                (State::Staging(self), answer(Ok(())))
            }
            event if event.is_message() => match known(&self.target, &event) {
                Some(reply) => (State::Staging(self), answer(reply)),
                None => supersede(self.target, event, facts, vec![Effect::CancelStage]),
            },
            // Results that nobody waits for; messages have been answered above.
            _ => (State::Staging(self), Vec::new()),
        }
    }
}

impl Staged {
    fn on(self, event: Event, facts: &Facts) -> (State, Vec<Effect>) {
        match event {
            Event::FinishAsked { change, drain_deadline_ms } if change == self.target.change => {
                let drain = Effect::Drain { change, deadline_ms: drain_deadline_ms };
                (State::Draining(Leaving { target: self.target }), vec![Effect::Answer(Ok(())), drain])
            }
            event if event.is_message() => match known(&self.target, &event) {
                Some(reply) => (State::Staged(self), answer(reply)),
                None => supersede(self.target, event, facts, Vec::new()),
            },
            // Results that nobody waits for; messages have been answered above.
            _ => (State::Staged(self), Vec::new()),
        }
    }
}

impl Leaving {
    fn on_draining(self, event: Event, facts: &Facts) -> (State, Vec<Effect>) {
        match event {
            Event::Drained { change, detail, took_us } if change == self.target.change => {
                let detail = with_state(detail, &self.target.candidate, facts);
                let effects = vec![
                    report(&self.target, facts, Step::Drained, took_us, detail),
                    Effect::Journal(JournalWrite::Intent(Box::new(self.target.clone()))),
                ];
                (State::Journaling(self), effects)
            }
            Event::Failed { what } => self.undo(Step::Refused, format!("it cannot be left: {what}"), facts),
            event => self.busy(event, State::Draining),
        }
    }

    fn on_journaling(self, event: Event, facts: &Facts) -> (State, Vec<Effect>) {
        match event {
            Event::Journaled { took_us } => {
                let effects = vec![
                    report(&self.target, facts, Step::Journaled, took_us, String::new()),
                    Effect::Swap(self.target.candidate.entry.tree),
                ];
                (State::Swapping(self), effects)
            }
            Event::Failed { what } => {
                self.undo(Step::Refused, format!("the journal cannot be written: {what}"), facts)
            }
            event => self.busy(event, State::Journaling),
        }
    }

    fn on_swapping(self, event: Event, facts: &Facts) -> (State, Vec<Effect>) {
        match event {
            Event::Swapped { took_us } => {
                let effects = vec![
                    report(&self.target, facts, Step::Swapped, took_us, String::new()),
                    Effect::Exec(Box::new(self.target.clone())),
                ];
                (State::Executing(self), effects)
            }
            Event::Failed { what } => self.undo(Step::Refused, format!("the swap failed: {what}"), facts),
            event => self.busy(event, State::Swapping),
        }
    }

    fn on_executing(self, event: Event, facts: &Facts) -> (State, Vec<Effect>) {
        match event {
            Event::ExecReturned { fault, of_the_version } => {
                let entry = self.target.candidate.entry.clone();
                let (state, mut effects) = self.undo(Step::ExecFailed, fault.clone(), facts);
                if of_the_version {
                    effects.push(Effect::RememberBad { entry, evidence: format!("execve: {fault}") });
                }
                (state, effects)
            }
            event => self.busy(event, State::Executing),
        }
    }

    /// What was done is undone at once, and the old version serves on.
    fn undo(self, step: Step, reason: String, facts: &Facts) -> (State, Vec<Effect>) {
        let mut effects = Vec::new();
        if step == Step::ExecFailed {
            effects.push(Effect::TellExecReturned);
        }
        effects.push(Effect::SwapBack(facts.running.tree));
        effects.push(Effect::Journal(JournalWrite::Back));
        effects.push(Effect::Resume);
        effects.push(report(&self.target, facts, step, 0, reason.clone()));
        let ended = Some(Verdict::refused(self.target.change, reason));
        (State::Serving(Serving { saved: None, ended }), effects)
    }

    /// Messages while the agent is on its way out, and late results.
    fn busy(self, event: Event, state: fn(Leaving) -> State) -> (State, Vec<Effect>) {
        let ours = self.target.change;
        match event {
            Event::SaveAsked { change, .. }
            | Event::AttachAsked { change, .. }
            | Event::FinishAsked { change, .. } => {
                let text = format!("change-over {} is under way; ask again when it is over", ours.0);
                let reply = if change == ours { Ok(()) } else { Err(Fault::Unavailable(text)) };
                (state(self), answer(reply))
            }
            Event::Saved { .. }
            | Event::StageEnded { .. }
            | Event::Drained { .. }
            | Event::Journaled { .. }
            | Event::Swapped { .. }
            | Event::Failed { .. }
            | Event::ExecReturned { .. }
            | Event::Health { .. } => (state(self), Vec::new()),
        }
    }
}

/// What a message gets while `target` is being made ready, or is; `None`: it is of a newer change-over.
fn known(target: &Saved, message: &Event) -> Option<Result<(), Fault>> {
    match message {
        Event::FinishAsked { change, .. } if *change != target.change => Some(Err(out_of_order(*change, "B"))),
        Event::SaveAsked { change, .. } | Event::AttachAsked { change, .. } if *change < target.change => {
            Some(Err(Fault::Refused(format!("change-over {} came after it", target.change.0))))
        }
        Event::SaveAsked { change, .. } | Event::AttachAsked { change, .. } if *change > target.change => None,
        // Asked again by somebody who did not hear the answer.
        _ => Some(Ok(())),
    }
}

fn answer(reply: Result<(), Fault>) -> Vec<Effect> {
    vec![Effect::Answer(reply)]
}

fn save(change: ChangeId, record: Vec<u8>) -> Vec<Effect> {
    vec![Effect::SaveRecord { change, record }]
}

fn saved(
    place: &mut Option<Saved>,
    change: ChangeId,
    result: Result<Box<Candidate>, Reason>,
    took_us: u64,
    facts: &Facts,
) -> Vec<Effect> {
    match result {
        Ok(candidate) => {
            let saved = Saved { change, candidate: *candidate };
            let report = report(&saved, facts, Step::MetadataSaved, took_us, String::new());
            *place = Some(saved);
            vec![Effect::Answer(Ok(())), report]
        }
        // There is no believable record, so there is no tree that a step could be reported of: the answer says it all.
        Err(reason) => answer(Err(Fault::Refused(reason.to_string()))),
    }
}

fn report(target: &Saved, facts: &Facts, step: Step, took_us: u64, detail: String) -> Effect {
    let (from, to) = (Some(facts.running.tree), target.candidate.entry.tree);
    Effect::Report { change: target.change, from, to, step, took_us: Took::Us(took_us), detail }
}

fn refuse(target: Saved, facts: &Facts, reason: String, remember: bool) -> (State, Vec<Effect>) {
    let mut effects = Vec::new();
    if remember {
        let entry = target.candidate.entry.clone();
        effects.push(Effect::RememberBad { entry, evidence: reason.clone() });
    }
    effects.push(Effect::Journal(JournalWrite::NothingStaged));
    effects.push(report(&target, facts, Step::Refused, 0, reason.clone()));
    let ended = Some(Verdict::refused(target.change, reason));
    (State::Serving(Serving { saved: None, ended }), effects)
}

/// A newer change-over takes the place of one that has not begun to drain.
fn supersede(old: Saved, newer: Event, facts: &Facts, mut effects: Vec<Effect>) -> (State, Vec<Effect>) {
    let (state, refused) = refuse(old, facts, "a newer change-over took its place".to_owned(), false);
    effects.extend(refused);
    let (state, more) = state.on(newer, facts);
    effects.extend(more);
    (state, effects)
}

fn out_of_order(change: ChangeId, missing: &str) -> Fault {
    Fault::BadRequest(format!("message {missing} of change-over {} has not come to the running agent", change.0))
}
