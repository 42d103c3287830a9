//! Where the files of a repository lie that is in no directory of this host, as its administrator lets this host in there.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proto::location::Location;

use super::SharedMeter;
use super::again::Again;
use super::fault::{EngineError, Refusal};
use super::format::files::{FileKind, Store};
use super::format::id::Id;
use super::remote::{PATIENCE, Remote};
use super::s3::{Keys, S3};
use super::sftp::{Sftp, Way};
use crate::storage::{self, Access};
use crate::wire::web;

/// How long a storage may be away before whoever orders a repository there is told.
const FIRST_OUTAGE_MAX: Duration = Duration::from_secs(20);

/// Nothing is dialled yet. `outage_max` is how long the storage may be away.
///
/// # Errors
/// This host's administrator does not let it in there, or it is a directory.
pub(crate) fn store(
    state: &Path,
    at: &Location,
    meter: &SharedMeter,
    outage_max: Duration,
) -> Result<Arc<dyn Store>, EngineError> {
    let place = PathBuf::from(at.to_string());
    let again = |whom: String| Again { whom, meter: meter.clone(), outage_max };
    match (at, storage::access(state, at)?) {
        (Location::S3 { server, bucket, prefix }, Access::S3 { id, secret, token, region, authorities }) => {
            let client = web::client(server, authorities.as_deref(), PATIENCE)?;
            let keys = Keys { id: id.0, secret: secret.0, token: token.map(|token| token.0), region };
            Ok(Arc::new(S3::new(place, (server, bucket, prefix), keys, client, again(server.to_string()))))
        }
        (Location::Rest { server, path }, Access::Rest { login, authorities }) => {
            let client = web::client(server, authorities.as_deref(), PATIENCE)?;
            let login = login.map(|(user, password)| (user, password.0));
            Ok(Arc::new(Remote::at(place, (server, path), login, client, again(server.to_string()))))
        }
        (Location::Sftp { login, is_absolute, path }, Access::Sftp { identity, known_hosts }) => {
            let root = if *is_absolute { format!("/{path}") } else { path.clone() };
            let way = Way { login: login.clone(), identity, known_hosts };
            Ok(Arc::new(Sftp::new(place, root, way, again(login.to_string()))))
        }
        _ => Err(EngineError::refused(&place, Refusal::RepositoryNotAbsolute)),
    }
}

/// Asks a storage whether it lets this host in; a directory is made when need be.
///
/// # Errors
/// It does not, or is not there.
pub(super) fn reach(state: &Path, at: &Location, meter: &SharedMeter) -> Result<(), EngineError> {
    match at {
        Location::Directory(path) if path.starts_with('/') => return Ok(()),
        Location::Directory(path) => {
            return Err(EngineError::refused(Path::new(path), Refusal::RepositoryNotAbsolute));
        }
        Location::S3 { .. } | Location::Rest { .. } | Location::Sftp { .. } => {}
    }
    let store = store(state, at, meter, FIRST_OUTAGE_MAX)?;
    match store.read(FileKind::Config, &Id::of(&[])) {
        Err(fault) if fault.source.kind() != io::ErrorKind::NotFound => Err(fault.into()),
        _ => Ok(()),
    }
}
