//! A bad week, again and again: several hosts and policies at one real repository, with backups that are stopped or
//! given up, prunes in between, hosts that are clones of another, clocks that jump, and damage to the repository. A model in
//! memory knows what every snapshot has, and which of them each policy promised to keep: after each event all of those
//! come back byte for byte, and while something is damaged, whatever does not is named.
//!
//! A seed that fails is printed; `WEEK_SEED=N` runs it alone, `WEEK_MINUTES=20` runs new ones for so long:
//! `WEEK_MINUTES=20 cargo test --release --locked --workspace --bin agent-bin bad_week -- --nocapture`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use ::tests::dice::Dice;
use proto::look::{Keep, SnapshotFilter};

use super::*;
use crate::engine::format::locks::ALONE;
use crate::engine::restic::made::AHEAD_SECONDS;

const EVENTS: u64 = 40;
const SEEDS: u64 = 3;
const DAY: i64 = 24 * 3600;

type Content = BTreeMap<PathBuf, Vec<u8>>;

/// A snapshot that was made, as the model knows it.
struct Made {
    host: String,
    policy: usize,
    /// Milliseconds since 1970, as the clock of its host said.
    at: i64,
    content: Content,
}

struct Week {
    seed: u64,
    dice: Dice,
    bench: Bench,
    /// With what they have now.
    hosts: BTreeMap<String, Content>,
    policies: Vec<Keep>,
    made: BTreeMap<String, Made>,
    /// Files of the repository that are otherwise than they were, and what they were.
    damaged: BTreeMap<PathBuf, Vec<u8>>,
    /// An index file was put back that may name packs which a prune has removed meanwhile.
    stale_index: bool,
    job: u64,
    files: u64,
    restores: u64,
    log: Vec<String>,
}

