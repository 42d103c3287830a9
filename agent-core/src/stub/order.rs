//! An order to change over, at the stub: taken because there is no agent that could take it. Which messages fit, what
//! they are answered, and what follows; `carry.rs` performs it.

use std::path::PathBuf;
use std::time::Instant;

use proto::agent::{AgentReply, AgentRequest, AgentStatus, ChangeId, Step, StepEvent};
use proto::message::Fault;
use proto::{TreeId, Version};

use crate::AgentPaths;
use crate::bad;
use crate::durable::FileFault;
use crate::generation;
use crate::journal::{Entry, Journal, Phase};
use crate::machine::{Asked, Facts, judge};
use crate::moments::{self, Moment};
use crate::permits::{self, Stays};
use crate::records::{self, Verified};
use crate::report::unix_ms;

/// An order, as far as it has come.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) change: ChangeId,
    /// Message A as it came: an agent that comes up after all is given it.
    pub(super) record: Vec<u8>,
    pub(super) verified: Verified,
    /// Message B has come, and is allowed; its words.
    pub(super) attach: Option<Wishes>,
    /// Message C has come; its drain deadline, milliseconds.
    pub(super) finish: Option<u64>,
    /// The steps so far, for the evidence.
    pub(super) steps: Vec<StepEvent>,
}

/// How the order wants it done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wishes {
    pub(super) lazy: bool,
    pub(super) retry_bad: bool,
}

/// The order that is here, if there is one, and how the last one ended.
#[derive(Debug, Default)]
pub(super) struct Desk {
    pub(super) order: Option<Order>,
    ended: Option<(ChangeId, Fault)>,
}

/// What the desk must know of the stub.
#[derive(Debug)]
pub(super) struct Here {
    pub(super) paths: AgentPaths,
    pub(super) journal: Journal,
    /// Why a new order is not taken here, if it is not.
    pub(super) closed: Option<Fault>,
    pub(super) status: AgentStatus,
}

/// What follows from a request.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) reply: AgentReply,
    pub(super) reports: Vec<StepEvent>,
    pub(super) next: Next,
}

/// What the stub is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing but to answer.
    Nothing,
    /// Another order has been here, and is over: nobody waits for its tree.
    Forget,
    /// Make the tree ready.
    Stage,
    /// Change over, as soon as the tree is ready and no program runs.
    CarryOut,
}

impl Desk {
    /// Handles one request.
    pub(super) fn hear(&mut self, request: AgentRequest, here: &Here) -> Heard {
        let mut heard = Heard { reply: AgentReply::Done, reports: Vec::new(), next: Next::Nothing };
        let done = match request {
            AgentRequest::Status => {
                heard.reply = AgentReply::Status(here.status.clone());
                return heard;
            }
            AgentRequest::SaveMetadata { change, record } => self.save(change, record, here, &mut heard),
            AgentRequest::Attach { change, release, attach, lazy, retry_bad } => {
                let asked = Asked { change, release, attach, lazy, retry_bad };
                self.attach(&asked, here, &mut heard)
            }
            AgentRequest::Finish { change, drain_deadline_ms } => self.finish(change, drain_deadline_ms, &mut heard),
            AgentRequest::Run { .. } | AgentRequest::Cancel { .. } => {
                Err(Fault::BadRequest("jobs are for the agent's own socket".to_owned()))
            }
        };
        if let Err(fault) = done {
            heard.reply = AgentReply::Fault(fault);
        }
        heard
    }

    /// Ends the order that is here, if there is one. Returns the report of its end.
    pub(super) fn end(&mut self, paths: &AgentPaths, running: &Entry, reason: &str) -> Option<StepEvent> {
        let order = self.order.take()?;
        self.ended = Some((order.change, Fault::Refused(reason.to_owned())));
        Some(step(paths, &order, running, Step::Refused, 0, reason))
    }

    /// The agent runs again. Its order, if that is complete: the agent is given it. What is not is asked again.
    pub(super) fn hand_over(&mut self) -> Option<Order> {
        let order = self.order.take()?;
        if order.finish.is_some() {
            return Some(order);
        }
        let text = "the agent runs again, and takes orders itself; ask again".to_owned();
        self.ended = Some((order.change, Fault::Unavailable(text)));
        None
    }

    /// The order, for good: all messages have come.
    pub(super) fn take_complete(&mut self) -> Option<Order> {
        self.order.take_if(|order| order.finish.is_some())
    }

    fn has_ended(&self, change: ChangeId) -> Option<Fault> {
        self.ended.as_ref().filter(|(ended, _)| *ended == change).map(|(_, fault)| fault.clone())
    }

    fn save(&mut self, change: ChangeId, record: Vec<u8>, here: &Here, heard: &mut Heard) -> Result<(), Fault> {
        match &self.order {
            // Asked again by somebody who did not hear the answer.
            Some(order) if order.change == change => return Ok(()),
            Some(order) if order.change > change => {
                return Err(Fault::Refused(format!("change-over {} came after it", order.change.0)));
            }
            Some(_) | None => {}
        }
        // One that was told to ask again may do so.
        if let Some(fault) = self.has_ended(change).filter(|fault| !matches!(fault, Fault::Unavailable(_))) {
            return Err(fault);
        }
        if let Some(fault) = &here.closed {
            return Err(fault.clone());
        }
        permits::may_change_over(&here.paths).map_err(|e| Fault::Refused(e.to_string()))?;
        let begun = Instant::now();
        let path = here.paths.records();
        let reached = moments::reach(Moment::StubRecord, &path);
        let saved = reached.map_err(|e| FileFault::io(&path, e).into());
        let saved = saved.and_then(|()| records::order(&here.paths, &record, &here.journal));
        let verified = saved.map_err(|e| Fault::Refused(e.to_string()))?;
        let newer = "a newer change-over took its place";
        if let Some(event) = self.end(&here.paths, &here.journal.current, newer) {
            heard.reports.push(event);
            heard.next = Next::Forget;
        }
        let took_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut order = Order { change, record, verified, attach: None, finish: None, steps: Vec::new() };
        let event = step(&here.paths, &order, &here.journal.current, Step::MetadataSaved, took_us, "");
        order.steps.push(event.clone());
        heard.reports.push(event);
        self.order = Some(order);
        Ok(())
    }

