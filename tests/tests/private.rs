//! Whose the files are: keys, tokens, sockets and journals are closed to other users, several managers and hosts share a
//! machine, and what a flag says goes before the environment.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use tests::command::program;
use tests::{Host, Manager, Output, TreeFixture, files_below};

/// Files and sockets below a directory that somebody else may open, by the modes of all directories on the way.
fn open_to_others(dir: &Path) -> Vec<PathBuf> {
    let mode = |path: &Path| fs::symlink_metadata(path).map_or(0, |found| found.mode());
    if mode(dir) & 0o007 == 0 {
        return Vec::new();
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            found.extend(open_to_others(&path));
        } else if (kind.is_file() || kind.is_socket()) && mode(&path) & 0o006 != 0 {
            found.push(path);
        }
    }
    found
}

#[test]
fn what_a_manager_keeps_is_closed_to_other_users() {
    let manager = Manager::start();
    manager.publish("sample", "1.0", TreeFixture::script("exit 0", "").path());
    manager.run(&["token", "host-1"]).expect(0);
    let keys: Vec<_> = files_below(&manager.store());
    assert!(keys.iter().any(|path| path.to_string_lossy().contains("key")), "no key among {keys:?}");
    // Packs and manifests are for hosts that may fetch them; where the manager listens is for everyone.
    let mut open = open_to_others(&manager.store());
    open.retain(|path| !path.ends_with("address") && !path.ends_with("format"));
    assert_eq!(open, Vec::<PathBuf>::new());
}

#[test]
fn what_a_host_keeps_is_closed_to_other_users() {
    let manager = Manager::start();
    manager.publish("data-agent", "1.0", TreeFixture::agent("1.0", "data", "").path());
    let mut host = Host::mounted("host-1", &manager);
    manager.export("data-agent@1.0", "host-1");
    host.launch("data-agent");
    for dir in ["state", "cache"] {
        assert_eq!(open_to_others(&host.path(dir)), Vec::<PathBuf>::new());
    }
    let sockets: Vec<_> = fs::read_dir(host.path("run/agents")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let sockets = sockets.iter().filter(|path| path.extension().is_some_and(|kind| kind == "sock"));
    let modes: Vec<_> = sockets.map(|path| fs::metadata(path).unwrap().mode() & 0o777).collect();
    assert_eq!(modes, [0o600]);
}

#[test]
fn managers_beside_each_other_do_not_mix() {
    let (one, other) = (Manager::start(), Manager::start());
    one.publish("sample", "1.0", TreeFixture::script("echo one", "").path());
    other.publish("sample", "1.0", TreeFixture::script("echo other", "").path());
    let mut hosts = Vec::new();
    for (manager, says) in [(&one, "one"), (&other, "other")] {
        // The same name with each of them: a host's name is its manager's matter.
        let host = Host::mounted("host-1", manager);
        manager.export("sample@1.0", "host-1");
        host.attach("sample@1.0");
        assert_eq!(host.run(&["exec", "sample@1.0"]).text(), says);
        hosts.push(host);
    }
    // A token is good for the manager that printed it alone.
    let token = one.run(&["token", "host-2"]).text();
    let stray = Host::new("host-2");
    stray.run(&["enroll", "--manager", &other.address(), "--token", &token]).expect(1);
    stray.run(&["enroll", "--manager", &one.address(), "--token", &token]).expect(0);
}

#[test]
fn a_flag_goes_before_the_environment_and_may_be_relative() {
    let manager = Manager::start();
    manager.publish("sample", "1.0", TreeFixture::script("exit 0", "").path());
    let elsewhere = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new(program("manager-fs"));
    command.env("MANAGER_FS_STORE", elsewhere.path()).env("MANAGER_FS_RUN", elsewhere.path());
    let (parent, store) = (manager.store().parent().unwrap().to_owned(), manager.store());
    command.current_dir(parent).args(["generations", "--json", "--store"]).arg(store.file_name().unwrap());
    let listed = Output::of(&mut command).expect(0).json();
    assert_eq!(listed["generations"][0]["version"], "1.0");
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0, "nothing is made where nothing is asked for");
    // Before the command or after it, a global flag means the same.
    let mut command = std::process::Command::new(program("manager-fs"));
    command.arg("--store").arg(manager.store()).args(["generations", "--json"]);
    assert_eq!(Output::of(&mut command).expect(0).json(), listed);
}
