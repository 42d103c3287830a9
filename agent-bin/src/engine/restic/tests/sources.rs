//! Sources that move, block, or have what ordinary files have not.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use super::*;
use crate::engine::beneath::Beneath;

/// Backs up while `meanwhile` runs, which is told when the first bytes have been read.
fn backup_while(bench: &Bench, source: &Path, meanwhile: impl FnOnce(&AtomicBool) + Send) -> (Work, Vec<String>) {
    let meter = SharedMeter::default();
    let ended = AtomicBool::new(false);
    let work = std::thread::scope(|scope| {
        scope.spawn(|| {
            while meter.read().0 == 0 && !ended.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
            meanwhile(&ended);
        });
        let work =
            bench.engine.backup(&bench.at(), &[source], &BackupOptions::default(), &mark(false), &meter).unwrap();
        ended.store(true, Ordering::Relaxed);
        work
    });
    (work, meter.take_problems().into_lines())
}

/// Restores the newest snapshot, which must raise no problem.
fn restored(bench: &Bench, name: &str) -> PathBuf {
    let (target, meter) = (bench.path(name), SharedMeter::default());
    bench
        .engine
        .restore(&bench.at(), &reference("latest"), &target, &RestoreOptions::default(), &mark(false), &meter)
        .unwrap();
    assert_eq!(meter.take_problems().into_lines(), Vec::<String>::new());
    target
}

#[test]
fn a_file_that_grows_or_shrinks_is_stored_with_the_size_that_was_read() {
    const SIZE: u64 = 300 << 20;
    for (name, grows) in [("grows", true), ("shrinks", false)] {
        let bench = Bench::new();
        let source = bench.path("source");
        fs::create_dir(&source).unwrap();
        let path = source.join(name);
        let file = File::create(&path).unwrap();
        file.set_len(SIZE).unwrap();
        let (_, problems) = backup_while(&bench, &source, |_| {
            file.set_len(if grows { SIZE + 1000 } else { SIZE / 2 }).unwrap();
        });
        assert_eq!(problems.len(), 1, "{name}: {problems:?}");
        assert!(problems[0].contains(name) && problems[0].contains("changed while it was read"), "{problems:?}");
        let target = restored(&bench, "target");
        let length = fs::metadata(target.join(name)).unwrap().len();
        assert!(if grows { length == SIZE } else { (SIZE / 2..SIZE).contains(&length) }, "{name}: {length}");
        // Its change is stored by the next backup.
        let (_, problems) = bench.backup(&source);
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(bench.verify("latest"), Vec::<String>::new());
    }
}

#[test]
fn fifos_sockets_and_devices_are_stored_as_what_they_are_and_never_opened() {
    let bench = Bench::new();
    let source = bench.path("source");
    fs::create_dir(&source).unwrap();
    let mode = Mode::from_raw_mode(0o640);
    rustix::fs::mknodat(CWD, source.join("fifo"), FileType::Fifo, mode, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(source.join("socket")).unwrap();
    fs::write(source.join("file"), "beside them").unwrap();
    let (_, problems) = bench.backup(&source);
    assert_eq!(problems, Vec::<String>::new());
    let target = restored(&bench, "target");
    let kind = |name: &str| fs::symlink_metadata(target.join(name)).unwrap().file_type();
    assert!(kind("fifo").is_fifo() && kind("socket").is_socket());
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "beside them");
    assert_eq!(bench.verify("latest"), Vec::<String>::new());

    // As sources themselves; reading any of them would never end.
    for (number, source) in [source.join("fifo"), source.join("socket"), "/dev/zero".into()].iter().enumerate() {
        let bench = Bench::new();
        let (work, problems) = bench.backup(source);
        assert_eq!((work.files, problems), (1, Vec::new()), "{number}");
        assert_eq!(bench.verify("latest"), Vec::<String>::new());
    }
}

#[test]
fn what_becomes_a_fifo_after_it_was_seen_blocks_nobody() {
    let bench = Bench::new();
    let source = bench.path("source");
    fs::create_dir(&source).unwrap();
    // Read first, and for a while: long enough for the swap of what comes behind it.
    File::create(source.join("a")).unwrap().set_len(300 << 20).unwrap();
    for number in 0..600 {
        fs::write(source.join(format!("b{number}")), "x").unwrap();
    }
    let (_, problems) = backup_while(&bench, &source, |ended| {
        for number in (0..600).rev() {
            let path = source.join(format!("b{number}"));
            fs::remove_file(&path).unwrap();
            rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
            if ended.load(Ordering::Relaxed) {
                break;
            }
        }
    });
    assert!(
        problems.iter().all(|line| line.contains("became a fifo") || line.contains("No such file")),
        "{problems:?}"
    );
}

