//! The three pages that monitoring asks for, by HTTP/1.1: `/metrics`, `/healthz`, `/readyz`.
//!
//! Whoever reaches the address may read; nothing can be changed by it, and nothing that comes in is kept: a request with
//! a body, or one that takes its time, is cut. Nobody can keep others out: whoever comes when all connections are taken
//! gets the place of the oldest, and whoever asks while a page is being made gets the next one together with all others.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use crate::net::BoxFuture;

/// Connections at once; the oldest gives way to one more. A scraper has one, a load balancer some.
const CONNECTIONS_MAX: usize = 32;
/// How long a request's head may take, and how long a connection may be idle.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// How long a connection lives: scrapers come once or twice a minute and find their connection open.
const CONNECTION_MAX: Duration = Duration::from_mins(10);
/// How long making a page may take.
const PAGE_DEADLINE: Duration = Duration::from_secs(5);
/// Pause after a failed accept: descriptors are used up, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// OpenMetrics 1.0, which Prometheus asks for first.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// What is monitored.
pub(crate) trait Monitored: Send + Sync + 'static {
    /// The text of `/metrics`.
    fn page(self: Arc<Self>) -> BoxFuture<String>;

    /// Why this process should not be sent work now; `None` when it should.
    fn not_ready(&self) -> Option<String>;
}

/// The newest page, and when it was begun.
type Pages = Arc<Mutex<Option<(Instant, Bytes)>>>;

/// Answers on `listener` until the task is dropped.
pub(crate) async fn serve(listener: TcpListener, monitored: Arc<dyn Monitored>) {
    let pages = Pages::default();
    let (mut conversations, mut oldest_first) = (JoinSet::new(), VecDeque::<AbortHandle>::new());
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of monitoring");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while conversations.try_join_next().is_some() {}
        oldest_first.retain(|conversation| !conversation.is_finished());
        if oldest_first.len() >= CONNECTIONS_MAX
            && let Some(oldest) = oldest_first.pop_front()
        {
            // It may be one that does not read, or sends its question letter by letter: a health check must not wait for it.
            oldest.abort();
        }
        let conversation = converse(stream, Arc::clone(&monitored), Arc::clone(&pages));
        oldest_first.push_back(conversations.spawn(async move {
            let _ = tokio::time::timeout(CONNECTION_MAX, conversation).await;
        }));
    }
}

/// A page that was begun after it was asked for. They are made one after the other, and each is for all who wait: a
/// thousand scrapers cost what two do.
async fn page(monitored: Arc<dyn Monitored>, pages: &Pages) -> Bytes {
    let asked = Instant::now();
    let mut newest = pages.lock().await;
    if let Some((_, page)) = newest.as_ref().filter(|(begun, _)| *begun >= asked) {
        return page.clone();
    }
    let begun = Instant::now();
    let page = Bytes::from(monitored.page().await);
    *newest = Some((begun, page.clone()));
    page
}

async fn converse(stream: TcpStream, monitored: Arc<dyn Monitored>, pages: Pages) {
    let service = service_fn(move |request| {
        let (monitored, pages) = (Arc::clone(&monitored), Arc::clone(&pages));
        async move { Ok::<_, Infallible>(answer(&request, monitored, &pages).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection of monitoring ended");
    }
}

async fn answer(request: &Request<Incoming>, monitored: Arc<dyn Monitored>, pages: &Pages) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "GET is all that is answered here\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    if !request.body().is_end_stream() {
        return text(StatusCode::BAD_REQUEST, PLAIN, "a request has no body here\n");
    }
    match request.uri().path() {
        "/metrics" => match tokio::time::timeout(PAGE_DEADLINE, page(monitored, pages)).await {
            Ok(page) => text(StatusCode::OK, OPEN_METRICS, page),
            Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, "the numbers were not there within 5 s\n"),
        },
        "/healthz" => text(StatusCode::OK, PLAIN, "ok\n"),
        "/readyz" => match monitored.not_ready() {
            None => text(StatusCode::OK, PLAIN, "ready\n"),
            Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("not ready: {why}\n")),
        },
        _ => text(StatusCode::NOT_FOUND, PLAIN, "there are /metrics, /healthz and /readyz\n"),
    }
}

