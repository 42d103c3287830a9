//! One multiplexed connection over any byte stream.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use proto::codec;
use proto::frame::{FrameFault, FrameHeader, FrameKind, HEADER_BYTES};
use proto::limits::{BULK_BYTES_MAX, MESSAGE_BYTES_MAX};
use proto::width;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::{Answer, BoxFuture, NetError};
use crate::sync::lock;

/// Bytes that may wait to be written on one connection before senders wait: enough to fill a fast network's round
/// trip, little enough that a slow peer costs no memory.
const QUEUE_BYTES_MAX: usize = 4 << 20;
/// Messages of one request that wait for its `on` before the connection is no longer read.
const UNREAD_MESSAGES_MAX: usize = 32;
/// Bytes of all requests together that wait for their `on` before the connection is no longer read: what a peer may make
/// this side keep, however many requests are under way.
const UNREAD_BYTES_MAX: usize = 16 << 20;
/// How long a closing connection may take to write what was already answered.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why a connection is over, as its reader found it.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the peer closed it")]
    Closed,
    #[error("the peer closed it within a frame")]
    CutOff,
    #[error("{}", super::tls::explain(.0))]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Frame(#[from] FrameFault),
    #[error("a request of {bytes} bytes; {max} are allowed")]
    RequestTooLong { bytes: usize, max: usize },
    #[error("the peer sent more than {0} requests at once")]
    TooManyRequests(usize),
    #[error("the peer used request number {0} twice")]
    NumberTwice(u64),
    #[error("the peer answered request {0}, which is not open")]
    NotAsked(u64),
}

/// What comes before the response to a request.
#[derive(Debug)]
pub enum Incoming {
    /// An encoded message ([`codec::decode`] with [`MESSAGE_BYTES_MAX`]).
    Event(Vec<u8>),
    /// Raw bytes on the way to the response, in the order in which they were sent.
    Bulk(Vec<u8>),
}

/// What one side allows the other.
#[derive(Debug, Clone, Copy)]
pub struct LinkLimits {
    /// Requests of the peer that may be under way at once; one more ends the connection.
    pub requests_max: usize,
    /// Bytes of one request of the peer.
    pub request_bytes_max: usize,
}

impl Default for LinkLimits {
    fn default() -> Self {
        Self { requests_max: REQUESTS_MAX, request_bytes_max: MESSAGE_BYTES_MAX }
    }
}

/// Requests under way on one connection in one direction; a sender waits before it goes beyond.
pub const REQUESTS_MAX: usize = 256;

/// Answers the peer's requests.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request. Runs as a task of its own; an `answer` that is dropped unfinished becomes
    /// [`NetError::Unanswered`] on the other side.
    fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()>;
}

/// For the side of a connection that takes no requests.
#[derive(Debug, Clone, Copy)]
pub struct RefuseAll;

impl Handler for RefuseAll {
    fn handle(&self, _body: Vec<u8>, _answer: Answer) -> BoxFuture<()> {
        Box::pin(std::future::ready(()))
    }
}

/// A connection. Clones share it. It lives until the peer ends it, it breaks, or [`Link::close`]; dropping every clone
/// does not end it.
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) outgoing: mpsc::UnboundedSender<Outgoing>,
    /// Bytes that may still be queued.
    budget: Arc<Semaphore>,
    /// Requests that may still be sent.
    slots: Arc<Semaphore>,
    /// Bytes that may still come before somebody has looked at those that have.
    unread: Arc<Semaphore>,
    state: Mutex<State>,
    /// The reason, once the connection is over.
    pub(super) closed: watch::Sender<Option<String>>,
    limits: LinkLimits,
}

#[derive(Default)]
pub(super) struct State {
    next: u64,
    /// Our requests without a response yet.
    pending: HashMap<u64, Pending>,
    /// The peer's requests without a response yet.
    pub(super) serving: HashMap<u64, watch::Sender<bool>>,
}

