//! One request from its arrival to its answer.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::ask::{Ask, pairs};
use super::body::{Body, whole};
use super::caller::{By, Caller, Door};
use super::problem::Problem;
use super::reads::StatusDocument;
use super::received::{kept, taken};
use super::route::{self, Replies, Route, Work};
use super::server::Peer;
use super::{members, openapi, orders, reads, repositories, storage, stream};
use crate::manager::admin::afar::of_quick;
use crate::manager::admin::{self, Long, PublishOrder, Quick};
use crate::manager::control::api_tokens::Role;
use crate::manager::documents;
use crate::manager::whole::Manager;

/// Requests that are worked on at once; others wait for their turn.
const AT_ONCE: usize = 16;
/// How long they wait.
pub(super) const TURN_DEADLINE: Duration = Duration::from_secs(10);
/// Streams at once.
const STREAMS_MAX: usize = 64;
/// Archives that arrive at once.
const UPLOADS_MAX: usize = 4;

const JSON: &str = "application/json";

/// What can be asked.
pub(super) fn routes() -> Vec<Route> {
    let mut all = reads::routes();
    all.extend(members::routes());
    all.extend(storage::routes());
    all.extend(repositories::routes());
    all.extend(orders::routes());
    all
}

/// What answers.
pub(super) struct Edge {
    pub(super) manager: Arc<Manager>,
    pub(super) door: Arc<Door>,
    routes: Vec<Route>,
    pub(super) turns: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    pub(super) uploads: Arc<Semaphore>,
}

impl Edge {
    pub(super) fn new(manager: Arc<Manager>) -> Self {
        Self {
            manager,
            door: Arc::default(),
            routes: routes(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            uploads: Arc::new(Semaphore::new(UPLOADS_MAX)),
        }
    }

    /// Answers with a document.
    pub(super) async fn answer(&self, request: &mut Request<Incoming>, peer: &Peer) -> Response<Body> {
        match request.uri().path() {
            "/healthz" => plain(StatusCode::OK, "ok\n"),
            _ => self.of_api(request, peer).await.unwrap_or_else(|problem| refused(&problem)),
        }
    }

    async fn of_api(&self, request: &mut Request<Incoming>, peer: &Peer) -> Result<Response<Body>, Problem> {
        let caller = self.door.caller(&self.manager.state, request.headers(), peer).await?;
        let (route, named) = route::find(&self.routes, request.method(), request.uri().path())?;
        if caller.role < route.role {
            return Err(Problem::forbidden(route.role, caller.role));
        }
        let query = pairs(request.uri().query().unwrap_or_default())?;
        route.allows(&query)?;
        if *request.method() != Method::GET && *request.method() != Method::HEAD {
            by_nobody_elses_page(&caller, request.headers())?;
            let (name, path) = (caller.name.as_str(), request.uri().path());
            tracing::info!(by = name, role = %caller.role, method = %request.method(), path, "ordered by HTTP");
        }
        let mut ask = Ask { path: named, query, body: Bytes::new(), role: caller.role };
        if let Work::Publish(to_order) = &route.work {
            return self.publish(to_order(&ask)?, request.body_mut(), caller.role).await;
        }
        ask.body = if route.body.is_some() {
            taken(request.body_mut()).await?
        } else if request.body().is_end_stream() {
            Bytes::new()
        } else {
            return Err(Problem::bad_request("this takes no body"));
        };
        self.work(route, &ask, &caller).await
    }

    async fn work(&self, route: &Route, ask: &Ask, caller: &Caller) -> Result<Response<Body>, Problem> {
        match &route.work {
            Work::Quick(to_quick, to_document) => {
                let replies = self.ask(to_quick(ask)?, ask.role).await?;
                Ok(document(&to_document(ask, replies)?))
            }
            Work::Long(to_long) => {
                let long = to_long(ask)?;
                Ok(events(stream::begin(&self.manager, long, ask.role, self.stream()?)))
            }
            Work::Publish(_) => Err(Problem::unexpected()),
            Work::Description => Ok(document(&openapi::description(&self.routes))),
            Work::Status => Ok(document(&documents::json(&self.status(caller)))),
        }
    }

    /// Asks the manager one thing after the other, for somebody of this role.
    pub(super) async fn ask(&self, all: Vec<Quick>, role: Role) -> Result<Replies, Problem> {
        // A route says who may ask it; what is asked by it says so once more.
        if let Some(needed) = all.iter().map(of_quick).find(|needed| *needed > role) {
            return Err(Problem::forbidden(needed, role));
        }
        let Ok(Ok(_turn)) = timeout(TURN_DEADLINE, self.turns.acquire()).await else { return Err(Problem::busy()) };
        let mut replies = Vec::with_capacity(all.len());
        for quick in all {
            replies.push(admin::at_once(&self.manager, quick).await?);
        }
        Ok(Replies::new(replies))
    }

    /// Takes an archive in; what it was told first is known to be right.
    async fn publish(&self, order: PublishOrder, body: &mut Incoming, role: Role) -> Result<Response<Body>, Problem> {
        let (stream, one_of_few) = (self.stream()?, self.uploads.try_acquire().map_err(|_| Problem::busy())?);
        let upload = kept(body, &self.manager.store).await?;
        drop(one_of_few);
        let source = PublishOrder::source_bytes(upload.path());
        let work = Long::Publish(PublishOrder { source, ..order });
        Ok(events(stream::begin(&self.manager, work, role, (stream, upload))))
    }

    pub(super) fn stream(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.streams).try_acquire_owned().map_err(|_| Problem::busy())
    }

    fn status(&self, caller: &Caller) -> StatusDocument {
        StatusDocument {
            version: crate::version::VERSION.to_owned(),
            name: caller.name.to_string(),
            role: caller.role.to_string(),
            address: self.manager.address().map(|address| address.to_string()),
            notices: self.manager.notices(),
        }
    }
}

/// By what a browser sends by itself nobody orders anything: another site could make it do so.
pub(super) fn by_nobody_elses_page(caller: &Caller, headers: &HeaderMap) -> Result<(), Problem> {
    let by_a_page = ["origin", "sec-fetch-site"].iter().any(|name| headers.contains_key(*name));
    if caller.by == By::Session || (caller.by == By::Certificate && by_a_page) {
        return Err(Problem::forged());
    }
    Ok(())
}

fn with_type(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    with_type(status, "text/plain; charset=utf-8", whole(text))
}

fn document(document: &Value) -> Response<Body> {
    with_type(StatusCode::OK, JSON, whole(document.to_string()))
}

fn events(body: Body) -> Response<Body> {
    with_type(StatusCode::OK, "text/event-stream", body)
}

pub(super) fn refused(problem: &Problem) -> Response<Body> {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = whole(documents::json(problem).to_string());
    let mut response = with_type(status, "application/problem+json", body);
    if let Some(allow) = problem.allow.as_ref().and_then(|allow| HeaderValue::from_str(allow).ok()) {
        response.headers_mut().insert(ALLOW, allow);
    }
    if let Some(seconds) = problem.retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(hyper::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// What every answer bears: nothing is kept by anybody on the way, and nothing is what it does not say it is.
pub(super) fn harden(headers: &mut HeaderMap) {
    const ALL: [(HeaderName, &str); 5] = [
        (CACHE_CONTROL, "no-store"),
        (hyper::header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (hyper::header::X_FRAME_OPTIONS, "DENY"),
        (hyper::header::REFERRER_POLICY, "no-referrer"),
        (
            hyper::header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; \
             frame-ancestors 'none'",
        ),
    ];
    for (name, value) in ALL {
        headers.insert(name, HeaderValue::from_static(value));
    }
}
