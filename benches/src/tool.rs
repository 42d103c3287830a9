//! Programs of the machine that a benchmark uses.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Where programs for root are, also when they are not in `PATH`.
const MORE_DIRS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Where a program is; `None` when it is not installed.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(MORE_DIRS.map(PathBuf::from));
    dirs.map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// The path of a program.
///
/// # Errors
/// It is not installed.
pub fn need(name: &str) -> Result<PathBuf> {
    find(name).with_context(|| format!("{name} is not installed"))
}

/// Runs a program to its end; what it prints goes nowhere unless it fails.
///
/// # Errors
/// It does not start or does not end with 0.
pub fn run<S: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = S>) -> Result<()> {
    finish(Command::new(need(name)?).args(arguments))
}

/// Runs a command to its end, as [`run`] does.
///
/// # Errors
/// It does not start or does not end with 0.
pub fn finish(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("running {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Builds this workspace's program anew if its source has changed, so that what is measured is what is read.
///
/// # Errors
/// It does not compile.
pub fn build_manager() -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--release", "--locked", "--quiet", "-p", "manager-fs", "--bin", "manager-fs"]);
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => bail!("building manager-fs ended with {status}"),
        Err(error) => Err(error).context("running cargo"),
    }
}

/// Bytes of all files at or below a path.
///
/// # Errors
/// Something below it cannot be read.
pub fn bytes_below(path: &Path) -> Result<u64> {
    let meta = path.symlink_metadata().with_context(|| format!("looking at {}", path.display()))?;
    if !meta.is_dir() {
        return Ok(if meta.is_file() { meta.len() } else { 0 });
    }
    let mut bytes = 0;
    for entry in std::fs::read_dir(path)? {
        bytes += bytes_below(&entry?.path())?;
    }
    Ok(bytes)
}
