//! Commands that come from afar, through the HTTP interface: the role that each of them takes, and what is only for the
//! manager's machine. Whoever asks is looked at with every one of them.

use std::sync::Arc;

use proto::agent::{Operation, Outcome};
use proto::keeping::Keeping;
use proto::message::Fault;
use tokio::sync::{Mutex, OwnedSemaphorePermit};

use super::api_tokens::ApiTokenAsk;
use super::long::{self, Asker};
use super::message::{AdminEvent, AdminReply, AdminRequest, Long, PublishOrder, Quick};
use super::{answered, at_once};
use crate::manager::control::api_tokens::Role;
use crate::manager::control::jobs::JobRecord;
use crate::manager::error::ManagerError;
use crate::manager::policy::PolicyAsk;
use crate::manager::store::Upload;
use crate::manager::whole::Manager;
use crate::manager::worker::command;
use crate::net::{Answer, BoxFuture, NetError};

/// What whoever asks may do now.
pub(crate) struct Entered {
    /// The name of the token.
    pub(crate) name: String,
    /// What it may do.
    pub(crate) role: Role,
    /// Held while what is quick is worked on.
    pub(crate) turn: OwnedSemaphorePermit,
}

/// Where it is known who asks.
pub(crate) trait Gate: Send + Sync + 'static {
    /// Who it is now: a token may have been taken back since.
    fn enter(&self) -> BoxFuture<Result<Entered, Fault>>;

    /// A place for one more archive that arrives.
    fn place(&self) -> Option<OwnedSemaphorePermit>;
}

