//! `verify --repair`: what the store has lost comes back from wherever it still is.
//!
//! ```text
//! damaged packs ──what is still right──┐
//! the files, read again ───────────────┼──> verified by hash ──> a new pack, new manifests ──> the damaged packs go
//! hosts that have the trees ───────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proto::bulk::{ChunkHead, Encoding};
use proto::message::{ChunkRange, HostReply, ManagerRequest};
use proto::{ChunkId, HostName, TreeId, width};

use super::connections::Connections;
use super::control::State;
use super::error::ManagerError;
use super::exports::Exports;
use super::monitor::{Monitor, Task};
use super::publish::{PublishOptions, publish};
use super::store::{Lost, Mender, Store, Where};
use super::worker::waiting;
use crate::net::{Incoming, Link, NetError};

/// Chunks that one host is asked for at once: 16 MiB of the largest at most, and what came counts when it goes away.
const CHUNKS_AT_ONCE: usize = 16;
/// Hosts that are asked for one tree: of those that have it attached, more would have nothing else.
const HOSTS_MAX: usize = 32;
/// How long a host may take for one answer. Hosts read from their own disk.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// What a compressed manifest may have beyond its plain length: zstd's frame around bytes that do not compress.
const FRAME_BYTES_MAX: usize = 64 << 10;

/// What is repaired with.
pub(crate) struct Repairs<'a> {
    pub(crate) store: &'a Store,
    pub(crate) state: &'a State,
    pub(crate) exports: &'a Exports,
    pub(crate) connections: &'a Connections,
}

/// What was repaired, from where, and what could not be.
#[derive(Debug, Default)]
pub(crate) struct Repaired {
    /// Where chunks came from, for people.
    pub(crate) chunks: BTreeMap<ChunkId, String>,
    /// Where manifests came from, for people.
    pub(crate) manifests: BTreeMap<TreeId, String>,
    /// What is nowhere.
    pub(crate) lost: Lost,
}

impl Repairs<'_> {
    /// Repairs what an earlier look found damaged: out of the packs themselves, then out of the files at `source`, then from
    /// hosts. What came by the time that it is given up stays.
    ///
    /// # Errors
    /// The store or the control state failed, or the files cannot be read.
    pub(crate) fn run(
        &self,
        source: Option<&Path>,
        monitor: &dyn Monitor,
        cancelled: &AtomicBool,
    ) -> Result<Repaired, ManagerError> {
        let mut repaired = Repaired::default();
        if let Some(source) = source {
            self.take_files(source, &mut repaired, monitor, cancelled)?;
        }
        let mut mender = self.store.mender(&self.needed()?)?;
        let total = mender.lost().chunks.len() as u64;
        if !mender.lost().is_empty() {
            self.ask_hosts(&mut mender, &mut repaired, total, monitor, cancelled)?;
        }
        let saved = mender.saved().iter();
        repaired
            .chunks
            .extend(saved.map(|(chunk, pack)| (*chunk, format!("pack {pack}, where it can still be read"))));
        repaired.lost = mender.finish()?;
        // Learned after the pass has begun, as for a collection.
        let pass = self.store.begin_gc();
        let dropped = pass.drop_mended(&self.needed()?)?;
        tracing::info!(chunks = repaired.chunks.len(), lost = repaired.lost.chunks.len(), dropped, "store repaired");
        Ok(repaired)
    }

    /// The trees that must be whole: those of all generations, and those that hosts have.
    fn needed(&self) -> Result<BTreeSet<TreeId>, ManagerError> {
        let mut trees: BTreeSet<TreeId> = waiting(self.exports.attached())?.into_keys().collect();
        // Of what is attached and no longer published nothing may be left: that is no damage.
        trees.retain(|tree| matches!(self.store.manifest(tree), Ok(Some(_))));
        trees.extend(self.state.generations().iter().map(|generation| generation.record.tree));
        Ok(trees)
    }

    /// Takes the files in again, once for each size of chunks that something lost has: what the store lacks of them is
    /// written, as at a publication, and no record is made.
    fn take_files(
        &self,
        source: &Path,
        repaired: &mut Repaired,
        monitor: &dyn Monitor,
        cancelled: &AtomicBool,
    ) -> Result<(), ManagerError> {
        let before = self.store.lost(&self.needed()?)?;
        let mut sizes: BTreeSet<Option<u32>> = before.chunks.values().map(|place| Some(place.chunk_bytes)).collect();
        if !before.manifests.is_empty() {
            sizes.insert(None);
        }
        for chunk_bytes in sizes {
            let options = PublishOptions { chunk_bytes, ..PublishOptions::default() };
            // Its guard may go: what was lost is needed by a generation, and so is kept.
            publish(self.store, source, &options, &OnlyProgress(monitor), cancelled)?;
        }
        let after = self.store.lost(&self.needed()?)?;
        let from = || format!("the files in {}", source.display());
        let chunks = before.chunks.into_keys().filter(|chunk| !after.chunks.contains_key(chunk));
        repaired.chunks.extend(chunks.map(|chunk| (chunk, from())));
        let manifests = before.manifests.difference(&after.manifests);
        repaired.manifests.extend(manifests.map(|tree| (*tree, from())));
        Ok(())
    }

    fn ask_hosts(
        &self,
        mender: &mut Mender<'_>,
        repaired: &mut Repaired,
        total: u64,
        monitor: &dyn Monitor,
        cancelled: &AtomicBool,
    ) -> Result<(), ManagerError> {
        for tree in mender.lost().manifests.clone() {
            for (host, link) in self.hosts_with(&tree)? {
                if cancelled.load(Ordering::Relaxed) || !mender.lost().manifests.contains(&tree) {
                    break;
                }
                let asked = self.manifest_of(&tree, &link);
                let taken = asked.as_deref().map_or(Ok(false), |bytes| mender.take_manifest(bytes))?;
                if taken {
                    repaired.manifests.insert(tree, format!("host {host}"));
                }
            }
        }
        let trees: BTreeSet<TreeId> = mender.lost().chunks.values().map(|place| place.tree).collect();
        for tree in trees {
            for (host, link) in self.hosts_with(&tree)? {
                let wanted = of_tree(mender.lost(), &tree);
                for batch in wanted.chunks(CHUNKS_AT_ONCE) {
                    if cancelled.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    for chunk in chunks_of(batch, &link, &host, mender)? {
                        repaired.chunks.insert(chunk, format!("host {host}"));
                    }
                    monitor.progress(Task::Repair, total - mender.lost().chunks.len() as u64, total);
                }
            }
        }
        Ok(())
    }

    /// Connected hosts that may have a tree: those that have it attached first.
    fn hosts_with(&self, tree: &TreeId) -> Result<Vec<(HostName, Link)>, ManagerError> {
        let attached = waiting(self.exports.attached())?.remove(tree).unwrap_or_default();
        let others = self.state.hosts().into_iter().map(|(host, _)| host);
        let others = others.filter(|host| !attached.contains(host) && self.exports.permits(host, tree));
        let all = attached.iter().cloned().chain(others);
        let connected = all.filter_map(|host| Some((host.clone(), self.connections.control_link(&host)?)));
        Ok(connected.take(HOSTS_MAX).collect())
    }

    /// A manifest as a host has it, unchecked.
    fn manifest_of(&self, tree: &TreeId, link: &Link) -> Option<Vec<u8>> {
        let generations = self.state.generations();
        let record = generations.iter().map(|generation| &generation.record).find(|record| record.tree == *tree)?;
        let plain_bytes = width::index(record.manifest_bytes);
        let mut stored = Vec::new();
        let on = |incoming| {
            if let Incoming::Bulk(body) = incoming
                && stored.len() + body.len() <= plain_bytes + FRAME_BYTES_MAX
            {
                stored.extend_from_slice(&body);
            }
        };
        let request = ManagerRequest::Manifest { tree: *tree };
        match waiting(link.request::<_, HostReply>(&request, on, ANSWER_WITHIN)) {
            Ok(HostReply::Sent(_)) => zstd::bulk::decompress(&stored, plain_bytes).ok(),
            _ => None,
        }
    }
}

