//! What is kept of the past, what one page holds, what shares a sync, and who waits.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use redb::{Database, TableDefinition};

use super::super::contract::{COMMIT_BYTES_MAX, Expect, KEY_BYTES_MAX, VALUE_BYTES_MAX};
use super::tables::{HISTORY_BYTES_MAX, HISTORY_COMMITS, PAGE_BYTES};
use super::*;

fn open() -> (tempfile::TempDir, LocalStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalStore::open(&directory.path().join("control.redb")).unwrap();
    (directory, store)
}

fn put(key: &str, bytes: usize) -> Change {
    Change::put(key, Expect::Any, vec![7; bytes])
}

async fn keys(store: &LocalStore, from: Option<Cursor>) -> (Vec<String>, Option<Cursor>) {
    let page = store.list("", from).await.unwrap();
    (page.entries.into_iter().map(|entry| entry.key).collect(), page.next)
}

/// The thread that writes, by hand.
fn writer(directory: &tempfile::TempDir) -> Writer {
    let path = directory.path().join("control.redb");
    let disk = Arc::new(Disk::open(Box::new(move || open_file(&path))).unwrap());
    let begun = tables::begin(&disk).unwrap();
    let revision = watch::channel(begun.revision).0;
    Writer { disk, history_bytes: begun.history_bytes, revision, leases: BTreeMap::new(), next_lease: 1 }
}

#[tokio::test]
async fn a_page_has_as_many_bytes_as_it_may_and_of_a_longer_entry_that_alone() {
    // An entry counts with its key, its revision and its value; whether one more fits is asked without its key.
    const REVISION: usize = 8;
    let first = PAGE_BYTES / 2;
    let second = PAGE_BYTES - ("a".len() + REVISION + first) - REVISION;
    for (over, on_first) in [(0, &["a", "b"][..]), (1, &["a"])] {
        let (_directory, store) = open();
        store.commit(vec![put("a", first), put("b", second + over), put("c", PAGE_BYTES + 1)]).await.unwrap();
        let (mut seen, mut next) = keys(&store, None).await;
        assert_eq!(seen, on_first, "{over} bytes over");
        while let Some(cursor) = next {
            let (more, then) = keys(&store, Some(cursor)).await;
            assert_eq!(more.len(), 1, "{more:?}");
            seen.extend(more);
            next = then;
        }
        assert_eq!(seen, ["a", "b", "c"]);
    }
}

#[tokio::test]
async fn a_commit_of_the_largest_size_can_be_read_in_the_history() {
    let (_directory, store) = open();
    let keys = ["a", "b"].map(|name| name.repeat(KEY_BYTES_MAX));
    let rest = COMMIT_BYTES_MAX - VALUE_BYTES_MAX - 2 * KEY_BYTES_MAX;
    store.commit(vec![put(&keys[0], VALUE_BYTES_MAX), put(&keys[1], rest)]).await.unwrap();
    assert_eq!(store.watch("", Revision(0)).next().await.unwrap().events.len(), 2);
}

#[tokio::test]
async fn a_page_of_the_history_ends_where_it_has_enough_bytes() {
    let (_directory, store) = open();
    for _ in 0..4 {
        store.commit(vec![put("a", PAGE_BYTES * 3 / 8)]).await.unwrap();
    }
    let mut watch = store.watch("", Revision(0));
    let pages = [watch.next().await.unwrap().through, watch.next().await.unwrap().through];
    assert_eq!(pages, [Revision(3), Revision(4)]);
}

#[tokio::test]
async fn a_store_that_was_filled_has_no_history_of_its_first_revision() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.redb");
    LocalStore::fill(&path, &[("a".into(), b"1".to_vec())]).unwrap();
    let store = LocalStore::open(&path).unwrap();
    assert_eq!(store.get("a").await.unwrap().unwrap().changed, Revision(1));
    let compacted = Err(ControlError::Compacted { oldest: Revision(2) });
    assert_eq!(store.watch("", Revision(0)).next().await, compacted);
    store.commit(vec![put("a", 1)]).await.unwrap();
    assert_eq!(store.watch("", Revision(1)).next().await.unwrap().through, Revision(2));
}

#[tokio::test]
async fn who_comes_to_a_damaged_commit_of_the_history_lists_anew() {
    let (directory, store) = open();
    for bytes in 1..=3 {
        store.commit(vec![put("a", bytes)]).await.unwrap();
    }
    drop(store);
    let path = directory.path().join("control.redb");
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let commits = TableDefinition::<u64, &[u8]>::new("commits");
    transaction.open_table(commits).unwrap().insert(2, &[0xff_u8][..]).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let store = LocalStore::open(&path).unwrap();
    let compacted = Err(ControlError::Compacted { oldest: Revision(3) });
    assert_eq!(store.watch("", Revision(0)).next().await, compacted);
    assert_eq!(store.watch("", Revision(2)).next().await.unwrap().through, Revision(3));
}

