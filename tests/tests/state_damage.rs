//! One file of a host's STATE, or of what its CACHE has beside the objects, is damaged or gone, and the manager is away:
//! whichever file it is, the agent starts as the version that it was, from the mount daemon on. `WHOLE=1` tries every
//! harm on every file; otherwise each file has two of them.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tests::command::until;
use tests::tree::files_below;
use tests::{Host, Manager, Output, TreeFixture};

const PRODUCT: &str = "data-agent";
const DESCRIPTOR: &str = "drain_deadline = \"20s\"\nprobation = \"8s\"\n";

/// A host that has gone from 1.0 to 2.0 and has everything locally; neither agent nor daemon runs any more, and the manager
/// is away.
fn asleep() -> (Manager, Host) {
    let mut manager = Manager::start();
    let mut host = Host::mounted("host-1", &manager);
    let publish = |version: &str| {
        manager.publish(PRODUCT, version, TreeFixture::agent(version, "data", DESCRIPTOR).path());
        manager.export(&format!("{PRODUCT}@{version}"), "host-1");
    };
    publish("1.0");
    host.attach("data-agent@1.0");
    host.launch(PRODUCT);
    manager.wait_for_version("host-1", PRODUCT, "1.0");
    publish("2.0");
    manager.run(&["upgrade", PRODUCT, "data-agent@2.0", "--to", "host-1"]).expect(0);
    manager.wait_for_version("host-1", PRODUCT, "2.0");
    host.wait_until_local();
    sleep(&mut host);
    manager.stop();
    (manager, host)
}

fn sleep(host: &mut Host) {
    assert_eq!(host.stop(PRODUCT), Some(0));
    host.unmount();
}

fn wakes_up(host: &mut Host, what: &str) {
    host.mount(&[]);
    host.launch(PRODUCT);
    let agent = until("the agent serves", || {
        let agent = host.status()["agents"][0].clone();
        (agent["state"] == "serving").then_some(agent)
    });
    assert_eq!(agent["version"], "2.0", "{what}: {agent}");
    sleep(host);
}

fn copy(from: &Path, to: &Path) {
    drop(fs::remove_dir_all(to));
    Output::of(Command::new("cp").arg("-a").args([from, to])).expect(0);
}

/// What can happen to a file.
fn harms(bytes: &[u8], seed: u64) -> Vec<(String, Option<Vec<u8>>)> {
    let mut harms = Vec::new();
    let mut random = seed;
    for _ in 0..3 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if let Some(bits) = (8 * bytes.len() as u64).checked_sub(1) {
            let bit = usize::try_from(random % (bits + 1)).unwrap();
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            harms.push((format!("bit {bit} flipped"), Some(flipped)));
        }
    }
    harms.push(("emptied".to_owned(), Some(Vec::new())));
    harms.push(("cut in half".to_owned(), Some(bytes[..bytes.len() / 2].to_vec())));
    harms.push(("gone".to_owned(), None));
    harms
}

#[test]
fn whatever_file_of_the_state_is_damaged_the_agent_starts_as_what_it_was() {
    let whole = std::env::var_os("WHOLE").is_some();
    let (_manager, mut host) = asleep();
    let (state, kept) = (host.path("state"), host.path("state.kept"));
    copy(&state, &kept);
    let mut files: Vec<PathBuf> = files_below(&state);
    files.sort();
    assert!(files.len() >= 20, "{files:?}");
    // What the cache has beside the objects: theirs is another story (damage.rs).
    let cache = host.path("cache");
    let of_objects = ["local", "partial"].map(|name| cache.join(name));
    let mut beside = files_below(&cache);
    beside.retain(|file| !of_objects.iter().any(|dir| file.starts_with(dir)));
    assert!(beside.iter().any(|file| file.starts_with(cache.join("manifests"))), "{beside:?}");
    files.extend(beside);
    for (n, file) in files.iter().enumerate() {
        let name = file.strip_prefix(host.path("")).unwrap_or(file).display().to_string();
        let bytes = fs::read(file).unwrap();
        let harms = harms(&bytes, n as u64);
        let count = harms.len();
        for (i, (what, harm)) in harms.into_iter().enumerate() {
            // One that changes a bit, where there is one, and one of the others.
            if !whole && i != 0 && i != count - 1 - n % 3 {
                continue;
            }
            match harm {
                Some(harm) => fs::write(file, harm).unwrap(),
                None => fs::remove_file(file).unwrap(),
            }
            println!("{name}: {what}");
            wakes_up(&mut host, &format!("{name}: {what}"));
            copy(&kept, &state);
            fs::write(file, &bytes).unwrap();
        }
    }
}

