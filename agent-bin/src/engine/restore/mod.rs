//! A restore that goes on: every file that can be had is there, whole and with its metadata; of what cannot, the name,
//! the reason and, where a part is readable, that part under another name.
//!
//! One thread reads directories, some more write files. A directory gets its mode, owner and times when the last thing
//! in it is done, which is also what lets a read-only one be filled.
//!
//! Whoever owns the target, or a directory above it, may change it meanwhile. So everything is made and opened below one
//! descriptor of the target ([`Beneath`]), without a link in any place, and only what this restore made is given an owner.

mod file;
mod folder;
pub(super) mod over;

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FileType, OFlags};

use super::SharedMeter;
use super::beneath::{Beneath, Looked, change_mode};
use super::facts::Facts;
use super::fault::panic_text;
use super::format::blobs::Blobs;
use super::format::id::Id;
use super::format::tree::{Node, NodeKind};
use super::live::{drop_attributes, set_metadata, set_metadata_of_special};
use super::wanted::Wanted;
use folder::Folder;
use over::Over;

/// Threads that decrypt and write.
const THREADS: std::ops::RangeInclusive<usize> = 2..=16;
/// Files that wait for a thread.
const FILES_MAX: usize = 256;

/// How much was restored.
#[derive(Debug, Default)]
pub(super) struct Restored {
    pub(super) files: u64,
    pub(super) bytes: u64,
    /// What is not there, or not under its name, below the target; told already.
    pub(super) missing: HashSet<PathBuf>,
    /// What was there and stays as it was, below the target.
    pub(super) kept: HashSet<PathBuf>,
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
    pub(super) target: &'a Beneath,
    /// Which part of it.
    pub(super) wanted: &'a Wanted,
    /// An earlier run was cut off: what lies in the target may be whole.
    pub(super) continued: bool,
    /// It goes over what is there; otherwise the target holds nothing that is not its own.
    pub(super) over: Option<Over<'a>>,
    pub(super) meter: &'a SharedMeter,
}

struct FileTask {
    /// Below the target.
    below: PathBuf,
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
    /// Of this process.
    user: u32,
    privileged: bool,
    tasks: Mutex<Tasks>,
    work: Condvar,
    room: Condvar,
    links: Mutex<(HashMap<LinkKey, PathBuf>, Vec<Link>)>,
    fault: Mutex<Option<RestoreFault>>,
    missing: Mutex<HashSet<PathBuf>>,
    kept: Mutex<HashSet<PathBuf>>,
    files: AtomicU64,
    bytes: AtomicU64,
    drafts: AtomicU64,
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
    let user = rustix::process::geteuid();
    let restore = Restore {
        order,
        user: user.as_raw(),
        privileged: user.is_root(),
        tasks: Mutex::default(),
        work: Condvar::new(),
        room: Condvar::new(),
        links: Mutex::default(),
        fault: Mutex::default(),
        missing: Mutex::default(),
        kept: Mutex::default(),
        files: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        drafts: AtomicU64::new(0),
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(*THREADS.start(), *THREADS.end());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| restore.work());
        }
        restore.guarded(Path::new(""), || restore.begin());
        restore.end_tasks(false);
    });
    restore.guarded(Path::new(""), || restore.link_all());
    if let Some(fault) = lock(&restore.fault).take() {
        return Err(fault);
    }
    let Restore { missing, kept, files, bytes, .. } = restore;
    let into = |set: Mutex<HashSet<PathBuf>>| set.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (files, bytes) = (files.into_inner(), bytes.into_inner());
    Ok(Restored { files, bytes, missing: into(missing), kept: into(kept) })
}

