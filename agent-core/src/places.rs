//! Places of a host in which a new directory can change what the system, or a person on it, runs and trusts.

use std::path::{Component, Path, PathBuf};

/// What the system is made of, and what it starts or trusts: a new directory here can be a new service, a new rule of
/// who may do what, or a program. `/var/lib` is the state of programs that believe what they find there.
const SYSTEM: [&str; 24] = [
    "/bin",
    "/boot",
    "/dev",
    "/efi",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/nix",
    "/opt",
    "/proc",
    "/run",
    "/sbin",
    "/snap",
    "/sys",
    "/usr",
    "/var/cache",
    "/var/lib",
    "/var/log",
    "/var/mail",
    "/var/run",
    "/var/spool",
    "/var/www",
];

/// A path with every link in the part of it that exists resolved.
pub(crate) fn resolved(path: &Path) -> PathBuf {
    for above in path.ancestors() {
        if let Ok(real) = above.canonicalize() {
            let rest = path.strip_prefix(above).unwrap_or(Path::new(""));
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    path.to_owned()
}

/// Why a path is one where a new directory can change what the system, or a person on it, runs and trusts.
pub(crate) fn system_place(path: &Path) -> Option<&'static str> {
    if SYSTEM.iter().any(|place| path.starts_with(place)) {
        return Some("it is a place of the system");
    }
    let mut names = path.components().skip(1).map(Component::as_os_str);
    let rest: Vec<_> = match names.next().map(|name| name.to_string_lossy()).as_deref() {
        Some("root") => names.collect(),
        Some("home") => match names.next() {
            Some(_) => names.collect(),
            None => return None,
        },
        _ => return None,
    };
    match rest.first() {
        None => Some("it is somebody's home, where programs look for what they shall run and trust"),
        Some(name) if name.as_encoded_bytes().starts_with(b".") => {
            Some("it is hidden in somebody's home, where programs look for what they shall run and trust")
        }
        Some(_) => None,
    }
}
