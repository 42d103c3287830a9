//! TLS 1.3 between host and manager, both with certificates of the manager's own authority.
//!
//! The manager's address proves nothing and may change: hosts check that its certificate chains to the authority that
//! they pinned when they enrolled, and bears [`MANAGER_NAME`].

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore,
    ServerConfig, SignatureScheme,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::NetError;

/// The name in every manager's server certificate.
pub const MANAGER_NAME: &str = "manager.manager-fs.internal";

/// A handshake takes one round trip; a peer that needs longer is not one of ours.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a name may resolve and a connection take to be accepted.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// A connection whose peer acknowledges nothing for this long is dead (power cut, cable), milliseconds.
const UNACKNOWLEDGED_MS_MAX: u32 = 20_000;

/// A certificate with its key and the authority that signed it, PEM.
#[derive(Clone)]
pub struct TlsIdentity {
    /// The certificate chain, PEM.
    pub certificate: String,
    /// Its private key, PKCS #8.
    pub key: String,
    /// The authority's certificate: who the other side must be signed by.
    pub authority: String,
}

/// BLAKE3 of an authority's certificate (DER): what a token carries to recognise the manager.
pub type AuthorityFingerprint = [u8; 32];

/// The fingerprint of a PEM certificate.
///
/// # Errors
/// It is no PEM certificate.
pub fn fingerprint(authority: &str) -> Result<AuthorityFingerprint, NetError> {
    Ok(*blake3::hash(&certificate(authority, "authority")?).as_bytes())
}

/// What the manager listens with. A client may come without a certificate (to enrol), never with a wrong one.
///
/// # Errors
/// The identity's PEM texts cannot be used together.
pub fn server_config(identity: &TlsIdentity) -> Result<Arc<ServerConfig>, NetError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&identity.authority)?), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| NetError::Identity(format!("the authority's certificate is unusable: {error}")))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| NetError::Identity(error.to_string()))?
        .with_client_cert_verifier(verifier)
        // The authority goes along so that an enrolling host can compare its fingerprint.
        .with_single_cert(vec![identity.chain()?, certificate(&identity.authority, "authority")?], identity.key()?)
        .map_err(|error| NetError::Identity(format!("the server's certificate and key do not fit: {error}")))?;
    // A resumed session would skip the check of the certificate's validity.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// What people's programs and browsers are answered with: a certificate chain and its key, PEM. A client may show any
/// certificate; that it has its key is checked, and who that is the caller decides by its fingerprint.
///
/// # Errors
/// The chain is empty or no PEM, or the key is not its first certificate's.
pub fn web_config(chain: &str, key: &str) -> Result<Arc<ServerConfig>, NetError> {
    let unusable = |what: &str, error: &dyn std::fmt::Display| {
        NetError::Identity(format!("the {what} of the HTTP interface is unusable: {error}"))
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
    let chain = chain.map_err(|error| unusable("certificate", &error))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| unusable("key", &error))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| NetError::Identity(error.to_string()))?
        .with_client_cert_verifier(Arc::new(AnyCertificate))
        .with_single_cert(chain, key)
        .map_err(|error| unusable("certificate with its key", &error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A resumed session would show no certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Takes any certificate whose key the client has.
#[derive(Debug)]
struct AnyCertificate;

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General(String::from("TLS 1.2 is not spoken here")))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// What an enrolled host dials with.
///
/// # Errors
/// The identity's PEM texts cannot be used together.
pub fn client_config(identity: &TlsIdentity) -> Result<Arc<ClientConfig>, NetError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(&identity.authority)?), provider())
        .build()
        .map_err(|error| NetError::Identity(format!("the authority's certificate is unusable: {error}")))?;
    let mut config = client_builder(verifier)?
        .with_client_auth_cert(vec![identity.chain()?], identity.key()?)
        .map_err(|error| NetError::Identity(format!("the host's certificate and key do not fit: {error}")))?;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// What a host enrols with: no certificate yet, and of the manager nothing is known but its authority's fingerprint.
