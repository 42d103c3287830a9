//! Local objects are hashed again: those that do not look as they did when they were hashed last, and before a change-over
//! those that its start needs, however they look.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use proto::ObjectId;
use proto::id::ChunkId;
use proto::manifest::Object;

use super::stamps::{Stamp, stamp};
use super::{Cache, lower, whole};
use crate::sync::lock;

/// Threads that hash for somebody who waits.
const THREADS_MAX: usize = 4;

/// Which objects are hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Those that changed since they were hashed last, as far as their file's size, times and inode tell.
    Changed,
    /// All of them: also a disk that lies is found out. Not again those that look as before and of which the kernel checks
    /// every page that it gives to a program.
    All,
}

/// How much [`Cache::verify_local`] has read, and which objects were wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Objects that were read and hashed.
    pub checked: u64,
    /// Bytes of these objects.
    pub checked_bytes: u64,
    /// Objects that were not what their name says; removed, to be fetched again.
    pub wrong: Vec<ObjectId>,
    /// Whether it was told to stop early.
    pub cancelled: bool,
}

impl Cache {
    /// Hashes local objects: the kernel reads them unchecked. Wrong ones are removed, so that they are fetched again; those
    /// that are not local are left out. `chunk_bytes` is that of the manifest which the objects are from.
    pub fn verify_local<'o>(
        &self,
        objects: impl IntoIterator<Item = &'o Object>,
        chunk_bytes: u32,
        look: Look,
        cancel: &AtomicBool,
    ) -> VerifyReport {
        let mut report = VerifyReport::default();
        for object in objects {
            if cancel.load(Ordering::Relaxed) {
                report.cancelled = true;
                break;
            }
            let path = self.local_path(&object.id);
            let Ok(found) = std::fs::symlink_metadata(&path) else { continue };
            let is_known = self.stamps.get(&object.id) == Some(Stamp::of(&found));
            let is_kept = || self.verity && File::open(&path).is_ok_and(|file| whole::is_protected(&file));
            if is_known && (look == Look::Changed || is_kept()) {
                continue;
            }
            report.checked += 1;
            report.checked_bytes += object.bytes;
            let right =
                found.is_file() && File::open(&path).is_ok_and(|file| self.hash_again(object, chunk_bytes, &file));
            if !right {
                self.remove_local(&object.id);
                report.wrong.push(object.id);
            }
        }
        report
    }

    /// Whether an object's open file has its bytes; noted if so. What is being changed meanwhile is not right either.
    pub(super) fn hash_again(&self, object: &Object, chunk_bytes: u32, file: &File) -> bool {
        let Ok(before) = stamp(file) else { return false };
        let right =
            file.metadata().is_ok_and(|found| found.len() == object.bytes) && is_object(object, chunk_bytes, file);
        let still = right && stamp(file).is_ok_and(|after| after == before);
        if still {
            self.stamps.put(&[(object.id, self.protected(object, file, before))]);
        }
        still
    }

    /// Has the kernel keep an object as it has just been found, where it can. Returns how the file looks then.
    fn protected(&self, object: &Object, file: &File, hashed: Stamp) -> Stamp {
        if !self.verity || whole::is_protected(file) {
            return hashed;
        }
        whole::protect(&self.local_path(&object.id));
        stamp(file).ok().filter(|now| now.has_bytes_of(&hashed)).unwrap_or(hashed)
    }

    /// Whether an open file looks as it did when it was hashed last.
    pub(super) fn is_stamped(&self, id: &ObjectId, file: &File) -> bool {
        let known = self.stamps.get(id);
        known.is_some_and(|known| stamp(file).is_ok_and(|now| now == known))
    }

    /// Takes a file as it looks now for one that was hashed: what a disk does that changes bytes by itself.
    #[cfg(test)]
    pub(crate) fn forge_stamp(&self, id: &ObjectId) {
        let file = File::open(self.local_path(id)).and_then(|file| stamp(&file));
        self.stamps.put(&[(*id, file.unwrap())]);
    }

    /// Removes an object from `local`.
    pub(super) fn remove_local(&self, id: &ObjectId) -> u64 {
        let path = self.local_path(id);
        lock(&self.open_locals).pop(id);
        self.stamps.remove(id);
        let bytes = std::fs::symlink_metadata(&path).map_or(0, |found| found.len());
        if std::fs::remove_file(&path).is_err() {
            return 0;
        }
        lower(&self.counts.local_bytes, bytes);
        lower(&self.counts.objects, 1);
        bytes
    }
}

/// Whether every chunk of the file is the object's, on as many threads as that is worth.
fn is_object(object: &Object, chunk_bytes: u32, file: &File) -> bool {
    let chunks = object.chunks.len();
    let threads =
        thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX).min(chunks.div_ceil(8)).max(1);
    let (next, wrong) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || {
        let mut buffer = Vec::new();
        while !wrong.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= chunks {
                return;
            }
            if !is_chunk(object, chunk_bytes, index, file, &mut buffer) {
                wrong.store(true, Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // One that cannot be started leaves its share to the others.
            let _ = thread::Builder::new().name("verify".into()).stack_size(128 << 10).spawn_scoped(scope, work);
        }
        work();
    });
    !wrong.into_inner()
}

fn is_chunk(object: &Object, chunk_bytes: u32, index: usize, file: &File, buffer: &mut Vec<u8>) -> bool {
    let Some(bytes) = u32::try_from(index).ok().and_then(|index| object.chunk_len(index, chunk_bytes)) else {
        return false;
    };
    buffer.resize(bytes as usize, 0);
    let read = file.read_exact_at(buffer, index as u64 * u64::from(chunk_bytes));
    read.is_ok() && ChunkId::of(buffer) == object.chunks[index]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::cache::CacheOptions;

    /// A program's file of this size, of bytes that do not repeat.
    fn object(cache: &Cache, bytes: usize) -> Object {
        let mut content = vec![0; bytes];
        blake3::Hasher::new().finalize_xof().fill(&mut content);
        let chunks = content.chunks(256 << 10).map(ChunkId::of).collect();
        let object = Object { id: ObjectId::of(&content), bytes: bytes as u64, chunks };
        let path = cache.local_path(&object.id);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        object
    }

    /// How long the last look before a change-over's exec takes: not a promise, so it is only printed. More rounds, and with
    /// cores that nobody else takes: `TRIALS=100 chrt -f 50 PROGRAM hashing_what_a_start_touches --nocapture`, where PROGRAM
    /// is what `cargo test --release --workspace --lib --no-run` has built.
    #[test]
    fn hashing_what_a_start_touches() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), CacheOptions::default()).unwrap();
        let program = object(&cache, 100 << 20);
        let trials = std::env::var("TRIALS").map_or(3, |text| text.parse().unwrap());
        let mut took: Vec<f64> = (0..trials)
            .map(|_| {
                let begun = std::time::Instant::now();
                let report = cache.verify_local([&program], 256 << 10, Look::All, &AtomicBool::new(false));
                assert_eq!((report.checked_bytes, report.wrong.len()), (100 << 20, 0));
                begun.elapsed().as_secs_f64() * 1000.0
            })
            .collect();
        took.sort_by(f64::total_cmp);
        let (median, worst) = (took[trials / 2], took[trials - 1]);
        println!("100 MiB in memory: median {median:.1} ms, best {:.1} ms, worst {worst:.1} ms", took[0]);
    }
}
