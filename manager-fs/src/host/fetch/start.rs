//! Starts under way: everything that a program touches first, as one answer, before it touches it.
//!
//! ```text
//! attach, exec ──begin──> one request ──> manifest ──> index: what will come ──> frames ──> verified pages ──> cache
//!                                                        readers of these wait ──────────────────┘
//! ```
//! A reader of a page that is on its way waits for it; any other asks for its chunk on the connection for demands,
//! which overtakes. Whatever goes wrong here costs nothing but time: what is missing is fetched as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use proto::bundle::Origin;
use proto::manifest::{Manifest, Object};
use proto::proof::{PAGE_BYTES, PageSet};
use proto::width;
use proto::{GenerationRef, TreeId};

use super::awaited::{Expected, ManifestState, Pace};
use super::coming::Coming;
use super::{ArrivedRange, Fetcher, StartWanted, UpstreamError, Wanted};
use crate::host::bundle::{BundleError, OldTree, Reader};
use crate::host::cache::{Partial, Place};
use crate::sync::{lock, wait_for};

/// A reader that waits for a page of a bundle asks itself after this time: the page may be far behind in the stream.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long the whole answer may take.
const DEADLINE: Duration = Duration::from_secs(120);
/// A start that nobody has recorded is watched this long, if it is not said to have ended before.
const WATCH: Duration = Duration::from_secs(30);
/// Misses of a start that is known from another tree: so many are strays, in files of which the bundle had the rest
/// (`docs/decisions.md`). One that misses more is another start than was recorded.
const STRAYS_MAX: u32 = 12;
/// The same of one that was only guessed.
const GUESS_STRAYS_MAX: u32 = 6;
/// What an answer takes while nothing is known of the network, and what it takes beside the network.
const ANSWER: Duration = Duration::from_millis(100);
const ANSWER_MORE: Duration = Duration::from_millis(5);
/// So many misses show that a bundle does not have what a start wants, and that the delta is worth its bytes now.
const MISSES: u32 = 2;
/// How often one who waits for quiet looks whether it is no longer wanted.
const LOOK: Duration = Duration::from_millis(50);

/// What is being started now.
#[derive(Default)]
pub(super) struct Starts {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    under_way: Vec<Start>,
    next: u64,
    /// When something was last wanted at once.
    last_demand: Option<Instant>,
    /// Trees of which the manager does not know what their start touches.
    unrecorded: BTreeSet<TreeId>,
    /// Until when a start is watched.
    watched_until: Option<Instant>,
    /// How many misses of a tree are still strays, which bring nothing of what lies around them.
    strays: BTreeMap<TreeId, u32>,
    /// Misses of trees that a delta would bring, since somebody waits to fetch that.
    missed: BTreeMap<TreeId, u32>,
    /// Trees of which all that is missing is on its way, and by how many fetches.
    on_their_way: BTreeMap<TreeId, u32>,
}

/// All that is missing of a tree is on its way ([`Starts::coming`]).
pub(super) struct OnItsWay<'s> {
    starts: &'s Starts,
    tree: TreeId,
}

/// However the fetch ends: what misses after that is telling again.
impl Drop for OnItsWay<'_> {
    fn drop(&mut self) {
        let mut state = self.starts.lock();
        if let Some(fetches) = state.on_their_way.get_mut(&self.tree) {
            *fetches -= 1;
            if *fetches == 0 {
                state.on_their_way.remove(&self.tree);
            }
        }
    }
}

pub(super) struct Start {
    number: u64,
    generation: GenerationRef,
    /// Known from the beginning, or by the first bytes.
    pub(super) tree: Option<TreeId>,
    pub(super) manifest: ManifestState,
    /// Pages that will come; `None` before the index is here.
    pub(super) expected: Option<Expected>,
    pub(super) pace: Pace,
}

