//! `rollout …`: a new version for many hosts, by a plan.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Subcommand;
use proto::HostName;
use proto::number::RolloutId;
use serde_json::{Value, json};

use super::client::{ask, ask_once, unexpected};
use super::out::{self, note, say};
use super::units::{ago, count, moment};
use super::{Done, Here, Json};
use crate::manager::admin::{AdminEvent, AdminReply, Long, Quick};
use crate::manager::documents::{self, RolloutDocument, RolloutsDocument};
use crate::manager::rollout::machine::vocabulary::{Counts, Phase, State, Wish};
use crate::manager::rollout::{ForceOrder, RingView, RolloutView, counts_words, state_words, words};

#[derive(Debug, Subcommand)]
pub(super) enum RolloutCommand {
    /// Check a plan and keep it under a number; nothing is ordered yet
    Plan {
        /// The plan, a TOML file (docs/rollouts.md)
        file: PathBuf,
        /// Only show what it means now; keep nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        output: Json,
    },
    /// Begin
    Start {
        #[command(flatten)]
        which: Which,
        /// Follow it until it is over or halts
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        output: Json,
    },
    /// Show how far it is, and why hosts are not as ordered
    Status {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        output: Json,
    },
    /// Follow it until it is over or halts: exit code 3 unless it is done
    Watch {
        #[command(flatten)]
        which: Which,
        /// Print one JSON line whenever it changes, and a final one
        #[arg(long)]
        json: bool,
    },
    /// Order nothing more for now; what was ordered goes on
    Pause {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        output: Json,
    },
    /// Go on; of one that has halted, what has failed until now is accepted
    Resume {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        output: Json,
    },
    /// Give it up; what has changed over stays
    Abort {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        output: Json,
    },
    /// Take it back, newest ring first
    Rollback {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        output: Json,
    },
    /// Order a host now: before its turn, outside of its window, or once more where it has failed
    Force {
        /// The host
        host: HostName,
        /// Why, for whoever reads it later in the history
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Of which rollout [default: the newest that is not over]
        #[arg(long, value_name = "ROLLOUT")]
        of: Option<RolloutId>,
        #[command(flatten)]
        output: Json,
    },
    /// Every rollout, or what happened in one
    History {
        /// Its number
        rollout: Option<RolloutId>,
        #[command(flatten)]
        output: Json,
    },
}

/// Which rollout is meant.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// Its number [default: the newest that is not over]
    rollout: Option<RolloutId>,
}

pub(super) fn run(command: &RolloutCommand, here: &Here) -> anyhow::Result<Done> {
    match command {
        RolloutCommand::Plan { file, dry_run, output } => plan(file, *dry_run, *output, here),
        RolloutCommand::Start { which, watch, output } => {
            let view = one(&Quick::RolloutWish(which.rollout, Wish::Start), here)?;
            if *watch { follow(view.id, output.json, here) } else { told(&view, *output) }
        }
        RolloutCommand::Status { which, output } => {
            let view = one(&Quick::Rollout(which.rollout), here)?;
            if output.json {
                out::json(&json_of(&view))
            } else {
                show(&view)
            }
            Ok(exit(&view))
        }
        RolloutCommand::Watch { which, json } => {
            let view = one(&Quick::Rollout(which.rollout), here)?;
            follow(view.id, *json, here)
        }
        RolloutCommand::Pause { which, output } => wish(which, Wish::Pause, *output, here),
        RolloutCommand::Resume { which, output } => wish(which, Wish::Resume, *output, here),
        RolloutCommand::Abort { which, output } => wish(which, Wish::Abort, *output, here),
        RolloutCommand::Rollback { which, output } => wish(which, Wish::Rollback, *output, here),
        RolloutCommand::Force { host, reason, of, output } => {
            let order = ForceOrder { rollout: *of, host: host.clone(), reason: reason.clone() };
            told(&one(&Quick::RolloutForce(order), here)?, *output)
        }
        RolloutCommand::History { rollout, output } => history(*rollout, *output, here),
    }
}

fn plan(file: &Path, dry_run: bool, output: Json, here: &Here) -> anyhow::Result<Done> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let view = one(&Quick::RolloutPlan { text, keep: !dry_run }, here)?;
    if output.json {
        out::json(&json_of(&view));
        return Ok(Done::Clean);
    }
    for ring in &view.rings {
        let before = ring.before.as_ref().map_or_else(String::new, |version| format!("; most run {version} now"));
        let hosts = ring.hosts.total();
        let canaries = count(u64::from(ring.canaries), "canary").replace("canarys", "canaries");
        let away = ring.hosts.away;
        note!(
            "ring {}: {}, {away} away, {canaries}, {} at once{before}",
            ring.name,
            count(u64::from(hosts), "host"),
            ring.in_flight
        );
    }
    if dry_run {
        note!("nothing was kept");
    } else {
        say!("{}", view.id);
        note!("planned; `manager-fs rollout start {}` begins", view.id);
    }
    Ok(Done::Clean)
}

