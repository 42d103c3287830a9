//! What a backup makes: a snapshot that says of whom, by whom and of what it is, and what was counted.

use std::path::PathBuf;

use proto::backup::BackupCounts;
use rustic_core::repofile::{SnapshotFile, SnapshotSummary};
use rustic_core::{SnapshotOptions, jiff};

use super::super::archive::Seen;
use super::super::fault::EngineError;
use super::super::format::id::Id;
use super::super::format::packs::Added;
use super::super::snapshots::{OURS, Snapshot, Snapshots};
use super::super::{Mark, Work};

/// Refuses a tag by which a snapshot would say of itself what only the agent knows.
pub(super) fn must_be_free(tag: &str) -> Result<(), EngineError> {
    let fault = |why| Err(EngineError::Tag(tag.to_owned(), why));
    match tag {
        _ if tag.contains(',') => fault("a comma separates tags"),
        OURS => fault("snapshots of agents have it"),
        _ if ["job-", "product:", "policy:"].iter().any(|own| tag.starts_with(own)) => {
            fault("the agent itself says that of its snapshots")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
thread_local! {
    /// How much the clock of snapshots is ahead of the right one, in tests in which months pass.
    pub(super) static AHEAD_SECONDS: std::cell::Cell<i64> = const { std::cell::Cell::new(0) };
}

/// What the clock says by which snapshots are dated.
pub(super) fn now() -> jiff::Zoned {
    #[cfg(test)]
    return jiff::Zoned::now().saturating_add(jiff::SignedDuration::from_secs(AHEAD_SECONDS.get()));
    #[cfg(not(test))]
    jiff::Zoned::now()
}

pub(super) fn total_bytes(snapshot: &Snapshot) -> u64 {
    snapshot.file.summary.as_ref().map_or(0, |summary| summary.total_bytes_processed)
}

pub(super) fn new_snapshot(mark: &Mark, sources: &[PathBuf], parent: Option<&Snapshot>) -> SnapshotFile {
    // The library's options would ask the machine for its name, which may be a clone's.
    let mut file = SnapshotOptions::default().host(mark.origin.host.to_string()).to_snapshot().unwrap_or_default();
    file.hostname = mark.origin.host.to_string();
    file.time = now();
    file.program_version = concat!("manager-fs ", env!("CARGO_PKG_VERSION")).to_owned();
    file.tags.add(job_tag(mark.job));
    file.tags.add(OURS.to_owned());
    file.tags.add(format!("product:{}", mark.origin.product));
    if let Some(policy) = &mark.origin.policy {
        file.tags.add(format!("policy:{policy}"));
    }
    for source in sources {
        file.paths.add(source.to_string_lossy().into_owned());
    }
    file.parent = parent.and_then(|parent| parent.id.to_string().parse().ok());
    file
}

pub(super) fn finish_snapshot(file: &mut SnapshotFile, tree: &Id, seen: &Seen, added: &Added) {
    // An id of ours is always one of the library's.
    file.tree = tree.to_string().parse().unwrap_or_default();
    let mut summary = SnapshotSummary::default();
    (summary.files_new, summary.files_changed) = (seen.files_new, seen.files_changed);
    summary.files_unmodified = seen.files_unmodified;
    (summary.dirs_new, summary.dirs_changed) = (seen.dirs_new, seen.dirs_changed);
    summary.dirs_unmodified = seen.dirs_unmodified;
    summary.total_files_processed = seen.files_new + seen.files_changed + seen.files_unmodified;
    summary.total_dirs_processed = seen.dirs_new + seen.dirs_changed + seen.dirs_unmodified;
    summary.total_bytes_processed = seen.bytes;
    (summary.data_blobs, summary.tree_blobs) = (added.data_blobs, added.tree_blobs);
    (summary.data_added, summary.data_added_packed) = (added.bytes, added.packed_bytes);
    summary.backup_start = file.time.clone();
    summary.backup_end = now();
    let duration = summary.backup_end.duration_since(&summary.backup_start).as_secs_f64();
    (summary.backup_duration, summary.total_duration) = (duration, duration);
    file.summary = Some(summary);
}

pub(super) fn job_tag(job: u64) -> String {
    format!("job-{job}")
}

/// The snapshot that an earlier run of the same job finished of these sources.
pub(super) fn finished<'a>(snapshots: &'a Snapshots, sources: &[PathBuf], mark: &Mark) -> Option<&'a Snapshot> {
    let since = i64::try_from(mark.since_unix_ms).unwrap_or(i64::MAX);
    let tag = job_tag(mark.job);
    snapshots.all().iter().rev().find(|snapshot| {
        snapshot.file.tags.contains(&tag)
            && snapshot.file.hostname == mark.origin.host.as_str()
            && snapshot.sources() == sources
            && snapshot.at().as_millisecond() >= since
    })
}

pub(super) fn work_of(id: Id, file: &SnapshotFile) -> Work {
    let summary = file.summary.as_ref();
    Work {
        snapshots: vec![id.to_string()],
        files: summary.map_or(0, |summary| summary.total_files_processed),
        bytes: summary.map_or(0, |summary| summary.total_bytes_processed),
        repository_bytes: summary.map_or(0, |summary| summary.data_added_packed),
        counts: summary.map(counts_of).unwrap_or_default(),
        ..Work::default()
    }
}

pub(super) fn counts_of(summary: &SnapshotSummary) -> BackupCounts {
    let lasted = summary.backup_end.duration_since(&summary.backup_start).as_millis();
    BackupCounts {
        files_new: summary.files_new,
        files_changed: summary.files_changed,
        files_unmodified: summary.files_unmodified,
        dirs_new: summary.dirs_new,
        dirs_changed: summary.dirs_changed,
        dirs_unmodified: summary.dirs_unmodified,
        added_bytes: summary.data_added,
        duration_ms: u64::try_from(lasted).unwrap_or(0),
    }
}
