//! Repositories that media agents serve: where each lies, how it is reached, and what seals grants for it.

use proto::door::DoorKey;
use proto::message::Unix;
use proto::{HostName, Product, RepositoryName};
use serde::{Deserialize, Serialize};

use super::super::contract::{Change, ControlError, Expect};
use super::{Key, State};

/// Why a repository is not known, or not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RepositoryError {
    /// There is none.
    #[error(
        "there is no repository '{0}'; `manager-fs repository list` lists those that are, and a directory is named by its absolute path"
    )]
    Unknown(RepositoryName),
    /// There is another one.
    #[error("repository '{name}' is {path} on {host}; remove it first, or take another name")]
    Exists {
        /// Its name.
        name: RepositoryName,
        /// Where it lies.
        path: String,
        /// Who serves it.
        host: HostName,
    },
    /// The control state failed.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// A repository that a media agent serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryRecord {
    /// Whose media agent.
    pub host: HostName,
    /// Which agent of that host.
    pub product: Product,
    /// Absolute path of its directory there.
    pub path: String,
    /// Where agents of other hosts reach it, `HOST:PORT`.
    pub address: String,
    /// What seals grants.
    pub key: DoorKey,
    /// When it was decided.
    pub created: Unix,
    /// What its agent shows to programs that are no agents: the base64 of a certificate's DER. `None` until it has said so.
    pub certificate: Option<String>,
}

impl State {
    /// Decides that a host serves a repository. One that the same host serves at the same place keeps its key, so that
    /// what is under way there goes on.
    ///
    /// # Errors
    /// [`RepositoryError::Exists`]; the control state failed.
    pub async fn add_repository(
        &self,
        name: &RepositoryName,
        record: &RepositoryRecord,
    ) -> Result<RepositoryRecord, RepositoryError> {
        self.update(&Key::Repository(name.clone()), |known: Option<RepositoryRecord>| {
            let record = match known {
                None => record.clone(),
                Some(known) if known.host == record.host && known.path == record.path => RepositoryRecord {
                    key: known.key,
                    created: known.created,
                    certificate: known.certificate,
                    ..record.clone()
                },
                Some(RepositoryRecord { path, host, .. }) => {
                    return Err(RepositoryError::Exists { name: name.clone(), path, host });
                }
            };
            Ok((Some(record.clone()), record))
        })
        .await
    }

    /// Notes what its agent shows to programs that are no agents. Of a repository that is not known nothing is noted.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn note_certificate(&self, name: &RepositoryName, certificate: &str) -> Result<(), ControlError> {
        self.update(&Key::Repository(name.clone()), |known: Option<RepositoryRecord>| {
            let noted = known.map(|known| RepositoryRecord { certificate: Some(certificate.to_owned()), ..known });
            Ok::<_, ControlError>((noted, ()))
        })
        .await
    }

    /// One repository.
    ///
    /// # Errors
    /// [`RepositoryError::Unknown`]; the control state failed.
    pub async fn repository(&self, name: &RepositoryName) -> Result<RepositoryRecord, RepositoryError> {
        let found = self.read::<RepositoryRecord>(&Key::Repository(name.clone())).await?;
        found.map(|(record, _)| record).ok_or_else(|| RepositoryError::Unknown(name.clone()))
    }

    /// Every repository that can be read, by name.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn repositories(&self) -> Result<Vec<(RepositoryName, RepositoryRecord)>, ControlError> {
        let found = self.read_all::<RepositoryRecord>("repository/").await?;
        let named = found.into_iter().filter_map(|(key, record)| match key {
            Key::Repository(name) => Some((name, record)),
            _ => None,
        });
        Ok(named.collect())
    }

    /// Forgets a repository. What lies in it stays.
    ///
    /// # Errors
    /// [`RepositoryError::Unknown`]; the control state failed.
    pub async fn remove_repository(&self, name: &RepositoryName) -> Result<RepositoryRecord, RepositoryError> {
        let record = self.repository(name).await?;
        let key = Key::Repository(name.clone()).to_string();
        self.commit(vec![Change::delete(key, Expect::Any)]).await?;
        Ok(record)
    }
}
