//! The manager that serves: its listener, the hosts' connections, and their requests.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context;
use proto::HostName;
use proto::message::{Fault, ManagerReply, ManagerRequest, PROTOCOL, Role, Unix};
use tokio::net::TcpListener;
use tokio::sync::broadcast;

use super::control::embedded::EmbeddedStore;
use super::control::hosts::IssuedCertificate;
use super::control::{Change, ControlStore, Expect, LeaseId, State};
use super::export::Exporter;
use super::identity::{self, HostCertificate, ManagerIdentity, Peer};
use super::jobs::Jobs;
use super::now;
use super::session::welcome;
use super::store::Store;
use super::strangers::Strangers;
use crate::net::{self, Link};

/// How long a host may take to say `Hello`, and an enrolment may take in all.
pub(super) const GREETING_DEADLINE: Duration = Duration::from_secs(10);
/// Connections for background fetches that one host may have; one more replaces the oldest.
const BULK_CONNECTIONS_MAX: usize = 8;
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
    pub(crate) delta_making: super::delta::Making,
    pub(crate) ahead: super::ahead::Ahead,
    pub(crate) bundles: super::bundle::Bundles,
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
            delta_making: super::delta::Making::default(),
            ahead: super::ahead::Ahead::default(),
            bundles: super::bundle::Bundles::default(),
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
        self.work_ahead(None);
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
        self.ahead.cancel();
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
    pub(super) fn greeted(
        self: &Arc<Self>,
        peer: &Peer,
        link: &Link,
        role: Role,
        software: &str,
    ) -> anyhow::Result<()> {
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

    pub(super) fn enroll(&self, protocol: u16, secret: &[u8], csr: &[u8]) -> anyhow::Result<ManagerReply> {
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

    pub(super) fn renew(&self, host: &HostName, csr: &[u8]) -> anyhow::Result<ManagerReply> {
        let (issued, reply) = self.certify(csr, host)?;
        let certificate = IssuedCertificate { serial: issued.serial, not_after: issued.not_after };
        self.state.renewed(host, &certificate, now())?;
        tracing::info!(%host, "certificate renewed");
        Ok(reply)
    }
}

pub(super) fn check_protocol(protocol: u16) -> Result<(), Fault> {
    if protocol == PROTOCOL {
        return Ok(());
    }
    Err(Fault::Refused(format!("the host speaks protocol {protocol}, this manager {PROTOCOL}: update the older one")))
}

async fn accept_hosts(manager: Arc<Manager>, listener: TcpListener, config: Arc<net::ServerConfig>) {
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

/// Runs what waits for the disk where it holds up nobody.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("the manager's worker panicked")?
}
