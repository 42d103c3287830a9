//! What an inode has beside its kind and content.

use proto::manifest::Xattr;

/// What an inode has beside its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// The twelve permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970 and nanoseconds below 10^9.
    pub(crate) mtime: (i64, u32),
    /// In any order.
    pub(crate) xattrs: Vec<Xattr>,
}

impl Attributes {
    /// Of a directory that an archive does not mention, though it has something in it: the same on every machine.
    pub(crate) fn of_implied_directory() -> Self {
        Self { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), xattrs: Vec::new() }
    }
}
