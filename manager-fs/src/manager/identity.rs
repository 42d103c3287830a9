//! Who the manager is: certificate authority, server certificate, publisher key. What each is for: `docs/trust.md`.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use proto::HostName;
use proto::message::Unix;
use proto::token::{SECRET_BYTES, Token};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SerialNumber,
};

use crate::moments::{self, Moment};
use crate::net::tls::{self, MANAGER_NAME};
use crate::net::{NetError, TlsIdentity};

/// How long a host's certificate is valid unless told otherwise.
pub const HOST_CERTIFICATE_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// The authority outlives every host: changing it means to enrol them all again.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
/// How far a host's clock may be behind the manager's.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// Why keys or certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A key file cannot be read or written.
    #[error("{what}: {cause}")]
    Io {
        /// What was being done, and to which file.
        what: String,
        /// Why it failed.
        cause: io::Error,
    },
    /// A key file is no key.
    #[error("{} is damaged: {reason}; put back a copy of the directory keys/ as it was", path.display())]
    Damaged {
        /// The file of the manager's identity.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate cannot be made.
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// A key cannot be encoded.
    #[error("the publisher's key cannot be encoded: {0}")]
    Encode(String),
    /// What a host asks a certificate for is no request.
    #[error("the certificate request is malformed: {0}")]
    Request(String),
    /// A certificate that this manager does not issue.
    #[error("{0}")]
    Foreign(String),
    /// No random bytes, or a certificate that TLS cannot use.
    #[error(transparent)]
    Net(#[from] NetError),
}

impl IdentityError {
    fn io(what: &str, path: &Path, cause: io::Error) -> Self {
        Self::Io { what: format!("cannot {what} {}", path.display()), cause }
    }
}

/// The keys of a manager: the authority of its hosts, its own certificate, and what signs its records.
pub struct ManagerIdentity {
    authority: Issuer<'static, KeyPair>,
    authority_pem: String,
    server: TlsIdentity,
    publisher: SigningKey,
    host_lifetime: Duration,
}

/// A certificate that has just been issued.
#[derive(Debug, Clone)]
pub struct HostCertificate {
    /// The certificate, PEM: what the host stores and shows.
    pub pem: String,
    /// Its serial number, hex.
    pub serial: String,
    /// When it ends, milliseconds since 1970.
    pub not_after: Unix,
}

/// What a verified client certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The host that it was issued to.
    pub host: HostName,
    /// Its serial number, hex.
    pub serial: String,
}

impl ManagerIdentity {
    /// Reads the keys of a store, or makes them if it has none.
    ///
    /// # Errors
    /// The directory cannot be read or written, or a key in it is missing or damaged.
    pub fn open(store: &Path, host_lifetime: Duration) -> Result<Self, IdentityError> {
        let keys = store.join("keys");
        if !keys.exists() {
            create(store, &keys)?;
        }
        let read = |name: &str| {
            let path = keys.join(name);
            fs::read_to_string(&path).map_err(|cause| IdentityError::io("read", &path, cause))
        };
        let damaged = |name: &str, reason: String| IdentityError::Damaged { path: keys.join(name), reason };
        let authority_pem = read("ca.pem")?;
        let key = KeyPair::from_pem(&read("ca.key")?).map_err(|error| damaged("ca.key", error.to_string()))?;
        let authority = Issuer::from_ca_cert_pem(&authority_pem, key);
        let authority = authority.map_err(|error| damaged("ca.pem", error.to_string()))?;
        let publisher = SigningKey::from_pkcs8_pem(&read("publisher.key")?);
        let publisher = publisher.map_err(|error| damaged("publisher.key", error.to_string()))?;
        let server = server_identity(&authority, &authority_pem)?;
        Ok(Self { authority, authority_pem, server, publisher, host_lifetime })
    }

    /// What the manager listens with.
    pub fn server(&self) -> &TlsIdentity {
        &self.server
    }

