//! Manager and host over real TLS on this machine, with a host whose agents are played by the test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod crowd;
mod deltas;
mod exports;
mod fixture;
mod fleet;
mod greeting;
mod hostile;
mod jobs;
mod lies;
mod memory;
mod played;
mod recovery;
mod trust;
mod upgrades;
