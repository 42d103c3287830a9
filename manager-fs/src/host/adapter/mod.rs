//! The adapter: an agent in the place of an unchanged program, which it runs out of the attached tree.
//!
//! ```text
//!  stub ── adapter (an agent; execs itself at a change-over, same pid)
//!             ├── keeper ── program of version 1, its children      kept under a name by its keeper's pidfd, and so
//!             └── keeper ── program of version 2, its children      ended by neither a change-over nor a crash
//!          http, https: listening sockets, kept under their names; both programs have them
//! ```
//!
//! A change-over stops nothing: the new version's adapter starts its program beside the old one, asks for its health
//! until it is well, and lets the old one drain when this version is believed. If it never is, the old version's adapter
//! comes back and finds its program as it left it. What the stub knows of all this is a pidfd: processes that the
//! believed version keeps live on, those that a version on trial has started end with it.
//!
//! `keeper.rs` is the life of one program, `kept.rs` a keeper as the adapter sees it, `sockets.rs` what is listened on,
//! `watch.rs` the adapter at work.

mod event;
mod keeper;
mod kept;
mod sockets;
mod watch;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use agent_core::internal::channel;
use agent_core::internal::handoff::variable;
use agent_core::internal::journal::Entry;
use agent_core::internal::records::{self, RecordError, Verified};
use agent_core::proto::agent::{Operation, Outcome};
use agent_core::{Agent, AgentConfig, AgentError, Ended, NotHealthy, OperationContext, Operations, Stop};

use event::Event;
pub use keeper::{Keep, keep};
use watch::Watch;

use crate::sync::lock;

/// How long programs may drain when the agent is to end; the stub kills what is left after 30 s.
const END_PATIENCE: Duration = Duration::from_secs(25);
/// The same when the stub has gone: the next one waits for the agent, but not for programs, which drain by themselves.
const ALONE_PATIENCE: Duration = Duration::from_secs(10);

/// The adapter cannot go on; the stub decides what follows.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// It was not started by the stub, or cannot take over.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The saved metadata cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The record has none.
    #[error("{0} has no adapter in its record")]
    NoAdapter(String),
    /// What the program listens on cannot be had.
    #[error("cannot listen on '{name}', {at}: {source}{holder}")]
    Listen {
        /// Name of the socket.
        name: String,
        /// Where.
        at: String,
        /// Why not.
        source: io::Error,
        /// Who has it, if that can be found out.
        holder: String,
    },
    /// The program does not stay.
    #[error("{program} {how} before it was healthy{often}")]
    Ended {
        /// Its name.
        program: String,
        /// How it ended.
        how: String,
        /// How often, if more than once.
        often: String,
    },
    /// The program runs, and is not well when it has to be.
    #[error("{program} is not healthy: {why}")]
    Sick {
        /// Its name.
        program: String,
        /// What its last answer was.
        why: String,
    },
    /// The operating system says no.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What it said.
        source: io::Error,
    },
}

pub(crate) fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> AdapterError {
    let what = what.into();
    move |source| AdapterError::Io { what, source }
}

/// How the program is, as the library asks for it.
#[derive(Debug, Clone)]
struct Fitness(Arc<Mutex<Result<(), NotHealthy>>>);

impl Fitness {
    fn set(&self, fitness: Result<(), NotHealthy>) {
        *lock(&self.0) = fitness;
    }

    fn get(&self) -> Result<(), NotHealthy> {
        lock(&self.0).clone()
    }
}

/// What the library asks of the agent. The program knows no operations.
struct Adapted {
    fitness: Fitness,
    events: mpsc::Sender<Event>,
}

impl Operations for Adapted {
    fn run(&self, operation: &Operation, _: &OperationContext) -> Ended {
        let kind = operation.kind();
        Ended::Outcome(Outcome::Failed(format!("this product is an unchanged program: it performs no {kind}")))
    }

    fn healthy(&self) -> Result<(), NotHealthy> {
        self.fitness.get()
    }

    fn confirmed(&self) {
        drop(self.events.send(Event::Confirmed));
    }
}

/// What is run: one version, and where its things are.
struct Version {
    verified: Verified,
    tree: PathBuf,
    /// Its writable directory, the same for all versions of a product.
    state: PathBuf,
}

impl Version {
    /// With the directories put in.
    fn resolve(&self, text: &str) -> String {
        text.replace("${tree}", &self.tree.to_string_lossy()).replace("${state}", &self.state.to_string_lossy())
    }

    fn program(&self) -> PathBuf {
        self.tree.join(self.verified.entry_point.as_path())
    }

    /// The name under which its keeper is kept: that of this record and no other.
    fn name(&self) -> String {
        let record = &self.verified.record;
        format!("{}{}.{:.16}", kept::PROGRAM, record.sequence, record.tree.to_hex())
    }
}

/// Runs the program of the attached tree as an agent, until the agent is to end.
///
/// # Errors
/// See [`AdapterError`]. The process should print it and exit with 1: the stub starts it again, or returns to the version
/// before, whose program has gone on meanwhile.
pub fn run(tree: &Path) -> Result<(), AdapterError> {
    let on_trial = std::env::var_os(variable::HANDOFF_FD).is_some();
    let config = AgentConfig::from_env()?;
    let paths = config.paths().clone();
    let (events, inbox) = mpsc::channel();
    let fitness = Fitness(Arc::new(Mutex::new(Err(NotHealthy::from("it has not been started yet")))));
    let agent = Agent::start(config, Adapted { fitness: fitness.clone(), events: events.clone() })?;
    let status = agent.status();
    let entry = Entry { version: status.version, tree: status.tree };
    let (verified, _) = records::load_vouched(&paths, &entry)?;
    let state = paths.directory().join("data");
    std::fs::create_dir_all(&state).map_err(io_error(format!("the program's directory {}", state.display())))?;
    let version = Version { verified, tree: tree.to_owned(), state };
    let trial = on_trial.then(|| Duration::from_millis(version.verified.record.metadata.health.probation_ms));
    let inherited = agent.inherited().clone();
    let watch = Watch::begin(version, trial, inherited.clone(), agent.remark(), fitness, events.clone())?;
    let thread = std::thread::Builder::new().name("adapter".to_owned());
    let watching = thread.spawn(move || match watch.run(&inbox) {
        Ok(()) => {}
        Err(fault) => {
            tracing::error!("{fault}");
            channel::unwell(&inherited, &fault.to_string());
            // Threads of the library run; nothing that they do has to be waited for.
            std::process::exit(1);
        }
    });
    let watching = watching.map_err(io_error("no thread can be started"))?;
    let end = match agent.wait() {
        Stop::Terminated => Event::End { patience: END_PATIENCE, is_last: true },
        Stop::StubGone => Event::End { patience: ALONE_PATIENCE, is_last: false },
    };
    drop(events.send(end));
    drop(watching.join());
    Ok(())
}
