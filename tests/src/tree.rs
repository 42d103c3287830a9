//! Trees to publish.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::command::program;

/// A directory that is published as a tree.
#[derive(Debug)]
pub struct TreeFixture {
    dir: TempDir,
}

impl Default for TreeFixture {
    fn default() -> Self {
        Self::new()
    }
}

impl TreeFixture {
    /// An empty tree.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("tree").tempdir().expect("a temporary directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        Self { dir }
    }

    /// Its root.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Adds a file with this mode.
    pub fn file(&self, path: &str, mode: u32, bytes: impl AsRef<[u8]>) -> &Self {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
        fs::write(&path, bytes).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        self
    }

    /// Adds a symlink.
    pub fn link(&self, path: &str, target: &str) -> &Self {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
        symlink(target, path).expect("symlink");
        self
    }

    /// Adds a hard link.
    pub fn hard_link(&self, path: &str, to: &str) -> &Self {
        fs::hard_link(self.path().join(to), self.path().join(path)).expect("link");
        self
    }

    /// Adds a copy of a program of this machine, found on the PATH.
    pub fn system_program(&self, path: &str, name: &str) -> &Self {
        let path_list = std::env::var_os("PATH").expect("PATH");
        let found = std::env::split_paths(&path_list).map(|dir| dir.join(name)).find(|file| file.is_file());
        let found = found.unwrap_or_else(|| panic!("no {name} on the PATH"));
        self.file(path, 0o755, fs::read(found).expect("read"))
    }

    /// The reference agent as a tree; `version` makes its program another object.
    pub fn agent(version: &str, role: &str, descriptor: &str) -> Self {
        let tree = Self::new();
        let mut bytes = fs::read(program("agent-bin")).expect("the reference agent");
        bytes.extend_from_slice(format!("\nversion {version}\n").as_bytes());
        tree.file("bin/agent", 0o755, bytes);
        let head = format!("entrypoint = \"bin/agent\"\narguments = [\"--role\", \"{role}\"]\n{descriptor}");
        tree.file("manager-fs.toml", 0o644, head);
        tree
    }

    /// A tree whose entry point is this shell script.
    pub fn script(script: &str, descriptor: &str) -> Self {
        let tree = Self::new();
        tree.file("bin/agent", 0o755, format!("#!/bin/sh\n{script}\n"));
        tree.file("manager-fs.toml", 0o644, format!("entrypoint = \"bin/agent\"\n{descriptor}"));
        tree
    }
}

/// Everything that a program could see of a tree, an entry a line, in order of paths; xattrs by `getfattr -d -m -`
/// semantics. Two trees are equal if their listings are.
pub fn listing(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut stack = vec![PathBuf::new()];
    while let Some(relative) = stack.pop() {
        let path = root.join(&relative);
        let meta = path.symlink_metadata().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let content = if meta.is_symlink() {
            format!("-> {}", fs::read_link(&path).expect("readlink").display())
        } else if meta.is_file() {
            blake3::hash(&fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).to_hex().to_string()
        } else {
            let mut names: Vec<_> =
                fs::read_dir(&path).expect("readdir").map(|entry| entry.expect("entry").file_name()).collect();
            names.sort_by(|a, b| b.cmp(a));
            stack.extend(names.iter().map(|name| relative.join(name)));
            String::new()
        };
        let links = if meta.is_dir() { 0 } else { meta.nlink() };
        let size = if meta.is_dir() { 0 } else { meta.len() };
        lines.push(format!(
            "{} {:o} {}:{} {}.{:09} links {links} size {size} {content} {:?}",
            relative.display(),
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
            xattrs(&path)
        ));
    }
    lines.sort();
    lines
}

/// Extended attributes of the namespaces that a tree keeps.
fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0; 65_536];
    let Ok(length) = rustix::fs::llistxattr(path, &mut names[..]) else { return Vec::new() };
    let mut found = Vec::new();
    for name in names[..length].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let kept =
            name.starts_with(b"user.") || name == b"security.capability" || name.starts_with(b"system.posix_acl");
        let mut value = vec![0; 65_536];
        if let (true, Ok(length)) = (kept, rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..])) {
            value.truncate(length);
            found.push((String::from_utf8_lossy(name).into_owned(), value));
        }
    }
    found.sort();
    found
}

/// Packs a directory with the machine's tar.
pub fn tar(dir: &Path, archive: &Path, more: &[&str]) {
    let mut command = Command::new("tar");
    command.args(["--format=posix", "--sort=name", "--xattrs", "--xattrs-include=*"]).args(more);
    let status = command.arg("-cf").arg(archive).arg("-C").arg(dir).arg(".").status().expect("running tar");
    assert!(status.success(), "tar failed");
}

/// The files below a directory, in order; those that come or go meanwhile may be among them or not.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let (mut found, mut stack) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().filter_map(Result::ok) {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => stack.push(entry.path()),
                _ => found.push(entry.path()),
            }
        }
    }
    found.sort();
    found
}
