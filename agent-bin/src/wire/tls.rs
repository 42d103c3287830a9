//! TLS 1.3 between the agents of two hosts: each shows the certificate that the manager gave its host, and believes what
//! the same authority has signed.
//!
//! A host's certificate says one thing, the host's name, which is what the other side holds against whom it wants. It is
//! the same for whoever dials and whoever listens; there are no names of machines in it, because addresses prove nothing.

use std::io;
use std::path::Path;
use std::sync::Arc;

use agent_core::internal::identity::{self, IdentityFault};
use proto::HostName;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, VerifierBuilderError, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    ServerConnection, SignatureScheme, StreamOwned,
};

use super::front::Front;
use super::timed::{Patience, Timed};

/// What agents dial by; whoever dials by another name is none.
const AGENT_NAME: &str = "media.manager-fs.internal";

/// The host's identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsFault {
    #[error(transparent)]
    Identity(#[from] IdentityFault),
    #[error("the host's {0} is no PEM: {1}")]
    Pem(&'static str, rustls::pki_types::pem::Error),
    #[error("the host's identity cannot be used: {0}")]
    Tls(#[from] Error),
    #[error("the authority's certificate cannot be used: {0}")]
    Authority(#[from] VerifierBuilderError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl Identity {
    /// Read anew for every use: the mount daemon renews it.
    fn read(state: &Path) -> Result<Self, TlsFault> {
        let certificate = |name: &str, what| {
            let pem = identity::read(state, name)?;
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| TlsFault::Pem(what, error))
        };
        let key = PrivateKeyDer::from_pem_slice(identity::read(state, "host.key")?.as_bytes());
        let mut roots = RootCertStore::empty();
        roots.add(certificate("ca.pem", "authority")?)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
        Ok(Self {
            certificate: certificate("host.pem", "certificate")?,
            key: key.map_err(|error| TlsFault::Pem("key", error))?,
            // Whoever shows none is asked for more by what it wants.
            verifier: verifier.allow_unauthenticated().build()?,
        })
    }
}

/// A connection to a media agent, after the handshake.
pub(crate) type Dialled = StreamOwned<ClientConnection, Timed>;
/// A connection that a media agent has accepted, after the handshake.
pub(crate) type Accepted = StreamOwned<ServerConnection, Timed>;

/// Dials the media agent of a host.
///
/// # Errors
/// Nobody accepts there, or it is not that host.
pub(crate) fn dial(state: &Path, host: &HostName, address: &str, patience: Patience) -> io::Result<Dialled> {
    let config = client(state, host).map_err(io::Error::other)?;
    let name = ServerName::try_from(AGENT_NAME).map_err(io::Error::other)?;
    let session = ClientConnection::new(config, name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(session, Timed::dial(address, patience)?);
    stream.sock.within_handshake();
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// Shakes hands with whoever has dialled; also returns whose host's certificate it has shown, if it has.
///
/// # Errors
/// It is too slow, speaks no TLS 1.3, or its certificate is none of the authority's.
pub(crate) fn accept(state: &Path, port: u16, stream: Timed) -> Result<(Accepted, Option<HostName>), TlsFault> {
    let session = ServerConnection::new(server(state, port)?)?;
    let mut stream = StreamOwned::new(session, stream);
    stream.sock.within_handshake();
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    let certificate = stream.conn.peer_certificates().and_then(<[_]>::first);
    let host = certificate.and_then(|certificate| name_in(certificate));
    Ok((stream, host))
}

/// What a media agent listens with.
fn server(state: &Path, port: u16) -> Result<Arc<ServerConfig>, TlsFault> {
    let own = Identity::read(state)?;
    let shown = Shown::new(own.certificate, own.key, Front::at(state, port))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(own.verifier)
        .with_cert_resolver(Arc::new(shown));
    // A session that is resumed would skip the check of the certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// What an agent dials the media agent of `host` with.
fn client(state: &Path, host: &HostName) -> Result<Arc<ClientConfig>, TlsFault> {
    let own = Identity::read(state)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(IsHost { host: host.clone(), of_authority: own.verifier }))
        .with_client_auth_cert(vec![own.certificate], own.key)?;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// The one common name of a certificate, if that is a host's.
fn name_in(certificate: &[u8]) -> Option<HostName> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let mut names = certificate.subject().iter_common_name();
    let (Some(name), None) = (names.next(), names.next()) else { return None };
    name.as_str().ok()?.parse().ok()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// What is shown: to agents the host's certificate, to others the one for this port.
#[derive(Debug)]
struct Shown {
    own: Arc<CertifiedKey>,
    front: Option<Arc<CertifiedKey>>,
}

impl Shown {
    fn new(
        certificate: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
        front: Option<Front>,
    ) -> Result<Self, TlsFault> {
        let certified = |certificate, key| CertifiedKey::from_der(vec![certificate], key, &provider()).map(Arc::new);
        let front = front.and_then(|front| {
            let pem = front.pem.as_bytes();
            let (certificate, key) = (CertificateDer::from_pem_slice(pem), PrivateKeyDer::from_pem_slice(pem));
            // Agents can do without it.
            let both = certificate.ok().zip(key.ok()).and_then(|(certificate, key)| certified(certificate, key).ok());
            both.or_else(|| {
                tracing::warn!(
                    "the certificate for programs that are no agents is damaged; `repository create` mends it"
                );
                None
            })
        });
        Ok(Self { own: certified(certificate, key)?, front })
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let front = self.front.as_ref().filter(|_| hello.server_name() != Some(AGENT_NAME));
        Some(Arc::clone(front.unwrap_or(&self.own)))
    }
}

/// Believes that the other side is one host, by a certificate that its authority gave it.
#[derive(Debug)]
struct IsHost {
    host: HostName,
    /// Hosts' certificates are made for those that dial, and are verified as such whoever shows them.
    of_authority: Arc<dyn ClientCertVerifier>,
}

impl ServerCertVerifier for IsHost {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.of_authority.verify_client_cert(certificate, between, now)?;
        if name_in(certificate).as_ref() == Some(&self.host) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::NotValidForName.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.of_authority.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.of_authority.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.of_authority.supported_verify_schemes()
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
pub(crate) mod tests;
