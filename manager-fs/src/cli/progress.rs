//! The line that shows how far long work is: on a terminal only, and never wider than it.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use proto::agent::Progress as JobProgress;

use super::out::clean;
use super::units;
use crate::manager::admin::AdminEvent;

/// Progress is shown of work that takes longer than this.
const SHOW_AFTER: Duration = Duration::from_secs(1);
/// How often the line changes.
const EVERY: Duration = Duration::from_millis(100);
/// The rate is that of this last stretch of the work.
const RATE_OVER: Duration = Duration::from_secs(5);
/// A rate of less is noise.
const RATE_FROM: Duration = Duration::from_millis(500);
/// The widest bar.
const BAR: usize = 20;

/// How far one task is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Progress<'a> {
    /// What is being done.
    pub(super) task: &'a str,
    /// Units done.
    pub(super) done: u64,
    /// Units in all, 0 while unknown.
    pub(super) total: u64,
    /// Whether the units are bytes.
    pub(super) bytes: bool,
}

/// Shows the progress of long work on standard error, if that is a terminal.
pub(super) struct ProgressLine {
    terminal: bool,
    since: Instant,
    shown: Option<Instant>,
    rate: Rate,
}

/// How fast a task goes.
#[derive(Debug, Default)]
pub(super) struct Rate {
    task: String,
    /// When how much was done, oldest first.
    samples: VecDeque<(Instant, u64)>,
}

/// How far a job's unit is, and how long it will take; what is not known is not said.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Pace {
    /// Whole percent of the unit's bytes.
    pub(super) percent: Option<u64>,
    /// Over the last seconds.
    pub(super) bytes_per_second: Option<u64>,
    /// Milliseconds.
    pub(super) left_ms: Option<u64>,
}

impl ProgressLine {
    pub(super) fn new() -> Self {
        let terminal = std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self { terminal, since: Instant::now(), shown: None, rate: Rate::default() }
    }

    /// Takes an event of the manager; what is no progress is printed as a problem or left to the caller.
    pub(super) fn show(&mut self, event: &AdminEvent) {
        match event {
            AdminEvent::Progress { task, done, total, bytes } => {
                self.update(Progress { task, done: *done, total: *total, bytes: *bytes });
            }
            AdminEvent::Problem(text) => self.note(text),
            AdminEvent::Upgrade(_) | AdminEvent::Job(_) | AdminEvent::Rollout(_) => {}
        }
    }

    /// Shows how far a task is.
    pub(super) fn update(&mut self, progress: Progress<'_>) {
        if !self.terminal {
            return;
        }
        let now = Instant::now();
        let rate = self.rate.of(progress.task, progress.done, now);
        if self.is_time(now) {
            self.draw(&render(progress, rate, columns()));
        }
    }

    /// Prints a message above the line.
    pub(super) fn note(&mut self, text: &str) {
        self.clear();
        super::out::note!("{text}");
    }

    /// Removes what stands there, before something else is printed.
    pub(super) fn clear(&mut self) {
        if self.terminal && self.shown.take().is_some() {
            let _ = std::io::stderr().write_all(b"\r\x1b[2K");
        }
    }

    fn is_time(&self, now: Instant) -> bool {
        now - self.since >= SHOW_AFTER && self.shown.is_none_or(|shown| now - shown >= EVERY)
    }

    fn draw(&mut self, text: &str) {
        self.shown = Some(Instant::now());
        // Nobody may be there to read it.
        let _ = std::io::stderr().write_all(format!("\r\x1b[2K{text}").as_bytes());
    }
}

impl Rate {
    /// How far and how fast a job's unit is, of whose progress this is the newest.
    pub(super) fn pace(&mut self, job: &JobProgress) -> Pace {
        let (done, total) = (job.bytes_done, job.bytes);
        // The file that is named with the activity changes all the time.
        let rate = self.of(&format!("unit {}", job.units_done), done, Instant::now()).filter(|rate| *rate >= 1.0);
        let left = rate.filter(|_| total > 0).map(|rate| total.saturating_sub(done) as f64 * 1e3 / rate);
        Pace {
            percent: (total > 0).then(|| percent(done.min(total), total)),
            bytes_per_second: rate.map(whole),
            left_ms: left.map(whole),
        }
    }

