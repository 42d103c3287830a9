//! The mount daemon's own behaviour: what it keeps and why, what it says, and how it ends.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::Value;
use tests::command::until;
use tests::{Host, Manager, TreeFixture};

/// A manager, and a host that sees a program which waits on its standard input.
fn host_with_program() -> (Manager, Host) {
    let (manager, tree) = (Manager::start(), TreeFixture::new());
    tree.system_program("bin/wait", "cat").file("share/note", 0o644, "note");
    manager.publish("sample", "1.0", tree.path());
    let host = Host::mounted("host-1", &manager);
    manager.export("sample@1.0", "host-1");
    until("the export arrives", || host.mountpoint().join("sample/1.0").is_dir().then_some(()));
    (manager, host)
}

/// Starts a command whose program runs until its standard input ends.
fn start(host: &Host, args: &[&str]) -> Child {
    host.command(args).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

fn end(mut child: Child) {
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

fn generation(host: &Host, name: &str) -> Value {
    let status = host.status();
    let found = status["generations"].as_array().unwrap().iter().find(|generation| generation["name"] == name);
    found.unwrap_or_else(|| panic!("{name} is not in {status}")).clone()
}

#[test]
fn a_program_holds_its_generation_as_long_as_it_runs() {
    let (_manager, host) = host_with_program();
    let program = start(&host, &["exec", "sample@1.0", "--", "wait"]);
    let pid = program.id();
    let held = until("the program is seen as a user", || {
        let found = generation(&host, "sample@1.0");
        found["users"].as_array().unwrap().contains(&Value::from(pid)).then_some(found)
    });
    assert_eq!((&held["attached"], &held["mounted"]), (&Value::from(true), &Value::from(true)), "{held}");
    let path = held["path"].as_str().unwrap().to_owned();
    let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert_eq!(exe, Path::new(&path).join("bin/wait"), "the process became the program");
    end(program);
    until("the mount is collected", || (generation(&host, "sample@1.0")["mounted"] == false).then_some(()));
    assert!(!host.seen(path).join("bin").exists());
}

#[test]
fn a_hold_outlives_the_worker_that_granted_it() {
    let (_manager, host) = host_with_program();
    let program = start(&host, &["exec", "sample@1.0", "--", "wait"]);
    let worker = until("the program runs", || {
        let found = generation(&host, "sample@1.0");
        let runs = found["users"].as_array().unwrap().contains(&Value::from(program.id()));
        runs.then(|| host.status()["daemon"]["pid"].as_i64().unwrap())
    });
    let worker = rustix::process::Pid::from_raw(i32::try_from(worker).unwrap()).unwrap();
    rustix::process::kill_process(worker, rustix::process::Signal::KILL).unwrap();
    let found = generation(&host, "sample@1.0");
    assert_eq!(found["mounted"], true, "{found}");
    let note = host.seen(found["path"].as_str().unwrap()).join("share/note");
    assert_eq!(std::fs::read_to_string(note).unwrap(), "note");
    end(program);
}

#[test]
fn a_mount_in_use_is_left_and_named_at_the_end() {
    let (_manager, mut host) = host_with_program();
    let path = host.attach("sample@1.0");
    let mut program = std::process::Command::new(path.join("bin/wait"));
    let program = program.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    until("the program runs", || {
        let exe = std::fs::read_link(format!("/proc/{}/exe", program.id())).ok()?;
        exe.starts_with(host.told(&path)).then_some(())
    });
    until("everything is local", || {
        let found = generation(&host, "sample@1.0");
        (found["local_bytes"] == found["object_bytes"]).then_some(())
    });
    let inside = host.told(&path);
    assert_eq!(host.unmount(), Some(3), "done, with problems");
    // A namespace of the daemon's own is out of sight once the daemon is gone; the program in it lives on all the same.
    let shared = path == inside;
    if shared {
        let note = std::fs::read_to_string(path.join("share/note")).unwrap();
        assert_eq!(note, "note", "what is local goes on working");
    }
    // The next daemon takes it over, and what the operator attached is attached again.
    host.mount(&[]);
    let again = host.attach("sample@1.0");
    assert_eq!(host.told(&again), inside);
    end(program);
    assert_eq!(host.unmount(), Some(0));
    assert!(!again.join("share").exists());
}

#[test]
fn without_a_command_the_entry_point_runs() {
    let (manager, host) = host_with_program();
    let tree = TreeFixture::script("echo entry $1 $MANAGER_FS_TREE", "arguments = [\"first\"]\n");
    let id = manager.publish("script", "1", tree.path());
    manager.export("script@1", "host-1");
    let path = host.attach("script@1");
    assert_eq!(host.run(&["exec", "script@1"]).text(), format!("entry first {}", host.told(&path).display()));
    let none = host.run(&["exec", "sample@1.0", "--"]);
    assert!(none.code != Some(0) || none.stdout.is_empty(), "{}", none.stdout);
    // The entry point belongs to the record: a tree under two names has none of its own.
    manager.publish("script", "2", tree.path());
    manager.export("script@2", "host-1");
    host.attach("script@2");
    let unclear = host.run(&["exec", &id]).expect(1);
    assert!(unclear.stderr.contains("several versions"), "{}", unclear.stderr);
    assert_eq!(
        host.run(&["exec", &id, "--", "bin/agent", "x"]).text(),
        format!("entry x {}", host.told(&path).display())
    );
}

#[test]
fn one_daemon_a_directory_and_none_without_an_identity() {
    let (_manager, host) = host_with_program();
    let second = host.run(&["mount"]).expect(1);
    assert!(second.stderr.contains("already runs"), "{}", second.stderr);
    assert_eq!(host.status()["daemon"]["running"], true);
    let stranger = Host::new("stranger");
    let refused = stranger.run(&["mount"]).expect(1);
    assert!(refused.stderr.contains("manager-fs enroll"), "{}", refused.stderr);
    assert!(!stranger.path("run/mount.sock").exists());
}

#[test]
fn unmount_ends_the_daemon() {
    let (_manager, mut host) = host_with_program();
    host.attach("sample@1.0");
    host.run(&["unmount"]).expect(0);
    until("the socket is gone", || (!host.path("run/mount.sock").exists()).then_some(()));
    until("nothing is mounted", || {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        (!mounts.contains(&*host.path("run").to_string_lossy())).then_some(())
    });
    assert_eq!(host.unmount(), Some(0));
}

#[test]
fn status_is_one_stable_document() {
    let (manager, host) = host_with_program();
    let path = host.attach("sample@1.0");
    std::fs::read(path.join("bin/wait")).unwrap();
    let status = until("everything is local", || {
        let status = host.status();
        let found = &status["generations"][0];
        // The cache counts an object a moment after it is there.
        let counted = status["cache"]["local_bytes"].as_u64() >= found["object_bytes"].as_u64();
        (found["local_bytes"] == found["object_bytes"] && counted).then_some(status.clone())
    });
    assert_eq!(status["host"], "host-1");
    assert_eq!(status["manager"]["connected"], true);
    assert_eq!(status["manager"]["address"], manager.address());
    assert!(status["fuse"]["requests"]["lookup"].as_u64().unwrap() > 0, "{status}");
    assert!(status["fetched_bytes"].as_u64().unwrap() > 0);
    assert!(status["cache"]["local_bytes"].as_u64().unwrap() > 0);
    assert_eq!(status["attachments"][0]["name"], "sample@1.0");
    let found = &status["generations"][0];
    assert_eq!((found["product"].as_str(), found["version"].as_str()), (Some("sample"), Some("1.0")));
    assert_eq!(found["path"], host.told(&path).to_string_lossy().as_ref());
    assert_eq!(found["data_path"], "fuse", "it was mounted before its objects were local");
    assert!(host.run(&["status"]).text().contains("sample@1.0"));
}

#[test]
fn what_happens_without_the_manager_is_told_when_it_is_back() {
    let (mut manager, tree) = (Manager::start(), TreeFixture::agent("1.0", "data", ""));
    manager.publish("data-agent", "1.0", tree.path());
    let mut host = Host::mounted("host-1", &manager);
    manager.export("data-agent@1.0", "host-1");
    host.launch("data-agent");
    manager.wait_for_version("host-1", "data-agent", "1.0");
    host.wait_until_local();
    assert_eq!(host.stop("data-agent"), Some(0));
    manager.stop();
    host.launch("data-agent");
    let waiting = until("the start waits to be told", || {
        host.status()["manager"]["reports_waiting"].as_u64().filter(|waiting| *waiting > 0)
    });
    assert!(waiting > 0);
    manager.serve();
    manager.wait_for_version("host-1", "data-agent", "1.0");
    until("all is told", || (host.status()["manager"]["reports_waiting"] == 0).then_some(()));
}

#[test]
fn an_end_in_the_middle_of_fetching_is_a_quiet_one() {
    let (manager, tree) = (Manager::start(), TreeFixture::new());
    for n in 0..40 {
        let content: Vec<u8> =
            (0..100_000u32).flat_map(|i| (i.wrapping_mul(2_654_435_761) ^ n).to_le_bytes()).collect();
        tree.file(&format!("file-{n}"), 0o644, content);
    }
    manager.publish("sample", "1.0", tree.path());
    let mut host = Host::new("host-1");
    host.enroll(&manager, &manager.address());
    manager.export("sample@1.0", "host-1");
    for _ in 0..4 {
        host.mount(&["--hydrate-rate", "6M"]);
        host.attach("sample@1.0");
        let begun = host.status()["fetched_bytes"].as_u64();
        until("it fetches in the background", || (host.status()["fetched_bytes"].as_u64() > begun).then_some(()));
        host.run(&["unmount"]).expect(0);
        let log = host.log();
        assert!(!log.contains("panicked"), "{log}");
        assert_eq!(host.unmount(), Some(0));
        host.run(&["status"]).expect(3);
        std::fs::remove_dir_all(host.path("cache")).unwrap();
    }
}

/// What comes back on the daemon's socket for the body of one request.
fn answered(socket: &mut std::os::unix::net::UnixStream, number: u64, body: &[u8]) -> Vec<u8> {
    use std::io::{Read, Write};
    socket.write_all(&proto::frame::frame(proto::frame::FrameKind::Request, number, body)).unwrap();
    let mut header = [0; proto::frame::HEADER_BYTES];
    socket.read_exact(&mut header).unwrap();
    let mut body = vec![0; proto::frame::FrameHeader::decode(&header).unwrap().unwrap().length];
    socket.read_exact(&mut body).unwrap();
    body
}

/// Its messages only ever get more, so that clients of every version are heard; who asks is told which version it talks to.
#[test]
fn clients_of_every_version_are_heard_and_told_which_version_the_daemon_is() {
    use proto::daemon::DaemonReply;
    use proto::message::Fault;
    let manager = Manager::start();
    let host = Host::mounted("host-1", &manager);
    let mut socket = std::os::unix::net::UnixStream::connect(host.path("run/mount.sock")).unwrap();
    let older = proto::codec::encode(&proto::local_greeting::Greeting::new("0.0.7", [7; 16])).unwrap();
    let greeting = proto::local_greeting::Greeting::read(&answered(&mut socket, 1, &older)).unwrap();
    assert_eq!(greeting.version, env!("CARGO_PKG_VERSION"));
    // A request of a later version, then one that is known.
    let refused = answered(&mut socket, 2, &u32::MAX.to_le_bytes());
    let refused = proto::codec::decode::<DaemonReply, { 1 << 20 }>(&refused).unwrap();
    assert!(matches!(refused, DaemonReply::Fault(Fault::BadRequest(_))), "{refused:?}");
    let status = proto::codec::encode(&proto::daemon::DaemonRequest::Status).unwrap();
    let status = proto::codec::decode::<DaemonReply, { 1 << 20 }>(&answered(&mut socket, 3, &status)).unwrap();
    assert!(matches!(status, DaemonReply::Status(_)), "{status:?}");
}

/// A host that knows thirty versions hears of the next one, and not of the thirty again; nor when it starts anew.
#[test]
fn what_a_host_has_been_told_is_not_told_again() {
    const VERSIONS: usize = 30;
    let manager = Manager::start();
    let proxy = tests::Proxy::start(&manager.address());
    let mut host = Host::new("host-1");
    host.enroll(&manager, &proxy.address());
    host.mount(&[]);
    // A record describes each program of its tree: this one has some 20 KB.
    let tree = TreeFixture::new();
    for n in 0..100 {
        tree.system_program(&format!("bin/{}-{n:03}", "program".repeat(10)), "true");
    }
    let mut told = Vec::new();
    for n in 1..=VERSIONS {
        tree.file("version", 0o644, n.to_string());
        manager.publish("sample", &n.to_string(), tree.path());
        let before = proxy.to_host_bytes();
        manager.export(&format!("sample@{n}"), "host-1");
        known(&host, n);
        told.push(proxy.to_host_bytes() - before);
    }
    let (third, last) = (told[2], told[VERSIONS - 1]);
    assert!(third > 5_000, "a record is less than the list of them: {told:?}");
    // Of each other version its id.
    assert!(last < third + 40 * VERSIONS as u64 + 8_000, "{told:?}");
    let before = proxy.to_host_bytes();
    host.unmount();
    host.mount(&[]);
    until("it is connected", || (host.status()["manager"]["connected"] == true).then_some(()));
    known(&host, VERSIONS);
    let again = proxy.to_host_bytes() - before;
    assert!(again < third + 40 * VERSIONS as u64 + 8_000, "{again}");
}

fn known(host: &Host, count: usize) {
    let listed = || std::fs::read_dir(host.mountpoint().join("sample")).map_or(0, Iterator::count);
    until("it is known", || (listed() == count).then_some(()));
}

/// Several at once, so that one's question to the manager is under way while the next one's export is made.
#[test]
fn an_attach_right_after_an_export_is_never_refused() {
    let manager = Manager::start();
    let host = Host::mounted("host-1", &manager);
    std::thread::scope(|scope| {
        for product in ["one", "two", "three"] {
            let (manager, host) = (&manager, &host);
            scope.spawn(move || {
                let tree = TreeFixture::new();
                for version in 1..=8 {
                    tree.file("version", 0o644, format!("{product} {version}"));
                    let name = format!("{product}@{version}");
                    manager.publish(product, &version.to_string(), tree.path());
                    manager.export(&name, "host-1");
                    host.run(&["attach", &name]).expect(0);
                }
            });
        }
    });
}
