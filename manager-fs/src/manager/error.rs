//! Every failure of the manager, and the one place where a failure becomes what the other side is told.

use proto::message::Fault;

use super::admin::refusal::CatalogError;
use super::budget::BudgetError;
use super::bundle::{BundleError, SendStartError};
use super::company::CompanyError;
use super::connections::ConnectionError;
use super::control::ControlError;
use super::control::api_tokens::ApiTokenError;
use super::control::generations::GenerationError;
use super::control::hosts::HostError;
use super::control::jobs::JobRecordError;
use super::control::repositories::RepositoryError;
use super::crossing::CrossingError;
use super::delta::SendDeltaError;
use super::enrolment::EnrolmentError;
use super::export::SendError;
use super::exports::ExportError;
use super::greeting::GreetingError;
use super::identity::IdentityError;
use super::ingest::IngestError;
use super::jobs::JobError;
use super::policy::PolicyError;
use super::publish::PublishError;
use super::reports::ReportError;
use super::repositories::RepositoriesError;
use super::rollout::RolloutError;
use super::store::StoreError;
use super::upgrade::UpgradeError;
use super::upkeep::UpkeepError;
use super::worker::BrokenOff;
use crate::net::NetError;

/// Why the manager did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManagerError {
    /// The control state failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A host, group or token is refused.
    #[error(transparent)]
    Host(#[from] HostError),
    /// No one generation is meant.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Keys or certificates cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A certificate is refused.
    #[error(transparent)]
    Enrolment(#[from] EnrolmentError),
    /// A connection did what it may not do.
    #[error(transparent)]
    Greeting(#[from] GreetingError),
    /// A connection is not let in.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// A host asks more than its share.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// Something is not exported, or cannot be taken back.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// Manifest or chunks were not sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// A delta was not sent.
    #[error(transparent)]
    SendDelta(#[from] SendDeltaError),
    /// A start-up bundle was not sent or made.
    #[error(transparent)]
    SendStart(#[from] SendStartError),
    /// Reports were not taken.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// A job was not ordered or stopped.
    #[error(transparent)]
    Job(#[from] JobError),
    /// A token of the HTTP interface was not given or taken back.
    #[error(transparent)]
    ApiToken(#[from] ApiTokenError),
    /// A repository was not ordered, or no token given.
    #[error(transparent)]
    Repositories(#[from] RepositoriesError),
    /// Agents were not told to change over.
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
    /// A rollout was not planned, or not told.
    #[error(transparent)]
    Rollout(#[from] RolloutError),
    /// A policy was not taken, or not told.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Received files were not taken in.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// A generation was not published or taken back.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Generations were not saved, or not loaded.
    #[error(transparent)]
    Crossing(#[from] CrossingError),
    /// There is no backup.
    #[error(transparent)]
    Upkeep(#[from] UpkeepError),
    /// A connection failed.
    #[error(transparent)]
    Net(#[from] NetError),
    /// Nobody can connect.
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        /// The address that should be listened on.
        address: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The work was broken off.
    #[error(transparent)]
    BrokenOff(#[from] BrokenOff),
}

impl From<ManagerError> for Fault {
    fn from(error: ManagerError) -> Self {
        let kind: Kind = match &error {
            // What the other side of a relayed request said is passed on as it is.
            ManagerError::Upgrade(UpgradeError::Host(fault))
            | ManagerError::Greeting(GreetingError::Refused(fault)) => {
                return fault.clone();
            }
            ManagerError::Host(error) => of_host(error),
            ManagerError::Generation(error) => of_generation(error),
            ManagerError::Identity(error) => of_identity(error),
            ManagerError::Enrolment(error) => match error {
                EnrolmentError::Protocol(_) => Fault::Refused,
                EnrolmentError::Request(error) => of_identity(error),
                EnrolmentError::Host(error) => of_host(error),
            },
            ManagerError::Greeting(GreetingError::Stranger) => Fault::Refused,
            ManagerError::Greeting(_) => Fault::BadRequest,
            ManagerError::Connection(error) => match error {
                ConnectionError::Clone(_) => Fault::Refused,
                ConnectionError::Host(error) => of_host(error),
            },
            ManagerError::Budget(_) => Fault::Unavailable,
            ManagerError::Export(error) => of_export(error),
            ManagerError::Send(error) => match error {
                SendError::Export(error) => of_export(error),
                SendError::TooManyChunks(_) | SendError::NoSuchChunks { .. } => Fault::BadRequest,
                SendError::NotInTree(_) => Fault::NotExported,
                _ => Fault::Failed,
            },
            ManagerError::SendDelta(error) => match error {
                SendDeltaError::Export(error) => of_export(error),
                SendDeltaError::SameTree(_) => Fault::BadRequest,
                _ => Fault::Failed,
            },
            ManagerError::SendStart(error) => match error {
                SendStartError::Export(error) => of_export(error),
                SendStartError::Make(BundleError::Touches(_)) => Fault::BadRequest,
                _ => Fault::Failed,
            },
            ManagerError::Report(error) => match error {
                ReportError::Empty => Fault::BadRequest,
                ReportError::Job(error) => of_job(error),
                ReportError::Control(_) | ReportError::BrokenOff(_) => Fault::Failed,
            },
            ManagerError::Job(error) => of_job(error),
            ManagerError::Repositories(error) => of_repositories(error),
            ManagerError::ApiToken(error) => of_api_token(error),
            ManagerError::Upgrade(error) => match error {
                UpgradeError::NoEntryPoint(_) | UpgradeError::NoHosts => Fault::BadRequest,
                UpgradeError::Target(error) => of_host(error),
                UpgradeError::Generation(error) => of_generation(error),
                UpgradeError::Export(error) => of_export(error),
                UpgradeError::Company(error) => of_company(error),
                _ => Fault::Failed,
            },
            ManagerError::Rollout(error) => of_rollout(error),
            ManagerError::Policy(error) => of_policy(error),
            ManagerError::Publish(error) => of_publish(error),
            ManagerError::Catalog(error) => match error {
                CatalogError::Cancelled => Fault::Failed,
                _ => Fault::BadRequest,
            },
            ManagerError::Upkeep(UpkeepError::Relative(_) | UpkeepError::Exists(_)) => Fault::BadRequest,
            ManagerError::Crossing(error) => of_crossing(error),
            ManagerError::Control(_)
            | ManagerError::Store(_)
            | ManagerError::Upkeep(_)
            | ManagerError::Net(_)
            | ManagerError::Listen { .. }
            | ManagerError::BrokenOff(_) => Fault::Failed,
        };
        kind(error.to_string())
    }
}

/// A kind of fault, to be made of its text.
type Kind = fn(String) -> Fault;

/// What is wrong with the files is for whoever brought them to mend.
fn of_publish(error: &PublishError) -> Kind {
    match error {
        PublishError::Store(_) | PublishError::Record(_) | PublishError::Ingest(IngestError::Store(_)) => {
            Fault::Failed
        }
        _ => Fault::BadRequest,
    }
}

fn of_crossing(error: &CrossingError) -> Kind {
    match error {
        CrossingError::Io { .. } | CrossingError::Cancelled | CrossingError::Store(_) => Fault::Failed,
        _ => Fault::BadRequest,
    }
}

fn of_host(error: &HostError) -> Kind {
    match error {
        HostError::Unknown(_) | HostError::UnknownGroup(_) => Fault::NotFound,
        HostError::ShutOut { .. } | HostError::Token(_) => Fault::Refused,
        HostError::InByRule { .. } | HostError::TooManyLabels(_) | HostError::TooManySelectors(_) => {
            Fault::BadRequest
        }
        HostError::Control(_) => Fault::Failed,
    }
}

fn of_generation(error: &GenerationError) -> Kind {
    match error {
        GenerationError::Unknown { .. } => Fault::NotFound,
        GenerationError::Ambiguous { .. } | GenerationError::SeveralTrees { .. } => Fault::BadRequest,
        GenerationError::Control(_) => Fault::Failed,
    }
}

fn of_company(error: &CompanyError) -> Kind {
    match error {
        CompanyError::Skew(_) => Fault::BadRequest,
        CompanyError::Control(_) => Fault::Failed,
    }
}

fn of_policy(error: &PolicyError) -> Kind {
    match error {
        PolicyError::Unknown(_) => Fault::NotFound,
        PolicyError::Target(error) => of_host(error),
        PolicyError::Job(error) => of_job(error),
        PolicyError::Control(_) => Fault::Failed,
        PolicyError::Form(_) | PolicyError::Known(_) | PolicyError::TooMany | PolicyError::NoTask { .. } => {
            Fault::BadRequest
        }
    }
}

fn of_identity(error: &IdentityError) -> Kind {
    match error {
        IdentityError::Request(_) => Fault::BadRequest,
        _ => Fault::Failed,
    }
}

fn of_api_token(error: &ApiTokenError) -> Kind {
    match error {
        ApiTokenError::Unknown(_) => Fault::NotFound,
        ApiTokenError::Exists(_) | ApiTokenError::TooMany => Fault::BadRequest,
        ApiTokenError::Control(_) => Fault::Failed,
    }
}

fn of_repositories(error: &RepositoriesError) -> Kind {
    match error {
        RepositoriesError::Repository(error) => of_repository(error),
        RepositoriesError::Job(error) => of_job(error),
        RepositoriesError::Address(_) | RepositoriesError::TooLong => Fault::BadRequest,
        RepositoriesError::Random(_) | RepositoriesError::Grant(_) => Fault::Failed,
    }
}

fn of_repository(error: &RepositoryError) -> Kind {
    match error {
        RepositoryError::Unknown(_) | RepositoryError::NoGrant { .. } => Fault::NotFound,
        RepositoryError::Exists { .. } => Fault::BadRequest,
        RepositoryError::Control(_) => Fault::Failed,
    }
}

fn of_export(error: &ExportError) -> Kind {
    match error {
        ExportError::NotExported(_) => Fault::NotExported,
        ExportError::SeveralTrees(_) | ExportError::Attached { .. } => Fault::BadRequest,
        ExportError::Generation(error) => of_generation(error),
        ExportError::Host(error) => of_host(error),
        ExportError::Control(_) => Fault::Failed,
    }
}

fn of_rollout(error: &RolloutError) -> Kind {
    match error {
        RolloutError::Plan(_)
        | RolloutError::NoEntryPoint(_)
        | RolloutError::Busy { .. }
        | RolloutError::NotNow(_)
        | RolloutError::NotForced(_)
        | RolloutError::NoReason
        | RolloutError::NoWayBack { .. }
        | RolloutError::None
        | RolloutError::Gone(_) => Fault::BadRequest,
        RolloutError::Unknown(_) => Fault::NotFound,
        RolloutError::Target { cause, .. } => of_host(cause),
        RolloutError::Generation(error) => of_generation(error),
        RolloutError::Company(error) => of_company(error),
        RolloutError::Control(_) | RolloutError::NotRecorded { .. } => Fault::Failed,
    }
}

fn of_job(error: &JobError) -> Kind {
    match error {
        JobError::Operation(_) | JobError::Record(JobRecordError::Over { .. }) => Fault::BadRequest,
        JobError::Host(error) => of_host(error),
        JobError::Record(JobRecordError::Unknown(_)) | JobError::NoHosts(_) => Fault::NotFound,
        JobError::Repository(error) => of_repository(error),
        JobError::Record(_) | JobError::Control(_) | JobError::Grant(_) => Fault::Failed,
    }
}
