use std::os::unix::fs::FileExt;

use proto::agent::{AgentState, ChangeId, Step};

use super::*;

fn open(directory: &tempfile::TempDir) -> LocalObservations {
    let opened = LocalObservations::open(&directory.path().join("observations.redb")).unwrap();
    assert_eq!(opened.set_aside, None);
    opened.observations
}

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

fn product() -> Product {
    "data-agent".parse().unwrap()
}

fn step(number: u64, detail: &str) -> StepEvent {
    StepEvent {
        change: ChangeId(1),
        product: product(),
        from: None,
        to: TreeId::from_bytes([1; 32]),
        step: Step::Staged,
        at_unix_ms: number,
        duration_us: 1,
        detail: detail.to_owned(),
    }
}

fn seen(at: Unix) -> Observation {
    Observation::Seen { at, software: Some(String::from("0.1.0")) }
}

#[tokio::test]
async fn what_is_noted_is_there_after_a_restart_and_noted_once() {
    let directory = tempfile::tempdir().unwrap();
    let (web, progress) = (host("web-1"), Observation::Progress { job: JobId(7), progress: progress(2), at: 4 });
    let observations = open(&directory);
    let all = vec![seen(5), Observation::Step(step(2, "b")), Observation::Step(step(1, "a")), progress];
    assert_eq!(observations.note(&web, all.clone()).await.unwrap(), [Noted::New; 4]);
    assert_eq!(observations.note(&web, all).await.unwrap(), [Noted::Known; 4]);
    drop(observations);
    let observations = open(&directory);
    let status = observations.status(&web).await.unwrap();
    assert_eq!((status.last_seen, status.software.as_str()), (5, "0.1.0"));
    let steps = observations.steps(&web, &product()).await.unwrap();
    assert_eq!(steps, [step(2, "b"), step(1, "a")], "in the order of arrival");
    assert_eq!(observations.progress(JobId(7)).await.unwrap().unwrap().progress.units_done, 2);
    assert_eq!(observations.steps(&host("web"), &product()).await.unwrap(), [], "no prefix of another name");
    observations.forget_host(&web).await.unwrap();
    assert_eq!(observations.statuses().await.unwrap(), BTreeMap::new());
    assert_eq!(observations.steps(&web, &product()).await.unwrap(), []);
}

