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

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agent_core::report::unix_ms;
use proto::bulk::ChunkHead;
use proto::limits::MANIFEST_BYTES_MAX;
use proto::message::{ChunkRange, Fault, HostRequest, Instance, ManagerReply, PROTOCOL, Role};
use proto::{GenerationRef, HostName, TreeId};
use tokio::sync::{Notify, watch};

use crate::host::fetch::{Upstream, UpstreamError, Urgency};
use crate::net::{BoxFuture, Handler, Incoming, Link, NetError, RefuseAll};
use crate::sync::lock;

/// The first pause after a failed dial, and the longest. Thousands of hosts must not hammer a manager that comes back,
/// yet an operator who restarts it does not want to wait.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// After a connection that was up all hosts of a manager dial again: within this time, and not in one moment.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How long the dial with its handshake and `Hello` may take.
const DIAL_DEADLINE: Duration = Duration::from_secs(10);
/// A bulk connection that nobody uses is closed after this long.
const BULK_IDLE: Duration = Duration::from_secs(60);
/// Beyond this difference of clocks certificates begin to fail for no visible reason, so it is said.
const CLOCK_SKEW_MS: u64 = 5 * 60 * 1000;
/// A lane notices within moments that its connection is over.
const NOTICED_WITHIN: Duration = Duration::from_secs(1);

/// Makes one connection; a trait so that tests need no TLS.
pub(crate) trait Dial: Send + Sync + 'static {
    /// Connects and starts `handler` on the connection.
    fn dial(&self, handler: Arc<dyn Handler>) -> BoxFuture<Result<Link, NetError>>;
    /// Where to, for people.
    fn address(&self) -> String;
    /// Which daemon dials.
    fn instance(&self) -> Instance;
    /// Why a manager that answered hung up before it welcomed this host, when more is known of that than `reason`.
    fn explain(&self, reason: String) -> String {
        reason
    }
}

/// The link to the manager, as the host's threads and tasks see it.
pub(crate) struct ManagerLink {
    runtime: tokio::runtime::Handle,
    control: Arc<Lane>,
    bulk: Arc<Lane>,
    start: Arc<Lane>,
    dial: Arc<dyn Dial>,
    facts: Arc<Mutex<LinkFacts>>,
    bytes: AtomicU64,
}

/// What `status` says about the link.
#[derive(Debug, Clone, Default)]
pub(crate) struct LinkFacts {
    /// The name in the certificate, once a manager has said it.
    pub(crate) host: Option<HostName>,
    /// Milliseconds since 1970; `None` while there is no connection.
    pub(crate) connected_since: Option<u64>,
    /// Why the last dial failed or the last connection ended.
    pub(crate) last_error: Option<String>,
    /// How often the control connection was made.
    pub(crate) connections: u64,
}

struct Lane {
    role: Role,
    link: watch::Sender<Option<Link>>,
    /// Somebody wants the lane up.
    needed: Notify,
    /// Somebody waits for it now: do not sit out the pause.
    hurry: Notify,
    users: AtomicUsize,
    /// Why the last dial failed or the last connection ended.
    down: Mutex<Option<String>>,
    ended: watch::Sender<bool>,
}

impl ManagerLink {
    /// A link that dials once [`ManagerLink::start`] is called.
    pub(crate) fn new(runtime: &tokio::runtime::Handle, dial: Arc<dyn Dial>) -> Arc<Self> {
        Arc::new(Self {
            runtime: runtime.clone(),
            control: Lane::new(Role::Control),
            bulk: Lane::new(Role::Bulk),
            start: Lane::new(Role::Bulk),
            dial,
            facts: Arc::default(),
            bytes: AtomicU64::new(0),
        })
    }

    /// Starts to dial. `handler` answers the manager's requests, which come on the control connection.
    pub(crate) fn start(&self, handler: Arc<dyn Handler>) {
        let refuse = || Arc::new(RefuseAll) as Arc<dyn Handler>;
        for (lane, handler) in [(&self.control, handler), (&self.bulk, refuse()), (&self.start, refuse())] {
            let (lane, dial, facts) = (Arc::clone(lane), Arc::clone(&self.dial), Arc::clone(&self.facts));
            self.runtime.spawn(keep_up(lane, dial, handler, facts));
        }
    }

    /// The control connection as it comes and goes.
    pub(crate) fn connections(&self) -> watch::Receiver<Option<Link>> {
        self.control.link.subscribe()
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
        let (mut packed, mut frames) = (Vec::new(), 0);
        let on = |incoming| {
            if let Incoming::Bulk(bytes) = incoming {
                frames += 1;
                if packed.len() <= MANIFEST_BYTES_MAX {
                    packed.extend_from_slice(&bytes);
                }
            }
        };
        let request = HostRequest::Manifest { tree: *tree };
        check_sent(self.control.request(true, &request, on, deadline).await?, frames)?;
        self.bytes.fetch_add(packed.len() as u64, Ordering::Relaxed);
        unpack(&packed)
            .map_err(|error| Fault::Failed(format!("the manifest of {tree} cannot be decompressed: {error}")))
    }

