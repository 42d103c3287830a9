//! What the new tree needs, in pieces, and which old files are likely to resemble each.

use std::collections::{HashMap, HashSet};

use proto::delta::Run;
use proto::manifest::{Manifest, NodeKind};
use proto::relative::FRAME_PARTS_MAX;
use proto::width;
use proto::{ChunkId, ObjectId};

/// Plain bytes of one frame. Larger ones compress no better (`docs/decisions.md`), and a host holds one in memory.
const SPAN_BYTES: u64 = 512 << 10;

/// Pieces of at most so many bytes share a frame.
pub(in crate::manager) const SMALL_BYTES: u64 = SPAN_BYTES / 8;

/// Consecutive chunks that the old tree does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::manager) struct Piece {
    /// The chunks, of the new tree.
    pub(in crate::manager) run: Run,
    /// The old object at the same path, or at one that differs in its digits only.
    pub(in crate::manager) namesake: Option<u32>,
}

/// Every chunk of `to` that is in no object of `from`, in the order of paths, in pieces of at most [`SPAN_BYTES`].
pub(in crate::manager) fn missing(from: &Manifest, to: &Manifest) -> Vec<Piece> {
    let old_chunks: HashSet<&ChunkId> = from.objects.iter().flat_map(|object| &object.chunks).collect();
    let namesakes = Namesakes::of(from);
    let chunks_max = u32::try_from((SPAN_BYTES / u64::from(to.chunk_bytes)).max(1)).unwrap_or(1);
    let mut seen: HashSet<ObjectId> = HashSet::new();
    let mut pieces = Vec::new();
    for entry in &to.entries {
        let NodeKind::File(id) = to.node(entry).kind else { continue };
        let Some(at) = to.object_index(&id).filter(|_| seen.insert(id)) else { continue };
        if from.object_index(&id).is_some() {
            continue;
        }
        let namesake = namesakes.find(from, &entry.path);
        let mut open: Option<Run> = None;
        for (index, chunk) in to.objects[at].chunks.iter().enumerate() {
            let wanted = !old_chunks.contains(chunk);
            match &mut open {
                Some(run) if wanted && run.count < chunks_max => run.count += 1,
                _ => {
                    pieces.extend(open.take().map(|run| Piece { run, namesake }));
                    open = wanted.then_some(Run { object: width::count(at), first: width::count(index), count: 1 });
                }
            }
        }
        pieces.extend(open.map(|run| Piece { run, namesake }));
    }
    pieces
}

/// Pieces into frames: small ones together, in order, up to [`SPAN_BYTES`]. Larger ones stay alone, so that one of
/// which the old tree has nothing can be left out.
pub(in crate::manager) fn group(pieces: Vec<Piece>, to: &Manifest) -> Vec<Vec<Piece>> {
    let mut groups: Vec<Vec<Piece>> = Vec::new();
    let mut room = 0_u64;
    for piece in pieces {
        let bytes = piece.run.plain_bytes(to).unwrap_or(0);
        match groups.last_mut() {
            Some(group) if bytes <= room.min(SMALL_BYTES) && group.len() < FRAME_PARTS_MAX => {
                group.push(piece);
                room -= bytes;
            }
            _ => {
                groups.push(vec![piece]);
                room = if bytes <= SMALL_BYTES { SPAN_BYTES - bytes } else { 0 };
            }
        }
    }
    groups
}

/// Old files by what of their path does not change between versions.
pub(in crate::manager) struct Namesakes {
    by_shape: HashMap<Vec<u8>, Option<ObjectId>>,
}

impl Namesakes {
    pub(in crate::manager) fn of(from: &Manifest) -> Self {
        let mut by_shape = HashMap::new();
        for entry in &from.entries {
            if let NodeKind::File(id) = from.node(entry).kind {
                // Two files of one shape: neither is more likely than the other.
                by_shape.entry(shape(entry.path.as_bytes())).and_modify(|known| *known = None).or_insert(Some(id));
            }
        }
        Self { by_shape }
    }

    pub(in crate::manager) fn find(&self, from: &Manifest, path: &proto::TreePath) -> Option<u32> {
        let same = from.entry(path).and_then(|entry| match from.node(entry).kind {
            NodeKind::File(id) => Some(id),
            _ => None,
        });
        let id = same.or_else(|| *self.by_shape.get(&shape(path.as_bytes()))?)?;
        from.object_index(&id).map(width::count)
    }
}

