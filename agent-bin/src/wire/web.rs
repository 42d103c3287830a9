//! Servers that are none of ours: HTTP in the open, or by TLS 1.3 with a certificate that somebody vouches for whom this
//! machine, or a file that its administrator names, believes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto::location::Server;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::client::{Client, Wired};
use super::timed::{Patience, Timed};

/// Where systems keep the certificates of those whom they believe: Debian, Fedora, openSUSE, Alpine.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// A bundle has some 200 KiB.
const BUNDLE_BYTES_MAX: u64 = 16 << 20;

/// A server cannot be believed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WebFault {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} has no certificate in it that can be used", path = path.display())]
    NoCertificate { path: PathBuf },
    #[error(
        "this machine has no certificates of authorities (package ca-certificates); install them, or name a file of them"
    )]
    NoBundle,
    #[error("{0} is no name that a certificate could have")]
    Name(String),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// One that is dialled when it is asked. Who vouches for it is in a file of PEM certificates; without one, whoever this
/// machine believes.
///
/// # Errors
/// There are no such certificates.
pub(crate) fn client(server: &Server, authorities: Option<&Path>, patience: Patience) -> Result<Client, WebFault> {
    let address = server.address();
    if !server.tls {
        return Ok(Client::new(patience, move |patience| Timed::dial(&address, patience).map(Wired::Plain)));
    }
    let name =
        ServerName::try_from(server.name().to_owned()).map_err(|_| WebFault::Name(server.name().to_owned()))?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(authorities)?)
        .with_no_client_auth();
    let config = Arc::new(config);
    Ok(Client::new(patience, move |patience| {
        let session = ClientConnection::new(config.clone(), name.clone()).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(session, Timed::dial(&address, patience)?);
        stream.sock.within_handshake();
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Wired::Tls(Box::new(stream)))
    }))
}

fn roots(authorities: Option<&Path>) -> Result<RootCertStore, WebFault> {
    let own = || BUNDLES.iter().map(Path::new).find(|path| path.is_file());
    let path = authorities.or_else(own).ok_or(WebFault::NoBundle)?;
    let fault = |source| WebFault::Io { path: path.to_owned(), source };
    if fs::metadata(path).map_err(fault)?.len() > BUNDLE_BYTES_MAX {
        return Err(fault(io::ErrorKind::FileTooLarge.into()));
    }
    let mut roots = RootCertStore::empty();
    // One of a bundle that is no certificate, or of a kind that is not known here, vouches for nobody.
    let text = fs::read(path).map_err(fault)?;
    let (added, _) = roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&text).flatten());
    if added == 0 { Err(WebFault::NoCertificate { path: path.to_owned() }) } else { Ok(roots) }
}