    /// Sends a request whose answer is one stream of bytes.
    fn stream(
        &self,
        lane: &Lane,
        demand: bool,
        request: &HostRequest,
        deadline: Instant,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), UpstreamError> {
        let (mut frames, mut bytes) = (0, 0);
        let on = |incoming| {
            let Incoming::Bulk(body) = incoming else { return };
            frames += 1;
            bytes += body.len() as u64;
            sink(&body);
        };
        let reply = self.runtime.block_on(async {
            let _user = lane.user();
            lane.request(demand, request, on, deadline).await
        });
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(check_sent(reply?, frames)?)
    }

    /// Ends all connections and stops dialling.
    pub(crate) fn end(&self) {
        for lane in [&self.control, &self.bulk, &self.start] {
            lane.ended.send_replace(true);
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
        generation: &GenerationRef,
        from: Option<&TreeId>,
        manifest: bool,
        deadline: Instant,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), UpstreamError> {
        let request = HostRequest::Start { generation: generation.clone(), from: from.copied(), manifest };
        self.stream(&self.start, true, &request, deadline, sink)
    }

    fn delta(
        &self,
        from: &TreeId,
        to: &TreeId,
        deadline: Instant,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), UpstreamError> {
        let request = HostRequest::Delta { from: *from, to: *to };
        self.stream(&self.bulk, false, &request, deadline, sink)
    }
}

impl Lane {
    fn new(role: Role) -> Arc<Self> {
        Arc::new(Self {
            role,
            link: watch::Sender::new(None),
            needed: Notify::new(),
            hurry: Notify::new(),
            users: AtomicUsize::new(0),
            down: Mutex::default(),
            ended: watch::Sender::new(false),
        })
    }

    /// Sends a request as soon as there is a connection, and waits for the answer.
    async fn request(
        &self,
        demand: bool,
        request: &HostRequest,
        on: impl FnMut(Incoming),
        deadline: Instant,
    ) -> Result<ManagerReply, Fault> {
        let link = self.link(demand, deadline).await?;
        match link.request(request, on, remaining(deadline)).await {
            Err(NetError::Closed(_)) => {
                // The lane knows more of why than the connection itself does, and says it when it lets go of that.
                let let_go = |now: &Option<Link>| now.as_ref().is_none_or(|now| !now.is_same(&link));
                let noticed = deadline.min(Instant::now() + NOTICED_WITHIN);
                let _ = tokio::time::timeout_at(noticed.into(), self.link.subscribe().wait_for(let_go)).await;
                Err(self.unavailable())
            }
            reply => reply.map_err(|error| unavailable(&error)),
        }
    }

    /// The connection, waited for until `deadline`.
    async fn link(&self, demand: bool, deadline: Instant) -> Result<Link, Fault> {
        let mut links = self.link.subscribe();
        let up = |link: &Option<Link>| link.as_ref().is_some_and(|link| link.closed_reason().is_none());
        if !up(&links.borrow_and_update()) {
            self.needed.notify_one();
            if demand {
                self.hurry.notify_one();
            }
        }
        match tokio::time::timeout_at(deadline.into(), links.wait_for(up)).await {
            Ok(Ok(link)) => link.clone().ok_or_else(|| self.unavailable()),
            Ok(Err(_)) | Err(_) => Err(self.unavailable()),
        }
    }

    /// There is no connection, and why.
    fn unavailable(&self) -> Fault {
        let why = lock(&self.down).clone();
        Fault::Unavailable(match why {
            Some(why) => format!("no connection to the manager: {why}"),
            None => "the manager has not answered yet".to_owned(),
        })
    }

    fn user(&self) -> User<'_> {
        self.users.fetch_add(1, Ordering::AcqRel);
        User(self)
    }
}

struct User<'a>(&'a Lane);

