//! Received files: archives of every kind, what is in them, and packs.

use std::cell::RefCell;
use std::path::Path;

use manager_fs::manager::fuzzing;
use manager_fs::manager::store::Store;
use proto::TreePath;
use proto::manifest::{Entry, Manifest, Node, NodeKind};

use super::Target;

pub(super) const TARGETS: &[Target] = &[
    ("tar", archive),
    ("zip", archive),
    ("deb", archive),
    ("rpm", archive),
    ("container", container),
    ("compressed", archive),
    ("service_pack", service_pack),
    ("descriptor", |bytes| fuzzing::descriptor(bytes)),
    ("rollout_plan", |bytes| fuzzing::rollout_plan(bytes)),
    ("policy", |bytes| fuzzing::policy(bytes)),
    ("certificate", |bytes| fuzzing::certificate(bytes)),
    ("acl", |bytes| fuzzing::acl(bytes)),
    ("elf", |bytes| fuzzing::elf(bytes)),
    ("pack_index", |bytes| fuzzing::pack_index(bytes)),
    ("manager_backup", manager_backup),
    ("saved_generations", |bytes| store(|_, store| fuzzing::saved_generations(bytes, store))),
];

/// What it is is told by its first bytes; the targets differ by their seeds.
fn archive(bytes: &[u8]) -> bool {
    read(bytes, None)
}

/// As `docker save` writes an image.
fn container(bytes: &[u8]) -> bool {
    store(|dir, store| fuzzing::container(bytes, &dir.join("source"), store))
}

fn manager_backup(bytes: &[u8]) -> bool {
    store(|dir, _| std::fs::create_dir_all(dir.join("restored")).is_ok() && fuzzing::manager_backup(bytes, dir))
}

/// Over a tree with a directory and some files.
fn service_pack(bytes: &[u8]) -> bool {
    read(bytes, Some(&tree_of(&["", "bin", "bin/agent", "bin/tool", "etc", "etc/conf", "readme"])))
}

/// A tree of these paths; those that hold others are directories, the rest empty files.
fn tree_of(paths: &[&str]) -> Manifest {
    let holds = |path: &str| path.is_empty() || paths.iter().any(|other| other.starts_with(&format!("{path}/")));
    let node = |path: &&str| Node {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime_s: 0,
        mtime_ns: 0,
        xattrs: vec![],
        kind: if holds(path) { NodeKind::Directory } else { NodeKind::EmptyFile },
    };
    let entry = |(at, path): (usize, &&str)| Entry {
        path: TreePath::parse(path.as_bytes()).unwrap(),
        node: proto::width::count(at),
    };
    Manifest {
        chunk_bytes: 4096,
        objects: vec![],
        nodes: paths.iter().map(node).collect(),
        entries: paths.iter().enumerate().map(entry).collect(),
    }
}

fn read(bytes: &[u8], base: Option<&Manifest>) -> bool {
    store(|dir, store| fuzzing::archive(bytes, base, &dir.join("source"), store))
}

/// Does something with a store, and a directory for what it takes in.
fn store(work: impl FnOnce(&Path, &Store) -> bool) -> bool {
    thread_local! {
        static STORE: RefCell<Option<(tempfile::TempDir, Store)>> = const { RefCell::new(None) };
    }
    STORE.with_borrow_mut(|kept| {
        let (dir, store) = kept.get_or_insert_with(|| {
            // In memory where that is possible: a new draft for each input.
            let shm = Path::new("/dev/shm");
            let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
            let store = Store::open(&dir.path().join("store")).unwrap();
            (dir, store)
        });
        work(dir.path(), store)
    })
}
