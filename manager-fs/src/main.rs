//! Parse, run, map the result to an exit code; nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    manager_fs::cli::run()
}
