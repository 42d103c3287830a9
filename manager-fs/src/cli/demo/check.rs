//! What is looked at before anything starts: what must be there, and what this machine lacks that the demo can do without.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::DemoOptions;
use super::material;
use crate::cli::units::bytes;

/// Beside the files that are backed up: the store, the cache and the trees of three versions.
const ROOM_FOR_THE_REST: u64 = 250_000_000;

/// What was found.
pub(super) struct Checked {
    /// The reference agent's program.
    pub(super) agent: PathBuf,
    /// Where everything will lie; it does not exist yet.
    pub(super) root: PathBuf,
    /// What this machine lacks, and what that means.
    pub(super) degraded: Vec<String>,
}

/// Looks at everything that could be missing later.
///
/// # Errors
/// What is missing, and how to get it.
pub(super) fn before_anything_starts(options: &DemoOptions) -> Result<Checked> {
    let agent = material::agent_binary(options.agent.as_deref())?;
    let parent = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let parent = std::path::absolute(&parent).with_context(|| parent.display().to_string())?;
    writable(&parent)?;
    let needed = options.data_bytes.saturating_mul(3).saturating_add(ROOM_FOR_THE_REST);
    room(&parent, needed, options)?;
    let root = parent.join(format!("manager-fs-demo-{}", std::process::id()));
    ensure!(!root.exists(), "{} is there already: remove it, or give another --dir", root.display());
    Ok(Checked { agent, root, degraded: degraded() })
}

/// By trying: permissions, read-only file systems and exhausted inodes look alike only there.
fn writable(parent: &Path) -> Result<()> {
    let advice = || format!("the demo cannot write to {}: give another directory with --dir", parent.display());
    ensure!(parent.is_dir(), "{} is no directory: give another with --dir", parent.display());
    let probe = parent.join(format!(".manager-fs-demo-{}", std::process::id()));
    std::fs::write(&probe, b"room").inspect_err(|_| drop(std::fs::remove_file(&probe))).with_context(advice)?;
    std::fs::remove_file(&probe).with_context(advice)
}

fn room(parent: &Path, needed: u64, options: &DemoOptions) -> Result<()> {
    let space =
        rustix::fs::statvfs(parent).with_context(|| format!("asking for the room in {}", parent.display()))?;
    let there = space.f_bavail.saturating_mul(space.f_frsize);
    if there < needed {
        let hint = if options.data_bytes > 50_000_000 { ", or back up less with --data-bytes 50MB" } else { "" };
        bail!(
            "{} has {} free, and the demo needs {}: give another directory with --dir{hint}",
            parent.display(),
            bytes(there),
            bytes(needed)
        );
    }
    Ok(())
}

/// What the demo does without.
fn degraded() -> Vec<String> {
    let mut lacks = Vec::new();
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        lacks.push(format!(
            "/dev/fuse cannot be opened ({error}): a version is fetched whole before it starts, not as it is read \
             (`modprobe fuse`, or give the container the device)"
        ));
    }
    if !rustix::process::geteuid().is_root() && !user_namespaces_are_allowed() {
        lacks.push(String::from(
            "users may not make user namespaces here: trees are plain copies, not mounts (run the demo as root, or \
             `sysctl user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1 \
             kernel.apparmor_restrict_unprivileged_userns=0`)",
        ));
    }
    lacks
}

fn user_namespaces_are_allowed() -> bool {
    // A file that is not there forbids nothing.
    let allows = |path: &str, good: fn(i64) -> bool| {
        std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).is_none_or(good)
    };
    allows("/proc/sys/user/max_user_namespaces", |most| most > 0)
        && allows("/proc/sys/kernel/unprivileged_userns_clone", |on| on > 0)
        && allows("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", |on| on == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_none_or_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        writable(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the probe is gone");
        let missing = dir.path().join("missing");
        let error = writable(&missing).unwrap_err().to_string();
        assert!(error.contains("missing") && error.contains("--dir"), "{error}");
        // Also root cannot write there.
        let error = format!("{:#}", writable(Path::new("/proc")).unwrap_err());
        assert!(error.contains("/proc") && error.contains("--dir"), "{error}");
    }
}
