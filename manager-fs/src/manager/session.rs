//! One connection of a host, from the handshake to its end. States and limits: `docs/control-protocol.md`.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use proto::HostName;
use proto::codec;
use proto::limits::{HOST_REQUEST_BYTES_MAX, MESSAGE_BYTES_MAX};
use proto::message::{Fault, HostRequest, ManagerReply, Unix};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::admission::Stranger;
use super::budget::{Budget, BudgetError, Budgets, Work};
use super::bundle::{Bundles, StartOrder};
use super::connections::{Connections, Newcomer};
use super::control::State;
use super::delta::Deltas;
use super::enrolment::{Enrolment, check_protocol};
use super::error::ManagerError;
use super::export::Exporter;
use super::exports::Exports;
use super::greeting::{Greeting, GreetingError};
use super::identity::{self, Peer};
use super::now;
use super::reports::Reports;
use super::tally::{self, Tally};
use super::worker::BrokenOff;
use crate::net::link::REQUESTS_MAX;
use crate::net::{self, Answer, BoxFuture, Handler, Link, LinkLimits, NetError};
use crate::sync::lock;

/// How long a host may take to say `Hello`, and an enrolment may take in all.
const GREETING_DEADLINE: Duration = Duration::from_secs(10);
/// Streams that one connection gets at once; others wait. Each holds two batches of chunks (see `export.rs`), 1 MiB together.
const SENDING_MAX: usize = 6;

/// An enrolment request carries a secret and a certificate request: about 300 bytes.
const STRANGER_LIMITS: LinkLimits = LinkLimits { requests_max: 1, request_bytes_max: 16 << 10 };
const HOST_LIMITS: LinkLimits = LinkLimits { requests_max: REQUESTS_MAX, request_bytes_max: HOST_REQUEST_BYTES_MAX };
/// Refusals of one connection that are logged as warnings: a host that is refused on and on does not fill the log.
const REFUSALS_LOGGED: u32 = 100;

/// What hosts may ask for.
pub(crate) struct Services {
    pub(crate) state: Arc<State>,
    pub(crate) enrolment: Enrolment,
    pub(crate) connections: Arc<Connections>,
    pub(crate) exports: Arc<Exports>,
    pub(crate) exporter: Arc<Exporter>,
    pub(crate) deltas: Arc<Deltas>,
    pub(crate) bundles: Arc<Bundles>,
    pub(crate) reports: Reports,
    pub(crate) budgets: Budgets,
    pub(crate) tally: Arc<Tally>,
}

/// Receives one connection and sees it to its end.
pub(crate) async fn welcome(
    services: Arc<Services>,
    stream: TcpStream,
    address: SocketAddr,
    config: Arc<net::ServerConfig>,
    mut stranger: Stranger,
) {
    let evicted = stranger.evicted();
    let accepted = tokio::select! {
        accepted = shake_hands(stream, config, &mut stranger) => accepted,
        () = evicted.notified() => Err(NetError::Closed(String::from("others of its address wait to say who they are"))),
    };
    let (stream, certificate) = match accepted {
        Ok(accepted) => accepted,
        Err(error) => return tracing::debug!(%address, %error, "handshake failed"),
    };
    let (peer, ends, limits) = match certificate.as_deref().map(identity::peer_until).transpose() {
        Ok(Some((peer, ends))) => (Some(peer), Some(ends), HOST_LIMITS),
        Ok(None) => (None, None, STRANGER_LIMITS),
        Err(error) => return tracing::warn!(%address, %error, "a certificate that this manager never issued"),
    };
    let budget = peer.as_ref().map(|peer| services.budgets.of(&peer.host));
    let counted = budget.as_ref().map(|budget| budget.connection());
    if let Some(None) = counted {
        return tracing::warn!(%address, ?peer, "too many connections of this host; one more is refused");
    }
    let session = Arc::new(Session {
        services,
        address,
        link: OnceLock::new(),
        peer,
        budget,
        refusals: AtomicU32::new(0),
        greeting: Greeting::default(),
        stranger: Mutex::new(Some(stranger)),
        sending: Semaphore::new(SENDING_MAX),
    });
    let link = net::start_with(stream, limits, |link| {
        let _ = session.link.set(link.clone());
        Arc::new(ServeSession(Arc::clone(&session)))
    });
    tokio::select! {
        reason = link.closed() => tracing::debug!(%address, reason, "connection ended before it was of use"),
        () = evicted.notified() => link.close("others of this address wait to say who they are"),
        () = tokio::time::sleep(GREETING_DEADLINE) => {
            if !session.greeting.is_claimed() {
                tracing::warn!(%address, "no greeting in time");
                link.close("no Hello or Enroll in time");
            }
        }
    }
    match (&session.peer, ends) {
        (Some(peer), Some(ends)) => close_in_time(&session.services.state, &link, peer, ends).await,
        // An enrolment that is being answered; nothing holds the connection after that.
        _ => drop(tokio::time::timeout(GREETING_DEADLINE, link.closed()).await),
    }
    link.close("its time is over");
}

