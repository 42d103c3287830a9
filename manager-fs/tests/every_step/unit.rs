//! A service as a service manager keeps it: started again whenever it ends.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// What systemd waits by default before it starts a service again (systemd.service(5), RestartSec=).
const RESTART_PAUSE: Duration = Duration::from_millis(100);
/// How long a service may take to end when it is told to.
const END_MAX: Duration = Duration::from_secs(40);

pub(crate) struct Unit {
    name: &'static str,
    log: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Option<i32>>>,
}

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    pid: AtomicI32,
}

impl Unit {
    /// Starts what `make` says, and again after each end. What it prints goes to `NAME.log` in `dir`.
    pub(crate) fn start(name: &'static str, dir: &Path, make: impl Fn() -> Command + Send + 'static) -> Self {
        let (shared, log) = (Arc::new(Shared::default()), dir.join(format!("{name}.log")));
        let (seen, path) = (Arc::clone(&shared), log.clone());
        let thread = std::thread::spawn(move || keep(&seen, &path, make));
        Self { name, log, shared, thread: Some(thread) }
    }

    /// Its process; 0 while there is none.
    pub(crate) fn pid(&self) -> i32 {
        self.shared.pid.load(Ordering::SeqCst)
    }

    /// Asks it to end; it is started again.
    pub(crate) fn restart(&self) {
        signal(self.pid(), Signal::TERM);
    }

    /// Ends it for good; returns its exit code.
    pub(crate) fn end(mut self) -> Option<i32> {
        self.over()
    }

    pub(crate) fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        format!("--- {}\n{}", self.name, lines[lines.len().saturating_sub(40)..].join("\n"))
    }

    fn over(&mut self) -> Option<i32> {
        self.shared.over.store(true, Ordering::SeqCst);
        let ended = self.thread.take().map(JoinHandle::join);
        ended.and_then(Result::ok).flatten()
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        self.over();
    }
}

fn keep(shared: &Shared, log: &Path, make: impl Fn() -> Command) -> Option<i32> {
    loop {
        let out = File::options().create(true).append(true).open(log).unwrap();
        let mut command = make();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(out).process_group(0);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        shared.pid.store(child.id().cast_signed(), Ordering::SeqCst);
        loop {
            if shared.over.load(Ordering::SeqCst) {
                return end(&mut child);
            }
            if child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        shared.pid.store(0, Ordering::SeqCst);
        std::thread::sleep(RESTART_PAUSE);
    }
}

fn end(child: &mut Child) -> Option<i32> {
    let since = Instant::now();
    signal(child.id().cast_signed(), Signal::TERM);
    while since.elapsed() < END_MAX {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(child.kill());
    drop(child.wait());
    None
}

pub(crate) fn signal(pid: i32, signal: Signal) {
    // Zero would be our own group.
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}
