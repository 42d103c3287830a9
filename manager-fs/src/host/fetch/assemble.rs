//! Which chunks hold a range, and the range put together out of them.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use proto::width;

use super::{FetchError, Wanted};
use crate::host::cache::{CacheError, Partial};

/// Puts the wanted range together from the cache and from what it did not take.
pub(super) fn assemble(
    wanted: Wanted<'_>,
    partial: Option<&Partial>,
    chunks: &[u32],
    held: &HashMap<u32, Arc<Vec<u8>>>,
    offset: u64,
    len: usize,
) -> Result<Vec<u8>, FetchError> {
    let mut bytes = vec![0; len];
    let failed =
        |source| FetchError::from(CacheError::Io { what: format!("read object {}", wanted.object.id), source });
    if let (Some(partial), true) = (partial, held.is_empty()) {
        partial.read_at(&mut bytes, offset).map_err(failed)?;
        return Ok(bytes);
    }
    for index in chunks {
        let chunk_start = u64::from(*index) * u64::from(wanted.chunk_bytes);
        let chunk_end = chunk_start + u64::from(wanted.chunk_len(*index));
        let (start, end) = (chunk_start.max(offset), chunk_end.min(offset + len as u64));
        let into = &mut bytes[width::index(start - offset)..width::index(end - offset)];
        match (held.get(index), partial) {
            (Some(chunk), _) => {
                into.copy_from_slice(&chunk[width::index(start - chunk_start)..width::index(end - chunk_start)]);
            }
            (None, Some(partial)) => partial.read_at(into, start).map_err(failed)?,
            (None, None) => return Err(failed(io::ErrorKind::NotFound.into())),
        }
    }
    Ok(bytes)
}

/// The chunks that hold `len` bytes (at least one) from `offset`.
pub(super) fn chunk_range(offset: u64, len: usize, chunk_bytes: u32) -> std::ops::RangeInclusive<u32> {
    let chunk = u64::from(chunk_bytes);
    width::count(offset / chunk)..=width::count((offset + len as u64 - 1) / chunk)
}
