//! Bar charts as SVG.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

/// Bars in groups, one bar a series in each group.
#[derive(Debug, Default)]
pub struct Bars {
    /// Above the chart.
    pub title: String,
    /// What is measured, beside the axis.
    pub unit: String,
    /// Below the axis.
    pub groups: Vec<String>,
    /// Name, and a figure for each group; `None` where there is none.
    pub series: Vec<(String, Vec<Option<f64>>)>,
    /// A logarithmic axis, for figures of very different size.
    pub logarithmic: bool,
}

const WIDTH: f64 = 920.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 36.0;
/// Ours first: the one that is to stand out.
const COLOURS: [&str; 10] =
    ["#d9480f", "#495057", "#1c7ed6", "#2b8a3e", "#9c36b5", "#e8a20c", "#0c8599", "#a61e4d", "#74b816", "#868e96"];

/// The axis: from value to height.
struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Scale {
    fn of(figures: &[f64], logarithmic: bool) -> Self {
        let high = figures.iter().copied().fold(0.0, f64::max).max(1e-9);
        let low = figures.iter().copied().filter(|figure| *figure > 0.0).fold(high, f64::min);
        if logarithmic {
            // Whole decades, and the smallest bar still seen.
            return Self { low: 10_f64.powf((low * 0.8).log10().floor()), high: high * 1.15, logarithmic };
        }
        Self { low: 0.0, high: high * 1.08, logarithmic }
    }

    fn y(&self, value: f64) -> f64 {
        let part = if self.logarithmic {
            (value.max(self.low) / self.low).log10() / (self.high / self.low).log10()
        } else {
            value / self.high
        };
        HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
    }

    fn ticks(&self) -> Vec<f64> {
        if self.logarithmic {
            let decades = std::iter::successors(Some(self.low.log10().round()), |decade| Some(decade + 1.0));
            let decades = decades.take_while(|decade| *decade <= self.high.log10().floor());
            let all = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|step| step * 10_f64.powf(decade)));
            return all.filter(|tick| *tick <= self.high).collect();
        }
        let rough = self.high / 5.0;
        let decade = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|step| step * decade).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        (0..).map(|at| f64::from(at) * step).take_while(|tick| *tick <= self.high).collect()
    }
}

impl Bars {
    /// The document.
    pub fn svg(&self) -> String {
        let figures: Vec<f64> = self.series.iter().flat_map(|(_, bars)| bars.iter().flatten().copied()).collect();
        let scale = Scale::of(&figures, self.logarithmic);
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n"
        );
        label(&mut text, (LEFT, 24.0), "start", "font-size=\"15\" font-weight=\"bold\"", &self.title);
        let unit = if self.logarithmic { format!("{} (log)", self.unit) } else { self.unit.clone() };
        label(&mut text, (8.0, TOP - 6.0), "start", "fill=\"#495057\"", &unit);
        for tick in scale.ticks() {
            let (y, right) = (scale.y(tick), WIDTH - RIGHT);
            let _ =
                writeln!(text, "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#dee2e6\"/>");
            label(&mut text, (LEFT - 6.0, y + 4.0), "end", "fill=\"#495057\"", &short(tick));
        }
        self.bars(&mut text, &scale);
        self.legend(&mut text);
        text + "</svg>\n"
    }

    /// Writes the document.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.svg()).with_context(|| format!("writing {}", path.display()))
    }

    fn bars(&self, text: &mut String, scale: &Scale) {
        let group_width = (WIDTH - LEFT - RIGHT) / self.groups.len().max(1) as f64;
        let bar_width = group_width * 0.86 / self.series.len().max(1) as f64;
        for (at, group) in self.groups.iter().enumerate() {
            let left = LEFT + at as f64 * group_width + group_width * 0.07;
            let middle = LEFT + (at as f64 + 0.5) * group_width;
            label(text, (middle, HEIGHT - BOTTOM + 20.0), "middle", "", group);
            for (number, (name, figures)) in self.series.iter().enumerate() {
                let Some(figure) = figures.get(at).copied().flatten() else { continue };
                let (x, y) = (left + number as f64 * bar_width, scale.y(figure));
                let (height, width) = (HEIGHT - BOTTOM - y, bar_width * 0.92);
                let colour = COLOURS[number % COLOURS.len()];
                let _ = writeln!(
                    text,
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\">\
                     <title>{}: {}</title></rect>",
                    escape(name),
                    short(figure)
                );
                label(text, (x + width / 2.0, y - 3.0), "middle", "font-size=\"8\"", &short(figure));
            }
        }
    }

    fn legend(&self, text: &mut String) {
        let x = WIDTH - RIGHT + 14.0;
        for (number, (name, _)) in self.series.iter().enumerate() {
            let y = TOP + 20.0 * number as f64;
            let colour = COLOURS[number % COLOURS.len()];
            let _ = writeln!(text, "<rect x=\"{x}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>");
            label(text, (x + 18.0, y + 10.0), "start", "", name);
        }
    }
}

fn label(text: &mut String, (x, y): (f64, f64), anchor: &str, style: &str, words: &str) {
    let _ =
        writeln!(text, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {style}>{}</text>", escape(words));
}

fn escape(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Two or three digits that mean something.
fn short(figure: f64) -> String {
    match figure {
        0.0 => "0".to_owned(),
        f if f >= 100.0 => format!("{f:.0}"),
        f if f >= 10.0 => trim(format!("{f:.1}")),
        f if f >= 1.0 => trim(format!("{f:.2}")),
        f => trim(format!("{f:.3}")),
    }
}

fn trim(digits: String) -> String {
    digits.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_a_bar_and_names_are_escaped() {
        let bars = Bars {
            title: "a < b".into(),
            unit: "s".into(),
            groups: vec!["lan".into(), "m50".into()],
            series: vec![("ours".into(), vec![Some(0.05), Some(2.0)]), ("rival & co".into(), vec![None, Some(40.0)])],
            logarithmic: true,
        };
        let svg = bars.svg();
        assert_eq!(svg.matches("<title>").count(), 3);
        assert!(svg.contains("a &lt; b") && svg.contains("rival &amp; co: 40"), "{svg}");
    }

    #[test]
    fn the_axis_covers_the_figures() {
        let scale = Scale::of(&[0.05, 40.0], true);
        assert_eq!(scale.low, 0.01);
        assert!(scale.y(40.0) > TOP && scale.y(0.05) < HEIGHT - BOTTOM);
        assert_eq!(Scale::of(&[9.0], false).ticks(), [0.0, 2.0, 4.0, 6.0, 8.0]);
    }
}
