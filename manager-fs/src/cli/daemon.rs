//! How commands reach this host's mount daemon: its local socket, one request, its reply.
//!
//! Every wait has an end. The daemon's worker may be replaced at any moment, so a request is sent again while there is a
//! holder; a daemon that gives no sign of life within `--silence` ends the command with the reason.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use agent_core::internal::control::{Client, ControlError};
use anyhow::{Context, Result, anyhow, bail};
use proto::daemon::{Attached, CacheReport, DaemonReply, DaemonRequest, StageProgress};
use proto::limits::PATH_BYTES_MAX;
use proto::local_greeting::Greeting;
use proto::message::Fault;
use proto::trace::Trace;
use proto::{GenerationRef, HostName};
use serde_json::Value;

use super::{Here, interrupt, near, peer, units};
use crate::version;

/// Longer than any read may take, so that the daemon's own reason arrives first.
const ANSWER_WITHIN: Duration = Duration::from_secs(180);
/// A worker that was killed is replaced within this time, also on a busy machine.
const REPLACED_WITHIN: Duration = Duration::from_secs(10);
const REPLACED_PAUSE: Duration = Duration::from_millis(20);
/// The first sign of life is asked for after this time: nearly every command is over by then.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// Whether a process is stopped is looked at when it has not answered for so long.
const STOPPED_AFTER: Duration = Duration::from_millis(700);
/// How long after Ctrl-C a command may still wait, if it has something to take away.
const INTERRUPTED_WITHIN: Duration = Duration::from_millis(100);

/// Sends one request to the mount daemon.
///
/// # Errors
/// Nobody is there, it is silent, it takes longer than any read may, or it refused ([`Fault`] in the text).
pub(super) fn request(here: &Here, request: &DaemonRequest) -> Result<DaemonReply> {
    let order = request.clone();
    let reply = exchange(here, move |socket| Client::ask(socket, &order, ANSWER_WITHIN))?;
    unless_refused(here, request, reply)
}

/// Attaches a generation for as long as the connection lives, which is returned too; for a program, if one was typed.
///
/// # Errors
/// As [`request`].
pub(super) fn hold(here: &Here, generation: &GenerationRef, program: Option<&str>) -> Result<(Client, Attached)> {
    let order = DaemonRequest::Hold { generation: generation.clone() };
    // A program of this host is nothing that the tree has.
    let program = program.filter(|program| !program.starts_with('/') && program.len() <= PATH_BYTES_MAX);
    let of_program =
        program.map(|program| DaemonRequest::HoldFor { generation: generation.clone(), program: program.to_owned() });
    let sent = order.clone();
    let (client, reply) = exchange(here, move |socket| {
        let mut client = Client::connect(socket)?;
        let mut ask = |order| client.request::<_, (), DaemonReply>(order, Some(ANSWER_WITHIN), |()| {});
        let reply = match of_program.as_ref().map(&mut ask).transpose()? {
            // A daemon from before there was this request.
            None | Some(DaemonReply::Fault(Fault::BadRequest(_))) => ask(&sent)?,
            Some(reply) => reply,
        };
        Ok((client, reply))
    })?;
    Ok((client, attached(unless_refused(here, &order, reply)?)?))
}

/// What the daemon notes of a start, for as long as this lives.
pub(super) struct Tracing {
    client: Client,
    begun: Instant,
}

impl Tracing {
    /// Notes from now on.
    ///
    /// # Errors
    /// As [`request`]; or another start is being traced.
    pub(super) fn begin(here: &Here) -> Result<Self> {
        let (client, begun, reply) = exchange(here, |socket| {
            let (mut client, begun) = (Client::connect(socket)?, Instant::now());
            let reply = client.request(&DaemonRequest::TraceBegin, Some(ANSWER_WITHIN), |()| {})?;
            Ok((client, begun, reply))
        })?;
        done(unless_refused(here, &DaemonRequest::TraceBegin, reply)?)?;
        Ok(Self { client, begun })
    }

    /// When it began.
    pub(super) fn begun(&self) -> Instant {
        self.begun
    }

    /// What has been noted.
    ///
    /// # Errors
    /// As [`request`]; or the daemon's worker was replaced meanwhile, and has noted nothing.
    pub(super) fn end(&mut self, here: &Here) -> Result<Trace> {
        let reply = self.client.request(&DaemonRequest::TraceEnd, Some(ANSWER_WITHIN), |()| {});
        let reply = reply.map_err(|error| anyhow!("{}", reason(here, &error)))?;
        match unless_refused(here, &DaemonRequest::TraceEnd, reply)? {
            DaemonReply::Traced(trace) => Ok(trace),
            other => bail!("the mount daemon answered with {other:?}"),
        }
    }
}

