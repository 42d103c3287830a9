//! What can be ordered by HTTP.

use hyper::Method;
use proto::name::{ApiTokenName, PolicyName, Target};
use proto::number::RolloutId;
use proto::{GenerationRef, Product};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ask::{Ask, from_text, from_text_if_any, from_texts};
use super::problem::Problem;
use super::reads::{policy, rollout};
use super::route::{Replies, Route, Work};
use super::shape::{
    GENERATION, GenerationForm, Kind, PRODUCT, ProductForm, RoleForm, TARGET, TargetForm, TaskForm, TokenForm,
    VERSION, any, may, must,
};
use crate::manager::admin::{
    AdminReply, ApiTokenAnswer, ApiTokenAsk, Long, PublishOrder, Quick, RepairOrder, VerifyView,
};
use crate::manager::control::api_tokens::Role;
use crate::manager::documents::{
    ChangedDocument, JobDocument, PolicyDocument, PolicyRanDocument, PublishedDocument, RolloutDocument,
    UpgradedDocument,
};
use crate::manager::policy::machine::vocabulary::Task;
use crate::manager::policy::{PolicyAnswer, PolicyAsk, Typed};
use crate::manager::rollout::ForceOrder;
use crate::manager::rollout::machine::vocabulary::Wish;
use crate::manager::store::GcReport;
use crate::manager::upgrade::UpgradeOrder;

/// It is done.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct DoneDocument {
    /// Always `true`.
    done: bool,
}

pub(super) fn done(_: &Ask, mut replies: Replies) -> Result<DoneDocument, Problem> {
    replies.next(|reply| if let AdminReply::Done = reply { Some(DoneDocument { done: true }) } else { None })
}

/// All of them.
pub(super) fn routes() -> Vec<Route> {
    let mut all = changes_over();
    all.extend(generations());
    all.extend(work());
    all.extend(people());
    all
}

/// Tell running agents to change over.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct UpgradeBody {
    /// Whose agents.
    #[schemars(with = "ProductForm")]
    product: Product,
    /// To which generation, in either direction.
    #[schemars(with = "GenerationForm")]
    #[serde(deserialize_with = "from_text")]
    generation: GenerationRef,
    /// On these hosts, and those of these groups.
    #[schemars(with = "Vec<TargetForm>", length(min = 1, max = 10_000))]
    #[serde(deserialize_with = "from_texts")]
    to: Vec<Target>,
    /// Change over before every object is local.
    #[serde(default)]
    lazy: bool,
    /// How long operations may take to finish.
    drain_deadline_ms: Option<u64>,
    /// Also where the generation failed before.
    #[serde(default)]
    retry_bad: bool,
    /// Export the generation to them first.
    #[serde(default)]
    export: bool,
    /// Wait for the end; otherwise only until it is ordered.
    #[serde(default)]
    wait: bool,
    /// Wait at most this long.
    timeout_ms: Option<u64>,
}

/// A plan of a rollout.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PlanBody {
    /// TOML, as docs/rollouts.md has it.
    plan: String,
}

fn changes_over() -> Vec<Route> {
    let upgrade =
        Route::long::<UpgradedDocument>(
            Method::POST,
            "/v1/upgrades",
            Role::Operator,
            "Tell running agents to change over. What was ordered goes on when the asker goes away",
            Work::Long(|ask| {
                let body: UpgradeBody = ask.json()?;
                let UpgradeBody {
                    product,
                    generation,
                    to,
                    lazy,
                    drain_deadline_ms,
                    retry_bad,
                    export,
                    wait,
                    timeout_ms,
                } = body;
                let targets = some(to, "to")?;
                Ok(Long::Upgrade(UpgradeOrder {
                    product,
                    generation,
                    targets,
                    lazy,
                    drain_deadline_ms,
                    retry_bad,
                    export,
                    wait,
                    timeout_ms,
                }))
            }),
        )
        .takes::<UpgradeBody>();
    let plan = Route::quick::<RolloutDocument>(
        Method::POST,
        "/v1/rollouts",
        Role::Operator,
        "Check a plan of a rollout and keep it under a number; nothing is ordered yet",
        |ask| {
            let PlanBody { plan: text } = ask.json()?;
            Ok(vec![Quick::RolloutPlan { text, keep: !ask.flag("dry_run")? }])
        },
        |_, replies| rollout(replies),
    )
    .with([may("dry_run", Kind::Truth, "only show what it means now; keep nothing")])
    .takes::<PlanBody>();
    let wish = Route::quick::<RolloutDocument>(
        Method::POST,
        "/v1/rollouts/{rollout}/{wish}",
        Role::Operator,
        "Begin a rollout, stop it for now, let it go on, give it up, or take it back",
        |ask| {
            let id: RolloutId = ask.path("rollout")?;
            Ok(vec![Quick::RolloutWish(Some(id), wish_of(&ask.path::<String>("wish")?)?)])
        },
        |_, replies| rollout(replies),
    );
    vec![upgrade, plan, force(), wish]
}

