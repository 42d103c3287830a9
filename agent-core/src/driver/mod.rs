//! The only loop: takes messages and results, asks the machine what follows, performs the effects.

mod journal;
mod state;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvError, RecvTimeoutError, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use proto::TreeId;
use proto::agent::{AgentRequest, AgentState, ChangeId, Step, StepEvent};
use proto::message::Fault;

use crate::adapter::Start;
use crate::channel::{Channel, StubMessage};
use crate::drain::Drained;
use crate::durable::{Durability, FileFault};
use crate::exec::{self, Crossing};
use crate::generation::Attachment;
use crate::handoff::{Handoff, variable};
use crate::inherited::Inherited;
use crate::jobs::Jobs;
use crate::journal::{Journal, Phase};
use crate::machine::{Effect, Event, Facts, Reason, Saved, StageDone, State, Took};
use crate::moments::{self, Moment};
use crate::paths::AgentPaths;
use crate::predecessor::Predecessor;
use crate::program::Program;
use crate::records::{self, RecordError, Verified};
use crate::report::{Reporter, unix_ms};
use crate::serve::Server;
use crate::stage::{Order, StageHandle, stage};
use crate::sys::fd::FileId;
use crate::{bad, confirm, drain, serve, state as saved_state, swap, sys};
use state::Handing;

/// Between two tries to write a journal that the disk would not take.
const WRITE_AGAIN: Duration = Duration::from_secs(5);

/// What comes to the driver.
#[allow(clippy::large_enum_variant, reason = "a handful are under way at once")]
pub(crate) enum Input {
    /// A message of the operations API; the sender waits for the answer.
    Message(AgentRequest, SyncSender<Result<(), Fault>>),
    /// Something that was done in the background.
    Event(Event),
    /// A generation is ready.
    Ready(Ready),
    /// No operation is under way any more.
    Drained { change: ChangeId, drained: Drained, took_us: u64 },
    /// End in good order; the sender waits.
    Stop(Duration, SyncSender<()>),
}

/// A generation that is ready, and where.
pub(crate) struct Ready {
    change: ChangeId,
    tree: TreeId,
    path: PathBuf,
    done: StageDone,
    took_us: u64,
}

/// An effect that must succeed failed.
#[derive(Debug, thiserror::Error)]
enum EffectFault {
    #[error(transparent)]
    File(#[from] FileFault),
}

/// Everything that effects are performed with.
pub(crate) struct Driver {
    pub(crate) facts: Facts,
    pub(crate) paths: AgentPaths,
    pub(crate) journal: Journal,
    pub(crate) program: Arc<Program>,
    pub(crate) inherited: Inherited,
    /// What an adapter left to this version.
    pub(crate) predecessor: Predecessor,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) server: Server,
    pub(crate) reporter: Reporter,
    pub(crate) stub: Option<Arc<Channel>>,
    pub(crate) lock: Option<OwnedFd>,
    pub(crate) shown: Arc<Mutex<AgentState>>,
    pub(crate) inputs: Sender<Input>,
    /// When the change-over to this version called `execve`, or when this version began.
    pub(crate) exec_us: u64,
    /// Steps of the change-over that is under way.
    pub(crate) timeline: Vec<StepEvent>,
    /// The journal on disk does not say what this program is: it is written as soon as the disk takes it.
    pub(crate) unwritten: bool,
    /// The schema in which the state is to be handed over is chosen when the candidate is known.
    pub(crate) work: Work,
}

/// What is under way.
#[derive(Default)]
pub(crate) struct Work {
    reply: Option<SyncSender<Result<(), Fault>>>,
    /// The record of the last message A.
    ordered: Option<Verified>,
    staging: Option<StageHandle>,
    ready: BTreeMap<TreeId, PathBuf>,
    /// Where `current` led before the swap.
    link_before: Option<PathBuf>,
    /// What the exec demands.
    drained: Option<Drained>,
    journal_before: Option<Journal>,
    /// The schema in which this version has kept its state, for the case that it comes back.
    saved_schema: Option<u32>,
    /// What the library's own descriptors led to at the start.
    own: Vec<Option<FileId>>,
    /// What the stub was told last of why this version has not proved itself.
    unwell: Option<Reason>,
    /// Set by `Stop`: nothing new is begun.
    stopping: Arc<AtomicBool>,
}

