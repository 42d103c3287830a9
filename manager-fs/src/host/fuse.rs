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
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyOpen,
    ReplyStatfs, ReplyXattr, Request,
};

use super::objects::{Attributes, FsError, Kind, Listed, Objects};
use super::pool::Pool;
use super::touches::Recorder;

/// Validity of what can never change.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Validity of what may change: the root and the PRODUCT directories.
const MOMENT: Duration = Duration::from_secs(1);
/// Reads that wait for the network at the same time; more wait in a queue.
const WAITING_READS_MAX: usize = 32;
/// Largest request, bytes.
const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// `st_blksize`.
const BLOCK_BYTES: u32 = 4096;

const OPCODES: [&str; 14] = [
    "lookup",
    "getattr",
    "readlink",
    "open",
    "read",
    "statfs",
    "release",
    "getxattr",
    "listxattr",
    "flush",
    "opendir",
    "readdir",
    "ioctl",
    "forget",
];

/// How many requests the kernel has sent, by opcode, since this worker started.
#[derive(Debug, Default)]
pub struct RequestCounts([AtomicU64; OPCODES.len()]);

impl RequestCounts {
    /// Name and count of every opcode that occurs.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        OPCODES.iter().copied().zip(self.0.iter().map(|count| count.load(Ordering::Relaxed))).collect()
    }

    /// All requests, less FORGET, which the kernel sends when it pleases.
    pub fn total(&self) -> u64 {
        self.snapshot().iter().filter(|(name, _)| *name != "forget").map(|(_, count)| count).sum()
    }

    fn count(&self, opcode: &str) {
        if let Some(at) = OPCODES.iter().position(|name| *name == opcode) {
            self.0[at].fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// How the kernel is answered.
#[derive(Debug, Clone, Copy)]
pub struct ServeOptions {
    /// How much one page fault or read may drag in, bytes; 0 switches the kernel's read-ahead off.
    pub read_ahead_bytes: u32,
}

/// The adapter.
pub(super) struct Adapter {
    objects: Arc<Objects>,
    counts: Arc<RequestCounts>,
    recorder: Arc<Recorder>,
    waiting: Pool,
    options: ServeOptions,
}

impl Adapter {
    pub(super) fn new(
        objects: Arc<Objects>,
        counts: Arc<RequestCounts>,
        recorder: Arc<Recorder>,
        options: ServeOptions,
    ) -> Self {
        Self { objects, counts, recorder, waiting: Pool::new("fuse-wait", WAITING_READS_MAX, usize::MAX), options }
    }

    /// Answers now if the node's tree is in memory, else on a thread that may wait.
    fn answer<R: Send + 'static>(
        &self,
        ino: u64,
        reply: R,
        answer: impl FnOnce(&Objects, Instant, R) + Send + 'static,
    ) {
        let deadline = Instant::now() + self.objects.fetcher().read_deadline();
        if self.objects.is_instant(ino) {
            answer(&self.objects, deadline, reply);
        } else {
            let objects = self.objects.clone();
            // A reply that is dropped with its job answers EIO by itself.
            self.waiting.run(move || answer(&objects, deadline, reply));
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
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.counts.count("lookup");
        let name = name.as_bytes().to_vec();
        self.answer(parent.0, reply, move |objects, deadline, reply| {
            match objects.lookup(parent.0, &name, deadline) {
                Ok(found) => {
                    // A VERSION may come to mean nothing, though the tree behind it cannot change.
                    let entry_ttl = if found.immutable && !objects.is_changing(parent.0) { FOREVER } else { MOMENT };
                    let attr_ttl = if found.immutable { FOREVER } else { MOMENT };
                    reply.entry_with_ttls(&attr_ttl, &entry_ttl, &attributes(&found), Generation(0));
                }
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn forget(&self, _req: &Request, _ino: INodeNo, _nlookup: u64) {
        self.counts.count("forget");
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.counts.count("getattr");
        self.answer(ino.0, reply, move |objects, deadline, reply| match objects.attributes(ino.0, deadline) {
            Ok(found) => reply.attr(if found.immutable { &FOREVER } else { &MOMENT }, &attributes(&found)),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.counts.count("readlink");
        self.answer(ino.0, reply, move |objects, deadline, reply| {
            data(reply, objects.read_link(ino.0, deadline));
        });
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.counts.count("open");
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
        self.counts.count("read");
        self.recorder.note(ino.0, offset, size);
        if let Some(present) = self.objects.read_present(ino.0, offset, size) {
            return data(reply, present);
        }
        let objects = self.objects.clone();
        let deadline = Instant::now() + objects.fetcher().read_deadline();
        self.waiting.run(move || data(reply, objects.read(ino.0, offset, size, deadline)));
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        self.counts.count("flush");
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
        self.counts.count("release");
        reply.ok();
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.counts.count("opendir");
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.counts.count("readdir");
        self.answer(ino.0, (), move |objects, deadline, ()| match objects.list(ino.0, deadline) {
            Ok(listed) => {
                for (at, entry) in listed.iter().enumerate().skip(offset as usize) {
                    if reply.add(
                        INodeNo(entry.ino),
                        at as u64 + 1,
                        listed_kind(entry),
                        OsStr::from_bytes(&entry.name),
                    ) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.counts.count("statfs");
        reply.statfs(0, 0, 0, 0, 0, BLOCK_BYTES, proto::limits::NAME_BYTES_MAX as u32, BLOCK_BYTES);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.counts.count("getxattr");
        let name = name.as_bytes().to_vec();
        self.answer(ino.0, reply, move |objects, deadline, reply| {
            xattr(reply, size, objects.xattr(ino.0, &name, deadline));
        });
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.counts.count("listxattr");
        self.answer(ino.0, reply, move |objects, deadline, reply| {
            xattr(reply, size, objects.xattr_names(ino.0, deadline));
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
        self.counts.count("ioctl");
        reply.error(Errno::ENOSYS);
    }
}

fn attributes(found: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(found.ino),
        size: found.size,
        blocks: found.size.div_ceil(512),
        atime: found.mtime,
        mtime: found.mtime,
        ctime: found.mtime,
        crtime: found.mtime,
        kind: file_type(found.kind),
        perm: found.mode as u16,
        nlink: found.nlink,
        uid: found.uid,
        gid: found.gid,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

fn listed_kind(entry: &Listed) -> FileType {
    file_type(entry.kind)
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
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(errno(&error)),
    }
}

fn errno(error: &FsError) -> Errno {
    if matches!(error, FsError::Fetch(_) | FsError::Io(_)) {
        tracing::warn!(%error, "a read of the mount fails with EIO");
    }
    Errno::from_i32(error.errno())
}
