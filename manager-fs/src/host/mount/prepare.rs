//! What must be true before a mount is held: a namespace in which it may be made, directories, and nobody else on them.

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::mounted::generations;
use super::{Layout, MountError, overlay};
use crate::host::files::{self, Doing};

/// Where the mounts are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamespaceChoice {
    /// In the host's namespace if this user may mount there, else in a new user namespace.
    Auto,
    /// In a new user namespace.
    New,
    /// In this process's namespace, whatever it may.
    Own,
}

/// Enters a new user and mount namespace where that is wanted; returns this process's id then.
pub(super) fn enter_namespace(choice: NamespaceChoice) -> Result<Option<u32>, MountError> {
    let root = rustix::process::geteuid().is_root();
    if choice == NamespaceChoice::Own || (choice == NamespaceChoice::Auto && root) {
        return Ok(None);
    }
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if let Err(error) = crate::sys::unshare_user_and_mounts() {
        if choice == NamespaceChoice::New {
            return Err(error).doing(|| "enter a user namespace".to_owned()).map_err(MountError::from);
        }
        // Without it only the plain copy remains, which needs no privilege.
        tracing::warn!(%error, "user namespaces are not permitted here");
        return Ok(None);
    }
    // The kernel refuses a group map of an unprivileged writer unless setgroups is given up.
    std::fs::write("/proc/self/setgroups", "deny").doing(|| "give up setgroups".to_owned())?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1")).doing(|| "map the group".to_owned())?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1")).doing(|| "map the user".to_owned())?;
    // Mounts made here must not be proposed to the parent namespace.
    let slave = rustix::mount::MountPropagationFlags::DOWNSTREAM | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slave).doing(|| "make the namespace's mounts its own".to_owned())?;
    Ok(Some(std::process::id()))
}

pub(super) fn prepare_dirs(layout: &Layout) -> Result<(), MountError> {
    let make = |dir: &Path, mode: u32| {
        std::fs::DirBuilder::new().recursive(true).mode(mode).create(dir)?;
        Ok::<_, io::Error>(())
    };
    for (dir, mode) in [
        (layout.run.clone(), 0o755),
        (layout.generations(), 0o755),
        (layout.cache.clone(), 0o700),
        (layout.local_objects(), 0o700),
    ] {
        make(&dir, mode).doing(|| format!("create {}", dir.display()))?;
    }
    make(&layout.meta(), 0o700).doing(|| format!("create {}", layout.meta().display()))?;
    // A dead mount answers ENOTCONN to everything, so the mount point is only made where nothing is mounted.
    if !mount_table()?.iter().any(|line| line.target == layout.mountpoint) {
        make(&layout.mountpoint, 0o755).doing(|| format!("create {}", layout.mountpoint.display()))?;
        std::fs::set_permissions(&layout.mountpoint, std::fs::Permissions::from_mode(0o755))
            .doing(|| format!("open {} to everyone", layout.mountpoint.display()))?;
    }
    Ok(())
}

/// One daemon a directory: two would answer for one host, or write one cache.
pub(super) fn lock_dirs(layout: &Layout, state: Option<&Path>) -> Result<Vec<std::fs::File>, MountError> {
    let state = state.map(|state| (state, "--state"));
    let dirs = [(layout.run.as_path(), "--run"), (layout.cache.as_path(), "--cache")];
    dirs.into_iter().chain(state).map(|(directory, flag)| lock_dir(directory, flag)).collect()
}

fn lock_dir(directory: &Path, flag: &'static str) -> Result<std::fs::File, MountError> {
    let path = directory.join("mount.lock");
    let file = match files::lock_file(&path) {
        // A cache that cannot be written is served from, and nobody else can write it either.
        Err(error) if flag == "--cache" && is_read_only(&error) => match std::fs::File::open(&path) {
            Ok(file) => Ok(file),
            Err(_) => std::fs::File::open(directory),
        },
        opened => opened,
    };
    let file = file.doing(|| format!("create {}", path.display()))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            // For `status`, which looks whether the process is stopped.
            let _ = file.set_len(0).and_then(|()| file.write_all_at(std::process::id().to_string().as_bytes(), 0));
            Ok(file)
        }
        Err(_) => Err(MountError::AlreadyRuns { directory: directory.to_owned(), flag }),
    }
}

fn is_read_only(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied | io::ErrorKind::StorageFull
    )
}

/// The mounts of generations that are left: in use, so never detached.
///
/// # Errors
/// The mount table cannot be read.
pub fn still_mounted(layout: &Layout) -> Result<Vec<PathBuf>, MountError> {
    let generations = layout.generations();
    let targets = mount_table()?.into_iter().map(|line| line.target);
    Ok(targets.filter(|target| target.starts_with(&generations)).collect())
}

/// A holder that was killed leaves a mount that nobody answers.
pub(super) fn clear_dead_mount(mountpoint: &Path) -> Result<(), MountError> {
    let here = |line: &overlay::MountLine| line.target == mountpoint;
    while let Some(line) = mount_table()?.into_iter().rev().find(here) {
        if line.kind != "fuse" || line.source != "manager-fs" {
            let mountpoint = mountpoint.to_owned();
            return Err(MountError::Occupied { mountpoint, kind: line.kind, from: line.source });
        }
        overlay::detach_dead(mountpoint).doing(|| format!("unmount the dead {}", mountpoint.display()))?;
    }
    Ok(())
}

/// An overlay over the FUSE mount of an earlier holder still shows what is in the page cache and fails for the rest. The
/// helper takes it away as soon as nobody uses it, and mounts anew over it before that. Node numbers died with that mount.
pub(super) fn note_stale_generations(layout: &Layout) -> Result<(), MountError> {
    let _ = std::fs::remove_file(layout.numbers());
    let mounted = generations(layout).doing(|| "read the mount table".to_owned())?;
    let stale: String = mounted
        .into_iter()
        .filter(|mounted| mounted.with_fuse)
        .map(|mounted| format!("{}\n", mounted.tree))
        .collect();
    Ok(std::fs::write(layout.stale(), stale).doing(|| format!("write {}", layout.stale().display()))?)
}

fn mount_table() -> Result<Vec<overlay::MountLine>, MountError> {
    Ok(overlay::mounts().doing(|| "read the mount table".to_owned())?)
}
