use manager_fs::manager::admin::{AdminEvent, AdminReply, Long, Quick};
use manager_fs::manager::control::jobs::{JobRecord, JobState};
use proto::agent::{JobId, Operation, Outcome, Progress, Repository, Summary};
use proto::message::{Fault, HostReply, HostReport, ManagerRequest};

use crate::fixture::{FakeHost, Fixture};

fn repository(path: &str) -> Repository {
    Repository { path: path.into(), password_file: None }
}

fn backup() -> Operation {
    Operation::Backup { repository: repository("/r"), sources: vec!["/etc".into()] }
}

fn progress(units_done: u32, version: &str) -> Progress {
    let activity = "reading".into();
    Progress { units_done, units: 3, bytes_done: 1, bytes: 2, activity, version: version.into() }
}

fn done(version: &str) -> Outcome {
    let versions = vec![version.to_owned()];
    Outcome::Done(Summary { snapshots: vec!["abc".into()], versions, ..Summary::default() })
}

async fn order(fixture: &Fixture, operation: Operation) -> JobId {
    let (host, product) = ("web-1".parse().unwrap(), "data-agent".parse().unwrap());
    match fixture.ask(Quick::JobRun { host, product, operation }).await.unwrap() {
        AdminReply::Job(record) => record.id,
        other => panic!("{other:?}"),
    }
}

async fn show(fixture: &Fixture, id: JobId) -> JobRecord {
    match fixture.ask(Quick::Job(id)).await.unwrap() {
        AdminReply::Job(record) => record,
        other => panic!("{other:?}"),
    }
}

/// Follows a job until something about it holds.
async fn until(fixture: &Fixture, id: JobId, holds: impl Fn(&JobRecord) -> bool) -> JobRecord {
    let (found, has_found) = tokio::sync::oneshot::channel();
    let mut found = Some(found);
    let check = |record: JobRecord| {
        if holds(&record)
            && let Some(found) = found.take()
        {
            let _ = found.send(record);
        }
    };
    let check = std::cell::RefCell::new(check);
    let waiting = fixture.ask_with(Long::JobWait(id), |event| {
        if let AdminEvent::Job(record) = event {
            check.borrow_mut()(*record);
        }
    });
    tokio::select! {
        record = has_found => record.unwrap(),
        over = waiting => {
            let AdminReply::Job(record) = over.unwrap() else { panic!() };
            assert!(holds(&record), "{record:?}");
            record
        }
    }
}

#[tokio::test]
async fn a_job_reports_its_progress_and_outcome() {
    let fixture = Fixture::new().await;
    let mut host = fixture.host("web-1").await;
    let id = order(&fixture, backup()).await;
    let (job, operation, answer) = host.next_run().await;
    assert_eq!((job, operation), (id, backup()));
    answer.event(&progress(1, "1.0")).await.unwrap();
    let running = until(&fixture, id, |record| record.state == JobState::Running).await;
    assert_eq!(running.progress, Some(progress(1, "1.0")));
    answer.finish(&HostReply::Outcome(done("1.0"))).await.unwrap();
    let over = until(&fixture, id, |record| record.state.is_final()).await;
    assert_eq!((over.state, over.outcome), (JobState::Done, Some(done("1.0"))));
    assert!(over.started.is_some() && over.ended.is_some());
}

#[tokio::test]
async fn a_draining_agent_gets_the_job_again_when_it_is_back() {
    let fixture = Fixture::new().await;
    let mut host = fixture.host("web-1").await;
    let id = order(&fixture, backup()).await;
    let (_, _, answer) = host.next_run().await;
    answer.finish(&HostReply::Fault(Fault::Draining)).await.unwrap();
    let waiting = until(&fixture, id, |record| record.waiting.is_some()).await;
    assert!(waiting.waiting.unwrap().contains("draining"));
    assert!(host.asked.try_recv().is_err(), "it is not asked again and again");
    host.report(HostReport::Agents(vec![])).await;
    let (again, _, answer) = host.next_run().await;
    assert_eq!(again, id);
    answer.finish(&HostReply::Outcome(done("2.0"))).await.unwrap();
    assert_eq!(until(&fixture, id, |record| record.state.is_final()).await.state, JobState::Done);
}

