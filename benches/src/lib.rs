//! What every benchmark shares: paired runs, their statistics, one table and one JSON document.
//!
//! A figure alone says little on a noisy machine. Each contender is therefore run in turn with its rival, round after
//! round, and the result is the ratio of each round's pair, with its spread.

pub mod pair;
pub mod report;
pub mod start;
pub mod trees;
