//! The manager's local socket: what the command line asks, and the answers.
//!
//! Frames and codec are those of the network. Only root and the manager's own user are heard (peer credentials).

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proto::agent::{JobId, Operation};
use proto::codec;
use proto::limits::MESSAGE_BYTES_MAX;
use proto::message::{Fault, Unix};
use proto::name::Target;
use proto::{GenerationRecord, GenerationRef, GroupName, HostName, Product, TreeId, Version};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use super::control::generations::Export;
use super::control::jobs::JobRecord;
use super::fault_of;
use super::server::{Manager, News, blocking};
use super::upgrade::{AgentView, UpgradeEvent, UpgradeOrder, UpgradeReport};
use crate::net::{self, Answer, BoxFuture, Handler};

mod catalog;
mod diff;
mod progress;

pub use diff::{DiffEntry, DiffReport, Difference};

/// A command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminRequest {
    /// Take files in as a new generation. `Event`s carry [`AdminEvent::Progress`].
    Publish(PublishOrder),
    /// Every generation, or those of a product.
    Generations(Option<Product>),
    /// One generation with all that is known of it.
    Show(GenerationRef),
    /// What differs between two trees.
    Diff(GenerationRef, GenerationRef),
    /// Take a generation back; refused while it is exported or attached.
    Unpublish(GenerationRef),
    /// Check every byte of the store.
    Verify,
    /// Remove what nothing needs.
    Gc {
        /// Only say what would be removed.
        dry_run: bool,
    },
    /// Let hosts see and fetch a generation.
    Export(GenerationRef, Vec<Target>),
    /// Take that back.
    Unexport {
        /// Which.
        generation: GenerationRef,
        /// From whom.
        targets: Vec<Target>,
        /// Also while it is attached there.
        force: bool,
    },
    /// Every host.
    Hosts,
    /// Refuse a host from now on.
    Revoke(HostName),
    /// Add hosts to a group.
    GroupAdd(GroupName, Vec<HostName>),
    /// Remove hosts from a group.
    GroupRemove(GroupName, Vec<HostName>),
    /// Every group.
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
    /// Tell running agents to change over. `Event`s carry [`AdminEvent::Upgrade`].
    Upgrade(UpgradeOrder),
    /// What runs where.
    Agents,
    /// Order a storage operation.
    JobRun {
        /// On which host.
        host: HostName,
        /// By which agent.
        product: Product,
        /// What.
        operation: Operation,
    },
    /// The newest jobs, oldest of them first.
    Jobs {
        /// How many at most.
        limit: u32,
    },
    /// One job.
    Job(JobId),
    /// One job, once it is over. `Event`s carry [`AdminEvent::Job`].
    JobWait(JobId),
    /// Stop a job.
    JobCancel(JobId),
}

/// What `publish` takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishOrder {
    /// Of which product.
    pub product: Product,
    /// Its new version.
    pub version: Version,
    /// Absolute path of a directory or archive on the manager's machine, as raw bytes.
    pub source: Vec<u8>,
    /// The source is a service pack, laid over this generation.
    pub onto: Option<GenerationRef>,
    /// Path of the program to start.
    pub entry_point: Option<String>,
    /// Size of the tree's chunks, bytes; see [`super::publish::PublishOptions`].
    pub chunk_bytes: Option<u32>,
}

impl PublishOrder {
    /// The source as bytes that any path fits in.
    pub fn source_bytes(path: &Path) -> Vec<u8> {
        path.as_os_str().as_bytes().to_vec()
    }

    fn source_path(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.source.clone()))
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AdminReply {
    /// Done.
    Done,
    /// To `Publish`.
    Published(PublishReport),
    /// To `Generations`.
    Generations(Vec<GenerationView>),
    /// To `Show`.
    Generation(GenerationView),
    /// To `Diff`.
    Diff(DiffReport),
    /// To `Verify`.
    Verified(VerifyView),
    /// To `Gc`.
    Collected(GcView),
    /// To `Export` and `Unexport`: the targets for which something changed.
    Changed(Vec<Target>),
    /// To `Hosts`.
    Hosts(Vec<HostView>),
    /// To `Groups`.
    Groups(Vec<(GroupName, Vec<HostName>)>),
    /// To `Token`.
    Token(String),
    /// To `Upgrade`.
    Upgraded(UpgradeReport),
    /// To `Agents`.
    Agents(Vec<AgentView>),
    /// To `JobRun`, `Job`, `JobWait` and `JobCancel`.
    Job(JobRecord),
    /// To `Jobs`.
    Jobs(Vec<JobRecord>),
    /// It failed.
    Fault(Fault),
}

/// What comes before an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminEvent {
    /// Long work goes on.
    Progress {
        /// What is being done.
        task: String,
        /// Units done.
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
}

/// What `publish` did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishReport {
    /// The generation's record.
    pub record: GenerationRecord,
    /// The same generation was published before; nothing changed.
    pub already: bool,
    /// Bytes of content read from the source.
    pub read_bytes: u64,
    /// Chunks that the store did not have.
    pub new_chunks: u64,
    /// Their stored bytes.
    pub stored_bytes: u64,
}