#[tokio::test]
async fn a_lost_connection_and_a_killed_manager_do_not_end_a_job() {
    let mut fixture = Fixture::new().await;
    let mut host = fixture.host("web-1").await;
    let id = order(&fixture, backup()).await;
    let (_, _, answer) = host.next_run().await;
    answer.event(&progress(1, "1.0")).await.unwrap();
    until(&fixture, id, |record| record.state == JobState::Running).await;
    host.link.close("network");
    until(&fixture, id, |record| record.waiting.is_some()).await;
    let mut host = FakeHost::connect(&fixture.address, host.identity.clone()).await.unwrap();
    let (job, _, answer) = host.next_run().await;
    assert_eq!(job, id);
    answer.event(&progress(2, "1.0")).await.unwrap();
    until(&fixture, id, |record| record.progress.as_ref().is_some_and(|progress| progress.units_done == 2)).await;

    fixture.restart().await;
    let record = show(&fixture, id).await;
    // Attempts are counted by one process; that an agent has it is never forgotten.
    assert_eq!((record.state, record.sent), (JobState::Running, 1), "{record:?}");
    let mut host = FakeHost::connect(&fixture.address, host.identity.clone()).await.unwrap();
    let (job, _, _answer) = host.next_run().await;
    assert_eq!(job, id);
    // Its end may also come as a report; twice changes nothing.
    for outcome in [done("1.0"), Outcome::Failed("late".into())] {
        host.report(HostReport::JobOutcome { job: id, outcome }).await;
    }
    let record = until(&fixture, id, |record| record.state.is_final()).await;
    assert_eq!(record.outcome, Some(done("1.0")));
}

#[tokio::test]
async fn prune_is_alone_on_its_repository() {
    let fixture = Fixture::new().await;
    let mut host = fixture.host("web-1").await;
    let first = order(&fixture, backup()).await;
    let (_, _, first_answer) = host.next_run().await;
    let second = order(&fixture, backup()).await;
    let (job, _, second_answer) = host.next_run().await;
    assert_eq!(job, second, "backups go on beside each other");
    let prune = order(&fixture, Operation::Prune { repository: repository("/r/"), keep_last: 1 }).await;
    until(&fixture, prune, |record| record.waiting.as_ref().is_some_and(|why| why.contains("another job"))).await;
    let elsewhere = order(&fixture, Operation::Prune { repository: repository("/other"), keep_last: 1 }).await;
    // It might be the same one under another name.
    let (job, _, _elsewhere) = loop {
        let (job, operation, answer) = host.next_run().await;
        let Operation::Identify { repository } = operation else { break (job, operation, answer) };
        let id = if repository.path == "/other" { "0f" } else { "5e" };
        let summary = Summary { snapshots: vec![id.repeat(32)], ..Summary::default() };
        answer.finish(&HostReply::Outcome(Outcome::Done(summary))).await.unwrap();
    };
    assert_eq!(job, elsewhere, "another repository is not concerned");

    first_answer.finish(&HostReply::Outcome(done("1.0"))).await.unwrap();
    until(&fixture, first, |record| record.state.is_final()).await;
    assert!(host.asked.try_recv().is_err());
    second_answer.finish(&HostReply::Outcome(done("1.0"))).await.unwrap();
    let (job, _, prune_answer) = host.next_run().await;
    assert_eq!(job, prune);
    let third = order(&fixture, backup()).await;
    until(&fixture, third, |record| record.waiting.is_some()).await;
    assert!(host.asked.try_recv().is_err(), "nothing beside a prune");
    prune_answer.finish(&HostReply::Outcome(done("1.0"))).await.unwrap();
    assert_eq!(joined(&mut host).await.0, third);
}

#[tokio::test]
async fn jobs_are_cancelled_before_and_after_they_are_sent() {
    let fixture = Fixture::new().await;
    let mut host = fixture.host("web-1").await;
    let running = order(&fixture, backup()).await;
    let (_, _, answer) = host.next_run().await;
    let waiting = order(&fixture, Operation::Prune { repository: repository("/r"), keep_last: 1 }).await;
    until(&fixture, waiting, |record| record.waiting.is_some()).await;
    fixture.ask(Quick::JobCancel(waiting)).await.unwrap();
    let record = until(&fixture, waiting, |record| record.state.is_final()).await;
    assert_eq!((record.state, record.sent), (JobState::Cancelled, 0));

    fixture.ask(Quick::JobCancel(running)).await.unwrap();
    let (request, cancel) = host.next().await;
    assert_eq!(request, ManagerRequest::Cancel { product: "data-agent".parse().unwrap(), job: running });
    // The agent may not have taken the job yet: it is told again.
    cancel.finish(&HostReply::Fault(Fault::NotFound("job".into()))).await.unwrap();
    let (_, cancel) = host.next().await;
    cancel.finish(&HostReply::Done).await.unwrap();
    answer.finish(&HostReply::Outcome(Outcome::Cancelled(Summary::default()))).await.unwrap();
    assert_eq!(until(&fixture, running, |record| record.state.is_final()).await.state, JobState::Cancelled);
    assert!(fixture.ask(Quick::JobCancel(running)).await.unwrap_err().contains("over already"));
}

