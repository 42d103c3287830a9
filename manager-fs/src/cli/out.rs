//! What the commands print: answers on standard output, everything for people beside them on standard error.
//!
//! Text here may come from hosts, agents and archives. One place makes it harmless: [`clean`], which [`say`] and [`note`]
//! pass everything through, so that no name can move the cursor, set a title or forge a line.
//!
//! `println!` is not used: it panics when nobody reads any more (`manager-fs diff A B | head`) or the disk is full.

use std::borrow::Cow;
use std::fmt::Arguments;
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::OnceLock;

use serde_json::Value;

/// What became of standard output, once a write has failed.
static FAILED: OnceLock<std::io::Error> = OnceLock::new();

/// Text in which nothing commands a terminal: control characters (also the 8-bit ones) and those that change the
/// direction of writing stand as `\x1b`, `\n` or `\u{202e}`.
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut cleaned = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '\n' => cleaned.push_str("\\n"),
            '\t' => cleaned.push_str("\\t"),
            '\r' => cleaned.push_str("\\r"),
            harmful if is_harmful(harmful) && u32::from(harmful) < 0x100 => {
                cleaned.push_str(&format!("\\x{:02x}", u32::from(harmful)));
            }
            harmful if is_harmful(harmful) => cleaned.push_str(&format!("\\u{{{:04x}}}", u32::from(harmful))),
            harmless => cleaned.push(harmless),
        }
    }
    Cow::Owned(cleaned)
}

/// Controls (categories Cc), line and paragraph separators, and the marks of UAX #9 that reorder what follows.
fn is_harmful(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{061c}')
        || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Prints text as it is: what this program has made itself, such as a completion script.
pub(crate) fn print(text: &[u8]) {
    // After a failure the rest is not printed; the command goes on, so that its exit code stays true.
    if FAILED.get().is_none()
        && let Err(error) = std::io::stdout().write_all(text)
    {
        // Only the first failure is of interest.
        let _ = FAILED.set(error);
    }
}

/// Prints a file's content: byte for byte where it goes into a file or a pipe; a terminal gets lines in which nothing
/// commands it.
pub(crate) fn content(bytes: &[u8]) {
    if !std::io::stdout().is_terminal() {
        return print(bytes);
    }
    for text in String::from_utf8_lossy(bytes).lines() {
        line(format_args!("{text}"));
    }
}

/// Prints one line to standard output; a line break within it does not begin another.
pub(crate) fn line(text: Arguments<'_>) {
    print(format!("{}\n", clean(&text.to_string())).as_bytes());
}

/// Prints a message for people to standard error. Where it has several lines, those after the first are indented, so
/// that none of them can pass for another message.
pub(crate) fn message(text: Arguments<'_>) {
    let text = text.to_string();
    let lines: Vec<Cow<'_, str>> = text.trim_end().lines().map(clean).collect();
    // Nobody may be there to read it.
    let _ = std::io::stderr().write_all(format!("manager-fs: {}\n", lines.join("\n  ")).as_bytes());
}

/// Prints a line of another program's messages to standard error.
pub(crate) fn aside(line: &str) {
    let _ = std::io::stderr().write_all(format!("{}\n", clean(line)).as_bytes());
}

/// Prints one JSON document, in lines.
pub(crate) fn json(document: &Value) {
    print(format!("{}\n", escaped(&format!("{document:#}"), true)).as_bytes());
}

/// Prints one JSON value on a line of its own, at once: for events.
pub(crate) fn json_line(value: &Value) {
    print(format!("{}\n", escaped(&value.to_string(), false)).as_bytes());
    if FAILED.get().is_none()
        && let Err(error) = std::io::stdout().flush()
    {
        let _ = FAILED.set(error);
    }
}

/// JSON without characters that command a terminal. Its encoder leaves those above 0x7e as they are; they stand in strings
/// only, where an escape means the same.
fn escaped(document: &str, in_lines: bool) -> String {
    let mut escaped = String::with_capacity(document.len());
    for character in document.chars() {
        if is_harmful(character) && !(in_lines && character == '\n') {
            escaped.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            escaped.push(character);
        }
    }
    escaped
}

/// Writes out what is buffered, and says whether everything could be printed. A reader that has had enough is no fault.
///
/// # Errors
/// Standard output could not be written for another reason.
pub(crate) fn finish() -> anyhow::Result<()> {
    if let Err(error) = std::io::stdout().flush() {
        let _ = FAILED.set(error);
    }
    match FAILED.get() {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => {
            anyhow::bail!("cannot write to standard output: {error}")
        }
        _ => Ok(()),
    }
}

/// Prints a table for people: columns as wide as their widest cell.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) {
    for row in table_lines(head, rows) {
        line(format_args!("{row}"));
    }
}

fn table_lines(head: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    // Cleaned before they are measured: what is printed is what counts.
    let head = head.iter().map(|cell| (*cell).to_owned()).collect();
    let rows = rows.iter().map(|row| row.iter().map(|cell| clean(cell).into_owned()).collect());
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let padded = rows.iter().map(|row| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        cells.join("  ").trim_end().to_owned()
    });
    padded.collect()
}

/// What stands behind a number and stays with it.
const UNITS: [&str; 14] = ["s", "ms", "µs", "min", "h", "d", "B", "kB", "MB", "GB", "TB", "B/s", "kB/s", "MB/s"];

