//! What can be looked at by HTTP.

use hyper::Method;
use proto::agent::JobId;
use proto::name::{PolicyName, Target};
use proto::number::RolloutId;
use proto::{GenerationRef, HostName, Product, RepositoryName};
use schemars::JsonSchema;
use serde::Serialize;

use super::ask::Ask;
use super::problem::Problem;
use super::route::{Replies, Route, Work};
use super::shape::{GENERATION, HOST, Kind, NUMBER, PRODUCT, SELECTOR, TARGET, any, may, must};
use crate::manager::admin::afar::veil;
use crate::manager::admin::{
    AdminReply, ApiTokenAnswer, ApiTokenAsk, HOSTS_PAGE, HostFilter, HostState, Long, Quick,
};
use crate::manager::control::api_tokens::Role;
use crate::manager::control::jobs::JobState;
use crate::manager::documents::{
    AgentsDocument, ApiTokensDocument, DiffDocument, EventDocument, GenerationsDocument, GroupsDocument,
    HostDocument, HostsDocument, JobDocument, JobsDocument, PoliciesDocument, PolicyDocument, ProtectionDocument,
    RepositoriesDocument, RepositoryTokensDocument, RolloutDocument, RolloutsDocument, ShownDocument,
};
use crate::manager::jobs::{JobFilter, JobPage};
use crate::manager::policy::{PolicyAnswer, PolicyAsk};

/// Agents in one answer.
const AGENTS_PAGE: usize = 2_000;
/// Jobs in one answer, if nobody says how many.
const JOBS_PAGE: u32 = 200;
/// Jobs in one answer.
const JOBS_PAGE_MAX: u64 = 10_000;

const LIMIT: &str = "so many at most; the rest is asked for by `after`";
const ONLY: Kind = Kind::Word(&["connected", "away", "revoked"]);
const JOB_STATES: Kind = Kind::Word(&["queued", "running", "done", "failed", "cancelled"]);

/// Whom one talks to, and as whom.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct StatusDocument {
    /// The version of the manager.
    pub(super) version: String,
    /// The name of the token that asks.
    pub(super) name: String,
    /// What it may do: viewer, operator, publisher or admin.
    pub(super) role: String,
    /// Where hosts reach the manager.
    pub(super) address: Option<String>,
    /// What its operator should be told.
    pub(super) notices: Vec<String>,
}

/// Records that cannot be read.
#[derive(Debug, Serialize, JsonSchema)]
struct DamagedDocument {
    /// By key.
    damaged: Vec<DamagedRecord>,
}

/// A record that cannot be read.
#[derive(Debug, Serialize, JsonSchema)]
struct DamagedRecord {
    /// Its key.
    key: String,
    /// Why it cannot be read.
    reason: String,
}

/// Everything.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(transparent)]
struct Description(serde_json::Map<String, serde_json::Value>);

/// All of them.
pub(super) fn routes() -> Vec<Route> {
    let mut all = fleet();
    all.extend(generations());
    all.extend(work());
    all.extend(others());
    all.extend(kept());
    all
}

fn get<D: Serialize + JsonSchema + 'static>(
    path: &'static str,
    role: Role,
    what: &'static str,
    ask: fn(&Ask) -> Result<Vec<Quick>, Problem>,
    answer: fn(&Ask, Replies) -> Result<D, Problem>,
) -> Route {
    Route::quick(Method::GET, path, role, what, ask, answer)
}

fn fleet() -> Vec<Route> {
    let hosts = get("/v1/hosts", Role::Viewer, "Hosts, by name", ask_hosts, answer_hosts).with([
        any("of", TARGET, "only this host, or the hosts of this group (@GROUP)"),
        any("label", SELECTOR, "only hosts whose labels meet this: site=fra, site!=fra, site, !site"),
        may("only", ONLY, "only hosts in this state"),
        may("limit", Kind::Number(1, HOSTS_PAGE as u64), LIMIT),
        may("after", HOST, "only hosts whose names come after this one"),
    ]);
    let host = get(
        "/v1/hosts/{host}",
        Role::Viewer,
        "One host",
        |ask| {
            let to = vec![Target::Host(ask.path("host")?)];
            Ok(vec![Quick::HostPage(HostFilter { to, ..HostFilter::default() })])
        },
        |ask, mut replies| {
            let hosts =
                replies.next(|reply| if let AdminReply::Hosts(hosts) = reply { Some(hosts) } else { None })?;
            let host: HostName = ask.path("host")?;
            hosts
                .first()
                .map(HostDocument::from)
                .ok_or_else(|| Problem::not_found(format!("there is no host {host}")))
        },
    );
    let agents =
        get("/v1/agents", Role::Viewer, "What runs where", |_| Ok(vec![Quick::Agents]), answer_agents).with([
            may("host", HOST, "only of this host"),
            may("product", PRODUCT, "only of this product"),
            may("limit", Kind::Number(1, AGENTS_PAGE as u64), LIMIT),
            may("after", HOST, "only of hosts whose names come after this one"),
        ]);
    let groups = get(
        "/v1/groups",
        Role::Viewer,
        "Groups with their hosts and rules",
        |_| Ok(vec![Quick::Groups, Quick::Rules]),
        |_, mut replies| {
            let groups = replies.next(|reply| if let AdminReply::Groups(all) = reply { Some(all) } else { None })?;
            let rules = replies.next(|reply| if let AdminReply::Rules(all) = reply { Some(all) } else { None })?;
            Ok(GroupsDocument::of(&groups, &rules))
        },
    );
    vec![hosts, host, agents, groups]
}

