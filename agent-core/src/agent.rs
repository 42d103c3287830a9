//! The front door: a program becomes an agent by starting one of these.

use std::io::{Seek, Write};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::agent::{AgentRequest, AgentState, AgentStatus, ChangeId, JobId, JobOrigin, Operation, Step, StepEvent};
use proto::health::HealthCheck;
use proto::message::Fault;
use proto::{Product, TreeId};
use rustix::event::{EventfdFlags, PollFd, PollFlags};

use crate::agent_error::AgentError;
use crate::channel::{Channel, StubMessage};
use crate::driver::{Driver, Input, Work};
use crate::durable::Durability;
use crate::given::Given;
use crate::handoff::{Handoff, variable};
use crate::inherited::{Inherited, Table};
use crate::intake::Gate;
use crate::jobs::{self, Job, Jobs, Vouched};
use crate::journal::{Entry, Journal, Phase};
use crate::kinds::Kinds;
use crate::machine::{Facts, Origin, State};
use crate::operations::Operations;
use crate::paths::AgentPaths;
use crate::predecessor::Predecessor;
use crate::program::Program;
use crate::records::{self, RecordError, Verified};
use crate::report::{Reporter, unix_ms};
use crate::serve::{Server, Service};
use crate::{generation, permits, state, sys};

/// What the stub gave to this program.
#[derive(Debug)]
pub struct AgentConfig {
    paths: AgentPaths,
    operations: UnixListener,
    stub: Option<Arc<Channel>>,
    lock: Option<OwnedFd>,
    handoff: Option<OwnedFd>,
    start: Option<OwnedFd>,
    inherited: Inherited,
    gates: Vec<Gate>,
    kinds: Kinds,
    stop_patience: Duration,
}

static TAKEN: AtomicBool = AtomicBool::new(false);

impl AgentConfig {
    /// Reads the environment that the stub, or the version before this one, made. Call it first in `main`, before
    /// anything that opens descriptors: what is named there is taken over by number.
    ///
    /// # Errors
    /// A variable is missing or means nothing, or this is the second call.
    pub fn from_env() -> Result<Self, AgentError> {
        let product = text(variable::PRODUCT)?;
        let product: Product = product.parse().map_err(|e| invalid(variable::PRODUCT, &product, &e))?;
        let (state, run) = (text(variable::STATE)?, text(variable::RUN)?);
        if TAKEN.swap(true, Ordering::AcqRel) {
            return Err(AgentError::StartedBefore);
        }
        let operations =
            descriptor(variable::OPERATIONS_FD)?.ok_or(AgentError::NotLaunched(variable::OPERATIONS_FD))?;
        let stub = descriptor(variable::STUB_FD)?.map(|fd| Arc::new(Channel::from(fd)));
        let table = match descriptor(variable::INHERITED_FD)? {
            Some(memory) => Table::from_memory(memory)?,
            // A stub, or a version before, that knows of no names.
            None => Table::default(),
        };
        Ok(Self {
            paths: AgentPaths::new(state, run, product),
            operations: UnixListener::from(operations),
            inherited: Inherited::new(table, stub.clone()),
            gates: Vec::new(),
            kinds: Kinds::new(),
            stub,
            lock: descriptor(variable::LOCK_FD)?,
            handoff: descriptor(variable::HANDOFF_FD)?,
            start: descriptor(variable::START_FD)?,
            stop_patience: Duration::from_secs(10),
        })
    }

    /// Where this agent's files are.
    pub fn paths(&self) -> &AgentPaths {
        &self.paths
    }

    /// What crosses change-overs under names: what was inherited may be taken, what is kept goes on.
    pub fn inherited(&self) -> &Inherited {
        &self.inherited
    }

    /// The library closes this gate at every drain, waits until the deadline for what is under way behind it, and opens
    /// it again when no `execve` came of it.
    #[must_use]
    pub fn gate(mut self, gate: Gate) -> Self {
        self.gates.push(gate);
        self
    }

    /// The operations that the program brings itself, in the place of what was given here before.
    #[must_use]
    pub fn kinds(mut self, kinds: Kinds) -> Self {
        self.kinds = kinds;
        self
    }

    /// How long operations may take to their next unit boundary when the program is told to end (default 10 s). What
    /// is not back then goes on from its last checkpoint at the next start.
    #[must_use]
    pub fn stop_patience(mut self, patience: Duration) -> Self {
        self.stop_patience = patience;
        self
    }
}

