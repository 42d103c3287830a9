//! The steps of the demo, top to bottom. Each runs commands, checks what came of them, and notes it in the timeline.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::machine::Machine;
use super::material;
use super::timeline::{Timeline, megabytes};

const PRODUCT: &str = "data-agent";
const HOST: &str = "demo-host";
/// Directories of the backup: each is one unit, so that a backup has boundaries at which it can be carried over.
const PARTS: usize = 4;

/// The whole acceptance sequence.
pub(super) async fn all(machine: &mut Machine, timeline: &mut Timeline, agent: &Path, data_bytes: u64) -> Result<()> {
    manager_and_host(machine, timeline).await?;
    publish_all(machine, timeline, agent).await?;
    let sources = prepare_data(machine, timeline, data_bytes)?;
    launch_first(machine, timeline).await?;
    upgrade_under_load(machine, timeline, &sources).await?;
    restore_and_compare(machine, timeline, &sources).await?;
    downgrade(machine, timeline).await?;
    bad_version(machine, timeline, &sources).await
}

async fn manager_and_host(machine: &mut Machine, timeline: &mut Timeline) -> Result<()> {
    let since = Instant::now();
    machine.start("serve", &["serve", "--listen", "127.0.0.1:0"]).await?;
    let address = std::fs::read_to_string(machine.path("store/address")).context("reading the manager's address")?;
    timeline.done(since, "manager started with an empty store", format!("listens on {}", address.trim()), None);

    let since = Instant::now();
    let token = machine.run(&["token", HOST]).await?;
    machine.run(&["enroll", "--manager", address.trim(), "--token", token.text.trim()]).await?;
    let mountpoint = machine.path("mnt");
    std::fs::create_dir_all(&mountpoint)?;
    machine.start("mount", &["mount", &mountpoint.to_string_lossy()]).await?;
    let detail = format!("as {HOST}; the view of its generations is at {}", mountpoint.display());
    timeline.done(since, "this machine enrolled as a host, mounted", detail, None);
    Ok(())
}

async fn publish_all(machine: &Machine, timeline: &mut Timeline, agent: &Path) -> Result<()> {
    for version in ["1.0", "2.0", "3.0-bad"] {
        let since = Instant::now();
        let tree = machine.path("received").join(version);
        if version == "3.0-bad" {
            material::crashing_tree(&tree)?;
        } else {
            material::agent_tree(&tree, agent, version)?;
        }
        let published =
            machine.run(&["publish", PRODUCT, version, &tree.to_string_lossy(), "--json"]).await?.json()?;
        let id = published["tree_id"].as_str().context("publish --json has no tree_id")?.to_owned();
        let title = match version {
            "1.0" => "version 1 published",
            "2.0" => "version 2 published",
            _ => "a version that crashes published",
        };
        timeline.done(since, title, format!("{PRODUCT}@{version} is tree {}", &id[..12]), None);
    }
    Ok(())
}

fn prepare_data(machine: &Machine, timeline: &mut Timeline, data_bytes: u64) -> Result<Vec<String>> {
    let since = Instant::now();
    let (dirs, bytes) = material::real_directory(&machine.path("data"), PARTS, data_bytes)?;
    let detail = format!("{} of this machine's own software in {PARTS} directories", megabytes(bytes));
    timeline.done(since, "a real directory prepared", detail, None);
    Ok(dirs.iter().map(|dir| dir.to_string_lossy().into_owned()).collect())
}

async fn launch_first(machine: &mut Machine, timeline: &mut Timeline) -> Result<()> {
    let since = Instant::now();
    let before = fetched_bytes(machine).await?;
    machine.run(&["export", &format!("{PRODUCT}@1.0"), "--to", HOST]).await?;
    machine.start("launch", &["launch", PRODUCT]).await?;
    let agent = expect_version(machine, "1.0").await?;
    let detail = format!("process {} runs straight from the mount; nothing was installed", agent["pid"]);
    let fetched = fetched_bytes(machine).await? - before;
    timeline.done(since, "version 1 launched on an empty host", detail, Some(fetched));
    Ok(())
}

