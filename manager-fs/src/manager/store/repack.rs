//! Compressing packs anew, as well as it goes, when nobody waits for it.

use proto::bulk::Encoding;
use proto::width;

use super::index::Slot;
use super::pack::{self, Effort, Frame, PackWriter, SealedPack};
use super::pack_store::BlobName;
use super::pipeline::compress;
use super::{PackId, Store, StoreError, StoredChunk};
use crate::sync::lock;

/// What compressing a pack anew has saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repacked {
    /// Bytes of the pack that was there.
    pub bytes_before: u64,
    /// Bytes of the one that has taken its place.
    pub bytes_after: u64,
}

impl Store {
    /// The packs whose frames could be smaller: those that were written while a publication waited.
    pub fn packs_to_repack(&self) -> Vec<PackId> {
        let index = self.index();
        let bad = lock(&self.bad_packs);
        index.fast().filter(|pack| !bad.contains(pack)).copied().collect()
    }

    /// Puts a pack of the same chunks, each compressed as well as it goes and read back, in the place of one that was
    /// written fast. Readers notice nothing; a crash leaves both packs, and the next time makes the same one again.
    ///
    /// `None` when the pack stays: it is gone or known to be damaged, `give_up` says so, or a publication is running, which
    /// needs the cores, perhaps the room that the copy takes, and perhaps this very pack.
    ///
    /// # Errors
    /// The store cannot be read or written, or the pack turns out to be damaged: then it stays as it is for `verify`.
    pub fn repack(&self, id: &PackId, give_up: &dyn Fn() -> bool) -> Result<Option<Repacked>, StoreError> {
        let Some(slot) = self.index().slot(id) else { return Ok(None) };
        if self.is_bad(id) {
            return Ok(None);
        }
        let new = match self.compress_anew(id, give_up) {
            // A collection has removed it meanwhile.
            Err(_) if self.index().slot(id) != Some(slot) => return Ok(None),
            Err(error @ StoreError::Damaged { .. }) => {
                self.mark_bad(id);
                return Err(error);
            }
            Err(error) => return Err(error),
            Ok(None) => return Ok(None),
            Ok(Some(new)) => new,
        };
        let failed = |cause| StoreError::io("the repacked pack", cause);
        // Neither `verify` nor `gc` may find a pack gone that it has just listed.
        let _alone = lock(&self.collecting);
        if self.index().slot(id) != Some(slot) || self.is_bad(&new.id()) {
            return Ok(None);
        }
        let size = |pack| self.packs.size(&BlobName::Pack(pack)).map_err(failed).map(Option::unwrap_or_default);
        let bytes_before = size(*id)?;
        self.put_in_place((*id, slot), new)?
            .map_or(Ok(None), |new| Ok(Some(Repacked { bytes_before, bytes_after: size(new)? })))
    }

    fn put_in_place(&self, old: (PackId, Slot), new: SealedPack) -> Result<Option<PackId>, StoreError> {
        let (new, index) = new.commit().map_err(|cause| StoreError::io("the repacked pack", cause))?;
        Ok(self.replace(old, new, &index)?.then_some(new))
    }

    /// Every chunk of the pack, also those of which another pack has a copy: so the same pack always makes the same one.
    fn compress_anew(&self, id: &PackId, give_up: &dyn Fn() -> bool) -> Result<Option<SealedPack>, StoreError> {
        let damaged = |fault: String| StoreError::Damaged { what: format!("pack {id}"), fault };
        let failed = |cause| StoreError::io("the repacked pack", cause);
        let packs = self.packs.as_ref();
        let found = pack::read_index(packs, id).map_err(|fault| damaged(fault.to_string()))?;
        let mut new = PackWriter::create(packs, Effort::Best).map_err(failed)?;
        let mut compressor = zstd::bulk::Compressor::new(Effort::Best.level()).map_err(failed)?;
        let mut buffer = Vec::new();
        for frame in found.frames {
            if give_up() || self.registry.is_publishing() {
                return Ok(None);
            }
            let range = frame.offset..frame.offset + u64::from(frame.stored_bytes);
            let stored = packs.get(&BlobName::Pack(*id), range);
            let stored = stored.map_err(|cause| StoreError::io(format!("pack {id}"), cause))?;
            let chunk =
                StoredChunk { encoding: frame.encoding, plain_bytes: frame.plain_bytes, bytes: stored.clone() };
            let plain =
                chunk.plain(&frame.chunk).map_err(|fault| damaged(format!("chunk {}: {fault}", frame.chunk)))?;
            buffer.resize(plain.len(), 0);
            let (encoding, bytes) = compress(Some(&mut compressor), &plain, &mut buffer);
            let smaller = bytes < stored.len() && comes_back(encoding, &buffer[..bytes], &plain);
            let (encoding, stored) =
                if smaller { (encoding, &buffer[..bytes]) } else { (frame.encoding, &stored[..]) };
            let frame =
                Frame { stored_bytes: width::count(stored.len()), encoding, check: pack::check_of(stored), ..frame };
            new.append_many([frame], stored).map_err(failed)?;
        }
        new.seal().map(Some).map_err(failed)
    }
}

