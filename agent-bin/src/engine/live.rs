//! Files of this host as a repository describes them: metadata in, metadata out.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustic_core::jiff::Timestamp;
use rustix::fs::{AtFlags, Mode, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::beneath::{Looked, change_mode};
use super::facts::Facts;
use super::format::tree::{Attribute, Node, NodeKind};

/// What fits without a second call: most files have no attributes, the others short ones.
const ATTRIBUTE_BYTES: usize = 1 << 10;
/// The kernel's `XATTR_LIST_MAX` and `XATTR_SIZE_MAX`.
const ATTRIBUTE_BYTES_MAX: usize = 64 << 10;

/// Names of users and groups, each looked up once.
#[derive(Debug, Default)]
pub(super) struct Owners {
    users: Mutex<HashMap<u32, Option<String>>>,
    groups: Mutex<HashMap<u32, Option<String>>>,
}

impl Owners {
    fn user(&self, uid: u32) -> Option<String> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let found = || nix::unistd::User::from_uid(uid.into()).ok().flatten().map(|user| user.name);
        users.entry(uid).or_insert_with(found).clone()
    }

    fn group(&self, gid: u32) -> Option<String> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let found = || nix::unistd::Group::from_gid(gid.into()).ok().flatten().map(|group| group.name);
        groups.entry(gid).or_insert_with(found).clone()
    }
}

/// A file that is described.
#[derive(Debug, Clone, Copy)]
pub(super) enum At<'a> {
    /// An entry of an open directory. It is not opened, so that a FIFO or a device cannot block it, and not followed if
    /// it is a link.
    Entry(BorrowedFd<'a>, &'a OsStr),
    /// Open, perhaps only to be looked at.
    Open(BorrowedFd<'a>),
}

/// A file's node, without its content.
///
/// # Errors
/// The target of a symbolic link cannot be read. Attributes that cannot be read are told to `problem`, with the path
/// that people know the file by.
pub(super) fn node_of(
    at: At<'_>,
    path: &Path,
    facts: &Facts,
    owners: &Owners,
    problem: impl Fn(String),
) -> io::Result<Node> {
    let mut node = Node::new(path.file_name().unwrap_or_default(), facts.kind);
    node.set_mode(facts.mode);
    node.mtime = time(facts.mtime);
    // Reading a file changes its access time: kept, it would make every backup new.
    node.atime = node.mtime;
    node.ctime = time(facts.ctime);
    let (user, group) = facts.owner;
    (node.uid, node.gid) = (Some(user), Some(group));
    (node.user, node.group) = (owners.user(user), owners.group(group));
    node.inode = facts.identity.1;
    match node.kind {
        NodeKind::Dir => {}
        NodeKind::File => node.size = facts.size,
        NodeKind::Symlink => node.set_link_target(&at.link_target()?),
        NodeKind::Dev | NodeKind::Chardev => node.device = facts.device,
        NodeKind::Fifo | NodeKind::Socket | NodeKind::Other => {}
    }
    if node.kind != NodeKind::Dir {
        node.links = facts.links;
        node.device_id = if facts.links > 1 { facts.identity.0 } else { 0 };
    }
    match at.attributes() {
        Ok(attributes) => node.extended_attributes = attributes,
        Err(error) => problem(format!("{}: its extended attributes are not backed up: {error}", path.display())),
    }
    Ok(node)
}

impl At<'_> {
    fn link_target(self) -> io::Result<PathBuf> {
        let target = match self {
            At::Entry(directory, name) => rustix::fs::readlinkat(directory, name, Vec::new())?,
            At::Open(file) => rustix::fs::readlinkat(file, "", Vec::new())?,
        };
        Ok(PathBuf::from(OsStr::from_bytes(target.as_bytes())))
    }

    fn attributes(self) -> io::Result<Vec<Attribute>> {
        let path = self.by_descriptor();
        let (of_entry, path) = (matches!(self, At::Entry(..)), path.as_path());
        let list = |buffer: &mut [u8]| {
            if of_entry { rustix::fs::llistxattr(path, buffer) } else { rustix::fs::listxattr(path, buffer) }
        };
        let value = |name: &OsStr, buffer: &mut [u8]| {
            if of_entry {
                rustix::fs::lgetxattr(path, name, buffer)
            } else {
                rustix::fs::getxattr(path, name, buffer)
            }
        };
        let names = names_of(grown(list))?;
        let attribute =
            |name: &Vec<u8>| Ok(Attribute::new(name, grown(|buffer| value(OsStr::from_bytes(name), buffer))?));
        names.iter().map(attribute).collect()
    }

    /// A path that leads to this very file, for calls that take no descriptor of what is only looked at, and no name in
    /// a directory. Only its last part could be a link of somebody else's.
    fn by_descriptor(self) -> PathBuf {
        match self {
            At::Entry(directory, name) => {
                PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name)
            }
            At::Open(file) => PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())),
        }
    }
}

/// `None` for a time that a repository cannot express (beyond the year 9999).
pub(super) fn time((seconds, nanoseconds): (i64, i64)) -> Option<Timestamp> {
    Timestamp::new(seconds, i32::try_from(nanoseconds).ok()?).ok()
}

