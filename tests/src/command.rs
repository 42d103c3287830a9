//! Running the built programs: to their end, or as services that say when they are ready.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::needs;

/// How long a service may take to be ready, and a condition to come true.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// How long a service may take to end by itself.
const END_DEADLINE: Duration = Duration::from_secs(20);

/// A built program of this workspace.
///
/// # Panics
/// It has not been built; the message says how.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test's own file");
    // target/PROFILE/deps/test-HASH
    let profile = test.parent().and_then(Path::parent).expect("the profile's directory");
    let path = profile.join(name);
    assert!(
        path.is_file(),
        "{} is not built: run 'cargo build --workspace --locked' (with --release if the tests have it) first",
        path.display()
    );
    path
}

/// `command` on a machine where the directory `disk` is a disk of its own of `bytes`: in a user and a mount namespace,
/// which root is not needed for. What lies on that disk is seen below `/proc/PID/root` of the process.
///
/// # Panics
/// User namespaces are forbidden here.
#[track_caller]
pub fn on_a_small_disk(command: &Command, disk: &Path, bytes: u64) -> Command {
    needs::demand(needs::user_namespaces());
    let script = "mount -t tmpfs -o size=$1 small \"$2\" && shift 2 && exec \"$@\"";
    let mut inside = Command::new("unshare");
    inside.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
    inside.arg(bytes.to_string()).arg(disk).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            inside.env(name, value);
        }
    }
    inside
}

/// What a command printed and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub line: String,
    /// Exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Runs a command to its end.
    pub fn of(command: &mut Command) -> Self {
        let line = format!("{command:?}");
        let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{line}: {e}"));
        Self {
            line,
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Demands this exit code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}\n--- stdout\n{}\n--- stderr\n{}", self.line, self.stdout, self.stderr);
        self
    }

    /// Demands success and returns trimmed standard output.
    #[track_caller]
    pub fn text(self) -> String {
        self.expect(0).stdout.trim().to_owned()
    }

    /// The one JSON document on standard output.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{}: {e}\n{}", self.line, self.stdout))
    }

    /// The JSON lines on standard output.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<Value> {
        let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{}: {e}\n{line}", self.line));
        self.stdout.lines().map(parse).collect()
    }
}

/// A program that runs until it is told to end.
#[derive(Debug)]
pub struct Service {
    name: String,
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Service {
    /// Starts a service and waits for the line on its standard error that contains `ready`.
    ///
    /// # Panics
    /// It ends, or the line does not come within [`DEADLINE`]; the message has what it printed.
    #[track_caller]
    pub fn start(name: &str, command: &mut Command) -> Self {
        let service = Self::spawn(name, command, "ready");
        match service {
            Ok(service) => service,
            Err(log) => panic!("{name} did not become ready:\n{log}"),
        }
    }

    /// Like [`Service::start`], but a service that ends instead is an answer: what it printed, with its exit status.
    pub fn spawn(name: &str, command: &mut Command, ready: &'static str) -> Result<Self, String> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let stderr = child.stderr.take().expect("a piped stderr");
        let log = Arc::new(Mutex::new(String::new()));
        let (tell, told) = mpsc::channel();
        let (copy, show) = (Arc::clone(&log), std::env::var_os("MANAGER_FS_TEST_LOG").is_some());
        let prefix = name.to_owned();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                if show {
                    eprintln!("{prefix}: {line}");
                }
                if line.contains(ready) {
                    let _ = tell.send(());
                }
                let mut log = copy.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut service = Self { name: name.to_owned(), child, log };
        if told.recv_timeout(DEADLINE).is_ok() {
            return Ok(service);
        }
        let status = service.child.try_wait();
        let log = service.log();
        Err(format!("{log}(status {status:?})"))
    }

    /// Everything that it has printed on standard error.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it with SIGKILL and waits.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end and waits. Returns its exit code.
    ///
    /// # Panics
    /// It does not end in time.
    pub fn end(&mut self) -> Option<i32> {
        match self.try_end() {
            Some(code) => code,
            None => panic!("{} did not end within {END_DEADLINE:?}:\n{}", self.name, self.log()),
        }
    }

    fn try_end(&mut self) -> Option<Option<i32>> {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let since = Instant::now();
        while since.elapsed() < END_DEADLINE {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status.code());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill();
        None
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.try_end().is_none() {
            eprintln!("{} did not end by itself and was killed", self.name);
        }
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}", self.name, self.log());
        }
    }
}

/// Waits until a condition holds. What is waited for lies in another process and cannot be subscribed to.
///
/// # Panics
/// It does not hold within [`DEADLINE`].
#[track_caller]
pub fn until<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    until_in(DEADLINE, what, condition)
}

/// The same for what a manager does at the lowest priority: on a machine that has other work that may take minutes.
///
/// # Panics
/// It does not hold within ten times [`DEADLINE`].
#[track_caller]
pub fn until_at_rest<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    until_in(10 * DEADLINE, what, condition)
}

#[track_caller]
fn until_in<T>(deadline: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(since.elapsed() < deadline, "waited {deadline:?} in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
