//! `RUN/agents/<product>/asked/<id>`: the manager has asked for this job since the stub was started. What is in RUN is in
//! no copy of STATE, and the stub sweeps it when it begins. An empty file each, never synced: one that is lost costs a
//! question.

use std::fs::{self, File};
use std::io;

use proto::agent::JobId;

use crate::paths::AgentPaths;

/// Notes that the manager has asked for a job. A RUN that takes nothing is no reason not to run it.
pub(super) fn set(paths: &AgentPaths, id: JobId) {
    let made = fs::create_dir_all(paths.asked()).and_then(|()| File::create(paths.asked().join(id.0.to_string())));
    if let Err(e) = made {
        tracing::debug!(job = id.0, "after a crash it will wait to be asked for again: {e}");
    }
}

/// Whether the manager has asked for it.
pub(super) fn has(paths: &AgentPaths, id: JobId) -> bool {
    paths.asked().join(id.0.to_string()).symlink_metadata().is_ok()
}

/// It has its outcome, or was never begun.
pub(super) fn drop(paths: &AgentPaths, id: JobId) {
    // Left behind it would vouch for a job that has an outcome, which starts nothing.
    let _ = fs::remove_file(paths.asked().join(id.0.to_string()));
}

/// A stub begins: from here on only what is asked of its own agents counts.
///
/// # Errors
/// The directory cannot be removed.
pub(crate) fn sweep(paths: &AgentPaths) -> io::Result<()> {
    match fs::remove_dir_all(paths.asked()) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_counts_until_a_stub_begins() {
        let run = tempfile::tempdir().unwrap();
        let paths = AgentPaths::new("", run.path(), "agent".parse().unwrap());
        sweep(&paths).unwrap();
        for id in 1..=2 {
            set(&paths, JobId(id));
        }
        drop(&paths, JobId(1));
        assert!(!has(&paths, JobId(1)) && has(&paths, JobId(2)));
        sweep(&paths).unwrap();
        assert!(!has(&paths, JobId(2)));
        File::create(paths.asked()).unwrap();
        assert!(sweep(&paths).is_err(), "what cannot be swept is told");
    }
}
