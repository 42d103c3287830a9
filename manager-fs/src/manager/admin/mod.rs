//! The manager's local socket: what the command line asks, and the answers.
//!
//! Frames and codec are those of the network. Only root and the manager's own user are heard (peer credentials), and only
//! by a program of the same messages: both sides greet each other first (`proto::local`).

pub(crate) mod afar;
mod api_tokens;
mod architecture;
mod catalog;
mod crossing;
mod diff;
mod filter;
mod fleet;
pub(crate) mod long;
mod message;
mod progress;
pub mod refusal;
mod verify;
mod view;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proto::codec;
use proto::limits::MESSAGE_BYTES_MAX;
use proto::local_greeting::Greeting;
use proto::message::Fault;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;

use super::error::ManagerError;
use super::rollout::{RolloutError, RolloutView};
use super::whole::Manager;
use super::worker::command;
use crate::net::{self, Answer, BoxFuture, Handler, Link, LinkLimits};
use crate::version;
use afar::{Afar, Gate, OnlyThere};
use catalog::Catalog;
use fleet::Fleet;
use long::Asker;

pub(crate) use api_tokens::ApiToken;
pub use api_tokens::{ApiTokenAnswer, ApiTokenAsk, ApiTokenView};
pub use architecture::Architecture;
pub use diff::{ArchitectureDiff, DiffEntry, DiffReport, Difference};
pub use filter::{HOSTS_PAGE, HostFilter, HostState};
pub use message::{
    AdminEvent, AdminReply, AdminRequest, ChangedView, GenerationView, LoadOrder, Loaded, LoadedView, Long,
    ProblemView, PublishOrder, PublishReport, Quick, RepairOrder, VerifyView,
};
pub use view::{AgentView, HostView, RepositoryTokenView, RepositoryView};

/// How long nothing is accepted after a failure: out of descriptors, most likely, and connections that end will help.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Refuses what is only for the manager's machine.
///
/// # Errors
/// It is, and why.
pub fn only_there(request: &AdminRequest) -> Result<(), OnlyThere> {
    afar::needed(request).map(drop)
}

/// Answers commands on a local socket until it is dropped.
pub async fn serve_admin(manager: Arc<Manager>, listener: UnixListener) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::error!(%error, "cannot accept a local connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match net::peer_is_trusted(&stream) {
            Ok(true) => drop(net::start(stream, Arc::new(Arc::new(Admin::new(&manager, None))))),
            Ok(false) => tracing::warn!("a local user without permission asked; refused"),
            Err(error) => tracing::warn!(%error, "cannot tell who asks; refused"),
        }
    }
}

/// Bytes of one command that comes from afar: a piece of an archive, or a plan.
const AFAR_BYTES_MAX: usize = 4 << 20;
/// Commands that are under way at once on a connection from afar: one, and a look whether its manager lives.
const AFAR_REQUESTS_MAX: usize = 8;

/// Answers commands from afar on a stream whose other end is known at `gate`.
pub(crate) fn answer_from_afar<S>(stream: S, manager: &Arc<Manager>, gate: Arc<dyn Gate>) -> Link
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let limits = LinkLimits { requests_max: AFAR_REQUESTS_MAX, request_bytes_max: AFAR_BYTES_MAX };
    let admin: Arc<dyn Handler> = Arc::new(Arc::new(Admin::new(manager, Some(Afar::new(gate)))));
    net::start_with(stream, limits, |_| admin)
}

/// One connection.
struct Admin {
    manager: Arc<Manager>,
    /// Where it does not come from this machine.
    afar: Option<Afar>,
    /// Whoever asks has our messages.
    same: AtomicBool,
}

impl Admin {
    fn new(manager: &Arc<Manager>, afar: Option<Afar>) -> Self {
        Self { manager: Arc::clone(manager), afar, same: AtomicBool::new(false) }
    }

