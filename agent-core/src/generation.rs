//! A generation as an agent sees it: one tree held open, and the program in it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use proto::TreePath;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};

/// The root of one tree, held open. The descriptor is closed by `execve`, or the mount would be busy for ever.
#[derive(Debug)]
pub(crate) struct Attachment {
    path: PathBuf,
    root: OwnedFd,
}

/// The program of a tree cannot be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramFault {
    /// The tree is not attached here.
    #[error("the tree is not at {path}: {source}")]
    NotAttached {
        /// Where it should be.
        path: String,
        /// What came instead.
        source: io::Error,
    },
    /// The tree has no such file, or it is not a program. This is the version's own fault.
    #[error("entry point {entry}: {fault}")]
    NotAProgram {
        /// Its path in the tree.
        entry: TreePath,
        /// What is wrong.
        fault: &'static str,
    },
    /// The tree cannot be read just now. This is not the version's fault.
    #[error("entry point {entry} cannot be read: {source}")]
    Unreadable {
        /// Its path in the tree.
        entry: TreePath,
        /// What the file system said.
        source: io::Error,
    },
}

impl ProgramFault {
    /// Whether another try of the same version must end in the same way.
    pub fn is_of_the_version(&self) -> bool {
        matches!(self, ProgramFault::NotAProgram { .. })
    }
}

impl Attachment {
    /// Opens the tree at its own path, `RUN/gens/<tree>`.
    ///
    /// # Errors
    /// Nothing is attached there.
    pub(crate) fn open(path: &Path) -> Result<Self, ProgramFault> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(root) => Ok(Self { path: path.to_owned(), root }),
            Err(e) => Err(ProgramFault::NotAttached { path: path.display().to_string(), source: e.into() }),
        }
    }

    /// The path to execute: below the tree's own path and not below `current`, so that `/proc/self/exe` and `$ORIGIN`
    /// stay right after the next swap.
    ///
    /// # Errors
    /// It is not there, not a file, or not executable.
    pub(crate) fn program(&self, entry: &TreePath) -> Result<PathBuf, ProgramFault> {
        let not = |fault| Err(ProgramFault::NotAProgram { entry: entry.clone(), fault });
        let stat = match rustix::fs::statat(&self.root, entry.as_path(), AtFlags::empty()) {
            Ok(stat) => stat,
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return not("is not in the tree"),
            Err(rustix::io::Errno::LOOP) => return not("is a chain of symbolic links without an end"),
            Err(e) => return Err(ProgramFault::Unreadable { entry: entry.clone(), source: e.into() }),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return not("is not a file");
        }
        if stat.st_mode & 0o111 == 0 {
            return not("is not executable");
        }
        Ok(self.path.join(entry.as_path()))
    }
}

/// What this machine calls itself.
pub fn machine() -> String {
    rustix::system::uname().machine().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_cannot_be_a_program_is_the_versions_fault() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!Attachment::open(&dir.path().join("no")).unwrap_err().is_of_the_version());
        let attachment = Attachment::open(dir.path()).unwrap();
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        let program = dir.path().join("bin/agent");
        let entry = TreePath::parse(b"bin/agent").unwrap();
        assert!(attachment.program(&entry).unwrap_err().is_of_the_version());
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        assert!(attachment.program(&entry).unwrap_err().to_string().contains("not executable"));
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(attachment.program(&entry).unwrap(), program);
        assert!(attachment.program(&TreePath::parse(b"bin").unwrap()).unwrap_err().is_of_the_version());
    }

    #[test]
    fn a_tree_is_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let fault = Attachment::open(&file).unwrap_err();
        assert!(matches!(&fault, ProgramFault::NotAttached { .. }), "{fault}");
    }

    #[test]
    fn a_machine_calls_itself_by_what_its_programs_are_built_for() {
        assert_eq!(machine(), std::env::consts::ARCH);
    }
}
