//! The process on the other side of a local socket: who it is, and why it may be silent.

use std::os::fd::AsFd;
use std::time::Duration;

use super::units;
use crate::version::VERSION;

/// The process that listens where this stream was connected to.
pub(super) fn of(stream: &impl AsFd) -> Option<u32> {
    let peer = rustix::net::sockopt::socket_peercred(stream).ok()?;
    u32::try_from(peer.pid.as_raw_nonzero().get()).ok()
}

/// That nothing came for this long, and what to do, for people. `what` is `manager` or `mount daemon`.
pub(super) fn silent(what: &str, pid: Option<u32>, waited: Duration) -> String {
    let waited = units::duration(waited);
    match pid {
        Some(pid) if is_stopped(pid) => format!(
            "the {what} gives no sign of life: its process {pid} is stopped (`kill -CONT {pid}` continues it)"
        ),
        Some(pid) => format!(
            "the {what} (process {pid}) has given no sign of life for {waited}: it hangs, or this machine is overloaded \
             (--silence waits longer)"
        ),
        None => format!("the {what} has given no sign of life for {waited} (--silence waits longer)"),
    }
}

/// That the other side is of another build, and what to do, for people. `command` is what starts it.
pub(super) fn other_build(what: &str, command: &str, pid: Option<u32>, theirs: &str) -> String {
    let program = pid.and_then(|pid| std::fs::read_link(format!("/proc/{pid}/exe")).ok());
    let program = program.map_or_else(|| String::from("the same program"), |path| path.display().to_string());
    let this = if theirs == VERSION { "another build of it" } else { VERSION };
    // As readlink(2) gives the program of a process when its file has been replaced: an update, most likely.
    let what_to_do = match program.strip_suffix(" (deleted)") {
        Some(replaced) => {
            format!("{replaced} was replaced since; end the {what} and start `manager-fs {command}` again")
        }
        None => format!("use {program}, or start `manager-fs {command}` of this version"),
    };
    format!("this {what} runs version {theirs}, this program is {this}: {what_to_do}")
}

/// Whether a process is stopped by a signal or a debugger: `T` or `t` in proc_pid_stat(5).
pub(super) fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before it may have spaces and brackets of its own.
    let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
    state.is_some_and(|state| state.starts_with(['T', 't']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_process_is_told_apart() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
        let text = silent("manager", Some(child.id()), Duration::from_secs(1));
        assert!(text.contains("for 1.0 s") && text.contains(&child.id().to_string()), "{text}");
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        // The signal is delivered when the process is scheduled next.
        while !is_stopped(child.id()) {
            std::thread::yield_now();
        }
        assert!(silent("manager", Some(child.id()), Duration::from_secs(1)).contains("kill -CONT"));
        child.kill().unwrap();
        child.wait().unwrap();
        let other = other_build("manager", "serve", Some(std::process::id()), "0.0.7");
        let own = std::env::current_exe().unwrap();
        assert!(other.starts_with("this manager runs version 0.0.7, this program is "), "{other}");
        assert!(other.contains(&format!("use {}", own.display())), "{other}");
        assert!(silent("mount daemon", None, Duration::from_secs(2)).contains("the mount daemon has given"));
    }
}
