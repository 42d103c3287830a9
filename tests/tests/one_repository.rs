//! One repository that two hosts reach under two names: whoever must be alone there waits for the others, also while the
//! manager dies and comes back.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File};
use std::os::unix::fs::symlink;

use serde_json::Value;
use tests::command::until;
use tests::{Host, Manager, TreeFixture};

const DESCRIPTOR: &str = "drain_deadline = \"20s\"\nprobation = \"10s\"\n";
/// Of nothing: no machine reads to its end before the test has looked at everything.
const ENDLESS_BYTES: u64 = 1 << 40;

/// A host that runs this agent.
#[track_caller]
fn running(manager: &Manager, name: &str, product: &str, role: &str) -> Host {
    let mut host = Host::mounted(name, manager);
    manager.publish(product, "1.0", TreeFixture::agent("1.0", role, DESCRIPTOR).path());
    manager.export(&format!("{product}@1.0"), name);
    host.launch(product);
    manager.wait_for_version(name, product, "1.0");
    host
}

fn show(manager: &Manager, job: &str) -> Value {
    manager.run(&["job", "show", job, "--json"]).expect(0).json()
}

fn is_over(job: &Value) -> bool {
    !["queued", "running"].contains(&job["state"].as_str().unwrap())
}

#[test]
fn a_prune_under_another_name_waits_for_a_backup_that_writes_whatever_becomes_of_the_manager() {
    let mut manager = Manager::start();
    let web = running(&manager, "web", "data-agent", "data");
    let vault = running(&manager, "vault", "media-agent", "media");
    let (source, repository, other) = (web.path("source"), web.path("repository"), vault.path("by-another-name"));
    fs::create_dir(&source).unwrap();
    let file = File::create(source.join("endless")).unwrap();
    file.set_len(ENDLESS_BYTES).unwrap();
    symlink(&repository, &other).unwrap();
    let order = |kind: &str, host: &str, repository: &str, more: &[&str]| {
        let args = ["job", kind, "--host", host, "--repository", repository, "--detach"];
        manager.run(&[&args, more].concat()).text()
    };
    let (repository, source) = (repository.to_string_lossy(), source.to_string_lossy());
    let backup = order("backup", "web", &repository, &[&source]);
    until("the backup writes", || {
        let shown = show(&manager, &backup);
        assert!(!is_over(&shown), "{shown}");
        fs::exists(format!("{repository}/config")).unwrap().then_some(())
    });
    let password = web.path("state/repository.password");
    let key = ["--password-file", &password.to_string_lossy(), "--keep-last", "1"];
    let prune = order("prune", "vault", &format!("{}/", other.display()), &key);
    let waits = |manager: &Manager| {
        let shown = show(manager, &prune);
        assert!(!is_over(&shown) && shown["state"] != "running", "it runs beside a backup: {shown}");
        shown["waiting"].as_str().is_some_and(|why| why.contains("backup on web")).then_some(())
    };
    until("the prune waits for the backup", || waits(&manager));
    manager.kill();
    manager.serve();
    until("it waits for it again", || waits(&manager));
    assert!(!is_over(&show(&manager, &backup)), "the backup goes on");

    file.set_len(0).unwrap();
    let pruned = until("the prune is over", || {
        // In this order: what was so of the prune first is so no later than the backup's end.
        let pruned = show(&manager, &prune);
        let ended = is_over(&show(&manager, &backup));
        assert!(ended || (pruned["state"] != "running" && !is_over(&pruned)), "it began before: {pruned}");
        is_over(&pruned).then_some(pruned)
    });
    assert_eq!(pruned["state"], "done", "{pruned}");
    let stored = show(&manager, &backup);
    assert!(stored["snapshots"].as_array().is_some_and(|snapshots| snapshots.len() == 1), "{stored}");
    let check = ["job", "check", "--host", "vault", "--repository", &repository];
    manager.run(&[&check, &key[..2]].concat()).expect(0);
}
