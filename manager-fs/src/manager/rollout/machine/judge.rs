//! Whether what was seen lets a rollout go on. No data is never success.

use super::super::plan::{JobGate, Plan};
use super::vocabulary::{Counts, Jobs, Missing, Phase, Progress, Why};

/// What the gates say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// There is evidence, and it is good.
    Pass,
    /// There is evidence, and it is bad.
    Breach(Why),
    /// There is no evidence yet.
    Open(Missing),
}

/// Hosts of a ring that count as failed: those that failed, and those of which nothing is heard beyond what may be
/// replaced. Canaries of which nothing is heard are no evidence either way.
pub(super) fn failures(counts: &Counts, phase: Phase, plan: &Plan) -> u32 {
    let silent = if of_canaries(phase) { 0 } else { counts.silent.saturating_sub(plan.replacements) };
    counts.failed + silent
}

fn of_canaries(phase: Phase) -> bool {
    matches!(phase, Phase::Canaries | Phase::CanarySoak)
}

/// Why the rollout must stop now, whatever phase it is in.
pub(super) fn breach(plan: &Plan, progress: &Progress, rings: &[Counts], jobs: Jobs) -> Option<Why> {
    let mut total = 0_u32;
    for ((ring, counts), (planned, known)) in (0..).zip(rings).zip(plan.rings.iter().zip(&progress.rings)) {
        let failed = failures(counts, known.phase, plan).saturating_sub(known.accepted);
        if of_canaries(known.phase) && failed > 0 {
            return Some(Why::Canary { ring });
        }
        if failed > planned.max_failures {
            return Some(Why::Ring { ring, failed, allowed: planned.max_failures });
        }
        total += failed;
    }
    if total > plan.max_failures {
        return Some(Why::Total { failed: total, allowed: plan.max_failures });
    }
    if let Some(allowed) = plan.gates.max_restarts.filter(|allowed| progress.restarts > *allowed) {
        return Some(Why::Restarts { restarts: progress.restarts, allowed });
    }
    match gates(plan, progress, jobs) {
        Verdict::Breach(why) => Some(why),
        Verdict::Pass | Verdict::Open(_) => None,
    }
}

/// What the success of storage operations says.
pub(super) fn gates(plan: &Plan, progress: &Progress, jobs: Jobs) -> Verdict {
    let Some(gate) = &plan.gates.jobs else { return Verdict::Pass };
    let Some(wanted_per_mille) = wanted(gate, progress.baseline) else {
        return Verdict::Open(Missing::Baseline { ended: progress.baseline.ended(), needed: gate.min });
    };
    if jobs.ended() < gate.min {
        return Verdict::Open(Missing::Jobs { ended: jobs.ended(), needed: gate.min });
    }
    if jobs.done_per_mille() < wanted_per_mille {
        return Verdict::Breach(Why::Jobs { seen: jobs, wanted_per_mille });
    }
    Verdict::Pass
}

/// How many of a thousand operations must be done; `None`: there is nothing to compare with.
fn wanted(gate: &JobGate, baseline: Jobs) -> Option<u32> {
    let named = gate.success_percent.map(|percent| u32::from(percent) * 10);
    let compared = gate.below_baseline.filter(|_| baseline.ended() >= gate.min);
    let compared = compared.map(|below| baseline.done_per_mille().saturating_sub(u32::from(below) * 10));
    named.max(compared)
}
