//! Names that people type: products, versions, hosts, groups, and references to a generation.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

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
    /// What such a name may have, for people.
    pub rule: &'static str,
}

/// Bytes of a text that is no name, shown in the refusal.
const NAME_SHOWN_BYTES: usize = 120;

macro_rules! checked_name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $max:literal, $allowed:expr, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(into = "String")]
        pub struct $name(String);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                // Bounded before it is copied, unlike a `String`.
                let text = within::<_, Word<$max>>(deserializer)?;
                Self::try_from(text).map_err(serde::de::Error::custom)
            }
        }

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
checked_name!(
    /// A policy: what is backed up where, when, and kept how long.
    PolicyName, "policy name", 64,
    |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'),
    "want 1 to 64 letters, digits, '.', '_', '-', starting with a letter or digit"
);
checked_name!(
    /// A repository that a media agent serves. It never begins with `/`, so it is told from a path.
    RepositoryName, "repository name", 64,
    |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-',
    "want 1 to 64 lowercase letters, digits, '-', starting with a letter or digit"
);
checked_name!(
    /// A token of the manager's HTTP interface, or the certificate that stands for one.
    ApiTokenName, "name of a token", 64,
    |b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'),
    "want 1 to 64 letters, digits, '_', '-', starting with a letter or digit"
);
checked_name!(
    /// A kind of operation that a program brings itself, such as `rotate`.
    OperationKind, "kind of operation", 32,
    |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-',
    "want 1 to 32 lowercase letters, digits, '-', starting with a letter or digit"
);
checked_name!(
    /// A command of a host, by which its `permits.toml` names a program and its arguments.
    CommandName, "command name", 64,
    |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'),
    "want 1 to 64 letters, digits, '.', '_', '-', starting with a letter or digit"
);
checked_name!(
    /// What an argument, or a result, of such an operation is called.
    ArgumentName, "argument name", 64,
    |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'),
    "want 1 to 64 letters, digits, '.', '_', '-', starting with a letter or digit"
);

checked_name!(
    /// What a label of a host is about, such as `site`.
    LabelKey, "label key", 64,
    |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'),
    "want 1 to 64 letters, digits, '.', '_', '-', starting with a letter or digit"
);
checked_name!(
    /// What a label says of a host, such as `fra`.
    LabelValue, "label value", 64,
    |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'),
    "want 1 to 64 letters, digits, '.', '_', '-', starting with a letter or digit"
);

/// A host, or every host of a group: what `--to` takes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Target {
    /// The host of this name, enrolled or not yet.
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
    /// `product@version`: one generation at most, since a version never changes.
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

fn hex_prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
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

    /// Every byte, in the first place and after it, and every length up to one too many.
    #[test]
    fn each_kind_of_name_has_its_own_characters_and_length() {
        fn check<T: FromStr<Err = NameError> + fmt::Display + fmt::Debug>(kind: &str, max: usize, also: &[u8]) {
            let takes = |text: &str| match text.parse::<T>() {
                Ok(name) => {
                    assert_eq!(name.to_string(), text);
                    assert_eq!(format!("{name:?}"), text);
                    true
                }
                Err(error) => {
                    assert_eq!((error.kind, error.text.as_str()), (kind, text::line(text, 120).as_str()));
                    assert!(error.to_string().contains(&format!("is not a {kind}: want 1 to {max} letters")));
                    false
                }
            };
            for byte in 0..=0x7f_u8 {
                let c = char::from(byte);
                assert_eq!(takes(&c.to_string()), byte.is_ascii_alphanumeric(), "{kind} that is {c:?}");
                let allowed = byte.is_ascii_alphanumeric() || also.contains(&byte);
                assert_eq!(takes(&format!("a{c}")), allowed, "{kind} with {c:?}");
            }
            assert!(takes(&"x".repeat(max)) && !takes(&"x".repeat(max + 1)) && !takes("") && !takes("aé"));
        }
        check::<Product>("product", 64, b"._-+");
        check::<Version>("version", 128, b"._-+~:");
        check::<HostName>("host name", 253, b"._-");
        check::<GroupName>("group name", 64, b"._-");
        check::<LabelKey>("label key", 64, b"._-");
        check::<LabelValue>("label value", 64, b"._-");
    }

    #[test]
    fn a_name_is_its_text_wherever_it_goes() {
        let product: Product = "data-agent".parse().unwrap();
        assert_eq!(product.as_str(), "data-agent");
        assert_eq!(String::from(product.clone()), "data-agent");
        assert_eq!(Product::try_from("data-agent".to_owned()), Ok(product.clone()));
        let bytes = crate::codec::encode(&product).unwrap();
        assert_eq!(bytes, crate::codec::encode(&"data-agent").unwrap());
        assert_eq!(crate::codec::decode::<Product, 64>(&bytes), Ok(product));
        let other = crate::codec::encode(&"../agent").unwrap();
        assert!(crate::codec::decode::<Product, 64>(&other).is_err(), "checked on arrival too");
    }

    #[test]
    fn a_target_is_a_host_or_a_group() {
        let host = Target::Host("host-1".parse().unwrap());
        let group = Target::Group("web".parse().unwrap());
        for (target, text) in [(host, "host-1"), (group, "@web")] {
            assert_eq!(target.to_string(), text);
            assert_eq!(text.parse(), Ok(target));
        }
        assert_eq!("@".parse::<Target>().unwrap_err().kind, "group name");
        assert_eq!("@@web".parse::<Target>().unwrap_err().kind, "group name");
        assert_eq!("".parse::<Target>().unwrap_err().kind, "host name");
    }

    #[test]
    fn a_reference_means_the_generations_with_its_name_or_its_beginning() {
        let (product, version): (Product, Version) = ("agent".parse().unwrap(), "1.0".parse().unwrap());
        let tree = TreeId::of(b"tree");
        let means = |text: &str| text.parse::<GenerationRef>().unwrap().matches(&product, &version, &tree);
        let hex = tree.to_hex();
        assert!(means("agent@1.0") && !means("agent@1.1") && !means("other@1.0"));
        assert!((4..=64).all(|length| means(&hex[..length])));
        assert!(!means(&hex[1..9]) && !means("0000"));
        for text in ["agent@1.0", "agent@1:2~3", &hex, "7e7e"] {
            assert_eq!(text.parse::<GenerationRef>().unwrap().to_string(), text);
        }
        for bad in ["", "7e7", "7E7E", "7e7g", &format!("{hex}0"), "agent", "@1.0", "agent@", "agent@1@0"] {
            assert!(bad.parse::<GenerationRef>().is_err(), "{bad}");
        }
        let error = "\x1b[2J".parse::<GenerationRef>().unwrap_err().to_string();
        let rule = "want product@version, a tree id, or at least 4 of its first hex digits";
        assert_eq!(error, format!("'\\x1b[2J' is not a generation: {rule}"));
    }

    #[test]
    fn a_generation_is_named_or_begun() {
        assert!(matches!("data-agent@1.0".parse(), Ok(GenerationRef::Named(..))));
        assert!(matches!("0af3".parse(), Ok(GenerationRef::TreePrefix(_))));
        assert!("0af".parse::<GenerationRef>().is_err());
        assert!("xyz".parse::<GenerationRef>().is_err());
    }
}
