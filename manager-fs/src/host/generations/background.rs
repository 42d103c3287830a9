//! The generations' background: what must be mounted after a boot, what can be collected, what is still to be fetched.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proto::TreeId;
use proto::message::Fault;

use super::Generations;
use super::leases::Kept;
use crate::sync::lock;

/// A mount that is busy is tried again after this time, doubled each time, up to the longest.
const COLLECT_PAUSE_MIN: Duration = Duration::from_millis(250);
const COLLECT_PAUSE_MAX: Duration = Duration::from_secs(60);
/// A background fetch that failed is tried again after this time.
const HYDRATE_PAUSE: Duration = Duration::from_secs(5);

impl Generations {
    /// Mounts what the operator attached and what agents run from: after a boot nothing is mounted, and what could not
    /// be mounted without the manager may be now. What is only staged is mounted when its objects are local.
    fn restore(&self) {
        let mut trees: BTreeSet<TreeId> = self.leases.attached().into_keys().collect();
        trees.extend(self.leases.kept().current.into_values());
        // One whose manifest must be waited for keeps none of the others from their mounts.
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            trees.into_iter().partition(|tree| self.trees.prepare(tree, self.leases.clock().now()).is_ok());
        for tree in here.into_iter().chain(elsewhere) {
            if self.is_ended() {
                return;
            }
            if let Err(fault) = self.mount(&tree) {
                tracing::warn!(%tree, %fault, "a generation that should be attached cannot be mounted yet");
            }
        }
    }

    pub(super) fn collect_for_ever(&self) {
        let mut pause = COLLECT_PAUSE_MIN;
        loop {
            let seen = self.wake.seen().changed;
            let busy = self.collect();
            pause = if busy { (pause * 2).min(COLLECT_PAUSE_MAX) } else { COLLECT_PAUSE_MAX };
            if self.wake.wait(pause, |now| now.changed != seen) {
                pause = COLLECT_PAUSE_MIN;
            }
            if self.is_ended() {
                return;
            }
        }
    }

    /// Unmounts what nothing needs, pins and unpins; `true` while something unneeded is still in use.
    pub(crate) fn collect(&self) -> bool {
        let kept = self.leases.kept();
        let mut busy = false;
        let live: Vec<TreeId> = lock(&self.live).keys().copied().collect();
        for tree in live.iter().filter(|tree| !kept.keeps(tree)) {
            match self.unmount(tree) {
                Ok(true) => {}
                Ok(false) => busy = true,
                Err(fault) => {
                    busy = true;
                    tracing::warn!(%tree, %fault, "a released generation cannot be unmounted yet");
                }
            }
        }
        let kept = self.tidy();
        (self.tell)(kept.mounted.keys().copied().collect());
        *lock(&self.kept) = kept;
        busy
    }

    fn unmount(&self, tree: &TreeId) -> Result<bool, Fault> {
        let turn = self.turn(tree);
        let _turn = lock(&turn);
        self.unmount_in_turn(tree)
    }

    pub(super) fn unmount_in_turn(&self, tree: &TreeId) -> Result<bool, Fault> {
        // Someone may have taken a lease while we waited for our turn.
        if self.leases.kept().keeps(tree) {
            return Ok(true);
        }
        if !self.trees.unmount(tree)? {
            return Ok(false);
        }
        lock(&self.live).remove(tree);
        tracing::info!(%tree, "released and unmounted");
        Ok(true)
    }

    /// Pins what stays, and gives up what does not: pins, and what is noted of trees that are neither exported to this host
    /// nor in use on it. Returns why each tree stays.
    ///
    /// Nobody takes another tree in hand meanwhile, and whoever has one in hand had a reason to keep it before: so nothing
    /// is taken away from somebody who is about to mount it.
    pub(super) fn tidy(&self) -> Kept {
        let mut turns = lock(&self.turns);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        let mut pinned = lock(&self.pinned);
        let kept = self.leases.kept();
        if kept.uncertain.is_some() {
            return kept;
        }
        let mut wanted = kept.all();
        wanted.extend(lock(&self.live).keys());
        let mut spared = wanted.clone();
        spared.extend(turns.keys());
        let gone: Vec<_> = pinned.difference(&spared).copied().collect();
        for tree in gone {
            self.trees.unpin(&tree);
            pinned.remove(&tree);
        }
        for tree in wanted {
            if !pinned.contains(&tree) && self.trees.pin(&tree) {
                pinned.insert(tree);
            }
        }
        spared.extend(self.records.trees());
        if *lock(&self.remembered) != spared {
            self.trees.forget_all_but(&spared);
            *lock(&self.remembered) = spared;
        }
        kept
    }

    pub(super) fn hydrate_for_ever(&self) {
        while !self.is_ended() {
            let seen = self.wake.seen().fetchable;
            let mut failed = false;
            self.restore();
            for tree in self.unfinished() {
                let made = self.trees.make_local(&tree, true, &self.ended, &mut |local, _| {
                    if let Some(live) = lock(&self.live).get(&tree) {
                        live.local_bytes.store(local, Ordering::Relaxed);
                    }
                });
                match made {
                    Ok(()) => tracing::info!(%tree, "every object is local"),
                    Err(fault) => {
                        failed = true;
                        tracing::debug!(%tree, %fault, "fetching in the background stopped");
                    }
                }
                self.count(&tree);
            }
            let pause = if failed { HYDRATE_PAUSE } else { COLLECT_PAUSE_MAX };
            self.wake.wait(pause, |now| now.fetchable != seen);
        }
    }

    /// Mounted trees that are not whole, and what an agent may return to.
    fn unfinished(&self) -> Vec<TreeId> {
        let mut trees: BTreeSet<_> = lock(&self.live).keys().copied().collect();
        trees.extend(self.leases.kept().cached);
        trees.retain(|tree| self.count(tree).is_some_and(|(local, all)| local < all));
        trees.into_iter().collect()
    }
}
