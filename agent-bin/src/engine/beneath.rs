//! A directory of the host, and what lies below it, reached without following one symbolic link.
//!
//! An agent that runs as root works in directories that belong to others, who may put a link or another file in any
//! entry's place between two calls. So nothing is named by its whole path: everything is opened from one descriptor of
//! the directory, by `openat2` with `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS`, and what was opened is what is written
//! to, compared, and given its owner.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, RenameFlags, ResolveFlags};
use rustix::io::Errno;

use super::facts::Facts;
use super::format::tree::NodeKind;

/// Only what is looked at, never read: also of a FIFO or a device, which nobody waits for.
const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Neither a FIFO nor a device is opened: that would wait for somebody at its other end.
pub(super) const READ: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY);
/// `openat2` says so when somebody renames directories meanwhile; then it is asked again, this often.
const TRIES: usize = 64;
/// What the kernel tells of a directory at once.
const NAMES_BYTES: usize = 32 << 10;

/// The kernel has no `openat2`, or a sandbox hides it.
static WITHOUT_OPENAT2: AtomicBool = AtomicBool::new(false);

/// A directory that is open.
#[derive(Debug)]
pub(super) struct Beneath {
    directory: OwnedFd,
    path: PathBuf,
    /// Other file systems that are mounted below it are entered, too.
    mounts: bool,
    /// It was not there, and was made.
    made: bool,
}

/// What lies at one name: open, so that it stays the same whatever becomes of the name.
#[derive(Debug)]
pub(super) struct Looked {
    file: OwnedFd,
    pub(super) facts: Facts,
}