impl Week {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let rule = |dice: &mut Dice| Keep {
            last: u32::try_from(1 + dice.below(3)).unwrap(),
            daily: u32::try_from(dice.below(4)).unwrap(),
            ..Keep::default()
        };
        let policies = (0..1 + dice.below(2)).map(|_| rule(&mut dice)).collect();
        AHEAD_SECONDS.set(0);
        ALONE.set(true);
        let (hosts, made, damaged) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (bench, log) = (Bench::new(), Vec::new());
        let mut week = Self {
            seed,
            dice,
            bench,
            hosts,
            policies,
            made,
            damaged,
            stale_index: false,
            job: 0,
            files: 0,
            restores: 0,
            log,
        };
        for host in ["host-1", "host-2"] {
            week.hosts.insert(host.into(), Content::new());
            (0..6).for_each(|_| week.change(host));
        }
        week
    }

    fn at(&self) -> Location {
        self.bench.at()
    }

    fn source(&self, host: &str) -> PathBuf {
        self.bench.path("hosts").join(host).join("srv")
    }

    /// Every host has its files under the same path, as clones do.
    fn source_of_all(&self, host: &str) -> PathBuf {
        let at = self.bench.path("at");
        drop(fs::remove_file(&at));
        symlink(self.bench.path("hosts").join(host), &at).unwrap();
        at.join("srv")
    }

    fn mark(&mut self, host: &str, policy: usize) -> Mark {
        self.job += 1;
        let mut mark = mark(false);
        mark.job = self.job;
        mark.origin.host = host.parse().unwrap();
        mark.origin.policy = Some(format!("p{policy}"));
        mark
    }

    fn say(&mut self, what: String) {
        self.log.push(what);
    }

    #[track_caller]
    fn fail(&self, what: &str) -> ! {
        panic!("seed {}: {what}\n{}", self.seed, self.log.join("\n"));
    }

    /// A file of a host comes, goes, or becomes another.
    fn change(&mut self, host: &str) {
        self.files += 1;
        let (number, source) = (self.dice.below(12), self.source(host));
        let below =
            PathBuf::from(["", "a", "a/b"][usize::try_from(number % 3).unwrap()]).join(format!("file-{number}"));
        let path = source.join(&below);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if self.dice.chance(15) {
            drop(fs::remove_file(&path));
            self.hosts.get_mut(host).unwrap().remove(&below);
            return;
        }
        let length = if self.dice.chance(5) { 700_000 } else { self.dice.below(6_000) };
        // Some contents are those of other files, too.
        let seed = if self.dice.chance(30) { self.dice.below(4) } else { 100 + self.files };
        let content = noise(seed, usize::try_from(length).unwrap());
        fs::write(&path, &content).unwrap();
        self.hosts.get_mut(host).unwrap().insert(below, content);
    }

    /// A backup that may be stopped, or given up as if its agent were killed, somewhere in its middle.
    fn back_up(&mut self) {
        let names: Vec<String> = self.hosts.keys().cloned().collect();
        let host = names[self.dice.index(names.len())].clone();
        let policy = usize::try_from(self.dice.below(self.policies.len() as u64)).unwrap();
        let (source, mark, at) = (self.source_of_all(&host), self.mark(&host, policy), self.at());
        let meter = SharedMeter::default();
        let stop = self.dice.chance(30).then(|| (self.moment(), self.dice.chance(50)));
        let ended = within(stop.map(|(after, _)| after), &meter, stop.is_some_and(|(_, kill)| kill), || {
            self.bench.engine.backup(&at, &[&source], &BackupOptions::default(), &mark, &meter)
        });
        let at = ended.as_ref().map_or(0, |work| self.begun(&work.snapshots[0]));
        self.say(format!(
            "{at}: backup of {host} by p{policy} ({stop:?}): {:?}",
            ended.as_ref().map(|w| &w.snapshots)
        ));
        match ended {
            Ok(work) => {
                let content = self.hosts[&host].clone();
                self.made.insert(work.snapshots[0].clone(), Made { host, policy, at, content });
            }
            Err(_) if stop.is_some() || !self.damaged.is_empty() => {}
            Err(error) => self.fail(&format!("a backup failed: {error}")),
        }
    }

    /// Somewhere in the middle of an operation, more often near its beginning.
    fn moment(&mut self) -> Duration {
        let most = self.dice.one(&[1_000, 10_000, 100_000]);
        Duration::from_micros(self.dice.below(most))
    }

    /// When a snapshot was begun, milliseconds since 1970, as it says itself.
    fn begun(&self, id: &str) -> i64 {
        let (state, meter) = (self.bench.path("state"), SharedMeter::default());
        let session = Session::open(&state, &self.at(), Access::Shared, false, &mark(false), &meter).unwrap();
        let snapshots = session.snapshots(&mark(false).origin, false, &meter).unwrap();
        snapshots.all().iter().find(|one| one.id.to_string() == id).unwrap().at().as_millisecond()
    }

    /// What a policy promised, by the simplest of rules: so many of the newest, and the newest of so many of the newest days,
    /// of each source of each host.
    fn promised(&self, policy: usize) -> BTreeSet<String> {
        let keep = &self.policies[policy];
        let mut kept = BTreeSet::new();
        for host in self.hosts.keys() {
            let of = self.made.iter().filter(|(_, made)| made.policy == policy && made.host == *host);
            let mut of: Vec<_> = of.map(|(id, made)| (made.at, id)).collect();
            of.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
            let last = usize::try_from(keep.last.max(1)).unwrap();
            // Of two in one millisecond nobody can say which was the later one.
            let edge = of.get(last - 1).map_or(i64::MIN, |(at, _)| *at + 1);
            kept.extend(of.iter().filter(|(at, _)| *at > edge).map(|(_, id)| (*id).clone()));
            let mut days = BTreeMap::new();
            for (at, id) in of.iter().rev() {
                let at = jiff::Timestamp::from_millisecond(*at).unwrap();
                days.insert(at.to_zoned(made::now().time_zone().clone()).date(), (at, *id));
            }
            kept.extend(days.values().rev().take(usize::try_from(keep.daily).unwrap()).map(|(_, id)| (*id).clone()));
        }
        kept
    }

    fn forget(&mut self) {
        let policy = usize::try_from(self.dice.below(self.policies.len() as u64)).unwrap();
        let (mark, at) = (self.mark("vault", policy), self.at());
        let filter = SnapshotFilter { of: HostScope::Any, source: None, tags: vec![format!("policy:p{policy}")] };
        let order = Forget { snapshots: filter, keep: self.policies[policy].clone(), dry_run: false, free: true };
        let promised = self.promised(policy);
        let ended = self.bench.engine.forget_by_rules(&at, &order, &mark, &SharedMeter::default());
        self.say(format!("forget by p{policy}: {:?}", ended.as_ref().map(|work| work.files)));
        let work = match ended {
            Ok(work) => work,
            Err(EngineError::NoRepository(_)) => return,
            Err(_) if !self.damaged.is_empty() => return,
            Err(error) => self.fail(&format!("a forget failed: {error}")),
        };
        for found in work.found {
            let Found::Snapshot(snapshot) = found else { continue };
            if snapshot.forgotten {
                if promised.contains(&snapshot.id) {
                    self.fail(&format!("{} was promised and is forgotten", snapshot.id));
                }
                self.made.remove(&snapshot.id);
            }
        }
        self.prune();
    }

    fn prune(&mut self) {
        let (mark, at, meter) = (self.mark("vault", 0), self.at(), SharedMeter::default());
        let stop = self.dice.chance(30).then(|| self.moment());
        let ended = within(stop, &meter, false, || self.bench.engine.reclaim(&at, &mark, &meter));
        self.say(format!("prune ({stop:?}): {:?}", ended.as_ref().map(|work| work.repository_bytes)));
        match ended {
            Ok(_) | Err(EngineError::NoRepository(_)) => {}
            Err(_) if stop.is_some() || !self.damaged.is_empty() => {}
            // It names the pack, and removes nothing, until a person's `restic repair index`.
            Err(EngineError::Library { what, .. })
                if self.stale_index && what.contains("Failed to open the file") => {}
            Err(error) => self.fail(&format!("a prune failed: {error}")),
        }
    }

    /// A host that is another one's clone: the same files under the same path of its own.
    fn clone_one(&mut self) {
        let names: Vec<String> = self.hosts.keys().cloned().collect();
        let (of, new) = (names[self.dice.index(names.len())].clone(), format!("host-{}", names.len() + 1));
        let content = self.hosts[&of].clone();
        for (below, bytes) in &content {
            let path = self.source(&new).join(below);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        fs::create_dir_all(self.source(&new)).unwrap();
        self.say(format!("{new} is a clone of {of}"));
        self.hosts.insert(new, content);
    }

    /// A file of the repository is gone, cut off, or has another bit.
    fn damage(&mut self) {
        let folders = ["data", "index", "snapshots"];
        let folder = self.dice.one(&folders);
        let mut files: Vec<PathBuf> = Vec::new();
        let mut left = vec![self.bench.path("repo").join(folder)];
        while let Some(path) = left.pop() {
            if path.is_dir() {
                left.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            } else if path.exists() && !self.damaged.contains_key(&path) {
                files.push(path);
            }
        }
        if files.is_empty() {
            return;
        }
        files.sort();
        let path = files[self.dice.index(files.len())].clone();
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        // Whoever removes a snapshot's file has forgotten it; nobody can see that it was there.
        let how = if folder == "snapshots" { 1 + self.dice.below(2) } else { self.dice.below(3) };
        match how {
            0 => {}
            1 => fs::write(&path, &bytes[..bytes.len() / 2]).unwrap(),
            _ => {
                let mut other = bytes.clone();
                let at = usize::try_from(self.dice.below(other.len() as u64)).unwrap();
                other[at] ^= 1;
                fs::write(&path, other).unwrap();
            }
        }
        self.say(format!("damage {how} of {folder}/{:?}", path.file_name().unwrap()));
        self.damaged.insert(path, bytes);
    }

    /// Somebody puts back what was damaged, such as out of a copy.
    fn mend(&mut self) {
        for (path, bytes) in std::mem::take(&mut self.damaged) {
            self.stale_index |= path.parent().is_some_and(|above| above.ends_with("index"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            drop(fs::remove_file(&path));
            fs::write(&path, bytes).unwrap();
        }
        self.say("mended".into());
    }

    /// Every promised snapshot comes back as it was made; while something is damaged, what does not is named.
    fn check(&mut self) {
        if !self.bench.path("repo/config").exists() {
            return;
        }
        let promised: BTreeSet<String> = (0..self.policies.len()).flat_map(|policy| self.promised(policy)).collect();
        let (meter, mark) = (SharedMeter::default(), mark(false));
        let state = self.bench.path("state");
        let session = Session::open(&state, &self.at(), Access::Shared, false, &mark, &meter);
        let session = session.unwrap_or_else(|error| self.fail(&format!("the repository does not open: {error}")));
        for id in promised {
            self.restores += 1;
            let target = self.bench.path("back");
            drop(fs::remove_dir_all(&target));
            drop(fs::remove_dir_all(state.join("restores")));
            let meter = SharedMeter::default();
            let of = SnapshotRef { of: HostScope::Any, ..reference(&id) };
            let options = RestoreOptions::default();
            let onto = crate::engine::Onto { target: &target, options: &options, over: None };
            let ended = session.restore(&state, &of, &onto, &mark, &meter);
            let problems = meter.take_problems().into_lines();
            let whole = ended.is_ok() && problems.is_empty();
            if !whole && self.damaged.is_empty() {
                self.fail(&format!("{id} does not come back: {ended:?} {problems:?}"));
            }
            if ended.is_err() {
                continue;
            }
            for (below, bytes) in &self.made[&id].content {
                let found = fs::read(target.join(below)).ok();
                let named = problems.iter().any(|line| {
                    below.ancestors().any(|above| line.contains(&target.join(above).display().to_string()))
                });
                if found.as_ref() != Some(bytes) && !(named && found.is_none()) {
                    self.fail(&format!("{} of {id} is another, and nobody says so: {problems:?}", below.display()));
                }
            }
        }
    }

    fn event(&mut self) {
        let names: Vec<String> = self.hosts.keys().cloned().collect();
        let host = names[self.dice.index(names.len())].clone();
        (0..self.dice.below(4)).for_each(|_| self.change(&host));
        match self.dice.below(20) {
            0..=8 => self.back_up(),
            9..=11 => self.forget(),
            12 => self.prune(),
            13 if self.hosts.len() < 4 => self.clone_one(),
            14..=16 => {
                let jump = i64::try_from(self.dice.below(4)).unwrap() * DAY / 2;
                let back = self.dice.chance(20);
                AHEAD_SECONDS.set(AHEAD_SECONDS.get() + if back { -5 * DAY } else { jump });
                self.say(format!("the clock is {} s ahead", AHEAD_SECONDS.get()));
            }
            17 if self.damaged.is_empty() => self.damage(),
            _ if !self.damaged.is_empty() => self.mend(),
            _ => {}
        }
        self.check();
    }
}

/// Does something which is stopped after a while, or left alone as if its process were killed.
fn within<T>(after: Option<Duration>, meter: &SharedMeter, kill: bool, act: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        let (over, is_over) = std::sync::mpsc::channel::<()>();
        if let Some(after) = after {
            scope.spawn(move || {
                // Ends with the operation, if that comes first.
                let _ = is_over.recv_timeout(after);
                if kill { meter.abandon() } else { meter.stop() }
            });
        }
        let done = act();
        drop(over);
        done
    })
}

