//! The mount as its users meet it: real processes, real mounts. Needs /dev/fuse, and root or the right to make user
//! namespaces: without root every test that mounts for itself runs in a user and a mount namespace of its own.

#![allow(clippy::unwrap_used)] // Panicking is how a test reports.

mod lab;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lab::Lab;

type Test = (&'static str, fn());

macro_rules! tests {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name as fn())),*] };
}

/// Tests whose daemon is to begin as a user without rights: without root they run as that user, outside of any namespace.
const OF_A_USER: [&str; 3] = [
    "in_a_user_namespace_the_mounts_exist_only_inside",
    "without_fuse_an_unprivileged_user_gets_an_overlay_of_local_objects",
    "where_nothing_may_be_mounted_a_plain_copy_is_made",
];

const TESTS: &[Test] = tests![
    the_overlay_and_the_view_show_the_tree_and_programs_run,
    killing_the_worker_again_and_again_goes_unnoticed,
    a_second_start_and_any_start_of_local_objects_make_no_fuse_request,
    bad_days_of_the_network_fail_one_read_and_nothing_else,
    the_view_follows_the_exports_and_objects_are_closed_to_others,
    metadata_memory_is_capped_and_reported,
    a_new_daemon_replaces_what_a_killed_one_left,
    killing_the_helper_in_the_middle_of_attaches_goes_unnoticed,
    on_a_full_or_read_only_cache_reads_stream,
    a_signal_to_every_process_still_unmounts,
];

/// Without the host's root there are no images.
const ONLY_FILES: &[Test] = tests![
    in_a_user_namespace_the_mounts_exist_only_inside,
    without_fuse_an_unprivileged_user_gets_an_overlay_of_local_objects,
    where_nothing_may_be_mounted_a_plain_copy_is_made,
];

