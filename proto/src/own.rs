//! Operations that a program brings itself: what is asked of them, and what came of it. The manager passes both on and
//! knows nothing of what they mean.

use std::collections::BTreeMap;

use serde::de::{Deserialize, Deserializer, Error};
use serde::{Serialize, Serializer};

use crate::bounded::{Exact, Line, Lines, List, Own, within};
use crate::limits::{
    ARGUMENT_VALUE_BYTES_MAX, OWN_ARGUMENTS_MAX, OWN_RESULTS_MAX, PROBLEM_BYTES_MAX, PROBLEMS_MAX, RESULT_BYTES_MAX,
    VERSION_BYTES_MAX, VERSIONS_MAX,
};
use crate::name::ArgumentName;

/// The arguments of one operation, by their names: at most [`OWN_ARGUMENTS_MAX`], each text of at most
/// [`ARGUMENT_VALUE_BYTES_MAX`] bytes without a NUL. On the wire a list of pairs, the names ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Arguments(BTreeMap<ArgumentName, String>);

/// Arguments that cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArgumentsFault {
    /// One name stands twice.
    #[error("argument '{0}' is given twice")]
    Twice(ArgumentName),
    /// There are too many.
    #[error("more than {OWN_ARGUMENTS_MAX} arguments")]
    TooMany,
    /// The text of one is too long, or has a NUL in it.
    #[error("argument '{0}' has more than {ARGUMENT_VALUE_BYTES_MAX} bytes, or a NUL byte")]
    Value(ArgumentName),
}

impl Arguments {
    /// Adds one.
    ///
    /// # Errors
    /// It is there already, is one too many, or too long.
    pub fn add(&mut self, name: ArgumentName, value: &str) -> Result<(), ArgumentsFault> {
        if value.len() > ARGUMENT_VALUE_BYTES_MAX || value.contains('\0') {
            return Err(ArgumentsFault::Value(name));
        }
        if self.0.contains_key(&name) {
            return Err(ArgumentsFault::Twice(name));
        }
        if self.0.len() >= OWN_ARGUMENTS_MAX {
            return Err(ArgumentsFault::TooMany);
        }
        self.0.insert(name, value.to_owned());
        Ok(())
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

#[derive(serde::Deserialize)]
struct Pair(ArgumentName, #[serde(deserialize_with = "within::<_, Exact<ARGUMENT_VALUE_BYTES_MAX>>")] String);

impl Serialize for Arguments {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0)
    }
}

impl<'de> Deserialize<'de> for Arguments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let pairs = within::<_, List<Own<Pair>, OWN_ARGUMENTS_MAX>>(deserializer)?;
        // Each set of arguments has one form, so that two orders are the same if their bytes are.
        if !pairs.is_sorted_by(|Pair(one, _), Pair(next, _)| one < next) {
            return Err(D::Error::custom("the names of arguments do not ascend"));
        }
        Ok(Self(pairs.into_iter().map(|Pair(name, value)| (name, value)).collect()))
    }
}

/// What an operation of a program's own kind did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct OwnSummary {
    /// What the program says of it, in its order: at most [`OWN_RESULTS_MAX`] lines of [`RESULT_BYTES_MAX`] bytes.
    #[serde(deserialize_with = "within::<_, List<Own<Finding>, OWN_RESULTS_MAX>>")]
    pub results: Vec<Finding>,
    /// Errors passed over: each one line. Empty means clean.
    #[serde(deserialize_with = "within::<_, Lines<PROBLEM_BYTES_MAX, PROBLEMS_MAX>>")]
    pub problems: Vec<String>,
    /// The versions that took part, in order.
    #[serde(deserialize_with = "within::<_, Lines<VERSION_BYTES_MAX, VERSIONS_MAX>>")]
    pub versions: Vec<String>,
}

/// One line of what an operation did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Finding {
    /// What was counted or found out, in a word of the program's own.
    pub name: ArgumentName,
    /// Its value, one line of at most 1 KiB.
    #[serde(deserialize_with = "within::<_, Line<RESULT_BYTES_MAX>>")]
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    fn name(text: &str) -> ArgumentName {
        text.parse().unwrap()
    }

    #[test]
    fn arguments_are_named_once_and_have_bounds() {
        let mut arguments = Arguments::default();
        arguments.add(name("b"), "2").unwrap();
        arguments.add(name("a"), "1").unwrap();
        assert_eq!(arguments.iter().collect::<Vec<_>>(), [("a", "1"), ("b", "2")]);
        assert_eq!(arguments.add(name("a"), "1"), Err(ArgumentsFault::Twice(name("a"))));
        let long = "v".repeat(ARGUMENT_VALUE_BYTES_MAX);
        arguments.add(name("long"), &long).unwrap();
        for value in [format!("{long}v"), "\0".to_owned()] {
            assert_eq!(arguments.add(name("c"), &value), Err(ArgumentsFault::Value(name("c"))));
        }
        let there = arguments.iter().len();
        for n in there..OWN_ARGUMENTS_MAX {
            arguments.add(name(&format!("n{n}")), "").unwrap();
        }
        assert_eq!(arguments.add(name("z"), ""), Err(ArgumentsFault::TooMany));
        let bytes = codec::encode(&arguments).unwrap();
        assert_eq!(codec::decode::<Arguments, { 1 << 20 }>(&bytes).unwrap(), arguments);
    }

    #[test]
    fn a_set_of_arguments_has_one_form() {
        let read = |pairs: &[(&str, &str)]| {
            let bytes = codec::encode(&pairs.to_vec()).unwrap();
            codec::decode::<Arguments, { 1 << 20 }>(&bytes)
        };
        assert!(read(&[("a", "1"), ("b", "")]).is_ok());
        for wrong in [&[("b", ""), ("a", "1")][..], &[("a", "1"), ("a", "2")], &[("a b", "")], &[("a", "\0")]] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }
}
