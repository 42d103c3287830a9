use proto::agent::{JobId, Outcome, Summary};

use super::super::board::Fleet;
use super::super::definition::PolicyRun;
use super::*;
use crate::manager::control::jobs::JobRecord;

const HOUR: Unix = 3_600_000;
const DAY: Unix = 24 * HOUR;
/// 2026-01-01T00:00:00Z.
const BEGIN: Unix = 1_767_225_600_000;

struct Two;

impl Fleet for Two {
    fn hosts(&self, _: &Policy) -> (BTreeSet<HostName>, BTreeSet<HostName>) {
        (["a", "b"].map(host).into(), [host("m")].into())
    }

    fn is_in(&self, _: &HostName, _: &proto::GroupName) -> bool {
        false
    }

    fn is_there(&self, of: &HostName) -> bool {
        *of != host("b")
    }
}

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

fn policy() -> PolicyRecord {
    let text = "name = \"n\"\nhosts = [\"@all\"]\nsources = [\"/x\", \"/y\"]\nrepository = \"/r\"\n\
                schedule = \"daily 02:00\"\nverify = \"weekly\"\nrestore-test = \"monthly\"\nmedia = [\"m\"]\ncheck = \"weekly\"\n";
    let policy = Policy::parse(text).unwrap();
    PolicyRecord { policy, created: BEGIN, paused: None, since: Task::ALL.map(|task| (task, BEGIN)).into() }
}

/// A run that ended with so many problems, or failed.
fn run(number: u64, on: &str, task: Task, at: Unix, end: Result<usize, &str>) -> JobRecord {
    let policy = policy().policy;
    let (product, operation) = policy.operation(task);
    let problems = |count| (0..count).map(|n| format!("problem {n}")).collect();
    let (state, outcome) = match end {
        Ok(count) => (JobState::Done, Outcome::Done(Summary { problems: problems(count), ..Summary::default() })),
        Err(why) => (JobState::Failed, Outcome::Failed(why.to_owned())),
    };
    JobRecord {
        id: JobId(number),
        host: host(on),
        product,
        operation,
        run: Some(PolicyRun { policy: policy.name, task, due: at }),
        state,
        created: at,
        started: Some(at),
        ended: Some(at + HOUR),
        progress: None,
        outcome: Some(outcome),
        waiting: None,
        cancel: false,
        sent: 1,
    }
}

fn at(now: Unix, jobs: &[JobRecord]) -> ProtectionView {
    let mut board = Board::assemble(vec![policy()], jobs, &Two, now);
    board.machine.tick(now);
    let seen = Seen::from([(host("b"), 7)]);
    protection(&board, &seen, ["a", "b", "c"].map(host).into(), now)
}

fn risks_of(view: &ProtectionView, of: &str) -> Vec<Risk> {
    let row = view.rows.iter().find(|row| row.host == host(of) && row.source == "/x");
    row.expect("a row").risks.clone()
}

#[test]
fn every_source_of_every_host_has_a_row_and_what_is_at_risk_comes_first() {
    let jobs = [run(1, "a", Task::Backup, BEGIN + 2 * HOUR, Ok(0))];
    let view = at(BEGIN + DAY, &jobs);
    let rows: Vec<_> = view.rows.iter().map(|row| (row.host.as_str(), row.source.as_str())).collect();
    assert_eq!(rows, [("b", "/x"), ("b", "/y"), ("a", "/x"), ("a", "/y")]);
    assert_eq!((view.at_risk, view.sources, view.without_policy), (2, 4, vec![host("c")]));
    assert_eq!(view.rows[2].backup.as_ref().map(|run| run.job), Some(JobId(1)));
    assert_eq!((view.rows[2].rpo_ms, view.rows[0].backup.as_ref()), (36 * HOUR, None));
    let why = Why::Waits(Waits::Away, Some(7));
    assert_eq!(view.rows[0].risks, [Risk::Never { task: Task::Backup, why }]);
}

#[test]
fn a_backup_is_missed_when_the_promised_time_is_over_and_the_reason_is_named() {
    let first = run(1, "a", Task::Backup, BEGIN + 2 * HOUR, Ok(3));
    assert_eq!(risks_of(&at(BEGIN + 38 * HOUR, std::slice::from_ref(&first)), "a"), [], "with problems, but there");
    let failed = run(2, "a", Task::Backup, BEGIN + DAY + 2 * HOUR, Err("disk full"));
    let (age_ms, promised_ms) = (36 * HOUR + 1, 36 * HOUR);
    let old = Risk::Old { task: Task::Backup, age_ms, promised_ms, why: Why::Failed("disk full".into()) };
    assert_eq!(risks_of(&at(BEGIN + 38 * HOUR + 1, &[first, failed]), "a"), [old]);
}

