//! The parent process: holds what must not be lost, and restarts what may die.
//!
//! It opens `/dev/fuse`, mounts, reads INIT, and keeps the descriptor, INIT and its answer. It knows nothing of trees,
//! networks or caches, so it never needs to change while a mount lives.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::heard::{Heard, NotSaid};
use super::inherit::{Greeting, Said, spawn};
use super::life::{self, Life};
use super::prepare::{
    NamespaceChoice, clear_dead_mount, enter_namespace, lock_dirs, note_stale_generations, prepare_dirs,
};
use super::{HelperClient, Layout, MountError, message, overlay};
use crate::host::files::Doing;
use crate::moments::{self, Moment};

/// What `manager-fs mount` means.
#[derive(Debug, Clone)]
pub struct HoldOptions {
    /// The directories of this daemon.
    pub layout: Layout,
    /// The binary of worker and helper; asked again at every start, so replacing the file upgrades the worker.
    pub program: PathBuf,
    /// Arguments that make it a worker.
    pub worker_args: Vec<OsString>,
    /// Arguments that make it a helper.
    pub helper_args: Vec<OsString>,
    /// Whose mounts they are.
    pub namespace: NamespaceChoice,
    /// The host's state directory: one daemon works on it at a time.
    pub state: Option<PathBuf>,
    /// `/dev/fuse`; where it cannot be opened the mount does without ([`super::DataPath`]).
    pub fuse_device: PathBuf,
}

/// Reads of what one worker says before anybody else is heard again: more than a socket holds (`net.core.wmem_default`).
const READS_MAX: usize = 128;
/// `FUSE_MIN_READ_BUFFER` of linux/fuse.h.
const INIT_READ_BYTES: usize = 8 << 10;
/// How long a worker may take to end after SIGTERM.
const END_PATIENCE: Duration = Duration::from_secs(10);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Holds the mount until SIGTERM, SIGINT, or a worker that ends with exit code 0; then unmounts what nobody uses.
///
/// Call it before any thread starts: entering a user namespace needs that.
///
/// # Errors
/// Another daemon runs here, the directories or the mount cannot be made, or the first worker failed at once.
pub fn hold(options: &HoldOptions) -> Result<(), MountError> {
    let namespace_pid = enter_namespace(options.namespace)?;
    prepare_dirs(&options.layout)?;
    let _only_one = lock_dirs(&options.layout, options.state.as_deref())?;
    clear_dead_mount(&options.layout.mountpoint)?;
    note_stale_generations(&options.layout)?;
    let mut held = Held::open(options, namespace_pid)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .doing(|| "start the runtime".to_owned())?;
    let ended = runtime.block_on(held.run());
    held.clean_up();
    ended
}

struct Held<'o> {
    options: &'o HoldOptions,
    device: Option<OwnedFd>,
    greeting: Greeting,
    listener: UnixListener,
    /// The helper sees its end when this process ends.
    helper_control: Option<tokio::net::UnixStream>,
    helper_life: Life,
    /// The FUSE mount once more, attached nowhere: it can be put back where somebody has taken it away.
    spare: Option<OwnedFd>,
    was_ready: bool,
}

/// A running worker.
struct RunningWorker {
    child: Child,
    control: tokio::net::UnixStream,
    heard: Heard,
    started: Instant,
    ready: bool,
    life: Life,
    /// It has closed its end, so it is ending. The end of a stream stays readable: waiting for it again would spin, and
    /// keep this thread from hearing of the worker's death.
    silent: bool,
}

enum Event {
    WorkerEnded(io::Result<ExitStatus>),
    HelperEnded,
    Said,
    HelperSaid,
    /// Time to ask for signs of life.
    Ask,
    Stop,
}

impl<'o> Held<'o> {
    fn open(options: &'o HoldOptions, namespace_pid: Option<u32>) -> Result<Self, MountError> {
        let mut greeting = Greeting { init: Vec::new(), answer: None, restarts: 0, namespace_pid, fuse_fault: None };
        let device = match open_fuse(&options.fuse_device, &options.layout.mountpoint) {
            Ok((device, init)) => {
                greeting.init = init;
                Some(device)
            }
            Err(error) => {
                greeting.fuse_fault = Some(error.to_string());
                None
            }
        };
        let socket = options.layout.helper_socket();
        let listener = message::listen(&socket).doing(|| format!("listen on {}", socket.display()))?;
        let spare = device.as_ref().and_then(|_| overlay::clone_mount(&options.layout.mountpoint).ok());
        let (helper_control, helper_life) = (None, Life::default());
        Ok(Self { options, device, greeting, listener, helper_control, helper_life, spare, was_ready: false })
    }

