//! What a failed version leaves behind: how it ended, its last words, what led there.

use proto::agent::StepEvent;
use proto::limits::STDERR_TAIL_BYTES_MAX;

use crate::journal::Entry;

/// The end of a stream.
#[derive(Debug, Default)]
pub(crate) struct Tail(Vec<u8>);

impl Tail {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        if self.0.len() > 2 * STDERR_TAIL_BYTES_MAX {
            self.0.drain(..self.0.len() - STDERR_TAIL_BYTES_MAX);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// At most [`STDERR_TAIL_BYTES_MAX`] bytes, as text.
    pub(crate) fn text(&self) -> String {
        let start = self.0.len().saturating_sub(STDERR_TAIL_BYTES_MAX);
        String::from_utf8_lossy(&self.0[start..]).trim_end().to_owned()
    }
}

/// The text that is kept and reported; its first line is the reason.
pub(crate) fn text(bad: &Entry, reason: &str, tail: &Tail, timeline: &[StepEvent]) -> String {
    let mut text = format!("{reason}\nversion {}, tree {}\n", bad.version, bad.tree);
    let last = tail.text();
    if last.is_empty() {
        text.push_str("it wrote nothing to stderr\n");
    } else {
        text.push_str("last stderr:\n");
        for line in last.lines() {
            text.push_str("  ");
            text.push_str(line);
            text.push('\n');
        }
    }
    if !timeline.is_empty() {
        text.push_str("timeline (milliseconds since 1970, step, duration in microseconds):\n");
        for step in timeline {
            let line = format!("  {} {:?} {} {}", step.at_unix_ms, step.step, step.duration_us, step.detail);
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::TreeId;

    #[test]
    fn the_last_words_are_kept_and_no_more() {
        let mut tail = Tail::default();
        for _ in 0..100 {
            tail.push(&[b'a'; 1000]);
        }
        tail.push(b"\nlast words\n");
        assert!(tail.text().len() <= STDERR_TAIL_BYTES_MAX);
        let bad = Entry { version: "2.0".parse().unwrap(), tree: TreeId::of(b"2") };
        let text = text(&bad, "exit status 3", &tail, &[]);
        assert!(text.starts_with("exit status 3\n") && text.contains("  last words\n"), "{text}");
    }

    #[test]
    fn a_tail_has_a_bound_whatever_is_pushed() {
        let mut tail = Tail::default();
        tail.push(&vec![b'a'; 2 * STDERR_TAIL_BYTES_MAX]);
        assert_eq!(tail.0.len(), 2 * STDERR_TAIL_BYTES_MAX);
        tail.push(b"b");
        assert_eq!(tail.0.len(), STDERR_TAIL_BYTES_MAX);
        assert!(tail.text().ends_with("ab"));
        tail.push(&vec![b'c'; 10 * STDERR_TAIL_BYTES_MAX]);
        assert_eq!(tail.text(), "c".repeat(STDERR_TAIL_BYTES_MAX));
        tail.clear();
        assert_eq!(tail.text(), "");
    }

    #[test]
    fn what_led_there_is_told_where_anything_did() {
        let bad = Entry { version: "2.0".parse().unwrap(), tree: TreeId::of(b"2") };
        let step = StepEvent {
            change: proto::agent::ChangeId(1),
            product: "agent".parse().unwrap(),
            from: None,
            to: bad.tree,
            step: proto::agent::Step::Staged,
            at_unix_ms: 7,
            duration_us: 9,
            detail: "x".to_owned(),
        };
        let told = text(&bad, "late", &Tail::default(), &[step]);
        assert!(told.contains("timeline (") && told.contains("  7 ") && told.ends_with(" 9 x\n"), "{told}");
        assert!(!text(&bad, "late", &Tail::default(), &[]).contains("timeline"));
    }
}
