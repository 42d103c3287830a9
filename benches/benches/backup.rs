//! Backups beside restic, operation by operation on the same data, each pair in turn: in seconds, processor time and
//! memory. `cargo bench --locked -p benches --bench backup`.
//!
//! Ours are jobs, from order to end, of real agents on one machine; time and memory are the agents', without the
//! manager's. The rival is restic, without a cache. `served` is the same backup to another host's media agent, beside
//! our own into a directory.
//!
//! `BENCH_ROUNDS` (3), `BENCH_MB` (3072, of large files that cannot be compressed) and `BENCH_FILES` (100000 of 1 to 4
//! KB) say how much; `TMPDIR` where: it needs some four times as much room.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use benches::cost::{Cost, of_processes, of_program};
use benches::pair::Pairs;
use benches::report::Report;
use benches::tool;
use tempfile::TempDir;
use tests::noise;
use tests::vault::{Vault, text};

const PIECE_BYTES: usize = 64 << 20;
const FILES_OF_A_DIRECTORY: usize = 500;
const OPERATIONS: [&str; 5] =
    ["first backup", "second backup", "after a tenth changed", "restore", "forget and prune"];

fn main() -> Result<()> {
    let (rounds, mb, files) =
        (number("BENCH_ROUNDS", 3)?, number("BENCH_MB", 3072)?, number("BENCH_FILES", 100_000)?);
    let restic = tool::need("restic")?;
    let bench = Bench { lab: Vault::new(), restic, dir: tempfile::tempdir()? };
    let mut report = Report::default();
    for (what, data) in [("large files", Data::Large(mb)), ("small files", Data::Small(files))] {
        bench.measure(what, data, rounds, &mut report)?;
    }
    report.note(format!("{mb} MB of large files, {files} small ones; {rounds} rounds after one that does not count"));
    report.finish("backup", Path::new("target/bench"))
}

fn number(variable: &str, usual: usize) -> Result<usize> {
    match std::env::var(variable) {
        Ok(text) => text.parse().ok().filter(|n| *n > 0).with_context(|| format!("{variable} is no number above 0")),
        Err(_) => Ok(usual),
    }
}

/// What is backed up.
#[derive(Clone, Copy)]
enum Data {
    /// So many megabytes that cannot be compressed.
    Large(usize),
    /// So many files.
    Small(usize),
}

impl Data {
    fn write(self, source: &Path) -> Result<()> {
        match self {
            Self::Large(mb) => (0..(mb << 20).div_ceil(PIECE_BYTES)).try_for_each(|part| {
                let (dir, bytes) =
                    (source.join(format!("{}", part % 10)), PIECE_BYTES.min((mb << 20) - part * PIECE_BYTES));
                fs::create_dir_all(&dir)?;
                Ok(fs::write(dir.join(format!("{part}")), noise(part as u64, bytes))?)
            }),
            Self::Small(files) => (0..files).try_for_each(|number| self.write_small(source, number, 0)),
        }
    }

    fn write_small(self, source: &Path, number: usize, seed: usize) -> Result<()> {
        let dir = source.join(format!("{}", number / FILES_OF_A_DIRECTORY));
        if number.is_multiple_of(FILES_OF_A_DIRECTORY) {
            fs::create_dir_all(&dir)?;
        }
        let bytes = 1024 + number * 7919 % 3072;
        // Half of it is text that can be compressed.
        let mut content = noise((seed << 32 | number) as u64, bytes / 2);
        content.resize(bytes, b'a');
        Ok(fs::write(dir.join(format!("{number}")), content)?)
    }

    /// Every tenth file becomes another one.
    fn change(self, source: &Path, round: usize) -> Result<()> {
        let seed = round + 1;
        match self {
            Self::Large(mb) => (0..(mb << 20).div_ceil(PIECE_BYTES)).step_by(10).try_for_each(|part| {
                let (file, bytes) =
                    (source.join(format!("{}/{part}", part % 10)), PIECE_BYTES.min((mb << 20) - part * PIECE_BYTES));
                Ok(fs::write(file, noise((seed << 32 | part) as u64, bytes))?)
            }),
            Self::Small(files) => {
                (0..files).step_by(10).try_for_each(|number| self.write_small(source, number, seed))
            }
        }
    }
}

struct Bench {
    lab: Vault,
    restic: PathBuf,
    dir: TempDir,
}

