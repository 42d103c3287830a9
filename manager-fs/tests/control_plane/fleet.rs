use std::time::{Duration, Instant};

use manager_fs::manager::admin::{AdminReply, AdminRequest, Long, Quick};
use manager_fs::manager::upgrade::{UpgradeReport, Verdict};
use proto::TreeId;
use proto::agent::Step;
use proto::message::{HostReply, HostRequest, ManagerRequest};
use tokio::task::JoinSet;

use crate::fixture::{FakeHost, Fixture};
use crate::played;

/// Hosts of the test; `MANAGER_FS_TEST_HOSTS` says otherwise (2,000 take a minute or two, and `ulimit -n 16384`).
const HOSTS: usize = 200;
/// For all of them, however slow the machine is.
const PATIENCE: Duration = Duration::from_secs(900);
/// What a host reports of a change-over, each step in a report of its own.
const STEPS: [Step; 7] = [
    Step::MetadataSaved,
    Step::Staged,
    Step::Drained,
    Step::Journaled,
    Step::Swapped,
    Step::Started,
    Step::Confirmed,
];

fn hosts() -> usize {
    std::env::var("MANAGER_FS_TEST_HOSTS").ok().map_or(HOSTS, |text| text.parse().unwrap())
}

/// A whole group is ordered at once: nobody is refused, and the disk is synced at most twice for each host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_is_ordered_at_once_with_few_syncs_and_without_a_refusal() {
    let (fixture, count) = (Fixture::new().await, hosts());
    let old = fixture.publish("data-agent@1.0", b"one").await;
    fixture.publish("data-agent@2.0", b"two").await;
    let names: Vec<String> = (0..count).map(|number| format!("web-{number}")).collect();
    let mut connected = Vec::new();
    for names in names.chunks(50) {
        let enrolled = futures(names.iter().map(|name| fixture.host(name))).await;
        connected.extend(enrolled);
    }
    let group = names.iter().map(|name| name.parse().unwrap()).collect();
    ask(&fixture, Quick::GroupAdd("all".parse().unwrap(), group)).await;
    for generation in ["data-agent@1.0", "data-agent@2.0"] {
        fixture.export(generation, &["@all"]).await;
    }
    let mut playing = JoinSet::new();
    for host in connected {
        playing.spawn(play(host, old));
    }
    let (decisions, observations) = fixture.synced();
    let since = Instant::now();
    let report = match ask(&fixture, Long::Upgrade(played::order(&["@all"]))).await {
        AdminReply::Upgraded(report) => report,
        other => panic!("{other:?}"),
    };
    let took = since.elapsed();
    let now = fixture.synced();
    let (decisions, observations) = (now.0 - decisions, now.1 - observations);
    println!("{count} hosts in {took:?}: {decisions} syncs for decisions, {observations} for observations");
    check(&report, count);
    // Two are allowed for each host; that many of them share one is what makes a fleet.
    assert!(decisions + observations <= 2 * count as u64, "{decisions} and {observations} syncs for {count} hosts");
    playing.abort_all();
}

fn check(report: &UpgradeReport, count: usize) {
    let others: Vec<_> = report.hosts.iter().filter(|end| end.verdict != Verdict::Confirmed).collect();
    assert!(others.is_empty(), "{} of {count} not confirmed, the first: {:?}", others.len(), others[0]);
    assert_eq!(report.hosts.len(), count);
    for end in &report.hosts {
        let steps: Vec<Step> = end.steps.iter().map(|event| event.step).collect();
        assert_eq!(steps, STEPS, "{}", end.host);
    }
}

/// A host that does what it is told, and reports each step.
async fn play(mut host: FakeHost, old: TreeId) {
    while let Some((request, answer)) = host.asked.recv().await {
        match request {
            ManagerRequest::Agents => {
                answer.finish(&HostReply::Agents(vec![played::status("1.0", old)])).await.unwrap()
            }
            ManagerRequest::ChangeOver(change) => {
                answer.finish(&HostReply::Done).await.unwrap();
                for step in STEPS {
                    let request = HostRequest::Report { reports: vec![played::step(&change, step, "played")] };
                    let _: proto::message::ManagerReply =
                        host.link.request(&request, |_| {}, PATIENCE).await.unwrap();
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

async fn ask(fixture: &Fixture, request: impl Into<AdminRequest>) -> AdminReply {
    match fixture.admin.request(&request.into(), |_| {}, PATIENCE).await.unwrap() {
        AdminReply::Fault(fault) => panic!("{fault}"),
        reply => reply,
    }
}

/// All of them at once, in order.
async fn futures<T>(all: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut all: Vec<_> = all.map(|one| (Box::pin(one), None)).collect();
    std::future::poll_fn(|context| {
        let mut done = true;
        for (future, result) in &mut all {
            if result.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *result = Some(value),
                    std::task::Poll::Pending => done = false,
                }
            }
        }
        if done { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    all.into_iter().filter_map(|(_, result)| result).collect()
}
