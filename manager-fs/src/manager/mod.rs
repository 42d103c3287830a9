//! The manager's half, in the order the bytes travel: ingest, publish, store, export; then control, jobs, upgrades.

pub mod control;
pub mod elf;
pub mod identity;
pub mod ingest;
pub mod metadata;
pub mod monitor;
pub mod publish;
pub mod store;
