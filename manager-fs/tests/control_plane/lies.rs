//! A host with an identity of its own that says what is not so: of other hosts' jobs, of trees and products that were never
//! its own, in numbers that make no sense, and more than it wants to hear the answers to.

use std::time::{Duration, Instant};

use manager_fs::manager::admin::{AdminReply, Quick};
use manager_fs::manager::control::jobs::{JobRecord, JobState};
use manager_fs::net;
use proto::agent::{
    AgentState, AgentStatus, ChangeId, JobId, Operation, Outcome, Progress, Repository, Step, StepEvent, Summary,
};
use proto::frame::{FrameHeader, FrameKind};
use proto::message::{HostReply, HostReport, HostRequest, Instance, ManagerReply, PROTOCOL, Role};
use proto::{TreeId, codec};
use tokio::io::AsyncWriteExt;

use crate::fixture::{Fixture, SOON, hello};

/// What is promised is one second; the machine that runs the tests may be busy.
const PROMPT: Duration = Duration::from_secs(2);
/// Takes over a terminal, writes backwards, and forges a line.
const TRICKS: &str = "\x1b]0;owned\x07\u{202e}\u{2066}\nevil  data-agent@9.9  serving";

async fn order(fixture: &Fixture, host: &str) -> JobId {
    let repository = Repository { path: "/r".into(), password_file: None };
    let operation = Operation::Backup { repository, sources: vec!["/srv".into()] };
    let run = Quick::JobRun { host: host.parse().unwrap(), product: "data-agent".parse().unwrap(), operation };
    match fixture.ask(run).await.unwrap() {
        AdminReply::Job(record) => record.id,
        other => panic!("{other:?}"),
    }
}

async fn show(fixture: &Fixture, job: JobId) -> JobRecord {
    match fixture.ask(Quick::Job(job)).await.unwrap() {
        AdminReply::Job(record) => record,
        other => panic!("{other:?}"),
    }
}

fn absurd() -> Progress {
    let (units_done, units, bytes_done, bytes) = (u32::MAX, 1, u64::MAX, 1);
    Progress { units_done, units, bytes_done, bytes, activity: TRICKS.into(), version: TRICKS.into() }
}

