//! `docs/product-file.md`: what `manager-fs.toml` may say, what holds without it, and what is refused.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use serde_json::{Value, json};
use tests::repository::root;
use tests::{Host, Manager, Output, TreeFixture};

/// A tree with these executable scripts and this product file, if any.
fn tree(scripts: &[&str], descriptor: Option<&str>) -> TreeFixture {
    let tree = TreeFixture::new();
    for script in scripts {
        tree.file(script, 0o755, "#!/bin/sh\necho \"$MANAGER_FS_TREE\" \"$@\"\n");
    }
    if let Some(text) = descriptor {
        tree.file("manager-fs.toml", 0o644, text);
    }
    tree
}

fn publish(manager: &Manager, version: &str, tree: &TreeFixture, more: &[&str]) -> Output {
    let source = tree.path().to_string_lossy().into_owned();
    manager.run(&[&["publish", "sample", version, &source], more].concat())
}

#[track_caller]
fn shown(manager: &Manager, version: &str) -> Value {
    manager.run(&["show", &format!("sample@{version}"), "--json"]).expect(0).json()
}

/// The `toml` block of the document.
fn example() -> String {
    let text = fs::read_to_string(root().join("docs/product-file.md")).unwrap();
    text.split("```toml\n").nth(1).unwrap().split("```").next().unwrap().to_owned()
}

#[test]
fn the_documents_example_means_what_it_says() {
    let manager = Manager::start();
    publish(&manager, "1", &tree(&["bin/agent", "bin/other"], Some(&example())), &[]).expect(0);
    let shown = shown(&manager, "1");
    assert_eq!(shown["entry_point"], "bin/agent");
    assert_eq!(shown["arguments"], json!(["--role", "data"]));
    assert_eq!(shown["state_schemas"], json!({ "min": 1, "max": 2 }));
    assert_eq!((&shown["drain_deadline_ms"], &shown["health"]["probation_ms"]), (&json!(60_000), &json!(15_000)));
    // People read the same.
    let text = manager.run(&["show", "sample@1"]).text();
    for line in ["entry point     bin/agent", "state schemas   1 to 2"] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
}

#[test]
fn without_it_the_values_of_the_table_hold() {
    let manager = Manager::start();
    let cases: [(&[&str], Option<&str>); 5] = [
        (&["bin/only", "lib/helper"], Some("bin/only")),
        (&["usr/bin/only", "lib/helper"], Some("usr/bin/only")),
        (&["opt/only"], Some("opt/only")),
        (&["bin/one", "bin/two"], None),
        (&[], None),
    ];
    for (n, (scripts, entry_point)) in cases.iter().enumerate() {
        let tree = tree(scripts, None);
        tree.file("data", 0o644, format!("{n}"));
        publish(&manager, &n.to_string(), &tree, &[]).expect(0);
        let shown = shown(&manager, &n.to_string());
        assert_eq!(shown["entry_point"].as_str(), *entry_point, "{scripts:?}");
        assert_eq!(shown["arguments"], json!([]));
        assert_eq!(shown["state_schemas"], json!({ "min": 1, "max": 1 }));
        assert_eq!((&shown["drain_deadline_ms"], &shown["health"]["probation_ms"]), (&json!(60_000), &json!(10_000)));
    }
}

#[test]
fn what_is_wrong_is_named_and_nothing_is_published() {
    let manager = Manager::start();
    let long = format!("# {}\n", "x".repeat(70_000));
    for (descriptor, named) in [
        ("entrypoint = \"bin/missing\"", "'bin/missing'"),
        ("entrypoint = \"bin\"", "is a directory"),
        ("entrypoint = \"data\"", "is not executable"),
        ("entrypoint = \"empty\"", "is an empty file"),
        ("entrypoint = \"../outside\"", ".."),
        ("entry_point = \"bin/agent\"", "unknown field"),
        ("arguments = \"--role data\"", "arguments"),
        ("state_schemas = [2, 1]", "oldest and the newest"),
        ("drain_deadline = \"soon\"", "drain_deadline = \"soon\""),
        ("probation = 15", "probation"),
        (&long, "64 KiB"),
    ] {
        let tree = tree(&["bin/agent"], Some(descriptor));
        tree.file("data", 0o644, "data").file("empty", 0o755, "");
        let refused = publish(&manager, "1", &tree, &[]).expect(1).stderr;
        assert!(refused.contains(named), "{descriptor}: no {named:?} in {refused}");
        assert!(refused.contains("manager-fs.toml"), "{descriptor}: the file is not named in {refused}");
    }
    let listed = manager.run(&["generations", "--json"]).expect(0).json();
    assert_eq!(listed["generations"], json!([]));
}

#[test]
fn the_operator_has_the_last_word_and_the_program_gets_its_arguments() {
    let manager = Manager::start();
    let tree =
        tree(&["bin/agent", "bin/other"], Some("entrypoint = \"bin/agent\"\narguments = [\"a b\", \"$HOME\"]\n"));
    publish(&manager, "1", &tree, &[]).expect(0);
    publish(&manager, "2", &tree, &["--entrypoint", "bin/other"]).expect(0);
    assert_eq!(shown(&manager, "2")["entry_point"], "bin/other");
    let host = Host::mounted("host-1", &manager);
    manager.export("sample@1", "host-1");
    let root = host.attach("sample@1");
    // No shell stands between: what looks like one variable or two words is one word.
    let said = host.run(&["exec", "sample@1"]).text();
    assert_eq!(said, format!("{} a b $HOME", host.told(&root).display()));
}
