//! What several hosts have touched: a start that one host tells of teaches nobody else anything.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;

use lru::LruCache;
use proto::bundle::{TOUCHES_MAX, Touch};
use proto::{HostName, TreeId};

/// Hosts that must have touched a page before it counts.
pub(super) const AGREEING: usize = 2;
/// Trees of which hosts' starts are remembered until enough agree: what is rolled out at one time.
const TREES_MAX: NonZeroUsize = NonZeroUsize::new(8).unwrap();
/// Pages that are looked at of one recording, each as often as it is told: some more than a bundle may have, and not as
/// many as a host can claim in one message, which are some hundred billions.
const LOOKED_AT_MAX: usize = 4 * TOUCHES_MAX;
/// Hosts remembered of one tree; the oldest gives way.
const HOSTS_MAX: usize = 4;

/// What hosts have told, by tree.
pub(super) struct Told(LruCache<TreeId, Vec<(HostName, Vec<Touch>)>>);

impl Default for Told {
    fn default() -> Self {
        Self(LruCache::new(TREES_MAX))
    }
}

impl Told {
    /// Takes what a host touched; the pages that enough hosts agree on, once there are any.
    pub(super) fn take(&mut self, host: &HostName, tree: TreeId, touches: Vec<Touch>) -> Option<Vec<Touch>> {
        if touches.iter().map(|touch| u64::from(touch.count)).sum::<u64>() > TOUCHES_MAX as u64 {
            return None;
        }
        let told = self.0.get_or_insert_mut(tree, Vec::new);
        told.retain(|(of, _)| of != host);
        told.push((host.clone(), touches));
        let surplus = told.len().saturating_sub(HOSTS_MAX);
        told.drain(..surplus);
        let agreed = agreed(told.iter().map(|(_, touches)| touches.as_slice()));
        if agreed.is_empty() {
            return None;
        }
        self.0.pop(&tree);
        Some(agreed)
    }

    /// Forgets what was told of a tree.
    pub(super) fn forget(&mut self, tree: &TreeId) {
        self.0.pop(tree);
    }
}

/// Each page once, in order.
fn pages(touches: &[Touch]) -> impl Iterator<Item = (u32, u32)> {
    touches.iter().flat_map(|touch| (0..touch.count).map(|at| (touch.object, touch.first.saturating_add(at))))
}

/// The pages that enough of them have touched, in the order of the first that did.
fn agreed<'a>(told: impl Iterator<Item = &'a [Touch]> + Clone) -> Vec<Touch> {
    let mut hosts: HashMap<(u32, u32), usize> = HashMap::new();
    for touches in told.clone() {
        let distinct: HashSet<(u32, u32)> = pages(touches).collect();
        distinct.into_iter().for_each(|page| *hosts.entry(page).or_default() += 1);
    }
    let mut seen = HashSet::new();
    let counts = |page: &(u32, u32)| hosts.get(page).is_some_and(|hosts| *hosts >= AGREEING);
    joined(told.flat_map(pages).filter(|page| counts(page) && seen.insert(*page)))
}

/// The first touches of so many pages at most; neighbours are one touch.
pub(super) fn cut(touches: &[Touch], pages_max: usize) -> Vec<Touch> {
    let mut seen = HashSet::new();
    joined(pages(touches).take(LOOKED_AT_MAX).filter(|page| seen.insert(*page)).take(pages_max))
}

