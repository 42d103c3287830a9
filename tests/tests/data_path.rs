//! publish → store → export → mount: what goes in is what programs on a host see, and nothing else is seen.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;

use tests::command::until;
use tests::real::{RealProgram, programs};
use tests::sources::{Member, deb, zip};
use tests::tree::{listing, tar};
use tests::{Host, Manager, Output, Proxy, TreeFixture, noise};

/// A tree with something of everything that is kept.
fn sample() -> TreeFixture {
    let tree = TreeFixture::new();
    tree.file("bin/hello", 0o755, "#!/bin/sh\necho \"hello from $0\"\n")
        .file("share/large", 0o644, noise(0, 3 << 20))
        .file("share/empty", 0o600, "")
        .file("share/private", 0o600, "for the owner alone")
        .file("share/setuid", 0o4755, "setuid")
        .file("share/name with spaces\nand a line", 0o644, "odd name")
        .link("bin/link", "hello")
        .link("share/dangling", "/nowhere/at/all")
        .hard_link("share/large-too", "share/large");
    fs::create_dir(tree.path().join("share/empty-dir")).unwrap();
    let note = rustix::fs::setxattr(
        tree.path().join("share/empty"),
        "user.note",
        b"\0 binary \xff",
        rustix::fs::XattrFlags::empty(),
    );
    note.expect("user xattrs on the temporary directory");
    set_times(tree.path());
    tree
}

/// Times with all nine digits, some before 1970 and some far ahead, directories last.
fn set_times(dir: &Path) {
    let mut paths = vec![dir.to_owned()];
    let mut at = 0;
    while at < paths.len() {
        if paths[at].is_dir() && !paths[at].is_symlink() {
            paths.extend(fs::read_dir(&paths[at]).unwrap().map(|entry| entry.unwrap().path()));
        }
        at += 1;
    }
    for (n, path) in paths.iter().enumerate().rev() {
        let seconds = [1_600_000_000, -5, 4_000_000_000, 0][n % 4] + i64::try_from(n).unwrap();
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 123_456_789 - i64::try_from(n).unwrap() };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags).unwrap();
    }
}

#[track_caller]
fn same(expected: &[String], found: &[String]) {
    for line in expected {
        assert!(found.contains(line), "missing: {line}\namong: {found:#?}");
    }
    for line in found {
        assert!(expected.contains(line), "too much: {line}");
    }
}

#[test]
fn through_the_mount_everything_is_as_in_the_source() {
    let (manager, tree) = (Manager::start(), sample());
    manager.publish("sample", "1.0", tree.path());
    let host = Host::mounted("host-1", &manager);
    manager.export("sample@1.0", "host-1");
    let path = host.attach("sample@1.0");
    let source = listing(tree.path());
    same(&source, &listing(&path));
    same(&source, &listing(&host.mountpoint().join("sample/1.0")));
    // And again from the cache, after the daemon has been away.
    let mut host = host;
    assert_eq!(host.unmount(), Some(0));
    host.mount(&[]);
    same(&source, &listing(&host.attach("sample@1.0")));
}

#[test]
fn every_kind_of_archive_gives_the_same_tree_as_its_directory() {
    let (manager, tree) = (Manager::start(), sample());
    let directory = manager.publish("sample", "dir", tree.path());
    for (name, options) in [
        ("plain.tar", &[][..]),
        ("x.tar.gz", &["--gzip"]),
        ("x.tar.xz", &["--xz"]),
        ("x.tar.zst", &["--zstd"]),
        // A name says nothing; the bytes do.
        ("no-suffix", &["--gzip"]),
    ] {
        let archive = manager.path(name);
        tar(tree.path(), &archive, options);
        assert_eq!(manager.publish("sample", name, &archive), directory, "{name}");
    }
    for compression in ["--gzip", "--xz", "--zstd"] {
        let archive = manager.path(&format!("{}.deb", &compression[2..]));
        deb(tree.path(), &archive, compression);
        let version = format!("deb-{}", &compression[2..]);
        assert_eq!(manager.publish("sample", &version, &archive), directory, "{compression}");
    }
}