///
/// # Errors
/// Never for this provider.
pub fn enrolment_config(authority: AuthorityFingerprint) -> Result<Arc<ClientConfig>, NetError> {
    let mut config = client_builder(Arc::new(ByFingerprint { authority }))?.with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Dials the manager and shakes hands.
///
/// # Errors
/// Nobody listens there, or it is not the manager of this identity. That the *manager* refuses the host's certificate
/// only shows when the connection is used.
pub async fn connect(
    address: &str,
    config: Arc<ClientConfig>,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, NetError> {
    dial(address, MANAGER_NAME, config, explain).await
}

/// Dials and shakes hands; `explain` says why not.
pub(super) async fn dial(
    address: &str,
    name: &str,
    config: Arc<ClientConfig>,
    explain: fn(&io::Error) -> String,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, NetError> {
    let failed = |reason: String| NetError::Connect { address: address.to_owned(), reason };
    let stream = tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect(address)).await;
    let stream = stream.map_err(|_| failed(format!("nothing accepted within {CONNECT_DEADLINE:?}")))?;
    let stream = stream.map_err(|error| failed(error.to_string()))?;
    tune(&stream).map_err(|error| failed(error.to_string()))?;
    let name = ServerName::try_from(name.to_owned()).map_err(|error| failed(error.to_string()))?;
    let handshake = TlsConnector::from(config).connect(name, stream);
    let stream = tokio::time::timeout(HANDSHAKE_DEADLINE, handshake).await;
    let stream = stream.map_err(|_| failed(format!("no TLS handshake within {HANDSHAKE_DEADLINE:?}")))?;
    stream.map_err(|error| failed(explain(&error)))
}

/// A connection to a client, after the handshake.
pub type ServerStream = tokio_rustls::server::TlsStream<TcpStream>;

/// Shakes hands with a client that has just been accepted. Returns its certificate (DER), which was verified against
/// the authority, if it showed one.
///
/// # Errors
/// The client speaks no TLS 1.3, shows a certificate that is expired or not ours, or is too slow.
pub async fn accept(
    stream: TcpStream,
    config: Arc<ServerConfig>,
) -> Result<(ServerStream, Option<Vec<u8>>), NetError> {
    tune(&stream).map_err(|error| NetError::Closed(error.to_string()))?;
    let handshake = TlsAcceptor::from(config).accept(stream).into_fallible();
    match tokio::time::timeout(HANDSHAKE_DEADLINE, handshake).await {
        Ok(Ok(stream)) => {
            let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let certificate = certificate.map(|der| der.as_ref().to_vec());
            Ok((stream, certificate))
        }
        Ok(Err((error, mut stream))) => {
            // Closing with unread bytes resets the connection, and the client would never read the alert with the reason.
            let farewell = async {
                stream.shutdown().await?;
                tokio::io::copy(&mut (&mut stream).take(64 << 10), &mut tokio::io::sink()).await
            };
            let _ = tokio::time::timeout(Duration::from_secs(1), farewell).await;
            Err(NetError::Closed(explain(&error)))
        }
        Err(_) => Err(NetError::Closed(format!("no TLS handshake within {HANDSHAKE_DEADLINE:?}"))),
    }
}

/// What a manager says of a certificate whose time is not now, by its clock: TLS has one word for past and future.
pub(crate) const CERTIFICATE_EXPIRED: &str = "the manager refuses this host's certificate because it has expired";

/// What an I/O error on a connection means, for people.
pub(crate) fn explain(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::AlertReceived(AlertDescription::CertificateExpired)) => {
            format!("{CERTIFICATE_EXPIRED}: enrol the host again with a new token")
        }
        Some(rustls::Error::AlertReceived(
            AlertDescription::UnknownCA | AlertDescription::BadCertificate | AlertDescription::DecryptError,
        )) => String::from("the other side refuses our certificate: it was not issued by this manager"),
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => String::from(
            "its certificate was issued by another manager than the one this host is enrolled with: dial that one \
                 (--manager), or enrol this host with this one (`manager-fs enroll --force`)",
        ),
        Some(rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => String::from(
            "its certificate has expired by the clock of this machine: restart the manager, which makes a new one",
        ),
        Some(rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        )) => {
            String::from("its certificate is not valid yet by the clock of this machine: one of the clocks is wrong")
        }
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(other))) => other.to_string(),
        Some(other) => format!("TLS: {other}"),
        None if error.kind() == io::ErrorKind::UnexpectedEof => String::from("the peer closed it without a farewell"),
        None => error.to_string(),
    }
}

impl TlsIdentity {
    fn chain(&self) -> Result<CertificateDer<'static>, NetError> {
        certificate(&self.certificate, "identity")
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, NetError> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes())
            .map_err(|error| NetError::Identity(format!("the private key is not PEM: {error}")))
    }
}

impl std::fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsIdentity").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

pub(super) fn client_builder(
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, NetError> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| NetError::Identity(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier))
}

/// Bytes that nobody can guess.
///
/// # Errors
/// The kernel has no entropy yet.
pub fn random<const N: usize>() -> Result<[u8; N], NetError> {
    let mut bytes = [0; N];
    let filled = provider().secure_random.fill(&mut bytes);
    filled.map_err(|_| NetError::Identity(String::from("the system gave no random bytes")))?;
    Ok(bytes)
}

/// Named explicitly: a second provider anywhere in the program would make the process-wide default a panic.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certificate(pem: &str, what: &str) -> Result<CertificateDer<'static>, NetError> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| NetError::Identity(format!("the {what} certificate is not PEM: {error}")))
}

fn roots(authority: &str) -> Result<RootCertStore, NetError> {
    let mut roots = RootCertStore::empty();
    roots
        .add(certificate(authority, "authority")?)
        .map_err(|error| NetError::Identity(format!("the authority's certificate is unusable: {error}")))?;
    Ok(roots)
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(5))?;
    sockopt::set_tcp_keepcnt(stream, 2)?;
    sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS_MAX)?;
    Ok(())
}

/// Believes a server whose chain holds the authority with this fingerprint, and is valid under it.
#[derive(Debug)]
struct ByFingerprint {
    authority: AuthorityFingerprint,
}

impl ServerCertVerifier for ByFingerprint {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates.iter().find(|der| blake3::hash(der) == self.authority);
        let authority = authority.ok_or_else(|| refused("this is not the manager that printed the token"))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| refused(&error.to_string()))?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(refused("TLS 1.2 is not spoken"))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[derive(Debug)]
struct Refusal(String);

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

pub(super) fn refused(reason: &str) -> rustls::Error {
    let reason = Refusal(reason.to_owned());
    rustls::Error::InvalidCertificate(CertificateError::Other(rustls::OtherError(Arc::new(reason))))
}