/// A harness of its own: holder, worker and helper are this binary started again, and a holder may have no thread but
/// one before it enters a user namespace, which the usual harness does not grant.
fn main() {
    lab::process();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let wanted: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let listing = args.iter().any(|arg| arg == "--list");
    let ignored = args.iter().any(|arg| arg == "--ignored");
    let mut failed = Vec::new();
    // Once with metadata layers as images, which only the host's root can mount, and once as directories.
    let images_too = lab::all_users_exist();
    let by_files = ONLY_FILES.iter().chain(TESTS).map(|(name, test)| (format!("{name}_by_files"), *test, false));
    let by_images = TESTS.iter().map(|(name, test)| (name.to_string(), *test, true));
    let by_images = by_images.filter(|_| images_too);
    for (name, test, images) in by_images.chain(by_files).filter(|_| !ignored) {
        lab::IMAGES.store(images, Ordering::Relaxed);
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        if listing {
            println!("{name}: test");
            continue;
        }
        let begun = Instant::now();
        let of_a_user = OF_A_USER.iter().any(|of_a_user| name.starts_with(of_a_user));
        let passed = if rustix::process::geteuid().is_root() || of_a_user {
            std::panic::catch_unwind(test).is_ok()
        } else {
            lab::in_a_namespace(&name)
        };
        println!("test {name} ... {} ({:?})", if passed { "ok" } else { "FAILED" }, begun.elapsed());
        if !passed {
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        println!("failed: {failed:?}");
        std::process::exit(101);
    }
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
    if lab::all_users_exist() {
        std::os::unix::fs::chown(dir.join("lib/big"), Some(1234), Some(4321)).unwrap();
    }
    rustix::fs::setxattr(dir.join("lib/big"), "user.note", b"\0raw\xff", rustix::fs::XattrFlags::empty()).unwrap();
    // cap_net_bind_service=ep, revision 2.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // A user without a namespace cannot give capabilities away.
    if rustix::process::geteuid().is_root() {
        let empty = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(dir.join("bin/shell"), "security.capability", &capability, empty).unwrap();
    }
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

/// Runs a script where the daemon's mounts are.
fn inside(lab: &Lab, script: &str) -> String {
    let pid = lab.holder_pid().to_string();
    let run = Command::new("nsenter")
        .args(["--target", &pid, "--user", "--mount", "--preserve-credentials", "sh", "-ec", script])
        .output()
        .unwrap();
    assert!(run.status.success(), "{script}: {}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap()
}

fn in_a_user_namespace_the_mounts_exist_only_inside() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    make_tree(&source);
    let mut lab = Lab::new(dir.path());
    let tree = lab.origin.publish(&source);
    lab.start("hold-namespace");
    assert!(lab.ask("probe").contains("Some(\"user\")"), "{}", lab.ask("probe"));
    let root = lab.attach(&tree);
    assert!(!root.join("bin").exists(), "the host does not see the namespace's mounts");
    lab.ask(&format!("view agent 1.0 {tree}"));
    let view = lab.layout().mountpoint.join("agent/1.0");
    for root in [root, view] {
        let root = root.display();
        assert_eq!(inside(&lab, &format!("{root}/bin/hello")), format!("hello from {root}/bin/hello\n"));
        inside(&lab, &format!("cmp {root}/lib/big {}/lib/big", source.display()));
        assert_eq!(inside(&lab, &format!("stat -c %Y.%a.%h {root}/lib/big")), "1234567890.644.2\n");
        inside(&lab, &format!("! touch {root}/new 2>/dev/null"));
    }
    lab.kill_worker();
    inside(&lab, &format!("cat {}/lib/deep/er/secret", lab.layout().generation(&tree).display()));
}

fn without_fuse_an_unprivileged_user_gets_an_overlay_of_local_objects() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let source = dir.path().join("source");
    make_tree(&source);
    let mut lab = Lab::new(dir.path());
    let tree = lab.origin.publish(&source);
    fs::write(dir.path().join("no-fuse"), b"").unwrap();
    lab.start_unprivileged("hold-namespace");
    let refused = lab.ask(&format!("attach {tree}"));
    assert!(refused.contains("every object") && refused.contains("must be local first"), "{refused}");
    lab.ask(&format!("hydrate {tree}"));
    let root = lab.attach(&tree);
    assert_eq!(inside(&lab, &format!("{}/bin/hello | cut -c1-10", root.display())), "hello from\n");
    inside(&lab, &format!("cmp {}/lib/big {}/lib/big", root.display(), source.display()));
}

fn where_nothing_may_be_mounted_a_plain_copy_is_made() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let source = dir.path().join("source");
    make_tree(&source);
    fs::set_permissions(source.join("lib/deep/er/secret"), fs::Permissions::from_mode(0o644)).unwrap();
    let mut lab = Lab::new(dir.path());
    let tree = lab.origin.publish(&source);
    fs::write(dir.path().join("no-fuse"), b"").unwrap();
    // As nobody, and without a namespace of its own.
    lab.start_unprivileged("hold");
    assert!(lab.ask("probe").starts_with("(Copy"), "{}", lab.ask("probe"));
    assert_eq!(lab.ask(&format!("hydrate {tree}")), "ok");
    let root = lab.attach(&tree);
    let hello = Command::new(root.join("bin/hello")).output().unwrap();
    assert!(hello.stdout.starts_with(b"hello from"));
    // Times, links and contents are exact; owners and capabilities are beyond this user.
    let want = fs::metadata(source.join("lib/big")).unwrap();
    let got = fs::metadata(root.join("lib/big")).unwrap();
    assert_eq!((got.mtime(), got.mtime_nsec(), got.nlink()), (want.mtime(), want.mtime_nsec(), 2));
    assert_eq!(fs::read(root.join("lib/big")).unwrap(), fs::read(source.join("lib/big")).unwrap());
    assert_eq!(lab.ask(&format!("release {tree}")), "ok");
    assert!(!root.exists());
}

