//! Operations that a program brings itself, through the command line: typed arguments, progress, a change-over in the
//! middle, a cancel, what nobody knows, and what the host does not permit.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use serde_json::Value;
use tests::command::{program, until};
use tests::{Host, Manager, Output, TreeFixture};

const PRODUCT: &str = "worker";
const FILES: usize = 60;

/// The example of a worker as a product, on a host where it runs and has done so many files.
fn running() -> (Manager, Host) {
    let manager = Manager::start();
    let mut host = Host::mounted("host-1", &manager);
    let directory = host.path("work");
    fs::create_dir_all(directory.join("done")).unwrap();
    for n in 0..FILES {
        fs::write(directory.join(format!("done/item-{n:02}")), "ABC").unwrap();
    }
    publish(&manager, &host, "1.0");
    host.launch(PRODUCT);
    publish(&manager, &host, "2.0");
    manager.wait_for_version("host-1", PRODUCT, "1.0");
    (manager, host)
}

fn publish(manager: &Manager, host: &Host, version: &str) {
    let tree = TreeFixture::new();
    tree.file("bin/worker", 0o755, fs::read(program("examples/worker")).unwrap());
    tree.file("VERSION", 0o644, version);
    let directory = host.path("work");
    let text = format!("entrypoint = \"bin/worker\"\narguments = [{directory:?}]\nprobation = \"8s\"\n");
    tree.file("manager-fs.toml", 0o644, text + "drain_deadline = \"1s\"\n");
    manager.publish(PRODUCT, version, tree.path());
    manager.export(&format!("{PRODUCT}@{version}"), "host-1");
}

fn order(manager: &Manager, kind: &str, more: &[&str]) -> Output {
    manager.run(&[&["job", "run", PRODUCT, kind, "--host", "host-1"], more].concat())
}

fn done_units(manager: &Manager, job: &str) -> u64 {
    let shown = manager.run(&["job", "show", job, "--json"]).expect(0).json();
    shown["progress"]["units_done"].as_u64().unwrap_or(0)
}

#[test]
fn an_operation_of_a_programs_own_goes_on_across_an_upgrade_and_says_what_it_did() {
    let (manager, _host) = running();
    let short = order(&manager, "digest", &["--arg", "only=item-0", "--json"]).expect(0).json_lines();
    let end = short.last().unwrap();
    assert_eq!(
        (&end["operation"], &end["state"], &end["repository"]),
        (&"digest".into(), &"done".into(), &Value::Null)
    );
    assert_eq!((&end["results"]["files"], &end["results"]["bytes"]), (&"10".into(), &"30".into()));
    assert_eq!(end["arguments"]["only"], "item-0");

    let job = order(&manager, "digest", &["--arg", "pause_ms=100", "--detach"]).expect(0).text();
    until("some files were read", || (done_units(&manager, &job) > 2).then_some(()));
    manager.run(&["upgrade", PRODUCT, "worker@2.0", "--to", "host-1"]).expect(0);
    let end = manager.run(&["job", "wait", &job, "--json"]).expect(0).json_lines().pop().unwrap();
    assert_eq!(end["versions"], serde_json::json!(["1.0", "2.0"]), "{end}");
    let bytes = (3 * FILES).to_string();
    assert_eq!((&end["results"]["files"], &end["results"]["bytes"]), (&"60".into(), &bytes.as_str().into()), "{end}");
    let shown = manager.run(&["job", "show", &job]).expect(0).stdout;
    assert!(shown.contains("digest on host-1: done, by version 1.0, 2.0") && shown.contains("files: 60"), "{shown}");
}

#[test]
fn a_cancel_ends_it_at_its_next_unit() {
    let (manager, _host) = running();
    let job = order(&manager, "digest", &["--arg", "pause_ms=200", "--detach"]).expect(0).text();
    until("a file was read", || (done_units(&manager, &job) > 0).then_some(()));
    manager.run(&["job", "cancel", &job]).expect(0);
    let end = manager.run(&["job", "wait", &job, "--json"]).expect(1).json_lines().pop().unwrap();
    assert_eq!((&end["state"], &end["versions"]), (&"cancelled".into(), &serde_json::json!(["1.0"])), "{end}");
    assert!(done_units(&manager, &job) < FILES as u64);
}

#[test]
fn what_the_program_does_not_know_or_the_host_does_not_permit_is_named() {
    let (manager, host) = running();
    let refused = |kind: &str, more: &[&str], code: i32, words: &[&str]| {
        let said = order(&manager, kind, more).expect(code);
        let said = format!("{}{}", said.stdout, said.stderr);
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    };
    refused("digset", &[], 1, &["performs no digset", "did you mean digest"]);
    refused("digest", &["--arg", "pause=1"], 1, &["no argument 'pause'", "only, pause_ms"]);
    refused("digest", &["--arg", "pause_ms=soon"], 1, &["'pause_ms' is 'soon'"]);
    refused("digest", &["--arg", "pause_ms=1", "--arg", "pause_ms=2"], 1, &["'pause_ms' is given twice"]);
    refused("digest", &["--arg", "pause_ms"], 2, &["NAME=VALUE"]);
    refused("backup", &[], 1, &["manager-fs job backup"]);
    let permits = host.path("state/permits.toml");
    fs::write(&permits, "[operations]\nkinds = []\n").unwrap();
    refused("digest", &[], 1, &["does not permit operations of the kind digest", "line 2: operations.kinds"]);
    let check = host.run(&["permits", "check", "--operation", "digest"]).expect(1);
    assert!(check.stdout.contains("operations.kinds"), "{}", check.stdout);
}
