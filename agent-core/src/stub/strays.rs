//! What is left of a program after its end: children that went their own way, and processes that still hold the
//! product's lock. They are named, killed and reaped, or else they would work on without anybody knowing of them, and
//! keep the next stub from starting.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions};

use crate::sys;

/// A process that was killed ends soon; one in a system call that cannot be interrupted must not hold the stub up.
const PATIENCE: Duration = Duration::from_secs(2);
/// Command lines are cut to this for people.
const NAME_MAX: usize = 80;

/// A process, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stray {
    pub(super) pid: Pid,
    pub(super) name: String,
    /// It took the lock itself, and did not inherit it: a stub.
    pub(super) took_lock: bool,
}

impl std::fmt::Display for Stray {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({})", self.pid.as_raw_nonzero(), self.name)
    }
}

/// Kills and reaps every child of this process but for these, and what falls to it when they die: the stub has no other
/// children than the program that has ended, so all of them were that program's. Returns whom it killed.
pub(super) fn end_all(but: &[Pid]) -> Vec<Stray> {
    let mut ended: Vec<Stray> = Vec::new();
    let until = Instant::now() + PATIENCE;
    loop {
        let mut left = sys::exec::children();
        left.retain(|pid| !but.contains(pid));
        for pid in &left {
            if !ended.iter().any(|stray| stray.pid == *pid) && !is_zombie(*pid) {
                ended.push(Stray { pid: *pid, name: name(*pid), took_lock: false });
            }
            let _ = rustix::process::kill_process(*pid, Signal::KILL);
        }
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        if left.is_empty() || Instant::now() > until {
            return ended;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Processes other than this one that hold a lock on this file. The kernel says so of each of their descriptors; one
/// that only has the file open is none of them.
pub(super) fn holders(lock: &Path) -> Vec<Stray> {
    let Ok(wanted) = fs::metadata(lock) else { return Vec::new() };
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    pids.filter(|pid| *pid != rustix::process::getpid())
        .filter_map(|pid| {
            let taker = taker(pid, (wanted.dev(), wanted.ino()))?;
            Some(Stray { pid, name: name(pid), took_lock: taker == pid.as_raw_nonzero().get() })
        })
        .collect()
}

/// Who took the lock that this process holds on the file, if it holds one.
fn taker(pid: Pid, file: (u64, u64)) -> Option<i32> {
    let process = format!("/proc/{}", pid.as_raw_nonzero());
    let fds = fs::read_dir(format!("{process}/fd")).into_iter().flatten().flatten();
    fds.filter(|fd| fs::metadata(fd.path()).is_ok_and(|is| (is.dev(), is.ino()) == file)).find_map(|fd| {
        let info = fs::read_to_string(Path::new(&process).join("fdinfo").join(fd.file_name())).ok()?;
        // `lock: 1: FLOCK  ADVISORY  WRITE 4711 fe:01:1234 0 EOF`
        let lock = info.lines().find(|line| line.starts_with("lock:") && line.contains("FLOCK"))?;
        lock.split_whitespace().nth(5)?.parse().ok()
    })
}

fn is_zombie(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rfind(')').and_then(|at| stat.get(at + 2..at + 3)) == Some("Z")
}

fn name(pid: Pid) -> String {
    let process = format!("/proc/{}", pid.as_raw_nonzero());
    let line = fs::read(format!("{process}/cmdline")).unwrap_or_default();
    let mut name = String::from_utf8_lossy(&line).trim_end_matches('\0').replace('\0', " ");
    if name.is_empty() {
        name = fs::read_to_string(format!("{process}/comm")).unwrap_or_default().trim_end().to_owned();
    }
    name = name.chars().filter(|c| !c.is_control()).take(NAME_MAX).collect();
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::process::Command;

    #[test]
    fn who_holds_the_lock_is_told_from_who_has_the_file_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let locked = fs::File::create(&path).unwrap();
        let mut reader = Command::new("sleep").arg("100").stdin(fs::File::open(&path).unwrap()).spawn().unwrap();
        rustix::fs::flock(&locked, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        let inherited = locked.as_fd().try_clone_to_owned().unwrap();
        let mut holder = Command::new("sleep").arg("101").stdin(inherited).spawn().unwrap();
        // A process has its command line a moment after its `exec` has let its parent go on.
        while fs::read(format!("/proc/{}/cmdline", holder.id())).unwrap().is_empty() {
            std::thread::yield_now();
        }
        let found = holders(&path);
        for child in [&mut reader, &mut holder] {
            child.kill().unwrap();
        }
        let found: Vec<_> = found.iter().map(|stray| (stray.name.as_str(), stray.took_lock)).collect();
        assert_eq!(found, [("sleep 101", false)]);
        reader.wait().unwrap();
        holder.wait().unwrap();
    }

    #[test]
    fn a_lock_of_another_kind_is_not_the_products() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let file = fs::File::create(&path).unwrap();
        let is = file.metadata().unwrap();
        let us = rustix::process::getpid();
        let taken = || taker(us, (is.dev(), is.ino()));
        rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        assert_eq!(taken(), None);
        rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::Unlock).unwrap();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        assert_eq!(taken(), Some(us.as_raw_nonzero().get()));
    }
}
