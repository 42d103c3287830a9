//! First starts: recorded on one host, or learned from the first, and fast on every other.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use serde_json::Value;
use tests::command::until;
use tests::{Host, Manager, Proxy, TreeFixture, noise};

/// A program that reads itself, and two pages in the middle of a large file.
fn sample() -> TreeFixture {
    let tree = TreeFixture::new();
    let script = "#!/bin/sh\ndd if=\"$MANAGER_FS_TREE/share/large\" bs=4096 skip=300 count=2 2>/dev/null | cksum\n";
    tree.file("bin/start", 0o755, script).file("share/large", 0o644, noise(0, 6 << 20));
    tree
}

fn published(tree: &TreeFixture) -> Manager {
    let manager = Manager::start();
    manager.run(&["publish", "sample", "1.0", tree.path().to_str().unwrap(), "--entrypoint", "bin/start"]).expect(0);
    manager
}

/// The next version: something new stands before what is read.
fn later() -> TreeFixture {
    const NEW: usize = 10_000;
    let (tree, mut large) = (TreeFixture::new(), noise(0, 6 << 20));
    large.splice(0..0, noise(1, NEW));
    let script = format!(
        "#!/bin/sh\ndd if=\"$MANAGER_FS_TREE/share/large\" bs=4096 iflag=skip_bytes skip={} count=2 2>/dev/null | cksum\n",
        300 * 4096 + NEW
    );
    tree.file("bin/start", 0o755, script).file("share/large", 0o644, large);
    tree
}