#[test]
fn two_managers_give_the_same_input_the_same_id() {
    let (one, two, tree) = (Manager::start(), Manager::start(), sample());
    let id = one.publish("sample", "1.0", tree.path());
    two.publish("other", "0.1", TreeFixture::script("exit 0", "").path());
    assert_eq!(two.publish("another-name", "2.0", tree.path()), id);
    assert_eq!(id.len(), 64);
    fs::write(tree.path().join("share/private"), "for the owner alonE").unwrap();
    assert_ne!(one.publish("sample", "1.1", tree.path()), id);
}

#[test]
fn wheels_and_zip_files_are_taken_in() {
    let manager = Manager::start();
    let archive = manager.path("sample-1.0-py3-none-any.whl");
    let members = [
        Member::file("sample/__init__.py", 0o644, "print('imported')\n"),
        Member::file("sample/tool", 0o755, "#!/bin/sh\necho tool\n"),
        Member::file("sample-1.0.dist-info/METADATA", 0o644, "Name: sample\n"),
    ];
    zip(&archive, &members);
    manager.publish("wheel", "1.0", &archive);
    let host = Host::mounted("host-1", &manager);
    manager.export("wheel@1.0", "host-1");
    let path = host.attach("wheel@1.0");
    assert_eq!(fs::read_to_string(path.join("sample/__init__.py")).unwrap(), "print('imported')\n");
    assert_eq!(Output::of(&mut std::process::Command::new(path.join("sample/tool"))).text(), "tool");
}

#[test]
fn a_service_pack_is_laid_over_the_generation_that_it_names() {
    let (manager, tree) = (Manager::start(), sample());
    let before = manager.publish("sample", "1.0", tree.path());
    let pack = TreeFixture::new();
    pack.file("bin/hello", 0o755, "#!/bin/sh\necho patched\n")
        .file("share/.wh.private", 0o600, "")
        .file("more/new", 0o644, "new");
    let args = ["publish", "sample", "1.1", &pack.path().to_string_lossy(), "--onto", "sample@1.0", "--json"];
    let after = manager.run(&args).expect(0).json();
    assert_ne!(after["tree_id"], before);

    let host = Host::mounted("host-1", &manager);
    manager.export("sample@1.1", "host-1");
    let path = host.attach("sample@1.1");
    assert_eq!(fs::read_to_string(path.join("bin/hello")).unwrap(), "#!/bin/sh\necho patched\n");
    assert_eq!(fs::read_to_string(path.join("more/new")).unwrap(), "new");
    assert!(!path.join("share/private").exists() && !path.join("share/.wh.private").exists());
    assert_eq!(fs::read(path.join("share/large")).unwrap(), noise(0, 3 << 20));

    let diff = manager.run(&["diff", "sample@1.0", "sample@1.1"]).expect(0).stdout;
    for changed in ["bin/hello", "share/private", "more/new"] {
        assert!(diff.contains(changed), "diff does not name {changed}:\n{diff}");
    }
    assert!(!diff.contains("share/large"), "{diff}");
    let args = ["publish", "sample", "1.2", &pack.path().to_string_lossy(), "--onto", "sample@0.9"];
    let missing = manager.run(&args).expect(1);
    assert!(missing.stderr.contains("sample@0.9"), "{}", missing.stderr);
}

#[test]
fn show_tells_what_was_found_out_about_a_version() {
    let manager = Manager::start();
    let tree = TreeFixture::new();
    tree.system_program("bin/program", "perl").file("bin/script", 0o755, "#!/usr/bin/env perl\n");
    tree.file(
        "manager-fs.toml",
        0o644,
        "entrypoint = \"bin/program\"\narguments = [\"-v\"]\ndrain_deadline = \"7s\"\n",
    );
    let id = manager.publish("tool", "5.0", tree.path());
    let shown = manager.run(&["show", "tool@5.0", "--json"]).expect(0).json();
    assert_eq!(shown["tree_id"], id);
    let text = shown.to_string();
    for expected in ["bin/program", "ld-linux", "libc.so.6", "/usr/bin/env perl", "7000", std::env::consts::ARCH] {
        assert!(text.contains(expected), "show --json has no {expected}: {text}");
    }
    let people = manager.run(&["show", "tool@5.0"]).expect(0).stdout;
    assert!(people.contains(&id[..12]) && people.contains("libc.so.6"), "{people}");
    // The start of an id will do, if only one tree has it.
    assert_eq!(manager.run(&["show", &id[..16], "--json"]).expect(0).json()["tree_id"], id);
}

