//! Upgrades of hosts on which no agent runs: the stub takes the order, and where there is no stub the operator is told what
//! to do.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;

use tests::command::until;
use tests::{Host, Manager, TreeFixture};

const PRODUCT: &str = "data-agent";
const DESCRIPTOR: &str = "drain_deadline = \"20s\"\nprobation = \"5s\"\n";

/// A version whose start fails while this file is there.
fn fragile(version: &str, file: &Path) -> TreeFixture {
    let tree = TreeFixture::agent(version, "data", DESCRIPTOR);
    let file = file.display();
    let start = format!("#!/bin/sh\nif [ -e {file} ]; then echo the world is bad >&2; exit 9; fi\n");
    tree.file("bin/start", 0o755, format!("{start}exec \"$(dirname \"$0\")/agent\" \"$@\"\n"));
    let head = "entrypoint = \"bin/start\"\narguments = [\"--role\", \"data\"]\n";
    tree.file("manager-fs.toml", 0o644, format!("{head}{DESCRIPTOR}"));
    tree
}

/// A host whose only version has confirmed once and now fails at every start.
fn failing() -> (Manager, Host) {
    let manager = Manager::start();
    let mut host = Host::mounted("host-1", &manager);
    let bad_world = host.path("bad-world");
    manager.publish(PRODUCT, "1.0", fragile("1.0", &bad_world).path());
    manager.export(&format!("{PRODUCT}@1.0"), "host-1");
    host.launch(PRODUCT);
    manager.wait_for_version("host-1", PRODUCT, "1.0");
    host.wait_until_local();
    fs::write(&bad_world, "").unwrap();
    let pid = manager.agent("host-1", PRODUCT).unwrap()["pid"].as_i64().unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    until("the host says that its agent does not come up", || {
        let agent = host.status()["agents"][0].clone();
        (agent["state"] == "stopped" && agent["reason"].as_str()?.contains("exit status 9")).then_some(())
    });
    (manager, host)
}

#[test]
fn an_upgrade_reaches_a_host_whose_version_fails_at_every_start() {
    let (manager, host) = failing();
    manager.publish(PRODUCT, "2.0", TreeFixture::agent("2.0", "data", DESCRIPTOR).path());
    let to = ["upgrade", PRODUCT, "data-agent@2.0", "--to", "host-1", "--export", "--json"];
    let events = manager.run(&to).expect(0).json_lines();
    let steps: Vec<_> = events.iter().filter_map(|event| event["step"].as_str()).collect();
    for step in ["metadata_saved", "staged", "warmed", "journaled", "started", "confirmed"] {
        assert!(steps.contains(&step), "no step {step} in {steps:?}");
    }
    let agent = manager.wait_for_version("host-1", PRODUCT, "2.0");
    assert!(agent["reason"].as_str().unwrap().starts_with("changed over from 1.0"), "{agent}");
    let source = host.path("data");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    let (repository, source) = (host.path("repository"), source.display().to_string());
    let repository = repository.display().to_string();
    manager.run(&["job", "backup", "--host", "host-1", "--repository", &repository, &source]).expect(0);
}

#[test]
fn an_upgrade_from_one_bad_version_to_another_says_what_is_wrong_with_both() {
    let (manager, host) = failing();
    let bad = TreeFixture::script("echo worse >&2; exit 4", DESCRIPTOR);
    manager.publish(PRODUCT, "2.0", bad.path());
    let to = ["upgrade", PRODUCT, "data-agent@2.0", "--to", "host-1", "--export", "--json"];
    let output = manager.run(&to).expect(1);
    let said = format!("{}{}", output.stdout, output.stderr);
    for part in ["2.0 failed: exit status 4", "1.0, which was there before, does not come up either", "exit status 9"]
    {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    // To what the host tries by itself, too.
    let to = ["upgrade", PRODUCT, "data-agent@1.0", "--to", "host-1", "--json"];
    let output = manager.run(&to).expect(1);
    assert!(output.stdout.contains("it does not come up: exit status 9"), "{output:?}");
    fs::remove_file(host.path("bad-world")).unwrap();
    until("the host's own version is back", || (host.status()["agents"][0]["state"] == "serving").then_some(()));
}

#[test]
fn an_upgrade_says_what_to_do_where_nobody_can_take_it() {
    let manager = Manager::start();
    let mut host = Host::mounted("host-1", &manager);
    manager.publish(PRODUCT, "1.0", TreeFixture::agent("1.0", "data", DESCRIPTOR).path());
    manager.export(&format!("{PRODUCT}@1.0"), "host-1");
    let upgrade = |version: &str| {
        let generation = format!("{PRODUCT}@{version}");
        let output =
            manager.run(&["upgrade", PRODUCT, &generation, "--to", "host-1", "--export", "--json"]).expect(1);
        format!("{}{}", output.stdout, output.stderr)
    };
    let never = upgrade("1.0");
    assert!(never.contains("where it has never run: start it with `manager-fs launch data-agent`"), "{never}");
    host.launch(PRODUCT);
    manager.wait_for_version("host-1", PRODUCT, "1.0");
    assert_eq!(host.stop(PRODUCT), Some(0));
    manager.publish(PRODUCT, "2.0", TreeFixture::agent("2.0", "data", DESCRIPTOR).path());
    let gone = upgrade("2.0");
    for part in ["no `launch data-agent` is there to take the order", "it begins with 1.0", "rescue data-agent --to"]
    {
        assert!(gone.contains(part), "no {part:?} in {gone}");
    }
}
