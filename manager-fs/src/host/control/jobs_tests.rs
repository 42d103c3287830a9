use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use proto::agent::{Outcome, Repository, Summary};
use proto::message::ManagerRequest;
use tokio::sync::mpsc;

use super::*;
use crate::clock::testing::Manual;
use crate::net::{BoxFuture, Handler, Link, NetError, RefuseAll, bind_unix, start};

fn origin() -> JobOrigin {
    JobOrigin::new("host-1".parse().unwrap(), "p".parse().unwrap())
}

fn request() -> AgentRequest {
    AgentRequest::Run { job: JobId(7), origin: origin(), operation: operation() }
}

fn operation() -> Operation {
    let repository = Repository { path: "/r".to_owned(), password_file: None };
    Operation::Backup { repository, sources: vec!["/a".to_owned()] }
}

fn progress(units_done: u32) -> Progress {
    let (activity, version) = ("reading".to_owned(), "1".to_owned());
    Progress { units_done, units: 2, bytes_done: 0, bytes: 0, activity, version }
}

fn outcome(version: &str) -> Outcome {
    Outcome::Done(Summary { versions: vec![version.to_owned()], ..Summary::default() })
}

/// What a made-up agent does with one connection's request.
#[derive(Clone)]
enum Act {
    ProgressThenEnd(u32),
    Refuse(Fault),
    Finish(&'static str),
    Hang,
}

struct Agent {
    acts: Vec<Act>,
    asked: Arc<AtomicUsize>,
    gone: mpsc::UnboundedSender<()>,
}

impl Handler for Agent {
    fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
        let asked: AgentRequest = codec::decode::<_, MESSAGE_BYTES_MAX>(&body).unwrap();
        assert_eq!(asked, request());
        let act = self.acts[self.asked.fetch_add(1, Ordering::SeqCst)].clone();
        let gone = self.gone.clone();
        Box::pin(async move {
            match act {
                Act::ProgressThenEnd(units) => {
                    answer.event(&progress(units)).await.unwrap();
                    // As an execve ends the connection: without an answer.
                    gone.send(()).unwrap();
                    answer.cancelled().await;
                }
                Act::Refuse(fault) => answer.finish(&AgentReply::Fault(fault)).await.unwrap(),
                Act::Finish(version) => answer.finish(&AgentReply::Outcome(outcome(version))).await.unwrap(),
                Act::Hang => answer.cancelled().await,
            }
        })
    }
}

/// An agent that behaves differently on each of its connections; returns the count of requests.
fn agent(dir: &Path, acts: Vec<Act>) -> Arc<AtomicUsize> {
    let listener = bind_unix(&dir.join("p.sock")).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let (gone, mut ended) = mpsc::unbounded_channel();
    let agent = Arc::new(Agent { acts, asked: Arc::clone(&asked), gone });
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let link = start(stream, Arc::clone(&agent) as Arc<dyn Handler>);
            tokio::select! {
                _ = ended.recv() => {
                    // The event is on its way before the connection ends.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    link.close("exec");
                }
                _ = link.closed() => {}
            }
        }
    });
    asked
}

/// The host's side of the manager's link.
struct Host(Arc<Jobs>);

impl Handler for Host {
    fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
        let jobs = Arc::clone(&self.0);
        Box::pin(async move {
            match codec::decode::<_, MESSAGE_BYTES_MAX>(&body).unwrap() {
                ManagerRequest::Run { product, job, origin, operation } => {
                    jobs.run(product, job, origin, operation, answer).await;
                }
                other => panic!("{other:?}"),
            }
        })
    }
}

struct Fixture {
    _dir: tempfile::TempDir,
    spool: Arc<Spool>,
    jobs: Arc<Jobs>,
    manager: Link,
    asked: Arc<AtomicUsize>,
}

fn fixture(acts: Vec<Act>) -> Fixture {
    fixture_by(acts, Clock::system())
}

