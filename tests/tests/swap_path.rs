//! upgrade → agent → drain → swap → exec → confirm: running agents change their version, in both directions, and come
//! back from a bad one by themselves.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use tests::command::until;
use tests::{Host, Manager, Output, TreeFixture, noise};

const PRODUCT: &str = "data-agent";

/// Probation and drain short enough for a test.
const DESCRIPTOR: &str = "drain_deadline = \"20s\"\nprobation = \"10s\"\n";

#[track_caller]
fn publish_agents(manager: &Manager, product: &str, versions: &[&str], to: &str) {
    let role = if product.starts_with("media") { "media" } else { "data" };
    for version in versions {
        manager.publish(product, version, TreeFixture::agent(version, role, DESCRIPTOR).path());
        manager.export(&format!("{product}@{version}"), to);
    }
}

/// A manager, and a host that runs version 1 of the data agent; 2 is exported too.
#[track_caller]
fn running() -> (Manager, Host) {
    let manager = Manager::start();
    let mut host = Host::mounted("host-1", &manager);
    publish_agents(&manager, PRODUCT, &["1.0"], "host-1");
    host.launch(PRODUCT);
    publish_agents(&manager, PRODUCT, &["2.0"], "host-1");
    manager.wait_for_version("host-1", PRODUCT, "1.0");
    (manager, host)
}

#[track_caller]
fn upgrade(manager: &Manager, version: &str, to: &str) -> Vec<Value> {
    let generation = format!("{PRODUCT}@{version}");
    manager.run(&["upgrade", PRODUCT, &generation, "--to", to, "--json"]).expect(0).json_lines()
}

/// A directory to be backed up, of so many bytes that do not compress.
fn data(dir: &Path, bytes: usize) {
    fs::create_dir_all(dir).unwrap();
    let seed = (bytes ^ dir.as_os_str().len()) as u64;
    for n in 0..bytes.div_ceil(1 << 20) {
        fs::write(dir.join(format!("part-{n}")), noise(seed + n as u64, 1 << 20)).unwrap();
    }
}

fn job(manager: &Manager, host: &Host, kind: &str, more: &[&str]) -> Output {
    let repository = host.path("repository").to_string_lossy().into_owned();
    let mut args = vec!["job", kind, "--host", &host.name, "--repository", &repository];
    args.extend(more);
    manager.run(&args)
}

fn same_files(one: &Path, other: &Path) {
    let mut diff = std::process::Command::new("diff");
    Output::of(diff.args(["-r", "--no-dereference"]).args([one, other])).expect(0);
}

#[test]
fn an_upgrade_right_after_the_launch_waits_until_the_version_has_proved_itself() {
    let manager = Manager::start();
    let mut host = Host::mounted("host-1", &manager);
    publish_agents(&manager, PRODUCT, &["1.0"], "host-1");
    manager.publish(PRODUCT, "2.0", TreeFixture::agent("2.0", "data", DESCRIPTOR).path());
    host.launch(PRODUCT);
    manager.run(&["upgrade", PRODUCT, "data-agent@2.0", "--to", "host-1", "--export", "--json"]).expect(0);
    manager.wait_for_version("host-1", PRODUCT, "2.0");
}

#[test]
fn an_agent_goes_to_the_next_version_and_back_in_the_same_process() {
    let (manager, host) = running();
    let before = manager.agent("host-1", PRODUCT).unwrap();
    let steps = upgrade(&manager, "2.0", "host-1");
    let names: Vec<_> = steps.iter().filter_map(|event| event["step"].as_str()).collect();
    for step in ["metadata_saved", "staged", "warmed", "drained", "journaled", "swapped", "started", "confirmed"] {
        assert!(names.contains(&step), "no step {step} in {names:?}");
    }
    // Whoever was told how it ended sees it.
    let after = manager.agent("host-1", PRODUCT).unwrap();
    assert_eq!((&after["version"], &after["state"]), (&"2.0".into(), &"serving".into()), "{after}");
    assert_eq!(after["pid"], before["pid"]);
    assert!(after["reason"].as_str().unwrap().contains("1.0"), "{after}");
    let current = fs::read_link(host.path(&format!("run/agents/{PRODUCT}/current"))).unwrap();
    assert!(current.to_string_lossy().contains(after["tree_id"].as_str().unwrap()));
    // The program that runs is the one below the versioned path.
    let exe = fs::read_link(format!("/proc/{}/exe", after["pid"])).unwrap();
    assert!(exe.ends_with("bin/agent"), "{exe:?}");

    upgrade(&manager, "1.0", "host-1");
    let back = manager.agent("host-1", PRODUCT).unwrap();
    assert_eq!((&back["version"], &back["pid"]), (&"1.0".into(), &before["pid"]), "{back}");
    // To where it is already: nothing to do, and no restart.
    let again = manager.run(&["upgrade", PRODUCT, &format!("{PRODUCT}@1.0"), "--to", "host-1"]).expect(0);
    assert!(format!("{}{}", again.stdout, again.stderr).contains("runs there already"), "{again:?}");
    assert_eq!(manager.agent("host-1", PRODUCT).unwrap()["pid"], before["pid"]);
}

