//! The parent process: holds what must not be lost, and restarts what may die.
//!
//! It opens `/dev/fuse`, mounts, reads INIT, and keeps the descriptor, INIT and its answer. It knows nothing of trees,
//! networks or caches, so it never needs to change while a mount lives.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use proto::codec;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::inherit::{Greeting, Said, spawn};
use super::mounted::generations;
use super::{HelperClient, Layout, MountError, message, overlay};
use crate::host::files::Doing;

/// What `manager-fs mount` means.
#[derive(Debug, Clone)]
pub struct HoldOptions {
    /// Where everything is.
    pub layout: Layout,
    /// The binary of worker and helper; asked again at every start, so replacing the file upgrades the worker.
    pub program: PathBuf,
    /// Arguments that make it a worker.
    pub worker_args: Vec<OsString>,
    /// Arguments that make it a helper.
    pub helper_args: Vec<OsString>,
    /// Whose mounts they are.
    pub namespace: NamespaceChoice,
    /// `/dev/fuse`; where it cannot be opened the mount does without ([`super::DataPath`]).
    pub fuse_device: PathBuf,
}

/// Where the mounts are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamespaceChoice {
    /// In the host's namespace if this user may mount there, else in a new user namespace.
    Auto,
    /// In a new user namespace.
    New,
    /// In this process's namespace, whatever it may.
    Own,
}

const SAID_BYTES_MAX: usize = 16 << 10;
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
    let _only_one = lock_run(&options.layout.run)?;
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
    helper_control: Option<OwnedFd>,
    was_ready: bool,
}

/// A running worker.
struct RunningWorker {
    child: Child,
    control: tokio::net::UnixStream,
    heard: Vec<u8>,
    started: Instant,
    ready: bool,
    /// It has closed its end, so it is ending. The end of a stream stays readable: waiting for it again would spin, and
    /// keep this thread from hearing of the worker's death.
    silent: bool,
}

