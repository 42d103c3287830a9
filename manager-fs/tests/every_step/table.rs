//! The table of `docs/reliability.md`: every moment, and the faults under which the run held.

use std::fmt::Write;
use std::fs;

use tests::repository::root;

use crate::cell::Fault;
use crate::moment;

const BEGIN: &str = "<!-- every moment: begin -->\n";
const END: &str = "<!-- every moment: end -->\n";

/// As it stands when every cell has held: it is written after no other run.
fn table() -> String {
    let heads: Vec<_> = Fault::ALL.iter().map(|fault| fault.head()).collect();
    let mut text = format!("| moment | process | what happens next | {} |\n", heads.join(" | "));
    let _ = writeln!(text, "|---|---|---|{}", "---|".repeat(heads.len()));
    for step in moment::all() {
        let held = vec!["held"; heads.len()].join(" | ");
        let _ = writeln!(text, "| `{}` | {} | {} | {held} |", step.name, step.process, step.text);
    }
    text
}

/// Writes the table into the document when `MANAGER_FS_WRITE_DOCS` asks for it.
pub(crate) fn write_if_wanted() {
    if std::env::var_os("MANAGER_FS_WRITE_DOCS").is_none() {
        return compare();
    }
    let path = root().join("docs/reliability.md");
    let document = fs::read_to_string(&path).unwrap();
    let (before, rest) = document.split_once(BEGIN).expect("where the table begins");
    let (_, after) = rest.split_once(END).expect("where it ends");
    fs::write(&path, format!("{before}{BEGIN}{}{END}{after}", table())).unwrap();
}

pub(crate) fn compare() {
    let document = fs::read_to_string(root().join("docs/reliability.md")).unwrap();
    let found = document.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END)).map(|(table, _)| table);
    assert_eq!(found, Some(&*table()), "WHOLE=1 MANAGER_FS_WRITE_DOCS=1 writes it after a whole run");
}
