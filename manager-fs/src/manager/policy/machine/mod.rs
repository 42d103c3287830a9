//! All policies as one pure machine: the time and what happened become runs that begin. It does no I/O and reads no
//! clock, so the same events give the same orders, and a year of ten thousand hosts can be simulated (`tests`).
//!
//! ```text
//! asleep ──slot + jitter──> due ──host there, window open, limits──> under way ──ended──> asleep
//!                            │                                                              │
//!                            └── a newer slot comes: the older one is not made up for <─────┘
//! ```
//! Nothing of it is durable but the records of the jobs that it orders, which say the slot that they are for. A machine
//! that is made of them goes on where the last one stood.

#[cfg(test)]
mod tests;
pub mod vocabulary;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use proto::message::Unix;

use vocabulary::{End, HostNo, LaneNo, Order, Past, PolicyNo, Rule, Rules, Task, Waits};

/// How far ahead of the clock a slot may lie that was run. One that lies further ahead was run by a clock that was wrong,
/// and does not count. Whoever drives the machine makes it anew when the clock goes back further than this.
pub const AHEAD_MS: u64 = 25 * 3600 * 1000;

/// How often a run that failed is tried again for its slot.
pub const TRIES_MAX: u32 = 3;
/// How long after the first failure; each time four times as long.
const TRY_AFTER_MS: u64 = 10 * 60 * 1000;
/// A window that was missed is kept free of others for as long before it opens as the longest run takes, within this.
const CLEAR_MS: std::ops::RangeInclusive<u64> = 3600 * 1000..=12 * 3600 * 1000;

/// All policies.
#[derive(Debug, Default)]
pub struct Machine {
    policies: BTreeMap<PolicyNo, Of>,
    lanes: BTreeMap<LaneNo, Lane>,
    hosts: HashMap<HostNo, Host>,
    /// Lanes in which nothing is due, by when something is.
    asleep: BTreeSet<(Unix, LaneNo)>,
    /// Lanes in which something is due, by the slot since which it is, and task: whoever waits longest comes first.
    due: BTreeSet<(Unix, Task, LaneNo)>,
    under_way: Counts,
    /// Milliseconds that the longest run took so far.
    longest: u64,
    next: u32,
    now: Unix,
}

#[derive(Debug)]
struct Of {
    rules: Rules,
    lanes: BTreeSet<LaneNo>,
}

#[derive(Debug, Default)]
struct Host {
    connected: bool,
    lanes: BTreeSet<LaneNo>,
}

#[derive(Debug)]
struct Lane {
    policy: PolicyNo,
    host: HostNo,
    task: Task,
    /// Where in the jitter it is.
    rank: u64,
    site: Option<u32>,
    past: Past,
    /// The first slot that has not been run; a newer one takes its place, but not its turn.
    late: Option<Unix>,
    /// When the run that is under way began, as far as it is known.
    begun: Option<Unix>,
    /// Where it stands in `asleep` or `due`.
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Nowhere,
    Asleep(Unix),
    /// For this slot, until the next one takes its place.
    Due(Unix, Unix),
}

/// Runs under way on hosts that are there: those of others hold nobody up.
#[derive(Debug, Default)]
struct Counts {
    repositories: HashMap<u32, u32>,
    hosts: HashMap<HostNo, u32>,
    sites: HashMap<u32, u32>,
}

/// Where somebody waits for room who has waited longer: nobody who came later takes it, whatever its own limits are.
#[derive(Debug, Default)]
struct Kept {
    hosts: HashSet<HostNo>,
    repositories: HashSet<u32>,
    sites: HashSet<u32>,
}

impl Kept {
    fn is_for_others(&self, host: HostNo, repository: Option<u32>, site: Option<u32>) -> bool {
        self.hosts.contains(&host)
            || repository.is_some_and(|repository| self.repositories.contains(&repository))
            || site.is_some_and(|site| self.sites.contains(&site))
    }
}

impl Machine {
    /// A policy is there, or has other rules. Nothing follows from it before the next tick.
    pub fn set(&mut self, policy: PolicyNo, rules: Rules) {
        let lanes = self.policies.get(&policy).map(|of| of.lanes.clone()).unwrap_or_default();
        lanes.iter().for_each(|lane| self.count(*lane, false));
        self.policies.insert(policy, Of { rules, lanes: lanes.clone() });
        for lane in lanes {
            self.count(lane, true);
            self.place(lane);
        }
    }

    /// A policy is no longer there. What is under way goes on.
    pub fn remove(&mut self, policy: PolicyNo) {
        let lanes = self.policies.get(&policy).map(|of| of.lanes.clone()).unwrap_or_default();
        lanes.into_iter().for_each(|lane| self.leave(lane));
        self.policies.remove(&policy);
    }

