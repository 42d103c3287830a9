//! Many years that nobody thought of: random policies, fleets that come, go and grow, jobs that fail or take days,
//! operators that pause, change and begin by hand, clocks that are put back and forth, and a manager that dies between any
//! two commits. The world here has the truth; what must always hold is checked against it.
//!
//! A seed that fails is printed, and `POLICY_SEED=N` runs it alone; `POLICY_SEEDS=100000` runs more of them:
//! `POLICY_SEEDS=100000 cargo test --release --workspace --lib policy::board -- --nocapture`.

use ::tests::dice::Dice;
use proto::agent::{JobId, Outcome, Summary};
use proto::name::Target;

use super::super::machine::vocabulary::Waits;
use super::super::machine::{AHEAD_MS, TRIES_MAX};
use super::super::schedule::Schedule;
use super::*;
use crate::manager::control::jobs::JobState;

const MINUTE: Unix = 60_000;
const HOUR: Unix = 60 * MINUTE;
const DAY: Unix = 24 * HOUR;
/// 2026-01-01T00:00:00Z.
const BEGIN: Unix = 1_767_225_600_000;
const SEEDS: u64 = 40;

fn host(number: u64) -> HostName {
    format!("host-{number}").parse().unwrap()
}

fn any_policy(dice: &mut Dice, number: u64) -> Policy {
    let zone = dice.one(&["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"]);
    let backup = match dice.below(5) {
        0 => format!("every {}m", 20 + dice.below(600)),
        1 => format!("hourly :{:02}", dice.below(60)),
        2 => format!("weekly mon,thu {:02}:30 {zone}", dice.below(24)),
        _ => format!("daily {:02}:{:02} {zone}", dice.below(24), dice.below(60)),
    };
    let mut text = format!(
        "name = \"p{number}\"\nhosts = [\"@all\"]\nsources = [\"/srv\"]\nrepository = \"/r{}\"\nschedule = \"{backup}\"\n\
         jitter = \"{}m\"\n",
        dice.below(2),
        dice.below(120),
    );
    if dice.chance(40) {
        // Also one that is shorter than what others have under way.
        let (from, hours) = (dice.below(24), if dice.chance(50) { 0 } else { 8 });
        text += &format!("window = \"{from:02}:00-{:02}:30\"\n", (from + hours) % 24);
    }
    if dice.chance(60) {
        text += &format!("verify = \"{}\"\n", dice.one(&["weekly", "daily 05:00", "every 50h"]));
    }
    if dice.chance(30) {
        text += &format!("restore-test = \"{}\"\n", dice.one(&["monthly", "weekly wed", "every 30h"]));
    }
    if dice.chance(60) {
        text += "media = [\"host-0\"]\nkeep.daily = 7\nprune = \"weekly\"\ncheck = \"daily 12:00\"\n";
    }
    text += &format!("limits.repository = {}\nlimits.host = {}\n", 1 + dice.below(4), 1 + dice.below(2));
    if dice.chance(30) {
        text += &format!("limits.site = {}\nlimits.sites = [\"@even\"]\n", 1 + dice.below(2));
    }
    Policy::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// What is so, whatever the manager believes.
struct World {
    dice: Dice,
    /// Time that has passed, and what the manager's clock says beside it.
    real: Unix,
    ahead: i64,
    members: BTreeSet<HostName>,
    there: BTreeSet<HostName>,
    policies: BTreeMap<PolicyName, PolicyRecord>,
    jobs: BTreeMap<JobId, JobRecord>,
    /// When a job ends, and whether it is good.
    ends: BTreeMap<JobId, (Unix, bool)>,
    next_job: u64,
    /// The clock was put back by more than what is put up with.
    far: bool,
    /// It was put to another time at all.
    jumped: bool,
    /// Jobs are short.
    calm: bool,
    seed: u64,
}

impl Fleet for World {
    fn hosts(&self, policy: &Policy) -> (BTreeSet<HostName>, BTreeSet<HostName>) {
        let media = policy.media.iter().filter_map(|target| match target {
            Target::Host(host) => Some(host.clone()),
            Target::Group(_) => None,
        });
        (self.members.clone(), media.collect())
    }

    fn is_in(&self, host: &HostName, _: &GroupName) -> bool {
        host.as_str().ends_with(['0', '2', '4', '6', '8'])
    }

    fn is_there(&self, host: &HostName) -> bool {
        self.there.contains(host)
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let hosts = 1 + dice.below(6);
        let members: BTreeSet<HostName> = (0..hosts).map(host).collect();
        let policies = (0..1 + dice.below(3)).map(|number| {
            let policy = any_policy(&mut dice, number);
            (policy.name.clone(), PolicyRecord { policy, created: BEGIN, paused: None, since: vec![] })
        });
        let policies = policies.collect();
        Self {
            real: BEGIN,
            ahead: 0,
            there: members.clone(),
            members,
            policies,
            jobs: BTreeMap::new(),
            ends: BTreeMap::new(),
            next_job: 1,
            far: false,
            jumped: false,
            calm: false,
            seed,
            dice,
        }
    }

    fn now(&self) -> Unix {
        self.real.saturating_add_signed(self.ahead)
    }

    fn board(&self) -> Board {
        let jobs: Vec<JobRecord> = self.jobs.values().cloned().collect();
        Board::assemble(self.policies.values().cloned().collect(), &jobs, self, self.now())
    }

    fn record(&mut self, job: NewJob) -> JobRecord {
        let id = JobId(self.next_job);
        self.next_job += 1;
        let NewJob { host, product, operation, run } = job;
        let record = JobRecord {
            id,
            host,
            product,
            operation,
            run,
            state: JobState::Queued,
            created: self.now(),
            started: None,
            ended: None,
            progress: None,
            outcome: None,
            waiting: None,
            cancel: false,
            sent: 0,
        };
        let takes = if !self.calm && self.dice.chance(5) { self.dice.below(3 * DAY) } else { self.dice.below(HOUR) };
        let good = self.dice.chance(90);
        self.ends.insert(id, (self.real + takes, good));
        self.jobs.insert(id, record.clone());
        record
    }

    /// Jobs whose time has come end, on hosts that are there. Returns those that did.
    fn end_jobs(&mut self) -> Vec<JobRecord> {
        let due: Vec<JobId> = self.ends.iter().filter(|(_, (at, _))| *at <= self.real).map(|(id, _)| *id).collect();
        let mut ended = Vec::new();
        for id in due {
            let now = self.now();
            let record = self.jobs.get_mut(&id).unwrap();
            if !self.there.contains(&record.host) {
                continue;
            }
            let (_, good) = self.ends.remove(&id).unwrap();
            record.ended = Some(now);
            record.state = if good { JobState::Done } else { JobState::Failed };
            let failed = Outcome::Failed("no luck".into());
            record.outcome = Some(if good { Outcome::Done(Summary::default()) } else { failed });
            ended.push(record.clone());
        }
        ended
    }

    /// What must hold of a run that begins now.
    fn check(&self, job: &NewJob, board: &Board) {
        let run = job.run.as_ref().unwrap();
        let seed = self.seed;
        let of_lane = |record: &&JobRecord| {
            record.host == job.host
                && record.run.as_ref().is_some_and(|of| of.policy == run.policy && of.task == run.task)
        };
        let mut failed = 0;
        for record in self.jobs.values().filter(of_lane) {
            assert!(record.state.is_final(), "seed {seed}: two of a lane under way: {run:?}");
            let same = record.run.as_ref().unwrap().due == run.due;
            // Only what failed is tried again, so often, and each time later.
            assert!(self.far || !same || record.state == JobState::Failed, "seed {seed}: twice: {run:?}");
            failed += u32::from(same);
            let pause = self.now().saturating_sub(record.ended.unwrap_or(0));
            assert!(self.ahead != 0 || self.jumped || !same || pause >= 10 * MINUTE, "seed {seed}: at once: {run:?}");
        }
        assert!(self.far || failed <= TRIES_MAX, "seed {seed}: {failed} tries: {run:?}");
        let policy = &self.policies[&run.policy].policy;
        assert!(self.policies[&run.policy].paused.is_none(), "seed {seed}: paused");
        assert!(self.there.contains(&job.host), "seed {seed}: away");
        let zone = policy.schedule_of(run.task).unwrap().zone();
        assert!(policy.window.is_none_or(|window| window.is_open(zone, self.now())), "seed {seed}: window");
        let delay = rank(&run.policy, &job.host).checked_rem(policy.jitter_ms).unwrap_or(0);
        let last = policy.schedule_of(run.task).unwrap().last(self.now() - delay);
        let is_again = failed > 0;
        assert!(is_again || Some(run.due) == last, "seed {seed}: an old slot is made up for: {run:?}");
        // Those of hosts that are no longer meant hold nobody up.
        let is_meant = |record: &JobRecord| {
            let run = record.run.as_ref().unwrap();
            board.lanes.contains_key(&(run.policy.clone(), record.host.clone(), run.task))
        };
        let open =
            |record: &&JobRecord| !record.state.is_final() && self.there.contains(&record.host) && is_meant(record);
        let of_policy = |record: &JobRecord| self.policies.get(&record.run.as_ref().unwrap().policy);
        let at_place = self.jobs.values().filter(open);
        let at_place = at_place.filter(|record| of_policy(record).is_some_and(|of| of.policy.place == policy.place));
        assert!((at_place.count() as u64) < u64::from(policy.limits.repository), "seed {seed}: repository");
        let on_host = self.jobs.values().filter(open).filter(|record| record.host == job.host);
        assert!((on_host.count() as u64) < u64::from(policy.limits.host), "seed {seed}: host");
        if run.task.is_proof() {
            let backed_up = self.jobs.values().any(|record| {
                let of = record.run.as_ref().unwrap();
                of.policy == run.policy
                    && of.task == Task::Backup
                    && record.host == job.host
                    && record.state == JobState::Done
            });
            assert!(backed_up, "seed {seed}: nothing to verify");
        }
        assert!(board.records.contains_key(&run.policy));
    }

    /// Orders what is due. The manager may die before and after each commit; then it is another one.
    fn turn(&mut self, mut board: Board) -> Board {
        board.look(self);
        let orders = board.machine.tick(self.now());
        let jobs: Vec<NewJob> = orders.iter().filter_map(|order| board.job(order)).collect();
        for commit in jobs.chunks(2) {
            if self.dice.chance(4) {
                return self.board();
            }
            let mut records = Vec::new();
            for job in commit {
                self.check(job, &board);
                records.push(self.record(job.clone()));
            }
            if self.dice.chance(4) {
                return self.board();
            }
            records.iter().for_each(|record| drop(board.runs.learn(record)));
        }
        board
    }

    /// Something that nobody has planned.
    fn happens(&mut self, board: &mut Board) {
        match self.dice.below(12) {
            0 | 1 => {
                let name = host(self.dice.below(8));
                if !self.there.remove(&name) {
                    self.there.insert(name.clone());
                }
                board.connect(&name, self.there.contains(&name));
            }
            2 => {
                let name = host(self.dice.below(8));
                if !self.members.remove(&name) {
                    self.members.insert(name);
                }
            }
            3 => {
                // Daylight saving done by hand, a battery that was empty, a server of time that was wrong.
                let far = self.seed.is_multiple_of(4);
                let most = if far { 40 * DAY } else { 6 * HOUR };
                let ahead = i64::try_from(self.dice.below(2 * most)).unwrap() - i64::try_from(most).unwrap();
                let before = self.now();
                self.ahead = if self.dice.chance(50) { 0 } else { ahead };
                self.far |= far;
                self.jumped = true;
                if self.now() + AHEAD_MS < before {
                    *board = self.board();
                }
            }
            4 | 5 => {
                let names: Vec<PolicyName> = self.policies.keys().cloned().collect();
                let name = &names[usize::try_from(self.dice.below(names.len() as u64)).unwrap()];
                let now = self.now();
                let record = self.policies.get_mut(name).unwrap();
                record.paused = if record.paused.is_some() { None } else { Some(now) };
                board.set(record.clone());
            }
            6 => *board = self.board(),
            7 => {
                let names: Vec<PolicyName> = self.policies.keys().cloned().collect();
                let key = (names[0].clone(), host(self.dice.below(8)), Task::Backup);
                if board.lanes.contains_key(&key) && board.under_way(&key).is_none() {
                    let now = self.now();
                    let job = board.job_of(&key.0, &key.1, Task::Backup, now).unwrap();
                    let record = self.record(job);
                    board.began(&record);
                }
            }
            _ => {}
        }
    }

    fn step(&mut self, mut board: Board, calm: bool) -> Board {
        let wake = board.machine.wake().map_or(HOUR, |wake| wake.saturating_sub(self.now()).clamp(1, HOUR));
        self.real += wake.min(1 + self.dice.below(HOUR));
        for record in self.end_jobs() {
            // The manager may die before it hears of it.
            if self.dice.chance(98) { board.learn(&record) } else { board = self.board() }
        }
        if !calm && self.dice.chance(15) {
            self.happens(&mut board);
        }
        self.turn(board)
    }

    /// Once nothing is in the way every lane comes to its newest slot.
    fn check_that_none_is_forgotten(&mut self, mut board: Board) {
        let now = self.now();
        self.there = (0..8).map(host).collect();
        for record in self.policies.values_mut() {
            record.paused = None;
            board.set(record.clone());
        }
        (0..8).map(host).for_each(|host| board.connect(&host, true));
        self.calm = true;
        // Through a window of half an hour at a busy repository comes one a day.
        let short = |key: &&LaneKey| self.policies[&key.0].policy.window.is_some();
        let until = self.real + (9 + 3 * board.lanes.keys().filter(short).count() as u64) * DAY;
        while self.real < until {
            board = self.step(board, true);
        }
        for (key, lane) in &board.lanes {
            let policy = &self.policies[&key.0].policy;
            let schedule: &Schedule = policy.schedule_of(key.2).unwrap();
            let Some(slot) = schedule.last(now) else { continue };
            let last = board.runs.lane(key).last.map(|run| run.due);
            let done = last.is_some_and(|due| due >= slot) || slot <= BEGIN;
            let waits = board.machine.waits(*lane);
            let open = self.jobs.values().filter(|job| !job.state.is_final() && job.host == key.1);
            let open: Vec<_> = open.map(|job| (job.id, &job.run, job.created)).collect();
            // A backup that never was good is no reason to verify it.
            assert!(
                done || waits == Waits::NoBackup,
                "seed {}: {key:?} is forgotten since {slot}: {last:?}, {waits:?}, {open:?}, {:#?}",
                self.seed,
                self.policies.values().map(|of| of.policy.text()).collect::<Vec<_>>()
            );
        }
    }
}

fn run(seed: u64) -> usize {
    let mut world = World::new(seed);
    let mut board = world.board();
    let until = world.real + 30 * DAY;
    while world.real < until {
        board = world.step(board, false);
    }
    world.check_that_none_is_forgotten(board);
    world.jobs.len()
}

#[test]
fn no_run_is_twice_and_none_is_forgotten_whatever_happens() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("POLICY_SEED") {
        run(seed);
        return;
    }
    let seeds = number("POLICY_SEEDS").unwrap_or(SEEDS);
    let runs: usize = (0..seeds).map(run).sum();
    println!("{runs} runs of {seeds} seeds");
}