type Accepted = (net::ServerStream, Option<Vec<u8>>);

/// The handshake, once the client has said something and it is its turn. A client that says nothing costs a descriptor.
async fn shake_hands(
    stream: TcpStream,
    config: Arc<net::ServerConfig>,
    stranger: &mut Stranger,
) -> Result<Accepted, NetError> {
    let silent = |_| NetError::Closed(String::from("the client said nothing"));
    let spoken = tokio::time::timeout(GREETING_DEADLINE, stream.peek(&mut [0])).await.map_err(silent)?;
    spoken.map_err(|error| NetError::Closed(error.to_string()))?;
    if !stranger.take_turn().await {
        return Err(NetError::Closed(String::from("others of this address took too long to say who they are")));
    }
    net::accept(stream, config).await
}

/// A connection lives no longer than the host's right to it: that of its certificate, or of one that replaced it.
async fn close_in_time(state: &State, link: &Link, peer: &Peer, mut ends: Unix) {
    loop {
        let left = Duration::from_millis(ends.saturating_sub(now()));
        tokio::select! {
            _ = link.closed() => return,
            () = tokio::time::sleep(left) => {}
        }
        // A host that has renewed goes on undisturbed, as reads may be under way.
        let newest = state.host(&peer.host).and_then(|record| record.newest_certificate_ends());
        match newest.filter(|newest| *newest > now()) {
            Some(newest) => ends = newest,
            None => return link.close("the host's certificate has expired"),
        }
    }
}

/// One connection of a host.
struct Session {
    services: Arc<Services>,
    address: SocketAddr,
    link: OnceLock<Link>,
    /// Who it is, by its certificate; `None` may only enrol.
    peer: Option<Peer>,
    /// What its host has left; `None` of a stranger.
    budget: Option<Arc<Budget>>,
    refusals: AtomicU32,
    greeting: Greeting,
    stranger: Mutex<Option<Stranger>>,
    /// Turns of requests whose answers are streams.
    sending: Semaphore,
}

struct ServeSession(Arc<Session>);

impl Handler for ServeSession {
    fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
        let session = Arc::clone(&self.0);
        let bytes = body.len();
        // Counted before it waits for anything, and before anything is done with it.
        let open = match session.budget.as_ref().map(|budget| budget.open(bytes)).transpose() {
            Ok(open) => open,
            Err(error) => return Box::pin(async move { session.mistaken(error.into(), answer).await }),
        };
        let request = codec::decode::<HostRequest, MESSAGE_BYTES_MAX>(&body);
        drop(body);
        // Noted before the next request is read.
        if matches!(request, Ok(HostRequest::Hello { .. } | HostRequest::HelloFrom { .. })) {
            session.greeting.begins();
        }
        Box::pin(async move {
            session.answer(request, bytes, answer).await;
            drop(open);
        })
    }
}

