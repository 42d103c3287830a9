//! The saved metadata: signed records on the host's disk, from which alone a version is started.
//!
//! Nothing in a record file is believed before its signature has been checked against `STATE/identity/publishers`, at
//! every reading. Which file is read is the journal's word; what the file says is the publisher's. Each record is there
//! twice, `V.record` and `V.record.2`; the second one counts where the first cannot be believed.
//!
//! What an order brings lies beside them, in `ordered`, until the order is carried out: only what is started, or has been,
//! has a place among the records.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use proto::limits::RECORD_BYTES_MAX;
use proto::record::RecordFault;
use proto::{GenerationRecord, Product, SignedRecord, TreeId, TreePath, Version};

use crate::bad;
use crate::durable::{self, Durability, FileFault};
use crate::identity::{self, IdentityFault};
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
        /// The file that is not there.
        path: String,
        /// The product that cannot be started without it.
        product: Product,
        /// The version that the file should be of.
        version: Version,
    },
    /// It is not what a trusted publisher signed.
    #[error("{origin}: {fault}")]
    NotBelieved {
        /// Which file, or where it came from.
        origin: String,
        /// What is wrong with it.
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
        /// The tree that it brings.
        tree: TreeId,
        /// The tree that is in use under that name.
        needed: TreeId,
    },
    /// The version is in use here, and is started in another way.
    #[error(
        "{0} has other metadata (arguments?) than on this host, where it is in use; publish it as another version"
    )]
    OtherMetadata(String),
    /// The tree has no program to start.
    #[error("{0} has no entry point: it can be looked at, and not be launched")]
    NoEntryPoint(String),
    /// It cannot be said whom this host believes.
    #[error(transparent)]
    Identity(#[from] IdentityFault),
    /// The file system failed.
    #[error(transparent)]
    File(#[from] FileFault),
}

/// A record that was checked, with what starts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// What the publisher signed.
    pub record: GenerationRecord,
    /// What is executed of its tree.
    pub entry_point: TreePath,
    /// The bytes that were checked, as they are saved.
    pub signed: Vec<u8>,
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
            is_adapted: metadata.adapter.is_some(),
            reads: metadata.state_schemas,
            architecture: metadata.architecture,
            probation_ms: metadata.health.probation_ms,
            bad,
        }
    }
}

/// Checks a record that came from elsewhere: message A, or the mount daemon's answer.
///
/// # Errors
/// The record is not believed, or of another product.
pub(crate) fn believe(paths: &AgentPaths, bytes: &[u8]) -> Result<Verified, RecordError> {
    check(paths, bytes, "the record that was sent")
}

/// Checks the record of message A and saves it where it disturbs nobody. When this returns the file survives a power cut.
/// A name that is in use here (the current version's, or that of the one to return to) goes on standing for what it stands
/// for: the journal knows no more of a version than its name and its tree.
///
/// # Errors
/// The record is not believed, of another product, or has another meaning than a version in use; or the file cannot be
/// written.
pub(crate) fn order(paths: &AgentPaths, bytes: &[u8], journal: &Journal) -> Result<Verified, RecordError> {
    let ordered = believe(paths, bytes)?;
    let (tree, name) = (ordered.record.tree, ordered.record.name());
    let in_use = std::iter::once(&journal.current).chain(&journal.last_good);
    for used in in_use.filter(|used| used.version == ordered.record.version) {
        let other_tree = || RecordError::OtherTree { name: name.clone(), tree, needed: used.tree };
        match load(paths, &used.version) {
            Ok(saved) if saved.record.tree != tree => return Err(other_tree()),
            Ok(saved) if saved.record.metadata != ordered.record.metadata => {
                return Err(RecordError::OtherMetadata(name));
            }
            Ok(_) => {}
            // Its own record is lost: this one is of the very tree.
            Err(_) if used.tree == tree => save(paths, &ordered)?,
            Err(_) if *used == journal.current => return Err(other_tree()),
            // Nobody can return to what cannot be believed any more.
            Err(_) => {}
        }
    }
    durable::create_dir(&paths.directory())?;
    durable::write(&paths.ordered(), &ordered.signed, Durability::PowerCut)?;
    Ok(ordered)
}

