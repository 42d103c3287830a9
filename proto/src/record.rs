//! The generation record: what a generation is called, and everything that is needed to start it. Signed.

use serde::{Deserialize, Serialize};

use crate::adapter::Adapter;
use crate::bounded::{Blob, Exact, Line, List, Own, within};
use crate::codec::{self, CodecError};
use crate::health::HealthCheck;
use crate::id::TreeId;
use crate::limits::{
    ARGUMENT_BYTES_MAX, ARGUMENTS_MAX, ELF_TEXT_BYTES_MAX, ENTRIES_MAX, NEEDED_MAX, RECORD_BYTES_MAX,
    SIGNATURE_BYTES, VERSION_BYTES_MAX,
};
use crate::name::{Product, Version};
use crate::path::TreePath;
use crate::publisher::{PublisherKey, hex};

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

    /// Whether a host may go from one of the two to the other: neither is for another machine than the other.
    pub fn shares_architecture(&self, other: &Self) -> bool {
        let (own, other) = (&self.metadata.architecture, &other.metadata.architecture);
        own.is_none() || other.is_none() || own == other
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
    /// What makes a program an agent that does not know that it is one. In records of format 2 ([`Format`]).
    #[serde(skip)]
    pub adapter: Option<Adapter>,
}

impl Metadata {
    /// All of its fields, those of format 2 last.
    ///
    /// # Errors
    /// Never within its bounds.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CodecError> {
        let mut bytes = codec::encode(self)?;
        if Format::of(self) == Format::Two {
            bytes.extend(codec::encode(&(&self.adapter, &self.health.check))?);
        }
        Ok(bytes)
    }

    /// Reads such bytes.
    ///
    /// # Errors
    /// They are none, or beyond a bound.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        let (mut metadata, rest) = codec::decode_first::<Self, RECORD_BYTES_MAX>(bytes)?;
        if !rest.is_empty() {
            metadata.supplement(rest)?;
        }
        Ok(metadata)
    }

    /// Reads the fields of format 2.
    fn supplement(&mut self, bytes: &[u8]) -> Result<(), CodecError> {
        (self.adapter, self.health.check) = codec::decode::<_, RECORD_BYTES_MAX>(bytes)?;
        // One thing has one form.
        match Format::of(self) {
            Format::Two => Ok(()),
            Format::One => Err(CodecError::Decode("neither an adapter nor a health check in format 2".into())),
        }
    }
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
            health: HealthContract { probation_ms: 10_000, check: None },
            adapter: None,
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

/// Whether a program for `architecture`, as records say it, runs on a machine that calls itself `machine` (as `uname -m`
/// does).
pub fn runs_on(architecture: &str, machine: &str) -> bool {
    let is_x86 = |name: &str| matches!(name, "x86" | "i386" | "i486" | "i586" | "i686");
    let is_arm = |name: &str| name == "arm" || name.starts_with("armv");
    architecture == machine
        || is_x86(architecture) && (machine == "x86_64" || is_x86(machine))
        || is_arm(architecture) && (machine == "aarch64" || is_arm(machine))
        || architecture == "powerpc64" && machine.starts_with("ppc64")
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
    /// How it is asked from outside. In records of format 2 ([`Format`]).
    #[serde(skip)]
    pub check: Option<HealthCheck>,
}

/// Which fields a signed record has. What no host needs to know stays in the format that all hosts read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// Those that [`GenerationRecord`] serialises.
    #[default]
    One,
    /// Behind them [`Metadata::adapter`] and [`HealthContract::check`], at least one of the two.
    Two,
}

impl Format {
    fn of(metadata: &Metadata) -> Self {
        if metadata.adapter.is_some() || metadata.health.check.is_some() { Self::Two } else { Self::One }
    }

