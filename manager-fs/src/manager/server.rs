//! The manager that serves: its listener, the hosts' connections, and their requests.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context;
use proto::HostName;
use proto::codec;
use proto::limits::MESSAGE_BYTES_MAX;
use proto::message::{Fault, HostRequest, ManagerReply, ManagerRequest, PROTOCOL, Role, Unix};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, broadcast};

use super::control::embedded::EmbeddedStore;
use super::control::hosts::IssuedCertificate;
use super::control::{Change, ControlStore, Expect, LeaseId, State};
use super::export::Exporter;
use super::identity::{self, HostCertificate, ManagerIdentity, Peer};
use super::jobs::Jobs;
use super::store::Store;
use super::{fault_of, now};
use crate::net::{self, Answer, BoxFuture, Handler, Link, LinkLimits};

/// How long a host may take to say `Hello`, and an enrolment may take in all.
const GREETING_DEADLINE: Duration = Duration::from_secs(10);
/// Connections of one address that have not shown a known certificate and said `Hello`. Many hosts may share an address.
const STRANGERS_PER_ADDRESS_MAX: usize = 64;
/// Connections for background fetches that one host may have; one more replaces the oldest.
const BULK_CONNECTIONS_MAX: usize = 8;
/// Chunk requests of one connection that are answered at once; others wait. Each holds a megabyte or two.
const CHUNK_REQUESTS_MAX: usize = 16;
/// An enrolment request carries a secret and a certificate request: about 300 bytes.
const STRANGER_LIMITS: LinkLimits = LinkLimits { requests_max: 1, request_bytes_max: 16 << 10 };
/// News that a slow listener may be behind before it must look at the state instead.
const NEWS_MAX: usize = 4096;
/// The manager's own presence; the keys of connected hosts are bound to it.
const PRESENCE_TTL: Duration = Duration::from_secs(60);

/// How the manager is set up.
#[derive(Debug, Clone)]
pub struct ManagerOptions {
    /// The store's directory.
    pub store: PathBuf,
    /// How long hosts' certificates are valid.
    pub host_certificate_lifetime: Duration,
}

/// The manager: everything that its listeners share.
pub struct Manager {
    pub(crate) store: Arc<Store>,
    pub(crate) state: State,
    pub(crate) identity: ManagerIdentity,
    pub(crate) exporter: Exporter,
    pub(crate) jobs: Jobs,
    connections: Mutex<HashMap<HostName, Vec<Connection>>>,
    news: broadcast::Sender<News>,
    presence: LeaseId,
    address: OnceLock<SocketAddr>,
    /// Held from the choice of a sequence number to the commit of its record.
    pub(crate) publishing: Mutex<()>,
}

struct Connection {
    link: Link,
    role: Role,
    since: Unix,
}

/// What happens, for whoever waits for it. All of it is in the state as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A host's control connection is there.
    Connected(HostName),
    /// A host's control connection is gone.
    Disconnected(HostName),
    /// A step of a change-over is recorded.
    Step(HostName, proto::agent::StepEvent),
    /// A host told what its agents are doing.
    Agents(HostName),
    /// A job's record or progress has changed.
    Job(proto::agent::JobId),
}

impl Manager {
    /// Opens store, keys and control state; makes them in an empty directory.
    ///
    /// # Errors
    /// The store is in use, of a newer format, or damaged.
    pub fn open(options: &ManagerOptions) -> anyhow::Result<Arc<Self>> {
        let store = Arc::new(Store::open(&options.store)?);
        let identity = ManagerIdentity::open(&options.store, options.host_certificate_lifetime)?;
        let control = EmbeddedStore::open(&options.store.join("control.redb"))?;
        let presence = control.grant(PRESENCE_TTL)?;
        let manager = Arc::new(Self {
            exporter: Exporter::new(Arc::clone(&store)),
            store,
            state: State::new(Arc::new(control)),
            identity,
            jobs: Jobs::default(),
            connections: Mutex::default(),
            news: broadcast::Sender::new(NEWS_MAX),
            presence,
            address: OnceLock::new(),
            publishing: Mutex::default(),
        });
        Ok(manager)
    }

