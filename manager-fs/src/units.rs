//! Sizes, times and counts for people: the one style of every command.
//!
//! Sizes are decimal (`12.3 MB`), durations have at most two units (`2 min 5 s`), moments are UTC (RFC 3339).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proto::message::Unix;

const SECOND: u64 = 1;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// The units of sizes, largest first.
const SIZES: [(u64, &str); 4] = [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];

/// A size: `999 B`, `12.3 MB`.
pub(crate) fn bytes(count: u64) -> String {
    match unit_of(count) {
        Some((factor, unit)) => format!("{:.1} {unit}", count as f64 / factor as f64),
        None => format!("{count} B"),
    }
}

/// A part of a size, both in the unit of the whole: `3.7 of 10.0 MB`.
pub(crate) fn bytes_of(part: u64, whole: u64) -> String {
    match unit_of(whole) {
        Some((factor, _)) => format!("{:.1} of {}", part as f64 / factor as f64, bytes(whole)),
        None => format!("{part} of {whole} B"),
    }
}

/// The largest unit of which there is one after rounding to a tenth: 999,960 bytes are `1.0 MB` and not `1000.0 kB`.
fn unit_of(count: u64) -> Option<(u64, &'static str)> {
    let rounded = |smaller: u64| count.saturating_add(smaller / 20);
    SIZES.into_iter().find(|(factor, _)| match factor / 1_000 {
        1 => count >= *factor,
        smaller => rounded(smaller) >= *factor,
    })
}

/// A duration: `360 µs`, `11 ms`, `1.2 s`, `2 min 5 s`, `3 h 4 min`, `5 d 3 h`.
pub(crate) fn duration(time: Duration) -> String {
    let ms = time.as_millis();
    if time < Duration::from_millis(1) && !time.is_zero() {
        return format!("{} µs", time.as_micros());
    }
    if ms < 1_000 {
        return format!("{ms} ms");
    }
    if ms < 59_950 {
        return format!("{:.1} s", time.as_secs_f64());
    }
    // Rounded before it is divided: 119.6 s are 2 min and not 1 min 60 s.
    let seconds = time.as_secs() + u64::from(time.subsec_millis() >= 500);
    let two = |larger: u64, name: &str, smaller: u64, small_name: &str| match seconds % larger / smaller {
        0 => format!("{} {name}", seconds / larger),
        rest => format!("{} {name} {rest} {small_name}", seconds / larger),
    };
    match seconds {
        ..HOUR => two(MINUTE, "min", SECOND, "s"),
        HOUR..DAY => two(HOUR, "h", MINUTE, "min"),
        DAY.. => two(DAY, "d", HOUR, "h"),
    }
}

/// [`duration`] of milliseconds.
pub(crate) fn ms(milliseconds: u64) -> String {
    duration(Duration::from_millis(milliseconds))
}

/// The beginning of the year 10000, which no form of a date has room for.
const MOMENTS_END: Unix = 253_402_300_800_000;

/// A moment in UTC, `2026-01-31T08:15:00Z`; 0 is `never`. Hosts may say anything.
pub(crate) fn moment(at: Unix) -> String {
    match at {
        0 => String::from("never"),
        MOMENTS_END.. => String::from("after 9999"),
        at => humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(at)).to_string(),
    }
}

/// How long ago a moment was: `3 min 2 s ago`, in whole seconds.
pub(crate) fn ago(at: Unix) -> String {
    let then = UNIX_EPOCH + Duration::from_millis(at);
    let since = SystemTime::now().duration_since(then).unwrap_or_default();
    match since.as_secs() {
        0 => String::from("just now"),
        seconds @ 1..60 => format!("{seconds} s ago"),
        _ => format!("{} ago", duration(Duration::from_secs(since.as_secs()))),
    }
}

/// A count with its noun: `1 file`, `2 files`, `0 entries`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    if number == 1 {
        return format!("1 {noun}");
    }
    match noun.strip_suffix('y') {
        Some(stem) => format!("{number} {stem}ies"),
        None if noun.ends_with('s') => format!("{number} {noun}es"),
        None => format!("{number} {noun}s"),
    }
}

