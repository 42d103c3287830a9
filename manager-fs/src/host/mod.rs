//! The client host's half, in the order the bytes arrive: fetch, cache, FUSE, mount; then relay and launch.

pub mod cache;
pub mod enroll;
pub mod fetch;
pub mod fuse;
pub mod launch;
pub mod mount;
pub mod objects;
mod pool;
