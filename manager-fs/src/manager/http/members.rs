//! What can be ordered of hosts and groups by HTTP.

use hyper::Method;
use proto::name::Target;
use proto::{GroupName, HostName};
use schemars::JsonSchema;
use serde::Deserialize;

use super::ask::{Ask, from_texts};
use super::orders::{done, some};
use super::problem::Problem;
use super::route::{Replies, Route};
use super::shape::{HOST, HostForm, LabelForm, SelectorForm, TargetForm, any};
use crate::manager::admin::{AdminReply, Quick};
use crate::manager::control::api_tokens::Role;
use crate::manager::documents::{EnrolmentDocument, GroupChangedDocument};
use crate::manager::labels::{LabelChange, Selector};

/// All of them.
pub(super) fn routes() -> Vec<Route> {
    let mut all = hosts();
    all.extend(groups());
    all
}

/// Labels that change.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LabelsBody {
    /// Of these hosts, and those of these groups.
    #[schemars(with = "Vec<TargetForm>", length(min = 1, max = 10_000))]
    #[serde(deserialize_with = "from_texts")]
    of: Vec<Target>,
    /// KEY=VALUE, or KEY- to take it away.
    #[schemars(with = "Vec<LabelForm>", length(min = 1, max = 32))]
    #[serde(deserialize_with = "from_texts")]
    labels: Vec<LabelChange>,
}

/// How long a token may be used at most: a leap year.
const TTL_MS_MAX: u64 = 366 * 24 * 3600 * 1000;

/// A host that is let in.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EnrolmentBody {
    /// The name that it will have.
    #[schemars(with = "HostForm")]
    host: HostName,
    /// How long the token may be used.
    #[serde(default = "a_day")]
    #[schemars(range(min = 1, max = TTL_MS_MAX))]
    ttl_ms: u64,
}

fn a_day() -> u64 {
    24 * 3600 * 1000
}

/// Those on hosts.
fn hosts() -> Vec<Route> {
    let labels = Route::quick(
        Method::POST,
        "/v1/labels",
        Role::Operator,
        "Change the labels of hosts",
        |ask| {
            let LabelsBody { of, labels } = ask.json()?;
            Ok(vec![Quick::Label(some(of, "of")?, some(labels, "labels")?)])
        },
        done,
    )
    .takes::<LabelsBody>();
    let revoke = Route::quick(
        Method::POST,
        "/v1/hosts/{host}/revoke",
        Role::Admin,
        "Refuse a host from now on; its connections are cut",
        |ask| Ok(vec![Quick::Revoke(ask.path("host")?)]),
        done,
    );
    let forget = Route::quick(
        Method::DELETE,
        "/v1/hosts/{host}",
        Role::Admin,
        "Forget a host with its groups, the exports to it and what it reported",
        |ask| Ok(vec![Quick::Forget(ask.path("host")?)]),
        done,
    );
    let enrol = Route::quick(
        Method::POST,
        "/v1/enrolments",
        Role::Admin,
        "A one-time token that enrols a host",
        |ask| {
            let EnrolmentBody { host, ttl_ms } = ask.json()?;
            if !(1..=TTL_MS_MAX).contains(&ttl_ms) {
                return Err(Problem::bad_request(format!("ttl_ms: want 1 to {TTL_MS_MAX}")));
            }
            Ok(vec![Quick::Token { host, ttl_ms }])
        },
        |ask, mut replies| {
            let token =
                replies.next(|reply| if let AdminReply::Token(token) = reply { Some(token) } else { None })?;
            let EnrolmentBody { host, ttl_ms } = ask.json()?;
            Ok(EnrolmentDocument::of(&host, token, ttl_ms))
        },
    )
    .takes::<EnrolmentBody>();
    vec![labels, revoke, forget, enrol]
}

/// Hosts of a group.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct MembersBody {
    /// They need not be enrolled yet.
    #[schemars(with = "Vec<HostForm>", length(min = 1, max = 10_000))]
    hosts: Vec<HostName>,
}

/// A rule of a group.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RuleBody {
    /// What all of its hosts meet; none: the rule is taken away.
    #[schemars(with = "Vec<SelectorForm>", length(max = 16))]
    #[serde(deserialize_with = "from_texts")]
    rule: Vec<Selector>,
}

fn group_changed(ask: &Ask, mut replies: Replies) -> Result<GroupChangedDocument, Problem> {
    let not_enrolled = replies.next(|reply| match reply {
        AdminReply::Changed(changed) => Some(changed.not_enrolled),
        AdminReply::Done => Some(Vec::new()),
        _ => None,
    })?;
    let groups = replies.next(|reply| if let AdminReply::Groups(all) = reply { Some(all) } else { None })?;
    Ok(GroupChangedDocument::of(&ask.path::<GroupName>("group")?, &groups, &not_enrolled))
}

fn groups() -> Vec<Route> {
    let add = Route::quick(
        Method::POST,
        "/v1/groups/{group}/hosts",
        Role::Operator,
        "Add hosts to a group, which is made if need be",
        |ask| {
            let MembersBody { hosts } = ask.json()?;
            Ok(vec![Quick::GroupAdd(ask.path("group")?, some(hosts, "hosts")?), Quick::Groups])
        },
        group_changed,
    )
    .takes::<MembersBody>();
    let remove = Route::quick(
        Method::DELETE,
        "/v1/groups/{group}/hosts",
        Role::Operator,
        "Remove hosts from a group",
        |ask| Ok(vec![Quick::GroupRemove(ask.path("group")?, some(ask.many("host")?, "host")?), Quick::Groups]),
        group_changed,
    )
    .with([super::shape::Parameter { required: true, ..any("host", HOST, "each of them") }]);
    let rule = Route::quick(
        Method::PUT,
        "/v1/groups/{group}/rule",
        Role::Operator,
        "Say which hosts are in a group by their labels, beside those that were added to it",
        |ask| {
            let RuleBody { rule } = ask.json()?;
            Ok(vec![Quick::GroupRule(ask.path("group")?, rule), Quick::Groups])
        },
        group_changed,
    )
    .takes::<RuleBody>();
    let delete = Route::quick(
        Method::DELETE,
        "/v1/groups/{group}",
        Role::Operator,
        "Delete a group and the exports to it",
        |ask| Ok(vec![Quick::GroupDelete(ask.path("group")?)]),
        done,
    );
    vec![add, remove, rule, delete]
}
