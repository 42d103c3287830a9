//! What a start awaits of its bundle as it comes in: the manifest, pages, and how soon.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use proto::ObjectId;
use proto::manifest::Manifest;
use proto::proof::PageSet;

/// A rate that was measured for less is none.
const LEAST: Duration = Duration::from_millis(1);

/// Pages that will come, by object and chunk: which, and after how many bytes.
pub(super) type Expected = HashMap<(ObjectId, u32), Vec<(PageSet, u64)>>;

/// How fast a bundle comes.
#[derive(Default)]
pub(super) struct Pace {
    /// When its first bytes came.
    pub(super) since: Option<Instant>,
    /// Bytes since.
    pub(super) bytes: u64,
    /// Bytes at which the frames begin.
    pub(super) front: u64,
    /// What nobody has recorded is long, and has what may never be wanted: of it only what is about to come is waited for.
    pub(super) is_guess: bool,
}

impl Pace {
    /// Whether what stands before byte `at` of the frames comes sooner than an answer that takes so long.
    pub(super) fn is_near(&self, at: u64, answer: Duration) -> bool {
        let Some(since) = self.since.filter(|_| self.is_guess) else { return true };
        let left = (self.front + at).saturating_sub(self.bytes);
        let took = since.elapsed().max(LEAST);
        took.mul_f64(left as f64 / self.bytes.max(1) as f64) <= answer
    }
}

pub(super) enum ManifestState {
    Awaited,
    /// Kept until someone takes it: the disk may not have it.
    Here(Box<Manifest>),
    /// Nobody has to wait for it.
    Elsewhere,
}
