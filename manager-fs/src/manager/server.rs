//! The manager's listener: takes hosts' connections in, as many as their addresses may have.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::admission::Admission;
use super::session::{Services, welcome};
use crate::net;

/// How long nothing is accepted after a failure: out of descriptors, most likely, and connections that end will help.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Descriptors that are not for hosts: the store's files, the control state, local sockets.
const DESCRIPTORS_KEPT: usize = 256;
/// Connections that are possible in any case.
const CONNECTIONS_MIN: usize = 64;

/// How many connections hosts may have, of all addresses together.
fn connections_max() -> usize {
    net::descriptors_max().saturating_sub(DESCRIPTORS_KEPT).clamp(CONNECTIONS_MIN, Semaphore::MAX_PERMITS)
}

/// Takes connections in for as long as the runtime lives.
pub(crate) async fn accept_hosts(services: Arc<Services>, listener: TcpListener, config: Arc<net::ServerConfig>) {
    let room = connections_max();
    let connections = Arc::new(Semaphore::new(room));
    // Half of the room is for those that have said who they are.
    let admission = Arc::new(Admission::new(room / 2));
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let Ok(place) = Arc::clone(&connections).try_acquire_owned() else {
                    tracing::error!(room, "too many connections: allow the manager more open files");
                    drop(stream);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                };
                let stranger = admission.admit(peer.ip());
                let (services, config) = (Arc::clone(&services), Arc::clone(&config));
                tokio::spawn(async move {
                    welcome(services, stream, peer, config, stranger).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::error!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
