//! Whose turn it is at a repository: whoever removes must be alone, everybody else is beside others.
//!
//! A repository is the same one at the same path of the same host, and wherever its own id is the same, whatever it is
//! called there. Turns are leases: they end with their jobs, and when nothing has been heard of a job for half an hour.
//! What they keep apart is orders, so that jobs wait in order and say for whom; restic's locks, which the agents take in
//! the repository itself, protect its data whatever is known here.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::HostName;
use proto::agent::JobId;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::Instant;

use super::operation::is_exclusive;
use crate::manager::control::jobs::JobRecord;
use crate::sync::lock;

/// How long a turn lasts after something was heard of its job. As long as restic's locks, which agents hold beside it.
pub(super) const LEASE: Duration = Duration::from_secs(30 * 60);
/// Between two questions which repository a path leads to: it may be made, or exchanged, meanwhile.
const ASK_EVERY: Duration = Duration::from_secs(60);

/// A repository's own id: 64 hex digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RepositoryId(String);

impl RepositoryId {
    /// What an agent said; `None`: it is no id.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let is_id = text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        is_id.then(|| Self(text.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// For whom a job waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    job: JobId,
    what: String,
    host: HostName,
    path: String,
    held: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Holder { job, what, host, path, held } = self;
        let how = if *held { "another job uses the repository" } else { "another job waits to be alone there" };
        write!(to, "{how}: job {job}, {what} on {host} ({path})")
    }
}

/// A job that is at a repository, or wants to be.
#[derive(Debug, Clone)]
struct Entry {
    what: String,
    host: HostName,
    path: String,
    alone: bool,
    id: Option<RepositoryId>,
    /// Until when it is there; `None`: not yet.
    until: Option<Instant>,
    /// It would be there but for somebody else.
    waits: bool,
    asked: Option<Instant>,
    /// The answer to that has not come.
    asking: bool,
}

impl Entry {
    fn is_there(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until > now)
    }

    fn is_at_one_with(&self, other: &Entry) -> bool {
        let by_id = self.id.is_some() && self.id == other.id;
        by_id || self.is_named_as(other)
    }

    fn is_named_as(&self, other: &Entry) -> bool {
        // The name of one that is served is the same for every host.
        self.path == other.path && (self.host == other.host || !self.path.starts_with('/'))
    }
}

/// Every job that is not over, in the order in which they were ordered. Decides, and waits for nothing.
#[derive(Default)]
struct Table(BTreeMap<JobId, Entry>);

impl Table {
    /// Who is in a job's way, as far as it is known which repository everybody is at.
    fn in_the_way(&self, job: JobId, now: Instant) -> Option<Holder> {
        let own = self.0.get(&job)?;
        let (job, entry) = self.0.iter().find(|(other, entry)| {
            let there = entry.is_there(now) && (entry.alone || own.alone);
            // Whoever waits to be alone would wait for ever if others kept coming.
            let first = entry.waits && entry.alone && !own.alone && **other < job;
            **other != job && (there || first) && entry.is_at_one_with(own)
        })?;
        let Entry { what, host, path, .. } = entry.clone();
        Some(Holder { job: *job, what, host, path, held: entry.until.is_some() })
    }

    /// Gives a job its turn, or says who is in its way.
    fn take(&mut self, job: JobId, now: Instant) -> Result<(), Holder> {
        match self.in_the_way(job, now) {
            Some(holder) => {
                self.wait(job, true);
                Err(holder)
            }
            None => {
                self.hold(job, now + LEASE);
                Ok(())
            }
        }
    }

    fn hold(&mut self, job: JobId, until: Instant) {
        if let Some(entry) = self.0.get_mut(&job) {
            (entry.until, entry.waits) = (Some(until), false);
        }
    }

    /// Notes whether a job waits for others; whether that is new.
    fn wait(&mut self, job: JobId, waits: bool) -> bool {
        self.0.get_mut(&job).is_some_and(|entry| std::mem::replace(&mut entry.waits, waits) != waits)
    }

