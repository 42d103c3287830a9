use std::collections::VecDeque;

use proto::codec;
use proto::limits::MESSAGE_BYTES_MAX;

use super::*;
use crate::clock::testing::Manual;
use crate::net::{Answer, RefuseAll, start};

/// What happens to one dial.
#[derive(Debug, Clone, PartialEq)]
enum Act {
    /// Nobody listens.
    Refuse,
    /// Nobody answers, not even the network.
    Hang,
    /// The connection stands, and nobody answers `Hello`.
    Mute,
    Welcome,
    /// Welcomed, and the connection ends at once.
    ThrowOut,
    /// `HelloFrom` is answered with this.
    Answer(ManagerReply),
    /// A manager from before hosts said what machine they are.
    Old,
}

/// A manager in memory; when its list is used up it goes on as it did last.
struct Fake {
    acts: Mutex<VecDeque<Act>>,
    dials: watch::Sender<usize>,
    links: Mutex<Vec<Link>>,
}

impl Fake {
    fn new(acts: impl IntoIterator<Item = Act>) -> Arc<Self> {
        let acts = Mutex::new(acts.into_iter().collect());
        Arc::new(Self { acts, dials: watch::Sender::new(0), links: Mutex::default() })
    }

    fn next(&self) -> Act {
        let mut acts = lock(&self.acts);
        let act = acts.pop_front().unwrap();
        if acts.is_empty() {
            acts.push_back(act.clone());
        }
        act
    }

    async fn dialled(&self, times: usize) {
        let mut dials = self.dials.subscribe();
        let enough = dials.wait_for(|dials| *dials >= times);
        tokio::time::timeout(Duration::from_secs(20), enough).await.expect("nobody dials").unwrap();
    }

    fn dials(&self) -> usize {
        *self.dials.borrow()
    }

    fn link(&self) -> Link {
        lock(&self.links).last().unwrap().clone()
    }
}

struct FakeDial(Arc<Fake>);

impl Dial for FakeDial {
    fn dial(&self, handler: Arc<dyn Handler>) -> BoxFuture<Result<Link, NetError>> {
        let fake = Arc::clone(&self.0);
        Box::pin(async move {
            let act = fake.next();
            fake.dials.send_modify(|dials| *dials += 1);
            match act {
                Act::Refuse => {
                    Err(NetError::Connect { address: "fake".to_owned(), reason: "switched off".to_owned() })
                }
                Act::Hang => std::future::pending().await,
                act => {
                    let (ours, theirs) = tokio::io::duplex(1 << 20);
                    lock(&fake.links).push(start(theirs, Arc::new(Serve(act, Arc::default()))));
                    Ok(start(ours, handler))
                }
            }
        })
    }

    fn instance(&self) -> Instance {
        Instance([1; 16])
    }

    fn address(&self) -> String {
        "fake".to_owned()
    }
}

/// What it does, and whether it has welcomed the host.
struct Serve(Act, Arc<AtomicBool>);

impl Handler for Serve {
    fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
        let (act, welcomed) = (self.0.clone(), Arc::clone(&self.1));
        Box::pin(async move {
            let welcome = ManagerReply::Welcome { host: "h".parse().unwrap(), now: Manual::BEGINS_UNIX_MS };
            let reply = match (codec::decode::<_, MESSAGE_BYTES_MAX>(&body).unwrap(), act) {
                (HostRequest::Hello { .. }, Act::Old) => {
                    welcomed.store(true, Ordering::Release);
                    welcome
                }
                (_, Act::Old) if !welcomed.load(Ordering::Acquire) => {
                    ManagerReply::Fault(Fault::BadRequest("a host says Hello first".to_owned()))
                }
                (HostRequest::HelloFrom { .. }, Act::Welcome | Act::ThrowOut) => welcome,
                (HostRequest::HelloFrom { .. }, Act::Answer(reply)) => reply,
                (HostRequest::Hello { .. } | HostRequest::HelloFrom { .. }, _) => std::future::pending().await,
                _ => ManagerReply::Done,
            };
            // The connection may be over.
            let _ = answer.finish(&reply).await;
        })
    }
}

struct Fixture {
    time: Arc<Manual>,
    clock: Clock,
    fake: Arc<Fake>,
    lane: Arc<Lane>,
    facts: Arc<Mutex<LinkFacts>>,
}

/// A lane that is kept up; must be called in a runtime.
fn fixture(role: Role, acts: impl IntoIterator<Item = Act>) -> Fixture {
    let (time, clock) = Manual::new();
    let (fake, lane, facts) = (Fake::new(acts), Lane::new(role, clock.clone()), Arc::default());
    let dial = Arc::new(FakeDial(Arc::clone(&fake)));
    tokio::spawn(Arc::clone(&lane).keep_up(dial, Arc::new(RefuseAll), Arc::clone(&facts)));
    Fixture { time, clock, fake, lane, facts }
}

