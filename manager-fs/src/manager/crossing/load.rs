//! Taking a saved file in: verified as it is read, and nothing visible before all of it was.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use proto::bulk::Encoding;
use proto::limits::{CHUNK_BYTES_MAX, MANIFEST_BYTES_MAX, RECORD_BYTES_MAX};
use proto::record::RecordFault;
use proto::{ChunkId, GenerationRecord, Manifest, PublisherKey, SignedRecord, TreeId, codec};

use super::{
    CHUNK, CHUNK_HEAD_BYTES, CrossingError, FACTS, FORMAT, Facts, MANIFEST, ManifestHead, PIECE, RECORD, RECORDS_MAX,
    RELIED_MAX, WHAT,
};
use crate::manager::monitor::{Monitor, Task};
use crate::manager::parcel::{FRAME_BYTES_MAX, PIECE_BYTES, ParcelFault, ParcelReader};
use crate::manager::store::{ChunkTaker, PublishGuard, Store, StoreError, StoredChunk};

/// Generations whose trees lie in the store now, durably, and that nobody sees yet.
pub(crate) struct Received {
    /// As the other side's publisher signed them, in the order in which it did.
    pub(crate) records: Vec<GenerationRecord>,
    /// Chunks that were new here.
    pub(crate) new_chunks: u64,
    /// Their stored bytes.
    pub(crate) stored_bytes: u64,
    /// Keeps `gc` away until the records are committed.
    pub(crate) guard: PublishGuard,
}

/// Reads a file whose records one of these publishers signed. Chunks that are here already are passed over, so that what
/// was broken off goes on.
///
/// # Errors
/// See [`CrossingError`]; nothing has become visible. Chunks that were taken by then stay until `gc`.
pub(crate) fn receive(
    store: &Store,
    file: &Path,
    trusted: &[PublisherKey],
    monitor: &dyn Monitor,
    cancelled: &AtomicBool,
) -> Result<Received, CrossingError> {
    if !file.is_absolute() {
        return Err(CrossingError::Relative(file.to_path_buf()));
    }
    let from = File::open(file).map_err(CrossingError::io(file))?;
    let total = from.metadata().map_err(CrossingError::io(file))?.len();
    let reader = ParcelReader::begin(BufReader::with_capacity(PIECE_BYTES, from), FORMAT, WHAT);
    let reader = reader.map_err(|fault| CrossingError::File { path: file.to_path_buf(), fault })?;
    let guard = store.guard();
    let taken = read(reader, &mut Taking::new(store, &guard, trusted), &|at| {
        monitor.progress(Task::Copy, at, total);
        !cancelled.load(Ordering::Relaxed)
    });
    let (records, new_chunks, stored_bytes) = taken.map_err(|why| why.of(file))?;
    Ok(Received { records, new_chunks, stored_bytes, guard })
}

type Taken = (Vec<GenerationRecord>, u64, u64);

fn read(
    mut reader: ParcelReader<impl Read>,
    taking: &mut Taking<'_>,
    go_on: &dyn Fn(u64) -> bool,
) -> Result<Taken, Refused> {
    loop {
        if !go_on(reader.at()) {
            return Err(Refused::Cancelled);
        }
        let at = reader.at();
        let Some((kind, body)) = reader.next()? else { break };
        taking.frame(kind, body).map_err(|refused| refused.at(at))?;
    }
    let at = reader.at();
    taking.finish().map_err(|refused| refused.at(at))
}

/// Why a frame was not taken.
enum Refused {
    /// It is not what such a file has; for people.
    Fault(String),
    File(ParcelFault),
    Publisher(String),
    ReliesOn(TreeId),
    Lacks(usize, ChunkId),
    Cancelled,
    Store(StoreError),
}

impl Refused {
    fn at(self, at: u64) -> Self {
        match self {
            Refused::Fault(fault) => Refused::File(ParcelFault::Damaged { at, fault }),
            other => other,
        }
    }

    fn of(self, path: &Path) -> CrossingError {
        let path = path.to_path_buf();
        match self {
            Refused::Fault(fault) => CrossingError::File { path, fault: ParcelFault::Damaged { at: 0, fault } },
            Refused::File(fault) => CrossingError::File { path, fault },
            Refused::Publisher(publisher) => CrossingError::Publisher { path, publisher },
            Refused::ReliesOn(tree) => CrossingError::ReliesOn { path, tree },
            Refused::Lacks(chunks, first) => CrossingError::Lacks { path, chunks, first },
            Refused::Cancelled => CrossingError::Cancelled,
            Refused::Store(error) => CrossingError::Store(error),
        }
    }
}