fn text(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    struct Two(Option<&'static str>);

    impl Monitored for Two {
        fn page(self: Arc<Self>) -> BoxFuture<String> {
            Box::pin(async { "two 2\n".to_owned() })
        }

        fn not_ready(&self) -> Option<String> {
            self.0.map(str::to_owned)
        }
    }

    async fn ask(monitored: Two, request: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(serve(listener, Arc::new(monitored)));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        serving.abort();
        answer
    }

    fn get(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    }

    #[tokio::test]
    async fn three_pages_are_answered_and_nothing_else() {
        for (request, status, body) in [
            (get("/metrics"), "200 OK", "two 2\n"),
            (get("/metrics?a=b"), "200 OK", "two 2\n"),
            (get("/healthz"), "200 OK", "ok\n"),
            (get("/readyz"), "200 OK", "ready\n"),
            (get("/"), "404 Not Found", "there are /metrics, /healthz and /readyz\n"),
            (
                get("/metrics").replace("GET", "DELETE"),
                "405 Method Not Allowed",
                "GET is all that is answered here\n",
            ),
            (
                get("/metrics").replace("\r\n\r\n", "\r\nContent-Length: 3\r\n\r\nabc"),
                "400 Bad Request",
                "a request has no body here\n",
            ),
        ] {
            let answer = ask(Two(None), &request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}{answer}");
            assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{request}{answer}");
        }
        let answer = ask(Two(Some("it ends")), &get("/readyz")).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("not ready: it ends\n"), "{answer}");
    }

    /// A page of many hosts, which takes its time.
    #[derive(Default)]
    struct Large(std::sync::atomic::AtomicUsize);

    impl Monitored for Large {
        fn page(self: Arc<Self>) -> BoxFuture<String> {
            Box::pin(async move {
                self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(200)).await;
                "x".repeat(16 << 20)
            })
        }

        fn not_ready(&self) -> Option<String> {
            None
        }
    }

    #[tokio::test]
    async fn whoever_holds_connections_or_does_not_read_keeps_nobody_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let large = Arc::new(Large::default());
        let serving = tokio::spawn(serve(listener, large.clone()));
        let mut held = Vec::new();
        for number in 0..2 * CONNECTIONS_MAX {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let words = if number % 2 == 0 { get("/metrics") } else { "GET /metrics HTTP/1.1\r\nX: ".to_owned() };
            stream.write_all(words.as_bytes()).await.unwrap();
            held.push(stream);
        }
        for path in ["/healthz", "/metrics"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(get(path).as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            // Less than a peer may take for its head: nobody was waited for.
            let answered = tokio::time::timeout(HEAD_DEADLINE / 2, stream.read_to_end(&mut answer)).await;
            answered.unwrap_or_else(|_| panic!("{path} waits for others")).unwrap();
            assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{path}: {} bytes", answer.len());
        }
        serving.abort();
    }

    #[tokio::test]
    async fn those_who_ask_at_the_same_time_share_a_page_that_was_begun_afterwards() {
        let (large, pages) = (Arc::new(Large::default()), Pages::default());
        let ask = || page(large.clone(), &pages);
        let all = [ask(), ask(), ask(), ask(), ask(), ask(), ask(), ask()];
        let mut all: Vec<_> = all.into_iter().map(Box::pin).collect();
        std::future::poll_fn(|context| {
            all.retain_mut(|asked| asked.as_mut().poll(context).is_pending());
            if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
        let made = || large.0.load(std::sync::atomic::Ordering::Relaxed);
        // The first was begun at once, before the others had asked.
        assert!(made() <= 2, "{} pages for those who asked before the second was begun", made());
        let before = made();
        ask().await;
        assert_eq!(made(), before + 1, "what was made before somebody asked is no answer");
    }

    #[tokio::test]
    async fn a_head_that_is_too_long_or_no_http_is_cut() {
        let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000));
        for request in [long.as_str(), "\0\0\0\0\r\n\r\n"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let serving = tokio::spawn(serve(listener, Arc::new(Two(None))));
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(request.as_bytes()).await;
            let mut answer = Vec::new();
            // It may be reset with what it had not read yet.
            let _ = stream.read_to_end(&mut answer).await;
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
            serving.abort();
        }
    }
}
