use super::super::Watch;
use super::*;
use redb::StorageBackend;
use redb::backends::FileBackend;

fn open() -> (tempfile::TempDir, EmbeddedStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&directory.path().join("control.redb")).unwrap();
    (directory, store)
}

fn put(key: &str, expect: Expect, value: &str) -> Change {
    Change::put(key, expect, value.into())
}

#[test]
fn a_commit_is_all_or_nothing_and_compares_versions() {
    let (_directory, store) = open();
    let first = store.commit(&[put("a", Expect::Absent, "1"), put("b", Expect::Absent, "1")]).unwrap();
    let conflict = store.commit(&[put("b", Expect::Any, "2"), put("a", Expect::Absent, "2")]);
    assert_eq!(conflict, Err(ControlError::Conflict { key: "a".into() }));
    assert_eq!(store.get("b").unwrap().unwrap().value, b"1");
    let second = store.commit(&[put("a", Expect::Version(first), "2")]).unwrap();
    assert!(store.commit(&[put("a", Expect::Version(first), "3")]).is_err());
    assert!(store.commit(&[Change::delete("a", Expect::Version(second))]).is_ok());
    assert_eq!(store.get("a").unwrap(), None);
}

#[test]
fn commits_of_many_threads_share_syncs_and_lose_nothing() {
    const THREADS: u64 = 16;
    const EACH: u64 = 25;
    let (_directory, store) = open();
    store.commit(&[put("n", Expect::Absent, "0")]).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..EACH {
                    loop {
                        let found = store.get("n").unwrap().unwrap();
                        let next = String::from_utf8(found.value).unwrap().parse::<u64>().unwrap() + 1;
                        let swap = put("n", Expect::Version(found.version), &next.to_string());
                        match store.commit(&[swap]) {
                            Ok(_) => break,
                            Err(ControlError::Conflict { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            });
        }
    });
    let end = store.get("n").unwrap().unwrap();
    assert_eq!(end.value, (THREADS * EACH).to_string().as_bytes());
    // Each success has a revision of its own, and conflicts have none.
    assert_eq!(end.version, THREADS * EACH + 1);
    let events = store.history("n", 0).unwrap();
    assert!(events.iter().enumerate().all(|(at, event)| event.value == Some(at.to_string().into())));
}

#[test]
fn a_prefix_lists_its_keys_only_and_in_order() {
    let (_directory, store) = open();
    for key in ["x/b", "x/a", "x", "y/a", "xy"] {
        store.commit(&[put(key, Expect::Any, key)]).unwrap();
    }
    let keys: Vec<String> = store.list("x/").unwrap().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["x/a", "x/b"]);
}

#[test]
fn state_and_history_survive_and_leased_keys_do_not() {
    let (directory, store) = open();
    let lease = store.grant(Duration::from_secs(60)).unwrap();
    let leased = Change { lease: Some(lease), ..put("connected/h", Expect::Absent, "") };
    store.commit(&[put("a", Expect::Absent, "1"), leased]).unwrap();
    drop(store);
    let store = EmbeddedStore::open(&directory.path().join("control.redb")).unwrap();
    assert_eq!(store.get("connected/h").unwrap(), None);
    assert_eq!(store.get("a").unwrap().unwrap().value, b"1");
    let events = store.history("connected/", 0).unwrap();
    assert_eq!(events.iter().map(|event| event.value.is_some()).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn a_lease_ends_by_time_or_by_request() {
    let (_directory, store) = open();
    let long = store.grant(Duration::from_secs(60)).unwrap();
    let short = store.grant(Duration::ZERO).unwrap();
    assert_eq!(store.keep(short), Err(ControlError::LeaseEnded));
    let bound = Change { lease: Some(short), ..put("k", Expect::Any, "") };
    assert_eq!(store.commit(&[bound]), Err(ControlError::LeaseEnded));
    store.commit(&[Change { lease: Some(long), ..put("k", Expect::Any, "") }]).unwrap();
    store.keep(long).unwrap();
    store.end(long).unwrap();
    assert_eq!(store.get("k").unwrap(), None);
    store.end(long).unwrap();
}

#[tokio::test]
async fn a_watch_sees_every_change_once_and_in_order() {
    let (_directory, store) = open();
    let store: Arc<dyn ControlStore> = Arc::new(store);
    let mut watch = Watch::new(Arc::clone(&store), "n/", 0);
    let writer = std::thread::spawn({
        let store = Arc::clone(&store);
        move || {
            for n in 0..100 {
                let key = if n % 2 == 0 { "n/x" } else { "other" };
                store.commit(&[put(key, Expect::Any, &n.to_string())]).unwrap();
            }
        }
    });
    let mut seen = Vec::new();
    while seen.len() < 50 {
        let events = watch.next().await.unwrap();
        seen.extend(events.into_iter().map(|event| String::from_utf8(event.value.unwrap()).unwrap()));
    }
    writer.join().unwrap();
    assert_eq!(seen, (0..100).step_by(2).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[test]
fn a_full_disk_fails_the_commit_and_nothing_after_it() {
    #[derive(Debug)]
    struct Disk(FileBackend, Arc<AtomicBool>);
    impl Disk {
        fn check(&self) -> std::io::Result<()> {
            let full = self.1.load(Ordering::SeqCst);
            if full { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }
    }
    impl StorageBackend for Disk {
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
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.redb");
    let full = Arc::new(AtomicBool::new(false));
    let disk = Arc::clone(&full);
    let store = EmbeddedStore::open_with(Box::new(move || {
        let file = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let backend = Disk(FileBackend::new(file.unwrap()).unwrap(), Arc::clone(&disk));
        Database::builder().create_with_backend(backend).map_err(storage)
    }))
    .unwrap();
    let first = store.commit(&[put("a", Expect::Absent, "1")]).unwrap();
    full.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        assert!(matches!(store.commit(&[put("a", Expect::Any, "2")]), Err(ControlError::Storage(_))));
    }
    full.store(false, Ordering::SeqCst);
    assert_eq!(store.get("a").unwrap(), Some(Versioned { value: b"1".to_vec(), version: first }));
    store.commit(&[put("a", Expect::Version(first), "3")]).unwrap();
    assert_eq!(store.get("a").unwrap().unwrap().value, b"3");
}

#[test]
fn the_history_is_bounded_by_its_bytes() {
    let (_directory, store) = open();
    let large = "x".repeat(9 << 10);
    for _ in 0..9 {
        store.commit(&[put("a", Expect::Any, &large)]).unwrap();
    }
    let Err(ControlError::Compacted { oldest }) = store.history("", 0) else { panic!("nothing was forgotten") };
    assert_eq!(store.history("", oldest - 1).unwrap().len(), 7);
}

#[test]
fn a_second_manager_is_told_so() {
    let (directory, _store) = open();
    let error = EmbeddedStore::open(&directory.path().join("control.redb")).err().unwrap();
    assert!(error.to_string().contains("another manager has it open"), "{error}");
}
