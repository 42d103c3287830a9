//! Makes every object of a tree local, in the background.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proto::limits::CHUNKS_PER_REQUEST_MAX;
use proto::manifest::{Manifest, Object};
use proto::width;
use proto::{ObjectId, TreeId};

use super::flight::{Departed, Flight, FlightState, Leg};
use super::retry::Retry;
use super::{FetchError, Fetcher, Urgency, Wanted, has};
use crate::clock::Clock;
use crate::host::cache::{CacheError, Partial, Place};

/// How a tree is made local.
#[derive(Debug, Clone, Copy)]
pub struct HydrateOptions {
    /// At most so many bytes a second (plain); `None` for as fast as it goes.
    pub bytes_per_second_max: Option<u64>,
    /// How long to go on trying while the manager cannot be reached.
    pub patience: Duration,
    /// Wait before each request until nothing has been demanded for this long; `None` for work that somebody waits for.
    pub quiet: Option<Duration>,
}

impl Default for HydrateOptions {
    fn default() -> Self {
        Self { bytes_per_second_max: None, patience: Duration::from_secs(60), quiet: None }
    }
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HydrateProgress {
    /// Bytes of objects that are whole and local.
    pub local_bytes: u64,
    /// Bytes of all objects.
    pub object_bytes: u64,
}

/// Plain bytes of one background request: long enough to be cheap, short enough that a demand read which finds its
/// chunk in it need not ask itself.
const BATCH_BYTES: u64 = 4 << 20;

/// A busy host still gets one background request in this time.
const QUIET_PATIENCE: Duration = Duration::from_secs(10);

/// Objects of one batch: each has two descriptors open until it is whole.
const BATCH_OBJECTS: usize = 64;
/// A paced fetch looks this often whether it is still wanted.
const LOOK_FOR_CANCEL: Duration = Duration::from_millis(50);

struct Pending<'a> {
    object: &'a Object,
    partial: Arc<Partial>,
    missing: Vec<u32>,
}

impl Fetcher {
    /// Fetches every object of a tree that is not local, verifies and keeps it. Blocks; call it from a thread of its own.
    ///
    /// # Errors
    /// `cancel` was set, the manager stayed unreachable, or the cache cannot hold the tree.
    pub fn make_local(
        self: &Arc<Self>,
        tree: &TreeId,
        manifest: &Manifest,
        options: HydrateOptions,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(HydrateProgress),
    ) -> Result<(), FetchError> {
        let object_bytes = manifest.object_bytes();
        let mut local_bytes = self.cache.local_bytes(manifest);
        progress(HydrateProgress { local_bytes, object_bytes });
        let mut todo = manifest.objects.iter().filter(|object| !self.cache.is_local(object)).peekable();
        let begun = self.clock().now();
        let mut fetched_bytes = 0;
        while todo.peek().is_some() {
            let mut batch = Vec::new();
            let (mut bytes, mut chunks) = (0, 0);
            let room = |bytes: u64, chunks: usize, objects: usize| {
                bytes < BATCH_BYTES && chunks < CHUNKS_PER_REQUEST_MAX && objects < BATCH_OBJECTS
            };
            while let Some(object) = todo.next_if(|_| room(bytes, chunks, batch.len())) {
                if let Some(pending) = self.pending(manifest, object)? {
                    bytes += object.bytes;
                    chunks += object.chunks.len();
                    batch.push(pending);
                }
            }
            fetched_bytes += self.fetch_batch(tree, manifest, &mut batch, options, cancel, &mut |fetched| {
                pace(self.clock(), options.bytes_per_second_max, begun, fetched_bytes + fetched, cancel);
                // What has come is not local before its objects are hashed and renamed: until then one byte is missing.
                let local_bytes = (local_bytes + fetched).min(object_bytes.saturating_sub(1));
                progress(HydrateProgress { local_bytes, object_bytes });
            })?;
            let partials: Vec<_> = batch.iter().map(|pending| pending.partial.clone()).collect();
            self.cache.finish(&partials)?;
            local_bytes += bytes;
            progress(HydrateProgress { local_bytes: local_bytes.min(object_bytes), object_bytes });
        }
        match manifest.objects.iter().find(|object| !self.cache.is_local(object)) {
            Some(object) => Err(self.did_not_stay(object.id)),
            None => {
                progress(HydrateProgress { local_bytes: object_bytes, object_bytes });
                Ok(())
            }
        }
    }

    /// Waits until nothing has been started or demanded for `quiet`; a busy host waits no longer than ten seconds.
    pub fn wait_until_quiet(&self, quiet: Duration, cancel: &AtomicBool) {
        self.starts.wait_until_quiet(quiet, QUIET_PATIENCE, cancel);
    }

    /// The same, but no longer than until a start of this tree misses what a delta would bring; whether it does.
    pub fn wait_until_quiet_or_missed(&self, tree: &TreeId, quiet: Duration, cancel: &AtomicBool) -> bool {
        self.starts.wait_until_quiet_or_missed(tree, quiet, QUIET_PATIENCE, cancel)
    }

