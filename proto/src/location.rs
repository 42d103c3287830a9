//! Where a repository lies: in a directory of its host, or with a storage that the host reaches.
//!
//! ```text
//! directory   "/" …
//! s3          "s3:" ("http://" | "https://") HOST [":" PORT] "/" BUCKET ["/" PREFIX]
//! rest        "rest:" ("http://" | "https://") HOST [":" PORT] ["/" PATH]
//! sftp        "sftp://" USER "@" HOST [":" PORT] ("//" PATH | "/" PATH)
//! ```
//! The path of SFTP is one of the server with two slashes, and with one below the directory in which that user begins.
//! These are restic's own spellings. There is never a password in one, and nothing that has to be escaped: what stands
//! here is shown, logged, and part of requests that are signed.

use std::fmt;
use std::str::FromStr;

/// Bytes of a location that is no directory.
const BYTES_MAX: usize = 1024;

/// Where a repository lies.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Location {
    /// An absolute path on its host.
    Directory(String),
    /// With a server of Amazon's S3 protocol, below a prefix of a bucket.
    S3 {
        /// Who answers.
        server: Server,
        /// The bucket, which is there.
        bucket: String,
        /// Names between slashes; empty: all of the bucket.
        prefix: String,
    },
    /// With a server of restic's REST protocol.
    Rest {
        /// Who answers.
        server: Server,
        /// Names between slashes; empty: the root.
        path: String,
    },
    /// On a host that is reached by SSH.
    Sftp {
        /// Who is let in where.
        login: Login,
        /// Whether the path begins at the root; otherwise where that user begins.
        is_absolute: bool,
        /// Names between slashes, one at least.
        path: String,
    },
}

/// A user of a host that is reached by SSH.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Login {
    /// Its name there.
    pub user: String,
    /// A name, or an address (of version 6 in brackets).
    pub host: String,
    /// `None`: 22.
    pub port: Option<u16>,
}

/// An HTTP server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Server {
    /// By HTTPS.
    pub tls: bool,
    /// A name, or an address (of version 6 in brackets).
    pub host: String,
    /// `None`: the protocol's own.
    pub port: Option<u16>,
}

/// A text is no location.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocationFault {
    /// It begins like none.
    #[error(
        "'{0}' is no place for a repository: want an absolute path, s3:https://HOST/BUCKET/PREFIX, \
         rest:https://HOST/PATH or sftp://USER@HOST//PATH"
    )]
    Unknown(String),
    /// It has a user and a password in it, which are shown and logged.
    #[error("no user or password stands in '{0}': the host that uses it has them in its storage.toml")]
    Secret(&'static str),
    /// A part of it cannot be.
    #[error("'{text}': {what}")]
    Part {
        /// All of it.
        text: String,
        /// What is wrong.
        what: &'static str,
    },
}

impl Server {
    /// `HOST[:PORT]`, as a request names it.
    pub fn authority(&self) -> String {
        self.port.map_or_else(|| self.host.clone(), |port| format!("{}:{port}", self.host))
    }

    /// `HOST:PORT`, to be dialled.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port.unwrap_or(if self.tls { 443 } else { 80 }))
    }

    /// The name alone, without brackets, that a certificate has.
    pub fn name(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }
}

impl Login {
    /// The name alone, without brackets.
    pub fn name(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }
}

impl fmt::Display for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.user, self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

impl Location {
    /// Whether it is a directory of its host.
    pub fn is_directory(&self) -> bool {
        matches!(self, Location::Directory(_))
    }

    /// Whether this is the same place as another one, or lies below it.
    pub fn is_within(&self, other: &Location) -> bool {
        let below = |path: &str, above: &str| {
            let rest = path.strip_prefix(above);
            above.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        match (self, other) {
            (Location::S3 { server, bucket, prefix }, Location::S3 { server: s, bucket: b, prefix: p }) => {
                server == s && bucket == b && below(prefix, p)
            }
            (Location::Rest { server, path }, Location::Rest { server: s, path: p }) => server == s && below(path, p),
            (Location::Sftp { login, is_absolute, path }, Location::Sftp { login: l, is_absolute: a, path: p }) => {
                login == l && is_absolute == a && below(path, p)
            }
            _ => false,
        }
    }

    /// How deep it lies, in bytes.
    pub fn depth(&self) -> usize {
        match self {
            Location::S3 { prefix: path, .. } | Location::Rest { path, .. } | Location::Sftp { path, .. } => {
                path.len()
            }
            Location::Directory(path) => path.len(),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Directory(path) => f.write_str(path),
            Location::S3 { server, bucket, prefix } if prefix.is_empty() => write!(f, "s3:{server}/{bucket}"),
            Location::S3 { server, bucket, prefix } => write!(f, "s3:{server}/{bucket}/{prefix}"),
            Location::Rest { server, path } => write!(f, "rest:{server}/{path}"),
            Location::Sftp { login, is_absolute, path } => {
                write!(f, "sftp://{login}/{}{path}", if *is_absolute { "/" } else { "" })
            }
        }
    }
}

impl FromStr for Location {
    type Err = LocationFault;

