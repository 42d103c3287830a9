//! zstd, with one context a thread: making one for every blob costs more than compressing a small one.

use std::cell::RefCell;
use std::io;

use zstd::bulk::{Compressor, Decompressor};

thread_local! {
    static COMPRESSORS: RefCell<Vec<(i32, Compressor<'static>)>> = const { RefCell::new(Vec::new()) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Compresses one blob or document.
pub(super) fn compress(plain: &[u8], level: i32) -> io::Result<Vec<u8>> {
    COMPRESSORS.with_borrow_mut(|all| {
        let compressor = match all.iter().position(|(of, _)| *of == level) {
            Some(at) => &mut all[at].1,
            None => {
                all.push((level, Compressor::new(level)?));
                let last = all.len() - 1;
                &mut all[last].1
            }
        };
        compressor.compress(plain)
    })
}

/// Undoes it; `capacity` is how many bytes come out at most.
pub(super) fn decompress(packed: &[u8], capacity: usize) -> io::Result<Vec<u8>> {
    DECOMPRESSOR.with_borrow_mut(|decompressor| {
        let decompressor = match decompressor {
            Some(decompressor) => decompressor,
            none => none.insert(Decompressor::new()?),
        };
        decompressor.decompress(packed, capacity)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_that_was_used_does_the_same_as_a_new_one_also_after_a_fault() {
        let texts = [b"a".repeat(100_000), b"abc".to_vec(), Vec::new(), (0..=255).cycle().take(5000).collect()];
        for _ in 0..2 {
            for level in [1, 3, 19] {
                for text in &texts {
                    let packed = compress(text, level).unwrap();
                    assert_eq!(packed, zstd::bulk::compress(text, level).unwrap());
                    assert_eq!(decompress(&packed, text.len()).unwrap(), *text);
                }
            }
            assert!(decompress(b"no zstd at all", 100).is_err());
            let packed = compress(&texts[0], 3).unwrap();
            assert!(decompress(&packed, 99_999).is_err(), "no more comes out than is allowed");
        }
    }
}
