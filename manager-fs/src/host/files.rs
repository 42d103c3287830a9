//! Small files of this host: whole or absent after a power cut, and never read without a bound. And how a failed system
//! call says what it was for.

use std::fs;
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::moments::{self, Moment};
use agent_core::FileFault;
use agent_core::internal::durable::{self, Durability};

/// A system call failed while something was done.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {error}")]
pub struct IoFault {
    /// What was being done, with the path: "create /run/x".
    what: String,
    /// Why that failed. Not a `source`: the text says it already.
    error: io::Error,
}

/// Says what a failed system call was for.
pub(crate) trait Doing<T> {
    /// `what` names what was being done, and to which file.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, IoFault>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, IoFault> {
        self.map_err(|error| IoFault { what: what(), error: error.into() })
    }
}

/// Opens the file of a lock, and makes it if need be. Nobody else may open it: whoever can open a file can lock it.
///
/// # Errors
/// Of the file system.
pub(crate) fn lock_file(path: &Path) -> io::Result<fs::File> {
    let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Replaces `path` with `bytes`: after a power cut it holds the old bytes or the new ones. Missing directories are made.
///
/// # Errors
/// Of the file system; the old file is untouched then.
pub(crate) fn replace(moment: Moment, path: &Path, bytes: &[u8]) -> io::Result<()> {
    moments::reach(moment, path)?;
    let directory = path.parent().ok_or_else(|| io::Error::other("a file needs a directory"))?;
    let written = durable::create_dir(directory).and_then(|()| durable::write(path, bytes, Durability::PowerCut));
    written.map_err(|fault| match fault {
        FileFault::Io { source, .. } => source,
        other => io::Error::other(other.to_string()),
    })
}

/// Reads a file that may be missing, at most `bytes_max` bytes.
///
/// # Errors
/// Of the file system, or the file is larger than anything that was ever written there.
pub(crate) fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let bytes = match fs::metadata(path) {
        Ok(found) if found.len() > bytes_max => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} has {} bytes; at most {bytes_max} are expected", path.display(), found.len()),
            ));
        }
        Ok(_) => fs::read(path),
        Err(error) => Err(error),
    };
    match bytes {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_whole_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        replace(Moment::RecordKeep, &path, b"one").unwrap();
        replace(Moment::RecordKeep, &path, b"two").unwrap();
        assert_eq!(read_bounded(&path, 3).unwrap().as_deref(), Some(b"two".as_slice()));
        assert!(read_bounded(&path, 2).is_err());
        assert_eq!(read_bounded(&dir.path().join("none"), 2).unwrap(), None);
        assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 1);
    }
}
