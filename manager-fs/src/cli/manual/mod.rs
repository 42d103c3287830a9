//! What the program says of itself: help in groups, examples, manual pages and `docs/command-line.md`, all made of the
//! commands' own definitions and of two lists, `examples` and `fields`.

mod examples;
mod fields;
mod host_fields;
mod page;
mod policy_fields;
mod repository_fields;
mod rollout_fields;
mod store_fields;

use std::sync::LazyLock;

use clap::{Command, CommandFactory};

pub use fields::Document;
pub use page::markdown;

use super::out::wrapped;

/// The groups of the help, in its order. A command that stands in none is shown under [`OTHERS`].
const GROUPS: [(&str, &[&str]); 6] = [
    (
        "The manager and its store",
        &[
            "serve",
            "publish",
            "unpublish",
            "generations",
            "show",
            "diff",
            "verify",
            "gc",
            "record",
            "recover",
            "store",
            "save",
            "load",
            "export",
            "unexport",
        ],
    ),
    (
        "Hosts",
        &["hosts", "host", "token", "enroll", "mount", "unmount", "status", "attach", "release", "exec", "profile"],
    ),
    ("Agents", &["launch", "rescue", "permits", "upgrade", "rollout", "agents"]),
    ("Jobs", &["policy", "protection", "job", "repository"]),
    ("Programs and people", &["api-token"]),
    ("This program", &["demo", "completions", "man", "help"]),
];
const OTHERS: &str = "More";

/// Every JSON document that the commands print.
pub fn documents() -> &'static [Document] {
    static ALL: LazyLock<Vec<Document>> = LazyLock::new(|| {
        [fields::DOCUMENTS, host_fields::DOCUMENTS, policy_fields::DOCUMENTS, store_fields::DOCUMENTS].concat()
    });
    &ALL
}

/// Every command with its examples; nothing is hidden that is not for the program's own use.
pub fn commands() -> Command {
    let mut line = super::Line::command();
    with_examples(&mut line, "");
    line
}

/// The parser: as [`commands`], with a help that lists them in groups.
pub(super) fn parser() -> Command {
    let line = commands();
    // As clap: the terminal's width, or what the environment says of one that is not there.
    let said = || std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let columns = super::progress::columns_of(std::io::stdout()).or_else(said).unwrap_or(100).min(100);
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{}\n{{all-args}}{{after-help}}",
        grouped(&line, columns)
    );
    let names: Vec<String> = line.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    // The groups are the list; the one of clap would stand below it once more.
    let line = names.into_iter().fold(line, |line, name| line.mut_subcommand(name, |command| command.hide(true)));
    line.help_template(template).override_usage("manager-fs [OPTIONS] <COMMAND>").disable_help_subcommand(false)
}

/// The commands in their groups, a line each.
fn grouped(line: &Command, columns: usize) -> String {
    let mut text = String::new();
    for (group, names) in groups(line) {
        text.push_str(&format!("\x1b[1m\x1b[4m{group}:\x1b[0m\n"));
        for name in names {
            let about = about(line, &name);
            let indent = format!("\n{:15}", "");
            let about = wrapped(&about, columns.saturating_sub(16).max(20)).join(&indent);
            text.push_str(&format!("  \x1b[1m{name:<13}\x1b[0m{about}\n"));
        }
        text.push('\n');
    }
    text.trim_end().to_owned() + "\n"
}

/// The groups that are not empty, each with the names of its commands.
fn groups(line: &Command) -> Vec<(&'static str, Vec<String>)> {
    let visible: Vec<&str> =
        line.get_subcommands().filter(|command| !command.is_hide_set()).map(Command::get_name).collect();
    let mut groups: Vec<(&str, Vec<String>)> = GROUPS
        .iter()
        .map(|(group, names)| {
            let there = names.iter().filter(|name| visible.contains(name) || **name == "help");
            (*group, there.map(|name| (*name).to_owned()).collect())
        })
        .collect();
    let grouped = |name: &&str| GROUPS.iter().any(|(_, names)| names.contains(name));
    let others: Vec<String> = visible.iter().filter(|name| !grouped(name)).map(|name| (*name).to_owned()).collect();
    if !others.is_empty() {
        groups.push((OTHERS, others));
    }
    groups
}

fn about(line: &Command, name: &str) -> String {
    let command = line.find_subcommand(name);
    match command.and_then(Command::get_about) {
        Some(about) => about.to_string(),
        None => String::from("Show this list, or the help of one command"),
    }
}

/// Puts the examples below the help of each command.
fn with_examples(command: &mut Command, path: &str) {
    let names: Vec<String> = command.get_subcommands().map(|below| below.get_name().to_owned()).collect();
    for name in names {
        let path = if path.is_empty() { name.clone() } else { format!("{path} {name}") };
        let mut below = std::mem::take(command);
        below = below.mut_subcommand(&name, |mut below| {
            with_examples(&mut below, &path);
            match examples::of(&path) {
                [] => below,
                examples => below.after_help(as_help(examples)),
            }
        });
        *command = below;
    }
}

fn as_help(examples: &[(&str, &str)]) -> String {
    let shown = examples.iter().map(|(line, what)| format!("  {line}\n      {what}"));
    format!("\x1b[1m\x1b[4mExamples:\x1b[0m\n{}", shown.collect::<Vec<_>>().join("\n"))
}

