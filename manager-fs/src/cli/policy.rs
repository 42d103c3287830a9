//! `policy …`: what is backed up where, when, and kept how long.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use proto::name::Target;
use proto::{HostName, PolicyName};
use serde_json::Value;

use super::client::{ask_once, unexpected};
use super::out::{self, note, say};
use super::units::{byte_count, count, moment};
use super::{Done, Here, Json};
use crate::manager::admin::{AdminReply, Quick};
use crate::manager::control::jobs::JobState;
use crate::manager::documents::{self, PoliciesDocument, PolicyDocument, PolicyRanDocument};
use crate::manager::policy::machine::vocabulary::Task;
use crate::manager::policy::{
    BackupForm, KeepForm, LaneView, LimitsForm, PolicyAnswer, PolicyAsk, PolicyForm, PolicyView, RunFact, TaskView,
    Typed,
};

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Make a policy out of flags
    Create {
        /// What it is called; its snapshots get the tag policy:NAME
        policy: PolicyName,
        #[command(flatten)]
        terms: Box<Terms>,
        /// Only say what it would be
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        output: Json,
    },
    /// Make a policy what a file says, and show what changes
    Apply {
        /// The policy, a TOML file (docs/policies.md)
        file: PathBuf,
        /// Only show what would change
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        output: Json,
    },
    /// List policies
    List {
        #[command(flatten)]
        output: Json,
    },
    /// Show a policy: what it says, its runs, what is next, and why hosts wait
    Show {
        /// Its name
        policy: PolicyName,
        /// Only this host
        #[arg(long)]
        host: Option<HostName>,
        /// Print it as a file that `policy apply` takes, and nothing else
        #[arg(long, conflicts_with_all = ["host", "json"])]
        toml: bool,
        #[command(flatten)]
        output: Json,
    },
    /// Forget a policy; its snapshots and jobs stay
    Remove {
        /// Its name
        policy: PolicyName,
        #[command(flatten)]
        output: Json,
    },
    /// Begin a task of a policy now, whatever its schedule and window say
    Run {
        /// Its name
        policy: PolicyName,
        /// A host, or @ and a group [default: all of its hosts]
        #[arg(long, value_name = "HOST|@GROUP")]
        host: Option<Target>,
        /// backup, verify, check, prune or restore-test
        #[arg(long, default_value = "backup")]
        task: Task,
        #[command(flatten)]
        output: Json,
    },
    /// Order nothing more of a policy for now; what is under way goes on
    Pause {
        /// Its name
        policy: PolicyName,
        #[command(flatten)]
        output: Json,
    },
    /// Go on with a policy; what was missed meanwhile is made up for once
    Resume {
        /// Its name
        policy: PolicyName,
        #[command(flatten)]
        output: Json,
    },
}

/// What a policy promises, as flags.
#[derive(Debug, Args)]
pub(super) struct Terms {
    /// A host, or @ and a group; may be given several times
    #[arg(long, required = true, value_name = "HOST|@GROUP")]
    hosts: Vec<String>,
    /// Absolute path on each host; may be given several times
    #[arg(long, required = true, value_name = "DIR")]
    source: Vec<String>,
    /// The repository's directory on each host, or the name of one that is served
    #[arg(long, value_name = "DIR")]
    repository: String,
    /// File on each host with the repository's password; by default one in the host's state directory
    #[arg(long, value_name = "FILE")]
    password_file: Option<String>,
    /// The agent that backs up [default: data-agent]
    #[arg(long, value_name = "PRODUCT")]
    product: Option<String>,
    /// When backups begin, such as "daily 02:00 Europe/Berlin"
    #[arg(long, value_name = "WHEN", help_heading = "When")]
    schedule: String,
    /// Each host begins up to so much later, always by the same time
    #[arg(long, value_name = "TIME", help_heading = "When")]
    jitter: Option<String>,
    /// Hours in which something may begin, such as 22:00-06:00
    #[arg(long, value_name = "FROM-TO", help_heading = "When")]
    window: Option<String>,
    /// How old the newest good backup may be [default: one and a half times the longest time between two]
    #[arg(long, value_name = "TIME", help_heading = "When")]
    rpo: Option<String>,
    /// When the newest snapshots are compared with their sources, such as weekly
    #[arg(long, value_name = "WHEN", help_heading = "When")]
    verify: Option<String>,
    /// When a sample of the newest snapshots is restored and compared, such as monthly
    #[arg(long, value_name = "WHEN", help_heading = "When")]
    restore_test: Option<String>,
    /// The host whose media agent looks after the repository; may be given several times
    #[arg(long, value_name = "HOST|@GROUP", help_heading = "The repository")]
    media: Vec<String>,
    /// That agent [default: media-agent]
    #[arg(long, value_name = "PRODUCT", help_heading = "The repository")]
    media_product: Option<String>,
    /// When the repository is checked, such as weekly
    #[arg(long, value_name = "WHEN", help_heading = "The repository")]
    check: Option<String>,
    /// When what is not kept is forgotten, such as "weekly sunday 06:00"
    #[arg(long, value_name = "WHEN", help_heading = "The repository")]
    prune: Option<String>,
    #[command(flatten)]
    keep: KeepFlags,
    #[command(flatten)]
    limits: LimitFlags,
    #[command(flatten)]
    backup: BackupFlags,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "What is kept of each source of each host")]
