//! `docs/policies.md`: what a policy promises is done on its hosts, by itself, once, and whoever asks is told how it
//! stands.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use serde_json::{Value, json};
use tests::command::until;
use tests::{Host, Manager, TreeFixture};

const DESCRIPTOR: &str = "drain_deadline = \"20s\"\nprobation = \"10s\"\n";

/// A manager, a host with a data agent and a media agent, and a host that never comes.
struct Lab {
    manager: Manager,
    host: Host,
}

impl Lab {
    #[track_caller]
    fn new() -> Self {
        let manager = Manager::start();
        let mut host = Host::mounted("host-1", &manager);
        for (product, role) in [("data-agent", "data"), ("media-agent", "media")] {
            manager.publish(product, "1.0", TreeFixture::agent("1.0", role, DESCRIPTOR).path());
            manager.export(&format!("{product}@1.0"), "host-1");
            host.launch(product);
            manager.wait_for_version("host-1", product, "1.0");
        }
        Host::new("host-2").enroll(&manager, &manager.address());
        manager.run(&["host", "group", "add", "servers", "host-1", "host-2"]).expect(0);
        let source = host.path("source");
        fs::create_dir_all(&source).unwrap();
        fs::write(source.join("file"), "some bytes").unwrap();
        Self { manager, host }
    }

    fn text(&self, schedule: &str, more: &str) -> String {
        format!(
            "name = \"nightly\"\nhosts = [\"@servers\"]\nsources = [{:?}]\nrepository = {:?}\nschedule = \"{schedule}\"\n{more}",
            self.host.path("source"),
            self.host.path("repository"),
        )
    }

    /// The words of `policy apply` on a file with this text.
    fn apply(&self, text: &str, more: &[&str]) -> tests::Output {
        let file = self.manager.path("nightly.toml");
        fs::write(&file, text).unwrap();
        self.manager.run(&[&["policy", "apply", &file.to_string_lossy()], more].concat())
    }

    fn show(&self) -> Value {
        self.manager.run(&["policy", "show", "nightly", "--json"]).expect(0).json()
    }

    /// What is shown of a task on a host.
    fn lane(&self, host: &str, task: &str) -> Value {
        let shown = self.show();
        let of = |lane: &&Value| lane["host"] == host && lane["task"] == task;
        shown["hosts"]
            .as_array()
            .unwrap()
            .iter()
            .find(of)
            .cloned()
            .unwrap_or_else(|| panic!("{host} {task}: {shown}"))
    }

    fn jobs(&self) -> Vec<Value> {
        self.manager.run(&["job", "list", "--json"]).expect(0).json()["jobs"].as_array().unwrap().clone()
    }
}

#[test]
fn what_is_due_is_done_once_and_goes_on_after_the_manager_dies() {
    let mut lab = Lab::new();
    let text = lab.text("every 10s", "media = [\"host-1\"]\nkeep.last = 2\nprune = \"every 10s\"\n");
    let looked = lab.apply(&text, &["--dry-run", "--json"]).expect(0).json();
    assert_eq!((&looked["applied"], looked["changes"][0].as_str().unwrap()), (&json!(false), "+ name = \"nightly\""));
    assert!(lab.manager.run(&["policy", "show", "nightly"]).expect(1).stderr.contains("no policy 'nightly'"));
    lab.apply(&text, &[]).expect(0);
    // Two backups by themselves; between them the manager is killed.
    until("the first backup is done", || (lab.lane("host-1", "backup")["good"]["state"] == "done").then_some(()));
    lab.manager.kill();
    lab.manager.serve();
    let first = lab.lane("host-1", "backup")["good"].clone();
    until("a second backup is done", || {
        let good = lab.lane("host-1", "backup")["good"].clone();
        (good["state"] == "done" && good["job"] != first["job"]).then_some(())
    });
    until("what is not kept is forgotten", || (lab.lane("host-1", "prune")["good"]["state"] == "done").then_some(()));
    let away = lab.lane("host-2", "backup");
    assert_eq!(away["standing"], "late", "{away}");
    assert!(away["reason"].as_str().unwrap().contains("host-2"), "{away}");
    lab.manager.run(&["policy", "pause", "nightly"]).expect(0);
    let paused = lab.lane("host-1", "backup");
    assert!(["the policy is paused", ""].contains(&paused["reason"].as_str().unwrap()), "{paused}");
    // No slot was run twice.
    let mut slots: Vec<String> = lab
        .jobs()
        .iter()
        .map(|job| {
            assert_eq!(job["policy"], "nightly", "{job}");
            format!("{} {} {}", job["host"], job["operation"], job["due_unix_ms"])
        })
        .collect();
    let all = slots.len();
    slots.sort();
    slots.dedup();
    assert_eq!(slots.len(), all, "{slots:?}");
    // Snapshots say which policy ordered them.
    let repository = lab.host.path("repository").display().to_string();
    let found =
        ["job", "snapshots", "--host", "host-1", "--repository", &repository, "--tag", "policy:nightly", "--json"];
    let found = lab.manager.run(&found).expect(0).json_lines().pop().unwrap();
    assert!(!found["found"].as_array().unwrap().is_empty(), "{found}");
    lab.manager.run(&["policy", "remove", "nightly"]).expect(0);
    assert_eq!(lab.manager.run(&["policy", "list", "--json"]).expect(0).json(), json!({ "policies": [] }));
}