    /// A task of a policy is to be done on a host. `rank` says how much of the jitter it waits.
    pub fn join(
        &mut self,
        policy: PolicyNo,
        host: HostNo,
        task: Task,
        rank: u64,
        site: Option<u32>,
        past: Past,
    ) -> LaneNo {
        let no = LaneNo(self.next);
        self.next += 1;
        self.lanes.insert(
            no,
            Lane { policy, host, task, rank, site, past, late: None, begun: None, place: Place::Nowhere },
        );
        self.hosts.entry(host).or_default().lanes.insert(no);
        if let Some(of) = self.policies.get_mut(&policy) {
            of.lanes.insert(no);
        }
        self.count(no, true);
        self.place(no);
        no
    }

    /// A task is no longer to be done there.
    pub fn leave(&mut self, no: LaneNo) {
        self.count(no, false);
        self.unplace(no);
        let Some(lane) = self.lanes.remove(&no) else { return };
        if let Some(of) = self.policies.get_mut(&lane.policy) {
            of.lanes.remove(&no);
        }
        if let Some(host) = self.hosts.get_mut(&lane.host) {
            host.lanes.remove(&no);
        }
    }

    /// A host's connection is there, or gone.
    pub fn connect(&mut self, host: HostNo, connected: bool) {
        let of = self.hosts.entry(host).or_default();
        if of.connected == connected {
            return;
        }
        let lanes = of.lanes.clone();
        lanes.iter().for_each(|lane| self.count(*lane, false));
        self.hosts.entry(host).or_default().connected = connected;
        lanes.iter().for_each(|lane| self.count(*lane, true));
    }

    /// A run was begun by hand, then.
    pub fn began(&mut self, no: LaneNo, at: Unix) {
        self.set_past(no, |past| {
            let failed = if past.last >= Some(at) { past.failed } else { 0 };
            *past = Past { last: past.last.max(Some(at)), open: true, failed, ..*past };
        });
    }

    /// A run ended, then.
    pub fn ended(&mut self, no: LaneNo, end: End, at: Unix) {
        if let Some(begun) = self.lanes.get_mut(&no).and_then(|lane| lane.begun.take()) {
            self.longest = self.longest.max(at.saturating_sub(begun));
        }
        self.set_past(no, |past| {
            let (failed, failed_at) = if end == End::Failed { (past.failed + 1, at) } else { (0, 0) };
            *past = Past { open: false, good: past.good || end == End::Good, failed, failed_at, ..*past };
        });
    }

    /// What begins now, milliseconds since 1970.
    pub fn tick(&mut self, now: Unix) -> Vec<Order> {
        let back = now < self.now;
        self.now = now;
        if back {
            let all: Vec<LaneNo> = self.lanes.keys().copied().collect();
            all.into_iter().for_each(|lane| self.place(lane));
        }
        while let Some((at, lane)) = self.asleep.first().copied().filter(|(at, _)| *at <= now) {
            self.place(lane);
            // A schedule that says that something is due before it is would keep us here.
            if self.asleep.contains(&(at, lane)) {
                break;
            }
        }
        self.renew();
        let due: Vec<_> = self.due.iter().copied().collect();
        let (mut orders, mut kept) = (Vec::new(), Kept::default());
        for (_, _, no) in due {
            let Some(lane) = self.lanes.get(&no) else { continue };
            let (place, host, site) = (lane.place, lane.host, lane.site);
            let repository = self.rules(lane).map(|rules| rules.repository);
            match (self.held_up(no), place) {
                (None, Place::Due(slot, _)) if !kept.is_for_others(host, repository, site) => {
                    self.set_past(no, |past| {
                        let failed = if past.last == Some(slot) { past.failed } else { 0 };
                        *past = Past { last: Some(slot), open: true, failed, ..*past };
                    });
                    if let Some(lane) = self.lanes.get_mut(&no) {
                        lane.begun = Some(now);
                    }
                    orders.push(Order { lane: no, due: slot });
                }
                // It has missed its window before, because others were under way: not once more.
                (Some(Waits::Window(Some(opens))), _) if self.is_passed_over(no, opens) => {
                    kept.hosts.insert(host);
                    kept.repositories.extend(repository);
                    kept.sites.extend(site);
                }
                (Some(Waits::Host(_)), _) => drop(kept.hosts.insert(host)),
                (Some(Waits::Repository(_)), _) => kept.repositories.extend(repository),
                (Some(Waits::Site(_)), _) => kept.sites.extend(site),
                _ => {}
            }
        }
        orders
    }

