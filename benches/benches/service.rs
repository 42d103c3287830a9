//! The small web service of `docs/embedding.md` under eight clients: what they lose and how long they wait, over change-overs
//! that come about and ones that do not. `cargo bench --locked -p benches --bench service`.

use std::path::Path;

use anyhow::Result;
use benches::report::Report;
use tests::command::{program, until};
use tests::load::Seen;
use tests::{Site, TreeFixture};

/// Of each kind.
const CHANGES: usize = 50;
const CLIENTS: usize = 8;

fn main() -> Result<()> {
    let mut site = Site::new("hello");
    let hello = std::fs::read(program("examples/hello_service"))?;
    publish(&site, "1", &hello);
    // What is exported last is what a host begins with.
    site.launch("1");
    publish(&site, "2", &hello);
    publish(&site, "exits", "#!/bin/sh\nexit 7\n");
    publish(&site, "no-program", "#!/no/such/interpreter\n");

    let (mut up, mut failed) = (Pauses::default(), Pauses::default());
    for round in 0..CHANGES {
        up.change(&site, if round % 2 == 0 { "2" } else { "1" }, 0);
    }
    for round in 0..CHANGES {
        failed.change(&site, if round % 2 == 0 { "exits" } else { "no-program" }, 1);
    }
    let mut report = Report::default();
    for (what, pauses) in [("that come about", &up), ("that fail", &failed)] {
        report.figure(format!("longest pause in each of {CHANGES} change-overs {what}"), &pauses.longest, "ms", "");
        if !pauses.beyond.is_empty() {
            report.figure("  of it beyond the program's own start", &pauses.beyond, "ms", "<= 20");
        }
        report.figure("  refused, reset, empty or late", &[pauses.lost as f64], "", "0");
        report.note(format!("{} answers during change-overs {what}", pauses.answers));
    }
    report.finish("service", Path::new("target/bench"))
}

fn publish(site: &Site, version: &str, entry: impl AsRef<[u8]>) {
    let tree = TreeFixture::new();
    tree.file("bin/hello", 0o755, entry).file("VERSION", 0o644, version);
    let head = format!("entrypoint = 'bin/hello'\narguments = ['{}']\nprobation = '400ms'\n", site.address);
    site.publish(version, tree.file("manager-fs.toml", 0o644, head).path());
}

/// What clients saw over change-overs of one kind.
#[derive(Default)]
struct Pauses {
    /// The longest of each, milliseconds.
    longest: Vec<f64>,
    /// The same without the time from `execve` until the new version served, where there was one.
    beyond: Vec<f64>,
    answers: u64,
    lost: u64,
}

impl Pauses {
    fn change(&mut self, site: &Site, version: &str, code: i32) {
        let generation = format!("{}@{version}", site.product);
        let order = ["upgrade", site.product, &generation, "--to", &site.host.name, "--json"];
        let work = || {
            let output = site.manager.run(&order).expect(code);
            // A version that is back serves a moment after the order has ended.
            until("somebody answers", || site.ask().ok());
            output
        };
        let (seen, output): (Seen, _) = tests::load::under_load(CLIENTS, || site.ask(), work);
        let longest = seen.longest.as_secs_f64() * 1e3;
        let started = output.json_lines().into_iter().find(|event| event["step"] == "started");
        if let Some(us) = started.and_then(|event| event["duration_us"].as_f64()) {
            self.beyond.push(longest - us / 1e3);
        }
        self.longest.push(longest);
        self.answers += seen.of("");
        self.lost += seen.lost();
    }
}
