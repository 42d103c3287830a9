//! Who is signed in at the console. Sessions live in memory: a manager that was restarted asks for the token again.

use std::num::NonZeroUsize;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use lru::LruCache;
use proto::name::ApiTokenName;

use crate::manager::control::api_tokens::Credential;
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
    /// What its token was known by: another token of the same name is somebody else.
    credential: Credential,
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
    pub(super) fn begin(&self, name: ApiTokenName, credential: Credential) -> Result<String, NetError> {
        let secret = blake3::Hash::from_bytes(tls::random()?).to_hex().to_string();
        let now = Instant::now();
        lock(&self.0).put(key(&secret), Session { name, credential, begun: now, used: now });
        Ok(secret)
    }

    /// Whose session it is, by which credential it began, and what its forms must bear.
    pub(super) fn of(&self, secret: &str) -> Option<(ApiTokenName, Credential, String)> {
        let mut sessions = lock(&self.0);
        let session = sessions.get_mut(&key(secret))?;
        if session.used.elapsed() > IDLE_MAX || session.begun.elapsed() > SESSION_MAX {
            sessions.pop(&key(secret));
            return None;
        }
        session.used = Instant::now();
        Some((session.name.clone(), session.credential, form_key_of(secret.as_bytes())))
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

    fn begin(sessions: &Sessions, name: &str) -> String {
        sessions.begin(name.parse().unwrap(), Credential::Secret([1; 32])).unwrap()
    }

    #[test]
    fn a_session_is_its_cookies_and_ends() {
        let sessions = Sessions::default();
        let name: ApiTokenName = "on-call".parse().unwrap();
        let (one, other) = (begin(&sessions, "on-call"), begin(&sessions, "on-call"));
        let (of, _, form) = sessions.of(&one).unwrap();
        assert_eq!(of, name);
        assert_ne!(form, sessions.of(&other).unwrap().2, "a form of one is none of the other");
        assert!(!form.contains(&one) && sessions.of("").is_none());
        sessions.end(&one);
        assert!(sessions.of(&one).is_none() && sessions.of(&other).is_some());
    }

    #[test]
    fn a_session_that_nobody_uses_is_over() {
        let sessions = Sessions::default();
        let secret = begin(&sessions, "a");
        let past = |time: Duration| Instant::now().checked_sub(time + Duration::from_secs(1)).unwrap();
        lock(&sessions.0).get_mut(&key(&secret)).unwrap().used = past(IDLE_MAX);
        assert!(sessions.of(&secret).is_none());
        let secret = begin(&sessions, "a");
        lock(&sessions.0).get_mut(&key(&secret)).unwrap().begun = past(SESSION_MAX);
        assert!(sessions.of(&secret).is_none());
    }

    #[test]
    fn of_too_many_sessions_the_one_that_was_used_longest_ago_ends() {
        let sessions = Sessions::default();
        let (first, second) = (begin(&sessions, "a"), begin(&sessions, "b"));
        assert!(sessions.of(&first).is_some(), "now it was used later than the second");
        for _ in 2..=SESSIONS_MAX {
            begin(&sessions, "c");
        }
        assert_eq!(lock(&sessions.0).len(), SESSIONS_MAX);
        assert!(sessions.of(&second).is_none() && sessions.of(&first).is_some());
    }

    #[test]
    fn use_makes_a_session_young_but_does_not_make_it_last_for_ever() {
        let sessions = Sessions::default();
        let secret = begin(&sessions, "a");
        let past = |time: Duration| Instant::now().checked_sub(time).unwrap();
        for part in 1..3 {
            // Almost idle for too long, and then used.
            let mut all = lock(&sessions.0);
            let session = all.get_mut(&key(&secret)).unwrap();
            (session.used, session.begun) = (past(IDLE_MAX / 10 * 9), past(SESSION_MAX / 3 * part));
            drop(all);
            assert!(sessions.of(&secret).is_some());
            assert!(lock(&sessions.0).get(&key(&secret)).unwrap().used.elapsed() < IDLE_MAX / 2);
        }
        lock(&sessions.0).get_mut(&key(&secret)).unwrap().begun = past(SESSION_MAX + Duration::from_secs(1));
        assert!(sessions.of(&secret).is_none());
        assert_eq!(lock(&sessions.0).len(), 0, "what is over takes no place");
    }

    #[test]
    fn neither_a_cookie_nor_a_form_key_opens_the_other_way() {
        let sessions = Sessions::default();
        let secret = begin(&sessions, "a");
        let form = sessions.of(&secret).unwrap().2;
        assert!(secret.len() == 64 && form.len() == 64 && secret != form);
        assert!(sessions.of(&form).is_none(), "whoever reads a page has no session by it");
        assert_eq!(form, form_key_of(secret.as_bytes()), "every page of a sign-in bears one key");
        assert!(sessions.of(&secret.to_uppercase()).is_none() && sessions.of(&format!("{secret} ")).is_none());
        assert!(
            lock(&sessions.0).iter().all(|(kept, _)| blake3::Hash::from_bytes(*kept).to_hex().as_str() != secret)
        );
    }
}
