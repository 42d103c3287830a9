//! The client host's half, in the order the bytes arrive: fetch, cache, FUSE, mount; then relay and launch.

pub mod bundle;
pub mod cache;
mod collect;
pub mod daemon;
mod data;
pub mod delta;
pub mod enroll;
pub mod fetch;
mod files;
mod follow;
pub mod fuse;
mod generations;
mod known;
pub mod launch;
mod leases;
mod local;
pub mod mount;
pub mod objects;
mod pool;
mod prefetch;
pub mod profile;
mod relay;
mod spool;
mod status;
pub mod touches;
mod upstream;
mod users;
