//! Bytes on demand: joins duplicate requests, batches, retries, verifies, hands over.
//!
//! ```text
//! read(object, range) ──> missing chunks ──┬─ in flight elsewhere: wait for them
//!                                          └─ mine: one upstream request ──> decode ──> BLAKE3 = chunk id? ──> cache
//! ```
//! Nothing is written to the cache or handed to a reader before its hash is the chunk id of the verified manifest.
//! All calls block and are made from threads; none is made with a lock held.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proto::bulk::{ChunkHead, Encoding};
use proto::id::ChunkId;
use proto::limits::{CHUNKS_PER_REQUEST_MAX, READ_DEADLINE_MS};
use proto::manifest::{Manifest, Object};
use proto::message::ChunkRange;
use proto::width;
use proto::{ObjectId, TreeId};

use super::cache::{Cache, CacheError, Look, Partial, Place, VerifyReport};
use crate::clock::Clock;
use crate::metrics::{Durations, durations};
use crate::sync::lock;
use around::Around;
use assemble::{assemble, chunk_range};
use counts::Counters;
use flight::{Departed, Flight, FlightKey, FlightState, Leg};
use latency::Latency;
use outage::Outage;
use retry::Retry;
use start::Starts;
use wrong::{ChunkFault, WrongChunk};

mod after_read;
mod around;
mod assemble;
mod awaited;
mod coming;
mod counts;
mod error;
mod flight;
mod from_old;
mod hydrate;
mod latency;
mod outage;
mod retry;
#[cfg(test)]
mod schedules;
mod start;
#[cfg(test)]
mod tests;
mod upstream;
mod watched;
mod wrong;

pub use counts::FetchCounts;
pub use error::FetchError;
pub use from_old::{FromOldOptions, TreeRef};
pub use hydrate::{HydrateOptions, HydrateProgress};

pub use upstream::{StartWanted, Upstream, UpstreamError, Urgency};
pub use watched::Watched;

/// How bytes are fetched.
#[derive(Clone)]
pub struct FetchOptions {
    /// How long one read may take before it fails with `EIO`.
    pub read_deadline: Duration,
    /// Largest read-ahead for a sequential reader, bytes; 0 switches it off.
    pub read_ahead_bytes_max: u64,
    /// Told what came with a wrong hash, to be reported to the manager.
    pub on_wrong_hash: Arc<dyn Fn(String) + Send + Sync>,
    /// Told which pages of a tree's start-up bundle can be read now. Must not block.
    pub on_arrived: Arc<ArrivalSink>,
    /// By which reads, retries and background fetches are timed.
    pub clock: Clock,
}

/// Told of a tree what has arrived of it.
pub type ArrivalSink = dyn Fn(&TreeId, Vec<ArrivedRange>) + Send + Sync;

/// Bytes that have arrived ahead of any reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArrivedRange {
    /// The object whose bytes they are.
    pub object: ObjectId,
    /// Where in the object they begin, bytes.
    pub offset: u64,
    /// How many bytes from there on.
    pub bytes: u64,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            read_deadline: Duration::from_millis(READ_DEADLINE_MS),
            read_ahead_bytes_max: 4 << 20,
            on_wrong_hash: Arc::new(|what| tracing::error!(%what, "wrong hash")),
            on_arrived: Arc::new(|_, _| ()),
            clock: Clock::system(),
        }
    }
}

/// Fetches what is missing into a [`Cache`], or past it.
pub struct Fetcher {
    upstream: Arc<dyn Upstream>,
    cache: Arc<Cache>,
    options: FetchOptions,
    flights: Mutex<HashMap<FlightKey, Arc<Flight>>>,
    starts: Starts,
    around: Around,
    latency: Latency,
    outage: Outage,
    counters: Counters,
    waits: Durations<1>,
    ahead: super::pool::Pool,
    /// Complete objects that wait to be made local, together.
    complete: Mutex<Vec<Arc<Partial>>>,
}

/// A demand that finds its chunk in a background request waits at most this long before it asks itself.
const BACKGROUND_PATIENCE: Duration = Duration::from_millis(200);
/// One object of one tree.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// In which exported tree.
    pub tree: &'a TreeId,
    /// The tree's chunk size.
    pub chunk_bytes: u32,
    /// The object, with its chunk ids.
    pub object: &'a Object,
}

impl<'a> Wanted<'a> {
    /// An object of a manifest.
    pub fn of(tree: &'a TreeId, manifest: &'a Manifest, object: &'a Object) -> Self {
        Self { tree, chunk_bytes: manifest.chunk_bytes, object }
    }

