//! What an agent is told of a repository that is served: the way there, and what lets it in, as the job is sent.
//!
//! The record of a job has the repository's name, so nothing that lets anybody in is stored or shown.

use std::time::Duration;

use proto::agent::{JobId, Operation, Outcome};
use proto::door::{Access, Bearer, Door, Grant};
use proto::keeping::{Keeping, Refused};
use proto::limits::REFUSED_MAX;
use proto::{HostName, RepositoryName, width};

use super::{JobError, Jobs};
use crate::manager::control::jobs::JobRecord;
use crate::manager::control::repositories::RepositoryError;
use crate::manager::now;

/// How long an agent is let in. A job that takes longer ends, and what it stored is used by the next one.
pub(in crate::manager) const GRANT_FOR: Duration = Duration::from_secs(24 * 3600);

/// The name of a served repository, if an operation is at one.
pub(super) fn name_of(operation: &Operation) -> Option<RepositoryName> {
    operation.repository()?.path.parse().ok()
}

/// The operation as the agent of a host is told it.
pub(in crate::manager) async fn opened(
    jobs: &Jobs,
    record: &JobRecord,
    operation: Operation,
) -> Result<Operation, JobError> {
    let mut operation = operation;
    if let Operation::Serve { name, key, .. } = &mut operation {
        *key = Some(jobs.state.repository(name).await?.key);
        return Ok(operation);
    }
    if let Operation::Keeping { name, order: Keeping::Refuse(grants) } = &mut operation {
        grants.extend(refused(jobs, name).await?);
        // Those that would be good for longest, if there are too many.
        grants.sort_by_key(|refused| std::cmp::Reverse(refused.until_unix_ms()));
        grants.dedup();
        grants.truncate(REFUSED_MAX);
        return Ok(operation);
    }
    let Some(name) = name_of(&operation) else { return Ok(operation) };
    let way = door(jobs, &name, &record.host, access_of(&operation), format!("job {}", record.id)).await?;
    if let Some(repository) = operation.repository_mut() {
        repository.path = way.to_string();
    }
    Ok(operation)
}

/// What a token's grant says of itself.
pub(in crate::manager) fn named(id: &str) -> String {
    format!("token {id}")
}

/// Every grant of a repository that has not ended and is to let nobody in.
async fn refused(jobs: &Jobs, name: &RepositoryName) -> Result<Vec<Refused>, JobError> {
    let now = now();
    let grants = jobs.state.grants(name).await.map_err(RepositoryError::from)?.into_iter();
    let tokens = grants.filter(|(_, grant)| grant.revoked.is_some() && grant.until >= now);
    let tokens = tokens.map(|(id, grant)| Refused::Grant { what: named(&id), until_unix_ms: grant.until });
    let hosts = jobs.state.hosts().into_iter().filter_map(|(host, record)| {
        let until_unix_ms = record.revoked?.saturating_add(width::millis(GRANT_FOR));
        (until_unix_ms >= now).then_some(Refused::Host { host, until_unix_ms })
    });
    Ok(tokens.chain(hosts).collect())
}

/// What an agent says that has begun to serve a repository.
pub(super) async fn served(jobs: &Jobs, id: JobId, outcome: &Outcome) -> Result<(), JobError> {
    let Outcome::OwnDone(own) = outcome else { return Ok(()) };
    let Operation::Serve { name, .. } = jobs.state.job(id).await?.operation else { return Ok(()) };
    let said = own.results.iter().find(|finding| finding.name.as_str() == "certificate");
    let is_base64 = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'='));
    if let Some(said) = said.filter(|said| is_base64(&said.text)) {
        jobs.state.note_certificate(&name, &said.text).await?;
    }
    Ok(())
}

async fn door(
    jobs: &Jobs,
    name: &RepositoryName,
    to: &HostName,
    access: Access,
    what: String,
) -> Result<Door, JobError> {
    let record = jobs.state.repository(name).await?;
    let until_unix_ms = now() + width::millis(GRANT_FOR);
    let grant = Grant { repository: name.clone(), bearer: Bearer::Host(to.clone()), access, until_unix_ms, what };
    let grant = grant.seal(&record.key)?;
    Ok(Door { repository: name.clone(), host: record.host, address: record.address, grant })
}

fn access_of(operation: &Operation) -> Access {
    match operation {
        Operation::Backup { .. } | Operation::BackupWith { .. } | Operation::BackupBy { .. } => Access::Add,
        Operation::Restore { .. }
        | Operation::RestoreSome { .. }
        | Operation::RestoreOver { .. }
        | Operation::RestorePaced { .. }
        | Operation::RestoreTest { .. }
        | Operation::Verify { .. }
        | Operation::Look { .. }
        | Operation::Identify { .. }
        // The agent that serves the repository does these, in the repository's own directory.
        | Operation::Check { .. }
        | Operation::Prune { .. }
        | Operation::Forget { .. }
        | Operation::Serve { .. }
        | Operation::Unserve { .. }
        | Operation::Keeping { .. }
        | Operation::Own { .. } => Access::Read,
    }
}

