use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use proto::ObjectId;
use proto::bulk::Encoding;
use proto::codec;
use proto::limits::MESSAGE_BYTES_MAX;
use proto::message::{HostReply, Instance, Making, ManagerRequest};
use proto::width;

use super::*;
use crate::net::{Answer, BoxFuture, NetError, start};

/// A manager in memory that can be switched off.
struct FakeManager {
    up: AtomicBool,
    dials: AtomicUsize,
    links: Mutex<Vec<Link>>,
}

impl FakeManager {
    fn new(up: bool) -> Arc<Self> {
        Arc::new(Self { up: AtomicBool::new(up), dials: AtomicUsize::new(0), links: Mutex::default() })
    }

    fn switch(&self, up: bool) {
        self.up.store(up, Ordering::SeqCst);
        if !up {
            self.links.lock().unwrap().drain(..).for_each(|link| link.close("the manager stops"));
        }
    }
}

struct FakeDial(Arc<FakeManager>);

impl Dial for FakeDial {
    fn dial(&self, handler: Arc<dyn Handler>) -> BoxFuture<Result<Link, NetError>> {
        let fake = Arc::clone(&self.0);
        Box::pin(async move {
            fake.dials.fetch_add(1, Ordering::SeqCst);
            if !fake.up.load(Ordering::SeqCst) {
                return Err(NetError::Connect { address: "fake".to_owned(), reason: "switched off".to_owned() });
            }
            let (ours, theirs) = tokio::io::duplex(1 << 20);
            fake.links.lock().unwrap().push(start(theirs, Arc::new(Serve)));
            Ok(start(ours, handler))
        })
    }

    fn instance(&self) -> Instance {
        Instance([1; 16])
    }

    fn address(&self) -> String {
        "fake".to_owned()
    }
}

struct Serve;

impl Handler for Serve {
    fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
        Box::pin(async move {
            let reply = match codec::decode::<_, MESSAGE_BYTES_MAX>(&body).unwrap() {
                HostRequest::Hello { .. } | HostRequest::HelloFrom { .. } => {
                    ManagerReply::Welcome { host: "h".parse().unwrap(), now: crate::clock::unix_ms() }
                }
                HostRequest::Manifest { tree } if tree == TreeId::of(b"secret") => {
                    ManagerReply::Fault(Fault::NotExported(tree.to_string()))
                }
                HostRequest::Manifest { .. } => {
                    let packed = zstd::encode_all(b"manifest".as_slice(), 1).unwrap();
                    answer.bulk(&packed[..5], packed[5..].to_vec()).await.unwrap();
                    ManagerReply::Sent(1)
                }
                HostRequest::Chunks { wants, .. } => {
                    for (sequence, want) in (0..).zip(&wants) {
                        let head = ChunkHead { sequence, encoding: Encoding::Raw, plain_bytes: want.count };
                        answer
                            .bulk(&head.encode(), vec![want.first.to_le_bytes()[0]; want.count as usize])
                            .await
                            .unwrap();
                    }
                    ManagerReply::Sent(width::count(wants.len()))
                }
                HostRequest::Delta { .. } => {
                    answer.event(&Making { elapsed_ms: 5_000 }).await.unwrap();
                    answer.event(&"what a later manager says").await.unwrap();
                    answer.bulk(b"de", b"lta".to_vec()).await.unwrap();
                    ManagerReply::Sent(1)
                }
                _ => ManagerReply::Done,
            };
            answer.finish(&reply).await.unwrap();
        })
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn connect(runtime: &tokio::runtime::Runtime, fake: &Arc<FakeManager>) -> Arc<ManagerLink> {
    let manager = ManagerLink::new(runtime.handle(), Clock::system(), Arc::new(FakeDial(Arc::clone(fake))));
    manager.start(Arc::new(RefuseAll));
    manager
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

#[test]
fn chunks_and_manifests_reach_blocking_callers_on_both_lanes() {
    let runtime = runtime();
    let fake = FakeManager::new(true);
    let manager = connect(&runtime, &fake);
    let tree = TreeId::of(b"t");
    assert_eq!(manager.manifest(&tree, soon()).unwrap(), b"manifest");
    let object = ObjectId::of(b"o");
    let wants = [ChunkRange { object, first: 3, count: 2 }, ChunkRange { object, first: 9, count: 1 }];
    for urgency in [Urgency::Demand, Urgency::Background] {
        let mut got = Vec::new();
        manager.chunks(&tree, &wants, urgency, soon(), &mut |head, bytes| got.push((head.sequence, bytes))).unwrap();
        assert_eq!(got, [(0, vec![3, 3]), (1, vec![9])]);
    }
    assert_eq!(fake.dials.load(Ordering::SeqCst), 2, "one connection for each lane");
    assert!(manager.bytes_fetched() > 3);
    assert!(matches!(manager.manifest(&TreeId::of(b"secret"), soon()), Err(UpstreamError::NotExported(_))));
    assert_eq!(manager.facts().host.unwrap().as_str(), "h");
}

#[test]
fn a_delta_that_is_still_being_made_gives_signs_of_life() {
    let runtime = runtime();
    let fake = FakeManager::new(true);
    let manager = connect(&runtime, &fake);
    let mut got = Vec::new();
    let (from, to) = (TreeId::of(b"from"), TreeId::of(b"to"));
    manager.delta(&from, &to, soon(), &mut |bytes| got.push(bytes.to_vec())).unwrap();
    assert_eq!(got, [b"".to_vec(), b"".to_vec(), b"delta".to_vec()]);
}

#[test]
fn the_link_comes_back_after_the_manager_did() {
    let runtime = runtime();
    let fake = FakeManager::new(true);
    let manager = connect(&runtime, &fake);
    let tree = TreeId::of(b"t");
    manager.manifest(&tree, soon()).unwrap();
    fake.switch(false);
    let gone = manager.manifest(&tree, Instant::now() + Duration::from_millis(50));
    assert!(matches!(gone, Err(UpstreamError::Unavailable(_))), "{gone:?}");
    let begun = Instant::now();
    while manager.facts().last_error.is_none() {
        assert!(begun.elapsed() < Duration::from_secs(10));
        std::thread::yield_now();
    }
    fake.switch(true);
    manager.manifest(&tree, soon()).unwrap();
    // The request went out with the greeting, so its answer may be here a moment before the greeting's is noted.
    let begun = Instant::now();
    while manager.facts().connected_since.is_none() {
        assert!(begun.elapsed() < Duration::from_secs(10));
        std::thread::yield_now();
    }
    let facts = manager.facts();
    assert_eq!(facts.last_error, None);
    assert_eq!(facts.connections, 2);
}

#[test]
fn the_managers_requests_reach_the_handler() {
    struct Host;
    impl Handler for Host {
        fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
            let request: ManagerRequest = codec::decode::<_, MESSAGE_BYTES_MAX>(&body).unwrap();
            assert_eq!(request, ManagerRequest::Agents);
            Box::pin(async move { answer.finish(&HostReply::Agents(vec![])).await.unwrap() })
        }
    }
    let runtime = runtime();
    let fake = FakeManager::new(true);
    let manager = ManagerLink::new(runtime.handle(), Clock::system(), Arc::new(FakeDial(Arc::clone(&fake))));
    manager.start(Arc::new(Host));
    runtime.block_on(async {
        manager.connections().wait_for(Option::is_some).await.unwrap();
        let link = fake.links.lock().unwrap()[0].clone();
        let reply = link.request(&ManagerRequest::Agents, |_| (), Duration::from_secs(5)).await;
        assert_eq!(reply, Ok(HostReply::Agents(vec![])));
    });
    manager.end();
}
