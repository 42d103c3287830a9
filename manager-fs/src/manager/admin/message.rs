//! What the command line and the manager say to each other on the manager's local socket.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use proto::adapter::Adapter;
use proto::agent::{JobId, Operation};
use proto::bundle::Touch;
use proto::door::Access;
use proto::health::HealthCheck;
use proto::keeping::Keeping;
use proto::message::{BundleFacts, Fault};
use proto::name::Target;
use proto::number::RolloutId;
use proto::{GenerationRecord, GenerationRef, GroupName, HostName, Product, RepositoryName, TreeId, Version};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::api_tokens::{ApiTokenAnswer, ApiTokenAsk};
use super::architecture::Architecture;
use super::diff::ArchitectureDiff;
use super::filter::HostFilter;
use super::view::{AgentView, HostView, RepositoryTokenView, RepositoryView};
use crate::manager::control::exports::Export;
use crate::manager::control::jobs::JobRecord;
use crate::manager::crossing::{self, Saved};
use crate::manager::jobs::{JobFilter, JobPage};
use crate::manager::labels::{LabelChange, Selector};
use crate::manager::policy::{PolicyAnswer, PolicyAsk};
use crate::manager::repositories::RepositoryOrder;
use crate::manager::rollout::machine::vocabulary::Wish;
use crate::manager::rollout::{ForceOrder, Plan, RolloutView};
use crate::manager::store::GcReport;
use crate::manager::upgrade::{UpgradeEvent, UpgradeOrder, UpgradeReport};
use crate::manager::upkeep::{self, BackedUp};

/// What a command asks of the manager over its local socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminRequest {
    /// One that is answered at once.
    Quick(Box<Quick>),
    /// One that takes its time.
    Long(Long),
}

impl From<Quick> for AdminRequest {
    fn from(quick: Quick) -> Self {
        Self::Quick(Box::new(quick))
    }
}

impl From<Long> for AdminRequest {
    fn from(long: Long) -> Self {
        Self::Long(long)
    }
}

/// Commands that take their time: `Event`s come before the answer, and the work ends when the asker goes away, except
/// where it says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Long {
    /// Take files in as a new generation. `Event`s carry [`AdminEvent::Progress`].
    Publish(PublishOrder),
    /// Check every byte of the store.
    Verify {
        /// Put back what is damaged or gone, and from where else than packs and hosts.
        repair: Option<RepairOrder>,
    },
    /// Remove what nothing needs.
    Gc {
        /// Only say what would be removed.
        dry_run: bool,
    },
    /// Tell running agents to change over. `Event`s carry [`AdminEvent::Upgrade`]. Goes on when the asker goes away.
    Upgrade(UpgradeOrder),
    /// A rollout, until it no longer goes on by itself. `Event`s carry [`AdminEvent::Rollout`]. It goes on when the asker
    /// goes away.
    RolloutWatch(RolloutId),
    /// One job, once it is over. `Event`s carry [`AdminEvent::Job`]. The job goes on when the asker goes away.
    JobWait(JobId),
    /// Copy all that the manager knows into one file. `Event`s carry [`AdminEvent::Progress`].
    Backup(upkeep::Order),
    /// Copy generations into a file that is carried to another manager.
    Save(crossing::Order),
    /// Take generations in that were saved.
    Load(LoadOrder),
    /// The trees that are whole here, as text for [`Long::Save`].
    Have,
}

