//! Backups of small stores, put back, cut off, changed, and put where they do not belong.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto::{GenerationRecord, ObjectId, SignedRecord};

use super::super::control::{CONTROL_FILE, ControlStore, LocalStore, add_record, is_entry, list_all};
use super::super::identity::{HOST_CERTIFICATE_LIFETIME, ManagerIdentity};
use super::super::monitor::Quiet;
use super::super::store::{LocalPacks, Store};
use super::super::testing::{Item, Kind, Model};
use super::*;

/// A store with one generation, at `store` of the directory.
struct Site {
    dir: tempfile::TempDir,
    record: GenerationRecord,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (root, source) = (dir.path().join("store"), dir.path().join("source"));
        let store = Store::open(&root).unwrap();
        let noise: Vec<u8> =
            (0..90_000_u32).flat_map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[..8].to_vec()).collect();
        Model::new([
            ("bin", Item::new(Kind::Directory)),
            ("bin/run", Item::file("#!/bin/sh\n")),
            ("data", Item::file(&noise)),
        ])
        .write(&source);
        let options = super::super::publish::PublishOptions::default();
        let published = super::super::publish::publish(&store, &source, &options, &Quiet, &false.into()).unwrap();
        let identity = ManagerIdentity::open(&root, HOST_CERTIFICATE_LIFETIME).unwrap();
        let record = GenerationRecord {
            product: "p".parse().unwrap(),
            version: "1".parse().unwrap(),
            sequence: 7,
            tree: published.tree,
            manifest_bytes: published.manifest_bytes,
            published_unix_ms: 1,
            metadata: published.metadata.clone(),
        };
        let signed = SignedRecord::sign(&record, identity.publisher()).unwrap().to_bytes().unwrap();
        let mut entries = BTreeMap::new();
        add_record(&mut entries, &record, false, signed).unwrap();
        LocalStore::fill(&root.join(CONTROL_FILE), &entries.into_iter().collect::<Vec<_>>()).unwrap();
        Self { dir, record }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn back_up(&self, name: &str, packs: bool) -> Result<BackedUp, UpkeepError> {
        backup_of_idle(self.path("store"), self.path(name), packs, Arc::new(Quiet)).await
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn what_is_put_back_is_what_was_there() {
    let site = Site::new();
    let made = site.back_up("backup", true).await.unwrap();
    assert_eq!((made.records["generation"], made.manifests, made.packs, made.missing), (1, 1, 1, 0));
    assert_eq!(made.keys, ["ca.key", "ca.pem", "publisher.key"]);
    assert_eq!(made.bytes, fs::metadata(site.path("backup")).unwrap().len());
    assert_eq!(mode(&site.path("backup")), 0o600, "it holds keys");
    let there: Vec<_> = fs::read_dir(site.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!there.iter().any(|name| name == "backup.part"), "{there:?}");

    let back = site.path("elsewhere/store");
    let restored = restore(&site.path("backup"), &back, &Quiet).unwrap();
    assert_eq!((restored.packs, restored.manifests), (1, 1));
    assert!(restored.absent_packs.is_empty() && restored.incomplete.is_empty(), "{restored:?}");
    for name in ["ca.key", "ca.pem", "publisher.key"] {
        let (old, new) = (site.path("store/keys").join(name), back.join("keys").join(name));
        assert_eq!(fs::read(&old).unwrap(), fs::read(&new).unwrap());
        assert_eq!(mode(&new), 0o600);
    }
    let store = Store::open(&back).unwrap();
    let manifest = store.tree(&site.record.tree).unwrap();
    let chunks: Vec<_> = manifest.objects.iter().flat_map(|object| &object.chunks).collect();
    assert!(chunks.len() > 2 && chunks.iter().all(|chunk| store.plain_chunk(chunk).is_ok()));
    let decisions = LocalStore::open(&back.join(CONTROL_FILE)).unwrap();
    let (entries, _) = list_all(&decisions, "").await.unwrap();
    assert!(entries.iter().all(|entry| is_entry(&entry.key, &entry.value)));
    let keys: Vec<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(keys, ["generation/p/1", "lists", "sequence"], "numbers are left out for what is forgotten");
    let sequence = decisions.get("sequence").await.unwrap().unwrap();
    assert!(u64::from_le_bytes(sequence.value[5..13].try_into().unwrap()) >= 7 + (1 << 20));
}

#[tokio::test]
async fn packs_that_are_elsewhere_are_named_and_found_when_they_were_copied() {
    let site = Site::new();
    let made = site.back_up("backup", false).await.unwrap();
    assert!(made.bytes < made.pack_bytes && !made.packs_included, "{made:?}");
    let restored = restore(&site.path("backup"), &site.path("bare"), &Quiet).unwrap();
    assert_eq!((restored.packs, restored.absent_packs.len()), (0, 1));
    let (from, to) = (site.path("store/packs"), site.path("with/packs"));
    for shard in fs::read_dir(from).unwrap().map(|shard| shard.unwrap()) {
        fs::create_dir_all(to.join(shard.file_name())).unwrap();
        for pack in fs::read_dir(shard.path()).unwrap().map(|pack| pack.unwrap()) {
            fs::copy(pack.path(), to.join(shard.file_name()).join(pack.file_name())).unwrap();
        }
    }
    let restored = restore(&site.path("backup"), &site.path("with"), &Quiet).unwrap();
    assert_eq!((restored.packs, restored.absent_packs.len(), restored.incomplete.len()), (1, 0, 0));
}

#[tokio::test]
async fn what_is_in_the_way_is_left_alone() {
    let site = Site::new();
    site.back_up("backup", true).await.unwrap();
    let before = fs::read(site.path("backup")).unwrap();
    assert!(matches!(site.back_up("backup", true).await, Err(UpkeepError::Exists(_))));
    assert_eq!(fs::read(site.path("backup")).unwrap(), before);
    let error = restore(&site.path("backup"), &site.path("store"), &Quiet).unwrap_err();
    assert!(matches!(&error, UpkeepError::NotEmpty { .. }), "{error}");
    let _open = Store::open(&site.path("store")).unwrap();
    assert!(matches!(site.back_up("other", true).await, Err(UpkeepError::Store(StoreError::InUse { .. }))));
    let nowhere = backup_of_idle(site.path("no"), site.path("other"), true, Arc::new(Quiet)).await;
    assert!(matches!(nowhere, Err(UpkeepError::NoStore(_))) && !site.path("no").exists());
}

/// Whatever was cut off or changed, no manager starts on what became of it; and the next restore begins again.
#[tokio::test]
async fn half_a_restore_is_no_store() {
    let site = Site::new();
    site.back_up("backup", true).await.unwrap();
    let whole = fs::read(site.path("backup")).unwrap();
    let back = site.path("back");
    for length in [whole.len() - 1, whole.len() / 2, whole.len() / 3, 900, 100] {
        fs::write(site.path("cut"), &whole[..length]).unwrap();
        let error = restore(&site.path("cut"), &back, &Quiet).unwrap_err();
        assert!(matches!(&error, UpkeepError::Backup { fault: ParcelFault::CutOff(_), .. }), "{length}: {error}");
        let opened = Store::open(&back).err().map(|error| error.to_string()).unwrap();
        assert!(opened.contains("restoring"), "{opened}");
    }
    let mut bad = whole.clone();
    bad[whole.len() / 2] ^= 1;
    fs::write(site.path("cut"), &bad).unwrap();
    assert!(restore(&site.path("cut"), &back, &Quiet).is_err());
    assert!(restore(&site.path("backup"), &back, &Quiet).unwrap().incomplete.is_empty());
    assert!(Store::open(&back).is_ok());
}

fn small() -> Vec<u8> {
    let key = String::from("sequence");
    let value = super::super::fuzzing::sealed(&key, 7);
    sample(&[(key, value)], &[("publisher.key", b"a key\n")], ObjectId::from_bytes([0x42; 32]))
}

/// `docs/parcel-format.md`, byte for byte.
#[test]
fn the_format_is_what_is_written_down() {
    let made: String = small().iter().map(|byte| format!("{byte:02x}")).collect();
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/parcel-format.md")).unwrap();
    let block = text.split("```hex backup").nth(1).unwrap().split("```").next().unwrap();
    let lines = block.lines().map(|line| line.split('#').next().unwrap());
    let written: String = lines.flat_map(str::chars).filter(char::is_ascii_hexdigit).collect();
    assert_eq!(made, written);
}

#[test]
fn any_flipped_bit_and_any_missing_end_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let packs = LocalPacks::open(dir.path()).unwrap();
    let good = small();
    assert!(read_any(&good, &packs, false));
    for length in 0..good.len() {
        assert!(!read_any(&good[..length], &packs, false), "{length} bytes");
    }
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(!read_any(&bad, &packs, false), "bit {bit}");
    }
}