    fn key(&self, index: u32) -> FlightKey {
        (self.object.id, self.chunk_bytes, index)
    }

    fn chunk_len(&self, index: u32) -> u32 {
        self.object.chunk_len(index, self.chunk_bytes).unwrap_or(0)
    }
}

impl Fetcher {
    /// A fetcher that fills `cache` from `upstream`.
    pub fn new(upstream: Arc<dyn Upstream>, cache: Arc<Cache>, options: FetchOptions) -> Arc<Self> {
        Arc::new(Self {
            upstream,
            cache,
            options,
            flights: Mutex::default(),
            starts: Starts::default(),
            around: Around::default(),
            latency: Latency::default(),
            outage: Outage::default(),
            counters: Counters::default(),
            waits: durations("result", ["arrived", "failed"].map(str::to_owned)),
            ahead: super::pool::Pool::new("ahead", 2, 64),
            complete: Mutex::default(),
        })
    }

    /// The cache that is filled.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// How long one read may take.
    pub fn read_deadline(&self) -> Duration {
        self.options.read_deadline
    }

    fn clock(&self) -> &Clock {
        &self.options.clock
    }

    /// What was fetched since start.
    pub fn counts(&self) -> FetchCounts {
        self.counters.now()
    }

    /// How long reads waited that found something missing, seconds by how they ended.
    pub(crate) fn waits(&self) -> &Durations<1> {
        &self.waits
    }

    /// The manifest of an exported tree: from the cache, else fetched, verified and kept.
    ///
    /// # Errors
    /// It cannot be had within the deadline, or is not the tree's.
    pub fn manifest(&self, tree: &TreeId, deadline: Instant) -> Result<Manifest, FetchError> {
        if let Some(manifest) = self.cache.manifest(tree) {
            return Ok(manifest);
        }
        if let Some(manifest) = self.starts.manifest(tree, deadline) {
            return Ok(manifest);
        }
        // A start that ended between the two looks has left it here.
        if let Some(manifest) = self.cache.manifest(tree) {
            return Ok(manifest);
        }
        let what = || format!("manifest of {tree}");
        let mut retry = Retry::new(self.clock(), deadline);
        loop {
            let error = match self.upstream.manifest(tree, deadline) {
                Ok(bytes) => match Manifest::decode(&bytes, tree) {
                    Ok(manifest) => {
                        self.counters.wire_bytes.add(bytes.len() as u64);
                        if let Err(error) = self.cache.put_manifest(tree, &bytes) {
                            tracing::warn!(%error, "the manifest is not kept");
                        }
                        return Ok(manifest);
                    }
                    Err(fault) => {
                        self.wrong_hash(format!("manifest of tree {tree}: {fault}"));
                        FetchError::WrongHash { what: what() }
                    }
                },
                Err(source) => FetchError::Upstream { what: what(), source },
            };
            retry.pause(error)?;
            self.counters.retries.add(1);
        }
    }

    /// Bytes `offset..offset+len` of an object, less what lies past its end, if no fetch is needed for them.
    pub fn read_present(&self, wanted: Wanted<'_>, offset: u64, len: u32) -> Option<io::Result<Vec<u8>>> {
        let len = len_within(wanted.object, offset, len);
        if len == 0 {
            return Some(Ok(Vec::new()));
        }
        let mut bytes = vec![0; len];
        match self.cache.place_at_once(wanted.object, wanted.chunk_bytes)? {
            Place::Local(file) => Some(file.read_exact_at(&mut bytes, offset).map(|()| bytes)),
            Place::Partial(partial) => {
                let here = partial.has_range(wanted.object, offset, len);
                here.then(|| partial.read_at(&mut bytes, offset).map(|()| bytes))
            }
        }
    }

