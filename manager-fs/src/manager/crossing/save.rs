//! Writing generations into a file that is carried by hand. Broken off, it goes on where it was: what is in `FILE.part`
//! and still right is left as it is.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proto::{ChunkId, GenerationRef, Manifest, TreeId, codec};
use serde::{Deserialize, Serialize};

use super::have::BYTES_MAX;
use super::{
    CHUNK, CHUNK_HEAD_BYTES, CrossingError, FACTS, FORMAT, Facts, Have, HaveFault, MANIFEST, ManifestHead, PIECE,
    RECORD, RECORDS_MAX, RELIED_MAX, WHAT,
};
use crate::manager::control::generations::Generation;
use crate::manager::monitor::{Monitor, Task};
use crate::manager::parcel::{PIECE_BYTES, ParcelReader, ParcelWriter, Place};
use crate::manager::store::{Store, StoreError, StoredChunk};
use crate::moments::{self, Moment};
use crate::version;

/// What an operator wants saved, and where to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Of a version, all architectures.
    pub generations: Vec<GenerationRef>,
    /// Absolute path of a file that is not there yet, as raw bytes.
    pub file: Vec<u8>,
    /// Absolute path of what the other side has; nothing: it has nothing.
    pub have: Option<Vec<u8>>,
}

/// What is in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Length of the file, bytes.
    pub bytes: u64,
    /// Names of the generations; of an architecture that came to a version later with that.
    pub generations: Vec<String>,
    /// Who signed them, hex: what the other side is told with `--publisher`.
    pub publishers: BTreeSet<String>,
    /// Chunks that are in it.
    pub chunks: u64,
    /// Chunks that the other side has.
    pub left_out: u64,
    /// What the trees are called that the other side must have, as it calls them.
    pub relies_on: Vec<String>,
    /// Trees that the other side has and that this side does not know: they save nothing.
    pub unknown: u64,
    /// Bytes that were in the file from an earlier try.
    pub resumed_bytes: u64,
}

/// Saves generations.
///
/// # Errors
/// See [`CrossingError`]. What was written stays as `FILE.part`, and the next try goes on there.
pub(crate) fn save(
    store: &Store,
    generations: &[Arc<Generation>],
    (file, have): (&Path, Option<&Path>),
    monitor: &dyn Monitor,
    cancelled: &AtomicBool,
) -> Result<Saved, CrossingError> {
    if let Some(path) = [Some(file), have].into_iter().flatten().find(|path| !path.is_absolute()) {
        return Err(CrossingError::Relative(path.to_path_buf()));
    }
    if fs::symlink_metadata(file).is_ok() {
        return Err(CrossingError::Exists(file.to_path_buf()));
    }
    if generations.len() > RECORDS_MAX {
        return Err(CrossingError::TooMany(generations.len()));
    }
    let have = have.map(read_have).transpose()?.unwrap_or_default();
    let guard = store.guard();
    let mut content = Content::of(store, generations, &have)?;
    // What is copied is not collected meanwhile.
    store.packs_of(&content.manifests.keys().copied().collect(), &guard)?;
    let mut out = Out::open(file)?;
    content.report.resumed_bytes = write(store, &content, &mut out, monitor, cancelled)?;
    let mut report = content.report;
    report.bytes = out.end(file)?;
    Ok(report)
}

fn read_have(path: &Path) -> Result<Have, CrossingError> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(BYTES_MAX + 1).read_to_end(&mut text));
    read.map_err(CrossingError::io(path))?;
    let wrong = |fault| CrossingError::Have { path: path.to_path_buf(), fault };
    if text.len() as u64 > BYTES_MAX {
        return Err(wrong(HaveFault::CutOff));
    }
    Have::parse(&String::from_utf8_lossy(&text)).map_err(wrong)
}

/// What goes into a file, in its order: the same whenever the same is saved for the same side.
struct Content {
    facts: Facts,
    records: Vec<Vec<u8>>,
    manifests: BTreeMap<TreeId, Vec<u8>>,
    chunks: Vec<ChunkId>,
    report: Saved,
}