/// Why [`Agent::wait`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM came: whoever started the stub wants the end of both.
    Terminated,
    /// The stub has gone; a new one will start this product again.
    StubGone,
}

/// A running agent. It works on its own threads; the program keeps it for as long as it wants to be one.
#[derive(Debug)]
pub struct Agent {
    core: Arc<Core>,
    stub: Option<Arc<Channel>>,
    inherited: Inherited,
    terminated: OwnedFd,
    stop_patience: Duration,
    inputs: Sender<Input>,
    reporter: Reporter,
}

/// What the program adds to the reason that `status` shows: how it is, in a line. A handle that may be cloned.
#[derive(Debug, Clone)]
pub struct Remark(Arc<Mutex<String>>);

impl Remark {
    /// Says this from now on; an empty line says nothing.
    pub fn set(&self, line: impl Into<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = line.into();
    }
}

struct Core {
    paths: AgentPaths,
    status: AgentStatus,
    remark: Remark,
    state: Arc<Mutex<AgentState>>,
    jobs: Arc<Jobs>,
    inputs: Mutex<Sender<Input>>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Core({})", self.paths.product())
    }
}

impl Agent {
    /// Takes over from the version before (if there was one), serves the operations API, resumes interrupted
    /// operations, and confirms this version as soon as it is healthy. From now on SIGTERM no longer ends the process
    /// by itself: [`Agent::wait`] tells.
    ///
    /// # Errors
    /// See [`AgentError`]. The program should print it and exit with 1: the stub returns to the version before.
    pub fn start(config: AgentConfig, operations: impl Operations) -> Result<Self, AgentError> {
        let began_us = sys::monotonic_us();
        config.kinds.check()?;
        let terminated = catch_termination()?;
        let operations: Arc<dyn Operations> = Arc::new(operations);
        let paths = config.paths.clone();
        let handoff = config.handoff.map(Handoff::read).transpose()?;
        let given = Given::read(&paths, config.start, handoff.as_ref())?;
        let journal = given.journal;
        let verified = metadata(&paths, &journal.current)?;
        let running = verified.entry();
        if running.tree != journal.current.tree {
            return Err(other_version(&journal.current, &running));
        }
        take_over(operations.as_ref(), handoff.as_ref(), &config.inherited, &running)?;
        let schemas = verified.record.metadata.state_schemas;
        let probation_ms = verified.record.metadata.health.probation_ms;
        let (version, vouched) = (verified.record.version.clone(), vouched(handoff.as_ref()));
        let jobs = Jobs::open(&paths, version, schemas, operations.clone(), config.kinds, vouched);
        if let Some(handoff) = &handoff {
            look_for_lost(handoff, &jobs);
        }
        let reporter = Reporter::start(&paths).map_err(io("no thread for reports can be started"))?;
        let (inputs, inbox) = mpsc::channel();
        let change = change_of(&journal);
        let shown = Arc::new(Mutex::new(AgentState::Probation));
        let status = first_status(&paths, &journal, &running);
        let core = Arc::new(Core {
            paths: paths.clone(),
            status,
            remark: Remark(Arc::default()),
            state: shown.clone(),
            jobs: jobs.clone(),
            inputs: Mutex::new(inputs.clone()),
        });
        let server =
            Server::start(config.operations, core.clone()).map_err(io("the operations API cannot be served"))?;
        let stub = config.stub;
        if let Some(stub) = &stub {
            drop(stub.send(&StubMessage::Serving));
        }
        let started = handoff.as_ref().map(|handoff| started(&paths, handoff));
        if let Some(event) = &started {
            reporter.report(event, Durability::PowerCut);
        }
        let mut timeline = handoff.as_ref().map(|handoff| handoff.timeline.clone()).unwrap_or_default();
        timeline.extend(started);
        let driver = Driver {
            facts: facts(running, operations.writes_schemas(schemas), &config.inherited),
            predecessor: Predecessor::of(handoff.as_ref(), &verified, &paths, &config.inherited),
            paths,
            journal,
            program: Arc::new(Program::new(operations, config.gates, check_of(&verified))),
            inherited: config.inherited.clone(),
            jobs,
            server,
            reporter: reporter.clone(),
            stub: stub.clone(),
            lock: config.lock,
            shown,
            inputs: inputs.clone(),
            exec_us: handoff.map_or(began_us, |handoff| handoff.exec_us),
            timeline,
            unwritten: given.unwritten,
            work: Work::default(),
        };
        let (state, effects) = State::begin(change, probation_ms, gone_ms(driver.exec_us));
        let thread = std::thread::Builder::new().name("agent".to_owned());
        thread.spawn(move || driver.run(state, effects, &inbox)).map_err(io("no thread can be started"))?;
        let inherited = config.inherited;
        Ok(Self { core, stub, inherited, terminated, stop_patience: config.stop_patience, inputs, reporter })
    }