    async fn run(&mut self) -> Result<(), MountError> {
        let mut terminate = signal(SignalKind::terminate()).doing(|| "listen for SIGTERM".to_owned())?;
        let mut interrupt = signal(SignalKind::interrupt()).doing(|| "listen for SIGINT".to_owned())?;
        let mut helper = self.start_helper()?;
        let ended = self.attend(&mut helper, &mut terminate, &mut interrupt).await;
        let unmounted = self.unmount_generations(&mut helper).await;
        ended.and(unmounted)
    }

    /// Unmounts what nobody uses; a generation in use stays mounted, and its local files go on working. Whatever ends this
    /// process may have ended its helper too, perhaps in this very moment: another is started until the work is done.
    async fn unmount_generations(&mut self, helper: &mut Child) -> Result<(), MountError> {
        let client = HelperClient::new(self.options.layout.helper_socket());
        let mut asking = tokio::task::spawn_blocking(move || client.unmount_all(END_PATIENCE));
        loop {
            tokio::select! {
                asked = &mut asking => {
                    match asked {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::warn!(%error, "generations not unmounted"),
                        Err(error) => tracing::warn!(%error, "generations not unmounted"),
                    }
                    return Ok(());
                }
                _ = helper.wait() => *helper = self.start_helper()?,
            }
        }
    }