/// A host that is ordered out of its turn.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ForceBody {
    /// Why, for whoever reads it later.
    #[schemars(length(min = 1, max = 400))]
    reason: String,
}

fn force() -> Route {
    Route::quick::<RolloutDocument>(
        Method::POST,
        "/v1/rollouts/{rollout}/hosts/{host}",
        Role::Operator,
        "Order a host now: before its turn, outside of its window, or once more where it has failed",
        |ask| {
            let ForceBody { reason } = ask.json()?;
            let (rollout, host) = (Some(ask.path("rollout")?), ask.path("host")?);
            Ok(vec![Quick::RolloutForce(ForceOrder { rollout, host, reason })])
        },
        |_, replies| rollout(replies),
    )
    .takes::<ForceBody>()
}

/// What a word wishes of a rollout.
pub(super) fn wish_of(word: &str) -> Result<Wish, Problem> {
    match word {
        "start" => Ok(Wish::Start),
        "pause" => Ok(Wish::Pause),
        "resume" => Ok(Wish::Resume),
        "abort" => Ok(Wish::Abort),
        "rollback" => Ok(Wish::Rollback),
        _ => Err(Problem::not_found("of a rollout one can wish start, pause, resume, abort and rollback")),
    }
}

/// Of what nothing can be meant, nothing is asked.
pub(super) fn some<T>(list: Vec<T>, name: &str) -> Result<Vec<T>, Problem> {
    if list.is_empty() { Err(Problem::bad_request(format!("{name}: name at least one"))) } else { Ok(list) }
}

/// Who may see a generation.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ExportBody {
    /// Hosts and groups.
    #[schemars(with = "Vec<TargetForm>", length(min = 1, max = 10_000))]
    #[serde(deserialize_with = "from_texts")]
    to: Vec<Target>,
}

/// Files that become a generation.
fn publish() -> Route {
    Route::long::<PublishedDocument>(
        Method::POST,
        "/v1/generations",
        Role::Publisher,
        "Publish the archive that is the body, of any kind that `publish` takes",
        Work::Publish(|ask| {
            let (product, version) = (ask.one("product")?, ask.one("version")?);
            let missing = || Problem::bad_request("product and version: name them");
            Ok(PublishOrder {
                product: product.ok_or_else(missing)?,
                version: version.ok_or_else(missing)?,
                source: Vec::new(),
                onto: ask.one("onto")?,
                entry_point: ask.one("entrypoint")?,
                chunk_bytes: ask.one("chunk_bytes")?,
                strict: ask.flag("strict")?,
            })
        }),
    )
    .with([
        must("product", PRODUCT, "the product that gets a version"),
        must("version", VERSION, "the version's name"),
        may("onto", GENERATION, "the body is a service pack, laid over this generation"),
        may("entrypoint", Kind::Text("^[^\\u0000]{1,4096}$"), "path of the program to start"),
        may("chunk_bytes", Kind::Number(4096, 1 << 20), "size of the tree's chunks"),
        may("strict", Kind::Truth, "refuse a tar archive that has a path twice"),
    ])
}

