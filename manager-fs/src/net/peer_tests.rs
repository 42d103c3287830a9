//! One side of a connection against a peer that sends whatever it likes.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proto::codec;
use proto::frame::{FrameHeader, FrameKind, frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// A test that takes longer waits for ever.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// Answers every request with its own bytes, after an event and a bulk frame of them.
struct Echo;

impl Handler for Echo {
    fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
        Box::pin(async move {
            let told = async {
                answer.event(&body).await?;
                answer.bulk(b"head", body.clone()).await
            };
            // The peer may have cancelled, or be gone.
            if told.await.is_ok() {
                let _ = answer.finish(&body).await;
            }
        })
    }
}

/// What a peer puts on the line.
#[derive(Debug, Clone)]
enum Sent {
    Bytes(Vec<u8>),
    Frame {
        kind: FrameKind,
        request: u64,
        body: Vec<u8>,
    },
    /// A header that promises more or less than comes.
    Promise {
        kind: FrameKind,
        request: u64,
        length: usize,
        body: Vec<u8>,
    },
}

impl Sent {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Sent::Bytes(bytes) => bytes.clone(),
            Sent::Frame { kind, request, body } => frame(*kind, *request, body),
            Sent::Promise { kind, request, length, body } => {
                [&FrameHeader { kind: *kind, request: *request, length: *length }.encode()[..], body].concat()
            }
        }
    }
}

fn kind() -> impl Strategy<Value = FrameKind> {
    use FrameKind::{Bulk, Cancel, Event, Request, Response};
    prop::sample::select(vec![Request, Response, Event, Bulk, Cancel])
}

fn sent() -> impl Strategy<Value = Sent> {
    let body = || prop::collection::vec(any::<u8>(), 0..200);
    // Mostly the numbers that are in use.
    let request = || prop_oneof![4 => 0_u64..4, 1 => any::<u64>()];
    prop_oneof![
        1 => body().prop_map(Sent::Bytes),
        6 => (kind(), request(), body()).prop_map(|(kind, request, body)| Sent::Frame { kind, request, body }),
        1 => (kind(), request(), 0_usize..5_000, body())
            .prop_map(|(kind, request, length, body)| Sent::Promise { kind, request, length, body }),
    ]
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever comes: the connection ends with a reason, and whoever waits on it is told.
    #[test]
    fn a_peer_that_sends_anything_cannot_keep_anyone_waiting(all in prop::collection::vec(sent(), 0..20)) {
        runtime().block_on(async {
            let (ours, theirs) = tokio::io::duplex(1 << 20);
            let link = start(ours, Arc::new(Echo));
            let (mut reader, mut writer) = tokio::io::split(theirs);
            let asking = link.clone();
            let asked = tokio::spawn(async move {
                asking.request::<u32, Vec<u8>>(&7, |_| {}, Duration::from_secs(3600)).await
            });
            // Its number is known to the peer from here on.
            let mut first = [0; 1];
            reader.read_exact(&mut first).await.unwrap();
            let drained = tokio::spawn(async move { reader.read_to_end(&mut Vec::new()).await });
            for sent in &all {
                if writer.write_all(&sent.bytes()).await.is_err() {
                    break;
                }
            }
            let _ = writer.shutdown().await;
            let reason = tokio::time::timeout(ENDS_WITHIN, link.closed()).await.expect("it goes on");
            assert!(!reason.is_empty());
            // It may have been answered before the end.
            let _ = tokio::time::timeout(ENDS_WITHIN, asked).await.expect("the requester waits for ever");
            let refused = link.request::<u32, u32>(&7, |_| {}, ENDS_WITHIN).await;
            assert_eq!(refused, Err(NetError::Closed(reason)));
            drop(writer);
            let _ = tokio::time::timeout(ENDS_WITHIN, drained).await.expect("our side stays open");
        });
    }
}

#[tokio::test]
async fn what_is_cancelled_or_unknown_disturbs_no_other_request() {
    let (ours, mut theirs) = tokio::io::duplex(1 << 20);
    let link = start(ours, Arc::new(Echo));
    for request in 1..20 {
        // Of a number that was never used, and of one that was answered.
        theirs.write_all(&frame(FrameKind::Cancel, 1 << 40 | request, b"")).await.unwrap();
        theirs.write_all(&frame(FrameKind::Cancel, request - 1, b"")).await.unwrap();
        let body = vec![7; proto::width::index(request)];
        theirs.write_all(&frame(FrameKind::Request, request, &body)).await.unwrap();
        let encoded = codec::encode(&body).unwrap();
        let expected = [
            frame(FrameKind::Event, request, &encoded),
            frame(FrameKind::Bulk, request, &[b"head", &body[..]].concat()),
            frame(FrameKind::Response, request, &encoded),
        ]
        .concat();
        let mut got = vec![0; expected.len()];
        tokio::time::timeout(ENDS_WITHIN, theirs.read_exact(&mut got)).await.expect("no answer").unwrap();
        assert_eq!(got, expected, "{request}");
    }
    assert_eq!(link.closed_reason(), None);
}

