use manager_fs::manager::admin::{AdminReply, Long, PublishOrder, Quick};
use manager_fs::net::Incoming;
use proto::bulk::{ChunkHead, Encoding};
use proto::message::{ChunkRange, Fault, HostReport, HostRequest, ManagerReply};
use proto::width;
use proto::{ChunkId, Manifest, ObjectId, TreeId};

use crate::fixture::{FakeHost, Fixture, SOON};

async fn manifest(host: &FakeHost, tree: TreeId) -> Result<Manifest, Fault> {
    let mut bytes = Vec::new();
    let on = |incoming| match incoming {
        Incoming::Bulk(part) => bytes.extend(part),
        Incoming::Event(_) => panic!("event"),
    };
    match host.link.request(&HostRequest::Manifest { tree }, on, SOON).await.unwrap() {
        ManagerReply::Sent(frames) => assert!(frames > 0),
        ManagerReply::Fault(fault) => return Err(fault),
        other => panic!("{other:?}"),
    }
    let plain = zstd::stream::decode_all(bytes.as_slice()).unwrap();
    Ok(Manifest::decode(&plain, &tree).unwrap())
}

async fn chunks(host: &FakeHost, tree: TreeId, wants: Vec<ChunkRange>) -> Result<Vec<Vec<u8>>, Fault> {
    let mut chunks = Vec::new();
    let on = |incoming| {
        let Incoming::Bulk(body) = incoming else { panic!("event") };
        let (head, stored) = ChunkHead::split(&body).unwrap();
        assert_eq!(head.sequence as usize, chunks.len());
        let plain = match head.encoding {
            Encoding::Raw => stored.to_vec(),
            Encoding::Zstd => zstd::bulk::decompress(stored, head.plain_bytes as usize).unwrap(),
        };
        assert_eq!(plain.len(), head.plain_bytes as usize);
        chunks.push(plain);
    };
    match host.link.request(&HostRequest::Chunks { tree, wants }, on, SOON).await.unwrap() {
        ManagerReply::Sent(count) => assert_eq!(count as usize, chunks.len()),
        ManagerReply::Fault(fault) => return Err(fault),
        other => panic!("{other:?}"),
    }
    Ok(chunks)
}

#[tokio::test]
async fn a_host_sees_and_fetches_what_is_exported_to_it_and_nothing_else() {
    let fixture = Fixture::new().await;
    let content: Vec<u8> =
        (0..3_000_000u32).flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 8).to_le_bytes()).collect();
    let tree = fixture.publish("data-agent@1.0", &content).await;
    let secret = fixture.publish("data-agent@2.0", b"secret").await;
    let mut host = fixture.host("web-1").await;
    assert_eq!(host.exports().await, Vec::<String>::new());
    assert!(matches!(manifest(&host, tree).await, Err(Fault::NotExported(_))));

    fixture.export("data-agent@1.0", &["web-1"]).await;
    tokio::time::timeout(SOON, host.exports_changed.recv()).await.unwrap().unwrap();
    assert_eq!(host.exports().await, ["data-agent@1.0"]);
    let found = manifest(&host, tree).await.unwrap();
    let object = found.objects.iter().find(|object| object.id == ObjectId::of(&content)).unwrap();
    let all = ChunkRange { object: object.id, first: 0, count: width::count(object.chunks.len()) };
    let got = chunks(&host, tree, vec![all]).await.unwrap();
    assert!(got.iter().zip(&object.chunks).all(|(plain, id)| ChunkId::of(plain) == *id));
    assert_eq!(got.concat(), content);

    // By the id of a tree, and of an object, that this host may not see; the answer is that of a tree that is nowhere.
    assert!(matches!(manifest(&host, secret).await, Err(Fault::NotExported(_))));
    assert!(matches!(manifest(&host, TreeId::of(b"nowhere")).await, Err(Fault::NotExported(_))));
    let foreign = ChunkRange { object: ObjectId::of(b"secret"), first: 0, count: 1 };
    assert!(matches!(chunks(&host, tree, vec![foreign]).await, Err(Fault::NotExported(_))));
    assert!(matches!(chunks(&host, secret, vec![foreign]).await, Err(Fault::NotExported(_))));
    for (first, count) in [(0, 0), (0, u32::MAX), (u32::MAX, 2), (all.count, 1)] {
        let wrong = chunks(&host, tree, vec![ChunkRange { first, count, ..all }]).await;
        assert!(matches!(wrong, Err(Fault::BadRequest(_))), "{first} {count}: {wrong:?}");
    }
}

