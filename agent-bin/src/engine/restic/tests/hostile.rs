//! A restore into a directory that somebody else changes meanwhile: nothing outside of it is written, read or given away.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use rustix::fs::{CWD, RenameFlags};

use super::*;

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
    let backup = || bench.engine.backup(&at, &[&source], &mark(false), &SharedMeter::default());
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
