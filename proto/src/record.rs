//! The generation record: what a generation is called, and everything that is needed to start it. Signed.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::bounded::{Blob, Exact, Line, List, Own, within};
use crate::codec::{self, CodecError};
use crate::id::TreeId;
use crate::limits::{
    ARGUMENT_BYTES_MAX, ARGUMENTS_MAX, ELF_TEXT_BYTES_MAX, ENTRIES_MAX, NEEDED_MAX, RECORD_BYTES_MAX,
    SIGNATURE_BYTES, VERSION_BYTES_MAX,
};
use crate::name::{Product, Version};
use crate::path::TreePath;

/// One generation, as its publisher signed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationRecord {
    /// The component that the tree is a version of.
    pub product: Product,
    /// The version that its maker gave it; never compared, only named.
    pub version: Version,
    /// Grows by one with every record that the manager signs.
    pub sequence: u64,
    /// The id of the tree's manifest.
    pub tree: TreeId,
    /// Length of the manifest, bytes.
    pub manifest_bytes: u64,
    /// When it was signed, milliseconds since 1970.
    pub published_unix_ms: u64,
    /// What the manager found out about the tree; enough to start it.
    pub metadata: Metadata,
}

impl GenerationRecord {
    /// `product@version`, as people write it.
    pub fn name(&self) -> String {
        format!("{}@{}", self.product, self.version)
    }
}

/// Extracted from the tree at publication (`system.md`, step 2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// What `launch` and the change-over execute; `None` for a tree that is only looked at.
    pub entry_point: Option<TreePath>,
    /// Arguments of the entry point after `argv[0]`.
    #[serde(deserialize_with = "within::<_, List<Exact<ARGUMENT_BYTES_MAX>, ARGUMENTS_MAX>>")]
    pub arguments: Vec<String>,
    /// Machine of the entry point (of its interpreter for a script inside the tree), such as `x86_64`; `None` when
    /// it runs on any.
    #[serde(deserialize_with = "within::<_, Option<Line<VERSION_BYTES_MAX>>>")]
    pub architecture: Option<String>,
    /// Every ELF file, in the order of the tree.
    #[serde(deserialize_with = "within::<_, List<Own<ElfFile>, ENTRIES_MAX>>")]
    pub elf_files: Vec<ElfFile>,
    /// Every executable file that begins with `#!`.
    #[serde(deserialize_with = "within::<_, List<Own<Script>, ENTRIES_MAX>>")]
    pub scripts: Vec<Script>,
    /// Entries of the tree, with its root.
    pub entry_count: u64,
    /// Regular files, by path.
    pub file_count: u64,
    /// Bytes of all files, each path counted.
    pub content_bytes: u64,
    /// Bytes of distinct contents.
    pub object_bytes: u64,
    /// The agent-state schemas that the program reads.
    pub state_schemas: SchemaRange,
    /// How long ongoing operations may take to finish before they are checkpointed, milliseconds.
    pub drain_deadline_ms: u64,
    /// What the program must do to be believed.
    pub health: HealthContract,
}

/// Of an empty tree without a product file, with the values that `docs/product-file.md` has for one.
impl Default for Metadata {
    fn default() -> Self {
        Self {
            entry_point: None,
            arguments: Vec::new(),
            architecture: None,
            elf_files: Vec::new(),
            scripts: Vec::new(),
            entry_count: 1,
            file_count: 0,
            content_bytes: 0,
            object_bytes: 0,
            state_schemas: SchemaRange { min: 1, max: 1 },
            drain_deadline_ms: 60_000,
            health: HealthContract { probation_ms: 10_000 },
        }
    }
}

