//! A start as an SVG image: one axis of time, and under it what was asked of the manager, what came, what the worker
//! computed, and which files the program read and waited for.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use proto::trace::{Trace, TraceEvent, TraceWhat};

use crate::cli::out::clean;
use crate::units::{bytes, duration};

/// When the command was where, microseconds since the trace began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marks {
    /// The tree was attached.
    pub(super) attached_us: u64,
    /// The program was started.
    pub(super) started_us: u64,
    /// It had printed something.
    pub(super) printed_us: Option<u64>,
    /// Its start was over, and the trace.
    pub(super) over_us: u64,
}

const WIDTH: f64 = 1200.0;
const LEFT: f64 = 300.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 76.0;
const ROW: f64 = 14.0;
const CURVE: f64 = 64.0;
const GAP: f64 = 30.0;
/// Requests that are drawn beside each other, and files; the rest stand together in one row more.
const LANES_MAX: usize = 24;
const FILES_MAX: usize = 60;
/// What can still be seen, in units of the image.
const BAR_MIN: f64 = 1.0;

/// Draws it. `title` is what was started.
pub(super) fn draw(title: &str, trace: &Trace, marks: Marks) -> String {
    let mut drawing = Drawing { body: String::new(), y: TOP, end_us: marks.over_us.max(1) };
    drawing.command(marks);
    drawing.requests(trace);
    drawing.curve("bytes that came", &arrivals(trace), bytes);
    let busy: Vec<(u64, u64)> = trace.events.iter().map(|event| (event.until_us, event.cpu_us)).collect();
    drawing.curve("processor time of the mount daemon", &busy, time);
    drawing.files(trace);
    drawing.finish(title, &summary(trace, marks))
}

/// What the image says, in a line: also for who does not open it.
pub(super) fn summary(trace: &Trace, marks: Marks) -> String {
    let of = |what: TraceWhat| trace.events.iter().filter(move |event| event.what == what);
    let waited: u64 = union(of(TraceWhat::Missing).map(|event| (event.from_us, event.until_us)).collect());
    let missing = of(TraceWhat::Missing).count();
    let asked = trace.events.iter().filter(|event| is_request(event.what));
    let (requests, came) = asked.fold((0, 0), |(count, sum), event| (count + 1, sum + event.bytes));
    let printed = marks.printed_us.map_or_else(String::new, |at| format!(", first output after {}", time(at)));
    let left_out = if trace.left_out == 0 { String::new() } else { format!(", {} events left out", trace.left_out) };
    format!(
        "attached after {}{printed}; {} reads, {missing} of them waited, {} in all; {requests} requests, {}{left_out}",
        time(marks.attached_us),
        of(TraceWhat::Present).count() + missing,
        time(waited),
        bytes(came),
    )
}

fn is_request(what: TraceWhat) -> bool {
    !matches!(what, TraceWhat::Present | TraceWhat::Missing | TraceWhat::Arrived)
}

/// For how long at least one of these spans lasted.
fn union(mut spans: Vec<(u64, u64)>) -> u64 {
    spans.sort_unstable();
    let (mut sum, mut end) = (0, 0);
    for (from, until) in spans {
        sum += until.saturating_sub(from.max(end));
        end = end.max(until);
    }
    sum
}

/// How many bytes had come when. A stream counts by its parts, everything else when it has come whole.
fn arrivals(trace: &Trace) -> Vec<(u64, u64)> {
    let counts = |event: &&TraceEvent| {
        !matches!(event.what, TraceWhat::Present | TraceWhat::Missing | TraceWhat::Start | TraceWhat::Delta)
    };
    let mut came: Vec<(u64, u64)> =
        trace.events.iter().filter(counts).map(|event| (event.until_us, event.bytes)).collect();
    came.sort_unstable_by_key(|(at, _)| *at);
    let mut sum = 0;
    came.iter_mut().for_each(|(_, bytes)| {
        sum += *bytes;
        *bytes = sum;
    });
    came
}

fn time(us: u64) -> String {
    duration(Duration::from_micros(us))
}

