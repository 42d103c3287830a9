use manager_fs::manager::admin::{AdminEvent, AdminReply, Long, Quick};
use manager_fs::manager::upgrade::{UpgradeEvent, UpgradeOrder, UpgradeReport, Verdict};
use manager_fs::net::Answer;
use proto::TreeId;
use proto::agent::{AgentState, AgentStatus, Step};
use proto::message::{ChangeOver, Fault, HostReply, HostReport, HostRequest, ManagerReply, ManagerRequest};

use crate::fixture::{FakeHost, Fixture};
use crate::played::{order, status, step};

/// Plays the host's part up to the order.
async fn take_order(host: &mut FakeHost, running: AgentStatus) -> (ChangeOver, Answer) {
    let (request, answer) = host.next().await;
    assert_eq!(request, ManagerRequest::Agents);
    answer.finish(&HostReply::Agents(vec![running])).await.unwrap();
    match host.next().await {
        (ManagerRequest::ChangeOver(change), answer) => (change, answer),
        (other, _) => panic!("{other:?}"),
    }
}

async fn upgrade(fixture: &Fixture, order: UpgradeOrder) -> (Vec<UpgradeEvent>, Result<UpgradeReport, String>) {
    let mut events = Vec::new();
    let reply = fixture.ask_with(Long::Upgrade(order), |event| {
        if let AdminEvent::Upgrade(event) = event {
            events.push(event);
        }
    });
    let reply = reply.await.map(|reply| match reply {
        AdminReply::Upgraded(report) => report,
        other => panic!("{other:?}"),
    });
    (events, reply)
}

async fn two_versions(fixture: &Fixture) -> (TreeId, TreeId) {
    (fixture.publish("data-agent@1.0", b"one").await, fixture.publish("data-agent@2.0", b"two").await)
}

#[tokio::test]
async fn many_hosts_change_over_and_every_step_is_seen_live_and_later() {
    let fixture = Fixture::new().await;
    let (one, two) = two_versions(&fixture).await;
    let (mut good, mut bad) = (fixture.host("good").await, fixture.host("bad").await);
    let hosts = vec![good.name.clone(), bad.name.clone()];
    fixture.ask(Quick::GroupAdd("all".parse().unwrap(), hosts)).await.unwrap();
    fixture.export("data-agent@2.0", &["@all"]).await;
    let good_part = async {
        let (change, answer) = take_order(&mut good, status("1.0", one)).await;
        assert_eq!((change.attach, change.drain_deadline_ms), (two, 1500));
        let signed = proto::SignedRecord::from_bytes(&change.record).unwrap();
        assert_eq!(signed.verify(good.identity.publishers.as_ref().unwrap()).unwrap().tree, two);
        answer.finish(&HostReply::Done).await.unwrap();
        for (at, kind) in [Step::MetadataSaved, Step::Staged, Step::Drained, Step::Swapped].into_iter().enumerate() {
            good.report(step(&change, kind, &format!("step {at}"))).await;
            // What is not answered is sent again.
            good.report(step(&change, kind, &format!("step {at}"))).await;
        }
        good.report(HostReport::Agents(vec![status("2.0", two)])).await;
        good.report(step(&change, Step::Confirmed, "took a job")).await;
    };
    let bad_part = async {
        let (change, answer) = take_order(&mut bad, status("1.0", one)).await;
        answer.finish(&HostReply::Done).await.unwrap();
        bad.report(step(&change, Step::ProbationFailed, "exit status 3; cannot open my configuration")).await;
        bad.report(step(&change, Step::Returned, "to 1.0")).await;
    };
    let ((events, report), (), ()) = tokio::join!(upgrade(&fixture, order(&["@all"])), good_part, bad_part);
    let report = report.unwrap();
    let verdict = |name: &str| report.hosts.iter().find(|end| end.host.as_str() == name).unwrap();
    assert_eq!(verdict("good").verdict, Verdict::Confirmed);
    assert_eq!(verdict("good").steps.len(), 5, "no step twice");
    assert_eq!(verdict("bad").verdict, Verdict::Failed);
    assert!(verdict("bad").reason.contains("cannot open my configuration"));
    let live = events.iter().filter(|event| matches!(event, UpgradeEvent::Step { .. })).count();
    assert_eq!(live, 7);

    let AdminReply::Agents(agents) = fixture.ask(Quick::Agents).await.unwrap() else { panic!() };
    let agent = agents.iter().find(|agent| agent.host == good.name).unwrap();
    assert_eq!((agent.status.version.as_str(), agent.last_change.len()), ("2.0", 5));
    let agent = agents.iter().find(|agent| agent.host == bad.name).unwrap();
    assert!(agent.last_change.iter().any(|event| event.detail.contains("exit status 3")));
}

