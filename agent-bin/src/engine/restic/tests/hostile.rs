//! A restore into a directory that somebody else changes meanwhile: nothing outside of it is written, read or given away.
//! A backup of such a directory: nothing outside of it is read.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use rustix::fs::{CWD, RenameFlags};

use super::*;
use crate::engine::format::index::BlobKind;

/// What a directory is, with all that is in it.
fn all_of(directory: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(path) = left.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let (mode, user, group) = (metadata.mode(), metadata.uid(), metadata.gid());
        let (mtime, ctime) = (metadata.mtime_nsec(), metadata.ctime_nsec());
        let content = if metadata.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        lines.push(format!("{path:?} {mode:o} {user}:{group} {mtime} {ctime} {content:?}"));
        if metadata.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    lines.sort();
    lines
}

/// Directories that a restore fills for a while, each named like what lies outside.
fn source(bench: &Bench) -> PathBuf {
    let source = bench.path("source");
    for directory in ["a", "a/deep", "b"] {
        fs::create_dir_all(source.join(directory)).unwrap();
        for number in 0..20 {
            fs::write(source.join(directory).join(format!("file-{number}")), noise(number, 2_000)).unwrap();
        }
        symlink("nowhere", source.join(directory).join("link")).unwrap();
        rustix::fs::mkfifoat(CWD, source.join(directory).join("fifo"), rustix::fs::Mode::RWXU).unwrap();
    }
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(source.join("a/deep"), Some(12_345), Some(12_345)).unwrap();
        std::os::unix::fs::chown(source.join("a"), Some(12_345), Some(12_345)).unwrap();
    }
    source
}

/// The same names as in [`source`], each with something that nobody may touch.
fn outside(bench: &Bench) -> PathBuf {
    let outside = bench.path("outside");
    fs::create_dir_all(outside.join("deep")).unwrap();
    for name in ["file-0", "file-1", "deep/file-2", "link", "fifo"] {
        fs::write(outside.join(name), "precious").unwrap();
    }
    outside
}

#[test]
fn a_directory_that_is_exchanged_for_a_link_again_and_again_leads_nowhere() {
    let bench = Bench::new();
    let source = source(&bench);
    bench.backup(&source);
    let outside = outside(&bench);
    let before = all_of(&outside);
    let (ended, exchanged) = (AtomicBool::new(false), AtomicUsize::new(0));
    let decoy = bench.path("decoy");
    symlink(&outside, &decoy).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                for (round, name) in ["a", "b", "a/deep"].into_iter().cycle().enumerate().take(90) {
                    let entry = bench.path(&format!("target-{}", round % 4)).join(name);
                    let exchange = || rustix::fs::renameat_with(CWD, &entry, CWD, &decoy, RenameFlags::EXCHANGE);
                    if exchange().is_ok() {
                        exchanged.fetch_add(1, Ordering::Relaxed);
                        std::thread::yield_now();
                        let _ = exchange();
                    }
                }
            }
        });
        let begun = Instant::now();
        let mut troubled = 0;
        // Until the exchange has been met, and often enough to have been met in every place.
        for round in 0.. {
            let target = bench.path(&format!("target-{}", round % 4));
            drop(fs::remove_dir_all(&target));
            if let (Ok(_), problems) = bench.restore(&target) {
                troubled += usize::from(!problems.is_empty());
            }
            assert_eq!(all_of(&outside), before, "round {round}");
            if (troubled >= 5 && round >= 12) || begun.elapsed() > Duration::from_secs(60) {
                break;
            }
        }
        ended.store(true, Ordering::Relaxed);
        assert!(troubled > 0, "the exchange was never met; it was made {exchanged:?} times");
    });
}

/// Exchanges each entry for the decoy and back, as fast as it can, until `ended`.
fn exchange(entries: &[(PathBuf, PathBuf)], ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        for (entry, decoy) in entries {
            let exchange = || rustix::fs::renameat_with(CWD, entry, CWD, decoy, RenameFlags::EXCHANGE);
            if exchange().is_ok() {
                std::thread::sleep(Duration::from_micros(100));
                exchange().unwrap();
            }
        }
    }
}

/// Says when it is dropped that something has ended, so that nobody goes on after a failed test.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether a file with just this content is in the bench's repository.
fn is_stored(bench: &Bench, content: &[u8]) -> bool {
    let meter = SharedMeter::default();
    let access = Access::Shared;
    let session = Session::open(&bench.path("state"), &bench.at(), access, false, &mark(false), &meter).unwrap();
    session.index(&meter).unwrap().has(BlobKind::Data, &Id::of(content))
}

