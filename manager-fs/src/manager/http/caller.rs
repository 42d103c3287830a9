//! Who asks: somebody with a token, with a certificate, or signed in at the console; and how often strangers may try.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, COOKIE};
use lru::LruCache;
use proto::name::ApiTokenName;

use super::problem::Problem;
use super::server::Peer;
use super::sessions::{SESSION_COOKIE, Sessions, form_key_of};
use crate::manager::admin::ApiToken;
use crate::manager::control::State;
use crate::manager::control::api_tokens::{ApiTokenRecord, Credential, Role};
use crate::manager::error::ManagerError;
use crate::manager::now;
use crate::sync::lock;

/// Wrong tokens that may come from one address before it must wait.
const FAILURES_MAX: u32 = 10;
/// Each of them is forgotten after so long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(6);
/// Addresses that are remembered; of more, those that tried longest ago are forgotten.
const ADDRESSES_MAX: usize = 4096;

/// Somebody who is known.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The name of the token.
    pub(crate) name: ApiTokenName,
    /// What it may do.
    pub(crate) role: Role,
    /// By what it is known.
    pub(super) by: By,
    /// What forms must bear that are made for it; none of somebody who sends a token with every request.
    pub(crate) form_key: Option<String>,
}

impl Caller {
    /// Refuses a form without the key of its sender's sign-in.
    pub(super) fn must_have_sent(&self, form_key: Option<&str>) -> Result<(), Problem> {
        // Hashes are compared in constant time.
        let read = |key: Option<&str>| key.and_then(|key| blake3::Hash::from_hex(key).ok());
        match (read(self.form_key.as_deref()), read(form_key)) {
            (Some(wanted), Some(sent)) if wanted == sent => Ok(()),
            _ => Err(Problem::forged()),
        }
    }
}

/// By what somebody is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// A token, with every request.
    Token,
    /// A session of the console.
    Session,
    /// The certificate of the connection.
    Certificate,
}

/// The door: knows tokens, and counts strangers.
pub(super) struct Door {
    /// Of each address: failures that count, and since when.
    strangers: Mutex<LruCache<IpAddr, (u32, Instant)>>,
    pub(super) sessions: Sessions,
}

impl Default for Door {
    fn default() -> Self {
        let most = NonZeroUsize::new(ADDRESSES_MAX).unwrap_or(NonZeroUsize::MIN);
        Self { strangers: Mutex::new(LruCache::new(most)), sessions: Sessions::default() }
    }
}

impl Door {
    /// Who asks.
    pub(super) async fn caller(&self, state: &State, headers: &HeaderMap, peer: &Peer) -> Result<Caller, Problem> {
        self.may_try(peer.address)?;
        let known = self.known(state, headers, peer).await.map_err(Problem::from)?;
        match known {
            Some(caller) => {
                peer.is_known();
                Ok(caller)
            }
            None => {
                // Who shows nothing has tried nothing, and a session that has ended is nobody's fault.
                if headers.contains_key(AUTHORIZATION) || peer.certificate.is_some() {
                    self.failed(peer.address);
                }
                Err(Problem::stranger(
                    "say who you are: Authorization: Bearer TOKEN with one that `manager-fs api-token add` has \
                     printed and that has not ended, or a certificate that it was told of",
                ))
            }
        }
    }

    /// Who has this token, and what is kept of it.
    pub(super) async fn bearer(
        &self,
        state: &State,
        text: &str,
        peer: &Peer,
    ) -> Result<(Caller, Credential), Problem> {
        self.may_try(peer.address)?;
        match of_token(state, text).await.map_err(Problem::from)? {
            Some(known) => {
                peer.is_known();
                Ok(known)
            }
            None => {
                self.failed(peer.address);
                Err(Problem::stranger("this token opens nothing: it was taken back, has ended, or was never one"))
            }
        }
    }

    async fn known(&self, state: &State, headers: &HeaderMap, peer: &Peer) -> Result<Option<Caller>, ManagerError> {
        if let Some(said) = headers.get(AUTHORIZATION) {
            let token = said.to_str().ok().and_then(|said| said.strip_prefix("Bearer "));
            return match token {
                Some(token) => Ok(of_token(state, token).await?.map(|(caller, _)| caller)),
                None => Ok(None),
            };
        }
        if let Some(session) = cookie(headers, SESSION_COOKIE)
            && let Some((name, credential, form_key)) = self.sessions.of(session)
        {
            // Its token may have been taken back since, and another given of the same name.
            let is_it = |record: &ApiTokenRecord| record.credential == credential && record.is_good(now());
            let record = state.api_token(&name).await?.filter(is_it);
            return Ok(record.map(|record| Caller {
                name,
                role: record.role,
                by: By::Session,
                form_key: Some(form_key),
            }));
        }
        match peer.certificate {
            Some(shown) => of_certificate(state, shown).await,
            None => Ok(None),
        }
    }

