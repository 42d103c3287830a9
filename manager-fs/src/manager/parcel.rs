//! A file of frames that one manager writes for another one: what a backup is, and what crosses an air gap. Specified in
//! `docs/parcel-format.md`.
//!
//! ```text
//! preamble 18 | frames | end frame
//! frame       kind u8 | bytes u32 | check 16 | body
//! ```
//! A frame's check is over the check before it, its kind, its length and its body: a frame that is damaged, missing, moved
//! or repeated is found where it stands. The reader holds one frame, and makes no room for more than there is.

use std::io::{self, Read, Write};

use proto::preamble::{PREAMBLE_BYTES, Preamble, PreambleFault};

/// Bytes of one frame's body: a chunk or record of the largest size, and its head.
pub(crate) const FRAME_BYTES_MAX: usize = (1 << 20) + (64 << 10);
/// Bytes of one piece of what is longer than a frame.
pub(crate) const PIECE_BYTES: usize = 1 << 20;
const CHECK_BYTES: usize = 16;
const HEAD_BYTES: usize = 1 + 4 + CHECK_BYTES;
/// The kind of the last frame, whose body is the number of those before it, u64.
const END: u8 = 0xff;

/// Why a file of frames cannot be read on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParcelFault {
    /// The disk.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("its first bytes are not those of {0}")]
    Other(&'static str),
    /// A later version wrote it.
    #[error(
        "it is of format {version} with features {features:#x}; this program reads format 1: use a newer manager-fs"
    )]
    Newer {
        /// The version that it says.
        version: u16,
        /// What a reader would have to know.
        features: u32,
    },
    /// There is less of it than was written.
    #[error("it is cut off at byte {0}: copy it again, whole")]
    CutOff(u64),
    /// It is not what was written.
    #[error("it is damaged at byte {at}: {fault}; copy it again, or make it anew")]
    Damaged {
        /// Where the frame begins.
        at: u64,
        /// What is wrong with it.
        fault: String,
    },
}

/// What a frame's check is over, until now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chain([u8; CHECK_BYTES]);

impl Chain {
    fn begin(preamble: &[u8; PREAMBLE_BYTES]) -> Self {
        Self::of(blake3::Hasher::new().update(preamble))
    }

    fn after(self, kind: u8, length: [u8; 4], parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0).update(&[kind]).update(&length);
        for part in parts {
            hasher.update(part);
        }
        Self::of(&hasher)
    }

    fn of(hasher: &blake3::Hasher) -> Self {
        let mut check = [0; CHECK_BYTES];
        check.copy_from_slice(&hasher.finalize().as_bytes()[..CHECK_BYTES]);
        Self(check)
    }
}

/// Where a file of frames goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    chain: Chain,
    frames: u64,
    at: u64,
}

impl Place {
    /// Bytes before it.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }
}

/// Writes frames.
pub(crate) struct ParcelWriter<W> {
    to: W,
    chain: Chain,
    frames: u64,
    bytes: u64,
}

impl<W: Write> ParcelWriter<W> {
    /// Begins a file of this format.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn begin(mut to: W, format: Preamble) -> io::Result<Self> {
        let preamble = format.encode(0);
        to.write_all(&preamble)?;
        Ok(Self { to, chain: Chain::begin(&preamble), frames: 0, bytes: PREAMBLE_BYTES as u64 })
    }

    /// Goes on behind the frames that are there.
    pub(crate) fn resume(to: W, place: Place) -> Self {
        Self { to, chain: place.chain, frames: place.frames, bytes: place.at }
    }

    /// Hands on what is buffered.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }

    /// Writes a frame whose body is these parts, one after another.
    ///
    /// # Errors
    /// It cannot be written, or is longer than a frame may be.
    pub(crate) fn frame(&mut self, kind: u8, parts: &[&[u8]]) -> io::Result<()> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let fits = u32::try_from(bytes).ok().filter(|_| bytes <= FRAME_BYTES_MAX);
        let length = fits.ok_or_else(|| io::Error::other(format!("a frame of {bytes} bytes")))?.to_le_bytes();
        self.chain = self.chain.after(kind, length, parts);
        self.to.write_all(&[kind])?;
        self.to.write_all(&length)?;
        self.to.write_all(&self.chain.0)?;
        for part in parts {
            self.to.write_all(part)?;
        }
        self.frames += 1;
        self.bytes += (HEAD_BYTES + bytes) as u64;
        Ok(())
    }

    /// Bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes the end; returns what was written to, and how many bytes that were.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn end(mut self) -> io::Result<(W, u64)> {
        let frames = self.frames.to_le_bytes();
        self.frame(END, &[&frames])?;
        Ok((self.to, self.bytes))
    }
}

/// Reads frames, and believes none whose check is another.
pub(crate) struct ParcelReader<R> {
    from: R,
    chain: Chain,
    frames: u64,
    at: u64,
    body: Vec<u8>,
    /// For `tests/fuzz`: a check that does not match is passed over, so that what stands behind it is tried, too.
    believes: bool,
}