/// What the manager read out of one ELF file; it was never run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElfFile {
    /// Its path in the tree.
    pub path: TreePath,
    /// Machine, such as `x86_64`.
    #[serde(deserialize_with = "within::<_, Line<VERSION_BYTES_MAX>>")]
    pub architecture: String,
    /// `executable`, `shared object`, `relocatable` or `core`.
    #[serde(deserialize_with = "within::<_, Line<VERSION_BYTES_MAX>>")]
    pub kind: String,
    /// `PT_INTERP`, the dynamic loader that it asks for; `None`: linked statically, or a library.
    #[serde(deserialize_with = "within::<_, Option<Line<ELF_TEXT_BYTES_MAX>>>")]
    pub interpreter: Option<String>,
    /// `DT_NEEDED`, the libraries that the loader looks for, in its order.
    #[serde(deserialize_with = "within::<_, List<Line<ELF_TEXT_BYTES_MAX>, NEEDED_MAX>>")]
    pub needed: Vec<String>,
    /// `DT_SONAME`, the name under which others need it.
    #[serde(deserialize_with = "within::<_, Option<Line<ELF_TEXT_BYTES_MAX>>>")]
    pub soname: Option<String>,
    /// `DT_RUNPATH`, or `DT_RPATH` where there is none.
    #[serde(deserialize_with = "within::<_, Option<Line<ELF_TEXT_BYTES_MAX>>>")]
    pub runpath: Option<String>,
    /// The GNU build id, hex.
    #[serde(deserialize_with = "within::<_, Option<Line<ELF_TEXT_BYTES_MAX>>>")]
    pub build_id: Option<String>,
    /// Bytes of the file.
    pub bytes: u64,
}

/// What the manager read out of one executable file that begins with `#!`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    /// Its path in the tree.
    pub path: TreePath,
    /// What stands after `#!`, trimmed.
    #[serde(deserialize_with = "within::<_, Line<ELF_TEXT_BYTES_MAX>>")]
    pub interpreter: String,
}

/// The versions of an agent's state that a program reads, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaRange {
    /// The oldest that it reads.
    pub min: u32,
    /// Newest; what it writes.
    pub max: u32,
}

/// What a new version must do to be believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthContract {
    /// From exec to confirmation at most this long, milliseconds.
    pub probation_ms: u64,
}

/// A record with its signature, as it is stored, sent and saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedRecord {
    /// The publisher's ed25519 public key.
    pub publisher: [u8; 32],
    /// The encoded record: exactly the bytes that are signed.
    #[serde(deserialize_with = "within::<_, Blob<RECORD_BYTES_MAX>>")]
    pub payload: Vec<u8>,
    /// The ed25519 signature over `CONTEXT` and `payload`, 64 bytes.
    #[serde(deserialize_with = "within::<_, Blob<SIGNATURE_BYTES>>")]
    pub signature: Vec<u8>,
}

/// Keeps a signature of a record from being taken for one of something else.
const CONTEXT: &[u8] = b"manager-fs generation record 1\0";
const MAGIC: &[u8; 8] = b"MFSREC\0\x01";

/// Why a record is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordFault {
    /// The bytes begin with something else, or are of a later format.
    #[error("these bytes are not a generation record of format 1")]
    NotARecord,
    /// The bytes do not decode.
    #[error("the generation record is damaged: {0}")]
    Damaged(#[from] CodecError),
    /// Signed by a key that this host does not trust.
    #[error("the generation record is signed by publisher {0}, which is not trusted here")]
    UnknownPublisher(String),
    /// The signature is of other bytes: someone changed the record.
    #[error("the generation record's signature is wrong: the record was changed after it was signed")]
    BadSignature,
}

impl SignedRecord {
    /// Signs a record with the publisher's key.
    pub fn sign(record: &GenerationRecord, key: &SigningKey) -> Result<Self, RecordFault> {
        let payload = codec::encode(record)?;
        let signature = key.sign(&[CONTEXT, &payload].concat()).to_bytes().to_vec();
        Ok(Self { publisher: key.verifying_key().to_bytes(), payload, signature })
    }