    /// The authority's certificate, PEM.
    pub fn authority(&self) -> &str {
        &self.authority_pem
    }

    /// The key that signs generation records (Ed25519); hosts know its public half from their enrolment.
    pub fn publisher(&self) -> &SigningKey {
        &self.publisher
    }

    /// A new token; the manager keeps [`secret_hash`] of its secret only.
    ///
    /// # Errors
    /// No random bytes.
    pub fn token(&self) -> Result<Token, IdentityError> {
        Ok(Token { secret: tls::random::<SECRET_BYTES>()?, authority: tls::fingerprint(&self.authority_pem)? })
    }

    /// Whether [`ManagerIdentity::certify`] would take this request.
    ///
    /// # Errors
    /// The request is malformed or not signed by its own key.
    pub fn check_request(&self, csr: &[u8]) -> Result<(), IdentityError> {
        request(csr).map(drop)
    }

    /// Issues a host's certificate for the public key of a request. Everything else in the request is ignored.
    ///
    /// # Errors
    /// The request is malformed or not signed by its own key.
    pub fn certify(&self, csr: &[u8], host: &HostName) -> Result<HostCertificate, IdentityError> {
        let csr = request(csr)?;
        let now = SystemTime::now();
        let not_after = now + self.host_lifetime;
        let serial = tls::random::<16>()?.map(|byte| byte & 0x7f);
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(host.as_str());
        // Not by more than half: hosts renew after two thirds of the whole validity, which must lie in the future.
        params.not_before = (now - CLOCK_SKEW.min(self.host_lifetime / 2)).into();
        params.not_after = not_after.into();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&csr.public_key, &self.authority)?;
        // Read back, so that what is remembered is what the certificate says (leading zeros, whole seconds).
        let (peer, not_after) = parse(certificate.der())?;
        Ok(HostCertificate { pem: certificate.pem(), serial: peer.serial, not_after })
    }
}

/// Reads a client certificate that the TLS handshake has verified.
///
/// # Errors
/// It is none that this manager issues.
pub fn peer(certificate: &[u8]) -> Result<Peer, IdentityError> {
    Ok(parse(certificate)?.0)
}

/// As [`peer`], and when the certificate ends, milliseconds since 1970.
///
/// # Errors
/// As [`peer`].
pub fn peer_until(certificate: &[u8]) -> Result<(Peer, Unix), IdentityError> {
    parse(certificate)
}

/// What is stored of a token's secret.
pub fn secret_hash(secret: &[u8]) -> String {
    blake3::Hasher::new_derive_key("manager-fs 2026 enrolment token").update(secret).finalize().to_hex().to_string()
}

fn parse(certificate: &[u8]) -> Result<(Peer, Unix), IdentityError> {
    let foreign = |fault: &str, error: &dyn std::fmt::Display| IdentityError::Foreign(format!("{fault}: {error}"));
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| foreign("the certificate is malformed", &error))?;
    let mut names = certificate.subject().iter_common_name();
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err(IdentityError::Foreign(String::from("the certificate names no host, or several")));
    };
    let name = name.as_str().map_err(|error| foreign("the certificate's name is no text", &error))?;
    let host = name.parse::<HostName>().map_err(|error| foreign("the certificate's name is no host's", &error))?;
    let not_after = certificate.validity().not_after.timestamp();
    let serial = certificate.raw_serial_as_string();
    Ok((Peer { host, serial }, u64::try_from(not_after).unwrap_or(0).saturating_mul(1000)))
}

/// For `tests/fuzz`: a certificate request of a host that nobody knows yet, and a peer's certificate.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_any(der: &[u8]) -> bool {
    request(der).is_ok() | parse(der).is_ok()
}

fn request(csr: &[u8]) -> Result<CertificateSigningRequestParams, IdentityError> {
    CertificateSigningRequestParams::from_der(&csr.into()).map_err(|error| IdentityError::Request(error.to_string()))
}

fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn create(store: &Path, keys: &Path) -> Result<(), IdentityError> {
    let fresh = store.join(format!("keys.{}", std::process::id()));
    let failed = |cause| IdentityError::io("create the manager's keys in", keys, cause);
    if fresh.exists() {
        fs::remove_dir_all(&fresh).map_err(failed)?;
    }
    fs::DirBuilder::new().mode(0o700).create(&fresh).map_err(failed)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    // A name of its own, so that another manager's certificates are told apart by their issuer.
    let number = u64::from_le_bytes(tls::random::<8>()?);
    params.distinguished_name = common_name(&format!("manager-fs authority {number:016x}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + AUTHORITY_LIFETIME).into();
    let certificate = params.self_signed(&key)?;
    let publisher = SigningKey::from_bytes(&tls::random::<32>()?);
    let publisher =
        publisher.to_pkcs8_pem(LineEnding::LF).map_err(|error| IdentityError::Encode(error.to_string()))?;
    let files =
        [("ca.key", key.serialize_pem()), ("ca.pem", certificate.pem()), ("publisher.key", publisher.to_string())];
    files.iter().try_for_each(|(name, text)| write(&fresh.join(name), text)).map_err(failed)?;
    // All of them or none: a store with half of its keys would never start again.
    let sync = |directory: &Path| fs::File::open(directory)?.sync_all();
    let reached = moments::reach(Moment::KeysPut, keys);
    reached
        .and_then(|()| sync(&fresh))
        .and_then(|()| fs::rename(&fresh, keys))
        .and_then(|()| sync(store))
        .map_err(failed)
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn server_identity(authority: &Issuer<'static, KeyPair>, authority_pem: &str) -> Result<TlsIdentity, IdentityError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new([String::from(MANAGER_NAME)])?;
    params.distinguished_name = common_name(MANAGER_NAME);
    // Its key never leaves this process, so its time says nothing; and a clock that is wrong for an hour, here or on a host,
    // must not shut hosts out until somebody restarts the manager.
    params.not_before = rcgen::date_time_ymd(1970, 1, 1);
    params.not_after = rcgen::date_time_ymd(9999, 12, 31);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.signed_by(&key, authority)?;
    Ok(TlsIdentity { certificate: certificate.pem(), key: key.serialize_pem(), authority: authority_pem.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_are_made_once_and_are_private() {
        let store = tempfile::tempdir().unwrap();
        let first = ManagerIdentity::open(store.path(), HOST_CERTIFICATE_LIFETIME).unwrap();
        let second = ManagerIdentity::open(store.path(), HOST_CERTIFICATE_LIFETIME).unwrap();
        assert_eq!(first.authority(), second.authority());
        assert_eq!(first.publisher().verifying_key(), second.publisher().verifying_key());
        for name in ["ca.key", "publisher.key"] {
            let mode = fs::metadata(store.path().join("keys").join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        fs::write(store.path().join("keys/publisher.key"), "x").unwrap();
        let error = ManagerIdentity::open(store.path(), HOST_CERTIFICATE_LIFETIME).err().unwrap();
        assert!(error.to_string().contains("publisher.key"), "{error}");
    }

    #[test]
    fn the_certificate_bears_the_name_of_the_token_and_not_of_the_request() {
        let store = tempfile::tempdir().unwrap();
        let identity = ManagerIdentity::open(store.path(), HOST_CERTIFICATE_LIFETIME).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name("somebody-else");
        params.is_ca = IsCa::NoCa;
        let csr = params.serialize_request(&key).unwrap();
        let issued = identity.certify(csr.der(), &"web-1".parse().unwrap()).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(issued.pem.as_bytes()).unwrap();
        assert_eq!(peer(&pem.contents).unwrap(), Peer { host: "web-1".parse().unwrap(), serial: issued.serial });
        assert!(identity.certify(b"\x30\x03abc", &"web-1".parse().unwrap()).is_err());
    }
}