    /// Whether a lane whose window opens then has waited for a slot that a newer one took the place of, and its turn is so
    /// near that what others begin now may still be under way.
    fn is_passed_over(&self, no: LaneNo, opens: Unix) -> bool {
        let clear = self.longest.clamp(*CLEAR_MS.start(), *CLEAR_MS.end());
        self.lanes.get(&no).is_some_and(|lane| match lane.place {
            Place::Due(slot, _) => {
                lane.late.is_some_and(|late| late < slot) && opens <= self.now.saturating_add(clear)
            }
            Place::Nowhere | Place::Asleep(_) => false,
        })
    }

    /// When the next tick is due, if nothing happens before.
    pub fn wake(&self) -> Option<Unix> {
        let windows = self.due.iter().filter_map(|(_, _, lane)| match self.held_up(*lane) {
            Some(Waits::Window(opens)) => opens,
            _ => None,
        });
        self.asleep.first().map(|(at, _)| *at).into_iter().chain(windows).min()
    }

    /// What a lane waits for.
    pub fn waits(&self, no: LaneNo) -> Waits {
        let Some(lane) = self.lanes.get(&no) else { return Waits::Until(None) };
        match lane.place {
            _ if lane.past.open => Waits::Running,
            _ if self.rules(lane).is_some_and(|rules| rules.paused) => Waits::Paused,
            Place::Nowhere => Waits::Until(None),
            Place::Asleep(at) => Waits::Until(Some(at)),
            Place::Due(..) => self.held_up(no).unwrap_or(Waits::Until(Some(self.now))),
        }
    }

    /// The first slot that a lane is late for.
    pub fn late(&self, no: LaneNo) -> Option<Unix> {
        self.lanes.get(&no)?.late
    }

    fn rules(&self, lane: &Lane) -> Option<&Rules> {
        self.policies.get(&lane.policy).map(|of| &of.rules)
    }

    fn set_past(&mut self, no: LaneNo, change: impl FnOnce(&mut Past)) {
        self.count(no, false);
        if let Some(lane) = self.lanes.get_mut(&no) {
            change(&mut lane.past);
        }
        self.count(no, true);
        self.place(no);
    }

    /// Where a lane belongs now.
    fn placed(&self, lane: &Lane) -> Place {
        let Some(rules) = self.rules(lane).filter(|_| !lane.past.open) else { return Place::Nowhere };
        let Some(rule) = rules.rules.iter().find(|rule| rule.task == lane.task) else { return Place::Nowhere };
        let base = self.base(lane, rule);
        let delay = lane.rank.checked_rem(rules.jitter_ms).unwrap_or(0);
        let from = self.now.saturating_sub(delay);
        match rule.schedule.last(from) {
            // Of several that were missed the last is made up for.
            Some(slot) if slot > base => {
                let next = rule.schedule.next(slot).unwrap_or(Unix::MAX);
                Place::Due(slot, next.saturating_add(delay))
            }
            _ => {
                let next = rule.schedule.next(base.max(from)).map(|slot| slot.saturating_add(delay));
                match (self.again(lane, base), next) {
                    (Some((slot, at)), next) if at <= self.now => Place::Due(slot, next.unwrap_or(Unix::MAX)),
                    (Some((_, at)), next) => Place::Asleep(next.map_or(at, |next| next.min(at))),
                    (None, Some(next)) => Place::Asleep(next),
                    (None, None) => Place::Nowhere,
                }
            }
        }
    }

    /// The first slot that has not been run: known from what was run last, so that a manager that dies forgets nobody's turn.
    fn first_missed(&self, lane: &Lane) -> Option<Unix> {
        let rule = self.rules(lane)?.rules.iter().find(|rule| rule.task == lane.task)?;
        rule.schedule.next(self.base(lane, rule))
    }

    /// Slots until then are done, or were asked for by nobody.
    fn base(&self, lane: &Lane, rule: &Rule) -> Unix {
        let counts = |at: &Unix| *at <= self.now.saturating_add(AHEAD_MS);
        lane.past.last.filter(counts).max(Some(rule.since).filter(counts)).unwrap_or(0)
    }

    /// The slot whose run failed, and when it is tried again; not if nobody wants it any more.
    fn again(&self, lane: &Lane, base: Unix) -> Option<(Unix, Unix)> {
        let Past { last, failed, failed_at, .. } = lane.past;
        let slot = last.filter(|last| *last == base && (1..=TRIES_MAX).contains(&failed))?;
        Some((slot, failed_at.saturating_add(TRY_AFTER_MS << (2 * (failed - 1)))))
    }

