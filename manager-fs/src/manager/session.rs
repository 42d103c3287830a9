//! One connection of a host, from the handshake to its end. States and limits: `docs/control-protocol.md`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context;
use proto::codec;
use proto::limits::MESSAGE_BYTES_MAX;
use proto::message::{Fault, HostRequest, ManagerReply, Role, Unix};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};

use super::identity::{self, Peer};
use super::server::{GREETING_DEADLINE, Manager, blocking, check_protocol};
use super::strangers::Stranger;
use super::{fault_of, now};
use crate::net::{self, Answer, BoxFuture, Handler, Link, LinkLimits};

/// Chunk requests of one connection that are answered at once; others wait. Each holds two batches of chunks (see
/// `export.rs`): 2 MiB at the default chunk size, 8 MiB at the largest.
const CHUNK_REQUESTS_MAX: usize = 8;

/// An enrolment request carries a secret and a certificate request: about 300 bytes.
const STRANGER_LIMITS: LinkLimits = LinkLimits { requests_max: 1, request_bytes_max: 16 << 10 };

/// Receives one connection and sees it to its end.
pub(super) async fn welcome(
    manager: Arc<Manager>,
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
        manager,
        address,
        link: OnceLock::new(),
        peer,
        greeted: OnceLock::new(),
        hello: watch::Sender::new(Hello::NotYet),
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
            if session.greeted.get().is_none() {
                tracing::warn!(%address, "no greeting in time");
                link.close("no Hello or Enroll in time");
            }
        }
    }
    if let (Some(peer), Some(ends)) = (&session.peer, ends) {
        close_in_time(&session.manager, &link, peer, ends).await;
    }
}

/// A connection lives no longer than the host's right to it: that of its certificate, or of one that replaced it.
async fn close_in_time(manager: &Manager, link: &Link, peer: &Peer, mut ends: Unix) {
    loop {
        let left = Duration::from_millis(ends.saturating_sub(now()));
        tokio::select! {
            _ = link.closed() => return,
            () = tokio::time::sleep(left) => {}
        }
        // A host that has renewed goes on undisturbed, as reads may be under way.
        let newest =
            manager.state.host(&peer.host).ok().flatten().and_then(|record| record.newest_certificate_ends());
        match newest.filter(|newest| *newest > now()) {
            Some(newest) => ends = newest,
            None => return link.close("the host's certificate has expired"),
        }
    }
}

/// One connection of a host.
struct Session {
    manager: Arc<Manager>,
    address: SocketAddr,
    link: OnceLock<Link>,
    /// Who it is, by its certificate; `None` may only enrol.
    peer: Option<Peer>,
    greeted: OnceLock<()>,
    /// A host need not wait for the answer to `Hello`: what comes right behind it waits here until that is answered.
    hello: watch::Sender<Hello>,
    stranger: Mutex<Option<Stranger>>,
    chunk_requests: Semaphore,
}

/// How far the greeting is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Hello {
    NotYet,
    BeingAnswered,
    Answered(Result<(), Fault>),
}

struct ServeSession(Arc<Session>);

impl Handler for ServeSession {
    fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
        let session = Arc::clone(&self.0);
        let request = codec::decode::<HostRequest, MESSAGE_BYTES_MAX>(&body);
        // Noted before the next request is read.
        if matches!(request, Ok(HostRequest::Hello { .. })) {
            session.hello.send_if_modified(|hello| {
                let first = *hello == Hello::NotYet;
                if first {
                    *hello = Hello::BeingAnswered;
                }
                first
            });
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
        let reply = self.reply(request, &answer).await;
        let reply = reply.unwrap_or_else(|error| ManagerReply::Fault(fault_of(error)));
        let ends = match &reply {
            ManagerReply::Fault(fault) => {
                let host = self.peer.as_ref().map(|peer| &peer.host);
                tracing::warn!(address = %self.address, ?host, %fault, "request refused");
                self.greeted.get().is_none()
            }
            _ => self.peer.is_none(),
        };
        if let Err(error) = answer.finish(&reply).await {
            tracing::debug!(address = %self.address, %error, "answer not delivered");
        }
        if ends {
            self.close("nothing more to say");
        }
    }

