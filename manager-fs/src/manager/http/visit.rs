//! One visit of the console from its arrival to its page: who comes, signing in and out, pages, and what forms order.

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue, LOCATION, SET_COOKIE};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};

use super::ask::{Ask, pairs};
use super::body::{Body, whole};
use super::caller::{Caller, cookie};
use super::console::{self, Order, Page};
use super::edge::Edge;
use super::problem::Problem;
use super::received::taken;
use super::route::named;
use super::server::Peer;
use super::sessions::SESSION_COOKIE;
use super::upload;

/// What is shown, and what can be ordered by forms.
pub(super) struct Console {
    pages: Vec<Page>,
    orders: Vec<Order>,
}

impl Default for Console {
    fn default() -> Self {
        Self { pages: console::pages(), orders: console::orders() }
    }
}

impl Console {
    /// Answers whatever is no document.
    pub(super) async fn answer(&self, edge: &Edge, request: &mut Request<Incoming>, peer: &Peer) -> Response<Body> {
        let is_get = matches!(*request.method(), Method::GET | Method::HEAD);
        let visited = match (request.uri().path(), is_get) {
            ("/style.css", true) => Ok(typed(StatusCode::OK, "text/css; charset=utf-8", console::STYLE.to_owned())),
            ("/sign-in", true) => Ok(html(StatusCode::OK, console::sign_in_page(None))),
            ("/sign-in", false) => sign_in(edge, request, peer).await,
            ("/sign-out", false) => sign_out(edge, request, peer).await,
            (console::PUBLISH, false) => upload::publish(edge, request, peer).await.map(|place| to(&place)),
            (_, true) => self.page(edge, request, peer).await,
            (_, false) => self.order(edge, request, peer).await,
        };
        visited.unwrap_or_else(|problem| match problem.status {
            401 => to("/sign-in"),
            status => {
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                html(status, console::fault_page(&problem))
            }
        })
    }

    async fn page(&self, edge: &Edge, request: &Request<Incoming>, peer: &Peer) -> Result<Response<Body>, Problem> {
        let caller = edge.door.caller(&edge.manager.state, request.headers(), peer).await?;
        let path = request.uri().path();
        let found = self.pages.iter().find_map(|page| Some((page, named(page.path, path)?)));
        let (page, path_names) = found.ok_or_else(|| Problem::not_found("there is no such page"))?;
        if caller.role < page.role {
            return Err(Problem::forbidden(page.role, caller.role));
        }
        let query = pairs(request.uri().query().unwrap_or_default())?;
        let ask = Ask { path: path_names, query, body: Default::default(), role: caller.role };
        let replies = edge.ask((page.ask)(&ask)?, caller.role).await?;
        let shown = (page.show)(&caller, &ask, replies)?;
        Ok(html(StatusCode::OK, console::page(&caller, path, &shown)))
    }

    async fn order(
        &self,
        edge: &Edge,
        request: &mut Request<Incoming>,
        peer: &Peer,
    ) -> Result<Response<Body>, Problem> {
        let path = request.uri().path().to_owned();
        let (caller, _) = formed(edge, request, peer).await?;
        let found = self.orders.iter().find_map(|order| Some((order, named(order.path, &path)?)));
        let (order, path_names) = found.ok_or_else(|| Problem::not_found("nothing can be ordered there"))?;
        if caller.role < order.role {
            return Err(Problem::forbidden(order.role, caller.role));
        }
        let (name, role) = (caller.name.as_str(), caller.role);
        tracing::info!(by = name, %role, path, "ordered at the console");
        let ask = Ask { path: path_names, query: Vec::new(), body: Default::default(), role };
        edge.ask((order.ask)(&ask)?, role).await?;
        Ok(to(&(order.then)(&ask)?))
    }
}

/// Who sends a form that was made for them, and what it has.
async fn formed(
    edge: &Edge,
    request: &mut Request<Incoming>,
    peer: &Peer,
) -> Result<(Caller, Vec<(String, String)>), Problem> {
    let caller = edge.door.caller(&edge.manager.state, request.headers(), peer).await?;
    let form = form(request).await?;
    let sent = form.iter().find(|(name, _)| name == "form_key").map(|(_, key)| key.as_str());
    caller.must_have_sent(sent)?;
    Ok((caller, form))
}

async fn form(request: &mut Request<Incoming>) -> Result<Vec<(String, String)>, Problem> {
    let body = taken(request.body_mut()).await?;
    pairs(std::str::from_utf8(&body).map_err(|_| Problem::bad_request("the form is no text"))?)
}

