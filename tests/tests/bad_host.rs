//! A host on which things go wrong that the daemon did not do: stopped processes, strangers' hands, changed bytes, other daemons.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tests::command::{Output, until};
use tests::{Host, Manager, Proxy, TreeFixture, files_below, noise};

fn program(says: &str) -> TreeFixture {
    let tree = TreeFixture::new();
    tree.file("bin/tool", 0o755, format!("#!/bin/sh\necho {says}\n"));
    tree
}

/// The worker of a mount daemon, by what its command line says.
fn worker(holder: u32) -> Pid {
    let of = |pid: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<u32>().ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        (parent == holder && String::from_utf8_lossy(&line).contains("__worker")).then_some(())?;
        Pid::from_raw(pid.parse().ok()?)
    };
    until("there is a worker", || {
        let all = fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|entry| of(entry.file_name().to_str()?)).next()
    })
}

fn signal(pid: Pid, signal: Signal) {
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Puts other bytes into a file, of the same number, and gives it its old time.
fn tamper(path: &Path, from: &str, to: &str) {
    let before = fs::metadata(path).unwrap();
    let bytes = fs::read(path).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("what is changed");
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(to.as_bytes(), at as u64).unwrap();
    file.set_times(fs::FileTimes::new().set_modified(before.modified().unwrap())).unwrap();
    fs::set_permissions(path, before.permissions()).unwrap();
}

#[test]
fn bytes_that_were_changed_on_the_disk_are_not_executed() {
    let manager = Manager::start();
    manager.publish("sample", "1.0", program("works").path());
    let host = Host::mounted("host-1", &manager);
    manager.export("sample@1.0", "host-1");
    let run = || host.run(&["exec", "sample@1.0", "--", "tool"]);
    host.attach("sample@1.0");
    host.wait_until_local();
    assert_eq!(run().text(), "works");
    let objects = files_below(&host.path("cache/local"));
    let object = objects.iter().find(|path| fs::read(path).unwrap().starts_with(b"#!")).unwrap();
    // Between two starts of what is attached.
    tamper(object, "works", "wrong");
    assert_eq!(run().text(), "works");
    // Between release and attach, however soon.
    host.wait_until_local();
    tamper(object, "works", "wrong");
    host.run(&["release", "sample@1.0"]).expect(0);
    let path = host.attach("sample@1.0");
    assert!(fs::read_to_string(path.join("bin/tool")).unwrap().contains("works"));
    // Through the browsing view.
    host.wait_until_local();
    tamper(object, "works", "wrong");
    let view = fs::read_to_string(host.mountpoint().join("sample/1.0/bin/tool")).unwrap();
    assert!(view.contains("works"), "{view}");
}

#[test]
fn status_answers_within_a_second_and_a_stopped_worker_is_replaced() {
    let manager = Manager::start();
    manager.publish("sample", "1.0", program("works").path());
    let host = Host::mounted("host-1", &manager);
    manager.export("sample@1.0", "host-1");
    host.attach("sample@1.0");
    let stopped = worker(host.holder_pid());
    signal(stopped, Signal::STOP);
    let begun = Instant::now();
    let status = host.run(&["status", "--json"]).expect(3).json();
    let took = begun.elapsed();
    assert_eq!(status["daemon"]["running"], false);
    assert!(status["daemon"]["reason"].as_str().unwrap().contains("no sign of life"), "{status}");
    assert!(took < Duration::from_millis(2_500), "{took:?}: half a second, and the time to start a program");
    until("it is replaced", || (worker(host.holder_pid()) != stopped).then_some(()));
    assert_eq!(host.run(&["exec", "sample@1.0", "--", "tool"]).text(), "works");
    assert_eq!(host.status()["daemon"]["running"], true);
}

#[test]
fn a_worker_that_is_told_to_end_alone_is_replaced() {
    let manager = Manager::start();
    let mut host = Host::mounted("host-1", &manager);
    let first = worker(host.holder_pid());
    signal(first, Signal::TERM);
    until("it is replaced", || (worker(host.holder_pid()) != first).then_some(()));
    assert_eq!(host.status()["daemon"]["running"], true);
    assert_eq!(host.unmount(), Some(0), "the daemon as a whole ends when it is told to");
}

#[test]
fn what_a_stranger_unmounts_is_attached_again() {
    let manager = Manager::start();
    manager.publish("sample", "1.0", program("works").path());
    let host = Host::mounted("host-1", &manager);
    manager.export("sample@1.0", "host-1");
    let path = host.attach("sample@1.0");
    let mut umount = Command::new("umount");
    if let Some(pid) = host.status()["daemon"]["namespace_pid"].as_u64() {
        umount = Command::new("nsenter");
        umount.args(["-t", &pid.to_string(), "-U", "-m", "--preserve-credentials", "umount"]);
    }
    Output::of(umount.arg("-l").arg(host.told(&path))).expect(0);
    assert!(!path.join("bin/tool").exists());
    assert_eq!(host.attach("sample@1.0"), path);
    assert!(path.join("bin/tool").exists());
}

#[test]
fn two_daemons_share_no_directory() {
    let manager = Manager::start();
    let host = Host::mounted("host-1", &manager);
    let other = host.path("other");
    fs::create_dir(&other).unwrap();
    for (variable, flag) in [("MANAGER_FS_STATE", "--cache"), ("MANAGER_FS_CACHE", "--state")] {
        let mut second = host.command(&["mount"]);
        // A run directory of its own, and of the two others only the one that `flag` does not name.
        second.env("MANAGER_FS_RUN", other.join("run"));
        match variable {
            "MANAGER_FS_STATE" => {
                let copy = Command::new("cp").arg("-a").arg(host.path("state")).arg(other.join("state")).status();
                assert!(copy.unwrap().success());
                second.env(variable, other.join("state"));
            }
            _ => drop(second.env(variable, other.join("cache"))),
        }
        let refused = Output::of(&mut second).expect(1);
        assert!(refused.stderr.contains("already runs") && refused.stderr.contains(flag), "{refused:?}");
    }
    for lock in ["run/mount.lock", "state/mount.lock", "cache/mount.lock"] {
        let mode = fs::metadata(host.path(lock)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{lock}: whoever can open it can take it");
    }
}

#[test]
fn a_read_takes_its_deadline_and_no_longer() {
    let manager = Manager::start();
    let tree = TreeFixture::new();
    tree.file("big", 0o644, noise(1, 6 << 20));
    manager.publish("sample", "1.0", tree.path());
    let proxy = Proxy::start(&manager.address());
    let mut host = Host::new("host-1");
    host.enroll(&manager, &proxy.address());
    host.mount(&["--read-deadline", "3s", "--hydrate-rate", "1"]);
    manager.export("sample@1.0", "host-1");
    let path = host.attach("sample@1.0");
    proxy.cut();
    let begun = Instant::now();
    let error = fs::File::open(path.join("big")).unwrap().read_at(&mut vec![0; 1 << 20], 4 << 20).unwrap_err();
    let took = begun.elapsed();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert!(took > Duration::from_millis(2_500) && took < Duration::from_millis(5_000), "{took:?}");
}

#[test]
fn names_that_are_no_utf_8_end_nothing() {
    let manager = Manager::start();
    let host = Host::new("host-1");
    host.enroll(&manager, &manager.address());
    let odd = host.path("").join(OsStr::from_bytes(b"odd-\xff"));
    let mut mount = host.command(&["mount"]);
    mount.env("MANAGER_FS_CACHE", odd.join("cache"));
    let mut service = tests::command::Service::start("mount", mount.arg(odd.join("view")));
    assert_eq!(host.status()["daemon"]["running"], true);
    assert_eq!(service.end(), Some(0), "{}", service.log());
}
