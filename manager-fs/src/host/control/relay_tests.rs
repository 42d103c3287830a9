use std::sync::Mutex;
use std::time::Instant;

use agent_core::internal::journal::Entry;
use proto::agent::{ChangeId, JobId, Step};
use proto::codec;
use proto::limits::MESSAGE_BYTES_MAX;
use proto::message::ManagerReply;

use super::*;
use crate::clock::testing::Manual;
use crate::host::data::lane::Dial;
use crate::host::data::link::ManagerLink;
use crate::host::generations::records::tests::{key_of, signed};
use crate::net::{Answer, BoxFuture, Handler, Link, NetError, bind_unix, start};

fn tree(name: u8) -> TreeId {
    TreeId::of(&[name])
}

fn product() -> Product {
    "p".parse().unwrap()
}

fn status() -> AgentStatus {
    AgentStatus {
        product: product(),
        version: "1".parse().unwrap(),
        tree: tree(1),
        pid: std::process::id(),
        started_unix_ms: 7,
        state: AgentState::Serving,
        jobs: vec![],
        reason: "launched".to_owned(),
    }
}

/// An agent that notes what it is asked; the answer to each kind of request can be set.
#[derive(Default)]
struct Agent {
    asked: Mutex<Vec<AgentRequest>>,
    refuse_attach: bool,
}

struct Serve(Arc<Agent>);

impl Handler for Serve {
    fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
        let request: AgentRequest = codec::decode::<_, MESSAGE_BYTES_MAX>(&body).unwrap();
        let reply = match &request {
            AgentRequest::Status => AgentReply::Status(status()),
            AgentRequest::Attach { .. } if self.0.refuse_attach => {
                AgentReply::Fault(Fault::Refused("that version failed here".to_owned()))
            }
            _ => AgentReply::Done,
        };
        if request != AgentRequest::Status {
            self.0.asked.lock().unwrap().push(request);
        }
        Box::pin(async move { answer.finish(&reply).await.unwrap() })
    }
}

fn serve(dir: &Path, agent: Agent) -> Arc<Agent> {
    let agent = Arc::new(agent);
    let listener = bind_unix(&dir.join("run/p.sock")).unwrap();
    let handler = Arc::new(Serve(Arc::clone(&agent)));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            start(stream, Arc::clone(&handler) as Arc<dyn Handler>);
        }
    });
    agent
}

fn relay(dir: &Path) -> Arc<Relay> {
    relay_by(dir, Clock::system())
}

fn relay_by(dir: &Path, clock: Clock) -> Arc<Relay> {
    let known = Records::open(dir, dir, Ok(vec![key_of(1).verifying_key().into()]));
    let spool = Arc::new(Spool::open(&dir.join("events")));
    let dirs = AgentDirs { state_dir: dir.to_owned(), agents_dir: dir.join("run") };
    Relay::new(dirs, clock, Arc::new(known), spool)
}

fn order() -> ChangeOver {
    ChangeOver {
        change: ChangeId(5),
        product: product(),
        record: signed("p", "2", tree(2), 2, &key_of(1)),
        attach: tree(2),
        lazy: false,
        drain_deadline_ms: 1000,
        retry_bad: false,
    }
}

#[tokio::test]
async fn a_change_over_is_messages_a_b_and_c_in_this_order() {
    let dir = tempfile::tempdir().unwrap();
    let agent = serve(dir.path(), Agent::default());
    let relay = relay(dir.path());
    relay.look().await;
    assert_eq!(relay.change_over(order()).await, HostReply::Done);
    let change = ChangeId(5);
    let expected = [
        AgentRequest::SaveMetadata { change, record: order().record },
        AgentRequest::Attach { change, release: Some(tree(1)), attach: tree(2), lazy: false, retry_bad: false },
        AgentRequest::Finish { change, drain_deadline_ms: 1000 },
    ];
    assert_eq!(*agent.asked.lock().unwrap(), expected);
}

#[tokio::test]
async fn a_refusal_ends_the_messages_and_reaches_the_manager() {
    let dir = tempfile::tempdir().unwrap();
    let agent = serve(dir.path(), Agent { refuse_attach: true, ..Agent::default() });
    let relay = relay(dir.path());
    let HostReply::Fault(Fault::Refused(text)) = relay.change_over(order()).await else { panic!("accepted") };
    assert!(text.contains("failed here"));
    assert_eq!(agent.asked.lock().unwrap().len(), 2, "message C was not sent");
}

