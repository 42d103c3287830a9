//! Orders that come to the stub: taken while no agent can take them, and carried out by the stub, or given to the agent
//! if that comes up after all.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::agent::{AgentReply, AgentRequest, AgentState, AgentStatus, Step};
use proto::message::Fault;

use super::StubError;
use super::begin;
use super::door::Door;
use super::order::{self, Here, Next, Order, Ready};
use super::staging::{Staged, Staging};
use super::verdict::History;
use super::watch::{Program, Stub, micros};
use crate::AgentPaths;
use crate::bad;
use crate::control::{Client, ControlError};
use crate::durable::Durability;
use crate::journal;
use crate::machine::StageFault;
use crate::moments::Moment;
use crate::stage;

/// How long an agent may take for one message of an order that it is given.
const AGENT_PATIENCE: Duration = Duration::from_secs(30);

impl Stub<'_> {
    /// Answers whoever is at the door.
    pub(super) fn hear_visitors(&mut self) -> Result<(), StubError> {
        for asked in self.door.as_mut().map(Door::hear).unwrap_or_default() {
            let (reply, next) = match &asked.request {
                Err(fault) => (AgentReply::Fault(fault.clone()), Next::Nothing),
                Ok(request) => {
                    let here = self.here();
                    let heard = self.desk.hear(request.clone(), &here);
                    for event in &heard.reports {
                        self.reporter.report(event, Durability::PowerCut);
                    }
                    (heard.reply, heard.next)
                }
            };
            match next {
                Next::Nothing | Next::CarryOut => {}
                Next::Forget => self.forget_staging(),
                Next::Stage => self.begin_staging(),
            }
            if let Some(door) = &mut self.door {
                door.answer(&asked, &reply);
            }
            if next == Next::CarryOut {
                self.carry_out()?;
            }
        }
        Ok(())
    }

    /// Whether a new order is taken here: while no program runs, or one that has failed before and has not shown since
    /// that it works.
    fn takes_orders(&self) -> bool {
        match &self.program {
            Program::Waiting(_) => true,
            Program::Running(running) => !running.confirmed && self.history.failures > 0,
            Program::Over => false,
        }
    }

    fn here(&self) -> Here {
        let closed = if self.takes_orders() {
            order::closed_by(&self.journal)
        } else {
            let name = self.verified.record.name();
            Some(Fault::Unavailable(format!("{name} runs here, and takes orders itself; ask it")))
        };
        Here { paths: self.paths.clone(), journal: self.journal.clone(), closed, status: self.status() }
    }

    /// What the stub knows of the agent.
    fn status(&self) -> AgentStatus {
        let stopped = begin::stopped(&self.paths, &self.journal, &self.why);
        match &self.program {
            Program::Running(running) if !self.takes_orders() => AgentStatus {
                pid: running.pid.as_raw_nonzero().get().unsigned_abs(),
                state: if running.confirmed { AgentState::Serving } else { AgentState::Probation },
                reason: self.journal.reason.clone(),
                ..stopped
            },
            Program::Running(_) | Program::Waiting(_) | Program::Over => stopped,
        }
    }

    /// Begins to make the ordered tree ready, and pins it.
    pub(super) fn begin_staging(&mut self) {
        let Some((order, wishes)) = self.desk.order.as_ref().and_then(|order| Some((order, order.attach?))) else {
            return;
        };
        let (change, entry) = (order.change, order.verified.entry());
        let order = stage::Order {
            tree: entry.tree,
            // What does not come up need not be made whole for what is to take its place.
            running: None,
            lazy: wishes.lazy,
            entry_point: order.verified.entry_point.clone(),
        };
        self.observer.say(&format!("ordered to change over to {}; making it ready", entry.version));
        self.ready = None;
        self.journal.staged = Some(journal::Staged { change, entry });
        self.write_journal(Moment::StubStaged);
        match Staging::begin(&self.paths, change, order) {
            Ok(staging) => self.staging = Some(staging),
            Err(e) => self.end_order(&format!("no thread can be started: {e}")),
        }
    }

    pub(super) fn look_at_staging(&mut self) -> Result<(), StubError> {
        let Some((change, staged)) = self.staging.as_ref().and_then(|s| Some((s.change, s.look()?))) else {
            return Ok(());
        };
        self.staging = None;
        // Of an order that is over.
        let Some(order) = self.desk.order.as_mut().filter(|order| order.change == change) else { return Ok(()) };
        let Staged { result, took_us } = staged;
        match result {
            Ok((done, path)) => {
                let staging_us = took_us.saturating_sub(done.warm_us);
                for (step, took_us, detail) in
                    [(Step::Staged, staging_us, &*done.detail), (Step::Warmed, done.warm_us, "")]
                {
                    let event = order::step(&self.paths, order, &self.journal.current, step, took_us, detail);
                    self.reporter.report(&event, Durability::PowerCut);
                    order.steps.push(event);
                }
                self.ready = Some(Ready { tree: order.verified.record.tree, path });
                self.carry_out()
            }
            Err(fault) => {
                let (StageFault::OfTheVersion(why) | StageFault::OfTheWorld(why)) = &fault;
                if matches!(fault, StageFault::OfTheVersion(_)) {
                    let entry = order.verified.entry();
                    let evidence = format!("{why}\n{} (tree {})\n", order.verified.record.name(), entry.tree);
                    if let Err(e) = bad::remember(&self.paths, &entry.tree, &evidence) {
                        self.observer.say(&e.to_string());
                    }
                }
                let why = why.clone();
                self.end_order(&why);
                Ok(())
            }
        }
    }

    /// Changes over, if the order is complete, its tree ready, and no program in the way.
    pub(super) fn carry_out(&mut self) -> Result<(), StubError> {
        let is_ready = |order: &Order| {
            let tree = order.verified.record.tree;
            order.finish.is_some() && self.ready.as_ref().is_some_and(|ready| ready.tree == tree)
        };
        let is_ready = self.desk.order.as_ref().is_some_and(is_ready);
        if !is_ready || !matches!(self.program, Program::Waiting(_)) || order::closed_by(&self.journal).is_some() {
            return Ok(());
        }
        let placed = self.desk.order.as_ref().map(|order| order::place(&self.paths, &order.verified));
        if let Some(Err(e)) = placed {
            self.end_order(&e.to_string());
            return Ok(());
        }
        let (Some(mut order), Some(ready)) = (self.desk.take_complete(), self.ready.take()) else { return Ok(()) };
        let from = self.journal.current.clone();
        self.journal = order::intended(&self.journal, &order);
        let begun = Instant::now();
        self.write_journal(Moment::StubIntent);
        let took_us = micros(begun);
        let event = order::step(&self.paths, &order, &from, Step::Journaled, took_us, "no agent ran");
        self.reporter.report(&event, Durability::PowerCut);
        order.steps.push(event);
        self.observer.say(&format!(
            "changing over from {}, which does not run, to {}",
            from.version, self.journal.current.version
        ));
        self.carried = order.steps;
        self.verified = order.verified;
        self.path = ready.path;
        self.hold = None;
        self.history = History::default();
        self.returning = None;
        self.start()
    }

    /// The order that is here comes to nothing.
    pub(super) fn end_order(&mut self, why: &str) {
        self.forget_staging();
        let Some(event) = self.desk.end(&self.paths, &self.journal.current, why) else { return };
        self.observer.say(&format!("the order to change over is refused: {why}"));
        self.reporter.report(&event, Durability::PowerCut);
        self.journal.staged = None;
        self.write_journal(Moment::StubJournal);
    }

    fn forget_staging(&mut self) {
        self.staging = None;
        self.ready = None;
    }

    /// The agent works: it takes its orders itself, also the one that is here.
    pub(super) fn hand_over(&mut self) {
        let order = self.desk.hand_over();
        self.forget_staging();
        self.journal.staged = None;
        let Some(order) = order else { return };
        self.observer
            .say(&format!("giving the order to change over to {} to the agent", order.verified.record.version));
        let (order, paths) = (Arc::new(order), self.paths.clone());
        let refused = {
            let (paths, reporter, from) = (paths.clone(), self.reporter.clone(), self.journal.current.clone());
            move |order: &Order, why: &str| {
                reporter.report(&order::step(&paths, order, &from, Step::Refused, 0, why), Durability::PowerCut);
            }
        };
        let (given, refuse) = (Arc::clone(&order), refused.clone());
        let give = move || {
            if let Err(e) = give(&paths, &given) {
                refuse(&given, &format!("the agent that has come up does not take it: {e}"));
            }
        };
        if let Err(e) = std::thread::Builder::new().name("order".to_owned()).spawn(give) {
            refused(&order, &format!("no thread can be started: {e}"));
        }
    }
}

/// The agent does not take an order.
#[derive(Debug, thiserror::Error)]
enum NotTaken {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("{0}")]
    Refused(Fault),
    #[error("it answers something else")]
    Unexpected,
}

/// Messages A, B and C, to the agent.
fn give(paths: &AgentPaths, order: &Order) -> Result<(), NotTaken> {
    let change = order.change;
    let (lazy, retry_bad) = order.attach.map_or((false, false), |wishes| (wishes.lazy, wishes.retry_bad));
    let messages = [
        AgentRequest::SaveMetadata { change, record: order.record.clone() },
        AgentRequest::Attach { change, release: None, attach: order.verified.record.tree, lazy, retry_bad },
        AgentRequest::Finish { change, drain_deadline_ms: order.finish.unwrap_or_default() },
    ];
    for message in &messages {
        match Client::ask(&paths.socket(), message, AGENT_PATIENCE)? {
            AgentReply::Done => {}
            AgentReply::Fault(fault) => return Err(NotTaken::Refused(fault)),
            AgentReply::Status(_) | AgentReply::Outcome(_) => return Err(NotTaken::Unexpected),
        }
    }
    Ok(())
}
