//! An adversarial week in fast motion: policies with rules that nobody thought of, hosts, clones of hosts and persons in one
//! repository, clocks that are put back and forth, and forgets that are killed in the middle. A model in memory, which
//! knows every snapshot that was ever taken, says what each policy promised to keep; all of that must still be there.
//!
//! A seed that fails is printed; `RETENTION_SEEDS=100000` runs more than the usual ones.

use std::collections::{BTreeMap, BTreeSet};

use proto::agent::HostScope;
use proto::look::{Keep, SnapshotFilter};
use rustic_core::jiff::tz::TimeZone;
use rustic_core::jiff::{Timestamp, Zoned};

use super::super::snapshots::testing;
use ::tests::dice::Dice;

use super::fates;

const SEEDS: u64 = 300;
const BEGIN: i64 = 1_767_225_600;
const DAY: i64 = 24 * 3600;

fn seconds(dice: &mut Dice, end: i64) -> i64 {
    i64::try_from(dice.below(u64::try_from(end).unwrap())).unwrap()
}

/// A snapshot as the model knows it.
#[derive(Debug, Clone)]
struct Taken {
    number: u64,
    host: &'static str,
    source: &'static str,
    /// `None`: a person's, or a clone's that nobody knows.
    policy: Option<&'static str>,
    tags: String,
    at: i64,
}

fn any_rules(dice: &mut Dice) -> Keep {
    let mut some = |end| if dice.chance(50) { u32::try_from(dice.below(end)).unwrap() } else { 0 };
    let (last, hourly, daily, weekly) = (some(4), some(8), some(10), some(5));
    let (monthly, yearly) = (some(6), some(3));
    let within_seconds = dice.chance(20).then(|| dice.below(9 * 24 * 3600));
    let tags = if dice.chance(20) { vec![String::from("forever")] } else { Vec::new() };
    let keep = Keep { last, hourly, daily, weekly, monthly, yearly, within_seconds, tags };
    if keep.is_nothing() { Keep { daily: 7, ..keep } } else { keep }
}

/// What the rules promise of the snapshots of one source of one host, in whatever words.
fn promised(mut of: Vec<&Taken>, keep: &Keep) -> BTreeSet<u64> {
    of.sort_by_key(|taken| std::cmp::Reverse((taken.at, taken.number)));
    let date = |at: i64| Timestamp::new(at, 0).unwrap().to_zoned(TimeZone::UTC).date();
    let hour = |at: i64| at / 3600;
    let day = |at: i64| at / DAY;
    // The first of January 1970 was a Thursday.
    let week = |at: i64| (at / DAY + 3) / 7;
    let month = |at: i64| i64::from(date(at).year()) * 12 + i64::from(date(at).month());
    let year = |at: i64| i64::from(date(at).year());
    let spans: [(u32, &dyn Fn(i64) -> i64); 5] = [
        (keep.hourly, &hour),
        (keep.daily, &day),
        (keep.weekly, &week),
        (keep.monthly, &month),
        (keep.yearly, &year),
    ];
    let mut kept: BTreeSet<u64> = of.iter().take((keep.last as usize).max(1)).map(|taken| taken.number).collect();
    for (many, span) in spans {
        let mut seen = BTreeMap::new();
        for taken in &of {
            seen.entry(std::cmp::Reverse(span(taken.at))).or_insert(taken.number);
        }
        kept.extend(seen.values().take(many as usize));
    }
    let newest = of.first().map_or(0, |taken| taken.at);
    let within = keep.within_seconds.map(|seconds| i64::try_from(seconds).unwrap());
    kept.extend(of.iter().filter(|of| within.is_some_and(|of_time| of.at > newest - of_time)).map(|of| of.number));
    let tagged = |taken: &&&Taken| keep.tags.iter().any(|tag| taken.tags.split(',').any(|of| of == tag));
    kept.extend(of.iter().filter(tagged).map(|taken| taken.number));
    kept
}

struct Week {
    dice: Dice,
    seed: u64,
    now: i64,
    rules: BTreeMap<&'static str, Keep>,
    ever: Vec<Taken>,
    there: BTreeSet<u64>,
}

