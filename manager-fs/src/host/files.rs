//! Small files that must be whole or absent after a power cut.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::Mode;

/// Replaces `path` with `bytes`: after a power cut it holds the old bytes or the new ones. Missing directories are made.
///
/// # Errors
/// Of the file system; the old file is untouched then.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().ok_or_else(|| io::Error::other("a file needs a directory"))?;
    fs::create_dir_all(directory)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = directory.join(format!(".{name}.{}.{:?}.new", std::process::id(), std::thread::current().id()));
    let written = write_and_sync(&beside, bytes).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // The error that matters is the one above; what is left over is replaced by the next attempt of this thread.
        let _ = fs::remove_file(&beside);
    }
    written?;
    sync_directory(directory)
}

/// Makes names created, renamed or removed in `directory` durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
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

fn write_and_sync(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use rustix::fs::OFlags;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::from_raw_mode(0o600))?);
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_whole_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(read_bounded(&path, 3).unwrap().as_deref(), Some(b"two".as_slice()));
        assert!(read_bounded(&path, 2).is_err());
        assert_eq!(read_bounded(&dir.path().join("none"), 2).unwrap(), None);
        assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 1);
    }
}
