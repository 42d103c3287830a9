//! An upstream of which a timeline notes every request and what comes.

use std::sync::Arc;
use std::time::Instant;

use proto::TreeId;
use proto::bulk::ChunkHead;
use proto::message::ChunkRange;
use proto::trace::TraceWhat;

use super::{StartWanted, Upstream, UpstreamError, Urgency};
use crate::host::objects::object_prefix;
use crate::host::timeline::{About, Timeline};

/// Asks another upstream, and notes it.
pub struct Watched {
    upstream: Arc<dyn Upstream>,
    timeline: Arc<Timeline>,
}

impl Watched {
    /// Notes on `timeline` what is asked of `upstream`.
    pub fn new(upstream: Arc<dyn Upstream>, timeline: Arc<Timeline>) -> Self {
        Self { upstream, timeline }
    }

    /// A stream of bytes: each part that comes, then the whole.
    fn stream(
        &self,
        what: TraceWhat,
        sink: &mut dyn FnMut(&[u8]),
        ask: impl FnOnce(&mut dyn FnMut(&[u8])) -> Result<(), UpstreamError>,
    ) -> Result<(), UpstreamError> {
        let (since, mut came) = (self.timeline.since(), 0);
        let result = ask(&mut |bytes| {
            came += bytes.len() as u64;
            self.timeline.arrived(bytes.len() as u64);
            sink(bytes);
        });
        self.timeline.note(what, since, About { bytes: came, ..About::default() });
        result
    }
}

impl Upstream for Watched {
    fn manifest(&self, tree: &TreeId, deadline: Instant) -> Result<Vec<u8>, UpstreamError> {
        let since = self.timeline.since();
        let result = self.upstream.manifest(tree, deadline);
        let bytes = result.as_ref().map_or(0, |bytes| bytes.len() as u64);
        self.timeline.note(TraceWhat::Manifest, since, About { bytes, ..About::default() });
        result
    }

    fn chunks(
        &self,
        tree: &TreeId,
        wants: &[ChunkRange],
        urgency: Urgency,
        deadline: Instant,
        sink: &mut dyn FnMut(ChunkHead, Vec<u8>),
    ) -> Result<(), UpstreamError> {
        let (since, mut bytes) = (self.timeline.since(), 0);
        let result = self.upstream.chunks(tree, wants, urgency, deadline, &mut |head, stored| {
            bytes += stored.len() as u64;
            sink(head, stored);
        });
        let first = wants.first().map(|want| want.object);
        let only = first.filter(|first| wants.iter().all(|want| want.object == *first));
        let what = match urgency {
            Urgency::Demand => TraceWhat::Chunks,
            Urgency::Background => TraceWhat::Background,
        };
        self.timeline.note(what, since, About { object: only.map(|id| object_prefix(&id)), offset: 0, bytes });
        result
    }

    fn start(
        &self,
        wanted: StartWanted<'_>,
        deadline: Instant,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), UpstreamError> {
        self.stream(TraceWhat::Start, sink, |sink| self.upstream.start(wanted, deadline, sink))
    }

    fn delta(
        &self,
        from: &TreeId,
        to: &TreeId,
        deadline: Instant,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), UpstreamError> {
        self.stream(TraceWhat::Delta, sink, |sink| self.upstream.delta(from, to, deadline, sink))
    }
}