    /// Bytes `offset..offset+len` of an object, less what lies past its end, fetched where they are missing.
    ///
    /// # Errors
    /// They cannot be had within the deadline; the reader gets `EIO`.
    pub fn read(
        self: &Arc<Self>,
        wanted: Wanted<'_>,
        offset: u64,
        len: u32,
        deadline: Instant,
    ) -> Result<Vec<u8>, FetchError> {
        let wanted_len = len_within(wanted.object, offset, len);
        if wanted_len == 0 {
            return Ok(Vec::new());
        }
        let place = self.cache.place(wanted.object, wanted.chunk_bytes).ok();
        let partial = match place {
            Some(Place::Local(file)) => {
                let mut bytes = vec![0; wanted_len];
                return match file.read_exact_at(&mut bytes, offset) {
                    Ok(()) => Ok(bytes),
                    Err(e) => {
                        Err(CacheError::Io { what: format!("read object {}", wanted.object.id), source: e }.into())
                    }
                };
            }
            Some(Place::Partial(partial)) => Some(partial),
            None => None,
        };
        if let Some(partial) = &partial
            && self.starts.bring(wanted, partial, offset, wanted_len, (self.first_answer(), deadline))
        {
            return assemble(wanted, Some(partial), &[], &HashMap::new(), offset, wanted_len);
        }
        self.starts.note_demand(wanted.tree);
        self.fetch_around(wanted, offset);
        tracing::debug!(object = %wanted.object.id, offset, len, "demanded");
        let chunks: Vec<u32> = chunk_range(offset, wanted_len, wanted.chunk_bytes).collect();
        let began = self.clock().now();
        let deadline = self.outage.deadline(&wanted.object.id, offset, began, deadline);
        let fetched = self.fetch_all(wanted, partial.as_deref(), &chunks, deadline);
        self.waited(began, fetched.is_ok());
        let held = fetched.inspect_err(|error| {
            if error.is_for_want_of_time() {
                self.outage.note(&wanted.object.id, offset, wanted_len as u64, self.clock().now());
            }
        })?;
        let bytes = assemble(wanted, partial.as_deref(), &chunks, &held, offset, wanted_len)?;
        if let Some(partial) = partial {
            self.after_read(wanted, &partial, offset, wanted_len as u64);
        }
        Ok(bytes)
    }

    fn waited(&self, since: Instant, arrived: bool) {
        let (took, result) = (self.clock().now() - since, if arrived { "arrived" } else { "failed" });
        self.waits.get_or_create(&[("result", result.to_owned())]).observe(took.as_secs_f64());
    }

    /// Gets every listed chunk; returns those that the cache did not take.
    fn fetch_all(
        &self,
        wanted: Wanted<'_>,
        partial: Option<&Partial>,
        chunks: &[u32],
        deadline: Instant,
    ) -> Result<HashMap<u32, Arc<Vec<u8>>>, FetchError> {
        let mut held = HashMap::new();
        let mut retry = Retry::new(self.clock(), deadline);
        loop {
            let missing: Vec<u32> =
                chunks.iter().copied().filter(|i| !held.contains_key(i) && !has(partial, wanted, *i)).collect();
            if missing.is_empty() {
                return Ok(held);
            }
            let (mine, theirs) = self.depart(wanted, partial, &missing, Urgency::Demand);
            let fetched = if mine.flights.is_empty() {
                Ok(())
            } else {
                self.fly(wanted.tree, &[Leg { wanted, partial, flights: &mine.flights }], Urgency::Demand, deadline)
            };
            mine.come_down();
            self.counters.joined.add(theirs.len() as u64);
            for (index, flight) in mine.flights.iter().chain(&theirs) {
                let patience = match flight.urgency {
                    Urgency::Demand => deadline,
                    Urgency::Background => deadline.min(self.clock().now() + BACKGROUND_PATIENCE),
                };
                match flight.wait(self.clock(), patience) {
                    FlightState::Bytes(bytes) => {
                        held.insert(*index, bytes);
                    }
                    FlightState::InAir if flight.urgency == Urgency::Background => {
                        self.abandon(wanted.key(*index), flight)
                    }
                    FlightState::InAir | FlightState::Stored | FlightState::Lost => {}
                }
            }
            if let Err(error) = fetched {
                retry.pause(error)?;
                self.counters.retries.add(1);
            } else {
                retry.check(|| format!("object {}", wanted.object.id))?;
            }
        }
    }

    /// Divides missing chunks into those that this thread now has to fetch and those that are on their way.
    fn depart(
        &self,
        wanted: Wanted<'_>,
        partial: Option<&Partial>,
        missing: &[u32],
        urgency: Urgency,
    ) -> (Departed<'_>, Vec<(u32, Arc<Flight>)>) {
        let mut mine = Departed {
            fetcher: self,
            object: wanted.object.id,
            chunk_bytes: wanted.chunk_bytes,
            flights: Vec::new(),
        };
        let mut theirs = Vec::new();
        let mut flights = lock(&self.flights);
        for index in missing {
            if let Some(flight) = flights.get(&wanted.key(*index)) {
                theirs.push((*index, flight.clone()));
            } else if !has(partial, wanted, *index) && mine.flights.len() < CHUNKS_PER_REQUEST_MAX {
                let flight = Arc::new(Flight::new(urgency));
                flights.insert(wanted.key(*index), flight.clone());
                mine.flights.push((*index, flight));
            }
        }
        (mine, theirs)
    }

