//! A rollout over ten thousand hosts of one manager: `cargo build --release --locked -p manager-fs`, then
//! `cargo bench --locked -p benches --bench fleet`. `BENCH_HOSTS` says how many others.
//!
//! The hosts are one process, which shares the cores with the manager; they fetch, stage and execute nothing.

use std::path::Path;

use anyhow::{Context, Result};
use benches::report::Report;
use benches::whole_fleet;

/// Hosts, unless `BENCH_HOSTS` says otherwise.
const HOSTS: usize = 10_000;

fn main() -> Result<()> {
    let count = match std::env::var("BENCH_HOSTS") {
        Ok(text) => text.parse().ok().filter(|count| *count > 0).context("BENCH_HOSTS is no number above 0")?,
        Err(_) => HOSTS,
    };
    let cost = whole_fleet::measure(count)?;
    let hosts = count as f64;
    let mut report = Report::default();
    report.figure("enrolled", &[cost.enrolled], "s", "");
    report.figure("connected, told what is exported, reported", &[cost.connected], "s", "");
    report.figure("the manager's processor time for it, a host", &[cost.processor[0] / hosts * 1e3], "ms", "");
    report.figure("ordered and confirmed", &[cost.rolled_out], "s", "60");
    report.figure("the manager's processor time for it, a host", &[cost.processor[1] / hosts * 1e3], "ms", "8");
    let [decided, observed] = cost.commits.map(|commits| commits / hosts * 100.0);
    report.figure("synced commits for 100 hosts", &[decided + observed], "", "2");
    report.figure("  of decisions", &[decided], "", "");
    report.figure("  of observations", &[observed], "", "");
    let [without, with_all, highest] = cost.memory;
    report.figure("the manager's memory without hosts", &[without], "MiB", "");
    report.figure("  more with all connected, a host", &[(with_all - without) * 1024.0 / hosts], "KiB", "50");
    report.figure("  more at its highest, a host", &[(highest - without) * 1024.0 / hosts], "KiB", "");
    report.figure("rollout status meanwhile, the program's start included", &cost.status, "ms", "100");
    report.figure("refused or unanswered", &[cost.refused as f64], "", "0");
    report.note(format!("{count} hosts in one process, which shares the cores with the manager; nothing is fetched"));
    report.finish("fleet", Path::new("target/bench"))
}
