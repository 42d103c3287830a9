//! What crosses `execve`: a sealed memory file with versioned state, and descriptors that are named in the environment.
//!
//! The old version writes it, the new one (perhaps older, perhaps newer code) reads and checks it before it serves.
//! Everything that must outlive a crash is on disk as well; the handoff carries what only this change-over needs.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use proto::agent::{ChangeId, JobId, StepEvent};
use proto::codec;
use rustix::fs::{MemfdFlags, SealFlags};
use serde::{Deserialize, Serialize};

use crate::durable::{self, FileFault};
use crate::journal::Entry;

const MAGIC: &[u8; 8] = b"MFSHND\0\x01";
/// Of a handoff whose state lies in a memory file of its own.
const MAGIC_TWO: &[u8; 8] = b"MFSHND\0\x02";
const BYTES_MAX: usize = 64 << 20;
/// A state up to here is in the handoff itself, which every version reads.
pub(crate) const INLINE_MAX: u64 = 62 << 20;

/// Names of the environment variables that name what is inherited.
pub mod variable {
    /// Name of the product that the program is an agent of.
    pub const PRODUCT: &str = "MANAGER_FS_PRODUCT";
    /// Path of the host's STATE directory.
    pub const STATE: &str = "MANAGER_FS_STATE";
    /// Path of the host's RUN directory.
    pub const RUN: &str = "MANAGER_FS_RUN";
    /// Descriptor of the listening operations socket.
    pub const OPERATIONS_FD: &str = "MANAGER_FS_OPS_FD";
    /// Descriptor of the channel to the stub.
    pub const STUB_FD: &str = "MANAGER_FS_STUB_FD";
    /// Descriptor of the product's lock.
    pub const LOCK_FD: &str = "MANAGER_FS_LOCK_FD";
    /// Descriptor of the handoff; set by a change-over alone.
    pub const HANDOFF_FD: &str = "MANAGER_FS_HANDOFF_FD";
    /// Descriptor of the list of what is inherited under names ([`crate::Inherited`]).
    pub const INHERITED_FD: &str = "MANAGER_FS_INHERITED_FD";
    /// Path of the program that runs unchanged programs; it is not set where there is none.
    pub const ADAPTER: &str = "MANAGER_FS_ADAPTER";
    /// Descriptor of what the stub decided, in the journal's format; set by a start by the stub alone.
    pub const START_FD: &str = "MANAGER_FS_START_FD";
}

/// What the old version tells the new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handoff {
    /// The manager's number of the change-over.
    pub change: ChangeId,
    /// The version that wrote this.
    pub from: Entry,
    /// The version that shall read it.
    pub to: Entry,
    /// The schema in which `state` was saved: one that both versions know.
    pub schema: u32,
    /// The embedding program's state; empty where it has a memory file of its own.
    pub state: Vec<u8>,
    /// How long it is in the memory file that is kept under its schema's name; `None`: `state` is all of it.
    #[serde(skip)]
    pub kept_bytes: Option<u64>,
    /// Jobs without an outcome; their records are on disk.
    pub unfinished: Vec<JobId>,
    /// The steps so far, for the evidence.
    pub timeline: Vec<StepEvent>,
    /// When the drain ended, microseconds of `CLOCK_MONOTONIC`.
    pub drained_us: u64,
    /// When `execve` was called, microseconds of `CLOCK_MONOTONIC`.
    pub exec_us: u64,
}

impl Handoff {
    /// Writes the sealed memory file. It is closed by `execve` unless the caller says otherwise.
    ///
    /// # Errors
    /// No memory, or the state is beyond its bound.
    pub fn write(&self) -> io::Result<OwnedFd> {
        seal_in_memory("handoff", &self.to_bytes()?)
    }

    pub(crate) fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let mut body = codec::encode(self).map_err(io::Error::other)?;
        if let Some(bytes) = self.kept_bytes {
            body.extend(codec::encode(&bytes).map_err(io::Error::other)?);
        }
        must_fit(body.len())?;
        Ok(durable::seal(if self.kept_bytes.is_some() { MAGIC_TWO } else { MAGIC }, &body))
    }

    /// Reads and checks what the old version wrote.
    ///
    /// # Errors
    /// It is not sealed, of another format, or damaged.
    pub fn read(memory: OwnedFd) -> Result<Self, FileFault> {
        Self::from_bytes(&read_sealed(memory, "handoff")?)
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, FileFault> {
        let path = Path::new("handoff");
        let damaged = |detail: String| FileFault::Damaged { path: path.to_owned(), what: "handoff", detail };
        let two = bytes.starts_with(MAGIC_TWO);
        let body = durable::unseal(if two { MAGIC_TWO } else { MAGIC }, bytes, path, "handoff")?;
        let (handoff, rest) = codec::decode_first::<Self, BYTES_MAX>(body).map_err(|e| damaged(e.to_string()))?;
        match (two, rest) {
            (false, []) => Ok(handoff),
            (false, _) => Err(damaged(format!("{} bytes stand behind it", rest.len()))),
            (true, _) if !handoff.state.is_empty() => Err(damaged("its state stands in two places".to_owned())),
            (true, _) => {
                let bytes = codec::decode::<u64, 8>(rest).map_err(|e| damaged(e.to_string()))?;
                Ok(Self { kept_bytes: Some(bytes), ..handoff })
            }
        }
    }
}

