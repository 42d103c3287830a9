//! Records of pax extended headers: `length key=value\n`, those of one entry laid over those of the whole archive.
//! Bounded, since an archive of a few kilobytes can repeat them for millions of entries.

use std::collections::BTreeMap;

/// Bytes of the records that hold for one entry. Attributes are the largest: the kernel allows 64 KiB for each.
const ENTRY_BYTES_MAX: usize = 4 << 20;
/// Bytes of the records that hold for all that follows. Real archives have a comment there; whatever stands there is
/// looked at again for every entry, so this times the entries is work.
const GLOBAL_BYTES_MAX: usize = 64 << 10;

/// Records by key, and the bytes that they have.
#[derive(Debug, Default)]
pub(super) struct Records {
    by_key: BTreeMap<Vec<u8>, Vec<u8>>,
    bytes: usize,
}

impl Records {
    /// Adds those of one entry.
    ///
    /// # Errors
    /// They do not parse, or are too many; the text says so.
    pub(super) fn extend_entry(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        self.extend(bytes, ENTRY_BYTES_MAX, "extended headers of more than 4 MiB for one entry")
    }

    /// Adds those of a global header.
    ///
    /// # Errors
    /// They do not parse, or are too many; the text says so.
    pub(super) fn extend_global(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        self.extend(bytes, GLOBAL_BYTES_MAX, "global extended headers of more than 64 KiB")
    }

    /// Bytes of all keys and values.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    fn extend(&mut self, mut bytes: &[u8], bytes_max: usize, too_many: &'static str) -> Result<(), &'static str> {
        const FAULT: &str = "an extended header that does not parse";
        while !bytes.is_empty() && bytes[0] != 0 {
            let space = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or(FAULT)?;
            let length = decimal(&bytes[..space]).and_then(|length| usize::try_from(length).ok()).ok_or(FAULT)?;
            let record = bytes.get(space + 1..length).ok_or(FAULT)?;
            let (key, value) = record.strip_suffix(b"\n").and_then(split_once).ok_or(FAULT)?;
            if key.starts_with(b"GNU.sparse.offset") || key.starts_with(b"GNU.sparse.numbytes") {
                return Err("a sparse file of the outdated GNU format 0.0; pack it with a newer tar");
            }
            self.bytes += key.len() + value.len();
            if let Some(earlier) = self.by_key.insert(key.to_vec(), value.to_vec()) {
                self.bytes -= key.len() + earlier.len();
            }
            if self.bytes > bytes_max {
                return Err(too_many);
            }
            bytes = &bytes[length..];
        }
        Ok(())
    }
}

/// What holds for one entry: its own records over the archive's. Nothing is copied.
#[derive(Clone, Copy)]
pub(super) struct Layered<'a> {
    pub(super) own: &'a Records,
    pub(super) global: &'a Records,
}

impl<'a> Layered<'a> {
    /// The value of a key; an empty one takes an earlier one back.
    pub(super) fn get(self, key: &[u8]) -> Option<&'a [u8]> {
        self.raw(key).filter(|value| !value.is_empty())
    }

    /// Whether a key is there, whatever its value.
    pub(super) fn has(self, key: &[u8]) -> bool {
        self.raw(key).is_some()
    }

    /// Keys that begin with `prefix`, and their values, those of the entry first.
    pub(super) fn with_prefix(self, prefix: &'static [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let below = move |records: &'a Records| {
            let from = records.by_key.range(prefix.to_vec()..);
            from.take_while(move |(key, _)| key.starts_with(prefix))
                .map(|(key, value)| (key.as_slice(), value.as_slice()))
        };
        let inherited = below(self.global).filter(move |(key, _)| !self.own.by_key.contains_key(*key));
        below(self.own).chain(inherited)
    }

    fn raw(self, key: &[u8]) -> Option<&'a [u8]> {
        self.own.by_key.get(key).or_else(|| self.global.by_key.get(key)).map(Vec::as_slice)
    }
}

/// A decimal number.
pub(super) fn decimal(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with a fraction, such as `1700000000.25` or `-1.5`; digits after the ninth are dropped, as in the kernel.
pub(super) fn decimal_time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let seconds: i64 = if whole == "-" { 0 } else { whole.parse().ok()? };
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    match (negative, nanoseconds) {
        (false, _) | (true, 0) => Some((seconds, nanoseconds)),
        (true, _) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds)),
    }
}

/// GNU tar writes `=` in a key, which would end it, as `%3D`, and `%` as `%25`.
pub(super) fn unescaped(key: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(key.len());
    let mut rest = key;
    while let Some((first, after)) = rest.split_first() {
        let (byte, after) = match after {
            [b'3', b'D', after @ ..] if *first == b'%' => (b'=', after),
            [b'2', b'5', after @ ..] if *first == b'%' => (b'%', after),
            _ => (*first, after),
        };
        plain.push(byte);
        rest = after;
    }
    plain
}

fn split_once(record: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..]))
}

#[cfg(test)]
mod tests {
    use proto::path::printable;

    use super::*;

    fn record(key: &str, value: &str) -> Vec<u8> {
        let bare = key.len() + value.len() + 3;
        let length = (1..).map(|digits| bare + digits).find(|length| length.to_string().len() + bare == *length);
        format!("{} {key}={value}\n", length.unwrap()).into_bytes()
    }

    #[test]
    fn times_have_fractions_and_signs() {
        assert_eq!(decimal_time(b"12"), Some((12, 0)));
        assert_eq!(decimal_time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(decimal_time(b"12.0000000019"), Some((12, 1)));
        assert_eq!(decimal_time(b"-1.5"), Some((-2, 500_000_000)));
        assert_eq!(decimal_time(b"-0.25"), Some((-1, 750_000_000)));
        assert_eq!(decimal_time(b"-3"), Some((-3, 0)));
        for bad in [b"".as_slice(), b"x", b"1.x", b"1.-5", b"99999999999999999999"] {
            assert_eq!(decimal_time(bad), None, "{}", printable(bad));
        }
    }

    #[test]
    fn keys_of_attributes_are_unescaped() {
        assert_eq!(unescaped(b"user.a%3Db%25%2"), b"user.a=b%%2");
    }

    #[test]
    fn an_entry_s_records_lie_over_the_archive_s() {
        let (mut own, mut global) = (Records::default(), Records::default());
        global.extend_global(&[record("path", "all"), record("a.1", "g1"), record("a.2", "g2")].concat()).unwrap();
        own.extend_entry(&[record("path", ""), record("a.2", "own")].concat()).unwrap();
        let layered = Layered { own: &own, global: &global };
        assert_eq!(layered.get(b"path"), None, "an empty value takes the archive's back");
        assert!(layered.has(b"path"));
        let found: Vec<_> = layered.with_prefix(b"a.").collect();
        assert_eq!(found, [(b"a.2".as_slice(), b"own".as_slice()), (b"a.1", b"g1")]);
    }

    #[test]
    fn records_are_bounded_also_when_they_come_in_many_headers() {
        let mut global = Records::default();
        global.extend_global(&record("comment", &"c".repeat(60_000))).unwrap();
        global.extend_global(&record("comment", &"d".repeat(60_000))).unwrap();
        assert!(global.extend_global(&record("other", &"e".repeat(10_000))).unwrap_err().contains("64 KiB"));
        let mut own = Records::default();
        let more = (0..5).map(|n| own.extend_entry(&record(&format!("k{n}"), &"v".repeat(1 << 20))));
        assert_eq!(more.filter(Result::is_err).count(), 2);
    }
}