/// Well-formed frames whose content no backup has: each is refused, and says what is wrong with it.
#[test]
fn frames_that_no_backup_has_are_refused_by_name() {
    let encoded = |name: FileName, bytes: u64| proto::codec::encode(&FileHead { name, bytes }).unwrap();
    let key = |name: &str, bytes: u64| (FILE, encoded(FileName::Key(name.to_owned()), bytes));
    let manifest = |bytes: u64| (FILE, encoded(FileName::Manifest(TreeId::from_bytes([1; 32])), bytes));
    let pack = |bytes: u64| (FILE, encoded(FileName::Pack(ObjectId::from_bytes([2; 32])), bytes));
    let entry = |name: &str, value: Vec<u8>| {
        let key = String::from(name);
        (ENTRY, [proto::codec::encode(&key).unwrap(), value].concat())
    };
    let sealed = |name: &str| super::super::fuzzing::sealed(name, 1);
    let elsewhere = (ABSENT, encoded(FileName::Key(String::from("ca.key")), 1));
    let piece = |bytes: usize| (PIECE, vec![7; bytes]);
    type Case = (&'static str, Vec<(u8, Vec<u8>)>);
    let cases: [Case; 16] = [
        ("a kind that is not known", vec![(9, Vec::new())]),
        ("facts twice", vec![(FACTS, Vec::new())]),
        ("a piece of no file", vec![piece(1)]),
        ("a key above its place", vec![key("../ca.key", 1), piece(1)]),
        ("a hidden key", vec![key(".ca.key", 1), piece(1)]),
        ("a key of no name", vec![key("", 1), piece(1)]),
        ("a key that is too long", vec![key("ca.key", KEY_BYTES_MAX + 1)]),
        ("a key twice", vec![key("ca.key", 1), piece(1), key("ca.key", 1), piece(1)]),
        ("more than the file", vec![key("ca.key", 1), piece(2)]),
        ("less than the file", vec![key("ca.key", 2), piece(1), key("ca.pem", 1), piece(1)]),
        ("another manifest", vec![manifest(1), piece(1)]),
        ("a manifest without end", vec![manifest(u64::MAX)]),
        ("no pack", vec![pack(100), piece(100)]),
        ("a key that is elsewhere", vec![elsewhere]),
        ("a damaged record", vec![entry("sequence", vec![2, 0, 0, 0, 0, 1])]),
        ("another key's record", vec![entry("lists", sealed("sequence"))]),
    ];
    let dir = tempfile::tempdir().unwrap();
    let packs = LocalPacks::open(dir.path()).unwrap();
    let made = |frames: &[(u8, Vec<u8>)]| {
        let facts = proto::codec::encode(&Facts { made: 1, software: String::new() }).unwrap();
        let mut writer = super::super::parcel::ParcelWriter::begin(Vec::new(), FORMAT).unwrap();
        let first = [(FACTS, facts)];
        for (kind, body) in first.iter().chain(frames) {
            writer.frame(*kind, &[body]).unwrap();
        }
        writer.end().unwrap().0
    };
    let good = [key("ca.key", 1), piece(1), entry("sequence", sealed("sequence"))];
    assert!(read_any(&made(&good), &packs, false));
    assert!(!read_any(&made(&good[2..]), &packs, false), "without keys");
    assert!(!read_any(&made(&[&good[..], &good[2..]].concat()), &packs, false), "a record twice");
    for (what, frames) in cases {
        assert!(!read_any(&made(&[&good[..2], &frames].concat()), &packs, false), "{what}");
    }
    // Nothing of it is left under a name.
    let left: Vec<_> =
        super::super::testing::list(dir.path()).into_iter().filter(|path| path.contains('.')).collect();
    assert!(left.is_empty(), "{left:?}");
}