/// Has the daemon check its cache; `on` hears how far it is.
///
/// # Errors
/// As [`request`]; or it has stopped telling how far it is.
pub(super) fn check(here: &Here, repair: bool, mut on: impl FnMut(StageProgress)) -> Result<CacheReport> {
    let (order, (tell, told)) = (DaemonRequest::Check { repair }, channel());
    let sent = order.clone();
    let work = move |socket: &Path| {
        let tell = tell.clone();
        let mut client = Client::connect(socket)?;
        client.request::<_, StageProgress, DaemonReply>(&sent, Some(ANSWER_WITHIN), |now| {
            // Nobody need listen.
            let _ = tell.send(now);
        })
    };
    let reply = exchange_while(here, work, || told.try_iter().for_each(&mut on))?;
    match unless_refused(here, &order, reply)? {
        DaemonReply::Checked(report) => Ok(report),
        other => bail!("the mount daemon answered with {other:?}"),
    }
}

/// The daemon's own account of itself, within this time whatever it is doing, and at once if it is stopped.
///
/// # Errors
/// Why there is none, for people.
pub(super) fn status(here: &Here, at_most: Duration) -> Result<Value> {
    let socket = here.dirs.daemon_socket();
    let run = here.dirs.run.clone();
    // A worker that is being replaced is there again in time for an answer.
    let replaced_within = at_most * 3 / 4;
    let asked = on_a_thread(move || {
        patiently(&run, replaced_within, || Client::ask(&socket, &DaemonRequest::Status, at_most))
    });
    let answer = match asked.recv_timeout(at_most.min(STOPPED_AFTER)) {
        // A busy machine is given its time; one that is stopped would not use it.
        Err(RecvTimeoutError::Timeout) if !listener(here).is_some_and(peer::is_stopped) => {
            asked.recv_timeout(at_most.saturating_sub(STOPPED_AFTER))
        }
        answer => answer,
    };
    let silent = || anyhow!("{}", peer::silent("mount daemon", listener(here), at_most));
    match answer {
        Ok(Ok(DaemonReply::Status(text))) => serde_json::from_str(&text).context("the daemon's answer"),
        Ok(Ok(other)) => bail!("the mount daemon answered status with {other:?}"),
        Ok(Err(ControlError::Silent(_))) | Err(_) => Err(silent()),
        Ok(Err(error)) => bail!(reason(here, &error)),
    }
}

/// The name of the host whose mount daemon runs here.
///
/// # Errors
/// It does not run, or does not say.
pub(super) fn host(here: &Here) -> Result<HostName> {
    let document = status(here, here.silence)?;
    Ok(document["host"].as_str().context("the mount daemon does not say which host this is")?.parse()?)
}

/// The answer to `Attach` and `Hold`.
///
/// # Errors
/// It is another one.
pub(super) fn attached(reply: DaemonReply) -> Result<Attached> {
    match reply {
        DaemonReply::Attached(attached) => Ok(attached),
        other => bail!("the mount daemon answered with {other:?}"),
    }
}

/// The answer to what has no other.
///
/// # Errors
/// It is another one.
pub(super) fn done(reply: DaemonReply) -> Result<()> {
    match reply {
        DaemonReply::Done => Ok(()),
        other => bail!("the mount daemon answered with {other:?}"),
    }
}

/// Whether somebody serves the daemon's socket.
pub(super) fn runs(here: &Here) -> bool {
    let socket = here.dirs.daemon_socket();
    let connected = on_a_thread(move || Client::connect(&socket).is_ok());
    // Nobody accepts: there is one that hangs.
    connected.recv_timeout(here.silence).unwrap_or(true)
}

/// Does `ask` on a thread of its own, which may be left behind, and watches the daemon meanwhile.
fn exchange<T: Send + 'static>(
    here: &Here,
    ask: impl Fn(&Path) -> Result<T, ControlError> + Send + 'static,
) -> Result<T> {
    exchange_while(here, ask, || {})
}

/// As [`exchange`]; does something every now and then while it waits.
fn exchange_while<T: Send + 'static>(
    here: &Here,
    ask: impl Fn(&Path) -> Result<T, ControlError> + Send + 'static,
    mut meanwhile: impl FnMut(),
) -> Result<T> {
    let (socket, run) = (here.dirs.daemon_socket(), here.dirs.run.clone());
    let answer = on_a_thread(move || patiently(&run, REPLACED_WITHIN, || ask(&socket)));
    let mut look_at = Instant::now() + FIRST_LOOK.min(here.silence);
    loop {
        match answer.recv_timeout(INTERRUPTED_WITHIN) {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(error)) => bail!(reason(here, &error)),
            Err(RecvTimeoutError::Disconnected) => bail!("asking the mount daemon: the thread that asked has died"),
            Err(RecvTimeoutError::Timeout) => interrupt::check("")?,
        }
        meanwhile();
        if Instant::now() < look_at {
            continue;
        }
        if is_silent(here) {
            // What has come meanwhile counts.
            match answer.try_recv() {
                Ok(Ok(reply)) => return Ok(reply),
                _ => bail!(peer::silent("mount daemon", listener(here), here.silence)),
            }
        }
        look_at = Instant::now() + here.silence / 2;
    }
}