fn a_second_start_and_any_start_of_local_objects_make_no_fuse_request() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    make_tree(&source);
    let mut lab = Lab::new(dir.path());
    let tree = lab.origin.publish(&source);
    lab.start("hold");
    let root = lab.attach(&tree);
    let start = || {
        for program in ["bin/hello", "bin/shell"] {
            assert!(Command::new(root.join(program)).args(["-c", "true"]).output().unwrap().status.success());
        }
        fs::read(root.join("lib/big")).unwrap();
    };
    let before = lab.counts();
    start();
    let cold = lab.counts();
    assert!(cold > before, "the first start is lazy");
    start();
    assert_eq!(lab.counts(), cold, "a warm start makes no request: {}", lab.ask("opcodes"));
    // Local before it is mounted: not even a cold page cache asks the daemon.
    assert_eq!(lab.ask(&format!("hydrate {tree}")), "ok");
    assert_eq!(lab.ask(&format!("release {tree}")), "ok");
    assert_eq!(lab.attach(&tree), root);
    lab::forget_pages(&root);
    let before = lab.counts();
    start();
    assert_eq!(lab.counts(), before, "{}", lab.ask("opcodes"));
    // And it outlives the daemon.
    let file = fs::File::open(root.join("lib/big")).unwrap();
    lab.stop();
    lab::forget_pages(&root);
    start();
    drop(file);
    rustix::mount::unmount(&root, rustix::mount::UnmountFlags::empty()).unwrap();
}

fn bad_days_of_the_network_fail_one_read_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    make_tree(&source);
    fs::write(source.join("small"), vec![5; 50_000]).unwrap();
    fs::write(source.join("other"), vec![6; 50_000]).unwrap();
    let mut lab = Lab::new(dir.path());
    let tree = lab.origin.publish(&source);
    fs::write(dir.path().join("deadline"), "3000").unwrap();
    lab.start("hold");
    let root = lab.attach(&tree);
    assert_eq!(fs::read(root.join("small")).unwrap(), vec![5; 50_000]);
    lab.set("offline", Some(""));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let failing = scope.spawn(|| fs::read(root.join("lib/big")));
        // What is cached is read meanwhile, and the daemon answers.
        lab::forget(&root.join("small"));
        assert_eq!(fs::read(root.join("small")).unwrap(), vec![5; 50_000]);
        lab.counts();
        assert!(!failing.is_finished(), "the cached read has not waited for the other");
        assert_eq!(failing.join().unwrap().unwrap_err().raw_os_error(), Some(libc::EIO));
    });
    assert!(begun.elapsed() < Duration::from_secs(15), "EIO within the deadline");
    lab.set("offline", None);
    lab.set("lie", Some(""));
    assert_eq!(fs::read(root.join("other")).unwrap_err().raw_os_error(), Some(libc::EIO), "never served");
    lab.set("lie", None);
    assert_eq!(fs::read(root.join("other")).unwrap(), vec![6; 50_000], "and fetched again");
    let unknown = lab.layout().fuse_objects().join("00").join("0".repeat(62));
    assert_eq!(fs::read(unknown).unwrap_err().raw_os_error(), Some(libc::ENOENT));
}

fn the_view_follows_the_exports_and_objects_are_closed_to_others() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut lab = Lab::new(dir.path());
    let trees: Vec<_> = (0..2)
        .map(|n| {
            let source = dir.path().join(format!("source-{n}"));
            fs::create_dir(&source).unwrap();
            fs::write(source.join("file"), format!("content {n}")).unwrap();
            // Its owner may not read it either where nobody else is there to be refused.
            let mode = if lab::all_users_exist() { 0o600 } else { 0 };
            fs::set_permissions(source.join("file"), fs::Permissions::from_mode(mode)).unwrap();
            lab.origin.publish(&source)
        })
        .collect();
    lab.start("hold");
    let mount = lab.layout().mountpoint;
    let names = |path: &Path| {
        let mut names: Vec<_> =
            fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&mount), Vec::<String>::new());
    lab.ask(&format!("view agent 1 {} agent 2 {}", trees[0], trees[1]));
    assert_eq!(names(&mount), ["agent"]);
    assert_eq!(names(&mount.join("agent")), ["1", "2"]);
    assert_eq!(fs::read(mount.join("agent/2/file")).unwrap(), b"content 1");
    let open = fs::File::open(mount.join("agent/2/file")).unwrap();
    lab.ask(&format!("view agent 1 {}", trees[0]));
    assert_eq!(names(&mount.join("agent")), ["1"], "at once, by invalidation");
    let until = Instant::now() + Duration::from_secs(5);
    while fs::metadata(mount.join("agent/2")).is_ok() {
        assert!(Instant::now() < until, "a name that is gone is forgotten within about a second");
        std::thread::yield_now();
    }
    let mut text = String::new();
    std::io::Read::read_to_string(&mut &open, &mut text).unwrap();
    assert_eq!(text, "content 1", "what is open stays readable");
    // Not by the tree's path, and not by the object's id.
    let root = lab.attach(&trees[0]);
    let (shard, rest) = proto::ObjectId::of(b"content 0").to_shard();
    let object = lab.layout().fuse_objects().join(shard).join(rest);
    assert_eq!(fs::read(&object).unwrap(), b"content 0");
    for path in [lab.layout().fuse_objects(), lab.layout().local_objects(), lab.layout().meta()] {
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o077, 0, "{}", path.display());
    }
    lab::assert_closed_to_others(&root.join("file"));
    lab::assert_closed_to_others(&mount.join("agent/1/file"));
    if lab::all_users_exist() {
        for path in [object, lab.layout().local_objects(), lab.layout().meta()] {
            lab::assert_closed_to_others(&path);
        }
    }
}