#[test]
fn a_backup_stops_in_the_middle_of_a_large_file_and_loses_no_work() {
    let bench = Bench::new();
    let source = bench.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("small"), noise(3, 2_000_000)).unwrap();
    File::create(source.join("z-large")).unwrap().set_len(40 << 30).unwrap();
    let meter = SharedMeter::default();
    let (stopped, took) = std::thread::scope(|scope| {
        let backup = scope
            .spawn(|| bench.engine.backup(&bench.at(), &[&source], &BackupOptions::default(), &mark(false), &meter));
        while meter.read().0 < 400 << 20 {
            std::thread::yield_now();
        }
        let asked = Instant::now();
        meter.stop();
        (backup.join().unwrap(), asked.elapsed())
    });
    assert!(matches!(stopped, Err(EngineError::Stopped)), "{stopped:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    let none = bench.engine.verify(&bench.at(), &reference("latest"), &mark(false), &SharedMeter::default());
    assert!(matches!(none, Err(EngineError::Reference { .. })), "{none:?}");
    fs::remove_file(source.join("z-large")).unwrap();
    let (work, _) = bench.backup(&source);
    assert!(work.repository_bytes < 20_000, "what was read is stored: {work:?}");
    assert_eq!(fs::read_dir(bench.path("repo/locks")).unwrap().count(), 0);
}

#[test]
fn names_of_files_and_attributes_that_nobody_expects_come_back() {
    let bench = Bench::new();
    let source = bench.path("source");
    fs::create_dir(&source).unwrap();
    let names = [&b".manager-fs-restoring"[..], b"\xff\xfe", b"a\\b", b"line\nend", b"latest", b"a.damaged"];
    for name in names {
        fs::write(source.join(OsStr::from_bytes(name)), name).unwrap();
    }
    let file = source.join("latest");
    for (name, value) in [(&b"user.\xff\xfe"[..], &b"\x00\xff"[..]), (b"user.empty", b""), (b"user.\xfe\xff", b"2")] {
        rustix::fs::setxattr(&file, OsStr::from_bytes(name), value, XattrFlags::empty()).unwrap();
    }
    let (_, problems) = bench.backup(&source);
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(bench.verify("latest"), Vec::<String>::new());
    let target = restored(&bench, "target");
    for name in names {
        assert_eq!(fs::read(target.join(OsStr::from_bytes(name))).unwrap(), name);
    }
    let latest = Beneath::at(&target).unwrap().look(Path::new("latest")).unwrap();
    let found = crate::engine::live::attribute_names(&latest).unwrap();
    assert!(found.contains(&b"user.\xff\xfe"[..]) && found.len() == 3, "{found:?}");
    let value = crate::engine::live::attribute(&latest, b"user.\xff\xfe").unwrap();
    assert_eq!(value, b"\x00\xff");
    restic(&bench, &["check", "--read-data"]);
}

#[test]
fn a_gigabyte_of_nothing_comes_back_as_a_hole() {
    let bench = Bench::new();
    let source = bench.path("source");
    fs::create_dir(&source).unwrap();
    let file = File::create(source.join("sparse")).unwrap();
    file.set_len(1 << 30).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"in the middle", 500_000_001).unwrap();
    let (work, problems) = bench.backup(&source);
    assert_eq!(problems, Vec::<String>::new());
    assert!(work.repository_bytes < 1_000_000, "{work:?}");
    let target = restored(&bench, "target");
    let metadata = fs::metadata(target.join("sparse")).unwrap();
    assert_eq!(metadata.len(), 1 << 30);
    assert!(metadata.blocks() * 512 < 1 << 20, "{} bytes on the disk", metadata.blocks() * 512);
    assert_eq!(bench.verify("latest"), Vec::<String>::new());
}

#[test]
fn pieces_are_cut_where_restic_cuts_them() {
    let bench = Bench::new();
    let source = bench.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("large"), noise(9, 30_000_000)).unwrap();
    bench.backup(&source);
    let added = restic(&bench, &["backup", "--json", &source.display().to_string()]);
    let summary = added.lines().last().unwrap();
    let summary: serde_json::Value = serde_json::from_str(summary).unwrap();
    assert_eq!(summary["data_blobs"], 0, "{summary}");
}

#[test]
fn a_tree_that_is_deeper_than_a_process_has_descriptors_is_backed_up_as_deep_as_paths_go() {
    let bench = Bench::new();
    let source = bench.path("source");
    fs::create_dir(&source).unwrap();
    let mut here = rustix::fs::open(&source, rustix::fs::OFlags::PATH, Mode::empty()).unwrap();
    for _ in 0..2_500 {
        rustix::fs::mkdirat(&here, "d", Mode::RWXU).unwrap();
        here = rustix::fs::openat(&here, "d", rustix::fs::OFlags::PATH, Mode::empty()).unwrap();
    }
    let (_, problems) = bench.backup(&source);
    assert!(problems.len() == 1 && problems[0].contains("too long"), "{problems:?}");
}