#[tokio::test]
async fn groups_export_to_their_members_now_and_later() {
    let fixture = Fixture::new().await;
    let tree = fixture.publish("data-agent@1.0", b"one").await;
    let mut host = fixture.host("web-1").await;
    let none = Quick::Export("data-agent@1.0".parse().unwrap(), vec!["@web".parse().unwrap()]);
    assert!(fixture.ask(none).await.unwrap_err().contains("group 'web'"));
    fixture.ask(Quick::GroupAdd("web".parse().unwrap(), vec![])).await.unwrap();
    fixture.export("data-agent@1.0", &["@web"]).await;
    assert!(manifest(&host, tree).await.is_err());
    fixture.ask(Quick::GroupAdd("web".parse().unwrap(), vec![host.name.clone()])).await.unwrap();
    tokio::time::timeout(SOON, host.exports_changed.recv()).await.unwrap().unwrap();
    manifest(&host, tree).await.unwrap();
    fixture.ask(Quick::GroupRemove("web".parse().unwrap(), vec![host.name.clone()])).await.unwrap();
    assert!(manifest(&host, tree).await.is_err());
    fixture.ask(Quick::GroupDelete("web".parse().unwrap())).await.unwrap();
    let AdminReply::Generations(all) = fixture.ask(Quick::Generations(None)).await.unwrap() else { panic!() };
    assert_eq!(all[0].exports, []);
}

#[tokio::test]
async fn what_is_exported_before_a_host_enrols_is_there_when_it_does() {
    let fixture = Fixture::new().await;
    fixture.publish("data-agent@1.0", b"one").await;
    fixture.publish("data-agent@2.0", b"two").await;
    let name: proto::HostName = "web-1".parse().unwrap();
    let export = Quick::Export("data-agent@1.0".parse().unwrap(), vec!["web-1".parse().unwrap()]);
    let AdminReply::Changed(changed) = fixture.ask(export).await.unwrap() else { panic!() };
    assert_eq!((changed.targets.len(), &changed.not_enrolled), (1, &vec![name.clone()]));
    let group = Quick::GroupAdd("web".parse().unwrap(), vec![name.clone()]);
    let AdminReply::Changed(changed) = fixture.ask(group).await.unwrap() else { panic!() };
    assert_eq!(changed.not_enrolled, [name]);
    fixture.export("data-agent@2.0", &["@web"]).await;

    let host = fixture.host("web-1").await;
    assert_eq!(host.exports().await, ["data-agent@1.0", "data-agent@2.0"]);
    let export = Quick::Export("data-agent@1.0".parse().unwrap(), vec!["web-1".parse().unwrap()]);
    let AdminReply::Changed(changed) = fixture.ask(export).await.unwrap() else { panic!() };
    assert!(changed.targets.is_empty() && changed.not_enrolled.is_empty(), "{changed:?}");
}

#[tokio::test]
async fn an_export_is_not_taken_back_while_the_generation_is_attached() {
    let fixture = Fixture::new().await;
    let tree = fixture.publish("data-agent@1.0", b"one").await;
    let host = fixture.host("web-1").await;
    fixture.export("data-agent@1.0", &["web-1"]).await;
    host.report(HostReport::Attached(vec![tree])).await;
    let generation: proto::GenerationRef = "data-agent@1.0".parse().unwrap();
    let unexport =
        |force| Quick::Unexport { generation: generation.clone(), targets: vec!["web-1".parse().unwrap()], force };
    let refused = fixture.ask(unexport(false)).await.unwrap_err();
    assert!(refused.contains("attached on web-1"), "{refused}");
    assert!(fixture.ask(Quick::Unpublish(generation.clone())).await.unwrap_err().contains("exported"));
    let AdminReply::Changed(changed) = fixture.ask(unexport(true)).await.unwrap() else { panic!() };
    assert_eq!(changed.targets, ["web-1".parse().unwrap()]);
    assert_eq!(host.exports().await, Vec::<String>::new());
    assert!(fixture.ask(Quick::Unpublish(generation.clone())).await.unwrap_err().contains("attached"));
    // Collected only when no generation names it and no host has it attached.
    host.report(HostReport::Attached(vec![])).await;
    fixture.ask(Quick::Unpublish(generation)).await.unwrap();
    let AdminReply::Collected(gone) = fixture.ask(Long::Gc { dry_run: false }).await.unwrap() else { panic!() };
    assert_eq!((gone.manifests_removed, gone.packs_removed), (1, 1));
}