struct KeepFlags {
    /// So many of the newest
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_last: u32,
    /// The newest of each of so many hours
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_hourly: u32,
    /// Of so many days
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_daily: u32,
    /// Of so many weeks
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_weekly: u32,
    /// Of so many months
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_monthly: u32,
    /// Of so many years
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_yearly: u32,
    /// All of so much time before the newest
    #[arg(long, value_name = "TIME")]
    keep_within: Option<String>,
    /// All with this tag; may be given several times
    #[arg(long, value_name = "TAG")]
    keep_tag: Vec<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "What may be under way at once")]
struct LimitFlags {
    /// At the repository [default: 100]
    #[arg(long, value_name = "N")]
    at_repository: Option<u32>,
    /// On a host [default: 1]
    #[arg(long, value_name = "N")]
    on_host: Option<u32>,
    /// At each site
    #[arg(long, value_name = "N", requires = "site")]
    at_site: Option<u32>,
    /// A group whose hosts are at one site; may be given several times
    #[arg(long, value_name = "@GROUP", requires = "at_site")]
    site: Vec<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "What is left out")]
struct BackupFlags {
    /// What matches, as in a .gitignore; may be given several times
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// The same, from a file on the host; may be given several times
    #[arg(long, value_name = "FILE")]
    exclude_file: Vec<String>,
    /// All but this file in directories in which one of this name lies; may be given several times
    #[arg(long, value_name = "NAME[:TEXT]")]
    exclude_if_present: Vec<String>,
    /// The same of directories with a CACHEDIR.TAG
    #[arg(long)]
    exclude_caches: bool,
    /// Larger files
    #[arg(long, value_name = "SIZE", value_parser = byte_count)]
    exclude_larger_than: Option<u64>,
    /// Other file systems below a source
    #[arg(long)]
    one_file_system: bool,
    /// Run this command of the host's before each snapshot; if it fails, none is made
    #[arg(long, value_name = "COMMAND", help_heading = "Commands of the hosts")]
    before: Option<String>,
    /// Run this command after each, however it ended
    #[arg(long, value_name = "COMMAND", help_heading = "Commands of the hosts")]
    after: Option<String>,
    /// How long each command may take [default: 1h]
    #[arg(long, value_name = "DURATION", help_heading = "Commands of the hosts")]
    command_deadline: Option<String>,
}

