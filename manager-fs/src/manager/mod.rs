//! The manager's half, in the order the bytes travel: ingest, publish, store, export; then control, jobs, upgrades.
//!
//! Each part is a struct of the parts that it needs; `whole.rs` puts them together, and only `admin/`, `http/` and the
//! command line know the whole.

pub mod admin;
mod admission;
mod budget;
pub mod bundle;
pub mod company;
mod connections;
mod content;
pub mod control;
pub mod crossing;
pub mod delta;
pub(crate) mod documents;
pub mod elf;
mod enrolment;
mod error;
pub mod export;
mod exports;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod greeting;
pub mod hours;
pub mod http;
pub mod identity;
mod idle_work;
pub mod ingest;
pub mod jobs;
pub mod labels;
mod libraries;
mod lists;
pub mod metadata;
mod metrics;
pub mod monitor;
mod news;
mod parcel;
pub mod policy;
mod product_file;
pub mod publish;
mod record_files;
pub mod recover;
mod repair;
mod reports;
pub mod repositories;
pub mod rollout;
mod server;
mod session;
pub mod skew;
pub mod store;
mod tally;
mod targets;
mod toml_text;
pub mod upgrade;
pub mod upkeep;
pub mod whole;
mod worker;

use std::time::{SystemTime, UNIX_EPOCH};

use proto::message::Unix;
use proto::width;

pub use error::ManagerError;

/// The manager's clock, milliseconds since 1970.
pub(crate) fn now() -> Unix {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, width::millis)
}

#[cfg(test)]
pub(crate) mod testing;
