//! Bytes changed in the ways in which files are damaged and forged, the same in every run.

use crate::dice::Dice;

/// These bytes, changed in one to four places; `other` is what may be put in between.
pub fn changed(bytes: &[u8], other: &[u8], dice: &mut Dice) -> Vec<u8> {
    const NUMBERS: [u64; 8] = [0, 1, 0x7f, 0xff, 0xffff, 1 << 31, u32::MAX as u64, u64::MAX];
    let mut bytes = bytes.to_vec();
    for _ in 0..=dice.below(4) {
        let at = dice.index(bytes.len());
        match dice.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..(at + 1 + dice.index(16)).min(bytes.len()))),
            2 => drop(bytes.splice(at..at, other.iter().copied().take(dice.index(64)))),
            3 => {
                let piece = bytes[at..(at + dice.index(64)).min(bytes.len())].to_vec();
                bytes.extend(piece);
            }
            4 if at + 8 <= bytes.len() => {
                let number = dice.one(&NUMBERS).to_le_bytes();
                let width = dice.one(&[1, 2, 4, 8]);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            5 if !bytes.is_empty() => bytes[at] = dice.roll().to_le_bytes()[0],
            6 if !bytes.is_empty() => bytes[at] = bytes[at].wrapping_add(1),
            _ if !bytes.is_empty() => bytes[at] ^= 1 << dice.below(8),
            _ => {}
        }
    }
    bytes
}