#[tokio::test]
async fn a_cancel_is_refused_at_once_while_the_agent_is_away_and_taken_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let relay = relay(dir.path());
    let begun = Instant::now();
    let away = relay.cancel(&product(), JobId(7)).await;
    // The manager keeps what was not taken, and gives it again.
    let HostReply::Fault(Fault::Unavailable(text)) = away else { panic!("{away:?}") };
    assert!(text.contains("manager-fs launch p") && begun.elapsed() < AGENT_DEADLINE, "{text}");
    let agent = serve(dir.path(), Agent::default());
    assert_eq!(relay.cancel(&product(), JobId(7)).await, HostReply::Done);
    assert_eq!(*agent.asked.lock().unwrap(), [AgentRequest::Cancel { job: JobId(7) }]);
}

/// A stub that says of its agent that it runs, so often, and from then on that it has ended.
#[derive(Default)]
struct Stub {
    runs: std::sync::atomic::AtomicUsize,
    asked: Mutex<Vec<AgentRequest>>,
}

struct Watch(Arc<Stub>);

impl Handler for Watch {
    fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
        use std::sync::atomic::Ordering::SeqCst;
        let request: AgentRequest = codec::decode::<_, MESSAGE_BYTES_MAX>(&body).unwrap();
        let reply = if request == AgentRequest::Status {
            let runs = self.0.runs.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
            let state = if runs { AgentState::Serving } else { AgentState::Stopped };
            AgentReply::Status(AgentStatus { state, ..status() })
        } else {
            self.0.asked.lock().unwrap().push(request);
            AgentReply::Done
        };
        Box::pin(async move { answer.finish(&reply).await.unwrap() })
    }
}

#[tokio::test]
async fn an_order_to_an_agent_that_ends_meanwhile_goes_to_its_stub_in_a_moment() {
    let dir = tempfile::tempdir().unwrap();
    // The socket is the stub's: it accepts, and nobody answers before the next start.
    let _waits = bind_unix(&dir.path().join("run/p.sock")).unwrap();
    let stub = Arc::new(Stub { runs: 2.into(), ..Stub::default() });
    let door = bind_unix(&dir.path().join("run/p/stub.sock")).unwrap();
    let handler = Arc::new(Watch(Arc::clone(&stub)));
    tokio::spawn(async move {
        while let Ok((stream, _)) = door.accept().await {
            start(stream, Arc::clone(&handler) as Arc<dyn Handler>);
        }
    });
    let (relay, begun) = (relay(dir.path()), Instant::now());
    assert_eq!(relay.change_over(order()).await, HostReply::Done);
    assert!(begun.elapsed() < PATIENCE.silent_max, "{:?}", begun.elapsed());
    assert_eq!(stub.asked.lock().unwrap().len(), 3, "A, B and C");
}

#[tokio::test]
async fn an_agent_that_is_stopped_is_not_waited_for_as_long_as_a_slow_disk() {
    let dir = tempfile::tempdir().unwrap();
    let _stopped = bind_unix(&dir.path().join("run/p.sock")).unwrap();
    let patience = Patience {
        look_every: Duration::from_millis(1),
        silent_max: Duration::from_millis(50),
        answer_max: Duration::from_secs(3600),
    };
    let cancel = AgentRequest::Cancel { job: JobId(7) };
    let fault = agent::ask_living(&dir.path().join("run"), &product(), &cancel, &patience).await.unwrap_err();
    assert!(matches!(&fault, Fault::Unavailable(text) if text.contains("may be stopped")), "{fault}");
}

