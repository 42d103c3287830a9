//! A rollout as a pure machine: state and event become state and commands. It does no I/O and reads no clock, so the
//! same events give the same commands, and a million hosts can be simulated (`tests`).
//!
//! ```text
//! Waiting ──> Canaries ──> CanarySoak ──> Waves ──> Soak ──> Done          each ring after the one before
//!                 ^────────────┘  a canary of which nothing is heard is replaced, a few times
//! ```
//! Few things are durable: [`Progress`], and of each host the record of its change-over. A machine that is made of both
//! goes on where the last one stood. "No data" never counts as success: evidence that is missing is waited for, and then
//! the rollout halts.

mod due;
mod force;
mod judge;
mod ring;
#[cfg(test)]
mod tests;
pub mod vocabulary;

use std::sync::Arc;

use proto::message::Unix;

use super::plan::{Plan, RingPlan};
pub use force::NotForced;
use judge::Verdict;
use ring::{Host, Ring};
use vocabulary::{
    Command, Counts, End, Event, Halt, HostNo, HostState, Jobs, Missing, Phase, Progress, State, Why, Wish,
};

/// A wish that makes no sense now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the rollout is {state:?}: it cannot be told to {wish:?}")]
pub struct NotNow {
    /// What becomes of the rollout.
    pub state: State,
    /// What an operator asked for.
    pub wish: Wish,
}

/// One rollout as it goes on: events in, commands out, no clock and no I/O of its own.
#[derive(Debug)]
pub struct Machine {
    plan: Arc<Plan>,
    progress: Progress,
    hosts: Vec<Host>,
    rings: Vec<Ring>,
    /// Operations of hosts that have changed over.
    jobs: Jobs,
    now: Unix,
    commands: Vec<Command>,
}

impl Machine {
    /// A rollout as far as it is; its hosts have yet to [`Machine::join`], which is followed by a tick.
    pub fn new(plan: Arc<Plan>, progress: Progress, now: Unix) -> Self {
        let rings = plan.rings.iter().map(|_| Ring { last: now, ..Ring::default() }).collect();
        Self { plan, progress, hosts: Vec::new(), rings, jobs: Jobs::default(), now, commands: Vec::new() }
    }

    /// A host is there, as it is. Nothing follows from it before the next event. `rank` is its place in the order.
    pub fn join(&mut self, ring: u16, rank: u64, connected: bool, state: HostState) -> HostNo {
        let no = HostNo(u32::try_from(self.hosts.len()).unwrap_or(u32::MAX));
        let host = Host { ring, rank, connected, state };
        self.hosts.push(host);
        if let Some(ring) = self.rings.get_mut(usize::from(ring)) {
            ring.add(no, &host);
        }
        no
    }

    /// Whether a wish makes sense now.
    ///
    /// # Errors
    /// It does not.
    pub fn may(&self, wish: Wish) -> Result<(), NotNow> {
        may(self.progress.state, wish)
    }

    /// Takes an event at a time (milliseconds since 1970; a clock that goes back counts as one that stands). The
    /// progress must be durable before commands that concern hosts are carried out, in their order, and after those that
    /// concern rings.
    pub fn apply(&mut self, now: Unix, event: Event) -> Vec<Command> {
        self.now = self.now.max(now);
        self.take(event);
        self.expire();
        if let State::Running | State::Paused = self.progress.state {
            match judge::breach(&self.plan, &self.progress, &self.counts(), self.jobs) {
                Some(why) => self.halt(why),
                None if self.progress.state == State::Running => self.go_on(),
                None => {}
            }
        }
        if self.progress.state == State::RollingBack {
            self.roll_back();
        }
        std::mem::take(&mut self.commands)
    }

    /// What must be durable.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// What is known of a host.
    pub fn host(&self, no: HostNo) -> Option<HostState> {
        self.hosts.get(at(no)).map(|host| host.state)
    }

    /// How many hosts of each ring are in which state.
    pub fn counts(&self) -> Vec<Counts> {
        self.rings.iter().map(|ring| ring.counts).collect()
    }

    /// Counts an operation of a host that has changed over. Nothing follows from it before the next event.
    pub fn count(&mut self, done: bool) {
        self.jobs.count(done);
    }

