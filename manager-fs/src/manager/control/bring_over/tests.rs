use proto::agent::{ChangeId, HostScope, JobId, Operation, Outcome, Step};
use proto::name::Target;
use proto::{HostName, Product, TreeId};

use super::super::database::LocalStore;
use super::super::state::State;
use super::super::state::changes::EndedBy;
use super::super::state::jobs::JobState;
use super::*;

/// A store that a manager of format 1 wrote: two generations, groups, exports, hosts, a token, two change-overs, four
/// jobs, statuses and steps.
const FORMAT_1: &[u8] = include_bytes!("format-1.redb.zst");

fn old_store() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let bytes = zstd::stream::decode_all(FORMAT_1).unwrap();
    fs::write(directory.path().join(CONTROL_FILE), bytes).unwrap();
    directory
}

/// Changes raw values of an old store.
fn alter(root: &Path, change: impl FnOnce(&mut redb::Table<'_, &'static str, &'static [u8]>)) {
    let database = Database::create(root.join(CONTROL_FILE)).unwrap();
    let transaction = database.begin_write().unwrap();
    change(&mut transaction.open_table(VALUES).unwrap());
    transaction.commit().unwrap();
}

async fn open(root: &Path) -> State {
    let store = LocalStore::open(&root.join(CONTROL_FILE)).unwrap();
    let opened = LocalObservations::open(&root.join(OBSERVATIONS_FILE)).unwrap();
    assert_eq!(opened.set_aside, None);
    State::open(std::sync::Arc::new(store), std::sync::Arc::new(opened.observations)).await.unwrap()
}

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

async fn check(root: &Path) {
    let state = open(root).await;
    assert!(state.damaged().is_empty(), "{:?}", state.damaged());
    let product: Product = "data-agent".parse().unwrap();
    let sequences: Vec<u64> = state.generations().iter().map(|generation| generation.record.sequence).collect();
    assert_eq!(sequences, [1, 2]);
    assert!(state.admit(&host("web-1"), "web-1-s").is_ok() && state.admit(&host("web-2"), "web-2-s").is_err());
    let token = state.token(&"ab".repeat(32), 99).await.unwrap();
    assert_eq!(token.record.host, host("web-3"));
    let groups: Vec<_> = state.groups().into_iter().map(|(group, hosts)| (group.to_string(), hosts.len())).collect();
    assert_eq!(groups, [("all".to_owned(), 2), ("empty".to_owned(), 0)]);
    let exported = |name: &str| state.exported_to(&host(name)).len();
    assert_eq!((exported("web-1"), exported("web-2"), exported("web-3")), (2, 1, 0));
    let targets: Vec<Target> = state.exports().into_iter().map(|export| export.target).collect();
    assert_eq!(targets.len(), 2);

    let change = state.change(ChangeId(1)).await.unwrap().unwrap();
    assert!(change.ended.as_ref().is_some_and(|end| end.confirmed && end.by == EndedBy::Agent));
    let steps: Vec<Step> = state.steps_of(&change).await.unwrap().iter().map(|step| step.step).collect();
    assert_eq!(steps, [Step::Staged, Step::Confirmed]);
    assert_eq!(state.change(ChangeId(2)).await.unwrap().unwrap().ended, None);

    let jobs = state.jobs(10).await.unwrap();
    let states: Vec<JobState> = jobs.iter().map(|job| job.state).collect();
    assert_eq!(states, [JobState::Done, JobState::Failed, JobState::Running, JobState::Queued]);
    assert!(matches!(&jobs[0].outcome, Some(Outcome::Done(summary)) if summary.snapshots == ["abc"]));
    assert_eq!((jobs[2].started, jobs[2].progress.as_ref().map(|progress| progress.units_done)), (Some(30), Some(1)));
    assert!(jobs[3].cancel && jobs[3].sent == 0 && jobs[2].sent == 1);
    // A failure that only the manager knew of is mended by the agent, and what the agent said stays.
    let done = Outcome::Done(proto::agent::Summary::default());
    assert!(state.end_job(JobId(2), &done, EndedBy::Agent, 50).await.unwrap());
    assert!(!state.end_job(JobId(1), &done, EndedBy::Agent, 50).await.unwrap());

    let status = state.observations().status(&host("web-1")).await.unwrap();
    assert_eq!((status.software.as_str(), status.last_seen), ("0.1.0", 18));
    assert_eq!((status.agents[0].pid, status.attached.as_slice()), (7, &[TreeId::of(b"2")][..]));
    assert_eq!(status.wrong_hashes, [(18, String::from("w"))]);
    // The counter stood at 3: that number was given to a record that is gone.
    let version = "9".parse().unwrap();
    let refused = state.add_generation(&product, &version, None, |sequence| {
        Err::<Vec<u8>, _>(ControlError::Damaged { key: sequence.to_string(), reason: String::new() })
    });
    assert!(matches!(refused.await, Err(ControlError::Damaged { key, .. }) if key == "4"));
}

#[tokio::test]
async fn a_store_of_format_1_is_brought_over_once_and_its_file_is_kept() {
    let directory = old_store();
    let root = directory.path();
    let before = fs::read(root.join(CONTROL_FILE)).unwrap();
    let done = bring_over(root).unwrap().unwrap();
    assert_eq!(done.set_aside, 0);
    assert_eq!(bring_over(root).unwrap(), None, "it is done");
    check(root).await;
    let kept = fs::read(root.join(OLD_FILE)).unwrap();
    assert_eq!(kept.len(), before.len());
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(bring_over(empty.path()).unwrap(), None);
}

/// What a kill leaves at each step: half a new file, new files that are whole, one of two renamed, the link to the old.
#[tokio::test]
async fn a_start_that_is_killed_anywhere_is_made_good_by_the_next() {
    let directory = old_store();
    let whole = directory.path();
    bring_over(whole).unwrap();
    let finished = |name: &str| fs::read(whole.join(name)).unwrap();
    let (control, observations) = (finished(CONTROL_FILE), finished(OBSERVATIONS_FILE));
    let left: [&[(&str, &[u8])]; 5] = [
        &[("observations.redb.new", &observations[..observations.len() / 2])],
        &[("observations.redb.new", &observations), ("control.redb.new", &control[..control.len() / 3])],
        &[(OBSERVATIONS_FILE, &observations), ("control.redb.new", &control)],
        &[(OBSERVATIONS_FILE, &observations), ("control.redb.new", &control), (OLD_FILE, b"link")],
        &[("control.redb.new", b""), ("observations.redb.new", b"")],
    ];
    for files in left {
        let directory = old_store();
        for (name, bytes) in files {
            fs::write(directory.path().join(name), bytes).unwrap();
        }
        assert!(bring_over(directory.path()).unwrap().is_some());
        check(directory.path()).await;
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_set_aside_by_name_and_the_rest_comes_over() {
    let directory = old_store();
    let mut keys = Vec::new();
    alter(directory.path(), |values| {
        keys = values.iter().unwrap().map(|entry| entry.unwrap().0.value().to_owned()).collect();
    });
    let kinds: std::collections::BTreeSet<&str> = keys.iter().map(|key| key.split('/').next().unwrap()).collect();
    assert_eq!(kinds.len(), 11, "{kinds:?}");
    for key in keys.iter().filter(|key| !key.starts_with("connected/")) {
        let directory = old_store();
        alter(directory.path(), |values| {
            let mut value = values.get(key.as_str()).unwrap().unwrap().value().to_vec();
            value.truncate(value.len() - 1);
            values.insert(key.as_str(), value.as_slice()).unwrap();
        });
        let done = bring_over(directory.path()).unwrap().unwrap();
        assert_eq!(done.set_aside, 1, "{key}");
        let state = open(directory.path()).await;
        let named: Vec<String> = state.damaged().into_keys().collect();
        assert_eq!(named, [format!("set-aside/{key}")]);
        assert!(state.remove_damaged(&named[0]).await.unwrap());
        assert!(state.damaged().is_empty());
    }
}

#[tokio::test]
async fn a_record_that_was_written_too_long_is_cut_and_comes_over() {
    let directory = old_store();
    let job = "job/0000000000000002";
    alter(directory.path(), |values| {
        let old = values.get(job).unwrap().unwrap().value().to_vec();
        // The error of the outcome: its length, then the text.
        let at = old.windows(7).position(|window| window == b"gave up").unwrap();
        let long = vec![b'x'; 20 << 20];
        let length = (long.len() as u64).to_le_bytes();
        let new = [&old[..at - 8], &length, &long, &old[at + 7..]].concat();
        values.insert(job, new.as_slice()).unwrap();
    });
    assert_eq!(bring_over(directory.path()).unwrap().unwrap().set_aside, 0);
    let state = open(directory.path()).await;
    let Some(Outcome::Failed(error)) = state.job(JobId(2)).await.unwrap().outcome else {
        panic!("it has not failed")
    };
    assert!(error.len() <= 4 << 10 && error.starts_with("xxx"));
}

#[tokio::test]
async fn a_damaged_old_file_is_refused_and_left_alone() {
    let directory = old_store();
    let path = directory.path().join(CONTROL_FILE);
    let mut bytes = fs::read(&path).unwrap();
    let step = bytes.len() / 300;
    (0..300).for_each(|at| bytes[at * step] ^= 0x55);
    fs::write(&path, &bytes).unwrap();
    let error = bring_over(directory.path()).unwrap_err();
    assert!(matches!(error, ControlError::Broken { .. }), "{error}");
    assert!(!directory.path().join(OLD_FILE).exists() && path.exists());
}

/// Restores and verifications named their snapshot by a text alone.
#[tokio::test]
async fn jobs_of_every_kind_are_brought_over_with_what_they_were_to_do() {
    #[derive(serde::Serialize)]
    enum Old {
        Backup((&'static str, Option<&'static str>), Vec<&'static str>),
        Restore((&'static str, Option<&'static str>), &'static str, &'static str),
        Verify((&'static str, Option<&'static str>), &'static str),
        Check((&'static str, Option<&'static str>), bool),
        Prune((&'static str, Option<&'static str>), u32),
    }
    let at = ("/r", None);
    let old = [
        Old::Backup(at, vec!["/a"]),
        Old::Restore(at, "abcd1234", "/t"),
        Old::Verify(at, "latest"),
        Old::Check(at, true),
        Old::Prune(at, 3),
    ];
    let directory = old_store();
    let none: (Option<u64>, Option<u64>, Option<()>) = (None, None, None);
    alter(directory.path(), |values| {
        for (id, operation) in (11u64..).zip(&old) {
            let (started, ended, progress) = none;
            let (outcome, waiting, cancel, sent) = (None::<()>, None::<String>, false, 0u32);
            let order = (id, "web-1", "data-agent", operation, 0u32, 5u64);
            let record = (order, started, ended, progress, outcome, waiting, cancel, sent);
            let body = proto::codec::encode(&record).unwrap();
            let packed = [&7u64.to_le_bytes()[..], &[1], &body].concat();
            values.insert(format!("job/{id:016x}").as_str(), packed.as_slice()).unwrap();
        }
    });
    assert_eq!(bring_over(directory.path()).unwrap().unwrap().set_aside, 0);
    let state = open(directory.path()).await;
    let mut brought = Vec::new();
    for id in 11..16 {
        let operation = state.job(JobId(id)).await.unwrap().operation;
        assert_eq!(operation.repository().unwrap().path, "/r");
        if let Operation::Restore { snapshot, .. } | Operation::Verify { snapshot, .. } = &operation {
            assert_eq!((&snapshot.of, &snapshot.source), (&HostScope::Own, &None));
        }
        brought.push(operation.kind().to_owned());
    }
    assert_eq!(brought, ["backup", "restore", "verify", "check", "prune"]);
    let Operation::Restore { snapshot, target, .. } = state.job(JobId(12)).await.unwrap().operation else { panic!() };
    assert_eq!((snapshot.snapshot.as_str(), target.as_str()), ("abcd1234", "/t"));
}

#[test]
fn a_value_as_long_as_may_be_is_brought_over_and_a_longer_one_is_not() {
    let key = Key::SetAside(String::from("k"));
    let around = encode(&key.to_string(), &Vec::<u8>::new()).unwrap().len();
    let mut new = New::default();
    new.put(&key, &vec![0_u8; VALUE_BYTES_MAX - around]).unwrap();
    for over in [1, 2] {
        let fault = new.put(&key, &vec![0_u8; VALUE_BYTES_MAX - around + over]);
        assert!(matches!(fault, Err(PutFault::TooLong(bytes)) if bytes == VALUE_BYTES_MAX + over), "{fault:?}");
    }
    assert_eq!(new.entries.len(), 1);
    assert_eq!(new.entries[0].1.len(), VALUE_BYTES_MAX);
}

#[test]
fn what_cannot_be_removed_is_told_and_what_is_not_there_need_not_be() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    remove_if_there(&path).unwrap();
    fs::write(&path, "").unwrap();
    remove_if_there(&path).unwrap();
    assert!(!path.exists());
    fs::create_dir(&path).unwrap();
    assert!(remove_if_there(&path).is_err());
}

#[test]
fn of_what_is_no_record_the_fuzzer_is_told_so() {
    assert!(!convert_any("host/a", b"") && !convert_any("nothing", b"\x01"));
}

#[tokio::test]
async fn a_record_of_many_files_comes_over_in_parts() {
    let directory = old_store();
    let (record, signed) = super::super::rebuild::tests::record("many", 9, None, 20_000);
    alter(directory.path(), |values| {
        let value = [&[0; 8], [1].as_slice(), &proto::codec::encode(&signed).unwrap()].concat();
        values.insert("generation/data-agent/many", value.as_slice()).unwrap();
    });
    assert_eq!(bring_over(directory.path()).unwrap().unwrap().set_aside, 0);
    let state = open(directory.path()).await;
    assert!(state.damaged().is_empty(), "{:?}", state.damaged());
    let found = state.generation(&record.product, &record.version).unwrap();
    assert_eq!((&found.record, found.signed.len()), (&record, signed.len()));
}
