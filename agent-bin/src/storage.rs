//! Which storage elsewhere this host may use, and what lets it in there: `STATE/storage.toml`, which the host's
//! administrator writes.
//!
//! ```toml
//! [[storage]]
//! url = "s3:https://s3.example:9000/backups"
//! access-key-id = "…"
//! secret-access-key = "…"
//! ```
//! Each entry is for one place and what lies below it. So whoever orders has no say in where a secret is sent, and neither
//! the manager nor a command line ever has one.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use proto::location::{Location, LocationFault};
use rustix::fs::OFlags;
use toml::de::{DeTable, DeValue};

/// The file's name in STATE.
const FILE: &str = "storage.toml";
/// A file that somebody writes by hand is never longer.
const BYTES_MAX: u64 = 64 << 10;

/// What lets a host in to a storage is not to be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StorageFault {
    #[error("{path}: {source}; this host's administrator says there what lets it in to {to}", path = path.display())]
    Io { path: PathBuf, to: Box<Location>, source: io::Error },
    #[error("{path} is no plain file of at most 64 KiB", path = path.display())]
    NoFile { path: PathBuf },
    #[error(
        "{path} has secrets in it and can be read by others than root and the agent's user (owner {owner}, mode \
         {mode:04o}): chmod 0600",
        path = path.display()
    )]
    NotPrivate { path: PathBuf, owner: u32, mode: u32 },
    #[error("{path}, line {line}: {what}", path = path.display())]
    Unclear { path: PathBuf, line: usize, what: String },
    #[error("{path}, entry {entry}: {fault}", path = path.display())]
    Place { path: PathBuf, entry: String, fault: LocationFault },
    #[error("{path}, entry {entry}: {what}", path = path.display())]
    Key { path: PathBuf, entry: String, what: String },
    #[error(
        "{path} has no entry for {to}: this host's administrator adds one, [[storage]] with that url or one above it",
        path = path.display()
    )]
    NoEntry { path: PathBuf, to: Box<Location> },
}

/// What lets this host in to a storage.
#[derive(Debug)]
pub(crate) enum Access {
    S3 {
        id: Secret,
        secret: Secret,
        token: Option<Secret>,
        region: String,
        authorities: Option<PathBuf>,
    },
    Rest {
        login: Option<(String, Secret)>,
        authorities: Option<PathBuf>,
    },
    /// Files of ssh's: a key without a passphrase, and whom that host must be.
    Sftp {
        identity: PathBuf,
        known_hosts: PathBuf,
    },
}

/// A text that no log and no message shows.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("Secret(…)")
    }
}

/// The entry of the place that is named, or of the nearest one above it.
///
/// # Errors
/// The file is not there, cannot be believed or understood, or has none.
pub(crate) fn access(state: &Path, to: &Location) -> Result<Access, StorageFault> {
    let path = state.join(FILE);
    let text = read(&path, to)?;
    let unclear = |line, what: String| StorageFault::Unclear { path: path.clone(), line, what };
    let table = DeTable::parse(&text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        unclear(line_of(&text, at), error.message().to_owned())
    })?;
    let mut nearest: Option<(Location, Access)> = None;
    for (key, value) in table.get_ref() {
        let line = line_of(&text, key.span().start);
        let DeValue::Array(entries) = value.get_ref() else { return Err(unclear(line, want_storage())) };
        if key.get_ref() != "storage" {
            return Err(unclear(line, want_storage()));
        }
        for entry in entries.iter() {
            let line = line_of(&text, entry.span().start);
            let DeValue::Table(entry) = entry.get_ref() else { return Err(unclear(line, want_storage())) };
            let mut keys = BTreeMap::new();
            for (key, value) in entry {
                let line = line_of(&text, key.span().start);
                let DeValue::String(value) = value.get_ref() else {
                    return Err(unclear(line, format!("{} is no text", key.get_ref())));
                };
                keys.insert(key.get_ref().to_string(), value.to_string());
            }
            let (at, access) = one(&path, keys)?;
            if to.is_within(&at) && nearest.as_ref().is_none_or(|(near, _)| near.depth() < at.depth()) {
                nearest = Some((at, access));
            }
        }
    }
    nearest
        .map(|(_, access)| access)
        .ok_or_else(|| StorageFault::NoEntry { path: path.clone(), to: Box::new(to.clone()) })
}