/// A directory cannot be had without following a link.
#[derive(Debug, thiserror::Error)]
pub(super) enum PathFault {
    /// A part of the path is a symbolic link: whoever owns the directory that it lies in decides where it leads.
    #[error("{} is a symbolic link", .0.display())]
    Link(PathBuf),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl Beneath {
    /// A directory, named by its absolute path; it and what leads to it are made where they are missing.
    pub(super) fn make(path: &Path) -> Result<Self, PathFault> {
        let fault = |path: &Path, source: Errno| PathFault::Io { path: path.to_owned(), source: source.into() };
        let mut here = PathBuf::from("/");
        let flags = LOOK | OFlags::DIRECTORY;
        let mut directory = rustix::fs::open(&here, flags, Mode::empty()).map_err(|error| fault(&here, error))?;
        let mut names = path.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        });
        let mut next = names.next();
        let mut made = false;
        while let Some(name) = next {
            next = names.next();
            here.push(name);
            let mut found = rustix::fs::openat(&directory, name, flags, Mode::empty());
            if found.as_ref().is_err_and(|error| *error == Errno::NOENT) {
                // The last one is filled before it has its own mode: nobody else looks in until then.
                let mode = Mode::from_raw_mode(if next.is_none() { 0o700 } else { 0o777 });
                match rustix::fs::mkdirat(&directory, name, mode) {
                    Ok(()) => made = next.is_none(),
                    Err(Errno::EXIST) => {}
                    Err(error) => return Err(fault(&here, error)),
                }
                found = rustix::fs::openat(&directory, name, flags, Mode::empty());
            }
            directory = found.map_err(|error| {
                let is_link = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)
                    .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink);
                if is_link { PathFault::Link(here.clone()) } else { fault(&here, error) }
            })?;
        }
        Ok(Self { directory, path: here, mounts: false, made })
    }

    /// Whether it was made, by [`Beneath::make`].
    pub(super) fn is_new(&self) -> bool {
        self.made
    }

    /// As [`Beneath::make`] opens it, if it is there.
    pub(super) fn find(path: &Path) -> io::Result<Option<Self>> {
        match Self::at(path) {
            Ok(found) => Ok(Some(Self { mounts: false, ..found })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A directory that is there, and what is mounted below it: for what is only read. Its absolute path has no link in
    /// it.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        let root = rustix::fs::open("/", LOOK | OFlags::DIRECTORY, Mode::empty())?;
        let root = Self { directory: root, path: PathBuf::from("/"), mounts: true, made: false };
        let below = path.strip_prefix("/").map_err(|_| io::ErrorKind::InvalidInput)?;
        let directory = root.open(below, LOOK | OFlags::DIRECTORY, 0)?;
        Ok(Self { directory, path: path.to_owned(), mounts: true, made: false })
    }

    /// The whole path of what lies at `below`, for people.
    pub(super) fn shown(&self, below: &Path) -> PathBuf {
        if below.as_os_str().is_empty() { self.path.clone() } else { self.path.join(below) }
    }

    /// Opens what lies at `below`; the directory itself where that is empty.
    pub(super) fn open(&self, below: &Path, flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
        let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = open_beneath(self.directory.as_fd(), below, flags, Mode::from_raw_mode(mode), self.mounts);
        opened.map_err(|error| match error {
            // The kernel's words for it ("too many levels") would lead people astray.
            Errno::LOOP => io::Error::other("a symbolic link is in its place, or in that of a directory above it"),
            Errno::XDEV => io::Error::other("another file system is mounted in its place, or it has been moved away"),
            other => other.into(),
        })
    }

    /// Looks at what lies at `below`, whatever it is.
    pub(super) fn look(&self, below: &Path) -> io::Result<Looked> {
        Looked::of(self.open(below, LOOK, 0)?)
    }

    /// The names in a directory.
    pub(super) fn names(&self, below: &Path) -> io::Result<Vec<OsString>> {
        names_in(self.open(below, OFlags::RDONLY | OFlags::DIRECTORY, 0)?)
    }

    /// Makes a directory with mode 0700.
    pub(super) fn make_directory(&self, below: &Path) -> io::Result<()> {
        let (above, name) = self.above(below)?;
        Ok(rustix::fs::mkdirat(above, name, Mode::RWXU)?)
    }

    /// Makes a file that is not there yet, with mode 0600.
    pub(super) fn make_file(&self, below: &Path) -> io::Result<File> {
        self.open(below, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, 0o600).map(File::from)
    }

    /// Makes a symbolic link.
    pub(super) fn make_link(&self, below: &Path, target: &Path) -> io::Result<()> {
        let (above, name) = self.above(below)?;
        Ok(rustix::fs::symlinkat(target, above, name)?)
    }

    /// Makes a FIFO, a socket or a device, with mode 0600.
    pub(super) fn make_special(&self, below: &Path, kind: FileType, device: u64) -> io::Result<()> {
        let (above, name) = self.above(below)?;
        Ok(rustix::fs::mknodat(above, name, kind, Mode::RUSR | Mode::WUSR, device)?)
    }

    /// Gives what lies at `first` a further name.
    pub(super) fn hard_link(&self, first: &Path, further: &Path) -> io::Result<()> {
        let ((from, name), (to, new)) = (self.above(first)?, self.above(further)?);
        Ok(rustix::fs::linkat(from, name, to, new, AtFlags::empty())?)
    }

    /// Gives a file another name in the same directory, if nothing has it.
    pub(super) fn rename(&self, below: &Path, new: &OsStr) -> io::Result<()> {
        let (above, name) = self.above(below)?;
        match rustix::fs::renameat_with(&above, name, &above, new, RenameFlags::NOREPLACE) {
            // A file system that cannot promise it: look, then rename.
            Err(Errno::INVAL | Errno::NOSYS) => match rustix::fs::statat(&above, new, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => Ok(rustix::fs::renameat(&above, name, &above, new)?),
                Ok(_) => Err(Errno::EXIST.into()),
                Err(error) => Err(error.into()),
            },
            renamed => Ok(renamed?),
        }
    }

    /// Gives an entry the name of another one in the same directory, which is gone then.
    pub(super) fn replace(&self, below: &Path, other: &OsStr) -> io::Result<()> {
        let (above, name) = self.above(below)?;
        Ok(rustix::fs::renameat(&above, name, &above, other)?)
    }

    /// Removes an empty directory.
    pub(super) fn remove_directory(&self, below: &Path) -> io::Result<()> {
        let (above, name) = self.above(below)?;
        Ok(rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR)?)
    }

    /// Removes anything, a directory with all that is in it.
    pub(super) fn remove_all(&self, below: &Path) -> io::Result<()> {
        let found = self.look(below)?;
        if found.facts.kind != NodeKind::Dir {
            return self.remove(below);
        }
        if found.facts.mode & 0o700 != 0o700 {
            // Whoever may remove it may look into it; where that is not so, the list says it.
            drop(change_mode(&found, found.facts.mode & 0o7777 | 0o700));
        }
        for name in self.names(below)? {
            self.remove_all(&below.join(name))?;
        }
        self.remove_directory(below)
    }

    /// Removes anything but a directory; what is not there is removed already.
    pub(super) fn remove(&self, below: &Path) -> io::Result<()> {
        let (above, name) = self.above(below)?;
        match rustix::fs::unlinkat(above, name, AtFlags::empty()) {
            Err(error) if error != Errno::NOENT => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The directory that an entry lies in, and its name there.
    fn above<'a>(&self, below: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let name = below.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let above = below.parent().unwrap_or(Path::new(""));
        Ok((self.open(above, LOOK | OFlags::DIRECTORY, 0)?, name))
    }
}

impl Looked {
    fn of(file: OwnedFd) -> io::Result<Self> {
        Ok(Self { facts: Facts::of(&file)?, file })
    }

    /// Where it leads, if it is a symbolic link.
    pub(super) fn link_target(&self) -> io::Result<PathBuf> {
        let target = rustix::fs::readlinkat(&self.file, "", Vec::new())?;
        Ok(PathBuf::from(OsStr::from_bytes(target.as_bytes())))
    }

    /// A path that leads to this very file, for calls that take no descriptor of what is only looked at.
    pub(super) fn by_descriptor(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

impl AsFd for Beneath {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl AsFd for Looked {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl From<Looked> for OwnedFd {
    fn from(looked: Looked) -> Self {
        looked.file
    }
}

/// The names in a directory that is open for reading, from where it stands.
pub(super) fn names_in(directory: impl AsFd) -> io::Result<Vec<OsString>> {
    let mut buffer = Vec::with_capacity(NAMES_BYTES);
    let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

fn open_beneath(
    directory: BorrowedFd<'_>,
    below: &Path,
    flags: OFlags,
    mode: Mode,
    mounts: bool,
) -> Result<OwnedFd, Errno> {
    let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    resolve.set(ResolveFlags::NO_XDEV, !mounts);
    // The kernel refuses a mode with what makes no file.
    let mode = if flags.contains(OFlags::CREATE) { mode } else { Mode::empty() };
    for _ in 0..TRIES {
        if WITHOUT_OPENAT2.load(Ordering::Relaxed) {
            break;
        }
        match rustix::fs::openat2(directory, below, flags, mode, resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::NOSYS) => WITHOUT_OPENAT2.store(true, Ordering::Relaxed),
            opened => return opened,
        }
    }
    open_by_steps(directory, below, flags, mode)
}

/// The same, name by name: no link is followed because none of the names may be one.
fn open_by_steps(directory: BorrowedFd<'_>, below: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let mut here: Option<OwnedFd> = None;
    let mut names = below.components().peekable();
    while let Some(part) = names.next() {
        let name = match part {
            Component::Normal(name) => name,
            Component::CurDir => OsStr::new("."),
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(Errno::XDEV),
        };
        let from = here.as_ref().map_or(directory, AsFd::as_fd);
        if names.peek().is_none() {
            return rustix::fs::openat(from, name, flags | OFlags::NOFOLLOW, mode);
        }
        here = Some(rustix::fs::openat(from, name, LOOK | OFlags::DIRECTORY, Mode::empty()).map_err(|error| {
            let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW);
            let is_link = stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink);
            if is_link { Errno::LOOP } else { error }
        })?);
    }
    Err(Errno::INVAL)
}

/// Changes the mode of what was only looked at.
pub(super) fn change_mode(looked: &Looked, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::chmodat(CWD, looked.by_descriptor(), Mode::from_raw_mode(mode), AtFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A directory beside which there is one that nobody may get into.
    fn bench() -> (tempfile::TempDir, Beneath, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir_all(outside.join("deep")).unwrap();
        fs::write(outside.join("secret"), "secret").unwrap();
        let inside = Beneath::make(&dir.path().join("inside")).unwrap();
        (dir, inside, outside)
    }

    fn count(directory: &Path) -> usize {
        fs::read_dir(directory).unwrap().count()
    }

    #[test]
    fn no_call_follows_a_link_in_any_place() {
        let (_dir, inside, outside) = bench();
        symlink(&outside, inside.path.join("link")).unwrap();
        symlink(outside.join("secret"), inside.path.join("file")).unwrap();
        fs::write(inside.path.join("own"), "own").unwrap();
        let entry = Path::new("link/new");
        assert!(inside.make_file(entry).is_err());
        assert!(inside.make_file(Path::new("file")).is_err());
        assert!(inside.make_directory(entry).is_err());
        assert!(inside.make_link(entry, Path::new("/")).is_err());
        assert!(inside.make_special(entry, FileType::Fifo, 0).is_err());
        assert!(inside.hard_link(Path::new("own"), entry).is_err());
        assert!(inside.remove(Path::new("link/secret")).is_err());
        assert!(inside.rename(Path::new("link/secret"), OsStr::new("gone")).is_err());
        let read = inside.open(Path::new("file"), OFlags::RDONLY, 0).unwrap_err().to_string();
        assert!(read.contains("symbolic link"), "{read}");
        assert!(inside.look(Path::new("link/secret")).is_err());
        assert_eq!(count(&outside), 2, "nothing was written and nothing is gone");
        // The link itself is something to look at.
        let link = inside.look(Path::new("file")).unwrap();
        assert_eq!(link.link_target().unwrap(), outside.join("secret"));
    }

    #[test]
    fn a_directory_behind_a_link_is_refused_by_the_links_name() {
        let (dir, _inside, outside) = bench();
        let link = dir.path().join("link");
        symlink(&outside, &link).unwrap();
        for path in [link.clone(), link.join("deep"), link.join("new/er")] {
            assert!(matches!(Beneath::make(&path), Err(PathFault::Link(of)) if of == link), "{path:?}");
        }
        assert_eq!(count(&outside), 2);
        let file = Beneath::make(&outside.join("secret/x")).unwrap_err();
        assert!(matches!(&file, PathFault::Io { path, .. } if path.ends_with("secret")), "{file}");
    }

    #[test]
    fn name_by_name_is_as_strict_as_the_kernels_own_way() {
        let (_dir, inside, outside) = bench();
        fs::create_dir_all(inside.path.join("a/b")).unwrap();
        symlink(&outside, inside.path.join("a/link")).unwrap();
        let by_steps = |below: &str, flags| {
            open_by_steps(inside.directory.as_fd(), Path::new(below), flags, Mode::from_raw_mode(0o600))
        };
        by_steps("a/b", OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
        by_steps(".", OFlags::RDONLY).unwrap();
        by_steps("a/b/file", OFlags::RDWR | OFlags::CREATE | OFlags::EXCL).unwrap();
        assert_eq!(by_steps("a/link/secret", OFlags::RDONLY).unwrap_err(), Errno::LOOP);
        assert_eq!(by_steps("a/link", OFlags::RDONLY).unwrap_err(), Errno::LOOP);
        assert_eq!(by_steps("a/b/../../../outside/secret", OFlags::RDONLY).unwrap_err(), Errno::XDEV);
        assert_eq!(by_steps("/etc/passwd", OFlags::RDONLY).unwrap_err(), Errno::XDEV);
        assert!(inside.open(Path::new("../outside/secret"), OFlags::RDONLY, 0).is_err());
    }

    #[test]
    fn a_rename_replaces_nothing() {
        let (_dir, inside, _) = bench();
        for name in ["a", "b"] {
            fs::write(inside.path.join(name), name).unwrap();
        }
        let taken = inside.rename(Path::new("a"), OsStr::new("b")).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        inside.rename(Path::new("a"), OsStr::new("c")).unwrap();
        assert_eq!(fs::read_to_string(inside.path.join("c")).unwrap(), "a");
        inside.remove(Path::new("a")).unwrap();
    }
}
