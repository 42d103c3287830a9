//! A repository's files, wherever they lie, as the engine's library wants them.

use std::sync::Arc;

use bytes::Bytes;
use rustic_core::{BytesList, ErrorKind, FileType, Id, ReadBackend, RusticError, RusticResult, WriteBackend};

use super::format::files::{FileFault, FileKind, Store};
use super::format::id;

/// A repository that lies in no directory of this host.
#[derive(Debug)]
pub(super) struct Elsewhere {
    pub(super) store: Arc<dyn Store>,
    /// Whether this host looks after it: otherwise nothing is written or removed by the library, but where it does.
    pub(super) is_ours: bool,
}

impl Elsewhere {
    fn must_be_ours(&self) -> RusticResult<()> {
        let not = || {
            let what = "that is done by the media agent that serves the repository";
            RusticError::new(ErrorKind::Unsupported, what)
        };
        self.is_ours.then_some(()).ok_or_else(not)
    }
}

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
        format!("{:?}", self.store)
    }

    fn list_with_size(&self, kind: FileType) -> RusticResult<Vec<(Id, u32)>> {
        let size = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        if kind == FileType::Config {
            let config = self.read_full(kind, &Id::default());
            // One that is not there is no fault of this question.
            return Ok(config.map(|config| vec![(Id::default(), size(config.len() as u64))]).unwrap_or_default());
        }
        let listed = self.store.list(kind_of(kind)).map_err(theirs)?;
        let mut found = Vec::with_capacity(listed.len());
        for (id, bytes) in listed {
            found.push((id.to_string().parse()?, size(bytes)));
        }
        Ok(found)
    }

    fn read_full(&self, kind: FileType, id: &Id) -> RusticResult<Bytes> {
        self.store.read(kind_of(kind), &ours(id)?).map(Bytes::from).map_err(theirs)
    }

    fn read_partial(&self, kind: FileType, id: &Id, _: bool, offset: u32, length: u32) -> RusticResult<Bytes> {
        let part = self.store.read_part(kind_of(kind), &ours(id)?, u64::from(offset), length as usize);
        part.map(Bytes::from).map_err(theirs)
    }

    fn warmup_path(&self, kind: FileType, id: &Id) -> String {
        format!("{kind:?}/{id:?}")
    }
}

impl WriteBackend for Elsewhere {
    fn create(&self) -> RusticResult<()> {
        self.must_be_ours()?;
        self.store.make().map_err(theirs)
    }

    fn write_bytes(&self, kind: FileType, id: &Id, _: bool, content: BytesList) -> RusticResult<()> {
        self.must_be_ours()?;
        self.store.write(kind_of(kind), &ours(id)?, &content.slice().concat()).map_err(theirs)
    }

    fn remove(&self, kind: FileType, id: &Id, _: bool) -> RusticResult<()> {
        self.must_be_ours()?;
        self.store.remove(kind_of(kind), &ours(id)?).map_err(theirs)
    }
}