fn generations() -> Vec<Route> {
    let export = Route::quick(
        Method::POST,
        "/v1/generations/{generation}/exports",
        Role::Operator,
        "Let hosts see and fetch a generation",
        |ask| {
            let ExportBody { to } = ask.json()?;
            Ok(vec![Quick::Export(ask.path("generation")?, some(to, "to")?)])
        },
        |ask, mut replies| {
            let changed = replies.next(|reply| if let AdminReply::Changed(of) = reply { Some(of) } else { None })?;
            let ExportBody { to } = ask.json()?;
            Ok(ChangedDocument::of(&ask.path("generation")?, &to, &changed))
        },
    )
    .takes::<ExportBody>();
    let unexport = Route::quick(
        Method::DELETE,
        "/v1/generations/{generation}/exports",
        Role::Operator,
        "Take an export back",
        |ask| {
            let (generation, targets) = (ask.path("generation")?, some(ask.many("from")?, "from")?);
            Ok(vec![Quick::Unexport { generation, targets, force: ask.flag("force")? }])
        },
        |ask, mut replies| {
            let changed = replies.next(|reply| if let AdminReply::Changed(of) = reply { Some(of) } else { None })?;
            Ok(ChangedDocument::of(&ask.path("generation")?, &ask.many("from")?, &changed))
        },
    )
    .with([
        super::shape::Parameter {
            required: true,
            ..any("from", TARGET, "each host or group that may see it no longer")
        },
        may("force", Kind::Truth, "also where it is attached"),
    ]);
    let unpublish = Route::quick(
        Method::DELETE,
        "/v1/generations/{generation}",
        Role::Publisher,
        "Take a generation back that is neither exported nor attached",
        |ask| Ok(vec![Quick::Unpublish(ask.path("generation")?)]),
        done,
    );
    let reset = Route::quick(
        Method::DELETE,
        "/v1/generations/{generation}/profile",
        Role::Publisher,
        "Forget what was recorded of a generation's starts",
        |ask| Ok(vec![Quick::ResetProfile(ask.path("generation")?)]),
        done,
    );
    let gc = Route::long::<GcReport>(
        Method::POST,
        "/v1/gc",
        Role::Admin,
        "Remove from the store what nothing needs",
        Work::Long(|ask| Ok(Long::Gc { dry_run: ask.flag("dry_run")? })),
    )
    .with([may("dry_run", Kind::Truth, "only say what would be removed")]);
    let verify = Route::long::<VerifyView>(
        Method::POST,
        "/v1/verify",
        Role::Admin,
        "Check every byte of the store",
        Work::Long(|ask| Ok(Long::Verify { repair: ask.flag("repair")?.then(RepairOrder::default) })),
    )
    .with([may("repair", Kind::Truth, "put back what is damaged or gone, out of packs and from hosts")]);
    vec![publish(), export, unexport, unpublish, reset, gc, verify]
}

/// A policy.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PolicyBody {
    /// TOML, as docs/policies.md has it.
    text: String,
}

/// A task that is begun now.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RunBody {
    /// Which.
    #[schemars(with = "TaskForm")]
    task: Task,
    /// On this host, or those of this group; without it on all of the policy's.
    #[schemars(with = "Option<TargetForm>")]
    #[serde(default, deserialize_with = "from_text_if_any")]
    host: Option<Target>,
}

