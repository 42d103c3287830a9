//! The operations API, `RUN/agents/<product>.sock`: a thread that accepts, one for each connection, one more for a
//! connection that asks for something which may wait for a disk, one for each `Run`.
//!
//! The listening socket is the stub's; it is open before the first program and after the last. While nobody accepts
//! (from the end of a drain until the new program serves) connections wait in its backlog, so none is refused.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use proto::agent::{AgentReply, AgentRequest, AgentStatus, JobId, JobOrigin, Operation};
use proto::codec;
use proto::frame::FrameKind;
use proto::limits::MESSAGE_BYTES_MAX;
use proto::message::Fault;
use rustix::event::{EventfdFlags, PollFd, PollFlags};

use crate::control::{ControlError, read_frame, write_frame};
use crate::jobs::{Job, News};
use crate::sys::socket;

/// Connections at once; further ones wait in the backlog.
const CONNECTIONS_MAX: usize = 256;
/// Requests under way on one connection.
const REQUESTS_MAX: usize = 128;
/// Between two progress events of one job.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// How long a peer may take to accept an answer's bytes.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
/// How long requests under way may take to be answered before the exec cuts their connections.
const QUIESCE_PATIENCE: Duration = Duration::from_millis(50);

/// What the API is served from.
pub(crate) trait Service: Send + Sync + 'static {
    /// Never waits: for no disk, and for nothing that waits for one.
    fn status(&self) -> AgentStatus;
    /// Messages A, B and C, in the order in which they come.
    fn message(&self, request: AgentRequest) -> Result<(), Fault>;
    /// Begins or joins a job.
    fn run(&self, job: JobId, origin: JobOrigin, operation: Operation) -> Result<Arc<Job>, Fault>;
    fn cancel(&self, job: JobId) -> Result<(), Fault>;
}

/// The running server.
pub(crate) struct Server {
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    listener: UnixListener,
    service: Arc<dyn Service>,
    stop: OwnedFd,
    stopping: AtomicBool,
    open: Mutex<Open>,
    fewer: Condvar,
}

#[derive(Default)]
struct Open {
    connections: BTreeMap<u64, UnixStream>,
    count: u64,
}

impl Server {
    pub(crate) fn start(listener: UnixListener, service: Arc<dyn Service>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared {
            listener,
            service,
            stop,
            stopping: AtomicBool::new(false),
            open: Mutex::default(),
            fewer: Condvar::new(),
        });
        let mut server = Self { shared, accepting: None };
        server.resume()?;
        Ok(server)
    }

    /// The listening socket, which crosses the exec.
    pub(crate) fn listener(&self) -> &UnixListener {
        &self.shared.listener
    }

    /// Accepts nothing more, lets requests under way be answered, and closes what is open.
    pub(crate) fn quiesce(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        match rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes()) {
            Err(e) if e != rustix::io::Errno::AGAIN => lost(&e.into()),
            Ok(_) | Err(_) => {}
        }
        self.shared.fewer.notify_all();
        if let Some(thread) = self.accepting.take() {
            drop(thread.join());
        }
        let open = self.shared.lock();
        for stream in open.connections.values() {
            // What the peer has sent already is still read and answered; then the connection's thread sees its end.
            drop(stream.shutdown(Shutdown::Read));
        }
        let waiting = self.shared.fewer.wait_timeout_while(open, QUIESCE_PATIENCE, |o| !o.connections.is_empty());
        let (open, _) = waiting.unwrap_or_else(PoisonError::into_inner);
        for stream in open.connections.values() {
            drop(stream.shutdown(Shutdown::Both));
        }
    }

    /// Accepts connections again, after [`Server::quiesce`].
    pub(crate) fn resume(&mut self) -> io::Result<()> {
        let mut counter = [0; 8];
        let _ = rustix::io::read(&self.shared.stop, &mut counter);
        self.shared.stopping.store(false, Ordering::Release);
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new().name("operations".to_owned());
        self.accepting = Some(thread.spawn(move || shared.accept())?);
        Ok(())
    }
}

