//! `store …`: the manager's own upkeep.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use serde_json::json;

use super::client::{ask, is_served, unexpected};
use super::out::{self, note, say};
use super::progress::{Progress, ProgressLine};
use super::units::{bytes, count, duration};
use super::{Done, Here, Json};
use crate::manager::admin::{AdminReply, Long};
use crate::manager::monitor::{Monitor, Task};
use crate::manager::upkeep::{self, BackedUp, Restored};
use crate::sync::lock;

#[derive(Debug, Subcommand)]
pub(super) enum StoreCommand {
    /// Copy all that the manager knows into one file, while it serves or while it does not run
    Backup {
        /// The file, which is made; it holds the manager's keys, and only its owner may read it
        file: PathBuf,
        /// With the packs of all generations, instead of their names alone
        #[arg(long)]
        packs: bool,
        #[command(flatten)]
        output: Json,
    },
    /// Put a backup back into a directory that is empty, missing, or holds packs alone: --store names it
    Restore {
        /// The backup
        file: PathBuf,
        #[command(flatten)]
        output: Json,
    },
}

pub(super) fn run(command: &StoreCommand, here: &Here) -> anyhow::Result<Done> {
    match command {
        StoreCommand::Backup { file, packs, output } => backup(file, *packs, *output, here),
        StoreCommand::Restore { file, output } => restore(file, *output, here),
    }
}

fn backup(file: &std::path::Path, packs: bool, output: Json, here: &Here) -> anyhow::Result<Done> {
    let file = std::path::absolute(file)?;
    let made = if is_served(here) {
        let order = upkeep::Order { file: file.as_os_str().as_bytes().to_vec(), packs };
        let mut line = ProgressLine::new();
        let reply = ask(here, &Long::Backup(order), "there is no backup", |event| line.show(&event));
        line.clear();
        let AdminReply::BackedUp(made) = reply? else { return unexpected() };
        made
    } else {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let line = Arc::new(Shown::default());
        let made = runtime.block_on(upkeep::backup_of_idle(
            here.dirs.store.clone(),
            file.clone(),
            packs,
            Arc::clone(&line) as _,
        ));
        line.clear();
        made?
    };
    if output.json {
        let mut document = serde_json::to_value(&made)?;
        document["file"] = json!(file);
        out::json(&document);
    } else {
        tell_made(&made);
    }
    Ok(if made.missing == 0 { Done::Clean } else { Done::WithProblems })
}

fn tell_made(made: &BackedUp) {
    let records: usize = made.records.values().sum();
    say!(
        "{}: {}, {}, {}",
        bytes(made.bytes),
        count(records as u64, "record"),
        count(made.manifests, "manifest"),
        count(made.packs, if made.packs_included { "pack" } else { "name of a pack" })
    );
    note!("it holds the manager's keys ({}): whoever can read it is this manager", made.keys.join(", "));
    if !made.packs_included {
        note!(
            "{} of packs are not in it: copy the store's directory packs/ beside it, or back up with --packs",
            bytes(made.pack_bytes)
        );
    }
    if made.missing > 0 {
        note!(
            "{} that generations need are not in the store, nor in the backup: `manager-fs verify` names them",
            count(made.missing, "chunk or manifest")
        );
    }
}

fn restore(file: &std::path::Path, output: Json, here: &Here) -> anyhow::Result<Done> {
    let line = Shown::default();
    let restored = upkeep::restore(file, &here.dirs.store, &line);
    line.clear();
    let restored = restored?;
    if output.json {
        out::json(&serde_json::to_value(&restored)?);
    } else {
        for (kind, count) in &restored.records {
            say!("{kind}: {count}");
        }
        tell_restored(&restored, here);
    }
    let whole = restored.absent_packs.is_empty() && restored.incomplete.is_empty();
    Ok(if whole { Done::Clean } else { Done::WithProblems })
}

fn tell_restored(restored: &Restored, here: &Here) {
    let age = SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_millis(restored.made));
    note!(
        "the backup is {} old: what was decided since is not in it, such as hosts that were enrolled or revoked",
        duration(Duration::from_secs(age.unwrap_or_default().as_secs()))
    );
    if !restored.absent_packs.is_empty() {
        note!(
            "{} not there yet: copy the directory packs/ into {} before `manager-fs serve`",
            count(restored.absent_packs.len() as u64, "pack that it names is"),
            here.dirs.store.display()
        );
    }
    for name in &restored.incomplete {
        note!("{name} lacks bytes: `manager-fs verify --repair` gets them from hosts, or publish its files again");
    }
    note!("the manager that this is a copy of must not be started again");
}

/// Shows how far work in this process is.
struct Shown(Mutex<ProgressLine>);

impl Default for Shown {
    fn default() -> Self {
        Self(Mutex::new(ProgressLine::new()))
    }
}

impl Shown {
    fn clear(&self) {
        lock(&self.0).clear();
    }
}

impl Monitor for Shown {
    fn progress(&self, _task: Task, done: u64, total: u64) {
        lock(&self.0).update(Progress { task: "copying", done, total, bytes: true });
    }
}