#[tokio::test]
async fn steps_of_a_change_over_survive_a_killed_manager() {
    let mut fixture = Fixture::new().await;
    let (one, two) = two_versions(&fixture).await;
    let mut host = fixture.host("web-1").await;
    fixture.export("data-agent@2.0", &["web-1"]).await;
    let no_wait = UpgradeOrder { wait: false, ..order(&["web-1"]) };
    let ((_, report), change) = tokio::join!(upgrade(&fixture, no_wait), async {
        let (change, answer) = take_order(&mut host, status("1.0", one)).await;
        answer.finish(&HostReply::Done).await.unwrap();
        change
    });
    assert_eq!(report.unwrap().hosts[0].verdict, Verdict::Ordered);
    host.report(step(&change, Step::Staged, "")).await;
    fixture.restart().await;
    let host = FakeHost::connect(&fixture.address, host.identity.clone()).await.unwrap();
    // The host never got an answer to the first, so both come.
    host.report(step(&change, Step::Staged, "")).await;
    host.report(step(&change, Step::Confirmed, "")).await;
    host.report(HostReport::Agents(vec![status("2.0", two)])).await;
    let AdminReply::Agents(agents) = fixture.ask(Quick::Agents).await.unwrap() else { panic!() };
    let steps: Vec<Step> = agents[0].last_change.iter().map(|event| event.step).collect();
    assert_eq!(steps, [Step::Staged, Step::Confirmed]);
}

#[tokio::test]
async fn a_lost_answer_does_not_lose_the_change_over() {
    let fixture = Fixture::new().await;
    let (one, _) = two_versions(&fixture).await;
    let mut host = fixture.host("web-1").await;
    fixture.export("data-agent@2.0", &["web-1"]).await;
    let ((_, report), ()) = tokio::join!(upgrade(&fixture, order(&["web-1"])), async {
        let (change, _unanswered) = take_order(&mut host, status("1.0", one)).await;
        host.link.close("network");
        let mut host = FakeHost::connect(&fixture.address, host.identity.clone()).await.unwrap();
        // The order comes again, as the first may have been cut short on the host.
        let (ManagerRequest::ChangeOver(again), answer) = host.next().await else { panic!() };
        assert_eq!(again, change);
        answer.finish(&HostReply::Done).await.unwrap();
        host.report(step(&change, Step::Staged, "")).await;
        host.report(step(&change, Step::Confirmed, "")).await;
    });
    let end = report.unwrap().hosts.remove(0);
    assert_eq!((end.verdict, end.steps.len()), (Verdict::Confirmed, 2));
}

#[tokio::test]
async fn a_host_on_which_no_agent_runs_says_why_it_takes_no_order() {
    let fixture = Fixture::new().await;
    let (one, two) = two_versions(&fixture).await;
    let mut host = fixture.host("web-1").await;
    fixture.export("data-agent@2.0", &["web-1"]).await;
    // Nobody is there who could take it; and its stub is there, which tries this very version by itself.
    let stopped = |version, tree, pid| {
        let reason = "exit status 9".to_owned();
        AgentStatus { state: AgentState::Stopped, pid, reason, ..status(version, tree) }
    };
    let what_to_do = "no `launch data-agent` is there to take the order";
    for (status, why) in
        [(stopped("1.0", one, 0), what_to_do), (stopped("2.0", two, 7), "it does not come up: exit status 9")]
    {
        let ((), (_, report)) = tokio::join!(
            async {
                let (_, answer) = host.next().await;
                answer.finish(&HostReply::Agents(vec![status])).await.unwrap();
            },
            upgrade(&fixture, order(&["web-1"]))
        );
        let end = report.unwrap().hosts.remove(0);
        assert!(end.verdict == Verdict::Refused && end.reason.contains(why), "{}", end.reason);
    }
}

