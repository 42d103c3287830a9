//! Orders to change over that an agent of this host has taken, until each has ended. Agent and stub report the end by
//! themselves, also after a crash; what is left for the mount daemon is the day on which neither of them comes back.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use proto::agent::{AgentStatus, ChangeId, Step, StepEvent};
use proto::{Product, TreeId};

use crate::clock::Clock;
use crate::sync::lock;

/// The stub starts an agent again after 30 s at most.
const GONE_MAX: Duration = Duration::from_secs(60);

/// The orders of one host.
#[derive(Debug, Default)]
pub(super) struct Orders(Mutex<BTreeMap<Product, Taken>>);

#[derive(Debug)]
struct Taken {
    change: ChangeId,
    to: TreeId,
    gone_since: Option<Instant>,
}

impl Orders {
    /// An agent has taken an order; it takes the place of an earlier one.
    pub(super) fn taken(&self, product: &Product, change: ChangeId, to: TreeId) {
        self.with(|orders| {
            orders.insert(product.clone(), Taken { change, to, gone_since: None });
        });
    }

    /// A step was reported; some of them end their order.
    pub(super) fn reported(&self, event: &StepEvent) {
        let is_end = event.step.ends().is_some();
        self.with(|orders| orders.retain(|_, taken| !(is_end && taken.change == event.change)));
    }

    /// It was not taken after all.
    pub(super) fn refused(&self, change: ChangeId) {
        self.with(|orders| orders.retain(|_, taken| taken.change != change));
    }

    /// What runs here now. Returns the end of each order whose agent has been gone for too long.
    pub(super) fn seen(&self, agents: &[AgentStatus], clock: &Clock) -> Vec<StepEvent> {
        let now = clock.now();
        let runs = |product: &Product| agents.iter().any(|agent| agent.product == *product && agent.pid != 0);
        let mut ends = Vec::new();
        self.with(|orders| {
            orders.retain(|product, taken| {
                if runs(product) {
                    taken.gone_since = None;
                    return true;
                }
                let gone = now.duration_since(*taken.gone_since.get_or_insert(now));
                if gone < GONE_MAX {
                    return true;
                }
                let detail = format!(
                    "{product} has not run here for {} s, and nothing starts it: `launch {product}` is gone; what it \
                     starts next its journal decides",
                    gone.as_secs()
                );
                ends.push(StepEvent {
                    change: taken.change,
                    product: product.clone(),
                    from: None,
                    to: taken.to,
                    step: Step::Refused,
                    at_unix_ms: clock.unix_ms(),
                    duration_us: 0,
                    detail,
                });
                false
            });
        });
        ends
    }

    fn with<T>(&self, act: impl FnOnce(&mut BTreeMap<Product, Taken>) -> T) -> T {
        act(&mut lock(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::testing::Manual;
    use proto::agent::AgentState;

    fn agent(pid: u32) -> AgentStatus {
        AgentStatus {
            product: "p".parse().unwrap(),
            version: "1".parse().unwrap(),
            tree: TreeId::of(b"1"),
            pid,
            started_unix_ms: 0,
            state: AgentState::Stopped,
            jobs: vec![],
            reason: String::new(),
        }
    }

    fn step(step: Step) -> StepEvent {
        StepEvent {
            change: ChangeId(7),
            product: "p".parse().unwrap(),
            from: None,
            to: TreeId::of(b"2"),
            step,
            at_unix_ms: 0,
            duration_us: 0,
            detail: String::new(),
        }
    }

    #[test]
    fn an_order_ends_with_its_last_step_or_when_its_agent_does_not_come_back() {
        let (orders, product) = (Orders::default(), "p".parse().unwrap());
        let (time, clock) = Manual::new();
        let pass = |seconds| time.advance(Duration::from_secs(seconds));
        orders.taken(&product, ChangeId(7), TreeId::of(b"2"));
        assert!(orders.seen(&[agent(0)], &clock).is_empty());
        pass(59);
        assert!(orders.seen(&[agent(0)], &clock).is_empty(), "the stub may start it again");
        pass(1);
        assert!(orders.seen(&[agent(4711)], &clock).is_empty());
        pass(1);
        assert!(orders.seen(&[], &clock).is_empty(), "it came back meanwhile");
        pass(59);
        assert!(orders.seen(&[], &clock).is_empty());
        pass(1);
        let ends = orders.seen(&[], &clock);
        assert_eq!(ends[0].at_unix_ms, clock.unix_ms());
        assert_eq!((ends.len(), ends[0].change, ends[0].step), (1, ChangeId(7), Step::Refused));
        assert!(ends[0].detail.contains("`launch p` is gone"), "{}", ends[0].detail);
        pass(999);
        assert!(orders.seen(&[], &clock).is_empty(), "once");
        orders.taken(&product, ChangeId(7), TreeId::of(b"2"));
        orders.reported(&step(Step::Staged));
        assert!(orders.seen(&[], &clock).is_empty());
        orders.reported(&step(Step::Confirmed));
        pass(999);
        assert!(orders.seen(&[], &clock).is_empty(), "it has ended");
    }
}