fn name_of(what: TraceWhat) -> (&'static str, &'static str) {
    match what {
        TraceWhat::Present => ("present", "read what was here"),
        TraceWhat::Missing => ("missing", "read what had to come first"),
        TraceWhat::Chunks => ("chunks", "chunks that were waited for"),
        TraceWhat::Background => ("background", "chunks ahead of a reader"),
        TraceWhat::Start => ("start", "all that a start needs"),
        TraceWhat::Arrived => ("arrived", "came"),
        TraceWhat::Manifest => ("manifest", "a manifest"),
        TraceWhat::Delta => ("delta", "a delta"),
    }
}

/// An image as it is drawn from top to bottom.
struct Drawing {
    body: String,
    y: f64,
    end_us: u64,
}

impl Drawing {
    fn x(&self, us: u64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * us.min(self.end_us) as f64 / self.end_us as f64
    }

    fn label(&mut self, text: &str) {
        let y = self.y + ROW - 4.0;
        let _ =
            writeln!(self.body, "<text x=\"{}\" y=\"{y:.1}\" class=\"label\">{}</text>", LEFT - 8.0, escape(text));
    }

    fn bar(&mut self, class: &str, (from_us, until_us): (u64, u64), says: &str) {
        let (x, y) = (self.x(from_us), self.y + 1.0);
        let (width, height) = ((self.x(until_us) - x).max(BAR_MIN), ROW - 3.0);
        let _ = writeln!(
            self.body,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\">\
             <title>{}</title></rect>",
            escape(says)
        );
    }

    fn command(&mut self, marks: Marks) {
        self.label("attaching, then the program");
        let up_us = marks.printed_us.unwrap_or(marks.over_us);
        self.bar("attach", (0, marks.attached_us), &format!("attached after {}", time(marks.attached_us)));
        self.bar("program", (marks.started_us, up_us), &format!("up after {}", time(up_us)));
        self.bar("later", (up_us, marks.over_us), "up");
        self.y += ROW + GAP / 2.0;
    }

    /// Each in the first row that is free by then.
    fn requests(&mut self, trace: &Trace) {
        let mut requests: Vec<&TraceEvent> = trace.events.iter().filter(|event| is_request(event.what)).collect();
        requests.sort_unstable_by_key(|event| event.from_us);
        let (top, mut free): (f64, Vec<u64>) = (self.y, Vec::new());
        self.label("asked of the manager");
        for event in requests {
            let at = free.iter().position(|until| *until <= event.from_us).unwrap_or(free.len()).min(LANES_MAX);
            if at == free.len() {
                free.push(0);
            }
            free[at] = event.until_us;
            self.y = top + ROW * at as f64;
            let (class, words) = name_of(event.what);
            self.bar(class, (event.from_us, event.until_us), &says(event, words, file_of(trace, event)));
        }
        self.y = top + ROW * free.len().max(1) as f64 + GAP / 2.0;
    }

    fn curve(&mut self, label: &str, points: &[(u64, u64)], unit: impl Fn(u64) -> String) {
        let high = points.iter().map(|(_, value)| *value).max().unwrap_or(0);
        self.label(&format!("{label}: {}", unit(high)));
        let (bottom, mut last) = (self.y + CURVE, f64::NEG_INFINITY);
        let mut line = format!("{LEFT:.1},{bottom:.1}");
        for (at_us, value) in points {
            let (x, y) = (self.x(*at_us), bottom - CURVE * *value as f64 / high.max(1) as f64);
            // More points than the image can show would only make it large.
            if x >= last + 0.5 || *value == high {
                let _ = write!(line, " {x:.1},{y:.1}");
                last = x;
            }
        }
        let _ = writeln!(self.body, "<polyline class=\"curve\" points=\"{line}\"/>");
        self.y = bottom + GAP / 2.0;
    }

