//! Whether a version may be changed over to at all.

use proto::TreeId;
use proto::agent::ChangeId;

use super::vocabulary::{Candidate, Facts};

/// Message B, as it was asked.
pub(crate) struct Asked {
    pub(crate) change: ChangeId,
    pub(crate) release: Option<TreeId>,
    pub(crate) attach: TreeId,
    pub(crate) lazy: bool,
    pub(crate) retry_bad: bool,
}

/// Why a version may not be changed over to.
pub(crate) struct Refusal {
    pub(crate) text: String,
    /// The version itself is at fault.
    pub(crate) remember: bool,
}

/// What a version gets of the state when it is changed over to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handed {
    /// What the running version saves in this schema, the newest that one writes and the other reads.
    Saved(u32),
    /// They have none in common: what an earlier version had saved in this schema when it left.
    Kept(u32),
}

/// `None`: nothing that it could read.
pub(crate) fn handed(candidate: &Candidate, facts: &Facts) -> Option<Handed> {
    let (reads, writes) = (candidate.reads, &facts.writes);
    let common = reads.max.min(*writes.end());
    if common >= reads.min && common >= *writes.start() {
        return Some(Handed::Saved(common));
    }
    let kept = facts.snapshots.iter().rev().find(|schema| (reads.min..=reads.max).contains(schema));
    kept.map(|schema| Handed::Kept(*schema))
}

/// Whether this version may be changed over to, before anything is done for it.
pub(crate) fn judge(candidate: &Candidate, asked: &Asked, facts: &Facts) -> Result<(), Refusal> {
    let refusal = |text: String| Err(Refusal { text, remember: false });
    let version = &candidate.entry.version;
    if let Some(release) = asked.release
        && release != facts.running.tree
    {
        let (version, tree) = (&facts.running.version, facts.running.tree);
        return refusal(format!("asked to release tree {release}, but {version} (tree {tree}) is what runs here"));
    }
    if let Some(evidence) = candidate.bad.as_ref().filter(|_| !asked.retry_bad) {
        return refusal(format!(
            "{version} is remembered as bad on this host ({evidence}); ask for it again to retry"
        ));
    }
    if let Some(architecture) = &candidate.architecture
        && !proto::record::runs_on(architecture, &facts.machine)
    {
        let text = format!("{version} is for {architecture}, and this host is {}", facts.machine);
        return Err(Refusal { text, remember: true });
    }
    let (reads, writes) = (candidate.reads, &facts.writes);
    if handed(candidate, facts).is_none() {
        return refusal(format!(
            "{version} reads agent state of schemas {} to {}, and the running {} writes {} to {}",
            reads.min,
            reads.max,
            facts.running.version,
            writes.start(),
            writes.end()
        ));
    }
    Ok(())
}

/// How the drain ended, and what becomes of a state that the next version cannot read.
pub(crate) fn with_state(detail: String, candidate: &Candidate, facts: &Facts) -> String {
    let Some(Handed::Kept(schema)) = handed(candidate, facts) else { return detail };
    let (version, running) = (&candidate.entry.version, &facts.running.version);
    format!("{detail}; {version} reads no state of {running}, and gets back what was saved in schema {schema}")
}
