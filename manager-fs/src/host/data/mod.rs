//! The data path as the rest of the worker sees it, and its link to the manager.

pub(in crate::host) mod dial;
pub(in crate::host) mod lane;
pub(in crate::host) mod link;
pub(in crate::host) mod plane;
pub(in crate::host) mod prefetch;
pub mod recorder;
mod unpacking;
