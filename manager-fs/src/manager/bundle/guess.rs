//! What a start will touch, guessed while nobody has recorded one: what the kernel and the dynamic loader read of the entry
//! point and its libraries before any of their code runs. Nothing here knows particular software.

use std::collections::BTreeSet;

use proto::bundle::Touch;
use proto::manifest::NodeKind;
use proto::proof::PAGE_BYTES;
use proto::start_up::start_up_files;
use proto::{Manifest, Metadata, TreePath};

use crate::manager::content::{ObjectReader, resolve};
use crate::manager::elf::loaded;
use crate::manager::store::Store;

/// Plain bytes of a guess: three times what the measured trees have, and on a slow network still less than its other
/// round trips cost (`docs/decisions.md`).
const GUESS_BYTES_MAX: u64 = 4 << 20;
/// Files of a guess; large programs load some hundred libraries.
const FILES_MAX: usize = 256;

/// The guess for a tree, whose records these are: it may stand under several names with entry points of their own.
pub(super) fn touches<'a>(
    store: &Store,
    tree: &Manifest,
    records: impl IntoIterator<Item = &'a Metadata>,
) -> Vec<Touch> {
    let real = |path: &TreePath| resolve(tree, path).ok().map(|at| tree.entries[at].path.clone());
    let (mut touches, mut seen) = (Vec::new(), BTreeSet::new());
    let mut left = (GUESS_BYTES_MAX / u64::from(PAGE_BYTES)) as usize;
    let files = records.into_iter().flat_map(|record| start_up_files(record, &real));
    for path in files.take(FILES_MAX) {
        let Some(entry) = tree.entry(&path) else { continue };
        let NodeKind::File(id) = &tree.node(entry).kind else { continue };
        let Some(at) = tree.object_index(id).filter(|at| seen.insert(*at)) else { continue };
        let (object, chunk) = (&tree.objects[at], |id: &_| store.plain_chunk(id));
        let pages = loaded::pages(object.bytes, ObjectReader::new(object, tree.chunk_bytes, &chunk), left);
        left -= pages.len();
        touches.extend(runs(at as u32, &pages));
    }
    touches
}

/// Pages in this order, neighbours as one.
fn runs(object: u32, pages: &[u32]) -> impl Iterator<Item = Touch> {
    let neighbours = pages.chunk_by(|page, next| page + 1 == *next);
    neighbours.map(move |run| Touch { object, first: run[0], count: run.len() as u32 })
}