#[test]
fn a_backup_that_runs_across_an_upgrade_loses_nothing() {
    let (manager, host) = running();
    let sources: Vec<_> = (0..3).map(|n| host.path(&format!("data-{n}"))).collect();
    for source in &sources {
        data(source, 40 << 20);
    }
    let mut args = vec!["--detach"];
    let names: Vec<_> = sources.iter().map(|source| source.to_string_lossy().into_owned()).collect();
    args.extend(names.iter().map(String::as_str));
    let id = job(&manager, &host, "backup", &args).text();
    let generation = format!("{PRODUCT}@2.0");
    let to = ["upgrade", PRODUCT, &generation, "--to", "host-1", "--json", "--drain-deadline", "100ms"];
    manager.run(&to).expect(0);
    let ended = manager.run(&["job", "wait", &id, "--json"]).expect(0).json_lines().pop().unwrap();
    assert_eq!(ended["state"], "done", "{ended}");
    assert_eq!(ended["snapshots"].as_array().unwrap().len(), sources.len(), "{ended}");
    let versions = ended["versions"].as_array().unwrap();
    assert_eq!(versions.last().unwrap(), "2.0", "{ended}");

    for (n, source) in sources.iter().enumerate() {
        let snapshot = ended["snapshots"][n].as_str().unwrap();
        job(&manager, &host, "verify", &["--snapshot", snapshot]).expect(0);
        let target = host.path(&format!("restored-{n}"));
        job(&manager, &host, "restore", &["--snapshot", snapshot, "--target", &target.to_string_lossy()]).expect(0);
        same_files(source, &target);
    }
    // A difference is found, named, and the job ends with problems.
    fs::write(sources[0].join("part-0"), "changed").unwrap();
    let found = job(&manager, &host, "verify", &["--snapshot", ended["snapshots"][0].as_str().unwrap()]).expect(3);
    assert!(format!("{}{}", found.stdout, found.stderr).contains("part-0"), "{found:?}");
}

#[test]
fn three_hosts_change_over_in_one_command() {
    let manager = Manager::start();
    let mut hosts: Vec<_> = (1..=3).map(|n| Host::mounted(&format!("host-{n}"), &manager)).collect();
    for host in &hosts {
        manager.run(&["host", "group", "add", "production", &host.name]).expect(0);
    }
    publish_agents(&manager, PRODUCT, &["1.0"], "@production");
    for host in &mut hosts {
        host.launch(PRODUCT);
    }
    publish_agents(&manager, PRODUCT, &["2.0"], "@production");
    for host in &hosts {
        manager.wait_for_version(&host.name, PRODUCT, "1.0");
    }
    let events = upgrade(&manager, "2.0", "@production");
    for host in &hosts {
        let confirmed = events.iter().any(|event| event["host"] == *host.name && event["step"] == "confirmed");
        assert!(confirmed, "{} did not confirm: {events:#?}", host.name);
        manager.wait_for_version(&host.name, PRODUCT, "2.0");
    }
}

