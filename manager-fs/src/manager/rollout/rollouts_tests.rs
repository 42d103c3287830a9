use std::collections::HashMap;

use proto::HostName;
use proto::agent::{AgentState, AgentStatus, Operation, Outcome, Repository, Step, Summary};
use proto::message::{ChangeOver, Fault, HostReply, HostReport, ManagerRequest};

use super::*;
use crate::manager::control::generations::Generation;
use crate::manager::control::targets::Wanted;
use crate::manager::rollout::machine::vocabulary::Phase;
use crate::manager::whole::testing::{Answers, Bench, SOON, agent, at_once, step};

const PLAN: &str = "product = \"a\"\ngeneration = \"a@2\"\nexport = true\n";

/// Connected hosts whose agents run version 1; what they are ordered comes out of the channel.
async fn prepared(hosts: u32) -> (Bench, [Arc<Generation>; 2], mpsc::UnboundedReceiver<(HostName, ChangeOver)>) {
    let bench = Bench::open().await;
    let generations = [bench.publish("a@1", "one").await, bench.publish("a@2", "two").await];
    let (sent, orders) = mpsc::unbounded_channel();
    let mut members = Vec::new();
    for number in 0..hosts {
        let host = bench.enrol(&format!("h{number}")).await;
        bench.report(&host, vec![HostReport::Agents(vec![agent(&generations[0], AgentState::Serving, 7)])]).await;
        bench.connect(&host, runs(&host, &generations[0], &sent)).await;
        members.push(host);
    }
    bench.manager.state.add_members(&"all".parse().unwrap(), &members).await.unwrap();
    (bench, generations, orders)
}

fn runs(
    host: &HostName,
    generation: &Arc<Generation>,
    orders: &mpsc::UnboundedSender<(HostName, ChangeOver)>,
) -> Box<Answers> {
    let (host, status, orders) = (host.clone(), agent(generation, AgentState::Serving, 7), orders.clone());
    at_once(move |request| match request {
        ManagerRequest::Agents => HostReply::Agents(vec![status.clone()]),
        ManagerRequest::ChangeOver(order) => {
            if host.as_str() == "h0" {
                return HostReply::Fault(Fault::Refused("it is pinned here".into()));
            }
            orders.send((host.clone(), order)).unwrap();
            HostReply::Done
        }
        _ => HostReply::Done,
    })
}

