//! Why a program cannot become an agent.

use std::path::PathBuf;

use crate::durable::FileFault;
use crate::given::GivenFault;
use crate::kinds::KindFault;
use crate::operations::StateRefused;
use crate::records::RecordError;

/// A program cannot become an agent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// It was not started by the stub.
    #[error("{0} is not set: start this program with `manager-fs launch PRODUCT`")]
    NotLaunched(&'static str),
    /// A variable of the stub means nothing.
    #[error("{name} is '{value}': {fault}")]
    Variable {
        /// The environment variable's name.
        name: &'static str,
        /// What it says.
        value: String,
        /// What is wrong with it.
        fault: String,
    },
    /// The inherited descriptors were taken before.
    #[error("the agent was started before in this process")]
    StartedBefore,
    /// There is no journal.
    #[error("{}: the journal is not there: start this program with `manager-fs launch PRODUCT`", .0.display())]
    NoJournal(PathBuf),
    /// The saved metadata was replaced since this program was started.
    #[error("started as {started}, but its saved metadata is of {found}")]
    OtherVersion {
        /// As whoever started it said: version and tree.
        started: String,
        /// As the metadata says now.
        found: String,
    },
    /// The saved metadata cannot be used.
    #[error(transparent)]
    Record(Box<dyn std::error::Error + Send + Sync>),
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileFault),
    /// The embedding program cannot take over what the version before it left.
    #[error("the previous version's state cannot be taken over: {0}")]
    State(#[from] StateRefused),
    /// An operation of its own cannot be registered.
    #[error(transparent)]
    Kind(#[from] KindFault),
    /// The host is out of something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
}

impl From<RecordError> for AgentError {
    fn from(fault: RecordError) -> Self {
        AgentError::Record(fault.into())
    }
}

impl From<GivenFault> for AgentError {
    fn from(fault: GivenFault) -> Self {
        match fault {
            GivenFault::NoJournal(path) => AgentError::NoJournal(path),
            GivenFault::File(fault) => AgentError::File(fault),
        }
    }
}
