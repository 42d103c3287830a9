//! Bytes that are not what they should be, wherever they are found: never served, never executed, reported.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::command::until;
use tests::{Host, Manager, Output, Proxy, TreeFixture, files_below, needs, noise};

/// A tree of files that do not compress; each gets its own content.
fn tree(files: usize, bytes: usize) -> TreeFixture {
    let tree = TreeFixture::new();
    for n in 0..files {
        tree.file(&format!("file-{n}"), 0o644, noise(n as u64, bytes));
    }
    tree
}

/// Flips a bit in the middle of a file, whatever its mode says.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_pack_is_found_and_its_bytes_are_never_given_out() {
    let (mut manager, source) = (Manager::start(), tree(4, 1 << 20));
    manager.publish("sample", "1.0", source.path());
    manager.stop();
    let packs = files_below(&manager.store().join("packs"));
    let pack = packs.iter().max_by_key(|pack| fs::metadata(pack).unwrap().len()).expect("a pack");
    flip(pack);
    manager.serve();
    let found = manager.run(&["verify"]).expect(3);
    let name = pack.file_stem().unwrap().to_string_lossy();
    assert!(format!("{}{}", found.stdout, found.stderr).contains(&name[..8]), "{name} is not named: {found:?}");

    let mut host = Host::new("host-1");
    host.enroll(&manager, &manager.address());
    host.mount(&["--read-deadline", "2s"]);
    manager.export("sample@1.0", "host-1");
    let path = host.attach("sample@1.0");
    let mut refused = 0;
    for n in 0..4 {
        let name = format!("file-{n}");
        match fs::read(path.join(&name)) {
            Ok(bytes) => assert!(bytes == fs::read(source.path().join(&name)).unwrap(), "wrong bytes of {name}"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
                refused += 1;
            }
        }
    }
    assert_eq!(refused, 1, "one chunk was damaged, so one file cannot be read");
}

/// The largest pack, which is damaged while no manager runs.
fn damage_a_pack(manager: &mut Manager) -> PathBuf {
    manager.stop();
    let packs = files_below(&manager.store().join("packs"));
    let pack = packs.into_iter().max_by_key(|pack| fs::metadata(pack).unwrap().len()).expect("a pack");
    flip(&pack);
    manager.serve();
    pack
}

/// What a repair says, with its exit code.
fn repair(manager: &Manager, more: &[&str], code: i32) -> Value {
    manager.run(&[&["verify", "--repair", "--json"], more].concat()).expect(code).json()
}

fn sources(view: &Value) -> Vec<&str> {
    view["problems"].as_array().unwrap().iter().filter_map(|problem| problem["repaired"].as_str()).collect()
}

#[test]
fn what_the_store_has_lost_comes_back_from_a_host_that_has_it() {
    let (mut manager, source) = (Manager::start(), tree(4, 1 << 20));
    manager.publish("sample", "1.0", source.path());
    let mut host = Host::mounted("host-1", &manager);
    manager.export("sample@1.0", "host-1");
    host.attach("sample@1.0");
    host.wait_until_local();
    damage_a_pack(&mut manager);
    // The manifest, too.
    manager.stop();
    flip(&files_below(&manager.store().join("manifests"))[0]);
    manager.serve();
    until("the host is back", || (host.status()["manager"]["connected"] == true).then_some(()));
    let view = repair(&manager, &[], 0);
    let from = sources(&view);
    assert!(from.iter().filter(|from| **from == "from host host-1").count() >= 2, "{view}");
    assert_eq!((&view["lost_chunks"], view["repaired"].as_u64()), (&Value::from(0), Some(from.len() as u64)));
    assert_eq!(manager.run(&["verify", "--json"]).expect(0).json()["problems"], Value::from(Vec::<Value>::new()));
    host.unmount();
    // What came back is what was published: a host without anything gets it.
    let fresh = Host::mounted("host-2", &manager);
    manager.export("sample@1.0", "host-2");
    let path = fresh.attach("sample@1.0");
    for n in 0..4 {
        let name = format!("file-{n}");
        assert!(fs::read(path.join(&name)).unwrap() == fs::read(source.path().join(&name)).unwrap(), "{name}");
    }
}

#[test]
fn what_is_nowhere_is_said_and_comes_back_from_the_published_files() {
    let (mut manager, source) = (Manager::start(), tree(4, 1 << 20));
    manager.publish("sample", "1.0", source.path());
    let damaged = damage_a_pack(&mut manager);
    let view = repair(&manager, &[], 3);
    assert_eq!((&view["lost_chunks"], &view["problems"][0]["repaired"]), (&Value::from(1), &Value::Null), "{view}");
    let path = source.path().to_string_lossy();
    let view = repair(&manager, &["--from", &path], 0);
    assert!(sources(&view).iter().any(|from| from.contains(&*path)), "{view}");
    manager.run(&["verify"]).expect(0);
    assert!(!damaged.exists(), "the damaged pack is gone");

    // The same files published again mend as well, once the damage has been seen.
    damage_a_pack(&mut manager);
    manager.run(&["verify"]).expect(3);
    manager.publish("sample", "1.0", source.path());
    manager.run(&["verify", "--repair"]).expect(0);
    manager.run(&["verify"]).expect(0);
}