#[test]
fn two_products_live_on_one_host_and_do_their_own_work_only() {
    let manager = Manager::start();
    let mut host = Host::mounted("host-1", &manager);
    for product in [PRODUCT, "media-agent"] {
        publish_agents(&manager, product, &["1.0", "2.0"], "host-1");
    }
    for product in [PRODUCT, "media-agent"] {
        host.launch(product);
        manager.wait_for_version("host-1", product, "2.0");
    }
    let source = host.path("data");
    data(&source, 2 << 20);
    let source = source.to_string_lossy().into_owned();
    for _ in 0..3 {
        job(&manager, &host, "backup", &[&source]).expect(0);
        fs::write(host.path("data/part-0"), format!("{:?}", std::time::Instant::now())).unwrap();
    }
    job(&manager, &host, "check", &["--read-data"]).expect(0);
    job(&manager, &host, "prune", &["--keep-last", "1"]).expect(0);
    manager.run(&["upgrade", "media-agent", "media-agent@1.0", "--to", "host-1"]).expect(0);
    manager.wait_for_version("host-1", "media-agent", "1.0");
    assert_eq!(manager.agent("host-1", PRODUCT).unwrap()["version"], "2.0");
    job(&manager, &host, "check", &[]).expect(0);
    job(&manager, &host, "backup", &[&source]).expect(0);
    let listed = manager.run(&["job", "list", "--json"]).expect(0).stdout;
    for kind in ["backup", "check", "prune"] {
        assert!(listed.contains(kind), "{listed}");
    }
}

#[test]
fn no_connection_to_the_agent_is_refused_while_it_changes_over() {
    let (manager, host) = running();
    let socket = host.path(&format!("run/agents/{PRODUCT}.sock"));
    let (stop, tries, failed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                tries.fetch_add(1, Ordering::SeqCst);
                if UnixStream::connect(&socket).is_err() {
                    failed.fetch_add(1, Ordering::SeqCst);
                }
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        for version in ["2.0", "1.0", "2.0"] {
            upgrade(&manager, version, "host-1");
        }
        stop.store(true, Ordering::SeqCst);
    });
    assert!(tries.load(Ordering::SeqCst) > 100);
    assert_eq!(failed.load(Ordering::SeqCst), 0, "of {} connections", tries.load(Ordering::SeqCst));
}

#[test]
fn the_agent_starts_from_the_saved_metadata_when_the_manager_is_gone() {
    let (mut manager, mut host) = running();
    upgrade(&manager, "2.0", "host-1");
    manager.stop();
    assert_eq!(host.stop(PRODUCT), Some(0));
    host.launch(PRODUCT);
    let agents = host.status()["agents"].clone();
    assert!(agents.to_string().contains("2.0"), "{agents}");
    manager.serve();
    manager.wait_for_version("host-1", PRODUCT, "2.0");
}

#[test]
fn another_record_starts_differently_and_a_changed_one_is_refused() {
    let mut manager = Manager::start();
    let mut host = Host::mounted("host-1", &manager);
    // The same tree under two records, apart in what they start.
    let tree = TreeFixture::agent("1.0", "data", DESCRIPTOR);
    tree.file("bin/other", 0o755, "#!/bin/sh\nexec \"$(dirname \"$0\")/agent\" --role media\n");
    manager.publish(PRODUCT, "1.0", tree.path());
    manager.export(&format!("{PRODUCT}@1.0"), "host-1");
    host.launch(PRODUCT);
    manager.wait_for_version("host-1", PRODUCT, "1.0");
    host.wait_until_local();
    assert_eq!(host.stop(PRODUCT), Some(0));
    let saved = host.path(&format!("state/agents/{PRODUCT}/records/1.0.record"));
    let copy = host.path(&format!("state/agents/{PRODUCT}/records/1.0.record.2"));
    let good = fs::read(&saved).unwrap();

    let refused = |what: &str, bytes: Option<&[u8]>| {
        for saved in [&saved, &copy] {
            match bytes {
                Some(bytes) => fs::write(saved, bytes).unwrap(),
                None => fs::remove_file(saved).unwrap(),
            }
        }
        let output = host.run(&["launch", PRODUCT]);
        assert_eq!(output.code, Some(1), "{what}: {output:?}");
        assert!(output.stderr.contains("record"), "{what}: {}", output.stderr);
        fs::write(&saved, &good).unwrap();
    };
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    refused("a changed bit", Some(&flipped));
    refused("a cut-off record", Some(&good[..good.len() - 3]));
    refused("an empty record", Some(b""));
    refused("no record", None);

    // Signed by the same publisher, of the same product and tree, but with another entry point.
    let source = tree.path().to_string_lossy();
    manager.run(&["publish", PRODUCT, "1.1", &source, "--entrypoint", "bin/other"]).expect(0);
    manager.export(&format!("{PRODUCT}@1.1"), "host-1");
    let other = until("the other record is on the host", || {
        let records = fs::read_dir(host.path("cache/records")).unwrap().map(|entry| entry.unwrap().path());
        records.into_iter().find(|path| path.to_string_lossy().ends_with(&format!("{PRODUCT}.1.1.record")))
    });
    manager.stop();
    fs::copy(other, &saved).unwrap();
    host.launch(PRODUCT);
    assert_eq!(role_of_the_agent(&host), "media");
    assert_eq!(host.stop(PRODUCT), Some(0));
    fs::write(&saved, &good).unwrap();
    host.launch(PRODUCT);
    assert_eq!(role_of_the_agent(&host), "data");
}

