//! Embeddable library with which a running program changes its own version.
//!
//! A program that is started by `manager-fs launch PRODUCT` and that starts an [`Agent`] can be told, over its local
//! operations socket, to become another version of itself. It goes on working while the other version is fetched,
//! verified, mounted and warmed beside it; then it finishes or checkpoints its operations, renames one link, and
//! `execve`s the new program **in the same process**: the process id, the listening socket and the state stay. The new
//! version proves itself, or the stub brings the old one back, without anybody's help. Upgrading and downgrading are
//! the same operation.
//!
//! ```text
//!              stub (`launch`): parent, version-neutral, owns the listening socket, watches, returns
//!                │ spawn                                                      ^ Serving, Executing, Confirmed
//!                v                                                            │
//!  ┌──────────── agent process ───────────────────────────────────────────────┴────────────┐
//!  │ version 1                                                       │ version 2           │
//!  │ serve ─ A save ─ B stage ─ C drain ─ journal ─ swap ─ handoff ══ execve ═> serve ─ confirm
//!  └─────────────────────────────────────────────────────────────────┴─────────────────────┘
//!                │ Stage, Report (mount.sock)        │ STATE/agents/<product>/journal
//!                v                                   v
//!          mount daemon ──> manager            what a power cut leaves
//! ```
//!
//! It is a library for other people's programs: it works on its own threads, forces no runtime, no TLS, no logger and
//! no FUSE on them, and blocks nobody. What it is not: a supervisor (the stub is), a mount (the daemon is), or a
//! transport to the manager (the daemon relays).
//!
//! # A service
//!
//! A program with work of its own keeps what it listens on under a name, and counts what is under way. That is all: the
//! sockets cross every change-over in both directions, and the crash of a version too; requests that have begun are
//! answered first; connections that come meanwhile wait.
//!
//! ```no_run
#![doc = include_str!("../examples/hello_service.rs")]
//! ```
//!
//! This is `examples/hello_service.rs`, which `docs/embedding.md` publishes, starts and upgrades. `examples/http_service.rs`
//! is a larger one, with long requests, streams and a state. A program on an async runtime, or
//! one with a queue, passes its work through a [`Gate`] instead, or writes [`Operations::quiesce`] and
//! [`Operations::resume`].
//!
//! # An agent with operations
//!
//! It backs directories up, one unit for each source. It looks at what is asked of it between units, and
//! remembers how far it is, so that a change-over in the middle of a backup costs at most one unit.
//!
//! ```no_run
//! use agent_core::proto::agent::{Operation, Outcome, Progress, Summary};
//! use agent_core::{Demand, Ended, NotHealthy, OperationContext, Operations};
//!
//! struct Backups;
//!
//! impl Operations for Backups {
//!     fn run(&self, operation: &Operation, context: &OperationContext) -> Ended {
//!         let (Operation::Backup { sources, .. } | Operation::BackupWith { sources, .. }) = operation else {
//!             return Ended::Outcome(Outcome::Failed(format!("no {} here", operation.kind())));
//!         };
//!         // Where an earlier call stopped: perhaps another version of this program, perhaps before a power cut.
//!         let done = context.resume().and_then(|state| state.first().copied()).unwrap_or(0);
//!         for (number, source) in sources.iter().enumerate().skip(done.into()) {
//!             match context.demand() {
//!                 Demand::None | Demand::Finish => {}
//!                 Demand::Checkpoint => return Ended::Checkpointed,
//!                 Demand::Cancel => return Ended::Outcome(Outcome::Cancelled(Summary::default())),
//!             }
//!             // … back `source` up …
//!             if let Err(fault) = context.checkpoint(&[number as u8 + 1]) {
//!                 return Ended::Outcome(Outcome::Failed(fault.to_string()));
//!             }
//!             context.progress(Progress {
//!                 units_done: number as u32 + 1,
//!                 units: sources.len() as u32,
//!                 bytes_done: 0,
//!                 bytes: 0,
//!                 activity: source.clone(),
//!                 version: String::new(),
//!             });
//!         }
//!         Ended::Outcome(Outcome::Done(Summary::default()))
//!     }
//!
//!     fn healthy(&self) -> Result<(), NotHealthy> {
//!         // Asked during probation: is everything there that operations need?
//!         Ok(())
//!     }
//! }
//! ```
//!
//! `examples/tiny_agent.rs` is a complete one, `examples/tiny_stub.rs` a stub around both, and `tests/` runs them through
//! upgrades, downgrades and every way of failing. The order of steps, and what every failure at every step leads to, is
//! in `docs/swap.md`.
//!
//! # Rules for the embedding program
//! - Call [`AgentConfig::from_env`] before anything that opens descriptors.
//! - Hold [`exec::child_permit`] while starting a child process; children that still live at the change-over are killed.
//! - Do not rely on `Drop` at a change-over: `execve` ends every thread where it stands. What must last is in
//!   [`OperationContext::checkpoint`] (durable) or [`Operations::save_state`] (across this change-over).
//! - Every callback has an end: one that does not come back is left behind, or ends the change-over (`docs/swap.md`).
//! - Standard error is read by the stub; its last 16 KiB are the evidence when the program fails.
//!
//! # What is promised
//! Everything a program needs stands here at the root, and stays compatible within a major version; `internal` is for
//! this project's own programs and is not promised. The list of all names is `agent-core/interface.txt`, which a test
//! compares with the sources.
//!
//! # Modules, in the order of a change-over
//! `operations` is what the program brings, `inherited` what crosses, `intake` what is waited for. `permits` is what the
//! host allows; `records` saves message A; `machine` decides, and `driver` performs; `journal` makes intents durable;
//! `swap` renames the link; `handoff` and `exec` carry over; `report` tells the manager; `stub` watches from outside.
//! `control` speaks over local sockets; `sys` has every call that `rustix` does not make safe, and every `unsafe` block.

