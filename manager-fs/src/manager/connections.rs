//! The hosts' connections: which are there, which give way, and what is told when they come and go.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use proto::HostName;
use proto::message::{HostReply, Instance, ManagerRequest, Role, Unix};

use super::control::hosts::HostError;
use super::control::{ControlError, Observation, State};
use super::identity::Peer;
use super::news::{News, NewsBoard};
use super::now;
use crate::net::{Link, NetError};
use crate::sync::lock;

/// Connections for fetches that one host may have beside the control connection; one more replaces the oldest. A daemon has
/// two, and for a moment three when one is made anew.
const BULK_CONNECTIONS_MAX: usize = 3;
/// How long a daemon may take to give a sign of life when another one comes with its identity.
const ALIVE_DEADLINE: Duration = Duration::from_secs(3);
/// How long a host may take to say that it knows of a change of exports. It asks by itself when it connects.
const TOLD_DEADLINE: Duration = Duration::from_secs(10);

/// Why a connection is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// Two daemons have one identity.
    #[error(
        "another daemon with the identity of host '{0}' is connected and keeps its place (a clone?): end one of the two, \
         and enrol it under a name of its own (`manager-fs token` on the manager, `manager-fs enroll --force` there)"
    )]
    Clone(HostName),
    /// The host is shut out.
    #[error(transparent)]
    Host(#[from] HostError),
}

impl From<ControlError> for ConnectionError {
    fn from(error: ControlError) -> Self {
        Self::Host(error.into())
    }
}

/// A connection that has said `Hello`.
pub(crate) struct Newcomer {
    /// Whose certificate it showed.
    pub(crate) peer: Peer,
    pub(crate) role: Role,
    /// Version of its `manager-fs`.
    pub(crate) software: String,
    pub(crate) instance: Instance,
    /// What its machine calls itself; `None`: it does not say so.
    pub(crate) machine: Option<String>,
}

/// All of them.
pub(crate) struct Connections {
    state: Arc<State>,
    news: Arc<NewsBoard>,
    by_host: Mutex<HashMap<HostName, Vec<Connection>>>,
    /// What hosts have said of their machines, also those that are away by now.
    machines: Mutex<HashMap<HostName, String>>,
}

struct Connection {
    link: Link,
    role: Role,
    instance: Instance,
    since: Unix,
}

impl Connections {
    /// Of a manager that has just started: no host is connected.
    pub(crate) fn new(state: Arc<State>, news: Arc<NewsBoard>) -> Self {
        Self { state, news, by_host: Mutex::default(), machines: Mutex::default() }
    }

    /// The control connection of a host, if it is there.
    pub(crate) fn control_link(&self, host: &HostName) -> Option<Link> {
        self.control(host, |connection| connection.link.clone())
    }

    /// What a host's machine calls itself, as far as it has said so.
    pub(crate) fn machine(&self, host: &HostName) -> Option<String> {
        lock(&self.machines).get(host).cloned()
    }

    /// Since when a host's control connection is there.
    pub(crate) fn connected_since(&self, host: &HostName) -> Option<Unix> {
        self.control(host, |connection| connection.since)
    }

    /// Tells hosts that what is exported to them has changed. Those that are away ask when they connect.
    pub(crate) fn exports_changed(&self, hosts: impl IntoIterator<Item = HostName>) {
        for link in hosts.into_iter().filter_map(|host| self.control_link(&host)) {
            tokio::spawn(async move {
                let request = ManagerRequest::ExportsChanged;
                link.request::<_, HostReply>(&request, |_| {}, TOLD_DEADLINE).await.ok();
            });
        }
    }

    /// Ends every connection of a host.
    pub(crate) fn cut(&self, host: &HostName, reason: &str) {
        let cut = self.by_host().remove(host).unwrap_or_default();
        for connection in cut {
            connection.link.close(reason);
        }
    }

    /// Ends every connection of every host.
    pub(crate) fn close(&self, reason: &str) {
        let all: Vec<Connection> = self.by_host().drain().flat_map(|(_, of_host)| of_host).collect();
        for connection in all {
            connection.link.close(reason);
        }
    }