impl Starts {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) fn change(&self, number: u64, change: impl FnOnce(&mut Start)) {
        if let Some(start) = self.lock().under_way.iter_mut().find(|start| start.number == number) {
            change(start);
        }
        self.changed.notify_all();
    }

    fn begin(&self, generation: &GenerationRef, tree: Option<TreeId>, with_manifest: bool) -> Option<u64> {
        let mut state = self.lock();
        let same = |start: &Start| start.generation == *generation || (tree.is_some() && start.tree == tree);
        if state.under_way.iter().any(same) {
            return None;
        }
        state.next += 1;
        let (number, generation) = (state.next, generation.clone());
        let manifest = if with_manifest { ManifestState::Awaited } else { ManifestState::Elsewhere };
        state.under_way.push(Start { number, generation, tree, manifest, expected: None, pace: Pace::default() });
        Some(number)
    }

    fn end(&self, number: u64) {
        let mut state = self.lock();
        state.under_way.retain(|start| start.number != number);
        state.last_demand = Some(Instant::now());
        drop(state);
        self.changed.notify_all();
    }

    /// The manifest of a tree that is being started, waited for; `None` when no start brings it.
    pub(super) fn manifest(&self, tree: &TreeId, deadline: Instant) -> Option<Manifest> {
        let mut state = self.lock();
        loop {
            let may_be = |start: &&Start| start.tree.is_none_or(|known| known == *tree);
            let start = state.under_way.iter().find(may_be)?;
            match &start.manifest {
                ManifestState::Here(manifest) => return Some(manifest.as_ref().clone()),
                ManifestState::Elsewhere => return None,
                ManifestState::Awaited => {}
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            state = wait_for(&self.changed, state, left);
        }
    }

    /// Waits for bytes that are on their way; `true` when they are here.
    pub(super) fn bring(
        &self,
        wanted: Wanted<'_>,
        partial: &Partial,
        offset: u64,
        len: usize,
        (answer, deadline): (Option<Duration>, Instant),
    ) -> bool {
        let answer = answer.map_or(ANSWER, |answer| answer + ANSWER_MORE);
        let until = deadline.min(Instant::now() + PATIENCE);
        let mut state = self.lock();
        loop {
            // Under the lock: what arrives is in the cache before it is no longer expected.
            if partial.has_range(wanted.object, offset, len) {
                return true;
            }
            let start = state.under_way.iter().find(|start| start.tree.as_ref() == Some(wanted.tree));
            let at = start.and_then(|start| Some((start, start.will_bring(wanted, partial, offset, len)?)));
            if !at.is_some_and(|(start, at)| start.pace.is_near(at, answer)) {
                return false;
            }
            let Some(left) = until.checked_duration_since(Instant::now()) else { return false };
            state = wait_for(&self.changed, state, left);
        }
    }

    /// A bundle comes of which it is known so what is touched.
    pub(super) fn come(&self, tree: TreeId, origin: Origin) {
        let mut state = self.lock();
        if origin != Origin::Recorded {
            state.unrecorded.insert(tree);
            state.watched_until = Some(Instant::now() + WATCH);
        }
        match origin {
            Origin::Carried => drop(state.strays.insert(tree, STRAYS_MAX)),
            Origin::Recorded | Origin::Guessed => drop(state.strays.remove(&tree)),
        }
    }

    /// A guess comes that has most of what a start touches: what it has not is here and there.
    pub(super) fn come_long(&self, tree: TreeId) {
        self.lock().strays.insert(tree, GUESS_STRAYS_MAX);
    }

    /// Whether a miss of this tree says something of what will be wanted next: not when the rest of the tree is on its way,
    /// and not when the start is known from another tree and misses here and there.
    pub(super) fn is_telling(&self, tree: &TreeId) -> bool {
        let mut state = self.lock();
        // While a guess comes, what lies around a miss may be in it.
        let is_coming = |start: &Start| start.tree.as_ref() == Some(tree) && start.pace.is_guess;
        if state.on_their_way.contains_key(tree) || state.under_way.iter().any(is_coming) {
            return false;
        }
        match state.strays.get_mut(tree) {
            Some(left @ 1..) => {
                *left -= 1;
                false
            }
            _ => true,
        }
    }

    /// All that is missing of a tree is on its way, for as long as the result lives.
    pub(super) fn coming(&self, tree: &TreeId) -> OnItsWay<'_> {
        *self.lock().on_their_way.entry(*tree).or_default() += 1;
        OnItsWay { starts: self, tree: *tree }
    }

    /// Something was asked for that somebody waits for.
    pub(super) fn note_demand(&self, tree: &TreeId) {
        let mut state = self.lock();
        state.last_demand = Some(Instant::now());
        if let Some(missed) = state.missed.get_mut(tree) {
            *missed += 1;
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Whether it is being recorded what a start touches. Nobody sees who reads a local object.
    pub(super) fn is_watched(&self) -> bool {
        self.lock().watched_until.is_some_and(|until| Instant::now() < until)
    }

    /// Waits until nothing has been started or demanded for `quiet`, at most for `patience`.
    pub(super) fn wait_until_quiet(&self, quiet: Duration, patience: Duration, cancel: &AtomicBool) {
        self.wait(quiet, patience, cancel, |_| false);
    }

    /// The same, but no longer than until a start of this tree has missed [`MISSES`] times; whether it has.
    pub(super) fn wait_until_quiet_or_missed(
        &self,
        tree: &TreeId,
        quiet: Duration,
        patience: Duration,
        cancel: &AtomicBool,
    ) -> bool {
        let has_missed = |state: &State| state.missed.get(tree).is_some_and(|missed| *missed >= MISSES);
        self.lock().missed.insert(*tree, 0);
        self.wait(quiet, patience, cancel, has_missed);
        let mut state = self.lock();
        let missed = has_missed(&state);
        state.missed.remove(tree);
        missed
    }

    fn wait(&self, quiet: Duration, patience: Duration, cancel: &AtomicBool, enough: impl Fn(&State) -> bool) {
        let until = Instant::now() + patience;
        let mut state = self.lock();
        while Instant::now() < until && !cancel.load(Ordering::Relaxed) && !enough(&state) {
            let is_quiet = state.last_demand.is_none_or(|last| last.elapsed() >= quiet);
            if is_quiet && state.under_way.is_empty() {
                return;
            }
            state = wait_for(&self.changed, state, LOOK);
        }
    }
}

/// A start that has begun, and ends with this.
struct UnderWay<'s> {
    starts: &'s Starts,
    number: u64,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.starts.end(self.number);
    }
}

