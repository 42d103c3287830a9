//! The command line from afar: a connection that has shown who it is goes on as the one that commands have on the
//! manager's machine (`admin/`), and each of its commands is let in by the role that its token has at that moment.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use proto::message::Fault;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::body::{Body, whole};
use super::caller::Door;
use super::edge::{Edge, TURN_DEADLINE, by_nobody_elses_page};
use super::problem::Problem;
use super::server::Peer;
use crate::manager::admin::afar::{Entered, Gate};
use crate::manager::admin::answer_from_afar;
use crate::manager::whole::Manager;
use crate::net::{BoxFuture, LINK_PATH, LINK_PROTOCOL};

/// How long one lives. Who follows something for longer asks again.
const LINK_MAX: Duration = Duration::from_hours(24);
/// How long somebody who is let in no longer has to read that.
const FAREWELL: Duration = Duration::from_secs(1);

/// Whether a request is for this.
pub(super) fn is_meant(path: &str) -> bool {
    path == LINK_PATH
}

/// Answers the request that begins one; the connection is then no longer HTTP's.
pub(super) async fn answer(
    edge: &Edge,
    request: &mut Request<Incoming>,
    peer: &Peer,
) -> Result<Response<Body>, Problem> {
    let caller = edge.door.caller(&edge.manager.state, request.headers(), peer).await?;
    by_nobody_elses_page(&caller, request.headers())?;
    let said = request.headers().get(UPGRADE).map(HeaderValue::as_bytes);
    if said != Some(LINK_PROTOCOL.as_bytes()) {
        let why = "here commands of manager-fs speak a protocol of their own: programs ask /v1/… (docs/api.md)";
        return Err(Problem::bad_request(why));
    }
    let one_of_few = edge.stream()?;
    let upgraded = hyper::upgrade::on(&mut *request);
    let gate = Arc::new(Known {
        manager: Arc::clone(&edge.manager),
        door: Arc::clone(&edge.door),
        turns: Arc::clone(&edge.turns),
        uploads: Arc::clone(&edge.uploads),
        headers: request.headers().clone(),
        peer: peer.clone(),
        is_over: Arc::default(),
    });
    tokio::spawn(async move {
        let _one_of_few = one_of_few;
        let stream = match upgraded.await {
            Ok(upgraded) => TokioIo::new(upgraded),
            Err(error) => {
                tracing::debug!(%error, "a command from afar went away before it began");
                return;
            }
        };
        let is_over = Arc::clone(&gate.is_over);
        let link = answer_from_afar(stream, &Arc::clone(&gate.manager), gate);
        tokio::select! {
            _ = link.closed() => return,
            () = sleep(LINK_MAX) => {}
            () = is_over.notified() => sleep(FAREWELL).await,
        }
        link.close("it has lasted as long as one may");
    });
    let mut response = Response::new(whole(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(LINK_PROTOCOL));
    Ok(response)
}

/// Whoever has one, as it came.
struct Known {
    manager: Arc<Manager>,
    door: Arc<Door>,
    turns: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    headers: HeaderMap,
    peer: Peer,
    /// It is let in no longer.
    is_over: Arc<Notify>,
}

impl Gate for Known {
    fn enter(&self) -> BoxFuture<Result<Entered, Fault>> {
        let (manager, door, turns) = (Arc::clone(&self.manager), Arc::clone(&self.door), Arc::clone(&self.turns));
        let (headers, peer, is_over) = (self.headers.clone(), self.peer.clone(), Arc::clone(&self.is_over));
        Box::pin(async move {
            let caller = door.caller(&manager.state, &headers, &peer).await.map_err(|problem| {
                is_over.notify_one();
                Fault::Refused(problem.detail)
            })?;
            match timeout(TURN_DEADLINE, turns.acquire_owned()).await {
                Ok(Ok(turn)) => Ok(Entered { name: caller.name.to_string(), role: caller.role, turn }),
                _ => Err(Fault::Unavailable(Problem::busy().detail)),
            }
        })
    }

    fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.uploads).try_acquire_owned().ok()
    }
}
