//! The saved metadata: signed records on the host's disk, from which alone a version is started.
//!
//! Nothing in a record file is believed before its signature has been checked against `STATE/identity/publishers`, at
//! every reading. Which file is read is the journal's word; what the file says is the publisher's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use proto::limits::RECORD_BYTES_MAX;
use proto::record::{PublishersFault, RecordFault};
use proto::{GenerationRecord, Product, Publishers, SignedRecord, TreeId, TreePath, Version};

use crate::bad;
use crate::durable::{self, Durability, FileFault};
use crate::journal::{Entry, Journal};
use crate::machine::Candidate;
use crate::paths::AgentPaths;

/// Saved records that no journal names; older ones are removed.
const SPARE_MAX: usize = 16;

/// A record cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// It is not on this disk.
    #[error(
        "saved metadata {path} is missing: cannot start {product} {version} without it; restore the file, or attach the agent's state anew"
    )]
    Missing {
        /// Which file.
        path: String,
        /// The product.
        product: Product,
        /// The version.
        version: Version,
    },
    /// It is not what a trusted publisher signed.
    #[error("{origin}: {fault}")]
    NotBelieved {
        /// Which file, or where it came from.
        origin: String,
        /// Why not.
        fault: RecordFault,
    },
    /// It is a valid record of something else.
    #[error("{origin}: is a record of {found}, not of {wanted}")]
    OtherProduct {
        /// Which file, or where it came from.
        origin: String,
        /// The record's name.
        found: String,
        /// The product asked for.
        wanted: Product,
    },
    /// The version is in use here, with another tree.
    #[error(
        "{name} stands for tree {tree}, but on this host for tree {needed}, which is in use; publish it as another version"
    )]
    OtherTree {
        /// The record's name.
        name: String,
        /// Its tree.
        tree: TreeId,
        /// The tree that is in use under that name.
        needed: TreeId,
    },
    /// The tree has no program to start.
    #[error("{0} has no entry point: it can be looked at, and not be launched")]
    NoEntryPoint(String),
    /// The trusted publishers are not readable.
    #[error("{path}: {fault}", path = path.display())]
    Publishers {
        /// Which file.
        path: PathBuf,
        /// The line.
        fault: PublishersFault,
    },
    /// This host has not been enrolled.
    #[error("{} is not there: this host trusts no publisher yet; enrol it with `manager-fs enroll`", .0.display())]
    NotEnrolled(PathBuf),
    /// The file system failed.
    #[error(transparent)]
    File(#[from] FileFault),
}

/// A record that was checked, with what starts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// What the publisher signed.
    pub record: GenerationRecord,
    /// Its entry point.
    pub entry_point: TreePath,
}

impl Verified {
    /// What the journal says of it.
    pub fn entry(&self) -> Entry {
        Entry { version: self.record.version.clone(), tree: self.record.tree }
    }

    /// As something to change over to, with what this host remembers of it.
    pub(crate) fn candidate(self, paths: &AgentPaths) -> Candidate {
        let bad = bad::reason(paths, &self.record.tree);
        let entry = self.entry();
        let metadata = self.record.metadata;
        Candidate {
            entry,
            entry_point: self.entry_point,
            arguments: metadata.arguments,
            reads: metadata.state_schemas,
            architecture: metadata.architecture,
            probation_ms: metadata.health.probation_ms,
            bad,
        }
    }
}

/// Checks a record that came from elsewhere (message A, or the mount daemon's answer) and saves it. When this returns
/// the file survives a power cut. `needed` are the versions that a start may need: their files are not replaced by
/// records of other trees, which nobody has staged.
///
/// # Errors
/// The record is not believed, of another product, or in the place of a needed one; or the file cannot be written.
pub fn save(paths: &AgentPaths, bytes: &[u8], needed: &[&Entry]) -> Result<Verified, RecordError> {
    let verified = check(paths, bytes, "the record that was sent")?;
    let entry = verified.entry();
    if let Some(other) = needed.iter().find(|needed| needed.version == entry.version && needed.tree != entry.tree) {
        return Err(RecordError::OtherTree { name: verified.record.name(), tree: entry.tree, needed: other.tree });
    }
    durable::create_dir(&paths.records())?;
    durable::write(&paths.record(&verified.record.version), bytes, Durability::PowerCut)?;
    Ok(verified)
}

/// Reads the saved record that the journal names. Its tree and arguments are what is started, also when the journal
/// remembers another tree: the record is signed, the journal is not.
///
/// # Errors
/// The file is missing, changed, of another product, or not readable.
pub fn load(paths: &AgentPaths, version: &Version) -> Result<Verified, RecordError> {
    let path = paths.record(version);
    let missing = || RecordError::Missing {
        path: path.display().to_string(),
        product: paths.product().clone(),
        version: version.clone(),
    };
    let length = fs::metadata(&path).map(|m| m.len()).unwrap_or(0);
    if length > RECORD_BYTES_MAX as u64 {
        return Err(RecordError::NotBelieved { origin: path.display().to_string(), fault: RecordFault::NotARecord });
    }
    match fs::read(&path) {
        Ok(bytes) => check(paths, &bytes, &path.display().to_string()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(missing()),
        Err(e) => Err(FileFault::io(&path, e).into()),
    }
}

/// Removes saved records that the journal does not name, but for the newest few: going back to one of them needs no
/// message then, and nothing grows for ever.
pub fn prune(paths: &AgentPaths, journal: &Journal) {
    let mut kept: Vec<PathBuf> = vec![paths.record(&journal.current.version)];
    kept.extend(journal.last_good.as_ref().map(|entry| paths.record(&entry.version)));
    kept.extend(journal.staged.as_ref().map(|staged| paths.record(&staged.entry.version)));
    let Ok(entries) = fs::read_dir(paths.records()) else { return };
    let spare = entries.flatten().map(|entry| entry.path()).filter(|path| !kept.contains(path));
    let age = |path: &PathBuf| fs::metadata(path).and_then(|m| m.modified()).ok();
    let mut spare: Vec<_> = spare.map(|path| (age(&path), path)).collect();
    spare.sort();
    for (_, path) in spare.iter().rev().skip(SPARE_MAX) {
        drop(durable::remove(path, Durability::ProcessDeath));
    }
}

fn check(paths: &AgentPaths, bytes: &[u8], origin: &str) -> Result<Verified, RecordError> {
    let not_believed = |fault| RecordError::NotBelieved { origin: origin.to_owned(), fault };
    let publishers = publishers(&paths.publishers())?;
    let signed = SignedRecord::from_bytes(bytes).map_err(not_believed)?;
    let record = signed.verify(publishers.keys()).map_err(not_believed)?;
    if record.product != *paths.product() {
        let wanted = paths.product().clone();
        return Err(RecordError::OtherProduct { origin: origin.to_owned(), found: record.name(), wanted });
    }
    match record.metadata.entry_point.clone() {
        Some(entry_point) => Ok(Verified { record, entry_point }),
        None => Err(RecordError::NoEntryPoint(record.name())),
    }
}

fn publishers(path: &Path) -> Result<Publishers, RecordError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(RecordError::NotEnrolled(path.to_owned())),
        Err(e) => return Err(FileFault::io(path, e).into()),
    };
    Publishers::parse(&text).map_err(|fault| RecordError::Publishers { path: path.to_owned(), fault })
}
