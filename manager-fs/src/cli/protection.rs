//! `protection`: whether what policies promise is kept.

use clap::Args;
use proto::HostName;

use super::client::{ask_once, unexpected};
use super::out::{self, note, say};
use super::units::{count, moment};
use super::{Done, Here, Json};
use crate::manager::admin::{AdminReply, Quick};
use crate::manager::documents::{self, ProtectionDocument, risk_words};
use crate::manager::policy::{PolicyAnswer, PolicyAsk, ProtectionRow, ProtectionView, RunFact};

/// Hosts without a policy that are named in a line.
const NAMED_MAX: usize = 10;

#[derive(Debug, Args)]
pub(super) struct ProtectionArgs {
    /// Only what is at risk
    #[arg(long)]
    at_risk: bool,
    #[command(flatten)]
    output: Json,
}

pub(super) fn run(args: &ProtectionArgs, here: &Here) -> anyhow::Result<Done> {
    let AdminReply::Policy(PolicyAnswer::Protection(mut view)) =
        ask_once(here, &Quick::Policy(PolicyAsk::Protection))?
    else {
        return unexpected();
    };
    if args.at_risk {
        view.rows.retain(|row| !row.risks.is_empty());
    }
    if args.output.json {
        out::json(&documents::json(&ProtectionDocument::from(&view)));
    } else {
        show(&view, args.at_risk);
    }
    Ok(if view.at_risk == 0 { Done::Clean } else { Done::WithProblems })
}

fn show(view: &ProtectionView, only_risks: bool) {
    let rows: Vec<Vec<String>> = view.rows.iter().map(row).collect();
    if !rows.is_empty() {
        out::table(&["HOST", "SOURCE", "POLICY", "LAST GOOD BACKUP", "VERIFIED", "RESTORED", ""], &rows);
    }
    let shown = view.rows.len() as u64;
    let of = if only_risks { view.at_risk } else { view.sources };
    if shown < of {
        say!("and {} more", of - shown);
    }
    note!("{} of {} at risk", view.at_risk, count(view.sources, "source"));
    if !view.without_policy.is_empty() {
        let named: Vec<String> = view.without_policy.iter().take(NAMED_MAX).map(HostName::to_string).collect();
        let more = view.without_policy.len().saturating_sub(NAMED_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        note!("no policy backs up {}{more}", named.join(", "));
    }
}

fn row(row: &ProtectionRow) -> Vec<String> {
    let at = |run: &Option<RunFact>| run.as_ref().map_or_else(|| String::from("never"), |run| moment(run.ordered));
    let risks: Vec<String> = row.risks.iter().map(|risk| risk_words(risk, &row.host)).collect();
    let problems = row.backup.as_ref().map_or(0, |run| run.problems);
    let remark = match (risks.is_empty(), problems) {
        (false, _) => format!("at risk: {}", risks.join("; ")),
        (true, 0) => String::from("ok"),
        (true, problems) => format!("ok, with {}", count(u64::from(problems), "problem")),
    };
    let (host, policy) = (row.host.to_string(), row.policy.to_string());
    let (backup, verified, tested) = (at(&row.backup), at(&row.verified), at(&row.tested));
    vec![host, row.source.clone(), policy, backup, verified, tested, remark]
}

#[cfg(test)]
mod tests {
    use proto::agent::JobId;

    use serde_json::{Value, json};

    use super::*;
    use crate::manager::control::jobs::JobState;
    use crate::manager::policy::machine::vocabulary::{Task, Waits};
    use crate::manager::policy::{Risk, Why};

    fn one(risks: Vec<Risk>) -> ProtectionRow {
        let run = RunFact {
            job: JobId(7),
            due: 1,
            ordered: 2,
            ended: Some(3),
            state: JobState::Done,
            problems: 2,
            first_problem: None,
            error: None,
            snapshots: vec!["abc".into()],
        };
        ProtectionRow {
            host: "h".parse().unwrap(),
            policy: "n".parse().unwrap(),
            source: "/srv".into(),
            backup: Some(run),
            verified: None,
            tested: None,
            rpo_ms: 36 * 3_600_000,
            risks,
        }
    }

    #[test]
    fn a_risk_is_a_sentence_with_its_reason() {
        let hour = 3_600_000;
        let why = Why::Waits(Waits::Repository(5), None);
        let old = Risk::Old { task: Task::Backup, age_ms: 40 * hour, promised_ms: 36 * hour, why };
        let never = Risk::Never { task: Task::Verify, why: Why::Failed("no space".into()) };
        let found = Risk::Found {
            task: Task::Check,
            on: Some("m".parse().unwrap()),
            problems: 1,
            first: Some("pack 7 is gone".into()),
            job: JobId(9),
        };
        let unproved = Risk::Unproved { task: Task::RestoreTest, why: "the disk is full".into(), job: JobId(8) };
        let text = row(&one(vec![old, never, found, unproved])).pop().unwrap();
        for part in [
            "at risk: the last good backup is ",
            " old, ",
            "waits: 5 under way at the repository, as many as may be",
            "no good verify yet: the last one failed, no space",
            "the last check on m found 1 problem (job 9): pack 7 is gone",
            "the last restore-test failed (job 8): the disk is full",
        ] {
            assert!(text.contains(part), "no {part} in {text}");
        }
        assert_eq!(row(&one(Vec::new())).pop().unwrap(), "ok, with 2 problems");
    }

    #[test]
    fn the_document_says_of_each_source_what_there_is() {
        let view = ProtectionView { rows: vec![one(Vec::new())], at_risk: 0, sources: 1, without_policy: Vec::new() };
        let document = documents::json(&ProtectionDocument::from(&view));
        let of = &document["rows"][0];
        assert_eq!((&of["at_risk"], &of["verified"]), (&json!(false), &Value::Null));
        assert_eq!((&of["backup"]["job"], &of["backup"]["snapshots"]), (&json!(7), &json!(["abc"])));
    }
}
