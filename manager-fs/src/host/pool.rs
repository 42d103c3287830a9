//! A bounded set of threads for work that may wait for the network: started when needed, gone when idle.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::panics;
use crate::sync::{lock, wait_for};

type Job = Box<dyn FnOnce() + Send>;

/// Runs jobs on at most so many threads.
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    name: &'static str,
    threads_max: usize,
    queue_max: usize,
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

/// A waiting thread costs little, but its stack counts against the worker's memory.
const STACK_BYTES: usize = 512 << 10;
const IDLE: Duration = Duration::from_secs(5);

impl Pool {
    pub(crate) fn new(name: &'static str, threads_max: usize, queue_max: usize) -> Self {
        let state = Mutex::default();
        Self { shared: Arc::new(Shared { name, threads_max, queue_max, state, arrived: Condvar::new() }) }
    }

    /// Queues a job; `false` (and the job is dropped) when the queue is full or no thread can be started.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) -> bool {
        let mut state = lock(&self.shared.state);
        if state.jobs.len() >= self.shared.queue_max {
            return false;
        }
        state.jobs.push_back(Box::new(job));
        if state.idle >= state.jobs.len() {
            self.shared.arrived.notify_one();
            return true;
        }
        if state.threads < self.shared.threads_max {
            let shared = self.shared.clone();
            let spawned = std::thread::Builder::new()
                .name(self.shared.name.into())
                .stack_size(STACK_BYTES)
                .spawn(move || shared.serve());
            match spawned {
                Ok(_) => state.threads += 1,
                Err(_) if state.threads == 0 => {
                    state.jobs.pop_back();
                    return false;
                }
                Err(_) => {}
            }
        }
        self.shared.arrived.notify_one();
        true
    }
}

impl Shared {
    fn serve(&self) {
        let mut state = lock(&self.state);
        loop {
            while let Some(job) = state.jobs.pop_front() {
                drop(state);
                // A job that panics must not take the count of threads with it.
                panics::contain(job);
                state = lock(&self.state);
            }
            state.idle += 1;
            let idle_since = Instant::now();
            state = wait_for(&self.arrived, state, IDLE);
            state.idle -= 1;
            if idle_since.elapsed() >= IDLE && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_blocked_job_does_not_hold_up_others_and_the_bound_holds() {
        let pool = Pool::new("test", 2, 8);
        let (release, blocked) = mpsc::channel::<()>();
        let (done, finished) = mpsc::channel();
        assert!(pool.run(move || blocked.recv().unwrap()));
        for n in 0..4 {
            let done = done.clone();
            assert!(pool.run(move || done.send(n).unwrap()));
        }
        let mut seen: Vec<u32> = (0..4).map(|_| finished.recv().unwrap()).collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3]);
        assert!(lock(&pool.shared.state).threads <= 2);
        release.send(()).unwrap();
    }
}
