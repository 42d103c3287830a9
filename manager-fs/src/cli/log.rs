//! Log lines of the long-running commands: on standard error, filtered by `MANAGER_FS_LOG`.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

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
    let lines = tracing_subscriber::fmt().with_env_filter(filter()).with_ansi(std::io::stderr().is_terminal());
    let _ = lines.with_writer(writer).try_init();
}

/// `MANAGER_FS_LOG`; by default `info` without the FUSE library's own.
fn filter() -> EnvFilter {
    EnvFilter::try_from_env("MANAGER_FS_LOG").unwrap_or_else(|_| EnvFilter::new("info,fuser=warn"))
}
