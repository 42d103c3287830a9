//! Looks into a repository: `job snapshots`, `ls`, `find`, `diff` and `dump`, and what `job forget` keeps.

use std::time::Duration;

use clap::Args;
use proto::HostName;
use proto::agent::{HostScope, Operation};
use proto::look::{Forget, Found, FoundEntry, FoundSnapshot, Keep, Query, SnapshotFilter};

use super::super::out::{self, say};
use super::super::units::{bytes, count, moment};
use super::scope::Scope;

/// Which snapshots; by default those of the host itself.
#[derive(Debug, Args)]
pub(in crate::cli) struct Filter {
    #[command(flatten)]
    scope: Scope,
    /// Only snapshots with this tag; may be given several times
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
}

impl Filter {
    pub(super) fn snapshots(&self) -> SnapshotFilter {
        SnapshotFilter { of: self.scope.hosts(), source: self.scope.source(), tags: self.tag.clone() }
    }
}

/// The oldest question that says all of it.
pub(super) fn find(
    snapshots: SnapshotFilter,
    patterns: &[String],
    since_unix_ms: Option<i64>,
    until_unix_ms: Option<i64>,
) -> Query {
    let patterns = patterns.to_vec();
    match (since_unix_ms, until_unix_ms) {
        (None, None) => Query::Find { snapshots, patterns },
        _ => Query::FindModified { snapshots, patterns, since_unix_ms, until_unix_ms },
    }
}

/// A time as people type it, in UTC: a day, or one with its time. Milliseconds since 1970.
pub(super) fn moment_of(text: &str) -> Result<i64, String> {
    let day = |text: &str| humantime::parse_rfc3339_weak(&format!("{text}T00:00:00"));
    let at = humantime::parse_rfc3339_weak(text).or_else(|_| day(text));
    let at = at.map_err(|_| format!("'{text}' is no time: want 2026-01-31, or 2026-01-31T08:15:00, in UTC"))?;
    let since = at.duration_since(std::time::UNIX_EPOCH).map_err(|_| format!("'{text}' is before 1970"))?;
    i64::try_from(since.as_millis()).map_err(|_| format!("'{text}' is too far away"))
}

/// What stays of the snapshots of each source of each host.
#[derive(Debug, Args)]
pub(in crate::cli) struct Rules {
    /// Only snapshots of this source
    #[arg(long, value_name = "DIR")]
    source: Option<String>,
    /// Only snapshots of this host [default: of every one]
    #[arg(long, value_name = "HOST")]
    of_host: Option<HostName>,
    /// Only snapshots with this tag; may be given several times
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// Keep so many of the newest
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "What stays")]
    keep_last: u32,
    /// Keep the newest of each of so many hours that have one
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "What stays")]
    keep_hourly: u32,
    /// Of so many days
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "What stays")]
    keep_daily: u32,
    /// Of so many weeks
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "What stays")]
    keep_weekly: u32,
    /// Of so many months
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "What stays")]
    keep_monthly: u32,
    /// Of so many years
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "What stays")]
    keep_yearly: u32,
    /// Keep all that are no older than this before the newest one
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, help_heading = "What stays")]
    keep_within: Option<Duration>,
    /// Keep all with this tag; may be given several times
    #[arg(long, value_name = "TAG", help_heading = "What stays")]
    keep_tag: Vec<String>,
    /// Say what would be forgotten, and forget nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Also free the space that nothing needs then
    #[arg(long)]
    prune: bool,
}

impl Rules {
    pub(super) fn order(&self) -> Forget {
        let of = self.of_host.clone().map_or(HostScope::Any, HostScope::Host);
        Forget {
            snapshots: SnapshotFilter { of, source: self.source.clone(), tags: self.tag.clone() },
            keep: Keep {
                last: self.keep_last,
                hourly: self.keep_hourly,
                daily: self.keep_daily,
                weekly: self.keep_weekly,
                monthly: self.keep_monthly,
                yearly: self.keep_yearly,
                within_seconds: self.keep_within.map(|within| within.as_secs()),
                tags: self.keep_tag.clone(),
            },
            dry_run: self.dry_run,
            free: self.prune,
        }
    }
}

/// Prints what was found. The content of a file is printed as it is, and nothing else then.
pub(super) fn print(operation: &Operation, found: &[Found], left_out: u64) {
    let snapshots: Vec<&FoundSnapshot> = found.iter().filter_map(snapshot).collect();
    if !snapshots.is_empty() {
        let forget = matches!(operation, Operation::Forget { .. });
        let last = if forget { "STAYS" } else { "TAGS" };
        let rows: Vec<Vec<String>> = snapshots.iter().map(|one| row(one, forget)).collect();
        out::table(&["SNAPSHOT", "OF", "AT", "FILES", "BYTES", "SOURCES", last], &rows);
    }
    for found in found {
        match found {
            Found::Snapshot(_) => {}
            Found::Entry(entry) => say!("{}", line(operation, entry)),
            Found::Content(content) => out::content(content),
        }
    }
    if left_out > 0 {
        say!("and {left_out} more at least: ask for less at once");
    }
}

