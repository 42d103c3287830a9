//! How the demo is told: a line a step with what matters first, a live line while a step goes on, and at the end what was
//! seen. Or all of it as one JSON document.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proto::width;
use serde_json::{Map, Value, json};

use crate::cli::out::{self, clean, note, wrapped};
use crate::cli::progress::{columns_of, cut};
use crate::cli::units;
use crate::sync::lock;

/// The live line moves this often.
const TICK: Duration = Duration::from_millis(120);
/// Text is not wider than this, however wide the terminal is.
const COLUMNS_MAX: usize = 78;
const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const RESET: &str = "\x1b[0m";

/// A step that goes on.
pub(super) struct Step {
    id: &'static str,
    title: &'static str,
    began: Instant,
    facts: Map<String, Value>,
    lines: Vec<Line>,
}

/// One line below a step's title.
enum Line {
    /// What matters.
    Main(String),
    /// What explains it.
    Fine(String),
}

impl Step {
    /// A figure for programs.
    pub(super) fn fact(&mut self, name: &str, value: impl Into<Value>) {
        self.facts.insert(name.to_owned(), value.into());
    }

    /// What matters, for people.
    pub(super) fn main(&mut self, text: impl Into<String>) {
        self.lines.push(Line::Main(text.into()));
    }

    /// What explains it, for people.
    pub(super) fn fine(&mut self, text: impl Into<String>) {
        self.lines.push(Line::Fine(text.into()));
    }
}

/// One finished step.
struct Entry {
    id: &'static str,
    title: &'static str,
    at: Duration,
    took: Duration,
    facts: Map<String, Value>,
}

/// What is shown while a step goes on.
#[derive(Default)]
struct Now {
    /// Title, activity and begin; nothing between steps.
    step: Option<(&'static str, String, Instant)>,
    drawn: bool,
}

/// The steps so far, and how they are shown.
pub(super) struct Story {
    began: Instant,
    entries: Vec<Entry>,
    /// What was seen, for the end: a word and its sentence.
    seen: Vec<(&'static str, String)>,
    json: bool,
    look: Look,
    now: Arc<Mutex<Now>>,
    live: Option<tokio::task::JoinHandle<()>>,
    degraded: Vec<String>,
    data_path: Option<String>,
}

/// What the terminal can show.
#[derive(Debug, Clone, Copy)]
struct Look {
    colour: bool,
    marks: bool,
    columns: usize,
}

impl Look {
    fn of_this_terminal() -> Self {
        let terminal = std::io::stdout().is_terminal();
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let dumb = set("TERM").is_some_and(|term| term == "dumb");
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default().to_lowercase();
        Self {
            colour: terminal && !dumb && set("NO_COLOR").is_none(),
            // In a pipe nobody knows who reads: UTF-8, as the rest of the output.
            marks: !terminal || locale.contains("utf-8") || locale.contains("utf8"),
            columns: columns_of(std::io::stdout())
                .unwrap_or(COLUMNS_MAX + 1)
                .saturating_sub(1)
                .clamp(20, COLUMNS_MAX),
        }
    }

    fn paint(self, how: &str, text: &str) -> String {
        if self.colour { format!("{how}{text}{RESET}") } else { text.to_owned() }
    }

    fn mark(self, good: bool) -> String {
        match (self.marks, good) {
            (true, true) => self.paint(GREEN, "✓"),
            (true, false) => self.paint(RED, "✗"),
            (false, true) => self.paint(GREEN, "+"),
            (false, false) => self.paint(RED, "!"),
        }
    }

    /// The title to the left, the time to the right.
    fn title(self, good: bool, title: &str, time: &str) -> String {
        let used = 3 + title.chars().count() + time.chars().count();
        let space = self.columns.saturating_sub(used).max(1);
        format!(" {} {}{}{}", self.mark(good), self.paint(BOLD, title), " ".repeat(space), self.paint(DIM, time))
    }