async fn sign_in(edge: &Edge, request: &mut Request<Incoming>, peer: &Peer) -> Result<Response<Body>, Problem> {
    // Another site's page signs nobody in with a token of its own, and tries none at the cost of this address.
    if is_from_elsewhere(request.headers()) {
        return Err(Problem::forged());
    }
    let before = cookie(request.headers(), SESSION_COOKIE).map(str::to_owned);
    let form = form(request).await?;
    let token = form.iter().find(|(name, _)| name == "token").map_or("", |(_, token)| token);
    let (caller, credential) = match edge.door.bearer(&edge.manager.state, token, peer).await {
        Ok(known) => known,
        Err(problem) => {
            let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::UNAUTHORIZED);
            return Ok(html(status, console::sign_in_page(Some(&problem.detail))));
        }
    };
    let (name, role) = (caller.name.as_str(), caller.role);
    tracing::info!(by = name, %role, "signed in at the console");
    let begun = edge.door.sessions.begin(caller.name.clone(), credential);
    let session = begun.map_err(crate::manager::ManagerError::from)?;
    // Whoever was signed in here before is no longer.
    if let Some(before) = before {
        edge.door.sessions.end(&before);
    }
    Ok(with_cookie(to("/"), &session, ""))
}

async fn sign_out(edge: &Edge, request: &mut Request<Incoming>, peer: &Peer) -> Result<Response<Body>, Problem> {
    let session = cookie(request.headers(), SESSION_COOKIE).map(str::to_owned);
    formed(edge, request, peer).await?;
    if let Some(session) = session {
        edge.door.sessions.end(&session);
    }
    Ok(with_cookie(to("/sign-in"), "", "; Max-Age=0"))
}

/// Whether a browser says that a page of another site made it ask.
fn is_from_elsewhere(headers: &HeaderMap) -> bool {
    headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none")
}

/// A cookie that no script reads and no other site sends.
fn with_cookie(mut response: Response<Body>, session: &str, ends: &str) -> Response<Body> {
    let cookie = format!("{SESSION_COOKIE}={session}; Path=/; Secure; HttpOnly; SameSite=Strict{ends}");
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        response.headers_mut().insert(SET_COOKIE, cookie);
    }
    response
}

fn typed(status: StatusCode, kind: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(whole(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn html(status: StatusCode, page: maud::Markup) -> Response<Body> {
    typed(status, "text/html; charset=utf-8", page.into_string())
}

fn to(place: &str) -> Response<Body> {
    let mut response = typed(StatusCode::SEE_OTHER, "text/plain; charset=utf-8", String::new());
    if let Ok(place) = HeaderValue::from_str(place) {
        response.headers_mut().insert(LOCATION, place);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_of_another_site_is_known_as_one() {
        let of = |site: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(site) = site {
                headers.insert("sec-fetch-site", site.parse().unwrap());
            }
            is_from_elsewhere(&headers)
        };
        assert!(of(Some("cross-site")) && of(Some("same-site")) && of(Some("")));
        assert!(!of(Some("same-origin")) && !of(Some("none")) && !of(None), "programs say nothing");
    }

    #[test]
    fn a_cookie_is_for_this_host_alone_and_one_that_ends_is_empty() {
        let of = |response: Response<Body>| response.headers()[SET_COOKIE].to_str().unwrap().to_owned();
        let begun = of(with_cookie(to("/"), "5ec2e7", ""));
        assert!(begun.starts_with("__Host-manager-fs=5ec2e7; Path=/; "), "{begun}");
        for word in ["Secure", "HttpOnly", "SameSite=Strict"] {
            assert!(begun.split("; ").any(|part| part == word), "{begun}");
        }
        assert!(!begun.contains("Domain") && !begun.contains("Max-Age"), "{begun}");
        let ended = of(with_cookie(to("/sign-in"), "", "; Max-Age=0"));
        assert!(ended.starts_with("__Host-manager-fs=; ") && ended.ends_with("; Max-Age=0"), "{ended}");
    }

    #[test]
    fn a_place_with_a_line_end_is_no_header() {
        assert_eq!(to("/rollouts/7").headers()[LOCATION], "/rollouts/7");
        let hostile = to("/\r\nset-cookie: a=b");
        assert!(hostile.status() == 303 && hostile.headers().get(LOCATION).is_none());
    }
}