impl Week {
    fn take(&mut self) {
        let number = self.ever.len() as u64;
        let host = self.dice.one(&["host-1", "host-2", "host-3"]);
        let source = self.dice.one(&["/a", "/b"]);
        let mark = if self.dice.chance(5) { ",forever" } else { "" };
        let (host, policy, tags) = match self.dice.below(10) {
            // A machine that bears a host's name, of a manager that nobody remembers.
            0 => (host, None, format!("job-{}{mark}", 1000 + number)),
            1 => (host, None, format!("job-{number},manager-fs{mark}")),
            2..=4 => (host, Some("weekly"), format!("job-{number},manager-fs,policy:weekly{mark}")),
            _ => (host, Some("nightly"), format!("job-{number},manager-fs,policy:nightly{mark}")),
        };
        self.ever.push(Taken { number, host, source, policy, tags, at: self.now });
        self.there.insert(number);
    }

    fn forget(&mut self, policy: &'static str) {
        let present: Vec<&Taken> = self.ever.iter().filter(|taken| self.there.contains(&taken.number)).collect();
        let made: Vec<_> =
            present.iter().map(|of| (of.host, of.tags.as_str(), of.source, of.at, of.number)).collect();
        let snapshots = testing::made(&made);
        let tags = vec![format!("policy:{policy}")];
        let filter = SnapshotFilter { of: HostScope::Any, source: None, tags };
        let now: Zoned = Timestamp::new(self.now, 0).unwrap().to_zoned(TimeZone::UTC);
        let fates = fates(&snapshots, &filter, &self.rules[policy], "host-9", &now).unwrap();
        // In the order in which they are removed; one that is killed leaves the rest.
        let gone = fates.iter().filter(|(_, fate)| fate.forgotten);
        let gone: Vec<u64> = gone.map(|(snapshot, _)| testing::number(snapshot, &made)).collect();
        let killed = self.dice.chance(20);
        let many = if killed { self.dice.index(gone.len()) } else { gone.len() };
        for number in &gone[..many] {
            assert_eq!(self.ever[usize::try_from(*number).unwrap()].policy, Some(policy), "seed {}", self.seed);
            self.there.remove(number);
        }
    }

    fn check(&self) {
        for taken in self.ever.iter().filter(|taken| taken.policy.is_none()) {
            assert!(self.there.contains(&taken.number), "seed {}: of no policy: {taken:?}", self.seed);
        }
        let mut groups: BTreeMap<_, Vec<&Taken>> = BTreeMap::new();
        for taken in &self.ever {
            if let Some(policy) = taken.policy {
                groups.entry((policy, taken.host, taken.source)).or_default().push(taken);
            }
        }
        for ((policy, host, source), of) in groups {
            for number in promised(of, &self.rules[policy]) {
                let taken = &self.ever[usize::try_from(number).unwrap()];
                let seed = self.seed;
                let rules = &self.rules[policy];
                assert!(
                    self.there.contains(&number),
                    "seed {seed}: {policy} {host} {source}: {taken:?} of {rules:?}"
                );
            }
        }
    }
}

fn run(seed: u64) {
    let mut dice = Dice::new(seed);
    let rules = BTreeMap::from([("nightly", any_rules(&mut dice)), ("weekly", any_rules(&mut dice))]);
    let mut week = Week { dice, seed, now: BEGIN, rules, ever: Vec::new(), there: BTreeSet::new() };
    for _ in 0..60 {
        let step = if week.dice.chance(10) { 40 * DAY } else { DAY };
        week.now += seconds(&mut week.dice, step);
        if week.dice.chance(5) {
            // The clock of a host is put back, for good.
            week.now -= seconds(&mut week.dice, 3 * DAY);
        }
        week.take();
        if week.dice.chance(30) {
            let policy = if week.dice.chance(70) { "nightly" } else { "weekly" };
            week.forget(policy);
            week.check();
        }
    }
}

#[test]
fn what_a_policy_promised_to_keep_is_kept_whatever_happens() {
    let seeds = std::env::var("RETENTION_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    (0..seeds).for_each(run);
}
