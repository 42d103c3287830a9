//! Which snapshots stay: `rustic_core`'s rules of a calendar, for each source of each host by itself.

use std::collections::BTreeMap;
use std::path::PathBuf;

use proto::look::{Keep, SnapshotFilter};
use rustic_core::jiff::{Span, Zoned};
use rustic_core::{KeepOptions, StringList};

use super::snapshots::{Owner, Snapshot, Snapshots};

/// What becomes of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fate {
    pub(super) forgotten: bool,
    /// Why it stays.
    pub(super) why: String,
}

/// The rules cannot be applied.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct RetentionFault(String);

/// What becomes of each of the snapshots that are looked at, the newest of each source first. Of a host that nobody knows
/// any more everything stays: several may be behind one name.
pub(super) fn fates<'a>(
    snapshots: &'a Snapshots,
    filter: &SnapshotFilter,
    keep: &Keep,
    own_host: &str,
    now: &Zoned,
) -> Result<Vec<(&'a Snapshot, Fate)>, RetentionFault> {
    let mut of_source: BTreeMap<(&Owner, Vec<PathBuf>), Vec<&Snapshot>> = BTreeMap::new();
    for snapshot in snapshots.filtered(filter, own_host) {
        of_source.entry((&snapshot.owner, snapshot.sources())).or_default().push(snapshot);
    }
    let options = options(keep);
    let mut fates = Vec::new();
    for ((owner, _), group) in of_source {
        let applied = options.apply(group.iter().map(|snapshot| snapshot.file.clone()).collect(), now);
        let applied = applied.map_err(|error| RetentionFault(error.display_log()))?;
        let mut kept: Vec<_> =
            applied.into_iter().map(|of| (of.snapshot.time.timestamp(), of.snapshot.tree, of)).collect();
        for (place, snapshot) in group.into_iter().rev().enumerate() {
            let at = kept.iter().position(|(time, tree, _)| (*time, *tree) == (snapshot.at(), snapshot.file.tree));
            let said = at.map(|at| kept.remove(at).2);
            let fate = match (owner, said) {
                (Owner::Unknown(_), _) => stays("it is not known of which host it is"),
                (_, Some(said)) if said.keep => stays(&said.reasons.join(", ")),
                _ if place == 0 => stays("it is the newest of its source"),
                (_, Some(_)) => Fate { forgotten: true, why: String::new() },
                // Nothing is removed of which nothing was said.
                (_, None) => stays("the rules said nothing of it"),
            };
            fates.push((snapshot, fate));
        }
    }
    Ok(fates)
}

fn stays(why: &str) -> Fate {
    Fate { forgotten: false, why: why.to_owned() }
}

fn options(keep: &Keep) -> KeepOptions {
    let count = |count: u32| (count > 0).then(|| i32::try_from(count).unwrap_or(i32::MAX));
    let mut options = KeepOptions::default();
    options.keep_last = count(keep.last);
    options.keep_hourly = count(keep.hourly);
    options.keep_daily = count(keep.daily);
    options.keep_weekly = count(keep.weekly);
    options.keep_monthly = count(keep.monthly);
    options.keep_yearly = count(keep.yearly);
    options.keep_within = keep.within_seconds.map(|seconds| {
        // A span holds some thousands of years.
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX).min(100_000_000_000);
        Span::new().seconds(seconds)
    });
    options.keep_tags = keep.tags.iter().filter_map(|tag| tag.parse::<StringList>().ok()).collect();
    options
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod week;

#[cfg(test)]
mod tests {
    use proto::agent::HostScope;

    use super::super::snapshots::testing;
    use super::*;

    fn all() -> SnapshotFilter {
        SnapshotFilter { of: HostScope::Any, source: None, tags: Vec::new() }
    }

    /// A snapshot an hour on each of some days; the places, counted from the oldest, of those that stay.
    fn kept(keep: &Keep) -> Vec<usize> {
        let day = 24 * 3600;
        let times: Vec<i64> = (0..10).flat_map(|n| [n * day, n * day + 3600]).collect();
        let snapshots = testing::at_times(&times);
        let fates = fates(&snapshots, &all(), keep, "host-1", &Zoned::now()).unwrap();
        assert_eq!(fates.len(), 20);
        let place = |snapshot: &Snapshot| snapshots.all().iter().position(|one| one.id == snapshot.id).unwrap();
        let mut kept: Vec<_> =
            fates.iter().filter(|(_, fate)| !fate.forgotten).map(|(snapshot, _)| place(snapshot)).collect();
        kept.sort_unstable();
        kept
    }

    #[test]
    fn rules_of_a_calendar_keep_the_newest_of_each_span() {
        assert_eq!(kept(&Keep { last: 2, ..Keep::default() }), [18, 19]);
        assert_eq!(kept(&Keep { daily: 3, ..Keep::default() }), [15, 17, 19]);
        assert_eq!(kept(&Keep { last: 2, daily: 3, ..Keep::default() }), [15, 17, 18, 19]);
        assert_eq!(kept(&Keep { hourly: 3, ..Keep::default() }), [17, 18, 19]);
        assert_eq!(kept(&Keep { yearly: 1, ..Keep::default() }), [19]);
        let day = Some(25 * 3600 + 1);
        assert_eq!(kept(&Keep { within_seconds: day, ..Keep::default() }), [16, 17, 18, 19]);
        assert_eq!(kept(&Keep { tags: vec!["nobody-has-it".into()], ..Keep::default() }), [19], "the newest stays");
    }

    #[test]
    fn every_host_and_source_is_by_itself_and_nobodys_stay() {
        let snapshots = testing::snapshots(&[
            ("host-1", "job-1,manager-fs", "/a"),
            ("host-1", "job-2,manager-fs", "/a"),
            ("host-1", "job-2,manager-fs", "/b"),
            ("host-2", "job-3,manager-fs,weekly", "/a"),
            ("web", "job-98", "/a"),
            ("web", "job-99", "/a"),
        ]);
        let forgotten = |filter: &SnapshotFilter| {
            let fates = fates(&snapshots, filter, &Keep { last: 1, ..Keep::default() }, "host-2", &Zoned::now());
            let gone = fates.unwrap().into_iter().filter(|(_, fate)| fate.forgotten);
            let place = |id| snapshots.all().iter().position(|one| one.id == id).unwrap();
            gone.map(|(snapshot, _)| place(snapshot.id)).collect::<Vec<_>>()
        };
        assert_eq!(forgotten(&all()), [0]);
        assert_eq!(forgotten(&SnapshotFilter { of: HostScope::Own, ..all() }), [] as [usize; 0]);
        assert_eq!(forgotten(&SnapshotFilter { source: Some("/b".into()), ..all() }), [] as [usize; 0]);
        assert_eq!(forgotten(&SnapshotFilter { tags: vec!["weekly".into()], ..all() }), [] as [usize; 0]);
    }
}