impl From<ParcelFault> for Refused {
    fn from(fault: ParcelFault) -> Self {
        Self::File(fault)
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

fn fault<T>(text: impl Into<String>) -> Result<T, Refused> {
    Err(Refused::Fault(text.into()))
}

/// Something that comes in pieces.
enum Coming {
    Record,
    Manifest(TreeId),
}

/// What was taken so far.
struct Taking<'a> {
    store: &'a Store,
    guard: &'a PublishGuard,
    trusted: &'a [PublisherKey],
    facts: Option<Facts>,
    coming: Option<(Coming, u64, Vec<u8>)>,
    records: Vec<GenerationRecord>,
    manifests: BTreeMap<TreeId, Vec<u8>>,
    /// Chunks of the manifests, whether they are here or not; once the manifests are complete.
    wanted: Option<HashSet<ChunkId>>,
    /// Those of them that are not here yet.
    lacking: HashSet<ChunkId>,
    taker: ChunkTaker<'a>,
}

impl<'a> Taking<'a> {
    fn new(store: &'a Store, guard: &'a PublishGuard, trusted: &'a [PublisherKey]) -> Self {
        Self {
            store,
            guard,
            trusted,
            facts: None,
            coming: None,
            records: Vec::new(),
            manifests: BTreeMap::new(),
            wanted: None,
            lacking: HashSet::new(),
            taker: store.taker(guard),
        }
    }

    fn frame(&mut self, kind: u8, body: &[u8]) -> Result<(), Refused> {
        match kind {
            PIECE => self.piece(body),
            _ if self.coming.is_some() => fault("something ends before its length"),
            FACTS if self.facts.is_none() => self.begin(body),
            _ if self.facts.is_none() => fault("it does not begin with what it is"),
            RECORD if self.manifests.is_empty() && self.records.len() < self.records_wanted() => {
                let bytes = decode::<u64>(body)?;
                self.begin_piece(Coming::Record, bytes, RECORD_BYTES_MAX)
            }
            MANIFEST if self.wanted.is_none() => self.manifest(body),
            CHUNK => self.chunk(body),
            _ => fault(format!("a frame of kind {kind} where none may be")),
        }
    }

    fn records_wanted(&self) -> usize {
        self.facts.as_ref().map_or(0, |facts| facts.records as usize)
    }

    fn begin(&mut self, body: &[u8]) -> Result<(), Refused> {
        let facts = decode::<Facts>(body)?;
        if !(1..=RECORDS_MAX).contains(&(facts.records as usize)) || facts.relies_on.len() > RELIED_MAX {
            return fault("it has no records, or more than one file may have");
        }
        // Before anything large is read.
        for tree in &facts.relies_on {
            self.guard_tree(tree)?;
        }
        self.facts = Some(facts);
        Ok(())
    }

    /// Sees to it that a tree is here and stays while this goes on.
    fn guard_tree(&self, tree: &TreeId) -> Result<(), Refused> {
        let missing = self.store.packs_of(&BTreeSet::from([*tree]), self.guard)?.missing;
        if missing == 0 { Ok(()) } else { Err(Refused::ReliesOn(*tree)) }
    }

    fn manifest(&mut self, body: &[u8]) -> Result<(), Refused> {
        let ManifestHead { tree, bytes } = decode(body)?;
        if self.records.len() != self.records_wanted() {
            return fault("a record is missing");
        }
        let record = self.records.iter().find(|record| record.tree == tree);
        match record {
            Some(record) if record.manifest_bytes == bytes && !self.manifests.contains_key(&tree) => {
                self.begin_piece(Coming::Manifest(tree), bytes, MANIFEST_BYTES_MAX)
            }
            _ => fault("a manifest that no record names, or that is there twice"),
        }
    }

    fn begin_piece(&mut self, what: Coming, bytes: u64, bytes_max: usize) -> Result<(), Refused> {
        if bytes == 0 || bytes > bytes_max as u64 {
            return fault("something is longer than it may be, or empty");
        }
        self.coming = Some((what, bytes, Vec::new()));
        Ok(())
    }

    fn piece(&mut self, piece: &[u8]) -> Result<(), Refused> {
        let Some((what, bytes, mut whole)) = self.coming.take() else { return fault("a piece of nothing") };
        whole.extend_from_slice(piece);
        if whole.len() as u64 > bytes {
            return fault("something goes on after its end");
        }
        if (whole.len() as u64) < bytes {
            self.coming = Some((what, bytes, whole));
            return Ok(());
        }
        match what {
            Coming::Record => self.record(&whole),
            Coming::Manifest(tree) if TreeId::of(&whole) == tree => {
                self.manifests.insert(tree, whole);
                Ok(())
            }
            Coming::Manifest(tree) => fault(format!("the manifest of tree {tree} has another hash")),
        }
    }

