//! The hosts' connections: which are there, which give way, and what is told when they come and go.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::HostName;
use proto::message::{HostReply, ManagerRequest, Role, Unix};

use super::control::hosts::HostError;
use super::control::{Observation, State};
use super::identity::Peer;
use super::news::{News, NewsBoard};
use super::now;
use crate::net::Link;

/// Connections for background fetches that one host may have; one more replaces the oldest.
const BULK_CONNECTIONS_MAX: usize = 8;
/// How long a host may take to say that it knows of a change of exports. It asks by itself when it connects.
const TOLD_DEADLINE: Duration = Duration::from_secs(10);

/// All of them.
pub(crate) struct Connections {
    state: Arc<State>,
    news: Arc<NewsBoard>,
    by_host: Mutex<HashMap<HostName, Vec<Connection>>>,
}

struct Connection {
    link: Link,
    role: Role,
    since: Unix,
}

impl Connections {
    /// None yet.
    pub(crate) fn new(state: Arc<State>, news: Arc<NewsBoard>) -> Self {
        Self { state, news, by_host: Mutex::default() }
    }

    /// The control connection of a host, if it is there.
    pub(crate) fn control_link(&self, host: &HostName) -> Option<Link> {
        self.control(host, |connection| connection.link.clone())
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

    /// A new connection of an admitted host has said `Hello`.
    ///
    /// # Errors
    /// The host has been shut out meanwhile, or the control state failed.
    pub(crate) async fn greeted(
        self: &Arc<Self>,
        peer: &Peer,
        link: &Link,
        role: Role,
        software: &str,
    ) -> Result<(), HostError> {
        let host = &peer.host;
        let replaced = self.register(host, link, role);
        // Admitted before it was registered: a revocation in between has not seen it.
        if let Err(refusal) = self.state.admit(host, &peer.serial) {
            self.cut(host, "the host was revoked");
            return Err(refusal);
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
    fn register(&self, host: &HostName, link: &Link, role: Role) -> Option<Link> {
        let mut connections = self.by_host();
        let of_host = connections.entry(host.clone()).or_default();
        let allowed = if role == Role::Control { 1 } else { BULK_CONNECTIONS_MAX };
        let same: Vec<usize> = (0..of_host.len()).filter(|at| of_host[*at].role == role).collect();
        let replaced = same.first().filter(|_| same.len() >= allowed).map(|at| of_host.remove(*at).link);
        of_host.push(Connection { link: link.clone(), role, since: now() });
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
        self.by_host.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
