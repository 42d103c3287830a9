//! Change-overs of a running agent that has nothing to drain: the blackout, the swap, and the whole.
//! `cargo bench --locked -p benches --bench change_over`.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result};
use benches::report::Report;
use tests::{Host, Manager, TreeFixture};

const UPGRADES: usize = 50;

fn main() -> Result<()> {
    let manager = Manager::start();
    for version in ["1", "2"] {
        manager.publish("data-agent", version, TreeFixture::agent(version, "data", "probation = \"400ms\"\n").path());
    }
    let mut host = Host::mounted("bench", &manager);
    manager.export("data-agent@1", "bench");
    host.launch("data-agent");
    manager.wait_for_version("bench", "data-agent", "1");
    manager.export("data-agent@2", "bench");

    let socket = host.path("run/agents/data-agent.sock");
    let (ended, refused, accepted) = (Arc::default(), Arc::default(), Arc::default());
    let client = std::thread::spawn({
        let (ended, refused, accepted) = (Arc::clone(&ended), Arc::clone(&refused), Arc::clone(&accepted));
        move || connect_until(&socket, &ended, &refused, &accepted)
    });
    let (mut blackout, mut swap, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..UPGRADES {
        let generation = format!("data-agent@{}", 2 - round % 2);
        let output = manager.run(&["upgrade", "data-agent", &generation, "--to", "bench", "--json"]).expect(0);
        let mut total = 0;
        for event in output.json_lines() {
            let Some(us) = event["duration_us"].as_u64() else { continue };
            total += us;
            match event["step"].as_str() {
                Some("swapped") => swap.push(us as f64 / 1e3),
                Some("started") => blackout.push(us as f64 / 1e3),
                _ => {}
            }
        }
        whole.push(total as f64 / 1e3);
    }
    ended.store(true, Ordering::SeqCst);
    client.join().ok().context("the client panicked")?;

    let mut report = Report::default();
    report.figure(format!("blackout of {UPGRADES} change-overs"), &blackout, "ms", "<= 100");
    report.figure("swap", &swap, "ms", "<= 1");
    report.figure("all steps of a change-over", &whole, "ms", "");
    report.figure("refused connections", &[refused.load(Ordering::SeqCst) as f64], "", "0");
    report.note(format!("{} connections were made meanwhile", accepted.load(Ordering::SeqCst)));
    report.finish("change_over", Path::new("target/bench"))
}

fn connect_until(socket: &Path, ended: &AtomicBool, refused: &AtomicU64, accepted: &AtomicU64) {
    while !ended.load(Ordering::SeqCst) {
        match UnixStream::connect(socket) {
            Ok(_) => accepted.fetch_add(1, Ordering::SeqCst),
            Err(_) => refused.fetch_add(1, Ordering::SeqCst),
        };
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