    fn attach(&mut self, asked: &Asked, here: &Here, heard: &mut Heard) -> Result<(), Fault> {
        let change = asked.change;
        if let Some(fault) = self.has_ended(change) {
            return Err(fault);
        }
        let order = self.of(change, "A")?;
        if order.verified.record.tree != asked.attach {
            return Err(out_of_order(change, "A"));
        }
        if order.attach.is_some() {
            return Ok(());
        }
        if let Err(refusal) = may_be_started(&order.verified, asked, here) {
            let refusal = refusal.to_string();
            if let Some(event) = self.end(&here.paths, &here.journal.current, &refusal) {
                heard.reports.push(event);
            }
            return Err(Fault::Refused(refusal));
        }
        order.attach = Some(Wishes { lazy: asked.lazy, retry_bad: asked.retry_bad });
        heard.next = Next::Stage;
        Ok(())
    }

    fn finish(&mut self, change: ChangeId, drain_ms: u64, heard: &mut Heard) -> Result<(), Fault> {
        if let Some(fault) = self.has_ended(change) {
            return Err(fault);
        }
        let order = self.of(change, "B")?;
        if order.attach.is_none() {
            return Err(out_of_order(change, "B"));
        }
        order.finish = Some(drain_ms);
        heard.next = Next::CarryOut;
        Ok(())
    }

    fn of(&mut self, change: ChangeId, missing: &str) -> Result<&mut Order, Fault> {
        let order = self.order.as_mut().filter(|order| order.change == change);
        order.ok_or_else(|| out_of_order(change, missing))
    }
}

/// The step of an order that the stub carries out.
pub(super) fn step(
    paths: &AgentPaths,
    order: &Order,
    from: &Entry,
    step: Step,
    duration_us: u64,
    detail: &str,
) -> StepEvent {
    StepEvent {
        change: order.change,
        product: paths.product().clone(),
        from: Some(from.tree),
        to: order.verified.record.tree,
        step,
        at_unix_ms: unix_ms(),
        duration_us,
        detail: detail.to_owned(),
    }
}

/// The journal once the stub has changed over. What does not come up is still the only thing to return to.
pub(super) fn intended(journal: &Journal, order: &Order) -> Journal {
    let from = journal.current.clone();
    let probation_ms = order.verified.record.metadata.health.probation_ms;
    Journal {
        sequence: journal.sequence,
        reason: format!("changed over from {}, which did not run", from.version),
        last_good: Some(from),
        phase: Phase::Probation { change: order.change, attempts: 1, probation_ms },
        ..Journal::first(order.verified.entry())
    }
}

/// A change-over that is under way is over before another one is ordered.
pub(super) fn closed_by(journal: &Journal) -> Option<Fault> {
    match journal.phase {
        Phase::Probation { change, .. } if change != ChangeId(0) => {
            Some(Fault::Unavailable(format!("change-over {} is under way; ask again when it is over", change.0)))
        }
        Phase::Probation { .. } | Phase::Launching | Phase::Confirmed => None,
    }
}

/// Gives the record of an order that the stub carries out its place: what is started reads it there.
pub(super) fn place(paths: &AgentPaths, verified: &Verified) -> Result<(), FileFault> {
    let path = paths.records();
    moments::reach(Moment::StubPlace, &path).map_err(|e| FileFault::io(&path, e))?;
    records::place(paths, verified)
}

/// Why a version may not be started in the place of one that does not come up.
#[derive(Debug, thiserror::Error)]
enum NotStarted {
    #[error(transparent)]
    Permits(#[from] Stays),
    #[error("{version} is what is started here already, and it does not come up: {why}")]
    Same { version: Version, why: String },
    #[error("{0}")]
    Judged(String),
}

fn may_be_started(verified: &Verified, asked: &Asked, here: &Here) -> Result<(), NotStarted> {
    permits::may_change_over(&here.paths)?;
    let running = &here.journal.current;
    if verified.entry() == *running {
        return Err(NotStarted::Same { version: running.version.clone(), why: here.status.reason.clone() });
    }
    // No program hands its state over, so none has to be read.
    let facts = Facts {
        running: running.clone(),
        writes: 0..=u32::MAX,
        snapshots: Vec::new(),
        machine: generation::machine(),
    };
    let candidate = verified.clone().candidate(&here.paths);
    judge(&candidate, asked, &facts).map_err(|refusal| {
        if refusal.remember {
            let (entry, text) = (verified.entry(), &refusal.text);
            let evidence = format!("{text}\n{} (tree {})\n", verified.record.name(), entry.tree);
            // What cannot be written is found out again.
            drop(bad::remember(&here.paths, &entry.tree, &evidence));
        }
        NotStarted::Judged(refusal.text)
    })
}

fn out_of_order(change: ChangeId, missing: &str) -> Fault {
    Fault::BadRequest(format!("message {missing} of change-over {} has not come to the stub", change.0))
}

/// Where a staged tree is.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) tree: TreeId,
    pub(super) path: PathBuf,
}