fn fixture_by(acts: Vec<Act>, clock: Clock) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let asked = agent(dir.path(), acts);
    let spool = Arc::new(Spool::open(&dir.path().join("events")));
    let jobs = Jobs::new(dir.path().to_owned(), clock, Arc::clone(&spool));
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    start(theirs, Arc::new(Host(Arc::clone(&jobs))));
    Fixture { _dir: dir, spool, jobs, manager: start(ours, Arc::new(RefuseAll)), asked }
}

async fn run(manager: &Link, seen: &mut Vec<u32>) -> Result<HostReply, NetError> {
    let request = ManagerRequest::Run {
        product: "p".parse().unwrap(),
        job: JobId(7),
        origin: origin(),
        operation: operation(),
    };
    let on = |incoming| {
        if let Incoming::Event(body) = incoming {
            seen.push(codec::decode::<Progress, MESSAGE_BYTES_MAX>(&body).unwrap().units_done);
        }
    };
    manager.request(&request, on, Duration::from_secs(20)).await
}

#[tokio::test]
async fn a_job_goes_on_across_the_exec_of_its_agent() {
    let fixture = fixture(vec![
        Act::ProgressThenEnd(1),
        Act::Refuse(Fault::Draining),
        Act::ProgressThenEnd(2),
        Act::Finish("2"),
    ]);
    let mut seen = Vec::new();
    assert_eq!(run(&fixture.manager, &mut seen).await, Ok(HostReply::Outcome(outcome("2"))));
    assert_eq!(seen, [1, 2]);
    assert_eq!(fixture.asked.load(Ordering::SeqCst), 4);
    assert_eq!(fixture.spool.len(), 0, "the manager heard it");
}

#[tokio::test]
async fn an_agent_that_drains_takes_no_new_job() {
    let fixture = fixture(vec![Act::Refuse(Fault::Draining)]);
    assert_eq!(run(&fixture.manager, &mut Vec::new()).await, Ok(HostReply::Fault(Fault::Draining)));
}

#[tokio::test]
async fn without_an_agent_the_answer_says_how_to_start_one() {
    let fixture = fixture(vec![]);
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let empty = tempfile::tempdir().unwrap();
    let jobs = Jobs::new(empty.path().to_owned(), Clock::system(), Arc::clone(&fixture.spool));
    start(theirs, Arc::new(Host(jobs)));
    let Ok(HostReply::Fault(Fault::Unavailable(text))) = run(&start(ours, Arc::new(RefuseAll)), &mut vec![]).await
    else {
        panic!("an agent that is not there took a job");
    };
    assert!(text.contains("launch p"), "{text}");
}

#[tokio::test]
async fn the_outcome_of_a_job_that_lost_its_manager_is_spooled() {
    let fixture = fixture(vec![Act::ProgressThenEnd(1), Act::Hang]);
    let request = ManagerRequest::Run {
        product: "p".parse().unwrap(),
        job: JobId(7),
        origin: origin(),
        operation: operation(),
    };
    let (heard, hears) = tokio::sync::oneshot::channel();
    let mut heard = Some(heard);
    let manager = fixture.manager.clone();
    let asking = tokio::spawn(async move {
        let on = |_| heard.take().map_or((), |heard| heard.send(()).unwrap());
        manager.request::<_, HostReply>(&request, on, Duration::from_secs(20)).await
    });
    hears.await.unwrap();
    fixture.manager.close("the manager is restarted");
    assert!(asking.await.unwrap().is_err());
    // Nobody hears of the job, until the manager is back and asks for it.
    while fixture.jobs.unheard() != [(JobId(7), progress(1))] {
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.spool.len(), 0);
}