    /// What a file of this format begins with.
    fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::One => b"MFSREC\0\x01",
            Self::Two => b"MFSREC\0\x02",
        }
    }

    /// Keeps a signature of a record from being taken for one of something else.
    fn context(self) -> &'static [u8] {
        match self {
            Self::One => b"manager-fs generation record 1\0",
            Self::Two => b"manager-fs generation record 2\0",
        }
    }
}

/// A record with its signature, as it is stored, sent and saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedRecord {
    /// What the payload has; the beginning of the file says it.
    #[serde(skip)]
    pub format: Format,
    /// The publisher's ed25519 public key.
    pub publisher: [u8; 32],
    /// The encoded record: exactly the bytes that are signed.
    #[serde(deserialize_with = "within::<_, Blob<RECORD_BYTES_MAX>>")]
    pub payload: Vec<u8>,
    /// The ed25519 signature over `CONTEXT` and `payload`, 64 bytes.
    #[serde(deserialize_with = "within::<_, Blob<SIGNATURE_BYTES>>")]
    pub signature: Vec<u8>,
}

/// Why a record is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordFault {
    /// The bytes begin with something else, or are of a later format.
    #[error("these bytes are not a generation record of format 1 or 2")]
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
    #[cfg(feature = "signing")]
    pub fn sign(record: &GenerationRecord, key: &ed25519_dalek::SigningKey) -> Result<Self, RecordFault> {
        let format = Format::of(&record.metadata);
        let mut payload = codec::encode(record)?;
        if format == Format::Two {
            payload.extend(codec::encode(&(&record.metadata.adapter, &record.metadata.health.check))?);
        }
        let signature = ed25519_dalek::Signer::sign(key, &[format.context(), &payload].concat()).to_bytes().to_vec();
        Ok(Self { format, publisher: key.verifying_key().to_bytes(), payload, signature })
    }

    /// Returns the record if one of the trusted publishers signed it.
    pub fn verify(&self, trusted: &[PublisherKey]) -> Result<GenerationRecord, RecordFault> {
        let key = trusted.iter().find(|key| key.to_bytes() == self.publisher);
        let key = key.ok_or_else(|| RecordFault::UnknownPublisher(hex(&self.publisher)))?;
        let signed = [self.format.context(), &self.payload].concat();
        if key.has_signed(&signed, &self.signature) { self.decode() } else { Err(RecordFault::BadSignature) }
    }

    fn decode(&self) -> Result<GenerationRecord, RecordFault> {
        let (mut record, rest) = codec::decode_first::<GenerationRecord, RECORD_BYTES_MAX>(&self.payload)?;
        match self.format {
            Format::One if rest.is_empty() => {}
            Format::One => return Err(CodecError::Trailing(rest.len()).into()),
            Format::Two => record.metadata.supplement(rest)?,
        }
        Ok(record)
    }

    /// Returns the record if the publisher that it names itself has signed it: it is as it was made. Whether that
    /// publisher is to be believed this does not say.
    ///
    /// # Errors
    /// It was changed since.
    pub fn verify_unchanged(&self) -> Result<GenerationRecord, RecordFault> {
        let key = PublisherKey::from_bytes(&self.publisher).ok_or(RecordFault::BadSignature)?;
        self.verify(&[key])
    }

    /// The bytes of a record file.
    pub fn to_bytes(&self) -> Result<Vec<u8>, RecordFault> {
        Ok([self.format.magic(), codec::encode(self)?.as_slice()].concat())
    }

    /// What a record is called where its bytes need not be said again: their BLAKE3.
    pub fn id_of(bytes: &[u8]) -> [u8; 32] {
        *blake3::hash(bytes).as_bytes()
    }

    /// Reads a record file. Nothing in it is believed before [`SignedRecord::verify`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecordFault> {
        let after = |format: Format| Some((format, bytes.strip_prefix(format.magic().as_slice())?));
        let (format, body) = after(Format::One).or_else(|| after(Format::Two)).ok_or(RecordFault::NotARecord)?;
        Ok(Self { format, ..codec::decode::<_, RECORD_BYTES_MAX>(body)? })
    }
}
