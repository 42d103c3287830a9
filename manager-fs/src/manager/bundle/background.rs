//! Bundles that nobody waits for: made one after the other, each wish once, and no more of them than can be overseen.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::thread;

use proto::bundle::Touch;
use proto::{TreeId, TreePath};

use crate::sync::lock;

/// Wishes that wait; one more is dropped, and comes again with the next host that asks.
const WAITING_MAX: usize = 64;

/// A bundle that nobody waits for.
#[derive(Debug, PartialEq)]
pub(super) enum Wish {
    /// For any host, out of the one that was made fast.
    Best(TreeId),
    /// For hosts that have the first tree.
    From(TreeId, TreeId),
    /// Out of what several hosts have touched.
    Learned(TreeId, Vec<Touch>),
    /// Out of what was recorded of another tree.
    Carried(TreeId),
    /// Out of what the files say about a start of this program, better than while somebody waited.
    Guessed(TreeId, Option<TreePath>),
    /// As [`Wish::Guessed`], of the programs that a tree is for, which are looked for first.
    Programs(TreeId),
}

/// What waits to be made.
pub(super) struct Background<T> {
    state: Mutex<Waiting<T>>,
    /// The nice value at which it is made (setpriority(2)).
    nice: i32,
}

struct Waiting<T> {
    wishes: VecDeque<T>,
    /// A thread is at it.
    working: bool,
}

impl<T> Default for Background<T> {
    fn default() -> Self {
        Self::at(0)
    }
}

impl<T> Background<T> {
    /// What is made at this nice value; 19 is the lowest priority.
    pub(super) fn at(nice: i32) -> Self {
        Self { state: Mutex::new(Waiting { wishes: VecDeque::new(), working: false }), nice }
    }
}

impl<T: PartialEq + Send + 'static> Background<T> {
    /// Adds a wish, and a thread that fulfils them if there is none.
    pub(super) fn wish(self: &Arc<Self>, wish: T, fulfil: impl Fn(T) + Send + 'static) {
        let mut state = lock(&self.state);
        if state.wishes.contains(&wish) || state.wishes.len() >= WAITING_MAX {
            return;
        }
        state.wishes.push_back(wish);
        if state.working {
            return;
        }
        let background = Arc::clone(self);
        let work = move || {
            if background.nice != 0
                && let Err(error) = rustix::process::setpriority_process(None, background.nice)
            {
                tracing::debug!(%error, "start-up bundles are made at the priority of everything else");
            }
            while let Some(wish) = background.next() {
                fulfil(wish);
            }
        };
        match thread::Builder::new().name("bundles".into()).spawn(work) {
            Ok(_) => state.working = true,
            Err(error) => tracing::warn!(%error, "no thread to make start-up bundles"),
        }
    }

    fn next(&self) -> Option<T> {
        let mut state = lock(&self.state);
        let next = state.wishes.pop_front();
        state.working = next.is_some();
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn wishes_are_fulfilled_one_after_the_other_and_each_once() {
        let background = Arc::new(Background::default());
        let (done, fulfilled) = mpsc::channel();
        let (go, wait) = mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        let wish = |number: usize| {
            let (done, wait) = (done.clone(), Arc::clone(&wait));
            background.wish(number, move |number| {
                wait.lock().unwrap().recv().unwrap();
                done.send(number).unwrap();
            });
        };
        wish(0);
        // Until the first is under way, so that it no longer waits.
        while !background.state.lock().unwrap().wishes.is_empty() {
            thread::yield_now();
        }
        (1..1000).chain(1..1000).for_each(wish);
        (0..=WAITING_MAX).for_each(|_| go.send(()).unwrap());
        let all: Vec<usize> = (0..=WAITING_MAX).map(|_| fulfilled.recv().unwrap()).collect();
        assert_eq!(all, (0..=WAITING_MAX).collect::<Vec<_>>());
    }
}
