use std::sync::atomic::AtomicUsize;

use proto::agent::{Repository, SnapshotRef, Summary};
use proto::backup::BackupOptions;
use proto::message::{Fault, HostReply, ManagerRequest};
use tokio::sync::mpsc;

use super::*;
use crate::manager::whole::testing::{Answers, Bench, SOON, at_once, host};

fn at(path: &str) -> Repository {
    Repository { path: path.to_owned(), password_file: None }
}

fn backup(path: &str) -> Operation {
    Operation::Backup { repository: at(path), sources: vec![String::from("/s")] }
}

fn prune(path: &str) -> Operation {
    Operation::Prune { repository: at(path), keep_last: 1 }
}

fn own(kind: &str) -> Operation {
    Operation::Own { kind: kind.parse().unwrap(), arguments: proto::own::Arguments::default() }
}

fn done() -> HostReply {
    HostReply::Outcome(Outcome::Done(Summary::default()))
}

async fn add(bench: &Bench, host: &HostName, operation: &Operation) -> Result<JobRecord, JobError> {
    bench.manager.jobs.add(host, &"a".parse().unwrap(), operation).await
}

/// Waits until something is so of a job.
async fn until(bench: &Bench, id: JobId, is_so: impl Fn(&JobRecord) -> bool) -> JobRecord {
    let looking = async {
        loop {
            let record = bench.manager.jobs.job(id).await.unwrap();
            let mut news = bench.manager.news.of(&record.host);
            let record = bench.manager.jobs.job(id).await.unwrap();
            if is_so(&record) {
                return record;
            }
            news.until(|news| news == News::Job(id)).await;
        }
    };
    tokio::time::timeout(SOON, looking).await.unwrap()
}

async fn ended(bench: &Bench, id: JobId) -> JobRecord {
    until(bench, id, |record| record.state.is_final()).await
}

#[tokio::test]
async fn an_operation_that_makes_no_sense_is_refused_and_no_job() {
    let bench = Bench::open().await;
    let web = bench.enrol("web").await;
    let password = Repository { password_file: Some("key".into()), ..at("/r") };
    let latest = SnapshotRef::latest;
    let operations = [
        (backup("r"), "there is no repository 'r'"),
        (backup("./r"), "repository './r' is not an absolute path on the host"),
        (Operation::Check { repository: password, read_data: false }, "password file 'key' is not an absolute path"),
        (Operation::Backup { repository: at("/r"), sources: vec![] }, "nothing to back up: name at least one source"),
        (Operation::Backup { repository: at("/r"), sources: vec!["/a".into(), "b".into()] }, "source 'b' is not"),
        (Operation::Restore { repository: at("/r"), snapshot: latest(), target: ".".into() }, "target '.' is not"),
        (Operation::Prune { repository: at("/r"), keep_last: 0 }, "at least one snapshot of each source"),
        (own("backup"), "order it with `manager-fs job backup`"),
        (Operation::Verify { repository: at(""), snapshot: latest() }, "repository '' is not an absolute path"),
    ];
    for (operation, words) in operations {
        let refused = add(&bench, &web, &operation).await.unwrap_err().to_string();
        assert!(refused.contains(words), "{refused}");
    }
    let refused = add(&bench, &host("wbe"), &backup("/r")).await.unwrap_err().to_string();
    assert!(refused.contains("host 'wbe' is not enrolled"), "{refused}");
    assert_eq!(bench.manager.jobs.listed(&super::JobFilter::default()).await.unwrap().jobs, []);
}

#[tokio::test]
async fn a_job_that_no_agent_has_heard_of_is_cancelled_at_once_and_once() {
    let bench = Bench::open().await;
    let web = bench.enrol("web").await;
    let id = add(&bench, &web, &backup("/r")).await.unwrap().id;
    let waits = until(&bench, id, |record| record.waiting.is_some()).await;
    assert_eq!(waits.waiting.as_deref(), Some("host web is not connected"));
    bench.manager.jobs.cancel(id).await.unwrap();
    let record = ended(&bench, id).await;
    assert_eq!((record.state, record.sent), (JobState::Cancelled, 0));
    for refused in [bench.manager.jobs.cancel(id).await, bench.manager.jobs.cancel(JobId(7)).await] {
        assert!(matches!(refused, Err(JobError::Record(_))), "{refused:?}");
    }
    // It does not come up when the host does.
    bench.connect(&web, at_once(|request| panic!("{request:?}"))).await;
    assert_eq!(ended(&bench, id).await.sent, 0);
}