    async fn reply(self: &Arc<Self>, request: HostRequest, answer: &Answer) -> anyhow::Result<ManagerReply> {
        let manager = Arc::clone(&self.manager);
        let Some(peer) = self.peer.clone() else {
            let HostRequest::Enroll { protocol, secret, csr } = request else {
                return Err(Fault::Refused(String::from("a connection without a certificate can only enrol")).into());
            };
            self.greeted.set(()).ok();
            return blocking(move || manager.enroll(protocol, &secret, &csr)).await;
        };
        if let HostRequest::Hello { protocol, software, role } = request {
            let session = Arc::clone(self);
            let greet = move || {
                check_protocol(protocol)?;
                session.hello(&peer, role, &software)
            };
            let reply = blocking(greet).await.map_err(fault_of);
            self.hello.send_replace(Hello::Answered(reply.as_ref().map(|_| ()).map_err(Fault::clone)));
            return Ok(reply?);
        }
        self.greeting().await?;
        match request {
            HostRequest::Hello { .. } | HostRequest::Enroll { .. } => {
                Err(Fault::BadRequest(String::from("this connection is enrolled already")).into())
            }
            HostRequest::Renew { csr } => blocking(move || manager.renew(&peer.host, &csr)).await,
            HostRequest::Exports => {
                let exported = manager.state.exported_to(&peer.host)?;
                Ok(ManagerReply::Exports(exported.iter().map(|generation| generation.signed.clone()).collect()))
            }
            HostRequest::Manifest { tree } => manager.send_manifest(&peer.host, &tree, answer).await,
            HostRequest::Chunks { tree, wants } => {
                let _turn = self.chunk_requests.acquire().await?;
                manager.send_chunks(&peer.host, &tree, &wants, answer).await
            }
            HostRequest::Delta { from, to } => {
                let _turn = self.chunk_requests.acquire().await?;
                manager.send_delta(&peer.host, (from, to), answer).await
            }
            HostRequest::Start { generation, from, manifest } => {
                let _turn = self.chunk_requests.acquire().await?;
                manager.send_start(&peer.host, (generation, from, manifest), answer).await
            }
            HostRequest::Profile { tree, touches } => {
                manager.exported_tree(&peer.host, &tree).await?;
                blocking(move || manager.profile(&tree, &touches)).await.map(ManagerReply::Bundle)
            }
            HostRequest::Report { reports } => {
                blocking(move || manager.take_reports(&peer.host, reports)).await?;
                Ok(ManagerReply::Done)
            }
        }
    }

    /// Whether this connection has been greeted, as soon as that is known. What came behind a `Hello` that is refused is
    /// refused for the same reason: its answer may arrive first.
    async fn greeting(&self) -> Result<(), Fault> {
        let mut hello = self.hello.subscribe();
        // The sender is in `self`, so this does not fail.
        let hello = hello.wait_for(|hello| *hello != Hello::BeingAnswered).await.map(|hello| hello.clone());
        match hello {
            _ if self.greeted.get().is_some() => Ok(()),
            Ok(Hello::Answered(Err(fault))) => Err(fault),
            _ => Err(Fault::BadRequest(String::from("a host says Hello first"))),
        }
    }

    fn hello(&self, peer: &Peer, role: Role, software: &str) -> anyhow::Result<ManagerReply> {
        self.manager.state.admit(&peer.host, &peer.serial)?;
        anyhow::ensure!(self.greeted.set(()).is_ok(), Fault::BadRequest(String::from("a second Hello")));
        let link = self.link.get().context("the connection is not set up")?;
        self.manager.greeted(peer, link, role, software)?;
        self.stranger.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(ManagerReply::Welcome { host: peer.host.clone(), now: now() })
    }

    fn close(&self, reason: &str) {
        if let Some(link) = self.link.get() {
            link.close(reason);
        }
    }
}
