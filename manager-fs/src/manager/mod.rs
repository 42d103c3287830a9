//! The manager's half, in the order the bytes travel: ingest, publish, store, export; then control, jobs, upgrades.

pub mod control;
pub mod identity;
pub mod ingest;
pub mod store;