struct Pending {
    /// `None` once nobody waits for the answer.
    deliver: Option<mpsc::Sender<(Delivered, OwnedSemaphorePermit)>>,
    /// Held until the response, also of a cancelled request, so that the peer's limit is never passed.
    _slot: OwnedSemaphorePermit,
}

enum Delivered {
    Before(Incoming),
    Response(Vec<u8>),
}

pub(super) struct Outgoing {
    pub(super) head: Vec<u8>,
    pub(super) body: Vec<u8>,
    pub(super) _budget: Option<OwnedSemaphorePermit>,
}

/// Runs a connection over `stream`, with the usual limits.
pub fn start<S>(stream: S, handler: Arc<dyn Handler>) -> Link
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    start_with(stream, LinkLimits::default(), |_| handler)
}

/// Runs a connection whose handler itself wants to send requests on it.
pub fn start_with<S>(stream: S, limits: LinkLimits, handler: impl FnOnce(&Link) -> Arc<dyn Handler>) -> Link
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (outgoing, queue) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared {
        outgoing,
        budget: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)),
        slots: Arc::new(Semaphore::new(REQUESTS_MAX)),
        unread: Arc::new(Semaphore::new(UNREAD_BYTES_MAX)),
        state: Mutex::default(),
        closed: watch::Sender::new(None),
        limits,
    });
    let link = Link { shared };
    let handler = handler(&link);
    let (reader, writer) = tokio::io::split(stream);
    tokio::spawn(write_all(Arc::clone(&link.shared), writer, queue));
    tokio::spawn(read_until_closed(Arc::clone(&link.shared), reader, handler));
    link
}

impl Link {
    /// Sends a request and waits for its response. `on` gets what comes before, in order, and must not block for long:
    /// the connection is not read meanwhile. Dropping the future tells the peer to stop.
    ///
    /// # Errors
    /// The connection is or gets closed, no response came within `deadline`, or it does not decode.
    pub async fn request<Req: Serialize, Rep: DeserializeOwned>(
        &self,
        request: &Req,
        on: impl FnMut(Incoming),
        deadline: Duration,
    ) -> Result<Rep, NetError> {
        let body = codec::encode(request)?;
        let response = tokio::time::timeout(deadline, self.exchange(body, on));
        let response = response.await.map_err(|_| NetError::Deadline(deadline))??;
        if response.is_empty() {
            return Err(NetError::Unanswered);
        }
        Ok(codec::decode::<_, MESSAGE_BYTES_MAX>(&response)?)
    }

    /// Resolves with the reason when the connection is over.
    pub fn closed(&self) -> impl Future<Output = String> + Send + 'static + use<> {
        let mut closed = self.shared.closed.subscribe();
        async move {
            match closed.wait_for(Option::is_some).await {
                Ok(reason) => reason.clone().unwrap_or_default(),
                Err(_) => String::from("it was dropped"),
            }
        }
    }

    /// The reason, if the connection is over.
    pub fn closed_reason(&self) -> Option<String> {
        self.shared.closed.borrow().clone()
    }

    /// Whether both are the same connection.
    pub fn is_same(&self, other: &Link) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Ends the connection; what was already answered is still written, for a second at most.
    pub fn close(&self, reason: &str) {
        self.shared.end(reason);
    }

    async fn exchange(&self, body: Vec<u8>, mut on: impl FnMut(Incoming)) -> Result<Vec<u8>, NetError> {
        let shared = &self.shared;
        let slot = Arc::clone(&shared.slots).acquire_owned().await.map_err(|_| shared.closed_error())?;
        let (deliver, mut delivered) = mpsc::channel(UNREAD_MESSAGES_MAX);
        let mut wanted = Wanted::register(shared, Pending { deliver: Some(deliver), _slot: slot })?;
        shared.send(FrameKind::Request, wanted.request, &[], body).await?;
        wanted.sent = true;
        while let Some((message, _unread)) = delivered.recv().await {
            match message {
                Delivered::Before(incoming) => on(incoming),
                Delivered::Response(body) => return Ok(body),
            }
        }
        Err(shared.closed_error())
    }
}

