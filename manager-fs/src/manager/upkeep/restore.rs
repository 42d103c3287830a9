//! Putting a backup back into a directory that becomes a store.
//!
//! A file `restoring` says that it is not one yet: no manager starts on it, and the next restore begins again. The format
//! is written last.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use proto::limits::MANIFEST_BYTES_MAX;
use proto::{TreeId, codec};

use super::backup::is_key_name;
use super::{
    ABSENT, ENTRY, FACTS, FILE, FORMAT, Facts, FileHead, FileName, KEY_BYTES_MAX, PIECE, Restored, UpkeepError, WHAT,
    count_kinds,
};
use crate::manager::control::{CONTROL_FILE, LocalStore, is_entry, leave_out, names_without, trees_of};
use crate::manager::identity::{HOST_CERTIFICATE_LIFETIME, ManagerIdentity};
use crate::manager::monitor::{Monitor, Task};
use crate::manager::now;
use crate::manager::parcel::{FRAME_BYTES_MAX, ParcelFault, ParcelReader};
use crate::manager::store::{
    self, BlobKind, BlobName, Draft, LocalPacks, Lost, PackId, PackStore, Store, become_store, claim,
};
use crate::moments::{self, Moment};

/// The file that says that a directory is not a store yet.
const MARK: &str = "restoring";
/// What may be there before: packs that somebody has copied already.
const MAY_BE_THERE: [&str; 2] = ["packs", "lost+found"];
/// Bytes of all records: a thousand times those of some thousand hosts.
const ENTRIES_BYTES_MAX: usize = 4 << 30;
/// Bytes of one pack or bundle: a tree of the largest size, and its index.
const BLOB_BYTES_MAX: u64 = proto::limits::TREE_BYTES_MAX * 2;

/// Puts a backup back. The directory is a store when this is done, and not before. Waits for the disk.
///
/// # Errors
/// See [`UpkeepError`]; no manager starts on the directory then, and another restore may.
pub fn restore(file: &Path, root: &Path, monitor: &dyn Monitor) -> Result<Restored, UpkeepError> {
    let from = File::open(file).map_err(UpkeepError::io(file))?;
    let bytes = from.metadata().map_err(UpkeepError::io(file))?.len();
    let wrong = |fault: ParcelFault| UpkeepError::Backup { path: file.to_path_buf(), fault };
    let mut reader = ParcelReader::begin(BufReader::new(from), FORMAT, WHAT).map_err(wrong)?;
    // Before the directory is touched.
    let facts = facts(&mut reader).map_err(wrong)?;
    let lock = prepare(root)?;
    let packs = LocalPacks::open(root).map_err(UpkeepError::io(root))?;
    let mut taking = Taking::new(&packs);
    loop {
        let at = reader.at();
        match reader.next().map_err(wrong)? {
            None => break,
            Some((kind, body)) => {
                let taken = taking.frame(kind, body);
                taken.map_err(|fault| fault.at(at, file))?;
            }
        }
        monitor.progress(Task::Copy, reader.at(), bytes);
    }
    let at = reader.at();
    taking.finished().map_err(|fault| fault.at(at, file))?;
    let Taking { mut entries, keys, manifests, absent, .. } = taking;
    leave_out(&mut entries, now())?;
    let mut restored = Restored {
        made: facts.made,
        software: facts.software,
        records: count_kinds(entries.keys()),
        keys: keys.keys().cloned().collect(),
        manifests,
        ..Restored::default()
    };
    put_in_place(root, &keys, &entries)?;
    drop(lock);
    let store = Store::open(root)?;
    restored.packs = store.usage()?.packs;
    let lost = store.lost(&trees_of(&entries))?;
    if !lost.is_empty() {
        // What was compressed anew since lies in other packs than those that are named: what counts is what is lacking.
        let there = packs.list(BlobKind::Pack).map_err(UpkeepError::io(root))?;
        let absent = absent.into_iter().filter(|pack| !there.contains(&BlobName::Pack(*pack)));
        restored.absent_packs = absent.map(|pack| pack.to_hex()).collect();
    }
    if restored.absent_packs.is_empty() {
        restored.incomplete = incomplete(&store, &entries, &lost)?;
    }
    Ok(restored)
}

fn facts(reader: &mut ParcelReader<impl io::Read>) -> Result<Facts, ParcelFault> {
    let at = reader.at();
    let facts = match reader.next()? {
        Some((FACTS, body)) => codec::decode::<Facts, FRAME_BYTES_MAX>(body).map_err(|error| error.to_string()),
        _ => Err(String::from("it does not begin with what it is")),
    };
    facts.map_err(|fault| reader.damaged(at, fault))
}

