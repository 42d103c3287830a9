//! Bodies of answers: a document that is whole, or events as they happen (`text/event-stream`).

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Frame};
use tokio::sync::mpsc;

/// What an answer brings.
pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A body that is there.
pub(super) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// A body that arrives piece by piece.
pub(super) fn pieces(received: mpsc::Receiver<Bytes>) -> Body {
    Pieces(received).boxed_unsync()
}

struct Pieces(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_arrive_in_order_and_end_with_whoever_sends_them() {
        let (sender, received) = mpsc::channel(4);
        let mut body = pieces(received);
        for piece in ["a", "b"] {
            sender.send(Bytes::from_static(piece.as_bytes())).await.unwrap();
        }
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first, "a");
        drop(sender);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "b");
    }

    #[tokio::test]
    async fn who_reads_no_more_is_known_to_whoever_sends() {
        let (sender, received) = mpsc::channel::<Bytes>(1);
        let body = pieces(received);
        assert!(!hyper::body::Body::is_end_stream(&body), "nobody knows yet that nothing comes");
        drop(body);
        sender.closed().await;
        assert!(sender.send(Bytes::new()).await.is_err());
    }
}
