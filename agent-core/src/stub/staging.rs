//! A tree that is made ready for an order, on a thread of its own: the stub's goes on watching.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Instant;

use proto::agent::ChangeId;
use rustix::event::EventfdFlags;

use crate::AgentPaths;
use crate::machine::{StageDone, StageFault};
use crate::stage::{self, StageHandle};

/// Being made ready. Called off when it is dropped.
#[derive(Debug)]
pub(super) struct Staging {
    pub(super) change: ChangeId,
    handle: StageHandle,
    result: Receiver<Staged>,
    done: Arc<OwnedFd>,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) result: Result<(StageDone, PathBuf), StageFault>,
    /// Microseconds, warming included.
    pub(super) took_us: u64,
}

impl Staging {
    /// Begins on a thread of its own.
    pub(super) fn begin(paths: &AgentPaths, change: ChangeId, order: stage::Order) -> io::Result<Self> {
        let done = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (sender, result) = mpsc::channel();
        let handle = StageHandle::default();
        let (paths, wake, called) = (paths.clone(), done.clone(), handle.clone());
        std::thread::Builder::new().name("stage".to_owned()).spawn(move || {
            let begun = Instant::now();
            let result = stage::stage(&paths, &order, &called);
            let took_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            // Nobody listens any more if it was called off.
            drop(sender.send(Staged { result, took_us }));
            let _ = rustix::io::write(&*wake, &1u64.to_ne_bytes());
        })?;
        Ok(Self { change, handle, result, done })
    }

    /// What came of it, once.
    pub(super) fn look(&self) -> Option<Staged> {
        self.result.try_recv().ok()
    }
}

impl AsFd for Staging {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.handle.cancel();
    }
}
