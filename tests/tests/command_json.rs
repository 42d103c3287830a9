//! The JSON of every command against `docs/command-line.md`: what is printed is documented, and what is documented as
//! always there is printed. Programs read this; a field that goes, or that nobody has described, fails here.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;
use tests::repository::root;
use tests::{Host, Manager, TreeFixture};

/// The documented fields of each command, by table; a command whose table says "as …" has those of another.
struct Page {
    tables: BTreeMap<String, Vec<Vec<String>>>,
}

impl Page {
    fn read() -> Self {
        let text = fs::read_to_string(root().join("docs/command-line.md")).unwrap();
        let mut tables: BTreeMap<String, Vec<Vec<String>>> = BTreeMap::new();
        let mut command = String::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("### `manager-fs ") {
                name.trim_end_matches('`').clone_into(&mut command);
            } else if line.starts_with("| field |") {
                tables.entry(command.clone()).or_default().push(Vec::new());
            } else if let Some(row) = line.strip_prefix("| `") {
                let field = row.split('`').next().unwrap().to_owned();
                if let Some(table) = tables.get_mut(&command).and_then(|tables| tables.last_mut()) {
                    table.push(field);
                }
            }
        }
        Self { tables }
    }

    /// Compares one document with the fields of these tables.
    #[track_caller]
    fn check(&self, what: &str, documented: &[&(&str, usize)], document: &Value) {
        let fields: Vec<&String> =
            documented.iter().flat_map(|(command, table)| &self.tables[*command][*table]).collect();
        assert!(!fields.is_empty(), "{what}: nothing is documented");
        let mut printed = BTreeSet::new();
        paths(document, String::new(), &mut printed);
        for path in &printed {
            let known = fields.iter().any(|field| covers(field.trim_end_matches('?'), path));
            assert!(known, "{what} prints {path}, which docs/command-line.md does not have: {document}");
        }
        for field in fields.iter().filter(|field| !field.ends_with('?') && **field != "…") {
            let there = printed.iter().any(|path| covers(field, path));
            assert!(there, "{what} does not print {field}, which docs/command-line.md promises: {document}");
        }
    }
}

/// Every path of a document that leads to a value; what is null or empty leads nowhere.
fn paths(value: &Value, at: String, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                paths(value, path, found);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| paths(value, format!("{at}[]"), found)),
        Value::Null => {}
        _ => drop(found.insert(at)),
    }
}

/// Whether a documented field means this path: `*` stands for the rest of it.
fn covers(field: &str, path: &str) -> bool {
    match field.strip_suffix('*') {
        Some(start) => path.starts_with(start),
        None => field == path,
    }
}

#[test]
fn what_the_managers_commands_print_is_documented() {
    let page = Page::read();
    let manager = Manager::start();
    let tree = TreeFixture::script("exit 0", "");
    let source = tree.path().to_string_lossy().into_owned();
    let json = |line: &str| manager.run(&line.split(' ').collect::<Vec<_>>()).expect(0).json();
    let check = |command: &str, line: &str| page.check(line, &[&(command, 0)], &json(line));
    page.check("publish", &[&("publish", 0), &("show", 0)], &json(&format!("publish p 1 {source} --json")));
    tree.file("more", 0o644, "more");
    json(&format!("publish p 2 {source} --json"));
    json(&format!("publish p 3 {source} --json"));
    check("unpublish", "unpublish p@3 --json");
    check("generations", "generations --json");
    page.check("show", &[&("show", 0), &("show", 1)], &json("show p@1 --json"));
    check("diff", "diff p@1 p@2 --json");
    check("verify", "verify --json");
    check("gc", "gc --dry-run --json");
    check("token", "token host-1 --json");
    let _host = Host::mounted("host-1", &manager);
    check("host label", "host label host-1 site=fra --json");
    check("hosts", "hosts --json");
    check("host group add", "host group add g host-1 host-2 --json");
    check("host group rule", "host group rule g site=fra --json");
    check("host group list", "host group list --json");
    check("export", "export p@1 --to host-1 @g --json");
    check("unexport", "unexport p@1 --from host-1 --json");
    check("host group remove", "host group remove g host-1 --json");
    check("host group delete", "host group delete g --json");
    check("host revoke", "host revoke host-1 --json");
}

