//! One start as its host saw it: what was asked for, what was waited for, what came.
//!
//! Times are microseconds since the host began to note.

use serde::{Deserialize, Serialize};

use crate::bounded::{List, Own, PathText, within};

/// Events of one trace: a start of a large program makes some thousand; what comes after these is only counted.
pub const TRACE_EVENTS_MAX: usize = 20_000;
/// Files that a trace names.
pub const TRACE_FILES_MAX: usize = 5_000;

/// What a host did while something was started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// In the order in which they ended.
    #[serde(deserialize_with = "within::<_, List<Own<TraceEvent>, TRACE_EVENTS_MAX>>")]
    pub events: Vec<TraceEvent>,
    /// Paths of the files that events name, in their trees.
    #[serde(deserialize_with = "within::<_, List<PathText, TRACE_FILES_MAX>>")]
    pub files: Vec<String>,
    /// Events that were not noted any more.
    pub left_out: u64,
}

/// Something that took time, or came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceEvent {
    /// What it was.
    pub what: TraceWhat,
    /// When it began.
    pub from_us: u64,
    /// When it was over; of what came, the same.
    pub until_us: u64,
    /// Processor time of the mount daemon's worker until then.
    pub cpu_us: u64,
    /// Bytes that it was about: of the file for reads, as they were sent for everything else.
    pub bytes: u64,
    /// Where in the file, bytes.
    pub offset: u64,
    /// Which of [`Trace::files`] it was about, if it was about one that is named.
    pub file: Option<u32>,
}

/// What an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TraceWhat {
    /// The kernel read what was here.
    Present,
    /// The kernel read what had to come first.
    Missing,
    /// A request for chunks that somebody waited for, or that lay around them.
    Chunks,
    /// A request for chunks that nobody waited for.
    Background,
    /// The request for all that a start needs, with the manifest.
    Start,
    /// A part of the answer to that, or of a delta.
    Arrived,
    /// A request for a manifest alone.
    Manifest,
    /// A request for what makes a tree out of one that is here.
    Delta,
}
