//! The place between the engine's library and the repository's files where check and prune are stopped.
//!
//! The library has no cancel. Once stopped, nothing is read, written or removed any more, as if the process had died: the
//! order in which prune writes and removes makes that harmless at every point.

use std::sync::Arc;

use bytes::Bytes;
use rustic_core::{BytesList, ErrorKind, FileType, Id, ReadBackend, RusticError, RusticResult, WriteBackend};

use super::SharedMeter;

/// The text by which a stop is told from other failures in a log.
pub(super) const STOPPED: &str = "the operation was stopped on request";

/// A repository's files, as seen by one operation.
#[derive(Debug)]
pub(super) struct Gate {
    files: Arc<dyn WriteBackend>,
    meter: SharedMeter,
}

impl Gate {
    pub(super) fn new(files: Arc<dyn WriteBackend>, meter: SharedMeter) -> Self {
        Self { files, meter }
    }

    fn go_on(&self) -> RusticResult<()> {
        if self.meter.is_stopped() { Err(RusticError::new(ErrorKind::Other, STOPPED)) } else { Ok(()) }
    }
}

impl ReadBackend for Gate {
    fn location(&self) -> String {
        self.files.location()
    }

    fn list_with_size(&self, kind: FileType) -> RusticResult<Vec<(Id, u32)>> {
        self.files.list_with_size(kind)
    }

    fn list(&self, kind: FileType) -> RusticResult<Vec<Id>> {
        self.files.list(kind)
    }

    fn read_full(&self, kind: FileType, id: &Id) -> RusticResult<Bytes> {
        self.go_on()?;
        self.files.read_full(kind, id)
    }

    fn read_partial(
        &self,
        kind: FileType,
        id: &Id,
        cacheable: bool,
        offset: u32,
        length: u32,
    ) -> RusticResult<Bytes> {
        self.go_on()?;
        self.files.read_partial(kind, id, cacheable, offset, length)
    }

    fn warmup_path(&self, kind: FileType, id: &Id) -> String {
        self.files.warmup_path(kind, id)
    }
}

impl WriteBackend for Gate {
    fn create(&self) -> RusticResult<()> {
        self.files.create()
    }

    fn write_bytes(&self, kind: FileType, id: &Id, cacheable: bool, content: BytesList) -> RusticResult<()> {
        self.go_on()?;
        self.files.write_bytes(kind, id, cacheable, content)
    }

    fn remove(&self, kind: FileType, id: &Id, cacheable: bool) -> RusticResult<()> {
        self.go_on()?;
        self.files.remove(kind, id, cacheable)
    }
}
