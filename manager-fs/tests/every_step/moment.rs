//! Every moment of every process, each with what comes to it.

use agent_core::internal::moments as agents;
use manager_fs::moments as ours;

/// What an operator does, so that somebody comes to a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scenario {
    /// A manager starts on an empty store; then a change-over.
    Begin,
    /// The control state is damaged, and is built anew while no manager runs.
    Recover,
    /// The manager is backed up while it serves, the backup is put back beside it, and a generation is saved.
    Backup,
    /// A change-over on a host where nothing may be mounted.
    Copy,
    /// A host is enrolled.
    Enrol,
    /// A host is put into a group.
    Group,
    /// A new version is published and exported, and the agent changes over to it with a job under way.
    Change,
    /// The same, and the version before is taken back and its room freed.
    Collect,
    /// The mount daemon ends in good order and is started again.
    Remount,
    /// The stub ends in good order and is started again.
    Relaunch,
    /// A generation that nobody runs is attached and released by hand.
    Attach,
    /// A job is cancelled.
    Cancel,
    /// The bytes of the new version cannot be had.
    NotStaged,
    /// A start of the new version is recorded.
    Learn,
    /// The version that is there ends at every start, so that the order comes to the stub.
    Ordered,
    /// `execve` refuses the new version.
    NotExecuted,
    /// The new version ends at its start.
    Crash,
}

/// A moment of any process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) process: &'static str,
    pub(crate) text: &'static str,
    pub(crate) scenario: Scenario,
}

/// All of them. One that is added to either list does not compile here before its scenario has been chosen.
pub(crate) fn all() -> Vec<Step> {
    let ours = ours::Moment::ALL.iter().map(|moment| {
        let process = match moment.who() {
            ours::Process::Manager => "manager",
            ours::Process::Host => "host",
        };
        Step { name: moment.name(), process, text: moment.text(), scenario: of_ours(*moment) }
    });
    let agents = agents::Moment::ALL.iter().map(|moment| {
        let process = match moment.who() {
            agents::Process::Agent => "agent",
            agents::Process::Stub => "stub",
        };
        Step { name: moment.name(), process, text: moment.text(), scenario: of_agents(*moment) }
    });
    ours.chain(agents).collect()
}

fn of_ours(moment: ours::Moment) -> Scenario {
    use ours::Moment::*;
    match moment {
        KeysPut | StoreFormat | AddressPut | DecisionsPut => Scenario::Begin,
        BundlePut => Scenario::Learn,
        TokenCommit | HostCommit | IdentityPut => Scenario::Enrol,
        GroupCommit => Scenario::Group,
        PackRemove | BlobRemove | RecordFileRemove | RecordDrop => Scenario::Collect,
        StampsRewrite | NumbersPut | ViewMount | WorkerStart | HelperStart => Scenario::Remount,
        AttachmentNote | TreeUnmount => Scenario::Attach,
        DecisionsAppend | PackPut | ManifestPut | DeltaPut | GenerationCommit | ExportCommit | ChangeCommit
        | JobCommit | OtherCommit | ObservationCommit | RecordFilePut | ChangeSend | JobSend | RecordKeep
        | FloorRaise | SpoolAdd | SpoolRewrite | ManifestKeep | ObjectSync | ObjectPut | TreeMount | ChangeRelay
        | JobRelay => Scenario::Change,
        ControlRecover => Scenario::Recover,
        BackupPut | StoreRestore | SavedPut => Scenario::Backup,
        CopyPut | CopyRemove => Scenario::Copy,
    }
}

fn of_agents(moment: agents::Moment) -> Scenario {
    use agents::Moment::*;
    match moment {
        JournalUnstaged => Scenario::NotStaged,
        LinkBack | JournalBack | AgentBad => Scenario::NotExecuted,
        StubBad | StubReturn => Scenario::Crash,
        JobCancel => Scenario::Cancel,
        StubRecord | StubStaged | StubPlace | StubIntent => Scenario::Ordered,
        StubJournal | StubLink | StubSpawn => Scenario::Relaunch,
        RecordSave | JournalStaged | LinkPrepare | RecordPlace | JournalIntent | LinkSwap | ChildrenEnd | Exec
        | JournalConfirmed | Report | JobStart | JobCheckpoint | JobEnd => Scenario::Change,
    }
}