    /// Begins to listen for hosts and to drive jobs that are not over; returns the actual address.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn listen(self: &Arc<Self>, address: &str) -> anyhow::Result<SocketAddr> {
        let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        let local = listener.local_addr()?;
        let config = net::server_config(self.identity.server())?;
        let _ = self.address.set(local);
        tokio::spawn(accept_hosts(Arc::clone(self), listener, config));
        tokio::spawn(keep_presence(Arc::clone(self)));
        self.resume_jobs()?;
        Ok(local)
    }

    /// Where hosts reach this manager, once it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address.get().copied()
    }

    /// Follows what happens from now on.
    pub fn news(&self) -> broadcast::Receiver<News> {
        self.news.subscribe()
    }

    pub(crate) fn tell(&self, news: News) {
        // Fails only when nobody listens.
        let _ = self.news.send(news);
    }

    /// The control connection of a host, if it is there.
    pub fn control_link(&self, host: &HostName) -> Option<Link> {
        let connections = self.connections();
        let found = connections.get(host)?.iter().rev().find(|connection| connection.role == Role::Control);
        found.map(|connection| connection.link.clone())
    }

    /// Since when a host's control connection is there.
    pub fn connected_since(&self, host: &HostName) -> Option<Unix> {
        let connections = self.connections();
        let found = connections.get(host)?.iter().rev().find(|connection| connection.role == Role::Control);
        found.map(|connection| connection.since)
    }

    /// Revokes a host and cuts its connections.
    ///
    /// # Errors
    /// There is no such host.
    pub fn revoke(&self, host: &HostName) -> anyhow::Result<()> {
        self.state.revoke(host, now())?;
        self.cut(host, "the host was revoked");
        // Its jobs end for want of a host; those that wait for it look at it now.
        self.tell(News::Disconnected(host.clone()));
        tracing::warn!(%host, "host revoked");
        Ok(())
    }

    /// Tells hosts that what is exported to them has changed. Those that are away ask when they connect.
    pub fn exports_changed(&self, hosts: impl IntoIterator<Item = HostName>) {
        for link in hosts.into_iter().filter_map(|host| self.control_link(&host)) {
            tokio::spawn(async move {
                let request = ManagerRequest::ExportsChanged;
                link.request::<_, proto::message::HostReply>(&request, |_| {}, GREETING_DEADLINE).await.ok();
            });
        }
    }

    /// Ends every host's connection; what they report from now on they keep and send again.
    pub fn close(&self) {
        let all: Vec<Connection> = self.connections().drain().flat_map(|(_, of_host)| of_host).collect();
        for connection in all {
            connection.link.close("the manager is ending");
        }
    }

    fn cut(&self, host: &HostName, reason: &str) {
        let cut = self.connections().remove(host).unwrap_or_default();
        for connection in cut {
            connection.link.close(reason);
        }
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<HostName, Vec<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new connection of an admitted host has said `Hello`.
    fn greeted(self: &Arc<Self>, peer: &Peer, link: &Link, role: Role, software: &str) -> anyhow::Result<()> {
        let host = &peer.host;
        let replaced = {
            let mut connections = self.connections();
            let of_host = connections.entry(host.clone()).or_default();
            let allowed = if role == Role::Control { 1 } else { BULK_CONNECTIONS_MAX };
            let same: Vec<usize> = (0..of_host.len()).filter(|at| of_host[*at].role == role).collect();
            let replaced = same.first().filter(|_| same.len() >= allowed).map(|at| of_host.remove(*at));
            of_host.push(Connection { link: link.clone(), role, since: now() });
            replaced
        };
        // Admitted before it was registered: a revocation in between has not seen it.
        if let Err(refusal) = self.state.admit(host, &peer.serial) {
            self.cut(host, "the host was revoked");
            return Err(refusal);
        }
        if let Some(old) = replaced {
            old.link.close("replaced by a newer connection of the same host");
        }
        if role == Role::Control {
            self.state.change_status(host, |status| {
                software.clone_into(&mut status.software);
                status.last_seen = now();
            })?;
            self.mark_connected(host, true)?;
            tracing::info!(%host, software, "host connected");
            self.tell(News::Connected(host.clone()));
        }
        let (manager, host, link) = (Arc::clone(self), host.clone(), link.clone());
        tokio::spawn(async move {
            let reason = link.closed().await;
            manager.ended(&host, &link, role, &reason);
        });
        Ok(())
    }

    fn ended(&self, host: &HostName, link: &Link, role: Role, reason: &str) {
        let last = {
            let mut connections = self.connections();
            if let Some(of_host) = connections.get_mut(host) {
                of_host.retain(|connection| !connection.link.is_same(link));
            }
            let left = connections.get(host).into_iter().flatten();
            role == Role::Control && left.filter(|connection| connection.role == Role::Control).count() == 0
        };
        if last {
            tracing::info!(%host, reason, "host disconnected");
            let saved = self.state.change_status(host, |status| status.last_seen = now());
            if let Err(error) = saved.and_then(|()| self.mark_connected(host, false)) {
                tracing::error!(%host, %error, "cannot record that the host is gone");
            }
            self.tell(News::Disconnected(host.clone()));
        }
    }

    fn mark_connected(&self, host: &HostName, connected: bool) -> anyhow::Result<()> {
        let key = format!("connected/{host}");
        let change = if connected {
            let value = super::control::encode(&now())?;
            Change { lease: Some(self.presence), ..Change::put(key, Expect::Any, value) }
        } else {
            Change::delete(key, Expect::Any)
        };
        Ok(self.state.store().commit(&[change]).map(drop)?)
    }

    fn certify(&self, csr: &[u8], host: &HostName) -> anyhow::Result<(HostCertificate, ManagerReply)> {
        let issued = self.identity.certify(csr, host).map_err(|error| Fault::BadRequest(format!("{error:#}")))?;
        let reply = ManagerReply::Certificate {
            host: host.clone(),
            certificate: issued.pem.clone(),
            authority: self.identity.authority().to_owned(),
            publishers: vec![self.identity.publisher().verifying_key().to_bytes()],
        };
        Ok((issued, reply))
    }

    fn enroll(&self, protocol: u16, secret: &[u8], csr: &[u8]) -> anyhow::Result<ManagerReply> {
        check_protocol(protocol)?;
        // A malformed request must not use the token up.
        self.certify(csr, &"malformed-request-check".parse()?)?;
        let host = self.state.use_token(&identity::secret_hash(secret), now())?;
        let (issued, reply) = self.certify(csr, &host)?;
        let certificate = IssuedCertificate { serial: issued.serial, not_after: issued.not_after };
        self.state.enrolled(&host, &certificate, now())?;
        // An identity that was replaced is no longer accepted, on living connections neither.
        self.cut(&host, "the host was enrolled anew");
        tracing::info!(%host, "host enrolled");
        Ok(reply)
    }

    fn renew(&self, host: &HostName, csr: &[u8]) -> anyhow::Result<ManagerReply> {
        let (issued, reply) = self.certify(csr, host)?;
        let certificate = IssuedCertificate { serial: issued.serial, not_after: issued.not_after };
        self.state.renewed(host, &certificate, now())?;
        tracing::info!(%host, "certificate renewed");
        Ok(reply)
    }
}

