//! The main job on one machine, through the same program as a user: every step is a command of `manager-fs`, run as a
//! process of its own, and checked.

mod machine;
mod material;
mod steps;
mod timeline;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use tokio::signal::unix::{SignalKind, signal};

use machine::Machine;
use timeline::Timeline;

use crate::cli::Done;
use crate::cli::out::say;

/// What the operator chose.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DemoOptions {
    /// The reference agent's program; by default `agent-bin` beside this program
    #[arg(long, value_name = "FILE")]
    pub agent: Option<PathBuf>,
    /// Where the demo's directory is made (about four times --data-bytes are needed)
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// How much of this machine's software is copied to be backed up
    #[arg(long, value_name = "BYTES", default_value_t = 300_000_000)]
    pub data_bytes: u64,
    /// Keep the demo's directory with its logs
    #[arg(long)]
    pub keep: bool,
    /// Print one JSON document at the end and nothing else on stdout
    #[arg(long)]
    pub json: bool,
}

/// Runs the demo. Returns whether every step was checked and everything was cleaned up.
///
/// # Errors
/// Something that the demo needs is missing; the error says what and how to get it.
pub(super) fn run(options: &DemoOptions) -> Result<Done> {
    preconditions()?;
    let agent = material::agent_binary(options.agent.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let parent = options.dir.clone().unwrap_or_else(std::env::temp_dir);
        let mut machine = Machine::create(&parent)?;
        let mut timeline = Timeline::new(options.json);
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let result = tokio::select! {
            result = steps::all(&mut machine, &mut timeline, &agent, options.data_bytes) => result,
            _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
            _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
        };
        let failure = result.err().map(|error| format!("{error:#}"));
        let clean = machine.tear_down(options.keep).await;
        if options.json {
            crate::cli::out::json(&timeline.document(failure.as_deref()));
        }
        if let Some(failure) = &failure {
            eprintln!("demo: failed: {failure}");
        } else if !options.json {
            say!("Every step was checked{}.", if clean { "; nothing is left behind" } else { "" });
        }
        Ok(if failure.is_none() && clean { Done::Clean } else { Done::Code(1) })
    })
}

/// What the machine must offer, each with the way to get it.
fn preconditions() -> Result<()> {
    let fuse = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    fuse.context(
        "cannot open /dev/fuse: load the module with 'modprobe fuse', or give this container the device \
         (--device /dev/fuse) and the user read and write access to it",
    )?;
    if !rustix::process::geteuid().is_root() {
        let allowed = |path: &str, good: fn(i64) -> bool| {
            std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).is_none_or(good)
        };
        ensure!(
            allowed("/proc/sys/user/max_user_namespaces", |n| n > 0)
                && allowed("/proc/sys/kernel/unprivileged_userns_clone", |n| n > 0)
                && allowed("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", |n| n == 0),
            "this machine forbids user namespaces to users: run the demo as root, or allow them with \
             'sysctl user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1 \
             kernel.apparmor_restrict_unprivileged_userns=0'"
        );
    }
    Ok(())
}
