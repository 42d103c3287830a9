//! One connection of a host, from the handshake to its end. States and limits: `docs/control-protocol.md`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use proto::codec;
use proto::limits::MESSAGE_BYTES_MAX;
use proto::message::{Fault, HostRequest, ManagerReply, Role, Unix};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::bundle::{Bundles, StartOrder};
use super::connections::Connections;
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
use super::strangers::Stranger;
use super::worker::{BrokenOff, blocking};
use crate::net::{self, Answer, BoxFuture, Handler, Link, LinkLimits, NetError};

/// How long a host may take to say `Hello`, and an enrolment may take in all.
const GREETING_DEADLINE: Duration = Duration::from_secs(10);
/// Chunk requests of one connection that are answered at once; others wait. Each holds two batches of chunks (see
/// `export.rs`): 2 MiB at the default chunk size, 8 MiB at the largest.
const CHUNK_REQUESTS_MAX: usize = 8;

/// An enrolment request carries a secret and a certificate request: about 300 bytes.
const STRANGER_LIMITS: LinkLimits = LinkLimits { requests_max: 1, request_bytes_max: 16 << 10 };

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
}

/// Receives one connection and sees it to its end.
pub(crate) async fn welcome(
    services: Arc<Services>,
    stream: TcpStream,
    address: SocketAddr,
    config: Arc<net::ServerConfig>,
    mut stranger: Stranger,
) {
    if !stranger.take_turn().await {
        return tracing::warn!(%address, "others of this address that have not said who they are took too long");
    }
    let (stream, certificate) = match net::accept(stream, config).await {
        Ok(accepted) => accepted,
        Err(error) => return tracing::warn!(%address, %error, "handshake failed"),
    };
    let (peer, ends, limits) = match certificate.as_deref().map(identity::peer_until).transpose() {
        Ok(Some((peer, ends))) => (Some(peer), Some(ends), LinkLimits::default()),
        Ok(None) => (None, None, STRANGER_LIMITS),
        Err(error) => return tracing::warn!(%address, %error, "a certificate that this manager never issued"),
    };
    let session = Arc::new(Session {
        services,
        address,
        link: OnceLock::new(),
        peer,
        greeting: Greeting::default(),
        stranger: Mutex::new(Some(stranger)),
        chunk_requests: Semaphore::new(CHUNK_REQUESTS_MAX),
    });
    let link = net::start_with(stream, limits, |link| {
        let _ = session.link.set(link.clone());
        Arc::new(ServeSession(Arc::clone(&session)))
    });
    tokio::select! {
        reason = link.closed() => tracing::debug!(%address, reason, "connection ended before it was of use"),
        () = tokio::time::sleep(GREETING_DEADLINE) => {
            if !session.greeting.is_claimed() {
                tracing::warn!(%address, "no greeting in time");
                link.close("no Hello or Enroll in time");
            }
        }
    }
    if let (Some(peer), Some(ends)) = (&session.peer, ends) {
        close_in_time(&session.services.state, &link, peer, ends).await;
    }
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
    greeting: Greeting,
    stranger: Mutex<Option<Stranger>>,
    chunk_requests: Semaphore,
}

struct ServeSession(Arc<Session>);

impl Handler for ServeSession {
    fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
        let session = Arc::clone(&self.0);
        let request = codec::decode::<HostRequest, MESSAGE_BYTES_MAX>(&body);
        // Noted before the next request is read.
        if matches!(request, Ok(HostRequest::Hello { .. })) {
            session.greeting.begins();
        }
        Box::pin(async move { session.answer(request, answer).await })
    }
}

impl Session {
    async fn answer(self: Arc<Self>, request: Result<HostRequest, codec::CodecError>, answer: Answer) {
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                tracing::warn!(address = %self.address, %error, "malformed request");
                return self.close("malformed request");
            }
        };
        let reply = match self.peer.clone() {
            None => self.enroll(request).await,
            Some(peer) => self.reply(peer, request, &answer).await,
        };
        let reply = reply.unwrap_or_else(|error| {
            let fault = Fault::from(error);
            let host = self.peer.as_ref().map(|peer| &peer.host);
            tracing::warn!(address = %self.address, ?host, %fault, "request refused");
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

    async fn enroll(&self, request: HostRequest) -> Result<ManagerReply, ManagerError> {
        let HostRequest::Enroll { protocol, secret, csr } = request else {
            return Err(GreetingError::Stranger.into());
        };
        self.greeting.claim()?;
        Ok(self.services.enrolment.enroll(protocol, &secret, &csr).await?)
    }

    async fn reply(
        self: &Arc<Self>,
        peer: Peer,
        request: HostRequest,
        answer: &Answer,
    ) -> Result<ManagerReply, ManagerError> {
        if let HostRequest::Hello { protocol, software, role } = request {
            let reply = self.hello(protocol, &peer, role, &software).await.map_err(Fault::from);
            self.greeting.answered(reply.as_ref().map(|_| ()).map_err(Fault::clone));
            return reply.map_err(|fault| GreetingError::Refused(fault).into());
        }
        self.greeting.wait().await?;
        let (services, host) = (Arc::clone(&self.services), peer.host);
        match request {
            HostRequest::Hello { .. } | HostRequest::Enroll { .. } => Err(GreetingError::Enrolled.into()),
            HostRequest::Renew { csr } => Ok(services.enrolment.renew(&host, &csr).await?),
            HostRequest::Exports => Ok(ManagerReply::Exports(services.exports.records_of(&host))),
            HostRequest::ExportList { have } => Ok(services.exports.list_for(&host, &have)),
            HostRequest::Manifest { tree } => Ok(services.exporter.send_manifest(&host, &tree, answer).await?),
            HostRequest::Chunks { tree, wants } => {
                let _turn = self.turn().await?;
                Ok(services.exporter.send_chunks(&host, &tree, &wants, answer).await?)
            }
            HostRequest::Delta { from, to } => {
                let _turn = self.turn().await?;
                Ok(services.deltas.send(&host, from, to, answer).await?)
            }
            HostRequest::Start { generation, from, manifest } => {
                let _turn = self.turn().await?;
                Ok(services.bundles.send(&host, StartOrder { generation, from, manifest }, answer).await?)
            }
            HostRequest::Profile { tree, touches } => {
                services.exports.check(&host, &tree)?;
                blocking(move || Ok(ManagerReply::Bundle(services.bundles.profile(&tree, &touches)?))).await
            }
            HostRequest::Report { reports } => {
                services.reports.take(&host, reports).await?;
                Ok(ManagerReply::Done)
            }
        }
    }

    async fn turn(&self) -> Result<tokio::sync::SemaphorePermit<'_>, BrokenOff> {
        self.chunk_requests.acquire().await.map_err(|_| BrokenOff)
    }

    async fn hello(
        &self,
        protocol: u16,
        peer: &Peer,
        role: Role,
        software: &str,
    ) -> Result<ManagerReply, ManagerError> {
        check_protocol(protocol)?;
        self.services.state.admit(&peer.host, &peer.serial)?;
        self.greeting.claim()?;
        let not_set_up = || NetError::Closed(String::from("the connection is not set up"));
        let link = self.link.get().ok_or_else(not_set_up)?;
        self.services.connections.greeted(peer, link, role, software).await?;
        self.stranger.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(ManagerReply::Welcome { host: peer.host.clone(), now: now() })
    }

    fn close(&self, reason: &str) {
        if let Some(link) = self.link.get() {
            link.close(reason);
        }
    }
}
