//! How commands reach the manager: its local socket, or the connection of `remote` that is like it, a greeting, one
//! request, its events and reply.
//!
//! Every wait here has an end. A manager that gives no sign of life within `--silence` ends the command with the reason;
//! one that lives may take its time with long work, and only [`QUICK_WITHIN`] with what is quick.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{anyhow, bail};
use proto::codec;
use proto::limits::MESSAGE_BYTES_MAX;
use proto::local_greeting::Greeting;
use proto::message::Fault;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use crate::manager::admin::{AdminEvent, AdminReply, AdminRequest, Long, Quick};
use crate::net::{self, Incoming, Link, NetError, RefuseAll};
use crate::version;

use super::{Here, Interrupted, near, peer, remote, units};

/// How long a manager that lives may take to answer what needs no more than its control state and some reading.
const QUICK_WITHIN: Duration = Duration::from_secs(120);
/// The first sign of life is asked for after this time: nearly every command is over by then.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// How often a local socket whose queue is full is tried again.
const QUEUE_PAUSE: Duration = Duration::from_millis(50);

/// Whether a manager takes connections on this machine where this command would look for one.
pub(super) fn is_served(here: &Here) -> bool {
    sockets(here).iter().any(|socket| std::os::unix::net::UnixStream::connect(socket).is_ok())
}

/// Asks for something that is quick.
pub(super) fn ask_once(here: &Here, request: &Quick) -> anyhow::Result<AdminReply> {
    let late = format!("the manager lives, but has not answered within {}", units::duration(QUICK_WITHIN));
    exchange(here, request.clone().into(), |_| {}, Some((QUICK_WITHIN, &late)), "")
}

/// Asks for work that takes as long as it takes. `interrupted` is what becomes of it after Ctrl-C, for people.
pub(super) fn ask(
    here: &Here,
    request: &Long,
    interrupted: &str,
    on: impl FnMut(AdminEvent),
) -> anyhow::Result<AdminReply> {
    exchange(here, request.clone().into(), on, None, interrupted)
}

/// The error for a reply of the wrong kind. Both sides have the same messages, so this is a fault of the program.
pub(super) fn unexpected<T>() -> anyhow::Result<T> {
    bail!("the manager answered something else than was asked: please report it, with version {}", version::VERSION)
}

fn exchange(
    here: &Here,
    request: AdminRequest,
    mut on: impl FnMut(AdminEvent),
    at_most: Option<(Duration, &str)>,
    interrupted: &str,
) -> anyhow::Result<AdminReply> {
    let (request, files) = if here.remote.is_meant() { remote::divided(request)? } else { (request, None) };
    let request = &request;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let answered = async {
            let (link, pid) = connect(here).await?;
            greet(&link, pid, here.silence).await?;
            if let Some(files) = &files {
                remote::send(&link, files, &mut on).await?;
            }
            let on = |incoming| {
                if let Incoming::Event(body) = incoming
                    && let Ok(event) = codec::decode::<AdminEvent, MESSAGE_BYTES_MAX>(&body)
                {
                    on(event);
                }
            };
            let reply = tokio::select! {
                // What has arrived counts, also when the clock says that it is late.
                biased;
                reply = link.request(request, on, Duration::MAX) => reply.map_err(|error| broken(&error)),
                () = silence(&link, here.silence) => Err(anyhow!("{}", peer::silent("manager", pid, here.silence))),
                () = sleep_at_most(at_most.map(|(time, _)| time)) => {
                    Err(anyhow!("{}", at_most.map_or("", |(_, why)| why)))
                }
            };
            match reply? {
                AdminReply::Fault(Fault::BadRequest(text) | Fault::Failed(text)) => bail!(text),
                AdminReply::Fault(fault @ Fault::NotFound(_)) => {
                    let suggestion = near::among_what_the_manager_knows(&link, request, here.silence).await;
                    bail!("{fault}{suggestion}")
                }
                AdminReply::Fault(fault) => bail!(fault),
                reply => Ok(reply),
            }
        };
        tokio::select! {
            biased;
            reply = answered => reply,
            _ = interrupt.recv() => Err(Interrupted(interrupted.to_owned()).into()),
        }
    })
}

