//! A tree with everything that a tree may have, and what is seen of it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::lab;

/// A tree with everything that a tree may have.
pub(crate) fn make_tree(dir: &Path) {
    fs::create_dir_all(dir.join("bin")).unwrap();
    fs::create_dir_all(dir.join("lib/deep/er")).unwrap();
    fs::copy("/bin/sh", dir.join("bin/shell")).unwrap();
    let script = dir.join("bin/hello");
    fs::write(&script, "#!/bin/sh\necho hello from $0\n").unwrap();
    for program in ["bin/shell", "bin/hello"] {
        fs::set_permissions(dir.join(program), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::write(dir.join("empty"), b"").unwrap();
    let big: Vec<u8> = (0..3_000_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(dir.join("lib/big"), &big).unwrap();
    fs::write(dir.join("lib/deep/er/secret"), b"nobody else's").unwrap();
    fs::set_permissions(dir.join("lib/deep/er/secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::hard_link(dir.join("lib/big"), dir.join("lib/big-again")).unwrap();
    std::os::unix::fs::symlink("../bin/hello", dir.join("lib/link")).unwrap();
    std::os::unix::fs::symlink("/nowhere", dir.join("lib/dangling")).unwrap();
    if lab::all_users_exist() {
        std::os::unix::fs::chown(dir.join("lib/big"), Some(1234), Some(4321)).unwrap();
    }
    rustix::fs::setxattr(dir.join("lib/big"), "user.note", b"\0raw\xff", rustix::fs::XattrFlags::empty()).unwrap();
    // cap_net_bind_service=ep, revision 2.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // A user without a namespace cannot give capabilities away.
    if rustix::process::geteuid().is_root() {
        let empty = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(dir.join("bin/shell"), "security.capability", &capability, empty).unwrap();
    }
    let time = rustix::fs::Timespec { tv_sec: 1_234_567_890, tv_nsec: 123_456_789 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    for path in ["lib/big", "lib/deep", "bin", "lib/link", "."] {
        rustix::fs::utimensat(rustix::fs::CWD, dir.join(path), &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .unwrap();
    }
}

/// Every path with what `stat`, `read` and the attributes show of it.
pub(crate) fn describe(root: &Path) -> Vec<String> {
    fn walk(root: &Path, path: &Path, into: &mut Vec<String>) {
        let found = fs::symlink_metadata(path).unwrap();
        let mut xattrs = Vec::new();
        let mut names = vec![0; 4096];
        let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
        for name in names[..len].split(|b| *b == 0).filter(|name| !name.is_empty()) {
            let mut value = vec![0; 65536];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            xattrs.push(format!("{}={:?}", String::from_utf8_lossy(name), &value[..len]));
        }
        xattrs.sort();
        let content = match found.file_type() {
            kind if kind.is_symlink() => format!("-> {}", fs::read_link(path).unwrap().display()),
            kind if kind.is_file() => proto::ObjectId::of(&fs::read(path).unwrap()).to_hex(),
            _ => String::new(),
        };
        let mode = if found.is_symlink() { 0 } else { found.mode() & 0o7777 };
        let links = if found.is_dir() { 0 } else { found.nlink() };
        let size = if found.is_dir() { 0 } else { found.size() };
        into.push(format!(
            "{} {mode:o} {}:{} {size} {}.{:09} links {links} {content} {xattrs:?}",
            path.strip_prefix(root).unwrap().display(),
            found.uid(),
            found.gid(),
            found.mtime(),
            found.mtime_nsec(),
        ));
        if found.is_dir() {
            let mut names: Vec<PathBuf> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
            names.sort();
            names.iter().for_each(|path| walk(root, path, into));
        }
    }
    let mut all = Vec::new();
    walk(root, root, &mut all);
    all
}
