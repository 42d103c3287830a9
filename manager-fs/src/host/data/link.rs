//! The host's link to its manager: dialled by the host, kept up, asked by blocking callers.
//!
//! ```text
//! FUSE, attach ──chunks, manifest──> control lane ─┐
//! relay, spool <──────requests─────> control lane ─┼══ TLS ══> manager
//! hydration    ──chunks────────────> bulk lane ────┤
//! attach, exec ──start-up bundle───> start lane ───┘
//! ```
//! A *lane* is one connection that is dialled again when it breaks: at once when a demand waits, otherwise with a
//! growing pause. The bulk and start lanes are only up while something is fetched on them: what a start needs neither stands
//! behind a background fetch, nor does a demand stand behind it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use proto::TreeId;
use proto::bulk::ChunkHead;
use proto::message::{ChunkRange, Fault, HostRequest, ManagerReply, Role};
use tokio::sync::watch;

use super::lane::{Dial, Lane, LinkFacts};
use super::unpacking::Unpacking;
use crate::clock::Clock;
use crate::host::fetch::{StartWanted, Upstream, UpstreamError, Urgency};
use crate::net::{Handler, Incoming, Link, RefuseAll};
use crate::sync::lock;

/// The link to the manager, as the host's threads and tasks see it.
pub(crate) struct ManagerLink {
    runtime: tokio::runtime::Handle,
    clock: Clock,
    control: Arc<Lane>,
    bulk: Arc<Lane>,
    start: Arc<Lane>,
    dial: Arc<dyn Dial>,
    facts: Arc<Mutex<LinkFacts>>,
    bytes: AtomicU64,
    /// The manager has refused `StartOf`.
    knows_no_programs: AtomicBool,
}

impl ManagerLink {
    /// A link that dials once [`ManagerLink::start`] is called.
    pub(crate) fn new(runtime: &tokio::runtime::Handle, clock: Clock, dial: Arc<dyn Dial>) -> Arc<Self> {
        let lane = |role| Lane::new(role, clock.clone());
        Arc::new(Self {
            runtime: runtime.clone(),
            control: lane(Role::Control),
            bulk: lane(Role::Bulk),
            start: lane(Role::Bulk),
            clock,
            dial,
            facts: Arc::default(),
            bytes: AtomicU64::new(0),
            knows_no_programs: AtomicBool::new(false),
        })
    }

    /// Starts to dial. `handler` answers the manager's requests, which come on the control connection.
    pub(crate) fn start(&self, handler: Arc<dyn Handler>) {
        let refuse = || Arc::new(RefuseAll) as Arc<dyn Handler>;
        for (lane, handler) in [(&self.control, handler), (&self.bulk, refuse()), (&self.start, refuse())] {
            let (lane, dial, facts) = (Arc::clone(lane), Arc::clone(&self.dial), Arc::clone(&self.facts));
            self.runtime.spawn(lane.keep_up(dial, handler, facts));
        }
    }

    /// The control connection as it comes and goes.
    pub(crate) fn connections(&self) -> watch::Receiver<Option<Link>> {
        self.control.connections()
    }

    /// The clock by which deadlines of requests are meant.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// What `status` says. Never blocks for longer than a copy.
    pub(crate) fn facts(&self) -> LinkFacts {
        lock(&self.facts).clone()
    }

    /// Where the manager is.
    pub(crate) fn address(&self) -> String {
        self.dial.address()
    }