pub(super) fn ask_hosts(ask: &Ask) -> Result<Vec<Quick>, Problem> {
    let state = match ask.one::<String>("only")?.as_deref() {
        None => None,
        Some("connected") => Some(HostState::Connected),
        Some("away") => Some(HostState::Away),
        Some("revoked") => Some(HostState::Revoked),
        Some(_) => return Err(Problem::bad_request("only: want connected, away or revoked")),
    };
    limit(ask, HOSTS_PAGE)?;
    let filter = HostFilter { to: ask.many("of")?, labels: ask.many("label")?, state, after: ask.one("after")? };
    Ok(vec![Quick::HostPage(filter)])
}

fn answer_hosts(ask: &Ask, mut replies: Replies) -> Result<HostsDocument, Problem> {
    let mut hosts = replies.next(|reply| if let AdminReply::Hosts(hosts) = reply { Some(hosts) } else { None })?;
    let limit = limit(ask, HOSTS_PAGE)?;
    let more = hosts.len() > limit || hosts.len() == HOSTS_PAGE;
    hosts.truncate(limit);
    let next = hosts.last().filter(|_| more).map(|host| host.name.to_string());
    Ok(HostsDocument { next, ..HostsDocument::of(&hosts) })
}

fn answer_agents(ask: &Ask, mut replies: Replies) -> Result<AgentsDocument, Problem> {
    let mut agents = replies.next(|reply| if let AdminReply::Agents(all) = reply { Some(all) } else { None })?;
    let (host, after): (Option<HostName>, Option<HostName>) = (ask.one("host")?, ask.one("after")?);
    let (product, limit): (Option<Product>, _) = (ask.one("product")?, limit(ask, AGENTS_PAGE)?);
    agents.retain(|agent| {
        host.as_ref().is_none_or(|host| agent.host == *host)
            && after.as_ref().is_none_or(|after| agent.host > *after)
            && product.as_ref().is_none_or(|product| agent.status.product == *product)
    });
    // The agents of one host stay together: `after` names a host.
    let cut = agents.get(limit).map(|first| first.host.clone());
    let next = cut.and_then(|cut| {
        let whole = agents.iter().position(|agent| agent.host == cut).unwrap_or(limit);
        // A host with more agents than are asked for comes whole, too.
        let end = if whole == 0 { agents.iter().take_while(|agent| agent.host == cut).count() } else { whole };
        agents.truncate(end);
        agents.last().map(|agent| agent.host.to_string())
    });
    Ok(AgentsDocument { next, ..AgentsDocument::of(&agents) })
}

fn limit(ask: &Ask, page: usize) -> Result<usize, Problem> {
    match ask.one::<usize>("limit")? {
        None => Ok(page),
        Some(limit) if (1..=page).contains(&limit) => Ok(limit),
        Some(_) => Err(Problem::bad_request(format!("limit: want 1 to {page}"))),
    }
}

fn generations() -> Vec<Route> {
    let list = get(
        "/v1/generations",
        Role::Viewer,
        "Generations",
        |ask| Ok(vec![Quick::Generations(ask.one("product")?)]),
        |_, mut replies| {
            let all =
                replies.next(|reply| if let AdminReply::Generations(all) = reply { Some(all) } else { None })?;
            Ok(GenerationsDocument::of(&all))
        },
    )
    .with([may("product", PRODUCT, "only of this product")]);
    let one = get(
        "/v1/generations/{generation}",
        Role::Viewer,
        "One generation with its metadata",
        |ask| Ok(vec![Quick::Show(ask.path("generation")?)]),
        |_, mut replies| {
            let one = replies.next(|reply| if let AdminReply::Generation(one) = reply { Some(one) } else { None })?;
            Ok(ShownDocument::from(&one))
        },
    );
    let diff = get(
        "/v1/diff",
        Role::Viewer,
        "What differs between two generations",
        |ask| {
            let (Some(old), Some(new)) = (ask.one::<GenerationRef>("old")?, ask.one("new")?) else {
                return Err(Problem::bad_request("old and new are wanted"));
            };
            Ok(vec![Quick::Diff(old, new)])
        },
        |_, mut replies| {
            let found = replies.next(|reply| if let AdminReply::Diff(found) = reply { Some(found) } else { None })?;
            Ok(DiffDocument::from(found))
        },
    )
    .with([must("old", GENERATION, "from this generation"), must("new", GENERATION, "to this one")]);
    vec![list, one, diff]
}