fn want_storage() -> String {
    "want [[storage]] with a url and what lets this host in there".to_owned()
}

/// Counted from 1.
fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
}

fn read(path: &Path, to: &Location) -> Result<String, StorageFault> {
    let fault = |source| StorageFault::Io { path: path.to_owned(), to: Box::new(to.clone()), source };
    // A FIFO in its place would be waited for.
    let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(fault)?;
    let metadata = file.metadata().map_err(fault)?;
    if !metadata.is_file() || metadata.len() > BYTES_MAX {
        return Err(StorageFault::NoFile { path: path.to_owned() });
    }
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if (owner != 0 && owner != rustix::process::geteuid().as_raw()) || mode & 0o077 != 0 {
        return Err(StorageFault::NotPrivate { path: path.to_owned(), owner, mode });
    }
    let mut text = String::new();
    file.take(BYTES_MAX).read_to_string(&mut text).map_err(fault)?;
    Ok(text)
}

/// Where an entry is for, and what it lets in.
fn one(path: &Path, mut keys: BTreeMap<String, String>) -> Result<(Location, Access), StorageFault> {
    let entry = keys.remove("url").unwrap_or_default();
    let fault = |what: String| StorageFault::Key { path: path.to_owned(), entry: entry.clone(), what };
    let at: Location = entry.parse().map_err(|fault| {
        // It may have a password in it.
        let entry = if matches!(fault, LocationFault::Secret(_)) { "(with a secret)".into() } else { entry.clone() };
        StorageFault::Place { path: path.to_owned(), entry, fault }
    })?;
    let mut take = |key: &str| keys.remove(key);
    let needs = |key: &str| fault(format!("{key} is missing"));
    let access = match &at {
        Location::Directory(_) => return Err(fault("a directory needs no entry".to_owned())),
        Location::S3 { .. } => Access::S3 {
            id: take("access-key-id").map(Secret).ok_or_else(|| needs("access-key-id"))?,
            secret: take("secret-access-key").map(Secret).ok_or_else(|| needs("secret-access-key"))?,
            token: take("session-token").map(Secret),
            region: take("region").unwrap_or_else(|| "us-east-1".to_owned()),
            authorities: take("ca-file").map(PathBuf::from),
        },
        Location::Rest { server, .. } => {
            let login = match (take("user"), take("password")) {
                (Some(user), Some(password)) => Some((user, Secret(password))),
                (None, None) => None,
                (Some(_), None) => return Err(needs("password")),
                (None, Some(_)) => return Err(needs("user")),
            };
            let is_here = server.name().parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
            if login.is_some() && !server.tls && !is_here && server.name() != "localhost" {
                return Err(fault("a password is sent by https alone".to_owned()));
            }
            Access::Rest { login, authorities: take("ca-file").map(PathBuf::from) }
        }
        Location::Sftp { .. } => {
            let mut file = |key: &str| {
                let text = take(key).ok_or_else(|| needs(key))?;
                // ssh reads more into some of them.
                let is_plain = text.starts_with('/') && !text.contains(['"', '%', '$', '\\', '\n']);
                is_plain
                    .then(|| PathBuf::from(&text))
                    .ok_or_else(|| fault(format!("{key} is an absolute path without '\"', '%', '$' and '\\'")))
            };
            Access::Sftp { identity: file("identity-file")?, known_hosts: file("known-hosts-file")? }
        }
    };
    match keys.keys().next() {
        Some(key) => Err(fault(format!("{key} means nothing here"))),
        None => Ok((at, access)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const GOOD: &str = "[[storage]]\nurl = \"s3:https://h/bucket\"\naccess-key-id = \"A\"\nsecret-access-key = \"B\"\n\
        [[storage]]\nurl = \"s3:https://h/bucket/deep\"\naccess-key-id = \"C\"\nsecret-access-key = \"D\"\nregion = \"eu\"\n\
        [[storage]]\nurl = \"rest:https://h/\"\nuser = \"u\"\npassword = \"p\"\nca-file = \"/ca\"\n";

    fn asked(text: &str, mode: u32, to: &str) -> Result<Access, StorageFault> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        access(dir.path(), &to.parse().unwrap())
    }

    #[test]
    fn the_nearest_entry_lets_in_and_no_other_place_is_told_its_secret() {
        let id = |to: &str| match asked(GOOD, 0o600, to).unwrap() {
            Access::S3 { id, region, .. } => (id.0, region),
            other => panic!("{other:?}"),
        };
        assert_eq!(id("s3:https://h/bucket/x"), ("A".to_owned(), "us-east-1".to_owned()));
        assert_eq!(id("s3:https://h/bucket/deep/x"), ("C".to_owned(), "eu".to_owned()));
        assert!(matches!(asked(GOOD, 0o600, "rest:https://h/a"), Ok(Access::Rest { login: Some(_), .. })));
        for elsewhere in
            ["s3:https://evil/bucket/x", "s3:http://h/bucket/x", "s3:https://h/other", "rest:https://h:8/"]
        {
            let fault = asked(GOOD, 0o600, elsewhere).unwrap_err();
            assert!(matches!(fault, StorageFault::NoEntry { .. }), "{fault}");
            assert!(fault.to_string().contains(elsewhere), "{fault}");
        }
    }

    #[test]
    fn a_file_that_others_can_read_or_nobody_understands_lets_nobody_in() {
        let s3 = |more: &str| format!("[[storage]]\nurl = \"s3:https://h/bucket\"\n{more}");
        let sftp = |key: &str, more: &str| {
            format!("[[storage]]\nurl = \"sftp://u@h//srv\"\nidentity-file = \"{key}\"\n{more}")
        };
        for (text, mode, word) in [
            (GOOD.to_owned(), 0o644, "chmod 0600"),
            (GOOD.to_owned(), 0o660, "chmod 0600"),
            ("[[storage]\n".to_owned(), 0o600, "line 1"),
            ("x = 1\n".to_owned(), 0o600, "[[storage]]"),
            (s3("access-key-id = 1\n"), 0o600, "line 3"),
            (s3("access-key-id = \"a\"\n"), 0o600, "secret-access-key is missing"),
            (s3("access-key-id = \"a\"\nsecret-access-key = \"b\"\nuser = \"x\"\n"), 0o600, "user means nothing"),
            ("[[storage]]\nurl = \"rest:http://h/\"\nuser = \"u\"\npassword = \"p\"\n".into(), 0o600, "https alone"),
            ("[[storage]]\nurl = \"/srv\"\n".into(), 0o600, "needs no entry"),
            (sftp("/k", ""), 0o600, "known-hosts-file is missing"),
            (sftp("k", "known-hosts-file = \"/h\"\n"), 0o600, "identity-file is an absolute path"),
            (sftp("/%k", "known-hosts-file = \"/h\"\n"), 0o600, "identity-file is an absolute path"),
            (sftp("/k", "known-hosts-file = \"/h\"\npassword = \"x\"\n"), 0o600, "password means nothing"),
            (sftp("/k", "known-hosts-file = \"/h\"\nca-file = \"/c\"\n"), 0o600, "ca-file means nothing"),
            ("[[storage]]\nurl = \"rest:https://u:hidden@h/\"\n".into(), 0o600, "no user or password"),
        ] {
            let fault = asked(&text, mode, "s3:https://h/bucket/x").unwrap_err().to_string();
            assert!(fault.contains(word) && !fault.contains("hidden"), "{fault}");
        }
        let none = access(Path::new("/nonexistent"), &"rest:https://h/srv".parse().unwrap()).unwrap_err();
        assert!(none.to_string().contains("/nonexistent/storage.toml"), "{none}");
        assert!(!format!("{:?}", asked(GOOD, 0o600, "s3:https://h/bucket").unwrap()).contains('B'));
    }
}
