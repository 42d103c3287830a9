//! Single rollouts, told step by step; [`simulation`] makes up many.

mod simulation;

use super::super::amount::Amount;
use super::super::plan::{Gates, JobGate};
use super::*;

const MINUTE: Unix = 60_000;

fn ring(name: &str, canaries: u32, in_flight: Amount) -> RingPlan {
    RingPlan {
        name: name.to_owned(),
        to: vec![format!("@{name}").parse().unwrap()],
        wait_ms: 0,
        canaries: Amount::Hosts(canaries),
        canary_soak_ms: 10 * MINUTE,
        in_flight,
        max_failures: 0,
        soak_ms: 0,
        min_hosts: 1,
        hours: None,
    }
}

fn plan(rings: Vec<RingPlan>) -> Plan {
    Plan {
        product: "a".parse().unwrap(),
        generation: "a@2".parse().unwrap(),
        export: false,
        lazy: false,
        drain_deadline_ms: None,
        rollback: false,
        rollback_to: None,
        max_failures: 0,
        replacements: 1,
        patience_ms: 30 * MINUTE,
        inconclusive_ms: 60 * MINUTE,
        gates: Gates::default(),
        rings,
    }
}

/// A rollout that has been started at time 0, with so many connected hosts in each ring, whose ranks are their numbers.
struct Told {
    machine: Machine,
    now: Unix,
}

impl Told {
    fn start(plan: Plan, hosts: &[u32]) -> (Self, Vec<Command>) {
        let progress = Progress::planned(plan.rings.len(), 0);
        let mut machine = Machine::new(Arc::new(plan), progress, 0);
        for (ring, hosts) in (0..).zip(hosts) {
            for _ in 0..*hosts {
                let rank = machine.hosts.len() as u64;
                machine.join(ring, rank, true, HostState::Pending);
            }
        }
        let mut told = Self { machine, now: 0 };
        let commands = told.on(Event::Wish(Wish::Start));
        (told, commands)
    }

    fn on(&mut self, event: Event) -> Vec<Command> {
        self.machine.apply(self.now, event)
    }

    fn ended(&mut self, host: u32, end: End) -> Vec<Command> {
        self.on(Event::Ended(HostNo(host), end))
    }

    /// Lets the clock go to the next time at which something is due.
    fn due(&mut self) -> Vec<Command> {
        self.now = self.machine.wake().expect("something is due");
        self.on(Event::Tick)
    }

    fn phases(&self) -> Vec<Phase> {
        self.machine.progress().rings.iter().map(|ring| ring.phase).collect()
    }

    fn state(&self) -> State {
        self.machine.progress().state
    }

    fn why(&self) -> Why {
        self.machine.progress().halted.clone().expect("a halt").why
    }

    /// The same rollout after the manager was started again.
    fn restart(&mut self) {
        let old = &self.machine;
        let mut machine = Machine::new(Arc::clone(&old.plan), old.progress.clone(), self.now);
        for host in &old.hosts {
            machine.join(host.ring, host.rank, host.connected, host.state);
        }
        self.machine = machine;
    }
}

fn order(host: u32) -> Command {
    Command::Order(HostNo(host))
}

#[test]
fn a_good_version_goes_through_canaries_waves_and_rings() {
    let (mut told, commands) =
        Told::start(plan(vec![ring("lab", 1, Amount::Hosts(2)), ring("all", 1, Amount::Hosts(2))]), &[4, 2]);
    assert_eq!(commands, [Command::Begun(0), order(0)], "one canary, the first in the order");
    assert_eq!(told.ended(0, End::Good), []);
    assert_eq!(told.phases(), [Phase::CanarySoak, Phase::Waiting]);
    assert_eq!(told.due(), [order(1), order(2)], "two at once, after the canary was watched");
    assert_eq!(told.now, 10 * MINUTE);
    assert_eq!(told.ended(2, End::Good), [order(3)]);
    assert_eq!(told.ended(1, End::Good), []);
    assert_eq!(told.ended(3, End::Already), [Command::Done(0), Command::Begun(1), order(4)]);
    assert_eq!(told.ended(4, End::Good), []);
    assert_eq!(told.due(), [order(5)]);
    assert_eq!(told.ended(5, End::Good), [Command::Done(1)]);
    assert_eq!(told.state(), State::Done);
    assert_eq!(told.machine.wake(), None);
}

