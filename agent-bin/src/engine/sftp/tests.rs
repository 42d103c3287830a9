//! Against OpenSSH's own server of SFTP, without a network, and against servers that lie, end or say nothing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ::tests::needs::{Lack, demand};
use ::tests::noise;

use super::super::SharedMeter;
use super::*;

fn server() -> Command {
    let places = ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server"];
    let found = places.into_iter().find(|place| Path::new(place).exists());
    demand(found.map(drop).ok_or(Lack::Program("sftp-server")));
    Command::new(found.unwrap())
}

fn shell(script: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", script]);
    shell
}

/// A store whose connections are to what `command` starts; how often that was.
fn store_over(
    root: &Path,
    patience: Duration,
    command: impl Fn() -> Command + Send + Sync + 'static,
) -> (Sftp, Arc<AtomicUsize>) {
    let again = Again { whom: "u@h".into(), meter: SharedMeter::default(), outage_max: patience };
    let dialled = Arc::new(AtomicUsize::new(0));
    let told = Arc::clone(&dialled);
    let dial = Box::new(move || {
        told.fetch_add(1, Ordering::Relaxed);
        Line::over(command(), Duration::from_secs(10))
    });
    let store = Sftp {
        place: "sftp://u@h//srv".into(),
        root: root.display().to_string(),
        dial,
        again,
        lines: Mutex::default(),
        fewer: Condvar::new(),
        made: Mutex::default(),
    };
    (store, dialled)
}

fn good(root: &Path) -> (Sftp, Arc<AtomicUsize>) {
    store_over(root, Duration::from_secs(60), server)
}

#[test]
fn files_are_written_listed_read_and_removed_and_nothing_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("deep/main");
    let (store, dialled) = good(&root);
    let none = store.read(FileKind::Config, &Id::of(b"")).unwrap_err();
    assert_eq!(none.source.kind(), io::ErrorKind::NotFound, "{none}");
    assert!(!store.is_there(FileKind::Config, &Id::of(b"")));
    assert!(store.list(FileKind::Pack).unwrap().is_empty());
    store.make().unwrap();
    for kind in FileKind::WITH_ID {
        assert!(root.join(kind.name()).is_dir());
        for bytes in [noise(1, 5 << 20), b"short".to_vec(), Vec::new()] {
            let id = Id::of(&bytes);
            store.write(kind, &id, &bytes).unwrap();
            store.write(kind, &id, &bytes).unwrap();
            assert_eq!(store.bytes(kind, &id).unwrap(), bytes.len() as u64);
            assert!(store.read(kind, &id).unwrap() == bytes && store.is_there(kind, &id));
            assert!(store.list(kind).unwrap().contains(&(id, bytes.len() as u64)));
        }
        let large = Id::of(&noise(1, 5 << 20));
        assert!(store.read_part(kind, &large, 100_001, 3 << 20).unwrap() == noise(1, 5 << 20)[100_001..][..3 << 20]);
        assert!(store.read_part(kind, &large, 7, 0).unwrap().is_empty());
        let beyond = store.read_part(kind, &large, 5 << 20, 1).unwrap_err();
        assert_eq!(beyond.source.kind(), io::ErrorKind::UnexpectedEof, "{beyond}");
        assert_eq!(store.list(kind).unwrap().len(), 3);
        for (id, _) in store.list(kind).unwrap() {
            store.remove(kind, &id).unwrap();
            store.remove(kind, &id).unwrap();
        }
        assert!(store.list(kind).unwrap().is_empty());
    }
    assert!(store.path(FileKind::Pack, &Id::of(b"x")).starts_with("sftp://u@h//srv/data"));

    let config = Id::of(&[]);
    store.write(FileKind::Config, &config, b"first").unwrap();
    store.write(FileKind::Config, &config, b"first").unwrap();
    let there = store.write(FileKind::Config, &config, b"second").unwrap_err();
    assert_eq!(there.source.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(store.read(FileKind::Config, &config).unwrap(), b"first");
    assert_eq!(dialled.load(Ordering::Relaxed), 1, "one connection did all of it");
    let names = |at: &Path| fs::read_dir(at).unwrap().count();
    assert_eq!((names(&root), names(&root.join("keys"))), (6, 0), "no draft is left");
}

#[test]
fn what_is_damaged_is_replaced_and_what_was_left_behind_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = good(dir.path());
    let id = Id::of(b"content");
    store.write(FileKind::Index, &id, b"content").unwrap();
    let path = dir.path().join("index").join(id.to_string());
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let before = fs::metadata(&path).unwrap().ino();
    store.write(FileKind::Index, &id, b"content").unwrap();
    assert_eq!(fs::metadata(&path).unwrap().ino(), before, "the same is not written again");
    fs::write(&path, "con").unwrap();
    store.write(FileKind::Index, &id, b"content").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"content");
    let [old, new] = ["old", "new"].map(|mark| dir.path().join("index").join(format!("{id}-tmp-{mark}")));
    let stranger = dir.path().join("index/notes-tmp-old");
    for draft in [&old, &new, &stranger] {
        let file = fs::File::create(draft).unwrap();
        if draft != &new {
            file.set_modified(SystemTime::now() - 2 * DRAFT_LEFT_BEHIND).unwrap();
        }
    }
    assert_eq!(store.list(FileKind::Index).unwrap(), [(id, 7)]);
    assert!(!old.exists() && new.exists() && stranger.exists());
    // Also after somebody has removed the directory that was made.
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let failed = store.write(FileKind::Index, &id, b"content");
    assert!(failed.is_err() || path.exists());
    store.write(FileKind::Index, &id, b"content").unwrap();
}