impl Shared {
    fn accept(self: &Arc<Self>) {
        while !self.stopping.load(Ordering::Acquire) {
            let mut fds = [PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
            if rustix::event::poll(&mut fds, None).is_err() || self.stopping.load(Ordering::Acquire) {
                continue;
            }
            if fds.iter().any(|fd| fd.revents().contains(PollFlags::NVAL)) {
                lost(&rustix::io::Errno::BADF.into());
            }
            match self.listener.accept() {
                Ok((stream, _)) => self.admit(stream),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::EBADF | libc::ENOTSOCK)) => lost(&e),
                Err(e) => {
                    // Out of descriptors: those who wait are served when others have gone.
                    tracing::warn!("cannot accept a connection: {e}");
                    std::thread::sleep(PROGRESS_EVERY);
                }
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: UnixStream) {
        let allowed = socket::peer(stream.as_fd()).is_ok_and(|peer| peer.is_allowed());
        let (Ok(copy), true) = (stream.try_clone(), allowed) else { return };
        let mut open = self.lock();
        open.count += 1;
        let number = open.count;
        open.connections.insert(number, copy);
        drop(open);
        let shared = self.clone();
        let thread = std::thread::Builder::new().name(format!("connection {number}"));
        let spawned = thread.spawn(move || {
            // Out of descriptors: the connection is closed, and the peer asks again.
            if let Ok(connection) = Connection::new(shared.clone(), &stream) {
                if let Err(e) = connection.serve(&stream) {
                    tracing::debug!("a connection of the operations API ended: {e}");
                }
                connection.wait_for_answers();
            }
            shared.lock().connections.remove(&number);
            shared.fewer.notify_all();
        });
        let mut open = self.lock();
        if spawned.is_err() {
            open.connections.remove(&number);
        }
        let full = |o: &mut Open| o.connections.len() >= CONNECTIONS_MAX && !self.stopping.load(Ordering::Acquire);
        drop(self.fewer.wait_while(open, full));
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody in this process has closed what is not his own: nobody could ever ask it for anything again, and it could not
/// become another version. The stub, which has all of it, starts the same version anew; what is written here is the
/// evidence that it keeps.
pub(crate) fn lost(why: &io::Error) -> ! {
    eprintln!("agent-core: the program has closed descriptors of this library ({why}); it cannot go on");
    std::process::abort()
}

struct Connection {
    shared: Arc<Shared>,
    answers: Arc<Answers>,
}

/// What may wait for a disk, or `None` for the cancel of such a request: done by a thread of its own, one after the other.
type Waiting = (u64, Option<AgentRequest>);

/// The writing half, shared by the threads that answer.
struct Answers {
    writer: Mutex<UnixStream>,
    running: Mutex<BTreeMap<u64, Arc<AtomicBool>>>,
    fewer: Condvar,
}

impl Connection {
    fn new(shared: Arc<Shared>, stream: &UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(WRITE_PATIENCE))?;
        let writer = Mutex::new(stream.try_clone()?);
        let answers = Answers { writer, running: Mutex::default(), fewer: Condvar::new() };
        Ok(Self { shared, answers: Arc::new(answers) })
    }

    /// Until the peer has closed its side, or broke the rules. Every request that was read has been handled then.
    fn serve(&self, mut reader: &UnixStream) -> Result<(), ControlError> {
        std::thread::scope(|scope| {
            let mut waiting: Option<SyncSender<Waiting>> = None;
            while let Some(frame) = read_frame(&mut reader)? {
                match frame.kind {
                    FrameKind::Request => {
                        let request = codec::decode::<AgentRequest, MESSAGE_BYTES_MAX>(&frame.body);
                        let Some(request) = self.answer_now(frame.request, request)? else { continue };
                        let sender = match &waiting {
                            Some(sender) => sender,
                            None => {
                                // Full only while a peer sends messages faster than the disk takes them.
                                let (sender, receiver) = sync_channel::<Waiting>(REQUESTS_MAX);
                                let thread = std::thread::Builder::new().name("requests".to_owned());
                                let work = move || self.handle_all(&receiver);
                                thread.spawn_scoped(scope, work).map_err(ControlError::Broken)?;
                                waiting.insert(sender)
                            }
                        };
                        if sender.send((frame.request, Some(request))).is_err() {
                            return Ok(());
                        }
                    }
                    FrameKind::Cancel => {
                        self.answers.cancel(frame.request);
                        // The request itself may still wait for its turn: the cancel comes right behind it, too.
                        if waiting.as_ref().is_some_and(|sender| sender.send((frame.request, None)).is_err()) {
                            return Ok(());
                        }
                    }
                    kind @ (FrameKind::Response | FrameKind::Event | FrameKind::Bulk) => {
                        return Err(ControlError::Unexpected(kind));
                    }
                }
            }
            Ok(())
        })
    }

    /// Answers what needs no disk; gives back what may.
    fn answer_now(
        &self,
        number: u64,
        request: Result<AgentRequest, codec::CodecError>,
    ) -> Result<Option<AgentRequest>, ControlError> {
        let reply = match request {
            Err(e) => AgentReply::Fault(Fault::BadRequest(format!("the request is not understood: {e}"))),
            Ok(AgentRequest::Status) => AgentReply::Status(self.shared.service.status()),
            Ok(other) => return Ok(Some(other)),
        };
        self.answers.write(FrameKind::Response, number, &reply)?;
        Ok(None)
    }

    /// Until the reader has ended, or nothing can be answered any more.
    fn handle_all(&self, waiting: &Receiver<Waiting>) {
        while let Ok((number, request)) = waiting.recv() {
            match request {
                None => self.answers.cancel(number),
                Some(request) => {
                    if self.handle(number, request).is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn handle(&self, number: u64, request: AgentRequest) -> Result<(), ControlError> {
        let service = &self.shared.service;
        let reply = match request {
            AgentRequest::Status => AgentReply::Status(service.status()),
            AgentRequest::Cancel { job } => done(service.cancel(job)),
            AgentRequest::Run { job, origin, operation } => match service.run(job, origin, operation) {
                Ok(job) => return self.watch(number, job),
                Err(fault) => AgentReply::Fault(fault),
            },
            message @ (AgentRequest::SaveMetadata { .. }
            | AgentRequest::Attach { .. }
            | AgentRequest::Finish { .. }) => done(service.message(message)),
        };
        self.answers.write(FrameKind::Response, number, &reply)
    }

    /// Sends a job's progress and its end from a thread of its own, so that the connection can be used meanwhile.
    fn watch(&self, number: u64, job: Arc<Job>) -> Result<(), ControlError> {
        let Some(cancelled) = self.answers.begin(number) else {
            let text = format!("{REQUESTS_MAX} requests are under way on this connection; that is the most");
            let reply = AgentReply::Fault(Fault::BadRequest(text));
            return self.answers.write(FrameKind::Response, number, &reply);
        };
        let answers = self.answers.clone();
        let thread = std::thread::Builder::new().name(format!("watch {}", job.id().0));
        let spawned = thread.spawn(move || {
            let reply = follow(&answers, number, &job, &cancelled);
            drop(answers.write(FrameKind::Response, number, &reply));
            answers.end(number);
        });
        if let Err(e) = spawned {
            self.answers.end(number);
            let reply = AgentReply::Fault(Fault::Unavailable(format!("no thread can be started: {e}")));
            return self.answers.write(FrameKind::Response, number, &reply);
        }
        Ok(())
    }

    /// The peer has gone: what still watches for it ends; or the server stops, and suspended jobs are being answered.
    fn wait_for_answers(&self) {
        let mut running = self.answers.lock();
        if !self.shared.stopping.load(Ordering::Acquire) {
            for cancelled in running.values() {
                cancelled.store(true, Ordering::Release);
            }
        }
        while !running.is_empty() {
            running = self.answers.fewer.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Answers {
    fn write<T: serde::Serialize>(&self, kind: FrameKind, number: u64, value: &T) -> Result<(), ControlError> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stream = &*writer;
        let written = write_frame(&mut stream, kind, number, value);
        drop(stream.flush());
        if written.is_err() {
            // Half a frame may have gone out: nothing that follows could be understood.
            drop(writer.shutdown(Shutdown::Both));
        }
        written
    }

    fn begin(&self, number: u64) -> Option<Arc<AtomicBool>> {
        let mut running = self.lock();
        if running.len() >= REQUESTS_MAX || running.contains_key(&number) {
            return None;
        }
        let cancelled = Arc::new(AtomicBool::new(false));
        running.insert(number, cancelled.clone());
        Some(cancelled)
    }

    fn end(&self, number: u64) {
        self.lock().remove(&number);
        self.fewer.notify_all();
    }

    fn cancel(&self, number: u64) {
        if let Some(cancelled) = self.lock().get(&number) {
            cancelled.store(true, Ordering::Release);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<AtomicBool>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn follow(answers: &Answers, number: u64, job: &Job, cancelled: &AtomicBool) -> AgentReply {
    let mut seen = 0;
    loop {
        match job.wait(seen, Duration::from_millis(500)) {
            News::Ended(outcome) => return AgentReply::Outcome(outcome),
            News::Suspended => return AgentReply::Fault(Fault::Draining),
            News::Withdrawn(why) => return AgentReply::Fault(Fault::Failed(why)),
            _ if cancelled.load(Ordering::Acquire) => return AgentReply::Fault(gone(job.id())),
            News::Progress(now, progress) => {
                seen = now;
                if answers.write(FrameKind::Event, number, &progress).is_err() {
                    return AgentReply::Fault(gone(job.id()));
                }
                job.wait_end(PROGRESS_EVERY);
            }
            News::Nothing => {}
        }
    }
}

fn gone(job: JobId) -> Fault {
    Fault::Unavailable(format!("nobody watches job {} on this connection any more; it goes on", job.0))
}

fn done(result: Result<(), Fault>) -> AgentReply {
    result.map_or_else(AgentReply::Fault, |()| AgentReply::Done)
}
