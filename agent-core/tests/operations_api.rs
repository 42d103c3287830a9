//! What comes in at the operations socket, in whatever order and shape.

// Panicking is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{Read, Write};

use agent_core::internal::control::{Client, read_frame, write_frame};
use agent_core::internal::sys::socket;
use common::{Host, PATIENCE, Spec, tree};
use proto::agent::{AgentReply, AgentRequest, ChangeId, JobId, Outcome, Progress};
use proto::codec;
use proto::frame::{FrameKind, frame};
use proto::message::Fault;

fn host(arguments: &[&str]) -> Host {
    let host = Host::with_first(&Spec { probation_ms: common::PROBATION_MS, ..Spec::new("1.0", arguments) });
    host.wait_serving("1.0");
    host
}

#[test]
fn what_makes_no_sense_costs_one_connection_and_nothing_more() {
    let host = host(&[]);
    let mut garbage = vec![b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0; 64], frame(FrameKind::Bulk, 1, b"x")];
    // A length beyond the bound, and a frame that ends early.
    let mut long = frame(FrameKind::Request, 1, b"");
    long[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    garbage.push(long);
    for bytes in garbage {
        let mut stream = socket::connect(&host.paths.socket()).unwrap();
        stream.write_all(&bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer));
        assert!(answer.is_empty(), "{answer:?}");
    }
    // A frame in order with a body that is none: an answer, and the connection lives.
    let mut stream = socket::connect(&host.paths.socket()).unwrap();
    stream.write_all(&frame(FrameKind::Request, 7, &[0xff; 40])).unwrap();
    let answer = read_frame(&mut stream).unwrap().unwrap();
    assert_eq!(answer.request, 7);
    let reply: AgentReply = codec::decode::<_, 4096>(&answer.body).unwrap();
    assert!(matches!(reply, AgentReply::Fault(Fault::BadRequest(_))), "{reply:?}");
    write_frame(&stream, FrameKind::Request, 8, &AgentRequest::Status).unwrap();
    assert_eq!(read_frame(&mut stream).unwrap().unwrap().request, 8);
}

