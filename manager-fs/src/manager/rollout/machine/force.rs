//! Hosts that an operator has ordered out of their turn.

use super::vocabulary::{HostNo, HostState, Phase, State};
use super::{Machine, at};

/// A host that is not ordered out of its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotForced {
    /// Nothing is ordered any more, or not yet.
    #[error("the rollout is {0:?}: hosts are forced while it goes on, or has stopped for now")]
    State(State),
    /// Its ring has not begun.
    #[error("its ring has not begun: it is no part of what a rollback takes back")]
    Waits,
    /// It was ordered.
    #[error("it was ordered already, and has not said yet how it ended")]
    UnderWay,
    /// There is nothing to order.
    #[error("it runs the new generation")]
    RunsIt,
    /// It is in no ring, or somebody ordered something else there.
    #[error("it is not, or no longer, a host of this rollout")]
    NotOfIt,
}

impl Machine {
    /// Whether a host may be ordered now, before its turn, outside of its hours, or once more.
    ///
    /// # Errors
    /// It may not, and why.
    pub fn may_force(&self, no: HostNo) -> Result<(), NotForced> {
        let Some(host) = self.hosts.get(at(no)) else { return Err(NotForced::NotOfIt) };
        if !matches!(self.progress.state, State::Running | State::Paused | State::Halted) {
            return Err(NotForced::State(self.progress.state));
        }
        // A rollback passes over rings that have not begun.
        if self.phase(usize::from(host.ring)) == Phase::Waiting {
            return Err(NotForced::Waits);
        }
        match host.state {
            HostState::Pending | HostState::Failed | HostState::Refused | HostState::Silent => Ok(()),
            HostState::InFlight(_) => Err(NotForced::UnderWay),
            HostState::Good | HostState::Already => Err(NotForced::RunsIt),
            HostState::Returning(_) | HostState::Returned | HostState::Stuck | HostState::Gone => {
                Err(NotForced::NotOfIt)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::vocabulary::{Command, End, Event, Progress, Wish};
    use super::*;
    use crate::manager::rollout::Plan;

    const PLAN: &str = r#"
product = "p"
generation = "p@2"
[[ring]]
name = "one"
to = ["@one"]
in-flight = 1
max-failures = 9
[[ring]]
name = "two"
to = ["@two"]
"#;

    fn begun() -> (Machine, Vec<HostNo>) {
        let plan = Arc::new(Plan::parse(PLAN).unwrap());
        let mut machine = Machine::new(plan, Progress::planned(2, 0), 0);
        let mut hosts: Vec<HostNo> = (0..3).map(|rank| machine.join(0, rank, true, HostState::Pending)).collect();
        hosts.push(machine.join(1, 0, true, HostState::Pending));
        assert_eq!(machine.may_force(hosts[2]), Err(NotForced::State(State::Planned)));
        machine.apply(1, Event::Wish(Wish::Start));
        (machine, hosts)
    }

    #[test]
    fn a_host_is_ordered_before_its_turn_and_counted_as_any_other() {
        let (mut machine, hosts) = begun();
        assert_eq!(machine.may_force(hosts[0]), Err(NotForced::UnderWay));
        assert_eq!(machine.may_force(hosts[3]), Err(NotForced::Waits), "its ring has not begun");
        assert_eq!(machine.may_force(HostNo(9)), Err(NotForced::NotOfIt));
        machine.apply(2, Event::Wish(Wish::Pause));
        assert_eq!(machine.apply(3, Event::Forced(hosts[2])), [Command::Order(hosts[2])]);
        assert_eq!(machine.counts()[0].in_flight, 2);
        assert_eq!(machine.apply(4, Event::Forced(hosts[2])), [], "once");
        machine.apply(5, Event::Ended(hosts[2], End::Good));
        assert_eq!((machine.counts()[0].good, machine.may_force(hosts[2])), (1, Err(NotForced::RunsIt)));
    }

    #[test]
    fn where_it_failed_it_is_tried_once_more_and_goes_back_with_the_others() {
        let (mut machine, hosts) = begun();
        machine.apply(2, Event::Ended(hosts[0], End::Failed));
        assert_eq!(machine.progress().state, State::Halted);
        assert_eq!(machine.apply(3, Event::Forced(hosts[0])), [Command::Order(hosts[0])]);
        machine.apply(4, Event::Ended(hosts[0], End::Good));
        assert!(machine.apply(5, Event::Wish(Wish::Rollback)).contains(&Command::Return(hosts[0])));
        assert_eq!(machine.may_force(hosts[1]), Err(NotForced::State(State::RollingBack)));
    }
}
