//! The mount daemon's local socket, `RUN/mount.sock`: agents, the stub and the command line ask, [`Daemon`] answers.
//!
//! Only root and the daemon's own user are listened to. What a connection holds ends with the connection, however its
//! process ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use proto::agent::{Step, StepEvent};
use proto::codec;
use proto::daemon::{Attached, DaemonReply, DaemonRequest, StageProgress};
use proto::limits::MESSAGE_BYTES_MAX;
use proto::local_greeting::Greeting;
use proto::message::{Fault, HostRequest, ManagerReply};
use proto::{GenerationRef, Product, TreeId};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use super::check::check;
use super::daemon::Daemon;
use super::status;
use crate::host::blocking;
use crate::net::{Answer, BoxFuture, Handler, LinkLimits, peer_is_trusted, start_with};

/// Progress of a stage is sent at most, and at least, this often: a client that hears nothing gives up.
const PROGRESS_MIN: Duration = Duration::from_millis(100);
const PROGRESS_MAX: Duration = Duration::from_secs(2);
/// A stage that cannot reach the manager tries again after this time.
const STAGE_PAUSE: Duration = Duration::from_secs(1);
/// Accepting that failed is tried again after this time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The manager makes the bundle fast before it answers, on a machine that may be busy.
const PROFILE_DEADLINE: Duration = Duration::from_secs(60);
/// How long `status` waits for a fresh look at the processes, and at the agents, before it shows the last one.
const LOOK_DEADLINE: Duration = Duration::from_millis(200);

/// Accepts connections for ever.
pub(crate) async fn serve(listener: UnixListener, daemon: Arc<Daemon>) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => accept(stream, &daemon, NEXT.fetch_add(1, Ordering::Relaxed)),
            Err(error) => {
                // Out of descriptors, most likely: some will close.
                tracing::warn!(%error, "a local connection could not be accepted");
                daemon.clock().sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn accept(stream: UnixStream, daemon: &Arc<Daemon>, connection: u64) {
    match peer_is_trusted(&stream) {
        Ok(true) => {}
        Ok(false) => return tracing::warn!("a local connection of another user was refused"),
        Err(error) => return tracing::warn!(%error, "a local connection does not say whose it is"),
    }
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid()).and_then(|pid| u32::try_from(pid).ok());
    let serve = Serve { daemon: Arc::clone(daemon), connection, pid };
    let link = start_with(stream, LinkLimits { requests_max: 16, ..LinkLimits::default() }, |_| Arc::new(serve));
    let daemon = Arc::clone(daemon);
    tokio::spawn(async move {
        let reason = link.closed().await;
        tracing::debug!(connection, ?pid, reason, "a local connection ended");
        // Nobody will see it.
        daemon.timeline.end(connection, |_| HashMap::new());
        if daemon.generations.leases.connection_ended(connection) {
            daemon.generations.changed();
        }
    });
}

/// One connection of a command, an agent or a stub, and what its requests are answered out of.
struct Serve {
    daemon: Arc<Daemon>,
    connection: u64,
    pid: Option<u32>,
}

impl Handler for Serve {
    fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
        if Greeting::read(&body).is_some() {
            // Agents of every version are clients here, so nobody is refused for his own.
            return Box::pin(async move { drop(answer.finish(&crate::version::greeting()).await) });
        }
        let (daemon, connection, pid) = (Arc::clone(&self.daemon), self.connection, self.pid);
        Box::pin(async move {
            let request = match codec::decode::<DaemonRequest, MESSAGE_BYTES_MAX>(&body) {
                Ok(request) => request,
                Err(error) => {
                    let reply = DaemonReply::Fault(Fault::BadRequest(error.to_string()));
                    return drop(answer.finish(&reply).await);
                }
            };
            let reply = match request {
                DaemonRequest::Stage { tree, running, lazy } => stage(&daemon, tree, running, lazy, &answer).await,
                DaemonRequest::Check { repair } => check(&daemon, repair, &answer).await,
                other => answer_simple(daemon, other, connection, pid).await,
            };
            let reply = reply.unwrap_or_else(DaemonReply::Fault);
            if let Err(error) = answer.finish(&reply).await {
                tracing::debug!(%error, "a local client is gone");
            }
        })
    }
}

