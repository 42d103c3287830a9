//! The command line: usage, versions, what it says of itself, and that every command ends, with a reason, whatever becomes
//! of the manager and the mount daemon. These tests also make `cargo test` build the program, which the black-box tests of
//! the workspace run.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod interrupted;
mod peers;
mod pseudo;
mod rows;
mod say;
mod stopped;

use std::process::{Command, Output};

fn manager_fs(arguments: &[&str], dir: &std::path::Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_manager-fs"));
    command.args(arguments);
    for (variable, name) in [
        ("MANAGER_FS_STORE", "store"),
        ("MANAGER_FS_STATE", "state"),
        ("MANAGER_FS_CACHE", "cache"),
        ("MANAGER_FS_RUN", "run"),
    ] {
        command.env(variable, dir.join(name));
    }
    command.output().expect("running manager-fs")
}

#[test]
fn wrong_usage_is_code_2_on_stderr() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [&["--no-such-flag"][..], &["no-such-command"], &[]] {
        let output = manager_fs(arguments, dir.path());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is made");
}

#[test]
fn version_is_printed_alone() {
    let dir = tempfile::tempdir().unwrap();
    let output = manager_fs(&["--version"], dir.path());
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), concat!("manager-fs ", env!("CARGO_PKG_VERSION")));
}
