//! What each message, and each result, gets at each place of a change-over: of its own one, of an older, of a newer.

use super::*;

const OURS: ChangeId = ChangeId(7);
const OLDER: ChangeId = ChangeId(6);
const NEWER: ChangeId = ChangeId(8);

fn target() -> Saved {
    Saved { change: OURS, candidate: candidate(2) }
}

fn ask(change: ChangeId, n: u8) -> Event {
    Event::AttachAsked { change, release: None, attach: entry(n).tree, lazy: false, retry_bad: false }
}

fn save(change: ChangeId) -> Event {
    Event::SaveAsked { change, record: vec![3] }
}

fn finish(change: ChangeId) -> Event {
    Event::FinishAsked { change, drain_deadline_ms: 5 }
}

/// What the message is answered at once; `None`: something is done first.
fn answered(effects: &[Effect]) -> Option<Result<(), String>> {
    effects.iter().find_map(|effect| match effect {
        Effect::Answer(reply) => Some(reply.clone().map_err(|fault| fault.to_string())),
        _ => None,
    })
}

fn fault(effects: &[Effect]) -> String {
    answered(effects).and_then(Result::err).expect("a fault")
}

fn steps(effects: &[Effect]) -> Vec<(Step, &str)> {
    let step = |effect| match effect {
        &Effect::Report { step, ref detail, .. } => Some((step, detail.as_str())),
        _ => None,
    };
    effects.iter().filter_map(step).collect()
}

#[test]
fn while_a_version_is_made_ready_each_message_is_answered_by_what_it_is_of() {
    let staging = || State::Staging(Staging { target: target(), finish: None });
    let staged = || State::Staged(Staged { target: target() });
    for state in [staging, staged] {
        let stays = |event: Event| {
            let (next, effects) = state().on(event, &facts());
            assert_eq!(next, state());
            effects
        };
        assert_eq!(stays(save(OURS)), [Effect::Answer(Ok(()))], "somebody did not hear the answer");
        assert_eq!(stays(ask(OURS, 2)), [Effect::Answer(Ok(()))]);
        for late in [stays(save(OLDER)), stays(ask(OLDER, 2))] {
            assert!(fault(&late).contains("change-over 7 came after it"), "{late:?}");
        }
        for other in [stays(finish(OLDER)), stays(finish(NEWER))] {
            assert!(fault(&other).contains("message B"), "{other:?}");
        }
        let (next, effects) = state().on(save(NEWER), &facts());
        assert!(matches!(next, State::Serving(_)), "{next:?}");
        assert!(effects.contains(&Effect::SaveRecord { change: NEWER, record: vec![3] }), "{effects:?}");
    }
    let (next, effects) = staging().on(finish(OURS), &facts());
    assert_eq!(
        (next, answered(&effects)),
        (State::Staging(Staging { target: target(), finish: Some(5) }), Some(Ok(())))
    );
    let (next, effects) = staged().on(finish(OURS), &facts());
    assert_eq!(next, State::Draining(Leaving { target: target() }));
    assert_eq!(effects, [Effect::Answer(Ok(())), Effect::Drain { change: OURS, deadline_ms: 5 }]);
}

#[test]
fn a_version_that_cannot_be_made_ready_is_remembered_only_where_it_is_to_blame() {
    let staging = || State::Staging(Staging { target: target(), finish: None });
    let ends = |fault, change| {
        let event = Event::StageEnded { change, result: Err(fault), took_us: 2 };
        staging().on(event, &facts())
    };
    let remembered = |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::RememberBad { .. }));
    let (next, effects) = ends(StageFault::OfTheWorld("no network".to_owned()), OURS);
    assert!(matches!(next, State::Serving(_)) && !remembered(&effects), "{effects:?}");
    assert_eq!(steps(&effects), [(Step::Refused, "staging failed: no network")]);
    let (_, effects) = ends(StageFault::OfTheVersion("no entry point".to_owned()), OURS);
    assert!(remembered(&effects), "{effects:?}");
    assert_eq!(steps(&effects), [(Step::Refused, "no entry point")]);
    let (next, effects) = ends(StageFault::OfTheWorld("late".to_owned()), OLDER);
    assert_eq!((next, effects), (staging(), vec![]));
}

