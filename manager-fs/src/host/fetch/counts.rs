//! What was fetched, counted: one list, of which both the counters and what is shown of them are made.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counts {
    ($($(#[$doc:meta])+ $name:ident,)+) => {
        /// What was fetched since start.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
        pub struct FetchCounts {
            $($(#[$doc])+ pub $name: u64,)+
        }

        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: Counter,)+
        }

        impl Counters {
            pub(super) fn now(&self) -> FetchCounts {
                FetchCounts { $($name: self.$name.0.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

/// One of them.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }
}

counts! {
    /// Requests sent upstream.
    requests,
    /// Chunks received and verified.
    chunks,
    /// Bytes received, as they were sent (compressed).
    wire_bytes,
    /// Bytes after decoding.
    plain_bytes,
    /// Reads that waited for a chunk that another read had asked for.
    joined,
    /// Answers with a wrong hash.
    wrong_hashes,
    /// Requests that failed and were sent again.
    retries,
    /// Bytes of deltas received; they are in `wire_bytes` too.
    delta_bytes,
    /// Bytes of chunks that deltas made.
    delta_plain_bytes,
    /// Bytes of chunks copied from objects that were here already.
    copied_bytes,
    /// Bytes of start-up bundles received; they are in `wire_bytes` too.
    bundle_bytes,
    /// Bytes of pages that bundles made.
    bundle_plain_bytes,
    /// How often the manager said that it is still making a delta.
    signs_of_life,
}
