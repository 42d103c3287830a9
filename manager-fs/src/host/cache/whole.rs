//! Whole objects: how they become local, and how they are opened.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proto::ObjectId;
use proto::manifest::Object;
use proto::width;

use super::stamps::{Stamp, stamp};
use super::{Cache, CacheError, Partial, lower, make_private_dir};
use crate::moments::{self, Moment};
use crate::sync::lock;

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

    /// The object's file, if it is whole and local. One that does not look as it did when it was hashed last is hashed now,
    /// which may take a while, and removed if it is wrong.
    pub(crate) fn open_local(&self, object: &Object, chunk_bytes: u32) -> Option<Arc<File>> {
        if let Some(file) = self.open_stamped(object) {
            return Some(file);
        }
        let file = File::open(self.local_path(&object.id)).ok()?;
        if !self.hash_again(object, chunk_bytes, &file) {
            tracing::error!(object = %object.id, "a local object has other bytes than it should; it is fetched again");
            self.remove_local(&object.id);
            return None;
        }
        Some(self.keep_open(object.id, file))
    }

    /// As [`Cache::open_local`], without hashing: `None` also for an object that would have to be.
    pub(crate) fn open_stamped(&self, object: &Object) -> Option<Arc<File>> {
        if let Some(file) = lock(&self.open_locals).get(&object.id)
            && self.is_stamped(&object.id, file)
        {
            return Some(Arc::clone(file));
        }
        let file = File::open(self.local_path(&object.id)).ok()?;
        self.is_stamped(&object.id, &file).then(|| self.keep_open(object.id, file))
    }

    /// The file of an object from which another one is made, which is then hashed: so this one need not be.
    pub(crate) fn open_base(&self, object: &Object) -> Option<Arc<File>> {
        self.open_stamped(object).or_else(|| {
            let file = File::open(self.local_path(&object.id)).ok()?;
            file.metadata().is_ok_and(|found| found.len() == object.bytes).then(|| Arc::new(file))
        })
    }

    fn keep_open(&self, id: ObjectId, file: File) -> Arc<File> {
        let file = Arc::new(file);
        lock(&self.open_locals).put(id, Arc::clone(&file));
        file
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
        let mut hashed: Vec<Stamp> = Vec::with_capacity(partials.len());
        for partial in partials.iter().filter(|partial| !partial.is_sealed()) {
            // Whoever sees the last chunk come hands it over, and several may have.
            if ready.iter().any(|other| Arc::ptr_eq(other, partial)) {
                continue;
            }
            match self.check_whole(partial) {
                Ok(Some(stamp)) => {
                    ready.push(partial);
                    hashed.push(stamp);
                }
                Ok(None) => wrong = Some(partial.object),
                Err(error) => return Err(CacheError::io("hash", &partial.path, error)),
            }
        }
        if let Err(error) = self.make_durable(&ready) {
            // What the disk failed to write may read back as something else: none of it is kept.
            ready.iter().for_each(|partial| self.discard(partial));
            return Err(error);
        }
        // One that fails must not leave the others sealed and in the wrong place.
        let adopted: Vec<_> =
            ready.into_iter().zip(&hashed).map(|(partial, hashed)| self.adopt(partial, hashed)).collect();
        adopted.into_iter().collect::<Result<(), _>>()?;
        wrong.map_or(Ok(()), |id| Err(CacheError::WrongHash(id)))
    }

    fn make_durable(&self, ready: &[&Arc<Partial>]) -> Result<(), CacheError> {
        if ready.is_empty() {
            return Ok(());
        }
        moments::reach(Moment::ObjectSync, &self.dir).map_err(|e| CacheError::io("sync", &self.dir, e))?;
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

    /// How the file looked before it was hashed; `None` if it is not the object.
    fn check_whole(&self, partial: &Partial) -> std::io::Result<Option<Stamp>> {
        let before = stamp(&partial.reader)?;
        if hash_file(&partial.reader, partial.bytes)? == partial.object {
            return Ok(Some(before));
        }
        partial.reset()?;
        lower(&self.counts.partial_bytes, partial.bytes);
        Ok(None)
    }

    /// Moves a sealed object to its place, and notes how it looks there if its bytes are those that were hashed.
    fn adopt(&self, partial: &Partial, hashed: &Stamp) -> Result<(), CacheError> {
        let path = self.local_path(&partial.object);
        make_private_dir(path.parent().unwrap_or(&self.dir))?;
        let existed = path.exists();
        let renamed = moments::reach(Moment::ObjectPut, &path).and_then(|()| std::fs::rename(&partial.path, &path));
        if renamed.is_ok() {
            if self.verity {
                protect(&path);
            }
            // Sealing, renaming and protecting changed how it looks, but none of its bytes.
            if let Some(now) = stamp(&partial.reader).ok().filter(|now| now.has_bytes_of(hashed)) {
                self.stamps.put(&[(partial.object, now)]);
            }
        }
        // Removed from the table only now: whoever misses it there finds the object in `local`.
        lock(&self.partials).remove(&(partial.object, partial.chunk_bytes));
        renamed.map_err(|e| CacheError::io("rename to", &path, e))?;
        lower(&self.counts.partial_bytes, partial.bytes);
        if !existed {
            self.counts.local_bytes.fetch_add(partial.bytes, Ordering::Relaxed);
            self.counts.objects.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
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
pub(super) fn protect(path: &Path) {
    if let Err(error) = File::open(path).and_then(|file| crate::sys::enable_verity(file.as_fd())) {
        tracing::debug!(path = %path.display(), %error, "fs-verity not enabled");
    }
}

/// Whether the kernel refuses a changed page of this file.
pub(super) fn is_protected(file: &File) -> bool {
    use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statx};
    let found = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS);
    found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::VERITY))
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
