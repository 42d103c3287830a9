use proto::agent::{Operation, Repository, Summary};

use super::*;
use crate::manager::policy::PolicyRun;
use crate::manager::policy::machine::vocabulary::Task;

fn job(number: u64, host: &str, state: JobState) -> JobRecord {
    let repository = Repository { path: "/r".into(), password_file: None };
    let done = state.is_final().then(|| Outcome::Done(Summary::default()));
    JobRecord {
        id: JobId(number),
        host: host.parse().unwrap(),
        product: "data-agent".parse().unwrap(),
        operation: Operation::Check { repository, read_data: false },
        run: None,
        state,
        created: number * 10,
        started: None,
        ended: None,
        progress: None,
        outcome: done,
        waiting: None,
        cancel: false,
        sent: 0,
    }
}

fn ten() -> Vec<JobRecord> {
    let mut all: Vec<JobRecord> = (1..=10)
        .map(|n| {
            job(n, if n % 2 == 0 { "even" } else { "odd" }, if n > 8 { JobState::Running } else { JobState::Done })
        })
        .collect();
    let run = PolicyRun { policy: "nightly".parse().unwrap(), task: Task::Backup, due: 7 };
    all[3].run = Some(run);
    all[4].product = "media-agent".parse().unwrap();
    all
}

fn numbers(filter: &JobFilter, hosts: Option<&[&str]>) -> (Vec<u64>, bool) {
    let hosts = hosts.map(|hosts| hosts.iter().map(|host| host.parse().unwrap()).collect());
    let page = page(ten().into_iter(), filter, hosts.as_ref());
    (page.jobs.iter().map(|job| job.id.0).collect(), page.more)
}

#[test]
fn what_is_asked_for_is_listed_and_nothing_else() {
    let all = JobFilter::default;
    assert_eq!(numbers(&all(), None), ((1..=10).collect(), false));
    assert_eq!(numbers(&all(), Some(&["even"])), (vec![2, 4, 6, 8, 10], false));
    assert_eq!(numbers(&JobFilter { states: vec![JobState::Running], ..all() }, None), (vec![9, 10], false));
    assert_eq!(numbers(&JobFilter { since: Some(90), ..all() }, None), (vec![9, 10], false));
    assert_eq!(numbers(&JobFilter { policy: Some("nightly".parse().unwrap()), ..all() }, None), (vec![4], false));
    assert_eq!(numbers(&JobFilter { policy: Some("weekly".parse().unwrap()), ..all() }, None), (vec![], false));
    assert_eq!(
        numbers(&JobFilter { product: Some("media-agent".parse().unwrap()), ..all() }, None),
        (vec![5], false)
    );
    assert_eq!(numbers(&JobFilter { kinds: vec!["backup".into()], ..all() }, None), (vec![], false));
    assert_eq!(numbers(&JobFilter { kinds: vec!["check".into()], limit: 1, ..all() }, None), (vec![10], true));
}

#[test]
fn pages_follow_each_other_until_there_are_no_more() {
    let mut filter = JobFilter { limit: 4, ..JobFilter::default() };
    let mut seen = Vec::new();
    loop {
        let (page, more) = numbers(&filter, None);
        filter.before = page.first().copied().map(JobId);
        seen.splice(0..0, page);
        if !more {
            break;
        }
    }
    assert_eq!(seen, (1..=10).collect::<Vec<_>>());
}

#[test]
fn a_page_fits_into_a_message() {
    let lines: Vec<String> = (0..200).map(|n| format!("{n} {}", "x".repeat(590))).collect();
    let summary = Summary { problems: lines, ..Summary::default() };
    let many =
        (0..200).map(|n| JobRecord { outcome: Some(Outcome::Done(summary.clone())), ..job(n, "a", JobState::Done) });
    let page = page(many.collect::<Vec<_>>().into_iter(), &JobFilter::default(), None);
    assert!(page.more && page.jobs.len() > 50, "{}", page.jobs.len());
    assert!(proto::codec::encode(&page).unwrap().len() < proto::limits::MESSAGE_BYTES_MAX);
    assert_eq!(page.jobs.last().map(|job| job.id), Some(JobId(199)), "the newest");
}

/// Ten thousand are what is remembered; a command that lists them is not to be waited for. Times depend on the machine and
/// how the crates were compiled, so what is held here is that a list costs no more for each job where there are many.
#[tokio::test]
async fn ten_thousand_jobs_are_listed_at_the_price_of_a_thousand_times_ten() {
    let mut of_each = Vec::new();
    for count in [1_000_u32, 10_000] {
        let bench = crate::manager::whole::testing::Bench::open().await;
        let host = bench.enrol("a").await;
        let new = |number: u32| crate::manager::control::jobs::NewJob {
            host: host.clone(),
            product: "data-agent".parse().unwrap(),
            operation: job(u64::from(number), "a", JobState::Done).operation,
            run: Some(PolicyRun { policy: "nightly".parse().unwrap(), task: Task::Backup, due: u64::from(number) }),
        };
        bench.manager.state.add_jobs((0..count).map(new).collect(), 7).await.unwrap();
        let mut best = std::time::Duration::MAX;
        for _ in 0..5 {
            let begun = std::time::Instant::now();
            let page = bench.manager.jobs.listed(&JobFilter::default()).await.unwrap();
            best = best.min(begun.elapsed());
            assert_eq!((page.jobs.len(), page.more), (count as usize, false));
        }
        println!("{count} jobs are listed in {best:?}");
        of_each.push(best / count);
    }
    assert!(of_each[1] < 4 * of_each[0], "{of_each:?} for each job of a thousand and of ten thousand");
}