    /// Units a second over the last stretch, once that means something.
    fn of(&mut self, task: &str, done: u64, now: Instant) -> Option<f64> {
        if self.task != task {
            task.clone_into(&mut self.task);
            self.samples.clear();
        }
        self.samples.push_back((now, done));
        while self.samples.len() > 2 && self.samples.get(1).is_some_and(|(at, _)| now - *at >= RATE_OVER) {
            self.samples.pop_front();
        }
        let (began, before) = *self.samples.front()?;
        let over = now - began;
        (over >= RATE_FROM).then(|| done.saturating_sub(before) as f64 / over.as_secs_f64())
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The width of the terminal behind standard error.
pub(super) fn columns() -> usize {
    columns_of(std::io::stderr()).unwrap_or(80)
}

/// The width of a terminal; `None` for what is none.
pub(crate) fn columns_of(stream: impl std::os::fd::AsFd) -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(stream).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// The line: as much as fits into `columns`, the last of which stays free (a terminal may wrap when it is written).
///
/// What goes first when it is narrow: what the task says after a comma or colon, the bar's width, the amount, the bar, the rate.
fn render(progress: Progress<'_>, rate: Option<f64>, columns: usize) -> String {
    let Progress { task, done, total, bytes } = progress;
    let task = clean(task);
    let short = task.split([',', ':']).next().unwrap_or_default();
    let done = if total > 0 { done.min(total) } else { done };
    let amount = match (bytes, total) {
        (true, 0) => units::bytes(done),
        (true, total) => units::bytes_of(done, total),
        (false, 0) => done.to_string(),
        (false, total) => format!("{done} of {total}"),
    };
    let percent = (total > 0).then(|| format!("{:>3} %", percent(done, total)));
    let rate = rate.filter(|rate| *rate > 0.0);
    let speed =
        rate.map(|rate| if bytes { format!("{}/s", units::bytes(whole(rate))) } else { format!("{rate:.0}/s") });
    let left = rate.filter(|_| total > 0).map(|rate| time_left((total - done) as f64 / rate));
    let bar = |width: usize| (total > 0).then(|| bar(done, total, width));
    let amount = Some(amount);
    let candidates = [
        (&*task, vec![bar(BAR), percent.clone(), amount.clone(), speed.clone(), left.clone()]),
        (short, vec![bar(BAR), percent.clone(), amount.clone(), speed.clone(), left.clone()]),
        (short, vec![bar(BAR / 2), percent.clone(), amount, speed.clone(), left.clone()]),
        (short, vec![bar(BAR / 2), percent.clone(), speed.clone(), left.clone()]),
        (short, vec![percent.clone(), speed, left.clone()]),
        (short, vec![percent.clone(), left]),
        (short, vec![percent]),
    ];
    let lines = candidates.into_iter().map(|(task, parts)| {
        let parts: Vec<String> = std::iter::once(task.to_owned()).chain(parts.into_iter().flatten()).collect();
        parts.join("  ")
    });
    let mut last = String::new();
    for line in lines {
        if line.chars().count() < columns {
            return line;
        }
        last = line;
    }
    cut(&last, columns)
}

/// Of at most the whole.
fn percent(part: u64, whole: u64) -> u64 {
    u64::try_from(u128::from(part) * 100 / u128::from(whole.max(1))).unwrap_or(u64::MAX)
}

/// A rate or a time without its fraction.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // `as` gives 0 for what is negative, and the most for more.
fn whole(number: f64) -> u64 {
    number as u64
}

/// Whole seconds: a tenth would only flicker.
fn time_left(seconds: f64) -> String {
    // Longer than three years says nothing.
    let seconds = whole(seconds.ceil().min(1e8));
    match seconds {
        0..60 => format!("{seconds} s left"),
        _ => format!("{} left", units::duration(Duration::from_secs(seconds))),
    }
}

/// Text cut to one less than `columns` characters.
pub(crate) fn cut(text: &str, columns: usize) -> String {
    let text = clean(text);
    if text.chars().count() < columns {
        return text.into_owned();
    }
    let kept: String = text.chars().take(columns.saturating_sub(2)).collect();
    format!("{kept}…")
}

fn bar(done: u64, total: u64, width: usize) -> String {
    // A part of `width` at most.
    let full = u128::from(done) * width as u128 / u128::from(total.max(1));
    let full = usize::try_from(full).unwrap_or(width).min(width);
    format!("[{}{}]", "#".repeat(full), "-".repeat(width - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    const READING: Progress<'static> =
        Progress { task: "reading, hashing and compressing", done: 12_300_000, total: 27_000_000, bytes: true };

    #[test]
    fn a_wide_terminal_shows_everything() {
        assert_eq!(
            render(READING, Some(4_900_000.0), 120),
            "reading, hashing and compressing  [#########-----------]   45 %  12.3 of 27.0 MB  4.9 MB/s  3 s left"
        );
    }

    #[test]
    fn a_line_never_reaches_the_last_column() {
        for columns in 1..130 {
            for progress in [READING, Progress { total: 0, ..READING }, Progress { bytes: false, ..READING }] {
                let line = render(progress, Some(1.0), columns);
                assert!(line.chars().count() < columns.max(2), "{columns}: {line}");
            }
        }
    }

    #[test]
    fn sixty_columns_have_bar_percentage_rate_and_time() {
        let slow = Progress { total: 270_000_000_000, ..READING };
        assert_eq!(render(READING, Some(4_900_000.0), 60), "reading  [####------]   45 %  4.9 MB/s  3 s left");
        let line = render(slow, Some(104_900_000.0), 60);
        assert_eq!(line, "reading  [----------]    0 %  104.9 MB/s  42 min 54 s left");
    }

    #[test]
    fn what_is_unknown_is_not_shown() {
        let line = render(Progress { total: 0, ..READING }, None, 80);
        assert_eq!(line, "reading, hashing and compressing  12.3 MB");
        let stuck = render(READING, Some(0.0), 100);
        assert!(!stuck.contains("left") && !stuck.contains("/s"), "{stuck}");
    }

    #[test]
    fn counts_beyond_their_total_do_not_break_the_line() {
        let over = Progress { task: "collecting packs", done: 9, total: 3, bytes: false };
        assert_eq!(render(over, None, 80), "collecting packs  [####################]  100 %  3 of 3");
    }

    #[test]
    fn a_units_pace_says_what_is_known() {
        let mut rate = Rate::default();
        let job = |bytes_done, bytes| JobProgress {
            units_done: 0,
            units: 1,
            bytes_done,
            bytes,
            activity: String::new(),
            version: String::new(),
        };
        assert_eq!(rate.pace(&job(10, 0)), Pace::default());
        assert_eq!(rate.pace(&job(50, 200)).percent, Some(25));
        assert_eq!(rate.pace(&job(u64::MAX, 2)).percent, Some(100), "a host may say any numbers");
        let ago = Instant::now().checked_sub(Duration::from_secs(2)).unwrap();
        rate.samples = VecDeque::from([(ago, 0)]);
        let pace = rate.pace(&job(2_000_000, 3_000_000));
        assert!(pace.bytes_per_second.is_some_and(|rate| (500_000..=1_000_000).contains(&rate)), "{pace:?}");
        assert!(pace.left_ms.is_some_and(|left| (1_000..=2_000).contains(&left)), "{pace:?}");
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut line = ProgressLine::new();
        let at = |seconds: u64| line.since + Duration::from_secs(seconds);
        let times: Vec<Instant> = [0, 1, 2, 20, 24].map(at).into();
        let done = [0, 100, 200, 200, 600];
        let mut rates = Vec::new();
        for (at, done) in times.into_iter().zip(done) {
            rates.push(line.rate.of(READING.task, done, at));
        }
        assert_eq!(rates[..2], [None, Some(100.0)]);
        // From second 20 to 24: what was long ago no longer counts.
        assert!(rates[4].is_some_and(|rate| rate < 101.0), "{rates:?}");
        let fresh = line.rate.of("another", READING.done, line.since + Duration::from_secs(25));
        assert_eq!(fresh, None, "another task has its own rate");
    }
}