/// Gives the record of an order that is carried out its place among those that versions are started from.
///
/// # Errors
/// The file system's; the order cannot be carried out then.
pub(crate) fn place(paths: &AgentPaths, ordered: &Verified) -> Result<(), FileFault> {
    save(paths, ordered)?;
    // One that stays says nothing to anybody.
    drop(durable::remove(&paths.ordered(), Durability::ProcessDeath));
    Ok(())
}

/// Saves a record again of which both copies have gone since it was checked: what is started reads it.
///
/// # Errors
/// The file system's.
pub(crate) fn keep(paths: &AgentPaths, verified: &Verified) -> Result<(), FileFault> {
    let version = &verified.record.version;
    if paths.record(version).exists() || paths.record_copy(version).exists() {
        return Ok(());
    }
    save(paths, verified)
}

/// Saves a checked record, twice. When this returns it survives a power cut.
///
/// # Errors
/// The file system's.
pub(crate) fn save(paths: &AgentPaths, verified: &Verified) -> Result<(), FileFault> {
    let version = &verified.record.version;
    durable::create_dir(&paths.records())?;
    durable::write(&paths.record(version), &verified.signed, Durability::PowerCut)?;
    if let Err(e) = durable::write(&paths.record_copy(version), &verified.signed, Durability::PowerCut) {
        // One that is saved is saved.
        tracing::warn!("there is no second copy of the metadata of {}: {e}", verified.record.name());
    }
    Ok(())
}

/// Reads the saved record of a version. Its tree and arguments are what is started, also when the journal remembers
/// another tree: the record is signed, the journal is not.
///
/// # Errors
/// Both copies are missing, changed, of another product, or not readable; the fault is the first one's.
pub(crate) fn load(paths: &AgentPaths, version: &Version) -> Result<Verified, RecordError> {
    load_with(paths, version, &|bytes, origin| check(paths, bytes, origin))
}

/// As `load`, of a version that the journal names. If it cannot be said any more whom this host believes, the journal
/// vouches for it: it names what was verified when it was saved, by the id of its tree. The record must be unchanged
/// and of that very tree. Returns what to say aloud then.
///
/// # Errors
/// As `load`.
pub fn load_vouched(paths: &AgentPaths, entry: &Entry) -> Result<(Verified, Option<String>), RecordError> {
    let fault = match load(paths, &entry.version) {
        Ok(verified) => return Ok((verified, None)),
        Err(RecordError::Identity(fault)) => fault,
        Err(other) => return Err(other),
    };
    let unchanged = |bytes: &[u8], origin: &str| {
        let signed = SignedRecord::from_bytes(bytes).and_then(|signed| signed.verify_unchanged());
        signed
            .map_err(|fault| not_believed(origin, fault))
            .and_then(|record| of_product(paths, record, bytes, origin))
    };
    match load_with(paths, &entry.version, &unchanged) {
        Ok(verified) if verified.entry() == *entry => {
            let name = verified.record.name();
            let said = format!("{fault}; {name} is started all the same: it was verified when it was saved");
            Ok((verified, Some(said)))
        }
        Ok(_) | Err(_) => Err(fault.into()),
    }
}

type Check<'c> = &'c dyn Fn(&[u8], &str) -> Result<Verified, RecordError>;

fn load_with(paths: &AgentPaths, version: &Version, check: Check<'_>) -> Result<Verified, RecordError> {
    let first = load_file(paths, version, &paths.record(version), check);
    first.or_else(|fault| load_file(paths, version, &paths.record_copy(version), check).map_err(|_| fault))
}

fn load_file(paths: &AgentPaths, version: &Version, path: &Path, check: Check<'_>) -> Result<Verified, RecordError> {
    let origin = path.display().to_string();
    let length = fs::metadata(path).map(|m| m.len()).unwrap_or(0);
    if length > RECORD_BYTES_MAX as u64 {
        return Err(not_believed(&origin, RecordFault::NotARecord));
    }
    match fs::read(path) {
        Ok(bytes) => check(&bytes, &origin),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(RecordError::Missing { path: origin, product: paths.product().clone(), version: version.clone() })
        }
        Err(e) => Err(FileFault::io(path, e).into()),
    }
}