    fn pending<'a>(&self, manifest: &Manifest, object: &'a Object) -> Result<Option<Pending<'a>>, FetchError> {
        match self.cache.place(object, manifest.chunk_bytes)? {
            Place::Local(_) => Ok(None),
            Place::Partial(partial) => Ok(Some(Pending { object, partial, missing: Vec::new() })),
        }
    }

    /// Fetches what is missing of a batch, in requests of at most [`BATCH_BYTES`]; returns the bytes fetched.
    fn fetch_batch(
        &self,
        tree: &TreeId,
        manifest: &Manifest,
        batch: &mut [Pending<'_>],
        options: HydrateOptions,
        cancel: &AtomicBool,
        paced: &mut dyn FnMut(u64),
    ) -> Result<u64, FetchError> {
        let per_request =
            width::index((BATCH_BYTES / u64::from(manifest.chunk_bytes)).clamp(1, CHUNKS_PER_REQUEST_MAX as u64));
        let mut retry = Retry::new(self.clock(), self.clock().now() + options.patience);
        let mut fetched = 0;
        loop {
            if cancel.load(Ordering::Relaxed) {
                return Err(FetchError::Cancelled);
            }
            if let Some(quiet) = options.quiet {
                self.wait_until_quiet(quiet, cancel);
            }
            let mut room = per_request;
            for pending in batch.iter_mut() {
                let wanted = Wanted::of(tree, manifest, pending.object);
                let missing = (0..width::count(pending.object.chunks.len()))
                    .filter(|i| !has(Some(&pending.partial), wanted, *i));
                pending.missing = missing.take(room).collect();
                room -= pending.missing.len();
            }
            if room == per_request {
                return Ok(fetched);
            }
            match self.fetch_once(tree, manifest, batch, options) {
                Ok(bytes) => {
                    fetched += bytes;
                    paced(fetched);
                    retry = Retry::new(self.clock(), self.clock().now() + options.patience);
                }
                Err(error @ FetchError::Cache(_)) => return Err(error),
                Err(error) => retry.pause(error)?,
            }
        }
    }

    fn fetch_once(
        &self,
        tree: &TreeId,
        manifest: &Manifest,
        batch: &[Pending<'_>],
        options: HydrateOptions,
    ) -> Result<u64, FetchError> {
        let mut departed: Vec<(&Pending<'_>, Departed<'_>)> = Vec::new();
        let mut theirs: Vec<Arc<Flight>> = Vec::new();
        for pending in batch.iter().filter(|pending| !pending.missing.is_empty()) {
            let wanted = Wanted::of(tree, manifest, pending.object);
            let (mine, others) = self.depart(wanted, Some(&pending.partial), &pending.missing, Urgency::Background);
            departed.push((pending, mine));
            theirs.extend(others.into_iter().map(|(_, flight)| flight));
        }
        let legs: Vec<Leg<'_>> = departed
            .iter()
            .filter(|(_, mine)| !mine.flights.is_empty())
            .map(|(pending, mine)| Leg {
                wanted: Wanted::of(tree, manifest, pending.object),
                partial: Some(&pending.partial),
                flights: &mine.flights,
            })
            .collect();
        let deadline = self.clock().now() + options.patience;
        let flown = if legs.is_empty() { Ok(()) } else { self.fly(tree, &legs, Urgency::Background, deadline) };
        departed.iter().for_each(|(_, mine)| mine.come_down());
        for flight in theirs {
            flight.wait(self.clock(), deadline);
        }
        let mut bytes = 0;
        for leg in &legs {
            for (index, flight) in leg.flights {
                match flight.wait(self.clock(), self.clock().now()) {
                    FlightState::Stored => bytes += u64::from(leg.wanted.chunk_len(*index)),
                    FlightState::Bytes(_) => return Err(self.did_not_stay(leg.wanted.object.id)),
                    FlightState::InAir | FlightState::Lost => {}
                }
            }
        }
        flown.map(|()| bytes)
    }

    fn did_not_stay(&self, object: ObjectId) -> FetchError {
        match self.cache.usage().quota_bytes {
            Some(quota_bytes) => CacheError::OverQuota { quota_bytes }.into(),
            None => CacheError::Io {
                what: format!("keep object {object}"),
                source: std::io::Error::other("the disk is full or read-only, or the object was removed meanwhile"),
            }
            .into(),
        }
    }
}

/// Sleeps until `fetched` bytes are no more than the rate allows.
pub(super) fn pace(clock: &Clock, rate: Option<u64>, begun: Instant, fetched: u64, cancel: &AtomicBool) {
    let Some(rate) = rate.filter(|rate| *rate > 0) else { return };
    let due = begun + Duration::from_millis(fetched.saturating_mul(1000) / rate);
    while clock.now() < due && !cancel.load(Ordering::Relaxed) {
        clock.rest(clock.left(due).min(LOOK_FOR_CANCEL));
    }
}