async fn upgrade_under_load(machine: &Machine, timeline: &mut Timeline, sources: &[String]) -> Result<()> {
    let pid = expect_version(machine, "1.0").await?["pid"].clone();
    let since = Instant::now();
    let repository = machine.path("repository").to_string_lossy().into_owned();
    let mut args = vec!["job", "backup", "--host", HOST, "--repository", &repository, "--detach"];
    args.extend(sources.iter().map(String::as_str));
    let job = machine.run(&args).await?.text.trim().to_owned();
    timeline.done(since, "backup started under version 1", format!("job {job}, {} units", sources.len()), None);

    let since = Instant::now();
    let before = fetched_bytes(machine).await?;
    machine.run(&["export", &format!("{PRODUCT}@2.0"), "--to", HOST]).await?;
    let ordered_unix_ms = unix_ms();
    // Short, so that the backup crosses over also on a machine that is fast.
    let steps = upgrade(machine, "2.0", &["--drain-deadline", "300ms"]).await?;
    let after = expect_version(machine, "2.0").await?;
    ensure!(after["pid"] == pid, "the process id changed from {pid} to {}", after["pid"]);
    let fetched = fetched_bytes(machine).await? - before;
    timeline.done(since, "upgraded to version 2 while it ran", format!("same process {pid}\n{steps}"), Some(fetched));

    let since = Instant::now();
    let shown = machine.run(&["job", "wait", &job, "--json"]).await?.last_json_line()?;
    let versions = shown["versions"].as_array().cloned().unwrap_or_default();
    ensure!(shown["state"] == "done", "the backup that ran across the upgrade ended as {shown}");
    let versions: Vec<&str> = versions.iter().filter_map(|version| version.as_str()).collect();
    let detail = if versions.contains(&"2.0") {
        format!("versions that took part: {}", versions.join(", "))
    } else {
        // Within the deadline of its drain version 1 finishes what it has; that is as good, if it was under way then.
        let ended = shown["ended_unix_ms"].as_u64().unwrap_or(0);
        ensure!(
            ended >= ordered_unix_ms,
            "the backup ended before the upgrade began: give more --data-bytes ({shown})"
        );
        "version 1.0 finished it while it drained".to_owned()
    };
    timeline.done(since, "that backup finished", detail, None);
    Ok(())
}

/// Now, as the documents of jobs say it.
fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

async fn restore_and_compare(machine: &Machine, timeline: &mut Timeline, sources: &[String]) -> Result<()> {
    let since = Instant::now();
    let detail = backup(machine, &sources[0]).await?;
    timeline.done(since, "backed up again under version 2", detail, None);

    let since = Instant::now();
    let repository = machine.path("repository").to_string_lossy().into_owned();
    let target = machine.path("restored");
    let target_text = target.to_string_lossy().into_owned();
    machine
        .run(&[
            "job",
            "restore",
            "--host",
            HOST,
            "--repository",
            &repository,
            "--snapshot",
            "latest",
            "--target",
            &target_text,
        ])
        .await?;
    // A snapshot keeps absolute paths, so the directory lies below the target under its own path or directly in it.
    let source = Path::new(&sources[0]);
    let nested = target.join(source.strip_prefix("/").unwrap_or(source));
    let restored = if nested.is_dir() { nested } else { target };
    let files = material::compare(source, &restored)?;
    timeline.done(since, "restored and compared", format!("{files} files are equal to the originals"), None);
    Ok(())
}

async fn downgrade(machine: &Machine, timeline: &mut Timeline) -> Result<()> {
    let since = Instant::now();
    let before = fetched_bytes(machine).await?;
    let steps = upgrade(machine, "1.0", &[]).await?;
    expect_version(machine, "1.0").await?;
    let fetched = fetched_bytes(machine).await? - before;
    timeline.done(since, "downgraded to version 1", steps, Some(fetched));
    Ok(())
}

