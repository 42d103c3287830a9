//! The bounds of what crosses a wire, or a file that another version reads, each with the reason for its value. What only
//! one component knows (queues, caches, pauses) stands where it is used.

/// Bytes of one control message. The largest is a list of exports (some KiB a generation, see [`RECORD_BYTES_MAX`]);
/// sixteen MiB is a thousand generations with hundreds of ELF files each.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Bytes of one request of a host. The largest is the outcome of one job or the touches of one start, each below 1 MiB.
pub const HOST_REQUEST_BYTES_MAX: usize = (1 << 20) + (64 << 10);

/// Bytes of one bulk frame. A chunk is at most [`CHUNK_BYTES_MAX`], and is never stored larger than it is.
pub const BULK_BYTES_MAX: usize = (1 << 20) + 64;

/// Bytes of one manifest: about five hundred thousand files, or 400 GiB of content at 256 KiB a chunk.
pub const MANIFEST_BYTES_MAX: usize = 256 << 20;

/// Bytes of one signed record: ten thousand ELF files with their needed libraries.
pub const RECORD_BYTES_MAX: usize = 8 << 20;

/// Smallest and largest size of a chunk, bytes; always a power of two. Below a page the index outweighs the content,
/// above 1 MiB one FUSE READ would wait for more than the kernel ever asks for at once.
pub const CHUNK_BYTES_MIN: u32 = 4 << 10;
/// The largest size of a chunk, bytes: see [`CHUNK_BYTES_MIN`].
pub const CHUNK_BYTES_MAX: u32 = 1 << 20;
/// The size of a chunk unless a measurement says otherwise (`docs/decisions.md`).
pub const CHUNK_BYTES: u32 = 256 << 10;

/// Bytes of one path component: `NAME_MAX` of Linux (`limits.h`).
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of `HOST:PORT`: a DNS name has 253 at most.
pub const ADDRESS_BYTES_MAX: usize = 262;
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
/// Bytes of one extended attribute's value: see [`XATTRS_MAX`].
pub const XATTR_BYTES_MAX: usize = 65_536;

/// Chunks that one request may name: 256 MiB at the default chunk size. A request is answered as a stream, so what it costs the
/// manager does not grow with it; the list itself is 44 KiB at most.
pub const CHUNKS_PER_REQUEST_MAX: usize = 1024;

/// Bytes of one identifier or version for people: what Debian's and PyPI's longest take, twice over.
pub const VERSION_BYTES_MAX: usize = 128;
/// Bytes of what an agent says it is doing: one line of a terminal, and a path in it.
pub const ACTIVITY_BYTES_MAX: usize = 512;
/// Bytes of the reason for which something runs or waits: a sentence with a version, a path and a cause.
pub const REASON_BYTES_MAX: usize = 1024;
/// Bytes of what one fault says: a chain of causes with some paths.
pub const FAULT_BYTES_MAX: usize = 4096;
/// Bytes of a step's detail: the tail of a program's stderr ([`STDERR_TAIL_BYTES_MAX`]) and the timeline before it.
pub const DETAIL_BYTES_MAX: usize = 24 << 10;
/// Bytes of what a host says of bytes with a wrong hash: kind, id and place.
pub const WRONG_HASH_BYTES_MAX: usize = 512;

/// Lines of problems of one operation. Agents stop at 200; nobody reads more, and a job's record stays small.
pub const PROBLEMS_MAX: usize = 256;
/// Bytes of one problem: a path and what is wrong with it. Longer paths are cut.
pub const PROBLEM_BYTES_MAX: usize = 1024;
/// Sources of one backup, and so snapshots of one job.
pub const SOURCES_MAX: usize = 1024;
/// Bytes of all sources of one backup, so that a job's record with all that is reported on it stays below 1 MiB.
pub const SOURCES_BYTES_MAX: usize = 256 << 10;
/// Patterns of what a backup leaves out, or a restore takes: a list that somebody keeps by hand.
pub const PATTERNS_MAX: usize = 1024;
/// Bytes of all of them, so that a job's record stays below 1 MiB.
pub const PATTERNS_BYTES_MAX: usize = 64 << 10;
/// Files of patterns of one backup, and names that mark a directory.
pub const EXCLUDE_FILES_MAX: usize = 64;
/// Tags that one backup gives its snapshots, and by which snapshots are chosen.
pub const TAGS_MAX: usize = 32;
/// Bytes of one tag.
pub const TAG_BYTES_MAX: usize = 128;
/// Snapshots or entries that one look at a repository finds; agents stop at 512 KiB, so that a job's record with them stays
/// below 1 MiB.
pub const FOUND_MAX: usize = 4096;
/// Bytes of a file's content that one job brings: what somebody looks at.
pub const DUMP_BYTES_MAX: usize = 512 << 10;
/// Lines of what a command of a host's printed: the last of them, where it says why.
pub const OUTPUT_LINES_MAX: usize = 8;
/// Commands that ran for one backup, of which is told; those that failed are problems besides.
pub const RAN_MAX: usize = 12;
/// Sources of a snapshot that are shown.
pub const SOURCES_SHOWN_MAX: usize = 16;
/// Bytes of a snapshot's id: 64 hex digits, as restic has them.
pub const SNAPSHOT_BYTES_MAX: usize = 64;
/// Earlier jobs whose hosts the manager names with a job: as many as it remembers.
pub const EARLIER_JOBS_MAX: usize = 10_000;
/// Versions that took part in one operation, as reported; each is one change-over.
pub const VERSIONS_MAX: usize = 64;

