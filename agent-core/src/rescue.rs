//! A host put on a version by hand, offline: the journal is written as a change-over would have written it, and the next
//! start of the stub does the rest, with a probation and a return like any other. For the day on which no agent comes up
//! and nobody can be asked.

use std::fs::File;
use std::time::Duration;

use proto::agent::ChangeId;
use proto::daemon::{Attached, DaemonReply, DaemonRequest};
use proto::{GenerationRef, Product};
use rustix::fs::FlockOperation;

use crate::bad;
use crate::control::Client;
use crate::durable::{self, FileFault};
use crate::journal::{Copies, Entry, Journal, Phase};
use crate::paths::AgentPaths;
use crate::records::{self, RecordError, Verified};
use crate::report::unix_ms;
use crate::stub;

/// The mount daemon is only asked what it has.
const SILENCE: Duration = Duration::from_secs(5);

/// A host cannot be put on a version.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RescueError {
    /// The stub would not see what is written.
    #[error("`launch {0}` runs, or what it left: end it first, rescue, and start it again")]
    Running(Product),
    /// Nobody on this host has its metadata.
    #[error("{wanted} is not saved on this host; saved are: {}", if saved.is_empty() { "none" } else { saved })]
    NotHere {
        /// What was asked for.
        wanted: GenerationRef,
        /// What could be asked for.
        saved: String,
    },
    /// More than one version is meant.
    #[error("{wanted} may be any of: {saved}")]
    Ambiguous {
        /// What was asked for.
        wanted: GenerationRef,
        /// What it may be.
        saved: String,
    },
    /// The metadata cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileFault),
}

/// What the next start of the stub will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rescued {
    /// The version that the stub starts next.
    pub to: Entry,
    /// What it returns to if that does not prove itself.
    pub last_good: Option<Entry>,
}

/// Makes `wanted` what the next start of the stub starts, on probation if there is something to return to. A mark that
/// it is bad is withdrawn: whoever does this by hand knows better.
///
/// # Errors
/// A stub runs, the version is not known here, or the journal cannot be written.
pub fn rescue(paths: &AgentPaths, wanted: &GenerationRef) -> Result<Rescued, RescueError> {
    durable::create_dir(&paths.directory())?;
    let _lock = lock(paths)?;
    let target = find(paths, wanted)?;
    let copies = Copies::read(&paths.journal());
    for said in copies.set_aside(unix_ms()) {
        tracing::warn!("{said}");
    }
    let (before, last_good) = match &copies.newest {
        Some(journal) => {
            let candidates = [Some(&journal.current), journal.last_good.as_ref()];
            // What fails at every start is no place to return to, if there is another one.
            let other = |entry: &&Entry| **entry != target.entry();
            let good = candidates.into_iter().rev().flatten().filter(other).find(|entry| {
                records::load(paths, &entry.version).is_ok() && bad::evidence(paths, &entry.tree).is_none()
            });
            (Some(journal.current.version.clone()), good.cloned())
        }
        None => (None, None),
    };
    let probation_ms = target.record.metadata.health.probation_ms;
    let phase = match &last_good {
        // The start itself is the first attempt.
        Some(_) => Phase::Probation { change: ChangeId(0), attempts: 0, probation_ms },
        None => Phase::Launching,
    };
    let reason = before.map_or("rescued by hand".to_owned(), |before| format!("rescued by hand from {before}"));
    let mut journal = Journal { last_good, phase, reason, ..Journal::first(target.entry()) };
    bad::withdraw(paths, &target.record.tree, "rescued by hand")?;
    journal.write(&paths.journal())?;
    Ok(Rescued { to: journal.current, last_good: journal.last_good })
}

fn lock(paths: &AgentPaths) -> Result<File, RescueError> {
    let path = paths.lock();
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|e| FileFault::io(&path, e))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        // The file of a lock that is held may have been removed, and made anew.
        Ok(()) if !stub::is_served(paths) => Ok(file),
        Ok(()) | Err(_) => Err(RescueError::Running(paths.product().clone())),
    }
}

/// The one saved record that is meant, or the one that the mount daemon has by that name.
fn find(paths: &AgentPaths, wanted: &GenerationRef) -> Result<Verified, RescueError> {
    let versions = records::saved(paths).into_keys();
    let saved: Vec<Verified> = versions.filter_map(|version| records::load(paths, &version).ok()).collect();
    let names = |records: &[Verified]| {
        let mut names: Vec<String> = records.iter().map(|one| one.record.name().to_string()).collect();
        names.sort();
        names.join(", ")
    };
    let meant: Vec<_> = saved
        .iter()
        .filter(|one| wanted.matches(&one.record.product, &one.record.version, &one.record.tree))
        .cloned()
        .collect();
    match meant.as_slice() {
        [one] => return Ok(one.clone()),
        [] => {}
        several => {
            let saved = names(several);
            return Err(RescueError::Ambiguous { wanted: wanted.clone(), saved });
        }
    }
    let request = DaemonRequest::Hold { generation: wanted.clone() };
    match Client::ask(&paths.daemon_socket(), &request, SILENCE) {
        Ok(DaemonReply::Attached(Attached { record: Some(record), .. })) => {
            let verified = records::believe(paths, &record)?;
            records::save(paths, &verified)?;
            Ok(verified)
        }
        _ => Err(RescueError::NotHere { wanted: wanted.clone(), saved: names(&saved) }),
    }
}