#[test]
fn proof_may_take_its_time_and_what_it_finds_counts_at_once() {
    let backups = |until: u64| -> Vec<JobRecord> {
        (0..until).map(|day| run(1 + day, "a", Task::Backup, BEGIN + day * DAY + 2 * HOUR, Ok(0))).collect()
    };
    let week = at(BEGIN + 10 * DAY, &backups(10));
    assert_eq!(risks_of(&week, "a"), [], "ten and a half days are promised");
    let later = risks_of(&at(BEGIN + 11 * DAY, &backups(11)), "a");
    assert!(matches!(later.as_slice(), [Risk::Never { task: Task::Verify, .. }]), "{later:?}");
    let mut jobs = backups(11);
    jobs.push(run(50, "a", Task::Verify, BEGIN + 3 * DAY, Ok(0)));
    assert_eq!(risks_of(&at(BEGIN + 11 * DAY, &jobs), "a"), []);
    jobs.push(run(51, "a", Task::Verify, BEGIN + 10 * DAY, Ok(2)));
    let first = Some("problem 0".to_owned());
    let found = Risk::Found { task: Task::Verify, on: None, problems: 2, first, job: JobId(51) };
    assert_eq!(risks_of(&at(BEGIN + 11 * DAY, &jobs), "a"), [found]);
}

#[test]
fn a_restore_test_that_failed_puts_its_sources_at_risk_and_says_why() {
    let mut jobs = vec![
        run(1, "a", Task::Backup, BEGIN + 2 * HOUR, Ok(0)),
        run(2, "a", Task::Verify, BEGIN + 3 * HOUR, Ok(0)),
        run(3, "a", Task::RestoreTest, BEGIN + 4 * HOUR, Ok(0)),
    ];
    let tested =
        |jobs: &[JobRecord]| at(BEGIN + DAY, jobs).rows.into_iter().find(|row| row.host == host("a")).unwrap();
    let row = tested(&jobs);
    assert_eq!((row.tested.map(|run| run.job), row.risks), (Some(JobId(3)), vec![]));
    jobs.push(run(4, "a", Task::RestoreTest, BEGIN + 5 * HOUR, Ok(1)));
    let first = Some("problem 0".to_owned());
    let row = tested(&jobs);
    let found = Risk::Found { task: Task::RestoreTest, on: None, problems: 1, first, job: JobId(4) };
    assert_eq!(
        (row.tested.map(|run| run.job), row.risks),
        (Some(JobId(3)), vec![found]),
        "the good one stays the newest"
    );
    jobs[3] = run(4, "a", Task::RestoreTest, BEGIN + 5 * HOUR, Err("the disk is full"));
    let why = "the disk is full".to_owned();
    assert_eq!(tested(&jobs).risks, [Risk::Unproved { task: Task::RestoreTest, why, job: JobId(4) }]);
}

#[test]
fn a_repository_with_problems_is_a_risk_of_all_that_lies_in_it() {
    let mut jobs = vec![
        run(1, "a", Task::Backup, BEGIN + 2 * HOUR, Ok(0)),
        run(2, "b", Task::Backup, BEGIN + 2 * HOUR, Ok(0)),
        run(3, "m", Task::Check, BEGIN + 3 * HOUR, Ok(4)),
    ];
    let first = Some("problem 0".to_owned());
    let found = Risk::Found { task: Task::Check, on: Some(host("m")), problems: 4, first, job: JobId(3) };
    let view = at(BEGIN + DAY, &jobs);
    assert_eq!((risks_of(&view, "a"), risks_of(&view, "b"), view.at_risk), (vec![found.clone()], vec![found], 4));
    jobs.push(run(4, "m", Task::Check, BEGIN + 4 * HOUR, Ok(0)));
    assert_eq!(at(BEGIN + DAY, &jobs).at_risk, 0, "the next check found none");
}

#[test]
fn jobs_that_say_what_was_run_last_are_needed() {
    let jobs = [
        run(1, "a", Task::Backup, BEGIN, Ok(0)),
        run(2, "a", Task::Backup, BEGIN + DAY, Ok(0)),
        run(3, "a", Task::Backup, BEGIN + 2 * DAY, Err("no")),
        run(4, "b", Task::Backup, BEGIN + DAY, Ok(0)),
        // By a clock that was a year ahead.
        run(5, "b", Task::Backup, BEGIN + 365 * DAY, Ok(0)),
        // How often it was tried, nobody may forget.
        run(6, "b", Task::Check, BEGIN, Err("no")),
        run(7, "b", Task::Check, BEGIN, Err("no")),
        run(8, "b", Task::Check, BEGIN + DAY, Err("no")),
        run(9, "b", Task::Check, BEGIN + DAY, Err("no")),
    ];
    let needed = super::super::runs::AllRuns::of(&jobs, BEGIN + 3 * DAY).needed();
    assert_eq!(needed, [2, 3, 4, 8, 9].map(JobId).into());
}
