//! How much is kept of what hosts say. What is longer is cut where it comes in, never refused and never stored. Most of it
//! was cut when the message was read; this holds whoever brings it.

use proto::agent::{AgentStatus, Progress, StepEvent};
use proto::limits::{
    ACTIVITY_BYTES_MAX, AGENTS_MAX, DETAIL_BYTES_MAX, JOBS_MAX, REASON_BYTES_MAX, TREES_MAX, VERSION_BYTES_MAX,
    WRONG_HASH_BYTES_MAX,
};

use super::{HostStatus, Observation};

/// Wrong hashes remembered of one host.
pub(super) const WRONG_HASHES_MAX: usize = 20;
/// Steps remembered of one agent: some twenty change-overs.
pub(super) const STEPS_MAX: usize = 200;
/// Products of one host whose steps are remembered; more than ever run on one.
pub(super) const PRODUCTS_MAX: usize = 16;
/// Bytes of the steps of one agent while there are few hosts, and with however many.
const STEPS_BYTES: std::ops::RangeInclusive<usize> = 8 << 10..=256 << 10;
/// Bytes of the steps of all agents of all hosts.
const ALL_STEPS_BYTES: usize = 1 << 30;
/// Jobs whose progress is remembered.
pub(super) const PROGRESS_MAX: u64 = if cfg!(test) { 100 } else { 10_000 };

/// Bytes of steps of one agent, so that all agents of all hosts stay within their bound.
pub(super) fn steps_bytes(hosts: usize) -> usize {
    (ALL_STEPS_BYTES / (PRODUCTS_MAX * hosts.max(1))).clamp(*STEPS_BYTES.start(), *STEPS_BYTES.end())
}

/// Cuts an observation to what may be kept.
pub(super) fn bound(seen: &mut Observation) {
    match seen {
        Observation::Seen { software, .. } => software.iter_mut().for_each(|text| cut(text, VERSION_BYTES_MAX)),
        Observation::Agents { agents, .. } => {
            agents.truncate(AGENTS_MAX);
            agents.iter_mut().for_each(bound_agent);
        }
        Observation::Attached { trees, .. } => trees.truncate(TREES_MAX),
        Observation::WrongHash { what, .. } => cut(what, WRONG_HASH_BYTES_MAX),
        Observation::Step(StepEvent { detail, .. }) => cut(detail, DETAIL_BYTES_MAX),
        Observation::Progress { progress: Progress { activity, version, .. }, .. } => {
            cut(activity, ACTIVITY_BYTES_MAX);
            cut(version, VERSION_BYTES_MAX);
        }
    }
}

fn bound_agent(agent: &mut AgentStatus) {
    agent.jobs.truncate(JOBS_MAX);
    cut(&mut agent.reason, REASON_BYTES_MAX);
}

/// Forgets the oldest of what only grows.
pub(super) fn bound_status(status: &mut HostStatus) {
    let surplus = status.wrong_hashes.len().saturating_sub(WRONG_HASHES_MAX);
    status.wrong_hashes.drain(..surplus);
}

/// Cuts a text that is too long, and shows that it was cut.
pub(crate) fn cut(text: &mut String, bytes_max: usize) {
    const MARK: &str = "…";
    if text.len() <= bytes_max {
        return;
    }
    let mut end = bytes_max.saturating_sub(MARK.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text.push_str(MARK);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters_and_says_so() {
        let mut text = String::from("äöü");
        cut(&mut text, 6);
        assert_eq!(text, "äöü");
        text.push('x');
        cut(&mut text, 6);
        assert_eq!(text, "ä…");
    }

    #[test]
    fn more_hosts_leave_less_to_each() {
        assert_eq!(steps_bytes(0), 256 << 10);
        assert_eq!(steps_bytes(200), 256 << 10);
        assert_eq!(steps_bytes(2048), 32 << 10);
        assert_eq!(steps_bytes(1_000_000), 8 << 10);
    }
}
