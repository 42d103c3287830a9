//! `docs/rollouts.md`: a good version goes through its rings whatever happens on the way, a bad one stops itself and
//! goes back.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;

use serde_json::{Value, json};
use tests::command::until;
use tests::{Host, Manager, Output, TreeFixture};

const PRODUCT: &str = "data-agent";
const DESCRIPTOR: &str = "drain_deadline = \"20s\"\nprobation = \"6s\"\n";

/// A manager and six hosts that run version 1: two in the lab, four in production.
struct Fleet {
    manager: Manager,
    hosts: Vec<Host>,
}

impl Fleet {
    #[track_caller]
    fn start() -> Self {
        let manager = Manager::start();
        manager.publish(PRODUCT, "1.0", TreeFixture::agent("1.0", "data", DESCRIPTOR).path());
        let names: Vec<String> = (1..=6).map(|n| format!("host-{n}")).collect();
        let members = |from: usize, to: usize| names[from..to].iter().map(String::as_str).collect::<Vec<_>>();
        let group = |name, hosts: Vec<&str>| manager.run(&[vec!["host", "group", "add", name], hosts].concat());
        group("lab", members(0, 2)).expect(0);
        group("production", members(2, 6)).expect(0);
        let mut hosts: Vec<Host> = names.iter().map(|name| Host::mounted(name, &manager)).collect();
        manager.run(&["export", "data-agent@1.0", "--to", "@lab", "@production"]).expect(0);
        for host in &mut hosts {
            host.launch(PRODUCT);
        }
        let fleet = Self { manager, hosts };
        fleet.run_version("1.0", 0..6);
        fleet
    }

    #[track_caller]
    fn run_version(&self, version: &str, hosts: std::ops::Range<usize>) {
        for host in &self.hosts[hosts] {
            self.manager.wait_for_version(&host.name, PRODUCT, version);
        }
    }

    /// A plan of both rings, with these lines before them and within the second.
    fn plan(&self, version: &str, before: &str, production: &str) -> PathBuf {
        let file = self.manager.path("plan.toml");
        let text = format!(
            "product = \"{PRODUCT}\"\ngeneration = \"{PRODUCT}@{version}\"\nexport = true\n{before}\n\
             [[ring]]\nname = \"lab\"\nto = [\"@lab\"]\ncanaries = 1\ncanary-soak = \"1s\"\n\
             [[ring]]\nname = \"production\"\nto = [\"@production\"]\nin-flight = 2\n{production}\n"
        );
        std::fs::write(&file, text).unwrap();
        file
    }

    #[track_caller]
    fn planned(&self, file: &std::path::Path) -> String {
        self.rollout(&["plan", &file.to_string_lossy()]).text()
    }

    fn rollout(&self, args: &[&str]) -> Output {
        self.manager.run(&[&["rollout"], args].concat())
    }

    fn status(&self, id: &str) -> Value {
        self.rollout(&["status", id, "--json"]).json()
    }

    #[track_caller]
    fn until_ring(&self, id: &str, ring: usize, phase: &str) {
        until(&format!("ring {ring} is in {phase}"), || {
            (self.status(id)["rings"][ring]["phase"] == phase).then_some(())
        });
    }
}

#[track_caller]
fn last(output: &Output) -> Value {
    output.json_lines().pop().expect("a last line")
}

#[test]
fn a_good_version_goes_through_its_rings_with_a_manager_that_dies_and_a_host_that_is_away() {
    let mut fleet = Fleet::start();
    fleet.manager.publish(PRODUCT, "2.0", TreeFixture::agent("2.0", "data", DESCRIPTOR).path());
    let file = fleet.plan("2.0", "", "canary-soak = \"4s\"\nmin-hosts = 3");
    let looked = fleet.rollout(&["plan", &file.to_string_lossy(), "--dry-run", "--json"]).expect(0).json();
    assert_eq!(looked["rings"][1]["hosts"]["total"], 4, "{looked}");
    assert_eq!((&looked["rings"][0]["before"], &looked["state"]), (&json!("1.0"), &json!("planned")));
    assert!(fleet.rollout(&["status"]).expect(1).stderr.contains("there is no rollout"), "nothing was kept");
    let id = fleet.planned(&file);
    fleet.hosts[5].kill_mount();
    until("host-6 is away", || {
        let status = fleet.rollout(&["plan", &file.to_string_lossy(), "--dry-run", "--json"]).expect(0).json();
        (status["rings"][1]["hosts"]["away"] == 1).then_some(())
    });
    fleet.rollout(&["start", &id]).expect(0);
    // In the middle of production the manager is killed, and started again.
    fleet.until_ring(&id, 1, "canary_soak");
    assert_eq!(fleet.status(&id)["rings"][0]["hosts"]["good"], 2);
    fleet.manager.kill();
    fleet.manager.serve();
    let watched = fleet.rollout(&["watch", &id, "--json"]).expect(0);
    let end = last(&watched);
    assert_eq!((&end["state"], &end["rings"][1]["hosts"]["good"]), (&json!("done"), &json!(3)), "{end}");
    fleet.run_version("2.0", 0..5);
    let changes = fleet.manager.run(&["agents", "--json"]).expect(0).json();
    let ours: Vec<&Value> =
        changes["agents"].as_array().unwrap().iter().filter(|agent| agent["version"] == "2.0").collect();
    assert_eq!(ours.len(), 5, "{changes}");
    // The rollout is over; the host that was away gets it when it comes.
    fleet.hosts[5].mount(&[]);
    fleet.run_version("2.0", 5..6);
    let told = fleet.rollout(&["history", &id]).text();
    for line in ["running", "ring lab: canaries", "ring lab: done", "ring production: waves", "done"] {
        assert!(told.contains(line), "no {line} in\n{told}");
    }
    let listed = fleet.rollout(&["history", "--json"]).expect(0).json();
    assert_eq!(listed["rollouts"].as_array().map(Vec::len), Some(1));
    assert!(fleet.rollout(&["pause", &id]).expect(1).stderr.contains("Done"));
}

