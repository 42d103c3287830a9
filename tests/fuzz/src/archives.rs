//! Received files: archives of every kind, what is in them, and packs.

use std::cell::RefCell;
use std::path::Path;

use manager_fs::manager::fuzzing;
use manager_fs::manager::store::Store;

use crate::Target;

pub const TARGETS: &[Target] = &[
    ("tar", archive),
    ("zip", archive),
    ("deb", archive),
    ("compressed", archive),
    ("acl", |bytes| fuzzing::acl(bytes)),
    ("elf", |bytes| fuzzing::elf(bytes)),
    ("pack_index", |bytes| fuzzing::pack_index(bytes)),
];

/// What it is is told by its first bytes; the targets differ by their seeds.
fn archive(bytes: &[u8]) {
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
        fuzzing::archive(bytes, &dir.path().join("source"), store);
    });
}
