//! Every moment of [`Moment::ALL`], and what is done to it: the process is killed there, or the disk is full or fails.
//! Whatever it was, an agent serves afterwards and does a job, every record can be read, and the order has ended. A
//! moment that no scenario comes to fails the run.
//!
//! `WHOLE=1 cargo test --release -p agent-core --test every_moment -- --nocapture` does all of it and prints which version
//! worked afterwards; without `WHOLE` processes are killed, and the disk is full at every third moment. With a manager,
//! and with the other faults, `manager-fs/tests/every_step` does the same.

// Panicking is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use agent_core::internal::control::Client;
use agent_core::internal::journal::Journal;
use agent_core::internal::moments::{Moment, Process};
use common::{Host, Order, PATIENCE, Spec};
use proto::agent::{AgentReply, AgentRequest, ChangeId, JobId, Outcome, Progress, Step};
use proto::message::Fault;

/// What comes to which moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scenario {
    /// A change-over with an operation under way, after a cold start.
    Good,
    /// An operation is cancelled.
    Cancel,
    /// The mount daemon cannot stage.
    NotStaged,
    /// `execve` says no.
    NotExecuted,
    /// The new version ends at its start.
    Crash,
    /// The version that is here ends at every start, so that the order comes to the stub.
    Ordered,
}

fn scenario(moment: Moment) -> Scenario {
    match moment {
        Moment::JournalUnstaged => Scenario::NotStaged,
        Moment::LinkBack | Moment::JournalBack | Moment::AgentBad => Scenario::NotExecuted,
        Moment::StubBad | Moment::StubReturn => Scenario::Crash,
        Moment::JobCancel => Scenario::Cancel,
        Moment::StubRecord | Moment::StubStaged | Moment::StubPlace | Moment::StubIntent => Scenario::Ordered,
        Moment::RecordSave
        | Moment::JournalStaged
        | Moment::LinkPrepare
        | Moment::RecordPlace
        | Moment::JournalIntent
        | Moment::LinkSwap
        | Moment::ChildrenEnd
        | Moment::Exec
        | Moment::JournalConfirmed
        | Moment::Report
        | Moment::JobStart
        | Moment::JobCheckpoint
        | Moment::JobEnd
        | Moment::StubJournal
        | Moment::StubLink
        | Moment::StubSpawn => Scenario::Good,
    }
}

fn quick<'a>(version: &'a str, arguments: &'a [&'a str]) -> Spec<'a> {
    Spec { probation_ms: common::PROBATION_MS, ..Spec::new(version, arguments) }
}

/// What a service manager would do.
fn restart_if_ended(host: &mut Host) {
    if host.stub().child.try_wait().unwrap().is_some() {
        host.launch();
    }
}

