//! Text for people that came from elsewhere: made harmless and short in one place.
//!
//! What a peer, an archive or an old disk says about itself ends up in an operator's terminal. There a control character
//! would move the cursor, set a title or write to the clipboard, and a direction mark would show another order of letters than
//! there is. So each such character becomes visible (`\x1b`, `\u{202e}`), and what is too long is cut with a mark that
//! says how long it was. Both are stable: what was cleaned and cut once stays as it is.

use std::fmt::Write;

/// Bytes that the mark of a cut may take, so the least that a bound on text may be.
pub const MARK_BYTES: usize = 48;

/// One line: control characters, line ends among them, are shown, and what is beyond `max` bytes is cut at the end.
pub fn line(raw: &str, max: usize) -> String {
    bounded(raw, max, false)
}

/// Several lines: line ends and tabs stay. Of what is beyond `max` bytes the middle is cut out: the start says what it is,
/// and the last lines of a program that failed say why.
pub fn lines(raw: &str, max: usize) -> String {
    bounded(raw, max, true)
}

/// Whether this character does something to a terminal or to its neighbours instead of being seen.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Marks, embeddings, overrides and isolates of direction; ends of lines and paragraphs.
            '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            // The byte order mark, annotations, and tags that no font shows.
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Appends a character as something that can be seen.
pub fn show(c: char, to: &mut String) {
    // Writing to a string cannot fail.
    let _ = match c {
        '\n' => to.write_str("\\n"),
        '\r' => to.write_str("\\r"),
        '\t' => to.write_str("\\t"),
        c if (c as u32) < 0x80 => write!(to, "\\x{:02x}", c as u32),
        c => write!(to, "\\u{{{:x}}}", c as u32),
    };
}

fn bounded(raw: &str, max: usize, several: bool) -> String {
    let max = max.max(MARK_BYTES);
    if raw.len() <= max {
        let clean = clean(raw, several);
        if clean.len() <= max {
            return clean;
        }
    }
    let room = max - MARK_BYTES;
    let mark = format!("[… cut: {} bytes in all …]", raw.len());
    // Nothing longer than the bound is cleaned, however long the text is.
    if several {
        let (head, tail) = (room / 4, room - room / 4);
        let start = clean(&raw[..raw.floor_char_boundary(head)], true);
        let end = clean(&raw[raw.ceil_char_boundary(raw.len().saturating_sub(tail))..], true);
        let start = &start[..start.floor_char_boundary(head)];
        let end = &end[end.ceil_char_boundary(end.len().saturating_sub(tail))..];
        format!("{start}\n{mark}\n{end}")
    } else {
        let start = clean(&raw[..raw.floor_char_boundary(room)], false);
        format!("{} {mark}", &start[..start.floor_char_boundary(room)])
    }
}

fn clean(raw: &str, several: bool) -> String {
    let mut text = String::with_capacity(raw.len());
    for c in raw.chars() {
        match c {
            '\n' | '\t' if several => text.push(c),
            c if is_hidden(c) => show(c, &mut text),
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        assert_eq!(line("\x1b]0;owned\x07 done\nok  host", 80), "\\x1b]0;owned\\x07 done\\nok  host");
        assert_eq!(line("a\u{202e}b\u{9b}c\u{2028}", 80), "a\\u{202e}b\\u{9b}c\\u{2028}");
        assert_eq!(lines("one\n\ttwo\r\n\x7f", 80), "one\n\ttwo\\r\n\\x7f");
        assert_eq!(line("Größe 3 µs — 日本語 👩‍👩‍👧", 80), "Größe 3 µs — 日本語 👩‍👩‍👧", "what people write stays");
    }

    #[test]
    fn what_is_too_long_is_cut_with_a_mark() {
        let cut = line(&"x".repeat(9 << 20), 100);
        assert_eq!(cut, format!("{} [… cut: 9437184 bytes in all …]", "x".repeat(100 - MARK_BYTES)));
        let long = format!("exit status 1\n{}\nthe last words", "noise\n".repeat(1000));
        let cut = lines(&long, 200);
        assert!(cut.starts_with("exit status 1\nnoise") && cut.ends_with("noise\n\nthe last words"), "{cut}");
        assert!(cut.contains(&format!("[… cut: {} bytes in all …]", long.len())), "{cut}");
        assert_eq!(line(&"x".repeat(100), 100).len(), 100, "what just fits is whole");
    }

    proptest! {
        #[test]
        fn cleaned_text_is_within_its_bound_harmless_and_stays_as_it_is(
            raw in prop_oneof![".{0,300}", "[\\x00-\\x20\u{202a}-\u{202e}a]{0,300}"],
            max in MARK_BYTES..400_usize,
        ) {
            let one = line(&raw, max);
            prop_assert!(one.len() <= max && !one.chars().any(is_hidden), "{:?}", one);
            prop_assert_eq!(line(&one, max), one.clone());
            let many = lines(&raw, max);
            let hidden = many.chars().any(|c| is_hidden(c) && c != '\n' && c != '\t');
            prop_assert!(many.len() <= max && !hidden, "{:?}", many);
            prop_assert_eq!(lines(&many, max), many.clone());
        }
    }
}