impl Driver {
    /// Runs until the program ends or becomes another one.
    pub(crate) fn run(mut self, mut state: State, first: Vec<Effect>, inputs: &Receiver<Input>) {
        let mut queue = VecDeque::new();
        self.work.own = self.own_files();
        self.perform_all(first, &mut queue);
        state = self.drain_queue(state, &mut queue);
        loop {
            let input = match self.next_input(inputs) {
                Ok(Some(input)) => input,
                Ok(None) => continue,
                Err(RecvError) => return,
            };
            match input {
                Input::Message(request, reply) => {
                    self.work.reply = Some(reply);
                    queue.extend(event_of(request));
                }
                Input::Event(event) => queue.push_back(event),
                Input::Drained { change, drained, took_us } => {
                    queue.push_back(self.drained(change, drained, took_us))
                }
                Input::Ready(Ready { change, tree, path, done, took_us }) => {
                    if let Err(e) = reach(Moment::LinkPrepare, &self.paths.link())
                        .and_then(|()| swap::prepare(&self.paths, &tree, &path))
                    {
                        tracing::warn!("the link cannot be prepared: {e}");
                    }
                    self.work.ready.insert(tree, path);
                    queue.push_back(Event::StageEnded { change, result: Ok(done), took_us });
                }
                Input::Stop(at_most, reply) => {
                    self.work.stopping.store(true, Ordering::Release);
                    drain::stop(&self.jobs, &self.program, at_most);
                    self.server.quiesce();
                    let _ = reply.send(());
                    return;
                }
            }
            state = self.drain_queue(state, &mut queue);
            if let Some(reply) = self.work.reply.take() {
                let text = "the message was not answered; this is a fault of the agent".to_owned();
                drop(reply.send(Err(Fault::Failed(text))));
            }
        }
    }

    /// Waits for what comes next; `None` when it was time to write what the disk would not take before.
    fn next_input(&mut self, inputs: &Receiver<Input>) -> Result<Option<Input>, RecvError> {
        if !self.unwritten {
            return inputs.recv().map(Some);
        }
        match inputs.recv_timeout(WRITE_AGAIN) {
            Ok(input) => Ok(Some(input)),
            Err(RecvTimeoutError::Disconnected) => Err(RecvError),
            Err(RecvTimeoutError::Timeout) => {
                // A probation is confirmed by the machine, which tries again by itself.
                if !matches!(self.journal.phase, Phase::Probation { .. }) {
                    self.unwritten = self.journal.write(&self.paths.journal()).is_err();
                }
                Ok(None)
            }
        }
    }

    fn drain_queue(&mut self, mut state: State, queue: &mut VecDeque<Event>) -> State {
        while let Some(event) = queue.pop_front() {
            tracing::debug!(?event, "change-over");
            let (next, effects) = state.on(event, &self.facts);
            state = next;
            self.perform_all(effects, queue);
            // After the effects: whoever reads `draining` may rely on it that no operation is taken any more.
            *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = state.shown();
        }
        state
    }

    fn perform_all(&mut self, effects: Vec<Effect>, queue: &mut VecDeque<Event>) {
        for effect in effects {
            match self.perform(effect) {
                Ok(event) => queue.extend(event),
                Err(fault) => {
                    queue.push_back(Event::Failed { what: fault.to_string() });
                    return;
                }
            }
        }
    }

