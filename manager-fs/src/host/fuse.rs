//! Kernel requests, translated in and out: the adapter between `fuser` and [`Objects`]. No behaviour of its own but
//! three promises to the kernel:
//!
//! - What can be answered from memory or the local disk is answered at once; what may wait for the network goes to a
//!   bounded pool, so a slow fetch delays nobody else.
//! - OPEN, OPENDIR, FLUSH and IOCTL answer `ENOSYS`: the kernel then opens and closes by itself, with one page cache.
//! - Immutable entries are valid for years, changing ones for a second; what does not exist is never remembered.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyOpen,
    ReplyStatfs, ReplyXattr, Request,
};
use proto::trace::TraceWhat;
use proto::width;

use super::data::recorder::Recorder;
use super::objects::numbers::Ino;
use super::objects::{Attributes, FsError, Kind, Listed, Objects};
use super::opcode::Opcode;
pub use super::opcode::RequestCounts;
use super::pool::Pool;
use super::timeline::{About, Timeline};

/// Validity of what can never change.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Validity of what may change: the root and the PRODUCT directories.
const MOMENT: Duration = Duration::from_secs(1);
/// Reads that wait for the network at the same time; more wait in a queue.
const WAITING_READS_MAX: usize = 32;
/// Largest request, bytes.
const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// A window of one page: a page fault asks for its own page, and a `read` for what it reads, in one request. Without any
/// window the kernel asks for each page of a `read` by itself, one after the other.
pub(crate) const ONE_PAGE_BYTES: u32 = 4096;
/// `st_blksize`.
const BLOCK_BYTES: u32 = 4096;

/// How the kernel is answered.
#[derive(Debug, Clone, Copy)]
pub struct ServeOptions {
    /// How much one page fault or read may drag in, bytes; 0 makes the kernel ask for each page by itself.
    pub read_ahead_bytes: u32,
}

/// What the FUSE library calls: requests of the kernel in, answers out of the object tree.
pub(super) struct Adapter {
    objects: Arc<Objects>,
    counts: Arc<RequestCounts>,
    recorder: Arc<Recorder>,
    timeline: Arc<Timeline>,
    waiting: Pool,
    options: ServeOptions,
}

impl Adapter {
    pub(super) fn new(
        objects: Arc<Objects>,
        counts: Arc<RequestCounts>,
        (recorder, timeline): (Arc<Recorder>, Arc<Timeline>),
        options: ServeOptions,
    ) -> Self {
        let waiting = Pool::new("fuse-wait", WAITING_READS_MAX, usize::MAX);
        Self { objects, counts, recorder, timeline, waiting, options }
    }