/// Makes both copies of a saved record whole again, if one of them is. A damaged one is kept aside. Returns what was found,
/// for people.
pub(crate) fn mend(paths: &AgentPaths, version: &Version, now_unix_ms: u64) -> Vec<String> {
    let copies = [paths.record(version), paths.record_copy(version)];
    let whole = |path: &PathBuf| load_file(paths, version, path, &|bytes, origin| check(paths, bytes, origin));
    let found = copies.each_ref().map(whole);
    let Some(good) = found.iter().position(Result::is_ok) else { return Vec::new() };
    let Ok(bytes) = fs::read(&copies[good]) else { return Vec::new() };
    let mut said = Vec::new();
    if let [Ok(first), Ok(second)] = &found
        && first != second
    {
        // Whoever wrote them ended between the two. The first is what is started.
        drop(durable::write(&copies[1], &bytes, Durability::PowerCut));
    }
    for (path, found) in copies.iter().zip(&found) {
        let Err(fault) = found else { continue };
        let is_there = path.exists();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if is_there {
            drop(fs::rename(path, path.with_file_name(format!("{name}.damaged-{now_unix_ms}"))));
        }
        let mended = match durable::write(path, &bytes, Durability::PowerCut) {
            Ok(()) => "made again of the other copy".to_owned(),
            Err(e) => format!("the other copy counts: {e}"),
        };
        // Versions that were saved by an earlier program have one copy, which is no fault.
        if is_there || good == 1 {
            said.push(format!("{fault}; {mended}"));
        }
    }
    said
}

/// Versions of which anything is saved, and when it was saved last.
pub(crate) fn saved(paths: &AgentPaths) -> BTreeMap<Version, SystemTime> {
    let mut versions = BTreeMap::new();
    for file in fs::read_dir(paths.records()).into_iter().flatten().flatten() {
        let name = file.file_name();
        let name = name.to_str().unwrap_or_default();
        let version = name.strip_suffix(".record").or_else(|| name.strip_suffix(".record.2"));
        let Some(version) = version.and_then(|version| version.parse().ok()) else { continue };
        let at = file.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let last = versions.entry(version).or_insert(at);
        *last = at.max(*last);
    }
    versions
}

/// Removes saved records that the journal does not name, but for the newest few: going back to one of them needs no
/// message then, and nothing grows for ever.
pub(crate) fn prune(paths: &AgentPaths, journal: &Journal) {
    let named = std::iter::once(&journal.current).chain(&journal.last_good);
    let named = named.chain(journal.staged.as_ref().map(|staged| &staged.entry));
    let kept: Vec<&Version> = named.map(|entry| &entry.version).collect();
    let mut spare: Vec<_> = saved(paths).into_iter().filter(|(version, _)| !kept.contains(&version)).collect();
    spare.sort_by_key(|(_, saved)| std::cmp::Reverse(*saved));
    for (version, _) in spare.into_iter().skip(SPARE_MAX) {
        for path in [paths.record(&version), paths.record_copy(&version)] {
            drop(durable::remove(&path, Durability::ProcessDeath));
        }
    }
}

fn check(paths: &AgentPaths, bytes: &[u8], origin: &str) -> Result<Verified, RecordError> {
    let publishers = identity::publishers(paths.state())?;
    let signed = SignedRecord::from_bytes(bytes).and_then(|signed| signed.verify(publishers.keys()));
    signed.map_err(|fault| not_believed(origin, fault)).and_then(|record| of_product(paths, record, bytes, origin))
}

fn of_product(
    paths: &AgentPaths,
    record: GenerationRecord,
    bytes: &[u8],
    origin: &str,
) -> Result<Verified, RecordError> {
    if record.product != *paths.product() {
        let wanted = paths.product().clone();
        return Err(RecordError::OtherProduct { origin: origin.to_owned(), found: record.name(), wanted });
    }
    match record.metadata.entry_point.clone() {
        Some(entry_point) => Ok(Verified { record, entry_point, signed: bytes.to_vec() }),
        None => Err(RecordError::NoEntryPoint(record.name())),
    }
}

fn not_believed(origin: &str, fault: RecordFault) -> RecordError {
    RecordError::NotBelieved { origin: origin.to_owned(), fault }
}
