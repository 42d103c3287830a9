//! `docs/monitoring.md`: what a manager and a host tell monitoring, and that the tables, rules and board name just that.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use tests::command::until;
use tests::{Host, Manager, TreeFixture};

/// An address that nobody listens on.
fn free() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// The body of an answer, whose status must be this one.
fn get(address: &str, path: &str, status: u16) -> String {
    let mut stream = until(&format!("somebody listens on {address}"), || TcpStream::connect(address).ok());
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
    body.to_owned()
}

/// The sample with this name and labels.
#[track_caller]
fn sample(page: &str, name: &str) -> u64 {
    let found = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no {name} in\n{page}")).parse().unwrap()
}

/// Every name of a page, as it is written in the tables: of a histogram without the endings of its samples.
fn names(page: &str) -> BTreeSet<String> {
    let described = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(|line| {
        let (name, kind) = line.split_once(' ').unwrap();
        if kind == "counter" { format!("{name}_total") } else { name.to_owned() }
    });
    described.collect()
}

/// Every name that some text mentions.
fn mentioned(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = words.filter(|word| word.starts_with("manager_fs_"));
    ours.map(|word| {
        let stem = word.strip_suffix("_bucket").or_else(|| word.strip_suffix("_count"));
        stem.unwrap_or(word).to_owned()
    })
    .collect()
}

fn document(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)).unwrap()
}

#[test]
fn what_is_served_is_what_the_tables_the_rules_and_the_board_name() {
    let (of_manager, of_host) = (free(), free());
    let manager = Manager::start_with(&["--metrics", &of_manager, "--log-format", "json"]);
    let tree = TreeFixture::script("echo one", "");
    manager.publish("sample", "1", tree.path());
    manager.export("sample@1", "host-1");
    let mut host = Host::new("host-1");
    host.enroll(&manager, &manager.address());
    host.mount(&["--metrics", &of_host]);
    host.run(&["exec", "sample@1", "--", "/bin/true"]).expect(0);

    assert_eq!(get(&of_manager, "/healthz", 200), "ok\n");
    assert_eq!(get(&of_manager, "/readyz", 200), "ready\n");
    assert_eq!(get(&of_host, "/readyz", 200), "ready\n");
    get(&of_host, "/", 404);

    let page = until("the manager counts its host", || {
        let page = get(&of_manager, "/metrics", 200);
        page.contains("manager_fs_hosts{state=\"connected\"} 1").then_some(page)
    });
    assert_eq!(sample(&page, "manager_fs_hosts{state=\"away\"}"), 0);
    assert_eq!(sample(&page, "manager_fs_generations"), 1);
    assert!(sample(&page, "manager_fs_requests_total{request=\"hello\",result=\"answered\"}") >= 1);
    assert!(sample(&page, "manager_fs_commits_total{store=\"decisions\"}") >= 1);
    assert!(sample(&page, "manager_fs_store_bytes{kind=\"pack\"}") > 0);
    let here = get(&of_host, "/metrics", 200);
    assert_eq!(sample(&here, "manager_fs_manager_connected"), 1);
    assert_eq!(sample(&here, "manager_fs_generations{state=\"exported\"}"), 1);
    assert!(sample(&here, "manager_fs_fetch_total{what=\"wire_bytes\"}") > 0);
    // Each log line is a document.
    for line in manager.log().lines().filter(|line| !line.starts_with("manager-fs: ")) {
        let document: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert!(document["fields"]["message"].is_string() && document["level"].is_string(), "{line}");
    }

    let text = document("monitoring.md");
    let (of_managers, of_hosts) = text.split_once("## A host's numbers").unwrap();
    // What is there once there is something to count.
    let later = |names: [&str; 2]| names.map(|name| format!("manager_fs_{name}"));
    let of_manager = names(&page).into_iter().chain(later(["agents", "rollout_hosts_failed"])).collect();
    let of_host = names(&here).into_iter().chain(later(["agents", "agents"])).collect();
    assert_eq!(mentioned(of_managers), of_manager);
    assert_eq!(mentioned(of_hosts), of_host);
    let known: BTreeSet<String> = of_manager.union(&of_host).cloned().collect();
    for file in ["monitoring/alerts.yml", "monitoring/board.json"] {
        let unknown: Vec<String> = mentioned(&document(file)).difference(&known).cloned().collect();
        assert!(unknown.is_empty(), "{file} names what nobody serves: {unknown:?}");
    }
    serde_json::from_str::<serde_json::Value>(&document("monitoring/board.json")).unwrap();
}

#[test]
fn an_address_that_is_taken_keeps_no_mount_from_starting_and_is_had_once_it_is_free() {
    let mut manager = Manager::start();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    manager.stop();
    let refused = manager.serve_command().args(["--metrics", &address]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains(&address), "{said}");
    manager.serve();
    let mut host = Host::new("host-1");
    host.enroll(&manager, &manager.address());
    host.mount(&["--metrics", &address]);
    until("the host says so", || host.log().contains("monitoring cannot be answered there").then_some(()));
    drop(taken);
    assert_eq!(get(&address, "/healthz", 200), "ok\n");
}
