//! What is shown of a job: a line, a page, a JSON document.

use proto::agent::{Outcome, Progress, Summary};
use proto::backup::BackupCounts;
use proto::look::Found;
use proto::means::Ran;
use serde_json::Value;

use super::super::out::{self, say};
use super::super::progress::{self, ProgressLine};
use super::super::units::{bytes, bytes_of, count, ms};
use super::look;
use crate::manager::control::jobs::{JobRecord, JobState};
use crate::manager::documents::{self, JobDocument};

pub(super) fn show(line: &mut ProgressLine, progress: &Progress) {
    let task = format!("{}: {}", unit(progress), progress.activity);
    line.update(progress::Progress { task: &task, done: progress.bytes_done, total: progress.bytes, bytes: true });
}

/// `unit 2 of 4`
fn unit(progress: &Progress) -> String {
    // A host may say any numbers.
    format!("unit {} of {}", progress.units_done.saturating_add(1).min(progress.units), progress.units)
}

pub(super) fn job_json(record: &JobRecord) -> Value {
    documents::json(&JobDocument::from(record))
}

pub(super) fn print(record: &JobRecord, json: bool) {
    if json {
        return out::json(&job_json(record));
    }
    let (found, left_out) = record.found();
    if let [Found::Content(_)] = found {
        // What is wanted is the file, byte for byte.
        return look::print(&record.operation, found, left_out);
    }
    let what = format!("job {}: {} on {}", record.id, record.operation.kind(), record.host);
    say!(
        "{what}: {}{}",
        state_name(record.state),
        Some(doing(record)).filter(|text| !text.is_empty()).map_or_else(String::new, |text| format!(", {text}"))
    );
    match &record.outcome {
        Some(
            outcome @ (Outcome::Done(summary)
            | Outcome::Cancelled(summary)
            | Outcome::BackedUp { summary, .. }
            | Outcome::BackedUpBy { summary, .. }),
        ) => {
            if let Some(counts) = outcome.counts() {
                say!("{}", counted(summary, counts));
            }
            for Ran { command, moment, ended, output, duration_ms } in outcome.ran() {
                say!("command {command} ({moment}): {ended}, in {}", ms(*duration_ms));
                output.iter().for_each(|line| say!("  {line}"));
            }
            if record.is_dry_run() {
                say!("it was a dry run: nothing is stored");
            }
            summary.snapshots.iter().for_each(|snapshot| say!("snapshot {snapshot}"));
        }
        Some(Outcome::Found { .. }) => look::print(&record.operation, found, left_out),
        Some(Outcome::OwnDone(own)) => {
            own.results.iter().for_each(|finding| say!("{}: {}", finding.name, finding.text));
        }
        Some(Outcome::Failed(_)) | None => {}
    }
    for problem in record.outcome.as_ref().map_or(&[][..], Outcome::problems) {
        say!("problem: {problem}");
    }
}

/// What a job is doing or why not, in a few words.
pub(super) fn doing(record: &JobRecord) -> String {
    match (&record.outcome, &record.waiting, &record.progress) {
        (Some(Outcome::Failed(error)), _, _) => error.clone(),
        (
            Some(
                Outcome::Done(summary)
                | Outcome::Cancelled(summary)
                | Outcome::BackedUp { summary, .. }
                | Outcome::BackedUpBy { summary, .. },
            ),
            _,
            _,
        ) => {
            let versions = summary.versions.join(", ");
            match record.operation.repository() {
                Some(_) => {
                    format!("{}, {}, by version {versions}", count(summary.files, "file"), bytes(summary.bytes))
                }
                None => format!("by version {versions}"),
            }
        }
        (Some(Outcome::Found { summary, found, left_out }), _, _) => {
            let amount = look::amount(&record.operation, found, *left_out);
            format!("{amount}, by version {}", summary.versions.join(", "))
        }
        (Some(Outcome::OwnDone(own)), _, _) => format!("by version {}", own.versions.join(", ")),
        (None, Some(waiting), _) => format!("waits: {waiting}"),
        (None, None, Some(progress)) => {
            let amount = match (progress.bytes, record.operation.repository()) {
                // A program that counts no bytes says nothing of them.
                (0, None) => String::new(),
                (0, Some(_)) => format!("{}, ", bytes(progress.bytes_done)),
                (all, _) => format!("{}, ", bytes_of(progress.bytes_done, all)),
            };
            format!("{}, {amount}{}", unit(progress), progress.activity)
        }
        (None, None, None) => String::new(),
    }
}

pub(super) fn state_name(state: JobState) -> String {
    match state {
        JobState::Queued => "queued",
        JobState::Running => "running",
        JobState::Done => "done",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    }
    .to_owned()
}

/// What a backup found and stored, in two sentences.
fn counted(summary: &Summary, counts: &BackupCounts) -> String {
    let BackupCounts { files_new, files_changed, files_unmodified, dirs_new, dirs_changed, dirs_unmodified, .. } =
        *counts;
    format!(
        "files: {files_new} new, {files_changed} changed, {files_unmodified} unmodified; directories: {dirs_new} new, \
         {dirs_changed} changed, {dirs_unmodified} unmodified; added {}, stored as {}, in {}",
        bytes(counts.added_bytes),
        bytes(summary.repository_bytes),
        ms(counts.duration_ms)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_make_no_sense_are_shown_as_they_are() {
        let absurd = Progress {
            units_done: u32::MAX,
            units: u32::MAX,
            bytes_done: u64::MAX,
            bytes: 1,
            activity: String::new(),
            version: String::new(),
        };
        assert_eq!(unit(&absurd), "unit 4294967295 of 4294967295");
        assert_eq!(unit(&Progress { units: 3, ..absurd }), "unit 3 of 3");
    }
}
