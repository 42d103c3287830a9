//! Holder, worker and helper die, and are replaced.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proto::width;

use crate::lab::Lab;
use crate::tree::describe;

pub(crate) fn killing_the_worker_again_and_again_goes_unnoticed() {
    let dir = tempfile::tempdir().unwrap();
    let (mut lab, source, tree) = Lab::with_tree(dir.path());
    let others: Vec<_> = (0..8)
        .map(|n| {
            let other = dir.path().join(format!("other-{n}"));
            fs::create_dir(&other).unwrap();
            fs::write(other.join("file"), vec![n; 200_000]).unwrap();
            (lab.origin.publish(&other), n)
        })
        .collect();
    // Slow enough that kills meet requests in flight.
    lab.set("slow", Some("1"));
    lab.start("hold");
    let root = lab.attach(&tree);
    let want = fs::read(source.join("lib/big")).unwrap();
    let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    let longest_us = AtomicU64::new(0);
    let mut kills = 0;
    std::thread::scope(|scope| {
        for reader in 0..4u64 {
            let (stop, reads, root, want, longest_us) = (&stop, &reads, &root, &want, &longest_us);
            scope.spawn(move || {
                let mut seed = reader + 1;
                while !stop.load(Ordering::Relaxed) {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let begun = Instant::now();
                    let file = fs::File::open(root.join("lib/big")).unwrap();
                    let offset = (seed >> 20) % (want.len() as u64 - 9_000);
                    let mut bytes = vec![0; 9_000];
                    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, offset).unwrap();
                    assert!(bytes == want[offset as usize..offset as usize + 9_000]);
                    // What is read again must come from the worker and not from the page cache.
                    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
                    assert!(Command::new(root.join("bin/hello")).output().unwrap().status.success());
                    reads.fetch_add(1, Ordering::Relaxed);
                    longest_us.fetch_max(width::micros(begun.elapsed()), Ordering::Relaxed);
                }
            });
        }
        for round in 0..24 {
            if let Some((other, n)) = others.get(round % 12) {
                // In the middle of an attach.
                let attaching = scope.spawn(|| lab.attach(other));
                std::thread::sleep(Duration::from_millis(round as u64 % 5));
                lab.kill_worker();
                let root = attaching.join().unwrap();
                assert_eq!(fs::read(root.join("file")).unwrap(), vec![*n; 200_000]);
                lab.ask(&format!("release {other}"));
            } else {
                std::thread::sleep(Duration::from_millis(60));
                lab.kill_worker();
            }
            kills += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    let (reads, longest) = (reads.into_inner(), longest_us.into_inner() / 1000);
    eprintln!("{kills} kills, {reads} verified rounds of read and exec, 0 errors, longest {longest} ms");
    assert!(kills >= 20 && reads > 100);
}

pub(crate) fn a_new_daemon_replaces_what_a_killed_one_left() {
    let dir = tempfile::tempdir().unwrap();
    let (mut lab, source, tree) = Lab::with_tree(dir.path());
    lab.start("hold");
    let root = lab.attach(&tree);
    assert!(Command::new(root.join("bin/hello")).output().unwrap().status.success());
    let in_use = fs::File::open(root.join("bin")).unwrap();
    lab.kill_holder();
    let mut lab = Lab::new(dir.path());
    lab.start("hold");
    // The old overlay is in use and its FUSE layer is dead: the new one is mounted over it.
    assert_eq!(lab.attach(&tree), root);
    assert_eq!(fs::read(root.join("lib/big")).unwrap(), fs::read(source.join("lib/big")).unwrap());
    lab.ask(&format!("release {tree}"));
    drop(in_use);
    assert_eq!(lab.ask(&format!("attach {tree}")), format!("ok {}", root.display()));
    assert_eq!(describe(&root), describe(&source));
    lab.ask(&format!("release {tree}"));
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&tree.to_hex()), "the dead mount is gone too, once nobody uses it");
}

pub(crate) fn killing_the_helper_in_the_middle_of_attaches_goes_unnoticed() {
    let dir = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(dir.path());
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    (0..500).for_each(|n| fs::write(source.join(format!("{n}")), format!("content {n}")).unwrap());
    let tree = lab.origin.publish(&source);
    lab.start("hold");
    for round in 0..12u64 {
        let root = std::thread::scope(|scope| {
            let attaching = scope.spawn(|| lab.attach(&tree));
            std::thread::sleep(Duration::from_millis(round * 3));
            lab.kill_helper();
            attaching.join().unwrap()
        });
        assert_eq!(fs::read_dir(&root).unwrap().count(), 500);
        assert_eq!(fs::read(root.join("77")).unwrap(), b"content 77");
        assert_eq!(lab.ask(&format!("release {tree}")), "ok");
        // Not even what a helper had mounted just before it was killed.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(&tree.to_hex()), "{mounts}");
    }
    lab.stop();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(dir.path().to_str().unwrap()), "{mounts}");
}

pub(crate) fn a_signal_to_every_process_still_unmounts() {
    let dir = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(dir.path());
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), b"content").unwrap();
    let tree = lab.origin.publish(&source);
    lab.start("hold");
    assert_eq!(fs::read(lab.attach(&tree).join("file")).unwrap(), b"content");
    // As a service manager does that kills a whole control group.
    lab.kill_helper();
    lab.stop();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(dir.path().to_str().unwrap()), "{mounts}");
}

pub(crate) fn a_stopped_worker_or_helper_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (mut lab, source, tree) = Lab::with_tree(dir.path());
    lab.start("hold");
    let root = lab.attach(&tree);
    let stopped = lab.worker_pid();
    signal(stopped, rustix::process::Signal::STOP);
    // A read that only the worker can answer.
    assert_eq!(fs::read(root.join("lib/big")).unwrap(), fs::read(source.join("lib/big")).unwrap());
    assert_ne!(lab.worker_pid(), stopped);
    lab.signal_helper(rustix::process::Signal::STOP);
    assert_eq!(lab.ask(&format!("release {tree}")), "ok", "another helper unmounts it");
}

pub(crate) fn a_view_that_somebody_unmounts_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (mut lab, source, tree) = Lab::with_tree(dir.path());
    lab.start("hold");
    let mountpoint = lab.layout().mountpoint;
    rustix::mount::unmount(&mountpoint, rustix::mount::UnmountFlags::DETACH).unwrap();
    let is_back = || fs::read_to_string("/proc/self/mounts").unwrap().contains(mountpoint.to_str().unwrap());
    let begun = Instant::now();
    while !is_back() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it does not come back");
        std::thread::sleep(Duration::from_millis(20));
    }
    let root = lab.attach(&tree);
    assert_eq!(fs::read(root.join("lib/big")).unwrap(), fs::read(source.join("lib/big")).unwrap());
    assert_eq!(lab.ask(&format!("release {tree}")), "ok");
    lab.stop();
    assert!(!is_back(), "and goes with the daemon");
}

fn signal(pid: i32, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
}
