//! The hosts of one ring, counted and in the order in which they are chosen.

use std::collections::BTreeSet;

use proto::message::Unix;

use super::vocabulary::{Counts, HostNo, HostState};

/// A host of a ring.
#[derive(Debug, Clone, Copy)]
pub(super) struct Host {
    pub(super) ring: u16,
    /// Its place in the order, out of a hash: no list of chosen hosts is kept, and everybody chooses the same.
    pub(super) rank: u64,
    pub(super) connected: bool,
    pub(super) state: HostState,
}

/// What is known of a ring's hosts together.
#[derive(Debug, Default)]
pub(super) struct Ring {
    pub(super) counts: Counts,
    /// Connected, and nothing has happened there.
    pub(super) ready: BTreeSet<(u64, HostNo)>,
    /// Good by this rollout, and connected.
    pub(super) heard: BTreeSet<HostNo>,
    /// Good before it, and connected.
    pub(super) already: BTreeSet<HostNo>,
    /// What was ordered and is not over, oldest first.
    pub(super) flights: BTreeSet<(Unix, HostNo)>,
    /// When something was last ordered here or ended.
    pub(super) last: Unix,
}

impl Ring {
    /// Counts a host in.
    pub(super) fn add(&mut self, no: HostNo, host: &Host) {
        *self.count(host) += u32::from(host.state != HostState::Gone);
        match host.state {
            HostState::Pending if host.connected => drop(self.ready.insert((host.rank, no))),
            HostState::Good if host.connected => drop(self.heard.insert(no)),
            HostState::Already if host.connected => drop(self.already.insert(no)),
            HostState::InFlight(at) | HostState::Returning(at) => drop(self.flights.insert((at, no))),
            _ => {}
        }
    }

    /// Counts a host out.
    pub(super) fn remove(&mut self, no: HostNo, host: &Host) {
        *self.count(host) -= u32::from(host.state != HostState::Gone);
        self.ready.remove(&(host.rank, no));
        self.heard.remove(&no);
        self.already.remove(&no);
        if let HostState::InFlight(at) | HostState::Returning(at) = host.state {
            self.flights.remove(&(at, no));
        }
    }

    /// Hosts that are good and connected.
    pub(super) fn heard_of(&self) -> u32 {
        u32::try_from(self.heard.len() + self.already.len()).unwrap_or(u32::MAX)
    }

    fn count(&mut self, host: &Host) -> &mut u32 {
        let counts = &mut self.counts;
        match host.state {
            HostState::Pending if host.connected => &mut counts.ready,
            // One that is gone is not counted at all.
            HostState::Pending | HostState::Gone => &mut counts.away,
            HostState::InFlight(_) => &mut counts.in_flight,
            HostState::Good | HostState::Already => &mut counts.good,
            HostState::Failed => &mut counts.failed,
            HostState::Refused => &mut counts.refused,
            HostState::Silent => &mut counts.silent,
            HostState::Returning(_) => &mut counts.returning,
            HostState::Returned => &mut counts.returned,
            HostState::Stuck => &mut counts.stuck,
        }
    }
}