    fn perform(&mut self, effect: Effect) -> Result<Option<Event>, EffectFault> {
        match effect {
            Effect::Answer(result) => {
                if let Some(reply) = self.work.reply.take() {
                    drop(reply.send(result));
                }
            }
            Effect::SaveRecord { change, record } => return Ok(Some(self.save(change, &record))),
            Effect::Journal(write) => return self.write_journal(write),
            Effect::Stage { target, running, lazy } => self.stage(&target, running, lazy),
            Effect::CancelStage => {
                if let Some(staging) = self.work.staging.take() {
                    staging.cancel();
                }
            }
            Effect::Drain { change, deadline_ms } => {
                // Before anybody waits for the new version: it is two files, each of them synced.
                self.place_record()?;
                self.drain(change, deadline_ms);
            }
            Effect::Resume => {
                self.work.drained = None;
                self.reporter.resume();
                self.jobs.end_drain();
                self.program.resume();
            }
            Effect::Swap(tree) => return self.swap(tree).map(Some),
            Effect::SwapBack(tree) => self.swap_back(tree),
            Effect::Exec(target) => return Ok(Some(self.exec(&target))),
            Effect::RememberBad { entry, evidence } => {
                let text = format!("{evidence}\n{} {} (tree {})\n", self.paths.product(), entry.version, entry.tree);
                let reached = reach(Moment::AgentBad, &self.paths.bad());
                if let Err(e) = reached.and_then(|()| bad::remember(&self.paths, &entry.tree, &text)) {
                    tracing::warn!("a bad version cannot be remembered: {e}");
                }
            }
            Effect::Report { change, from, to, step, took_us, detail } => {
                let duration_us = match took_us {
                    Took::Us(us) => us,
                    Took::SinceExec => sys::monotonic_us().saturating_sub(self.exec_us),
                };
                self.report(change, from, to, step, duration_us, detail);
            }
            Effect::CheckHealth { after_ms } => self.check_health(Duration::from_millis(after_ms)),
            Effect::TellUnwell(why) => {
                // Asked five times a second: once for each answer is enough.
                if self.work.unwell.as_ref() != Some(&why) {
                    self.tell(&StubMessage::unwell(&why.to_string()));
                    self.work.unwell = Some(why);
                }
            }
            Effect::TellConfirmed => {
                self.tell(&StubMessage::Confirmed);
                saved_state::let_go(&self.inherited, &self.facts.writes);
                self.predecessor.drain(&self.inherited);
                self.program.confirmed();
            }
            Effect::TellExecReturned => {
                self.tell(&StubMessage::ExecReturned);
                // After it: until then the stub takes what it is told as the new version's word.
                self.drop_saved_state();
            }
        }
        Ok(None)
    }

    fn save(&mut self, change: ChangeId, record: &[u8]) -> Event {
        let begun = Instant::now();
        let reached = reach(Moment::RecordSave, &self.paths.records()).map_err(RecordError::from);
        let result = reached.and_then(|()| records::order(&self.paths, record, &self.journal)).map(|verified| {
            let candidate = verified.clone().candidate(&self.paths);
            self.work.ordered = Some(verified);
            Box::new(candidate)
        });
        Event::Saved { change, result: result.map_err(|e| Reason::of(&e)), took_us: micros(begun) }
    }

    /// What is started next is read from its place by the new version, and by whoever starts it again.
    fn place_record(&mut self) -> Result<(), EffectFault> {
        let Some(ordered) = self.work.ordered.take() else { return Ok(()) };
        reach(Moment::RecordPlace, &self.paths.records())?;
        Ok(records::place(&self.paths, &ordered)?)
    }

    fn stage(&mut self, target: &Saved, running: TreeId, lazy: bool) {
        let handle = StageHandle::default();
        self.work.staging = Some(handle.clone());
        self.timeline.retain(|step| step.change == target.change);
        let (tree, entry_point) = (target.candidate.entry.tree, target.candidate.entry_point.clone());
        let order = Order { tree, running: Some(running), lazy, entry_point };
        let (paths, change) = (self.paths.clone(), target.change);
        self.in_background("stage", move || {
            let begun = Instant::now();
            let result = stage(&paths, &order, &handle);
            let took_us = micros(begun);
            match result {
                Ok((done, path)) => Input::Ready(Ready { change, tree: order.tree, path, done, took_us }),
                Err(fault) => Input::Event(Event::StageEnded { change, result: Err(fault), took_us }),
            }
        });
    }