impl Bench {
    fn measure(&self, what: &str, data: Data, rounds: usize, report: &mut Report) -> Result<()> {
        let source = self.dir.path().join("source");
        let mut all: Vec<Pairs<Cost>> = OPERATIONS.map(|_| Pairs { ours: Vec::new(), rival: Vec::new() }).into();
        let mut served = Pairs { ours: Vec::new(), rival: Vec::new() };
        for round in 0..=rounds {
            drop(fs::remove_dir_all(&source));
            data.write(&source)?;
            self.begin()?;
            for (operation, pairs) in all.iter_mut().enumerate() {
                if operation == 2 {
                    data.change(&source, round)?;
                }
                let (ours, rival) = if (round + operation) % 2 == 0 {
                    let ours = self.ours(operation, &source)?;
                    (ours, self.restic(operation, &source)?)
                } else {
                    let rival = self.restic(operation, &source)?;
                    (self.ours(operation, &source)?, rival)
                };
                // What both did is the same, or there is nothing to compare.
                if operation == 3 {
                    tool::run("diff", ["-rq".into(), text(&source), text(&self.path("by-us"))])?;
                }
                if round > 0 {
                    pairs.ours.push(ours);
                    pairs.rival.push(rival);
                }
                if operation == 0 {
                    let there = self.to_media_agent(&source)?;
                    if round > 0 {
                        served.ours.push(there);
                        served.rival.push(ours);
                    }
                }
            }
        }
        for (operation, pairs) in OPERATIONS.iter().zip(&all) {
            tell(report, &format!("{what}: {operation}"), pairs, "restic", "<= 1");
        }
        tell(report, &format!("{what}: first backup, served"), &served, "a directory", "<= 1.25 (seconds)");
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Empty repositories, and nothing restored.
    fn begin(&self) -> Result<()> {
        for name in ["ours", "restic", "by-us", "by-restic"] {
            drop(fs::remove_dir_all(self.path(name)));
        }
        fs::write(self.path("password"), "correct horse battery staple")?;
        tool::finish(self.command().arg("init"))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.restic);
        command.args(["--no-cache", "--quiet", "--repo"]).arg(self.path("restic"));
        command.arg("--password-file").arg(self.path("password"));
        command
    }

    fn restic(&self, operation: usize, source: &Path) -> Result<Cost> {
        let mut command = self.command();
        match operation {
            0..=2 => command.arg("backup").arg(source),
            3 => command.args(["restore", "latest", "--target"]).arg(self.path("by-restic")),
            _ => command.args(["forget", "--keep-last", "1", "--prune"]),
        };
        of_program(&mut command)
    }

    fn ours(&self, operation: usize, source: &Path) -> Result<Cost> {
        let (repository, target) = (text(&self.path("ours")), text(&self.path("by-us")));
        let password = text(&self.lab.web.path("state/repository.password"));
        let source = text(source);
        match operation {
            0..=2 => self.job(&["data-agent"], &["backup", "--host", "web", "--repository", &repository, &source]),
            3 => {
                let restore = ["restore", "--host", "web", "--snapshot", "latest", "--target", &target];
                self.job(&["data-agent"], &[&restore[..], &["--repository", &repository]].concat())
            }
            _ => {
                let prune = ["prune", "--host", "vault", "--repository", &repository, "--keep-last", "1"];
                self.job(&["media-agent"], &[&prune[..], &["--password-file", &password]].concat())
            }
        }
    }

    /// Into a repository that is empty, for whatever was there would be found.
    fn to_media_agent(&self, source: &Path) -> Result<Cost> {
        let manager = &self.lab.manager;
        manager.run(&["repository", "remove", "main"]).expect(0);
        drop(fs::remove_dir_all(self.lab.repository()));
        self.lab.create(&["--path", &text(&self.lab.repository())]).expect(0);
        let backup = ["backup", "--host", "web", "--repository", "main", &text(source)];
        self.job(&["data-agent", "media-agent"], &backup)
    }

    fn job(&self, agents: &[&str], order: &[&str]) -> Result<Cost> {
        let manager = &self.lab.manager;
        let pid = |product: &&str| {
            let host = if *product == "data-agent" { "web" } else { "vault" };
            manager.agent(host, product).and_then(|agent| agent["pid"].as_u64()).context("an agent that runs")
        };
        let pids = agents.iter().map(pid).collect::<Result<Vec<_>>>()?;
        let mut output = None;
        let cost = of_processes(&pids, || output = Some(manager.run(&[&["job"], order].concat())))?;
        let output = output.context("it was run")?;
        ensure!(output.code == Some(0), "{}: {}", output.line, output.stderr);
        Ok(cost)
    }
}

fn tell(report: &mut Report, what: &str, pairs: &Pairs<Cost>, rival: &str, goal: &str) {
    type Figure = fn(&Cost) -> f64;
    let figures: [(&str, &'static str, Figure); 3] = [
        ("", "s", |cost| cost.seconds),
        (", processor", "s", |cost| cost.processor_seconds),
        (", memory", "MB", |cost| cost.peak_mb),
    ];
    for (name, unit, figure) in figures {
        let ours: Vec<f64> = pairs.ours.iter().map(figure).collect();
        let rivals: Vec<f64> = pairs.rival.iter().map(figure).collect();
        // A processor time of nothing is no divisor.
        let ratios: Vec<f64> = ours.iter().zip(&rivals).map(|(ours, rival)| ours / rival.max(0.01)).collect();
        report.versus(format!("{what}{name}"), &ours, unit, &ratios, &format!("{rival}; goal {goal}"));
    }
}