    fn from_str(text: &str) -> Result<Self, LocationFault> {
        if text.starts_with('/') {
            return Ok(Location::Directory(text.to_owned()));
        }
        let fault = |what| LocationFault::Part { text: shortened(text), what };
        if text.len() > BYTES_MAX {
            return Err(fault("is longer than 1024 bytes"));
        }
        let location = if let Some(rest) = text.strip_prefix("s3:") {
            let (server, path) = web(rest, "s3").map_err(|fault| fault.of(text))?;
            let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
            if bucket.len() < 3 || bucket.len() > 63 {
                return Err(fault("a bucket follows the server, of 3 to 63 characters"));
            }
            let (bucket, prefix) = (bucket.to_owned(), prefix.to_owned());
            Location::S3 { server, bucket, prefix }
        } else if let Some(rest) = text.strip_prefix("rest:") {
            let (server, path) = web(rest, "rest").map_err(|fault| fault.of(text))?;
            Location::Rest { server, path: path.to_owned() }
        } else if let Some(rest) = text.strip_prefix("sftp:") {
            sftp(rest).map_err(|fault| fault.of(text))?
        } else {
            return Err(LocationFault::Unknown(shortened(text)));
        };
        Ok(location)
    }
}

/// What is wrong with a part of a text.
enum Wrong {
    What(&'static str),
    Secret(&'static str),
}

impl Wrong {
    fn of(self, text: &str) -> LocationFault {
        match self {
            Wrong::What(what) => LocationFault::Part { text: shortened(text), what },
            // Not even in the message.
            Wrong::Secret(kind) => LocationFault::Secret(kind),
        }
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}

/// `http(s)://HOST[:PORT][/PATH]`, and the path without slashes at its ends.
fn web<'a>(text: &'a str, kind: &'static str) -> Result<(Server, &'a str), Wrong> {
    let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
        (Some(rest), _) => (true, rest),
        (None, Some(rest)) => (false, rest),
        (None, None) => return Err(Wrong::What("want https:// or http:// and a host")),
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.contains('@') {
        return Err(Wrong::Secret(kind));
    }
    let (host, port) = host_and_port(authority)?;
    let path = path.trim_matches('/');
    must_be_names(path)?;
    Ok((Server { tls, host, port }, path))
}

/// `//USER@HOST[:PORT]`, and a path.
fn sftp(text: &str) -> Result<Location, Wrong> {
    let want = "want sftp://USER@HOST//PATH, or sftp://USER@HOST/PATH for one below that user's own directory";
    let (authority, path) = text.strip_prefix("//").and_then(|rest| rest.split_once('/')).ok_or(Wrong::What(want))?;
    let (user, place) = authority.rsplit_once('@').ok_or(Wrong::What(want))?;
    if user.contains(':') {
        return Err(Wrong::Secret("sftp"));
    }
    let is_part = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if user.is_empty() || user.len() > 64 || user.starts_with('-') || !user.bytes().all(is_part) {
        return Err(Wrong::What("this is no user"));
    }
    let (host, port) = host_and_port(place)?;
    let (is_absolute, path) = path.strip_prefix('/').map_or((false, path), |path| (true, path));
    let path = path.trim_end_matches('/');
    if path.is_empty() {
        return Err(Wrong::What("a repository has a directory of its own"));
    }
    must_be_names(path)?;
    Ok(Location::Sftp { login: Login { user: user.to_owned(), host, port }, is_absolute, path: path.to_owned() })
}

fn host_and_port(text: &str) -> Result<(String, Option<u16>), Wrong> {
    let port_at = text.rfind(':').filter(|at| !text[*at..].contains(']'));
    let (host, port) = port_at.map_or((text, None), |at| (&text[..at], Some(&text[at + 1..])));
    let number = |port: &str| port.parse::<u16>().ok().filter(|port| *port != 0 && !text.contains('+'));
    let port = port.map(|port| number(port).ok_or(Wrong::What("this is no port"))).transpose()?;
    let within = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match within {
        Some(address) => {
            address.contains(':') && address.bytes().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'))
        }
        None => {
            let is_part = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            // What begins like an option would be one to a program.
            !host.is_empty() && host.len() <= 253 && !host.starts_with('-') && host.bytes().all(is_part)
        }
    };
    if is_host { Ok((host.to_owned(), port)) } else { Err(Wrong::What("this is no host")) }
}

/// Names between slashes, of characters that mean the same to everybody.
fn must_be_names(path: &str) -> Result<(), Wrong> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'~');
    let is_name = |name: &str| !matches!(name, "" | "." | "..") && name.bytes().all(is_plain);
    if path.is_empty() || path.split('/').all(is_name) {
        Ok(())
    } else {
        Err(Wrong::What("its names are of letters, digits, '.', '-', '_' and '~', none of them empty, '.' or '..'"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Location {
        text.parse().unwrap()
    }

    #[test]
    fn every_kind_is_read_and_written_the_same() {
        for text in [
            "/srv/repository",
            "s3:https://s3.eu-central-1.amazonaws.com/bucket",
            "s3:http://127.0.0.1:9000/bucket/a/b",
            "s3:https://[::1]:9000/bucket/a",
            "rest:https://backup.example:8000/",
            "rest:http://localhost/main/x",
            "sftp://backup@store.example//srv/main",
            "sftp://backup@[::1]:2222/main",
        ] {
            assert_eq!(of(text).to_string(), text);
        }
        for (text, canonical) in [
            ("s3:https://h/bucket/", "s3:https://h/bucket"),
            ("s3:https://h/bucket/a/", "s3:https://h/bucket/a"),
            ("rest:https://h", "rest:https://h/"),
            ("rest:https://h/a/", "rest:https://h/a"),
            ("sftp://u@h//srv/a//", "sftp://u@h//srv/a"),
        ] {
            assert_eq!(of(text).to_string(), canonical);
            assert_eq!(of(text), of(canonical));
        }
        let Location::S3 { server, .. } = of("s3:https://[::1]/bucket") else { panic!() };
        assert_eq!((server.address().as_str(), server.name()), ("[::1]:443", "::1"));
        let Location::Rest { server, .. } = of("rest:http://h:81/") else { panic!() };
        assert_eq!((server.address().as_str(), server.authority().as_str()), ("h:81", "h:81"));
    }

    #[test]
    fn what_means_two_things_is_none() {
        for text in [
            "",
            "relative/path",
            "main",
            "ftp://h/x",
            "s3:h/bucket",
            "s3:https://h",
            "s3:https://h/ab",
            "s3:https://h/bucket/../other",
            "s3:https://h/bucket//a",
            "s3:https://h/bucket/a%2fb",
            "s3:https://h/bucket?x=y",
            "s3:https://h/bucket/a b",
            "s3:https:///bucket",
            "s3:https://h:0/bucket",
            "s3:https://h:+80/bucket",
            "s3:https://h:99999/bucket",
            "s3:https://[::1/bucket",
            "s3:https://[x]/bucket",
            "s3:https://h\r\nx/bucket",
            "rest:https://h/a\u{0}b",
            "s3:https://-oProxyCommand=x/bucket",
            "sftp:u@h:/srv",
            "sftp://h//srv",
            "sftp://u@h",
            "sftp://u@h/",
            "sftp://u@h//",
            "sftp://u@h//srv/../etc",
            "sftp://u@h///srv",
            "sftp://u@-oProxyCommand=x//srv",
            "sftp://-oProxyCommand=x@h//srv",
            "sftp://u u@h//srv",
            "sftp://u@h:x//srv",
            "sftp://u@h//srv/$(x)",
        ] {
            assert!(text.parse::<Location>().is_err(), "{text:?}");
        }
        assert!(format!("s3:https://h/bucket/{}", "a".repeat(2000)).parse::<Location>().is_err());
    }

    #[test]
    fn a_password_is_not_repeated() {
        for text in ["rest:https://me:secret@h/a", "s3:https://secret@h/bucket", "sftp://me:secret@h//a"] {
            let fault = text.parse::<Location>().unwrap_err();
            assert!(matches!(fault, LocationFault::Secret(_)) && !fault.to_string().contains("secret"), "{fault}");
        }
    }

    #[test]
    fn a_place_lies_within_itself_and_what_is_above_it() {
        for (inner, outer, is) in [
            ("s3:https://h/bucket/a/b", "s3:https://h/bucket/a", true),
            ("s3:https://h/bucket/a", "s3:https://h/bucket", true),
            ("s3:https://h/bucket/a", "s3:https://h/bucket/a", true),
            ("s3:https://h/bucket/ab", "s3:https://h/bucket/a", false),
            ("s3:https://h/bucket2", "s3:https://h/bucket", false),
            ("s3:http://h/bucket/a", "s3:https://h/bucket/a", false),
            ("s3:https://h:9/bucket", "s3:https://h/bucket", false),
            ("rest:https://h/a", "rest:https://h/", true),
            ("rest:https://evil/a", "rest:https://h/", false),
            ("sftp://u@h//srv/a", "sftp://u@h//srv", true),
            ("sftp://u@h//srv", "sftp://u@h/srv", false),
            ("sftp://u@h//srv/a", "sftp://v@h//srv", false),
            ("sftp://u@h:22//srv/a", "sftp://u@h//srv", false),
            ("/srv/r", "/srv", false),
        ] {
            assert_eq!(of(inner).is_within(&of(outer)), is, "{inner} in {outer}");
        }
    }
}