/// Something that names files of the manager's machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} files of the manager's machine: run it there, without --manager")]
pub struct OnlyThere(&'static str);

/// The role that a command takes.
pub(crate) fn needed(request: &AdminRequest) -> Result<Role, OnlyThere> {
    match request {
        AdminRequest::Quick(quick) => Ok(of_quick(quick)),
        AdminRequest::Long(long) => of_long(long),
    }
}

fn of_long(long: &Long) -> Result<Role, OnlyThere> {
    match long {
        Long::RolloutWatch(_) | Long::JobWait(_) | Long::Have => Ok(Role::Viewer),
        Long::Upgrade(_) => Ok(Role::Operator),
        // What was sent on this connection.
        Long::Publish(order) if order.source.is_empty() => Ok(Role::Publisher),
        Long::Publish(_) => Err(OnlyThere("this publishes")),
        Long::Verify { repair: Some(order) } if order.source.is_some() => Err(OnlyThere("--from names")),
        Long::Verify { .. } | Long::Gc { .. } => Ok(Role::Admin),
        Long::Backup(_) => Err(OnlyThere("a backup of the store makes")),
        Long::Save(_) => Err(OnlyThere("`save` makes")),
        Long::Load(_) => Err(OnlyThere("`load` reads")),
    }
}

/// The role of what is answered at once.
pub(crate) fn of_quick(quick: &Quick) -> Role {
    match quick {
        Quick::Generations(_)
        | Quick::Show(_)
        | Quick::Diff(..)
        | Quick::Hosts
        | Quick::HostPage(_)
        | Quick::Rules
        | Quick::Damaged
        | Quick::Groups
        | Quick::Agents
        | Quick::Jobs(_)
        | Quick::Job(_)
        | Quick::Repositories
        | Quick::RepositoryTokens(_)
        | Quick::Rollout(_)
        | Quick::Rollouts
        | Quick::Policy(PolicyAsk::All | PolicyAsk::One(..) | PolicyAsk::Protection) => Role::Viewer,
        Quick::Export(..)
        | Quick::Unexport { .. }
        | Quick::Label(..)
        | Quick::GroupRule(..)
        | Quick::GroupAdd(..)
        | Quick::GroupRemove(..)
        | Quick::GroupDelete(_)
        | Quick::JobCancel(_)
        | Quick::RepositoryCreate(_)
        | Quick::RepositoryRemove(_)
        | Quick::RepositoryKeeping(_, Keeping::Keys)
        | Quick::RolloutPlan { .. }
        | Quick::RolloutAdd(_)
        | Quick::RolloutWish(..)
        | Quick::RolloutForce(_)
        | Quick::Policy(
            PolicyAsk::Apply { .. } | PolicyAsk::Remove(_) | PolicyAsk::Run { .. } | PolicyAsk::Pause(..),
        ) => Role::Operator,
        Quick::JobRun { operation, .. } | Quick::JobRunOnGroup { operation, .. } => of_operation(operation),
        Quick::Unpublish(_) | Quick::Record { .. } | Quick::ResetProfile(_) | Quick::Piece(_) => Role::Publisher,
        Quick::Revoke(_)
        | Quick::Forget(_)
        | Quick::RemoveDamaged(_)
        | Quick::Token { .. }
        | Quick::RepositoryToken { .. }
        | Quick::RepositoryTokenRevoke(..)
        | Quick::RepositoryKeeping(..)
        | Quick::ApiToken(ApiTokenAsk::Add { .. } | ApiTokenAsk::List | ApiTokenAsk::Revoke(_)) => Role::Admin,
    }
}

/// The role of an order to an agent. What opens a repository, or says who is let in to it, is no operator's.
fn of_operation(operation: &Operation) -> Role {
    match operation {
        Operation::Serve { .. } | Operation::Unserve { .. } | Operation::Keeping { .. } => Role::Admin,
        _ => Role::Operator,
    }
}

/// Takes out what was read in a repository, where the asker may not see it.
pub(crate) fn veil(role: Role, job: &mut JobRecord) {
    if role < Role::Operator
        && let Some(Outcome::Found { found, .. }) = &mut job.outcome
    {
        found.clear();
    }
}

/// That a role is not enough.
pub(crate) fn too_little(needed: Role, has: Role) -> String {
    format!("this takes the role {needed}, and the token has {has}: ask an admin for another token")
}

/// One connection from afar.
pub(super) struct Afar {
    gate: Arc<dyn Gate>,
    /// The archive that has been sent so far, and its place.
    upload: Mutex<Option<(Upload, OwnedSemaphorePermit)>>,
}

impl Afar {
    pub(super) fn new(gate: Arc<dyn Gate>) -> Self {
        Self { gate, upload: Mutex::new(None) }
    }

    /// Answers what its asker may ask.
    pub(super) async fn answered(
        &self,
        manager: &Arc<Manager>,
        request: AdminRequest,
        answer: &Answer,
    ) -> Result<AdminReply, ManagerError> {
        let refused = |why: String| Ok(AdminReply::Fault(Fault::Refused(why)));
        let needed = match needed(&request) {
            Ok(needed) => needed,
            Err(only_there) => return refused(only_there.to_string()),
        };
        let Entered { name, role, turn } = match self.gate.enter().await {
            Ok(entered) => entered,
            Err(fault) => return Ok(AdminReply::Fault(fault)),
        };
        if role < needed {
            return refused(too_little(needed, role));
        }
        if needed > Role::Viewer
            && !matches!(&request, AdminRequest::Quick(quick) if matches!(**quick, Quick::Piece(_)))
        {
            tracing::info!(by = name, %role, what = word(&request), "ordered by a command from afar");
        }
        let veiled = Veiled { answer, role };
        let reply = match request {
            AdminRequest::Quick(quick) => match *quick {
                Quick::Piece(piece) => self.take(manager, piece).await?,
                quick => at_once(manager, quick).await?,
            },
            AdminRequest::Long(Long::Publish(order)) => {
                drop(turn);
                let Some((upload, _place)) = self.upload.lock().await.take() else {
                    return refused(String::from("no archive was sent to be published"));
                };
                let source = PublishOrder::source_bytes(upload.path());
                long::answer(manager, Long::Publish(PublishOrder { source, ..order }), &veiled).await?
            }
            long => {
                drop(turn);
                answered(manager, long, &veiled).await?
            }
        };
        Ok(veiled.reply(reply))
    }

    /// A piece of an archive.
    async fn take(&self, manager: &Arc<Manager>, piece: Vec<u8>) -> Result<AdminReply, ManagerError> {
        let mut upload = self.upload.lock().await;
        let (mut archive, place) = match upload.take() {
            Some(begun) => begun,
            None => {
                let Some(place) = self.gate.place() else {
                    let why = String::from("too many archives are being sent at once: try again");
                    return Ok(AdminReply::Fault(Fault::Unavailable(why)));
                };
                let store = Arc::clone(&manager.store);
                (command(move || Upload::begin(&store).map_err(ManagerError::from)).await?, place)
            }
        };
        let archive = command(move || archive.add(&piece).map(|()| archive).map_err(ManagerError::from)).await?;
        *upload = Some((archive, place));
        Ok(AdminReply::Done)
    }
}

/// The first word of a command, for the log: what it was given may be a secret.
fn word(request: &AdminRequest) -> String {
    let text = match request {
        AdminRequest::Quick(quick) => format!("{quick:?}"),
        AdminRequest::Long(long) => format!("{long:?}"),
    };
    text.chars().take_while(char::is_ascii_alphanumeric).collect()
}

/// Somebody who may not see everything.
struct Veiled<'a> {
    answer: &'a Answer,
    role: Role,
}

impl Veiled<'_> {
    fn reply(&self, mut reply: AdminReply) -> AdminReply {
        match &mut reply {
            AdminReply::Job(job) => veil(self.role, job),
            AdminReply::Jobs(page) => page.jobs.iter_mut().for_each(|job| veil(self.role, job)),
            AdminReply::Ordered(jobs) => jobs.iter_mut().for_each(|job| veil(self.role, job)),
            _ => {}
        }
        reply
    }
}

