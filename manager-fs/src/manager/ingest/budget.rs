//! How much an archive may unpack to.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

/// Unpacked bytes that are always allowed, and how many for each byte of the archive beyond that. Real trees stay below
/// twenty; a gzip bomb reaches a thousand. The work of an archive of a few kilobytes is bounded by the floor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BombLimit {
    pub(crate) floor_bytes: u64,
    /// Holes cost no more than a hash over their zeros, a third of a second for each GiB; so they may be larger.
    pub(crate) holes_floor_bytes: u64,
    pub(crate) ratio: u64,
}

impl BombLimit {
    pub(crate) const DEFAULT: Self = Self { floor_bytes: 1 << 30, holes_floor_bytes: 32 << 30, ratio: 256 };

    pub(super) fn budget(&self, archive_bytes: u64) -> Budget {
        let by_ratio = archive_bytes.saturating_mul(self.ratio);
        let left = |floor: u64| Rc::new(Cell::new(floor.max(by_ratio)));
        Budget { bytes: left(self.floor_bytes), holes: left(self.holes_floor_bytes) }
    }
}

/// How much an archive may still unpack to, in bytes of its stream and in holes, which cost no archive bytes at all.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    bytes: Rc<Cell<u64>>,
    holes: Rc<Cell<u64>>,
}

impl Budget {
    /// Takes bytes of the stream from what is left.
    pub(super) fn take(&self, bytes: u64) -> io::Result<()> {
        Self::take_from(&self.bytes, bytes)
    }

    /// Takes a hole from what is left.
    pub(super) fn take_hole(&self, bytes: u64) -> io::Result<()> {
        Self::take_from(&self.holes, bytes)
    }

    fn take_from(left: &Cell<u64>, bytes: u64) -> io::Result<()> {
        let rest = left.get().checked_sub(bytes);
        left.set(rest.ok_or_else(|| {
            io::Error::other("the archive unpacks to far more than a tree has; it looks like a bomb and is refused")
        })?);
        Ok(())
    }
}

/// A stream that ends in an error when it unpacks to too much.
pub(super) struct Metered<R> {
    pub(super) inner: R,
    pub(super) budget: Budget,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.budget.take(got as u64)?;
        Ok(got)
    }
}
