//! `job list`: which jobs, in pages.

use std::time::Duration;

use clap::{Args, ValueEnum};
use proto::Product;
use proto::agent::JobId;
use proto::name::{PolicyName, Target};

use super::super::client::{ask_once, unexpected};
use super::super::out::{self, note};
use super::super::units::moment;
use super::super::{Done, Here};
use super::show::{doing, state_name};
use crate::clock::unix_ms;
use crate::manager::admin::{AdminReply, Quick};
use crate::manager::control::jobs::{JobRecord, JobState};
use crate::manager::documents::{self, JobsDocument};
use crate::manager::jobs::{JobFilter, JobPage};

/// Some of all jobs.
#[derive(Debug, Args)]
pub(in crate::cli) struct WhichJobs {
    /// How many at most; 0: all
    #[arg(long, value_name = "N", default_value_t = 200)]
    limit: u32,
    /// On this host, or the hosts of this group
    #[arg(long, value_name = "HOST|@GROUP")]
    host: Option<Target>,
    /// Only jobs in this state; may be given several times
    #[arg(long, value_enum, value_name = "STATE")]
    only: Vec<State>,
    /// Ordered within so much time, such as 2d
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    since: Option<Duration>,
    /// Ordered by this policy
    #[arg(long)]
    policy: Option<PolicyName>,
    /// Of this agent
    #[arg(long)]
    product: Option<Product>,
    /// Of this kind, such as backup; may be given several times
    #[arg(long, value_name = "OPERATION")]
    kind: Vec<String>,
    /// Ordered before this one
    #[arg(long, value_name = "JOB")]
    before: Option<JobId>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum State {
    Queued,
    Running,
    Done,
    Failed,
    Cancelled,
}

impl From<State> for JobState {
    fn from(state: State) -> Self {
        match state {
            State::Queued => JobState::Queued,
            State::Running => JobState::Running,
            State::Done => JobState::Done,
            State::Failed => JobState::Failed,
            State::Cancelled => JobState::Cancelled,
        }
    }
}

impl WhichJobs {
    fn filter(&self) -> JobFilter {
        let ago = |time: &Duration| unix_ms().saturating_sub(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        JobFilter {
            limit: self.limit,
            host: self.host.clone(),
            states: self.only.iter().map(|state| (*state).into()).collect(),
            since: self.since.as_ref().map(ago),
            policy: self.policy.clone(),
            product: self.product.clone(),
            kinds: self.kind.clone(),
            before: self.before,
        }
    }
}

pub(super) fn list(which: &WhichJobs, json: bool, here: &Here) -> anyhow::Result<Done> {
    let (jobs, more) = all(which.filter(), here)?;
    if json {
        out::json(&documents::json(&JobsDocument::of(&jobs, more)));
        return Ok(Done::Clean);
    }
    let rows: Vec<Vec<String>> = jobs
        .iter()
        .map(|record| {
            vec![
                record.id.to_string(),
                record.host.to_string(),
                record.operation.kind().to_owned(),
                state_name(record.state),
                moment(record.created),
                doing(record),
            ]
        })
        .collect();
    out::table(&["JOB", "HOST", "OPERATION", "STATE", "ORDERED", ""], &rows);
    if let Some(first) = jobs.first().filter(|_| more) {
        note!("there are older ones: --before {} lists them, --limit 0 all", first.id);
    }
    Ok(Done::Clean)
}

/// Page after page, until there are as many as were asked for.
fn all(mut filter: JobFilter, here: &Here) -> anyhow::Result<(Vec<JobRecord>, bool)> {
    let limit = filter.limit;
    let mut jobs: Vec<JobRecord> = Vec::new();
    loop {
        let AdminReply::Jobs(JobPage { jobs: page, more }) = ask_once(here, &Quick::Jobs(filter.clone()))? else {
            return unexpected();
        };
        filter.before = page.first().map(|job| job.id).or(filter.before);
        let is_empty = page.is_empty();
        jobs.splice(0..0, page);
        let have = u32::try_from(jobs.len()).unwrap_or(u32::MAX);
        if !more || is_empty || (limit > 0 && have >= limit) {
            return Ok((jobs, more));
        }
        filter.limit = if limit == 0 { 0 } else { limit - have };
    }
}
