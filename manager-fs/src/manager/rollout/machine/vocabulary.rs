//! What the machine hears, orders and keeps.

use std::fmt;

use proto::message::Unix;
use serde::{Deserialize, Serialize};

/// A host, by the machine's own number: the first that joined is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostNo(pub u32);

/// What must be durable of a rollout, beside its plan and the record of each host's change-over. It changes with the
/// phases of rings and never with a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What becomes of it.
    pub state: State,
    /// Since when that holds, milliseconds since 1970.
    pub since: Unix,
    /// When it was started.
    pub started: Option<Unix>,
    /// When it was last told to go back.
    pub returning: Option<Unix>,
    /// Each ring, as in the plan.
    pub rings: Vec<RingProgress>,
    /// Why it halted last; stays through a rollback.
    pub halted: Option<Halt>,
    /// Operations of the product that ended before the start.
    pub baseline: Jobs,
    /// From when on storage operations count: the start, or the last time that an operator accepted what had failed.
    pub judged_from: Unix,
    /// Agents that were started anew after they had proved themselves.
    pub restarts: u32,
}

impl Progress {
    /// Whether nothing more will happen, unless an operator takes it back.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::RolledBack | State::Done | State::Aborted)
    }

    /// Of a rollout that has been planned at this time.
    pub fn planned(rings: usize, now: Unix) -> Self {
        let ring = RingProgress { phase: Phase::Waiting, since: now, accepted: 0, back: false };
        Self {
            state: State::Planned,
            since: now,
            started: None,
            returning: None,
            rings: vec![ring; rings],
            halted: None,
            baseline: Jobs::default(),
            judged_from: now,
            restarts: 0,
        }
    }
}

/// How far a ring is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingProgress {
    /// What happens in it.
    pub phase: Phase,
    /// Since when that holds, milliseconds since 1970.
    pub since: Unix,
    /// Failures that an operator has accepted by resuming.
    pub accepted: u32,
    /// It has been rolled back.
    pub back: bool,
}

/// What becomes of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nobody has started it.
    Planned,
    /// It goes on.
    Running,
    /// An operator stopped it; what was ordered goes on.
    Paused,
    /// It stopped itself.
    Halted,
    /// Hosts go back to what they ran.
    RollingBack,
    /// They have.
    RolledBack,
    /// Every ring is done.
    Done,
    /// An operator gave it up.
    Aborted,
}

impl State {
    /// All of them.
    pub const ALL: [State; 8] = [
        State::Planned,
        State::Running,
        State::Paused,
        State::Halted,
        State::RollingBack,
        State::RolledBack,
        State::Done,
        State::Aborted,
    ];

    /// Whether something may still happen by itself.
    pub fn is_live(self) -> bool {
        match self {
            State::Running | State::Paused | State::RollingBack => true,
            State::Planned | State::Halted | State::RolledBack | State::Done | State::Aborted => false,
        }
    }
}

/// What happens in a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The ring before is not done, or its pause is not over.
    Waiting,
    /// The canaries change over.
    Canaries,
    /// The canaries are watched.
    CanarySoak,
    /// The others change over, some at once.
    Waves,
    /// All are watched.
    Soak,
    /// The ring has the new generation.
    Done,
}

/// Why a rollout stopped itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halt {
    /// When it stopped, milliseconds since 1970.
    pub at: Unix,
    /// Which gate or budget did not hold, with its figures.
    pub why: Why,
}

/// Why a rollout stops itself. Rings are numbered as in the plan, from 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// A canary failed.
    Canary {
        /// In which ring.
        ring: u16,
    },
    /// More hosts of a ring failed than may.
    Ring {
        /// Which.
        ring: u16,
        /// Hosts that failed.
        failed: u32,
        /// Hosts that may.
        allowed: u32,
    },
    /// More hosts of all rings failed than may.
    Total {
        /// Hosts that failed.
        failed: u32,
        /// Hosts that may.
        allowed: u32,
    },
    /// Too few storage operations succeed.
    Jobs {
        /// Those that ended on hosts that have changed over.
        seen: Jobs,
        /// How many of a thousand must be done.
        wanted_per_mille: u32,
    },
    /// Agents were started anew too often.
    Restarts {
        /// How often.
        restarts: u32,
        /// How often they may.
        allowed: u32,
    },
    /// There is no evidence either way, and there was time enough.
    Inconclusive {
        /// Of which ring.
        ring: u16,
        /// What is missing.
        missing: Missing,
    },
}

impl Why {
    /// Whether the new version is to blame, so that going back helps.
    pub fn is_breach(&self) -> bool {
        !matches!(self, Why::Inconclusive { .. })
    }

    /// The ring that it happened in, where it was one.
    pub fn ring(&self) -> Option<u16> {
        match self {
            Why::Canary { ring } | Why::Ring { ring, .. } | Why::Inconclusive { ring, .. } => Some(*ring),
            Why::Total { .. } | Why::Jobs { .. } | Why::Restarts { .. } => None,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Canary { .. } => f.write_str("a canary failed"),
            Why::Ring { failed, allowed, .. } => write!(f, "it failed on {failed} hosts of the ring; {allowed} may"),
            Why::Total { failed, allowed } => write!(f, "it failed on {failed} hosts in all; {allowed} may"),
            Why::Jobs { seen, wanted_per_mille } => {
                let of = seen.ended();
                let (whole, tenth) = (wanted_per_mille / 10, wanted_per_mille % 10);
                write!(f, "{} of {of} operations of the new version were done; {whole}.{tenth}% must be", seen.done)
            }
            Why::Restarts { restarts, allowed } => {
                write!(f, "agents were started anew {restarts} times after they had proved themselves; {allowed} may")
            }
            Why::Inconclusive { missing, .. } => write!(f, "no evidence in time: {missing}"),
        }
    }
}

