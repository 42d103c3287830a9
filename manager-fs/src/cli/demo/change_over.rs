//! The steps in which the running agent changes its version: there, back, and back by itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::width;
use serde_json::{Value, json};

use super::answers::{BAD, HOST, PRODUCT, expect_version, fetched_bytes, number, progress_of};
use super::machine::Machine;
use super::material;
use super::story::{Step, Story};
use crate::cli::units::{bytes, duration, ms};

/// The drain of the upgrade: short, so that the backup crosses over also on a machine that is fast.
const DRAIN: &str = "300ms";

/// What a change-over was, as its events tell.
struct Changed {
    /// Name, duration and detail of each step.
    steps: Vec<(String, Duration, String)>,
}

impl Changed {
    fn of(events: &[Value]) -> Self {
        let steps = events.iter().filter_map(|event| {
            let took = Duration::from_micros(event["duration_us"].as_u64()?);
            Some((event["step"].as_str()?.to_owned(), took, event["detail"].as_str().unwrap_or_default().to_owned()))
        });
        Self { steps: steps.collect() }
    }

    fn step(&self, name: &str) -> Option<&(String, Duration, String)> {
        self.steps.iter().find(|(step, _, _)| step == name)
    }

    /// From the last operation that the old version took part in to the first answer of the new one: the report of
    /// `started` says it, from the end of the drain.
    fn blackout(&self) -> Result<Duration> {
        let (_, _, detail) = self.step("started").context("the change-over reported no start")?;
        blackout_in(detail).with_context(|| format!("'{detail}' says nothing of the blackout"))
    }

    fn tell(&self, step: &mut Step) {
        let steps: Vec<Value> = self
            .steps
            .iter()
            .map(
                |(name, took, detail)| json!({ "step": name, "duration_us": width::micros(*took), "detail": detail }),
            )
            .collect();
        step.fact("change_over", steps);
        let told = self.steps.iter().map(|(name, took, _)| format!("{} {}", name.replace('_', " "), duration(*took)));
        step.fine(told.collect::<Vec<_>>().join(", "));
    }
}

/// `blackout 12.554 ms, from the end of the drain`
fn blackout_in(detail: &str) -> Option<Duration> {
    let ms: f64 = detail.strip_prefix("blackout ")?.split_once(" ms")?.0.parse().ok()?;
    Duration::try_from_secs_f64(ms / 1e3).ok()
}

/// The upgrade while a backup runs; then the end of that backup.
pub(super) async fn upgrade_under_load(machine: &Machine, story: &mut Story, sources: &[String]) -> Result<()> {
    let pid = expect_version(machine, "1.0").await?["pid"].clone();
    let mut step = story.step("start_backup", "Version 1 begins a backup of all of it");
    let repository = machine.path("repository").to_string_lossy().into_owned();
    let mut args = vec!["job", "backup", "--host", HOST, "--repository", &repository, "--detach"];
    args.extend(sources.iter().map(String::as_str));
    let job = machine.run(&args).await?.text.trim().to_owned();
    step.fact("job", job.as_str());
    story.done(step);

    let mut step = story.step("upgrade_to_2", "Upgrade to version 2 while it backs up");
    let before = fetched_bytes(machine).await?;
    machine.run(&["export", &format!("{PRODUCT}@2.0"), "--to", HOST]).await?;
    let ordered_unix_ms = unix_ms();
    let changed = upgrade(machine, story, "2.0", &["--drain-deadline", DRAIN]).await?;
    let after = expect_version(machine, "2.0").await?;
    ensure!(after["pid"] == pid, "the process id changed from {pid} to {}", after["pid"]);
    let (fetched, blackout) = (fetched_bytes(machine).await? - before, changed.blackout()?);
    step.fact("pid", pid.clone());
    step.fact("same_process", true);
    step.fact("blackout_us", width::micros(blackout));
    step.fact("fetched_bytes", fetched);
    let differing = story.fact_of("publish_2", "differing_bytes").unwrap_or(0);
    ensure!(fetched < differing, "{fetched} bytes were fetched for {differing} that differ: the delta was not used");
    step.main(format!("blackout {}, same process {pid}", duration(blackout)));
    step.main(format!("fetched {} for the {} that differ", bytes(fetched), bytes(differing)));
    changed.tell(&mut step);
    story.remember("upgrade", format!("blackout {}, same process", duration(blackout)));
    story.remember("", format!("fetched {} for {} of change", bytes(fetched), bytes(differing)));
    story.done(step);
    finish_backup(machine, story, &job, sources.len(), ordered_unix_ms).await
}

