//! The machine against random histories, and against every one that two change-overs can have: whatever comes in whatever
//! order, some things hold.

mod messages;

use std::collections::BTreeSet;

use proptest::prelude::*;
use proto::record::SchemaRange;
use proto::{TreeId, TreePath};

use super::*;
use crate::journal::Entry;

fn entry(n: u8) -> Entry {
    Entry { version: format!("{n}.0").parse().unwrap(), tree: TreeId::of(&[n]) }
}

fn reason(text: &str) -> Reason {
    Reason::of(&std::io::Error::other(text.to_owned()))
}

fn facts() -> Facts {
    Facts { running: entry(1), writes: 2..=2, snapshots: Vec::new(), machine: "x86_64".to_owned() }
}

fn candidate(n: u8) -> Candidate {
    Candidate {
        is_adapted: false,
        entry: entry(n),
        entry_point: TreePath::parse(b"bin/agent").unwrap(),
        arguments: vec![],
        reads: SchemaRange { min: 1, max: 2 },
        architecture: None,
        probation_ms: 1000,
        bad: None,
    }
}

/// The world as the effects make it: what a driver would have done.
#[derive(Debug, Default, Clone)]
struct World {
    /// Where `current` leads: the running tree, or another one.
    link_is_new: bool,
    /// What the next start would start.
    journal_is_new: bool,
    draining: bool,
    execs: u32,
    answers: u32,
}

impl World {
    /// Performs effects; the one that fails is counted down. Returns the events that follow.
    fn perform(&mut self, effects: Vec<Effect>, fail_at: &mut Option<u8>) -> Vec<Event> {
        let mut events = Vec::new();
        for effect in effects {
            let fails = match fail_at {
                Some(0) => true,
                Some(n) => {
                    *n -= 1;
                    false
                }
                None => false,
            };
            match effect {
                Effect::Answer(_) => self.answers += 1,
                Effect::SaveRecord { change, record } => {
                    let result = if fails { Err(reason("disk full")) } else { Ok(Box::new(candidate(record[0]))) };
                    events.push(Event::Saved { change, result, took_us: 1 });
                }
                Effect::Journal(JournalWrite::Intent(_)) if !fails => {
                    assert!(self.draining, "the intent is written after the drain");
                    self.journal_is_new = true;
                    events.push(Event::Journaled { took_us: 1 });
                }
                Effect::Journal(JournalWrite::Confirmed) if !fails => events.push(Event::Journaled { took_us: 1 }),
                Effect::Journal(JournalWrite::Back) => self.journal_is_new = false,
                Effect::Journal(JournalWrite::NothingStaged) => {}
                Effect::Journal(JournalWrite::Staged(..)) if !fails => {}
                Effect::Swap(_) if !fails => {
                    assert!(self.journal_is_new, "the link follows the journal");
                    self.link_is_new = true;
                    events.push(Event::Swapped { took_us: 1 });
                }
                Effect::Journal(_) | Effect::Swap(_) => {
                    events.push(Event::Failed { what: "disk full".to_owned() });
                    return events;
                }
                Effect::SwapBack(tree) => {
                    assert_eq!(tree, facts().running.tree);
                    self.link_is_new = false;
                }
                Effect::Drain { .. } => self.draining = true,
                Effect::Resume => self.draining = false,
                Effect::Exec(_) => {
                    assert!(self.draining && self.journal_is_new && self.link_is_new, "{self:?}");
                    self.execs += 1;
                }
                Effect::Report { step, .. } => {
                    assert!(!matches!(step, Step::Started | Step::Launched | Step::Returned | Step::ProbationFailed));
                }
                Effect::Stage { .. }
                | Effect::CancelStage
                | Effect::RememberBad { .. }
                | Effect::CheckHealth { .. }
                | Effect::TellUnwell(_)
                | Effect::TellConfirmed
                | Effect::TellExecReturned => {}
            }
        }
        events
    }
}

