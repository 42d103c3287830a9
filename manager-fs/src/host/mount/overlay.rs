//! The mounts, by the mount API of descriptors: one call after another, each with its reason.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};

use super::meta::Flavour;

/// What a program run from a mount can rely on: nobody changes it, no set-id bit or device has an effect, and reading
/// writes nothing.
const TREE_ATTRIBUTES: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOATIME);

/// Mounts a generation: metadata over data layers.
pub(super) fn mount_overlay(meta: &Path, data: &[PathBuf], flavour: Flavour, target: &Path) -> io::Result<()> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let fs = fs.as_fd();
    set(fs, "source", "manager-fs")?;
    match flavour {
        // `metacopy` lets the files of META have their data elsewhere, `redirect` says where; both only follow here,
        // for there is no upper layer.
        Flavour::Trusted => set(fs, "metacopy", "on")?,
        Flavour::User => fsconfig_set_flag(fs, "userxattr").map_err(|e| explain(fs, "userxattr", e))?,
    }
    // One option a layer: in the old comma form a path with a colon or a comma would be two.
    set(fs, "lowerdir+", meta)?;
    for layer in data {
        set(fs, "datadir+", layer)?;
    }
    finish(fs, TREE_ATTRIBUTES, target)
}

/// Mounts the FUSE file system that `device` serves. Sends nothing but INIT, which is already queued when it returns.
pub(super) fn mount_fuse(device: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    let fs = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let fs = fs.as_fd();
    set(fs, "source", "manager-fs")?;
    set(fs, "fd", device.as_raw_fd().to_string())?;
    set(fs, "rootmode", "40000")?;
    set(fs, "user_id", rustix::process::geteuid().as_raw().to_string())?;
    set(fs, "group_id", rustix::process::getegid().as_raw().to_string())?;
    fsconfig_set_flag(fs, "default_permissions").map_err(|e| explain(fs, "default_permissions", e))?;
    // In a user namespace there is nobody else, and with this flag the kernel would refuse the very same user outside of
    // it, who looks in through /proc/PID/root.
    if !in_user_namespace() {
        fsconfig_set_flag(fs, "allow_other").map_err(|e| explain(fs, "allow_other", e))?;
    }
    finish(fs, TREE_ATTRIBUTES, target)
}

/// A mount once more, attached nowhere.
pub(super) fn clone_mount(target: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(CWD, target, flags)?)
}

/// Attaches a copy of such a mount, which stays for the next time.
pub(super) fn attach_clone(clone: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let again = open_tree(clone, "", flags)?;
    Ok(move_mount(&again, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Whether this process's user ids are not the machine's own (`user_namespaces(7)`: the initial map is the identity).
fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().ne(["0", "0", "4294967295"])
}

/// Mounts the tmpfs of the metadata layers. Its memory is inodes, not blocks, so inodes are what is limited.
pub(super) fn mount_meta(target: &Path, inodes_max: u64) -> io::Result<()> {
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let fs = fs.as_fd();
    set(fs, "source", "manager-fs-meta")?;
    set(fs, "mode", "0700")?;
    set(fs, "nr_inodes", inodes_max.to_string())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    finish(fs, attributes | MountAttrFlags::MOUNT_ATTR_NOATIME, target)
}

/// An empty file in memory that has no name anywhere, so that nothing can be left of it: its file system is attached
/// nowhere and ends with the last user of the file. (A memfd would be simpler, but EROFS takes no file of a tmpfs.)
pub(super) fn memory_file() -> io::Result<std::fs::File> {
    let fs = fsopen("ramfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let fs = fs.as_fd();
    set(fs, "source", "manager-fs-meta")?;
    set(fs, "mode", "0700")?;
    fsconfig_create(fs).map_err(|e| explain(fs, "create", e))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mount = fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(|e| explain(fs, "mount", e))?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(openat(&mount, "image", flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// Mounts an EROFS image without a block device.
pub(super) fn mount_image(image: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    let fs = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let fs = fs.as_fd();
    set(fs, "source", format!("/proc/self/fd/{}", image.as_raw_fd()))?;
    finish(fs, TREE_ATTRIBUTES, target)
}

/// Plain unmount. `Ok(false)`: someone uses it.
pub(super) fn unmount_unused(target: &Path) -> io::Result<bool> {
    match unmount(target, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::BUSY) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Unmounts a FUSE mount whose server is gone for good: whoever still uses it gets `ENOTCONN` either way.
pub(super) fn detach_dead(target: &Path) -> io::Result<()> {
    Ok(unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MountLine {
    pub(super) target: PathBuf,
    pub(super) kind: String,
    pub(super) source: String,
    pub(super) options: String,
}

/// Every mount of this namespace, in order, without touching any.
pub(super) fn mounts() -> io::Result<Vec<MountLine>> {
    use std::os::unix::ffi::OsStringExt;
    let text = std::fs::read("/proc/self/mountinfo")?;
    let lines = text.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    Ok(lines
        .filter_map(|line| {
            let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
            let dash = fields.iter().position(|field| *field == b"-")?;
            let text = |at: usize| Some(String::from_utf8_lossy(&unescape(fields.get(at)?)).into_owned());
            let target = PathBuf::from(std::ffi::OsString::from_vec(unescape(fields.get(4)?)));
            Some(MountLine { target, kind: text(dash + 1)?, source: text(dash + 2)?, options: text(dash + 3)? })
        })
        .collect())
}

/// mountinfo writes space, tab, newline and backslash as `\ooo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).filter(|_| *first == b'\\');
        let octal = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) => {
                plain.push(byte);
                rest = &tail[3..];
            }
            None => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

fn set(fs: BorrowedFd<'_>, key: &str, value: impl AsRef<Path>) -> io::Result<()> {
    fsconfig_set_string(fs, key, value.as_ref()).map_err(|e| explain(fs, key, e))
}

fn finish(fs: BorrowedFd<'_>, attributes: MountAttrFlags, target: &Path) -> io::Result<()> {
    fsconfig_create(fs).map_err(|e| explain(fs, "create", e))?;
    let mount = fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(|e| explain(fs, "mount", e))?;
    move_mount(&mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| explain(fs, &format!("attach to {}", target.display()), e))
}

/// The kernel's own words wait in the descriptor of the file system.
fn explain(fs: BorrowedFd<'_>, step: &str, error: rustix::io::Errno) -> io::Error {
    let mut said = String::new();
    let mut buffer = [0; 1024];
    while let Ok(len @ 1..) = rustix::io::read(fs, &mut buffer) {
        said.push_str("; ");
        said.push_str(String::from_utf8_lossy(&buffer[..len]).trim_end());
    }
    let error = io::Error::from(error);
    io::Error::new(error.kind(), format!("{step}: {error}{said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_paths_are_unescaped() {
        assert_eq!(unescape(b"/a\\040b\\134c\\x"), b"/a b\\c\\x");
        let root = mounts().unwrap();
        assert!(root.iter().any(|line| line.target == Path::new("/")));
    }
}
