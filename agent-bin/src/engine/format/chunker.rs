//! Where a large file is cut into pieces: where the Rabin fingerprint of 64 bytes ends in zeros, so that the pieces
//! behind an insertion stay what they were. The same cuts as restic's, given the same polynomial.

use rustic_core::repofile::{Chunker as Way, ConfigFile};

const WINDOW: usize = 64;

/// A repository's polynomial cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("chunker polynomial {0:?}, sizes {1} to {2} bytes: files cannot be cut by these")]
pub(crate) struct ChunkerFault(String, usize, usize);

/// How one repository cuts files.
pub(crate) struct Chunker {
    min: usize,
    max: usize,
    /// `None`: pieces of `max` bytes.
    rabin: Option<Rabin>,
}

struct Rabin {
    mask: u64,
    shift: u32,
    /// What a byte leaves behind when it goes out of the window.
    out: [u64; 256],
    /// What brings a fingerprint back below the polynomial.
    reduce: [u64; 256],
}

impl Chunker {
    /// As the repository's configuration says.
    pub(crate) fn new(config: &ConfigFile) -> Result<Self, ChunkerFault> {
        let (size, min, max) = (config.chunk_size(), config.chunk_min_size(), config.chunk_max_size());
        let fault = || ChunkerFault(config.chunker_polynomial.clone(), min, max);
        if let Way::FixedSize = config.chunker() {
            return if size > 0 { Ok(Self { min: size, max: size, rabin: None }) } else { Err(fault()) };
        }
        let polynomial = u64::from_str_radix(&config.chunker_polynomial, 16).map_err(|_| fault())?;
        let degree = 63u32.checked_sub(polynomial.leading_zeros()).ok_or_else(fault)?;
        // The byte above the polynomial must fit into a word, and below it there must be a whole byte.
        if !(8..=55).contains(&degree) || !size.is_power_of_two() || min < WINDOW || max < min {
            return Err(fault());
        }
        Ok(Self { min, max, rabin: Some(Rabin::new(polynomial, degree, size as u64 - 1)) })
    }

    /// No piece but a file's last is shorter; files that are no longer are one piece.
    pub(crate) fn min(&self) -> usize {
        self.min
    }

    /// No piece is longer.
    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// Where the first piece of `bytes` ends. All that is left of a file, or at least [`Chunker::max`] bytes of it,
    /// must be given.
    pub(crate) fn cut(&self, bytes: &[u8]) -> usize {
        let end = bytes.len().min(self.max);
        match &self.rabin {
            Some(rabin) if end > self.min => rabin.cut(&bytes[..end], self.min),
            _ => end,
        }
    }
}

impl Rabin {
    fn new(polynomial: u64, degree: u32, mask: u64) -> Self {
        let shift = degree - 8;
        let mut rabin = Self { mask, shift, out: [0; 256], reduce: [0; 256] };
        for byte in 0..=255u8 {
            let high = u64::from(byte) << degree;
            rabin.reduce[usize::from(byte)] = remainder(high, polynomial, degree) | high;
        }
        for byte in 0..=255u8 {
            let first = rabin.append(0, byte);
            rabin.out[usize::from(byte)] = (1..WINDOW).fold(first, |print, _| rabin.append(print, 0));
        }
        rabin
    }

    fn append(&self, print: u64, byte: u8) -> u64 {
        let top = (print >> self.shift).to_le_bytes()[0];
        ((print << 8) | u64::from(byte)) ^ self.reduce[usize::from(top)]
    }

    fn cut(&self, bytes: &[u8], min: usize) -> usize {
        let mut print = bytes[min - WINDOW..min].iter().fold(0, |print, byte| self.append(print, *byte));
        let (leaving, coming) = (&bytes[min - WINDOW..], &bytes[min..]);
        for (at, (out, byte)) in leaving.iter().zip(coming).enumerate() {
            if print & self.mask == 0 {
                return min + at;
            }
            print = self.append(print ^ self.out[usize::from(*out)], *byte);
        }
        bytes.len()
    }
}

/// Of a polynomial over two elements, by another of this degree.
fn remainder(mut value: u64, polynomial: u64, degree: u32) -> u64 {
    while value >> degree != 0 {
        let top = 63 - value.leading_zeros();
        value ^= polynomial << (top - degree);
    }
    value
}

#[cfg(test)]
mod tests {
    use ::tests::noise;

    use super::*;

    fn pieces(chunker: &Chunker, mut bytes: &[u8]) -> Vec<usize> {
        let mut lengths = Vec::new();
        while !bytes.is_empty() {
            let length = chunker.cut(bytes);
            lengths.push(length);
            bytes = &bytes[length..];
        }
        lengths
    }

    fn chunker() -> Chunker {
        // The polynomial of restic's own tests of its chunker.
        let config = ConfigFile { chunker_polynomial: "3DA3358B4DC173".into(), version: 2, ..ConfigFile::default() };
        Chunker::new(&config).unwrap()
    }

    #[test]
    fn pieces_are_within_their_bounds_and_survive_an_insertion() {
        let chunker = chunker();
        let mut bytes = noise(0, 24 << 20);
        let before = pieces(&chunker, &bytes);
        assert!(before.len() > 8);
        for length in &before[..before.len() - 1] {
            assert!((chunker.min()..=chunker.max()).contains(length), "{length}");
        }
        bytes.insert(100, 7);
        let after = pieces(&chunker, &bytes);
        assert_eq!(before[3..], after[after.len() - before.len() + 3..]);
    }

    #[test]
    fn zeros_are_cut_as_early_as_may_be() {
        let chunker = chunker();
        assert_eq!(pieces(&chunker, &vec![0; 2 << 20]), [512 << 10; 4]);
    }

    #[test]
    fn a_polynomial_that_is_none_is_refused() {
        for polynomial in ["", "xyz", "0", "1", "ffffffffffffffff"] {
            let config = ConfigFile { chunker_polynomial: polynomial.into(), version: 2, ..ConfigFile::default() };
            assert!(Chunker::new(&config).is_err(), "{polynomial}");
        }
    }
}
