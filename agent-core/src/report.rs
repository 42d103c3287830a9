//! Reports to the manager, by way of the mount daemon: each is a file until the daemon has taken it, so that neither a
//! daemon that is being respawned nor a change-over nor a crash loses one.
//!
//! `STATE/agents/<product>/events/`. Stub and agent write to the same directory, and each of them sends what it finds.
//! A report may come twice (sent, and its sender killed before it could remove the file), never not at all.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proto::agent::StepEvent;
use proto::codec;
use proto::daemon::{DaemonReply, DaemonRequest};
use proto::limits::MESSAGE_BYTES_MAX;
use proto::message::Fault;
use rustix::fs::FlockOperation;

use crate::control::{Client, ControlError};
use crate::durable::{self, Durability, FileFault};
use crate::moments::{self, Moment};
use crate::paths::AgentPaths;

const MAGIC: &[u8; 8] = b"MFSEVT\0\x01";
/// How long the daemon may take for one report.
const SILENCE: Duration = Duration::from_secs(10);
/// Between tries while the daemon is away: short at first, since a respawned worker is back in a moment.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Reports held in memory while the disk takes none.
const UNSAVED_MAX: usize = 256;

/// A report has not left: it waits.
#[derive(Debug, thiserror::Error)]
enum Unsent {
    #[error(transparent)]
    File(#[from] FileFault),
    #[error("the mount daemon: {0}")]
    Control(#[from] ControlError),
    #[error("the mount daemon refuses: {0}")]
    Refused(Fault),
    #[error("the stub, or the agent, is sending the one before")]
    Busy,
}

/// Sends reports from a thread of its own.
#[derive(Debug, Clone)]
pub(crate) struct Reporter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    paths: AgentPaths,
    state: Mutex<Sending>,
    wake: Condvar,
    count: AtomicU64,
}

#[derive(Debug, Default)]
struct Sending {
    /// Something is new since the thread last looked.
    news: bool,
    /// The daemon is to look at journals and links again.
    changed: bool,
    paused: bool,
    in_flight: bool,
    /// Reports that the disk did not take: they last as long as this process.
    unsaved: VecDeque<StepEvent>,
    /// What the disk does not give, or not let go of after it was sent.
    stuck: BTreeSet<PathBuf>,
}

impl Reporter {
    /// Begins to send what is there. On a disk that takes nothing reports are kept in memory.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) fn start(paths: &AgentPaths) -> io::Result<Self> {
        if let Err(e) = durable::create_dir(&paths.events()) {
            tracing::warn!("reports cannot be kept on disk: {e}");
        }
        let state = Mutex::new(Sending { news: true, ..Sending::default() });
        let shared = Shared { paths: paths.clone(), state, wake: Condvar::new(), count: AtomicU64::new(0) };
        let reporter = Self(Arc::new(shared));
        let thread = reporter.clone();
        let spawned = std::thread::Builder::new().name("reports".to_owned()).spawn(move || thread.run());
        spawned?;
        Ok(reporter)
    }

    /// Keeps a report, and sends it as soon as that is possible.
    pub(crate) fn report(&self, event: &StepEvent, durability: Durability) {
        let spooled = spool(&self.0.paths, self.0.count.fetch_add(1, Ordering::Relaxed), event, durability);
        let mut state = self.lock();
        if let Err(e) = spooled {
            tracing::warn!(step = ?event.step, "a report cannot be kept on disk: {e}");
            state.unsaved.push_back(event.clone());
            state.unsaved.truncate(UNSAVED_MAX);
        }
        state.news = true;
        self.0.wake.notify_all();
    }

    /// Sends what a program that has ended could not send any more.
    pub(crate) fn take_over(&self) {
        self.lock().news = true;
        self.0.wake.notify_all();
    }

    /// Has the daemon look at journals and links again, when it can be reached.
    pub(crate) fn changed(&self) {
        self.lock().changed = true;
        self.0.wake.notify_all();
    }

    /// Sends nothing more until [`Reporter::resume`]; waits a moment for what is on its way, so that an exec right
    /// after does not make it come twice.
    pub(crate) fn pause(&self) {
        let mut state = self.lock();
        state.paused = true;
        let at_most = Duration::from_millis(20);
        drop(self.0.wake.wait_timeout_while(state, at_most, |s| s.in_flight));
    }

    /// Sends again, after [`Reporter::pause`].
    pub(crate) fn resume(&self) {
        self.lock().paused = false;
        self.0.wake.notify_all();
    }

    /// Waits until everything is sent, at most this long; whether it is. For a program that is about to end.
    pub(crate) fn flush(&self, at_most: Duration) -> bool {
        let wait = |s: &mut Sending| s.news || s.changed || s.in_flight;
        let (_state, result) =
            self.0.wake.wait_timeout_while(self.lock(), at_most, wait).unwrap_or_else(PoisonError::into_inner);
        !result.timed_out()
    }