impl Content {
    fn of(store: &Store, generations: &[Arc<Generation>], have: &Have) -> Result<Self, CrossingError> {
        let mut report = Saved::default();
        // Which of the trees that the other side has holds a chunk.
        let mut theirs: BTreeMap<ChunkId, TreeId> = BTreeMap::new();
        for tree in have.trees.keys() {
            match store.tree(tree) {
                Ok(manifest) => theirs.extend(chunks_of(&manifest).map(|chunk| (*chunk, *tree))),
                Err(StoreError::Missing { .. } | StoreError::Damaged { .. }) => report.unknown += 1,
                Err(error) => return Err(error.into()),
            }
        }
        let mut records: Vec<&Arc<Generation>> = generations.iter().collect();
        records.sort_by_key(|generation| generation.record.sequence);
        records.dedup_by_key(|generation| generation.record.sequence);
        let (mut manifests, mut chunks) = (BTreeMap::new(), Vec::new());
        let (mut seen, mut relied) = (HashSet::new(), BTreeSet::new());
        for generation in &records {
            report.generations.push(generation.full_name());
            report.publishers.extend(publisher_of(generation));
            let tree = generation.record.tree;
            let missing = || StoreError::Missing { what: format!("manifest {tree}") };
            let manifest = store.tree(&tree)?;
            manifests.insert(tree, store.manifest(&tree)?.ok_or_else(missing)?);
            for chunk in chunks_of(&manifest).filter(|chunk| seen.insert(**chunk)) {
                match theirs.get(chunk) {
                    Some(tree) => {
                        report.left_out += 1;
                        relied.insert(*tree);
                    }
                    None => chunks.push(*chunk),
                }
            }
        }
        if relied.len() > RELIED_MAX {
            return Err(CrossingError::TooMany(relied.len()));
        }
        report.chunks = chunks.len() as u64;
        report.relies_on = relied.iter().filter_map(|tree| have.trees.get(tree).cloned()).collect();
        let facts = Facts {
            software: version::VERSION.to_owned(),
            records: proto::width::count(records.len()),
            relies_on: relied.into_iter().collect(),
        };
        let records = records.into_iter().map(|generation| generation.signed.clone()).collect();
        Ok(Self { facts, records, manifests, chunks, report })
    }
}

fn chunks_of(manifest: &Manifest) -> impl Iterator<Item = &ChunkId> {
    manifest.objects.iter().flat_map(|object| &object.chunks)
}

fn publisher_of(generation: &Generation) -> Option<String> {
    let signed = proto::SignedRecord::from_bytes(&generation.signed).ok()?;
    Some(blake3::Hash::from_bytes(signed.publisher).to_hex().to_string())
}

/// Writes all of it; returns how many bytes were there already.
fn write(
    store: &Store,
    content: &Content,
    out: &mut Out,
    monitor: &dyn Monitor,
    cancelled: &AtomicBool,
) -> Result<u64, CrossingError> {
    out.value(FACTS, &content.facts)?;
    for signed in &content.records {
        out.whole(RECORD, &(signed.len() as u64), signed)?;
    }
    for (tree, bytes) in &content.manifests {
        out.whole(MANIFEST, &ManifestHead { tree: *tree, bytes: bytes.len() as u64 }, bytes)?;
    }
    let total = content.chunks.len() as u64;
    for (done, id) in (0..).zip(&content.chunks) {
        if cancelled.load(Ordering::Relaxed) {
            out.stop()?;
            return Err(CrossingError::Cancelled);
        }
        monitor.progress(Task::Chunks, done, total);
        out.put(
            CHUNK,
            |body| body.starts_with(id.as_bytes()),
            || {
                let missing = || StoreError::Missing { what: format!("chunk {id}") };
                Ok(chunk_frame(id, &store.chunk(id)?.ok_or_else(missing)?))
            },
        )?;
    }
    out.kept()
}

fn chunk_frame(id: &ChunkId, chunk: &StoredChunk) -> Vec<u8> {
    let mut body = Vec::with_capacity(CHUNK_HEAD_BYTES + chunk.bytes.len());
    body.extend_from_slice(id.as_bytes());
    body.extend_from_slice(&chunk.plain_bytes.to_le_bytes());
    body.push(chunk.encoding.code());
    body.extend_from_slice(&chunk.bytes);
    body
}

/// `FILE.part`: compared as long as it is what would be written, and written from there on.
struct Out {
    path: PathBuf,
    file: File,
    state: OutState,
    kept: u64,
}

enum OutState {
    Comparing(ParcelReader<BufReader<File>>),
    Writing(ParcelWriter<BufWriter<File>>),
}

