//! One connection to the manager that is dialled again when it breaks: at once when a demand waits, otherwise with a
//! growing pause.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proto::HostName;
use proto::message::{Fault, HostRequest, Instance, ManagerReply, PROTOCOL, Role};
use tokio::sync::{Notify, watch};

use crate::clock::Clock;
use crate::net::{BoxFuture, Handler, Incoming, Link, NetError};
use crate::sync::lock;

/// The first pause after a failed dial, and the longest. Thousands of hosts must not hammer a manager that comes back,
/// yet an operator who restarts it does not want to wait.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// After a connection that was up all hosts of a manager dial again: within this time, and not in one moment.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// A connection that lasted this long was a good one; one that did not counts like a failed dial, or a manager that lets
/// everybody in and throws everybody out again would be dialled without end.
const STEADY: Duration = Duration::from_secs(30);
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

/// See the module.
pub(super) struct Lane {
    role: Role,
    clock: Clock,
    link: watch::Sender<Option<Link>>,
    /// Somebody wants the lane up.
    needed: Notify,
    /// Somebody waits for it now: do not sit out the pause.
    hurry: Notify,
    users: AtomicUsize,
    /// Why the last dial failed or the last connection ended.
    down: Mutex<Option<String>>,
    ended: watch::Sender<bool>,
    /// The manager is from before hosts said what machine they are.
    is_old: AtomicBool,
    /// How often a greeting was refused for that reason, with all that had gone out behind it.
    refused_as_old: AtomicUsize,
    /// The connection that there is has been welcomed.
    is_greeted: AtomicBool,
}

impl Lane {
    /// Down, and not dialled before [`Lane::keep_up`].
    pub(super) fn new(role: Role, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            role,
            clock,
            link: watch::Sender::new(None),
            needed: Notify::new(),
            hurry: Notify::new(),
            users: AtomicUsize::new(0),
            down: Mutex::default(),
            ended: watch::Sender::new(false),
            is_old: AtomicBool::new(false),
            refused_as_old: AtomicUsize::new(0),
            is_greeted: AtomicBool::new(false),
        })
    }

    /// Sends a request as soon as there is a connection, and waits for the answer.
    pub(super) async fn request(
        &self,
        demand: bool,
        request: &HostRequest,
        mut on: impl FnMut(Incoming),
        deadline: Instant,
    ) -> Result<ManagerReply, Fault> {
        loop {
            let refused = self.refused_as_old.load(Ordering::Acquire);
            let link = self.link(demand, deadline).await?;
            let reply = link.request(request, &mut on, self.clock.left(deadline)).await;
            let is_broken = matches!(reply, Err(NetError::Closed(_)));
            let is_behind = matches!(reply, Ok(ManagerReply::Fault(Fault::BadRequest(_))));
            if is_broken || is_behind && !self.is_greeted.load(Ordering::Acquire) {
                // The lane knows more of why than the connection itself does, and says it when it lets go of that.
                let let_go = |now: &Option<Link>| now.as_ref().is_none_or(|now| !now.is_same(&link));
                let noticed = deadline.min(self.clock.now() + NOTICED_WITHIN);
                let mut links = self.link.subscribe();
                let _ = self.clock.within(noticed, links.wait_for(let_go)).await;
                if self.refused_as_old.load(Ordering::Acquire) != refused {
                    // It went out behind a greeting that the manager does not know, and nothing has become of it.
                    continue;
                }
            }
            return match reply {
                Err(NetError::Closed(_)) => Err(self.unavailable()),
                reply => reply.map_err(|error| unavailable(&error)),
            };
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
        match self.clock.within(deadline, links.wait_for(up)).await {
            Some(Ok(link)) => link.clone().ok_or_else(|| self.unavailable()),
            Some(Err(_)) | None => Err(self.unavailable()),
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

    /// Dials, and dials again, until [`Lane::end`]. `handler` answers what the manager asks on the connection.
    pub(super) async fn keep_up(
        self: Arc<Self>,
        dial: Arc<dyn Dial>,
        handler: Arc<dyn Handler>,
        facts: Arc<Mutex<LinkFacts>>,
    ) {
        let mut ended = self.ended.subscribe();
        tokio::select! {
            () = dial_for_ever(&self, dial.as_ref(), &handler, &facts) => {}
            _ = ended.wait_for(|ended| *ended) => {
                if let Some(link) = self.link.send_replace(None) {
                    link.close("the host's mount daemon ends");
                }
            }
        }
    }

    /// Ends the connection and stops dialling.
    pub(super) fn end(&self) {
        self.ended.send_replace(true);
    }

    /// The connection as it comes and goes.
    pub(super) fn connections(&self) -> watch::Receiver<Option<Link>> {
        self.link.subscribe()
    }

    /// Somebody uses the lane until the value is dropped.
    pub(super) fn user(&self) -> User<'_> {
        self.users.fetch_add(1, Ordering::AcqRel);
        User(self)
    }
}

/// See [`Lane::user`].
pub(super) struct User<'a>(&'a Lane);

