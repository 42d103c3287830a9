//! The certificate that a media agent shows to programs that are no agents, such as a person's restic: it is the agent's
//! own, made for the address at which its repositories are served, and is told with the job that begins to serve them.
//!
//! `STATE/repositories/front-PORT.pem`: a line with the name, the certificate and its key.

use std::fs;
use std::path::{Path, PathBuf};

use agent_core::FileFault;
use agent_core::internal::durable::{self, Durability};
use rcgen::{CertificateParams, KeyPair};

/// There is no certificate to show.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrontFault {
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    #[error(transparent)]
    File(#[from] FileFault),
}

/// What is shown at a port.
#[derive(Debug, Clone)]
pub(crate) struct Front {
    /// Certificate and key.
    pub(super) pem: String,
}

impl Front {
    /// For `HOST:PORT`; made if there is none of this host.
    ///
    /// # Errors
    /// No key can be made, or kept.
    pub(crate) fn of(state: &Path, address: &str, port: u16) -> Result<Self, FrontFault> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let head = format!("for {name}");
        if let Some(found) = Self::at(state, port).filter(|found| found.pem.lines().next() == Some(&head)) {
            return Ok(found);
        }
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![name])?.self_signed(&key)?;
        let pem = format!("{head}\n{}{}", certificate.pem(), key.serialize_pem());
        durable::write(&file(state, port), pem.as_bytes(), Durability::PowerCut)?;
        Ok(Self { pem })
    }

    /// What is kept for a port.
    pub(super) fn at(state: &Path, port: u16) -> Option<Self> {
        fs::read_to_string(file(state, port)).ok().map(|pem| Self { pem })
    }

    /// The certificate as one line: the base64 of its DER.
    pub(crate) fn certificate(&self) -> String {
        let begun = self.pem.lines().skip_while(|line| !line.starts_with("-----BEGIN CERTIFICATE")).skip(1);
        begun.take_while(|line| !line.starts_with("-----")).collect()
    }
}

fn file(state: &Path, port: u16) -> PathBuf {
    state.join("repositories").join(format!("front-{port}.pem"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_made_once_for_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let of = |address: &str| Front::of(dir.path(), address, 7421).unwrap();
        let (first, again) = (of("vault.example:7421"), of("vault.example:7421"));
        assert_eq!(first.certificate(), again.certificate());
        assert!(first.certificate().starts_with("MII") && first.certificate().len() < 1024);
        assert_ne!(of("[::1]:7421").certificate(), first.certificate());
    }
}
