//! How a host gets its certificates: by a token once, then by the one that it has.

use std::sync::Arc;

use proto::HostName;
use proto::message::{ManagerReply, PROTOCOL};

use super::connections::Connections;
use super::control::hosts::{HostError, IssuedCertificate};
use super::control::{ControlError, State};
use super::identity::{self, HostCertificate, IdentityError, ManagerIdentity};
use super::now;

/// Why a host gets no certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolmentError {
    /// The other side speaks another protocol.
    #[error("the host speaks protocol {0}, this manager {PROTOCOL}: update the older one")]
    Protocol(u16),
    /// The request for a certificate cannot be used.
    #[error(transparent)]
    Request(#[from] IdentityError),
    /// The token or the host is refused.
    #[error(transparent)]
    Host(#[from] HostError),
}

impl From<ControlError> for EnrolmentError {
    fn from(error: ControlError) -> Self {
        Self::Host(error.into())
    }
}

/// Issues hosts their first certificate for a token, and later ones for the one that they have.
pub(crate) struct Enrolment {
    pub(crate) state: Arc<State>,
    pub(crate) identity: Arc<ManagerIdentity>,
    pub(crate) connections: Arc<Connections>,
}

impl Enrolment {
    /// Enrols the host that a token names. The token is used up, unless the request is malformed.
    ///
    /// # Errors
    /// See [`EnrolmentError`].
    pub(crate) async fn enroll(
        &self,
        protocol: u16,
        secret: &[u8],
        csr: &[u8],
    ) -> Result<ManagerReply, EnrolmentError> {
        check_protocol(protocol)?;
        // A malformed request must not use the token up.
        self.identity.check_request(csr)?;
        let token = self.state.token(&identity::secret_hash(secret), now()).await?;
        let host = token.record.host.clone();
        let issued = self.identity.certify(csr, &host)?;
        self.state.enroll(&token, &record_of(&issued), now()).await?;
        // An identity that was replaced is no longer accepted, on living connections neither.
        self.connections.cut(&host, "the host was enrolled anew");
        tracing::info!(%host, "host enrolled");
        Ok(self.reply(host, issued))
    }

    /// Issues a newer certificate to a host that is known by the one with the serial number `by`.
    ///
    /// # Errors
    /// See [`EnrolmentError`].
    pub(crate) async fn renew(&self, host: &HostName, by: &str, csr: &[u8]) -> Result<ManagerReply, EnrolmentError> {
        let issued = self.identity.certify(csr, host)?;
        self.state.renewed(host, by, &record_of(&issued)).await?;
        tracing::info!(%host, "certificate renewed");
        Ok(self.reply(host.clone(), issued))
    }

    fn reply(&self, host: HostName, issued: HostCertificate) -> ManagerReply {
        ManagerReply::Certificate {
            host,
            certificate: issued.pem,
            authority: self.identity.authority().to_owned(),
            publishers: vec![self.identity.publisher().verifying_key().to_bytes()],
        }
    }
}

/// Whether the other side speaks our protocol.
///
/// # Errors
/// [`EnrolmentError::Protocol`], naming both.
pub(crate) fn check_protocol(protocol: u16) -> Result<(), EnrolmentError> {
    if protocol == PROTOCOL { Ok(()) } else { Err(EnrolmentError::Protocol(protocol)) }
}

fn record_of(issued: &HostCertificate) -> IssuedCertificate {
    IssuedCertificate { serial: issued.serial.clone(), not_after: issued.not_after }
}

#[cfg(test)]
#[path = "enrolment_tests.rs"]
mod tests;
