//! What this agent proves before it says that it is healthy: that the engine in this very build backs up, checks and
//! gives back, and that the host's state directory takes a file. Nothing about repositories or the network: a version is
//! not bad because the world is.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io::{self, Cursor};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rustic_core::repofile::{MasterKey, Metadata, Node, NodeType};
use rustic_core::{
    BackupOptions, BytesList, CheckOptions, ConfigOptions, Credentials, ErrorKind, FileType, Id, KeyOptions,
    ReadBackend, ReadSource, ReadSourceEntry, Repository, RepositoryBackends, RepositoryOptions, RusticError,
    RusticResult, SnapshotOptions, WriteBackend,
};

use crate::draft;

/// What is backed up and must come back.
const SAMPLE: &[u8] = b"what is read back is what was backed up\n";

/// What does not work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    /// Nothing can be kept between operations, for a reason that a version may have.
    #[error("state directory {path}: {source}", path = path.display())]
    State { path: PathBuf, source: io::Error },
    /// The engine's own words.
    #[error("the backup engine's self-test: {0}")]
    Engine(String),
}

/// Proves the engine and the state directory.
///
/// # Errors
/// Says what does not work.
pub(crate) fn prove(state: &Path) -> Result<(), Unfit> {
    match writable(state) {
        Ok(()) => {}
        // The host's bad day, which another version would not better: operations say so themselves, each for itself.
        Err(error) if is_of_the_disk(&error) => tracing::warn!("state directory {}: {error}", state.display()),
        Err(source) => return Err(Unfit::State { path: state.to_owned(), source }),
    }
    round_trip().map_err(|error| Unfit::Engine(error.display_log().to_string()))
}

fn is_of_the_disk(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), StorageFull | ReadOnlyFilesystem | QuotaExceeded)
}

fn writable(state: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(state)?;
    let probe = state.join(format!(".probe-{}", draft::mark()));
    let written = fs::write(&probe, SAMPLE);
    let removed = fs::remove_file(probe);
    // A full disk may have taken the name and not the bytes.
    written.and(removed)
}

fn round_trip() -> RusticResult<()> {
    crate::engine::ready();
    let backends = RepositoryBackends::new(Arc::new(Memory::default()), None);
    let options = RepositoryOptions::default().no_cache(true);
    // A master key instead of a password saves the half second that deriving a key takes on purpose.
    let credentials = Credentials::Masterkey(MasterKey::new());
    let repository = Repository::new(&options, &backends)?;
    let repository = repository.init(&credentials, &KeyOptions::default(), &ConfigOptions::default())?;
    let repository = repository.to_indexed_ids()?;
    let snapshot = SnapshotOptions::default().to_snapshot()?;
    let source = [PathBuf::from("/sample")];
    let snapshot = repository.archive(&BackupOptions::default(), &Sample, snapshot, &source)?;

    let repository = Repository::new(&options, &backends)?.open(&credentials)?;
    repository.check(CheckOptions::default().read_data(true))?.is_ok()?;
    let repository = repository.to_indexed()?;
    let node = repository.node_from_path(snapshot.tree, Path::new("/sample"))?;
    let mut back = Vec::new();
    repository.dump(&node, &mut back)?;
    if back == SAMPLE { Ok(()) } else { Err(RusticError::new(ErrorKind::Verification, "other bytes came back")) }
}

/// A source of one file.
struct Sample;

impl ReadSource for Sample {
    type Open = Cursor<&'static [u8]>;
    type Iter = std::iter::Once<RusticResult<ReadSourceEntry<Self::Open>>>;

    fn size(&self) -> RusticResult<Option<u64>> {
        Ok(Some(SAMPLE.len() as u64))
    }

    fn entries(&self) -> Self::Iter {
        let meta = Metadata { size: SAMPLE.len() as u64, ..Metadata::default() };
        let node = Node::new_node("sample".as_ref(), NodeType::File, meta);
        std::iter::once(Ok(ReadSourceEntry { path: "/sample".into(), node, open: Some(Cursor::new(SAMPLE)) }))
    }
}

/// A repository that lives as long as the test.
#[derive(Debug, Default)]
struct Memory(Mutex<BTreeMap<(u8, Id), Bytes>>);

impl Memory {
    fn with<T>(&self, act: impl FnOnce(&mut BTreeMap<(u8, Id), Bytes>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn missing(kind: FileType, id: &Id) -> Box<RusticError> {
    RusticError::new(ErrorKind::Backend, format!("no {kind} {id} in memory"))
}

impl ReadBackend for Memory {
    fn location(&self) -> String {
        "memory".to_owned()
    }

    fn list_with_size(&self, kind: FileType) -> RusticResult<Vec<(Id, u32)>> {
        let of_kind = |(key, bytes): (&(u8, Id), &Bytes)| {
            (key.0 == kind as u8).then(|| (key.1, u32::try_from(bytes.len()).unwrap_or(u32::MAX)))
        };
        Ok(self.with(|files| files.iter().filter_map(of_kind).collect()))
    }

    fn read_full(&self, kind: FileType, id: &Id) -> RusticResult<Bytes> {
        self.with(|files| files.get(&(kind as u8, *id)).cloned()).ok_or_else(|| missing(kind, id))
    }

    fn read_partial(&self, kind: FileType, id: &Id, _: bool, offset: u32, length: u32) -> RusticResult<Bytes> {
        let whole = self.read_full(kind, id)?;
        let (from, to) = (offset as usize, offset as usize + length as usize);
        if to <= whole.len() { Ok(whole.slice(from..to)) } else { Err(missing(kind, id)) }
    }

    fn warmup_path(&self, _: FileType, id: &Id) -> String {
        id.to_string()
    }
}

impl WriteBackend for Memory {
    fn write_bytes(&self, kind: FileType, id: &Id, _: bool, content: BytesList) -> RusticResult<()> {
        let bytes = Bytes::from(content.slice().concat());
        self.with(|files| files.insert((kind as u8, *id), bytes));
        Ok(())
    }

    fn remove(&self, kind: FileType, id: &Id, _: bool) -> RusticResult<()> {
        self.with(|files| files.remove(&(kind as u8, *id))).map(drop).ok_or_else(|| missing(kind, id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sound_build_on_a_sound_host_is_healthy() {
        let state = tempfile::tempdir().unwrap();
        prove(&state.path().join("state")).unwrap();
        assert_eq!(fs::read_dir(state.path().join("state")).unwrap().count(), 0);
    }

    #[test]
    fn a_full_disk_is_not_held_against_the_version() {
        let full = |code| is_of_the_disk(&io::Error::from_raw_os_error(code));
        assert!(full(28) && full(30) && full(122), "ENOSPC, EROFS, EDQUOT");
        assert!(!full(13) && !full(20), "EACCES and ENOTDIR are for somebody to look at");
    }

    #[test]
    fn a_state_directory_that_takes_no_file_is_named() {
        let state = tempfile::tempdir().unwrap();
        let file = state.path().join("file");
        fs::write(&file, "").unwrap();
        let error = prove(&file).expect_err("must be refused");
        assert!(error.to_string().contains(&file.display().to_string()), "{error}");
    }
}