    /// Bytes of chunks and manifests that came over the network, as they were sent.
    pub(crate) fn bytes_fetched(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Sends a request on the control connection and waits for the answer; a `Fault` is an error.
    pub(crate) async fn ask(&self, request: &HostRequest, deadline: Instant) -> Result<ManagerReply, Fault> {
        match self.control.request(true, request, |_| (), deadline).await? {
            ManagerReply::Fault(fault) => Err(fault),
            reply => Ok(reply),
        }
    }

    async fn manifest_bytes(&self, tree: &TreeId, deadline: Instant) -> Result<Vec<u8>, Fault> {
        let mut unpacking = Unpacking::begin().map_err(|error| Fault::Failed(error.to_string()))?;
        let on = |incoming| {
            if let Incoming::Bulk(bytes) = incoming {
                unpacking.take(&bytes);
            }
        };
        let request = HostRequest::Manifest { tree: *tree };
        let reply = self.control.request(true, &request, on, deadline).await?;
        check_sent(reply, unpacking.frames)?;
        self.bytes.fetch_add(unpacking.packed, Ordering::Relaxed);
        let plain = unpacking.end();
        plain.map_err(|error| Fault::Failed(format!("the manifest of {tree} cannot be decompressed: {error}")))
    }

    /// Sends a request whose answer is one stream of bytes. `sink` gets no bytes for a sign of life.
    fn stream(
        &self,
        lane: &Lane,
        demand: bool,
        request: &HostRequest,
        deadline: Instant,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Fault> {
        let (mut frames, mut bytes) = (0, 0);
        let on = |incoming| {
            let Incoming::Bulk(body) = incoming else { return sink(&[]) };
            frames += 1;
            bytes += body.len() as u64;
            if !body.is_empty() {
                sink(&body);
            }
        };
        let reply = self.runtime.block_on(async {
            let _user = lane.user();
            lane.request(demand, request, on, deadline).await
        });
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        check_sent(reply?, frames)
    }

    /// Ends all connections and stops dialling.
    pub(crate) fn end(&self) {
        for lane in [&self.control, &self.bulk, &self.start] {
            lane.end();
        }
    }
}

/// The network as the fetcher sees it. Blocks; not for use inside the runtime. Nothing that comes is checked here.
impl Upstream for ManagerLink {
    fn manifest(&self, tree: &TreeId, deadline: Instant) -> Result<Vec<u8>, UpstreamError> {
        Ok(self.runtime.block_on(self.manifest_bytes(tree, deadline))?)
    }

    fn chunks(
        &self,
        tree: &TreeId,
        wants: &[ChunkRange],
        urgency: Urgency,
        deadline: Instant,
        sink: &mut dyn FnMut(ChunkHead, Vec<u8>),
    ) -> Result<(), UpstreamError> {
        let demand = urgency == Urgency::Demand;
        let request = HostRequest::Chunks { tree: *tree, wants: wants.to_vec() };
        let lane = if demand { &self.control } else { &self.bulk };
        let (mut frames, mut bytes, mut malformed) = (0, 0, false);
        let on = |incoming| {
            let Incoming::Bulk(mut body) = incoming else { return };
            frames += 1;
            bytes += body.len() as u64;
            match ChunkHead::split(&body).map(|(head, _)| head) {
                Some(head) => sink(head, body.split_off(proto::bulk::CHUNK_HEAD_BYTES)),
                None => malformed = true,
            }
        };
        let reply = self.runtime.block_on(async {
            let _user = lane.user();
            lane.request(demand, &request, on, deadline).await
        });
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if malformed {
            return Err(UpstreamError::Failed("the manager sent a bulk frame that is no chunk".to_owned()));
        }
        Ok(check_sent(reply?, frames)?)
    }

    fn start(
        &self,
        wanted: StartWanted<'_>,
        deadline: Instant,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), UpstreamError> {
        let (generation, from, manifest) = (wanted.generation.clone(), wanted.from.copied(), wanted.with_manifest);
        if let Some(program) = wanted.program.filter(|_| !self.knows_no_programs.load(Ordering::Relaxed)) {
            let (generation, program) = (generation.clone(), program.to_owned());
            let request = HostRequest::StartOf { generation, from, manifest, program };
            match self.stream(&self.start, true, &request, deadline, sink) {
                // A manager from before there was this request.
                Err(Fault::BadRequest(_)) => self.knows_no_programs.store(true, Ordering::Relaxed),
                answer => return Ok(answer?),
            }
        }
        let request = HostRequest::Start { generation, from, manifest };
        Ok(self.stream(&self.start, true, &request, deadline, sink)?)
    }

    fn delta(
        &self,
        from: &TreeId,
        to: &TreeId,
        deadline: Instant,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), UpstreamError> {
        let request = HostRequest::Delta { from: *from, to: *to };
        Ok(self.stream(&self.bulk, false, &request, deadline, sink)?)
    }
}

fn check_sent(reply: ManagerReply, frames: u32) -> Result<(), Fault> {
    match reply {
        ManagerReply::Sent(sent) if sent == frames => Ok(()),
        ManagerReply::Sent(sent) => {
            Err(Fault::Failed(format!("the manager says that it sent {sent} bulk frames, {frames} came")))
        }
        ManagerReply::Fault(fault) => Err(fault),
        _ => Err(Fault::Failed("the manager answered a fetch with something else".to_owned())),
    }
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
