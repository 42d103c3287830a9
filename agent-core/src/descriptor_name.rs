//! The names under which descriptors cross `execve`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const BYTES_MAX: usize = 64;

/// The name of a descriptor: 1 to 64 letters, digits, `.`, `-`, `_`, as `FileDescriptorName=` of systemd may have it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DescriptorName(String);

/// A name that no descriptor can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no name for a descriptor: want 1 to 64 letters, digits, '.', '-' or '_'")]
pub struct NotAName(String);

/// Names that begin like this are the library's own, for what it keeps itself.
const OWN: &str = "manager-fs.";

impl DescriptorName {
    /// One of the library's own.
    pub(crate) fn own(kind: &str, number: u32) -> Self {
        Self(format!("{OWN}{kind}.{number}"))
    }

    /// Whether it is one of the library's own, of this kind or (`""`) of any.
    pub(crate) fn is_own(&self, kind: &str) -> bool {
        self.0.strip_prefix(OWN).is_some_and(|rest| rest.starts_with(kind))
    }
}

impl FromStr for DescriptorName {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        let fits = (1..=BYTES_MAX).contains(&text.len());
        let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
        if fits && plain { Ok(Self(text.to_owned())) } else { Err(NotAName(text.chars().take(80).collect())) }
    }
}

impl TryFrom<String> for DescriptorName {
    type Error = NotAName;

    fn try_from(text: String) -> Result<Self, NotAName> {
        text.parse()
    }
}

impl From<DescriptorName> for String {
    fn from(name: DescriptorName) -> Self {
        name.0
    }
}

impl AsRef<str> for DescriptorName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DescriptorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_a_service_manager_can_give() {
        for good in ["a", "http.1-x_Y", &"n".repeat(BYTES_MAX)] {
            let name: DescriptorName = good.parse().unwrap();
            assert_eq!((name.as_ref(), name.to_string().as_str()), (good, good));
            assert_eq!(DescriptorName::try_from(good.to_owned()), Ok(name.clone()));
            assert_eq!(String::from(name), good);
        }
        for bad in ["", "a b", "a:b", "é", &"n".repeat(BYTES_MAX + 1)] {
            assert_eq!(bad.parse::<DescriptorName>(), Err(NotAName(bad.to_owned())));
            assert!(DescriptorName::try_from(bad.to_owned()).is_err());
        }
    }

    #[test]
    fn the_library_knows_its_own_by_their_kind() {
        let own = DescriptorName::own("state", 3);
        assert_eq!(own.as_ref(), "manager-fs.state.3");
        assert!(own.is_own("state") && own.is_own("") && !own.is_own("program"));
        assert!(!"state.3".parse::<DescriptorName>().unwrap().is_own(""));
    }
}
