//! Which jobs are meant by whoever lists them, in pages that fit into a message.

use std::collections::BTreeSet;

use proto::agent::{JobId, Operation, Outcome};
use proto::message::Unix;
use proto::name::{PolicyName, Target};
use proto::{HostName, Product};
use serde::{Deserialize, Serialize};

use crate::manager::control::jobs::{JobRecord, JobState};

/// What a page holds at most, so that it fits into a message.
const PAGE_BYTES_MAX: usize = 12 << 20;
/// Text of a job that is not counted: names, numbers, a few paths.
const JOB_BYTES: usize = 512;

/// Some of all jobs. Whatever is not said is not asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFilter {
    /// So many of the newest; 0: as many as fit.
    pub limit: u32,
    /// On this host, or the hosts that are in this group now.
    pub host: Option<Target>,
    /// In one of these states.
    pub states: Vec<JobState>,
    /// Ordered since then.
    pub since: Option<Unix>,
    /// Ordered by this policy.
    pub policy: Option<PolicyName>,
    /// Of this agent.
    pub product: Option<Product>,
    /// Of these kinds.
    pub kinds: Vec<String>,
    /// Ordered before this one.
    pub before: Option<JobId>,
}

/// Some jobs, the oldest of them first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobPage {
    /// They.
    pub jobs: Vec<JobRecord>,
    /// Whether there are older ones that are meant, too.
    pub more: bool,
}

impl JobFilter {
    fn takes(&self, job: &JobRecord, hosts: Option<&BTreeSet<HostName>>) -> bool {
        hosts.is_none_or(|hosts| hosts.contains(&job.host))
            && (self.states.is_empty() || self.states.contains(&job.state))
            && self.since.is_none_or(|since| job.created >= since)
            && self.policy.as_ref().is_none_or(|policy| job.run.as_ref().is_some_and(|run| run.policy == *policy))
            && self.product.as_ref().is_none_or(|product| job.product == *product)
            && (self.kinds.is_empty() || self.kinds.iter().any(|kind| kind == job.operation.kind()))
            && self.before.is_none_or(|before| job.id < before)
    }
}

/// The newest of those that are meant; `all` are the oldest first.
pub(super) fn page(
    all: impl DoubleEndedIterator<Item = JobRecord>,
    filter: &JobFilter,
    hosts: Option<&BTreeSet<HostName>>,
) -> JobPage {
    let limit = if filter.limit == 0 { usize::MAX } else { filter.limit as usize };
    let (mut jobs, mut bytes, mut more) = (Vec::new(), 0, false);
    for job in all.rev().filter(|job| filter.takes(job, hosts)) {
        bytes += size_of(&job);
        if jobs.len() >= limit || (bytes > PAGE_BYTES_MAX && !jobs.is_empty()) {
            more = true;
            break;
        }
        jobs.push(job);
    }
    jobs.reverse();
    JobPage { jobs, more }
}

/// Roughly what a job is in a message.
fn size_of(job: &JobRecord) -> usize {
    let outcome = match &job.outcome {
        // What it found may be half a MiB.
        Some(outcome @ Outcome::Found { .. }) => proto::codec::encode(outcome).map_or(0, |bytes| bytes.len()),
        Some(outcome) => {
            let said = outcome.ran().iter().flat_map(|ran| &ran.output);
            outcome.problems().iter().chain(said).map(|line| 8 + line.len()).sum()
        }
        None => 0,
    };
    let paths = match &job.operation {
        Operation::Backup { sources, .. }
        | Operation::BackupWith { sources, .. }
        | Operation::BackupBy { sources, .. } => sources.iter().map(|path| 8 + path.len()).sum(),
        _ => 0_usize,
    };
    JOB_BYTES + outcome + paths
}

#[cfg(test)]
#[path = "list_tests.rs"]
mod tests;