#[test]
fn a_backup_is_led_out_of_its_source_by_no_link_that_is_put_there_meanwhile() {
    let bench = Bench::new();
    // The user's own: what is backed up, and the directory above it.
    let (own, source) = (bench.path("allowed/own"), bench.path("allowed/own/source"));
    // Nobody else's, with the same names.
    let (outside, secret) = (bench.path("outside"), bench.path("outside/source"));
    for directory in ["a", "a/deep", "b"] {
        for (place, content) in [(&source, "own"), (&secret, "precious")] {
            fs::create_dir_all(place.join(directory)).unwrap();
            for number in 0..20 {
                fs::write(place.join(directory).join(format!("file-{number}")), content).unwrap();
            }
        }
    }
    let mut entries = vec![(own, bench.path("decoy"))];
    symlink(&outside, bench.path("decoy")).unwrap();
    for (number, below) in ["a", "b", "a/deep", "b/file-3"].into_iter().enumerate() {
        let decoy = bench.path(&format!("decoy-{number}"));
        symlink(secret.join(below), &decoy).unwrap();
        entries.push((source.join(below), decoy));
    }
    fs::create_dir(bench.path("state")).unwrap();
    let allowed = format!("[backup]\nsources = [{:?}]\n", bench.path("allowed"));
    fs::write(bench.path("state").join(agent_core::internal::PERMITS_FILE), allowed).unwrap();
    let permits = Permits::read(&bench.path("state"), &bench.path("run")).unwrap();
    let mark = Mark { permits: Arc::new(permits), ..mark(false) };

    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| exchange(&entries, &ended));
        let _ended = Ends(&ended);
        let begun = Instant::now();
        let (mut refused, mut troubled) = (0, 0);
        while (refused < 2 || troubled < 5) && begun.elapsed() < Duration::from_secs(60) {
            let meter = SharedMeter::default();
            match bench.engine.backup(&bench.at(), &[&source], &BackupOptions::default(), &mark, &meter) {
                Ok(_) => troubled += usize::from(!meter.take_problems().into_lines().is_empty()),
                Err(error) => {
                    let error = error.to_string();
                    assert!(error.contains("does not permit") || error.contains("symbolic link"), "{error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 0 && troubled > 0, "the exchange was never met: {refused} refused, {troubled} troubled");
    });
    assert!(is_stored(&bench, b"own"));
    assert!(!is_stored(&bench, b"precious"), "a file of somebody else is in the repository");
}

#[test]
fn what_may_not_be_backed_up_is_not_compared_either() {
    let bench = Bench::new();
    let source = source(&bench);
    bench.backup(&source);
    fs::write(bench.path("state").join(agent_core::internal::PERMITS_FILE), "[backup]\nsources = [\"/srv\"]\n")
        .unwrap();
    let permits = Permits::read(&bench.path("state"), &bench.path("run")).unwrap();
    let mark = Mark { permits: Arc::new(permits), ..mark(false) };
    let meter = SharedMeter::default();
    let work = bench.engine.verify(&bench.at(), &reference("latest"), &mark, &meter).unwrap();
    let problems = meter.take_problems().into_lines();
    assert!(problems.len() == 1 && problems[0].contains("line 2: backup.sources"), "{problems:?}");
    assert_eq!(work.files, 0);
}

#[test]
fn a_continued_restore_follows_no_link_that_was_put_there_meanwhile() {
    let bench = Bench::new();
    let (work, _) = bench.backup(&source(&bench));
    let outside = outside(&bench);
    let target = bench.path("target");
    bench.cut_off(&target, &work);
    symlink(&outside, target.join("a")).unwrap();
    fs::create_dir(target.join("b")).unwrap();
    symlink(outside.join("file-0"), target.join("b/file-0")).unwrap();
    let before = all_of(&outside);
    let (ended, problems) = bench.restore(&target);
    ended.unwrap();
    assert_eq!(all_of(&outside), before);
    let problems = problems.join("\n");
    assert!(problems.contains("target/a: "), "{problems}");
    assert!(target.join("b/file-0").symlink_metadata().unwrap().is_file(), "a link is replaced by the file");
}

#[test]
fn a_file_with_another_name_elsewhere_is_neither_written_to_nor_given_away() {
    let bench = Bench::new();
    let source = source(&bench);
    let (work, _) = bench.backup(&source);
    let outside = bench.path("outside");
    fs::create_dir(&outside).unwrap();
    // One with other content, and one with just the content that the snapshot has.
    fs::write(outside.join("other"), "precious").unwrap();
    fs::write(outside.join("same"), fs::read(source.join("a/file-1")).unwrap()).unwrap();
    fs::set_permissions(outside.join("same"), fs::Permissions::from_mode(0o400)).unwrap();
    let target = bench.path("target");
    bench.cut_off(&target, &work);
    fs::create_dir(target.join("a")).unwrap();
    fs::hard_link(outside.join("other"), target.join("a/file-0")).unwrap();
    fs::hard_link(outside.join("same"), target.join("a/file-1")).unwrap();
    let (ended, problems) = bench.restore(&target);
    ended.unwrap();
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(fs::read_to_string(outside.join("other")).unwrap(), "precious");
    for name in ["other", "same"] {
        let metadata = fs::metadata(outside.join(name)).unwrap();
        assert_eq!(metadata.nlink(), 1, "{name}: its second name is another file now");
        assert_eq!(metadata.uid(), rustix::process::geteuid().as_raw());
    }
    assert_eq!(fs::metadata(outside.join("same")).unwrap().mode() & 0o777, 0o400);
}

#[test]
fn a_password_file_that_anybody_can_write_is_not_taken() {
    let bench = Bench::new();
    let source = source(&bench);
    let file = bench.path("password");
    fs::write(&file, "secret\n").unwrap();
    let at = Location { password_file: Some(file.display().to_string()), ..bench.at() };
    let backup =
        || bench.engine.backup(&at, &[&source], &BackupOptions::default(), &mark(false), &SharedMeter::default());
    fs::set_permissions(&file, fs::Permissions::from_mode(0o606)).unwrap();
    let refused = backup().unwrap_err().to_string();
    assert!(refused.contains("password file") && refused.contains("0606"), "{refused}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    backup().unwrap();
    fs::remove_file(&file).unwrap();
    rustix::fs::mkfifoat(CWD, &file, rustix::fs::Mode::RWXU).unwrap();
    let refused = backup().unwrap_err().to_string();
    assert!(refused.contains("no plain file"), "{refused}");
}