#[tokio::test]
async fn what_cannot_be_changed_over_is_refused_with_the_reason() {
    let fixture = Fixture::new().await;
    let (one, two) = two_versions(&fixture).await;
    let mut host = fixture.host("web-1").await;
    let enrolled_only = fixture.enrolled("away").await;
    let (_, report) = upgrade(&fixture, order(&["web-1"])).await;
    let end = report.unwrap().hosts.remove(0);
    assert!(end.verdict == Verdict::Refused && end.reason.contains("manager-fs export data-agent@2.0 --to web-1"));

    fixture.export("data-agent@2.0", &["web-1", "away"]).await;
    let (_, report) = upgrade(&fixture, order(&["away"])).await;
    assert!(report.unwrap().hosts[0].reason.contains("not connected"));
    drop(enrolled_only);

    let ((), (_, report)) = tokio::join!(
        async {
            let (_, answer) = host.next().await;
            answer.finish(&HostReply::Agents(vec![])).await.unwrap();
        },
        upgrade(&fixture, order(&["web-1"]))
    );
    assert!(report.unwrap().hosts[0].reason.contains("no agent of data-agent runs on web-1, where it has never run"));

    let ((), (_, report)) = tokio::join!(
        async {
            let (_, answer) = host.next().await;
            answer.finish(&HostReply::Agents(vec![status("2.0", two)])).await.unwrap();
        },
        upgrade(&fixture, order(&["web-1"]))
    );
    assert_eq!(report.unwrap().hosts[0].verdict, Verdict::Already);

    let ((), (_, report)) = tokio::join!(
        async {
            let (_, answer) = take_order(&mut host, status("1.0", one)).await;
            let fault = Fault::Refused("this generation failed here before; use --retry-bad".into());
            answer.finish(&HostReply::Fault(fault)).await.unwrap();
        },
        upgrade(&fixture, order(&["web-1"]))
    );
    let end = report.unwrap().hosts.remove(0);
    assert!(
        end.verdict == Verdict::Refused && end.reason.starts_with("this generation failed") && end.change.is_some()
    );

    let unknown = UpgradeOrder { generation: "data-agent@9".parse().unwrap(), ..order(&["web-1"]) };
    assert!(upgrade(&fixture, unknown).await.1.unwrap_err().contains("data-agent@9"));
    assert!(upgrade(&fixture, order(&["nobody"])).await.1.unwrap_err().contains("'nobody' is not enrolled"));
    // A group may have members that are not enrolled yet; the others are not held up by them.
    let both = vec!["nobody".parse().unwrap(), "web-1".parse().unwrap()];
    fixture.ask(Quick::GroupAdd("web".parse().unwrap(), both)).await.unwrap();
    let ((), (_, report)) = tokio::join!(
        async {
            let (_, answer) = host.next().await;
            answer.finish(&HostReply::Agents(vec![status("2.0", two)])).await.unwrap();
        },
        upgrade(&fixture, order(&["@web"]))
    );
    let report = report.unwrap();
    assert!(
        report.hosts[0].verdict == Verdict::Refused && report.hosts[0].reason.contains("'nobody' is not enrolled")
    );
    assert_eq!(report.hosts[1].verdict, Verdict::Already);
}

#[tokio::test]
async fn a_hundred_hosts_change_over_in_one_command() {
    let fixture = Fixture::new().await;
    let (one, _) = two_versions(&fixture).await;
    let mut enrolled = Vec::new();
    for number in 0..100 {
        enrolled.push(fixture.host(&format!("host-{number}")).await);
    }
    let names = enrolled.iter().map(|host| host.name.clone()).collect();
    fixture.ask(Quick::GroupAdd("all".parse().unwrap(), names)).await.unwrap();
    fixture.export("data-agent@2.0", &["@all"]).await;
    // From here on, since a host waits for its order no longer than it may take: the hundredth enrolment is no part of that.
    let mut hosts = tokio::task::JoinSet::new();
    for mut host in enrolled {
        hosts.spawn(async move {
            let (change, answer) = take_order(&mut host, status("1.0", one)).await;
            answer.finish(&HostReply::Done).await.unwrap();
            for kind in
                [Step::MetadataSaved, Step::Staged, Step::Warmed, Step::Drained, Step::Journaled, Step::Swapped]
            {
                host.report(step(&change, kind, "")).await;
            }
            // The order of steps is that of the report.
            let last = [step(&change, Step::Started, ""), step(&change, Step::Confirmed, "")];
            let reply = host.request(HostRequest::Report { reports: last.into() }).await;
            assert_eq!(reply, ManagerReply::Done);
            host
        });
    }
    let (events, report) = upgrade(&fixture, order(&["@all"])).await;
    let report = report.unwrap();
    assert_eq!(report.hosts.iter().filter(|end| end.verdict == Verdict::Confirmed).count(), 100);
    assert!(report.hosts.iter().all(|end| end.steps.len() == 8));
    assert_eq!(events.iter().filter(|event| matches!(event, UpgradeEvent::Step { .. })).count(), 800);
    assert_eq!(hosts.join_all().await.len(), 100);
}
