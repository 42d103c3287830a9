use proto::agent::{AgentState, Step};
use proto::message::{HostReply, HostReport, ManagerRequest};
use tokio::sync::mpsc;

use super::*;
use crate::manager::control::generations::Generation;
use crate::manager::upgrade::{UpgradeOrder, Verdict};
use crate::manager::whole::testing::{Answers, Bench, SOON, agent, at_once, host, step};

fn order(target: &str, version: &str) -> UpgradeOrder {
    UpgradeOrder {
        product: "a".parse().unwrap(),
        generation: format!("a@{version}").parse().unwrap(),
        targets: vec![target.parse().unwrap()],
        lazy: true,
        drain_deadline_ms: Some(7),
        retry_bad: false,
        export: true,
        wait: false,
        timeout_ms: None,
    }
}

/// A host whose agent runs this, and that tells of each order that it gets.
fn runs(generation: &Arc<Generation>, orders: &mpsc::UnboundedSender<proto::message::ChangeOver>) -> Box<Answers> {
    let (status, orders) = (agent(generation, AgentState::Serving, 7), orders.clone());
    at_once(move |request| match request {
        ManagerRequest::Agents => HostReply::Agents(vec![status.clone()]),
        ManagerRequest::ChangeOver(order) => {
            orders.send(order).unwrap();
            HostReply::Done
        }
        _ => HostReply::Done,
    })
}

async fn upgrade(bench: &Bench, order: UpgradeOrder) -> Vec<(HostName, Verdict)> {
    let (events, _kept) = mpsc::unbounded_channel();
    let report = bench.manager.upgrades.upgrade(order, events).await.unwrap();
    report.hosts.into_iter().map(|end| (end.host, end.verdict)).collect()
}

/// Two versions, and a group of two hosts that are away and were last seen with the first.
async fn prepared() -> (Bench, [Arc<Generation>; 2], GroupName) {
    let bench = Bench::open().await;
    let generations = [bench.publish("a@1", "one").await, bench.publish("a@2", "two").await];
    let group: GroupName = "all".parse().unwrap();
    let hosts = [bench.enrol("web").await, bench.enrol("db").await];
    bench.manager.state.add_members(&group, &hosts).await.unwrap();
    for host in &hosts {
        let agents = vec![agent(&generations[0], AgentState::Serving, 7)];
        bench.report(host, vec![HostReport::Agents(agents)]).await;
    }
    (bench, generations, group)
}

#[tokio::test]
async fn a_host_that_was_away_is_told_once_when_it_comes() {
    let (bench, [one, two], _) = prepared().await;
    let away = [(host("db"), Verdict::Away), (host("web"), Verdict::Away)];
    assert_eq!(upgrade(&bench, order("@all", "2")).await, away);
    assert_eq!(bench.manager.state.changes().await.unwrap(), [], "nothing is ordered yet");
    let (sent, mut orders) = mpsc::unbounded_channel();
    let link = bench.connect(&host("web"), runs(&one, &sent)).await;
    let told = tokio::time::timeout(SOON, orders.recv()).await.unwrap().unwrap();
    assert_eq!((told.attach, told.lazy, told.drain_deadline_ms), (two.record.tree, true, 7), "as it was ordered");
    // It fails there: nobody tries again, however often the host comes.
    let failed = step(told.change, &two, Step::Returned, 1);
    bench.report(&host("web"), vec![HostReport::Step(failed)]).await;
    link.close("away again");
    bench.connect(&host("web"), runs(&one, &sent)).await;
    bench.report(&host("web"), vec![HostReport::Agents(vec![agent(&one, AgentState::Serving, 7)])]).await;
    bench.connect(&host("db"), runs(&one, &sent)).await;
    let next = tokio::time::timeout(SOON, orders.recv()).await.unwrap().unwrap();
    assert_ne!(next.change, told.change);
    let of: Vec<HostName> =
        bench.manager.state.changes().await.unwrap().into_iter().map(|record| record.order.host).collect();
    assert_eq!(of, [host("web"), host("db")]);
}

#[tokio::test]
async fn an_order_that_may_not_have_been_heard_is_said_again_under_its_number() {
    let (bench, [one, two], _) = prepared().await;
    upgrade(&bench, order("@all", "2")).await;
    let (sent, mut orders) = mpsc::unbounded_channel();
    let link = bench.connect(&host("web"), runs(&one, &sent)).await;
    let first = tokio::time::timeout(SOON, orders.recv()).await.unwrap().unwrap();
    link.close("it is started again");
    bench.connect(&host("web"), runs(&one, &sent)).await;
    let again = tokio::time::timeout(SOON, orders.recv()).await.unwrap().unwrap();
    assert_eq!((again.change, again.attach), (first.change, two.record.tree));
}