impl Start {
    /// When every page of the range that is not here has come: after how many bytes of the frames; `None`: some will not.
    fn will_bring(&self, wanted: Wanted<'_>, partial: &Partial, offset: u64, len: usize) -> Option<u64> {
        let Some(expected) = &self.expected else { return Some(0) };
        let page_bytes = u64::from(PAGE_BYTES);
        let per_chunk = u64::from(wanted.chunk_bytes) / page_bytes;
        (offset / page_bytes..(offset + len as u64).div_ceil(page_bytes)).try_fold(0, |at, page| {
            let start = (page * page_bytes).max(offset);
            let here = || partial.has_range(wanted.object, start, width::index((page + 1) * page_bytes - start));
            let coming = expected.get(&(wanted.object.id, width::count(page / per_chunk)));
            let mut sets = coming.into_iter().flatten();
            match sets.find(|(set, _)| set.contains(width::count(page % per_chunk))) {
                Some((_, comes)) => Some(at.max(*comes)),
                None => here().then_some(at),
            }
        })
    }
}

impl Fetcher {
    /// Whether the manager wants to know what the start of a tree touches; true once for each time that it said so.
    pub fn take_unrecorded(&self, tree: &TreeId) -> bool {
        self.starts.lock().unrecorded.remove(tree)
    }

    /// What an unrecorded start touches is known: objects may become local again.
    pub fn learned(self: &Arc<Self>) {
        self.starts.lock().watched_until = None;
        self.finish_complete();
    }

    /// Asks for everything that a start of a generation needs, in a thread of its own; once, however often it is called
    /// meanwhile. `from` is a tree of which every object is local; `program` is what was typed, if anything.
    pub fn begin(
        self: &Arc<Self>,
        generation: &GenerationRef,
        tree: Option<TreeId>,
        from: Option<TreeId>,
        program: Option<&str>,
    ) {
        let manifest = tree.as_ref().and_then(|tree| self.cache.manifest(tree));
        let Some(number) = self.starts.begin(generation, tree, manifest.is_none()) else { return };
        let (fetcher, generation, program) = (Arc::clone(self), generation.clone(), program.map(str::to_owned));
        let work = move || {
            let _under_way = UnderWay { starts: &fetcher.starts, number };
            fetcher.start(number, &generation, (tree, manifest), from, program.as_deref());
        };
        if let Err(error) = std::thread::Builder::new().name("start".into()).stack_size(512 << 10).spawn(work) {
            tracing::warn!(%error, "no thread for a start-up bundle");
            self.starts.end(number);
        }
    }

