//! A repository's files, wherever they lie, as the engine's library wants them.

use std::sync::Arc;

use bytes::Bytes;
use rustic_core::{BytesList, ErrorKind, FileType, Id, ReadBackend, RusticError, RusticResult, WriteBackend};

use super::format::files::{FileFault, FileKind, Store};
use super::format::id;

/// A repository that lies in no directory of this host.
#[derive(Debug)]
pub(super) struct Elsewhere(pub(super) Arc<dyn Store>);

fn kind_of(kind: FileType) -> FileKind {
    match kind {
        FileType::Config => FileKind::Config,
        FileType::Index => FileKind::Index,
        FileType::Key => FileKind::Key,
        FileType::Snapshot => FileKind::Snapshot,
        FileType::Pack => FileKind::Pack,
    }
}

fn theirs(fault: FileFault) -> Box<RusticError> {
    RusticError::with_source(ErrorKind::Backend, "a file cannot be used", fault)
}

fn ours(id: &Id) -> RusticResult<id::Id> {
    let none = || RusticError::new(ErrorKind::Internal, "an id has another length");
    id::Id::parse(&id.to_hex()).ok_or_else(none)
}

impl ReadBackend for Elsewhere {
    fn location(&self) -> String {
        format!("{:?}", self.0)
    }

    fn list_with_size(&self, kind: FileType) -> RusticResult<Vec<(Id, u32)>> {
        let size = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        if kind == FileType::Config {
            let config = self.read_full(kind, &Id::default());
            // One that is not there is no fault of this question.
            return Ok(config.map(|config| vec![(Id::default(), size(config.len() as u64))]).unwrap_or_default());
        }
        let listed = self.0.list(kind_of(kind)).map_err(theirs)?;
        let mut found = Vec::with_capacity(listed.len());
        for (id, bytes) in listed {
            found.push((id.to_string().parse()?, size(bytes)));
        }
        Ok(found)
    }

    fn read_full(&self, kind: FileType, id: &Id) -> RusticResult<Bytes> {
        self.0.read(kind_of(kind), &ours(id)?).map(Bytes::from).map_err(theirs)
    }

    fn read_partial(&self, kind: FileType, id: &Id, _: bool, offset: u32, length: u32) -> RusticResult<Bytes> {
        let part = self.0.read_part(kind_of(kind), &ours(id)?, u64::from(offset), length as usize);
        part.map(Bytes::from).map_err(theirs)
    }

    fn warmup_path(&self, kind: FileType, id: &Id) -> String {
        format!("{kind:?}/{id:?}")
    }
}

/// What is written and removed by the library is so where the repository lies, and nowhere else.
impl WriteBackend for Elsewhere {
    fn create(&self) -> RusticResult<()> {
        Err(not_here())
    }

    fn write_bytes(&self, _: FileType, _: &Id, _: bool, _: BytesList) -> RusticResult<()> {
        Err(not_here())
    }

    fn remove(&self, _: FileType, _: &Id, _: bool) -> RusticResult<()> {
        Err(not_here())
    }
}

fn not_here() -> Box<RusticError> {
    RusticError::new(ErrorKind::Unsupported, "that is done by the media agent that serves the repository")
}