/// Evidence that there is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Missing {
    /// Canaries that are good and heard of.
    Canaries {
        /// So many are.
        good: u32,
        /// So many must be.
        needed: u32,
    },
    /// Hosts that are good and heard of.
    Hosts {
        /// So many are.
        good: u32,
        /// So many must be.
        needed: u32,
    },
    /// Storage operations that ended.
    Jobs {
        /// So many did.
        ended: u32,
        /// So many must.
        needed: u32,
    },
    /// Storage operations before the rollout, to compare with.
    Baseline {
        /// So many had ended.
        ended: u32,
        /// So many must have.
        needed: u32,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Missing::Canaries { good, needed } => write!(f, "{good} of {needed} canaries are good and heard of"),
            Missing::Hosts { good, needed } => {
                write!(f, "{good} hosts of the ring are good and heard of; want {needed}")
            }
            Missing::Jobs { ended, needed } => {
                write!(f, "{ended} operations of the new version ended; want {needed}")
            }
            Missing::Baseline { ended, needed } => {
                write!(f, "{ended} operations had ended before the rollout, too few to compare with; want {needed}")
            }
        }
    }
}

/// Storage operations that ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jobs {
    /// How many were done, with problems or without.
    pub done: u32,
    /// Failed. Those that were cancelled do not count.
    pub failed: u32,
}

impl Jobs {
    /// All that ended, done or failed.
    pub fn ended(self) -> u32 {
        self.done.saturating_add(self.failed)
    }

    /// Counts one that ended; `done`: it did not fail.
    pub fn count(&mut self, done: bool) {
        let of = if done { &mut self.done } else { &mut self.failed };
        *of = of.saturating_add(1);
    }

    /// How many of a thousand were done; all of none.
    pub(super) fn done_per_mille(self) -> u32 {
        let share = u64::from(self.done) * 1000 / u64::from(self.ended()).max(1);
        if self.ended() == 0 { 1000 } else { u32::try_from(share).unwrap_or(1000) }
    }
}

/// What became of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostState {
    /// Nothing yet.
    Pending,
    /// It was ordered, then.
    InFlight(Unix),
    /// The new generation runs there and has proved itself.
    Good,
    /// The new generation ran there before this rollout.
    Already,
    /// It was tried, and the generation before runs there.
    Failed,
    /// It was not tried.
    Refused,
    /// It was ordered and has not said in time how it ended.
    Silent,
    /// It was ordered back, then.
    Returning(Unix),
    /// It runs what it ran before.
    Returned,
    /// It did not go back.
    Stuck,
    /// It is no longer in the ring, was revoked, or somebody ordered something else there.
    Gone,
}

/// How many hosts are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Nothing has happened there yet, and they are connected.
    pub ready: u32,
    /// Nothing has happened there yet, and they are away.
    pub away: u32,
    /// They were ordered, and it is not over there.
    pub in_flight: u32,
    /// The new generation runs there and has proved itself.
    pub good: u32,
    /// It was tried, and the generation before runs there.
    pub failed: u32,
    /// It was not tried.
    pub refused: u32,
    /// They were ordered and have not said in time how it ended.
    pub silent: u32,
    /// They were ordered back.
    pub returning: u32,
    /// They run what they ran before.
    pub returned: u32,
    /// They did not go back.
    pub stuck: u32,
}

impl Counts {
    /// All hosts of the ring.
    pub fn total(&self) -> u32 {
        let before = [self.ready, self.away, self.in_flight];
        let after = [self.good, self.failed, self.refused, self.silent, self.returning, self.returned, self.stuck];
        before.iter().chain(&after).sum()
    }

    /// Hosts that were asked to change over.
    pub fn touched(&self) -> u32 {
        self.total() - self.ready - self.away
    }
}

/// What a rollout is told: that time has passed, what became of a host, what an operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Time has passed, or hosts have joined.
    Tick,
    /// A host's connection is there.
    Connected(HostNo),
    /// A host's connection is gone.
    Disconnected(HostNo),
    /// A host is no longer the rollout's.
    Left(HostNo),
    /// A change-over to the new generation was ordered by somebody else, and counts.
    Ordered(HostNo),
    /// How a change-over to the new generation ended.
    Ended(HostNo, End),
    /// How a change-over back ended; `true`: the generation before runs.
    Back(HostNo, bool),
    /// An agent of the new version was started anew.
    Restarted(HostNo),
    /// A storage operation of a host ended; `true`: done.
    Job(HostNo, bool),
    /// An operator wants something that [`super::Machine::may`] allows.
    Wish(Wish),
    /// An operator wants a host ordered now, which [`super::Machine::may_force`] allows.
    Forced(HostNo),
}

/// How a change-over ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The new version runs and has proved itself.
    Good,
    /// It ran already: a rollback leaves it.
    Already,
    /// The version before runs, also when the new one had proved itself once.
    Failed,
    /// It was not tried.
    Refused,
}

/// What an operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    /// Begin.
    Start,
    /// Order nothing more for now.
    Pause,
    /// Go on; what failed until now is accepted.
    Resume,
    /// Give it up; what has changed over stays.
    Abort,
    /// Take it back, newest ring first.
    Rollback,
}

/// Something to do. What concerns a ring is done before the progress is made durable, as nothing else tells that it was
/// not, and may be done twice; what concerns a host is done after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Tell this host to change over.
    Order(HostNo),
    /// Tell this host to go back.
    Return(HostNo),
    /// This ring begins: its hosts may see the generation.
    Begun(u16),
    /// This ring has the new generation, also hosts of it that come later.
    Done(u16),
    /// This ring has the generation before, also hosts of it that come later.
    Back(u16),
}