/// Sees to it that the directory can become a store, and says that it is none yet.
fn prepare(root: &Path) -> Result<File, UpkeepError> {
    fs::create_dir_all(root).map_err(UpkeepError::io(root))?;
    let mark = root.join(MARK);
    let begun = mark.exists();
    let names =
        fs::read_dir(root).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(UpkeepError::io(root))?;
    let names = names.iter().map(|entry| entry.file_name().to_string_lossy().into_owned());
    if let Some(found) = names.into_iter().find(|name| !begun && !MAY_BE_THERE.contains(&name.as_str())) {
        return Err(UpkeepError::NotEmpty { path: root.to_path_buf(), found });
    }
    let said = File::create(&mark).and_then(|file| file.sync_all()).and_then(|()| File::open(root)?.sync_all());
    said.map_err(UpkeepError::io(&mark))?;
    let lock = claim(root)?;
    // Of a restore that was broken off, perhaps of another backup. Blobs are named by what they hold, and may stay.
    for name in ["control.redb", "control.redb.new", "format"] {
        absent_is_fine(fs::remove_file(root.join(name))).map_err(UpkeepError::io(&root.join(name)))?;
    }
    for name in ["keys", "keys.new", "bundles"] {
        absent_is_fine(fs::remove_dir_all(root.join(name))).map_err(UpkeepError::io(&root.join(name)))?;
    }
    Ok(lock)
}

fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Why a frame was not taken.
enum Refused {
    /// It is not what a backup has.
    Fault(String),
    /// The disk.
    Io(io::Error),
}

impl Refused {
    fn at(self, at: u64, file: &Path) -> UpkeepError {
        match self {
            Refused::Io(cause) => UpkeepError::Io { path: file.to_path_buf(), cause },
            Refused::Fault(fault) => {
                UpkeepError::Backup { path: file.to_path_buf(), fault: ParcelFault::Damaged { at, fault } }
            }
        }
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn fault<T>(text: impl Into<String>) -> Result<T, Refused> {
    Err(Refused::Fault(text.into()))
}

/// A file whose pieces come.
struct Coming {
    name: FileName,
    left: u64,
    to: To,
}

/// Where they go.
enum To {
    Memory(Vec<u8>),
    Blob(BlobName, Box<dyn Draft>),
}

/// What was taken so far.
struct Taking<'a> {
    packs: &'a LocalPacks,
    entries: BTreeMap<String, Vec<u8>>,
    entries_bytes: usize,
    keys: BTreeMap<String, Vec<u8>>,
    manifests: u64,
    absent: BTreeSet<PackId>,
    coming: Option<Coming>,
}

impl<'a> Taking<'a> {
    fn new(packs: &'a LocalPacks) -> Self {
        Self {
            packs,
            entries: BTreeMap::new(),
            entries_bytes: 0,
            keys: BTreeMap::new(),
            manifests: 0,
            absent: BTreeSet::new(),
            coming: None,
        }
    }

    fn frame(&mut self, kind: u8, body: &[u8]) -> Result<(), Refused> {
        match kind {
            PIECE => self.piece(body),
            _ if self.coming.is_some() => fault("a file ends before its length"),
            ENTRY => self.entry(body),
            FILE => self.file(&head(body)?),
            ABSENT => match head(body)?.name {
                FileName::Pack(id) => {
                    self.absent.insert(PackId::of_object(id));
                    Ok(())
                }
                _ => fault("only packs may be elsewhere"),
            },
            _ => fault(format!("a frame of kind {kind}, which this program does not know")),
        }
    }

    fn entry(&mut self, body: &[u8]) -> Result<(), Refused> {
        let Ok((key, value)) = codec::decode_first::<String, FRAME_BYTES_MAX>(body) else {
            return fault("a record has no key");
        };
        self.entries_bytes += body.len();
        if !is_entry(&key, value) {
            return fault(format!("the record '{}' is damaged", key.escape_debug()));
        }
        if self.entries_bytes > ENTRIES_BYTES_MAX || self.entries.insert(key, value.to_vec()).is_some() {
            return fault("a record is there twice, or there are too many");
        }
        Ok(())
    }

    fn file(&mut self, head: &FileHead) -> Result<(), Refused> {
        let blob = |name: BlobName| Ok::<_, io::Error>(To::Blob(name, self.packs.create()?));
        let (to, bytes_max) = match &head.name {
            FileName::Key(name) if is_key_name(name) && !self.keys.contains_key(name) => {
                (To::Memory(Vec::new()), KEY_BYTES_MAX)
            }
            FileName::Key(_) => return fault("a key has a name that none has, or is there twice"),
            FileName::Manifest(_) => (To::Memory(Vec::new()), MANIFEST_BYTES_MAX as u64),
            FileName::Pack(id) => (blob(BlobName::Pack(PackId::of_object(*id)))?, BLOB_BYTES_MAX),
            FileName::Bundle(from, tree) => (blob(BlobName::Bundle(*from, *tree))?, BLOB_BYTES_MAX),
        };
        if head.bytes > bytes_max {
            return fault("a file is longer than any may be");
        }
        self.coming = Some(Coming { name: head.name.clone(), left: head.bytes, to });
        self.piece(&[])
    }

