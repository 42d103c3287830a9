//! What happens after a read, off the reader's path: whole objects become local, sequential readers find the next bytes.

use std::sync::Arc;

use proto::width;

use super::assemble::chunk_range;
use super::flight::Leg;
use super::{Fetcher, Urgency, Wanted, has};
use crate::host::cache::Partial;
use crate::sync::lock;

/// Complete objects that wait for the end of a start: each has two descriptors open.
const WAITING_MAX: usize = 1024;

impl Fetcher {
    /// Finishes the object if the read completed it, else fetches ahead of a sequential reader.
    pub(super) fn after_read(self: &Arc<Self>, wanted: Wanted<'_>, partial: &Arc<Partial>, offset: u64, len: u64) {
        if partial.is_complete() {
            return self.finish_soon(partial);
        }
        let ahead = partial.note_read(offset, len, self.options.read_ahead_bytes_max);
        let start = offset + len;
        if ahead == 0 || start >= wanted.object.bytes {
            return;
        }
        let end = (start + ahead).min(wanted.object.bytes);
        let chunks: Vec<u32> = chunk_range(start, width::index(end - start), wanted.chunk_bytes)
            .filter(|index| !has(Some(partial), wanted, *index))
            .collect();
        // Fetched in halves of the window: a reader that catches up asks less often.
        if (chunks.len() as u64) * u64::from(wanted.chunk_bytes) * 2 < ahead.min(end - start) {
            return;
        }
        let (fetcher, tree, partial) = (self.clone(), *wanted.tree, partial.clone());
        let (object, chunk_bytes) = (wanted.object.clone(), wanted.chunk_bytes);
        self.ahead.run(move || {
            let wanted = Wanted { tree: &tree, chunk_bytes, object: &object };
            let (mine, _) = fetcher.depart(wanted, Some(&partial), &chunks, Urgency::Background);
            let deadline = fetcher.clock().now() + fetcher.options.read_deadline;
            if !mine.flights.is_empty() {
                let leg = Leg { wanted, partial: Some(&partial), flights: &mine.flights };
                let _ = fetcher.fly(&tree, &[leg], Urgency::Background, deadline);
            }
            drop(mine);
            if partial.is_complete() {
                fetcher.finish_soon(&partial);
            }
        });
    }

    /// Hands a complete object to a background thread; those that come while one is busy go together. While a start is
    /// watched they wait: making them local would hide who reads them, and cost the start a sync of the disk.
    pub(super) fn finish_soon(self: &Arc<Self>, partial: &Arc<Partial>) {
        let waiting = {
            let mut complete = lock(&self.complete);
            complete.push(partial.clone());
            complete.len()
        };
        if waiting >= WAITING_MAX || !self.starts.is_watched() {
            self.finish_complete();
        }
    }

    pub(super) fn finish_complete(self: &Arc<Self>) {
        let fetcher = self.clone();
        self.ahead.run(move || {
            let complete = std::mem::take(&mut *lock(&fetcher.complete));
            if let Err(error) = fetcher.cache.finish(&complete) {
                tracing::warn!(%error, "an object could not be made local");
            }
        });
    }
}