#[test]
fn what_is_wrong_in_a_host_s_cache_is_found_and_fetched_again() {
    let (mut manager, source) = (Manager::start(), tree(4, 1 << 20));
    manager.publish("sample", "1.0", source.path());
    let host = Host::mounted("host-1", &manager);
    manager.export("sample@1.0", "host-1");
    host.attach("sample@1.0");
    host.wait_until_local();
    let check = |more: &[&str], code| host.run(&[&["verify", "--host", "--json"], more].concat()).expect(code).json();
    let all = check(&[], 0);
    assert_eq!((&all["objects"], &all["wrong"]), (&Value::from(4), &Value::from(0)), "{all}");
    let object = |at: usize| files_below(&host.path("cache/local")).swap_remove(at);
    // As a disk does it: nobody's clock moves.
    let silently = |path: &Path| {
        let before = fs::metadata(path).unwrap();
        flip(path);
        let file = fs::File::open(path).unwrap();
        let times = fs::FileTimes::new().set_modified(before.modified().unwrap());
        file.set_times(times).unwrap();
    };
    silently(&object(0));
    let mended = check(&["--repair"], 0);
    assert_eq!((&mended["wrong"], &mended["fetched"]), (&Value::from(1), &Value::from(1)), "{mended}");
    until("it is whole again", || (check(&[], 0)["objects"] == 4).then_some(()));
    // Without its manager it says what is missing.
    manager.kill();
    let damaged = object(1);
    silently(&damaged);
    let lost = check(&["--repair"], 3);
    assert_eq!(
        (&lost["wrong"], &lost["fetched"], lost["missing"].as_array().unwrap().len()),
        (&Value::from(1), &Value::from(0), 1),
        "{lost}"
    );
    assert!(!damaged.exists(), "nobody reads it any more");
}

#[test]
fn a_damaged_object_in_the_cache_is_fetched_again_before_it_is_used() {
    let (manager, source) = (Manager::start(), tree(3, 256 << 10));
    manager.publish("sample", "1.0", source.path());
    let mut host = Host::mounted("host-1", &manager);
    manager.export("sample@1.0", "host-1");
    let path = host.attach("sample@1.0");
    for n in 0..3 {
        fs::read(path.join(format!("file-{n}"))).unwrap();
    }
    until("the objects are local", || (files_below(&host.path("cache/local")).len() == 3).then_some(()));
    assert_eq!(host.unmount(), Some(0));
    let objects = files_below(&host.path("cache/local"));
    // One with a flipped bit and one cut short. Objects are hashed again once a boot, or when one asks for it.
    flip(&objects[0]);
    fs::set_permissions(&objects[1], fs::Permissions::from_mode(0o600)).unwrap();
    fs::File::options().write(true).open(&objects[1]).unwrap().set_len(1000).unwrap();
    host.mount(&["--verify-cache"]);
    let path = host.attach("sample@1.0");
    for n in 0..3 {
        let name = format!("file-{n}");
        let (found, expected) = (fs::read(path.join(&name)).unwrap(), fs::read(source.path().join(&name)).unwrap());
        assert!(found == expected, "{name} differs");
    }
}

#[test]
fn an_object_is_protected_by_the_kernel_where_it_can() {
    let (manager, source) = (Manager::start(), tree(2, 1 << 20));
    manager.publish("sample", "1.0", source.path());
    let mut host = Host::new("host-1");
    host.enroll(&manager, &manager.address());
    let cache = host.path("cache");
    let has_verity = needs::verity(&cache, 256 << 20);
    host.mount(&[]);
    manager.export("sample@1.0", "host-1");
    let path = host.attach("sample@1.0");
    host.wait_until_local();
    let protection = if has_verity { "fs-verity" } else { "stamps" };
    assert_eq!(host.status()["cache"]["protection"], protection);
    assert_eq!(fs::read(path.join("file-0")).unwrap(), fs::read(source.path().join("file-0")).unwrap());
    if has_verity {
        for object in files_below(&cache.join("local")) {
            fs::set_permissions(&object, fs::Permissions::from_mode(0o600)).unwrap();
            let refused = fs::File::options().write(true).open(&object).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EPERM), "{}: {refused}", object.display());
        }
        host.unmount();
        Output::of(std::process::Command::new("umount").arg(&cache)).expect(0);
    }
}

