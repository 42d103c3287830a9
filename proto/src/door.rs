//! How an agent reaches a repository that the media agent of another host serves, and what lets it in.
//!
//! ```text
//! door    "served:" NAME "/" HOST "/" ADDRESS "/" GRANT      in the place of a repository's path
//! grant   hex( codec(Grant) | BLAKE3 keyed with the repository's door key [32] )
//! ```
//! The manager seals grants, and the serving agent opens them; nobody else has the key. What a grant says is no secret:
//! one for a host is worth nothing without that host's certificate, one for a bearer is kept like a password.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bounded::{Line, within};
use crate::codec;
use crate::limits::ADDRESS_BYTES_MAX;
use crate::name::{HostName, RepositoryName};

/// What a door begins with, so that it is never taken for a path.
const SCHEME: &str = "served:";
/// Bytes of a grant before it is sealed: two names, and some numbers.
const GRANT_BYTES_MAX: usize = 1024;
const SEAL_BYTES: usize = 32;
/// Sets these seals apart from everything else that is ever made with a key.
const CONTEXT: &str = "manager-fs 2026 grant for a served repository";

/// What the manager and the serving agent know of a repository, and nobody else.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoorKey(pub [u8; 32]);

impl fmt::Debug for DoorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DoorKey(…)")
    }
}

/// Where and how a repository is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Door {
    /// What the repository is called.
    pub repository: RepositoryName,
    /// Whose media agent serves it: the name in its certificate.
    pub host: HostName,
    /// Where that listens, `HOST:PORT`.
    pub address: String,
    /// A sealed [`Grant`].
    pub grant: String,
}

/// A text is no door.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is no way to a served repository")]
pub struct NoDoor;

impl Door {
    /// Whether a text tells a way to a repository, and so what lets somebody in.
    pub fn stands_in(text: &str) -> bool {
        text.contains(SCHEME)
    }

    /// Whether a repository's path is a door.
    pub fn is(path: &str) -> bool {
        path.starts_with(SCHEME)
    }
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}/{}/{}", self.repository, self.host, self.address, self.grant)
    }
}

impl FromStr for Door {
    type Err = NoDoor;
    fn from_str(text: &str) -> Result<Self, NoDoor> {
        let mut parts = text.strip_prefix(SCHEME).ok_or(NoDoor)?.split('/');
        let (Some(repository), Some(host), Some(address), Some(grant), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NoDoor);
        };
        Ok(Self {
            repository: repository.parse().map_err(|_| NoDoor)?,
            host: host.parse().map_err(|_| NoDoor)?,
            address: is_address(address).then(|| address.to_owned()).ok_or(NoDoor)?,
            grant: grant.to_owned(),
        })
    }
}

/// Whether a text is `HOST:PORT`, with a name or an IP address (of version 6 in brackets).
pub fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_host = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'[' | b']' | b':');
    text.len() <= ADDRESS_BYTES_MAX
        && !host.is_empty()
        && host.bytes().all(is_host)
        && (!host.contains(':') || (host.starts_with('[') && host.ends_with(']')))
        && port.parse::<u16>().is_ok_and(|port| port != 0)
}

/// What may be done in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Access {
    /// Read, and take a lock.
    Read,
    /// The same, and add. Nothing that is there is ever replaced or removed.
    Add,
}

/// Who may come.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Bearer {
    /// Agents of this host, who show its certificate. They are told the repository's password.
    Host(HostName),
    /// Whoever has the grant, and knows the password from elsewhere.
    Anyone,
}

/// What lets somebody into a served repository, for a while.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Grant {
    /// Which repository.
    pub repository: RepositoryName,
    /// Who.
    pub bearer: Bearer,
    /// What for.
    pub access: Access,
    /// Until when, milliseconds since 1970.
    pub until_unix_ms: u64,
    /// What tells two grants apart, for people: `job 00h6q-8tz4c`, say.
    #[serde(deserialize_with = "within::<_, Line<64>>")]
    pub what: String,
}

/// A grant is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantFault {
    /// It is none of this repository.
    #[error("it was not made for this repository, or is damaged")]
    Foreign,
    /// It was good once.
    #[error("it has expired")]
    Expired,
    /// It cannot be sealed.
    #[error("it cannot be written down")]
    Unfit,
}

impl Grant {
    /// Its text.
    ///
    /// # Errors
    /// [`GrantFault::Unfit`].
    pub fn seal(&self, key: &DoorKey) -> Result<String, GrantFault> {
        let body = codec::encode(self).map_err(|_| GrantFault::Unfit)?;
        let seal = seal(key, &body);
        Ok(body.iter().chain(seal.as_bytes()).map(|byte| format!("{byte:02x}")).collect())
    }

    /// Reads a grant of a repository, which holds now.
    ///
    /// # Errors
    /// It is another's, damaged, or has expired.
    pub fn open(
        text: &str,
        key: &DoorKey,
        repository: &RepositoryName,
        now_unix_ms: u64,
    ) -> Result<Self, GrantFault> {
        let bytes = from_hex(text).ok_or(GrantFault::Foreign)?;
        let (body, found) = bytes.split_last_chunk::<SEAL_BYTES>().ok_or(GrantFault::Foreign)?;
        // Compared in constant time.
        if seal(key, body) != *found {
            return Err(GrantFault::Foreign);
        }
        let grant = codec::decode::<Grant, GRANT_BYTES_MAX>(body).map_err(|_| GrantFault::Foreign)?;
        match grant {
            grant if grant.repository != *repository => Err(GrantFault::Foreign),
            grant if grant.until_unix_ms < now_unix_ms => Err(GrantFault::Expired),
            grant => Ok(grant),
        }
    }
}