    /// What [`AgentRequest::Status`] answers.
    pub fn status(&self) -> AgentStatus {
        self.core.status()
    }

    /// What the program keeps over a change-over, as it was given in [`AgentConfig::inherited`].
    pub fn inherited(&self) -> &Inherited {
        &self.inherited
    }

    /// For what the program itself has to say to whoever asks for the status.
    pub fn remark(&self) -> Remark {
        self.core.remark.clone()
    }

    /// Waits until the program is to end, then lets operations stop at their next unit boundary. The program should
    /// exit with 0 after it.
    pub fn wait(self) -> Stop {
        let why = self.wait_for_end();
        let (reply, stopped) = mpsc::sync_channel(1);
        if self.inputs.send(Input::Stop(self.stop_patience, reply)).is_ok() {
            let _ = stopped.recv();
        }
        self.reporter.flush(Duration::from_millis(200));
        why
    }

    fn wait_for_end(&self) -> Stop {
        loop {
            let mut fds = vec![PollFd::new(&self.terminated, PollFlags::IN)];
            // Nothing is ever sent to the agent on the channel: what comes is its end.
            fds.extend(self.stub.as_ref().map(|stub| PollFd::from_borrowed_fd(stub.as_fd(), PollFlags::RDHUP)));
            if rustix::event::poll(&mut fds, None).is_err() {
                continue;
            }
            if !fds[0].revents().is_empty() {
                return Stop::Terminated;
            }
            if fds.get(1).is_some_and(|fd| !fd.revents().is_empty()) {
                return Stop::StubGone;
            }
        }
    }
}

impl Service for Core {
    fn status(&self) -> AgentStatus {
        let state = *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut status = AgentStatus { state, jobs: self.jobs.under_way(), ..self.status.clone() };
        let remark = self.remark.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !remark.is_empty() {
            status.reason = format!("{}; {remark}", status.reason);
        }
        drop(remark);
        status
    }

    fn message(&self, request: AgentRequest) -> Result<(), Fault> {
        if matches!(request, AgentRequest::SaveMetadata { .. } | AgentRequest::Attach { .. }) {
            permits::may_change_over(&self.paths).map_err(|e| Fault::Refused(e.to_string()))?;
        }
        let (reply, answer) = mpsc::sync_channel(1);
        let inputs = self.inputs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let ending = || Fault::Unavailable("the agent is ending".to_owned());
        inputs.send(Input::Message(request, reply)).map_err(|_| ending())?;
        answer.recv().map_err(|_| ending())?
    }

    fn run(&self, job: JobId, origin: JobOrigin, operation: Operation) -> Result<Arc<Job>, Fault> {
        self.jobs.run(job, origin, operation)
    }

    fn cancel(&self, job: JobId) -> Result<(), Fault> {
        self.jobs.cancel(job)
    }
}

impl Core {
    fn status(&self) -> AgentStatus {
        Service::status(self)
    }
}

/// The saved metadata of what this program was started as.
fn metadata(paths: &AgentPaths, started: &Entry) -> Result<Verified, RecordError> {
    let (verified, doubt) = records::load_vouched(paths, started)?;
    if let Some(doubt) = doubt {
        tracing::warn!("{doubt}");
    }
    Ok(verified)
}

fn other_version(started: &Entry, found: &Entry) -> AgentError {
    let name = |entry: &Entry| format!("{} (tree {})", entry.version, entry.tree);
    AgentError::OtherVersion { started: name(started), found: name(found) }
}

/// The program's state: from the version before, or what this one had saved itself when it left.
fn take_over(
    operations: &dyn Operations,
    handoff: Option<&Handoff>,
    inherited: &Inherited,
    running: &Entry,
) -> Result<(), AgentError> {
    let Some(handoff) = handoff else {
        state::give_back(operations, inherited, running);
        return Ok(());
    };
    match handoff.kept_bytes {
        None => {
            let mut file = state::memory().map_err(io("no memory for the previous version's state"))?;
            file.write_all(&handoff.state).map_err(io("no memory for the previous version's state"))?;
            file.rewind().map_err(io("no memory for the previous version's state"))?;
            operations.restore_state_from(handoff.schema, &file)?;
        }
        Some(bytes) => {
            operations.restore_state_from(handoff.schema, &state::open(inherited, handoff.schema, bytes)?)?;
        }
    }
    state::drop_own(inherited, running);
    Ok(())
}

