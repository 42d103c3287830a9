//! Small files that survive a power cut: written whole beside their place, synced, then renamed into it.
//!
//! ```text
//! magic (8 bytes, the last one is the format) | BLAKE3 of the body (32 bytes) | body (proto::codec)
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use proto::ObjectId;

/// How far a write must have come when the call returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It survives a power cut: file and directory are synced.
    PowerCut,
    /// It survives the death of the process. For what is written between drain and exec, where every sync is time in
    /// which nobody is served, and whose loss costs a report and nothing else.
    ProcessDeath,
}

/// A file that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileFault {
    /// The file system failed.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file that was read or written.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// It begins with something else, or is of another format.
    #[error("{path}: not a {what} of this format; it was written by another program or a newer version", path = path.display())]
    Format {
        /// The file that was read.
        path: PathBuf,
        /// What it should have been.
        what: &'static str,
    },
    /// The bytes are not those that were written.
    #[error("{path}: the {what} is damaged ({detail})", path = path.display())]
    Damaged {
        /// The file that was read.
        path: PathBuf,
        /// What it should have been.
        what: &'static str,
        /// How it shows.
        detail: String,
    },
}

impl FileFault {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        FileFault::Io { path: path.to_owned(), source }
    }

    /// Whether the file system could not be asked; asking again may help.
    pub fn is_io(&self) -> bool {
        matches!(self, FileFault::Io { .. })
    }
}

/// Makes a directory and its parents, readable to their owner alone.
///
/// # Errors
/// It is not there and cannot be made.
pub fn create_dir(path: &Path) -> Result<(), FileFault> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| FileFault::io(path, e))
}

/// Replaces `path` by a file with these bytes, all or nothing. A directory that has gone since it was made is made anew:
/// whoever removed it did not want this host to be without its agent's word.
///
/// # Errors
/// The file system's; the old file is still there then.
pub fn write(path: &Path, bytes: &[u8], durability: Durability) -> Result<(), FileFault> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(FileFault::io(path, io::Error::from(io::ErrorKind::InvalidInput)));
    };
    // The name is of this process and thread, since stub and agent may write to the same directory.
    let thread = rustix::thread::gettid().as_raw_nonzero();
    let temporary = dir.join(format!(".{}.{thread}.tmp", name.to_string_lossy()));
    let written = match write_new(&temporary, bytes, durability) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            create_dir(dir)?;
            write_new(&temporary, bytes, durability)
        }
        written => written,
    };
    let written = written.and_then(|()| fs::rename(&temporary, path));
    if let Err(e) = written {
        drop(fs::remove_file(&temporary));
        return Err(FileFault::io(path, e));
    }
    match durability {
        Durability::PowerCut => sync_dir(dir),
        Durability::ProcessDeath => Ok(()),
    }
}

fn write_new(path: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    match durability {
        Durability::PowerCut => file.sync_all(),
        Durability::ProcessDeath => Ok(()),
    }
}

/// Makes renames and removals in a directory durable.
///
/// # Errors
/// The directory cannot be opened or synced.
pub fn sync_dir(dir: &Path) -> Result<(), FileFault> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| FileFault::io(dir, e))
}

/// Removes a file; that it is not there is fine.
///
/// # Errors
/// The file system's.
pub fn remove(path: &Path, durability: Durability) -> Result<(), FileFault> {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(FileFault::io(path, e)),
    }
    match (durability, path.parent()) {
        (Durability::PowerCut, Some(dir)) => sync_dir(dir),
        _ => Ok(()),
    }
}

/// Puts magic and checksum before a body.
pub(crate) fn seal(magic: &[u8; 8], body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(40 + body.len());
    bytes.extend_from_slice(magic);
    bytes.extend_from_slice(ObjectId::of(body).as_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Takes the body out again; `path` and `what` are for the error.
pub(crate) fn unseal<'a>(
    magic: &[u8; 8],
    bytes: &'a [u8],
    path: &Path,
    what: &'static str,
) -> Result<&'a [u8], FileFault> {
    let rest = bytes.strip_prefix(magic).ok_or_else(|| FileFault::Format { path: path.to_owned(), what })?;
    let damaged = |detail: &str| FileFault::Damaged { path: path.to_owned(), what, detail: detail.to_owned() };
    let (sum, body) = rest.split_first_chunk::<32>().ok_or_else(|| damaged("cut short"))?;
    if ObjectId::of(body).as_bytes() != sum {
        return Err(damaged("wrong checksum"));
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_body_comes_back_and_a_changed_one_does_not() {
        let magic = b"MFSTEST\x01";
        let path = Path::new("x");
        let mut bytes = seal(magic, b"body");
        assert_eq!(unseal(magic, &bytes, path, "test").unwrap(), b"body");
        assert!(matches!(unseal(b"MFSTEST\x02", &bytes, path, "test"), Err(FileFault::Format { .. })));
        assert!(matches!(unseal(magic, &bytes[..20], path, "test"), Err(FileFault::Damaged { .. })));
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        assert!(matches!(unseal(magic, &bytes, path, "test"), Err(FileFault::Damaged { .. })));
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write(&path, b"old", Durability::PowerCut).unwrap();
        write(&path, b"new", Durability::ProcessDeath).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        let lost = dir.path().join("lost/with it/file");
        write(&lost, b"anew", Durability::PowerCut).unwrap();
        assert_eq!(fs::read(&lost).unwrap(), b"anew");
        fs::remove_dir_all(dir.path().join("lost")).unwrap();
        fs::create_dir(dir.path().join("directory")).unwrap();
        fs::write(dir.path().join("directory/in it"), b"").unwrap();
        assert!(write(&dir.path().join("directory"), b"", Durability::PowerCut).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_fault_names_the_file_and_says_whether_asking_again_may_help() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, b"").unwrap();
        let below = file.join("below");
        let fault = write(&below, b"", Durability::PowerCut).unwrap_err();
        assert!(matches!(&fault, FileFault::Io { path, .. } if *path == below), "{fault}");
        assert!(fault.is_io());
        let damaged = FileFault::Damaged { path: file, what: "test", detail: String::new() };
        assert!(!damaged.is_io());
    }

    #[test]
    fn what_is_removed_may_be_gone_already_but_a_directory_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, b"").unwrap();
        remove(&file, Durability::PowerCut).unwrap();
        assert!(!file.exists());
        remove(&file, Durability::PowerCut).unwrap();
        fs::create_dir(&file).unwrap();
        assert!(remove(&file, Durability::ProcessDeath).unwrap_err().is_io());
        assert!(sync_dir(&dir.path().join("none")).is_err(), "and a directory that is not there is not synced");
    }
}
