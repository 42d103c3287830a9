//! What can be ordered of repositories by HTTP.

use hyper::Method;
use proto::agent::Repository;
use proto::door::Access;
use proto::{HostName, Product, RepositoryName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ask::Ask;
use super::problem::Problem;
use super::route::{Replies, Route};
use super::shape::{HostForm, ProductForm, RepositoryForm};
use crate::manager::admin::{AdminReply, Quick};
use crate::manager::control::api_tokens::Role;
use crate::manager::documents::JobDocument;
use crate::manager::repositories::RepositoryOrder;

/// A repository that is served.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RepositoryBody {
    /// What it will be called.
    #[schemars(with = "RepositoryForm")]
    name: RepositoryName,
    /// Whose media agent serves it.
    #[schemars(with = "HostForm")]
    host: HostName,
    /// Which agent of that host; without it the media agent.
    #[schemars(with = "Option<ProductForm>")]
    product: Option<Product>,
    /// Its directory there, absolute; or s3:URL, rest:URL or sftp:URL.
    #[schemars(length(min = 1, max = 4096))]
    path: String,
    /// File on that host with the password of a repository that is there already.
    password_file: Option<String>,
    /// Where agents of other hosts reach it, HOST:PORT.
    address: Option<String>,
    /// It takes the place of the one that has this name now.
    #[serde(default)]
    adopt: bool,
}

/// A token of a repository.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RepositoryTokenBody {
    /// What it lets do.
    access: AccessBody,
    /// How long it is good; 31 days at most.
    #[schemars(range(min = 1, max = 2_678_400_000_u64))]
    ttl_ms: u64,
}

/// What a token lets do.
#[derive(Deserialize, JsonSchema, Clone, Copy)]
#[serde(rename_all = "kebab-case")]
enum AccessBody {
    /// Look, check and restore.
    Read,
    /// The same, and back up.
    Append,
}

/// A token of a repository that was given.
#[derive(Debug, Serialize, JsonSchema)]
struct RepositoryTokenGivenDocument {
    /// By which it can be taken back.
    id: String,
    /// It; it is shown once.
    token: String,
}

fn job(_: &Ask, mut replies: Replies) -> Result<JobDocument, Problem> {
    let job = replies.next(|reply| if let AdminReply::Job(job) = reply { Some(job) } else { None })?;
    Ok(JobDocument::from(&job))
}

/// All of them.
pub(super) fn routes() -> Vec<Route> {
    let create = Route::quick::<JobDocument>(
        Method::POST,
        "/v1/repositories",
        Role::Operator,
        "Have a host's media agent serve a repository to agents of other hosts; it is made if it is not there",
        |ask| {
            let RepositoryBody { name, host, product, path, password_file, address, adopt } = ask.json()?;
            let usual = || "media-agent".parse().map_err(|_| Problem::unexpected());
            let product = product.map_or_else(usual, Ok)?;
            let repository = Repository { path, password_file };
            Ok(vec![Quick::RepositoryCreate(RepositoryOrder { name, host, product, repository, address, adopt })])
        },
        job,
    )
    .takes::<RepositoryBody>();
    let remove = Route::quick::<JobDocument>(
        Method::DELETE,
        "/v1/repositories/{repository}",
        Role::Operator,
        "Serve a repository no longer; what lies in it stays",
        |ask| Ok(vec![Quick::RepositoryRemove(ask.path("repository")?)]),
        job,
    );
    let give = Route::quick::<RepositoryTokenGivenDocument>(
        Method::POST,
        "/v1/repositories/{repository}/tokens",
        Role::Admin,
        "Let any program of restic's REST protocol in for a while",
        |ask| {
            let (RepositoryTokenBody { access, ttl_ms }, name) = (ask.json()?, ask.path("repository")?);
            let access = match access {
                AccessBody::Read => Access::Read,
                AccessBody::Append => Access::Add,
            };
            Ok(vec![Quick::RepositoryToken { name, access, ttl_ms }])
        },
        |_, mut replies| {
            replies.next(|reply| match reply {
                AdminReply::RepositoryToken { id, token } => Some(RepositoryTokenGivenDocument { id, token }),
                _ => None,
            })
        },
    )
    .takes::<RepositoryTokenBody>();
    let revoke = Route::quick::<JobDocument>(
        Method::DELETE,
        "/v1/repositories/{repository}/tokens/{token}",
        Role::Admin,
        "Take a token of a repository back: its agent is told at once, or as soon as it is there",
        |ask| Ok(vec![Quick::RepositoryTokenRevoke(ask.path("repository")?, ask.path("token")?)]),
        job,
    );
    vec![create, remove, give, revoke]
}

#[cfg(test)]
mod tests {
    use super::super::route::{Work, find};
    use super::*;
    use hyper::body::Bytes;

    fn asked(method: &Method, path: &str, body: &str) -> Result<Quick, u16> {
        let routes = routes();
        let (route, path) = find(&routes, method, path).map_err(|problem| problem.status)?;
        let Work::Quick(to_quick, _) = &route.work else { panic!() };
        let body = Bytes::from(body.to_owned());
        let ask = Ask { path, query: Vec::new(), body, role: route.role };
        to_quick(&ask).map(|mut all| all.remove(0)).map_err(|problem| problem.status)
    }

    #[test]
    fn a_repository_is_ordered_of_the_media_agent_unless_another_is_named() {
        let body = r#"{"name": "main", "host": "vault", "path": "s3:https://h/b", "adopt": true}"#;
        let Ok(Quick::RepositoryCreate(order)) = asked(&Method::POST, "/v1/repositories", body) else { panic!() };
        assert_eq!((order.product.as_str(), order.adopt, order.address), ("media-agent", true, None));
        assert_eq!(order.repository.path, "s3:https://h/b");
        let body = r#"{"name": "main", "host": "vault", "path": "/r", "product": "other", "address": "v:1"}"#;
        let Ok(Quick::RepositoryCreate(order)) = asked(&Method::POST, "/v1/repositories", body) else { panic!() };
        assert_eq!((order.product.as_str(), order.address.as_deref()), ("other", Some("v:1")));
        for wrong in [r#"{"name": "main"}"#, r#"{"name": "../x", "host": "v", "path": "/r"}"#, "[]"] {
            assert_eq!(asked(&Method::POST, "/v1/repositories", wrong), Err(400), "{wrong}");
        }
    }

    #[test]
    fn tokens_of_a_repository_are_given_and_taken_back_by_its_name() {
        for (word, meant) in [("read", Access::Read), ("append", Access::Add)] {
            let body = format!(r#"{{"access": "{word}", "ttl_ms": 5}}"#);
            let Ok(Quick::RepositoryToken { name, access, ttl_ms }) =
                asked(&Method::POST, "/v1/repositories/main/tokens", &body)
            else {
                panic!("{word}")
            };
            assert_eq!((name.as_str(), access, ttl_ms), ("main", meant, 5));
        }
        let write = r#"{"access": "write", "ttl_ms": 5}"#;
        assert_eq!(asked(&Method::POST, "/v1/repositories/main/tokens", write), Err(400));
        let gone = asked(&Method::DELETE, "/v1/repositories/main/tokens/7f", "");
        assert_eq!(gone, Ok(Quick::RepositoryTokenRevoke("main".parse().unwrap(), "7f".to_owned())));
        let gone = asked(&Method::DELETE, "/v1/repositories/main", "");
        assert_eq!(gone, Ok(Quick::RepositoryRemove("main".parse().unwrap())));
    }
}
