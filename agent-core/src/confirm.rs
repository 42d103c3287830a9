//! Probation, the agent's side: the new program shows that it is fit to work and that its operations API answers.
//! The other side, which ends a program that does not, is the stub's ([`crate::stub`]).

use std::time::Duration;

use proto::agent::{AgentReply, AgentRequest};

use crate::control::Client;
use crate::operations::Operations;
use crate::paths::AgentPaths;

/// How long our own socket may take to answer.
const SELF_PATIENCE: Duration = Duration::from_secs(2);

/// Asks the embedding program, then asks our own operations API as anybody would.
pub(crate) fn check(operations: &dyn Operations, paths: &AgentPaths) -> Result<(), String> {
    operations.healthy()?;
    let path = paths.socket();
    let reply = Client::ask(&path, &AgentRequest::Status, SELF_PATIENCE);
    match reply.map_err(|e| format!("the operations API does not answer: {e}"))? {
        AgentReply::Status(status) if status.pid == std::process::id() => Ok(()),
        AgentReply::Status(status) => Err(format!("{} is served by process {}", path.display(), status.pid)),
        AgentReply::Done | AgentReply::Outcome(_) | AgentReply::Fault(_) => {
            Err("the operations API answers something else than its status".to_owned())
        }
    }
}