impl Terms {
    fn form(&self, name: &PolicyName) -> PolicyForm {
        let (keep, limits, backup) = (&self.keep, &self.limits, &self.backup);
        PolicyForm {
            name: name.to_string(),
            hosts: self.hosts.clone(),
            sources: self.source.clone(),
            repository: self.repository.clone(),
            password_file: self.password_file.clone(),
            product: self.product.clone(),
            schedule: self.schedule.clone(),
            jitter: self.jitter.clone(),
            window: self.window.clone(),
            rpo: self.rpo.clone(),
            verify: self.verify.clone(),
            restore_test: self.restore_test.clone(),
            media: self.media.clone(),
            media_product: self.media_product.clone(),
            check: self.check.clone(),
            prune: self.prune.clone(),
            keep: KeepForm {
                last: keep.keep_last,
                hourly: keep.keep_hourly,
                daily: keep.keep_daily,
                weekly: keep.keep_weekly,
                monthly: keep.keep_monthly,
                yearly: keep.keep_yearly,
                within: keep.keep_within.clone(),
                tags: keep.keep_tag.clone(),
            },
            limits: LimitsForm {
                repository: limits.at_repository,
                host: limits.on_host,
                site: limits.at_site,
                sites: limits.site.clone(),
            },
            backup: BackupForm {
                exclude: backup.exclude.clone(),
                exclude_files: backup.exclude_file.clone(),
                exclude_if_present: backup.exclude_if_present.clone(),
                exclude_caches: backup.exclude_caches,
                exclude_larger_than: backup.exclude_larger_than,
                one_file_system: backup.one_file_system,
                before: backup.before.clone(),
                after: backup.after.clone(),
                command_deadline: backup.command_deadline.clone(),
                ..BackupForm::default()
            },
        }
    }
}

pub(super) fn run(command: &PolicyCommand, here: &Here) -> anyhow::Result<Done> {
    match command {
        PolicyCommand::Create { policy, terms, dry_run, output } => {
            apply(Typed::Form(Box::new(terms.form(policy))), true, *dry_run, *output, here)
        }
        PolicyCommand::Apply { file, dry_run, output } => {
            apply(Typed::Text(text_of(file)?), false, *dry_run, *output, here)
        }
        PolicyCommand::List { output } => list(*output, here),
        PolicyCommand::Show { policy, host, toml, output } => {
            let view = one(PolicyAsk::One(policy.clone(), host.clone()), here)?;
            match (toml, output.json) {
                (true, _) => out::print(view.policy.text().as_bytes()),
                (false, true) => out::json(&view_json(&view)),
                (false, false) => show(&view),
            }
            Ok(Done::Clean)
        }
        PolicyCommand::Remove { policy, output } => {
            told(&one(PolicyAsk::Remove(policy.clone()), here)?, "removed", *output)
        }
        PolicyCommand::Pause { policy, output } => {
            told(&one(PolicyAsk::Pause(policy.clone(), true), here)?, "paused", *output)
        }
        PolicyCommand::Resume { policy, output } => {
            told(&one(PolicyAsk::Pause(policy.clone(), false), here)?, "goes on", *output)
        }
        PolicyCommand::Run { policy, host, task, output } => {
            let ask = PolicyAsk::Run { policy: policy.clone(), task: *task, host: host.clone() };
            begin(ask, *output, here)
        }
    }
}

