//! How long work tells how far it is. The library reports; only the command line prints.

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Task {
    /// Reading, hashing and compressing received files; counted in bytes of content.
    Read,
    /// Looking into executables; counted in files.
    Inspect,
    /// Checking the store; counted in stored bytes.
    Verify,
    /// Removing what nothing needs; counted in packs.
    Collect,
    /// Putting back what is lost; counted in chunks.
    Repair,
    /// Copying what is to be carried elsewhere; counted in bytes.
    Copy,
    /// As before; counted in chunks.
    Chunks,
}

/// Takes the reports of long work. Calls come from several threads, at most some hundred times a second.
pub trait Monitor: Send + Sync {
    /// `done` of `total` units (see [`Task`]); `total` is 0 when it is not known.
    fn progress(&self, _task: Task, _done: u64, _total: u64) {}

    /// Something is wrong that does not end the work.
    fn problem(&self, _text: &str) {}
}

/// A monitor that drops what it is told.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Monitor for Quiet {}
