//! One bad host: whatever it does, operators and other hosts are answered.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use manager_fs::host::enroll;
use manager_fs::manager::admin::{AdminReply, Quick};
use manager_fs::net::{self, Answer, BoxFuture, Handler, Incoming, Link, NetError};
use proto::agent::{AgentState, AgentStatus, ChangeId, Step, StepEvent};
use proto::bundle::Touch;
use proto::message::{Fault, HostReport, HostRequest, Instance, ManagerReply, PROTOCOL, Role};
use proto::{Product, TreeId};
use tokio::task::JoinSet;

use crate::fixture::{FakeHost, Fixture, SOON, dial, hello};

/// What is promised is one second; the machine that runs the tests may be busy.
const PROMPT: Duration = Duration::from_secs(2);

async fn promptly<T>(what: &str, work: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let done = tokio::time::timeout(SOON, work).await.unwrap_or_else(|_| panic!("{what}: no answer at all"));
    assert!(begun.elapsed() < PROMPT, "{what} took {:?}", begun.elapsed());
    done
}

/// Another connection of a host.
async fn bulk(fixture: &Fixture, host: &FakeHost) -> Link {
    let (link, ..) = dial(&fixture.address, &host.identity).await.unwrap();
    let reply = link.request(&hello(PROTOCOL, Role::Bulk, Instance([0; 16])), |_| {}, SOON).await.unwrap();
    assert!(matches!(reply, ManagerReply::Welcome { .. }), "{reply:?}");
    link
}

fn wrong_hashes(count: usize, bytes: usize) -> HostRequest {
    HostRequest::Report { reports: vec![HostReport::WrongHash { what: "x".repeat(bytes) }; count] }
}