mod adapter;
mod agent;
mod agent_error;
mod bad;
mod channel;
mod confirm;
mod control;
mod descriptor_name;
mod drain;
mod driver;
mod durable;
pub mod exec;
#[cfg(test)]
mod formats;
#[cfg(fuzzing)]
pub mod fuzzing;
mod generation;
mod given;
mod handoff;
mod health;
mod identity;
mod inherited;
mod intake;
#[doc(hidden)]
pub mod internal;
mod jobs;
mod journal;
mod kinds;
mod machine;
mod moments;
mod near;
mod operations;
mod paths;
mod permit_rules;
mod permits;
mod places;
mod predecessor;
mod program;
mod records;
mod report;
mod rescue;
mod serve;
mod stage;
mod state;
mod stub;
mod swap;
mod sys;
mod typed;

pub use agent::{Agent, AgentConfig, Remark, Stop};
pub use agent_error::AgentError;
pub use descriptor_name::{DescriptorName, NotAName};
pub use durable::FileFault;
pub use inherited::{Inherited, InheritedError};
pub use intake::{Gate, Intake, Listen, Pass};
pub use kinds::{Halt, KindFault, Kinds, Results};
pub use operations::{Demand, Ended, NotHealthy, OperationContext, Operations, StateRefused};
pub use paths::AgentPaths;
pub use permits::{NotPermitted, Permits, PermitsFault};

/// The vocabulary of operations: what is asked, how far it is, what came of it.
pub mod proto {
    pub use ::proto::{Product, TreeId, Version};

    /// What agents are asked, and what they answer.
    pub mod agent {
        pub use ::proto::agent::{
            AgentState, AgentStatus, HostScope, JobId, JobOrigin, Operation, Outcome, Progress, Repository,
            SnapshotRef, Summary,
        };
    }
    /// Operations of a program's own.
    pub mod own {
        pub use ::proto::own::{Finding, OwnSummary};
    }
    /// What a generation's record says.
    pub mod record {
        pub use ::proto::record::SchemaRange;
    }
}
