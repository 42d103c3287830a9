//! How a program is asked from outside whether it is fit to work.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::address::SocketAddr;
use crate::bounded::{Exact, List, within};
use crate::limits::{ARGUMENT_BYTES_MAX, ARGUMENTS_MAX, PATH_BYTES_MAX};
use crate::text_form;

/// A question that is asked again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What is asked, and where.
    pub probe: HealthProbe,
    /// Between two of them, milliseconds.
    pub interval_ms: u64,
    /// For one of them, milliseconds.
    pub timeout_ms: u64,
}

/// A question to a program from outside; an answer in time, of the right kind, is health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthProbe {
    /// `GET`; any answer from 200 to 399 is well.
    Http {
        /// An address of the host itself.
        #[serde(with = "text_form")]
        address: SocketAddr,
        /// The path that is asked for, from its `/` on.
        #[serde(deserialize_with = "within::<_, Exact<PATH_BYTES_MAX>>")]
        path: String,
    },
    /// A TCP connection that is accepted.
    Socket(#[serde(with = "text_form")] SocketAddr),
    /// A program and its arguments; exit status 0 is well.
    Command(#[serde(deserialize_with = "within::<_, List<Exact<ARGUMENT_BYTES_MAX>, ARGUMENTS_MAX>>")] Vec<String>),
}

impl HealthProbe {
    /// Where a connection has to be made; `None` for a command.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Http { address, .. } | Self::Socket(address) => Some(*address),
            Self::Command(_) => None,
        }
    }
}

impl fmt::Display for HealthProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { address, path } => write!(f, "http://{address}{path}"),
            Self::Socket(address) => write!(f, "{address}"),
            Self::Command(command) => f.write_str(&command.join(" ")),
        }
    }
}
