//! Guesses at hand, which a restart forgets.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use proto::{TreeId, TreePath};

use super::served::Served;

/// Guesses kept in memory: a handful of megabytes each.
const GUESSES_KEPT: NonZeroUsize = NonZeroUsize::new(12).unwrap();
/// So many programs of one tree are guessed because hosts name them; any other start gets the guess of the entry point.
const GUESSES_MAX: usize = 64;

/// The program of a tree whose start is guessed; without one nothing is known but the manifest.
pub(super) type Guess = (TreeId, Option<TreePath>);

/// What was guessed.
pub(super) struct Guessed {
    pub(super) bundles: LruCache<Guess, Arc<Served>>,
    /// Of how many programs of a tree a host has had one made.
    made: HashMap<TreeId, usize>,
}

impl Default for Guessed {
    fn default() -> Self {
        Self { bundles: LruCache::new(GUESSES_KEPT), made: HashMap::new() }
    }
}

impl Guessed {
    /// Whether one more program of a tree may be guessed because a host named it: a second of a processor each.
    pub(super) fn may_make(&mut self, tree: TreeId) -> bool {
        let made = self.made.entry(tree).or_default();
        *made += 1;
        *made <= GUESSES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_so_many_programs_of_a_tree_guessed_and_no_more() {
        let (mut guessed, tree, other) = (Guessed::default(), TreeId::of(b"one"), TreeId::of(b"other"));
        assert!((0..GUESSES_MAX).all(|_| guessed.may_make(tree)));
        assert!(!guessed.may_make(tree) && !guessed.may_make(tree));
        assert!(guessed.may_make(other), "each tree has its own");
    }
}