impl Asker for Veiled<'_> {
    async fn event(&self, event: &AdminEvent) -> Result<(), NetError> {
        let AdminEvent::Job(job) = event else { return self.answer.event(event).await };
        let mut job = job.clone();
        veil(self.role, &mut job);
        self.answer.event(&AdminEvent::Job(job)).await
    }

    async fn cancelled(&self) {
        self.answer.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::admin::RepairOrder;

    fn run(operation: Operation) -> Role {
        let (host, product) = ("h".parse().unwrap(), "p".parse().unwrap());
        of_quick(&Quick::JobRun { host, product, operation })
    }

    #[test]
    fn who_may_order_jobs_cannot_order_the_keys_of_a_repository_by_one() {
        let name: proto::RepositoryName = "main".parse().unwrap();
        let key = proto::recovery::RecoverySecret::derive(&[7; 32]).key().unwrap();
        for order in [Keeping::Escrow(key), Keeping::AddKey(key), Keeping::RemoveKey("0".repeat(64))] {
            let keeping = Operation::Keeping { name: name.clone(), order: order.clone() };
            assert_eq!(run(keeping), Role::Admin);
            assert_eq!(of_quick(&Quick::RepositoryKeeping(name.clone(), order)), Role::Admin);
        }
        assert_eq!(of_quick(&Quick::RepositoryKeeping(name.clone(), Keeping::Keys)), Role::Operator);
        let repository = proto::agent::Repository { path: "/r".into(), password_file: None };
        let unserve = Operation::Unserve { repository: repository.clone(), name };
        assert_eq!(run(unserve), Role::Admin);
        assert_eq!(run(Operation::Check { repository, read_data: false }), Role::Operator);
    }

    #[test]
    fn whoever_looks_is_a_viewer_and_who_lets_people_in_is_an_admin() {
        use proto::name::Target;
        use proto::number::RolloutId;

        let (host, group) = (|| "h".parse::<proto::HostName>().unwrap(), || "g".parse().unwrap());
        let generation = || "p@1".parse::<proto::GenerationRef>().unwrap();
        let to = || vec![Target::Host(host())];
        let policy = || "nightly".parse().unwrap();
        let wish = crate::manager::rollout::machine::vocabulary::Wish::Pause;
        for (quick, role) in [
            (Quick::Generations(None), Role::Viewer),
            (Quick::Hosts, Role::Viewer),
            (Quick::Groups, Role::Viewer),
            (Quick::Damaged, Role::Viewer),
            (Quick::Rollouts, Role::Viewer),
            (Quick::Policy(PolicyAsk::Protection), Role::Viewer),
            (Quick::Export(generation(), to()), Role::Operator),
            (Quick::Unexport { generation: generation(), targets: to(), force: true }, Role::Operator),
            (Quick::Label(to(), Vec::new()), Role::Operator),
            (Quick::GroupAdd(group(), vec![host()]), Role::Operator),
            (Quick::GroupRule(group(), Vec::new()), Role::Operator),
            (Quick::RolloutWish(Some(RolloutId(1)), wish), Role::Operator),
            (Quick::RolloutPlan { text: String::new(), keep: false }, Role::Operator),
            (Quick::Policy(PolicyAsk::Remove(policy())), Role::Operator),
            (Quick::Policy(PolicyAsk::Pause(policy(), true)), Role::Operator),
            (Quick::Unpublish(generation()), Role::Publisher),
            (Quick::ResetProfile(generation()), Role::Publisher),
            (Quick::Piece(Vec::new()), Role::Publisher),
            (Quick::Token { host: host(), ttl_ms: 1 }, Role::Admin),
            (Quick::Revoke(host()), Role::Admin),
            (Quick::Forget(host()), Role::Admin),
            (Quick::RemoveDamaged(String::new()), Role::Admin),
            (Quick::ApiToken(ApiTokenAsk::List), Role::Admin),
        ] {
            assert_eq!(of_quick(&quick), role, "{quick:?}");
        }
        assert_eq!(needed(&Long::RolloutWatch(RolloutId(1)).into()), Ok(Role::Viewer));
        assert_eq!(needed(&Long::Gc { dry_run: true }.into()), Ok(Role::Admin));
    }

    #[test]
    fn what_names_files_of_the_managers_machine_is_asked_there() {
        let verify = |source: Option<&[u8]>| {
            let repair = Some(RepairOrder { source: source.map(<[u8]>::to_vec) });
            needed(&Long::Verify { repair }.into())
        };
        assert_eq!(verify(None), Ok(Role::Admin));
        let refused = verify(Some(b"/etc/shadow")).unwrap_err().to_string();
        assert!(refused.contains("without --manager"), "{refused}");
        let order = crate::manager::upkeep::Order { file: b"/tmp/x".to_vec(), packs: false };
        assert!(needed(&Long::Backup(order).into()).is_err());
    }

    #[test]
    fn the_log_has_a_word_of_what_was_ordered_and_nothing_that_it_was_given() {
        let token = Quick::Token { host: "secret-host".parse().unwrap(), ttl_ms: 1 };
        assert_eq!(word(&token.into()), "Token");
        assert_eq!(word(&Long::Gc { dry_run: true }.into()), "Gc");
    }
}