    /// Our greeting, whatever theirs is: it tells the other side what to do.
    fn greet(&self, theirs: &Greeting) -> Greeting {
        let ours = version::greeting();
        let same = theirs.messages == ours.messages;
        if !same {
            tracing::warn!(version = theirs.version, "a command of another build of manager-fs asked; refused");
        }
        self.same.store(same, Ordering::SeqCst);
        ours
    }
}

impl Handler for Arc<Admin> {
    fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
        if let Some(theirs) = Greeting::read(&body) {
            let ours = self.greet(&theirs);
            return Box::pin(async move { delivered(answer.finish(&ours).await) });
        }
        let (admin, same) = (Arc::clone(self), self.same.load(Ordering::SeqCst));
        Box::pin(async move {
            let reply = match codec::decode::<AdminRequest, MESSAGE_BYTES_MAX>(&body) {
                _ if !same => Ok(AdminReply::Fault(Fault::BadRequest(not_greeted()))),
                Ok(request) => match &admin.afar {
                    Some(afar) => afar.answered(&admin.manager, request, &answer).await,
                    None => answered(&admin.manager, request, &answer).await,
                },
                Err(error) => Ok(AdminReply::Fault(Fault::BadRequest(error.to_string()))),
            };
            delivered(answer.finish(&reply.unwrap_or_else(|error| AdminReply::Fault(error.into()))).await);
        })
    }
}

/// Answers whatever is asked.
async fn answered(
    manager: &Arc<Manager>,
    request: AdminRequest,
    asker: &impl Asker,
) -> Result<AdminReply, ManagerError> {
    match request {
        AdminRequest::Quick(request) => at_once(manager, *request).await,
        AdminRequest::Long(request) => long::answer(manager, request, asker).await,
    }
}

fn sends_none() -> String {
    String::from("a command on the manager's machine names its archive, and sends none")
}

fn not_greeted() -> String {
    format!("this manager runs version {}: use the same program, which greets it first", version::VERSION)
}

fn delivered(answered: Result<(), net::NetError>) {
    if let Err(error) = answered {
        tracing::debug!(%error, "a command went away before its answer");
    }
}