/// Commands that need no more than the control state and some reading.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Quick {
    /// Every generation, or those of a product.
    Generations(Option<Product>),
    /// One generation with all that is known of it.
    Show(GenerationRef),
    /// What differs between two trees.
    Diff(GenerationRef, GenerationRef),
    /// Take a generation back; refused while it is exported or attached.
    Unpublish(GenerationRef),
    /// Let hosts see and fetch a generation. They need not be enrolled yet.
    Export(GenerationRef, Vec<Target>),
    /// Take that back.
    Unexport {
        /// The generation that they may see no longer.
        generation: GenerationRef,
        /// The hosts and groups that it is taken from.
        targets: Vec<Target>,
        /// Also while it is attached there.
        force: bool,
    },
    /// Take what a start of a tree touched, recorded by whoever has this socket: it counts at once.
    Record {
        /// The tree that was started.
        tree: TreeId,
        /// In the order in which they were touched.
        touches: Vec<Touch>,
    },
    /// Forget what was recorded of a generation's starts.
    ResetProfile(GenerationRef),
    /// Every host that is enrolled, also those that are away or revoked.
    Hosts,
    /// Those of them that are meant, in the order of their names; a page of [`super::HOSTS_PAGE`] at most.
    HostPage(HostFilter),
    /// Change the labels of hosts, which need not be enrolled yet.
    Label(Vec<Target>, Vec<LabelChange>),
    /// Give a group a rule, making it if need be; an empty one takes the rule away.
    GroupRule(GroupName, Vec<Selector>),
    /// The groups that have a rule, with it.
    Rules,
    /// Refuse a host from now on.
    Revoke(HostName),
    /// Forget a host: its record, its groups, the exports to it, and what it reported.
    Forget(HostName),
    /// Records that cannot be read.
    Damaged,
    /// Remove a record that cannot be read.
    RemoveDamaged(String),
    /// Add hosts to a group. They need not be enrolled yet.
    GroupAdd(GroupName, Vec<HostName>),
    /// Remove hosts from a group.
    GroupRemove(GroupName, Vec<HostName>),
    /// Every group with its hosts, also those that are not enrolled.
    Groups,
    /// Delete a group and the exports to it.
    GroupDelete(GroupName),
    /// A one-time enrolment token.
    Token {
        /// For which host.
        host: HostName,
        /// For how long, milliseconds.
        ttl_ms: u64,
    },
    /// What runs where.
    Agents,
    /// Order a storage operation.
    JobRun {
        /// On which host.
        host: HostName,
        /// By which agent.
        product: Product,
        /// What is done there; paths are those of the host.
        operation: Operation,
    },
    /// Order a storage operation on each host of a group.
    JobRunOnGroup {
        /// On whose hosts.
        group: GroupName,
        /// By which agent.
        product: Product,
        /// What is done there.
        operation: Operation,
    },
    /// The newest jobs that are meant, oldest of them first.
    Jobs(JobFilter),
    /// One job as it stands now.
    Job(JobId),
    /// Stop a job.
    JobCancel(JobId),
    /// Have a media agent serve a repository. Answered by the job that it is.
    RepositoryCreate(RepositoryOrder),
    /// Serve one no longer. Answered by the job that it is.
    RepositoryRemove(RepositoryName),
    /// Every repository that is served.
    Repositories,
    /// A token for a person's program.
    RepositoryToken {
        /// Of which repository.
        name: RepositoryName,
        /// What for.
        access: Access,
        /// For how long, milliseconds.
        ttl_ms: u64,
    },
    /// The tokens of a repository that were given.
    RepositoryTokens(RepositoryName),
    /// Take one back, by its number. Answered by the job that tells it.
    RepositoryTokenRevoke(RepositoryName, String),
    /// Something about a repository beside its data. Answered by the job that it is.
    RepositoryKeeping(RepositoryName, Keeping),
    /// Check the text of a plan of a rollout, and keep it unless it is only looked at.
    RolloutPlan {
        /// The plan, TOML.
        text: String,
        /// Keep it.
        keep: bool,
    },
    /// Keep a plan that was put together out of flags.
    RolloutAdd(Box<Plan>),
    /// Tell a rollout something; without a number, the newest that is not over.
    RolloutWish(Option<RolloutId>, Wish),
    /// Order a host of a rollout now, out of its turn.
    RolloutForce(ForceOrder),
    /// One rollout; without a number, the newest that is not over, or else the newest.
    Rollout(Option<RolloutId>),
    /// Something about policies.
    Policy(PolicyAsk),
    /// Every rollout.
    Rollouts,
    /// Something about tokens of the HTTP interface.
    ApiToken(ApiTokenAsk),
    /// The next piece of an archive, from afar; `Publish` on the same connection takes what was sent.
    Piece(Vec<u8>),
}

