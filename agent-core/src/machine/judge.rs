//! Whether a version may be changed over to at all.

use proto::TreeId;
use proto::agent::ChangeId;

use super::vocabulary::{Candidate, Facts};
use crate::generation::runs_on;

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
        && !runs_on(architecture, &facts.machine)
    {
        let text = format!("{version} is for {architecture}, and this host is {}", facts.machine);
        return Err(Refusal { text, remember: true });
    }
    let (reads, writes) = (candidate.reads, &facts.writes);
    if *writes.start() > reads.max || reads.min > *writes.end() {
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
