//! The host's identity: a key pair made here, a certificate from the manager, the trust root pinned at enrolment.
//!
//! ```text
//! STATE/identity/  host.key  host.pem  ca.pem   TLS with the manager
//!                  publishers                   keys whose generation records are believed: 64 hex digits a line
//!                  manager                      its address, HOST:PORT
//! ```
//! The directory is always replaced as a whole, so that key, certificate and trust root never come apart.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use ed25519_dalek::VerifyingKey;
use proto::HostName;
use proto::message::{Fault, HostRequest, ManagerReply, PROTOCOL, Unix};
use proto::token::Token;
use rcgen::{CertificateParams, KeyPair};
use std::sync::Arc;

use super::files::{Doing, IoFault};
use crate::net::{self, Link, NetError, RefuseAll, TlsIdentity};

/// One exchange with the manager takes milliseconds; a minute covers one that is very busy.
const DEADLINE: Duration = Duration::from_secs(60);

/// The host has no identity that it can use, or could not get one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrollError {
    /// There is none.
    #[error(
        "this host is not enrolled ({} is missing): get a token with `manager-fs token HOST` on the manager, then \
         `manager-fs enroll --manager ADDR --token-file TOKEN` here",
        directory.display()
    )]
    NotEnrolled {
        /// Where it would be.
        directory: PathBuf,
    },
    /// There is one already.
    #[error("this host is already enrolled as {name}; --force replaces its identity")]
    AlreadyEnrolled {
        /// As whom.
        name: String,
    },
    /// A file of it holds something else.
    #[error(
        "{} is damaged ({why}): restore it, or get a new token with `manager-fs token HOST` on the manager and enrol again \
         with --force",
        path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The manager does not give one.
    #[error("the manager answers: {0}")]
    Refused(Fault),
    /// The manager's answer cannot be used.
    #[error("the manager's answer is unusable: {0}")]
    Answer(String),
    /// A key pair or a request could not be made.
    #[error("making a key pair: {0}")]
    Key(#[from] rcgen::Error),
    /// The manager was not reached.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The state directory.
    #[error(transparent)]
    Io(#[from] IoFault),
}

/// An enrolled host.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The name in the certificate.
    pub host: HostName,
    /// Certificate, key, authority.
    pub tls: TlsIdentity,
    /// Whose generation records this host believes.
    pub publishers: Vec<VerifyingKey>,
    /// Where the manager was at enrolment, `HOST:PORT`.
    pub manager: String,
    /// When the certificate begins, milliseconds since 1970.
    pub not_before: Unix,
    /// When it ends, milliseconds since 1970.
    pub not_after: Unix,
}

impl Identity {
    /// Reads the identity below a state directory.
    ///
    /// # Errors
    /// The host is not enrolled, or a file of its identity is missing or damaged.
    pub fn load(state: &Path) -> Result<Self, EnrollError> {
        let directory = directory(state);
        if !directory.exists() {
            return Err(EnrollError::NotEnrolled { directory });
        }
        let read = |name: &str| {
            let path = directory.join(name);
            fs::read_to_string(&path).doing(|| format!("read {}", path.display()))
        };
        let tls = TlsIdentity { certificate: read("host.pem")?, key: read("host.key")?, authority: read("ca.pem")? };
        let (host, not_before, not_after) = describe(&tls.certificate)
            .map_err(|why| EnrollError::Damaged { path: directory.join("host.pem"), why })?;
        let manager = read("manager")?.trim().to_owned();
        Ok(Self { host, tls, publishers: publishers(state)?, manager, not_before, not_after })
    }

    /// When to ask for a new certificate: after two thirds of its life, milliseconds since 1970.
    pub fn renew_at(&self) -> Unix {
        self.not_before + (self.not_after.saturating_sub(self.not_before)) / 3 * 2
    }

    /// That the certificate has expired, and what to do, for people.
    pub(crate) fn expired(&self, manager: &str) -> String {
        let host = &self.host;
        let ended = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(self.not_after));
        format!(
            "the certificate of this host ({host}) expired at {ended}: get a new token with `manager-fs token {host}` on \
             the manager, then `manager-fs enroll --force --manager {manager} --token-file TOKEN` here"
        )
    }
}

/// Whose generation records the host believes; `launch` needs nothing else of the identity.
///
/// # Errors
/// The host is not enrolled, or the file is damaged.
pub fn publishers(state: &Path) -> Result<Vec<VerifyingKey>, EnrollError> {
    let path = directory(state).join("publishers");
    let text = fs::read_to_string(&path).doing(|| format!("read {}", path.display()))?;
    let keys = text.lines().map(|line| {
        let bytes = blake3::Hash::from_hex(line.trim()).ok()?;
        VerifyingKey::from_bytes(bytes.as_bytes()).ok()
    });
    let keys: Option<Vec<_>> = keys.collect();
    keys.filter(|keys| !keys.is_empty())
        .ok_or_else(|| EnrollError::Damaged { path, why: "it holds no publisher's key".to_owned() })
}

/// Enrols this host: the manager is recognised by the token's fingerprint before the secret is sent.
///
/// # Errors
/// The host is enrolled already and `force` is not set, the manager cannot be reached or is another one, or it refuses
/// the token. Nothing was changed then.
pub async fn enroll(state: &Path, manager: &str, token: &Token, force: bool) -> Result<Identity, EnrollError> {
    if directory(state).exists() && !force {
        let name =
            Identity::load(state).map_or_else(|_| String::from("unknown"), |identity| identity.host.to_string());
        return Err(EnrollError::AlreadyEnrolled { name });
    }
    // Before the token is spent: a directory that cannot be written would waste it.
    let fresh = make_directory(state)?;
    let enrolled = request_identity(manager, token).await;
    let (key, reply) = enrolled.inspect_err(|_| drop(fs::remove_dir_all(&fresh)))?;
    install(state, &fresh, &key, reply, manager)
}

