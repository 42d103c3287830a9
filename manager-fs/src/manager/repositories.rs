//! Repositories that media agents serve, as an operator orders them. That one is served is a decision; that its agent
//! begins or ends to is a job, which waits for its host like any other.

use std::sync::Arc;
use std::time::Duration;

use proto::agent::{Operation, Repository};
use proto::door::{Access, Bearer, DoorKey, Grant, GrantFault, is_address};
use proto::keeping::{Keeping, Refused};
use proto::{HostName, Product, RepositoryName, width};

use super::control::State;
use super::control::jobs::JobRecord;
use super::control::repositories::{GrantRecord, RepositoryError, RepositoryRecord};
use super::jobs::door::{GRANT_FOR, named};
use super::jobs::{JobError, Jobs};
use super::now;
use crate::net::NetError;
use crate::net::tls::random;

/// Where a media agent listens unless told otherwise.
pub(crate) const PORT: u16 = 7421;
/// The longest time that a token is good for.
const TOKEN_MAX: Duration = Duration::from_secs(31 * 24 * 3600);

/// Why a repository is not ordered, or no token given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepositoriesError {
    /// There is none, or another one.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// Its agent cannot be ordered to serve it.
    #[error(transparent)]
    Job(#[from] JobError),
    /// Nobody can dial that.
    #[error("'{0}' is no address: want HOST:PORT")]
    Address(String),
    /// It would be good for too long, or for no time.
    #[error("a token is good for at most 31 days, and for some time")]
    TooLong,
    /// No random bytes.
    #[error(transparent)]
    Random(#[from] NetError),
    /// The token cannot be written.
    #[error("the token cannot be made: {0}")]
    Grant(#[from] GrantFault),
}

/// What `repository create` orders.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RepositoryOrder {
    /// What it will be called.
    pub name: RepositoryName,
    /// Whose media agent serves it.
    pub host: HostName,
    /// Which agent of that host.
    pub product: Product,
    /// Where it lies, and the file with its password if that is there already.
    pub repository: Repository,
    /// Where agents of other hosts reach it; by default the host's name and port 7421.
    pub address: Option<String>,
    /// It takes the place of another one of the name, as when that one's host is lost.
    pub adopt: bool,
}

/// All of them.
pub(crate) struct Repositories {
    pub(super) state: Arc<State>,
    pub(super) jobs: Arc<Jobs>,
}

impl Repositories {
    /// Decides that a repository is served, and orders its agent to. The same order again is sent again.
    ///
    /// # Errors
    /// The host is not known, the name means another one, or nobody can dial the address.
    pub(crate) async fn create(&self, order: RepositoryOrder) -> Result<JobRecord, RepositoriesError> {
        let RepositoryOrder { name, host, product, repository, address, adopt } = order;
        self.state.known_host(&host).map_err(JobError::from)?;
        let address = address.unwrap_or_else(|| format!("{host}:{PORT}"));
        if !is_address(&address) {
            return Err(RepositoriesError::Address(address));
        }
        let path = repository.path.clone();
        let serve = Operation::Serve { repository, name: name.clone(), address: address.clone(), key: None };
        Jobs::must_make_sense(&serve)?;
        let key = DoorKey(random()?);
        let (owner, agent) = (host.clone(), product.clone());
        let record = RepositoryRecord { host, product, path, address, key, created: now(), certificate: None };
        let before = self.state.repository(&name).await.ok().filter(|_| adopt);
        let record = self.state.add_repository(&name, &record, adopt).await?;
        tracing::info!(repository = %name, host = %owner, adopt, "repository decided");
        if let Some(before) = before.filter(|before| before.key != record.key) {
            self.state.forget_grants(&name).await.map_err(RepositoryError::from)?;
            self.end_at(&name, &before).await;
        }
        Ok(self.jobs.add(&owner, &agent, &serve).await?)
    }

    /// Whoever served it before ends to, should it come back.
    async fn end_at(&self, name: &RepositoryName, before: &RepositoryRecord) {
        let repository = Repository { path: before.path.clone(), password_file: None };
        let unserve = Operation::Unserve { repository, name: name.clone() };
        if let Err(error) = self.jobs.add(&before.host, &before.product, &unserve).await {
            tracing::info!(repository = %name, host = %before.host, %error, "it is not told that it serves no longer");
        }
    }

    /// Decides that a repository is served no longer, and orders its agent to end. What lies in it stays.
    ///
    /// # Errors
    /// There is none.
    pub(crate) async fn remove(&self, name: &RepositoryName) -> Result<JobRecord, RepositoriesError> {
        let RepositoryRecord { host, product, path, .. } = self.state.remove_repository(name).await?;
        tracing::info!(repository = %name, %host, "repository forgotten");
        let repository = Repository { path, password_file: None };
        let unserve = Operation::Unserve { repository, name: name.clone() };
        Ok(self.jobs.add(&host, &product, &unserve).await?)
    }

    /// Orders something about a repository, beside its data, of the agent that serves it.
    ///
    /// # Errors
    /// There is none.
    pub(crate) async fn keeping(
        &self,
        name: &RepositoryName,
        order: Keeping,
    ) -> Result<JobRecord, RepositoriesError> {
        let RepositoryRecord { host, product, .. } = self.state.repository(name).await?;
        Ok(self.jobs.add(&host, &product, &Operation::Keeping { name: name.clone(), order }).await?)
    }

    /// Takes a token back: the agent that serves the repository is told at once, or as soon as it is there.
    ///
    /// # Errors
    /// There is no such repository, or no such token.
    pub(crate) async fn revoke_token(&self, name: &RepositoryName, id: &str) -> Result<JobRecord, RepositoriesError> {
        self.state.repository(name).await?;
        self.state.revoke_grant(name, id, now()).await?;
        tracing::info!(repository = %name, token = id, "token taken back");
        self.keeping(name, Keeping::Refuse(Vec::new())).await
    }

    /// Has every agent that serves a repository let in a host no longer by what it has been given.
    pub(crate) async fn refuse(&self, host: &HostName) {
        let until_unix_ms = now() + width::millis(GRANT_FOR);
        let refused = || Refused::Host { host: host.clone(), until_unix_ms };
        let all = self.state.repositories().await.unwrap_or_else(|error| {
            tracing::error!(%error, %host, "what serves repositories is not told that the host is let in no longer");
            Vec::new()
        });
        for (name, _) in all.into_iter().filter(|(_, record)| record.host != *host) {
            if let Err(error) = self.keeping(&name, Keeping::Refuse(vec![refused()])).await {
                tracing::warn!(repository = %name, %host, %error, "the host may be let in until its grants end");
            }
        }
    }

    /// A token for a person's program: good for a while, for whoever has it. Its number is kept, and when it ends.
    ///
    /// # Errors
    /// There is no such repository, or the time is too long.
    pub(crate) async fn token(
        &self,
        name: &RepositoryName,
        access: Access,
        time: Duration,
    ) -> Result<(String, String), RepositoriesError> {
        if time.is_zero() || time > TOKEN_MAX {
            return Err(RepositoriesError::TooLong);
        }
        let record = self.state.repository(name).await?;
        let until_unix_ms = now() + width::millis(time);
        let id: String = random::<8>()?.iter().map(|byte| format!("{byte:02x}")).collect();
        let (repository, what) = (name.clone(), named(&id));
        let grant = Grant { repository, bearer: Bearer::Anyone, access, until_unix_ms, what };
        let token = grant.seal(&record.key)?;
        let kept = GrantRecord { access, created: now(), until: until_unix_ms, revoked: None };
        self.state.add_grant(name, &id, &kept, now()).await.map_err(RepositoryError::from)?;
        tracing::info!(repository = %name, ?access, ?time, token = id, "token given");
        Ok((id, token))
    }
}

#[cfg(test)]
mod tests {
    use proto::door::Grant;
    use proto::message::Fault;

    use super::*;
    use crate::manager::ManagerError;
    use crate::manager::whole::testing::Bench;

    fn order(name: &str, host: &HostName, path: &str, address: Option<&str>) -> RepositoryOrder {
        RepositoryOrder {
            name: name.parse().unwrap(),
            host: host.clone(),
            product: "media-agent".parse().unwrap(),
            repository: Repository { path: path.into(), password_file: None },
            address: address.map(str::to_owned),
            adopt: false,
        }
    }

    #[tokio::test]
    async fn a_repository_is_a_decision_and_a_job_without_its_key() {
        let bench = Bench::open().await;
        let vault = bench.enrol("vault").await;
        let all = bench.manager.repositories();
        let name: RepositoryName = "main".parse().unwrap();
        let job = all.create(order("main", &vault, "/srv/r", None)).await.unwrap();
        let Operation::Serve { key: None, address, .. } = &job.operation else { panic!("{job:?}") };
        assert_eq!((address.as_str(), &job.host), ("vault:7421", &vault));
        let first = bench.manager.state.repository(&name).await.unwrap();
        assert_eq!((first.path.as_str(), &first.certificate), ("/srv/r", &None));

        // Ordered once more, elsewhere reached: who is at it goes on.
        all.create(order("main", &vault, "/srv/r", Some("10.0.0.1:7000"))).await.unwrap();
        bench.manager.state.note_certificate(&name, "MIIB").await.unwrap();
        let again = bench.manager.state.repository(&name).await.unwrap();
        assert_eq!((again.key, again.created, again.address.as_str()), (first.key, first.created, "10.0.0.1:7000"));
        assert_eq!(again.certificate.as_deref(), Some("MIIB"));
        all.create(order("main", &vault, "/srv/r", None)).await.unwrap();
        assert_eq!(bench.manager.state.repository(&name).await.unwrap().certificate.as_deref(), Some("MIIB"));

        let job = all.remove(&name).await.unwrap();
        assert_eq!(job.operation.kind(), "unserve");
        assert!(bench.manager.state.repositories().await.unwrap().is_empty());
        assert!(matches!(all.remove(&name).await, Err(RepositoriesError::Repository(RepositoryError::Unknown(_)))));
        bench.manager.state.note_certificate(&name, "MIIB").await.unwrap();
        assert!(
            bench.manager.state.repositories().await.unwrap().is_empty(),
            "what is not known is not made by that"
        );
    }

    #[tokio::test]
    async fn what_cannot_be_is_refused_and_nothing_is_decided() {
        let bench = Bench::open().await;
        let vault = bench.enrol("vault").await;
        let all = bench.manager.repositories();
        let fault = |error: RepositoriesError| Fault::from(ManagerError::from(error));
        let nobody: HostName = "nobody".parse().unwrap();
        for (wrong, word) in [
            (order("main", &nobody, "/srv/r", None), "nobody"),
            (order("main", &vault, "srv/r", None), "no place for a repository"),
            (order("main", &vault, "main", None), "no place for a repository"),
            (order("main", &vault, "s3:https://h/bucket/../x", None), "none of them empty"),
            (order("main", &vault, "rest:https://me:word@h/x", None), "no user or password"),
            (order("main", &vault, "/srv/r", Some("vault")), "HOST:PORT"),
        ] {
            let refused = fault(all.create(wrong).await.unwrap_err());
            assert!(matches!(refused, Fault::BadRequest(_) | Fault::NotFound(_)), "{refused}");
            assert!(refused.to_string().contains(word), "{refused}");
        }
        assert!(bench.manager.state.repositories().await.unwrap().is_empty());
        all.create(order("main", &vault, "/srv/r", None)).await.unwrap();
        let refused = fault(all.create(order("main", &vault, "/srv/other", None)).await.unwrap_err());
        assert!(refused.to_string().contains("/srv/r on vault"), "{refused}");
    }

    #[tokio::test]
    async fn a_token_is_a_grant_for_anyone_for_a_while() {
        let bench = Bench::open().await;
        let vault = bench.enrol("vault").await;
        let all = bench.manager.repositories();
        let name: RepositoryName = "main".parse().unwrap();
        let hour = Duration::from_secs(3600);
        assert!(matches!(all.token(&name, Access::Read, hour).await, Err(RepositoriesError::Repository(_))));
        all.create(order("main", &vault, "/srv/r", None)).await.unwrap();
        for wrong in [Duration::ZERO, TOKEN_MAX + hour] {
            assert!(matches!(all.token(&name, Access::Read, wrong).await, Err(RepositoriesError::TooLong)));
        }
        let (_, token) = all.token(&name, Access::Add, hour).await.unwrap();
        let key = bench.manager.state.repository(&name).await.unwrap().key;
        let grant = Grant::open(&token, &key, &name, now()).unwrap();
        assert_eq!((grant.bearer, grant.access), (Bearer::Anyone, Access::Add));
        assert!(grant.until_unix_ms > now() && grant.until_unix_ms <= now() + width::millis(hour));
        // One that is made anew is another: what was given for the first lets nobody into it.
        all.remove(&name).await.unwrap();
        all.create(order("main", &vault, "/srv/r", None)).await.unwrap();
        let key = bench.manager.state.repository(&name).await.unwrap().key;
        assert_eq!(Grant::open(&token, &key, &name, now()), Err(GrantFault::Foreign));
    }

    #[tokio::test]
    async fn a_token_that_is_taken_back_and_a_host_that_is_revoked_are_told_to_whoever_serves() {
        let bench = Bench::open().await;
        let (vault, web) = (bench.enrol("vault").await, bench.enrol("web").await);
        let all = bench.manager.repositories();
        let name: RepositoryName = "main".parse().unwrap();
        all.create(order("main", &vault, "/srv/r", None)).await.unwrap();
        let hour = Duration::from_secs(3600);
        let (id, token) = all.token(&name, Access::Read, hour).await.unwrap();
        let (other, _) = all.token(&name, Access::Add, hour).await.unwrap();
        let listed = bench.manager.state.grants(&name).await.unwrap();
        assert_eq!(listed.iter().filter(|(known, _)| [&id, &other].contains(&known)).count(), 2);
        let key = bench.manager.state.repository(&name).await.unwrap().key;
        let grant = Grant::open(&token, &key, &name, now()).unwrap();
        let job = all.revoke_token(&name, &id).await.unwrap();
        assert_eq!((job.operation.kind(), &job.host), ("refuse", &vault));
        let jobs = &bench.manager.jobs;
        let told = async |job: &JobRecord| match super::super::jobs::door::opened(jobs, job, job.operation.clone())
            .await
            .unwrap()
        {
            Operation::Keeping { order: Keeping::Refuse(grants), .. } => grants,
            other => panic!("{other:?}"),
        };
        let of_token = Refused::Grant { what: grant.what, until_unix_ms: grant.until_unix_ms };
        assert_eq!(told(&job).await, std::slice::from_ref(&of_token));
        for wrong in ["", "x/y", "0000000000000000"] {
            assert!(fault(all.revoke_token(&name, wrong).await.unwrap_err()).contains("there is no token"));
        }
        // What is said of a host is said with all that was said before.
        bench.manager.revoke(&web).await.unwrap();
        let page = jobs.listed(&Default::default()).await.unwrap();
        let job = page.jobs.iter().rev().find(|job| job.operation.kind() == "refuse").unwrap();
        let refused = told(job).await;
        assert!(refused.contains(&of_token), "{refused:?}");
        assert!(refused.iter().any(|one| matches!(one, Refused::Host { host, .. } if *host == web)), "{refused:?}");
    }

    #[tokio::test]
    async fn another_host_takes_a_repository_over_with_a_key_of_its_own() {
        let bench = Bench::open().await;
        let (vault, next) = (bench.enrol("vault").await, bench.enrol("next").await);
        let all = bench.manager.repositories();
        let name: RepositoryName = "main".parse().unwrap();
        all.create(order("main", &vault, "/srv/r", None)).await.unwrap();
        all.token(&name, Access::Read, Duration::from_secs(60)).await.unwrap();
        let before = bench.manager.state.repository(&name).await.unwrap();
        assert!(fault(all.create(order("main", &next, "/srv/r", None)).await.unwrap_err()).contains("--adopt"));
        let adopt = RepositoryOrder { adopt: true, ..order("main", &next, "/srv/r", None) };
        let job = all.create(adopt.clone()).await.unwrap();
        let after = bench.manager.state.repository(&name).await.unwrap();
        assert_eq!((&job.host, &after.host, &after.certificate), (&next, &next, &None));
        assert_ne!(after.key, before.key, "whoever was let in before asks anew");
        assert!(bench.manager.state.grants(&name).await.unwrap().is_empty());
        let page = bench.manager.jobs.listed(&Default::default()).await.unwrap();
        assert!(page.jobs.iter().any(|job| job.operation.kind() == "unserve" && job.host == vault));
        all.create(adopt).await.unwrap();
        assert_ne!(bench.manager.state.repository(&name).await.unwrap().key, before.key);
    }

    fn fault(error: RepositoriesError) -> String {
        error.to_string()
    }
}