async fn answer_simple(
    daemon: Arc<Daemon>,
    request: DaemonRequest,
    connection: u64,
    pid: Option<u32>,
) -> Result<DaemonReply, Fault> {
    match request {
        DaemonRequest::Status => Ok(DaemonReply::Status(status_text(&daemon).await)),
        DaemonRequest::Newest { product } => newest(&daemon, &product).await,
        DaemonRequest::Attach { generation } => {
            begin(&daemon, &generation, None).await?;
            let resolved = daemon.exports.resolve(&generation).await?;
            blocking(move || daemon.generations.attach(&resolved, &generation)).await.map(DaemonReply::Attached)
        }
        DaemonRequest::Release { generation } => {
            blocking(move || daemon.generations.release(&generation)).await.map(|()| DaemonReply::Done)
        }
        DaemonRequest::Hold { generation } => hold(daemon, generation, None, connection, pid).await,
        DaemonRequest::HoldFor { generation, program } => {
            hold(daemon, generation, Some(program), connection, pid).await
        }
        DaemonRequest::HoldLocal { tree } => {
            blocking(move || daemon.generations.hold_local(&tree, connection, pid)).await.map(DaemonReply::Attached)
        }
        DaemonRequest::Report { event } => {
            report(daemon, event).await?;
            Ok(DaemonReply::Done)
        }
        DaemonRequest::Changed { product: _ } => {
            daemon.relay.look_again();
            daemon.generations.changed();
            Ok(DaemonReply::Done)
        }
        DaemonRequest::Unmount => {
            daemon.unmount();
            Ok(DaemonReply::Done)
        }
        DaemonRequest::Profile { tree, touches } => {
            let request = HostRequest::Profile { tree, touches };
            match daemon.manager.ask(&request, daemon.clock().now() + PROFILE_DEADLINE).await? {
                ManagerReply::Bundle(facts) => Ok(DaemonReply::Bundle(facts)),
                ManagerReply::Done => Ok(DaemonReply::Done),
                _ => Err(Fault::Failed("the manager answered Profile with something else".to_owned())),
            }
        }
        DaemonRequest::TraceBegin if daemon.timeline.begin(connection) => Ok(DaemonReply::Done),
        DaemonRequest::TraceBegin => Err(Fault::Unavailable("another start is being traced on this host".to_owned())),
        DaemonRequest::TraceEnd => blocking(move || trace(&daemon, connection)).await,
        DaemonRequest::Stage { .. } | DaemonRequest::Check { .. } => {
            Err(Fault::BadRequest("this is answered elsewhere".to_owned()))
        }
    }
}

fn trace(daemon: &Daemon, connection: u64) -> Result<DaemonReply, Fault> {
    let traced = daemon.timeline.end(connection, |objects| daemon.data.objects().paths_of(objects));
    let none = || Fault::BadRequest("this connection has begun no trace".to_owned());
    traced.map(DaemonReply::Traced).ok_or_else(none)
}

async fn hold(
    daemon: Arc<Daemon>,
    generation: GenerationRef,
    program: Option<String>,
    connection: u64,
    pid: Option<u32>,
) -> Result<DaemonReply, Fault> {
    begin(&daemon, &generation, program).await?;
    let resolved = daemon.exports.resolve(&generation).await?;
    blocking(move || daemon.generations.hold(&resolved, connection, pid)).await.map(DaemonReply::Attached)
}

async fn begin(daemon: &Arc<Daemon>, generation: &GenerationRef, program: Option<String>) -> Result<(), Fault> {
    let (daemon, generation) = (Arc::clone(daemon), generation.clone());
    blocking(move || {
        daemon.generations.begin(&generation, program.as_deref());
        Ok(())
    })
    .await
}