#[tokio::test]
async fn an_operation_of_a_programs_own_waits_for_no_turn_and_an_old_host_is_named() {
    let bench = Bench::open().await;
    let web = bench.enrol("web").await;
    let says = |request| match request {
        // Is never over, and keeps everybody else out of its repository.
        ManagerRequest::Run { operation: Operation::Prune { .. }, .. } => {
            HostReply::Fault(Fault::Unavailable("busy".into()))
        }
        ManagerRequest::Run { operation: Operation::Own { kind, .. }, .. } if kind.as_str() == "rotate" => {
            HostReply::Outcome(Outcome::OwnDone(proto::own::OwnSummary::default()))
        }
        ManagerRequest::Run { .. } => HostReply::Fault(Fault::BadRequest("not understood".into())),
        _ => HostReply::Done,
    };
    bench.connect(&web, at_once(says)).await;
    let alone = add(&bench, &web, &prune("/r")).await.unwrap().id;
    until(&bench, alone, |record| record.sent > 0).await;
    let rotated = add(&bench, &web, &own("rotate")).await.unwrap().id;
    assert_eq!(ended(&bench, rotated).await.state, JobState::Done);
    let old = add(&bench, &web, &own("compact")).await.unwrap().id;
    let Some(Outcome::Failed(why)) = ended(&bench, old).await.outcome else { panic!("it cannot have been done") };
    assert!(why.contains("knows no operations of a program's own") && why.contains("upgrade it"), "{why}");
}

/// What the first agents say of a door: to them it is a path, and they refuse it before they do anything.
#[tokio::test]
async fn an_old_agent_is_named_that_knows_no_served_repositories_and_no_record_lets_anybody_in() {
    let bench = Bench::open().await;
    let (web, vault) = (bench.enrol("web").await, bench.enrol("vault").await);
    let says = |request| match request {
        ManagerRequest::Run { operation: Operation::Keeping { .. } | Operation::Serve { .. }, .. } => {
            HostReply::Fault(Fault::BadRequest("not understood".into()))
        }
        ManagerRequest::Run { operation, .. } => {
            let path = operation.repository().unwrap().path.clone();
            HostReply::Outcome(Outcome::Failed(format!("{path}: a repository is named by its absolute path")))
        }
        _ => HostReply::Done,
    };
    bench.connect(&web, at_once(says)).await;
    bench.connect(&vault, at_once(says)).await;
    let order = crate::manager::repositories::RepositoryOrder {
        name: "main".parse().unwrap(),
        host: vault.clone(),
        product: "media-agent".parse().unwrap(),
        repository: at("/srv/r"),
        address: None,
        adopt: false,
    };
    let all = bench.manager.repositories();
    let serve = all.create(order).await.unwrap().id;
    let keys = all.keeping(&"main".parse().unwrap(), proto::keeping::Keeping::Keys).await.unwrap().id;
    let backup = add(&bench, &web, &backup("main")).await.unwrap().id;
    for (id, what) in [
        (serve, "knows no serving of repositories"),
        (keys, "knows no keys and grants of repositories"),
        (backup, "of a version that knows no repositories of other hosts"),
    ] {
        let Some(Outcome::Failed(why)) = ended(&bench, id).await.outcome else { panic!("it cannot have been done") };
        assert!(why.contains(what) && why.contains("upgrade it") && !why.contains("served:"), "{why}");
    }
}

