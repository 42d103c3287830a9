//! Log lines of the long-running commands: on standard error, filtered by `MANAGER_FS_LOG`.

use std::io::{IsTerminal, Write};

use clap::ValueEnum;
use tracing::Metadata;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::out::clean;

/// In which form log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line for people
    Text,
    /// A JSON document a line
    Json,
    /// Straight to the systemd journal, with each value as a field of its own
    Journald,
}

/// The flag of every long-running command.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct LogArgs {
    /// In which form log lines are written; `MANAGER_FS_LOG` says which (such as debug or manager_fs::net=trace)
    #[arg(long, env = "MANAGER_FS_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value = "text")]
    log_format: Format,
}

impl LogArgs {
    /// The flag's value, for a child.
    pub(super) fn format(&self) -> String {
        self.log_format.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Begins to write log lines to standard error.
    pub(super) fn start(&self) {
        self.start_to(std::io::stderr);
    }

    /// As [`LogArgs::start`], on a way of its own. Where no journal can be reached, text is written.
    pub(super) fn start_to(&self, writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static) {
        // A log that was set up already is as good.
        match self.log_format {
            Format::Text => text(writer),
            Format::Json => {
                let lines = tracing_subscriber::fmt().json().with_env_filter(filter());
                let _ = lines.with_writer(writer).try_init();
            }
            Format::Journald => match tracing_journald::layer() {
                Ok(journal) => {
                    let _ = tracing_subscriber::registry().with(filter()).with(journal).try_init();
                }
                Err(error) => {
                    text(writer);
                    tracing::warn!(%error, "there is no journal here; log lines are text");
                }
            },
        }
    }
}

/// Begins to write text to standard error, of a command without flags of its own.
pub(super) fn start() {
    text(std::io::stderr);
}

fn text(writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static) {
    let coloured = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt().with_env_filter(filter()).with_ansi(coloured);
    let _ = lines.with_writer(OneLine { writer, coloured }).try_init();
}

/// What the formatter puts behind an escape: nothing that moves, hides or sets anything else.
const COLOURS: [&str; 9] = ["[0m", "[1m", "[2m", "[3m", "[31m", "[32m", "[33m", "[34m", "[35m"];

/// Makes a line of each event, whatever texts of hosts, agents and archives stand in it: none can pass for another event.
struct OneLine<M> {
    writer: M,
    /// Some escapes are the formatter's own.
    coloured: bool,
}

struct Line<W> {
    writer: W,
    coloured: bool,
}

impl<'w, M: MakeWriter<'w>> MakeWriter<'w> for OneLine<M> {
    type Writer = Line<M::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        Line { writer: self.writer.make_writer(), coloured: self.coloured }
    }

    fn make_writer_for(&'w self, of: &Metadata<'_>) -> Self::Writer {
        Line { writer: self.writer.make_writer_for(of), coloured: self.coloured }
    }
}

impl<W: Write> Write for Line<W> {
    /// The formatter gives an event as a whole.
    fn write(&mut self, event: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let mut parts = text.split('\x1b');
        let mut line = clean(parts.next().unwrap_or_default()).into_owned();
        for part in parts {
            let is_colour = self.coloured && COLOURS.iter().any(|colour| part.starts_with(colour));
            line.push_str(if is_colour { "\x1b" } else { "\\x1b" });
            line.push_str(&clean(part));
        }
        line.push('\n');
        self.writer.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.writer.flush()
    }
}

/// `MANAGER_FS_LOG`; by default `info` without the FUSE library's own.
fn filter() -> EnvFilter {
    EnvFilter::try_from_env("MANAGER_FS_LOG").unwrap_or_else(|_| EnvFilter::new("info,fuser=warn"))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_text_of_a_host_makes_a_line_or_commands_a_terminal() {
        for coloured in [false, true] {
            let kept = Kept::default();
            let writer = kept.clone();
            let lines = tracing_subscriber::fmt().with_ansi(coloured);
            let log = lines.with_writer(OneLine { writer: move || writer.clone(), coloured }).finish();
            let reason = "no\r\n2026-01-01T00:00:00Z  INFO host revoked host=h7\x1b]0;title\x07\u{202e}";
            tracing::subscriber::with_default(log, || {
                tracing::warn!(%reason, "a host says {reason}");
                tracing::warn!("next");
            });
            let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
            assert_eq!(text.lines().count(), 2, "{text:?}");
            assert!(!text.contains("\x1b]0") && !text.contains(['\r', '\x07', '\u{202e}']), "{text:?}");
            assert!(text.contains("\\n2026-01-01"), "{text:?}");
        }
    }
}
