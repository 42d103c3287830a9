//! The manager by HTTP: an interface for programs (`/v1/…`) and a console for people, on one address, over TLS.
//!
//! ```text
//! bytes ──server──> request ──caller──> who, and which role ──route──> command ──admin──> reply ──> document, or page
//! ```
//! `server` bounds connections, `caller` knows who asks, `route` and what stands in `reads`, `members`, `storage`, `repositories` and `orders` turn
//! an address
//! into a command of `admin` and its reply into a document; `openapi` describes just that. `console` shows the same to
//! people, and by `link` commands of this program ask from other machines. Nothing here decides anything. What it takes and answers: `docs/api.md`, `docs/console.md`.

mod ask;
mod body;
mod caller;
mod console;
mod edge;
mod link;
mod members;
mod multipart;
mod openapi;
mod orders;
mod problem;
mod reads;
mod received;
mod repositories;
mod route;
mod server;
mod sessions;
mod shape;
mod storage;
mod stream;
mod upload;
mod visit;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;

use super::error::ManagerError;
use super::whole::Manager;
use crate::net;
use body::Body;
use edge::Edge;
use hyper::body::Incoming;
use hyper::{Request, Response};
use server::Peer;
use visit::Console;

/// Where and as whom it is answered.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// The address.
    pub address: SocketAddr,
    /// A certificate chain and its key, PEM; `None`: the manager's own, which hosts know.
    pub certificate: Option<(String, String)>,
}

/// Begins to answer; returns the actual address.
///
/// # Errors
/// The address cannot be listened on, or the certificate cannot be used.
pub async fn serve(manager: &Arc<Manager>, options: &HttpOptions) -> Result<SocketAddr, ManagerError> {
    let own = || {
        let own = manager.identity.server();
        (format!("{}\n{}", own.certificate.trim_end(), own.authority), own.key.clone())
    };
    let (chain, key) = options.certificate.clone().unwrap_or_else(own);
    let config = net::web_config(&chain, &key)?;
    let failed = |cause| ManagerError::Listen { address: options.address.to_string(), cause };
    let listener = TcpListener::bind(options.address).await.map_err(failed)?;
    let local = listener.local_addr().map_err(failed)?;
    let both = Arc::new((Edge::new(Arc::clone(manager)), Console::default()));
    tokio::spawn(server::serve(listener, config, move |request, peer| answer(Arc::clone(&both), request, peer)));
    Ok(local)
}

/// Answers whatever comes.
async fn answer(both: Arc<(Edge, Console)>, mut request: Request<Incoming>, peer: Peer) -> Response<Body> {
    let (edge, console) = both.as_ref();
    let path = request.uri().path();
    let mut response = if link::is_meant(path) {
        link::answer(edge, &mut request, &peer).await.unwrap_or_else(|problem| edge::refused(&problem))
    } else if path == "/healthz" || path.starts_with("/v1/") {
        edge.answer(&mut request, &peer).await
    } else {
        console.answer(edge, &mut request, &peer).await
    };
    received::forget(&mut request).await;
    edge::harden(response.headers_mut());
    response
}

/// The description of the interface (OpenAPI 3.1), as it is committed in `docs/openapi.json`.
pub fn description() -> serde_json::Value {
    openapi::description(&edge::routes())
}