/// Agents that were published before an order could say how it is done get it as they know it, unless that would do
/// something else.
#[tokio::test]
async fn an_old_agent_is_ordered_in_its_own_words_if_nothing_is_lost_by_it() {
    let bench = Bench::open().await;
    let web = bench.enrol("web").await;
    let says = |request| match request {
        ManagerRequest::Run { operation: Operation::BackupWith { .. }, .. } => {
            HostReply::Fault(Fault::BadRequest("not understood".into()))
        }
        ManagerRequest::Run { operation: Operation::Backup { sources, .. }, .. } => {
            HostReply::Outcome(Outcome::Done(Summary { snapshots: sources, ..Summary::default() }))
        }
        _ => HostReply::Done,
    };
    bench.connect(&web, at_once(says)).await;
    let with = |options| Operation::BackupWith { repository: at("/r"), sources: vec!["/s".into()], options };
    let plain = add(&bench, &web, &with(BackupOptions::default())).await.unwrap().id;
    let Some(Outcome::Done(summary)) = ended(&bench, plain).await.outcome else { panic!("it was understood") };
    assert_eq!(summary.snapshots, ["/s"]);
    let dry = add(&bench, &web, &with(BackupOptions { dry_run: true, ..BackupOptions::default() })).await.unwrap().id;
    let Some(Outcome::Failed(why)) = ended(&bench, dry).await.outcome else { panic!("it cannot have been done") };
    assert!(why.contains("knows no operations with these options") && why.contains("upgrade it"), "{why}");
    let relative = BackupOptions { exclude_files: vec!["x".into()], ..BackupOptions::default() };
    let refused = add(&bench, &web, &with(relative)).await.unwrap_err().to_string();
    assert!(refused.contains("file of patterns 'x' is not"), "{refused}");
}