fn work() -> Vec<Route> {
    let jobs =
        get("/v1/jobs", Role::Viewer, "The newest jobs, oldest of them first", ask_jobs, |ask, mut replies| {
            let JobPage { mut jobs, more } =
                replies.next(|reply| if let AdminReply::Jobs(page) = reply { Some(page) } else { None })?;
            jobs.iter_mut().for_each(|job| veil(ask.role, job));
            Ok(JobsDocument::of(&jobs, more))
        })
        .with([
            may("limit", Kind::Number(1, JOBS_PAGE_MAX), "so many at most"),
            may("host", TARGET, "on this host, or the hosts of this group (@GROUP)"),
            any("only", JOB_STATES, "only in one of these states"),
            may("since_unix_ms", Kind::Number(0, 1 << 50), "ordered since then"),
            may("policy", super::shape::NAME, "ordered by this policy"),
            may("product", PRODUCT, "of this agent"),
            any("kind", Kind::Text("^[a-z0-9][a-z0-9-]{0,31}$"), "of one of these kinds, such as backup"),
            may("before", NUMBER, "ordered before this one"),
        ]);
    let job = get(
        "/v1/jobs/{job}",
        Role::Viewer,
        "One job. What it read out of a repository is shown to operators",
        |ask| Ok(vec![Quick::Job(ask.path("job")?)]),
        |ask, mut replies| {
            let mut job = replies.next(|reply| if let AdminReply::Job(job) = reply { Some(job) } else { None })?;
            veil(ask.role, &mut job);
            Ok(JobDocument::from(&job))
        },
    );
    let rollouts = get(
        "/v1/rollouts",
        Role::Viewer,
        "Every rollout, the newest last",
        |_| Ok(vec![Quick::Rollouts]),
        |_, mut replies| {
            let all = replies.next(|reply| if let AdminReply::Rollouts(all) = reply { Some(all) } else { None })?;
            Ok(RolloutsDocument::of(&all))
        },
    );
    let rollout = get(
        "/v1/rollouts/{rollout}",
        Role::Viewer,
        "One rollout: its rings, its gates, why hosts are not as ordered, and what happened",
        |ask| Ok(vec![Quick::Rollout(Some(ask.path("rollout")?))]),
        |_, replies| rollout(replies),
    );
    vec![jobs, job, rollouts, rollout]
}

/// The reply to whatever is asked of one rollout.
pub(super) fn rollout(mut replies: Replies) -> Result<RolloutDocument, Problem> {
    let view = replies.next(|reply| if let AdminReply::Rollout(view) = reply { Some(view) } else { None })?;
    Ok(RolloutDocument::from(view.as_ref()))
}

fn ask_jobs(ask: &Ask) -> Result<Vec<Quick>, Problem> {
    let states = ask.many::<String>("only")?.iter().map(|word| job_state(word)).collect::<Result<_, _>>()?;
    let limit = ask.one::<u32>("limit")?.unwrap_or(JOBS_PAGE);
    if u64::from(limit) > JOBS_PAGE_MAX {
        return Err(Problem::bad_request(format!("limit: want {JOBS_PAGE_MAX} at most")));
    }
    Ok(vec![Quick::Jobs(JobFilter {
        limit,
        host: ask.one("host")?,
        states,
        since: ask.one("since_unix_ms")?,
        policy: ask.one("policy")?,
        product: ask.one("product")?,
        kinds: ask.many("kind")?,
        before: ask.one("before")?,
    })])
}

fn job_state(word: &str) -> Result<JobState, Problem> {
    match word {
        "queued" => Ok(JobState::Queued),
        "running" => Ok(JobState::Running),
        "done" => Ok(JobState::Done),
        "failed" => Ok(JobState::Failed),
        "cancelled" => Ok(JobState::Cancelled),
        _ => Err(Problem::bad_request("only: want queued, running, done, failed or cancelled")),
    }
}

