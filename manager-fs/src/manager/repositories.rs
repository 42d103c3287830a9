//! Repositories that media agents serve, as an operator orders them. That one is served is a decision; that its agent
//! begins or ends to is a job, which waits for its host like any other.

use std::sync::Arc;
use std::time::Duration;

use proto::agent::{Operation, Repository};
use proto::door::{Access, Bearer, DoorKey, Grant, GrantFault, is_address};
use proto::{HostName, Product, RepositoryName, width};

use super::control::State;
use super::control::jobs::JobRecord;
use super::control::repositories::{RepositoryError, RepositoryRecord};
use super::jobs::{JobError, Jobs};
use super::now;
use crate::net::NetError;
use crate::net::tls::random;

/// Where a media agent listens unless told otherwise.
pub(crate) const PORT: u16 = 7421;
/// The longest time that a token is good for: it cannot be taken back one by one.
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
        let RepositoryOrder { name, host, product, repository, address } = order;
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
        self.state.add_repository(&name, &record).await?;
        tracing::info!(repository = %name, host = %owner, "repository decided");
        Ok(self.jobs.add(&owner, &agent, &serve).await?)
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

    /// A token for a person's program: good for a while, for whoever has it. Nothing of it is kept.
    ///
    /// # Errors
    /// There is no such repository, or the time is too long.
    pub(crate) async fn token(
        &self,
        name: &RepositoryName,
        access: Access,
        time: Duration,
    ) -> Result<String, RepositoriesError> {
        if time.is_zero() || time > TOKEN_MAX {
            return Err(RepositoriesError::TooLong);
        }
        let record = self.state.repository(name).await?;
        let until_unix_ms = now() + width::millis(time);
        let (repository, what) = (name.clone(), "token".to_owned());
        let grant = Grant { repository, bearer: Bearer::Anyone, access, until_unix_ms, what };
        tracing::info!(repository = %name, ?access, ?time, "token given");
        Ok(grant.seal(&record.key)?)
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
            (order("main", &vault, "srv/r", None), "not an absolute path"),
            (order("main", &vault, "main", None), "not an absolute path"),
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
        let token = all.token(&name, Access::Add, hour).await.unwrap();
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
}
