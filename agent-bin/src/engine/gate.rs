//! The place between the engine and the repository's files where an operation is stopped.
//!
//! The engine has no cancel. Two rules give it one that loses nothing: once stopped, a backup may still store packs and
//! index (what it has read so far is then found again, not stored twice) but no snapshot; and once stopped, nothing is
//! read any more, which ends a restore or a check.

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
    /// Reading ends too. Not for a backup: it reads its own index while it finishes.
    stops_reads: bool,
}

impl Gate {
    pub(super) fn new(files: Arc<dyn WriteBackend>, meter: SharedMeter, stops_reads: bool) -> Self {
        Self { files, meter, stops_reads }
    }

    fn may_read(&self) -> RusticResult<()> {
        if self.stops_reads && self.meter.is_stopped() { Err(stopped()) } else { Ok(()) }
    }
}

pub(super) fn stopped() -> Box<RusticError> {
    RusticError::new(ErrorKind::Other, STOPPED)
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
        self.may_read()?;
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
        self.may_read()?;
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
        if kind == FileType::Snapshot && self.meter.is_stopped() {
            return Err(stopped());
        }
        self.files.write_bytes(kind, id, cacheable, content)
    }

    fn remove(&self, kind: FileType, id: &Id, cacheable: bool) -> RusticResult<()> {
        self.files.remove(kind, id, cacheable)
    }
}
