//! Why a mount cannot be held, served or used.

use std::path::PathBuf;

use crate::host::files::IoFault;

/// A mount, its worker or its helper could not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] IoFault),
    /// One daemon a directory.
    #[error("a mount daemon already runs on {}: end it first, or use another {flag}", directory.display())]
    AlreadyRuns {
        /// Which directory it holds.
        directory: PathBuf,
        /// The flag that names another one.
        flag: &'static str,
    },
    /// Something else is mounted there.
    #[error("{} is already a mount point ({kind} from {from}): unmount that, or name another MOUNTPOINT", mountpoint.display())]
    Occupied {
        /// The directory that should be mounted on.
        mountpoint: PathBuf,
        /// The file system's type.
        kind: String,
        /// Its source, as the mount table has it.
        from: String,
    },
    /// The first worker ended before it was ready.
    #[error("the mount daemon's worker failed at its start; see its message above")]
    WorkerFailed,
    /// The hidden commands need what a holder leaves open for them.
    #[error("this command is started by 'manager-fs mount' and not by hand{detail}")]
    NotInherited {
        /// What was missing, beginning with ": ", or nothing.
        detail: String,
    },
}
