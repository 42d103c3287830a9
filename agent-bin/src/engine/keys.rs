//! The keys of a repository that this host serves: who can open it, further keys, and passwords that are sealed to
//! somebody who keeps them elsewhere.
//!
//! The files of keys are restic's own (`keys/ID`, JSON), so any program of that format opens the repository by each.

use std::path::Path;

use proto::agent::Repository as Location;
use proto::keeping::Keeping;
use proto::recovery::{RecoveryKey, Sealed};
use serde::Deserialize;

use super::fault::{EngineError, KeyFault};
use super::format::files::{FileKind, Files};
use super::format::id::Id;
use super::format::locks::Access;
use super::meter::one_line;
use super::session::{Session, drawn, password};
use super::{Mark, SharedMeter};
use crate::kept::Kept;

/// A key's file is a few hundred bytes.
const KEY_BYTES_MAX: u64 = 64 << 10;
/// Keys that are told of; those beyond are counted.
const TOLD_MAX: usize = 60;

/// Name and text of what came of an order.
type Said = (String, String);

fn said(name: &str, text: impl ToString) -> Said {
    (name.to_owned(), text.to_string())
}

/// What a key says of itself, unsealed.
#[derive(Deserialize)]
struct KeyFile {
    #[serde(default)]
    hostname: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    created: Option<String>,
}

/// Names and texts of what came of it.
pub(super) fn keeping(
    state: &Path,
    kept: &Kept,
    order: &Keeping,
    mark: &Mark,
    meter: &SharedMeter,
) -> Result<Vec<Said>, EngineError> {
    let fault = |fault| EngineError::Key { path: kept.path.clone(), fault };
    let file = Kept::password_file(state, &kept.name);
    let at = Location {
        path: kept.path.to_string_lossy().into_owned(),
        password_file: Some(file.to_string_lossy().into_owned()),
    };
    // As restic: whoever removes a key is alone.
    let access = if matches!(order, Keeping::RemoveKey(_)) { Access::Alone } else { Access::Shared };
    let session = Session::open(state, &at, access, false, mark, meter)?;
    let own = session.repository.key_id().as_ref().and_then(|id| Id::parse(&id.to_hex()));
    let own = own.ok_or_else(|| fault(KeyFault::NotSaid))?;
    let sealed = |key: &Id, to: &RecoveryKey, password: &str| {
        let (id, key) = (session.repository.config().id.to_hex().to_string(), key.to_string());
        let random = drawn().map_err(KeyFault::Random)?;
        Ok(Sealed::seal(to, (&kept.name, &id, &key), password, random)?.to_string())
    };
    match order {
        Keeping::Keys => told(&session.files, &own),
        Keeping::AddKey(to) => {
            let bytes = drawn().map_err(KeyFault::Random).map_err(fault)?;
            let password: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            // To a key that nothing can be sealed to: found out before there is a key that nobody knows the password of.
            sealed(&own, to, &password).map_err(fault)?;
            let key = super::library::add_key(&session.path, &session.repository, &password, &kept.host, meter)?;
            Ok(vec![said("key", key), said("sealed", sealed(&key, to, &password).map_err(fault)?)])
        }
        Keeping::Escrow(to) => {
            let sealed = sealed(&own, to, &password(&file, false)?).map_err(fault)?;
            Ok(vec![said("key", own), said("sealed", sealed)])
        }
        Keeping::RemoveKey(id) => {
            let id = Id::parse(id).ok_or_else(|| fault(KeyFault::NoId(id.clone())))?;
            if id == own {
                return Err(fault(KeyFault::Own(id)));
            }
            if !session.files.is_there(FileKind::Key, &id) {
                return Err(fault(KeyFault::Unknown(id)));
            }
            session.files.remove(FileKind::Key, &id)?;
            Ok(vec![said("key", id)])
        }
        // It is about no key.
        Keeping::Refuse(_) => Ok(Vec::new()),
    }
}

/// Every key: id, whether it is the agent's own, whose, and since when.
fn told(files: &Files, own: &Id) -> Result<Vec<Said>, EngineError> {
    let mut all = files.list(FileKind::Key)?;
    all.sort_by_key(|(id, _)| (id != own, id.to_string()));
    let mut told = Vec::new();
    for (number, (id, bytes)) in all.iter().take(TOLD_MAX).enumerate() {
        let read = if *bytes <= KEY_BYTES_MAX { files.read(FileKind::Key, id)? } else { Vec::new() };
        let KeyFile { hostname, username, created } = serde_json::from_slice(&read).unwrap_or(KeyFile {
            hostname: None,
            username: Some("cannot be read".to_owned()),
            created: None,
        });
        let word = |text: Option<String>| {
            text.map_or_else(|| "-".to_owned(), |text| one_line(&text).chars().take(100).collect())
        };
        let whose = if id == own { "own" } else { "-" };
        let (user, host, since) = (word(username), word(hostname), word(created));
        told.push(said(&format!("key-{}", number + 1), format!("{id} {whose} {user}@{host} {since}")));
    }
    if let Some(more @ 1..) = all.len().checked_sub(TOLD_MAX) {
        told.push(said("more", more));
    }
    Ok(told)
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