#[test]
fn a_canary_that_fails_stops_everything_and_with_it_goes_what_had_changed_over() {
    let careful = Plan { rollback: true, ..plan(vec![ring("lab", 2, Amount::Hosts(8))]) };
    let (mut told, _) = Told::start(careful, &[10]);
    assert_eq!(told.ended(0, End::Good), []);
    assert_eq!(told.ended(1, End::Failed), [Command::Return(HostNo(0))], "nobody else was asked");
    assert_eq!((told.state(), told.why()), (State::RollingBack, Why::Canary { ring: 0 }));
    assert_eq!(told.on(Event::Back(HostNo(0), true)), [Command::Back(0)]);
    assert_eq!(told.state(), State::RolledBack);
    let counts = told.machine.counts()[0];
    assert_eq!((counts.ready, counts.failed, counts.returned), (8, 1, 1));
}

#[test]
fn one_failure_more_than_may_stops_a_ring_or_all_of_them() {
    let generous = |name| RingPlan { max_failures: 2, ..ring(name, 0, Amount::Hosts(4)) };
    let (mut told, _) = Told::start(Plan { max_failures: 9, ..plan(vec![generous("a")]) }, &[10]);
    assert_eq!(told.ended(0, End::Failed), [order(4)]);
    assert_eq!(told.ended(1, End::Failed), [order(5)]);
    assert_eq!(told.ended(2, End::Failed), []);
    assert_eq!((told.state(), told.why()), (State::Halted, Why::Ring { ring: 0, failed: 3, allowed: 2 }));
    assert_eq!(told.ended(3, End::Good), [], "what was ordered goes on, and nothing is added");
    // Two in each ring may fail, but not four in all.
    let (mut told, _) = Told::start(Plan { max_failures: 2, ..plan(vec![generous("a"), generous("b")]) }, &[3, 3]);
    for (host, end) in [(0, End::Failed), (1, End::Failed), (2, End::Good), (3, End::Failed)] {
        told.ended(host, end);
    }
    assert_eq!(told.why(), Why::Total { failed: 3, allowed: 2 });
    assert_eq!(told.why().ring(), None);
}

#[test]
fn a_canary_of_which_nothing_is_heard_is_replaced_and_never_counts_as_good() {
    let (mut told, commands) = Told::start(plan(vec![ring("lab", 1, Amount::Hosts(2))]), &[5]);
    assert_eq!(commands[1], order(0));
    assert_eq!(told.due(), [order(1)], "another one, after half an hour");
    assert_eq!(told.now, 30 * MINUTE);
    assert_eq!(told.due(), [], "one may be replaced, no more");
    assert_eq!(told.due(), []);
    let missing = Missing::Canaries { good: 0, needed: 1 };
    assert_eq!((told.state(), told.why()), (State::Halted, Why::Inconclusive { ring: 0, missing }));
    assert!(!told.why().is_breach());
    // Its word comes late: it is good from then on, and the operator goes on.
    assert_eq!(told.ended(0, End::Good), []);
    assert_eq!(told.on(Event::Wish(Wish::Resume)), []);
    assert_eq!(told.phases(), [Phase::CanarySoak]);
}

#[test]
fn a_canary_that_goes_away_while_it_is_watched_is_no_evidence() {
    let (mut told, _) = Told::start(plan(vec![ring("lab", 1, Amount::Hosts(2))]), &[5]);
    told.ended(0, End::Good);
    told.on(Event::Disconnected(HostNo(0)));
    assert_eq!(told.due(), [order(1)], "another one takes its place");
    assert_eq!(told.phases(), [Phase::Canaries]);
    told.ended(1, End::Good);
    assert_eq!(told.due(), [order(2), order(3)]);
}