    /// Whether a newcomer is the daemon that is connected already, or the only one. Another daemon that gives a sign of life
    /// keeps its place: of two with one identity the first is served.
    ///
    /// # Errors
    /// [`ConnectionError::Clone`].
    pub(crate) async fn may_come(&self, newcomer: &Newcomer) -> Result<(), ConnectionError> {
        let host = &newcomer.peer.host;
        let there = self.control(host, |connection| (connection.link.clone(), connection.instance));
        let Some((link, _)) = there.filter(|(_, instance)| *instance != newcomer.instance) else { return Ok(()) };
        let sign = link.request::<_, HostReply>(&ManagerRequest::Alive, |_| {}, ALIVE_DEADLINE).await;
        // Whatever it answers is a sign of life.
        if matches!(sign, Err(NetError::Closed(_) | NetError::Deadline(_))) {
            link.close("replaced by another daemon with this identity (a clone?)");
            tracing::warn!(%host, "a daemon that gives no sign of life is replaced by another one with its identity");
            return Ok(());
        }
        tracing::warn!(%host, "another daemon with this identity is refused (a clone?)");
        Err(ConnectionError::Clone(host.clone()))
    }

    /// A new connection of an admitted host is let in.
    ///
    /// # Errors
    /// The host has been shut out meanwhile, or the control state failed.
    pub(crate) async fn greeted(self: &Arc<Self>, newcomer: &Newcomer, link: &Link) -> Result<(), ConnectionError> {
        let Newcomer { peer, role, software, .. } = newcomer;
        let (host, role) = (&peer.host, *role);
        // Before anybody tells it anything.
        match &newcomer.machine {
            Some(machine) => drop(lock(&self.machines).insert(host.clone(), machine.clone())),
            None if role == Role::Control => drop(lock(&self.machines).remove(host)),
            None => {}
        }
        let replaced = self.register(newcomer, link);
        // Admitted before it was registered: a revocation in between has not seen it.
        if let Err(refusal) = self.state.admit(host, &peer.serial) {
            self.cut(host, "the host was revoked");
            return Err(refusal.into());
        }
        if let Some(old) = replaced {
            old.close("replaced by a newer connection of the same host");
        }
        if role == Role::Control {
            let seen = Observation::Seen { at: now(), software: Some(software.to_owned()) };
            // Before anybody hears of it; a host is let in though it cannot be written down.
            if let Err(error) = self.state.observations().note(host, vec![seen]).await {
                tracing::error!(%host, %error, "cannot record that the host is there");
            }
            tracing::info!(%host, software, "host connected");
            self.news.tell(host, News::Connected);
        }
        let (connections, host, link) = (Arc::clone(self), host.clone(), link.clone());
        tokio::spawn(async move {
            let reason = link.closed().await;
            connections.ended(&host, &link, role, &reason).await;
        });
        Ok(())
    }

    /// Counts a connection in; returns the one that gives way to it.
    fn register(&self, newcomer: &Newcomer, link: &Link) -> Option<Link> {
        let mut connections = self.by_host();
        let of_host = connections.entry(newcomer.peer.host.clone()).or_default();
        let role = newcomer.role;
        let allowed = if role == Role::Control { 1 } else { BULK_CONNECTIONS_MAX };
        let same: Vec<usize> = (0..of_host.len()).filter(|at| of_host[*at].role == role).collect();
        let replaced = same.first().filter(|_| same.len() >= allowed).map(|at| of_host.remove(*at).link);
        of_host.push(Connection { link: link.clone(), role, instance: newcomer.instance, since: now() });
        replaced
    }

    async fn ended(&self, host: &HostName, link: &Link, role: Role, reason: &str) {
        let last = {
            let mut connections = self.by_host();
            if let Some(of_host) = connections.get_mut(host) {
                of_host.retain(|connection| !connection.link.is_same(link));
                if of_host.is_empty() {
                    connections.remove(host);
                }
            }
            let left = connections.get(host).into_iter().flatten();
            role == Role::Control && left.filter(|connection| connection.role == Role::Control).count() == 0
        };
        if last {
            tracing::info!(%host, reason, "host disconnected");
            let seen = Observation::Seen { at: now(), software: None };
            if let Err(error) = self.state.observations().note(host, vec![seen]).await {
                tracing::error!(%host, %error, "cannot record that the host is gone");
            }
            self.news.tell(host, News::Disconnected);
        }
    }

    /// The newest control connection that is not over: one that has just ended may still be registered.
    fn control<T>(&self, host: &HostName, of: impl Fn(&Connection) -> T) -> Option<T> {
        let connections = self.by_host();
        let mut newest_first = connections.get(host)?.iter().rev();
        newest_first
            .find(|connection| connection.role == Role::Control && connection.link.closed_reason().is_none())
            .map(of)
    }

    fn by_host(&self) -> MutexGuard<'_, HashMap<HostName, Vec<Connection>>> {
        lock(&self.by_host)
    }
}

#[cfg(test)]
#[path = "connections_tests.rs"]
mod tests;
