//! Enrolled hosts and the certificates that are accepted from them.

use std::sync::Arc;

use proto::HostName;
use proto::message::Unix;
use proto::name::Target;
use serde::{Deserialize, Serialize};

use super::super::contract::{Change, ControlError, Expect};
pub use super::refusal::{HostError, ShutOut, TokenFault};
use super::tokens::Token;
use super::{Key, State, encode};

/// Certificates of one host that are accepted at once: the newest, and those that it renewed and may still hold after a
/// crash.
const CERTIFICATES_MAX: usize = 4;

/// A host that has enrolled, and the certificates by which it is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// When it last enrolled.
    pub enrolled: Unix,
    /// The certificates that are accepted from it.
    pub certificates: Vec<IssuedCertificate>,
    /// When it was revoked; it may enrol again with a new token.
    pub revoked: Option<Unix>,
}

impl HostRecord {
    /// When the last of its certificates ends; `None`: it has none that is accepted.
    pub fn newest_certificate_ends(&self) -> Option<Unix> {
        self.certificates.iter().map(|issued| issued.not_after).max()
    }
}

/// A certificate that was issued to a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedCertificate {
    /// Its serial number, hexadecimal as in the certificate.
    pub serial: String,
    /// When it ends, milliseconds since 1970.
    pub not_after: Unix,
}

impl State {
    /// Every host that has enrolled, by name.
    pub fn hosts(&self) -> Vec<(HostName, Arc<HostRecord>)> {
        self.view.read().hosts.iter().map(|(host, record)| (host.clone(), Arc::clone(record))).collect()
    }

    /// What is known of one host; `None`: it never enrolled, or was forgotten.
    pub fn host(&self, host: &HostName) -> Option<Arc<HostRecord>> {
        self.view.read().hosts.get(host).map(Arc::clone)
    }

    /// One host, which must exist.
    ///
    /// # Errors
    /// [`HostError::Unknown`].
    pub fn known_host(&self, host: &HostName) -> Result<Arc<HostRecord>, HostError> {
        self.host(host).ok_or_else(|| HostError::Unknown(host.clone()))
    }

    /// Whether this certificate is still accepted from this host.
    ///
    /// # Errors
    /// [`HostError::ShutOut`] with the reason.
    pub fn admit(&self, host: &HostName, serial: &str) -> Result<(), HostError> {
        match self.host(host) {
            None if self.is_damaged(&Key::Host(host.clone())) => Err(shut_out(host, ShutOut::Damaged)),
            None => Err(shut_out(host, ShutOut::Unknown)),
            Some(record) if record.revoked.is_some() => Err(shut_out(host, ShutOut::Revoked)),
            Some(record) if record.certificates.iter().all(|issued| issued.serial != serial) => {
                Err(shut_out(host, ShutOut::EnrolledAnew))
            }
            Some(_) => Ok(()),
        }
    }

    /// Uses a token up and records the enrolment, in one: only the new certificate is accepted from now on.
    ///
    /// # Errors
    /// [`HostError::Token`]: someone else used the token a moment ago. The control state failed.
    pub async fn enroll(&self, token: &Token, certificate: &IssuedCertificate, now: Unix) -> Result<(), HostError> {
        let host_key = Key::Host(token.record.host.clone()).to_string();
        let record = HostRecord { enrolled: now, certificates: vec![certificate.clone()], revoked: None };
        // Whatever was there: a record that is damaged is mended so, too.
        let host = Change::put(&host_key, Expect::Any, encode(&host_key, &record)?);
        match self.commit(vec![token.used(now)?, host]).await {
            Ok(_) => Ok(()),
            Err(ControlError::Conflict { .. }) => Err(HostError::Token(TokenFault::Used)),
            Err(error) => Err(error.into()),
        }
    }

    /// Records a renewal: the old certificate stays accepted until it ends, as the host may crash before it has saved
    /// the new one. Of those that are too many the oldest go, and never the one that the host shows: it may have renewed on
    /// and on because its disk takes none of the new ones.
    ///
    /// # Errors
    /// [`HostError::ShutOut`] when the host is gone or revoked.
    pub async fn renewed(&self, host: &HostName, by: &str, certificate: &IssuedCertificate) -> Result<(), HostError> {
        self.update(&Key::Host(host.clone()), |record: Option<HostRecord>| match record {
            Some(mut record) if record.revoked.is_none() => {
                // Also those that have ended by this clock, which may be wrong today: TLS takes none that has.
                while record.certificates.len() >= CERTIFICATES_MAX {
                    let oldest = record.certificates.iter().position(|issued| issued.serial != by);
                    record.certificates.remove(oldest.unwrap_or_default());
                }
                record.certificates.push(certificate.clone());
                Ok((Some(record), ()))
            }
            _ => Err(shut_out(host, ShutOut::Revoked)),
        })
        .await
    }

    /// Revokes a host.
    ///
    /// # Errors
    /// [`HostError::Unknown`].
    pub async fn revoke(&self, host: &HostName, now: Unix) -> Result<(), HostError> {
        self.known_host(host)?;
        self.update(&Key::Host(host.clone()), |record: Option<HostRecord>| {
            Ok::<_, HostError>((
                record.map(|record| HostRecord { revoked: Some(now), certificates: Vec::new(), ..record }),
                (),
            ))
        })
        .await
    }

    /// Forgets a host: its record, its groups, the exports to itself, and what it reported. It is shut out from then on
    /// as one that never was.
    ///
    /// # Errors
    /// [`HostError::Unknown`].
    pub async fn forget_host(&self, host: &HostName) -> Result<(), HostError> {
        self.known_host(host)?;
        let target = Target::Host(host.clone());
        let mut keys = vec![Key::Host(host.clone()).to_string()];
        keys.push(Key::Labels(host.clone()).to_string());
        keys.extend(self.groups_of(host).into_iter().map(|group| Key::Member(group, host.clone()).to_string()));
        let exports = self.exports().into_iter().filter(|export| export.target == target);
        keys.extend(exports.map(|export| Key::Export(export.product, export.version, export.target).to_string()));
        keys.extend(self.keys_of_target(&target));
        self.delete_all(keys).await?;
        Ok(self.observations().forget_host(host).await?)
    }
}

fn shut_out(host: &HostName, why: ShutOut) -> HostError {
    HostError::ShutOut { host: host.clone(), why }
}