/// Gets a new certificate, for a new key, over the host's own connection.
///
/// # Errors
/// The manager refuses, or the identity cannot be written; the old one stays in place.
pub async fn renew(link: &Link, state: &Path) -> Result<Identity, EnrollError> {
    let manager = Identity::load(state)?.manager;
    let fresh = make_directory(state)?;
    let (key, csr) = key_and_request()?;
    let reply = link.request(&HostRequest::Renew { csr }, |_| {}, DEADLINE).await;
    let reply = reply.inspect_err(|_| drop(fs::remove_dir_all(&fresh)))?;
    install(state, &fresh, &key, reply, &manager)
}

async fn request_identity(manager: &str, token: &Token) -> Result<(KeyPair, ManagerReply), EnrollError> {
    let (key, csr) = key_and_request()?;
    let stream = net::connect(manager, net::enrolment_config(token.authority)?).await?;
    let link = net::start(stream, Arc::new(RefuseAll));
    let request = HostRequest::Enroll { protocol: PROTOCOL, secret: token.secret.to_vec(), csr };
    let reply = link.request(&request, |_| {}, DEADLINE).await;
    link.close("enrolment is over");
    Ok((key, reply?))
}

fn key_and_request() -> Result<(KeyPair, Vec<u8>), EnrollError> {
    let key = KeyPair::generate()?;
    let csr = CertificateParams::default().serialize_request(&key)?.der().to_vec();
    Ok((key, csr))
}

fn directory(state: &Path) -> PathBuf {
    state.join("identity")
}

fn make_directory(state: &Path) -> Result<PathBuf, EnrollError> {
    let fresh = state.join(format!("identity.{}", std::process::id()));
    if fresh.exists() {
        fs::remove_dir_all(&fresh).doing(|| format!("remove {}", fresh.display()))?;
    }
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&fresh);
    made.doing(|| format!("create {}", fresh.display()))?;
    Ok(fresh)
}

fn install(
    state: &Path,
    fresh: &Path,
    key: &KeyPair,
    reply: ManagerReply,
    manager: &str,
) -> Result<Identity, EnrollError> {
    let installed = write_and_swap(state, fresh, key, reply, manager);
    // After a swap this is the old identity, after a failure the unfinished new one.
    if fresh.exists() {
        fs::remove_dir_all(fresh).doing(|| format!("remove {}", fresh.display()))?;
    }
    installed?;
    Identity::load(state)
}

fn write_and_swap(
    state: &Path,
    fresh: &Path,
    key: &KeyPair,
    reply: ManagerReply,
    manager: &str,
) -> Result<(), EnrollError> {
    let (certificate, authority, publishers) = match reply {
        ManagerReply::Certificate { host: _, certificate, authority, publishers } => {
            (certificate, authority, publishers)
        }
        ManagerReply::Fault(fault) => return Err(EnrollError::Refused(fault)),
        _ => return Err(EnrollError::Answer("it is no certificate".to_owned())),
    };
    if publishers.is_empty() {
        return Err(EnrollError::Answer("it names no publisher's key".to_owned()));
    }
    describe(&certificate).map_err(EnrollError::Answer)?;
    let keys: String =
        publishers.iter().map(|key| format!("{}\n", blake3::Hash::from_bytes(*key).to_hex())).collect();
    write(&fresh.join("host.key"), &key.serialize_pem())?;
    write(&fresh.join("host.pem"), &certificate)?;
    write(&fresh.join("ca.pem"), &authority)?;
    write(&fresh.join("publishers"), &keys)?;
    write(&fresh.join("manager"), &format!("{manager}\n"))?;
    fs::File::open(fresh).and_then(|dir| dir.sync_all()).doing(|| format!("sync {}", fresh.display()))?;
    let target = directory(state);
    if target.exists() {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        renameat_with(CWD, fresh, CWD, &target, RenameFlags::EXCHANGE)
            .doing(|| format!("exchange {}", target.display()))?;
    } else {
        fs::rename(fresh, &target).doing(|| format!("rename to {}", target.display()))?;
    }
    Ok(fs::File::open(state).and_then(|dir| dir.sync_all()).doing(|| format!("sync {}", state.display()))?)
}

fn write(path: &Path, text: &str) -> Result<(), EnrollError> {
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    Ok(written.doing(|| format!("write {}", path.display()))?)
}

/// Name and validity of a certificate; the error says what is wrong with it.
fn describe(pem: &str) -> Result<(HostName, Unix, Unix), String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|error| format!("no PEM: {error}"))?;
    let certificate = pem.parse_x509().map_err(|error| format!("no certificate: {error}"))?;
    let name = certificate.subject().iter_common_name().next().ok_or("the certificate names no host")?;
    let name = name.as_str().map_err(|error| format!("the certificate's name: {error}"))?;
    let host = name.parse::<HostName>().map_err(|error| format!("the certificate's name '{name}': {error}"))?;
    let ms = |seconds: i64| u64::try_from(seconds).unwrap_or(0).saturating_mul(1000);
    let validity = certificate.validity();
    Ok((host, ms(validity.not_before.timestamp()), ms(validity.not_after.timestamp())))
}