fn text_of(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

fn answer(ask: PolicyAsk, here: &Here) -> anyhow::Result<PolicyAnswer> {
    match ask_once(here, &Quick::Policy(ask))? {
        AdminReply::Policy(answer) => Ok(answer),
        _ => unexpected(),
    }
}

fn one(ask: PolicyAsk, here: &Here) -> anyhow::Result<PolicyView> {
    match answer(ask, here)? {
        PolicyAnswer::One(view) => Ok(*view),
        _ => unexpected(),
    }
}

fn told(view: &PolicyView, what: &str, output: Json) -> anyhow::Result<Done> {
    if output.json {
        out::json(&view_json(view));
    } else {
        say!("policy {}: {what}", view.policy.name);
    }
    Ok(Done::Clean)
}

fn apply(order: Typed, new: bool, dry_run: bool, output: Json, here: &Here) -> anyhow::Result<Done> {
    let PolicyAnswer::Changed(changes, view) = answer(PolicyAsk::Apply { order, new, dry_run }, here)? else {
        return unexpected();
    };
    if output.json {
        let applied = !dry_run && !changes.is_empty();
        let document =
            PolicyDocument { changes: Some(changes), applied: Some(applied), ..PolicyDocument::from(view.as_ref()) };
        out::json(&documents::json(&document));
        return Ok(Done::Clean);
    }
    changes.iter().for_each(|line| say!("{line}"));
    let name = &view.policy.name;
    match (changes.is_empty(), dry_run) {
        (true, _) => note!("policy {name} is so already"),
        (false, true) => note!("nothing was changed"),
        (false, false) => note!("policy {name} applied"),
    }
    view.tasks.iter().for_each(|task| note!("{}", task_line(task)));
    Ok(Done::Clean)
}

fn list(output: Json, here: &Here) -> anyhow::Result<Done> {
    let PolicyAnswer::All(views) = answer(PolicyAsk::All, here)? else { return unexpected() };
    if output.json {
        out::json(&documents::json(&PoliciesDocument::of(&views)));
        return Ok(Done::Clean);
    }
    let row = |view: &PolicyView| {
        let sum = |of: &dyn Fn(&TaskView) -> u32| view.tasks.iter().map(of).sum::<u32>().to_string();
        let next = view.tasks.iter().filter_map(|task| task.next).min();
        let next = if view.paused.is_some() { String::from("paused") } else { next.map_or_else(String::new, moment) };
        let hosts = view.tasks.first().map_or(0, |task| task.hosts).to_string();
        vec![
            view.policy.name.to_string(),
            view.policy.schedule.to_string(),
            hosts,
            sum(&|task| task.running),
            sum(&|task| task.late),
            sum(&|task| task.failed),
            next,
        ]
    };
    let rows: Vec<Vec<String>> = views.iter().map(row).collect();
    out::table(&["POLICY", "SCHEDULE", "HOSTS", "RUNNING", "LATE", "FAILED", "NEXT"], &rows);
    Ok(Done::Clean)
}

fn begin(ask: PolicyAsk, output: Json, here: &Here) -> anyhow::Result<Done> {
    let PolicyAnswer::Ran(jobs, not) = answer(ask, here)? else { return unexpected() };
    if output.json {
        out::json(&documents::json(&PolicyRanDocument::of(&jobs, &not)));
    } else {
        jobs.iter().for_each(|job| say!("{} on {}", job.id, job.host));
        not.iter().for_each(|(host, why)| note!("{host}: {why}"));
        if jobs.is_empty() && not.is_empty() {
            note!("the policy has no hosts now");
        }
    }
    Ok(if not.is_empty() { Done::Clean } else { Done::WithProblems })
}

fn show(view: &PolicyView) {
    let paused = view.paused.map_or_else(String::new, |since| format!("  paused since {}", moment(since)));
    say!("policy {}{paused}", view.policy.name);
    view.tasks.iter().for_each(|task| say!("{}", task_line(task)));
    if !view.lanes.is_empty() {
        say!("");
        let rows: Vec<Vec<String>> = view.lanes.iter().map(lane_row).collect();
        out::table(&["HOST", "TASK", "LAST", "", "LAST GOOD", "NEXT", ""], &rows);
    }
    if view.left_out > 0 {
        say!("and {} more; --host HOST shows one", view.left_out);
    }
}

fn task_line(task: &TaskView) -> String {
    let named = [(task.running, "running"), (task.late, "late"), (task.failed, "failed")];
    let parts: Vec<String> =
        named.iter().filter(|(many, _)| *many > 0).map(|(many, name)| format!(", {many} {name}")).collect();
    let next = task.next.map_or_else(|| String::from("never"), moment);
    let hosts = count(u64::from(task.hosts), "host");
    format!("{:<8}{}, next {next}, {hosts}{}", task.task, task.schedule, parts.concat())
}

fn lane_row(lane: &LaneView) -> Vec<String> {
    let ended = |run: &RunFact| moment(run.ended.unwrap_or(run.ordered));
    vec![
        lane.host.to_string(),
        lane.task.to_string(),
        lane.last.as_ref().map_or_else(|| String::from("never"), |run| run.job.to_string()),
        lane.last.as_ref().map_or_else(String::new, state_of),
        lane.good.as_ref().map_or_else(|| String::from("never"), ended),
        lane.next.map_or_else(String::new, moment),
        lane.reason(moment),
    ]
}

fn state_of(run: &RunFact) -> String {
    match (run.state, &run.error, run.problems) {
        (JobState::Queued | JobState::Running, _, _) => String::from("running"),
        (JobState::Failed, Some(error), _) => format!("failed: {error}"),
        (JobState::Failed, None, _) => String::from("failed"),
        (JobState::Cancelled, _, _) => String::from("cancelled"),
        (JobState::Done, _, 0) => String::from("done"),
        (JobState::Done, _, problems) => format!("done, {}", count(u64::from(problems), "problem")),
    }
}

fn view_json(view: &PolicyView) -> Value {
    documents::json(&PolicyDocument::from(view))
}

#[cfg(test)]
mod tests {
    use proto::agent::JobId;
    use serde_json::json;

    use super::*;
    use crate::manager::policy::machine::vocabulary::Waits;
    use crate::manager::policy::{Policy, Standing};

    fn lane(waits: Waits, last: Option<RunFact>) -> LaneView {
        LaneView {
            host: "host-3".parse().unwrap(),
            task: Task::Backup,
            good: None,
            last,
            standing: Standing::Late,
            next: None,
            waits,
            seen: Some(1),
        }
    }

    fn run(state: JobState, problems: u32, error: Option<&str>) -> RunFact {
        let error = error.map(str::to_owned);
        let (first_problem, snapshots) = (None, Vec::new());
        RunFact {
            job: JobId(7),
            due: 1,
            ordered: 2,
            ended: Some(3),
            state,
            problems,
            first_problem,
            error,
            snapshots,
        }
    }

    #[test]
    fn a_host_that_waits_says_for_what() {
        let reason = |waits| lane_row(&lane(waits, None)).pop().unwrap();
        let cases = [
            (Waits::Running, ""),
            (Waits::Until(Some(1)), ""),
            (Waits::Until(None), "is never due again"),
            (Waits::Paused, "the policy is paused"),
            (Waits::Away, "host-3 is away since 1970-01-01"),
            (Waits::Window(Some(1)), "waits for its window until 1970-01-01"),
            (Waits::Window(None), "its window never opens"),
            (Waits::NoBackup, "waits for the first good backup"),
            (Waits::Behind(Task::Verify), "waits for the verify that is under way there"),
            (Waits::Host(1), "waits: 1 under way on host-3"),
            (Waits::Repository(9), "waits: 9 under way at the repository"),
            (Waits::Site(4), "waits: 4 under way at its site"),
        ];
        for (waits, text) in cases {
            assert!(reason(waits).starts_with(text), "{waits:?}: {}", reason(waits));
        }
        let never = LaneView { seen: None, ..lane(Waits::Away, None) };
        assert_eq!(never.reason(moment), "host-3 has never been there");
    }

    #[test]
    fn a_run_is_a_word_and_what_went_wrong() {
        let cases = [
            (run(JobState::Queued, 0, None), "running"),
            (run(JobState::Running, 0, None), "running"),
            (run(JobState::Done, 0, None), "done"),
            (run(JobState::Done, 1, None), "done, 1 problem"),
            (run(JobState::Failed, 0, Some("disk full")), "failed: disk full"),
            (run(JobState::Failed, 0, None), "failed"),
            (run(JobState::Cancelled, 0, None), "cancelled"),
        ];
        for (run, text) in cases {
            assert_eq!(state_of(&run), text);
        }
    }

    #[test]
    fn the_document_has_the_policy_its_tasks_and_its_hosts() {
        let text = "name = \"n\"\nhosts = [\"@a\"]\nsources = [\"/s\"]\nrepository = \"/r\"\nschedule = \"hourly\"\n";
        let policy = Policy::parse(text).unwrap();
        let task = TaskView {
            task: Task::Backup,
            schedule: policy.schedule.to_string(),
            next: None,
            hosts: 3,
            running: 1,
            late: 0,
            failed: 2,
        };
        assert_eq!(task_line(&task), "backup  hourly :00 UTC, next never, 3 hosts, 1 running, 2 failed");
        let lanes = vec![lane(Waits::Paused, Some(run(JobState::Done, 0, None)))];
        let view = PolicyView { policy, created: 5, paused: Some(6), tasks: vec![task], lanes, left_out: 0 };
        let document = view_json(&view);
        assert_eq!((&document["policy"], &document["paused_unix_ms"]), (&json!("n"), &json!(6)));
        assert_eq!((&document["tasks"][0]["failed"], &document["tasks"][0]["task"]), (&json!(2), &json!("backup")));
        let host = &document["hosts"][0];
        assert_eq!((&host["standing"], &host["reason"]), (&json!("late"), &json!("the policy is paused")));
        assert_eq!((&host["last"]["state"], &host["good"]), (&json!("done"), &Value::Null));
    }
}