/// The `--role` of the agent that runs on the host, from its command line.
fn role_of_the_agent(host: &Host) -> String {
    // The daemon asks the agents what they are; right after a start it may still know of the one before.
    until("the daemon knows the agent that runs", || {
        let status = host.status();
        let line = fs::read(format!("/proc/{}/cmdline", status["agents"][0]["pid"])).ok()?;
        let words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        words.skip_while(|word| word != "--role").nth(1)
    })
}

#[test]
fn a_change_over_completes_when_the_manager_goes_away_after_staging() {
    let (mut manager, host) = running();
    let source = host.path("data");
    data(&source, 120 << 20);
    job(&manager, &host, "backup", &["--detach", &source.to_string_lossy()]).expect(0);
    let generation = format!("{PRODUCT}@2.0");
    let mut command = manager.command(&["upgrade", PRODUCT, &generation, "--to", "host-1", "--json"]);
    let mut child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let staged = lines.map_while(Result::ok).any(|line| line.contains("\"staged\"") || line.contains("\"warmed\""));
    assert!(staged, "the upgrade ended before it had staged");
    // Message C has been sent with the others: the host can do the rest alone.
    manager.kill();
    let _ = child.wait();
    until("the host runs version 2 without its manager", || {
        host.status()["agents"].to_string().contains("\"2.0\"").then_some(())
    });
    manager.serve();
    manager.wait_for_version("host-1", PRODUCT, "2.0");
}

/// Publishes a bad version, demands that the upgrade fails and that version 1 works on, and returns what is said of it.
#[track_caller]
fn goes_back(manager: &Manager, host: &Host, version: &str, tree: &TreeFixture) -> String {
    manager.publish(PRODUCT, version, tree.path());
    let generation = format!("{PRODUCT}@{version}");
    manager.export(&generation, "host-1");
    let output = manager.run(&["upgrade", PRODUCT, &generation, "--to", "host-1", "--json"]).expect(1);
    manager.wait_for_version("host-1", PRODUCT, "1.0");
    let source = host.path("little");
    data(&source, 1 << 20);
    job(manager, host, "backup", &[&source.to_string_lossy()]).expect(0);
    let later = manager.run(&["agents", "--json"]).expect(0).stdout;
    format!("{}{}{later}", output.stdout, output.stderr)
}

