//! Directories as a repository has them: lists of nodes in JSON, as restic's `Tree` and `Node`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustic_core::jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::id::Id;
use super::index::null_is_empty;

/// One directory.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tree {
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) nodes: Vec<Node>,
}

impl Tree {
    /// The bytes and the name of its blob.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut bytes = serde_json::to_vec(self)?;
        // As restic writes it, so that equal directories are one blob whoever backed them up.
        bytes.push(b'\n');
        Ok(bytes)
    }
}

/// What an entry of a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NodeKind {
    File,
    Dir,
    Symlink,
    /// A block device.
    Dev,
    Chardev,
    Fifo,
    Socket,
    /// Something that another program stored, such as restic's `irregular`.
    #[serde(other)]
    Other,
}

impl NodeKind {
    /// For people.
    pub(crate) fn word(self) -> &'static str {
        match self {
            NodeKind::File => "file",
            NodeKind::Dir => "directory",
            NodeKind::Symlink => "symbolic link",
            NodeKind::Dev => "block device",
            NodeKind::Chardev => "character device",
            NodeKind::Fifo => "fifo",
            NodeKind::Socket => "socket",
            NodeKind::Other => "thing of an unknown kind",
        }
    }
}

/// One entry of a directory. Fields in restic's order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Node {
    /// Escaped as Go quotes strings; see [`Node::file_name`].
    name: String,
    #[serde(rename = "type")]
    pub(crate) kind: NodeKind,
    /// As Go's `os.FileMode` has it; see [`Node::mode`].
    #[serde(default, rename = "mode", skip_serializing_if = "Option::is_none")]
    pub(super) go_mode: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mtime: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) atime: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ctime: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<String>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) inode: u64,
    /// Only with hard links, which it tells apart: device numbers change from boot to boot.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) device_id: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) links: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    linktarget: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    linktarget_raw: Option<Base64>,
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub(crate) extended_attributes: Vec<Attribute>,
    /// Of a device.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) device: u64,
    /// The pieces of a file, in order.
    #[serde(default)]
    pub(crate) content: Option<Vec<Id>>,
    /// The tree of a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) subtree: Option<Id>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Node {
    /// An entry with nothing but a name.
    pub(crate) fn new(name: &OsStr, kind: NodeKind) -> Self {
        Self {
            name: escape(name.as_bytes()),
            kind,
            go_mode: None,
            mtime: None,
            atime: None,
            ctime: None,
            uid: None,
            gid: None,
            user: None,
            group: None,
            inode: 0,
            device_id: 0,
            size: 0,
            links: 0,
            linktarget: None,
            linktarget_raw: None,
            extended_attributes: Vec::new(),
            device: 0,
            content: None,
            subtree: None,
        }
    }

    /// The name as it is stored: what two nodes are compared by.
    pub(crate) fn stored_name(&self) -> &str {
        &self.name
    }

    /// The name as the file system has it.
    pub(crate) fn file_name(&self) -> OsString {
        OsString::from_vec(unescape(&self.name))
    }

    /// Permission bits, as the kernel has them.
    pub(crate) fn mode(&self) -> Option<u32> {
        let mode = self.go_mode?;
        let bit = |go: u32, kernel: u32| if mode & (1 << go) != 0 { kernel } else { 0 };
        Some((mode & 0o777) | bit(23, 0o4000) | bit(22, 0o2000) | bit(20, 0o1000))
    }

    /// Sets the mode, of which the kernel's permission bits are given.
    pub(crate) fn set_mode(&mut self, mode: u32) {
        let bit = |kernel: u32, go: u32| if mode & kernel != 0 { 1 << go } else { 0 };
        let kind = match self.kind {
            NodeKind::File | NodeKind::Other => 0,
            NodeKind::Dir => 1 << 31,
            NodeKind::Symlink => 1 << 27,
            NodeKind::Dev => 1 << 26,
            NodeKind::Chardev => (1 << 26) | (1 << 21),
            NodeKind::Fifo => 1 << 25,
            NodeKind::Socket => 1 << 24,
        };
        self.go_mode = Some(kind | (mode & 0o777) | bit(0o4000, 23) | bit(0o2000, 22) | bit(0o1000, 20));
    }

    /// Where a symbolic link leads.
    pub(crate) fn link_target(&self) -> PathBuf {
        match (&self.linktarget_raw, &self.linktarget) {
            (Some(raw), _) => PathBuf::from(OsString::from_vec(raw.0.clone())),
            (None, Some(text)) => PathBuf::from(text),
            (None, None) => PathBuf::new(),
        }
    }

    /// Sets where a symbolic link leads.
    pub(crate) fn set_link_target(&mut self, target: &Path) {
        let raw = target.as_os_str();
        self.linktarget = Some(raw.to_string_lossy().into_owned());
        self.linktarget_raw = raw.to_str().is_none().then(|| Base64(raw.as_bytes().to_vec()));
    }
}

/// An extended attribute. restic has no form for a name that is not UTF-8; such a one also stands in `name_raw`, which
/// other programs pass over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attribute {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name_raw: Option<Base64>,
    value: Option<Base64>,
}

impl Attribute {
    pub(crate) fn new(name: &[u8], value: Vec<u8>) -> Self {
        let raw = std::str::from_utf8(name).is_err().then(|| Base64(name.to_vec()));
        Self { name: String::from_utf8_lossy(name).into_owned(), name_raw: raw, value: Some(Base64(value)) }
    }

