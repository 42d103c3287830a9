//! Finds files of a tree and reads them out of the store.

use std::io::{self, Read, Seek, SeekFrom};

use proto::manifest::{NodeKind, Object};
use proto::width;
use proto::{ChunkId, Manifest, TreePath};

use super::store::StoreError;

/// Symlinks on the way to a file: the kernel's own bound.
const SYMLINKS_MAX: usize = 40;

/// Reads a chunk's plain, checked bytes.
pub(crate) type ReadChunk<'a> = dyn Fn(&ChunkId) -> Result<Vec<u8>, StoreError> + 'a;

/// Follows symlinks inside the tree; returns the index of the entry.
pub(crate) fn resolve(tree: &Manifest, path: &TreePath) -> Result<usize, String> {
    let mut left: Vec<Vec<u8>> = path.components().map(<[u8]>::to_vec).collect();
    left.reverse();
    let mut at = TreePath::root();
    let mut links = 0;
    let find = |at: &TreePath| tree.entries.binary_search_by(|entry| entry.path.cmp(at));
    while let Some(name) = left.pop() {
        match name.as_slice() {
            b"" | b"." => continue,
            b".." => {
                at = at.parent().ok_or("leads out of the tree")?;
                continue;
            }
            _ => {}
        }
        let next = at.join(&name).map_err(|error| error.fault.to_owned())?;
        let index = find(&next).map_err(|_| {
            if &next == path {
                "is not in the tree".to_owned()
            } else {
                format!("leads to '{next}', which is not in the tree")
            }
        })?;
        if let NodeKind::Symlink(target) = &tree.node(&tree.entries[index]).kind {
            links += 1;
            if target.starts_with(b"/") {
                return Err(format!("leads out of the tree, to '{}'", proto::path::printable(target)));
            }
            if links > SYMLINKS_MAX {
                return Err("leads through more than 40 symlinks".into());
            }
            left.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
        } else {
            at = next;
        }
    }
    find(&at).map_err(|_| "is not in the tree".to_owned())
}

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
