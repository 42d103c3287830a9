//! The power goes at every moment at which something is being synced, and of what was not yet synced nothing, everything
//! or any part is there: the manager serves, the host has its agent, and what had been acknowledged is there.
//!
//! `WHOLE=1` tries every moment in each way; otherwise 20 moments of each side, chosen by `SEED`.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;
use std::time::SystemTime;

use tests::command::until;
use tests::power::{Moment, Recording, Trace, Unsynced, now};
use tests::{Host, Manager, TreeFixture};

const PRODUCT: &str = "data-agent";
const DESCRIPTOR: &str = "drain_deadline = \"20s\"\nprobation = \"4s\"\n";

/// A manager and a host that were recorded, neither of which runs any more.
struct Scene {
    manager: Manager,
    host: Host,
    recording: Recording,
    /// When an operator read that it was so.
    published: f64,
    revoked: f64,
    changed: f64,
}

/// While recorded: a product is published and exported, a host is revoked, the agent goes from 1.0 to 2.0, runs a job, and
/// everything ends in good order.
fn scene() -> Scene {
    let mut manager = Manager::start();
    let mut host = Host::mounted("host-1", &manager);
    Host::new("host-2").enroll(&manager, &manager.address());
    for version in ["1.0", "2.0"] {
        manager.publish(PRODUCT, version, TreeFixture::agent(version, "data", DESCRIPTOR).path());
        manager.export(&format!("{PRODUCT}@{version}"), "host-1");
        host.attach(&format!("{PRODUCT}@{version}"));
        if version == "1.0" {
            host.launch(PRODUCT);
        }
    }
    manager.wait_for_version("host-1", PRODUCT, "1.0");
    host.wait_until_local();
    manager.wait_until_repacked();
    let mut processes = host.pids();
    processes.push(manager.pid());
    let roots = [of_manager(&manager), of_host(&host)].concat();
    let trace = Trace::of(&processes, &roots, manager.path("trace"));
    let small = TreeFixture::new();
    small.file("a", 0o644, "a").file("b/c", 0o644, vec![7; 300_000]);
    manager.publish("small", "1.0", small.path());
    let published = now();
    manager.export("small@1.0", "host-1");
    manager.run(&["host", "revoke", "host-2"]).expect(0);
    let revoked = now();
    manager.run(&["upgrade", PRODUCT, "data-agent@2.0", "--to", "host-1"]).expect(0);
    let changed = now();
    let repository = host.path("repository").display().to_string();
    let source = small.path().display().to_string();
    manager.run(&["job", "backup", "--host", "host-1", "--repository", &repository, &source]).expect(0);
    assert_eq!(host.stop(PRODUCT), Some(0));
    host.unmount();
    manager.stop();
    Scene { recording: trace.end(), manager, host, published, revoked, changed }
}

fn of_manager(manager: &Manager) -> Vec<PathBuf> {
    vec![manager.store()]
}

/// Without the objects themselves, whose bytes are looked at before they are believed (`damage.rs`).
fn of_host(host: &Host) -> Vec<PathBuf> {
    vec![host.path("state"), host.path("cache/manifests")]
}

/// What to try: a moment, and what becomes of that which was not synced.
fn cuts(moments: &[Moment]) -> Vec<(Moment, Unsynced)> {
    let seed = std::env::var("SEED").ok().map(|seed| seed.parse().expect("SEED is a number"));
    let clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    let seed = seed.unwrap_or_else(|| u64::try_from(clock()).unwrap());
    println!("SEED={seed}, {} moments", moments.len());
    let ways = |n: usize| [Unsynced::Dropped, Unsynced::Kept, Unsynced::Some(seed + n as u64)];
    let all = moments.iter().enumerate().flat_map(|(n, moment)| ways(n).map(|way| (moment.clone(), way)));
    let all: Vec<_> = all.collect();
    if std::env::var_os("WHOLE").is_some() {
        return all;
    }
    // A step that shares no divisor with the three ways, so that each has its turn.
    let step = (all.len() / 20).max(1);
    let step = if step % 3 == 0 { step + 1 } else { step };
    let first = usize::try_from(seed % step as u64).unwrap();
    all.into_iter().skip(first).step_by(step).collect()
}

#[test]
fn whenever_the_power_goes_the_manager_serves_and_the_host_has_its_agent() {
    let mut scene = scene();
    let roots = of_manager(&scene.manager);
    let moments = scene.recording.moments(&roots);
    assert!(moments.len() > 20, "{moments:?}");
    for (moment, unsynced) in cuts(&moments) {
        println!("manager: {unsynced:?} {moment:?}");
        scene.recording.cut(&roots, &moment, unsynced);
        manager_serves(&mut scene, &moment);
    }
    let roots = of_host(&scene.host);
    let moments = scene.recording.moments(&roots);
    assert!(moments.len() > 10, "{moments:?}");
    for (moment, unsynced) in cuts(&moments) {
        println!("host: {unsynced:?} {moment:?}");
        scene.recording.cut(&roots, &moment, unsynced);
        agent_serves(&mut scene, &moment);
    }
}

fn manager_serves(scene: &mut Scene, moment: &Moment) {
    let manager = &mut scene.manager;
    manager.serve();
    manager.run(&["verify"]).expect(0);
    for command in ["agents", "generations"] {
        manager.run(&[command]).expect(0);
    }
    manager.run(&["job", "list"]).expect(0);
    let generations = manager.run(&["generations"]).text();
    assert!(generations.contains(PRODUCT), "{generations}");
    assert!(moment.time < scene.published || generations.contains("small"), "{generations}");
    let hosts = manager.run(&["hosts", "--json"]).expect(0).json();
    let second = hosts["hosts"].as_array().unwrap().iter().find(|host| host["name"] == "host-2").unwrap();
    assert!(moment.time < scene.revoked || !second["revoked_unix_ms"].is_null(), "{second}");
    let tree = TreeFixture::new();
    tree.file("file", 0o644, moment.time.to_string());
    manager.publish("next", "1.0", tree.path());
    manager.stop();
}

fn agent_serves(scene: &mut Scene, moment: &Moment) {
    let host = &mut scene.host;
    host.mount(&[]);
    host.launch(PRODUCT);
    let agent = until("the agent serves", || {
        let agent = host.status()["agents"][0].clone();
        (agent["state"] == "serving").then_some(agent)
    });
    assert!(agent["version"] == "2.0" || moment.time < scene.changed && agent["version"] == "1.0", "{agent}");
    assert_eq!(host.stop(PRODUCT), Some(0));
    host.unmount();
}
