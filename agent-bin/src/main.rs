//! The reference storage agent: parse, build, run.
//!
//! One program in two roles. As a *data agent* it backs up, restores and verifies directories of its host, as a *media
//! agent* it checks and prunes the repositories that backups go to. `agent-core` gives it the rest: it takes operations
//! on a local socket, changes its own version, and starts from the saved metadata alone.

mod config;
mod draft;
mod engine;
mod health;
mod jobs;
mod kept;
mod serving;
mod storage;
mod wire;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;

use agent_core::Permits;
use agent_core::internal::memory;
use agent_core::{Agent, AgentConfig, AgentError, AgentPaths, Ended, NotHealthy, OperationContext, Operations, Stop};
use proto::agent::Operation;
use tracing_subscriber::EnvFilter;

use config::{Asked, HELP, Role};
use engine::BackupEngine;
use engine::restic::Restic;
use serving::Serving;

/// What goes back to the kernel when it is freed: packs. What compresses them takes some MiB for each blob.
const LARGE_BYTES: i32 = 8 << 20;

fn main() -> ExitCode {
    match Asked::read(std::env::args_os().skip(1), |name| std::env::var_os(name)) {
        Ok(Asked::Help) => print!("{HELP}"),
        Ok(Asked::Version) => println!("agent-bin {}", env!("CARGO_PKG_VERSION")),
        Ok(Asked::Run(role)) => {
            memory::be_frugal(LARGE_BYTES);
            log_to_stderr();
            engine::tell_panics();
            match serve(role) {
                Ok(why) => tracing::info!("ending: {why:?}"),
                Err(error) => {
                    eprintln!("agent-bin: {error}");
                    return ExitCode::FAILURE;
                }
            }
        }
        Err(what) => {
            eprintln!("agent-bin: {what}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn serve(role: Role) -> Result<Stop, AgentError> {
    let config = AgentConfig::from_env()?;
    let paths = config.paths().clone();
    if let Err(fault) = Permits::read(paths.state(), paths.run()) {
        tracing::error!("{fault}");
    }
    let (engine, config): (Arc<dyn BackupEngine>, _) = match role {
        Role::Data => (Arc::new(Restic::new(paths.state())), config),
        Role::Media => {
            let serving =
                Serving::start(&config).map_err(|source| AgentError::Io { what: "serving repositories", source })?;
            let gate = serving.gate();
            (Arc::new(Restic::with_desk(paths.state(), Arc::new(serving))), config.gate(gate))
        }
    };
    let agent = Agent::start(config, StorageAgent { role, engine, paths })?;
    let status = agent.status();
    tracing::info!("{role} agent {} {} serves as process {}", status.product, status.version, status.pid);
    Ok(agent.wait())
}

/// What `agent-core` calls.
struct StorageAgent {
    role: Role,
    engine: Arc<dyn BackupEngine>,
    paths: AgentPaths,
}

impl Operations for StorageAgent {
    fn run(&self, operation: &Operation, context: &OperationContext) -> Ended {
        // Anew for each: what the host's administrator has written meanwhile holds.
        let permits = Permits::read(self.paths.state(), self.paths.run());
        let ended = jobs::run(&self.engine, self.role, permits, operation, context);
        // The next one may be a day away.
        memory::give_back();
        ended
    }

    fn healthy(&self) -> Result<(), NotHealthy> {
        health::prove(self.paths.state()).map_err(|unfit| unfit.to_string().into())
    }
}

/// Logs to stderr, which the stub keeps the end of as evidence.
fn log_to_stderr() {
    let filter =
        std::env::var("MANAGER_FS_LOG").unwrap_or_else(|_| "info,rustic_core=warn,rustic_backend=warn".into());
    let filter = EnvFilter::try_new(&filter).unwrap_or_else(|error| {
        eprintln!("agent-bin: MANAGER_FS_LOG={filter}: {error}; logging at info");
        EnvFilter::new("info")
    });
    // The stub's pipe is no terminal: colours would stand in service logs and in the evidence against a version.
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}