#[test]
fn a_policy_is_made_of_flags_shown_as_a_file_changed_and_run_by_hand() {
    let lab = Lab::new();
    let (source, repository) = (lab.host.path("source"), lab.host.path("repository"));
    let (source, repository) = (source.to_string_lossy(), repository.to_string_lossy());
    let create = [
        "policy",
        "create",
        "nightly",
        "--hosts",
        "@servers",
        "--source",
        &source,
        "--repository",
        &repository,
        "--schedule",
        "monthly 1 02:00 Europe/Berlin",
        "--jitter",
        "30m",
        "--window",
        "22:00-06:00",
        "--media",
        "host-1",
        "--keep-daily",
        "7",
        "--keep-weekly",
        "4",
        "--keep-monthly",
        "12",
        "--verify",
        "weekly",
        "--check",
        "weekly",
        "--prune",
        "weekly",
    ];
    lab.manager.run(&create).expect(0);
    assert!(lab.manager.run(&create).expect(1).stderr.contains("already"));
    let text = lab.manager.run(&["policy", "show", "nightly", "--toml"]).expect(0).stdout;
    assert!(text.contains("verify = \"weekly sunday 02:00 Europe/Berlin\""), "{text}");
    assert!(lab.apply(&text, &[]).expect(0).stderr.contains("is so already"));
    let changed = lab.apply(&text.replace("keep.daily = 7", "keep.daily = 14"), &[]).expect(0).stdout;
    assert_eq!(changed.trim(), "- keep.daily = 7\n+ keep.daily = 14");
    // By hand: whatever its schedule and window say, once on each host.
    let ran = lab.manager.run(&["policy", "run", "nightly", "--host", "host-1", "--json"]).expect(0).json();
    let job = ran["jobs"][0]["job"].clone();
    lab.manager.run(&["job", "wait", &job.to_string()]).expect(0);
    until("the run is known to be good", || (lab.lane("host-1", "backup")["good"]["job"] == job).then_some(()));
    let verified = lab.manager.run(&["policy", "run", "nightly", "--host", "host-1", "--task", "verify", "--json"]);
    let job = verified.expect(0).json()["jobs"][0]["job"].clone();
    lab.manager.run(&["job", "wait", &job.to_string()]).expect(0);
    let away = lab.manager.run(&["policy", "run", "nightly", "--host", "host-2", "--json"]).expect(0).json();
    assert_eq!(away["jobs"].as_array().map(Vec::len), Some(1), "it is done when the host comes: {away}");
    let again = lab.manager.run(&["policy", "run", "nightly", "--host", "host-2", "--json"]).expect(3).json();
    assert!(again["not_ordered"][0]["reason"].as_str().unwrap().contains("is under way"), "{again}");
    let bad = lab.apply(&text.replace("Europe/Berlin", "Europe/Berlyn"), &[]).expect(1).stderr;
    assert!(bad.contains("line ") && bad.contains("no time zone"), "{bad}");
    let shown = lab.manager.run(&["policy", "show", "nightly"]).expect(0).stdout;
    assert!(shown.contains("host-1") && shown.contains("backup  monthly 1 02:00 Europe/Berlin"), "{shown}");
}

