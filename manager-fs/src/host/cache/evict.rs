//! Quota: what is counted, and what goes first. Objects of pinned trees never go.

use std::collections::HashSet;
use std::fs::{File, FileTimes};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use proto::ObjectId;
use proto::width;

use super::stamps::stamp;
use super::{Cache, CacheError, lower};
use crate::sync::lock;

/// An eviction frees this much more than is needed, so that the directory is not walked for every chunk.
const SLACK: u64 = 16;
/// After an eviction that freed nothing the next is not tried before this time has passed, milliseconds.
const FRUITLESS_PAUSE_MS: u64 = 2_000;

struct Candidate {
    path: PathBuf,
    id: Option<ObjectId>,
    used: SystemTime,
}

impl Cache {
    /// Makes room for `bytes` more; `false` when everything left must stay.
    pub(super) fn make_room(&self, bytes: u64) -> bool {
        let Some(quota) = self.options.quota_bytes else { return true };
        if self.held_bytes() + bytes <= quota {
            return true;
        }
        let now_ms = since_start_ms();
        let fruitless = self.counts.fruitless_ms.load(Ordering::Relaxed);
        if fruitless != 0 && now_ms < fruitless + FRUITLESS_PAUSE_MS {
            return false;
        }
        self.evict_to(quota.saturating_sub(bytes).saturating_sub(quota / SLACK));
        let fits = self.held_bytes() + bytes <= quota;
        self.counts.fruitless_ms.store(if fits { 0 } else { now_ms.max(1) }, Ordering::Relaxed);
        fits
    }

    fn held_bytes(&self) -> u64 {
        self.counts.local_bytes.load(Ordering::Relaxed) + self.counts.partial_bytes.load(Ordering::Relaxed)
    }

    /// Removes the longest unused objects until at most `target_bytes` are held.
    fn evict_to(&self, target_bytes: u64) {
        let pinned: HashSet<ObjectId> =
            lock(&self.pins).values().flat_map(|pin| pin.objects.iter().copied()).collect();
        let mut candidates = Vec::new();
        for (path, id) in self.files("local").into_iter().chain(self.files("partial")) {
            if id.is_some_and(|id| pinned.contains(&id)) {
                continue;
            }
            let used = path.metadata().and_then(|found| found.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            candidates.push(Candidate { path, id, used });
        }
        candidates.sort_by_key(|candidate| candidate.used);
        let local = self.local_dir();
        for candidate in candidates {
            if self.held_bytes() <= target_bytes {
                break;
            }
            match candidate.id {
                Some(id) if candidate.path.starts_with(&local) => {
                    self.remove_local(&id);
                }
                Some(id) => self.remove_partial(&candidate.path, &id),
                None => {
                    let _ = std::fs::remove_file(&candidate.path);
                }
            }
            self.counts.evicted_objects.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A partial object that someone is reading or filling stays.
    fn remove_partial(&self, path: &Path, id: &ObjectId) {
        let mut partials = lock(&self.partials);
        let busy =
            partials.iter().any(|((object, _), partial)| object == id && std::sync::Arc::strong_count(partial) > 1);
        if busy {
            return;
        }
        partials.retain(|(object, _), _| object != id);
        let bytes = path.metadata().map_or(0, |found| found.blocks() * 512);
        if std::fs::remove_file(path).is_ok() {
            lower(&self.counts.partial_bytes, bytes);
        }
    }

    /// Marks objects as just used. The time is the local file's mtime: nobody sees it, the tree's times are in META.
    pub(super) fn touch(&self, objects: &[ObjectId]) {
        let now = FileTimes::new().set_modified(SystemTime::now());
        let touched = objects.iter().filter_map(|id| {
            let file = File::open(self.local_path(id)).ok()?;
            // One that has changed since it was hashed must not look as if it had not.
            let unchanged = self.is_stamped(id, &file);
            file.set_times(now).ok()?;
            unchanged.then(|| stamp(&file).ok().map(|stamp| (*id, stamp))).flatten()
        });
        self.stamps.put(&touched.collect::<Vec<_>>());
    }

    pub(super) fn count_contents(&self) -> Result<(), CacheError> {
        for (path, id) in self.files("local") {
            let Ok(found) = path.symlink_metadata() else { continue };
            if id.is_some() {
                self.counts.local_bytes.fetch_add(found.len(), Ordering::Relaxed);
                self.counts.objects.fetch_add(1, Ordering::Relaxed);
            }
        }
        for (path, _) in self.files("partial") {
            let held = path.symlink_metadata().map_or(0, |found| found.blocks() * 512);
            self.counts.partial_bytes.fetch_add(held, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Every file of `local` or `partial`, with the object id in its name.
    fn files(&self, sub: &str) -> Vec<(PathBuf, Option<ObjectId>)> {
        let shards = std::fs::read_dir(self.dir.join(sub)).into_iter().flatten().flatten();
        let mut found = Vec::new();
        for shard in shards.filter(|shard| shard.file_type().is_ok_and(|kind| kind.is_dir())) {
            for file in std::fs::read_dir(shard.path()).into_iter().flatten().flatten() {
                let name = file.file_name();
                let name = name.to_str().unwrap_or_default();
                let rest = name.split('.').next().unwrap_or_default();
                let id = format!("{}{rest}", shard.file_name().to_string_lossy()).parse().ok();
                found.push((file.path(), id));
            }
        }
        found
    }
}

fn since_start_ms() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    width::millis(START.get_or_init(Instant::now).elapsed())
}
