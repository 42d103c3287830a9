//! Bundles of what hosts have recorded: made fast at once, so that nobody waits, and made well behind that.
//!
//! ```text
//! profile (the operator, a host that is believed) ┐
//! profile, first starts ──told──> two hosts agree ┴──> record: fast, stored, served ──Wish::Best──> made well
//!                                                                    ├──Wish::From──> for hosts that have another tree
//!                                                                    └──Wish::Carried──> for generations without one
//! ```
//! A recording adds to what was recorded before, and never takes its place.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use proto::bundle::{Origin, Touch};
use proto::message::BundleFacts;
use proto::proof::PAGE_BYTES;
use proto::width;
use proto::{GenerationRecord, GroupName, HostName, TreeId};

use super::agreement::cut;
use super::background::Wish;
use super::serve::{Bundles, Key, LEVEL_GUESS, SendStartError};
use super::served::served;
use super::{BundleError, BundleOrder, Gather, LEVEL, carried, make, parts, touches_of};
use crate::manager::worker::blocking;
use crate::sync::lock;

/// Plain bytes of what hosts have recorded of one tree, as a multiple of its guess: what a program reads beside its own code
/// is some times as much, and no host can make all others fetch the whole tree.
const TIMES_THE_GUESS: u64 = 16;
/// The same for trees of which little can be guessed, such as scripts.
const RECORDED_BYTES_MIN: u64 = 512 << 10;

/// The group of the hosts that are believed alone: those on which an operator records.
const RECORDERS: &str = "recorders";

impl Bundles {
    /// Takes what was recorded on a host into the bundle of a tree, which later hosts get, as far as it is not much more than
    /// the tree's start needs: at once if an operator has put the host into the group `recorders`, otherwise what another
    /// host tells too. `None`: none does yet.
    ///
    /// # Errors
    /// The touches are not of the tree, or the store failed.
    pub(crate) async fn profile(
        self: &Arc<Self>,
        host: &HostName,
        tree: TreeId,
        touches: Vec<Touch>,
    ) -> Result<Option<BundleFacts>, SendStartError> {
        let (bundles, asker) = (Arc::clone(self), host.clone());
        let facts = blocking(move || {
            // Said to whoever recorded it, not to whoever agrees.
            parts(&touches, &bundles.store.tree(&tree)?, Gather::Whole)?;
            let touches = if bundles.believes(&asker) {
                Some(touches)
            } else {
                lock(&bundles.told).take(&asker, tree, touches)
            };
            touches.map(|touches| bundles.record(&tree, &touches)).transpose()
        });
        let facts = facts.await?;
        match &facts {
            Some(facts) => {
                tracing::info!(%host, %tree, pages = facts.plain_bytes, bytes = facts.bundle_bytes, "start recorded");
            }
            None => tracing::info!(%host, %tree, "a recorded start counts when another host tells the same"),
        }
        Ok(facts)
    }

    /// What the first start of a generation touched that nobody had recorded: better than a guess, when several hosts tell
    /// the same.
    pub(crate) fn learn(self: &Arc<Self>, host: &HostName, tree: TreeId, touches: Vec<Touch>) {
        if self.is_recorded(&tree) {
            return;
        }
        let agreed = lock(&self.told).take(host, tree, touches);
        match agreed {
            Some(agreed) => self.wish(Wish::Learned(tree, agreed)),
            None => {
                tracing::info!(%host, %tree, "a first start was told; it counts when another host tells the same")
            }
        }
    }

