//! What must be so after every cell.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;
use tests::faults::FILE;

use crate::world::{HOST, PRODUCT, World};

/// `serve`; the mount daemon's holder, worker and helper; the stub and its agent.
const PROCESSES: usize = 6;
/// Generations that a host keeps attached: the one that runs, and those before it until they are released.
const TREES_MAX: usize = 12;
/// Descriptors of one process: connections come and go, but they do not add up.
const DESCRIPTORS_MAX: usize = 150;

pub(crate) fn check(world: &World) {
    let version = world.version.to_string();
    world.until(&format!("{version} serves"), |world| world.serves(world.version));
    does_a_job(world, &version);
    one_generation(world);
    every_record_is_read(world);
    nothing_is_left(world);
}

fn does_a_job(world: &World, version: &str) {
    let repository = world.path("repository").to_string_lossy().into_owned();
    let args = ["job", "backup", "--host", HOST, "--repository", &repository, "--json", "/one", "/two"];
    let done = world.admin(&args).expect(0).json_lines().pop().unwrap();
    assert_eq!(done["state"], "done", "{done}");
    assert_eq!(done["versions"].as_array().unwrap().last().unwrap(), version, "{done}");
}

/// The agent runs from the tree that is attached, and link and status say the same.
fn one_generation(world: &World) {
    let agent = world.agent().unwrap();
    let tree = agent["tree_id"].as_str().unwrap();
    let link = fs::read_link(world.host.path(&format!("run/agents/{PRODUCT}/current"))).unwrap();
    assert!(link.to_string_lossy().contains(tree), "{link:?} is not of {tree}");
    let running = fs::read_link(format!("/proc/{}/exe", agent["pid"])).unwrap();
    assert!(running.ends_with("bin/agent"), "{running:?}");
    let holds = |status: &Value| {
        let generations = status["generations"].as_array().cloned().unwrap_or_default();
        let one = generations.iter().find(|generation| generation["tree_id"] == tree).cloned();
        one.is_some_and(|one| one["mounted"] == true)
    };
    world.until("the tree of the agent is attached", |world| {
        serde_json::from_str::<Value>(&world.local(&["status", "--json"]).stdout).is_ok_and(|status| holds(&status))
    });
}

fn every_record_is_read(world: &World) {
    for args in [&["hosts"][..], &["agents"], &["generations"], &["job", "list"]] {
        world.admin(args).expect(0);
    }
    let found = world.admin(&["verify", "--json"]).expect(0).json();
    assert_eq!(found["problems"].as_array().map_or(0, Vec::len), 0, "{found}");
    world.local(&["status"]).expect(0);
}

fn nothing_is_left(world: &World) {
    world.until("nothing but the services runs", |world| processes(world.faults.file()).len() == PROCESSES);
    for (pid, line) in processes(world.faults.file()) {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        assert!(open < DESCRIPTORS_MAX, "{line} has {open} descriptors open");
    }
    no_draft_is_left(world);
    world.until("what nobody runs from is released", |world| mounts(&world.host.path("run/gens")).len() <= TREES_MAX);
}

fn no_draft_is_left(world: &World) {
    world.until_at_rest("no draft is left in the store", |world| {
        fs::read_dir(world.manager.store().join("tmp")).unwrap().count() == 0
    });
}

/// After all cells of a world: everything ends in good order, and nothing stays behind.
pub(crate) fn end(mut world: World) {
    // What a killed process has left goes at the next start.
    world.mount.as_ref().unwrap().restart();
    world.until("the mount daemon is back", |world| world.local(&["status"]).code == Some(0));
    world.until("the version still serves", |world| world.serves(world.version));
    for (name, unit) in
        [("launch", world.launch.take()), ("mount", world.mount.take()), ("serve", world.serve.take())]
    {
        assert_eq!(unit.unwrap().end(), Some(0), "{name} did not end in good order");
    }
    assert_eq!(processes(world.faults.file()), BTreeMap::new(), "these still run");
    let run = world.host.path("run");
    assert_eq!(mounts(&run), Vec::<String>::new(), "these are still mounted");
    let dirs = [world.host.path("state"), world.host.path("cache"), world.manager.store()];
    let left: Vec<_> = dirs
        .iter()
        .flat_map(|dir| {
            tests::files_below(dir).into_iter().map(move |path| path.strip_prefix(dir).unwrap().to_owned())
        })
        // What the manager was making for nobody in particular is broken off, and its draft goes at the next start.
        .filter(|path| is_temporary(path) && !path.starts_with("tmp"))
        .collect();
    assert!(left.is_empty(), "these are left: {left:#?}");
}

/// Whether its name says that its maker wanted to rename or remove it.
fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let makers = name
        .strip_prefix('.')
        .and_then(|rest| rest.split_once('.'))
        .is_some_and(|(first, rest)| first.bytes().all(|byte| byte.is_ascii_digit()) && rest.len() == 62);
    name.ends_with(".tmp")
        || name.ends_with(".new")
        || makers
        || path.components().any(|part| part.as_os_str() == "tmp")
}

/// The processes that these faults are for, with their command lines.
pub(crate) fn processes(faults: &Path) -> BTreeMap<i32, String> {
    let wanted = format!("{FILE}={}", faults.display());
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes()) {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.insert(pid, String::from_utf8_lossy(&line).replace('\0', " "));
        }
    }
    found
}

fn mounts(below: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap();
    let targets = text.lines().filter_map(|line| line.split(' ').nth(1));
    targets.filter(|target| Path::new(target).starts_with(below)).map(str::to_owned).collect()
}
