//! Why hosts, groups and tokens are refused, in the words that people read.

use proto::{GroupName, HostName};

use super::super::contract::ControlError;

/// Why a host, group or token is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// No host of this name is enrolled.
    #[error("host '{0}' is not enrolled; `manager-fs hosts` lists those that are")]
    Unknown(HostName),
    /// There is no such group.
    #[error("group '{0}' does not exist; `manager-fs host group list` lists those that do")]
    UnknownGroup(GroupName),
    /// A host is in a group by its labels, and so cannot be removed from it by name.
    #[error(
        "host '{host}' is in group '{group}' by the group's rule; change its labels (`manager-fs host label`) or the rule"
    )]
    InByRule {
        /// The group.
        group: GroupName,
        /// The host.
        host: HostName,
    },
    /// More labels than a host may have.
    #[error("host '{0}' would have more than 32 labels; take some away with KEY-")]
    TooManyLabels(HostName),
    /// More selectors than a rule may have.
    #[error("the rule of group '{0}' would have more than 16 selectors")]
    TooManySelectors(GroupName),
    /// The host may not connect.
    #[error(
        "host '{host}' {why}: to let it in again, `manager-fs token {host}` on the manager, then \
         `manager-fs enroll --force` with that token on the host"
    )]
    ShutOut {
        /// The host that is shut out.
        host: HostName,
        /// What an operator has done to it.
        why: ShutOut,
    },
    /// The token enrols nobody.
    #[error("{0}; print a new one with `manager-fs token`")]
    Token(TokenFault),
    /// The control state failed.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// Why a host is shut out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShutOut {
    /// It never enrolled, or with another manager.
    #[error("is not known to this manager")]
    Unknown,
    /// An operator revoked it.
    #[error("was revoked")]
    Revoked,
    /// What is known of it cannot be read.
    #[error("cannot be told from a stranger, because its record is damaged (`manager-fs record list`)")]
    Damaged,
    /// The certificate that it shows was replaced by an enrolment.
    #[error("was enrolled anew since, and this certificate is no longer accepted")]
    EnrolledAnew,
}

/// What is wrong with an enrolment token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    /// Another manager's, or long gone.
    #[error("this manager did not print this token")]
    Unknown,
    /// It has enrolled a host already.
    #[error("this token was used before, it enrols only once")]
    Used,
    /// Its time is over.
    #[error("this token has expired")]
    Expired,
    /// No token is good for so long.
    #[error("this token was printed while the clock of this manager was ahead")]
    Ahead,
}