fn progress(units_done: u32) -> Progress {
    Progress {
        units_done,
        units: 3,
        bytes_done: 0,
        bytes: 0,
        activity: String::from("x"),
        version: String::from("1"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_many_hosts_say_at_once_shares_a_sync() {
    let directory = tempfile::tempdir().unwrap();
    let observations = Arc::new(open(&directory));
    let before = observations.synced();
    let tasks: Vec<_> = (0..200)
        .map(|number| {
            let observations = Arc::clone(&observations);
            let host = host(&format!("h{number}"));
            tokio::spawn(async move { observations.note(&host, vec![seen(1), Observation::Step(step(1, ""))]).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert!(observations.synced() - before <= 20, "{} syncs", observations.synced() - before);
    assert_eq!(observations.statuses().await.unwrap().len(), 200);
}

#[tokio::test]
async fn what_is_said_one_after_the_other_is_synced_each_time_and_the_last_of_it_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (observations, web) = (open(&directory), host("web-1"));
    let before = observations.synced();
    for at in [5, 9] {
        observations.note(&web, vec![seen(at)]).await.unwrap();
    }
    assert_eq!(observations.synced() - before, 2);
    drop(observations);
    assert_eq!(open(&directory).status(&web).await.unwrap().last_seen, 9);
}

#[tokio::test]
async fn as_many_products_of_a_host_and_jobs_are_remembered_as_may_be_and_then_the_oldest_go() {
    let directory = tempfile::tempdir().unwrap();
    let (observations, web) = (open(&directory), host("web-1"));
    let name = |number: usize| format!("p{number}").parse::<Product>().unwrap();
    let step_of = |number: usize| StepEvent { product: name(number), ..step(number as u64, "") };
    let all = (0..bounds::PRODUCTS_MAX).map(|number| Observation::Step(step_of(number))).collect();
    observations.note(&web, all).await.unwrap();
    for extra in 0..3 {
        for number in 0..bounds::PRODUCTS_MAX + extra {
            let steps = observations.steps(&web, &name(number)).await.unwrap();
            assert_eq!(steps.len(), usize::from(number >= extra), "{number} with {extra} more");
        }
        let one_more = Observation::Step(step_of(bounds::PRODUCTS_MAX + extra));
        observations.note(&web, vec![one_more]).await.unwrap();
    }
    let of_job = |job: u64| Observation::Progress { job: JobId(job), progress: progress(1), at: 1 };
    observations.note(&web, (1..=bounds::PROGRESS_MAX).map(of_job).collect()).await.unwrap();
    assert!(observations.progress(JobId(1)).await.unwrap().is_some());
    observations.note(&web, vec![of_job(bounds::PROGRESS_MAX + 1)]).await.unwrap();
    assert_eq!(observations.progress(JobId(1)).await.unwrap(), None);
    assert!(observations.progress(JobId(2)).await.unwrap().is_some());
}

/// Whatever a host says, however long and however often, little of it is kept.
#[tokio::test]
async fn a_talkative_host_is_cut_short() {
    let directory = tempfile::tempdir().unwrap();
    let observations = open(&directory);
    let web = host("web-1");
    let long = "ä".repeat(256 << 10);
    let agent = AgentStatus {
        product: product(),
        version: "1".parse().unwrap(),
        tree: TreeId::from_bytes([1; 32]),
        pid: 1,
        started_unix_ms: 1,
        state: AgentState::Serving,
        jobs: vec![JobId(1); 10_000],
        reason: long.clone(),
    };
    let mut all = vec![
        Observation::Seen { at: 1, software: Some(long.clone()) },
        Observation::Agents { agents: vec![agent; 200], at: 1 },
        Observation::Attached { trees: vec![TreeId::from_bytes([1; 32]); 100_000], at: 1 },
    ];
    all.extend((0..50).map(|at| Observation::WrongHash { what: long.clone(), at }));
    let more = Progress { activity: long.clone(), version: long.clone(), ..progress(1) };
    all.push(Observation::Progress { job: JobId(1), progress: more, at: 1 });
    all.extend((0..300).map(|number| Observation::Step(step(number, &long[..60 << 10]))));
    observations.note(&web, all).await.unwrap();
    // Forty products that no host has.
    for number in 0..40 {
        let product: Product = format!("p{number}").parse().unwrap();
        let step = StepEvent { product, ..step(1000 + number, "") };
        observations.note(&web, vec![Observation::Step(step)]).await.unwrap();
    }
    let status = observations.status(&web).await.unwrap();
    assert!(status.software.len() < 300 && status.agents.len() == proto::limits::AGENTS_MAX);
    assert!(status.agents[0].reason.len() < 2 << 10 && status.agents[0].jobs.len() < 300);
    assert_eq!(status.attached.len(), proto::limits::TREES_MAX);
    assert_eq!(status.wrong_hashes.len(), bounds::WRONG_HASHES_MAX);
    assert!(status.wrong_hashes.iter().all(|(_, what)| what.len() < 2 << 10));
    assert!(observations.progress(JobId(1)).await.unwrap().unwrap().progress.activity.len() < 1 << 10);
    let newest: Product = "p39".parse().unwrap();
    assert_eq!(observations.steps(&web, &newest).await.unwrap().len(), 1);
    assert_eq!(observations.steps(&web, &product()).await.unwrap(), [], "the product that spoke first has gone");
    let bytes = std::fs::metadata(directory.path().join("observations.redb")).unwrap().len();
    assert!(bytes < 32 << 20, "{bytes}");
}

#[tokio::test]
async fn the_last_steps_stay_within_their_number_and_their_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let observations = open(&directory);
    let web = host("web-1");
    for number in 0..500 {
        observations.note(&web, vec![Observation::Step(step(number, ""))]).await.unwrap();
        if number == 250 {
            let steps = observations.steps(&web, &product()).await.unwrap();
            assert_eq!((steps.len(), steps[0].at_unix_ms), (bounds::STEPS_MAX, 51));
        }
        if number == 300 {
            break;
        }
    }
    let large: Vec<_> = (1000..1100).map(|number| Observation::Step(step(number, &"x".repeat(16 << 10)))).collect();
    observations.note(&web, large).await.unwrap();
    let steps = observations.steps(&web, &product()).await.unwrap();
    let bytes: usize = steps.iter().map(|step| step.detail.len()).sum();
    assert!(bytes <= 256 << 10 && steps.len() >= 15, "{bytes} bytes, {} steps", steps.len());
    assert_eq!(steps.last().unwrap().at_unix_ms, 1099);
}

#[tokio::test]
async fn a_damaged_file_is_set_aside_and_begun_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("observations.redb");
    let observations = open(&directory);
    for number in 0..50 {
        observations.note(&host(&format!("h{number}")), vec![seen(1)]).await.unwrap();
    }
    drop(observations);
    let damage: [&dyn Fn(); 3] = [
        &|| std::fs::write(&path, b"this is no database").unwrap(),
        &|| {
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            let length = file.metadata().unwrap().len();
            (0..200).for_each(|at| file.write_all_at(&[0xff], at * (length / 200)).unwrap());
        },
        &|| {
            let length = std::fs::metadata(&path).unwrap().len();
            std::fs::File::options().write(true).open(&path).unwrap().set_len(length / 2).unwrap();
        },
    ];
    for (at, damage) in damage.iter().enumerate() {
        damage();
        let opened = LocalObservations::open(&path).unwrap();
        let text = opened.set_aside.unwrap();
        let names = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
        let aside = names.filter(|name| text.ends_with(&format!("lies in {}", name.display()))).count();
        assert!(aside == 1 && text.contains(".damaged-"), "{text}");
        assert!(!text.contains("control state") && !text.contains("recover"), "nothing is to be done: {text}");
        assert_eq!(opened.observations.statuses().await.unwrap(), BTreeMap::new(), "damage {at}");
        opened.observations.note(&host("web-1"), vec![seen(9)]).await.unwrap();
        assert_eq!(opened.observations.status(&host("web-1")).await.unwrap().last_seen, 9);
    }
}

#[tokio::test]
async fn where_nothing_can_be_written_they_are_kept_in_memory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("observations.redb");
    std::fs::create_dir(&path).unwrap();
    let opened = LocalObservations::open(&path).unwrap();
    assert!(opened.set_aside.unwrap().contains("in memory"));
    opened.observations.note(&host("web-1"), vec![seen(9)]).await.unwrap();
    assert_eq!(opened.observations.status(&host("web-1")).await.unwrap().last_seen, 9);
}