/// The lost chunks of one tree.
fn of_tree(lost: &Lost, tree: &TreeId) -> Vec<Where> {
    lost.chunks.values().filter(|place| place.tree == *tree).copied().collect()
}

/// Asks a host for chunks of a tree; returns those that came and are right. A host that has none of them, or does not
/// answer, or lies, is no error: another may have them.
fn chunks_of(
    batch: &[Where],
    link: &Link,
    host: &HostName,
    mender: &mut Mender<'_>,
) -> Result<Vec<ChunkId>, ManagerError> {
    let Some(Where { tree, .. }) = batch.first() else { return Ok(Vec::new()) };
    let want = |place: &Where| ChunkRange { object: place.object, first: place.chunk, count: 1 };
    let request = ManagerRequest::Chunks { tree: *tree, wants: batch.iter().map(want).collect() };
    let (mut taken, mut failed, mut left) = (Vec::new(), None, batch.len());
    let on = |incoming| {
        let Incoming::Bulk(body) = incoming else { return };
        // More than was asked for is not looked at.
        let Some(rest) = left.checked_sub(1) else { return };
        left = rest;
        let Some((ChunkHead { encoding: Encoding::Raw, .. }, plain)) = ChunkHead::split(&body) else { return };
        match mender.take(plain) {
            Ok(Some(chunk)) => taken.push(chunk),
            Ok(None) => tracing::warn!(%host, "a host was asked for a lost chunk and sent something else"),
            Err(error) => failed = Some(error),
        }
    };
    match waiting(link.request::<_, HostReply>(&request, on, ANSWER_WITHIN)) {
        Ok(HostReply::Sent(_)) => {}
        Ok(other) => tracing::debug!(%host, ?other, "a host has none of the lost chunks"),
        Err(NetError::Closed(reason)) => tracing::debug!(%host, reason, "a host went away while it was asked"),
        Err(error) => tracing::warn!(%host, %error, "a host gave no answer to what was lost"),
    }
    failed.map_or(Ok(taken), |error| Err(error.into()))
}

/// Passes progress on: that a tree has no entry point is no problem of a repair.
struct OnlyProgress<'a>(&'a dyn Monitor);

impl Monitor for OnlyProgress<'_> {
    fn progress(&self, task: Task, done: u64, total: u64) {
        self.0.progress(task, done, total);
    }
}