#[test]
fn what_the_hosts_agents_and_jobs_commands_print_is_documented() {
    let page = Page::read();
    let manager = Manager::start();
    let mut host = Host::new("host-1");
    let token = host.path("token");
    fs::write(&token, manager.run(&["token", "host-1"]).text()).unwrap();
    let (address, token) = (manager.address(), token.to_string_lossy().into_owned());
    let enrolled = host.run(&["enroll", "--manager", &address, "--token-file", &token, "--json"]).expect(0);
    page.check("enroll", &[&("enroll", 0)], &enrolled.json());
    host.mount(&[]);
    for version in ["1", "2"] {
        let tree = TreeFixture::agent(version, "data", "drain_deadline = \"20s\"\nprobation = \"8s\"\n");
        manager.publish("data-agent", version, tree.path());
        manager.export(&format!("data-agent@{version}"), "host-1");
        if version == "1" {
            host.attach("data-agent@1");
            let attached = host.run(&["attach", "data-agent@1", "--json"]).expect(0).json();
            page.check("attach", &[&("attach", 0)], &attached);
            host.launch("data-agent");
            manager.wait_for_version("host-1", "data-agent", "1");
        }
    }
    page.check("status", &[&("status", 0)], &host.status());
    let upgrade = ["upgrade", "data-agent", "data-agent@2", "--to", "host-1", "--json"];
    let lines = manager.run(&upgrade).expect(0).json_lines();
    let (last, events) = lines.split_last().unwrap();
    events.iter().for_each(|event| page.check("upgrade", &[&("upgrade", 0)], event));
    page.check("upgrade's last line", &[&("upgrade", 1)], last);
    manager.wait_for_version("host-1", "data-agent", "2");
    let plan = manager.path("plan.toml");
    let text =
        "product = \"data-agent\"\ngeneration = \"data-agent@1\"\n[[ring]]\nname = \"all\"\nto = [\"host-1\"]\n";
    fs::write(&plan, text).unwrap();
    let planned = manager.run(&["rollout", "plan", &plan.to_string_lossy(), "--json"]).expect(0).json();
    page.check("rollout plan", &[&("rollout plan", 0)], &planned);
    let lines = manager.run(&["rollout", "start", "--watch", "--json"]).expect(0).json_lines();
    lines.iter().for_each(|line| page.check("rollout watch", &[&("rollout plan", 0)], line));
    let listed = manager.run(&["rollout", "history", "--json"]).expect(0).json();
    page.check("rollout history", &[&("rollout history", 0)], &listed);
    page.check("agents", &[&("agents", 0)], &manager.run(&["agents", "--json"]).expect(0).json());
    let data = host.path("data");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("file"), "some bytes").unwrap();
    let (repository, data) = (host.path("repository"), data.to_string_lossy().into_owned());
    let repository = repository.to_string_lossy().into_owned();
    let backup = ["job", "backup", "--host", "host-1", "--repository", &repository, "--json", &data];
    let lines = manager.run(&backup).expect(0).json_lines();
    let (last, events) = lines.split_last().unwrap();
    events.iter().for_each(|event| page.check("job backup", &[&("job backup", 0)], event));
    page.check("job backup's last line", &[&("job backup", 1)], last);
    let number = last["job"].to_string();
    let number = number.trim_matches('"');
    page.check("job show", &[&("job show", 0)], &manager.run(&["job", "show", number, "--json"]).expect(0).json());
    page.check("job list", &[&("job list", 0)], &manager.run(&["job", "list", "--json"]).expect(0).json());
    let released = host.run(&["release", "data-agent@1", "--json"]).expect(0).json();
    page.check("release", &[&("release", 0)], &released);
    host.stop("data-agent");
    page.check("unmount", &[&("unmount", 0)], &host.run(&["unmount", "--json"]).expect(0).json());
    let gone = host.run(&["status", "--json"]).expect(3).json();
    page.check("status without a daemon", &[&("status", 0)], &gone);
}