#[test]
fn a_bad_version_stops_at_its_canary_with_the_evidence_and_goes_back() {
    let fleet = Fleet::start();
    let bad = TreeFixture::script("echo 'no config: leaving' >&2; exit 3", DESCRIPTOR);
    fleet.manager.publish(PRODUCT, "3.0", bad.path());
    let id = fleet.planned(&fleet.plan("3.0", "rollback = true", ""));
    let watched = fleet.rollout(&["start", &id, "--watch", "--json"]).expect(3);
    let end = last(&watched);
    assert_eq!(
        (&end["state"], &end["halted"]),
        (&json!("rolled_back"), &json!("ring lab: a canary failed")),
        "{end}"
    );
    assert_eq!(end["rings"][1]["phase"], "waiting", "nobody else was asked: {end}");
    let problem = &end["problems"][0];
    assert_eq!((&problem["state"], &problem["count"]), (&json!("failed"), &json!(1)), "{end}");
    assert!(problem["reason"].as_str().unwrap().contains("no config: leaving"), "{problem}");
    fleet.run_version("1.0", 0..6);

    // The short form stops itself the same.
    let short = ["upgrade", PRODUCT, "data-agent@3.0", "--to", "@production", "--canary", "1", "--batch", "50%"];
    let stopped = fleet.manager.run(&[&short[..], &["--export"]].concat()).expect(3);
    assert!(stopped.stdout.contains("halted: ring all: a canary failed"), "{}", stopped.stdout);
    assert!(stopped.stdout.contains("no config: leaving"), "{}", stopped.stdout);
    fleet.rollout(&["abort"]).expect(0);
    // What has changed over goes back when somebody says so, newest ring first.
    fleet.manager.publish(PRODUCT, "2.0", TreeFixture::agent("2.0", "data", DESCRIPTOR).path());
    let good = fleet.planned(&fleet.plan("2.0", "rollback = true", "canary-soak = \"60s\""));
    fleet.rollout(&["start", &good]).expect(0);
    let other = fleet.planned(&fleet.plan("3.0", "", ""));
    let busy = fleet.rollout(&["start", &other]).expect(1);
    assert!(busy.stderr.contains("end it first"), "{}", busy.stderr);
    fleet.until_ring(&good, 1, "canary_soak");
    // While the canary is watched, one is ordered out of its turn, for a reason that stays; and is no longer then.
    let runs = |host: &Host| fleet.manager.agent(&host.name, PRODUCT).unwrap()["version"].clone();
    let waits = fleet.hosts[2..6].iter().find(|host| runs(host) == "1.0").unwrap();
    let nameless = fleet.rollout(&["force", &waits.name, "--reason", " ", "--of", &good]).expect(1);
    assert!(nameless.stderr.contains("say why"), "{}", nameless.stderr);
    fleet.rollout(&["force", &waits.name, "--reason", "needed tonight", "--of", &good]).expect(0);
    fleet.manager.wait_for_version(&waits.name, PRODUCT, "2.0");
    until("it is counted", || (fleet.status(&good)["rings"][1]["hosts"]["good"] == 2).then_some(()));
    let again = fleet.rollout(&["force", &waits.name, "--reason", "x", "--of", &good]).expect(1);
    assert!(again.stderr.contains("it runs the new generation"), "{}", again.stderr);
    assert!(fleet.rollout(&["history", &good]).text().contains("was forced: needed tonight"));
    fleet.rollout(&["rollback", &good]).expect(0);
    let end = last(&fleet.rollout(&["watch", &good, "--json"]).expect(3));
    let returned = |ring: usize| end["rings"][ring]["hosts"]["returned"].clone();
    assert_eq!((returned(0), returned(1)), (json!(2), json!(2)), "{end}");
    fleet.run_version("1.0", 0..6);
    let shown = fleet.rollout(&["status", &good]).expect(3).stdout;
    assert!(shown.contains("rolled back") && shown.contains("2 back"), "{shown}");
}