impl Out {
    fn open(file: &Path) -> Result<Self, CrossingError> {
        let mut name = file.as_os_str().to_owned();
        name.push(".part");
        let path = PathBuf::from(name);
        let opened = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path);
        let mut file = opened.map_err(CrossingError::io(&path))?;
        let again = file.try_clone().map_err(CrossingError::io(&path))?;
        let state = match ParcelReader::begin(BufReader::new(again), FORMAT, WHAT) {
            Ok(reader) => OutState::Comparing(reader),
            Err(_) => {
                let to = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.try_clone());
                let writer = to.and_then(|to| ParcelWriter::begin(buffered(to), FORMAT));
                OutState::Writing(writer.map_err(CrossingError::io(&path))?)
            }
        };
        Ok(Self { path, file, state, kept: 0 })
    }

    fn value<T: Serialize>(&mut self, kind: u8, value: &T) -> Result<(), CrossingError> {
        let body = codec::encode(value).map_err(|error| CrossingError::io(&self.path)(io::Error::other(error)))?;
        self.put(kind, |found| found == body, || Ok(body.clone()))
    }

    fn whole<T: Serialize>(&mut self, kind: u8, head: &T, bytes: &[u8]) -> Result<(), CrossingError> {
        self.value(kind, head)?;
        let mut pieces = bytes.chunks(PIECE_BYTES);
        pieces.try_for_each(|piece| self.put(PIECE, |found| found == piece, || Ok(piece.to_vec())))
    }

    fn put(
        &mut self,
        kind: u8,
        is_it: impl Fn(&[u8]) -> bool,
        make: impl FnOnce() -> Result<Vec<u8>, CrossingError>,
    ) -> Result<(), CrossingError> {
        if let OutState::Comparing(reader) = &mut self.state {
            let good = reader.place();
            if reader.next().is_ok_and(|next| next.is_some_and(|(found, body)| found == kind && is_it(body))) {
                return Ok(());
            }
            self.go_on(good)?;
        }
        let body = make()?;
        match &mut self.state {
            OutState::Writing(writer) => writer.frame(kind, &[&body]).map_err(CrossingError::io(&self.path)),
            OutState::Comparing(_) => Ok(()),
        }
    }

    /// From here on it is written.
    fn go_on(&mut self, place: Place) -> Result<(), CrossingError> {
        self.kept = place.at();
        let file = &mut self.file;
        let to =
            file.set_len(place.at()).and_then(|()| file.seek(io::SeekFrom::End(0))).and_then(|_| file.try_clone());
        let to = to.map_err(CrossingError::io(&self.path))?;
        self.state = OutState::Writing(ParcelWriter::resume(buffered(to), place));
        Ok(())
    }

    /// How much of it was there; after the last frame.
    fn kept(&mut self) -> Result<u64, CrossingError> {
        if let OutState::Comparing(reader) = &self.state {
            let place = reader.place();
            self.go_on(place)?;
        }
        Ok(self.kept)
    }

    /// Leaves what was written for the next try.
    fn stop(&mut self) -> Result<(), CrossingError> {
        match &mut self.state {
            OutState::Writing(writer) => writer.flush().map_err(CrossingError::io(&self.path)),
            OutState::Comparing(_) => Ok(()),
        }
    }

    /// The end, and its name; returns its bytes.
    fn end(self, to: &Path) -> Result<u64, CrossingError> {
        let Self { path, file, state, .. } = self;
        let OutState::Writing(writer) = state else { return Ok(0) };
        let (mut buffer, bytes) = writer.end().map_err(CrossingError::io(&path))?;
        buffer.flush().map_err(CrossingError::io(&path))?;
        let directory = to.parent().unwrap_or(Path::new("/"));
        let put = moments::reach(Moment::SavedPut, to);
        put.and_then(|()| file.sync_all())
            .and_then(|()| fs::hard_link(&path, to))
            .and_then(|()| fs::remove_file(&path))
            .and_then(|()| File::open(directory)?.sync_all())
            .map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => CrossingError::Exists(to.to_path_buf()),
                _ => CrossingError::io(to)(error),
            })?;
        Ok(bytes)
    }
}

fn buffered(file: File) -> BufWriter<File> {
    BufWriter::with_capacity(PIECE_BYTES, file)
}

/// For tests and `tests/fuzz`: a file of this record, manifest and chunk.
#[cfg(any(test, fuzzing))]
pub(crate) fn sample(signed: &[u8], manifest: &[u8], chunk: (&ChunkId, &StoredChunk)) -> Vec<u8> {
    let made = || -> io::Result<Vec<u8>> {
        let encoded = |value: Result<Vec<u8>, codec::CodecError>| value.map_err(io::Error::other);
        let mut writer = ParcelWriter::begin(Vec::new(), FORMAT)?;
        let facts = Facts { software: String::from("0.1.0"), records: 1, relies_on: Vec::new() };
        writer.frame(FACTS, &[&encoded(codec::encode(&facts))?])?;
        writer.frame(RECORD, &[&encoded(codec::encode(&(signed.len() as u64)))?])?;
        writer.frame(PIECE, &[signed])?;
        let head = ManifestHead { tree: TreeId::of(manifest), bytes: manifest.len() as u64 };
        writer.frame(MANIFEST, &[&encoded(codec::encode(&head))?])?;
        writer.frame(PIECE, &[manifest])?;
        writer.frame(CHUNK, &[&chunk_frame(chunk.0, chunk.1)])?;
        Ok(writer.end()?.0)
    };
    made().unwrap_or_default()
}