    fn drain(&mut self, change: ChangeId, deadline_ms: u64) {
        let begun = Instant::now();
        drain::begin(&self.jobs);
        let (jobs, program) = (self.jobs.clone(), self.program.clone());
        let deadline = Duration::from_millis(deadline_ms);
        self.in_background("drain", move || {
            let drained = drain::wait(&jobs, &program, deadline);
            Input::Drained { change, drained, took_us: micros(begun) }
        });
    }

    /// What the library's own descriptors lead to: those that cross, but for what the program keeps.
    fn own_files(&self) -> Vec<Option<FileId>> {
        let stub = self.stub.as_ref().map(|stub| stub.as_fd());
        let own = [Some(self.server.listener().as_fd()), stub, self.lock.as_ref().map(|lock| lock.as_fd())];
        own.into_iter().flatten().map(sys::fd::file_id).collect()
    }

    /// After a call of the program: one that closed what is not its own ends here, and not at some later moment.
    fn end_without_own(&self) {
        if self.own_files() != self.work.own {
            serve::lost(&rustix::io::Errno::BADF.into());
        }
    }

    /// Keeps the proof for the exec. Nothing is written yet that a version without its descriptors could not carry out.
    fn drained(&mut self, change: ChangeId, drained: Drained, took_us: u64) -> Event {
        self.end_without_own();
        let detail = drained.detail.clone();
        self.work.drained = Some(drained);
        Event::Drained { change, detail, took_us }
    }

    fn swap(&mut self, tree: TreeId) -> Result<Event, EffectFault> {
        let begun = Instant::now();
        let path = self.work.ready.get(&tree).cloned().unwrap_or_else(|| self.paths.generation(&tree));
        self.work.link_before = std::fs::read_link(self.paths.link()).ok();
        reach(Moment::LinkSwap, &self.paths.link())?;
        swap::swap(&self.paths, &tree, &path)?;
        Ok(Event::Swapped { took_us: micros(begun) })
    }

    fn swap_back(&mut self, tree: TreeId) {
        let back = reach(Moment::LinkBack, &self.paths.link()).and_then(|()| match self.work.link_before.take() {
            Some(target) => swap::point(&self.paths, &target),
            None => swap::swap(&self.paths, &tree, &self.paths.generation(&tree)),
        });
        if let Err(e) = back {
            tracing::warn!("the link cannot be put back: {e}");
        }
    }

    fn exec(&mut self, target: &Saved) -> Event {
        let Some(drained) = self.work.drained.take() else {
            let fault = "operations are under way; this is a fault of the agent".to_owned();
            return Event::ExecReturned { of_the_version: false, fault };
        };
        let entry = &target.candidate.entry;
        let path = self.work.ready.get(&entry.tree).cloned().unwrap_or_else(|| self.paths.generation(&entry.tree));
        let program = Attachment::open(&path).and_then(|t| t.program(&target.candidate.entry_point));
        let program = match program {
            Ok(program) => program,
            Err(e) => return Event::ExecReturned { of_the_version: e.is_of_the_version(), fault: e.to_string() },
        };
        let start = Start::of(program, &target.candidate.arguments);
        let adapter = std::env::var_os(variable::ADAPTER).map(PathBuf::from);
        let start = match start.by(adapter.as_deref(), target.candidate.is_adapted, &path) {
            Ok(start) => start,
            Err(e) => return Event::ExecReturned { of_the_version: false, fault: e.to_string() },
        };
        let Handing { schema, state, kept_bytes } = match self.save_state(&target.candidate) {
            Ok(handing) => handing,
            Err(fault) => return Event::ExecReturned { of_the_version: false, fault: fault.to_string() },
        };
        self.end_without_own();
        self.server.quiesce();
        let mut handoff = Handoff {
            change: target.change,
            from: self.facts.running.clone(),
            to: entry.clone(),
            schema,
            state,
            kept_bytes,
            unfinished: drained.unfinished.clone(),
            timeline: self.timeline.clone(),
            drained_us: drained.at_us,
            exec_us: 0,
        };
        self.tell(&StubMessage::Executing {
            change: target.change,
            from: handoff.from.clone(),
            to: handoff.to.clone(),
            probation_ms: target.candidate.probation_ms,
            timeline: handoff.timeline.clone(),
        });
        let inherited = self.inherited.table().share();
        let crossing = Crossing {
            inherited: &inherited,
            operations: self.server.listener().as_fd(),
            stub: self.stub.as_ref().map(|stub| stub.as_fd()),
            lock: self.lock.as_ref().map(|lock| lock.as_fd()),
        };
        let Start { program, arguments } = start;
        let fault = exec::become_program(&program, arguments, &self.paths, &mut handoff, &crossing, drained);
        if let Err(e) = self.server.resume() {
            tracing::error!("the operations API cannot be served again: {e}");
        }
        // What cannot be executed of an adapter is this host's.
        let of_the_version = !target.candidate.is_adapted && exec::is_of_the_version(&fault);
        Event::ExecReturned { fault: format!("{}: {fault}", program.display()), of_the_version }
    }

