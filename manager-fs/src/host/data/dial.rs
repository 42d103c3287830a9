//! How the host dials its manager: with the identity below STATE, which is renewed in time.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::message::{Instance, Unix};
use tokio::sync::watch;

use super::lane::Dial;
use super::link::ManagerLink;
use crate::clock::{Clock, unix_ms};
use crate::host::enroll::{self, EnrollError, Identity};
use crate::host::instance;
use crate::net::tls::CERTIFICATE_EXPIRED;
use crate::net::{self, BoxFuture, Handler, Link, NetError};
use crate::sync::lock;

/// A certificate that could not be renewed is tried again after this time.
const RENEW_PAUSE: Duration = Duration::from_secs(60);
/// Whether a certificate is due is looked at this often: a machine that was asleep, or whose clock was wrong, wakes to another
/// date than a sleep of many weeks reckoned with.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// Dials with the identity below STATE, which may be renewed in between.
pub(crate) struct TlsDial {
    state: PathBuf,
    /// From the command line; otherwise where the manager was at enrolment.
    address: Option<String>,
    last: Mutex<String>,
}

impl TlsDial {
    /// To `address`, or to where the manager was at enrolment.
    pub(crate) fn new(state: &Path, address: Option<String>, enrolled: &str) -> Arc<Self> {
        let last = Mutex::new(address.clone().unwrap_or_else(|| enrolled.to_owned()));
        Arc::new(Self { state: state.to_owned(), address, last })
    }
}

impl Dial for TlsDial {
    fn dial(&self, handler: Arc<dyn Handler>) -> BoxFuture<Result<Link, NetError>> {
        let identity = Identity::load(&self.state);
        let address = self.address.clone();
        if let (None, Ok(identity)) = (&self.address, &identity) {
            lock(&self.last).clone_from(&identity.manager);
        }
        Box::pin(async move {
            let identity = identity.map_err(|error| NetError::Identity(error.to_string()))?;
            let address = address.unwrap_or_else(|| identity.manager.clone());
            let stream = net::connect(&address, net::client_config(&identity.tls)?).await?;
            Ok(net::start(stream, handler))
        })
    }

    fn address(&self) -> String {
        lock(&self.last).clone()
    }

    fn instance(&self) -> Instance {
        instance::of(&self.state)
    }

    /// TLS says that a certificate has expired, but neither when nor what helps.
    fn explain(&self, reason: String) -> String {
        match Identity::load(&self.state) {
            Ok(identity) if identity.not_after <= unix_ms() => identity.expired(&self.address()),
            Ok(identity) if reason.contains(CERTIFICATE_EXPIRED) => identity.out_of_time(&self.address(), unix_ms()),
            _ => reason,
        }
    }
}

/// Renews the host's certificate for ever: after two thirds of its life, again and again until it succeeds.
pub(crate) async fn renew_for_ever(state: PathBuf, manager: Arc<ManagerLink>) {
    renew_when_due(&Certificate { state }, manager.clock(), manager.connections()).await;
}

/// What has to be renewed; a trait so that when it happens is tested without certificates.
trait Renewable: Sync {
    /// From when on.
    fn due(&self) -> Unix;
    /// Asks for a new one. The connection goes on; the next one is made with what is new.
    fn renew(&self, link: Link) -> BoxFuture<Result<(), EnrollError>>;
}

/// The one below STATE.
struct Certificate {
    state: PathBuf,
}

impl Renewable for Certificate {
    fn due(&self) -> Unix {
        Identity::load(&self.state).map_or(0, |identity| identity.renew_at())
    }

    fn renew(&self, link: Link) -> BoxFuture<Result<(), EnrollError>> {
        let state = self.state.clone();
        Box::pin(async move {
            let identity = enroll::renew(&link, &state).await?;
            tracing::info!(host = %identity.host, until_unix_ms = identity.not_after, "certificate renewed");
            Ok(())
        })
    }
}

async fn renew_when_due(what: &impl Renewable, clock: &Clock, mut connections: watch::Receiver<Option<Link>>) {
    loop {
        let left = Duration::from_millis(what.due().saturating_sub(clock.unix_ms()));
        if !left.is_zero() {
            // A machine that was asleep finds its connection broken: what comes after that is the moment to look.
            tokio::select! {
                () = clock.sleep(left.min(LOOK_AGAIN)) => {}
                changed = connections.changed() => if changed.is_err() { return },
            }
            continue;
        }
        let Ok(link) = connections.wait_for(Option::is_some).await.map(|link| link.clone()) else { return };
        let Some(link) = link else { continue };
        match what.renew(link).await {
            Err(error) => {
                tracing::warn!(%error, "the certificate could not be renewed");
                clock.sleep(RENEW_PAUSE).await;
            }
            Ok(()) if what.due() <= clock.unix_ms() => {
                tracing::warn!("the new certificate has ended already by the clock here, which is not the manager's");
                clock.sleep(LOOK_AGAIN).await;
            }
            Ok(()) => {}
        }
    }
}

#[cfg(test)]
#[path = "dial_tests.rs"]
mod tests;