#[test]
fn a_version_that_does_not_prove_itself_goes_back_with_its_evidence() {
    let (manager, host) = running();
    let short = "drain_deadline = \"20s\"\nprobation = \"3s\"\n";
    let cases = [
        ("3.0-exits", TreeFixture::script("echo 'no config: leaving' >&2; exit 3", short), "no config: leaving"),
        (
            "3.1-crashes",
            TreeFixture::script("echo 'about to fall' >&2; sleep 2; kill -SEGV $$", short),
            "about to fall",
        ),
        ("3.2-never-confirms", TreeFixture::script("echo 'thinking' >&2; sleep 600", short), "thinking"),
    ];
    for (version, tree, evidence) in &cases {
        let said = goes_back(&manager, &host, version, tree);
        assert!(said.contains(evidence), "{version}: no {evidence:?} in {said}");
    }
    // Remembered: not tried again by itself, and tried again when told to.
    let generation = format!("{PRODUCT}@3.0-exits");
    let refused = manager.run(&["upgrade", PRODUCT, &generation, "--to", "host-1", "--json"]).expect(1);
    assert!(!refused.stdout.contains("swapped"), "tried again: {}", refused.stdout);
    let retried =
        manager.run(&["upgrade", PRODUCT, &generation, "--to", "host-1", "--json", "--retry-bad"]).expect(1);
    assert!(retried.stdout.contains("swapped"), "not tried again: {retried:?}");
    upgrade(&manager, "2.0", "host-1");
    // A refused order is over, and says so.
    let agent = manager.run(&["upgrade", PRODUCT, &generation, "--to", "host-1"]).expect(1);
    assert!(!agent.stdout.contains("refused: refused"), "{}", agent.stdout);
    let change = until("the agent tells of it", || {
        let agent = manager.agent("host-1", PRODUCT)?;
        (agent["last_change"]["steps"].as_array()?.last()?["step"] == "refused").then(|| agent["last_change"].clone())
    });
    assert_eq!((&change["ended"], &change["confirmed"]), (&true.into(), &false.into()), "{change}");
    // Services log to files and journals.
    let mut host = host;
    let log = host.stub(PRODUCT).log();
    assert!(log.contains("serves as process") && !log.contains('\x1b'), "colours in the log of a service: {log}");
}

#[test]
fn a_version_that_cannot_be_started_leaves_the_previous_one_running() {
    let (manager, host) = running();
    // An ELF file of another machine: e_machine is at byte 18; 40 is 32-bit ARM.
    let foreign = TreeFixture::agent("3.3", "data", DESCRIPTOR);
    let mut bytes = fs::read(foreign.path().join("bin/agent")).unwrap();
    bytes[18..20].copy_from_slice(&40u16.to_le_bytes());
    foreign.file("bin/agent", 0o755, &bytes);
    // A program whose interpreter is not there is what a missing library looks like before it starts.
    let interpreter = TreeFixture::script("", DESCRIPTOR);
    interpreter.file("bin/agent", 0o755, "#!/no/such/interpreter\n");
    // And one whose library is not there: the loader ends it.
    let library = TreeFixture::agent("3.5", "data", "probation = \"3s\"\n");
    let bytes = fs::read(library.path().join("bin/agent")).unwrap();
    let text = b"libc.so.6\0";
    let at = bytes.windows(text.len()).position(|window| window == text).expect("the name of a library");
    let mut bytes = bytes;
    bytes[at..at + 9].copy_from_slice(b"libX.so.6");
    library.file("bin/agent", 0o755, &bytes);
    for (version, tree) in [("3.3-foreign", &foreign), ("3.4-interpreter", &interpreter), ("3.5-library", &library)] {
        goes_back(&manager, &host, version, tree);
    }
    assert_eq!(manager.agent("host-1", PRODUCT).unwrap()["version"], "1.0");
    // An entry point that is not in the tree does not even get published.
    let missing = TreeFixture::new();
    missing.file("bin/other", 0o755, "#!/bin/sh\n").file("manager-fs.toml", 0o644, "entrypoint = \"bin/agent\"\n");
    let output = manager.run(&["publish", PRODUCT, "3.6", &missing.path().to_string_lossy()]).expect(1);
    assert!(output.stderr.contains("bin/agent"), "{}", output.stderr);
}

#[test]
fn a_cancelled_job_ends_and_the_agent_goes_on() {
    let (manager, host) = running();
    let source = host.path("data");
    data(&source, 200 << 20);
    let id = job(&manager, &host, "backup", &["--detach", &source.to_string_lossy()]).text();
    manager.run(&["job", "cancel", &id]).expect(0);
    let ended = until("the job has ended", || {
        let shown = manager.run(&["job", "show", &id, "--json"]).expect(0).json();
        (shown["state"] != "running" && shown["state"] != "queued" && shown["state"] != "waiting").then_some(shown)
    });
    assert_eq!(ended["state"], "cancelled", "{ended}");
    let little = host.path("little");
    data(&little, 1 << 20);
    job(&manager, &host, "backup", &[&little.to_string_lossy()]).expect(0);
    let missing = job(&manager, &host, "backup", &["/no/such/directory"]).expect(1);
    assert!(format!("{}{}", missing.stdout, missing.stderr).contains("/no/such/directory"), "{missing:?}");
}
