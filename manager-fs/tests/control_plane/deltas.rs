use std::time::Duration;

use manager_fs::host::delta::{Arrived, Reader, make};
use manager_fs::manager::admin::{AdminReply, Long, Quick};
use manager_fs::net::Incoming;
use proto::message::{Fault, HostRequest, ManagerReply};
use proto::width;
use proto::{ObjectId, TreeId};

use crate::fixture::{FakeHost, Fixture};

/// Making one may take longer than an answer out of the store.
const DELTA_DEADLINE: Duration = Duration::from_secs(60);

async fn bulk(host: &FakeHost, request: HostRequest) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    let on = |incoming| match incoming {
        Incoming::Bulk(part) => bytes.extend(part),
        // A sign of life of a slow machine.
        Incoming::Event(_) => {}
    };
    match host.link.request(&request, on, DELTA_DEADLINE).await.unwrap() {
        ManagerReply::Sent(frames) => assert!(frames > 0),
        ManagerReply::Fault(fault) => return Err(fault),
        other => panic!("{other:?}"),
    }
    Ok(bytes)
}

#[tokio::test]
async fn a_host_gets_a_delta_between_two_trees_that_it_may_see() {
    let fixture = Fixture::new().await;
    let old: Vec<u8> = (0..200_000u32).flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 8).to_le_bytes()).collect();
    let new = [&old[300_000..], b"new code", &old[..300_000]].concat();
    let from = fixture.publish("data-agent@1.0", &old).await;
    let to = fixture.publish("data-agent@2.0", &new).await;
    let host = fixture.host("web-1").await;
    let delta = |from: TreeId, to: TreeId| bulk(&host, HostRequest::Delta { from, to });
    fixture.export("data-agent@2.0", &["web-1"]).await;
    assert!(matches!(delta(from, to).await, Err(Fault::NotExported(_))), "it would tell what the old tree has");
    assert!(matches!(delta(to, from).await, Err(Fault::NotExported(_))));
    fixture.export("data-agent@1.0", &["web-1"]).await;
    assert!(matches!(delta(to, to).await, Err(Fault::BadRequest(_))));

    let stream = delta(from, to).await.unwrap();
    assert!(stream.len() < 10_000, "{} bytes for moved content", stream.len());
    let old_manifest =
        zstd::stream::decode_all(bulk(&host, HostRequest::Manifest { tree: from }).await.unwrap().as_slice());
    let mut reader = Reader::new(from, to, old_manifest.unwrap()).unwrap();
    reader.push(&stream);
    let mut made = Vec::new();
    loop {
        match reader.arrived().unwrap().unwrap() {
            Arrived::Manifest(bytes) => assert_eq!(TreeId::of(&bytes), to),
            Arrived::End => break,
            Arrived::Frame(frame, stored) => {
                let trees = (reader.old(), reader.new_tree().unwrap());
                let mut read_old = |object: &proto::manifest::Object, offset: u64, into: &mut [u8]| {
                    assert_eq!(object.id, ObjectId::of(&old));
                    into.copy_from_slice(&old[width::index(offset)..width::index(offset) + into.len()]);
                    Ok(())
                };
                make(&frame, &stored, trees, &mut read_old, &mut |chunk| made.extend_from_slice(chunk.plain))
                    .unwrap();
            }
        }
    }
    assert_eq!(made, new);
    // The way back is made when it is asked for.
    assert!(delta(to, from).await.unwrap().len() < 10_000);

    // What is collected of all that is shown, each kind by itself.
    let (generation, targets) = ("data-agent@1.0".parse().unwrap(), vec!["web-1".parse().unwrap()]);
    fixture.ask(Quick::Unexport { generation, targets, force: true }).await.unwrap();
    fixture.ask(Quick::Unpublish("data-agent@1.0".parse().unwrap())).await.unwrap();
    let AdminReply::Collected(gone) = fixture.ask(Long::Gc { dry_run: false }).await.unwrap() else { panic!() };
    assert_eq!((gone.manifests_removed, gone.deltas_removed, gone.bundles_removed), (1, 2, 0));
}

/// What is still to be made is derived from what is stored: a manager that ended in the middle of it goes on.
#[tokio::test]
async fn a_delta_that_a_manager_did_not_come_to_is_made_after_the_next_start() {
    let mut fixture = Fixture::new().await;
    for version in 1..=3_u8 {
        fixture
            .publish(&format!("data-agent@{version}.0"), &[&tests::noise(7, 900_000)[..], &[version; 200]].concat())
            .await;
    }
    let deltas = fixture.directory.path().join("store/deltas");
    let made = async |count: usize| {
        for _ in 0..2000 {
            if tests::files_below(&deltas).len() == count {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("{} deltas of {count} were made", tests::files_below(&deltas).len());
    };
    made(2).await;
    fixture.stop().await;
    std::fs::remove_dir_all(&deltas).unwrap();
    fixture.start_again().await;
    made(2).await;
}
