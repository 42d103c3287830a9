//! What the program says of itself: help, documentation, manual pages, completions, JSON flags.

use manager_fs::cli::manual::{every_command, markdown};

use crate::manager_fs;

/// Commands without `--json`, and why.
const NO_JSON: &[(&str, &str)] = &[
    ("serve", "a service: a line on standard error says when it is ready"),
    ("mount", "a service, as serve"),
    ("launch", "a service, as serve"),
    ("rescue", "by hand, on one host: it says one line to whoever does it"),
    ("exec", "standard output belongs to the program that it runs"),
    ("completions", "what it prints is a script"),
];

#[test]
fn the_documentation_is_that_of_these_commands() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/command-line.md");
    let made = markdown();
    if std::env::var_os("MANAGER_FS_WRITE_DOCS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let page = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = page.lines().zip(made.lines()).position(|(a, b)| a != b);
    assert!(
        page == made,
        "docs/command-line.md differs from the commands from line {:?} on: write it anew with \
         MANAGER_FS_WRITE_DOCS=1 cargo test -p manager-fs --test command_line",
        differs.map(|line| line + 1)
    );
    let long = page.lines().find(|line| !line.starts_with('|') && line.chars().count() > 118);
    assert_eq!(long, None);
}

#[test]
fn every_command_that_prints_has_json_and_documents_it() {
    for (path, command) in every_command() {
        let json = command.get_arguments().any(|argument| argument.get_long() == Some("json"));
        let exempt = NO_JSON.iter().any(|(name, _)| *name == path);
        assert!(json != exempt, "{path}: --json {json}, exempt {exempt}");
        let documented = manager_fs::cli::manual::documents().iter().any(|document| document.command == path);
        assert_eq!(json, documented, "{path}: are the fields of its JSON in manual/fields.rs?");
    }
}

#[test]
fn the_help_lists_every_command_in_its_group_and_the_global_options_apart() {
    let dir = tempfile::tempdir().unwrap();
    let output = manager_fs(&["--help"], dir.path());
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!help.contains('\x1b'), "colour in a pipe: {help:?}");
    let at = |what: &str| help.find(what).unwrap_or_else(|| panic!("'{what}' is missing in\n{help}"));
    assert!(at("The manager and its store:") < at("  publish "));
    assert!(at("  publish ") < at("Hosts:") && at("Hosts:") < at("  enroll "));
    assert!(at("Agents:") < at("  upgrade ") && at("  upgrade ") < at("Jobs:"));
    assert!(at("Jobs:") < at("Global options:") && at("Global options:") < at("--store <DIR>"));
    assert!(help.contains("Usage: manager-fs [OPTIONS] <COMMAND>"), "{help}");
    assert!(!help.contains("__worker") && !help.contains("Commands:"), "{help}");
}

#[test]
fn the_help_of_every_command_has_its_usage_its_examples_and_its_json() {
    let dir = tempfile::tempdir().unwrap();
    for (path, command) in every_command() {
        let words: Vec<&str> = path.split(' ').chain(["--help"]).collect();
        let output = manager_fs(&words, dir.path());
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{path}");
        for wanted in ["Usage: manager-fs", "Examples:", "Global options:", "--silence <DURATION>"] {
            assert!(help.contains(wanted), "{path}: '{wanted}' is missing in\n{help}");
        }
        let own = command.get_arguments().filter(|argument| !argument.is_hide_set());
        for flag in own.filter_map(|argument| argument.get_long()) {
            assert!(help.contains(&format!("--{flag}")), "{path}: --{flag} is missing in\n{help}");
        }
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "help makes nothing");
}

#[test]
fn a_slip_of_a_finger_is_understood() {
    let dir = tempfile::tempdir().unwrap();
    for (typed, meant) in
        [(&["pubish"][..], "publish"), (&["hosts", "--jsn"], "--json"), (&["job", "bakup"], "backup")]
    {
        let output = manager_fs(typed, dir.path());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{typed:?}");
        assert!(said.contains(meant) && said.contains("similar"), "{typed:?}: {said}");
    }
}

#[test]
fn completions_know_every_command_in_every_shell() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = manager_fs(&["completions", shell], dir.path());
        let script = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{shell}");
        for (path, _) in every_command() {
            let last = path.rsplit(' ').next().unwrap();
            assert!(script.contains(last), "{shell}: {path} is missing");
        }
        assert!(script.contains("silence"), "{shell}");
    }
    let bash = manager_fs(&["completions", "bash"], dir.path()).stdout;
    let script = dir.path().join("script");
    std::fs::write(&script, bash).unwrap();
    let checked = std::process::Command::new("bash").arg("-n").arg(&script).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

#[test]
fn manual_pages_are_written_for_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let output = manager_fs(&["man", &dir.path().join("man1").to_string_lossy(), "--json"], dir.path());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let pages: Vec<&str> = document["pages"].as_array().unwrap().iter().filter_map(|page| page.as_str()).collect();
    for (path, _) in every_command() {
        let name = format!("man1/manager-fs-{}.1", path.replace(' ', "-"));
        let page = pages.iter().find(|page| page.ends_with(&name)).unwrap_or_else(|| panic!("no page {name}"));
        let text = std::fs::read_to_string(page).unwrap();
        for section in
            [".SH NAME", ".SH SYNOPSIS", ".SH \"EXAMPLES\"", ".SH \"EXIT STATUS\"", ".SH \"GLOBAL OPTIONS\""]
        {
            assert!(text.contains(section), "{name}: {section} is missing in\n{text}");
        }
    }
    assert!(pages.iter().any(|page| page.ends_with("man1/manager-fs.1")));
}