/// The promise of `docs/reliability.md`, from the start of `launch`. `TRIALS=20` says how long it takes.
#[test]
fn a_tree_whose_manifest_is_lost_gives_way_to_the_last_good_version_in_time() {
    let trials = std::env::var("TRIALS").map_or(2, |text| text.parse().unwrap());
    let (_manager, mut host) = asleep();
    let link = fs::read_link(host.path(&format!("run/agents/{PRODUCT}/current"))).unwrap();
    let tree = link.file_name().unwrap().to_str().unwrap().to_owned();
    let first = host.path("cache/manifests").join(&tree[..2]).join(&tree[2..]);
    let copies = [first.clone(), first.with_extension("2")];
    let (state, kept) = (host.path("state"), host.path("state.kept"));
    copy(&state, &kept);
    let whole = copies.each_ref().map(|path| fs::read(path).unwrap());
    let mut took = Vec::new();
    for trial in 0..trials {
        for (path, bytes) in copies.iter().zip(&whole) {
            if trial % 2 == 0 {
                fs::remove_file(path).unwrap()
            } else {
                fs::write(path, &bytes[..bytes.len() / 2]).unwrap()
            }
        }
        host.mount(&[]);
        let began = Instant::now();
        host.launch(PRODUCT);
        let agent = until("the agent serves", || {
            let agent = host.status()["agents"][0].clone();
            (agent["state"] == "serving").then_some(agent)
        });
        took.push(began.elapsed());
        assert_eq!(agent["version"], "1.0", "{agent}");
        let reason = agent["reason"].as_str().unwrap();
        assert!(reason.starts_with("fell back from 2.0") && reason.contains("manifest"), "{reason}");
        sleep(&mut host);
        copy(&kept, &state);
        copies.iter().zip(&whole).for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    }
    wakes_up(&mut host, "the manifest is back");
    took.sort();
    println!("{trials} trials: median {:?}, worst {:?}", took[took.len() / 2], took[took.len() - 1]);
    // On a machine with ten times the work that it can do one of them may be late.
    assert!(took[(took.len() - 1) / 2] < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_host_that_has_forgotten_whom_it_believes_runs_on_and_takes_nothing_new_until_it_is_enrolled_again() {
    let (mut manager, mut host) = asleep();
    for name in ["publishers", "publishers.2"] {
        fs::write(host.path(&format!("state/identity/{name}")), "").unwrap();
    }
    wakes_up(&mut host, "publishers lost");
    manager.serve();
    host.mount(&[]);
    host.launch(PRODUCT);
    manager.wait_for_version("host-1", PRODUCT, "2.0");
    manager.publish(PRODUCT, "3.0", TreeFixture::agent("3.0", "data", DESCRIPTOR).path());
    let to = ["upgrade", PRODUCT, "data-agent@3.0", "--to", "host-1", "--export"];
    let refused = manager.run(&to).expect(1);
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(said.contains("identity/publishers") && said.contains("enroll --force"), "{said}");
    let attach = host.run(&["attach", "data-agent@3.0"]).expect(1);
    assert!(attach.stderr.contains("identity/publishers"), "{}", attach.stderr);
    let token = manager.run(&["token", "host-1"]).text();
    host.run(&["enroll", "--force", "--manager", &manager.address(), "--token", &token]).expect(0);
    sleep(&mut host);
    host.mount(&[]);
    host.launch(PRODUCT);
    manager.wait_for_version("host-1", PRODUCT, "2.0");
    manager.run(&to).expect(0);
}

#[test]
fn a_host_whose_key_is_lost_runs_on_without_its_manager_and_says_so() {
    let (_manager, mut host) = asleep();
    for name in ["host.key", "host.key.2", "host.pem", "host.pem.2", "manager", "manager.2"] {
        fs::remove_file(host.path(&format!("state/identity/{name}"))).unwrap();
    }
    host.mount(&[]);
    host.launch(PRODUCT);
    let status = until("the agent serves", || {
        let status = host.status();
        (status["agents"][0]["state"] == "serving" && !status["manager"]["last_error"].is_null()).then_some(status)
    });
    assert_eq!(status["agents"][0]["version"], "2.0");
    let error = status["manager"]["last_error"].to_string();
    assert!(error.contains("identity/host.") && error.contains("enrol"), "{error}");
    assert!(host.log().contains("goes on without its manager"), "{}", host.log());
}
