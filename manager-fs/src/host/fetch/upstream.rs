//! The side from which bytes come.

use std::time::Instant;

use proto::bulk::ChunkHead;
use proto::message::ChunkRange;
use proto::{GenerationRef, TreeId};

/// The start of a generation.
#[derive(Debug, Clone, Copy)]
pub struct StartWanted<'a> {
    /// Which, by any name.
    pub generation: &'a GenerationRef,
    /// A tree of which every object is here.
    pub from: Option<&'a TreeId>,
    /// Whether the manifest is wanted too.
    pub with_manifest: bool,
    /// The program, as it was typed; otherwise the entry point.
    pub program: Option<&'a str>,
}

/// Where bytes come from. Implemented over the network by the daemon, and by tests. All calls block.
pub trait Upstream: Send + Sync {
    /// The stored bytes of a tree's manifest; the caller checks them.
    fn manifest(&self, tree: &TreeId, deadline: Instant) -> Result<Vec<u8>, UpstreamError>;

    /// Calls `sink` with each wanted chunk, in any order; [`ChunkHead::sequence`] counts the chunks of `wants` as
    /// they are named. What `sink` was given before an error is used.
    fn chunks(
        &self,
        tree: &TreeId,
        wants: &[ChunkRange],
        urgency: Urgency,
        deadline: Instant,
        sink: &mut dyn FnMut(ChunkHead, Vec<u8>),
    ) -> Result<(), UpstreamError>;

    /// Calls `sink` with the bytes of everything that a start needs, in order ([`proto::bundle`]). What `sink` was given
    /// before an error is used.
    fn start(
        &self,
        _wanted: StartWanted<'_>,
        _deadline: Instant,
        _sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), UpstreamError> {
        Err(UpstreamError::Unavailable("this source has no start-up bundles".into()))
    }

    /// Calls `sink` with the bytes of the delta from one tree to another, in order ([`proto::delta`]), and with
    /// none whenever it hears that the delta is still being made. What `sink` was given before an error is used.
    fn delta(
        &self,
        _from: &TreeId,
        _to: &TreeId,
        _deadline: Instant,
        _sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), UpstreamError> {
        Err(UpstreamError::Unavailable("this source has no deltas".into()))
    }
}

/// Whether a program waits for the bytes: then they come over the control connection, before all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// A program waits for these bytes.
    Demand,
    /// Fetched ahead; must never delay a demand.
    Background,
}

/// Why the upstream did not deliver.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// This host may not have the tree. Asking again does not help.
    #[error("not exported to this host: {0}")]
    NotExported(String),
    /// Not reachable, too slow, or cut off. Asking again may help.
    #[error("manager unavailable: {0}")]
    Unavailable(String),
    /// It answered with a failure.
    #[error("manager failed: {0}")]
    Failed(String),
}