/// Prunes are alone at their repository, backups are beside each other, all end, each runs once.
#[tokio::test]
async fn agents_of_one_repository_run_no_prune_beside_anything() {
    let bench = Bench::open().await;
    let (inside, pruning) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (ran, mut runs) = mpsc::unbounded_channel();
    let says = || -> Box<Answers> {
        let (inside, pruning, ran) = (Arc::clone(&inside), Arc::clone(&pruning), ran.clone());
        Box::new(move |request| {
            let (inside, pruning, ran) = (Arc::clone(&inside), Arc::clone(&pruning), ran.clone());
            Box::pin(async move {
                let ManagerRequest::Run { job, operation, .. } = request else { return Some(HostReply::Done) };
                if let Operation::Identify { .. } = operation {
                    // Long enough for others to want their turn meanwhile.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    let summary = Summary { snapshots: vec!["1".repeat(64)], ..Summary::default() };
                    return Some(HostReply::Outcome(Outcome::Done(summary)));
                }
                let alone = usize::from(matches!(operation, Operation::Prune { .. }));
                let others = inside.fetch_add(1, Ordering::SeqCst);
                let prunes = pruning.fetch_add(alone, Ordering::SeqCst);
                // Others have a chance to come in meanwhile, if they are let.
                for _ in 0..200 {
                    tokio::task::yield_now().await;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
                ran.send((job, prunes > 0 || (alone > 0 && others > 0))).unwrap();
                pruning.fetch_sub(alone, Ordering::SeqCst);
                inside.fetch_sub(1, Ordering::SeqCst);
                Some(done())
            })
        })
    };
    // One repository under three names, of which two are another host's.
    let places = [("web", "/r"), ("web", "/r/"), ("other", "/mnt/r")];
    for host in ["web", "other"] {
        let host = bench.enrol(host).await;
        bench.connect(&host, says()).await;
    }
    let mut ids = Vec::new();
    for number in 0..24 {
        let (host, path) = places[number % places.len()];
        let operation = if number % 5 == 2 { prune(path) } else { backup(path) };
        ids.push(add(&bench, &host.parse().unwrap(), &operation).await.unwrap().id);
    }
    for id in &ids {
        assert_eq!(ended(&bench, *id).await.state, JobState::Done);
    }
    let mut all: Vec<JobId> = Vec::new();
    while let Ok((job, clash)) = runs.try_recv() {
        assert!(!clash, "job {job} was beside another one");
        all.push(job);
    }
    all.sort_unstable();
    assert_eq!(all, ids, "each once");
}

#[tokio::test]
async fn a_job_whose_connection_breaks_is_sent_again_under_its_number() {
    let bench = Bench::open().await;
    let web = bench.enrol("web").await;
    let (ran, mut runs) = mpsc::unbounded_channel();
    let says = |reply: Option<HostReply>| -> Box<Answers> {
        let ran = ran.clone();
        Box::new(move |request| {
            if let ManagerRequest::Run { job, .. } = request {
                ran.send(job).unwrap();
            }
            match reply.clone() {
                Some(reply) => Box::pin(std::future::ready(Some(reply))),
                None => Box::pin(std::future::pending()),
            }
        })
    };
    let link = bench.connect(&web, says(None)).await;
    let id = add(&bench, &web, &backup("/r")).await.unwrap().id;
    assert_eq!(tokio::time::timeout(SOON, runs.recv()).await.unwrap(), Some(id));
    link.close("the network is gone");
    until(&bench, id, |record| record.waiting.is_some()).await;
    bench.connect(&web, says(Some(HostReply::Fault(Fault::Draining)))).await;
    let waits =
        until(&bench, id, |record| record.waiting.as_deref().is_some_and(|why| why.contains("draining"))).await;
    assert!(!waits.state.is_final(), "a change-over ends no job");
    bench.connect(&web, says(Some(done()))).await;
    let record = ended(&bench, id).await;
    assert!(record.state == JobState::Done && record.sent >= 1, "{record:?}");
    while let Ok(job) = runs.try_recv() {
        assert_eq!(job, id);
    }
}

#[tokio::test]
async fn what_a_host_answers_in_an_agents_place_ends_the_job_in_its_words() {
    let bench = Bench::open().await;
    let web = bench.enrol("web").await;
    let answers = [
        (HostReply::Fault(Fault::NotFound("no agent of a".into())), "not found: no agent of a"),
        (HostReply::Fault(Fault::Refused("no".into())), "refused: no"),
        (HostReply::Agents(Vec::new()), "the host answered with something else than an outcome"),
    ];
    for (answer, words) in answers {
        bench.connect(&web, at_once(move |_| answer.clone())).await;
        let id = add(&bench, &web, &backup("/r")).await.unwrap().id;
        let record = ended(&bench, id).await;
        assert_eq!(record.outcome, Some(Outcome::Failed(words.into())));
        // It was a guess: what the agent says later mends it, and what another host says does not.
        let (jobs, outcome) = (&bench.manager.jobs, Outcome::Done(Summary::default()));
        jobs.ended(&host("other"), id, &outcome).await.unwrap();
        assert_eq!(jobs.job(id).await.unwrap().state, JobState::Failed);
        jobs.ended(&web, id, &outcome).await.unwrap();
        assert_eq!(jobs.job(id).await.unwrap().state, JobState::Done);
    }
}

#[tokio::test]
async fn the_jobs_of_a_host_that_is_revoked_end_and_free_their_repository() {
    let bench = Bench::open().await;
    let web = bench.enrol("web").await;
    let (heard, mut hears) = mpsc::unbounded_channel();
    let says: Box<Answers> = Box::new(move |_| {
        heard.send(()).unwrap();
        Box::pin(std::future::pending())
    });
    bench.connect(&web, says).await;
    let runs = add(&bench, &web, &prune("/r")).await.unwrap().id;
    tokio::time::timeout(SOON, hears.recv()).await.unwrap();
    let waits = add(&bench, &web, &backup("/r")).await.unwrap().id;
    let said = until(&bench, waits, |record| record.waiting.is_some()).await.waiting.unwrap();
    assert!(said.contains(&format!("another job uses the repository: job {runs}, prune on web (/r)")), "{said}");
    bench.manager.revoke(&web).await.unwrap();
    for id in [runs, waits] {
        let record = ended(&bench, id).await;
        let Some(Outcome::Failed(why)) = record.outcome else { panic!("{record:?}") };
        assert_eq!(why, "host web was revoked; what its agent did of it is not known");
    }
}
