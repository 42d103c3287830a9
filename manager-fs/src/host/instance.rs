//! Which mount daemon this is, so that the manager tells a restart of it from a copy of its identity elsewhere.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use proto::message::Instance;

/// The kernel's number of this boot: random, the same for every process until the next one (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The same for every daemon with this STATE since the machine was booted. A copy of the directory is another one, and so
/// is the same directory on another machine.
pub(crate) fn of(state: &Path) -> Instance {
    let mut hasher = blake3::Hasher::new_derive_key("manager-fs 2026 daemon instance");
    hasher.update(&std::fs::read(BOOT_ID).unwrap_or_default());
    if let Ok(found) = std::fs::metadata(state) {
        hasher.update(&found.dev().to_le_bytes());
        hasher.update(&found.ino().to_le_bytes());
    }
    let mut instance = [0; 16];
    hasher.finalize_xof().fill(&mut instance);
    Instance(instance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_the_state_is_another_daemon_and_a_restart_is_the_same() {
        let (one, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(of(one.path()), of(one.path()));
        assert_ne!(of(one.path()), of(copy.path()));
    }
}
