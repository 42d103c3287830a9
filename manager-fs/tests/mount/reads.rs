//! What programs and people see through the mounts, on good days and bad ones.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::lab::{self, Lab};
use crate::tree::{describe, make_tree};

pub(crate) fn the_overlay_and_the_view_show_the_tree_and_programs_run() {
    let dir = tempfile::tempdir().unwrap();
    let (mut lab, source, tree) = Lab::with_tree(dir.path());
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

pub(crate) fn a_second_start_and_any_start_of_local_objects_make_no_fuse_request() {
    let dir = tempfile::tempdir().unwrap();
    let (mut lab, _, tree) = Lab::with_tree(dir.path());
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

pub(crate) fn with_a_page_of_read_ahead_a_read_is_one_request_and_a_page_comes_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (mut lab, _, tree) = Lab::with_tree(dir.path());
    fs::write(dir.path().join("a-page"), b"").unwrap();
    lab.start("hold");
    // Where it can be changed afterwards, too.
    assert_eq!(lab.ask("a-page"), "ok");
    let file = fs::File::open(lab.attach(&tree).join("lib/big")).unwrap();
    let read = |offset: u64, bytes: usize| {
        let before = lab.counts();
        file.read_exact_at(&mut vec![0; bytes], offset).unwrap();
        lab.counts() - before
    };
    assert_eq!(read(40 * 4096, 4096), 1);
    assert_eq!(read(41 * 4096, 4096), 1, "the page after it had not come");
    assert_eq!(read(39 * 4096, 4096), 1, "nor the page before it");
    // What is asked for at once, and the same again ahead of a reader who may go on.
    assert!(read(0, 20 * 4096) <= 2);
}

pub(crate) fn bad_days_of_the_network_fail_one_read_and_nothing_else() {
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

pub(crate) fn the_view_follows_the_exports_and_objects_are_closed_to_others() {
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

pub(crate) fn metadata_memory_is_capped_and_reported() {
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

pub(crate) fn on_a_full_or_read_only_cache_reads_stream() {
    let dir = tempfile::tempdir().unwrap();
    let (mut lab, source, tree) = Lab::with_tree(dir.path());
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

/// A file that one user may read, and the group that owns it may not, though its mode seems to say the opposite.
pub(crate) fn an_acl_holds_on_every_path() {
    const READER: u32 = 1234;
    const GROUP: u32 = 4321;
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("secret"), b"for one alone").unwrap();
    if !lab::all_users_exist() {
        // There is one user, who owns everything.
        return;
    }
    std::os::unix::fs::chown(source.join("secret"), Some(0), Some(GROUP)).unwrap();
    // acl(5) as the attribute has it: version 2, then tag, permissions and id of each entry.
    let nobody = u32::MAX;
    let entries = [(1_u16, 6_u16, nobody), (2, 4, READER), (4, 0, nobody), (0x10, 4, nobody), (0x20, 0, nobody)];
    let acl: Vec<u8> = 2_u32
        .to_le_bytes()
        .into_iter()
        .chain(entries.iter().flat_map(|(tag, allowed, id)| {
            [&tag.to_le_bytes()[..], &allowed.to_le_bytes(), &id.to_le_bytes()].concat()
        }))
        .collect();
    let (name, flags) = ("system.posix_acl_access", rustix::fs::XattrFlags::empty());
    rustix::fs::setxattr(source.join("secret"), name, &acl, flags).unwrap();
    let mut lab = Lab::new(dir.path());
    let tree = lab.origin.publish(&source);
    lab.start("hold");
    let overlay = lab.attach(&tree);
    lab.ask(&format!("view agent 1.0 {tree}"));
    let reads = |uid: u32, gid: u32, root: &Path| {
        let who = [format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".to_owned()];
        let cat = Command::new("setpriv").args(who).arg("cat").arg(root.join("secret")).output().unwrap();
        assert!(cat.status.success() == (cat.stdout == b"for one alone"), "{cat:?}");
        cat.status.success()
    };
    for root in [source, overlay, lab.layout().mountpoint.join("agent/1.0")] {
        let who = [(READER, 9), (9, GROUP), (READER, GROUP), (9, 9), (0, 0)];
        let may = who.map(|(uid, gid)| reads(uid, gid, &root));
        assert_eq!(may, [true, false, true, false, true], "{}", root.display());
    }
}