/// A request of ours; dropped before its response, it sends `Cancel`.
struct Wanted<'a> {
    shared: &'a Shared,
    request: u64,
    sent: bool,
}

impl<'a> Wanted<'a> {
    fn register(shared: &'a Shared, pending: Pending) -> Result<Self, NetError> {
        let mut state = shared.state();
        if shared.closed.borrow().is_some() {
            return Err(shared.closed_error());
        }
        state.next += 1;
        let request = state.next;
        state.pending.insert(request, pending);
        Ok(Self { shared, request, sent: false })
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if !self.sent {
            state.pending.remove(&self.request);
        } else if let Some(pending) = state.pending.get_mut(&self.request) {
            pending.deliver = None;
            let head = FrameHeader { kind: FrameKind::Cancel, request: self.request, length: 0 }.encode().to_vec();
            // The queue is gone only when the connection is, and then nobody needs to be told.
            let _ = self.shared.outgoing.send(Outgoing { head, body: Vec::new(), _budget: None });
        }
    }
}

impl Shared {
    /// No code panics while it holds this lock, so a poisoned one is as good as any.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) fn closed_error(&self) -> NetError {
        let reason = self.closed.borrow().clone();
        NetError::Closed(reason.unwrap_or_else(|| String::from("it was closed")))
    }

    /// The first reason stays. Waiting requests fail, handlers see their requests as cancelled.
    fn end(&self, reason: &str) {
        let first = self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            closed.get_or_insert_with(|| reason.to_owned());
            first
        });
        if first {
            self.slots.close();
            self.budget.close();
            let mut state = self.state();
            state.pending.clear();
            state.serving.clear();
        }
    }

    pub(super) async fn send(
        &self,
        kind: FrameKind,
        request: u64,
        head: &[u8],
        body: Vec<u8>,
    ) -> Result<(), NetError> {
        let length = head.len() + body.len();
        let max = if kind == FrameKind::Bulk { BULK_BYTES_MAX } else { MESSAGE_BYTES_MAX };
        if length > max {
            return Err(NetError::TooLarge { bytes: length, max });
        }
        let cost = width::count((HEADER_BYTES + length).min(QUEUE_BYTES_MAX));
        let budget = Arc::clone(&self.budget).acquire_many_owned(cost).await.map_err(|_| self.closed_error())?;
        let head = [&FrameHeader { kind, request, length }.encode(), head].concat();
        self.outgoing.send(Outgoing { head, body, _budget: Some(budget) }).map_err(|_| self.closed_error())
    }
}

async fn write_all<W: AsyncWrite>(shared: Arc<Shared>, writer: W, mut queue: mpsc::UnboundedReceiver<Outgoing>) {
    let mut writer = std::pin::pin!(tokio::io::BufWriter::with_capacity(64 << 10, writer));
    let mut closed = shared.closed.subscribe();
    let mut late = shared.closed.subscribe();
    // Never dropped within a frame unless the connection has been over for a while.
    let writing = async {
        loop {
            let frame = tokio::select! {
                biased;
                frame = queue.recv() => frame,
                _ = closed.wait_for(Option::is_some) => None,
            };
            let Some(frame) = frame else { return writer.shutdown().await };
            write_frame(&mut writer, frame).await?;
            while let Ok(frame) = queue.try_recv() {
                write_frame(&mut writer, frame).await?;
            }
            writer.flush().await?;
        }
    };
    let outcome = tokio::select! {
        outcome = writing => outcome,
        () = async {
            let _ = late.wait_for(Option::is_some).await;
            tokio::time::sleep(FAREWELL).await;
        } => Ok(()),
    };
    if let Err(error) = outcome {
        // The peer may have said why before it closed: let the reader find that first.
        let _ = tokio::time::timeout(FAREWELL, late.wait_for(Option::is_some)).await;
        shared.end(&super::tls::explain(&error));
    }
}

async fn write_frame<W: AsyncWrite + Unpin>(writer: &mut W, frame: Outgoing) -> std::io::Result<()> {
    writer.write_all(&frame.head).await?;
    // Its share of the queue is free again once this returns and the frame is dropped.
    writer.write_all(&frame.body).await
}