#[test]
fn programs_run_straight_from_a_generation() {
    let (manager, tree) = (Manager::start(), sample());
    manager.publish("sample", "1.0", tree.path());
    let host = Host::mounted("host-1", &manager);
    manager.export("sample@1.0", "host-1");
    until("the export arrives", || (host.run(&["attach", "sample@1.0"]).code == Some(0)).then_some(()));
    let output = host.run(&["exec", "sample@1.0", "--", "bin/hello"]).expect(0);
    assert!(output.stdout.starts_with("hello from "), "{}", output.stdout);
    assert_eq!(host.run(&["exec", "sample@1.0", "--", "/bin/sh", "-c", "exit 7"]).code, Some(7));
    let missing = host.run(&["exec", "sample@1.0", "--", "bin/no-such-program"]);
    assert_ne!(missing.code, Some(0));
    assert!(missing.stderr.contains("bin/no-such-program"), "{}", missing.stderr);
}

fn publish_programs(manager: &Manager, programs: &[RealProgram]) {
    for program in programs {
        manager.publish(&program.name, "1", &program.tree);
        manager.export(&format!("{}@1", program.name), "host-1");
    }
}

#[test]
fn real_programs_start_and_their_second_start_asks_fuse_for_nothing() {
    let (manager, programs) = (Manager::start(), programs());
    let mut host = Host::mounted("host-1", &manager);
    publish_programs(&manager, &programs);
    let start = |host: &Host, program: &RealProgram| {
        let path = host.attach(&format!("{}@1", program.name));
        assert_eq!(program.run(&path), program.prints, "{}", program.name);
        path
    };
    for program in &programs {
        let path = start(&host, program);
        same(&listing(&program.tree), &listing(&path));
    }
    // What the background fetch does by itself is not the second start's.
    host.wait_until_local();
    for program in &programs {
        start(&host, program);
        let before = host.fuse_requests();
        start(&host, program);
        assert_eq!(host.fuse_requests() - before, 0, "second start of {}: {}", program.name, host.status()["fuse"]);
    }
    // And with every object local before the mount, not even the first start asks.
    assert_eq!(host.unmount(), Some(0));
    host.mount(&[]);
    for program in &programs {
        let path = host.attach(&format!("{}@1", program.name));
        let before = host.fuse_requests();
        assert_eq!(program.run(&path), program.prints);
        assert_eq!(host.fuse_requests() - before, 0, "start of {}: {}", program.name, host.status()["fuse"]);
    }
}

#[test]
fn a_host_sees_only_what_is_exported_to_it() {
    let (manager, open, secret) = (Manager::start(), sample(), TreeFixture::script("echo secret", ""));
    manager.publish("open", "1.0", open.path());
    let id = manager.publish("secret", "1.0", secret.path());
    let (one, two) = (Host::mounted("host-1", &manager), Host::mounted("host-2", &manager));
    manager.export("open@1.0", "host-1");
    manager.export("open@1.0", "host-2");
    manager.export("secret@1.0", "host-2");
    two.attach("secret@1.0");
    one.attach("open@1.0");
    assert!(!one.mountpoint().join("secret").exists());
    assert!(two.mountpoint().join("secret/1.0").is_dir());
    for asked in ["secret@1.0", id.as_str(), &id[..20]] {
        let refused = one.run(&["attach", asked]).expect(1);
        assert!(refused.stderr.contains(&asked[..6]), "{}", refused.stderr);
    }
    // Groups, and withdrawal: what is attached is not withdrawn, unless by force.
    manager.run(&["host", "group", "add", "canaries", "host-1"]).expect(0);
    manager.export("secret@1.0", "@canaries");
    one.attach("secret@1.0");
    let refused = until("the manager knows of the attachment", || {
        let output = manager.run(&["unexport", "secret@1.0", "--to", "host-2"]);
        (output.code == Some(1)).then_some(output)
    });
    assert!(refused.stderr.contains("host-2"), "{}", refused.stderr);
    manager.run(&["unexport", "secret@1.0", "--to", "host-2", "--force"]).expect(0);
    until("the withdrawal arrives", || (!two.mountpoint().join("secret/1.0").exists()).then_some(()));
}