#[test]
fn hosts_that_refuse_are_passed_over_and_canaries_that_refuse_are_replaced() {
    let (mut told, _) = Told::start(plan(vec![ring("lab", 1, Amount::Hosts(1))]), &[4]);
    assert_eq!(told.ended(0, End::Refused), [order(1)]);
    told.ended(1, End::Good);
    assert_eq!(told.due(), [order(2)]);
    assert_eq!(told.ended(2, End::Refused), [order(3)]);
    assert_eq!(told.ended(3, End::Good), [Command::Done(0)]);
    assert_eq!(told.machine.counts()[0].refused, 2);
}

#[test]
fn a_ring_without_hosts_is_no_success() {
    let (mut told, _) = Told::start(plan(vec![ring("lab", 1, Amount::Hosts(1))]), &[0]);
    assert_eq!(told.phases(), [Phase::Waves]);
    told.due();
    let missing = Missing::Hosts { good: 0, needed: 1 };
    assert_eq!((told.state(), told.why()), (State::Halted, Why::Inconclusive { ring: 0, missing }));
    // A host comes, and the operator tries again.
    let host = told.machine.join(0, 7, true, HostState::Pending);
    assert_eq!(told.on(Event::Wish(Wish::Resume)), [Command::Order(host)]);
}

#[test]
fn hosts_that_are_away_hold_nobody_up_and_get_theirs_when_they_come() {
    let soak = RingPlan { soak_ms: 5 * MINUTE, ..ring("lab", 0, Amount::Percent(100)) };
    let (mut told, commands) = Told::start(plan(vec![soak]), &[2]);
    assert_eq!(commands.len(), 3);
    let away = told.machine.join(0, 9, false, HostState::Pending);
    told.ended(0, End::Good);
    told.ended(1, End::Good);
    assert_eq!(told.phases(), [Phase::Soak]);
    assert_eq!(told.on(Event::Connected(away)), [Command::Order(away)]);
    assert_eq!(told.due(), [Command::Done(0)], "whoever comes after that is told by the ring's target");
}

#[test]
fn the_pause_before_a_ring_begins_when_the_one_before_is_done() {
    let later = RingPlan { wait_ms: 24 * 60 * MINUTE, ..ring("all", 0, Amount::Hosts(1)) };
    let (mut told, _) = Told::start(plan(vec![ring("lab", 0, Amount::Hosts(1)), later]), &[1, 1]);
    told.now = 7 * MINUTE;
    assert_eq!(told.ended(0, End::Good), [Command::Done(0)]);
    assert_eq!(told.due(), [Command::Begun(1), order(1)]);
    assert_eq!(told.now, (24 * 60 + 7) * MINUTE);
}

#[test]
fn hosts_of_a_ring_with_hours_are_ordered_in_them_and_nothing_is_missed_before() {
    const HOUR: Unix = 60 * MINUTE;
    let hours = Some("02:00-04:00".parse().unwrap());
    let nightly = RingPlan { hours, ..ring("lab", 1, Amount::Hosts(1)) };
    let (mut told, commands) = Told::start(plan(vec![nightly]), &[3]);
    assert_eq!(commands, [Command::Begun(0)], "hosts may see the generation before");
    assert_eq!((told.due(), told.now), (vec![order(0)], 2 * HOUR), "and nobody was missed in these two hours");
    told.now = 4 * HOUR - 1;
    told.ended(0, End::Good);
    assert_eq!(told.phases(), [Phase::CanarySoak]);
    // The watch ends when the hours are over: the others wait for the next night.
    assert_eq!((told.due(), told.phases()), (vec![], vec![Phase::Waves]));
    told.restart();
    assert_eq!((told.due(), told.now), (vec![order(1)], 26 * HOUR));
    told.on(Event::Disconnected(HostNo(2)));
    told.ended(1, End::Failed);
    assert_eq!(told.why(), Why::Ring { ring: 0, failed: 1, allowed: 0 });
    told.now = 30 * HOUR;
    told.on(Event::Wish(Wish::Rollback));
    assert_eq!(told.state(), State::RollingBack, "going back waits for no hours");
}

