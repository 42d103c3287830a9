//! Programs of others that `tests/run` brings in an environment of their own.

use std::path::PathBuf;

use crate::needs::{Lack, demand};

/// Where they are, below the user's cache; `tests/machine.sh` makes it.
const TOOLS: &str = "manager-fs-tests/tools-2/bin";

/// One of them, or what is on the PATH.
///
/// # Panics
/// It is not there, which is listed.
#[track_caller]
pub fn find(name: &'static str) -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::iter::once(cache.join(TOOLS)).chain(std::env::split_paths(&path));
    let mut files = places.map(|place| place.join(name));
    let found = files.find(|file| file.is_file());
    demand(found.clone().map(drop).ok_or(Lack::Program(name)));
    found.unwrap()
}
