//! Bodies of requests: taken within their bounds, and what nobody wants is read and forgotten.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::EXPECT;
use tokio::time::timeout;

use super::problem::Problem;

/// Bytes of a body that is a document; a policy or plan is never as long.
const BYTES_MAX: usize = 1 << 20;
/// How long such a body may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// Bytes that are read of a body that nobody wants.
const FORGOTTEN_BYTES_MAX: usize = 16 << 20;
/// How long they may take.
const FORGOTTEN_DEADLINE: Duration = Duration::from_secs(5);

/// The whole body of a request.
pub(super) async fn taken(body: &mut Incoming) -> Result<Bytes, Problem> {
    timeout(DEADLINE, within_bounds(body)).await.unwrap_or_else(|_| Err(Problem::too_slow()))
}

async fn within_bounds(body: &mut Incoming) -> Result<Bytes, Problem> {
    let mut taken = Vec::new();
    if body.size_hint().lower() > BYTES_MAX as u64 {
        return Err(Problem::too_large(BYTES_MAX));
    }
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Err(Problem::bad_request("the body ended before its end")) };
        let piece = frame.into_data().unwrap_or_default();
        if taken.len().saturating_add(piece.len()) > BYTES_MAX {
            return Err(Problem::too_large(BYTES_MAX));
        }
        taken.extend_from_slice(&piece);
    }
    Ok(taken.into())
}

/// Reads what is left of a body whose answer is known, within bounds: whoever is still sending would else find the
/// connection closed and never read the answer (RFC 9112, 9.6). Whoever asked first whether to send it (RFC 9110, 10.1.1)
/// is answered instead.
pub(super) async fn forget(request: &mut Request<Incoming>) {
    if request.headers().contains_key(EXPECT) && request.body().size_hint().exact().is_some() {
        return;
    }
    let body = request.body_mut();
    let rest = async {
        let mut left = FORGOTTEN_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let Some(after) = left.checked_sub(frame.into_data().map_or(0, |piece| piece.len())) else { return };
            left = after;
        }
    };
    // Whoever does not send it in time is answered all the same.
    let _ = timeout(FORGOTTEN_DEADLINE, rest).await;
}
