//! Bundles and deltas from the store of a manager to the bytes of a host, through both halves' public faces.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bundle;
mod delta;
mod origin;
