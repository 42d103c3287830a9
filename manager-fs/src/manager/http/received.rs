//! Bodies of requests: taken within their bounds, kept in a file where they are archives; and what nobody wants is read
//! and forgotten.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::EXPECT;
use tokio::time::timeout;

use super::problem::Problem;
use crate::manager::error::ManagerError;
use crate::manager::store::{Store, Upload};
use crate::manager::worker::command;

/// Bytes of a body that is a document; a policy or plan is never as long.
const BYTES_MAX: usize = 1 << 20;
/// How long such a body may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long nothing may come of an archive.
pub(super) const SILENCE: Duration = Duration::from_secs(30);
/// Bytes of an archive that are written at once.
pub(super) const WRITTEN_AT_ONCE: usize = 1 << 20;
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

/// The whole body of a request, an archive, in a file of the store.
pub(super) async fn kept(body: &mut Incoming, store: &Arc<Store>) -> Result<Upload, Problem> {
    let store = Arc::clone(store);
    let mut upload = command(move || Upload::begin(&store).map_err(ManagerError::from)).await?;
    let mut waiting = Vec::new();
    loop {
        let frame = timeout(SILENCE, body.frame()).await.map_err(|_| Problem::too_slow())?;
        let ended = frame.is_none();
        if let Some(frame) = frame {
            let Ok(frame) = frame else { return Err(Problem::bad_request("the archive ended before its end")) };
            waiting.extend_from_slice(&frame.into_data().unwrap_or_default());
        }
        if ended || waiting.len() >= WRITTEN_AT_ONCE {
            let piece = std::mem::take(&mut waiting);
            upload = command(move || upload.add(&piece).map(|()| upload).map_err(ManagerError::from)).await?;
        }
        if ended && upload.is_empty() {
            return Err(Problem::bad_request("the body, the archive, is empty"));
        }
        if ended {
            return Ok(upload);
        }
    }
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
