//! One stub and one agent for a product: a lock that both hold, so that it outlives a stub that was killed until its
//! agent has ended, too. The file of the lock can be removed, or moved away with the directory that it is in, while it is
//! held; then their sockets in RUN tell of both.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use proto::agent::{AgentReply, AgentRequest};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal};

use super::pause::pause;
use super::{Observer, StubError, io_error, strays};
use crate::AgentPaths;
use crate::control::Client;
use crate::sys::signal::SignalFd;
use crate::sys::socket;

/// How long an agent without its stub may take to end by itself; an agent of ours does so within its stop patience.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(20);
/// How long what nobody knows of may hold the lock.
const STRAY_PATIENCE: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The held lock.
#[derive(Debug)]
pub(crate) struct Lock(File);

/// A process, told from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    pid: u32,
    started: u64,
}

impl Lock {
    /// Takes the lock. Waits for an agent whose stub is gone. `None`: told to end meanwhile.
    pub(crate) fn take(
        paths: &AgentPaths,
        signals: &mut SignalFd,
        observer: &mut dyn Observer,
    ) -> Result<Option<Self>, StubError> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(paths.lock());
        // On a disk that takes nothing the file of an earlier start is locked as well: a lock is no writing.
        let file = file.or_else(|e| File::open(paths.lock()).map_err(|_| e));
        let mut lock = Self(file.map_err(io_error("the product's lock cannot be opened"))?);
        let since = Instant::now();
        let mut said = Vec::new();
        while rustix::fs::flock(&lock.0, FlockOperation::NonBlockingLockExclusive).is_err() {
            let (stub, agent) = lock.holders();
            if let Some(stub) = stub.filter(Known::is_alive) {
                return Err(StubError::Running { product: paths.product().to_string(), pid: stub.pid });
            }
            let agent = agent.filter(Known::is_alive).map(|agent| agent.pid);
            // Who else holds it: what a failed version left behind, or another stub that has not written yet.
            let patience = if agent.is_some() { ORPHAN_PATIENCE } else { STRAY_PATIENCE };
            for holder in strays::holders(&paths.lock()) {
                if holder.took_lock {
                    let pid = holder.pid.as_raw_nonzero().get().unsigned_abs();
                    return Err(StubError::Running { product: paths.product().to_string(), pid });
                }
                let pid = holder.pid.as_raw_nonzero().get().unsigned_abs();
                if !said.contains(&pid) {
                    let what = if agent == Some(pid) { "the agent" } else { "what" };
                    observer.say(&format!(
                        "waiting for {what} that an earlier stub left to end: {holder} holds the lock"
                    ));
                    said.push(pid);
                }
                if since.elapsed() > patience {
                    observer.say(&format!("killing {holder}, which has not ended by itself"));
                    kill_group(agent.filter(|agent| *agent == pid).unwrap_or(0));
                    let _ = rustix::process::kill_process(holder.pid, Signal::KILL);
                }
            }
            if pause(signals, [], LOOK_EVERY) {
                return Ok(None);
            }
        }
        if !wait_for_unlocked(paths, signals, observer)? {
            return Ok(None);
        }
        lock.note(None);
        Ok(Some(lock))
    }

    /// Writes down who holds the lock, for the next stub, which can find out without it if the disk does not take it.
    pub(crate) fn note(&mut self, agent: Option<u32>) {
        let known = |pid| start_time(pid).map(|started| format!("{pid} {started}\n")).unwrap_or_default();
        let text = known(std::process::id()) + &agent.map(known).unwrap_or_default();
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(text.as_bytes())
        };
        drop(write(&mut self.0));
    }

    fn holders(&mut self) -> (Option<Known>, Option<Known>) {
        let mut text = String::new();
        drop(self.0.seek(SeekFrom::Start(0)).and_then(|_| self.0.read_to_string(&mut text)));
        let mut lines = text.lines().map(|line| {
            let (pid, started) = line.split_once(' ')?;
            Some(Known { pid: pid.parse().ok()?, started: started.parse().ok()? })
        });
        (lines.next().flatten(), lines.next().flatten())
    }
}

impl std::os::fd::AsFd for Lock {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Known {
    fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }
}

/// Whoever works here without the lock that is there now.
enum Unlocked {
    Stub(u32),
    /// Its process id, if it says so.
    Agent(Option<u32>),
}

impl Unlocked {
    fn find(paths: &AgentPaths) -> Option<Self> {
        if let Ok(stream) = socket::connect(&paths.stub_socket()) {
            // Who listens there: nobody but a stub has its socket.
            let pid = socket::peer(&stream).map_or(0, |peer| peer.pid);
            return Some(Self::Stub(pid.unsigned_abs()));
        }
        let mut client = Client::connect(&paths.socket()).ok()?;
        let reply = client.request(&AgentRequest::Status, Some(STRAY_PATIENCE), |_: ()| {});
        Some(Self::Agent(match reply {
            Ok(AgentReply::Status(status)) => Some(status.pid),
            Ok(_) | Err(_) => None,
        }))
    }
}

/// Whether a stub or its agent works here although nobody holds the lock.
pub(crate) fn is_served(paths: &AgentPaths) -> bool {
    Unlocked::find(paths).is_some()
}

/// Waits for the end of an agent whose stub and whose lock are gone. `false`: told to end meanwhile.
fn wait_for_unlocked(
    paths: &AgentPaths,
    signals: &mut SignalFd,
    observer: &mut dyn Observer,
) -> Result<bool, StubError> {
    let since = Instant::now();
    let mut said = None;
    while let Some(found) = Unlocked::find(paths) {
        match found {
            // One that is just ending closes its lock before its socket.
            Unlocked::Stub(pid) if since.elapsed() > STRAY_PATIENCE => {
                return Err(StubError::Running { product: paths.product().to_string(), pid });
            }
            Unlocked::Stub(_) => {}
            Unlocked::Agent(pid) => {
                if said.replace(pid) != Some(pid) {
                    let pid = pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
                    observer.say(&format!(
                        "waiting for the agent that an earlier stub left to end: process {pid} serves here, and its lock is gone"
                    ));
                }
                if let Some(pid) = pid.filter(|_| since.elapsed() > ORPHAN_PATIENCE) {
                    observer.say(&format!("killing process {pid}, which has not ended by itself"));
                    kill_group(pid);
                }
            }
        }
        if pause(signals, [], LOOK_EVERY) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Kills an agent and everything that it started and that stayed in its process group.
pub(crate) fn kill_group(pid: u32) {
    // Group 0 would be our own.
    if let Some(group) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
}

/// When a process began, in clock ticks since boot (field 22 of `/proc/PID/stat`); `None` when it is gone or a zombie.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, and may contain anything.
    let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().collect();
    if fields.first() == Some(&"Z") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_number() {
        let pid = std::process::id();
        let started = start_time(pid).unwrap();
        assert!(Known { pid, started }.is_alive());
        assert!(!Known { pid, started: started + 1 }.is_alive());
        assert_eq!(start_time(u32::MAX), None);
        assert!(started > 0, "no test runs before the system does");
        // What has ended, and is not reaped yet, is no process any more.
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let ended = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(rustix::process::WaitId::Pid(pid), ended).unwrap();
        assert_eq!(start_time(child.id()), None);
        child.wait().unwrap();
    }
}
