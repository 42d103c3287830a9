//! A worker with a queue that changes its version between two items, and an operation of its own: `worker DIRECTORY`.
//!
//! Every file that is put into `DIRECTORY/queue` is worked at (it is made upper case) and lands in `DIRECTORY/done`.
//! `manager-fs job run worker digest --host HOST` counts what was done, one file a unit.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use agent_core::{Agent, AgentConfig, Gate, Halt, Kinds, OperationContext, Operations, Results};

struct Worker;

impl Operations for Worker {} // nothing of what every agent means the same by, and no state in memory

/// What `--arg` may say.
#[derive(serde::Deserialize)]
struct Digest {
    /// Only files whose names begin like this.
    only: Option<String>,
    /// Between two files, so that others get their turn at the disk.
    #[serde(default)]
    pause_ms: u64,
}

fn digest(done: &Path, digest: &Digest, context: &OperationContext) -> Result<Results, Halt> {
    let wanted = |name: &str| digest.only.as_ref().is_none_or(|only| name.starts_with(only.as_str()));
    let files: Vec<PathBuf> = listed(done)?.into_iter().filter(|path| wanted(&name(path))).collect();
    // Where an earlier call stopped, perhaps under another version: files and bytes.
    let resumed =
        context.resume().and_then(|state| state.try_into().ok()).map(u64::from_le_bytes).unwrap_or_default();
    let (first, mut bytes) = (resumed >> 40, resumed & ((1 << 40) - 1));
    for (number, path) in (1..).zip(&files).skip(first.try_into()?) {
        context.go_on()?; // ends here for a cancel, or for the next version to go on
        bytes += u64::try_from(fs::read(path)?.len())?;
        thread::sleep(Duration::from_millis(digest.pause_ms));
        context.checkpoint(&(number << 40 | bytes).to_le_bytes())?;
        context.units(number.try_into()?, files.len().try_into()?, &name(path));
    }
    Ok(Results::new().with("files", files.len()).with("bytes", bytes))
}

fn work(directory: &Path, gate: &Gate) -> std::io::Result<()> {
    loop {
        for path in listed(&directory.join("queue"))? {
            let _pass = gate.enter(); // waits while a change-over is under way, which waits for this item
            let made = fs::read_to_string(&path)?.to_uppercase();
            fs::write(directory.join("done").join(name(&path)), made)?;
            fs::remove_file(path)?;
        }
        thread::sleep(Duration::from_millis(200));
    }
}

fn listed(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths =
        fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
    paths.sort();
    Ok(paths)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = AgentConfig::from_env()?;
    let directory = PathBuf::from(std::env::args().nth(1).ok_or("usage: worker DIRECTORY")?);
    for part in ["queue", "done"] {
        fs::create_dir_all(directory.join(part))?;
    }
    let (gate, done) = (Gate::new()?, directory.join("done"));
    let kinds = Kinds::new().on("digest", move |wanted: Digest, context| digest(&done, &wanted, context));
    let agent = Agent::start(config.gate(gate.clone()).kinds(kinds), Worker)?;
    thread::spawn(move || work(&directory, &gate).unwrap_or_else(|e| eprintln!("worker: {e}")));
    agent.wait();
    Ok(())
}
