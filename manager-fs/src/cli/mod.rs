//! What the operator typed: one file a command. Each turns its flags into a call of the library and the result into
//! text or JSON; none decides anything.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{DirFlags, Dirs};
use crate::demo::DemoOptions;

/// Serves versioned executable trees to hosts, and changes their running agents' versions.
#[derive(Debug, Parser)]
#[command(name = "manager-fs", version, max_term_width = 100)]
struct Line {
    #[command(flatten)]
    dirs: DirFlags,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// All of the other commands on this machine, in front of your eyes
    Demo(DemoOptions),
}

/// How a command that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// Exit code 0.
    Clean,
    /// Exit code 3: done, with problems that were printed.
    WithProblems,
    /// The exit code of the program that was run (`exec`).
    Code(u8),
}

/// Parses the command line, runs the command, prints the error. Wrong usage is exit code 2 (clap's own).
pub fn run() -> ExitCode {
    let line = Line::parse();
    match Dirs::resolve(&line.dirs).and_then(|dirs| dispatch(line.command, &dirs)) {
        Ok(Done::Clean) => ExitCode::SUCCESS,
        Ok(Done::WithProblems) => ExitCode::from(3),
        Ok(Done::Code(code)) => ExitCode::from(code),
        Err(error) => {
            eprintln!("manager-fs: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command, _dirs: &Dirs) -> anyhow::Result<Done> {
    match command {
        Command::Demo(options) => Ok(if crate::demo::run(&options)? { Done::Clean } else { Done::Code(1) }),
    }
}
