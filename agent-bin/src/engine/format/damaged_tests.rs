//! What is in the seals of a repository, damaged: whoever has the key may have written anything, and what is read is then
//! something or a fault, and never the end of the agent.

use std::fs;

use ::tests::damage::changed;
use ::tests::dice::Dice;
use rustic_core::repofile::MasterKey;
use serde::de::DeserializeOwned;

use super::files::{FileKind, Files};
use super::id::Id;
use super::index::{BlobKind, Index, IndexBlob, IndexFile, IndexPack, encode_header};
use super::seal::Key;
use super::tree::{Node, NodeKind, Tree};

const CHANGES: usize = 2000;

/// Reads changes of a document, and what else is in it.
fn read<T: DeserializeOwned>(document: &[u8], mut look: impl FnMut(T)) {
    let mut dice = Dice::new(document.len() as u64);
    serde_json::from_slice::<T>(document).unwrap();
    let mut taken = 0;
    for _ in 0..CHANGES {
        if let Ok(value) = serde_json::from_slice(&changed(document, br#"\x\u{"d800"}"#, &mut dice)) {
            taken += 1;
            look(value);
        }
    }
    assert!(taken > 0, "no change was taken: the test looks at nothing");
}

fn blob(kind: BlobKind, offset: u32, raw: Option<u32>) -> IndexBlob {
    let raw = raw.and_then(std::num::NonZeroU32::new);
    IndexBlob { id: Id::of(b"blob"), kind, offset, length: 100, uncompressed_length: raw }
}

#[test]
fn damaged_directories_are_read_or_refused() {
    let mut file = Node::new("na\nme\"ö\\".as_ref(), NodeKind::File);
    file.content = Some(vec![Id::of(b"a"), Id::of(b"b")]);
    file.set_mode(0o4755);
    let mut link = Node::new("link".as_ref(), NodeKind::Symlink);
    link.set_link_target("somewhere/else".as_ref());
    let mut folder = Node::new("folder".as_ref(), NodeKind::Dir);
    folder.subtree = Some(Id::of(b"c"));
    let tree = Tree { nodes: vec![file, folder, link] };
    read(&tree.encode().unwrap(), |tree: Tree| {
        for node in &tree.nodes {
            // A name may be anything at all, also one that leads elsewhere: whoever restores looks at it again.
            drop((node.file_name(), node.mode(), node.link_target(), node.kind.word()));
        }
        // What was read is written so that it is read the same.
        let again: Tree = serde_json::from_slice(&tree.encode().unwrap()).unwrap();
        assert_eq!(again, tree);
    });
}

#[test]
fn damaged_index_files_are_read_or_refused() {
    let blobs = vec![blob(BlobKind::Data, 0, None), blob(BlobKind::Tree, 100, Some(400))];
    let file = IndexFile { packs: vec![IndexPack { id: Id::of(b"pack"), blobs }] };
    read(&serde_json::to_vec(&file).unwrap(), |file: IndexFile| {
        for blob in file.packs.iter().flat_map(|pack| &pack.blobs) {
            let _ = u64::from(blob.offset) + u64::from(blob.length);
        }
    });
}

/// By way of the files, as an operation reads them: index files, headers of packs, blobs.
#[test]
fn a_repository_of_damaged_files_is_told_of_and_does_not_end_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    for kind in [FileKind::Index, FileKind::Pack] {
        fs::create_dir_all(Files::new(dir.path()).path(kind, &Id::of(b"x")).parent().unwrap()).unwrap();
    }
    let files = Files::new(dir.path());
    let key = Key::new(&MasterKey::new()).unwrap();
    let blobs = [blob(BlobKind::Data, 0, None), blob(BlobKind::Tree, 100, Some(400))];
    let header = encode_header(&blobs);
    let document = serde_json::to_vec(&IndexFile::default()).unwrap();
    let mut dice = Dice::new(7);
    let mut faults = Vec::new();
    for _ in 0..100 {
        let sealed = key.seal(&changed(&header, &document, &mut dice)).unwrap();
        let length = u32::try_from(sealed.len()).unwrap().to_le_bytes();
        let pack = changed(&[vec![7; 200], sealed, length.to_vec()].concat(), &header, &mut dice);
        let index = key.seal(&changed(&document, &header, &mut dice)).unwrap();
        for (kind, bytes) in [(FileKind::Pack, &pack), (FileKind::Index, &index)] {
            let path = files.path(kind, &Id::of(bytes));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        faults.clear();
        let index = Index::load(&files, &key, &mut faults).unwrap();
        for found in index.find(BlobKind::Data, &Id::of(b"blob")) {
            let _ = found.plain_length();
        }
    }
    assert!(faults.len() > 50, "{} faults", faults.len());
}