#[tokio::test]
async fn the_last_order_counts() {
    let (bench, [one, two], group) = prepared().await;
    let (product, state) = (one.record.product.clone(), &bench.manager.state);
    upgrade(&bench, order("@all", "1")).await;
    upgrade(&bench, order("@all", "2")).await;
    let wanted = |name: &str| state.wanted_of(&host(name)).pop().map(|(_, wanted)| wanted.version.to_string());
    assert_eq!(wanted("web").as_deref(), Some("2"));
    // Somebody orders something for one host: the group's is no longer its.
    let (sent, mut orders) = mpsc::unbounded_channel();
    bench.connect(&host("web"), runs(&one, &sent)).await;
    assert_eq!(tokio::time::timeout(SOON, orders.recv()).await.unwrap().unwrap().attach, two.record.tree);
    // One that comes to the group gets what it runs, also when it was ordered something before.
    let late = bench.enrol("late").await;
    let before = ChangeOrder {
        host: late.clone(),
        product: product.clone(),
        version: one.record.version.clone(),
        to: one.record.tree,
    };
    state.add_changes(vec![before], 5).await.unwrap();
    let seen = vec![agent(&one, AgentState::Serving, 7)];
    bench.report(&late, vec![HostReport::Agents(seen)]).await;
    bench.connect(&late, runs(&one, &sent)).await;
    state.add_members(&group, std::slice::from_ref(&late)).await.unwrap();
    bench.manager.targets.joined(&group, std::slice::from_ref(&late)).await.unwrap();
    assert_eq!(tokio::time::timeout(SOON, orders.recv()).await.unwrap().unwrap().attach, two.record.tree);
    // Who is claimed is told by whoever claims it, and considered when it is given back.
    let db = host("db");
    bench.manager.targets.claim(&product, HashSet::from([db.clone()]));
    bench.connect(&db, runs(&one, &sent)).await;
    bench.manager.targets.consider(&db);
    assert!(state.last_change(&db, &product).is_none());
    bench.manager.targets.claim(&product, HashSet::new());
    assert_eq!(tokio::time::timeout(SOON, orders.recv()).await.unwrap().unwrap().attach, two.record.tree);
    // With the group goes what was set of it.
    state.delete_group(&group).await.unwrap();
    assert_eq!((wanted("web"), wanted("late").as_deref()), (None, Some("2")));
    state.forget_host(&late).await.unwrap();
    assert_eq!(wanted("late"), None);
}

#[tokio::test]
async fn a_target_with_hours_is_told_in_them_and_not_before() {
    let (bench, [one, two], _) = prepared().await;
    let (product, state, web) = (one.record.product.clone(), &bench.manager.state, host("web"));
    let (sent, mut orders) = mpsc::unbounded_channel();
    bench.connect(&web, runs(&one, &sent)).await;
    let hour = now() / 3_600_000 % 24;
    let hours = |from: u64, to: u64| format!("{:02}:00-{:02}:00", (hour + from) % 24, (hour + to) % 24).parse().ok();
    let wanted = |hours| Wanted {
        version: two.record.version.clone(),
        tree: two.record.tree,
        set: state.ordered_after_all(now()),
        lazy: false,
        drain_deadline_ms: None,
        hours,
    };
    bench.manager.exports.export(&two, &[Target::Host(web.clone())]).await.unwrap();
    state.set_targets(&product, &[Target::Host(web.clone())], &wanted(hours(3, 5))).await.unwrap();
    bench.manager.targets.hours_begin();
    assert_eq!(state.wanted_of(&web)[0].1.hours, hours(3, 5), "they are kept");
    assert!(orders.try_recv().is_err() && state.last_change(&web, &product).is_none());
    state.set_targets(&product, &[Target::Host(web.clone())], &wanted(hours(23, 2))).await.unwrap();
    bench.manager.targets.hours_begin();
    assert_eq!(tokio::time::timeout(SOON, orders.recv()).await.unwrap().unwrap().attach, two.record.tree);
}

#[test]
fn hosts_that_waited_for_the_same_hours_are_told_one_after_the_other_and_all_of_them_in_time() {
    let hosts: Vec<HostName> = (0..1000).map(|number| host(&format!("host-{number}"))).collect();
    // 22:00 of the first day, milliseconds.
    let opens: Unix = 22 * 3_600_000;
    let told = |hours: &str, after: u64| {
        let hours: Hours = hours.parse().unwrap();
        hosts.iter().filter(|host| may_be_told(host, &hours, opens + after)).count()
    };
    assert_eq!(told("23:00-06:00", 0), 0);
    for (seconds, least, most) in
        [(0, 0, 5), (60, 60, 140), (300, 420, 580), (600, 1000, 1000), (7 * 3600, 1000, 1000)]
    {
        let count = told("22:00-06:00", seconds * 1000);
        assert!((least..=most).contains(&count), "{count} after {seconds} s");
    }
    assert_eq!(told("22:00-06:00", 8 * 3_600_000), 0);
    // Whose moment would come after the end is told at the beginning.
    assert!((400..600).contains(&told("22:00-22:05", 0)));
    assert_eq!(told("22:00-22:05", 299_999), 1000);
}

#[tokio::test]
async fn what_is_known_of_last_orders_survives_a_start_and_is_never_forgotten() {
    let (bench, [one, two], _) = prepared().await;
    let (state, web) = (&bench.manager.state, host("web"));
    let of = |generation: &Generation| {
        let record = &generation.record;
        let (product, version) = (record.product.clone(), record.version.clone());
        ChangeOrder { host: web.clone(), product, version, to: record.tree }
    };
    let changes = state.add_changes(vec![of(&one), of(&two)], 5).await.unwrap();
    assert_eq!(state.last_change(&web, &one.record.product).map(|last| last.id), Some(changes[1].id));
    state.forget_changes().await.unwrap();
    state.drop_change(changes[1].id).await.unwrap();
    let left = state.last_change(&web, &one.record.product).map(|last| last.id);
    assert_eq!(left, Some(changes[0].id), "nothing was done because of it: the one before it counts again");
    state.drop_change(changes[0].id).await.unwrap();
    assert_eq!(state.last_change(&web, &one.record.product), None);
}