async fn read_until_closed<R: AsyncRead>(shared: Arc<Shared>, reader: R, handler: Arc<dyn Handler>) {
    let mut closed = shared.closed.subscribe();
    let reader = std::pin::pin!(tokio::io::BufReader::with_capacity(64 << 10, reader));
    tokio::select! {
        ended = read_frames(&shared, reader, &handler) => shared.end(&ended.to_string()),
        _ = closed.wait_for(Option::is_some) => {}
    }
}

/// Reads until the connection is over; returns why.
async fn read_frames<R: AsyncRead + Unpin>(shared: &Arc<Shared>, mut reader: R, handler: &Arc<dyn Handler>) -> Ended {
    loop {
        let (header, body) = match read_frame(&mut reader, &shared.limits).await {
            Ok(frame) => frame,
            Err(ended) => return ended,
        };
        let request = header.request;
        let delivered = match header.kind {
            FrameKind::Request => match serve(shared, request, body, handler) {
                Ok(()) => continue,
                Err(ended) => return ended,
            },
            FrameKind::Cancel => {
                if let Some(serving) = shared.state().serving.get(&request) {
                    serving.send_replace(true);
                }
                continue;
            }
            FrameKind::Response => Delivered::Response(body),
            FrameKind::Event => Delivered::Before(Incoming::Event(body)),
            FrameKind::Bulk => Delivered::Before(Incoming::Bulk(body)),
        };
        let deliver = {
            let mut state = shared.state();
            let pending = match header.kind {
                FrameKind::Response => state.pending.remove(&request).map(|pending| pending.deliver),
                _ => state.pending.get(&request).map(|pending| pending.deliver.clone()),
            };
            match pending {
                Some(deliver) => deliver,
                None => return Ended::NotAsked(request),
            }
        };
        if let Some(deliver) = deliver {
            let cost = width::count(header.length.min(UNREAD_BYTES_MAX));
            let Ok(unread) = Arc::clone(&shared.unread).acquire_many_owned(cost).await else { return Ended::Closed };
            // Fails only when the requester has just gone away.
            let _ = deliver.send((delivered, unread)).await;
        }
    }
}

fn serve(shared: &Arc<Shared>, request: u64, body: Vec<u8>, handler: &Arc<dyn Handler>) -> Result<(), Ended> {
    let (cancel, cancelled) = watch::channel(false);
    {
        let mut state = shared.state();
        if state.serving.len() >= shared.limits.requests_max {
            return Err(Ended::TooManyRequests(shared.limits.requests_max));
        }
        if state.serving.insert(request, cancel).is_some() {
            return Err(Ended::NumberTwice(request));
        }
    }
    let answer = Answer { shared: Arc::clone(shared), request, cancelled, finished: false };
    tokio::spawn(handler.handle(body, answer));
    Ok(())
}

/// One frame, with its body.
async fn read_frame<R: AsyncRead + Unpin>(
    reader: &mut R,
    limits: &LinkLimits,
) -> Result<(FrameHeader, Vec<u8>), Ended> {
    let mut header = [0; HEADER_BYTES];
    let mut have = 0;
    while have < HEADER_BYTES {
        match reader.read(&mut header[have..]).await? {
            0 if have == 0 => return Err(Ended::Closed),
            0 => return Err(Ended::CutOff),
            count => have += count,
        }
    }
    let header = FrameHeader::decode(&header)?.ok_or(Ended::CutOff)?;
    if header.kind == FrameKind::Request && header.length > limits.request_bytes_max {
        return Err(Ended::RequestTooLong { bytes: header.length, max: limits.request_bytes_max });
    }
    // Grows as bytes arrive: a claimed length alone reserves little.
    let mut body = Vec::with_capacity(header.length.min(128 << 10));
    match reader.take(header.length as u64).read_to_end(&mut body).await? {
        count if count == header.length => Ok((header, body)),
        _ => Err(Ended::CutOff),
    }
}