    fn files(&mut self, trace: &Trace) {
        let mut order: Vec<Option<u32>> = Vec::new();
        let mut reads: HashMap<Option<u32>, Vec<&TraceEvent>> = HashMap::new();
        let mut all: Vec<&TraceEvent> = trace
            .events
            .iter()
            .filter(|event| matches!(event.what, TraceWhat::Present | TraceWhat::Missing))
            .collect();
        all.sort_unstable_by_key(|event| event.from_us);
        for event in all {
            let of = reads.entry(event.file).or_default();
            if of.is_empty() {
                order.push(event.file);
            }
            of.push(event);
        }
        let drawn = if order.len() > FILES_MAX { FILES_MAX } else { order.len() };
        for file in &order[..drawn] {
            let events = reads.remove(file).unwrap_or_default();
            self.label(&short(events.first().map_or("", |event| file_of(trace, event))));
            self.reads(trace, &events);
            self.y += ROW;
        }
        if order.len() > drawn {
            let rest: Vec<&TraceEvent> =
                order[drawn..].iter().flat_map(|file| reads.remove(file).unwrap_or_default()).collect();
            self.label(&format!("{} more files", order.len() - drawn));
            self.reads(trace, &rest);
            self.y += ROW;
        }
    }

    fn reads(&mut self, trace: &Trace, events: &[&TraceEvent]) {
        for event in events {
            let (class, words) = name_of(event.what);
            self.bar(class, (event.from_us, event.until_us), &says(event, words, file_of(trace, event)));
        }
    }

    fn finish(mut self, title: &str, summary: &str) -> String {
        let height = self.y + GAP / 2.0;
        let mut axis = String::new();
        let step = step_us(self.end_us);
        let mut tick = 0;
        while tick <= self.end_us {
            let x = self.x(tick);
            let _ = writeln!(
                axis,
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{height:.1}\"/>\
                 <text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
                TOP - 6.0,
                TOP - 10.0,
                tick_text(tick)
            );
            tick += step;
        }
        self.body.insert_str(0, &axis);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" font-family=\"sans-serif\" \
             font-size=\"11\">\n<style>{STYLE}</style>\n<rect class=\"paper\" width=\"{WIDTH}\" height=\"{height:.0}\"/>\n\
             <text class=\"title\" x=\"16\" y=\"24\">{}</text>\n<text x=\"16\" y=\"42\">{}</text>\n{}</svg>\n",
            escape(title),
            escape(summary),
            self.body
        )
    }
}

fn file_of<'t>(trace: &'t Trace, event: &TraceEvent) -> &'t str {
    let file = event.file.and_then(|file| trace.files.get(file as usize));
    file.map_or("other files", String::as_str)
}

fn says(event: &TraceEvent, words: &str, file: &str) -> String {
    let took = time(event.until_us.saturating_sub(event.from_us));
    let at = if event.offset > 0 { format!(" at {}", event.offset) } else { String::new() };
    format!("{words}: {file}, {}{at}; {took}, from {}", bytes(event.bytes), time(event.from_us))
}

/// The end of a path says more than its beginning.
fn short(path: &str) -> String {
    const CHARACTERS: usize = 46;
    let count = path.chars().count();
    if count <= CHARACTERS {
        return path.to_owned();
    }
    format!("…{}", path.chars().skip(count - CHARACTERS + 1).collect::<String>())
}

/// Between six and fifteen steps of 1, 2 or 5 times a power of ten.
fn step_us(end_us: u64) -> u64 {
    let steps = (0..13).flat_map(|decade| [1, 2, 5].map(|step| step * 10_u64.pow(decade)));
    steps.into_iter().find(|step| end_us / step <= 14).unwrap_or(end_us).max(1)
}

fn tick_text(us: u64) -> String {
    match us {
        0 => "0".to_owned(),
        us if us % 1_000_000 == 0 => format!("{} s", us / 1_000_000),
        us if us % 1000 == 0 => format!("{} ms", us / 1000),
        us => format!("{us} µs"),
    }
}

