//! The life of one program: a process between the adapter and the program, which starts it, drains it, and leaves nothing
//! of it behind. It outlives adapters, which execute other versions of themselves, and ends with its program; when the
//! stub has gone it drains the program by itself, so that no program runs without anybody knowing of it.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use agent_core::internal::sys::exec::{Invocation, adopt_orphans, children, end_children, spawn_listening};
use agent_core::internal::sys::signal::SignalFd;
use clap::Args;
use proto::adapter::DrainSignal;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use super::{AdapterError, io_error};
use crate::sys;

/// A program that ends so soon and leaves others behind went into the background.
const BACKGROUND: Duration = Duration::from_secs(10);

/// What a keeper is started with. It is one command line, so that `ps` shows it.
#[derive(Debug, Args)]
pub struct Keep {
    /// What it is called, for people
    #[arg(long)]
    pub(super) name: String,
    /// What asks the program to end
    #[arg(long)]
    pub(super) signal: DrainSignal,
    /// How long it then has, milliseconds
    #[arg(long)]
    pub(super) deadline_ms: u64,
    /// The stub, as a pidfd
    #[arg(long)]
    pub(super) stub: RawFd,
    /// The program's working directory
    #[arg(long)]
    pub(super) directory: PathBuf,
    /// A socket: its name and its number
    #[arg(long)]
    pub(super) listen: Vec<String>,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    pub(super) command: Vec<OsString>,
}

impl Keep {
    /// The command line that [`Keep`] is read from.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["__keep".into()];
        let signal = self.signal.to_string();
        let (deadline, stub) = (self.deadline_ms.to_string(), self.stub.to_string());
        for (flag, value) in [("name", &self.name), ("signal", &signal), ("deadline-ms", &deadline), ("stub", &stub)]
        {
            arguments.push(format!("--{flag}={value}").into());
        }
        arguments.extend(["--directory".into(), self.directory.clone().into_os_string()]);
        arguments.extend(self.listen.iter().map(|listen| format!("--listen={listen}").into()));
        arguments.push("--".into());
        arguments.extend(self.command.iter().cloned());
        arguments
    }

    fn sockets(&self) -> std::io::Result<Vec<OwnedFd>> {
        let number = |listen: &String| listen.rsplit_once('=').and_then(|(_, number)| number.parse().ok());
        self.listen.iter().map(|listen| sys::adopt_descriptor(number(listen).unwrap_or(-1))).collect()
    }
}

/// The program, while it lives and while it drains.
struct Keeper<'a> {
    keep: &'a Keep,
    program: Pid,
    /// When it has to have ended.
    until: Option<Instant>,
}

/// Starts the program and stays until nothing of it is left; returns its exit status, with 128 added to a signal.
///
/// # Errors
/// The program cannot be started.
pub fn keep(keep: &Keep) -> Result<u8, AdapterError> {
    let failed = |what: &str| io_error(format!("{}: {what}", keep.name));
    let mut signals = SignalFd::new(&[libc::SIGTERM, libc::SIGINT, libc::SIGCHLD]).map_err(failed("signals"))?;
    adopt_orphans().map_err(failed("orphans"))?;
    let stub = sys::adopt_descriptor(keep.stub).map_err(failed("the stub's pidfd"))?;
    let began = Instant::now();
    let program = start(keep)?;
    let mut keeper = Keeper { keep, program, until: None };
    loop {
        let left = keeper.until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left + Duration::from_millis(1)).ok());
        // Once it drains there is nothing more to learn of the stub.
        let mut fds = vec![PollFd::new(&signals, PollFlags::IN)];
        if keeper.until.is_none() {
            fds.push(PollFd::new(&stub, PollFlags::IN));
        }
        let _ = rustix::event::poll(&mut fds, left.as_ref());
        let is_alone = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        while let Ok(Some(signal)) = signals.read() {
            if signal != libc::SIGCHLD {
                keeper.drain();
            }
        }
        if is_alone {
            keeper.drain();
        }
        if let Some(status) = keeper.reap() {
            keeper.leave_nothing(began);
            return Ok(code(status));
        }
        keeper.look_at_clock();
    }
}

fn start(keep: &Keep) -> Result<Pid, AdapterError> {
    let failed = || io_error(format!("{} cannot be started", keep.name));
    let sockets = keep.sockets().map_err(failed())?;
    let (program, arguments) =
        keep.command.split_first().ok_or_else(|| failed()(std::io::ErrorKind::NotFound.into()))?;
    let mut environment: std::collections::BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    if !keep.listen.is_empty() {
        let names: Vec<_> =
            keep.listen.iter().filter_map(|listen| listen.rsplit_once('=')).map(|(name, _)| name).collect();
        environment.insert("LISTEN_FDS".into(), names.len().to_string().into());
        environment.insert("LISTEN_FDNAMES".into(), names.join(":").into());
    }
    let invocation = Invocation { arguments: arguments.to_vec(), environment };
    let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    let child = spawn_listening(program.as_ref(), invocation, &sockets, &keep.directory).map_err(failed())?;
    Ok(Pid::from_child(&child))
}

impl Keeper<'_> {
    fn drain(&mut self) {
        if self.until.is_none() {
            self.until = Some(Instant::now() + Duration::from_millis(self.keep.deadline_ms));
            let _ = rustix::process::kill_process(self.program, signal(self.keep.signal));
        }
    }

    /// Past the deadline, what is left is killed.
    fn look_at_clock(&mut self) {
        if self.until.is_some_and(|until| until <= Instant::now()) {
            let Keep { name, signal, deadline_ms, .. } = self.keep;
            eprintln!("manager-fs: {name} has not ended within {deadline_ms} ms of {signal}; killing it");
            let _ = rustix::process::kill_process(self.program, Signal::KILL);
            self.until = Some(Instant::now() + Duration::from_secs(3600));
        }
    }

    /// How the program ended, if it did; orphans of it are reaped on the way.
    fn reap(&self) -> Option<WaitStatus> {
        let mut found = None;
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if pid == self.program {
                found = Some(status);
            }
        }
        found
    }

    /// What the program had started does not outlive it.
    fn leave_nothing(&self, began: Instant) {
        let _ = rustix::process::kill_process_group(self.program, Signal::KILL);
        let left = children().len();
        if left > 0 {
            let name = &self.keep.name;
            let hint = if began.elapsed() < BACKGROUND && self.until.is_none() {
                "; a program that goes into the background has to be told to stay in the foreground"
            } else {
                ""
            };
            eprintln!("manager-fs: {name} has ended and left {left} processes behind; killing them{hint}");
        }
        // Each brings up its own orphans.
        for _ in 0..100 {
            if children().is_empty() {
                return;
            }
            end_children(&[]);
        }
    }
}

fn signal(signal: DrainSignal) -> Signal {
    match signal {
        DrainSignal::Term => Signal::TERM,
        DrainSignal::Int => Signal::INT,
        DrainSignal::Quit => Signal::QUIT,
        DrainSignal::Hup => Signal::HUP,
        DrainSignal::Usr1 => Signal::USR1,
        DrainSignal::Usr2 => Signal::USR2,
        DrainSignal::Winch => Signal::WINCH,
    }
}

fn code(status: WaitStatus) -> u8 {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| signal + 128));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
