//! How a running operation is watched and stopped.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

/// How many lines of problems an operation reports; a tree full of unreadable files must not become a message that
/// nobody can send.
pub(crate) const PROBLEMS_MAX: usize = 200;
/// Characters of one line.
const LINE_CHARS_MAX: usize = 600;
/// How often the name of the current file changes, milliseconds: faster than it is asked for.
const NOTE_EVERY_MS: u64 = 100;

/// A [`Meter`] as the engine's own threads hold it.
pub(crate) type SharedMeter = Arc<Meter>;

/// One operation's counters, shared between the engine's threads and whoever reports them.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    bytes_done: AtomicU64,
    bytes: AtomicU64,
    stop: AtomicBool,
    abandoned: AtomicBool,
    /// What a thread of a library's panicked with.
    broken: Mutex<Option<String>>,
    activity: Mutex<String>,
    /// What is being read or written, and when that was noted last, milliseconds since `begun`.
    current: Mutex<PathBuf>,
    noted: AtomicU64,
    begun: OnceLock<Instant>,
    problems: Mutex<Problems>,
    /// How many calls of the library's are left until one panics; 0: none does.
    #[cfg(test)]
    pub(super) panics_after: AtomicU64,
}

/// What went wrong without ending an operation.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Problems {
    /// The first [`PROBLEMS_MAX`].
    pub(crate) lines: Vec<String>,
    /// How many more there were.
    pub(crate) left_out: u64,
}

impl Problems {
    /// Adds those of a later part of the same operation.
    pub(crate) fn add(&mut self, later: Problems) {
        let room = PROBLEMS_MAX.saturating_sub(self.lines.len()).min(later.lines.len());
        self.left_out += later.left_out + (later.lines.len() - room) as u64;
        self.lines.extend(later.lines.into_iter().take(room));
    }

    /// For a report: one line each, and one that counts those left out.
    pub(crate) fn into_lines(self) -> Vec<String> {
        let mut lines = self.lines;
        if self.left_out > 0 {
            lines.push(format!("and {} more problems like these", self.left_out));
        }
        lines
    }
}

impl Meter {
    /// Asks the engine to end at the next place where ending loses nothing; the call then fails with
    /// [`super::EngineError::Stopped`].
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// A thread of a library's panicked. What it was to do is not done, and nobody may take the rest for the whole.
    pub(crate) fn break_off(&self, panic: &str) {
        lock(&self.broken).get_or_insert_with(|| one_line(panic));
    }

    /// What a thread of a library's panicked with, if one did.
    pub(crate) fn broken(&self) -> Option<String> {
        lock(&self.broken).clone()
    }

    #[cfg(test)]
    pub(super) fn panic_if_told(&self) {
        let less = |left: u64| left.checked_sub(1);
        let before = self.panics_after.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        assert!(before != Ok(1), "as told");
    }

    /// Nobody waits for the operation any more, whose threads may be stuck in a file system that does not answer: its
    /// repository is let go without them.
    pub(crate) fn abandon(&self) {
        self.stop();
        self.abandoned.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    /// Bytes done and bytes in all (0 while unknown) of the current activity, and its name with the current file's.
    pub(crate) fn read(&self) -> (u64, u64, String) {
        let mut activity = lock(&self.activity).clone();
        let current = lock(&self.current);
        if !current.as_os_str().is_empty() {
            activity = format!("{activity} {}", current.display());
        }
        drop(current);
        (self.bytes_done.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed), activity)
    }

    pub(super) fn begin(&self, activity: &str) {
        self.bytes_done.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        self.say(activity);
    }

    /// Names the file that is being read or written; of many small ones only some.
    pub(super) fn at(&self, path: &Path) {
        let now = self.begun.get_or_init(Instant::now).elapsed();
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX) + NOTE_EVERY_MS;
        let last = self.noted.load(Ordering::Relaxed);
        if now >= last + NOTE_EVERY_MS
            && self.noted.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            path.clone_into(&mut lock(&self.current));
        }
    }

    /// Names what is being done, without a new count.
    pub(super) fn say(&self, activity: &str) {
        lock(&self.current).clear();
        activity.trim_end_matches('.').clone_into(&mut lock(&self.activity));
    }

    pub(super) fn expect(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn advance(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Notes something that went wrong without ending the operation, as one line.
    pub(super) fn problem(&self, what: impl Into<String>) {
        let mut problems = lock(&self.problems);
        if problems.lines.len() < PROBLEMS_MAX {
            problems.lines.push(one_line(&what.into()));
        } else {
            problems.left_out += 1;
        }
    }

    /// The problems noted so far, which are then forgotten.
    pub(crate) fn take_problems(&self) -> Problems {
        std::mem::take(&mut *lock(&self.problems))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a library has to say, as a line for people: no line breaks, no backtrace, no more than can be read. Of a long one
/// the middle is left out: what it is about stands at its beginning, why at its end.
pub(super) fn one_line(text: &str) -> String {
    let text = match text.find("Backtrace:").or_else(|| text.find("stack backtrace:")) {
        Some(at) => &text[..at],
        None => text,
    };
    // A name may hold anything, and a line must stay one on every terminal.
    let characters: Vec<_> = text.trim().chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
    let Some(more) = characters.len().checked_sub(LINE_CHARS_MAX).filter(|more| *more > 0) else {
        return characters.into_iter().collect();
    };
    let (head, rest) = characters.split_at(LINE_CHARS_MAX * 2 / 3);
    head.iter().chain(&['…']).chain(rest.get(more..).unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_bounded_and_their_count_survives_adding_up() {
        let of = |count: usize| {
            let meter = Meter::default();
            for n in 0..count {
                meter.problem(format!("file {n} cannot be read"));
            }
            let problems = meter.take_problems();
            assert_eq!(meter.take_problems(), Problems::default());
            problems
        };
        let mut sum = of(PROBLEMS_MAX + 3);
        sum.add(of(PROBLEMS_MAX + 4));
        sum.add(of(1));
        let lines = sum.into_lines();
        assert_eq!(lines.len(), PROBLEMS_MAX + 1);
        assert_eq!(lines[PROBLEMS_MAX], format!("and {} more problems like these", 3 + PROBLEMS_MAX + 4 + 1));
        assert_eq!(of(1).into_lines(), ["file 0 cannot be read"]);
    }

    #[test]
    fn the_current_file_is_named_with_the_activity_until_that_changes() {
        let meter = Meter::default();
        meter.begin("reading");
        assert_eq!(meter.read().2, "reading");
        meter.at(Path::new("/srv/a"));
        meter.at(Path::new("/srv/b"));
        assert_eq!(meter.read().2, "reading /srv/a", "the second came within a tenth of a second");
        meter.begin("comparing");
        assert_eq!(meter.read().2, "comparing");
    }

    #[test]
    fn a_problem_is_one_line_without_a_backtrace() {
        let meter = Meter::default();
        meter.problem("a\nb\x1b[31m\n\nBacktrace:\n   0: std::backtrace");
        meter.problem(format!("/srv/{}: no", "x".repeat(10_000)));
        meter.problem("x".repeat(LINE_CHARS_MAX));
        let lines = meter.take_problems().lines;
        assert_eq!(lines[0], "a b [31m");
        assert_eq!(lines[1].chars().count(), LINE_CHARS_MAX + 1);
        assert!(lines[1].starts_with("/srv/x") && lines[1].ends_with("x: no"), "{}", lines[1]);
        assert_eq!(lines[2].chars().count(), LINE_CHARS_MAX);
    }
}
