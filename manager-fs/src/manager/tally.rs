//! What happened since the manager began, counted for monitoring: what hosts asked, and how change-overs and jobs ended.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use proto::agent::{Step, StepEvent};
use proto::message::HostRequest;
use proto::outcome::Outcome;

use crate::metrics::{Counters, Durations, counters, durations, steps, word};

/// See the module. Each part that knows of an event has it; none of them reads it.
pub(crate) struct Tally {
    /// Requests of hosts, by kind and by whether they were answered or refused.
    pub(super) requests: Counters<2>,
    /// How long each request took, its turn and the sending included.
    pub(super) request_seconds: Durations<1>,
    /// How long each step of each change-over took on its host.
    pub(super) step_seconds: Durations<1>,
    /// Change-overs that are over, by how.
    pub(super) change_overs: Counters<1>,
    /// Jobs that are over, by how.
    pub(super) jobs_ended: Counters<1>,
    /// Reports of bytes with a wrong hash.
    pub(super) wrong_hashes: Counter,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            requests: Counters::default(),
            request_seconds: durations("request", []),
            step_seconds: durations("step", steps()),
            change_overs: counters("result", Step::ALL.iter().filter(|step| step.ends().is_some()).map(word)),
            jobs_ended: counters("result", ["done", "with_problems", "failed", "cancelled"].map(str::to_owned)),
            wrong_hashes: Counter::default(),
        }
    }
}

impl Tally {
    /// A request of a host was answered, or refused, after so long.
    pub(crate) fn answered(&self, kind: &'static str, refused: bool, took: Duration) {
        let result = if refused { "refused" } else { "answered" };
        self.requests.get_or_create(&[("request", kind.to_owned()), ("result", result.to_owned())]).inc();
        self.request_seconds.get_or_create(&[("request", kind.to_owned())]).observe(took.as_secs_f64());
    }

    /// A host has reported a step that was not known yet.
    pub(crate) fn stepped(&self, event: &StepEvent) {
        let took = Duration::from_micros(event.duration_us).as_secs_f64();
        self.step_seconds.get_or_create(&[("step", word(&event.step))]).observe(took);
        if event.step.ends().is_some() {
            self.change_overs.get_or_create(&[("result", word(&event.step))]).inc();
        }
    }

    /// A host has reported how a job ended.
    pub(crate) fn ended(&self, outcome: &Outcome) {
        let result = match outcome {
            Outcome::Failed(_) => "failed",
            Outcome::Cancelled(_) => "cancelled",
            done if !done.problems().is_empty() => "with_problems",
            _ => "done",
        };
        self.jobs_ended.get_or_create(&[("result", result.to_owned())]).inc();
    }

    /// A host has received bytes with a wrong hash.
    pub(crate) fn wrong_hash(&self) {
        self.wrong_hashes.inc();
    }
}

/// The request's kind, as a label has it.
pub(crate) fn kind(request: &HostRequest) -> &'static str {
    match request {
        HostRequest::Hello { .. } | HostRequest::HelloFrom { .. } => "hello",
        HostRequest::Enroll { .. } => "enroll",
        HostRequest::Renew { .. } => "renew",
        HostRequest::Exports | HostRequest::ExportList { .. } => "exports",
        HostRequest::Manifest { .. } => "manifest",
        HostRequest::Chunks { .. } => "chunks",
        HostRequest::Report { .. } => "report",
        HostRequest::Delta { .. } => "delta",
        HostRequest::Start { .. } | HostRequest::StartOf { .. } => "start",
        HostRequest::Profile { .. } => "profile",
    }
}
