//! Messages of every kind, and the records that lie on disks.

use agent_core::channel::StubMessage;
use agent_core::handoff::Handoff;
use agent_core::journal::Journal;
use manager_fs::manager::control::HostStatus;
use manager_fs::manager::control::hosts::HostRecord;
use manager_fs::manager::control::jobs::JobRecord;
use proto::agent::{AgentReply, AgentRequest, Progress};
use proto::daemon::{DaemonReply, DaemonRequest, StageProgress};
use proto::message::{HostReply, HostRequest, ManagerReply, ManagerRequest};

use crate::Target;
use crate::formats::stable;

pub const TARGETS: &[Target] = &[
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
    ("control_records", control_records),
    ("spool", |bytes| manager_fs::host::fuzzing::spool(bytes)),
];

fn events(bytes: &[u8]) {
    stable::<Progress>(bytes);
    stable::<StageProgress>(bytes);
}

/// Journal, handoff and stub channel, without the checksums that hide their bodies from chance.
fn agent_files(bytes: &[u8]) {
    const MAX: usize = 64 << 10;
    drop(proto::codec::decode::<Journal, MAX>(bytes));
    drop(proto::codec::decode::<Handoff, MAX>(bytes));
    drop(proto::codec::decode::<StubMessage, MAX>(bytes));
}

fn control_records(bytes: &[u8]) {
    const MAX: usize = 1 << 20;
    drop(proto::codec::decode::<JobRecord, MAX>(bytes));
    drop(proto::codec::decode::<HostStatus, MAX>(bytes));
    drop(proto::codec::decode::<HostRecord, MAX>(bytes));
}
