use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proto::codec;
use proto::frame::{FrameKind, frame};
use proto::width;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use super::*;

const SOON: Duration = Duration::from_secs(10);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Ask {
    Double(u32),
    Stream {
        frames: u32,
        bytes: u32,
    },
    Wait,
    Drop,
    /// Ask the asker to double this, and return that.
    Back(u32),
}

struct Server {
    link: std::sync::OnceLock<Link>,
    cancelled: mpsc::UnboundedSender<()>,
}

impl Handler for Server {
    fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
        let ask: Ask = codec::decode::<_, 64>(&body).unwrap();
        let (link, cancelled) = (self.link.get().cloned(), self.cancelled.clone());
        Box::pin(async move {
            match ask {
                Ask::Double(n) => answer.finish(&(n * 2)).await.unwrap(),
                Ask::Stream { frames, bytes } => {
                    for number in 0..frames {
                        answer.event(&number).await.unwrap();
                        answer.bulk(&number.to_le_bytes(), vec![7; bytes as usize]).await.unwrap();
                    }
                    answer.finish(&frames).await.unwrap();
                }
                Ask::Wait => {
                    answer.cancelled().await;
                    cancelled.send(()).unwrap();
                }
                Ask::Drop => drop(answer),
                Ask::Back(n) => {
                    let reply: u32 = link.unwrap().request(&Ask::Double(n), |_| {}, SOON).await.unwrap();
                    answer.finish(&reply).await.unwrap();
                }
            }
        })
    }
}

fn pair() -> (Link, Link, mpsc::UnboundedReceiver<()>) {
    let (client, server) = tokio::io::duplex(64 << 10);
    let (cancelled, receiver) = mpsc::unbounded_channel();
    let make = |link: &Link| -> Arc<dyn Handler> {
        let server = Server { link: std::sync::OnceLock::new(), cancelled: cancelled.clone() };
        server.link.set(link.clone()).ok();
        Arc::new(server)
    };
    let server = start_with(server, LinkLimits::default(), make);
    let client = start_with(client, LinkLimits::default(), make);
    (client, server, receiver)
}

#[tokio::test]
async fn many_requests_at_once_and_in_both_directions() {
    let (client, server, _cancelled) = pair();
    let asks = (0..1000u32).map(|n| {
        let client = client.clone();
        tokio::spawn(async move {
            let ask = if n % 2 == 0 { Ask::Double(n) } else { Ask::Back(n) };
            client.request::<_, u32>(&ask, |_| {}, SOON).await
        })
    });
    for (n, reply) in asks.collect::<Vec<_>>().into_iter().enumerate() {
        assert_eq!(reply.await.unwrap(), Ok(width::count(n) * 2));
    }
    assert_eq!(server.request::<_, u32>(&Ask::Double(4), |_| {}, SOON).await, Ok(8));
}

/// As many requests as there may be, whose answers nobody looks at yet: the peer may make this side keep 16 MiB.
#[tokio::test]
async fn what_nobody_has_looked_at_is_bounded_however_many_requests_it_answers() {
    const MIB: usize = 1 << 20;
    struct Counted(Arc<std::sync::atomic::AtomicUsize>);
    impl Handler for Counted {
        fn handle(&self, _body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
            let sent = Arc::clone(&self.0);
            Box::pin(async move {
                for _ in 0..10 {
                    answer.bulk(&[], vec![7; MIB]).await.unwrap();
                    sent.fetch_add(1, Ordering::SeqCst);
                }
                answer.finish(&10_u32).await.unwrap();
            })
        }
    }
    let (near, far) = tokio::io::duplex(64 << 10);
    let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let _server = start(far, Arc::new(Counted(Arc::clone(&sent))));
    let client = start(near, Arc::new(RefuseAll));
    let got = std::cell::Cell::new(0);
    let asks = (0..8).map(|n| {
        let (client, got) = (client.clone(), &got);
        Box::pin(async move {
            let count = |_| got.set(got.get() + 1);
            client.request::<_, u32>(&Ask::Double(n), count, SOON).await.unwrap()
        })
    });
    let mut asks: Vec<_> = asks.collect();
    for ask in &mut asks {
        std::future::poll_fn(|context| std::task::Poll::Ready(ask.as_mut().poll(context).is_ready())).await;
    }
    let mut before = usize::MAX;
    while before != sent.load(Ordering::SeqCst) {
        before = sent.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // What waits here, what waits there to be written, and one on the way.
    assert!((16..=22).contains(&before), "{before} MiB");
    let all = std::future::poll_fn(|context| {
        asks.retain_mut(|ask| ask.as_mut().poll(context).is_pending());
        if asks.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    });
    tokio::time::timeout(SOON, all).await.unwrap();
    assert_eq!(got.get(), 80);
}

#[tokio::test]
async fn a_stream_larger_than_every_buffer_arrives_in_order() {
    let (client, _server, _cancelled) = pair();
    let mut seen = Vec::new();
    let ask = Ask::Stream { frames: 40, bytes: 1 << 20 };
    let reply: u32 = client
        .request(
            &ask,
            |incoming| match incoming {
                Incoming::Event(body) => seen.push(codec::decode::<u32, 4>(&body).unwrap()),
                Incoming::Bulk(body) => {
                    assert_eq!(body.len(), (1 << 20) + 4);
                    assert_eq!(body[..4], seen.last().unwrap().to_le_bytes());
                }
            },
            SOON,
        )
        .await
        .unwrap();
    assert_eq!(reply, 40);
    assert_eq!(seen, (0..40).collect::<Vec<u32>>());
}

#[tokio::test]
async fn dropping_a_request_cancels_it_and_its_slot_comes_back() {
    let (client, _server, mut cancelled) = pair();
    for _ in 0..3 * link::REQUESTS_MAX {
        let late = client.request::<_, u32>(&Ask::Wait, |_| {}, Duration::from_millis(1)).await;
        assert_eq!(late, Err(NetError::Deadline(Duration::from_millis(1))));
        cancelled.recv().await.unwrap();
    }
    assert_eq!(client.request::<_, u32>(&Ask::Double(1), |_| {}, SOON).await, Ok(2));
}

#[tokio::test]
async fn an_answer_that_is_dropped_is_not_waited_for() {
    let (client, _server, _cancelled) = pair();
    assert_eq!(client.request::<_, u32>(&Ask::Drop, |_| {}, SOON).await, Err(NetError::Unanswered));
    assert_eq!(client.request::<_, u32>(&Ask::Double(1), |_| {}, SOON).await, Ok(2));
}

#[tokio::test]
async fn closing_fails_what_waits_and_tells_why() {
    let (client, server, mut cancelled) = pair();
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.request::<_, u32>(&Ask::Wait, |_| {}, SOON).await }
    });
    // Once this is answered the server has the first request too: it reads in order.
    while client.request::<_, u32>(&Ask::Double(1), |_| {}, SOON).await != Ok(2) {}
    server.close("for the test");
    assert_eq!(client.closed().await, "the peer closed it");
    assert!(matches!(waiting.await.unwrap(), Err(NetError::Closed(_))));
    cancelled.recv().await.unwrap();
    let error = server.request::<_, u32>(&Ask::Double(1), |_| {}, SOON).await;
    assert_eq!(error, Err(NetError::Closed("for the test".into())));
}

