//! Single nights, told step by step; many that nobody thought of are in `board_tests.rs`.

use std::sync::Arc;

use super::super::schedule::Schedule;
use super::vocabulary::{End, Limits, Rule};
use super::*;

const MINUTE: Unix = 60_000;
const HOUR: Unix = 60 * MINUTE;
const DAY: Unix = 24 * HOUR;
const P: PolicyNo = PolicyNo(0);

/// A policy since 1970-01-01T00:00:00Z whose tasks are due at these times.
fn rules(tasks: &[(Task, &str)]) -> Rules {
    let rule = |(task, text): &(Task, &str)| {
        let schedule = Arc::new(Schedule::parse(text, None).unwrap());
        Rule { task: *task, schedule, since: 0 }
    };
    let limits = Limits { repository: 100, host: 1, site: 100 };
    Rules {
        rules: tasks.iter().map(rule).collect(),
        jitter_ms: 0,
        window: None,
        paused: false,
        repository: 0,
        limits,
    }
}

fn nightly() -> Rules {
    rules(&[(Task::Backup, "daily 02:00")])
}

fn there(machine: &mut Machine, host: u32, task: Task) -> LaneNo {
    machine.connect(HostNo(host), true);
    machine.join(P, HostNo(host), task, 0, None, Past::default())
}

fn due(orders: &[Order]) -> Vec<(LaneNo, Unix)> {
    orders.iter().map(|order| (order.lane, order.due)).collect()
}

#[test]
fn a_slot_is_run_once_and_of_those_that_were_missed_the_last() {
    let mut machine = Machine::default();
    machine.set(P, nightly());
    let lane = there(&mut machine, 0, Task::Backup);
    assert_eq!(machine.tick(HOUR), []);
    assert_eq!(machine.wake(), Some(2 * HOUR));
    assert_eq!(due(&machine.tick(2 * HOUR)), [(lane, 2 * HOUR)]);
    assert_eq!(machine.waits(lane), Waits::Running);
    machine.ended(lane, End::Good, 0);
    assert_eq!(machine.tick(2 * HOUR + 1), []);
    machine.connect(HostNo(0), false);
    assert_eq!(machine.tick(4 * DAY), []);
    assert_eq!((machine.waits(lane), machine.late(lane)), (Waits::Away, Some(DAY + 2 * HOUR)));
    machine.connect(HostNo(0), true);
    assert_eq!(due(&machine.tick(4 * DAY + HOUR)), [(lane, 3 * DAY + 2 * HOUR)]);
    machine.ended(lane, End::Poor, 0);
    assert_eq!(machine.tick(4 * DAY + HOUR), []);
    assert_eq!(machine.wake(), Some(4 * DAY + 2 * HOUR));
}

#[test]
fn a_run_that_takes_longer_than_its_interval_is_followed_by_one() {
    let mut machine = Machine::default();
    machine.set(P, nightly());
    let lane = there(&mut machine, 0, Task::Backup);
    assert_eq!(due(&machine.tick(2 * HOUR)), [(lane, 2 * HOUR)]);
    assert_eq!(machine.tick(3 * DAY + 3 * HOUR), []);
    machine.ended(lane, End::Good, 0);
    assert_eq!(due(&machine.tick(3 * DAY + 3 * HOUR)), [(lane, 3 * DAY + 2 * HOUR)]);
}

#[test]
fn a_host_that_comes_late_gets_its_run_at_once_and_one_of_a_new_policy_waits_for_its_slot() {
    let mut machine = Machine::default();
    let mut late = nightly();
    late.rules[0].since = 2 * HOUR + MINUTE;
    machine.set(P, late);
    let first = there(&mut machine, 0, Task::Backup);
    assert_eq!(machine.tick(3 * HOUR), [], "nobody had asked for the slot at two");
    assert_eq!(machine.waits(first), Waits::Until(Some(DAY + 2 * HOUR)));
    assert_eq!(due(&machine.tick(DAY + 2 * HOUR)), [(first, DAY + 2 * HOUR)]);
    let second = there(&mut machine, 1, Task::Backup);
    assert_eq!(due(&machine.tick(DAY + 12 * HOUR)), [(second, DAY + 2 * HOUR)]);
}