#[tokio::test]
async fn a_record_that_is_forged_or_of_another_tree_never_reaches_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    let agent = serve(dir.path(), Agent::default());
    let relay = relay(dir.path());
    let forged = ChangeOver { record: signed("p", "2", tree(2), 2, &key_of(9)), ..order() };
    assert!(matches!(relay.change_over(forged).await, HostReply::Fault(Fault::Refused(_))));
    let other = ChangeOver { attach: tree(3), ..order() };
    assert!(matches!(relay.change_over(other).await, HostReply::Fault(Fault::BadRequest(_))));
    assert!(agent.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_agent_that_is_gone_is_shown_as_its_journal_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let relay = relay(dir.path());
    assert!(relay.look().await.is_empty());
    assert!(matches!(relay.change_over(order()).await, HostReply::Fault(Fault::Unavailable(_))));
    let journal = dir.path().join("agents/p/journal");
    std::fs::create_dir_all(journal.parent().unwrap()).unwrap();
    Journal::first(Entry { version: "1".parse().unwrap(), tree: tree(1) }).write(&journal).unwrap();
    let agents = relay.look().await;
    assert_eq!((agents[0].state, agents[0].tree, agents[0].pid), (AgentState::Stopped, tree(1), 0));
}

/// A manager that keeps every report.
#[derive(Default)]
struct FakeManager {
    reports: Mutex<Vec<HostReport>>,
    /// How many requests it answers with a fault first.
    refuses: std::sync::atomic::AtomicUsize,
    asked: std::sync::atomic::AtomicUsize,
}

struct FakeDial(Arc<FakeManager>);

impl Dial for FakeDial {
    fn dial(&self, handler: Arc<dyn Handler>) -> BoxFuture<Result<Link, NetError>> {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        start(theirs, Arc::new(Take(Arc::clone(&self.0))));
        Box::pin(async move { Ok(start(ours, handler)) })
    }

    fn instance(&self) -> proto::message::Instance {
        proto::message::Instance([1; 16])
    }

    fn address(&self) -> String {
        "fake".to_owned()
    }
}

struct Take(Arc<FakeManager>);

impl Handler for Take {
    fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
        let reply = match codec::decode::<_, MESSAGE_BYTES_MAX>(&body).unwrap() {
            HostRequest::Report { reports } => {
                use std::sync::atomic::Ordering::SeqCst;
                self.0.asked.fetch_add(1, SeqCst);
                if self.0.refuses.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
                    let full = ManagerReply::Fault(Fault::Failed("the store's disk is full".to_owned()));
                    return Box::pin(async move { drop(answer.finish(&full).await) });
                }
                self.0.reports.lock().unwrap().extend(reports);
                ManagerReply::Done
            }
            _ => ManagerReply::Welcome { host: "h".parse().unwrap(), now: crate::clock::unix_ms() },
        };
        Box::pin(async move { drop(answer.finish(&reply).await) })
    }
}

fn event(step: Step) -> StepEvent {
    StepEvent {
        change: ChangeId(5),
        product: product(),
        from: None,
        to: tree(2),
        step,
        at_unix_ms: 1,
        duration_us: 1,
        detail: String::new(),
    }
}

#[tokio::test]
async fn what_happened_without_the_manager_is_told_first_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    serve(dir.path(), Agent::default());
    relay(dir.path()).report(event(Step::Staged));
    // Another worker, after a crash.
    let relay = relay(dir.path());
    relay.report(event(Step::Confirmed));
    relay.set_attached(BTreeSet::from([tree(2)]));
    relay.look().await;
    let fake = Arc::new(FakeManager::default());
    let manager =
        ManagerLink::new(&tokio::runtime::Handle::current(), Clock::system(), Arc::new(FakeDial(Arc::clone(&fake))));
    manager.start(Arc::new(crate::net::RefuseAll));
    tokio::spawn(Arc::clone(&relay).report_for_ever(Arc::clone(&manager)));
    let told = async {
        while fake.reports.lock().unwrap().len() < 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), told).await.unwrap();
    let expected = [
        HostReport::Step(event(Step::Staged)),
        HostReport::Step(event(Step::Confirmed)),
        HostReport::Agents(vec![status()]),
        HostReport::Attached(vec![tree(2)]),
    ];
    assert_eq!(*fake.reports.lock().unwrap(), expected);
    assert_eq!(relay.waiting_reports(), 0);
    manager.end();
}

/// A relay that reports to this manager by a clock that stands still.
fn reporting(relay: &Arc<Relay>, clock: Clock, fake: &Arc<FakeManager>) -> Arc<ManagerLink> {
    let dial = Arc::new(FakeDial(Arc::clone(fake)));
    let manager = ManagerLink::new(&tokio::runtime::Handle::current(), clock, dial);
    manager.start(Arc::new(crate::net::RefuseAll));
    tokio::spawn(Arc::clone(relay).report_for_ever(Arc::clone(&manager)));
    manager
}

