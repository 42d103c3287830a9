//! The answering side of one request.

use std::sync::Arc;

use proto::codec;
use proto::frame::{FrameHeader, FrameKind};
use proto::limits::MESSAGE_BYTES_MAX;
use serde::Serialize;
use tokio::sync::watch;

use super::NetError;
use super::link::{Outgoing, Shared};

/// One request of the peer, to be answered.
pub struct Answer {
    pub(super) shared: Arc<Shared>,
    pub(super) request: u64,
    pub(super) cancelled: watch::Receiver<bool>,
    pub(super) finished: bool,
}

impl Answer {
    /// Sends a message on the way to the response.
    ///
    /// # Errors
    /// The requester cancelled, or the connection is over: stop working.
    pub async fn event<T: Serialize>(&self, event: &T) -> Result<(), NetError> {
        self.check()?;
        self.shared.send(FrameKind::Event, self.request, &[], codec::encode(event)?).await
    }

    /// Sends raw bytes, `head` first, on the way to the response.
    ///
    /// # Errors
    /// As [`Answer::event`].
    pub async fn bulk(&self, head: &[u8], bytes: Vec<u8>) -> Result<(), NetError> {
        self.check()?;
        self.shared.send(FrameKind::Bulk, self.request, head, bytes).await
    }

    /// Sends the response.
    ///
    /// # Errors
    /// It does not encode, is too large, or the connection is over.
    pub async fn finish<T: Serialize>(mut self, response: &T) -> Result<(), NetError> {
        let body = codec::encode(response)?;
        if body.len() > MESSAGE_BYTES_MAX {
            return Err(NetError::TooLarge { bytes: body.len(), max: MESSAGE_BYTES_MAX });
        }
        self.finished = true;
        // Before the response leaves, or the peer's next request could seem one too many.
        self.shared.state().serving.remove(&self.request);
        self.shared.send(FrameKind::Response, self.request, &[], body).await
    }

    /// Whether the requester still wants the answer.
    pub fn is_cancelled(&self) -> bool {
        *self.cancelled.borrow() || self.cancelled.has_changed().is_err()
    }

    /// Tells elsewhere that the requester no longer wants the answer.
    pub fn cancellation(&self) -> Cancellation {
        Cancellation(self.cancelled.clone())
    }

    /// Resolves when the requester no longer wants the answer.
    pub async fn cancelled(&self) {
        self.cancellation().wait().await;
    }

    fn check(&self) -> Result<(), NetError> {
        if self.shared.closed.borrow().is_some() {
            return Err(self.shared.closed_error());
        }
        if self.is_cancelled() { Err(NetError::Cancelled) } else { Ok(()) }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.finished {
            self.shared.state().serving.remove(&self.request);
            let head = FrameHeader { kind: FrameKind::Response, request: self.request, length: 0 }.encode().to_vec();
            let _ = self.shared.outgoing.send(Outgoing { head, body: Vec::new(), _budget: None });
        }
    }
}

/// Tells that the requester no longer wants the answer ([`Answer::cancellation`]).
#[derive(Clone)]
pub struct Cancellation(watch::Receiver<bool>);

impl Cancellation {
    /// Resolves when the requester cancelled or the connection is over.
    pub async fn wait(mut self) {
        // An error says that the sender is gone: the connection is over, or the request is answered.
        let _ = self.0.wait_for(|cancelled| *cancelled).await;
    }
}
