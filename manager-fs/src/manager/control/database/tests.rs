use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;
use redb::backends::FileBackend;
use redb::{Database, StorageBackend};

use super::super::contract::{CHANGES_MAX, Expect, PAGE_ENTRIES_MAX, VALUE_BYTES_MAX, list_all};
use super::super::disk::storage;
use super::*;

fn open() -> (tempfile::TempDir, LocalStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalStore::open(&directory.path().join("control.redb")).unwrap();
    (directory, store)
}

fn put(key: &str, expect: Expect, value: &str) -> Change {
    Change::put(key, expect, value.into())
}

fn leased(key: &str, lease: LeaseId) -> Change {
    Change { key: key.to_owned(), expect: Expect::Any, act: Act::Put { value: Vec::new(), lease: Some(lease) } }
}

async fn value(store: &LocalStore, key: &str) -> Option<String> {
    store.get(key).await.unwrap().map(|found| String::from_utf8(found.value).unwrap())
}

#[tokio::test]
async fn a_commit_is_all_or_nothing_and_names_the_key_of_a_conflict() {
    let (_directory, store) = open();
    let first = store.commit(vec![put("a", Expect::Absent, "1"), put("b", Expect::Absent, "1")]).await.unwrap();
    let conflict = store.commit(vec![put("b", Expect::Any, "2"), put("a", Expect::Absent, "2")]).await;
    assert_eq!(conflict, Err(ControlError::Conflict { key: "a".into() }));
    assert_eq!(value(&store, "b").await.as_deref(), Some("1"));
    let checked = vec![Change::check("b", Expect::At(first)), put("a", Expect::At(first), "2")];
    let second = store.commit(checked).await.unwrap();
    assert!(store.commit(vec![put("a", Expect::At(first), "3")]).await.is_err());
    assert_eq!(store.get("b").await.unwrap().unwrap().changed, first, "a check changes nothing");
    store.commit(vec![Change::delete("a", Expect::At(second))]).await.unwrap();
    assert_eq!(store.get("a").await.unwrap(), None);
}