async fn sleep_at_most(time: Option<Duration>) {
    match time {
        Some(time) => sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Resolves when the manager has given no sign of life for this long. That it works on something long is one: another
/// request on the same connection is answered meanwhile.
async fn silence(link: &Link, at_most: Duration) {
    sleep(FIRST_LOOK.min(at_most)).await;
    loop {
        // Any quick request will do.
        let sign = link.request::<_, AdminReply>(&AdminRequest::from(Quick::Groups), |_| {}, at_most).await;
        match sign {
            Err(NetError::Deadline(_)) => return,
            // The request itself hears of the connection's end, with the reason.
            Err(NetError::Closed(_)) => return std::future::pending().await,
            _ => sleep(at_most / 2).await,
        }
    }
}

/// Finds out whether the manager has the same messages as this program: nothing else can be said before.
async fn greet(link: &Link, pid: Option<u32>, at_most: Duration) -> anyhow::Result<()> {
    let ours = version::greeting();
    match link.request::<_, Greeting>(&ours, |_| {}, at_most).await {
        Ok(theirs) if theirs.messages == ours.messages => Ok(()),
        Ok(theirs) => bail!(peer::other_build("manager", "serve", pid, &theirs.version)),
        Err(NetError::Deadline(_)) => bail!(peer::silent("manager", pid, at_most)),
        Err(error) => Err(broken(&error)),
    }
}

fn broken(error: &NetError) -> anyhow::Error {
    match error {
        NetError::Closed(reason) => {
            anyhow!("the manager ended the connection before its answer ({reason}); its log says why")
        }
        NetError::Unanswered => anyhow!("the manager gave up on this request without an answer; its log says why"),
        error => anyhow!(
            "the manager's answer cannot be read ({error}): it runs another version than this program, which is {}; use \
             the same",
            version::VERSION
        ),
    }
}

/// Where the manager's socket may be: in the store that was named, else in the run directory, else in the default store.
pub(super) fn sockets(here: &Here) -> Vec<PathBuf> {
    let dirs = &here.dirs;
    if dirs.store_was_named {
        vec![dirs.manager_socket_in_store()]
    } else {
        vec![dirs.manager_socket_in_run(), dirs.manager_socket_in_store()]
    }
}

/// The connection, and the process that listens there.
async fn connect(here: &Here) -> anyhow::Result<(Link, Option<u32>)> {
    if here.remote.is_meant() {
        return Ok((here.remote.connect(here.silence).await?, None));
    }
    let mut tried = Vec::new();
    for socket in sockets(here) {
        match connect_in_time(&socket, here.silence).await {
            Ok(stream) => {
                let pid = peer::of(&stream);
                return Ok((net::start(stream, Arc::new(RefuseAll)), pid));
            }
            Err(error) => tried.push(format!("{}: {error}", socket.display())),
        }
    }
    bail!(
        "no manager answers ({}); start one with `manager-fs serve --store {}`, or name its store with --store",
        tried.join("; "),
        here.dirs.store.display()
    )
}

/// A local socket whose queue is full refuses at once (unix(7), EAGAIN): its manager is busy, or stopped.
async fn connect_in_time(socket: &std::path::Path, at_most: Duration) -> std::io::Result<UnixStream> {
    let since = Instant::now();
    loop {
        match timeout(at_most, net::connect_unix(socket)).await {
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::WouldBlock && since.elapsed() < at_most => {
                sleep(QUEUE_PAUSE).await;
            }
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return Err(std::io::Error::other("it takes no connections, its queue is full"));
            }
            Ok(connected) => return connected,
            Err(_) => return Err(std::io::Error::other("it takes no connections")),
        }
    }
}
