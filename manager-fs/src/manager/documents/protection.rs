//! What is protected, and what is not as promised.

use proto::HostName;
use proto::agent::JobId;
use proto::message::Unix;
use schemars::JsonSchema;
use serde::Serialize;

use super::{each, texts};
use crate::manager::policy::{ProtectionRow, ProtectionView, Risk, RunFact, Why, waits_for};
use crate::units::{count, moment, ms};

/// How every source of every host stands.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ProtectionDocument {
    /// Sources that are at risk, also those that are not listed.
    at_risk: u64,
    /// Sources in all.
    sources: u64,
    /// Each source, those at risk first.
    rows: Vec<SourceDocument>,
    /// Hosts that no policy backs up.
    without_policy: Vec<String>,
}

/// One source of one host.
#[derive(Debug, Serialize, JsonSchema)]
struct SourceDocument {
    /// Which host.
    host: String,
    /// Which source.
    source: String,
    /// By which policy.
    policy: String,
    /// Whether something is not as promised.
    at_risk: bool,
    /// What is not, for people.
    risks: Vec<String>,
    /// How old the newest good backup may be.
    rpo_ms: u64,
    /// The newest good backup.
    backup: Option<ProofDocument>,
    /// The newest verification without problems.
    verified: Option<ProofDocument>,
    /// The newest restore test without problems.
    restore_tested: Option<ProofDocument>,
}

/// A run that proves something.
#[derive(Debug, Serialize, JsonSchema)]
struct ProofDocument {
    /// Its job.
    #[schemars(with = "u64")]
    job: JobId,
    /// When it was ordered.
    ordered_unix_ms: Unix,
    /// When it ended.
    ended_unix_ms: Option<Unix>,
    /// Its problems.
    problems: u32,
    /// The snapshots that it made or read.
    snapshots: Vec<String>,
}

impl From<&ProtectionView> for ProtectionDocument {
    fn from(view: &ProtectionView) -> Self {
        Self {
            at_risk: view.at_risk,
            sources: view.sources,
            rows: each(&view.rows),
            without_policy: texts(&view.without_policy),
        }
    }
}

impl From<&ProtectionRow> for SourceDocument {
    fn from(row: &ProtectionRow) -> Self {
        let proof = |run: &Option<RunFact>| run.as_ref().map(ProofDocument::from);
        Self {
            host: row.host.to_string(),
            source: row.source.clone(),
            policy: row.policy.to_string(),
            at_risk: !row.risks.is_empty(),
            risks: row.risks.iter().map(|risk| risk_words(risk, &row.host)).collect(),
            rpo_ms: row.rpo_ms,
            backup: proof(&row.backup),
            verified: proof(&row.verified),
            restore_tested: proof(&row.tested),
        }
    }
}

impl From<&RunFact> for ProofDocument {
    fn from(run: &RunFact) -> Self {
        Self {
            job: run.job,
            ordered_unix_ms: run.ordered,
            ended_unix_ms: run.ended,
            problems: run.problems,
            snapshots: run.snapshots.clone(),
        }
    }
}

/// What is not as promised on this host, for people.
pub(crate) fn risk_words(risk: &Risk, host: &HostName) -> String {
    match risk {
        Risk::Never { task, why } => format!("no good {task} yet{}", reason(why, host)),
        Risk::Old { task, age_ms, promised_ms, why } => {
            format!("the last good {task} is {} old, {} promised{}", ms(*age_ms), ms(*promised_ms), reason(why, host))
        }
        Risk::Found { task, on, problems, first, job } => {
            let on = on.as_ref().map_or_else(String::new, |on| format!(" on {on}"));
            let first = first.as_ref().map_or_else(String::new, |first| format!(": {first}"));
            format!("the last {task}{on} found {} (job {job}){first}", count(u64::from(*problems), "problem"))
        }
        Risk::Unproved { task, why, job } => format!("the last {task} failed (job {job}): {why}"),
    }
}

fn reason(why: &Why, host: &HostName) -> String {
    match why {
        Why::Unknown => String::new(),
        Why::Failed(error) => format!(": the last one failed, {error}"),
        Why::Cancelled => String::from(": the last one was cancelled"),
        Why::Waits(waits, seen) => format!(": {}", waits_for(*waits, host, *seen, moment)),
    }
}
