//! How people write the numbers of jobs and change-overs.
//!
//! A number is 30 bits of seconds since the beginning of 2026 (until 2060; later ones grow a digit) and 20 bits that
//! keep those of one second apart. As text it is ten digits of Crockford's base 32, in two groups, such as
//! `00h6q-8tz4c`: the order of texts is the order of numbers is the order of time, capital letters are the same digits,
//! and `i`, `l` and `o` are read as the digits that they look like. Numbers below 2^30 count from 1; they come from
//! managers that did so, and are written in decimal.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::agent::{ChangeId, JobId};
use crate::text;
use crate::width::index;

/// The manager's number of a rollout, a planned change over many hosts; no message to a host bears it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RolloutId(pub u64);

/// Milliseconds from 1970 to the beginning of 2026, when the numbers begin.
pub const NUMBERS_BEGIN_UNIX_MS: u64 = 1_767_225_600_000;
/// Bits of a number that are not time.
pub const NUMBER_LOW_BITS: u32 = 20;

const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// Digits of each group, and of all of a number of today.
const GROUP: usize = 5;
const COUNTED_BELOW: u64 = 1 << 30;
/// Bytes of a text that is no number, shown in the refusal.
const TEXT_SHOWN_BYTES: usize = 80;

/// A text is not the number of a job or a change-over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not the number of a {kind}: want one like 00h6q-8tz4c, as it was shown")]
pub struct NumberError {
    /// What it should have been.
    pub kind: &'static str,
    /// The text, cut and made printable.
    pub text: String,
}

fn write(number: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if number < COUNTED_BELOW {
        return f.pad(&number.to_string());
    }
    let mut text = Vec::new();
    let mut rest = number;
    while rest > 0 || text.len() < 2 * GROUP {
        text.push(DIGITS[index(rest % 32)]);
        rest /= 32;
    }
    let mut shown: String = text.iter().rev().map(|digit| char::from(*digit)).collect();
    shown.insert(shown.len() - GROUP, '-');
    f.pad(&shown)
}

fn read(text: &str) -> Option<u64> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok();
    }
    let mut number = 0_u64;
    let mut digits = 0;
    for byte in text.bytes().filter(|byte| *byte != b'-') {
        let byte = match byte.to_ascii_lowercase() {
            b'i' | b'l' => b'1',
            b'o' => b'0',
            byte => byte,
        };
        let digit = DIGITS.iter().position(|digit| *digit == byte)? as u64;
        number = number.checked_mul(32)?.checked_add(digit)?;
        digits += 1;
    }
    // Fewer would be a number that was cut short.
    (digits >= 2 * GROUP).then_some(number)
}

macro_rules! written_number {
    ($name:ident, $kind:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write(self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = NumberError;
            fn from_str(text: &str) -> Result<Self, NumberError> {
                let error = || NumberError { kind: $kind, text: text::line(text, TEXT_SHOWN_BYTES) };
                read(text).map(Self).ok_or_else(error)
            }
        }
    };
}

written_number!(JobId, "job");
written_number!(ChangeId, "change-over");
written_number!(RolloutId, "rollout");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_read_as_it_is_written_and_as_people_type_it() {
        for number in [1, 7, COUNTED_BELOW - 1, COUNTED_BELOW, 29_000_000 << 20 | 0xf_abcd, 1 << 50, u64::MAX] {
            let text = JobId(number).to_string();
            assert_eq!(text.parse::<JobId>(), Ok(JobId(number)), "{text}");
            assert_eq!(text.to_uppercase().parse::<JobId>(), Ok(JobId(number)), "{text}");
            assert_eq!(number.to_string().parse::<JobId>(), Ok(JobId(number)), "as JSON shows it");
        }
        assert_eq!("0oh6q8tz4c".parse::<ChangeId>(), "00h6q-8tz4c".parse());
        assert_eq!("0Ih6q8tz4c".parse::<ChangeId>(), "01h6q-8tz4c".parse());
        assert_eq!(JobId(12).to_string(), "12");
        for bad in ["", "-", "00h6q", "00h6q-8tz4u", "job", "zzzzz-zzzzz-zzzzz", "1.5"] {
            assert!(bad.parse::<JobId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_digits_of_a_number_are_pinned() {
        let texts = [
            (COUNTED_BELOW - 1, "1073741823"),
            (COUNTED_BELOW, "00010-00000"),
            (COUNTED_BELOW + 31, "00010-0000z"),
            ((29_000_000 << NUMBER_LOW_BITS) + 1, "0vn0a-00001"),
            ((1 << 50) - 1, "zzzzz-zzzzz"),
            (1 << 50, "100000-00000"),
            (u64::MAX, "fzzzzzzz-zzzzz"),
        ];
        for (number, text) in texts {
            assert_eq!(ChangeId(number).to_string(), text);
            assert_eq!(text.parse(), Ok(ChangeId(number)), "{text}");
        }
        // In a table, on either side.
        assert_eq!(format!("{:>12}|{:<12}|", JobId(COUNTED_BELOW), JobId(7)), " 00010-00000|7           |");
    }

    #[test]
    fn what_is_no_number_is_named_by_its_kind_and_cannot_move_a_cursor() {
        let error = "00h6q-8tz4u".parse::<JobId>().unwrap_err();
        let text = "'00h6q-8tz4u' is not the number of a job: want one like 00h6q-8tz4c, as it was shown";
        assert_eq!(error.to_string(), text);
        assert_eq!("x".parse::<ChangeId>().unwrap_err().kind, "change-over");
        let hostile = format!("\x1b[2J{}", "u".repeat(500)).parse::<JobId>().unwrap_err();
        assert!(hostile.text.starts_with("\\x1b[2Juuu") && hostile.text.len() <= 80, "{}", hostile.text);
        // One more than there is room for, in both ways of writing.
        assert!("18446744073709551616".parse::<JobId>().is_err());
        assert!("g0000000-00000".parse::<JobId>().is_err());
        assert!("0000-00000".parse::<JobId>().is_err(), "nine digits");
    }

    #[test]
    fn every_digit_is_read_also_as_the_letter_that_it_looks_like() {
        for (value, digit) in DIGITS.iter().enumerate() {
            let text = format!("a0000-0000{}", char::from(*digit));
            let number = (10 << 45) + value as u64;
            assert_eq!(text.parse::<JobId>(), Ok(JobId(number)), "{text}");
            assert_eq!(text.to_ascii_uppercase().parse::<JobId>(), Ok(JobId(number)));
        }
        for (like, digit) in [('i', '1'), ('I', '1'), ('l', '1'), ('L', '1'), ('o', '0'), ('O', '0')] {
            let text = |last: char| format!("a0000-0000{last}").parse::<JobId>();
            assert_eq!(text(like), text(digit));
        }
        for other in ['u', 'U', '_', ' ', '.', 'é'] {
            assert!(format!("a0000-0000{other}").parse::<JobId>().is_err(), "{other}");
        }
    }

    #[test]
    fn texts_are_in_the_order_of_numbers() {
        let numbers = [COUNTED_BELOW, 2 << 40, (2 << 40) + 1, 3 << 45];
        let texts = numbers.map(|number| ChangeId(number).to_string());
        assert!(texts.is_sorted(), "{texts:?}");
    }
}
