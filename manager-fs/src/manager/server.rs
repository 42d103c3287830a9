//! The manager's listener: takes hosts' connections in, as many as their addresses may have.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use super::session::{Services, welcome};
use super::strangers::Strangers;
use crate::net;

/// How long nothing is accepted after a failure: out of descriptors, most likely, and connections that end will help.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Takes connections in for as long as the runtime lives.
pub(crate) async fn accept_hosts(services: Arc<Services>, listener: TcpListener, config: Arc<net::ServerConfig>) {
    let strangers = Arc::new(Strangers::default());
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let Some(stranger) = strangers.admit(peer.ip()) else {
                    tracing::warn!(%peer, "too many connections of this address that have not said who they are");
                    continue;
                };
                tokio::spawn(welcome(Arc::clone(&services), stream, peer, Arc::clone(&config), stranger));
            }
            Err(error) => {
                tracing::error!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
