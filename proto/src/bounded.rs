//! Bounds on what comes from outside, applied while it is read: a value that was decoded is within them.
//!
//! Fields keep their plain types and name their bound where they are declared, so that no reader can forget it:
//!
//! ```text
//! #[serde(deserialize_with = "within::<_, List<Word<SNAPSHOT_BYTES_MAX>, SOURCES_MAX>>")]
//! pub snapshots: Vec<String>,
//! ```
//! Two behaviours. Identifiers, paths, bytes and lists are **refused** when they are too long: half of one means something
//! else. Text for people ([`Line`], [`Text`], [`Lines`]) is **cut** with a visible mark and cleaned ([`crate::text`]): a message
//! is not lost for a talkative peer. A list is given up at its first element too many, before the rest is read. Every
//! bound is in [`crate::limits`], with its reason.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};

use crate::limits::PATH_BYTES_MAX;
use crate::text;

/// How a value of a bounded field is read.
pub trait Bound<'de> {
    /// What the field holds.
    type Plain;

    /// Reads it, within the bound.
    ///
    /// # Errors
    /// It is not such a value, or beyond a bound that refuses.
    fn read<D: Deserializer<'de>>(deserializer: D) -> Result<Self::Plain, D::Error>;
}

/// For `#[serde(deserialize_with = …)]`: reads a field within the bound `B`.
///
/// # Errors
/// See [`Bound::read`].
pub fn within<'de, D: Deserializer<'de>, B: Bound<'de>>(deserializer: D) -> Result<B::Plain, D::Error> {
    B::read(deserializer)
}

/// Whatever its type allows.
pub struct Own<T>(PhantomData<T>);
/// One line for people of at most `MAX` bytes; cut and cleaned.
pub struct Line<const MAX: usize>;
/// Lines for people of at most `MAX` bytes together; cut and cleaned.
pub struct Text<const MAX: usize>;
/// At most `COUNT` lines of at most `MAX` bytes; those beyond are counted in the last one.
pub struct Lines<const MAX: usize, const COUNT: usize>;
/// An identifier: 1 to `MAX` printable ASCII characters without a space.
pub struct Word<const MAX: usize>;
/// Exact text, such as an argument of a program: at most `MAX` bytes, without a NUL.
pub struct Exact<const MAX: usize>;
/// Some bytes, at most `MAX`.
pub struct Blob<const MAX: usize>;
/// At most `MAX` elements.
pub struct List<B, const MAX: usize>(PhantomData<B>);
/// At most `COUNT` paths of at most [`PATH_BYTES_MAX`] bytes, and of at most `TOTAL` bytes together.
pub struct Paths<const COUNT: usize, const TOTAL: usize>;
/// One path of a host, exactly.
pub type PathText = Exact<PATH_BYTES_MAX>;

impl<'de, T: Deserialize<'de>> Bound<'de> for Own<T> {
    type Plain = T;
    fn read<D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        T::deserialize(deserializer)
    }
}

/// What is beyond the bounds of its place.
#[derive(Debug, thiserror::Error)]
enum Beyond {
    #[error("{got} bytes where at most {max} are allowed")]
    TooLong { got: usize, max: usize },
    #[error("an identifier is empty, or has other than printable ASCII characters")]
    NotAWord,
    #[error("a NUL byte in a path or an argument")]
    Nul,
    #[error("a list of more than {0} elements")]
    Elements(usize),
    #[error("paths of more than {0} bytes together")]
    Paths(usize),
}

/// Reads a string without a copy where it lies in memory already, and makes of it what the function says.
struct OfText<F>(F, &'static str);

impl<'de, F: FnOnce(&str) -> Result<String, Beyond>> Visitor<'de> for OfText<F> {
    type Value = String;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.1)
    }
    fn visit_str<E: Error>(self, raw: &str) -> Result<String, E> {
        (self.0)(raw).map_err(E::custom)
    }
}

macro_rules! of_text {
    ($name:ident, $expecting:literal, $raw:ident => $made:expr) => {
        impl<'de, const MAX: usize> Bound<'de> for $name<MAX> {
            type Plain = String;
            fn read<D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
                deserializer.deserialize_str(OfText(|$raw: &str| $made, $expecting))
            }
        }
    };
}

of_text!(Line, "a line of text", raw => Ok(text::line(raw, MAX)));
of_text!(Text, "text", raw => Ok(text::lines(raw, MAX)));
of_text!(Word, "an identifier", raw => match raw {
    _ if raw.len() > MAX => Err(Beyond::TooLong { got: raw.len(), max: MAX }),
    _ if raw.is_empty() || !raw.bytes().all(|b| b.is_ascii_graphic()) => {
        Err(Beyond::NotAWord)
    }
    _ => Ok(raw.to_owned()),
});
of_text!(Exact, "text without a NUL", raw => match raw {
    _ if raw.len() > MAX => Err(Beyond::TooLong { got: raw.len(), max: MAX }),
    _ if raw.contains('\0') => Err(Beyond::Nul),
    _ => Ok(raw.to_owned()),
});

