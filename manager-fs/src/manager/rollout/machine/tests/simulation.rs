//! Many rollouts that nobody thought of: random fleets, plans, versions that are good, bad, or bad for some; hosts that
//! go away, say nothing, refuse, or fall back late; operators that pause; a manager that dies between any two commits.
//! The world here has the truth; what must always hold is checked against it, never against the machine's own counts.
//!
//! A seed that fails is printed, and `ROLLOUT_SEED=N` runs it alone. A million seeds and a million hosts:
//! `ROLLOUT_SEEDS=1000000 ROLLOUT_HOSTS=1000000 cargo test --release --workspace --lib simulation -- --nocapture`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use ::tests::dice::Dice;

use super::super::super::amount::Amount;
use super::super::super::plan::Gates;
use super::super::*;
use super::{MINUTE, plan};

const SEEDS: u32 = 3_000;
/// Of bad versions that meet ten thousand hosts each; `ROLLOUT_BAD_SEEDS=10000` is the whole of it.
const BAD_SEEDS: u32 = 20;
/// No simulated rollout takes longer.
const END: Unix = 400 * 24 * 60 * MINUTE;

/// How many of a hundred hosts are so.
#[derive(Debug, Clone, Copy)]
struct Rates {
    fails: u64,
    falls_back_late: u64,
    is_silent: u64,
    refuses: u64,
    is_away: u64,
    goes_away: u64,
    /// Of a hundred commits after which the manager dies.
    dies: u64,
}

/// What is on the manager's disk of a change-over.
#[derive(Debug, Clone, Copy)]
struct Recorded {
    ordered: Unix,
    end: Option<End>,
}

#[derive(Debug, Clone, Copy)]
struct Fact {
    ring: u16,
    rank: u64,
    connected: bool,
    runs_new: bool,
    /// The order that the host has accepted and will carry out.
    told: bool,
    order: Option<Recorded>,
    back: Option<(Unix, Option<bool>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    Connects(u32),
    Disconnects(u32),
    Carries(u32),
    FallsBack(u32),
    GoesBack(u32),
    Pauses,
    Resumes,
}

struct World {
    seed: u64,
    dice: Dice,
    rates: Rates,
    plan: Arc<Plan>,
    now: Unix,
    facts: Vec<Fact>,
    kept: Progress,
    machine: Machine,
    queue: BinaryHeap<Reverse<(Unix, u64, Happens)>>,
    count: u64,
    /// Change-overs that were ordered in each ring, and have failed.
    asked: Vec<u32>,
    failed: Vec<u32>,
    in_flight: Vec<u32>,
    /// Rings whose hosts are to have the version before, whenever they come.
    back: Vec<bool>,
    /// Rings whose hosts may see the generation, and whose hosts that come later are told of it.
    begun: Vec<bool>,
    done: Vec<bool>,
    sizes: Vec<u32>,
}

impl World {
    fn new(seed: u64, plan: Plan, sizes: &[u32], rates: Rates) -> Self {
        let mut dice = Dice::new(seed ^ 0x5eed);
        let mut facts = Vec::new();
        for (ring, size) in (0..).zip(sizes) {
            for _ in 0..*size {
                let (rank, connected) = (dice.roll(), !dice.chance(rates.is_away));
                facts.push(Fact { ring, rank, connected, runs_new: false, told: false, order: None, back: None });
            }
        }
        let (plan, kept) = (Arc::new(plan), Progress::planned(sizes.len(), 0));
        let machine = Machine::new(Arc::clone(&plan), kept.clone(), 0);
        let none = vec![0; sizes.len()];
        let queue = BinaryHeap::new();
        let (asked, failed, in_flight, back) = (none.clone(), none.clone(), none, vec![false; sizes.len()]);
        let sizes = sizes.to_vec();
        let mut world = Self {
            seed,
            dice,
            rates,
            plan,
            now: 0,
            facts,
            kept,
            machine,
            queue,
            count: 0,
            asked,
            failed,
            in_flight,
            begun: back.clone(),
            done: back.clone(),
            back,
            sizes,
        };
        for host in 0..world.facts.len() {
            let host = u32::try_from(host).unwrap();
            let at = world.dice.below(48 * 60) * MINUTE;
            if !world.fact(host).connected {
                world.later(at, Happens::Connects(host));
            } else if world.dice.chance(world.rates.goes_away) {
                world.later(at, Happens::Disconnects(host));
                let back = at + world.dice.below(6 * 60) * MINUTE;
                world.later(back, Happens::Connects(host));
            }
        }
        world.read();
        world
    }

