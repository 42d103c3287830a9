//! Messages of every kind, and the records that lie on disks.

use std::path::Path;

use agent_core::Permits;
use agent_core::internal::channel::StubMessage;
use agent_core::internal::handoff::Handoff;
use agent_core::internal::journal::Journal;
use manager_fs::manager::admin::{AdminEvent, AdminReply, AdminRequest};
use manager_fs::manager::fuzzing;
use proto::agent::{AgentReply, AgentRequest, Progress, StepEvent};
use proto::bundle::Touch;
use proto::daemon::{DaemonReply, DaemonRequest, StageProgress};
use proto::message::{HostReply, HostReport, HostRequest, ManagerReply, ManagerRequest};

use super::Target;
use super::formats::stable;

pub(super) const TARGETS: &[Target] = &[
    ("host_request", stable::<HostRequest>),
    ("manager_reply", stable::<ManagerReply>),
    ("manager_request", stable::<ManagerRequest>),
    ("host_reply", stable::<HostReply>),
    ("agent_request", stable::<AgentRequest>),
    ("agent_reply", stable::<AgentReply>),
    ("daemon_request", stable::<DaemonRequest>),
    ("daemon_reply", stable::<DaemonReply>),
    ("events", events),
    ("agent_files", agent_files),
    ("permits", permits),
    ("admin_request", stable::<AdminRequest>),
    ("admin_reply", stable::<AdminReply>),
    ("admin_event", stable::<AdminEvent>),
    ("control_records", |bytes| fuzzing::control_records(bytes)),
    ("old_record", |bytes| fuzzing::old_record(bytes)),
    ("backup", |bytes| fuzzing::backup(bytes)),
    ("local_messages", |bytes| manager_fs::host::fuzzing::local_messages(bytes)),
    ("spool", |bytes| manager_fs::host::fuzzing::spool(bytes)),
];

fn events(bytes: &[u8]) -> bool {
    stable::<Progress>(bytes)
        | stable::<StageProgress>(bytes)
        | stable::<StepEvent>(bytes)
        | stable::<HostReport>(bytes)
        | stable::<Vec<Touch>>(bytes)
}

/// Journal, handoff, stub channel and jobs, without the checksums that hide their bodies from chance.
fn agent_files(bytes: &[u8]) -> bool {
    let taken = stable::<Journal>(bytes) | stable::<Handoff>(bytes) | stable::<StubMessage>(bytes);
    // The library has no door to these in other builds.
    #[cfg(fuzzing)]
    let taken = taken
        | agent_core::fuzzing::job_record(bytes)
        | agent_core::fuzzing::inherited(bytes)
        | agent_core::fuzzing::snapshot(bytes)
        | agent_core::fuzzing::handoff(bytes);
    taken
}

/// What an administrator has written, and every kind of order that it decides over.
fn permits(bytes: &[u8]) -> bool {
    thread_local! {
        static STATE: tempfile::TempDir = tempfile::tempdir().unwrap();
    }
    STATE.with(|state| {
        std::fs::write(state.path().join(agent_core::internal::PERMITS_FILE), bytes).unwrap();
        let Ok(permits) = Permits::read(state.path(), state.path()) else { return false };
        let path = Path::new("/srv/data/../x");
        drop(permits.change_over(&"agent".parse().unwrap()));
        drop((permits.backup(path), permits.restore(path), permits.repository(path, true), permits.prune(1)));
        permits.is_there()
    })
}