    fn run(&self) {
        let mut client = None;
        let mut retry = RETRY_MIN;
        loop {
            let (news, changed) = {
                let mut state = self.lock();
                while state.paused || !(state.news || state.changed) {
                    state = self.0.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                state.in_flight = true;
                (std::mem::take(&mut state.news), std::mem::take(&mut state.changed))
            };
            // A change alone sends no report: the other program is at its own, and two of them at once lose the order.
            let sent = if news { self.send_all(&mut client) } else { Ok(()) };
            let sent = sent.and_then(|()| if changed { self.say_changed(&mut client) } else { Ok(()) });
            let mut state = self.lock();
            state.in_flight = false;
            match sent {
                Ok(()) => retry = RETRY_MIN,
                Err(reason) => {
                    tracing::debug!("the mount daemon does not take reports now: {reason}");
                    client = None;
                    state.news |= news;
                    state.changed |= changed;
                }
            }
            self.0.wake.notify_all();
            if (state.news || state.changed) && client.is_none() {
                // Other than the wait above this one must not end by what `report` says, or it would spin.
                drop(state);
                std::thread::sleep(retry);
                retry = (retry * 2).min(RETRY_MAX);
            }
        }
    }

    fn send_all(&self, client: &mut Option<Client>) -> Result<(), Unsent> {
        let waiting = list(&self.0.paths.events())?;
        for path in waiting {
            if self.lock().paused {
                self.lock().news = true;
                return Ok(());
            }
            if self.lock().stuck.contains(&path) {
                continue;
            }
            if let Sent::Stuck = send_one(&self.0.paths, client, &path)? {
                self.lock().stuck.insert(path);
            }
        }
        loop {
            // Taken off only when it is sent; nobody else takes from the front.
            let Some(event) = self.lock().unsaved.front().cloned() else { break };
            ask(&self.0.paths, client, &DaemonRequest::Report { event })?;
            self.lock().unsaved.pop_front();
        }
        Ok(())
    }

    fn say_changed(&self, client: &mut Option<Client>) -> Result<(), Unsent> {
        let product = self.0.paths.product().clone();
        ask(&self.0.paths, client, &DaemonRequest::Changed { product })
    }

    fn lock(&self) -> MutexGuard<'_, Sending> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The system's clock: milliseconds since 1970, 0 where it stands before that.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn spool(paths: &AgentPaths, number: u64, event: &StepEvent, durability: Durability) -> Result<(), FileFault> {
    // Sorted by time, then by writer: the order in which things happened.
    let micros = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let path = paths.events().join(format!("{micros:020}-{:010}-{number:06}", std::process::id()));
    let body = codec::encode(event).map_err(|e| FileFault::io(&path, io::Error::other(e)))?;
    moments::reach(Moment::Report, &path).map_err(|e| FileFault::io(&path, e))?;
    durable::write(&path, &durable::seal(MAGIC, &body), durability)
}

/// What became of a report's file.
enum Sent {
    Gone,
    /// It stays, and is looked at again at the next start.
    Stuck,
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, FileFault> {
    let mut paths = Vec::new();
    if !dir.exists() {
        return Ok(paths);
    }
    for entry in fs::read_dir(dir).map_err(|e| FileFault::io(dir, e))? {
        let entry = entry.map_err(|e| FileFault::io(dir, e))?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

fn send_one(paths: &AgentPaths, client: &mut Option<Client>, path: &Path) -> Result<Sent, Unsent> {
    let Ok(file) = File::open(path) else { return Ok(Sent::Gone) };
    // Stub and agent look at the same directory: the other one is at it, or done with it. What comes after it waits, or it
    // would be told before it.
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(Unsent::Busy),
        _ if !path.exists() => return Ok(Sent::Gone),
        _ => {}
    }
    let event = fs::read(path).map_err(|e| FileFault::io(path, e)).and_then(|bytes| {
        let body = durable::unseal(MAGIC, &bytes, path, "report")?;
        codec::decode::<StepEvent, MESSAGE_BYTES_MAX>(body).map_err(|e| FileFault::Damaged {
            path: path.to_owned(),
            what: "report",
            detail: e.to_string(),
        })
    });
    match event {
        Ok(event) => ask(paths, client, &DaemonRequest::Report { event })?,
        // It may be readable another time; meanwhile it must not stop those behind it.
        Err(e) if e.is_io() => {
            tracing::warn!("a report stays where it is: {e}");
            return Ok(Sent::Stuck);
        }
        // Cut short by a power cut: it can never be sent, and must not stop those behind it.
        Err(e) => tracing::warn!("a report is dropped: {e}"),
    }
    match durable::remove(path, Durability::ProcessDeath) {
        Ok(()) => Ok(Sent::Gone),
        Err(e) => {
            tracing::warn!("a report that was sent cannot be removed, and is sent again at the next start: {e}");
            Ok(Sent::Stuck)
        }
    }
}

fn ask(paths: &AgentPaths, client: &mut Option<Client>, request: &DaemonRequest) -> Result<(), Unsent> {
    let connected = match client.take() {
        Some(client) => client,
        None => Client::connect(&paths.daemon_socket())?,
    };
    let connected = client.insert(connected);
    match connected.request(request, Some(SILENCE), |_: ()| {})? {
        DaemonReply::Fault(fault) => Err(Unsent::Refused(fault)),
        DaemonReply::Done
        | DaemonReply::Status(_)
        | DaemonReply::Record(_)
        | DaemonReply::Attached(_)
        | DaemonReply::Bundle(_)
        | DaemonReply::Checked(_)
        | DaemonReply::Traced(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{read_frame, write_frame};
    use crate::sys::socket;
    use proto::TreeId;
    use proto::agent::{ChangeId, Step};
    use proto::frame::FrameKind;
    use std::sync::mpsc;

    fn event(change: u64) -> StepEvent {
        StepEvent {
            change: ChangeId(change),
            product: "agent".parse().unwrap(),
            from: None,
            to: TreeId::of(b"tree"),
            step: Step::Launched,
            at_unix_ms: 1,
            duration_us: 1,
            detail: String::new(),
        }
    }

    /// Takes reports; every second one is refused the first time.
    fn daemon(paths: &AgentPaths) -> mpsc::Receiver<u64> {
        let listener = socket::replace(&paths.daemon_socket()).unwrap();
        let (sender, receiver) = mpsc::channel();
        let refused = Arc::new(Mutex::new(std::collections::BTreeSet::new()));
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (refused, sender) = (refused.clone(), sender.clone());
                std::thread::spawn(move || serve(stream, &refused, &sender));
            }
        });
        receiver
    }

    fn serve(
        mut stream: std::os::unix::net::UnixStream,
        refused: &Mutex<std::collections::BTreeSet<ChangeId>>,
        taken: &mpsc::Sender<u64>,
    ) {
        while let Ok(Some(frame)) = read_frame(&mut stream) {
            let request = codec::decode::<DaemonRequest, MESSAGE_BYTES_MAX>(&frame.body).unwrap();
            let DaemonRequest::Report { event } = request else { panic!("{request:?}") };
            let reply = if event.change.0 % 2 == 0 && refused.lock().unwrap().insert(event.change) {
                DaemonReply::Fault(proto::message::Fault::Unavailable("no disk".to_owned()))
            } else {
                taken.send(event.change.0).unwrap();
                DaemonReply::Done
            };
            write_frame(&stream, FrameKind::Response, frame.request, &reply).unwrap();
        }
    }

    #[test]
    fn reports_wait_for_the_daemon_and_come_once() {
        let dir = tempfile::tempdir().unwrap();
        let paths = AgentPaths::new(dir.path(), dir.path(), "agent".parse().unwrap());
        durable::create_dir(&paths.events()).unwrap();
        fs::write(paths.events().join("0000-cut-short"), b"MFSEVT").unwrap();
        // As a sector that cannot be read.
        fs::create_dir(paths.events().join("0001-unreadable")).unwrap();
        let first = Reporter::start(&paths).unwrap();
        for change in 1..=4 {
            first.report(&event(change), Durability::ProcessDeath);
        }
        assert!(!first.flush(Duration::from_millis(20)), "nobody has taken them");
        // The stub and the agent look at the same directory.
        let second = Reporter::start(&paths).unwrap();
        let taken = daemon(&paths);
        let next = || taken.recv_timeout(Duration::from_secs(20)).unwrap();
        let mut came: Vec<u64> = (0..4).map(|_| next()).collect();
        came.sort_unstable();
        assert_eq!(came, [1, 2, 3, 4]);
        assert!(first.flush(Duration::from_secs(20)) && second.flush(Duration::from_secs(20)));
        assert_eq!(fs::read_dir(paths.events()).unwrap().count(), 1, "what cannot be read is kept");
        assert!(taken.try_recv().is_err(), "one came twice");
        // Paused: kept, and sent afterwards.
        first.pause();
        first.report(&event(5), Durability::ProcessDeath);
        assert!(taken.recv_timeout(Duration::from_millis(50)).is_err());
        first.resume();
        assert_eq!(next(), 5);
        // A disk that takes nothing: from memory.
        fs::remove_dir_all(paths.events()).unwrap();
        fs::write(paths.events(), b"in the way").unwrap();
        first.report(&event(7), Durability::PowerCut);
        fs::remove_file(paths.events()).unwrap();
        durable::create_dir(&paths.events()).unwrap();
        assert_eq!(next(), 7);
    }
}