    /// A demand takes a chunk over from a background request that is too slow; whichever arrives first counts.
    fn abandon(&self, key: FlightKey, flight: &Arc<Flight>) {
        let mut flights = lock(&self.flights);
        if flights.get(&key).is_some_and(|current| Arc::ptr_eq(current, flight)) {
            flights.remove(&key);
        }
    }

    /// One request for the chunks of one or more objects of a tree; lands every flight that arrives verified.
    fn fly(&self, tree: &TreeId, legs: &[Leg<'_>], urgency: Urgency, deadline: Instant) -> Result<(), FetchError> {
        let mut wants: Vec<ChunkRange> = Vec::new();
        let mut order: Vec<(&Leg<'_>, u32, &Arc<Flight>)> = Vec::new();
        for leg in legs {
            for (index, flight) in leg.flights {
                order.push((leg, *index, flight));
                match wants.last_mut() {
                    Some(range) if range.object == leg.wanted.object.id && range.first + range.count == *index => {
                        range.count += 1;
                    }
                    _ => wants.push(ChunkRange { object: leg.wanted.object.id, first: *index, count: 1 }),
                }
            }
        }
        self.counters.requests.add(1);
        let (mut asked, mut wrong) = (Some(self.clock().now()), None);
        let result = self.upstream.chunks(tree, &wants, urgency, deadline, &mut |head, stored| {
            self.answered(&mut asked);
            let Some((leg, index, flight)) = order.get(head.sequence as usize) else { return };
            match self.receive(leg, *index, head, stored) {
                Ok(state) => flight.land(state),
                Err(fault) => {
                    self.wrong_hash(fault.to_string());
                    wrong = Some(fault);
                }
            }
        });
        let what = || format!("{} chunks of tree {tree}", order.len());
        match (result, wrong) {
            (_, Some(fault)) => Err(FetchError::WrongHash { what: fault.to_string() }),
            (Err(source), None) => Err(FetchError::Upstream { what: what(), source }),
            (Ok(()), None) if order.iter().all(|(_, _, flight)| flight.has_landed()) => Ok(()),
            (Ok(()), None) => {
                let source = UpstreamError::Failed("it left out chunks that were asked for".into());
                Err(FetchError::Upstream { what: what(), source })
            }
        }
    }

    /// Decodes and verifies one chunk, then stores it.
    fn receive(
        &self,
        leg: &Leg<'_>,
        index: u32,
        head: ChunkHead,
        stored: Vec<u8>,
    ) -> Result<FlightState, WrongChunk> {
        let wanted = leg.wanted;
        let plain_len = wanted.chunk_len(index);
        let wrong = |fault| WrongChunk { object: wanted.object.id, index, fault };
        self.counters.wire_bytes.add(stored.len() as u64);
        if head.plain_bytes != plain_len {
            return Err(wrong(ChunkFault::Length));
        }
        let plain = match head.encoding {
            Encoding::Raw => stored,
            Encoding::Zstd => zstd::bulk::decompress(&stored, plain_len as usize)
                .map_err(|error| wrong(ChunkFault::Encoding(error)))?,
        };
        let id = wanted.object.chunks.get(index as usize);
        if id != Some(&ChunkId::of(&plain)) || plain.len() != plain_len as usize {
            return Err(wrong(ChunkFault::Hash));
        }
        self.counters.chunks.add(1);
        self.counters.plain_bytes.add(u64::from(plain_len));
        match leg.partial {
            Some(partial) if self.cache.put_chunk(partial, index, &plain) => Ok(FlightState::Stored),
            _ => Ok(FlightState::Bytes(Arc::new(plain))),
        }
    }

    /// [`Cache::verify_local`] of objects of a tree, with what was found wrong reported.
    pub fn verify_local<'o>(
        &self,
        tree: TreeRef<'_>,
        objects: impl IntoIterator<Item = &'o Object>,
        look: Look,
        cancel: &AtomicBool,
    ) -> VerifyReport {
        let report = self.cache.verify_local(objects, tree.manifest.chunk_bytes, look, cancel);
        for object in &report.wrong {
            self.wrong_hash(format!("local object {object} of tree {}", tree.id));
        }
        report
    }

    fn wrong_hash(&self, what: String) {
        self.counters.wrong_hashes.add(1);
        (self.options.on_wrong_hash)(what);
    }
}

fn has(partial: Option<&Partial>, wanted: Wanted<'_>, index: u32) -> bool {
    let id = wanted.object.chunks.get(index as usize);
    partial.zip(id).is_some_and(|(partial, id)| partial.has(index, id))
}

fn len_within(object: &Object, offset: u64, len: u32) -> usize {
    width::index(object.bytes.saturating_sub(offset).min(u64::from(len)))
}
