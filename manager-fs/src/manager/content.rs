//! Reads files of a tree out of the store.

use std::io::{self, Read, Seek, SeekFrom};

use proto::ChunkId;
use proto::manifest::Object;
use proto::width;

use super::store::StoreError;

/// Reads a chunk's plain, checked bytes.
pub(crate) type ReadChunk<'a> = dyn Fn(&ChunkId) -> Result<Vec<u8>, StoreError> + 'a;

/// An object's content out of chunks; holds one chunk at a time.
pub(crate) struct ObjectReader<'a> {
    object: &'a Object,
    chunk_bytes: u64,
    chunk: &'a ReadChunk<'a>,
    at: u64,
    held: Option<(u64, Vec<u8>)>,
}

impl<'a> ObjectReader<'a> {
    pub(crate) fn new(object: &'a Object, chunk_bytes: u32, chunk: &'a ReadChunk<'a>) -> Self {
        Self { object, chunk_bytes: u64::from(chunk_bytes), chunk, at: 0, held: None }
    }
}

impl Read for ObjectReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let number = self.at / self.chunk_bytes;
        if self.held.as_ref().is_none_or(|(held, _)| *held != number) {
            let Some(id) = self.object.chunks.get(width::index(number)) else { return Ok(0) };
            self.held = Some((number, (self.chunk)(id).map_err(io::Error::other)?));
        }
        let Some((_, plain)) = &self.held else { return Ok(0) };
        let rest = plain.get(width::index(self.at % self.chunk_bytes)..).unwrap_or_default();
        let bytes = rest.len().min(buffer.len());
        buffer[..bytes].copy_from_slice(&rest[..bytes]);
        self.at += bytes as u64;
        Ok(bytes)
    }
}

impl Seek for ObjectReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.object.bytes.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