/// Paths are whatever somebody packed: none of it may be read as a part of the image.
fn escape(text: &str) -> String {
    clean(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const STYLE: &str = "
.paper{fill:#fff} text{fill:#343a40} .title{font-size:15px;font-weight:bold} .label{text-anchor:end} .tick{text-anchor:middle;fill:#868e96}
.grid{stroke:#e9ecef} .curve{fill:none;stroke:#1c7ed6;stroke-width:1.5}
.attach{fill:#868e96} .program{fill:#2b8a3e} .later{fill:#b2f2bb}
.present{fill:#74b816} .missing{fill:#e8590c} .chunks{fill:#e8590c} .background{fill:#fcc419} .start{fill:#1c7ed6} .manifest{fill:#868e96}
.delta{fill:#9c36b5}
@media (prefers-color-scheme:dark){.paper{fill:#1a1b1e} text{fill:#ced4da} .grid{stroke:#373a40}}
";

#[cfg(test)]
mod tests {
    use super::*;

    fn event(what: TraceWhat, (from_us, until_us): (u64, u64), file: Option<u32>) -> TraceEvent {
        TraceEvent { what, from_us, until_us, cpu_us: until_us / 2, bytes: 1000, offset: 4096, file }
    }

    fn marks() -> Marks {
        Marks { attached_us: 20_000, started_us: 21_000, printed_us: Some(60_000), over_us: 80_000 }
    }

    #[test]
    fn what_overlaps_is_waited_for_once() {
        assert_eq!(union(vec![(10, 20), (0, 12), (15, 18), (30, 31)]), 21);
        assert_eq!(union(Vec::new()), 0);
    }

    #[test]
    fn a_start_is_drawn_with_its_figures_and_nothing_of_a_name_becomes_a_part_of_it() {
        let events = vec![
            event(TraceWhat::Arrived, (5_000, 5_000), None),
            event(TraceWhat::Start, (100, 15_000), None),
            event(TraceWhat::Present, (22_000, 22_010), Some(0)),
            event(TraceWhat::Missing, (23_000, 30_000), Some(1)),
            event(TraceWhat::Missing, (25_000, 33_000), Some(0)),
            event(TraceWhat::Chunks, (23_010, 29_000), Some(1)),
        ];
        let files = vec!["bin/<script>\u{1b}".to_owned(), "lib/a\"b&c".to_owned()];
        let trace = Trace { events, files, left_out: 0 };
        assert_eq!(
            summary(&trace, marks()),
            "attached after 20 ms, first output after 60 ms; 3 reads, 2 of them waited, 10 ms in all; 2 requests, \
             2.0 kB"
        );
        let image = draw("tool@1", &trace, marks());
        assert!(image.contains("bin/&lt;script&gt;\\x1b") && image.contains("lib/a&quot;b&amp;c"), "{image}");
        assert!(!image.contains("<script"));
        let count = |class: &str| image.matches(&format!("<rect class=\"{class}\"")).count();
        assert_eq!(["start", "chunks", "present", "missing", "attach", "program"].map(count), [1, 1, 1, 2, 1, 1]);
        assert_eq!(image.matches("<svg").count(), 1);
    }

    #[test]
    fn however_much_there_is_the_image_has_its_bounds() {
        let events = (0..20_000_u64).map(|at| event(TraceWhat::Chunks, (at, at + 50_000), None));
        let reads = (0..3_000).map(|file| event(TraceWhat::Present, (file.into(), 9_000), Some(file)));
        let files =
            (0..3_000).map(|file| format!("a/rather/long/path/of/a/file/that/is/cut/at/its/beginning/{file}"));
        let trace = Trace { events: events.chain(reads).collect(), files: files.collect(), left_out: 7 };
        let image = draw("much", &trace, marks());
        assert!(image.contains("2940 more files") && image.contains("7 events left out"));
        let height: f64 =
            image.split("viewBox=\"0 0 1200 ").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
        assert!(height < 1600.0, "{height}");
    }

    #[test]
    fn the_axis_has_a_handful_of_steps() {
        assert_eq!([1, 900, 80_000, 2_500_000].map(step_us), [1, 100, 10_000, 200_000]);
        assert_eq!([0, 500, 20_000, 3_000_000].map(tick_text), ["0", "500 µs", "20 ms", "3 s"]);
    }
}
