//! Bytes changed in the ways in which files are damaged and forged, the same in every run.

/// Numbers that come the same in every run (xorshift64*, Marsaglia and Vigna).
#[derive(Debug)]
pub struct Chance(u64);

impl Chance {
    /// Another number begins another row.
    pub fn new(row: usize) -> Self {
        Self(0x9e37_79b9_7f4a_7c15 ^ row as u64)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 33).map_or(0, |number| number % end.max(1))
    }
}

/// These bytes, changed in one to four places; `other` is what may be put in between.
pub fn changed(bytes: &[u8], other: &[u8], chance: &mut Chance) -> Vec<u8> {
    const NUMBERS: [u64; 8] = [0, 1, 0x7f, 0xff, 0xffff, 1 << 31, u32::MAX as u64, u64::MAX];
    let mut bytes = bytes.to_vec();
    for _ in 0..=chance.below(4) {
        let at = chance.below(bytes.len());
        match chance.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..(at + 1 + chance.below(16)).min(bytes.len()))),
            2 => drop(bytes.splice(at..at, other.iter().copied().take(chance.below(64)))),
            3 => {
                let piece = bytes[at..(at + chance.below(64)).min(bytes.len())].to_vec();
                bytes.extend(piece);
            }
            4 if at + 8 <= bytes.len() => {
                let number = NUMBERS[chance.below(NUMBERS.len())].to_le_bytes();
                let width = [1, 2, 4, 8][chance.below(4)];
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            5 if !bytes.is_empty() => bytes[at] = chance.next().to_le_bytes()[0],
            6 if !bytes.is_empty() => bytes[at] = bytes[at].wrapping_add(1),
            _ if !bytes.is_empty() => bytes[at] ^= 1 << chance.below(8),
            _ => {}
        }
    }
    bytes
}