/// Answers what needs no more than the control state and some reading, for whoever may ask it.
pub(crate) async fn at_once(manager: &Arc<Manager>, request: Quick) -> Result<AdminReply, ManagerError> {
    let (catalog, fleet) = (Catalog(manager), Fleet(manager));
    Ok(match request {
        Quick::Generations(product) => AdminReply::Generations(catalog.generations(product.as_ref()).await?),
        Quick::Show(generation) => AdminReply::Generation(catalog.generation(&generation).await?),
        Quick::Diff(old, new) => {
            // Reads two manifests.
            let manager = Arc::clone(manager);
            AdminReply::Diff(command(move || Catalog(&manager).diff(&old, &new)).await?)
        }
        Quick::Unpublish(generation) => catalog.unpublish(&generation).await.map(|()| AdminReply::Done)?,
        Quick::Export(generation, targets) => AdminReply::Changed(catalog.export(&generation, &targets).await?),
        Quick::Unexport { generation, targets, force } => {
            AdminReply::Changed(catalog.unexport(&generation, &targets, force).await?)
        }
        Quick::Record { tree, touches } => {
            let bundles = Arc::clone(&manager.bundles);
            AdminReply::Recorded(command(move || bundles.record(&tree, &touches).map_err(ManagerError::from)).await?)
        }
        Quick::ResetProfile(generation) => {
            let manager = Arc::clone(manager);
            command(move || Catalog(&manager).reset_profile(&generation)).await.map(|()| AdminReply::Done)?
        }
        Quick::Hosts => AdminReply::Hosts(fleet.hosts().await?),
        Quick::HostPage(filter) => AdminReply::Hosts(fleet.page(&filter).await?),
        Quick::Label(of, changes) => fleet.label(&of, &changes).await.map(|()| AdminReply::Done)?,
        Quick::GroupRule(group, rule) => fleet.set_rule(&group, &rule).await.map(|()| AdminReply::Done)?,
        Quick::Rules => AdminReply::Rules(manager.state.rules()),
        Quick::Revoke(host) => manager.revoke(&host).await.map(|()| AdminReply::Done)?,
        Quick::Forget(host) => manager.forget(&host).await.map(|()| AdminReply::Done)?,
        Quick::Damaged => AdminReply::Damaged(manager.state.damaged().into_iter().collect()),
        Quick::RemoveDamaged(key) => fleet.remove_damaged(&key).await.map(|()| AdminReply::Done)?,
        Quick::GroupAdd(group, hosts) => AdminReply::Changed(fleet.add_to_group(&group, &hosts).await?),
        Quick::GroupRemove(group, hosts) => AdminReply::Changed(fleet.remove_from_group(&group, &hosts).await?),
        Quick::Groups => AdminReply::Groups(fleet.groups()),
        Quick::GroupDelete(group) => fleet.delete_group(&group).await.map(|()| AdminReply::Done)?,
        Quick::Token { host, ttl_ms } => AdminReply::Token(fleet.token(&host, ttl_ms).await?),
        Quick::Agents => AdminReply::Agents(fleet.agents().await?),
        Quick::JobRun { host, product, operation } => {
            AdminReply::Job(manager.jobs.add(&host, &product, &operation).await?)
        }
        Quick::JobRunOnGroup { group, product, operation } => {
            AdminReply::Ordered(manager.jobs.add_to_group(&group, &product, &operation).await?)
        }
        Quick::Jobs(filter) => AdminReply::Jobs(manager.jobs.listed(&filter).await?),
        Quick::Job(id) => AdminReply::Job(manager.jobs.job(id).await?),
        Quick::JobCancel(id) => AdminReply::Job(manager.jobs.cancel(id).await?),
        Quick::RepositoryCreate(order) => AdminReply::Job(manager.repositories().create(order).await?),
        Quick::RepositoryRemove(name) => AdminReply::Job(manager.repositories().remove(&name).await?),
        Quick::Repositories => AdminReply::Repositories(fleet.repositories().await?),
        Quick::RepositoryToken { name, access, ttl_ms } => {
            let time = Duration::from_millis(ttl_ms);
            let (id, token) = manager.repositories().token(&name, access, time).await?;
            AdminReply::RepositoryToken { id, token }
        }
        Quick::RepositoryTokens(name) => AdminReply::RepositoryTokens(fleet.tokens_of(&name).await?),
        Quick::RepositoryTokenRevoke(name, id) => {
            AdminReply::Job(manager.repositories().revoke_token(&name, &id).await?)
        }
        Quick::RepositoryKeeping(name, order) => AdminReply::Job(manager.repositories().keeping(&name, order).await?),
        Quick::RolloutPlan { text, keep } => shown(manager.rollouts.plan(&text, keep).await)?,
        Quick::RolloutAdd(plan) => shown(manager.rollouts.add(*plan, true).await)?,
        Quick::RolloutWish(id, wish) => shown(manager.rollouts.wish(id, wish).await)?,
        Quick::RolloutForce(order) => shown(manager.rollouts.force(order).await)?,
        Quick::Rollout(id) => shown(manager.rollouts.view(id).await)?,
        Quick::Policy(ask) => AdminReply::Policy(manager.policies.answer(ask).await?),
        Quick::ApiToken(ask) => AdminReply::ApiToken(api_tokens::answer(manager, ask).await?),
        Quick::Rollouts => AdminReply::Rollouts(manager.rollouts.all().await?),
        Quick::Piece(_) => AdminReply::Fault(Fault::BadRequest(sends_none())),
    })
}

fn shown(view: Result<RolloutView, RolloutError>) -> Result<AdminReply, ManagerError> {
    Ok(AdminReply::Rollout(Box::new(view?)))
}

#[cfg(test)]
mod tests;