    /// Operations before the rollout, to compare with; before it is started.
    pub fn compare_with(&mut self, baseline: Jobs) {
        self.progress.baseline = baseline;
    }

    /// Operations of hosts that have changed over.
    pub fn jobs(&self) -> Jobs {
        self.jobs
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Tick => {}
            Event::Connected(no) => self.connect(no, true),
            Event::Disconnected(no) => self.connect(no, false),
            Event::Left(no) => self.set(no, HostState::Gone),
            Event::Ordered(no) => self.set(no, HostState::InFlight(self.now)),
            Event::Ended(no, end) => self.ended(no, end),
            Event::Back(no, returned) => {
                self.set(no, if returned { HostState::Returned } else { HostState::Stuck });
            }
            Event::Restarted(no) => {
                // Beyond what may be, each further one would only be written down.
                let counted = self.plan.gates.max_restarts.is_some_and(|max| self.progress.restarts <= max);
                self.progress.restarts += u32::from(counted && self.runs_new(no));
            }
            Event::Job(no, done) => {
                if self.runs_new(no) {
                    self.jobs.count(done);
                }
            }
            Event::Wish(wish) => self.wish(wish),
            Event::Forced(no) => {
                if self.may_force(no).is_ok() {
                    self.set(no, HostState::InFlight(self.now));
                    self.commands.push(Command::Order(no));
                }
            }
        }
    }

    fn runs_new(&self, no: HostNo) -> bool {
        matches!(self.host(no), Some(HostState::Good | HostState::Already))
    }

    fn ended(&mut self, no: HostNo, end: End) {
        let state = match end {
            End::Good => HostState::Good,
            End::Already => HostState::Already,
            End::Failed => HostState::Failed,
            End::Refused => HostState::Refused,
        };
        match self.host(no) {
            // It goes back, or has: what it says of the way there is late.
            Some(HostState::Returning(_) | HostState::Returned | HostState::Stuck | HostState::Gone) | None => {}
            Some(_) => self.set(no, state),
        }
    }

    fn wish(&mut self, wish: Wish) {
        if self.may(wish).is_err() {
            return;
        }
        match wish {
            Wish::Start => {
                self.progress.started = Some(self.now);
                self.progress.judged_from = self.now;
                self.enter(State::Running);
                // The pause before the first ring begins now.
                self.progress.rings.iter_mut().for_each(|ring| ring.since = self.now);
            }
            Wish::Pause => self.enter(State::Paused),
            Wish::Resume => {
                if self.progress.state == State::Halted {
                    self.accept();
                }
                self.enter(State::Running);
            }
            Wish::Abort => self.enter(State::Aborted),
            Wish::Rollback => self.enter(State::RollingBack),
        }
    }

    /// What has failed until now no longer counts, and what is being watched is watched anew.
    fn accept(&mut self) {
        self.progress.restarts = 0;
        self.progress.judged_from = self.now;
        self.jobs = Jobs::default();
        for (known, ring) in self.progress.rings.iter_mut().zip(&mut self.rings) {
            known.accepted = judge::failures(&ring.counts, known.phase, &self.plan);
            ring.last = self.now;
            if !matches!(known.phase, Phase::Waiting | Phase::Done) {
                known.since = self.now;
            }
        }
    }

    fn connect(&mut self, no: HostNo, connected: bool) {
        let Some(mut host) = self.hosts.get(at(no)).copied() else { return };
        let ring = &mut self.rings[usize::from(host.ring)];
        ring.remove(no, &host);
        host.connected = connected;
        ring.add(no, &host);
        self.hosts[at(no)] = host;
    }

    fn set(&mut self, no: HostNo, state: HostState) {
        let Some(mut host) = self.hosts.get(at(no)).copied() else { return };
        let ring = &mut self.rings[usize::from(host.ring)];
        ring.remove(no, &host);
        host.state = state;
        ring.add(no, &host);
        ring.last = self.now;
        self.hosts[at(no)] = host;
    }

    /// Hosts that were ordered long ago and have not said how it ended.
    fn expire(&mut self) {
        for ring in 0..self.rings.len() {
            while let Some((ordered, no)) = self.rings[ring].flights.first().copied() {
                if self.now < ordered.saturating_add(self.plan.patience_ms) {
                    break;
                }
                let back = matches!(self.host(no), Some(HostState::Returning(_)));
                self.set(no, if back { HostState::Stuck } else { HostState::Silent });
            }
        }
    }

    fn halt(&mut self, why: Why) {
        let back = self.plan.rollback && why.is_breach();
        self.progress.halted = Some(Halt { at: self.now, why });
        self.enter(if back { State::RollingBack } else { State::Halted });
    }

    fn enter(&mut self, state: State) {
        self.progress.state = state;
        self.progress.since = self.now;
        if state == State::RollingBack {
            self.progress.returning = Some(self.now);
        }
    }

    fn go_on(&mut self) {
        for ring in 0..self.rings.len() {
            while self.progress.state == State::Running && self.step(ring) {}
            if self.progress.state != State::Running || self.phase(ring) != Phase::Done {
                return;
            }
        }
        self.enter(State::Done);
    }

    /// Whether the ring has come into another phase.
    fn step(&mut self, ring: usize) -> bool {
        match self.phase(ring) {
            Phase::Waiting if self.now < self.opens(ring) => false,
            Phase::Waiting => {
                self.commands.push(Command::Begun(no_of(ring)));
                self.pass(ring, Phase::Canaries)
            }
            Phase::Canaries => self.canaries(ring),
            Phase::CanarySoak => self.canaries_watched(ring),
            Phase::Waves => self.waves(ring),
            Phase::Soak => self.watched(ring),
            Phase::Done => false,
        }
    }

    fn pass(&mut self, ring: usize, phase: Phase) -> bool {
        let known = &mut self.progress.rings[ring];
        (known.phase, known.since) = (phase, self.now);
        self.rings[ring].last = self.now;
        if phase == Phase::Done {
            self.commands.push(Command::Done(no_of(ring)));
        }
        true
    }

    /// When the pause before a ring is over; of one whose ring before is not done: never.
    fn opens(&self, ring: usize) -> Unix {
        let wait = self.plan(ring).wait_ms;
        match ring.checked_sub(1).map(|before| &self.progress.rings[before]) {
            None => self.progress.rings[ring].since.saturating_add(wait),
            Some(before) if before.phase == Phase::Done => before.since.saturating_add(wait),
            Some(_) => Unix::MAX,
        }
    }

    fn canaries(&mut self, ring: usize) -> bool {
        let (needed, good) = (self.needed(ring), self.rings[ring].heard_of());
        if needed == 0 {
            return self.pass(ring, Phase::Waves);
        }
        if good >= needed {
            return self.pass(ring, Phase::CanarySoak);
        }
        let counts = self.rings[ring].counts;
        let want = needed.saturating_sub(good + counts.in_flight);
        let spare =
            (needed + self.plan.replacements + self.progress.rings[ring].accepted).saturating_sub(counts.touched());
        self.order(ring, want.min(spare));
        self.or_halt(ring, Missing::Canaries { good, needed })
    }

    fn canaries_watched(&mut self, ring: usize) -> bool {
        let due = self.progress.rings[ring].since.saturating_add(self.plan(ring).canary_soak_ms);
        if self.now < due {
            return false;
        }
        if self.rings[ring].heard_of() < self.needed(ring) {
            return self.pass(ring, Phase::Canaries);
        }
        self.judged(ring, due, Phase::Waves)
    }

    fn waves(&mut self, ring: usize) -> bool {
        self.fill(ring);
        let counts = self.rings[ring].counts;
        let needed = self.plan(ring).min_hosts;
        if counts.in_flight == 0 && counts.ready == 0 && counts.good >= needed {
            return self.pass(ring, Phase::Soak);
        }
        self.or_halt(ring, Missing::Hosts { good: counts.good, needed })
    }

    fn watched(&mut self, ring: usize) -> bool {
        let due = self.progress.rings[ring].since.saturating_add(self.plan(ring).soak_ms);
        let (good, needed) = (self.rings[ring].heard_of(), self.plan(ring).min_hosts);
        let passed = if self.now < due {
            false
        } else if good < needed {
            self.missed(ring, due, Missing::Hosts { good, needed })
        } else {
            self.judged(ring, due, Phase::Done)
        };
        if !passed && self.progress.state == State::Running {
            // Hosts that were away get theirs; once the ring is done, by its target.
            self.fill(ring);
        }
        passed
    }

    /// What the gates say at the end of a watch.
    fn judged(&mut self, ring: usize, due: Unix, next: Phase) -> bool {
        match judge::gates(&self.plan, &self.progress, self.jobs) {
            Verdict::Pass => self.pass(ring, next),
            Verdict::Breach(why) => {
                self.halt(why);
                false
            }
            Verdict::Open(missing) => self.missed(ring, due, missing),
        }
    }

    /// Evidence is missing since a time: it is waited for, and then the rollout halts.
    fn missed(&mut self, ring: usize, since: Unix, missing: Missing) -> bool {
        if self.now >= since.saturating_add(self.plan.inconclusive_ms) {
            self.halt(Why::Inconclusive { ring: no_of(ring), missing });
        }
        false
    }

    /// As long as a host may still say something, or nobody may be ordered, it is waited for.
    fn or_halt(&mut self, ring: usize, missing: Missing) -> bool {
        let counts = self.rings[ring].counts;
        if counts.in_flight > 0 || counts.ready > 0 && !self.is_open(ring) {
            return false;
        }
        self.missed(ring, self.missing_since(ring), missing)
    }

    /// Orders as many as may be in flight.
    fn fill(&mut self, ring: usize) {
        let counts = self.rings[ring].counts;
        self.order(ring, self.at_once(ring).saturating_sub(counts.in_flight));
    }

    fn order(&mut self, ring: usize, hosts: u32) {
        if !self.is_open(ring) {
            return;
        }
        for _ in 0..hosts {
            let Some((_, no)) = self.rings[ring].ready.first().copied() else { return };
            self.set(no, HostState::InFlight(self.now));
            self.commands.push(Command::Order(no));
        }
    }

    fn roll_back(&mut self) {
        for ring in (0..self.rings.len()).rev() {
            if self.phase(ring) == Phase::Waiting {
                continue;
            }
            let counts = self.rings[ring].counts;
            let room = self.at_once(ring).saturating_sub(counts.returning);
            for _ in 0..room {
                let Some(no) = self.rings[ring].heard.first().copied() else { break };
                self.set(no, HostState::Returning(self.now));
                self.commands.push(Command::Return(no));
            }
            let counts = self.rings[ring].counts;
            if counts.returning + counts.in_flight > 0 {
                return;
            }
            let known = &mut self.progress.rings[ring];
            if !known.back {
                known.back = true;
                self.commands.push(Command::Back(no_of(ring)));
            }
        }
        self.enter(State::RolledBack);
    }

    fn phase(&self, ring: usize) -> Phase {
        self.progress.rings[ring].phase
    }

    fn plan(&self, ring: usize) -> &RingPlan {
        &self.plan.rings[ring]
    }

    /// Canaries of a ring.
    fn needed(&self, ring: usize) -> u32 {
        self.plan(ring).canaries.of(self.rings[ring].counts.total())
    }

    fn at_once(&self, ring: usize) -> u32 {
        self.plan(ring).in_flight.of(self.rings[ring].counts.total()).max(1)
    }
}

/// Whether a wish makes sense in a state.
///
/// # Errors
/// It does not.
pub fn may(state: State, wish: Wish) -> Result<(), NotNow> {
    let sensible = match wish {
        Wish::Start => matches!(state, State::Planned),
        Wish::Pause => matches!(state, State::Running),
        Wish::Resume => matches!(state, State::Paused | State::Halted),
        Wish::Abort => !matches!(state, State::Done | State::Aborted | State::RolledBack),
        Wish::Rollback => !matches!(state, State::Planned | State::RollingBack | State::RolledBack),
    };
    if sensible { Ok(()) } else { Err(NotNow { state, wish }) }
}

fn at(no: HostNo) -> usize {
    proto::width::index(u64::from(no.0))
}

/// Rings are few.
fn no_of(ring: usize) -> u16 {
    u16::try_from(ring).unwrap_or(u16::MAX)
}