/// A day of ten thousand hosts: every one begins once, spread over the jitter, and never more at once than may.
#[test]
fn a_night_of_many_hosts_is_spread_and_bounded() {
    let hosts = 2000;
    let text = "name = \"n\"\nhosts = [\"@all\"]\nsources = [\"/srv\"]\nrepository = \"/r\"\n\
                schedule = \"daily 02:00 Europe/Berlin\"\njitter = \"30m\"\nlimits.repository = 50\n";
    let policy = Policy::parse(text).unwrap();
    let mut world = World::new(1);
    world.policies =
        [(policy.name.clone(), PolicyRecord { policy, created: BEGIN, paused: None, since: vec![] })].into();
    world.members = (0..hosts).map(host).collect();
    world.there = world.members.clone();
    let mut board = world.board();
    let mut begun: BTreeMap<Unix, usize> = BTreeMap::new();
    let mut open: Vec<JobRecord> = Vec::new();
    while world.real < BEGIN + 6 * HOUR {
        let orders = board.machine.tick(world.real);
        begun.insert(world.real, orders.len());
        for order in orders {
            let job = board.job(&order).unwrap();
            let record = world.record(job);
            board.runs.learn(&record);
            open.push(record);
        }
        assert!(open.len() <= 50, "{} at once", open.len());
        world.real += MINUTE;
        for mut record in open.drain(..) {
            record.state = JobState::Done;
            record.outcome = Some(Outcome::Done(Summary::default()));
            board.learn(&record);
        }
    }
    assert_eq!(begun.values().sum::<usize>(), usize::try_from(hosts).unwrap(), "each once");
    // 01:00 of Greenwich, when it is 02:00 in Berlin.
    let before: usize = begun.range(..BEGIN + HOUR).map(|(_, many)| many).sum();
    assert_eq!(before, 0);
    let first: usize = begun.range(BEGIN + HOUR..BEGIN + HOUR + 10 * MINUTE).map(|(_, many)| many).sum();
    assert!((300..=500).contains(&first), "{first} in the first third of what fits");
}