/// Whether the daemon leaves even `Status`, which it answers from memory, without an answer. That it is being replaced is
/// not silence.
fn is_silent(here: &Here) -> bool {
    let (socket, silence) = (here.dirs.daemon_socket(), here.silence);
    let sign = on_a_thread(move || Client::ask::<_, DaemonReply>(&socket, &DaemonRequest::Status, silence));
    matches!(sign.recv_timeout(silence), Ok(Err(ControlError::Silent(_))) | Err(_))
}

/// Runs something that may block for ever; whoever waits for it decides for how long.
fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (tell, told) = channel();
    // Nobody listens any more when it took too long.
    std::thread::spawn(move || drop(tell.send(work())));
    told
}

/// Asks again while the daemon's worker is being replaced: every request may be repeated, and the next worker is there
/// within moments. That there will be one is known by the holder's lock.
fn patiently<T>(
    run: &Path,
    within: Duration,
    mut ask: impl FnMut() -> Result<T, ControlError>,
) -> Result<T, ControlError> {
    let until = Instant::now() + within;
    loop {
        match ask() {
            Err(error) if error.may_retry() && Instant::now() < until && is_held(run) => {
                std::thread::sleep(REPLACED_PAUSE);
            }
            other => return other,
        }
    }
}

/// Whether a holder runs: it has the lock as long as it lives.
fn is_held(run: &Path) -> bool {
    use rustix::fs::{FlockOperation, flock};
    let lock = std::fs::File::open(run.join("mount.lock"));
    lock.is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockShared).is_err())
}

/// The process that listens on the daemon's socket.
fn listener(here: &Here) -> Option<u32> {
    let socket = here.dirs.daemon_socket();
    let connected = on_a_thread(move || peer::of(Client::connect(&socket).ok()?.stream()));
    connected.recv_timeout(Duration::from_millis(100)).ok().flatten()
}

/// Why the daemon did not answer, and what to do.
fn reason(here: &Here, error: &ControlError) -> String {
    match error {
        ControlError::Unreachable { path, source } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            format!("{path}: {source}; the mount daemon answers root and its own user alone")
        }
        ControlError::Unreachable { .. } => format!(
            "no mount daemon runs for {}: start it with `manager-fs mount` (with the same --run)",
            here.dirs.run.display()
        ),
        ControlError::Silent(waited) => {
            format!("the mount daemon has not answered within {}", units::duration(*waited))
        }
        ControlError::Broken(_) => {
            String::from("the mount daemon ended the connection before its answer; its log says why")
        }
        other => match its_version(here) {
            Some(theirs) => other_build(here, &theirs),
            None => format!(
                "the mount daemon's answer cannot be read ({other}): it runs another version than this program, which is \
                 {}; use the same",
                version::VERSION
            ),
        },
    }
}

/// Which version the daemon says that it is. Asked when something was not understood: its messages stay as they are from
/// version to version, so that agents of every version can be its clients.
fn its_version(here: &Here) -> Option<String> {
    let (socket, silence) = (here.dirs.daemon_socket(), here.silence);
    let asked = on_a_thread(move || Client::ask::<_, Greeting>(&socket, &version::greeting(), silence));
    Some(asked.recv_timeout(silence).ok()?.ok()?.version)
}

fn other_build(here: &Here, theirs: &str) -> String {
    peer::other_build("mount daemon", "mount", listener(here), theirs)
}

fn unless_refused(here: &Here, request: &DaemonRequest, reply: DaemonReply) -> Result<DaemonReply> {
    match reply {
        DaemonReply::Fault(fault @ Fault::NotFound(_)) => {
            bail!("{fault}{}", suggestion(here, request))
        }
        DaemonReply::Fault(Fault::BadRequest(text)) => match its_version(here).filter(|v| v != version::VERSION) {
            Some(theirs) => bail!("{text}; {}", other_build(here, &theirs)),
            None => bail!(text),
        },
        DaemonReply::Fault(Fault::Failed(text)) => bail!(text),
        DaemonReply::Fault(fault) => Err(fault.into()),
        reply => Ok(reply),
    }
}

/// A generation of this host that is near to the one that was typed.
fn suggestion(here: &Here, request: &DaemonRequest) -> String {
    let (DaemonRequest::Attach { generation }
    | DaemonRequest::Release { generation }
    | DaemonRequest::Hold { generation }) = request
    else {
        return String::new();
    };
    let known = generations(here);
    near::question(&near::nearest(&generation.to_string(), &known).into_iter().collect::<Vec<_>>())
}

/// The generations that this host knows, by name; none if its daemon does not say.
pub(super) fn generations(here: &Here) -> Vec<String> {
    let document = status(here, here.silence).unwrap_or_default();
    let generations = document["generations"].as_array().into_iter().flatten();
    generations.filter_map(|generation| generation["name"].as_str().map(str::to_owned)).collect()
}