impl Fixture {
    /// Sits out the pause before the next dial; returns how long it was.
    async fn pause(&self, at_most: Duration) -> Duration {
        let least = self.time.pass(|left| left == PAUSE_MIN).await;
        least + self.time.pass(|left| left <= at_most).await
    }

    async fn up(&self) {
        let mut connections = self.lane.connections();
        connections.wait_for(Option::is_some).await.unwrap();
        while lock(&self.facts).connected_since.is_none() && self.lane.role == Role::Control {
            tokio::task::yield_now().await;
        }
    }

    fn last_error(&self) -> Option<String> {
        lock(&self.facts).last_error.clone()
    }

    fn ask(&self, demand: bool, patience: Duration) -> tokio::task::JoinHandle<Result<ManagerReply, Fault>> {
        let (lane, deadline) = (Arc::clone(&self.lane), self.clock.now() + patience);
        tokio::spawn(async move {
            let _user = lane.user();
            lane.request(demand, &HostRequest::ExportList { have: vec![] }, |_| (), deadline).await
        })
    }
}

#[test]
fn pauses_double_up_to_the_longest_and_a_good_connection_begins_anew() {
    let mut backoff = Backoff::default();
    let millis: Vec<u128> = (0..10).map(|_| backoff.failed().as_millis()).collect();
    assert_eq!(millis, [200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000]);
    assert_eq!(backoff.lost(STEADY), FIRST_PAUSE);
    assert_eq!(backoff.failed(), PAUSE_MIN, "it was a good one");
    let thrown_out: Vec<u128> = (0..7).map(|_| backoff.lost(STEADY - Duration::from_millis(1)).as_millis()).collect();
    assert_eq!(thrown_out, [1_000, 1_000, 1_600, 3_200, 6_400, 12_800, 25_600]);
}

#[test]
fn hosts_come_back_spread_over_the_whole_pause() {
    let pause = Duration::from_secs(30);
    let tenths: std::collections::BTreeSet<u64> = (0..500).map(|_| spread(pause).as_secs() / 3).collect();
    assert_eq!(tenths, (0..10).collect());
}

#[tokio::test]
async fn a_manager_that_is_away_is_dialled_ever_more_seldom() {
    let fixture = fixture(Role::Control, [Act::Refuse]);
    let mut expected = Backoff::default();
    for dial in 1..12 {
        fixture.fake.dialled(dial).await;
        assert_eq!(fixture.fake.dials(), dial, "nobody dials before the pause is over");
        assert_eq!(fixture.last_error().as_deref(), Some("cannot connect to fake: switched off"));
        fixture.pause(expected.failed()).await;
    }
}

#[tokio::test]
async fn a_demand_ends_the_pause_but_never_makes_it_shorter_than_the_shortest() {
    let fixture = fixture(Role::Control, [Act::Refuse, Act::Refuse, Act::Refuse, Act::Refuse, Act::Welcome]);
    let mut expected = Backoff::default();
    for dial in 1..4 {
        fixture.fake.dialled(dial).await;
        fixture.pause(expected.failed()).await;
    }
    fixture.fake.dialled(4).await;
    let asked = fixture.ask(true, Duration::from_secs(60));
    fixture.time.pass(|left| left == PAUSE_MIN).await;
    assert!(asked.await.unwrap().is_ok());
    assert_eq!(fixture.fake.dials(), 5);
}

