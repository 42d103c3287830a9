//! What is fetched around a miss that no bundle foresaw.
//!
//! Page faults come one after the other, each where the last one's code led: asking for what they want alone costs a
//! round trip a fault. So each miss also brings what lies around it, in the file and in the files that follow by path, and
//! misses that come close upon each other bring twice as much each time. Where a round trip costs next to nothing, only the
//! file itself: most of its neighbours are never wanted, and each costs a file of the cache.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proto::manifest::{Manifest, NodeKind};
use proto::width;
use proto::{ObjectId, TreeId};

use super::flight::Leg;
use super::{Fetcher, Urgency, Wanted, has};
use crate::host::cache::{Partial, Place};
use crate::sync::lock;

/// Bytes around a first miss, and the most around any.
const WINDOW_BYTES_MIN: u64 = 256 << 10;
const WINDOW_BYTES_MAX: u64 = 4 << 20;
/// A miss that comes later than this after the last one is a first one again.
const RECENT: Duration = Duration::from_secs(2);
/// What lies before a miss is this part of its window.
const BEFORE: u64 = 4;
/// Objects of one request: each has two descriptors open until it is whole.
const OBJECTS_MAX: usize = 64;
/// An answer that comes within this time costs less than what would be fetched to save it (`docs/decisions.md`).
const QUICK: Duration = Duration::from_millis(1);
/// Trees whose order is remembered.
const TREES_MAX: usize = 4;

/// How much is fetched around misses now.
#[derive(Default)]
pub(super) struct Around {
    state: Mutex<State>,
    orders: Mutex<HashMap<TreeId, Arc<Order>>>,
}

#[derive(Default)]
struct State {
    window_bytes: u64,
    last: Option<Instant>,
}

/// A manifest with its objects in the order of their paths.
struct Order {
    manifest: Manifest,
    objects: Vec<u32>,
    places: HashMap<ObjectId, usize>,
}

/// How many objects to take of, in the order of paths, the one that was missed included.
fn objects_max(first_answer: Option<Duration>) -> usize {
    if first_answer.is_some_and(|took| took < QUICK) { 1 } else { OBJECTS_MAX }
}

impl Around {
    /// Bytes to fetch around a miss that happens now.
    fn grow(&self, now: Instant) -> u64 {
        let mut state = lock(&self.state);
        let recent = state.last.is_some_and(|last| now - last < RECENT);
        state.last = Some(now);
        state.window_bytes = if recent {
            (state.window_bytes * 2).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX)
        } else {
            WINDOW_BYTES_MIN
        };
        state.window_bytes
    }

    fn order(&self, tree: &TreeId, manifest: impl FnOnce() -> Option<Manifest>) -> Option<Arc<Order>> {
        let mut orders = lock(&self.orders);
        if let Some(order) = orders.get(tree) {
            return Some(Arc::clone(order));
        }
        if orders.len() >= TREES_MAX {
            orders.clear();
        }
        let order = Arc::new(Order::of(manifest()?));
        orders.insert(*tree, Arc::clone(&order));
        Some(order)
    }
}

impl Order {
    fn of(manifest: Manifest) -> Self {
        let (mut objects, mut places) = (Vec::new(), HashMap::new());
        for entry in &manifest.entries {
            let NodeKind::File(id) = manifest.node(entry).kind else { continue };
            if let (Some(at), false) = (manifest.object_index(&id), places.contains_key(&id)) {
                places.insert(id, objects.len());
                objects.push(width::count(at));
            }
        }
        Self { manifest, objects, places }
    }

    /// Chunks around byte `offset` of an object, then those of the objects after it, nearest first; of at most so many
    /// objects.
    fn around(&self, object: &ObjectId, offset: u64, window_bytes: u64, objects_max: usize) -> Vec<(u32, u32)> {
        let chunk = u64::from(self.manifest.chunk_bytes);
        let Some(place) = self.places.get(object) else { return Vec::new() };
        let (mut left, mut chunks) = (window_bytes, Vec::new());
        let mut start = offset.saturating_sub(window_bytes / BEFORE) / chunk;
        for at in self.objects.iter().skip(*place).take(objects_max) {
            let object = &self.manifest.objects[*at as usize];
            for index in start..object.chunks.len() as u64 {
                if left == 0 {
                    return chunks;
                }
                chunks.push((*at, width::count(index)));
                left = left.saturating_sub(chunk.min(object.bytes - index * chunk));
            }
            start = 0;
        }
        chunks
    }
}

impl Fetcher {
    /// Fetches what lies around a miss, in the background. The miss itself is asked for by its reader.
    pub(super) fn fetch_around(self: &Arc<Self>, wanted: Wanted<'_>, offset: u64) {
        if self.options.read_ahead_bytes_max == 0 || !self.starts.is_telling(wanted.tree) {
            return;
        }
        let (window_bytes, objects_max) = (self.around.grow(self.clock().now()), objects_max(self.first_answer()));
        let (fetcher, tree, object) = (Arc::clone(self), *wanted.tree, wanted.object.id);
        self.ahead.run(move || {
            let order = fetcher.around.order(&tree, || fetcher.cache.manifest(&tree));
            if let Some(order) = order {
                let chunks = order.around(&object, offset, window_bytes, objects_max);
                fetcher.fetch_listed(&tree, &order.manifest, &chunks);
            }
        });
    }

