//! A start-up bundle as it comes in: verified, kept, told to those who wait for it.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use proto::TreeId;
use proto::bundle::{Frame, Origin};
use proto::manifest::Object;

use super::Fetcher;
use super::awaited::{Expected, ManifestState};
use crate::host::bundle::{Arrived, BundleError, Reader};

/// Stored bytes of a guess that has more than what a loader reads.
const LONG_BYTES: u64 = 1 << 20;

/// One bundle as it comes in.
pub(super) struct Coming<'f> {
    fetcher: &'f Arc<Fetcher>,
    number: u64,
    tree: Option<TreeId>,
    reader: Reader,
    /// How it is known what is touched. Told before any of it comes.
    origin: Origin,
    pub(super) failed: Option<BundleError>,
    /// Bytes that have come, and how many of them were of frames that have been used.
    came: u64,
    frames: u64,
}

impl<'f> Coming<'f> {
    pub(super) fn new(fetcher: &'f Arc<Fetcher>, number: u64, tree: Option<TreeId>, reader: Reader) -> Self {
        Self { fetcher, number, tree, reader, origin: Origin::Recorded, failed: None, came: 0, frames: 0 }
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.came += bytes.len() as u64;
        self.fetcher.starts.change(self.number, |start| {
            start.pace.since.get_or_insert_with(Instant::now);
            start.pace.bytes = self.came;
        });
        if self.failed.is_none() {
            self.reader.push(bytes);
            self.failed = self.take_arrived().err();
        }
        if self.failed.is_some() {
            // Readers stop waiting.
            self.fetcher.starts.change(self.number, |start| {
                start.expected = Some(HashMap::new());
                start.manifest = ManifestState::Elsewhere;
            });
        }
    }

    fn take_arrived(&mut self) -> Result<(), BundleError> {
        while let Some(arrived) = self.reader.arrived()? {
            match arrived {
                Arrived::Tree(tree, origin) => {
                    if self.tree.is_some_and(|known| known != tree) {
                        return Err(BundleError::Old(format!(
                            "tree {tree} came instead of the one that was asked for"
                        )));
                    }
                    (self.tree, self.origin) = (Some(tree), origin);
                    self.fetcher.starts.change(self.number, |start| start.tree = Some(tree));
                    self.fetcher.starts.come(tree, origin);
                }
                Arrived::Manifest(bytes) => self.take_manifest(&bytes),
                Arrived::Index => self.expect(),
                Arrived::Frame(frame, stored) => self.take_frame(&frame, &stored)?,
                Arrived::End => break,
            }
        }
        Ok(())
    }

    fn take_manifest(&self, bytes: &[u8]) {
        let (Some(tree), Some(manifest)) = (self.tree, self.reader.tree()) else { return };
        if let Err(error) = self.fetcher.cache.put_manifest_soon(&tree, bytes) {
            tracing::warn!(%error, "the manifest is not kept");
        }
        let manifest = Box::new(manifest.clone());
        self.fetcher.starts.change(self.number, |start| start.manifest = ManifestState::Here(manifest));
    }

    fn expect(&self) {
        let Some(tree) = self.reader.tree() else { return };
        let (mut expected, mut at) = (Expected::new(), 0);
        for frame in self.reader.frames() {
            at += frame.recipe.stored_bytes();
            for part in &frame.makes {
                if let (Some((set, _)), Some(object)) = (part.of(tree), tree.objects.get(part.object as usize)) {
                    expected.entry((object.id, part.chunk)).or_default().push((set, at));
                }
            }
        }
        // What of the frames has come already is not counted: a few milliseconds.
        let (front, is_guess) = (self.came, self.origin == Origin::Guessed && at > LONG_BYTES);
        if let Some(tree) = self.tree.filter(|_| is_guess) {
            self.fetcher.starts.come_long(tree);
        }
        self.fetcher.starts.change(self.number, |start| {
            start.expected = Some(expected);
            (start.pace.front, start.pace.is_guess) = (front, is_guess);
        });
    }

    fn take_frame(&mut self, frame: &Frame, stored: &[u8]) -> Result<(), BundleError> {
        let fetcher = self.fetcher;
        let Some(chunk_bytes) = self.reader.tree().map(|tree| tree.chunk_bytes) else { return Ok(()) };
        let mut read_old = |object: &Object, offset: u64, into: &mut [u8]| {
            let file = fetcher.cache.open_base(object).ok_or(std::io::ErrorKind::NotFound)?;
            file.read_exact_at(into, offset)
        };
        let (mut ranges, mut made) = (Vec::new(), Vec::new());
        let result = self.reader.make(frame, stored, &mut read_old, &mut |object, index, set, plain| {
            ranges.extend(fetcher.keep_pages(object, chunk_bytes, index, set, plain));
            made.push((object.id, index));
        });
        self.frames += frame.recipe.stored_bytes();
        let at = self.frames;
        fetcher.starts.change(self.number, |start| {
            let Some(expected) = &mut start.expected else { return };
            for key in &made {
                if let Some(coming) = expected.get_mut(key) {
                    coming.retain(|(_, comes)| *comes > at);
                }
            }
        });
        // A guess stays out of the page cache: what the program really touches is to be seen.
        if let Some(tree) = self.tree.filter(|_| !ranges.is_empty() && self.origin == Origin::Recorded) {
            (fetcher.options.on_arrived)(&tree, ranges);
        }
        result
    }
}