#[tokio::test]
async fn the_spool_has_the_outcome_when_nobody_waits() {
    let fixture = fixture(vec![Act::Finish("1")]);
    let entry = Arc::new(Following { progress: watch::Sender::new(None), end: watch::Sender::new(None) });
    fixture.jobs.lock().insert(JobId(7), Arc::clone(&entry));
    Arc::clone(&fixture.jobs).follow("p".parse().unwrap(), JobId(7), request(), entry).await;
    assert_eq!(fixture.spool.oldest(9).reports, [HostReport::JobOutcome { job: JobId(7), outcome: outcome("1") }]);
    assert!(fixture.jobs.lock().is_empty());
}

/// A run whose agent does this, by a clock that stands still.
fn running(acts: Vec<Act>) -> (Fixture, Arc<Manual>, tokio::task::JoinHandle<Result<HostReply, NetError>>) {
    let (time, clock) = Manual::new();
    let fixture = fixture_by(acts, clock);
    let manager = fixture.manager.clone();
    let asked = tokio::spawn(async move { run(&manager, &mut Vec::new()).await });
    (fixture, time, asked)
}

#[tokio::test]
async fn a_job_is_joined_again_at_once_and_then_ever_more_seldom() {
    let refuse = || Act::Refuse(Fault::Draining);
    let mut acts = vec![Act::ProgressThenEnd(1)];
    acts.extend((0..9).map(|_| refuse()));
    acts.push(Act::Finish("2"));
    let (fixture, time, asked) = running(acts);
    let mut pauses = Vec::new();
    for tried in 1..11 {
        pauses.push(time.waiting(|_| true).await.as_millis());
        assert_eq!(fixture.asked.load(Ordering::SeqCst), tried);
        time.pass(|_| true).await;
    }
    assert_eq!(asked.await.unwrap(), Ok(HostReply::Outcome(outcome("2"))));
    assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1000, 1000, 1000, 1000]);
}

#[tokio::test]
async fn a_job_whose_agent_stays_away_ends_after_ten_minutes_and_says_what_helps() {
    let (fixture, time, asked) = running(vec![Act::ProgressThenEnd(1), Act::Refuse(Fault::Draining)]);
    time.pass(|_| true).await;
    // Draining still, just before the time is over: it may come back.
    time.waiting(|_| true).await;
    std::fs::remove_file(fixture._dir.path().join("p.sock")).unwrap();
    time.advance(REJOIN_MAX - Duration::from_secs(1));
    time.waiting(|_| true).await;
    assert!(!asked.is_finished());
    time.advance(Duration::from_secs(1));
    let Ok(HostReply::Fault(Fault::Unavailable(text))) = asked.await.unwrap() else { panic!("it goes on") };
    assert!(text.contains("manager-fs launch p"), "{text}");
    assert_eq!(fixture.asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn an_agent_that_refuses_a_job_it_never_took_is_not_asked_again() {
    let refusals = [
        Fault::Refused("no such repository".to_owned()),
        Fault::BadRequest("a path is not absolute".to_owned()),
        Fault::Draining,
    ];
    for fault in refusals {
        let (fixture, time, asked) = running(vec![Act::Refuse(fault.clone())]);
        assert_eq!(asked.await.unwrap(), Ok(HostReply::Fault(fault)));
        assert_eq!((fixture.asked.load(Ordering::SeqCst), time.waits()), (1, vec![]));
    }
}

#[tokio::test]
async fn a_manager_that_asks_twice_for_a_job_joins_it() {
    let fixture = fixture(vec![Act::Hang]);
    let (one, two) = (fixture.manager.clone(), fixture.manager.clone());
    let first = tokio::spawn(async move { run(&one, &mut Vec::new()).await });
    while fixture.asked.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let second = tokio::spawn(async move { run(&two, &mut Vec::new()).await });
    let both = || fixture.jobs.lock().get(&JobId(7)).is_some_and(|entry| entry.end.receiver_count() == 2);
    while !both() {
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.asked.load(Ordering::SeqCst), 1, "the agent has one job");
    fixture.manager.close("the manager is restarted");
    assert!(first.await.unwrap().is_err() && second.await.unwrap().is_err());
}
