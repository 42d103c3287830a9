//! What the manager does while nobody waits for it: deltas to new generations, then packs compressed anew. One thread at a
//! time, at the lowest priority, so that it is not noticed.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use super::delta::Deltas;
use super::store::{Store, StoreError};
use crate::sync::lock;

/// The nice value of such work: 19 is the lowest priority (setpriority(2)). Threads that it starts inherit it.
const NICE: i32 = 19;

/// The work and whose turn it is. What is to be done is derived from what is stored, each time: nothing is forgotten by a
/// restart, and nothing is done twice.
pub(crate) struct IdleWork {
    store: Arc<Store>,
    deltas: Arc<Deltas>,
    turn: Mutex<()>,
    /// Threads that want their turn; a host may soon want what they are there for, so packs wait for them.
    waiting: AtomicUsize,
    cancelled: AtomicBool,
}

impl IdleWork {
    /// Over a store and what is made ahead of it.
    pub(crate) fn new(store: Arc<Store>, deltas: Arc<Deltas>) -> Self {
        let (waiting, cancelled) = (AtomicUsize::new(0), AtomicBool::new(false));
        Self { store, deltas, turn: Mutex::default(), waiting, cancelled }
    }

    /// Begins in a thread of its own: after a publication, and at the start for what was left undone.
    pub(crate) fn work(self: &Arc<Self>) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let idle = Arc::clone(self);
        let spawned = thread::Builder::new().name("idle work".into()).spawn(move || {
            if let Err(error) = rustix::process::setpriority_process(None, NICE) {
                tracing::debug!(%error, "work ahead runs at the priority of everything else");
            }
            let turn = lock(&idle.turn);
            idle.waiting.fetch_sub(1, Ordering::Relaxed);
            idle.deltas();
            idle.repack();
            drop(turn);
            if idle.waiting.load(Ordering::Relaxed) == 0 {
                agent_core::internal::memory::give_back();
            }
        });
        if let Err(error) = spawned {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!(%error, "no thread to work ahead");
        }
    }

    /// Every delta between a generation and the one published before it, the newest generation first. One that fails is
    /// tried again at the next start, and made when a host asks.
    fn deltas(&self) {
        let mut tried = BTreeSet::new();
        // Looked up anew after each: what is published meanwhile comes first.
        while let Some(pair) = self.deltas.pending().into_iter().find(|pair| !tried.contains(pair)) {
            if self.is_cancelled() {
                return;
            }
            self.deltas.make_ahead(pair, &self.cancelled);
            tried.insert(pair);
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Nothing more is begun, and packs under way are given up.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    fn gives_way(&self) -> bool {
        self.is_cancelled() || self.waiting.load(Ordering::Relaxed) > 0
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