/// What `verify --repair` takes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairOrder {
    /// Absolute path of files that were published once, on the manager's machine, as raw bytes.
    pub source: Option<Vec<u8>>,
}

/// Which file of saved generations is taken in, and who may have signed them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadOrder {
    /// Absolute path on the manager's machine, as raw bytes.
    pub file: Vec<u8>,
    /// Publishers that are believed beside this manager's own.
    pub publishers: Vec<[u8; 32]>,
}

/// What was taken in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// Each with the record that this manager signed.
    pub generations: Vec<LoadedView>,
    /// Chunks that the store did not have.
    pub new_chunks: u64,
    /// Their stored bytes.
    pub stored_bytes: u64,
}

/// A generation that was taken in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadedView {
    /// The record as it stands here.
    pub record: GenerationRecord,
    /// It was here before; nothing changed.
    pub already: bool,
}

/// What an operator wants published, and as what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishOrder {
    /// The product that gets a version.
    pub product: Product,
    /// The version's name; the same source under a known name changes nothing.
    pub version: Version,
    /// Absolute path of a directory or archive on the manager's machine, as raw bytes.
    pub source: Vec<u8>,
    /// The source is a service pack, laid over this generation.
    pub onto: Option<GenerationRef>,
    /// Path of the program to start.
    pub entry_point: Option<String>,
    /// Size of the tree's chunks, bytes; see [`crate::manager::publish::PublishOptions`].
    pub chunk_bytes: Option<u32>,
    /// Refuse a tar archive that has a path twice; see [`crate::manager::publish::PublishOptions`].
    pub strict: bool,
}

impl PublishOrder {
    /// The source as bytes that any path fits in.
    pub fn source_bytes(path: &Path) -> Vec<u8> {
        path.as_os_str().as_bytes().to_vec()
    }

    /// The source as a path.
    pub(crate) fn source_path(&self) -> PathBuf {
        path_of(&self.source)
    }
}

/// The path that these bytes are.
pub(super) fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

/// What the manager answers over its local socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AdminReply {
    /// To every request that answers nothing else: it is committed.
    Done,
    /// To `Publish`: the record, and what it cost.
    Published(PublishReport),
    /// To `Generations`: every one, or those of the product that was named.
    Generations(Vec<GenerationView>),
    /// To `Show`: all that is known of it.
    Generation(GenerationView),
    /// To `Diff`: the entries that are not the same in both trees, for each architecture that both have; at least one.
    Diff(Vec<ArchitectureDiff>),
    /// To `Verify`: what was read, and what is wrong.
    Verified(VerifyView),
    /// To `Gc`: what was removed, or would be.
    Collected(GcReport),
    /// To `Export`, `Unexport`, `GroupAdd` and `GroupRemove`.
    Changed(ChangedView),
    /// To `Hosts` and `HostPage`: by name.
    Hosts(Vec<HostView>),
    /// To `Groups`: each with its hosts, by name.
    Groups(Vec<(GroupName, Vec<HostName>)>),
    /// To `Rules`: by group.
    Rules(BTreeMap<GroupName, Vec<Selector>>),
    /// To `RepositoryToken`: its number, and its text, which the manager cannot show again.
    RepositoryToken {
        /// By which it can be taken back.
        id: String,
        /// What lets its owner in.
        token: String,
    },
    /// To `RepositoryTokens`: the oldest first.
    RepositoryTokens(Vec<RepositoryTokenView>),
    /// To `Token`: the token's text, which the manager cannot show again.
    Token(String),
    /// To `Damaged`: keys, and what is wrong with their records.
    Damaged(Vec<(String, String)>),
    /// To `Record`: the bundle that starts get from now on.
    Recorded(BundleFacts),
    /// To `Upgrade`: how it ended on each host.
    Upgraded(UpgradeReport),
    /// To `Agents`: by host and product, as their hosts reported them last.
    Agents(Vec<AgentView>),
    /// To `JobRun`, `Job`, `JobWait`, `JobCancel`, and what is ordered of a repository.
    Job(JobRecord),
    /// To `Jobs`.
    Jobs(JobPage),
    /// To `JobRunOnGroup`: one a host.
    Ordered(Vec<JobRecord>),
    /// To `Repositories`: by name.
    Repositories(Vec<RepositoryView>),
    /// To `RolloutPlan`, `RolloutAdd`, `RolloutWish`, `RolloutForce`, `Rollout` and `RolloutWatch`.
    Rollout(Box<RolloutView>),
    /// To `Rollouts`: the newest last.
    Rollouts(Vec<RolloutView>),
    /// To `Policy`.
    Policy(PolicyAnswer),
    /// To `ApiToken`.
    ApiToken(ApiTokenAnswer),
    /// To any request: it was refused or failed, and why.
    Fault(Fault),
    /// To `Backup`: what is in the file.
    BackedUp(BackedUp),
    /// To `Save`: what is in the file.
    Saved(Saved),
    /// To `Load`: what is visible now.
    Loaded(Loaded),
    /// To `Have`: the text.
    Have(String),
}