    fn fact(&mut self, host: u32) -> &mut Fact {
        &mut self.facts[host as usize]
    }

    fn later(&mut self, at: Unix, what: Happens) {
        self.count += 1;
        self.queue.push(Reverse((at, self.count, what)));
    }

    /// The machine of a manager that has just started: out of what is on the disk, and who is connected.
    fn read(&mut self) {
        self.machine = Machine::new(Arc::clone(&self.plan), self.kept.clone(), self.now);
        let mut again = Vec::new();
        for host in 0..self.facts.len() {
            let fact = self.facts[host];
            let state = match (fact.back, fact.order) {
                (Some((at, None)), _) => HostState::Returning(at),
                (Some((_, Some(true))), _) => HostState::Returned,
                (Some((_, Some(false))), _) => HostState::Stuck,
                (None, None) => HostState::Pending,
                (None, Some(Recorded { ordered, end: None })) => HostState::InFlight(ordered),
                (None, Some(Recorded { end: Some(End::Failed), .. })) => HostState::Failed,
                (None, Some(Recorded { end: Some(End::Refused), .. })) => HostState::Refused,
                (None, Some(Recorded { end: Some(_), .. })) => HostState::Good,
            };
            self.machine.join(fact.ring, fact.rank, fact.connected, state);
            again.push(u32::try_from(host).unwrap());
        }
        // What may not have been sent is sent again.
        again.into_iter().for_each(|host| self.send(host));
        self.on(Event::Tick);
    }

    /// Gives the machine an event and does what it says, unless the manager dies on the way.
    fn on(&mut self, event: Event) {
        let commands = self.machine.apply(self.now, event);
        for command in &commands {
            let (of, ring) = match command {
                Command::Begun(ring) => (&mut self.begun, ring),
                Command::Done(ring) => (&mut self.done, ring),
                Command::Back(ring) => (&mut self.back, ring),
                Command::Order(_) | Command::Return(_) => continue,
            };
            of[usize::from(*ring)] = true;
            if self.dies() {
                return self.read();
            }
        }
        if self.dies() {
            return self.read();
        }
        self.kept = self.machine.progress().clone();
        if self.dies() {
            return self.read();
        }
        let mut sent = Vec::new();
        for command in commands {
            match command {
                Command::Order(no) => {
                    self.may_be_ordered(no.0);
                    let ordered = self.now;
                    let fact = self.fact(no.0);
                    fact.order = Some(Recorded { ordered, end: None });
                    let ring = usize::from(fact.ring);
                    self.asked[ring] += 1;
                    self.in_flight[ring] += 1;
                    sent.push(no.0);
                }
                Command::Return(no) => {
                    assert!(self.fact(no.0).back.is_none(), "host {no:?} is told twice to go back");
                    self.fact(no.0).back = Some((self.now, None));
                    sent.push(no.0);
                }
                Command::Begun(_) | Command::Done(_) | Command::Back(_) => {}
            }
        }
        self.holds();
        if self.dies() {
            return self.read();
        }
        sent.into_iter().for_each(|host| self.send(host));
    }

    fn dies(&mut self) -> bool {
        let percent = self.rates.dies;
        percent > 0 && self.dice.chance(percent)
    }

    /// What must hold of every order, by the truth.
    fn may_be_ordered(&mut self, host: u32) {
        let (state, fact) = (self.kept.state, *self.fact(host));
        let ring = usize::from(fact.ring);
        assert!(fact.order.is_none(), "host {host} is ordered twice");
        assert!(self.begun[ring], "host {host} is ordered what it may not see");
        assert_eq!(state, State::Running, "host {host} is ordered although it does not run");
        let hours = self.plan.rings[ring].hours.as_ref();
        assert!(
            hours.is_none_or(|hours| hours.open_since(self.now).is_some()),
            "host {host} is ordered out of hours"
        );
        let before = self.kept.rings.iter().take(ring);
        assert!(
            before.clone().all(|ring| ring.phase == Phase::Done),
            "host {host} is ordered before its ring's turn"
        );
        assert!(self.failed[ring] <= self.plan.rings[ring].max_failures, "ring {ring} is over its budget");
        assert!(self.failed.iter().sum::<u32>() <= self.plan.max_failures, "all together are over their budget");
        if self.kept.rings[ring].phase == Phase::Canaries {
            let most = self.plan.rings[ring].canaries.of(self.sizes[ring]) + self.plan.replacements;
            assert!(self.asked[ring] < most, "more canaries than {most} in ring {ring}");
        }
    }