    /// The jobs, and their hosts, whose repositories must be asked for their ids before it is this job's turn: one of two
    /// must be alone, and what has another name may be the same repository.
    fn doubtful(&self, job: JobId, now: Instant) -> Vec<(JobId, HostName)> {
        let due = |entry: &Entry| !entry.asking && entry.asked.is_none_or(|asked| asked + ASK_EVERY <= now);
        let unknown = self.in_doubt(job).into_iter().filter(|(_, entry)| due(entry));
        unknown.map(|(job, entry)| (job, entry.host.clone())).collect()
    }

    /// Whether somebody's answer is still to come that matters to this job.
    fn is_awaited(&self, job: JobId) -> bool {
        self.in_doubt(job).iter().any(|(_, entry)| entry.asking)
    }

    fn in_doubt(&self, job: JobId) -> Vec<(JobId, &Entry)> {
        let Some(own) = self.0.get(&job) else { return Vec::new() };
        let matters = |entry: &Entry| (own.alone || entry.alone) && !entry.is_named_as(own);
        let others: Vec<_> = self.0.iter().filter(|(_, entry)| matters(entry)).collect();
        let own = (!others.is_empty()).then_some((&job, own));
        let all = own.into_iter().chain(others).filter(|(_, entry)| entry.id.is_none());
        all.map(|(job, entry)| (*job, entry)).collect()
    }

    fn asks(&mut self, job: JobId, now: Instant) {
        if let Some(entry) = self.0.get_mut(&job) {
            (entry.asked, entry.asking) = (Some(now), true);
        }
    }
}

/// The repositories that jobs are at or wait for.
#[derive(Default)]
pub(super) struct Repositories {
    table: Mutex<Table>,
    changed: Arc<Notify>,
}

/// A job's place at its repository, until it is dropped.
pub(super) struct Turn {
    repositories: Arc<Repositories>,
    job: JobId,
}

impl Repositories {
    /// A job that will want its turn. `known` is what was written down of it: its repository, and how long it is still
    /// there.
    pub(super) fn enter(self: &Arc<Self>, record: &JobRecord, known: Option<(RepositoryId, Duration)>) -> Turn {
        let now = Instant::now();
        let turn = Turn { repositories: Arc::clone(self), job: record.id };
        // A program's own work is its own affair: it is nowhere, and in nobody's way.
        let Some(repository) = record.operation.repository() else { return turn };
        let path = repository.path.trim_end_matches('/').to_owned();
        let (id, left) = known.map_or((None, LEASE), |(id, left)| (Some(id), left));
        let entry = Entry {
            what: record.operation.kind().to_owned(),
            host: record.host.clone(),
            path,
            alone: is_exclusive(&record.operation),
            id,
            // An agent may be at it, whoever else was let in meanwhile.
            until: (record.sent > 0).then(|| now + left),
            waits: false,
            asked: None,
            asking: false,
        };
        lock(&self.table).0.insert(record.id, entry);
        turn
    }

    /// The jobs, and their hosts, whose repositories must be asked for their ids before it is a job's turn.
    pub(super) fn doubtful(&self, job: JobId) -> Vec<(JobId, HostName)> {
        lock(&self.table).doubtful(job, Instant::now())
    }

    /// A job's repository is being asked for, until what is returned is dropped; nobody need ask again soon.
    pub(super) fn asks(self: &Arc<Self>, job: JobId) -> Asking {
        lock(&self.table).asks(job, Instant::now());
        Asking { repositories: Arc::clone(self), job }
    }

    /// Waits for the answers that matter to a job, whoever asked. Each of them comes or is given up.
    pub(super) async fn answered(&self, job: JobId) {
        loop {
            let changed = self.changed();
            if !lock(&self.table).is_awaited(job) {
                return;
            }
            changed.await;
        }
    }

    /// Notes which repository a job is at, or wants to be at; whether it is there.
    pub(super) fn identified(&self, job: JobId, id: &RepositoryId) -> bool {
        let there = {
            let mut table = lock(&self.table);
            let Some(entry) = table.0.get_mut(&job) else { return false };
            entry.id = Some(id.clone());
            entry.is_there(Instant::now())
        };
        self.changed.notify_waiters();
        there
    }

    /// The next change of anything; what happens from now on is not missed.
    pub(super) fn changed(&self) -> OwnedNotified {
        Arc::clone(&self.changed).notified_owned()
    }
}