enum Event {
    WorkerEnded(io::Result<ExitStatus>),
    HelperEnded,
    Said,
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
        Ok(Self { options, device, greeting, listener, helper_control: None, was_ready: false })
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
        loop {
            let event = tokio::select! {
                status = worker.child.wait() => Event::WorkerEnded(status),
                _ = helper.wait() => Event::HelperEnded,
                _ = worker.control.readable(), if !worker.silent => Event::Said,
                _ = terminate.recv() => Event::Stop,
                _ = interrupt.recv() => Event::Stop,
            };
            match event {
                Event::Said => self.listen_to(&mut worker),
                Event::HelperEnded => *helper = self.start_helper()?,
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
        let mut command = Command::new(&self.options.program);
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
        Ok(RunningWorker { child, control, heard: Vec::new(), started: Instant::now(), ready: false, silent: false })
    }

    fn start_helper(&mut self) -> Result<Child, MountError> {
        let (ours, theirs) = UnixStream::pair().doing(|| "make a socket pair".to_owned())?;
        let mut command = Command::new(&self.options.program);
        command.args(&self.options.helper_args).kill_on_drop(false);
        let child = spawn(command, &[self.listener.as_fd(), theirs.as_fd()])
            .doing(|| format!("start {}", self.options.program.display()))?;
        self.helper_control = Some(ours.into());
        Ok(child)
    }

    /// Takes every message that is there.
    fn listen_to(&mut self, worker: &mut RunningWorker) {
        let mut piece = [0; 4096];
        loop {
            match worker.control.try_read(&mut piece) {
                Ok(0) => {
                    worker.silent = true;
                    break;
                }
                Ok(len) => worker.heard.extend_from_slice(&piece[..len]),
                Err(error) => {
                    worker.silent |= error.kind() != io::ErrorKind::WouldBlock;
                    break;
                }
            }
        }
        while let Some((len, body)) = worker.heard.split_first_chunk::<4>() {
            let len = u32::from_le_bytes(*len) as usize;
            let Some(body) = body.get(..len) else { return };
            let said = codec::decode::<Said, SAID_BYTES_MAX>(body);
            worker.heard.drain(..4 + len);
            match said {
                Ok(Said::Answer(answer)) => self.answer_init(&answer),
                Ok(Said::Ready(line)) => self.announce(worker, &line),
                Err(error) => tracing::warn!(%error, "the worker said something unknown"),
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
    overlay::mount_fuse(device.as_fd(), mountpoint).doing(|| format!("mount FUSE at {}", mountpoint.display()))?;
    let mut init = vec![0; INIT_READ_BYTES];
    let len = rustix::io::read(&device, &mut init[..]).doing(|| "read INIT".to_owned())?;
    init.truncate(len);
    Ok((device, init))
}

/// Enters a new user and mount namespace where that is wanted; returns this process's id then.
fn enter_namespace(choice: NamespaceChoice) -> Result<Option<u32>, MountError> {
    let root = rustix::process::geteuid().is_root();
    if choice == NamespaceChoice::Own || (choice == NamespaceChoice::Auto && root) {
        return Ok(None);
    }
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if let Err(error) = crate::sys::unshare_user_and_mounts() {
        if choice == NamespaceChoice::New {
            return Err(error).doing(|| "enter a user namespace".to_owned()).map_err(MountError::from);
        }
        // Without it only the plain copy remains, which needs no privilege.
        tracing::warn!(%error, "user namespaces are not permitted here");
        return Ok(None);
    }
    // The kernel refuses a group map of an unprivileged writer unless setgroups is given up.
    std::fs::write("/proc/self/setgroups", "deny").doing(|| "give up setgroups".to_owned())?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1")).doing(|| "map the group".to_owned())?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1")).doing(|| "map the user".to_owned())?;
    // Mounts made here must not be proposed to the parent namespace.
    let slave = rustix::mount::MountPropagationFlags::DOWNSTREAM | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slave).doing(|| "make the namespace's mounts its own".to_owned())?;
    Ok(Some(std::process::id()))
}

fn prepare_dirs(layout: &Layout) -> Result<(), MountError> {
    let make = |dir: &Path, mode: u32| {
        std::fs::DirBuilder::new().recursive(true).mode(mode).create(dir)?;
        Ok::<_, io::Error>(())
    };
    for (dir, mode) in [
        (layout.run.clone(), 0o755),
        (layout.generations(), 0o755),
        (layout.cache.clone(), 0o700),
        (layout.local_objects(), 0o700),
    ] {
        make(&dir, mode).doing(|| format!("create {}", dir.display()))?;
    }
    make(&layout.meta(), 0o700).doing(|| format!("create {}", layout.meta().display()))?;
    // A dead mount answers ENOTCONN to everything, so the mount point is only made where nothing is mounted.
    if !mount_table()?.iter().any(|line| line.target == layout.mountpoint) {
        make(&layout.mountpoint, 0o755).doing(|| format!("create {}", layout.mountpoint.display()))?;
        std::fs::set_permissions(&layout.mountpoint, std::fs::Permissions::from_mode(0o755))
            .doing(|| format!("open {} to everyone", layout.mountpoint.display()))?;
    }
    Ok(())
}

/// One daemon a RUN directory.
fn lock_run(run: &Path) -> Result<std::fs::File, MountError> {
    let path = run.join("mount.lock");
    let file = std::fs::File::create(&path).doing(|| format!("create {}", path.display()))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(_) => Err(MountError::AlreadyRuns { directory: run.to_owned(), flag: "--run" }),
    }
}

/// A holder that was killed leaves a mount that nobody answers.
fn clear_dead_mount(mountpoint: &Path) -> Result<(), MountError> {
    let here = |line: &overlay::MountLine| line.target == mountpoint;
    while let Some(line) = mount_table()?.into_iter().rev().find(here) {
        if line.kind != "fuse" || line.source != "manager-fs" {
            let mountpoint = mountpoint.to_owned();
            return Err(MountError::Occupied { mountpoint, kind: line.kind, from: line.source });
        }
        overlay::detach_dead(mountpoint).doing(|| format!("unmount the dead {}", mountpoint.display()))?;
    }
    Ok(())
}

/// An overlay over the FUSE mount of an earlier holder still shows what is in the page cache and fails for the rest. The
/// helper takes it away as soon as nobody uses it, and mounts anew over it before that. Node numbers died with that mount.
fn note_stale_generations(layout: &Layout) -> Result<(), MountError> {
    let _ = std::fs::remove_file(layout.numbers());
    let mounted = generations(layout).doing(|| "read the mount table".to_owned())?;
    let stale: String = mounted
        .into_iter()
        .filter(|mounted| mounted.with_fuse)
        .map(|mounted| format!("{}\n", mounted.tree))
        .collect();
    Ok(std::fs::write(layout.stale(), stale).doing(|| format!("write {}", layout.stale().display()))?)
}

fn mount_table() -> Result<Vec<overlay::MountLine>, MountError> {
    Ok(overlay::mounts().doing(|| "read the mount table".to_owned())?)
}
