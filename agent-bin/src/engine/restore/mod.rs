//! A restore that goes on: every file that can be had is there, whole and with its metadata; of what cannot, the name,
//! the reason and, where a part is readable, that part under another name.
//!
//! One thread reads directories, some more write files. A directory gets its mode, owner and times when the last thing
//! in it is done, which is also what lets a read-only one be filled.

mod file;
mod folder;

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, FileType, Mode};

use super::SharedMeter;
use super::fault::panic_text;
use super::format::blobs::Blobs;
use super::format::id::Id;
use super::format::tree::{Node, NodeKind};
use super::live::set_metadata_of_link;
use folder::Folder;

/// Threads that decrypt and write.
const THREADS: std::ops::RangeInclusive<usize> = 2..=16;
/// Files that wait for a thread.
const FILES_MAX: usize = 256;

/// How much was restored.
#[derive(Debug, Default)]
pub(super) struct Restored {
    pub(super) files: u64,
    pub(super) bytes: u64,
    /// What is not there, or not under its name; told already.
    pub(super) missing: HashSet<PathBuf>,
}

/// Why a restore ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum RestoreFault {
    #[error("stopped on request")]
    Stopped,
    /// The target takes nothing more: every further file would fail in the same way.
    #[error("{path}: {source}", path = path.display())]
    Target { path: PathBuf, source: io::Error },
}

/// What a restore needs.
pub(super) struct Order<'a> {
    pub(super) blobs: &'a Blobs<'a>,
    /// What is restored: a directory's content, or one file.
    pub(super) root: &'a Node,
    pub(super) target: &'a Path,
    /// An earlier run was cut off: what lies in the target may be whole.
    pub(super) continued: bool,
    pub(super) meter: &'a SharedMeter,
}

struct FileTask {
    path: PathBuf,
    node: Node,
    folder: Arc<Folder>,
}

/// Names of one file; the same content too, so that no name gets what it never had.
type LinkKey = (u64, u64, Vec<Id>);

/// A further name of a file that has been or will be restored under its first one.
struct Link {
    first: PathBuf,
    task: FileTask,
}

struct Restore<'a> {
    order: &'a Order<'a>,
    privileged: bool,
    tasks: Mutex<Tasks>,
    work: Condvar,
    room: Condvar,
    links: Mutex<(HashMap<LinkKey, PathBuf>, Vec<Link>)>,
    fault: Mutex<Option<RestoreFault>>,
    missing: Mutex<HashSet<PathBuf>>,
    files: AtomicU64,
    bytes: AtomicU64,
}

#[derive(Default)]
struct Tasks {
    waiting: VecDeque<FileTask>,
    ended: bool,
}

/// Restores. What could not be restored is a problem of the meter's.
///
/// # Errors
/// It was stopped, or the target takes nothing more.
pub(super) fn restore(order: &Order<'_>) -> Result<Restored, RestoreFault> {
    let restore = Restore {
        order,
        privileged: rustix::process::geteuid().is_root(),
        tasks: Mutex::default(),
        work: Condvar::new(),
        room: Condvar::new(),
        links: Mutex::default(),
        fault: Mutex::default(),
        missing: Mutex::default(),
        files: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(*THREADS.start(), *THREADS.end());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| restore.work());
        }
        restore.guarded(order.target, || restore.begin());
        restore.end_tasks(false);
    });
    restore.guarded(order.target, || restore.link_all());
    if let Some(fault) = lock(&restore.fault).take() {
        return Err(fault);
    }
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    Ok(Restored {
        files: read(&restore.files),
        bytes: read(&restore.bytes),
        missing: std::mem::take(&mut *lock(&restore.missing)),
    })
}