#[tokio::test]
async fn a_cancellation_is_given_until_the_agent_has_taken_it_however_long_it_is_away() {
    let mut fixture = Fixture::new().await;
    let mut host = fixture.host("web-1").await;
    let id = order(&fixture, backup()).await;
    let (_, _, run) = host.next_run().await;
    fixture.ask(Quick::JobCancel(id)).await.unwrap();
    let cancel =
        |request| assert_eq!(request, ManagerRequest::Cancel { product: "data-agent".parse().unwrap(), job: id });
    // Away: between two versions, say. Every sign of life is a reason to tell it again.
    for _ in 0..30 {
        let (request, answer) = host.next().await;
        cancel(request);
        answer.finish(&HostReply::Fault(Fault::Unavailable("no agent".into()))).await.unwrap();
        host.report(HostReport::Agents(vec![])).await;
    }
    // Without one it is told again all the same.
    let (request, answer) = host.next().await;
    cancel(request);
    answer.finish(&HostReply::Fault(Fault::Unavailable("no agent".into()))).await.unwrap();
    let (request, answer) = host.next().await;
    cancel(request);
    answer.finish(&HostReply::Done).await.unwrap();
    // The process that took it was killed; the one in its place has never heard of it.
    host.report(HostReport::Agents(vec![])).await;
    let (request, _unanswered) = host.next().await;
    cancel(request);

    // Neither a restart of the manager nor a new connection forgets it.
    drop(run);
    fixture.restart().await;
    let mut host = FakeHost::connect(&fixture.address, host.identity.clone()).await.unwrap();
    let (again, _, run) = host.next_run().await;
    assert_eq!(again, id);
    let (request, answer) = host.next().await;
    cancel(request);
    answer.finish(&HostReply::Done).await.unwrap();
    run.finish(&HostReply::Outcome(Outcome::Cancelled(Summary::default()))).await.unwrap();
    assert_eq!(until(&fixture, id, |record| record.state.is_final()).await.state, JobState::Cancelled);
}

#[tokio::test]
async fn a_host_that_leaves_with_running_jobs_costs_the_manager_nothing() {
    let fixture = Fixture::new().await;
    let mut host = fixture.host("web-1").await;
    let mut jobs = Vec::new();
    let mut runs = Vec::new();
    for _ in 0..4 {
        jobs.push(order(&fixture, backup()).await);
        runs.push(host.next_run().await);
    }
    host.link.close("leaving in good order");
    // A second in which a loop without a pause would take every thread of the manager.
    for _ in 0..10 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let asked = std::time::Instant::now();
        fixture.ask(Quick::Hosts).await.unwrap();
        assert!(asked.elapsed() < std::time::Duration::from_secs(1), "{:?}", asked.elapsed());
    }
    for id in jobs {
        let record = until(&fixture, id, |record| record.waiting.is_some()).await;
        assert!(record.sent <= 3, "sent {} times to a host that is gone", record.sent);
    }
    drop(runs);
    let mut host = FakeHost::connect(&fixture.address, host.identity.clone()).await.unwrap();
    for _ in 0..4 {
        let (_, _, answer) = host.next_run().await;
        answer.finish(&HostReply::Outcome(done("1.0"))).await.unwrap();
    }
}

#[tokio::test]
async fn orders_that_make_no_sense_are_refused_and_failures_are_final() {
    let fixture = Fixture::new().await;
    let mut host = fixture.host("web-1").await;
    let product: proto::Product = "data-agent".parse().unwrap();
    let relative = Operation::Backup { repository: repository("r"), sources: vec!["/etc".into()] };
    let nothing = Operation::Backup { repository: repository("/r"), sources: vec![] };
    for (host, operation) in [("web-1", relative), ("web-1", nothing), ("nobody", backup())] {
        let request = Quick::JobRun { host: host.parse().unwrap(), product: product.clone(), operation };
        fixture.ask(request).await.unwrap_err();
    }
    let id = order(&fixture, backup()).await;
    let (_, _, answer) = host.next_run().await;
    answer.finish(&HostReply::Fault(Fault::NotFound("no such agent".into()))).await.unwrap();
    let record = until(&fixture, id, |record| record.state.is_final()).await;
    assert_eq!(record.state, JobState::Failed);
    // A host speaks for its own jobs only.
    let other = fixture.host("web-2").await;
    let id = order(&fixture, backup()).await;
    other.report(HostReport::JobOutcome { job: id, outcome: done("1.0") }).await;
    assert!(!show(&fixture, id).await.state.is_final());
}

