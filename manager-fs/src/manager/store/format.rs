//! Whether a directory is a store, of which format, and whose.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::FlockOperation;

use super::{StoreError, pack_store};
use crate::moments::{self, Moment};

const FORMAT: &str = "manager-fs store 2\n";
/// Format 1 had the control state in one file, in other records; packs and manifests are the same.
const OLDER_FORMAT: &str = "manager-fs store 1\n";
/// What may lie in a directory that becomes a store: the manager's own files, made before or beside us.
const KNOWN_NAMES: [&str; 16] = [
    "format",
    "format.new",
    "lock",
    "packs",
    "manifests",
    "deltas",
    "bundles",
    "tmp",
    "control.redb",
    "observations.redb",
    "control.backup",
    "records",
    "keys",
    "address",
    "manager.sock",
    "lost+found",
];

/// What the format file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Current,
    Older,
    /// It is not there: a directory that becomes a store.
    Missing,
}

/// What the directory is.
///
/// # Errors
/// It is something else, of a newer format, or cannot be read.
pub(super) fn read_format(root: &Path) -> Result<Format, StoreError> {
    let path = root.to_path_buf();
    match fs::read(root.join("format")) {
        Ok(found) if found == FORMAT.as_bytes() => Ok(Format::Current),
        Ok(found) if found == OLDER_FORMAT.as_bytes() => Ok(Format::Older),
        Ok(found) => {
            let line: String =
                String::from_utf8_lossy(&found).lines().next().unwrap_or("").chars().take(80).collect();
            if line.starts_with("manager-fs store ") {
                return Err(StoreError::Newer { path, found: line });
            }
            Err(StoreError::NotAStore { path, fault: format!("its file 'format' says '{line}'") })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let failed = |cause| StoreError::io(format!("store {}", root.display()), cause);
            for entry in fs::read_dir(root).map_err(failed)? {
                let name = entry.map_err(failed)?.file_name();
                let known = KNOWN_NAMES.iter().any(|known| name == *known);
                let holds = ["packs", "manifests"].iter().any(|blobs| name == *blobs);
                let full = holds && fs::read_dir(root.join(&name)).is_ok_and(|mut blobs| blobs.next().is_some());
                if full || !known {
                    let fault = if full { "its file 'format' is missing" } else { "it holds other files" };
                    return Err(StoreError::NotAStore { path, fault: format!("{fault} ('{}')", name.display()) });
                }
            }
            Ok(Format::Missing)
        }
        Err(cause) => Err(StoreError::io(format!("store {}", root.display()), cause)),
    }
}

/// Makes the directory a store of the current format, durably.
pub(super) fn write_format(root: &Path) -> io::Result<()> {
    moments::reach(Moment::StoreFormat, root)?;
    let draft = root.join("format.new");
    let mut file = File::create(&draft)?;
    file.write_all(FORMAT.as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, root.join("format"))?;
    pack_store::sync_dir(root)
}

/// Takes the store for this process alone, for as long as the file lives.
///
/// # Errors
/// Another process has it.
pub(super) fn owned(root: &Path) -> Result<File, StoreError> {
    let path = root.join("lock");
    let failed = |cause| StoreError::io(format!("lock {}", path.display()), cause);
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    // Whoever may open it may hold it, and so keep a manager from starting.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600)).map_err(failed)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::AGAIN) => Err(StoreError::InUse { path: root.to_path_buf() }),
        Err(error) => Err(failed(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_becomes_a_store_unless_it_holds_a_store_s_blobs_or_something_else() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        // What the manager has made before is no blob.
        for name in ["keys", "tmp"] {
            fs::create_dir(root.join(name)).unwrap();
            fs::write(root.join(name).join("file"), "").unwrap();
        }
        fs::create_dir(root.join("manifests")).unwrap();
        assert_eq!(read_format(root).unwrap(), Format::Missing);
        for blobs in ["packs", "manifests"] {
            fs::create_dir_all(root.join(blobs).join("ab")).unwrap();
            let error = read_format(root).unwrap_err().to_string();
            assert!(error.contains("'format' is missing") && error.contains(blobs), "{error}");
            fs::remove_dir_all(root.join(blobs)).unwrap();
        }
        fs::write(root.join("notes"), "").unwrap();
        let error = read_format(root).unwrap_err().to_string();
        assert!(error.contains("holds other files") && error.contains("notes"), "{error}");
    }

    #[test]
    fn a_format_file_that_cannot_be_read_is_not_taken_for_a_missing_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("format")).unwrap();
        assert!(matches!(read_format(dir.path()), Err(StoreError::Io { .. })));
    }
}
