//! Whole objects: how they become local, and how they are checked again.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proto::ObjectId;
use proto::manifest::{Manifest, Object};
use proto::width;

use super::{Cache, CacheError, Partial, lower, make_private_dir};
use crate::sync::lock;

/// What [`Cache::verify_local`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Objects hashed.
    pub checked: u64,
    /// Bytes hashed.
    pub checked_bytes: u64,
    /// Objects that were not what their name says; removed, to be fetched again.
    pub wrong: Vec<ObjectId>,
    /// Whether it was told to stop early.
    pub cancelled: bool,
}

impl Cache {
    /// Where this object is, or would be.
    pub fn local_path(&self, id: &ObjectId) -> PathBuf {
        let (shard, rest) = id.to_shard();
        self.dir.join("local").join(shard).join(rest)
    }

    /// Whether the object is whole and local. A file of another size cannot be the object: it is removed.
    pub fn is_local(&self, object: &Object) -> bool {
        let path = self.local_path(&object.id);
        match std::fs::symlink_metadata(&path) {
            Ok(found) if found.is_file() && found.len() == object.bytes => true,
            Ok(_) => {
                self.remove_local(&object.id);
                false
            }
            Err(_) => false,
        }
    }

    /// The object's file, if it is whole and local. A file of another size cannot be the object.
    pub(crate) fn open_local(&self, object: &Object) -> Option<Arc<File>> {
        if let Some(file) = lock(&self.open_locals).get(&object.id) {
            return Some(file.clone());
        }
        let file = File::open(self.local_path(&object.id)).ok()?;
        if file.metadata().ok()?.len() != object.bytes {
            self.remove_local(&object.id);
            return None;
        }
        let file = Arc::new(file);
        lock(&self.open_locals).put(object.id, file.clone());
        Some(file)
    }

    /// Moves complete objects into `local`: hash the whole, make it durable, then rename.
    ///
    /// Many small objects share one `syncfs`, because a `fsync` for each of 3,000 files takes longer than fetching them.
    ///
    /// # Errors
    /// An object's whole is not its id although every chunk was right: the manifest lies; the object is emptied.
    pub fn finish(&self, partials: &[Arc<Partial>]) -> Result<(), CacheError> {
        let _one_at_a_time = lock(&self.finishing);
        let mut wrong = None;
        let mut ready: Vec<&Arc<Partial>> = Vec::with_capacity(partials.len());
        for partial in partials.iter().filter(|partial| !partial.is_sealed()) {
            // Whoever sees the last chunk come hands it over, and several may have.
            if ready.iter().any(|other| Arc::ptr_eq(other, partial)) {
                continue;
            }
            match self.check_whole(partial) {
                Ok(true) => ready.push(partial),
                Ok(false) => wrong = Some(partial.object),
                Err(error) => return Err(CacheError::io("hash", &partial.path, error)),
            }
        }
        if let Err(error) = self.make_durable(&ready) {
            // What the disk failed to write may read back as something else: none of it is kept.
            ready.iter().for_each(|partial| self.discard(partial));
            return Err(error);
        }
        // One that fails must not leave the others sealed and in the wrong place.
        let adopted: Vec<_> = ready.into_iter().map(|partial| self.adopt(partial)).collect();
        adopted.into_iter().collect::<Result<(), _>>()?;
        wrong.map_or(Ok(()), |id| Err(CacheError::WrongHash(id)))
    }

    fn make_durable(&self, ready: &[&Arc<Partial>]) -> Result<(), CacheError> {
        let together = ready.len() > 4;
        for partial in ready {
            partial.seal(!together).map_err(|e| CacheError::io("sync", &partial.path, e))?;
        }
        if together {
            let dir = File::open(self.dir.join("partial"));
            dir.and_then(|dir| Ok(rustix::fs::syncfs(&dir)?)).map_err(|e| CacheError::io("sync", &self.dir, e))?;
        }
        Ok(())
    }