/// Names of a file's extended attributes; none where the file system has none.
pub(super) fn attribute_names(of: &Looked) -> io::Result<BTreeSet<Vec<u8>>> {
    names_of(grown(|buffer| rustix::fs::listxattr(of.by_descriptor(), buffer)))
}

/// The value of one extended attribute.
pub(super) fn attribute(of: &Looked, name: &[u8]) -> io::Result<Vec<u8>> {
    Ok(grown(|buffer| rustix::fs::getxattr(of.by_descriptor(), OsStr::from_bytes(name), buffer))?)
}

fn names_of(list: Result<Vec<u8>, Errno>) -> io::Result<BTreeSet<Vec<u8>>> {
    let list = match list {
        Err(Errno::NOTSUP) => return Ok(BTreeSet::new()),
        list => list?,
    };
    Ok(list.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

/// Calls with a small buffer and, if that is too small, with one that is large enough for all.
fn grown(call: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; ATTRIBUTE_BYTES];
    let length = match call(&mut buffer) {
        Err(Errno::RANGE) => {
            buffer.resize(ATTRIBUTE_BYTES_MAX, 0);
            call(&mut buffer)?
        }
        length => length?,
    };
    buffer.truncate(length);
    Ok(buffer)
}

/// Gives a restored file or directory what its node says, by its descriptor. The order matters: a change of owner
/// clears mode bits and capabilities, and everything changes times.
pub(super) fn set_metadata(file: impl AsFd, node: &Node, privileged: bool, problem: impl Fn(&str, io::Error)) {
    let fd = file.as_fd();
    let tell = |what: &str, result: Result<(), Errno>| {
        if let Err(error) = result {
            problem(what, error.into());
        }
    };
    if let (true, Some(uid), Some(gid)) = (privileged, node.uid, node.gid) {
        tell(
            "owner",
            rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), Some(rustix::fs::Gid::from_raw(gid))),
        );
    }
    for attribute in &node.extended_attributes {
        let name = OsStr::from_bytes(attribute.name());
        let set = rustix::fs::fsetxattr(fd, name, attribute.value(), XattrFlags::empty());
        tell(&format!("extended attribute {}", name.display()), set);
    }
    if let Some(mode) = node.mode() {
        tell("mode", rustix::fs::fchmod(fd, Mode::from_raw_mode(mode)));
    }
    if let Some(times) = times_of(node) {
        tell("times", rustix::fs::futimens(fd, &times));
    }
}

/// Takes from a file that was there the extended attributes that its node does not have.
pub(super) fn drop_attributes(file: impl AsFd, node: &Node, problem: impl Fn(&str, io::Error)) {
    let fd = file.as_fd();
    let found = match names_of(grown(|buffer| rustix::fs::flistxattr(fd, buffer))) {
        Ok(found) => found,
        Err(error) => return problem("extended attributes", error),
    };
    for name in found.iter().filter(|name| !node.extended_attributes.iter().any(|kept| kept.name() == *name)) {
        let name = OsStr::from_bytes(name);
        if let Err(error) = rustix::fs::fremovexattr(fd, name) {
            problem(&format!("extended attribute {}", name.display()), error.into());
        }
    }
}

/// As [`set_metadata`], for what cannot be opened (a symbolic link, a device), of what was looked at.
pub(super) fn set_metadata_of_special(
    made: &Looked,
    node: &Node,
    privileged: bool,
    problem: impl Fn(&str, io::Error),
) {
    let tell = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            problem(what, error);
        }
    };
    if let (true, Some(uid), Some(gid)) = (privileged, node.uid, node.gid) {
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        tell(
            "owner",
            rustix::fs::chownat(made, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH).map_err(io::Error::from),
        );
    }
    for attribute in &node.extended_attributes {
        let name = OsStr::from_bytes(attribute.name());
        let set = rustix::fs::setxattr(made.by_descriptor(), name, attribute.value(), XattrFlags::empty());
        tell(&format!("extended attribute {}", name.display()), set.map_err(io::Error::from));
    }
    if let Some(mode) = node.mode().filter(|_| node.kind != NodeKind::Symlink) {
        tell("mode", change_mode(made, mode));
    }
    if let Some(times) = times_of(node) {
        let set = rustix::fs::utimensat(made, "", &times, AtFlags::EMPTY_PATH);
        tell("times", set.map_err(io::Error::from));
    }
}

fn times_of(node: &Node) -> Option<Timestamps> {
    let mtime = node.mtime?;
    let spec = |time: Timestamp| {
        // A time before 1970 with a fraction has both parts below zero there, and the kernel wants the second one above.
        let (seconds, nanoseconds) = (time.as_second(), i64::from(time.subsec_nanosecond()));
        let borrow = i64::from(nanoseconds < 0);
        Timespec { tv_sec: seconds - borrow, tv_nsec: nanoseconds + borrow * 1_000_000_000 }
    };
    Some(Timestamps { last_access: spec(node.atime.unwrap_or(mtime)), last_modification: spec(mtime) })
}
