//! An archive that somebody sends: in the store's directory until it has been taken in.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Store, StoreError};

/// Bytes of an archive, at most.
pub(crate) const UPLOAD_BYTES_MAX: u64 = 32 << 30;

/// One after the other, in one process; drafts of blobs have bare numbers.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// A file that goes when it is dropped, or at the store's next opening.
#[derive(Debug)]
pub(crate) struct Upload {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Upload {
    /// An empty one. Waits for the disk.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub(crate) fn begin(store: &Store) -> Result<Self, StoreError> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = store.root().join("tmp").join(format!("upload-{number}"));
        let failed = |error| StoreError::io(format!("the upload {}", path.display()), error);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        Ok(Self { path, file, bytes: 0 })
    }

    /// Adds what has come. Waits for the disk.
    ///
    /// # Errors
    /// [`StoreError::Io`], or it would have more than [`UPLOAD_BYTES_MAX`].
    pub(crate) fn add(&mut self, piece: &[u8]) -> Result<(), StoreError> {
        self.bytes = self.bytes.saturating_add(piece.len() as u64);
        if self.bytes > UPLOAD_BYTES_MAX {
            return Err(StoreError::UploadTooLarge);
        }
        let failed = |error| StoreError::io(format!("the upload {}", self.path.display()), error);
        self.file.write_all(piece).map_err(failed)
    }

    /// Whether nothing has come.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            let path = self.path.display();
            tracing::warn!(%path, %error, "an upload stays until the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_is_there_until_it_is_dropped_and_what_a_crash_leaves_until_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let left = || fs::read_dir(dir.path().join("tmp")).unwrap().count();
        let mut upload = Upload::begin(&store).unwrap();
        assert!(upload.is_empty());
        upload.add(b"one").unwrap();
        assert!(!upload.is_empty());
        upload.add(b" two").unwrap();
        assert_eq!(fs::read(upload.path()).unwrap(), b"one two");
        let other = Upload::begin(&store).unwrap();
        assert_ne!(other.path(), upload.path());
        drop(upload);
        assert_eq!(left(), 1);
        // As in a process that is killed.
        std::mem::forget(other);
        drop(store);
        Store::open(dir.path()).unwrap();
        assert_eq!(left(), 0);
    }

    #[test]
    fn an_upload_has_a_largest_size() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut upload = Upload::begin(&store).unwrap();
        upload.bytes = UPLOAD_BYTES_MAX - 1;
        upload.add(b"x").unwrap();
        assert!(matches!(upload.add(b"x"), Err(StoreError::UploadTooLarge)));
    }
}