    /// Text below a title.
    fn below(self, line: &Line) -> Vec<String> {
        let (text, how) = match line {
            Line::Main(text) => (text, ""),
            Line::Fine(text) => (text, DIM),
        };
        let lines = wrapped(&clean(text), self.columns.saturating_sub(3));
        let painted = lines
            .iter()
            .map(|line| format!("   {}", if how.is_empty() { line.clone() } else { self.paint(how, line) }));
        painted.collect()
    }
}

impl Story {
    /// With `json`, nothing is printed before [`Story::document`].
    pub(super) fn begin(json: bool, root: &Path, degraded: &[String]) -> Self {
        let look = Look::of_this_terminal();
        let now: Arc<Mutex<Now>> = Arc::default();
        let terminal = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        let live = (!json && terminal).then(|| tokio::spawn(live(Arc::clone(&now))));
        let story = Self {
            began: Instant::now(),
            entries: Vec::new(),
            seen: Vec::new(),
            json,
            look,
            now,
            live,
            degraded: degraded.to_vec(),
            data_path: None,
        };
        story.print(&format!(" {}", look.paint(BOLD, "A manager, a host and an agent, on this machine")));
        for line in look.below(&Line::Fine(format!("all of it in {}, which goes with it", root.display()))) {
            story.print(&line);
        }
        for lack in degraded {
            for (number, line) in look.below(&Line::Main(lack.clone())).iter().enumerate() {
                story.print(&if number == 0 {
                    format!(" {} {}", look.mark(false), line.trim_start())
                } else {
                    line.clone()
                });
            }
        }
        story.print("");
        story
    }

    /// Begins a step.
    pub(super) fn step(&mut self, id: &'static str, title: &'static str) -> Step {
        self.now().step = Some((title, String::new(), Instant::now()));
        Step { id, title, began: Instant::now(), facts: Map::new(), lines: Vec::new() }
    }

    /// What is going on in the step, for the live line.
    pub(super) fn doing(&self) -> impl Fn(&str) + Send + Sync + 'static {
        let now = Arc::clone(&self.now);
        move |text: &str| {
            let mut now = lock(&now);
            if let Some((_, activity, _)) = &mut now.step {
                text.clone_into(activity);
            }
        }
    }

    /// The step is over and has been checked.
    pub(super) fn done(&mut self, step: Step) {
        let took = step.began.elapsed();
        self.quiet();
        self.print(&self.look.title(true, step.title, &units::duration(took)));
        for line in step.lines.iter().flat_map(|line| self.look.below(line)) {
            self.print(&line);
        }
        let at = step.began - self.began;
        self.entries.push(Entry { id: step.id, title: step.title, at, took, facts: step.facts });
    }

    /// Whether trees are mounted, and not copied.
    pub(super) fn is_mounted(&self) -> bool {
        self.data_path.as_deref().is_none_or(|data_path| !is_copy(data_path))
    }

    /// One line of what is said at the end.
    pub(super) fn remember(&mut self, what: &'static str, sentence: String) {
        self.seen.push((what, sentence));
    }

    /// A number of an earlier step.
    pub(super) fn fact_of(&self, step: &str, name: &str) -> Option<u64> {
        self.entries.iter().find(|entry| entry.id == step)?.facts.get(name)?.as_u64()
    }

    /// How trees are mounted here. A plain copy is less than was promised, also where no check had foreseen it.
    pub(super) fn mounted(&mut self, data_path: &str) {
        let copies = "nothing may be mounted here: trees are plain copies, fetched whole before they start";
        if is_copy(data_path) && self.degraded.is_empty() {
            self.degraded.push(copies.to_owned());
        }
        self.data_path = Some(data_path.to_owned());
    }

    /// The step that goes on did not succeed.
    pub(super) fn failed(&mut self, failure: &str) {
        let title = self.now().step.as_ref().map(|(title, _, began)| (*title, began.elapsed()));
        self.quiet();
        if let Some((title, took)) = title {
            self.print(&self.look.title(false, title, &units::duration(took)));
        }
        // For people in any case: with --json the document has it too.
        note!("the demo failed: {failure}");
    }

    /// Ctrl-C: said at once, before anything is waited for.
    pub(super) fn interrupted(&mut self) {
        self.quiet();
        note!("interrupted; cleaning up");
    }

    /// The live line of the end.
    pub(super) fn cleaning_up(&mut self) {
        self.now().step = Some(("Cleaning up", String::new(), Instant::now()));
    }

    /// What was seen.
    pub(super) fn end(&mut self, good: bool, clean: bool, kept: bool) {
        let took = units::duration(self.began.elapsed());
        self.quiet();
        if good {
            self.print("");
            self.print(&format!(" {}", self.look.paint(BOLD, "What you have seen")));
            for (what, sentence) in &self.seen {
                let lines = wrapped(sentence, self.look.columns.saturating_sub(17));
                for (number, line) in lines.iter().enumerate() {
                    let what = if number == 0 { *what } else { "" };
                    self.print(&format!("   {}{line}", self.look.paint(DIM, &format!("{what:<14}"))));
                }
            }
            self.print("");
            let end = match (kept, clean) {
                (true, true) => "its directory is kept",
                (false, true) => "nothing is left behind",
                (_, false) => "something is left behind: see above",
            };
            let text = format!("Every step was checked, in {took}; {end}.");
            for (number, line) in wrapped(&text, self.look.columns.saturating_sub(3)).iter().enumerate() {
                let mark = if number == 0 { self.look.mark(clean) } else { " ".to_owned() };
                self.print(&format!(" {mark} {line}"));
            }
        }
    }