    fn holds(&self) {
        for (ring, planned) in self.plan.rings.iter().enumerate() {
            let most = planned.in_flight.of(self.sizes[ring]).max(1).max(planned.canaries.of(self.sizes[ring]));
            // Those that say nothing have given their place to others.
            let silent = self.machine.counts()[ring].silent;
            let flying = self.in_flight[ring].saturating_sub(silent);
            assert!(flying <= most, "{flying} in flight in ring {ring}; {most} may be");
        }
    }

    /// The order reaches the host, if it is there and has not had it.
    fn send(&mut self, host: u32) {
        let now = self.now;
        let took = (1 + self.dice.below(20)) * MINUTE;
        let (refuses, silent) = (self.dice.chance(self.rates.refuses), self.dice.chance(self.rates.is_silent));
        let fact = self.fact(host);
        if !fact.connected {
            return;
        }
        match (fact.back, fact.order) {
            (Some((_, None)), _) => self.later(now + took, Happens::GoesBack(host)),
            (None, Some(Recorded { end: None, .. })) if !fact.told => {
                fact.told = true;
                if refuses {
                    self.over(host, End::Refused);
                } else if !silent {
                    self.later(now + took, Happens::Carries(host));
                }
            }
            _ => {}
        }
    }

    /// A change-over has ended: on the disk, then for the machine.
    fn over(&mut self, host: u32, end: End) {
        let fact = self.fact(host);
        let ring = usize::from(fact.ring);
        let Some(order) = &mut fact.order else { panic!("host {host} was never ordered") };
        let first = order.end.replace(end).is_none();
        self.in_flight[ring] -= u32::from(first);
        self.failed[ring] += u32::from(end == End::Failed);
        if !self.dies() {
            self.on(Event::Ended(HostNo(host), end));
        } else {
            self.read();
        }
    }

    /// A host that comes after its ring was rolled back goes back by the target of its ring.
    fn by_its_target(&mut self, host: u32) {
        let fact = *self.fact(host);
        if self.back[usize::from(fact.ring)] && fact.connected && fact.runs_new {
            self.fact(host).runs_new = false;
        }
    }

    fn happens(&mut self, what: Happens) {
        match what {
            Happens::Connects(host) => {
                self.fact(host).connected = true;
                self.on(Event::Connected(HostNo(host)));
                self.send(host);
                self.by_its_target(host);
            }
            Happens::Disconnects(host) => {
                self.fact(host).connected = false;
                self.on(Event::Disconnected(HostNo(host)));
            }
            Happens::Carries(host) => {
                if self.dice.chance(self.rates.fails) {
                    return self.over(host, End::Failed);
                }
                self.fact(host).runs_new = true;
                self.over(host, End::Good);
                self.by_its_target(host);
                if self.dice.chance(self.rates.falls_back_late) {
                    let at = self.now + self.dice.below(120) * MINUTE;
                    self.later(at, Happens::FallsBack(host));
                }
            }
            Happens::FallsBack(host) => {
                if self.fact(host).runs_new && self.fact(host).back.is_none() {
                    self.fact(host).runs_new = false;
                    self.over(host, End::Failed);
                }
            }
            Happens::GoesBack(host) => {
                if let Some((_, end @ None)) = &mut self.fact(host).back {
                    *end = Some(true);
                    self.fact(host).runs_new = false;
                    self.on(Event::Back(HostNo(host), true));
                }
            }
            Happens::Pauses => self.on(Event::Wish(Wish::Pause)),
            // Whoever resumes does it again when the manager dies before it has answered.
            Happens::Resumes => {
                while self.kept.state == State::Paused {
                    self.on(Event::Wish(Wish::Resume));
                }
            }
        }
    }

    /// Lets everything happen. Returns how many events there were.
    fn run(&mut self) -> u64 {
        self.on(Event::Wish(Wish::Start));
        // The manager may have died before it was durable.
        while self.kept.state == State::Planned {
            self.on(Event::Wish(Wish::Start));
        }
        let mut events = 0;
        loop {
            let next = self.queue.peek().map(|Reverse((at, ..))| *at);
            let due = self.machine.wake();
            match (next, due) {
                (None, None) => return events,
                (next, Some(due)) if next.is_none_or(|next| due < next) => {
                    self.now = due;
                    self.on(Event::Tick);
                }
                _ => {
                    let Some(Reverse((at, _, what))) = self.queue.pop() else { return events };
                    self.now = self.now.max(at);
                    self.happens(what);
                }
            }
            events += 1;
            assert!(self.now < END, "it goes on for ever: {:?}", self.machine.progress());
        }
    }