/// What operators ask is answered at once.
async fn answers_promptly(fixture: &Fixture) {
    for request in
        [Quick::Hosts, Quick::Agents, Quick::Jobs(manager_fs::manager::jobs::JobFilter::default()), Quick::Groups]
    {
        let (begun, what) = (Instant::now(), format!("{request:?}"));
        fixture.ask(request).await.unwrap();
        assert!(begun.elapsed() < PROMPT, "{what} took {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn what_a_host_says_of_the_job_of_another_counts_nothing() {
    let fixture = Fixture::new().await;
    let (evil, mut good) = (fixture.host("evil").await, fixture.host("good").await);
    let job = order(&fixture, "good").await;
    let (_, _, answer) = good.next_run().await;
    let outcomes =
        [Outcome::Failed("no".into()), Outcome::Done(Summary::default()), { Outcome::Cancelled(Summary::default()) }];
    for outcome in outcomes {
        for job in [job, JobId(0), JobId(u64::MAX)] {
            let progress = HostReport::JobProgress { job, progress: absurd() };
            let outcome = HostReport::JobOutcome { job, outcome: outcome.clone() };
            // Taken, or it would be sent for ever, and nothing comes of it.
            assert_eq!(
                evil.request(HostRequest::Report { reports: vec![progress, outcome] }).await,
                ManagerReply::Done
            );
        }
    }
    let record = show(&fixture, job).await;
    assert!(!record.state.is_final() && record.progress.is_none(), "{record:?}");
    answer.finish(&HostReply::Outcome(Outcome::Done(Summary::default()))).await.unwrap();
    let begun = Instant::now();
    while show(&fixture, job).await.state != JobState::Done {
        assert!(begun.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn numbers_and_texts_that_make_no_sense_hold_up_and_deceive_nobody() {
    let fixture = Fixture::new().await;
    let tree = fixture.publish("data-agent@1.0", b"one").await;
    let (evil, good) = (fixture.host("evil").await, fixture.host("good").await);
    fixture.export("data-agent@1.0", &["good", "evil"]).await;
    let job = order(&fixture, "evil").await;
    let agent = |product: &str| AgentStatus {
        product: product.parse().unwrap(),
        version: "9.9".parse().unwrap(),
        // It was never exported to anybody.
        tree: TreeId::of(product.as_bytes()),
        pid: u32::MAX,
        started_unix_ms: u64::MAX,
        state: AgentState::Serving,
        jobs: vec![job, JobId(u64::MAX)],
        reason: TRICKS.into(),
    };
    let step = |change, step| {
        HostReport::Step(StepEvent {
            change: ChangeId(change),
            product: "data-agent".parse().unwrap(),
            from: Some(TreeId::of(b"nothing")),
            to: TreeId::of(b"nobody's"),
            step,
            at_unix_ms: u64::MAX,
            duration_us: u64::MAX,
            detail: TRICKS.into(),
        })
    };
    let attached: Vec<_> = (0..4_000_u32).map(|n| TreeId::of(&n.to_le_bytes())).chain([tree]).collect();
    for report in [
        HostReport::Agents(vec![agent("data-agent"), agent("never-exported")]),
        step(0, Step::Launched),
        step(u64::MAX, Step::Confirmed),
        step(1, Step::Swapped),
        HostReport::Attached(attached),
        HostReport::JobProgress { job, progress: absurd() },
        HostReport::WrongHash { what: TRICKS.into() },
    ] {
        evil.report(report).await;
    }
    answers_promptly(&fixture).await;
    let AdminReply::Agents(agents) = fixture.ask(Quick::Agents).await.unwrap() else { panic!() };
    assert!(agents.iter().all(|agent| agent.host == evil.name), "{agents:?}");
    let said = format!("{agents:?} {:?}", show(&fixture, job).await);
    let obeyed = |char: char| char.is_control() || ('\u{202a}'..='\u{202e}').contains(&char) || char == '\u{2066}';
    let of_texts = agents.iter().map(|agent| agent.status.reason.clone());
    assert!(!of_texts.chain([said]).any(|text| text.contains(obeyed)), "a terminal obeys it");

    // Its word keeps nothing from anybody else.
    let unexport = |host: &str| Quick::Unexport {
        generation: "data-agent@1.0".parse().unwrap(),
        targets: vec![host.parse().unwrap()],
        force: false,
    };
    fixture.ask(unexport("good")).await.unwrap();
    assert_eq!(good.exports().await, Vec::<String>::new());
    assert!(fixture.ask(unexport("evil")).await.is_err(), "it says that it has it attached");
}

#[tokio::test]
async fn ten_thousand_requests_of_one_that_never_reads_hold_up_nobody() {
    let fixture = Fixture::new().await;
    fixture.publish("data-agent@1.0", b"one").await;
    let (identity, good) = (fixture.enrolled("evil").await, fixture.host("good").await);
    fixture.export("data-agent@1.0", &["evil", "good"]).await;
    let mut deaf = Vec::new();
    for _ in 0..3 {
        let config = net::client_config(&identity.tls).unwrap();
        let mut stream = net::connect(&fixture.address, config).await.unwrap();
        let first = hello(PROTOCOL, Role::Bulk, Instance([0; 16]));
        let requests = std::iter::once(first).chain(std::iter::repeat_n(HostRequest::Exports, 10_000));
        let mut bytes = Vec::new();
        for (number, request) in (1..).zip(requests) {
            let body = codec::encode(&request).unwrap();
            bytes.extend(FrameHeader { kind: FrameKind::Request, request: number, length: body.len() }.encode());
            bytes.extend(body);
        }
        deaf.push(tokio::spawn(async move {
            // It is thrown out in the middle of it, or nobody takes the rest.
            drop(tokio::time::timeout(SOON, stream.write_all(&bytes)).await);
            stream
        }));
    }
    for _ in 0..5 {
        answers_promptly(&fixture).await;
        let begun = Instant::now();
        assert_eq!(good.exports().await, ["data-agent@1.0"]);
        assert!(begun.elapsed() < PROMPT, "another host's exports took {:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let begun = Instant::now();
    fixture.ask(Quick::Revoke("evil".parse().unwrap())).await.unwrap();
    assert!(begun.elapsed() < PROMPT, "the revocation took {:?}", begun.elapsed());
    deaf.iter().for_each(tokio::task::JoinHandle::abort);
}
