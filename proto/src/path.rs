//! A checked path inside a tree.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::{NAME_BYTES_MAX, PATH_BYTES_MAX, PATH_DEPTH_MAX};
use crate::text::{is_hidden, show};

/// A path that must not enter a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("path '{path}': {fault}")]
pub struct PathError {
    /// The path, made printable.
    pub path: String,
    /// What is wrong with it.
    pub fault: &'static str,
}

/// A relative path without `.`, `..`, empty components or NUL; the root of the tree is the empty path.
///
/// The one ordering of trees is by component, bytewise: a directory comes right before what is in it.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct TreePath(Vec<u8>);

impl TreePath {
    /// The tree's root directory.
    pub fn root() -> Self {
        Self::default()
    }

    /// Checks a path that came from elsewhere. Neither a leading nor a trailing slash is accepted.
    pub fn parse(bytes: &[u8]) -> Result<Self, PathError> {
        let fail = |fault| Err(PathError { path: printable(&bytes[..bytes.len().min(200)]), fault });
        if bytes.is_empty() {
            return Ok(Self::root());
        }
        if bytes[0] == b'/' {
            return fail("is absolute; want a path relative to the tree's root");
        }
        if bytes.len() > PATH_BYTES_MAX {
            return fail("is longer than 4095 bytes");
        }
        let mut depth = 0;
        for name in bytes.split(|b| *b == b'/') {
            depth += 1;
            match name {
                b"" => return fail("has an empty component"),
                b"." => return fail("has a '.' component"),
                b".." => return fail("has a '..' component, which could leave the tree"),
                _ if name.contains(&0) => return fail("has a NUL byte"),
                _ if name.len() > NAME_BYTES_MAX => return fail("has a component longer than 255 bytes"),
                _ if depth > PATH_DEPTH_MAX => return fail("is more than 128 directories deep"),
                _ => {}
            }
        }
        Ok(Self(bytes.to_vec()))
    }

    /// The path of `name` in this directory.
    pub fn join(&self, name: &[u8]) -> Result<Self, PathError> {
        let mut bytes = self.0.clone();
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        Self::parse(&bytes)
    }

    /// Whether this is the tree's root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory that holds this entry; `None` for the root.
    pub fn parent(&self) -> Option<TreePath> {
        if self.is_root() {
            return None;
        }
        let cut = self.0.iter().rposition(|b| *b == b'/').unwrap_or(0);
        Some(Self(self.0[..cut].to_vec()))
    }

    /// Whether `other` is in this directory itself, not further below.
    pub fn is_parent_of(&self, other: &TreePath) -> bool {
        let cut = other.0.iter().rposition(|b| *b == b'/').unwrap_or(0);
        !other.is_root() && other.0[..cut] == self.0
    }

    /// The last component; empty for the root.
    pub fn name(&self) -> &[u8] {
        match self.0.iter().rposition(|b| *b == b'/') {
            Some(slash) => &self.0[slash + 1..],
            None => &self.0,
        }
    }

    /// The bytes as they stand in a manifest.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// For use below a directory that holds the tree.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The components, outermost first.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/').filter(|name| !name.is_empty())
    }
}

impl Ord for TreePath {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // By component means by byte with the slash before every other byte: no name has a NUL. A manifest's paths are
        // compared by the hundred thousand, and one after the other they have most of their bytes in common.
        let rank = |byte: u8| if byte == b'/' { 0 } else { byte };
        let differ = self.0.iter().zip(&other.0).find(|(a, b)| a != b);
        differ.map_or_else(|| self.0.len().cmp(&other.0.len()), |(a, b)| rank(*a).cmp(&rank(*b)))
    }
}

impl PartialOrd for TreePath {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.0))
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", printable(&self.0))
    }
}

impl Serialize for TreePath {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() { s.serialize_str(&printable(&self.0)) } else { self.0.serialize(s) }
    }
}

impl<'de> Deserialize<'de> for TreePath {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let bytes = if d.is_human_readable() { String::deserialize(d)?.into_bytes() } else { Vec::deserialize(d)? };
        Self::parse(&bytes).map_err(serde::de::Error::custom)
    }
}

