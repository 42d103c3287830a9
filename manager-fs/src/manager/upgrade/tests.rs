use std::collections::BTreeMap;

use proptest::prelude::*;
use proto::agent::ChangeId;
use proto::message::{HostReply, HostReport, ManagerRequest};
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;
use crate::manager::whole::testing::{Answers, Bench, SOON, agent, alive, at_once, host, step};

fn order(target: &str) -> UpgradeOrder {
    UpgradeOrder {
        product: "a".parse().unwrap(),
        generation: "a@2".parse().unwrap(),
        targets: vec![target.parse().unwrap()],
        lazy: false,
        drain_deadline_ms: None,
        retry_bad: false,
        export: false,
        wait: true,
        timeout_ms: None,
    }
}

/// Two versions, and a host to which the second is exported.
async fn prepared() -> (Bench, [Arc<Generation>; 2], HostName) {
    let bench = Bench::open().await;
    let generations = [bench.publish("a@1", "one").await, bench.publish("a@2", "two").await];
    let web = bench.enrol("web").await;
    bench.manager.exports.export(&generations[1], &["web".parse().unwrap()]).await.unwrap();
    (bench, generations, web)
}

async fn end(bench: &Bench, order: UpgradeOrder) -> HostEnd {
    let (events, _kept) = mpsc::unbounded_channel();
    let report = tokio::time::timeout(SOON, bench.manager.upgrades.upgrade(order, events)).await.unwrap().unwrap();
    report.hosts.into_iter().next().unwrap()
}

/// A host whose agent is this and that answers an order so.
fn runs(status: AgentStatus, to_order: HostReply) -> Box<Answers> {
    at_once(move |request| match request {
        ManagerRequest::Agents => HostReply::Agents(vec![status.clone()]),
        ManagerRequest::ChangeOver(_) => to_order.clone(),
        _ => HostReply::Done,
    })
}

