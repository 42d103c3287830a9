//! Ctrl-C, and SIGTERM, while a command waits for a manager or a mount daemon that says nothing: it ends at once.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::pseudo::{Behaviour, Pseudo};
use crate::rows::{Asks, every_asking_command};

/// A slow machine included; the other side would be waited for much longer.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// Starts a command that would wait for ten minutes, and waits until it has a connection.
fn waits(arguments: &[&str], dir: &Path) -> Option<Child> {
    // Whoever runs tests in the background may ignore SIGINT, and a program that is started so does too.
    let mut command = Command::new("env");
    command.args(["--default-signal=INT,TERM", env!("CARGO_BIN_EXE_manager-fs")]);
    command.args(["--silence", "10m"]).args(arguments);
    for name in ["store", "state", "cache", "run"] {
        command.env(format!("MANAGER_FS_{}", name.to_uppercase()), dir.join(name));
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let since = Instant::now();
    loop {
        // `status` tells what is on the disk when it has waited a second.
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        let fds = std::fs::read_dir(format!("/proc/{}/fd", child.id())).into_iter().flatten().flatten();
        let mut links = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        if links.any(|link| link.to_string_lossy().starts_with("socket:")) {
            return Some(child);
        }
        assert!(since.elapsed() < Duration::from_secs(60), "{arguments:?} asks nobody");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn ends(arguments: &[&str], dir: &Path, signal: Signal) {
    let Some(mut child) = waits(arguments, dir) else { return };
    kill_process(Pid::from_raw(child.id().cast_signed()).unwrap(), signal).unwrap();
    let since = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if since.elapsed() > ENDS_WITHIN {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("'{}' does not end with {signal:?}", arguments.join(" "));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let status = child.wait().unwrap();
    assert!(!status.success(), "'{}' says that it has done it", arguments.join(" "));
}

#[test]
fn ctrl_c_and_sigterm_end_every_command_that_waits() {
    for (behaviour, signal) in [(Behaviour::NeverAnswers, Signal::INT), (Behaviour::NeverAccepts, Signal::TERM)] {
        let pseudo = Pseudo::new(behaviour);
        let all: Vec<(Vec<&str>, Asks)> = every_asking_command();
        std::thread::scope(|scope| {
            for (arguments, _) in &all {
                scope.spawn(|| ends(arguments, pseudo.dir.path(), signal));
            }
        });
    }
}
