//! One table for people, one JSON document for machines.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use crate::pair::{Pairs, Spread};

/// The rows of one benchmark.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
    notes: Vec<String>,
    details: serde_json::Map<String, Value>,
}

#[derive(Debug)]
struct Row {
    name: String,
    figure: Spread,
    unit: &'static str,
    ratio: Option<(Spread, String)>,
    goal: String,
}

impl Report {
    /// A figure without a rival.
    pub fn figure(&mut self, name: impl Into<String>, figures: &[f64], unit: &'static str, goal: &str) {
        let figure = Spread::of(figures);
        self.rows.push(Row { name: name.into(), figure, unit, ratio: None, goal: goal.to_owned() });
    }

    /// Seconds of ours, and their ratio to the rival's of the same round.
    pub fn pairs(&mut self, name: impl Into<String>, pairs: &Pairs, rival: &str, goal: &str) {
        let milliseconds: Vec<f64> = pairs.ours.iter().map(|s| s * 1e3).collect();
        let figure = Spread::of(&milliseconds);
        let ratio = Some((pairs.ratio(), rival.to_owned()));
        self.rows.push(Row { name: name.into(), figure, unit: "ms", ratio, goal: goal.to_owned() });
    }

    /// A figure whose ratio to another one, round by round, is known already.
    pub fn versus(
        &mut self,
        name: impl Into<String>,
        figures: &[f64],
        unit: &'static str,
        ratios: &[f64],
        rival: &str,
    ) {
        let ratio = (!ratios.is_empty()).then(|| (Spread::of(ratios), rival.to_owned()));
        let figure = Spread::of(figures);
        self.rows.push(Row { name: name.into(), figure, unit, ratio, goal: String::new() });
    }

    /// More for the document alone: every single figure, for plots.
    pub fn detail(&mut self, name: &str, value: Value) {
        self.details.insert(name.to_owned(), value);
    }

    /// A line below the table: what was left out, and why.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Prints the table and writes `<name>.json` into `dir`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(&self, name: &str, dir: &Path) -> Result<()> {
        println!("\n{name}: {}", machine());
        println!("{:<60} {:>11} {:>21}  {:<34}  goal", "what", "median", "min .. max", "x rival (min .. max)");
        for row in &self.rows {
            let Spread { min, median, max } = row.figure;
            let ratio = row.ratio.as_ref().map_or_else(String::new, |(ratio, rival)| {
                format!("{:.2} ({:.2} .. {:.2}) {rival}", ratio.median, ratio.min, ratio.max)
            });
            let spread = format!("{min:.2} .. {max:.2}");
            println!("{:<60} {median:>8.2} {:<3}{spread:>20}  {ratio:<34}  {}", row.name, row.unit, row.goal);
        }
        for note in &self.notes {
            println!("note: {note}");
        }
        let path = dir.join(format!("{name}.json"));
        std::fs::create_dir_all(dir)?;
        std::fs::write(&path, format!("{:#}\n", self.json(name)))?;
        println!("written: {}", path.display());
        Ok(())
    }

    fn json(&self, name: &str) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "name": row.name,
                    "unit": row.unit,
                    "figure": row.figure.json(),
                    "ratio": row.ratio.as_ref().map(|(ratio, _)| ratio.json()),
                    "rival": row.ratio.as_ref().map(|(_, rival)| rival),
                    "goal": row.goal,
                })
            })
            .collect();
        json!({ "bench": name, "machine": machine(), "rows": rows, "notes": self.notes, "details": self.details })
    }
}

/// Kernel, cores and memory.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory_kib = read("/proc/meminfo").split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
    format!("Linux {kernel}, {cores} cores, {} GiB", memory_kib.unwrap_or(0) >> 20)
}
