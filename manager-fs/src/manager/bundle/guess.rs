//! What a start will touch, guessed while nobody has recorded one: what the kernel and the dynamic loader read of the entry
//! point and its libraries before any of their code runs. Nothing here knows particular software.

use std::collections::BTreeSet;

use proto::bundle::Touch;
use proto::manifest::NodeKind;
use proto::proof::PAGE_BYTES;
use proto::start_up::start_up_files;
use proto::width;
use proto::{Manifest, Metadata, TreePath};

use crate::manager::content::ObjectReader;
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
    let real = |path: &TreePath| tree.resolve(path).ok().map(|at| tree.entries[at].path.clone());
    let (mut touches, mut seen) = (Vec::new(), BTreeSet::new());
    let mut left = width::index(GUESS_BYTES_MAX / u64::from(PAGE_BYTES));
    let files = records.into_iter().flat_map(|record| start_up_files(record, &real));
    for path in files.take(FILES_MAX) {
        let Some(entry) = tree.entry(&path) else { continue };
        let NodeKind::File(id) = &tree.node(entry).kind else { continue };
        let Some(at) = tree.object_index(id).filter(|at| seen.insert(*at)) else { continue };
        let (object, chunk) = (&tree.objects[at], |id: &_| store.plain_chunk(id));
        let pages = loaded::pages(object.bytes, ObjectReader::new(object, tree.chunk_bytes, &chunk), left);
        left -= pages.len();
        touches.extend(runs(width::count(at), &pages));
    }
    touches
}

/// Pages in this order, neighbours as one.
pub(super) fn runs(object: u32, pages: &[u32]) -> impl Iterator<Item = Touch> {
    let neighbours = pages.chunk_by(|page, next| page + 1 == *next);
    neighbours.map(move |run| Touch { object, first: run[0], count: width::count(run.len()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::monitor::Quiet;
    use crate::manager::publish::PublishOptions;
    use crate::manager::testing::{Fixture, Item, Kind, Model};

    fn guessed(items: Vec<(&'static str, Item)>, entry_point: &str) -> (Manifest, Vec<Touch>) {
        let fixture = Fixture::new();
        let source = fixture.dir.path().join("source");
        Model::new(items).write(&source);
        let options = PublishOptions { entry_point: Some(entry_point.into()), ..PublishOptions::default() };
        let published = fixture.publish_with(&source, &options, &Quiet).unwrap();
        let tree = fixture.manifest(&published);
        let touches = touches(&fixture.store, &tree, [&published.metadata, &published.metadata]);
        (tree, touches)
    }

    /// How many pages of each object, in the order of their first ones.
    fn pages(touches: &[Touch]) -> Vec<(u32, u32)> {
        let by_object = touches.chunk_by(|touch, next| touch.object == next.object);
        by_object.map(|run| (run[0].object, run.iter().map(|touch| touch.count).sum())).collect()
    }

    #[test]
    fn a_script_is_guessed_with_its_interpreter_through_symlinks() {
        let program = std::fs::read("/proc/self/exe").unwrap();
        let (script, other) = ("#!/bin/interpreter -x\n", "#!/bin/interpreter -y\n");
        let directory = || Item::new(Kind::Directory);
        let items = vec![
            ("bin", directory()),
            ("bin/interpreter", Item::new(Kind::Symlink("../lib/program".into()))),
            ("bin/other", Item::file(other)),
            ("bin/start", Item::new(Kind::Symlink("tool".into()))),
            ("bin/tool", Item::file(script)),
            ("lib", directory()),
            ("lib/program", Item::file(&program)),
        ];
        let (tree, touches) = guessed(items, "bin/start");
        let object = |bytes: &[u8]| width::count(tree.object_index(&proto::ObjectId::of(bytes)).unwrap());
        let [(first, 1), (second, count)] = pages(&touches)[..] else { panic!("{:?}", pages(&touches)) };
        assert_eq!((first, second), (object(script.as_bytes()), object(&program)));
        assert!(count > 10 && u64::from(count) * u64::from(PAGE_BYTES) <= GUESS_BYTES_MAX, "{count} pages");
        assert_eq!(touches[1].first, 0, "headers first");
    }

    #[test]
    fn a_guess_is_bounded() {
        // A program all of whose bytes are written to, says its only segment.
        let mut program = vec![0; 2 * width::index(GUESS_BYTES_MAX)];
        let mut put = |at: usize, bytes: &[u8]| program[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01\x01");
        put(16, &[2, 0, 62, 0, 1]);
        put(32, &[64]);
        put(54, &[56, 0, 1]);
        put(64, &[1, 0, 0, 0, 6]);
        put(64 + 32, &(2 * GUESS_BYTES_MAX).to_le_bytes());
        let (_, touches) = guessed(vec![("start", Item::file(&program))], "start");
        assert_eq!(touches, [Touch { object: 0, first: 0, count: width::count(GUESS_BYTES_MAX / 4096) }]);
    }
}
