//! What the kernel says of a file: the same whether it was looked at in a directory or through a descriptor.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Stat};

use super::format::tree::NodeKind;

/// What a file is, without its content.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) kind: NodeKind,
    /// Kind and permissions, as the kernel has them.
    pub(super) mode: u32,
    /// User and group.
    pub(super) owner: (u32, u32),
    /// Bytes.
    pub(super) size: u64,
    /// Seconds since 1970 and nanoseconds.
    pub(super) mtime: (i64, i64),
    /// Seconds since 1970 and nanoseconds.
    pub(super) ctime: (i64, i64),
    /// Number of the device that it lies on, and its own on it.
    pub(super) identity: (u64, u64),
    /// Its names.
    pub(super) links: u64,
    /// Which device it is, if it is one.
    pub(super) device: u64,
}

impl Facts {
    /// Of an entry of a directory. A link is not followed.
    pub(super) fn of_entry(directory: impl AsFd, name: &OsStr) -> io::Result<Self> {
        Ok(rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?.into())
    }

    /// Of what is open.
    pub(super) fn of(file: impl AsFd) -> io::Result<Self> {
        Ok(rustix::fs::fstat(file)?.into())
    }
}

// The kernel's fields have other types on other machines.
#[allow(clippy::useless_conversion, clippy::unnecessary_cast, clippy::cast_lossless, reason = "see above")]
impl From<Stat> for Facts {
    fn from(stat: Stat) -> Self {
        let time = |seconds, nanoseconds: u64| (seconds, i64::try_from(nanoseconds).unwrap_or(0));
        Self {
            kind: kind_of(FileType::from_raw_mode(stat.st_mode)),
            mode: stat.st_mode,
            owner: (stat.st_uid, stat.st_gid),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: time(stat.st_mtime as i64, stat.st_mtime_nsec as u64),
            ctime: time(stat.st_ctime as i64, stat.st_ctime_nsec as u64),
            identity: (stat.st_dev as u64, stat.st_ino as u64),
            links: stat.st_nlink as u64,
            device: stat.st_rdev as u64,
        }
    }
}

fn kind_of(kind: FileType) -> NodeKind {
    match kind {
        FileType::Directory => NodeKind::Dir,
        FileType::Symlink => NodeKind::Symlink,
        FileType::BlockDevice => NodeKind::Dev,
        FileType::CharacterDevice => NodeKind::Chardev,
        FileType::Fifo => NodeKind::Fifo,
        FileType::Socket => NodeKind::Socket,
        FileType::RegularFile | FileType::Unknown => NodeKind::File,
    }
}