fn must_fit(bytes: usize) -> io::Result<()> {
    if bytes > BYTES_MAX {
        return Err(io::Error::other(format!("the state to hand over has {bytes} bytes, at most {BYTES_MAX}")));
    }
    Ok(())
}

/// A memory file with these bytes that nobody can change any more. It is closed by `execve` unless the caller says
/// otherwise.
pub(crate) fn seal_in_memory(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let memory = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(memory);
    file.write_all(bytes)?;
    rustix::fs::fcntl_add_seals(&file, seals())?;
    Ok(file.into())
}

/// The bytes of such a file.
pub(crate) fn read_sealed(memory: OwnedFd, what: &'static str) -> Result<Vec<u8>, FileFault> {
    let path = Path::new(what);
    let io = |e: io::Error| FileFault::io(path, e);
    let found = rustix::fs::fcntl_get_seals(memory.as_fd()).map_err(|e| io(e.into()))?;
    if !found.contains(seals()) {
        return Err(FileFault::Damaged { path: path.to_owned(), what, detail: "not sealed".to_owned() });
    }
    let mut file = File::from(memory);
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    file.take(BYTES_MAX as u64 + 64).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

fn seals() -> SealFlags {
    SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::TreeId;

    fn handoff() -> Handoff {
        let entry = |n: &str| Entry { version: n.parse().unwrap(), tree: TreeId::of(n.as_bytes()) };
        Handoff {
            change: ChangeId(7),
            from: entry("1.0"),
            to: entry("2.0"),
            schema: 3,
            state: vec![1; 100_000],
            kept_bytes: None,
            unfinished: vec![JobId(4)],
            timeline: Vec::new(),
            drained_us: 1,
            exec_us: 2,
        }
    }

    #[test]
    fn it_comes_back_and_nobody_can_change_it() {
        let memory = handoff().write().unwrap();
        let mut copy = File::from(memory.try_clone().unwrap());
        assert!(copy.write_all(b"x").is_err());
        assert!(copy.set_len(0).is_err());
        assert_eq!(Handoff::read(memory).unwrap(), handoff());
    }

    #[test]
    fn what_is_not_sealed_is_refused() {
        let memory = rustix::fs::memfd_create("x", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(Handoff::read(memory).unwrap_err().to_string().contains("not sealed"));
        assert!(Handoff::read(File::open("/dev/null").unwrap().into()).is_err());
    }

    #[test]
    fn a_state_in_a_memory_file_of_its_own_stands_in_no_second_place() {
        let kept = |state: Vec<u8>| Handoff { kept_bytes: Some(5), state, ..handoff() };
        let alone = kept(Vec::new());
        assert_eq!(Handoff::from_bytes(&alone.to_bytes().unwrap()).unwrap(), alone);
        let fault = Handoff::from_bytes(&kept(vec![1]).to_bytes().unwrap()).unwrap_err().to_string();
        assert!(fault.contains("its state stands in two places"), "{fault}");
        let mut behind = codec::encode(&handoff()).unwrap();
        behind.push(0);
        let fault = Handoff::from_bytes(&durable::seal(MAGIC, &behind)).unwrap_err().to_string();
        assert!(fault.contains("1 bytes stand behind it"), "{fault}");
    }

    #[test]
    fn the_largest_handoff_is_read_whole_and_of_a_larger_file_no_more() {
        assert_eq!(INLINE_MAX, 65_011_712, "which every version can read");
        must_fit(BYTES_MAX).unwrap();
        assert!(must_fit(BYTES_MAX + 1).unwrap_err().to_string().contains("67108865 bytes"));
        let read = |bytes: usize| {
            let memory =
                File::from(rustix::fs::memfd_create("x", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap());
            memory.set_len(bytes as u64).unwrap();
            rustix::fs::fcntl_add_seals(&memory, seals()).unwrap();
            read_sealed(memory.into(), "x").unwrap().len()
        };
        assert_eq!(read(BYTES_MAX + 40), BYTES_MAX + 40, "with its magic and its checksum");
        assert_eq!(read(BYTES_MAX + 1000), BYTES_MAX + 64);
    }
}