#[tokio::test]
async fn publishing_again_is_nothing_and_something_else_is_refused() {
    let fixture = Fixture::new().await;
    let tree = fixture.publish("data-agent@1.0", b"one").await;
    let source = fixture.directory.path().join("source-data-agent@1.0");
    let order = |entry_point: Option<&str>| PublishOrder {
        product: "data-agent".parse().unwrap(),
        version: "1.0".parse().unwrap(),
        source: PublishOrder::source_bytes(&source),
        onto: None,
        entry_point: entry_point.map(Into::into),
        chunk_bytes: None,
        strict: false,
    };
    let AdminReply::Published(again) = fixture.ask(Long::Publish(order(Some("bin/agent")))).await.unwrap() else {
        panic!()
    };
    assert!(again.already && again.records[0].tree == tree);
    std::fs::write(source.join("bin/agent"), b"other").unwrap();
    let refused = fixture.ask(Long::Publish(order(Some("bin/agent")))).await.unwrap_err();
    assert!(refused.contains("published already, as tree"), "{refused}");
    // The same tree under another name stands for two generations: its id alone does not say which.
    let twin = fixture.publish("data-agent@1.1", b"one");
    let twin = twin.await;
    if twin == tree {
        let show = Quick::Show(tree.to_hex()[..12].parse().unwrap());
        let ambiguous = fixture.ask(show).await.unwrap_err();
        assert!(ambiguous.contains("data-agent@1.0") && ambiguous.contains("data-agent@1.1"), "{ambiguous}");
    }
}

#[tokio::test]
async fn a_publication_whose_asker_goes_away_stays_invisible() {
    let fixture = Fixture::new().await;
    let source = fixture.directory.path().join("large");
    std::fs::create_dir(&source).unwrap();
    let mut noise = 1u64;
    for file in 0..64 {
        let bytes: Vec<u8> = (0..1_000_000)
            .map(|_| {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (noise >> 33).to_le_bytes()[0]
            })
            .collect();
        std::fs::write(source.join(file.to_string()), bytes).unwrap();
    }
    let order = PublishOrder {
        product: "large".parse().unwrap(),
        version: "1".parse().unwrap(),
        source: PublishOrder::source_bytes(&source),
        onto: None,
        entry_point: None,
        chunk_bytes: None,
        strict: false,
    };
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let mut begun = Some(begun);
    {
        let publishing = fixture.ask_with(Long::Publish(order), |_| {
            begun.take().into_iter().for_each(|begun| begun.send(()).unwrap_or(()));
        });
        tokio::select! {
            done = publishing => panic!("it ended before it could be interrupted: {done:?}"),
            _ = has_begun => {}
        }
    }
    let AdminReply::Generations(none) = fixture.ask(Quick::Generations(None)).await.unwrap() else { panic!() };
    assert!(none.is_empty());
}

#[tokio::test]
async fn a_host_is_sent_each_record_once() {
    let fixture = Fixture::new().await;
    let host = fixture.host("web-1").await;
    let mut have: Vec<[u8; 32]> = Vec::new();
    let mut numbers = Vec::new();
    for (version, content) in [("data-agent@1.0", b"one".as_slice()), ("data-agent@2.0", b"two")] {
        fixture.publish(version, content).await;
        fixture.export(version, &["web-1"]).await;
        let request = HostRequest::ExportList { have: have.clone() };
        let ManagerReply::ExportList { number, ids, records } = host.request(request).await else { panic!() };
        assert_eq!((ids.len(), records.len()), (have.len() + 1, 1), "{version}");
        have.extend(records.iter().map(|bytes| proto::SignedRecord::id_of(bytes)));
        numbers.push(number);
    }
    let ManagerReply::ExportList { number, ids, records } = host.request(HostRequest::ExportList { have }).await
    else {
        panic!()
    };
    assert!(records.is_empty() && ids.len() == 2 && number == numbers[1] && numbers[0] < numbers[1]);
}