#[cfg(test)]
mod tests {
    use proto::agent::{Repository, Summary};
    use proto::door::DoorKey;
    use proto::own::{Finding, OwnSummary};

    use super::*;
    use crate::manager::control::repositories::RepositoryRecord;
    use crate::manager::whole::testing::Bench;

    fn at(path: &str) -> Repository {
        Repository { path: path.into(), password_file: None }
    }

    async fn bench() -> (Bench, HostName, RepositoryName) {
        let bench = Bench::open().await;
        let (web, name) = (bench.enrol("web").await, "main".parse().unwrap());
        let record = RepositoryRecord {
            host: "vault".parse().unwrap(),
            product: "media-agent".parse().unwrap(),
            path: "/srv/r".into(),
            address: "vault.example:7421".into(),
            key: DoorKey([7; 32]),
            created: 1,
            certificate: None,
        };
        bench.manager.state.add_repository(&name, &record, false).await.unwrap();
        (bench, web, name)
    }

    #[tokio::test]
    async fn an_agent_is_told_the_way_and_the_record_has_the_name() {
        let (bench, web, name) = bench().await;
        let jobs = &bench.manager.jobs;
        for (operation, access) in [
            (Operation::Backup { repository: at("main"), sources: vec!["/s".into()] }, Access::Add),
            (Operation::Check { repository: at("main"), read_data: false }, Access::Read),
        ] {
            let record = jobs.add(&web, &"data-agent".parse().unwrap(), &operation).await.unwrap();
            assert_eq!(record.operation, operation);
            let told = opened(jobs, &record, record.operation.clone()).await.unwrap();
            let door: Door = told.repository().unwrap().path.parse().unwrap();
            assert_eq!(
                (&door.repository, door.host.as_str(), &*door.address),
                (&name, "vault", "vault.example:7421")
            );
            let grant = Grant::open(&door.grant, &DoorKey([7; 32]), &name, now()).unwrap();
            assert_eq!((grant.bearer, grant.access), (Bearer::Host(web.clone()), access));
            assert!(grant.what.contains(&record.id.to_string()), "{}", grant.what);
        }
        let plain = Operation::Check { repository: at("/srv/r"), read_data: true };
        let record = jobs.add(&web, &"data-agent".parse().unwrap(), &plain).await.unwrap();
        assert_eq!(opened(jobs, &record, plain.clone()).await.unwrap(), plain, "a directory is what it is");
        let gone = Operation::Check { repository: at("gone"), read_data: true };
        assert!(jobs.add(&web, &"data-agent".parse().unwrap(), &gone).await.is_err());
        let guarded = Repository { password_file: Some("/p".into()), ..at("main") };
        let guarded = Operation::Check { repository: guarded, read_data: true };
        assert!(jobs.add(&web, &"data-agent".parse().unwrap(), &guarded).await.is_err());
    }

    #[tokio::test]
    async fn what_a_media_agent_says_of_itself_is_noted_of_its_own_repository() {
        let (bench, web, name) = bench().await;
        let jobs = &bench.manager.jobs;
        let said = |text: &str| {
            let results = vec![Finding { name: "certificate".parse().unwrap(), text: text.into() }];
            Outcome::OwnDone(OwnSummary { results, ..OwnSummary::default() })
        };
        let certificate = async || bench.manager.state.repository(&name).await.unwrap().certificate;
        let serve =
            Operation::Serve { repository: at("/srv/r"), name: name.clone(), address: "v:1".into(), key: None };
        let job = jobs.add(&web, &"media-agent".parse().unwrap(), &serve).await.unwrap();
        let told = opened(jobs, &job, serve.clone()).await.unwrap();
        assert!(matches!(told, Operation::Serve { key: Some(DoorKey([7, ..])), .. }), "{told:?}");
        served(jobs, job.id, &said("not base64!")).await.unwrap();
        served(jobs, job.id, &Outcome::Done(Summary::default())).await.unwrap();
        assert_eq!(certificate().await, None);
        let other =
            jobs.add(&web, &"a".parse().unwrap(), &Operation::Identify { repository: at("/r") }).await.unwrap();
        served(jobs, other.id, &said("MIIB")).await.unwrap();
        assert_eq!(certificate().await, None, "another job says nothing of it");
        served(jobs, job.id, &said("MIIB")).await.unwrap();
        assert_eq!(certificate().await.as_deref(), Some("MIIB"));
    }
}
