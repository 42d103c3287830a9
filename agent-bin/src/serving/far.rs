//! The files of a repository that lies with a storage elsewhere, passed on: whoever asks needs nothing that lets it in there.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::fault::ShelfFault;
use crate::engine::format::files::{FileFault, FileKind, Store};
use crate::engine::format::id::Id;
use crate::wire::client::may_pass;
use crate::wire::http;

/// How long the storage may be away before whoever asks is told to come again; less than what a data agent waits for an
/// answer.
pub(super) const OUTAGE_MAX: Duration = Duration::from_secs(45);
/// Bytes of one file. It is held in memory; the largest pack that restic makes has 128 MiB.
pub(super) const FILE_BYTES_MAX: u64 = 256 << 20;
/// Whole files that are held in memory at once.
const TURNS: usize = 12;
/// How long somebody waits for a turn.
const TURN_WAIT_MAX: Duration = Duration::from_secs(30);

/// What a storage has of one repository.
#[derive(Debug)]
pub(super) struct Far {
    pub(super) store: Arc<dyn Store>,
    under_way: Mutex<usize>,
    fewer: Condvar,
}

impl Far {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, under_way: Mutex::default(), fewer: Condvar::new() }
    }

    pub(super) fn bytes(&self, kind: FileKind, id: &Id) -> Result<u64, ShelfFault> {
        self.store.bytes(kind, id).map_err(fault)
    }

    pub(super) fn whole(&self, kind: FileKind, id: &Id) -> Result<Vec<u8>, ShelfFault> {
        let _turn = self.turn()?;
        self.store.read(kind, id).map_err(fault)
    }

    /// A part, as a request names it; `None`: there is no such part, of so many bytes.
    pub(super) fn part(&self, kind: FileKind, id: &Id, range: &str) -> Result<Result<Vec<u8>, u64>, ShelfFault> {
        let _turn = self.turn()?;
        let most = usize::try_from(FILE_BYTES_MAX).unwrap_or(usize::MAX);
        let read = |(from, length): (u64, u64)| {
            let length = usize::try_from(length).ok().filter(|length| *length <= most);
            length.map(|length| self.store.read_part(kind, id, from, length))
        };
        // Whoever knows what it wants asks for just that: then its size need not be asked for.
        match http::range(range, u64::MAX).and_then(read) {
            Some(Ok(part)) => return Ok(Ok(part)),
            Some(Err(found)) if found.source.kind() != std::io::ErrorKind::UnexpectedEof => return Err(fault(found)),
            _ => {}
        }
        let bytes = self.store.bytes(kind, id).map_err(fault)?;
        match http::range(range, bytes).and_then(read) {
            Some(part) => part.map(Ok).map_err(fault),
            None => Ok(Err(bytes)),
        }
    }

    /// Takes a file whose content comes from `from`.
    pub(super) fn add(&self, kind: FileKind, id: &Id, bytes: u64, from: &mut impl Read) -> Result<(), ShelfFault> {
        if bytes > FILE_BYTES_MAX {
            return Err(ShelfFault::TooLarge);
        }
        let _turn = self.turn()?;
        let content = http::read_body(from, bytes).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => ShelfFault::Cut,
            _ => error.into(),
        })?;
        if Id::of(&content) != *id {
            return Err(ShelfFault::NotItsName);
        }
        self.store.write(kind, id, &content).map_err(fault)
    }

    fn turn(&self) -> Result<Turn<'_>, ShelfFault> {
        let until = Instant::now() + TURN_WAIT_MAX;
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        while *under_way >= TURNS {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ShelfFault::Busy("too many files are under way at once".to_owned()));
            }
            under_way = self.fewer.wait_timeout(under_way, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *under_way += 1;
        Ok(Turn(self))
    }
}

/// A place among the files under way.
struct Turn<'a>(&'a Far);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.under_way.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.fewer.notify_one();
    }
}

/// What whoever asks is told of a storage: that it may come again, or what is wrong.
pub(super) fn fault(fault: FileFault) -> ShelfFault {
    match fault.source.kind() {
        std::io::ErrorKind::NotFound => ShelfFault::NotThere,
        kind if may_pass(kind) => ShelfFault::Busy(fault.to_string()),
        kind => ShelfFault::Io(std::io::Error::new(kind, fault.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format::files::Directory;

    #[test]
    fn what_is_passed_on_is_whole_and_under_its_own_name() {
        let dir = tempfile::tempdir().unwrap();
        let far = Far::new(Arc::new(Directory { root: dir.path().to_owned() }));
        let (kind, id) = (FileKind::Index, Id::of(b"content"));
        assert!(matches!(far.add(kind, &id, 7, &mut &b"CONTENT"[..]), Err(ShelfFault::NotItsName)));
        assert!(matches!(far.add(kind, &id, 7, &mut &b"cont"[..]), Err(ShelfFault::Cut)));
        assert!(matches!(far.add(kind, &id, FILE_BYTES_MAX + 1, &mut &b""[..]), Err(ShelfFault::TooLarge)));
        assert!(matches!(far.whole(kind, &id), Err(ShelfFault::NotThere)), "nothing came of it");
        far.add(kind, &id, 7, &mut &b"content"[..]).unwrap();
        assert_eq!((far.bytes(kind, &id).unwrap(), far.whole(kind, &id).unwrap().as_slice()), (7, &b"content"[..]));
        for (range, part) in [
            ("bytes=1-3", Ok(&b"ont"[..])),
            ("bytes=4-", Ok(b"ent")),
            ("bytes=4-99", Ok(b"ent")),
            ("bytes=0-18446744073709551615", Ok(b"content")),
            ("bytes=7-9", Err(7)),
            ("bytes=3-1", Err(7)),
            ("lines=1-2", Err(7)),
        ] {
            let found = far.part(kind, &id, range).unwrap();
            assert_eq!(found.as_deref().map_err(|bytes| *bytes), part, "{range}");
        }
        assert_eq!(*far.under_way.lock().unwrap(), 0, "no turn is left taken");
    }
}
