//! Deltas and bundles: their fixed bytes, and what a reader of their indexes refuses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bundle;
mod delta;

use proto::manifest::{Entry, Manifest, Node, NodeKind, Object};
use proto::relative::{FRAME_PARTS_MAX, Part, Recipe, Stretch};
use proto::{ChunkId, ObjectId, TreePath, width};

/// A tree of one file; the ids do not matter here.
fn tree(bytes: u64, chunk_bytes: u32) -> Manifest {
    let chunks = (0..bytes.div_ceil(chunk_bytes.into())).map(|at| ChunkId::of(&at.to_le_bytes())).collect();
    let object = Object { id: ObjectId::of(&bytes.to_le_bytes()), bytes, chunks };
    let node = |kind| Node { mode: 0o755, uid: 0, gid: 0, mtime_s: 0, mtime_ns: 0, xattrs: vec![], kind };
    Manifest {
        chunk_bytes,
        nodes: vec![node(NodeKind::Directory), node(NodeKind::File(object.id))],
        entries: vec![
            Entry { path: TreePath::root(), node: 0 },
            Entry { path: TreePath::parse(b"file").unwrap(), node: 1 },
        ],
        objects: vec![object],
    }
}

/// Of a tree whose file has at least 1,000 bytes.
fn recipe() -> Recipe {
    Recipe {
        stretches: vec![Stretch { object: 0, offset: 100, bytes: 900 }],
        patch: Part { stored_bytes: 10, plain_bytes: 100 },
        literals: Part { stored_bytes: 20, plain_bytes: 200 },
    }
}

#[test]
fn a_recipe_adds_up() {
    assert_eq!((recipe().stored_bytes(), recipe().stretch_bytes()), (30, 900));
    let twice = Recipe { stretches: vec![recipe().stretches[0]; 2], ..recipe() };
    assert_eq!((twice.stored_bytes(), twice.stretch_bytes()), (30, 1_800));
    assert_eq!((Recipe::default().stored_bytes(), Recipe::default().stretch_bytes()), (0, 0));
}

/// What a reader of either index says of the recipes of a frame that makes `made_bytes`, when the old tree's file has 1,000
/// bytes and all stretches may have `base_max`: nothing (`taken`) up to each bound, and a reason beyond it.
fn check_recipes(made_bytes: u32, base_max: u64, fault: &dyn Fn(Recipe) -> &'static str) {
    let with = |change: &dyn Fn(&mut Recipe)| {
        let mut recipe = recipe();
        change(&mut recipe);
        fault(recipe)
    };
    let stretch = |object, offset, bytes| Stretch { object, offset, bytes };
    let stretches = |stretches: Vec<Stretch>| with(&|recipe| recipe.stretches.clone_from(&stretches));
    let whole = stretch(0, 0, 1_000);
    for taken in [vec![], vec![whole], vec![stretch(0, 999, 1)], vec![stretch(0, 0, 1); FRAME_PARTS_MAX]] {
        assert_eq!(stretches(taken), "taken");
    }
    for wrong in
        [stretch(1, 0, 1), stretch(0, 0, 0), stretch(0, 100, 901), stretch(0, 1_000, 1), stretch(0, u64::MAX, 1)]
    {
        let said = stretches(vec![whole, wrong]);
        assert!(said.starts_with("a stretch is not of the old tree, or a frame's"), "{wrong:?}: {said}");
    }
    let said = stretches(vec![stretch(0, 0, 1); FRAME_PARTS_MAX + 1]);
    assert!(said.starts_with("a frame makes nothing, or has more than 4096 "), "{said}");

    let mut base = vec![whole; width::index(base_max / 1_000)];
    let rest = width::count(base_max % 1_000);
    base.push(stretch(0, 0, rest));
    assert_eq!(stretches(base.clone()), "taken", "as large a base as there may be");
    base.pop();
    base.push(stretch(0, 0, rest + 1));
    assert!(stretches(base).starts_with("a stretch is not of the old tree, or a frame's"), "one byte more");

    let sizes: [fn(&mut Recipe) -> &mut u32; 4] = [
        |recipe| &mut recipe.patch.plain_bytes,
        |recipe| &mut recipe.patch.stored_bytes,
        |recipe| &mut recipe.literals.plain_bytes,
        |recipe| &mut recipe.literals.stored_bytes,
    ];
    for size in sizes {
        let of = |bytes: u32| with(&|recipe| *size(recipe) = bytes);
        assert_eq!(of(2 * made_bytes + 1024), "taken");
        assert_eq!(of(2 * made_bytes + 1025), "a frame's part is larger than what it makes");
        assert_eq!(of(1 << 30), "a frame's part is larger than what it makes", "a bomb");
    }
}