fn wish(which: &Which, wish: Wish, output: Json, here: &Here) -> anyhow::Result<Done> {
    told(&one(&Quick::RolloutWish(which.rollout, wish), here)?, output)
}

/// What was wanted is done, whatever the rollout does next.
pub(super) fn told(view: &RolloutView, output: Json) -> anyhow::Result<Done> {
    if output.json {
        out::json(&json_of(view));
    } else {
        say!("{}", title(view));
    }
    Ok(Done::Clean)
}

pub(super) fn one(request: &Quick, here: &Here) -> anyhow::Result<RolloutView> {
    match ask_once(here, request)? {
        AdminReply::Rollout(view) => Ok(*view),
        _ => unexpected(),
    }
}

/// Follows a rollout until it no longer goes on by itself.
pub(super) fn follow(id: RolloutId, json: bool, here: &Here) -> anyhow::Result<Done> {
    let mut picture = Picture::new();
    let goes_on = format!("the rollout goes on; `manager-fs rollout status {id}` shows it");
    let reply = ask(here, &Long::RolloutWatch(id), &goes_on, |event| {
        if let AdminEvent::Rollout(view) = event {
            if json { out::json_line(&json_of(&view)) } else { picture.draw(&view) }
        }
    })?;
    let AdminReply::Rollout(view) = reply else { return unexpected() };
    if json {
        out::json_line(&json_of(&view));
    } else {
        picture.draw(&view);
        problems(&view);
        totals(&view);
    }
    Ok(exit(&view))
}

/// Exit code 3 of one that did not go as it was planned.
fn exit(view: &RolloutView) -> Done {
    match view.state {
        State::Halted | State::RollingBack | State::RolledBack => Done::WithProblems,
        State::Planned | State::Running | State::Paused | State::Done | State::Aborted => Done::Clean,
    }
}

/// The rings, a line each: on a terminal in their place, elsewhere whenever one has changed.
struct Picture {
    terminal: bool,
    last: Vec<String>,
}

impl Picture {
    fn new() -> Self {
        Self { terminal: std::io::stdout().is_terminal(), last: Vec::new() }
    }

    fn draw(&mut self, view: &RolloutView) {
        let mut lines = vec![title(view)];
        lines.extend(view.rings.iter().map(ring_line));
        if self.terminal && !self.last.is_empty() {
            // Up to where the last picture began.
            let _ = std::io::stdout().write_all(format!("\x1b[{}A\x1b[J", self.last.len()).as_bytes());
            lines.iter().for_each(|line| say!("{line}"));
        } else {
            let new = lines.iter().enumerate().filter(|(at, line)| self.last.get(*at) != Some(*line));
            new.for_each(|(_, line)| say!("{line}"));
        }
        self.last = lines;
    }
}

fn title(view: &RolloutView) -> String {
    let halted = view.halted.as_ref().filter(|_| !matches!(view.state, State::Running | State::Done));
    let why = halted.map(|why| format!(": {why}")).unwrap_or_default();
    format!("rollout {}  {}@{}  {}{why}", view.id, view.product, view.version, state_words(view.state))
}

fn ring_line(ring: &RingView) -> String {
    let closed = ring.window.as_ref().filter(|_| !matches!(ring.phase, Phase::Waiting | Phase::Done));
    let opens = closed.and_then(|window| Some(format!(", told from {} on", moment(window.opens?))));
    format!("{:<16}{:<21}{}{}", ring.name, words(ring.phase), counts_words(&ring.hosts), opens.unwrap_or_default())
}

fn show(view: &RolloutView) {
    say!("{}", title(view));
    view.rings.iter().map(ring_line).for_each(|line| say!("{line}"));
    if view.jobs.ended() > 0 {
        say!("operations of the new version: {} done, {} failed", view.jobs.done, view.jobs.failed);
    }
    if let Some(next) = view.next {
        say!("due next: {}", moment(next));
    }
    problems(view);
}

fn problems(view: &RolloutView) {
    for problem in &view.problems {
        let names: Vec<String> = problem.hosts.iter().map(ToString::to_string).collect();
        let more = if usize::try_from(problem.count).is_ok_and(|all| all > names.len()) { ", …" } else { "" };
        let hosts = count(u64::from(problem.count), "host");
        say!("{} on {hosts} ({}{more}):", problem.state, names.join(", "));
        problem.reason.lines().for_each(|line| say!("    {line}"));
    }
}

fn totals(view: &RolloutView) {
    let sum = |of: fn(&Counts) -> u32| view.rings.iter().map(|ring| of(&ring.hosts)).sum::<u32>();
    let (good, all, away) = (sum(|of| of.good), sum(Counts::total), sum(|of| of.away));
    let later =
        if away > 0 && view.state == State::Done { "; those that are away get it when they come" } else { "" };
    note!(
        "{}: {good} of {} run {}@{}{later}",
        state_words(view.state),
        count(u64::from(all), "host"),
        view.product,
        view.version
    );
}