#[test]
fn windows_pauses_and_limits_hold_it_up_with_their_reason() {
    let mut machine = Machine::default();
    let mut rules = nightly();
    rules.window = Some("04:00-06:00".parse().unwrap());
    rules.limits = Limits { repository: 1, host: 1, site: 1 };
    machine.set(P, rules.clone());
    let (a, b) = (there(&mut machine, 0, Task::Backup), there(&mut machine, 1, Task::Backup));
    assert_eq!(machine.tick(2 * HOUR), []);
    assert_eq!((machine.waits(a), machine.wake()), (Waits::Window(Some(4 * HOUR)), Some(4 * HOUR)));
    machine.set(P, Rules { paused: true, ..rules.clone() });
    assert_eq!(machine.tick(4 * HOUR), []);
    assert_eq!(machine.waits(a), Waits::Paused);
    machine.set(P, rules.clone());
    assert_eq!(due(&machine.tick(4 * HOUR)), [(a, 2 * HOUR)]);
    assert_eq!(machine.waits(b), Waits::Repository(1));
    // A run on a host that is away holds nobody up.
    machine.connect(HostNo(0), false);
    assert_eq!(due(&machine.tick(5 * HOUR)), [(b, 2 * HOUR)]);
    machine.connect(HostNo(0), true);
    machine.ended(a, End::Good, 0);
    machine.ended(b, End::Good, 0);
    // One at each site.
    let of_site = |machine: &mut Machine, host| {
        machine.connect(HostNo(host), true);
        machine.join(P, HostNo(host), Task::Backup, 0, Some(7), Past::default())
    };
    machine.set(P, Rules { limits: Limits { repository: 9, host: 1, site: 1 }, ..rules });
    let (c, d) = (of_site(&mut machine, 2), of_site(&mut machine, 3));
    assert_eq!(due(&machine.tick(5 * HOUR)), [(c, 2 * HOUR)]);
    assert_eq!(machine.waits(d), Waits::Site(1));
    machine.ended(c, End::Good, 0);
    assert_eq!(due(&machine.tick(5 * HOUR)), [(d, 2 * HOUR)]);
}

#[test]
fn tasks_of_a_host_come_after_each_other_and_nothing_is_verified_before_a_backup() {
    let mut machine = Machine::default();
    let all = [(Task::Backup, "daily 02:00"), (Task::Verify, "daily 02:00"), (Task::Prune, "daily 02:00")];
    machine.set(P, Rules { limits: Limits { repository: 9, host: 9, site: 9 }, ..rules(&all) });
    let lanes = all.map(|(task, _)| there(&mut machine, 0, task));
    let [backup, verify, prune] = lanes;
    assert_eq!(due(&machine.tick(2 * HOUR)), [(backup, 2 * HOUR), (prune, 2 * HOUR)], "the media agent is another");
    assert_eq!(machine.waits(verify), Waits::NoBackup);
    machine.ended(backup, End::Poor, 0);
    assert_eq!((machine.tick(3 * HOUR), machine.waits(verify)), (vec![], Waits::NoBackup));
    assert_eq!(due(&machine.tick(DAY + 2 * HOUR)), [(backup, DAY + 2 * HOUR)]);
    machine.ended(backup, End::Good, 0);
    assert_eq!(due(&machine.tick(DAY + 3 * HOUR)), [(verify, DAY + 2 * HOUR)]);
    assert_eq!(machine.waits(verify), Waits::Running);
    machine.began(backup, DAY + 4 * HOUR);
    assert_eq!(machine.tick(DAY + 4 * HOUR), []);
}

#[test]
fn jitter_is_the_same_each_night_and_spreads_hosts() {
    let mut machine = Machine::default();
    machine.set(P, Rules { jitter_ms: HOUR, ..nightly() });
    machine.connect(HostNo(0), true);
    let of = |machine: &mut Machine, rank| machine.join(P, HostNo(0), Task::Backup, rank, None, Past::default());
    let (soon, later) = (of(&mut machine, 5 * HOUR + MINUTE), of(&mut machine, 59 * MINUTE));
    assert_eq!(machine.tick(2 * HOUR), []);
    assert_eq!(due(&machine.tick(2 * HOUR + MINUTE)), [(soon, 2 * HOUR)]);
    machine.ended(soon, End::Good, 0);
    assert_eq!(machine.wake(), Some(2 * HOUR + 59 * MINUTE));
    assert_eq!(due(&machine.tick(2 * HOUR + 59 * MINUTE)), [(later, 2 * HOUR)]);
    machine.ended(later, End::Good, 0);
    assert_eq!(due(&machine.tick(DAY + 2 * HOUR + MINUTE)), [(soon, DAY + 2 * HOUR)]);
}

