//! New numbers of jobs and change-overs, without a counter that all would have to agree on.
//!
//! The form is [`proto::number`]'s: seconds since 2026, then 20 bits. The first number of a second is drawn at random,
//! those after it in the same process follow in random steps of 1 to 32. So one manager never draws a number twice and
//! its numbers are in the order of its orders, and two managers seldom meet: with one order each in the same second, once
//! in a million; with n and m orders, about n·m times in 2^20, so with a thousand each, once. Meeting costs a second
//! try and nothing else: a number counts when its record has been created under the condition that none is there, and
//! the caller draws again when one is.

use std::sync::Mutex;

use proto::message::Unix;
use proto::number::{NUMBER_LOW_BITS, NUMBERS_BEGIN_UNIX_MS};

use crate::net::{NetError, tls};
use crate::sync::lock;

/// Draws the numbers of jobs and change-overs (`docs/control-state.md`, "Numbers"), and says when something was ordered:
/// of two orders the later one counts, also where the clock was set back between them.
#[derive(Debug, Default)]
pub(super) struct Ids {
    last: Mutex<Last>,
}

/// What nothing new comes before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Last {
    /// The highest number.
    pub(super) number: u64,
    /// When something was ordered last.
    pub(super) ordered: Unix,
}

impl Ids {
    /// Goes on from what is known.
    pub(super) fn after(last: Last) -> Self {
        Self { last: Mutex::new(last) }
    }

    /// A number later than all that are known.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub(super) fn draw(&self, now: Unix) -> Result<u64, NetError> {
        let random = u32::from_le_bytes(tls::random::<4>()?);
        let mut last = lock(&self.last);
        last.number = next(last.number, now, random);
        Ok(last.number)
    }

    /// The time of an order that is given now: not before any other's.
    pub(super) fn ordered(&self, now: Unix) -> Unix {
        let mut last = lock(&self.last);
        last.ordered = last.ordered.max(now);
        last.ordered
    }

    /// The time of an order that takes the place of all that were given.
    pub(super) fn ordered_after_all(&self, now: Unix) -> Unix {
        let mut last = lock(&self.last);
        last.ordered = last.ordered.saturating_add(1).max(now);
        last.ordered
    }
}

fn next(last: u64, now: Unix, random: u32) -> u64 {
    const STEP_MAX: u64 = 32;
    // A clock that stands before 2026 gives numbers of the second after its beginning: 0 and small ones are taken.
    let second = (now.saturating_sub(NUMBERS_BEGIN_UNIX_MS) / 1000).max(1 << 11);
    let low = u64::from(random) & ((1 << NUMBER_LOW_BITS) - 1);
    let fresh = second << NUMBER_LOW_BITS | low;
    // Also when the clock was set back: numbers go on from the latest until it has caught up.
    if second > last >> NUMBER_LOW_BITS { fresh } else { last.saturating_add(1 + u64::from(random) % STEP_MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Unix = NUMBERS_BEGIN_UNIX_MS + 40_000_000_000;

    proptest! {
        #[test]
        fn numbers_grow_whatever_the_clock_does(clock in prop::collection::vec((0..4_000_u64, any::<u32>()), 1..200)) {
            let mut last = 0;
            for (at, random) in clock {
                let drawn = next(last, NOW + at, random);
                prop_assert!(drawn > last);
                prop_assert!(drawn >> NUMBER_LOW_BITS <= (NOW + 4_000 - NUMBERS_BEGIN_UNIX_MS) / 1000 + 1);
                last = drawn;
            }
        }
    }

    #[test]
    fn whatever_the_clock_does_later_orders_are_later() {
        let ids = Ids::after(Last { number: u64::MAX >> 8, ordered: NOW + 9_000 });
        assert!(ids.draw(NOW).unwrap() > u64::MAX >> 8);
        assert_eq!((ids.ordered(NOW), ids.ordered(NOW + 10_000)), (NOW + 9_000, NOW + 10_000));
        assert_eq!((ids.ordered_after_all(NOW), ids.ordered(0)), (NOW + 10_001, NOW + 10_001));
        assert_eq!(ids.ordered_after_all(NOW + 20_000), NOW + 20_000);
    }

    #[test]
    fn a_number_says_in_which_second_it_was_drawn_and_the_rest_of_it_is_chance() {
        let (second, low) = (5_000_007, NUMBER_LOW_BITS);
        let drawn = |random| next(7, NUMBERS_BEGIN_UNIX_MS + second * 1000 + 999, random);
        for random in [0, 5, (1 << low) - 1] {
            assert_eq!(drawn(random), second << low | u64::from(random));
        }
        assert_eq!(drawn(u32::MAX), second << low | ((1 << low) - 1));
        // In the same second, and before it, numbers follow the last in steps of 1 to 32.
        for (last, random, step) in [(second << low, 0, 1), (second << low, 31, 32), ((9 * second) << low, 33, 2)] {
            assert_eq!(next(last, NUMBERS_BEGIN_UNIX_MS + second * 1000, random), last + step);
        }
    }

    #[test]
    fn a_thousand_at_once_stay_within_their_second_and_a_broken_clock_gives_numbers_too() {
        let ids = Ids::default();
        let drawn: Vec<u64> = (0..1000).map(|_| ids.draw(NOW).unwrap()).collect();
        assert!(drawn.is_sorted() && drawn[999] - drawn[0] <= 32_000);
        assert!(next(0, 0, 0) >= 1 << 30);
    }
}