    fn place(&mut self, no: LaneNo) {
        self.unplace(no);
        let Some(lane) = self.lanes.get(&no) else { return };
        let (place, task) = (self.placed(lane), lane.task);
        let late = match place {
            Place::Nowhere | Place::Asleep(_) => None,
            Place::Due(slot, _) => Some(self.first_missed(lane).map_or(slot, |first| first.min(slot))),
        };
        if let Place::Asleep(at) = place {
            self.asleep.insert((at, no));
        }
        if let Some(late) = late {
            self.due.insert((late, task, no));
        }
        if let Some(lane) = self.lanes.get_mut(&no) {
            (lane.place, lane.late) = (place, late);
        }
    }

    fn unplace(&mut self, no: LaneNo) {
        let Some(lane) = self.lanes.get_mut(&no) else { return };
        match std::mem::replace(&mut lane.place, Place::Nowhere) {
            Place::Nowhere => {}
            Place::Asleep(at) => drop(self.asleep.remove(&(at, no))),
            Place::Due(slot, _) => drop(self.due.remove(&(lane.late.unwrap_or(slot), lane.task, no))),
        }
    }

    /// What has been due for long is due for a newer slot by now.
    fn renew(&mut self) {
        let is_old = |no: &LaneNo| match self.lanes.get(no).map(|lane| lane.place) {
            Some(Place::Due(_, until)) => until <= self.now,
            _ => false,
        };
        let old: Vec<LaneNo> = self.due.iter().map(|(_, _, lane)| *lane).filter(is_old).collect();
        old.into_iter().for_each(|lane| self.place(lane));
    }

    /// What keeps a run that is due from beginning.
    fn held_up(&self, no: LaneNo) -> Option<Waits> {
        let lane = self.lanes.get(&no)?;
        let Some(rules) = self.rules(lane) else { return Some(Waits::Until(None)) };
        let rule = rules.rules.iter().find(|rule| rule.task == lane.task);
        let zone = rule.or(rules.rules.first()).map(|rule| rule.schedule.zone());
        if rules.paused {
            return Some(Waits::Paused);
        }
        if !self.is_there(lane.host) {
            return Some(Waits::Away);
        }
        if let (Some(window), Some(zone)) = (rules.window, zone)
            && !window.is_open(zone, self.now)
        {
            return Some(Waits::Window(window.opens(zone, self.now)));
        }
        let beside = self.beside(lane);
        if lane.task.needs_backup() && !beside.clone().any(|of| of.task == Task::Backup && of.past.good) {
            return Some(Waits::NoBackup);
        }
        if let Some(other) = beside.clone().find(|of| of.past.open) {
            return Some(Waits::Behind(other.task));
        }
        let of = |count: Option<&u32>| count.copied().unwrap_or(0);
        let limits = rules.limits;
        if of(self.under_way.hosts.get(&lane.host)) >= limits.host {
            return Some(Waits::Host(limits.host));
        }
        if of(self.under_way.repositories.get(&rules.repository)) >= limits.repository {
            return Some(Waits::Repository(limits.repository));
        }
        if lane.site.is_some_and(|site| of(self.under_way.sites.get(&site)) >= limits.site) {
            return Some(Waits::Site(limits.site));
        }
        None
    }

    /// Tasks of the same policy for the same agent of the same host.
    fn beside<'a>(&'a self, lane: &'a Lane) -> impl Iterator<Item = &'a Lane> + Clone {
        let of_host = self.hosts.get(&lane.host).into_iter().flat_map(|host| &host.lanes);
        let of_host = of_host.filter_map(|no| self.lanes.get(no));
        of_host.filter(|of| of.policy == lane.policy && of.task.is_of_media() == lane.task.is_of_media())
    }

    fn is_there(&self, host: HostNo) -> bool {
        self.hosts.get(&host).is_some_and(|host| host.connected)
    }

    /// Counts what is under way in a lane, or takes it back.
    fn count(&mut self, no: LaneNo, add: bool) {
        let Some(lane) = self.lanes.get(&no).filter(|lane| lane.past.open && self.is_there(lane.host)) else {
            return;
        };
        let Some(repository) = self.rules(lane).map(|rules| rules.repository) else { return };
        let step = |count: &mut u32| *count = if add { *count + 1 } else { count.saturating_sub(1) };
        let (host, site) = (lane.host, lane.site);
        step(self.under_way.repositories.entry(repository).or_default());
        step(self.under_way.hosts.entry(host).or_default());
        if let Some(site) = site {
            step(self.under_way.sites.entry(site).or_default());
        }
    }
}