#[tokio::test]
async fn a_flood_of_reports_holds_up_neither_operators_nor_other_hosts_nor_a_revocation() {
    let fixture = Fixture::new().await;
    let (evil, good) = (fixture.host("evil").await, fixture.host("good").await);
    let links = [evil.link.clone(), bulk(&fixture, &evil).await, bulk(&fixture, &evil).await];
    let mut flood = JoinSet::new();
    for at in 0..750 {
        let link = links[at % links.len()].clone();
        flood.spawn(
            async move { link.request::<_, ManagerReply>(&wrong_hashes(256, 1), |_| {}, Duration::MAX).await },
        );
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    for _ in 0..5 {
        promptly("hosts", fixture.ask(Quick::Hosts)).await.unwrap();
        promptly("agents", fixture.ask(Quick::Agents)).await.unwrap();
        promptly("another host's exports", good.exports()).await;
        promptly("another host's report", good.report(HostReport::Agents(vec![]))).await;
        promptly("another host's greeting", bulk(&fixture, &good)).await;
        promptly("its own exports", evil.exports()).await;
    }
    promptly("the revocation", fixture.ask(Quick::Revoke(evil.name.clone()))).await.unwrap();
    promptly("the end of its connections", evil.link.closed()).await;
    let answered = flood.join_all().await.into_iter().filter(Result::is_ok).count();
    assert!(answered < 100, "{answered} requests of 256 reports were taken at once");
    promptly("hosts after it", fixture.ask(Quick::Hosts)).await.unwrap();
}

#[tokio::test]
async fn requests_that_are_not_answered_yet_are_bounded_for_all_connections_of_a_host_together() {
    let fixture = Fixture::new().await;
    let evil = fixture.host("evil").await;
    let links = [evil.link.clone(), bulk(&fixture, &evil).await];
    let mut flood = JoinSet::new();
    for at in 0..32 {
        let link = links[at % links.len()].clone();
        flood.spawn(async move {
            link.request::<_, ManagerReply>(&wrong_hashes(250, 4000), |_| {}, Duration::from_secs(5)).await
        });
    }
    let mut refused = 0;
    while let Some(reply) = flood.join_next().await {
        match reply.unwrap() {
            Ok(ManagerReply::Fault(Fault::Unavailable(why))) => {
                assert!(why.contains("wait for answers"), "{why}");
                refused += 1;
            }
            Ok(ManagerReply::Done) | Err(NetError::Deadline(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(refused >= 16, "{refused} of 32 requests of a megabyte were refused");
    // Not answered any more, they hold nothing; and a request beyond its bound ends its connection.
    promptly("its exports", evil.exports()).await;
    let large = evil.link.request::<_, ManagerReply>(&wrong_hashes(256, 5000), |_| {}, SOON).await;
    assert!(large.is_err(), "{large:?}");
    promptly("the end", evil.link.closed()).await;
}

/// Threads of this process, in which the manager runs.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// Whatever a host may ask, two thousand times at once; who asks is of this process, too, so what it says is short.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_any_request_holds_up_neither_operators_nor_other_hosts_nor_a_revocation() {
    let fixture = Fixture::new().await;
    let tree = small_program(&fixture).await;
    let good = fixture.host("good").await;
    let touches = |count: u32| (0..count).map(|first| Touch { object: first % 2, first, count: 1 }).collect();
    let csr = vec![0x30; 4_000];
    let kinds: [(&str, HostRequest); 8] = [
        ("touched", HostRequest::Report { reports: vec![HostReport::Touched { tree, touches: touches(200) }] }),
        ("profile", HostRequest::Profile { tree, touches: touches(200) }),
        ("renew", HostRequest::Renew { csr }),
        ("exports", HostRequest::Exports),
        (
            "list",
            HostRequest::ExportList {
                have: (0..200_u32).map(|n| *blake3::hash(&n.to_le_bytes()).as_bytes()).collect(),
            },
        ),
        ("manifest", HostRequest::Manifest { tree }),
        ("start", HostRequest::Start { generation: "data-agent@1.0".parse().unwrap(), from: None, manifest: true }),
        ("delta", HostRequest::Delta { from: TreeId::of(b"nobody's"), to: tree }),
    ];
    for (kind, request) in kinds {
        let evil = fixture.host(&format!("evil-{kind}")).await;
        fixture.export("data-agent@1.0", &[evil.name.as_str()]).await;
        let links = [evil.link.clone(), bulk(&fixture, &evil).await];
        let before = threads();
        let mut flood = JoinSet::new();
        for at in 0..2_000 {
            let (link, request) = (links[at % links.len()].clone(), request.clone());
            flood.spawn(async move { link.request::<_, ManagerReply>(&request, |_| {}, Duration::MAX).await });
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        for _ in 0..3 {
            promptly(&format!("{kind}: hosts"), fixture.ask(Quick::Hosts)).await.unwrap();
            promptly(&format!("{kind}: another host's exports"), good.exports()).await;
            promptly(&format!("{kind}: another host's report"), good.report(HostReport::Agents(vec![]))).await;
        }
        let more = threads().saturating_sub(before);
        assert!(more < 100, "{kind}: {more} threads more");
        promptly(&format!("{kind}: the revocation"), fixture.ask(Quick::Revoke(evil.name.clone()))).await.unwrap();
        promptly(&format!("{kind}: the end"), evil.link.closed()).await;
        flood.abort_all();
    }
}

#[tokio::test]
async fn connections_and_renewals_of_a_host_are_bounded() {
    let fixture = Fixture::new().await;
    let evil = fixture.host("evil").await;
    let mut refused = 0;
    for _ in 0..10 {
        match enroll::renew(&evil.link, &fixture.state("evil")).await {
            Ok(_) => {}
            Err(error) => {
                assert!(error.to_string().contains("too many renewals"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused >= 5, "{refused} of 10 renewals at once were refused");

    // Connections that never say `Hello` count as well.
    let mut links = Vec::new();
    for _ in 0..40 {
        links.extend(dial(&fixture.address, &evil.identity).await.ok().map(|(link, ..)| link));
    }
    let exports = HostRequest::Exports;
    let mut alive = 0;
    for link in &links {
        // Whoever was let in is told to say `Hello` first.
        let reply = link.request::<_, ManagerReply>(&exports, |_| {}, SOON).await;
        alive += usize::from(reply.is_ok());
    }
    assert!(alive <= 12, "{alive} connections of one host");
    promptly("another host", async { drop(fixture.host("good").await) }).await;
}

#[tokio::test]
async fn products_that_a_host_invents_are_bounded() {
    let fixture = Fixture::new().await;
    let tree = fixture.publish("data-agent@1.0", b"one").await;
    let host = fixture.host("evil").await;
    let names: Vec<Product> = (0..60).map(|number| format!("invented-{number}").parse().unwrap()).collect();
    let agent = |product: &Product| AgentStatus {
        product: product.clone(),
        version: "1.0".parse().unwrap(),
        tree,
        pid: 1,
        started_unix_ms: 1,
        state: AgentState::Serving,
        jobs: vec![],
        reason: String::new(),
    };
    let step = |product: &Product| {
        HostReport::Step(StepEvent {
            change: ChangeId(0),
            product: product.clone(),
            from: None,
            to: tree,
            step: Step::Launched,
            at_unix_ms: 1,
            duration_us: 1,
            detail: "x".repeat(10_000),
        })
    };
    for product in &names {
        host.report(step(product)).await;
    }
    host.report(HostReport::Agents(names.iter().map(agent).collect())).await;
    let AdminReply::Agents(agents) = fixture.ask(Quick::Agents).await.unwrap() else { panic!() };
    let kept = agents.iter().filter(|agent| !agent.last_change.is_empty()).count();
    assert!(kept <= 16, "the steps of {kept} products of one host are kept");
}

async fn start_bytes(host: &FakeHost, generation: &str) -> usize {
    let mut bytes = 0;
    let start = HostRequest::Start { generation: generation.parse().unwrap(), from: None, manifest: false };
    let on = |incoming| match incoming {
        Incoming::Bulk(part) => bytes += part.len(),
        Incoming::Event(_) => panic!("event"),
    };
    match host.link.request(&start, on, SOON).await.unwrap() {
        ManagerReply::Sent(_) => bytes,
        other => panic!("{other:?}"),
    }
}

/// A tree with a small program and a large file.
async fn small_program(fixture: &Fixture) -> TreeId {
    let source = fixture.directory.path().join("source-data-agent@1.0");
    std::fs::create_dir_all(&source).unwrap();
    std::fs::write(source.join("large"), tests::noise::noise(1, 3_000_000)).unwrap();
    fixture.publish("data-agent@1.0", b"#!/bin/sh\nexit 0\n").await
}

#[tokio::test]
async fn what_one_host_tells_of_starts_costs_no_other_host_much_and_can_be_forgotten() {
    let fixture = Fixture::new().await;
    let tree = small_program(&fixture).await;
    let (evil, good) = (fixture.host("evil").await, fixture.host("good").await);
    fixture.export("data-agent@1.0", &["evil", "good"]).await;
    let guessed = start_bytes(&good, "data-agent@1.0").await;
    assert!(guessed < 10_000, "{guessed}");
    // A guess is compressed better a while after it was made, which is some bytes of some hundred.
    let as_guessed = |bytes: usize| assert!(bytes.abs_diff(guessed) < 1_000, "{bytes} instead of {guessed}");
    // Pages of whichever object is the large one; the other is refused, as it is smaller.
    for object in [0, 1] {
        let touches = vec![Touch { object, first: 0, count: 700 }];
        for _ in 0..20 {
            evil.report(HostReport::Touched { tree, touches: touches.clone() }).await;
        }
    }
    // One host teaches nobody else.
    as_guessed(start_bytes(&good, "data-agent@1.0").await);

    // Nor does it by a recording, until the operator believes it.
    let mut taken = Vec::new();
    for believed in [false, true] {
        for object in [0, 1] {
            let touches = vec![Touch { object, first: 0, count: 700 }];
            match evil.request(HostRequest::Profile { tree, touches }).await {
                ManagerReply::Done => assert!(!believed),
                ManagerReply::Bundle(facts) => {
                    assert!(believed && facts.plain_bytes <= 512 << 10, "{facts:?}");
                    taken.push(facts);
                }
                ManagerReply::Fault(Fault::BadRequest(_)) => {}
                other => panic!("{other:?}"),
            }
        }
        if !believed {
            as_guessed(start_bytes(&good, "data-agent@1.0").await);
            let recorders = Quick::GroupAdd("recorders".parse().unwrap(), vec!["evil".parse().unwrap()]);
            fixture.ask(recorders).await.unwrap();
        }
    }
    let taken = taken.len();
    // Of the small one there are no such pages: it is refused, unless the cut has left nothing of it.
    assert!(taken >= 1, "nothing was recorded");
    assert!(start_bytes(&good, "data-agent@1.0").await < 600_000);
    fixture.ask(Quick::ResetProfile("data-agent@1.0".parse().unwrap())).await.unwrap();
    as_guessed(start_bytes(&good, "data-agent@1.0").await);
}

#[tokio::test]
async fn a_clone_is_refused_while_the_first_daemon_lives_and_a_restart_takes_over_at_once() {
    let fixture = Fixture::new().await;
    let first = fixture.host("web-1").await;
    let connect = |instance| FakeHost::connect_as(&fixture.address, first.identity.clone(), Instance([instance; 16]));
    for _ in 0..3 {
        let refused = promptly("the clone", connect(7)).await.err().unwrap();
        assert!(refused.contains("a clone?") && refused.contains("web-1"), "{refused}");
    }
    let (link, ..) = dial(&fixture.address, &first.identity).await.unwrap();
    let reply: ManagerReply =
        link.request(&hello(PROTOCOL, Role::Bulk, Instance([7; 16])), |_| {}, SOON).await.unwrap();
    assert!(matches!(reply, ManagerReply::Fault(Fault::Refused(_))), "{reply:?}");
    assert_eq!(first.exports().await, Vec::<String>::new(), "the first has not noticed");

    let again = promptly("the restart", connect(0)).await.unwrap();
    promptly("the end of the old connection", first.link.closed()).await;
    // When it has left, another may come in its place: the machine was booted anew.
    again.link.close("ended");
    promptly("the newcomer", connect(7)).await.unwrap();
}

#[tokio::test]
async fn a_daemon_that_gives_no_sign_of_life_is_replaced() {
    /// Takes requests and never answers.
    struct Silent(Mutex<Vec<Answer>>);
    impl Handler for Silent {
        fn handle(&self, _body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
            self.0.lock().unwrap().push(answer);
            Box::pin(std::future::ready(()))
        }
    }
    let fixture = Fixture::new().await;
    let identity = fixture.enrolled("web-1").await;
    let stream = net::connect(&fixture.address, net::client_config(&identity.tls).unwrap()).await.unwrap();
    let stopped = net::start(stream, Arc::new(Silent(Mutex::default())));
    let reply = stopped.request(&hello(PROTOCOL, Role::Control, Instance([1; 16])), |_| {}, SOON).await.unwrap();
    assert!(matches!(reply, ManagerReply::Welcome { .. }), "{reply:?}");
    let newcomer = FakeHost::connect_as(&fixture.address, identity, Instance([2; 16]));
    let newcomer = tokio::time::timeout(SOON, newcomer).await.unwrap().unwrap();
    tokio::time::timeout(SOON, stopped.closed()).await.unwrap();
    assert_eq!(newcomer.exports().await, Vec::<String>::new());
}