fn seal(key: &DoorKey, body: &[u8]) -> blake3::Hash {
    let key = blake3::Hasher::new_derive_key(CONTEXT).update(&key.0).finalize();
    blake3::keyed_hash(key.as_bytes(), body)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let text = text.as_bytes();
    if text.len() > 2 * (GRANT_BYTES_MAX + SEAL_BYTES) || !text.len().is_multiple_of(2) {
        return None;
    }
    let digit = |digit: u8| char::from(digit).to_digit(16);
    text.chunks_exact(2).map(|pair| u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn grant() -> Grant {
        Grant {
            repository: "vault".parse().unwrap(),
            bearer: Bearer::Host("web-1".parse().unwrap()),
            access: Access::Add,
            until_unix_ms: 1000,
            what: "job 7".into(),
        }
    }

    #[test]
    fn a_grant_opens_with_its_key_for_its_repository_in_its_time() {
        let (key, vault) = (DoorKey([7; 32]), "vault".parse().unwrap());
        let text = grant().seal(&key).unwrap();
        assert_eq!(Grant::open(&text, &key, &vault, 1000), Ok(grant()));
        assert_eq!(Grant::open(&text, &key, &vault, 1001), Err(GrantFault::Expired));
        assert_eq!(Grant::open(&text, &DoorKey([8; 32]), &vault, 0), Err(GrantFault::Foreign));
        assert_eq!(Grant::open(&text, &key, &"other".parse().unwrap(), 0), Err(GrantFault::Foreign));
        for at in 0..text.len() {
            let mut forged = text.clone().into_bytes();
            forged[at] = if forged[at] == b'0' { b'1' } else { b'0' };
            let forged = String::from_utf8(forged).unwrap();
            assert_eq!(Grant::open(&forged, &key, &vault, 0), Err(GrantFault::Foreign), "digit {at}");
        }
        for wrong in ["", "0", "zz", &text[2..], &"00".repeat(4000)] {
            assert_eq!(Grant::open(wrong, &key, &vault, 0), Err(GrantFault::Foreign));
        }
    }

    proptest! {
        #[test]
        fn a_grant_that_was_changed_in_any_bit_or_cut_anywhere_is_refused(
            until_unix_ms: u64, key: [u8; 32], host in "[a-z][a-z0-9]{0,30}", what in "[ -~]{0,64}", at: prop::sample::Index,
        ) {
            let (key, vault) = (DoorKey(key), "vault".parse().unwrap());
            let bearer = Bearer::Host(host.parse().unwrap());
            let made = Grant { until_unix_ms, what, bearer, ..grant() };
            let text = made.seal(&key).unwrap();
            prop_assert_eq!(Grant::open(&text, &key, &vault, 0), Ok(made));
            let refused = |text: &str| Grant::open(text, &key, &vault, 0) == Err(GrantFault::Foreign);
            let bytes = from_hex(&text).unwrap();
            let bit = at.index(8 * bytes.len());
            let mut forged = bytes.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            prop_assert!(refused(&hex(&forged)), "bit {}", bit);
            let cut = at.index(text.len());
            prop_assert!(refused(&text[..cut]) && (cut == 0 || refused(&text[cut..])), "cut at {}", cut);
            let longer = [format!("{text}00"), format!("00{text}")];
            prop_assert!(longer.iter().all(|text| refused(text)));
            // One byte taken out, or said twice.
            let middle = bit / 8;
            prop_assert!(refused(&hex(&[&bytes[..middle], &bytes[middle + 1..]].concat())));
        }

        #[test]
        fn any_text_is_no_grant_and_any_door_is_read_as_it_is_written(text in "\\PC{0,200}", hex in "([0-9a-f]{2}){0,80}") {
            let (key, vault) = (DoorKey([7; 32]), "vault".parse().unwrap());
            prop_assert_eq!(Grant::open(&text, &key, &vault, 0), Err(GrantFault::Foreign));
            prop_assert_eq!(Grant::open(&hex, &key, &vault, 0), Err(GrantFault::Foreign));
            for text in [format!("{SCHEME}{text}"), format!("{SCHEME}a/b/{text}/{hex}"), format!("{SCHEME}a/b/c:1/{text}")] {
                if let Ok(door) = text.parse::<Door>() {
                    prop_assert_eq!(door.to_string(), text);
                }
            }
        }
    }

    #[test]
    fn a_door_is_read_as_it_is_written_and_is_no_path() {
        let door = Door {
            repository: "vault".parse().unwrap(),
            host: "media-1.example".parse().unwrap(),
            address: "[::1]:7421".into(),
            grant: "00ff".into(),
        };
        let text = door.to_string();
        assert_eq!(text, "served:vault/media-1.example/[::1]:7421/00ff");
        assert_eq!(text.parse(), Ok(door));
        assert!(Door::is(&text) && !Door::is("/served:vault"));
        assert!(Door::stands_in(&format!("{text}: not absolute")) && !Door::stands_in("main (served by vault)"));
        for bad in ["/a/b", "served:", "served:a/b/c/d", "served:a/b/c:0/d", "served:a/b/c:1", "served:a/b/c:1/d/e"] {
            assert_eq!(bad.parse::<Door>(), Err(NoDoor), "{bad}");
        }
    }

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for good in ["a:1", "127.0.0.1:65535", "media.example:7421", "[::1]:7421"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["", "a", "a:", ":1", "a:0", "a:65536", "a b:1", "::1:7", "a/b:1", "[::1:7"] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn a_key_is_not_printed() {
        assert_eq!(format!("{:?}", DoorKey([7; 32])), "DoorKey(…)");
    }
}