#[test]
fn one_connection_carries_many_requests() {
    let host = host(&["--unit-ms", "20"]);
    let mut stream = socket::connect(&host.paths.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write_frame(&stream, FrameKind::Request, 1, &Host::backup(1, 500)).unwrap();
    write_frame(&stream, FrameKind::Request, 2, &AgentRequest::Status).unwrap();
    let mut next = |kinds: &[FrameKind]| loop {
        let frame = read_frame(&mut stream).unwrap().unwrap();
        if kinds.contains(&frame.kind) {
            return frame;
        }
    };
    let status = next(&[FrameKind::Response]);
    assert_eq!(status.request, 2, "a long job does not hold up what comes after it");
    let progress = next(&[FrameKind::Event]);
    assert_eq!(progress.request, 1);
    assert_eq!(codec::decode::<Progress, 4096>(&progress.body).unwrap().version, "1.0");
    // The watcher goes, the job does not.
    let mut writer = socket::connect(&host.paths.socket()).unwrap();
    write_frame(&writer, FrameKind::Request, 1, &Host::backup(1, 500)).unwrap();
    writer.write_all(&frame(FrameKind::Cancel, 1, b"")).unwrap();
    loop {
        let frame = read_frame(&mut writer).unwrap().unwrap();
        if frame.kind == FrameKind::Response {
            let reply: AgentReply = codec::decode::<_, 4096>(&frame.body).unwrap();
            assert!(matches!(reply, AgentReply::Fault(Fault::Unavailable(_))), "{reply:?}");
            break;
        }
    }
    assert_eq!(host.status().jobs, [JobId(1)]);
    // Cancelling the job is another thing.
    assert_eq!(host.ask(&AgentRequest::Cancel { job: JobId(1) }), AgentReply::Done);
    assert!(matches!(host.finish(&Host::backup(1, 500)).0, Outcome::Cancelled(_)));
    let unknown = host.ask(&AgentRequest::Cancel { job: JobId(99) });
    assert!(matches!(unknown, AgentReply::Fault(Fault::NotFound(_))), "{unknown:?}");
}

/// Agents outlive the mount daemon's updates: a request of a later version is answered, and the connection goes on.
#[test]
fn a_request_that_this_agent_does_not_know_is_refused_and_the_next_one_answered() {
    let host = host(&[]);
    let mut stream = socket::connect(&host.paths.socket()).unwrap();
    for (number, request) in [(1, codec::encode(&999_u32).unwrap()), (2, vec![1, 2, 3])] {
        stream.write_all(&frame(FrameKind::Request, number, &request)).unwrap();
        let answer = read_frame(&mut stream).unwrap().unwrap();
        let reply: AgentReply = codec::decode::<_, 4096>(&answer.body).unwrap();
        let AgentReply::Fault(Fault::BadRequest(text)) = reply else { panic!("{reply:?}") };
        assert!(text.contains("not understood"), "{text}");
    }
    write_frame(&stream, FrameKind::Request, 3, &AgentRequest::Status).unwrap();
    let answer = read_frame(&mut stream).unwrap().unwrap();
    let reply: AgentReply = codec::decode::<_, 4096>(&answer.body).unwrap();
    assert!(matches!(reply, AgentReply::Status(_)), "{reply:?}");
}

#[test]
fn messages_out_of_order_or_unbelievable_change_nothing() {
    let host = host(&[]);
    let two = host.publish(&Spec::new("2.0", &[]));
    let change = ChangeId(3);
    let attach = AgentRequest::Attach { change, release: None, attach: tree("2.0"), lazy: false, retry_bad: false };
    for early in [&attach, &AgentRequest::Finish { change, drain_deadline_ms: 1 }] {
        let reply = host.ask(early);
        assert!(matches!(reply, AgentReply::Fault(Fault::BadRequest(_))), "{reply:?}");
    }
    let mut changed = two.clone();
    let version = changed.windows(3).position(|bytes| bytes == b"2.0").unwrap();
    changed[version] = b'4';
    let stranger = {
        let record = proto::SignedRecord::from_bytes(&two).unwrap();
        let key = ed25519_dalek::SigningKey::from_bytes(&[9; 32]);
        let record: proto::GenerationRecord = codec::decode::<_, 100_000>(&record.payload).unwrap();
        proto::SignedRecord::sign(&record, &key).unwrap().to_bytes().unwrap()
    };
    for (record, word) in [
        (changed, "changed after it was signed"),
        (stranger, "not trusted here"),
        (two[..two.len() / 2].to_vec(), "damaged"),
        (b"nothing of the kind".to_vec(), "not a generation record"),
    ] {
        let reply = host.ask(&AgentRequest::SaveMetadata { change, record });
        assert!(matches!(&reply, AgentReply::Fault(Fault::Refused(text)) if text.contains(word)), "{reply:?}");
    }
    assert!(!host.paths.ordered().exists());
    // Another tree than that of the record.
    let saved = host.ask(&AgentRequest::SaveMetadata { change, record: two });
    assert_eq!(saved, AgentReply::Done);
    assert!(host.paths.ordered().exists(), "it is on disk when the answer comes");
    let other = AgentRequest::Attach { change, release: None, attach: tree("9"), lazy: false, retry_bad: false };
    assert!(matches!(host.ask(&other), AgentReply::Fault(Fault::BadRequest(_))));
    let wrong =
        AgentRequest::Attach { change, release: Some(tree("9")), attach: tree("2.0"), lazy: false, retry_bad: false };
    assert!(matches!(host.ask(&wrong), AgentReply::Fault(Fault::Refused(_))));
    host.wait_serving("1.0");
}

#[test]
fn a_crowd_waits_and_is_served() {
    let host = host(&[]);
    // More than are served at once; they stay open and say nothing.
    let mut idle: Vec<_> = (0..300).map(|_| socket::connect(&host.paths.socket()).unwrap()).collect();
    let path = host.paths.socket();
    let late = std::thread::spawn(move || Client::ask::<_, AgentReply>(&path, &AgentRequest::Status, PATIENCE));
    // Whoever leaves makes room.
    while !late.is_finished() {
        idle.pop();
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(matches!(late.join().unwrap(), Ok(AgentReply::Status(_))));
}
