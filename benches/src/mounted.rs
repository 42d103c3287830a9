//! Mounts and daemons of rivals, which end when they are dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::tool;

/// How long a mount may take to appear.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often it is looked for: the table of mounts can only be asked.
const PAUSE: Duration = Duration::from_millis(1);

/// A directory on which something is mounted.
#[derive(Debug)]
pub struct Mounted {
    path: PathBuf,
}

impl Mounted {
    /// Takes over what a command has mounted there.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Mounts a squashfs image, read only, through a loop device.
    ///
    /// # Errors
    /// The kernel cannot mount it.
    pub fn image(image: &Path, path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path)?;
        tool::finish(Command::new("mount").args(["-t", "squashfs", "-o", "loop,ro"]).arg(image).arg(path))?;
        Ok(Self::at(path))
    }

    /// Waits until the daemon has mounted something there.
    ///
    /// # Errors
    /// The daemon ends instead, or takes too long.
    pub fn by(daemon: &mut Daemon, path: &Path) -> Result<Self> {
        let since = Instant::now();
        while !is_mounted(path)? {
            if let Some(status) = daemon.child.try_wait()? {
                bail!("{} ended with {status} before it mounted anything", daemon.name);
            }
            if since.elapsed() > DEADLINE {
                bail!("{} mounted nothing within {DEADLINE:?}", daemon.name);
            }
            std::thread::sleep(PAUSE);
        }
        Ok(Self::at(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let path = &self.path;
        if tool::finish(Command::new("umount").arg(path)).is_err() {
            // Something still looks at it, or its daemon is gone.
            let _ = tool::finish(Command::new("umount").arg("-l").arg(path));
        }
    }
}

fn is_mounted(path: &Path) -> Result<bool> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|mount| Path::new(mount) == path)))
}

/// A program in the background.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
}

impl Daemon {
    /// Starts it.
    ///
    /// # Errors
    /// It is not there.
    pub fn start(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Ok(Self { child: child.with_context(|| format!("starting {name}"))?, name })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::Signal::TERM,
        );
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(5) {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