impl<R: Read> ParcelReader<R> {
    /// Begins to read a file of this format; `what` it is, for people.
    ///
    /// # Errors
    /// It is something else, or of a later version.
    pub(crate) fn begin(mut from: R, format: Preamble, what: &'static str) -> Result<Self, ParcelFault> {
        let mut preamble = [0; PREAMBLE_BYTES];
        match from.read_exact(&mut preamble) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(ParcelFault::Other(what)),
            read => read?,
        }
        format.decode(&preamble).map_err(|fault| match fault {
            PreambleFault::Other => ParcelFault::Other(what),
            PreambleFault::Newer { version, features } => ParcelFault::Newer { version, features },
        })?;
        let chain = Chain::begin(&preamble);
        Ok(Self { from, chain, frames: 0, at: PREAMBLE_BYTES as u64, body: Vec::new(), believes: false })
    }

    /// The next frame's kind and body; `None` when the end was read and nothing follows it.
    ///
    /// # Errors
    /// See [`ParcelFault`].
    pub(crate) fn next(&mut self) -> Result<Option<(u8, &[u8])>, ParcelFault> {
        let begun = self.at;
        let mut head = [0; HEAD_BYTES];
        self.exactly(&mut head)?;
        let [kind, l0, l1, l2, l3, check @ ..] = head;
        let length = [l0, l1, l2, l3];
        let bytes = u32::from_le_bytes(length);
        if bytes as usize > FRAME_BYTES_MAX {
            return Err(self.damaged(begun, "a frame is longer than any may be"));
        }
        self.body.clear();
        let read = self.from.by_ref().take(u64::from(bytes)).read_to_end(&mut self.body)?;
        self.at += read as u64;
        if read < bytes as usize {
            return Err(ParcelFault::CutOff(self.at));
        }
        self.chain = self.chain.after(kind, length, &[&self.body]);
        if self.chain.0 != check && !self.believes {
            return Err(self.damaged(begun, "a frame is not what was written"));
        }
        if kind != END {
            self.frames += 1;
            return Ok(Some((kind, &self.body)));
        }
        if self.body != self.frames.to_le_bytes() {
            return Err(self.damaged(begun, "its end counts other frames than there are"));
        }
        match self.from.read(&mut [0])? {
            0 => Ok(None),
            _ => Err(self.damaged(self.at, "something follows its end")),
        }
    }

    /// See [`ParcelReader::believes`].
    #[cfg(any(test, fuzzing))]
    pub(crate) fn believing(self) -> Self {
        Self { believes: true, ..self }
    }

    /// Where the file goes on behind the frame that was read last.
    pub(crate) fn place(&self) -> Place {
        Place { chain: self.chain, frames: self.frames, at: self.at }
    }

    /// Bytes read so far.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// What is wrong with the frame that was read last.
    pub(crate) fn damaged(&self, at: u64, fault: impl Into<String>) -> ParcelFault {
        ParcelFault::Damaged { at, fault: fault.into() }
    }

    fn exactly(&mut self, to: &mut [u8]) -> Result<(), ParcelFault> {
        match self.from.read_exact(to) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(ParcelFault::CutOff(self.at)),
            read => read?,
        }
        self.at += to.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: Preamble = Preamble::new(*b"MFSTEST\0");

    fn made(frames: &[(u8, &[u8])]) -> Vec<u8> {
        let mut writer = ParcelWriter::begin(Vec::new(), FORMAT).unwrap();
        frames.iter().for_each(|(kind, body)| writer.frame(*kind, &[body]).unwrap());
        let (bytes, counted) = writer.end().unwrap();
        assert_eq!(bytes.len() as u64, counted);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Vec<(u8, Vec<u8>)>, ParcelFault> {
        let mut reader = ParcelReader::begin(bytes, FORMAT, "a test")?;
        let mut frames = Vec::new();
        while let Some((kind, body)) = reader.next()? {
            frames.push((kind, body.to_vec()));
        }
        assert_eq!(reader.at(), bytes.len() as u64);
        Ok(frames)
    }

    #[test]
    fn what_is_read_is_what_was_written_or_an_error() {
        let frames: [(u8, &[u8]); 3] = [(1, b"one"), (2, b""), (1, &[7; 300])];
        let good = made(&frames);
        let wanted: Vec<_> = frames.iter().map(|(kind, body)| (*kind, body.to_vec())).collect();
        assert_eq!(read(&good).unwrap(), wanted);
        for length in 0..good.len() {
            let fault = read(&good[..length]).unwrap_err();
            assert!(matches!(fault, ParcelFault::CutOff(_) | ParcelFault::Other(_)), "{length}: {fault}");
        }
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // The ignorable features of the preamble may be any, and are under the first check all the same.
            assert!(read(&bad).is_err(), "bit {bit}");
        }
        assert!(read(&[good.as_slice(), b"x"].concat()).is_err());
    }

    #[test]
    fn frames_that_were_moved_repeated_or_left_out_are_found() {
        let good = made(&[(1, b"one"), (2, b"two")]);
        let one = PREAMBLE_BYTES..PREAMBLE_BYTES + HEAD_BYTES + 3;
        let two = one.end..one.end + HEAD_BYTES + 3;
        let (first, end) = (&good[..PREAMBLE_BYTES], &good[two.end..]);
        for order in [
            [first, &good[two.clone()], &good[one.clone()], end].concat(),
            [first, &good[one.clone()], &good[one.clone()], &good[two.clone()], end].concat(),
            [first, &good[one.clone()], end].concat(),
        ] {
            assert!(matches!(read(&order), Err(ParcelFault::Damaged { .. })));
        }
    }
}