#[test]
fn a_policy_goes_to_a_repository_that_is_served_with_what_its_hosts_run_before_and_after() {
    let lab = Lab::new();
    let repository = lab.host.path("repository").display().to_string();
    let address = tests::vault::free_address();
    let create = ["repository", "create", "main", "--on", "host-1", "--path", &repository, "--address", &address];
    lab.manager.run(&create).expect(0);
    let source = lab.host.path("source").display().to_string();
    let create = ["policy", "create", "nightly", "--hosts", "@servers", "--source", &source, "--repository", "main"];
    let more = ["--schedule", "monthly 1 02:00", "--media", "host-1", "--keep-last", "1", "--prune", "weekly"];
    let commands = ["--before", "freeze", "--after", "thaw", "--command-deadline", "1m"];
    lab.manager.run(&[&create[..], &more, &commands].concat()).expect(0);
    let text = lab.manager.run(&["policy", "show", "nightly", "--toml"]).expect(0).stdout;
    for line in ["repository = \"main\"", "backup.before = \"freeze\"", "backup.command-deadline = \"1m\""] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(lab.apply(&text, &[]).expect(0).stderr.contains("is so already"));
    let run = |task: &str, code: i32| {
        let order = ["policy", "run", "nightly", "--host", "host-1", "--task", task, "--json"];
        let job = lab.manager.run(&order).expect(0).json()["jobs"][0]["job"].to_string();
        lab.manager.run(&["job", "wait", &job]).expect(code);
        lab.manager.run(&["job", "show", &job, "--json"]).expect(0).json()
    };
    // What a host does not know it does not run, and then nothing is backed up.
    let unknown = run("backup", 1);
    assert!(unknown["error"].as_str().unwrap().contains("does not permit the command freeze"), "{unknown}");
    let script = |text: &str| format!("[\"/bin/sh\", \"-c\", {text:?}]");
    let permits = format!("[commands]\nfreeze = {}\nthaw = {}\n", script("echo frozen"), script("echo thawed"));
    fs::write(lab.host.path("state/permits.toml"), permits).unwrap();
    let done = run("backup", 0);
    assert_eq!((&done["policy"], &done["repository"]), (&json!("nightly"), &json!("main")), "{done}");
    assert_eq!(done["ran"][0]["output"], json!(["frozen"]), "{done}");
    assert_eq!(done["ran"][1]["output"], json!(["thawed"]), "{done}");
    run("backup", 0);
    let pruned = run("prune", 0);
    assert_eq!(pruned["files"], json!(1), "one of two is forgotten: {pruned}");
    let protected = lab.manager.run(&["protection", "--json"]).expect(3).json();
    assert_eq!(protected["at_risk"], json!(1), "host-2 is: {protected}");
}