/// Arguments of one operation of a program's own kind: more than a person types, or a form has fields.
pub const OWN_ARGUMENTS_MAX: usize = 64;
/// Bytes of the text of one: a path ([`PATH_BYTES_MAX`]), and so a job's record stays below 1 MiB.
pub const ARGUMENT_VALUE_BYTES_MAX: usize = 4096;
/// Lines of what one such operation did: a screen.
pub const OWN_RESULTS_MAX: usize = 64;
/// Bytes of one of them.
pub const RESULT_BYTES_MAX: usize = 1024;
/// Grants of one repository that are refused before their time: tokens that were taken back, and hosts that were revoked
/// within a day.
pub const REFUSED_MAX: usize = 1024;

/// Agents of one host: one a product, and no product is many of the dozens that a large site has.
pub const AGENTS_MAX: usize = 64;
/// Jobs under way that one agent tells of; `agent-core` takes 64 at once.
pub const JOBS_MAX: usize = 256;
/// Reports in one message: what a host that was away for a while sends in one round.
pub const REPORTS_MAX: usize = 256;
/// Objects that one check of a host's cache names.
pub const WRONG_OBJECTS_MAX: usize = 4096;
/// Trees attached on one host: every generation of every product, kept for years.
pub const TREES_MAX: usize = 4096;
/// Generations exported to one host; a message of [`MESSAGE_BYTES_MAX`] holds no more with real records.
pub const EXPORTS_MAX: usize = 16_384;
/// Publishers whose records one host believes.
pub const PUBLISHERS_MAX: usize = 64;
/// Bytes of one certificate as PEM: ours have less than one KiB.
pub const CERTIFICATE_BYTES_MAX: usize = 16 << 10;
/// Bytes of one certificate request: ours have less than 300.
pub const CSR_BYTES_MAX: usize = 8 << 10;
/// Bytes of an enrolment's secret. A right one has 20; a longer one is told that it is wrong.
pub const SECRET_BYTES_MAX: usize = 64;
/// Bytes of the JSON document of `status`: some ten thousand trees.
pub const STATUS_BYTES_MAX: usize = 8 << 20;

/// Arguments of an entry point, and the bytes of one: the descriptor that names them has 64 KiB at most.
pub const ARGUMENTS_MAX: usize = 4096;
/// Bytes of one argument: see [`ARGUMENTS_MAX`].
pub const ARGUMENT_BYTES_MAX: usize = 64 << 10;
/// Variables that an adapter adds to a program's environment.
pub const ENVIRONMENT_MAX: usize = 256;
/// Sockets of an adapter: a program with more of them than a large web server has ports.
pub const LISTEN_MAX: usize = 64;
/// Bytes of a socket's name (`FileDescriptorName=` of systemd is as long), and of a variable's.
pub const LISTEN_NAME_BYTES_MAX: usize = 64;
/// Bytes of a path that a socket is bound to: `sun_path` less its NUL.
pub const UNIX_PATH_BYTES_MAX: usize = 107;
/// Libraries that one ELF file needs, and bytes of each text in one: the largest programs have some hundred, and a text is a
/// path or a list of a few.
pub const NEEDED_MAX: usize = 1024;
/// Bytes of one text out of an ELF file or a script: see [`NEEDED_MAX`].
pub const ELF_TEXT_BYTES_MAX: usize = 16 << 10;
/// Bytes of an ed25519 signature.
pub const SIGNATURE_BYTES: usize = 64;

/// How much of a failed program's last stderr is kept as evidence, bytes.
pub const STDERR_TAIL_BYTES_MAX: usize = 16 << 10;

/// How long one read may wait for the network before it fails with EIO, milliseconds.
pub const READ_DEADLINE_MS: u64 = 30_000;
