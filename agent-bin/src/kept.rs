//! What this host's media agent serves: `STATE/repositories`.
//!
//! ```text
//! NAME.json       where the repository lies, how others reach it, and what seals grants
//! NAME.password   its password, as in a file that `--password-file` names
//! NAME.locks/ID   whose the lock ID is, for whoever wants to remove it
//! ```
//! The media agent writes it; every agent of the host reads it, to whom the repository is a directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use agent_core::FileFault;
use agent_core::internal::durable::{self, Durability};
use proto::door::{Bearer, DoorKey, Grant};
use proto::keeping::Refused;
use proto::limits::REFUSED_MAX;
use proto::location::Location;
use proto::{HostName, RepositoryName};
use serde::{Deserialize, Serialize};

/// A file of these is never longer.
const BYTES_MAX: u64 = 1 << 20;
/// The form of one that lies in a directory.
const SCHEMA: u32 = 1;
/// The form of one that lies elsewhere: a program that knows only directories must not take its place for one.
const SCHEMA_ELSEWHERE: u32 = 2;

/// What is kept of a served repository cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeptFault {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path} cannot be understood ({what}): order `repository create` again on the manager",
        path = path.display()
    )]
    Damaged { path: PathBuf, what: String },
    #[error(transparent)]
    File(#[from] FileFault),
}

/// A repository that this host serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    schema: u32,
    pub(crate) name: RepositoryName,
    /// This host, when it was told to serve it.
    pub(crate) host: HostName,
    /// The repository's directory, or the text of its [`Location`].
    pub(crate) path: PathBuf,
    /// Where others reach it.
    pub(crate) address: String,
    pub(crate) key: DoorKey,
    /// Grants that let nobody in, though they have not ended.
    #[serde(default)]
    pub(crate) refused: Vec<Refused>,
}

impl Kept {
    pub(crate) fn new(name: RepositoryName, host: HostName, path: PathBuf, address: String, key: DoorKey) -> Self {
        let mut kept = Self { schema: SCHEMA, name, host, path, address, key, refused: Vec::new() };
        if !kept.location().is_directory() {
            kept.schema = SCHEMA_ELSEWHERE;
        }
        kept
    }

    /// Where it lies.
    pub(crate) fn location(&self) -> Location {
        let text = self.path.to_string_lossy();
        text.parse().unwrap_or_else(|_| Location::Directory(text.into_owned()))
    }

    /// Of one name, if it is served.
    pub(crate) fn read(state: &Path, name: &RepositoryName) -> Result<Option<Self>, KeptFault> {
        let path = file(state, name);
        let fault = |source| KeptFault::Io { path: path.clone(), source };
        let damaged = |what: String| KeptFault::Damaged { path: path.clone(), what };
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fault(error)),
            Ok(found) if found.len() > BYTES_MAX => return Err(damaged("it is too long".into())),
            Ok(_) => {}
        }
        let kept: Self =
            serde_json::from_slice(&fs::read(&path).map_err(fault)?).map_err(|e| damaged(e.to_string()))?;
        if ![SCHEMA, SCHEMA_ELSEWHERE].contains(&kept.schema) || kept.name != *name {
            return Err(damaged(format!("it has form {} and is of {}", kept.schema, kept.name)));
        }
        Ok(Some(kept))
    }

    /// Whether a grant that was given is to let nobody in any more.
    pub(crate) fn refuses(&self, grant: &Grant) -> bool {
        self.refused.iter().any(|refused| match refused {
            Refused::Grant { what, .. } => *what == grant.what,
            Refused::Host { host, until_unix_ms } => {
                grant.bearer == Bearer::Host(host.clone()) && grant.until_unix_ms <= *until_unix_ms
            }
        })
    }

    /// Refuses further grants. What has ended by `now` is forgotten, and of too many what ends first.
    pub(crate) fn refuse(&mut self, grants: &[Refused], now: u64) {
        self.refused.extend_from_slice(grants);
        self.refused.retain(|refused| refused.until_unix_ms() >= now);
        self.refused.sort_by_key(|refused| std::cmp::Reverse(refused.until_unix_ms()));
        self.refused.dedup();
        self.refused.truncate(REFUSED_MAX);
    }

    /// Everything that is served, and what cannot be read of it.
    pub(crate) fn all(state: &Path) -> (Vec<Self>, Vec<KeptFault>) {
        let directory = directory(state);
        let (mut all, mut faults) = (Vec::new(), Vec::new());
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return (all, faults),
            Err(source) => return (all, vec![KeptFault::Io { path: directory, source }]),
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(".json")).and_then(|name| name.parse().ok());
            match name.map(|name| Self::read(state, &name)) {
                Some(Ok(kept)) => all.extend(kept),
                Some(Err(fault)) => faults.push(fault),
                None => {}
            }
        }
        (all, faults)
    }

    /// Written down, so that it is served after every start.
    pub(crate) fn write(&self, state: &Path) -> Result<(), KeptFault> {
        let path = file(state, &self.name);
        durable::create_dir(&directory(state))?;
        let text = serde_json::to_vec_pretty(self);
        let text = text.map_err(|error| KeptFault::Damaged { path: path.clone(), what: error.to_string() })?;
        Ok(durable::write(&path, &text, Durability::PowerCut)?)
    }

    /// Served no longer. Its password stays: whoever has the directory may want it.
    pub(crate) fn remove(state: &Path, name: &RepositoryName) -> Result<(), KeptFault> {
        Ok(durable::remove(&file(state, name), Durability::PowerCut)?)
    }

    /// Where its password is.
    pub(crate) fn password_file(state: &Path, name: &RepositoryName) -> PathBuf {
        directory(state).join(format!("{name}.password"))
    }

    /// Where it is noted whose its locks are.
    pub(crate) fn locks(&self, state: &Path) -> PathBuf {
        directory(state).join(format!("{}.locks", self.name))
    }
}

fn directory(state: &Path) -> PathBuf {
    state.join("repositories")
}

fn file(state: &Path, name: &RepositoryName) -> PathBuf {
    directory(state).join(format!("{name}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_served_is_read_back_and_what_is_damaged_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (state, name): (_, RepositoryName) = (dir.path(), "vault".parse().unwrap());
        assert_eq!(Kept::read(state, &name).unwrap(), None);
        assert!(Kept::all(state).0.is_empty());
        let kept =
            Kept::new(name.clone(), "m".parse().unwrap(), "/srv/r".into(), "m.example:7421".into(), DoorKey([9; 32]));
        kept.write(state).unwrap();
        assert_eq!(Kept::read(state, &name).unwrap(), Some(kept.clone()));
        fs::write(directory(state).join("other.json"), b"{").unwrap();
        fs::write(directory(state).join("third.json"), serde_json::to_vec(&kept).unwrap()).unwrap();
        let (all, faults) = Kept::all(state);
        assert_eq!((all, faults.len()), (vec![kept], 2));
        Kept::remove(state, &name).unwrap();
        assert_eq!(Kept::read(state, &name).unwrap(), None);
    }
}
