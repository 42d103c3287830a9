//! Probation, the agent's side: the new program shows that it is fit to work and that its operations API answers.
//! The other side, which ends a program that does not, is the stub's ([`crate::stub`]).

use std::path::PathBuf;
use std::time::Duration;

use proto::agent::{AgentReply, AgentRequest};

use crate::control::{Client, ControlError};
use crate::operations::NotHealthy;
use crate::paths::AgentPaths;
use crate::program::Program;

/// How long our own socket may take to answer.
const SELF_PATIENCE: Duration = Duration::from_secs(2);

/// Why a version is not believed yet.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unproved {
    #[error(transparent)]
    Program(#[from] NotHealthy),
    #[error("the operations API does not answer: {0}")]
    Silent(#[from] ControlError),
    #[error("{path} is served by process {pid}", path = path.display())]
    Another { path: PathBuf, pid: u32 },
    #[error("the operations API answers something else than its status")]
    NoStatus,
}

/// Asks the embedding program, then asks our own operations API as anybody would.
pub(crate) fn check(program: &Program, paths: &AgentPaths) -> Result<(), Unproved> {
    program.healthy()?;
    let path = paths.socket();
    match Client::ask(&path, &AgentRequest::Status, SELF_PATIENCE)? {
        AgentReply::Status(status) if status.pid == std::process::id() => Ok(()),
        AgentReply::Status(status) => Err(Unproved::Another { path, pid: status.pid }),
        AgentReply::Done | AgentReply::Outcome(_) | AgentReply::Fault(_) => Err(Unproved::NoStatus),
    }
}
