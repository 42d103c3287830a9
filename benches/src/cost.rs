//! What something costs: time, processor time, memory at its highest; of a program, and of a process that goes on.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::sys;

/// Of one operation.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// From order to end.
    pub seconds: f64,
    /// Of all processors, in programs and for them in the kernel.
    pub processor_seconds: f64,
    /// The most that was resident at once.
    pub peak_mb: f64,
}

/// Runs a program to its end.
///
/// # Errors
/// It does not start, or does not end with 0.
pub fn of_program(command: &mut Command) -> Result<Cost> {
    let begun = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let child = child.with_context(|| format!("running {command:?}"))?;
    let (ended, usage) = sys::wait(child).with_context(|| format!("waiting for {command:?}"))?;
    ensure!(ended.success(), "{command:?} ended with {ended}");
    let (processor_seconds, peak_mb) = (usage.processor.as_secs_f64(), usage.peak_bytes as f64 / 1e6);
    Ok(Cost { seconds: begun.elapsed().as_secs_f64(), processor_seconds, peak_mb })
}

/// What processes that go on cost while something is done. Memory is that of all of them together, each at its highest.
///
/// # Errors
/// One of them is gone, or cannot be looked at.
pub fn of_processes(pids: &[u64], act: impl FnOnce()) -> Result<Cost> {
    for pid in pids {
        // proc(5): what was resident at most is forgotten.
        std::fs::write(format!("/proc/{pid}/clear_refs"), "5").context("clear_refs")?;
    }
    let before = processor(pids)?;
    let begun = Instant::now();
    act();
    let seconds = begun.elapsed().as_secs_f64();
    let processor_seconds = (processor(pids)?.saturating_sub(before)).as_secs_f64();
    let peak_mb = pids.iter().map(|pid| peak(*pid)).sum::<Result<f64>>()?;
    Ok(Cost { seconds, processor_seconds, peak_mb })
}

fn processor(pids: &[u64]) -> Result<Duration> {
    let of_one = |pid: &u64| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("an agent is gone")?;
        // proc(5): behind the name in parentheses utime and stime are the twelfth and the thirteenth, in hundredths.
        let (_, rest) = stat.rsplit_once(')').context("/proc/PID/stat")?;
        let ticks = rest.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
        Ok(Duration::from_millis(ticks * 10))
    };
    pids.iter().map(of_one).sum()
}

fn peak(pid: u64) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("an agent is gone")?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(kib.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_and_a_process_are_told_by_what_they_did() {
        let busy = of_program(Command::new("sh").args(["-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"]));
        let (busy, idle) = (busy.unwrap(), of_program(&mut Command::new("true")).unwrap());
        assert!(busy.processor_seconds > idle.processor_seconds && busy.seconds >= 0.9 * busy.processor_seconds);
        assert!(busy.peak_mb > 0.3 && busy.peak_mb < 100.0, "{busy:?}");
        assert!(of_program(&mut Command::new("false")).is_err());
        let own = of_processes(&[u64::from(std::process::id())], || drop(std::hint::black_box(vec![1_u8; 64 << 20])));
        assert!(own.unwrap().peak_mb > 64.0);
    }
}