async fn accepted(events: &mut UnboundedReceiver<UpgradeEvent>) -> ChangeId {
    match tokio::time::timeout(SOON, events.recv()).await.unwrap() {
        Some(UpgradeEvent::Accepted { change, .. }) => change,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_order_that_means_nothing_is_refused_before_any_host_hears_of_it() {
    let (bench, _, _) = prepared().await;
    bench.publish_with("a@3", "three", None).await;
    bench.manager.state.add_members(&"none".parse().unwrap(), &[]).await.unwrap();
    let to =
        |generation: &str, target: &str| UpgradeOrder { generation: generation.parse().unwrap(), ..order(target) };
    let orders = [
        (to("a@9", "web"), "generation 'a@9'"),
        (to("a@3", "web"), "a@3 has no entry point: publish it with --entrypoint PATH"),
        (to("a@2", "wbe"), "host 'wbe' is not enrolled; `manager-fs hosts` lists those that are"),
        (to("a@2", "@all"), "group 'all' does not exist"),
        (to("a@2", "@none"), "the group has no hosts"),
    ];
    for (order, words) in orders {
        let (events, mut told) = mpsc::unbounded_channel();
        let refused = bench.manager.upgrades.upgrade(order, events).await.unwrap_err().to_string();
        assert!(refused.contains(words), "{refused}");
        assert!(told.recv().await.is_none());
    }
    assert_eq!(bench.manager.state.changes().await.unwrap(), []);
}

/// Each says what to do, and none leaves a change-over behind that nobody ends.
#[tokio::test]
async fn a_host_that_cannot_be_told_says_why() {
    let (bench, [old, new], web) = prepared().await;
    let hidden = bench.enrol("hidden").await;
    bench.connect(&hidden, alive()).await;
    let ended = end(&bench, order("hidden")).await;
    assert_eq!(ended.reason, "a@2 is not exported to hidden: `manager-fs export a@2 --to hidden`");
    assert_eq!(end(&bench, order("web")).await.reason, "host web is not connected");
    let is = |generation: &Generation, state, pid| runs(agent(generation, state, pid), HostReply::Done);
    let hosts = [
        (alive(), Verdict::Refused, "where it has never run: start it with `manager-fs launch a`"),
        (is(&old, AgentState::Stopped, 0), Verdict::Refused, "start it there with `manager-fs launch a`"),
        (is(&new, AgentState::Stopped, 0), Verdict::Refused, "no `launch a` is there to take the order"),
        (
            is(&new, AgentState::Stopped, 7),
            Verdict::Refused,
            "a@2 is what web starts, and it does not come up: launched",
        ),
        (is(&new, AgentState::Serving, 7), Verdict::Already, "a@2 runs there already"),
        (is(&new, AgentState::Probation, 7), Verdict::Already, "a@2 runs there already"),
        (at_once(|_| HostReply::Fault(Fault::Failed("no disk".into()))), Verdict::Refused, "failed: no disk"),
        (at_once(|_| HostReply::Done), Verdict::Refused, "the host did not say what runs there"),
    ];
    for (says, verdict, words) in hosts {
        bench.connect(&web, says).await;
        let ended = end(&bench, order("web")).await;
        assert_eq!((ended.verdict, ended.change), (verdict, None), "{}", ended.reason);
        assert!(ended.reason.contains(words), "{}", ended.reason);
    }
    bench.manager.revoke(&web).await.unwrap();
    assert_eq!(end(&bench, order("web")).await.reason, "host web was revoked");
    assert_eq!(bench.manager.state.changes().await.unwrap(), []);
}

#[tokio::test]
async fn an_order_that_the_host_refuses_is_recorded_as_over() {
    let (bench, [old, _], web) = prepared().await;
    let answers = [
        (HostReply::Fault(Fault::Refused("it is known as bad".into())), "it is known as bad"),
        (HostReply::Fault(Fault::NotExported("tree x".into())), "not exported to this host: tree x"),
        (HostReply::Sent(1), "the host gave an answer that makes no sense"),
    ];
    for (answer, words) in answers {
        bench.connect(&web, runs(agent(&old, AgentState::Serving, 7), answer)).await;
        let ended = end(&bench, order("web")).await;
        assert_eq!((ended.verdict, ended.reason.as_str()), (Verdict::Refused, words));
        let record = bench.manager.state.change(ended.change.unwrap()).await.unwrap().unwrap();
        let recorded = record.ended.unwrap();
        assert_eq!((recorded.confirmed, recorded.by, recorded.reason.as_str()), (false, EndedBy::Manager, words));
    }
}

/// As the operator's terminal sees it: accepted, each step once, the end.
#[tokio::test]
async fn whoever_waits_hears_each_step_and_how_it_ended() {
    let (bench, [old, new], web) = prepared().await;
    bench.connect(&web, runs(agent(&old, AgentState::Serving, 7), HostReply::Done)).await;
    let good = [Step::MetadataSaved, Step::Staged, Step::Swapped, Step::Started, Step::Confirmed];
    let bad = [Step::MetadataSaved, Step::Swapped, Step::ProbationFailed, Step::Returned];
    for (steps, verdict, reason) in
        [(&good[..], Verdict::Confirmed, "Confirmed at 5"), (&bad, Verdict::Failed, "ProbationFailed at 3")]
    {
        let (events, mut told) = mpsc::unbounded_channel();
        let upgrades = Arc::clone(&bench.manager.upgrades);
        let running = tokio::spawn(async move { upgrades.upgrade(order("web"), events).await.unwrap() });
        let change = accepted(&mut told).await;
        let steps: Vec<_> = (1..).zip(steps).map(|(at, kind)| step(change, &new, *kind, at)).collect();
        for event in &steps {
            // A host sends again what was not answered.
            for _ in 0..2 {
                bench.report(&web, vec![HostReport::Step(event.clone())]).await;
            }
        }
        let report = tokio::time::timeout(SOON, running).await.unwrap().unwrap();
        let expected = HostEnd { host: web.clone(), change: Some(change), verdict, reason: reason.into(), steps };
        let mut heard = Vec::new();
        while let Some(UpgradeEvent::Step { event, .. }) = told.recv().await {
            heard.push(event);
        }
        assert_eq!(heard, expected.steps);
        assert_eq!((report.hosts, report.tree), (vec![expected], new.record.tree));
    }
}

#[tokio::test]
async fn whoever_does_not_wait_is_told_so_and_the_change_over_goes_on() {
    let (bench, [old, new], web) = prepared().await;
    bench.connect(&web, runs(agent(&old, AgentState::Serving, 7), HostReply::Done)).await;
    let ordered = end(&bench, UpgradeOrder { wait: false, ..order("web") }).await;
    assert_eq!(ordered.verdict, Verdict::Ordered);
    let unfinished = end(&bench, UpgradeOrder { timeout_ms: Some(1), ..order("web") }).await;
    assert_eq!(unfinished.verdict, Verdict::Unfinished);
    assert!(unfinished.reason.contains("it goes on, and `manager-fs agents` shows it"), "{}", unfinished.reason);
    for change in [ordered.change, unfinished.change].map(Option::unwrap) {
        let state = &bench.manager.state;
        assert_eq!(state.change(change).await.unwrap().unwrap().ended, None);
        bench.report(&web, vec![HostReport::Step(step(change, &new, Step::Confirmed, change.0))]).await;
        assert!(state.change(change).await.unwrap().unwrap().ended.unwrap().confirmed);
    }
}

/// The order arrived, its answer did not: the host's steps say so.
#[tokio::test]
async fn a_change_over_that_begins_without_an_answer_is_followed_all_the_same() {
    let (bench, [old, new], web) = prepared().await;
    let (heard, mut hears) = mpsc::unbounded_channel();
    let says: Box<Answers> = Box::new(move |request| {
        let reply = match request {
            ManagerRequest::Agents => Some(HostReply::Agents(vec![agent(&old, AgentState::Serving, 7)])),
            ManagerRequest::ChangeOver(order) => {
                heard.send(order.change).unwrap();
                None
            }
            _ => Some(HostReply::Done),
        };
        Box::pin(std::future::ready(reply))
    });
    bench.connect(&web, says).await;
    let (events, mut told) = mpsc::unbounded_channel();
    let upgrades = Arc::clone(&bench.manager.upgrades);
    let running = tokio::spawn(async move { upgrades.upgrade(order("web"), events).await.unwrap() });
    let change = tokio::time::timeout(SOON, hears.recv()).await.unwrap().unwrap();
    bench.report(&web, vec![HostReport::Step(step(change, &new, Step::MetadataSaved, 1))]).await;
    assert_eq!(accepted(&mut told).await, change);
    bench.report(&web, vec![HostReport::Step(step(change, &new, Step::Confirmed, 2))]).await;
    let report = tokio::time::timeout(SOON, running).await.unwrap().unwrap();
    assert_eq!(report.hosts[0].verdict, Verdict::Confirmed);
}

const HOSTS: [&str; 2] = ["h0", "h1"];

/// What comes in: a batch of steps (who says it, of which change-over, whether of its product, which step), or the manager
/// gives a change-over up.
#[derive(Debug, Clone)]
enum Act {
    Report(usize, Vec<(usize, bool, Step)>),
    /// What was reported before comes once more.
    Again(prop::sample::Index),
    GiveUp(usize),
}

fn any_act() -> impl Strategy<Value = Act> {
    let said = (0..5_usize, prop::bool::weighted(0.9), prop::sample::select(&Step::ALL[..]));
    prop_oneof![
        6 => (0..HOSTS.len(), prop::collection::vec(said, 1..4)).prop_map(|(host, said)| Act::Report(host, said)),
        2 => any::<prop::sample::Index>().prop_map(Act::Again),
        1 => (0..4_usize).prop_map(Act::GiveUp),
    ]
}

/// The verdicts, the simple way: an agent's first word on its own change-over stands, whatever comes later.
#[derive(Default)]
struct Model {
    said: Vec<(usize, StepEvent)>,
    ends: BTreeMap<ChangeId, (bool, EndedBy, String)>,
}

impl Model {
    fn take(&mut self, who: usize, batch: &[StepEvent], owns: impl Fn(ChangeId) -> bool, other: &Product) {
        self.said.extend(batch.iter().map(|event| (who, event.clone())));
        for event in batch {
            let known = self.ends.get(&event.change).is_some_and(|end| end.1 == EndedBy::Agent);
            let Some(confirmed) = event.step.ends() else { continue };
            if known || !owns(event.change) || event.product == *other {
                continue;
            }
            let of_it = self.said.iter().filter(|(of, said)| *of == who && said.change == event.change);
            let failed = |said: &StepEvent| said.step == Step::ProbationFailed && said.product == event.product;
            let failure = of_it.map(|(_, said)| said).rfind(|said| failed(said));
            let cause = failure.filter(|_| event.step == Step::Returned).unwrap_or(event);
            self.ends.insert(event.change, (confirmed, EndedBy::Agent, cause.detail.clone()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn every_sequence_of_steps_ends_in_the_verdict_of_the_first_end(acts in prop::collection::vec(any_act(), 1..24)) {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let bench = Bench::open().await;
            let (of_it, of_other) = (bench.publish("a@2", "two").await, bench.publish("b@1", "other").await);
            let state = &bench.manager.state;
            // Two of each host; what is said of number 4 is of none.
            let (mut changes, mut model, mut at) = (Vec::new(), Model::default(), 0);
            for name in ["h0", "h1", "h0", "h1"] {
                let GenerationRecord { product, version, tree, .. } = of_it.record.clone();
                let order = ChangeOrder { host: host(name), product, version, to: tree };
                changes.push(state.add_change(order, 1).await.unwrap().id);
            }
            let owns = |who: usize| {
                let own: Vec<ChangeId> = changes.iter().copied().skip(who).step_by(2).collect();
                move |change| own.contains(&change)
            };
            for act in acts {
                match act {
                    Act::Report(who, said) => {
                        let batch: Vec<StepEvent> = said.into_iter().map(|(change, its, kind)| {
                            at += 1;
                            let change = changes.get(change).copied().unwrap_or(ChangeId(0));
                            step(change, if its { &of_it } else { &of_other }, kind, at)
                        }).collect();
                        bench.report(&host(HOSTS[who]), batch.iter().cloned().map(HostReport::Step).collect()).await;
                        model.take(who, &batch, owns(who), &of_other.record.product);
                    }
                    Act::Again(which) if !model.said.is_empty() => {
                        let (who, event) = which.get(&model.said).clone();
                        bench.report(&host(HOSTS[who]), vec![HostReport::Step(event.clone())]).await;
                        // It is known; what follows from it may not have been written then.
                        let said = model.said.len();
                        model.take(who, &[event], owns(who), &of_other.record.product);
                        model.said.truncate(said);
                    }
                    Act::Again(_) => {}
                    Act::GiveUp(which) => {
                        let gave_up = String::from("no answer");
                        let end = ChangeEnd { confirmed: false, at: 9, reason: gave_up.clone(), by: EndedBy::Manager };
                        let new = !model.ends.contains_key(&changes[which]);
                        assert_eq!(state.end_change(changes[which], end).await.unwrap(), new);
                        model.ends.entry(changes[which]).or_insert((false, EndedBy::Manager, gave_up));
                    }
                }
                for change in &changes {
                    let ended = state.change(*change).await.unwrap().unwrap().ended;
                    let ended = ended.map(|end| (end.confirmed, end.by, end.reason));
                    assert_eq!(ended.as_ref(), model.ends.get(change), "{change:?} of {changes:?}");
                }
            }
        });
    }
}