#[track_caller]
fn right_output() -> String {
    let tree = sample();
    let mut command = std::process::Command::new(tree.path().join("bin/start"));
    let output = command.env("MANAGER_FS_TREE", tree.path()).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A host whose recordings are believed.
fn recorder(manager: &Manager) -> Host {
    let recorder = Host::mounted("recorder", manager);
    manager.run(&["host", "group", "add", "recorders", "recorder"]).expect(0);
    recorder
}

#[track_caller]
fn attached(manager: &Manager, host: &Host, generation: &str) {
    manager.export(generation, &host.name);
    until("the export arrives", || (host.run(&["attach", generation]).code == Some(0)).then_some(()));
}

fn count(status: &Value, name: &str) -> u64 {
    status["fetch"][name].as_u64().unwrap()
}

/// The start's pages come to a host that then loses its manager, and the program runs.
#[track_caller]
fn starts_from_the_bundle_alone(manager: &Manager, name: &str, plain_bytes: u64) {
    generation_starts_from_the_bundle_alone(manager, "sample@1.0", name, plain_bytes);
}

#[track_caller]
fn generation_starts_from_the_bundle_alone(manager: &Manager, generation: &str, name: &str, plain_bytes: u64) {
    let (host, proxy) = bundle_comes(manager, generation, name, plain_bytes);
    proxy.cut();
    assert_eq!(host.run(&["exec", generation]).expect(0).text(), right_output());
    let status = host.status();
    assert_eq!((count(&status, "wrong_hashes"), count(&status, "retries")), (0, 0), "{}", status["fetch"]);
}

/// The start's pages, and no others, come to a new host.
#[track_caller]
fn bundle_comes(manager: &Manager, generation: &str, name: &str, plain_bytes: u64) -> (Host, Proxy) {
    let proxy = Proxy::start(&manager.address());
    let mut host = Host::new(name);
    host.enroll(manager, &proxy.address());
    // Nothing but the start is fetched: a byte a second of the rest, once its first request has been answered.
    host.mount(&["--hydrate-rate", "1", "--read-deadline", "1s"]);
    manager.export(generation, name);
    host.attach(generation);
    until("the bundle is here", || (count(&host.status(), "bundle_plain_bytes") == plain_bytes).then_some(()));
    (host, proxy)
}

#[test]
fn a_start_that_was_recorded_on_one_host_is_one_answer_on_another() {
    let manager = published(&sample());
    let recorder = recorder(&manager);
    manager.export("sample@1.0", "recorder");
    let refused = recorder.run(&["profile", "nothing@1"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    until("the export arrives", || (recorder.run(&["attach", "sample@1.0"]).code == Some(0)).then_some(()));
    let recorded = recorder.run(&["profile", "sample@1.0", "--json"]).expect(0).json();
    assert_eq!(recorded["touched_pages"], 3, "{recorded}");
    assert_eq!(recorded["bundle"]["objects"], 2, "{recorded}");
    // Another program of the same tree adds to it; what was known stays.
    let more =
        recorder.run(&["profile", "sample@1.0", "--json", "--", "/bin/sh", "-c", READ_FIRST_PAGE]).expect(0).json();
    assert_eq!((&more["touched_pages"], &more["bundle"]["objects"]), (&1.into(), &2.into()), "{more}");
    let plain_bytes = more["bundle"]["plain_bytes"].as_u64().unwrap();
    assert!(plain_bytes > 3 * 4096 && plain_bytes < 4 * 4096, "{more}");
    assert!(
        !recorder
            .path("run")
            .read_dir()
            .unwrap()
            .any(|entry| { entry.unwrap().file_name().to_string_lossy().starts_with("profile-") }),
        "nothing of the recording is left"
    );
    starts_from_the_bundle_alone(&manager, "fast", plain_bytes);
    assert_eq!(manager.run(&["verify"]).code, Some(0));
}

#[test]
fn what_was_recorded_of_one_version_brings_the_start_of_the_next() {
    let manager = published(&sample());
    let recorder = recorder(&manager);
    attached(&manager, &recorder, "sample@1.0");
    recorder.run(&["profile", "sample@1.0"]).expect(0);
    let next = later();
    let source = next.path().to_str().unwrap();
    manager.run(&["publish", "sample", "2.0", source, "--entrypoint", "bin/start"]).expect(0);
    until("it is carried over", || manager.log().contains("a recorded start was carried over").then_some(()));
    // Two pages that no longer begin with one are three; the script is guessed whole.
    let script = std::fs::metadata(next.path().join("bin/start")).unwrap().len();
    generation_starts_from_the_bundle_alone(&manager, "sample@2.0", "fast", 3 * 4096 + script);
    // What is forgotten of one version is forgotten of the next as well.
    manager.run(&["profile", "sample@1.0", "--reset"]).expect(0);
    drop(bundle_comes(&manager, "sample@2.0", "after", script));
    // What is recorded takes its place, without what only the version before touched.
    attached(&manager, &recorder, "sample@2.0");
    let recorded = recorder.run(&["profile", "sample@2.0", "--json", "--", "/bin/sh", "-c", READ_FIRST_PAGE]);
    assert_eq!(recorded.expect(0).json()["bundle"]["plain_bytes"], 4096);
}

const READ_FIRST_PAGE: &str = "head -c 10 \"$MANAGER_FS_TREE/share/large\" >/dev/null";

#[test]
fn a_publication_can_record_the_start_where_the_manager_is_a_host_too() {
    let (manager, tree) = (Manager::start(), sample());
    let host = Host::mounted("own", &manager);
    let (store, source) = (manager.store(), tree.path().to_str().unwrap().to_owned());
    let args = ["--store", store.to_str().unwrap(), "publish", "sample", "1.0", &source, "--profile", "--json"];
    let published = host.run(&args).expect(0).json();
    assert_eq!(published["profile"]["touched_pages"], 3, "{published}");
    let plain_bytes = published["profile"]["bundle"]["plain_bytes"].as_u64().unwrap();
    starts_from_the_bundle_alone(&manager, "fast", plain_bytes);
}

#[test]
fn without_a_recording_the_first_starts_teach_the_manager() {
    let manager = published(&sample());
    let starts = |name: &str| {
        let mut host = Host::new(name);
        host.enroll(&manager, &manager.address());
        host.mount(&["--hydrate-rate", "1"]);
        manager.export("sample@1.0", name);
        host.attach("sample@1.0");
        // The script is guessed whole, and yet it is seen that it is read.
        until("the guess is here", || (count(&host.status(), "bundle_plain_bytes") > 0).then_some(()));
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(host.run(&["exec", "sample@1.0"]).expect(0).text(), right_output());
        host
    };
    let _first = starts("first");
    until("one host has told", || manager.log().contains("a first start was told").then_some(()));
    assert!(!manager.log().contains("learned"), "what one host tells teaches nobody else");
    let _other = starts("other");
    until("the manager has learned", || manager.log().contains("learned").then_some(()));
    let file_of = |path: &str| std::fs::metadata(sample().path().join(path)).unwrap().len();
    starts_from_the_bundle_alone(&manager, "second", 2 * 4096 + file_of("bin/start"));
}

/// A real program that is larger than what is guessed whole, and a file that no loader knows of.
fn program() -> TreeFixture {
    let tree = TreeFixture::new();
    let bytes = std::fs::read(tests::command::program("manager-fs")).unwrap();
    let descriptor = "entrypoint = 'bin/start'\narguments = ['--version']\n";
    tree.file("bin/start", 0o755, bytes).file("manager-fs.toml", 0o644, descriptor).file("data", 0o644, [b'7'; 5000]);
    tree
}

#[test]
fn a_start_that_nobody_recorded_gets_what_the_loader_reads_and_teaches_what_the_program_touched() {
    let (manager, tree) = (Manager::start(), program());
    manager.publish("sample", "1.0", tree.path());
    let proxy = Proxy::start(&manager.address());
    let starts = |name: &str| {
        let mut host = Host::new(name);
        host.enroll(&manager, &proxy.address());
        host.mount(&["--hydrate-rate", "1"]);
        manager.export("sample@1.0", name);
        host.attach("sample@1.0");
        until("the guess is here", || (count(&host.status(), "bundle_plain_bytes") > 40 * 4096).then_some(()));
        // What the loader reads, or all that is guessed if that has been made by now (docs/bundle-format.md).
        assert!(count(&host.status(), "bundle_plain_bytes") <= 24 << 20, "{}", host.status()["fetch"]);
        // Of all that was guessed this start touches nothing.
        let read = host.run(&["exec", "sample@1.0", "--", "/bin/sh", "-c", "head -c 10 \"$MANAGER_FS_TREE/data\""]);
        assert_eq!(read.expect(0).stdout, "7777777777");
        host
    };
    let (first, _other) = (starts("first"), starts("other"));
    until("the manager has learned", || manager.log().contains("learned").then_some(()));
    let mut second = Host::new("second");
    second.enroll(&manager, &manager.address());
    second.mount(&["--hydrate-rate", "1"]);
    manager.export("sample@1.0", "second");
    second.attach("sample@1.0");
    until("what was learned is here", || (count(&second.status(), "bundle_plain_bytes") > 0).then_some(()));
    assert_eq!(count(&second.status(), "bundle_plain_bytes"), 4096, "{}", second.status()["fetch"]);

    let version = std::process::Command::new(tree.path().join("bin/start")).arg("--version").output().unwrap();
    assert_eq!(
        first.run(&["exec", "sample@1.0"]).expect(0).text(),
        String::from_utf8(version.stdout).unwrap().trim()
    );
    let status = first.status();
    assert_eq!((count(&status, "wrong_hashes"), count(&status, "retries")), (0, 0), "{}", status["fetch"]);
}

#[test]
fn a_worker_that_dies_in_the_middle_of_a_start_goes_unnoticed() {
    let manager = published(&sample());
    let recorder = recorder(&manager);
    attached(&manager, &recorder, "sample@1.0");
    recorder.run(&["profile", "sample@1.0"]).expect(0);
    for round in 0..6 {
        let name = format!("host-{round}");
        let host = Host::mounted(&name, &manager);
        manager.export("sample@1.0", &name);
        let worker = i32::try_from(host.status()["daemon"]["pid"].as_i64().unwrap()).unwrap();
        let output = std::thread::scope(|scope| {
            let starting = scope.spawn(|| host.run(&["exec", "sample@1.0"]));
            // Rounds differ in when it happens; no outcome depends on it.
            std::thread::sleep(Duration::from_millis(round * 8));
            let worker = rustix::process::Pid::from_raw(worker).unwrap();
            rustix::process::kill_process(worker, rustix::process::Signal::KILL).unwrap();
            starting.join().unwrap()
        });
        assert_eq!(output.expect(0).text(), right_output(), "round {round}");
    }
}

/// A drawing is of one start, also of one that fails, and costs the program nothing but its terminal.
#[test]
fn a_start_is_drawn_with_what_it_read_and_waited_for() {
    let manager = published(&sample());
    let mut host = Host::new("drawn");
    host.enroll(&manager, &manager.address());
    host.mount(&["--hydrate-rate", "1"]);
    manager.export("sample@1.0", "drawn");
    until("the export arrives", || (host.run(&["status"]).stdout.contains("sample@1.0")).then_some(()));
    let image = host.path("start.svg");
    let typed = ["exec", "--trace", image.to_str().unwrap(), "sample@1.0"];
    let drawn = host.run(&typed).expect(0);
    assert_eq!(drawn.stdout.trim(), right_output());
    assert!(drawn.stderr.contains("first output after") && drawn.stderr.contains("drawn in"), "{}", drawn.stderr);
    let svg = std::fs::read_to_string(&image).unwrap();
    assert!(svg.starts_with("<svg ") && svg.contains("share/large") && svg.contains("bin/start"), "{svg}");
    assert!(svg.contains("<rect class=\"start\"") && svg.contains("<rect class=\"missing\""), "{svg}");
    // Everything is here by now, the code of the program is the command's, and its errors stay its errors.
    let typed =
        ["exec", "--trace", image.to_str().unwrap(), "sample@1.0", "--", "/bin/sh", "-c", "echo no >&2; exit 7"];
    let failed = host.run(&typed).expect(7);
    assert!(failed.stdout.is_empty() && failed.stderr.starts_with("no\n"), "{failed:?}");
    assert!(!std::fs::read_to_string(&image).unwrap().contains("<rect class=\"missing\""));
    // One start at a time is traced; who ends early leaves nothing behind.
    let (flag, other) = (host.path("flag"), host.path("other.svg"));
    let busy = format!("touch {}; while kill -0 $PPID; do :; done", flag.display());
    let typed = ["exec", "--trace", other.to_str().unwrap(), "sample@1.0", "--", "/bin/sh", "-c", &busy];
    let mut first = host.command(&typed).spawn().unwrap();
    until("its program runs", || flag.exists().then_some(()));
    let typed = ["exec", "--trace", image.to_str().unwrap(), "sample@1.0"];
    let second = host.run(&typed).expect(1);
    assert!(second.stderr.contains("another start is being traced"), "{}", second.stderr);
    first.kill().unwrap();
    first.wait().unwrap();
    until("the next may be", || (host.run(&typed).code == Some(0)).then_some(()));
    let nowhere = host.run(&["exec", "--trace", "/nowhere/start.svg", "sample@1.0"]).expect(1);
    assert!(nowhere.stderr.contains("/nowhere/start.svg"), "{}", nowhere.stderr);
}
