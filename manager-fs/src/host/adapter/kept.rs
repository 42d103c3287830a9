//! A keeper, as the adapter sees it: a process that it is the parent of, or that an earlier adapter was.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::Sender;

use agent_core::internal::predecessor::ENDING;
pub(super) use agent_core::internal::predecessor::PROGRAM;
use agent_core::internal::sys::exec::{Invocation, descendants, spawn};
use agent_core::internal::sys::fd::process_of;
use agent_core::{Inherited, exec};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use super::event::Event;
use super::keeper::Keep;
use super::{AdapterError, Version, io_error};

/// A keeper that lives, or has just ended.
pub(super) struct Kept {
    pub(super) name: String,
    pidfd: OwnedFd,
    inherited: Inherited,
}

impl Kept {
    /// Starts a program under a keeper, and keeps that one.
    pub(super) fn start(
        version: &Version,
        sockets: &[(String, OwnedFd)],
        inherited: &Inherited,
    ) -> Result<Self, AdapterError> {
        let record = &version.verified.record;
        let adapter = record.metadata.adapter.as_ref().ok_or_else(|| AdapterError::NoAdapter(record.name()))?;
        let stub =
            rustix::process::getppid().and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
        let stub = stub.ok_or_else(|| io_error("the stub")(io::ErrorKind::NotFound.into()))?;
        let listen = sockets.iter().map(|(name, socket)| format!("{name}={}", socket.as_raw_fd()));
        let keep = Keep {
            name: record.name(),
            signal: adapter.drain.signal,
            deadline_ms: adapter.drain.deadline_ms,
            stub: stub.as_raw_fd(),
            directory: version.state.clone(),
            listen: listen.collect(),
            command: std::iter::once(version.program().into_os_string())
                .chain(record.metadata.arguments.iter().map(|text| version.resolve(text).into()))
                .collect(),
        };
        let mut environment: std::collections::BTreeMap<OsString, OsString> =
            std::env::vars_os().filter(|(name, _)| !name.to_string_lossy().starts_with("MANAGER_FS_")).collect();
        environment.insert("MANAGER_FS_PRODUCT".into(), record.product.to_string().into());
        environment.insert("MANAGER_FS_TREE".into(), version.tree.clone().into());
        for variable in &adapter.environment {
            environment.insert(variable.name.clone().into(), version.resolve(&variable.value).into());
        }
        let invocation = Invocation { arguments: keep.arguments(), environment };
        let fds: Vec<_> = sockets.iter().map(|(_, socket)| socket.as_fd()).chain([stub.as_fd()]).collect();
        let starting = || format!("{} cannot be started", record.name());
        // Until it is kept a change-over would end it.
        let _permit = exec::child_permit();
        let stderr = std::io::stderr().as_fd().try_clone_to_owned().map_err(io_error(starting()))?;
        let child = spawn(&itself(), &invocation, stderr, &fds).map_err(io_error(starting()))?;
        let pidfd = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        let pidfd = pidfd.map_err(|e| io_error(starting())(e.into()))?;
        let name = version.name();
        inherited.keep(&name, &pidfd).map_err(|e| io_error(starting())(io::Error::other(e)))?;
        Ok(Self { name, pidfd, inherited: inherited.clone() })
    }

    /// What is kept under this name, if it lives.
    pub(super) fn take(name: &str, inherited: &Inherited) -> Option<Self> {
        let pidfd = inherited.take(name)?;
        if has_ended(&pidfd) {
            inherited.forget(name);
            return None;
        }
        Some(Self { name: name.to_owned(), pidfd, inherited: inherited.clone() })
    }

    /// Every keeper that an earlier version left.
    pub(super) fn others(than: &str, inherited: &Inherited) -> Vec<Self> {
        let names = inherited.names().into_iter().map(String::from);
        let names = names.filter(|name| name != than && (name.starts_with(PROGRAM) || name.starts_with(ENDING)));
        names.filter_map(|name| Self::take(&name, inherited)).collect()
    }

    /// The program itself; `None` until its keeper has started it.
    pub(super) fn pid(&self) -> Option<Pid> {
        descendants(process_of(self.pidfd.as_fd())?).get(1).copied()
    }

    /// What looks up the processes of the program, at every call anew.
    pub(super) fn processes(&self) -> io::Result<impl Fn() -> Vec<Pid> + Send + 'static> {
        let pidfd = self.pidfd.try_clone()?;
        Ok(move || process_of(pidfd.as_fd()).map(descendants).unwrap_or_default())
    }

    /// Tells the watch of its end.
    pub(super) fn tell_end(&self, events: &Sender<Event>) -> io::Result<()> {
        let (pidfd, name, events) = (self.pidfd.try_clone()?, self.name.clone(), events.clone());
        let thread = std::thread::Builder::new().name("keeper".to_owned());
        thread.spawn(move || {
            while rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).is_err() {}
            let status = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
            // An earlier adapter's keeper is the stub's child by now, which reaps it.
            let how = match status.ok().flatten().map(|status| (status.exit_status(), status.terminating_signal())) {
                Some((Some(code), _)) if code > 128 => format!("was ended by signal {}", code - 128),
                Some((Some(code), _)) => format!("ended with exit status {code}"),
                Some((None, Some(signal))) => format!("lost its keeper by signal {signal}"),
                _ => "ended".to_owned(),
            };
            drop(events.send(Event::Ended { name, how }));
        })?;
        Ok(())
    }

    /// Has it drain; its keeper ends when that is over.
    pub(super) fn drain(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::TERM);
        if let (true, Some(keeper)) = (self.name.starts_with(PROGRAM), process_of(self.pidfd.as_fd())) {
            // Not to be taken over by a version that comes back: it serves nobody any more.
            let ending = format!("{ENDING}{}", keeper.as_raw_nonzero());
            if self.inherited.keep(&ending, &self.pidfd).is_ok() {
                self.inherited.forget(&self.name);
                self.name = ending;
            }
        }
    }

    /// Ends it at once.
    pub(super) fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    pub(super) fn is_alive(&self) -> bool {
        !has_ended(&self.pidfd)
    }
}

/// Whether a process has ended. One that nobody has reaped yet has: after an adapter was killed its keeper is the stub's
/// child, and who looked for its number in `/proc` would see it alive, and hear of no end any more.
fn has_ended(pidfd: &OwnedFd) -> bool {
    // Readable from its end on (pidfd_open(2)).
    let at_once = Some(&Timespec::default());
    matches!(rustix::event::poll(&mut [PollFd::new(pidfd, PollFlags::IN)], at_once), Ok(1..))
}

/// This program, also when its file has been replaced since.
fn itself() -> PathBuf {
    std::env::current_exe().ok().filter(|path| path.exists()).unwrap_or_else(|| "/proc/self/exe".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_nobody_has_reaped_has_ended() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pidfd = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        assert!(!has_ended(&pidfd));
        child.kill().unwrap();
        let unreaped = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), unreaped).unwrap();
        assert!(process_of(pidfd.as_fd()).is_some(), "it still has its number");
        assert!(has_ended(&pidfd));
        child.wait().unwrap();
        assert!(has_ended(&pidfd));
    }
}
