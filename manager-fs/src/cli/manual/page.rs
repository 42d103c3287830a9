//! `docs/command-line.md`.

use clap::{Arg, Command};

use super::{Document, commands, documents, every_command, examples, groups};
use crate::cli::out::wrapped;

/// The widest line outside of tables.
const COLUMNS: usize = 116;

/// The heading of options that every command has.
const GLOBAL: &str = "Global options";

/// What a command's end means to the shell.
pub(super) const EXIT_CODES: [(&str, &str); 5] = [
    ("0", "done"),
    ("1", "failed; standard error says why"),
    ("2", "wrong usage"),
    ("3", "done, with problems that were printed (`status`: the mount daemon does not answer)"),
    ("130", "interrupted with Ctrl-C; where the work goes on without the command, it says so and how to stop it"),
];

const PREFACE: &str = "\
# The command line

This page is made from the commands themselves: `cargo test -p manager-fs --test command_line` compares the two, and
writes the page anew with `MANAGER_FS_WRITE_DOCS=1`. `manager-fs man DIR` writes the same as manual pages.

One program is manager, host and operator's tool. A command reaches the manager through the socket in the store that
`--store` names, else through the one in `--run`; it reaches this host's mount daemon through the one in `--run`.
Every wait has an end: whoever gives no sign of life within `--silence` is named, with what to do.

Answers go to standard output; messages and progress for people go to standard error, and progress only to a terminal.
Text that comes from hosts or archives is printed with its control characters escaped. Every command that prints has
`--json`: one document, or one line an event, and nothing else on standard output. Sizes are decimal (`12.3 MB`);
durations have at most two units (`2 min 5 s`); moments are UTC.
";

/// The text of `docs/command-line.md`.
pub fn markdown() -> String {
    let line = commands();
    let mut text = format!("{PREFACE}\n| exit code | meaning |\n|---|---|\n");
    for (code, meaning) in EXIT_CODES {
        text.push_str(&format!("| {code} | {meaning} |\n"));
    }
    text.push_str("\n## Global options\n\n");
    let mut globals = line.clone();
    globals.build();
    for argument in globals.get_arguments().filter(|argument| argument.get_help_heading() == Some(GLOBAL)) {
        text.push_str(&option(argument));
    }
    text.push_str(
        "\nAs root the directories are below `/var/lib/manager-fs` and `/run/manager-fs`, otherwise the XDG base\n\
         directories. Several managers and hosts can live on one machine with different directories.\n",
    );
    let every = every_command();
    for (group, names) in groups(&line) {
        text.push_str(&format!("\n## {group}\n"));
        for name in names {
            let of = |path: &str| path.split(' ').next() == Some(name.as_str());
            for (path, command) in every.iter().filter(|(path, _)| of(path)) {
                text.push_str(&section(path, command));
            }
        }
    }
    text
}

fn section(path: &str, command: &Command) -> String {
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    let mut text = format!("\n### `manager-fs {path}`\n\n{}.\n\n", about.trim_end_matches('.'));
    let usage = command.clone().render_usage().to_string();
    text.push_str(&format!("```\n{}\n```\n\n", usage.trim_start_matches("Usage: ").trim()));
    let own = command.get_arguments().filter(|argument| argument.get_help_heading() != Some(GLOBAL));
    let own: Vec<String> = own
        .filter(|argument| !argument.is_hide_set() && argument.get_id() != "help" && argument.get_id() != "version")
        .map(option)
        .collect();
    if !own.is_empty() {
        text.push_str(&own.concat());
        text.push('\n');
    }
    text.push_str("```sh\n");
    for (line, what) in examples::of(path) {
        text.push_str(&format!("# {what}\n{line}\n"));
    }
    text.push_str("```\n");
    for document in documents().iter().filter(|document| document.command == path) {
        text.push_str(&json(document));
    }
    text
}

/// One argument as a list item.
fn option(argument: &Arg) -> String {
    let values = argument.get_value_names().unwrap_or_default().iter().map(|name| format!("<{name}>"));
    let values: Vec<String> = values.collect();
    let takes = argument.get_action().takes_values();
    let name = match argument.get_long() {
        Some(long) if takes => format!("`--{long} {}`", values.join(" ")),
        Some(long) => format!("`--{long}`"),
        None => format!("`{}`", values.join(" ")),
    };
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let mut text = format!("{name}: {help}");
    if let Some(variable) = argument.get_env().and_then(|name| name.to_str()) {
        text.push_str(&format!("; variable `{variable}`"));
    }
    let defaults: Vec<String> =
        argument.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    if takes && !defaults.is_empty() {
        text.push_str(&format!("; default `{}`", defaults.join(" ")));
    }
    let possible: Vec<String> =
        argument.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    if takes && !possible.is_empty() {
        text.push_str(&format!("; one of {}", possible.join(", ")));
    }
    format!("- {}\n", wrapped(&text, COLUMNS - 2).join("\n  "))
}

fn json(document: &Document) -> String {
    if document.fields.is_empty() {
        return format!("\nWith `--json`: {}.\n", document.what.replacen("As", "as", 1));
    }
    let rows =
        document.fields.iter().map(|(field, meaning)| format!("| `{field}` | {} |\n", meaning.replace('|', "\\|")));
    format!("\n{} with `--json`:\n\n| field | meaning |\n|---|---|\n{}", document.what, rows.collect::<String>())
}