/// A generation as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationView {
    /// Its record.
    pub record: GenerationRecord,
    /// Who signed it, hex.
    pub publisher: String,
    /// To whom it is exported.
    pub exports: Vec<Export>,
    /// Hosts on which its tree is attached.
    pub attached: Vec<HostName>,
}

/// What `verify` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyView {
    /// Packs read.
    pub packs: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Chunks decoded and hashed.
    pub chunks: u64,
    /// Manifests checked.
    pub manifests: u64,
    /// Distinct objects put together and hashed.
    pub objects: u64,
    /// Generation records whose signatures and trees were checked.
    pub records: u64,
    /// What is wrong: the thing, the fault, the generations that it touches.
    pub problems: Vec<(String, String, Vec<String>)>,
}

/// What `gc` removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcView {
    /// Nothing was really removed.
    pub dry_run: bool,
    /// Manifests that nothing named.
    pub manifests_removed: u64,
    /// Packs of which nothing was needed.
    pub packs_removed: u64,
    /// Packs of which little was needed: that was written anew.
    pub packs_rewritten: u64,
    /// Bytes given back to the disk.
    pub bytes_freed: u64,
    /// Bytes of packs that stay.
    pub bytes_kept: u64,
}

/// A host as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostView {
    /// Its name.
    pub name: HostName,
    /// Since when it is connected; `None`: it is not.
    pub connected_since: Option<Unix>,
    /// When it was last heard of, 0 if never.
    pub last_seen: Unix,
    /// When it enrolled.
    pub enrolled: Unix,
    /// When its newest certificate ends.
    pub certificate_expires: Option<Unix>,
    /// When it was revoked.
    pub revoked: Option<Unix>,
    /// Its groups.
    pub groups: Vec<GroupName>,
    /// Version of its `manager-fs`.
    pub software: String,
    /// The trees attached there.
    pub attached: Vec<TreeId>,
    /// The last wrong hashes that it found.
    pub wrong_hashes: Vec<(Unix, String)>,
}

/// Answers commands on a local socket until it is dropped.
pub async fn serve_admin(manager: Arc<Manager>, listener: UnixListener) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::error!(%error, "cannot accept a local connection");
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                continue;
            }
        };
        match net::peer_is_trusted(&stream) {
            Ok(true) => drop(net::start(stream, Arc::new(Admin(Arc::clone(&manager))))),
            Ok(false) => tracing::warn!("a local user without permission asked; refused"),
            Err(error) => tracing::warn!(%error, "cannot tell who asks; refused"),
        }
    }
}

struct Admin(Arc<Manager>);

impl Handler for Admin {
    fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
        let manager = Arc::clone(&self.0);
        Box::pin(async move {
            let reply = match codec::decode::<AdminRequest, MESSAGE_BYTES_MAX>(&body) {
                Ok(request) => manager.administer(request, &answer).await,
                Err(error) => Err(Fault::BadRequest(format!(
                    "{error}; this command and the running manager may be of different versions"
                ))
                .into()),
            };
            let reply = reply.unwrap_or_else(|error| AdminReply::Fault(fault_of(error)));
            if let Err(error) = answer.finish(&reply).await {
                tracing::debug!(%error, "a command went away before its answer");
            }
        })
    }
}

impl Manager {
    async fn administer(self: &Arc<Self>, request: AdminRequest, answer: &Answer) -> anyhow::Result<AdminReply> {
        let manager = Arc::clone(self);
        match request {
            AdminRequest::Publish(order) => {
                self.long(answer, move |monitor, cancelled| {
                    let published = manager.publish(&order, monitor, cancelled);
                    // Also after one that failed: what it has held up goes on.
                    manager.work_ahead(published.as_ref().ok().map(|published| published.record.clone()));
                    Ok(AdminReply::Published(published?))
                })
                .await
            }
            AdminRequest::Verify => self.long(answer, move |monitor, _| manager.verify(monitor)).await,
            AdminRequest::Gc { dry_run } => self.long(answer, move |monitor, _| manager.gc(dry_run, monitor)).await,
            AdminRequest::Upgrade(order) => {
                let (events, received) = mpsc::unbounded_channel();
                let upgrade = async move { manager.upgrade(&order, events).await.map(AdminReply::Upgraded) };
                tokio::select! {
                    reply = pass_on(answer, received, AdminEvent::Upgrade, upgrade) => reply,
                    // The change-overs go on; only nobody watches them any more.
                    () = answer.cancelled() => Err(net::NetError::Cancelled.into()),
                }
            }
            AdminRequest::JobWait(id) => self.wait_for_job(id, answer).await,
            AdminRequest::JobRun { host, product, operation } => {
                // Spawns the job's task, so it must run on the runtime.
                manager.add_job(&host, &product, &operation).map(AdminReply::Job)
            }
            request => blocking(move || manager.administer_at_once(request)).await,
        }
    }

