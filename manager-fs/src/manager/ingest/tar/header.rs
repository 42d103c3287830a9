//! A header block: its fields as they stand, numbers parsed, nothing believed.

use super::BLOCK;

/// A header block, read but not yet believed.
pub(super) struct Header {
    pub(super) block: [u8; BLOCK],
    /// What its size field says, bytes.
    pub(super) size: u64,
}

impl Header {
    /// The type flag.
    pub(super) fn kind(&self) -> u8 {
        self.block[156]
    }

    pub(super) fn name(&self) -> Vec<u8> {
        let name = cut_nul(&self.block[..100]);
        // GNU archives keep other things where ustar has the prefix.
        match cut_nul(&self.block[345..500]) {
            prefix if &self.block[257..263] == b"ustar\0" && !prefix.is_empty() => {
                [&prefix, b"/".as_slice(), &name].concat()
            }
            _ => name,
        }
    }

    /// The link's target, as far as the block has room for it.
    pub(super) fn link(&self) -> Vec<u8> {
        cut_nul(&self.block[157..257])
    }
}

/// Whether the block's checksum is right.
pub(super) fn checksum_fits(block: &[u8]) -> bool {
    let Some(stored) = number(&block[148..156]) else { return false };
    let plain = |at: usize| if (148..156).contains(&at) { b' ' } else { block[at] };
    let unsigned: i64 = (0..BLOCK).map(|at| i64::from(plain(at))).sum();
    // Some old archivers summed signed characters.
    let signed: i64 = (0..BLOCK).map(|at| i64::from(plain(at).cast_signed())).sum();
    stored == unsigned || stored == signed
}

/// A number field: octal text, or two's complement with the highest bit set.
pub(in crate::manager::ingest) fn number(field: &[u8]) -> Option<i64> {
    match field.first()? {
        0x80 | 0xff => {
            let negative = field[0] == 0xff;
            let mut value: i128 = if negative { -1 } else { 0 };
            for byte in &field[1..] {
                value = (value << 8) | i128::from(*byte);
                i64::try_from(value).ok()?;
            }
            i64::try_from(value).ok()
        }
        _ => {
            let text = field.split(|byte| *byte == 0).next()?;
            let digits = text.trim_ascii();
            if digits.is_empty() {
                return Some(0);
            }
            i64::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok().filter(|_| digits[0].is_ascii_digit())
        }
    }
}

/// The bytes before the first NUL.
pub(super) fn cut_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000755\0"), Some(0o755));
        assert_eq!(number(b" 755 \0\0\0"), Some(0o755));
        assert_eq!(number(&[0; 8]), Some(0));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 2]), Some(258));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None, "more than 63 bits");
        assert_eq!(number(b"0000799\0"), None);
        assert_eq!(number(b"-000755\0"), None);
        assert_eq!(number(b"+000755\0"), None);
    }
}
