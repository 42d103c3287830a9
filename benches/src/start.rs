//! Starting a program and timing it: until its first output byte, and until its end.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

/// Seconds from before `fork` until the program's first byte on standard output. It must then end with 0.
///
/// # Errors
/// The program does not start, prints nothing, or fails.
pub fn to_first_byte(command: &mut Command) -> Result<f64> {
    let since = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
    let mut stdout = child.stdout.take().context("a piped stdout")?;
    let mut byte = [0];
    let got = stdout.read(&mut byte)?;
    let seconds = since.elapsed().as_secs_f64();
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest)?;
    let status = child.wait()?;
    ensure!(got == 1 && status.success(), "{command:?} printed {got} bytes and ended with {status}");
    Ok(seconds)
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