#[tokio::test]
async fn what_nobody_waits_for_sits_the_pause_out() {
    let fixture = fixture(Role::Bulk, [Act::Refuse, Act::Welcome]);
    let asked = fixture.ask(false, Duration::from_secs(60));
    fixture.fake.dialled(1).await;
    fixture.time.pass(|left| left == PAUSE_MIN).await;
    fixture.time.waiting(|left| left <= PAUSE_MIN).await;
    assert_eq!(fixture.fake.dials(), 1);
    fixture.time.pass(|left| left <= PAUSE_MIN).await;
    assert!(asked.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_request_ends_at_its_deadline_and_says_why_there_is_no_connection() {
    let fixture = fixture(Role::Control, [Act::Hang]);
    let asked = fixture.ask(true, Duration::from_secs(3));
    fixture.time.pass(|left| left == Duration::from_secs(3)).await;
    assert_eq!(asked.await.unwrap(), Err(Fault::Unavailable("the manager has not answered yet".to_owned())));
    fixture.time.pass(|left| left == DIAL_DEADLINE - Duration::from_secs(3)).await;
    fixture.time.waiting(|left| left == PAUSE_MIN).await;
    let asked = fixture.ask(true, Duration::from_millis(1));
    fixture.time.pass(|left| left == Duration::from_millis(1)).await;
    let said = "no connection to the manager: no answer within 10 s";
    assert_eq!(asked.await.unwrap(), Err(Fault::Unavailable(said.to_owned())));
}

#[tokio::test]
async fn a_manager_that_never_greets_does_not_collect_connections() {
    let fixture = fixture(Role::Control, [Act::Mute, Act::Welcome]);
    fixture.fake.dialled(1).await;
    let mute = loop {
        if let Some(link) = lock(&fixture.fake.links).first().cloned() {
            break link;
        }
        tokio::task::yield_now().await;
    };
    fixture.time.pass(|left| left == DIAL_DEADLINE).await;
    // The host lets go of it: the manager's side sees the end.
    tokio::time::timeout(Duration::from_secs(20), mute.closed()).await.expect("the connection stays open");
    assert_eq!(fixture.last_error().as_deref(), Some("no answer within 10 s"));
    fixture.pause(PAUSE_MIN).await;
    fixture.up().await;
    assert_eq!(fixture.last_error(), None);
}

#[tokio::test]
async fn who_is_refused_hears_why_and_comes_again() {
    let refusal = Act::Answer(ManagerReply::Fault(Fault::Refused("this host was revoked".to_owned())));
    let fixture = fixture(Role::Control, [refusal, Act::Answer(ManagerReply::Done), Act::Welcome]);
    fixture.time.waiting(|left| left == PAUSE_MIN).await;
    assert_eq!(fixture.last_error().as_deref(), Some("the manager refused this host: this host was revoked"));
    tokio::time::timeout(Duration::from_secs(20), fixture.fake.link().closed()).await.unwrap();
    fixture.pause(PAUSE_MIN).await;
    fixture.time.waiting(|left| left == PAUSE_MIN).await;
    assert_eq!(fixture.last_error().as_deref(), Some("the manager answered Hello with something else"));
    fixture.pause(PAUSE_MIN * 2).await;
    fixture.up().await;
    let facts = lock(&fixture.facts).clone();
    assert_eq!((facts.last_error, facts.connections), (None, 1));
    assert_eq!(facts.connected_since, Some(fixture.clock.unix_ms()));
}

#[tokio::test]
async fn a_manager_that_throws_everybody_out_is_not_dialled_without_end() {
    for role in [Role::Control, Role::Bulk] {
        let fixture = fixture(role, [Act::ThrowOut]);
        let _user = fixture.lane.user();
        fixture.lane.needed.notify_one();
        let mut expected = Backoff::default();
        for dial in 1..8 {
            fixture.fake.dialled(dial).await;
            fixture.up().await;
            fixture.fake.link().close("thrown out");
            fixture.pause(expected.lost(Duration::ZERO)).await;
        }
    }
}

#[tokio::test]
async fn after_a_good_connection_a_host_is_back_within_moments() {
    let fixture = fixture(Role::Control, [Act::Refuse, Act::Refuse, Act::Refuse, Act::Welcome]);
    let mut expected = Backoff::default();
    for dial in 1..4 {
        fixture.fake.dialled(dial).await;
        fixture.pause(expected.failed()).await;
    }
    fixture.up().await;
    fixture.time.advance(STEADY);
    fixture.fake.link().close("the manager is restarted");
    fixture.pause(FIRST_PAUSE).await;
    fixture.up().await;
    assert_eq!(lock(&fixture.facts).connections, 2);
}

#[tokio::test]
async fn the_bulk_lane_is_up_only_while_it_is_used() {
    let fixture = fixture(Role::Bulk, [Act::Welcome]);
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.fake.dials(), 0);
    assert!(fixture.ask(false, Duration::from_secs(60)).await.unwrap().is_ok());
    let user = fixture.lane.user();
    fixture.time.pass(|left| left == BULK_IDLE).await;
    fixture.time.waiting(|left| left == BULK_IDLE).await;
    assert_eq!(fixture.fake.link().closed_reason(), None, "somebody still uses it");
    drop(user);
    fixture.time.pass(|left| left == BULK_IDLE).await;
    tokio::time::timeout(Duration::from_secs(20), fixture.fake.link().closed()).await.unwrap();
    // Whoever comes next does not wait for anything: no time passes.
    assert!(fixture.ask(false, Duration::from_secs(60)).await.unwrap().is_ok());
    assert_eq!(fixture.fake.dials(), 2);
}

#[tokio::test]
async fn a_lane_that_is_ended_lets_go_and_dials_no_more() {
    let fixture = fixture(Role::Control, [Act::Welcome]);
    fixture.up().await;
    fixture.lane.end();
    let reason = tokio::time::timeout(Duration::from_secs(20), fixture.fake.link().closed()).await;
    assert!(reason.is_ok());
    fixture.time.advance(Duration::from_secs(3600));
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.fake.dials(), 1);
}

#[tokio::test]
async fn a_manager_that_knows_no_machines_is_greeted_as_it_knows_it() {
    for role in [Role::Control, Role::Bulk] {
        let fixture = fixture(role, [Act::Old]);
        let asked = fixture.ask(true, Duration::from_secs(60));
        fixture.fake.dialled(1).await;
        // A demand waits, so this is all of the pause.
        fixture.time.pass(|left| left == PAUSE_MIN).await;
        let answer = asked.await.unwrap();
        assert_eq!(answer, Ok(ManagerReply::Done), "what went out behind the first greeting goes out again");
        assert_eq!(fixture.fake.dials(), 2);
    }
}