    /// Returns the record if one of the trusted publishers signed it.
    pub fn verify(&self, trusted: &[VerifyingKey]) -> Result<GenerationRecord, RecordFault> {
        let key = trusted.iter().find(|key| key.as_bytes() == &self.publisher);
        let key = key.ok_or_else(|| RecordFault::UnknownPublisher(hex(&self.publisher)))?;
        let signature = Signature::from_slice(&self.signature).map_err(|_| RecordFault::BadSignature)?;
        key.verify_strict(&[CONTEXT, &self.payload].concat(), &signature).map_err(|_| RecordFault::BadSignature)?;
        Ok(codec::decode::<_, RECORD_BYTES_MAX>(&self.payload)?)
    }

    /// Returns the record if the publisher that it names itself has signed it: it is as it was made. Whether that
    /// publisher is to be believed this does not say.
    ///
    /// # Errors
    /// It was changed since.
    pub fn verify_unchanged(&self) -> Result<GenerationRecord, RecordFault> {
        let key = VerifyingKey::from_bytes(&self.publisher).map_err(|_| RecordFault::BadSignature)?;
        self.verify(&[key])
    }

    /// The bytes of a record file.
    pub fn to_bytes(&self) -> Result<Vec<u8>, RecordFault> {
        Ok([MAGIC.as_slice(), &codec::encode(self)?].concat())
    }

    /// What a record is called where its bytes need not be said again: their BLAKE3.
    pub fn id_of(bytes: &[u8]) -> [u8; 32] {
        *blake3::hash(bytes).as_bytes()
    }

    /// Reads a record file. Nothing in it is believed before [`SignedRecord::verify`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecordFault> {
        let body = bytes.strip_prefix(MAGIC.as_slice()).ok_or(RecordFault::NotARecord)?;
        Ok(codec::decode::<_, RECORD_BYTES_MAX>(body)?)
    }
}

/// The publishers whose records a host believes: the content of `STATE/identity/publishers`.
///
/// Text: one ed25519 public key a line, 64 lowercase hex digits; empty lines and lines that begin with `#` are
/// passed over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Publishers(Vec<VerifyingKey>);

/// A line of `STATE/identity/publishers` is not a public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is not an ed25519 public key: want 64 lowercase hex digits")]
pub struct PublishersFault {
    /// The line, counted from 1; in a certificate's answer the key.
    pub line: usize,
}

impl Publishers {
    /// Publishers as they come in a certificate's answer.
    ///
    /// # Errors
    /// One of them is not a public key; `line` counts from 1.
    pub fn from_keys(keys: &[[u8; 32]]) -> Result<Self, PublishersFault> {
        let keys = keys.iter().enumerate();
        let keys = keys.map(|(i, key)| VerifyingKey::from_bytes(key).map_err(|_| PublishersFault { line: i + 1 }));
        Ok(Self(keys.collect::<Result<_, _>>()?))
    }

    /// Reads the file's text.
    ///
    /// # Errors
    /// The first line that is not a public key.
    pub fn parse(text: &str) -> Result<Self, PublishersFault> {
        let mut keys = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = line.parse::<TreeId>().ok().and_then(|id| VerifyingKey::from_bytes(id.as_bytes()).ok());
            keys.push(key.ok_or(PublishersFault { line: i + 1 })?);
        }
        Ok(Self(keys))
    }

    /// The text of the file, which [`Publishers::parse`] reads.
    pub fn to_text(&self) -> String {
        self.0.iter().map(|key| hex(key.as_bytes()) + "\n").collect()
    }

    /// The keys, for [`SignedRecord::verify`].
    pub fn keys(&self) -> &[VerifyingKey] {
        &self.0
    }
}

fn hex(bytes: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*bytes).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishers_round_trip_and_a_bad_line_is_named() {
        let key = SigningKey::from_bytes(&[7; 32]).verifying_key();
        let publishers = Publishers::from_keys(&[key.to_bytes()]).unwrap();
        assert_eq!(Publishers::parse(&format!("# ours\n\n{}", publishers.to_text())), Ok(publishers.clone()));
        assert_eq!(publishers.keys(), [key]);
        assert_eq!(Publishers::parse("\nabc\n"), Err(PublishersFault { line: 2 }));
    }
}
