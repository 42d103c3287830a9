//! Which hosts a command means.

use proto::HostName;
use proto::name::Target;
use serde::{Deserialize, Serialize};

use crate::manager::labels::Selector;

/// Hosts in one answer.
pub const HOSTS_PAGE: usize = 2_000;

/// Which hosts are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFilter {
    /// Only these hosts and those of these groups; every host if there are none.
    pub to: Vec<Target>,
    /// Only those whose labels meet all of these.
    pub labels: Vec<Selector>,
    /// Only those in this state.
    pub state: Option<HostState>,
    /// Only those whose names come after this one.
    pub after: Option<HostName>,
}

/// What a host is, as it is filtered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostState {
    /// It is connected now.
    Connected,
    /// It is enrolled and not connected.
    Away,
    /// It was revoked.
    Revoked,
}