    /// Forgets what was recorded and learned of a tree's starts; the next one gets a guess again. What was carried over
    /// to other trees goes as well, as it does not say from where it came: it is made anew of what is still recorded.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) fn reset(self: &Arc<Self>, tree: &TreeId) -> Result<u64, SendStartError> {
        let alone = lock(&self.storing);
        lock(&self.told).forget(tree);
        let mut removed = self.remove(tree)?;
        let carried = self.carried_trees()?;
        for carried in carried.iter().filter(|carried| *carried != tree) {
            removed += self.remove(carried)?;
        }
        drop(alone);
        lock(&self.sourceless).clear();
        carried.into_iter().for_each(|carried| self.wish(Wish::Carried(carried)));
        Ok(removed)
    }

    /// Removes every bundle of a tree. The caller stores alone.
    fn remove(&self, tree: &TreeId) -> Result<u64, SendStartError> {
        let removed = self.store.remove_bundles(tree)?;
        let mut served = self.served();
        let keys: Vec<Key> = served.iter().map(|(key, _)| *key).filter(|(_, to)| to == tree).collect();
        keys.iter().for_each(|key| drop(served.pop(key)));
        Ok(removed)
    }

    /// The trees whose bundle was recorded of another one, the newest first.
    fn carried_trees(&self) -> Result<Vec<TreeId>, SendStartError> {
        let generations = self.state.generations();
        let mut records: Vec<_> = generations.iter().map(|generation| &generation.record).collect();
        records.sort_by_key(|record| std::cmp::Reverse(record.sequence));
        let mut trees = Vec::new();
        for record in records {
            let header = self.store.bundle_header(&record.tree)?;
            if header.is_some_and(|header| header.origin == Origin::Carried) && !trees.contains(&record.tree) {
                trees.push(record.tree);
            }
        }
        Ok(trees)
    }

    /// Wishes for what was left undone when the manager ended, the newest generation first.
    pub(crate) fn resume(self: &Arc<Self>) {
        let generations = self.state.generations();
        let mut records: Vec<_> = generations.iter().map(|generation| &generation.record).collect();
        records.sort_by_key(|record| std::cmp::Reverse(record.sequence));
        for record in records {
            match self.store.bundle_header(&record.tree) {
                Ok(Some(header)) if header.fast && header.origin == Origin::Recorded => {
                    self.wish(Wish::Best(record.tree))
                }
                Ok(Some(_)) => {}
                Ok(None) => self.wish(Wish::Carried(record.tree)),
                Err(error) => tracing::warn!(%error, "whether a start-up bundle could be smaller is not known"),
            }
        }
    }

    fn believes(&self, host: &HostName) -> bool {
        RECORDERS.parse::<GroupName>().is_ok_and(|group| self.state.groups_of(host).contains(&group))
    }

    fn is_recorded(&self, tree: &TreeId) -> bool {
        self.store
            .bundle_header(tree)
            .is_ok_and(|header| header.is_some_and(|header| header.origin == Origin::Recorded))
    }

    pub(super) fn wish(self: &Arc<Self>, wish: Wish) {
        let bundles = Arc::clone(self);
        let queue = if let Wish::Guessed(..) | Wish::Programs(_) = wish { &self.guesses } else { &self.background };
        queue.wish(wish, move |wish| {
            let (tree, made) = match wish {
                Wish::Best(tree) => (tree, bundles.make_best(&tree)),
                Wish::From(from, tree) => (tree, bundles.make_from(&from, &tree)),
                Wish::Learned(tree, _) if bundles.is_recorded(&tree) => (tree, Ok(())),
                Wish::Learned(tree, touches) => (tree, bundles.record_learned(&tree, &touches)),
                Wish::Carried(tree) => (tree, bundles.carry_over(&tree)),
                Wish::Guessed(tree, program) => (tree, bundles.guess_well(tree, program)),
                Wish::Programs(tree) => (tree, bundles.wish_for_programs(tree)),
            };
            if let Err(error) = made {
                tracing::warn!(%tree, %error, "a start-up bundle was not made; hosts get the one that there is");
            }
            agent_core::internal::memory::give_back();
        });
    }

    /// Makes the bundle of what was recorded before and now, fast, and wishes for all that follows from it. Waits for the
    /// disk.
    ///
    /// # Errors
    /// The touches are not of the tree, or the store failed.
    pub(crate) fn record(self: &Arc<Self>, tree: &TreeId, touches: &[Touch]) -> Result<BundleFacts, SendStartError> {
        let alone = lock(&self.storing);
        let mut all = match self.store.bundle(None, tree)? {
            Some((header, bytes)) if header.origin == Origin::Recorded => touches_of(&bytes, &header, &self.store)?,
            _ => Vec::new(),
        };
        all.extend_from_slice(touches);
        let all = cut(&all, self.recorded_pages_max(tree)?);
        let order = BundleOrder { tree, from: None, touches: &all, origin: Origin::Recorded, level: LEVEL_GUESS };
        let (bytes, facts) = self.made(order)?;
        let bases = self.replace(tree, bytes)?;
        drop(alone);
        lock(&self.sourceless).clear();
        self.wish(Wish::Best(*tree));
        bases.into_iter().for_each(|from| self.wish(Wish::From(from, *tree)));
        self.unrecorded_after(tree).into_iter().for_each(|tree| self.wish(Wish::Carried(tree)));
        Ok(facts)
    }

    /// Puts a bundle for any host in the place of the one that was there; the trees from which others shall follow it. The
    /// caller stores alone.
    fn replace(&self, tree: &TreeId, bytes: Vec<u8>) -> Result<Vec<TreeId>, SendStartError> {
        self.put((None, *tree), bytes)?;
        // What there is for hosts with other trees is out of date; they get this one until theirs is made.
        let bases = self.bundle_bases(tree);
        for from in &bases {
            self.store.remove_bundle(from, tree)?;
            self.served().pop(&(Some(*from), *tree));
        }
        Ok(bases)
    }

    /// A generation has been published: what was recorded of the one before tells how it will start.
    pub(crate) fn published(self: &Arc<Self>, tree: TreeId) {
        self.wish(Wish::Carried(tree));
        // Whoever waits for a first start shall not wait for its guess, nor who publishes for what there is to guess.
        self.wish(Wish::Programs(tree));
    }

    fn wish_for_programs(self: &Arc<Self>, tree: TreeId) -> Result<(), SendStartError> {
        let programs = self.programs(&tree)?;
        programs.into_iter().for_each(|program| self.wish(Wish::Guessed(tree, program)));
        Ok(())
    }

    /// Makes a bundle of a tree that nobody has recorded out of what was recorded of another, and of the guess. It stays a
    /// guess: what first hosts touch takes its place.
    fn carry_over(self: &Arc<Self>, tree: &TreeId) -> Result<(), SendStartError> {
        if self.is_recorded(tree) {
            return Ok(());
        }
        let generations = self.state.generations();
        let records: Vec<_> = generations.iter().map(|generation| &generation.record).collect();
        let Some(source) = carried::source(&self.store, tree, &records, |tree| self.is_recorded(tree)) else {
            lock(&self.sourceless).insert(*tree);
            return Ok(());
        };
        let Some((header, recorded)) = self.store.bundle(None, &source)? else { return Ok(()) };
        let told = touches_of(&recorded, &header, &self.store)?;
        let (old, new) = (self.store.tree(&source)?, self.store.tree(tree)?);
        let mut touches = carried::touches(&self.store, &old, &told, &new).map_err(BundleError::from)?;
        touches.extend(self.guess(tree)?);
        let touches = cut(&touches, self.recorded_pages_max(tree)?);
        let (bytes, _) =
            self.made(BundleOrder { tree, from: None, touches: &touches, origin: Origin::Carried, level: LEVEL })?;
        let alone = lock(&self.storing);
        // It may have been forgotten meanwhile, and what was made of it must not come back.
        let is_still = self.store.bundle(None, &source)?.is_some_and(|(_, now)| now == recorded);
        if self.is_recorded(tree) || !is_still {
            return Ok(());
        }
        let bases = self.replace(tree, bytes)?;
        drop(alone);
        tracing::info!(%tree, %source, "a recorded start was carried over");
        bases.into_iter().for_each(|from| self.wish(Wish::From(from, *tree)));
        Ok(())
    }

    /// The generations of its products after a tree, whose starts nobody has recorded.
    fn unrecorded_after(&self, tree: &TreeId) -> Vec<TreeId> {
        let generations = self.state.generations();
        let records = || generations.iter().map(|generation| &generation.record);
        let after = |record: &&GenerationRecord| {
            let precedes = |this: &GenerationRecord| {
                this.tree == *tree
                    && this.product == record.product
                    && this.sequence < record.sequence
                    && this.shares_architecture(record)
            };
            record.tree != *tree && records().any(precedes)
        };
        let mut later: Vec<_> = records().filter(after).collect();
        later.sort_by_key(|record| record.sequence);
        later.into_iter().map(|record| record.tree).filter(|tree| !self.is_recorded(tree)).collect()
    }

    fn record_learned(self: &Arc<Self>, tree: &TreeId, touches: &[Touch]) -> Result<(), SendStartError> {
        let facts = self.record(tree, touches)?;
        tracing::info!(%tree, pages = facts.plain_bytes, bytes = facts.bundle_bytes, "learned");
        Ok(())
    }

    /// Makes well what was made fast.
    fn make_best(&self, tree: &TreeId) -> Result<(), SendStartError> {
        let Some((header, base)) = self.store.bundle(None, tree)?.filter(|(header, _)| header.fast) else {
            return Ok(());
        };
        let touches = touches_of(&base, &header, &self.store)?;
        let order = BundleOrder { tree, from: None, touches: &touches, origin: header.origin, level: LEVEL };
        let (bytes, _) = self.made(order)?;
        self.put_if_still(&base, (None, *tree), bytes)
    }

    /// Makes the bundle for hosts that have `from` out of the one for any host.
    fn make_from(&self, from: &TreeId, tree: &TreeId) -> Result<(), SendStartError> {
        if self.store.bundle(Some(from), tree)?.is_some() {
            return Ok(());
        }
        let Some((header, base)) = self.store.bundle(None, tree)? else { return Ok(()) };
        let touches = touches_of(&base, &header, &self.store)?;
        let order = BundleOrder { tree, from: Some(from), touches: &touches, origin: header.origin, level: LEVEL };
        let (bytes, _) = self.made(order)?;
        self.put_if_still(&base, (Some(*from), *tree), bytes)
    }

    /// Stores what was made of a bundle, unless that is another one by now: what replaced it has wishes of its own.
    fn put_if_still(&self, base: &[u8], key: Key, bytes: Vec<u8>) -> Result<(), SendStartError> {
        let _alone = lock(&self.storing);
        let now = self.store.bundle(None, &key.1)?;
        if now.is_some_and(|(_, now)| now == base) {
            self.put(key, bytes)?;
        }
        Ok(())
    }

    /// Keeps a bundle. The caller stores alone.
    fn put(&self, key: Key, bytes: Vec<u8>) -> Result<(), SendStartError> {
        self.store.put_bundle(key.0.as_ref(), &key.1, &bytes)?;
        self.served().put(key, Some(Arc::new(served(bytes)?)));
        Ok(())
    }

    fn made(&self, order: BundleOrder<'_>) -> Result<(Vec<u8>, BundleFacts), BundleError> {
        let (bytes, facts) = make(&self.store, order, &AtomicBool::new(false))?;
        let (pages, size) = (facts.plain_bytes, facts.bundle_bytes);
        let BundleOrder { tree, from, origin, level, .. } = order;
        tracing::info!(%tree, ?from, pages, bytes = size, ?origin, level, "start-up bundle made");
        Ok((bytes, facts))
    }

    /// How many pages may be recorded of a tree's start.
    fn recorded_pages_max(&self, tree: &TreeId) -> Result<usize, SendStartError> {
        let guessed: u64 = self.guess(tree)?.iter().map(|touch| u64::from(touch.count)).sum();
        let bytes = (guessed * u64::from(PAGE_BYTES) * TIMES_THE_GUESS).max(RECORDED_BYTES_MIN);
        Ok(width::index(bytes / u64::from(PAGE_BYTES)))
    }

    /// The trees from which bundles follow what was recorded: those that have one, and the generation published before.
    fn bundle_bases(&self, tree: &TreeId) -> Vec<TreeId> {
        let generations = self.state.generations();
        let records = || generations.iter().map(|generation| &generation.record);
        let earlier = records().find(|record| record.tree == *tree).and_then(|this| {
            let earlier = records().filter(|record| {
                record.product == this.product
                    && record.sequence < this.sequence
                    && record.tree != *tree
                    && record.shares_architecture(this)
            });
            earlier.max_by_key(|record| record.sequence).map(|record| record.tree)
        });
        let mut bases = self.store.bundle_bases(tree).unwrap_or_default();
        bases.extend(earlier.filter(|from| !bases.contains(from)));
        bases
    }
}