fn others() -> Vec<Route> {
    vec![
        Route::other::<StatusDocument>(
            Method::GET,
            "/v1/status",
            Role::Viewer,
            "Whom one talks to, and as whom",
            Work::Status,
        ),
        Route::other::<Description>(
            Method::GET,
            "/v1/openapi.json",
            Role::Viewer,
            "The description of this interface",
            Work::Description,
        ),
        events(),
        get(
            "/v1/policies",
            Role::Viewer,
            "Every policy",
            |_| Ok(vec![Quick::Policy(PolicyAsk::All)]),
            |_, mut replies| {
                let all =
                    |reply| if let AdminReply::Policy(PolicyAnswer::All(all)) = reply { Some(all) } else { None };
                Ok(PoliciesDocument::of(&replies.next(all)?))
            },
        ),
        get(
            "/v1/policies/{policy}",
            Role::Viewer,
            "One policy, and how it stands on its hosts",
            ask_policy,
            |_, replies| policy(replies),
        )
        .with([may("host", HOST, "only on this host")]),
        get(
            "/v1/protection",
            Role::Viewer,
            "Of each source the newest good backup, and what is at risk",
            |_| Ok(vec![Quick::Policy(PolicyAsk::Protection)]),
            answer_protection,
        )
        .with([may("at_risk", Kind::Truth, "only what is at risk")]),
    ]
}

/// What the manager keeps of repositories, of itself, and of who uses this.
fn kept() -> Vec<Route> {
    vec![
        get(
            "/v1/repositories",
            Role::Viewer,
            "Repositories that media agents serve",
            |_| Ok(vec![Quick::Repositories]),
            |_, mut replies| {
                let all =
                    replies.next(|reply| if let AdminReply::Repositories(all) = reply { Some(all) } else { None })?;
                Ok(RepositoriesDocument::of(&all))
            },
        ),
        get(
            "/v1/repositories/{repository}/tokens",
            Role::Viewer,
            "The tokens of a repository that were given",
            |ask| Ok(vec![Quick::RepositoryTokens(ask.path("repository")?)]),
            |ask, mut replies| {
                let all = |reply| if let AdminReply::RepositoryTokens(all) = reply { Some(all) } else { None };
                let name: RepositoryName = ask.path("repository")?;
                Ok(RepositoryTokensDocument::of(&name, &replies.next(all)?))
            },
        ),
        get(
            "/v1/records",
            Role::Viewer,
            "Records of the manager that cannot be read",
            |_| Ok(vec![Quick::Damaged]),
            |_, mut replies| {
                let all =
                    replies.next(|reply| if let AdminReply::Damaged(all) = reply { Some(all) } else { None })?;
                Ok(DamagedDocument {
                    damaged: all.into_iter().map(|(key, reason)| DamagedRecord { key, reason }).collect(),
                })
            },
        ),
        get(
            "/v1/api-tokens",
            Role::Admin,
            "Who may use this interface",
            |_| Ok(vec![Quick::ApiToken(ApiTokenAsk::List)]),
            |_, mut replies| {
                let all =
                    |reply| if let AdminReply::ApiToken(ApiTokenAnswer::All(all)) = reply { Some(all) } else { None };
                Ok(ApiTokensDocument::of(&replies.next(all)?))
            },
        ),
    ]
}

fn events() -> Route {
    let what = "What goes on, as it happens: of one rollout until it no longer goes on by itself, or of one job until it \
                is over";
    let ask = |ask: &Ask| match (ask.one::<RolloutId>("rollout")?, ask.one::<JobId>("job")?) {
        (Some(rollout), None) => Ok(Long::RolloutWatch(rollout)),
        (None, Some(job)) => Ok(Long::JobWait(job)),
        _ => Err(Problem::bad_request("say which rollout, or which job")),
    };
    Route::long::<EventDocument>(Method::GET, "/v1/events", Role::Viewer, what, Work::Long(ask))
        .with([may("rollout", NUMBER, "of this rollout"), may("job", NUMBER, "of this job")])
}

fn ask_policy(ask: &Ask) -> Result<Vec<Quick>, Problem> {
    let name: PolicyName = ask.path("policy")?;
    Ok(vec![Quick::Policy(PolicyAsk::One(name, ask.one("host")?))])
}

/// The reply to whatever is asked of one policy.
pub(super) fn policy(mut replies: Replies) -> Result<PolicyDocument, Problem> {
    let one = |reply| if let AdminReply::Policy(PolicyAnswer::One(view)) = reply { Some(view) } else { None };
    Ok(PolicyDocument::from(replies.next(one)?.as_ref()))
}

fn answer_protection(ask: &Ask, mut replies: Replies) -> Result<ProtectionDocument, Problem> {
    let of = |reply| if let AdminReply::Policy(PolicyAnswer::Protection(view)) = reply { Some(view) } else { None };
    let mut view = replies.next(of)?;
    if ask.flag("at_risk")? {
        view.rows.retain(|row| !row.risks.is_empty());
    }
    Ok(ProtectionDocument::from(&view))
}