#[test]
fn many_directories_are_listed_at_once_and_threads_have_few_connections() {
    let dir = tempfile::tempdir().unwrap();
    let (store, dialled) = good(dir.path());
    let packs: Vec<Vec<u8>> = (0..300u32).map(|number| number.to_le_bytes().to_vec()).collect();
    std::thread::scope(|scope| {
        for part in packs.chunks(30) {
            let store = &store;
            scope.spawn(move || {
                part.iter().for_each(|bytes| store.write(FileKind::Pack, &Id::of(bytes), bytes).unwrap());
            });
        }
    });
    let mut listed = store.list(FileKind::Pack).unwrap();
    listed.sort_unstable();
    let mut expected: Vec<(Id, u64)> = packs.iter().map(|bytes| (Id::of(bytes), 4)).collect();
    expected.sort_unstable();
    assert_eq!(listed, expected);
    assert!((1..=LINES_MAX).contains(&dialled.load(Ordering::Relaxed)));
}

#[test]
fn a_connection_that_ended_is_made_anew_and_one_that_ends_in_the_middle_too() {
    let dir = tempfile::tempdir().unwrap();
    let (store, dialled) = good(dir.path());
    store.write(FileKind::Index, &Id::of(b"a"), b"a").unwrap();
    let ended = |line: &mut Line| {
        line.end();
        Ok(())
    };
    store.ask(ended).unwrap();
    assert_eq!(store.read(FileKind::Index, &Id::of(b"a")).unwrap(), b"a");
    assert_eq!(dialled.load(Ordering::Relaxed), 2);
    // The first server ends after two MiB of what is sent.
    let count = AtomicUsize::new(0);
    let (store, dialled) = store_over(dir.path(), Duration::from_secs(60), move || {
        let whole = server();
        let program = whole.get_program().to_str().unwrap();
        if count.fetch_add(1, Ordering::Relaxed) == 0 {
            shell(&format!("head -c 2097152 | {program}"))
        } else {
            whole
        }
    });
    let large = noise(3, 4 << 20);
    store.write(FileKind::Pack, &Id::of(&large), &large).unwrap();
    assert!(store.read(FileKind::Pack, &Id::of(&large)).unwrap() == large);
    assert_eq!(dialled.load(Ordering::Relaxed), 2);
    let directory = dir.path().join("data").join(&Id::of(&large).to_string()[..2]);
    assert_eq!(fs::read_dir(directory).unwrap().count(), 1, "the first draft is gone");
}

#[test]
fn a_server_that_lies_or_says_nothing_ends_nobodys_patience() {
    let dir = tempfile::tempdir().unwrap();
    let hello = "printf '\\0\\0\\0\\005\\002\\0\\0\\0\\003'";
    let of = |script: &str| {
        let script = script.to_owned();
        let (store, _) = store_over(dir.path(), Duration::from_millis(100), move || shell(&script));
        store.read(FileKind::Config, &Id::of(&[])).unwrap_err().source
    };
    for (script, kind, word) in [
        ("exit 0".to_owned(), io::ErrorKind::ConnectionReset, "without a word"),
        ("echo 'u@h: Permission denied (publickey).' >&2".into(), io::ErrorKind::PermissionDenied, "identity-file"),
        ("echo 'Host key verification failed.' >&2".into(), io::ErrorKind::PermissionDenied, "known-hosts-file"),
        ("echo 'subsystem request failed on channel 0' >&2".into(), io::ErrorKind::Other, "Subsystem sftp"),
        (
            "echo 'ssh: connect to host h port 22: Connection refused' >&2".into(),
            io::ErrorKind::ConnectionRefused,
            "h",
        ),
        ("echo 'Welcome to this host'".into(), io::ErrorKind::InvalidData, "does not speak SFTP"),
        ("printf '\\0\\0\\0\\005\\002\\0\\0\\0\\006'; sleep 9".into(), io::ErrorKind::InvalidData, "version 6"),
        (format!("{hello}; printf '\\377\\377\\377\\377'; sleep 9"), io::ErrorKind::InvalidData, "4294967295"),
        (
            format!("{hello}; printf '\\0\\0\\0\\011\\146\\0\\0\\0\\011\\0\\0\\0\\0'; sleep 9"),
            io::ErrorKind::InvalidData,
            "",
        ),
        (
            format!("{hello}; printf '\\0\\0\\0\\005\\310\\0\\0\\0\\001'; sleep 9"),
            io::ErrorKind::InvalidData,
            "kind 200",
        ),
    ] {
        let error = of(&script);
        assert!(error.kind() == kind && error.to_string().contains(word), "{script}: {error:?}");
    }
    let silent = Line::over(shell("sleep 60"), Duration::from_millis(200)).unwrap_err();
    assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
}

#[test]
fn ssh_is_told_everything_and_asks_nobody() {
    let login = |host: &str, port| proto::location::Login { user: "backup".into(), host: host.into(), port };
    let way = |login| Way { login, identity: "/k e y".into(), known_hosts: "/known".into() };
    let said = |way: Way| format!("{:?}", way.command());
    let command = said(way(login("[::1]", Some(2222))));
    for part in ["BatchMode=yes", "StrictHostKeyChecking=yes", "IdentityFile=\\\"/k e y\\\"", "\"2222\"", "\"::1\""] {
        assert!(command.contains(part), "{part}: {command}");
    }
    assert!(command.ends_with("\"-s\" \"--\" \"::1\" \"sftp\""), "{command}");
    assert!(said(way(login("store.example", None))).contains("\"22\""));
}