fn snapshot(found: &Found) -> Option<&FoundSnapshot> {
    match found {
        Found::Snapshot(snapshot) => Some(snapshot),
        Found::Entry(_) | Found::Content(_) => None,
    }
}

fn row(of: &FoundSnapshot, forget: bool) -> Vec<String> {
    let last = match (forget, of.forgotten) {
        (true, true) => "no".to_owned(),
        (true, false) => of.why.clone(),
        (false, _) => of.tags.join(", "),
    };
    vec![
        of.id.chars().take(8).collect(),
        of.owner.clone(),
        moment(of.at_unix_ms),
        of.files.to_string(),
        bytes(of.bytes),
        of.sources.join(", "),
        last,
    ]
}

fn line(operation: &Operation, entry: &FoundEntry) -> String {
    let FoundEntry { snapshot, path, kind, mode, size, change, .. } = entry;
    match (operation, change) {
        (_, Some(change)) => format!("{change:<9} {path}"),
        (Operation::Look { query: Query::Find { .. } | Query::FindModified { .. }, .. }, None) => {
            format!("{snapshot:.8}  {path}")
        }
        (_, None) => {
            let mode = mode.map_or_else(|| "????".to_owned(), |mode| format!("{mode:04o}"));
            let size = if kind == "file" { bytes(*size) } else { String::new() };
            format!("{kind:<13} {mode} {size:>10}  {path}")
        }
    }
}

/// How much was found, in a few words.
pub(super) fn amount(operation: &Operation, found: &[Found], left_out: u64) -> String {
    if let Operation::Forget { order, .. } = operation {
        let gone = found.iter().filter_map(snapshot).filter(|one| one.forgotten).count();
        let would = if order.dry_run { "would be forgotten" } else { "forgotten" };
        return format!("{} {would}", count(gone as u64, "snapshot"));
    }
    count(found.len() as u64 + left_out, "finding")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: &str, change: Option<&str>) -> FoundEntry {
        FoundEntry {
            snapshot: "a1b2c3d4e5".into(),
            path: "/srv/a".into(),
            kind: kind.into(),
            mode: Some(0o644),
            user: None,
            group: None,
            size: 2_000_000,
            mtime_unix_ms: None,
            change: change.map(str::to_owned),
        }
    }

    #[test]
    fn a_time_is_a_day_or_one_with_its_time() {
        for (text, at) in [
            ("1970-01-02", 86_400_000),
            ("1970-01-01T00:00:01", 1000),
            ("1970-01-01 00:00:01", 1000),
            ("1970-01-01T00:00:01Z", 1000),
            ("2026-02-28T12:00:00", 1_772_280_000_000),
        ] {
            assert_eq!(moment_of(text), Ok(at), "{text}");
        }
        for wrong in ["", "yesterday", "2026-02-30", "2026", "1969-01-01"] {
            assert!(moment_of(wrong).is_err(), "{wrong}");
        }
        let all = || SnapshotFilter { of: HostScope::Any, source: None, tags: vec![] };
        assert!(matches!(find(all(), &[], None, None), Query::Find { .. }));
        assert!(matches!(find(all(), &[], None, Some(1)), Query::FindModified { until_unix_ms: Some(1), .. }));
    }

    #[test]
    fn an_entry_is_a_line_that_says_what_was_asked() {
        let repository = || proto::agent::Repository { path: "/r".into(), password_file: None };
        let check = Operation::Check { repository: repository(), read_data: false };
        assert_eq!(line(&check, &entry("file", None)), "file          0644     2.0 MB  /srv/a");
        assert_eq!(line(&check, &entry("directory", None)), "directory     0644             /srv/a");
        assert_eq!(line(&check, &entry("file", Some("added"))), "added     /srv/a");
        let all = SnapshotFilter { of: HostScope::Any, source: None, tags: vec![] };
        let query = Query::Find { snapshots: all, patterns: vec![] };
        assert_eq!(
            line(&Operation::Look { repository: repository(), query }, &entry("file", None)),
            "a1b2c3d4  /srv/a"
        );
        assert_eq!(amount(&check, &[Found::Entry(entry("file", None))], 2), "3 findings");
    }
}