#[test]
fn evidence_that_is_missing_is_waited_for_from_the_beginning_of_the_hours() {
    const HOUR: Unix = 60 * MINUTE;
    let nightly = RingPlan { hours: Some("02:00-04:00".parse().unwrap()), ..ring("lab", 1, Amount::Hosts(1)) };
    let (mut told, _) = Told::start(plan(vec![nightly]), &[1]);
    told.on(Event::Disconnected(HostNo(0)));
    assert_eq!((told.due(), told.now, told.state()), (vec![], 2 * HOUR, State::Running));
    assert_eq!((told.due(), told.now, told.state()), (vec![], 3 * HOUR, State::Halted));
    assert_eq!(told.why(), Why::Inconclusive { ring: 0, missing: Missing::Canaries { good: 0, needed: 1 } });
}

#[test]
fn a_pause_stops_orders_and_a_breach_is_noticed_all_the_same() {
    let (mut told, _) = Told::start(plan(vec![ring("lab", 0, Amount::Hosts(2))]), &[9]);
    told.on(Event::Wish(Wish::Pause));
    assert_eq!(told.ended(0, End::Good), []);
    assert_eq!(told.on(Event::Wish(Wish::Resume)), [order(2)]);
    told.on(Event::Wish(Wish::Pause));
    told.ended(1, End::Failed);
    assert_eq!(told.state(), State::Halted);
    let accepted = told.on(Event::Wish(Wish::Resume));
    assert_eq!(accepted, [order(3)], "what failed until then is accepted");
    told.ended(2, End::Failed);
    assert_eq!(told.why(), Why::Ring { ring: 0, failed: 1, allowed: 0 });
    told.on(Event::Wish(Wish::Abort));
    assert_eq!(told.state(), State::Aborted);
    assert_eq!(told.machine.may(Wish::Resume), Err(NotNow { state: State::Aborted, wish: Wish::Resume }));
}

#[test]
fn operations_that_fail_stop_it_and_none_at_all_are_no_success() {
    let gate = JobGate { min: 4, success_percent: None, below_baseline: Some(5) };
    let gated = Plan {
        gates: Gates { jobs: Some(gate), ..Gates::default() },
        ..plan(vec![ring("lab", 1, Amount::Hosts(1))])
    };
    let start = |baseline| {
        let (mut told, _) = Told::start(gated.clone(), &[3]);
        told.machine.progress.baseline = baseline;
        told.on(Event::Job(HostNo(0), false));
        assert_eq!(told.machine.jobs().ended(), 0, "of the version before");
        told.ended(0, End::Good);
        told
    };
    let usual = Jobs { done: 95, failed: 5 };
    let mut told = start(usual);
    for done in [true, true, true, false] {
        assert_eq!(told.state(), State::Running);
        told.on(Event::Job(HostNo(0), done));
    }
    assert_eq!(told.why(), Why::Jobs { seen: Jobs { done: 3, failed: 1 }, wanted_per_mille: 900 });
    // Too few: they are waited for, and then it halts.
    let mut told = start(usual);
    told.on(Event::Job(HostNo(0), true));
    assert_eq!(told.due(), [], "watched for ten minutes");
    assert_eq!(told.state(), State::Running);
    told.due();
    let missing = Missing::Jobs { ended: 1, needed: 4 };
    assert_eq!((told.now, told.why()), (70 * MINUTE, Why::Inconclusive { ring: 0, missing }));
    // Enough come in time.
    let mut told = start(usual);
    told.due();
    let commands: Vec<Command> = (0..4).flat_map(|_| told.on(Event::Job(HostNo(0), true))).collect();
    assert_eq!(commands, [order(1)]);
    // Nothing to compare with.
    let mut told = start(Jobs::default());
    (0..4).for_each(|_| drop(told.on(Event::Job(HostNo(0), true))));
    told.due();
    told.due();
    let missing = Missing::Baseline { ended: 0, needed: 4 };
    assert_eq!(told.why(), Why::Inconclusive { ring: 0, missing });
}

