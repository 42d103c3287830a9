//! Connections of programs and browsers: TLS, HTTP/1.1, and what one of them may cost.
//!
//! Nobody can keep others out: there are [`CONNECTIONS_MAX`] at most, and whoever comes then gets the place of the oldest
//! that has not shown who it is, or else of the oldest. A stranger has [`STRANGER_MAX`] in all, a head that takes longer
//! than [`HEAD_DEADLINE`] or is larger than [`HEAD_BYTES_MAX`] ends its connection.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::body::Body;
use crate::net::{self, ServerConfig};

/// Connections at once.
const CONNECTIONS_MAX: usize = 256;
/// How long a request's head may take, and how long a connection may be idle.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Lines of a request's head.
const HEAD_LINES_MAX: usize = 64;
/// How long a connection lives whose other end has not shown who it is.
const STRANGER_MAX: Duration = Duration::from_secs(30);
/// How long any connection lives. Who follows something connects anew.
const CONNECTION_MAX: Duration = Duration::from_hours(1);
/// Pause after a failed accept: descriptors are used up, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The other end of a connection.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    /// From where it comes.
    pub(super) address: IpAddr,
    /// BLAKE3 of the certificate that it showed, whose key it has.
    pub(super) certificate: Option<blake3::Hash>,
    known: Arc<AtomicBool>,
}

impl Peer {
    /// It has shown who it is.
    pub(super) fn is_known(&self) {
        self.known.store(true, Ordering::Relaxed);
    }
}

/// A connection while it lives.
struct Conversation {
    task: AbortHandle,
    known: Arc<AtomicBool>,
}

/// Answers on `listener` until the task is dropped.
pub(super) async fn serve<A, F>(listener: TcpListener, config: Arc<ServerConfig>, answer: A)
where
    A: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let (mut tasks, mut oldest_first) = (JoinSet::new(), VecDeque::<Conversation>::new());
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of the HTTP interface");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while tasks.try_join_next().is_some() {}
        oldest_first.retain(|conversation| !conversation.task.is_finished());
        if oldest_first.len() >= CONNECTIONS_MAX {
            let stranger = oldest_first.iter().position(|of| !of.known.load(Ordering::Relaxed)).unwrap_or(0);
            if let Some(conversation) = oldest_first.remove(stranger) {
                conversation.task.abort();
            }
        }
        let known = Arc::new(AtomicBool::new(false));
        let conversation = converse(stream, address, Arc::clone(&config), Arc::clone(&known), answer.clone());
        let task = tasks.spawn(bounded(conversation, Arc::clone(&known)));
        oldest_first.push_back(Conversation { task, known });
    }
}

/// Ends a stranger's conversation early, and any in the end.
async fn bounded(conversation: impl Future<Output = ()>, known: Arc<AtomicBool>) {
    let mut conversation = std::pin::pin!(conversation);
    if timeout(STRANGER_MAX, &mut conversation).await.is_err() && known.load(Ordering::Relaxed) {
        let _ = timeout(CONNECTION_MAX, conversation).await;
    }
}

async fn converse<A, F>(
    stream: TcpStream,
    address: SocketAddr,
    config: Arc<ServerConfig>,
    known: Arc<AtomicBool>,
    answer: A,
) where
    A: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let (stream, certificate) = match net::accept(stream, config).await {
        Ok(accepted) => accepted,
        Err(error) => {
            tracing::debug!(%address, %error, "no TLS with a client of the HTTP interface");
            return;
        }
    };
    let certificate = certificate.map(|der| blake3::hash(&der));
    let peer = Peer { address: address.ip(), certificate, known };
    let service = service_fn(move |request| {
        let answered = answer(request, peer.clone());
        async move { Ok::<_, Infallible>(answered.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEAD_LINES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%address, %error, "a connection of the HTTP interface ended");
    }
}

#[cfg(test)]
impl Peer {
    /// One that has just come.
    pub(super) fn stranger(address: &str, certificate: Option<&[u8]>) -> Self {
        let certificate = certificate.map(blake3::hash);
        Self { address: address.parse().unwrap(), certificate, known: Arc::default() }
    }

    /// Whether it has shown who it is.
    pub(super) fn has_shown(&self) -> bool {
        self.known.load(Ordering::Relaxed)
    }
}