#[tokio::test]
async fn malformed_frames_end_the_connection() {
    let hostile: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        &frame(FrameKind::Response, 9, b"nobody asked"),
        &[&b"MFS\x01\x01\x00\x00\x00"[..], &[0; 8], &[0xff; 4]].concat(),
        &[&b"MFS\x01\x09\x00\x00\x00"[..], &[0; 12]].concat(),
        b"MFS\x01\x01",
    ];
    for bytes in hostile {
        let (mut peer, ours) = tokio::io::duplex(1024);
        let link = start(ours, Arc::new(RefuseAll));
        peer.write_all(bytes).await.unwrap();
        peer.shutdown().await.unwrap();
        let reason = tokio::time::timeout(SOON, link.closed()).await.unwrap();
        assert_ne!(reason, "the peer closed it", "{bytes:?}");
    }
}

#[tokio::test]
async fn a_peer_with_too_many_or_too_large_requests_is_cut_off() {
    struct Stall(Arc<AtomicBool>);
    impl Handler for Stall {
        fn handle(&self, _body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
            self.0.store(true, Ordering::SeqCst);
            Box::pin(async move { answer.cancelled().await })
        }
    }
    let limits = LinkLimits { requests_max: 2, request_bytes_max: 10 };
    for (bytes, expected) in [
        ((1..4).flat_map(|n| frame(FrameKind::Request, n, b"x")).collect::<Vec<u8>>(), "more than 2 requests"),
        (frame(FrameKind::Request, 1, &[0; 11]), "11 bytes; 10 are allowed"),
    ] {
        let (mut peer, ours) = tokio::io::duplex(1024);
        let link = start_with(ours, limits, |_| Arc::new(Stall(Arc::default())));
        peer.write_all(&bytes).await.unwrap();
        let reason = tokio::time::timeout(SOON, link.closed()).await.unwrap();
        assert!(reason.contains(expected), "{reason}");
    }
}

#[tokio::test]
async fn a_socket_path_may_be_long_and_stale() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("d".repeat(120)).join("x.sock");
    drop(bind_unix(&path).unwrap());
    let listener = bind_unix(&path).unwrap();
    assert_eq!(bind_unix(&path).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    // The refusal above was itself a connection.
    let (_probe, _) = listener.accept().await.unwrap();
    let (client, server) = tokio::join!(connect_unix(&path), listener.accept());
    let (server, _) = server.unwrap();
    assert!(peer_is_trusted(&server).unwrap());
    start(server, Arc::new(RefuseAll));
    let client = start(client.unwrap(), Arc::new(RefuseAll));
    assert_eq!(client.request::<_, u32>(&1u32, |_| {}, SOON).await, Err(NetError::Unanswered));
}

#[tokio::test]
async fn a_manager_whose_certificate_is_out_of_its_time_is_named_as_that() {
    use std::time::SystemTime;
    let (day, now) = (Duration::from_secs(24 * 3600), SystemTime::now());
    assert!(said_of_a_server_valid(now - 2 * day, now - day).await.contains("has expired"));
    assert!(said_of_a_server_valid(now + day, now + 2 * day).await.contains("not valid yet"));
}

/// What a host says of a manager whose certificate is valid from and until then.
async fn said_of_a_server_valid(from: std::time::SystemTime, until: std::time::SystemTime) -> String {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let (authority_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let authority_pem = authority.self_signed(&authority_key).unwrap().pem();
    let mut params = CertificateParams::new([tls::MANAGER_NAME.to_owned()]).unwrap();
    (params.not_before, params.not_after) = (from.into(), until.into());
    let certificate = params.signed_by(&key, &Issuer::new(authority, authority_key)).unwrap().pem();
    let identity = TlsIdentity { certificate, key: key.serialize_pem(), authority: authority_pem };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let config = server_config(&identity).unwrap();
    tokio::spawn(async move { accept(listener.accept().await.unwrap().0, config).await.map(drop) });
    connect(&address, client_config(&identity).unwrap()).await.unwrap_err().to_string()
}