fn facts(running: Entry, writes: RangeInclusive<u32>, inherited: &Inherited) -> Facts {
    let snapshots = state::needed(inherited, &writes);
    Facts { running, writes, snapshots, machine: generation::machine() }
}

/// The change-over that the running version is on probation for, and the tree that it left.
fn change_of(journal: &Journal) -> Option<Origin> {
    match &journal.phase {
        Phase::Probation { change, .. } => {
            Some(Origin { change: *change, from: journal.last_good.as_ref().map(|entry| entry.tree) })
        }
        Phase::Confirmed | Phase::Launching => None,
    }
}

fn first_status(paths: &AgentPaths, journal: &Journal, running: &Entry) -> AgentStatus {
    AgentStatus {
        product: paths.product().clone(),
        version: running.version.clone(),
        tree: running.tree,
        pid: std::process::id(),
        started_unix_ms: unix_ms(),
        state: AgentState::Probation,
        jobs: Vec::new(),
        reason: journal.reason.clone(),
    }
}

/// How the program is asked from outside. An adapter asks the one that it runs by itself: it knows who may answer.
fn check_of(verified: &Verified) -> Option<HealthCheck> {
    let metadata = &verified.record.metadata;
    metadata.health.check.clone().filter(|_| metadata.adapter.is_none())
}

/// The jobs that the version before has handed over; of others the disk alone knows.
fn vouched(handoff: Option<&Handoff>) -> Vouched<'_> {
    let handed_over = handoff.map_or(&[][..], |handoff| handoff.unfinished.as_slice());
    Vouched { handed_over, at_most: jobs::UNASKED_MAX }
}

fn look_for_lost(handoff: &Handoff, jobs: &Jobs) {
    let known = jobs.under_way();
    for lost in handoff.unfinished.iter().filter(|job| !known.contains(job)) {
        // Finished at the last moment, or its record is not readable: the manager asks for it again.
        tracing::warn!(job = lost.0, "a job that was handed over is not under way here");
    }
}

/// How long ago the `execve` was that this version came by, or its start.
fn gone_ms(exec_us: u64) -> u64 {
    sys::monotonic_us().saturating_sub(exec_us) / 1000
}

/// The report that this version serves, with the time in which nobody did.
fn started(paths: &AgentPaths, handoff: &Handoff) -> StepEvent {
    let now_us = sys::monotonic_us();
    let blackout_us = now_us.saturating_sub(handoff.drained_us);
    let (from, to): (TreeId, TreeId) = (handoff.from.tree, handoff.to.tree);
    let change: ChangeId = handoff.change;
    StepEvent {
        change,
        product: paths.product().clone(),
        from: Some(from),
        to,
        step: Step::Started,
        at_unix_ms: unix_ms(),
        duration_us: now_us.saturating_sub(handoff.exec_us),
        detail: format!("blackout {}.{:03} ms, from the end of the drain", blackout_us / 1000, blackout_us % 1000),
    }
}

fn catch_termination() -> Result<OwnedFd, AgentError> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let event = rustix::event::eventfd(0, flags).map_err(|e| io("no descriptor left")(e.into()))?;
    let copy = event.try_clone().map_err(io("no descriptor left"))?;
    sys::signal::wake_on_terminate(copy).map_err(io("SIGTERM cannot be caught"))?;
    Ok(event)
}

fn io(what: &'static str) -> impl Fn(std::io::Error) -> AgentError {
    move |source| AgentError::Io { what, source }
}

fn text(name: &'static str) -> Result<String, AgentError> {
    std::env::var(name).map_err(|_| AgentError::NotLaunched(name))
}

fn descriptor(name: &'static str) -> Result<Option<OwnedFd>, AgentError> {
    let Ok(value) = std::env::var(name) else { return Ok(None) };
    let number: i32 = value.parse().map_err(|e| invalid(name, &value, &e))?;
    sys::fd::take_inherited(number).map(Some).map_err(|e| invalid(name, &value, &e))
}

fn invalid(name: &'static str, value: &str, fault: &dyn std::fmt::Display) -> AgentError {
    AgentError::Variable { name, value: value.to_owned(), fault: fault.to_string() }
}
