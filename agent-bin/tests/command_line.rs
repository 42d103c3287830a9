//! The program as `launch` (or a person who tries it by hand) meets it. These tests also make `cargo test` build the
//! program, which the black-box tests of the workspace publish.

#![allow(clippy::expect_used)]

use std::process::{Command, Output};

fn agent(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent-bin"));
    command.args(arguments).env_clear().envs(variables.iter().copied());
    command.output().expect("running agent-bin")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn help_and_version_go_to_stdout() {
    let help = agent(&["--help"], &[]);
    assert_eq!(help.status.code(), Some(0));
    let text = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(text.contains("--role") && text.contains("MANAGER_FS_LOG"), "{text}");
    let version = agent(&["--version"], &[]);
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("agent-bin "));
}

#[test]
fn started_by_hand_it_says_what_to_do_instead() {
    let output = agent(&["--role", "data"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("MANAGER_FS_PRODUCT"), "{}", stderr(&output));
}

#[test]
fn wrong_usage_is_code_2_and_names_the_fault() {
    for (arguments, variables, named) in [
        (&["--no-such-flag"][..], &[][..], "--no-such-flag"),
        (&["--role", "both"], &[], "both"),
        (&[], &[], "MANAGER_FS_PRODUCT"),
    ] {
        let output = agent(arguments, variables);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(named), "{arguments:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
}