fn history(id: Option<RolloutId>, output: Json, here: &Here) -> anyhow::Result<Done> {
    if let Some(id) = id {
        let view = one(&Quick::Rollout(Some(id)), here)?;
        if output.json {
            out::json(&json!({ "rollouts": [json_of(&view)] }));
        } else {
            view.lines.iter().for_each(|(at, text)| say!("{}  {text}", moment(*at)));
        }
        return Ok(Done::Clean);
    }
    let AdminReply::Rollouts(views) = ask_once(here, &Quick::Rollouts)? else { return unexpected() };
    if output.json {
        out::json(&documents::json(&RolloutsDocument::of(&views)));
    } else if views.is_empty() {
        note!("there is no rollout; `manager-fs rollout plan FILE` makes one");
    } else {
        let row = |view: &RolloutView| {
            let good: u32 = view.rings.iter().map(|ring| ring.hosts.good).sum();
            let all: u32 = view.rings.iter().map(|ring| ring.hosts.total()).sum();
            let to = format!("{}@{}", view.product, view.version);
            vec![
                view.id.to_string(),
                to,
                state_words(view.state).to_owned(),
                ago(view.since),
                format!("{good} of {all}"),
            ]
        };
        let rows: Vec<Vec<String>> = views.iter().map(row).collect();
        out::table(&["ROLLOUT", "TO", "STATE", "SINCE", "GOOD"], &rows);
    }
    Ok(Done::Clean)
}

fn json_of(view: &RolloutView) -> Value {
    documents::json(&RolloutDocument::from(view))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::rollout::ProblemGroup;
    use crate::manager::rollout::machine::vocabulary::Jobs;

    fn view(state: State, hosts: Counts) -> RolloutView {
        let ring = RingView {
            name: String::from("lab"),
            phase: Phase::CanarySoak,
            since: 1,
            canaries: 1,
            in_flight: 2,
            before: Some("1.0".parse().unwrap()),
            hosts,
            window: None,
        };
        RolloutView {
            id: RolloutId(7),
            product: "a".parse().unwrap(),
            version: "2".parse().unwrap(),
            state,
            since: 3,
            planned: 1,
            started: Some(2),
            halted: Some(String::from("ring lab: a canary failed")),
            next: None,
            rings: vec![ring],
            jobs: Jobs::default(),
            baseline: Jobs::default(),
            restarts: 0,
            problems: vec![ProblemGroup {
                state: String::from("failed"),
                reason: String::from("exit status 3"),
                count: 1,
                hosts: vec!["h1".parse().unwrap()],
            }],
            lines: vec![(3, String::from("halted"))],
        }
    }

    #[test]
    fn a_ring_is_one_line_and_says_only_what_there_is() {
        let hosts = Counts { good: 12, in_flight: 3, failed: 1, away: 2, ready: 22, ..Counts::default() };
        let view = view(State::Running, hosts);
        let line = "lab             canaries are watched 12 of 40 good, 3 in flight, 1 failed, 2 away";
        assert_eq!(ring_line(&view.rings[0]), line);
        assert_eq!(title(&view), "rollout 7  a@2  running", "an old halt is no news");
        let every = Counts { refused: 1, silent: 2, returning: 3, returned: 4, stuck: 5, ..Counts::default() };
        let text = "0 of 15 good, 1 refused, 2 silent, 3 going back, 4 back, 5 stuck";
        assert_eq!(counts_words(&every), text);
    }

    #[test]
    fn a_rollout_that_stopped_itself_is_exit_code_3_and_says_why() {
        let of = |state| exit(&view(state, Counts::default()));
        for state in [State::Halted, State::RollingBack, State::RolledBack] {
            assert_eq!(of(state), Done::WithProblems);
        }
        for state in [State::Planned, State::Running, State::Paused, State::Done, State::Aborted] {
            assert_eq!(of(state), Done::Clean);
        }
        let halted = title(&view(State::Halted, Counts::default()));
        assert_eq!(halted, "rollout 7  a@2  halted: ring lab: a canary failed");
    }

    #[test]
    fn the_document_has_every_count_and_its_sum() {
        let hosts = Counts { good: 1, failed: 2, ..Counts::default() };
        let document = json_of(&view(State::Halted, hosts));
        assert_eq!(document["rings"][0]["hosts"]["total"], 3);
        assert_eq!(document["rings"][0]["hosts"].as_object().map(serde_json::Map::len), Some(11));
        assert_eq!((&document["rollout"], &document["state"]), (&json!("7"), &json!("halted")));
        assert_eq!(document["problems"][0]["hosts"], json!(["h1"]));
        assert_eq!(document["history"][0], json!({ "at_unix_ms": 3, "text": "halted" }));
    }
}