/// Somebody reads `files` files through a line that fares badly meanwhile; all of it must come, and as it was published.
/// The line is as `first` leaves it when the reading begins; `trouble` gets it, and whether everything has been read.
#[track_caller]
fn everything_is_read_while(
    (files, bytes): (usize, usize),
    first: impl FnOnce(&Proxy),
    trouble: impl FnOnce(&Proxy, &dyn Fn() -> bool),
) {
    let (manager, source) = (Manager::start(), tree(files, bytes));
    manager.publish("sample", "1.0", source.path());
    let proxy = Proxy::start(&manager.address());
    let mut host = Host::new("host-1");
    host.enroll(&manager, &proxy.address());
    host.mount(&[]);
    manager.export("sample@1.0", "host-1");
    let view = host.mountpoint().join("sample/1.0");
    until("the view shows it", || view.is_dir().then_some(()));
    first(&proxy);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| (0..files).map(|n| fs::read(view.join(format!("file-{n}")))).collect::<Vec<_>>());
        trouble(&proxy, &|| reader.is_finished());
        for (n, read) in reader.join().unwrap().into_iter().enumerate() {
            let bytes = read.unwrap_or_else(|error| panic!("file-{n} after the line was good again: {error}"));
            assert!(bytes == fs::read(source.path().join(format!("file-{n}"))).unwrap(), "wrong bytes of file-{n}");
        }
    });
}

#[test]
fn what_is_changed_on_the_way_is_not_believed() {
    everything_is_read_while((8, 512 << 10), Proxy::corrupt, |line, _| {
        let before = line.to_host_bytes();
        until("the reader meets the damage", || (line.to_host_bytes() > before + 1000).then_some(()));
        line.heal();
    });
}

#[test]
fn a_line_that_is_cut_again_and_again_only_delays() {
    everything_is_read_while(
        (12, 1 << 20),
        |_| (),
        |line, is_read| {
            for _ in 0..4 {
                let before = line.to_host_bytes();
                until("bytes flow", || (is_read() || line.to_host_bytes() > before + 20_000).then_some(()));
                line.cut();
                line.heal();
            }
        },
    );
}

#[test]
fn garbage_on_the_managers_port_hurts_nobody() {
    use std::io::{Read, Write};
    let (manager, source) = (Manager::start(), tree(1, 1000));
    manager.publish("sample", "1.0", source.path());
    let host = Host::mounted("host-1", &manager);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[0x16, 3, 1, 0xff, 0xff, 1], b""] {
        let mut stream = std::net::TcpStream::connect(manager.address()).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < 4096, "{answer:?}");
    }
    manager.export("sample@1.0", "host-1");
    host.attach("sample@1.0");
}

#[test]
fn a_host_without_a_certificate_of_this_manager_is_refused() {
    let (manager, stranger, source) = (Manager::start(), Manager::start(), tree(1, 1000));
    manager.publish("sample", "1.0", source.path());
    let mut host = Host::new("host-1");
    host.enroll(&stranger, &stranger.address());
    // The right name, enrolled elsewhere: neither side believes the other.
    manager.run(&["token", "host-1"]).expect(0);
    host.mount(&["--manager", &manager.address()]);
    let refused = host.run(&["attach", "sample@1.0"]).expect(1);
    assert!(refused.stderr.contains("sample@1.0"), "{}", refused.stderr);
    assert!(!host.mountpoint().join("sample").exists());
}

#[test]
fn a_full_cache_disk_streams_and_an_attach_still_works() {
    let (manager, source) = (Manager::start(), tree(10, 1 << 20));
    manager.publish("sample", "1.0", source.path());
    let mut host = Host::new("host-1");
    host.enroll(&manager, &manager.address());
    host.mount_with_a_small_cache(3 << 20);
    manager.export("sample@1.0", "host-1");
    let path = host.attach("sample@1.0");
    for n in 0..10 {
        let name = format!("file-{n}");
        let found = fs::read(path.join(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(found == fs::read(source.path().join(&name)).unwrap(), "{name} differs");
    }
    host.status();
    quota_streams();
}

fn quota_streams() {
    let (manager, source) = (Manager::start(), tree(10, 1 << 20));
    manager.publish("sample", "1.0", source.path());
    let mut host = Host::new("host-2");
    host.enroll(&manager, &manager.address());
    host.mount(&["--cache-quota", "3M"]);
    manager.export("sample@1.0", "host-2");
    let view = host.mountpoint().join("sample/1.0");
    until("the view shows it", || view.is_dir().then_some(()));
    for n in 0..10 {
        let name = format!("file-{n}");
        assert!(
            fs::read(view.join(&name)).unwrap() == fs::read(source.path().join(&name)).unwrap(),
            "{name} differs"
        );
    }
    // It is kept where something is filled in, so that what ended last may stand over it until the next read.
    let mut n = 0;
    until("the cache is within its quota", || {
        n = (n + 1) % 10;
        fs::read(view.join(format!("file-{n}"))).unwrap();
        let used: u64 =
            files_below(&host.path("cache/local")).iter().map(|file| fs::metadata(file).unwrap().len()).sum();
        (used <= 3 << 20).then_some(())
    });
}