#[tokio::test]
async fn what_is_too_large_is_refused_when_written() {
    let (_directory, store) = open();
    let long = vec![Change::put("a", Expect::Any, vec![0; VALUE_BYTES_MAX + 1])];
    assert!(matches!(store.commit(long).await, Err(ControlError::TooLong { .. })));
    let many = (0..=CHANGES_MAX).map(|n| put(&format!("k{n}"), Expect::Any, "")).collect();
    assert!(matches!(store.commit(many).await, Err(ControlError::TooLarge { .. })));
    assert_eq!(list_all(&store, "").await.unwrap().0, []);
    let largest = vec![Change::put("a", Expect::Any, vec![7; VALUE_BYTES_MAX])];
    store.commit(largest).await.unwrap();
    assert_eq!(store.get("a").await.unwrap().unwrap().value.len(), VALUE_BYTES_MAX);
    assert_eq!(store.watch("", Revision(0)).next().await.unwrap().events.len(), 1, "its history can be read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_of_many_callers_share_syncs_and_lose_nothing() {
    const CALLERS: u64 = 50;
    let (_directory, store) = open();
    let store = Arc::new(store);
    store.commit(vec![put("n", Expect::Absent, "0")]).await.unwrap();
    let (before, mut tasks) = (store.synced(), Vec::new());
    for caller in 0..CALLERS {
        let store = Arc::clone(&store);
        tasks.push(tokio::spawn(async move {
            store.commit(vec![put(&format!("own/{caller}"), Expect::Absent, "")]).await.unwrap();
            loop {
                let found = store.get("n").await.unwrap().unwrap();
                let next = String::from_utf8(found.value).unwrap().parse::<u64>().unwrap() + 1;
                match store.commit(vec![put("n", Expect::At(found.changed), &next.to_string())]).await {
                    Ok(_) => break,
                    Err(ControlError::Conflict { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let end = store.get("n").await.unwrap().unwrap();
    assert_eq!(end.value, CALLERS.to_string().as_bytes());
    let (all, revision) = list_all(store.as_ref(), "").await.unwrap();
    assert_eq!((all.len() as u64, revision), (CALLERS + 1, Revision(2 * CALLERS + 1)));
    // Each caller has committed twice; those of one key need a sync each, the others share.
    assert!(store.synced() - before < CALLERS * 2, "{} syncs", store.synced() - before);
}

#[tokio::test]
async fn a_prefix_lists_its_keys_only_and_in_order() {
    let (_directory, store) = open();
    for key in ["x/b", "x/a", "x", "y/a", "xy"] {
        store.commit(vec![put(key, Expect::Any, key)]).await.unwrap();
    }
    let listing = store.list("x/", None).await.unwrap();
    let keys: Vec<String> = listing.entries.into_iter().map(|entry| entry.key).collect();
    assert_eq!((keys, listing.next), (vec!["x/a".to_owned(), "x/b".to_owned()], None));
}

#[tokio::test]
async fn the_pages_of_a_listing_are_of_one_revision_whatever_happens_between_them() {
    let (_directory, store) = open();
    let wanted: Vec<String> = (0..PAGE_ENTRIES_MAX * 2 + 50).map(|n| format!("k/{n:06}")).collect();
    for keys in wanted.chunks(CHANGES_MAX) {
        store.commit(keys.iter().map(|key| put(key, Expect::Any, "1")).collect()).await.unwrap();
    }
    let mut page = store.list("k/", None).await.unwrap();
    let (revision, mut seen, mut pages) = (page.revision, Vec::new(), 1);
    loop {
        seen.extend(page.entries.into_iter().map(|entry| (entry.key, entry.value)));
        let Some(cursor) = page.next else { break };
        // One is changed, one deleted, one added before and behind the cursor.
        let (first, last) = (&wanted[0], &wanted[wanted.len() - 1]);
        store.commit(vec![put(first, Expect::Any, "2"), Change::delete(last, Expect::Any)]).await.unwrap();
        store.commit(vec![put("k/zzz", Expect::Any, "2")]).await.unwrap();
        page = store.list("k/", Some(cursor)).await.unwrap();
        assert_eq!(page.revision, revision);
        pages += 1;
    }
    assert!(pages >= 3, "{pages}");
    assert_eq!(seen, wanted.iter().map(|key| (key.clone(), b"1".to_vec())).collect::<Vec<_>>());
    let forgotten = Cursor { after: String::new(), revision: Revision(1) };
    let error = Err(ControlError::Compacted { oldest: Revision(2) });
    assert_eq!(store.list("k/", Some(forgotten)).await, error);
}

#[tokio::test]
async fn state_and_history_survive_and_leased_keys_do_not() {
    let (directory, store) = open();
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    store.commit(vec![put("a", Expect::Absent, "1"), leased("connected/h", lease)]).await.unwrap();
    drop(store);
    let store = LocalStore::open(&directory.path().join("control.redb")).unwrap();
    assert_eq!(store.get("connected/h").await.unwrap(), None);
    assert_eq!(value(&store, "a").await.as_deref(), Some("1"));
    let mut watch = store.watch("connected/", Revision(0));
    let events = watch.next().await.unwrap().events;
    assert_eq!(events.iter().map(|event| event.value.is_some()).collect::<Vec<_>>(), [true, false]);
}

#[tokio::test]
async fn a_lease_ends_by_time_or_by_request() {
    let (_directory, store) = open();
    let long = store.grant(Duration::from_secs(60)).await.unwrap();
    let short = store.grant(Duration::from_millis(50)).await.unwrap();
    store.commit(vec![leased("short", short), leased("long", long)]).await.unwrap();
    let mut watch = store.watch("short", store.get("short").await.unwrap().unwrap().changed);
    assert_eq!(watch.next().await.unwrap().events[0].value, None, "nobody has to ask for its end");
    assert_eq!(store.keep(short).await, Err(ControlError::LeaseEnded));
    assert_eq!(store.commit(vec![leased("short", short)]).await, Err(ControlError::LeaseEnded));
    store.keep(long).await.unwrap();
    store.commit(vec![leased("kept", long)]).await.unwrap();
    store.end(long).await.unwrap();
    assert_eq!((store.get("long").await.unwrap(), store.get("kept").await.unwrap()), (None, None));
    store.end(long).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listing_and_then_watching_misses_nothing_while_others_write() {
    const WRITES: usize = 300;
    let (_directory, store) = open();
    let store = Arc::new(store);
    let writer = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            for n in 0..WRITES {
                store.commit(vec![put(&format!("n/{}", n % 37), Expect::Any, &n.to_string())]).await.unwrap();
            }
            store.commit(vec![put("n/end", Expect::Any, "")]).await.unwrap();
        }
    });
    let (entries, revision) = list_all(store.as_ref(), "n/").await.unwrap();
    let mut seen: BTreeMap<String, Vec<u8>> = entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
    let (mut watch, mut last) = (store.watch("n/", revision), revision);
    while !seen.contains_key("n/end") {
        for event in watch.next().await.unwrap().events {
            assert!(event.revision > last, "{event:?} after {last:?}");
            last = event.revision;
            seen.insert(event.key, event.value.unwrap());
        }
    }
    writer.await.unwrap();
    let now = list_all(store.as_ref(), "n/").await.unwrap().0;
    assert_eq!(seen, now.into_iter().map(|entry| (entry.key, entry.value)).collect());
}

#[tokio::test]
async fn the_history_is_bounded_by_its_bytes_and_a_slow_watcher_is_told() {
    let (_directory, store) = open();
    let large = "x".repeat(9 << 10);
    for _ in 0..9 {
        store.commit(vec![put("a", Expect::Any, &large)]).await.unwrap();
    }
    let Err(ControlError::Compacted { oldest }) = store.watch("", Revision(0)).next().await else {
        panic!("nothing was forgotten")
    };
    let mut watch = store.watch("", Revision(oldest.0 - 1));
    let mut seen = 0;
    while seen < 7 {
        seen += watch.next().await.unwrap().events.len();
    }
    assert_eq!(seen, 7);
}

#[tokio::test]
async fn a_second_manager_and_a_later_format_are_told_so() {
    let (directory, store) = open();
    let path = directory.path().join("control.redb");
    let error = LocalStore::open(&path).err().unwrap();
    assert!(error.to_string().contains("another manager has it open"), "{error}");
    drop(store);
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta = redb::TableDefinition::<&str, u64>::new("meta");
    transaction.open_table(meta).unwrap().insert("format", 3).unwrap();
    transaction.commit().unwrap();
    drop(database);
    assert_eq!(LocalStore::open(&path).err(), Some(ControlError::Newer { found: 3, known: 2 }));
}

#[tokio::test]
async fn flipped_bits_are_found_when_it_is_opened() {
    let (directory, store) = open();
    let path = directory.path().join("control.redb");
    for n in 0..200 {
        store.commit(vec![put(&format!("k/{n}"), Expect::Any, &"v".repeat(100))]).await.unwrap();
    }
    drop(store);
    let mut bytes = std::fs::read(&path).unwrap();
    let step = bytes.len() / 200;
    for at in 0..200 {
        bytes[at * step] ^= 1;
    }
    std::fs::write(&path, &bytes).unwrap();
    let error = LocalStore::open(&path).err().unwrap();
    assert!(matches!(error, ControlError::Broken { .. }), "{error}");
    assert!(error.to_string().contains("manager-fs recover"), "{error}");
}

/// A file on a disk that can be full, fail, or lose what was not synced.
#[derive(Debug, Clone)]
struct Faults {
    full: Arc<AtomicBool>,
    /// Writes and syncs that still succeed; the next one fails, and all after it.
    left: Arc<AtomicU64>,
}

#[derive(Debug)]
struct FaultyDisk(FileBackend, Faults);

impl FaultyDisk {
    fn check(&self) -> std::io::Result<()> {
        if self.1.full.load(Ordering::SeqCst) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        let used = self.1.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        used.map(drop).map_err(|_| std::io::Error::from_raw_os_error(5))
    }
}

impl StorageBackend for FaultyDisk {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.check().and_then(|()| self.0.set_len(len))
    }
    fn sync_data(&self) -> std::io::Result<()> {
        self.check().and_then(|()| self.0.sync_data())
    }
    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.check().and_then(|()| self.0.write(offset, data))
    }
}

fn open_faulty(path: &Path) -> (Faults, LocalStore) {
    let faults = Faults { full: Arc::default(), left: Arc::new(AtomicU64::new(u64::MAX)) };
    let (path, its) = (path.to_path_buf(), faults.clone());
    let store = LocalStore::open_with(Box::new(move || {
        let file = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let backend = FaultyDisk(FileBackend::new(file.unwrap()).unwrap(), its.clone());
        Database::builder().create_with_backend(backend).map_err(storage)
    }));
    (faults, store.unwrap())
}

#[tokio::test]
async fn a_full_disk_fails_the_commit_and_nothing_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let (faults, store) = open_faulty(&directory.path().join("control.redb"));
    let first = store.commit(vec![put("a", Expect::Absent, "1")]).await.unwrap();
    faults.full.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        let failed = store.commit(vec![put("a", Expect::Any, "2")]).await;
        assert!(matches!(failed, Err(ControlError::Storage(_))), "{failed:?}");
    }
    faults.full.store(false, Ordering::SeqCst);
    let found = store.get("a").await.unwrap().unwrap();
    assert_eq!((found.value.as_slice(), found.changed), (&b"1"[..], first));
    store.commit(vec![put("a", Expect::At(first), "3")]).await.unwrap();
    assert_eq!(value(&store, "a").await.as_deref(), Some("3"));
}

/// The disk fails at every write of a commit in turn: what was answered is there, and each commit is whole or not there.
#[tokio::test]
async fn a_commit_that_breaks_off_anywhere_is_whole_or_not_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.redb");
    let (mut failed, mut answered) = (0, 0_u64);
    for fail_after in 0..60 {
        let (faults, store) = open_faulty(&path);
        faults.left.store(fail_after, Ordering::SeqCst);
        for _ in 0..3 {
            let next = (answered + 1).to_string();
            let pair = vec![put("a", Expect::Any, &next), put("b", Expect::Any, &next)];
            match store.commit(pair).await {
                Ok(_) => answered += 1,
                Err(_) => failed += 1,
            }
        }
        // The disk is good again: the next commit has a number of its own, whatever became of the last.
        faults.left.store(u64::MAX, Ordering::SeqCst);
        let next = store.commit(vec![put("c", Expect::Any, "")]).await.unwrap();
        let last = store.get("a").await.unwrap().map_or(Revision(0), |found| found.changed);
        assert!(last < next, "{last:?} and {next:?} after {fail_after} writes");
        drop(store);
        let store = LocalStore::open(&path).unwrap();
        let (a, b) = (value(&store, "a").await, value(&store, "b").await);
        assert_eq!(a, b, "half a commit after {fail_after} writes");
        let found = a.map_or(0, |text| text.parse::<u64>().unwrap());
        // A commit whose answer was an error may have happened all the same.
        assert!(found == answered || found == answered + 1, "{found} found, {answered} answered");
        answered = found;
    }
    assert!(failed > 20 && answered > 20, "{failed} failed, {answered} answered");
}

#[derive(Debug, Clone)]
enum Doing {
    Put(u8, u8),
    Delete(u8),
    PutAbsent(u8, u8),
    PutAtLast(u8, u8),
    PutAtOlder(u8, u8),
}

fn doing() -> impl Strategy<Value = Doing> {
    let key = 0..6_u8;
    prop_oneof![
        (key.clone(), any::<u8>()).prop_map(|(key, value)| Doing::Put(key, value)),
        key.clone().prop_map(Doing::Delete),
        (key.clone(), any::<u8>()).prop_map(|(key, value)| Doing::PutAbsent(key, value)),
        (key.clone(), any::<u8>()).prop_map(|(key, value)| Doing::PutAtLast(key, value)),
        (key, any::<u8>()).prop_map(|(key, value)| Doing::PutAtOlder(key, value)),
    ]
}

/// What the store must hold: value and revision of each key.
type Model = BTreeMap<u8, (u8, u64)>;

fn change_of(doing: &Doing, model: &Model) -> (Change, bool) {
    let name = |key: &u8| format!("k/{key}");
    let last = |key: &u8| model.get(key).map(|(_, revision)| *revision);
    match doing {
        Doing::Put(key, value) => (Change::put(name(key), Expect::Any, vec![*value]), true),
        Doing::Delete(key) => (Change::delete(name(key), Expect::Any), true),
        Doing::PutAbsent(key, value) => {
            (Change::put(name(key), Expect::Absent, vec![*value]), !model.contains_key(key))
        }
        Doing::PutAtLast(key, value) => {
            let at = Expect::At(Revision(last(key).unwrap_or(0)));
            (Change::put(name(key), at, vec![*value]), model.contains_key(key))
        }
        Doing::PutAtOlder(key, value) => {
            let at = Expect::At(Revision(last(key).unwrap_or(1) - 1));
            (Change::put(name(key), at, vec![*value]), false)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Random commits against a model: the same successes, the same state, and a watcher that sees each change once.
    #[test]
    fn random_commits_do_what_the_model_does(commits in prop::collection::vec(prop::collection::vec(doing(), 1..4), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (_directory, store) = open();
            let (mut model, mut told, mut revision) = (Model::new(), Vec::new(), 0);
            for commit in &commits {
                let mut keys = std::collections::BTreeSet::new();
                let (mut changes, mut holds) = (Vec::new(), true);
                for doing in commit {
                    let (change, its) = change_of(doing, &model);
                    if keys.insert(change.key.clone()) {
                        changes.push(change);
                        holds &= its;
                    }
                }
                let done = store.commit(changes.clone()).await;
                assert_eq!(done.is_ok(), holds, "{changes:?} on {model:?} gave {done:?}");
                if !holds {
                    continue;
                }
                revision += 1;
                assert_eq!(done, Ok(Revision(revision)));
                for change in changes {
                    let key: u8 = change.key[2..].parse().unwrap();
                    let value = match change.act {
                        Act::Put { value, .. } => { model.insert(key, (value[0], revision)); Some(value) }
                        _ => { model.remove(&key); None }
                    };
                    told.push((revision, change.key, value));
                }
            }
            let (entries, at) = list_all(&store, "k/").await.unwrap();
            let found: Vec<_> = entries.into_iter().map(|e| (e.key, e.value[0], e.changed.0)).collect();
            let wanted: Vec<_> = model.iter().map(|(k, (v, r))| (format!("k/{k}"), *v, *r)).collect();
            assert_eq!((found, at.0), (wanted, revision));
            let (mut watch, mut seen) = (store.watch("k/", Revision(0)), Vec::new());
            while seen.len() < told.len() {
                let events = watch.next().await.unwrap().events;
                seen.extend(events.into_iter().map(|event| (event.revision.0, event.key, event.value)));
            }
            assert_eq!(seen, told);
        });
    }
}