    async fn attend(
        &mut self,
        helper: &mut Child,
        terminate: &mut Signal,
        interrupt: &mut Signal,
    ) -> Result<(), MountError> {
        let mut worker = self.start_worker()?;
        let mut pause = Duration::ZERO;
        let mut ask = tokio::time::interval(life::ASK_EVERY);
        ask.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                status = worker.child.wait() => Event::WorkerEnded(status),
                _ = helper.wait() => Event::HelperEnded,
                _ = worker.control.readable(), if !worker.silent => Event::Said,
                () = readable(self.helper_control.as_ref()) => Event::HelperSaid,
                _ = ask.tick() => Event::Ask,
                _ = terminate.recv() => Event::Stop,
                _ = interrupt.recv() => Event::Stop,
            };
            match event {
                Event::Said => self.listen_to(&mut worker),
                Event::HelperEnded => *helper = self.start_helper()?,
                Event::HelperSaid => self.listen_to_helper(),
                Event::Ask => {
                    self.ask_for_life(&mut worker, helper);
                    self.put_back();
                }
                Event::WorkerEnded(status) => {
                    // What it said last may still be in the socket.
                    self.listen_to(&mut worker);
                    if status.as_ref().is_ok_and(ExitStatus::success) {
                        return Ok(());
                    }
                    if !self.was_ready && status.as_ref().is_ok_and(|status| status.code().is_some()) {
                        return Err(MountError::WorkerFailed);
                    }
                    // One that dies before it serves would die again at once.
                    pause = if worker.ready { Duration::ZERO } else { next_pause(pause, worker.started.elapsed()) };
                    tokio::time::sleep(pause).await;
                    self.greeting.restarts += 1;
                    worker = self.start_worker()?;
                }
                Event::Stop => return end(&mut worker.child).await,
            }
        }
    }

    fn start_worker(&self) -> Result<RunningWorker, MountError> {
        let (mut ours, theirs) = UnixStream::pair().doing(|| "make a socket pair".to_owned())?;
        message::send(&mut ours, &self.greeting).doing(|| "greet the worker".to_owned())?;
        let program = &self.options.program;
        moments::reach(Moment::WorkerStart, program).doing(|| format!("start {}", program.display()))?;
        let mut command = Command::new(program);
        command.args(&self.options.worker_args).kill_on_drop(true);
        // Freed memory goes back at once, and threads share two heaps: the worker is small and stays so.
        command
            .env("MALLOC_ARENA_MAX", "2")
            .env("MALLOC_MMAP_THRESHOLD_", "131072")
            .env("MALLOC_TRIM_THRESHOLD_", "131072");
        let mut fds = vec![theirs.as_fd()];
        fds.extend(self.device.as_ref().map(AsFd::as_fd));
        let child = spawn(command, &fds).doing(|| format!("start {}", self.options.program.display()))?;
        let control = ours.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(ours));
        let control = control.doing(|| "listen to the worker".to_owned())?;
        Ok(RunningWorker {
            child,
            control,
            heard: Heard::default(),
            started: Instant::now(),
            ready: false,
            life: Life::default(),
            silent: false,
        })
    }

    fn start_helper(&mut self) -> Result<Child, MountError> {
        let (ours, theirs) = UnixStream::pair().doing(|| "make a socket pair".to_owned())?;
        let program = &self.options.program;
        moments::reach(Moment::HelperStart, program).doing(|| format!("start {}", program.display()))?;
        let mut command = Command::new(program);
        command.args(&self.options.helper_args).kill_on_drop(false);
        let child = spawn(command, &[self.listener.as_fd(), theirs.as_fd()])
            .doing(|| format!("start {}", self.options.program.display()))?;
        let control = ours.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(ours));
        self.helper_control = Some(control.doing(|| "listen to the helper".to_owned())?);
        self.helper_life = Life::default();
        Ok(child)
    }

    /// A child that has left too many questions unanswered is killed, and then replaced like any other that ended: nothing that
    /// it does is lost by that, and whoever waits for it would wait for ever.
    fn ask_for_life(&mut self, worker: &mut RunningWorker, helper: &mut Child) {
        if !worker.life.asked() {
            tracing::error!("the worker gives no sign of life (was it stopped?): it is replaced");
            let _ = worker.child.start_kill();
        }
        life::ask(&worker.control);
        if !self.helper_life.asked() {
            tracing::error!("the mount helper gives no sign of life (was it stopped?): it is replaced");
            let _ = helper.start_kill();
        }
        if let Some(control) = &self.helper_control {
            life::ask(control);
        }
    }

    fn listen_to_helper(&mut self) {
        let mut signs = [0; 64];
        match self.helper_control.as_ref().map(|control| control.try_read(&mut signs)) {
            Some(Ok(1..)) => self.helper_life.heard(),
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            // It is ending.
            _ => self.helper_control = None,
        }
    }

    /// Somebody who unmounted the view (`umount -l`) took from new attachments what they are mounted over.
    fn put_back(&self) {
        let (Some(spare), mountpoint) = (&self.spare, &self.options.layout.mountpoint) else { return };
        let gone = overlay::mounts().is_ok_and(|mounts| mounts.iter().all(|line| line.target != *mountpoint));
        if gone {
            match overlay::attach_clone(spare.as_fd(), mountpoint) {
                Ok(()) => {
                    tracing::warn!(mountpoint = %mountpoint.display(), "somebody unmounted the view; it is back")
                }
                Err(error) => tracing::error!(%error, mountpoint = %mountpoint.display(), "the view is gone"),
            }
        }
    }

    /// Takes every message that is there.
    fn listen_to(&mut self, worker: &mut RunningWorker) {
        let mut piece = [0; 4096];
        for _ in 0..READS_MAX {
            if worker.silent {
                return;
            }
            match worker.control.try_read(&mut piece) {
                Ok(0) => worker.silent = true,
                Ok(len) => {
                    worker.life.heard();
                    worker.heard.push(&piece[..len]);
                    self.take_said(worker);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => worker.silent = true,
            }
        }
    }

    fn take_said(&mut self, worker: &mut RunningWorker) {
        loop {
            match worker.heard.next() {
                Ok(None) => return,
                Ok(Some(Said::Answer(answer))) => self.answer_init(&answer),
                Ok(Some(Said::Ready(line))) => self.announce(worker, &line),
                Ok(Some(Said::Alive)) => {}
                Err(error @ NotSaid::Unknown(_)) => tracing::warn!(%error, "the worker said something unknown"),
                Err(error @ NotSaid::TooLong(_)) => {
                    // Where its next message begins nobody knows.
                    tracing::error!(%error, "the worker cannot be understood: it is replaced");
                    worker.silent = true;
                    let _ = worker.child.start_kill();
                    return;
                }
            }
        }
    }

    /// The kernel hears the first answer and no other.
    fn answer_init(&mut self, answer: &[u8]) {
        let Some(device) = self.device.as_ref().filter(|_| self.greeting.answer.is_none()) else { return };
        match rustix::io::write(device, answer) {
            Ok(_) => self.greeting.answer = Some(answer.to_vec()),
            Err(error) => tracing::error!(%error, "the kernel refused the answer to INIT"),
        }
    }

    fn announce(&mut self, worker: &mut RunningWorker, line: &str) {
        worker.ready = true;
        if !std::mem::replace(&mut self.was_ready, true) {
            eprintln!("{line}");
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        }
    }

    /// Ends the helper and takes the FUSE mount away.
    fn clean_up(&mut self) {
        self.helper_control = None;
        self.spare = None;
        if self.device.take().is_some() {
            let mountpoint = &self.options.layout.mountpoint;
            if !overlay::unmount_unused(mountpoint).unwrap_or(false) {
                let _ = overlay::detach_dead(mountpoint);
            }
        }
        let _ = std::fs::remove_file(self.options.layout.helper_socket());
        let _ = std::fs::remove_file(self.options.layout.numbers());
    }
}