fn work() -> Vec<Route> {
    let cancel = Route::quick::<JobDocument>(
        Method::POST,
        "/v1/jobs/{job}/cancel",
        Role::Operator,
        "Stop a job",
        |ask| Ok(vec![Quick::JobCancel(ask.path("job")?)]),
        |_, mut replies| {
            let job = replies.next(|reply| if let AdminReply::Job(job) = reply { Some(job) } else { None })?;
            Ok(JobDocument::from(&job))
        },
    );
    let apply = Route::quick::<PolicyDocument>(
        Method::POST,
        "/v1/policies",
        Role::Operator,
        "Take a policy, or what it is from now on",
        |ask| {
            let (PolicyBody { text }, dry_run) = (ask.json()?, ask.flag("dry_run")?);
            Ok(vec![Quick::Policy(PolicyAsk::Apply { order: Typed::Text(text), new: false, dry_run })])
        },
        |ask, mut replies| {
            let of = |reply| match reply {
                AdminReply::Policy(PolicyAnswer::Changed(changes, view)) => Some((changes, view)),
                _ => None,
            };
            let (changes, view) = replies.next(of)?;
            let applied = Some(!ask.flag("dry_run")? && !changes.is_empty());
            Ok(PolicyDocument { changes: Some(changes), applied, ..PolicyDocument::from(view.as_ref()) })
        },
    )
    .with([may("dry_run", Kind::Truth, "only say what would change")])
    .takes::<PolicyBody>();
    let remove = Route::quick(
        Method::DELETE,
        "/v1/policies/{policy}",
        Role::Operator,
        "Forget a policy; its snapshots and jobs stay",
        |ask| Ok(vec![Quick::Policy(PolicyAsk::Remove(ask.path("policy")?))]),
        |_, replies| policy(replies),
    );
    let run = Route::quick(
        Method::POST,
        "/v1/policies/{policy}/runs",
        Role::Operator,
        "Begin a task now, whatever its schedule and window say",
        |ask| {
            let (RunBody { task, host }, policy) = (ask.json()?, ask.path("policy")?);
            Ok(vec![Quick::Policy(PolicyAsk::Run { policy, task, host })])
        },
        |_, mut replies| {
            let of = |reply| match reply {
                AdminReply::Policy(PolicyAnswer::Ran(jobs, not)) => Some((jobs, not)),
                _ => None,
            };
            let (jobs, not) = replies.next(of)?;
            Ok(PolicyRanDocument::of(&jobs, &not))
        },
    )
    .takes::<RunBody>();
    vec![cancel, apply, remove, run, pause()]
}

fn pause() -> Route {
    Route::quick(
        Method::POST,
        "/v1/policies/{policy}/{halt}",
        Role::Operator,
        "Order nothing more of a policy for now (pause), or go on (resume)",
        |ask| {
            let name: PolicyName = ask.path("policy")?;
            let pause = match ask.path::<String>("halt")?.as_str() {
                "pause" => true,
                "resume" => false,
                _ => return Err(Problem::not_found("of a policy one can wish pause and resume")),
            };
            Ok(vec![Quick::Policy(PolicyAsk::Pause(name, pause))])
        },
        |_, replies| policy(replies),
    )
}

/// A token of this interface.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ApiTokenBody {
    /// What it will be called.
    #[schemars(with = "TokenForm")]
    name: ApiTokenName,
    /// What whoever has it may do.
    #[schemars(with = "RoleForm")]
    role: Role,
    /// For how long; without it until it is taken back.
    ttl_ms: Option<u64>,
}

/// A token that was given.
#[derive(Debug, Serialize, JsonSchema)]
struct ApiTokenGivenDocument {
    /// What it is called.
    name: String,
    /// It; it is shown once.
    token: String,
}

fn people() -> Vec<Route> {
    let add = Route::quick(
        Method::POST,
        "/v1/api-tokens",
        Role::Admin,
        "Let somebody use this interface",
        |ask| {
            let ApiTokenBody { name, role, ttl_ms } = ask.json()?;
            Ok(vec![Quick::ApiToken(ApiTokenAsk::Add { name, role, ttl_ms, certificate: None })])
        },
        |ask, mut replies| {
            let of = |reply| match reply {
                AdminReply::ApiToken(ApiTokenAnswer::Added(token)) => token,
                _ => None,
            };
            let token = replies.next(of)?;
            let ApiTokenBody { name, .. } = ask.json()?;
            Ok(ApiTokenGivenDocument { name: name.to_string(), token })
        },
    )
    .takes::<ApiTokenBody>();
    let revoke = Route::quick(
        Method::DELETE,
        "/v1/api-tokens/{token}",
        Role::Admin,
        "Take a token back; it opens nothing from the next request on",
        |ask| Ok(vec![Quick::ApiToken(ApiTokenAsk::Revoke(ask.path("token")?))]),
        |_, mut replies| {
            replies.next(|reply| match reply {
                AdminReply::ApiToken(ApiTokenAnswer::Revoked) => Some(DoneDocument { done: true }),
                _ => None,
            })
        },
    );
    let record = Route::quick(
        Method::DELETE,
        "/v1/records",
        Role::Admin,
        "Remove a record that cannot be read; one that can is never removed",
        |ask| Ok(vec![Quick::RemoveDamaged(ask.one("key")?.unwrap_or_default())]),
        done,
    )
    .with([must("key", Kind::Text("^[!-~]{1,768}$"), "its key")]);
    vec![add, revoke, record]
}