impl Drop for User<'_> {
    fn drop(&mut self) {
        self.0.users.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Keeps one lane up until it is ended.
async fn keep_up(lane: Arc<Lane>, dial: Arc<dyn Dial>, handler: Arc<dyn Handler>, facts: Arc<Mutex<LinkFacts>>) {
    let mut ended = lane.ended.subscribe();
    tokio::select! {
        () = dial_for_ever(&lane, dial.as_ref(), &handler, &facts) => {}
        _ = ended.wait_for(|ended| *ended) => {
            if let Some(link) = lane.link.send_replace(None) {
                link.close("the host's mount daemon ends");
            }
        }
    }
}

async fn dial_for_ever(lane: &Lane, dial: &dyn Dial, handler: &Arc<dyn Handler>, facts: &Mutex<LinkFacts>) {
    let mut pause = PAUSE_MIN;
    loop {
        if lane.role == Role::Bulk && lane.users.load(Ordering::Acquire) == 0 {
            lane.needed.notified().await;
        }
        let dialled = tokio::time::timeout(DIAL_DEADLINE, greet(lane, dial, Arc::clone(handler))).await;
        let dialled = dialled.unwrap_or_else(|_| Err(format!("no answer within {} s", DIAL_DEADLINE.as_secs())));
        match dialled {
            Ok((link, host)) => {
                pause = PAUSE_MIN;
                lane.came_up(host, facts);
                let reason = lane.until_down(&link).await;
                lane.went_down(&reason, facts);
                if lane.role == Role::Control && !*lane.ended.borrow() {
                    wait(lane, FIRST_PAUSE).await;
                }
            }
            Err(error) => {
                lane.went_down(&error, facts);
                wait(lane, pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

/// Sits out a pause, unless a demand waits; never less than the shortest one, or a dead manager would be dialled in a
/// tight loop. Hosts that lost the same manager at the same moment come back spread over the whole of it.
async fn wait(lane: &Lane, pause: Duration) {
    tokio::time::sleep(PAUSE_MIN).await;
    tokio::select! {
        () = tokio::time::sleep(spread(pause)) => {}
        () = lane.hurry.notified() => {}
    }
}

/// Some time up to `pause`. The hasher's keys are random, and this host's own; its clock is everybody's.
fn spread(pause: Duration) -> Duration {
    use std::hash::{BuildHasher, Hasher};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    pause.mul_f64((random >> 11) as f64 / (1_u64 << 53) as f64)
}

/// Dials and says `Hello`. Requests that wait for the lane go out right behind it, a round trip before it is answered:
/// the manager keeps them until then.
async fn greet(lane: &Lane, dial: &dyn Dial, handler: Arc<dyn Handler>) -> Result<(Link, HostName), String> {
    let link = dial.dial(handler).await.map_err(|error| error.to_string())?;
    let software = env!("CARGO_PKG_VERSION").to_owned();
    let hello = HostRequest::Hello { protocol: PROTOCOL, software, role: lane.role, instance: dial.instance() };
    let asking = link.clone();
    let mut reply = std::pin::pin!(asking.request(&hello, |_| (), DIAL_DEADLINE));
    let reply = tokio::select! {
        biased;
        // The first look puts it into the connection's queue.
        reply = &mut reply => reply,
        () = std::future::ready(()) => {
            lane.link.send_replace(Some(link.clone()));
            reply.await
        }
    };
    match reply {
        Ok(ManagerReply::Welcome { host, now }) => {
            let skew = now.abs_diff(unix_ms());
            if skew > CLOCK_SKEW_MS {
                tracing::warn!(
                    seconds = skew / 1000,
                    "this host's clock and the manager's differ: certificates may fail"
                );
            }
            Ok((link, host))
        }
        Ok(ManagerReply::Fault(fault)) => {
            link.close("refused");
            Err(format!("the manager refused this host: {}", fault.reason()))
        }
        Ok(_) => {
            link.close("protocol");
            Err("the manager answered Hello with something else".to_owned())
        }
        Err(error) => Err(dial.explain(error.to_string())),
    }
}

impl Lane {
    fn came_up(&self, host: HostName, facts: &Mutex<LinkFacts>) {
        if self.role == Role::Control {
            tracing::info!(%host, "connected to the manager");
            let mut facts = lock(facts);
            facts.host = Some(host);
            facts.connected_since = Some(unix_ms());
            facts.last_error = None;
            facts.connections += 1;
        }
    }

    async fn until_down(&self, link: &Link) -> String {
        let closed = link.closed();
        tokio::pin!(closed);
        loop {
            tokio::select! {
                reason = &mut closed => return reason,
                () = tokio::time::sleep(BULK_IDLE), if self.role == Role::Bulk => {
                    if self.users.load(Ordering::Acquire) == 0 {
                        link.close("idle");
                    }
                }
            }
        }
    }

    fn went_down(&self, reason: &str, facts: &Mutex<LinkFacts>) {
        *lock(&self.down) = Some(reason.to_owned());
        self.link.send_replace(None);
        if self.role == Role::Control {
            let mut facts = lock(facts);
            // The same reason every few seconds would bury the log.
            if facts.connected_since.is_some() || facts.last_error.as_deref() != Some(reason) {
                tracing::warn!(reason, "no connection to the manager; what is cached stays in service");
            }
            facts.connected_since = None;
            facts.last_error = Some(reason.to_owned());
        }
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

fn unpack(packed: &[u8]) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut plain = Vec::new();
    let mut decoder = zstd::stream::read::Decoder::new(packed)?;
    decoder.by_ref().take(MANIFEST_BYTES_MAX as u64 + 1).read_to_end(&mut plain)?;
    Ok(plain)
}

fn unavailable(error: &NetError) -> Fault {
    match error {
        NetError::Closed(_) | NetError::Deadline(_) | NetError::Connect { .. } | NetError::Unanswered => {
            Fault::Unavailable(error.to_string())
        }
        _ => Fault::Failed(error.to_string()),
    }
}

fn remaining(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