/// A question that is under way: which repository a job is at.
pub(super) struct Asking {
    repositories: Arc<Repositories>,
    job: JobId,
}

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some(entry) = lock(&self.repositories.table).0.get_mut(&self.job) {
            entry.asking = false;
        }
        self.repositories.changed.notify_waiters();
    }
}

impl Turn {
    /// Whether it is the job's turn, or it needs none.
    pub(super) fn is_held(&self) -> bool {
        lock(&self.repositories.table).0.get(&self.job).is_none_or(|entry| entry.until.is_some())
    }

    /// For whom to wait, whatever is still to be asked.
    pub(super) fn in_the_way(&self) -> Option<Holder> {
        let mut table = lock(&self.repositories.table);
        let holder = table.in_the_way(self.job, Instant::now());
        if holder.is_some() {
            table.wait(self.job, true);
        }
        holder
    }

    /// Takes it, or says for whom to wait.
    pub(super) fn take(&self) -> Result<(), Holder> {
        lock(&self.repositories.table).take(self.job, Instant::now())
    }

    /// It cannot begin for another reason: nobody waits for it meanwhile.
    pub(super) fn stand_back(&self) {
        // Told only if it is so: whoever stands back hears of it, too.
        if lock(&self.repositories.table).wait(self.job, false) {
            self.repositories.changed.notify_waiters();
        }
    }

    /// Something was heard of the job.
    pub(super) fn renew(&self) {
        lock(&self.repositories.table).hold(self.job, Instant::now() + LEASE);
    }

    /// The repository, where its own id is known.
    pub(super) fn repository(&self) -> Option<RepositoryId> {
        lock(&self.repositories.table).0.get(&self.job)?.id.clone()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.repositories.table).0.remove(&self.job);
        self.repositories.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Bench {
        table: Table,
        now: Instant,
    }

    impl Bench {
        /// Jobs 1, 2, … at these hosts and paths; `!` before the host: they must be alone.
        fn new(jobs: &[(&str, &str)]) -> Self {
            let entry = |(host, path): &(&str, &str)| Entry {
                what: if host.starts_with('!') { "prune" } else { "backup" }.to_owned(),
                host: host.trim_start_matches('!').parse().unwrap(),
                path: (*path).to_owned(),
                alone: host.starts_with('!'),
                id: None,
                until: None,
                waits: false,
                asked: None,
                asking: false,
            };
            let jobs = (1..).map(JobId).zip(jobs.iter().map(entry)).collect();
            Self { table: Table(jobs), now: Instant::now() }
        }

        fn take(&mut self, job: u64) -> Option<u64> {
            self.table.take(JobId(job), self.now).err().map(|holder| holder.job.0)
        }

        fn doubtful(&self, job: u64) -> Vec<u64> {
            self.table.doubtful(JobId(job), self.now).iter().map(|(job, _)| job.0).collect()
        }

        fn identify(&mut self, job: u64, id: char) {
            let id = RepositoryId::parse(&id.to_string().repeat(64)).unwrap();
            self.table.0.get_mut(&JobId(job)).unwrap().id = Some(id);
        }
    }

    #[test]
    fn one_repository_under_two_names_is_one_once_its_id_is_known() {
        let mut bench = Bench::new(&[("a", "/r"), ("!b", "/mnt/r"), ("c", "/x")]);
        assert_eq!(bench.take(1), None);
        assert_eq!(bench.doubtful(2), [2, 1, 3]);
        assert_eq!(bench.doubtful(3), [3, 2], "two who need not be alone do not matter to each other");
        bench.table.asks(JobId(2), bench.now);
        assert_eq!(bench.doubtful(2), [1, 3], "each is asked once a minute");
        assert!(bench.table.is_awaited(JobId(3)), "whoever asked, this one must know it as well");
        assert!(!bench.table.is_awaited(JobId(9)), "who is not here waits for nobody");
        bench.now += ASK_EVERY;
        assert_eq!(bench.doubtful(2), [1, 3], "nor again while the answer is awaited");
        bench.table.0.get_mut(&JobId(2)).unwrap().asking = false;
        assert!(!bench.table.is_awaited(JobId(3)));
        assert_eq!(bench.doubtful(2), [2, 1, 3]);
        bench.identify(1, '1');
        bench.identify(2, '1');
        bench.identify(3, '2');
        assert_eq!(bench.take(2), Some(1));
        assert_eq!(bench.take(3), None, "another repository is not concerned");
        bench.table.0.remove(&JobId(1));
        assert_eq!(bench.take(2), None);
    }

