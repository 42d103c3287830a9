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

/// Draws the numbers of jobs and change-overs (`docs/control-state.md`, "Numbers").
#[derive(Debug, Default)]
pub(super) struct Ids {
    last: Mutex<u64>,
}

impl Ids {
    /// A number that this process has not drawn before, later than all that it has.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub(super) fn draw(&self, now: Unix) -> Result<u64, NetError> {
        let random = u32::from_le_bytes(tls::random::<4>()?);
        let mut last = lock(&self.last);
        *last = next(*last, now, random);
        Ok(*last)
    }
}

fn next(last: u64, now: Unix, random: u32) -> u64 {
    const STEP_MAX: u64 = 32;
    // A clock that stands before 2026 gives numbers of the second after its beginning: 0 and small ones are taken.
    let second = (now.saturating_sub(NUMBERS_BEGIN_UNIX_MS) / 1000).max(1 << 11);
    let low = u64::from(random) & ((1 << NUMBER_LOW_BITS) - 1);
    let fresh = second << NUMBER_LOW_BITS | low;
    // Also when the clock was set back: numbers go on from the latest until it has caught up.
    if second > last >> NUMBER_LOW_BITS { fresh } else { last + 1 + u64::from(random) % STEP_MAX }
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
    fn a_thousand_at_once_stay_within_their_second_and_a_broken_clock_gives_numbers_too() {
        let ids = Ids::default();
        let drawn: Vec<u64> = (0..1000).map(|_| ids.draw(NOW).unwrap()).collect();
        assert!(drawn.is_sorted() && drawn[999] - drawn[0] <= 32_000);
        assert!(next(0, 0, 0) >= 1 << 30);
    }
}