    fn may_try(&self, address: IpAddr) -> Result<(), Problem> {
        let mut strangers = lock(&self.strangers);
        let Some((failures, since)) = strangers.get(&whose(address)).copied() else { return Ok(()) };
        if remembered(failures, since) < FAILURES_MAX {
            Ok(())
        } else {
            Err(Problem::too_often(FORGOTTEN_AFTER.as_secs()))
        }
    }

    fn failed(&self, address: IpAddr) {
        let mut strangers = lock(&self.strangers);
        let before = strangers.get(&whose(address)).map_or(0, |(failures, since)| remembered(*failures, *since));
        strangers.put(whose(address), (before.saturating_add(1), Instant::now()));
    }
}

/// Failures that still count.
fn remembered(failures: u32, since: Instant) -> u32 {
    let forgotten = since.elapsed().as_secs() / FORGOTTEN_AFTER.as_secs();
    failures.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX))
}

/// Of IPv6 the network: one machine has as many addresses there as it likes. Addresses of IPv4 that are written as those of
/// IPv6, as they come to a socket of both, are not one network.
fn whose(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(four) => IpAddr::V4(four),
        IpAddr::V6(six) => IpAddr::from((u128::from(six) >> 64 << 64).to_be_bytes()),
    }
}

async fn of_token(state: &State, text: &str) -> Result<Option<(Caller, Credential)>, ManagerError> {
    let Ok(token) = text.parse::<ApiToken>() else { return Ok(None) };
    let record = state.api_token(&token.name).await?;
    // Hashes are compared in constant time, also where there is none of that name.
    let kept = match &record {
        Some(ApiTokenRecord { credential: Credential::Secret(hash), .. }) => *hash,
        _ => [0; 32],
    };
    let is_it = token.hash() == blake3::Hash::from_bytes(kept);
    let good = record.filter(|record| is_it && record.is_good(now()));
    let caller = |record: ApiTokenRecord| {
        let known = Caller { name: token.name, role: record.role, by: By::Token, form_key: None };
        (known, record.credential)
    };
    Ok(good.map(caller))
}

async fn of_certificate(state: &State, shown: blake3::Hash) -> Result<Option<Caller>, ManagerError> {
    let all = state.api_tokens().await?.into_iter();
    let mut good = all.filter(|(_, record)| record.is_good(now()));
    let found = good.find(|(_, record)| record.credential == Credential::Certificate(*shown.as_bytes()));
    let form_key = || Some(form_key_of(shown.as_bytes()));
    Ok(found.map(|(name, record)| Caller { name, role: record.role, by: By::Certificate, form_key: form_key() }))
}

/// The value of a cookie.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(';')).find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_fails_too_often_waits_and_others_do_not() {
        let door = Door::default();
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        for _ in 0..FAILURES_MAX {
            assert!(door.may_try(one).is_ok());
            door.failed(one);
        }
        assert_eq!(door.may_try(one).map_err(|problem| (problem.status, problem.retry_after)), Err((429, Some(6))));
        assert!(door.may_try(other).is_ok());
        // One of them is forgotten after a while.
        let long_ago = Instant::now().checked_sub(FORGOTTEN_AFTER).unwrap();
        lock(&door.strangers).put(one, (FAILURES_MAX, long_ago));
        assert!(door.may_try(one).is_ok());
    }

    #[test]
    fn a_network_of_ipv6_is_one() {
        let of = |text: &str| whose(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3::4"), of("2001:db8:1:2:ffff::1"));
        assert_ne!(of("2001:db8:1:3::"), of("2001:db8:1:2::"));
        assert_ne!(of("::ffff:10.0.0.1"), of("::ffff:10.0.0.2"), "all of IPv4 is not one network");
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"), "and one address is one, however it is written");
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, "a=1; s=2".parse().unwrap());
        headers.append(COOKIE, "ss=3".parse().unwrap());
        assert_eq!(
            (cookie(&headers, "s"), cookie(&headers, "ss"), cookie(&headers, "x")),
            (Some("2"), Some("3"), None)
        );
    }
}

#[cfg(test)]
#[path = "caller_tests.rs"]
mod door_tests;
