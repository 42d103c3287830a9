//! Commands that ask this host's mount daemon: `attach`, `release`, `unmount`, `status`.

use std::path::Path;
use std::time::{Duration, Instant};

use agent_core::control::{Client, ControlError};
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use proto::daemon::{Attached, DaemonReply, DaemonRequest};
use proto::{GenerationRef, HostName};
use serde_json::{Value, json};

use super::Done;
use super::out::say;
use crate::config::Dirs;

/// `status` is answered from memory.
const STATUS_SILENCE: Duration = Duration::from_secs(5);
/// Longer than any read may take, so that the daemon's own reason arrives first.
const ATTACH_SILENCE: Duration = Duration::from_secs(180);

/// A worker that was killed is replaced within this time, also on a busy machine.
const REPLACED_WITHIN: Duration = Duration::from_secs(10);
const REPLACED_PAUSE: Duration = Duration::from_millis(20);

/// `attach GENERATION`.
#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    /// product@version, a tree id, or the start of one
    generation: GenerationRef,
}

/// `release GENERATION`.
#[derive(Debug, Args)]
pub(super) struct ReleaseArgs {
    /// product@version, a tree id, or the start of one
    generation: GenerationRef,
}

/// `status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Print one JSON document and nothing else on stdout
    #[arg(long)]
    json: bool,
}

pub(super) fn attach(args: AttachArgs, dirs: &Dirs) -> Result<Done> {
    let attached = attached(request(dirs, &DaemonRequest::Attach { generation: args.generation }, ATTACH_SILENCE)?)?;
    if let Some(pid) = attached.namespace_pid {
        eprintln!(
            "This path is valid inside the mount daemon's namespace, where `manager-fs exec` and `manager-fs launch` \
             run programs; a shell there: nsenter --preserve-credentials -U -m -t {pid}"
        );
    }
    say!("{}", attached.path);
    Ok(Done::Clean)
}

pub(super) fn release(args: ReleaseArgs, dirs: &Dirs) -> Result<Done> {
    done(request(dirs, &DaemonRequest::Release { generation: args.generation }, ATTACH_SILENCE)?)
}

pub(super) fn unmount(dirs: &Dirs) -> Result<Done> {
    let runs =
        || Client::ask::<_, DaemonReply>(&dirs.daemon_socket(), &DaemonRequest::Status, STATUS_SILENCE).is_ok();
    let ran = runs();
    match request(dirs, &DaemonRequest::Unmount, ATTACH_SILENCE) {
        // The daemon may be gone before its answer is on the way: then it has done what was asked.
        Err(_) if ran && !runs() => Ok(Done::Clean),
        answer => done(answer?),
    }
}

pub(super) fn status(args: StatusArgs, dirs: &Dirs) -> Result<Done> {
    let asked = patiently(dirs, || Client::ask(&dirs.daemon_socket(), &DaemonRequest::Status, STATUS_SILENCE));
    let (document, running) = match asked {
        Ok(DaemonReply::Status(text)) => (serde_json::from_str(&text).context("the daemon's answer")?, true),
        Ok(other) => bail!("the mount daemon answered status with {other:?}"),
        Err(error) => {
            let reason = reason(dirs, &error);
            eprintln!("manager-fs: {reason}");
            (without_daemon(dirs, &reason), false)
        }
    };
    if args.json {
        say!("{document:#}");
    } else {
        super::out::print(format_args!("{}", super::status_text::render(&document)));
    }
    Ok(if running { Done::Clean } else { Done::WithProblems })
}

/// The name of the host whose mount daemon runs here.
pub(super) fn host(dirs: &Dirs) -> Result<HostName> {
    let DaemonReply::Status(text) = request(dirs, &DaemonRequest::Status, STATUS_SILENCE)? else {
        bail!("the mount daemon does not say which host this is");
    };
    let document: Value = serde_json::from_str(&text).context("the daemon's answer")?;
    Ok(document["host"].as_str().context("the mount daemon does not say which host this is")?.parse()?)
}

/// What can be said of a host whose mount daemon does not run.
fn without_daemon(dirs: &Dirs, reason: &str) -> Value {
    let identity = crate::host::enroll::Identity::load(&dirs.state);
    let attached = std::fs::read_to_string(dirs.state.join("attached")).unwrap_or_default();
    let attachments = attached.lines().filter_map(|line| line.split_once(' '));
    let attachments: Vec<_> = attachments.map(|(tree, name)| json!({ "tree_id": tree, "name": name })).collect();
    json!({
        "daemon": { "running": false, "reason": reason },
        "host": identity.as_ref().ok().map(|identity| &identity.host),
        "manager": { "address": identity.as_ref().ok().map(|identity| &identity.manager), "connected": false },
        "fuse": { "requests": {} },
        "fetched_bytes": 0,
        "generations": [],
        "attachments": attachments,
        "agents": [],
    })
}

/// Sends one request to the mount daemon.
pub(super) fn request(dirs: &Dirs, request: &DaemonRequest, silence: Duration) -> Result<DaemonReply> {
    let reply = patiently(dirs, || Client::ask(&dirs.daemon_socket(), request, silence));
    reply.map_err(|error| anyhow!("{}", reason(dirs, &error)))
}

/// Asks again while the daemon's worker is being replaced: every request may be repeated, and the next worker is there
/// within moments. That there will be one is known by the holder's lock.
pub(super) fn patiently<T>(dirs: &Dirs, mut ask: impl FnMut() -> Result<T, ControlError>) -> Result<T, ControlError> {
    let until = Instant::now() + REPLACED_WITHIN;
    loop {
        match ask() {
            Err(error) if error.may_retry() && Instant::now() < until && is_held(&dirs.run) => {
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

/// Why the daemon did not answer, and what to do.
pub(super) fn reason(dirs: &Dirs, error: &ControlError) -> String {
    match error {
        ControlError::Unreachable { path, source } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            format!("{path}: {source}; the mount daemon answers root and its own user alone")
        }
        ControlError::Unreachable { .. } => format!(
            "no mount daemon runs for {}: start it with `manager-fs mount` (with the same --run)",
            dirs.run.display()
        ),
        other => format!("asking the mount daemon: {other}"),
    }
}

/// The answer to `Attach` and `Hold`.
pub(super) fn attached(reply: DaemonReply) -> Result<Attached> {
    match reply {
        DaemonReply::Attached(attached) => Ok(attached),
        DaemonReply::Fault(fault) => Err(fault.into()),
        other => bail!("the mount daemon answered with {other:?}"),
    }
}

fn done(reply: DaemonReply) -> Result<Done> {
    match reply {
        DaemonReply::Done => Ok(Done::Clean),
        DaemonReply::Fault(fault) => Err(fault.into()),
        other => bail!("the mount daemon answered with {other:?}"),
    }
}
