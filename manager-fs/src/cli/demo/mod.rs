//! The main job on one machine, through the same program as a user: every step is a command of `manager-fs`, run as a
//! process of its own, and checked. Every figure that is shown has been measured in this run.

mod answers;
mod change_over;
mod check;
mod machine;
mod material;
mod steps;
mod story;

use std::path::PathBuf;

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};

use check::Checked;
use machine::Machine;
use story::Story;

use super::units::byte_count;
use super::{Done, INTERRUPTED, Json, out};

/// What the operator chose.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct DemoOptions {
    /// The reference agent's program; by default `agent-bin` beside this program
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Where the demo's directory is made [default: the directory for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How much of this machine's software is copied to be backed up; three times as much room is needed
    #[arg(long, value_name = "BYTES", default_value = "300MB", value_parser = byte_count)]
    data_bytes: u64,
    /// Keep the demo's directory with its logs
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    output: Json,
}

/// Runs the demo: exit code 0 only if every step was checked and everything was cleaned up.
///
/// # Errors
/// Something that the demo needs is missing; the error says what and how to get it. Nothing was started then.
pub(super) fn run(options: &DemoOptions) -> Result<Done> {
    let checked = check::before_anything_starts(options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let done = runtime.block_on(watched(options, checked));
    // A copy or a comparison that was interrupted ends with its file.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    done
}

async fn watched(options: &DemoOptions, checked: Checked) -> Result<Done> {
    // Before anything is made that would have to be taken away.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut machine = Machine::create(checked.root)?;
    let mut story = Story::begin(options.output.json, machine.root(), &checked.degraded);
    let ended = tokio::select! {
        result = steps::all(&mut machine, &mut story, &checked.agent, options.data_bytes) => Some(result),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
    };
    let interrupted = ended.is_none();
    if interrupted {
        story.interrupted();
    }
    let failure = ended.and_then(Result::err).map(|error| format!("{error:#}"));
    if let Some(failure) = &failure {
        story.failed(failure);
    }
    story.cleaning_up();
    let clean = machine.tear_down(options.keep).await;
    let good = failure.is_none() && !interrupted;
    if options.output.json {
        out::json(&story.document(failure.as_deref(), interrupted, clean));
    } else {
        story.end(good, clean, options.keep);
    }
    Ok(match (interrupted, good && clean) {
        (true, _) => Done::Code(INTERRUPTED),
        (false, true) => Done::Clean,
        (false, false) => Done::Code(1),
    })
}