/// Breaks text into lines of at most `columns` characters at spaces, but not between a number and its unit; a longer word
/// gets a line of its own.
pub(crate) fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let bare = word.trim_end_matches([',', '.', ';', ':', ')']);
        match words.last_mut() {
            Some(last) if UNITS.contains(&bare) && last.ends_with(|c: char| c.is_ascii_digit()) => {
                last.push(' ');
                last.push_str(word);
            }
            _ => words.push(word.to_owned()),
        }
    }
    let mut lines = vec![String::new()];
    for word in words {
        let Some(last) = lines.last_mut() else { break };
        if last.is_empty() {
            last.push_str(&word);
        } else if last.chars().count() + 1 + word.chars().count() <= columns {
            last.push(' ');
            last.push_str(&word);
        } else {
            lines.push(word);
        }
    }
    lines
}

/// Prints one line to standard output, as [`line`] does.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::cli::out::line(format_args!($($text)*))
    };
}
pub(crate) use say;

/// Prints a message for people to standard error, as [`message`] does.
macro_rules! note {
    ($($text:tt)*) => {
        $crate::cli::out::message(format_args!($($text)*))
    };
}
pub(crate) use note;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use serde_json::json;

    #[test]
    fn what_commands_a_terminal_is_shown_and_not_done() {
        // A window title, a clipboard write, an 8-bit CSI, a forged line, a reversed name.
        for (raw, shown) in [
            ("\u{1b}]0;owned\u{7}", "\\x1b]0;owned\\x07"),
            ("\u{1b}]52;c;cm0=\u{1b}\\", "\\x1b]52;c;cm0=\\x1b\\"),
            ("\u{9b}31mred", "\\x9b31mred"),
            ("h1\nh2  connected", "h1\\nh2  connected"),
            ("a\tb\rc\u{7f}", "a\\tb\\rc\\x7f"),
            ("exe\u{202e}txt", "exe\\u{202e}txt"),
            ("Grüße, 世界 ✓", "Grüße, 世界 ✓"),
        ] {
            assert_eq!(clean(raw), shown, "{raw:?}");
            assert_eq!(clean(&clean(raw)), shown, "cleaning is done once");
        }
    }

    #[test]
    fn json_means_the_same_after_it_is_made_harmless() {
        let value = json!({ "text": "\u{9b}31m \u{1b}[2J \u{202e} \n ok", "list": [1, "\u{7f}"] });
        for in_lines in [true, false] {
            let text = if in_lines { format!("{value:#}") } else { value.to_string() };
            let text = escaped(&text, in_lines);
            assert!(!text.chars().any(|c| is_harmful(c) && !(in_lines && c == '\n')), "{text}");
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        }
    }

    #[test]
    fn columns_are_as_wide_as_what_is_printed() {
        let rows = [vec!["a\u{1b}b".to_owned(), "x".to_owned()], vec!["ccc".to_owned(), "yy".to_owned()]];
        assert_eq!(table_lines(&["N", "M"], &rows), ["N       M", "a\\x1bb  x", "ccc     yy"]);
        assert_eq!(table_lines(&["N"], &[]), ["N"]);
    }

    #[test]
    fn text_is_broken_at_spaces() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("a-word-that-is-too-long b", 5), ["a-word-that-is-too-long", "b"]);
        assert_eq!(wrapped("", 5), [""]);
        assert_eq!(wrapped("of which it ran 1 s, alone", 18), ["of which it ran", "1 s, alone"]);
    }

    proptest! {
        #[test]
        fn nothing_that_is_printed_commands_a_terminal(raw: String) {
            let shown = clean(&raw);
            prop_assert!(!shown.chars().any(is_harmful), "{shown:?}");
            prop_assert_eq!(clean(&shown), shown.as_ref(), "cleaning is done once");
            let document = json!({ "text": raw, raw.clone(): [raw.clone()] });
            let text = escaped(&document.to_string(), false);
            prop_assert!(!text.chars().any(is_harmful), "{text:?}");
            prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), document);
        }

        /// Every column begins in one place, whatever is in the cells, and nothing of them is lost.
        #[test]
        fn columns_stand_under_each_other(rows in prop::collection::vec(prop::collection::vec(".{0,12}", 3), 0..6)) {
            let lines = table_lines(&["A", "B", "C"], &rows);
            prop_assert_eq!(lines.len(), rows.len() + 1);
            let shown: Vec<Vec<String>> =
                rows.iter().map(|row| row.iter().map(|cell| clean(cell).into_owned()).collect()).collect();
            let width = |column: usize| shown.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(1);
            let (second, third) = (width(0) + 2, width(0) + width(1) + 4);
            for (line, row) in lines[1..].iter().zip(&shown) {
                let at = |from: usize| line.chars().skip(from).collect::<String>();
                prop_assert!(at(0).starts_with(row[0].trim_end()), "{line:?}");
                prop_assert!(at(second).starts_with(row[1].trim_end()), "{line:?}");
                let last = at(third);
                prop_assert_eq!(last.trim_end(), row[2].trim_end());
            }
        }

        #[test]
        fn broken_text_has_every_word_in_order_and_fits(text in "[a-z0-9 ,]{0,200}", columns in 5_usize..80) {
            let lines = wrapped(&text, columns);
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            prop_assert_eq!(words(&lines.join(" ")), words(&text));
            for line in &lines {
                let is_one = !line.contains(' ') || UNITS.iter().any(|unit| line.contains(&format!(" {unit}")));
                prop_assert!(line.chars().count() <= columns || is_one, "{line:?}");
            }
        }
    }
}
