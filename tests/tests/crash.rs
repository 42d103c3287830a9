//! Processes killed at any moment: nothing half-done is visible afterwards, and nobody has to clean up by hand.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use tests::command::until;
use tests::{Host, Manager, TreeFixture, files_below, noise};

/// The processes below one, with their command lines.
fn children(pid: u32) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().map(Result::unwrap) {
        let Ok(child) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(stat) = fs::read_to_string(format!("/proc/{child}/stat")) else { continue };
        // The name in parentheses may hold anything; what follows the last one is plain.
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        if parent == Some(pid) {
            let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            found.push((child, String::from_utf8_lossy(&line).replace('\0', " ")));
        }
    }
    found
}

fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Kills the mount daemon's worker; returns whether there was one.
fn kill_worker(holder: u32) -> bool {
    match children(holder).into_iter().find(|(_, line)| line.contains("__worker")) {
        Some((pid, _)) => {
            kill(pid);
            true
        }
        None => false,
    }
}

#[test]
fn nobody_notices_that_the_worker_is_killed() {
    let manager = Manager::start();
    let tree = TreeFixture::new();
    for n in 0..30 {
        tree.file(&format!("dir-{}/file-{n}", n % 5), 0o644, noise(n, 700_000));
    }
    tree.file("bin/tool", 0o755, "#!/bin/sh\necho works\n");
    manager.publish("sample", "1.0", tree.path());
    manager.publish("sample", "1.1", TreeFixture::script("exit 0", "").path());
    let host = Host::mounted("host-1", &manager);
    manager.export("sample@1.0", "host-1");
    manager.export("sample@1.1", "host-1");
    let path = host.attach("sample@1.0");
    let view = host.mountpoint().join("sample/1.0");
    let holder = host.holder_pid();
    let check = |root: &Path, n: u64| {
        let name = format!("dir-{}/file-{n}", n % 5);
        let bytes = fs::read(root.join(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(bytes == noise(n, 700_000), "{name} differs");
    };
    std::thread::scope(|scope| {
        let readers: Vec<_> = [&path, &view]
            .into_iter()
            .map(|root| scope.spawn(move || (0..30).for_each(|n| check(root, n))))
            .collect();
        let mut killed = 0;
        while killed < 10 || readers.iter().any(|reader| !reader.is_finished()) {
            if kill_worker(holder) {
                killed += 1;
            }
            // Long enough to come up and do some work, short enough to be killed in the middle of it.
            std::thread::sleep(Duration::from_millis(150));
            assert!(killed < 400, "the readers do not get on");
        }
        for reader in readers {
            reader.join().unwrap();
        }
    });
    // Also during an attach, and afterwards everything works.
    std::thread::scope(|scope| {
        let attach = scope.spawn(|| host.attach("sample@1.1"));
        kill_worker(holder);
        attach.join().unwrap();
    });
    assert_eq!(host.run(&["exec", "sample@1.0", "--", "bin/tool"]).text(), "works");
    assert_eq!(holder, host.holder_pid());
    assert!(Path::new(&format!("/proc/{holder}")).exists());
}

#[test]
fn the_mount_helper_may_die_too() {
    let manager = Manager::start();
    manager.publish("sample", "1.0", TreeFixture::script("exit 0", "").path());
    let host = Host::mounted("host-1", &manager);
    manager.export("sample@1.0", "host-1");
    let helper = children(host.holder_pid()).into_iter().find(|(_, line)| line.contains("__helper"));
    kill(helper.expect("a helper process").0);
    host.attach("sample@1.0");
}

#[test]
fn a_killed_holder_is_started_again_over_what_it_left() {
    let manager = Manager::start();
    let tree = TreeFixture::new();
    tree.file("data", 0o644, noise(7, 1 << 20));
    manager.publish("sample", "1.0", tree.path());
    let mut host = Host::mounted("host-1", &manager);
    manager.export("sample@1.0", "host-1");
    host.attach("sample@1.0");
    let holder = host.holder_pid();
    let below: Vec<_> = children(holder);
    host.kill_mount();
    for (pid, _) in below {
        until("its children end with it", || (!Path::new(&format!("/proc/{pid}/fd")).exists()).then_some(()));
    }
    host.mount(&[]);
    let path = host.attach("sample@1.0");
    assert!(fs::read(path.join("data")).unwrap() == noise(7, 1 << 20));
}

#[test]
fn an_interrupted_publication_leaves_nothing() {
    let mut manager = Manager::start();
    let big = TreeFixture::new();
    for n in 0..24 {
        big.file(&format!("file-{n}"), 0o644, noise(n, 6 << 20));
    }
    let source = big.path().to_string_lossy().into_owned();
    let files = |dir: &str| files_below(&manager.store().join(dir)).len();
    let (packs, manifests) = (files("packs"), files("manifests"));

    // The command killed.
    let mut child = manager.command(&["publish", "big", "1.0", &source]).spawn().unwrap();
    until("something is being written", || (!files_below(&manager.store().join("tmp")).is_empty()).then_some(()));
    child.kill().unwrap();
    child.wait().unwrap();
    until("what was written is removed", || {
        (files_below(&manager.store().join("tmp")).is_empty()
            && files_below(&manager.store().join("packs")).len() == packs)
            .then_some(())
    });
    assert_eq!(files_below(&manager.store().join("manifests")).len(), manifests);

    // The manager killed.
    let mut child = manager.command(&["publish", "big", "1.0", &source]).spawn().unwrap();
    until("something is being written", || (!files_below(&manager.store().join("tmp")).is_empty()).then_some(()));
    manager.kill();
    assert!(!child.wait().unwrap().success());
    manager.serve();
    manager.run(&["gc"]).expect(0);
    manager.run(&["verify"]).expect(0);
    assert_eq!(
        (files_below(&manager.store().join("packs")).len(), files_below(&manager.store().join("tmp")).len()),
        (packs, 0)
    );
    assert!(!manager.run(&["generations", "--json"]).expect(0).stdout.contains("big"));
    manager.publish("big", "1.0", big.path());
}

/// How many files there are below a directory.
#[test]
fn two_publications_at_once_do_not_disturb_each_other() {
    let manager = Manager::start();
    let (one, two) = (TreeFixture::new(), TreeFixture::new());
    for n in 0..6 {
        // Half of it is common to both.
        one.file(&format!("file-{n}"), 0o644, noise(n, 1 << 20));
        two.file(&format!("file-{n}"), 0o644, noise(n + 3, 1 << 20));
    }
    std::thread::scope(|scope| {
        scope.spawn(|| manager.publish("one", "1.0", one.path()));
        scope.spawn(|| manager.publish("two", "1.0", two.path()));
    });
    manager.run(&["gc"]).expect(0);
    manager.run(&["verify"]).expect(0);
    let host = Host::mounted("host-1", &manager);
    for (product, seed) in [("one", 0), ("two", 3)] {
        manager.export(&format!("{product}@1.0"), "host-1");
        let path = host.attach(&format!("{product}@1.0"));
        for n in 0..6 {
            assert!(fs::read(path.join(format!("file-{n}"))).unwrap() == noise(n + seed, 1 << 20), "{product} {n}");
        }
    }
}

#[test]
fn a_killed_agent_is_started_again_and_its_job_goes_on() {
    let manager = Manager::start();
    let mut host = Host::mounted("host-1", &manager);
    manager.publish("data-agent", "1.0", TreeFixture::agent("1.0", "data", "").path());
    manager.export("data-agent@1.0", "host-1");
    host.launch("data-agent");
    let before = manager.wait_for_version("host-1", "data-agent", "1.0");
    let sources: Vec<_> = (0..3)
        .map(|n| {
            let source = host.path(&format!("data-{n}"));
            fs::create_dir(&source).unwrap();
            fs::write(source.join("file"), noise(n, 60 << 20)).unwrap();
            source.to_string_lossy().into_owned()
        })
        .collect();
    let repository = host.path("repository").to_string_lossy().into_owned();
    let mut args = vec!["job", "backup", "--host", "host-1", "--repository", &repository, "--detach"];
    args.extend(sources.iter().map(String::as_str));
    let id = manager.run(&args).text();
    until("the backup is under way", || Path::new(&repository).join("config").exists().then_some(()));
    kill(u32::try_from(before["pid"].as_u64().unwrap()).unwrap());
    let ended = manager.run(&["job", "wait", &id, "--json"]).expect(0).json_lines().pop().unwrap();
    assert_eq!(ended["state"], "done", "{ended}");
    assert_eq!(ended["snapshots"].as_array().unwrap().len(), 3, "{ended}");
    let after = manager.wait_for_version("host-1", "data-agent", "1.0");
    assert_ne!(after["pid"], before["pid"]);
}

#[test]
fn the_manager_may_be_killed_while_a_job_runs() {
    let mut manager = Manager::start();
    let mut host = Host::mounted("host-1", &manager);
    manager.publish("data-agent", "1.0", TreeFixture::agent("1.0", "data", "").path());
    manager.export("data-agent@1.0", "host-1");
    host.launch("data-agent");
    manager.wait_for_version("host-1", "data-agent", "1.0");
    let source = host.path("data");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), noise(3, 100 << 20)).unwrap();
    let repository = host.path("repository").to_string_lossy().into_owned();
    let line =
        ["job", "backup", "--host", "host-1", "--repository", &repository, "--detach", &source.to_string_lossy()];
    let id = manager.run(&line).text();
    manager.kill();
    manager.serve();
    let ended = manager.run(&["job", "wait", &id, "--json"]).expect(0).json_lines().pop().unwrap();
    assert_eq!(ended["state"], "done", "{ended}");
    // One job, one snapshot: it was joined, not run twice.
    assert_eq!(files_below(&Path::new(&repository).join("snapshots")).len(), 1);
}