async fn status_text(daemon: &Arc<Daemon>) -> String {
    let looking = Arc::clone(daemon);
    let look = blocking(move || {
        looking.generations.look_for_users();
        Ok(())
    });
    // A look that takes longer goes on, and shows next time.
    let until = daemon.clock().now() + LOOK_DEADLINE;
    let users = daemon.clock().within(until, look);
    let _ = tokio::join!(users, daemon.clock().within(until, daemon.relay.look()));
    status::document(daemon).to_string()
}

async fn newest(daemon: &Daemon, product: &Product) -> Result<DaemonReply, Fault> {
    // What was exported a moment ago counts too, if the manager can be asked.
    let refreshed = daemon.exports.refresh_soon().await;
    match (daemon.records.newest(product), refreshed) {
        (Ok(known), _) => Ok(DaemonReply::Record(known.signed.clone())),
        (Err(Fault::NotFound(_)), Err(fault)) => Err(Fault::NotFound(format!(
            "this host knows no generation of {product}, and the manager could not be asked: {}",
            fault.reason()
        ))),
        (Err(fault), _) => Err(fault),
    }
}

async fn report(daemon: Arc<Daemon>, event: StepEvent) -> Result<(), Fault> {
    blocking(move || {
        if event.step.ends().is_some() {
            // Who returns comes from what was prepared for it.
            let prepared = if event.step == Step::Returned { event.from } else { Some(event.to) };
            if let Some(tree) = prepared {
                daemon.generations.leases.stage_over(&tree);
            }
            daemon.generations.changed();
        }
        daemon.relay.report(event);
        Ok(())
    })
    .await
}

/// Stages, and goes on trying while the manager is away, as long as the client wants it.
async fn stage(
    daemon: &Arc<Daemon>,
    tree: TreeId,
    running: Option<TreeId>,
    lazy: bool,
    answer: &Answer,
) -> Result<DaemonReply, Fault> {
    // What was exported a moment ago may not have reached this host yet; what is not exported at all is refused here.
    daemon.exports.resolve(&GenerationRef::TreePrefix(tree.to_hex())).await?;
    let cancel = Arc::new(AtomicBool::new(false));
    let (told, progress) = watch::channel(StageProgress { local_bytes: 0, object_bytes: 0 });
    let work = {
        let (daemon, cancel) = (Arc::clone(daemon), Arc::clone(&cancel));
        blocking(move || stage_until_done(&daemon, tree, running, lazy, &cancel, &told))
    };
    tokio::pin!(work);
    let clock = daemon.clock();
    let mut progress_sent = clock.now();
    let mut news = progress.clone();
    loop {
        tokio::select! {
            attached = &mut work => return attached.map(DaemonReply::Attached),
            () = answer.cancelled() => {
                cancel.store(true, Ordering::Relaxed);
                return Err(Fault::Refused("the client no longer wants the stage".to_owned()));
            }
            Ok(()) = news.changed() => {
                clock.sleep(PROGRESS_MIN.saturating_sub(clock.now() - progress_sent)).await;
            }
            () = clock.sleep(PROGRESS_MAX) => {}
        }
        progress_sent = clock.now();
        let now = *news.borrow_and_update();
        if answer.event(&now).await.is_err() {
            cancel.store(true, Ordering::Relaxed);
        }
    }
}

fn stage_until_done(
    daemon: &Daemon,
    tree: TreeId,
    running: Option<TreeId>,
    lazy: bool,
    cancel: &AtomicBool,
    told: &watch::Sender<StageProgress>,
) -> Result<Attached, Fault> {
    loop {
        let staged = daemon.generations.stage(tree, running, lazy, cancel, &mut |now| {
            told.send_replace(now);
        });
        match staged {
            Err(Fault::Unavailable(why)) if !cancel.load(Ordering::Relaxed) => {
                tracing::info!(%tree, why, "staging waits");
                daemon.clock().rest(STAGE_PAUSE);
            }
            Err(fault) => {
                daemon.generations.leases.stage_over(&tree);
                daemon.generations.changed();
                return Err(fault);
            }
            Ok(attached) => return Ok(attached),
        }
    }
}
