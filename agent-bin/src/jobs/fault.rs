//! Why an operation is not run, or not to its end.

use agent_core::{FileFault, NotPermitted, PermitsFault};
use proto::OperationKind;

use crate::config::Role;
use crate::engine::EngineError;

/// An operation cannot be run.
#[derive(Debug, thiserror::Error)]
pub(super) enum JobFault {
    #[error("a {role} agent does {does}; {kind} is done by a {other} agent")]
    OtherRole { role: Role, does: &'static str, kind: String, other: Role },
    #[error("the reference agent brings no operations of its own, and so no {0}")]
    NotOurs(OperationKind),
    #[error(transparent)]
    NotPermitted(#[from] NotPermitted),
    #[error(transparent)]
    Permits(#[from] PermitsFault),
    #[error("at least one snapshot of each source is kept, and nothing says which")]
    KeepsNothing,
    #[error("the manager did not say what seals grants for the repository; order `repository create` again")]
    NoKey,
    #[error("the output of a command is one file, at one path")]
    OnePath,
    #[error("a backup needs at least one source")]
    NoSource,
    #[error("job {job} was begun by a version that did not keep on whose behalf; run it again")]
    NoOrigin { job: u64 },
    #[error("the saved state of job {job} is damaged: {error}")]
    Damaged { job: u64, error: serde_json::Error },
    #[error("the saved state of job {job} has form {found}, this version reads form {known}; run the job again")]
    OtherSchema { job: u64, found: u32, known: u32 },
    #[error("the state of job {job} cannot be saved: {fault}")]
    Unsaved { job: u64, fault: FileFault },
    #[error("the state of job {job} cannot be written down: {error}")]
    Encode { job: u64, error: serde_json::Error },
    #[error("{error}{}", done_before(.done))]
    Engine { error: Box<EngineError>, done: Vec<String> },
}

fn done_before(snapshots: &[String]) -> String {
    if snapshots.is_empty() { String::new() } else { format!(" (done before: snapshot {})", snapshots.join(", ")) }
}