    pub(crate) fn name(&self) -> &[u8] {
        self.name_raw.as_ref().map_or(self.name.as_bytes(), |raw| &raw.0)
    }

    pub(crate) fn value(&self) -> &[u8] {
        self.value.as_ref().map_or(&[], |value| &value.0)
    }
}

/// Bytes, as text of the padded standard alphabet.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Base64(Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        BASE64.decode(text.as_bytes()).map(Base64).map_err(de::Error::custom)
    }
}

/// As Go's `strconv.Quote` writes the inside of its quotes, for what restic and rustic both read back.
fn escape(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\u{7}' => text.push_str("\\a"),
                '\u{8}' => text.push_str("\\b"),
                '\u{c}' => text.push_str("\\f"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                '\u{b}' => text.push_str("\\v"),
                other => text.push(other),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Undoes [`escape`], and every other escape of Go's. What is not an escape stands for itself.
fn unescape(text: &str) -> Vec<u8> {
    let mut name = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        name.extend_from_slice(&rest.as_bytes()[..at]);
        let escape = &rest[at + 1..];
        let Some(kind) = escape.chars().next() else {
            name.push(b'\\');
            return name;
        };
        let after = &escape[kind.len_utf8()..];
        let number = |digits: usize| after.get(..digits).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        let (bytes, used): (Vec<u8>, usize) = match kind {
            'a' => (vec![7], 0),
            'b' => (vec![8], 0),
            'f' => (vec![12], 0),
            'n' => (vec![b'\n'], 0),
            'r' => (vec![b'\r'], 0),
            't' => (vec![b'\t'], 0),
            'v' => (vec![11], 0),
            'x' => number(2).and_then(|byte| u8::try_from(byte).ok()).map_or((b"\\x".to_vec(), 0), |b| (vec![b], 2)),
            'u' | 'U' => {
                let digits = if kind == 'u' { 4 } else { 8 };
                match number(digits).and_then(char::from_u32) {
                    Some(character) => (character.to_string().into_bytes(), digits),
                    None => (format!("\\{kind}").into_bytes(), 0),
                }
            }
            quoted @ ('\\' | '"' | '\'' | '`') => (quoted.to_string().into_bytes(), 0),
            other => (format!("\\{other}").into_bytes(), 0),
        };
        name.extend(bytes);
        rest = &after[used..];
    }
    name.extend_from_slice(rest.as_bytes());
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_that_a_file_can_have_comes_back() {
        let all: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
        for name in [&b"plain"[..], b"a\\b", b"\"", b"\xff\xfe", "ü\n".as_bytes(), b"\\x41", &all] {
            let node = Node::new(OsStr::from_bytes(name), NodeKind::File);
            let node: Node = serde_json::from_slice(&serde_json::to_vec(&node).unwrap()).unwrap();
            assert_eq!(node.file_name().as_bytes(), name);
        }
        assert_eq!(unescape("\\u00fc\\U0001f600\\q"), "ü😀\\q".as_bytes());
        assert_eq!(unescape("a\\"), b"a\\");
        assert_eq!(unescape("\\xü"), "\\xü".as_bytes());
    }

    #[test]
    fn attribute_names_and_link_targets_keep_every_byte() {
        for name in [&b"user.plain"[..], b"user.\xff\xfe"] {
            let attribute = Attribute::new(name, b"\x00\xff".to_vec());
            let text = serde_json::to_string(&attribute).unwrap();
            let back: Attribute = serde_json::from_str(&text).unwrap();
            assert_eq!((back.name(), back.value()), (name, &b"\x00\xff"[..]));
            assert_eq!(text.contains("name_raw"), name.contains(&0xff), "{text}");
        }
        let mut link = Node::new(OsStr::new("link"), NodeKind::Symlink);
        link.set_link_target(Path::new(OsStr::from_bytes(b"to/\xff")));
        let back: Node = serde_json::from_slice(&serde_json::to_vec(&link).unwrap()).unwrap();
        assert_eq!(back.link_target().as_os_str().as_bytes(), b"to/\xff");
    }

    #[test]
    fn modes_are_gos_in_the_repository_and_the_kernels_outside() {
        for mode in [0o644, 0o4755, 0o2750, 0o1777, 0o7000] {
            let mut node = Node::new(OsStr::new("x"), NodeKind::Dir);
            node.set_mode(mode);
            assert_eq!(node.mode(), Some(mode));
            assert_ne!(node.go_mode.unwrap() & (1 << 31), 0);
        }
    }

    #[test]
    fn what_restic_writes_is_read() {
        let text = r#"{"nodes":[{"name":"a","type":"irregular","mode":420,"mtime":"2009-02-13T23:31:30.123456789+01:00",
            "content":null,"extended_attributes":null,"error":"x","new":1}]}"#;
        let tree: Tree = serde_json::from_str(text).unwrap();
        assert_eq!(tree.nodes[0].kind, NodeKind::Other);
        assert_eq!(tree.nodes[0].mtime.unwrap().to_string(), "2009-02-13T22:31:30.123456789Z");
        assert_eq!(serde_json::from_str::<Tree>(r#"{"nodes":null}"#).unwrap(), Tree::default());
    }
}
