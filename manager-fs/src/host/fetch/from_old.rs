//! What a tree needs, out of a tree that is here: equal chunks are copied, changed ones made by a delta.
//!
//! Whatever goes wrong here costs nothing but bytes: what is missing afterwards is fetched as it is.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use proto::manifest::{Manifest, Object};
use proto::width;
use proto::{ChunkId, TreeId};

use super::hydrate::pace;
use super::{Fetcher, UpstreamError, Wanted, has};
use crate::host::cache::Place;
use crate::host::delta::{Arrived, DeltaError, MadeChunk, Reader, make};

/// Less than this is fetched as it is: a delta's index and waiting for it cost more than it saves.
const DELTA_BYTES_MIN: u64 = 256 << 10;

/// A tree, with its verified manifest.
#[derive(Debug, Clone, Copy)]
pub struct TreeRef<'a> {
    /// The tree's id, under which the manager is asked.
    pub id: &'a TreeId,
    /// What it consists of.
    pub manifest: &'a Manifest,
}

/// How a tree is made out of another one.
#[derive(Debug, Clone, Copy)]
pub struct FromOldOptions {
    /// By when the delta must have come, its making included.
    pub deadline: Instant,
    /// At most so many bytes of it a second; `None` for as fast as it goes.
    pub bytes_per_second_max: Option<u64>,
}

impl Fetcher {
    /// Gets what it can of tree `to` out of tree `from`, whose objects are all local. Blocks.
    pub fn take_from_old(&self, from: &TreeId, to: TreeRef<'_>, options: FromOldOptions, cancel: &AtomicBool) {
        let Some(old) = self.cache.manifest(from) else { return };
        let missing_bytes = self.copy_equal(&old, to, cancel);
        if missing_bytes < DELTA_BYTES_MIN || cancel.load(Ordering::Relaxed) {
            return;
        }
        let old_bytes = match std::fs::read(self.cache.manifest_path(from)) {
            Ok(bytes) => bytes,
            Err(error) => return tracing::warn!(%error, tree = %from, "no delta: the old manifest cannot be read"),
        };
        match Reader::new(*from, *to.id, old_bytes) {
            Ok(reader) => {
                let _coming = self.starts.coming(to.id);
                self.take_delta(from, to.id, reader, options, cancel);
            }
            Err(error) => tracing::warn!(%error, tree = %from, "no delta: the old manifest is damaged"),
        }
    }

    /// Copies every chunk of the new tree that stands in a local object of the old one; returns the bytes still missing.
    fn copy_equal(&self, old: &Manifest, to: TreeRef<'_>, cancel: &AtomicBool) -> u64 {
        let new = to.manifest;
        let mut places: HashMap<&ChunkId, (&Object, u64)> = HashMap::new();
        for object in &old.objects {
            for (at, id) in object.chunks.iter().enumerate() {
                places.entry(id).or_insert((object, at as u64 * u64::from(old.chunk_bytes)));
            }
        }
        let mut missing_bytes = 0;
        for object in new.objects.iter().filter(|object| !self.cache.is_local(object)) {
            let Ok(Place::Partial(partial)) = self.cache.place(object, new.chunk_bytes) else { continue };
            let wanted = Wanted::of(to.id, new, object);
            for (index, id) in object.chunks.iter().enumerate() {
                let index = width::count(index);
                if cancel.load(Ordering::Relaxed) {
                    return missing_bytes;
                }
                let bytes = wanted.chunk_len(index);
                if has(Some(&partial), wanted, index) {
                    continue;
                }
                let copied = places.get(id).and_then(|(base, offset)| self.copy(base, *offset, bytes, id));
                match copied {
                    Some(plain) if self.cache.put_chunk(&partial, index, &plain) => {
                        self.counters.copied_bytes.add(u64::from(bytes));
                    }
                    _ => missing_bytes += u64::from(bytes),
                }
            }
        }
        missing_bytes
    }

    fn copy(&self, base: &Object, offset: u64, bytes: u32, id: &ChunkId) -> Option<Vec<u8>> {
        let file = self.cache.open_base(base)?;
        let mut plain = vec![0; bytes as usize];
        file.read_exact_at(&mut plain, offset).ok()?;
        (ChunkId::of(&plain) == *id).then_some(plain)
    }

    fn take_delta(
        &self,
        from: &TreeId,
        to: &TreeId,
        mut reader: Reader,
        options: FromOldOptions,
        cancel: &AtomicBool,
    ) {
        let mut failed: Option<DeltaError> = None;
        let (begun, mut came) = (self.clock().now(), 0);
        let result = self.upstream.delta(from, to, options.deadline, &mut |bytes| {
            if bytes.is_empty() {
                return self.counters.signs_of_life.add(1);
            }
            came += bytes.len() as u64;
            pace(self.clock(), options.bytes_per_second_max, begun, came, cancel);
            self.counters.wire_bytes.add(bytes.len() as u64);
            self.counters.delta_bytes.add(bytes.len() as u64);
            if failed.is_none() && !cancel.load(Ordering::Relaxed) {
                reader.push(bytes);
                failed = self.make_arrived(&mut reader).err();
            }
        });
        self.counters.requests.add(1);
        match (failed, result) {
            (Some(error @ (DeltaError::WrongHash { .. } | DeltaError::Manifest(_))), _) => {
                self.wrong_hash(format!("delta from {from} to {to}: {error}"));
            }
            (Some(error), _) => {
                tracing::warn!(%from, %to, %error, "the delta is not used; the rest is fetched as it is")
            }
            (None, Err(error @ (UpstreamError::NotExported(_) | UpstreamError::Unavailable(_)))) => {
                tracing::info!(%from, %to, %error, "no delta; the tree is fetched as it is");
            }
            (None, Err(error)) => tracing::warn!(%from, %to, %error, "no delta; the tree is fetched as it is"),
            (None, Ok(())) => {}
        }
    }

    /// Makes the chunks of every frame that has arrived, and keeps them.
    fn make_arrived(&self, reader: &mut Reader) -> Result<(), DeltaError> {
        while let Some(arrived) = reader.arrived()? {
            let (frame, stored) = match arrived {
                Arrived::Manifest(_) => continue,
                Arrived::End => return Ok(()),
                Arrived::Frame(frame, stored) => (frame, stored),
            };
            let Some(new) = reader.new_tree() else { return Ok(()) };
            let mut read_old = |object: &Object, offset: u64, into: &mut [u8]| {
                let file = self.cache.open_base(object).ok_or(std::io::ErrorKind::NotFound)?;
                file.read_exact_at(into, offset)
            };
            make(&frame, &stored, (reader.old(), new), &mut read_old, &mut |made: MadeChunk<'_>| {
                if let Ok(Place::Partial(partial)) = self.cache.place(made.object, new.chunk_bytes)
                    && self.cache.put_chunk(&partial, made.index, made.plain)
                {
                    self.counters.delta_plain_bytes.add(made.plain.len() as u64);
                }
            })?;
        }
        Ok(())
    }
}
