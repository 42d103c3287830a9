//! Numbers that change their width, in one place: where nothing can be lost, and where the most stands for more.

use std::time::Duration;

// Everything is written for machines of 64 bits. Elsewhere this does not compile, instead of cutting sizes.
const _: () = assert!(usize::BITS == 64);

/// A size or an offset of a file, as one of memory.
#[allow(clippy::cast_possible_truncation)] // Both have 64 bits: asserted above.
pub const fn index(bytes: u64) -> usize {
    bytes as usize
}

/// A place in memory, to be moved by a signed distance. No allocation is longer than half of the addresses.
#[allow(clippy::cast_possible_wrap)]
pub const fn place(at: usize) -> i64 {
    at as i64
}

/// A count that is bounded elsewhere to far less than 2³²; the largest number stands for any beyond.
pub fn count(number: impl TryInto<u32>) -> u32 {
    number.try_into().unwrap_or(u32::MAX)
}

/// Whole milliseconds; the largest number stands for anything beyond half a billion years.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Whole microseconds; see [`millis`].
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_wraps() {
        assert_eq!(index(u64::MAX), usize::MAX);
        assert_eq!((count(7_usize), count(usize::MAX)), (7, u32::MAX));
        assert_eq!((count(7_u64), count(1_u64 << 32)), (7, u32::MAX));
        assert_eq!((count(u64::from(u32::MAX)), count(0_u64)), (u32::MAX, 0));
        assert_eq!((place(0), place(7), place(usize::MAX >> 1)), (0, 7, i64::MAX));
        assert_eq!((index(0), index(7)), (0, 7));
        assert_eq!(millis(Duration::from_micros(1_999)), 1);
        assert_eq!((millis(Duration::from_secs(2)), micros(Duration::from_secs(2))), (2_000, 2_000_000));
        assert_eq!(micros(Duration::from_nanos(1_999)), 1);
        assert_eq!((millis(Duration::MAX), micros(Duration::MAX)), (u64::MAX, u64::MAX));
    }
}