/// What the manager thought of a job gives way to what its agent says, whenever that comes.
#[tokio::test]
async fn an_outcome_that_comes_late_mends_the_record() {
    let fixture = Fixture::new().await;
    let mut host = fixture.host("web-1").await;
    let id = order(&fixture, backup()).await;
    let _running = host.next_run().await;
    fixture.ask(Quick::Revoke("web-1".parse().unwrap())).await.unwrap();
    let given_up = until(&fixture, id, |record| record.state.is_final()).await;
    assert_eq!(given_up.state, JobState::Failed);
    std::fs::remove_dir_all(fixture.state("web-1")).unwrap();
    let again = fixture.host("web-1").await;
    again.report(HostReport::JobOutcome { job: id, outcome: done("1.0") }).await;
    assert_eq!(show(&fixture, id).await.outcome, Some(done("1.0")));
    again.report(HostReport::JobOutcome { job: id, outcome: Outcome::Failed("later".into()) }).await;
    assert_eq!(show(&fixture, id).await.outcome, Some(done("1.0")));
}

/// A repository that two hosts reach by two paths: the manager learns that it is one, and lets nobody prune it beside a
/// backup, also after it was started anew.
#[tokio::test]
async fn one_repository_of_two_hosts_is_pruned_when_the_backup_of_the_other_is_done() {
    let mut fixture = Fixture::new().await;
    let mut web = fixture.host("web-1").await;
    let mut vault = fixture.host("vault").await;
    let first = order(&fixture, backup()).await;
    let (_, _, answer) = web.next_run().await;
    answer.event(&progress(0, "1.0")).await.unwrap();
    until(&fixture, first, |record| record.state == JobState::Running).await;

    let prune = Operation::Prune { repository: repository("/mnt/r"), keep_last: 1 };
    let product = "media-agent".parse().unwrap();
    let ordered = Quick::JobRun { host: vault.name.clone(), product, operation: prune.clone() };
    let AdminReply::Job(prune_job) = fixture.ask(ordered).await.unwrap() else { panic!() };
    says_which(&mut web, "/r").await;
    says_which(&mut vault, "/mnt/r").await;
    let waits = |record: &JobRecord| {
        record.waiting.as_ref().is_some_and(|why| why.contains("backup on web-1 (/r)") && why.contains("another job"))
    };
    until(&fixture, prune_job.id, waits).await;
    assert!(vault.asked.try_recv().is_err(), "it is not sent");
    // Somebody who comes later does not overtake it.
    let later = order(&fixture, backup()).await;
    says_which(&mut web, "/r").await;
    until(&fixture, later, |record| record.waiting.as_ref().is_some_and(|why| why.contains("prune on vault"))).await;
    fixture.ask(Quick::JobCancel(later)).await.unwrap();
    until(&fixture, later, |record| record.state.is_final()).await;

    fixture.restart().await;
    let mut web = FakeHost::connect(&fixture.address, web.identity.clone()).await.unwrap();
    let mut vault = FakeHost::connect(&fixture.address, vault.identity.clone()).await.unwrap();
    let (job, _, answer) = joined(&mut web).await;
    assert_eq!(job, first, "it is joined, and its repository is known still");
    answer.finish(&HostReply::Outcome(done("1.0"))).await.unwrap();
    let (job, operation, _answer) = joined(&mut vault).await;
    assert_eq!((job, operation), (prune_job.id, prune));
    assert!(show(&fixture, first).await.state.is_final());
}

fn which() -> Outcome {
    Outcome::Done(Summary { snapshots: vec!["5e".repeat(32)], ..Summary::default() })
}

/// The next job that a host is sent; which repository it is at it says meanwhile.
async fn joined(host: &mut FakeHost) -> (JobId, Operation, manager_fs::net::Answer) {
    loop {
        let (job, operation, answer) = host.next_run().await;
        let Operation::Identify { .. } = operation else { return (job, operation, answer) };
        answer.finish(&HostReply::Outcome(which())).await.unwrap();
    }
}

/// A host is asked which repository it has at a path, and says that it is the one of this test.
async fn says_which(host: &mut FakeHost, path: &str) {
    let (_, operation, answer) = host.next_run().await;
    assert_eq!(operation, Operation::Identify { repository: repository(path) });
    answer.finish(&HostReply::Outcome(which())).await.unwrap();
}

#[tokio::test]
async fn an_agent_is_told_whose_the_earlier_backups_were() {
    let fixture = Fixture::new().await;
    let mut host = fixture.host("web-1").await;
    let mut earlier = Vec::new();
    for _ in 0..2 {
        let id = order(&fixture, backup()).await;
        let (ManagerRequest::Run { origin, .. }, answer) = host.next().await else { panic!() };
        earlier.push((id, host.name.clone()));
        assert_eq!(origin.earlier, earlier);
        answer.finish(&HostReply::Outcome(done("1.0"))).await.unwrap();
        until(&fixture, id, |record| record.state.is_final()).await;
    }
}
