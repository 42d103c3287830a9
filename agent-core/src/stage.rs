//! Staging, the agent's side: asks the mount daemon to make a generation ready beside the running one, and looks at
//! its program before anybody relies on it.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use proto::daemon::{Attached, DaemonReply, DaemonRequest, StageProgress};
use proto::message::Fault;
use proto::{TreeId, TreePath};

use crate::control::{Client, ControlError};
use crate::generation::Attachment;
use crate::machine::{StageDone, StageFault};
use crate::paths::AgentPaths;

/// Without a byte more being local for this long, staging has failed. The daemon resumes what it has, so asking again
/// costs little; it may be being respawned, or the manager may be away for a moment.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries.
const RETRY: Duration = Duration::from_millis(200);

/// A staging that can be called off.
#[derive(Debug, Clone, Default)]
pub(crate) struct StageHandle(Arc<Mutex<Called>>);

#[derive(Debug, Default)]
struct Called {
    off: bool,
    connection: Option<UnixStream>,
}

impl StageHandle {
    /// Nobody waits for the result any more.
    pub(crate) fn cancel(&self) {
        let mut called = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        called.off = true;
        if let Some(connection) = called.connection.take() {
            drop(connection.shutdown(Shutdown::Both));
        }
    }

    fn connected(&self, client: &Client) -> bool {
        let mut called = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        called.connection = client.stream().try_clone().ok();
        !called.off
    }

    fn is_off(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).off
    }
}

/// What is to be staged.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) tree: TreeId,
    /// Made whole as well, as what is returned to.
    pub(crate) running: Option<TreeId>,
    pub(crate) lazy: bool,
    pub(crate) entry_point: TreePath,
}

/// Stages, and returns where the tree is.
pub(crate) fn stage(
    paths: &AgentPaths,
    order: &Order,
    handle: &StageHandle,
) -> Result<(StageDone, PathBuf), StageFault> {
    let attached = ask(paths, order, handle).map_err(|e| StageFault::OfTheWorld(e.to_string()))?;
    let path = PathBuf::from(&attached.path);
    let program = Attachment::open(&path).and_then(|tree| tree.program(&order.entry_point));
    match program {
        Ok(_) => {
            let detail = match (order.lazy, order.running) {
                (true, _) => "attached lazily",
                (false, Some(_)) => "every object of both generations is local",
                (false, None) => "every object is local",
            };
            Ok((StageDone { warm_us: attached.warm_us, detail: detail.to_owned() }, path))
        }
        Err(fault) if fault.is_of_the_version() => Err(StageFault::OfTheVersion(fault.to_string())),
        Err(fault) => Err(StageFault::OfTheWorld(fault.to_string())),
    }
}

/// The mount daemon does not make the tree ready.
#[derive(Debug, thiserror::Error)]
enum NotStaged {
    #[error("the mount daemon attached tree {0}")]
    OtherTree(TreeId),
    #[error("{0}")]
    Refused(Fault),
    #[error("the mount daemon answers something else")]
    Unexpected,
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("called off")]
    CalledOff,
    #[error("no progress for {seconds} seconds; last: {last}", seconds = PATIENCE.as_secs())]
    NoProgress { last: String },
}

fn ask(paths: &AgentPaths, order: &Order, handle: &StageHandle) -> Result<Attached, NotStaged> {
    let request = DaemonRequest::Stage { tree: order.tree, running: order.running, lazy: order.lazy };
    let mut alive = Instant::now();
    let mut most = 0;
    loop {
        let mut on_progress = |progress: StageProgress| {
            if progress.local_bytes > most {
                most = progress.local_bytes;
                alive = Instant::now();
            }
        };
        let reason = match once(paths, &request, handle, &mut on_progress) {
            Ok(DaemonReply::Attached(attached)) if attached.tree == order.tree => return Ok(attached),
            Ok(DaemonReply::Attached(other)) => return Err(NotStaged::OtherTree(other.tree)),
            Ok(DaemonReply::Fault(fault @ Fault::Unavailable(_))) => fault.to_string(),
            Ok(DaemonReply::Fault(fault)) => return Err(NotStaged::Refused(fault)),
            Ok(
                DaemonReply::Done
                | DaemonReply::Status(_)
                | DaemonReply::Record(_)
                | DaemonReply::Bundle(_)
                | DaemonReply::Checked(_)
                | DaemonReply::Traced(_),
            ) => return Err(NotStaged::Unexpected),
            Err(e) if e.may_retry() => e.to_string(),
            Err(e) => return Err(e.into()),
        };
        if handle.is_off() {
            return Err(NotStaged::CalledOff);
        }
        if alive.elapsed() > PATIENCE {
            return Err(NotStaged::NoProgress { last: reason });
        }
        std::thread::sleep(RETRY);
    }
}

fn once(
    paths: &AgentPaths,
    request: &DaemonRequest,
    handle: &StageHandle,
    on_progress: &mut dyn FnMut(StageProgress),
) -> Result<DaemonReply, ControlError> {
    let mut client = Client::connect(&paths.daemon_socket())?;
    if !handle.connected(&client) {
        return Err(ControlError::Silent(Duration::ZERO));
    }
    client.request(request, Some(PATIENCE), on_progress)
}
