//! What the threads of a backup take their work from: two lanes, of which the second goes first.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Files that wait. The walk is faster than reading, and must not have all names of a host in memory.
const FILES_MAX: usize = 256;
/// Pieces of large files that wait, each of up to 8 MiB.
const PIECES_MAX: usize = 4;

/// Files `F` to be read, and pieces `P` of files to be stored.
pub(super) struct Queue<F, P> {
    lanes: Mutex<Lanes<F, P>>,
    work: Condvar,
    room: Condvar,
}

struct Lanes<F, P> {
    files: VecDeque<F>,
    pieces: VecDeque<P>,
    closed: bool,
}

/// What a thread does next.
pub(super) enum Work<F, P> {
    File(F),
    Piece(P),
}

impl<F, P> Queue<F, P> {
    pub(super) fn new() -> Self {
        let lanes = Lanes { files: VecDeque::new(), pieces: VecDeque::new(), closed: false };
        Self { lanes: Mutex::new(lanes), work: Condvar::new(), room: Condvar::new() }
    }

    /// Waits for room. Nothing is taken once the queue is closed.
    pub(super) fn put(&self, file: F) {
        let full = |lanes: &mut Lanes<F, P>| lanes.files.len() >= FILES_MAX && !lanes.closed;
        let mut lanes = self.room.wait_while(self.lock(), full).unwrap_or_else(PoisonError::into_inner);
        if !lanes.closed {
            lanes.files.push_back(file);
            self.work.notify_one();
        }
    }

    /// Never waits: what does not fit comes back, to be done by whoever has it.
    pub(super) fn offer(&self, piece: P) -> Option<P> {
        let mut lanes = self.lock();
        if lanes.closed || lanes.pieces.len() >= PIECES_MAX {
            return Some(piece);
        }
        lanes.pieces.push_back(piece);
        self.work.notify_one();
        None
    }

    /// Waits for work; `None` once the queue is closed.
    pub(super) fn take(&self) -> Option<Work<F, P>> {
        let idle = |lanes: &mut Lanes<F, P>| !lanes.closed && lanes.files.is_empty() && lanes.pieces.is_empty();
        let mut lanes = self.work.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        if lanes.closed {
            return None;
        }
        if let Some(piece) = lanes.pieces.pop_front() {
            return Some(Work::Piece(piece));
        }
        let file = lanes.files.pop_front().map(Work::File);
        self.room.notify_one();
        file
    }

    /// Ends every wait; what is still in the queue is dropped.
    pub(super) fn close(&self) {
        let mut lanes = self.lock();
        lanes.closed = true;
        lanes.files.clear();
        lanes.pieces.clear();
        self.work.notify_all();
        self.room.notify_all();
    }

    /// Whether every wait has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn lock(&self) -> MutexGuard<'_, Lanes<F, P>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_go_first_and_a_closed_queue_ends_every_wait() {
        let queue: Queue<u32, u32> = Queue::new();
        queue.put(1);
        assert_eq!(queue.offer(2), None);
        assert!(matches!(queue.take(), Some(Work::Piece(2))));
        assert!(matches!(queue.take(), Some(Work::File(1))));
        for _ in 0..PIECES_MAX {
            assert_eq!(queue.offer(5), None);
        }
        assert_eq!(queue.offer(9), Some(9));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| while queue.take().is_some() {});
            queue.close();
            waiting.join().unwrap();
        });
        queue.put(3);
        assert!(queue.take().is_none());
    }
}
