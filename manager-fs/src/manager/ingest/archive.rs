//! Which archive a file is, by its first bytes, and its plain stream within bounds.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Chain, Cursor, Read, Seek};
use std::rc::Rc;

use super::gzip::GzipReader;
use super::{IngestError, Intake, deb, tar, zip};

/// Unpacked bytes that are always allowed, and how many for each byte of the archive beyond that. Real trees stay below
/// twenty; a gzip bomb reaches a thousand.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BombLimit {
    pub(crate) floor_bytes: u64,
    /// Holes cost no more than a hash over their zeros, a third of a second for each GiB; so they may be larger.
    pub(crate) holes_floor_bytes: u64,
    pub(crate) ratio: u64,
}

impl BombLimit {
    pub(crate) const DEFAULT: Self = Self { floor_bytes: 4 << 30, holes_floor_bytes: 32 << 30, ratio: 256 };

    fn budget(&self, archive_bytes: u64) -> Budget {
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

/// Memory that an archive may ask a decoder for: xz -9 asks for 65 MiB, zstd --ultra -22 for 128 MiB.
const DECODER_BYTES_MAX: u64 = 256 << 20;

/// Reads an archive file into the intake.
pub(super) fn read(intake: &mut Intake<'_, '_>, mut file: File, limit: BombLimit) -> Result<(), IngestError> {
    let unread = |error: io::Error| intake.unread(b"", error);
    let bytes = file.metadata().map_err(unread)?.len();
    let mut head = [0; 512];
    let got = read_head(&mut file, &mut head).map_err(unread)?;
    file.rewind().map_err(unread)?;
    let budget = limit.budget(bytes);
    match &head[..got] {
        head if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") => zip::read(intake, file, budget),
        head if head.starts_with(deb::MAGIC) => deb::read(intake, BufReader::new(file), budget),
        [] => Err(intake.unfit("it is empty")),
        _ => read_tar(intake, BufReader::with_capacity(256 << 10, file), budget),
    }
}

/// Reads a tar stream, compressed or not.
pub(super) fn read_tar(
    intake: &mut Intake<'_, '_>,
    mut source: impl Read,
    budget: Budget,
) -> Result<(), IngestError> {
    let mut head = [0; 512];
    let got = read_head(&mut source, &mut head).map_err(|error| intake.unread(b"", error))?;
    let plain = plain_stream(&head[..got], source).map_err(|error| intake.unread(b"", error))?;
    let Some(plain) = plain else {
        return Err(intake.unfit(
            "it is no archive that can be taken in: want a directory, tar (plain, gzip, bzip2, xz or zstd), .deb, wheel or zip",
        ));
    };
    tar::read(intake, Metered { inner: plain, budget: budget.clone() }, budget)
}

type Rejoined<R> = Chain<Cursor<Vec<u8>>, R>;

/// The plain bytes of a stream that begins with `head`; `None` when they are no tar.
fn plain_stream<'a, R: Read + 'a>(head: &[u8], rest: R) -> io::Result<Option<Box<dyn Read + 'a>>> {
    let stream: Rejoined<R> = Cursor::new(head.to_vec()).chain(rest);
    Ok(Some(match head {
        [0x1f, 0x8b, ..] => Box::new(GzipReader::new(BufReader::new(stream))),
        b if b.starts_with(b"BZh") => Box::new(bzip2::read::MultiBzDecoder::new(stream)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            let flags = liblzma::stream::CONCATENATED;
            let decoder = liblzma::stream::Stream::new_stream_decoder(DECODER_BYTES_MAX, flags)?;
            Box::new(liblzma::read::XzDecoder::new_stream(stream, decoder))
        }
        // A skippable frame may come first.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let mut decoder = zstd::stream::read::Decoder::new(stream)?;
            decoder.window_log_max(DECODER_BYTES_MAX.ilog2())?;
            Box::new(decoder)
        }
        head if tar::is_header(head) => Box::new(stream),
        _ => return Ok(None),
    }))
}

fn read_head(source: &mut impl Read, head: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < head.len() {
        match source.read(&mut head[got..]) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
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