#[test]
fn a_clock_that_is_put_back_runs_nothing_twice_and_one_that_was_far_ahead_does_not_count() {
    let mut machine = Machine::default();
    machine.set(P, nightly());
    let lane = there(&mut machine, 0, Task::Backup);
    assert_eq!(due(&machine.tick(10 * DAY + 2 * HOUR)), [(lane, 10 * DAY + 2 * HOUR)]);
    machine.ended(lane, End::Good, 0);
    assert_eq!(machine.tick(10 * DAY + HOUR), [], "an hour back");
    assert_eq!(machine.tick(10 * DAY + 2 * HOUR), []);
    assert_eq!(machine.wake(), Some(11 * DAY + 2 * HOUR));
    // Another machine, out of a record that lies a year ahead.
    let mut machine = Machine::default();
    machine.set(P, nightly());
    machine.connect(HostNo(0), true);
    machine.tick(10 * DAY);
    let past = Past { last: Some(375 * DAY), good: true, ..Past::default() };
    let lane = machine.join(P, HostNo(0), Task::Backup, 0, None, past);
    assert_eq!(due(&machine.tick(10 * DAY)), [(lane, 9 * DAY + 2 * HOUR)]);
}

#[test]
fn whoever_waits_longest_comes_first_also_when_newer_slots_take_the_place_of_its_own() {
    let mut machine = Machine::default();
    let often = [(Task::Backup, "every 1h")];
    machine.set(P, Rules { limits: Limits { repository: 1, host: 9, site: 9 }, ..rules(&often) });
    let (a, b) = (there(&mut machine, 0, Task::Backup), there(&mut machine, 1, Task::Backup));
    assert_eq!(due(&machine.tick(HOUR)), [(a, HOUR)]);
    assert_eq!(machine.tick(9 * HOUR), []);
    machine.ended(a, End::Good, 0);
    assert_eq!(due(&machine.tick(9 * HOUR)), [(b, 9 * HOUR)], "and not a, which has had its turn");
}

#[test]
fn nobody_takes_the_room_of_somebody_who_waits_longer() {
    let mut machine = Machine::default();
    let of = |limit| Limits { repository: 9, host: limit, site: 9 };
    machine.set(P, Rules { limits: of(1), ..nightly() });
    let often = PolicyNo(1);
    machine.set(often, Rules { limits: of(2), ..rules(&[(Task::Backup, "every 1h"), (Task::Check, "every 1h")]) });
    let modest = there(&mut machine, 0, Task::Backup);
    let busy = [Task::Backup, Task::Check].map(|task| machine.join(often, HostNo(0), task, 0, None, Past::default()));
    assert_eq!(due(&machine.tick(HOUR)), [(busy[0], HOUR), (busy[1], HOUR)]);
    assert_eq!(machine.tick(2 * HOUR), []);
    assert_eq!(machine.waits(modest), Waits::Host(1));
    machine.ended(busy[0], End::Good, 0);
    assert_eq!(machine.tick(3 * HOUR), [], "there would be room for the busy one");
    machine.ended(busy[1], End::Good, 0);
    assert_eq!(due(&machine.tick(3 * HOUR)), [(modest, 2 * HOUR), (busy[0], 3 * HOUR)]);
}

