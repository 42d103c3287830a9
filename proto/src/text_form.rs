//! Values that stand in messages and records as the text that people write for them: `#[serde(with = "text_form")]`.

use std::fmt::Display;
use std::str::FromStr;

use serde::de::{Deserializer, Error};
use serde::ser::Serializer;

use crate::bounded::{Word, within};

/// Bytes of such a text; the longest is an IPv6 address with a zone and a port.
const BYTES_MAX: usize = 128;

/// As text.
///
/// # Errors
/// Of the serializer.
pub(crate) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// From text.
///
/// # Errors
/// It is too long, or none of the type.
pub(crate) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    let text = within::<_, Word<BYTES_MAX>>(deserializer)?;
    text.parse().map_err(|fault| D::Error::custom(format!("'{text}': {fault}")))
}
