use proto::agent::{AgentState, AgentStatus, ChangeId, Outcome, Step, Summary};
use proto::message::HostReport;

use super::*;
use crate::manager::tally::Tally;
use crate::manager::whole::testing::{Bench, agent, alive, step};

async fn page(bench: &Bench) -> String {
    Arc::clone(&bench.manager).page().await
}

/// The value of the sample with this name and labels; `None`: there is none.
fn sample(page: &str, name: &str) -> Option<u64> {
    let value = page.lines().find_map(|line| line.strip_prefix("manager_fs_")?.strip_prefix(name)?.strip_prefix(' '));
    value.map(|value| value.parse().unwrap())
}

#[tokio::test]
async fn everything_that_an_alert_watches_is_there_before_it_happens() {
    let bench = Bench::open().await;
    let page = page(&bench).await;
    for name in [
        "hosts{state=\"connected\"}",
        "hosts{state=\"away\"}",
        "hosts{state=\"revoked\"}",
        "hosts_certificate_expired",
        "rollouts{state=\"halted\"}",
        "change_overs_total{result=\"returned\"}",
        "change_overs_total{result=\"exec_failed\"}",
        "jobs_ended_total{result=\"failed\"}",
        "jobs{state=\"running\"}",
        "wrong_hashes_total",
        "damaged_records",
    ] {
        assert_eq!(sample(&page, name), Some(0), "{name}\n{page}");
    }
    assert!(page.ends_with("# EOF\n"), "{page}");
}

#[tokio::test]
async fn what_hosts_report_is_counted_once() {
    let bench = Bench::open().await;
    let (old, new) = (bench.publish("a@1", "one").await, bench.publish("a@2", "two").await);
    let web = bench.enrol("web").await;
    let good = step(ChangeId(5), &new, Step::Confirmed, 7);
    let bad = step(ChangeId(6), &old, Step::Returned, 9);
    for report in [good.clone(), good, bad] {
        bench.report(&web, vec![HostReport::Step(report)]).await;
    }
    bench.report(&web, vec![HostReport::WrongHash { what: "chunk x".into() }]).await;
    let page = page(&bench).await;
    assert_eq!(sample(&page, "change_overs_total{result=\"confirmed\"}"), Some(1), "a report may come twice");
    assert_eq!(sample(&page, "change_overs_total{result=\"returned\"}"), Some(1));
    assert_eq!(sample(&page, "change_over_step_seconds_count{step=\"confirmed\"}"), Some(1));
    assert_eq!(sample(&page, "wrong_hashes_total"), Some(1));
}

#[tokio::test]
async fn hosts_are_counted_by_what_they_are() {
    let bench = Bench::open().await;
    let (web, mail) = (bench.enrol("web").await, bench.enrol("mail").await);
    bench.enrol("away").await;
    let _link = bench.connect(&web, alive()).await;
    bench.manager.revoke(&mail).await.unwrap();
    let page = page(&bench).await;
    for state in ["connected", "away", "revoked"] {
        assert_eq!(sample(&page, &format!("hosts{{state=\"{state}\"}}")), Some(1), "{state}\n{page}");
    }
}

/// A host that lies, or was hacked, makes no series without end.
#[tokio::test]
async fn what_hosts_invent_is_no_label() {
    let bench = Bench::open().await;
    let generation = bench.publish("a@1", "one").await;
    let web = bench.enrol("web").await;
    let known = agent(&generation, AgentState::Serving, 7);
    let invented = (0..5).map(|n| AgentStatus { version: format!("{n}").parse().unwrap(), ..known.clone() });
    let said = invented
        .enumerate()
        .map(|(n, status)| AgentStatus { product: format!("p{n}").parse().unwrap(), ..status })
        .chain([known.clone()]);
    bench.report(&web, vec![HostReport::Agents(said.collect())]).await;
    let page = page(&bench).await;
    assert_eq!(sample(&page, "agents{product=\"a\",version=\"1\"}"), Some(1), "{page}");
    assert_eq!(sample(&page, "agents{product=\"other\",version=\"other\"}"), Some(5), "{page}");
    assert_eq!(page.lines().filter(|line| line.starts_with("manager_fs_agents{")).count(), 2);
}

#[test]
fn every_end_of_a_job_has_its_word() {
    let tally = Tally::default();
    let summary = |problems: &[&str]| Summary {
        problems: problems.iter().map(|text| (*text).to_owned()).collect(),
        ..Summary::default()
    };
    for (outcome, word) in [
        (Outcome::Done(summary(&[])), "done"),
        (Outcome::Done(summary(&["one file was not read"])), "with_problems"),
        (Outcome::Cancelled(summary(&["half"])), "cancelled"),
        (Outcome::Failed("the disk is full".to_owned()), "failed"),
    ] {
        let of = [("result", word.to_owned())];
        let before = tally.jobs_ended.get_or_create(&of).get();
        tally.ended(&outcome);
        assert_eq!(tally.jobs_ended.get_or_create(&of).get(), before + 1, "{word}");
    }
}