async fn until(bench: &Bench, id: RolloutId, wanted: impl Fn(&RolloutView) -> bool) -> RolloutView {
    let waiting = async {
        loop {
            let view = bench.manager.rollouts.view(Some(id)).await.unwrap();
            if wanted(&view) {
                return view;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.expect("it comes")
}

#[tokio::test]
async fn two_hundred_hosts_cost_a_few_commits_and_say_how_it_ended() {
    const HOSTS: u32 = 200;
    let (bench, [_, two], mut orders) = prepared(HOSTS).await;
    let text = format!(
        "{PLAN}max-failures = 2\n[[ring]]\nname = \"all\"\nto = [\"@all\"]\ncanaries = 0\nin-flight = \"100%\"\n\
         max-failures = 2\n"
    );
    let planned = bench.manager.rollouts.plan(&text, true).await.unwrap();
    let before = bench.manager.synced().0;
    bench.manager.rollouts.wish(Some(planned.id), Wish::Start).await.unwrap();
    let mut told = HashMap::new();
    while told.len() < HOSTS as usize - 1 {
        let (host, order) = tokio::time::timeout(SOON, orders.recv()).await.unwrap().unwrap();
        assert!(told.insert(host, order.change).is_none(), "told twice");
    }
    let ends = told.iter().map(|(host, change)| {
        let end = if matches!(host.as_str(), "h1" | "h2") { Step::Returned } else { Step::Confirmed };
        bench.report(host, vec![HostReport::Step(step(*change, &two, end, 9))])
    });
    let mut ends: Vec<_> = ends.map(Box::pin).collect();
    // All at once, as hosts report.
    std::future::poll_fn(|context| {
        ends.retain_mut(|end| end.as_mut().poll(context).is_pending());
        if ends.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    let view = until(&bench, planned.id, |view| view.state == State::Done).await;
    let counts = view.rings[0].hosts;
    assert_eq!((counts.good, counts.failed, counts.refused), (197, 2, 1), "{counts:?}");
    let reasons: Vec<(&str, &str, u32)> =
        view.problems.iter().map(|group| (group.state.as_str(), group.reason.as_str(), group.count)).collect();
    assert!(reasons.contains(&("failed", "Returned at 9", 2)), "one reason is said once: {reasons:?}");
    assert!(reasons.contains(&("refused", "it is pinned here", 1)), "{reasons:?}");
    let commits = bench.manager.synced().0 - before;
    println!("{commits} synced commits for {HOSTS} hosts");
    assert!(commits <= 2 * u64::from(HOSTS) / 100 + 16, "{commits} synced commits for {HOSTS} hosts");
    let target = "@all".parse().unwrap();
    let wanted = bench.manager.state.target(&two.record.product, &target).unwrap();
    assert_eq!(wanted.version, two.record.version, "who comes later gets it too");
}

#[tokio::test]
async fn a_plan_is_refused_when_it_is_made_and_says_what_it_means() {
    let (bench, _, _orders) = prepared(3).await;
    let ring = |to: &str| format!("{PLAN}[[ring]]\nname = \"first\"\nto = [\"{to}\"]\n");
    let plan = async |text: &str| bench.manager.rollouts.plan(text, false).await.map_err(|error| error.to_string());
    for (text, words) in [
        (ring("@nobody"), "ring 'first': "),
        (ring("stranger"), "stranger"),
        (ring("@all").replace("a@2", "a@9"), "a@9"),
        (format!("rollback-to = \"a@9\"\n{}", ring("@all")), "a@9"),
        (ring("@all").replace("export", "exprot"), "line 3"),
    ] {
        let refused = plan(&text).await.unwrap_err();
        assert!(refused.contains(words), "{refused}");
    }
    let view = plan(&format!("{}[[ring]]\nname = \"rest\"\nto = [\"h0\", \"h1\"]\n", ring("@all"))).await.unwrap();
    let hosts: Vec<u32> = view.rings.iter().map(|ring| ring.hosts.total()).collect();
    assert_eq!(hosts, [3, 0], "a host is in the first ring that names it");
    assert_eq!(view.rings[0].before.as_ref().map(ToString::to_string).as_deref(), Some("1"));
    assert!(matches!(bench.manager.rollouts.view(None).await, Err(RolloutError::None)), "nothing is kept");
    assert!(matches!(
        bench.manager.rollouts.wish(Some(RolloutId(7)), Wish::Pause).await,
        Err(RolloutError::Unknown(_))
    ));
}

#[tokio::test]
async fn one_of_a_product_goes_on_at_a_time_and_a_pause_holds_it() {
    let (bench, [_, two], mut orders) = prepared(4).await;
    let text = format!("{PLAN}[[ring]]\nname = \"all\"\nto = [\"h1\", \"h2\", \"h3\"]\nin-flight = 1\n");
    let rollouts = &bench.manager.rollouts;
    let (one, other) = (rollouts.plan(&text, true).await.unwrap().id, rollouts.plan(&text, true).await.unwrap().id);
    rollouts.wish(Some(one), Wish::Start).await.unwrap();
    let busy = rollouts.wish(Some(other), Wish::Start).await.unwrap_err().to_string();
    assert!(busy.contains(&one.to_string()) && busy.contains("end it first"), "{busy}");
    let (host, order) = tokio::time::timeout(SOON, orders.recv()).await.unwrap().unwrap();
    rollouts.wish(Some(one), Wish::Pause).await.unwrap();
    bench.report(&host, vec![HostReport::Step(step(order.change, &two, Step::Confirmed, 9))]).await;
    let paused = until(&bench, one, |view| view.rings[0].hosts.good == 1).await;
    assert_eq!((paused.state, paused.rings[0].phase), (State::Paused, Phase::Canaries));
    assert!(orders.try_recv().is_err(), "nobody else is asked");
    rollouts.wish(Some(one), Wish::Resume).await.unwrap();
    tokio::time::timeout(SOON, orders.recv()).await.unwrap().unwrap();
    let again = rollouts.wish(Some(one), Wish::Start).await.unwrap_err().to_string();
    assert!(again.contains("Running"), "{again}");
    rollouts.wish(Some(one), Wish::Abort).await.unwrap();
    assert!(rollouts.wish(Some(other), Wish::Start).await.is_ok());
    let states: Vec<State> = rollouts.all().await.unwrap().into_iter().map(|view| view.state).collect();
    assert_eq!(states, [State::Aborted, State::Running]);
}

/// The end of a change-over, as its host reports it.
async fn over(bench: &Bench, host: &HostName, order: &ChangeOver, to: &Generation, end: Step) {
    bench.report(host, vec![HostReport::Step(step(order.change, to, end, 9))]).await;
}

#[tokio::test]
async fn a_rollback_orders_what_ran_before_and_gives_groups_their_targets_back() {
    let (bench, [one, two], mut orders) = prepared(3).await;
    let rollouts = &bench.manager.rollouts;
    let text = format!("{PLAN}[[ring]]\nname = \"all\"\nto = [\"@all\"]\ncanaries = 0\nin-flight = \"100%\"\n");
    // Until then the group runs version 1, by an order of somebody.
    let (product, all) = (one.record.product.clone(), "@all".parse().unwrap());
    let (version, tree) = (one.record.version.clone(), one.record.tree);
    let before = Wanted { version, tree, set: 5, lazy: false, drain_deadline_ms: None, hours: None };
    bench.manager.state.set_targets(&product, std::slice::from_ref(&all), &before).await.unwrap();
    let id = rollouts.plan(&text, true).await.unwrap().id;
    rollouts.wish(None, Wish::Start).await.unwrap();
    for _ in 0..2 {
        let (host, order) = tokio::time::timeout(SOON, orders.recv()).await.unwrap().unwrap();
        assert_eq!(order.attach, two.record.tree);
        over(&bench, &host, &order, &two, Step::Confirmed).await;
    }
    until(&bench, id, |view| view.state == State::Done).await;
    let wanted = || bench.manager.state.target(&product, &all).map(|wanted| wanted.version.to_string());
    assert_eq!(wanted().as_deref(), Some("2"));
    bench.manager.exports.export(&one, std::slice::from_ref(&all)).await.unwrap();
    // Also one that is done can be taken back.
    rollouts.wish(Some(id), Wish::Rollback).await.unwrap();
    // These hosts say that version 1 runs there: there is nothing to order.
    let view = until(&bench, id, |view| view.state == State::RolledBack).await;
    assert!(orders.try_recv().is_err());
    assert_eq!(wanted().as_deref(), Some("1"));
    let told: Vec<&str> = view.lines.iter().map(|(_, text)| text.as_str()).collect();
    assert!(told.ends_with(&["rolling back", "ring all: back to what it was", "rolled back"]), "{told:?}");
}

/// The older generation was taken back, or its record was set aside: nobody is ordered anything, and the answer says
/// which, for whom, and what to do. Once it is there again, it is the way back.
#[tokio::test]
async fn a_rollback_to_what_is_no_longer_there_changes_nothing_and_says_so() {
    let (bench, [one, two], mut orders) = prepared(3).await;
    let rollouts = &bench.manager.rollouts;
    let text = format!("{PLAN}[[ring]]\nname = \"all\"\nto = [\"@all\"]\ncanaries = 0\nin-flight = \"100%\"\n");
    let id = rollouts.plan(&text, true).await.unwrap().id;
    rollouts.wish(None, Wish::Start).await.unwrap();
    for _ in 0..2 {
        let (host, order) = tokio::time::timeout(SOON, orders.recv()).await.unwrap().unwrap();
        over(&bench, &host, &order, &two, Step::Confirmed).await;
    }
    until(&bench, id, |view| view.state == State::Done).await;
    let wanted = || bench.manager.state.target(&two.record.product, &"@all".parse().unwrap());
    let before = wanted();

    let unseen = rollouts.wish(Some(id), Wish::Rollback).await.unwrap_err().to_string();
    assert!(unseen.contains("a@1, to which h1 (and 1 more) would go back, is not exported"), "{unseen}");
    bench.manager.state.remove_generation(&one.record.product, &one.record.version).await.unwrap();
    let gone = rollouts.wish(Some(id), Wish::Rollback).await.unwrap_err().to_string();
    assert!(gone.contains("a@1, to which h1 (and 1 more) would go back, is no longer published"), "{gone}");
    assert!(gone.contains("publish it again"), "{gone}");
    let view = rollouts.view(Some(id)).await.unwrap();
    assert_eq!((view.state, view.rings[0].hosts.good), (State::Done, 2), "{:?}", view.lines);
    assert!(orders.try_recv().is_err() && wanted() == before, "half of it was done");

    let again = bench.publish("a@1", "one").await;
    assert_eq!(again.record.tree, one.record.tree);
    bench.manager.exports.export(&again, &["@all".parse().unwrap()]).await.unwrap();
    rollouts.wish(Some(id), Wish::Rollback).await.unwrap();
    until(&bench, id, |view| view.state == State::RolledBack).await;
}

#[tokio::test]
async fn a_group_that_is_gone_when_its_ring_begins_keeps_the_generation_from_nobody_else_and_is_told() {
    let (bench, [_, two], mut orders) = prepared(2).await;
    let gone = "gone".parse().unwrap();
    bench.manager.state.add_members(&gone, &["h1".parse().unwrap()]).await.unwrap();
    let text = format!("{PLAN}[[ring]]\nname = \"first\"\nto = [\"@gone\", \"h1\"]\ncanaries = 0\n");
    let id = bench.manager.rollouts.plan(&text, true).await.unwrap().id;
    bench.manager.state.delete_group(&gone).await.unwrap();
    bench.manager.rollouts.wish(None, Wish::Start).await.unwrap();
    let (host, order) = tokio::time::timeout(SOON, orders.recv()).await.unwrap().unwrap();
    over(&bench, &host, &order, &two, Step::Confirmed).await;
    let view = until(&bench, id, |view| view.state == State::Done).await;
    let told = |text: &str| view.lines.iter().any(|(_, line)| line.contains(text));
    assert!(told("ring first: the generation is not exported to @gone: "), "{:?}", view.lines);
    let exported: Vec<String> =
        bench.manager.state.exports().iter().map(|export| export.target.to_string()).collect();
    assert_eq!(exported, ["h1"]);
}

/// A new version whose own record cannot be read is all the more a reason to leave it.
#[tokio::test]
async fn a_rollout_whose_new_generation_is_gone_can_be_taken_back_and_not_be_begun() {
    let (bench, [one, two], mut orders) = prepared(2).await;
    let rollouts = &bench.manager.rollouts;
    let text = format!("{PLAN}[[ring]]\nname = \"all\"\nto = [\"h1\"]\ncanaries = 0\n");
    let (id, other) = (rollouts.plan(&text, true).await.unwrap().id, rollouts.plan(&text, true).await.unwrap().id);
    rollouts.wish(Some(id), Wish::Start).await.unwrap();
    let (host, order) = tokio::time::timeout(SOON, orders.recv()).await.unwrap().unwrap();
    over(&bench, &host, &order, &two, Step::Confirmed).await;
    until(&bench, id, |view| view.state == State::Done).await;
    bench.manager.exports.export(&one, &["h1".parse().unwrap()]).await.unwrap();
    bench.manager.state.remove_generation(&two.record.product, &two.record.version).await.unwrap();
    let begun = rollouts.wish(Some(other), Wish::Start).await.unwrap_err().to_string();
    assert!(begun.contains("a@2 is no longer published as it was planned"), "{begun}");
    rollouts.wish(Some(id), Wish::Rollback).await.unwrap();
    until(&bench, id, |view| view.state == State::RolledBack).await;
}

#[tokio::test]
async fn a_version_that_falls_back_later_or_whose_operations_fail_stops_the_rollout() {
    let (bench, [one, two], mut orders) = prepared(3).await;
    let rollouts = &bench.manager.rollouts;
    let watched =
        format!("{PLAN}[[ring]]\nname = \"all\"\nto = [\"h1\", \"h2\"]\ncanaries = 2\ncanary-soak = \"1h\"\n");
    let id = rollouts.plan(&watched, true).await.unwrap().id;
    rollouts.wish(Some(id), Wish::Start).await.unwrap();
    let mut canaries = Vec::new();
    for _ in 0..2 {
        let (host, order) = tokio::time::timeout(SOON, orders.recv()).await.unwrap().unwrap();
        over(&bench, &host, &order, &two, Step::Confirmed).await;
        canaries.push(host);
    }
    until(&bench, id, |view| view.rings[0].phase == Phase::CanarySoak).await;
    // What a host said before it changed over is no evidence; what it says afterwards is.
    let says = |started_unix_ms, reason: &str| {
        let agent = agent(&one, AgentState::Serving, 7);
        vec![HostReport::Agents(vec![AgentStatus { started_unix_ms, reason: reason.to_owned(), ..agent }])]
    };
    bench.report(&canaries[0], says(1, "launched")).await;
    let view = rollouts.view(Some(id)).await.unwrap();
    assert_eq!((view.state, view.rings[0].hosts.good), (State::Running, 2));
    bench.report(&canaries[0], says(10, "returned from 2: it ran out of memory")).await;
    let halted = until(&bench, id, |view| view.state == State::Halted).await;
    assert_eq!(halted.halted.as_deref(), Some("ring all: a canary failed"));
    assert_eq!(halted.problems[0].reason, "returned from 2: it ran out of memory");
    rollouts.wish(Some(id), Wish::Abort).await.unwrap();

    let gated =
        format!("{watched}[gates]\njobs = {{ min = 2, success = \"90%\" }}\n").replace("\"h1\", \"h2\"", "\"h2\"");
    let id = rollouts.plan(&gated, true).await.unwrap().id;
    rollouts.wish(Some(id), Wish::Start).await.unwrap();
    let (host, order) = tokio::time::timeout(SOON, orders.recv()).await.unwrap().unwrap();
    over(&bench, &host, &order, &two, Step::Confirmed).await;
    until(&bench, id, |view| view.rings[0].phase == Phase::CanarySoak).await;
    let check =
        Operation::Check { repository: Repository { path: "/r".into(), password_file: None }, read_data: false };
    for (ended, outcome) in
        [Outcome::Done(Summary::default()), Outcome::Failed("no repository".into())].iter().enumerate()
    {
        let state = &bench.manager.state;
        let job = state.add_job(&host, &two.record.product, &check, now()).await.unwrap();
        assert_eq!(rollouts.view(Some(id)).await.unwrap().state, State::Running);
        bench.report(&host, vec![HostReport::JobOutcome { job: job.id, outcome: outcome.clone() }]).await;
        until(&bench, id, |view| view.jobs.ended() as usize == ended + 1).await;
    }
    let halted = until(&bench, id, |view| view.state == State::Halted).await;
    let why = "1 of 2 operations of the new version were done; 90.0% must be";
    assert_eq!(halted.halted.as_deref(), Some(why));
}
