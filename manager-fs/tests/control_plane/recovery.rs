use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use manager_fs::manager::admin::{AdminReply, Quick};
use manager_fs::manager::control::{self, ControlError, State};
use manager_fs::manager::recover::{RecoverError, Recovered, recover};

use crate::fixture::{FakeHost, Fixture};

/// Waits until the copy of the decisions holds a host: it is written some time after a decision.
async fn copied(store: &Path, host: &str) {
    let holds = || fs::read_to_string(store.join("control.backup")).is_ok_and(|text| text.contains(host));
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the decisions are not copied");
}

/// What the manager knows is lost in this way, recovered, and it goes on with the hosts that it had.
async fn recovered_after(damage: impl Fn(&Path)) -> Recovered {
    let mut fixture = Fixture::new().await;
    let tree = fixture.publish("data-agent@1.0", b"one").await;
    fixture.export("data-agent@1.0", &["web-1"]).await;
    let host = fixture.host("web-1").await;
    let (store, identity) = (fixture.directory.path().join("store"), host.identity.clone());
    // The first copy is made at the start, before any of this.
    fixture.restart().await;
    copied(&store, "host/web-1").await;
    fixture.stop().await;
    damage(&store);
    let refused = fixture.try_start().await.unwrap_err();
    assert!(refused.contains("manager-fs recover"), "{refused}");
    let recovered = tokio::task::spawn_blocking({
        let store = store.clone();
        move || recover(&store)
    });
    let recovered = recovered.await.unwrap().unwrap();
    assert!(matches!(recover(&store), Err(RecoverError::NotDamaged(_))));
    fixture.start_again().await;
    let host = FakeHost::connect(&fixture.address, identity).await.unwrap();
    assert_eq!(host.exports().await, ["data-agent@1.0"]);
    // Numbers of records go on.
    let second = fixture.publish("data-agent@2.0", b"two").await;
    assert_ne!(second, tree);
    match fixture.ask(Quick::Show("data-agent@2.0".parse().unwrap())).await.unwrap() {
        AdminReply::Generation(view) => assert_eq!(view.record.sequence, 2),
        other => panic!("{other:?}"),
    }
    recovered
}

#[tokio::test]
async fn a_control_state_with_two_hundred_flipped_bits_is_built_anew() {
    let recovered = recovered_after(|store| {
        let path = store.join("control.redb");
        let mut bytes = fs::read(&path).unwrap();
        let step = bytes.len() / 200;
        (0..200).for_each(|at| bytes[at * step] ^= 1 << (at % 8));
        fs::write(&path, &bytes).unwrap();
    });
    let recovered = recovered.await;
    assert!(recovered.kept.is_some_and(|kept| kept.exists() || !kept.as_os_str().is_empty()));
    assert_eq!((recovered.damaged_lines, recovered.without_tree.len(), recovered.from_files.len()), (0, 0, 0));
}

/// What a control state knows of what was decided, and the keys of what it cannot read.
type Known = (BTreeSet<String>, BTreeSet<String>);

async fn known(store: &Path) -> Result<Known, ControlError> {
    let files = {
        let store = store.to_path_buf();
        tokio::task::spawn_blocking(move || control::open(&store)).await.unwrap()?
    };
    let state = State::open(Arc::clone(&files.store) as _, Arc::clone(&files.observations) as _).await?;
    let generations = state.generations().into_iter().map(|generation| generation.record.name());
    let exports =
        state.exports().into_iter().map(|export| format!("{}@{}>{}", export.product, export.version, export.target));
    let hosts = state.hosts().into_iter().map(|(host, record)| format!("{host} enrolled {}", record.enrolled));
    let groups = state.groups().into_iter().map(|(group, hosts)| format!("{group} {hosts:?}"));
    let all = generations.chain(exports).chain(hosts).chain(groups).collect();
    Ok((all, state.damaged().into_keys().collect()))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => copy(&entry.path(), &to),
            kind if kind.is_file() => drop(fs::copy(entry.path(), to).unwrap()),
            _ => {}
        }
    }
}

