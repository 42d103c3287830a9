//! Who is signed in at the console. Sessions live in memory: a manager that was restarted asks for the token again.

use std::num::NonZeroUsize;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use lru::LruCache;
use proto::name::ApiTokenName;

use crate::net::NetError;
use crate::net::tls;
use crate::sync::lock;

/// The cookie of a session. Its prefix makes browsers take it from this host alone, over TLS alone, for every path.
pub(super) const SESSION_COOKIE: &str = "__Host-manager-fs";
/// How long a session lives that nobody uses.
const IDLE_MAX: Duration = Duration::from_mins(30);
/// How long any lives.
const SESSION_MAX: Duration = Duration::from_hours(8);
/// Sessions at once; of more, those that were used longest ago end.
const SESSIONS_MAX: usize = 1000;

/// A session.
struct Session {
    name: ApiTokenName,
    begun: Instant,
    used: Instant,
}

/// All of them, by the hash of what their cookies hold.
pub(super) struct Sessions(Mutex<LruCache<[u8; 32], Session>>);

impl Default for Sessions {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(NonZeroUsize::new(SESSIONS_MAX).unwrap_or(NonZeroUsize::MIN))))
    }
}

impl Sessions {
    /// Begins one for whoever has this token; returns what its cookie holds.
    pub(super) fn begin(&self, name: ApiTokenName) -> Result<String, NetError> {
        let secret = blake3::Hash::from_bytes(tls::random()?).to_hex().to_string();
        let now = Instant::now();
        lock(&self.0).put(key(&secret), Session { name, begun: now, used: now });
        Ok(secret)
    }

    /// Whose session it is, and what its forms must bear.
    pub(super) fn of(&self, secret: &str) -> Option<(ApiTokenName, String)> {
        let mut sessions = lock(&self.0);
        let session = sessions.get_mut(&key(secret))?;
        if session.used.elapsed() > IDLE_MAX || session.begun.elapsed() > SESSION_MAX {
            sessions.pop(&key(secret));
            return None;
        }
        session.used = Instant::now();
        Some((session.name.clone(), form_key_of(secret.as_bytes())))
    }

    /// Ends one.
    pub(super) fn end(&self, secret: &str) {
        lock(&self.0).pop(&key(secret));
    }
}

/// What forms bear that are made for whoever has this: nobody else can make it.
pub(super) fn form_key_of(secret: &[u8]) -> String {
    static OF_THIS_PROCESS: OnceLock<[u8; 32]> = OnceLock::new();
    // Without random bytes no session begins either.
    let key = OF_THIS_PROCESS.get_or_init(|| tls::random().unwrap_or(*blake3::hash(secret).as_bytes()));
    blake3::keyed_hash(key, secret).to_hex().to_string()
}

fn key(secret: &str) -> [u8; 32] {
    *blake3::Hasher::new_derive_key("manager-fs 2026 console session").update(secret.as_bytes()).finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_its_cookies_and_ends() {
        let sessions = Sessions::default();
        let name: ApiTokenName = "on-call".parse().unwrap();
        let (one, other) = (sessions.begin(name.clone()).unwrap(), sessions.begin(name.clone()).unwrap());
        let (of, form) = sessions.of(&one).unwrap();
        assert_eq!(of, name);
        assert_ne!(form, sessions.of(&other).unwrap().1, "a form of one is none of the other");
        assert!(!form.contains(&one) && sessions.of("").is_none());
        sessions.end(&one);
        assert!(sessions.of(&one).is_none() && sessions.of(&other).is_some());
    }

    #[test]
    fn a_session_that_nobody_uses_is_over() {
        let sessions = Sessions::default();
        let secret = sessions.begin("a".parse().unwrap()).unwrap();
        let past = |time: Duration| Instant::now().checked_sub(time + Duration::from_secs(1)).unwrap();
        lock(&sessions.0).get_mut(&key(&secret)).unwrap().used = past(IDLE_MAX);
        assert!(sessions.of(&secret).is_none());
        let secret = sessions.begin("a".parse().unwrap()).unwrap();
        lock(&sessions.0).get_mut(&key(&secret)).unwrap().begun = past(SESSION_MAX);
        assert!(sessions.of(&secret).is_none());
    }
}