#[test]
fn what_is_not_protected_comes_first_and_jobs_go_to_groups() {
    let lab = Lab::new();
    lab.apply(&lab.text("monthly 1 02:00", ""), &[]).expect(0);
    let before = lab.manager.run(&["protection", "--json"]).expect(3).json();
    assert_eq!((&before["at_risk"], &before["sources"]), (&json!(2), &json!(2)), "{before}");
    lab.manager.run(&["policy", "run", "nightly", "--host", "host-1"]).expect(0);
    let protected = until("host-1 is protected", || {
        let now = lab.manager.run(&["protection", "--json"]).expect(3).json();
        (now["at_risk"] == 1).then_some(now)
    });
    let (first, last) = (&protected["rows"][0], &protected["rows"][1]);
    assert_eq!((&first["host"], &first["at_risk"]), (&json!("host-2"), &json!(true)), "{protected}");
    assert!(first["risks"][0].as_str().unwrap().contains("no good backup yet"), "{protected}");
    assert_eq!((&last["host"], &last["at_risk"]), (&json!("host-1"), &json!(false)), "{protected}");
    let text = lab.manager.run(&["protection"]).expect(3);
    let lines: Vec<&str> = text.stdout.lines().collect();
    assert!(lines[1].starts_with("host-2") && lines[1].contains("at risk: no good backup yet"), "{}", text.stdout);
    assert!(lines[2].starts_with("host-1") && lines[2].ends_with("ok"), "{}", text.stdout);
    lab.manager.run(&["host", "group", "remove", "servers", "host-2"]).expect(0);
    until("all that is promised is kept", || (lab.manager.run(&["protection"]).code == Some(0)).then_some(()));
    assert!(lab.manager.run(&["protection"]).stderr.contains("no policy backs up host-2"));

    // A job for each host of a group; lists of them, in pages.
    let repository = lab.host.path("repository").display().to_string();
    let check = ["job", "check", "--host", "@servers", "--repository", &repository, "--json"];
    let checked = lab.manager.run(&check).expect(0).json_lines().pop().unwrap();
    assert_eq!((&checked["host"], &checked["state"]), (&json!("host-1"), &json!("done")), "{checked}");
    let list = |more: &[&str]| {
        let listed = lab.manager.run(&[&["job", "list", "--json"], more].concat()).expect(0).json();
        (listed["jobs"].as_array().unwrap().len(), listed["more"].clone())
    };
    assert_eq!(list(&[]), (2, json!(false)));
    assert_eq!(list(&["--policy", "nightly"]), (1, json!(false)));
    assert_eq!(list(&["--host", "@servers", "--only", "done", "--since", "1d"]), (2, json!(false)));
    assert_eq!(list(&["--product", "media-agent", "--kind", "check"]), (1, json!(false)));
    assert_eq!(list(&["--only", "failed"]), (0, json!(false)));
    assert_eq!(list(&["--limit", "1"]), (1, json!(true)));
    lab.manager.run(&["host", "group", "add", "nobody", "host-9"]).expect(0);
    let nobody = ["job", "check", "--host", "@nobody", "--repository", &repository];
    assert!(lab.manager.run(&nobody).expect(1).stderr.contains("no host of group 'nobody' is enrolled"));
    restore_tests(&lab);
}

/// A restore test really restores, leaves nothing, and puts its source at risk when the repository is damaged.
fn restore_tests(lab: &Lab) {
    lab.apply(&lab.text("monthly 1 02:00", "restore-test = \"monthly\"\n"), &[]).expect(0);
    let test = || {
        let words = ["policy", "run", "nightly", "--host", "host-1", "--task", "restore-test", "--json"];
        let job = lab.manager.run(&words).expect(0).json()["jobs"][0]["job"].clone();
        lab.manager.run(&["job", "wait", &job.to_string(), "--json"]).json_lines().pop().unwrap()
    };
    let row = || lab.manager.run(&["protection", "--json"]).json()["rows"][0].clone();
    let done = test();
    assert_eq!(
        (&done["state"], &done["files"], &done["operation"]),
        (&json!("done"), &json!(1), &json!("restore-test"))
    );
    until("it counts", || (row()["restore_tested"]["job"] == done["job"]).then_some(()));
    // What changed in the source since is no failure.
    fs::write(lab.host.path("source/file"), "other bytes").unwrap();
    assert_eq!(test()["problems"], json!([]));
    assert_eq!(fs::read_dir(lab.host.path("state/restore-tests/data-agent")).unwrap().count(), 0);
    // Every pack has a byte that is another.
    let packs = fs::read_dir(lab.host.path("repository/data")).unwrap().flatten();
    let packs = packs.flat_map(|dir| fs::read_dir(dir.path()).unwrap().flatten().map(|pack| pack.path()));
    let packs: Vec<_> = packs.map(|pack| (fs::read(&pack).unwrap(), pack)).collect();
    let put = |flip: u8| {
        for (bytes, pack) in &packs {
            let mut bytes = bytes.clone();
            bytes[10] ^= flip;
            fs::remove_file(pack).unwrap();
            fs::write(pack, bytes).unwrap();
        }
    };
    put(1);
    let bad = test();
    assert!(bad["state"] == "failed" || bad["problems"][0].is_string(), "{bad}");
    let at_risk = until("it is at risk", || Some(row()).filter(|row| row["at_risk"] == true));
    let why = at_risk["risks"].as_array().unwrap().iter().any(|risk| {
        let risk = risk.as_str().unwrap();
        risk.contains("the last restore-test")
    });
    assert!(why, "{at_risk}");
    put(0);
    // Without the promise there is no risk.
    lab.apply(&lab.text("monthly 1 02:00", ""), &[]).expect(0);
}