/// Returns how many restores were compared.
fn run(seed: u64) -> u64 {
    let mut week = Week::new(seed);
    (0..EVENTS).for_each(|_| week.event());
    week.mend();
    week.check();
    let at = week.at();
    let meter = SharedMeter::default();
    if week.made.is_empty() {
        return week.restores;
    }
    week.bench.engine.check(&at, true, &mark(false), &meter).unwrap();
    let problems = meter.take_problems().into_lines();
    if !problems.is_empty() && !week.stale_index {
        week.fail(&format!("check finds {problems:?}"));
    }
    week.restores
}

#[test]
fn after_each_event_of_a_bad_week_every_promised_snapshot_comes_back() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("WEEK_SEED") {
        run(seed);
        return;
    }
    let (begun, minutes) = (Instant::now(), number("WEEK_MINUTES"));
    let first = if minutes.is_some() { std::process::id().into() } else { 0 };
    let (mut seeds, mut restores) = (0, 0);
    let goes_on = |seeds: u64| minutes.map_or(seeds < SEEDS, |minutes| begun.elapsed().as_secs() < 60 * minutes);
    while goes_on(seeds) {
        println!("seed {}", first + seeds);
        restores += run(first + seeds);
        seeds += 1;
    }
    println!("{restores} restores of {seeds} weeks from seed {first} on, {EVENTS} events each");
}