fn metadata_memory_is_capped_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(dir.path());
    let make = |name: &str, files: usize| {
        let source = dir.path().join(name);
        fs::create_dir(&source).unwrap();
        (0..files).for_each(|n| fs::write(source.join(format!("{n}")), b"x").unwrap());
        source
    };
    let (small, large) = (lab.origin.publish(&make("small", 300)), lab.origin.publish(&make("large", 8_000)));
    fs::write(dir.path().join("meta-bytes"), (1_300 * 1_000).to_string()).unwrap();
    lab.start("hold");
    lab.attach(&small);
    let used = lab.ask("meta");
    let figure = |name: &str| -> u64 {
        let (_, after) = used.split_once(&format!("{name}: ")).unwrap();
        after.split([',', ' ']).next().unwrap().parse().unwrap()
    };
    if lab::images() {
        assert!((50_000..80_000).contains(&figure("image_bytes")), "{used}");
    } else {
        // The kernel counts attributes as parts of inodes.
        assert!((301..450).contains(&figure("inodes")) && figure("image_bytes") == 0, "{used}");
    }
    let refused = lab.ask(&format!("attach {large}"));
    assert!(refused.contains("cap on metadata memory is reached"), "{refused}");
    assert_eq!(lab.ask("meta"), used, "nothing half-made stays");
}

fn a_new_daemon_replaces_what_a_killed_one_left() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    make_tree(&source);
    let mut lab = Lab::new(dir.path());
    let tree = lab.origin.publish(&source);
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

fn killing_the_helper_in_the_middle_of_attaches_goes_unnoticed() {
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

fn on_a_full_or_read_only_cache_reads_stream() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    make_tree(&source);
    let mut lab = Lab::new(dir.path());
    let tree = lab.origin.publish(&source);
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("file"), vec![8; 300_000]).unwrap();
    let other = lab.origin.publish(&other);
    let cache = lab.layout().cache;
    fs::create_dir(&cache).unwrap();
    let mount = |options: &str| {
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", options, "cache"]).arg(&cache).status().unwrap();
        assert!(done.success());
    };
    mount("size=2m");
    lab.start("hold");
    let root = lab.attach(&tree);
    assert_eq!(fs::read(root.join("lib/big")).unwrap(), fs::read(source.join("lib/big")).unwrap());
    assert!(lab.ask("usage").contains("streaming: true"), "{}", lab.ask("usage"));
    lab.stop();
    mount("remount,ro");
    lab.start("hold");
    assert_eq!(lab.attach(&tree), root);
    assert_eq!(fs::read(root.join("lib/big")).unwrap(), fs::read(source.join("lib/big")).unwrap());
    // A generation whose manifest cannot be kept is attached all the same.
    let root = lab.attach(&other);
    assert_eq!(fs::read(root.join("file")).unwrap(), vec![8; 300_000]);
    drop(lab);
    assert!(Command::new("umount").arg("-l").arg(&cache).status().unwrap().success());
}

fn a_signal_to_every_process_still_unmounts() {
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
