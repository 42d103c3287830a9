//! The host's identity: a key pair made here, a certificate from the manager, the trust root pinned at enrolment.
//!
//! ```text
//! STATE/identity/  host.key  host.pem  ca.pem   TLS with the manager
//!                  publishers                   keys whose generation records are believed: 64 hex digits a line
//!                  manager                      its address, HOST:PORT
//! ```
//! The directory is always replaced as a whole, so that key, certificate and trust root never come apart, and holds every
//! file twice ([`agent_core::internal::identity`]).

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use agent_core::FileFault;
use agent_core::internal::identity::{self, IdentityFault, directory};
use agent_core::internal::report::unix_ms;
use proto::HostName;
use proto::PublisherKey;
use proto::message::{Fault, HostRequest, ManagerReply, PROTOCOL, Unix};
use proto::name::NameError;
use proto::token::Token;
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use std::sync::Arc;

use super::files::{Doing, IoFault};
use crate::moments::{self, Moment};
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
        "{} and its second copy are damaged ({why}): restore one of them, or get a new token with `manager-fs token HOST` on \
         the manager and enrol again with `manager-fs enroll --force`; until then nothing new is believed here",
        path.display()
    )]
    Damaged {
        /// The file of the identity that is damaged.
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
    /// A file of the identity.
    #[error(transparent)]
    File(#[from] FileFault),
}

/// Why it cannot be said any more whose generation records this host believes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoPublishers(String);

impl From<EnrollError> for NoPublishers {
    fn from(error: EnrollError) -> Self {
        Self(error.to_string())
    }
}

/// What is wrong with a certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateFault {
    /// It is not the text that it should be.
    #[error("no PEM: {0}")]
    Pem(#[from] x509_parser::nom::Err<x509_parser::error::PEMError>),
    /// There is something else in the text.
    #[error("no certificate: {0}")]
    X509(#[from] x509_parser::nom::Err<x509_parser::error::X509Error>),
    /// It is nobody's.
    #[error("the certificate names no host")]
    NoName,
    /// The name is no text.
    #[error("the certificate's name: {0}")]
    NotText(x509_parser::error::X509Error),
    /// It is not a host's.
    #[error("the certificate's name '{name}': {fault}")]
    Name {
        /// The name.
        name: String,
        /// Why no host has it.
        fault: NameError,
    },
}

/// Who an enrolled host is, and whom it believes: what lies in `STATE/identity`.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The name in the certificate.
    pub host: HostName,
    /// Its certificate and key, and the authority that its manager's certificate is from.
    pub tls: TlsIdentity,
    /// Whose generation records this host believes, or why it cannot be said any more: the rest of the identity is good
    /// without it.
    pub publishers: Result<Vec<PublisherKey>, NoPublishers>,
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
    /// The host is not enrolled, or a file of its identity is damaged in both copies.
    pub fn load(state: &Path) -> Result<Self, EnrollError> {
        let read = |name: &str| identity::read(state, name);
        let tls = TlsIdentity { certificate: read("host.pem")?, key: read("host.key")?, authority: read("ca.pem")? };
        let (host, not_before, not_after) = describe(&tls.certificate).map_err(|fault| EnrollError::Damaged {
            path: directory(state).join("host.pem"),
            why: fault.to_string(),
        })?;
        let manager = read("manager")?.trim().to_owned();
        let publishers = publishers(state).map_err(NoPublishers::from);
        Ok(Self { host, tls, publishers, manager, not_before, not_after })
    }

    /// When to ask for a new certificate: after two thirds of its life, milliseconds since 1970.
    pub fn renew_at(&self) -> Unix {
        self.not_before + (self.not_after.saturating_sub(self.not_before)) / 3 * 2
    }

    /// That the manager refuses the certificate although it is not `now` that it ends, and what to do, for people.
    pub(crate) fn out_of_time(&self, manager: &str, now: Unix) -> String {
        let date = |ms| humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(ms));
        let (host, from, to, here) = (&self.host, date(self.not_before), date(self.not_after), date(now));
        let what = format!("the manager refuses the certificate of this host ({host}), good from {from} to {to}");
        let again = format!(
            "a new token with `manager-fs token {host}` on the manager, then `manager-fs enroll --force --manager {manager} \
             --token-file TOKEN` here"
        );
        if self.not_before > now {
            format!(
                "{what}: by the clock here ({here}) it has not begun. One of the clocks is wrong, or was when it was issued; \
                 if both are right now: {again}"
            )
        } else {
            format!(
                "{what}, because its own clock is not between these: here it is {here}. Set the clock of the manager's \
                 machine right; this host then comes back by itself"
            )
        }
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
/// The host is not enrolled, or the file is damaged in both copies.
pub fn publishers(state: &Path) -> Result<Vec<PublisherKey>, EnrollError> {
    Ok(identity::publishers(state)?.keys().to_vec())
}

impl From<IdentityFault> for EnrollError {
    fn from(fault: IdentityFault) -> Self {
        match fault {
            IdentityFault::NotEnrolled(directory) => EnrollError::NotEnrolled { directory },
            IdentityFault::Damaged { path, why } => EnrollError::Damaged { path, why },
            IdentityFault::File(fault) => EnrollError::File(fault),
            other => EnrollError::Answer(other.to_string()),
        }
    }
}

/// Whether there is an identity at all, damaged or not.
///
/// # Errors
/// [`EnrollError::NotEnrolled`].
pub fn is_enrolled(state: &Path) -> Result<(), EnrollError> {
    let directory = directory(state);
    if directory.exists() { Ok(()) } else { Err(EnrollError::NotEnrolled { directory }) }
}

/// What a host goes by: its identity or, where that is damaged, as much as can be read of it. What is local is served all the
/// same; a host must not be without its agents because one file of many cannot be read.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) host: HostName,
    pub(crate) manager: String,
    pub(crate) publishers: Result<Vec<PublisherKey>, NoPublishers>,
}

impl Known {
    /// Reads it, says aloud what is wrong, and mends what can be.
    ///
    /// # Errors
    /// The host is not enrolled.
    pub(crate) fn of(state: &Path) -> Result<Self, EnrollError> {
        let known = match Identity::load(state) {
            Ok(identity) => {
                for said in identity::mend(state, unix_ms()) {
                    tracing::warn!("{said}");
                }
                Self { host: identity.host, manager: identity.manager, publishers: identity.publishers }
            }
            Err(fault @ EnrollError::NotEnrolled { .. }) => return Err(fault),
            Err(fault) => {
                tracing::error!(%fault, "this host goes on without its manager, with what is local");
                let certificate = identity::read(state, "host.pem").ok();
                let host = certificate.and_then(|pem| describe(&pem).ok()).map(|(host, _, _)| host);
                Self {
                    host: host.or_else(|| "unknown".parse().ok()).ok_or(fault)?,
                    manager: identity::read(state, "manager").map(|text| text.trim().to_owned()).unwrap_or_default(),
                    publishers: publishers(state).map_err(NoPublishers::from),
                }
            }
        };
        if let Err(why) = &known.publishers {
            tracing::error!("{why}; start the mount daemon again afterwards");
        }
        Ok(known)
    }
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
    let directory = state.to_owned();
    let fresh = on_a_thread(move || make_directory(&directory)).await?;
    let enrolled = request_identity(manager, token).await;
    let (key, reply) = enrolled.inspect_err(|_| drop(fs::remove_dir_all(&fresh)))?;
    let (state, manager) = (state.to_owned(), manager.to_owned());
    on_a_thread(move || install(&state, &fresh, &key, certificate_of(reply), &manager)).await
}

/// Gets a new certificate, for a new key, over the host's own connection. Nothing else of the identity changes: whom this host
/// believes was settled at enrolment, and whoever answers a renewal has proved no more than that he has the authority's key.
///
/// # Errors
/// The manager refuses, its certificate is not for this host and this key, or the identity cannot be written; the old one stays
/// in place.
pub async fn renew(link: &Link, state: &Path) -> Result<Identity, EnrollError> {
    let begin = {
        let state = state.to_owned();
        move || Ok((Identity::load(&state)?, make_directory(&state)?, key_and_request()?))
    };
    let (now, fresh, (key, csr)) = on_a_thread(begin).await?;
    let reply = link.request(&HostRequest::Renew { csr }, |_| {}, DEADLINE).await;
    let state = state.to_owned();
    let installed = move || {
        let believed = now.publishers.as_ref().map_err(|why| EnrollError::Answer(why.to_string()));
        let issued = reply.map_err(EnrollError::from).and_then(certificate_of).and_then(|issued| {
            check_issued(&issued.certificate, &now.host, &key)?;
            // With a new certificate the directory is replaced, and what was damaged would be lost for good.
            let believed = believed?;
            let given = (issued.authority != now.tls.authority) || (issued.publishers != key_bytes(believed));
            if given {
                tracing::warn!(
                    "the manager's answer to a renewal names other keys to believe; they are not believed"
                );
            }
            let (authority, publishers) = (now.tls.authority.clone(), key_bytes(believed));
            Ok(Issued { certificate: issued.certificate, authority, publishers })
        });
        install(&state, &fresh, &key, issued, &now.manager)
    };
    on_a_thread(installed).await
}

/// What a manager gives to a host.
struct Issued {
    certificate: String,
    authority: String,
    publishers: Vec<[u8; 32]>,
}

fn certificate_of(reply: ManagerReply) -> Result<Issued, EnrollError> {
    match reply {
        ManagerReply::Certificate { host: _, certificate, authority, publishers } => {
            if publishers.is_empty() {
                return Err(EnrollError::Answer("it names no publisher's key".to_owned()));
            }
            describe(&certificate).map_err(|fault| EnrollError::Answer(fault.to_string()))?;
            Ok(Issued { certificate, authority, publishers })
        }
        ManagerReply::Fault(fault) => Err(EnrollError::Refused(fault)),
        _ => Err(EnrollError::Answer("it is no certificate".to_owned())),
    }
}

/// A certificate must be this host's, and of the key that was made for it: with any other the host could not connect again.
fn check_issued(certificate: &str, host: &HostName, key: &KeyPair) -> Result<(), EnrollError> {
    let (named, _, _) = describe(certificate).map_err(|fault| EnrollError::Answer(fault.to_string()))?;
    if named != *host {
        return Err(EnrollError::Answer(format!("its certificate is for the host {named}, and this is {host}")));
    }
    let of_key = x509_parser::pem::parse_x509_pem(certificate.as_bytes()).ok().and_then(|(_, pem)| {
        let certificate = pem.parse_x509().ok()?;
        Some(certificate.public_key().raw == key.subject_public_key_info().as_slice())
    });
    match of_key {
        Some(true) => Ok(()),
        _ => Err(EnrollError::Answer("its certificate is for another key".to_owned())),
    }
}

fn key_bytes(keys: &[PublisherKey]) -> Vec<[u8; 32]> {
    keys.iter().map(PublisherKey::to_bytes).collect()
}

/// Files are written, and synced, where nobody waits for anything else.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EnrollError> + Send + 'static,
) -> Result<T, EnrollError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(EnrollError::Answer(format!("installing it failed inside: {error}"))),
    }
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
    issued: Result<Issued, EnrollError>,
    manager: &str,
) -> Result<Identity, EnrollError> {
    let installed = issued.and_then(|issued| write_and_swap(state, fresh, key, &issued, manager));
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
    issued: &Issued,
    manager: &str,
) -> Result<(), EnrollError> {
    let Issued { certificate, authority, publishers } = issued;
    let keys: String =
        publishers.iter().map(|key| format!("{}\n", blake3::Hash::from_bytes(*key).to_hex())).collect();
    let (key, manager) = (key.serialize_pem(), format!("{manager}\n"));
    let files: [(&str, &str); 5] = [
        ("host.key", &key),
        ("host.pem", certificate),
        ("ca.pem", authority),
        (identity::PUBLISHERS, &keys),
        ("manager", &manager),
    ];
    identity::write(fresh, &files)?;
    fs::File::open(fresh).and_then(|dir| dir.sync_all()).doing(|| format!("sync {}", fresh.display()))?;
    let target = directory(state);
    moments::reach(Moment::IdentityPut, &target).doing(|| format!("rename to {}", target.display()))?;
    if target.exists() {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        renameat_with(CWD, fresh, CWD, &target, RenameFlags::EXCHANGE)
            .doing(|| format!("exchange {}", target.display()))?;
    } else {
        fs::rename(fresh, &target).doing(|| format!("rename to {}", target.display()))?;
    }
    Ok(fs::File::open(state).and_then(|dir| dir.sync_all()).doing(|| format!("sync {}", state.display()))?)
}

/// Name and validity of a certificate.
fn describe(pem: &str) -> Result<(HostName, Unix, Unix), CertificateFault> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes())?;
    let certificate = pem.parse_x509()?;
    let name = certificate.subject().iter_common_name().next().ok_or(CertificateFault::NoName)?;
    let name = name.as_str().map_err(CertificateFault::NotText)?;
    let host = name.parse::<HostName>();
    let host = host.map_err(|fault| CertificateFault::Name { name: name.to_owned(), fault })?;
    let ms = |seconds: i64| u64::try_from(seconds).unwrap_or(0).saturating_mul(1000);
    let validity = certificate.validity();
    Ok((host, ms(validity.not_before.timestamp()), ms(validity.not_after.timestamp())))
}
