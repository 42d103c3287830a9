//! The manager's own upkeep, as an operator does it: a backup while hosts work, and another machine in its place.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use tests::command::{Output, Service, until};
use tests::{Host, Manager, TreeFixture};

#[test]
fn a_manager_is_backed_up_while_it_serves_and_goes_on_elsewhere() {
    let mut manager = Manager::start();
    let mut host = Host::mounted("host-1", &manager);
    let tree = TreeFixture::script("echo one", "");
    manager.publish("p", "1", tree.path());
    manager.export("p@1", "host-1");
    assert_eq!(host.run(&["exec", "p@1", "--", "agent"]).expect(0).stdout.trim(), "one");
    let backup = manager.path("backup");
    let file = backup.to_string_lossy().into_owned();
    let made = manager.run(&["store", "backup", "--packs", &file, "--json"]).expect(0).json();
    assert_eq!(
        (&made["records"]["host"], &made["packs_included"], &made["missing"]),
        (&1.into(), &true.into(), &0.into())
    );
    assert_eq!(fs::metadata(&backup).unwrap().permissions().mode() & 0o777, 0o600);
    let again = manager.run(&["store", "backup", &file]).expect(1);
    assert!(again.stderr.contains("is there already"), "{}", again.stderr);
    // What is decided after it is not in it.
    tree.file("bin/agent", 0o755, "#!/bin/sh\necho two\n");
    manager.publish("p", "2", tree.path());
    let address = manager.address();
    manager.kill();

    let elsewhere = manager.path("elsewhere");
    let there = elsewhere.to_string_lossy().into_owned();
    let restored = manager.run(&["store", "restore", &file, "--store", &there, "--json"]).expect(0).json();
    assert_eq!((&restored["records"]["generation"], &restored["packs"]), (&1.into(), &1.into()));
    let command = |args: &[&str]| -> Command {
        let mut command = manager.command(args);
        command.env("MANAGER_FS_STORE", &elsewhere);
        command
    };
    let _serve = Service::start("serve", &mut command(&["serve", "--listen", &address]));
    // The host knows it by its authority, and comes by itself.
    until("the host is there", || {
        let hosts = Output::of(&mut command(&["hosts", "--json"])).expect(0).json();
        hosts["hosts"][0]["connected"].as_bool().filter(|connected| *connected)
    });
    Output::of(&mut command(&["verify"])).expect(0);
    // A record that is signed now is newer for the host than the one that was lost.
    let source = tree.path().to_string_lossy().into_owned();
    let published = Output::of(&mut command(&["publish", "p", "3", &source, "--json"])).expect(0).json();
    assert!(published["sequence"].as_u64().is_none_or(|sequence| sequence > 1 << 20), "{published}");
    Output::of(&mut command(&["export", "p@3", "--to", "host-1"])).expect(0);
    assert_eq!(host.run(&["exec", "p@3", "--", "agent"]).expect(0).stdout.trim(), "two");
    host.unmount();
}

#[test]
fn a_manager_that_has_ended_is_backed_up_and_its_packs_are_copied_beside() {
    let mut manager = Manager::start();
    let tree = TreeFixture::script("exit 0", "");
    manager.publish("p", "1", tree.path());
    manager.stop();
    let file = manager.path("backup").to_string_lossy().into_owned();
    let made = manager.run(&["store", "backup", &file]).expect(0);
    assert!(made.stderr.contains("holds the manager's keys") && made.stderr.contains("packs/"), "{}", made.stderr);
    let there = manager.path("elsewhere").to_string_lossy().into_owned();
    let restored = manager.run(&["store", "restore", &file, "--store", &there]).expect(3);
    assert!(restored.stderr.contains("copy the directory packs/"), "{}", restored.stderr);
    let copied = Command::new("cp").arg("-a").arg(manager.store().join("packs")).arg(&there).status().unwrap();
    assert!(copied.success());
    let mut serve = manager.command(&["serve", "--listen", "127.0.0.1:0", "--store", &there]);
    let _serve = Service::start("serve", &mut serve);
    manager.run(&["verify", "--store", &there]).expect(0);
    // A directory that is a store is never written over.
    let over = manager.run(&["store", "restore", &file, "--store", &there]).expect(1);
    assert!(over.stderr.contains("is empty, missing"), "{}", over.stderr);
}
