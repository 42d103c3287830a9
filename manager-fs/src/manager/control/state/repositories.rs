//! Repositories that media agents serve: where each lies, how it is reached, and what seals grants for it.

use proto::door::{Access, DoorKey};
use proto::message::Unix;
use proto::{HostName, Product, RepositoryName};
use serde::{Deserialize, Serialize};

use super::super::contract::{CHANGES_MAX, Change, ControlError, Expect};
use super::{Key, State, encode};

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
    #[error("repository '{name}' is {path} on {host}; with --adopt this one is it from now on, or take another name")]
    Exists {
        /// Its name.
        name: RepositoryName,
        /// Where it lies.
        path: String,
        /// Who serves it.
        host: HostName,
    },
    /// There is no such token.
    #[error("there is no token {id} of '{name}'; `manager-fs repository token list {name}` lists them")]
    NoGrant {
        /// Of which repository.
        name: RepositoryName,
        /// As it was typed.
        id: String,
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

/// A token that was given for a repository. Of what lets anybody in nothing is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantRecord {
    /// What it lets do.
    pub access: Access,
    /// When it was given.
    pub created: Unix,
    /// When it ends by itself.
    pub until: Unix,
    /// When it was taken back.
    pub revoked: Option<Unix>,
}

impl State {
    /// Decides that a host serves a repository. One that the same host serves at the same place keeps its key, so that
    /// what is under way there goes on. Where `adopt` is so, it replaces another one of the name, with a key of its own.
    ///
    /// # Errors
    /// [`RepositoryError::Exists`]; the control state failed.
    pub async fn add_repository(
        &self,
        name: &RepositoryName,
        record: &RepositoryRecord,
        adopt: bool,
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
                Some(_) if adopt => record.clone(),
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

    /// Remembers a token of a repository. Those that have ended are forgotten on the way.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn add_grant(
        &self,
        name: &RepositoryName,
        id: &str,
        grant: &GrantRecord,
        now: Unix,
    ) -> Result<(), ControlError> {
        let known = self.grants(name).await?;
        let ended = known.into_iter().filter(|(_, grant)| grant.until < now).take(CHANGES_MAX - 1);
        let key = |id: &str| Key::Grant(name.clone(), id.to_owned()).to_string();
        let mut changes: Vec<Change> = ended.map(|(id, _)| Change::delete(key(&id), Expect::Any)).collect();
        changes.push(Change::put(key(id), Expect::Absent, encode(&key(id), grant)?));
        self.commit(changes).await.map(drop)
    }

    /// Every token of a repository that is remembered, the oldest first.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn grants(&self, name: &RepositoryName) -> Result<Vec<(String, GrantRecord)>, ControlError> {
        let found = self.read_all::<GrantRecord>(&format!("grant/{name}/")).await?;
        let mut all: Vec<_> = found
            .into_iter()
            .filter_map(|(key, grant)| if let Key::Grant(_, id) = key { Some((id, grant)) } else { None })
            .collect();
        all.sort_by_key(|(_, grant)| grant.created);
        Ok(all)
    }

    /// Takes a token back.
    ///
    /// # Errors
    /// [`RepositoryError::NoGrant`]; the control state failed.
    pub async fn revoke_grant(&self, name: &RepositoryName, id: &str, now: Unix) -> Result<(), RepositoryError> {
        let none = || RepositoryError::NoGrant { name: name.clone(), id: id.to_owned() };
        let key = Key::parse(&format!("grant/{name}/{id}")).ok_or_else(none)?;
        self.update(&key, |known: Option<GrantRecord>| {
            let known = known.ok_or_else(none)?;
            Ok((Some(GrantRecord { revoked: known.revoked.or(Some(now)), ..known }), ()))
        })
        .await
    }

    /// Forgets a repository. What lies in it stays.
    ///
    /// # Errors
    /// [`RepositoryError::Unknown`]; the control state failed.
    pub async fn remove_repository(&self, name: &RepositoryName) -> Result<RepositoryRecord, RepositoryError> {
        let record = self.repository(name).await?;
        let key = Key::Repository(name.clone()).to_string();
        self.commit(vec![Change::delete(key, Expect::Any)]).await?;
        self.forget_grants(name).await?;
        Ok(record)
    }

    /// Forgets every token of a repository whose key is another one now: none of them opens anything.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn forget_grants(&self, name: &RepositoryName) -> Result<(), ControlError> {
        let all = self.grants(name).await?;
        for some in all.chunks(CHANGES_MAX) {
            let key = |id: &String| Key::Grant(name.clone(), id.clone()).to_string();
            self.commit(some.iter().map(|(id, _)| Change::delete(key(id), Expect::Any)).collect()).await?;
        }
        Ok(())
    }
}
