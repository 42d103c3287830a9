//! From the cache into the page cache: what a start-up bundle has brought is put where the program will look for it,
//! before it looks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex};

use proto::TreeId;

use crate::host::fetch::ArrivedRange;
use crate::host::mount::{Mounts, PageRange};
use crate::sync::{lock, wait};

/// Ranges of one request to the helper.
const BATCH: usize = 512;

/// Hands ranges to the helper as soon as their tree can be read through the mount.
#[derive(Default)]
pub(crate) struct Prefetch {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    readable: BTreeSet<TreeId>,
    waiting: BTreeMap<TreeId, Vec<ArrivedRange>>,
}

impl Prefetch {
    /// Starts the thread that does it.
    ///
    /// # Errors
    /// There is no thread.
    pub(crate) fn start(mounts: Mounts) -> std::io::Result<Arc<Self>> {
        let prefetch = Arc::new(Self::default());
        let working = Arc::clone(&prefetch);
        let work = move || {
            loop {
                let ranges = working.next();
                if let Err(error) = mounts.prefetch(ranges) {
                    tracing::debug!(%error, "pages are not brought into the page cache ahead");
                }
            }
        };
        std::thread::Builder::new().name("prefetch".into()).stack_size(128 << 10).spawn(work)?;
        Ok(prefetch)
    }

    /// These bytes are in the cache now.
    pub(crate) fn arrived(&self, tree: &TreeId, ranges: Vec<ArrivedRange>) {
        lock(&self.state).waiting.entry(*tree).or_default().extend(ranges);
        self.changed.notify_all();
    }

    /// The objects of this tree can be read through the mount.
    pub(crate) fn readable(&self, tree: &TreeId) {
        lock(&self.state).readable.insert(*tree);
        self.changed.notify_all();
    }

    /// They no longer can.
    pub(crate) fn forget(&self, tree: &TreeId) {
        let mut state = lock(&self.state);
        state.readable.remove(tree);
        state.waiting.remove(tree);
    }

    fn next(&self) -> Vec<PageRange> {
        let mut state = lock(&self.state);
        loop {
            let State { readable, waiting } = &mut *state;
            waiting.retain(|_, ranges| !ranges.is_empty());
            if let Some((_, ranges)) = waiting.iter_mut().find(|(tree, _)| readable.contains(*tree)) {
                let batch = ranges.drain(..ranges.len().min(BATCH));
                let range = |range: ArrivedRange| PageRange {
                    object: range.object,
                    offset: range.offset,
                    bytes: range.bytes,
                };
                return batch.map(range).collect();
            }
            state = wait(&self.changed, state);
        }
    }
}