/// Whether the stored bytes make the plain ones: the only other copy is about to be removed.
fn comes_back(encoding: Encoding, stored: &[u8], plain: &[u8]) -> bool {
    match encoding {
        Encoding::Raw => stored == plain,
        Encoding::Zstd => zstd::bulk::decompress(stored, plain.len()).is_ok_and(|again| again == plain),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::thread;

    use super::super::tests::{assert_sound, copy, publish_plain, read_all};
    use super::super::{BlobKind, Usage};
    use super::*;
    use crate::manager::monitor::Quiet;
    use crate::manager::testing::{Fixture, list};

    /// A text, which compresses better the harder one tries (by a fifth), and a file that does not compress. No program of
    /// the machine: what is gained on one depends on the compiler that made it.
    fn source(dir: &Path) -> std::path::PathBuf {
        let path = dir.join("source");
        fs::create_dir(&path).unwrap();
        let mut noise = vec![0; 300_000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        fs::write(path.join("text"), text(&noise)).unwrap();
        fs::write(path.join("noise"), noise).unwrap();
        path
    }

    /// 2 MB of 2,000 words, each of which is followed by one of six.
    fn text(random: &[u8]) -> Vec<u8> {
        let letters = |word: usize| random[word * 8..][..3 + word % 6].iter().map(|byte| b'a' + byte % 26);
        let mut text = Vec::new();
        let mut word = 0;
        for choice in random.iter().cycle() {
            text.extend(letters(word));
            text.push(b' ');
            if text.len() >= 2_000_000 {
                break;
            }
            let at = 16_000 + word * 12 + usize::from(choice % 6) * 2;
            word = usize::from(u16::from_le_bytes([random[at], random[at + 1]])) % 2_000;
        }
        text
    }

    fn numbers(dir: &Path, n: usize) -> std::path::PathBuf {
        let path = dir.join(format!("numbers-{n}"));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("text"), format!("{n} ").repeat(50_000)).unwrap();
        path
    }

    fn repack_all(store: &Store) -> Vec<Repacked> {
        let packs = store.packs_to_repack();
        packs.iter().filter_map(|pack| store.repack(pack, &|| false).unwrap()).collect()
    }

    #[test]
    fn a_pack_is_compressed_anew_once_and_reads_the_same() {
        let fixture = Fixture::new();
        let store = &fixture.store;
        let published = publish_plain(store, &source(fixture.dir.path())).unwrap();
        let tree = published.tree;
        let before = store.usage().unwrap();
        assert_eq!(repack_all(store), [], "a publication relies on the pack");
        drop(published);

        let [saved] = repack_all(store)[..] else { panic!("one pack") };
        let after = store.usage().unwrap();
        assert_eq!((saved.bytes_before, saved.bytes_after), (before.pack_bytes, after.pack_bytes));
        assert!(saved.bytes_after * 20 < saved.bytes_before * 19, "{saved:?}");
        assert_eq!(Usage { pack_bytes: 0, ..after }, Usage { pack_bytes: 0, ..before });
        assert_sound(store);
        read_all(store, &tree);

        // For good: the pack itself says that nothing more is to be gained, whoever copies it.
        assert_eq!(store.packs_to_repack(), []);
        let root = store.root().to_path_buf();
        let dir = fixture.dir.path().join("again");
        copy(&root, &dir);
        let again = Store::open(&dir).unwrap();
        assert_eq!(again.packs_to_repack(), []);
        read_all(&again, &tree);
    }

    /// A crash after the new pack is there and before the old one is gone: both are read, and the next time ends with one.
    #[test]
    fn after_a_crash_the_same_pack_is_made_again() {
        let fixture = Fixture::new();
        let tree = publish_plain(&fixture.store, &source(fixture.dir.path())).unwrap().tree;
        let both = fixture.dir.path().join("both");
        copy(fixture.store.root(), &both);
        assert_eq!(repack_all(&fixture.store).len(), 1);
        let packs = fixture.store.root().join("packs");
        for path in list(&packs) {
            let (from, to) = (packs.join(&path), both.join("packs").join(&path));
            if from.is_dir() { fs::create_dir_all(&to).unwrap() } else { fs::copy(&from, &to).map(|_| ()).unwrap() }
        }

        let store = Store::open(&both).unwrap();
        assert_eq!(store.usage().unwrap().packs, 2);
        read_all(&store, &tree);
        assert_eq!(repack_all(&store).len(), 1);
        assert_eq!(store.packs.list(BlobKind::Pack).unwrap(), fixture.store.packs.list(BlobKind::Pack).unwrap());
        assert_sound(&store);
        read_all(&store, &tree);
    }

    #[test]
    fn a_damaged_pack_stays_for_verify() {
        let fixture = Fixture::new();
        publish_plain(&fixture.store, &source(fixture.dir.path())).unwrap();
        let store = &fixture.store;
        let [pack] = store.packs_to_repack()[..] else { panic!("one pack") };
        let (shard, rest) = pack.to_shard();
        let path = store.root().join("packs").join(shard).join(format!("{rest}.pack"));
        let mut bytes = fs::read(&path).unwrap();
        bytes[1000] ^= 1;
        fs::write(&path, &bytes).unwrap();

        let error = store.repack(&pack, &|| false).unwrap_err().to_string();
        assert!(error.contains(&pack.to_string()) && error.contains("verify"), "{error}");
        assert_eq!((store.packs_to_repack(), store.repack(&pack, &|| false).unwrap()), (vec![], None));
        assert_eq!(fs::read(&path).unwrap(), bytes);
        assert_eq!(list(&store.root().join("tmp")), [""; 0]);
        assert_ne!(store.verify(&Quiet).unwrap().problems, []);
    }

    /// As after a crash, but the new pack is damaged: the old one is the only sound copy, and stays.
    #[test]
    fn a_damaged_copy_takes_no_pack_s_place() {
        let fixture = Fixture::new();
        let tree = publish_plain(&fixture.store, &source(fixture.dir.path())).unwrap().tree;
        let [old] = fixture.store.packs_to_repack()[..] else { panic!("one pack") };
        let both = fixture.dir.path().join("both");
        copy(fixture.store.root(), &both);
        assert_eq!(repack_all(&fixture.store).len(), 1);
        let [BlobName::Pack(new)] = fixture.store.packs.list(BlobKind::Pack).unwrap()[..] else { panic!("one pack") };
        let path = |root: &Path| {
            let (shard, rest) = new.to_shard();
            root.join("packs").join(shard).join(format!("{rest}.pack"))
        };
        let mut bytes = fs::read(path(fixture.store.root())).unwrap();
        bytes[1000] ^= 1;
        fs::create_dir_all(path(&both).parent().unwrap()).unwrap();
        fs::write(path(&both), bytes).unwrap();

        let store = Store::open(&both).unwrap();
        assert_ne!(store.verify(&Quiet).unwrap().problems, []);
        assert_eq!(store.repack(&old, &|| false).unwrap(), None);
        assert_eq!(store.usage().unwrap().packs, 2);
        read_all(&store, &tree);
    }

    #[test]
    fn a_pack_that_a_collection_removes_meanwhile_is_no_fault() {
        let fixture = Fixture::new();
        let store = &fixture.store;
        publish_plain(store, &source(fixture.dir.path())).unwrap();
        let [pack] = store.packs_to_repack()[..] else { panic!("one pack") };
        let collect = || {
            store.gc(&std::collections::BTreeSet::new(), false, &Quiet).unwrap();
            false
        };
        assert_eq!(store.repack(&pack, &collect).unwrap(), None);
        assert_eq!(store.usage().unwrap().packs, 0);
    }

    /// Such as one that came compressed from another store.
    #[test]
    fn a_chunk_that_is_smaller_already_stays_as_it_is_and_one_that_nobody_compressed_becomes_smaller() {
        let fixture = Fixture::new();
        let store = &fixture.store;
        let mut random = vec![0; 40_008];
        blake3::Hasher::new().finalize_xof().fill(&mut random);
        let plain = text(&random)[..256 << 10].to_vec();
        let best = zstd::bulk::compress(&plain, 22).unwrap();
        assert!(best.len() < zstd::bulk::compress(&plain, Effort::Best.level()).unwrap().len());
        let raw = text(&random[8..])[..256 << 10].to_vec();
        let guard = store.guard();
        let mut taker = store.taker(&guard);
        let mut take = |plain: &[u8], encoding, bytes: &[u8]| {
            let id = proto::ChunkId::of(plain);
            let chunk = StoredChunk { encoding, plain_bytes: width::count(plain.len()), bytes: bytes.to_vec() };
            taker.take(id, &chunk).unwrap();
            (id, chunk)
        };
        let (small, large) = (take(&plain, Encoding::Zstd, &best), take(&raw, Encoding::Raw, &raw));
        taker.finish().unwrap();
        drop(guard);
        assert_eq!(repack_all(store).len(), 1);
        assert_eq!(store.chunk(&small.0).unwrap().unwrap(), small.1);
        assert_eq!(store.chunk(&large.0).unwrap().unwrap().encoding, Encoding::Zstd);
        assert_sound(store);
    }

    #[test]
    fn what_does_not_come_back_as_it_was_takes_nothing_s_place() {
        let plain = b"plain".repeat(100);
        let stored = zstd::bulk::compress(&plain, 3).unwrap();
        assert!(comes_back(Encoding::Raw, &plain, &plain) && comes_back(Encoding::Zstd, &stored, &plain));
        let other = b"other".repeat(100);
        assert!(!comes_back(Encoding::Raw, &other, &plain) && !comes_back(Encoding::Zstd, &stored, &other));
        assert!(!comes_back(Encoding::Zstd, &plain, &plain));
    }

    /// Readers, publishers and a collection beside it: everything that is kept can be read at every moment.
    #[test]
    fn nobody_notices() {
        let fixture = Fixture::new();
        let store = &fixture.store;
        let source = source(fixture.dir.path());
        let tree = publish_plain(store, &source).unwrap().tree;
        let keep = std::collections::BTreeSet::from([tree]);
        let more: Vec<_> = (0..12).map(|n| numbers(fixture.dir.path(), n)).collect();
        // None of them goes on for ever: a failure here must end the test.
        thread::scope(|scope| {
            let others: [thread::ScopedJoinHandle<'_, ()>; 3] = [
                scope.spawn(|| (0..100).for_each(|_| read_all(store, &tree))),
                scope.spawn(|| more.iter().for_each(|source| drop(publish_plain(store, source).unwrap()))),
                scope.spawn(|| {
                    for _ in 0..8 {
                        store.gc(&keep, false, &Quiet).unwrap();
                        assert_sound(store);
                    }
                }),
            ];
            while !others.iter().all(thread::ScopedJoinHandle::is_finished) {
                repack_all(store);
            }
        });
        repack_all(store);
        store.gc(&keep, false, &Quiet).unwrap();
        assert_eq!((store.packs_to_repack(), store.usage().unwrap().packs), (vec![], 1));
        assert_sound(store);
        read_all(store, &tree);
    }

    #[test]
    fn it_is_given_up_when_the_manager_ends() {
        let fixture = Fixture::new();
        publish_plain(&fixture.store, &source(fixture.dir.path())).unwrap();
        let [pack] = fixture.store.packs_to_repack()[..] else { panic!("one pack") };
        assert_eq!(fixture.store.repack(&pack, &|| true).unwrap(), None);
        assert_eq!(fixture.store.packs_to_repack(), [pack]);
        assert_eq!(list(&fixture.store.root().join("tmp")), [""; 0]);
    }
}