    /// Commands that need no more than the control state and some reading.
    fn administer_at_once(self: &Arc<Self>, request: AdminRequest) -> anyhow::Result<AdminReply> {
        let runtime = tokio::runtime::Handle::current();
        let _entered = runtime.enter();
        Ok(match request {
            AdminRequest::Generations(product) => AdminReply::Generations(self.generation_views(product.as_ref())?),
            AdminRequest::Show(generation) => AdminReply::Generation(self.generation_view(&generation)?),
            AdminRequest::Diff(old, new) => AdminReply::Diff(self.diff(&old, &new)?),
            AdminRequest::Unpublish(generation) => self.unpublish(&generation)?,
            AdminRequest::Export(generation, targets) => {
                let generation = self.state.resolve(&generation)?;
                AdminReply::Changed(self.export(&generation, &targets)?)
            }
            AdminRequest::Unexport { generation, targets, force } => {
                AdminReply::Changed(self.unexport(&generation, &targets, force)?)
            }
            AdminRequest::Hosts => AdminReply::Hosts(self.host_views()?),
            AdminRequest::Revoke(host) => self.revoke(&host).map(|()| AdminReply::Done)?,
            AdminRequest::GroupAdd(group, hosts) => self.change_group(&group, &hosts, true)?,
            AdminRequest::GroupRemove(group, hosts) => self.change_group(&group, &hosts, false)?,
            AdminRequest::Groups => {
                let groups = self.state.groups()?.into_iter();
                AdminReply::Groups(groups.map(|(group, hosts)| (group, hosts.into_iter().collect())).collect())
            }
            AdminRequest::GroupDelete(group) => self.delete_group(&group)?,
            AdminRequest::Token { host, ttl_ms } => AdminReply::Token(self.print_token(&host, ttl_ms)?),
            AdminRequest::Agents => AdminReply::Agents(self.agents()?),
            AdminRequest::Jobs { limit } => {
                let all = self.state.jobs()?;
                let older = all.len().saturating_sub(limit as usize);
                let jobs: anyhow::Result<Vec<_>> = all[older..].iter().map(|job| self.job(job.id)).collect();
                AdminReply::Jobs(jobs?)
            }
            AdminRequest::Job(id) => AdminReply::Job(self.job(id)?),
            AdminRequest::JobCancel(id) => AdminReply::Job(self.cancel_job(id)?),
            AdminRequest::Publish(_)
            | AdminRequest::Verify
            | AdminRequest::Gc { .. }
            | AdminRequest::Upgrade(_)
            | AdminRequest::JobWait(_)
            | AdminRequest::JobRun { .. } => anyhow::bail!("this command takes its time and is answered elsewhere"),
        })
    }

    /// Runs long work on a thread of its own, passes its progress on, and stops it when the asker goes away.
    async fn long(
        &self,
        answer: &Answer,
        work: impl FnOnce(&progress::Reporter, &AtomicBool) -> anyhow::Result<AdminReply> + Send + 'static,
    ) -> anyhow::Result<AdminReply> {
        let (events, received) = mpsc::unbounded_channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&cancelled);
        let working = blocking(move || work(&progress::Reporter::new(events), &flag));
        let mut passed = std::pin::pin!(pass_on(answer, received, |event| event, working));
        tokio::select! {
            reply = &mut passed => reply,
            () = answer.cancelled() => {
                cancelled.store(true, Ordering::Relaxed);
                // To its end, so that what it holds is given back before anybody can ask again.
                passed.await
            }
        }
    }

    async fn wait_for_job(&self, id: JobId, answer: &Answer) -> anyhow::Result<AdminReply> {
        let mut news = self.news();
        loop {
            let record = self.job(id)?;
            if record.state.is_final() {
                return Ok(AdminReply::Job(record));
            }
            answer.event(&AdminEvent::Job(Box::new(record))).await?;
            let mut changed = std::pin::pin!(async {
                while let Ok(event) = news.recv().await {
                    if event == News::Job(id) {
                        return;
                    }
                }
            });
            tokio::select! {
                () = &mut changed => {}
                () = answer.cancelled() => return Err(net::NetError::Cancelled.into()),
            }
        }
    }
}

/// Sends events on while `work` goes on, and returns its result after the last of them.
async fn pass_on<E>(
    answer: &Answer,
    mut received: mpsc::UnboundedReceiver<E>,
    wrap: impl Fn(E) -> AdminEvent,
    work: impl Future<Output = anyhow::Result<AdminReply>>,
) -> anyhow::Result<AdminReply> {
    let mut work = std::pin::pin!(work);
    let mut result = None;
    loop {
        tokio::select! {
            biased;
            event = received.recv() => match event {
                // An asker that is gone does not end the work: `long` decides that.
                Some(event) => drop(answer.event(&wrap(event)).await),
                None => match result {
                    Some(result) => return result,
                    None => return work.await,
                },
            },
            done = &mut work, if result.is_none() => result = Some(done),
        }
    }
}