#[test]
fn agents_that_are_started_anew_too_often_or_go_back_later_count() {
    let gates = Gates { max_restarts: Some(1), ..Gates::default() };
    let watched = RingPlan { soak_ms: MINUTE, ..ring("lab", 0, Amount::Hosts(2)) };
    let (mut told, _) = Told::start(Plan { gates, ..plan(vec![watched.clone()]) }, &[2]);
    told.ended(0, End::Good);
    told.on(Event::Restarted(HostNo(1)));
    told.on(Event::Restarted(HostNo(0)));
    assert_eq!((told.state(), told.machine.progress().restarts), (State::Running, 1), "only of those that are good");
    told.on(Event::Restarted(HostNo(0)));
    assert_eq!(told.why(), Why::Restarts { restarts: 2, allowed: 1 });
    let (mut told, _) = Told::start(plan(vec![watched]), &[2]);
    told.ended(0, End::Good);
    told.ended(1, End::Good);
    told.ended(0, End::Failed);
    assert_eq!(told.why(), Why::Ring { ring: 0, failed: 1, allowed: 0 });
}

#[test]
fn a_rollback_takes_the_newest_ring_first_and_leaves_what_was_there_before() {
    let wide = |name| ring(name, 0, Amount::Hosts(2));
    let (mut told, _) = Told::start(plan(vec![wide("a"), wide("b"), wide("c")]), &[3, 2, 1]);
    for (host, end) in [(0, End::Good), (1, End::Already), (2, End::Good), (3, End::Good)] {
        told.ended(host, end);
    }
    let first = told.on(Event::Wish(Wish::Rollback));
    assert_eq!(first, [Command::Return(HostNo(3))]);
    assert_eq!(told.on(Event::Back(HostNo(3), true)), [], "one is still on its way there");
    told.restart();
    assert_eq!(told.ended(4, End::Good), [Command::Return(HostNo(4))]);
    let next = told.on(Event::Back(HostNo(4), false));
    assert_eq!(next, [Command::Back(1), Command::Return(HostNo(0)), Command::Return(HostNo(2))]);
    told.on(Event::Back(HostNo(0), true));
    assert_eq!(told.due(), [Command::Back(0)], "one that says nothing is not waited for longer than others");
    assert_eq!(told.state(), State::RolledBack);
    let counts = told.machine.counts();
    assert_eq!((counts[0].good, counts[0].returned, counts[0].stuck, counts[1].stuck), (1, 1, 1, 1));
}

#[test]
fn a_restart_of_the_manager_changes_nothing_and_asks_nobody_twice() {
    let (mut told, _) = Told::start(plan(vec![ring("lab", 1, Amount::Hosts(2))]), &[4]);
    told.restart();
    assert_eq!(told.on(Event::Tick), []);
    told.ended(0, End::Good);
    told.restart();
    assert_eq!(told.due(), [order(1), order(2)]);
    told.restart();
    assert_eq!(told.on(Event::Tick), []);
    assert_eq!(told.ended(1, End::Good), [order(3)]);
}

#[test]
fn a_clock_that_goes_back_orders_nothing_early() {
    let (mut told, _) = Told::start(plan(vec![ring("lab", 1, Amount::Hosts(2))]), &[4]);
    told.now = 100 * MINUTE;
    told.ended(0, End::Good);
    told.now = 0;
    assert_eq!(told.on(Event::Tick), []);
    assert_eq!(told.machine.wake(), Some(110 * MINUTE));
}

#[test]
fn what_is_shown_of_a_halt_has_its_figures() {
    let whys = [
        (Why::Ring { ring: 1, failed: 3, allowed: 2 }, "it failed on 3 hosts of the ring; 2 may"),
        (
            Why::Jobs { seen: Jobs { done: 3, failed: 1 }, wanted_per_mille: 905 },
            "3 of 4 operations of the new version were done; 90.5% must be",
        ),
        (
            Why::Inconclusive { ring: 0, missing: Missing::Jobs { ended: 1, needed: 4 } },
            "no evidence in time: 1 operations of the new version ended; want 4",
        ),
    ];
    for (why, text) in whys {
        assert_eq!(why.to_string(), text);
    }
}
