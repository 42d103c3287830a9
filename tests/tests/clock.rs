//! Clocks that are wrong, on either side: whoever can work works, whoever cannot is told which clock to set, and when it is
//! right again nothing is left of the wrong time.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use tests::command::{program, until};
use tests::{Clock, Host, Manager, TreeFixture, noise};

const PRODUCT: &str = "data-agent";
/// To the year 2100, and to the year 2000.
const AHEAD_DAYS: i64 = 74 * 365;
const BEHIND_DAYS: i64 = -26 * 365;

fn publish(manager: &Manager, version: &str) {
    let tree = TreeFixture::new();
    let mut bytes = fs::read(program("examples/tiny_agent")).unwrap();
    bytes.extend(noise(version.len() as u64, 1_000));
    tree.file("bin/agent", 0o755, bytes).file("VERSION", 0o644, version);
    tree.file("manager-fs.toml", 0o644, "entrypoint = \"bin/agent\"\narguments = [\"--unit-ms\", \"5\"]\n");
    manager.publish(PRODUCT, version, tree.path());
    manager.export(&format!("{PRODUCT}@{version}"), "host-1");
}

#[track_caller]
fn upgrade(manager: &Manager, version: &str, to: &str) -> tests::Output {
    manager.run(&["upgrade", PRODUCT, &format!("{PRODUCT}@{version}"), "--to", to])
}

#[track_caller]
fn connected(host: &Host) {
    until("the host is connected", || (host.status()["manager"]["connected"] == true).then_some(()));
}

/// Why the host has no connection, as its status says.
#[track_caller]
fn told(host: &Host, word: &str) {
    until(&format!("status says: {word}"), || {
        let why = host.status()["manager"]["last_error"].as_str().unwrap_or_default().to_owned();
        why.contains(word).then_some(())
    });
}

struct Lab {
    managers: Clock,
    hosts: Clock,
    manager: Manager,
    host: Host,
}

/// A host of whose product version 1 runs, and 2 is there.
fn lab() -> Lab {
    let (managers, hosts) = (Clock::right(), Clock::right());
    let (manager, mut host) = (Manager::by(&managers), Host::by("host-1", &hosts));
    publish(&manager, "1");
    host.enroll(&manager, &manager.address());
    host.mount(&[]);
    host.launch(PRODUCT);
    manager.wait_for_version("host-1", PRODUCT, "1");
    publish(&manager, "2");
    Lab { managers, hosts, manager, host }
}

#[test]
fn a_host_whose_clock_is_wrong_works_on() {
    let Lab { hosts, manager, mut host, .. } = lab();
    for (days, version) in [(AHEAD_DAYS, "2"), (BEHIND_DAYS, "1"), (0, "2")] {
        hosts.set_days(days);
        assert_eq!(host.stop(PRODUCT), Some(0));
        assert_eq!(host.unmount(), Some(0));
        host.mount(&[]);
        connected(&host);
        host.launch(PRODUCT);
        upgrade(&manager, version, "host-1").expect(0);
        manager.wait_for_version("host-1", PRODUCT, version);
        let repository = host.path("repository").to_string_lossy().into_owned();
        manager.run(&["job", "backup", "--host", "host-1", "--repository", &repository, "/1", "/2"]).expect(0);
        manager.run(&["agents"]).expect(0);
    }
}

#[test]
fn a_manager_whose_clock_was_wrong_shuts_nobody_out_and_its_last_order_counts() {
    let Lab { managers, manager: mut there, host: mut here, .. } = lab();
    there.run(&["host", "group", "add", "all", "host-1"]).expect(0);
    managers.set_days(AHEAD_DAYS);
    // The connection is from before.
    upgrade(&there, "2", "host-1").expect(0);
    let late = there.run(&["token", "host-2", "--ttl", "1h"]).expect(0).text();
    assert_eq!(here.stop(PRODUCT), Some(0));
    assert_eq!(here.unmount(), Some(0));
    here.mount(&[]);
    told(&here, "Set the clock of the manager's machine right");
    // It comes back by itself, and what is ordered of its group reaches it although something was ordered there in 2100.
    managers.set_days(0);
    connected(&here);
    here.launch(PRODUCT);
    for (version, is_started_anew) in [("1", false), ("2", true)] {
        assert_eq!(here.stop(PRODUCT), Some(0));
        assert_eq!(here.unmount(), Some(0));
        if is_started_anew {
            there.stop();
            there.serve();
        }
        until("the manager knows that the host is away", || {
            let hosts = there.run(&["hosts", "--json"]).expect(0).json();
            hosts["hosts"][0]["connected_since_unix_ms"].is_null().then_some(())
        });
        let away = upgrade(&there, version, "@all");
        assert!(away.stdout.contains("when it comes"), "{away:?}");
        here.mount(&[]);
        here.launch(PRODUCT);
        there.wait_for_version("host-1", PRODUCT, version);
    }
    // A token of the wrong time is good for no lifetime.
    let stranger = Host::new("host-2");
    fs::write(stranger.path("token"), late).unwrap();
    let token = stranger.path("token");
    let token = token.to_string_lossy();
    let refused = stranger.run(&["enroll", "--manager", &there.address(), "--token-file", &token]);
    assert!(refused.code == Some(1) && refused.stderr.contains("the clock of this manager was ahead"), "{refused:?}");
}

#[test]
fn what_a_manager_did_in_the_year_2000_goes_on_when_its_clock_is_right() {
    let Lab { managers, manager, mut host, .. } = lab();
    managers.set_days(BEHIND_DAYS);
    upgrade(&manager, "2", "host-1").expect(0);
    assert_eq!(host.stop(PRODUCT), Some(0));
    assert_eq!(host.unmount(), Some(0));
    host.mount(&[]);
    told(&host, "Set the clock of the manager's machine right");
    managers.set_days(0);
    connected(&host);
    host.launch(PRODUCT);
    upgrade(&manager, "1", "host-1").expect(0);
    manager.wait_for_version("host-1", PRODUCT, "1");
}