/// One command: its names from the top (`job backup`), and its definition.
pub fn every_command() -> Vec<(String, Command)> {
    let mut all = commands();
    all.build();
    let mut found = Vec::new();
    gather(&all, "", &mut found);
    found
}

fn gather(command: &Command, path: &str, found: &mut Vec<(String, Command)>) {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help") {
        let path = format!("{path} {}", below.get_name()).trim().to_owned();
        if below.has_subcommands() { gather(below, &path, found) } else { found.push((path, below.clone())) }
    }
}

/// The manual page of one command, in roff.
///
/// # Errors
/// Of writing to memory: none.
pub(super) fn man_page(command: &Command, path: &str) -> std::io::Result<Vec<u8>> {
    let man = clap_mangen::Man::new(command.clone()).manual("manager-fs");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.get_subcommands().any(|below| !below.is_hide_set()) {
        man.render_subcommands_section(&mut page)?;
    }
    let text = |section: &str, lines: Vec<String>| {
        let lines = lines.iter().map(|line| roff(line)).collect::<Vec<_>>().join("\n");
        if lines.is_empty() { String::new() } else { format!(".SH \"{section}\"\n.nf\n{lines}\n.fi\n") }
    };
    let examples = examples::of(path).iter().flat_map(|(line, what)| [(*line).to_owned(), format!("    {what}")]);
    page.extend(text("EXAMPLES", examples.collect()).into_bytes());
    let json = documents().iter().filter(|document| document.command == path).flat_map(|document| {
        let rows = document.fields.iter().map(|(field, meaning)| format!("{field}\n    {meaning}"));
        std::iter::once(format!("{}:", document.what)).chain(rows).collect::<Vec<_>>()
    });
    page.extend(text("JSON", json.collect()).into_bytes());
    let codes = page::EXIT_CODES.iter().map(|(code, meaning)| format!("{code:<5}{meaning}"));
    page.extend(text("EXIT STATUS", codes.collect()).into_bytes());
    Ok(page)
}

/// Text that roff shows as it is.
fn roff(line: &str) -> String {
    let escaped = line.replace('\\', "\\e").replace('-', "\\-");
    let lines: Vec<String> = escaped
        .lines()
        .map(|line| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() })
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_stands_in_one_group() {
        let line = commands();
        for (group, _) in groups(&line) {
            assert_ne!(group, OTHERS, "{:?}", groups(&line));
        }
        for (_, names) in GROUPS {
            for name in names.iter().filter(|name| **name != "help") {
                assert!(line.find_subcommand(name).is_some(), "there is no command {name}");
            }
        }
    }

    #[test]
    fn every_command_has_examples_and_each_of_them_parses() {
        let every = every_command();
        for (path, _) in &every {
            let examples = examples::of(path);
            assert!(!examples.is_empty(), "{path} has no example");
            for (line, what) in examples {
                let typed = line.rsplit_once(" | ").map_or(*line, |(_, last)| last);
                let typed = typed.split(" > ").next().unwrap_or_default();
                let typed = typed.trim_start_matches("ssh host-17 ");
                let words: Vec<&str> = typed.split_whitespace().collect();
                let parsed = parser().try_get_matches_from(&words);
                assert!(parsed.is_ok(), "the example '{line}' does not parse: {}", parsed.unwrap_err());
                assert!(words[1..].join(" ").starts_with(path.as_str()), "'{line}' is no example of {path}");
                assert!(!what.ends_with('.') && what.len() < 90, "{what}");
            }
        }
        for path in examples::paths() {
            assert!(every.iter().any(|(command, _)| command == path), "examples of {path}, which there is not");
        }
    }

    #[test]
    fn the_help_fits_a_narrow_terminal() {
        let text = grouped(&commands(), 60);
        for line in text.lines() {
            let shown = line.replace("\x1b[1m", "").replace("\x1b[4m", "").replace("\x1b[0m", "");
            assert!(shown.chars().count() < 60, "{shown}");
        }
    }

    #[test]
    fn every_flag_has_its_variable_and_every_word_its_help() {
        for (path, command) in every_command() {
            assert!(command.get_about().is_some(), "{path} says nothing of itself");
            for argument in
                command.get_arguments().filter(|argument| !["help", "version"].contains(&argument.get_id().as_str()))
            {
                assert!(argument.get_help().is_some(), "{path}: {} has no help", argument.get_id());
            }
        }
        let line = commands();
        for global in ["store", "state", "cache", "run", "silence"] {
            let argument = line.get_arguments().find(|argument| argument.get_id() == global).unwrap();
            let variable = format!("MANAGER_FS_{}", global.to_uppercase());
            assert_eq!(argument.get_env().and_then(|name| name.to_str()), Some(variable.as_str()));
            assert_eq!(argument.get_help_heading(), Some("Global options"));
        }
    }

    #[test]
    fn publish_says_which_chunks_it_makes() {
        let line = commands();
        let publish = line.find_subcommand("publish").unwrap();
        let help = publish.get_arguments().find(|argument| argument.get_id() == "chunk_bytes").unwrap();
        let default = proto::limits::CHUNK_BYTES / 1024;
        let help = help.get_help().unwrap().to_string();
        assert!(help.contains(&format!("default: {default}KiB")), "{help}");
    }

    #[test]
    fn roff_shows_what_was_meant() {
        assert_eq!(roff(".hidden -x \\n"), "\\&.hidden \\-x \\en");
    }
}
