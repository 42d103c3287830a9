//! Starting a program and timing it: until its first output byte, and until its end.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// A program that has not ended by then is killed.
const DEADLINE: Duration = Duration::from_secs(180);

/// Seconds from before `fork` until the program's first byte on standard output. It must then end with 0.
///
/// # Errors
/// The program does not start, prints nothing, or fails.
pub fn to_first_byte(command: &mut Command) -> Result<f64> {
    let since = Instant::now();
    first_byte(command, || since.elapsed().as_secs_f64())
}

/// Starts a program and calls `seen` at its first byte on standard output. It must then end with 0.
///
/// # Errors
/// The program does not start, prints nothing, fails, or takes too long.
pub fn first_byte<T>(command: &mut Command, seen: impl FnOnce() -> T) -> Result<T> {
    let child = spawn(command)?;
    let watched = kill_when_late(&child);
    let seen = until_it_ends(child, seen).with_context(|| format!("running {command:?}"))?;
    drop(watched);
    Ok(seen)
}

/// Starts a program whose standard output is read here.
pub(crate) fn spawn(command: &mut Command) -> Result<Child> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command.spawn().with_context(|| format!("starting {command:?}"))
}

/// Kills the program at its deadline, unless what this returns is dropped before.
pub(crate) fn kill_when_late(child: &Child) -> Sender<()> {
    let (ended, watched) = mpsc::channel::<()>();
    let pid = rustix::process::Pid::from_child(child);
    std::thread::spawn(move || {
        if watched.recv_timeout(DEADLINE) == Err(RecvTimeoutError::Timeout) {
            // Then its standard output ends, and whoever reads it sees why.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    });
    ended
}

/// Calls `seen` at the first byte on standard output, and waits for the end, which must be with 0.
pub(crate) fn until_it_ends<T>(mut child: Child, seen: impl FnOnce() -> T) -> Result<T> {
    let mut stdout = child.stdout.take().context("a piped stdout")?;
    let mut byte = [0];
    let got = stdout.read(&mut byte)?;
    let seen = seen();
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest)?;
    let status = child.wait()?;
    ensure!(got == 1 && status.success(), "it printed {got} bytes and ended with {status}");
    Ok(seen)
}

/// Writes dirty pages out and drops the page cache, dentries and inodes of the whole machine (needs root).
///
/// # Errors
/// Not root.
pub fn drop_caches() -> Result<()> {
    let synced = Command::new("sync").status().context("running sync")?;
    ensure!(synced.success(), "sync failed");
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("dropping caches: run this benchmark as root")
}

/// Reads files, and all files below directories, so that they are in the page cache.
///
/// # Errors
/// One of them cannot be read.
pub fn warm(paths: &[PathBuf]) -> Result<()> {
    paths.iter().try_for_each(|path| warm_one(path).with_context(|| format!("reading {}", path.display())))
}

fn warm_one(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            if !entry.file_type()?.is_symlink() {
                warm_one(&entry.path())?;
            }
        }
        return Ok(());
    }
    io::copy(&mut File::open(path)?, &mut io::sink()).map(|_| ())
}