    fn discard(&self, partial: &Partial) {
        lock(&self.partials).remove(&(partial.object, partial.chunk_bytes));
        if std::fs::remove_file(&partial.path).is_ok() {
            lower(&self.counts.partial_bytes, partial.bytes);
        }
    }

    fn check_whole(&self, partial: &Partial) -> std::io::Result<bool> {
        if hash_file(&partial.reader, partial.bytes)? == partial.object {
            return Ok(true);
        }
        partial.reset()?;
        lower(&self.counts.partial_bytes, partial.bytes);
        Ok(false)
    }

    fn adopt(&self, partial: &Partial) -> Result<(), CacheError> {
        let path = self.local_path(&partial.object);
        make_private_dir(path.parent().unwrap_or(&self.dir))?;
        let existed = path.exists();
        let renamed = std::fs::rename(&partial.path, &path);
        // Removed from the table only now: whoever misses it there finds the object in `local`.
        lock(&self.partials).remove(&(partial.object, partial.chunk_bytes));
        renamed.map_err(|e| CacheError::io("rename to", &path, e))?;
        lower(&self.counts.partial_bytes, partial.bytes);
        if !existed {
            self.counts.local_bytes.fetch_add(partial.bytes, Ordering::Relaxed);
            self.counts.objects.fetch_add(1, Ordering::Relaxed);
        }
        if self.verity {
            protect(&path);
        }
        Ok(())
    }

    /// Hashes every local object of a tree; needed once between a boot and the first execution, because the kernel
    /// reads `local` unchecked. Wrong objects are removed, so that they are fetched again.
    ///
    /// `progress` is told the bytes hashed so far.
    pub fn verify_local(
        &self,
        manifest: &Manifest,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(u64),
    ) -> VerifyReport {
        let mut report = VerifyReport::default();
        for object in &manifest.objects {
            if cancel.load(Ordering::Relaxed) {
                report.cancelled = true;
                break;
            }
            let Ok(file) = File::open(self.local_path(&object.id)) else { continue };
            report.checked += 1;
            report.checked_bytes += object.bytes;
            let right = file.metadata().is_ok_and(|found| found.len() == object.bytes)
                && hash_file(&file, object.bytes).is_ok_and(|id| id == object.id);
            if !right {
                self.remove_local(&object.id);
                report.wrong.push(object.id);
            }
            progress(report.checked_bytes);
        }
        report
    }

    /// Removes an object from `local`.
    pub(super) fn remove_local(&self, id: &ObjectId) -> u64 {
        let path = self.local_path(id);
        lock(&self.open_locals).pop(id);
        let bytes = std::fs::symlink_metadata(&path).map_or(0, |found| found.len());
        if std::fs::remove_file(&path).is_err() {
            return 0;
        }
        lower(&self.counts.local_bytes, bytes);
        lower(&self.counts.objects, 1);
        bytes
    }
}

/// Whether `local` stands on a file system with fs-verity, found by trying.
pub(super) fn probe_verity(dir: &Path) -> bool {
    let path = dir.join(format!(".verity-probe-{}", std::process::id()));
    let tried = std::fs::write(&path, b"probe").and_then(|()| File::open(&path));
    let works = tried.and_then(|file| crate::sys::enable_verity(file.as_fd())).is_ok();
    let _ = std::fs::remove_file(&path);
    works
}

/// From here on the kernel itself refuses a changed page. A failure is no harm: the object was hashed.
fn protect(path: &Path) {
    if let Err(error) = File::open(path).and_then(|file| crate::sys::enable_verity(file.as_fd())) {
        tracing::debug!(path = %path.display(), %error, "fs-verity not enabled");
    }
}

fn hash_file(file: &File, bytes: u64) -> std::io::Result<ObjectId> {
    const PIECE: usize = 256 << 10;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; PIECE.min(width::index(bytes))];
    let mut at = 0;
    while at < bytes {
        let piece = PIECE.min(width::index(bytes - at));
        file.read_exact_at(&mut buffer[..piece], at)?;
        hasher.update(&buffer[..piece]);
        at += piece as u64;
    }
    Ok(ObjectId::from_bytes(*hasher.finalize().as_bytes()))
}