    /// What must hold when nothing more can happen.
    fn at_the_end(&self) {
        let state = self.kept.state;
        assert!(matches!(state, State::Done | State::Halted | State::RolledBack), "it ended as {state:?}");
        assert_eq!(state == State::Done, self.kept.halted.is_none(), "{:?}", self.kept.halted);
        let counts = self.machine.counts();
        for (ring, counts) in counts.iter().enumerate() {
            assert_eq!(counts.total(), self.sizes[ring], "every host has a state");
            assert_eq!(counts.in_flight + counts.returning, 0, "{counts:?}");
            let (phase, back) = (self.kept.rings[ring].phase, self.kept.rings[ring].back);
            assert!(self.done[ring] || phase != Phase::Done, "hosts of ring {ring} that come later are not told");
            assert!(self.back[ring] || !back, "hosts of ring {ring} that come later are told what was taken back");
            // Those that fall back when it is done are nobody's any more.
            if state == State::Done && self.rates.falls_back_late == 0 {
                assert!(counts.good >= self.plan.rings[ring].min_hosts, "{counts:?}");
            }
        }
        for fact in &self.facts {
            let left = state == State::RolledBack && fact.connected && fact.runs_new;
            // One that does not carry out what it is told has a name of its own: stuck.
            assert!(
                !left || matches!(fact.back, Some((_, None))),
                "a host that runs the new version was left: {fact:?}"
            );
        }
    }
}

/// A plan and a fleet that nobody thought of.
fn made_up(seed: u64) -> World {
    let mut dice = Dice::new(seed);
    let rings = 1 + dice.below(4);
    let mut planned = Vec::new();
    let mut sizes = Vec::new();
    for number in 0..rings {
        let in_flight = if dice.chance(50) {
            Amount::Percent(u8::try_from(1 + dice.below(100)).unwrap())
        } else {
            Amount::Hosts(u32::try_from(1 + dice.below(9)).unwrap())
        };
        let small = |dice: &mut Dice, end| u32::try_from(dice.below(end)).unwrap();
        planned.push(RingPlan {
            wait_ms: dice.below(60) * MINUTE,
            canary_soak_ms: dice.below(90) * MINUTE,
            max_failures: small(&mut dice, 4),
            soak_ms: dice.below(120) * MINUTE,
            min_hosts: small(&mut dice, 4),
            hours: dice.chance(30).then(|| {
                let from = dice.below(24);
                format!("{from:02}:00-{:02}:30", (from + dice.below(12)) % 24).parse().unwrap()
            }),
            ..super::ring(&format!("r{number}"), small(&mut dice, 4), in_flight)
        });
        sizes.push(small(&mut dice, 25));
    }
    let plan = Plan {
        rollback: dice.chance(50),
        max_failures: u32::try_from(dice.below(7)).unwrap(),
        replacements: u32::try_from(dice.below(4)).unwrap(),
        gates: Gates::default(),
        ..plan(planned)
    };
    let sometimes = |dice: &mut Dice, percents: [u64; 4]| dice.one(&percents);
    let rates = Rates {
        fails: sometimes(&mut dice, [0, 0, 5, 100]),
        falls_back_late: sometimes(&mut dice, [0, 0, 3, 50]),
        is_silent: sometimes(&mut dice, [0, 0, 5, 40]),
        refuses: sometimes(&mut dice, [0, 0, 5, 40]),
        is_away: sometimes(&mut dice, [0, 10, 30, 90]),
        goes_away: sometimes(&mut dice, [0, 10, 30, 90]),
        dies: sometimes(&mut dice, [0, 0, 2, 20]),
    };
    let mut world = World::new(seed, plan, &sizes, rates);
    if dice.chance(30) {
        let at = dice.below(600) * MINUTE;
        world.later(at, Happens::Pauses);
        let resumed = at + dice.below(600) * MINUTE;
        world.later(resumed, Happens::Resumes);
    }
    world
}

fn run(seed: u64) -> State {
    let told = std::panic::catch_unwind(|| {
        let mut world = made_up(seed);
        world.run();
        world.at_the_end();
        if world.rates.fails == 100 {
            let (first, later) = world.asked.split_first().expect("a ring");
            let canaries = world.plan.rings[0].canaries.of(world.sizes[0]);
            let most = match canaries {
                // Without canaries the first wave meets it, until it is over its budget.
                0 => world.plan.rings[0].in_flight.of(world.sizes[0]).max(1) + world.plan.rings[0].max_failures,
                canaries => canaries + world.plan.replacements,
            };
            assert!(*first <= most + world.machine.counts()[0].silent + world.machine.counts()[0].refused);
            assert!(canaries == 0 || later.iter().all(|asked| *asked == 0), "a bad version passed its gate");
        }
        world.kept.state
    });
    told.unwrap_or_else(|_| panic!("ROLLOUT_SEED={seed} runs this one alone"))
}

/// How many, unless the command says more.
fn wanted(variable: &str, otherwise: u32) -> u32 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

#[test]
fn whatever_happens_the_budgets_hold_nobody_is_ordered_twice_and_everything_ends() {
    if let Ok(seed) = std::env::var("ROLLOUT_SEED") {
        println!("{:?}", run(seed.parse().unwrap()));
        return;
    }
    let mut ends = std::collections::BTreeMap::new();
    let seeds = u64::from(wanted("ROLLOUT_SEEDS", SEEDS));
    for seed in 0..seeds {
        *ends.entry(format!("{:?}", run(seed))).or_insert(0) += 1;
    }
    println!("seeds 0 to {seeds}: {ends:?}");
    assert!(["Done", "Halted", "RolledBack"].iter().all(|end| ends.get(*end).is_some_and(|many| *many > seeds / 50)));
}

const QUIET: Rates =
    Rates { fails: 0, falls_back_late: 0, is_silent: 0, refuses: 0, is_away: 0, goes_away: 0, dies: 0 };

/// Rings of a careful plan for so many hosts: 1 %, 9 %, and the rest.
fn careful(hosts: u32) -> (Plan, [u32; 3]) {
    let ring = |name, max_failures| RingPlan {
        max_failures,
        soak_ms: 60 * MINUTE,
        in_flight: Amount::Percent(10),
        ..super::ring(name, 5, Amount::Percent(10))
    };
    let rings = vec![ring("first", 1), ring("second", 3), ring("rest", 20)];
    let first = hosts / 100;
    (Plan { rollback: true, max_failures: 20, ..plan(rings) }, [first, first * 9, hosts - first * 10])
}

#[test]
fn a_version_that_fails_on_some_hosts_or_late_touches_few_of_them() {
    const HOSTS: u32 = 10_000;
    let mut worst = 0;
    for seed in 0..u64::from(wanted("ROLLOUT_BAD_SEEDS", BAD_SEEDS)) {
        for rates in [
            Rates { fails: 10, ..QUIET },
            Rates { falls_back_late: 10, ..QUIET },
            Rates { fails: 100, is_away: 20, dies: 1, ..QUIET },
        ] {
            let (plan, sizes) = careful(HOSTS);
            let mut world = World::new(seed, plan, &sizes, rates);
            world.run();
            world.at_the_end();
            assert_eq!(world.kept.state, State::RolledBack, "seed {seed}");
            worst = worst.max(world.asked.iter().sum::<u32>());
        }
    }
    println!("at most {worst} of {HOSTS} hosts were asked");
    assert!(worst <= HOSTS / 50, "{worst} of {HOSTS}");
}

#[test]
fn the_same_seed_gives_the_same_rollout() {
    let trace = |seed| {
        let mut world = made_up(seed);
        let events = world.run();
        (events, world.kept.clone(), world.machine.counts(), world.seed)
    };
    for seed in 0..50 {
        assert_eq!(trace(seed), trace(seed));
    }
}

#[test]
fn many_hosts_end_where_they_should() {
    let hosts = wanted("ROLLOUT_HOSTS", 20_000);
    let (plan, sizes) = careful(hosts);
    let rates = Rates { is_away: 10, goes_away: 5, ..QUIET };
    let mut world = World::new(1, plan, &sizes, rates);
    let since = std::time::Instant::now();
    let events = world.run();
    world.at_the_end();
    println!("{events} events in {:?}: {:?}", since.elapsed(), world.machine.counts());
    assert_eq!(world.kept.state, State::Done);
}
