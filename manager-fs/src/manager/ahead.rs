//! What the manager does while nobody waits for it: the delta to a new generation, then packs compressed anew. One thread
//! at a time, at the lowest priority, so that it is not noticed.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use proto::GenerationRecord;

use super::delta::Deltas;
use super::store::{Store, StoreError};
use crate::sync::lock;

/// The nice value of such work: 19 is the lowest priority (setpriority(2)). Threads that it starts inherit it.
const NICE: i32 = 19;

/// The work and whose turn it is.
pub(crate) struct Ahead {
    store: Arc<Store>,
    deltas: Arc<Deltas>,
    turn: Mutex<()>,
    /// Deltas that are to be made; a host may want one soon, so packs wait for them.
    waiting: AtomicUsize,
    cancelled: AtomicBool,
}

impl Ahead {
    /// Over a store and the deltas that lie in it.
    pub(crate) fn new(store: Arc<Store>, deltas: Arc<Deltas>) -> Self {
        let (waiting, cancelled) = (AtomicUsize::new(0), AtomicBool::new(false));
        Self { store, deltas, turn: Mutex::default(), waiting, cancelled }
    }

    /// Begins in a thread of its own: after a publication for that generation, at the start for what was left undone.
    pub(crate) fn work(self: &Arc<Self>, published: Option<GenerationRecord>) {
        let deltas = usize::from(published.is_some());
        self.waiting.fetch_add(deltas, Ordering::Relaxed);
        let ahead = Arc::clone(self);
        let spawned = thread::Builder::new().name("ahead".into()).spawn(move || {
            if let Err(error) = rustix::process::setpriority_process(None, NICE) {
                tracing::debug!(%error, "work ahead runs at the priority of everything else");
            }
            let _turn = lock(&ahead.turn);
            if let Some(published) = published {
                ahead.deltas.make_ahead(&published);
            }
            ahead.waiting.fetch_sub(deltas, Ordering::Relaxed);
            ahead.repack();
        });
        if let Err(error) = spawned {
            self.waiting.fetch_sub(deltas, Ordering::Relaxed);
            tracing::warn!(%error, "no thread to work ahead");
        }
    }

    /// Nothing more is begun, and packs under way are given up.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    fn gives_way(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.waiting.load(Ordering::Relaxed) > 0
    }

    fn repack(&self) {
        for pack in self.store.packs_to_repack() {
            if self.gives_way() {
                return;
            }
            match self.store.repack(&pack, &|| self.gives_way()) {
                Ok(Some(saved)) => {
                    tracing::info!(%pack, before = saved.bytes_before, after = saved.bytes_after, "pack compressed anew");
                }
                // It gives way to a publication, whose end brings us here again.
                Ok(None) => {}
                Err(error @ StoreError::Full { .. }) => {
                    return tracing::warn!(%error, "packs stay as they are until there is room for a copy");
                }
                Err(error) => tracing::warn!(%pack, %error, "a pack stays as it is"),
            }
        }
    }
}