    fn report(
        &mut self,
        change: ChangeId,
        from: Option<TreeId>,
        to: TreeId,
        step: Step,
        took_us: u64,
        detail: String,
    ) {
        if step == Step::Drained {
            // Until the new version serves, nothing but the change-over itself is to be done.
            self.reporter.pause();
        }
        let product = self.paths.product().clone();
        let at_unix_ms = unix_ms();
        let event = StepEvent { change, product, from, to, step, at_unix_ms, duration_us: took_us, detail };
        let durability = match step {
            Step::Drained | Step::Journaled | Step::Swapped => Durability::ProcessDeath,
            _ => Durability::PowerCut,
        };
        self.reporter.report(&event, durability);
        self.timeline.push(event);
    }

    fn check_health(&self, after: Duration) {
        let (program, paths) = (self.program.clone(), self.paths.clone());
        self.in_background("health", move || {
            std::thread::sleep(after);
            let result = confirm::check(&program, &paths);
            if let Err(reason) = &result {
                tracing::warn!("not healthy yet: {reason}");
            }
            Input::Event(Event::Health { result: result.map_err(|e| Reason::of(&e)) })
        });
    }

    fn tell(&self, message: &StubMessage) {
        if let Some(stub) = &self.stub
            && let Err(e) = stub.send(message)
        {
            // It looks at the journal whenever this process ends, so it loses nothing but time.
            tracing::warn!("the stub cannot be told: {e}");
        }
    }

    fn in_background(&self, name: &str, work: impl FnOnce() -> Input + Send + 'static) {
        let inputs = self.inputs.clone();
        let thread = std::thread::Builder::new().name(name.to_owned());
        if let Err(e) = thread.spawn(move || drop(inputs.send(work()))) {
            drop(self.inputs.send(Input::Event(Event::Failed { what: format!("no thread can be started: {e}") })));
        }
    }
}

fn reach(moment: Moment, path: &std::path::Path) -> Result<(), FileFault> {
    moments::reach(moment, path).map_err(|e| FileFault::io(path, e))
}

fn event_of(request: AgentRequest) -> Option<Event> {
    match request {
        AgentRequest::SaveMetadata { change, record } => Some(Event::SaveAsked { change, record }),
        AgentRequest::Attach { change, release, attach, lazy, retry_bad } => {
            Some(Event::AttachAsked { change, release, attach, lazy, retry_bad })
        }
        AgentRequest::Finish { change, drain_deadline_ms } => Some(Event::FinishAsked { change, drain_deadline_ms }),
        AgentRequest::Status | AgentRequest::Run { .. } | AgentRequest::Cancel { .. } => None,
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
