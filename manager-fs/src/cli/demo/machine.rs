//! The demo's processes and directories on this machine, and their end.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

use crate::cli::out::note;
use crate::cli::units::duration;

/// How long a service may take to say that it is ready.
const READY_DEADLINE: Duration = Duration::from_secs(30);
/// How long a service may take to end after SIGTERM before it is killed.
const END_DEADLINE: Duration = Duration::from_secs(20);

/// Where everything of the demo lives: one directory, removed at the end.
pub(super) struct Machine {
    root: PathBuf,
    program: PathBuf,
    services: Vec<(&'static str, Child)>,
}

/// The output of a command that ended with 0.
pub(super) struct Output {
    /// Standard output.
    pub(super) text: String,
}

impl Output {
    /// The one JSON document on standard output.
    pub(super) fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.text).with_context(|| format!("not one JSON document: {}", self.text))
    }

    /// The last of several JSON lines on standard output.
    pub(super) fn last_json_line(&self) -> Result<Value> {
        let line = self.text.lines().last().unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("not a JSON line: {line}"))
    }
}

impl Machine {
    /// Makes the demo's directory.
    pub(super) fn create(root: PathBuf) -> Result<Self> {
        std::fs::create_dir(&root).with_context(|| format!("making {}", root.display()))?;
        let program = std::env::current_exe().context("finding this program's own file")?;
        Ok(Self { root, program, services: Vec::new() })
    }

    /// The demo's directory.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// A path in the demo's directory.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args);
        for (variable, name) in [
            ("MANAGER_FS_STORE", "store"),
            ("MANAGER_FS_STATE", "state"),
            ("MANAGER_FS_CACHE", "cache"),
            ("MANAGER_FS_RUN", "run"),
        ] {
            command.env(variable, self.path(name));
        }
        // The demo's own answers: nobody's variables.
        for variable in ["MANAGER_FS_MANAGER", "MANAGER_FS_TOKEN", "MANAGER_FS_TOKEN_FILE", "MANAGER_FS_CHUNK_BYTES"]
        {
            command.env_remove(variable);
        }
        // Ctrl-C reaches the demo alone, which then ends its services in the right order.
        command.process_group(0).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Starts a service and waits for the line on its stderr that says it is ready; later lines go into `NAME.log`.
    /// Returns that line.
    pub(super) async fn start(&mut self, name: &'static str, args: &[&str]) -> Result<String> {
        let mut child = self.command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let stderr = child.stderr.take().context("a piped stderr")?;
        self.services.push((name, child));
        let log = self.path(&format!("{name}.log"));
        let (tell, told) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let mut tell = Some(tell);
            let mut lines = BufReader::new(stderr).lines();
            let Ok(mut file) = tokio::fs::File::create(&log).await else { return };
            while let Ok(Some(line)) = lines.next_line().await {
                let _ = file.write_all(format!("{line}\n").as_bytes()).await;
                let _ = file.flush().await;
                if line.contains("ready")
                    && let Some(tell) = tell.take()
                {
                    let _ = tell.send(line);
                }
            }
        });
        match tokio::time::timeout(READY_DEADLINE, told).await {
            Ok(Ok(line)) => Ok(line),
            _ => {
                let log = std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
                bail!("'manager-fs {}' did not become ready; it said:\n{log}", args.join(" "))
            }
        }
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// It did not end with 0; the error has what it printed.
    pub(super) async fn run(&self, args: &[&str]) -> Result<Output> {
        let (code, text, errors) = self.run_any(args).await?;
        if code != Some(0) {
            bail!("'manager-fs {}' ended with {code:?}:\n{errors}{text}", args.join(" "));
        }
        Ok(Output { text })
    }

    /// Runs a command to its end, whatever its exit code; returns code, standard output and standard error.
    pub(super) async fn run_any(&self, args: &[&str]) -> Result<(Option<i32>, String, String)> {
        let output = self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).output().await?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((output.status.code(), text(output.stdout), text(output.stderr)))
    }

    /// Runs a command to its end, and gives every line of its standard output to `on` as it comes.
    ///
    /// # Errors
    /// As [`Machine::run`].
    pub(super) async fn follow(&self, args: &[&str], mut on: impl FnMut(&str)) -> Result<Output> {
        let mut child = self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut lines = BufReader::new(stdout.context("a piped stdout")?).lines();
        let mut errors = stderr.context("a piped stderr")?;
        let errors = tokio::spawn(async move {
            let mut text = Vec::new();
            let _ = tokio::io::AsyncReadExt::read_to_end(&mut errors, &mut text).await;
            String::from_utf8_lossy(&text).into_owned()
        });
        let mut text = String::new();
        while let Some(line) = lines.next_line().await? {
            on(&line);
            text.push_str(&line);
            text.push('\n');
        }
        let (status, errors) = (child.wait().await?, errors.await.unwrap_or_default());
        if !status.success() {
            bail!("'manager-fs {}' ended with {:?}:\n{errors}{text}", args.join(" "), status.code());
        }
        Ok(Output { text })
    }

    /// Ends the services, last started first, and removes the directory (kept when `keep`). Problems are printed.
    pub(super) async fn tear_down(mut self, keep: bool) -> bool {
        let mut clean = true;
        for (name, mut child) in self.services.drain(..).rev() {
            if let Some(pid) = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            if tokio::time::timeout(END_DEADLINE, child.wait()).await.is_err() {
                note!("{name} did not end within {} and is killed", duration(END_DEADLINE));
                let _ = child.kill().await;
                clean = false;
            }
        }
        if !keep && let Err(error) = remove(&self.root) {
            note!("{} is left over: {error}", self.root.display());
            clean = false;
        }
        clean
    }
}

/// Removes a directory whose parts may be read-only to their owner.
fn remove(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::set_permissions(entry.path(), std::fs::Permissions::from_mode(0o700))?;
            remove(&entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    std::fs::remove_dir(dir)
}