/// A path with each number, dots and all, as one mark: `libz.so.1.2.13` and `libz.so.1.3` have one shape.
fn shape(path: &[u8]) -> Vec<u8> {
    let mut shape = Vec::with_capacity(path.len());
    let mut in_number = false;
    for byte in path {
        let numeric = byte.is_ascii_digit() || (in_number && *byte == b'.');
        match (numeric, in_number) {
            (true, false) => shape.push(b'#'),
            (true, true) => {}
            (false, _) => shape.push(*byte),
        }
        in_number = numeric;
    }
    shape
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proto::manifest::{Entry, Node, Object};

    use super::*;

    #[test]
    fn versions_in_names_do_not_change_their_shape() {
        assert_eq!(shape(b"lib/libz.so.1.2.13"), shape(b"lib/libz.so.1.3"));
        assert_eq!(shape(b"ruff-0.17.5.dist-info/METADATA"), shape(b"ruff-0.18.0.dist-info/METADATA"));
        assert_ne!(shape(b"lib/liba.so"), shape(b"lib/libb.so"));
    }

    /// A tree of files, each a list of chunks by their names; a chunk is 64 KiB, but for the last of a file.
    fn tree(files: &[(String, Vec<u8>)]) -> Manifest {
        let object = |chunks: &[u8]| {
            let bytes = chunks.len() as u64 * 65_536 - 7;
            Object {
                id: ObjectId::of(chunks),
                bytes,
                chunks: chunks.iter().map(|chunk| ChunkId::of(&[*chunk])).collect(),
            }
        };
        let mut files: Vec<_> = files.iter().filter(|(_, chunks)| !chunks.is_empty()).cloned().collect();
        files.sort();
        files.dedup_by(|a, b| a.0 == b.0);
        let mut objects: Vec<Object> = files.iter().map(|(_, chunks)| object(chunks)).collect();
        objects.sort_by_key(|object| object.id);
        objects.dedup_by_key(|object| object.id);
        let node = |chunks: &[u8]| Node {
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime_s: 0,
            mtime_ns: 0,
            xattrs: vec![],
            kind: NodeKind::File(ObjectId::of(chunks)),
        };
        let nodes = files.iter().map(|(_, chunks)| node(chunks)).collect();
        let entry = |(at, (name, _)): (usize, &(String, Vec<u8>))| Entry {
            path: proto::TreePath::parse(name.as_bytes()).unwrap(),
            node: width::count(at),
        };
        let entries = files.iter().enumerate().map(entry).collect();
        Manifest { chunk_bytes: 65_536, objects, nodes, entries }
    }

    fn any_tree() -> impl Strategy<Value = Manifest> {
        let name = prop::sample::select(vec!["a", "b", "lib.so.1", "lib.so.2", "x/y", "z9"]);
        let files = prop::collection::vec((name, prop::collection::vec(0_u8..9, 0..30)), 0..6);
        files.prop_map(|files| {
            tree(&files.into_iter().map(|(name, chunks)| (name.to_owned(), chunks)).collect::<Vec<_>>())
        })
    }

    proptest! {
        /// Whoever has the old tree and what the pieces name has every chunk of the new one, and nothing is named twice
        /// of one object or although it is there.
        #[test]
        fn pieces_are_what_is_missing_and_no_more(from in any_tree(), to in any_tree()) {
            let old: HashSet<ChunkId> = from.objects.iter().flat_map(|object| object.chunks.clone()).collect();
            let pieces = missing(&from, &to);
            let mut named: HashSet<(u32, u32)> = HashSet::new();
            for Piece { run, .. } in &pieces {
                prop_assert!(run.count > 0 && run.plain_bytes(&to).is_some_and(|bytes| bytes <= SPAN_BYTES), "{run:?}");
                for index in run.first..run.first + run.count {
                    let chunk = to.objects[run.object as usize].chunks[index as usize];
                    prop_assert!(!old.contains(&chunk), "the old tree has it");
                    prop_assert!(named.insert((run.object, index)), "twice");
                }
            }
            for (at, object) in to.objects.iter().enumerate() {
                for (index, chunk) in object.chunks.iter().enumerate() {
                    let is_named = named.contains(&(width::count(at), width::count(index)));
                    prop_assert!(is_named || old.contains(chunk), "chunk {index} of object {at} comes from nowhere");
                }
            }
        }

        #[test]
        fn frames_hold_every_piece_once_in_order_and_stay_small(from in any_tree(), to in any_tree()) {
            let pieces = missing(&from, &to);
            let groups = group(pieces.clone(), &to);
            prop_assert_eq!(groups.concat(), pieces);
            for group in groups {
                let bytes: u64 = group.iter().map(|piece| piece.run.plain_bytes(&to).unwrap()).sum();
                prop_assert!(!group.is_empty() && group.len() <= FRAME_PARTS_MAX && bytes <= SPAN_BYTES, "{bytes}");
            }
        }
    }

    #[test]
    fn a_file_is_likened_to_the_one_of_its_name_or_else_of_its_shape() {
        let file = |name: &str, chunks: &[u8]| (name.to_owned(), chunks.to_vec());
        let from =
            tree(&[file("lib.so.1", &[1]), file("other.so.1", &[2]), file("twin-1", &[3]), file("twin-2", &[4])]);
        let namesake = |name: &str| {
            let to = tree(&[file(name, &[9])]);
            let pieces = missing(&from, &to);
            pieces[0].namesake.map(|at| from.objects[at as usize].id)
        };
        assert_eq!(namesake("lib.so.1"), Some(ObjectId::of(&[1])), "the same path");
        assert_eq!(namesake("lib.so.2.5"), Some(ObjectId::of(&[1])), "but for its digits");
        assert_eq!(namesake("twin-2"), Some(ObjectId::of(&[4])));
        assert_eq!(namesake("twin-3"), None, "it may be either");
        assert_eq!(namesake("new"), None);
    }
}
