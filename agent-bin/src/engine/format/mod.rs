//! Repositories of restic's format, byte by byte: what the agent reads and writes of them itself.
//!
//! Backup, restore and verify go by this and not by the engine's library, because only whoever holds the bytes can say
//! of each fault which file it hits, go on with the next, and stop within a second. Specified in restic's design
//! document ("Repository Format"); checked against restic itself in the tests.

pub(crate) mod blobs;
pub(crate) mod chunker;
mod compression;
#[cfg(test)]
mod damaged_tests;
pub(crate) mod files;
pub(crate) mod id;
pub(crate) mod index;
pub(crate) mod locks;
pub(crate) mod pace;
pub(crate) mod packs;
pub(crate) mod seal;
pub(crate) mod tree;