    fn piece(&mut self, piece: &[u8]) -> Result<(), Refused> {
        let Some(mut coming) = self.coming.take() else { return fault("a piece of no file") };
        let Some(left) = coming.left.checked_sub(piece.len() as u64) else {
            return fault("a file goes on after its end");
        };
        match &mut coming.to {
            To::Memory(bytes) => bytes.extend_from_slice(piece),
            To::Blob(_, draft) => draft.append(piece)?,
        }
        coming.left = left;
        if left > 0 {
            self.coming = Some(coming);
            return Ok(());
        }
        match (coming.name, coming.to) {
            (FileName::Manifest(tree), To::Memory(bytes)) if TreeId::of(&bytes) == tree => {
                let mut draft = self.packs.create()?;
                draft.append(&bytes)?;
                draft.commit(&BlobName::Manifest(tree))?;
                self.manifests += 1;
            }
            (FileName::Manifest(tree), _) => return fault(format!("the manifest of tree {tree} has another hash")),
            (FileName::Key(name), To::Memory(bytes)) => drop(self.keys.insert(name, bytes)),
            (_, To::Blob(name, draft)) => {
                draft.commit(&name)?;
                if let BlobName::Pack(id) = &name
                    && let Err(wrong) = store::check_pack(self.packs, id)
                {
                    self.packs.delete(&name)?;
                    return fault(format!("pack {id}: {wrong}"));
                }
            }
            (FileName::Pack(_) | FileName::Bundle(..), To::Memory(_)) => {}
        }
        Ok(())
    }

    fn finished(&self) -> Result<(), Refused> {
        if self.coming.is_some() {
            return fault("a file ends before its length");
        }
        if self.keys.is_empty() { fault("it has no keys") } else { Ok(()) }
    }
}

fn head(body: &[u8]) -> Result<FileHead, Refused> {
    codec::decode::<FileHead, FRAME_BYTES_MAX>(body).or_else(|error| fault(error.to_string()))
}

/// Keys and decisions into their places; then the directory is a store.
fn put_in_place(
    root: &Path,
    keys: &BTreeMap<String, Vec<u8>>,
    entries: &BTreeMap<String, Vec<u8>>,
) -> Result<(), UpkeepError> {
    let fresh = root.join("keys.new");
    let made = fs::DirBuilder::new().mode(0o700).create(&fresh);
    made.map_err(UpkeepError::io(&fresh))?;
    for (name, bytes) in keys {
        let path = fresh.join(name);
        let made = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let written = made.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
        written.map_err(UpkeepError::io(&path))?;
    }
    let control = root.join("control.redb.new");
    let entries: Vec<_> = entries.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    LocalStore::fill(&control, &entries)?;
    let named = moments::reach(Moment::StoreRestore, root)
        .and_then(|()| File::open(&fresh)?.sync_all())
        .and_then(|()| fs::rename(&fresh, root.join("keys")))
        .and_then(|()| fs::rename(&control, root.join(CONTROL_FILE)))
        .and_then(|()| File::open(root)?.sync_all());
    named.map_err(UpkeepError::io(root))?;
    // Whoever has no keys that can be used makes none: the directory stays what it is.
    ManagerIdentity::open(root, HOST_CERTIFICATE_LIFETIME)?;
    let done = fs::remove_file(root.join(MARK)).and_then(|()| File::open(root)?.sync_all());
    done.and_then(|()| become_store(root)).map_err(UpkeepError::io(root))
}

/// Generations whose bytes are not all there.
fn incomplete(store: &Store, entries: &BTreeMap<String, Vec<u8>>, lost: &Lost) -> Result<Vec<String>, UpkeepError> {
    let mut whole: BTreeSet<TreeId> = store.trees()?.into_iter().collect();
    let lacking: BTreeSet<TreeId> = lost.chunks.values().map(|place| place.tree).collect();
    whole.retain(|tree| !lacking.contains(tree) && !lost.manifests.contains(tree));
    Ok(names_without(entries, &whole))
}

/// For `tests/fuzz`: any bytes as a backup, whose blobs are put into a store that is removed afterwards.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_any(bytes: &[u8], packs: &LocalPacks, believing: bool) -> bool {
    let Ok(reader) = ParcelReader::begin(bytes, FORMAT, WHAT) else { return false };
    let mut reader = if believing { reader.believing() } else { reader };
    if facts(&mut reader).is_err() {
        return false;
    }
    let mut taking = Taking::new(packs);
    loop {
        match reader.next() {
            Ok(Some((kind, body))) if taking.frame(kind, body).is_ok() => {}
            Ok(None) => return taking.finished().is_ok(),
            _ => return false,
        }
    }
}
