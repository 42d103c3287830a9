//! Health by a command: exit status 0 is well.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::exec;

/// What of its output is told when it fails.
const OUTPUT_BYTES_MAX: usize = 1024;

/// Why a command does not say that all is well.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandFault {
    #[error("there is no command")]
    None,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the command has not ended in time")]
    Late,
    #[error("{0}")]
    Silent(ExitStatus),
    #[error("{status}: {said}")]
    Said { status: ExitStatus, said: String },
}

/// Runs it; at `until` it is killed with everything that stayed in its process group.
pub(super) fn run(command: &[String], until: Instant) -> Result<(), CommandFault> {
    let [program, arguments @ ..] = command else { return Err(CommandFault::None) };
    let (mut output, write) = io::pipe()?;
    rustix::io::ioctl_fionbio(&output, true).map_err(io::Error::from)?;
    let mut child = {
        let _permit = exec::child_permit();
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).current_dir("/").process_group(0);
        command.stdout(write.try_clone()?).stderr(write);
        command.spawn()?
    };
    let ended = wait(&child, &mut output, until);
    let pid = Pid::from_child(&child);
    if ended.is_err() {
        // Before it is reaped, while its number cannot be another's.
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        let _ = child.kill();
    }
    let status = child.wait()?;
    let said = ended?;
    if status.success() {
        return Ok(());
    }
    let said = proto::text::line(String::from_utf8_lossy(&said).trim(), OUTPUT_BYTES_MAX);
    Err(if said.is_empty() { CommandFault::Silent(status) } else { CommandFault::Said { status, said } })
}

/// Waits for the end of the process; returns the beginning of what it has written. More than that is read and dropped,
/// for a command that floods must not be kept from its end.
fn wait(child: &Child, output: &mut io::PipeReader, until: Instant) -> Result<Vec<u8>, CommandFault> {
    let pidfd = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty());
    let pidfd = pidfd.map_err(io::Error::from)?;
    let (mut said, mut bytes, mut is_open) = (Vec::new(), [0; 4096], true);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(CommandFault::Late);
        }
        let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
        if is_open {
            fds.push(PollFd::from_borrowed_fd(output.as_fd(), PollFlags::IN));
        }
        let _ = rustix::event::poll(&mut fds, Timespec::try_from(left).ok().as_ref());
        let has_ended = !fds[0].revents().is_empty();
        match output.read(&mut bytes) {
            Ok(0) => is_open = false,
            Ok(n) if said.len() < OUTPUT_BYTES_MAX => said.extend_from_slice(&bytes[..n]),
            Ok(_) | Err(_) => {}
        }
        if has_ended {
            return Ok(said);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn sh(script: &str, ms: u64) -> Result<(), String> {
        let until = Instant::now() + Duration::from_millis(ms);
        run(&["/bin/sh".into(), "-c".into(), script.into()], until).map_err(|fault| fault.to_string())
    }

    #[test]
    fn its_exit_status_decides_and_what_it_says_is_told() {
        assert_eq!(sh("exit 0", 30_000), Ok(()));
        let fault = sh("echo no disk; exit 3", 30_000).unwrap_err();
        assert!(fault.contains("3") && fault.contains("no disk"), "{fault}");
        assert!(run(&["/nowhere/check".into()], Instant::now() + Duration::from_secs(30)).is_err());
    }

    #[test]
    fn one_that_hangs_or_floods_has_an_end() {
        assert!(sh("sleep 1000", 50).unwrap_err().contains("not ended in time"));
        assert!(sh("yes", 50).unwrap_err().contains("not ended in time"));
        let fault = sh("yes no | head -c 1000000; exit 1", 30_000).unwrap_err();
        assert!(fault.len() < 2 * OUTPUT_BYTES_MAX, "{} bytes", fault.len());
    }
}