#[test]
fn a_drain_counts_for_its_own_change_over_and_says_what_becomes_of_the_state() {
    let draining = || State::Draining(Leaving { target: target() });
    let drained = |change| Event::Drained { change, detail: "2 finished".to_owned(), took_us: 3 };
    assert_eq!(draining().on(drained(OLDER), &facts()), (draining(), vec![]));
    let (next, effects) = draining().on(drained(OURS), &facts());
    assert_eq!(next, State::Journaling(Leaving { target: target() }));
    assert_eq!(steps(&effects), [(Step::Drained, "2 finished")]);
    // A version that reads none of what is written gets what was saved for it once.
    let newer = Facts { writes: 3..=3, snapshots: vec![2], ..facts() };
    let (_, effects) = draining().on(drained(OURS), &newer);
    let text = "2 finished; 2.0 reads no state of 1.0, and gets back what was saved in schema 2";
    assert_eq!(steps(&effects), [(Step::Drained, text)]);
}

#[test]
fn what_is_undone_on_the_way_out_is_told_to_the_stub_only_after_execve() {
    let leaving = || Leaving { target: target() };
    let failed = || Event::Failed { what: "disk full".to_owned() };
    let returned = Event::ExecReturned { fault: "ENOENT".to_owned(), of_the_version: false };
    for (state, event, step) in [
        (State::Draining(leaving()), failed(), Step::Refused),
        (State::Journaling(leaving()), failed(), Step::Refused),
        (State::Swapping(leaving()), failed(), Step::Refused),
        (State::Executing(leaving()), returned, Step::ExecFailed),
    ] {
        let (next, effects) = state.on(event, &facts());
        let State::Serving(Serving { saved: None, ended: Some(ended) }) = next else { panic!("{next:?}") };
        assert_eq!(ended.change, OURS);
        assert_eq!(effects.contains(&Effect::TellExecReturned), step == Step::ExecFailed, "{effects:?}");
        let undone = [Effect::SwapBack(entry(1).tree), Effect::Journal(JournalWrite::Back), Effect::Resume];
        assert!(undone.iter().all(|effect| effects.contains(effect)), "{effects:?}");
        assert_eq!(steps(&effects).first().map(|(step, _)| *step), Some(step));
    }
}

#[test]
fn a_message_of_what_has_ended_is_answered_by_how_it_ended() {
    let serving = |saved| {
        let ended = Some(Verdict::refused(OURS, "it was bad".to_owned()));
        State::Serving(Serving { saved, ended })
    };
    for event in [save(OURS), ask(OURS, 2), finish(OURS)] {
        let (next, effects) = serving(None).on(event, &facts());
        assert_eq!((next, effects.len()), (serving(None), 1));
        assert!(fault(&effects).contains("it was bad"), "{effects:?}");
    }
    let (_, effects) = serving(None).on(save(NEWER), &facts());
    assert_eq!(effects, [Effect::SaveRecord { change: NEWER, record: vec![3] }]);
    // A record of another change-over, or of another tree, is not what message A brought for this one.
    let of = |change| Some(Saved { change, candidate: candidate(2) });
    for (saved, event) in [(of(OLDER), ask(NEWER, 2)), (of(NEWER), ask(NEWER, 3)), (None, ask(NEWER, 2))] {
        let (next, effects) = serving(saved.clone()).on(event, &facts());
        assert_eq!(next, serving(saved));
        assert!(fault(&effects).contains("message A"), "{effects:?}");
    }
    let (next, _) = serving(of(NEWER)).on(ask(NEWER, 2), &facts());
    assert!(matches!(next, State::Staging(_)), "{next:?}");
}

#[test]
fn a_version_on_probation_answers_its_own_change_over_and_tells_the_stub_why_it_is_not_well() {
    let origin = Origin { change: OURS, from: Some(entry(1).tree) };
    let begun = || State::begin(Some(origin), 1000, 0).0;
    let (next, effects) = begun().on(finish(OURS), &facts());
    assert_eq!((next, effects), (begun(), vec![Effect::Answer(Ok(()))]));
    let (_, effects) = begun().on(finish(NEWER), &facts());
    assert!(fault(&effects).contains("has not proved itself yet"), "{effects:?}");
    let (next, effects) = begun().on(Event::Health { result: Err(reason("sick")) }, &facts());
    assert!(matches!(next, State::Probation(_)));
    let again = |effect: &Effect| matches!(effect, Effect::CheckHealth { after_ms: 1.. });
    assert!(effects.iter().any(again), "{effects:?}");
    assert!(effects.iter().any(|effect| matches!(effect, Effect::TellUnwell(_))), "{effects:?}");
}
