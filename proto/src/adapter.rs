//! What makes an unchanged program an agent: how it is handed over to another version of itself, what it listens on,
//! and how it ends.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::address::SocketAddr;
use crate::bounded::{Exact, List, Own, Word, within};
use crate::limits::{ARGUMENT_BYTES_MAX, ENVIRONMENT_MAX, LISTEN_MAX, LISTEN_NAME_BYTES_MAX, UNIX_PATH_BYTES_MAX};
use crate::text_form;

/// The adapter of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adapter {
    /// How one version follows another.
    pub handover: Handover,
    /// Sockets that cross from version to version; the program finds them as descriptors 3, 4, …, in this order.
    #[serde(deserialize_with = "within::<_, List<Own<Listen>, LISTEN_MAX>>")]
    pub listen: Vec<Listen>,
    /// By which signal it is told to end, and how long it may take.
    pub drain: Drain,
    /// Variables beside those that it inherits.
    #[serde(deserialize_with = "within::<_, List<Own<Variable>, ENVIRONMENT_MAX>>")]
    pub environment: Vec<Variable>,
}

/// How one version follows another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handover {
    /// Both listen on the same sockets, which belong to the adapter, until the new one is believed.
    Sockets,
    /// As `Sockets`, but each binds for itself (`SO_REUSEPORT`).
    Overlap,
    /// The old one ends before the new one is started.
    Restart,
}

impl fmt::Display for Handover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sockets => "sockets",
            Self::Overlap => "overlap",
            Self::Restart => "restart",
        })
    }
}

/// A socket, and the name under which it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listen {
    /// As in `LISTEN_FDNAMES`: letters, digits, `.`, `-`, `_`.
    #[serde(deserialize_with = "within::<_, Word<LISTEN_NAME_BYTES_MAX>>")]
    pub name: String,
    /// Where it is bound.
    pub at: ListenAddress,
}

/// Where a socket is bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListenAddress {
    /// A stream.
    Tcp(#[serde(with = "text_form")] SocketAddr),
    /// Datagrams.
    Udp(#[serde(with = "text_form")] SocketAddr),
    /// A stream at a path of the host.
    Unix(#[serde(deserialize_with = "within::<_, Exact<UNIX_PATH_BYTES_MAX>>")] String),
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp {address}"),
            Self::Udp(address) => write!(f, "udp {address}"),
            Self::Unix(path) => write!(f, "unix {path}"),
        }
    }
}

/// How a program ends in good order: it is sent a signal, and what is left of it at the deadline is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// What it is sent.
    #[serde(with = "text_form")]
    pub signal: DrainSignal,
    /// How long it then has, milliseconds.
    pub deadline_ms: u64,
}

/// A variable of the environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variable {
    /// Not empty, without `=`.
    #[serde(deserialize_with = "within::<_, Word<LISTEN_NAME_BYTES_MAX>>")]
    pub name: String,
    /// Its value, as it is: nothing in it is replaced. Without a NUL.
    #[serde(deserialize_with = "within::<_, Exact<ARGUMENT_BYTES_MAX>>")]
    pub value: String,
}

macro_rules! drain_signals {
    ($($variant:ident = $name:literal),+ $(,)?) => {
        /// A signal that asks a program to end.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs)] // They are the system's.
        pub enum DrainSignal { $($variant),+ }

        impl DrainSignal {
            /// All of them, as people write them.
            pub const NAMES: &[&str] = &[$($name),+];
        }

        impl fmt::Display for DrainSignal {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $name),+ })
            }
        }

        impl FromStr for DrainSignal {
            type Err = NotASignal;

            fn from_str(text: &str) -> Result<Self, NotASignal> {
                match text {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(NotASignal),
                }
            }
        }
    };
}

drain_signals! {
    Term = "SIGTERM",
    Int = "SIGINT",
    Quit = "SIGQUIT",
    Hup = "SIGHUP",
    Usr1 = "SIGUSR1",
    Usr2 = "SIGUSR2",
    Winch = "SIGWINCH",
}

/// Not one of [`DrainSignal::NAMES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no signal that asks a program to end; want one of {}", DrainSignal::NAMES.join(", "))]
pub struct NotASignal;
