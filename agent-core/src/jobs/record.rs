//! What is on disk of a job: `STATE/agents/<product>/jobs/<id>`.

use std::fs;
use std::path::{Path, PathBuf};

use proto::Version;
use proto::agent::{JobId, Operation, Outcome};
use proto::codec;
use proto::limits::MESSAGE_BYTES_MAX;
use serde::{Deserialize, Serialize};

use crate::durable::{self, Durability, FileFault};
use crate::moments::{self, Moment};

const MAGIC: &[u8; 8] = b"MFSJOB\0\x01";

/// One job, as any later version of the agent must be able to read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JobRecord {
    pub(crate) id: JobId,
    pub(crate) operation: Operation,
    /// From its last checkpoint: schema and bytes.
    pub(crate) resume: Option<(u32, Vec<u8>)>,
    /// Starts since the last checkpoint.
    pub(crate) starts: u32,
    pub(crate) cancelled: bool,
    /// The versions that took part, in order.
    pub(crate) versions: Vec<Version>,
    pub(crate) outcome: Option<Outcome>,
}

impl JobRecord {
    /// A job that nobody has worked at.
    pub(crate) fn new(id: JobId, operation: Operation) -> Self {
        Self { id, operation, resume: None, starts: 0, cancelled: false, versions: Vec::new(), outcome: None }
    }

    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, codec::CodecError> {
        Ok(durable::seal(MAGIC, &codec::encode(self)?))
    }

    /// `path` is for the error.
    pub(crate) fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self, FileFault> {
        let body = durable::unseal(MAGIC, bytes, path, "job record")?;
        codec::decode::<_, MESSAGE_BYTES_MAX>(body).map_err(|e| FileFault::Damaged {
            path: path.to_owned(),
            what: "job record",
            detail: e.to_string(),
        })
    }
}

/// A record with its place on disk. Whoever holds it may wait for the disk.
#[derive(Debug)]
pub(super) struct Paper {
    path: PathBuf,
    pub(super) record: JobRecord,
}

impl Paper {
    pub(super) fn new(path: PathBuf, record: JobRecord) -> Self {
        Self { path, record }
    }

    /// Makes the record durable as it is now.
    pub(super) fn write(&self, moment: Moment) -> Result<(), FileFault> {
        moments::reach(moment, &self.path).map_err(|e| FileFault::io(&self.path, e))?;
        let bytes = self.record.to_bytes().map_err(|e| FileFault::io(&self.path, std::io::Error::other(e)))?;
        durable::write(&self.path, &bytes, Durability::PowerCut)
    }
}

/// Every record that can be read. One that cannot is passed over with a warning, and kept for people.
pub(super) fn read_all(dir: &Path) -> Result<Vec<JobRecord>, FileFault> {
    let mut records = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| FileFault::io(dir, e))? {
        let path = entry.map_err(|e| FileFault::io(dir, e))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with('.') {
            // Left by a write that was interrupted.
            drop(fs::remove_file(&path));
            continue;
        }
        match read(&path) {
            Ok(record) => records.push(record),
            Err(e) => tracing::warn!("a saved job is passed over: {e}"),
        }
    }
    Ok(records)
}

pub(super) fn read(path: &Path) -> Result<JobRecord, FileFault> {
    JobRecord::from_bytes(&fs::read(path).map_err(|e| FileFault::io(path, e))?, path)
}
