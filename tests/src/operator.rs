//! Somebody who follows a document: one shell, into which its lines are typed in their order.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::command::{DEADLINE, program};
use crate::repository::root;

/// What the shell prints after each command, before its exit status.
const MARK: &str = "--done--";

/// The lines of the `sh` blocks below one heading of a document.
pub fn commands(document: &str, heading: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(document)).unwrap();
    let section = text.split("\n## ").find(|section| section.starts_with(heading));
    let section = section.unwrap_or_else(|| panic!("{document} has no section {heading:?}"));
    let blocks = section.split("\n```").skip(1).step_by(2).map(|block| block.split_once('\n').unwrap());
    let lines = blocks.filter(|(kind, _)| *kind == "sh").flat_map(|(_, lines)| lines.lines());
    lines.filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
}

/// One shell, in which a line runs after the other; everything that it has started ends with it.
pub struct Operator {
    shell: Child,
    input: ChildStdin,
    printed: Receiver<String>,
    log: String,
}

impl Operator {
    /// In this directory, which is also where the store, the state and the cache are.
    pub fn start(dir: &Path) -> Self {
        let mut command = Command::new("sh");
        for (variable, name) in
            [("MANAGER_FS_STORE", "store"), ("MANAGER_FS_STATE", "state"), ("MANAGER_FS_CACHE", "cache")]
        {
            command.env(variable, dir.join(name));
        }
        command.env("MANAGER_FS_RUN", dir.join("run")).env("MANAGER_FS_LISTEN", "127.0.0.1:0");
        let programs = program("manager-fs").parent().unwrap().to_owned();
        let path = std::env::join_paths(
            [programs].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
        );
        command.env("PATH", path.unwrap()).current_dir(dir).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut shell = command.spawn().expect("sh");
        let (say, printed) = channel();
        let (out, err) = (shell.stdout.take().unwrap(), shell.stderr.take().unwrap());
        let both: [Box<dyn BufRead + Send>; 2] = [Box::new(BufReader::new(out)), Box::new(BufReader::new(err))];
        for pipe in both {
            let say = say.clone();
            std::thread::spawn(move || pipe.lines().map_while(Result::ok).try_for_each(|line| say.send(line)));
        }
        let input = shell.stdin.take().unwrap();
        Self { shell, input, printed, log: String::new() }
    }

    /// Types a line; waits until it is done and, if it is a service, until that is ready.
    pub fn types(&mut self, line: &str) {
        let service = line.split('#').next().unwrap().trim_end().ends_with('&');
        self.log.push_str(&format!("$ {line}\n"));
        writeln!(self.input, "{line}\necho {MARK} $?").unwrap();
        let (since, mut status, mut ready) = (Instant::now(), None, !service);
        while status.is_none() || !ready {
            let left = DEADLINE.saturating_sub(since.elapsed());
            let Ok(printed) = self.printed.recv_timeout(left) else {
                panic!("not done after {DEADLINE:?}: {line}\n{}", self.log)
            };
            match printed.strip_prefix(MARK) {
                Some(code) => status = Some(code.trim().to_owned()),
                None => {
                    ready |= printed.contains("ready");
                    self.log.push_str(&format!("{printed}\n"));
                }
            }
        }
        assert_eq!(status.as_deref(), Some("0"), "{line}\n{}", self.log);
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_child(&self.shell);
        // The last service first, as an operator would; the shell itself last.
        let end = "for service in $(jobs -p | sort -rn); do kill $service; wait $service; done; exit";
        let _ = writeln!(self.input, "{end}");
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(30) && matches!(self.shell.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.shell.wait();
    }
}