/// Flipped bits, one to some hundred of them, two hundred times: the state works, with what it cannot read named, or it is
/// refused with the command that mends it, and that brings everything back.
#[tokio::test]
async fn two_hundred_damaged_control_states_work_or_are_built_anew_whole() {
    let mut fixture = Fixture::new().await;
    fixture.publish("data-agent@1.0", b"one").await;
    fixture.publish("data-agent@2.0", b"two").await;
    fixture.ask(Quick::GroupAdd("web".parse().unwrap(), vec!["web-1".parse().unwrap()])).await.unwrap();
    fixture.export("data-agent@1.0", &["web-1", "@web"]).await;
    drop(fixture.host("web-1").await);
    fixture.restart().await;
    let store = fixture.directory.path().join("store");
    copied(&store, "host/web-1").await;
    fixture.stop().await;
    let (expected, damaged) = known(&store).await.unwrap();
    assert_eq!((expected.len(), damaged.len()), (6, 0), "{expected:?}");
    let broken = fixture.directory.path().join("broken");
    let (mut worked, mut mended) = (0, 0);
    for seed in 0..200_u64 {
        copy(&store, &broken);
        let path = broken.join("control.redb");
        let mut bytes = fs::read(&path).unwrap();
        let random = tests::noise::noise(seed, 8 * 128);
        let (flips, places) =
            (1 << (seed % 8), random.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())));
        for place in places.take(flips) {
            // Half of them where something is: the file has room at its end.
            let within = if seed % 2 == 0 { bytes.len() } else { bytes.len().min(64 << 10) };
            let at = proto::width::index(place / 8 % within as u64);
            bytes[at] ^= 1 << (place % 8);
        }
        fs::write(&path, &bytes).unwrap();
        match known(&broken).await {
            Ok((found, damaged)) => {
                assert!(found.is_subset(&expected), "seed {seed}: {found:?}");
                let missing = expected.difference(&found).count();
                assert!(
                    missing <= damaged.len(),
                    "seed {seed}: {missing} records are missing, and {damaged:?} are named"
                );
                worked += 1;
            }
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains("manager-fs recover"), "seed {seed}: {error}");
                recover(&broken).unwrap();
                assert_eq!(known(&broken).await.unwrap(), (expected.clone(), BTreeSet::new()), "seed {seed}");
                mended += 1;
            }
        }
        fs::remove_dir_all(&broken).unwrap();
    }
    println!("{worked} worked, {mended} were built anew");
    assert!(mended >= 20, "{mended} of 200 were noticed");
}

#[tokio::test]
async fn a_control_state_that_is_gone_is_built_anew() {
    let recovered = recovered_after(|store| fs::remove_file(store.join("control.redb")).unwrap()).await;
    assert_eq!((recovered.kept, recovered.records["host"], recovered.records["generation"]), (None, 1, 1));
}

/// Without the copy the records of generations are still there, with their trees.
#[tokio::test]
async fn generations_are_found_again_by_their_record_files_alone() {
    let mut fixture = Fixture::new().await;
    fixture.publish("data-agent@1.0", b"one").await;
    fixture.publish("data-agent@2.0", b"two").await;
    let store = fixture.directory.path().join("store");
    fixture.stop().await;
    for lost in ["control.redb", "control.backup"] {
        fs::remove_file(store.join(lost)).unwrap();
    }
    fs::write(store.join("records/data-agent@1.0"), b"damaged").unwrap();
    let recovered = recover(&store).unwrap();
    assert_eq!(recovered.from_files, ["data-agent@2.0"]);
    assert_eq!(recovered.damaged_files, ["data-agent@1.0"]);
    fixture.start_again().await;
    match fixture.ask(Quick::Generations(None)).await.unwrap() {
        AdminReply::Generations(views) => assert_eq!(views.len(), 1),
        other => panic!("{other:?}"),
    }
    fixture.publish("data-agent@1.0", b"one").await;
}

#[tokio::test]
async fn a_host_that_is_forgotten_is_a_stranger() {
    let fixture = Fixture::new().await;
    fixture.publish("data-agent@1.0", b"one").await;
    fixture.export("data-agent@1.0", &["web-1"]).await;
    let host = fixture.host("web-1").await;
    fixture.ask(Quick::Forget("web-1".parse().unwrap())).await.unwrap();
    tokio::time::timeout(crate::fixture::SOON, host.link.closed()).await.unwrap();
    let refused = FakeHost::connect(&fixture.address, host.identity.clone()).await.err().unwrap();
    assert!(refused.contains("not known"), "{refused}");
    match fixture.ask(Quick::Hosts).await.unwrap() {
        AdminReply::Hosts(hosts) => assert_eq!(hosts, []),
        other => panic!("{other:?}"),
    }
    assert!(fixture.ask(Quick::Forget("web-1".parse().unwrap())).await.is_err());
    fs::remove_dir_all(fixture.state("web-1")).unwrap();
    let again = fixture.host("web-1").await;
    assert_eq!(again.exports().await, Vec::<String>::new(), "what it was exported is forgotten, too");
    assert!(fixture.ask(Quick::RemoveDamaged("host/web-1".into())).await.unwrap_err().contains("no damaged record"));
}
