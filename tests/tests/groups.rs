//! `docs/groups.md`: who sees a generation by way of a group, and whom an order to a group reaches.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::{Value, json};
use tests::command::until;
use tests::{Host, Manager, Output, TreeFixture};

fn group(manager: &Manager, args: &[&str]) -> Output {
    manager.run(&[&["host", "group"], args].concat())
}

fn groups(manager: &Manager) -> Value {
    group(manager, &["list", "--json"]).expect(0).json()["groups"].clone()
}

fn published(versions: &[&str]) -> Manager {
    let manager = Manager::start();
    for version in versions {
        let tree = TreeFixture::script(&format!("echo {version}"), "");
        manager.publish("sample", version, tree.path());
    }
    manager
}

#[track_caller]
fn sees(host: &Host, generation: &str, seen: bool) {
    let path = host.mountpoint().join(generation.replace('@', "/"));
    until(&format!("{} {} {generation}", host.name, if seen { "sees" } else { "no longer sees" }), || {
        (path.is_dir() == seen).then_some(())
    });
}

/// The names that `hosts` lists.
#[track_caller]
fn listed(manager: &Manager, args: &[&str]) -> Vec<String> {
    let hosts = manager.run(&[&["hosts", "--json"], args].concat()).expect(0).json();
    hosts["hosts"].as_array().unwrap().iter().map(|host| host["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn labels_choose_hosts_and_bring_them_into_groups() {
    let manager = published(&["1", "2"]);
    let mut host = Host::mounted("host-1", &manager);
    let others: Vec<_> = ["host-2", "host-3"]
        .map(|name| {
            let host = Host::new(name);
            host.enroll(&manager, &manager.address());
            host
        })
        .into();
    let label = |of: &str, labels: &[&str]| manager.run(&[&["host", "label", of], labels].concat());
    label("host-1", &["site=fra", "role=db"]).expect(0);
    label("host-2", &["site=ams", "role=db"]).expect(0);
    label("host-9", &["site=fra"]).expect(0);

    for (args, names) in [
        (&["--label", "site=fra"][..], &["host-1"][..]),
        (&["--label", "role=db"], &["host-1", "host-2"]),
        (&["--label", "role=db", "--label", "site!=fra"], &["host-2"]),
        (&["--label", "!site"], &["host-3"]),
        (&["--only", "connected"], &["host-1"]),
        (&["--only", "away", "--limit", "1"], &["host-2"]),
        (&["--after", "host-2"], &["host-3"]),
        (&["host-3", "host-1"], &["host-1", "host-3"]),
    ] {
        assert_eq!(listed(&manager, args), names, "{args:?}");
    }
    assert!(manager.run(&["hosts", "host-9"]).expect(1).stderr.contains("host-9"));
    label("host-1", &["site"]).expect(2);
    let many: Vec<String> = (0..33).map(|n| format!("k{n}=v")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(label("host-3", &many).expect(1).stderr.contains("32 labels"));

    // Who meets the rule is in the group, also who does so later or is added by name.
    group(&manager, &["rule", "frankfurt", "site=fra", "!spare"]).expect(0);
    group(&manager, &["add", "frankfurt", "host-3"]).expect(0);
    assert_eq!(group(&manager, &["list"]).text(), "@frankfurt (site=fra !spare): host-1 host-3");
    manager.export("sample@1", "@frankfurt");
    sees(&host, "sample@1", true);
    label("host-2", &["site=fra"]).expect(0);
    assert_eq!(listed(&manager, &["@frankfurt"]), ["host-1", "host-2", "host-3"]);
    assert!(group(&manager, &["remove", "frankfurt", "host-1"]).expect(1).stderr.contains("by the group's rule"));
    label("host-1", &["spare=yes"]).expect(0);
    sees(&host, "sample@1", false);
    label("host-1", &["spare-"]).expect(0);
    sees(&host, "sample@1", true);
    group(&manager, &["rule", "frankfurt", "--none"]).expect(0);
    sees(&host, "sample@1", false);
    assert_eq!(listed(&manager, &["@frankfurt"]), ["host-3"]);

    // Nothing of it is left when the group, or a host, is gone.
    group(&manager, &["rule", "frankfurt", "site=fra"]).expect(0);
    group(&manager, &["delete", "frankfurt"]).expect(0);
    assert_eq!(groups(&manager), json!([]));
    assert_eq!(host.unmount(), Some(0));
    manager.run(&["host", "forget", "host-1"]).expect(0);
    let anew = Host::new("host-1");
    anew.enroll(&manager, &manager.address());
    assert_eq!(listed(&manager, &["--label", "site"]), ["host-2"]);
    drop((others, anew));
}

#[test]
fn members_come_and_go_and_groups_contain_no_groups() {
    let manager = published(&[]);
    let hosts: Vec<_> = ["host-1", "host-2"]
        .map(|name| {
            let host = Host::new(name);
            host.enroll(&manager, &manager.address());
            host
        })
        .into();
    group(&manager, &["add", "production", "host-2", "host-1"]).expect(0);
    group(&manager, &["add", "production", "host-1"]).expect(0);
    group(&manager, &["add", "canaries", "host-1"]).expect(0);
    let expected = json!([
        { "name": "canaries", "hosts": ["host-1"], "rule": [] },
        { "name": "production", "hosts": ["host-1", "host-2"], "rule": [] },
    ]);
    assert_eq!(groups(&manager), expected);
    assert_eq!(group(&manager, &["list"]).text(), "@canaries: host-1\n@production: host-1 host-2");
    let listed = manager.run(&["hosts", "--json"]).expect(0).json();
    let of = |name: &str| {
        let found = listed["hosts"].as_array().unwrap().iter().find(|host| host["name"] == name).unwrap();
        found["groups"].clone()
    };
    assert_eq!((of("host-1"), of("host-2")), (json!(["canaries", "production"]), json!(["production"])));

    group(&manager, &["remove", "production", "host-2"]).expect(0);
    group(&manager, &["delete", "canaries"]).expect(0);
    assert_eq!(groups(&manager), json!([{ "name": "production", "hosts": ["host-1"], "rule": [] }]));
    for wrong in [&["add", "no/slash", "host-1"][..], &["add", "-x", "host-1"], &["add", "production", "@canaries"]] {
        group(&manager, wrong).expect(2);
    }
    let unknown = group(&manager, &["remove", "no-such-group", "host-1"]).expect(1);
    assert!(unknown.stderr.contains("no-such-group"), "{}", unknown.stderr);
    group(&manager, &["delete", "no-such-group"]).expect(1);
    // A host that is not enrolled yet is no error, and is said: it may as well be a typing error.
    let early = group(&manager, &["add", "production", "host-3"]).expect(0);
    assert!(early.stderr.contains("host-3 is not enrolled yet"), "{}", early.stderr);
    drop(hosts);
}

#[test]
fn an_export_to_a_group_holds_for_whoever_is_in_it() {
    let manager = published(&["1", "2"]);
    let (one, two) = (Host::mounted("host-1", &manager), Host::mounted("host-2", &manager));
    group(&manager, &["add", "production", "host-1"]).expect(0);
    manager.export("sample@1", "@production");
    manager.export("sample@2", "host-2");
    sees(&one, "sample@1", true);
    sees(&two, "sample@2", true);
    assert!(!two.mountpoint().join("sample/1").exists(), "not in the group");

    // Whoever comes later sees it from then on; what runs is not taken from whoever goes.
    group(&manager, &["add", "production", "host-2"]).expect(0);
    sees(&two, "sample@1", true);
    let root = two.attach("sample@1");
    group(&manager, &["remove", "production", "host-2"]).expect(0);
    sees(&two, "sample@1", false);
    assert!(root.join("bin/agent").is_file(), "what is attached stays");
    assert_eq!(two.run(&["exec", "sample@2"]).text(), "2", "what was exported to the host itself stays");

    // Deleting the group withdraws what was exported to it.
    group(&manager, &["delete", "production"]).expect(0);
    sees(&one, "sample@1", false);
    let shown = manager.run(&["show", "sample@1", "--json"]).expect(0).stdout;
    assert!(!shown.contains("@production"), "{shown}");
}

#[test]
fn taking_back_an_export_names_the_hosts_that_have_it_attached() {
    let manager = published(&["1"]);
    let host = Host::mounted("host-1", &manager);
    group(&manager, &["add", "production", "host-1"]).expect(0);
    manager.export("sample@1", "@production");
    host.attach("sample@1");
    let refused = until("the manager knows of the attachment", || {
        let output = manager.run(&["unexport", "sample@1", "--to", "@production"]);
        (output.code != Some(0)).then_some(output).or_else(|| {
            manager.export("sample@1", "@production");
            None
        })
    });
    assert!(refused.stderr.contains("host-1"), "{}", refused.stderr);
    sees(&host, "sample@1", true);
    manager.run(&["unexport", "sample@1", "--to", "@production", "--force"]).expect(0);
    sees(&host, "sample@1", false);
}

#[test]
fn an_order_to_an_unknown_or_empty_group_is_refused() {
    let manager = published(&["1"]);
    let host = Host::new("host-1");
    host.enroll(&manager, &manager.address());
    let unknown = manager.run(&["upgrade", "sample", "sample@1", "--to", "@nobody"]).expect(1);
    assert!(unknown.stderr.contains("nobody"), "{}", unknown.stderr);
    group(&manager, &["add", "production", "host-1"]).expect(0);
    group(&manager, &["remove", "production", "host-1"]).expect(0);
    let empty = manager.run(&["upgrade", "sample", "sample@1", "--to", "@production"]).expect(1);
    assert!(empty.stderr.contains("group"), "{}", empty.stderr);
}

/// A host whose daemon was away while its group was ordered a new version changes over when it comes, also when the
/// manager was killed meanwhile; one that comes to the group later gets what the group runs.
#[test]
fn a_host_that_was_away_gets_what_its_group_was_ordered() {
    const PRODUCT: &str = "data-agent";
    let mut manager = Manager::start();
    group(&manager, &["add", "production", "host-1", "host-2"]).expect(0);
    for version in ["1.0", "2.0"] {
        manager.publish(PRODUCT, version, TreeFixture::agent(version, "data", "probation = \"10s\"\n").path());
    }
    let mut hosts: Vec<Host> = ["host-1", "host-2", "host-3"].map(|name| Host::mounted(name, &manager)).into();
    manager.export("data-agent@1.0", "@production");
    manager.export("data-agent@1.0", "host-3");
    for host in &mut hosts {
        host.launch(PRODUCT);
        manager.wait_for_version(&host.name, PRODUCT, "1.0");
    }
    hosts[1].kill_mount();
    until("the manager knows that host-2 is away", || {
        let listed = manager.run(&["hosts", "--json"]).expect(0).json();
        let hosts = listed["hosts"].as_array().unwrap().clone();
        let away = |host: &Value| host["name"] == "host-2" && host["connected_since_unix_ms"].is_null();
        hosts.iter().any(away).then_some(())
    });
    let order = ["upgrade", PRODUCT, "data-agent@2.0", "--to", "@production", "--export", "--json"];
    let told = manager.run(&order).expect(3);
    let report = told.json_lines().pop().unwrap();
    let verdict = |at: usize| (report["hosts"][at]["host"].clone(), report["hosts"][at]["verdict"].clone());
    assert_eq!(verdict(0), (json!("host-1"), json!("confirmed")));
    assert_eq!(verdict(1), (json!("host-2"), json!("away")), "{report}");
    manager.wait_for_version("host-1", PRODUCT, "2.0");
    manager.kill();
    manager.serve();
    hosts[1].mount(&[]);
    manager.wait_for_version("host-2", PRODUCT, "2.0");
    group(&manager, &["add", "production", "host-3"]).expect(0);
    manager.wait_for_version("host-3", PRODUCT, "2.0");
}
