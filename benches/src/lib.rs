//! What every benchmark shares: paired runs, their statistics, one table, one JSON document, plots; and a network of two
//! namespaces whose bandwidth and latency are chosen.
//!
//! A figure alone says little on a noisy machine. Each contender is therefore run in turn with its rival, round after
//! round, and the result is the ratio of each round's pair, with its spread.
//!
//! ```text
//! client namespace          │ wire, shaped │          server namespace
//! program ── mount ─────────┼──────────────┼── relay (RTT/2 each way) ── manager, HTTP, SSH
//!            received bytes ┘
//! ```

pub mod choice;
pub mod cold;
pub mod cost;
pub mod crowd;
pub mod exec;
pub mod fleet;
pub mod http;
pub mod lab;
pub mod mounted;
pub mod namespace;
pub mod ours;
pub mod pair;
pub mod patch;
pub mod plot;
pub mod profile;
pub mod relay;
pub mod report;
pub mod rival;
pub mod start;
mod sys;
pub mod tool;
pub mod trees;
pub mod upgrade;
pub mod warden;
pub mod whole_fleet;