impl Restore<'_> {
    fn begin(&self) -> Result<(), RestoreFault> {
        let Order { root, target, .. } = self.order;
        if root.kind == NodeKind::Dir {
            let folder = Folder::root(target.to_path_buf(), (*root).clone());
            self.directory(&folder)
        } else {
            let above = Node::new(OsStr::new(""), NodeKind::Dir);
            let folder = Folder::root(target.to_path_buf(), above);
            self.entry(&folder, (*root).clone())?;
            self.leave(&folder);
            Ok(())
        }
    }

    /// What is in a directory, which is there already.
    fn directory(&self, folder: &Arc<Folder>) -> Result<(), RestoreFault> {
        let Some(tree) = folder.node.subtree else {
            self.lost(&folder.path, "its directory has no content in the snapshot");
            self.leave(folder);
            return Ok(());
        };
        match self.order.blobs.tree(&tree) {
            Ok(tree) => {
                folder.name(tree.nodes.iter().map(Node::file_name));
                for node in tree.nodes {
                    self.entry(folder, node)?;
                }
            }
            Err(fault) => {
                self.lost(&folder.path, &format!("all that was in it: {fault}"));
            }
        }
        self.leave(folder);
        Ok(())
    }

    fn entry(&self, above: &Arc<Folder>, node: Node) -> Result<(), RestoreFault> {
        self.go_on()?;
        let name = node.file_name();
        if !is_a_name(&name) {
            // A repository that was written by an enemy must not reach out of the target.
            let name = name.display();
            self.lost(&above.path, &format!("an entry named {name:?}, which is no name of a file"));
            return Ok(());
        }
        let path = above.path.join(&name);
        match node.kind {
            NodeKind::Dir => match self.make_directory(&path) {
                Ok(()) => self.directory(&Folder::below(above, path, node)),
                Err(error) => self.failed(&path, error),
            },
            NodeKind::File => {
                above.enter();
                let task = FileTask { path, node, folder: Arc::clone(above) };
                if let Some(task) = self.link_later(task) {
                    self.put(task);
                }
                Ok(())
            }
            NodeKind::Symlink | NodeKind::Fifo | NodeKind::Socket | NodeKind::Dev | NodeKind::Chardev => {
                self.special(&path, &node)
            }
            NodeKind::Other => {
                self.lost(&path, "it is of a kind that this version does not know");
                Ok(())
            }
        }
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        // Nobody else looks in before it has its own mode.
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && self.order.continued => {
                if !fs::symlink_metadata(path)?.is_dir() {
                    return Err(error);
                }
                // An earlier run may have finished it already, also with a mode that lets nothing in.
                fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            }
            made => made,
        }
    }

    /// Links and special files.
    fn special(&self, path: &Path, node: &Node) -> Result<(), RestoreFault> {
        if self.order.continued {
            // Left by the earlier run; made anew in a moment.
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return self.failed(path, error),
                _ => {}
            }
        }
        let made = match node.kind {
            NodeKind::Symlink => std::os::unix::fs::symlink(node.link_target(), path),
            kind => {
                let kind = match kind {
                    NodeKind::Fifo => FileType::Fifo,
                    NodeKind::Socket => FileType::Socket,
                    NodeKind::Dev => FileType::BlockDevice,
                    _ => FileType::CharacterDevice,
                };
                rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), node.device).map_err(Into::into)
            }
        };
        match made {
            Ok(()) => {
                set_metadata_of_link(path, node, self.privileged, |what, error| self.not_set(path, what, &error));
                Ok(())
            }
            Err(error) => self.failed(path, error),
        }
    }

    /// Keeps further names of one file for the end; gives the first one back.
    fn link_later(&self, task: FileTask) -> Option<FileTask> {
        if task.node.links < 2 || task.node.inode == 0 {
            return Some(task);
        }
        let key = (task.node.device_id, task.node.inode, task.node.content.clone().unwrap_or_default());
        let mut links = lock(&self.links);
        let (first, later) = &mut *links;
        match first.get(&key) {
            Some(first) => {
                later.push(Link { first: first.clone(), task });
                None
            }
            None => {
                first.insert(key, task.path.clone());
                Some(task)
            }
        }
    }

    fn link_all(&self) -> Result<(), RestoreFault> {
        let links = std::mem::take(&mut lock(&self.links).1);
        for Link { first, task } in links {
            self.go_on()?;
            if lock(&self.missing).contains(&first) {
                self.lost(&task.path, &format!("it is the same file as {}, which is not restored", first.display()));
            } else {
                if self.order.continued {
                    drop(fs::remove_file(&task.path));
                }
                match fs::hard_link(&first, &task.path) {
                    Ok(()) => {
                        self.files.fetch_add(1, Ordering::Relaxed);
                    }
                    // Such as a file system without hard links: then it is a file of its own.
                    Err(_) => self.file(&task)?,
                }
            }
            self.leave(&task.folder);
        }
        Ok(())
    }

    /// One of the threads that write files.
    fn work(&self) {
        loop {
            let idle = |tasks: &mut Tasks| tasks.waiting.is_empty() && !tasks.ended;
            let mut tasks = self.work.wait_while(lock(&self.tasks), idle).unwrap_or_else(PoisonError::into_inner);
            let Some(task) = tasks.waiting.pop_front() else { return };
            drop(tasks);
            self.room.notify_one();
            self.guarded(&task.path, || self.file(&task));
            self.leave(&task.folder);
        }
    }

    fn put(&self, task: FileTask) {
        let full = |tasks: &mut Tasks| tasks.waiting.len() >= FILES_MAX && !tasks.ended;
        let mut tasks = self.room.wait_while(lock(&self.tasks), full).unwrap_or_else(PoisonError::into_inner);
        if !tasks.ended {
            tasks.waiting.push_back(task);
            self.work.notify_one();
        }
    }

    fn end_tasks(&self, at_once: bool) {
        let mut tasks = lock(&self.tasks);
        tasks.ended = true;
        if at_once {
            tasks.waiting.clear();
        }
        self.work.notify_all();
        self.room.notify_all();
    }

    /// Goes out of a directory; whoever is last there, and in those above it that this completes, gives it its metadata.
    fn leave(&self, folder: &Arc<Folder>) {
        let mut next = folder.leave();
        while let Some(done) = next {
            if done.node.mode().is_some() {
                match File::open(&done.path) {
                    Ok(directory) => {
                        let tell = |what: &str, error: io::Error| self.not_set(&done.path, what, &error);
                        super::live::set_metadata(&directory, &done.node, self.privileged, tell);
                    }
                    Err(error) => self.not_set(&done.path, "mode, owner and times", &error),
                }
            }
            next = done.above().and_then(|above| above.leave());
        }
    }

    fn guarded(&self, path: &Path, act: impl FnOnce() -> Result<(), RestoreFault>) {
        match catch_unwind(AssertUnwindSafe(act)) {
            Ok(Ok(())) => {}
            Ok(Err(fault)) => {
                lock(&self.fault).get_or_insert(fault);
                self.end_tasks(true);
            }
            Err(panic) => self.lost(path, &format!("restoring it failed: {}", panic_text(&*panic))),
        }
    }

    fn go_on(&self) -> Result<(), RestoreFault> {
        if self.order.meter.is_stopped() { Err(RestoreFault::Stopped) } else { Ok(()) }
    }

    /// Notes that something is not restored.
    fn lost(&self, path: &Path, why: &str) {
        self.order.meter.problem(format!("not restored: {}: {why}", path.display()));
        lock(&self.missing).insert(path.to_owned());
    }

    /// The host does not take an entry: a problem of its own, unless every further one would fail in the same way.
    fn failed(&self, path: &Path, error: io::Error) -> Result<(), RestoreFault> {
        if matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::ReadOnlyFilesystem
        ) {
            return Err(RestoreFault::Target { path: path.to_owned(), source: error });
        }
        self.lost(path, &error.to_string());
        Ok(())
    }

    fn not_set(&self, path: &Path, what: &str, error: &io::Error) {
        self.order.meter.problem(format!("{}: its {what}: {error}", path.display()));
    }
}

/// One part of a path: nothing that leads up, out, or nowhere.
fn is_a_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    !matches!(bytes, b"" | b"." | b"..") && !bytes.contains(&b'/') && !bytes.contains(&0)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A name under which a part of `name` can be kept: no other entry has it.
fn name_of_part(name: &OsStr, is_taken: impl Fn(&OsStr) -> bool) -> OsString {
    let mut part = name.to_owned();
    part.push(".damaged");
    let mut number = 1;
    while is_taken(&part) {
        number += 1;
        part = name.to_owned();
        part.push(format!(".damaged-{number}"));
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_is_a_name() {
        for bad in ["", ".", "..", "a/b", "/", "a\0"] {
            assert!(!is_a_name(OsStr::new(bad)), "{bad:?}");
        }
        for good in ["a", "...", ".manager-fs-restoring", " "] {
            assert!(is_a_name(OsStr::new(good)), "{good:?}");
        }
        assert!(is_a_name(OsStr::from_bytes(b"\xff")));
    }

    #[test]
    fn a_part_takes_nobodys_name() {
        let taken = ["a.damaged", "a.damaged-2"];
        assert_eq!(name_of_part(OsStr::new("a"), |name| taken.iter().any(|t| name == *t)), "a.damaged-3");
    }
}