    /// Answers now if the node's tree is in memory, else on a thread that may wait.
    fn answer<R: Send + 'static>(
        &self,
        number: INodeNo,
        reply: R,
        answer: impl FnOnce(&Objects, Result<Ino, FsError>, Instant, R) + Send + 'static,
    ) {
        let deadline = Instant::now() + self.objects.fetcher().read_deadline();
        let Some(ino) = Ino::parse(number.0) else {
            return answer(&self.objects, Err(FsError::NotFound), deadline, reply);
        };
        if self.objects.is_instant(ino) {
            answer(&self.objects, Ok(ino), deadline, reply);
        } else {
            let objects = self.objects.clone();
            // A reply that is dropped with its job answers EIO by itself.
            self.waiting.run(move || answer(&objects, Ok(ino), deadline, reply));
        }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let _ = config.set_max_write(REQUEST_BYTES_MAX);
        if let Err(nearest) = config.set_max_readahead(self.options.read_ahead_bytes.max(1)) {
            let _ = config.set_max_readahead(nearest);
        }
        let _ = config.set_max_background(64);
        // Cached listings are dropped when a directory's mtime changes; lookups in one directory may run together.
        for wanted in [InitFlags::FUSE_AUTO_INVAL_DATA, InitFlags::FUSE_PARALLEL_DIROPS] {
            let _ = config.add_capabilities(wanted);
        }
        // What a file's ACL says is enforced, as in an overlay. In a user namespace there is one user, who owns everything,
        // and the users that an ACL names do not exist.
        if self.objects.keeps_owners() {
            let _ = config.add_capabilities(InitFlags::FUSE_POSIX_ACL);
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.counts.count(Opcode::Lookup);
        let name = name.as_bytes().to_vec();
        self.answer(parent, reply, move |objects, parent, deadline, reply| {
            let changing = parent.as_ref().is_ok_and(|parent| objects.is_changing(*parent));
            match parent.and_then(|parent| objects.lookup(parent, &name, deadline)) {
                Ok(found) => {
                    // A VERSION may come to mean nothing, though the tree behind it cannot change.
                    let entry_ttl = if found.immutable && !changing { FOREVER } else { MOMENT };
                    let attr_ttl = if found.immutable { FOREVER } else { MOMENT };
                    reply.entry_with_ttls(&attr_ttl, &entry_ttl, &attributes(&found), Generation(0));
                }
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn forget(&self, _req: &Request, _ino: INodeNo, _nlookup: u64) {
        self.counts.count(Opcode::Forget);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.counts.count(Opcode::Getattr);
        self.answer(ino, reply, move |objects, ino, deadline, reply| {
            match ino.and_then(|ino| objects.attributes(ino, deadline)) {
                Ok(found) => reply.attr(if found.immutable { &FOREVER } else { &MOMENT }, &attributes(&found)),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.counts.count(Opcode::Readlink);
        self.answer(ino, reply, move |objects, ino, deadline, reply| {
            data(reply, ino.and_then(|ino| objects.read_link(ino, deadline)));
        });
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.counts.count(Opcode::Open);
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.counts.count(Opcode::Read);
        let Some(ino) = Ino::parse(ino.0) else { return reply.error(Errno::ENOENT) };
        self.recorder.note(ino, offset, size);
        let object = if let Ino::Object(prefix) = ino { Some(prefix) } else { None };
        let (since, about) = (self.timeline.since(), About { object, offset, bytes: size.into() });
        if let Some(present) = self.objects.read_present(ino, offset, size) {
            self.timeline.note(TraceWhat::Present, since, about);
            return data(reply, present);
        }
        let (objects, timeline) = (self.objects.clone(), self.timeline.clone());
        let deadline = Instant::now() + objects.fetcher().read_deadline();
        self.waiting.run(move || {
            let read = objects.read(ino, offset, size, deadline);
            timeline.note(TraceWhat::Missing, since, about);
            data(reply, read);
        });
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        self.counts.count(Opcode::Flush);
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.counts.count(Opcode::Release);
        reply.ok();
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.counts.count(Opcode::Opendir);
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.counts.count(Opcode::Readdir);
        self.answer(ino, (), move |objects, ino, deadline, ()| {
            let mut take = |entry: Listed<'_>| {
                let name = OsStr::from_bytes(entry.name);
                !reply.add(INodeNo(entry.ino.number()), entry.next, file_type(entry.kind), name)
            };
            match ino.and_then(|ino| objects.list(ino, offset, deadline, &mut take)) {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.counts.count(Opcode::Statfs);
        reply.statfs(0, 0, 0, 0, 0, BLOCK_BYTES, width::count(proto::limits::NAME_BYTES_MAX), BLOCK_BYTES);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.counts.count(Opcode::Getxattr);
        let name = name.as_bytes().to_vec();
        self.answer(ino, reply, move |objects, ino, deadline, reply| {
            xattr(reply, size, ino.and_then(|ino| objects.xattr(ino, &name, deadline)));
        });
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.counts.count(Opcode::Listxattr);
        self.answer(ino, reply, move |objects, ino, deadline, reply| {
            xattr(reply, size, ino.and_then(|ino| objects.xattr_names(ino, deadline)));
        });
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.counts.count(Opcode::Ioctl);
        reply.error(Errno::ENOSYS);
    }
}

fn attributes(found: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(found.ino.number()),
        size: found.size,
        blocks: found.size.div_ceil(512),
        atime: found.mtime,
        mtime: found.mtime,
        ctime: found.mtime,
        crtime: found.mtime,
        kind: file_type(found.kind),
        perm: u16::try_from(found.mode & 0o7777).unwrap_or(0),
        nlink: found.nlink,
        uid: found.uid,
        gid: found.gid,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
    }
}

fn data(reply: ReplyData, result: Result<Vec<u8>, FsError>) {
    match result {
        Ok(bytes) => reply.data(&bytes),
        Err(error) => reply.error(errno(&error)),
    }
}

fn xattr(reply: ReplyXattr, size: u32, result: Result<Vec<u8>, FsError>) {
    match result {
        Ok(value) if size == 0 => reply.size(width::count(value.len())),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(errno(&error)),
    }
}

fn errno(error: &FsError) -> Errno {
    if error.is_failure() {
        tracing::warn!(%error, errno = error.errno(), "a request of the mount fails");
    }
    Errno::from_i32(error.errno())
}
