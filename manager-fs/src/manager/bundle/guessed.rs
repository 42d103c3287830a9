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
    bundles: LruCache<Guess, (Arc<Served>, How)>,
    /// Of how many programs of a tree a host has had one made.
    made: HashMap<TreeId, usize>,
}

impl Default for Guessed {
    fn default() -> Self {
        Self { bundles: LruCache::new(GUESSES_KEPT), made: HashMap::new() }
    }
}

/// How much was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum How {
    /// What the loader reads, while somebody waits: milliseconds.
    Quickly,
    /// All that can be told, while nobody does: a second, or a few.
    Well,
}

impl Guessed {
    /// What is at hand.
    pub(super) fn get(&mut self, of: &Guess) -> Option<Arc<Served>> {
        self.bundles.get(of).map(|(served, _)| Arc::clone(served))
    }

    /// Whether it is as good as it will be.
    pub(super) fn is_well(&self, of: &Guess) -> bool {
        self.bundles.peek(of).is_some_and(|(_, how)| *how == How::Well)
    }

    /// Keeps one, unless a better one is there.
    pub(super) fn put(&mut self, of: Guess, served: Arc<Served>, how: How) {
        if self.bundles.peek(&of).is_none_or(|(_, there)| *there <= how) {
            self.bundles.put(of, (served, how));
        }
    }

    /// Whether one more program of a tree may be guessed because a host named it: a second of a processor each.
    pub(super) fn may_make(&mut self, tree: TreeId) -> bool {
        let made = self.made.entry(tree).or_default();
        *made += 1;
        *made <= GUESSES_MAX
    }
}

#[cfg(test)]
mod tests {
    use proto::bundle::{Header, Origin};
    use proto::relative::Part;

    use super::*;

    fn served(bytes: usize) -> Arc<Served> {
        let header = Header {
            tree: TreeId::of(b"one"),
            from: None,
            origin: Origin::Guessed,
            fast: true,
            manifest: Part::default(),
            index: Part::default(),
            proofs_bytes: 0,
            frames_bytes: 0,
        };
        Arc::new(Served { header, bytes: vec![0; bytes] })
    }

    #[test]
    fn what_was_guessed_well_takes_the_place_of_what_was_guessed_quickly_and_never_the_other_way() {
        let (mut guessed, of) = (Guessed::default(), (TreeId::of(b"one"), None));
        assert!(guessed.get(&of).is_none() && !guessed.is_well(&of));
        guessed.put(of.clone(), served(1), How::Quickly);
        assert_eq!(guessed.get(&of).map(|served| served.bytes.len()), Some(1));
        assert!(!guessed.is_well(&of));
        guessed.put(of.clone(), served(2), How::Well);
        guessed.put(of.clone(), served(3), How::Quickly);
        assert_eq!(guessed.get(&of).map(|served| served.bytes.len()), Some(2));
        assert!(guessed.is_well(&of));
    }

    #[test]
    fn hosts_have_so_many_programs_of_a_tree_guessed_and_no_more() {
        let (mut guessed, tree, other) = (Guessed::default(), TreeId::of(b"one"), TreeId::of(b"other"));
        assert!((0..GUESSES_MAX).all(|_| guessed.may_make(tree)));
        assert!(!guessed.may_make(tree) && !guessed.may_make(tree));
        assert!(guessed.may_make(other), "each tree has its own");
    }
}