/// Asks until it is answered, starting the stub again whenever it has ended.
fn insist(host: &mut Host, request: &AgentRequest) -> AgentReply {
    let until = Instant::now() + PATIENCE;
    loop {
        restart_if_ended(host);
        let reply = Client::connect(&host.paths.socket())
            .and_then(|mut client| client.request(request, Some(Duration::from_secs(5)), |_: Progress| {}));
        match reply {
            Ok(AgentReply::Fault(Fault::Draining | Fault::Failed(_) | Fault::Unavailable(_))) | Err(_) => {}
            Ok(reply) => return reply,
        }
        assert!(Instant::now() < until, "no agent; the stub said {:#?}", host.stub().log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One cell of the table. Returns the version that works afterwards.
fn cell(moment: Moment, action: &str) -> String {
    let scenario = scenario(moment);
    let mut host = Host::new();
    let bad_world = host.dir().join("bad-world");
    let one = host.publish(&quick("1.0", &["--unit-ms", "5", "--exit-if", bad_world.to_str().unwrap()]));
    host.set_newest(&one);
    host.launch().wait_for("stub: ready");
    host.wait_serving("1.0");
    host.terminate();
    if scenario == Scenario::Ordered {
        fs::write(&bad_world, "").unwrap();
    }
    let arguments: &[&str] = if scenario == Scenario::Crash { &["--exit-at-once", "3"] } else { &["--unit-ms", "5"] };
    let two = host.publish(&quick("2.0", arguments));
    if scenario == Scenario::NotExecuted {
        let mut bytes = fs::read(host.program("2.0")).unwrap();
        // The machine field of the ELF header: 0x16 is s390.
        bytes[18] = 0x16;
        fs::write(host.program("2.0"), bytes).unwrap();
    }
    if scenario == Scenario::NotStaged {
        host.set_stage_fault(Some(Fault::Failed("no network".to_owned())));
    }
    host.faults().forget_reached();
    // A program that can never be started is nobody's agent.
    let once = if moment == Moment::StubSpawn && action != "kill" { "-once" } else { "" };
    host.set_faults(&format!("{} {action}{once}\n", moment.name()));
    host.launch();
    if scenario == Scenario::Ordered {
        host.stub().wait_for("starting it again in");
    } else {
        insist(&mut host, &AgentRequest::Status);
        work(&mut host, scenario);
    }
    let change = order(&mut host, &two, scenario);
    wait_for_verdict(&mut host, change);
    drop(fs::remove_file(&bad_world));
    if moment == Moment::JobEnd {
        insist(&mut host, &Host::backup(1, 60));
    }
    host.set_faults("");
    let reached = host.faults().reached();
    assert!(reached.contains(moment.name()), "{moment:?} was not reached: {reached:?}");
    let AgentReply::Outcome(outcome) = insist(&mut host, &Host::backup(900, 2)) else { panic!("no outcome") };
    let Outcome::Done(summary) = outcome else { panic!("{outcome:?}") };
    assert!(Journal::read(&host.paths.journal()).unwrap().is_some());
    let status = host.wait_serving_any();
    assert_eq!(summary.versions.last().map(String::as_str), Some(status.version.as_str()));
    if matches!(moment, Moment::LinkBack | Moment::StubLink) {
        // A link that the disk did not take is put right by the next start.
        host.terminate();
        host.launch();
        insist(&mut host, &AgentRequest::Status);
    }
    assert_eq!(agent_core::internal::swap::current(&host.paths), Some(status.tree), "the link follows");
    assert_eq!(host.terminate().code(), Some(0));
    assert_eq!(host.processes(), 0, "something was left behind");
    status.version.to_string()
}

/// Work that is under way when the order comes; nobody waits for it.
fn work(host: &mut Host, scenario: Scenario) {
    let socket = host.paths.socket();
    let run = Host::backup(1, if scenario == Scenario::Cancel { 1_000 } else { 60 });
    std::thread::spawn(move || {
        let client = Client::connect(&socket);
        drop(client.and_then(|mut client| client.request::<_, Progress, AgentReply>(&run, None, |_| {})));
    });
    let until = Instant::now() + PATIENCE;
    // Until it is under way: a demand that comes before the job it means is lost, as it should be.
    while scenario == Scenario::Cancel && !host.faults().reached().contains(Moment::JobCancel.name()) {
        restart_if_ended(host);
        assert!(Instant::now() < until, "it is not cancelled; the stub said {:#?}", host.stub().log());
        let cancel = AgentRequest::Cancel { job: JobId(1) };
        drop(Client::ask::<_, AgentReply>(&host.paths.socket(), &cancel, PATIENCE));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Gives the order, as the mount daemon would: again, for as long as nobody has taken it. `None`: it was refused.
fn order(host: &mut Host, record: &[u8], scenario: Scenario) -> Option<ChangeId> {
    let until = Instant::now() + PATIENCE;
    let socket = match scenario {
        Scenario::Ordered => host.paths.stub_socket(),
        _ => host.paths.socket(),
    };
    loop {
        if scenario == Scenario::Ordered {
            restart_if_ended(host);
        } else {
            insist(host, &AgentRequest::Status);
        }
        match host.try_tell_at(&socket, record, &Order { drain_ms: 100, retry_bad: true }) {
            (change, Ok(Ok(()))) => return Some(change),
            (_, Ok(Err(Fault::Unavailable(_)))) | (_, Err(_)) => {}
            (_, Ok(Err(_))) => return None,
        }
        assert!(Instant::now() < until, "nobody takes the order; the stub said {:#?}", host.stub().log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn wait_for_verdict(host: &mut Host, change: Option<ChangeId>) {
    let Some(change) = change else { return };
    let until = Instant::now() + PATIENCE;
    let over = |host: &Host| host.steps(change).into_iter().any(|step: Step| step.ends().is_some());
    while !over(host) {
        restart_if_ended(host);
        assert!(Instant::now() < until, "no verdict: {:?}; {:#?}", host.steps(change), host.stub().log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn whatever_happens_at_any_moment_an_agent_works_afterwards() {
    let whole = std::env::var_os("WHOLE").is_some();
    println!("| moment | process | what happens next | killed | disk full | disk fails |");
    println!("|---|---|---|---|---|---|");
    for (i, moment) in Moment::ALL.iter().enumerate() {
        let cells: Vec<String> = ["kill", "enospc", "eio"]
            .iter()
            .enumerate()
            .map(
                |(n, action)| {
                    if whole || n == 0 || n == 1 && i % 3 == 0 { cell(*moment, action) } else { "-".into() }
                },
            )
            .collect();
        let who = match moment.who() {
            Process::Agent => "agent",
            Process::Stub => "stub",
        };
        println!("| `{}` | {who} | {} | {} |", moment.name(), moment.text(), cells.join(" | "));
    }
}