    /// The whole run as one document.
    pub(super) fn document(&self, failure: Option<&str>, interrupted: bool, clean: bool) -> Value {
        let steps: Vec<Value> = self
            .entries
            .iter()
            .map(|entry| {
                json!({
                    "step": entry.id,
                    "title": entry.title,
                    "at_ms": width::millis(entry.at),
                    "duration_ms": width::millis(entry.took),
                    "facts": entry.facts,
                })
            })
            .collect();
        json!({
            "ok": failure.is_none() && !interrupted,
            "failure": failure,
            "interrupted": interrupted,
            "clean": clean,
            "data_path": self.data_path,
            "degraded": self.degraded,
            "duration_ms": width::millis(self.began.elapsed()),
            "steps": steps,
        })
    }

    fn now(&self) -> std::sync::MutexGuard<'_, Now> {
        lock(&self.now)
    }

    /// Takes the live line away.
    fn quiet(&self) {
        let mut now = self.now();
        now.step = None;
        if std::mem::take(&mut now.drawn) {
            let _ = std::io::stderr().write_all(b"\r\x1b[2K");
        }
    }

    /// One line, which may have colours of its own.
    fn print(&self, line: &str) {
        if !self.json {
            out::print(format!("{line}\n").as_bytes());
            let _ = std::io::stdout().flush();
        }
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        self.quiet();
        if let Some(live) = &self.live {
            live.abort();
        }
    }
}

/// Whether this data path mounts nothing.
pub(super) fn is_copy(data_path: &str) -> bool {
    data_path.contains("copy")
}

/// Draws what is going on, again and again.
async fn live(now: Arc<Mutex<Now>>) {
    const TURNS: [&str; 4] = ["|", "/", "-", "\\"];
    let mut turn = 0;
    loop {
        tokio::time::sleep(TICK).await;
        turn = (turn + 1) % TURNS.len();
        let columns = columns_of(std::io::stderr()).unwrap_or(80);
        // Held while it is written, so that nothing is printed in between.
        let mut now = lock(&now);
        let Some((title, activity, began)) = &now.step else { continue };
        let activity = if activity.is_empty() { String::new() } else { format!(": {activity}") };
        let text = format!(" {} {title}{activity}  {} s", TURNS[turn], began.elapsed().as_secs());
        let text = cut(&text, columns);
        now.drawn = true;
        let _ = std::io::stderr().write_all(format!("\r\x1b[2K{text}").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Look = Look { colour: false, marks: true, columns: 59 };

    #[test]
    fn a_title_fills_the_width_and_not_more() {
        let line = PLAIN.title(true, "Version 1 is published", "314 ms");
        assert_eq!(line.chars().count(), 59);
        assert!(line.starts_with(" ✓ Version 1 is published ") && line.ends_with(" 314 ms"), "{line}");
    }

    #[test]
    fn without_colour_there_is_no_escape_and_with_it_the_same_text() {
        let coloured = Look { colour: true, ..PLAIN };
        let strip =
            |text: String| [BOLD, DIM, GREEN, RED, RESET].iter().fold(text, |text, code| text.replace(code, ""));
        let (plain, painted) = (PLAIN.title(true, "t", "1 s"), coloured.title(true, "t", "1 s"));
        assert!(!plain.contains('\x1b') && painted.contains('\x1b'));
        assert_eq!(strip(painted), plain);
        let line = Line::Fine("a b".to_owned());
        assert_eq!(strip(coloured.below(&line).concat()), PLAIN.below(&line).concat());
    }

    #[test]
    fn what_a_host_says_cannot_paint() {
        let lines = PLAIN.below(&Line::Main("from the \x1b[31mhost".to_owned()));
        assert_eq!(lines, ["   from the \\x1b[31mhost"]);
    }

    #[test]
    fn long_text_stays_within_sixty_columns() {
        let long = Line::Fine("word ".repeat(60));
        assert!(PLAIN.below(&long).iter().all(|line| line.chars().count() <= 59));
    }
}