/// Bytes as text: valid UTF-8 as it is, other bytes as `\xNN`, characters that a terminal would obey as [`crate::text`] shows
/// them.
pub fn printable(bytes: &[u8]) -> String {
    use fmt::Write;
    let mut text = String::with_capacity(bytes.len());
    for piece in bytes.utf8_chunks() {
        for c in piece.valid().chars() {
            if is_hidden(c) { show(c, &mut text) } else { text.push(c) }
        }
        for byte in piece.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_could_leave_the_tree_are_refused() {
        for bad in ["/etc", "a//b", "a/", "./a", "a/..", "..", "a\0b"] {
            assert!(TreePath::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(TreePath::parse(&[b'a'; 256]).is_err());
        assert!(TreePath::parse("a/".repeat(200).trim_end_matches('/').as_bytes()).is_err());
    }

    fn fault(bytes: &[u8]) -> &'static str {
        TreePath::parse(bytes).map_or_else(|error| error.fault, |_| "taken")
    }

    #[test]
    fn every_rule_has_its_own_words_and_its_exact_bound() {
        let faults: [(&[u8], &str); 8] = [
            (b"/etc", "is absolute; want a path relative to the tree's root"),
            (b"a//b", "has an empty component"),
            (b"a/", "has an empty component"),
            (b"a/./b", "has a '.' component"),
            (b"a/../b", "has a '..' component, which could leave the tree"),
            (b"a/b\0", "has a NUL byte"),
            (b"...", "taken"),
            (b"..a/.b/c..", "taken"),
        ];
        for (bytes, wanted) in faults {
            assert_eq!(fault(bytes), wanted, "{}", printable(bytes));
        }
        assert_eq!(fault(&[b'a'; NAME_BYTES_MAX]), "taken");
        assert_eq!(fault(&[b'a'; NAME_BYTES_MAX + 1]), "has a component longer than 255 bytes");
        let deep = |depth: usize| vec!["a"; depth].join("/").into_bytes();
        assert_eq!(fault(&deep(PATH_DEPTH_MAX)), "taken");
        assert_eq!(fault(&deep(PATH_DEPTH_MAX + 1)), "is more than 128 directories deep");
        let long = |bytes: usize| {
            format!("{}{}", "x".repeat(99), format!("/{}", "x".repeat(99)).repeat(40))[..bytes].to_owned()
        };
        assert_eq!(fault(long(3999).as_bytes()), "taken");
        let longest = format!("{}/{}", long(3999), "x".repeat(95));
        assert_eq!((longest.len(), fault(longest.as_bytes())), (PATH_BYTES_MAX, "taken"));
        assert_eq!(fault(format!("{longest}x").as_bytes()), "is longer than 4095 bytes");
    }

    #[test]
    fn a_refusal_shows_the_start_of_the_path_and_nothing_that_a_terminal_obeys() {
        let error = TreePath::parse(b"a/../\x1b[2J\xff").unwrap_err();
        assert_eq!(error.to_string(), "path 'a/../\\x1b[2J\\xff': has a '..' component, which could leave the tree");
        let long = TreePath::parse(&[b'a'; 5000]).unwrap_err();
        assert_eq!(long.path, "a".repeat(200));
    }

    #[test]
    fn bytes_are_shown_as_text_where_they_are_text() {
        let pairs: [(&[u8], &str); 6] = [
            (b"plain", "plain"),
            ("größe €".as_bytes(), "größe €"),
            (b"\xff\xfe", "\\xff\\xfe"),
            (b"a\n\tb", "a\\n\\tb"),
            ("a\u{202e}b".as_bytes(), "a\\u{202e}b"),
            (b"\xe2\x82", "\\xe2\\x82"),
        ];
        for (bytes, text) in pairs {
            assert_eq!(printable(bytes), text);
        }
        let path = TreePath::parse(b"a/\xff\n").unwrap();
        assert_eq!((path.to_string(), format!("{path:?}")), ("a/\\xff\\n".into(), "\"a/\\\\xff\\\\n\"".into()));
        assert_eq!(path.as_path().as_os_str().as_bytes(), b"a/\xff\n");
    }

    #[test]
    fn a_path_leads_to_its_parent_and_its_name_back_again() {
        let path = |text: &str| TreePath::parse(text.as_bytes()).unwrap();
        for (text, parent, name, count) in [("a", "", "a", 1), ("a/b", "a", "b", 2), ("aa/b/cc", "aa/b", "cc", 3)] {
            let here = path(text);
            assert_eq!(here.parent(), Some(path(parent)));
            assert_eq!(here.name(), name.as_bytes());
            assert_eq!(path(parent).join(name.as_bytes()), Ok(here.clone()));
            assert_eq!(here.components().count(), count);
            assert!(path(parent).is_parent_of(&here) && !here.is_parent_of(&here) && !here.is_root());
        }
        let root = TreePath::root();
        assert!(root.is_root() && root.parent().is_none() && !root.is_parent_of(&root));
        assert_eq!((root.name(), root.components().count()), (b"".as_slice(), 0));
        assert!(!path("a").is_parent_of(&path("ab")) && !path("a").is_parent_of(&path("b/c")));
        assert!(!root.is_parent_of(&path("a/b")), "not further below");
        for bad in [b"..".as_slice(), b"", b"b/", b"\0"] {
            assert!(path("a").join(bad).is_err(), "{}", printable(bad));
        }
        assert_eq!(path("a").join(b"b/c"), Ok(path("a/b/c")));
    }

    /// Bytes in the codec, text wherever people read; checked on arrival both ways.
    #[test]
    fn a_path_is_checked_in_whatever_form_it_arrives() {
        use serde::de::value::{Error, StrDeserializer};
        struct Shown(TreePath);
        impl fmt::Display for Shown {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.serialize(f)
            }
        }
        let path = TreePath::parse(b"a/\xff").unwrap();
        let bytes = crate::codec::encode(&path).unwrap();
        assert_eq!(bytes, crate::codec::encode(&b"a/\xff".to_vec()).unwrap());
        assert_eq!(crate::codec::decode::<TreePath, 64>(&bytes), Ok(path.clone()));
        let out = crate::codec::encode(&b"../x".to_vec()).unwrap();
        assert!(crate::codec::decode::<TreePath, 64>(&out).is_err());
        assert_eq!(Shown(path).to_string(), "a/\\xff");
        let read = |text: &str| TreePath::deserialize(StrDeserializer::<Error>::new(text));
        assert_eq!(read("a/b").unwrap().as_bytes(), b"a/b");
        assert!(read("/a").unwrap_err().to_string().contains("is absolute"));
    }

    #[test]
    fn the_order_is_by_component() {
        let all = ["", "a", "a/b", "a/b/c", "a-b", "a.b", "a!", "a\x01", "a\x01/c", "b", "a/\u{e9}", "ab/c", "a/bc"];
        let paths: Vec<_> = all.iter().map(|path| TreePath::parse(path.as_bytes()).unwrap()).collect();
        for (a, b) in paths.iter().flat_map(|a| paths.iter().map(move |b| (a, b))) {
            assert_eq!(a.cmp(b), a.components().cmp(b.components()), "{a} {b}");
        }
    }

    #[test]
    fn a_directory_comes_right_before_what_is_in_it() {
        let mut paths: Vec<_> =
            ["a.b", "a/z", "a", "a-b", "", "a/b/c"].iter().map(|p| TreePath::parse(p.as_bytes()).unwrap()).collect();
        paths.sort();
        let text: Vec<_> = paths.iter().map(|p| p.to_string()).collect();
        assert_eq!(text, ["", "a", "a/b/c", "a/z", "a-b", "a.b"]);
        assert_eq!(paths[2].parent().unwrap().to_string(), "a/b");
        assert_eq!(paths[2].name(), b"c");
        assert!(paths[1].is_parent_of(&paths[3]) && paths[0].is_parent_of(&paths[4]));
        assert!(!paths[1].is_parent_of(&paths[2]) && !paths[0].is_parent_of(&paths[0]));
    }
}