    /// Fetches chunks (object, index) that are neither here nor on their way, in one background request.
    fn fetch_listed(self: &Arc<Self>, tree: &TreeId, manifest: &Manifest, chunks: &[(u32, u32)]) {
        let mut departed: Vec<(Wanted<'_>, Arc<Partial>, _)> = Vec::new();
        for run in chunks.chunk_by(|a, b| a.0 == b.0) {
            let wanted = Wanted::of(tree, manifest, &manifest.objects[run[0].0 as usize]);
            let Ok(Place::Partial(partial)) = self.cache.place(wanted.object, manifest.chunk_bytes) else { continue };
            let missing: Vec<u32> =
                run.iter().map(|(_, index)| *index).filter(|index| !has(Some(&partial), wanted, *index)).collect();
            let (mine, _) = self.depart(wanted, Some(&partial), &missing, Urgency::Background);
            if !mine.flights.is_empty() {
                departed.push((wanted, partial, mine));
            }
        }
        let legs: Vec<Leg<'_>> = departed
            .iter()
            .map(|(wanted, partial, mine)| Leg { wanted: *wanted, partial: Some(partial), flights: &mine.flights })
            .collect();
        if !legs.is_empty() {
            // It only saves time; what did not come is asked for by whoever wants it.
            let _ = self.fly(tree, &legs, Urgency::Background, self.clock().now() + self.options.read_deadline);
        }
        drop(legs);
        for (_, partial, mine) in departed {
            drop(mine);
            if partial.is_complete() {
                self.finish_soon(&partial);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::manifest::{Entry, Node, Object};
    use proto::{ChunkId, TreePath};

    #[test]
    fn a_miss_brings_its_surroundings_and_then_the_files_that_follow() {
        let object = |byte: u8, len: usize| Object {
            id: ObjectId::of(&vec![byte; len]),
            bytes: len as u64,
            chunks: vec![byte; len].chunks(4096).map(ChunkId::of).collect(),
        };
        let mut objects = vec![object(1, 40_000), object(2, 100), object(3, 9_000)];
        objects.sort_by_key(|object| object.id);
        let named = [("a", 1_u8, 40_000), ("b", 2, 100), ("c", 3, 9_000)];
        let node = |byte, len| Node {
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime_s: 0,
            mtime_ns: 0,
            xattrs: vec![],
            kind: NodeKind::File(object(byte, len).id),
        };
        let nodes = named.iter().map(|(_, byte, len)| node(*byte, *len)).collect();
        let entry = |(at, name): (usize, &str)| Entry {
            path: TreePath::parse(name.as_bytes()).unwrap(),
            node: width::count(at),
        };
        let entries = named.iter().map(|(name, _, _)| *name).enumerate().map(entry).collect();
        let order = Order::of(Manifest { chunk_bytes: 4096, objects, nodes, entries });
        let sizes = |chunks: Vec<(u32, u32)>| -> Vec<(u64, u32)> {
            chunks.into_iter().map(|(at, index)| (order.manifest.objects[at as usize].bytes, index)).collect()
        };
        let a = object(1, 40_000).id;
        assert_eq!(sizes(order.around(&a, 20_000, 8_192, 64)), [(40_000, 4), (40_000, 5)]);
        let far = sizes(order.around(&a, 33_000, 16_384, 64));
        assert_eq!(far, [(40_000, 7), (40_000, 8), (40_000, 9), (100, 0), (9_000, 0), (9_000, 1)]);
        let alone = sizes(order.around(&a, 33_000, 16_384, 1));
        assert_eq!(alone, [(40_000, 7), (40_000, 8), (40_000, 9)]);
        assert_eq!(order.around(&ObjectId::of(b"other"), 0, 8_192, 64), []);
    }

    #[test]
    fn files_that_follow_are_left_where_an_answer_is_quick() {
        let objects = [None, Some(Duration::from_micros(300)), Some(Duration::from_millis(20))].map(objects_max);
        assert_eq!(objects, [OBJECTS_MAX, 1, OBJECTS_MAX]);
    }

    #[test]
    fn misses_close_upon_each_other_bring_more_each_time() {
        let around = Around::default();
        let now = Instant::now();
        let windows: Vec<u64> = (0..7).map(|_| around.grow(now) >> 10).collect();
        assert_eq!(windows, [256, 512, 1024, 2048, 4096, 4096, 4096]);
        let nearly = now + RECENT - Duration::from_millis(1);
        assert_eq!(around.grow(nearly) >> 10, 4096, "the next miss comes soon enough");
        assert_eq!(around.grow(nearly + RECENT) >> 10, 256, "this one stands alone");
    }
}