fn joined(pages: impl Iterator<Item = (u32, u32)>) -> Vec<Touch> {
    let mut touches: Vec<Touch> = Vec::new();
    for (object, page) in pages {
        match touches.last_mut() {
            Some(last) if last.object == object && last.first.checked_add(last.count) == Some(page) => {
                last.count += 1
            }
            _ => touches.push(Touch { object, first: page, count: 1 }),
        }
    }
    touches
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn touch(object: u32, first: u32, count: u32) -> Touch {
        Touch { object, first, count }
    }

    #[test]
    fn what_one_host_tells_counts_only_where_another_one_agrees() {
        let mut told = Told::default();
        let tree = TreeId::of(b"tree");
        let [one, two, three] = ["one", "two", "three"].map(|name| name.parse::<HostName>().unwrap());
        assert_eq!(told.take(&one, tree, vec![touch(0, 0, 4000)]), None);
        assert_eq!(told.take(&one, tree, vec![touch(0, 0, 4000)]), None, "a host agrees with itself");
        assert_eq!(told.take(&two, tree, vec![touch(1, 0, 1)]), None);
        let agreed = told.take(&three, tree, vec![touch(1, 0, 2), touch(0, 7, 1), touch(0, 4000, 9)]);
        assert_eq!(agreed, Some(vec![touch(0, 7, 1), touch(1, 0, 1)]));
        assert_eq!(told.take(&one, tree, vec![touch(1, 0, 1)]), None, "what was agreed on is done with");
        told.take(&two, tree, vec![touch(0, 0, u32::MAX)]);
        assert!(told.0.get(&tree).unwrap().len() == 1, "more pages than a bundle may have are not looked at");
    }

    #[test]
    fn a_cut_keeps_what_was_touched_first() {
        let touches = [touch(3, 5, 2), touch(3, 7, 1), touch(3, 5, 1), touch(1, 0, 9)];
        assert_eq!(cut(&touches, 4), [touch(3, 5, 3), touch(1, 0, 1)]);
        assert_eq!(cut(&[touch(0, u32::MAX, 2)], 9), [touch(0, u32::MAX, 1)]);
    }

    /// Nanoseconds of CPU that this thread has had.
    fn cpu_ns() -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    }

    #[test]
    fn a_host_that_tells_the_same_pages_without_end_costs_no_more_than_others() {
        let before = cpu_ns();
        let kept = cut(&vec![touch(0, 0, 60_000); TOUCHES_MAX], TOUCHES_MAX);
        assert_eq!(kept, [touch(0, 0, 60_000)]);
        let took_ms = (cpu_ns() - before) / 1_000_000;
        // A few; when every page of every touch was looked at, minutes.
        assert!(took_ms < 2_000, "{took_ms} ms of CPU");
    }

    proptest! {
        /// Against what the words mean, page by page.
        #[test]
        fn pages_that_two_hosts_touched_are_agreed_on_once_in_the_first_ones_order(
            told in prop::collection::vec(prop::collection::vec((0_u32..3, 0_u32..20, 1_u32..6), 0..8), 1..6),
        ) {
            let told: Vec<Vec<Touch>> =
                told.iter().map(|all| all.iter().map(|(o, f, c)| touch(*o, *f, *c)).collect()).collect();
            let of_host: Vec<HashSet<(u32, u32)>> = told.iter().map(|all| pages(all).collect()).collect();
            let mut expected = Vec::new();
            for page in told.iter().flat_map(|all| pages(all)) {
                let hosts = of_host.iter().filter(|pages| pages.contains(&page)).count();
                if hosts >= AGREEING && !expected.contains(&page) {
                    expected.push(page);
                }
            }
            let agreed = agreed(told.iter().map(Vec::as_slice));
            prop_assert_eq!(pages(&agreed).collect::<Vec<_>>(), expected);
            // Neighbours are one touch, so no two that follow each other could be one.
            let mergeable = |two: &[Touch]| two[0].object == two[1].object && two[0].first + two[0].count == two[1].first;
            prop_assert!(!agreed.windows(2).any(mergeable));
        }

        #[test]
        fn a_cut_is_the_first_pages_each_once(
            all in prop::collection::vec((0_u32..3, 0_u32..20, 1_u32..6), 0..12),
            pages_max in 0_usize..40,
        ) {
            let all: Vec<Touch> = all.iter().map(|(o, f, c)| touch(*o, *f, *c)).collect();
            let mut expected: Vec<(u32, u32)> = Vec::new();
            for page in pages(&all) {
                if !expected.contains(&page) && expected.len() < pages_max {
                    expected.push(page);
                }
            }
            let kept = cut(&all, pages_max);
            prop_assert_eq!(pages(&kept).collect::<Vec<_>>(), expected);
            prop_assert_eq!(cut(&kept, pages_max), kept);
        }
    }
}