fn check_protocol(protocol: u16) -> Result<(), Fault> {
    if protocol == PROTOCOL {
        return Ok(());
    }
    Err(Fault::Refused(format!("the host speaks protocol {protocol}, this manager {PROTOCOL}: update the older one")))
}

async fn accept_hosts(manager: Arc<Manager>, listener: TcpListener, config: Arc<rustls::ServerConfig>) {
    let strangers = Arc::new(Strangers::default());
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let Some(stranger) = strangers.admit(peer.ip()) else {
                    tracing::warn!(%peer, "too many connections of this address that have not said who they are");
                    continue;
                };
                tokio::spawn(welcome(Arc::clone(&manager), stream, peer, Arc::clone(&config), stranger));
            }
            Err(error) => {
                // Out of descriptors, most likely: connections that end will help.
                tracing::error!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn keep_presence(manager: Arc<Manager>) {
    let mut beat = tokio::time::interval(PRESENCE_TTL / 3);
    loop {
        beat.tick().await;
        if let Err(error) = manager.state.store().keep(manager.presence) {
            tracing::error!(%error, "the manager's presence has lapsed; hosts are shown as disconnected");
            return;
        }
    }
}

async fn welcome(
    manager: Arc<Manager>,
    stream: TcpStream,
    address: SocketAddr,
    config: Arc<rustls::ServerConfig>,
    stranger: Stranger,
) {
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
    // A connection lives no longer than the certificate that it was admitted with; the host renews long before.
    if let Some(ends) = ends {
        let left = Duration::from_millis(ends.saturating_sub(now()));
        tokio::select! {
            _ = link.closed() => {}
            () = tokio::time::sleep(left) => link.close("the host's certificate has expired"),
        }
    }
}

/// Connections of one address that are not known yet.
#[derive(Default)]
struct Strangers(Mutex<HashMap<IpAddr, usize>>);

struct Stranger {
    all: Arc<Strangers>,
    address: IpAddr,
}

impl Strangers {
    fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Stranger> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= STRANGERS_PER_ADDRESS_MAX {
            return None;
        }
        *count += 1;
        Some(Stranger { all: Arc::clone(self), address })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut counts = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
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
    stranger: Mutex<Option<Stranger>>,
    chunk_requests: Semaphore,
}

struct ServeSession(Arc<Session>);

impl Handler for ServeSession {
    fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
        let session = Arc::clone(&self.0);
        Box::pin(async move { session.answer(body, answer).await })
    }
}

impl Session {
    async fn answer(self: Arc<Self>, body: Vec<u8>, answer: Answer) {
        let request = match codec::decode::<HostRequest, MESSAGE_BYTES_MAX>(&body) {
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
            check_protocol(protocol)?;
            let session = Arc::clone(self);
            return blocking(move || session.hello(&peer, role, &software)).await;
        }
        if self.greeted.get().is_none() {
            return Err(Fault::BadRequest(String::from("a host says Hello first")).into());
        }
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
            HostRequest::Report { reports } => {
                blocking(move || manager.take_reports(&peer.host, reports)).await?;
                Ok(ManagerReply::Done)
            }
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

/// Runs what waits for the disk where it holds up nobody.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("the manager's worker panicked")?
}