async fn bad_version(machine: &Machine, timeline: &mut Timeline, sources: &[String]) -> Result<()> {
    let since = Instant::now();
    let bad = format!("{PRODUCT}@3.0-bad");
    machine.run(&["export", &bad, "--to", HOST]).await?;
    let (code, text, errors) = machine.run_any(&["upgrade", PRODUCT, &bad, "--to", HOST, "--json"]).await?;
    ensure!(code.is_some_and(|code| code != 0), "a version that crashes was accepted:\n{errors}{text}");
    ensure!(text.contains("cannot open my configuration"), "the evidence has no stderr of the bad version:\n{text}");
    expect_version(machine, "1.0").await?;
    let detail = "exit status and last stderr are on the manager; version 1 serves".to_owned();
    timeline.done(since, "a crashing version returned by itself", detail, None);

    let since = Instant::now();
    let detail = backup(machine, &sources[1]).await?;
    timeline.done(since, "and it goes on taking jobs", detail, None);
    Ok(())
}

/// Runs one backup to its end and says what it did.
async fn backup(machine: &Machine, source: &str) -> Result<String> {
    let repository = machine.path("repository").to_string_lossy().into_owned();
    let args = ["job", "backup", "--host", HOST, "--repository", &repository, "--json", source];
    let done = machine.run(&args).await?.last_json_line()?;
    ensure!(done["state"] == "done", "the backup ended as {done}");
    Ok(format!("snapshot {}", done["snapshots"][0].as_str().unwrap_or("?").get(..8).unwrap_or("?")))
}

/// Changes over and returns the steps with their durations, a line each.
async fn upgrade(machine: &Machine, version: &str, more: &[&str]) -> Result<String> {
    let generation = format!("{PRODUCT}@{version}");
    let mut args = vec!["upgrade", PRODUCT, &generation, "--to", HOST, "--json"];
    args.extend(more);
    let output = machine.run(&args).await?;
    let mut lines = Vec::new();
    for line in output.text.lines() {
        let event: Value = serde_json::from_str(line).with_context(|| format!("not a JSON line: {line}"))?;
        if let (Some(step), Some(us)) = (event["step"].as_str(), event["duration_us"].as_u64()) {
            lines.push(format!("{step:<16} {:>9.1} ms  {}", us as f64 / 1e3, event["detail"].as_str().unwrap_or("")));
        }
    }
    Ok(lines.join("\n"))
}

/// How long the manager may take to hear what runs on the host.
const HEARSAY_DEADLINE: Duration = Duration::from_secs(20);

/// What `agents` says of the demo's agent once it says that this version serves. The host reports as it happens, so the
/// manager may know a moment later than the host.
async fn expect_version(machine: &Machine, version: &str) -> Result<Value> {
    let since = Instant::now();
    loop {
        let agents = machine.run(&["agents", "--json"]).await?.json()?;
        let agent =
            agents["agents"].as_array().and_then(|list| list.iter().find(|agent| agent["product"] == PRODUCT));
        match agent {
            Some(agent) if agent["version"] == version && agent["state"] == "serving" => return Ok(agent.clone()),
            _ if since.elapsed() < HEARSAY_DEADLINE => tokio::time::sleep(Duration::from_millis(50)).await,
            Some(agent) => bail!("version {version} should be serving, but: {agent}"),
            None => bail!("agents --json does not list {PRODUCT}: {agents}"),
        }
    }
}

/// Bytes that the mount daemon has fetched from the manager so far.
async fn fetched_bytes(machine: &Machine) -> Result<u64> {
    let status = machine.run(&["status", "--json"]).await?.json()?;
    status["fetched_bytes"].as_u64().with_context(|| format!("status --json has no fetched_bytes: {status}"))
}