#[test]
fn a_revoked_host_gets_nothing_more() {
    let (manager, tree) = (Manager::start(), sample());
    manager.publish("sample", "1.0", tree.path());
    let host = Host::mounted("host-1", &manager);
    manager.run(&["host", "revoke", "host-1"]).expect(0);
    manager.publish("late", "1.0", TreeFixture::script("exit 0", "").path());
    let export = manager.run(&["export", "late@1.0", "--to", "host-1"]);
    if export.code == Some(0) {
        let refused = host.run(&["attach", "late@1.0"]).expect(1);
        assert!(refused.stderr.contains("late@1.0"), "{}", refused.stderr);
    }
    let hosts = manager.run(&["hosts", "--json"]).expect(0).stdout;
    assert!(hosts.contains("revoked"), "{hosts}");
}

#[test]
fn without_the_manager_what_is_cached_starts_and_what_is_not_fails_in_time() {
    let (mut manager, cached, uncached) = (Manager::start(), sample(), TreeFixture::new());
    uncached.file("data", 0o644, noise(0, 8 << 20));
    manager.publish("cached", "1.0", cached.path());
    manager.publish("uncached", "1.0", uncached.path());
    let proxy = Proxy::start(&manager.address());
    let mut host = Host::new("host-1");
    host.enroll(&manager, &proxy.address());
    host.mount(&["--read-deadline", "2s"]);
    manager.export("cached@1.0", "host-1");
    manager.export("uncached@1.0", "host-1");
    let path = host.attach("cached@1.0");
    host.wait_until_local();
    let view = host.mountpoint().join("uncached/1.0/data");
    until("the view shows it", || view.exists().then_some(()));
    proxy.cut();
    manager.stop();

    assert_eq!(fs::read(path.join("share/large")).unwrap(), noise(0, 3 << 20));
    let since = std::time::Instant::now();
    let error = fs::read(&view).expect_err("nobody can give these bytes");
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    assert!(since.elapsed().as_secs() < 20, "{:?}", since.elapsed());
    let since = std::time::Instant::now();
    host.status();
    assert!(since.elapsed().as_secs() < 2, "status took {:?}", since.elapsed());

    // Also after a restart of the host's daemon, and then the manager comes back.
    assert_eq!(host.unmount(), Some(0));
    host.mount(&["--read-deadline", "2s"]);
    assert_eq!(fs::read(host.attach("cached@1.0").join("share/large")).unwrap(), noise(0, 3 << 20));
    manager.serve();
    proxy.heal();
    let view = host.mountpoint().join("uncached/1.0/data");
    let content = until("the manager is back", || fs::read(&view).ok());
    assert_eq!(content, noise(0, 8 << 20));
}

#[test]
fn gc_frees_what_nobody_needs_and_nothing_else() {
    let (manager, kept, dropped) = (Manager::start(), sample(), TreeFixture::new());
    dropped.file("data", 0o644, noise(0, 5 << 20));
    manager.publish("kept", "1.0", kept.path());
    manager.publish("dropped", "1.0", dropped.path());
    manager.run(&["gc", "--dry-run"]).expect(0);
    manager.run(&["gc"]).expect(0);
    manager.run(&["verify"]).expect(0);
    let host = Host::mounted("host-1", &manager);
    manager.export("kept@1.0", "host-1");
    manager.export("dropped@1.0", "host-1");
    same(&listing(kept.path()), &listing(&host.attach("kept@1.0")));
    same(&listing(dropped.path()), &listing(&host.attach("dropped@1.0")));
}