/// What a request holds until its answer is on its way.
#[derive(Default)]
struct Held<'a> {
    _sending: Option<SemaphorePermit<'a>>,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Session {
    async fn answer(self: Arc<Self>, request: Result<HostRequest, codec::CodecError>, bytes: usize, answer: Answer) {
        let mut held = Held::default();
        let (began, kind) = (Instant::now(), request.as_ref().map_or("unreadable", tally::kind));
        let reply = match (request, self.peer.clone(), self.budget.as_deref()) {
            (Err(error), ..) => return self.unreadable(error, answer).await,
            (Ok(request), Some(peer), Some(budget)) => {
                self.reply(peer, budget, request, bytes, &answer, &mut held).await
            }
            (Ok(request), ..) => self.enroll(request).await,
        };
        let refused = reply.is_err();
        self.finish(reply, answer).await;
        self.services.tally.answered(kind, refused, began.elapsed());
        drop(held);
    }

    async fn finish(&self, reply: Result<ManagerReply, ManagerError>, answer: Answer) {
        let reply = reply.unwrap_or_else(|error| {
            let fault = Fault::from(error);
            let host = self.peer.as_ref().map(|peer| &peer.host);
            match self.refusals.fetch_add(1, Ordering::Relaxed) {
                0..REFUSALS_LOGGED => tracing::warn!(address = %self.address, ?host, %fault, "request refused"),
                _ => tracing::debug!(address = %self.address, ?host, %fault, "request refused"),
            }
            ManagerReply::Fault(fault)
        });
        let refused = matches!(reply, ManagerReply::Fault(_));
        if let Err(error) = answer.finish(&reply).await {
            tracing::debug!(address = %self.address, %error, "answer not delivered");
        }
        if self.peer.is_none() || (refused && !self.greeting.is_claimed()) {
            self.close("nothing more to say");
        }
    }

    /// A host of a later version asks for what this one does not know: it is told so, and its connection stays. What comes
    /// right behind a `Hello` must not end the connection before that is answered.
    async fn unreadable(&self, error: codec::CodecError, answer: Answer) {
        let greeted = if self.peer.is_some() { self.greeting.wait().await } else { Ok(()) };
        let error = greeted.map_or_else(ManagerError::from, |()| GreetingError::Unreadable(error).into());
        self.mistaken(error, answer).await;
    }

    /// Refuses what no daemon sends often; a host that sends it on and on loses the connection instead of getting answers.
    async fn mistaken(&self, error: ManagerError, answer: Answer) {
        let counted = self.budget.as_ref().map_or(Ok(()), |budget| budget.count(Work::Mistake));
        self.finish(Err(error), answer).await;
        if let Err(too_many) = counted {
            self.close(&too_many.to_string());
        }
    }

    async fn enroll(&self, request: HostRequest) -> Result<ManagerReply, ManagerError> {
        let HostRequest::Enroll { protocol, secret, csr } = request else {
            return Err(GreetingError::Stranger.into());
        };
        self.greeting.claim()?;
        Ok(self.services.enrolment.enroll(protocol, &secret, &csr).await?)
    }

    async fn reply<'a>(
        self: &'a Arc<Self>,
        peer: Peer,
        budget: &Budget,
        request: HostRequest,
        bytes: usize,
        answer: &Answer,
        held: &mut Held<'a>,
    ) -> Result<ManagerReply, ManagerError> {
        let request = match newcomer(&peer, request) {
            Ok((protocol, newcomer)) => {
                let host = peer.host;
                let reply = self.hello(protocol, budget, newcomer).await;
                let reply = reply.map(|()| ManagerReply::Welcome { host, now: now() }).map_err(Fault::from);
                self.greeting.answered(reply.as_ref().map(|_| ()).map_err(Fault::clone));
                return reply.map_err(|fault| GreetingError::Refused(fault).into());
            }
            Err(request) => request,
        };
        self.greeting.wait().await?;
        match request {
            HostRequest::Manifest { .. }
            | HostRequest::Chunks { .. }
            | HostRequest::Delta { .. }
            | HostRequest::Start { .. }
            | HostRequest::StartOf { .. } => {
                held._sending = Some(tokio::select! {
                    turn = self.sending.acquire() => turn.map_err(|_| BrokenOff)?,
                    () = answer.cancelled() => return Err(BudgetError::Cancelled.into()),
                });
                self.send(peer.host, request, answer).await
            }
            request => {
                // A request waits for its turn only as long as somebody wants its answer.
                held._turn = tokio::select! {
                    turn = self.turn(budget, &request, bytes) => turn?,
                    () = answer.cancelled() => return Err(BudgetError::Cancelled.into()),
                };
                self.take(peer, request).await
            }
        }
    }

    /// The turn that a request waits for.
    async fn turn(
        &self,
        budget: &Budget,
        request: &HostRequest,
        bytes: usize,
    ) -> Result<Option<OwnedSemaphorePermit>, BudgetError> {
        Ok(match request {
            HostRequest::Exports | HostRequest::ExportList { .. } => Some(budget.list().await?),
            HostRequest::Report { reports } => Some(budget.report(reports.len(), bytes).await?),
            HostRequest::Renew { .. } => {
                budget.count(Work::Renewal)?;
                Some(budget.write().await?)
            }
            HostRequest::Profile { .. } => {
                budget.count(Work::Profile)?;
                Some(budget.list().await?)
            }
            _ => None,
        })
    }

    /// Streams what a host asks for.
    async fn send(
        &self,
        host: HostName,
        request: HostRequest,
        answer: &Answer,
    ) -> Result<ManagerReply, ManagerError> {
        let services = &self.services;
        Ok(match request {
            HostRequest::Manifest { tree } => services.exporter.send_manifest(&host, &tree, answer).await?,
            HostRequest::Chunks { tree, wants } => {
                services.exporter.send_chunks(&host, &tree, &wants, answer).await?
            }
            HostRequest::Delta { from, to } => services.deltas.send(&host, from, to, answer).await?,
            HostRequest::Start { generation, from, manifest } => {
                let order = StartOrder { generation, from, manifest, program: None };
                services.bundles.send(&host, order, answer).await?
            }
            HostRequest::StartOf { generation, from, manifest, program } => {
                let order = StartOrder { generation, from, manifest, program: Some(program) };
                services.bundles.send(&host, order, answer).await?
            }
            _ => return Err(GreetingError::Enrolled.into()),
        })
    }

    /// Does what a host asks for or tells, to its end, also when nobody waits for the answer any more.
    async fn take(&self, peer: Peer, request: HostRequest) -> Result<ManagerReply, ManagerError> {
        let (services, host) = (&self.services, peer.host);
        match request {
            HostRequest::Renew { csr } => Ok(services.enrolment.renew(&host, &peer.serial, &csr).await?),
            HostRequest::Exports => Ok(ManagerReply::Exports(services.exports.records_of(&host))),
            HostRequest::ExportList { have } => Ok(services.exports.list_for(&host, &have)),
            HostRequest::Report { reports } => {
                services.reports.take(&host, reports).await?;
                Ok(ManagerReply::Done)
            }
            HostRequest::Profile { tree, touches } => {
                services.exports.check(&host, &tree)?;
                let facts = services.bundles.profile(&host, tree, touches).await?;
                Ok(facts.map_or(ManagerReply::Done, ManagerReply::Bundle))
            }
            _ => Err(GreetingError::Enrolled.into()),
        }
    }

    async fn hello(&self, protocol: u16, budget: &Budget, newcomer: Newcomer) -> Result<(), ManagerError> {
        check_protocol(protocol)?;
        self.services.state.admit(&newcomer.peer.host, &newcomer.peer.serial)?;
        budget.count(Work::Greeting)?;
        self.services.connections.may_come(&newcomer).await?;
        self.greeting.claim()?;
        let not_set_up = || NetError::Closed(String::from("the connection is not set up"));
        let link = self.link.get().ok_or_else(not_set_up)?;
        self.services.connections.greeted(&newcomer, link).await?;
        lock(&self.stranger).take();
        Ok(())
    }

    fn close(&self, reason: &str) {
        if let Some(link) = self.link.get() {
            link.close(reason);
        }
    }
}

/// Who greets, and in which protocol; `Err`: it is another request.
fn newcomer(peer: &Peer, request: HostRequest) -> Result<(u16, Newcomer), HostRequest> {
    let peer = peer.clone();
    match request {
        HostRequest::Hello { protocol, software, role, instance } => {
            Ok((protocol, Newcomer { peer, role, software, instance, machine: None }))
        }
        HostRequest::HelloFrom { protocol, software, role, instance, machine } => {
            Ok((protocol, Newcomer { peer, role, software, instance, machine: Some(machine) }))
        }
        other => Err(other),
    }
}