#[tokio::test]
async fn an_answer_that_is_cut_off_anywhere_is_an_error_that_says_so() {
    let reply = frame(FrameKind::Response, 1, &codec::encode(&7_u32).unwrap());
    let event = frame(FrameKind::Event, 1, &codec::encode(&1_u32).unwrap());
    let whole = [event, reply].concat();
    for cut in 0..=whole.len() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let link = start(ours, Arc::new(RefuseAll));
        let asking = link.clone();
        let asked = tokio::spawn(async move { asking.request::<u32, u32>(&3, |_| {}, ENDS_WITHIN).await });
        let mut request = vec![0; frame(FrameKind::Request, 1, &codec::encode(&3_u32).unwrap()).len()];
        theirs.read_exact(&mut request).await.unwrap();
        theirs.write_all(&whole[..cut]).await.unwrap();
        drop(theirs);
        let answered = tokio::time::timeout(ENDS_WITHIN, asked).await.expect("it waits").unwrap();
        if cut == whole.len() {
            assert_eq!(answered, Ok(7));
        } else {
            let Err(NetError::Closed(reason)) = answered else { panic!("{cut}: {answered:?}") };
            assert!(reason.contains("the peer closed it"), "{cut}: {reason}");
        }
    }
}

#[tokio::test]
async fn a_peer_that_does_not_read_costs_a_bounded_amount_of_memory() {
    /// Sends for ever; tells how much.
    struct Flood(tokio::sync::watch::Sender<usize>);
    impl Handler for Flood {
        fn handle(&self, _body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
            let sent = self.0.clone();
            Box::pin(async move {
                while answer.bulk(&[], vec![0; 64 << 10]).await.is_ok() {
                    sent.send_modify(|sent| *sent += 64 << 10);
                }
            })
        }
    }
    let sent = tokio::sync::watch::Sender::new(0);
    let (ours, mut theirs) = tokio::io::duplex(1 << 16);
    let link = start(ours, Arc::new(Flood(sent.clone())));
    theirs.write_all(&frame(FrameKind::Request, 1, b"")).await.unwrap();
    let mut seen = sent.subscribe();
    // It goes on for as long as there is room, and then no more.
    while tokio::time::timeout(Duration::from_millis(300), seen.changed()).await.is_ok() {}
    let queued = *sent.borrow();
    assert!((1 << 20..6 << 20).contains(&queued), "{queued} bytes wait for a peer that reads nothing");
    // What it takes makes room for as much, so nothing was lost or stuck.
    let mut some = vec![0; 1 << 20];
    theirs.read_exact(&mut some).await.unwrap();
    tokio::time::timeout(ENDS_WITHIN, seen.changed()).await.expect("stuck").unwrap();
    drop(theirs);
    tokio::time::timeout(ENDS_WITHIN, link.closed()).await.expect("it goes on");
}

#[tokio::test]
async fn a_request_that_is_not_answered_in_time_ends_and_leaves_the_connection() {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let link = start(ours, Arc::new(RefuseAll));
    /// Never answers the first, and then every other.
    struct Slow(std::sync::atomic::AtomicBool);
    impl Handler for Slow {
        fn handle(&self, _body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
            let first = !self.0.swap(true, std::sync::atomic::Ordering::SeqCst);
            Box::pin(async move {
                if first {
                    answer.cancelled().await;
                }
                let _ = answer.finish(&1_u32).await;
            })
        }
    }
    start(theirs, Arc::new(Slow(false.into())));
    let short = Duration::from_millis(50);
    assert_eq!(link.request::<u32, u32>(&1, |_| {}, short).await, Err(NetError::Deadline(short)));
    assert_eq!(link.request::<u32, u32>(&1, |_| {}, ENDS_WITHIN).await, Ok(1), "the connection is none the worse");
}

#[tokio::test]
async fn an_answer_of_another_shape_is_refused_and_names_no_memory() {
    struct Odd;
    impl Handler for Odd {
        fn handle(&self, _body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
            // A list that claims to have more entries than bytes could hold.
            Box::pin(async move { answer.finish(&u64::MAX).await.unwrap() })
        }
    }
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let link = start(ours, Arc::new(RefuseAll));
    start(theirs, Arc::new(Odd));
    let odd = link.request::<u32, Vec<u64>>(&1, |_| {}, ENDS_WITHIN).await;
    assert!(matches!(odd, Err(NetError::Codec(_))), "{odd:?}");
    assert_eq!(link.closed_reason(), None, "the next request may be understood");
}

#[tokio::test]
async fn more_than_an_answer_may_have_is_refused_where_it_is_made() {
    struct Large;
    impl Handler for Large {
        fn handle(&self, _body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
            Box::pin(async move {
                let bulk = answer.bulk(&[0; 4], vec![0; proto::limits::BULK_BYTES_MAX]).await;
                assert!(matches!(bulk, Err(NetError::TooLarge { .. })), "{bulk:?}");
                let event = answer.event(&vec![0_u8; proto::limits::MESSAGE_BYTES_MAX + 1]).await;
                assert!(matches!(event, Err(NetError::TooLarge { .. })), "{event:?}");
                let finished = answer.finish(&vec![0_u8; proto::limits::MESSAGE_BYTES_MAX + 1]).await;
                assert!(matches!(finished, Err(NetError::TooLarge { .. })), "{finished:?}");
            })
        }
    }
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let link = start(ours, Arc::new(RefuseAll));
    start(theirs, Arc::new(Large));
    // Nothing of it went out, and the requester does not wait for what cannot come.
    assert_eq!(link.request::<u32, u32>(&1, |_| {}, ENDS_WITHIN).await, Err(NetError::Unanswered));
}