impl Restore<'_> {
    fn begin(&self) -> Result<(), RestoreFault> {
        let Order { root, target, .. } = self.order;
        let looked = match target.look(Path::new("")) {
            Ok(looked) => looked,
            Err(error) => return self.failed(Path::new(""), error),
        };
        let identity = looked.facts.identity;
        if root.kind == NodeKind::Dir {
            let node = match &self.order.over {
                Some(over) => self.root_over(over, root, &looked),
                None => Ok((*root).clone()),
            };
            match node {
                Ok(node) => self.directory(&Folder::root(node, identity)),
                Err(error) => self.failed(Path::new(""), error),
            }
        } else {
            let folder = Folder::root(Node::new(OsStr::new(""), NodeKind::Dir), identity);
            self.entry(&folder, (*root).clone())?;
            self.leave(&folder);
            Ok(())
        }
    }

    /// What is in a directory, which is there already.
    fn directory(&self, folder: &Arc<Folder>) -> Result<(), RestoreFault> {
        let Some(tree) = folder.node.subtree else {
            self.lost(&folder.below, "its directory has no content in the snapshot");
            self.leave(folder);
            return Ok(());
        };
        if let Some(over) = &self.order.over {
            self.sweep(over, &folder.below);
        }
        match self.order.blobs.tree(&tree) {
            Ok(tree) => {
                folder.name(tree.nodes.iter().map(Node::file_name));
                for node in tree.nodes {
                    self.entry(folder, node)?;
                }
            }
            Err(fault) => {
                self.lost(&folder.below, &format!("all that was in it: {fault}"));
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
            self.lost(&above.below, &format!("an entry named {name:?}, which is no name of a file"));
            return Ok(());
        }
        let below = above.below.join(&name);
        if !self.order.wanted.takes(&below, node.kind == NodeKind::Dir) {
            return Ok(());
        }
        match node.kind {
            NodeKind::Dir => self.go_into(above, below, node),
            NodeKind::File => {
                above.enter();
                let task = FileTask { below, node, folder: Arc::clone(above) };
                if let Some(task) = self.link_later(task) {
                    self.put(task);
                }
                Ok(())
            }
            NodeKind::Symlink | NodeKind::Fifo | NodeKind::Socket | NodeKind::Dev | NodeKind::Chardev => {
                self.special(&below, &node)
            }
            NodeKind::Other => {
                self.lost(&below, "it is of a kind that this version does not know");
                Ok(())
            }
        }
    }

    fn go_into(&self, above: &Arc<Folder>, below: PathBuf, node: Node) -> Result<(), RestoreFault> {
        if let Some(over) = &self.order.over {
            return self.directory_over(over, above, below, &node);
        }
        match self.make_directory(&below, &node) {
            Ok(identity) => self.directory(&Folder::below(above, below, node, identity)),
            Err(error) => self.failed(&below, error),
        }
    }

    /// Makes a directory into which nobody else looks before it has its own mode; returns its identity.
    fn make_directory(&self, below: &Path, node: &Node) -> io::Result<(u64, u64)> {
        let target = self.order.target;
        match target.make_directory(below) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && self.order.continued => {
                let found = target.look(below)?;
                if found.facts.kind != NodeKind::Dir || !self.is_ours(&found, node) {
                    return Err(error);
                }
                // An earlier run may have finished it already, also with a mode that lets nothing in.
                change_mode(&found, 0o700)?;
                Ok(found.facts.identity)
            }
            made => {
                made?;
                let found = target.look(below)?;
                if !self.is_own(&found) {
                    return Err(exchanged());
                }
                Ok(found.facts.identity)
            }
        }
    }

    /// Links and special files.
    fn special(&self, below: &Path, node: &Node) -> Result<(), RestoreFault> {
        if let Some(over) = &self.order.over {
            return self.special_over(over, below, node);
        }
        match self.make_special(below, node) {
            Ok(made) => {
                let tell = |what: &str, error: io::Error| self.not_set(below, what, &error);
                set_metadata_of_special(&made, node, self.privileged, tell);
                Ok(())
            }
            Err(error) => self.failed(below, error),
        }
    }

    fn make_special(&self, below: &Path, node: &Node) -> io::Result<Looked> {
        let target = self.order.target;
        if self.order.continued {
            // Left by the earlier run; made anew in a moment.
            target.remove(below)?;
        }
        match node.kind {
            NodeKind::Symlink => target.make_link(below, &node.link_target())?,
            kind => {
                let kind = match kind {
                    NodeKind::Fifo => FileType::Fifo,
                    NodeKind::Socket => FileType::Socket,
                    NodeKind::Dev => FileType::BlockDevice,
                    _ => FileType::CharacterDevice,
                };
                target.make_special(below, kind, node.device)?;
            }
        }
        let made = target.look(below)?;
        // Another file of the same kind that was put in its place has another owner, or another name beside this one.
        if made.facts.kind != node.kind || !self.is_own(&made) || made.facts.links != 1 {
            return Err(exchanged());
        }
        Ok(made)
    }

    /// Whether it is what this process just made.
    fn is_own(&self, found: &Looked) -> bool {
        found.facts.owner.0 == self.user
    }

    /// Whether it can be what an earlier run of this restore made, and perhaps gave to its owner.
    fn is_ours(&self, found: &Looked, node: &Node) -> bool {
        self.is_own(found) || (self.privileged && node.uid == Some(found.facts.owner.0))
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
                first.insert(key, task.below.clone());
                Some(task)
            }
        }
    }

    fn link_all(&self) -> Result<(), RestoreFault> {
        let links = std::mem::take(&mut lock(&self.links).1);
        for Link { first, task } in links {
            self.go_on()?;
            if lock(&self.missing).contains(&first) {
                let first = self.order.target.shown(&first);
                let why = format!("it is the same file as {}, which is not restored", first.display());
                self.lost(&task.below, &why);
            } else if let Some(over) = &self.order.over {
                self.link_over(over, &first, &task)?;
            } else {
                if self.order.continued {
                    drop(self.order.target.remove(&task.below));
                }
                match self.order.target.hard_link(&first, &task.below) {
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
            self.guarded(&task.below, || self.file(&task));
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
            if let Some(over) = &self.order.over {
                self.remove_extra(over, &done);
            }
            if done.node.mode().is_some() {
                match self.reopen(&done) {
                    Ok(directory) => {
                        let tell = |what: &str, error: io::Error| self.not_set(&done.below, what, &error);
                        if self.order.over.is_some() && done.node.mtime.is_some() {
                            drop_attributes(&directory, &done.node, tell);
                        }
                        set_metadata(&directory, &done.node, self.privileged, tell);
                    }
                    Err(error) => self.not_set(&done.below, "mode, owner and times", &error),
                }
            }
            next = done.above().and_then(|above| above.leave());
        }
    }

    /// The very directory that was made.
    fn reopen(&self, folder: &Folder) -> io::Result<File> {
        let directory = self.order.target.open(&folder.below, OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
        let directory = File::from(directory);
        if Facts::of(&directory)?.identity == folder.identity { Ok(directory) } else { Err(exchanged()) }
    }

    fn guarded(&self, below: &Path, act: impl FnOnce() -> Result<(), RestoreFault>) {
        match catch_unwind(AssertUnwindSafe(act)) {
            Ok(Ok(())) => {}
            Ok(Err(fault)) => {
                lock(&self.fault).get_or_insert(fault);
                self.end_tasks(true);
            }
            Err(panic) => self.lost(below, &format!("restoring it failed: {}", panic_text(&*panic))),
        }
    }

    fn go_on(&self) -> Result<(), RestoreFault> {
        if self.order.meter.is_stopped() { Err(RestoreFault::Stopped) } else { Ok(()) }
    }

    /// Notes that something is not restored.
    fn lost(&self, below: &Path, why: &str) {
        self.order.meter.problem(format!("not restored: {}: {why}", self.order.target.shown(below).display()));
        lock(&self.missing).insert(below.to_owned());
    }

    /// The host does not take an entry: a problem of its own, unless every further one would fail in the same way.
    fn failed(&self, below: &Path, error: io::Error) -> Result<(), RestoreFault> {
        if matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::ReadOnlyFilesystem
        ) {
            return Err(RestoreFault::Target { path: self.order.target.shown(below), source: error });
        }
        self.lost(below, &error.to_string());
        Ok(())
    }

    fn not_set(&self, below: &Path, what: &str, error: &io::Error) {
        self.order.meter.problem(format!("{}: its {what}: {error}", self.order.target.shown(below).display()));
    }
}

fn exchanged() -> io::Error {
    io::Error::other("somebody put something else in its place while it was restored")
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