fn events() -> impl Strategy<Value = Event> {
    let change = (1u64..4).prop_map(ChangeId);
    let version = 1u8..5;
    prop_oneof![
        (change.clone(), version.clone()).prop_map(|(change, n)| Event::SaveAsked { change, record: vec![n] }),
        (change.clone(), version, any::<bool>()).prop_map(|(change, n, lazy)| Event::AttachAsked {
            change,
            release: None,
            attach: entry(n).tree,
            lazy,
            retry_bad: false,
        }),
        (change.clone(), 0u64..9).prop_map(|(change, ms)| Event::FinishAsked { change, drain_deadline_ms: ms }),
        (change.clone(), 0u8..4).prop_map(|(change, n)| Event::StageEnded {
            change,
            result: match n {
                0 => Err(StageFault::OfTheWorld("no network".to_owned())),
                1 => Err(StageFault::OfTheVersion("no entry point".to_owned())),
                _ => Ok(StageDone { warm_us: 1, detail: String::new() }),
            },
            took_us: 2,
        }),
        change.prop_map(|change| Event::Drained { change, detail: String::new(), took_us: 3 }),
        any::<bool>().prop_map(|of_the_version| Event::ExecReturned { fault: "ENOENT".to_owned(), of_the_version }),
        Just(Event::Health { result: Ok(()) }),
        Just(Event::Health { result: Err(reason("sick")) }),
        Just(Event::Failed { what: "no thread".to_owned() }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn in_every_history_the_old_version_works_unless_it_has_become_the_new(
        history in proptest::collection::vec((events(), proptest::option::of(0u8..6)), 0..40)
    ) {
        let mut world = World::default();
        let (mut state, first) = State::begin(None, 1000, 0);
        world.perform(first, &mut None);
        for (event, fail_at) in history {
            state = happens(state, event, fail_at, &mut world);
        }
    }
}

/// One event and all that follows from it by itself, with what must hold after it.
fn happens(mut state: State, event: Event, mut fail_at: Option<u8>, world: &mut World) -> State {
    let asked = matches!(event, Event::SaveAsked { .. } | Event::AttachAsked { .. } | Event::FinishAsked { .. });
    // A failure in the background comes when its message has been answered; the driver has nobody to tell then.
    let late = matches!(event, Event::Failed { .. });
    let answers = world.answers;
    let mut queue = vec![event];
    while let Some(event) = queue.pop() {
        let (next, effects) = state.on(event, &facts());
        state = next;
        queue.extend(world.perform(effects, &mut fail_at));
    }
    assert!(
        late || world.answers - answers == u32::from(asked),
        "each message gets one answer, and nothing else does"
    );
    let leaving =
        matches!(state, State::Draining(_) | State::Journaling(_) | State::Swapping(_) | State::Executing(_));
    assert_eq!(world.draining, leaving);
    // Between events the driver has come to an end of what it does by itself: nothing rests half-swapped.
    let executing = matches!(state, State::Executing(_));
    assert_eq!((world.link_is_new, world.journal_is_new), (executing, executing));
    state
}

/// Every event that two change-overs between three versions can bring.
fn every_event() -> Vec<Event> {
    let mut all = vec![Event::Failed { what: "no thread".to_owned() }];
    all.extend([Ok(()), Err(reason("sick"))].map(|result| Event::Health { result }));
    all.extend(
        [true, false].map(|of_the_version| Event::ExecReturned { fault: "ENOENT".to_owned(), of_the_version }),
    );
    for change in [1, 2].map(ChangeId) {
        for n in 1..=3 {
            all.push(Event::SaveAsked { change, record: vec![n] });
            let (attach, retry_bad) = (entry(n).tree, false);
            all.extend([true, false].map(|lazy| Event::AttachAsked {
                change,
                release: None,
                attach,
                lazy,
                retry_bad,
            }));
        }
        all.push(Event::FinishAsked { change, drain_deadline_ms: 1 });
        let results = [
            Err(StageFault::OfTheWorld("no network".to_owned())),
            Err(StageFault::OfTheVersion("no entry point".to_owned())),
            Ok(StageDone { warm_us: 1, detail: String::new() }),
        ];
        all.extend(results.map(|result| Event::StageEnded { change, result, took_us: 2 }));
        all.push(Event::Drained { change, detail: String::new(), took_us: 3 });
    }
    all
}

#[test]
fn in_every_history_of_two_change_overs_the_old_version_works_unless_it_has_become_the_new() {
    // As the agent begins: after a start, and after a change-over.
    let origin = Origin { change: ChangeId(9), from: None };
    let beginnings = [State::begin(None, 1000, 0), State::begin(Some(origin), 1000, 0)];
    let (mut seen, mut open) = (BTreeSet::new(), Vec::new());
    for (state, first) in beginnings {
        let mut world = World::default();
        world.perform(first, &mut None);
        open.push((state, world));
    }
    while let Some((state, world)) = open.pop() {
        // What has been counted makes no difference to what follows.
        let counted = World { execs: 0, answers: 0, ..world };
        if !seen.insert(format!("{state:?} {counted:?}")) {
            continue;
        }
        for event in every_event() {
            for fail_at in [None, Some(0), Some(1), Some(2), Some(3), Some(4), Some(5)] {
                let mut world = counted.clone();
                let next = happens(state.clone(), event.clone(), fail_at, &mut world);
                open.push((next, world));
            }
        }
    }
    // All of them were reached, and there is an end of them.
    for state in ["Probation", "Serving", "Staging", "Staged", "Draining", "Executing"] {
        assert!(seen.iter().any(|text| text.starts_with(state)), "no history comes to {state}");
    }
}

/// The stub's clock runs since the `execve`: what a start has taken on a busy host is not added to the half that a new
/// version must work, or it would be late however well it is.
#[test]
fn half_of_the_probation_is_counted_from_the_exec() {
    let after = |change, gone_ms| match State::begin(change, 1000, gone_ms).1.as_slice() {
        [Effect::CheckHealth { after_ms }] => *after_ms,
        other => panic!("{other:?}"),
    };
    let change = Some(Origin { change: ChangeId(9), from: None });
    assert_eq!([0, 300, 500, 900].map(|gone_ms| after(change, gone_ms)), [500, 200, 0, 0]);
    assert_eq!(after(None, 0), 0);
}

fn serving_with(candidate: Candidate) -> State {
    State::Serving(Serving { saved: Some(Saved { change: ChangeId(7), candidate }), ended: None })
}

fn attach(n: u8, retry_bad: bool) -> Event {
    Event::AttachAsked {
        change: ChangeId(7),
        release: Some(entry(1).tree),
        attach: entry(n).tree,
        lazy: false,
        retry_bad,
    }
}

fn refusal(effects: &[Effect]) -> Option<&str> {
    effects.iter().find_map(|effect| match effect {
        Effect::Answer(Err(Fault::Refused(text))) => Some(text.as_str()),
        _ => None,
    })
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_done_for_it() {
    let cases = [
        (Candidate { bad: Some("exit status 1".to_owned()), ..candidate(2) }, "remembered as bad"),
        (Candidate { architecture: Some("aarch64".to_owned()), ..candidate(2) }, "for aarch64"),
        (Candidate { reads: SchemaRange { min: 3, max: 9 }, ..candidate(2) }, "schemas 3 to 9"),
        (Candidate { reads: SchemaRange { min: 1, max: 1 }, ..candidate(2) }, "writes 2 to 2"),
    ];
    for (candidate, word) in cases {
        let (state, effects) = serving_with(candidate).on(attach(2, false), &facts());
        assert!(refusal(&effects).is_some_and(|text| text.contains(word)), "{word}: {effects:?}");
        assert!(!effects.iter().any(|e| matches!(e, Effect::Stage { .. } | Effect::Journal(_))), "{effects:?}");
        // Message C that was on its way gets the same answer.
        let (_, effects) = state.on(Event::FinishAsked { change: ChangeId(7), drain_deadline_ms: 1 }, &facts());
        assert!(refusal(&effects).is_some_and(|text| text.contains(word)), "{word}: {effects:?}");
    }
    let bad = Candidate { bad: Some("exit status 1".to_owned()), ..candidate(2) };
    let (state, _) = serving_with(bad).on(attach(2, true), &facts());
    assert!(matches!(state, State::Staging(_)), "an operator may insist");
    let wrong = Event::AttachAsked {
        change: ChangeId(7),
        release: Some(entry(9).tree),
        attach: entry(2).tree,
        lazy: false,
        retry_bad: false,
    };
    let (_, effects) = serving_with(candidate(2)).on(wrong, &facts());
    assert!(refusal(&effects).is_some_and(|text| text.contains("is what runs here")), "{effects:?}");
}

#[test]
fn a_program_that_writes_the_older_schema_too_may_go_back() {
    let facts = Facts { writes: 1..=2, ..facts() };
    let old = Candidate { reads: SchemaRange { min: 1, max: 1 }, ..candidate(2) };
    let (state, _) = serving_with(old).on(attach(2, false), &facts);
    assert!(matches!(state, State::Staging(_)));
}

#[test]
fn a_result_that_comes_too_late_is_not_taken_for_another() {
    let (state, _) = serving_with(candidate(2)).on(attach(2, false), &facts());
    let late = Event::StageEnded {
        change: ChangeId(6),
        result: Ok(StageDone { warm_us: 0, detail: String::new() }),
        took_us: 1,
    };
    let (state, effects) = state.on(late, &facts());
    assert!(matches!(state, State::Staging(_)) && effects.is_empty());
}

#[test]
fn messages_that_come_twice_are_answered_twice_and_followed_once() {
    let (change, saved) = (ChangeId(7), Saved { change: ChangeId(7), candidate: candidate(2) });
    let states = [
        State::Staging(Staging { target: saved.clone(), finish: Some(1) }),
        State::Draining(Leaving { target: saved.clone() }),
        State::Journaling(Leaving { target: saved.clone() }),
        State::Probation(Probation { change: Some(Origin { change, from: None }), saved: None, is_sick: false }),
        State::Serving(Serving { saved: None, ended: Some(Verdict::done(change)) }),
    ];
    for state in states {
        for message in [
            Event::SaveAsked { change, record: vec![2] },
            attach(2, false),
            Event::FinishAsked { change, drain_deadline_ms: 1 },
        ] {
            let (next, effects) = state.clone().on(message, &facts());
            assert_eq!(effects, [Effect::Answer(Ok(()))], "{state:?}");
            assert_eq!(next, state);
        }
    }
    // Staged: message C, the first time.
    let (state, effects) = State::Staged(Staged { target: saved }).on(attach(2, false), &facts());
    assert_eq!(effects, [Effect::Answer(Ok(()))]);
    let (state, _) = state.on(Event::FinishAsked { change, drain_deadline_ms: 1 }, &facts());
    assert!(matches!(state, State::Draining(_)));
}

#[test]
fn a_believed_version_that_is_sick_may_be_left_and_a_new_one_has_its_probation() {
    let sick = |change| {
        let (state, _) = State::begin(change, 1000, 0);
        let (state, _) =
            state.on(Event::Health { result: Err(Reason::of(&std::io::Error::other("sick"))) }, &facts());
        let (state, _) = state.on(Event::SaveAsked { change: ChangeId(7), record: vec![2] }, &facts());
        let result = Ok(Box::new(candidate(2)));
        state.on(Event::Saved { change: ChangeId(7), result, took_us: 1 }, &facts()).0
    };
    let (state, effects) = sick(None).on(attach(2, false), &facts());
    assert!(matches!(state, State::Staging(_)), "{state:?}");
    assert!(effects.contains(&Effect::Answer(Ok(()))));
    // One that is refused leaves it where it was, and it may still get well.
    let other = Event::AttachAsked {
        change: ChangeId(7),
        release: Some(TreeId::of(b"another")),
        attach: candidate(2).entry.tree,
        lazy: false,
        retry_bad: false,
    };
    let (state, _) = sick(None).on(other, &facts());
    let (_, effects) = state.on(Event::Health { result: Ok(()) }, &facts());
    assert_eq!(effects, [Effect::Journal(JournalWrite::Confirmed)]);
    // A new version is sick: the stub has the clock.
    let (_, effects) = sick(Some(Origin { change: ChangeId(6), from: None })).on(attach(2, false), &facts());
    assert!(matches!(effects.as_slice(), [Effect::Answer(Err(Fault::Unavailable(_)))]), "{effects:?}");
}