impl Drop for User<'_> {
    fn drop(&mut self) {
        self.0.users.fetch_sub(1, Ordering::AcqRel);
    }
}

async fn dial_for_ever(lane: &Lane, dial: &dyn Dial, handler: &Arc<dyn Handler>, facts: &Mutex<LinkFacts>) {
    let mut backoff = Backoff::default();
    loop {
        if lane.role == Role::Bulk && lane.users.load(Ordering::Acquire) == 0 {
            lane.needed.notified().await;
        }
        let deadline = lane.clock.now() + DIAL_DEADLINE;
        let dialled = lane.clock.within(deadline, greet(lane, dial, Arc::clone(handler))).await;
        let dialled = dialled.unwrap_or(Err(GreetFault::Late));
        match dialled {
            Ok((link, host)) => {
                lane.came_up(host, facts);
                let since = lane.clock.now();
                let down = lane.until_down(&link).await;
                lane.went_down(&down.reason, facts);
                let pause = backoff.lost(lane.clock.now() - since);
                // Whoever needs the lane again after it was idle does not pay for that.
                if !down.was_idle && !*lane.ended.borrow() {
                    wait(lane, pause).await;
                }
            }
            Err(error) => {
                lane.went_down(&error.to_string(), facts);
                wait(lane, backoff.failed()).await;
            }
        }
    }
}

/// How long the next pause is.
#[derive(Debug)]
struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: PAUSE_MIN }
    }
}

impl Backoff {
    /// The pause after a dial that failed.
    fn failed(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(PAUSE_MAX);
        pause
    }

    /// The pause after a connection that was up for so long.
    fn lost(&mut self, lasted: Duration) -> Duration {
        if lasted >= STEADY {
            *self = Self::default();
            return FIRST_PAUSE;
        }
        self.failed().max(FIRST_PAUSE)
    }
}

/// How a connection ended.
struct Down {
    reason: String,
    /// Nobody used it, so it was closed here.
    was_idle: bool,
}

/// Sits out a pause, unless a demand waits; never less than the shortest one, or a dead manager would be dialled in a
/// tight loop. Hosts that lost the same manager at the same moment come back spread over the whole of it.
async fn wait(lane: &Lane, pause: Duration) {
    lane.clock.sleep(PAUSE_MIN).await;
    tokio::select! {
        () = lane.clock.sleep(spread(pause)) => {}
        () = lane.hurry.notified() => {}
    }
}

