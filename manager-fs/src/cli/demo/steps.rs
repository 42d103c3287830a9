//! The steps of the demo, top to bottom. Each runs commands, checks what came of them, and tells it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::answers::{BAD, HOST, PRODUCT, expect_version, fetched_bytes, local_bytes, number, progress_of};
use super::change_over::{downgrade, fails_and_returns, upgrade_under_load};
use super::machine::Machine;
use super::material;
use super::story::Story;
use crate::cli::units::{bytes, bytes_of, count, duration};

/// Directories of the backup: each is one unit, so that a backup has boundaries at which it can be carried over.
const PARTS: usize = 4;

/// The whole acceptance sequence.
pub(super) async fn all(machine: &mut Machine, story: &mut Story, agent: &Path, data_bytes: u64) -> Result<()> {
    start_manager(machine, story).await?;
    enroll_host(machine, story).await?;
    publish_all(machine, story, agent).await?;
    let sources = prepare_data(machine, story, data_bytes).await?;
    launch_first(machine, story).await?;
    upgrade_under_load(machine, story, &sources).await?;
    let step = story.step("backup_under_2", "Version 2 backs up again");
    backup(machine, story, &sources[0], step).await?;
    restore_and_compare(machine, story, &sources[0]).await?;
    downgrade(machine, story).await?;
    fails_and_returns(machine, story).await?;
    let step = story.step("backup_after_return", "And the agent goes on working");
    backup(machine, story, &sources[1], step).await
}

async fn start_manager(machine: &mut Machine, story: &mut Story) -> Result<()> {
    let mut step = story.step("start_manager", "The manager starts, with an empty store");
    machine.start("serve", &["serve", "--listen", "127.0.0.1:0"]).await?;
    let address = address(machine)?;
    step.fact("address", address.as_str());
    step.fine(format!("listens on {address}"));
    story.done(step);
    Ok(())
}

fn address(machine: &Machine) -> Result<String> {
    let text = std::fs::read_to_string(machine.path("store/address")).context("reading the manager's address")?;
    Ok(text.trim().to_owned())
}

async fn enroll_host(machine: &mut Machine, story: &mut Story) -> Result<()> {
    let mut step = story.step("enroll_host", "This machine becomes one of its hosts");
    let token = machine.path("token");
    std::fs::write(&token, machine.run(&["token", HOST]).await?.text)?;
    let address = address(machine)?;
    machine.run(&["enroll", "--manager", &address, "--token-file", &token.to_string_lossy()]).await?;
    let mountpoint = machine.path("mnt");
    std::fs::create_dir_all(&mountpoint)?;
    machine.start("mount", &["mount", &mountpoint.to_string_lossy()]).await?;
    let status = machine.run(&["status", "--json"]).await?.json()?;
    ensure!(status["host"] == HOST, "the daemon says that this host is {}", status["host"]);
    let data_path = status["data_path"].as_str().unwrap_or("unknown").to_owned();
    step.fact("host", HOST);
    step.fact("data_path", data_path.as_str());
    step.fine(format!("trees are shown by {data_path}"));
    story.mounted(&data_path);
    story.done(step);
    Ok(())
}

async fn publish_all(machine: &Machine, story: &mut Story, agent: &Path) -> Result<()> {
    publish(machine, story, agent, "1.0").await?;
    publish(machine, story, agent, "2.0").await?;
    publish(machine, story, agent, BAD).await
}

async fn publish(machine: &Machine, story: &mut Story, agent: &Path, version: &'static str) -> Result<()> {
    let mut step = match version {
        "1.0" => story.step("publish_1", "Version 1 is published"),
        "2.0" => story.step("publish_2", "Version 2 is published"),
        _ => story.step("publish_bad", "A version that crashes is published"),
    };
    let tree = machine.path("received").join(version);
    let (dir, agent) = (tree.clone(), agent.to_owned());
    tokio::task::spawn_blocking(move || match version {
        BAD => material::crashing_tree(&dir),
        _ => material::agent_tree(&dir, &agent, version, version == "2.0"),
    })
    .await??;
    let published = machine.run(&["publish", PRODUCT, version, &tree.to_string_lossy(), "--json"]).await?.json()?;
    let id = published["tree_id"].as_str().context("publish --json has no tree_id")?;
    let (content, files) = (number(&published, "content_bytes")?, number(&published, "file_count")?);
    step.fact("tree_id", id);
    step.fact("content_bytes", content);
    step.fact("file_count", files);
    match version {
        "1.0" => step.main(format!("{} in {}", bytes(content), count(files, "file"))),
        "2.0" => {
            let generations = [format!("{PRODUCT}@1.0"), format!("{PRODUCT}@2.0")];
            let diff = machine.run(&["diff", &generations[0], &generations[1], "--json"]).await?.json()?;
            let differ = number(&diff, "new_chunk_bytes")?;
            ensure!(differ > 1_000_000, "version 2 differs in {differ} bytes only: {diff}");
            step.fact("differing_bytes", differ);
            step.main(format!("{} are other than in version 1", bytes_of(differ, content)));
        }
        _ => {}
    }
    story.done(step);
    Ok(())
}

/// A flag that is set when what holds it is dropped: work on other threads then ends early.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

