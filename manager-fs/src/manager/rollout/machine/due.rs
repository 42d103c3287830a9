//! When something is due of a rollout without anything having happened: pauses and watches that end, hours that begin,
//! evidence that is missing for too long.

use proto::message::Unix;

use super::Machine;
use super::vocabulary::{Phase, State};

impl Machine {
    /// When the next tick is due, if nothing happens before. Also of a rollout that has halted: what was ordered ends.
    pub fn wake(&self) -> Option<Unix> {
        let flights = self.rings.iter().filter_map(|ring| ring.flights.first());
        let flights = flights.map(|(at, _)| at.saturating_add(self.plan.patience_ms));
        let running = self.progress.state == State::Running;
        let rings = (0..self.rings.len()).filter(|_| running);
        let dues = rings.flat_map(|ring| self.dues(ring));
        flights.chain(dues).filter(|due| *due > self.now && *due < Unix::MAX).min()
    }

    /// Times at which a ring may go on, or halts.
    fn dues(&self, ring: usize) -> Vec<Unix> {
        let (plan, since) = (self.plan(ring), self.progress.rings[ring].since);
        let inconclusive = self.plan.inconclusive_ms;
        let or_halt = |due: Unix| vec![due, due.saturating_add(inconclusive)];
        let opens = || plan.hours.as_ref().and_then(|hours| hours.opens(self.now));
        match self.phase(ring) {
            Phase::Waiting => vec![self.opens(ring)],
            Phase::Canaries | Phase::Waves => {
                let halts = self.missing_since(ring).saturating_add(inconclusive);
                opens().into_iter().chain([halts]).collect()
            }
            Phase::CanarySoak => or_halt(since.saturating_add(plan.canary_soak_ms)),
            // Hosts that have come meanwhile are told when the hours begin.
            Phase::Soak => or_halt(since.saturating_add(plan.soak_ms)).into_iter().chain(opens()).collect(),
            Phase::Done => Vec::new(),
        }
    }

    /// Whether hosts of a ring may be ordered now.
    pub(super) fn is_open(&self, ring: usize) -> bool {
        self.plan(ring).hours.as_ref().is_none_or(|hours| hours.open_since(self.now).is_some())
    }

    /// From when on evidence of a ring is missing: since it came into its phase or something last happened in it, but
    /// not before its hours begin.
    pub(super) fn missing_since(&self, ring: usize) -> Unix {
        let last = self.progress.rings[ring].since.max(self.rings[ring].last);
        let closed = self.plan(ring).hours.as_ref().filter(|hours| hours.open_since(last).is_none());
        closed.and_then(|hours| hours.opens(last)).unwrap_or(last)
    }
}