#[test]
fn a_run_that_failed_is_tried_again_more_and_more_seldom_until_its_next_slot() {
    let mut machine = Machine::default();
    machine.set(P, nightly());
    let lane = there(&mut machine, 0, Task::Backup);
    let mut now = 2 * HOUR;
    assert_eq!(due(&machine.tick(now)), [(lane, 2 * HOUR)]);
    for wait in [10, 40, 160].map(|minutes| minutes * MINUTE) {
        machine.ended(lane, End::Failed, now);
        assert_eq!(machine.tick(now + wait - 1), []);
        assert_eq!((machine.waits(lane), machine.late(lane)), (Waits::Until(Some(now + wait)), None));
        now += wait;
        assert_eq!(due(&machine.tick(now)), [(lane, 2 * HOUR)]);
    }
    machine.ended(lane, End::Failed, now);
    assert_eq!(machine.tick(DAY), [], "and no more for this slot");
    assert_eq!(due(&machine.tick(DAY + 2 * HOUR)), [(lane, DAY + 2 * HOUR)]);
    machine.ended(lane, End::Failed, DAY + 2 * HOUR);
    assert_eq!(due(&machine.tick(DAY + 3 * HOUR)), [(lane, DAY + 2 * HOUR)], "each slot has its own tries");
    machine.ended(lane, End::Poor, DAY + 3 * HOUR);
    assert_eq!(machine.tick(DAY + 20 * HOUR), [], "what somebody stopped is not tried again");
    // The next slot comes before the next try.
    let often = PolicyNo(1);
    machine.set(often, rules(&[(Task::Backup, "every 5m")]));
    let lane = machine.join(often, HostNo(1), Task::Backup, 0, None, Past::default());
    machine.connect(HostNo(1), true);
    assert_eq!(due(&machine.tick(2 * DAY)), [(lane, 2 * DAY)]);
    machine.ended(lane, End::Failed, 2 * DAY);
    assert_eq!(due(&machine.tick(2 * DAY + 5 * MINUTE)), [(lane, 2 * DAY + 5 * MINUTE)]);
}

#[test]
fn a_new_try_waits_for_its_window_and_another_machine_counts_the_same_tries() {
    let mut machine = Machine::default();
    machine.set(P, Rules { window: Some("02:00-02:30".parse().unwrap()), ..nightly() });
    machine.connect(HostNo(0), true);
    machine.tick(2 * HOUR);
    let past = |failed| Past { last: Some(2 * HOUR), failed, failed_at: 2 * HOUR, ..Past::default() };
    let lane = machine.join(P, HostNo(0), Task::Backup, 0, None, past(2));
    assert_eq!(machine.tick(2 * HOUR + 40 * MINUTE), []);
    assert_eq!(machine.waits(lane), Waits::Window(Some(DAY + 2 * HOUR)));
    machine.leave(lane);
    let lane = machine.join(P, HostNo(0), Task::Backup, 0, None, past(TRIES_MAX + 1));
    assert_eq!(machine.waits(lane), Waits::Until(Some(DAY + 2 * HOUR)));
}

#[test]
fn a_window_that_was_missed_because_of_others_is_kept_free_the_next_time() {
    let mut machine = Machine::default();
    let limits = Limits { repository: 1, host: 9, site: 9 };
    machine.set(P, Rules { window: Some("02:00-02:30".parse().unwrap()), limits, ..nightly() });
    let short = there(&mut machine, 0, Task::Backup);
    let busy = PolicyNo(1);
    machine.set(busy, Rules { limits, ..rules(&[(Task::Backup, "every 1h")]) });
    machine.connect(HostNo(1), true);
    let other = machine.join(busy, HostNo(1), Task::Backup, 0, None, Past::default());
    // Each run takes from half past to half past: the window is never met, once it has been missed.
    let mut begun: Vec<(Unix, LaneNo)> = Vec::new();
    let mut open: Option<(Unix, LaneNo)> = None;
    for minute in 0..3 * 24 * 60 {
        let now = minute * MINUTE;
        if let Some((_, lane)) = open.filter(|(at, _)| now >= at + 90 * MINUTE) {
            machine.ended(lane, End::Good, now);
            open = None;
        }
        for order in machine.tick(now) {
            begun.push((now, order.lane));
            open = Some((now, order.lane));
        }
    }
    let met: Vec<Unix> = begun.iter().filter(|(_, lane)| *lane == short).map(|(at, _)| *at).collect();
    assert!(
        !met.is_empty() && met.iter().all(|at| at % DAY >= 2 * HOUR && at % DAY < 2 * HOUR + 30 * MINUTE),
        "{met:?}"
    );
    assert!(begun.iter().filter(|(_, lane)| *lane == other).count() > 30, "and nobody waits for it meanwhile");
}

#[test]
fn a_policy_that_goes_orders_nothing_more() {
    let mut machine = Machine::default();
    machine.set(P, nightly());
    let lane = there(&mut machine, 0, Task::Backup);
    machine.remove(P);
    assert_eq!((machine.tick(5 * DAY), machine.wake()), (vec![], None));
    assert_eq!((machine.waits(lane), machine.late(lane)), (Waits::Until(None), None));
    machine.ended(lane, End::Good, 0);
    machine.began(lane, 3);
    machine.leave(lane);
}
