//! Every bound in one place, each with the reason for its value.

/// Bytes of one control message. The largest is a list of exports (some KiB a generation, see [`RECORD_BYTES_MAX`]);
/// sixteen MiB is a thousand generations with hundreds of ELF files each.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Bytes of one bulk frame. A chunk is at most [`CHUNK_BYTES_MAX`], and is never stored larger than it is.
pub const BULK_BYTES_MAX: usize = (1 << 20) + 64;

/// Bytes of one manifest: about five hundred thousand files, or 400 GiB of content at 256 KiB a chunk.
pub const MANIFEST_BYTES_MAX: usize = 256 << 20;

/// Bytes of one signed record: ten thousand ELF files with their needed libraries.
pub const RECORD_BYTES_MAX: usize = 8 << 20;

/// Smallest and largest size of a chunk, bytes; always a power of two. Below a page the index outweighs the content,
/// above 1 MiB one FUSE READ would wait for more than the kernel ever asks for at once.
pub const CHUNK_BYTES_MIN: u32 = 4 << 10;
/// See [`CHUNK_BYTES_MIN`].
pub const CHUNK_BYTES_MAX: u32 = 1 << 20;
/// The size of a chunk unless a measurement says otherwise (`docs/decisions.md`).
pub const CHUNK_BYTES: u32 = 256 << 10;

/// Bytes of one path component: `NAME_MAX` of Linux (`limits.h`).
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of one path or symlink target: `PATH_MAX` of Linux less its NUL.
pub const PATH_BYTES_MAX: usize = 4095;
/// Components of one path. Deeper trees only occur in archives made to hurt.
pub const PATH_DEPTH_MAX: usize = 128;

/// Entries of one tree.
pub const ENTRIES_MAX: usize = 1_000_000;
/// Bytes of one file. A tree is a program, not a data set.
pub const FILE_BYTES_MAX: u64 = 64 << 30;
/// Bytes of all files of one tree.
pub const TREE_BYTES_MAX: u64 = 256 << 30;

/// Extended attributes of one file, and their bytes: the kernel's `XATTR_LIST_MAX` and `XATTR_SIZE_MAX`.
pub const XATTRS_MAX: usize = 256;
/// See [`XATTRS_MAX`].
pub const XATTR_BYTES_MAX: usize = 65_536;

/// Chunks that one request may name: 16 MiB at the default chunk size keeps a demand read from queueing long.
pub const CHUNKS_PER_REQUEST_MAX: usize = 1024;

/// How much of a failed program's last stderr is kept as evidence, bytes.
pub const STDERR_TAIL_BYTES_MAX: usize = 16 << 10;

/// How long one read may wait for the network before it fails with EIO, milliseconds.
pub const READ_DEADLINE_MS: u64 = 30_000;
