//! The only place that knows TLS and sockets: connections that carry many requests at once, in both directions.
//!
//! ```text
//! request(…) ──> Request ────────────────> Handler::handle(body, answer)
//!    on(Event | Bulk) <── Event, Bulk <──── answer.event(…), answer.bulk(…)
//!    Ok(reply)        <── Response    <──── answer.finish(…)
//! ```
//! A [`Link`] runs over any byte stream: TLS between host and manager ([`tls`]), Unix sockets on one machine
//! ([`unix`]), an in-memory pipe in tests. Framing is [`proto::frame`], bodies are [`proto::codec`].

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

pub mod answer;
pub mod link;
#[cfg(test)]
mod peer_tests;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod unix;
pub mod web;

pub use answer::{Answer, Cancellation};
pub use link::{Handler, Incoming, Link, LinkLimits, RefuseAll, start, start_with};
pub use rustls::{ClientConfig, ServerConfig};
pub use tls::{
    ServerStream, TlsIdentity, accept, client_config, connect, enrolment_config, server_config, web_config,
};
pub use unix::{bind_unix, connect_unix, peer_is_trusted};
pub use web::{WebIdentity, connect_web, web_client_config};

/// Where a manager's HTTP interface lets a connection of this program go on as a [`Link`].
pub const LINK_PATH: &str = "/v1/link";
/// What it is called in the request for it.
pub const LINK_PROTOCOL: &str = "manager-fs";

/// A boxed future, as trait methods return it.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Why a connection or a request on it failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The connection is gone, and why.
    #[error("the connection ended: {0}")]
    Closed(String),
    /// No answer in time; the peer was told that it is no longer wanted.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Deadline(Duration),
    /// The peer's answer does not decode, or ours does not encode.
    #[error(transparent)]
    Codec(#[from] proto::codec::CodecError),
    /// A message of ours is larger than the peer would take.
    #[error("a message of {bytes} bytes is over the limit of {max}")]
    TooLarge {
        /// How many bytes it has.
        bytes: usize,
        /// How many it may have.
        max: usize,
    },
    /// The peer's handler gave up without an answer.
    #[error("the peer gave no answer to this request (its log says why)")]
    Unanswered,
    /// The requester no longer wants the answer.
    #[error("the request was cancelled by its sender")]
    Cancelled,
    /// No connection could be made.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// The address that was dialled.
        address: String,
        /// Why there is no connection, for people.
        reason: String,
    },
    /// Keys or certificates cannot be used.
    #[error("{0}")]
    Identity(String),
}

/// How many files this process may have open.
pub(crate) fn descriptors_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.map_or(usize::MAX, |current| usize::try_from(current).unwrap_or(usize::MAX))
}

/// Allows this process as many open files as it may have. The usual soft limit of 1,024 would be reached by a manager's
/// connections, and on a host by objects being filled, together with connections.
pub(crate) fn allow_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum.map_or(limit.current, |maximum| Some(maximum.min(65_536)));
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays");
    }
}
