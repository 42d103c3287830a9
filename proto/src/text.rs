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

    /// The characters at both ends of every class, and those beside them.
    #[test]
    fn every_class_of_hidden_characters_ends_where_it_ends() {
        let classes: [(u32, u32); 14] = [
            (0x00, 0x1f),
            (0x7f, 0x9f),
            (0x61c, 0x61c),
            (0x200b, 0x200b),
            (0x200e, 0x200f),
            (0x2028, 0x202e),
            (0x2060, 0x206f),
            (0xfeff, 0xfeff),
            (0xfff9, 0xfffb),
            (0xe0000, 0xe007f),
            // What people write, and joins of it.
            (0x20, 0x20),
            (0xad, 0xad),
            (0x200c, 0x200d),
            (0x202f, 0x205f),
        ];
        let (hidden, seen) = classes.split_at(10);
        let character = |number: u32| char::from_u32(number).unwrap();
        for (first, last) in hidden {
            assert!((*first..=*last).all(|number| is_hidden(character(number))), "{first:#x} to {last:#x}");
            for beside in [first.checked_sub(1), Some(last + 1)].into_iter().flatten() {
                let is_in_another = hidden.iter().any(|(first, last)| (*first..=*last).contains(&beside));
                assert_eq!(is_hidden(character(beside)), is_in_another, "{beside:#x}");
            }
        }
        for (first, last) in seen {
            assert!((*first..=*last).all(|number| !is_hidden(character(number))), "{first:#x} to {last:#x}");
        }
    }

    #[test]
    fn hidden_characters_are_shown_as_programmers_write_them() {
        let shown = |c: char| {
            let mut text = String::new();
            show(c, &mut text);
            text
        };
        let pairs = [
            ('\0', "\\x00"),
            ('\t', "\\t"),
            ('\n', "\\n"),
            ('\r', "\\r"),
            ('\x1b', "\\x1b"),
            ('\x7f', "\\x7f"),
            ('\u{80}', "\\u{80}"),
            ('\u{feff}', "\\u{feff}"),
            ('\u{e0001}', "\\u{e0001}"),
        ];
        for (c, text) in pairs {
            assert_eq!(shown(c), text);
        }
    }

    /// The bytes of each part of what was cut: they are what a reader can count on.
    #[test]
    fn a_cut_keeps_so_much_of_the_start_and_of_the_end() {
        let raw: String = ('a'..='z').cycle().take(1000).collect();
        let mark = "[… cut: 1000 bytes in all …]";
        assert_eq!(line(&raw, 148), format!("{} {mark}", &raw[..100]));
        assert_eq!(lines(&raw, 148), format!("{}\n{mark}\n{}", &raw[..25], &raw[925..]));
        assert_eq!(line(&raw, 0), format!(" {mark}"), "a bound below the mark's is the mark's");
        assert_eq!(lines(&raw, 0), format!("\n{mark}\n"));
        assert_eq!(line(&raw, 999).len(), 999 - MARK_BYTES + 1 + mark.len());
        assert_eq!(line(&raw, 1000), raw, "what just fits");
        // It grows while it is cleaned: then it is cut as well, and says how long it was before.
        let bells = "\x07".repeat(50);
        assert_eq!(line(&bells, 200), "\\x07".repeat(50), "200 bytes");
        assert_eq!(
            line(&bells, 199),
            format!("{} [… cut: 50 bytes in all …]", &"\\x07".repeat(50)[..151 - 151 % 4 + 3])
        );
    }

    #[test]
    fn characters_are_never_cut_in_two() {
        let raw = "ä€😀".repeat(200);
        for max in MARK_BYTES..MARK_BYTES + 40 {
            for text in [line(&raw, max), lines(&raw, max)] {
                assert!(text.len() <= max && !text.contains('\u{fffd}'), "{max}: {text}");
                let kept: String = text.chars().filter(|c| "ä€😀".contains(*c)).collect();
                assert!(kept.is_empty() || raw.contains(&kept[..kept.ceil_char_boundary(1)]), "{max}: {text}");
            }
        }
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
