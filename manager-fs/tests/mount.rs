//! The mount as its users meet it: real processes, real mounts. Needs root and /dev/fuse.

mod lab;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lab::Lab;

/// Not a test: holder, worker and helper are this binary, started again.
#[test]
fn lab_process() {
    lab::process();
}

/// A tree with everything that a tree may have.
fn make_tree(dir: &Path) {
    fs::create_dir_all(dir.join("bin")).unwrap();
    fs::create_dir_all(dir.join("lib/deep/er")).unwrap();
    fs::copy("/bin/sh", dir.join("bin/shell")).unwrap();
    let script = dir.join("bin/hello");
    fs::write(&script, "#!/bin/sh\necho hello from $0\n").unwrap();
    for program in ["bin/shell", "bin/hello"] {
        fs::set_permissions(dir.join(program), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::write(dir.join("empty"), b"").unwrap();
    let big: Vec<u8> = (0..3_000_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(dir.join("lib/big"), &big).unwrap();
    fs::write(dir.join("lib/deep/er/secret"), b"nobody else's").unwrap();
    fs::set_permissions(dir.join("lib/deep/er/secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::hard_link(dir.join("lib/big"), dir.join("lib/big-again")).unwrap();
    std::os::unix::fs::symlink("../bin/hello", dir.join("lib/link")).unwrap();
    std::os::unix::fs::symlink("/nowhere", dir.join("lib/dangling")).unwrap();
    std::os::unix::fs::chown(dir.join("lib/big"), Some(1234), Some(4321)).unwrap();
    rustix::fs::setxattr(dir.join("lib/big"), "user.note", b"\0raw\xff", rustix::fs::XattrFlags::empty()).unwrap();
    // cap_net_bind_service=ep, revision 2.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::setxattr(dir.join("bin/shell"), "security.capability", &capability, rustix::fs::XattrFlags::empty())
        .unwrap();
    let time = rustix::fs::Timespec { tv_sec: 1_234_567_890, tv_nsec: 123_456_789 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    for path in ["lib/big", "lib/deep", "bin", "lib/link", "."] {
        rustix::fs::utimensat(rustix::fs::CWD, dir.join(path), &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .unwrap();
    }
}

/// Every path with what `stat`, `read` and the attributes show of it.
fn describe(root: &Path) -> Vec<String> {
    fn walk(root: &Path, path: &Path, into: &mut Vec<String>) {
        let found = fs::symlink_metadata(path).unwrap();
        let mut xattrs = Vec::new();
        let mut names = vec![0; 4096];
        let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
        for name in names[..len].split(|b| *b == 0).filter(|name| !name.is_empty()) {
            let mut value = vec![0; 65536];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            xattrs.push(format!("{}={:?}", String::from_utf8_lossy(name), &value[..len]));
        }
        xattrs.sort();
        let content = match found.file_type() {
            kind if kind.is_symlink() => format!("-> {}", fs::read_link(path).unwrap().display()),
            kind if kind.is_file() => proto::ObjectId::of(&fs::read(path).unwrap()).to_hex(),
            _ => String::new(),
        };
        let mode = if found.is_symlink() { 0 } else { found.mode() & 0o7777 };
        let links = if found.is_dir() { 0 } else { found.nlink() };
        let size = if found.is_dir() { 0 } else { found.size() };
        into.push(format!(
            "{} {mode:o} {}:{} {size} {}.{:09} links {links} {content} {xattrs:?}",
            path.strip_prefix(root).unwrap().display(),
            found.uid(),
            found.gid(),
            found.mtime(),
            found.mtime_nsec(),
        ));
        if found.is_dir() {
            let mut names: Vec<PathBuf> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
            names.sort();
            names.iter().for_each(|path| walk(root, path, into));
        }
    }
    let mut all = Vec::new();
    walk(root, root, &mut all);
    all
}

#[test]
fn the_overlay_and_the_view_show_the_tree_and_programs_run() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    make_tree(&source);
    let mut lab = Lab::new(dir.path());
    let tree = lab.origin.publish(&source);
    lab.start("hold");
    let root = lab.attach(&tree);
    assert_eq!(describe(&root), describe(&source));
    lab.ask(&format!("view agent 1.0 {tree}"));
    let view = lab.layout().mountpoint.join("agent/1.0");
    assert_eq!(describe(&view), describe(&source));
    for root in [&root, &view] {
        let hello = Command::new(root.join("bin/hello")).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&hello.stdout), format!("hello from {}/bin/hello\n", root.display()));
        let shell = Command::new(root.join("bin/shell")).args(["-c", "echo $((6*7))"]).output().unwrap();
        assert_eq!(shell.stdout, b"42\n");
    }
}

#[test]
fn killing_the_worker_again_and_again_goes_unnoticed() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    make_tree(&source);
    let mut lab = Lab::new(dir.path());
    let tree = lab.origin.publish(&source);
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
                    longest_us.fetch_max(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
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