#[tokio::test]
async fn the_bytes_of_the_history_count_after_a_restart_too() {
    let (directory, store) = open();
    for _ in 0..5 {
        store.commit(vec![put("a", HISTORY_BYTES_MAX / 8)]).await.unwrap();
    }
    drop(store);
    let store = LocalStore::open(&directory.path().join("control.redb")).unwrap();
    for _ in 0..5 {
        store.commit(vec![put("a", HISTORY_BYTES_MAX / 8)]).await.unwrap();
    }
    // Each has a little more than an eighth of the bound: seven are kept.
    let compacted = Err(ControlError::Compacted { oldest: Revision(4) });
    assert_eq!(store.watch("", Revision(0)).next().await, compacted);
}

#[test]
fn so_many_commits_are_kept_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = writer(&directory);
    // So that the bound of bytes is far.
    let change = Change::check("a", Expect::Absent);
    let batch = vec![std::slice::from_ref(&change); usize::try_from(HISTORY_COMMITS).unwrap() + 3];
    assert!(writer.transact(&batch).unwrap().iter().all(Result::is_ok));
    let after = |revision| writer.disk.read(|read| tables::history(read, "", Revision(revision)));
    assert_eq!(after(2), Err(ControlError::Compacted { oldest: Revision(4) }));
    assert!(after(3).unwrap().through > Revision(4));
}

#[test]
fn a_sync_takes_so_many_changes_and_leaves_the_others_to_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = writer(&directory);
    let (queue, orders) = mpsc::channel();
    let answers = [BATCH_CHANGES_MAX - 1, 1, 1].map(|checks| {
        let (answer, answered) = oneshot::channel();
        let changes = vec![Change::check("a", Expect::Absent); checks];
        queue.send(Order::Commit(Waiting { changes, answer })).unwrap();
        answered
    });
    let first = orders.recv().unwrap();
    writer.serve(first, &orders);
    let left = answers.map(|mut answered| answered.try_recv().is_err());
    assert_eq!(left, [false, false, true]);
    assert!(orders.try_recv().is_ok() && orders.try_recv().is_err());
}

#[tokio::test]
async fn what_happens_is_synced_and_what_is_refused_is_not() {
    let (_directory, store) = open();
    let before = store.synced();
    for absent in [true, false, false] {
        let expect = if absent { Expect::Absent } else { Expect::At(Revision(99)) };
        let done = store.commit(vec![Change::put("a", expect, Vec::new())]).await;
        assert_eq!(done.is_ok(), absent);
    }
    store.commit(vec![put("a", 1)]).await.unwrap();
    assert_eq!(store.synced() - before, 2);
}

#[tokio::test]
async fn a_watcher_to_whom_nothing_happens_sleeps() {
    #[derive(Default)]
    struct Woken(AtomicUsize);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let (_directory, store) = open();
    let revision = store.commit(vec![put("a", 1)]).await.unwrap();
    let mut watch = store.watch("", revision);
    let (mut next, woken) = (watch.next(), Arc::new(Woken::default()));
    let waker = Waker::from(Arc::clone(&woken));
    assert!(next.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    // Whatever it had asked for would be answered by the time these are.
    for _ in 0..100 {
        store.get("a").await.unwrap();
    }
    assert_eq!(woken.0.load(Ordering::SeqCst), 0);
    store.commit(vec![put("a", 1)]).await.unwrap();
    assert!(woken.0.load(Ordering::SeqCst) > 0);
    let Poll::Ready(told) = next.as_mut().poll(&mut Context::from_waker(&waker)) else {
        assert_eq!(next.await.unwrap().events.len(), 1);
        return;
    };
    assert_eq!(told.unwrap().events.len(), 1);
}

#[test]
fn a_commit_that_cannot_be_read_is_none() {
    assert!(read_any_commit(&0_u64.to_le_bytes()) && !read_any_commit(&[0xff]));
}

#[test]
fn every_kind_of_record_has_its_moment() {
    let kinds = [
        ("generation/p/1", Moment::GenerationCommit),
        ("export/p/1/h", Moment::ExportCommit),
        ("host/h", Moment::HostCommit),
        ("token/00", Moment::TokenCommit),
        ("group/g/h", Moment::GroupCommit),
        ("change/1", Moment::ChangeCommit),
        ("job/1", Moment::JobCommit),
        ("sequence", Moment::OtherCommit),
        ("hosts", Moment::OtherCommit),
    ];
    for (key, moment) in kinds {
        assert_eq!(moment_of(key), moment, "{key}");
    }
}
