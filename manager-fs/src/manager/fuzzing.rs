//! Doors to decoders that nobody else may call, for `tests/fuzz`; built only with `--cfg fuzzing`.

use std::io::Cursor;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use proto::TreePath;
use proto::delta::Part;

use super::monitor::Quiet;
use super::store::Store;
use super::{elf, ingest, store};

/// Reads an archive into a draft, which is dropped. Half a GiB is a bomb here.
pub fn archive(bytes: &[u8], path: &Path, to: &Store) {
    if std::fs::write(path, bytes).is_err() {
        return;
    }
    let guard = to.guard();
    let read = to.write_contents(4096, &guard, &Quiet, &AtomicBool::new(false), |writer| {
        ingest::read_small_source(path, writer)
    });
    if let Ok((tree, contents)) = read {
        let manifest = tree.into_manifest(4096, |id| contents.objects.get(id).cloned());
        // What is taken in is a well-formed tree, or refused as one that cannot be.
        if let Ok(Ok((bytes, id))) = manifest.map(|manifest| manifest.encode()) {
            assert!(proto::Manifest::decode(&bytes, &id).is_ok());
        }
    }
}

/// An access control list as tar has it in text.
pub fn acl(bytes: &[u8]) {
    ingest::read_acl(bytes);
}

/// What a program says of itself, and what a loader reads of it.
pub fn elf(bytes: &[u8]) {
    drop(elf::describe(&TreePath::root(), bytes.len() as u64, Cursor::new(bytes)));
    let pages = elf::loaded::pages(bytes.len() as u64, Cursor::new(bytes), 1024);
    assert!(pages.iter().all(|page| u64::from(*page) * 4096 < bytes.len() as u64));
}

/// A pack's index.
pub fn pack_index(bytes: &[u8]) {
    if let Some((length, index)) = bytes.split_first_chunk::<4>() {
        store::read_pack_index(index, u64::from(u32::from_le_bytes(*length)));
    }
}

/// A patch over a base.
pub fn patch(base: &[u8], patch: Part, literals: Part, stored: &[u8], plain_bytes: usize) -> Option<Vec<u8>> {
    crate::patch::decode(base, patch, literals, stored, plain_bytes).ok()
}