#[tokio::test]
async fn reports_that_the_manager_does_not_take_wait_and_are_told_again() {
    let dir = tempfile::tempdir().unwrap();
    let (time, clock) = Manual::new();
    let relay = relay_by(dir.path(), clock.clone());
    relay.report(event(Step::Staged));
    relay.report(event(Step::Confirmed));
    let fake = Arc::new(FakeManager::default());
    fake.refuses.store(3, std::sync::atomic::Ordering::SeqCst);
    let manager = reporting(&relay, clock, &fake);
    for tried in 1..4 {
        while fake.asked.load(std::sync::atomic::Ordering::SeqCst) < tried {
            tokio::task::yield_now().await;
        }
        time.waiting(|left| left == PROGRESS_EVERY).await;
        assert_eq!(relay.waiting_reports(), 2, "nothing is lost");
        assert!(fake.reports.lock().unwrap().is_empty());
        time.pass(|left| left == PROGRESS_EVERY).await;
    }
    while fake.reports.lock().unwrap().len() < 4 {
        tokio::task::yield_now().await;
    }
    let told = fake.reports.lock().unwrap().clone();
    assert_eq!(told[..2], [HostReport::Step(event(Step::Staged)), HostReport::Step(event(Step::Confirmed))]);
    assert_eq!(told[2..], [HostReport::Agents(vec![]), HostReport::Attached(vec![])], "and what is true now");
    manager.end();
}

#[tokio::test]
async fn an_agent_that_was_killed_is_noticed_within_seconds_though_nobody_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (time, clock) = Manual::new();
    let relay = relay_by(dir.path(), clock);
    tokio::spawn(Arc::clone(&relay).watch_agents());
    time.waiting(|left| left == LOOK_AGAIN).await;
    assert!(relay.agents().is_empty());
    // It comes, and is looked at because it says so.
    serve(dir.path(), Agent::default());
    relay.look_again();
    let mut seen = relay.agents.subscribe();
    seen.wait_for(|agents| *agents == [status()]).await.unwrap();
    // It changes over: its journal names the next version, and nobody answers meanwhile.
    let journal = dir.path().join("agents/p/journal");
    std::fs::create_dir_all(journal.parent().unwrap()).unwrap();
    Journal::first(Entry { version: "2".parse().unwrap(), tree: tree(2) }).write(&journal).unwrap();
    std::fs::remove_file(dir.path().join("run/p.sock")).unwrap();
    time.pass(|left| left == LOOK_AGAIN).await;
    time.waiting(|left| left == LOOK_AGAIN).await;
    // Its process is this test's and lives: what it said last stands.
    assert_eq!(relay.agents(), [status()]);
    relay.agents.send_modify(|agents| agents[0].pid = u32::MAX);
    time.pass(|left| left == LOOK_AGAIN).await;
    // Killed: what its journal has is what will start next.
    seen.wait_for(|agents| agents[0].pid == 0 && agents[0].tree == tree(2)).await.unwrap();
    assert_eq!(relay.agents()[0].state, AgentState::Stopped);
}

#[tokio::test]
async fn an_order_whose_agent_never_comes_back_is_ended_in_the_spool() {
    let dir = tempfile::tempdir().unwrap();
    let (time, clock) = Manual::new();
    let relay = relay_by(dir.path(), clock.clone());
    relay.orders.taken(&product(), ChangeId(5), tree(2));
    relay.look().await;
    time.advance(Duration::from_secs(59));
    relay.look().await;
    assert_eq!(relay.waiting_reports(), 0, "the stub may start it again");
    time.advance(Duration::from_secs(1));
    relay.look().await;
    let [HostReport::Step(end)] = &relay.spool.oldest(9).reports[..] else { panic!("{:?}", relay.spool.oldest(9)) };
    assert_eq!((end.change, end.step, end.at_unix_ms), (ChangeId(5), Step::Refused, clock.unix_ms()));
    // Another worker finds it there.
    drop(relay);
    assert_eq!(relay_by(dir.path(), clock).waiting_reports(), 1);
}
