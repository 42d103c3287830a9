//! README, word by word: its blocks run in their order, as one operator on one machine, and its two lines for newcomers
//! are those that CI runs.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use tests::command::{DEADLINE, program};
use tests::needs;
use tests::repository::{files, root};

/// What the shell prints after each command, before its exit status.
const MARK: &str = "--done--";

/// The lines of the `sh` blocks below one heading of README.
fn commands(heading: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join("README.md")).unwrap();
    let section = text.split("\n## ").find(|section| section.starts_with(heading));
    let section = section.unwrap_or_else(|| panic!("README has no section {heading:?}"));
    let blocks = section.split("\n```").skip(1).step_by(2).map(|block| block.split_once('\n').unwrap());
    let lines = blocks.filter(|(kind, _)| *kind == "sh").flat_map(|(_, lines)| lines.lines());
    lines.filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
}

/// One shell, in which a line runs after the other; everything that it has started ends with it.
struct Operator {
    shell: Child,
    input: ChildStdin,
    printed: Receiver<String>,
    log: String,
}

impl Operator {
    fn start(dir: &Path) -> Self {
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
    fn types(&mut self, line: &str) {
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

#[test]
fn readme_can_be_followed_word_by_word() {
    needs::demand(needs::mounts());
    let dir = tempfile::Builder::new().prefix("readme").tempdir().unwrap();
    // What a checkout has after the build, as far as README uses it.
    fs::create_dir_all(dir.path().join("target")).unwrap();
    std::os::unix::fs::symlink(program("manager-fs").parent().unwrap(), dir.path().join("target/release")).unwrap();
    fs::create_dir(dir.path().join("docs")).unwrap();
    for document in files("docs", ".md") {
        fs::copy(root().join(&document), dir.path().join(&document)).unwrap();
    }
    let lines = commands("Use it");
    assert!(lines.len() > 15, "{lines:#?}");
    let mut operator = Operator::start(dir.path());
    for line in lines {
        // The one word that every reader has to replace.
        let address = || fs::read_to_string(dir.path().join("store/address")).unwrap().trim().to_owned();
        let line =
            if line.contains("manager.example") { line.replace("manager.example:7420", &address()) } else { line };
        operator.types(&line);
    }
}

#[test]
fn ci_runs_the_lines_that_a_newcomer_runs() {
    let ci = fs::read_to_string(root().join(".ci/run")).unwrap();
    for heading in ["See it", "Test it"] {
        let lines = commands(heading);
        assert_eq!(lines.len(), 1, "one line is promised below {heading:?}: {lines:?}");
        assert!(ci.lines().any(|line| line == lines[0]), ".ci/run does not run {:?} as it stands", lines[0]);
    }
}

#[test]
fn what_readme_links_to_is_there() {
    let mut documents = vec!["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/README.md"];
    documents.retain(|name| root().join(name).is_file());
    assert_eq!(documents.len(), 4);
    for name in documents {
        let text = fs::read_to_string(root().join(name)).unwrap();
        let below = root().join(name).parent().unwrap().to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap();
            if !path.is_empty() && !path.contains("://") {
                assert!(below.join(path).exists(), "{name} links to {link}, which is not there");
            }
        }
    }
}