/// Some time up to `pause`. The hasher's keys are random, and this host's own; its clock is everybody's.
fn spread(pause: Duration) -> Duration {
    use std::hash::{BuildHasher, Hasher};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    pause.mul_f64((random >> 11) as f64 / (1_u64 << 53) as f64)
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
enum GreetFault {
    #[error(transparent)]
    Dial(#[from] NetError),
    #[error("no answer within {} s", DIAL_DEADLINE.as_secs())]
    Late,
    #[error("the manager refused this host: {0}")]
    Refused(String),
    #[error("the manager knows no greeting with a machine ({0}); the older one is tried")]
    Older(String),
    #[error("the manager answered Hello with something else")]
    Protocol,
    /// As [`Dial::explain`] says it.
    #[error("{0}")]
    HungUp(String),
}

/// Dials and says `Hello`. Requests that wait for the lane go out right behind it, a round trip before it is answered:
/// the manager keeps them until then.
async fn greet(lane: &Lane, dial: &dyn Dial, handler: Arc<dyn Handler>) -> Result<(Link, HostName), GreetFault> {
    let link = dial.dial(handler).await?;
    let software = env!("CARGO_PKG_VERSION").to_owned();
    let (protocol, role, instance) = (PROTOCOL, lane.role, dial.instance());
    let is_old = lane.is_old.load(Ordering::Acquire);
    if role == Role::Control {
        // It may be another one the next time.
        lane.is_old.store(false, Ordering::Release);
    }
    let hello = if is_old {
        HostRequest::Hello { protocol, software, role, instance }
    } else {
        let machine = agent_core::internal::generation::machine();
        HostRequest::HelloFrom { protocol, software, role, instance, machine }
    };
    let asking = link.clone();
    let mut reply = std::pin::pin!(asking.request(&hello, |_| (), DIAL_DEADLINE));
    let reply = tokio::select! {
        biased;
        // The first look puts it into the connection's queue.
        reply = &mut reply => reply,
        () = std::future::ready(()) => {
            lane.is_greeted.store(false, Ordering::Release);
            lane.link.send_replace(Some(link.clone()));
            reply.await
        }
    };
    match reply {
        Ok(ManagerReply::Welcome { host, now }) => {
            let skew = now.abs_diff(lane.clock.unix_ms());
            if skew > CLOCK_SKEW_MS {
                tracing::warn!(
                    seconds = skew / 1000,
                    "this host's clock and the manager's differ: certificates may fail"
                );
            }
            lane.is_greeted.store(true, Ordering::Release);
            Ok((link, host))
        }
        Ok(ManagerReply::Fault(Fault::BadRequest(why))) if !is_old => {
            link.close("refused");
            lane.is_old.store(true, Ordering::Release);
            // Whoever finds a connection from now on finds another one: this is closed.
            lane.refused_as_old.fetch_add(1, Ordering::AcqRel);
            Err(GreetFault::Older(why))
        }
        Ok(ManagerReply::Fault(fault)) => {
            link.close("refused");
            Err(GreetFault::Refused(fault.reason().to_owned()))
        }
        Ok(_) => {
            link.close("protocol");
            Err(GreetFault::Protocol)
        }
        Err(error) => Err(GreetFault::HungUp(dial.explain(error.to_string()))),
    }
}

impl Lane {
    fn came_up(&self, host: HostName, facts: &Mutex<LinkFacts>) {
        if self.role == Role::Control {
            tracing::info!(%host, "connected to the manager");
            let mut facts = lock(facts);
            facts.host = Some(host);
            facts.connected_since = Some(self.clock.unix_ms());
            facts.last_error = None;
            facts.connections += 1;
        }
    }

    async fn until_down(&self, link: &Link) -> Down {
        let closed = link.closed();
        tokio::pin!(closed);
        let mut was_idle = false;
        loop {
            tokio::select! {
                reason = &mut closed => return Down { reason, was_idle },
                () = self.clock.sleep(BULK_IDLE), if self.role == Role::Bulk => {
                    if self.users.load(Ordering::Acquire) == 0 {
                        was_idle = true;
                        link.close("idle");
                    }
                }
            }
        }
    }

    fn went_down(&self, reason: &str, facts: &Mutex<LinkFacts>) {
        *lock(&self.down) = Some(reason.to_owned());
        if let Some(link) = self.link.send_replace(None) {
            // It may be one that was never welcomed: a manager that hangs would collect them.
            link.close(reason);
        }
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

fn unavailable(error: &NetError) -> Fault {
    match error {
        NetError::Closed(_) | NetError::Deadline(_) | NetError::Connect { .. } | NetError::Unanswered => {
            Fault::Unavailable(error.to_string())
        }
        _ => Fault::Failed(error.to_string()),
    }
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;
