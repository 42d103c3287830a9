//! When the start of a program is over, which nobody says: it has ended, or it has printed something, or it has fallen
//! quiet, as a service does that waits for its first request.

use std::fs;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::interrupt;
use super::units::duration;

/// How long a program may take to end after SIGTERM.
const END_PATIENCE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(10);
/// How long nothing may run of a program that has printed before its start counts as over, and how long it is watched then.
const QUIET_AFTER_OUTPUT: Duration = Duration::from_millis(300);
const WATCHED_AFTER_OUTPUT: Duration = Duration::from_secs(2);
/// How long nothing may run of one that has printed nothing: longer than a start waits for anything but the disk.
const QUIET: Duration = Duration::from_secs(3);

/// How a start was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// The program ended by itself.
    Ended(ExitStatus),
    /// It had printed something by this time, and was ended.
    Printed(Duration),
    /// It had printed nothing and waited for something, and was ended after this time.
    Quiet(Duration),
    /// It was still at work when its time was up.
    Cut(Duration),
}

impl Over {
    /// For people.
    pub(super) fn text(&self) -> String {
        match self {
            Over::Ended(status) => status.to_string(),
            Over::Printed(after) => format!("ended once it had printed something, after {}", duration(*after)),
            Over::Quiet(after) => format!("ended once it waited for something, after {}", duration(*after)),
            Over::Cut(after) => format!("still starting after {}, and cut", duration(*after)),
        }
    }
}

/// Watches a program, the leader of its process group, until its start is over, and ends it with everything that it has
/// started. `printed` becomes true with its first output.
///
/// # Errors
/// Interrupted, or it cannot be waited for.
pub(super) fn watch(child: &mut Child, printed: &Arc<AtomicBool>, limit: Duration) -> anyhow::Result<Over> {
    let over = match until_over(child, printed, limit) {
        Ok(over) => over,
        Err(interrupted) => {
            signal(child, Signal::KILL);
            child.wait()?;
            return Err(interrupted);
        }
    };
    if !matches!(over, Over::Ended(_)) {
        end(child)?;
    }
    Ok(over)
}

/// As [`watch`], without ending anything.
///
/// # Errors
/// Interrupted, or it cannot be waited for.
pub(super) fn until_over(child: &mut Child, printed: &AtomicBool, limit: Duration) -> anyhow::Result<Over> {
    let begun = Instant::now();
    let (mut printed_at, mut quiet_since) = (None, begun);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Over::Ended(status));
        }
        interrupt::check("nothing was recorded")?;
        let now = Instant::now();
        if !is_quiet(child.id()) {
            quiet_since = now;
        }
        if printed_at.is_none() && printed.load(Ordering::Relaxed) {
            printed_at = Some(now);
        }
        let quiet = now - quiet_since;
        match printed_at {
            Some(at) if quiet >= QUIET_AFTER_OUTPUT || now - at >= WATCHED_AFTER_OUTPUT => {
                return Ok(Over::Printed(at - begun));
            }
            None if quiet >= QUIET => return Ok(Over::Quiet(now - begun)),
            None if now - begun >= limit => return Ok(Over::Cut(now - begun)),
            _ => std::thread::sleep(LOOK),
        }
    }
}

/// Ends a program and everything that it has started: by SIGTERM, and by SIGKILL when that takes too long.
///
/// # Errors
/// It cannot be waited for.
pub(super) fn end(child: &mut Child) -> anyhow::Result<()> {
    for last in [Signal::TERM, Signal::KILL] {
        signal(child, last);
        let until = Instant::now() + END_PATIENCE;
        while Instant::now() < until {
            if child.try_wait()?.is_some() {
                // What it has left behind goes, too.
                signal(child, Signal::KILL);
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
    }
    child.wait()?;
    Ok(())
}

fn signal(child: &Child, signal: Signal) {
    let Some(group) = rustix::process::Pid::from_raw(child.id().cast_signed()) else { return };
    // It may have ended by itself.
    let _ = rustix::process::kill_process_group(group, signal);
}

/// Whether every thread of every process of a group sleeps: none runs, wants to run, or waits for the disk (`R`, `D` in
/// proc_pid_stat(5)).
fn is_quiet(group: u32) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.filter(|pid| state_and_group(&format!("/proc/{pid}/stat")).is_some_and(|(_, of)| of == group)).all(
        |pid| {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            let mut states =
                threads.filter_map(|thread| state_and_group(&thread.path().join("stat").to_string_lossy()));
            states.all(|(state, _)| !matches!(state, 'R' | 'D'))
        },
    )
}

fn state_and_group(path: &str) -> Option<(char, u32)> {
    let stat = fs::read_to_string(path).ok()?;
    // The name before it may have spaces and brackets of its own.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(1)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use super::*;

    fn watched(script: &str, limit: Duration) -> (Over, Duration) {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdout(Stdio::piped()).process_group(0);
        let (mut child, begun) = (command.spawn().unwrap(), Instant::now());
        let printed = Arc::new(AtomicBool::new(false));
        let (mut output, flag) = (child.stdout.take().unwrap(), Arc::clone(&printed));
        std::thread::spawn(move || {
            let mut byte = [0];
            if output.read(&mut byte).is_ok_and(|count| count > 0) {
                flag.store(true, Ordering::Relaxed);
            }
            // Open until it has ended, so that it is not killed by its next word.
            drop(output.read_to_end(&mut Vec::new()));
        });
        let over = watch(&mut child, &printed, limit).unwrap();
        assert!(child.try_wait().unwrap().is_some());
        (over, begun.elapsed())
    }

    #[test]
    fn a_start_is_over_with_the_end_the_first_output_or_silence_and_cut_otherwise() {
        let minute = Duration::from_secs(60);
        assert!(matches!(watched("exit 7", minute).0, Over::Ended(status) if status.code() == Some(7)));
        // However long it works before it says anything, and however silent it is then.
        let working = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo up; exec sleep 60";
        let (over, _) = watched(working, minute);
        assert!(matches!(over, Over::Printed(_)), "{over:?}");
        let (over, took) = watched("exec sleep 60", minute);
        assert!(matches!(over, Over::Quiet(_)) && took >= QUIET, "{over:?} {took:?}");
        let (over, _) = watched("while :; do :; done", Duration::from_millis(500));
        assert!(matches!(over, Over::Cut(_)), "{over:?}");
    }
}