/// What comes before an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminEvent {
    /// Long work goes on.
    Progress {
        /// What is being done.
        task: String,
        /// Units done so far.
        done: u64,
        /// Units in all, 0 while unknown.
        total: u64,
        /// Whether the units are bytes.
        bytes: bool,
    },
    /// Something is wrong that does not end the work.
    Problem(String),
    /// A change-over goes on.
    Upgrade(UpgradeEvent),
    /// A job goes on.
    Job(Box<JobRecord>),
    /// A rollout goes on.
    Rollout(Box<RolloutView>),
}

/// What was published, and what it cost the store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishReport {
    /// The record that was signed: names, tree and metadata; of an image for several architectures one for each.
    pub records: Vec<GenerationRecord>,
    /// The same generation was published before; nothing changed.
    pub already: bool,
    /// Bytes of content read from the source.
    pub read_bytes: u64,
    /// Chunks that the store did not have.
    pub new_chunks: u64,
    /// Bytes of these chunks in the store, compressed.
    pub stored_bytes: u64,
}

/// What changed for whom.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedView {
    /// The targets for which something changed.
    pub targets: Vec<Target>,
    /// Hosts that are meant and not enrolled: it holds for them as soon as they are.
    pub not_enrolled: Vec<HostName>,
}

/// A generation as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationView {
    /// What its publisher signed.
    pub record: GenerationRecord,
    /// Its version for other architectures.
    pub others: Vec<Architecture>,
    /// Its adapter, which the record has in format 2 alone.
    pub adapter: Option<Adapter>,
    /// Its health check, likewise.
    pub health_check: Option<HealthCheck>,
    /// Who signed it, hex.
    pub publisher: String,
    /// To whom it is exported.
    pub exports: Vec<Export>,
    /// Hosts on which its tree is attached.
    pub attached: Vec<HostName>,
}

/// How much of the store was read, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VerifyView {
    /// Packs whose every byte was read.
    pub packs: u64,
    /// Bytes read, of everything in the store.
    pub bytes: u64,
    /// Chunks decoded and hashed.
    pub chunks: u64,
    /// Manifests that were decoded and checked.
    pub manifests: u64,
    /// Distinct objects put together and hashed.
    pub objects: u64,
    /// Generation records whose signatures and trees were checked.
    pub records: u64,
    /// What is not as it was stored; empty when all is well.
    pub problems: Vec<ProblemView>,
    /// Chunks that generations need and that were found nowhere; 0 where nothing was to be repaired.
    pub lost_chunks: u64,
}

/// Something that `verify` found to be wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProblemView {
    /// The pack, chunk, manifest or record, for people.
    pub what: String,
    /// What is wrong with it, for people.
    pub fault: String,
    /// The generations that it touches.
    pub generations: Vec<String>,
    /// From where it was repaired; `None`: it was not.
    pub repaired: Option<String>,
}
