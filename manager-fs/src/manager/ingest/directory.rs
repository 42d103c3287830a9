//! A directory as a source. Nothing is followed: every name is opened relative to its directory's descriptor, with
//! `O_NOFOLLOW`, and what was opened is compared with what was listed.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use proto::TreePath;
use proto::limits::XATTR_BYTES_MAX;
use proto::manifest::{NodeKind, Xattr};
use proto::width;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::attributes::Attributes;
use super::xattr::{self, Xattrs};
use super::{IngestError, Intake};
use crate::manager::store::SparseFile;

const CHANGED: &str = "it changed while it was read; publish again when nothing writes to it";

/// Reads the directory `root` into the intake.
pub(super) fn read(intake: &mut Intake<'_, '_>, root: &OwnedFd) -> Result<(), IngestError> {
    Walk { intake, links: HashMap::new() }.directory(root, TreePath::root())
}

struct Walk<'a, 'b, 'c> {
    intake: &'a mut Intake<'b, 'c>,
    /// Nodes of files with several names, by device and inode.
    links: HashMap<(u64, u64), u32>,
}

impl Walk<'_, '_, '_> {
    fn directory(&mut self, fd: &OwnedFd, path: TreePath) -> Result<(), IngestError> {
        let unread = |walk: &Self, error: Errno| walk.intake.unread(path.as_bytes(), error);
        let before = rustix::fs::fstat(fd).map_err(|error| unread(self, error))?;
        let mut attributes = attributes(&before);
        attributes.xattrs = self.xattrs(fd, &path)?;
        self.intake.enter(path.clone(), NodeKind::Directory, attributes)?;
        let mut names: Vec<CString> = Vec::new();
        for entry in Dir::read_from(fd).map_err(|error| unread(self, error))? {
            let entry = entry.map_err(|error| unread(self, error))?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        names.sort();
        for name in names {
            let child = path.join(name.to_bytes());
            let child = child.map_err(|error| self.intake.refused(path.as_bytes(), error.to_string()))?;
            self.entry(fd, &name, child)?;
        }
        let after = rustix::fs::fstat(fd).map_err(|error| unread(self, error))?;
        if stamp(&before) != stamp(&after) {
            return Err(self.intake.refused(path.as_bytes(), CHANGED));
        }
        Ok(())
    }

    fn entry(&mut self, dir: &OwnedFd, name: &CStr, path: TreePath) -> Result<(), IngestError> {
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(|error| self.intake.unread(path.as_bytes(), error))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let identity = (stat.st_dev, stat.st_ino);
        if kind != FileType::Directory
            && let Some(node) = self.links.get(&identity)
        {
            return self.intake.link(path, *node);
        }
        let node = match kind {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(dir, name, flags, Mode::empty());
                let fd = fd.map_err(|error| self.intake.unread(path.as_bytes(), error))?;
                return self.directory(&fd, path);
            }
            FileType::RegularFile => self.file(dir, name, path, &stat)?,
            FileType::Symlink => self.symlink(dir, name, path, &stat)?,
            _ => {
                return Err(self
                    .intake
                    .refused(path.as_bytes(), "devices, sockets and pipes do not belong into a tree"));
            }
        };
        if stat.st_nlink > 1 {
            self.links.insert(identity, node);
        }
        Ok(())
    }

    fn file(&mut self, dir: &OwnedFd, name: &CStr, path: TreePath, listed: &Stat) -> Result<u32, IngestError> {
        // NONBLOCK: the name may have become a pipe since it was listed.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let unread = |walk: &Self, error: Errno| walk.intake.unread(path.as_bytes(), error);
        let fd = rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(|error| unread(self, error))?;
        let before = rustix::fs::fstat(&fd).map_err(|error| unread(self, error))?;
        if stamp(listed) != stamp(&before) {
            return Err(self.intake.refused(path.as_bytes(), CHANGED));
        }
        let mut attributes = attributes(&before);
        attributes.xattrs = self.xattrs(&fd, &path)?;
        let file = File::from(fd);
        let (kind, bytes) = self.intake.content(&path, &mut SparseFile::new(&file))?;
        let after = rustix::fs::fstat(&file).map_err(|error| unread(self, error))?;
        if stamp(&before) != stamp(&after) || bytes != before.st_size.cast_unsigned() {
            return Err(self.intake.refused(path.as_bytes(), CHANGED));
        }
        self.intake.enter(path, kind, attributes)
    }

    fn symlink(&mut self, dir: &OwnedFd, name: &CStr, path: TreePath, stat: &Stat) -> Result<u32, IngestError> {
        let target = rustix::fs::readlinkat(dir, name, Vec::new());
        let target = target.map_err(|error| self.intake.unread(path.as_bytes(), error))?;
        // None that is kept can be on a symlink, but those that are refused can.
        let through = [format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()).as_bytes(), name.to_bytes()].concat();
        let mut list = Vec::new();
        let mut listed = rustix::fs::llistxattr_query(through.as_slice());
        if let Ok(bytes @ 1..) = listed {
            list.resize(bytes, 0_u8);
            listed = rustix::fs::llistxattr(through.as_slice(), list.as_mut_slice());
        }
        match listed {
            Ok(bytes) => {
                for name in list[..bytes].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
                    Xattrs::refuse_overlay(name).map_err(|fault| self.intake.refused(path.as_bytes(), fault))?;
                }
            }
            // Without /proc, or on a file system without attributes.
            Err(Errno::NOTSUP | Errno::NOENT) => {}
            Err(error) => return Err(self.intake.unread(path.as_bytes(), error)),
        }
        self.intake.enter(path, NodeKind::Symlink(target.into_bytes()), attributes(stat))
    }

    fn xattrs(&self, fd: &OwnedFd, path: &TreePath) -> Result<Vec<Xattr>, IngestError> {
        let unread = |error: Errno| self.intake.unread(path.as_bytes(), error);
        let mut xattrs = Xattrs::default();
        // Most files have none: ask for the length first, and allocate nothing.
        let bytes = match rustix::fs::flistxattr_query(fd) {
            Ok(0) | Err(Errno::NOTSUP) => return Ok(Vec::new()),
            result => result.map_err(unread)?,
        };
        let mut list = vec![0_u8; bytes];
        let bytes = rustix::fs::flistxattr(fd, list.as_mut_slice()).map_err(unread)?;
        for name in list[..bytes].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let mut value = Vec::new();
            if xattr::is_kept(name) {
                value.resize(XATTR_BYTES_MAX, 0);
                let bytes = rustix::fs::fgetxattr(fd, name, value.as_mut_slice()).map_err(unread)?;
                value.truncate(bytes);
                value.shrink_to_fit();
            }
            xattrs.take(name, value).map_err(|fault| self.intake.refused(path.as_bytes(), fault))?;
        }
        Ok(xattrs.into_inner())
    }
}

fn attributes(stat: &Stat) -> Attributes {
    Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, width::count(stat.st_mtime_nsec)),
        xattrs: Vec::new(),
    }
}

/// What changes when a file or directory does. The status change time cannot be set back by a writer.
fn stamp(stat: &Stat) -> (u64, u64, i64, i64, u64, i64, u64) {
    let (mtime_ns, ctime_ns) = (stat.st_mtime_nsec, stat.st_ctime_nsec);
    (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime, mtime_ns, stat.st_ctime, ctime_ns)
}
