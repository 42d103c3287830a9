//! `manager-fs` with every moment of its own, and of the stub in it, in the hands of a test (`tests/src/faults.rs`).

use std::process::ExitCode;

fn main() -> ExitCode {
    agent_core::internal::moments::watch(|moment, _| tests::faults::at(moment));
    manager_fs::cli::run()
}
