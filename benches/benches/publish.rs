//! Publishing real trees with the source in the page cache. `cargo bench --locked -p benches --bench publish`.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use benches::report::Report;
use benches::{tool, trees};
use tests::Manager;

const ROUNDS: usize = 5;

fn main() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut report = Report::default();
    for tree in trees::find(scratch.path())? {
        let source = tree.versions.last().context("a version")?;
        let bytes = read_all(source)?;
        let (mut rates, mut stores) = (Vec::new(), Vec::new());
        let mut again = None;
        for round in 0..ROUNDS {
            let manager = Manager::start();
            let since = Instant::now();
            manager.publish(&tree.name, "1", source);
            rates.push(bytes as f64 / 1e6 / since.elapsed().as_secs_f64());
            let store =
                || anyhow::Ok((read_all(&manager.store().join("packs"))? + manifests(&manager)?) as f64 / 1e6);
            stores.push(store()?);
            if round + 1 == ROUNDS {
                let since = Instant::now();
                manager.wait_until_repacked();
                again = Some((since.elapsed().as_secs_f64(), store()?));
            }
        }
        let archive = archive_bytes(source, scratch.path())? as f64 / 1e6;
        let (seconds, small) = again.context("a round")?;
        report.figure(format!("{}: publish, {:.0} MB", tree.name, bytes as f64 / 1e6), &rates, "MB/s", ">= 300");
        report.figure(format!("{}: store at once", tree.name), &stores, "MB", "");
        let rival = "tar.zst -9";
        report.versus(format!("{}: store, compressed anew", tree.name), &[small], "MB", &[small / archive], rival);
        report.figure(format!("{}: until then", tree.name), &[seconds], "s", "");
    }
    report.finish("publish", Path::new("target/bench"))
}

fn manifests(manager: &Manager) -> Result<u64> {
    read_all(&manager.store().join("manifests"))
}

/// How long the tree's archive is, compressed by zstd -9.
fn archive_bytes(tree: &Path, scratch: &Path) -> Result<u64> {
    let archive = scratch.join("archive.tar.zst");
    let tar: [&OsStr; 6] =
        ["-I".as_ref(), "zstd -9".as_ref(), "-cf".as_ref(), archive.as_ref(), "-C".as_ref(), tree.as_ref()];
    tool::run("tar", tar.into_iter().chain([".".as_ref()]))?;
    Ok(std::fs::metadata(archive)?.len())
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
