//! What the demo's commands answer, read out of their JSON, and the names that it uses for what it makes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::machine::Machine;
use crate::cli::units::bytes_of;

pub(super) const PRODUCT: &str = "data-agent";
pub(super) const HOST: &str = "demo-host";
pub(super) const BAD: &str = "3.0-bad";

/// What a line of `job … --json` says is going on, for the live line.
pub(super) fn progress_of(line: &str) -> String {
    let event: Value = serde_json::from_str(line).unwrap_or_default();
    if let Some(waiting) = event["waiting"].as_str() {
        return waiting.to_owned();
    }
    let progress = &event["progress"];
    let (units, done) = (progress["units"].as_u64().unwrap_or(0), progress["bytes_done"].as_u64().unwrap_or(0));
    if units == 0 {
        return String::new();
    }
    let unit = (progress["units_done"].as_u64().unwrap_or(0) + 1).min(units);
    match progress["bytes"].as_u64() {
        Some(all) if all > 0 => format!("part {unit} of {units}, {}", bytes_of(done, all)),
        _ => format!("part {unit} of {units}"),
    }
}

/// How long the manager may take to hear what runs on the host.
const HEARSAY_WITHIN: Duration = Duration::from_secs(20);

/// What `agents` says of the demo's agent once it says that this version serves. The host reports as it happens, so the
/// manager may know a moment later than the host.
pub(super) async fn expect_version(machine: &Machine, version: &str) -> Result<Value> {
    let since = Instant::now();
    loop {
        let agents = machine.run(&["agents", "--json"]).await?.json()?;
        let agent =
            agents["agents"].as_array().and_then(|list| list.iter().find(|agent| agent["product"] == PRODUCT));
        match agent {
            Some(agent) if agent["version"] == version && agent["state"] == "serving" => return Ok(agent.clone()),
            _ if since.elapsed() < HEARSAY_WITHIN => tokio::time::sleep(Duration::from_millis(50)).await,
            Some(agent) => bail!("version {version} should be serving, but: {agent}"),
            None => bail!("agents --json does not list {PRODUCT}: {agents}"),
        }
    }
}

/// Bytes that the mount daemon has fetched from the manager so far.
pub(super) async fn fetched_bytes(machine: &Machine) -> Result<u64> {
    number(&machine.run(&["status", "--json"]).await?.json()?, "fetched_bytes")
}

/// How much of a version is local, and how much there is of it.
pub(super) async fn local_bytes(machine: &Machine, version: &str) -> Result<(u64, u64)> {
    let status = machine.run(&["status", "--json"]).await?.json()?;
    let name = json!(format!("{PRODUCT}@{version}"));
    let generations = status["generations"].as_array().cloned().unwrap_or_default();
    let this = generations.into_iter().find(|generation| generation["name"] == name);
    let this = this.with_context(|| format!("status --json does not list {name}: {status}"))?;
    // A plain copy is whole as soon as it is there.
    let whole = number(&this, "object_bytes")?;
    Ok((this["local_bytes"].as_u64().unwrap_or(0), whole))
}

/// A number of a JSON document.
pub(super) fn number(document: &Value, name: &str) -> Result<u64> {
    document[name].as_u64().with_context(|| format!("there is no number {name} in {document}"))
}
