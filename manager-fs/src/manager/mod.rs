//! The manager's half, in the order the bytes travel: ingest, publish, store, export; then control, jobs, upgrades.

pub mod admin;
mod ahead;
pub mod bundle;
mod content;
pub mod control;
pub mod delta;
pub mod elf;
pub mod export;
pub mod identity;
pub mod ingest;
pub mod jobs;
pub mod metadata;
pub mod monitor;
pub mod publish;
mod reports;
pub mod server;
mod session;
pub mod store;
mod strangers;
pub mod upgrade;

use std::time::{SystemTime, UNIX_EPOCH};

use proto::message::{Fault, Unix};

/// The manager's clock, milliseconds since 1970.
pub(crate) fn now() -> Unix {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// What a failure is called on the wire.
pub(crate) fn fault_of(error: anyhow::Error) -> Fault {
    error.downcast::<Fault>().unwrap_or_else(|error| Fault::Failed(format!("{error:#}")))
}

#[cfg(test)]
pub(crate) mod testing;
