//! Generations that are carried to a manager that no network reaches.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use tests::{Host, Manager, TreeFixture, noise};

fn text(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}

#[test]
fn an_agent_crosses_the_gap_twice_and_the_second_time_only_what_is_new() {
    let (near, far) = (Manager::start(), Manager::start());
    let mut host = Host::mounted("host-1", &far);
    let tree = TreeFixture::script("echo one", "");
    tree.file("big", 0o644, noise(1, 3 << 20));
    near.publish("p", "1", tree.path());
    let key = near.run(&["show", "p@1", "--json"]).expect(0).json()["publisher"].as_str().unwrap().to_owned();
    let (first, second, have) = (near.path("first"), near.path("second"), near.path("have"));
    let saved = near.run(&["save", "p@1", &text(&first), "--json"]).expect(0).json();
    assert_eq!(saved["publishers"][0].as_str(), Some(key.as_str()));
    // Of a publisher that nobody has named: nothing.
    let refused = far.run(&["load", &text(&first)]).expect(1);
    assert!(refused.stderr.contains(&format!("--publisher {key}")), "{}", refused.stderr);
    assert!(!far.run(&["generations"]).expect(0).stdout.contains('p'));
    let loaded = far.run(&["load", &text(&first), "--publisher", &key, "--json"]).expect(0).json();
    assert_eq!(loaded["generations"][0]["already_published"], false);
    far.export("p@1", "host-1");
    assert_eq!(host.run(&["exec", "p@1", "--", "agent"]).expect(0).stdout.trim(), "one");

    fs::write(&have, far.run(&["load", "--have"]).expect(0).stdout).unwrap();
    tree.file("bin/agent", 0o755, "#!/bin/sh\necho two\n");
    near.publish("p", "2", tree.path());
    let saved = near.run(&["save", "p@1", "p@2", &text(&second), "--have", &text(&have), "--json"]).expect(0).json();
    assert!(saved["bytes"].as_u64().unwrap() < 64 << 10, "{saved}");
    assert_eq!(saved["relies_on"][0], "p@1");
    let loaded = far.run(&["load", &text(&second), "--publisher", &key, "--json"]).expect(0).json();
    let already = |at: usize| loaded["generations"][at]["already_published"].as_bool();
    assert_eq!((already(0), already(1)), (Some(true), Some(false)), "{loaded}");
    far.export("p@2", "host-1");
    assert_eq!(host.run(&["exec", "p@2", "--", "agent"]).expect(0).stdout.trim(), "two");
    far.run(&["verify"]).expect(0);
    host.unmount();
}

#[test]
fn what_was_broken_off_goes_on_and_a_damaged_file_shows_nothing() {
    let (near, mut far) = (Manager::start(), Manager::start());
    let tree = TreeFixture::script("exit 0", "");
    tree.file("big", 0o644, noise(1, 8 << 20));
    near.publish("p", "1", tree.path());
    let file = near.path("file");
    near.run(&["save", "p@1", &text(&file)]).expect(0);
    let good = fs::read(&file).unwrap();
    // As much of it as a full disk or a torn cable leaves.
    fs::remove_file(&file).unwrap();
    fs::write(near.path("file.part"), &good[..good.len() / 2]).unwrap();
    let saved = near.run(&["save", "p@1", &text(&file), "--json"]).expect(0).json();
    assert!(saved["resumed_bytes"].as_u64().unwrap() > 1 << 20, "{saved}");
    assert!(fs::read(&file).unwrap() == good);
    let key = saved["publishers"][0].as_str().unwrap().to_owned();

    let cut = near.path("cut");
    fs::write(&cut, &good[..good.len() - 100]).unwrap();
    let refused = far.run(&["load", &text(&cut), "--publisher", &key]).expect(1);
    assert!(refused.stderr.contains("cut off at byte"), "{}", refused.stderr);
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 4;
    fs::write(&cut, &bad).unwrap();
    let refused = far.run(&["load", &text(&cut), "--publisher", &key]).expect(1);
    assert!(refused.stderr.contains("damaged at byte"), "{}", refused.stderr);
    assert!(!far.run(&["generations", "--json"]).expect(0).stdout.contains("p@1"));
    far.kill();
    far.serve();
    far.run(&["load", &text(&file), "--publisher", &key]).expect(0);
    far.run(&["verify"]).expect(0);
    far.run(&["show", "p@1"]).expect(0);
}
