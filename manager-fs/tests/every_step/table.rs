//! The table of `docs/reliability.md`: every moment, and what a run of all cells printed of each fault.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;

use tests::repository::root;

use crate::cell::Fault;
use crate::{cell_name, moment};

const BEGIN: &str = "<!-- every moment: begin -->\n";
const END: &str = "<!-- every moment: end -->\n";

/// As it stands when these cells have held.
fn table(held: impl Fn(&str) -> bool) -> String {
    let heads: Vec<_> = Fault::ALL.iter().map(|fault| fault.head()).collect();
    let mut text = format!("| moment | process | what happens next | {} |\n", heads.join(" | "));
    let _ = writeln!(text, "|---|---|---|{}", "---|".repeat(heads.len()));
    for step in moment::all() {
        let cells = Fault::ALL.map(|fault| if held(&cell_name(&step, fault)) { "held" } else { "**not held**" });
        let _ = writeln!(text, "| `{}` | {} | {} | {} |", step.name, step.process, step.text, cells.join(" | "));
    }
    text
}

/// Writes the table out of what a run printed.
pub(crate) fn write(printed: &str) {
    let held: BTreeSet<_> =
        printed.lines().filter_map(|line| line.split_once(": held (")).map(|(name, _)| name).collect();
    let path = root().join("docs/reliability.md");
    let document = fs::read_to_string(&path).unwrap();
    let (before, rest) = document.split_once(BEGIN).expect("where the table begins");
    let (_, after) = rest.split_once(END).expect("where it ends");
    fs::write(&path, format!("{before}{BEGIN}{}{END}{after}", table(|name| held.contains(name)))).unwrap();
}

/// The document has every moment that the code has, in its order.
pub(crate) fn compare() {
    let document = fs::read_to_string(root().join("docs/reliability.md")).unwrap();
    let found = document.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END)).map(|(table, _)| table);
    // What a cell says is for a whole run to find out; that there is a row for each moment is for every run.
    let row = |line: &str| line.split(" | ").take(3).map(str::to_owned).collect::<Vec<_>>();
    let found: Vec<_> = found.expect("the table").lines().map(row).collect();
    let wanted: Vec<_> = table(|_| true).lines().map(row).collect();
    assert_eq!(found, wanted, "docs/reliability.md has the moments as a whole run writes them");
}