    fn start(
        self: &Arc<Self>,
        number: u64,
        generation: &GenerationRef,
        (tree, manifest): (Option<TreeId>, Option<Manifest>),
        from: Option<TreeId>,
        program: Option<&str>,
    ) {
        let with_manifest = manifest.is_none();
        let old = from.and_then(|from| {
            let bytes = std::fs::read(self.cache.manifest_path(&from)).ok()?;
            OldTree::new(from, bytes).ok()
        });
        let from = from.filter(|_| old.is_some());
        let reader = Reader::new(old, manifest);
        let mut coming = Coming::new(self, number, tree, reader);
        let deadline = Instant::now() + DEADLINE;
        self.counters.requests.add(1);
        let wanted = StartWanted { generation, from: from.as_ref(), with_manifest, program };
        let result = self.upstream.start(wanted, deadline, &mut |bytes| {
            self.counters.wire_bytes.add(bytes.len() as u64);
            self.counters.bundle_bytes.add(bytes.len() as u64);
            coming.take(bytes);
        });
        match (coming.failed, result) {
            (Some(error @ (BundleError::WrongHash { .. } | BundleError::Manifest(_))), _) => {
                self.wrong_hash(format!("start-up bundle of {generation}: {error}"));
            }
            (Some(error), _) => tracing::warn!(%generation, %error, "the start-up bundle is not used"),
            (None, Err(error @ (UpstreamError::NotExported(_) | UpstreamError::Unavailable(_)))) => {
                tracing::debug!(%generation, %error, "no start-up bundle");
            }
            (None, Err(error)) => tracing::warn!(%generation, %error, "no start-up bundle"),
            (None, Ok(())) => {}
        }
    }

    /// Keeps verified pages of one chunk; returns where they are, when the cache took them.
    pub(super) fn keep_pages(
        self: &Arc<Self>,
        object: &Object,
        chunk_bytes: u32,
        index: u32,
        set: &PageSet,
        plain: &[u8],
    ) -> Vec<ArrivedRange> {
        self.counters.bundle_plain_bytes.add(plain.len() as u64);
        let Ok(Place::Partial(partial)) = self.cache.place(object, chunk_bytes) else { return Vec::new() };
        let whole = object.chunk_len(index, chunk_bytes) == Some(width::count(plain.len()));
        let kept = if whole {
            self.cache.put_chunk(&partial, index, plain)
        } else {
            self.cache.put_pages(&partial, index, set, plain)
        };
        if partial.is_complete() {
            self.finish_soon(&partial);
        }
        let start = u64::from(index) * u64::from(chunk_bytes);
        let page = u64::from(PAGE_BYTES);
        let ranges = set.runs().into_iter().map(|run| {
            let offset = start + u64::from(run.first) * page;
            let bytes = (u64::from(run.count) * page).min(object.bytes - offset);
            ArrivedRange { object: object.id, offset, bytes }
        });
        ranges.filter(|_| kept).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strays_of_a_start_that_is_known_from_another_tree_tell_nothing() {
        let (starts, tree) = (Starts::default(), TreeId::of(b"tree"));
        let telling = |count: u32| (0..count).filter(|_| starts.is_telling(&tree)).count();
        assert_eq!(telling(3), 3, "nothing is known of it");
        starts.come(tree, Origin::Carried);
        assert_eq!((telling(STRAYS_MAX), telling(2)), (0, 2), "another start than was recorded");
        starts.come(tree, Origin::Carried);
        starts.come(tree, Origin::Guessed);
        assert_eq!(telling(1), 1);
        starts.come_long(tree);
        assert_eq!(telling(GUESS_STRAYS_MAX + 1), 1);
        let (one, another) = (starts.coming(&tree), starts.coming(&tree));
        drop(one);
        assert_eq!(telling(3), 0, "all that is missing is on its way");
        drop(another);
        assert_eq!(telling(1), 1);
    }

    #[test]
    fn of_a_guess_only_what_comes_sooner_than_an_answer_is_waited_for() {
        let since = Instant::now().checked_sub(Duration::from_millis(100));
        let mut pace = Pace { since, bytes: 1_000_000, front: 100_000, is_guess: true };
        let near =
            |pace: &Pace| [900_000, 1_100_000, 3_000_000].map(|at| pace.is_near(at, Duration::from_millis(25)));
        assert_eq!(near(&pace), [true, true, false]);
        pace.is_guess = false;
        assert_eq!(near(&pace), [true; 3], "what was recorded is wanted");
    }

    #[test]
    fn a_fetch_that_breaks_off_leaves_nothing_on_its_way() {
        let (starts, tree) = (Starts::default(), TreeId::of(b"tree"));
        let broken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _coming = starts.coming(&tree);
            panic!("a fault of the fetch");
        }));
        assert!(broken.is_err());
        assert!(starts.is_telling(&tree));
        let begun = starts.begin(&"p@1".parse().unwrap(), Some(tree), true).unwrap();
        let broken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _under_way = UnderWay { starts: &starts, number: begun };
            panic!("a fault of the start");
        }));
        assert!(broken.is_err());
        assert!(starts.lock().under_way.is_empty(), "its readers would wait for every page");
    }
}