/// Resolves when the helper has said something; never while there is none.
async fn readable(control: Option<&tokio::net::UnixStream>) {
    match control {
        Some(control) => drop(control.readable().await),
        None => std::future::pending().await,
    }
}

fn next_pause(last: Duration, lived: Duration) -> Duration {
    if lived > Duration::from_secs(5) {
        Duration::ZERO
    } else {
        (last * 2).clamp(Duration::from_millis(20), RESTART_PAUSE_MAX)
    }
}

/// Asks the worker to end, then makes it.
async fn end(worker: &mut Child) -> Result<(), MountError> {
    if let Some(pid) = worker.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if tokio::time::timeout(END_PATIENCE, worker.wait()).await.is_err() {
        worker.kill().await.doing(|| "kill the worker".to_owned())?;
    }
    Ok(())
}

/// Mounts and waits for INIT, which the kernel sends first and once.
fn open_fuse(device: &Path, mountpoint: &Path) -> Result<(OwnedFd, Vec<u8>), MountError> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::open(device, flags, Mode::empty())
        .doing(|| format!("open {}: load the fuse module, or ask for permission to use it", device.display()))?;
    let reached = moments::reach(Moment::ViewMount, mountpoint);
    reached.doing(|| format!("mount FUSE at {}", mountpoint.display()))?;
    overlay::mount_fuse(device.as_fd(), mountpoint).doing(|| format!("mount FUSE at {}", mountpoint.display()))?;
    let mut init = vec![0; INIT_READ_BYTES];
    let len = rustix::io::read(&device, &mut init[..]).doing(|| "read INIT".to_owned())?;
    init.truncate(len);
    Ok((device, init))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn options(run: &Path) -> HoldOptions {
        let layout = Layout { run: run.to_owned(), cache: run.join("cache"), mountpoint: run.join("mnt") };
        HoldOptions {
            layout,
            program: "/bin/sleep".into(),
            worker_args: vec!["600".into()],
            helper_args: vec!["600".into()],
            namespace: NamespaceChoice::Own,
            state: None,
            fuse_device: "/no/such/device".into(),
        }
    }

    /// What a worker says through its control socket, to a holder that is hearing it.
    async fn told(words: &[u8]) -> (RunningWorker, Held<'static>) {
        let dir = tempfile::tempdir().unwrap();
        // For as long as the test runs.
        let options: &'static HoldOptions = Box::leak(Box::new(options(dir.path())));
        let mut held = Held::open(options, None).unwrap();
        let mut worker = held.start_worker().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        worker.control = tokio::net::UnixStream::from_std(ours).unwrap();
        theirs.write_all(words).unwrap();
        drop(theirs);
        while !worker.silent {
            worker.control.readable().await.unwrap();
            held.listen_to(&mut worker);
        }
        (worker, held)
    }

    #[tokio::test]
    async fn a_worker_that_claims_to_say_gigabytes_is_replaced_and_not_waited_for() {
        let words = [&u32::MAX.to_le_bytes()[..], &[7; 100_000]].concat();
        let (mut worker, _held) = told(&words).await;
        let ended = tokio::time::timeout(Duration::from_secs(30), worker.child.wait()).await;
        assert_eq!(ended.expect("it is killed").unwrap().signal(), Some(9));
    }

    #[tokio::test]
    async fn a_word_of_a_later_version_is_passed_over() {
        let mut words = vec![1, 0, 0, 0, 99];
        let body = proto::codec::encode(&Said::Answer(vec![1; 9])).unwrap();
        words.extend(proto::width::count(body.len()).to_le_bytes());
        words.extend(body);
        let (mut worker, held) = told(&words).await;
        assert!(worker.child.try_wait().unwrap().is_none(), "and it lives");
        assert!(held.greeting.answer.is_none(), "without a device nobody is answered");
    }

    #[test]
    fn a_worker_that_dies_at_once_is_started_ever_more_slowly_and_one_that_lived_at_once() {
        let mut pause = Duration::ZERO;
        let mut pauses = Vec::new();
        for _ in 0..10 {
            pause = next_pause(pause, Duration::from_millis(1));
            pauses.push(pause.as_millis());
        }
        assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1280, 2000, 2000, 2000]);
        assert_eq!(next_pause(pause, Duration::from_secs(6)), Duration::ZERO);
    }
}