    fn record(&mut self, signed: &[u8]) -> Result<(), Refused> {
        let verified = SignedRecord::from_bytes(signed).and_then(|signed| signed.verify(self.trusted));
        let record = match verified {
            Err(RecordFault::UnknownPublisher(publisher)) => return Err(Refused::Publisher(publisher)),
            Err(wrong) => return fault(format!("a record: {wrong}")),
            Ok(record) => record,
        };
        let same = |known: &GenerationRecord| {
            known.name() == record.name() && known.metadata.architecture == record.metadata.architecture
        };
        if self.records.iter().any(same) {
            return fault(format!("the record of {} is there twice", record.name()));
        }
        self.records.push(record);
        Ok(())
    }

    /// What the manifests need, once all of them are there.
    fn complete_manifests(&mut self) -> Result<(), Refused> {
        if self.wanted.is_some() {
            return Ok(());
        }
        let trees: BTreeSet<TreeId> = self.records.iter().map(|record| record.tree).collect();
        if self.facts.is_none() || self.records.len() != self.records_wanted() || trees.len() != self.manifests.len()
        {
            return fault("a record or a manifest is missing");
        }
        let mut wanted = HashSet::new();
        for (tree, bytes) in &self.manifests {
            let manifest = Manifest::decode(bytes, tree);
            let manifest = manifest.or_else(|wrong| fault(format!("the manifest of tree {tree}: {wrong}")))?;
            wanted.extend(manifest.objects.iter().flat_map(|object| &object.chunks).copied());
        }
        let store = self.store;
        self.lacking = wanted.iter().filter(|chunk| !store.pin(chunk, self.guard)).copied().collect();
        self.wanted = Some(wanted);
        Ok(())
    }

    fn chunk(&mut self, body: &[u8]) -> Result<(), Refused> {
        self.complete_manifests()?;
        let Some((head, stored)) = body.split_first_chunk::<CHUNK_HEAD_BYTES>() else {
            return fault("a chunk has no head");
        };
        let [.., p0, p1, p2, p3, code] = *head;
        let mut id = [0; 32];
        id.copy_from_slice(&head[..32]);
        let (id, plain_bytes) = (ChunkId::from_bytes(id), u32::from_le_bytes([p0, p1, p2, p3]));
        let Some(encoding) = Encoding::from_code(code) else { return fault("a chunk is stored in an unknown way") };
        if !(1..=CHUNK_BYTES_MAX).contains(&plain_bytes) || !(1..=plain_bytes as usize).contains(&stored.len()) {
            return fault("a chunk's size is out of range");
        }
        if !self.wanted.as_ref().is_some_and(|wanted| wanted.contains(&id)) {
            return fault(format!("chunk {id} belongs to none of its generations"));
        }
        if !self.lacking.contains(&id) {
            return Ok(());
        }
        let chunk = StoredChunk { encoding, plain_bytes, bytes: stored.to_vec() };
        let plain = chunk.clone().plain(&id).or_else(|wrong| fault(format!("chunk {id}: {wrong}")))?;
        if plain.len() != plain_bytes as usize {
            return fault(format!("chunk {id} has another length"));
        }
        self.taker.take(id, &chunk)?;
        self.lacking.remove(&id);
        Ok(())
    }

    /// After the end: all is here, durably.
    fn finish(&mut self) -> Result<Taken, Refused> {
        if self.coming.is_some() {
            return fault("something ends before its length");
        }
        self.complete_manifests()?;
        self.taker.finish()?;
        if let Some(first) = self.lacking.iter().min() {
            return Err(Refused::Lacks(self.lacking.len(), *first));
        }
        for (tree, bytes) in &self.manifests {
            self.store.put_manifest(tree, bytes, self.guard)?;
        }
        let mut records = std::mem::take(&mut self.records);
        records.sort_by_key(|record| record.sequence);
        Ok((records, self.taker.chunks, self.taker.bytes))
    }
}

fn decode<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    codec::decode::<T, FRAME_BYTES_MAX>(body).or_else(|error| fault(error.to_string()))
}

/// For `tests/fuzz`: any bytes as a saved file.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_any(bytes: &[u8], store: &Store, trusted: &[PublisherKey], believing: bool) -> bool {
    let Ok(reader) = ParcelReader::begin(bytes, FORMAT, WHAT) else { return false };
    let reader = if believing { reader.believing() } else { reader };
    let guard = store.guard();
    read(reader, &mut Taking::new(store, &guard, trusted), &|_| true).is_ok()
}
