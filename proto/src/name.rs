//! Names that people type: products, versions, hosts, groups, and references to a generation.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bounded::{Word, within};
use crate::id::TreeId;
use crate::text;

/// A name breaks the rule for its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a {kind}: {rule}")]
pub struct NameError {
    /// What the text should have been.
    pub kind: &'static str,
    /// The text, cut and made printable.
    pub text: String,
    /// What is allowed.
    pub rule: &'static str,
}

/// Bytes of a text that is no name, shown in the refusal.
const NAME_SHOWN_BYTES: usize = 120;

macro_rules! checked_name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $max:literal, $allowed:expr, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text. It is safe as one path component.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                let allowed: fn(u8) -> bool = $allowed;
                let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
                if first && text.len() <= $max && text.bytes().all(allowed) {
                    Ok(Self(text))
                } else {
                    Err(NameError { kind: $kind, text: text::line(&text, NAME_SHOWN_BYTES), rule: $rule })
                }
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked_name!(
    /// A named component, such as `data-agent`.
    Product, "product", 64,
    |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+'),
    "want 1 to 64 letters, digits, '.', '_', '-', '+', starting with a letter or digit"
);
checked_name!(
    /// The version of a product, as its maker writes it (Debian's epochs and tildes are allowed).
    Version, "version", 128,
    |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+' | b'~' | b':'),
    "want 1 to 128 letters, digits, '.', '_', '-', '+', '~', ':', starting with a letter or digit"
);
checked_name!(
    /// A client host, by the name that its certificate bears.
    HostName, "host name", 253,
    |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'),
    "want 1 to 253 letters, digits, '.', '_', '-', starting with a letter or digit"
);
checked_name!(
    /// A group of hosts; written `@name` where hosts are named too.
    GroupName, "group name", 64,
    |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'),
    "want 1 to 64 letters, digits, '.', '_', '-', starting with a letter or digit"
);

/// A host, or every host of a group: what `--to` takes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Target {
    /// One host.
    Host(HostName),
    /// All hosts of a group, now and later.
    Group(GroupName),
}

impl FromStr for Target {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.strip_prefix('@') {
            Some(group) => group.parse().map(Target::Group),
            None => text.parse().map(Target::Host),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Host(host) => write!(f, "{host}"),
            Target::Group(group) => write!(f, "@{group}"),
        }
    }
}

/// How people name a generation: `product@version`, a tree id, or the start of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GenerationRef {
    /// `product@version`.
    Named(Product, Version),
    /// 4 to 64 lowercase hex digits.
    TreePrefix(#[serde(deserialize_with = "hex_prefix")] String),
}

impl GenerationRef {
    /// Whether a generation with this name and tree is meant.
    pub fn matches(&self, product: &Product, version: &Version, tree: &TreeId) -> bool {
        match self {
            GenerationRef::Named(p, v) => p == product && v == version,
            GenerationRef::TreePrefix(prefix) => tree.to_hex().starts_with(prefix.as_str()),
        }
    }
}

fn is_hex_prefix(text: &str) -> bool {
    (4..=64).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn hex_prefix<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = within::<_, Word<64>>(deserializer)?;
    let refuse = || serde::de::Error::custom("the start of a tree id has 4 to 64 lowercase hex digits");
    is_hex_prefix(&text).then_some(text).ok_or_else(refuse)
}

impl FromStr for GenerationRef {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        if let Some((product, version)) = text.split_once('@') {
            return Ok(GenerationRef::Named(product.parse()?, version.parse()?));
        }
        if is_hex_prefix(text) {
            return Ok(GenerationRef::TreePrefix(text.to_owned()));
        }
        Err(NameError {
            kind: "generation",
            text: text::line(text, NAME_SHOWN_BYTES),
            rule: "want product@version, a tree id, or at least 4 of its first hex digits",
        })
    }
}

impl fmt::Display for GenerationRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GenerationRef::Named(product, version) => write!(f, "{product}@{version}"),
            GenerationRef::TreePrefix(prefix) => f.write_str(prefix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_directory_are_refused() {
        for bad in ["", ".", "..", "a/b", "-x", "a b", "a\0", "ä"] {
            assert!(bad.parse::<Product>().is_err(), "{bad:?}");
            assert!(bad.parse::<Version>().is_err(), "{bad:?}");
            assert!(bad.parse::<HostName>().is_err(), "{bad:?}");
        }
        assert!("1:3.11.2-6+deb12u5~bpo".parse::<Version>().is_ok());
    }

    #[test]
    fn a_generation_is_named_or_begun() {
        assert!(matches!("data-agent@1.0".parse(), Ok(GenerationRef::Named(..))));
        assert!(matches!("0af3".parse(), Ok(GenerationRef::TreePrefix(_))));
        assert!("0af".parse::<GenerationRef>().is_err());
        assert!("xyz".parse::<GenerationRef>().is_err());
    }
}
