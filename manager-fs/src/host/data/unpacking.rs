//! A compressed manifest as it arrives: what cannot be one is not kept, however much of it comes.

use std::io::{self, Write};

use proto::limits::MANIFEST_BYTES_MAX;
use zstd::stream::write::Decoder;

use crate::patch::{MANIFEST_BYTES_FREE, MANIFEST_FOR_PACKED};

/// Takes frames, and has the plain bytes in the end.
pub(super) struct Unpacking {
    /// `Err` once it is known that nothing will come of it; frames are only counted then.
    decoder: io::Result<Decoder<'static, Plain>>,
    /// How many frames came.
    pub(super) frames: u32,
    /// Bytes of these frames, as they came.
    pub(super) packed: u64,
}

/// What came out so far.
#[derive(Default)]
struct Plain {
    bytes: Vec<u8>,
    max: usize,
}

impl Write for Plain {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let max = self.max.min(MANIFEST_BYTES_MAX);
        if self.bytes.len() + bytes.len() > max {
            return Err(io::Error::other(format!("it has more than {max} bytes, which no manifest of its size has")));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Unpacking {
    pub(super) fn begin() -> io::Result<Self> {
        let plain = Plain { bytes: Vec::new(), max: MANIFEST_BYTES_FREE };
        Ok(Self { decoder: Ok(Decoder::new(plain)?), frames: 0, packed: 0 })
    }

    pub(super) fn take(&mut self, frame: &[u8]) {
        self.frames = self.frames.saturating_add(1);
        self.packed += frame.len() as u64;
        let Ok(decoder) = &mut self.decoder else { return };
        let plain = decoder.get_mut();
        plain.max = plain.max.saturating_add(frame.len().saturating_mul(MANIFEST_FOR_PACKED));
        // What was unpacked goes with the decoder.
        if let Err(fault) = decoder.write_all(frame) {
            self.decoder = Err(fault);
        }
    }

    pub(super) fn end(self) -> io::Result<Vec<u8>> {
        let mut decoder = self.decoder?;
        decoder.flush()?;
        Ok(decoder.into_inner().bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpacked(packed: &[u8], piece: usize) -> io::Result<Vec<u8>> {
        let mut unpacking = Unpacking::begin().unwrap();
        packed.chunks(piece).for_each(|frame| unpacking.take(frame));
        assert_eq!(unpacking.packed, packed.len() as u64);
        unpacking.end()
    }

    #[test]
    fn it_comes_out_however_it_is_cut() {
        let plain: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let packed = zstd::encode_all(plain.as_slice(), 3).unwrap();
        for piece in [1 << 20, 4_096, 7] {
            assert!(unpacked(&packed, piece).unwrap() == plain, "in pieces of {piece}");
        }
        assert_eq!(unpacked(&[], 1).unwrap(), Vec::<u8>::new());
    }

    #[test]
    fn what_cannot_be_a_manifest_is_not_kept() {
        let mut unpacking = Unpacking::begin().unwrap();
        for _ in 0..100 {
            unpacking.take(&[7; 1 << 20]);
        }
        assert!(unpacking.decoder.is_err(), "given up at the first frame");
        assert_eq!(unpacking.frames, 100);
        let bomb = zstd::encode_all(io::Read::take(io::repeat(0), 256 << 20), 3).unwrap();
        let fault = unpacked(&bomb, 1 << 20).unwrap_err();
        assert!(fault.to_string().contains("no manifest of its size"), "{fault}");
    }
}
