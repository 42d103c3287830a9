//! Publishing real trees with the source in the page cache. `cargo bench --locked -p benches --bench publish`.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use benches::report::Report;
use benches::trees;
use tests::Manager;

const ROUNDS: usize = 5;

fn main() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut report = Report::default();
    for tree in trees::find(scratch.path())? {
        let source = tree.versions.last().context("a version")?;
        let bytes = read_all(source)?;
        let (mut rates, mut store) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let manager = Manager::start();
            let since = Instant::now();
            manager.publish(&tree.name, "1", source);
            rates.push(bytes as f64 / 1e6 / since.elapsed().as_secs_f64());
            store.push(read_all(&manager.store().join("packs"))? as f64 / 1e6);
        }
        report.figure(format!("{}: publish, {:.0} MB", tree.name, bytes as f64 / 1e6), &rates, "MB/s", ">= 200");
        report.figure(format!("{}: store", tree.name), &store, "MB", "");
    }
    report.finish("publish", Path::new("target/bench"))
}

/// Reads every file below a directory once; returns the bytes.
fn read_all(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            bytes += read_all(&entry.path())?;
        } else if kind.is_file() {
            bytes += std::fs::read(entry.path())?.len() as u64;
        }
    }
    Ok(bytes)
}