async fn finish_backup(machine: &Machine, story: &mut Story, job: &str, parts: usize, ordered: u64) -> Result<()> {
    let mut step = story.step("finish_backup", "The backup goes on to its end");
    let doing = story.doing();
    let args = ["job", "wait", job, "--json"];
    let shown = machine.follow(&args, |line| doing(&progress_of(line))).await?.last_json_line()?;
    ensure!(shown["state"] == "done", "the backup that ran across the upgrade ended as {shown}");
    let list = |name: &str| shown[name].as_array().cloned().unwrap_or_default();
    let snapshots = list("snapshots").len();
    ensure!(snapshots == parts, "the backup has {snapshots} snapshots of {parts} parts: {shown}");
    ensure!(list("problems").is_empty(), "the backup had problems: {shown}");
    let versions: Vec<String> =
        list("versions").iter().filter_map(|version| version.as_str().map(str::to_owned)).collect();
    let crossed = versions.iter().any(|version| version == "2.0");
    step.fact("versions", versions);
    step.fact("snapshots", snapshots);
    step.fact("crossed_over", crossed);
    step.main(format!("{snapshots} of {parts} parts are in the repository, nothing was lost"));
    if crossed {
        step.fine("version 2 went on from the last checkpoint of version 1, in the same process");
        story.remember("backup", format!("begun by version 1, ended by version 2: {snapshots} of {parts} parts"));
    } else {
        // Within the deadline of its drain version 1 finishes what it has; that is as good, if it was under way then.
        let ended = number(&shown, "ended_unix_ms")?;
        ensure!(ended >= ordered, "the backup ended before the upgrade began: give more --data-bytes ({shown})");
        step.fine("version 1 finished it before it made way");
        story.remember("backup", format!("finished by version 1 before it made way: {snapshots} of {parts} parts"));
    }
    story.done(step);
    Ok(())
}

/// Back to version 1, which is still here.
pub(super) async fn downgrade(machine: &Machine, story: &mut Story) -> Result<()> {
    let mut step = story.step("downgrade_to_1", "Back to version 1, the same way");
    let before = fetched_bytes(machine).await?;
    let changed = upgrade(machine, story, "1.0", &[]).await?;
    expect_version(machine, "1.0").await?;
    let (fetched, blackout) = (fetched_bytes(machine).await? - before, changed.blackout()?);
    step.fact("fetched_bytes", fetched);
    step.fact("blackout_us", width::micros(blackout));
    step.main(format!("blackout {}, fetched {}", duration(blackout), bytes(fetched)));
    changed.tell(&mut step);
    story.remember("back again", format!("blackout {}, fetched {}", duration(blackout), bytes(fetched)));
    story.done(step);
    Ok(())
}

/// A version that crashes, and the return to the one before it.
pub(super) async fn fails_and_returns(machine: &Machine, story: &mut Story) -> Result<()> {
    let mut step = story.step("return_by_itself", "A version that crashes goes back by itself");
    let bad = format!("{PRODUCT}@{BAD}");
    machine.run(&["export", &bad, "--to", HOST]).await?;
    let (code, text, errors) = machine.run_any(&["upgrade", PRODUCT, &bad, "--to", HOST, "--json"]).await?;
    ensure!(code.is_some_and(|code| code != 0), "a version that crashes was accepted:\n{errors}{text}");
    ensure!(text.contains(material::CRASH), "the evidence has no stderr of the bad version:\n{text}");
    let events = events(&text)?;
    let at =
        |name: &str| events.iter().find(|event| event["step"] == name).and_then(|event| event["at_unix_ms"].as_u64());
    let swapped = at("swapped").context("the bad version was never attached")?;
    let returned = at("returned").context("nothing was reported of the return")?;
    expect_version(machine, "1.0").await?;
    // From the exec of the bad version, which itself takes a second to crash.
    let away = returned.saturating_sub(swapped);
    step.fact("away_ms", away);
    step.fact("evidence", material::CRASH);
    step.main(format!("version 1 was back after {}; the other ran for 1 s of it", ms(away)));
    step.fine(format!("the manager has its exit status and its last words: '{}'", material::CRASH));
    story.remember("bad version", format!("gone after {}, by itself; its last words are kept", ms(away)));
    story.done(step);
    Ok(())
}

/// Changes over to a version, and returns what was reported on the way.
async fn upgrade(machine: &Machine, story: &Story, version: &str, more: &[&str]) -> Result<Changed> {
    let generation = format!("{PRODUCT}@{version}");
    let mut args = vec!["upgrade", PRODUCT, &generation, "--to", HOST, "--json"];
    args.extend(more);
    let doing = story.doing();
    let output = machine.follow(&args, |line| {
        let event: Value = serde_json::from_str(line).unwrap_or_default();
        if let Some(step) = event["step"].as_str() {
            doing(what_follows(step));
        }
    });
    Ok(Changed::of(&events(&output.await?.text)?))
}

/// What goes on once a step has been reported.
fn what_follows(step: &str) -> &'static str {
    match step {
        "metadata_saved" => "fetching it",
        "staged" => "warming it",
        "warmed" => "finishing what runs",
        "drained" | "journaled" | "swapped" => "changing over",
        "started" => "it proves itself",
        _ => "",
    }
}

fn events(text: &str) -> Result<Vec<Value>> {
    text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not a JSON line: {line}"))).collect()
}

/// Now, as the documents of jobs say it.
fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, width::millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blackout_is_read_out_of_the_report() {
        let read = blackout_in("blackout 12.554 ms, from the end of the drain");
        assert_eq!(read, Some(Duration::from_micros(12_554)));
        assert_eq!(blackout_in("it took 3 ms"), None);
    }

    #[test]
    fn a_change_over_is_its_events_with_a_duration() {
        let events = [
            json!({ "event": "accepted", "host": "h" }),
            json!({ "event": "step", "step": "drained", "duration_us": 300_000, "detail": "nothing is under way" }),
            json!({ "event": "step", "step": "started", "duration_us": 9, "detail": "blackout 1.500 ms, from" }),
        ];
        let changed = Changed::of(&events);
        assert_eq!(changed.steps.len(), 2);
        assert_eq!(changed.blackout().unwrap(), Duration::from_micros(1_500));
        assert!(Changed::of(&events[..2]).blackout().is_err());
    }
}