async fn prepare_data(machine: &Machine, story: &mut Story, data_bytes: u64) -> Result<Vec<String>> {
    let mut step = story.step("prepare_data", "Real files are copied, to be backed up");
    let (dir, doing) = (machine.path("data"), story.doing());
    let stop = Stop(Arc::default());
    let flag = Arc::clone(&stop.0);
    let copied = tokio::task::spawn_blocking(move || {
        material::real_directory(&dir, PARTS, data_bytes, &flag, |done| doing(&bytes_of(done, data_bytes)))
    });
    let (dirs, files, total) = copied.await??;
    step.fact("bytes", total);
    step.fact("files", files);
    step.fact("parts", PARTS);
    step.main(format!("{} in {}, {PARTS} parts", bytes(total), count(files, "file")));
    step.fine("of this machine's own software");
    story.done(step);
    Ok(dirs.iter().map(|dir| dir.to_string_lossy().into_owned()).collect())
}

async fn launch_first(machine: &mut Machine, story: &mut Story) -> Result<()> {
    let mut step = story.step("launch_1", "Version 1 starts, and nothing is installed");
    let before = fetched_bytes(machine).await?;
    machine.run(&["export", &format!("{PRODUCT}@1.0"), "--to", HOST]).await?;
    machine.start("launch", &["launch", PRODUCT]).await?;
    let agent = expect_version(machine, "1.0").await?;
    let fetched = fetched_bytes(machine).await? - before;
    let (_, whole) = local_bytes(machine, "1.0").await?;
    ensure!(fetched > 0, "version 1 runs on an empty host, and nothing was fetched");
    step.fact("pid", agent["pid"].clone());
    step.fact("fetched_bytes", fetched);
    step.fact("object_bytes", whole);
    step.main(format!("fetched {} before it served", bytes_of(fetched, whole)));
    let from = if story.is_mounted() { "straight from the mount" } else { "from a copy of the tree" };
    step.fine(format!("on the network, compressed; process {} runs {from}", agent["pid"]));
    story.remember("first start", format!("fetched {}; nothing was installed", bytes_of(fetched, whole)));
    story.done(step);
    settle(machine, story).await
}

/// How long the rest may take to arrive.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

/// Waits until version 1 is local, so that what is fetched later was fetched for version 2.
async fn settle(machine: &Machine, story: &mut Story) -> Result<()> {
    let mut step = story.step("settle_1", "The rest arrives in the background");
    let (since, doing) = (Instant::now(), story.doing());
    let whole = loop {
        let (local, whole) = local_bytes(machine, "1.0").await?;
        if local == whole {
            break whole;
        }
        let amount = bytes_of(local, whole);
        doing(&amount);
        let late = since.elapsed() > SETTLED_WITHIN;
        ensure!(!late, "{amount} are local after {}: the background fetch stands still", duration(SETTLED_WITHIN));
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    step.fact("local_bytes", whole);
    step.main(format!("{} are local, verified: from here on it needs no manager", bytes(whole)));
    story.done(step);
    Ok(())
}

async fn restore_and_compare(machine: &Machine, story: &mut Story, source: &str) -> Result<()> {
    let mut step = story.step("restore", "A backup is restored, and compared");
    let repository = machine.path("repository").to_string_lossy().into_owned();
    let target = machine.path("restored");
    let target_text = target.to_string_lossy().into_owned();
    let mut args = vec!["job", "restore", "--host", HOST, "--repository", &repository];
    // Several directories were backed up, each with a latest snapshot of its own.
    args.extend(["--snapshot", "latest", "--source", source, "--target", &target_text, "--json"]);
    let doing = story.doing();
    machine.follow(&args, |line| doing(&progress_of(line))).await?;
    // A snapshot keeps absolute paths, so the directory lies below the target under its own path or directly in it.
    let source = Path::new(source).to_owned();
    let nested = target.join(source.strip_prefix("/").unwrap_or(&source));
    let restored = if nested.is_dir() { nested } else { target };
    doing("comparing");
    let stop = Stop(Arc::default());
    let flag = Arc::clone(&stop.0);
    let files = tokio::task::spawn_blocking(move || material::compare(&source, &restored, &flag)).await??;
    step.fact("equal_files", files);
    step.main(format!("{}, each byte for byte as it was", count(files, "file")));
    story.done(step);
    Ok(())
}

/// Runs one backup to its end, and checks it.
async fn backup(machine: &Machine, story: &mut Story, source: &str, mut step: super::story::Step) -> Result<()> {
    let repository = machine.path("repository").to_string_lossy().into_owned();
    let args = ["job", "backup", "--host", HOST, "--repository", &repository, "--json", source];
    let doing = story.doing();
    let done = machine.follow(&args, |line| doing(&progress_of(line))).await?.last_json_line()?;
    ensure!(done["state"] == "done", "the backup ended as {done}");
    let snapshot = done["snapshots"][0].as_str().context("the backup has no snapshot")?;
    let (files, size) = (number(&done, "files")?, number(&done, "bytes")?);
    step.fact("snapshot", snapshot);
    step.fact("files", files);
    step.fact("bytes", size);
    step.main(format!("{} in {}", bytes(size), count(files, "file")));
    step.fine(format!("snapshot {}", snapshot.get(..8).unwrap_or(snapshot)));
    story.done(step);
    Ok(())
}