    #[test]
    fn a_name_is_of_one_repository_wherever_the_job_is() {
        let mut bench = Bench::new(&[("a", "main"), ("!b", "main"), ("c", "other")]);
        assert_eq!((bench.take(1), bench.take(2), bench.take(3)), (None, Some(1), None));
        let mut bench = Bench::new(&[("a", "/main"), ("!b", "/main")]);
        assert_eq!((bench.take(1), bench.take(2)), (None, None), "a directory is of its host");
    }

    #[test]
    fn nobody_is_asked_where_nobody_must_be_alone_or_all_have_one_name() {
        for jobs in [&[("a", "/r"), ("b", "/r")][..], &[("a", "/r"), ("!a", "/r")], &[("!a", "/r")]] {
            let bench = Bench::new(jobs);
            assert!((1..=2).all(|job| bench.doubtful(job).is_empty()), "{jobs:?}");
        }
    }

    #[test]
    fn whoever_waits_to_be_alone_is_not_overtaken_and_says_for_whom_it_waits() {
        let mut bench = Bench::new(&[("a", "/r"), ("!a", "/r"), ("a", "/r"), ("!a", "/r")]);
        assert_eq!((bench.take(1), bench.take(2)), (None, Some(1)));
        assert_eq!(bench.take(3), Some(2), "it was ordered later");
        bench.table.wait(JobId(2), false);
        assert_eq!(bench.take(3), None, "nobody waits for one whose host is away");
        bench.table.0.get_mut(&JobId(3)).unwrap().until = None;
        let holder = bench.table.take(JobId(2), bench.now).unwrap_err().to_string();
        assert!(holder.contains("backup on a (/r)"), "{holder}");
        bench.table.0.remove(&JobId(1));
        assert_eq!((bench.take(2), bench.take(3), bench.take(4)), (None, Some(2), Some(2)));
        bench.table.0.remove(&JobId(2));
        assert_eq!(bench.take(4), None, "of two who wait neither waits for the other");
        assert_eq!(bench.take(3), Some(4));
    }

    #[test]
    fn a_holder_of_whom_nothing_is_heard_lets_go_when_its_lease_ends() {
        let mut bench = Bench::new(&[("a", "/r"), ("!a", "/r")]);
        assert_eq!((bench.take(1), bench.take(2)), (None, Some(1)));
        bench.now += LEASE - Duration::from_secs(1);
        assert_eq!(bench.take(2), Some(1));
        // Heard of at the last moment.
        bench.table.hold(JobId(1), bench.now + LEASE);
        bench.now += LEASE - Duration::from_secs(1);
        assert_eq!(bench.take(2), Some(1));
        bench.now += Duration::from_secs(1);
        assert_eq!(bench.take(2), None);
    }

    #[test]
    fn only_an_id_is_an_id() {
        for bad in ["", "abc", &"g".repeat(64), &"A".repeat(64), &"a".repeat(65)] {
            assert_eq!(RepositoryId::parse(bad), None, "{bad}");
        }
    }

    /// What becomes of a job.
    #[derive(Debug, Clone)]
    enum Act {
        Take(usize),
        /// Its host is away, so it can begin nothing.
        StandBack(usize),
        /// Something is heard of it.
        Hear(usize),
        End(usize),
        Later(u64),
    }

    /// Where jobs are; two of the places are the same repository, as their agents say.
    const PLACES: [(&str, &str, char); 4] =
        [("a", "/r", '1'), ("b", "/mnt/r", '1'), ("a", "/x", '2'), ("b", "/r", '3')];

    fn any_act() -> impl Strategy<Value = Act> {
        let job = || 0..12_usize;
        prop_oneof![
            8 => job().prop_map(Act::Take),
            2 => job().prop_map(Act::StandBack),
            2 => job().prop_map(Act::Hear),
            3 => job().prop_map(Act::End),
            1 => (1..LEASE.as_secs()).prop_map(Act::Later),
        ]
    }

