//! A host that comes up with an old copy of its STATE: restored from an image, a volume put back.

// Panicking is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tests::command::{program, until};
use tests::{Host, Manager, TreeFixture};

const PRODUCT: &str = "data-agent";

/// The example agent, which counts: a unit every 100 ms, each with a checkpoint in the job's record.
fn counting() -> TreeFixture {
    let tree = TreeFixture::new();
    tree.file("bin/agent", 0o755, fs::read(program("examples/tiny_agent")).unwrap());
    let head =
        "entrypoint = 'bin/agent'\narguments = ['--unit-ms', '100']\ndrain_deadline = '1s'\nprobation = '2s'\n";
    tree.file("manager-fs.toml", 0o644, head);
    tree
}

/// Orders a backup of so many units; returns its number.
fn order(manager: &Manager, host: &Host, units: usize, more: &[&str]) -> String {
    let repository = host.path("repository").to_string_lossy().into_owned();
    let sources: Vec<String> = (0..units).map(|n| format!("/{n}")).collect();
    let mut args = vec!["job", "backup", "--host", &host.name, "--repository", &repository, "--json"];
    args.extend(more);
    args.extend(sources.iter().map(String::as_str));
    let printed = manager.run(&args).expect(0).json_lines();
    printed.last().unwrap()["job"].to_string().trim_matches('"').to_owned()
}

fn job(manager: &Manager, id: &str) -> Value {
    manager.run(&["job", "show", id, "--json"]).expect(0).json()
}

/// The one record of a job that is on the host.
fn record(host: &Host) -> Vec<u8> {
    let dir = host.path(&format!("state/agents/{PRODUCT}/jobs"));
    let newest = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let number = |path: &Path| path.file_name().unwrap().to_str().unwrap().parse::<u64>().unwrap_or(u64::MAX);
    fs::read(newest.min_by_key(|path| number(path)).unwrap()).unwrap()
}

fn copy(from: &Path, to: &Path) {
    drop(fs::remove_dir_all(to));
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

#[test]
fn a_job_that_the_manager_has_ended_does_not_go_on_out_of_an_old_copy_of_the_state() {
    let manager = Manager::start();
    let mut host = Host::mounted("host-1", &manager);
    manager.publish(PRODUCT, "1", counting().path());
    manager.export(&format!("{PRODUCT}@1"), "host-1");
    host.launch(PRODUCT);
    manager.wait_for_version("host-1", PRODUCT, "1");
    // In the middle of an operation the host is copied: half a minute of work is left.
    let old = order(&manager, &host, 300, &["--detach"]);
    until("the operation is under way", || (job(&manager, &old)["state"] == "running").then_some(()));
    assert_eq!(host.stop(PRODUCT), Some(0));
    let (state, image) = (host.path("state/agents"), host.path("image"));
    copy(&state, &image);

    // It goes on, since the manager holds it to be open; and is ended.
    host.launch(PRODUCT);
    until("it goes on", || (job(&manager, &old)["progress"]["units_done"].as_u64()? > 20).then_some(()));
    manager.run(&["job", "cancel", &old]).expect(0);
    until("it has ended", || (job(&manager, &old)["state"] == "cancelled").then_some(()));
    let ended = job(&manager, &old);

    // The image is put back, in which the operation is in its middle.
    assert_eq!(host.stop(PRODUCT), Some(0));
    copy(&image, &state);
    let before = record(&host);
    host.launch(PRODUCT);
    manager.wait_for_version("host-1", PRODUCT, "1");
    // The agent works: so long that the old operation would have taken twenty units meanwhile.
    let new = order(&manager, &host, 20, &[]);
    assert_eq!(job(&manager, &new)["state"], "done");
    assert!(record(&host) == before, "the old operation went on");
    assert_eq!(manager.agent("host-1", PRODUCT).unwrap()["jobs"].as_array().map(Vec::len), Some(0));
    assert_eq!(job(&manager, &old), ended);
    // Also after a crash of the agent, which is no new image.
    let pid = host.status()["agents"][0]["pid"].as_i64().unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    order(&manager, &host, 5, &[]);
    assert!(record(&host) == before, "the old operation went on after a crash");
}
