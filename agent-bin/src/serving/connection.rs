//! One connection: who it is, and one request after the other.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_core::{Pass, Permits};
use proto::HostName;

use super::newcomers::Newcomer;
use super::request::{self, Answer, Caller, Status};
use super::{Serving, Stream};
use crate::wire::http::{self, Head, HttpFault};
use crate::wire::timed::{Patience, Timed};
use crate::wire::tls::{self, TlsFault};

/// What whoever dials may take.
pub(super) const PATIENCE: Patience =
    Patience { handshake: Duration::from_secs(4), head: Duration::from_secs(10), body: Duration::from_secs(30) };
/// How long, in all, whoever has dialled may take until it has shown that something here is open to it.
const FIRST: Duration = Duration::from_secs(8);
/// How long a connection may wait for its next request.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How often an idle one looks whether a change-over wants its end.
const BEAT: Duration = Duration::from_millis(100);

/// A connection ended before its time.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionFault {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Http(#[from] HttpFault),
    #[error(transparent)]
    Tls(#[from] TlsFault),
}

pub(super) fn serve(
    serving: &Arc<Serving>,
    stream: TcpStream,
    newcomer: Newcomer,
    pass: &Pass,
) -> Result<(), ConnectionFault> {
    let (first, mut newcomer) = (Instant::now() + FIRST, Some(newcomer));
    stream.set_nonblocking(false)?;
    let port = stream.local_addr()?.port();
    let (stream, host) = tls::accept(&serving.state, port, Timed::of(stream, serving.patience)?)?;
    let mut stream = BufReader::with_capacity(64 << 10, stream);
    loop {
        let left = newcomer.as_ref().map(|_| first.saturating_duration_since(Instant::now()));
        if !await_request(&mut stream, left.unwrap_or(IDLE_MAX), pass)? {
            break;
        }
        stream.get_mut().sock.within_head();
        if newcomer.is_some() {
            stream.get_mut().sock.by(first);
        }
        let Some(head) = Head::read(&mut stream)? else { break };
        let until = newcomer.as_ref().map(|_| first);
        let (goes_on, is_let_in) = answer(serving, &mut stream, &head, host.as_ref(), until, pass)?;
        if is_let_in {
            newcomer = None;
        }
        if !goes_on {
            break;
        }
    }
    let stream = stream.get_mut();
    stream.conn.send_close_notify();
    stream.sock.within(BEAT);
    drop(stream.conn.complete_io(&mut stream.sock));
    Ok(())
}

/// Whether another request begins within this time.
fn await_request(stream: &mut Stream, time: Duration, pass: &Pass) -> io::Result<bool> {
    let since = Instant::now();
    while since.elapsed() < time {
        if !stream.buffer().is_empty() {
            return Ok(true);
        }
        if pass.is_wanted_back() {
            return Ok(false);
        }
        stream.get_mut().sock.within(BEAT);
        match stream.fill_buf() {
            Ok(bytes) => return Ok(!bytes.is_empty()),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Answers one request; whether another may follow, and whether it was one that somebody is let in by. Whoever is not has
/// no more time than until `until`, for what else it sends and what it is told, too.
fn answer(
    serving: &Arc<Serving>,
    stream: &mut Stream,
    head: &Head,
    host: Option<&HostName>,
    until: Option<Instant>,
    pass: &Pass,
) -> Result<(bool, bool), ConnectionFault> {
    let (method, target) = head.request()?;
    let bytes = head.body_bytes()?;
    // Anew for each: what the host's administrator has written meanwhile holds.
    let permitted = Permits::read(&serving.state, &serving.run).map_err(|fault| fault.to_string());
    let permitted = permitted.and_then(|permits| permits.serve().map_err(|fault| fault.to_string()));
    let caller = Caller { host, authorization: head.field("authorization") };
    let answered = match permitted {
        Ok(()) => request::answer(serving, &caller, method, target, head, bytes, stream),
        Err(why) => Answer::refused(Status::Forbidden, why),
    };
    // What is left of a body that nobody wanted cannot be told from the next request.
    let (is_read, is_let_in) = (answered.body_is_read(bytes), answered.is_let_in);
    let goes_on = is_read && !head.is_last() && !pass.is_wanted_back();
    let length = answered.bytes().to_string();
    let mut fields = vec![("Content-Length", length.as_str()), ("Content-Type", answered.kind())];
    if answered.status == Status::Unauthorized {
        fields.push(("WWW-Authenticate", "Basic realm=\"repositories\""));
    }
    if !goes_on {
        fields.push(("Connection", "close"));
    }
    let until = until.filter(|_| !is_let_in);
    let out = stream.get_mut();
    out.sock.within_body(answered.bytes());
    until.iter().for_each(|until| out.sock.by(*until));
    http::write_head(out, &format!("HTTP/1.1 {}", answered.status.text()), &fields)?;
    if method != "HEAD" {
        answered.write_body(out)?;
    }
    out.flush()?;
    if !is_read {
        // Whoever still sends would find the connection reset, and lose the answer with it.
        out.sock.within_head();
        until.iter().for_each(|until| out.sock.by(*until));
        drop(io::copy(&mut stream.take(bytes), &mut io::sink()));
    }
    Ok((goes_on, is_let_in))
}