    impl Bench {
        fn of(jobs: &[(usize, bool)]) -> Self {
            let named = jobs.iter().map(|(place, alone)| {
                let (host, path, _) = PLACES[*place];
                (format!("{}{host}", if *alone { "!" } else { "" }), path)
            });
            let named: Vec<_> = named.collect();
            let named: Vec<_> = named.iter().map(|(host, path)| (host.as_str(), *path)).collect();
            let mut bench = Self::new(&named);
            for (job, (place, _)) in (1..).zip(jobs) {
                bench.identify(job, PLACES[*place].2);
            }
            bench
        }

        fn entry(&self, job: u64) -> Option<&Entry> {
            self.table.0.get(&JobId(job))
        }

        /// All pairs of jobs that are at one repository now, one of them to be alone there.
        fn clashes(&self) -> Vec<(u64, u64)> {
            let there: Vec<_> = self.table.0.iter().filter(|(_, entry)| entry.is_there(self.now)).collect();
            let pairs = there.iter().flat_map(|one| there.iter().map(move |other| (one, other)));
            let clash =
                pairs.filter(|((a, one), (b, other))| a < b && one.id == other.id && (one.alone || other.alone));
            clash.map(|((a, _), (b, _))| (a.0, b.0)).collect()
        }

        /// A job tries to begin; whatever it is told must be so.
        fn try_take(&mut self, job: u64) {
            let Some(own) = self.entry(job).cloned() else { return };
            let earlier_waits = self.table.0.iter().find(|(other, entry)| {
                other.0 < job && entry.id == own.id && entry.alone && entry.waits && !own.alone
            });
            let earlier_waits = earlier_waits.map(|(other, _)| other.0);
            match self.take(job) {
                None => assert_eq!(earlier_waits, None, "job {job} overtook one that waits to be alone"),
                Some(holder) => {
                    let other = self.entry(holder).unwrap();
                    assert!(holder != job && other.id == own.id, "job {job} waits for {holder}, which is elsewhere");
                    let uses = other.is_there(self.now) && (other.alone || own.alone);
                    assert!(uses || (other.alone && other.waits && holder < job), "{holder} is in nobody's way");
                    assert!(self.entry(job).unwrap().waits);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// In any order of beginnings, ends, hosts that go away, and leases that end: whoever must be alone is, and all
        /// have their turn in the end.
        #[test]
        fn never_two_where_one_must_be_alone_and_nobody_starves(
            jobs in prop::collection::vec((0..PLACES.len(), prop::bool::weighted(0.4)), 1..12),
            acts in prop::collection::vec(any_act(), 0..60),
            order in any::<prop::sample::Index>(),
        ) {
            let mut bench = Bench::of(&jobs);
            for act in acts {
                match act {
                    Act::Take(job) => bench.try_take(job as u64 + 1),
                    Act::StandBack(job) => drop(bench.table.wait(JobId(job as u64 + 1), false)),
                    // A job of which somebody hears is at its repository.
                    Act::Hear(job) => {
                        let job = job as u64 + 1;
                        if bench.entry(job).is_some_and(|entry| entry.is_there(bench.now)) {
                            bench.table.hold(JobId(job), bench.now + LEASE);
                        }
                    }
                    Act::End(job) => drop(bench.table.0.remove(&JobId(job as u64 + 1))),
                    Act::Later(seconds) => bench.now += Duration::from_secs(seconds),
                }
                prop_assert_eq!(bench.clashes(), []);
            }
            // Every job tries again whenever anything has changed, in any order; those that have their turn end.
            while !bench.table.0.is_empty() {
                let mut left: Vec<u64> = bench.table.0.keys().map(|job| job.0).collect();
                let turned = order.index(left.len());
                left.rotate_left(turned);
                left.iter().for_each(|job| bench.try_take(*job));
                prop_assert_eq!(bench.clashes(), []);
                let before = bench.table.0.len();
                let now = bench.now;
                bench.table.0.retain(|_, entry| !entry.is_there(now));
                prop_assert!(bench.table.0.len() < before, "{} wait for each other", before);
            }
        }
    }
}