/// Reads a number of bytes: plain, or with k, M, G, T (powers of 1000) or Ki, Mi, Gi, Ti (powers of 1024), and an
/// optional B.
///
/// # Errors
/// It is none, or too large.
pub(crate) fn byte_count(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| format!("'{text}' does not begin with a number"))?;
    let unit = unit.trim().strip_suffix('B').unwrap_or(unit.trim());
    let factor: u64 = match unit {
        "" => 1,
        "k" | "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return Err(format!("'{unit}' is no unit of bytes: use k, M, G, T, Ki, Mi, Gi or Ti")),
    };
    number.checked_mul(factor).ok_or_else(|| format!("'{text}' is too large"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_have_one_style_and_never_four_digits() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (12_345, "12.3 kB"),
            (999_949, "999.9 kB"),
            (999_950, "1.0 MB"),
            (10_000_000, "10.0 MB"),
            (999_950_000, "1.0 GB"),
            (2_500_000_000_000, "2.5 TB"),
            (u64::MAX, "18446744.1 TB"),
        ] {
            assert_eq!(bytes(count), text, "{count}");
        }
    }

    #[test]
    fn a_part_is_in_the_unit_of_its_whole() {
        assert_eq!(bytes_of(3_700_000, 10_000_000), "3.7 of 10.0 MB");
        assert_eq!(bytes_of(400, 10_000_000), "0.0 of 10.0 MB");
        assert_eq!(bytes_of(3, 7), "3 of 7 B");
    }

    #[test]
    fn durations_have_at_most_two_units() {
        for (milliseconds, text) in [
            (0, "0 ms"),
            (11, "11 ms"),
            (999, "999 ms"),
            (1_240, "1.2 s"),
            (59_949, "59.9 s"),
            (59_950, "1 min"),
            (119_600, "2 min"),
            (125_000, "2 min 5 s"),
            (3_600_000, "1 h"),
            (11_040_000, "3 h 4 min"),
            (443_000_000, "5 d 3 h"),
        ] {
            assert_eq!(ms(milliseconds), text, "{milliseconds}");
        }
        assert_eq!(duration(Duration::from_micros(40)), "40 µs");
        assert_eq!(duration(Duration::from_micros(999)), "999 µs");
    }

    #[test]
    fn moments_and_how_long_ago_they_were() {
        assert_eq!(moment(0), "never");
        assert_eq!(moment(1_700_000_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(moment(MOMENTS_END - 1), "9999-12-31T23:59:59Z");
        assert_eq!(moment(u64::MAX), "after 9999");
        assert_eq!(ago(u64::MAX), "just now");
        let now = proto::width::millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap());
        assert_eq!(ago(now), "just now");
        // In the future by a clock that was set back.
        assert_eq!(ago(now + 100_000), "just now");
        assert_eq!(ago(now - 5_100), "5 s ago");
        assert_eq!(ago(now - 3_600_000), "1 h ago");
    }

    #[test]
    fn counts_agree_with_their_nouns() {
        assert_eq!([count(0, "file"), count(1, "file"), count(2, "file")], ["0 files", "1 file", "2 files"]);
        assert_eq!([count(1, "entry"), count(3, "entry")], ["1 entry", "3 entries"]);
        assert_eq!([count(1, "process"), count(2, "process")], ["1 process", "2 processes"]);
    }

    #[test]
    fn byte_counts_with_units() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("2G", 2_000_000_000), ("2GiB", 2 << 30), ("64 KiB", 64 << 10)]
        {
            assert_eq!(byte_count(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1X", "99999999999T"] {
            assert!(byte_count(text).is_err(), "{text}");
        }
    }

    proptest! {
        /// Whatever the number: at most three digits, a tenth, a unit, and within a twentieth of the truth.
        #[test]
        fn a_size_is_short_and_nearly_right(count: u64) {
            let text = bytes(count);
            let (number, unit) = text.split_once(' ').unwrap();
            let factor = SIZES.iter().find(|(_, name)| *name == unit).map_or(1, |(factor, _)| *factor);
            let value: f64 = number.parse().unwrap();
            prop_assert!(value < 1_000.0 || unit == "TB", "{text}");
            prop_assert!(value >= 1.0 || unit == "B", "{text}");
            let off = (value * factor as f64 - count as f64).abs();
            prop_assert!(off <= factor as f64 * 0.05 + count as f64 * 1e-9, "{text} for {count}");
        }

        #[test]
        fn a_larger_size_is_never_shown_as_less(a: u64, b: u64) {
            let shown = |count| {
                let text = bytes(count);
                let (number, unit) = text.split_once(' ').unwrap();
                let factor = SIZES.iter().find(|(_, name)| *name == unit).map_or(1, |(factor, _)| *factor);
                number.parse::<f64>().unwrap() * factor as f64
            };
            prop_assert!(shown(a.min(b)) <= shown(a.max(b)), "{} and {}", bytes(a), bytes(b));
        }

        #[test]
        fn a_duration_has_at_most_two_units_and_no_sixty(milliseconds in 0_u64..1 << 45) {
            let text = ms(milliseconds);
            let words: Vec<&str> = text.split(' ').collect();
            prop_assert!(words.len() == 2 || words.len() == 4, "{text}");
            for pair in words.chunks(2) {
                let number: f64 = pair[0].parse().unwrap();
                let most = match pair[1] {
                    "ms" => 1_000.0,
                    "s" | "min" => 60.0,
                    "h" => 24.0,
                    "d" => f64::MAX,
                    other => return Err(TestCaseError::fail(format!("{other} is no unit"))),
                };
                prop_assert!(number < most, "{text}");
            }
        }

        #[test]
        fn what_is_typed_with_a_unit_is_that_many_bytes(number in 0_u64..1 << 20, unit in 0_usize..9, b: bool) {
            let (name, factor) = [
                ("", 1_u64), ("k", 1_000), ("M", 1_000_000), ("G", 1_000_000_000), ("T", 1_000_000_000_000),
                ("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30), ("Ti", 1 << 40),
            ][unit];
            let text = format!("{number}{name}{}", if b { "B" } else { "" });
            prop_assert_eq!(byte_count(&text), Ok(number * factor));
        }

        #[test]
        fn whatever_is_typed_is_a_number_of_bytes_or_an_error_that_quotes_it(text in "[0-9]{0,25}[ a-zA-Z]{0,4}") {
            if let Err(why) = byte_count(&text) {
                prop_assert!(why.contains('\''), "{why}");
            }
        }
    }
}
