//! What an `execve` costs: until the program's first instruction, and until its first output byte.
//!
//! ```text
//! execve ── kernel ──> first instruction ── loader ──> the program's entry ── program ──> first output byte
//!                      (of the loader, if it has one)
//! ```
//! The program is traced up to its entry. Each of the two instructions is executed on its own, and the clock is read when it is
//! done: the page that holds it has then been read, whatever that took. What tracing itself costs, a few context switches, is
//! in the figures of both contenders.

use std::fs;
use std::io::Read;
use std::process::{Child, Command};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, WaitOptions, waitpid};

use crate::{start, sys};

/// Keys of `/proc/PID/auxv`: where the loader is (0 without one), where the program's entry is.
const AT_BASE: usize = 7;
const AT_ENTRY: usize = 9;

/// Seconds from `execve`.
#[derive(Debug, Clone, Copy)]
pub struct Exec {
    /// Until the first instruction in user space was executed: the loader's, if the program has one.
    pub first_instruction: f64,
    /// Until the program's own first instruction was executed, after the loader; `None` on processors for which that is
    /// not written.
    pub entry: Option<f64>,
    /// Until its first byte on standard output.
    pub first_byte: f64,
}

/// Runs a program, which must then end with 0.
///
/// # Errors
/// The program does not start, prints nothing, or fails, or cannot be traced.
pub fn timed(mut command: Command) -> Result<Exec> {
    let (mut stamp, write) = std::io::pipe()?;
    sys::trace(&mut command, write.into());
    let mut child = start::spawn(&mut command)?;
    let watched = start::kill_when_late(&child);
    let mut begun = [0; 8];
    stamp.read_exact(&mut begun)?;
    let begun = u64::from_ne_bytes(begun);
    let since = |now_ns: u64| now_ns.saturating_sub(begun) as f64 / 1e9;
    let traced = trace(&child).inspect_err(|_| drop(child.kill()));
    let (first_instruction, entry) = traced.with_context(|| format!("tracing {command:?}"))?;
    let first_byte = start::until_it_ends(child, sys::now_ns).with_context(|| format!("running {command:?}"))?;
    drop(watched);
    Ok(Exec { first_instruction: since(first_instruction), entry: entry.map(since), first_byte: since(first_byte) })
}

/// When the first instruction and the entry's were done. The process then goes on untraced.
fn trace(child: &Child) -> Result<(u64, Option<u64>)> {
    let pid = Pid::from_child(child);
    stopped(pid)?;
    let first_instruction = one_instruction(pid)?;
    let (loader, entry) = (auxiliary(pid, AT_BASE)?, auxiliary(pid, AT_ENTRY)?);
    let entry = if loader == 0 {
        Some(first_instruction)
    } else if cfg!(target_arch = "x86_64") {
        sys::break_at(pid, Some(entry))?;
        sys::go_on(pid)?;
        stopped(pid)?;
        sys::break_at(pid, None)?;
        // The processor stops before it fetches the instruction.
        Some(one_instruction(pid)?)
    } else {
        None
    };
    sys::detach(pid)?;
    Ok((first_instruction, entry))
}

fn one_instruction(pid: Pid) -> Result<u64> {
    sys::step(pid)?;
    stopped(pid)?;
    Ok(sys::now_ns())
}

/// Waits until the process stops, for no other reason than that it is traced.
fn stopped(pid: Pid) -> Result<()> {
    let (_, status) = waitpid(Some(pid), WaitOptions::empty())?.context("a state of the process")?;
    ensure!(status.stopping_signal() == Some(Signal::TRAP.as_raw()), "it did not stop, but: {status:?}");
    Ok(())
}

/// What the kernel told the program about itself.
fn auxiliary(pid: Pid, key: usize) -> Result<usize> {
    let bytes = fs::read(format!("/proc/{}/auxv", pid.as_raw_nonzero()))?;
    let words: Vec<usize> =
        bytes.as_chunks::<{ size_of::<usize>() }>().0.iter().map(|word| usize::from_ne_bytes(*word)).collect();
    let found = words.chunks_exact(2).find(|pair| pair[0] == key);
    Ok(found.with_context(|| format!("no entry {key} in its auxiliary vector"))?[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stations_of_an_exec_come_in_order_and_the_program_runs_on() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo a; exit 0"]);
        let exec = timed(command).unwrap();
        let entry = exec.entry.unwrap_or(exec.first_instruction);
        assert!(0.0 < exec.first_instruction, "{exec:?}");
        assert!(exec.first_instruction <= entry && entry < exec.first_byte, "{exec:?}");
    }

    #[test]
    fn a_program_that_fails_is_an_error() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo a; exit 7"]);
        assert!(format!("{:#}", timed(command).unwrap_err()).contains('7'));
        assert!(timed(Command::new("/nowhere")).is_err());
    }
}