impl<'de, B: Bound<'de>> Bound<'de> for Option<B> {
    type Plain = Option<B::Plain>;
    fn read<D: Deserializer<'de>>(deserializer: D) -> Result<Self::Plain, D::Error> {
        struct OfOption<B>(PhantomData<B>);
        impl<'de, B: Bound<'de>> Visitor<'de> for OfOption<B> {
            type Value = Option<B::Plain>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value or nothing")
            }
            fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
                Ok(None)
            }
            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
                B::read(deserializer).map(Some)
            }
        }
        deserializer.deserialize_option(OfOption::<B>(PhantomData))
    }
}

struct Seed<B>(PhantomData<B>);

impl<'de, B: Bound<'de>> DeserializeSeed<'de> for Seed<B> {
    type Value = B::Plain;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<B::Plain, D::Error> {
        B::read(deserializer)
    }
}

/// Reads elements and lets `F` say what becomes of each, given those before it.
struct OfList<B, P, F>(PhantomData<(B, P)>, F, &'static str);

impl<'de, B: Bound<'de, Plain = P>, P, F: FnMut(&mut Vec<P>, P) -> Result<(), Beyond>> Visitor<'de>
    for OfList<B, P, F>
{
    type Value = Vec<P>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.2)
    }
    fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<Vec<P>, A::Error> {
        // No room is made on the word of a length: it grows with what is really there.
        let mut list = Vec::new();
        while let Some(element) = elements.next_element_seed(Seed::<B>(PhantomData))? {
            (self.1)(&mut list, element).map_err(A::Error::custom)?;
        }
        list.shrink_to_fit();
        Ok(list)
    }
}

fn push<P>(list: &mut Vec<P>, element: P, max: usize) -> Result<(), Beyond> {
    if list.len() >= max {
        return Err(Beyond::Elements(max));
    }
    list.push(element);
    Ok(())
}

impl<'de, B: Bound<'de>, const MAX: usize> Bound<'de> for List<B, MAX> {
    type Plain = Vec<B::Plain>;
    fn read<D: Deserializer<'de>>(deserializer: D) -> Result<Self::Plain, D::Error> {
        let take = |list: &mut Vec<_>, element| push(list, element, MAX);
        deserializer.deserialize_seq(OfList(PhantomData::<(B, B::Plain)>, take, "a list"))
    }
}

impl<'de, const COUNT: usize, const TOTAL: usize> Bound<'de> for Paths<COUNT, TOTAL> {
    type Plain = Vec<String>;
    fn read<D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
        let mut total = 0;
        let take = |list: &mut Vec<String>, path: String| {
            total += path.len();
            if total > TOTAL {
                return Err(Beyond::Paths(TOTAL));
            }
            push(list, path, COUNT)
        };
        deserializer.deserialize_seq(OfList(PhantomData::<(PathText, String)>, take, "a list of paths"))
    }
}

impl<'de, const MAX: usize, const COUNT: usize> Bound<'de> for Lines<MAX, COUNT> {
    type Plain = Vec<String>;
    fn read<D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
        struct OfLines<const MAX: usize, const COUNT: usize>;
        impl<'de, const MAX: usize, const COUNT: usize> Visitor<'de> for OfLines<MAX, COUNT> {
            type Value = Vec<String>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of lines")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<String>, A::Error> {
                let mut list = Vec::new();
                while list.len() < COUNT {
                    match elements.next_element_seed(Seed::<Line<MAX>>(PhantomData))? {
                        Some(line) => list.push(line),
                        None => return Ok(list),
                    }
                }
                let mut more = 0_u64;
                while elements.next_element::<IgnoredText>()?.is_some() {
                    more += 1;
                }
                if more > 0 {
                    list.pop();
                    list.push(format!("… and {} more", more + 1));
                }
                Ok(list)
            }
        }
        deserializer.deserialize_seq(OfLines::<MAX, COUNT>)
    }
}

/// Text that is passed over. `IgnoredAny` cannot be read from a format that does not describe itself.
struct IgnoredText;

impl<'de> Deserialize<'de> for IgnoredText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(OfText(|_: &str| Ok(String::new()), "a line of text")).map(|_| Self)
    }
}

impl<'de, const MAX: usize> Bound<'de> for Blob<MAX> {
    type Plain = Vec<u8>;
    fn read<D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct OfBytes<const MAX: usize>;
        impl<'de, const MAX: usize> Visitor<'de> for OfBytes<MAX> {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX} bytes")
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                if bytes.len() > MAX {
                    return Err(E::custom(Beyond::TooLong { got: bytes.len(), max: MAX }));
                }
                Ok(bytes.to_vec())
            }
            // As JSON has them.
            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<u8>, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = elements.next_element()? {
                    push(&mut bytes, byte, MAX).map_err(A::Error::custom)?;
                }
                Ok(bytes)
            }
        }
        // In the codec bytes and a list of bytes are the same; the former are read in one piece.
        deserializer.deserialize_bytes(OfBytes::<MAX>)
    }
}

#[cfg(test)]
#[path = "bounded_tests.rs"]
mod tests;
