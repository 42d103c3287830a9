//! The place between the engine's library and the repository's files where check and prune are stopped.
//!
//! A panic in a thread of the library's ends the operation that the thread works for, which is told here.
//!
//! The library has no cancel. Once stopped, nothing is read, written or removed any more, as if the process had died: the
//! order in which prune writes and removes makes that harmless at every point.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use rustic_core::{BytesList, ErrorKind, FileType, Id, ReadBackend, RusticError, RusticResult, WriteBackend};

use super::SharedMeter;
use super::meter::Meter;

/// The text by which a stop is told from other failures in a log.
pub(super) const STOPPED: &str = "the operation was stopped on request";

thread_local! {
    /// The operation for which a thread of the library's last asked for a file.
    static WORKS_FOR: RefCell<Weak<Meter>> = const { RefCell::new(Weak::new()) };
}

/// A thread panics. If it is one of the library's, its operation is told: whoever waits for that thread may wait for ever,
/// or take what came before the panic for all.
pub(super) fn panicked(panic: &str) {
    // While it ends, a thread has none any more.
    let meter = WORKS_FOR.try_with(|meter| meter.try_borrow().ok().and_then(|meter| meter.upgrade()));
    if let Ok(Some(meter)) = meter {
        meter.break_off(panic);
    }
}

/// What this thread does from now on is not the library's.
pub(super) fn left() {
    WORKS_FOR.set(Weak::new());
}

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
        WORKS_FOR.set(Arc::downgrade(&self.meter));
        #[cfg(test)]
        self.meter.panic_if_told();
        match self.meter.broken() {
            // Nothing may be removed that only looks superfluous because a part of the index was not read.
            Some(panic) => Err(RusticError::new(ErrorKind::Other, panic)),
            None if self.meter.is_stopped() => Err(RusticError::new(ErrorKind::Other, STOPPED)),
            None => Ok(()),
        }
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
        match self.files.remove(kind, id, cacheable) {
            // An index file that somebody put back names packs that an earlier prune has removed. That they are gone is what
            // is wanted; otherwise no prune of this repository would ever come to its end again.
            Err(error) if is_gone(&error) => Ok(()),
            removed => removed,
        }
    }
}

/// Whether a file is not there, as the file system says.
fn is_gone(error: &RusticError) -> bool {
    let first: &(dyn std::error::Error + 'static) = error;
    let mut causes = std::iter::successors(Some(first), |error| error.source());
    causes.any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    })
}
